"""A matrix of low rank in the place of a large one, by random columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from mindspore_hessian.arguments import check_integer
from mindspore_hessian.estimators._common import Run
from mindspore_hessian.estimators._nystrom import approximation
from mindspore_hessian.linops.structured import Spectral

_STEPS = 5  # of the power method for the error


class Nystrom(Spectral):
    """What `nystrom` returns: the approximation as a `Spectral` operator.

    Attributes:
        error: the spectral norm of what it leaves out, by a few steps of the power method: a little
            too small.
        num_products: the cost.
    """

    error: float
    num_products: int


def nystrom(op: Any, rank: int, seed: int = 0, *, progress: bool | None = None) -> Nystrom:
    r"""Nyström approximation of a positive semidefinite operator, :math:`A X (X^T A X)^{-1} X^T A`,
    X random.

    The part of A that `rank` random columns see: below A, and near to it where its eigenvalues
    decay. It is an operator with structure; ``inverse(found, damping)`` is its damped inverse.
    Costs `rank` products, and 5 for the error.

    Args:
        op: a symmetric operator without negative eigenvalues, with ``.shape`` (n, n) and ``@``.
        rank: the number of columns, at most n.
        seed: of X.
        progress: as for `trace`.

    Returns:
        Nystrom, a `linops.Spectral` with `error` and `num_products`.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square or has a negative
            eigenvalue, a product with NaN or Inf.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        Z. Frangella, J. Tropp and M. Udell, Randomized Nyström preconditioning, SIAM J. Matrix
        Anal. Appl. 44(2), 2023.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import nystrom
        >>> found = nystrom(np.diag([4.0, 1.0, 0.0]), rank=2)
        >>> print(found.to_dense().round(6).diagonal(), found.error < 1e-6, found.num_products)
        [4. 1. 0.] True 7
    """
    with Run(
        "nystrom", op, seed=seed, max_products=None, progress=progress, checkpoint=None
    ) as run:
        check_integer("rank", rank, 1, run.n)
        vectors, values = approximation(run, rank)
        probe, error = run.probes(rank, 1, "normal")[:, 0], 0.0
        for _ in range(_STEPS):
            probe = probe / (np.linalg.norm(probe) or 1.0)
            probe = run @ probe - vectors @ (values * (vectors.T @ probe))
            error = float(np.linalg.norm(probe))
        out = Nystrom([vectors], values, dtype=run.dtype)
        out.error, out.num_products = error, run.num_products
    return out
