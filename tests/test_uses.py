"""Cells that multiply with Parameters of their own, as model libraries write them, have Kronecker
factors: compared with the same network made of nn.Dense and nn.Embedding, and with Gauss-Newton
matrices where these are exact."""

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, Tensor, mint, nn, ops

from mindspore_hessian import EKFACOperator, GGNOperator, KFACOperator, optim
from mindspore_hessian.operators.uses import uses_of

RNG = np.random.default_rng(3)


class Squared(nn.MSELoss):
    """Exact in float64."""

    def construct(self, logits, labels):
        return ops.square(logits - labels).mean()


def parameter(name, *shape, dtype=ms.float64):
    return Parameter(Tensor(RNG.standard_normal(shape) / 2, dtype), name=name)


def ids(*shape, rows=7):
    return Tensor(RNG.integers(0, rows, shape), ms.int32)


class Spellings(nn.Cell):
    """Ways to write a layer."""

    def __init__(self, dtype=ms.float64):
        super().__init__()
        self.table = parameter("table", 7, 4, dtype=dtype)
        self.w1, self.b1 = parameter("w1", 4, 5, dtype=dtype), parameter("b1", 5, dtype=dtype)
        self.w2, self.b2 = parameter("w2", 6, 5, dtype=dtype), parameter("b2", 6, dtype=dtype)
        self.w3, self.w4 = parameter("w3", 6, 3, dtype=dtype), parameter("w4", 3, 3, dtype=dtype)
        self.b4 = parameter("b4", 3, dtype=dtype)
        self.w5, self.b5 = parameter("w5", 3, 3, dtype=dtype), parameter("b5", 3, dtype=dtype)
        self.product, self.bias_add = ops.MatMul(transpose_b=True), ops.BiasAdd()
        self.cast, self.dtype = ops.Cast(), dtype

    def construct(self, numbers):
        x = ops.gather(self.table, numbers, 0)
        x = ops.tanh(x @ self.w1 + self.b1)
        weight = self.cast(self.w2, self.dtype)
        x = self.product(x, weight)
        x = self.bias_add(x, self.cast(self.b2, self.dtype))
        x = self.head(ops.tanh(x))
        return ops.dense(x, self.w5, self.b5)

    def head(self, x):
        y = ops.matmul(x.matmul(self.w3), self.w4.T)
        y += self.b4
        return ops.tanh(y)


class Twin(nn.Cell):
    """The same of layers of the library."""

    names = {
        "embedding.embedding_table": "table",
        "one.weight": "w1",
        "one.bias": "b1",
        "two.weight": "w2",
        "two.bias": "b2",
        "three.weight": "w3",
        "four.weight": "w4",
        "four.bias": "b4",
        "five.weight": "w5",
        "five.bias": "b5",
    }
    turned = ("one.weight", "three.weight")

    def __init__(self, net):
        super().__init__()
        dtype = net.w1.dtype
        table = Tensor(net.table.asnumpy())
        self.embedding = nn.Embedding(7, 4, embedding_table=table, dtype=dtype)
        self.one, self.two = nn.Dense(4, 5, dtype=dtype), nn.Dense(5, 6, dtype=dtype)
        self.three = nn.Dense(6, 3, has_bias=False, dtype=dtype)
        self.four, self.five = nn.Dense(3, 3, dtype=dtype), nn.Dense(3, 3, dtype=dtype)
        theirs = {p.name: p.asnumpy() for p in net.get_parameters()}
        for p in self.get_parameters():
            value = theirs[self.names[p.name]]
            p.set_data(Tensor(value.T if p.name in self.turned else value))

    def construct(self, numbers):
        x = ops.tanh(self.two(ops.tanh(self.one(self.embedding(numbers)))))
        return self.five(ops.tanh(self.four(self.three(x))))

    def flat(self, net, op, whole):
        """The places of the entries of a flat vector of `net` for those of the twin's operator."""
        place = {p.name: part for p, part in zip(op.weights, op.space.slices, strict=True)}
        numbers = np.arange(sum(p.size for p in net.get_parameters()))
        out = np.zeros(len(numbers), int)
        for p, part in zip(whole.weights, whole.space.slices, strict=True):
            own = numbers[place[self.names[p.name]]]
            if p.name in self.turned:
                own = own.reshape(p.shape[::-1]).T.ravel()
            out[part] = own
        return out


DATA = ids(6), Tensor(RNG.standard_normal((6, 3)))


def test_what_is_found():
    found = [(u.weight, u.bias, u.turned, u.indexed) for u in uses_of(Spellings())]
    assert found == [
        ("table", "", False, True),
        ("w1", "b1", True, False),
        ("w2", "b2", False, False),
        ("w5", "b5", False, False),
        ("w3", "", True, False),
        ("w4", "b4", False, False),
    ]


@pytest.mark.parametrize("kind", [KFACOperator, EKFACOperator])
@pytest.mark.parametrize(
    ("fisher", "separate"), [("exact", True), ("mc", False), ("empirical", False)]
)
def test_the_same_as_layers_of_the_library(kind, separate, fisher):
    net = Spellings()
    twin, options = Twin(net), {"fisher": fisher, "separate_bias": separate, "seed": 1}
    own, theirs = (kind(one, Squared(), DATA, **options) for one in (net, twin))
    assert set(own.factors) == {"table", "w1", "w2", "w3", "w4", "w5"}
    places = twin.flat(net, own.fisher_operator, theirs.fisher_operator)
    found = own.to_dense()[np.ix_(places, places)]
    np.testing.assert_allclose(found, theirs.to_dense(), rtol=1e-9, atol=1e-13)
    assert own.logdet(1e-2) == pytest.approx(theirs.logdet(1e-2), rel=1e-12)
    assert not [name for name in vars(net) if "hessian" in name]


def test_one_sample_is_exact():
    net, data = Spellings(), (DATA[0][:1], DATA[1][:1])
    ggn, op = GGNOperator(net, Squared(), data), KFACOperator(net, Squared(), data)
    exact, found = ggn.to_dense(), op.to_dense()
    for part in ggn.space.slices:
        scale = np.abs(exact[part, part]).max()
        np.testing.assert_allclose(found[part, part], exact[part, part], atol=1e-12 * scale)


# --- as model libraries write them ----------------------------------------------------------------


class Linear(nn.Cell):
    def __init__(self, inputs, outputs, has_bias=True, transpose_b=True):
        super().__init__()
        shape = (outputs, inputs) if transpose_b else (inputs, outputs)
        self.weight = parameter("weight", *shape, dtype=ms.float32)
        self.has_bias, self.inputs, self.outputs = has_bias, inputs, outputs
        if has_bias:
            self.bias = parameter("bias", outputs, dtype=ms.float32)
            self.bias_add = ops.Add()
        self.matmul, self.dtype = ops.MatMul(transpose_b=transpose_b), ms.float32
        self.cast, self.reshape, self.shape = ops.Cast(), ops.Reshape(), ops.Shape()

    def construct(self, x):
        out_shape = self.shape(x)[:-1] + (self.outputs,)
        x = self.reshape(x, (-1, self.inputs))
        weight = self.cast(self.weight, self.dtype)
        x = self.matmul(self.cast(x, self.dtype), weight)
        if self.has_bias:
            x = self.bias_add(x, self.cast(self.bias, self.dtype))
        return self.reshape(x, out_shape)


class Attention(nn.Cell):
    """Four weights in one Cell."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in ("wq", "wk", "wv", "wo"):
            setattr(self, name, parameter(name, width, width, dtype=ms.float32))
        self.bo = parameter("bo", width, dtype=ms.float32)

    def split(self, x):
        n, t, width = x.shape
        return x.reshape(n, t, self.heads, width // self.heads).swapaxes(1, 2)

    def construct(self, x):
        n, t, width = x.shape
        q = self.split(x @ self.wq)
        k = self.split(mint.matmul(x, self.wk))
        v = self.split(x.matmul(self.wv))
        a = ops.softmax(ops.matmul(q, k.swapaxes(-1, -2)), -1)
        return ops.matmul(a, v).swapaxes(1, 2).reshape(n, t, width) @ self.wo + self.bo


class Language(nn.Cell):
    def __init__(self):
        super().__init__()
        self.embedding_table = parameter("embedding_table", 7, 6, dtype=ms.float32)
        self.norm, self.attention = nn.LayerNorm((6,), epsilon=1e-3), Attention(6, 2)
        self.up, self.down = Linear(6, 8, False, False), Linear(8, 6)
        self.head, self.gather = Linear(6, 7, has_bias=False), ops.Gather()

    def construct(self, numbers):
        x = self.gather(self.embedding_table, numbers, 0)
        x = x + self.attention(self.norm(x))
        x = x + self.down(ops.silu(self.up(x)))
        return self.head(x[:, -1])


TEXT = ids(5, 4), ids(5)


def test_a_transformer_of_own_layers():
    net, loss = Language(), nn.CrossEntropyLoss()
    ggn, op = GGNOperator(net, loss, TEXT), EKFACOperator(net, loss, TEXT)
    exact, found = ggn.to_dense(), op.to_dense()
    assert {"attention.wq", "attention.wo", "up", "down", "head"} <= set(op.factors)
    for part in ggn.space.slices:  # the trace of a block is that of the gradients of samples
        assert np.trace(found[part, part]) == pytest.approx(np.trace(exact[part, part]), rel=1e-4)


def test_training():
    losses = []
    net = Spellings(ms.float32)
    for one in (net, Twin(net)):
        data = DATA[0], DATA[1].astype(ms.float32)
        step = optim.TrainStep(one, Squared(), optim.KFAC(one, learning_rate=0.1, damping=1e-2))
        losses.append([float(step(*data).asnumpy()) for _ in range(5)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


# --- convolutions ---------------------------------------------------------------------------------


class Pictures(nn.Cell):
    """By functions and by primitives."""

    def __init__(self):
        super().__init__()
        dtype = ms.float32
        self.w1, self.b1 = parameter("w1", 4, 2, 3, 2, dtype=dtype), parameter("b1", 4, dtype=dtype)
        self.w2, self.b2 = parameter("w2", 6, 2, 2, 3, dtype=dtype), parameter("b2", 6, dtype=dtype)
        self.w3, self.stride = parameter("w3", 3, 6, 3, 3, dtype=dtype), (2, 1)
        self.conv = ops.Conv2D(6, (2, 3), pad_mode="pad", pad=(1, 0, 2, 1), group=2)
        self.bias_add = ops.BiasAdd()

    def construct(self, x):
        x = ops.conv2d(x, self.w1, self.b1, stride=self.stride, pad_mode="pad", padding=(1, 2))
        x = self.bias_add(self.conv(ops.tanh(x), self.w2), self.b2)
        x = ops.conv2d(ops.tanh(x), weight=self.w3, pad_mode="same", dilation=2)
        return x.mean((2, 3))


class PictureTwin(nn.Cell):
    def __init__(self, net):
        super().__init__()
        self.one = nn.Conv2d(2, 4, (3, 2), (2, 1), "pad", (1, 1, 2, 2), has_bias=True)
        self.two = nn.Conv2d(4, 6, (2, 3), 1, "pad", (1, 0, 2, 1), group=2, has_bias=True)
        self.three = nn.Conv2d(6, 3, 3, pad_mode="same", dilation=2)
        for own, theirs in zip(self.get_parameters(), net.get_parameters(), strict=True):
            own.set_data(Tensor(theirs.asnumpy()))

    def construct(self, x):
        return self.three(ops.tanh(self.two(ops.tanh(self.one(x))))).mean((2, 3))


@pytest.mark.parametrize("approx", ["reduce"] + ["expand"] * FULL)
def test_convolutions(approx):
    net = Pictures()
    twin, loss = PictureTwin(net), nn.CrossEntropyLoss()
    data = Tensor(RNG.standard_normal((3, 2, 6, 5)), ms.float32), ids(3, rows=3)
    np.testing.assert_allclose(net(data[0]).asnumpy(), twin(data[0]).asnumpy(), atol=1e-5)
    own, theirs = (KFACOperator(one, loss, data, approx=approx) for one in (net, twin))
    scale = np.abs(theirs.to_dense()).max()
    np.testing.assert_allclose(own.to_dense(), theirs.to_dense(), atol=1e-5 * scale)
    exact, found = GGNOperator(net, loss, data), EKFACOperator(net, loss, data).diagonal()
    whole = np.diag(exact.to_dense())
    for part in exact.space.slices:
        assert found[part].sum() == pytest.approx(whole[part].sum(), rel=1e-4)


# --- what is refused ------------------------------------------------------------------------------


class Autoencoder(nn.Cell):
    """The decoder's weight is the transpose of the encoder's."""

    def __init__(self):
        super().__init__()
        self.w = parameter("w", 3, 2)

    def construct(self, x):
        return ops.matmul(ops.tanh(x @ self.w), self.w.T)


class Normalized(nn.Cell):
    """What multiplies is not the Parameter."""

    def __init__(self):
        super().__init__()
        self.w = parameter("w", 3, 3)

    def construct(self, x):
        weight = self.w / ops.norm(self.w)
        return x @ weight


class Elsewhere(nn.Cell):
    """The Parameter is also used in another way."""

    def __init__(self):
        super().__init__()
        self.w = parameter("w", 3, 3)

    def construct(self, x):
        return x @ self.w + self.w.sum(0)


class Reassigned(nn.Cell):
    """A name that is not always the Parameter."""

    def __init__(self):
        super().__init__()
        self.w, self.half = parameter("w", 3, 3), 0.5

    def construct(self, x):
        weight = self.w
        if x.shape[0] > 1:
            weight = weight * self.half
        return x @ weight


@pytest.mark.parametrize("make", [Autoencoder, Normalized, Elsewhere, Reassigned])
def test_other_uses_are_refused_by_name(make):
    x = Tensor(RNG.standard_normal((4, 3)))
    net = make()
    with pytest.raises(ValueError, match="no Kronecker factors for w "):
        KFACOperator(net, Squared(), (x, x))
    assert not [name for name in vars(net) if "hessian" in name]


class Base(nn.Cell):
    def __init__(self):
        super().__init__()
        self.w, self.v = parameter("w", 3, 3), parameter("v", 3, 3)

    def lift(self, x):
        return x @ self.v

    def construct(self, x):
        return self.lift(x) @ self.w


class Derived(Base):
    """The method of the same name in the base class is not called."""

    def lift(self, x):
        return ops.tanh(x @ self.v)


class Through(Base):
    """It is called here, and the weight is used twice."""

    def lift(self, x):
        return super().lift(ops.tanh(x @ self.v))


@pytest.mark.parametrize("make", [Derived, Through])
def test_methods_of_base_classes(make):
    net, x = make(), Tensor(RNG.standard_normal((1, 3)))
    data = x, Tensor(RNG.standard_normal((1, 3)))
    op, ggn = EKFACOperator(net, Squared(), data), GGNOperator(net, Squared(), data)
    for part in ggn.space.slices:
        expected = np.trace(ggn.to_dense()[part, part])
        assert np.trace(op.to_dense()[part, part]) == pytest.approx(expected, rel=1e-10)
