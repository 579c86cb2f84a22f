"""Rules of what rearranges: repetition, diagonals, splits, views; and of tensors made from their
shape alone.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.forward import concatenation, linear, linear_view, tuple_first
from mindspore_hessian.rules.kit import (
    aligned,
    along_axis,
    axis_at,
    constant,
    copied_to,
    entries,
    front,
    joining,
    known,
    largest,
    leading,
    one_tensor,
    primitive,
    put,
    reshape,
    sample_rank,
    shifted,
    unary,
)
from mindspore_hessian.rules.registry import batching, derivative, forward

# --- of a shape alone, and along an axis ----------------------------------------------------------

batching("LinSpace", why="MindSpore's rule is wrong where nothing is batched", replaces=True)(
    constant
)
batching("Range", why="MindSpore's rule lacks an input and fails", replaces=True)(constant)
batching("Eye", "Zeros", "Ones")(constant)
batching("ReverseV2")(along_axis)
batching("Contiguous")(unary)
batching("SplitWithSize")(axis_at(2))
batching("Tril", "Triu")(leading)
batching("SpaceToDepth", "DepthToSpace")(joining(1))


# --- repetition -----------------------------------------------------------------------------------


@constexpr
def _nothing(multiples):
    return 0 in multiples


@derivative("Tile", why="MindSpore's is garbage where nothing is left of an axis", replaces=True)
def tile(prim):
    """Tile(x, multiples): the sum of the copies. Where there are none, MindSpore's is what was in
    memory.
    """

    def bprop(x, multiples, out, dout):
        if _nothing(multiples):
            return ops.zeros_like(x), 0
        shape, axes = (), ()
        extra = len(multiples) - x.ndim
        lengths = ops.shape(x)
        for k in range(extra):
            axes = axes + (len(shape),)
            shape = shape + (multiples[k],)
        for k in range(x.ndim):
            copies = multiples[k + extra] if k + extra >= 0 else 1
            if copies != 1:
                axes = axes + (len(shape),)
                shape = shape + (copies,)
            shape = shape + (lengths[k],)
        if not axes:
            return dout.reshape(lengths), 0
        return dout.reshape(shape).sum(axes).reshape(lengths), 0

    return bprop


@constexpr
def _tiles(multiples, rank):
    return (1,) + (1,) * (rank - len(multiples)) + tuple(multiples)


@batching(
    "Tile", why="MindSpore's rule misplaces the batch of fewer multiples than axes", replaces=True
)
def batched_tile(prim, axis_size):
    """Tile: fewer multiples than axes speak of the last axes, more add axes in front."""
    prim = primitive(prim)

    def rule(x_pair, multiples_pair):
        x, dim = x_pair
        multiples, _ = multiples_pair
        if dim is None:
            return prim(x, multiples), None
        x = aligned(x, dim, largest((sample_rank(x, dim), len(multiples))))
        return prim(x, _tiles(multiples, x.ndim - 1)), 0

    return rule


@constexpr
def _spread_shape(size, shape, wanted):
    """Shape to broadcast to with the batch in front; -1 keeps the sample's size."""
    own = (1,) * (len(wanted) - len(shape) + 1) + tuple(shape[1:])
    return (
        size,
        *(
            had if size_wanted == -1 else size_wanted
            for had, size_wanted in zip(own, wanted, strict=True)
        ),
    )


@batching("BroadcastTo", why="MindSpore's rule fails on -1", replaces=True)
def batched_broadcast(prim, axis_size):
    """BroadcastTo."""
    prim = primitive(prim)

    def rule(x_pair, shape_pair):
        x, dim = x_pair
        shape, _ = shape_pair
        if dim is None:
            return prim(x, shape), None
        x = front(x, dim)
        return copied_to(aligned(x, 0, len(shape)), _spread_shape(axis_size, x.shape, shape)), 0

    return rule


# --- pairs of axes --------------------------------------------------------------------------------


@constexpr
def _both_shifted(constants, at):
    one, two = (axis + 1 if axis >= 0 else axis for axis in constants[at : at + 2])
    return (*constants[:at], one, two, *constants[at + 2 :])


def two_axes(position):
    """One tensor, then parameters, those at `position` and after it an axis each."""

    def compute(prim, x, *parameters):
        return prim(x, *_both_shifted(parameters, position - 1))

    return one_tensor(compute)


batching("Diagonal")(two_axes(2))


@batching("FlattenExt")
@one_tensor
def batched_flatten(prim, x, start, end):
    """(x, start, end): these axes and those between them become one, a number a vector."""
    if x.ndim == 1:
        return reshape(x, (-1, 1))
    return prim(x, shifted(start), shifted(end))


@batching("Diag", why="MindSpore's rule calls a kernel that CPU has not", replaces=True)
@one_tensor
def batched_diag(prim, x):
    """Entries of any shape to the diagonal of a matrix over them; the kernel takes no batch."""
    flat = reshape(x, (x.shape[0], -1))
    side = flat.shape[1]
    matrix = ops.select(
        ops.eye(side, side, x.dtype) != 0, ops.expand_dims(flat, -1), ops.zeros((1,), x.dtype)
    )
    return reshape(matrix, x.shape + x.shape[1:])


@batching("DiagPart")
@one_tensor
def batched_diag_part(prim, x):
    """The other way round: every (side + 1)-th entry."""
    shape = x.shape[: (x.ndim + 1) // 2]
    size, side = shape[0], entries(shape[1:])
    found = ops.strided_slice(
        reshape(x, (size, side * side)), (0, 0), (size, side * side), (1, side + 1)
    )
    return reshape(found, shape)


# --- views, whose rules are slices and reshapes that copy -----------------------------------------

_VIEW = "MindSpore's gradient is another view, which it cannot differentiate"
_slice_grad = _compat.backward("SliceGrad")  # writes into zeros


def view(compute: Callable) -> Callable:
    """One tensor, then two parameters or more: ``compute(x, *parameters)`` is given x with the
    batch in front.
    """

    def on_batch(prim, x, *parameters):
        return compute(x, *parameters)

    return one_tensor(on_batch)


def view_by_one(compute: Callable) -> Callable:
    """The same with one parameter: of that and the token of a view, MindSpore makes a ``*rest``
    that is no pairs.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(x_pair, parameter_pair, *token):
            x, dim = x_pair
            parameter, _ = parameter_pair
            if dim is None:
                return prim(x, parameter), None
            return compute(front(x, dim), parameter), 0

        return rule

    return getter


@constexpr
def _opposite(order):
    return tuple(int(k) for k in np.argsort([k % len(order) for k in order]))


@derivative("TransposeView", why=_VIEW, replaces=True)
def transpose_view(prim):
    """TransposeView(x, order): the opposite order."""

    def bprop(x, order, out, dout):
        return ops.transpose(dout, _opposite(order)), 0

    return bprop


@constexpr
def _order(axes):
    return (0, *(axis % len(axes) + 1 for axis in axes))


@batching("TransposeView")
@view_by_one
def batched_transpose_view(x, axes):
    return ops.transpose(x, _order(axes))


@derivative("TransposeExtView", why=_VIEW, replaces=True)
def transpose_ext_view(prim):
    """TransposeExtView(x, axis, axis): the same once more."""

    def bprop(x, first, second, out, dout):
        return ops.swapaxes(dout, first, second), 0, 0

    return bprop


batching("TransposeExtView", why="MindSpore's rule is wrong for negative axes", replaces=True)(
    two_axes(1)
)


@derivative("ExpandDimsView", why=_VIEW, replaces=True)
def expand_dims_view(prim):
    """ExpandDimsView(x, axis): the shape of x."""

    def bprop(x, axis, out, dout):
        return dout.reshape(x.shape), 0

    return bprop


@batching("ExpandDimsView")
@view_by_one
def batched_expand_dims_view(x, axis):
    return ops.expand_dims(x, shifted(axis))


@batching("BroadcastToView")
@view_by_one
def batched_broadcast_view(x, shape):
    return copied_to(aligned(x, 0, len(shape)), _spread_shape(x.shape[0], x.shape, shape))


@constexpr
def _position_of_part(shape, axis, start, length):
    """Where (begin and size of a slice) a part of an axis lies."""
    axis, start = axis % len(shape), start % shape[axis]
    begin, size = [0] * len(shape), list(shape)
    begin[axis], size[axis] = start, length
    return tuple(begin), tuple(size)


@constexpr
def _counted(rank, axis, length):
    """0, 1, ... along an axis."""
    shape = [1] * rank
    shape[axis] = length
    return Tensor(np.arange(length).reshape(shape), ms.int64)


def _part(x, axis, start, length, d):
    """d, which has the rank of x, in a part of an axis, zero elsewhere."""
    if known(x.shape) and ops.isconstant(start):
        begin, size = _position_of_part(x.shape, axis, start, length)
        return _slice_grad(d.reshape(size), x, begin, size)
    index = ops.zeros_like(d, dtype=ms.int64) + start + _counted(x.ndim, axis, length)
    return put(x, axis, index + ops.cast(index < 0, ms.int64) * x.shape[axis], d)


@derivative("SelectExtView", why=_VIEW, replaces=True)
def select_view(prim):
    """SelectExtView(x, axis, index): d in its place, zero elsewhere."""

    def bprop(x, axis, index, out, dout):
        return _part(x, axis, index, 1, ops.expand_dims(dout, axis)), 0, 0

    return bprop


@derivative(
    "NarrowView", why="MindSpore's gradient is a concatenation, whose own fails", replaces=True
)
def narrow_view(prim):
    """NarrowView(x, axis, start, length): the same for a part of an axis."""

    def bprop(x, axis, start, length, out, dout):
        return _part(x, axis, start, length, dout), 0, 0, 0

    return bprop


@constexpr
def _pieces(shape, axis, sizes):
    """Begin and size of consecutive slices along an axis of the samples."""
    axis, start, out = axis % (len(shape) - 1) + 1, 0, []
    for size in sizes:
        begin = tuple(start if k == axis else 0 for k in range(len(shape)))
        out.append((begin, tuple(size if k == axis else length for k, length in enumerate(shape))))
        start += size
    return tuple(out)


@constexpr
def _around(shape, axis, start, length):
    """Sizes that cut an axis of the samples before and behind a part of it."""
    whole = shape[axis % (len(shape) - 1) + 1]
    start = start % whole if start else 0
    return (start, length, whole - start - length)


def narrow(x, axis, start, length):
    begin, size = _pieces(x.shape, axis, _around(x.shape, axis, start, length))[1]
    return ops.slice(x, begin, size)


batching("NarrowView")(view(narrow))


@constexpr
def _without(shape, axis):
    axis = axis % (len(shape) - 1) + 1
    return (*shape[:axis], *shape[axis + 1 :])


@batching("SelectExtView")
@view
def batched_select_view(x, axis, index):
    return reshape(narrow(x, axis, index, 1), _without(x.shape, axis))


def split_with_sizes(x, sizes, axis):
    parts = ()
    for begin, size in _pieces(x.shape, axis, sizes):
        parts = parts + (ops.slice(x, begin, size),)
    return parts


batching("SplitWithSizeView")(view(split_with_sizes))


@constexpr
def _equal_sizes(shape, axis, size, chunks):
    """Lengths of the pieces of an axis: of `size` each, or as few as make `chunks`; the last one
    may be shorter.
    """
    length = shape[axis % (len(shape) - 1) + 1]
    size = size or -(-length // chunks)
    return (size,) * (length // size) + ((length % size,) if length % size else ())


@batching("SplitTensorView")
@view
def batched_split_view(x, size, axis):
    return split_with_sizes(x, _equal_sizes(x.shape, axis, size, 0), axis)


@batching("ChunkView")
@view
def batched_chunk_view(x, chunks, axis):
    return split_with_sizes(x, _equal_sizes(x.shape, axis, 0, chunks), axis)


# --- forward --------------------------------------------------------------------------------------

forward(
    "Reshape",
    "Transpose",
    "ExpandDims",
    "Squeeze",
    "BroadcastTo",
    "Tile",
    "ReverseV2",
    "Split",
    "SplitTensor",
    "SplitWithSize",
    "Unstack",
    "Diag",
    "DiagPart",
    "Diagonal",
    "Tril",
    "Triu",
    "Flatten",
    "FlattenExt",
    "Roll",
    "Contiguous",
    "Copy",
    "TransposeExt",
    "UnstackExt",
    "Chunk",
    "Narrow",
    "SelectExt",
    "RepeatInterleaveInt",
)(linear)
forward(
    "TransposeView",
    "TransposeExtView",
    "ExpandDimsView",
    "BroadcastToView",
    "SelectExtView",
    "NarrowView",
    "SplitWithSizeView",
    "SplitTensorView",
    "ChunkView",
    "SliceExtView",
    "UnstackExtView",
    "DiagonalView",
)(linear_view)
forward("Concat")(concatenation)
forward("Stack", "StackExt", "Meshgrid")(tuple_first)
forward("BatchToSpaceND", "SpaceToBatchND", "Im2Col")(linear)
