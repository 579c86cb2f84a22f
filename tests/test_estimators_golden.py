"""Estimators on a network against PyHessian and curvlinops (ci/golden/make_estimators.py): the same
weights, data and random vectors, so the same numbers; and where they draw their own, the same means
and spreads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from operator_cases import golden, load

import mindspore_hessian as mh

GOLDEN = np.load(Path(__file__).parent / "golden" / "estimators.npz")
KINDS = {"hessian": mh.HessianOperator, "ggn": mh.GGNOperator}
CASE, PRODUCTS = str(GOLDEN["case"]), int(GOLDEN["products"])
RUNS, SEEDS = (
    200,
    range(1000, 1200),
)  # of curvlinops' own numbers; of ours, others than that of the shared probes
COMMON = {"max_products": PRODUCTS, "batch": 1, "progress": False}
ESTIMATORS = {
    "hutchinson_trace": lambda op, **more: mh.trace(op, **COMMON, **more).value,
    "hutchpp_trace": lambda op, **more: mh.trace(op, "hutch++", **COMMON, **more).value,
    "xtrace": lambda op, **more: mh.trace(op, "xtrace", **COMMON, **more).value,
    "hutchinson_diag": lambda op, **more: mh.diagonal(op, **COMMON, **more).value,
    "xdiag": lambda op, **more: mh.diagonal(op, "xdiag", **COMMON, **more).value,
    "hutchinson_squared_fro": lambda op, **more: mh.frobenius_norm(op, **COMMON, **more).value ** 2,
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """The kind of matrix, and the operator of it in float64."""
    case = load(CASE, "float64")
    return request.param, KINDS[request.param](
        case.network(), case.loss_fn, case.batches, check_deterministic=False
    )


def density(op, distribution, **more):
    steps, probes, _ = GOLDEN["hessian/spectrum"]
    return mh.spectral_density(
        op, int(probes), int(steps), distribution=distribution, batch=1, progress=False, **more
    )


def sorted_rules(prefix):
    """PyHessian's nodes in ascending order, and their weights."""
    nodes, weights = (
        GOLDEN[f"hessian/pyhessian/{prefix}nodes"],
        GOLDEN[f"hessian/pyhessian/{prefix}weights"],
    )
    order = np.argsort(nodes, axis=1)
    return np.take_along_axis(nodes, order, 1), np.take_along_axis(weights, order, 1)


def test_the_matrix_and_its_ends(pair):
    kind, op = pair
    truth, values = golden(CASE)[kind], GOLDEN[f"{kind}/eigenvalues"]
    assert op.dtype == np.float64
    dense = np.stack(
        [op @ column for column in np.eye(len(truth))], axis=1
    )  # compiles one product only
    np.testing.assert_allclose(dense, truth, rtol=0, atol=1e-12)
    found = mh.eigsh(op, 6, "both ends", tol=1e-10, progress=False)
    assert found.converged.all()
    np.testing.assert_allclose(
        found.eigenvalues, [*values[:-4:-1], *values[2::-1]], rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ESTIMATORS)
def test_curvlinops_numbers(pair, name):
    kind, op = pair
    np.testing.assert_allclose(
        ESTIMATORS[name](op), GOLDEN[f"{kind}/curvlinops/{name}"], rtol=1e-9, atol=1e-12
    )


def test_curvlinops_density(pair):
    kind, op = pair
    grid, curve = GOLDEN[f"{kind}/curvlinops/spectrum"]
    found = density(op, "normal", grid=grid, sigma=GOLDEN[f"{kind}/spectrum"][2])
    np.testing.assert_allclose(found.density, curve, rtol=0, atol=1e-9 * curve.max())


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_curvlinops_own_draws(kind, name):
    """Means of 200 runs each, within four standard errors of their difference; spreads, of which
    each is known to 1 / sqrt(400), within four of these. On the golden matrix, which
    test_the_matrix_and_its_ends holds ours to."""
    matrix, (mean, spread) = golden(CASE)[kind], GOLDEN[f"{kind}/own/{name}"]
    ours = np.array([ESTIMATORS[name](matrix, seed=seed) for seed in SEEDS])
    error = np.hypot(ours.std(axis=0, ddof=1), spread) / np.sqrt(RUNS)
    assert (np.abs(ours.mean(axis=0) - mean) <= 4 * error).all()
    assert abs(
        np.log(np.linalg.norm(ours.std(axis=0, ddof=1)) / np.linalg.norm(spread))
    ) < 4 * np.sqrt(2 / 400)


# --- PyHessian, which knows the Hessian only ------------------------------------------------------


@pytest.fixture(scope="module")
def hessian():
    case = load(CASE, "float64")
    return mh.HessianOperator(case.network(), case.loss_fn, case.batches, check_deterministic=False)


@pytest.mark.full_run
def test_pyhessian_eigenvalues(hessian):
    """It divides vectors by their norm + 1e-6, which makes its eigenvalues low by the square of 1 +
    1e-6.
    """
    found = mh.eigsh(hessian, 3, "LM", tol=1e-10, progress=False).eigenvalues
    theirs = GOLDEN["hessian/pyhessian/eigenvalues"]
    np.testing.assert_allclose(theirs, found, rtol=2.1e-6)
    np.testing.assert_allclose(theirs * (1 + 1e-6) ** 2, found, rtol=1e-10)


@pytest.mark.full_run
def test_pyhessian_trace(hessian):
    theirs, error = GOLDEN["hessian/pyhessian/trace"]
    ours = mh.trace(hessian, max_products=1000, progress=False, batch=1)
    assert abs(ours.value - theirs) <= 4 * np.hypot(ours.standard_error, error)
    assert ours.standard_error * np.sqrt(1000) == pytest.approx(
        error * np.sqrt(4000), rel=0.1
    )  # spread of a sample


@pytest.mark.parametrize(
    ("prefix", "tolerance"), [("", 1e-5), ("exact_", 1e-12)], ids=["as it is", "true norms"]
)
def test_pyhessian_density(hessian, prefix, tolerance):
    found = density(hessian, "rademacher")
    for ours, theirs in zip((found.nodes, found.weights), sorted_rules(prefix), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
