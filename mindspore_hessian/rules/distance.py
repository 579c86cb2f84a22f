"""Rules of distances between points, whose gradients are written with differentiable operations."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.kit import attributes_of, known
from mindspore_hessian.rules.registry import derivative


def length(difference, p):
    """The p-norm over the last axis; 0, with zero derivatives, where the difference is 0."""
    size = (
        difference if p == 2 else ops.abs(difference)
    )  # the square is smooth where a coordinate is the same
    if p == 0:
        return ops.cast(size > 0, difference.dtype).sum(-1)
    if p == 1:
        return size.sum(-1)
    if p == float("inf"):
        return size.max(-1)
    apart = ops.stop_gradient(ops.abs(size).max(-1, keepdims=True)) != 0  # also where it is NaN
    safe = ops.select(ops.logical_or(apart, size != size), size, ops.ones_like(size))
    root = (
        ops.sqrt((safe * safe).sum(-1)) if p == 2 else ops.exp(ops.log(_power(safe, p).sum(-1)) / p)
    )
    return ops.select(apart.squeeze(-1), root, ops.zeros_like(root))


def _power(x, p):
    """x ** p for x >= 0; at 0 with zero derivatives."""
    positive = x > 0
    safe = ops.select(positive, x, ops.ones_like(x))
    return ops.select(positive, ops.exp(p * ops.log(safe)), ops.zeros_like(x))


@derivative(
    "Cdist", why="MindSpore's gradient is of views that it cannot differentiate", replaces=True
)
def cdist(prim):
    """Cdist(x, y, p): the distances of every row of x from every row of y."""

    def bprop(x, y, p, out, dout):
        def distances(x, y):
            return length(ops.expand_dims(x, -2) - ops.expand_dims(y, -3), p)

        dx, dy = pull(distances)(mutable(x), mutable(y), dout)
        return dx, dy, 0

    return bprop


@constexpr
def _pairs(count):
    first, second = np.triu_indices(count, 1)
    return Tensor(first.astype(np.int32)), Tensor(second.astype(np.int32))


@derivative("Pdist", why="its backward has no derivative and hides its attributes", replaces=True)
def pdist(prim):
    """Pdist(x): the distances between every two rows."""
    (p,) = attributes_of(prim, "p")
    backward = _compat.PdistGrad(p)

    def bprop(x, out, dout):
        if not known(x.shape):  # MindSpore's own, which has no derivative
            return (backward(dout, x, out),)

        def between(x):
            first, second = _pairs(x.shape[-2])
            return length(ops.gather(x, first, x.ndim - 2) - ops.gather(x, second, x.ndim - 2), p)

        return pull(between)(mutable(x), dout)

    return bprop
