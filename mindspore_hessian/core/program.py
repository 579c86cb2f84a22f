"""From a public call to a compiled graph: what every transform shares."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
from mindspore import ops

from mindspore_hessian.arguments import check_bool, is_integer, shown
from mindspore_hessian.core import cache
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.in_graph import tensors_in
from mindspore_hessian.core.inplace import refuse_in_graph
from mindspore_hessian.core.space import Variables, as_args, check_finite, check_position, variables

_EVERY = ops.GradOperation(get_all=True)
_EVERY_AND_WEIGHTS = ops.GradOperation(get_all=True, get_by_list=True)
HVP_MODES = {"auto": "revrev", "revrev": "revrev", "fwdrev": "fwdrev"}


@dataclass(frozen=True)
class Problem:
    """A user's call, checked: the function with its arguments, and what is differentiated."""

    call: Call
    vars: Variables
    has_aux: bool
    aux_axes: tuple[int | None, ...] | None = None  # of samples, for a function of one of them

    @classmethod
    def of(cls, fn: Any, args: tuple, kwargs: dict, grad_position: Any, weights: Any, has_aux: Any,
           one: bool = False) -> Problem:
        """Check the arguments that all transforms have in common."""
        check_transform(fn, grad_position, has_aux)
        call = Call.bind(fn, args, kwargs)
        return cls(call, variables(call, args, grad_position, weights, one), has_aux)

    @classmethod
    def of_inputs(cls, fn: Any, inputs: Any, grad_position: Any, weights: Any, has_aux: Any) -> Problem:
        """The same for products, which take ``inputs``: a Tensor or a tuple."""
        return cls.of(fn, as_args(inputs), {}, grad_position, weights, has_aux, isinstance(inputs, ms.Tensor))

    def run(self, name: str, kernel: Callable, options: tuple = (), extras: tuple = (), also: tuple = (),
            guard: tuple[Callable | None, Callable] | None = None) -> Any:
        """Compile (once) and run a kernel.

        Args:
            name: of the public function, for the cache and for messages.
            kernel: ``kernel(f, n, variables)`` gives the graph function of the n leaves and then `extras`. It
                returns the result; with ``has_aux``, the auxiliary outputs are added to it.
            options: what `kernel` depends on beside its arguments, hashable.
            extras: Tensors after the leaves.
            also: captured callables beside the function.
            guard: two kernels that must give the same numbers at the first call, as `cache.execute` has it.
        """
        n, vars_, has_aux = len(self.call.leaves), self.vars, self.has_aux

        def build(f: Callable) -> Callable:
            if not has_aux:
                return kernel(f, n, vars_)
            return _with_aux(kernel(first_output(f), n, vars_), self._auxiliary(f), n)

        def output(f: Callable) -> Callable:
            return first_output(f) if has_aux else f

        def checked(kernel: Callable | None) -> Callable | None:
            return None if kernel is None else lambda f: kernel(output(f), n, vars_)

        def first(f: Callable) -> Callable:
            slope = _first_gradient(output(f), vars_.parameters)

            def run(*tensors):
                return slope(*tensors[:n])
            return run

        guards = guard and (checked(guard[0] or (kernel if has_aux else None)), checked(guard[1]))
        return cache.execute(name, self.call, build, (*options, *vars_.key, has_aux, self.aux_axes), extras,
                             vars_.weights, also, guards, first)

    def in_graph(self, kernel: Callable, pack: Callable, given: Any, also: tuple = ()) -> Callable:
        """A kernel as a function of `given` (stand-ins), for the user's own graph; ``pack(value)`` is compiled too."""
        refuse_in_graph(self.call.fn, *also)
        cache.check_captured(self.vars.weights, self.call.captures())
        f, n, has_aux, select = self.call.function(), len(self.call.leaves), self.has_aux, tensors_in(given)
        run = kernel(first_output(f) if has_aux else f, n, self.vars)
        auxiliary = self._auxiliary(f)

        def call(values):
            tensors = select(values)
            value = pack(run(*tensors))
            if has_aux:
                return value, auxiliary(*tensors[:n])
            return value
        return call

    def of_samples(self, axes: tuple[int | None, ...]) -> Problem:
        """The same where the function is of one sample: its auxiliary outputs are then those of each."""
        return replace(self, aux_axes=axes)

    def _auxiliary(self, f: Callable) -> Callable:
        auxiliary, axes = other_outputs(f), self.aux_axes
        return auxiliary if axes is None else ms.vmap(auxiliary, axes if len(axes) > 1 else axes[0])

    def finish(self, name: str, result: Any, pack: Callable) -> Any:
        """Check a kernel's result, put it in the user's structure, and add the auxiliary outputs."""
        value, aux = result if self.has_aux else (result, None)
        check_finite(name, value)
        return (pack(value), aux) if self.has_aux else pack(value)


def _with_aux(kernel: Callable, auxiliary: Callable, n: int) -> Callable:
    def both(*tensors):
        return kernel(*tensors), auxiliary(*tensors[:n])
    return both


def check_transform(fn: Any, grad_position: Any, has_aux: Any) -> None:
    """What a transform that only knows its function can check."""
    if not callable(fn):
        raise TypeError(f"fn must be callable, but got {type(fn).__name__}")
    check_position(grad_position)
    check_bool("has_aux", has_aux)


def check_auto_only(mode: str, **options: bool) -> None:
    """Raise where an option is given that works with ``mode="auto"`` only, and another mode is asked for."""
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
            raise ValueError("with has_aux=True, fn must return a tuple (output, aux, ...) of two or more")
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


def _first_gradient(f, ws):
    """``g(*xs)``: the gradient of the sum of all outputs by everything; only compiled, to learn from it."""
    if ws is None:
        def g(*xs):
            return _EVERY(f)(*xs)
    else:
        def g(*xs):
            return _EVERY_AND_WEIGHTS(f, ws)(*xs)
    return g
