"""What the curvature at a point says, in words and numbers, and what it does not."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import check_integer, check_real, check_vector
from mindspore_hessian.estimators import (
    ConditionNumber,
    NegativeCurvature,
    condition_number,
    eigsh,
    negative_curvature,
)
from mindspore_hessian.estimators._checks import dimension_of, dtype_of, epsilon_of
from mindspore_hessian.linops import Operator
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.hessian import HessianOperator

EDGE = 0.05  # sharpness within this share of 2 / learning rate is at the edge of stability


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What `diagnose` found. Printing it shows the statements.

    Attributes:
        point: "minimum", "saddle", "maximum", "not stationary", or "unknown" where it cannot be
            concluded.
        stability: of gradient descent at the learning rate: "stable", "edge", "unstable", or
            "unknown".
        loss, gradient_norm: None where not known.
        learning_rate, threshold: threshold is 2 / learning_rate; None where not given.
        sharpness, sharpness_residual, sharpness_converged: the largest eigenvalue; a lower bound if
            not converged.
        negative_curvature: NegativeCurvature: the smallest eigenvalue, with its vector as the
            certificate.
        condition: ConditionNumber.
        num_products, seconds, seed: the cost, and the seed of the start vectors.
        statements: the same in words.
    """

    point: str
    stability: str
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    threshold: float | None
    sharpness: float
    sharpness_residual: float
    sharpness_converged: bool
    negative_curvature: NegativeCurvature
    condition: ConditionNumber
    num_products: int
    seconds: float
    seed: int
    statements: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.statements)


@interruptible
def diagnose(
    op: Any,
    learning_rate: float | None = None,
    *,
    gradient: Any = None,
    gradient_tol: float = 1e-3,
    tol: float = 1e-3,
    max_products: int = 500,
    seed: int = 0,
    progress: bool | None = None,
) -> Diagnosis:
    r"""Gradient, sharpness against 2 / learning rate, negative curvature and condition number, in
    words and numbers.

    Gradient descent with step :math:`\eta` on a quadratic diverges along each eigenvector with
    :math:`\lambda > 2 / \eta`. In training the sharpness often rises to that and stays there, the
    edge of stability. A Rayleigh quotient bounds the largest eigenvalue from below and the smallest
    from above, so "unstable" and negative curvature are proved up to rounding, whether or not
    Lanczos has converged. That the sharpness is below the edge, and that no curvature is negative,
    is evidence only; without convergence it is not concluded.

    Costs three searches of at most `max_products` products each, and one gradient.

    Args:
        op: a symmetric operator, as for `eigsh`.
        learning_rate: None: nothing is said about stability.
        gradient: flat, or shaped like the weights; None: asked of the operator, if it knows it.
        gradient_tol: a gradient of at most this norm counts as zero. It has a unit: choose it by
            your loss.
        tol: relative tolerance of the eigenvalues.
        max_products: budget of each search, at least 10.
        seed: of the start vectors.
        progress: as for `eigsh`.

    Returns:
        Diagnosis.

    Raises:
        TypeError, ValueError: a wrong argument, a product with NaN or Inf.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Cohen et al., Gradient descent on neural networks typically occurs at the edge of
        stability, ICLR 2021. Y. Dauphin et al., Identifying and attacking the saddle point problem
        in high-dimensional non-convex optimization, NeurIPS 2014.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.tools.diagnose import diagnose
        >>> found = diagnose(np.diag([8.0, 2.0]), learning_rate=0.1, gradient=np.zeros(2))
        >>> print(found.point, found.stability, round(found.condition.value, 6))
        minimum stable 4.0
        >>> print(diagnose(np.diag([8.0, -2.0]), learning_rate=0.5, gradient=np.zeros(2)).statements[2])
        Stability: unstable. The sharpness is 2 times 2 / learning rate = 4: gradient descent diverges along its vector.
    """
    n, started = dimension_of(op), time.perf_counter()
    for name, value in (("tol", tol), ("gradient_tol", gradient_tol)):
        check_real(name, value)
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
    check_integer("max_products", max_products, 10)
    norm, loss = _gradient(op, gradient, n)
    common: dict[str, Any] = {"seed": seed, "max_products": max_products, "progress": progress}
    top = eigsh(op, 1, "LA", tol=tol, **common)
    sharpness, residual, converged = (
        float(top.eigenvalues[0]),
        float(top.residuals[0]),
        bool(top.converged[0]),
    )
    condition = condition_number(op, tol, **common)
    eps = epsilon_of(dtype_of(op))
    finer = float(np.clip(0.3 / condition.value, 30 * eps, tol)) if condition.resolved else tol
    negative = negative_curvature(op, finer, **common)  # finer than the eigenvalue next to zero

    threshold, scope = None if learning_rate is None else 2 / learning_rate, _scope(op)
    slope_words = _about_gradient(norm, loss, gradient_tol)
    stability, stability_words = _about_stability(sharpness, residual, converged, threshold, scope)
    floor = 10 * eps * max(abs(sharpness), abs(negative.value))
    shape, shape_words = _about_shape(
        negative, condition, floor, sharpness + residual < -floor and converged, sharpness > floor
    )
    if scope == "substitute" or (scope == "blocks" and shape != "saddle"):
        shape = "unknown"
    point = "unknown" if norm is None else shape if norm <= gradient_tol else "not stationary"
    statements = (
        slope_words,
        _about_sharpness(sharpness, residual, converged, top.num_products),
        stability_words,
        shape_words,
        _about_condition(condition),
        _verdict(point, norm, shape),
        *_limits(op),
    )
    return Diagnosis(
        point,
        stability,
        loss,
        norm,
        learning_rate,
        threshold,
        sharpness,
        residual,
        converged,
        negative,
        condition,
        top.num_products + negative.num_products + condition.num_products,
        time.perf_counter() - started,
        seed,
        statements,
    )


def _gradient(op: Any, gradient: Any, n: int) -> tuple[float | None, float | None]:
    """Its norm, and the loss."""
    loss = None
    if gradient is None and hasattr(op, "gradient_and_loss"):
        gradient, loss = op.gradient_and_loss()
    if gradient is None:
        return None, None
    shaped = isinstance(op, Operator) and isinstance(gradient, tuple | list) and len(gradient) != n
    return float(
        np.linalg.norm(check_vector("gradient", op.flatten(gradient) if shaped else gradient, n))
    ), loss


def _about_gradient(norm: float | None, loss: float | None, gradient_tol: float) -> str:
    if norm is None:
        return "Gradient: not known; pass gradient=."
    at = "" if loss is None else f" at a loss of {loss:.4g}"
    compared = "at most" if norm <= gradient_tol else "above"
    return f"Gradient: norm {norm:.4g}{at}, {compared} gradient_tol = {gradient_tol:g}" + (
        ", so it counts as zero." if norm <= gradient_tol else "."
    )


def _about_sharpness(sharpness: float, residual: float, converged: bool, products: int) -> str:
    if converged:
        return f"Sharpness: the largest eigenvalue is {sharpness:.4g} (residual {residual:.1e}, {products} products)."
    return (
        f"Sharpness: the largest eigenvalue is at least {sharpness:.4g}; more cannot be concluded, "
        f"as the search has not converged in {products} products (residual {residual:.1e})."
    )


def _about_stability(
    sharpness: float, residual: float, converged: bool, threshold: float | None, scope: str
) -> tuple[str, str]:
    if threshold is None:
        return "unknown", "Stability: cannot be concluded without a learning rate."
    ratio = sharpness / threshold
    compared = f"The sharpness is {ratio:.3g} times 2 / learning rate = {threshold:.4g}"
    if ratio > 1 + EDGE:
        return (
            "unstable",
            f"Stability: unstable. {compared}: gradient descent diverges along its vector.",
        )
    if not converged:
        return (
            "unknown",
            f"Stability: cannot be concluded. {compared}, but it is only a lower bound.",
        )
    if scope == "blocks":
        return (
            "unknown",
            f"Stability: cannot be concluded. {compared}, but only that of the diagonal blocks.",
        )
    if sharpness <= 0:
        return "unknown", (
            "Stability: cannot be concluded. No curvature is positive, so 2 / learning rate bounds "
            "nothing."
        )
    if ratio >= 1 - EDGE:
        return "edge", f"Stability: at the edge. {compared}, that is within {EDGE:.0%}."
    if (sharpness + residual) / threshold > 1 - EDGE:
        return (
            "unknown",
            f"Stability: cannot be concluded. {compared}, but its residual reaches the edge.",
        )
    return "stable", f"Stability: stable. {compared}."


def _about_shape(
    negative: NegativeCurvature,
    condition: ConditionNumber,
    floor: float,
    all_negative: bool,
    some_positive: bool,
) -> tuple[str, str]:
    """What the point is if the gradient is zero."""
    found = f"smallest Rayleigh quotient {negative.value:.4g}, residual {negative.residual:.1e}"
    if negative.found or condition.smallest < -floor:
        proof = (
            f"v^T H v = {negative.value:.4g} for the unit vector negative_curvature.vector"
            if negative.found
            else f"inverse iteration met a Rayleigh quotient of {condition.smallest:.4g}"
        )
        if all_negative:
            return (
                "maximum",
                f"Curvature: negative in all directions, as far as Lanczos sees ({proof}).",
            )
        return ("saddle" if some_positive else "unknown"), (
            f"Curvature: negative in some direction: {proof}"
            + ("." if some_positive else "; whether it is positive in another cannot be concluded.")
        )
    if not negative.converged:
        return "unknown", (
            f"Curvature: whether it is negative somewhere cannot be concluded: none found, but the "
            f"search has not converged in {negative.num_products} products ({found})."
        )
    if condition.stopped_by == "singular":
        return "unknown", (
            "Curvature: none negative found, but zero to working precision in some direction "
            f"({found}): higher derivatives decide there, so minimum or saddle cannot be concluded."
        )
    if negative.value - negative.residual <= floor:
        return "unknown", (
            f"Curvature: none negative found, but too near to zero to tell its sign ({found}), so "
            "minimum or saddle cannot be concluded."
        )
    return "minimum", (
        f"Curvature: positive in all directions, as far as Lanczos sees ({found}). This is "
        "evidence, no proof."
    )


def _about_condition(condition: ConditionNumber) -> str:
    if condition.resolved:
        return (
            f"Condition number: {condition.value:.4g}, from eigenvalues {condition.largest:.4g} "
            f"and {condition.smallest:.4g}."
        )
    why = (
        "the operator is singular to working precision"
        if condition.stopped_by == "singular"
        else (f"the search ended by {condition.stopped_by} after {condition.num_products} products")
    )
    return f"Condition number: at least {condition.value:.4g}; more cannot be concluded, as {why}."


def _verdict(point: str, norm: float | None, shape: str) -> str:
    if norm is None:
        known = "" if shape == "unknown" else f"; with a zero gradient it is a {shape}"
        return f"Point: cannot be concluded without the gradient{known}."
    if point == "not stationary":
        return "Point: not stationary, so neither minimum nor saddle; the curvature is that on the way."
    return "Point: cannot be concluded." if point == "unknown" else f"Point: a {point}."


def _behind(op: Any) -> list[CurvatureOperator]:
    """The curvature operators in a sum, multiple or product."""
    return [one for one in getattr(op, "atoms", ()) if isinstance(one, CurvatureOperator)]


def _scope(op: Any) -> str:
    """Whether the operator is the "whole" matrix, only "blocks" of it, or a "substitute" for the
    Hessian.
    """
    if not all(isinstance(one, HessianOperator) for one in _behind(op)):
        return "substitute"
    return "blocks" if any(one.block_diagonal for one in _behind(op)) else "whole"


def _limits(op: Any) -> list[str]:
    """What the operator leaves out."""
    said = [
        "Limits: the bound 2 / learning rate is that of full-batch gradient descent without "
        "momentum; heavy-ball momentum b has 2 (1 + b) / learning rate, and minibatches and Adam "
        "have others."
    ]
    for one in _behind(op):
        said.append(
            f"Limits: this is about the {one.num_data} samples and the {one.shape[0]} weights of "
            "the operator."
        )
        if not isinstance(one, HessianOperator):
            said.append(
                f"Limits: {type(one).__name__} is not the Hessian, whose negative curvature it "
                "leaves out, so a minimum and a saddle look alike; HessianOperator tells them "
                "apart."
            )
        if one.block_diagonal:
            said.append(
                f"Limits: only the diagonal blocks by {one.block_diagonal}: the whole matrix may "
                "be sharper, and negative where no block is."
            )
        if active := one.in_training():
            said.append(
                f"Limits: {', '.join(active[:5])} in training mode; network.set_train(False) gives "
                "the network that is used later."
            )
    return said
