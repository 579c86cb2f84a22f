"""The trace and the Frobenius norm from products with random vectors."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from mindspore_hessian.arguments import check_choice, check_integer, check_real
from mindspore_hessian.estimators._common import (
    FEWEST,
    Distribution,
    Run,
    check_probing,
    mean_and_error,
    sample,
    stop_reason,
)
from mindspore_hessian.estimators._search import orthogonal
from mindspore_hessian.estimators._sketch import Sketch
from mindspore_hessian.estimators.results import Estimate


def trace(
    op: Any,
    method: Literal["hutchinson", "hutch++", "xtrace"] = "hutchinson",
    tol: float | None = None,
    max_products: int = 128,
    seed: int = 0,
    batch: int = 8,
    distribution: Distribution = "rademacher",
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Estimate:
    r"""Trace of a symmetric operator from products with random vectors z,
    :math:`E\, z^T H z = tr(H)`.

    ``"hutchinson"`` averages z^T H z; its variance for Rademacher probes is twice the sum of
    squares off the diagonal. ``"hutch++"`` takes the trace exactly on the range of a third of the
    products and samples the rest. ``"xtrace"`` does so with each probe left out in turn, and is the
    best where the spectrum decays.

    The standard error is that of independent samples for "hutchinson", of the sampled remainder
    given the range for "hutch++", and for "xtrace" the authors' estimate from the spread of the
    leave-one-out values, which ignores that they depend on each other: it was 0.6 to 0.8 of the
    true error in our trials. An operator with structure (see `mindspore_hessian.linops`) knows its
    trace, whatever the method: the error is 0, and so is the number of products. Costs
    `max_products` products, or fewer with `tol`. "hutch++" and "xtrace" hold about `max_products`
    vectors.

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        method: ``"hutchinson"``, ``"hutch++"`` or ``"xtrace"``.
        tol: stop once ``standard_error <= tol * |value|``, looked at after ten samples; None spends
            the budget.
        max_products: budget, at least 2 for "hutchinson", 4 for "xtrace" and 6 for "hutch++".
        seed: of the probes; each probe has a generator of its own.
        batch: probes in one product with a matrix.
        distribution: ``"rademacher"``, ``"normal"`` or ``"sphere"`` (norm sqrt(n)). "xtrace" scales
            the remainder by the length of the probe outside of the range, as the paper advises,
            unless it is "rademacher".
        progress: True shows a bar at once, None after two seconds, False never.
        checkpoint: a file name. The state is saved there after each block, and a call with the same
            arguments goes on from it to the same numbers.

    Returns:
        Estimate with floats; `stopped_by` is "exact" where the range is the whole space, or the
        operator knows.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Hutchinson, A stochastic estimator of the trace of the influence matrix, Comm. Stat.
        19(2), 1990. R. Meyer, C. Musco, C. Musco and D. Woodruff, Hutch++: optimal stochastic trace
        estimation, SOSA 2021.
        E. Epperly, J. Tropp and R. Webber, XTrace: making the most of every sample in stochastic
            trace estimation,
        SIAM J. Matrix Anal. Appl. 45(1), 2024.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import trace
        >>> found = trace(np.diag([3.0, 2.0, 1.0]), max_products=16)
        >>> print(found.value, found.standard_error, found.num_products)
        6.0 0.0 16
    """
    check_choice("method", method, _TRACES)
    estimator, least = _TRACES[method]
    check_integer("max_products", max_products, least, None, f" for method {method!r}")
    if tol is not None:
        check_real("tol", tol, strict=False)
    with Run(
        "trace",
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
            (run.op.trace(), 0.0, "exact")
            if run.structured
            else estimator(run, tol, batch, distribution)
        )
    return Estimate(float(value), float(error), run.num_products, run.seconds, seed, reason)


def _hutchinson(
    run: Run, tol: float | None, batch: int, distribution: str
) -> tuple[float, float, str]:
    def measure(first: int, count: int) -> np.ndarray:
        z = run.probes(first, count, distribution)
        return np.einsum("ij,ij->j", z, run @ z)

    return sample(run, measure, tol, batch)[1:]


def _hutch_plus_plus(
    run: Run, tol: float | None, batch: int, distribution: str
) -> tuple[float, float, str]:
    assert run.max_products is not None
    rank = min(run.max_products // 3, run.n)
    empty = np.empty((run.n, 0))
    y, aq = run.state.get("y", empty), run.state.get("aq", empty)
    while y.shape[1] < rank:
        y = np.hstack(
            [y, run @ run.probes(y.shape[1], min(batch, rank - y.shape[1]), distribution)]
        )
        run.save(y=y)
    q = run.rounded(orthogonal(y, empty))
    while aq.shape[1] < rank:
        done = aq.shape[1]
        aq = np.hstack([aq, run @ q[:, done : min(done + batch, rank)]])
        run.save(y=y, aq=aq)
    inside = np.einsum("ij,ij->", q, aq)
    if rank == run.n:
        return inside, 0.0, "exact"

    def measure(first: int, count: int) -> np.ndarray:
        g = run.probes(rank + first, count, distribution)
        g = run.rounded(g - q @ (q.T @ g))
        return np.einsum("ij,ij->j", g, run @ g)

    return sample(
        run, measure, tol, batch, summary=lambda rest, error: (inside + rest, error), y=y, aq=aq
    )[1:]


def _xtrace(run: Run, tol: float | None, batch: int, distribution: str) -> tuple[float, float, str]:
    sketch = Sketch(run, distribution)
    while True:
        affordable = min(batch, run.remaining // 2, run.n - sketch.size)
        if affordable < 1 or (tol is not None and sketch.size >= FEWEST):
            value, error = _leave_one_out(sketch, distribution)
            reason = stop_reason(value, error, tol, sketch.size, affordable)
            if reason:
                return (value, 0.0, "exact") if sketch.size == run.n else (value, error, reason)
        sketch.grow(affordable)


def _leave_one_out(sketch: Sketch, distribution: str) -> tuple[float, float]:
    """Algorithm of section 2.1 in terms of H = Q^T A Q, W = Q^T Omega and R, for symmetric A."""
    n, k = sketch.q.shape
    h, w, s = sketch.q.T @ sketch.z, sketch.q.T @ sketch.omega, sketch.left()
    if k == n:
        return float(np.trace(h)), 0.0
    u = w - s * np.einsum("ij,ij->j", s, w)  # coordinates of Q_(i) Q_(i)^T omega_i
    rest = np.einsum("ij,ij->j", w - 2 * u, sketch.r) + np.einsum("ij,ij->j", u, h @ u)
    if distribution != "rademacher":
        rest *= (n - k + 1) / (
            np.einsum("ij,ij->j", sketch.omega, sketch.omega) - np.einsum("ij,ij->j", u, u)
        )
    samples = np.trace(h) - np.einsum("ij,ij->j", s, h @ s) + rest
    return mean_and_error(samples)


_TRACES = {"hutchinson": (_hutchinson, 2), "hutch++": (_hutch_plus_plus, 6), "xtrace": (_xtrace, 4)}


def frobenius_norm(
    op: Any,
    tol: float | None = None,
    max_products: int = 64,
    seed: int = 0,
    batch: int = 8,
    distribution: Distribution = "rademacher",
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Estimate:
    r"""Frobenius norm of an operator, :math:`\|H\|_F^2 = E \|H z\|^2`.

    The value is the square root of the mean over the probes, its standard error that of the mean
    divided by twice the value (the delta method). An operator with structure knows the norm, as its
    trace. Costs `max_products` products, or fewer with `tol`.

    Args:
        op: an operator with ``.shape`` (n, n) and ``@``.
        tol: stop once ``standard_error <= tol * value``, looked at after ten samples; None spends
            the budget.
        max_products: budget, at least 2.
        seed: of the probes.
        batch: probes in one product with a matrix.
        distribution: ``"rademacher"``, ``"normal"`` or ``"sphere"``.
        progress: as for `trace`.
        checkpoint: as for `trace`.

    Returns:
        Estimate with floats.

    Raises:
        TypeError, ValueError: as `trace`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Hutchinson, A stochastic estimator of the trace of the influence matrix, Comm. Stat.
        19(2), 1990, for H^2.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import frobenius_norm
        >>> print(frobenius_norm(np.diag([3.0, 4.0]), max_products=8).value)
        5.0
    """
    check_integer("max_products", max_products, 2)
    if tol is not None:
        check_real("tol", tol, strict=False)
    with Run(
        "frobenius_norm",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        tol=tol,
        batch=batch,
        distribution=distribution,
    ) as run:
        check_probing(run, distribution, batch)
        if run.structured:
            return Estimate(run.op.frobenius_norm(), 0.0, 0, run.seconds, seed, "exact")

        def measure(first: int, count: int) -> np.ndarray:
            products = run @ run.probes(first, count, distribution)
            return np.einsum("ij,ij->j", products, products)

        _, value, error, reason = sample(run, measure, tol, batch, summary=_root)
    return Estimate(value, error, run.num_products, run.seconds, seed, reason)


def _root(square: float, error: float) -> tuple[float, float]:
    value = float(np.sqrt(square))
    return value, float(error) / (2 * value) if value else 0.0
