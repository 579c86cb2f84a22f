"""Pictures of what was found: by operators, estimators, calibration and influence.

Each function draws into the Axes `ax`, or into a new figure where that is None, and returns the
Axes. matplotlib is loaded at the first picture; where it is not installed, that is an ImportError
which says how to get it.
"""

from __future__ import annotations

import itertools
import numbers
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    as_array,
    as_reals,
    check_bool,
    check_integer,
    check_real,
    is_integer,
    shown,
)
from mindspore_hessian.bayes.calibration import Calibration
from mindspore_hessian.estimators.report import LayerReport
from mindspore_hessian.estimators.results import SpectralDensity
from mindspore_hessian.influence import Influential
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.kfac import KFACOperator
from mindspore_hessian.operators.progress import bar

# Okabe and Ito's colours, which differ for every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MOST_NUMBERS = 10  # blocks a side, up to which the numbers fit into a heat map
MOST_LETTERS = 32  # of a layer's name; longer ones are shortened
_LETTER, _LINE = 0.08, 0.17  # inches that a letter of a label and a line of labels take
_COLUMNS = {
    "trace": "trace_error",
    "top_eigenvalue": "top_residual",  # of a LayerReport, with their errors
    "effective_dimension": "effective_error",
}


def density(
    found: SpectralDensity, ax: Any = None, *, floor: float | None = None, label: str | None = None
) -> Any:
    """Density of the eigenvalues on a log axis, with a band of one standard error.

    Args:
        found: from `spectral_density`, of either scale.
        floor: the lowest density shown; None: a tenth of the lowest peak.
        label: for a legend; None: no legend.

    Raises:
        TypeError, ValueError: `found` is no SpectralDensity; `floor` is not positive.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import plot, spectral_density
        >>> found = spectral_density(np.diag([-1.0, 1.0, 1.0, 2.0]))
        >>> ax = plot.density(found)  # doctest: +SKIP
        >>> ax.figure.savefig("density.png")  # doctest: +SKIP
    """
    _check_kind("found", found, SpectralDensity, "spectral_density")
    if floor is not None:
        check_real("floor", floor)
    ax = _axes(ax)
    logarithmic = found.scale == "log"
    floor = _lowest_peak(found.density) / 10 if floor is None else floor
    colour, low, high = (
        _next(ax),
        found.density - found.standard_error,
        found.density + found.standard_error,
    )
    ax.plot(found.grid, found.density, color=colour, linewidth=1.5, label=label)
    ax.fill_between(
        found.grid,
        np.maximum(low, floor),
        np.maximum(high, floor),
        color=colour,
        alpha=0.25,
        linewidth=0,
    )
    ax.set(xscale=found.scale, yscale="log")
    ax.set_ylim(bottom=floor, top=3 * float(high.max()))
    ax.set(
        xlabel="magnitude of the eigenvalue" if logarithmic else "eigenvalue",
        ylabel="density per decade" if logarithmic else "density",
    )
    return _finish(ax, label is not None, "Spectral density")


def training(
    history: Iterable,
    ax: Any = None,
    *,
    learning_rate: float | None = None,
    label: str = "sharpness",
) -> Any:
    """Sharpness against the step of the training, with the line 2 / learning rate above which
    descent is unstable.

    Args:
        history: objects or dicts with ``step``, ``sharpness``, and ``threshold`` or
            ``learning_rate`` where known, such as the history of a CurvatureMonitor. Those without
            sharpness are left out.
        learning_rate: for the line; None: the line of each measurement, where it has one.
        label: of the sharpness, in the legend.

    Raises:
        ValueError: nothing to draw; a learning rate that is not positive.

    Examples:
        >>> from mindspore_hessian import plot
        >>> history = [{"step": 0, "sharpness": 3.0}, {"step": 10, "sharpness": 18.0}, {"step": 20, "sharpness": 20.4}]
        >>> ax = plot.training(history, learning_rate=0.1)  # doctest: +SKIP
        >>> print(ax.lines[1].get_ydata())  # doctest: +SKIP
        [20. 20. 20.]
    """
    if learning_rate is not None:
        check_real("learning_rate", learning_rate)
    if not isinstance(history, Iterable):
        raise TypeError(f"history must be a list of measurements, but got {type(history).__name__}")
    measurements = [
        one
        for one in history
        if _field(one, "step") is not None and _field(one, "sharpness") is not None
    ]
    if not measurements:
        raise ValueError(
            "the history holds no measurement with step and sharpness: there is nothing to draw"
        )
    steps, sharpness = (
        [_field(one, name) for one in measurements] for name in ("step", "sharpness")
    )
    thresholds = [_threshold(one, learning_rate) for one in measurements]
    ax = _axes(ax)
    colour = _next(ax)
    ax.plot(steps, sharpness, color=colour, linewidth=1.5, marker="o", markersize=4, label=label)
    if np.isfinite(thresholds).any():
        ax.plot(
            steps,
            thresholds,
            color=colour,
            linewidth=1.5,
            linestyle="--",
            label="2 / learning rate",
        )
    ax.set(xlabel="step", ylabel="largest eigenvalue of the Hessian")
    ax.set_ylim(bottom=min(0.0, *ax.get_ylim()))
    return _finish(ax, True, "Sharpness in training")


@interruptible
def loss_line(
    op: CurvatureOperator,
    vector: Any,
    radius: float = 1.0,
    points: int = 21,
    ax: Any = None,
    *,
    label: str = "loss",
) -> Any:
    """Loss along a direction through the weights, and the parabola that gradient and curvature
    predict.

    Costs `points` passes over the data without derivatives, a gradient and a product. The weights
    move meanwhile, and are as they were, bit for bit, when the function ends, also by an error.

    Args:
        op: an operator of a network.
        vector: the direction, flat or shaped like the weights, such as an eigenvector. Its length
            does not matter.
        radius: distance from the weights to each side.
        points: how many, odd, so that the weights are one of them.
        label: of the loss, in the legend.

    Raises:
        TypeError, ValueError: `op` is no operator of a network; another argument does not fit.

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
    losses = _losses(op, (t * direction for t in at), points)
    gradient, here = op.gradient_and_loss()
    slope = op.flatten(gradient)
    bend = direction @ (op @ direction.astype(op.dtype)).astype(np.float64)
    colour = _next(ax)
    ax.plot(at, losses, color=colour, linewidth=1.5, marker="o", markersize=4, label=label)
    ax.plot(
        at,
        here + at * (slope @ direction) + at**2 / 2 * bend,
        color=colour,
        linewidth=1.5,
        linestyle="--",
        label="from gradient and curvature",
    )
    ax.set(xlabel="distance from the weights, along the direction", ylabel="loss")
    return _finish(ax, True, "Loss along a direction")


@interruptible
def loss_plane(
    op: CurvatureOperator, v1: Any, v2: Any, radius: float = 1.0, points: int = 15, ax: Any = None
) -> Any:
    """Contours of the loss on the plane through the weights that two directions span; the weights
    are the cross.

    Costs ``points ** 2`` passes over the data without derivatives. The weights move meanwhile, and
    are as they were, bit for bit, when the function ends, also by an error.

    Args:
        op: an operator of a network.
        v1, v2: the directions, flat or shaped like the weights. The second axis is the part of `v2`
            at right angles to `v1`, so that distances in the picture are those of the weights.
        radius: distance from the weights to each side.
        points: along each axis, odd, so that the weights are one of them.

    Raises:
        TypeError, ValueError: `op` is no operator of a network; another argument does not fit,
            parallel directions.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import HessianOperator, plot
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> op = HessianOperator(net, nn.MSELoss(), (ms.ops.eye(2), ms.ops.zeros((2, 1))))
        >>> ax = plot.loss_plane(op, [1.0, 0.0], [0.0, 1.0], radius=2, points=5)  # doctest: +SKIP
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
    ax.set(aspect="equal", xlabel="distance along v1", ylabel="distance along v2")
    return _titled(ax, "Loss on a plane")


@interruptible
def blocks(
    matrix: Any,
    layers: Mapping[str, Any] | None = None,
    ax: Any = None,
    *,
    entries: bool = False,
    top: int | None = None,
) -> Any:
    """Heat map of a curvature matrix by blocks of layers. A new figure grows with their number;
    names of more than 32 letters are shortened where they stay different.

    Args:
        matrix: (n, n), or an operator, of which the whole matrix is then computed (n products).
        layers: layer name -> indices of its entries, as ``op.layers``; None: those of the operator.
        entries: False: the Frobenius norm of each block, on a log scale. True: every entry, in the
            order of the layers, on a scale that is logarithmic on both sides of zero; layers that
            are too narrow there for a name have none.
        top: so many layers, those whose own blocks have the largest norms; None: all.

    Raises:
        TypeError, ValueError: no layers are known; `top` is no number of layers;
            the matrix is not square and finite, an index is outside of it.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import plot
        >>> matrix, layers = np.diag([3.0, 4.0, 12.0]), {"first": [0, 1], "second": [2]}
        >>> ax = plot.blocks(matrix, layers)  # doctest: +SKIP
        >>> print(ax.images[0].get_array().filled(0))  # doctest: +SKIP
        [[ 5.  0.]
         [ 0. 12.]]
    """
    layers = getattr(matrix, "layers", None) if layers is None else layers
    if not isinstance(layers, Mapping) or not layers:
        raise TypeError(
            "layers must be a dict from names to indices, such as op.layers, but got "
            f"{shown(layers)}"
        )
    check_bool("entries", entries)
    _check_top(top)
    dense = as_reals("matrix", matrix.to_dense() if hasattr(matrix, "to_dense") else matrix)
    if dense.ndim != 2 or dense.shape[0] != dense.shape[1] or not np.isfinite(dense).all():
        bad = int((~np.isfinite(dense)).sum())
        raise ValueError(
            f"matrix must be square and finite, but has shape {dense.shape} and {bad} entries NaN "
            "or Inf"
        )
    chosen = {str(name): np.asarray(index) for name, index in layers.items()}
    for name, index in chosen.items():
        if (
            not index.size
            or index.dtype.kind not in "iu"
            or index.min() < 0
            or index.max() >= len(dense)
        ):
            raise ValueError(
                f"the layer {name!r} must have indices from 0 to {len(dense) - 1}, but has {index}"
            )
    own = [float(np.linalg.norm(dense[np.ix_(index, index)])) for index in chosen.values()]
    names, labels = list(chosen), _shortened(list(chosen))
    kept = _largest(own, top)
    chosen = {labels[number]: chosen[names[number]] for number in kept}
    ax = _axes(ax, _size_of_map(list(chosen), entries))
    (_entries if entries else _norms)(dense, chosen, ax)
    title = "Entries of the matrix" if entries else "Norms of the blocks"
    return _titled(ax, _of_some(title, kept, names, "norm"))


def layers(
    report: LayerReport,
    ax: Any = None,
    *,
    columns: Sequence[str] = ("trace", "top_eigenvalue"),
    top: int | None = None,
) -> Any:
    """Bars for each layer of a report: what the columns hold, with their errors where they have
    any. A new figure grows with the number of layers; names of more than 32 letters are shortened
    where they stay different.

    Args:
        report: from `layer_report`.
        columns: of the report: "parameters", "trace", "share", "mean_diagonal", "top_eigenvalue",
            "effective_dimension". The axis is the same for all.
        top: so many layers, those of the largest magnitudes in the first of the columns; None: all.

    Raises:
        TypeError, ValueError: `report` is no LayerReport; an unknown column, none, or one that it
            does not hold; `top` is no number of layers.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import layer_report, plot
        >>> class Operator:
        ...     shape, layers = (3, 3), {"first": np.array([0, 1]), "second": np.array([2])}
        ...     def __matmul__(self, x):
        ...         return np.diag([3.0, 1.0, 4.0]) @ x
        >>> ax = plot.layers(layer_report(Operator()))  # doctest: +SKIP
        >>> print([bar.get_width() for bar in ax.patches[:2]])  # doctest: +SKIP
        [4.0, 4.0]
    """
    _check_kind("report", report, LayerReport, "layer_report")
    choices = {"parameters", "share", "mean_diagonal", *_COLUMNS}
    if (
        not isinstance(columns, tuple | list)
        or not columns
        or any(not isinstance(name, str) or name not in choices for name in columns)
    ):
        raise ValueError(
            f"columns must be some of {', '.join(sorted(choices))}, in a list, but got "
            f"{shown(columns)}"
        )
    if "effective_dimension" in columns and report.rows[0].effective_dimension is None:
        raise ValueError(
            "columns hold 'effective_dimension', which the report does not: make it by "
            "layer_report(op, damping=...)"
        )
    _check_top(top)
    kept = _largest([float(getattr(row, columns[0])) for row in report.rows], top)
    names = _with_classes(
        [row.name for row in report.rows], [row.layer_class for row in report.rows]
    )
    labels, chosen = [names[number] for number in kept], [report.rows[number] for number in kept]
    ax = _axes(ax, _size_of_rows(labels))
    points = _points(ax, len(labels))
    height, rows = 0.8 / len(columns), np.arange(len(labels))
    for number, name in enumerate(columns):
        errors = _COLUMNS.get(name)
        ax.barh(
            rows + (number + 0.5) * height - 0.4,
            [float(getattr(row, name)) for row in chosen],
            height,
            xerr=[float(getattr(row, errors)) for row in chosen] if errors else None,
            color=COLOURS[number],
            error_kw={"ecolor": "black", "elinewidth": min(1.5, 0.1 * points)},
            capsize=min(3.0, 0.3 * points * height),
            label=name.replace("_", " "),
        )
    ax.set_yticks(rows, labels, fontsize=_font(points))
    ax.set_ylim(len(labels) - 0.5, -0.5)  # the first layer on top
    ax.axvline(0, color="#777777", linewidth=0.8)
    ax.set(
        xlabel=columns[0].replace("_", " ") if len(columns) == 1 else "curvature", ylabel="layer"
    )
    title = _of_some("Curvature by layers", kept, names, columns[0].replace("_", " "))
    return _finish(ax, len(columns) > 1, title)


def uncertainty(found: Any, ax: Any = None) -> Any:
    """How sure predictions are: right as often as they say (a reliability diagram), or at all (a
    histogram).

    Of `calibration`'s results, the accuracy of each bin against its mean confidence, with the
    diagonal on which a calibrated classifier lies; below it, predictions are surer than they are
    right. The larger a marker, the more samples its bin has (the area), and the legend has the
    expected calibration errors. Of probabilities, the distribution of the entropy of each row, from
    0 (sure) to log(classes) (every class alike): for inputs like those of the training beside
    others.

    Args:
        found: a Calibration, or a dict from names to those; or probabilities, (samples, classes),
            or a dict from names to those.

    Raises:
        TypeError, ValueError: `found` is neither, or both.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import calibration, plot
        >>> sure, unsure = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[0.5, 0.5], [0.4, 0.6]])
        >>> ax = plot.uncertainty({"network": calibration(sure, [0, 1])})  # doctest: +SKIP
        >>> ax = plot.uncertainty({"digits": sure, "noise": unsure})  # doctest: +SKIP
    """
    named = dict(found) if isinstance(found, Mapping) else {"": found}
    kinds = {isinstance(one, Calibration) for one in named.values()}
    if len(kinds) != 1:
        raise ValueError(
            "found must hold results of calibration, or probabilities, of one kind and at least "
            f"one, but got {shown(found)}"
        )
    if kinds == {True}:
        return _reliability({str(name): one for name, one in named.items()}, _axes(ax))
    tables = {str(name): _rows_of_probabilities(str(name), one) for name, one in named.items()}
    return _entropies(tables, _axes(ax))


def influence(
    found: Influential,
    train: Any,
    test: Any = None,
    ax: Any = None,
    *,
    labels: Any = None,
    test_labels: Any = None,
) -> Any:
    """The training images that `most_influential` found, with their scores: a row for each test
    image.

    Each image has its number in the training set above it, its label where that is known, and its
    score below. Where the test images are given, each row starts with its own.

    Args:
        found: from `most_influential`.
        train: all training images, (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3; the
            darkest and the lightest value of all are black and white.
        test: the test images, one for each row of `found`, or None.
        labels, test_labels: of the training and of the test images, or None.

    Raises:
        TypeError, ValueError: `found` is no Influential; images or labels do not fit it.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import most_influential, plot
        >>> found = most_influential([[0.5, -2.0, 1.0]], k=2)
        >>> ax = plot.influence(found, np.zeros((3, 8, 8)), labels=[3, 8, 3])  # doctest: +SKIP
        >>> print([text.get_text() for text in ax.texts])  # doctest: +SKIP
        ['1: 8', '-2', '0: 3', '0.5']
    """
    _check_kind("found", found, Influential, "most_influential")
    rows, columns = found.indices.shape
    images = _images("train", train)
    names = _names("labels", labels, len(images))
    if found.indices.max() >= len(images):
        raise ValueError(
            f"train must hold all training images, but has {len(images)}, and found names number "
            f"{found.indices.max()}"
        )
    tested = None if test is None else _images("test", test)
    if tested is not None and len(tested) != rows:
        raise ValueError(
            f"test must hold an image for each of the {rows} rows of found, but has {len(tested)}"
        )
    own = _names("test_labels", test_labels, rows)
    images, tested = _scaled(images, tested)
    first = int(tested is not None)
    ax = _axes(ax, (max(3.0, 1.1 * (columns + first)), 1.5 * rows + 0.3))  # the title's width
    for row, (indices, scores) in enumerate(zip(found.indices, found.scores, strict=True)):
        if tested is not None:
            _tile(ax, row, 0, tested[row], ": ".join(["test", *own[row : row + 1]]), "")
        for column, (index, score) in enumerate(zip(indices, scores, strict=True)):
            _tile(
                ax,
                row,
                column + first,
                images[index],
                ": ".join([str(index), *names[index : index + 1]]),
                f"{score:.3g}",
            )
    if first:
        ax.axvline(1.1, color="#777777", linewidth=0.8)
    ax.set(xlim=(0, 1.1 * (columns + first)), ylim=(1.5 * rows, -0.3), aspect="equal")
    ax.axis("off")
    return _titled(ax, "Most influential training images")


# --- how sure -------------------------------------------------------------------------------------


def _reliability(named: dict[str, Calibration], ax: Any) -> Any:
    for colour, (name, one) in zip(itertools.cycle(COLOURS), named.items()):  # noqa: B905 -- the first has no end
        there = one.counts > 0
        ax.plot(
            one.confidences[there],
            one.accuracies[there],
            color=colour,
            linewidth=1.5,
            label=f"{name} ({one.expected_calibration_error:.3f})".strip(),
        )
        ax.scatter(
            one.confidences[there],
            one.accuracies[there],
            color=colour,
            zorder=3,
            s=10 + 200 * one.counts[there] / one.num_samples,
        )
    ax.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="calibrated")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.03), ylim=(-0.03, 1.03))
    return _finish(ax, True, "Accuracy against confidence")


def _rows_of_probabilities(name: str, value: Any) -> np.ndarray:
    p = as_reals(f"found[{name!r}]" if name else "found", value)
    if (
        p.ndim != 2
        or not p.size
        or not np.isfinite(p).all()
        or p.min() < 0
        or np.abs(p.sum(1) - 1).max() > 1e-3
    ):
        raise ValueError(
            f"found{f'[{name!r}]' if name else ''} must be a Calibration, or probabilities of "
            "shape (samples, classes) whose rows are at least 0 and have the sum 1"
        )
    return p


def _entropies(named: dict[str, np.ndarray], ax: Any) -> Any:
    classes = {p.shape[1] for p in named.values()}
    most = float(np.log(max(classes)))
    edges = np.linspace(0, most or 1.0, 31)
    for colour, (name, p) in zip(itertools.cycle(COLOURS), named.items()):  # noqa: B905 -- the first has no end
        entropy = np.clip(-(p * np.log(np.maximum(p, 1e-300))).sum(1), 0, most)
        ax.hist(
            entropy, edges, weights=np.full(len(p), 1 / len(p)), color=colour, alpha=0.5, label=name
        )
    ax.set(xlabel="entropy of the prediction", ylabel="share of the samples", xlim=(0, edges[-1]))
    return _finish(ax, any(named), "How unsure the predictions are")


# --- images ---------------------------------------------------------------------------------------


def _images(name: str, value: Any) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3)."""
    images = as_reals(name, value)
    if images.ndim == 4 and images.shape[1] in (1, 3):
        images = np.moveaxis(images, 1, 3)
    if (
        not images.size
        or images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3))
    ):
        raise ValueError(
            f"{name} must be images, (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3, but "
            f"has shape {np.shape(value)}: reshape rows of pixels"
        )
    if not np.isfinite(images).all():
        raise ValueError(f"{name} must be finite, but holds NaN or Inf")
    return images[..., 0] if images.shape[3:] == (1,) else images


def _scaled(*several: np.ndarray | None) -> list[Any]:
    """Images from 0 to 1, all by the same scale."""
    there = [images for images in several if images is not None]
    low, high = min(one.min() for one in there), max(one.max() for one in there)
    return [
        None if one is None else (one - low) / (high - low if high > low else 1.0)
        for one in several
    ]


def _names(name: str, value: Any, count: int) -> list[str]:
    """Labels as texts; none where there are none."""
    if value is None:
        return []
    found = as_array(value)
    if found.shape != (count,):
        raise ValueError(
            f"{name} must have shape ({count},), one for each image, but have shape {found.shape}"
        )
    return [str(one) for one in found.tolist()]


def _tile(ax: Any, row: int, column: int, image: np.ndarray, above: str, below: str) -> None:
    """An image on a place of a grid whose places are 1.1 wide and 1.5 high, with a text above and
    one below it.
    """
    left, top = 1.1 * column + 0.05, 1.5 * row
    ax.imshow(
        image,
        extent=(left, left + 1, top + 1, top),
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.text(left + 0.5, top - 0.03, above, ha="center", va="bottom", fontsize=8)
    if below:
        ax.text(left + 0.5, top + 1.03, below, ha="center", va="top", fontsize=8)


def factors(op: KFACOperator, ax: Any = None, *, top: int | None = None) -> Any:
    """Spectra of the Kronecker factors of each layer, A of its inputs and G of its output
    gradients, on a log axis.

    A thin line from the least eigenvalue to the largest, a thick one over the middle half of them,
    a dot at the median. Where a line is, is the scale of the factor; how long it is, its condition.
    An arrow stands where eigenvalues are 0 to working precision. Those of the block of a layer are
    the products of the two. The groups of a convolution are taken together; a factor that is 0 has
    no line. A new figure grows with the number of layers; names of more than 32 letters are
    shortened where they stay different. Costs the eigenvalues of each factor.

    Args:
        op: a KFACOperator or EKFACOperator.
        top: so many layers, those whose blocks have the largest traces; None: all.

    Raises:
        TypeError: `op` is no such operator, `top` no number.
        ValueError: it has no factors, but diagonal or dense blocks alone; `top` is less than 1.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import KFACOperator, plot
        >>> net = nn.SequentialCell(nn.Dense(2, 1, weight_init="ones", has_bias=False))
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> ax = plot.factors(KFACOperator(net, nn.MSELoss(), (x, y)))  # doctest: +SKIP
        >>> print(ax.get_yticklabels()[0].get_text())  # doctest: +SKIP
        0 (Dense)
    """
    _check_kind("op", op, KFACOperator, "mindspore_hessian")
    if not op.factors:
        raise ValueError("op has no Kronecker factors to draw: its blocks are diagonal or dense")
    _check_top(top)
    every = list(op.factors)
    kept = _largest([_trace_of_product(*op.factors[name]) for name in every], top)
    labels = _with_classes(every, [op.layer_classes.get(name, "") for name in every])
    names, labels = [every[number] for number in kept], [labels[number] for number in kept]
    ax = _axes(ax, _size_of_rows(labels))
    ax.set_xscale("log")
    points = _points(ax, len(names))
    width = min(4.0, 0.25 * points)
    for number, label in enumerate(("A, of the inputs", "G, of the output gradients")):
        spectra = [_spectrum(op.factors[name][number]) for name in names]
        rows = np.arange(len(names)) + (number - 0.5) * 0.4
        least, low, median, high, most, singular = np.array(spectra).T
        ax.hlines(rows, least, most, color=COLOURS[number], linewidth=0.3 * width)
        ax.hlines(rows, low, high, color=COLOURS[number], linewidth=width, label=label)
        ax.plot(
            median,
            rows,
            linestyle="",
            marker="o",
            markersize=1.25 * width,
            markeredgewidth=0.3 * width,
            markeredgecolor=COLOURS[number],
            color="white",
        )
        arrows = np.flatnonzero(singular)
        ax.plot(
            least[arrows],
            rows[arrows],
            linestyle="",
            marker="<",
            markersize=1.25 * width,
            color=COLOURS[number],
        )
    ax.set_yticks(range(len(names)), labels, fontsize=_font(points))
    ax.set_ylim(len(names) - 0.5, -0.5)  # the first layer on top
    ax.set(xlabel="eigenvalue of the factor", ylabel="layer")
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False
    )  # beside the lines
    title = _of_some("Spectra of the Kronecker factors", kept, every, "trace")
    return _finish(ax, False, title, above=28.0)


# --- the loss beside the weights ------------------------------------------------------------------


def _unit(op: Any, name: str, vector: Any) -> np.ndarray:
    """A direction as a flat vector of length 1."""
    _check_kind("op", op, CurvatureOperator, "HessianOperator")
    structured = isinstance(vector, tuple | list) and any(
        isinstance(part, Tensor | np.ndarray) for part in vector
    )
    flat = as_reals(name, op.flatten(vector) if structured else vector)
    if flat.shape != op.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({op.shape[0]},), or that of the weights, but has shape "
            f"{flat.shape}"
        )
    length = np.linalg.norm(flat)
    if not (np.isfinite(length) and length > 0):
        raise ValueError(f"{name} must be finite and not zero, but has length {length}")
    return flat / length


def _distances(radius: float, points: int) -> np.ndarray:
    check_real("radius", radius)
    if not is_integer(points) or points < 3 or points % 2 == 0:
        raise ValueError(f"points must be an odd number of at least 3, but got {shown(points)}")
    return np.linspace(-radius, radius, points)


def _losses(op: CurvatureOperator, shifts: Iterable[np.ndarray], count: int) -> np.ndarray:
    """The loss at the weights plus each of `count` shifts."""
    here, values = op.point, np.zeros(count)
    with bar("loss", count, op.progress, 0 if op.shows_progress else 1) as shown:
        for number, shift in enumerate(shifts):
            with op.at(here + shift):
                values[number] = op.loss()
            shown.update()
    return values


# --- drawing --------------------------------------------------------------------------------------


def _matplotlib() -> Any:
    try:
        import matplotlib.axes
        import matplotlib.colors
        import matplotlib.pyplot
    except ImportError as err:
        raise ImportError(
            "mindspore_hessian.plot needs matplotlib, which is not installed: "
            "pip install mindspore-hessian[plot]"
        ) from err
    return matplotlib


def _axes(ax: Any, size: tuple[float, float] = (6, 4)) -> Any:
    """The Axes to draw into; a new figure has that size."""
    library = _matplotlib()
    if ax is None:
        return library.pyplot.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, library.axes.Axes):
        raise TypeError(
            "ax must be an Axes of matplotlib, or None for a new figure, but got "
            f"{type(ax).__name__}"
        )
    return ax


def _next(ax: Any) -> str:
    """The colour of the next solid line, and of the dashed one that belongs to it."""
    return COLOURS[sum(line.get_linestyle() == "-" for line in ax.lines) % len(COLOURS)]


def _finish(ax: Any, legend: bool, title: str, above: float | None = None) -> Any:
    ax.grid(True, color="#dddddd", linewidth=0.5)
    ax.set_axisbelow(True)
    if legend:
        ax.legend()
    return _titled(ax, title, above)


def _titled(ax: Any, title: str, above: float | None = None) -> Any:
    """With a title, where it has none; so many points above the axes."""
    ax.set_title(ax.get_title() or title, fontsize=11, pad=above)
    return ax


def _check_top(top: Any) -> None:
    if top is not None:
        check_integer("top", top, 1)


def _largest(values: Sequence[float], top: int | None) -> list[int]:
    """The places of so many values of the largest magnitudes, in their order."""
    return sorted(np.argsort(-np.abs(values), kind="stable")[:top].tolist())


def _of_some(title: str, kept: list[int], every: Sequence[Any], what: str) -> str:
    """A title, or one that says which layers are shown."""
    if len(kept) == len(every):
        return title
    return f"The {len(kept)} of {len(every)} layers of largest {what}"


def _shortened(names: list[str]) -> list[str]:
    """Names without the beginning that they share, and without a part in the middle, where they
    are too long and stay different."""
    if max(map(len, names)) <= MOST_LETTERS:
        return names
    shared = os.path.commonprefix(names).rfind(".") + 1 if len(names) > 1 else 0
    short = [
        _without_middle(f"\N{HORIZONTAL ELLIPSIS}{name[shared:]}" if shared else name)
        for name in names
    ]
    count = Counter(short)
    return [cut if count[cut] == 1 else name for cut, name in zip(short, names, strict=True)]


def _without_middle(name: str) -> str:
    if len(name) <= MOST_LETTERS:
        return name
    half = MOST_LETTERS // 2
    return f"{name[: half - 1]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"


def _with_classes(names: list[str], classes: Sequence[str]) -> list[str]:
    """Names for people, as `LayerRow.label`, shortened."""
    pairs = zip(_shortened(names), classes, strict=True)
    return [f"{name} ({kind})" if kind else name for name, kind in pairs]


def _size_of_rows(labels: list[str]) -> tuple[float, float]:
    """Inches of a figure with a row for each label."""
    return max(6.0, 4.5 + _LETTER * max(map(len, labels))), max(4.0, 1 + 0.22 * len(labels))


def _size_of_map(labels: list[str], entries: bool) -> tuple[float, float]:
    """Inches of a figure with a row and a column for each label."""
    numbers_shown = not entries and len(labels) <= MOST_NUMBERS
    side = max(2.5, (0.55 if numbers_shown else _LINE) * len(labels))
    beside = _LETTER * max(map(len, labels))
    return max(6.0, side + beside + 1.7), max(4.0, side + beside + 0.8)


def _points(ax: Any, rows: int) -> float:
    """How many points each of so many rows of the axes has."""
    return float(ax.get_window_extent().height * 72 / ax.figure.dpi / rows)


def _font(points: float) -> float:
    """The size of letters for a row of that height."""
    return min(10.0, max(4.0, 0.8 * points))


def _trace_of_product(*factors: np.ndarray) -> float:
    """The trace of a Kronecker product, of all groups together."""
    traces = [one.sum() if one.ndim == 1 else np.trace(one, axis1=-2, axis2=-1) for one in factors]
    return float(np.sum(traces[0] * traces[1]))


def _check_kind(name: str, value: Any, kind: type, source: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} must be a {kind.__name__}, as from {source}, but got {type(value).__name__}"
        )


def _spectrum(factor: np.ndarray) -> tuple[float, ...]:
    """The quartiles of the eigenvalues, and whether some are 0 to working precision, which are put
    there. NaN for a factor that is 0."""
    wide = factor.astype(np.float64)
    values = wide if wide.ndim == 1 else np.linalg.eigvalsh(wide).ravel()
    rounding = float(np.finfo(factor.dtype).eps) * float(values.max())
    if rounding <= 0:
        return (np.nan,) * 5 + (0.0,)
    return (
        *np.quantile(np.maximum(values, rounding), (0, 0.25, 0.5, 0.75, 1)),
        float((values <= rounding).any()),
    )


def _field(measurement: Any, name: str) -> Any:
    value = (
        measurement.get(name)
        if isinstance(measurement, Mapping)
        else getattr(measurement, name, None)
    )
    if value is not None and not isinstance(value, numbers.Real):
        raise TypeError(f"history: {name} must be a number or None, but is {shown(value)}")
    return value


def _threshold(measurement: Any, learning_rate: float | None) -> float:
    """2 / learning rate, NaN where it is not known."""
    threshold = _field(measurement, "threshold") if learning_rate is None else None
    rate = learning_rate if learning_rate is not None else _field(measurement, "learning_rate")
    return float(threshold) if threshold is not None else 2 / float(rate) if rate else float("nan")


def _lowest_peak(heights: np.ndarray) -> float:
    """The smallest local maximum that is not an underflow."""
    inner = np.concatenate([[-np.inf], heights, [-np.inf]])
    peaks = heights[
        (heights >= inner[:-2]) & (heights >= inner[2:]) & (heights > 1e-12 * heights.max())
    ]
    return float(peaks.min())


def _norms(dense: np.ndarray, layers: dict[str, np.ndarray], ax: Any) -> None:
    norms = np.array(
        [
            [np.linalg.norm(dense[np.ix_(row, column)]) for column in layers.values()]
            for row in layers.values()
        ]
    )
    shown = np.ma.masked_equal(norms, 0)  # a log scale has no place for it
    low, high = (float(shown.min()), float(shown.max())) if shown.count() else (1.0, 1.0)
    scale = _matplotlib().colors.LogNorm(low if low < high else low / 10, high)
    image = ax.imshow(shown, cmap="viridis", norm=scale)
    ax.set_facecolor("#cccccc")
    if len(layers) <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(norms):
            dark = value > 0 and float(scale(value)) < 0.6
            ax.text(
                j,
                i,
                f"{value:.0f}" if 100 <= value < 10_000 else f"{value:.2g}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=8,
            )
    _named(ax, image, list(layers), np.arange(len(layers)), "Frobenius norm of the block")


def _entries(dense: np.ndarray, layers: dict[str, np.ndarray], ax: Any) -> None:
    order = np.concatenate(list(layers.values()))
    largest = float(np.abs(dense).max()) or 1.0
    scale = _matplotlib().colors.SymLogNorm(linthresh=1e-3 * largest, vmin=-largest, vmax=largest)
    image = ax.imshow(dense[np.ix_(order, order)], cmap="PuOr", norm=scale, interpolation="nearest")
    sizes = np.array([len(index) for index in layers.values()])
    ends, width = np.cumsum(sizes), min(0.6, 12 / len(sizes))
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="black", linewidth=width)
        ax.axvline(end - 0.5, color="black", linewidth=width)
    _named(ax, image, list(layers), ends - sizes / 2 - 0.5, "entry")


def _named(ax: Any, image: Any, names: list[str], places: np.ndarray, label: str) -> None:
    ax.figure.colorbar(image, ax=ax, label=label, fraction=0.05)
    font = _font(_points(ax, len(names)))
    line = 1.2 * font / _points(ax, image.get_array().shape[0])  # rows of the image that one takes
    fits = _fitting(places, line)
    places, names = places[fits], [names[number] for number in fits]
    long = max(map(len, names)) > 5
    ax.set_xticks(places, names, rotation=90 if long else 0, fontsize=font)
    ax.set_yticks(places, names, fontsize=font)
    ax.set(xlabel="layer", ylabel="layer")


def _fitting(places: np.ndarray, apart: float) -> list[int]:
    """Which of rising places keep a distance from one another, from the first on."""
    kept: list[int] = []
    for number, place in enumerate(places):
        if not kept or place - places[kept[-1]] >= apart:
            kept.append(number)
    return kept
