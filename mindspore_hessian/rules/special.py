"""Rules of special functions: gamma, Bessel, sinc.

Some are smooth at a point where MindSpore's derivative is not. A slope with a removable singularity
is a polynomial near it: both branches then have right derivatives of any order.
"""

from __future__ import annotations

import math

from mindspore import Tensor, float64, int32, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.forward import by_slopes
from mindspore_hessian.rules.kit import (
    abs_,
    add,
    attributes_of,
    less,
    mul,
    ones_like,
    primitive,
    same_shape,
    select,
    unary,
    values,
    zeros_like,
)
from mindspore_hessian.rules.registry import REWRITTEN, batching, derivative
from mindspore_hessian.rules.taylor import by_series

# --- the gamma function and its like --------------------------------------------------------------

batching("Lgamma", "Digamma")(unary)
batching("Zeta")(same_shape(2))


@batching("Polygamma")
def batched_polygamma(prim, axis_size):
    """Polygamma(n, x) of one order n."""
    prim = primitive(prim)

    def rule(order_pair, x_pair):
        return prim(values((order_pair,))[0], x_pair[0]), x_pair[1]

    return rule


@derivative("Mvlgamma", why=REWRITTEN, replaces=True)
def mvlgamma(prim):
    """d sum_j digamma(x - j / 2) for j < p."""
    (p,) = attributes_of(prim, "p")

    def bprop(x, out, dout):
        slope = ops.zeros_like(x)
        for j in range(p):
            slope = slope + ops.digamma(x - j * 0.5)
        return (dout * slope,)

    return bprop


# --- removable singularities ----------------------------------------------------------------------

_SINC = [(-1) ** (k + 1) * 2 * (k + 1) / math.factorial(2 * k + 3) for k in range(10)]
_BESSEL = [(2 * k + 1) / (2 * math.factorial(k) * math.factorial(k + 1) * 4**k) for k in range(10)]
_SERIES = {
    "sinc": _SINC,
    "i1": _BESSEL,
    "j1": [(-1) ** k * c for k, c in enumerate(_BESSEL)],
    "pi": [math.pi],
}


@constexpr
def _coefficients(name, dtype):
    """Of a series, the highest power first. As Tensors: MindSpore keeps a Python float in
    float32.
    """
    return tuple(Tensor(c, dtype) for c in _SERIES[name][::-1])


def _series(name, x):
    """The sum of ``coefficients[k] x^(2 k)``."""
    square = mul(x, x)
    out = zeros_like(x)
    for c in _coefficients(name, x.dtype):
        out = add(mul(out, square), c)
    return out


def _near(x):
    """Where to take the series; x there, and x elsewhere, with 0 and 1 in the other's place."""
    ones = ones_like(x)
    near = less(abs_(x), ones)
    return near, select(near, x, zeros_like(x)), select(near, ones, x)


@derivative("Sinc", why="MindSpore's is off by 200% near 0 and NaN at 0", replaces=True)
def sinc(prim):
    """sin(u) / u with u = pi x: (cos u - sin u / u) / u, and near 0 its series."""

    def bprop(x, out, dout):
        pi = _coefficients("pi", x.dtype)[0]
        near, small, large = _near(mul(x, pi))
        slope = (ops.cos(large) - ops.sin(large) / large) / large
        return (dout * mul(select(near, mul(small, _series("sinc", small)), slope), pi),)

    return bprop


batching("Sinc")(unary)


@derivative(
    "BesselI1", why="MindSpore's is 1 at 0 for 1/2 and loses all digits near it", replaces=True
)
def bessel_i1(prim):
    """I0 - I1 / x, and near 0 its series."""

    def bprop(x, out, dout):
        near, small, large = _near(x)
        return (dout * select(near, _series("i1", small), ops.bessel_i0(x) - out / large),)

    return bprop


@derivative("BesselI1e", why="MindSpore's loses all digits near 0", replaces=True)
def bessel_i1e(prim):
    """exp(-|x|) I1: exp(-|x|) I1' - sign(x) out."""

    def bprop(x, out, dout):
        near, small, large = _near(x)
        scaled = ops.exp(-ops.abs(small)) * _series("i1", small)
        return (dout * (select(near, scaled, ops.bessel_i0e(x) - out / large) - ops.sign(x) * out),)

    return bprop


@derivative("BesselJ1", why="MindSpore's loses all digits near 0", replaces=True)
def bessel_j1(prim):
    """J0 - J1 / x, and near 0 its series."""

    def bprop(x, out, dout):
        near, small, large = _near(x)
        return (dout * select(near, _series("j1", small), ops.bessel_j0(x) - out / large),)

    return bprop


# --- forward --------------------------------------------------------------------------------------

_ROOT = Tensor(2 / math.sqrt(math.pi), float64)


@by_slopes("Erf")
def erf_slopes(x, y):
    """2 / sqrt(pi) exp(-x^2), and -2 x times that."""
    first = ops.cast(_ROOT, x.dtype) * ops.exp(-x * x)
    return first, -2 * x * first


@by_slopes("Erfc")
def erfc_slopes(x, y):
    first = -ops.cast(_ROOT, x.dtype) * ops.exp(-x * x)
    return first, -2 * x * first


@by_slopes("Erfinv")
def erfinv_slopes(x, y):
    """sqrt(pi) / 2 exp(y^2), and 2 y times its square."""
    first = ops.exp(y * y) / ops.cast(_ROOT, x.dtype)
    return first, 2 * y * first * first


@by_slopes("Lgamma")
def lgamma_slopes(x, y):
    """digamma and trigamma."""
    return ops.digamma(x), ops.polygamma(Tensor(1, int32), x)


# --- Taylor coefficients --------------------------------------------------------------------------


@constexpr
def _slope_at_0(sign, dtype):
    """2 / sqrt(pi)."""
    return Tensor(sign * 2 / math.sqrt(math.pi), dtype)


def _bell(y, x, sign):
    """y whose derivative is sign 2 / sqrt(pi) exp(-x^2) x'."""
    square = taylor.negative(taylor.squared(x))
    slope = taylor.exponential(ops.exp(square[0]) * _slope_at_0(sign, y.dtype), square)
    return taylor.integrated(y, x, slope)


@by_series("Erf")
def expanded_erf(y, x):
    return _bell(y, x, 1)


@by_series("Erfc")
def expanded_erfc(y, x):
    return _bell(y, x, -1)
