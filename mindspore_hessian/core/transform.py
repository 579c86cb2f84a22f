"""What a public transform is: its arguments, checked, become an `Evaluation`, which runs at once
through the cache, or is built into the user's own graph. So a transform is written once.

Two kinds: a product is evaluated where it is called (`evaluates`); a transform of a function alone
makes a function (`makes`), which is evaluated where that is called (`derived`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.core.cache import check_captured
from mindspore_hessian.core.in_graph import readable_in_graph, tensors_in, twin_of, twin_of_derived
from mindspore_hessian.core.inplace import refuse_in_graph
from mindspore_hessian.core.program import Point, Program
from mindspore_hessian.core.space import check_finite

P = ParamSpec("P")


def as_it_is(value):
    """The value. MindSpore compiles this function."""
    return value


@dataclass(frozen=True)
class Evaluation:
    """A transform at a point, all arguments checked.

    Attributes:
        point: the function, where, and what is differentiated.
        program: all of it in one graph, by reverse derivatives: in the user's graph no forward
            derivative is compared with anything, and these lose no term. The numbers are the same
            in every mode.
        extras: Tensors after those of the point.
        pack: of the program's value, in the structure of the user's; compiled by MindSpore, too.
        run: how the value (and aux) is computed outside of graphs; None: by `program`.
        recorded: whether that is so, too, where PyNative records for a gradient. It sees nothing of
            what is put together in numpy, and its gradient would be 0: by `program`, unless said
            otherwise.
        outside_only: an option that is refused inside the user's graph.
    """

    point: Point
    program: Program
    extras: tuple[Tensor, ...] = ()
    pack: Callable = as_it_is
    run: Callable[[], tuple[Any, Any]] | None = None
    recorded: bool = False
    outside_only: str = ""

    def result(self) -> Any:
        """The value, checked and in the structure of the user's; ``(value, aux)`` where there is
        aux.
        """
        if self.run is None or (_compat.is_recording() and not self.recorded):
            value, aux = self.program.run(self.point, self.extras)
        else:
            value, aux = self.run()
        check_finite(self.program.name, value)
        value = self.pack(value)
        return (value, aux) if self.point.has_aux else value

    def in_graph(self, given: Any) -> Callable:
        """The same as a function of `given`, of which the point was made (stand-ins), for the
        user's own graph.
        """
        point, name = self.point, self.program.name
        if self.outside_only:
            raise NotImplementedError(
                f"{self.outside_only}= is not supported inside your own graph: call {name} "
                "outside of @jit and Cell.construct"
            )
        functions = (point.call.fn,) if point.loss is None else (point.call.fn, point.loss.fn)
        refuse_in_graph(*functions)
        check_captured(point.space.weights, point.call.captures(*point.also))
        run, pack, has_aux = (
            self.program.graph(point.function(), point.space),
            self.pack,
            point.has_aux,
        )
        select = tensors_in(given, (*point.tensors, *self.extras))

        def call(values):
            if has_aux:
                value, aux = run(*select(values))
                return pack(value), aux
            return pack(run(*select(values)))

        return call


def evaluates(*values: str) -> Callable[[Callable[P, Evaluation]], Callable[P, Any]]:
    """Decorator of a function that makes an `Evaluation` of its arguments: it becomes the public
    function, with its docstring, and a twin for graphs. `values` are the parameters that hold
    Tensors."""

    def decorate(body: Callable[P, Evaluation]) -> Callable[P, Any]:
        @functools.wraps(body)
        def public(*args: P.args, **kwargs: P.kwargs) -> Any:
            return body(*args, **kwargs).result()

        setattr(public, "__signature__", inspect.signature(body))  # noqa: B010 -- else it is that of the twin
        return readable_in_graph(public, twin_of(body, Evaluation.in_graph, values))

    return decorate


def makes(body: Callable[P, Callable]) -> Callable[P, Callable]:
    """Decorator of a transform that returns a function of `derived`: it gets a twin for graphs."""
    twin = twin_of(body, lambda made, given: made, ())
    setattr(body, "__signature__", inspect.signature(body))  # noqa: B010
    return readable_in_graph(body, twin)


def derived(
    name: str, fn: Any, evaluate: Callable[[tuple, dict], Evaluation]
) -> Callable[..., Any]:
    """The function called `name` that a transform of `fn` returns: ``evaluate(args, kwargs)`` at
    its arguments.
    """

    def derivative(*args, **kwargs):
        return evaluate(args, kwargs).result()

    def in_graph(args, kwargs):
        return evaluate(args, kwargs).in_graph((args, kwargs))

    derivative.__name__ = derivative.__qualname__ = name
    derivative.__module__ = evaluate.__module__
    return readable_in_graph(derivative, twin_of_derived(fn, in_graph))
