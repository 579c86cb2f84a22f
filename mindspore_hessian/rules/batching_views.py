"""Batching rules: views, as slices and reshapes that copy; and kernels that want all samples on their first axis."""
from __future__ import annotations

from collections.abc import Callable

from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import (
    aligned,
    along_axis,
    any_batched,
    apart,
    axis_at,
    filled,
    front,
    merged,
    one_tensor,
    primitive,
    reshape,
    shifted,
    unary,
    unpaired,
    values,
)
from mindspore_hessian.rules.batching_matmul import matmul_ext
from mindspore_hessian.rules.batching_shape import masked_fill, spread_shape

_UNROLLED = "MindSpore has no rule for it and unrolls the batch"
_FAILS = "MindSpore's rule fails in gradients"


def view(compute: Callable) -> Callable:
    """One tensor, then two parameters or more: ``compute(x, *parameters)`` is given x with the batch in front."""
    def on_batch(prim, x, *parameters):
        return compute(x, *parameters)
    return one_tensor(on_batch)


def view_by_one(compute: Callable) -> Callable:
    """The same with one parameter: of that and the token of a view, MindSpore makes a ``*rest`` that is no pairs."""

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
def _pieces(shape, axis, sizes):
    """Begin and size of consecutive slices along an axis of the samples."""
    axis, start, out = axis % (len(shape) - 1) + 1, 0, []
    for size in sizes:
        begin = tuple(start if k == axis else 0 for k in range(len(shape)))
        out.append((begin, tuple(size if k == axis else length for k, length in enumerate(shape))))
        start += size
    return tuple(out)


@constexpr
def _equal_sizes(shape, axis, size, chunks):
    """Lengths of the pieces of an axis: of `size` each, or as few as make `chunks`; the last one may be shorter."""
    length = shape[axis % (len(shape) - 1) + 1]
    size = size or -(-length // chunks)
    return (size,) * (length // size) + ((length % size,) if length % size else ())


def split_with_sizes(x, sizes, axis):
    parts = ()
    for begin, size in _pieces(x.shape, axis, sizes):
        parts = parts + (ops.slice(x, begin, size),)
    return parts


def split(x, size, axis):
    return split_with_sizes(x, _equal_sizes(x.shape, axis, size, 0), axis)


def chunk(x, chunks, axis):
    return split_with_sizes(x, _equal_sizes(x.shape, axis, 0, chunks), axis)


@constexpr
def _around(shape, axis, start, length):
    """Sizes that cut an axis of the samples before and behind a part of it."""
    whole = shape[axis % (len(shape) - 1) + 1]
    start = start % whole if start else 0
    return (start, length, whole - start - length)


@constexpr
def _without(shape, axis):
    axis = axis % (len(shape) - 1) + 1
    return (*shape[:axis], *shape[axis + 1:])


def narrow(x, axis, start, length):
    begin, size = _pieces(x.shape, axis, _around(x.shape, axis, start, length))[1]
    return ops.slice(x, begin, size)


def select(x, axis, index):
    return reshape(narrow(x, axis, index, 1), _without(x.shape, axis))


@constexpr
def _order(axes):
    return (0, *(axis % len(axes) + 1 for axis in axes))


def transpose(x, axes):
    return ops.transpose(x, _order(axes))


def expand_dims(x, axis):
    return ops.expand_dims(x, shifted(axis))


def broadcast(x, shape):
    return ops.broadcast_to(aligned(x, 0, len(shape)), spread_shape(x.shape[0], x.shape, shape))


# --- the batch joins the samples ----------------------------------------------------------------------------------

def _joined(x, dim, size):
    x = filled(x, dim, size)
    return reshape(x, merged(x.shape, 0))


@constexpr
def _grown(shape, size):
    """A shape, as a tuple or a Tensor, whose first axis also holds the batch."""
    if isinstance(shape, Tensor):
        lengths = shape.asnumpy().copy()
        lengths[0] *= size
        return Tensor(lengths)
    return (shape[0] * size, *shape[1:])


def joining(count: int, shape: bool = False) -> Callable:
    """`count` tensors with samples on their first axis, then parameters; with `shape` the first of these is a shape
    with as many samples."""

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, rest = pairs[:count], values(pairs[count:])
            if not any_batched(tuple([dim for _, dim in tensors])):
                return unpaired(prim(*[x for x, _ in tensors], *rest))
            if shape:
                rest = (_grown(rest[0], axis_size), *rest[1:])
            out = prim(*[_joined(x, dim, axis_size) for x, dim in tensors], *rest)
            return reshape(out, apart(out.shape, 0, axis_size)), 0

        return rule

    return getter


# --- two tensors of one shape, along an axis ----------------------------------------------------------------------

@constexpr
def _axis(axis, shape):
    """An axis of batch-first tensors; far below zero it stands for the first of length 3, as `Cross` has it."""
    if axis < -len(shape):
        return next(k for k, length in enumerate(shape) if k and length == 3)
    return axis + 1 if axis >= 0 else axis


def two_along(prim, axis_size):
    """Two tensors of one shape, then an axis."""
    prim = primitive(prim)

    def rule(x_pair, y_pair, axis_pair):
        (x, x_dim), (y, y_dim), (axis, _) = x_pair, y_pair, axis_pair
        if x_dim is None and y_dim is None:
            return prim(x, y, axis), None
        x, y = filled(x, x_dim, axis_size), filled(y, y_dim, axis_size)
        return prim(x, y, _axis(axis, x.shape)), 0

    return rule


# --- linear algebra and transforms --------------------------------------------------------------------------------

def _with_batch(prim, x, shape):
    """A primitive that cuts or fills each axis to a length."""
    return prim(x, (x.shape[0], *shape))


@constexpr
def _transformed(shape, lengths, axes):
    """The axes of a transform: by default all of a sample, or as many as there are lengths."""
    if axes is None:
        return tuple(range(1, len(shape))) if lengths is None else tuple(range(-len(lengths), 0))
    return tuple(axis + 1 if axis >= 0 else axis for axis in axes)


def _transform(prim, x, lengths, axes, norm):
    return prim(x, lengths, _transformed(x.shape, lengths, axes), norm)


@constexpr
def _stack_shape(shape):
    """A batch of stacks of matrices as one stack."""
    size = 1
    for length in shape[:-2]:
        size *= length
    return (size, *shape[-2:])


def cholesky_solve(prim, axis_size):
    """CholeskySolve(b, factor), whose kernel takes one stack of matrices, and factors for each."""
    def rule(b_pair, factor_pair):
        b, b_dim = b_pair
        factor, dim = factor_pair
        if b_dim is None and dim is None:
            return prim(b, factor), None
        b, factor = filled(b, b_dim, axis_size), filled(factor, dim, axis_size)
        return reshape(prim(reshape(b, _stack_shape(b.shape)), reshape(factor, _stack_shape(factor.shape))), b.shape), 0

    return rule


RULES: tuple[Batching, ...] = (
    Batching("Conj", unary, _UNROLLED),
    *(Batching(name, axis_at(2), _UNROLLED) for name in ("FFT", "IFFT", "RFFT", "IRFFT")),
    *(Batching(name + which, one_tensor(_transform), _UNROLLED)
      for name in ("FFT", "IFFT", "RFFT", "IRFFT") for which in "2N"),
    Batching("FFTShapeCopy", one_tensor(_with_batch), _UNROLLED),
    Batching("IRFFTDouble", axis_at(2), _UNROLLED),
    Batching("CholeskySolve", cholesky_solve, _UNROLLED),
    Batching("SplitWithSizeView", view(split_with_sizes), _UNROLLED),
    Batching("SplitTensorView", view(split), _UNROLLED),
    Batching("ChunkView", view(chunk), _UNROLLED),
    Batching("NarrowView", view(narrow), _UNROLLED),
    Batching("SelectExtView", view(select), _UNROLLED),
    Batching("TransposeView", view_by_one(transpose), _UNROLLED),
    Batching("ExpandDimsView", view_by_one(expand_dims), _UNROLLED),
    Batching("BroadcastToView", view_by_one(broadcast), _UNROLLED),
    Batching("MaskedFillScalar", masked_fill, _UNROLLED),
    Batching("BatchMatMulExt", matmul_ext, _UNROLLED),
    *(Batching(name, joining(1), _UNROLLED)
      for name in ("AvgPool3D", "ResizeNearestNeighborV2", "ResizeNearestNeighborV2Grad", "ResizeBicubic")),
    Batching("ResizeBicubicGrad", joining(2), _UNROLLED),
    *(Batching(name, joining(1), _FAILS, replaces=True) for name in ("ResizeBilinearV2", "ResizeLinear1D", "Col2Im")),
    *(Batching(name, joining(2), _FAILS, replaces=True) for name in ("ResizeBilinearGrad", "ResizeLinear1DGrad")),
    Batching("FractionalMaxPool3DGradWithFixedKsize", joining(3), _UNROLLED),
    *(Batching(name, joining(1, shape=True), _UNROLLED)
      for name in ("AffineGrid", "AffineGridGrad", "AdaptiveAvgPool2DGrad", "AdaptiveAvgPool3DGrad",
                   "UpsampleNearest1DGrad", "UpsampleNearest2DGrad")),
    *(Batching(name, along_axis, _FAILS, replaces=True) for name in ("ArgMaxWithValue", "ArgMinWithValue")),
    *(Batching(name, two_along, _UNROLLED) for name in ("Cross", "GluGrad")),
)
