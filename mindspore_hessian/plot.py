"""Pictures of what the operators and estimators found.

Each function draws into the Axes `ax`, or into a new figure where that is None, and returns the Axes. matplotlib is
loaded at the first picture; where it is not installed, that is an ImportError which says how to get it.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mindspore_hessian import _compat
from mindspore_hessian.estimators.report import LayerReport
from mindspore_hessian.estimators.results import SpectralDensity
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.progress import bar

# Okabe and Ito's colours, which differ for every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MOST_NUMBERS = 10  # blocks a side, up to which the numbers fit into a heat map
_COLUMNS = {"parameters": None, "trace": "trace_error", "share": None, "mean_diagonal": None,
            "top_eigenvalue": "top_residual"}  # of a LayerReport, with the column of their errors


def density(found: SpectralDensity, ax: Any = None, *, floor: float | None = None, label: str | None = None) -> Any:
    """Density of the eigenvalues on a log axis, with a band of one standard error.

    Args:
        found: from `spectral_density`, of either scale.
        floor: the lowest density shown; None: a tenth of the lowest peak.
        label: for a legend; None: no legend.

    Raises:
        TypeError: `found` is no SpectralDensity.
        ValueError: `floor` is not positive.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import plot, spectral_density
        >>> found = spectral_density(np.diag([-1.0, 1.0, 1.0, 2.0]))
        >>> ax = plot.density(found)  # doctest: +SKIP
        >>> ax.figure.savefig("density.png")  # doctest: +SKIP
    """
    _check_kind("found", found, SpectralDensity, "spectral_density")
    if floor is not None and not floor > 0:
        raise ValueError(f"floor must be positive, because the axis is logarithmic, but got {floor!r}")
    ax = _axes(ax)
    logarithmic = _is_geometric(found.grid)
    floor = _lowest_peak(found.density) / 10 if floor is None else floor
    colour = _next(ax)
    ax.plot(found.grid, found.density, color=colour, linewidth=1.5, label=label)
    ax.fill_between(found.grid, np.maximum(found.density - found.standard_error, floor),
                    np.maximum(found.density + found.standard_error, floor), color=colour, alpha=0.25, linewidth=0)
    ax.set_xscale("log" if logarithmic else "linear")
    ax.set_yscale("log")
    ax.set_ylim(bottom=floor, top=3 * float((found.density + found.standard_error).max()))
    ax.set_xlabel("magnitude of the eigenvalue" if logarithmic else "eigenvalue")
    ax.set_ylabel("density per decade" if logarithmic else "density")
    return _finish(ax, label is not None)


def training(history: Iterable, ax: Any = None, *, learning_rate: float | None = None, label: str = "sharpness") -> Any:
    """Sharpness against the step of the training, with the line 2 / learning rate above which descent is unstable.

    Args:
        history: objects or dicts with ``step``, ``sharpness``, and ``threshold`` or ``learning_rate`` where known,
            such as the history of a CurvatureMonitor.
        learning_rate: for the line; None: the line of each measurement, where it has one.
        label: of the sharpness, in the legend.

    Raises:
        TypeError, ValueError: nothing to draw, a measurement without a step or sharpness, a learning rate that is not
            positive.

    Examples:
        >>> from mindspore_hessian import plot
        >>> history = [{"step": 0, "sharpness": 3.0}, {"step": 10, "sharpness": 18.0}, {"step": 20, "sharpness": 20.4}]
        >>> ax = plot.training(history, learning_rate=0.1)  # doctest: +SKIP
        >>> print(ax.lines[1].get_ydata())  # doctest: +SKIP
        [20. 20. 20.]
    """
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, but got {learning_rate!r}")
    measurements = list(history)
    if not measurements:
        raise ValueError("history is empty: there is nothing to draw")
    steps = [_needed(one, "step", number) for number, one in enumerate(measurements)]
    sharpness = [float(_needed(one, "sharpness", number)) for number, one in enumerate(measurements)]
    thresholds = [_threshold(one, learning_rate) for one in measurements]
    ax = _axes(ax)
    ax.plot(steps, sharpness, color=_next(ax), linewidth=1.5, marker="o", markersize=4, label=label)
    if np.isfinite(thresholds).any():
        ax.plot(steps, thresholds, color=_next(ax), linewidth=1.5, linestyle="--", label="2 / learning rate")
    ax.set_xlabel("step")
    ax.set_ylabel("largest eigenvalue of the Hessian")
    ax.set_ylim(bottom=min(0.0, *ax.get_ylim()))
    return _finish(ax, True)


def loss_line(op: CurvatureOperator, vector: Any, radius: float = 1.0, points: int = 21, ax: Any = None, *,
              label: str = "loss") -> Any:
    """Loss along a direction through the weights, and the parabola that gradient and curvature predict.

    Costs `points` passes over the data without derivatives, a gradient and a product. The weights move meanwhile, and
    are as they were, bit for bit, when the function ends, also by an error.

    Args:
        op: an operator of a network.
        vector: the direction, flat or shaped like the weights, such as an eigenvector. Its length does not matter.
        radius: distance from the weights to each side.
        points: how many, odd, so that the weights are one of them.
        label: of the loss, in the legend.

    Raises:
        TypeError: `op` is no operator of a network.
        ValueError: a zero vector, one of another shape, a radius or number of points out of range.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import HessianOperator, eigsh, plot
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = HessianOperator(net, nn.MSELoss(), (x, y))
        >>> sharpest = eigsh(op, k=1).vector(0)
        >>> ax = plot.loss_line(op, sharpest, radius=2, points=5)  # doctest: +SKIP
        >>> print(net.weight.asnumpy())
        [[1. 1.]]
    """
    direction = _unit(op, "vector", vector)
    at = _distances(radius, points)
    ax = _axes(ax)
    losses = _losses(op, at[:, None] * direction)
    slope, here = op.risk.gradient_and_loss(op.progress)
    bend = direction @ (op @ direction.astype(op.dtype)).astype(np.float64)
    ax.plot(at, losses, color=_next(ax), linewidth=1.5, marker="o", markersize=4, label=label)
    ax.plot(at, here + at * (slope @ direction) + at ** 2 / 2 * bend, color=_next(ax), linewidth=1.5, linestyle="--",
            label="from gradient and curvature")
    ax.set_xlabel("distance from the weights, along the direction")
    ax.set_ylabel("loss")
    return _finish(ax, True)


def loss_plane(op: CurvatureOperator, v1: Any, v2: Any, radius: float = 1.0, points: int = 15, ax: Any = None) -> Any:
    """Contours of the loss on the plane through the weights that two directions span; the weights are the cross.

    Costs ``points ** 2`` passes over the data without derivatives. The weights move meanwhile, and are as they were,
    bit for bit, when the function ends, also by an error.

    Args:
        op: an operator of a network.
        v1, v2: the directions, flat or shaped like the weights. The second axis is the part of `v2` at right angles to
            `v1`, so that distances in the picture are those of the weights.
        radius: distance from the weights to each side.
        points: along each axis, odd, so that the weights are one of them.

    Raises:
        TypeError: `op` is no operator of a network.
        ValueError: a zero vector, one of another shape, parallel ones, a radius or number of points out of range.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import HessianOperator, plot
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = HessianOperator(net, nn.MSELoss(), (x, y))
        >>> ax = plot.loss_plane(op, [1.0, 0.0], [0.0, 1.0], radius=2, points=5)  # doctest: +SKIP
        >>> print(net.weight.asnumpy())
        [[1. 1.]]
    """
    first, second = _unit(op, "v1", v1), _unit(op, "v2", v2)
    second = second - (second @ first) * first
    if np.linalg.norm(second) < 1e-5:
        raise ValueError("v1 and v2 are parallel, so they span no plane")
    second /= np.linalg.norm(second)
    at = _distances(radius, points)
    ax = _axes(ax)
    shifts = (a * first + b * second for b in at for a in at)
    losses = _losses(op, shifts, points * points).reshape(points, points)
    filled = ax.contourf(at, at, losses, levels=20, cmap="viridis")
    ax.contour(at, at, losses, levels=filled.levels, colors="white", linewidths=0.4, alpha=0.6)
    ax.plot(0, 0, marker="+", markersize=12, markeredgewidth=2, color="white")
    ax.figure.colorbar(filled, ax=ax, label="loss")
    ax.set_aspect("equal")
    ax.set_xlabel("distance along v1")
    ax.set_ylabel("distance along v2")
    return ax


def blocks(matrix: Any, layers: Mapping[str, Any] | None = None, ax: Any = None, *, entries: bool = False) -> Any:
    """Heat map of a curvature matrix by blocks of layers.

    Args:
        matrix: (n, n), or an operator, of which the whole matrix is then computed (n products).
        layers: layer name -> indices of its entries, as ``op.layers``; None: those of the operator.
        entries: False: the Frobenius norm of each block, on a log scale. True: every entry, in the order of the
            layers, on a scale that is logarithmic on both sides of zero.

    Raises:
        TypeError: no layers are known.
        ValueError: the matrix is not square and finite, or an index of a layer is outside of it.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import plot
        >>> matrix, layers = np.diag([3.0, 4.0, 12.0]), {"first": [0, 1], "second": [2]}
        >>> ax = plot.blocks(matrix, layers)  # doctest: +SKIP
        >>> print(ax.images[0].get_array().filled(0))  # doctest: +SKIP
        [[ 5.  0.]
         [ 0. 12.]]
    """
    layers = layers if layers is not None else getattr(matrix, "layers", None)
    if not isinstance(layers, Mapping) or not layers:
        raise TypeError(f"layers must be a dict from names to indices, such as op.layers, but got {layers!r}")
    dense = np.asarray(matrix.to_dense() if hasattr(matrix, "to_dense") else matrix, dtype=np.float64)
    if dense.ndim != 2 or dense.shape[0] != dense.shape[1] or not np.isfinite(dense).all():
        raise ValueError(f"matrix must be square and finite, but has shape {dense.shape} and "
                         f"{int((~np.isfinite(dense)).sum())} entries that are NaN or Inf")
    chosen = {str(name): np.asarray(index) for name, index in layers.items()}
    for name, index in chosen.items():
        if not index.size or index.min() < 0 or index.max() >= len(dense):
            raise ValueError(f"the layer {name!r} must have indices from 0 to {len(dense) - 1}, but has {index}")
    ax = _axes(ax)
    return _entries(dense, chosen, ax) if entries else _norms(dense, chosen, ax)


def layers(report: LayerReport, ax: Any = None, *, columns: Sequence[str] = ("trace", "top_eigenvalue")) -> Any:
    """Bars for each layer of a report: what the columns hold, with their errors where they have any.

    Args:
        report: from `layer_report`.
        columns: of the report: "parameters", "trace", "share", "mean_diagonal", "top_eigenvalue". The axis is the same
            for all.

    Raises:
        TypeError: `report` is no LayerReport.
        ValueError: an unknown column, or none.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import layer_report, plot
        >>> class Operator:
        ...     shape, layers = (3, 3), {"first": np.array([0, 1]), "second": np.array([2])}
        ...     def __matmul__(self, x):
        ...         return np.diag([3.0, 1.0, 4.0]) @ x
        >>> ax = plot.layers(layer_report(Operator()))  # doctest: +SKIP
        >>> print([bar.get_width() for bar in ax.containers[0]])  # doctest: +SKIP
        [4.0, 4.0]
    """
    _check_kind("report", report, LayerReport, "layer_report")
    unknown = [name for name in columns if name not in _COLUMNS]
    if unknown or not columns or isinstance(columns, str):
        raise ValueError(f"columns must be some of {', '.join(_COLUMNS)}, as a list or tuple, but got {columns!r}")
    ax = _axes(ax)
    height, rows = 0.8 / len(columns), np.arange(len(report.rows))
    for number, name in enumerate(columns):
        values = [float(getattr(row, name)) for row in report.rows]
        of_errors = _COLUMNS[name]
        errors = [float(getattr(row, of_errors)) for row in report.rows] if of_errors else None
        ax.barh(rows + (number + 0.5) * height - 0.4, values, height, xerr=errors, color=COLOURS[number],
                ecolor="black", capsize=3, label=name.replace("_", " "))
    ax.set_yticks(rows, [row.name for row in report.rows])
    ax.invert_yaxis()  # the first layer on top
    ax.axvline(0, color="#777777", linewidth=0.8)
    ax.set_xlabel(columns[0].replace("_", " ") if len(columns) == 1 else "curvature")
    ax.set_ylabel("layer")
    return _finish(ax, len(columns) > 1)


# --- the loss beside the weights ----------------------------------------------------------------------------------

def _unit(op: Any, name: str, vector: Any) -> np.ndarray:
    """A direction as a flat vector of length 1."""
    _check_kind("op", op, CurvatureOperator, "HessianOperator")
    structured = isinstance(vector, tuple | list) and np.ndim(vector[0] if len(vector) else 0) > 0
    flat = np.asarray(op.flatten(vector) if structured else vector, dtype=np.float64)
    if flat.shape != op.shape[:1]:
        raise ValueError(f"{name} must have shape ({op.shape[0]},), or that of the weights, but has shape {flat.shape}")
    length = np.linalg.norm(flat)
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"{name} must be finite and not zero, but has length {length}")
    return flat / length


def _distances(radius: float, points: int) -> np.ndarray:
    if not (np.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive, but got {radius!r}")
    if not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be an odd number of at least 3, but got {points!r}")
    return np.linspace(-radius, radius, points)


def _losses(op: CurvatureOperator, shifts: Iterable[np.ndarray], count: int | None = None) -> np.ndarray:
    """The risk at the weights plus each shift, summed over the processes of a distributed operator."""
    parameters, risk = op.weights.parameters, op.risk
    count = count if count is not None else len(shifts)  # type: ignore[arg-type]
    values = np.zeros(count)
    with _kept(parameters) as before, risk.comm.together(count), \
            bar("loss", count, op.progress, risk.comm.rank) as shown:
        base = np.concatenate([array.reshape(-1) for array in before]).astype(np.float64)
        for number, shift in enumerate(shifts):
            parts = np.split(base + shift, np.cumsum(op.weights.sizes)[:-1])
            for parameter, part, old in zip(parameters, parts, before, strict=True):
                _compat.assign(parameter, part.reshape(old.shape).astype(old.dtype))
            values[number] = sum(risk.factor(batch) * risk.loss(batch) for batch in risk.data)
            shown.update()
    return risk.comm.total(values)


@contextlib.contextmanager
def _kept(parameters: Sequence[Any]) -> Iterator[list[np.ndarray]]:
    """The values of the Parameters, which are back in place at the end."""
    before = [_compat.to_numpy(parameter.value()).copy() for parameter in parameters]
    try:
        yield before
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            _compat.assign(parameter, value)


# --- drawing ------------------------------------------------------------------------------------------------------

def _matplotlib() -> Any:
    try:
        import matplotlib.colors
        import matplotlib.pyplot
    except ImportError as err:
        raise ImportError("mindspore_hessian.plot needs matplotlib, which is not installed: "
                          "pip install mindspore-hessian[plot]") from err
    return matplotlib


def _axes(ax: Any) -> Any:
    """The Axes to draw into."""
    library = _matplotlib()
    return library.pyplot.subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax


def _next(ax: Any) -> str:
    """The colour of the next line."""
    return COLOURS[len(ax.lines) % len(COLOURS)]


def _finish(ax: Any, legend: bool) -> Any:
    ax.grid(True, color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    if legend:
        ax.legend()
    return ax


def _check_kind(name: str, value: Any, kind: type, source: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, as from {source}, but got {type(value).__name__}")


def _field(measurement: Any, name: str) -> Any:
    return measurement.get(name) if isinstance(measurement, Mapping) else getattr(measurement, name, None)


def _needed(measurement: Any, name: str, number: int) -> Any:
    value = _field(measurement, name)
    if value is None:
        raise TypeError(f"measurement {number} of the history has no {name}: {measurement!r}")
    return value


def _threshold(measurement: Any, learning_rate: float | None) -> float:
    """2 / learning rate, NaN where it is not known."""
    threshold = _field(measurement, "threshold") if learning_rate is None else None
    rate = learning_rate if learning_rate is not None else _field(measurement, "learning_rate")
    return float(threshold) if threshold is not None else 2 / float(rate) if rate is not None else float("nan")


def _is_geometric(grid: np.ndarray) -> bool:
    """Whether the points have a constant ratio and not a constant difference: the density was per decade."""
    if grid[0] <= 0 or len(grid) < 3 or np.allclose(np.diff(grid), grid[1] - grid[0], rtol=1e-3):
        return False
    steps = np.diff(np.log(grid))
    return bool(np.allclose(steps, steps[0], rtol=1e-3))


def _lowest_peak(heights: np.ndarray) -> float:
    """The smallest local maximum that is not an underflow."""
    inner = np.concatenate([[-np.inf], heights, [-np.inf]])
    peaks = heights[(heights >= inner[:-2]) & (heights >= inner[2:]) & (heights > 1e-12 * heights.max())]
    return float(peaks.min())


def _norms(dense: np.ndarray, layers: dict[str, np.ndarray], ax: Any) -> Any:
    norms = np.array([[np.linalg.norm(dense[np.ix_(row, column)]) for column in layers.values()]
                      for row in layers.values()])
    shown = np.ma.masked_equal(norms, 0)  # a log scale has no place for it
    low, high = (float(shown.min()), float(shown.max())) if shown.count() else (1.0, 1.0)
    scale = _matplotlib().colors.LogNorm(low if low < high else low / 10, high)
    image = ax.imshow(shown, cmap="viridis", norm=scale)
    ax.set_facecolor("#cccccc")
    if len(layers) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(norms):
            dark = value > 0 and float(scale(value)) < 0.6
            ax.text(j, i, f"{value:.2g}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    return _named(ax, image, list(layers), np.arange(len(layers)), "Frobenius norm of the block")


def _entries(dense: np.ndarray, layers: dict[str, np.ndarray], ax: Any) -> Any:
    order = np.concatenate(list(layers.values()))
    largest = float(np.abs(dense).max()) or 1.0
    scale = _matplotlib().colors.SymLogNorm(linthresh=1e-3 * largest, vmin=-largest, vmax=largest)
    image = ax.imshow(dense[np.ix_(order, order)], cmap="PuOr", norm=scale, interpolation="nearest")
    ends = np.cumsum([len(index) for index in layers.values()])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", linewidth=0.6)
        ax.axvline(end - 0.5, color="black", linewidth=0.6)
    middles = ends - np.array([len(index) for index in layers.values()]) / 2 - 0.5
    return _named(ax, image, list(layers), middles, "entry")


def _named(ax: Any, image: Any, names: list[str], places: np.ndarray, label: str) -> Any:
    ax.figure.colorbar(image, ax=ax, label=label)
    if max(map(len, names)) > 5:
        ax.set_xticks(places, names, rotation=30, ha="right")
    else:
        ax.set_xticks(places, names)
    ax.set_yticks(places, names)
    ax.set_xlabel("layer")
    ax.set_ylabel("layer")
    return ax
