"""The derivative of a backward primitive from a formula of it.

A backward primitive such as ``GeLUGrad(dy, x, y)`` is a function like any other. Written with
differentiable operations, `by_formula` differentiates it by MindSpore itself: one line of maths a
row, and every higher order works. A primitive whose saved outputs (``y`` above) depend on its
inputs (``x``) may be written without them: on the values that occur both say the same, so the total
derivative is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mindspore import mutable, ops

from mindspore_hessian.rules.registry import Getter, derivative

# pull(f)(a, b, d): the gradients of <f(a, b), d>. MindSpore leaves out an argument whose value it
# knows as it compiles (a captured Tensor), so that the others change place: pass every argument
# through `mutable`, which hides the value. It must stand where f is defined: MindSpore fails to
# compile a closure that another function differentiates.
pull = ops.GradOperation(get_all=True, sens_param=True)


def by_formula(*primitives: str, options: int = 0, **row: Any) -> Callable[[Getter], Getter]:
    """The decorator of a formula that computes these primitives: files the derivative of it, in all
    but the `options`.

    The formula takes what the primitives take, tensors and then `options` many numbers, axes or
    flags. `row` is what `derivative` takes besides names.
    """

    def file(formula: Getter) -> Getter:
        tensors = len(inspect.signature(formula).parameters) - options
        # MindSpore compiles the functions below from their source and takes no *args there: hence
        # one per count.
        bprop = _BPROPS[tensors, options](formula)

        def getter(prim):
            return bprop

        derivative(*primitives, **row)(getter)
        return formula

    return file


def _of_2_0(formula):
    def bprop(a, b, out, dout):
        return pull(formula)(mutable(a), mutable(b), dout)

    return bprop


def _of_2_1(formula):
    def bprop(a, b, p, out, dout):
        def f(a, b):
            return formula(a, b, p)

        da, db = pull(f)(mutable(a), mutable(b), dout)
        return da, db, 0

    return bprop


def _of_3_0(formula):
    def bprop(a, b, c, out, dout):
        return pull(formula)(mutable(a), mutable(b), mutable(c), dout)

    return bprop


def _of_3_2(formula):
    def bprop(a, b, c, p, q, out, dout):
        def f(a, b, c):
            return formula(a, b, c, p, q)

        da, db, dc = pull(f)(mutable(a), mutable(b), mutable(c), dout)
        return da, db, dc, 0, 0

    return bprop


def _of_3_3(formula):
    def bprop(a, b, c, p, q, r, out, dout):
        def f(a, b, c):
            return formula(a, b, c, p, q, r)

        da, db, dc = pull(f)(mutable(a), mutable(b), mutable(c), dout)
        return da, db, dc, 0, 0, 0

    return bprop


_BPROPS = {(2, 0): _of_2_0, (2, 1): _of_2_1, (3, 0): _of_3_0, (3, 2): _of_3_2, (3, 3): _of_3_3}
