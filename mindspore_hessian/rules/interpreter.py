"""MindSpore's vmap pass as an interpreter: another table of rules, in its place for one pass.

The pass asks a registry for a rule of each primitive, and hands values from rule to rule. So two
primitives of our own, which only it ever meets, begin and end the forward mode: ``HessianEnter``,
where a point comes in, whose rule makes the triple of `rules.forward`; and ``HessianLeave``, where
a result goes out, whose rule takes the triple apart.

A function with these in it is made while MindSpore compiles, or just before. From then on `Table`
stands for the registry, until MindSpore infers the types of the rule of `HessianLeave`, which it
does after the pass. In `Table`, the rule of a primitive is its forward rule where something is
carried forward and its ordinary batching rule where not, so an ordinary vmap in the same graph
keeps working. A primitive without a forward rule does not stop the pass: it marks what depends on
it, and `HessianLeave` finds the mark, with the name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from weakref import WeakValueDictionary

from mindspore import ops
from mindspore.ops import PrimitiveWithInfer, constexpr, prim_attr_register

from mindspore_hessian import _compat
from mindspore_hessian._errors import FallbackWarning, MissingRuleError, warn
from mindspore_hessian.rules.forward import (
    ALIKE,
    BATCHED,
    FORWARD,
    LONGEST,
    NOTHING,
    SERIES,
    UNIFORM,
    WHOLE,
    dim_of,
    dims_of,
    line_of,
    mark_of_missing,
    missing_name,
    way,
    wide,
)
from mindspore_hessian.rules.kit import copied_to, primitive, tensors_of, zeros_like
from mindspore_hessian.rules.missing import unbatched_only, unrolled
from mindspore_hessian.rules.registry import FORWARD_RULES, TAYLOR_RULES, Kind
from mindspore_hessian.rules.taylor import of_forward

_kept: list[Callable] = []  # MindSpore knows a rule by its address: none may be freed
_COPIES = 64  # of a primitive without a batching rule that a graph may hold
_PLAIN = frozenset(
    {
        "Load",
        "Depend",
        "UpdateState",
        "MakeTuple",
        "Shape",
        "Return",
        "Switch",
        "SwitchLayer",
        "Partial",
        "mutable",
        "HessianEnter",
        "HessianSeries",
        "HessianLeave",
    }
)


class HessianEnter(PrimitiveWithInfer):
    """x, with its derivatives along D directions, j of shape (D, *x.shape): here the forward mode
    begins.
    """

    @prim_attr_register
    def __init__(self):
        self.init_prim_io_names(inputs=["x", "j"], outputs=["y"])

    def infer_shape(self, x, j):
        return x

    def infer_dtype(self, x, j):
        return x


class HessianSeries(HessianEnter):
    """x, with its Taylor coefficients j of shape (K, *x.shape): here the forward mode for series
    begins.

    Args:
        ends: whether all but the first of them are zero.
    """

    @prim_attr_register
    def __init__(self, ends=False):
        self.init_prim_io_names(inputs=["x", "j"], outputs=["y"])
        self.ends = ends


class HessianLeave(PrimitiveWithInfer):
    """(value, derivatives, sum of the second derivatives) of y: here the forward mode ends. Of a
    series, the derivatives are its Taylor coefficients, and the sum is nothing.

    Args:
        otherwise: where a primitive has no forward rule, ``otherwise(number, *given)`` gives the
            three in another way, of the other inputs of this primitive: the number of the output,
            the point, the directions. None: that is refused.
    """

    @prim_attr_register
    def __init__(self):
        self.init_prim_io_names(inputs=["y", "number", "given"], outputs=["v", "j", "l"])
        self.otherwise, self.ticket, self.of_series = None, 0, False

    def infer_shape(self, y, number, *given):
        return (y, y, y)

    def infer_dtype(self, y, number, *given):
        return (y, y, y)


enter, enter_series, enter_line = HessianEnter(), HessianSeries(), HessianSeries(True)


_tickets = itertools.count(1)
_waiting: WeakValueDictionary[int, HessianLeave] = (
    WeakValueDictionary()
)  # those that MindSpore did not come to yet


def leave(otherwise: Callable | None, of_series: bool = False) -> HessianLeave:
    """A `HessianLeave` of its own for one function, which is about to be compiled: the forward mode
    is on.
    """
    Table.branches = Table.branches and bool(_waiting)
    prim = HessianLeave()
    prim.otherwise, prim.ticket, prim.of_series = otherwise, next(_tickets), of_series
    _waiting[prim.ticket] = prim
    _compat.stand_for_batching_registry(Table)
    return prim


def close() -> None:
    """The forward mode is off, whatever was waited for."""
    _waiting.clear()
    _compat.restore_batching_registry()


class Table:
    """What MindSpore's vmap pass asks in the place of its registry while the forward mode is on."""

    branches = False  # whether a graph decides by a Tensor: values of both kinds may meet there

    def __init__(self, registry: dict):
        self.stands_for = registry

    def get(self, key, default=None):
        usual = self.stands_for.get(key, None)
        Table.branches = Table.branches or key in ("Switch", "SwitchLayer")
        if not isinstance(key, str) or key in _PLAIN:
            return default if usual is None else usual
        if key == "TupleGetItem":
            return _item

        def getter(prim, axis_size):
            _kept.append(_rule(key, prim, axis_size, usual))
            return _kept[-1]

        return getter


def _rule(name: str, prim, axis_size: int, usual: Callable | None) -> Callable | None:
    """The rule of a primitive for values of both kinds; None where MindSpore has to unroll it."""
    copies = unrolled if axis_size <= _COPIES else unbatched_only
    batched = (usual or copies(name, {}))(prim, axis_size)
    make, expand = FORWARD_RULES.get(name), _of_series(name)
    if isinstance(prim, str) and _compat.takes_attributes(
        name
    ):  # made in C++: its attributes are out of reach
        make = expand = None
    if batched is None:
        return None
    rule, kinds = batched, {one.of_series for one in _waiting.values()} or {True, False}
    if True in kinds:
        places, expanded = _made(expand, prim, batched)
        line = _made_wide(prim, batched, expanded)
        if expand is not None and hasattr(expand, "line"):  # of one coefficient
            line = expand.line(primitive(prim), (usual or copies(name, {}))(prim, 1), line)
        rule = _chosen(SERIES, kinds, places, mark_of_missing(name), expanded, line, rule)
    if False in kinds:
        places, pushed = _made(make, prim, batched)
        uniform = getattr(make, "uniform", _made_wide)(primitive(prim), batched, pushed)
        rule = _chosen(FORWARD, kinds, places, mark_of_missing(name), pushed, uniform, rule)
    return rule


def _chosen(kind, kinds, places, missing, whole, alike, otherwise):
    """The rule for values of one kind: all of them, those that are alike; `otherwise` for others."""
    others = len(kinds) > 1

    def rule(*pairs):
        return _apply(kind, others, places, missing, whole, alike, otherwise, pairs)

    return rule


def _apply(kind, others, places, missing, whole, alike, otherwise, pairs):
    """(A function of its own: MindSpore parses a rule for each place where its primitive is.)"""
    found = way(dims_of(pairs), kind, others, places, missing)
    if found == BATCHED:
        return otherwise(*pairs)
    if found == WHOLE:
        return whole(*pairs)
    if found == ALIKE:
        return alike(*pairs)
    return (0, found)


def _of_series(name: str) -> Callable | None:
    """The getter of a primitive's rule for series: its own, or made of a forward rule that is
    straight.
    """
    own, make = TAYLOR_RULES.get(name), FORWARD_RULES.get(name)
    return (
        of_forward(make)
        if own is None and make is not None and getattr(make, "straight", False)
        else own
    )


def _made(make: Callable | None, prim, batched: Callable) -> tuple[tuple[int, ...], Callable]:
    """The inputs that a rule takes carried forward, and the rule."""
    return (
        (NOTHING, batched)
        if make is None
        else (getattr(make, "allowed", ()), make(primitive(prim), batched))
    )


def _made_wide(prim, usual, pushed):
    """The rule of what has none for UNIFORM values, or for a LINE."""

    def rule(*pairs):
        given = ()
        for pair in pairs:
            given = given + (wide(pair),)
        return pushed(*given)

    return rule


def _item(prim, axis_size):
    """One of the outputs of a primitive, or the mark that it is missing."""
    prim = primitive(prim)

    def rule(pairs, index_pair):
        state = _mark_alone(dim_of(pairs))
        if state == 0:
            return prim(pairs, index_pair[0])
        return (0, state)

    _kept.append(rule)
    return rule


@constexpr
def _mark_alone(dim):
    return dim if isinstance(dim, int) and missing_name(dim) else 0


# --- the two ends ---------------------------------------------------------------------------------

_end = Kind("end", _compat.batching_registry, "the forward mode begins or ends there")


def without_rule(error: BaseException) -> str:
    """The primitive that an error of a forward pass names; "" for none."""
    found = re.match(r"primitive (\w+) has no (forward|Taylor) rule", str(error))
    return found[1] if found else ""


def missing_text(what: str, name: str) -> str:
    """What a warning says where a primitive has no forward rule."""
    return (
        f"{what}: primitive {name} has no forward rule, so reverse derivatives are used, which "
        "take about twice the time. Supply one: "
        f"mindspore_hessian.rules.register_forward({name!r}, getter)."
    )


def _refused(name: str) -> MissingRuleError:
    return MissingRuleError(
        f"primitive {name} has no forward rule. Use mode='reverse', write the function with "
        "another operation, or supply the rule: "
        f"mindspore_hessian.rules.register_forward({name!r}, getter)."
    )


def _refused_series(name: str) -> MissingRuleError:
    return MissingRuleError(
        f"primitive {name} has no Taylor rule. Write the function with another operation, nest "
        "gradients (mindspore.grad), or supply the rule: "
        f"mindspore_hessian.rules.register_taylor({name!r}, getter)."
    )


@constexpr
def _went_through(ticket, dim, refuse, of_series):
    """Whether the function went through in forward mode, which is off where this was the last
    one.
    """
    _waiting.pop(ticket, None)
    if not _waiting:
        _compat.restore_batching_registry()
    name = missing_name(dim or 0)
    if name and refuse:
        raise _refused_series(name) if of_series else _refused(name)
    if name:
        warn(missing_text("laplacian", name), FallbackWarning)
    return not name


@constexpr
def _stays_uniform(ticket, x, j):
    """Whether derivatives of shape j, one for all samples of x, may stay so; the ticket is for one
    pass."""
    return tuple(j[1:]) != tuple(x) and not Table.branches


@_end("HessianEnter")
def batched_enter(prim, axis_size):
    """x, which is not batched, with its derivatives, whose directions are."""
    ticket = next(_tickets)

    def rule(x_pair, j_pair):
        pair = ((x_pair[0], j_pair[0]), UNIFORM)
        if _stays_uniform(ticket, x_pair[0].shape, j_pair[0].shape):
            return pair
        return wide(pair)

    _kept.append(rule)
    return rule


@constexpr
def _stays_line(ticket, order):
    """Whether a series that ends may stay so; the ticket is for one pass."""
    return 1 < order <= LONGEST and not Table.branches


@_end("HessianSeries")
def batched_series(prim, axis_size):
    """The series of x."""
    ticket, ends = next(_tickets), prim.ends

    def rule(x_pair, c_pair):
        if ends and _stays_line(ticket, axis_size):
            return ((x_pair[0], c_pair[0][:1]), line_of(axis_size))
        return ((x_pair[0], c_pair[0]), SERIES)

    _kept.append(rule)
    return rule


@_end("HessianLeave")
def batched_leave(prim, axis_size):
    """The three parts, with an axis in front."""
    otherwise, ticket, of_series = prim.otherwise, prim.ticket, prim.of_series

    def rule(y_pair, number_pair, *given_pairs):
        if _went_through(ticket, dim_of(y_pair), otherwise is None, of_series):
            y_pair = wide(y_pair)
            if y_pair[1] == SERIES:
                y, c = y_pair[0]
                return _outputs(y, ops.cast(c, y.dtype), zeros_like(y))
            if y_pair[1] == FORWARD:
                v, j, l = y_pair[0]  # noqa: E741
                return _outputs(v, ops.cast(j, v.dtype), ops.cast(l, v.dtype))
            zeros = zeros_like(y_pair[0])
            return _outputs(y_pair[0], copied_to(zeros, (axis_size,) + zeros.shape), zeros)
        return _outputs(*otherwise(number_pair[0], *tensors_of(given_pairs)))

    _kept.append(rule)
    return rule


def _outputs(v, j, l):  # noqa: E741
    return ((ops.expand_dims(v, 0), 0), (j, 0), (ops.expand_dims(l, 0), 0))
