"""Batching rules: gather, scatter and sort."""
from __future__ import annotations

import numpy as np
from mindspore import Tensor, int32, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    any_batched,
    apart,
    constant,
    filled,
    front,
    move,
    one_tensor,
    paired,
    primitive,
    reshape,
    shifted,
    values,
)

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"


@constexpr
def _first(rest):
    """Number of leading axes that x and indices already share, from the last parameter if the version has it."""
    return rest[0] if rest else 0


@constexpr
def _at(axis, rank):
    return axis % rank


def gather(prim, axis_size):
    """Slices of x along an axis, at indices of any shape."""
    prim = primitive(prim)
    shared_attribute = 0 if not hasattr(prim, "batch_dims") else prim.batch_dims

    def rule(x_pair, indices_pair, axis_pair, *rest):
        x, x_dim = x_pair
        indices, dim = indices_pair
        axis, _ = axis_pair
        shared = shared_attribute + _first(values(rest))
        if x_dim is None and dim is None:
            return ops.gather(x, indices, axis, shared), None
        if shared == 0 and dim is None:
            return ops.gather(front(x, x_dim), indices, shifted(axis)), 0
        if shared == 0 and x_dim is None:
            return ops.gather(x, front(indices, dim), axis), _at(axis, x.ndim)
        return ops.gather(filled(x, x_dim, axis_size), filled(indices, dim, axis_size), shifted(axis), shared + 1), 0

    return rule


def gather_d(prim, axis_size):
    """x[i][index] along one axis; x and index have the same axes."""
    prim = primitive(prim)

    def rule(x_pair, axis_pair, *rest):
        axis, _ = axis_pair
        if not any_batched((x_pair[1], *[dim for _, dim in rest])):
            return prim(x_pair[0], axis, *[value for value, _ in rest]), None
        others = [filled(value, dim, axis_size) for value, dim in rest]
        return prim(filled(x_pair[0], x_pair[1], axis_size), shifted(axis), *others), 0

    return rule


def scatter_elements(prim, axis_size):
    """Updates written into x along one axis, at an index each."""
    prim = primitive(prim)

    def rule(x_pair, indices_pair, updates_pair, axis_pair, reduction_pair):
        pairs = (x_pair, indices_pair, updates_pair)
        axis, _ = axis_pair
        reduction, _ = reduction_pair
        if not any_batched(tuple([dim for _, dim in pairs])):
            return prim(*[value for value, _ in pairs], axis, reduction), None
        return prim(*[filled(value, dim, axis_size) for value, dim in pairs], shifted(axis), reduction), 0

    return rule


@constexpr
def _sample_numbers(size, shape):
    """0, 1, ... along the batch, broadcastable to a stack of indices."""
    return (size, *(1 for _ in shape[1:]))


@constexpr
def _numbers_shape(shape):
    return (*shape[:-1], 1)


def scatter_nd_add(prim, axis_size):
    """Updates added to x, at an index tuple each: unbatched indices leave the batch at the back, untouched."""
    prim = primitive(prim)

    def rule(x_pair, indices_pair, updates_pair):
        x, x_dim = x_pair
        indices, dim = indices_pair
        updates, updates_dim = updates_pair
        if x_dim is None and dim is None and updates_dim is None:
            return prim(x, indices, updates), None
        x, updates = filled(x, x_dim, axis_size), filled(updates, updates_dim, axis_size)
        if dim is None:
            return prim(move(x, 0, -1), indices, move(updates, 0, -1)), x.ndim - 1
        indices = front(indices, dim)
        numbers = ops.cast(ops.arange(axis_size), indices.dtype)
        numbers = ops.broadcast_to(reshape(numbers, _sample_numbers(axis_size, indices.shape)),
                                   _numbers_shape(indices.shape))
        return prim(x, ops.concat((numbers, indices), -1), updates), 0

    return rule


def sort(prim, axis_size):
    """Sort: the axis is an attribute."""
    prim = primitive(prim)
    axis, descending = prim.attrs["axis"], prim.attrs["descending"]
    batched = ops.Sort(axis + 1 if axis >= 0 else axis, descending)

    def rule(x_pair):
        x, dim = x_pair
        if dim is None:
            values_, indices = prim(x)
            return (values_, None), (indices, None)
        return paired(batched(front(x, dim)))

    return rule


# --- diagonals --------------------------------------------------------------------------------------------------

@constexpr
def _side(shape, rank):
    """Side of the matrices; samples of other ranks are refused."""
    if len(shape) != rank + 1:
        raise ValueError(f"mindspore_hessian batches diagonals of matrices only, got a sample of shape {shape[1:]}")
    return shape[-1]


def diag(prim, x):
    """Vector to diagonal matrix; the kernel takes no batch."""
    side = _side(x.shape, 1)
    return ops.select(ops.eye(side, side, x.dtype) != 0, ops.expand_dims(x, -1), ops.zeros((1,), x.dtype))


def diag_part(prim, x):
    """Matrix to its diagonal: every (side + 1)-th entry."""
    size, side = x.shape[0], _side(x.shape, 2)
    return ops.strided_slice(reshape(x, (size, side * side)), (0, 0), (size, side * side), (1, side + 1))


@constexpr
def _offsets(batch, segments, rank):
    """The number of the first segment of each sample, to be added to ids of `rank` axes a sample."""
    return Tensor(np.arange(0, batch * segments, segments).reshape(batch, *(1,) * rank), int32)


def segment_sum(prim, axis_size):
    """Sums of the slices of x that have one id; ids stand for leading axes of x."""
    plain = ops.UnsortedSegmentSum()  # that which MindSpore hands over may carry the mark of another batch

    def rule(x_pair, ids_pair, count_pair):
        x, x_dim = x_pair
        ids, dim = ids_pair
        count, _ = count_pair
        if x_dim is None and dim is None:
            return plain(x, ids, count), None
        if dim is None:
            out = plain(move(x, x_dim, -1), ids, count)
            return out, out.ndim - 1
        ids = front(ids, dim)
        ids = ops.cast(ids, int32) + _offsets(axis_size, count, ids.ndim - 1)
        out = plain(filled(x, x_dim, axis_size), ids, axis_size * count)
        return reshape(out, apart(out.shape, 0, axis_size)), 0

    return rule


RULES: tuple[Batching, ...] = (
    Batching("UnsortedSegmentSum", segment_sum, "MindSpore's rule is wrong where nothing is batched", replaces=True),
    Batching("LinSpace", constant, "MindSpore's rule is wrong where nothing is batched", replaces=True),
    Batching("Gather", gather, "MindSpore's rule does not pass batch_dims on and fails", replaces=True),
    Batching("GatherD", gather_d, "MindSpore's rule fails where one operand or another axis is batched", replaces=True),
    Batching("GatherDGradV2", gather_d, "MindSpore's rule fails as that of GatherD does", replaces=True),
    Batching("TensorScatterElements", scatter_elements, "MindSpore's rule fails: the axis is an input", replaces=True),
    Batching("TensorScatterAdd", scatter_nd_add, "MindSpore's rule is wrong for a batch not in front", replaces=True),
    Batching("Sort", sort, _UNROLLED),
    Batching("Diag", one_tensor(diag), "MindSpore's rule calls a kernel that CPU has not", replaces=True),
    Batching("DiagPart", one_tensor(diag_part), _UNROLLED),
    Batching("Range", constant, "MindSpore's rule lacks an input and fails", replaces=True),
    Batching("Eye", constant, _UNROLLED),
)
