"""Layers that hold Parameters or write statistics: their Hessians in one batch, against numpy in
float64.
"""

from __future__ import annotations

import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, nn, ops

import mindspore_hessian as mh

RNG = np.random.default_rng(0)


def in_one_batch(f, *xs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", mh.FallbackWarning)
        return (
            mh.hessian(f)(*(Tensor(x.astype(np.float32)) for x in xs))
            .asnumpy()
            .reshape(xs[0].size, xs[0].size)
        )


def second_differences(f, x, step=1e-3):
    """The Hessian of a function of numpy arrays, of second order in the step."""
    n = x.size
    out = np.empty((n, n))
    e = step * np.eye(n).reshape(n, *x.shape)
    for i in range(n):
        for j in range(n):
            out[i, j] = (
                f(x + e[i] + e[j]) - f(x + e[i] - e[j]) - f(x - e[i] + e[j]) + f(x - e[i] - e[j])
            ) / 4
    return out / step**2


def agree(found, expected, tolerance=1e-4):
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_prelu():
    layer, x = nn.PReLU(), RNG.standard_normal((2, 3))
    slope = np.where(x > 0, 1, 0.25)
    agree(in_one_batch(lambda x: (layer(x) ** 3).sum(), x), np.diag((6 * slope**3 * x).reshape(-1)))


@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 1, 3)])
def test_batch_norm_in_training_keeps_its_statistics(shape):
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(2)
    layer.set_train(True)
    before = layer.moving_mean.asnumpy().copy(), layer.moving_variance.asnumpy().copy()
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    x, c = RNG.standard_normal(shape), RNG.standard_normal(shape)

    def truth(x):
        y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
        return (c * y**3).sum()

    weights = Tensor(c.astype(np.float32))
    agree(
        in_one_batch(lambda x: (weights * layer(x) ** 3).sum(), x),
        second_differences(truth, x),
        1e-3,
    )
    np.testing.assert_array_equal(layer.moving_mean.asnumpy(), before[0])
    np.testing.assert_array_equal(layer.moving_variance.asnumpy(), before[1])


@pytest.mark.fresh_process
def test_multi_head_attention():
    layer, x = nn.MultiheadAttention(4, 2, batch_first=True), RNG.standard_normal((1, 3, 4))
    w_in, w_out = (
        p.asnumpy().astype(np.float64) for p in (layer.in_proj_weight, layer.out_proj.weight)
    )
    b_in, b_out = (
        p.asnumpy().astype(np.float64) for p in (layer.in_proj_bias, layer.out_proj.bias)
    )

    def truth(x):
        q, k, v = np.split(x[0] @ w_in.T + b_in, 3, axis=1)
        heads = []
        for head in (slice(0, 2), slice(2, 4)):
            scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(2))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
        return ((np.concatenate(heads, 1) @ w_out.T + b_out) ** 2).sum()

    agree(
        in_one_batch(lambda x: (layer(x, x, x)[0] ** 2).sum(), x),
        second_differences(truth, x),
        1e-3,
    )


def test_random_numbers_in_evaluation():
    x = RNG.standard_normal((2, 3))
    slope = np.where(x > 0, 1, 0.2)
    agree(
        in_one_batch(lambda x: (nn.RReLU(0.2, 0.2)(x) ** 3).sum(), x),
        np.diag((6 * slope**3 * x).reshape(-1)),
    )
    given = Tensor(x.astype(np.float32))
    with pytest.warns(mh.FallbackWarning, match="primitive Generator has no batching rule"):
        found = mh.hessian(lambda x: (mint.nn.functional.dropout(x, 0.5, False) ** 3).sum())(given)
    agree(found.asnumpy().reshape(6, 6), np.diag(6 * x.reshape(-1)))


def test_cut_and_resized_images_go_row_after_row():
    image, boxes = RNG.standard_normal((2, 2, 3, 1)), np.array([[0.1, 0, 0.8, 0.9]], np.float32)
    cut = ops.CropAndResize()

    def cropped(x):
        return cut(x, Tensor(boxes), Tensor([1], ms.int32), (2, 2))

    units = np.eye(image.size, dtype=np.float32).reshape(-1, *image.shape)
    map_of = np.stack([cropped(Tensor(unit)).asnumpy().reshape(-1) for unit in units], 1)
    with pytest.warns(mh.FallbackWarning, match="primitive CropAndResize has no batching rule"):
        found = mh.hessian(lambda x: (cropped(x) ** 2).sum())(Tensor(image.astype(np.float32)))
    agree(found.asnumpy().reshape(image.size, image.size), 2 * map_of.T @ map_of)
