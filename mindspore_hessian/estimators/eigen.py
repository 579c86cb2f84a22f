"""Eigenpairs at the ends of the spectrum."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from mindspore_hessian.arguments import check_choice, check_integer, check_real, check_vector
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import Run, fingerprint
from mindspore_hessian.estimators._search import WHICH, Pairs, Search, dense_pairs
from mindspore_hessian.estimators.results import EigshResult, NegativeCurvature


def eigsh(
    op: Any,
    k: int = 6,
    which: Literal["LA", "SA", "LM", "BE", "both ends"] = "LA",
    tol: float = 1e-6,
    v0: Any = None,
    seed: int = 0,
    max_products: int | None = None,
    ncv: int | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> EigshResult:
    r"""The `k` largest or smallest eigenpairs of a symmetric operator, :math:`H v = \lambda v`,
    without the matrix.

    Thick-restart Lanczos with full reorthogonalisation. The residual of each returned pair is
    computed at the end from a product of its own; a pair is called converged where
    :math:`\|Hv - \lambda v\| \le tol \cdot \lambda_{abs}`, with :math:`\lambda_{abs}` the largest
    magnitude of a Ritz value or of a product with a unit vector that was seen (at most the spectral
    norm). Some eigenvalue then lies within that distance. Converged pairs are looked at once more
    from a random vector orthogonal to them, as one Krylov space cannot show that an eigenvalue is
    repeated.

    Costs some tens of products for well separated eigenvalues, one at a time, and `k` for the
    residuals; n + k where ``n <= max(2 k + 2, 32)``, with the whole matrix. Holds ``ncv + 1``
    vectors of float64.

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``: a HessianOperator, an array, a
            LinearOperator.
        k: how many, from 1 to n.
        which: ``"LA"`` largest by value, ``"SA"`` smallest by value, ``"LM"`` largest by magnitude,
            ``"BE"`` (or ``"both ends"``) half from each end, the odd one from the upper.
        tol: relative tolerance of the residuals. A float32 operator does not reach much below 1e-6.
        v0: start vector of shape (n,); random where None.
        seed: of the random vectors.
        max_products: budget, at least 2 k; where None, the larger of 1000 and 50 ncv.
        ncv: most vectors in the basis, at least k + 2; where None, the larger of 2 k + 8 and 24.
        progress: True shows a bar at once, None after two seconds, False never.
        checkpoint: a file name. The state is saved there after each restart, and a call with the
            same arguments goes on from it to the same numbers.

    Returns:
        EigshResult. Eigenvalues are descending by value for "LA", "LM" and "BE", ascending for
        "SA".

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        K. Wu and H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems,
        SIAM J. Matrix Anal. Appl. 22(2), 2000. J. Kuczynski and H. Wozniakowski, Estimating the
        largest eigenvalue by the power and Lanczos algorithms with a random start, SIAM J. Matrix
        Anal. Appl. 13(4), 1992.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import eigsh
        >>> found = eigsh(np.diag(np.arange(100.0)), k=2)
        >>> print(found.eigenvalues.round(6), found.converged)
        [99. 98.] [ True  True]
    """
    n = dimension_of(op)
    check_choice("which", which, WHICH)
    check_integer("k", k, 1, n, f" (op is {n} x {n})")
    check_real("tol", tol)
    ncv = max(2 * k + 8, 24) if ncv is None else ncv
    check_integer("ncv", ncv, k + 2, None, " (k + 2)")
    max_products = max(1000, 50 * ncv) if max_products is None else max_products
    check_integer("max_products", max_products, 2 * k, None, " (2 k: k steps and k residuals)")
    start = None if v0 is None else check_vector("v0", v0, n)
    if start is not None and not start.any():
        raise ValueError("v0 is zero: pass another start vector, or None for a random one")
    ends = "LA" if k == 1 and WHICH[which] == "BE" else WHICH[which]
    with Run(
        "eigsh",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        k=k,
        which=ends,
        tol=tol,
        ncv=ncv,
        v0=fingerprint(start),
    ) as run:
        pairs = extreme_pairs(run, k, ends, tol, ncv, start)
    order = np.argsort(pairs.values if ends == "SA" else -pairs.values, kind="stable")
    return EigshResult(
        pairs.values[order],
        pairs.vectors[:, order],
        residuals := pairs.residuals[order],
        residuals <= tol * pairs.scale,
        run.num_products,
        run.seconds,
        seed,
        pairs.stopped_by,
        getattr(op, "unflatten", None),
    )


def extreme_pairs(
    run: Run, k: int, which: str, tol: float, ncv: int, start: np.ndarray | None = None
) -> Pairs:
    """The wanted pairs of a run's operator, by the whole matrix where that is cheap."""
    if run.n <= max(2 * k + 2, 32) and run.remaining >= run.n + k:
        return dense_pairs(run, k, which, tol)
    return Search(run, k, which, tol, ncv, start).find()


def negative_curvature(
    op: Any,
    tol: float = 1e-3,
    seed: int = 0,
    max_products: int | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> NegativeCurvature:
    r"""The most negative eigenpair, with its proof: a unit vector v and :math:`v^T H v < 0`.

    The Rayleigh quotient of the returned vector is an upper bound of the smallest eigenvalue, so a
    negative one proves negative curvature whether or not the pair has converged. "None found" is no
    proof that there is none; it is strong evidence where `converged` is True. The Rayleigh quotient
    counts as negative below minus ten rounding units of the operator's dtype times the largest
    magnitude that was seen.

    Costs what ``eigsh(op, 1, "SA")`` does.

    Args:
        op: a symmetric operator, as for `eigsh`.
        tol: tolerance of the residual, relative to the largest magnitude of an eigenvalue.
        seed: of the start vector.
        max_products: budget; 1200 where None.
        progress: as for `eigsh`.
        checkpoint: as for `eigsh`.

    Returns:
        NegativeCurvature, which prints what was found.

    Raises:
        TypeError, ValueError: as `eigsh`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        G. Golub and C. Van Loan, Matrix Computations, sections 8.1 and 10.1.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import negative_curvature
        >>> found = negative_curvature(np.diag([4.0, -2.0, 1.0]))
        >>> print(found.found, round(found.value, 6))
        True -2.0
    """
    check_real("tol", tol)
    dimension_of(op)
    max_products = 1200 if max_products is None else max_products
    check_integer("max_products", max_products, 2)
    with Run(
        "negative_curvature",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        tol=tol,
    ) as run:
        pairs = extreme_pairs(run, 1, "SA", tol, 24)
    value = float(pairs.values[0])
    return NegativeCurvature(
        value < -10 * run.eps * pairs.scale,
        value,
        pairs.vectors[:, 0],
        float(pairs.residuals[0]),
        pairs.met <= tol,
        run.num_products,
        run.seconds,
        seed,
        pairs.stopped_by,
    )
