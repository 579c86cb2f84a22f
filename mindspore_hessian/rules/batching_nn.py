"""Batching rules: activations, softmax and normalisation."""
from __future__ import annotations

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
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


RULES: tuple[Batching, ...] = (
    *(Batching(name, cotangent_first, _UNROLLED) for name in ("SiLUGrad", "EluGrad", "HSigmoidGrad")),
    *(Batching(name, cotangent_first, _COPIES, replaces=True)
      for name in ("ReluGrad", "FastGeLUGrad", "HSwishGrad", "HShrinkGrad", "SoftShrinkGrad", "ReLU6Grad")),
    Batching("GeLUGrad", same_shape(3), _UNROLLED),
    Batching("SiLU", unary, _UNROLLED),
    Batching("SoftmaxBackward", softmax_backward, _UNROLLED),
    Batching("LogSoftmaxGrad", log_softmax_grad, "MindSpore's rule lacks an input and fails", replaces=True),
    *(Batching(name, leading, _UNROLLED) for name in ("MatrixInverse", "Cholesky")),
    Batching("BatchNorm", per_channel(5), "MindSpore's rule fails on the token of running statistics", replaces=True),
    Batching("BatchNormGrad", per_channel(6), "MindSpore's rule fails on images", replaces=True),
    Batching("BatchNormGradGrad", per_channel(8), "MindSpore's rule fails on images", replaces=True),
)
