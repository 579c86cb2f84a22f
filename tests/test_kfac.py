"""Kronecker factors are those of curvlinops, and exact where KFAC is."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, nn, ops
from scenarios import relative_error

import mindspore_hessian as mh
from mindspore_hessian.operators import kfac
from mindspore_hessian.operators.progress import Partial
from mindspore_hessian.operators.risk import Risk
from mindspore_hessian.operators.weights import slices

GOLDEN = np.load(Path(__file__).parent / "golden" / "kfac.npz")
RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}


class Squared(nn.MSELoss):
    """Exact in float64."""

    def construct(self, logits, labels):
        losses = (logits - labels) ** 2
        return losses.mean() if self.average else losses.sum()


def normal(*shape):
    return Tensor(RNG.normal(size=shape))


def dense(inputs, outputs, **options):
    return nn.Dense(
        inputs, outputs, weight_init="normal", bias_init="normal", dtype=ms.float64, **options
    )


def blocks_of(op, joint):
    if joint:
        return list(op.layers.values())
    return [np.arange(part.start, part.stop) for part in op.space.slices]


def block_errors(found, exact, joint=False):
    found, whole = found.to_dense(), exact.to_dense()
    return [
        relative_error(found[np.ix_(i, i)], whole[np.ix_(i, i)]) for i in blocks_of(exact, joint)
    ]


# --- curvlinops -----------------------------------------------------------------------------------


def golden_network(name):
    if name == "conv_ce":
        net = nn.SequentialCell(
            nn.Conv2d(2, 3, 3, stride=2, pad_mode="pad", padding=1, has_bias=True),
            nn.Tanh(),
            nn.Conv2d(3, 2, 2, pad_mode="valid", dilation=2, has_bias=True),
            nn.Flatten(),
            nn.Dense(4, 3),
        )
    else:
        net = nn.SequentialCell(nn.Dense(4, 5), nn.Tanh(), nn.Dense(5, 3))
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(GOLDEN[f"{name}/weights/{parameter.name}"].astype(np.float32)))
    return net


@cache
def golden_problem(name):
    loss = {"ce": nn.CrossEntropyLoss, "mse": nn.MSELoss, "bce": nn.BCEWithLogitsLoss}[
        name.split("_")[1]
    ]()
    data = []
    for number in range(2):
        y = GOLDEN[f"{name}/y{number}"]
        data.append(
            (
                Tensor(GOLDEN[f"{name}/x{number}"].astype(np.float32)),
                Tensor(y.astype(np.int32 if y.dtype.kind == "i" else np.float32)),
            )
        )
    return golden_network(name), loss, data


FACTORS = [("mlp_mse", "empirical", "expand"), ("conv_ce", "exact", "expand")]
MORE_FACTORS = [
    ("mlp_ce", "exact", "expand"),
    ("mlp_mse", "exact", "expand"),
    ("mlp_bce", "exact", "expand"),
    ("conv_ce", "empirical", "reduce"),
    ("conv_ce", "exact", "reduce"),
]
KINDS = (
    [mh.KFACOperator, mh.EKFACOperator] if FULL else [mh.EKFACOperator]
)  # which has KFAC's pass in it


@pytest.mark.parametrize(("name", "fisher", "approx"), FACTORS + MORE_FACTORS * FULL)
def test_factors_are_those_of_curvlinops(name, fisher, approx):
    op = mh.KFACOperator(*golden_problem(name), fisher=fisher, approx=approx, **OFF)
    for layer, (a, g) in op.factors.items():
        prefix = f"{name}/{'type-2' if fisher == 'exact' else fisher}/{approx}/{layer}"
        assert relative_error(a, GOLDEN[f"{prefix}/A"]) < 1e-4  # float32 tanh is off by so much
        assert relative_error(g, GOLDEN[f"{prefix}/G"]) < 1e-4
    assert len(op.factors) == 2 + (name == "conv_ce")


# --- where it is exact ----------------------------------------------------------------------------

DEEP = nn.SequentialCell(dense(3, 4), dense(4, 2))
UNEVEN = [(normal(5, 3), normal(5, 2)), (normal(2, 3), normal(2, 2))]
MEAN, SUM = Squared(), Squared(reduction="sum")


@pytest.mark.full_run
@pytest.mark.parametrize("loss", [MEAN, SUM], ids=["mean", "sum"])
@pytest.mark.parametrize(
    ("kind", "separate"),
    [(mh.KFACOperator, True), (mh.KFACOperator, False), (mh.EKFACOperator, False)],
)
def test_a_deep_linear_network_with_squared_error(kind, separate, loss):
    op = kind(DEEP, loss, UNEVEN, separate_bias=separate, **OFF)
    assert max(block_errors(op, mh.GGNOperator(DEEP, loss, UNEVEN, **OFF), not separate)) < 1e-12


@pytest.mark.full_run
def test_functions_of_it_are_exact():
    op = mh.KFACOperator(DEEP, MEAN, UNEVEN, **OFF)
    whole = op.to_dense()
    assert relative_error(op.trace(), np.trace(whole)) < 1e-12
    assert relative_error(op.frobenius_norm(), np.linalg.norm(whole)) < 1e-12
    assert (
        relative_error(op.logdet(0.1), np.linalg.slogdet(whole + 0.1 * np.eye(len(whole)))[1])
        < 1e-12
    )
    assert (
        relative_error(op.inverse(0.1).to_dense(), np.linalg.inv(whole + 0.1 * np.eye(len(whole))))
        < 1e-10
    )
    a, g = op.factors["1"]
    pi = np.sqrt(np.trace(a) / len(a) / (np.trace(g) / len(g)))
    split = np.kron(
        np.linalg.inv(g + np.sqrt(0.1) / pi * np.eye(len(g))),
        np.linalg.inv(a + pi * np.sqrt(0.1) * np.eye(len(a))),
    )
    where = slices(mh.GGNOperator(DEEP, MEAN, UNEVEN, **OFF).space)["1.weight"]
    assert (
        relative_error(mh.inverse(op, 0.1, heuristic=True).to_dense()[where, where], split) < 1e-10
    )
    shaped = op @ op.unflatten(np.ones(op.shape[0]))
    assert relative_error(op.flatten(shaped), whole.sum(1)) < 1e-12


class PerPosition(nn.Cell):
    """(N, T, 3) -> (N, T, 2), or the mean over T."""

    def __init__(self, mean):
        super().__init__()
        self.first, self.second, self.mean = dense(3, 4), dense(4, 2), mean

    def construct(self, x):
        out = self.second(self.first(x))
        return out.mean(1) if self.mean else out


@pytest.mark.full_run
@pytest.mark.parametrize("approx", ["expand", "reduce"])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_weight_sharing(kind, approx):
    net = PerPosition(approx == "reduce")
    data = [(normal(n, 3, 3), normal(n, 2) if net.mean else normal(n, 3, 2)) for n in (4, 2)]
    op = kind(net, MEAN, data, approx=approx, separate_bias=False, **OFF)
    assert max(block_errors(op, mh.GGNOperator(net, MEAN, data, **OFF), True)) < 1e-12


def test_one_sample():
    net = nn.SequentialCell(dense(3, 4), nn.Tanh(), dense(4, 2))
    data = [(normal(1, 3), normal(1, 2))]
    for joint in (True, False):
        op = mh.KFACOperator(net, MEAN, data, separate_bias=not joint, fisher="empirical", **OFF)
        assert (
            max(block_errors(op, mh.EmpiricalFisherOperator(net, MEAN, data, **OFF), joint)) < 1e-12
        )


# --- layers that are used twice -------------------------------------------------------------------


class Twice(nn.Cell):
    def __init__(self):
        super().__init__()
        self.shared, self.out = dense(3, 3), dense(3, 2)

    def construct(self, x):
        return self.out(self.shared(x[:, 0]) + self.shared(x[:, 1]))


class Tied(nn.Cell):
    """Two Cells with one weight and biases of their own."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = dense(3, 3), dense(3, 3), dense(3, 2)
        self.right.weight = self.left.weight

    def construct(self, x):
        return self.out(self.left(x[:, 0]) + self.right(x[:, 1]))


@pytest.mark.parametrize("make", [Twice, Tied])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_used_twice(make, kind):
    net, data = make(), [(normal(4, 2, 3), normal(4, 2)), (normal(2, 2, 3), normal(2, 2))]
    op = kind(net, MEAN, data, approx="reduce", **OFF)
    assert max(block_errors(op, mh.GGNOperator(net, MEAN, data, **OFF))) < 1e-12


# --- convolutions, embeddings, masks --------------------------------------------------------------


class Convolutions(nn.Cell):
    """Each output has one position: the factors are exact for a linear network."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(
            4, 4, (2, 3), stride=(1, 2), pad_mode="same", dilation=(2, 1), group=2, has_bias=True
        )
        self.line = nn.Conv1d(4, 3, 3, stride=2, pad_mode="pad", padding=1, has_bias=True)
        self.out = nn.Dense(9, 2, activation="sigmoid")

    def construct(self, x):
        h = self.first(x)
        return self.out(self.line(h.reshape(h.shape[0], h.shape[1], -1)).reshape(h.shape[0], -1))


def test_convolutions_are_exact_for_one_position_and_ekfac_is_nearer():
    rng = np.random.default_rng(1)
    net, loss = Convolutions(), nn.MSELoss()
    data = (
        Tensor(rng.normal(size=(6, 4, 2, 5)).astype(np.float32)),
        Tensor(rng.normal(size=(6, 2)).astype(np.float32)),
    )
    exact = mh.GGNOperator(net, loss, data, **OFF).to_dense()
    kfac, ekfac = (kind(net, loss, data, **OFF) for kind in (mh.KFACOperator, mh.EKFACOperator))
    assert kfac.factors["first"][0].shape == (2, 12, 12) and kfac.factors["first"][1].shape == (
        2,
        2,
        2,
    )
    errors = []
    for op in (kfac, ekfac):
        whole = op.to_dense()
        errors.append([np.linalg.norm((whole - exact)[i][:, i]) for i in op.layers.values()])
    assert (np.array(errors[1]) <= np.array(errors[0]) * (1 + 1e-4)).all()
    assert (
        relative_error(ekfac.trace(), np.trace(exact)) < 1e-4
    )  # the eigenvalues are those of the whole diagonal


class Sequences(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Dense(3, 4), nn.Dense(4, 2)

    def construct(self, x):
        return self.out(ops.tanh(self.first(x)).mean(1))


class Pictures(nn.Cell):
    def __init__(self, **options):
        super().__init__()
        self.first, self.out = nn.Conv2d(2, 4, 3, has_bias=True, **options), nn.Dense(4, 2)

    def construct(self, x):
        return self.out(ops.tanh(self.first(x)).mean((2, 3)))


class Signals(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv1d(2, 4, 3, dilation=2, has_bias=True), nn.Dense(4, 2)

    def construct(self, x):
        return self.out(ops.tanh(self.first(x)).mean(2))


SHARING = {
    "sequences": (Sequences, (4, 3)),
    "valid": (lambda: Pictures(pad_mode="valid"), (2, 6, 5)),
    "same, strides": (lambda: Pictures(pad_mode="same", stride=(2, 3)), (2, 5, 6)),
    "padding": (lambda: Pictures(pad_mode="pad", padding=(1, 0, 2, 1), dilation=2), (2, 6, 7)),
    "groups": (lambda: Pictures(pad_mode="valid", group=2), (2, 4, 5)),
    "one axis": (Signals, (2, 9)),
}


@pytest.mark.parametrize("name", SHARING)
def test_ekfac_has_the_squares_of_samples_whose_positions_are_summed(name):
    """Weights that several positions share, few enough for numpy and not: by the definition."""
    make, shape = SHARING[name]
    rng = np.random.default_rng(2)
    net, loss = make(), nn.CrossEntropyLoss()
    data = (
        Tensor(rng.normal(size=(5, *shape)).astype(np.float32)),
        Tensor([0, 1, 1, 0, 1], ms.int32),
    )
    op = mh.EKFACOperator(net, loss, data, fisher="empirical", separate_bias=True, **OFF)
    samples = mh.per_sample_gradients(net, loss, data)
    assert relative_error(op.trace(), (samples**2).sum() / 5) < 1e-5
    a, g = (np.reshape(one, (-1, *one.shape[-2:])) for one in op.factors["first"])
    part = slice(0, net.first.weight.size)
    each = samples[:, part].reshape(5, len(g), g.shape[-1], -1).swapaxes(0, 1)
    expected = np.zeros((part.stop, part.stop))
    for number, (own_a, own_g, rows) in enumerate(zip(a, g, each, strict=True)):
        qa, qg = np.linalg.eigh(own_a)[1], np.linalg.eigh(own_g)[1]
        values = ((qg.T @ rows @ qa) ** 2).mean(0).ravel()
        basis, size = np.kron(qg, qa), values.size
        here = slice(number * size, (number + 1) * size)
        expected[here, here] = (basis * values) @ basis.T
    assert relative_error(op.to_dense()[part, part], expected) < 1e-4


class Folded(nn.Cell):
    """Six samples as four pictures."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(2, 3, 2, pad_mode="valid"), nn.Dense(3, 2)

    def construct(self, x):
        means = ops.tanh(self.first(x.reshape(4, 2, 3, 4))).mean((2, 3))[:3]
        return self.out(ops.cat((means, means)))


def test_pictures_that_are_not_as_many_as_the_samples():
    values = np.random.default_rng(3).normal(size=(6, 16)).astype(np.float32)
    data = Tensor(values), Tensor([0, 1, 0, 1, 1, 0], ms.int32)
    op = mh.KFACOperator(
        Folded(), nn.CrossEntropyLoss(), data, fisher="empirical", separate_bias=True, **OFF
    )
    pictures = values.reshape(4, 2, 3, 4)
    rows = [
        picture[:, i : i + 2, j : j + 2].ravel()
        for picture in pictures
        for i in range(2)
        for j in range(3)
    ]
    assert relative_error(op.factors["first"][0], np.transpose(rows) @ rows / len(rows)) < 1e-5


class Words(nn.Cell):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(6, 3, dtype=ms.float32), nn.Dense(3, 4)

    def construct(self, x):
        return self.out(self.words(x)).swapaxes(1, 2)


@pytest.mark.full_run
@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_with_masked_targets(kind):
    """A linear network, each position by itself, one of them with a target: exact for what is
    left.
    """
    rng = np.random.default_rng(2)
    labels = np.full((3, 4), -100)
    labels[1, 2] = 1
    net, loss = Words(), nn.CrossEntropyLoss(ignore_index=-100)
    data = (Tensor(rng.integers(0, 6, (3, 4)), ms.int32), Tensor(labels, ms.int32))
    op = kind(net, loss, data, **OFF)
    assert max(block_errors(op, mh.GGNOperator(net, loss, data, **OFF))) < 1e-4


# --- what is not covered --------------------------------------------------------------------------


class Mixed(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.out = nn.Dense(3, 3), nn.LayerNorm((3,)), nn.Dense(3, 2)
        self.scale = ms.Parameter(ops.ones(2), name="scale")

    def construct(self, x):
        x = self.norm(self.first(x) + ops.matmul(x, self.first.weight))
        return self.out(x) * self.scale


def test_what_is_not_covered_is_named_or_has_exact_blocks():
    rng = np.random.default_rng(3)
    net, loss = Mixed(), nn.MSELoss()
    data = (
        Tensor(rng.normal(size=(6, 3)).astype(np.float32)),
        Tensor(rng.normal(size=(6, 2)).astype(np.float32)),
    )
    with pytest.raises(
        ValueError, match="scale .of a Mixed.*first.weight .it is used outside"
    ) as caught:
        mh.KFACOperator(net, loss, data, **OFF)
    assert "norm.gamma" not in str(caught.value)
    op, exact = (
        mh.KFACOperator(net, loss, data, blocks="dense", **OFF),
        mh.GGNOperator(net, loss, data, **OFF),
    )
    whole, golden = op.to_dense(), exact.to_dense()
    for name in ("first.weight", "scale", "norm.gamma"):
        part = slices(exact.space)[name]
        assert relative_error(whole[part, part], golden[part, part]) < 1e-5
    assert "construct" not in vars(net.first) and set(op.factors) == {"out"}


def test_a_graph_without_inputs_for_later_cotangents_gives_the_same(monkeypatch):
    """It is compiled where there are many."""
    found = []
    for worth in (10**6, 0):
        monkeypatch.setattr(kfac, "_WORTH_A_GRAPH", worth)
        found.append(mh.EKFACOperator(DEEP, MEAN, UNEVEN, **OFF).to_dense())
    assert relative_error(*found) < 1e-12


def test_monte_carlo_draws_are_those_of_the_seed():
    first, again, other = (
        mh.KFACOperator(DEEP, MEAN, UNEVEN, fisher="mc", mc_samples=2, seed=seed, **OFF)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first.factors["1"][1], again.factors["1"][1])
    assert not np.allclose(first.factors["1"][1], other.factors["1"][1])
    many = mh.KFACOperator(DEEP, MEAN, UNEVEN, fisher="mc", mc_samples=400, **OFF)
    exact = mh.KFACOperator(DEEP, MEAN, UNEVEN, **OFF)
    assert relative_error(many.factors["1"][1], exact.factors["1"][1]) < 0.15


class Positions(nn.Cell):
    """Classes at several positions of a sample."""

    def __init__(self):
        super().__init__()
        self.first, self.out = dense(3, 4), dense(4, 3)

    def construct(self, x):
        return self.out(ops.tanh(self.first(x))).swapaxes(1, 2)


def labels(*shape, classes=3, ignored=0):
    out = RNG.integers(0, classes, shape)
    out.ravel()[:ignored] = -100
    return Tensor(out, ms.int32)


WEIGHTED = Tensor([0.5, 1.0, 2.5], ms.float32)
DRAWN = {
    "classes": (False, nn.CrossEntropyLoss(), lambda n: labels(n), {}),
    "summed": (False, nn.CrossEntropyLoss(reduction="sum"), lambda n: labels(n), {}),
    "weighted": (
        False, nn.CrossEntropyLoss(weight=WEIGHTED), lambda n: labels(n), {"likelihood": "categorical"},
    ),
    "positions": (True, nn.CrossEntropyLoss(), lambda n: labels(n, 4), {}),
    "masked": (True, nn.CrossEntropyLoss(), lambda n: labels(n, 4, ignored=3), {}),
    "bernoulli": (
        False, nn.BCEWithLogitsLoss(), lambda n: Tensor(RNG.integers(0, 2, (n, 3)), ms.float32), {},
    ),
    "squares": (False, Squared(), lambda n: normal(n, 3), {"likelihood": "gaussian"}),
    "sum of squares": (
        False, Squared(reduction="sum"), lambda n: normal(n, 3), {"likelihood": "gaussian"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("samples", [1, 2, None])
@pytest.mark.parametrize("name", DRAWN)
def test_the_draws_are_those_of_the_fisher_operator(name, samples):
    """Made in one graph with the factors here, outside of it there. The block of the last bias is
    the sum of their outer products."""
    positions, loss, targets, options = DRAWN[name]
    net = Positions() if positions else nn.SequentialCell(dense(3, 4), nn.Tanh(), dense(4, 3))
    data = [(normal(*((n, 4, 3) if positions else (n, 3))), targets(n)) for n in (5, 5, 2)]
    if single := isinstance(loss, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss):  # of float32 only
        net.to_float(ms.float32)
        for parameter in net.get_parameters():
            parameter.set_dtype(ms.float32)
        data = [(x.astype(ms.float32), y) for x, y in data]
    if samples is None:
        op = mh.KFACOperator(net, loss, data, fisher="empirical", progress=False, **options)
        whole = mh.EmpiricalFisherOperator(net, loss, data, progress=False, **options)
    else:
        draws = {"mc_samples": samples, "seed": 3, "progress": False, **options}
        op = mh.KFACOperator(net, loss, data, fisher="mc", **draws)
        whole = mh.FisherOperator(net, loss, data, **draws)
    bias = list(slices(whole.space).values())[-1]
    found, wanted = (one.to_dense()[bias, bias] for one in (op, whole))
    assert wanted.shape == (3, 3) and np.abs(wanted).max() > 1e-3
    assert relative_error(found, wanted) < (1e-5 if single else 1e-10)


class Lengths(nn.Cell):
    """An output of another length for other values."""

    def __init__(self):
        super().__init__()
        self.out = nn.Dense(3, 2)

    def construct(self, x):
        return ops.masked_select(self.out(x), x[:, :1] > 0).reshape(-1, 2)


def test_an_output_whose_shape_depends_on_values():
    """The draws for a batch must not be made for the shape of another one."""
    x = np.abs(RNG.normal(size=(2, 4, 3))).astype(np.float32)
    x[1, :2] *= -1
    data = [(Tensor(x[0]), labels(4, classes=2)), (Tensor(x[1]), labels(2, classes=2))]
    with pytest.raises((ValueError, RuntimeError), match="shape"):
        mh.KFACOperator(Lengths(), nn.CrossEntropyLoss(), data, fisher="mc", **OFF)


# --- passes over the data -------------------------------------------------------------------------


class Changing:
    """A list of batches that are others from a pass on."""

    def __init__(self, since):
        self.since, self.passes = since, 0

    def __len__(self):
        return 2

    def __iter__(self):
        self.passes += 1
        rng = np.random.default_rng(self.passes >= self.since)
        for _ in range(2):
            yield Tensor(rng.normal(size=(4, 3))), Tensor(rng.normal(size=(4, 2)))


@pytest.mark.parametrize("fisher", ["mc", "exact"])
@pytest.mark.parametrize("kind", [mh.KFACOperator, mh.EKFACOperator])
def test_data_that_change_between_the_passes_are_refused(kind, fisher):
    def make(since):
        data = Changing(since)
        kind(DEEP, MEAN, data, fisher=fisher, likelihood="gaussian", progress=False)
        return data.passes

    last = make(10**6)
    with pytest.raises(mh.NotDeterministicError, match="two passes over the data differ"):
        make(last)


@pytest.mark.parametrize("kind", [mh.KFACOperator, mh.EKFACOperator])
def test_a_pipeline_that_shuffles_is_refused(kind):
    import mindspore.dataset as ds

    x, y = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 2))
    for shuffle in (True, False):
        data = ds.NumpySlicesDataset((x, y), shuffle=shuffle).batch(4)
        options = {"fisher": "mc", "likelihood": "gaussian", "progress": False}
        if shuffle:
            with pytest.raises(mh.NotDeterministicError, match="shuffle"):
                kind(DEEP, MEAN, data, **options)
        else:
            op = kind(DEEP, MEAN, data, **options)
            assert op.fisher_operator.risk.data.kept is not None


@pytest.mark.parametrize("kind", [mh.KFACOperator, mh.EKFACOperator])
def test_losses_that_are_rounding_errors_are_no_difference(kind):
    """At the end of training two graphs may round a loss of 0 differently."""
    net = nn.SequentialCell(nn.Dense(3, 4), nn.Tanh(), nn.Dense(4, 2))
    x = [Tensor(RNG.normal(size=(5, 3)).astype(np.float32)) for _ in range(2)]
    data = [(one, net(one)) for one in x]
    op = kind(net, nn.MSELoss(), data, fisher="mc", progress=False)
    assert np.isfinite(op.trace())


def test_rows_that_are_multiplied_at_once(monkeypatch):
    from mindspore_hessian.operators import kfac

    found = []
    for folded in (1, 6, 10**6):
        monkeypatch.setattr(kfac, "_FOLDED", folded)
        found.append(mh.KFACOperator(DEEP, MEAN, UNEVEN, fisher="mc", **OFF).factors["1"])
    rows = np.concatenate(
        [np.concatenate([x.asnumpy(), np.ones((len(x), 1))], 1) for x, _ in UNEVEN]
    )
    weights = [layer.weight.asnumpy() for layer in DEEP], [layer.bias.asnumpy() for layer in DEEP]
    hidden = rows[:, :3] @ weights[0][0].T + weights[1][0]
    for a, g in found:
        assert relative_error(a, hidden.T @ hidden / len(hidden)) < 1e-12
        assert relative_error(g, found[0][1]) < 1e-12


class CutOff:
    """Batches, of which one is not reached in a certain pass."""

    def __init__(self, batches, at):
        self.batches, self.at, self.passes = batches, at, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        for number, batch in enumerate(self.batches):
            if (self.passes, number) == self.at:
                raise KeyboardInterrupt
            yield batch


def watched(monkeypatch):
    """The programs that run from now on, each with the number of its batch."""
    runs, run = [], Risk.run

    def noted(self, batch, program, *extras):
        runs.append((program.name, batch.number))
        return run(self, batch, program, *extras)

    monkeypatch.setattr(Risk, "run", noted)
    return runs


@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("kind", [mh.KFACOperator, mh.EKFACOperator])
def test_a_pass_that_was_cut_off_goes_on(kind, fisher, tmp_path, monkeypatch):
    """To the same bits; with as many runs of the network less."""
    monkeypatch.setattr(Partial.__init__, "__defaults__", (True, 0.0))
    batches = [(normal(n, 3), normal(n, 2)) for n in (5, 5, 2, 5)]
    options = {"fisher": fisher, "likelihood": "gaussian", "progress": False}
    path = tmp_path / "sums"
    plain = CutOff(batches, None)
    whole = kind(DEEP, MEAN, plain, checkpoint=path, **options)
    assert not list(tmp_path.iterdir())
    reference = kind(DEEP, MEAN, batches, **options)
    for layer, pair in whole.factors.items():
        for one, two in zip(pair, reference.factors[layer], strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-12)
    for passed in range(plain.passes - (2 if kind is mh.EKFACOperator else 1), plain.passes):
        with pytest.raises(KeyboardInterrupt):
            kind(DEEP, MEAN, CutOff(batches, (passed + 1, 2)), checkpoint=path, **options)
        assert list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="is of another product"):
            kind(DEEP, MEAN, batches, checkpoint=path, **options, approx="reduce")
        with monkeypatch.context() as patched:
            runs = watched(patched)
            found = kind(DEEP, MEAN, batches, checkpoint=path, **options)
        statistics = [number for name, number in runs if name in ("layers", "layers.drawn")]
        assert statistics[0] == 2 and 3 in statistics
        assert np.array_equal(found.to_dense(), whole.to_dense())
        assert not list(tmp_path.iterdir())
