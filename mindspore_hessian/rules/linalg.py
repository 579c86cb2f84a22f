"""Rules of linear algebra: inverses, Cholesky factors, determinants, traces, cross products."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    by_composition,
    from_end,
    joint,
    linear,
    product,
    value_of,
)
from mindspore_hessian.rules.kit import (
    attributes_of,
    copied_to,
    filled,
    inverse,
    leading,
    one_tensor,
    reshape,
    same_shape,
    shifted,
    transposed,
    two_along,
)
from mindspore_hessian.rules.registry import REWRITTEN, batching, derivative, expansion, forward
from mindspore_hessian.rules.taylor import bilinear, by_expansion, by_series, matrix_at

# --- inverses and Cholesky factors ----------------------------------------------------------------


@derivative("MatrixInverse", why="MindSpore's is silently wrong for the transpose", replaces=True)
def matrix_inverse(prim):
    """y = x^-1, or its transpose: MindSpore's derivative is silently wrong for the transpose."""
    (adjoint,) = attributes_of(prim, "adjoint")

    def bprop(x, out, dout):
        flipped = transposed(dout)
        if adjoint:
            return (-ops.matmul(ops.matmul(out, flipped), out),)
        return (-transposed(ops.matmul(ops.matmul(out, flipped), out)),)

    return bprop


batching("MatrixInverse", "MatrixPower")(leading)


@constexpr
def _half_lower(n):
    """1 below the diagonal, 1/2 on it."""
    return Tensor(np.tri(n) - np.eye(n) / 2)


@derivative("Cholesky", why="the kernel of MindSpore's gradient is not on CPU", replaces=True)
def cholesky(prim):
    """L L^T = x, or its transpose: (S + S^T) / 2, since the kernel takes symmetric x only, with S =
    L^-T P L^-1 and P the lower part of L^T d, half its diagonal."""

    def bprop(x, upper, out, dout):
        factor, d = (transposed(out), transposed(dout)) if upper else (out, dout)
        part = ops.matmul(transposed(factor), d) * ops.cast(_half_lower(x.shape[-1]), x.dtype)
        back = inverse(factor)
        whole = ops.matmul(ops.matmul(transposed(back), part), back)
        return 0.5 * (whole + transposed(whole)), 0

    return bprop


batching("Cholesky")(leading)


@derivative("CholeskyInverse", why="MindSpore's is wrong unless x is symmetric", replaces=True)
def cholesky_inverse(prim):
    """(x x^T)^-1, or (x^T x)^-1 for an upper factor. MindSpore takes the whole of x, not a triangle
    of it.
    """

    def bprop(x, upper, out, dout):
        both = ops.matmul(ops.matmul(out, dout + transposed(dout)), out)
        return -(ops.matmul(x, both) if upper else ops.matmul(both, x)), 0

    return bprop


@batching("CholeskyInverse")
@one_tensor
def batched_cholesky_inverse(prim, x, upper):
    """The inverse of the product: the kernel takes one matrix."""
    flipped = transposed(x)
    return inverse(ops.matmul(flipped, x) if upper else ops.matmul(x, flipped))


@constexpr
def _factor_triangle(n, upper):
    return Tensor(np.tri(n).T if upper else np.tri(n))


@derivative("CholeskySolve", why="MindSpore's has a part outside of the triangle", replaces=True)
def cholesky_solve(prim):
    """(L L^T)^-1 b, or with U^T U. MindSpore's has a part outside of the triangle, and float32
    accuracy in float64.
    """
    upper = prim.upper

    def bprop(b, factor, out, dout):
        triangle = ops.cast(_factor_triangle(factor.shape[-1], upper), factor.dtype)
        db = ops.cholesky_solve(dout, factor, upper)
        both = ops.matmul(db, transposed(out))
        both = both + transposed(both)
        part = factor * triangle
        return db, -triangle * (ops.matmul(part, both) if upper else ops.matmul(both, part))

    return bprop


@constexpr
def _stack_shape(shape):
    """A batch of stacks of matrices as one stack."""
    size = 1
    for length in shape[:-2]:
        size *= length
    return (size, *shape[-2:])


@batching("CholeskySolve")
def batched_cholesky_solve(prim, axis_size):
    """CholeskySolve(b, factor), whose kernel takes one stack of matrices, and factors for each."""

    def rule(b_pair, factor_pair):
        b, b_dim = b_pair
        factor, dim = factor_pair
        if b_dim is None and dim is None:
            return prim(b, factor), None
        b, factor = filled(b, b_dim, axis_size), filled(factor, dim, axis_size)
        return reshape(
            prim(reshape(b, _stack_shape(b.shape)), reshape(factor, _stack_shape(factor.shape))),
            b.shape,
        ), 0

    return rule


# --- determinants and traces ----------------------------------------------------------------------

_TRANSPOSED = "MindSpore's second derivative is silently wrong: it takes the inverse of the transpose for the inverse"


@derivative("MatrixDeterminant", why=_TRANSPOSED, replaces=True)
def matrix_determinant(prim):
    """d det(x) x^-T."""

    def bprop(x, out, dout):
        return ((dout * out).reshape(out.shape + (1, 1)) * transposed(inverse(x)),)

    return bprop


@derivative("LogMatrixDeterminant", why=_TRANSPOSED, replaces=True)
def log_matrix_determinant(prim):
    """(sign, log |det x|): d x^-T."""

    def bprop(x, out, dout):
        return (dout[1].reshape(out[1].shape + (1, 1)) * transposed(inverse(x)),)

    return bprop


@constexpr
def _triangle(rows, columns, lower):
    """1 strictly below the diagonal, or elsewhere."""
    below = np.tri(rows, columns, -1)
    return Tensor(below if lower else 1 - below)


def _parts(lu, lower, upper):
    """What of two matrices of its size becomes the factors of LU: below the diagonal, and elsewhere."""
    n = min(lu.shape[-2], lu.shape[-1])
    below = ops.cast(_triangle(lu.shape[-2], n, True), lu.dtype)
    above = ops.cast(_triangle(n, lu.shape[-1], False), lu.dtype)
    return lower[..., :n] * below, upper[..., :n, :] * above


batching("LuUnpack")(same_shape(2))  # the kernel takes batches, of both


@derivative("LuUnpackGrad")
def lu_unpack_grad(prim):
    """LuUnpackGrad(dl, du, lu) puts the part below the diagonal of dl, and the other of du, in the
    place of LU.
    """

    def bprop(dl, du, lu, out, dout):
        lower, upper = _parts(lu, *dout)
        return lower, upper, ops.zeros_like(lu)

    return bprop


@derivative("Trace", why=REWRITTEN, replaces=True)
def trace(prim):
    """Trace(x): d on the diagonal."""

    def bprop(x, out, dout):
        return (ops.eye(x.shape[0], x.shape[1], x.dtype) * dout,)

    return bprop


@derivative("TraceV2", why=REWRITTEN, replaces=True)
def trace_v2(prim):
    """TraceV2(x, offset, axis1, axis2, dtype): the sum of a diagonal."""

    def bprop(x, offset, axis1, axis2, dtype, out, dout):
        def summed(x):
            return ops.diagonal(x, offset, axis1, axis2).sum(-1)

        return pull(summed)(mutable(x), ops.cast(dout, x.dtype))[0], 0, 0, 0, 0

    return bprop


batching("Cross")(two_along)


@batching("TraceV2")
@one_tensor
def batched_trace_v2(prim, x, offset, axis1, axis2, dtype):
    """Of each sample."""
    return ops.diagonal(x, offset, shifted(axis1), shifted(axis2)).sum(-1).astype(dtype or x.dtype)


@batching("Trace")
@one_tensor
def batched_trace(prim, x):
    """Of each matrix."""
    return (x * ops.eye(x.shape[1], x.shape[2], x.dtype)).sum((1, 2))


# --- forward --------------------------------------------------------------------------------------

forward("Trace", "MatrixBandPart", "MatrixDiagV3")(linear)
forward("MatrixSetDiagV3")(joint(0, 1))


@by_expansion("LuUnpack")
def expanded_lu_unpack(prim):
    """The permutation, which carries nothing, and the two factors."""

    def function(lu, pivots):
        permutation, lower, upper = prim(lu[0], pivots)
        ls, us = (lower,), (upper,)
        for one in lu[1:]:
            below, above = _parts(lu[0], one, one)
            ls, us = ls + (below,), us + (above,)
        return (permutation,), ls, us

    return function


forward("Cross", "Ger")(product)


def _trace_of(a, b):
    """trace(a b), without the product."""
    return (a * transposed(b)).sum((-2, -1))


@forward("MatrixInverse", "MatrixInverseExt")
@allow(0)
def pushed_inverse(prim, usual):
    """y' = -y a' y, and y'' = -y (a'' y + 2 a' y'); all transposed where the primitive does
    that.
    """
    adjoint = prim.name == "MatrixInverse" and prim.attrs["adjoint"]

    def rule(x_pair):
        out = _inverted(x_pair[0])
        if adjoint:
            return (_transposed(out), FORWARD)
        return (out, FORWARD)

    return rule


def _inverted(a):
    """The inverse of a triple."""
    y = inverse(a[0])
    k = -ops.matmul(ops.matmul(y, a[1]), y)
    return (y, k, -ops.matmul(y, ops.matmul(a[2], y) + 2 * ops.matmul(a[1], k).sum(0)))


def _transposed(a):
    return (transposed(a[0]), transposed(a[1]), transposed(a[2]))


def _multiplied(a, b):
    """The matrix product of two triples of as many axes."""
    v, cross = ops.matmul(a[0], b[0]), ops.matmul(a[1], b[1]).sum(0)
    j = ops.matmul(a[1], b[0]) + ops.matmul(a[0], b[1])
    return (v, j, ops.matmul(a[2], b[0]) + ops.matmul(a[0], b[2]) + 2 * cross)


def _triple_of(pair, like):
    """A triple; of what carries nothing, with zeros."""
    if pair[1] == FORWARD:
        return pair[0]
    zeros = ops.zeros_like(pair[0])
    return (pair[0], copied_to(zeros, (like.shape[0],) + zeros.shape), zeros)


def _power(factor, n, product):
    """factor^n, by squaring."""
    out = None
    while n > 0:
        if n % 2 == 1:
            out = factor if out is None else product(out, factor)
        factor = product(factor, factor) if n > 1 else factor
        n = n // 2
    return out


@forward("MatrixPower")
@allow(0)
def pushed_matrix_power(prim, usual):
    """x^n, by squaring."""
    n = prim.n

    def rule(x_pair):
        a = x_pair[0]
        if n == 0:
            return prim(a[0]), None
        out = _power(_inverted(a) if n < 0 else a, abs(n), _multiplied)
        return (out, FORWARD)  # of float64 accuracy, which the kernel's is not

    return rule


def _solved(a_pair, b_pair):
    """x = a^-1 b: x' = a^-1 (b' - a' x), x'' = a^-1 (b'' - a'' x - 2 a' x'). The kernels that solve
    have the accuracy of float32."""
    back = inverse(value_of(a_pair))
    y = ops.matmul(back, value_of(b_pair))
    like = a_pair[0][1] if a_pair[1] == FORWARD else b_pair[0][1]
    a, b = _triple_of(a_pair, like), _triple_of(b_pair, like)
    j = ops.matmul(back, b[1] - ops.matmul(a[1], y))
    inner = ops.matmul(a[2], y) + 2 * ops.matmul(a[1], j).sum(0)
    return (y, j, ops.matmul(back, b[2] - inner))


@forward("MatrixSolve")
@allow(0, 1)
def pushed_matrix_solve(prim, usual):
    """a^-1 b, or that with the transpose of a."""
    adjoint = prim.adjoint

    def rule(a_pair, b_pair):
        if adjoint:
            turned = _transposed if a_pair[1] == FORWARD else transposed
            a_pair = (turned(a_pair[0]), a_pair[1])
        return (_solved(a_pair, b_pair), FORWARD)

    return rule


def _of_factor(factor, flipped, upper, product):
    """L L^T of a triple or a series and its transpose, or U^T U."""
    return product(flipped, factor) if upper else product(factor, flipped)


@by_composition("CholeskyInverse")
def pushed_cholesky_inverse(prim, a, upper):
    """(x x^T)^-1, or (x^T x)^-1 for an upper factor."""
    out = _inverted(_of_factor(a, _transposed(a), upper, _multiplied))
    return (prim(a[0], upper), out[1], out[2])


@forward("CholeskySolve")
@allow(0, 1)
def pushed_cholesky_solve(prim, usual):
    """(L L^T)^-1 b, or with U^T U, of the triangle alone."""
    upper = prim.upper

    def rule(b_pair, factor_pair):
        factor = value_of(factor_pair)
        like = factor_pair[0][1] if factor_pair[1] == FORWARD else b_pair[0][1]
        triangle = ops.cast(_factor_triangle(factor.shape[-1], upper), factor.dtype)
        whole = _triple_of(factor_pair, like)
        part = (whole[0] * triangle, whole[1] * triangle, whole[2] * triangle)
        whole = _of_factor(part, _transposed(part), upper, _multiplied)
        return (_solved((whole, FORWARD), b_pair), FORWARD)

    return rule


@by_composition("TraceV2", kinked=True)
def pushed_trace(prim, a, offset, axis1, axis2, dtype):
    """The sum of a diagonal."""
    first, second = from_end(axis1, a[0].ndim), from_end(axis2, a[0].ndim)

    def summed(x):
        return ops.diagonal(x, offset, first, second).sum(-1)

    return (prim(a[0], offset, axis1, axis2, dtype), summed(a[1]), summed(a[2]))


def _of_determinant(a):
    """The derivatives of log |det a|: trace(y a') and trace(y a'') - trace((y a')^2), with y the
    inverse of a.
    """
    y = inverse(a[0])
    turned = ops.matmul(y, a[1])
    return _trace_of(y, a[1]), _trace_of(y, a[2]) - _trace_of(turned, turned).sum(0)


@by_composition("Cholesky")
def pushed_cholesky(prim, a, upper):
    """With L L^T = a: L' = L P(L^-1 a' L^-T), P the lower part, half its diagonal; and L'' the same
    of a'' - 2 L' L'^T. The kernel takes a for symmetric.
    """
    y = prim(a[0], upper)
    factor = transposed(y) if upper else y
    back = inverse(factor)
    half = ops.cast(_half_lower(y.shape[-1]), y.dtype)

    def part(change):
        both = (change + transposed(change)) / 2
        inner = ops.matmul(ops.matmul(back, both), transposed(back))
        return ops.matmul(factor, inner * half)

    first = part(a[1])
    second = part(a[2] - 2 * ops.matmul(first, transposed(first)).sum(0))
    if upper:
        return (y, transposed(first), transposed(second))
    return (y, first, second)


@by_composition("MatrixDeterminant")
def pushed_determinant(prim, a):
    """exp of the logarithm's."""
    y, (j, l) = prim(a[0]), _of_determinant(a)  # noqa: E741
    return (y, y * j, y * (l + (j * j).sum(0)))


@forward("LogMatrixDeterminant")
@allow(0)
def pushed_log_determinant(prim, usual):
    """(sign, log |det x|)."""

    def rule(x_pair):
        sign, y = prim(x_pair[0][0])
        j, l = _of_determinant(x_pair[0])  # noqa: E741
        return (sign, None), ((y, j, l), FORWARD)

    return rule


# --- Taylor coefficients --------------------------------------------------------------------------

expansion("Cross", "Ger")(bilinear)


def _matrix_product(a, b):
    """The product of two series, at least one of them as long as it gets."""
    out = ()
    for n in range(taylor.longer(len(a), len(b))):
        out = out + (matrix_at(a, b, n),)
    return out


def _inverse_series(a):
    """y a = 1: y_n = -y_0 (a_1 y_{n-1} + ... + a_n y_0)."""
    out = (inverse(a[0]),)
    for n in range(1, len(a)):
        out = out + (-ops.matmul(out[0], matrix_at(a, out, n, 1)),)
    return out


def _solution_series(a, b):
    """a y = b: y_n = a_0^-1 (b_n - a_1 y_{n-1} - ... - a_n y_0)."""
    back = inverse(a[0])
    out = (ops.matmul(back, b[0]),)
    for n in range(1, taylor.longer(len(a), len(b))):
        known = matrix_at(a, out, n, 1)
        rest = b[n] if n < len(b) else ops.zeros_like(out[0])
        out = out + (ops.matmul(back, rest if known is None else rest - known),)
    return out


@expansion("MatrixInverse", "MatrixInverseExt")
@allow(0)
def expanded_inverse(prim, usual):
    """The inverse, or its transpose where the primitive gives that."""
    adjoint = prim.name == "MatrixInverse" and prim.attrs["adjoint"]

    def rule(x_pair):
        out = _inverse_series(taylor.coefficients(x_pair))
        return taylor.joined(taylor.transposed(out) if adjoint else out)

    return rule


@expansion("MatrixPower")
@allow(0)
def expanded_matrix_power(prim, usual):
    """x^n, by squaring."""
    n = prim.n

    def rule(x_pair):
        x = taylor.coefficients(x_pair)
        if n == 0:
            return prim(x[0]), None
        factor = _inverse_series(x) if n < 0 else x
        return taylor.joined(_power(factor, abs(n), _matrix_product))

    return rule


@expansion("MatrixSolve")
@allow(0, 1)
def expanded_matrix_solve(prim, usual):
    """a^-1 b, or that with the transpose of a."""
    adjoint = prim.adjoint

    def rule(a_pair, b_pair):
        a = taylor.coefficients(a_pair)
        return taylor.joined(
            _solution_series(taylor.transposed(a) if adjoint else a, taylor.coefficients(b_pair))
        )

    return rule


@by_series("CholeskyInverse")
def expanded_cholesky_inverse(y, x, upper):
    return (y,) + _inverse_series(_of_factor(x, taylor.transposed(x), upper, _matrix_product))[1:]


@expansion("CholeskySolve")
@allow(0, 1)
def expanded_cholesky_solve(prim, usual):
    """(L L^T)^-1 b, or with U^T U, of the triangle alone."""
    upper = prim.upper

    def rule(b_pair, factor_pair):
        whole = taylor.coefficients(factor_pair)
        triangle = ops.cast(_factor_triangle(whole[0].shape[-1], upper), whole[0].dtype)
        part = taylor.scaled(whole, triangle)
        factor = _of_factor(part, taylor.transposed(part), upper, _matrix_product)
        return taylor.joined(_solution_series(factor, taylor.coefficients(b_pair)))

    return rule


@by_series("Cholesky")
def expanded_cholesky(y, x, upper):
    """L L^T = x: L_n = L_0 P(L_0^-1 (x_n - L_1 L_{n-1}^T - ... - L_{n-1} L_1^T) L_0^-T), P the lower
    part, half its diagonal."""
    factor = transposed(y) if upper else y
    back = inverse(factor)
    half = ops.cast(_half_lower(y.shape[-1]), y.dtype)
    out = (factor,)
    for n in range(1, len(x)):
        rest = (x[n] + transposed(x[n])) / 2
        known = matrix_at(out, taylor.transposed(out), n, 1)
        rest = rest if known is None else rest - known
        inner = ops.matmul(ops.matmul(back, rest), transposed(back))
        out = out + (ops.matmul(factor, inner * half),)
    return taylor.transposed(out) if upper else out


def _log_determinant_series(y, x):
    """log |det x|, whose value is y and whose derivative is trace(x^-1 x')."""
    back, d, slope = _inverse_series(x), taylor.derivative_of(x), ()
    for n in range(len(d)):
        total = _trace_of(back[0], d[n])
        for i in range(1, n + 1):
            total = total + _trace_of(back[i], d[n - i])
        slope = slope + (total,)
    return taylor.integral(y, slope)


@by_series("MatrixDeterminant")
def expanded_determinant(y, x):
    """exp of the logarithm's."""
    return taylor.exponential(y, _log_determinant_series(y, x))


@expansion("LogMatrixDeterminant")
@allow(0)
def expanded_log_determinant(prim, usual):
    """(sign, log |det x|)."""

    def rule(x_pair):
        x = taylor.coefficients(x_pair)
        sign, y = prim(x[0])
        return (sign, None), taylor.joined(_log_determinant_series(y, x))

    return rule
