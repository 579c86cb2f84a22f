"""In-place operators: right where the overwritten Tensor is not read again, refused by name where
it is.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian._errors import debris_removed

norm = nn.LayerNorm((3,))
CONSTANT = Tensor(np.ones((2, 3), np.float32))
X = Tensor(np.array([[0.5, 1.0, 2.0], [-0.3, 0.7, 0.2]], np.float32))
V = Tensor(np.array([[1.0, -1.0, 2.0], [0.5, 0.3, -0.7]], np.float32))


def loss(y):
    return (y**2).sum() / 2 + (y**3).sum()


def image(x):
    return x.reshape(1, 3, 1, 2)


# --- right: each function beside the same one written out of place --------------------------------

batch, group = nn.BatchNorm2d(3).set_train(False), nn.GroupNorm(1, 3)


def batch_norm(x):
    y = batch(image(x))
    y += image(x)
    y.add_(y * y)
    y -= image(x)
    return y.mul_(2.0).sub_(1.5)


def batch_norm_plain(x):
    y = batch(image(x)) + image(x)
    return (y + y * y - image(x)) * 2.0 - 1.5


def group_norm(x):
    y = group(image(x))
    y *= image(x)
    z = y.add_(image(x), alpha=2)
    return z * 1.0


def group_norm_plain(x):
    return group(image(x)) * image(x) + 2 * image(x)


def arithmetic(x):
    y = norm(x**2)
    y *= x
    y /= x + 3
    y += 3
    y **= 2
    y @= ops.eye(3, 3, ms.float32)
    y %= 20.0
    y //= 1e-3
    y += x * x
    return y


def arithmetic_plain(x):
    y = ((norm(x**2) * x / (x + 3) + 3) ** 2 @ ops.eye(3, 3, ms.float32)) % 20.0
    return y // 1e-3 + x * x


def outputs_that_the_backward_reads(x):
    y = ops.tanh(x)
    y *= x
    z = ops.sigmoid(x)
    w = ops.sqrt(x * x + 1)
    z *= w
    y -= z
    s = ops.softmax(x)
    s += y
    e = ops.exp(x)
    e.div_(s + 9.0)
    return e


def outputs_that_the_backward_reads_plain(x):
    return ops.exp(x) / (
        ops.softmax(x) + ops.tanh(x) * x - ops.sigmoid(x) * ops.sqrt(x * x + 1) + 9.0
    )


def several_outputs(x):
    a, b = ops.split(x**2, 1, 0)
    a += b
    a *= b
    top, _ = ops.topk(x, 2)
    top *= top
    top += a.sum()
    high = x.max(1)
    high *= 2
    return top * high.sum()


def several_outputs_plain(x):
    a, b = ops.split(x**2, 1, 0)
    top, _ = ops.topk(x, 2)
    return (top * top + ((a + b) * b).sum()) * (x.max(1) * 2).sum()


def filled(x):
    y = norm(x)
    y.copy_(x[0])
    z = norm(x**2)
    z.clamp_(-0.5, 0.8)
    z.masked_fill_(x > 1.5, 1.5)
    w = norm(x)
    w.zero_()
    w.fill_(1.5)
    w += x
    return y * z * w


def filled_plain(x):
    z = ops.where(x > 1.5, x * 0 + 1.5, ops.clamp(norm(x**2), -0.5, 0.8))
    return (x * 0 + x[0]) * z * (x + 1.5)


def parts(x):
    y = ops.exp(x)
    y[:, :1] += x[:, :1]
    y[0, 1] = x[0, 0] * x[0, 2]
    return y


def parts_plain(x):
    y = ops.exp(x)
    middle = ops.stack([x[0, 0] * x[0, 2], y[1, 1]]).reshape(2, 1)
    return ops.concat([y[:, :1] + x[:, :1], middle, y[:, 2:]], 1)


def into(y, z):
    y += z
    return y


def calls(x):
    def inner(a, b):
        a *= b
        return a

    y = into(norm(x**2), x)
    y = into(y, x)
    total, k, outs = 0, 0, []
    for power in (1, 2):
        z = inner(norm(x**power), y)
        total += z
        outs += [z]
        k += 1
    return total + outs[k - 1]


def calls_plain(x):
    y = norm(x**2) + x + x
    return norm(x) * y + norm(x**2) * y * 2


def argument(x):
    x += 1
    return x**2


def argument_plain(x):
    return (x + 1) ** 2


class Layer(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense, self.norm = nn.Dense(3, 3), nn.LayerNorm((3,))
        self.drop, self.down = nn.Dropout(p=0.0), None

    def scaled(self, h, r):
        h.mul_(2.0)
        h += r
        return h

    def construct(self, x):
        identity = x
        out = self.drop(self.norm(self.dense(x)))
        if self.down is not None:
            identity = self.down(x)
        out += identity
        return self.scaled(out, identity)


class PlainLayer(Layer):
    def construct(self, x):
        return (self.norm(self.dense(x)) + x) * 2.0 + x


class Stack(nn.Cell):
    def __init__(self, layer):
        super().__init__()
        self.first, self.rest = nn.SequentialCell(layer(), layer()), nn.CellList([layer()])
        self.place = Parameter(Tensor(np.zeros((1, 3), np.float32)), name="place")
        random = np.random.RandomState(0)
        for parameter in self.get_parameters():
            parameter.set_data(Tensor(random.randn(*parameter.shape).astype(np.float32)))

    def construct(self, x):
        x = x * 1.0
        x += self.place
        x = self.first(x)
        for _, layer in enumerate(self.rest):
            x = layer(x)
        return x


NET, PLAIN_NET = Stack(Layer), Stack(PlainLayer)
RIGHT = [
    (batch_norm, batch_norm_plain),
    (group_norm, group_norm_plain),
    (arithmetic, arithmetic_plain),
    (several_outputs, several_outputs_plain),
    (outputs_that_the_backward_reads, outputs_that_the_backward_reads_plain),
    (filled, filled_plain),
    (parts, parts_plain),
    (calls, calls_plain),
    (argument, argument_plain),
    (NET, PLAIN_NET),
]


def name_of(value):
    return getattr(value, "__name__", type(value).__name__)


def close(got, wanted, tolerance=2e-5):
    got, wanted = np.array(got), np.array(wanted)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(("written", "plain"), RIGHT, ids=name_of)
def test_an_in_place_operator_is_its_out_of_place_equal(written, plain):
    close(
        mh.ggnvp(written, loss, X, V).asnumpy().copy(), mh.ggnvp(plain, loss, X, V).asnumpy().copy()
    )
    close(
        mh.hvp(lambda x: loss(written(x)), X, V).asnumpy().copy(),
        mh.hvp(lambda x: loss(plain(x)), X, V).asnumpy().copy(),
    )


def test_the_derivative_is_that_of_a_closed_form():
    def tanh(x):
        y = ops.exp(x)
        y *= y
        y += x * x
        return y.sum()  # exp(2x) + x^2

    x = X.asnumpy().astype(np.float64)
    close(mh.hvp(tanh, X, V).asnumpy().copy(), (4 * np.exp(2 * x) + 2) * V.asnumpy())
    close(mh.hessian(tanh)(X[0]).asnumpy().copy(), np.diag(4 * np.exp(2 * x[0]) + 2))


NETWORKS = (Layer(), PlainLayer())
for mine, other in zip(NETWORKS[1].get_parameters(), NETWORKS[0].get_parameters(), strict=True):
    mine.set_data(other.value())


@pytest.mark.parametrize(
    "operator", [mh.GGNOperator, mh.HessianOperator, mh.FisherOperator, mh.EmpiricalFisherOperator]
)
def test_operators_of_a_network_that_writes_in_place(operator):
    random = np.random.RandomState(1)
    data = [tuple(Tensor(random.randn(2, 3).astype(np.float32)) for _ in range(2))]
    ops_of = [operator(network, nn.MSELoss(), data) for network in NETWORKS]
    v = random.randn(ops_of[0].shape[0]).astype(np.float32)
    close(*[np.array(op @ v) for op in ops_of])


def test_a_recorded_gradient_of_a_product():
    def written(x):
        y = ops.exp(x)
        y *= x
        return (mh.hvp(lambda z: loss(into(z * 1.0, z**2)), y, V) * x).sum()

    def plain(x):
        return (mh.hvp(lambda z: loss(z + z**2), ops.exp(x) * x, V) * x).sum()

    close(ms.grad(written)(X).asnumpy().copy(), ms.grad(plain)(X).asnumpy().copy())


# --- refused --------------------------------------------------------------------------------------


def another_name(x):
    y = norm(x)
    z = y
    y += x
    return z + y


def a_view(x):
    y = norm(x)
    z = y.reshape(-1)
    y *= x
    return y * z.sum()


def through_a_view(x):
    y = norm(x)
    z = y[0]
    z += 1.0
    return y


def in_a_list(x):
    kept, y = [], norm(x)
    kept.append(y)
    y += x
    return kept[0] + y


def in_a_list_of_a_loop(x):
    kept, y = [], norm(x)
    for _ in range(2):
        y += x
        kept.append(y)
    return kept[0] + kept[1]


def by_a_function(x):
    y = norm(x)
    return into(y, x) * y


def by_a_function_after(x):
    y = norm(x)
    return y * into(y, x)


def by_an_inner_function(x):
    def inner(a):
        a += 1.0
        return a

    y = norm(x)
    z = inner(y)
    return z * y


def by_a_closure(x):
    y = norm(x)

    def inner():
        return y * 2

    y += x
    return inner()


def what_passed_through(x):
    y = norm(x)
    z = ops.stop_gradient(y)
    y += x
    return z * y


def captured(x):
    y = CONSTANT
    y += x
    return y * y


def twice_in_a_list(x):
    y = norm(x)
    both = [y, y]
    both[0] += 1.0
    return both[1]


def an_item(x):
    y = norm(x)
    z = y
    y[0] = x[1]
    return z * y


def a_view_by_method(x):
    y = norm(x)
    y.view(-1).add_(1.0)
    return y


def within_an_expression(x):
    y = norm(x)
    return ops.exp(y.add_(x)) * y


def in_one_branch(x):
    y = norm(x)
    z = y
    if x.shape[0] == 2:
        z = z * 1
    else:
        y += x
    y += x
    return z


def an_option(x):
    return mint.nn.functional.silu(norm(x), inplace=True)


def a_layer(x):
    return SILU(norm(x))


def a_function(x):
    return ops.tanh_(norm(x))


def an_assignment(x):
    y = norm(x)
    ops.assign_add(y, x)
    return y


def an_old_function(x):
    return ops.inplace_add(norm(x), x, (0, 1))


class Held(nn.Cell):
    def __init__(self):
        super().__init__()
        self.buffer = Parameter(Tensor(np.ones((2, 3), np.float32)), name="buffer")

    def construct(self, x):
        b = self.buffer
        b += x
        return b * b


class Doubled(nn.Cell):
    def construct(self, x):
        x *= 2.0
        return x


class Caller(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layers = nn.CellList([Doubled()])

    def construct(self, x):
        y = norm(x)
        z = y
        for layer in self.layers:
            z = layer(y)
        return z * y


SILU = mint.nn.SiLU(True)
REFUSED = [
    another_name,
    a_view,
    through_a_view,
    in_a_list,
    in_a_list_of_a_loop,
    by_a_function,
    by_a_function_after,
    by_an_inner_function,
    by_a_closure,
    what_passed_through,
    captured,
    twice_in_a_list,
    an_item,
    a_view_by_method,
    within_an_expression,
    in_one_branch,
    an_option,
    a_layer,
    a_function,
    an_assignment,
    an_old_function,
    Held(),
    Caller(),
]


@pytest.mark.parametrize("fn", REFUSED, ids=name_of)
def test_a_tensor_that_is_read_after_it_was_overwritten_is_refused(fn):
    with pytest.raises(mh.NotCompilableError, match=r"test_inplace\.py:\d+") as error:
        mh.ggnvp(fn, loss, X, V)
    assert "out of place" in str(error.value) or "new Tensor" in str(error.value)


def written_loss(x):
    return loss(into(norm(x), x))


def plain_loss(x):
    return loss(norm(x) + x)


hessian_of_written = mh.hessian(written_loss)


def product_in_graph(x, v):
    return mh.hvp(written_loss, x, v)


def gauss_newton_in_graph(x, v):
    return mh.ggnvp(NET, loss, x, v)


def hessian_in_graph(x, v):
    return hessian_of_written(x) * v.sum()


@pytest.mark.parametrize(
    "graph", [product_in_graph, gauss_newton_in_graph, hessian_in_graph], ids=name_of
)
def test_inside_the_users_own_graph_it_is_refused(graph):
    with debris_removed(), pytest.raises(NotImplementedError, match="must not write in place"):
        ms.jit(graph)(X, V)


def test_inside_the_users_own_graph_other_functions_work():
    @ms.jit
    def product(x, v):
        return mh.hvp(plain_loss, x, v)

    close(product(X, V).asnumpy().copy(), mh.hvp(plain_loss, X, V).asnumpy().copy())


def test_the_users_own_graphs_are_left_alone():
    @ms.jit
    def twice(x):
        y = ops.exp(x)
        z = y
        y += x
        return z

    before = twice(X).asnumpy().copy()
    mh.hvp(written_loss, X, V)
    again = (
        ms.jit(twice.__wrapped__ if hasattr(twice, "__wrapped__") else twice)(X).asnumpy().copy()
    )
    np.testing.assert_array_equal(before, again)


@pytest.mark.full_run
def test_audit_tells_what_is_written_in_place():
    report = mh.audit(written_loss, X)
    assert len(report.written) == 1 and report.written[0].startswith("`y += z` (")
    assert "MindSpore's own gradient" in str(report)
    assert mh.audit(plain_loss, X).written == ()


# --- a network as a model library writes it: mindcv's ResNet --------------------------------------


class BasicBlock(nn.Cell):
    expansion: int = 1

    def __init__(self, in_channels, channels, stride=1, norm=None, down_sample=None):
        super().__init__()
        if norm is None:
            norm = nn.BatchNorm2d
        self.conv1 = nn.Conv2d(
            in_channels, channels, kernel_size=3, stride=stride, padding=1, pad_mode="pad"
        )
        self.bn1 = norm(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(
            channels, channels, kernel_size=3, stride=1, padding=1, pad_mode="pad"
        )
        self.bn2 = norm(channels)
        self.down_sample = down_sample

    def construct(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.down_sample is not None:
            identity = self.down_sample(x)

        out += identity
        out = self.relu(out)

        return out  # noqa: RET504 -- as mindcv writes it


class ResNet(nn.Cell):
    def __init__(self, block, channels, num_classes):
        super().__init__()
        self.norm = nn.BatchNorm2d
        self.input_channels = channels[0]
        self.conv1 = nn.Conv2d(
            3, self.input_channels, kernel_size=7, stride=2, pad_mode="pad", padding=3
        )
        self.bn1 = self.norm(self.input_channels)
        self.relu = nn.ReLU()
        self.max_pool = nn.MaxPool2d(kernel_size=3, stride=2, pad_mode="same")
        self.layer1 = self._make_layer(block, channels[0])
        self.layer2 = self._make_layer(block, channels[1], stride=2)
        self.classifier = nn.Dense(channels[1], num_classes)

    def _make_layer(self, block, channels, stride=1):
        down_sample = None
        if stride != 1 or self.input_channels != channels * block.expansion:
            down_sample = nn.SequentialCell(
                [
                    nn.Conv2d(
                        self.input_channels,
                        channels * block.expansion,
                        kernel_size=1,
                        stride=stride,
                    ),
                    self.norm(channels * block.expansion),
                ]
            )
        layer = block(
            self.input_channels, channels, stride=stride, down_sample=down_sample, norm=self.norm
        )
        self.input_channels = channels * block.expansion
        return nn.SequentialCell([layer])

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.max_pool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        return x  # noqa: RET504 -- as mindcv writes it

    def forward_head(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        x = self.classifier(x)
        return x  # noqa: RET504 -- as mindcv writes it

    def construct(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x  # noqa: RET504 -- as mindcv writes it


def drawn(name, shape):
    """The formula of ci/golden/make_resnet.py."""
    seed = sum((place + 1) * ord(letter) for place, letter in enumerate(name)) % 2**31
    values = np.random.RandomState(seed).standard_normal(shape)
    if name.endswith("gamma"):
        return 1 + 0.2 * values
    if name.endswith("moving_variance"):
        return 1 + 0.3 * np.abs(values)
    return 0.3 * values if values.ndim < 2 else values / np.sqrt(np.prod(shape[1:]))


def test_mindcvs_resnet_against_torch():
    golden = np.load(Path(__file__).parent / "golden" / "resnet.npz")
    network = ResNet(BasicBlock, (4, 8), 3).set_train(False)
    named = {parameter.name: parameter for parameter in network.get_parameters()}
    assert sorted(named) == sorted(golden["names"])
    for name, parameter in named.items():
        parameter.set_data(Tensor(drawn(name, parameter.shape).astype(np.float32)))
    size = sum(parameter.size for parameter in network.trainable_params())
    x = (drawn("x", (4, 3, 12, 12)) * np.sqrt(3 * 12 * 12)).astype(np.float32)
    data, v = (
        [(Tensor(x), Tensor(np.arange(4) % 3, ms.int32))],
        (drawn("v", (size,)) / 0.3).astype(np.float32),
    )
    loss_fn = nn.CrossEntropyLoss()
    for operator, key in (
        (mh.GGNOperator, "ggn"),
        (mh.EmpiricalFisherOperator, "empirical"),
        (mh.HessianOperator, "hessian"),
    ):
        close(operator(network, loss_fn, data) @ v, golden[key], 1e-4)
    weights = ParameterTuple(network.trainable_params())
    parts, place = [], 0
    for weight in weights:
        parts.append(Tensor(v[place : place + weight.size].reshape(weight.shape)))
        place += weight.size
    product = mh.ggnvp(
        network, lambda out: loss_fn(out, data[0][1]), data[0][0], tuple(parts), weights=weights
    )
    close(np.concatenate([part.asnumpy().ravel() for part in product]), golden["ggn"], 1e-4)


# --- Parameters that the function assigns: evaluated once, or refused; as before at the end -------


class Stateful(nn.Cell):
    """(x w)^3 times a factor of 2 that changes."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([1.0, 2.0]), name="w")
        self.factor = Parameter(Tensor([2.0]), name="factor", requires_grad=False)

    def construct(self, x):
        return (x * self.w) ** 3 * self.factor


class ReadBefore(Stateful):
    def construct(self, x):
        y = (x * self.w) ** 3 * self.factor
        self.factor = 0.5 * self.factor + ops.stop_gradient(y.mean())
        return y


class ReadAfter(Stateful):
    def construct(self, x):
        ops.assign(self.factor, self.factor * self.factor - 2)
        return (x * self.w) ** 3 * self.factor


class OldRead(Stateful):
    def construct(self, x):
        used = 0.5 * self.factor + 1
        ops.assign(self.factor, used + 1)
        return (x * self.w) ** 3 * used


class InTraining(Stateful):
    def construct(self, x):
        y = (x * self.w) ** 3 * self.factor
        if self.training:
            ops.assign(self.factor, 0.5 * self.factor + ops.stop_gradient(y.mean()))
        return y


class Counting(Stateful):
    def construct(self, x):
        ops.assign_add(self.factor, Tensor([1.0]))
        return (x * self.w) ** 3 * 2


STATE = {
    "hvp": lambda net, f, x, v: mh.hvp(f, x, v, weights=[net.w])[0],
    "hvp, fwdrev": lambda net, f, x, v: mh.hvp(f, x, v, weights=[net.w], mode="fwdrev")[0],
    "grad_and_hvp": lambda net, f, x, v: mh.grad_and_hvp(f, x, v, weights=[net.w])[1][0],
    "hessian_diag": lambda net, f, x, v: mh.hessian_diag(f, weights=[net.w])(x)[0],
    "ggnvp": lambda net, f, x, v: mh.ggnvp(net, lambda y: (y**2).sum(), x, v, weights=[net.w])[0],
}


@pytest.mark.parametrize("call", STATE)
@pytest.mark.parametrize("network", [ReadBefore, ReadAfter, OldRead, InTraining, Counting])
def test_a_parameter_that_is_assigned(network, call):
    net = network().set_train(False)
    x, v = Tensor([1.0, 0.5]), (Tensor([1.0, 1.0]),)
    want = (18 if call == "ggnvp" else 30) * 4 * np.array([1.0, 0.25])
    try:
        found = STATE[call](net, lambda x: (net(x) ** 2).sum(), x, v).asnumpy().copy()
    except mh.NotCompilableError as err:
        assert "keeps a state: it reads and assigns the Parameter 'factor'" in str(err)
        assert call != "hvp" and network not in (InTraining, Counting)
    else:
        np.testing.assert_allclose(found, want, rtol=1e-5)
    assert net.factor.asnumpy() == 2
