"""What Taylor rules are made of: series, their arithmetic, and the shared kinds of rules.

A series is a pair (v, c): a value v, and the Taylor coefficients c of shape (K, *v.shape) that
follow it, c[k - 1] the derivative of order k divided by k!. MindSpore's vmap pass hands it on as
((v, c), SERIES), as it does the triples of `rules.forward`. Where a forward rule is `straight`, it
is the rule for coefficients too: `of_forward`. Others are made of functions of coefficients (x_0,
x_1, ..., x_K), a tuple of tensors; one that is constant is (x_0,).

Only integers are written as numbers: MindSpore rounds other constants to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.forward import (
    FORWARD,
    SERIES,
    allow,
    dims_of,
    flat,
    line_of,
    line_order,
    mark_of_missing,
    options_of,
    order_of,
    widened,
)
from mindspore_hessian.rules.kit import (
    add,
    added,
    aligned,
    front,
    mul,
    ones_like,
    reshape,
    sigmoid,
    sub,
    zeros_like,
)
from mindspore_hessian.rules.registry import Getter, expansion, forward

_div, _neg, _concat, _exp = ops.RealDiv(), ops.Neg(), ops.Concat(), ops.Exp()
_square = ops.Square()


# --- between tensors and tuples -------------------------------------------------------------------


def split(v, c):
    """(v, c_1, ..., c_K)."""
    count = c.shape[0]
    if count == 1:
        return (v, reshape(c, v.shape))
    out = (v,)
    for one in ops.Split(0, count)(c):  # one kernel, whose derivative is one too
        out = out + (reshape(one, v.shape),)
    return out


def coefficients(pair):
    """Those of a pair; of what is constant, itself alone. Of a LINE, the number 0 from the second
    on.
    """
    order = order_of(pair[1])
    if order > 0:
        return (pair[0][0], reshape(pair[0][1], pair[0][0].shape)) + (0,) * (order - 1)
    if pair[1] == SERIES:
        return split(pair[0][0], pair[0][1])
    return (pair[0],)


def joined(y):
    """Coefficients as a pair again."""
    lines = ()
    for one in y[1:]:
        lines = lines + (reshape(one, (1,) + one.shape),)
    if len(lines) == 1:
        return ((y[0], lines[0]), SERIES)
    return ((y[0], _concat(lines)), SERIES)  # (Stack is fifty times slower)


# --- arithmetic of coefficients -------------------------------------------------------------------


@constexpr
def quotient_of(one, two, dtype):
    """A fraction, to all digits."""
    return Tensor(one / two, dtype)


# (On the CPU, products in float64 go through tables of indices, which quotients and squares do not.)


def _multiple(x, one, two):
    """x times a fraction."""
    if x.dtype == ms.float64:
        return _div(x, quotient_of(two, one, x.dtype))
    return mul(x, quotient_of(one, two, x.dtype))


def over(x, k):
    """x / k, for an integer k."""
    return x if k == 1 else _multiple(x, 1, k)


def fold(x, k):
    """k x, for an integer k. (As a number, it would be cast anew at every run.)"""
    return x if k == 1 or _nothing(x) else _multiple(x, k, 1)


def _nothing(x):
    """Whether that is the number 0."""
    return isinstance(x, int)


@constexpr
def longer(a_count, b_count):
    """The larger number. (For max, MindSpore parses five functions.)"""
    return max(a_count, b_count)


@constexpr
def _places(a_count, b_count, n, first):
    """The i from `first` on for which there are a_i and b_{n-i}."""
    return tuple(range(max(first, n - b_count + 1), min(n, a_count - 1) + 1))


def at(a, b, n):
    """Coefficient n of a b; the number 0 where no term is left."""
    terms = ()
    for i in _places(len(a), len(b), n, 0):
        if not (_nothing(a[i]) or _nothing(b[n - i])):
            terms = terms + (mul(a[i], b[n - i]),)
    return added(terms) if len(terms) > 0 else 0


def square_at(a, n, first=0, sign=1):
    """Coefficient n of a^2 times a sign, but for terms with one of the `first` coefficients; None
    where nothing is left."""
    terms = ()
    for i in range(first, (n + 1) // 2):
        terms = terms + (mul(a[i], a[n - i]),)
    total = fold(added(terms), 2 * sign) if len(terms) > 0 else None
    if n % 2 == 0 and n // 2 >= first:
        middle = _square(a[n // 2]) if a[n // 2].dtype == ms.float64 else mul(a[n // 2], a[n // 2])
        if total is None:
            return fold(middle, sign)
        total = added((total, middle)) if sign == 1 else sub(total, middle)
    return total


def times(a, b):
    """a b."""
    out = ()
    for n in range(longer(len(a), len(b))):
        out = out + (at(a, b, n),)
    return out


def squared(a):
    """a^2."""
    out = ()
    for n in range(len(a)):
        out = out + (square_at(a, n),)
    return out


def scaled(a, c):
    """a times a tensor, or an integer."""
    out = ()
    for one in a:
        out = out + (mul(one, c),)
    return out


def shifted(a, c):
    """a + c."""
    return (add(a[0], c),) + a[1:]


def negative(a):
    """-a."""
    out = ()
    for one in a:
        out = out + (_neg(one),)
    return out


def plus(a, b):
    """a + b, of which either may be the longer one."""
    out = ()
    for n in range(longer(len(a), len(b))):
        if n >= len(a):
            out = out + (b[n],)
        elif n >= len(b):
            out = out + (a[n],)
        else:
            out = out + (add(a[n], b[n]),)
    return out


def minus(a, b):
    """a - b."""
    return plus(a, negative(b))


def divided(a, b):
    """a / b."""
    y = (_div(a[0], b[0]),)
    for n in range(1, longer(len(a), len(b))):
        if len(b) == 1:
            rest = a[n]
        else:
            rest = at(b[1:], y, n - 1)
            rest = sub(a[n], rest) if n < len(a) else _neg(rest)
        y = y + (_div(rest, b[0]),)
    return y


def inverse(a):
    """1 / a."""
    return divided((ones_like(a[0]),), a)


def derivative_of(a):
    """(a_1, 2 a_2, 3 a_3, ...)."""
    out = (a[1],)
    for k in range(2, len(a)):
        out = out + (fold(a[k], k),)
    return out


def integral(y, d):
    """The series with the value y and the derivative d; what is d_K comes after the end."""
    out = (y,)
    for k in range(len(d)):
        out = out + (over(d[k], k + 1),)
    return out


def integrated(y, x, slope):
    """f(x), whose value is y and whose f'(x) is the series `slope`."""
    if len(x) == 1:
        return (y,)
    d, out = derivative_of(x), (y,)
    for k in range(1, len(x)):
        out = out + (over(at(d, slope, k - 1), k),)
    return out


def by_derivatives(y, x, orders):
    """f(x), whose value is y, from the derivatives of f at x_0: f', f'', ...: the sum of
    f^(m) (x - x_0)^m / m!, of which a coefficient meets no derivative of higher order (which may be
    infinite)."""
    apart, factorial = (0,) + x[1:], 1
    powers, scales, out = (apart,), orders[:1], (y,)
    for m in range(2, len(x)):
        factorial = factorial * m
        powers = powers + (times(powers[-1], apart),)
        scales = scales + (over(orders[m - 1], factorial),)
    for n in range(1, len(x)):
        terms = ()
        for m in range(n):
            terms = terms + (mul(powers[m][n], scales[m]),)
        out = out + (added(terms),)
    return out


def exponential(y, x):
    """exp(x), whose value is y: k y_k = sum_j j x_j y_{k-j}."""
    d, out = derivative_of(x), (y,)
    for k in range(1, len(x)):
        out = out + (over(at(d, out, k - 1), k),)
    return out


def logarithm(y, x):
    """log(x), whose value is y."""
    return integrated(y, x, inverse(x))


def softplus(y, x):
    """log(1 + exp(x)), whose value is y."""
    return (y,) if len(x) == 1 else integrated(y, x, logistic(sigmoid(x[0]), x))


def root(y, x):
    """sqrt(x), whose value is y: 2 y_0 y_k = x_k - sum of y_i y_{k-i} with neither index 0."""
    out, twice = (y,), added((y, y))
    for k in range(1, len(x)):
        rest = square_at(out + (y,), k, 1)
        out = out + (_div(x[k] if rest is None else sub(x[k], rest), twice),)
    return out


def circular(s, c, x, sign):
    """(s, c) with s' = c x', c' = sign s x': sine and cosine for -1, the hyperbolic ones for 1."""
    d, ss, cs = derivative_of(x), (s,), (c,)
    for k in range(1, len(x)):
        one, two = at(d, cs, k - 1), at(d, ss, k - 1)
        ss, cs = ss + (over(one, k),), cs + (over(two if sign == 1 else _neg(two), k),)
    return ss, cs


def by_square(y, slope, x, sign):
    """y with y' = u x', u = c + sign y^2; `slope` is the value of u."""
    d, out, u = derivative_of(x), (y,), (slope,)
    for k in range(1, len(x)):
        out = out + (over(at(d, u, k - 1), k),)
        if k + 1 < len(x):
            u = u + (square_at(out, k, 0, sign),)
    return out


def logistic(y, x):
    """sigmoid(x), whose value is y: y' = (y - y^2) x'."""
    d, out, u = derivative_of(x), (y,), (mul(y, sub(1, y)),)
    for k in range(1, len(x)):
        out = out + (over(at(d, u, k - 1), k),)
        if k + 1 < len(x):
            u = u + (sub(out[k], square_at(out, k)),)
    return out


def hyperbolic_tangent(y, x):
    """tanh(x), whose value is y; in float32 from the sigmoid, which is exact to more digits."""
    if x[0].dtype == y.dtype and str(x[0].dtype) != "Float64":
        s = sigmoid(added((x[0], x[0])))
        fine = by_square(sub(added((s, s)), 1), mul(mul(s, sub(1, s)), 4), x, -1)
        return (y,) + fine[1:]
    return by_square(y, sub(1, mul(y, y)), x, -1)


def _number(p):
    """A number, also where MindSpore has made a Tensor of it; another Tensor as it is."""
    return p.asnumpy().item() if isinstance(p, Tensor) and p.size == 1 else p


@constexpr
def _is_zero(p):
    return not isinstance(_number(p), Tensor) and _number(p) == 0


@constexpr
def _bits(p):
    """The binary digits of a whole power after the first; None where there are none, or the power
    is large.
    """
    p = _number(p)
    if isinstance(p, int | float) and not isinstance(p, bool) and p == int(p) and 1 <= p <= 64:
        return tuple(int(digit) for digit in bin(int(p))[3:])
    return None


def _falling(x, p, count):
    """The derivatives p x^(p - 1), p (p - 1) x^(p - 2), ...: 0 from where a factor is, also for x = 0."""
    p = ops.cast(p, x.dtype)
    factor, out = p, ()
    for m in range(1, count + 1):
        lower = sub(p, m)
        exponent = ops.where(ops.equal(factor, 0), zeros_like(lower), lower)
        out = out + (mul(factor, ops.pow(x, exponent)),)
        factor = mul(factor, lower)
    return out


def power(y, x, p):
    """x^p, whose value is y, for a number or a tensor p: by products where p is known to be a small
    whole number, so that x may be 0, by derivatives where it is not known or several; else by
    k x_0 y_k = sum_j (p j - (k - j)) x_j y_{k-j}."""
    if isinstance(p, Tensor) and (p.size > 1 or not _compat.is_constant(p)):
        return by_derivatives(y, x, _falling(x[0], p, len(x) - 1))
    if _is_zero(p):
        return (y,) + scaled(x[1:], 0)
    bits = _bits(p)
    if bits is not None:
        out = x
        for bit in bits:
            out = squared(out)
            if bit == 1:
                out = times(out, x)
        return (y,) + out[1:]
    d, out = derivative_of(x), (y,)
    for k in range(1, len(x)):
        one, two = at(d, out, k - 1), at(x[1:], out, k - 1)
        rest = add(mul(one, p), sub(one, fold(two, k)))
        out = out + (over(_div(rest, x[0]), k),)
    return out


def matrix_at(a, b, n, first=0):
    """Coefficient n of the matrix product a b, but for terms with one of the `first` coefficients of
    a; None where nothing is left.
    """
    total = None
    for i in _places(len(a), len(b), n, first):
        term = ops.matmul(a[i], b[n - i])
        total = term if total is None else total + term
    return total


def transposed(a):
    """Each coefficient transposed."""
    out = ()
    for one in a:
        out = out + (ops.swapaxes(one, -1, -2),)
    return out


def summed(a, axes, keep_dims):
    """The sum over axes counted from the end."""
    out = ()
    for one in a:
        out = out + (one.sum(axes, keepdims=keep_dims),)
    return out


def averages(a, count):
    """Each coefficient by a number of entries."""
    out = ()
    for one in a:
        out = out + (over(one, count),)
    return out


def averaged(a, axes):
    """The mean over axes counted from the end, which stay."""
    out = ()
    for one in a:
        out = out + (one.mean(axes, True),)
    return out


def broadcast(a, y):
    """a in the shape of y."""
    out = ()
    for one in a:
        out = out + (widened(one, y),)
    return out


def reshaped(a, shape):
    """a in another shape."""
    out = ()
    for one in a:
        out = out + (reshape(one, shape),)
    return out


def selected(condition, a, b):
    """a where that holds, else b."""
    out = ()
    for n in range(len(a)):
        out = out + (ops.where(condition, a[n], b[n]),)
    return out


# --- kinds of rules -------------------------------------------------------------------------------


def _is_pair(value):
    return len(value) == 2 and (value[1] is None or isinstance(value[1], int))


def _triple(pair):
    """A pair as a forward rule takes it; the tuple of pairs of a tuple of inputs likewise."""
    if not isinstance(pair, (tuple, list)):  # the token of a view
        return pair
    if _is_pair(pair):
        if pair[1] == SERIES:
            return ((pair[0][0], pair[0][1], zeros_like(pair[0][0])), FORWARD)
        return pair
    out = ()
    for one in pair:
        out = out + (_triple(one),)
    return out


def _series(pair):
    if pair[1] == FORWARD:
        return ((pair[0][0], pair[0][1]), SERIES)
    return pair


@constexpr
def _alone(dims, places):
    """The order of the LINEs where nothing else is carried, and by inputs that are one of `places`
    (none: by any); else 0."""
    marks = [{dim for dim in flat((own,)) if dim is not None and dim < 0} for own in dims]
    carrying = tuple(place for place, own in enumerate(marks) if own)
    found = set().union(*marks)
    if len(found) != 1 or (places and carrying not in places):
        return 0
    return line_order(*found)


def _marked(pair, order):
    """A LINE as a series of one coefficient, for order 0; and back."""
    if not isinstance(pair, (tuple, list)):
        return pair
    if _is_pair(pair):
        if order == 0 and order_of(pair[1]) > 0:
            return (pair[0], SERIES)
        if order > 0 and pair[1] == SERIES:
            return (pair[0], line_of(order))
        return pair
    out = ()
    for one in pair:
        out = out + (_marked(one, order),)
    return out


def on_lines(*places: tuple[int, ...]) -> Callable[[Getter], Getter]:
    """The decorator of a getter whose rule is linear in the inputs at these places together, or at
    other `places` (none: in all): it takes LINEs as they are.
    """

    def mark(getter: Getter) -> Getter:
        def line(prim, usual, otherwise):
            expanded = getter(prim, usual)

            def rule(*pairs):
                order = _alone(dims_of(pairs), places)
                if order == 0:
                    return otherwise(*pairs)
                given = ()
                for pair in pairs:
                    given = given + (_marked(pair, 0),)
                return _marked(expanded(*given), order)

            return rule

        getter.line = line  # type: ignore[attr-defined]
        return getter

    return mark


def of_forward(getter: Callable) -> Callable:
    """The rule for series of a forward rule that is `straight`: coefficients go through as
    derivatives do.
    """

    @on_lines()
    @allow(*getattr(getter, "allowed", ()))
    def made(prim, usual):
        pushed = getter(prim, usual)

        def rule(*pairs):
            given = ()
            for pair in pairs:
                given = given + (_triple(pair),)
            out = pushed(*given)
            if _is_pair(out):
                return _series(out)
            outs = ()
            for one in out:
                outs = outs + (_series(one),)
            return outs

        return rule

    return made


def of_one(function: Callable, of_line: bool = False) -> Callable:
    """One tensor: ``function(y, x, *options)`` gives the coefficients of the result, of which y is
    the value. `of_line`: some of x may be the number 0: it goes to `derivative_of` and `at` alone.
    """

    @allow(0)
    def getter(prim, usual):
        def rule(x_pair, *rest):
            x, options = coefficients(x_pair), options_of(rest)
            return joined(function(prim(x[0], *options), x, *options))

        return rule

    if of_line:
        getter.line = lambda prim, usual, otherwise: getter(prim, usual)  # type: ignore[attr-defined]
    return getter


def of_two(function: Callable) -> Callable:
    """Two tensors, at least one of them a series: ``function(y, a, b)`` gives the coefficients of
    the result.
    """

    @allow(0, 1)
    def getter(prim, usual):
        def rule(a_pair, b_pair):
            a, b = coefficients(a_pair), coefficients(b_pair)
            return joined(function(prim(a[0], b[0]), a, b))

        return rule

    return getter


def by_series(*primitives: str, of_line: bool = False, **row: Any) -> Callable[[Getter], Getter]:
    """The decorator of a function as of `of_one`: files the Taylor rule of these primitives."""

    def file(function: Getter) -> Getter:
        expansion(*primitives, **row)(of_one(function, of_line))
        return function

    return file


def by_two_series(*primitives: str, **row: Any) -> Callable[[Getter], Getter]:
    """The decorator of a function as of `of_two`: files the Taylor rule of these primitives."""

    def file(function: Getter) -> Getter:
        expansion(*primitives, **row)(of_two(function))
        return function

    return file


def _output(found, carry, missing):
    """Coefficients as a pair; those that carry nothing are a value alone."""
    if found is None:
        return (0, missing)
    return (found[0], None) if len(found) == 1 else carry(found)


def _outputs(found, carry, missing):
    """The same, of one output or of several."""
    if found is not None and isinstance(found[0], tuple):
        outs = ()
        for one in found:
            outs = outs + (_output(one, carry, missing),)
        return outs
    return _output(found, carry, missing)


def _carried_on(y):
    return ((y[0], y[1], fold(y[2].sum(0), 2)), FORWARD)


def _curve(pair):
    """What is carried forward as coefficients: along the curves x + t j_d, to the first of which
    t^2 l / 2 is added, the sum of the second derivatives is what is to be carried."""
    if pair[1] != FORWARD:
        return (pair[0],)
    v, j, l = pair[0]  # noqa: E741
    half = reshape(over(l, 2), (1,) + l.shape)
    if j.shape[0] > 1:
        half = _concat((half, zeros_like(j[1:])))
    return (v, j, half)


def _given(pairs, places, expand):
    """The inputs: coefficients at these places, values elsewhere."""
    out = ()
    for place in range(len(pairs)):
        if place in places:
            out = out + (expand(pairs[place]),)
        elif isinstance(pairs[place], tuple):  # no token of a view
            out = out + (pairs[place][0],)
    return out


@constexpr
def _fit(shapes, lengths):
    """Whether all have the shape of the first, but for constants that broadcast to it."""
    first = tuple(shapes[0])
    for shape, length in zip(shapes, lengths, strict=True):
        behind = first[len(first) - len(shape) :]
        fits = len(shape) <= len(first) and all(
            own in (1, other) for own, other in zip(shape, behind, strict=True)
        )
        if not fits or (length > 1 and tuple(shape) != first):
            return False
    return True


def _fitting(given, places):
    shapes, lengths = (), ()
    for place in places:
        shapes, lengths = shapes + (given[place][0].shape,), lengths + (len(given[place]),)
    return _fit(shapes, lengths)


def by_expansion(
    *primitives: str, places: tuple[int, ...] = (0,), entrywise: bool = False, **row: Any
) -> Callable[[Getter], Getter]:
    """The decorator of a maker: ``maker(prim)`` gives a function of the inputs, of which those at
    `places` are coefficients, that of what is constant alone, and that the coefficients of the
    result, or a tuple of those of each output; None for what there is no rule for. Files it as Taylor rule
    of these primitives, and as forward rule: see `_curve`.

    The coefficients after the value have an axis more then, in front. `entrywise`: the function goes
    entry by entry, so that there is no rule where what is carried broadcasts: this axis would be in
    its way."""

    def file(maker: Getter) -> Getter:
        def getter_by(expand: Callable, carry: Callable) -> Callable:
            @allow(*places)
            def getter(prim, usual):
                missing, function = mark_of_missing(prim.name), maker(prim)

                def rule(*pairs):
                    given = _given(pairs, places, expand)
                    if entrywise and not _fitting(given, places):
                        return (0, missing)
                    return _outputs(function(*given), carry, missing)

                return rule

            return getter

        expansion(*primitives, **row)(getter_by(coefficients, joined))
        forward(*primitives, **row)(getter_by(_curve, _carried_on))
        return maker

    return file


@on_lines((0,), (1,))
@allow(0, 1)
def bilinear(prim, usual):
    """Linear in each of the first two inputs: a matrix product, a convolution."""

    def rule(a_pair, b_pair, *rest):
        options = options_of(rest)
        if b_pair[1] != SERIES:
            c, dim = usual((a_pair[0][1], 0), b_pair, *rest)
            return ((prim(a_pair[0][0], b_pair[0], *options), front(c, dim)), SERIES)
        if a_pair[1] != SERIES:
            c, dim = usual(a_pair, (b_pair[0][1], 0), *rest)
            return ((prim(a_pair[0], b_pair[0][0], *options), front(c, dim)), SERIES)
        a, b = coefficients(a_pair), coefficients(b_pair)
        out = ()
        for n in range(len(a)):
            terms = ()
            for i in range(n + 1):
                terms = terms + (prim(a[i], b[n - i], *options),)
            out = out + (added(terms),)
        return joined(out)

    return rule


def times_constant(prim, a, b):
    """The series a times a constant, or divided by it."""
    y = prim(a[0], b)
    return ((y, prim(aligned(a[1], 0, y.ndim) if isinstance(b, Tensor) else a[1], b)), SERIES)
