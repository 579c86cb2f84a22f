"""Operators with structure against the dense matrix that each is: what they know has to be that
matrix's.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from threadpoolctl import threadpool_info

import mindspore_hessian as mh
from mindspore_hessian.linops import (
    BlockDiagonal,
    Diagonal,
    Identity,
    Kronecker,
    LowRank,
    Operator,
    Spectral,
    diagonal,
    frobenius_norm,
    inverse,
    logdet,
    solve,
    trace,
)
from mindspore_hessian.linops.structured import side_by_side

RNG = np.random.default_rng(0)


def symmetric(n, least=0.5, most=4.0):
    q = np.linalg.qr(RNG.standard_normal((n, n)))[0]
    out = (q * np.linspace(least, most, n)) @ q.T
    return (out + out.T) / 2


@dataclass
class Case:
    """An operator, its matrix, and whether all its eigenvalues are at least 0."""

    op: Any
    dense: np.ndarray
    positive: bool = True


A, G, C = symmetric(4), symmetric(3, 0.1, 2.0), symmetric(2)
U, W = RNG.standard_normal((6, 2)), np.array([2.0, 0.5])
Q = np.linalg.qr(RNG.standard_normal((6, 3)))[0]
PLACES = [np.array([5, 0, 3]), np.array([1, 2, 4, 6])]


def placed(blocks, places):
    out = np.zeros((sum(map(len, places)),) * 2)
    for block, place in zip(blocks, places, strict=True):
        out[np.ix_(place, place)] = block
    return out


CASES = {
    "diagonal": Case(Diagonal([1.0, 3.0, 2.0]), np.diag([1.0, 3.0, 2.0])),
    "diagonal of integers": Case(Diagonal([1, 3]), np.diag([1.0, 3.0])),
    "diagonal, indefinite": Case(Diagonal([1.0, -3.0]), np.diag([1.0, -3.0]), False),
    "a matrix": Case(Kronecker(A), A),
    "two factors": Case(Kronecker(G, A), np.kron(G, A)),
    "three factors": Case(Kronecker(C, G, A), np.kron(np.kron(C, G), A)),
    "two negative factors": Case(Kronecker(-G, -A), np.kron(G, A)),
    "factors, indefinite": Case(Kronecker(G - np.eye(3), A), np.kron(G - np.eye(3), A), False),
    "a singular factor": Case(Kronecker(np.diag([1.0, 0.0]), A), np.kron(np.diag([1.0, 0.0]), A)),
    "low rank": Case(LowRank(U), U @ U.T),
    "low rank, weighted": Case(LowRank(U, W), (U * W) @ U.T),
    "low rank, indefinite": Case(LowRank(U, [1.0, -1.0]), (U * [1.0, -1.0]) @ U.T, False),
    "low rank, dependent columns": Case(LowRank(np.c_[U, U]), 2 * U @ U.T),
    "low rank of full rank": Case(LowRank(RNG.standard_normal((3, 8)) + 1), None),
    "spectral": Case(
        Spectral([Q], [3.0, 2.0, 1.0], rest=0.25),
        (Q * [3.0, 2.0, 1.0]) @ Q.T + 0.25 * (np.eye(6) - Q @ Q.T),
    ),
    "blocks": Case(
        BlockDiagonal([G, Kronecker(C, C)]),
        placed([G, np.kron(C, C)], [np.arange(3), np.arange(3, 7)]),
    ),
    "blocks in places": Case(
        BlockDiagonal([G, Kronecker(C, C)], PLACES), placed([G, np.kron(C, C)], PLACES)
    ),
    "blocks of all kinds": Case(
        BlockDiagonal([Diagonal([1.0, 2.0]), LowRank(U), BlockDiagonal([Kronecker(C)])]),
        placed([np.diag([1.0, 2.0]), U @ U.T, C], np.split(np.arange(10), [2, 8])),
    ),
}
whole = CASES["low rank of full rank"]
whole.dense = whole.op.factor @ whole.op.factor.T
STRUCTURES = list(CASES)
CASES |= {
    f"{name}, shifted": Case(
        case.op + 0.7 * Identity, case.dense + 0.7 * np.eye(len(case.dense)), case.positive
    )
    for name, case in CASES.items()
}
CASES |= {
    f"{name}, scaled": Case(2.5 * CASES[name].op, 2.5 * CASES[name].dense, CASES[name].positive)
    for name in STRUCTURES
}
CASES["shifted, scaled, shifted"] = Case(
    ((Kronecker(G, A) + Identity) / 2 - 0.25 * Identity) + Identity,
    np.kron(G, A) / 2 + 1.25 * np.eye(12),
)
CASES["two diagonals"] = Case(Diagonal([1.0, 2.0]) + Diagonal([0.5, 3.0]), np.diag([1.5, 5.0]))
every = pytest.mark.parametrize("name", CASES)


def close(one, other, tolerance=1e-11):
    np.testing.assert_allclose(
        one, other, rtol=tolerance, atol=tolerance * max(1.0, np.abs(other).max())
    )


def damping_of(case):
    """One that makes the matrix positive definite."""
    return 0.3 + max(0.0, -np.linalg.eigvalsh(case.dense)[0])


@every
def test_products(name):
    op, dense = CASES[name].op, CASES[name].dense
    n = len(dense)
    assert (
        op.shape == dense.shape
        and op.dtype == np.float64
        and op.structured
        and op.symmetric
        and op.T is op
    )
    vector, matrix = RNG.standard_normal(n), RNG.standard_normal((n, 5))
    close(op @ vector, dense @ vector)
    close(op @ matrix, dense @ matrix)
    close(matrix.T @ op, matrix.T @ dense)
    close(op.to_dense(), dense)
    close(op.to_scipy() @ vector, dense @ vector)
    assert (op @ np.zeros((n, 0))).shape == (n, 0)


@every
def test_what_is_known_is_that_of_the_matrix(name):
    op, dense = CASES[name].op, CASES[name].dense
    close(np.sort(op.eigenvalues()), np.linalg.eigvalsh(dense))
    close(op.trace(), np.trace(dense))
    close(op.diagonal(), np.diag(dense))
    close(op.frobenius_norm(), np.linalg.norm(dense))
    assert op.positive == CASES[name].positive
    d = damping_of(CASES[name])
    close(op.logdet(d), np.linalg.slogdet(dense + d * np.eye(len(dense)))[1])
    close(
        op.funm(lambda e: (e + d) ** 0.5).to_dense() @ op.funm(lambda e: (e + d) ** 0.5).to_dense(),
        dense + d * np.eye(len(dense)),
    )


@every
def test_inverses(name):
    op, dense = CASES[name].op, CASES[name].dense
    for d in (damping_of(CASES[name]), 1e3):
        found = inverse(op, d)
        close(found.to_dense(), np.linalg.inv(dense + d * np.eye(len(dense))))
        assert found.structured and found.dtype == op.dtype and found.positive
        close(inverse(found, 0.0).to_dense(), dense + d * np.eye(len(dense)), 1e-9)
    if np.abs(np.linalg.eigvalsh(dense)).min() > 1e-9:
        close(inverse(op, 0.0).to_dense(), np.linalg.inv(dense))
    else:
        with pytest.raises(ValueError, match="singular"):
            inverse(op, 0.0)


@every
def test_functions_are_exact_where_there_is_structure(name):
    op, dense = CASES[name].op, CASES[name].dense
    n, d = len(dense), damping_of(CASES[name])
    for found, truth in (
        (trace(op, "hutch++"), np.trace(dense)),
        (diagonal(op), np.diag(dense)),
        (frobenius_norm(op), np.linalg.norm(dense)),
        (logdet(op, d, seed=3), np.linalg.slogdet(dense + d * np.eye(n))[1]),
    ):
        close(found.value, truth)
        assert found.stopped_by == "exact" and found.num_products == 0 and found.bias == 0
        assert np.shape(found.standard_error) == np.shape(found.value) and not np.any(
            found.standard_error
        )
    b = RNG.standard_normal(n)
    solved = solve(op, b, d)
    close(solved.x, np.linalg.solve(dense + d * np.eye(n), b))
    assert (
        solved.stopped_by == "exact"
        and solved.converged
        and solved.num_products == 1
        and solved.residual < 1e-12
    )


def test_single_precision():
    """Products in float32, what is known in float64."""
    factors = [one.astype(np.float32) for one in (G, A)]
    op, dense = Kronecker(*factors), np.kron(*(one.astype(np.float64) for one in factors))
    assert op.dtype == (op @ np.ones(12)).dtype == inverse(op, 0.1).dtype == np.float32
    close(op.logdet(1e-3), np.linalg.slogdet(dense + 1e-3 * np.eye(12))[1], 1e-10)
    close(inverse(op, 1e-3).to_dense(), np.linalg.inv(dense + 1e-3 * np.eye(12)), 1e-6)
    solved = solve(op, np.ones(12), 1e-3, tol=1e-5)
    assert solved.x.dtype == np.float64 and solved.converged
    close(solved.x, np.linalg.solve(dense + 1e-3 * np.eye(12), np.ones(12)), 1e-10)
    for one in (Diagonal(np.ones(3, np.float32)), LowRank(U.astype(np.float32))):
        for other in (one, 2.0 * one, one + Identity, inverse(one, 1.0)):
            assert other.dtype == (other @ np.ones(other.shape[0])).dtype == np.float32


def test_negative_eigenvalues_at_rounding_level_are_zero():
    """As those of a covariance matrix that was summed in float32: a small damping must not meet
    -1e-8.
    """
    x = RNG.standard_normal((3, 40)).astype(np.float32)
    gram = x.T @ x
    assert np.linalg.eigvalsh(gram.astype(np.float64))[0] < 0
    op = Kronecker((gram + gram.T) / 2, np.eye(2, dtype=np.float32))
    assert op.positive and op.eigenvalues().min() == 0
    assert op.inverse(1e-7).eigenvalues().min() > 0 and np.isfinite(op.logdet(1e-7))


def test_a_small_damping_of_low_rank_leaves_the_range_alone():
    """1 / damping is large outside of the range, and what rounding leaves of the range there must
    not be multiplied.
    """
    found = inverse(LowRank(U), 1e-9) @ (U @ np.array([1.0, -2.0]))
    close(U.T @ found, np.array([1.0, -2.0]), 1e-8)


# --- heuristic damping ----------------------------------------------------------------------------


def test_heuristic_damping_is_that_of_martens_and_grosse():
    d = 0.2
    pi = np.sqrt((np.trace(A) / 4) / (np.trace(G) / 3))
    truth = np.kron(
        np.linalg.inv(G + np.sqrt(d) / pi * np.eye(3)),
        np.linalg.inv(A + pi * np.sqrt(d) * np.eye(4)),
    )
    found = inverse(Kronecker(G, A), d, heuristic=True)
    assert isinstance(found, Kronecker)
    close(found.to_dense(), truth)
    close(
        inverse(BlockDiagonal([G, Kronecker(G, A)]), d, heuristic=True).to_dense(),
        placed([np.linalg.inv(G + d * np.eye(3)), truth], np.split(np.arange(15), [3])),
    )
    close(inverse(Kronecker(G, A) + 0.1 * Identity, 0.1, heuristic=True).to_dense(), truth)
    close(inverse(Kronecker(G, A), 0.0, heuristic=True).to_dense(), np.linalg.inv(np.kron(G, A)))


@pytest.mark.parametrize(
    ("op", "damping", "message"),
    [
        (Kronecker(-G, A), 0.1, "positive trace"),
        (Kronecker(G, A), -0.1, "damping must be finite and at least 0"),
        (Diagonal([1.0]) @ Diagonal([1.0]), 0.1, "symmetric"),
    ],
)
def test_heuristic_damping_is_refused(op, damping, message):
    with pytest.raises(ValueError, match=message):
        inverse(op, damping, heuristic=True)


# --- what is not symmetric, or has no structure ---------------------------------------------------


def test_factors_that_are_not_symmetric():
    """Products, traces and transposes are known; what needs real eigenvalues is refused."""
    b, c = RNG.standard_normal((3, 3)), RNG.standard_normal((2, 2))
    dense, v = np.kron(b, c), RNG.standard_normal(6)
    for op in (Kronecker(b, c), BlockDiagonal([Kronecker(b, c)]), Kronecker(b, c) + 0.0 * Identity):
        assert not op.symmetric and not op.positive
        close(op @ v, dense @ v)
        close(op.T @ v, dense.T @ v)
        close(v @ op, v @ dense)
        close(mh.trace(op).value, np.trace(dense))
        close(mh.diagonal(op).value, np.diag(dense))
        for call in (lambda op: inverse(op, 1.0), mh.logdet, mh.eigsh, lambda op: solve(op, v)):
            with pytest.raises(ValueError, match="op must be symmetric"):
                call(op)
    close(mh.frobenius_norm(Kronecker(b, c)).value, np.linalg.norm(dense))


class Known(Operator):
    """A matrix of which only products are known."""

    def __init__(self, matrix, positive=False):
        self.matrix, self.shape, self.dtype, self.positive = (
            matrix,
            matrix.shape,
            matrix.dtype,
            positive,
        )

    products = 0

    def columns(self, matrix):
        self.products += matrix.shape[1]
        return self.matrix @ matrix


def test_symmetry_and_positivity_of_sums_multiples_and_products():
    a, b = Known(A, True), Known(A - np.eye(4))
    one_sided = Kronecker(np.triu(A))
    for op, is_symmetric, is_positive in (
        (a, True, True),
        (a + b, True, False),
        (a + a, True, True),
        (2 * a, True, True),
        (-a, True, False),
        (a @ a, True, True),
        (a @ b, False, False),
        (a @ b @ a, True, False),
        (b @ a @ b, True, True),
        (b @ b, True, True),
        (a + one_sided, False, False),
        (3 * (a + one_sided), False, False),
        (a + Identity, True, True),
        (a - Identity, True, False),
        (a + Kronecker(A), True, True),
    ):
        assert (op.symmetric, op.positive) == (is_symmetric, is_positive), op
    with pytest.raises(ValueError, match="op must be symmetric, but .* is not known to be"):
        mh.eigsh(a @ b, 1)
    product = a @ b
    product.symmetric = True  # the user knows that they commute
    close(mh.eigsh(product, 1).eigenvalues, [4.0 * 3.0], 1e-6)


def test_multiples_of_the_identity():
    assert repr(Identity) == "Identity" and repr(0.5 * Identity + Identity) == "1.5 * Identity"
    assert (2 * Identity).positive and not (-Identity).positive
    close((Identity + Diagonal([1.0, 2.0])).to_dense(), np.diag([2.0, 3.0]))
    close((Identity - Known(A)).to_dense(), np.eye(4) - A)
    assert isinstance(3 * Identity + Kronecker(A), type(Kronecker(A) + Identity))


@pytest.mark.parametrize("positive", [True, False])
def test_the_inverse_of_what_has_no_structure_is_by_solve(positive):
    op = inverse(Known(A, positive), 0.5, tol=1e-10)
    close(op.to_dense(), np.linalg.inv(A + 0.5 * np.eye(4)), 1e-8)
    assert op.positive == positive and not op.structured
    close(
        inverse(Known(A - 2 * np.eye(4)), 0.0, tol=1e-10).to_dense(),
        np.linalg.inv(A - 2 * np.eye(4)),
        1e-7,
    )


@pytest.mark.parametrize("preconditioner", [None, "nystrom", "exact"])
def test_columns_of_an_inverse_are_solved_together(preconditioner):
    """Far fewer products than one after another; a preconditioner is made once, and cuts those of
    the second call."""
    q = np.linalg.qr(RNG.standard_normal((120, 120)))[0]
    values = np.geomspace(1e-6, 1, 120)
    op, b = Known((q * values) @ q.T), RNG.standard_normal((120, 12))
    given = Spectral([q], 1 / (values + 1e-4)) if preconditioner == "exact" else preconditioner
    found = inverse(op, 1e-4, tol=1e-9, preconditioner=given, rank=80)
    expected = (q / (values + 1e-4)) @ q.T @ b
    close(found @ b, expected, 1e-7)
    first, op.products = op.products, 0
    close(found @ b[:, ::-1], expected[:, ::-1], 1e-7)
    alone = sum(mh.solve(op.matrix, one, 1e-4, tol=1e-9).num_products for one in b.T)
    # 80 columns and 5 for the error; then the steps and the residuals of 12 columns, of which
    # rounding may make one more or less
    assert abs(first - op.products - (85 if preconditioner == "nystrom" else 0)) <= 12
    most = {None: alone / 3, "nystrom": alone / 6, "exact": 24}
    assert op.products <= most[preconditioner]


def test_columns_of_an_indefinite_system_are_solved_one_after_another():
    matrix = symmetric(30) - 2 * np.eye(30)
    close(inverse(Known(matrix), 0.0, tol=1e-11).to_dense(), np.linalg.inv(matrix), 1e-8)
    given = Kronecker(np.diag(np.linspace(1.0, 2.0, 30)))
    found = inverse(Known(matrix), 0.0, tol=1e-11, preconditioner=given)
    close(found.to_dense(), np.linalg.inv(matrix), 1e-8)


def test_a_system_that_is_not_solved_is_an_error():
    op = inverse(Known(np.diag(np.geomspace(1e-6, 1, 200)), True), 0.0, max_products=10)
    with pytest.raises(ValueError, match="stopped by budget after 10 products"):
        op @ np.ones(200)
    with pytest.raises(ValueError, match="not solved"):
        inverse(Known(np.diag([1.0, 0.0])), 0.0) @ np.ones(2)
    with pytest.raises(ValueError, match="no structure"):
        inverse(Known(A), 0.1, heuristic=True)


def test_indefinite_systems_are_left_to_the_method_that_was_asked_for():
    op, b = Diagonal([1.0, -1.0, 2.0]), np.ones(3)
    assert solve(op, b).stopped_by == "negative curvature"
    found = solve(op, b, method="minres")
    assert found.stopped_by == "tol"
    close(found.x, [1.0, -1.0, 0.5], 1e-5)
    assert solve(Diagonal([1.0, 0.0]), np.ones(2), method="lsmr").stopped_by == "least squares"
    with pytest.raises(ValueError, match="positive definite for logdet"):
        logdet(op)


def test_vectors_come_back_in_their_kind():
    op = Diagonal(np.array([1.0, 2.0], np.float32))
    for dtype in (ms.float32, ms.bfloat16):
        found = op @ ms.Tensor([1.0, 3.0], dtype)
        assert isinstance(found, ms.Tensor) and found.asnumpy().tolist() == [1.0, 6.0]
    assert (op @ [1, 3]).tolist() == [1.0, 6.0]


def threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_decompositions_side_by_side_take_a_thread_each_and_give_them_back():
    before, rng = threads(), np.random.default_rng(0)
    matrices = [(one + one.T) / 2 for one in rng.standard_normal((5, 30, 30))]
    with side_by_side() as each:
        assert set(threads()) == {1}
        found = list(each(np.linalg.eigh, matrices))
    assert threads() == before
    for matrix, (values, vectors) in zip(matrices, found, strict=True):
        np.testing.assert_allclose((vectors * values) @ vectors.T, matrix, atol=1e-13)
    with pytest.raises(np.linalg.LinAlgError), side_by_side() as each:
        list(each(np.linalg.cholesky, [-np.eye(2)]))
    assert threads() == before


# --- refusals -------------------------------------------------------------------------------------

NAN, RAGGED = [1.0, np.nan], [[1.0], [1.0, 2.0]]
REFUSED = {
    "Diagonal of a matrix": (
        lambda: Diagonal(A),
        ValueError,
        r"values must be a flat array.*\(4, 4\)",
    ),
    "Diagonal of nothing": (lambda: Diagonal([]), ValueError, "not empty"),
    "Diagonal with NaN": (lambda: Diagonal(NAN), ValueError, "values must be finite"),
    "Diagonal of text": (
        lambda: Diagonal(["a"]),
        TypeError,
        "values must be an array of real numbers",
    ),
    "Diagonal, complex": (lambda: Diagonal([1j]), TypeError, "real numbers"),
    "Diagonal, ragged": (lambda: Diagonal(RAGGED), TypeError, "real numbers"),
    "Kronecker of nothing": (lambda: Kronecker(), ValueError, "at least one factor"),
    "Kronecker, not square": (
        lambda: Kronecker(A, U),
        ValueError,
        r"factor 1 must be square.*\(6, 2\)",
    ),
    "Kronecker of vectors": (lambda: Kronecker(NAN), ValueError, "factor 0 must be a matrix"),
    "LowRank of a vector": (lambda: LowRank([1.0]), ValueError, "factor must be a matrix"),
    "LowRank, weights": (lambda: LowRank(U, [1.0]), ValueError, r"weights must have shape \(2,\)"),
    "Spectral, eigenvalues": (
        lambda: Spectral([Q], [1.0]),
        ValueError,
        r"eigenvalues must have shape \(3,\)",
    ),
    "Spectral, basis": (
        lambda: Spectral([U], [1.0, 1.0]),
        ValueError,
        r"basis\[0\] must have orthonormal columns",
    ),
    "Spectral, rest": (lambda: Spectral([Q], [1.0] * 3, "a"), TypeError, "rest must be a number"),
    "no blocks": (lambda: BlockDiagonal([]), ValueError, "blocks must hold at least one"),
    "a block of products": (
        lambda: BlockDiagonal([Known(A)]),
        TypeError,
        "block 0 .* only products",
    ),
    "a block that is no matrix": (
        lambda: BlockDiagonal([Diagonal([1.0]), U]),
        ValueError,
        "must be square",
    ),
    "indices of other sizes": (
        lambda: BlockDiagonal([C], [[0]]),
        ValueError,
        r"sizes of the blocks, \[2\]",
    ),
    "indices twice": (
        lambda: BlockDiagonal([C, C], [[0, 1], [1, 2]]),
        ValueError,
        "from 0 to 3 once",
    ),
    "indices of floats": (lambda: BlockDiagonal([C], [[0.0, 1.0]]), ValueError, "each integer"),
    "other sizes": (
        lambda: Diagonal([1.0]) + Kronecker(A),
        ValueError,
        "different shapes cannot be combined",
    ),
    "a number": (lambda: Diagonal([1.0]) + 1.0, TypeError, "0.1 \\* Identity"),
    "a vector of another size": (
        lambda: Kronecker(G, A) @ np.ones(11),
        ValueError,
        "the operator has 12 columns",
    ),
    "three axes": (
        lambda: Kronecker(A) @ np.ones((4, 1, 1)),
        ValueError,
        "the operator has 4 columns",
    ),
    "funm to NaN": (
        lambda: Diagonal([-1.0]).funm(np.sqrt),
        ValueError,
        "f gives nan for the eigenvalue -1",
    ),
    "funm to another shape": (
        lambda: Diagonal([1.0, 2.0]).funm(np.sum),
        ValueError,
        "f must give a number for each",
    ),
    "inverse of a matrix": (lambda: inverse(A, 1.0), TypeError, r"linops.Kronecker\(matrix\)"),
    "inverse of Identity": (lambda: inverse(Identity, 1.0), TypeError, "op must be an Operator"),
    "damping": (lambda: inverse(Known(A), "a"), TypeError, "damping must be a number"),
    "damping of NaN": (
        lambda: inverse(Diagonal([1.0]), np.nan),
        ValueError,
        "damping must be finite",
    ),
    "damping to zero": (
        lambda: inverse(Kronecker(A), -np.linalg.eigvalsh(A)[0]),
        ValueError,
        "singular",
    ),
    "no transpose": (
        lambda: type("Half", (Known,), {"symmetric": False})(A).T,
        TypeError,
        "defines no transpose",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_are_refused(name):
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()


# --- without MindSpore ----------------------------------------------------------------------------


def test_linops_and_estimators_work_where_mindspore_cannot_be_imported():
    """In a process of its own, with the package's __init__ left out, which imports all the rest."""
    code = """
        import sys, types
        sys.modules["mindspore"] = None  # its import raises ModuleNotFoundError
        package = types.ModuleType("mindspore_hessian")
        package.__path__ = [sys.argv[1]]
        sys.modules["mindspore_hessian"] = package
        import numpy as np
        from mindspore_hessian import estimators, linops
        op = linops.Kronecker(np.eye(2), np.diag([1.0, 3.0]))
        print(estimators.trace(op).value, estimators.trace(np.eye(3)).value)
        print((linops.inverse(op, 1.0) @ np.ones(4)).sum())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(Path(mh.__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8.0", "3.0", "1.5"]
