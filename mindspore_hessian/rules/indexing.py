"""Rules of indexing: gather and scatter, slices, sorting. (Views are in `shapes`.)"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, int32, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError
from mindspore_hessian.rules.by_gradients import by_gradients
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    alone,
    by_composition,
    dim_of,
    from_end,
    joint,
    linear,
    mark_of_missing,
    straight,
)
from mindspore_hessian.rules.kit import (
    any_batched,
    apart,
    attributes_of,
    dims_of,
    each,
    entries,
    filled,
    front,
    merged,
    move,
    numbers,
    paired,
    primitive,
    put,
    reshape,
    shifted,
    tensors_of,
    values,
    zeros_like,
)
from mindspore_hessian.rules.registry import batching, derivative, forward

# --- gather and scatter ---------------------------------------------------------------------------


@constexpr
def _first(rest):
    """Number of leading axes that x and indices already share, from the last parameter if the
    version has it.
    """
    return rest[0] if rest else 0


@constexpr
def _at(axis, rank):
    return axis % rank


@batching("Gather", why="MindSpore's rule does not pass batch_dims on and fails", replaces=True)
def batched_gather(prim, axis_size):
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
        return ops.gather(
            filled(x, x_dim, axis_size), filled(indices, dim, axis_size), shifted(axis), shared + 1
        ), 0

    return rule


@derivative(
    "GatherDGradV2",
    why="MindSpore's fails: it looks for an attribute that is an input",
    replaces=True,
)
def gather_d_grad(prim):
    """GatherDGradV2(x, dim, index, d)[index[i], j] += d[i, j]; its transpose is GatherD."""

    def bprop(x, dim, index, d, out, dout):
        return ops.zeros_like(x), 0, ops.zeros_like(index), ops.gather_d(dout, dim, index)

    return bprop


@batching(
    "GatherD",
    why="MindSpore's rule fails where one operand or another axis is batched",
    replaces=True,
)
@batching("GatherDGradV2", why="MindSpore's rule fails as that of GatherD does", replaces=True)
def batched_gather_d(prim, axis_size):
    """x[i][index] along one axis; x and index have the same axes."""
    prim = primitive(prim)

    def rule(x_pair, axis_pair, *rest):
        axis, _ = axis_pair
        if not any_batched((x_pair[1], *[dim for _, dim in rest])):
            return prim(x_pair[0], axis, *tensors_of(rest)), None
        others = [filled(value, dim, axis_size) for value, dim in rest]
        return prim(filled(x_pair[0], x_pair[1], axis_size), shifted(axis), *others), 0

    return rule


@derivative("GatherNdExt")
def gather_nd(prim):
    """GatherNdExt(x, indices): d added where it was read."""

    def bprop(x, indices, out, dout):
        return ops.tensor_scatter_add(ops.zeros_like(x), indices, dout), ops.zeros_like(indices)

    return bprop


@batching(
    "TensorScatterElements", why="MindSpore's rule fails: the axis is an input", replaces=True
)
def batched_scatter_elements(prim, axis_size):
    """Updates written into x along one axis, at an index each."""
    prim = primitive(prim)

    def rule(x_pair, indices_pair, updates_pair, axis_pair, reduction_pair):
        pairs = (x_pair, indices_pair, updates_pair)
        axis, _ = axis_pair
        reduction, _ = reduction_pair
        if not any_batched(dims_of(pairs)):
            return prim(*tensors_of(pairs), axis, reduction), None
        return prim(
            *[filled(value, dim, axis_size) for value, dim in pairs], shifted(axis), reduction
        ), 0

    return rule


@batching("Scatter")
def batched_scatter(prim, axis_size):
    """The same, with the arguments in another order."""
    prim = primitive(prim)

    def rule(x_pair, axis_pair, indices_pair, updates_pair, reduction_pair):
        axis, reduction = axis_pair[0], reduction_pair[0]
        if not any_batched(dims_of((x_pair, indices_pair, updates_pair))):
            return prim(x_pair[0], axis, indices_pair[0], updates_pair[0], reduction), None
        return prim(
            filled(*x_pair, axis_size),
            shifted(axis),
            filled(*indices_pair, axis_size),
            filled(*updates_pair, axis_size),
            reduction,
        ), 0

    return rule


@constexpr
def _sample_numbers(size, shape):
    """0, 1, ... along the batch, broadcastable to a stack of indices."""
    return (size, *(1 for _ in shape[1:]))


@constexpr
def _numbers_shape(shape):
    return (*shape[:-1], 1)


def _numbered(indices, axis_size):
    """Index tuples of samples, with the number of the sample before each."""
    numbers = ops.cast(ops.arange(axis_size), indices.dtype)
    numbers = ops.broadcast_to(
        reshape(numbers, _sample_numbers(axis_size, indices.shape)), _numbers_shape(indices.shape)
    )
    return ops.concat((numbers, indices), -1)


@batching("GatherNdExt")
def batched_gather_nd(prim, axis_size):
    """Entries of x at an index tuple each."""
    prim = primitive(prim)

    def rule(x_pair, indices_pair):
        x, x_dim = x_pair
        indices, dim = indices_pair
        if dim is None:
            if x_dim is None:
                return prim(x, indices), None
            found = prim(move(x, x_dim, -1), indices)
            return found, found.ndim - 1
        indices = front(indices, dim)
        if x_dim is None:
            return prim(x, indices), 0
        return prim(front(x, x_dim), _numbered(indices, axis_size)), 0

    return rule


@batching(
    "TensorScatterAdd",
    "TensorScatterSub",
    "TensorScatterMul",
    "TensorScatterDiv",
    "TensorScatterMax",
    why="MindSpore's rule is wrong for a batch not in front",
    replaces=True,
)
@batching("TensorScatterMin")
def batched_scatter_nd(prim, axis_size):
    """Updates into x, at an index tuple each: unbatched indices leave the batch at the back,
    untouched.
    """
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
        return prim(x, _numbered(front(indices, dim), axis_size), updates), 0

    return rule


@constexpr
def _offsets(batch, segments, rank):
    """The number of the first segment of each sample, to be added to ids of `rank` axes a
    sample.
    """
    return Tensor(np.arange(0, batch * segments, segments).reshape(batch, *(1,) * rank), int32)


@batching(
    "UnsortedSegmentSum", why="MindSpore's rule is wrong where nothing is batched", replaces=True
)
def batched_segment_sum(prim, axis_size):
    """Sums of the slices of x that have one id; ids stand for leading axes of x."""
    plain = (
        ops.UnsortedSegmentSum()
    )  # that which MindSpore hands over may carry the mark of another batch

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


@batching("Sort")
def batched_sort(prim, axis_size):
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


# --- slices ---------------------------------------------------------------------------------------


@derivative("SliceGrad")
def slice_grad(prim):
    """SliceGrad(d, x, begin, size) writes d into zeros; its transpose is the slice."""

    def bprop(d, x, begin, size, out, dout):
        return ops.slice(dout, begin, size), ops.zeros_like(x), 0, 0

    return bprop


@constexpr
def _backwards(strides):
    """Whether a step is negative, or unknown."""
    if strides is None:
        return True
    return any(step < 0 for step in numbers(strides))


@constexpr
def _positions(shape):
    """The flat positions of all entries, in their shape."""
    if any(length is None or length < 0 for length in shape):
        raise MissingRuleError(
            f"The gradient of a slice with a negative step needs a known shape, but got {shape}."
        )
    return Tensor(np.arange(int(np.prod(shape))).reshape(shape).astype(np.int32))


@constexpr
def _begins_inside(shape, begin, strides, free, ellipsis, new_axes):
    """Refuse to begin behind the end of an axis: MindSpore would read what is in memory there."""
    axis = 0
    for k, (start, step) in enumerate(zip(begin, strides, strict=True)):
        if new_axes >> k & 1:
            continue
        if step < 0 and not free >> k & 1 and not ellipsis and start >= shape[axis]:
            raise ValueError(
                f"a slice begins at {start} with the step {step} on axis {axis} of a Tensor of "
                f"shape {shape}; MindSpore reads foreign memory there. Begin at {shape[axis] - 1}, "
                "or leave it out."
            )
        axis += 1
    return True


_COPY_SLICES = _compat.TensorCopySlices()


@derivative(
    "TensorCopySlices",
    why="MindSpore's gives the value a gradient with an axis too many (m[1, :] = x)",
    replaces=True,
)
def copy_slices(prim):
    """TensorCopySlices(x, value, begin, end, strides): x[begin:end] = value."""

    def bprop(x, value, begin, end, strides, out, dout):
        part = ops.strided_slice(dout, begin, end, strides)
        kept = _COPY_SLICES(dout, ops.zeros_like(value), begin, end, strides)
        return kept, reshape(part, value.shape), 0, 0, 0

    return bprop


@constexpr
def _sources(shape, size, begin, end, strides):
    """(mask, index) of what a slice takes: where it is, and which entry of the value is there."""
    index = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    cut = tuple(slice(*one) for one in zip(begin, end, strides, strict=True))
    index[cut] = np.arange(size).reshape(index[cut].shape)
    mask[cut] = True
    return Tensor(mask), Tensor(index.reshape(-1))


@batching("TensorCopySlices")
def batched_copy_slices(prim, axis_size):
    """A gather, since the kernel copies one piece of memory only."""

    def rule(x_pair, value_pair, begin_pair, end_pair, strides_pair):
        begin, end, strides = begin_pair[0], end_pair[0], strides_pair[0]
        if x_pair[1] is None and value_pair[1] is None:
            return _COPY_SLICES(x_pair[0], value_pair[0], begin, end, strides), None
        x, value = filled(*x_pair, axis_size), filled(*value_pair, axis_size)
        lines = reshape(value, (axis_size, -1))
        mask, index = _sources(x.shape[1:], lines.shape[1], begin, end, strides)
        return ops.where(mask, reshape(ops.gather(lines, index, 1), x.shape), x), 0

    return rule


@constexpr
def _last_first(rank):
    return (rank - 1, *range(rank - 1))


@constexpr
def _first_last(rank):
    return (*range(1, rank), 0)


@batching("TensorScatterUpdate")
def batched_scatter_update(prim, axis_size):
    """TensorScatterUpdate(x, indices, updates): the batch behind all that is indexed, or an index of
    its own.
    """
    prim = primitive(prim)

    def rule(x_pair, indices_pair, updates_pair):
        if x_pair[1] is None and indices_pair[1] is None and updates_pair[1] is None:
            return prim(x_pair[0], indices_pair[0], updates_pair[0]), None
        x, updates = filled(*x_pair, axis_size), filled(*updates_pair, axis_size)
        return _scattered(prim, x, indices_pair, updates), 0

    return rule


def _scattered(prim, x, indices_pair, updates):
    """prim(x, indices, updates) of each sample of x and updates, their first axis."""
    indices, dim = indices_pair
    if dim is None:
        x = ops.transpose(x, _first_last(x.ndim))
        out = prim(x, indices, ops.transpose(updates, _first_last(updates.ndim)))
        return ops.transpose(out, _last_first(out.ndim))
    indices, count = front(indices, dim), x.shape[0]
    own = ops.arange(count).astype(indices.dtype)
    own = reshape(own, (count,) + (1,) * (indices.ndim - 1))
    own = ops.broadcast_to(own, indices.shape[:-1] + (1,))
    return prim(x, ops.concat((own, indices), -1), updates)


@constexpr
def _apart_from(shape, sample, count):
    """(B, 1, ..., V) for values of shape (B, V), to broadcast to (B, K, ...) with the sample's own
    axes after those that are indexed; and that shape."""
    wide = (shape[0], count, *sample)
    return (shape[0], *(1,) * (len(wide) - 2), shape[1]), wide


@constexpr
def _some(dims):
    """Whether one of several is batched."""
    return dims is not None and any(dim is not None for dim in dims)


@batching("IndexPut")
def batched_index_put(prim, axis_size):
    """IndexPut(x, values, indices): see its derivative, below."""
    prim = primitive(prim)
    scatter = ops.TensorScatterAdd() if prim.accumulate else ops.TensorScatterUpdate()

    def rule(x_pair, values_pair, indices_pairs):
        rows, dims = alone(indices_pairs), dim_of(indices_pairs)
        at_dim = 0 if _some(dims) else None
        if x_pair[1] is None and values_pair[1] is None and at_dim is None:
            return prim(x_pair[0], values_pair[0], rows), None
        x, given = filled(*x_pair, axis_size), filled(*values_pair, axis_size)
        if at_dim == 0:
            filled_rows = ()
            for k in range(len(rows)):
                filled_rows = filled_rows + (filled(rows[k], dims[k], axis_size),)
            rows = filled_rows
        at = _rows(rows)
        count = at.shape[-2]
        narrow, wide = _apart_from(given.shape, x.shape[1 + len(rows) :], count)
        updates = ops.broadcast_to(reshape(given, narrow), wide)
        return _scattered(scatter, x, (at, at_dim), updates), 0

    return rule


@constexpr
def _longest(shapes):
    return tuple(max(lengths) for lengths in zip(*shapes, strict=True))


def _rows(indices):
    """A row of all indices for each update."""
    shapes = ()
    for one in indices:
        shapes = shapes + (one.shape,)
    wide, rows = _longest(shapes), ()
    for one in indices:
        rows = rows + (ops.broadcast_to(one, wide),)
    return ops.stack(rows, -1)


# --- several updates of one place -----------------------------------------------------------------

_ALL_COUNT = (
    "MindSpore's lets each of several updates of one place count, of which the last is written"
)


@constexpr
def _each(shape):
    """A number for each index."""
    return Tensor(np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape))


@constexpr
def _none_of(shape):
    return Tensor(np.full(shape, -1, np.int32))


@constexpr
def _behind(shape, rank):
    """A shape with further axes of 1, to `rank` of them."""
    return (*shape, *(1,) * (rank - len(shape)))


def _where(mask, values):
    """Values, with zeros where the mask is not."""
    wide = reshape(mask, _behind(mask.shape, values.ndim))
    return ops.where(wide, values, ops.zeros_like(values))


@derivative("TensorScatterUpdate", why=_ALL_COUNT, replaces=True)
def scatter_update(prim):
    """TensorScatterUpdate(x, indices, updates): of the updates of one place, that which is there."""
    write = ops.TensorScatterUpdate()

    def bprop(x, indices, updates, out, dout):
        du = _where(_kept(indices, x.shape), ops.gather_nd(dout, indices))
        return write(dout, indices, ops.zeros_like(updates)), ops.zeros_like(indices), du

    return bprop


def _kept(indices, shape):
    """Where the update at a tuple of indices is that which is there."""
    numbers = _each(indices.shape[:-1])
    found = ops.TensorScatterUpdate()(_none_of(shape[: indices.shape[-1]]), indices, numbers)
    return ops.equal(ops.gather_nd(found, indices), numbers)


@constexpr
def _all_but_last(rank):
    return tuple(range(rank - 1))


@derivative("IndexPut", why=_ALL_COUNT, replaces=True)
def index_put(prim):
    """IndexPut(x, values, indices): a tuple of rows of indices, of which those of one broadcast, as
    values do."""
    adds, write = prim.accumulate, ops.IndexPut(0)

    def bprop(x, values, indices, out, dout):
        at, zeros = _rows(indices), each(zeros_like, indices)
        du, dx = ops.gather_nd(dout, at), dout
        if not adds:
            du, dx = _where(_kept(at, x.shape), du), write(dout, ops.zeros_like(values), indices)
        if values.shape[0] == 1:
            du = du.sum().reshape((1,))
        elif du.ndim > 1:
            du = du.sum(_all_but_last(du.ndim))
        return dx, du, zeros

    return bprop


def _kept_along(indices, shape, axis):
    """Where, of indices along one axis, the update is that which is there."""
    numbers = _each(indices.shape)
    found = ops.tensor_scatter_elements(_none_of(shape), indices, numbers, axis)
    return ops.equal(ops.gather_d(found, axis, indices), numbers)


@derivative("TensorScatterElements", why=_ALL_COUNT, replaces=True)
def scatter_elements(prim):
    """TensorScatterElements(x, indices, updates, axis, reduction)."""

    def bprop(x, indices, updates, axis, reduction, out, dout):
        read = ops.gather_d(dout, axis, indices)
        if _adds(reduction):
            return dout, ops.zeros_like(indices), read, 0, 0
        dx = ops.tensor_scatter_elements(dout, indices, ops.zeros_like(updates), axis)
        kept = _kept_along(indices, x.shape, axis)
        return dx, ops.zeros_like(indices), _where(kept, read), 0, 0

    return bprop


@constexpr
def _adds(reduction):
    if reduction not in (0, 1):
        raise NotImplementedError(
            "mindspore_hessian has derivatives of scatter for the reductions 'none' and 'add' only"
        )
    return reduction == 1


@constexpr
def _apart(shape, wide):
    """The paddings to a wider shape, from the last axis backwards; () for none."""
    if tuple(shape) == tuple(wide):
        return ()
    pairs = [(0, more - own) for own, more in zip(shape, wide, strict=True)]
    return tuple(number for pair in reversed(pairs) for number in pair)


def _widened(read, updates):
    """Padded with zeros to the shape of the updates."""
    paddings = _apart(read.shape, updates.shape)
    return ops.pad(read, paddings) if paddings else read


@derivative("Scatter", why=_ALL_COUNT, replaces=True)
def scatter(prim):
    """Scatter(x, axis, indices, updates, reduction): updates may be wider than the indices, which
    then are those of their first entries."""

    def bprop(x, axis, indices, updates, reduction, out, dout):
        read = ops.gather_d(dout, axis, indices)
        if _adds(reduction):
            dx = dout
        else:
            zeros = ops.zeros(indices.shape, dout.dtype)
            dx = ops.tensor_scatter_elements(dout, indices, zeros, axis)
            read = _where(_kept_along(indices, x.shape, axis), read)
        return dx, 0, ops.zeros_like(indices), _widened(read, updates), 0

    return bprop


@derivative("IndexFill", why=_ALL_COUNT, replaces=True)
def index_fill(prim):
    """IndexFill(x, axis, index, value): what is taken out of d is the value's."""

    def bprop(x, axis, index, value, out, dout):
        there = ops.equal(ops.index_fill(_none_of(x.shape), axis, index, 0), 0)
        dv = ops.cast(_where(there, dout).sum(), value.dtype)
        return _where(ops.logical_not(there), dout), 0, ops.zeros_like(index), dv

    return bprop


@derivative("TensorScatterMul", why=_ALL_COUNT, replaces=True)
def scatter_mul(prim):
    """x times updates: for one alone x d, for one of several those of the others too, which is the
    result by it; NaN where it is 0 then."""
    write = ops.TensorScatterMul()

    def bprop(x, indices, updates, out, dout):
        many = _several(indices, x.shape)
        alone = _where(ops.logical_not(many), ops.gather_nd(dout * x, indices))
        wide = reshape(many, _behind(many.shape, updates.ndim))
        divisor = ops.where(wide, updates, ops.ones_like(updates))
        shared = _where(many, ops.gather_nd(dout * out, indices) / divisor)
        return write(dout, indices, updates), ops.zeros_like(indices), alone + shared

    return bprop


def _several(indices, shape):
    """Where an index is that of several updates."""
    ones = ops.ones(indices.shape[:-1], int32)
    counts = ops.scatter_nd(indices, ones, shape[: indices.shape[-1]])
    return ops.gather_nd(counts, indices) > 1


@derivative("TensorScatterDiv", why=_ALL_COUNT, replaces=True)
def scatter_div(prim):
    """x by updates: -d y / u, y the result."""
    write = ops.TensorScatterDiv()

    def bprop(x, indices, updates, out, dout):
        du = -ops.gather_nd(dout * out, indices) / updates
        return write(dout, indices, updates), ops.zeros_like(indices), du

    return bprop


@derivative(
    "StridedSlice", why="MindSpore's is zero, or fails, where a step is negative", replaces=True
)
def strided_slice(prim):
    """x[begin:end:strides] with masks. MindSpore's gradient is right for positive steps. For
    negative ones, what the slice makes of the positions tells where each number came from."""

    def bprop(x, begin, end, strides, begins, ends, ellipsis, new_axes, shrunk, out, dout):
        if not _backwards(strides if ops.isconstant(strides) else None):
            grad = _compat.strided_slice_grad(begins, ends, ellipsis, new_axes, shrunk)
            return grad(dout, x.shape, begin, end, strides), 0, 0, 0, 0, 0, 0, 0, 0
        if entries(dout.shape) == 0:
            return ops.zeros_like(x), 0, 0, 0, 0, 0, 0, 0, 0
        if ops.isconstant(begin) and ops.isconstant(strides):
            _begins_inside(x.shape, begin, strides, begins, ellipsis, new_axes)
        cut = ops.StridedSlice(begins, ends, ellipsis, new_axes, shrunk)
        origin = cut(_positions(x.shape), begin, end, strides)
        dx = put(x.reshape(-1), 0, origin.reshape(-1), dout.reshape(-1)).reshape(x.shape)
        return dx, 0, 0, 0, 0, 0, 0, 0, 0

    return bprop


@constexpr
def _sliced(size, begin, end, strides):
    """Begin, end and strides that take the whole batch as well."""
    return (0, *numbers(begin)), (size, *numbers(end)), (1, *numbers(strides))


@constexpr
def _masks(masks):
    """Bit k of a mask speaks of index k: one further with the batch in front."""
    return tuple(mask * 2 for mask in masks)


@batching(
    "StridedSlice",
    why="MindSpore's rule fails in gradients, and misplaces the ellipsis mask",
    replaces=True,
)
def batched_strided_slice(prim, axis_size):
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
    return (size, *numbers(shape))


@batching("StridedSliceGrad", why="MindSpore's rule misplaces the ellipsis mask", replaces=True)
def batched_strided_slice_grad(prim, axis_size):
    """The cotangent of x[begin:end:strides], put back among zeros; the masks are attributes
    here.
    """
    masks = [
        prim.attrs[name]
        for name in ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    ]
    if masks[
        2
    ]:  # the kernel is wrong for some ranks; indexing never sets it, it spells the axes out
        raise ValueError(
            "mindspore_hessian has no batching rule for StridedSliceGrad with an ellipsis mask"
        )
    batched = _compat.strided_slice_grad(*[2 * mask for mask in masks])

    def rule(dy_pair, shape, begin, end, strides):
        dy, dim = dy_pair
        shape, begin, end, strides = values((shape, begin, end, strides))
        if dim is None:
            return prim(dy, shape, begin, end, strides), None
        begin, end, strides = _sliced(axis_size, begin, end, strides)
        return batched(front(dy, dim), _batch_shape(axis_size, shape), begin, end, strides), 0

    return rule


# --- forward --------------------------------------------------------------------------------------


forward("TensorCopySlices", "IndexPut")(joint(0, 1))
forward("TensorScatterUpdate", "TensorScatterAdd", "TensorScatterSub")(joint(0, 2))
forward("ScatterNd")(joint(1, 1))


@constexpr
def _is_linear(reduction):
    return reduction in (0, 1)  # written or added


def _along_an_axis(updates: int, reduction: int):
    """The getter of a scatter along one axis, from the places of its arguments."""

    @straight
    @allow(0, updates)
    def getter(prim, usual):
        linear_rule, missing = joint(0, updates)(prim, usual), mark_of_missing(prim.name)

        def rule(*pairs):
            return linear_rule(*pairs) if _is_linear(pairs[reduction][0]) else (0, missing)

        return rule

    return getter


forward("Scatter")(_along_an_axis(3, 4))
forward("TensorScatterElements")(_along_an_axis(2, 4))


forward("TensorScatterMul", "TensorScatterDiv", "TensorScatterMax", "TensorScatterMin")(
    by_gradients(0, 2)
)
forward("UnsortedSegmentProd")(by_gradients(0))


@constexpr
def _last(axis, rank):
    return int(axis) % rank - rank


@by_composition("IndexFill", kinked=True)
def pushed_index_fill(prim, a, axis, index, value):
    """What is filled in carries nothing."""
    axis, nothing = _last(axis, a[0].ndim), 0
    if isinstance(value, Tensor):
        nothing = zeros_like(value)
    return (
        prim(a[0], axis, index, value),
        prim(a[1], axis, index, nothing),
        prim(a[2], axis, index, nothing),
    )


@by_composition("UnsortedSegmentMax", "UnsortedSegmentMin", kinked=True)
def pushed_extreme_of_segments(prim, a, ids, count):
    """Equal ones share what comes through."""
    y, total = prim(a[0], ids, count), ops.UnsortedSegmentSum()
    equal = ops.cast(a[0] == ops.gather(y, ids, 0), a[0].dtype)
    share = equal / ops.gather(total(equal, ids, count), ids, 0)
    j = total(move(a[1] * share, 0, -1), ids, count)
    return (y, move(j, -1, 0), total(a[2] * share, ids, count))


forward("UnsortedSegmentSum", "ReverseSequence")(linear)


@batching("ReverseSequence", why="MindSpore's rule fails", replaces=True)
def batched_reverse_sequence(prim, axis_size):
    """The batch goes to the back, where the kernel leaves it alone; with lengths of its own it
    becomes one with the axis that these are for.
    """
    prim = primitive(prim)
    along, of_lengths = attributes_of(prim, "seq_dim", "batch_dim")
    joined = ops.ReverseSequence(along + (along < of_lengths), 0)

    def rule(x_pair, lengths_pair):
        x, dim = x_pair
        lengths, lengths_dim = lengths_pair
        if lengths_dim is None:
            if dim is None:
                return prim(x, lengths), None
            return prim(move(x, dim, -1), lengths), x.ndim - 1
        x = move(filled(x, dim, axis_size), of_lengths + 1, 1)
        found = joined(reshape(x, merged(x.shape, 0)), reshape(front(lengths, lengths_dim), (-1,)))
        return move(reshape(found, x.shape), 1, of_lengths + 1), 0

    return rule


forward("StridedSlice", "Slice", "SliceExt", "Gather", "GatherD", "GatherNd", "IndexSelect")(linear)


@forward("Sort", "TopK")
@straight
@allow(0)
def pushed_sort(prim, usual):
    """(values, indices): all goes where the indices say, the values too: the kernels round float64
    to float32. (TopK takes the last axis.)"""
    axis = prim.attrs["axis"] if prim.name == "Sort" else -1

    def rule(x_pair, *rest):
        v, j, l = x_pair[0]  # noqa: E741
        _, index = prim(v, *values(rest))
        last = from_end(axis, v.ndim)
        wide = ops.broadcast_to(index, (j.shape[0],) + index.shape)
        triple = (
            ops.gather_d(v, last, index),
            ops.gather_d(j, last, wide),
            ops.gather_d(l, last, index),
        )
        return (triple, FORWARD), (index, None)

    return rule
