"""A forward rule for a primitive that has none of its own, from gradients of that primitive alone.

For y = f(x), a direction j and a cotangent w, <w, f'(x) j> = <grad_x <w, f(x)>, j> is linear in w,
so that its gradient by w is f'(x) j; the same once more gives f''(x)[j, j]. That is three gradients,
one within the other, of one primitive, compiled once for all directions. It costs more than a
formula, and is for what stands once in a program: a loss, a scatter.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian.rules.forward import FORWARD, allow, value_of
from mindspore_hessian.rules.kit import add, added, mul

_total = ops.ReduceSum()


def _inner(one, two):
    """<a_1, b_1> + <a_2, b_2> + ..., a number. (MindSpore's gradient by one input is no tuple.)"""
    if isinstance(one, Tensor):
        return _total(mul(one, two[0]))
    terms = ()
    for k in range(len(one)):
        terms = terms + (_total(mul(one[k], two[k])),)
    return added(terms)


def _derivatives(function: Callable, places: tuple[int, ...]) -> tuple[Callable, Callable]:
    """``first(w, js, inputs)`` and ``second(w, js, inputs)``: the derivatives of a function along
    directions `js` of the inputs at these places. (w may be anything of the shape of the result that
    is no constant, of which MindSpore has no gradient.)"""
    by_places = tuple(2 + place for place in places)

    def weighed(w, js, *inputs):
        return _total(mul(w, function(*inputs)))

    by_inputs = ms.grad(weighed, by_places)

    def slope(w, js, *inputs):
        return _inner(by_inputs(w, js, *inputs), js)

    slope_by_inputs = ms.grad(slope, by_places)

    def bend(w, js, *inputs):
        return _inner(slope_by_inputs(w, js, *inputs), js)

    of_slope, of_bend = ms.grad(slope, 0), ms.grad(bend, 0)

    def first(w, js, inputs):
        return of_slope(w, js, *inputs)

    def second(w, js, inputs):
        return of_bend(w, js, *inputs)

    return first, second


@constexpr
def _axes(carried, count):
    """Those of ``(w, js, inputs)``: all directions at once."""
    return (None, (0,) * carried, (None,) * count)


@constexpr
def _number(choices, marks):
    """Which of the choices of places are carried forward."""
    carried = tuple(place for place, mark in enumerate(marks) if mark == FORWARD)
    return choices.index(carried)


def _marks(pairs):
    out = ()
    for pair in pairs:
        if isinstance(pair, tuple):
            out = out + (pair[1],)
    return out


def by_gradients(*places: int, function: Callable | None = None) -> Callable:
    """The getter of a rule for any of these inputs carried forward: of a primitive with one output
    that can be differentiated three times. `function(prim, *inputs)`: another than ``prim(*inputs)``.
    """
    choices = tuple(
        chosen for size in range(1, len(places) + 1) for chosen in combinations(places, size)
    )

    @allow(*places)
    def getter(prim, usual):
        def value(*inputs):
            return prim(*inputs)

        made = tuple(_derivatives(value, chosen) for chosen in choices)

        def rule(*pairs):
            number = _number(choices, _marks(pairs))
            first, second = made[number]
            inputs, js, ls = (), (), ()
            for pair in pairs:
                if isinstance(pair, tuple):
                    inputs = inputs + (value_of(pair),)
                    if pair[1] == FORWARD:
                        js, ls = js + (pair[0][1],), ls + (pair[0][2],)
            y, axes = prim(*inputs), _axes(len(js), len(inputs))
            j = ops.vmap(first, axes)(y, js, inputs)
            bent = ops.vmap(second, axes)(y, js, inputs)
            return ((y, j, add(first(y, ls, inputs), _total(bent, 0))), FORWARD)

        return rule

    return getter
