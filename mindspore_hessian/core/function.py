"""Make the user's callable compilable: any callable, called with any arguments, becomes a function
of flat Tensors.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
)
from typing import Any

from mindspore import Parameter, Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian._errors import NotCompilableError, RecompileWarning, warn
from mindspore_hessian.core import source
from mindspore_hessian.core.captures import GRAPH, Captures, foreign_modules, is_library, path_text


def unwrap_partial(fn: Any) -> tuple[Any, tuple, dict]:
    """The callable under ``functools.partial`` (nested too), with the arguments bound on the
    way.
    """
    args: tuple = ()
    kwargs: dict = {}
    while isinstance(fn, functools.partial):
        args, kwargs, fn = fn.args + args, {**fn.keywords, **kwargs}, fn.func
    if isinstance(fn, MethodType) and isinstance(fn.__self__, type):  # a classmethod
        args, fn = (fn.__self__, *args), fn.__func__
    return fn, args, kwargs


def parsable(fn: Any, memo: dict[int, Any] | None = None) -> Any:
    """The same behaviour as something that MindSpore's parser reads rightly.

    A lambda gets a source of its own, also where a closure captured it; an object with ``__call__``
    becomes its bound method; a partial becomes a function.

    Raises:
        TypeError: `fn` is not callable.
        NotCompilableError: `fn` has no Python source.
    """
    memo = {} if memo is None else memo
    if id(fn) in memo:
        return memo[id(fn)]
    if isinstance(fn, functools.partial):
        inner, args, kwargs = unwrap_partial(fn)
        return _bound(parsable(inner, memo), args, kwargs)
    if isinstance(fn, nn.Cell):
        return fn
    if isinstance(fn, MethodType):
        return MethodType(parsable(fn.__func__, memo), fn.__self__)
    if isinstance(fn, FunctionType):
        return _parsable_function(fn, memo)
    if isinstance(
        fn, BuiltinFunctionType | MethodDescriptorType | type
    ) or _compat.is_tensor_method(fn):
        raise _without_source(fn)
    if isinstance(fn, _compat.PRIMITIVE_TYPES):
        return fn
    if hasattr(fn, "__wrapped__"):
        raise NotCompilableError(
            f"{source.where(fn)} is a {type(fn).__name__} around a function (functools.lru_cache "
            "or alike), which MindSpore cannot compile. Pass the function itself: its "
            "`__wrapped__`."
        )
    if callable(fn):
        if isinstance(fn.__call__, MethodWrapperType):  # of C: it is its own
            raise _without_source(fn)
        return parsable(fn.__call__, memo)
    raise TypeError(f"fn must be callable, but got {type(fn).__name__}")


def _without_source(fn: Any) -> NotCompilableError:
    return NotCompilableError(
        f"{fn!r} has no Python source that MindSpore could compile. Wrap it: def f(x): return ..."
    )


def _bound(fn: Any, args: tuple, kwargs: dict) -> Callable:
    def bound(*more):
        return fn(*args, *more, **kwargs)

    return bound


def _parsable_function(fn: FunctionType, memo: dict[int, Any]) -> FunctionType:
    if getattr(fn, GRAPH, False) or hasattr(fn, "__wrapped_by_jit__"):
        return fn
    memo[id(fn)] = fn
    out = source.with_own_source(fn) if fn.__code__.co_name == "<lambda>" else fn
    cells = []
    for cell in fn.__closure__ or ():
        content = cell.cell_contents if _assigned(cell) else None
        inner = isinstance(content, functools.partial) or (
            type(content) is FunctionType and not is_library(content)
        )
        plain = (
            parsable(content, memo) if inner else content
        )  # at any depth: a closure of a closure of a lambda
        cells.append(cell if plain is content else CellType(plain))
    if cells != list(fn.__closure__ or ()):
        out = _compat.copy_function(out, closure=tuple(cells))
    memo[id(fn)] = out
    return out


def _assigned(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


@dataclass
class Call:
    """A callable with its arguments: the Tensors are `leaves`, all else is part of the function.

    Attributes:
        leaves: the Tensors among the arguments, flat.
        index: argument number -> leaf number, for arguments that are Tensors themselves.
        template: the call as source text, such as ``fn(x0, (x1, c0), key=x2)``; part of the cache
            key.
        constants: the arguments that are not Tensors, in order.
        given: the number of positional arguments, and the names of the others.
        applied: the last constant is a function of what `fn` returns.

    It is made for one public call, which may run many kernels; what was captured is read once for
    all of them.
    """

    fn: Any
    leaves: tuple[Tensor, ...] = ()
    index: dict[int, int] = field(default_factory=dict)
    template: str = ""
    constants: tuple = ()
    given: tuple[int, tuple[str, ...]] = (0, ())
    applied: bool = False
    _captures: dict[tuple, Captures] = field(default_factory=dict, repr=False)

    @classmethod
    def bind(cls, fn: Any, args: tuple, kwargs: dict | None = None, output: Any = None) -> Call:
        """Split the arguments of a call into Tensors and the rest.

        Args:
            output: which of the things that `fn` returns is meant: the index of a tuple, the key of
                a dict, a function of what it returns, or None.
        """
        target, before, named = unwrap_partial(fn)
        leaves: list[Tensor] = []
        constants: list = []

        def text(value: Any) -> str:
            if isinstance(value, Tensor):
                leaves.append(_compat.plain_tensor(value))
                return f"x{len(leaves) - 1}"
            if type(value) in (tuple, list, dict) and _has_tensor(value):
                if type(value) is dict:
                    return (
                        "{"
                        + ", ".join(f"{key!r}: {text(item)}" for key, item in value.items())
                        + "}"
                    )
                inner = "".join(text(item) + ", " for item in value)
                return f"({inner})" if type(value) is tuple else f"[{inner}]"
            constants.append(value)
            return f"c{len(constants) - 1}"

        parts, index = [], {}
        for number, value in enumerate((*before, *args)):
            if isinstance(value, Tensor) and number >= len(before):
                index[number - len(before)] = len(leaves)
            parts.append(text(value))
        given = len(parts), tuple(named := {**named, **(kwargs or {})})
        named.update(_default_cells(target, *given))
        parts += [f"{name}={text(value)}" for name, value in named.items()]
        template = f"fn({', '.join(parts)})"
        if output is not None:
            template = (
                f"{text(output)}({template})" if callable(output) else f"{template}[{text(output)}]"
            )
        return cls(
            target, tuple(leaves), index, template, tuple(constants), given, callable(output)
        )

    def captures(self, *more: Any, labels: bool = False, by_value: bool = False) -> Captures:
        """What the function, its constant arguments and `more` captured."""
        if labels:
            return Captures(self.fn, self.constants, *more, labels=True, by_value=by_value)
        key = (by_value, *map(id, more))
        if key not in self._captures:
            self._captures[key] = Captures(self.fn, self.constants, *more, by_value=by_value)
            if self._captures[key].slow or _slow_calls:
                _tell_slow(self.fn, self._captures[key])
        return self._captures[key]

    def function(self) -> Callable:
        """The call as a function of its leaves, made for MindSpore's parser.

        Raises:
            TypeError: the function does not take these arguments.
        """
        _check_arguments(self.fn, *self.given)
        make = _maker(self.template, len(self.leaves), len(self.constants))
        constants = self.constants
        if self.applied:
            constants = (*constants[:-1], parsable(constants[-1]))
        return make(parsable(self.fn), *constants)


def _check_arguments(fn: Any, count: int, names: tuple[str, ...]) -> None:
    """Raise TypeError where a function does not take so many arguments and these names, as far as
    its signature says (that of a decorated function is not what was decorated)."""
    target = fn.construct if isinstance(fn, nn.Cell) else fn
    try:
        signature = inspect.signature(target, follow_wrapped=False)
    except (TypeError, ValueError):  # of C
        return
    try:
        signature.bind(*range(count), **dict.fromkeys(names))
    except TypeError as err:
        others = f" and {', '.join(names)}" if names else ""
        raise TypeError(
            f"{source.where(fn)} was given {count} argument{'s' * (count != 1)}{others}, which it "
            f"does not take: {err}"
        ) from err


def _default_cells(fn: Any, count: int, names: tuple[str, ...]) -> dict[str, nn.Cell]:
    """The Cells among the default values that a call falls back on: MindSpore takes them as
    arguments only.
    """
    target = fn.construct if isinstance(fn, nn.Cell) else fn
    named = getattr(target, "__kwdefaults__", None) or {}
    defaults = (*(getattr(target, "__defaults__", None) or ()), *named.values())
    if not any(isinstance(value, nn.Cell) for value in defaults):
        return {}
    parameters = list(inspect.signature(target, follow_wrapped=False).parameters.values())
    left = [p for n, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY or n >= count]
    return {
        p.name: p.default for p in left if isinstance(p.default, nn.Cell) and p.name not in names
    }


_slow_calls: Counter[Any] = Counter()


def _tell_slow(fn: Any, captures: Captures) -> None:
    """Warn at the third slow reading in a row of what a function captured (the first also looks
    through its code; and a machine can be busy)."""
    code = getattr(getattr(fn, "__func__", fn), "__code__", type(fn))
    if not captures.slow:
        if _slow_calls[code] < 3:
            del _slow_calls[code]
        return
    _slow_calls[code] += 1
    if _slow_calls[code] == 3:
        warn(
            f"what {source.where(fn)} captured is read at every call, to see whether it changed, "
            f"and that takes long. Most of it is in {captures.largest()}. Pass it as a Tensor "
            "argument, make it a Parameter, keep lists of objects as arrays, or leave out what "
            "the function does not need.",
            RecompileWarning,
        )


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    items = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, tuple | list)
        else ()
    )
    return any(_has_tensor(item) for item in items)


@functools.lru_cache(maxsize=1024)
def _maker(template: str, leaves: int, constants: int) -> Callable:
    """``make(fn, *constants)`` -> a function with one plain parameter a leaf, which MindSpore can
    differentiate.
    """
    free = "".join(f", c{number}" for number in range(constants))
    names = ", ".join(f"x{number}" for number in range(leaves))
    text = (
        f"def make(fn{free}):\n    def call({names}):\n        return {template}\n    return call\n"
    )
    name = source.register(text, "call")
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, name, "exec"), space)  # our own text: names and brackets only
    return space["make"]


def _put(space: Any, name: Any, value: Any) -> None:
    if isinstance(space, CellType):
        space.cell_contents = value
    else:
        space[name] = value


@contextlib.contextmanager
def standing_in(captures: Captures) -> Iterator[tuple[Parameter, ...]]:
    """While MindSpore compiles, Parameters in the place of the captured Tensors that are inputs of
    the graph, in their order."""
    inputs = list(captures.inputs.values())
    stand_ins = tuple(
        _compat.reference(one.tensor, f"{_STAND_IN}{number}") for number, one in enumerate(inputs)
    )
    tuples = list(captures.tuples.values()) if inputs else []
    try:
        for one, stand_in in zip(inputs, stand_ins, strict=True):
            for space, name in one.places:
                _put(space, name, stand_in)
        for held in reversed(tuples):  # the inner ones first
            for space, name in held.places:
                _put(space, name, tuple(held.parts))
        yield stand_ins
    finally:
        for one in inputs:
            for space, name in one.places:
                _put(space, name, one.tensor)
        for held in tuples:
            for space, name in held.places:
                _put(space, name, held.whole)


_STAND_IN = "mindspore_hessian.captured."  # and its number: the name of such a Parameter


@contextlib.contextmanager
def readable(captures: Captures) -> Iterator[None]:
    """While MindSpore compiles, let it read the user's functions as Python runs them.

    Checks that their source is what Python runs; hides ``__wrapped__``, since the parser would skip
    the wrapper; and puts the right globals in place of modules that are not the functions' own.
    """
    for fn, path in captures.functions.items():
        # what has no text may stand where the program never comes by; if it does, MindSpore says so
        if fn.__code__.co_name == "<lambda>" or not (path[0] is None or source.has_source(fn)):
            continue
        try:
            source.check_unchanged(fn)
        except NotCompilableError as err:
            raise NotCompilableError(f"{err} It is reached as {path_text(path)}.") from err
    source.check_private_names(captures.functions, captures.kinds)
    hidden: list[tuple[Any, Any]] = [
        (fn, fn.__wrapped__) for fn in captures.functions if hasattr(fn, "__wrapped__")
    ]
    modules = foreign_modules(captures.functions)
    before = {name: sys.modules.get(name) for name in modules}
    for fn, _ in hidden:
        del fn.__wrapped__
    sys.modules.update(modules)
    try:
        yield
    except Exception as err:
        if cause := source.cause(captures.functions, err):
            raise cause from err
        raise
    finally:
        for fn, inner in hidden:
            fn.__wrapped__ = inner
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
