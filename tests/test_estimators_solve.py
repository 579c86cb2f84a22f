"""Linear systems against numpy, residuals that are true, and solvers that say when they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import minres
from spectra import Counting, cosine, dense

from mindspore_hessian.estimators import solve
from mindspore_hessian.linops import Operator, inverse

RNG = np.random.default_rng(0)
SPECTRA = {
    "definite": np.linspace(1, 5, 60),
    "spread": np.geomspace(1e-2, 1, 60),
    "indefinite": np.r_[-np.geomspace(0.5, 3, 30), np.geomspace(0.5, 7, 30)],
    "one": np.array([2.0]),
    "negative": -np.linspace(1, 3, 40),
}
METHODS = {
    "definite": ("cg", "minres", "lsmr", "neumann"),
    "spread": ("cg", "minres", "lsmr", "neumann"),
    "indefinite": ("minres", "lsmr"),
    "one": ("cg", "minres", "lsmr", "neumann"),
    "negative": ("minres", "lsmr"),
}
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
    np.testing.assert_allclose(
        found.x, np.linalg.solve(damped, b), rtol=1e-6, atol=1e-7 * np.abs(found.x).max()
    )
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


@pytest.mark.parametrize(
    "spectrum",
    [
        np.r_[-0.5, np.linspace(1, 2, 99)],
        -np.ones(50),
        np.linspace(-1, 1, 300),
        np.r_[0.0, np.linspace(1, 2, 99)],
        np.zeros(20),
    ],
    ids=range(5),
)
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
@pytest.mark.parametrize(
    "spectrum",
    [np.r_[0.0, np.linspace(1, 2, 99)], np.r_[np.zeros(60), np.linspace(1, 2, 60)], np.zeros(20)],
    ids=range(3),
)
def test_least_squares_of_singular_systems(spectrum, dtype, method):
    b = RNG.standard_normal(len(spectrum))
    found = solve(cosine(spectrum, dtype), b, method=method, progress=False)
    assert found.stopped_by == "least squares" and not found.converged and found.direction is None
    exact, rank = (
        cosine(spectrum),
        np.linalg.lstsq(cosine(spectrum) @ np.eye(len(b)), b, rcond=1e-10)[0],
    )
    assert found.residual == pytest.approx(true_residual(exact, b, rank), rel=1e-4)


def test_neumann():
    matrix, b = dense(np.linspace(1, 5, 60)), RNG.standard_normal(60)
    fixed = solve(matrix, b, method="neumann", learning_rate=0.2, progress=False)
    assert fixed.converged
    for rate, spectrum in ((0.5, np.linspace(1, 5, 60)), (0.2, np.linspace(-1, 5, 60))):
        found = solve(dense(spectrum), b, method="neumann", learning_rate=rate, progress=False)
        assert (
            found.stopped_by == "divergence" and not found.converged and np.isfinite(found.x).all()
        )
    found = solve(-matrix, b, method="neumann", progress=False)
    assert (
        found.stopped_by == "negative curvature" and found.direction @ -matrix @ found.direction < 0
    )


def test_zero_right_hand_side_costs_nothing():
    found = solve(Counting(np.eye(3)), np.zeros(3), progress=False)
    assert found.num_products == 0 and not found.x.any() and found.converged


# --- several right-hand sides ---------------------------------------------------------------------

POSITIVE = dense(np.geomspace(1e-4, 1, 60))
TOP = np.linalg.eigh(POSITIVE)[1][:, -1]
COLUMNS = {
    "random": RNG.standard_normal((60, 5)),
    "one": RNG.standard_normal((60, 1)),
    "duplicates": np.outer(RNG.standard_normal(60), [1.0, 1.0, -3e5]),
    "nearly duplicates": RNG.standard_normal((60, 1)) + 1e-9 * RNG.standard_normal((60, 3)),
    "dependent": RNG.standard_normal((60, 2)) @ RNG.standard_normal((2, 6)),
    "a zero column": np.c_[RNG.standard_normal((60, 2)), np.zeros(60)],
    "more than n": RNG.standard_normal((60, 70)),
    "scales": RNG.standard_normal((60, 3)) * [1e-8, 1.0, 1e8],
    "an eigenvector": np.c_[TOP, RNG.standard_normal(60)],
    "all": np.eye(60),
}


def worst(matrix, b, x):
    lengths = np.linalg.norm(b, axis=0)
    return (np.linalg.norm(b - matrix @ x, axis=0) / np.where(lengths > 0, lengths, 1)).max()


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", COLUMNS)
def test_several_right_hand_sides_against_numpy(name, damping):
    op, b = Counting(POSITIVE), COLUMNS[name]
    damped = POSITIVE + damping * np.eye(60)
    found = solve(op, b, damping, tol=1e-13, max_products=5000, progress=False)
    assert found.x.shape == b.shape and found.num_products == op.columns
    assert (
        found.residual == pytest.approx(worst(damped, b, found.x), rel=0.2)
        and found.residual < 1e-12
    )
    expected = np.linalg.solve(damped, b)
    np.testing.assert_allclose(
        found.x, expected, rtol=0, atol=1e-10 * np.linalg.norm(expected, axis=0).max()
    )
    assert not found.x[:, ~b.any(axis=0)].any()


def test_each_column_is_there_whatever_its_size():
    b = COLUMNS["scales"]
    found, expected = solve(POSITIVE, b, tol=1e-12, progress=False), np.linalg.solve(POSITIVE, b)
    assert (
        np.linalg.norm(found.x - expected, axis=0) < 1e-10 * np.linalg.norm(expected, axis=0)
    ).all()


def test_dependent_columns_cost_one_direction():
    b = COLUMNS["one"]
    alone, three = (
        solve(POSITIVE, columns, tol=1e-8, progress=False) for columns in (b, b @ np.ones((1, 3)))
    )
    assert (
        three.converged and abs(three.num_products - alone.num_products) <= 10
    )  # and not three times as many
    vector = solve(POSITIVE, b[:, 0], tol=1e-8, progress=False)
    assert abs(vector.num_products - alone.num_products) <= 10
    np.testing.assert_allclose(
        vector.x, alone.x[:, 0], rtol=1e-4, atol=1e-5 * np.abs(vector.x).max()
    )


@pytest.mark.parametrize("preconditioner", [None, "nystrom"])
def test_together_is_fewer_products_where_the_spectrum_decays(preconditioner):
    matrix, b = dense(np.geomspace(1e-6, 1, 300)), RNG.standard_normal((300, 8))
    options = {
        "damping": 1e-4,
        "tol": 1e-8,
        "max_products": 10000,
        "progress": False,
        "rank": 40,
        "preconditioner": preconditioner,
    }
    apart = sum(solve(matrix, column, **options).num_products for column in b.T)
    together = solve(Counting(matrix), b, **options)
    assert together.converged and together.num_products < apart / 3


def test_ill_conditioned_blocks():
    matrix = dense(np.geomspace(1e-12, 1, 60))
    b = matrix @ RNG.standard_normal((60, 5))
    found = solve(matrix, b, tol=1e-10, progress=False)
    assert found.converged and worst(matrix, b, found.x) < 1.1e-10


@pytest.mark.parametrize("budget", [10, 14, 33])
def test_a_budget_of_several_is_kept_and_admitted(budget):
    matrix, b = dense(np.geomspace(1e-4, 1, 200)), RNG.standard_normal((200, 5))
    op = Counting(matrix, vectors_only=True)
    found = solve(op, b, tol=1e-8, max_products=budget, progress=False)
    assert (
        op.columns == found.num_products <= budget
        and found.stopped_by == "budget"
        and not found.converged
    )
    assert found.residual == pytest.approx(worst(matrix, b, found.x), rel=1e-9)


def test_negative_curvature_of_several():
    matrix = dense(np.r_[-0.5, np.linspace(1, 2, 99)])
    b = RNG.standard_normal((100, 3))
    found = solve(matrix, b, progress=False)
    assert found.stopped_by == "negative curvature" and found.direction.shape == (100,)
    assert found.direction @ matrix @ found.direction < 0
    assert found.residual == pytest.approx(worst(matrix, b, found.x))


def test_several_in_float32_say_what_they_reach():
    spectrum, b = np.linspace(1, 5, 2000), RNG.standard_normal((2000, 3))
    found = solve(cosine(spectrum, np.float32), b, tol=1e-10, progress=False)
    assert not found.converged and found.stopped_by == "stagnation"
    assert worst(cosine(spectrum), b, found.x) <= 1e-5 and 1e-8 < found.residual < 1e-5


def test_several_go_on_from_a_checkpoint(tmp_path):
    b, file = COLUMNS["random"], tmp_path / "state"
    options = {"tol": 1e-13, "max_products": 3000, "progress": False}
    whole = solve(POSITIVE, b, 1e-6, **options)
    with pytest.raises(KeyboardInterrupt):
        solve(
            Counting(POSITIVE, limit=120, error=KeyboardInterrupt()),
            b,
            1e-6,
            checkpoint=file,
            **options,
        )
    again = Counting(POSITIVE)
    found = solve(again, b, 1e-6, checkpoint=file, **options)
    assert again.columns < whole.num_products == found.num_products
    np.testing.assert_array_equal(found.x, whole.x)
    with pytest.raises(ValueError, match="columns"):
        solve(POSITIVE, b[:, 0], 1e-6, checkpoint=file, **options)


def test_the_inverse_solves_for_all_columns_together():
    class Plain(Operator):
        shape, dtype, positive, count = (60, 60), np.dtype(np.float64), True, 0

        def columns(self, matrix):
            self.count += matrix.shape[1]
            return POSITIVE @ matrix

    op = Plain()
    found = inverse(op, 1e-3, tol=1e-12).to_dense()
    np.testing.assert_allclose(
        found, np.linalg.inv(POSITIVE + 1e-3 * np.eye(60)), rtol=0, atol=1e-8
    )
    assert op.count <= 240


# --- MINRES with a preconditioner -----------------------------------------------------------------


def absolute_inverse(matrix, noise=0.0):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors / np.abs(values) * RNG.uniform(1 - noise, 1 + noise, len(values))) @ vectors.T


@pytest.mark.parametrize("spectrum", ["definite", "spread", "indefinite", "negative", "one"])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_minres_with_a_preconditioner_against_numpy(spectrum, damping):
    matrix = dense(SPECTRA[spectrum])
    b, damped = RNG.standard_normal(len(matrix)), matrix + damping * np.eye(len(matrix))
    for m in (absolute_inverse(damped, 0.3), np.diag(RNG.uniform(0.1, 3, len(b)))):
        op = Counting(matrix)
        found = solve(op, b, damping, "minres", tol=1e-12, preconditioner=m, progress=False)
        assert found.converged and found.num_products == op.columns
        np.testing.assert_allclose(
            found.x, np.linalg.solve(damped, b), rtol=0, atol=1e-10 * np.abs(found.x).max()
        )
        assert found.residual == pytest.approx(true_residual(damped, b, found.x), rel=0.1)


def test_minres_with_the_inverse_of_the_absolute_value_takes_two_steps():
    matrix, b = dense(SPECTRA["indefinite"]), RNG.standard_normal(60)
    plain = solve(matrix, b, method="minres", tol=1e-9, progress=False)
    found = solve(
        matrix,
        b,
        method="minres",
        tol=1e-9,
        preconditioner=absolute_inverse(matrix),
        progress=False,
    )
    assert found.converged and found.num_products <= 3 < plain.num_products / 5


def test_minres_follows_scipys():
    matrix, b, m = (
        dense(SPECTRA["indefinite"]),
        RNG.standard_normal(60),
        np.diag(np.linspace(0.2, 2, 60)),
    )
    steps = []
    minres(matrix, b, M=m, maxiter=7, rtol=1e-30, callback=lambda x: steps.append(x.copy()))
    found = solve(
        matrix, b, method="minres", tol=1e-12, max_products=8, preconditioner=m, progress=False
    )
    assert found.stopped_by == "budget" and found.num_products == 8
    np.testing.assert_allclose(found.x, steps[-1], rtol=0, atol=1e-10)
    assert found.residual == pytest.approx(true_residual(matrix, b, found.x), rel=1e-12)


def test_minres_with_a_preconditioner_on_a_singular_system():
    spectrum, m = np.r_[np.zeros(10), np.linspace(1, 2, 40)], np.diag(np.linspace(0.5, 2, 50))
    matrix, b = dense(spectrum), RNG.standard_normal(50)
    found = solve(matrix, b, method="minres", preconditioner=m, progress=False)
    root = np.sqrt(m)  # the least of ||root (b - A x)||
    best = np.linalg.norm(
        root @ b - root @ matrix @ np.linalg.lstsq(root @ matrix, root @ b, rcond=1e-10)[0]
    )
    assert found.stopped_by == "least squares" and not found.converged
    assert np.linalg.norm(root @ (b - matrix @ found.x)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    "m",
    [-np.eye(60), np.zeros((60, 60)), np.full((60, 60), np.nan), np.diag(np.r_[-1.0, np.ones(59)])],
    ids=range(4),
)
@pytest.mark.parametrize(("method", "columns"), [("cg", ()), ("cg", (2,)), ("minres", ())])
def test_a_preconditioner_that_is_not_positive_is_refused(m, method, columns):
    b = np.ones((60, *columns)) + RNG.standard_normal((60, *columns))
    with pytest.raises(ValueError, match="preconditioner (must be positive definite|returned NaN)"):
        solve(POSITIVE, 1e3 * b, method=method, preconditioner=m, tol=1e-10, progress=False)


def test_a_preconditioner_that_takes_vectors_only():
    b, m = COLUMNS["random"], np.linalg.inv(POSITIVE + 0.01 * np.eye(60))
    found = solve(
        POSITIVE, b, preconditioner=Counting(m, vectors_only=True), tol=1e-9, progress=False
    )
    assert found.converged and worst(POSITIVE, b, found.x) < 1.1e-9
