"""What forward rules are made of: values that carry their derivatives, and the shared kinds of
rules.

A value that depends on the point is a triple (v, j, l): v itself, its derivatives j of shape (D,
*v.shape) along D directions, and l, the sum of its second derivatives along them (for unit
directions, its Laplacian). MindSpore's vmap pass hands it from primitive to primitive as the pair
((v, j, l), FORWARD), where it else hands (tensor, batch axis).

``getter(prim, usual)`` makes the rule of a primitive: `prim` is to be called with all its
arguments, `usual` is its ordinary batching rule. The rule gets a pair for each input, at least one
of which is carried forward, and returns such a pair for each output. For the direction axis of j,
the ordinary batching rule is the derivative of all that is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules.kit import (
    add,
    added,
    aligned,
    copied_to,
    front,
    mul,
    product_of,
    sub,
    tensors_of,
    zeros_like,
)
from mindspore_hessian.rules.registry import Getter, forward

FORWARD = -7  # in the place of a batch axis: the value is a triple
SERIES = -8  # the value is a series: see `rules.taylor`
UNIFORM = -9  # the value is (v, j): derivatives that are the same for all samples, see `wide`
LINE = -10  # less an order: (v, c_1), a series of that order whose other coefficients are zero
_MISSING = -100  # from here on down: it should have been one, but a primitive has no forward rule
_names: list[str] = []  # of these primitives, by that number
applied: set[str] = set()  # the primitives whose forward rules this process used
expanded: set[str] = set()  # those whose rules for series it used

_sum, _concat = ops.ReduceSum(), ops.Concat()


# --- what the pass hands over ---------------------------------------------------------------------


def mark_of_missing(name: str) -> int:
    """What stands in the place of a batch axis from the first primitive without a forward rule
    on.
    """
    if name not in _names:
        _names.append(name)
    return _MISSING - _names.index(name)


def missing_name(mark: int) -> str:
    """The primitive that a mark stands for; "" where it is none of these marks."""
    return _names[_MISSING - mark] if mark <= _MISSING else ""


def flat(dims):
    """Those of nested tuples."""
    for dim in dims:
        if isinstance(dim, tuple):
            yield from flat(dim)
        else:
            yield dim


_KINDS = {FORWARD: FORWARD, UNIFORM: FORWARD, SERIES: SERIES}  # and LINEs, which are SERIES
NOTHING = (-1,)  # the places that are allowed where there is no rule
LONGEST = LINE - _MISSING - 1  # the highest order of a LINE


def line_order(mark: int) -> int:
    """The order of a LINE; 0 for other marks."""
    return LINE - mark if _MISSING < mark < LINE else 0


BATCHED, WHOLE, ALIKE = 0, 1, 2  # what `way` says, but for marks


@constexpr
def way(dims, kind, others, places, missing):
    """How a rule for one kind goes on: BATCHED where nothing of that kind is carried, ALIKE where
    something is UNIFORM or a LINE, else WHOLE; or the mark of what is missing.

    Args:
        dims: of the inputs, nested like them.
        kind: FORWARD or SERIES.
        others: whether there is a rule for the other kind.
        places: the inputs that the rule takes carried forward; () for all.
        missing: the mark of the primitive, for those that it does not take.
    """
    worst = [min([0, *(dim for dim in flat((own,)) if dim is not None)]) for own in dims]
    if min(worst, default=0) <= _MISSING:
        return min(worst)
    kinds = {_KINDS.get(dim, SERIES) for dim in worst if dim in _KINDS or line_order(dim)}
    if kind not in kinds and (others or not kinds):
        return BATCHED
    if kinds != {kind} or (
        places and not {place for place, dim in enumerate(worst) if dim} <= set(places)
    ):
        return missing
    (applied if kind == FORWARD else expanded).add(missing_name(missing))
    return ALIKE if any(dim == UNIFORM or line_order(dim) for dim in worst) else WHOLE


def dim_of(pair):
    """The batch axis of a pair, or the tuple of those of a tuple of pairs."""
    if not isinstance(pair, (tuple, list)):  # the token of a view
        return None
    if len(pair) == 2 and (pair[1] is None or isinstance(pair[1], int)):
        return pair[1]
    dims = ()
    for one in pair:
        dims = dims + (dim_of(one),)
    return dims


def dims_of(pairs):
    """`dim_of` each. (A loop takes MindSpore several times as long to compile.)"""
    count = len(pairs)
    if count == 1:
        (a,) = pairs
        return (dim_of(a),)
    if count == 2:
        a, b = pairs
        return dim_of(a), dim_of(b)
    if count == 3:
        a, b, c = pairs
        return dim_of(a), dim_of(b), dim_of(c)
    dims = ()
    for pair in pairs:
        dims = dims + (dim_of(pair),)
    return dims


def value_of(pair):
    """The value alone."""
    if pair[1] == FORWARD:
        return pair[0][0]
    return pair[0]


def alone(pair):
    """The value of an input that carries nothing, or those of a tuple of tensors."""
    return tensors_of(pair) if isinstance(dim_of(pair), tuple) else pair[0]


def values_of(pairs):
    """`value_of` each."""
    out = ()
    for pair in pairs:
        out = out + (value_of(pair),)
    return out


def options_of(pairs):
    """The values of further inputs, which are never carried forward; a view's token, which comes as
    None at the end, is none.
    """
    count = len(pairs)
    if count == 0:
        return ()
    if count == 1 and isinstance(pairs[0], tuple):
        ((x, _),) = pairs
        return (x,)
    if count == 2 and isinstance(pairs[1], tuple):
        (x, _), (y, _) = pairs
        return x, y
    out = ()
    for pair in pairs:
        if isinstance(pair, tuple):
            out = out + (pair[0],)
    return out


def triples(v, j_pairs, l):  # noqa: E741
    """The outputs of a linear primitive, one or several, as pairs; the derivatives come from a
    batching rule.
    """
    if isinstance(v, tuple):
        out = ()
        for k in range(len(v)):
            out = out + (((v[k], front(j_pairs[k][0], j_pairs[k][1]), l[k]), FORWARD),)
        return out
    return ((v, front(j_pairs[0], j_pairs[1]), l), FORWARD)


def spread(j, v):
    """Derivatives as large as those of v, to whose shape their value broadcasts."""
    return copied_to(aligned(j, 0, v.ndim), (j.shape[0],) + v.shape)


@constexpr
def _same(one, two):
    return tuple(one) == tuple(two)


def widened(x, v):
    """x broadcast to the shape of v."""
    return copied_to(x, v.shape)


# --- derivatives that are the same for all samples ------------------------------------------------
#
# All samples go along the same directions, so what enters is ((v, j), UNIFORM), with j of shape (D, 1,
# ...) and no second derivatives. It stays so through what is affine in each sample, as the first
# layer of a network: a rule whose getter has a `uniform` rule takes it. For all others it is made
# wide before.


@constexpr
def order_of(mark):
    """`line_order`, of a batch axis as well."""
    return line_order(mark or 0)


@constexpr
def line_of(order):
    """The mark of a LINE of that order."""
    return LINE - order


def wide(pair):
    """A pair, and what is UNIFORM in it as a triple with derivatives of full size; a LINE as a
    series with all coefficients.
    """
    if not isinstance(pair, (tuple, list)):
        return pair
    if len(pair) == 2 and (pair[1] is None or isinstance(pair[1], int)):
        if pair[1] == UNIFORM:
            v, j = pair[0]
            j = copied_to(j, (j.shape[0],) + v.shape)
            return ((v, j, zeros_like(v)), FORWARD)
        order = order_of(pair[1])
        if order > 0:
            v, c = pair[0]
            zeros = copied_to(zeros_like(c), (order - 1,) + v.shape)
            return ((v, _concat((c, zeros))), SERIES)
        return pair
    out = ()
    for one in pair:
        out = out + (wide(one),)
    return out


@constexpr
def of_each_sample(v_shape, j_shape, *flags):
    """Whether j is that of v but for the first axis, that of samples; the flags, as that of a
    transposition, are to be False."""
    fits = len(v_shape) > 1 and tuple(j_shape[2:]) == tuple(v_shape[1:])
    return fits and j_shape[1] in (1, v_shape[0]) and not any(flags)


def uniform_product(prim, usual, pushed):
    """A matrix product of each sample with a constant."""

    def rule(a_pair, b_pair, *rest):
        options = options_of(rest)
        if a_pair[1] == UNIFORM and b_pair[1] is None:
            v, j = a_pair[0]
            if of_each_sample(v.shape, j.shape, *options[:1]):
                k, dim = usual((j, 0), b_pair, *rest)
                return ((prim(v, b_pair[0], *options), front(k, dim)), UNIFORM)
        return pushed(wide(a_pair), wide(b_pair), *rest)

    return rule


def uniform_sum(prim, usual, pushed):
    """A constant is added, of no larger shape."""

    def rule(a_pair, *rest):
        return _uniform_entries(prim, False, pushed, a_pair, rest)

    return rule


def uniform_multiple(prim, usual, pushed):
    """Entry by entry, proportional to one of the inputs."""

    def rule(a_pair, *rest):
        return _uniform_entries(prim, True, pushed, a_pair, rest)

    return rule


def _uniform_entries(prim, multiplies, pushed, a_pair, rest):
    a, dim = a_pair
    if dim == UNIFORM:
        v, j = a
        y = prim(v, *options_of(rest))
        if _same(y.shape, v.shape):
            if multiplies:
                j = prim(j, *options_of(rest))
            return ((y, j), UNIFORM)
    return pushed(wide(a_pair), *rest)


def either(uniform: Callable, first_only: bool = False) -> Callable:
    """Such a rule of two inputs, one of which carries nothing."""

    def made(prim, usual, pushed):
        def swapped(b, a, *options):
            return prim(a, b, *options)

        def both(b_pair, a_pair, *rest):
            return pushed(a_pair, b_pair, *rest)

        of_first, of_second = uniform(prim, usual, pushed), uniform(swapped, usual, both)

        def rule(a_pair, b_pair, *rest):
            return _either(of_first, of_second, first_only, pushed, a_pair, b_pair, rest)

        return rule

    return made


def _either(of_first, of_second, first_only, pushed, a_pair, b_pair, rest):
    (_, a_dim), (_, b_dim) = a_pair, b_pair
    if b_dim is None:
        return of_first(a_pair, b_pair, *rest)
    if a_dim is None and not first_only:
        return of_second(b_pair, a_pair, *rest)
    return pushed(wide(a_pair), wide(b_pair), *rest)


def _uniform_joined(prim, usual, pushed):
    """A concatenation of what is uniform, but along the samples."""

    def rule(pairs, *rest):
        vs, js, alike = (), (), True
        for pair in pairs:
            if pair[1] == UNIFORM:
                vs, js = vs + (pair[0][0],), js + ((pair[0][1], 0),)
            else:
                alike = False
        if alike:
            y, (j, dim) = prim(vs, *options_of(rest)), usual(js, *rest)
            j = front(j, dim)
            if of_each_sample(y.shape, j.shape):
                return ((y, j), UNIFORM)
        return pushed(wide(pairs), *rest)

    return rule


# --- arithmetic of triples ------------------------------------------------------------------------


def chain(a, y, first, second):
    """f(a), entry by entry, from its value and its first two derivatives at a."""
    second = added((mul(a[2], first), mul(_sum(mul(a[1], a[1]), 0), second)))
    return (y, product_of(a[1], first), second)


def scaled(a, c):
    """a times a tensor c that carries nothing."""
    y = mul(a[0], c)
    return (y, product_of(aligned(a[1], 0, y.ndim), c), mul(a[2], c))


def plus(a, b):
    """a + b."""
    y = add(a[0], b[0])
    return (y, add(aligned(a[1], 0, y.ndim), aligned(b[1], 0, y.ndim)), add(a[2], b[2]))


def minus(a, b):
    """a - b."""
    y = sub(a[0], b[0])
    return (y, sub(aligned(a[1], 0, y.ndim), aligned(b[1], 0, y.ndim)), sub(a[2], b[2]))


def times(a, b):
    """a b, entry by entry."""
    y = mul(a[0], b[0])
    ja, jb = aligned(a[1], 0, y.ndim), aligned(b[1], 0, y.ndim)
    cross = _sum(mul(ja, jb), 0)
    return (
        y,
        added((product_of(ja, b[0]), product_of(jb, a[0]))),
        added((mul(a[2], b[0]), mul(b[2], a[0]), cross, cross)),
    )


def reciprocal(a):
    """1 / a."""
    y = ops.reciprocal(a[0])
    square = mul(y, y)
    return chain(a, y, -square, 2 * mul(square, y))


def rsqrt(a):
    """1 / sqrt(a)."""
    y = ops.rsqrt(a[0])
    first = mul(mul(y, mul(y, y)), -0.5)
    return chain(a, y, first, mul(mul(first, mul(y, y)), -1.5))


def summed(a, axes, keep_dims=True):
    """The sum over axes counted from the end."""
    return (
        a[0].sum(axes, keepdims=keep_dims),
        a[1].sum(axes, keepdims=keep_dims),
        a[2].sum(axes, keepdims=keep_dims),
    )


def averaged(a, axes):
    """The mean over axes counted from the end, which stay."""
    return (a[0].mean(axes, True), a[1].mean(axes, True), a[2].mean(axes, True))


def reshaped(a, shape):
    """a in another shape."""
    return (a[0].reshape(shape), a[1].reshape((a[1].shape[0],) + shape), a[2].reshape(shape))


@constexpr
def from_end(axis, rank):
    """Axes counted from the end, where they are the same for a value and its derivatives; none
    given means all.
    """
    if axis is None or axis == ():
        axis = tuple(range(rank))
    if isinstance(axis, int):
        return axis % rank - rank if rank else -1
    return tuple(one % rank - rank for one in axis)


# --- kinds of rules -------------------------------------------------------------------------------


def allow(*places: int) -> Callable[[Getter], Getter]:
    """The decorator of a getter whose rule takes only these inputs carried forward; others are
    refused by name.
    """

    def mark(getter: Getter) -> Getter:
        getter.allowed = places  # type: ignore[attr-defined]
        return getter

    return mark


def uniformly(uniform: Callable) -> Callable[[Getter], Getter]:
    """The decorator of a getter that has a rule for derivatives which are the same for all samples:
    ``uniform(prim, usual, pushed)`` makes it, with `pushed` the rule for all others."""

    def mark(getter: Getter) -> Getter:
        getter.uniform = uniform  # type: ignore[attr-defined]
        return getter

    return mark


def straight(getter: Getter) -> Getter:
    """The decorator of a getter whose rule is linear in what is carried, given the values: j may as
    well be the Taylor coefficients of a series, which go through in the same way."""
    getter.straight = True  # type: ignore[attr-defined]
    return getter


@straight
@allow(0)
def linear(prim, usual):
    """Linear in the first input, one tensor; one output or several."""

    def rule(x_pair, *rest):
        return _linear(prim, usual, x_pair, rest)

    return rule


def _linear(prim, usual, x_pair, rest):
    (v, j, l), _ = x_pair  # noqa: E741
    options = options_of(rest)
    if not options:
        return triples(prim(v), usual((j, 0)), prim(l))
    return triples(prim(v, *options), usual((j, 0), *rest), prim(l, *options))


@uniformly(uniform_multiple)
@straight
@allow(0)
def proportional(prim, usual):
    """The same entry by entry, with numbers besides."""
    return linear(prim, usual)


@straight
@allow(0)
def linear_view(prim, usual):
    """The same for a view, which has a token that only its batching rule knows of."""

    def rule(x_pair, *rest):
        v, j, l = x_pair[0]  # noqa: E741
        whole = usual((v, None), *rest)
        if isinstance(whole[0], tuple):
            firsts, seconds = (), ()
            for one in whole:
                firsts = firsts + (one[0],)
            for one in usual((l, None), *rest):
                seconds = seconds + (one[0],)
            return triples(firsts, usual((j, 0), *rest), seconds)
        return triples(whole[0], usual((j, 0), *rest), usual((l, None), *rest)[0])

    return rule


@uniformly(uniform_sum)
@straight
@allow(0)
def shifting(prim, usual):
    """The first input plus something that carries nothing, of no larger shape."""

    def rule(x_pair, *rest):
        return ((prim(x_pair[0][0], *options_of(rest)), x_pair[0][1], x_pair[0][2]), FORWARD)

    return rule


@straight
def without_derivative(prim, usual):
    """Constant but for steps: nothing is carried on."""

    def rule(*pairs):
        out = prim(*values_of(pairs))
        if isinstance(out, tuple):
            outs = ()
            for one in out:
                outs = outs + ((one, None),)
            return outs
        return out, None

    return rule


def elementwise(slopes: Callable) -> Callable:
    """Entry by entry: ``slopes(x, y, *options)`` gives f' and f'' at x, where y = f(x); or f' alone
    where f'' is 0.
    """

    @allow(0)
    def getter(prim, usual):
        def rule(x_pair, *rest):
            a = x_pair[0]
            options = options_of(rest)
            y = prim(a[0], *options)
            found = slopes(a[0], y, *options)
            if isinstance(found, tuple):
                return (chain(a, y, found[0], found[1]), FORWARD)
            return ((y, product_of(a[1], found), mul(a[2], found)), FORWARD)

        return rule

    def uniform(prim, usual, pushed):
        def rule(x_pair, *rest):
            v, j = x_pair[0]
            options = options_of(rest)
            y = prim(v, *options)
            found = slopes(v, y, *options)
            if isinstance(found, tuple):
                second = widened(mul(_sum(mul(j, j), 0), found[1]), y)
                return ((y, spread(product_of(j, found[0]), y), second), FORWARD)
            return ((y, spread(product_of(j, found), y), zeros_like(y)), FORWARD)

        return rule

    return uniformly(uniform)(getter)


def by_slopes(*primitives: str, kinked: bool = False, **row: Any) -> Callable[[Getter], Getter]:
    """The decorator of a formula of slopes: files the forward rule of these primitives. `row` is as
    of `forward`. `kinked` says that f'' is 0, so that the rule is `straight`."""

    def file(formula: Getter) -> Getter:
        forward(*primitives, **row)(
            straight(elementwise(formula)) if kinked else elementwise(formula)
        )
        return formula

    return file


def composed(function: Callable) -> Callable:
    """What is a composition of others: ``function(prim, triple, *options)`` gives a triple, or a
    tuple of them.
    """

    @allow(0)
    def getter(prim, usual):
        def rule(x_pair, *rest):
            return paired(function(prim, x_pair[0], *options_of(rest)))

        return rule

    return getter


def paired(out):
    """A triple, or a tuple of triples, as pairs. (Three outputs are no triple: their first is
    one.)
    """
    if isinstance(out[0], tuple):
        outs = ()
        for one in out:
            outs = outs + ((one, FORWARD),)
        return outs
    return (out, FORWARD)


def by_composition(
    *primitives: str, kinked: bool = False, **row: Any
) -> Callable[[Getter], Getter]:
    """The decorator of such a function: files the forward rule of these primitives. `row` is as of
    `forward`.
    """

    def file(function: Getter) -> Getter:
        forward(*primitives, **row)(straight(composed(function)) if kinked else composed(function))
        return function

    return file


@allow(0, 1)
def product(prim, usual):
    """Linear in each of the first two inputs: a matrix product, a convolution."""

    def rule(a_pair, b_pair, *rest):
        options = options_of(rest)
        if b_pair[1] != FORWARD:
            v, j, l = a_pair[0]  # noqa: E741
            b = b_pair[0]
            return triples(prim(v, b, *options), usual((j, 0), b_pair, *rest), prim(l, b, *options))
        w, k, m = b_pair[0]
        if a_pair[1] != FORWARD:
            a = a_pair[0]
            return triples(prim(a, w, *options), usual(a_pair, (k, 0), *rest), prim(a, m, *options))
        v, j, l = a_pair[0]  # noqa: E741
        left, right, both = (
            usual((j, 0), (w, None), *rest),
            usual((v, None), (k, 0), *rest),
            usual((j, 0), (k, 0), *rest),
        )
        cross = _sum(front(both[0], both[1]), 0)
        second = added((prim(l, w, *options), prim(v, m, *options), cross, cross))
        return (
            (
                prim(v, w, *options),
                added((front(left[0], left[1]), front(right[0], right[1]))),
                second,
            ),
            FORWARD,
        )

    return rule


@uniformly(uniform_product)
@allow(0, 1)
def matrix_product(prim, usual):
    """The same, of matrices."""
    return product(prim, usual)


def _zeros(x):
    return zeros_like(x) if isinstance(x, Tensor) else 0


@uniformly(either(uniform_sum, first_only=True))
@straight
@allow(0, 1)
def sum_or_difference(prim, usual):
    """Linear in the first two inputs together, entry by entry, where they broadcast."""

    def rule(a_pair, b_pair, *rest):
        return _sum_or_difference(prim, a_pair, b_pair, rest)

    return rule


def _sum_or_difference(prim, a_pair, b_pair, rest):
    (a, a_dim), (b, b_dim), options = a_pair, b_pair, options_of(rest)
    y = prim(value_of(a_pair), value_of(b_pair), *options)
    if a_dim != FORWARD:
        _, k, m = b
        k = spread(prim(_zeros(m), k, *options), y)
        return ((y, k, widened(prim(_zeros(a), m, *options), y)), FORWARD)
    _, j, l = a  # noqa: E741
    if b_dim != FORWARD:
        return ((y, spread(j, y), widened(l, y)), FORWARD)
    _, k, m = b
    j = prim(aligned(j, 0, y.ndim), aligned(k, 0, y.ndim), *options)
    return ((y, j, prim(l, m, *options)), FORWARD)


def _parts(pair):
    """Derivatives as a pair, and the second ones; zeros where nothing is carried."""
    if pair[1] == FORWARD:
        return (pair[0][1], 0), pair[0][2]
    zeros = zeros_like(pair[0])
    return (zeros, None), zeros


def joint(first: int, second: int) -> Callable:
    """Linear in two of the inputs together, the others constant."""

    @straight
    @allow(first, second)
    def getter(prim, usual):
        def rule(*pairs):
            given, firsts, seconds = (), (), ()
            for place in range(len(pairs)):
                pair = pairs[place]
                if place in (first, second):
                    j, l = _parts(pair)  # noqa: E741
                    given, firsts, seconds = (
                        given + (value_of(pair),),
                        firsts + (j,),
                        seconds + (l,),
                    )
                else:
                    given, firsts, seconds = (
                        given + (alone(pair),),
                        firsts + (pair,),
                        seconds + (alone(pair),),
                    )
            j, dim = usual(*firsts)
            return ((prim(*given), front(j, dim), prim(*seconds)), FORWARD)

        return rule

    return getter


def two_inputs(partials: Callable) -> Callable:
    """Two tensors that broadcast, entry by entry: ``partials(a, b, y)`` gives f_a, f_b, f_aa, f_ab,
    f_bb; or the first two alone where the others are 0."""

    @allow(0, 1)
    def getter(prim, usual):
        def rule(a_pair, b_pair):
            a, b = value_of(a_pair), value_of(b_pair)
            y = prim(a, b)
            found = partials(a, b, y)
            if len(found) == 2:
                return (_in_parts(a_pair, b_pair, y, found), FORWARD)
            fa, fb, faa, fab, fbb = found
            if b_pair[1] != FORWARD:
                return (chain(_spread_triple(a_pair[0], y), y, fa, faa), FORWARD)
            if a_pair[1] != FORWARD:
                return (chain(_spread_triple(b_pair[0], y), y, fb, fbb), FORWARD)
            p, q = _spread_triple(a_pair[0], y), _spread_triple(b_pair[0], y)
            one, two = chain(p, y, fa, faa), chain(q, y, fb, fbb)
            cross = mul(_sum(mul(p[1], q[1]), 0), fab)
            second = added((one[2], two[2], cross, cross))
            return ((y, added((one[1], two[1])), second), FORWARD)

        return rule

    return getter


def _in_parts(a_pair, b_pair, y, slopes):
    """What comes from a and what comes from b."""
    if b_pair[1] != FORWARD:
        a = _spread_triple(a_pair[0], y)
        return (y, mul(a[1], slopes[0]), mul(a[2], slopes[0]))
    b = _spread_triple(b_pair[0], y)
    j, l = mul(b[1], slopes[1]), mul(b[2], slopes[1])  # noqa: E741
    if a_pair[1] != FORWARD:
        return (y, j, l)
    a = _spread_triple(a_pair[0], y)
    return (y, added((mul(a[1], slopes[0]), j)), added((mul(a[2], slopes[0]), l)))


def _spread_triple(a, y):
    return (a[0], spread(a[1], y), widened(a[2], y))


def by_partials(*primitives: str, kinked: bool = False, **row: Any) -> Callable[[Getter], Getter]:
    """The decorator of a formula of partial derivatives: files the forward rule. `row` is as of
    `forward`.
    """

    def file(formula: Getter) -> Getter:
        forward(*primitives, **row)(
            straight(two_inputs(formula)) if kinked else two_inputs(formula)
        )
        return formula

    return file


def joined(pairs, axis_size):
    """A tuple of pairs as three tuples: values, derivatives, second derivatives; zeros where
    nothing is carried.
    """
    vs, js, ls = (), (), ()
    for pair in pairs:
        if pair[1] == FORWARD:
            vs, js, ls = vs + (pair[0][0],), js + (pair[0][1],), ls + (pair[0][2],)
        else:
            zeros = zeros_like(pair[0])
            vs, js, ls = (
                vs + (pair[0],),
                js + (copied_to(zeros, (axis_size,) + zeros.shape),),
                ls + (zeros,),
            )
    return vs, js, ls


def directions(pairs):
    """The number of directions in a tuple of pairs, one of which is carried forward."""
    count = 0
    for pair in pairs:
        if pair[1] == FORWARD:
            count = pair[0][1].shape[0]
    return count


@straight
@allow(0)
def tuple_first(prim, usual):
    """Linear in a tuple of tensors, then parameters: a concatenation, a stack, a sum."""

    def rule(pairs, *rest):
        options = options_of(rest)
        vs, js, ls = joined(pairs, directions(pairs))
        batched = ()
        for j in js:
            batched = batched + ((j, 0),)
        if not options:
            return triples(prim(vs), usual(batched), prim(ls))
        return triples(prim(vs, *options), usual(batched, *rest), prim(ls, *options))

    return rule


@uniformly(_uniform_joined)
@straight
def concatenation(prim, usual):
    """The same, along an axis."""
    return tuple_first(prim, usual)
