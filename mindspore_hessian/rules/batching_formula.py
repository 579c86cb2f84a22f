"""Batching rules of backward primitives that mix entries, as the formula of one sample on broadcasting operands."""
from __future__ import annotations

from collections.abc import Callable

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian.rules import derivatives_nn as nn
from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    aligned,
    any_batched,
    filled,
    front,
    largest,
    merged,
    primitive,
    reshape,
    sample_rank,
    unpaired,
    values,
)

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"
_WRONG = "MindSpore's rule is silently wrong for a mean: it divides by the size of the batch too"
_MEAN, _NONE = 1, 2  # MindSpore's numbers of a reduction


@constexpr
def _sample_size(shape, dim):
    size = 1
    for axis, length in enumerate(shape):
        size *= 1 if dim is not None and axis == dim % len(shape) else length
    return size


def loss_gradient(formula: Callable, operands: int, like: int = 0) -> Callable:
    """The backward of a loss that is entry by entry, linear in the incoming gradient; a reduction comes last.

    ``formula(*operands, *options, _NONE)`` is the backward of the loss without reduction; operand number `like` has
    the shape of the result.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, options, reduction = pairs[:operands], values(pairs[operands:-1]), pairs[-1][0]
            if not any_batched(tuple([dim for _, dim in tensors])):
                return prim(*[x for x, _ in tensors], *options, reduction), None
            rank = largest(tuple([sample_rank(x, dim) for x, dim in tensors]))
            out = formula(*[aligned(x, dim, rank) for x, dim in tensors], *options, _NONE)
            if reduction == _MEAN:
                out = out / _sample_size(tensors[like][0].shape, tensors[like][1])
            return out, 0

        return rule

    return getter


@constexpr
def _of_samples(shape, dim):
    """(B or 1, N, 1) for what each sample has one of, (B or 1, 1, 1) for a number."""
    batch = 1 if dim is None else shape[0]
    size = 1
    for length in shape:
        size *= length
    return (batch, size // batch, 1)


def nll_loss_grad(prim, axis_size):
    """NLLLossGrad(x, d, labels, w, total, ...): -w d at each label, nothing where it is to be ignored; d and w by total
    for a mean."""
    prim = primitive(prim)

    def rule(*pairs):
        tensors, (reduction, ignored) = pairs[:5], values(pairs[5:])
        if not any_batched(tuple([dim for _, dim in tensors])):
            return unpaired(prim(*[x for x, _ in tensors], reduction, ignored))
        dims = tuple([dim for _, dim in tensors])
        x, d, labels, w, total = [front(x, dim) for x, dim in tensors]
        x = filled(x, 0 if dims[0] is not None else None, axis_size)
        labels = reshape(labels, _of_samples(labels.shape, dims[2]))
        kept = ops.cast(ops.equal(labels, ops.arange(x.shape[-1]).astype(labels.dtype)), x.dtype)
        kept = kept * ops.cast(labels != ignored, x.dtype)
        w = reshape(w, (-1, 1, x.shape[-1]))
        out = -kept * w * reshape(d, _of_samples(d.shape, dims[1]))
        if reduction == _MEAN:
            out = out / reshape(total, (-1, 1, 1))
        return ops.broadcast_to(out, x.shape), 0

    return rule


# --- a weight per channel ---------------------------------------------------------------------------------------

@constexpr
def _channel_shape(shape, batched, rank):
    """(B, C) or (C,) against samples of `rank` axes with channels second: (B, 1, C, 1, ...) or (C, 1, ...)."""
    behind = (1,) * (rank - 2)
    if rank < 2:
        return (shape[0], 1) if batched else (1,)
    return (shape[0], 1, shape[1], *behind) if batched else (shape[0], *behind)


@constexpr
def _all_but_channels(rank):
    """Axes of a batch-first tensor to sum for one number a channel."""
    return (1,) + tuple(range(3, rank))


@constexpr
def _all_but_batch(rank):
    return tuple(range(1, rank))


@constexpr
def _with_batch(size, shape, dim):
    return (size, *(length for axis, length in enumerate(shape) if dim is None or axis != dim % len(shape)))


def prelu_grad(prim, axis_size):
    """PReLUGrad(d, x, w): (d where x > 0 else w d, sum of x d where x <= 0 for each channel)."""
    prim = primitive(prim)

    def rule(d_pair, x_pair, w_pair):
        if not any_batched((d_pair[1], x_pair[1], w_pair[1])):
            return unpaired(prim(d_pair[0], x_pair[0], w_pair[0]))
        d, x = filled(d_pair[0], d_pair[1], axis_size), filled(x_pair[0], x_pair[1], axis_size)
        w, dim = w_pair
        w = front(w, dim)
        wide = reshape(w, _channel_shape(w.shape, dim is not None, x.ndim - 1))
        at_w = ops.select(x > 0, ops.zeros_like(x), x * d)
        if sample_rank(w_pair[0], dim) == 1 and w.shape[-1] == 1:
            dw = at_w.sum(_all_but_batch(x.ndim)) if x.ndim > 1 else at_w  # no axes would mean all
        else:
            dw = at_w.sum(_all_but_channels(x.ndim))
        return (ops.select(x > 0, d, wide * d), 0), (reshape(dw, _with_batch(axis_size, w_pair[0].shape, dim)), 0)

    return rule


@constexpr
def _grouped(shape, groups):
    """(B, N, C, ...) as (B, N, G, C / G * ...)."""
    size = 1
    for length in shape[2:]:
        size *= length
    return (shape[0], shape[1], groups, size // groups)


def group_norm_grad(prim, axis_size):
    """GroupNormGrad(d, x, mean, rstd, gamma, groups, three flags): (dx, dgamma, dbeta); dx with a scale of one, the
    batch among the samples; the sums over one sample of the batch each."""
    prim = primitive(prim)

    def rule(*pairs):
        tensors, rest = pairs[:5], values(pairs[5:])
        if not any_batched(tuple([dim for _, dim in tensors])):
            return unpaired(prim(*[x for x, _ in tensors], *rest))
        d, x, mean, rstd = [filled(v, dim, axis_size) for v, dim in tensors[:4]]
        gamma, dim = tensors[4]
        gamma = front(gamma, dim)
        scaled = d * reshape(gamma, _channel_shape(gamma.shape, dim is not None, x.ndim - 1))
        one = ops.ones((x.shape[2],), x.dtype)
        dx = prim(*[reshape(v, merged(v.shape, 0)) for v in (scaled, x, mean, rstd)], one, *rest)[0]
        normal = (reshape(x, _grouped(x.shape, rest[0])) - ops.expand_dims(mean, -1)) * ops.expand_dims(rstd, -1)
        axes = _all_but_channels(x.ndim)
        dgamma, dbeta = (d * reshape(normal, x.shape)).sum(axes), d.sum(axes)
        return (reshape(dx, x.shape), 0), (dgamma, 0), (dbeta, 0)

    return rule


RULES: tuple[Batching, ...] = (
    Batching("BinaryCrossEntropyGrad", loss_gradient(nn.bce_grad, 4), _UNROLLED),
    Batching("BinaryCrossEntropyWithLogitsBackward", loss_gradient(nn.bce_logits_grad, 5, 1), _UNROLLED),
    Batching("SmoothL1LossGrad", loss_gradient(nn.smooth_l1_grad, 3), _WRONG, replaces=True),
    Batching("NLLLossGrad", nll_loss_grad, "MindSpore's rule refuses a mean, and fails where d alone is batched",
             replaces=True),
    Batching("PReLUGrad", prelu_grad, _UNROLLED),
    Batching("GroupNormGrad", group_norm_grad, _UNROLLED),
)
