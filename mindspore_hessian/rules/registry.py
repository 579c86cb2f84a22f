"""Rows of rules, how a family files them, and how MindSpore's own registries get them and get
theirs back.

A family (a module beside this one) files a rule where it stands: ``@derivative("X", why=...)``
above its getter, or ``batching("X", "Y")(unary)`` for several primitives of one kind. That only
adds rows to `ROWS`; `install` hands the rows to MindSpore. It is a polite guest: it records what it
changed, can be undone, and leaves every rule that MindSpore already has alone unless the row says
that MindSpore's is broken.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from mindspore_hessian import _compat
from mindspore_hessian._errors import LateRulesWarning
from mindspore_hessian.arguments import check_bool, shown

Getter = TypeVar("Getter", bound=Callable)
Version = tuple[int, ...]
FIRST, LAST = (2, 7, 2), (2, 10, 99)  # the MindSpore versions of this library

# Reasons that rows of several families give.
COPIES = "MindSpore's rule copies the unbatched operand along the batch"
FAILS_IN_GRADIENTS = "MindSpore's rule fails in gradients"
KEEPS_ATTRIBUTES = "emits the same backward primitive, with attributes that its derivative can read"
REWRITTEN = "its backward has no derivative and hides its attributes: the gradient is differentiable operations"


# --- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of rule. Called with the names of primitives, it is the decorator that files a rule of
    theirs.

    Attributes:
        name: as `status` shows it.
        registry: gives MindSpore's registry of such rules, a dict from names to getters.
        missing: why a row is there that does not say so.
        known: whether this MindSpore has what the row is for.
    """

    name: str
    registry: Callable[[], dict]
    missing: str
    known: Callable[[str], Any] = bool

    def __call__(
        self,
        *primitives: str,
        why: str = "",
        replaces: bool = False,
        visible: bool = False,
        first: Version = FIRST,
        last: Version = LAST,
    ) -> Callable[[Getter], Getter]:
        """A decorator that files its function under these names, one row each, and returns it as it
        is.

        The arguments are those of `Rule`; a row that replaces one of MindSpore's has to say why.
        """
        if not primitives or (replaces and not why):
            raise ValueError(
                f"a {self.name} needs the name of a primitive, and a reason to replace "
                f"MindSpore's, but got {primitives} and {why!r}"
            )

        def file(getter: Getter) -> Getter:
            ROWS.extend(
                Rule(self, primitive, getter, why or self.missing, replaces, visible, first, last)
                for primitive in primitives
            )
            return getter

        return file


@dataclass(frozen=True)
class Rule:
    """One rule for one primitive.

    Attributes:
        kind: what it is a rule of, and so what its getter is.
        primitive: MindSpore's name of the primitive.
        getter: what MindSpore's registry expects under that name (see the kinds below).
        why: the reason this row exists, in a sentence.
        replaces: the rule takes the place of one of MindSpore's that is broken; else it adds a
            missing one.
        visible: MindSpore's is broken at single points only, with NaN, which nobody takes for a
            number: a function with this primitive is not refused where our derivative is ignored.
        first, last: the MindSpore versions (major, minor, patch) it is for, both included.
    """

    kind: Kind
    primitive: str
    getter: Callable
    why: str
    replaces: bool = False
    visible: bool = False
    first: Version = FIRST
    last: Version = LAST

    @property
    def applies(self) -> bool:
        """Whether the row is for this MindSpore."""
        return self.first <= _compat.MS_VERSION <= self.last and bool(
            self.kind.known(self.primitive)
        )


ROWS: list[Rule] = []  # of all families, for all versions

# getter(prim) returns bprop(*inputs, out, dout) -> tuple of input gradients, itself differentiable
derivative = Kind("derivative", _compat.derivative_registry, "MindSpore has no derivative of it")
# getter(prim, axis_size) returns rule(*(value, dim)) -> (out, out_dim); dim None means unbatched
batching = Kind(
    "batching", _compat.batching_registry, "MindSpore has no rule for it and unrolls the batch"
)
# the getter is a function that MindSpore compiles where it meets that of the dotted name
# `primitive`
composition = Kind(
    "composition",
    _compat.composition_registry,
    "MindSpore's cannot be differentiated twice",
    _compat.function_named,
)
FORWARD_RULES: dict[
    str, Callable
] = {}  # MindSpore has none: `rules.interpreter` puts these in its place
# getter(prim, usual) returns rule(*pairs): see `rules.forward`
forward = Kind(
    "forward", lambda: FORWARD_RULES, "value, derivatives and Laplacian in one forward pass"
)
TAYLOR_RULES: dict[
    str, Callable
] = {}  # the same for series, where the forward rule is not right for these too
# getter(prim, usual) returns rule(*pairs): see `rules.taylor`
expansion = Kind("taylor", lambda: TAYLOR_RULES, "Taylor coefficients in one forward pass")


# --- MindSpore's registries -----------------------------------------------------------------------

# names whose Python derivative wins over MindSpore's C++ one; read at the first gradient
_ENV = "MS_DEV_USE_PY_BPROP"
_ABSENT = object()
_registered: dict[
    tuple[str, str], tuple[Rule, object, list]
] = {}  # (kind, primitive) -> our rule, what was there
# before, and the other keys under which that was (MindSpore files its Python rules under the id of
# the class as well)
_read: dict[str, bool] = {}  # "replacing": whether MindSpore heeds _ENV, known once it has read it


@dataclass(frozen=True)
class RuleStatus:
    """One line of `status`: which rule, whose it is now, and why it exists."""

    kind: str
    primitive: str
    active: str  # "ours", "mindspore" (it has one and we did not replace it), "removed"
    replaces: bool
    why: str


def _register(rule: Rule) -> None:
    entry, registry = (rule.kind.name, rule.primitive), rule.kind.registry()
    before = registry.get(rule.primitive, _ABSENT)
    aliases: list = []
    if entry in _registered and before is _registered[entry][0].getter:
        _, before, aliases = _registered[entry]
    elif before is not _ABSENT:
        if not rule.replaces:
            return
        if rule.kind is derivative:
            aliases = [
                key
                for key in _compat.class_keys(rule.primitive)
                if key in registry and registry[key] is before
            ]
    for name in (rule.primitive, *aliases):
        registry[name] = rule.getter
    _registered[entry] = (rule, before, aliases)
    if rule.kind is derivative and rule.replaces:
        names = [name for name in os.environ.get(_ENV, "").split(",") if name]
        if rule.primitive not in names:
            os.environ[_ENV] = ",".join([*names, rule.primitive])
            if _read:
                _warn_late(rule.primitive)


def _warn_late(names: str) -> None:
    warnings.warn(
        f"MindSpore ignores our derivative of {names}: it chooses between its own rules and "
        "Python's at the first gradient of a process, and that has been computed. Functions with "
        "these primitives are refused. Import mindspore_hessian and register rules before the "
        "first gradient.",
        LateRulesWarning,
        stacklevel=3,
    )


def in_force() -> bool:
    """Whether the rules that replace MindSpore's are heeded, found out by one tiny compilation;
    warns if they are not.

    Call it before the first second derivative of a process. From then on the answer is known.
    """
    if not _read:
        _read["replacing"] = _compat.heeds_python_derivatives()
        if not _read["replacing"]:
            _warn_late(", ".join(sorted(replaced())))
    return _read["replacing"]


def replaced() -> set[str]:
    """The primitives whose derivative in MindSpore must not be used where ours is ignored."""
    return {
        rule.primitive
        for rule, _, _ in _registered.values()
        if rule.kind is derivative and rule.replaces and not rule.visible
    }


def _applicable() -> list[Rule]:
    return [rule for rule in ROWS if rule.applies]


def install() -> None:
    """Register every rule for this MindSpore version. Idempotent; importing the package does it.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> rules.install()
    """
    for rule in _applicable():
        _register(rule)


def uninstall() -> None:
    """Give MindSpore's registries back what they held (compiled functions keep the rules they were
    built with).

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> rules.uninstall()
        >>> any(row.active == "ours" for row in rules.status())
        False
        >>> rules.install()
    """
    while _registered:
        (_, name), (rule, before, aliases) = _registered.popitem()
        registry = rule.kind.registry()
        if registry.get(name, None) is not rule.getter:
            continue  # somebody registered after us: theirs stays
        if before is _ABSENT:
            del registry[name]
        else:
            registry.update(dict.fromkeys((name, *aliases), before))
        if rule.replaces and rule.kind is derivative:
            names = os.environ.get(_ENV, "").split(",")
            os.environ[_ENV] = ",".join(other for other in names if other not in ("", name))


def status() -> list[RuleStatus]:
    """The rules of this library for this MindSpore version, a row each.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> next(row for row in rules.status() if row.primitive == "LogSoftmaxGrad" and row.kind == "derivative").active
        'ours'
    """
    rows = {(rule.kind.name, rule.primitive): rule for rule in _applicable()}
    rows.update({key: rule for key, (rule, _, _) in _registered.items()})
    out = []
    for (kind, name), rule in sorted(rows.items()):
        now = rule.kind.registry().get(name, None)
        active = "ours" if now is rule.getter else "removed" if now is None else "mindspore"
        out.append(RuleStatus(kind, name, active, rule.replaces, rule.why))
    return out


def _check_rule(primitive: Any, getter: Any, why: Any, replaces: Any) -> None:
    """Raise TypeError where MindSpore would fail with a rule only as it compiles."""
    if not isinstance(primitive, str) or not primitive:
        raise TypeError(
            f"primitive must be MindSpore's name of it, such as 'Tanh', but got {shown(primitive)}"
        )
    if not callable(getter):
        raise TypeError(
            f"getter must be a function that gives the rule, but got {type(getter).__name__}"
        )
    if not isinstance(why, str):
        raise TypeError(f"why must be a sentence, but got {type(why).__name__}")
    check_bool("replaces", replaces)


def register_derivative(
    primitive: str, getter: Callable, why: str = "", replaces: bool = False
) -> None:
    """Supply the derivative of a primitive.

    Args:
        primitive: MindSpore's name of it, as an error message or `audit` shows it.
        getter: ``getter(prim)`` returns ``bprop(*inputs, out, dout)``, a function MindSpore can
            compile that returns the gradient of each input. Write it with differentiable
            operations, so that higher orders work.
        why: a sentence shown by `status`.
        replaces: MindSpore has a rule and this one must win. Takes effect only before the process's
            first gradient.

    Warns:
        LateRulesWarning: `replaces`, after the first gradient of the process.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> def of_my_cube_grad(prim):  # of the primitive MyCubeGrad(x, dy) = 3 x^2 dy
        ...     def bprop(x, dy, out, dout):
        ...         return 6 * x * dy * dout, 3 * x ** 2 * dout
        ...     return bprop
        >>> rules.register_derivative("MyCubeGrad", of_my_cube_grad, why="MyCube has a kernel of its own")
    """
    _check_rule(primitive, getter, why, replaces)
    _register(Rule(derivative, primitive, getter, why or "registered by the user", replaces))


def register_batching(
    primitive: str, getter: Callable, why: str = "", replaces: bool = False
) -> None:
    """Supply the batching rule of a primitive.

    Args:
        primitive: MindSpore's name of it.
        getter: ``getter(prim, axis_size)`` returns ``rule(*(value, dim)) -> (out, out_dim)``.
        why: a sentence shown by `status`.
        replaces: the rule takes the place of MindSpore's.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> def of_my_cube(prim, axis_size):  # elementwise, so the batch may stay where it is
        ...     def rule(x):
        ...         return prim(x[0]), x[1]
        ...     return rule
        >>> rules.register_batching("MyCube", of_my_cube)
    """
    _check_rule(primitive, getter, why, replaces)
    _register(Rule(batching, primitive, getter, why or "registered by the user", replaces))


def register_forward(
    primitive: str, getter: Callable, why: str = "", replaces: bool = False
) -> None:
    """Supply the forward rule of a primitive: how value, derivatives and Laplacian go through it.

    Args:
        primitive: MindSpore's name of it.
        getter: ``getter(prim, usual)`` returns ``rule(*pairs)``, as
            `mindspore_hessian.rules.forward` has it. For what works entry by entry,
            ``elementwise(slopes)`` makes one; for what is linear, `linear` is one.
        why: a sentence shown by `status`.
        replaces: the rule takes the place of one that is there.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> from mindspore_hessian.rules.forward import elementwise
        >>> def slopes(x, y):  # y = x^3
        ...     return 3 * x * x, 6 * x
        >>> rules.register_forward("MyCube", elementwise(slopes))
    """
    _check_rule(primitive, getter, why, replaces)
    _register(Rule(forward, primitive, getter, why or "registered by the user", replaces))


def register_taylor(
    primitive: str, getter: Callable, why: str = "", replaces: bool = False
) -> None:
    """Supply the Taylor rule of a primitive: how the coefficients of a series go through it, for
    `jet`.

    What is linear needs none: its forward rule does.

    Args:
        primitive: MindSpore's name of it.
        getter: ``getter(prim, usual)`` returns ``rule(*pairs)``, as
            `mindspore_hessian.rules.taylor` has it. ``of_one(function)`` makes one of ``function(y,
            x, *options)``, which takes the value and the coefficients (x_0, x_1, ...), and returns
            those of the result.
        why: a sentence shown by `status`.
        replaces: the rule takes the place of one that is there.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import rules
        >>> from mindspore_hessian.rules.taylor import of_one, squared, times
        >>> def cube(y, x):
        ...     return times(squared(x), x)
        >>> rules.register_taylor("MyCube", of_one(cube))
    """
    _check_rule(primitive, getter, why, replaces)
    _register(Rule(expansion, primitive, getter, why or "registered by the user", replaces))
