"""One job of spectrum.py in PyTorch: python worker_spectrum.py JOB INPUT OUTPUT, where JOB is
"truth" (the exact Hessian in float64, and how many products curvlinops' estimators need) or a
library and what it should find."""

from __future__ import annotations

import importlib
import os
import sys
import time

import numpy as np
import serve

cores = serve.limit_cores()

import torch  # noqa: E402
from torch import nn  # noqa: E402

torch.set_num_threads(cores)
K, TOL = 5, 1e-3
TRACE_TOL, SEEDS = 1e-2, 10


def network(weights: list[np.ndarray]) -> nn.Module:
    """demo_network.Network: MindSpore's Conv2d pads so that the size stays."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    with torch.no_grad():
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    return net


def truth(net: nn.Module, x, y, logits) -> dict:
    difference = float((net(x).detach() - torch.from_numpy(logits)).abs().max())
    if (
        not difference <= 1e-4 * abs(logits).max()
    ):  # MindSpore's float32 tanh on the CPU is wrong by up to 1e-4
        raise SystemExit(f"the networks differ: their logits by {difference:.1e}")
    net, shapes = net.double(), {name: weight.shape for name, weight in net.named_parameters()}
    at = torch.cat([weight.detach().flatten() for weight in net.parameters()])

    def loss(flat, x, y):
        parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
        named = {
            name: part.reshape(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return nn.functional.cross_entropy(
            torch.func.functional_call(net, named, (x,)), y, reduction="sum"
        )

    def columns(some, x, y):
        return torch.func.vmap(
            lambda v: torch.func.jvp(lambda w: torch.func.grad(loss)(w, x, y), (at,), (v,))[1]
        )(some)

    with torch.no_grad():  # in pieces: all columns and digits at once take 24 GB
        pieces = list(zip(x.double().split(250), y.split(250), strict=True))
        matrix = torch.cat(
            [
                sum(columns(some, *piece) for piece in pieces)
                for some in torch.eye(len(at), dtype=torch.float64).split(100)
            ]
        ) / len(y)
    matrix = (matrix + matrix.T) / 2
    return {
        "matrix": matrix.numpy(),
        "xtrace": products_needed(matrix.float()),
        "difference": difference,
    }


def products_needed(matrix: torch.Tensor) -> int:
    """The fewest, doubling and half as many again in turn, with which the root mean square error of
    curvlinops' xtrace is 1%."""
    from curvlinops import xtrace

    exact = float(matrix.trace())
    for count in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
        torch.manual_seed(1)
        errors = [float(xtrace(matrix, count)) / exact - 1 for _ in range(SEEDS)]
        if np.sqrt(np.mean(np.square(errors))) <= TRACE_TOL:
            return count
    raise SystemExit("xtrace does not reach 1%")


def curvlinops(net: nn.Module, x, y, what: str, products: int) -> dict:
    from curvlinops import HessianLinearOperator, xtrace
    from scipy.sparse.linalg import eigsh

    start, count = time.perf_counter(), [0]
    op = HessianLinearOperator(net, nn.CrossEntropyLoss(), list(net.parameters()), [(x, y)])
    op @ torch.ones(op.shape[0])
    first, multiply = time.perf_counter() - start, op._matmat

    def counted(columns):
        count[0] += columns[0].shape[-1]
        return multiply(columns)

    op._matmat = counted
    if what == "trace":
        found = {"value": float(xtrace(op, products))}
    else:
        values, vectors = eigsh(op.to_scipy(), K, which="LA", tol=TOL)
        found = {"values": values, "vectors": vectors}
    return {**found, "seconds": time.perf_counter() - start, "first": first, "products": count[0]}


def pyhessian(net: nn.Module, x, y, what: str, products: int) -> dict:
    module = importlib.import_module(
        "pyhessian.hessian"
    )  # the package's attribute "hessian" is the class
    start, count, multiply = time.perf_counter(), [0], module.hessian_vector_product

    def counted(*arguments):
        count[0] += 1
        return multiply(*arguments)

    them = module.hessian(net, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    multiply(them.gradsH, them.params, [torch.ones_like(p) for p in them.params])
    first = time.perf_counter() - start
    module.hessian_vector_product = counted
    if what == "trace":
        found = {"value": np.mean(them.trace(maxIter=4000))}
    else:
        tight = {"maxIter": 3000, "tol": 1e-7} if what == "tight" else {}
        values, vectors = them.eigenvalues(top_n=K, **tight)
        columns = [
            torch.cat([part.detach().flatten() for part in vector]).numpy() for vector in vectors
        ]
        found = {"values": np.array(values), "vectors": np.stack(columns, 1)}
    return {**found, "seconds": time.perf_counter() - start, "first": first, "products": count[0]}


def main(job: str, source: str, target: str) -> None:
    with np.load(source) as file:
        data = dict(file)
    net = network([data[f"w{number}"] for number in range(6)])
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    torch.manual_seed(int(data["seed"]))
    if job == "truth":
        np.savez(target, **truth(net, x, y, data["logits"]))
    else:
        library, what = job.split()
        found = {"curvlinops": curvlinops, "PyHessian": pyhessian}[library](
            net, x, y, what, int(data["products"])
        )
        np.savez(target, **found)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
