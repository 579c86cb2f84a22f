"""Which layers have Kronecker factors: the Gauss-Newton blocks where these are exact, or an error
that names them.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, mint, nn, ops
from scenarios import relative_error

import mindspore_hessian as mh

RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}
LOSS = nn.CrossEntropyLoss()
KINDS = (
    [mh.KFACOperator, mh.EKFACOperator] if FULL else [mh.EKFACOperator]
)  # which has KFAC's pass in it


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch):
    """Each test draws the same, whichever came before: bases of nearly equal eigenvalues differ in
    float32."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def normal(*shape):
    return Tensor(RNG.normal(size=shape).astype(np.float32))


def words(*shape):
    return Tensor(RNG.integers(0, 3, shape), ms.int32)


def block_errors(op, exact):
    found, whole = op.to_dense(), exact.to_dense()
    return [relative_error(found[part, part], whole[part, part]) for part in exact.space.slices]


class Chain(nn.Cell):
    """Linear layers, the last on all that the first gives."""

    def __init__(self, first):
        super().__init__()
        self.first, self.out = first, nn.Dense(3, 3)

    def construct(self, x):
        h = self.first(x)
        return self.out(h.reshape(h.shape[0], -1))


def line(*layers):
    return nn.SequentialCell(*layers, nn.Flatten(), nn.Dense(3, 3))


LAYERS = {
    "Conv3d": (
        lambda: line(nn.Conv3d(2, 3, (2, 1, 2), pad_mode="valid", has_bias=True)),
        (2, 2, 1, 2),
    ),
    "mint.nn.Linear": (lambda: line(mint.nn.Linear(4, 3)), (4,)),
}
MORE_LAYERS = {
    "Conv3d of a stride": (
        lambda: line(nn.Conv3d(2, 3, 3, stride=2, pad_mode="pad", padding=1)),
        (2, 2, 1, 2),
    ),
}
NAMES = [*LAYERS, *MORE_LAYERS] if FULL else [*LAYERS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_layer_of_one_position_is_exact(kind, name):
    make, shape = (LAYERS | MORE_LAYERS)[name]
    net, data = make(), (normal(4, *shape), normal(4, 3))
    op = kind(net, nn.MSELoss(), data, **OFF)
    assert set(op.factors) == {"0", "2"}
    assert max(block_errors(op, mh.GGNOperator(net, nn.MSELoss(), data, **OFF))) < 1e-5


class Tied(nn.Cell):
    def __init__(self, rows):
        super().__init__()
        self.first, self.out = (
            nn.Embedding(rows, 3, dtype=ms.float32),
            nn.Dense(3, rows, has_bias=False),
        )
        self.out.weight = self.first.embedding_table

    def construct(self, x):
        return self.out(self.first(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [3, 5] if FULL else [3])
def test_a_weight_of_an_embedding_and_a_dense_layer_is_refused_or_has_an_exact_block(kind, rows):
    """Of 3 rows and 3 columns the factors would have the same shapes."""
    net = Tied(rows)
    data = (words(5), words(5))
    with pytest.raises(
        ValueError,
        match="first.embedding_table .it is shared by first, which looks up its rows, and "
        "out, which multiplies with it.*blocks='diagonal' or 'dense'",
    ):
        kind(net, LOSS, data, **OFF)
    exact = mh.GGNOperator(net, LOSS, data, **OFF)
    assert max(block_errors(kind(net, LOSS, data, blocks="dense", **OFF), exact)) < 1e-5
    diagonal = kind(net, LOSS, data, blocks="diagonal", **OFF)
    assert relative_error(diagonal.to_dense(), np.diag(np.diag(exact.to_dense()))) < 1e-5


class Grouped(nn.Cell):
    """A weight of (4, 2, 1, 1) for two groups of two channels, and for two channels."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(4, 4, 1, group=2, has_bias=True)
        self.right = nn.Conv2d(2, 4, 1, has_bias=True)
        self.right.weight = self.left.weight

    def construct(self, x):
        return (self.left(x) + self.right(x[:, :2])).mean((2, 3))


@pytest.mark.parametrize("weights", [None, "*bias"])
def test_a_weight_of_convolutions_in_different_groups_is_refused(weights):
    data = (normal(3, 4, 2, 2), normal(3, 4))
    with pytest.raises(
        ValueError,
        match="left.bias .its layer's other Parameter has none."
        if weights
        else "left.weight .it is shared by left, .* in 2 groups, and right, which multiplies with it, so",
    ):
        mh.KFACOperator(Grouped(), nn.MSELoss(), data, weights, **OFF)


class Attention(nn.Cell):
    """Queries of 3 positions, and keys of as many or of 2; other values, unless `alone`."""

    def __init__(self, keys=3, alone=False, **options):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, **options), nn.Dense(4, 2)
        self.keys, self.alone, self.first = keys, alone, options.get("batch_first", False)

    def sequences(self, x):
        memory = x[:, :: 4 - self.keys]
        return (x, memory, memory) if self.alone else (x, memory, 2 * memory + 1)

    def construct(self, x):
        query, key, value = self.sequences(x)
        if not self.first:
            query, key, value = query.swapaxes(0, 1), key.swapaxes(0, 1), value.swapaxes(0, 1)
        y = self.attention(query, key, value)[0]
        return self.out(y if self.first else y.swapaxes(0, 1)).mean(1)


class SeparateLayers(Attention):
    """The same of Dense layers."""

    def __init__(self, network):
        super().__init__(network.keys, network.alone, batch_first=True)
        del self.attention
        attention, out = network.attention, network.attention.out_proj
        own, biases = attention.in_proj_weight.asnumpy().reshape(3, 4, 4), [None] * 3
        if attention.in_proj_bias is not None:
            biases = attention.in_proj_bias.asnumpy().reshape(3, 4)
        self.q, self.k, self.v = (dense(*pair) for pair in zip(own, biases, strict=True))
        self.o, self.out = (
            dense(one.weight.asnumpy(), one.bias.asnumpy() if one.has_bias else None)
            for one in (out, network.out)
        )

    def construct(self, x):
        n = x.shape[0]
        query, key, value = self.sequences(x)
        q = self.q(query).reshape(n, -1, 2, 2).swapaxes(1, 2)
        k = self.k(key).reshape(n, -1, 2, 2).swapaxes(1, 2)
        v = self.v(value).reshape(n, -1, 2, 2).swapaxes(1, 2)
        found = ops.softmax(ops.matmul(q, k.swapaxes(2, 3)) / 2**0.5, -1)
        y = ops.matmul(found, v).swapaxes(1, 2).reshape(n, -1, 4)
        return self.out(self.o(y)).mean(1)


def dense(weight, bias):
    """A layer of these."""
    outputs, inputs = weight.shape
    layer = nn.Dense(inputs, outputs, has_bias=bias is not None)
    layer.weight.set_data(Tensor(weight))
    if bias is not None:
        layer.bias.set_data(Tensor(bias))
    return layer


def attentions(*args, **options):
    net = Attention(*args, **options)
    for parameter in net.get_parameters():
        parameter.set_data(normal(*parameter.shape))
    return net, SeparateLayers(net)


ATTENTIONS = {"fewer keys": lambda: attentions(2)}
if FULL:
    ATTENTIONS |= {
        "itself": lambda: attentions(3, True, batch_first=True),
        "no bias": lambda: attentions(3, batch_first=True, has_bias=False),
        "fewer keys, samples first": lambda: attentions(2, batch_first=True),
        "samples second": lambda: attentions(3),
    }


@pytest.mark.parametrize("approx", ["expand", "reduce"] if FULL else ["reduce"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_projections_of_attention_are_those_of_separate_layers(name, approx):
    """Factors and blocks; the network computes as before, and is as it was."""
    net, separate = ATTENTIONS[name]()
    data = (normal(4, 3, 4), normal(4, 2))
    before = net(data[0]).asnumpy()
    assert relative_error(before, separate(data[0]).asnumpy()) < 1e-5
    own, other = (
        mh.KFACOperator(one, nn.MSELoss(), data, approx=approx, **OFF) for one in (net, separate)
    )
    assert set(own.factors) == {"attention", "attention.out_proj", "out"}
    for at in (0, 1):
        separately = np.stack([other.factors[one][at] for one in "qkv"])
        assert relative_error(own.factors["attention"][at], separately) < 1e-5
        for one, same in (("attention.out_proj", "o"), ("out", "out")):
            assert relative_error(own.factors[one][at], other.factors[same][at]) < 1e-5
    if FULL:
        exact = mh.GGNOperator(net, nn.MSELoss(), data, **OFF)
        corrected = mh.EKFACOperator(net, nn.MSELoss(), data, approx=approx, **OFF)
        found, whole = corrected.diagonal(), np.diag(exact.to_dense())
        for part in exact.space.slices:  # the corrected eigenvalues have the trace of each block
            assert relative_error(found[part].sum(), whole[part].sum()) < 1e-4
    assert "construct" not in vars(net.attention)
    np.testing.assert_array_equal(net(data[0]).asnumpy(), before)


@pytest.mark.full_run
def test_the_projection_of_the_output_alone():
    net, separate = attentions(3, True, batch_first=True)
    data = (normal(4, 3, 4), normal(4, 2))
    own = mh.KFACOperator(net, nn.MSELoss(), data, "attention.out_proj.*", **OFF)
    other = mh.KFACOperator(separate, nn.MSELoss(), data, "o.*", **OFF)
    assert set(own.factors) == {"attention.out_proj"}
    assert relative_error(own.to_dense(), other.to_dense()) < 1e-5
    assert "construct" not in vars(net.attention)


class OtherWidths(nn.Cell):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)

    def construct(self, x):
        return self.attention(x, x[:, :, :3], x[:, :, :3])[0].mean(1)


@pytest.mark.full_run
def test_attention_over_keys_of_another_width_is_refused_or_has_exact_blocks():
    net, data = OtherWidths(), (normal(3, 2, 4), normal(3, 4))
    with pytest.raises(
        ValueError,
        match="in_proj_bias .its keys or values are of another width.*out_proj.weight .it is used "
        "without its layer being called",
    ):
        mh.KFACOperator(net, nn.MSELoss(), data, **OFF)
    if not FULL:
        return
    op = mh.KFACOperator(net, nn.MSELoss(), data, blocks="dense", **OFF)
    assert not op.factors
    assert max(block_errors(op, mh.GGNOperator(net, nn.MSELoss(), data, **OFF))) < 1e-5


class Sequences(nn.Cell):
    """Layers of positions, which take those of all samples first, or not."""

    def __init__(self, positions_first):
        super().__init__()
        self.embed, self.first, self.norm = nn.Embedding(5, 3), nn.Dense(3, 4), nn.LayerNorm((4,))
        self.last, self.positions_first = nn.Dense(4, 3), positions_first

    def construct(self, words):
        x = self.embed(words.swapaxes(0, 1) if self.positions_first else words)
        x = ops.tanh(self.norm(self.first(x)))
        along = 0 if self.positions_first else 1
        x = self.last(x + x.mean(along, keep_dims=True))  # mixes positions
        return (x.swapaxes(0, 1) if self.positions_first else x).swapaxes(1, 2)


def both_ways():
    nets = Sequences(True), Sequences(False)
    for one, other in zip(*(net.get_parameters() for net in nets), strict=True):
        value = normal(*one.shape)
        one.set_data(value)
        other.set_data(value)
    return nets


@pytest.mark.parametrize("samples", [4, 2, 3] if FULL else [2])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_before_samples(samples, kind):
    """Also where the number of positions, 4, is that of samples, or a multiple."""
    nets, data = both_ways(), (words(samples, 4), words(samples, 4))
    data[1][0, 1] = -100
    for approx in ("expand", "reduce") if FULL else ("reduce",):
        own, other = (kind(net, LOSS, data, approx=approx, **OFF) for net in nets)
        assert own.factors.keys() == {"embed", "first", "last"}
        for name, pair in other.factors.items():
            for at in (0, 1):
                assert relative_error(own.factors[name][at], pair[at]) < 1e-5
        if FULL:
            assert relative_error(own.diagonal(), other.diagonal()) < 1e-4


@pytest.mark.full_run
def test_the_optimizer_with_positions_before_samples():
    data, trained = (words(4, 4), words(4, 4)), []
    for net in both_ways():
        step = mh.optim.TrainStep(net, LOSS, mh.optim.KFAC(net, 0.1, fisher="empirical"))
        for _ in range(4 if FULL else 2):
            step(*data)
        trained.append([p.asnumpy() for p in net.get_parameters()])
    for own, other in zip(*trained, strict=True):
        assert relative_error(own, other) < 1e-4
