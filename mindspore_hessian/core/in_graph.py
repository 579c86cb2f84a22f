"""The transforms inside the user's own graphs (``@jit`` functions, ``Cell.construct``), where nothing is cached.

MindSpore's parser follows ``__wrapped__``: each public function carries there a version for graphs. As MindSpore
compiles the user's graph, that version makes its composition in Python, by the same checks and of the same kernels as
the call outside: what can be known of the arguments then (`described`) is enough for both. So the differentiated
function must be known then: defined outside the graph, or a method.
"""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian.core import source
from mindspore_hessian.core.captures import GRAPH

WEIGHTS_INSIDE = ("inside your own graph, weights= goes with products only (hvp, grad_and_hvp, curvature), without "
                  "grad_position and has_aux. Make the transform outside of the graph, f = hessian(fn, weights=...), "
                  "and call f inside")


def readable_in_graph(graph: Callable) -> Callable:
    """Decorator: MindSpore, compiling the user's own graph, reads `graph` in the place of the decorated function."""
    def decorate(eager: Callable) -> Callable:
        eager.__wrapped__ = graph  # type: ignore[attr-defined]
        setattr(eager, GRAPH, True)
        return eager
    return decorate


# --- what the graph tells ------------------------------------------------------------------------------------------

def described(value):
    """What is known of a value while a graph compiles, as constants. MindSpore compiles this function."""
    if isinstance(value, Parameter):
        return ("parameter", value.shape, value.dtype)
    if isinstance(value, Tensor):
        return ("tensor", value.shape, value.dtype)
    if isinstance(value, (tuple, list)):  # noqa: UP038 -- compiled by MindSpore
        items = ()
        for item in value:
            items = items + (described(item),)
        if isinstance(value, list):
            return ("list", items)
        return ("tuple", items)
    if isinstance(value, dict):
        items = ()
        for item in value.values():
            items = items + (described(item),)
        return ("dict", tuple(value.keys()), items)
    return ("constant", value)


def stand_in(description: tuple) -> Any:
    """A value of that description: its Tensors are zeros."""
    kind, *rest = description
    if kind in ("tensor", "parameter"):
        zeros = Tensor(np.zeros(rest[0], np.float32), rest[1])
        return zeros if kind == "tensor" else Parameter(zeros, name="given")
    if kind == "dict":
        return dict(zip(rest[0], map(stand_in, rest[1]), strict=True))
    if kind == "constant":
        return rest[0]
    return (tuple if kind == "tuple" else list)(map(stand_in, rest[0]))


def tensors_in(value: Any) -> Callable:
    """``select(values)``: the Tensors of a structure like `value` (a stand-in), flat, as MindSpore compiles it."""
    def paths(value: Any, path: str) -> list[str]:
        if isinstance(value, Tensor):
            return [path]
        items = (value.items() if isinstance(value, dict) else
                 enumerate(value) if isinstance(value, tuple | list) else ())
        return [found for key, item in items for found in paths(item, f"{path}[{key!r}]")]
    return _selector("".join(f"{path}, " for path in paths(value, "values")))


@functools.lru_cache(maxsize=256)
def _selector(items: str) -> Callable:
    text = f"def select(values):\n    return ({items})\n"
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, source.register(text, "select"), "exec"), space)  # our own text: names and brackets only
    return space["select"]


def known(*functions: Any) -> None:
    """Raise where a function is not known as a graph compiles: it comes as None then."""
    if None in functions:
        raise TypeError("fn must be callable, but got None: inside your own graph, the function to differentiate must "
                        "be defined outside of it (a function of the module or a method, not a def or lambda in the "
                        "graph)")


# --- what is made of it --------------------------------------------------------------------------------------------

class Recipe:
    """``build(values, *options)``, which makes a graph function of the values. An object: the parser reads no `build`.
    """

    def __init__(self, build: Callable):
        self.build = build


setattr(Recipe, GRAPH, True)  # what a function captured by it counts by value


@ms.jit_class
class InGraph:
    """A graph function, ``recipe.build(values, *options)``, made while MindSpore compiles the user's graph."""

    def __init__(self, recipe, description, *options):
        self.call = recipe.build(stand_in(description), *options)

    def __call__(self, values):
        return self.call(values)


@ms.jit_class
class Made:
    """A transform's function, made by the eager ``make(*options)`` while MindSpore compiles the user's graph."""

    def __init__(self, recipe, fn, *options):
        known(fn)
        self.call = recipe.build(fn, *options)

    def __call__(self, *args):
        return self.call(*args)


def outside(build: Callable) -> Callable:
    """The version for graphs of a function that a transform returns; ``build(args)`` makes the graph function."""
    recipe = Recipe(build)

    def in_graph(*args):
        return InGraph(recipe, described(args))(args)
    return in_graph
