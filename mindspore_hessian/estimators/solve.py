"""Linear systems with a symmetric operator."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator, lsmr

from mindspore_hessian.arguments import (
    as_reals,
    check_choice,
    check_integer,
    check_real,
    check_vector,
    shown,
)
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import Run, fingerprint
from mindspore_hessian.estimators._krylov import (
    SAVED_EVERY,
    BlockGradients,
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

_STEPPERS: dict[str, Any] = {
    "cg": ConjugateGradients,
    "minres": MinimalResiduals,
    "neumann": Neumann,
}
_LEAST = {"cg": 2, "minres": 2, "neumann": 4, "lsmr": 7}


def solve(
    op: Any,
    b: Any,
    damping: float = 0.0,
    method: Literal["cg", "minres", "neumann", "lsmr"] = "cg",
    tol: float = 1e-6,
    max_products: int = 1000,
    learning_rate: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
    preconditioner: Any = None,
    rank: int = 50,
) -> Solution:
    r"""Solution of :math:`(H + d I) x = b`, without the matrix, for one right-hand side or several.

    ``"cg"`` is for positive definite systems: it stops at the first direction with
    :math:`p^T (H + d I) p \le 0` (to rounding), and returns the iterate before it and that
    direction. ``"minres"`` takes indefinite systems. ``"lsmr"`` gives the least-squares solution of
    singular ones, at two products a step. ``"neumann"`` is the series of
    :math:`x \leftarrow x + \eta (b - (H + d I) x)`, which needs eigenvalues between 0 and
    :math:`2 / \eta`.

    Several right-hand sides are the columns of `b`, for "cg". They are solved together: all search
    one common Krylov space, in which each step costs a product for each of the directions.
    Right-hand sides that depend on each other share them: duplicates cost one direction together,
    zeros none, and more than n columns n; each column has a product for its residual. Where many
    steps are needed, that takes several times fewer products than one solution after another
    (measured in docs/structured.md). Where one column needs many steps and the others few, it takes
    more, since all go on to the end.

    The returned residual is recomputed from a product of its own. Where it is above `tol` though
    the recurrence is not, the solver starts again from the iterate; where that does not halve it,
    it stops by "stagnation" and returns the better of the two. "minres" stops by "least squares"
    where H maps the residual nearly to zero (square root of the rounding unit): b is then out of
    reach, or within reach of negligible eigenvalues only.

    An operator with structure (see `mindspore_hessian.linops`) that is positive definite with the
    damping is not iterated with but inverted, whatever the method: `stopped_by` is "exact".

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        b: right-hand side, of shape (n,), or k of them as the columns of (n, k), for "cg".
        damping: d, any finite number.
        method: ``"cg"``, ``"minres"``, ``"lsmr"`` or ``"neumann"``.
        tol: goal for ``||b - (H + d I) x|| / ||b||``, of each column.
        max_products: budget, at least 2 (4 for "neumann", 7 for "lsmr", 2 k for k columns), for all
            columns together.
        learning_rate: :math:`\eta` of "neumann"; where None, one over the largest eigenvalue,
            estimated by Lanczos.
        seed: of that estimate.
        progress: as for `trace`.
        checkpoint: as for `trace`, after each 20 steps; not for "lsmr", and not with a
            preconditioner.
        preconditioner: for "cg" and "minres", an operator M that approximates
            :math:`(H + d I)^{-1}` (for an indefinite H: the inverse of its absolute value) and is
            positive definite, such as ``inverse(KFACOperator(...), damping)``, or "nystrom": of
            `rank` random columns, for an H without negative eigenvalues that decay. It pays where
            many steps are needed, which is not known beforehand; a poor one costs steps. The
            products for "nystrom" count with the others; the residual is the true one. "minres"
            then minimises :math:`r^T M r`, and its "least squares" is meant in that norm.
        rank: of "nystrom"; n, where that is less.

    Returns:
        Solution; for several right-hand sides x has shape (n, k), and the residual is that of the
        worst column.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Hestenes and E. Stiefel, Methods of conjugate gradients, J. Res. NBS 49(6), 1952. C.
        Paige and M. Saunders, Solution of sparse indefinite systems of linear equations, SIAM J.
        Numer. Anal. 12(4), 1975. D. Fong and M. Saunders, LSMR, SIAM J. Sci. Comput. 33(5), 2011.
        D. O'Leary, The block conjugate gradient algorithm and related methods, Lin. Alg. Appl. 29,
        1980. A. Dubrulle, Retooling the method of block conjugate gradients, ETNA 12, 2001.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import solve
        >>> found = solve(np.diag([1.0, 3.0]), np.array([2.0, 2.0]), damping=1.0)
        >>> print(found.x.round(6), found.stopped_by)
        [1.  0.5] tol
        >>> solve(np.diag([1.0, 3.0]), np.eye(2), damping=1.0).x.round(6)
        array([[0.5 , 0.  ],
               [0.  , 0.25]])
    """
    check_choice("method", method, _LEAST)
    right = _right_hand_sides(b, dimension_of(op), method)
    check_real("damping", damping, -np.inf)
    check_real("tol", tol)
    several = right.shape[1] if right.ndim == 2 else 1
    check_integer(
        "max_products",
        max_products,
        several * _LEAST[method],
        None,
        f" for method {method!r}" + (f" and {several} right-hand sides" if right.ndim == 2 else ""),
    )
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
        if method != "neumann":
            raise ValueError(
                f"learning_rate is for method 'neumann', but method is {method!r}: leave it None"
            )
    if preconditioner is not None:
        check_preconditioner(preconditioner, rank, dimension_of(op))
        _check_goes_with(method, checkpoint)
        rank = min(rank, dimension_of(op))
    if method == "lsmr" and checkpoint is not None:
        raise ValueError(
            "checkpoint is not for method 'lsmr': leave it None, or take method 'minres'"
        )
    with Run(
        "solve",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        damping=float(damping),
        method=method,
        tol=tol,
        learning_rate=learning_rate,
        b=fingerprint(right),
        **({"columns": several} if right.ndim == 2 else {}),
    ) as run:
        if not right.any():
            return Solution(np.zeros(right.shape), 0.0, True, None, 0, run.seconds, "tol")
        if run.structured and run.op.definite(damping):
            x = run.op.inverse(damping).columns(right.reshape(run.n, -1)).reshape(right.shape)
            lengths = np.linalg.norm(right, axis=0)
            residual = _worst((right - run @ x) / np.where(lengths > 0, lengths, 1.0))
            return Solution(
                x, residual, residual <= tol, None, run.num_products, run.seconds, "exact"
            )
        if isinstance(preconditioner, str):
            least = rank + 2 * several
            if least > max_products:
                raise ValueError(
                    f"max_products must be at least rank + 2{' k' * (several > 1)} = {least} for "
                    f"preconditioner 'nystrom', but got {max_products}"
                )
            run.precondition = nystrom_preconditioner(*approximation(run, rank), float(damping))
        elif preconditioner is not None:
            run.precondition = _applied(preconditioner)
        if right.ndim == 2:
            x, residual, direction, reason = _together(run, right, tol)
        elif method == "lsmr":
            x, residual, direction, reason = _least_squares(run, right, tol)
        else:
            preconditioned = method == "cg" and preconditioner is not None
            stepper = PreconditionedGradients if preconditioned else _STEPPERS[method]
            x, residual, direction, reason = _iterate(run, right, tol, stepper, learning_rate)
    return Solution(x, residual, residual <= tol, direction, run.num_products, run.seconds, reason)


def _right_hand_sides(b: Any, n: int, method: str) -> np.ndarray:
    """A vector, or a matrix of columns, in float64."""
    right = as_reals("b", b)
    if right.ndim != 2:
        return check_vector("b", right, n)
    if len(right) != n or not right.shape[1]:
        raise ValueError(
            f"b must have shape ({n},) or ({n}, k), as op is {n} x {n}, but has shape {right.shape}"
        )
    if not np.isfinite(right).all():
        raise ValueError("b must be finite, but holds NaN or Inf")
    if method != "cg":
        raise ValueError(
            f"b of several columns is for method 'cg', but method is {method!r}: solve for each "
            "column by itself"
        )
    return right


def _worst(r: np.ndarray) -> float:
    """The norm of a vector, or the largest of those of columns."""
    return float(np.linalg.norm(r, axis=0).max())


def check_preconditioner(preconditioner: Any, rank: Any, n: int) -> None:
    """Raise where it is none for an operator of n rows, or `rank` no rank."""
    if isinstance(preconditioner, str):
        check_choice("preconditioner", preconditioner, ("nystrom",))
    elif getattr(preconditioner, "shape", None) != (n, n) or not hasattr(
        preconditioner, "__matmul__"
    ):
        raise ValueError(
            f"preconditioner must be None, 'nystrom' or an operator or array of shape {(n, n)}, "
            f"that of the matrix, but got {shown(preconditioner)}"
        )
    check_integer("rank", rank, 1)


def _check_goes_with(method: str, checkpoint: Any) -> None:
    """Raise where a preconditioner does not."""
    if method not in ("cg", "minres"):
        raise ValueError(
            f"preconditioner is for methods 'cg' and 'minres', but method is {method!r}: leave it "
            "out"
        )
    if checkpoint is not None:
        raise ValueError("checkpoint does not go with a preconditioner: leave one of them out")


def _applied(preconditioner: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The product with a vector or a matrix; column by column, where it takes vectors only."""

    def apply(r: np.ndarray) -> np.ndarray:
        try:
            product = as_reals("the product of preconditioner with an array", preconditioner @ r)
            if product.shape != r.shape:
                raise ValueError(
                    f"preconditioner @ an array of shape {r.shape} must have that shape, but has "
                    f"{product.shape}"
                )
            if not np.isfinite(product).all():
                raise ValueError(
                    "preconditioner returned NaN or Inf for a residual: it must be a positive "
                    "definite matrix"
                )
            return product
        except (TypeError, ValueError):
            if r.ndim == 1:
                raise
        return np.stack([apply(column) for column in r.T], axis=1)

    return apply


def _together(
    run: Run, b: np.ndarray, tol: float
) -> tuple[np.ndarray, float, np.ndarray | None, str]:
    """The columns that are not 0, scaled to length 1."""
    lengths, x = np.linalg.norm(b, axis=0), np.zeros(b.shape)
    there = lengths > 0
    found, residual, direction, reason = _iterate(
        run, b[:, there] / lengths[there], tol, BlockGradients, None
    )
    x[:, there] = found * lengths[there]
    return x, residual, direction, reason


def _iterate(
    run: Run, b: np.ndarray, tol: float, stepper: Any, learning_rate: float | None
) -> tuple[np.ndarray, float, np.ndarray | None, str]:
    """Steps until the recurrence says that it is done, and again while true residuals at least
    halve.

    Columns of `b` are all of length 1; the residual is that of the worst.
    """
    goal, best, best_x, steps, columns = _worst(b), np.inf, np.zeros(b.shape), 0, b.size // run.n
    if "x" in run.state:
        solver, steps = restored(stepper, run.state), int(run.state["steps"])
        best, best_x = float(run.state["best"]), run.state["best_x"]
    else:
        if stepper is Neumann and learning_rate is None:
            pairs = extreme_pairs(run, 1, "LA", 0.05, 24)
            if pairs.values[0] <= 0:
                return np.zeros(run.n), 1.0, pairs.vectors[:, 0], "negative curvature"
            learning_rate = 1.0 / float(pairs.values[0] + pairs.residuals[0])
        solver = stepper.at(np.zeros(b.shape), b, learning_rate or 0.0)
    reason = None
    while True:
        while (
            reason is None
            and solver.size > 0.8 * tol * goal
            and run.remaining >= solver.width + columns
        ):
            reason, steps = solver.step(run), steps + 1
            if reason is None and steps % SAVED_EVERY == 0:
                run.save(**vars(solver), best=best, best_x=best_x, steps=steps)
        if not run.remaining:  # nothing is left after the estimate of the learning rate
            return solver.x, float(np.linalg.norm(solver.r)) / goal, None, "budget"
        r = b - run @ solver.x
        residual = _worst(r) / goal
        if residual <= tol:
            return solver.x, residual, None, "tol"
        if reason is not None:
            return solver.x, residual, solver.p if reason == "negative curvature" else None, reason
        spent = solver.size > 0.8 * tol * goal or run.remaining < 1 + columns
        if spent or residual > 0.5 * best:
            x, residual = (solver.x, residual) if residual < best else (best_x, best)
            return x, residual, None, "budget" if spent else "stagnation"
        left = r * (np.linalg.norm(r, axis=0) > tol * goal)  # of the columns that are not there yet
        best, best_x, solver = residual, solver.x, stepper.at(solver.x, left, solver.learning_rate)


def _least_squares(run: Run, b: np.ndarray, tol: float) -> tuple[np.ndarray, float, None, str]:
    """LSMR, and again for the residual that it leaves, while that at least halves."""
    matrix = LinearOperator(
        (run.n, run.n),
        matvec=lambda v: run @ v.ravel(),
        rmatvec=lambda v: run @ v.ravel(),
        dtype=np.dtype(np.float64),
    )
    x, best_x, best, goal, r = np.zeros(run.n), np.zeros(run.n), np.inf, float(np.linalg.norm(b)), b
    while True:
        # two products a step, two to begin with, and one for the residual. LSMR's own test allows
        # what atol makes of a large x, so that only a start from the residual, with tolerances
        # relative to that, comes below it
        step, istop = lsmr(
            matrix,
            r,
            atol=max(0.01 * tol, 10 * run.eps),
            maxiter=(run.remaining - 3) // 2,
            conlim=0,
            btol=max(0.5 * tol * goal / float(np.linalg.norm(r)), run.eps),
        )[:2]
        x = x + step
        r = b - run @ x
        residual = float(np.linalg.norm(r)) / goal
        if residual <= tol:
            return x, residual, None, "tol"
        reason = (
            "least squares"
            if istop in (0, 2, 5)
            else "budget"
            if istop == 7 or run.remaining < 7
            else "stagnation"
            if residual > 0.5 * best
            else None
        )
        if residual < best:
            best, best_x = residual, x
        if reason is not None:
            return best_x, best, None, reason
