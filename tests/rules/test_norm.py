"""LayerNorm and the networks that are made of it: every order, axis, dtype and output, with
variances near epsilon.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, Tensor, nn, ops, vmap

import mindspore_hessian as mh
from mindspore_hessian import _compat

SHAPE = (2, 3, 4)
EPSILON = 0.01
WIDE = np.longdouble


def arrays(seed, params_axis):
    """x, gamma, beta and a direction for each; x has a variance near epsilon."""
    rng = np.random.default_rng(seed)
    scale = SHAPE[params_axis:]
    return [
        0.1 * rng.normal(size=SHAPE),
        *rng.normal(size=(2, *scale)),
        0.1 * rng.normal(size=SHAPE),
        *rng.normal(size=(2, *scale)),
    ]


def truth(values, norm_axis, params_axis):
    """Gradient, product and third derivative of the loss below: the gradient's formula, and
    differences of it.
    """
    axes, rows = tuple(range(norm_axis, 3)), tuple(range(params_axis))
    x, gamma, beta, *direction = [value.astype(WIDE) for value in values]

    def gradient(t):
        at, g, b = (one + t * d for one, d in zip((x, gamma, beta), direction, strict=True))
        c = at - at.mean(axes, keepdims=True)
        v = (c * c).mean(axes, keepdims=True)
        r = 1 / np.sqrt(v + WIDE(np.float32(EPSILON)))
        n, width = c * r, np.prod(SHAPE[norm_axis:])
        d = np.cos(n * g + b)
        a = d * g
        dx = r * (a - a.mean(axes, keepdims=True) - n * (a * n).mean(axes, keepdims=True))
        dx = dx + (2 * at.mean(axes, keepdims=True) + 2 * v * 100 * 2 * c) / width
        return np.concatenate([dx.ravel(), (d * n).sum(rows).ravel(), d.sum(rows).ravel()]).astype(
            WIDE
        )

    h = WIDE(1e-3)
    far, near = (gradient(2 * h), gradient(-2 * h)), (gradient(h), gradient(-h))
    return (
        gradient(0),
        (8 * (near[0] - near[1]) - (far[0] - far[1])) / (12 * h),
        (16 * (near[0] + near[1]) - (far[0] + far[1]) - 30 * gradient(0)) / (12 * h * h),
    )


def orders(norm_axis, params_axis):
    """The gradient of a loss of all three outputs, its product and third derivative with a
    direction.
    """
    norm = ops.LayerNorm(norm_axis, params_axis, EPSILON)
    grad, pull = ops.GradOperation(get_all=True), ops.GradOperation(get_all=True, sens_param=True)

    def loss(x, gamma, beta):
        y, m, v = norm(x, gamma, beta)
        return ops.cast(ops.sin(y).sum(), ms.float64) + ops.cast(
            (m * m).sum() + 100 * (v * v).sum(), ms.float64
        )

    def first(x, gamma, beta, u, s, t):
        return grad(loss)(x, gamma, beta)

    def second(x, gamma, beta, u, s, t):
        def gradient(x, gamma, beta):
            return grad(loss)(x, gamma, beta)

        return pull(gradient)(x, gamma, beta, (u, s, t))

    def third(x, gamma, beta, u, s, t):
        def product(x, gamma, beta):
            return second(x, gamma, beta, u, s, t)

        return pull(product)(x, gamma, beta, (u, s, t))

    return first, second, third


def flat(result):
    return np.concatenate([one.asnumpy().astype(np.float64).ravel() for one in result])


def assert_near(got, expected, tolerance):
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


AXES = ((2, 2), (-1, -1), (1, 2), (2, 1), (1, 1), (0, 0))
TOLERANCE = {
    ms.float64: 2e-7,
    ms.float32: 3e-6,
    ms.float16: 1e-2,
}  # the variance is an output in float32


@pytest.mark.parametrize(
    ("axes", "dtype"),
    [
        *((axes, ms.float32) for axes in AXES),
        *((axes, ms.float64) for axes in AXES[:3]),
        (AXES[0], ms.float16),
    ],
    ids=str,
)
def test_layer_norm_in_every_order(axes, dtype):
    values = arrays(1, axes[1] % 3)
    expected = truth(values, axes[0] % 3, axes[1] % 3)
    tensors = tuple(Tensor(value, dtype) for value in values)
    for function, right in list(zip(orders(*axes), expected, strict=True))[
        : 3 if axes in AXES[:3] else 2
    ]:
        assert_near(flat(_compat.Graph(function, tensors, "O0")(tensors)), right, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("axes", "batched"),
    [((-1, -1), "directions"), ((1, 2), "directions"), ((2, 1), "everything")],
    ids=str,
)
def test_layer_norm_in_batches(axes, batched):
    samples = [arrays(seed, axes[1] % 3) for seed in (1, 2)]
    if batched == "directions":
        samples[1][:3] = samples[0][:3]
    expected = [truth(values, axes[0] % 3, axes[1] % 3)[1] for values in samples]
    stacked = [Tensor(np.stack(pair), ms.float32) for pair in zip(*samples, strict=True)]
    in_axes: object = 0
    if batched == "directions":
        stacked[:3] = [Tensor(value, ms.float32) for value in samples[0][:3]]
        in_axes = (None, None, None, 0, 0, 0)
    product = vmap(orders(*axes)[1], in_axes=in_axes)

    def many(x, gamma, beta, u, s, t):
        return product(x, gamma, beta, u, s, t)

    got = [one.asnumpy() for one in _compat.Graph(many, tuple(stacked), "O0")(tuple(stacked))]
    for number, right in enumerate(expected):
        assert_near(
            np.concatenate([one[number].ravel() for one in got]), right, TOLERANCE[ms.float32]
        )


@pytest.mark.parametrize("dtype", [ms.float32, ms.float64], ids=str)
def test_constant_rows(dtype):
    """At a constant row of width 2, with x = (t, -t): y = t / sqrt(t^2 + eps), so y + y^2 has slope
    r and curvature 2 r^2 there."""
    norm, one = ops.LayerNorm(-1, -1, EPSILON), Tensor(np.ones(2), dtype)

    def loss(x):
        y = norm(x, one, ops.zeros_like(one))[0][:, 0]
        return (y + y * y).sum()

    x, v = np.array([[3.0, 3.0], [1.0, 2.0]]), np.array([[1.0, -1.0], [0.0, 0.0]])
    product = mh.hvp(loss, Tensor(x, dtype), Tensor(v, dtype)).asnumpy()
    np.testing.assert_allclose(product[0], [1 / EPSILON, -1 / EPSILON], rtol=1e-5)
    assert not product[1].any()


def test_inside_a_graph_of_the_users():
    axes = (2, 2)
    values = arrays(3, 2)
    tensors = [Tensor(value, ms.float32) for value in values]
    norm = ops.LayerNorm(*axes, EPSILON)

    def loss(x):
        y, m, v = norm(x, tensors[1], tensors[2])
        return ops.sin(y).sum() + (m * m).sum() + 100 * (v * v).sum()

    @ms.jit
    def step(x, u):
        return mh.hvp(loss, x, u)

    values[4], values[5] = 0 * values[4], 0 * values[5]
    expected = truth(values, *axes)[1][: values[0].size].reshape(SHAPE)
    assert_near(step(tensors[0], tensors[3]).asnumpy(), expected, TOLERANCE[ms.float32])


class Dynamic(nn.Cell):
    def __init__(self):
        super().__init__()
        self.norm, self.grad = ops.LayerNorm(-1, -1, EPSILON), ops.GradOperation()
        self.scale, self.shift = (
            Tensor(np.arange(1, 5), ms.float32),
            Tensor(np.zeros(4), ms.float32),
        )

    def loss(self, x):
        return (self.norm(x, self.scale, self.shift)[0] ** 2).sum()

    def construct(self, x):
        return self.grad(self.loss)(x)


def test_a_gradient_with_dynamic_rows():
    net = Dynamic()
    net.set_inputs(Tensor(shape=[None, 4], dtype=ms.float32))
    for rows in (2, 5):
        x = 0.1 * np.random.default_rng(rows).normal(size=(rows, 4))
        got, (c, scale) = (
            net(Tensor(x, ms.float32)).asnumpy(),
            (x - x.mean(1, keepdims=True), np.arange(1, 5)),
        )
        r = 1 / np.sqrt((c * c).mean(1, keepdims=True) + EPSILON)
        a, n = 2 * c * r * scale**2, c * r
        assert_near(
            got, r * (a - a.mean(1, keepdims=True) - n * (a * n).mean(1, keepdims=True)), 1e-5
        )


# --- whole networks -------------------------------------------------------------------------------


class Weights(nn.Cell):
    """Weights by name, in the order of a network's flat vector."""

    def __init__(self, seed, shapes, small):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.values = {}
        for name, shape in shapes.items():
            value = rng.normal(size=shape) / math.sqrt(shape[-1] if len(shape) > 1 else 4)
            self.values[name] = (small if name == "first" else 1.0) * value + (
                name.startswith("scale")
            )
            setattr(self, name, Parameter(Tensor(self.values[name], ms.float32), name=name))


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def standard(x, eps):
    c = x - x.mean(-1, keepdims=True)
    return c / np.sqrt((c * c).mean(-1, keepdims=True) + eps)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Transformer(Weights):
    """A block as GPT has it: norm, causal attention, norm, a wide layer with gelu; the first
    weights make words small, as they are at the beginning of training."""

    def __init__(self, eps):
        shapes = {
            "first": (6, 4),
            "scale1": (4,),
            "shift1": (4,),
            "query": (4, 4),
            "key": (4, 4),
            "value": (4, 4),
            "scale2": (4,),
            "shift2": (4,),
            "wide": (4, 8),
            "narrow": (8, 4),
            "scale3": (4,),
            "shift3": (4,),
            "head": (4, 3),
        }
        super().__init__(4, shapes, 0.003)
        self.norm, self.mask = (
            ops.LayerNorm(-1, -1, eps),
            Tensor(np.triu(-1e4 * np.ones((5, 5)), 1), ms.float32),
        )

    def construct(self, words):
        x = ops.gather(self.first, words, 0)
        y = self.norm(x, self.scale1, self.shift1)[0]
        scores = ops.matmul(ops.matmul(y, self.query), ops.matmul(y, self.key).swapaxes(1, 2)) / 2
        attended = ops.matmul(ops.softmax(scores + self.mask, -1), ops.matmul(y, self.value))
        x = x + 0.001 * attended
        y = self.norm(x, self.scale2, self.shift2)[0]
        x = x + 0.001 * ops.matmul(ops.gelu(ops.matmul(y, self.wide)), self.narrow)
        return ops.matmul(self.norm(x, self.scale3, self.shift3)[0].mean(1), self.head)

    @staticmethod
    def written_out(w, words, eps):
        x = w["first"][words]
        y = standard(x, eps) * w["scale1"] + w["shift1"]
        scores = (y @ w["query"]) @ (y @ w["key"]).swapaxes(1, 2) / 2 + np.triu(
            -1e4 * np.ones((5, 5)), 1
        )
        x = x + 0.001 * softmax(scores) @ (y @ w["value"])
        y = standard(x, eps) * w["scale2"] + w["shift2"]
        x = x + 0.001 * gelu(y @ w["wide"]) @ w["narrow"]
        return (standard(x, eps) * w["scale3"] + w["shift3"]).mean(1) @ w["head"]

    INPUT = np.random.default_rng(5).integers(0, 6, (4, 5)).astype(np.int32)


class ConvNeXt(Weights):
    """A block as ConvNeXt has it: a depthwise convolution, norm over the channels, a wide layer, a
    residual.
    """

    def __init__(self, eps):
        shapes = {
            "first": (4, 1, 3, 3),
            "scale1": (4,),
            "shift1": (4,),
            "wide": (4, 8),
            "narrow": (8, 4),
            "scale2": (4,),
            "shift2": (4,),
            "head": (4, 3),
        }
        super().__init__(6, shapes, 0.003)
        self.norm = ops.LayerNorm(-1, -1, eps)
        self.depthwise = ops.Conv2D(4, 3, pad_mode="pad", pad=1, group=4)

    def construct(self, x):
        y = self.norm(
            self.depthwise(x, self.first).transpose(0, 2, 3, 1), self.scale1, self.shift1
        )[0]
        y = 0.001 * ops.matmul(
            ops.gelu(ops.matmul(y, self.wide)), self.narrow
        ) + 0.003 * x.transpose(0, 2, 3, 1)
        return ops.matmul(self.norm(y.mean((1, 2)), self.scale2, self.shift2)[0], self.head)

    @staticmethod
    def written_out(w, x, eps):
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = sum(
            w["first"][:, 0, i, j].reshape(1, 4, 1, 1) * padded[:, :, i : i + 4, j : j + 4]
            for i in range(3)
            for j in range(3)
        )
        y = standard(y.transpose(0, 2, 3, 1), eps) * w["scale1"] + w["shift1"]
        y = 0.001 * gelu(y @ w["wide"]) @ w["narrow"] + 0.003 * x.transpose(0, 2, 3, 1)
        return (standard(y.mean((1, 2)), eps) * w["scale2"] + w["shift2"]) @ w["head"]

    INPUT = np.random.default_rng(7).normal(size=(4, 4, 4, 4)).astype(np.float32)


LABELS = np.array([0, 2, 1, 1], np.int32)
POINTS = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))


def quadratic_forms(net, eps, directions, v):
    """u^T A v for the matrices A of the operators and some u, by differences of values in
    float64.
    """
    values = {
        name: p.asnumpy().astype(np.float64)
        for name, p in ((p.name, p) for p in net.trainable_params())
    }

    def outputs(change):
        w, at = {}, 0
        for name, value in values.items():
            w[name] = value + change[at : at + value.size].reshape(value.shape)
            at += value.size
        return net.written_out(w, net.INPUT, eps)

    def losses(change):
        return -np.log(softmax(outputs(change)))[np.arange(4), LABELS]

    def slope(function, u, h=1e-3):
        return sum(a * function(h * i * u) for i, a in POINTS) / h

    z = softmax(outputs(0 * v))
    along_v, grad_v = slope(outputs, v), slope(losses, v)
    found: dict[str, list[float]] = {"hessian": [], "ggn": [], "empirical": []}
    for u in directions:
        found["hessian"].append(slope(lambda s, u=u: slope(lambda t: losses(s + t).mean(), u), v))
        j = slope(outputs, u)
        found["ggn"].append(
            ((z * j * along_v).sum(1) - (z * j).sum(1) * (z * along_v).sum(1)).mean()
        )
        found["empirical"].append((slope(losses, u) * grad_v).mean())
    return {name: np.array(value) for name, value in found.items()}


OPERATORS = {
    mh.HessianOperator: "hessian",
    mh.GGNOperator: "ggn",
    mh.FisherOperator: "ggn",
    mh.EmpiricalFisherOperator: "empirical",
}


TURNS = {
    Transformer: [
        (mh.HessianOperator, "hessian"),
        (mh.FisherOperator, "ggn"),
    ],  # in the default run
    ConvNeXt: [(mh.GGNOperator, "ggn"), (mh.EmpiricalFisherOperator, "empirical")],
}


@pytest.mark.parametrize(
    ("make", "eps"), [(Transformer, 1e-5), (ConvNeXt, 1e-6)], ids=["transformer", "convnext"]
)
def test_every_operator_on_a_network_with_small_variances(make, eps):
    net = make(eps)
    size = np.concatenate(
        [np.full(value.size, np.abs(value).mean()) for value in net.values.values()]
    )
    rng = np.random.default_rng(9)
    v, *directions = size * rng.normal(size=(9, size.size))
    expected = quadratic_forms(net, eps, directions, v)
    without = quadratic_forms(net, 1e-12, directions, v)
    data = [(Tensor(net.INPUT), Tensor(LABELS))]
    for operator, name in OPERATORS.items() if FULL else TURNS[make]:
        product = operator(net, nn.CrossEntropyLoss(), data, progress=False) @ v.astype(np.float32)
        forms, largest = np.array(directions) @ product, np.abs(expected[name]).max()
        assert np.abs(without[name] - expected[name]).max() > 0.01 * largest, (
            "epsilon does not matter here"
        )
        assert np.abs(forms - expected[name]).max() < 2e-4 * largest, (
            operator.__name__,
            forms,
            expected[name],
        )
