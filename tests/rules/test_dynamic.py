"""The rules that replace MindSpore's are used in training too: graphs whose shapes are dynamic keep
their gradients.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint, nn, ops

import mindspore_hessian  # noqa: F401  installs the rules
from mindspore_hessian import _compat

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 10 - 0.5


class Net(nn.Cell):
    def __init__(self, then):
        super().__init__()
        self.w = Parameter(Tensor(WEIGHT), name="w")
        self.then = then

    def construct(self, x):
        return self.then(ops.matmul(x, self.w)).sum()


class Gradient(nn.Cell):
    def __init__(self, net):
        super().__init__()
        self.net, self.weights = net, ms.ParameterTuple([net.w])
        self.grad = ops.GradOperation(get_by_list=True)

    def construct(self, x):
        return self.grad(self.net, self.weights)(x)


def square(y):
    return y * y


def gram(y):
    return ops.matmul(y.swapaxes(-1, -2), y)


def largest(y):
    return ops.max(y, 1)[0]


def padded(y):
    return ops.pad(y, (1, 1)) ** 2


def narrowed(y):
    return mint.narrow(y, 0, 1, 2) ** 2


def narrowed_from_behind(y):
    return mint.narrow(y, 0, -2, 2) ** 2


def distances(y):
    return ops.cdist(y, y * y)


def pair_distances(y):
    return ops.pdist(y)


def normalized(y):
    return ops.LRN(1)(y.expand_dims(0).expand_dims(-1))


def cropped(y):
    boxes = Tensor(np.array([[0.1, 0.2, 0.8, 0.9]], np.float32))
    return ops.crop_and_resize(
        y.expand_dims(0).expand_dims(-1), boxes, Tensor(np.array([0], np.int32)), (2, 2)
    )


CASES = {
    "matrix": (square, [None, 4]),
    "stack": (square, [2, None, 4]),
    "all": (square, [None, None, 4]),
    "tanh": (ops.tanh, [None, 4]),
    "gram": (gram, [None, 4]),
    "gram_stack": (gram, [2, None, 4]),
    "max": (largest, [None, 4]),
    "pad": (padded, [None, 4]),
    "cdist": (distances, [None, 4]),
    "pdist": (pair_distances, [None, 4]),
    "lrn": (normalized, [None, 4]),
    "crop": (cropped, [None, 4]),
}
if _compat.MS_VERSION >= (2, 8, 0):  # earlier ones have no kernels of views
    CASES.update(narrow=(narrowed, [None, 4]), narrow_behind=(narrowed_from_behind, [None, 4]))


@pytest.mark.parametrize("name", CASES)
def test_gradients_with_dynamic_shapes(name):
    then, shape = CASES[name]
    net = Net(then)
    gradient = Gradient(net)
    gradient.set_inputs(Tensor(shape=shape, dtype=ms.float32))
    for length in (3, 5):
        x = np.random.rand(*[length if size is None else size for size in shape]).astype(np.float32)
        found, step = gradient(Tensor(x))[0].asnumpy().copy(), 1e-2
        direction = np.random.rand(4, 3).astype(np.float32)

        def value(t, x=x, direction=direction):
            net.w.set_data(Tensor((WEIGHT + t * direction).astype(np.float32)))
            out = then(ops.matmul(Tensor(x), net.w)).sum().asnumpy()
            net.w.set_data(Tensor(WEIGHT))
            return float(out)

        slope = (value(step) - value(-step)) / (2 * step)
        assert abs((found * direction).sum() - slope) < 2e-3 * max(abs(slope), 1)


@pytest.mark.skipif(_compat.MS_VERSION < (2, 8, 0), reason="no CPU kernel of views")
@pytest.mark.parametrize("view", ["select", "narrow"])
@pytest.mark.parametrize("at", [2, -1])
def test_gradients_where_a_view_begins_at_a_number_known_only_at_run_time(view, at):
    def f(x, at):
        part = mint.select(x, 0, at) if view == "select" else mint.narrow(x, 0, at, 1)
        return (part**3).sum()

    x, expected = np.arange(1, 13, dtype=np.float32).reshape(4, 3), np.zeros((4, 3))
    expected[at] = 3 * x[at] ** 2
    found = ms.jit(ops.GradOperation()(f))(Tensor(x), ms.mutable(at))
    np.testing.assert_allclose(found.asnumpy(), expected)
