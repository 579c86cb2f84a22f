"""Rules of distances between points, whose gradients are written with differentiable operations."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    chain,
    mark_of_missing,
    sum_or_difference,
    times,
    value_of,
)
from mindspore_hessian.rules.kit import attributes_of, each, front, known
from mindspore_hessian.rules.registry import batching, derivative, expansion, forward


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
def _constants(p, dtype):
    """1 / p, 1 / p - 1, p - 1 and p - 2, which as numbers MindSpore would round to float32."""
    return tuple(Tensor(number, dtype) for number in (1 / p, 1 / p - 1, p - 1, p - 2))


@batching("Pdist", why="MindSpore's hands a batch to a kernel of one matrix", replaces=True)
def batched_pdist(prim, axis_size):
    """By the differences of rows."""
    (p,) = attributes_of(prim, "p")

    def rule(pair):
        if pair[1] is None:
            return prim(pair[0]), None
        return length(_between_rows(front(*pair)), p), 0

    return rule


@constexpr
def _smooth(p):
    """Whether the p-norm is a sum of powers."""
    return p not in (0, float("inf"))


def _pushed_length(a, p):
    """The p-norm over the last axis of a triple; 0, with zero derivatives, where that is 0."""
    if p == 1:
        sign = ops.sign(a[0])
        return (ops.abs(a[0]).sum(-1), (a[1] * sign).sum(-1), (a[2] * sign).sum(-1))
    root, root_less, once, twice = _constants(p, a[0].dtype)
    if p == 2:
        total = times(a, a)
    else:
        size, sign = ops.abs(a[0]), ops.sign(a[0])
        first = p * _power(size, once) * sign
        total = chain(a, _power(size, p), first, p * once * _power(size, twice))
    total = (total[0].sum(-1), total[1].sum(-1), total[2].sum(-1))
    apart, nothing = total[0] != 0, ops.zeros_like(total[0])  # NaN is apart
    safe = ops.select(apart, total[0], ops.ones_like(total[0]))
    y = ops.sqrt(safe) if p == 2 else ops.exp(root * ops.log(safe))
    first = ops.select(apart, y / safe * root, nothing)
    return chain(total, ops.select(apart, y, nothing), first, first * root_less / safe)


def _expanded(pair, axis):
    """A pair with one more axis, counted from the end."""
    if pair[1] == FORWARD:
        v, j, l = pair[0]  # noqa: E741
        return (
            (ops.expand_dims(v, axis), ops.expand_dims(j, axis), ops.expand_dims(l, axis)),
            FORWARD,
        )
    return ops.expand_dims(pair[0], axis), None


@forward("Cdist")
@allow(0, 1)
def pushed_cdist(prim, usual):
    """The distances of every row of x from every row of y."""
    difference, missing = sum_or_difference(ops.Sub(), usual), mark_of_missing("Cdist")

    def rule(x_pair, y_pair, p_pair):
        if not _smooth(p_pair[0]):
            return prim(value_of(x_pair), value_of(y_pair), p_pair[0]), missing
        apart = difference(_expanded(x_pair, -2), _expanded(y_pair, -3))
        return (_pushed_length(apart[0], p_pair[0]), FORWARD)

    return rule


@forward("Pdist")
@allow(0)
def pushed_pdist(prim, usual):
    """The distances between every two rows."""
    (p,) = attributes_of(prim, "p")

    missing = mark_of_missing("Pdist")

    def rule(x_pair):
        v, j, l = x_pair[0]  # noqa: E741
        if not _smooth(p):
            return prim(v), missing
        apart = _between_rows(v), _between_rows(j), _between_rows(l)
        return (_pushed_length(apart, p), FORWARD)

    return rule


@constexpr
def _pairs(count):
    first, second = np.triu_indices(count, 1)
    return Tensor(first.astype(np.int32)), Tensor(second.astype(np.int32))


def _between_rows(x):
    """The differences between every two rows."""
    first, second = _pairs(x.shape[-2])
    return ops.gather(x, first, x.ndim - 2) - ops.gather(x, second, x.ndim - 2)


@derivative("Pdist", why="its backward has no derivative and hides its attributes", replaces=True)
def pdist(prim):
    """Pdist(x): the distances between every two rows."""
    (p,) = attributes_of(prim, "p")
    backward = _compat.PdistGrad(p)

    def bprop(x, out, dout):
        if not known(x.shape):  # MindSpore's own, which has no derivative
            return (backward(dout, x, out),)

        def between(x):
            return length(_between_rows(x), p)

        return pull(between)(mutable(x), dout)

    return bprop


# --- Taylor coefficients --------------------------------------------------------------------------


def _length_series(apart):
    """The length over the last axis; 0, with zero derivatives, where that is 0."""
    total = taylor.summed(taylor.squared(apart), -1, False)
    apart, nothing = total[0] != 0, ops.zeros_like(total[0])  # NaN is apart
    safe = ops.sqrt(ops.select(apart, total[0], ops.ones_like(total[0])))
    out = ()
    for one in taylor.root(safe, total):
        out = out + (ops.select(apart, one, nothing),)
    return out


def _as_rows(x):
    return ops.expand_dims(x, -2)


def _as_columns(x):
    return ops.expand_dims(x, -3)


@expansion("Cdist")
@allow(0, 1)
def expanded_cdist(prim, usual):
    """The distances of every row of x from every row of y, as lengths."""
    missing = mark_of_missing("Cdist")

    def rule(x_pair, y_pair, p_pair):
        x, y = taylor.coefficients(x_pair), taylor.coefficients(y_pair)
        if p_pair[0] != 2:
            return prim(x[0], y[0], p_pair[0]), missing
        apart = taylor.minus(each(_as_rows, x), each(_as_columns, y))
        return taylor.joined(_length_series(taylor.broadcast(apart, apart[0])))

    return rule


@expansion("Pdist")
@allow(0)
def expanded_pdist(prim, usual):
    """The distances between every two rows, as lengths."""
    (p,) = attributes_of(prim, "p")
    missing = mark_of_missing("Pdist")

    def rule(x_pair):
        x = taylor.coefficients(x_pair)
        if p != 2:
            return prim(x[0]), missing
        return taylor.joined(_length_series(each(_between_rows, x)))

    return rule
