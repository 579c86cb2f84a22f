"""The diagonal from products with random vectors, or from n products."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from mindspore_hessian.arguments import check_choice, check_integer, check_real
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import (
    FEWEST,
    Distribution,
    Run,
    check_probing,
    mean_and_error,
    stop_reason,
)
from mindspore_hessian.estimators._sketch import Sketch
from mindspore_hessian.estimators.results import Estimate


def diagonal(
    op: Any,
    method: Literal["hutchinson", "xdiag", "exact"] = "hutchinson",
    tol: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    batch: int = 8,
    distribution: Distribution = "rademacher",
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Estimate:
    r"""Diagonal of a symmetric operator, :math:`diag(H) = E\, z \odot (H z)`.

    ``"hutchinson"`` averages z * (H z); the variance of an entry for Rademacher probes is the sum
    of squares of its row off the diagonal. ``"xdiag"`` takes the diagonal exactly on the range of
    the products, with each probe left out in turn, and samples the rest: better where the spectrum
    decays. ``"exact"`` multiplies the identity, but for the Gauss-Newton and Fisher operators of a
    network pulls back the vectors of which the curvature at the output of each sample is made, at
    most as many as it has outputs, for all samples of a batch at once: a gradient each, and no
    product. An operator with structure (see `mindspore_hessian.linops`) knows its diagonal, without
    products.

    The standard error is that of independent samples for "hutchinson"; for "xdiag" it comes from
    the spread of the leave-one-out values, which depend on each other: somewhat too small. Costs
    `max_products` products, or fewer with `tol`; n, or none, for "exact". "xdiag" holds about 1.5
    `max_products` vectors.

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        method: ``"hutchinson"``, ``"xdiag"`` or ``"exact"``.
        tol: stop once ``||standard_error|| <= tol * ||value||``, looked at after ten samples; None
            spends the budget.
        max_products: budget, at least 2, 4 for "xdiag", n for "exact"; where None, 128 (n for
            "exact").
        seed: of the probes.
        batch: columns in one product with a matrix.
        distribution: ``"rademacher"``, ``"normal"`` or ``"sphere"``; "xdiag" takes "rademacher"
            only.
        progress: True shows a bar at once, None after two seconds, False never.
        checkpoint: a file name. The state is saved there after each block, and a call with the same
            arguments goes on from it to the same numbers.

    Returns:
        Estimate with arrays of shape (n,).

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        C. Bekas, E. Kokiopoulou and Y. Saad, An estimator for the diagonal of a matrix, Appl.
        Numer. Math. 57, 2007.
        E. Epperly, J. Tropp and R. Webber, XTrace: making the most of every sample in stochastic
            trace estimation,
        SIAM J. Matrix Anal. Appl. 45(1), 2024 (XDiag).

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import diagonal
        >>> found = diagonal(np.array([[2.0, 1.0], [1.0, 3.0]]), method="exact")
        >>> print(found.value, found.num_products)
        [2. 3.] 2
    """
    check_choice("method", method, _DIAGONALS)
    n, (estimator, least) = dimension_of(op), _DIAGONALS[method]
    least = n if method == "exact" else least
    max_products = max(128, least) if max_products is None else max_products
    check_integer("max_products", max_products, least, None, f" for method {method!r}")
    if method == "xdiag" and distribution != "rademacher":
        raise ValueError(
            f"distribution must be 'rademacher' for method 'xdiag', but got {distribution!r}"
        )
    if tol is not None:
        check_real("tol", tol, strict=False)
    with Run(
        "diagonal",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        method=method,
        tol=tol,
        batch=batch,
        distribution=distribution,
    ) as run:
        check_probing(run, distribution, batch)
        value, error, reason = (
            (run.op.diagonal(), np.zeros(n), "exact")
            if run.structured
            else estimator(run, tol, batch, distribution)
        )
    return Estimate(value, error, run.num_products, run.seconds, seed, reason)


def _hutchinson(
    run: Run, tol: float | None, batch: int, distribution: str
) -> tuple[np.ndarray, np.ndarray, str]:
    mean, squares = (
        run.state.get("mean", np.zeros(run.n)),
        run.state.get("squares", np.zeros(run.n)),
    )
    count = int(run.state.get("count", 0))
    while True:
        if count:
            error = (
                np.sqrt(squares / (count * (count - 1))) if count > 1 else np.full(run.n, np.inf)
            )
            if reason := stop_reason(mean, error, tol, count, run.remaining):
                return mean, error, reason
        z = run.probes(count, min(batch, run.remaining), distribution)
        samples = z * (run @ z)
        here, size = samples.mean(axis=1), samples.shape[1]
        step, total = here - mean, count + size
        squares = (
            squares
            + ((samples - here[:, None]) ** 2).sum(axis=1)
            + step**2 * (count * size / total)
        )
        mean, count = mean + step * (size / total), total
        run.save(mean=mean, squares=squares, count=count)


def _xdiag(
    run: Run, tol: float | None, batch: int, distribution: str
) -> tuple[np.ndarray, np.ndarray, str]:
    sketch = Sketch(run, distribution)
    while True:
        affordable = min(batch, run.remaining // 2, run.n - sketch.size)
        if affordable < 1 or (tol is not None and sketch.size >= FEWEST):
            value, error = _leave_one_out(sketch)
            if reason := stop_reason(value, error, tol, sketch.size, affordable):
                return value, error, "exact" if sketch.size == run.n else reason
        sketch.grow(affordable)


def _leave_one_out(sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    """diag(Q_(i) Q_(i)^T A) and the sampled diagonal of the rest, (I - Q_(i) Q_(i)^T) A."""
    inside, s = np.einsum("ij,ij->i", sketch.q, sketch.z), sketch.left()
    if sketch.size == len(inside):
        return inside, np.zeros_like(inside)
    qs, outside = sketch.q @ s, np.einsum("ij,ij->j", s, sketch.r)
    samples = qs * (sketch.omega * outside - sketch.z @ s)  # a Rademacher probe is its own inverse
    value, error = mean_and_error(samples.T)
    return inside + value, error


def _exact(
    run: Run, tol: float | None, batch: int, distribution: str
) -> tuple[np.ndarray, np.ndarray, str]:
    by_itself = getattr(run.op, "exact_diagonal", None)
    known = by_itself() if callable(by_itself) and not run.state else None
    if known is not None:
        return known, np.zeros(run.n), "exact"
    value = run.state.get("value", np.zeros(run.n))
    for start in range(int(run.state.get("done", 0)), run.n, batch):
        columns = np.arange(start, min(start + batch, run.n))
        unit = np.zeros((run.n, len(columns)))
        unit[columns, columns - start] = 1.0
        value[columns] = (run @ unit)[columns, columns - start]
        run.save(value=value, done=columns[-1] + 1)
    return value, np.zeros(run.n), "exact"


_DIAGONALS = {"hutchinson": (_hutchinson, 2), "xdiag": (_xdiag, 4), "exact": (_exact, 1)}
