"""Golden values for tests/test_estimators_golden.py: what PyHessian and curvlinops estimate of one
small network.

Run with a Python that has torch, curvlinops and PyHessian 0.1: ``python
ci/golden/make_estimators.py``, after make_operators.py, whose case CASE is the network: its
weights, data and dense matrices are in operators.npz. All is float64. Estimates depend on random
vectors, so curvlinops and PyHessian are given those of this library: Rademacher or normal vector
number i of seed s is that of numpy's ``default_rng(SeedSequence(s, spawn_key=(i,)))``. Then their
numbers must be ours. Where they draw for themselves, mean and spread over many runs are stored.
Keys, for the kinds "hessian" and "ggn" (PyHessian knows the Hessian only):

    case, products                    the name of the case; products of each estimate
    <kind>/eigenvalues                all, ascending, by torch from the dense matrix
    <kind>/curvlinops/<function>      with our probes of seed 0: a number, or the diagonal
    <kind>/own/<function>             with probes of its own: mean and standard deviation over RUNS
    runs <kind>/curvlinops/spectrum        grid and density of curvlinops' Lanczos quadrature from
    our normal probes <kind>/spectrum                   its steps, its probes, and the width of its
    Gaussians hessian/pyhessian/eigenvalues     the first three by magnitude, by power iteration
    hessian/pyhessian/trace           mean of SAMPLES samples of its own, and the standard error of
    that hessian/pyhessian/nodes, weights  of its Lanczos quadrature from our probes, (probes,
    steps)

What PyHessian needs here: its ``density`` calls ``torch.eig``, which torch has no more, so that is
put back on top of ``torch.linalg.eigh`` (its matrix is symmetric). ``trace`` is given tol=-inf, as
it would end at the first negative mean. It divides vectors by their norm + 1e-6, so that its
eigenvalues are low by (1 + 1e-6)^2: they are stored as they are, and so is its quadrature once;
``exact_nodes, exact_weights`` are those with a true norm.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyhessian.utils
import torch
from curvlinops import lanczos_approximate_spectrum
from make_operators import OPERATORS, PROBLEMS, Network, drawn, torch_values

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "estimators.npz"
CASE, KINDS = "attention_ce_mean", ("hessian", "ggn")
PRODUCTS, RUNS, SAMPLES = 30, 200, 4000
STEPS, PROBES, POINTS, MARGIN, KAPPA = 10, 4, 200, 0.05, 3.0
FUNCTIONS = {  # where curvlinops has them
    "hutchinson_trace": "curvlinops.trace.hutchinson",
    "hutchpp_trace": "curvlinops.trace.meyer2020hutch",
    "xtrace": "curvlinops.trace.epperly2024xtrace",
    "hutchinson_diag": "curvlinops.diagonal.hutchinson",
    "xdiag": "curvlinops.diagonal.epperly2024xtrace",
    "hutchinson_squared_fro": "curvlinops.norm.hutchinson",
}
SPECTRUM = "curvlinops.papyan2020traces.spectrum"


def probe(number: int, dim: int, distribution: str = "rademacher") -> torch.Tensor:
    """The library's random vector with this number, of seed 0."""
    generator = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(number,)))
    return torch.tensor(
        generator.standard_normal(dim)
        if distribution == "normal"
        else 2.0 * generator.integers(0, 2, dim) - 1.0
    )


def of_curvlinops(op) -> dict:
    matrix, found = op @ torch.eye(op.shape[0]), {}
    for name, path in FUNCTIONS.items():
        module, number = import_module(path), count()
        estimate = getattr(module, name)
        with patch.object(
            module, "random_vector", lambda dim, kind, *_, i=number: probe(next(i), dim, kind)
        ):
            found[f"curvlinops/{name}"] = estimate(op, PRODUCTS)
        torch.manual_seed(0)
        runs = torch.stack([estimate(matrix, PRODUCTS) for _ in range(RUNS)])
        found[f"own/{name}"] = torch.stack([runs.mean(0), runs.std(0)])
    number, ends = count(), np.linalg.eigvalsh(matrix)[[0, -1]]
    with patch.object(
        import_module(SPECTRUM), "randn", lambda dim, **_: probe(next(number), dim, "normal")
    ):
        grid, density = lanczos_approximate_spectrum(
            op, STEPS, POINTS, PROBES, KAPPA, tuple(ends), MARGIN
        )
    half = (1 + 2 * MARGIN) * (ends[1] - ends[0]) / 2  # of the interval that it maps to [-1, 1]
    width = half * 2 / (STEPS - 1) / np.sqrt(8 * np.log(KAPPA))
    return {
        **found,
        "curvlinops/spectrum": torch.stack([grid, density]),
        "spectrum": [STEPS, PROBES, width],
    }


def of_pyhessian(net, loss_fn, batches) -> dict:
    torch.manual_seed(0)
    them = pyhessian.hessian(net, loss_fn, dataloader=batches, cuda=False)
    eigenvalues, _ = them.eigenvalues(maxIter=20_000, tol=1e-14, top_n=3)
    samples = np.array(them.trace(maxIter=SAMPLES, tol=-np.inf))
    found = {
        "eigenvalues": eigenvalues,
        "trace": [samples.mean(), samples.std(ddof=1) / np.sqrt(SAMPLES)],
    }
    assert len(samples) == SAMPLES
    found["nodes"], found["weights"] = quadrature(them)
    with ExitStack() as stack:
        for module in (pyhessian.utils, import_module("pyhessian.hessian")):
            stack.enter_context(patch.object(module, "normalization", normalized))
        found["exact_nodes"], found["exact_weights"] = quadrature(them)
    return {f"pyhessian/{name}": value for name, value in found.items()}


def normalized(v):
    norm = torch.sqrt(sum((part**2).sum() for part in v))
    return [part / norm for part in v]


def quadrature(them) -> tuple:
    """PyHessian's ``density`` from our probes: what it draws is 0 or 1 for each weight, which it
    makes -1 or 1.
    """
    sizes, flat = [p.numel() for p in them.params], []

    def randint_like(p, **_):
        if not flat:
            flat.extend(probe(next(number), sum(sizes)).add(1).div(2).split(sizes))
        return flat.pop(0).reshape(p.shape)

    def eig(matrix, eigenvectors):
        values, vectors = torch.linalg.eigh(matrix)
        return values[:, None], vectors

    number = count()
    with (
        patch.object(torch, "randint_like", randint_like),
        patch.object(torch, "eig", eig, create=True),
    ):
        return them.density(iter=STEPS, n_v=PROBES)


def main() -> None:
    problem, (weights, state, batches) = PROBLEMS[CASE], drawn(CASE)
    dense = torch_values(problem, weights, state, batches)
    arrays = {"case": np.array(CASE), "products": np.array(PRODUCTS)}
    for kind in KINDS:
        net = Network(problem.net, weights, state)
        found = of_curvlinops(
            OPERATORS[kind](net, problem.loss_fn, list(net.parameters()), batches)
        )
        if kind == "hessian":
            found.update(of_pyhessian(net, problem.loss_fn, batches))
        found["eigenvalues"] = torch.linalg.eigvalsh(dense[kind])
        arrays.update({f"{kind}/{name}": np.asarray(value) for name, value in found.items()})
    np.savez_compressed(TARGET, **arrays)
    for name, value in arrays.items():
        print(name, value.shape, value.ravel()[:3])
    print(f"{TARGET}: {len(arrays)} arrays, {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
