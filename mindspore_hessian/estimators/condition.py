"""The condition number, with the eigenvalue next to zero by inverse iteration."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mindspore_hessian.arguments import check_integer, check_real
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import BudgetSpent, Run
from mindspore_hessian.estimators._krylov import SAVED_EVERY, MinimalResiduals, restored
from mindspore_hessian.estimators._search import orthogonal
from mindspore_hessian.estimators.eigen import extreme_pairs
from mindspore_hessian.estimators.results import ConditionNumber

_MOST = 60  # vectors of the space for the eigenvalue next to zero


def condition_number(
    op: Any,
    tol: float = 1e-3,
    max_products: int = 5000,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> ConditionNumber:
    r"""Condition number in the spectral norm, :math:`|\lambda|_{max} / |\lambda|_{min}`.

    Lanczos finds the eigenvalue of largest magnitude. That of smallest magnitude comes from a space
    that grows by MINRES solutions of H y = x, so an indefinite operator is as good as a definite
    one. Both are accepted where their residual is at most `tol` times their own magnitude. Where
    the budget ends before that, the value is a lower bound, as :math:`|\lambda|_{min} \le \|H v\|`
    for each unit vector v, and `resolved` is False.

    Costs tens of products for the first, and a few MINRES solutions for the second: about the
    condition number in products each (its square root for a definite operator).

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        tol: relative tolerance of the two eigenvalues.
        max_products: budget, at least 10.
        seed: of the start vectors.
        progress: as for `trace`.
        checkpoint: a file name. The state is saved there every few products, and a call with the
            same arguments goes on from it to the same numbers.

    Returns:
        ConditionNumber; `stopped_by` is ``"singular"`` where the smallest magnitude, over the
        largest, is less than ``max(100, 10 / tol)`` rounding units of the operator's dtype, so that
        rounding hides it. The value is then the lower bound that this leaves.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        G. Golub and C. Van Loan, Matrix Computations, sections 2.6 and 8.2. C. Paige and M.
        Saunders, Solution of sparse indefinite systems of linear equations, SIAM J. Numer. Anal.
        12(4), 1975.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import condition_number
        >>> print(round(condition_number(np.diag([8.0, 4.0, -2.0])).value, 6))
        4.0
    """
    dimension_of(op)
    check_real("tol", tol)
    check_integer("max_products", max_products, 10)
    with Run(
        "condition_number",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        tol=tol,
    ) as run:
        if "top" in run.state:
            top, ended = run.state["top"], str(run.state["ended"])
        else:
            pairs = extreme_pairs(run, 1, "LM", tol, 24)
            top, ended = np.array([pairs.values[0], pairs.residuals[0]]), pairs.stopped_by
        largest = abs(float(top[0]))
        singular = run.eps * max(100.0, 10 / tol) * largest
        smallest, residual, reason = _nearest_zero(run, tol, singular, top, ended)
    ends = np.array([top[1], residual])
    magnitude = abs(smallest)
    if magnitude <= singular and residual <= singular:
        reason, magnitude = "singular", singular
    elif residual > tol * magnitude:
        magnitude = float(np.hypot(magnitude, residual))
    resolved = reason == "tol" and bool(ends[0] <= tol * largest)
    value = max(largest / magnitude, 1.0) if magnitude else np.inf
    return ConditionNumber(
        float(value),
        resolved,
        float(top[0]),
        smallest,
        ends,
        run.num_products,
        run.seconds,
        seed,
        reason if resolved or reason != "tol" else ended,
    )


def _nearest_zero(
    run: Run, tol: float, singular: float, top: np.ndarray, ended: str
) -> tuple[float, float, str]:
    """Eigenvalue, residual, and the reason to end.

    Harmonic Ritz pairs (those of the inverse in the image of the space) of a space that grows by a
    solution of H y = x for the best x each time. Where MINRES ends with a residual that is nearly a
    null vector, it grows by that; from then on by a solution of H z = H x - value x, as x - z is
    then the same multiple of y, and MINRES would tell such an x itself from a null vector by
    rounding alone.
    """
    best, solver = (
        run.state.get("best", top),
        restored(MinimalResiduals, run.state) if "r2" in run.state else None,
    )
    try:
        if "space" in run.state:
            basis, products = run.state["space"], run.state["products"]
        else:
            basis = orthogonal(run.probes(10**6, 1, "normal"), np.empty((run.n, 0)))
            products = run @ basis
        while True:
            q, r = np.linalg.qr(products)
            if (sigma := float(np.linalg.svd(r, compute_uv=False)[-1])) <= singular:
                return sigma, 0.0, "tol"
            inverse = np.linalg.solve(r.T, basis.T @ q).T
            values, turn = np.linalg.eigh((inverse + inverse.T) / 2)
            weights = np.linalg.solve(r, turn[:, np.argmax(np.abs(values))])
            weights /= np.linalg.norm(weights)
            x, hx = basis @ weights, products @ weights
            value = float(x @ hx)
            residual = float(np.linalg.norm(hx - value * x))
            if np.hypot(value, residual) < np.hypot(*best):
                best = np.array([value, residual])
            if residual <= tol * abs(value):
                return value, residual, "tol"
            if basis.shape[1] == min(run.n, _MOST):
                return float(best[0]), float(best[1]), "stagnation"
            save = partial(
                run.save, top=top, ended=ended, best=best, space=basis, products=products
            )
            if solver is None:
                nearly_null = np.linalg.norm(hx) <= 10 * run.eps**0.5 * abs(top[0])
                solver = MinimalResiduals.at(
                    np.zeros(run.n), (hx - value * x) / residual if nearly_null else x
                )
                save()
            new = orthogonal(_solution(run, solver, 0.1 * tol, save)[:, None], basis)
            basis, products, solver = (
                np.hstack([basis, new]),
                np.hstack([products, run @ new]),
                None,
            )
    except BudgetSpent:
        return float(best[0]), float(best[1]), "budget"


def _solution(
    run: Run, solver: MinimalResiduals, tol: float, save: Callable[..., None]
) -> np.ndarray:
    """x with H x = b, as far as the budget goes less one product; the residual where H maps that
    nearly to zero.
    """
    while solver.size > tol and run.remaining > 1:
        if solver.step(run) is not None:
            return solver.r if solver.size > tol else solver.x
        if run.num_products % SAVED_EVERY == 0:
            save(**vars(solver))
    return solver.x
