"""Seconds of the first call, compiling included: MindSpore's own jitted gradient, and this
library's Hessian-vector product and Hessian, each in a process of its own that has imported its
libraries and made its data. Prints a markdown table of medians, with the ratio to the gradient of
the same function.

Usage: python ci/bench/compile.py [--rounds N] [--quick]. The gradient's process never imports this
library.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from cases import OURS, Case, mlp_shapes, numbered, numbers

MLP = {"inputs": 64, "hidden": 280, "batch": 64}
WHAT = {
    "gradient": "gradient, plain MindSpore",
    "hvp": "hvp",
    "hessian": "hessian",
    "vectors 1": "operator, 1 vector",
    "vectors 8": "operator, 8 vectors",
    "at once 8": "operator, 8 vectors at once (chunk_size=8)",
    "at once 32": "operator, 32 vectors at once (chunk_size=32)",
}
GOALS = {"hvp": 2, "hessian": 3}


def jobs(quick: bool) -> list[tuple[str, int, tuple[str, ...]]]:
    """(problem, inputs, what)"""
    products = () if quick else ("vectors 1", "vectors 8", "at once 8", "at once 32")
    return [
        ("mlp", MLP["inputs"], ("gradient", "hvp", *products)),
        *(
            ("mlp_input", n, ("gradient", "hvp", "hessian"))
            for n in ((64,) if quick else (64, 256, 1024))
        ),
    ]


def measure(problem: str, n: int, what: str) -> float:
    os.environ.setdefault(
        "GLOG_v", "3"
    )  # MindSpore's log says nothing here that a user could act on
    import mindspore as ms
    from mindspore import Parameter, Tensor, nn, ops

    if what != "gradient":
        import mindspore_hessian as mh

    class Network(nn.Cell):
        def __init__(self, weights):
            super().__init__()
            self.w = ms.ParameterTuple(
                [Parameter(w, name=f"w{number}") for number, w in enumerate(weights)]
            )

        def construct(self, x):
            x = ops.tanh(ops.matmul(x, self.w[0]) + self.w[1])
            x = ops.tanh(ops.matmul(x, self.w[2]) + self.w[3])
            return ops.matmul(x, self.w[4]) + self.w[5]

    params = MLP if problem == "mlp" else {"n": n}
    arrays = numbers(Case(problem, problem, what, params, problem, n, "inputs", (OURS,)))
    data = {key: Tensor(array) for key, array in arrays.items()}
    x, w, v = data["x"], numbered(data, "w"), tuple(numbered(data, "v"))

    def f(x):
        return ops.matmul(ops.tanh(ops.matmul(x, w[0])), w[1]).sum()

    if problem == "mlp":
        net, y = Network(w), data["y"]

        def loss(x, y):
            return ops.cross_entropy(net(x), y)

        if what == "gradient":
            gradient = ms.jit(ms.grad(loss, None, net.w))
            return first(lambda: gradient(x, y))
        if what == "hvp":
            return first(lambda: mh.hvp(loss, (x, y), v, weights=net.w))
        columns = int(what.split()[-1])
        op = mh.HessianOperator(
            net,
            nn.CrossEntropyLoss(),
            (x, y),
            check_deterministic=False,
            chunk_size=columns if what.startswith("at once") else None,
        )
        block = np.random.default_rng(0).standard_normal((op.shape[0], columns)).astype(np.float32)
        return first(lambda: op @ block)
    if what == "gradient":
        gradient = ms.jit(ms.grad(f))
        return first(lambda: gradient(x))
    if what == "hvp":
        vector = Tensor(np.random.default_rng(0).standard_normal(n).astype(np.float32))
        return first(lambda: mh.hvp(f, x, vector))
    hessian = mh.hessian(f)
    return first(lambda: hessian(x))


def first(call) -> float:
    """Seconds until the numbers of the first call are there."""
    start = time.perf_counter()
    result = call()
    for part in result if isinstance(result, (tuple, list)) else (result,):
        if hasattr(part, "asnumpy"):
            part.asnumpy()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row")
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument(
        "--one", nargs=3, metavar=("PROBLEM", "N", "WHAT"), help="measure this, print the seconds"
    )
    options = parser.parse_args()
    if options.one:
        print(measure(options.one[0], int(options.one[1]), options.one[2]), flush=True)
        os._exit(0)  # MindSpore's clean-up at exit takes a second
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    environment.pop("MS_DEV_USE_PY_BPROP", None)  # this library sets it for itself
    print("| function | first call of | median, s | range, s | times the gradient | goal |")
    print("|---|---|---:|---:|---:|---:|")
    for problem, n, kinds in jobs(options.quick):
        times: dict[str, list[float]] = {what: [] for what in kinds}
        for _ in range(options.rounds):
            for what in kinds:
                done = subprocess.run(
                    [sys.executable, __file__, "--one", problem, str(n), what],
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    check=True,
                )
                times[what].append(float(done.stdout.split()[-1]))
        count = sum(int(np.prod(shape)) for shape in mlp_shapes(MLP))
        name = (
            f"loss of an MLP by its {count:,} weights"
            if problem == "mlp"
            else f"MLP by its {n} inputs"
        )
        middle = {what: statistics.median(seconds) for what, seconds in times.items()}
        for what, seconds in times.items():
            print(
                f"| {name} | {WHAT[what]} | {middle[what]:.2f} | {min(seconds):.2f} to "
                f"{max(seconds):.2f} | {middle[what] / middle['gradient']:.2f} | "
                f"{GOALS.get(what, '')} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
