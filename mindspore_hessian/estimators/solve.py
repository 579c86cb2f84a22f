"""Linear systems with a symmetric operator."""
from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr

from mindspore_hessian.arguments import check_choice, check_integer, check_real, check_vector, shown
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import Run, fingerprint
from mindspore_hessian.estimators._krylov import (
    SAVED_EVERY,
    ConjugateGradients,
    MinimalResiduals,
    Neumann,
    PreconditionedGradients,
    restored,
)
from mindspore_hessian.estimators._nystrom import approximation
from mindspore_hessian.estimators._nystrom import preconditioner as nystrom_preconditioner
from mindspore_hessian.estimators.eigen import extreme_pairs
from mindspore_hessian.estimators.results import Solution

_STEPPERS: dict[str, Any] = {"cg": ConjugateGradients, "minres": MinimalResiduals, "neumann": Neumann}
_LEAST = {"cg": 2, "minres": 2, "neumann": 4, "lsmr": 7}


def solve(op: Any, b: Any, damping: float = 0.0, method: Literal["cg", "minres", "neumann", "lsmr"] = "cg",
          tol: float = 1e-6, max_products: int = 1000, learning_rate: float | None = None, seed: int = 0,
          progress: bool | None = None, checkpoint: str | os.PathLike | None = None, preconditioner: Any = None,
          rank: int = 50) -> Solution:
    r"""Solution of :math:`(H + d I) x = b`, without the matrix.

    ``"cg"`` is for positive definite systems: it stops at the first direction with :math:`p^T (H + d I) p \le 0` (to
    rounding), and returns the iterate before it and that direction. ``"minres"`` takes indefinite systems.
    ``"lsmr"`` gives the least-squares solution of singular ones, at two products a step. ``"neumann"`` is the
    series of :math:`x \leftarrow x + \eta (b - (H + d I) x)`, which needs eigenvalues between 0 and :math:`2 / \eta`.

    The returned residual is recomputed from a product of its own. Where it is above `tol` though the recurrence is
    not, the solver starts again from the iterate; where that does not halve it, it stops by "stagnation" and returns
    the better of the two. "minres" stops by "least squares" where H maps the residual nearly to zero (square root of
    the rounding unit): b is then out of reach, or within reach of negligible eigenvalues only.

    An operator with structure (see `mindspore_hessian.linops`) that is positive definite with the damping is not
    iterated with but inverted, whatever the method: `stopped_by` is "exact".

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        b: right-hand side, of shape (n,).
        damping: d, any finite number.
        method: ``"cg"``, ``"minres"``, ``"lsmr"`` or ``"neumann"``.
        tol: goal for ``||b - (H + d I) x|| / ||b||``.
        max_products: budget, at least 2 (4 for "neumann", 7 for "lsmr").
        learning_rate: :math:`\eta` of "neumann"; where None, one over the largest eigenvalue, estimated by Lanczos.
        seed: of that estimate.
        progress: as for `trace`.
        checkpoint: as for `trace`, after each 20 steps; not for "lsmr", and not with a preconditioner.
        preconditioner: for "cg", an operator that approximates :math:`(H + d I)^{-1}` and is positive definite
            (``inverse(KFACOperator(...), damping)``), or "nystrom": of `rank` random columns, for an H without negative
            eigenvalues that decay. It pays where many steps are needed, which is not known beforehand; a poor one
            costs steps. The products for "nystrom" count with the others; the residual is the true one.
        rank: of "nystrom"; n, where that is less.

    Returns:
        Solution.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN or Inf, a
            checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Hestenes and E. Stiefel, Methods of conjugate gradients, J. Res. NBS 49(6), 1952. C. Paige and M. Saunders,
        Solution of sparse indefinite systems of linear equations, SIAM J. Numer. Anal. 12(4), 1975. D. Fong and
        M. Saunders, LSMR, SIAM J. Sci. Comput. 33(5), 2011.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import solve
        >>> found = solve(np.diag([1.0, 3.0]), np.array([2.0, 2.0]), damping=1.0)
        >>> print(found.x.round(6), found.stopped_by)
        [1.  0.5] tol
    """
    check_choice("method", method, _LEAST)
    right = check_vector("b", b, dimension_of(op))
    check_real("damping", damping, -np.inf)
    check_real("tol", tol)
    check_integer("max_products", max_products, _LEAST[method], None, f" for method {method!r}")
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
        if method != "neumann":
            raise ValueError(f"learning_rate is for method 'neumann', but method is {method!r}: leave it None")
    if preconditioner is not None:
        _check_preconditioner(preconditioner, op, method, checkpoint)
        check_integer("rank", rank, 1)
        rank = min(rank, dimension_of(op))
    if method == "lsmr" and checkpoint is not None:
        raise ValueError("checkpoint is not for method 'lsmr': leave it None, or take method 'minres'")
    with Run("solve", op, seed=seed, max_products=max_products, progress=progress, checkpoint=checkpoint,
             damping=float(damping), method=method, tol=tol, learning_rate=learning_rate,
             b=fingerprint(right)) as run:
        if not right.any():
            return Solution(np.zeros(run.n), 0.0, True, None, 0, run.seconds, "tol")
        if run.structured and run.op.definite(damping):
            x = run.op.inverse(damping).columns(right[:, None])[:, 0]
            residual = float(np.linalg.norm(right - run @ x) / np.linalg.norm(right))
            return Solution(x, residual, residual <= tol, None, run.num_products, run.seconds, "exact")
        if isinstance(preconditioner, str):
            if rank + 2 > max_products:
                raise ValueError(f"max_products must be at least rank + 2 = {rank + 2} for preconditioner 'nystrom', "
                                 f"but got {max_products}")
            run.precondition = nystrom_preconditioner(*approximation(run, rank), float(damping))
        elif preconditioner is not None:
            run.precondition = _applied(preconditioner)
        stepper = _STEPPERS.get(method) if preconditioner is None else PreconditionedGradients
        x, residual, direction, reason = (_least_squares(run, right, tol) if method == "lsmr" else
                                          _iterate(run, right, tol, stepper, learning_rate))
    return Solution(x, residual, residual <= tol, direction, run.num_products, run.seconds, reason)


def _check_preconditioner(preconditioner: Any, op: Any, method: str, checkpoint: Any) -> None:
    if isinstance(preconditioner, str):
        check_choice("preconditioner", preconditioner, ("nystrom",))
    elif getattr(preconditioner, "shape", None) != (dimension_of(op),) * 2 or not hasattr(preconditioner, "__matmul__"):
        raise ValueError(f"preconditioner must be None, 'nystrom' or an operator or array of shape "
                         f"{(dimension_of(op),) * 2}, as op has it, but got {shown(preconditioner)}")
    if method != "cg":
        raise ValueError(f"preconditioner is for method 'cg', but method is {method!r}: leave it out")
    if checkpoint is not None:
        raise ValueError("checkpoint does not go with a preconditioner: leave one of them out")


def _applied(preconditioner: Any) -> Callable[[np.ndarray], np.ndarray]:
    def apply(r: np.ndarray) -> np.ndarray:
        return np.asarray(preconditioner @ r, np.float64)
    return apply


def _iterate(run: Run, b: np.ndarray, tol: float, stepper: Any,
             learning_rate: float | None) -> tuple[np.ndarray, float, np.ndarray | None, str]:
    """Steps until the recurrence says that it is done, and again while true residuals at least halve."""
    goal, best, best_x, steps = float(np.linalg.norm(b)), np.inf, np.zeros(run.n), 0
    if "x" in run.state:
        solver, steps = restored(stepper, run.state), int(run.state["steps"])
        best, best_x = float(run.state["best"]), run.state["best_x"]
    else:
        if stepper is Neumann and learning_rate is None:
            pairs = extreme_pairs(run, 1, "LA", 0.05, 24)
            if pairs.values[0] <= 0:
                return np.zeros(run.n), 1.0, pairs.vectors[:, 0], "negative curvature"
            learning_rate = 1.0 / float(pairs.values[0] + pairs.residuals[0])
        solver = stepper.at(np.zeros(run.n), b, learning_rate or 0.0)
    reason = None
    while True:
        while reason is None and solver.size > 0.8 * tol * goal and run.remaining > 1:
            reason, steps = solver.step(run), steps + 1
            if reason is None and steps % SAVED_EVERY == 0:
                run.save(**vars(solver), best=best, best_x=best_x, steps=steps)
        if not run.remaining:  # nothing is left after the estimate of the learning rate
            return solver.x, float(np.linalg.norm(solver.r)) / goal, None, "budget"
        r = b - run @ solver.x
        residual = float(np.linalg.norm(r)) / goal
        if residual <= tol:
            return solver.x, residual, None, "tol"
        if reason is not None:
            return solver.x, residual, solver.p if reason == "negative curvature" else None, reason
        spent = solver.size > 0.8 * tol * goal or run.remaining < 2
        if spent or residual > 0.5 * best:
            x, residual = (solver.x, residual) if residual < best else (best_x, best)
            return x, residual, None, "budget" if spent else "stagnation"
        best, best_x, solver = residual, solver.x, stepper.at(solver.x, r, solver.learning_rate)


def _least_squares(run: Run, b: np.ndarray, tol: float) -> tuple[np.ndarray, float, None, str]:
    """LSMR, and again for the residual that it leaves, while that at least halves."""
    matrix = LinearOperator((run.n, run.n), matvec=lambda v: run @ v.ravel(), rmatvec=lambda v: run @ v.ravel(),
                            dtype=np.dtype(np.float64))
    x, best_x, best, goal, r = np.zeros(run.n), np.zeros(run.n), np.inf, float(np.linalg.norm(b)), b
    while True:
        # two products a step, two to begin with, and one for the residual. LSMR's own test allows what atol makes of a
        # large x, so that only a start from the residual, with tolerances relative to that, comes below it
        step, istop = lsmr(matrix, r, atol=max(0.01 * tol, 10 * run.eps), maxiter=(run.remaining - 3) // 2, conlim=0,
                           btol=max(0.5 * tol * goal / float(np.linalg.norm(r)), run.eps))[:2]
        x = x + step
        r = b - run @ x
        residual = float(np.linalg.norm(r)) / goal
        if residual <= tol:
            return x, residual, None, "tol"
        reason = ("least squares" if istop in (0, 2, 5) else "budget" if istop == 7 or run.remaining < 7 else
                  "stagnation" if residual > 0.5 * best else None)
        if residual < best:
            best, best_x = residual, x
        if reason is not None:
            return best_x, best, None, reason
