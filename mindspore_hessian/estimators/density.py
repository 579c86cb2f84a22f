"""The density of the spectrum and the log-determinant, by stochastic Lanczos quadrature."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np

from mindspore_hessian.arguments import as_reals, check_choice, check_integer, check_real
from mindspore_hessian.estimators._checks import dimension_of
from mindspore_hessian.estimators._common import (
    Distribution,
    Run,
    check_probing,
    fingerprint,
    mean_and_error,
    sample,
)
from mindspore_hessian.estimators._quadrature import probes_at_once, rule, tridiagonals
from mindspore_hessian.estimators.results import Estimate, SpectralDensity

_WIDTHS = {"gaussian": 100, "histogram": 50}  # the range of the spectrum over the default sigma


def spectral_density(
    op: Any,
    num_probes: int = 16,
    num_steps: int = 64,
    grid: Any = None,
    scale: Literal["linear", "log"] = "linear",
    kernel: Literal["gaussian", "histogram"] = "gaussian",
    sigma: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    batch: int = 8,
    distribution: Distribution = "rademacher",
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> SpectralDensity:
    r"""Smoothed density of the eigenvalues,
    :math:`\phi(x) = \frac1n \sum_i g_\sigma(x - \lambda_i)`.

    Each probe gives a Gauss rule with `num_steps` nodes; their Gaussians (or histograms) are
    averaged. The error band is over the probes; it does not hold the error of the rules, which
    shrinks as ``sigma * num_steps`` grows. The density integrates to 1 over a grid that covers the
    spectrum, as the default one does.

    Costs at most ``num_probes * num_steps`` products. Holds ``batch * num_steps`` vectors, or as
    many as fit into 1 GiB (but at least `num_steps`).

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        num_probes: at least 2.
        num_steps: Lanczos steps for each probe; n where that is less.
        grid: increasing points; where None, they cover the Ritz values and their kernels.
        scale: ``"linear"``, or ``"log"`` for the density of :math:`\log_{10} |\lambda|` per decade.
            The grid then holds magnitudes; those below the rounding level of the operator are
            counted at that level.
        kernel: ``"gaussian"`` of standard deviation `sigma`, or ``"histogram"`` with a cell around
            each grid point.
        sigma: width, in units of the eigenvalue or in decades; where None, 1/100 of the range (1/50
            for a histogram).
        max_products: budget, at least two probes; None for all probes.
        seed: of the probes.
        batch: probes that go through Lanczos side by side.
        distribution: ``"rademacher"``, ``"normal"`` or ``"sphere"``.
        progress: as for `trace`.
        checkpoint: as for `trace`.

    Returns:
        SpectralDensity.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not square, a product with NaN
            or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        B. Ghorbani, S. Krishnan and Y. Xiao, An investigation into neural net optimization via
        Hessian eigenvalue density, ICML 2019. S. Ubaru, J. Chen and Y. Saad, Fast estimation of
        tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38(4), 2017.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import spectral_density
        >>> found = spectral_density(np.diag([-1.0, 1.0, 1.0, 1.0]))
        >>> print(round(found.mass_below(0), 6), round(float(np.trapz(found.density, found.grid)), 6))
        0.25 1.0
    """
    check_choice("scale", scale, ("linear", "log"))
    check_choice("kernel", kernel, _WIDTHS)
    check_integer("num_probes", num_probes, 2)
    check_integer("num_steps", num_steps, 1)
    if sigma is not None:
        check_real("sigma", sigma)
    points = None if grid is None else _checked_grid(grid, scale)
    steps = min(num_steps, dimension_of(op))
    if max_products is not None:
        check_integer("max_products", max_products, 2 * steps, None, " (two probes)")
    with Run(
        "spectral_density",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        num_probes=num_probes,
        num_steps=steps,
        batch=batch,
        distribution=distribution,
        scale=scale,
        kernel=kernel,
        sigma=sigma,
        grid=fingerprint(points),
    ) as run:
        check_probing(run, distribution, batch)
        rules = run.state.get("rules", np.empty((0, 2, steps)))
        while (left := min(num_probes - len(rules), run.remaining // steps)) > 0:
            z = run.probes(len(rules), min(left, probes_at_once(run.n, steps, batch)), distribution)
            rules = np.concatenate([rules, tridiagonals(run, z, steps)])
            run.save(rules=rules)
        nodes, weights = np.zeros((len(rules), steps)), np.zeros((len(rules), steps))
        for row, tridiagonal in enumerate(rules):
            found, mass = rule(tridiagonal)
            nodes[row], weights[row, : len(found)] = found[-1], mass
            nodes[row, : len(found)] = found
        where = nodes if scale == "linear" else _decades(nodes, run.eps)
        points, curves, width = _smoothed(where, weights, points, kernel, sigma)
        density, error = mean_and_error(curves)
    return SpectralDensity(
        points if scale == "linear" else 10.0**points,
        density,
        error,
        nodes,
        weights,
        width,
        run.num_products,
        run.seconds,
        seed,
        "probes" if len(rules) == num_probes else "budget",
        scale,
    )


def _checked_grid(grid: Any, scale: str) -> np.ndarray:
    """The grid in the variable of the density."""
    points = as_reals("grid", grid)
    if (
        points.ndim != 1
        or len(points) < 2
        or not np.isfinite(points).all()
        or (np.diff(points) <= 0).any()
    ):
        raise ValueError(
            f"grid must be one row of at least two finite, increasing points, but has shape "
            f"{points.shape} and values {np.array2string(points.ravel(), threshold=6)}"
        )
    if scale == "log" and points[0] <= 0:
        raise ValueError(
            "grid must be positive for scale 'log' (it holds magnitudes), but starts at "
            f"{points[0]}"
        )
    return np.log10(points) if scale == "log" else points


def _decades(nodes: np.ndarray, eps: float) -> np.ndarray:
    largest = np.abs(nodes).max()
    if largest == 0:
        raise ValueError(
            "scale='log' needs an eigenvalue other than 0, but all Ritz values are 0: use 'linear'"
        )
    return np.log10(np.maximum(np.abs(nodes), eps * largest))


def _smoothed(
    nodes: np.ndarray,
    weights: np.ndarray,
    grid: np.ndarray | None,
    kernel: str,
    sigma: float | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Grid, one curve for each probe, and the width."""
    low, high = float(nodes.min()), float(nodes.max())
    span = high - low if high - low > 1e-10 * max(abs(low), abs(high)) else 0.0
    width = (
        (span / _WIDTHS[kernel] or 0.01 * max(abs(high), 1.0)) if sigma is None else float(sigma)
    )
    if kernel == "gaussian":
        if grid is None:
            low, high = low - 6 * width, high + 6 * width
            grid = np.linspace(
                low, high, int(min(max(1001, np.ceil(4 * (high - low) / width)), 100_001))
            )
        curves = [
            np.exp(-0.5 * ((grid[:, None] - row) / width) ** 2) @ mass
            for row, mass in zip(nodes, weights, strict=True)
        ]
        return grid, np.array(curves) / (width * np.sqrt(2 * np.pi)), width
    if grid is None:
        grid = low + width * np.arange(int(min(np.ceil((high - low) / width), 100_000)) + 1)
        grid = np.append(grid, grid[-1] + width) if len(grid) == 1 else grid
    inner = (grid[1:] + grid[:-1]) / 2
    edges = np.concatenate([[2 * grid[0] - inner[0]], inner, [2 * grid[-1] - inner[-1]]])
    curves = [
        np.histogram(row, edges, weights=mass)[0] for row, mass in zip(nodes, weights, strict=True)
    ]
    return grid, np.array(curves) / np.diff(edges), width


def logdet(
    op: Any,
    damping: float = 0.0,
    num_steps: int = 32,
    tol: float | None = None,
    max_products: int = 1024,
    seed: int = 0,
    batch: int = 8,
    distribution: Distribution = "rademacher",
    progress: bool | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Estimate:
    r"""Log-determinant of a positive definite operator,
    :math:`\log\det(H + d I) = tr \log(H + d I)`.

    Stochastic Lanczos quadrature: a Gauss rule with `num_steps` nodes for each probe. The standard
    error is over the probes. `bias` is the mean change from three quarters of the steps to all of
    them: the size of the truncation, not a bound of it. Take more steps where it is not small. An
    operator with structure (see `mindspore_hessian.linops`) knows the value, without products.
    Costs `max_products` products at most, fewer with `tol`. Holds ``batch * num_steps`` vectors, or
    as many as fit into 1 GiB (but at least `num_steps`).

    Args:
        op: a symmetric operator with ``.shape`` (n, n) and ``@``.
        damping: d, at least 0.
        num_steps: Lanczos steps for each probe; n where that is less.
        tol: stop once ``standard_error <= tol * |value|``, looked at after ten probes; None spends
            the budget.
        max_products: budget, at least two probes.
        seed: of the probes.
        batch: probes that go through Lanczos side by side.
        distribution: ``"rademacher"``, ``"normal"`` or ``"sphere"``.
        progress: as for `trace`.
        checkpoint: as for `trace`.

    Returns:
        Estimate with floats.

    Raises:
        TypeError: `op` is no operator, or an argument has a wrong type.
        ValueError: an operator that is not positive definite to working precision, an argument out
            of its range, a product with NaN or Inf, a checkpoint of another call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        S. Ubaru, J. Chen and Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature, SIAM J. Matrix Anal. Appl. 38(4), 2017.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.estimators import logdet
        >>> print(round(logdet(np.diag([1.0, 2.0, 4.0])).value, 6), round(np.log(8), 6))
        2.079442 2.079442
    """
    check_real("damping", damping, strict=False)
    check_integer("num_steps", num_steps, 1)
    if tol is not None:
        check_real("tol", tol, strict=False)
    steps = min(num_steps, dimension_of(op))
    check_integer("max_products", max_products, 2 * steps, None, " (two probes)")
    with Run(
        "logdet",
        op,
        seed=seed,
        max_products=max_products,
        progress=progress,
        checkpoint=checkpoint,
        damping=float(damping),
        tol=tol,
        num_steps=steps,
        batch=batch,
        distribution=distribution,
    ) as run:
        check_probing(run, distribution, batch)
        if run.structured:
            return Estimate(run.op.logdet(damping), 0.0, 0, run.seconds, seed, "exact")

        def measure(first: int, count: int) -> np.ndarray:
            z = run.probes(first, count, distribution)
            squares = np.einsum("ij,ij->j", z, z)[:, None]
            return squares * [
                _log_rules(run, tridiagonal) for tridiagonal in tridiagonals(run, z, steps)
            ]

        samples, value, error, reason = sample(
            run,
            measure,
            tol,
            probes_at_once(run.n, steps, batch),
            steps,
            lambda mean, error: (mean[0], _first(error)),
        )
    return Estimate(
        value, error, run.num_products, run.seconds, seed, reason, float(abs(samples[:, 1].mean()))
    )


def _log_rules(run: Run, tridiagonal: np.ndarray) -> list[float]:
    """The rule for v^T log(H) v, and by how much it differs from that of three quarters of the
    steps.
    """
    nodes, weights = rule(tridiagonal)
    if nodes[0] <= 10 * run.eps * abs(nodes[-1]):
        raise ValueError(
            f"op must be positive definite for logdet, but a Ritz value is {nodes[0]:.3g} (the "
            f"largest is {nodes[-1]:.3g}): pass a larger damping than {run.damping:g}, or the "
            "Gauss-Newton operator"
        )
    value, steps = weights @ np.log(nodes), len(tridiagonal[0])
    if len(nodes) < steps or steps == run.n:
        return [value, 0.0]
    nodes, weights = rule(tridiagonal, max(1, 3 * steps // 4))
    return [value, value - weights @ np.log(nodes)]


def _first(error: Any) -> Any:
    return error if np.isscalar(error) else error[0]
