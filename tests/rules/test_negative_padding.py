"""MindSpore's kernel of padding is right in its first run alone where a padding is negative, and the
gradient of mint's padding is one: the same at every call, and as numpy has it."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, mint, nn, ops

import mindspore_hessian as mh

RNG = np.random.default_rng(6)
X, V = RNG.uniform(0.5, 1.5, (3, 4, 2)), RNG.standard_normal((3, 4, 2))
PADDINGS = [(1, -1, 2, 0), (-1, 0, 0, -1), (0, -1), (1, 1, 2, 0), (1, 1, -2, 1, 0, -1)]
WAYS = {
    "ops": lambda x, pads: ops.pad(x, pads, value=0.5),
    "mint": lambda x, pads: mint.nn.functional.pad(x, pads, value=0.5),
}


def padded(x, pads):
    """By numpy."""
    axes = [(0, 0)] * (3 - len(pads) // 2) + [*zip(pads[::2], pads[1::2], strict=True)][::-1]
    cut = x[
        tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(axes, x.shape, strict=True))
    ]
    return np.pad(cut, [(max(a, 0), max(b, 0)) for a, b in axes], constant_values=0.5)


def weights(pads):
    return np.random.default_rng(7).standard_normal(padded(X, pads).shape)


@pytest.mark.parametrize("pads", PADDINGS if FULL else PADDINGS[::3], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_every_call_is_right(way, pads):
    pad, w = WAYS[way], weights(pads)

    def function(x):
        y = pad(x * x, pads)
        return (Tensor(w) * y * y).sum()

    # the sum over what stays of w x^4
    stays = padded(np.ones_like(X), pads) * 0 + w
    slope = np.zeros_like(X)
    for place in np.ndindex(X.shape):
        one = np.zeros_like(X)
        one[place] = 1.0
        slope[place] = (stays * (padded(one, pads) - padded(0 * one, pads))).sum()
    expected = 12 * slope * X**2
    for _ in range(3):
        np.testing.assert_allclose(
            mh.hvp(function, Tensor(X), Tensor(V)).asnumpy(), expected * V, rtol=1e-12, atol=1e-12
        )
    for mode in ("forward", "reverse"):
        for _ in range(2):
            found = mh.laplacian(function, mode=mode)(Tensor(X)).asnumpy()
            np.testing.assert_allclose(found, expected.sum(), rtol=1e-12)
    matrix = mh.hessian(function)(Tensor(X)).asnumpy().reshape(X.size, X.size)
    np.testing.assert_allclose(matrix, np.diag(expected.ravel()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer", [mint.nn.ConstantPad1d((1, 0), 0.5), nn.ConstantPad1d((1, -1), 0.5)]
)
def test_layers(layer):
    kept = 2 if layer.padding[1] == 0 else 1

    def function(x):
        return (layer(x * x) ** 2).sum()

    expected = np.zeros_like(X)
    expected[..., :kept] = 12 * X[..., :kept] ** 2
    for _ in range(3):
        found = mh.hvp(function, Tensor(X), Tensor(np.ones_like(X))).asnumpy()
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_value_of_a_graph_of_ones_own():
    """Importing the package mends it there too."""

    @ms.jit
    def value(x):
        return ops.pad(x, (1, -1))

    for _ in range(3):
        np.testing.assert_array_equal(
            value(Tensor([[1.0, 2.0, 3.0]], ms.float64)).asnumpy(), [[0, 1, 2]]
        )
