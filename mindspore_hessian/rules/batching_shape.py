"""Batching rules: what cuts, joins and rearranges tensors."""
from __future__ import annotations

from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    aligned,
    along_axis,
    axis_at,
    broadcast_to,
    front,
    leading,
    one_tensor,
    primitive,
    reshape,
    sample_rank,
    values,
)

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"


# --- slices -----------------------------------------------------------------------------------------------------

def _numbers(value):
    return tuple(int(one) for one in (value.asnumpy() if isinstance(value, Tensor) else value))


@constexpr
def _sliced(size, begin, end, strides):
    """Begin, end and strides that take the whole batch as well."""
    return (0, *_numbers(begin)), (size, *_numbers(end)), (1, *_numbers(strides))


@constexpr
def _masks(masks):
    """Bit k of a mask speaks of index k: one further with the batch in front."""
    return tuple(mask * 2 for mask in masks)


def strided_slice(prim, axis_size):
    """x[begin:end:strides] with masks."""
    prim = primitive(prim)

    def rule(x_pair, begin, end, strides, *masks):
        x, dim = x_pair
        begin, end, strides = values((begin, end, strides))
        if dim is None:
            return prim(x, begin, end, strides, *values(masks)), None
        begin, end, strides = _sliced(axis_size, begin, end, strides)
        return prim(front(x, dim), begin, end, strides, *_masks(values(masks))), 0

    return rule


@constexpr
def _batch_shape(size, shape):
    return (size, *_numbers(shape))


def strided_slice_grad(prim, axis_size):
    """The cotangent of x[begin:end:strides], put back among zeros; the masks are attributes here."""
    masks = [prim.attrs[name] for name in
             ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")]
    if masks[2]:  # the kernel is wrong for some ranks; indexing never sets it, it spells the axes out
        raise ValueError("mindspore_hessian has no batching rule for StridedSliceGrad with an ellipsis mask")
    batched = _compat.strided_slice_grad(*[2 * mask for mask in masks])

    def rule(dy_pair, shape, begin, end, strides):
        dy, dim = dy_pair
        shape, begin, end, strides = values((shape, begin, end, strides))
        if dim is None:
            return prim(dy, shape, begin, end, strides), None
        begin, end, strides = _sliced(axis_size, begin, end, strides)
        return batched(front(dy, dim), _batch_shape(axis_size, shape), begin, end, strides), 0

    return rule


# --- repetition -------------------------------------------------------------------------------------------------

@constexpr
def _tiles(multiples, rank):
    return (1,) + (1,) * (rank - len(multiples)) + tuple(multiples)


@constexpr
def _larger(one, two):
    return max(one, two)


def tile(prim, axis_size):
    """Tile: fewer multiples than axes speak of the last axes, more add axes in front."""
    prim = primitive(prim)

    def rule(x_pair, multiples_pair):
        x, dim = x_pair
        multiples, _ = multiples_pair
        if dim is None:
            return prim(x, multiples), None
        x = aligned(x, dim, _larger(sample_rank(x, dim), len(multiples)))
        return prim(x, _tiles(multiples, x.ndim - 1)), 0

    return rule


@constexpr
def spread_shape(size, shape, wanted):
    """Shape to broadcast to with the batch in front; -1 keeps the sample's size."""
    own = (1,) * (len(wanted) - len(shape) + 1) + tuple(shape[1:])
    return (size, *(had if size_wanted == -1 else size_wanted for had, size_wanted in zip(own, wanted, strict=True)))


def broadcast(prim, axis_size):
    """BroadcastTo."""
    prim = primitive(prim)

    def rule(x_pair, shape_pair):
        x, dim = x_pair
        shape, _ = shape_pair
        if dim is None:
            return prim(x, shape), None
        x = front(x, dim)
        return broadcast_to(spread_shape(axis_size, x.shape, shape))(aligned(x, 0, len(shape))), 0

    return rule


# --- padding ----------------------------------------------------------------------------------------------------

@constexpr
def _folded(shape, kept):
    """Shape with the axes before the last `kept` ones made one."""
    return (-1, *shape[len(shape) - kept:])


@constexpr
def _unfolded(shape, out, kept):
    return (*shape[:len(shape) - kept], *out[len(out) - kept:])


def pad_v3(prim, axis_size):
    """PadV3: paddings speak of the last axes; modes that copy the border want samples of three axes or more."""
    constant = prim.attrs["mode"] == "constant"

    def rule(x_pair, paddings_pair, *rest):
        x, dim = x_pair
        paddings, _ = paddings_pair
        if dim is None:
            return prim(x, paddings, *[value for value, _ in rest]), None
        x = front(x, dim)
        if constant:
            return prim(x, paddings, *[value for value, _ in rest]), 0
        kept = x.ndim - 2
        out = prim(reshape(x, _folded(x.shape, kept)), paddings)
        return reshape(out, _unfolded(x.shape, out.shape, kept)), 0

    return rule


# --- pairs of axes ----------------------------------------------------------------------------------------------

@constexpr
def _both_shifted(constants, at):
    one, two = (axis + 1 if axis >= 0 else axis for axis in constants[at:at + 2])
    return (*constants[:at], one, two, *constants[at + 2:])


def two_axes(position):
    """One tensor, then parameters, those at `position` and after it an axis each."""
    def compute(prim, x, *parameters):
        return prim(x, *_both_shifted(parameters, position - 1))
    return one_tensor(compute)


# --- where ------------------------------------------------------------------------------------------------------

def masked_fill(prim, axis_size):
    """x where the mask is false, else a number or a tensor of no axes."""
    prim = primitive(prim)

    def rule(x_pair, mask_pair, value_pair):
        x, x_dim = x_pair
        mask, mask_dim = mask_pair
        value, value_dim = value_pair
        if x_dim is None and mask_dim is None and value_dim is None:
            return prim(x, mask, value), None
        rank = _larger(sample_rank(x, x_dim), sample_rank(mask, mask_dim))
        value = aligned(ops.cast(value, x.dtype), value_dim, rank)
        return ops.select(aligned(mask, mask_dim, rank), value, aligned(x, x_dim, rank)), 0

    return rule


RULES: tuple[Batching, ...] = (
    Batching("StridedSlice", strided_slice, "MindSpore's rule fails in gradients, and misplaces the ellipsis mask",
             replaces=True),
    Batching("StridedSliceGrad", strided_slice_grad, "MindSpore's rule misplaces the ellipsis mask", replaces=True),
    Batching("Tile", tile, "MindSpore's rule misplaces the batch of fewer multiples than axes", replaces=True),
    Batching("BroadcastTo", broadcast, "MindSpore's rule fails on -1", replaces=True),
    Batching("TransposeExtView", two_axes(1), "MindSpore's rule is wrong for negative axes", replaces=True),
    Batching("PadV3", pad_v3, "MindSpore's rule fails in gradients and folds the batch into the padded axes",
             replaces=True),
    Batching("MaskedFill", masked_fill, "MindSpore's rule fails where mask and tensor broadcast", replaces=True),
    Batching("SplitWithSize", axis_at(2), _UNROLLED),
    Batching("ReverseV2", along_axis, _UNROLLED),
    Batching("Diagonal", two_axes(2), _UNROLLED),
    *(Batching(name, leading, _UNROLLED) for name in ("Tril", "Triu")),
)
