"""`ops.logsumexp` without the derivative of its maximum, against the closed form, at ties too."""

from __future__ import annotations

import numpy as np
import pytest
from mindspore import Tensor, ops

import mindspore_hessian as mh


def products(x, axis, v):
    """Of f = sum(logsumexp(x)^2) with s = softmax(x): the gradient 2 l s, and the Hessian times v,
    2 (s.v) s + 2 l (s v - s (s.v)).
    """
    highest = x.max(axis, keepdims=True)
    powers = np.exp(x - highest)
    total = powers.sum(axis, keepdims=True)
    s, value = powers / total, np.log(total) + highest
    along = (s * v).sum(axis, keepdims=True)
    return 2 * value * s, 2 * along * s + 2 * value * (s * v - s * along)


@pytest.mark.parametrize(
    ("shape", "axis", "keepdim"),
    [
        ((5,), 0, False),
        ((3, 4), 1, True),
        ((3, 4), 0, False),
        ((3, 4), -1, False),
        ((2, 3, 4), (1, 2), True),
        ((3, 4), (), True),
    ],
)
def test_logsumexp(shape, axis, keepdim):
    rng = np.random.default_rng(0)
    x, v = 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    x.reshape(-1, shape[-1])[0, :2] = x.max() + 1  # two are the largest
    axes = tuple(range(len(shape))) if axis == () else axis

    def f(x):
        return (ops.logsumexp(x, axis, keepdim) ** 2).sum()

    point, direction = Tensor(x), Tensor(v)
    expected = products(x, axes, v)
    for found, wanted in zip(mh.grad_and_hvp(f, point, direction), expected, strict=True):
        np.testing.assert_allclose(found.asnumpy(), wanted, atol=1e-13)
    rows = np.stack([products(x, axes, row.reshape(shape))[1].ravel() for row in np.eye(x.size)])
    found = mh.hessian(f)(point).asnumpy().reshape(x.size, x.size)
    np.testing.assert_allclose(found, rows, atol=1e-13)
    laplacian = mh.laplacian(f, mode="forward")(point).asnumpy()
    np.testing.assert_allclose(laplacian, np.trace(rows), atol=1e-12)
    _, (_, second) = mh.jet(f, (point,), ((direction, Tensor(np.zeros(shape))),))
    np.testing.assert_allclose(second.asnumpy(), (v * expected[1]).sum(), atol=1e-12)
