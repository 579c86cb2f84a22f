"""Derivative rules: primitives whose backward has no derivative or a wrong one, so that the gradient itself is written
with differentiable operations."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import by_formula, pull
from mindspore_hessian.rules.derivatives_linalg import attributes_of, axis_sources, pick
from mindspore_hessian.rules.derivatives_matmul import known
from mindspore_hessian.rules.derivatives_nn import multi_margin_grad

_REDUCTIONS = {"sum": 0, "mean": 1, "none": 2}


def inv_grad(y, d):
    """y = 1 / x: -d y^2."""
    return -d * y * y


def mvlgamma(prim):
    """d sum_j digamma(x - j / 2) for j < p."""
    (p,) = attributes_of(prim, "p")

    def bprop(x, out, dout):
        slope = ops.zeros_like(x)
        for j in range(p):
            slope = slope + ops.digamma(x - j * 0.5)
        return (dout * slope,)
    return bprop


def multi_margin_loss(prim):
    """The gradient of sum_j max(0, margin - x_t + x_j)^p w_t / C, in differentiable operations."""
    p, margin, reduction = attributes_of(prim, "p", "margin", "reduction")
    number = _REDUCTIONS[reduction]

    def bprop(x, target, w, out, dout):
        dw = None if w is None else ops.zeros_like(w)
        return multi_margin_grad(dout, x, target, w, p, margin, number), ops.zeros_like(target), dw
    return bprop


def max_unpool(spatial: int):
    """Unpooling writes x at the flat positions `argmax`: its transpose reads there."""
    def getter(prim):
        (layout,) = attributes_of(prim, "data_format")
        if not layout.startswith("NC"):
            raise NotImplementedError(f"mindspore_hessian has no derivative of unpooling in the layout {layout}")

        def bprop(x, argmax, out, dout):
            return pick(dout, argmax, spatial), ops.zeros_like(argmax)
        return bprop
    return getter


@ops.constexpr
def _from_last_axis(paddings):
    """(left, right) of each axis, as one line that begins with the last axis."""
    pairs = paddings.asnumpy() if isinstance(paddings, Tensor) else np.asarray(paddings)
    return tuple(int(pad) for pad in pairs.reshape(-1, 2)[::-1].reshape(-1))


def mirror_pad(prim):
    """The gradient of a mirrored padding, as that of a gather."""
    (mode,) = attributes_of(prim, "mode")

    def bprop(x, paddings, out, dout):
        sources = axis_sources(x.shape, _from_last_axis(paddings), mode.lower())

        def padded(x):
            for axis, index, _ in sources:
                x = ops.gather(x, index, axis)
            return x
        return pull(padded)(mutable(x), dout)[0], ops.zeros_like(paddings)
    return bprop


# --- matrices ------------------------------------------------------------------------------------------------------

def matrix_inverse(prim):
    """y = x^-1, or its transpose: MindSpore's derivative is silently wrong for the transpose."""
    (adjoint,) = attributes_of(prim, "adjoint")

    def bprop(x, out, dout):
        flipped = ops.swapaxes(dout, -1, -2)
        if adjoint:
            return (-ops.matmul(ops.matmul(out, flipped), out),)
        return (-ops.swapaxes(ops.matmul(ops.matmul(out, flipped), out), -1, -2),)
    return bprop


def _inverse_transposed(x):
    return ops.swapaxes(ops.inverse(x), -1, -2)


def matrix_determinant(prim):
    """d det(x) x^-T."""
    def bprop(x, out, dout):
        return ((dout * out).reshape(out.shape + (1, 1)) * _inverse_transposed(x),)
    return bprop


def log_matrix_determinant(prim):
    """(sign, log |det x|): d x^-T."""
    def bprop(x, out, dout):
        return (dout[1].reshape(out[1].shape + (1, 1)) * _inverse_transposed(x),)
    return bprop


def trace(prim):
    """Trace(x): d on the diagonal."""
    def bprop(x, out, dout):
        return (ops.eye(x.shape[0], x.shape[1], x.dtype) * dout,)
    return bprop


def trace_v2(prim):
    """TraceV2(x, offset, axis1, axis2, dtype): the sum of a diagonal."""
    def bprop(x, offset, axis1, axis2, dtype, out, dout):
        def summed(x):
            return ops.diagonal(x, offset, axis1, axis2).sum(-1)
        return pull(summed)(mutable(x), ops.cast(dout, x.dtype))[0], 0, 0, 0, 0
    return bprop


# --- linear maps ---------------------------------------------------------------------------------------------------

@ops.constexpr
def _back(order):
    return tuple(int(k) for k in np.argsort([k % len(order) for k in order]))


def transpose_view(prim):
    """TransposeView(x, order): the opposite order."""
    def bprop(x, order, out, dout):
        return ops.transpose(dout, _back(order)), 0
    return bprop


def transpose_ext_view(prim):
    """TransposeExtView(x, axis, axis): the same once more."""
    def bprop(x, first, second, out, dout):
        return ops.swapaxes(dout, first, second), 0, 0
    return bprop


def expand_dims_view(prim):
    """ExpandDimsView(x, axis): the shape of x."""
    def bprop(x, axis, out, dout):
        return dout.reshape(x.shape), 0
    return bprop


_slice_grad = _compat.backward("SliceGrad")  # writes into zeros


@ops.constexpr
def _window(shape, axis, start, length):
    """Where (begin and size of a slice) a part of an axis lies."""
    axis, start = axis % len(shape), start % shape[axis]
    begin, size = [0] * len(shape), list(shape)
    begin[axis], size[axis] = start, length
    return tuple(begin), tuple(size)


@ops.constexpr
def _steps(rank, axis, length):
    """0, 1, ... along an axis."""
    shape = [1] * rank
    shape[axis] = length
    return Tensor(np.arange(length).reshape(shape), ms.int64)


def _part(x, axis, start, length, d):
    """d, which has the rank of x, in a part of an axis, zero elsewhere."""
    if known(x.shape) and ops.isconstant(start):
        begin, size = _window(x.shape, axis, start, length)
        return _slice_grad(d.reshape(size), x, begin, size)
    index = ops.zeros_like(d, dtype=ms.int64) + start + _steps(x.ndim, axis, length)
    return _place(x, axis, index + ops.cast(index < 0, ms.int64) * x.shape[axis], d)


def select_view(prim):
    """SelectExtView(x, axis, index): d in its place, zero elsewhere."""
    def bprop(x, axis, index, out, dout):
        return _part(x, axis, index, 1, ops.expand_dims(dout, axis)), 0, 0
    return bprop


def narrow_view(prim):
    """NarrowView(x, axis, start, length): the same for a part of an axis."""
    def bprop(x, axis, start, length, out, dout):
        return _part(x, axis, start, length, dout), 0, 0, 0
    return bprop


@ops.constexpr
def _triangle(rows, columns, lower):
    """1 strictly below the diagonal, or elsewhere."""
    below = np.tri(rows, columns, -1)
    return Tensor(below if lower else 1 - below)


def lu_unpack_grad(prim):
    """LuUnpackGrad(dl, du, lu) puts the part below the diagonal of dl, and the other of du, in the place of LU."""
    def bprop(dl, du, lu, out, dout):
        lower, upper = dout
        n = min(lu.shape[-2], lu.shape[-1])
        lower = lower[..., :n] * ops.cast(_triangle(lu.shape[-2], n, True), lu.dtype)
        upper = upper[..., :n, :] * ops.cast(_triangle(n, lu.shape[-1], False), lu.dtype)
        return lower, upper, ops.zeros_like(lu)
    return bprop


def gather_nd(prim):
    """GatherNdExt(x, indices): d added where it was read."""
    def bprop(x, indices, out, dout):
        return ops.tensor_scatter_add(ops.zeros_like(x), indices, dout), ops.zeros_like(indices)
    return bprop


# --- extremes ------------------------------------------------------------------------------------------------------

_place = _compat.backward("GatherDGradV2")  # needs no lengths of axes: they may be dynamic


def _taken_from(x, index, d, axis, keep_dims):
    """d in the place that `index` names along the axis, zero elsewhere."""
    if x.ndim == 0:
        return d
    if not keep_dims:
        index, d = ops.expand_dims(index, axis), ops.expand_dims(d, axis)
    return _place(x, axis, index, d)


def extreme_along(prim):
    """(values, indices) of the largest or smallest along an axis: d goes where the index points."""
    def bprop(x, axis, keep_dims, out, dout):
        return _taken_from(x, out[1], dout[0], axis, keep_dims), 0, 0
    return bprop


def index_with_extreme(prim):
    """The same as (indices, values)."""
    def bprop(x, axis, keep_dims, out, dout):
        return _taken_from(x, out[0], dout[1], axis, keep_dims), 0, 0
    return bprop


def _shared(x, value, d):
    """d in equal parts where x has the value."""
    equal = ops.cast(x == value, x.dtype)
    return d * equal / equal.sum()


def extreme(prim):
    """The largest or smallest of all: equal ones share d."""
    def bprop(x, out, dout):
        return (_shared(x, out, dout),)
    return bprop


def median(prim):
    """Of all: those that equal it share d. Along an axis: d goes where the index points."""
    whole, axis, keep_dims = attributes_of(prim, "global_median", "axis", "keep_dims")

    def of_all(x, out, dout):
        return (_shared(x, out[0], dout[0]),)

    def along(x, out, dout):
        return (_taken_from(x, out[1], dout[0], axis, keep_dims),)
    return of_all if whole else along


_MISSING = "MindSpore has no derivative of it"
_REWRITTEN = "its backward has no derivative and hides its attributes: the gradient is differentiable operations"

_TRANSPOSED = "MindSpore's second derivative is silently wrong: it takes the inverse of the transpose for the inverse"
_VIEW = "MindSpore's gradient is another view, which it cannot differentiate"
_IN_PLACE = "MindSpore's gradient writes in place, which it cannot differentiate"

RULES: tuple[Derivative, ...] = (
    Derivative("InvGrad", by_formula(inv_grad, 2), _MISSING),
    Derivative("Mvlgamma", mvlgamma, _REWRITTEN, replaces=True),
    Derivative("MultiMarginLoss", multi_margin_loss, _REWRITTEN, replaces=True),
    Derivative("MaxUnpool2D", max_unpool(2), _REWRITTEN, replaces=True),
    Derivative("MaxUnpool3D", max_unpool(3), _REWRITTEN, replaces=True),
    Derivative("MirrorPad", mirror_pad, _REWRITTEN, replaces=True),
    Derivative("MatrixInverse", matrix_inverse, "MindSpore's is silently wrong for the transpose", replaces=True),
    Derivative("MatrixDeterminant", matrix_determinant, _TRANSPOSED, replaces=True),
    Derivative("LogMatrixDeterminant", log_matrix_determinant, _TRANSPOSED, replaces=True),
    Derivative("Trace", trace, _REWRITTEN, replaces=True),
    Derivative("TraceV2", trace_v2, _REWRITTEN, replaces=True),
    Derivative("TransposeView", transpose_view, _VIEW, replaces=True),
    Derivative("TransposeExtView", transpose_ext_view, _VIEW, replaces=True),
    Derivative("ExpandDimsView", expand_dims_view, _VIEW, replaces=True),
    Derivative("SelectExtView", select_view, _VIEW, replaces=True),
    Derivative("NarrowView", narrow_view, "MindSpore's gradient is a concatenation, whose own fails", replaces=True),
    Derivative("LuUnpackGrad", lu_unpack_grad, _MISSING),
    Derivative("GatherNdExt", gather_nd, _MISSING),
    *(Derivative(name, extreme_along, _IN_PLACE, replaces=True) for name in ("MaxDim", "MinDim")),
    *(Derivative(name, index_with_extreme, _IN_PLACE, replaces=True)
      for name in ("ArgMaxWithValue", "ArgMinWithValue")),
    *(Derivative(name, extreme, _IN_PLACE, replaces=True) for name in ("Max", "Min")),
    Derivative("Median", median, _REWRITTEN, replaces=True),
)
