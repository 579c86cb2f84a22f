"""Pictures: the artists hold the numbers, the axes have labels, the weights are as they were."""

from __future__ import annotations

import builtins
import doctest
import re
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindspore_hessian import (
    HessianOperator,
    Identity,
    KFACOperator,
    calibration,
    eigsh,
    layer_report,
    most_influential,
    plot,
    spectral_density,
)
from mindspore_hessian.operators.risk import Risk

matplotlib = pytest.importorskip("matplotlib", reason="pip install mindspore-hessian[plot]")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

X = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], np.float32)
Y = np.array([[0.3], [-0.7], [0.1]], np.float32)
DIAGONAL = np.diag([-1.0, 0.0, 0.5, 3.0])


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def op():
    """Mean of (w . x - y)^2 over X, Y: a parabola in the weights, in two batches of different
    sizes.
    """
    net = nn.Dense(2, 1, weight_init=Tensor([[0.1, -0.2]], ms.float32), has_bias=False)
    data = [(Tensor(X[:2]), Tensor(Y[:2])), (Tensor(X[2:]), Tensor(Y[2:]))]
    return HessianOperator(net, nn.MSELoss(), data, check_deterministic=False)


def risk(w) -> float:
    return float(((X @ np.reshape(w, 2) - Y[:, 0]) ** 2).mean())


def labelled(ax) -> bool:
    return bool(ax.get_xlabel() and ax.get_ylabel())


def band(ax) -> np.ndarray:
    return ax.collections[0].get_paths()[0].vertices


# --- densities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_density(scale):
    found = spectral_density(DIAGONAL, num_probes=4, scale=scale)
    ax = plot.density(found, label="here")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), found.grid)
    np.testing.assert_array_equal(line.get_ydata(), found.density)
    top = np.argmax(found.density + found.standard_error)
    assert band(ax)[:, 1].max() == pytest.approx((found.density + found.standard_error)[top])
    assert (ax.get_xscale(), ax.get_yscale()) == (scale, "log")
    assert ax.get_legend().get_texts()[0].get_text() == "here"
    assert labelled(ax)
    assert ("decade" in ax.get_ylabel()) == (scale == "log")


@pytest.mark.parametrize(
    ("scale", "grid"), [("log", np.linspace(0.1, 9, 50)), ("linear", np.geomspace(0.1, 9, 50))]
)
def test_the_axis_is_that_of_the_density_whatever_the_grid(scale, grid):
    found = spectral_density(DIAGONAL, num_probes=2, scale=scale, grid=grid)
    ax = plot.density(found)
    assert found.scale == scale == ax.get_xscale()
    assert (ax.get_xlabel(), ax.get_ylabel()) == {
        "log": ("magnitude of the eigenvalue", "density per decade"),
        "linear": ("eigenvalue", "density"),
    }[scale]


def test_density_shows_every_peak():
    found = spectral_density(np.diag([*np.zeros(60), 5.0]), num_probes=8)
    low, high = plot.density(found).get_ylim()
    peak = found.density[np.abs(found.grid - 5).argmin()]
    assert low < peak < found.density.max() < high
    assert plot.density(found, floor=1e-7).get_ylim()[0] == 1e-7


def test_density_draws_into_given_axes_and_another_colour():
    ax = Figure().subplots()
    found = spectral_density(DIAGONAL, num_probes=2)
    assert plot.density(found, ax) is ax
    plot.density(found, ax)
    assert len({line.get_color() for line in ax.lines}) == 2
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot.density(DIAGONAL),
        lambda: plot.density(spectral_density(DIAGONAL, num_probes=2), floor=0.0),
    ],
)
def test_density_refuses(call):
    with pytest.raises(
        (TypeError, ValueError), match="found must be a SpectralDensity|floor must be finite and"
    ):
        call()


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, SimpleNamespace])
@pytest.mark.parametrize("known", ["threshold", "learning_rate", "argument", "nothing"])
def test_training(kind, known):
    extra = (
        {"threshold": 20.0}
        if known == "threshold"
        else {"learning_rate": 0.1}
        if known == "learning_rate"
        else {}
    )
    history = [kind(step=step, sharpness=3.0 * step, loss=1.0, **extra) for step in (0, 5, 9)]
    ax = plot.training(history, learning_rate=0.1 if known == "argument" else None)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 5, 9])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 15, 27])
    assert len(ax.lines) == (1 if known == "nothing" else 2)
    if known != "nothing":
        np.testing.assert_allclose(ax.lines[1].get_ydata(), [20, 20, 20])
    assert labelled(ax)


def test_training_follows_a_schedule_and_holes():
    history = [
        {"step": 0, "sharpness": 1.0, "threshold": 4.0},
        {"step": 1, "sharpness": None},
        {"step": 2, "sharpness": 2.0, "threshold": None},
    ]
    sharpness, threshold = plot.training(history).lines
    assert sharpness.get_color() == threshold.get_color()
    np.testing.assert_array_equal(sharpness.get_xdata(), [0, 2])
    np.testing.assert_array_equal(threshold.get_ydata(), [4.0, np.nan])


@pytest.mark.parametrize(
    ("history", "rate", "message"),
    [
        ([], None, "no measurement"),
        ([{"step": 0}], None, "no measurement"),
        ([{"step": 0, "sharpness": 1.0}], -0.1, "learning_rate must be finite and greater than 0"),
    ],
)
def test_training_refuses(history, rate, message):
    with pytest.raises(ValueError, match=message):
        plot.training(history, learning_rate=rate)


# --- the loss beside the weights ------------------------------------------------------------------


def test_loss_line_is_the_loss_and_its_parabola(op):
    before = op.weights[0].asnumpy().copy()
    ax = plot.loss_line(op, [3.0, 4.0], radius=2, points=5)
    loss, parabola = ax.lines
    np.testing.assert_allclose(loss.get_xdata(), [-2, -1, 0, 1, 2])
    np.testing.assert_allclose(
        loss.get_ydata(), [risk(before + t * np.array([0.6, 0.8])) for t in range(-2, 3)], rtol=1e-5
    )
    np.testing.assert_allclose(
        parabola.get_ydata(), loss.get_ydata(), rtol=1e-4
    )  # this loss is one
    assert op.weights[0].asnumpy().tobytes() == before.tobytes()
    assert labelled(ax)


@pytest.mark.parametrize("kind", ["list", "array", "tensors", "arrays"])
def test_loss_line_takes_every_form_of_a_vector(op, kind):
    vector = {
        "list": [0.0, 1.0],
        "array": np.array([0.0, 1.0]),
        "tensors": (Tensor([[0.0, 1.0]]),),
        "arrays": [np.array([[0.0, 1.0]])],
    }[kind]
    found = plot.loss_line(op, vector, points=3).lines[0].get_ydata()
    np.testing.assert_allclose(found, [risk([0.1, -0.2 + t]) for t in (-1, 0, 1)], rtol=1e-5)


def test_loss_plane(op):
    before = op.weights[0].asnumpy().copy()
    ax = plot.loss_plane(op, [1.0, 0.0], [1.0, 1.0], radius=1, points=3)
    filled = ax.collections[0]
    truth = [risk(before + np.array([a, b])) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    low, high = filled.get_clim()
    assert low <= min(truth) * (1 + 1e-5)
    assert high >= max(truth) * (1 - 1e-5)
    assert (filled.levels[0], filled.levels[-1]) == (low, high)
    assert op.weights[0].asnumpy().tobytes() == before.tobytes()
    assert labelled(ax)
    assert ax.figure.axes[1].get_ylabel() == "loss"


def test_the_plane_has_v1_to_the_right_and_v2_upwards(op):
    at, w = plot._distances(1.0, 3), op.weights[0].asnumpy()
    ax = Figure().subplots()
    seen = {}
    ax.contourf = lambda x, y, z, **_: seen.update(z=z) or Figure().subplots().contourf(x, y, z)
    ax.contour, ax.figure.colorbar = (lambda *_, **__: None,) * 2
    plot.loss_plane(op, [1.0, 0.0], [0.0, 1.0], points=3, ax=ax)
    np.testing.assert_allclose(
        seen["z"], [[risk(w + np.array([a, b])) for a in at] for b in at], rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [ms.float16, ms.float32, ms.float64], ids=str)
def test_weights_are_restored_bit_for_bit_in_every_dtype(dtype):
    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = Parameter(Tensor([1 / 3, -0.0, 1e-3], dtype), name="w")

        def construct(self, x):
            return ((self.w * x) ** 2).mean()

    net = Net()
    op = HessianOperator(
        net, None, (Tensor(np.ones(3), dtype),), reduction="mean", check_deterministic=False
    )
    before = net.w.value().copy()
    plot.loss_line(op, [1.0, 1.0, 1.0], points=3)
    assert net.w.dtype == dtype
    assert net.w.asnumpy().tobytes() == before.asnumpy().tobytes()


def test_weights_are_restored_after_an_error(op, monkeypatch):
    before, calls = op.weights[0].asnumpy().copy(), []

    def fails(self, batch):
        calls.append(op.weights[0].asnumpy().copy())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(Risk, "loss", fails)
    with pytest.raises(KeyboardInterrupt):
        plot.loss_line(op, [1.0, 0.0], points=3)
    assert not np.array_equal(calls[0], before)
    assert op.weights[0].asnumpy().tobytes() == before.tobytes()


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_the_loss_is_drawn_in_both_modes(op, mode):
    before, w = ms.get_context("mode"), op.weights[0].asnumpy().copy()
    ms.set_context(mode=mode)
    try:
        loss = plot.loss_line(op, [0.0, 1.0], points=3).lines[0].get_ydata()
    finally:
        ms.set_context(mode=before)
    np.testing.assert_allclose(loss, [risk(w + [0.0, t]) for t in (-1, 0, 1)], rtol=1e-5)
    assert op.weights[0].asnumpy().tobytes() == w.tobytes()


def test_a_users_compiled_function_reads_the_restored_weights(op):
    net = op.network

    @ms.jit
    def compiled(x):
        return net(x)

    first = compiled(Tensor(X)).asnumpy().copy()
    plot.loss_line(op, [1.0, 0.0], points=3)
    np.testing.assert_array_equal(compiled(Tensor(X)).asnumpy(), first)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: plot.loss_line(op.to_dense(), [1.0, 0.0]), "op must be a CurvatureOperator"),
        (lambda op: plot.loss_line(op + Identity, [1.0, 0.0]), "op must be a CurvatureOperator"),
        (lambda op: plot.loss_line(op, [1.0, 0.0, 0.0]), r"vector must have shape \(2,\)"),
        (lambda op: plot.loss_line(op, [0.0, 0.0]), "not zero"),
        (lambda op: plot.loss_line(op, [np.nan, 0.0]), "finite"),
        (
            lambda op: plot.loss_line(op, [1.0, 0.0], radius=0),
            "radius must be finite and greater than 0",
        ),
        (lambda op: plot.loss_line(op, [1.0, 0.0], points=4), "odd number"),
        (lambda op: plot.loss_plane(op, [1.0, 0.0], [-2.0, 0.0]), "parallel"),
    ],
)
def test_the_loss_refuses(op, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(op)


# --- blocks and layers ----------------------------------------------------------------------------

MATRIX = np.array([[3.0, 0.0, -1.0], [0.0, 4.0, 2.0], [-1.0, 2.0, 12.0]])
LAYERS = {"first": [0, 2], "second": np.array([1])}


def test_block_norms():
    ax = plot.blocks(MATRIX, LAYERS)
    truth = [[np.sqrt(9 + 144 + 2), 2.0], [2.0, 4.0]]
    np.testing.assert_allclose(ax.images[0].get_array(), truth)
    assert (
        [t.get_text() for t in ax.get_yticklabels()]
        == [t.get_text() for t in ax.get_xticklabels()]
        == [*LAYERS]
    )
    assert [t.get_text() for t in ax.texts] == ["12", "2", "2", "4"]
    assert labelled(ax)
    assert ax.figure.axes[1].get_ylabel() == "Frobenius norm of the block"


def test_block_entries():
    ax = plot.blocks(MATRIX, LAYERS, entries=True)
    np.testing.assert_array_equal(ax.images[0].get_array(), MATRIX[np.ix_([0, 2, 1], [0, 2, 1])])
    assert ax.images[0].norm.vmax == -ax.images[0].norm.vmin == 12.0
    assert len(ax.lines) == 2  # one cut, both ways
    assert labelled(ax)


@pytest.mark.parametrize(
    "matrix", [np.zeros((3, 3)), np.diag([1.0, 1.0, 0.0])], ids=["zero", "blocks of zero"]
)
@pytest.mark.parametrize("entries", [False, True])
def test_blocks_of_zeros_are_drawn(matrix, entries):
    plot.blocks(matrix, LAYERS, entries=entries).figure.canvas.draw()


def test_blocks_of_an_operator(op):
    ax = plot.blocks(op)
    np.testing.assert_allclose(
        ax.images[0].get_array(), [[np.linalg.norm(2 / 3 * X.T @ X)]], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("matrix", "layers", "message"),
    [
        (MATRIX, None, "layers must be a dict"),
        (MATRIX[:2], LAYERS, "square"),
        (MATRIX * np.nan, LAYERS, "9 entries"),
        (MATRIX, {"a": [3]}, "'a' must have indices from 0 to 2"),
        (MATRIX, {"a": []}, "'a' must have indices"),
    ],
)
def test_blocks_refuses(matrix, layers, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plot.blocks(matrix, layers)


@pytest.fixture(scope="module")
def report():
    return layer_report(SimpleOperator(), num_probes=4)


class SimpleOperator:
    shape, layers = (3, 3), {"first": np.array([0, 2]), "second": np.array([1])}

    def __matmul__(self, x):
        return MATRIX @ x


def test_layers(report):
    ax = plot.layers(report)
    traces, tops = (
        [bar.get_width() for bar in container]
        for container in (c for c in ax.containers if hasattr(c, "patches"))
    )
    assert traces == [row.trace for row in report.rows]
    assert tops == [row.top_eigenvalue for row in report.rows]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["first", "second"]
    assert ax.yaxis_inverted()
    assert labelled(ax)


def test_layers_are_labelled_with_their_class():
    net = nn.SequentialCell(nn.Dense(2, 3), nn.Tanh(), nn.Dense(3, 1))
    ax = plot.layers(
        layer_report(
            HessianOperator(net, nn.MSELoss(), (Tensor(X), Tensor(Y)), check_deterministic=False),
            num_probes=2,
            progress=False,
        )
    )
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0 (Dense)", "2 (Dense)"]


def test_layers_with_one_column(report):
    ax = plot.layers(report, columns=["mean_diagonal"])
    assert [bar.get_width() for bar in ax.containers[0]] == [
        row.mean_diagonal for row in report.rows
    ]
    assert ax.get_xlabel() == "mean diagonal"


@pytest.mark.parametrize("columns", ["trace", [], ["no such"]])
def test_layers_refuses(report, columns):
    with pytest.raises(ValueError, match="columns must be some of"):
        plot.layers(report, columns=columns)
    with pytest.raises(TypeError, match="report must be a LayerReport"):
        plot.layers([1])


# --- how sure, and why ----------------------------------------------------------------------------

SURE, UNSURE = np.array([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.6, 0.4]])
FOUND, IMAGES = (
    most_influential([[0.5, -2.0, 1.0], [0.1, 0.2, -0.3]], k=2),
    np.arange(48.0).reshape(3, 4, 4),
)


def test_uncertainty_of_calibrations():
    found = {
        "network": calibration(SURE, [0, 0, 0], bins=4),
        "Laplace": calibration(UNSURE, [1, 0], bins=4),
    }
    ax = plot.uncertainty(found)
    first, second, diagonal = ax.lines
    np.testing.assert_allclose(first.get_xydata(), [[0.9, 2 / 3]])  # bins ((m - 1) / 4, m / 4]
    np.testing.assert_allclose(second.get_xydata(), [[0.5, 0.0], [0.6, 1.0]])
    assert [line.get_label() for line in ax.lines] == [
        "network (0.233)",
        "Laplace (0.450)",
        "calibrated",
    ]
    assert diagonal.get_linestyle() == "--" and labelled(ax)
    assert plot.uncertainty(found["network"]).lines[0].get_label() == "(0.233)"


def test_uncertainty_of_probabilities():
    ax = plot.uncertainty({"digits": SURE, "noise": UNSURE})
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(2, 30)
    np.testing.assert_allclose(heights.sum(1), 1)
    assert (
        heights[0, 0] == pytest.approx(1 / 3) and heights[1, -1] == 1
    )  # [1, 0] is sure, [0.5, 0.5] not at all
    assert labelled(ax) and [t.get_text() for t in ax.get_legend().get_texts()] == [
        "digits",
        "noise",
    ]
    assert plot.uncertainty(UNSURE).get_legend() is None


@pytest.mark.parametrize(
    "found", [{}, {"a": UNSURE, "b": calibration(UNSURE, [0, 1])}, 3 * UNSURE, [0.5, 0.5]]
)
def test_uncertainty_refuses(found):
    with pytest.raises(ValueError, match="found"):
        plot.uncertainty(found)


@pytest.mark.parametrize(
    "images",
    [IMAGES, IMAGES[:, None], IMAGES[..., None], IMAGES[:, None].repeat(3, 1), Tensor(IMAGES)],
    ids=["grey", "first", "last", "colours", "tensor"],
)
def test_influence(images):
    ax = plot.influence(FOUND, images, images[:2], labels=[7, 8, 9], test_labels=["a", "b"])
    assert [t.get_text() for t in ax.texts] == [
        "test: a",
        "1: 8",
        "-2",
        "0: 7",
        "0.5",
        "test: b",
        "2: 9",
        "-0.3",
        "0: 7",
        "0.1",
    ]
    grey = [np.asarray(image.get_array()).reshape(16, -1)[:, 0] for image in ax.images]
    order = (0, 1, 0, 1, 2, 0)
    for number, array in zip(order, grey, strict=True):
        np.testing.assert_allclose(array, IMAGES[number].ravel() / 47)
    assert not ax.axison


def test_influence_refuses():
    for wrong, message in (
        ({"train": IMAGES[:2]}, "names number 2"),
        ({"train": IMAGES.reshape(3, 16)}, "reshape"),
        ({"test": IMAGES}, "each of the 2 rows"),
        ({"labels": [1]}, "labels must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            plot.influence(FOUND, **{"train": IMAGES, **wrong})
    with pytest.raises(TypeError, match="found must be a Influential"):
        plot.influence([1], IMAGES)


def test_layers_with_effective_dimensions(op, report):
    found = layer_report(op, num_probes=2, progress=False, damping=0.1)
    (bars,) = (
        c
        for c in plot.layers(found, columns=["effective_dimension"]).containers
        if hasattr(c, "patches")
    )
    assert [bar.get_width() for bar in bars] == [row.effective_dimension for row in found.rows]
    with pytest.raises(ValueError, match="layer_report.op, damping"):
        plot.layers(report, columns=["effective_dimension"])


@pytest.fixture(scope="module")
def kfac():
    net = nn.SequentialCell(nn.Dense(2, 3), nn.Tanh(), nn.Dense(3, 1))
    return KFACOperator(
        net, nn.MSELoss(), (Tensor(X), Tensor(Y)), check_deterministic=False, progress=False
    )


def lines(collection):
    return np.array([segment[:, 0] for segment in collection.get_segments() if len(segment)])


def test_factors(kfac):
    ax = plot.factors(kfac)
    assert labelled(ax) and ax.get_xscale() == "log" and ax.yaxis_inverted()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0 (Dense)", "2 (Dense)"]
    for number in (0, 1):
        values = [
            np.linalg.eigvalsh(pair[number].astype(np.float64)) for pair in kfac.factors.values()
        ]
        thin, thick = (lines(one) for one in ax.collections[2 * number : 2 * number + 2])
        floors = [np.maximum(one, np.finfo(np.float32).eps * one.max()) for one in values]
        np.testing.assert_allclose(thin, [[one.min(), one.max()] for one in floors])
        np.testing.assert_allclose(thick, [np.quantile(one, (0.25, 0.75)) for one in floors])
        median, arrows = ax.lines[2 * number : 2 * number + 2]
        np.testing.assert_allclose(median.get_xdata(), [np.median(one) for one in floors])
        assert len(arrows.get_xdata()) == sum(
            one.min() <= np.finfo(np.float32).eps * one.max() for one in values
        )
    assert [t.get_text()[0] for t in ax.get_legend().get_texts()] == ["A", "G"]


def test_factors_of_groups_diagonals_and_zeros(kfac, monkeypatch):
    groups = np.stack([np.diag([1.0, 4.0]), np.diag([2.0, 8.0])])
    many = {f"layer{i}": (groups, np.zeros((2, 2))) for i in range(60)} | {
        "words": (np.array([3.0, 0.0]), np.eye(1))
    }
    monkeypatch.setattr(kfac, "factors", many)
    ax = plot.factors(kfac)
    assert ax.figure.get_size_inches()[1] > 12
    np.testing.assert_allclose(lines(ax.collections[0])[0], [1, 8])
    assert (
        len(ax.lines[1].get_xdata()) == 1 and len(lines(ax.collections[2])) == 1
    )  # that of the words
    assert len(plot.factors(kfac, pyplot.subplots()[1]).get_yticklabels()) == 61


def test_a_factor_of_equal_eigenvalues_is_seen(kfac, monkeypatch):
    """Its lines have no length: the dot's edge shows where they are."""
    monkeypatch.setattr(kfac, "factors", {"one": (np.eye(3), np.eye(1))})
    ax = plot.factors(kfac)
    for number in (0, 1):
        dot = ax.lines[2 * number]
        assert dot.get_markeredgecolor() == plot.COLOURS[number]
        assert dot.get_markeredgewidth() > 0


def test_factors_refuses(kfac, op, monkeypatch):
    with pytest.raises(TypeError, match="op must be a KFACOperator"):
        plot.factors(op)
    monkeypatch.setattr(kfac, "factors", {})
    with pytest.raises(ValueError, match="no Kronecker factors"):
        plot.factors(kfac)


# --- many layers ----------------------------------------------------------------------------------

LONG = [f"backbone.encoder.blocks.{i // 2}.attention.{['output', 'key'][i % 2]}" for i in range(60)]


def report_of(names):
    class Many:
        shape = (len(names),) * 2
        layers = {name: np.array([i]) for i, name in enumerate(names)}
        layer_classes = dict.fromkeys(names, "Dense")

        def __matmul__(self, x):
            return np.diag(np.arange(1.0, len(names) + 1)) @ x

    return layer_report(Many(), num_probes=2, progress=False)


def drawers(kfac, monkeypatch, names):
    """Each function that draws layers, with the numbers 1, 2, ... for the layers."""
    pairs = {name: (np.eye(2), (i + 1.0) * np.eye(1)) for i, name in enumerate(names)}
    monkeypatch.setattr(kfac, "factors", pairs)
    matrix, places = np.diag(np.arange(1.0, len(names) + 1)), {n: [i] for i, n in enumerate(names)}
    report = report_of(names)
    return [
        lambda **how: plot.layers(report, **how),
        lambda **how: plot.factors(kfac, **how),
        lambda **how: plot.blocks(matrix, places, **how),
        lambda **how: plot.blocks(matrix, places, entries=True, **how),
    ]


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.mark.parametrize("count", [3, 60])
def test_names_of_layers_can_be_read(kfac, monkeypatch, count):
    for draw in drawers(kfac, monkeypatch, LONG[:count]):
        ax = draw()
        ax.figure.canvas.draw()
        labels = ax.get_yticklabels()
        assert len(set(texts(labels))) == count and max(map(len, texts(labels))) <= 40
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
        assert all(a.y1 <= b.y0 + 1 for a, b in zip(boxes, boxes[1:], strict=False))
        assert boxes[0].x0 >= 0 and ax.get_window_extent().width > 150
        title, width = ax.title.get_window_extent(), ax.figure.bbox.width
        assert title.x0 >= 0 and title.x1 <= width
        assert labels[0].get_fontsize() >= 7


def test_the_largest_layers(kfac, monkeypatch):
    for draw in drawers(kfac, monkeypatch, LONG):
        ax = draw(top=4)
        names = [text.removesuffix(" (Dense)") for text in texts(ax.get_yticklabels())]
        assert names == [
            f"\N{HORIZONTAL ELLIPSIS}{name.removeprefix('backbone.encoder.blocks.')}"
            for name in LONG[-4:]
        ]
        assert ax.get_title().startswith("The 4 of 60 layers of largest ")
        assert len(draw(top=99).get_yticklabels()) == 60
        for wrong in (0, 1.5):
            with pytest.raises((TypeError, ValueError), match="top must be"):
                draw(top=wrong)


def test_names_are_shortened_where_they_stay_different():
    assert plot._shortened(["a.b", "a.c"]) == ["a.b", "a.c"]
    long = ["x" * 40 + "1" + "y" * 40, "x" * 40 + "2" + "y" * 40]
    assert plot._shortened(long) == long
    (one,) = plot._shortened(["first" * 10 + "last" * 10])
    assert len(one) == plot.MOST_LETTERS and one[:5] == "first" and one[-4:] == "last"


def test_narrow_layers_have_no_names_in_a_map_of_entries():
    sizes = [200, 1, 1, 200]
    ends = np.cumsum(sizes)
    layers = {
        f"l{i}": np.arange(end - size, end)
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    ax = plot.blocks(np.eye(402), layers, entries=True)
    assert texts(ax.get_yticklabels()) == ["l0", "l1", "l3"]


def test_titles_leave_those_of_the_caller(report):
    ax = Figure().subplots()
    ax.set_title("mine")
    assert plot.layers(report, ax).get_title() == "mine"
    assert plot.layers(report).get_title() == "Curvature by layers"


# --- with and without matplotlib ------------------------------------------------------------------


def test_without_matplotlib_the_error_says_what_to_install(op, report, kfac, monkeypatch):
    true = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return true(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    found = spectral_density(DIAGONAL, num_probes=2)
    for call in (
        lambda: plot.density(found),
        lambda: plot.training([{"step": 0, "sharpness": 1.0}]),
        lambda: plot.loss_line(op, [1.0, 0.0]),
        lambda: plot.loss_plane(op, [1.0, 0.0], [0.0, 1.0]),
        lambda: plot.blocks(MATRIX, LAYERS),
        lambda: plot.layers(report),
        lambda: plot.uncertainty(UNSURE),
        lambda: plot.influence(FOUND, IMAGES),
        lambda: plot.factors(kfac),
    ):
        with pytest.raises(ImportError, match=r"pip install mindspore-hessian\[plot\]"):
            call()


def test_examples_run_where_matplotlib_is():
    """The doctests skip the lines that need matplotlib, which may be missing; here they run."""
    runner = doctest.DocTestRunner()
    found = [test for test in doctest.DocTestFinder().find(plot) if test.examples]
    for test in found:
        for example in test.examples:
            example.options.pop(doctest.SKIP, None)
        runner.run(test)
    assert len(found) == 9
    assert runner.summarize().failed == 0


def test_the_pictures_of_the_documentation_are_there_and_small():
    root = Path(__file__).resolve().parents[1]
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    shown = {
        (page.parent / name).resolve()
        for page in pages
        for name in re.findall(r"\(([\w./]*figures/[\w.]*)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == set((root / "docs" / "figures").iterdir())
    for picture in shown:
        assert picture.stat().st_size < 80 * 1024
        assert pyplot.imread(picture).shape[:2] == (400, 600)


def test_an_eigenvector_can_be_drawn(op):
    top = eigsh(op, k=2)
    for vector in (top.vector(0), top.structured(0)):
        loss, parabola = plot.loss_line(op, vector, points=3).lines
        np.testing.assert_allclose(loss.get_ydata(), parabola.get_ydata(), rtol=1e-4)
