"""From a user's call to a compiled graph: what transforms and operators share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops, vmap

from mindspore_hessian.arguments import check_bool, is_integer, shown
from mindspore_hessian.core import cache
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.space import Space, as_args, check_position

_EVERY = ops.GradOperation(get_all=True)
_EVERY_AND_WEIGHTS = ops.GradOperation(get_all=True, get_by_list=True)
_BY_WEIGHTS = ops.GradOperation(get_by_list=True)


@dataclass(frozen=True)
class Function:
    """A user's call as MindSpore compiles it; always a value and what else was returned.

    Attributes:
        value: the differentiated output, as a function of the `n` leaves.
        aux: the other outputs, as a function of them; None where there are none.
        loss: a function of `value` and the Tensors after the leaves; None where there is none.
    """

    value: Callable
    n: int
    aux: Callable | None = None
    loss: Callable | None = None

    @property
    def whole(self) -> Callable:
        """The loss of the value, or the value, as a function of all Tensors."""
        if self.loss is None:
            return self.value
        f, loss, n = self.value, self.loss, self.n

        def both(*xs):
            return loss(f(*xs[:n]), *xs[n:])

        return both


@dataclass(frozen=True)
class Point:
    """A user's call, checked: the function at its arguments, and what is differentiated there.

    Attributes:
        call: of the function.
        space: what is differentiated.
        has_aux: the function returns ``(value, aux, ...)``.
        loss: a call whose first argument (after what a partial holds) stands for the value; None
            where there is none.
    """

    call: Call
    space: Space
    has_aux: bool = False
    loss: Call | None = None

    @classmethod
    def of(
        cls,
        fn: Any,
        args: tuple,
        kwargs: dict,
        grad_position: Any,
        weights: Any,
        has_aux: Any,
        one: bool = False,
    ) -> Point:
        """Check the arguments that all transforms have in common."""
        check_transform(fn, grad_position, has_aux)
        call = Call.bind(fn, args, kwargs)
        return cls(call, Space.of(call, args, grad_position, weights, one), has_aux)

    @classmethod
    def of_inputs(
        cls, fn: Any, inputs: Any, grad_position: Any, weights: Any, has_aux: Any
    ) -> Point:
        """The same for products, which take ``inputs``: a Tensor or a tuple."""
        return cls.of(
            fn, as_args(inputs), {}, grad_position, weights, has_aux, isinstance(inputs, ms.Tensor)
        )

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The leaves of the function, then those of the loss."""
        if self.loss is None:
            return self.call.leaves
        place = self.loss.index[0]
        return (*self.call.leaves, *self.loss.leaves[:place], *self.loss.leaves[place + 1 :])

    @property
    def also(self) -> tuple:
        """What is captured beside the function."""
        return () if self.loss is None else (self.loss.fn, *self.loss.constants)

    @property
    def template(self) -> tuple:
        """The part of a cache key that says how the calls are made of the Tensors."""
        call, loss = self.call, self.loss
        if loss is None:
            return call.template, self.has_aux
        return call.template, self.has_aux, loss.template, len(call.leaves)

    def function(self, call: Callable | None = None) -> Function:
        """What a builder gets. `call` is ``self.call.function()``, where it is there already.

        Raises:
            TypeError: a function does not take these arguments.
        """
        f = call or self.call.function()
        value, aux = (first_output(f), other_outputs(f)) if self.has_aux else (f, None)
        loss = (
            None if self.loss is None else _output_first(self.loss.function(), self.loss.index[0])
        )
        return Function(value, len(self.call.leaves), aux, loss)


Builder = Callable[[Function, Space], Callable]


@dataclass(frozen=True)
class Program:
    """A graph to run at a point, compiled once.

    Attributes:
        name: for the cache of compiled functions, and for messages.
        build: ``build(function, space)`` makes the graph function of the point's Tensors, then the
            extras.
        options: what `build` depends on beside its arguments, hashable.
        reference: another builder, whose graph must give the same numbers at the first call: the
            same by reverse derivatives alone. None: nothing is compared.
        compared: the builder of the part that is compared, where that is not all.
        axes: None, or of each Tensor the axis of the samples (None where it has none), for a graph
            of one sample that is run for each of them.
        sees_all: with `axes`: what `build` makes takes all samples by itself; only the auxiliary
            outputs are of one.
    """

    name: str
    build: Builder
    options: tuple = ()
    reference: Builder | None = None
    compared: Builder | None = None
    axes: tuple[int | None, ...] | None = None
    sees_all: bool = False

    def over(self, axes: tuple[int | None, ...]) -> Program:
        """The same for each of the samples along `axes`; inputs without one, and weights, are
        shared.
        """
        return replace(self, axes=axes, options=(*self.options, axes))

    def run(self, point: Point, extras: tuple[Tensor, ...] = ()) -> tuple[Any, Any]:
        """``(value, aux)``; aux is None where the function has none."""
        result = cache.execute(self, point, extras)
        return result if point.has_aux else (result, None)

    def graph(self, function: Function, space: Space) -> Callable:
        """The graph function, with the auxiliary outputs after the value where there are any."""
        kernel, aux = self.build(function, space), function.aux
        if not self.sees_all:
            kernel = self._of_samples(kernel)
        return kernel if aux is None else _with_aux(kernel, self._of_samples(aux), function.n)

    def _of_samples(self, graph: Callable) -> Callable:
        axes = self.axes
        return graph if axes is None else vmap(graph, in_axes=axes if len(axes) > 1 else axes[0])

    def lower(self, function: Function, point: Point) -> Callable:
        """The first gradient, of the same Tensors: where a rule is missing, it tells the lines and
        the kernels.
        """
        slope, count = first_gradient(function, point.space), len(point.tensors)

        def run(*tensors):
            return slope(*tensors[:count])

        return run


def _output_first(loss: Callable, place: int) -> Callable:
    """A function of Tensors with the one at `place` before the others."""
    if place == 0:
        return loss

    def moved(out, *rest):
        return loss(*rest[:place], out, *rest[place:])

    return moved


def _with_aux(kernel: Callable, auxiliary: Callable, n: int) -> Callable:
    def both(*tensors):
        return kernel(*tensors), auxiliary(*tensors[:n])

    return both


def check_transform(fn: Any, grad_position: Any, has_aux: Any) -> None:
    """What a transform that only knows its function can check."""
    check_callable("fn", fn)
    check_position(grad_position)
    check_bool("has_aux", has_aux)


def check_callable(name: str, fn: Any) -> None:
    """Raise TypeError where it cannot be called."""
    if not callable(fn):
        raise TypeError(f"{name} must be callable, but got {type(fn).__name__}")


def check_auto_only(mode: str, **options: bool) -> None:
    """Raise where an option is given that works with ``mode="auto"`` only, and another mode is
    asked for.
    """
    for name, given in options.items():
        if given and mode != "auto":
            raise ValueError(f"{name} works with mode='auto' only, but mode is {mode!r}")


def check_chunk(chunk_size: Any) -> None:
    """Raise where `chunk_size` is neither None nor a positive int."""
    if chunk_size is None:
        return
    if not is_integer(chunk_size):
        raise TypeError(f"chunk_size must be an int or None, but got {shown(chunk_size)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, but got {chunk_size}")


def first_output(f):
    """The differentiated output of a function that returns (out, aux, ...)."""

    def differentiated(*xs):
        out = f(*xs)
        if not isinstance(out, tuple) or len(out) < 2:
            raise ValueError(
                "with has_aux=True, fn must return a tuple (output, aux, ...) of two or more"
            )
        return out[0]

    return differentiated


def other_outputs(f):
    """The auxiliary outputs."""

    def auxiliary(*xs):
        out = f(*xs)
        if len(out) == 2:
            return out[1]
        return out[1:]

    return auxiliary


def first_gradient(function: Function, space: Space) -> Callable:
    """``g(*tensors)``: the gradient of the sum of all outputs; only compiled, to learn from it."""
    f, ws = function.whole, space.parameters
    if function.loss is not None:

        def g(*xs):
            return _BY_WEIGHTS(f, ws)(*xs)
    elif ws is None:

        def g(*xs):
            return _EVERY(f)(*xs)
    else:

        def g(*xs):
            return _EVERY_AND_WEIGHTS(f, ws)(*xs)

    return g
