"""Operands of unequal shapes in large results, which are copied to one shape on the CPU."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, jit, ops, vmap

import mindspore_hessian as mh
from mindspore_hessian.rules import kit

RANDOM = np.random.default_rng(0)
UFUNCS = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
}
SHAPES = [  # of x and y, and their batch axes: one is not batched, or both are, or both are copied
    ((70, 30, 40), (30, 40), (0, None)),
    ((30, 40), (70, 30, 40), (None, 0)),
    ((70, 30, 40), (40,), (0, None)),
    ((30, 70, 40), (70, 30, 1), (1, 0)),
    ((70, 30, 1), (40,), (0, None)),
    ((70, 1), (30, 40), (0, None)),
]


def numbers(shape, dtype):
    """Some equal ones among them, and no zero."""
    return (RANDOM.integers(1, 9, shape) / 4).astype(dtype)


@pytest.mark.parametrize("x_shape, y_shape, axes", SHAPES)
@pytest.mark.parametrize("name", kit._ALIKE)
def test_copied_operands_give_the_same(name, x_shape, y_shape, axes):
    prim = getattr(ops, name)()

    def apply(x, y):
        return prim(x, y)

    batched = jit(vmap(apply, in_axes=axes))
    for dtype in (np.float32, np.float64):
        x, y = numbers(x_shape, dtype), numbers(y_shape, dtype)
        samples = [
            UFUNCS[name](
                x if axes[0] is None else x.take(k, axes[0]),
                y if axes[1] is None else y.take(k, axes[1]),
            )
            for k in range(70)
        ]
        np.testing.assert_array_equal(batched(Tensor(x), Tensor(y)).asnumpy(), samples)


@jit
def shapes(x, y):
    a, b = kit.alike("Mul", x, y)
    return a.shape, b.shape


@pytest.mark.parametrize(
    "x, y, alike",
    [
        ((300, 300), (300,), True),
        ((300, 1), (1, 300), True),
        ((30, 30), (30,), False),  # small
        ((300, 300), (1, 1), False),  # as fast as it is
    ],
)
def test_what_is_copied(x, y, alike):
    found = shapes(ops.ones(x, ms.float32), ops.ones(y, ms.float32))
    assert found == (((300, 300),) * 2 if alike else (x, y))
    assert shapes(ops.ones(x, ms.float64), ops.ones(y, ms.float64)) == (x, y)  # no faster


def test_a_hessian_of_many_inputs():
    """W' diag(tanh'') W."""
    w, x = RANDOM.normal(size=(300, 300)) / 20, RANDOM.normal(size=300)
    t = np.tanh(w @ x)
    held = Tensor(w, ms.float32)
    found = mh.hessian(lambda x: ops.tanh(ops.matmul(held, x)).sum())(Tensor(x, ms.float32))
    expected = w.T @ ((-2 * t * (1 - t * t))[:, None] * w)
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5 * abs(expected).max())


def test_laplacians_at_many_points_and_their_gradient():
    """c tanh(V tanh(W x)), by the formula, in float64."""
    w, v = RANDOM.normal(size=(40, 8)) / 3, RANDOM.normal(size=(40, 40)) / 6
    c, points = RANDOM.normal(size=40), RANDOM.normal(size=(300, 8))

    def laplacians(c):
        first = np.tanh(points @ w.T)  # j and l of what comes after each layer
        slope = 1 - first**2
        j = slope[:, :, None] * w
        curve = -2 * first * slope * (w**2).sum(1)
        second = np.tanh(first @ v.T)
        j, curve, slope = np.einsum("kh,nhd->nkd", v, j), curve @ v.T, 1 - second**2
        return (slope * curve - 2 * second * slope * (j**2).sum(2)) @ c

    held = [Tensor(one, ms.float32) for one in (w, v)]
    weights = ms.Parameter(Tensor(c, ms.float32), name="c")

    def net(x):
        inner = ops.tanh(ops.matmul(x, held[0].T))
        return (ops.tanh(ops.matmul(inner, held[1].T)) * weights).sum(-1)

    def risk(x):
        return (mh.laplacian(net, in_axes=0)(x) ** 2).sum()

    x = Tensor(points, ms.float32)
    expected = laplacians(c)
    found = mh.laplacian(net, in_axes=0)(x).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())
    slopes = np.stack([laplacians(row) for row in np.eye(40)])  # linear in c
    gradient = jit(ms.grad(risk, None, weights))(x).asnumpy()
    expected = 2 * slopes @ expected
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * abs(expected).max())
