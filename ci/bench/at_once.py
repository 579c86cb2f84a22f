"""What a product of several vectors at once (`chunk_size`) saves over one vector after another, and
what it costs to compile: milliseconds a vector of a HessianOperator, and seconds of the first call,
for networks of the side-by-side benchmark. Prints a markdown table. Usage: python
ci/bench/at_once.py [NAME ...]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np
from cases import OURS, Case, numbered, numbers

NETWORKS = {
    "MLP, 10,230 weights": ("mlp", {"inputs": 64, "hidden": 70, "batch": 64}),
    "MLP, 994,570 weights": ("mlp", {"inputs": 64, "hidden": 960, "batch": 64}),
    "LeNet, batch 8": ("lenet", {"batch": 8}),
    "Transformer block": ("transformer", {"batch": 8, "tokens": 32, "width": 64}),
}
COLUMNS, CALLS, ALONE = (1, 8, 64), 5, "--alone"


def measure(name: str) -> None:
    import mindspore as ms
    import worker_mindspore as networks
    from mindspore import nn

    import mindspore_hessian as mh

    problem, params = NETWORKS[name]
    arrays = numbers(Case(name, problem, "hvp", params, name, 0, "weights", (OURS,)))
    data = {key: ms.Tensor(array) for key, array in arrays.items()}
    make = {"mlp": networks.MLP, "lenet": networks.LeNet, "transformer": networks.Transformer}[
        problem
    ]
    net = make(tuple(numbered(data, "w")))
    cells = [name]
    for columns in COLUMNS:
        op = mh.HessianOperator(
            net,
            nn.CrossEntropyLoss(),
            (data["x"], data["y"]),
            check_deterministic=False,
            chunk_size=columns,
            progress=False,
        )
        matrix = np.random.default_rng(0).standard_normal((op.shape[0], columns)).astype(np.float32)
        seconds = []
        for _ in range(1 + CALLS):
            start = time.perf_counter()
            op @ matrix
            seconds.append(time.perf_counter() - start)
        cells += [f"{seconds[0]:.1f}", f"{statistics.median(seconds[1:]) * 1e3 / columns:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    print(f"| network | {' | '.join(f'{k}: first call, s | {k}: ms a vector' for k in COLUMNS)} |")
    print("|---|" + "---:|" * 2 * len(COLUMNS), flush=True)
    for name in sys.argv[1:] or NETWORKS:  # a process each: MindSpore compiles once in a process
        subprocess.run(
            [sys.executable, __file__, ALONE, name], check=True, stderr=subprocess.DEVNULL
        )


if __name__ == "__main__":
    measure(sys.argv[2]) if ALONE in sys.argv else main()
