"""Batching rules: activations, softmax and normalisation."""
from __future__ import annotations

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    aligned,
    any_batched,
    apart,
    cotangent_first,
    filled,
    front,
    leading,
    merged,
    move,
    primitive,
    reshape,
    same_shape,
    sample_rank,
    unary,
    unpaired,
    values,
)

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"
_COPIES = "MindSpore's rule copies the unbatched operand along the batch"


# --- softmax ----------------------------------------------------------------------------------------------------

@constexpr
def _from_end(axis, rank):
    """The axis counted from the end, where batched and unbatched operands agree."""
    if not -rank <= axis < rank:
        raise ValueError(f"mindspore_hessian has no batching rule for a softmax over axis {axis} of {rank} axes")
    return axis % rank - rank


def softmax_backward(prim, axis_size):
    """y * (dy - sum(y * dy)): written out, so that the unbatched operand broadcasts."""
    prim = primitive(prim)

    def rule(dy_pair, y_pair, axis_pair):
        dy, dy_dim = dy_pair
        y, y_dim = y_pair
        axis, _ = axis_pair
        if dy_dim is None and y_dim is None:
            return prim(dy, y, axis), None
        axis = _from_end(axis, sample_rank(y, y_dim))
        dy, y = front(dy, dy_dim), front(y, y_dim)
        return y * (dy - (y * dy).sum(axis, keepdims=True)), 0

    return rule


def log_softmax_grad(prim, axis_size):
    """dy - exp(y) * sum(dy), y the logarithm of the softmax."""
    prim = primitive(prim)

    def rule(y_pair, dy_pair, axis_pair):
        dy, dy_dim = dy_pair
        y, y_dim = y_pair
        axis, _ = axis_pair
        if dy_dim is None and y_dim is None:
            return prim(y, dy, axis), None
        axis = _from_end(axis, sample_rank(y, y_dim))
        dy, y = front(dy, dy_dim), front(y, y_dim)
        return dy - ops.exp(y) * dy.sum(axis, keepdims=True), 0

    return rule


# --- batch norm: statistics are per channel, so the batch joins the channels --------------------------------------

@constexpr
def _channel_axis(rank, data_format):
    return rank - 1 if data_format == "NHWC" or rank == 1 else 1


def _to_channels(x, dim, size, data_format):
    at = _channel_axis(sample_rank(x, dim), data_format)
    x = move(filled(x, dim, size), 0, at)
    return reshape(x, merged(x.shape, at))


def _from_channels(x, size, data_format):
    at = _channel_axis(x.ndim, data_format)
    return reshape(x, apart(x.shape, at, size)), at


def per_channel(count):
    """`count` tensors with channels, then parameters, the last of them the data format, then perhaps a token.

    With a batch, running statistics are copies and their updates are dropped.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, rest = pairs[:count], values(pairs[count:])
            if not any_batched(tuple([dim for _, dim in tensors])):
                return unpaired(prim(*[x for x, _ in tensors], *rest, *pairs[count + len(rest):]))
            layout = rest[-1]
            out = prim(*[_to_channels(x, dim, axis_size, layout) for x, dim in tensors], *rest)
            return tuple([_from_channels(one, axis_size, layout) for one in out])

        return rule

    return getter


# --- layer norm -------------------------------------------------------------------------------------------------

@constexpr
def _row_axes(rank, scale_rank):
    """Axes of a batch-first tensor that the scale lacks, the batch apart."""
    return tuple(range(1, rank - scale_rank))


@constexpr
def _norm_axes(rest):
    return tuple(axis + 1 if at < 2 and axis >= 0 else axis for at, axis in enumerate(rest))


def layer_norm_grad_grad(prim, axis_size):
    """Second backward of LayerNorm: derivatives by x, dy and scale of <dx, u> + <dscale, s> + <dshift, t>.

    The kernel takes one scale for all rows and sums over all of them, the batch among them, so it is asked for what is
    row by row only: with a scale of one, L(u) (dx is L(scale * dy), and L is its own transpose), the normalised x,
    and the derivative of <L(scale * dy), u> by x.
    """
    prim = primitive(prim)

    def rule(*pairs):
        tensors, rest = pairs[:8], values(pairs[8:])
        if not any_batched(tuple([dim for _, dim in tensors])):
            return unpaired(prim(*[x for x, _ in tensors], *rest))
        scale_rank = sample_rank(tensors[4][0], tensors[4][1])
        x, dy, var, mean = [filled(v, dim, axis_size) for v, dim in tensors[:4]]
        scale, s, t = [aligned(v, dim, x.ndim - 1) for v, dim in (tensors[4], tensors[6], tensors[7])]
        u = filled(tensors[5][0], tensors[5][1], axis_size)
        rest = _norm_axes(rest)
        one = ops.ones(_last(x.shape, scale_rank), x.dtype)
        none, still = ops.zeros_like(one), ops.zeros_like(x)
        by_x, l_u, _ = prim(x, dy * scale, var, mean, one, u, none, none, *rest)
        _, l_s, _ = prim(x, dy, var, mean, one, dy * s, none, none, *rest)
        _, normal, _ = prim(x, dy, var, mean, one, still, one, none, *rest)
        by_scale = (dy * l_u).sum(_row_axes(x.ndim, scale_rank)) if x.ndim > scale_rank + 1 else dy * l_u
        return (by_x + l_s, 0), (scale * l_u + s * normal + t, 0), (by_scale, 0)

    return rule


@constexpr
def _last(shape, count):
    return tuple(shape[len(shape) - count:])


RULES: tuple[Batching, ...] = (
    *(Batching(name, cotangent_first, _UNROLLED) for name in ("SiLUGrad", "EluGrad", "HSigmoidGrad")),
    *(Batching(name, cotangent_first, _COPIES, replaces=True)
      for name in ("ReluGrad", "FastGeLUGrad", "HSwishGrad", "HShrinkGrad", "SoftShrinkGrad", "ReLU6Grad")),
    Batching("GeLUGrad", same_shape(3), _UNROLLED),
    Batching("SiLU", unary, _UNROLLED),
    Batching("SoftmaxBackward", softmax_backward, _UNROLLED),
    Batching("LogSoftmaxGrad", log_softmax_grad, "MindSpore's rule lacks an input and fails", replaces=True),
    *(Batching(name, leading, _UNROLLED) for name in ("MatrixInverse", "Cholesky")),
    Batching("LayerNormGradGrad", layer_norm_grad_grad, _UNROLLED),
    Batching("BatchNorm", per_channel(5), "MindSpore's rule fails on the token of running statistics", replaces=True),
    Batching("BatchNormGrad", per_channel(6), "MindSpore's rule fails on images", replaces=True),
    Batching("BatchNormGradGrad", per_channel(8), "MindSpore's rule fails on images", replaces=True),
)
