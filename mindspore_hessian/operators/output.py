"""Which of the things that a network returns an operator is about."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.function import parsable


@dataclass(frozen=True)
class Choice:
    """The option `output`: the index of a tuple, the key of a dict, a function of what the network returns, or None."""

    pick: Any = None

    def __post_init__(self) -> None:
        if not (self.pick is None or is_integer(self.pick) or isinstance(self.pick, str) or callable(self.pick)):
            raise TypeError("output must be an index (of a tuple), a key (of a dict) or a function of what the network "
                            f"returns, but got {shown(self.pick)}")

    @property
    def key(self) -> Any:
        """What a compiled function depends on beside what `captured` holds."""
        return type(self.pick).__name__ if self.captured else self.pick

    @property
    def captured(self) -> tuple:
        """The user's function, if it is one."""
        return (self.pick,) if callable(self.pick) else ()

    def of(self, network: Callable) -> Callable:
        """The network with this output, as MindSpore compiles it."""
        if self.pick is None:
            return network
        if callable(self.pick):
            return _applied(network, parsable(self.pick))
        return _item(network, int(self.pick) if is_integer(self.pick) else self.pick)


def _item(network: Callable, place: Any) -> Callable:
    def chosen(*xs):
        return network(*xs)[place]
    return chosen


def _applied(network: Callable, pick: Callable) -> Callable:
    def chosen(*xs):
        return pick(network(*xs))
    return chosen
