"""The Nystrom approximation of a positive semidefinite matrix, from one product with random
columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import cholesky, solve_triangular, svd

from mindspore_hessian.estimators._common import Run


def approximation(run: Run, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors (n, rank) and eigenvalues, falling, of A X (X^T A X)^-1 X^T A; A is the operator
    without damping.

    A shift of the size of rounding makes it stable, and is taken off again.

    Raises:
        ValueError: X^T A X has a negative eigenvalue.
    """
    columns = np.linalg.qr(run.probes(0, rank, "normal"))[0]
    image = run @ columns - run.damping * columns
    shift = run.eps * run.n**0.5 * float(np.linalg.norm(image, 2))
    moved = image + shift * columns
    core = columns.T @ moved
    try:
        root = cholesky((core + core.T) / 2)
    except np.linalg.LinAlgError as err:
        raise ValueError(
            "op must have no negative eigenvalues for a Nystrom approximation, but x^T A x is "
            "negative for an x. Take the Gauss-Newton matrix, or leave the preconditioner out"
        ) from err
    vectors, values, _ = svd(solve_triangular(root, moved.T, trans=1).T, full_matrices=False)
    return vectors, np.maximum(values**2 - shift, 0.0)


def preconditioner(
    vectors: np.ndarray, values: np.ndarray, damping: float
) -> Callable[[np.ndarray], np.ndarray]:
    """The inverse of U diag(e + d) U^T + (e_k + d) (I - U U^T), with e_k the least that was
    seen.
    """
    rest = values[-1] + damping
    if rest <= 0:
        raise ValueError(
            f"preconditioner 'nystrom' needs a damping greater than 0 where rank {len(values)} is "
            "that of op: pass a damping, or a smaller rank"
        )
    weights = 1 / (values + damping) - 1 / rest

    def apply(r: np.ndarray) -> np.ndarray:
        return (
            r / rest + vectors @ (weights * (r.T @ vectors)).T
        )  # a vector, or a matrix of columns

    return apply
