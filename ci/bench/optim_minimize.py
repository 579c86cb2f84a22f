"""Rosenbrock's chained function by scipy's trust region methods, with sparse Hessians.

    python ci/bench/optim_minimize.py [--sizes 1000 100000]

Prints a line for each method and size: seconds of the first run (which compiles) and of a second,
steps, and the largest error of an entry. It starts at 1.2 everywhere; the minimum is at 1.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("GLOG_v", "4")
import numpy as np  # noqa: E402
from mindspore import Tensor  # noqa: E402

from mindspore_hessian import optim  # noqa: E402


def rosenbrock(x):
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100000])
    print(
        "| method | n | first run, s | second run, s | steps | error "
        "|\n|---|---:|---:|---:|---:|---:|"
    )
    for n in parser.parse_args().sizes:
        for method in ("trust-krylov", "trust-ncg"):
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                found = optim.minimize(
                    rosenbrock, Tensor(np.full(n, 1.2)), method, True, gtol=1e-6, progress=False
                )
                seconds.append(time.perf_counter() - start)
            print(
                f"| {method} | {n:,} | {seconds[0]:.1f} | {seconds[1]:.1f} | {found.nit} | "
                f"{abs(found.x.asnumpy() - 1).max():.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
