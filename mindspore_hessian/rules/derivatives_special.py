"""Derivative rules: functions that are smooth at a point where MindSpore's derivative is not.

A slope with a removable singularity is a polynomial near it: both branches then have right derivatives of any order.
"""
from __future__ import annotations

import math

import numpy as np
from mindspore import Tensor, mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import pull
from mindspore_hessian.rules.compositions import logaddexp
from mindspore_hessian.rules.derivatives_linalg import attributes_of

# Primitives and constants instead of the functions of `mindspore.ops`: a graph of these compiles in half the time.
_ADD, _MUL, _SUB, _POW, _ABS, _LESS = ops.Add(), ops.Mul(), ops.Sub(), ops.Pow(), ops.Abs(), ops.Less()
_SELECT, _ONES, _ZEROS = ops.Select(), ops.OnesLike(), ops.ZerosLike()

_SINC = [(-1) ** (k + 1) * 2 * (k + 1) / math.factorial(2 * k + 3) for k in range(10)]
_BESSEL = [(2 * k + 1) / (2 * math.factorial(k) * math.factorial(k + 1) * 4 ** k) for k in range(10)]
_SERIES = {"sinc": _SINC, "i1": _BESSEL, "j1": [(-1) ** k * c for k, c in enumerate(_BESSEL)], "pi": [math.pi]}


@ops.constexpr
def _coefficients(name, dtype):
    """Of a series, the highest power first. As Tensors: MindSpore keeps a Python float in float32."""
    return tuple(Tensor(c, dtype) for c in _SERIES[name][::-1])


def _series(name, x):
    """The sum of ``coefficients[k] x^(2 k)``."""
    square = _MUL(x, x)
    out = _ZEROS(x)
    for c in _coefficients(name, x.dtype):
        out = _ADD(_MUL(out, square), c)
    return out


def _near(x):
    """Where to take the series; x there, and x elsewhere, with 0 and 1 in the other's place."""
    ones = _ONES(x)
    near = _LESS(_ABS(x), ones)
    return near, _SELECT(near, x, _ZEROS(x)), _SELECT(near, ones, x)


def sinc(prim):
    """sin(u) / u with u = pi x: (cos u - sin u / u) / u, and near 0 its series."""
    def bprop(x, out, dout):
        pi = _coefficients("pi", x.dtype)[0]
        near, small, large = _near(_MUL(x, pi))
        slope = (ops.cos(large) - ops.sin(large) / large) / large
        return (dout * _MUL(_SELECT(near, _MUL(small, _series("sinc", small)), slope), pi),)
    return bprop


def bessel_i1(prim):
    """I0 - I1 / x, and near 0 its series."""
    def bprop(x, out, dout):
        near, small, large = _near(x)
        return (dout * _SELECT(near, _series("i1", small), ops.bessel_i0(x) - out / large),)
    return bprop


def bessel_j1(prim):
    """J0 - J1 / x, and near 0 its series."""
    def bprop(x, out, dout):
        near, small, large = _near(x)
        return (dout * _SELECT(near, _series("j1", small), ops.bessel_j0(x) - out / large),)
    return bprop


def bessel_i1e(prim):
    """exp(-|x|) I1: exp(-|x|) I1' - sign(x) out."""
    def bprop(x, out, dout):
        near, small, large = _near(x)
        scaled = ops.exp(-ops.abs(small)) * _series("i1", small)
        return (dout * (_SELECT(near, scaled, ops.bessel_i0e(x) - out / large) - ops.sign(x) * out),)
    return bprop


def hypot(prim):
    """(cos, sin) of the angle of (x, y): x / hypot would lose digits in its derivative, y^2 / hypot^3."""
    def bprop(x, y, out, dout):
        angle = ops.atan2(y, x)
        return pull(ops.mul)(mutable(x), ops.cos(angle), dout)[0], pull(ops.mul)(mutable(y), ops.sin(angle), dout)[0]
    return bprop


# --- powers and running products -----------------------------------------------------------------------------------

@ops.constexpr
def _one_less(p):
    """p - 1, but 0 for 0, whose power is multiplied by 0."""
    value = _compat.to_numpy(p)
    return Tensor(np.where(value == 0, 0, value - 1), p.dtype)


def power(prim):
    """d p x^(p - 1), but for 0^-1 where p = 0; and d x^p log x, taken as 0 for x <= 0 as MindSpore does."""
    def bprop(x, p, out, dout):
        if _compat.is_constant(p) and p.ndim == 0:
            return _MUL(dout, _MUL(_POW(x, _one_less(p)), p)), _ZEROS(p)
        lower = _SELECT(ops.logical_and(x == 0, p == 0), _ZEROS(out), _SUB(p, _ONES(out)))
        logarithm = ops.log(_SELECT(x > 0, x, _ONES(x)))
        # a product's gradient adds up what was broadcast
        dx = pull(ops.mul)(mutable(x), p * _POW(x, lower), dout)[0]
        dp = pull(ops.mul)(mutable(p), out * logarithm, dout)[0]
        return dx, dp
    return bprop


def _running(combine, x, axis, reverse):
    """`combine` of all up to each element, in log2(n) steps; `reverse`: of all from each element on."""
    out = ops.flip(x, (axis,)) if reverse else x
    length = x.shape[axis]
    step = 1
    while step < length:
        head, rest = ops.split(out, (step, length - step), axis)
        moved = ops.split(out, (length - step, step), axis)[0]
        out = ops.concat((head, combine(rest, moved)), axis)
        step = 2 * step
    return ops.flip(out, (axis,)) if reverse else out


def _shifted(x, axis, reverse):
    """Each element is its neighbour's, 1 at the edge."""
    length = x.shape[axis]
    if reverse:
        edge, rest = ops.split(x, (1, length - 1), axis)
        return ops.concat((rest, ops.ones_like(edge)), axis)
    rest, edge = ops.split(x, (length - 1, 1), axis)
    return ops.concat((ops.ones_like(edge), rest), axis)


def cumprod(prim):
    """CumProd(x, axis, exclusive, reverse), without a division by x."""
    def bprop(x, axis, exclusive, reverse, out, dout):
        def products(x):
            return _running(ops.mul, _shifted(x, axis, reverse) if exclusive else x, axis, reverse)
        return pull(products)(mutable(x), dout)[0], 0, 0, 0
    return bprop


@ops.constexpr
def _number(axis):
    return int(axis.asnumpy())


def cumulative_logsumexp(prim):
    """CumulativeLogsumexp(x, axis), by logaddexp of parts."""
    exclusive, reverse = attributes_of(prim, "exclusive", "reverse")
    if exclusive:
        raise NotImplementedError("mindspore_hessian has no derivative of CumulativeLogsumexp(exclusive=True)")

    def bprop(x, axis, out, dout):
        def sums(x):
            return _running(logaddexp, x, _number(axis), reverse)
        return pull(sums)(mutable(x), dout)[0], ops.zeros_like(axis)
    return bprop


RULES: tuple[Derivative, ...] = (
    Derivative("Sinc", sinc, "MindSpore's is off by 200% near 0 and NaN at 0", replaces=True),
    Derivative("BesselI1", bessel_i1, "MindSpore's is 1 at 0 for 1/2 and loses all digits near it", replaces=True),
    Derivative("BesselJ1", bessel_j1, "MindSpore's loses all digits near 0", replaces=True),
    Derivative("BesselI1e", bessel_i1e, "MindSpore's loses all digits near 0", replaces=True),
    Derivative("Hypot", hypot, "MindSpore's computes float64 in float32", replaces=True),
    Derivative("Pow", power, "MindSpore's multiplies 0 by 0^-1: x^0, x^1, the third derivative of x^2 are NaN at 0",
               replaces=True, visible=True),
    Derivative("CumProd", cumprod, "MindSpore's divides by x: NaN at zeros", replaces=True, visible=True),
    Derivative("CumulativeLogsumexp", cumulative_logsumexp, "MindSpore's third derivative is NaN", replaces=True,
               visible=True),
)
