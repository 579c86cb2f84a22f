"""Memory that this process keeps after many Hessian-vector products of closures made afresh for
each call: equal ones, and ones that captured different numbers; by `mindspore_hessian.hvp`, and
compiled by hand each time."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings

os.environ.setdefault("GLOG_v", "3")  # MindSpore's log says nothing here that a user could act on

import numpy as np
import psutil

WARM_UP = (
    5  # calls before the first measurement: the first compilation brings in what is needed once
)


def closure(number: float):
    def f(x):
        return (number * x.sin()).sum()

    return f


def compiled_by_hand(f, x, v):
    import mindspore as ms

    gradient = ms.grad(f)

    def product(x, v):
        return ms.jvp(gradient, x, v)[1]

    return ms.jit(product)(x, v)


def grow(method: str, kind: str, calls: int) -> None:
    """Print the growth in MiB a call; in a process of its own, since memory is never given back
    entirely.
    """
    import mindspore as ms

    import mindspore_hessian as mh

    warnings.simplefilter(
        "ignore", mh.RecompileWarning
    )  # compiling at every call is the point here
    hvp = mh.hvp if method == "hvp" else compiled_by_hand
    x, v = ms.Tensor(np.linspace(-1, 1, 64, dtype=np.float32)), ms.Tensor(np.ones(64, np.float32))
    process = psutil.Process()
    for number in range(WARM_UP + calls):
        if number == WARM_UP:
            before = process.memory_info().rss
        factor = 1.0 if kind == "equal" else 1.0 + number
        result = hvp(closure(factor), x, v).asnumpy()
        assert np.allclose(result, -factor * np.sin(x.asnumpy()), rtol=1e-4, atol=1e-5)
    growth = (process.memory_info().rss - before) / 2**20
    print(
        f"{method:<20}{f'{calls} {kind} closures':<26}{growth:>8.1f} MiB{growth / calls:>10.3f} "
        "MiB a call"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--equal", type=int, default=1000, help="calls with equal closures")
    parser.add_argument("--different", type=int, default=200, help="calls with different closures")
    parser.add_argument(
        "--by-hand", type=int, default=100, help="calls compiled by hand: 7 MiB each"
    )
    parser.add_argument(
        "--one", nargs=3, metavar=("METHOD", "KIND", "CALLS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.one:
        grow(options.one[0], options.one[1], int(options.one[2]))
        return
    print("\nMemory kept after calls with fresh closures")
    for method, kind, calls in (
        ("hvp", "equal", options.equal),
        ("hvp", "different", options.different),
        ("compiled by hand", "equal", options.by_hand),
        ("compiled by hand", "different", options.by_hand),
    ):
        subprocess.run([sys.executable, __file__, "--one", method, kind, str(calls)], check=True)


if __name__ == "__main__":
    main()
