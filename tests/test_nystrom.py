"""Nystrom approximations, and conjugate gradients with a preconditioner."""

from __future__ import annotations

import numpy as np
import pytest

import mindspore_hessian as mh
from mindspore_hessian.linops import Spectral

RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(200, 200)))[0]
DECAY = 10.0 ** -(np.arange(200) / 25)
MATRIX = (Q * DECAY) @ Q.T
B = RNG.normal(size=200)


def test_a_matrix_of_low_rank_is_found():
    low = (Q[:, :7] * DECAY[:7]) @ Q[:, :7].T
    found = mh.nystrom(low, 10)
    assert (
        np.abs(found.to_dense() - low).max() < 1e-13
        and found.error < 1e-12
        and found.num_products == 15
    )


@pytest.mark.parametrize("seed", range(4))
def test_it_is_below_the_matrix_and_says_its_error(seed):
    found = mh.nystrom(MATRIX, 60, seed=seed)
    rest = MATRIX - found.to_dense()
    norm = np.linalg.norm(rest, 2)
    assert np.linalg.eigvalsh(rest).min() > -1e-12
    assert DECAY[60] * 0.9 <= norm < 20 * DECAY[60]
    assert 0.5 * norm < found.error < norm * (1 + 1e-9)


@pytest.mark.parametrize(
    ("dtype", "d", "tol"), [(np.float64, 1e-4, 1e-8), (np.float32, 1e-3, 1e-3)]
)
def test_fewer_steps_with_the_true_residual(dtype, d, tol):
    matrix = MATRIX.astype(
        dtype
    )  # in float32, what is within reach is its rounding times the size of x
    plain = mh.solve(matrix, B, d, tol=tol)
    found = mh.solve(matrix, B, d, tol=tol, preconditioner="nystrom", rank=100)
    assert found.converged and found.num_products - 100 <= plain.num_products / 2
    residual = np.linalg.norm(
        B - matrix.astype(np.float64) @ found.x - d * found.x
    ) / np.linalg.norm(B)
    assert abs(residual - found.residual) < 0.01 * tol + 1e-6 * (dtype is np.float32)


def test_the_inverse_as_a_preconditioner_is_one_step():
    exact = Spectral([Q], 1 / (DECAY + 1e-4))
    found = mh.solve(MATRIX, B, 1e-4, preconditioner=exact, tol=1e-9)
    assert found.converged and found.num_products <= 3


def test_negative_curvature_is_seen():
    found = mh.solve(np.diag([1.0, -1.0, 2.0]), np.ones(3), preconditioner=np.eye(3))
    assert found.stopped_by == "negative curvature"
    assert found.direction @ np.diag([1.0, -1.0, 2.0]) @ found.direction < 0
