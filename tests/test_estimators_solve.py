"""Linear systems against numpy, residuals that are true, and solvers that say when they cannot."""
from __future__ import annotations

import numpy as np
import pytest
from spectra import Counting, cosine, dense

from mindspore_hessian.estimators import solve

RNG = np.random.default_rng(0)
SPECTRA = {"definite": np.linspace(1, 5, 60), "spread": np.geomspace(1e-2, 1, 60),
           "indefinite": np.r_[-np.geomspace(0.5, 3, 30), np.geomspace(0.5, 7, 30)], "one": np.array([2.0]),
           "negative": -np.linspace(1, 3, 40)}
METHODS = {"definite": ("cg", "minres", "lsmr", "neumann"), "spread": ("cg", "minres", "lsmr", "neumann"),
           "indefinite": ("minres", "lsmr"), "one": ("cg", "minres", "lsmr", "neumann"), "negative": ("minres", "lsmr")}
CASES = [(name, method) for name, methods in METHODS.items() for method in methods]


def true_residual(matrix, b, x):
    return np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(("name", "method"), CASES)
def test_against_numpy(name, method, damping):
    matrix = dense(SPECTRA[name])
    op, b = Counting(matrix), RNG.standard_normal(len(matrix))
    damped = matrix + damping * np.eye(len(matrix))
    found = solve(op, b, damping, method, tol=1e-10, max_products=5000, progress=False)
    assert found.converged and found.stopped_by == "tol" and found.num_products == op.columns
    np.testing.assert_allclose(found.x, np.linalg.solve(damped, b), rtol=1e-6, atol=1e-7 * np.abs(found.x).max())
    assert found.residual == pytest.approx(true_residual(damped, b, found.x), rel=1e-3, abs=1e-14)
    assert found.residual <= 1e-10 and found.value is found.x


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr", "neumann"])
@pytest.mark.parametrize("budget", [7, 12, 20])
def test_a_tiny_budget_is_kept_and_admitted(method, budget):
    matrix = dense(np.geomspace(1e-4, 1, 200))
    op, b = Counting(matrix), RNG.standard_normal(200)
    found = solve(op, b, method=method, tol=1e-8, max_products=budget, progress=False)
    assert op.columns == found.num_products <= budget
    assert not found.converged and found.stopped_by == "budget"
    assert found.residual == pytest.approx(true_residual(matrix, b, found.x), rel=1e-9)


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr", "neumann"])
def test_float32_says_what_it_reaches(method):
    spectrum, b = np.linspace(1, 5, 2000), RNG.standard_normal(2000)
    op, exact = cosine(spectrum, np.float32), cosine(spectrum)
    good = solve(op, b, method=method, tol=1e-5, progress=False)
    assert good.converged and true_residual(exact, b, good.x) <= 1.1e-5
    bad = solve(op, b, method=method, tol=1e-10, progress=False)
    assert not bad.converged and bad.stopped_by == "stagnation"
    assert true_residual(exact, b, bad.x) <= 1e-5 and 1e-8 < bad.residual < 1e-5


@pytest.mark.parametrize("spectrum", [np.r_[-0.5, np.linspace(1, 2, 99)], -np.ones(50), np.linspace(-1, 1, 300),
                                      np.r_[0.0, np.linspace(1, 2, 99)], np.zeros(20)], ids=range(5))
def test_cg_stops_at_negative_curvature(spectrum):
    op = cosine(spectrum)
    b = np.ones(len(spectrum)) + RNG.standard_normal(len(spectrum))
    found = solve(op, b, method="cg", progress=False)
    assert found.stopped_by == "negative curvature" and not found.converged
    p = found.direction
    assert p @ (op @ p) <= 1e-12 * (p @ p)
    np.testing.assert_allclose(found.residual, true_residual(op, b, found.x), rtol=1e-9)


@pytest.mark.parametrize("method", ["minres", "lsmr"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("spectrum", [np.r_[0.0, np.linspace(1, 2, 99)], np.r_[np.zeros(60), np.linspace(1, 2, 60)],
                                      np.zeros(20)], ids=range(3))
def test_least_squares_of_singular_systems(spectrum, dtype, method):
    b = RNG.standard_normal(len(spectrum))
    found = solve(cosine(spectrum, dtype), b, method=method, progress=False)
    assert found.stopped_by == "least squares" and not found.converged and found.direction is None
    exact, rank = cosine(spectrum), np.linalg.lstsq(cosine(spectrum) @ np.eye(len(b)), b, rcond=1e-10)[0]
    assert found.residual == pytest.approx(true_residual(exact, b, rank), rel=1e-4)


def test_neumann():
    matrix, b = dense(np.linspace(1, 5, 60)), RNG.standard_normal(60)
    fixed = solve(matrix, b, method="neumann", learning_rate=0.2, progress=False)
    assert fixed.converged
    for rate, spectrum in ((0.5, np.linspace(1, 5, 60)), (0.2, np.linspace(-1, 5, 60))):
        found = solve(dense(spectrum), b, method="neumann", learning_rate=rate, progress=False)
        assert found.stopped_by == "divergence" and not found.converged and np.isfinite(found.x).all()
    found = solve(-matrix, b, method="neumann", progress=False)
    assert found.stopped_by == "negative curvature" and found.direction @ -matrix @ found.direction < 0


def test_zero_right_hand_side_costs_nothing():
    found = solve(Counting(np.eye(3)), np.zeros(3), progress=False)
    assert found.num_products == 0 and not found.x.any() and found.converged
