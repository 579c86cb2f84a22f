"""Derivative rules: primitives whose backward has no derivative or a wrong one, so that the gradient itself is written
with differentiable operations."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError
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


@ops.constexpr
def _half_lower(n):
    """1 below the diagonal, 1/2 on it."""
    return Tensor(np.tri(n) - np.eye(n) / 2)


def cholesky(prim):
    """L L^T = x, or its transpose: (S + S^T) / 2, since the kernel takes symmetric x only, with S = L^-T P L^-1 and P
    the lower part of L^T d, half its diagonal."""
    def bprop(x, upper, out, dout):
        factor, d = (ops.swapaxes(out, -1, -2), ops.swapaxes(dout, -1, -2)) if upper else (out, dout)
        part = ops.matmul(ops.swapaxes(factor, -1, -2), d) * ops.cast(_half_lower(x.shape[-1]), x.dtype)
        back = ops.inverse(factor) if x.shape[-1] > 1 else 1 / factor  # the kernel takes no 1 x 1 matrices
        whole = ops.matmul(ops.matmul(ops.swapaxes(back, -1, -2), part), back)
        return 0.5 * (whole + ops.swapaxes(whole, -1, -2)), 0
    return bprop


def cholesky_inverse(prim):
    """(x x^T)^-1, or (x^T x)^-1 for an upper factor. MindSpore takes the whole of x, not a triangle of it."""
    def bprop(x, upper, out, dout):
        both = ops.matmul(ops.matmul(out, dout + ops.swapaxes(dout, -1, -2)), out)
        return -(ops.matmul(x, both) if upper else ops.matmul(both, x)), 0
    return bprop


@ops.constexpr
def _kept(n, upper):
    return Tensor(np.tri(n).T if upper else np.tri(n))


def cholesky_solve(prim):
    """(L L^T)^-1 b, or with U^T U. MindSpore's has a part outside of the triangle, and float32 accuracy in float64."""
    upper = prim.upper

    def bprop(b, factor, out, dout):
        triangle = ops.cast(_kept(factor.shape[-1], upper), factor.dtype)
        db = ops.cholesky_solve(dout, factor, upper)
        both = ops.matmul(db, ops.swapaxes(out, -1, -2))
        both = both + ops.swapaxes(both, -1, -2)
        part = factor * triangle
        return db, -triangle * (ops.matmul(part, both) if upper else ops.matmul(both, part))
    return bprop


@ops.constexpr
def _own_triangle(n, lower, real):
    """1 in the triangle that an eigendecomposition reads, 1/2 on its diagonal."""
    if not real:
        raise ValueError("mindspore_hessian has no derivative of the eigendecomposition of a complex matrix. Write it "
                         "as the real one of twice the size, [[re, -im], [im, re]].")
    triangle = np.tri(n) - np.eye(n) / 2
    return Tensor(triangle if lower else triangle.T)


@ops.constexpr
def _rounding(n, double):
    """Relative to the largest, how far apart equal eigenvalues of an n x n matrix may come out."""
    return float(4 * n * np.finfo(np.float64 if double else np.float32).eps)


@ops.constexpr
def _unit(n):
    return Tensor(np.eye(n))


def eigh(prim):
    """(w, V) of a symmetric matrix, or w alone: V (dw + (V^T dV) F) V^T, F_ij = 1 / (w_j - w_i). Where two are equal
    that is NaN: V has no derivative there, and what MindSpore has is a number, but no derivative either."""
    lower, vectors = prim.attrs["lower"], prim.attrs["compute_eigenvectors"]
    whole = _compat.Eigh(True, lower)

    def bprop(x, out, dout):
        unit = ops.cast(_unit(x.shape[-1]), x.dtype)
        if vectors:
            w, v = out
            part = ops.expand_dims(w, -2) - ops.expand_dims(w, -1)
            equal = ops.abs(part) <= _rounding(x.shape[-1], x.dtype == ms.float64) * ops.abs(w).max()
            part = ops.where(equal, ops.zeros_like(part), part)
            turned = ops.matmul(ops.swapaxes(v, -1, -2), dout[1]) * (1 - unit) / (part + unit)
            middle = turned + unit * ops.expand_dims(dout[0], -1)
        else:
            v = whole(x)[1]
            middle = unit * ops.expand_dims(dout, -1)
        dx = ops.matmul(ops.matmul(v, middle), ops.swapaxes(v, -1, -2))
        real = x.dtype in (ms.float32, ms.float64)
        return ((dx + ops.swapaxes(dx, -1, -2)) * ops.cast(_own_triangle(x.shape[-1], lower, real), x.dtype),)
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


def fft_shape_copy(prim):
    """FFTShapeCopy(d, shape) cuts off, or fills with zeros, at the end of each axis: the same, back to d's shape."""
    copy = _compat.backward("FFTShapeCopy")

    def bprop(d, shape, out, dout):
        return copy(dout, d.shape), 0
    return bprop


def irfft_double(prim):
    """IRFFTDouble(x, n, dim) doubles what the real transform of length n leaves out: a diagonal matrix."""
    double = _compat.backward("IRFFTDouble")

    def bprop(x, n, dim, out, dout):
        return double(dout, n, dim), 0, 0
    return bprop


def hermitian(instead):
    """HFFT, IHFFT and their forms of more dimensions: no derivative can mend the value that it goes with."""
    def getter(prim):
        raise MissingRuleError(
            f"ops.{instead[0]} is refused: MindSpore's kernel computes something else at every second call, and the "
            f"gradient of its imaginary part has the wrong sign. Write {instead[1]}, with 2 or n at the end for more "
            "dimensions; the opposite norm is 'forward' for 'backward', which is the default, and the reverse.")
    return getter


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
_EVERY_SECOND = "MindSpore's kernel computes something else at every second call: refused"
_IN_PLACE = "MindSpore's gradient writes in place, which it cannot differentiate"

RULES: tuple[Derivative, ...] = (
    Derivative("InvGrad", by_formula(inv_grad, 2), _MISSING),
    Derivative("Mvlgamma", mvlgamma, _REWRITTEN, replaces=True),
    Derivative("MultiMarginLoss", multi_margin_loss, _REWRITTEN, replaces=True),
    Derivative("MaxUnpool2D", max_unpool(2), _REWRITTEN, replaces=True),
    Derivative("MaxUnpool3D", max_unpool(3), _REWRITTEN, replaces=True),
    Derivative("MirrorPad", mirror_pad, _REWRITTEN, replaces=True),
    Derivative("MatrixInverse", matrix_inverse, "MindSpore's is silently wrong for the transpose", replaces=True),
    Derivative("Cholesky", cholesky, "the kernel of MindSpore's gradient is not on CPU", replaces=True),
    Derivative("CholeskyInverse", cholesky_inverse, "MindSpore's is wrong unless x is symmetric", replaces=True),
    Derivative("CholeskySolve", cholesky_solve, "MindSpore's has a part outside of the triangle", replaces=True),
    *(Derivative(name + which, hermitian((name.lower() + which.lower(), instead)), _EVERY_SECOND, replaces=True)
      for name, instead in (("HFFT", "ops.irfft(ops.conj(x), n, dim, opposite norm)"),
                            ("IHFFT", "ops.conj(ops.rfft(x, n, dim, opposite norm))")) for which in ("", "2", "N")),
    Derivative("Eigh", eigh, "MindSpore's is silently wrong for equal eigenvalues", replaces=True),
    Derivative("IRFFTDouble", irfft_double, _MISSING),
    Derivative("FFTShapeCopy", fft_shape_copy, _MISSING),
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
