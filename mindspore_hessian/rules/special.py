"""Rules of special functions: gamma, Bessel, sinc.

Some are smooth at a point where MindSpore's derivative is not. A slope with a removable singularity
is a polynomial near it: both branches then have right derivatives of any order.
"""

from __future__ import annotations

import math

from mindspore import Tensor, float64, int32, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    by_slopes,
    chain,
    spread,
    widened,
)
from mindspore_hessian.rules.kit import (
    abs_,
    add,
    attributes_of,
    binary,
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
from mindspore_hessian.rules.registry import REWRITTEN, batching, derivative, expansion, forward
from mindspore_hessian.rules.taylor import by_expansion, by_series

# --- the gamma function and its like --------------------------------------------------------------

batching("Lgamma", "Digamma")(unary)
batching("Zeta")(same_shape(2))

_TERMS = 10  # of the sum itself; the rest is an asymptotic series
# The inverses of B_2j / (2j)!, whole numbers (the last nearly): graphs round others to float32
_BERNOULLI = (12, -720, 30240, -1209600, 47900160, -1892437580)


def _zeta(s, q):
    """sum_k (q + k)^-s by Euler's and Maclaurin's formula, differentiable in s."""
    total, w = ops.zeros_like(s * q), q + _TERMS
    for k in range(_TERMS):
        total = total + ops.exp(-s * ops.log(q + k))
    power = ops.exp(-s * ops.log(w))  # w^-s
    total = total + power * w / (s - 1) + power / 2
    rising = s
    for j, number in enumerate(_BERNOULLI):
        power = power / w if j == 0 else power / (w * w)
        total = total + rising * power / number
        rising = rising * (s + 2 * j + 1) * (s + 2 * j + 2)
    return total


@derivative("Zeta", why="MindSpore's by the exponent is 0", replaces=True)
def zeta(prim):
    """By the exponent s that of the formula, by q -s zeta(s + 1, q)."""

    def bprop(s, q, out, dout):
        def by_exponent(s):
            return _zeta(s, q)

        return pull(by_exponent)(mutable(s), dout)[0], -s * ops.zeta(s + 1, q) * dout

    return bprop


@derivative("Betainc", why="MindSpore's by a and b is 0", replaces=True)
def betainc(prim):
    """By x x^(a - 1) (1 - x)^(b - 1) / B(a, b); by a and b there is no formula: NaN, if it is used."""

    def bprop(a, b, x, out, dout):
        scale = ops.lgamma(a + b) - ops.lgamma(a) - ops.lgamma(b)
        slope = ops.exp((a - 1) * ops.log(x) + (b - 1) * ops.log1p(-x) + scale)
        unknown = dout * ops.exp(a + b + x) * float("nan")  # so are its derivatives, of any order
        return unknown, unknown, dout * slope

    return bprop


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


batching("Mvlgamma")(unary)
batching("Igamma", "Igammac")(binary)


# --- removable singularities ----------------------------------------------------------------------

_SINC = [(-1) ** (k + 1) * 2 * (k + 1) / math.factorial(2 * k + 3) for k in range(10)]
_BESSEL = [(2 * k + 1) / (2 * math.factorial(k) * math.factorial(k + 1) * 4**k) for k in range(10)]
_SERIES = {
    "sinc": _SINC,
    "sinc'": [(2 * k + 1) * c for k, c in enumerate(_SINC)],
    "i1": _BESSEL,
    "j1": [(-1) ** k * c for k, c in enumerate(_BESSEL)],
    "pi": [math.pi],
}
# of whole functions, for Taylor coefficients, which need more terms: sin(x) / x, and I0, J0, I1 / x,
# J1 / x
for _order in (0, 1):
    _terms = [
        1 / (2**_order * 4**k * math.factorial(k) * math.factorial(k + _order)) for k in range(14)
    ]
    _SERIES[f"i{_order} even"] = _terms
    _SERIES[f"j{_order} even"] = [(-1) ** k * c for k, c in enumerate(_terms)]
_SERIES["sin over x"] = [(-1) ** k / math.factorial(2 * k + 1) for k in range(14)]
# the derivative of "i1" and "j1", over x
_SERIES |= {
    f"{name}'": [2 * k * c for k, c in enumerate(_SERIES[name])][1:] for name in ("i1", "j1")
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


@by_slopes("Digamma")
def digamma_slopes(x, y):
    return ops.polygamma(Tensor(1, int32), x), ops.polygamma(Tensor(2, int32), x)


@forward("Mvlgamma")
@allow(0)
def pushed_mvlgamma(prim, usual):
    """The sums of digamma(x - j / 2) and of trigamma."""
    (p,) = attributes_of(prim, "p")

    def rule(x_pair):
        x = x_pair[0][0]
        first, second = zeros_like(x), zeros_like(x)
        for j in range(p):
            first = first + ops.digamma(x - j * 0.5)
            second = second + ops.polygamma(Tensor(1, int32), x - j * 0.5)
        return (chain(x_pair[0], prim(x), first, second), FORWARD)

    return rule


def _gamma_tail(sign):
    """P(a, x) or Q(a, x) along x: the density s = x^(a - 1) exp(-x) / gamma(a), and s ((a - 1) / x -
    1).
    """

    @allow(1)
    def getter(prim, usual):
        def rule(a_pair, x_pair):
            a, x = a_pair[0], x_pair[0][0]
            first = sign * ops.exp((a - 1) * ops.log(x) - x - ops.lgamma(a))
            y = prim(a, x)
            carried = (x, spread(x_pair[0][1], y), widened(x_pair[0][2], y))
            return (chain(carried, y, first, first * ((a - 1) / x - 1)), FORWARD)

        return rule

    return getter


forward("Igamma")(_gamma_tail(1))
forward("Igammac")(_gamma_tail(-1))


@by_slopes("Sinc")
def sinc_slopes(x, y):
    """With u = pi x: s = (cos u - y) / u and -y - 2 s / u, and near 0 their series."""
    pi = _coefficients("pi", x.dtype)[0]
    near, small, large = _near(mul(x, pi))
    sine = ops.sin(large) / large
    slope = (ops.cos(large) - sine) / large
    first = select(near, mul(small, _series("sinc", small)), slope)
    second = select(near, _series("sinc'", small), -sine - 2 * slope / large)
    return first * pi, second * pi * pi


def _one(x, order_0, order_1, name):
    """The first and second derivative of the Bessel function of order 1: by that of order 0, and by
    Bessel's equation; near 0 by their series.
    """
    sign = -1 if name == "j1" else 1
    near, small, large = _near(x)
    first = order_0 - order_1 / large
    second = order_1 * (sign + 1 / (large * large)) - first / large
    return (
        select(near, _series(name, small), first),
        select(near, mul(small, _series(name + "'", small)), second),
    )


@by_slopes("BesselJ0")
def bessel_j0_slopes(x, y):
    one = ops.bessel_j1(x)
    return -one, -_one(x, y, one, "j1")[0]


@by_slopes("BesselJ1")
def bessel_j1_slopes(x, y):
    return _one(x, ops.bessel_j0(x), y, "j1")


@by_slopes("BesselI0")
def bessel_i0_slopes(x, y):
    one = ops.bessel_i1(x)
    return one, _one(x, y, one, "i1")[0]


@by_slopes("BesselI1")
def bessel_i1_slopes(x, y):
    return _one(x, ops.bessel_i0(x), y, "i1")


def _one_scaled(x, order_0, order_1):
    """exp(-|x|) times the first and the second derivative of I1, by functions scaled alike."""
    near, small, large = _near(x)
    scale = ops.exp(-ops.abs(small))
    first = order_0 - order_1 / large
    second = order_1 * (1 + 1 / (large * large)) - first / large
    return (
        select(near, scale * _series("i1", small), first),
        select(near, scale * mul(small, _series("i1'", small)), second),
    )


@by_slopes("BesselI0e")
def bessel_i0e_slopes(x, y):
    """exp(-|x|) (I0' - sign I0), and once more."""
    sign, one = ops.sign(x), ops.bessel_i1e(x)
    first = one - sign * y
    return first, _one_scaled(x, y, one)[0] - sign * one - sign * first


@by_slopes("BesselI1e")
def bessel_i1e_slopes(x, y):
    sign = ops.sign(x)
    inner, second = _one_scaled(x, ops.bessel_i0e(x), y)
    first = inner - sign * y
    return first, second - sign * inner - sign * first


@by_slopes("BesselK0")
def bessel_k0_slopes(x, y):
    one = ops.bessel_k1(x)
    return -one, y + one / x


@by_slopes("BesselK1")
def bessel_k1_slopes(x, y):
    first = -ops.bessel_k0(x) - y / x
    return first, y * (1 + 1 / (x * x)) - first / x


@by_slopes("BesselK0e")
def bessel_k0e_slopes(x, y):
    """exp(x) (K0 + K0')."""
    one = ops.bessel_k1e(x)
    return y - one, 2 * (y - one) + one / x


@by_slopes("BesselK1e")
def bessel_k1e_slopes(x, y):
    order_0 = ops.bessel_k0e(x)
    first = y - order_0 - y / x
    return first, first - (order_0 - y) - first / x + y / (x * x)


@by_slopes("BesselY0")
def bessel_y0_slopes(x, y):
    one = ops.bessel_y1(x)
    return -one, one / x - y


@by_slopes("BesselY1")
def bessel_y1_slopes(x, y):
    first = ops.bessel_y0(x) - y / x
    return first, y * (1 / (x * x) - 1) - first / x


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


@constexpr
def _half_root_of_pi(dtype):
    return Tensor(math.sqrt(math.pi) / 2, dtype)


@by_series("Erfinv")
def expanded_erfinv(y, x):
    """y' = u x', with u = sqrt(pi) / 2 exp(y^2), so that u' = (y^2)' u."""
    d, out, square = taylor.derivative_of(x), (y,), (mul(y, y),)
    u = (mul(ops.exp(square[0]), _half_root_of_pi(y.dtype)),)
    for k in range(1, len(x)):
        out = out + (taylor.over(taylor.at(d, u, k - 1), k),)
        if k + 1 < len(x):
            square = square + (taylor.square_at(out, k),)
            slope = taylor.derivative_of(square)
            u = u + (taylor.over(taylor.at(slope, u, k - 1), k),)
    return out


def _polygammas(x, first, count):
    """The polygamma functions of these orders."""
    out = ()
    for order in range(first, first + count):
        out = out + (ops.polygamma(Tensor(order, int32), x),)
    return out


@by_series("Lgamma")
def expanded_lgamma(y, x):
    orders = (ops.digamma(x[0]),) + _polygammas(x[0], 1, len(x) - 2)
    return taylor.by_derivatives(y, x, orders)


@by_series("Digamma")
def expanded_digamma(y, x):
    return taylor.by_derivatives(y, x, _polygammas(x[0], 1, len(x) - 1))


@expansion("Mvlgamma")
@allow(0)
def expanded_mvlgamma(prim, usual):
    """The sum of log gamma(x - j / 2)."""
    (p,) = attributes_of(prim, "p")

    def rule(x_pair):
        x = taylor.coefficients(x_pair)
        out = (prim(x[0]),)
        for j in range(p):
            moved = taylor.shifted(x, -j * 0.5)
            out = taylor.plus(out, (zeros_like(x[0]),) + expanded_lgamma(x[0], moved)[1:])
        return taylor.joined(out)

    return rule


def _gamma_tail_series(sign):
    """P(a, x) or Q(a, x) along x, from the density."""

    @allow(1)
    def getter(prim, usual):
        def rule(a_pair, x_pair):
            a, x = a_pair[0], taylor.coefficients(x_pair)
            y = prim(a, x[0])
            x = taylor.broadcast(x, y)
            logarithm = taylor.integrated(ops.log(x[0]), x, taylor.inverse(x))
            inner = taylor.minus(taylor.scaled(logarithm, a - 1), x)
            slope = taylor.exponential(sign * ops.exp(inner[0] - ops.lgamma(a)), inner)
            return taylor.joined(taylor.integrated(y, x, slope))

        return rule

    return getter


expansion("Igamma")(_gamma_tail_series(1))
expansion("Igammac")(_gamma_tail_series(-1))


def _even(name, x):
    """The series of the sum of ``coefficients[k] x^(2 k)``."""
    square, out = taylor.squared(x), ()
    for c in _coefficients(name, x[0].dtype):
        out = taylor.shifted(taylor.times(out, square), c) if out else (ones_like(x[0]) * c,)
    return out


def _near_and_far(x):
    """`_near` of a series."""
    near, small, large = _near(x[0])
    return near, (small,) + x[1:], (large,) + x[1:]


@by_series("Sinc")
def expanded_sinc(y, x):
    """sin(u) / u, u = pi x."""
    u = taylor.scaled(x, _coefficients("pi", y.dtype)[0])
    near, small, large = _near_and_far(u)
    sine, _ = taylor.circular(ops.sin(large[0]), ops.cos(large[0]), large, -1)
    found = taylor.selected(near, _even("sin over x", small), taylor.divided(sine, large))
    return (y,) + found[1:]


def _orders(u, v, x, first, second, shift):
    """The series of functions of order 0 and 1, whose values are u and v: u' = first v + shift u and
    v' = second u - v / x + shift v, along x."""
    d, us, vs, ratio, slope_u, slope_v = taylor.derivative_of(x), (u,), (v,), (), (), ()
    for n in range(len(x) - 1):
        rest = vs[n] - taylor.at(x[1:], ratio, n - 1) if n > 0 else vs[n]
        ratio = ratio + (rest / x[0],)
        slope_u = slope_u + (first * vs[n] + shift * us[n],)
        slope_v = slope_v + (second * us[n] - ratio[n] + shift * vs[n],)
        us = us + (taylor.over(taylor.at(d, slope_u, n), n + 1),)
        vs = vs + (taylor.over(taylor.at(d, slope_v, n), n + 1),)
    return us, vs


def _regular(u, v, x, kind, shift):
    """Those of I or J, perhaps times exp(shift x): near 0 by their power series."""
    near, small, large = _near_and_far(x)
    far = _orders(u, v, large, 1 if kind == "i" else -1, 1, shift)
    zero = _even(kind + "0 even", small)
    one = taylor.times(_even(kind + "1 even", small), small)
    if isinstance(shift, Tensor):
        turned = taylor.scaled(small, shift)
        factor = taylor.exponential(ops.exp(turned[0]), turned)
        zero, one = taylor.times(zero, factor), taylor.times(one, factor)
    zero, one = taylor.selected(near, zero, far[0]), taylor.selected(near, one, far[1])
    return (u,) + zero[1:], (v,) + one[1:]


@by_series("BesselJ0")
def expanded_bessel_j0(y, x):
    return _regular(y, ops.bessel_j1(x[0]), x, "j", 0)[0]


@by_series("BesselJ1")
def expanded_bessel_j1(y, x):
    return _regular(ops.bessel_j0(x[0]), y, x, "j", 0)[1]


@by_series("BesselI0")
def expanded_bessel_i0(y, x):
    return _regular(y, ops.bessel_i1(x[0]), x, "i", 0)[0]


@by_series("BesselI1")
def expanded_bessel_i1(y, x):
    return _regular(ops.bessel_i0(x[0]), y, x, "i", 0)[1]


@by_series("BesselI0e")
def expanded_bessel_i0e(y, x):
    return _regular(y, ops.bessel_i1e(x[0]), x, "i", -ops.sign(x[0]))[0]


@by_series("BesselI1e")
def expanded_bessel_i1e(y, x):
    return _regular(ops.bessel_i0e(x[0]), y, x, "i", -ops.sign(x[0]))[1]


@by_series("BesselK0")
def expanded_bessel_k0(y, x):
    return _orders(y, ops.bessel_k1(x[0]), x, -1, -1, 0)[0]


@by_series("BesselK1")
def expanded_bessel_k1(y, x):
    return _orders(ops.bessel_k0(x[0]), y, x, -1, -1, 0)[1]


@by_series("BesselK0e")
def expanded_bessel_k0e(y, x):
    return _orders(y, ops.bessel_k1e(x[0]), x, -1, -1, 1)[0]


@by_series("BesselK1e")
def expanded_bessel_k1e(y, x):
    return _orders(ops.bessel_k0e(x[0]), y, x, -1, -1, 1)[1]


@by_series("BesselY0")
def expanded_bessel_y0(y, x):
    return _orders(y, ops.bessel_y1(x[0]), x, -1, 1, 0)[0]


@by_series("BesselY1")
def expanded_bessel_y1(y, x):
    return _orders(ops.bessel_y0(x[0]), y, x, -1, 1, 0)[1]


@by_expansion("Zeta", places=(1,))
def expanded_zeta(prim):
    """By q: -s zeta(s + 1, q), s (s + 1) zeta(s + 2, q), ..."""

    def function(s, q):
        factor, orders = -s, ()
        for m in range(1, len(q)):
            orders = orders + (factor * prim(s + m, q[0]),)
            factor = -factor * (s + m)
        return taylor.by_derivatives(prim(s, q[0]), q, orders)

    return function


@by_expansion("Polygamma", places=(1,))
def expanded_polygamma(prim):
    """That of the order n + 1, n + 2, ..."""

    def function(n, x):
        orders = ()
        for m in range(1, len(x)):
            orders = orders + (prim(n + m, x[0]),)
        return taylor.by_derivatives(prim(n, x[0]), x, orders)

    return function
