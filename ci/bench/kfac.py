"""What Kronecker-factored curvature costs: KFAC and EKFAC of this library and of curvlinops, of the
same weights and data, in turns in one run. Each figure is the time from the making of an operator to
its first product, after one that compiled; in milliseconds, and in gradients of the same data by the
same library. Ours with its defaults, its check of the data included; curvlinops without its own, which
computes all twice. Prints a markdown table.

Usage: python ci/bench/kfac.py --torch-python FILE [--rounds N] [--only REGEX]. The other Python has
torch and curvlinops-for-pytorch: the environment of side_by_side.sh.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import numpy as np
import serve
import turns

HERE = Path(__file__).resolve().parent
MLP, LENET = "MLP 784-512-512-10, 8 x 128", "LeNet, 8 x 64"
JOBS = {
    "gradient": {},
    "KFAC, mc": {"fisher": "mc"},
    "KFAC, empirical": {"fisher": "empirical"},
    "KFAC, exact": {"fisher": "exact"},
    "EKFAC, mc": {"fisher": "mc"},
    "EKFAC, empirical": {"fisher": "empirical"},
}
THEIRS = {"mc": "mc", "empirical": "empirical", "exact": "type-2"}


def data(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if name == MLP:
        sizes, shape, count = [(512, 784), (512, 512), (10, 512)], (784,), 1024
    else:
        sizes, shape, count = (
            [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)],
            (1, 28, 28),
            512,
        )
    out = {"x": rng.standard_normal((count, *shape)), "y": rng.integers(0, 10, count)}
    for number, size in enumerate(sizes):
        out[f"w{number}"] = rng.standard_normal(size) / np.sqrt(np.prod(size[1:]))
        out[f"b{number}"] = 0.1 * rng.standard_normal(size[0])
    return {key: one.astype(np.int32 if key == "y" else np.float32) for key, one in out.items()}


def batches(arrays: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(np.split(arrays["x"], 8), np.split(arrays["y"], 8), strict=True))


def ours(message: dict, arrays: dict):
    import mindspore as ms
    from mindspore import nn

    import mindspore_hessian as mh

    if message["case"] == MLP:
        net = nn.SequentialCell(
            nn.Dense(784, 512), nn.Tanh(), nn.Dense(512, 512), nn.Tanh(), nn.Dense(512, 10)
        )
    else:
        conv = {"pad_mode": "pad", "has_bias": True}
        net = nn.SequentialCell(
            nn.Conv2d(1, 6, 5, padding=2, **conv), nn.Tanh(), nn.AvgPool2d(2, 2),
            nn.Conv2d(6, 16, 5, padding=0, **conv), nn.Tanh(), nn.AvgPool2d(2, 2), nn.Flatten(),
            nn.Dense(400, 120), nn.Tanh(), nn.Dense(120, 84), nn.Tanh(), nn.Dense(84, 10),
        )  # fmt: skip
    weights = net.trainable_params()
    for number, weight in enumerate(weights):
        weight.set_data(ms.Tensor(arrays["wb"[number % 2] + str(number // 2)]))
    pairs = [(ms.Tensor(x), ms.Tensor(y)) for x, y in batches(arrays)]
    loss, job = nn.CrossEntropyLoss(), message["job"]
    v = np.ones(sum(weight.size for weight in weights), np.float32)
    if job == "gradient":

        def risk(x, y):
            return loss(net(x), y)

        slope = ms.jit(ms.grad(risk, None, ms.ParameterTuple(weights)))
        return lambda: [sum(slope(x, y)[0].asnumpy() for x, y in pairs)]
    make = {"KFAC": mh.KFACOperator, "EKFAC": mh.EKFACOperator}[job.split(",")[0]]
    return lambda: [make(net, loss, pairs, progress=False, **JOBS[job]) @ v]


def theirs(message: dict, arrays: dict):
    import torch
    from curvlinops import EKFACLinearOperator, KFACLinearOperator
    from torch import nn

    torch.set_num_threads(int(os.environ["BENCH_CORES"]))
    if message["case"] == MLP:
        net = nn.Sequential(
            nn.Linear(784, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10)
        )
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
        )  # fmt: skip
    weights = list(net.parameters())
    with torch.no_grad():
        for number, weight in enumerate(weights):
            weight.copy_(torch.from_numpy(arrays["wb"[number % 2] + str(number // 2)]))
    pairs = [(torch.from_numpy(x), torch.from_numpy(y).long()) for x, y in batches(arrays)]
    loss, job = nn.CrossEntropyLoss(), message["job"]
    v = torch.ones(sum(weight.numel() for weight in weights))

    def gradient():
        slopes = [torch.autograd.grad(loss(net(x), y), weights) for x, y in pairs]
        return [sum(one[0] for one in slopes).numpy()]

    if job == "gradient":
        return gradient
    make = {"KFAC": KFACLinearOperator, "EKFAC": EKFACLinearOperator}[job.split(",")[0]]
    kind = THEIRS[JOBS[job]["fisher"]]

    def product():
        op = make(net, loss, weights, pairs, fisher_type=kind, check_deterministic=False)
        return [(op @ v).detach().numpy()]

    return product


def table(options: argparse.Namespace) -> None:
    pythons = turns.with_ours({"curvlinops": options.torch_python})
    print(
        "| case | job | ms | gradients | curvlinops ms | its gradients | ours / curvlinops | first s | its first s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in (MLP, LENET):
        gradients: dict[str, float] = {}
        for job in JOBS:
            if job != "gradient" and not re.search(options.only, f"{case} {job}"):
                continue
            message = {"case": case, "job": job}
            found = turns.in_turns(__file__, pythons, message, data(case), options.rounds)
            if found["ours"].error:
                raise SystemExit(found["ours"].error)
            if job == "gradient":
                gradients = {name: outcome.ms for name, outcome in found.items()}
            cells = [
                cell
                for name, outcome in found.items()
                for cell in (
                    outcome.error or f"{outcome.ms:.0f}",
                    f"{outcome.ms / gradients[name]:.1f}",
                )
            ]
            cells += [f"{found['ours'].ms / found['curvlinops'].ms:.2f}"]
            cells += [f"{outcome.first:.1f}" for outcome in found.values()]
            print(f"| {case} | {job} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch-python", default=str(HERE.parents[1] / ".venv-bench" / "bin" / "python")
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression of case and job")
    parser.add_argument("--worker", choices=("ours", "curvlinops"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve.limit_cores()
        serve.serve({"ours": ours, "curvlinops": theirs}[options.worker], {})
    else:
        table(options)


if __name__ == "__main__":
    main()
