"""Eigenpairs against prescribed spectra; residuals and flags that do not lie."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from spectra import SPECTRA, Counting, cosine, dense

from mindspore_hessian.estimators import condition_number, eigsh, negative_curvature


def truth(spectrum, k, which):
    down = np.sort(spectrum)[::-1]
    if which == "LM":
        return np.sort(down[np.argsort(-np.abs(down), kind="stable")[:k]])[::-1]
    return {
        "LA": down[:k],
        "SA": down[::-1][:k],
        "BE": np.concatenate([down[: k - k // 2], down[len(down) - k // 2 :]]),
    }[which]


BIG_CASES = [
    ("decaying", "LA", 6),
    ("decaying", "LM", 5),
    ("algebraic", "LA", 4),
    ("clustered", "LA", 5),
    ("clustered", "LM", 7),
    ("indefinite", "LA", 3),
    ("indefinite", "SA", 3),
    ("indefinite", "LM", 6),
    ("indefinite", "BE", 5),
    ("indefinite", "both ends", 6),
    ("deficient", "LA", 2),
    ("deficient", "SA", 1),
    ("deficient", "BE", 3),
    ("deficient", "LA", 6),
    ("repeated", "LA", 7),
    ("repeated", "LM", 5),
    ("identity", "LA", 6),
]


@pytest.mark.parametrize(("name", "which", "k"), BIG_CASES)
def test_eigenvalues_of_big_operators(name, which, k):
    op = cosine(SPECTRA[name])
    found = eigsh(op, k, which, progress=False)
    expected = truth(SPECTRA[name], k, which.replace("both ends", "BE"))
    np.testing.assert_allclose(found.eigenvalues, expected, rtol=1e-6, atol=1e-12)
    assert found.converged.all() and found.stopped_by == "tol"
    assert found.num_products <= 1000
    vectors = found.eigenvectors
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-10)
    np.testing.assert_allclose(
        np.linalg.norm(op @ vectors - vectors * found.eigenvalues, axis=0),
        found.residuals,
        atol=1e-13,
    )


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (2, 2), (7, 3), (32, 5), (33, 3), (60, 29), (60, 60), (80, 20)]
)
def test_small_matrices(n, k, which):
    spectrum = np.random.default_rng(n).standard_normal(n)
    matrix = Counting(dense(spectrum))
    found = eigsh(matrix, k, which, progress=False)
    np.testing.assert_allclose(found.eigenvalues, truth(spectrum, k, which), atol=1e-9)
    assert found.converged.all() and found.num_products == matrix.columns


@pytest.mark.parametrize("multiplicity", [2, 5, 9])
@pytest.mark.parametrize("seed", range(5))
def test_every_copy_is_found(multiplicity, seed):
    """A Krylov space holds one vector of each eigenspace."""
    spectrum = np.concatenate([[2.0] * multiplicity, np.linspace(0, 1.5, 300)])
    found = eigsh(cosine(spectrum), multiplicity + 1, seed=seed, progress=False)
    np.testing.assert_allclose(found.eigenvalues, [2.0] * multiplicity + [1.5], rtol=1e-6)
    assert found.converged.all()


@pytest.mark.parametrize("budget", [6, 7, 10, 15, 25, 40, 80])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_a_tiny_budget_is_kept_and_admitted(budget, which):
    op = Counting(cosine(np.linspace(-1.0, 1.0, 1000)))
    found = eigsh(op, 3, which, max_products=budget, progress=False)
    assert op.columns == found.num_products <= budget
    true = np.linalg.norm(
        op.matrix @ found.eigenvectors - found.eigenvectors * found.eigenvalues, axis=0
    )
    np.testing.assert_allclose(found.residuals, true, atol=1e-13)
    assert not found.converged.any() and found.stopped_by == "budget"


@pytest.mark.parametrize("name", ["decaying", "indefinite", "repeated", "deficient"])
@pytest.mark.parametrize(("tol", "reached"), [(1e-4, True), (1e-9, False)])
def test_float32_says_what_it_reaches(name, tol, reached):
    spectrum = SPECTRA[name]
    found = eigsh(cosine(spectrum, np.float32), 3, tol=tol, progress=False)
    exact = cosine(spectrum)
    true = np.linalg.norm(
        exact @ found.eigenvectors - found.eigenvectors * found.eigenvalues, axis=0
    )
    scale = np.abs(spectrum).max()
    assert (np.abs(true - found.residuals) <= 2e-6 * scale).all()
    assert found.converged.all() == reached
    assert found.stopped_by == ("tol" if reached else "stagnation")
    np.testing.assert_allclose(found.eigenvalues, truth(spectrum, 3, "LA"), atol=3e-6 * scale)


def test_a_start_vector_in_an_invariant_subspace():
    start = np.zeros(100)
    start[3] = 5.0
    found = eigsh(np.diag(np.arange(100.0)), 2, v0=start, progress=False)
    np.testing.assert_allclose(found.eigenvalues, [99, 98], rtol=1e-6)


def test_zero_and_structure():
    class Structured(Counting):
        def unflatten(self, flat):
            return flat[:30], flat[30:]

    found = eigsh(Structured(np.zeros((50, 50))), 3, progress=False)
    assert (found.eigenvalues == 0).all() and found.converged.all()
    assert [part.shape for part in found.structured(0)] == [(30,), (20,)]
    np.testing.assert_array_equal(np.concatenate(found.structured(1)), found.vector(1))
    with pytest.raises(ValueError, match="unflatten"):
        eigsh(np.eye(3), 1).structured(0)


NEGATIVE = [
    ([4.0, -2.0, 1.0], True, -2.0),
    (np.linspace(0.5, 2, 200), False, 0.5),
    (np.r_[-1e-3, np.ones(499)], True, -1e-3),
    (np.zeros(40), False, 0.0),
    (np.r_[np.zeros(30), np.ones(70)], False, 0.0),
]


@pytest.mark.parametrize(("spectrum", "found", "value"), NEGATIVE, ids=range(len(NEGATIVE)))
def test_negative_curvature(spectrum, found, value):
    op = cosine(spectrum)
    result = negative_curvature(op, tol=1e-7, progress=False)
    assert result.found == found and result.converged and ("none found" in str(result)) != found
    np.testing.assert_allclose(result.value, value, atol=1e-9)
    np.testing.assert_allclose(result.vector @ (op @ result.vector), result.value, atol=1e-12)


def test_negative_curvature_is_proved_before_it_has_converged():
    op = cosine(np.linspace(-1, 3, 2000))
    result = negative_curvature(op, tol=1e-9, max_products=20, progress=False)
    assert result.found and not result.converged and result.stopped_by == "budget"
    assert result.vector @ (op @ result.vector) < 0


CONDITIONS = [
    (np.linspace(1, 50, 300), 50.0),
    (np.geomspace(1e-4, 1, 300), 1e4),
    (-np.linspace(2, 8, 100), 4.0),
    (np.r_[-np.geomspace(0.01, 3, 150), np.geomspace(0.02, 7, 150)], 700.0),
    ([8.0, 4.0, -2.0], 4.0),
    (np.ones(50), 1.0),
    ([3.0], 1.0),
]


@pytest.mark.parametrize(("spectrum", "expected"), CONDITIONS, ids=range(len(CONDITIONS)))
@pytest.mark.parametrize("make", [cosine, dense])
def test_condition_number(spectrum, expected, make):
    op = Counting(make(spectrum))
    found = condition_number(op, max_products=40_000, progress=False)
    assert found.resolved and found.stopped_by == "tol" and found.num_products == op.columns
    np.testing.assert_allclose(found.value, expected, rtol=2e-3)


@pytest.mark.parametrize("budget", [10, 30, 100, 300])
@pytest.mark.parametrize("seed", range(3))
def test_an_unresolved_condition_number_is_a_lower_bound(budget, seed):
    spectrum = np.r_[-np.geomspace(1e-5, 3, 500), np.geomspace(1e-5, 7, 500)]
    found = condition_number(cosine(spectrum), max_products=budget, seed=seed, progress=False)
    assert not found.resolved and found.stopped_by == "budget" and found.num_products <= budget
    assert 1 <= found.value <= 7e5


@pytest.mark.parametrize(
    "spectrum",
    [np.r_[0.0, np.linspace(1, 2, 99)], np.r_[np.zeros(60), np.linspace(-1, 2, 60)], np.zeros(40)],
    ids=range(3),
)
def test_a_singular_operator_has_no_condition_number(spectrum):
    found = condition_number(cosine(spectrum), progress=False)
    assert not found.resolved and found.stopped_by == "singular" and found.value > 1e11


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("zeros", [1, 3, 30])
def test_that_an_operator_is_singular_is_found_whatever_the_rounding(zeros, seed):
    """Other matrices and start vectors stand for the sums of another machine: none may wander until
    the budget ends.
    """
    spectrum = np.r_[np.zeros(zeros), np.linspace(0.5, 8.0, 60)]
    for make in (dense(spectrum, seed), cosine(spectrum)):
        found = condition_number(make, seed=seed, max_products=500, progress=False)
        assert found.stopped_by == "singular" and found.num_products < 300


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("smallest", [[1e-8], [-1e-9], [1e-10, 2e-10]])
def test_a_nearly_singular_operator_is_not_taken_for_a_singular_one(smallest, seed):
    spectrum = np.r_[smallest, np.linspace(1, 3, 200)]
    found = condition_number(dense(spectrum, seed), seed=seed, max_products=3000, progress=False)
    assert found.stopped_by != "singular" and found.value <= 1.001 * 3 / abs(smallest[0])
    assert len(smallest) > 1 or (found.resolved and found.num_products < 300)


def test_a_basis_of_more_rows_than_a_piece():
    """It is orthogonalized in pieces: eigenvectors to all digits."""
    entries = np.linspace(0, 1, 70_001)
    entries[[5, 40_000, 70_000]] = 3.0, -2.5, 2.0
    found = eigsh(scipy.sparse.diags(entries), k=3, which="LM", tol=1e-10)
    np.testing.assert_allclose(found.eigenvalues, [3.0, 2.0, -2.5], rtol=1e-12)
    rows = np.abs(found.eigenvectors).argmax(0)
    np.testing.assert_array_equal(rows, [5, 70_000, 40_000])
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(3), atol=1e-13)
