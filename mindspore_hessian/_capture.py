"""What a function captured: MindSpore freezes it into the compiled graph, so the cache must know when it changed.

`Captures(fn)` walks code, closure cells, defaults, globals, and the attributes of objects and networks that the
function can reach, and gives a token: equal tokens mean that the compiled graph is the same. Weights are left out,
since compiled graphs read them anew; Tensors count by value; everything unknown counts by identity and is kept alive.
"""
from __future__ import annotations

import functools
import hashlib
import sys
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindspore_hessian import _compat, _source

_ATOMS = (int, bool, str, bytes, type(None), type(Ellipsis), complex)
_LIBRARIES = frozenset({"mindspore", "numpy", "scipy", "builtins", "math", "functools", "typing", "collections",
                        "mindspore_hessian", "operator", "itertools", "abc", "types"})
GRAPH = "__mindspore_hessian_graph__"  # set on functions of ours that MindSpore reads through ``__wrapped__``


def is_library(obj: Any) -> bool:
    """Whether `obj` belongs to a library, which does not change while the process runs."""
    name = getattr(obj, "__module__", None) or ""
    if name.split(".", 1)[0] not in _LIBRARIES:
        return False
    if type(obj) is not FunctionType:
        return True
    module = sys.modules.get(name)  # a function can say that it is from a module, and have other globals
    return module is None or obj.__globals__ is vars(module) or _source.is_ours(obj.__code__)


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """The global and attribute names in a code object and in the functions defined inside it."""
    names = dict.fromkeys(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names.update(dict.fromkeys(_names(const)))
    return tuple(names)


@functools.lru_cache(maxsize=1)
def _bare_cell() -> frozenset[str]:
    """Attributes that MindSpore itself keeps on every Cell: bookkeeping, not the user's."""
    return frozenset(vars(nn.Cell())) | frozenset(name for name in dir(nn.Cell) if not name.startswith("__"))


def tensor_token(tensor: Tensor) -> tuple:
    """A Tensor by value."""
    return ("tensor", str(tensor.dtype), tuple(tensor.shape), _digest(_compat.to_numpy(tensor)))


def _digest(array: np.ndarray) -> bytes:
    """Of the values, without a copy of them."""
    whole = np.ascontiguousarray(array)
    return hashlib.sha1(whole, usedforsecurity=False).digest()  # type: ignore[arg-type]  # it has the buffer


class Captures:
    """The token of a function, and what the walk met on the way.

    Attributes:
        token: hashable; equal for functions that compile to the same graph.
        parameters: id -> Parameter, every one that the function can reach.
        functions: the user's functions in reach (not those of libraries).
        training: whether a network in reach is in training mode.
    """

    def __init__(self, *roots: Any, labels: bool = False):
        self._token: list = []
        self.labels: list[str] | None = [] if labels else None
        self._path: list[str] = []
        self.parameters: dict[int, Parameter] = {}
        self.functions: list[FunctionType] = []
        self.training = False
        self._kept: list = []
        self._seen: dict[int, int] = {}
        for root in roots:
            self._walk(root, "function")
        self.token = tuple(self._token)

    def _add(self, *items) -> None:
        self._token.append(items)
        if self.labels is not None:
            self.labels.append(".".join(self._path))

    def _identity(self, value: Any) -> None:
        self._kept.append(value)
        self._add("id", id(value))

    def _walk(self, value: Any, name: str) -> None:
        self._path.append(name)
        try:
            self._dispatch(value)
        finally:
            self._path.pop()

    def _dispatch(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS:
            self._add(kind, value)
        elif kind is float or isinstance(value, np.generic):
            self._add(kind, repr(value))  # repr tells -0.0 from 0.0 and equals itself for nan
        elif isinstance(value, Parameter):
            self.parameters[id(value)] = value
            self._add("parameter", id(value), str(value.dtype), tuple(value.shape))
        elif isinstance(value, Tensor):
            self._add(*tensor_token(value))
        elif kind is FunctionType:
            self._function(value)
        elif getattr(kind, GRAPH, False):  # a Recipe: what it makes its graph function of
            self._walk(value.build, "build")
        elif isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                self._walk(value.tolist(), "array")
            else:
                self._add("array", value.dtype.str, value.shape, _digest(value))
        elif self._once(value):
            self._structure(value, kind)

    def _structure(self, value: Any, kind: type) -> None:
        """Containers and objects: met once each, since they can contain themselves."""
        if isinstance(value, dict):
            self._add(kind, len(value))
            for key, item in value.items():
                self._add("key", key) if isinstance(key, str | int) else self._identity(key)
                self._walk(item, str(key))
        elif isinstance(value, list | tuple | set | frozenset):
            self._add(kind, len(value))
            for index, item in enumerate(value):
                self._walk(item, f"[{index}]")
        elif kind is MethodType:
            self._walk(value.__func__, value.__func__.__name__)
            self._walk(value.__self__, "self")
        elif isinstance(value, functools.partial):
            for part, name in ((value.func, "func"), (value.args, "args"), (value.keywords, "keywords")):
                self._walk(part, name)
        elif isinstance(value, nn.Cell):
            self._cell(value)
        elif kind is BuiltinFunctionType or isinstance(value, ModuleType) or is_library(kind):
            self._identity(value)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._identity(value)
            self._class(kind)
            for name, item in vars(value).items() if hasattr(value, "__dict__") else ():
                self._walk(item, name)

    def _once(self, value: Any) -> bool:
        """False at the second meeting, which the token records by its number."""
        if id(value) in self._seen:
            self._add("again", self._seen[id(value)])
            return False
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # so that the id stays its own
        return True

    def _function(self, fn: FunctionType) -> None:
        if getattr(fn, GRAPH, False) or hasattr(fn, "__wrapped_by_jit__"):
            self._walk(getattr(fn, "__wrapped__"), fn.__name__)  # noqa: B009 -- what MindSpore reads in its place
            return
        if not self._once(fn):
            return
        if is_library(fn):
            if fn.__closure__ is None:
                self._identity(fn)
                return
        else:
            self.functions.append(fn)
        self._add("code", fn.__code__)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                self._add("empty", name)
            else:
                self._walk(content, name)
        if fn.__defaults__:
            self._walk(fn.__defaults__, "defaults")
        if fn.__kwdefaults__:
            self._walk(fn.__kwdefaults__, "defaults")
        if not is_library(fn):
            self._globals(fn)

    def _globals(self, fn: FunctionType) -> None:
        names = _names(fn.__code__)
        for name in names:
            if name not in fn.__globals__:
                continue
            value = fn.__globals__[name]
            if isinstance(value, ModuleType):
                if value.__name__.split(".", 1)[0] not in _LIBRARIES:
                    space = vars(value)  # a user's module used as a name space: config.SCALE
                    for attribute in names:
                        if attribute in space and not isinstance(space[attribute], ModuleType):
                            self._walk(space[attribute], f"{name}.{attribute}")
            else:
                self._walk(value, name)

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            if is_library(base) or not self._once(base):
                break
            for name, item in vars(base).items():
                if isinstance(item, staticmethod | classmethod):
                    item = item.__func__
                if not name.startswith("__") or name == "__call__":
                    self._walk(item, name)

    def _cell(self, cell: nn.Cell) -> None:
        self._identity(cell)
        self.training = self.training or bool(cell.training)
        self._add("training", bool(cell.training), str(cell.get_flags()))
        if not is_library(type(cell)):
            self._class(type(cell))
        bare = _bare_cell()
        space = vars(cell)
        for name in ("_params", "_cells"):
            for key, item in (space.get(name) or {}).items():
                self._walk(item, key)
        for name, item in space.items():
            if name not in bare:
                self._walk(item, name)


def foreign_modules(functions: list[FunctionType]) -> dict[str, ModuleType]:
    """Stand-ins for modules whose name space is not that of the functions that claim to be from them.

    MindSpore looks a function's globals up in ``sys.modules[fn.__module__]``. For functions of a doctest, of
    ``runpy``, or of a name space given to exec, that is another dictionary.
    """
    out: dict[str, ModuleType] = {}
    for fn in functions:
        name = fn.__module__
        module = sys.modules.get(name)
        if module is not None and vars(module) is fn.__globals__:
            continue
        if name not in out:
            out[name] = ModuleType(name)
            if module is not None:
                vars(out[name]).update(vars(module))
        vars(out[name]).update(fn.__globals__)
    return out

