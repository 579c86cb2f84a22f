"""The transforms inside the user's own graphs (``@jit`` functions, ``Cell.construct``), where nothing is cached.

MindSpore's parser follows ``__wrapped__``: each public function carries there a version for graphs. Those build their
composition with `InGraph`, in Python, at the moment when MindSpore compiles the user's graph; so the differentiated
function must be known then: defined outside the graph, or a method.
"""
from __future__ import annotations

from collections.abc import Callable

import mindspore as ms

from mindspore_hessian._callable import parsable
from mindspore_hessian._capture import GRAPH
from mindspore_hessian._inplace import refuse_in_graph


def readable_in_graph(graph: Callable) -> Callable:
    """Decorator: MindSpore, compiling the user's own graph, reads `graph` in the place of the decorated function."""
    def decorate(eager: Callable) -> Callable:
        eager.__wrapped__ = graph  # type: ignore[attr-defined]
        setattr(eager, GRAPH, True)
        return eager
    return decorate


@ms.jit_class
class InGraph:
    """A graph function, ``build(fn, [other,] *options)``, made while MindSpore compiles the user's graph."""

    def __init__(self, build, fn, options, other=None):
        if not callable(fn) or not (other is None or callable(other)):
            raise TypeError("inside your own graph, the function to differentiate must be defined outside of it: a "
                            "function of the module or a method, not a def or lambda in the graph")
        refuse_in_graph(*((fn,) if other is None else (fn, other)))
        functions = (parsable(fn),) if other is None else (parsable(fn), parsable(other))
        self.call = build(*functions, *options)

    def __call__(self, *args):
        return self.call(*args)


def outside(build: Callable, fn: Callable, options: tuple, **unsupported: object) -> Callable:
    """The same for a function returned by a transform: made now, once it is first needed in a graph.

    Args:
        unsupported: options by name that a graph refuses where they are given (neither None nor False).
    """
    given = [name for name, value in unsupported.items() if value is not None and value is not False]
    if given:
        reason = (f"{given[0]}= is not supported inside your own graph here: call the transform outside of @jit and "
                  "Cell.construct")

        def refused(*args):
            raise NotImplementedError(reason)
        return refused
    try:
        call = build(parsable(fn), *options)
    except TypeError:  # no source, say: the eager call explains it
        def call(*args):
            raise TypeError("this function cannot be compiled; call the transform outside of @jit to see why")

    def in_graph(*args):
        return _Checked(fn, call)(*args)
    return in_graph


@ms.jit_class
class _Checked:
    """`call`, which differentiates `fn`; looked at while MindSpore compiles the user's graph."""

    def __init__(self, fn, call):
        refuse_in_graph(fn)
        self.call = call

    def __call__(self, *args):
        return self.call(*args)


def positions_in_graph(grad_position) -> tuple[bool, tuple[int, ...]]:
    """Whether several positions were asked for, and which."""
    several = isinstance(grad_position, tuple | list)
    return several, tuple(grad_position) if several else (0 if grad_position is None else int(grad_position),)
