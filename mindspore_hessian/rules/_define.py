"""Kinds of rule: a row per primitive, as data."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mindspore_hessian import _compat


@dataclass(frozen=True)
class Rule:
    """One rule for one primitive.

    Attributes:
        primitive: MindSpore's name of the primitive.
        getter: what MindSpore's registry expects under that name (see `Derivative` and `Batching`).
        why: the reason this row exists, in a sentence.
        replaces: the rule takes the place of one of MindSpore's that is broken; else it adds a missing one.
        visible: MindSpore's is broken at single points only, with NaN, which nobody takes for a number: a function
            with this primitive is not refused where our derivative is ignored.
        first, last: the MindSpore versions (major, minor, patch) it is for, both included.
    """

    kind: ClassVar[str]

    primitive: str
    getter: Callable
    why: str
    replaces: bool = False
    visible: bool = False
    first: tuple[int, ...] = (2, 7, 2)
    last: tuple[int, ...] = (2, 10, 99)

    def applies(self, version: tuple[int, ...]) -> bool:
        """Whether the row is for this MindSpore version."""
        return self.first <= version <= self.last


class Derivative(Rule):
    """``getter(prim)`` returns ``bprop(*inputs, out, dout) -> tuple of input gradients``, itself differentiable."""

    kind = "derivative"


class Batching(Rule):
    """``getter(prim, axis_size)`` returns ``rule(*(value, dim)) -> (out, out_dim)``; dim None means unbatched."""

    kind = "batching"


class Composition(Rule):
    """``getter`` is a function that MindSpore compiles where it meets that of the dotted name ``primitive``."""

    kind = "composition"

    def applies(self, version: tuple[int, ...]) -> bool:
        """Whether this MindSpore has the function."""
        return super().applies(version) and _compat.function_named(self.primitive) is not None
