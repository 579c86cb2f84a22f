"""What a function captured: MindSpore freezes it into the compiled graph, so the cache must know
when it changed.

`Captures(fn)` walks what the function can reach, and gives a token: equal tokens mean that the
compiled graph is the same. Code is followed by what it reads (`_reads`): a global, and of an object
only attributes whose name some code in reach says, or all of them where that code is not the user's
or reads by a name made at run time (getattr). Weights are left out, since compiled graphs read them
anew; so are Tensors that a variable or an attribute holds, where the graph can take them as inputs
(`Captures.inputs`). Other Tensors, arrays and containers count by value. What has a state that
cannot be read is never equal to anything, so that the graph is compiled anew.
"""

from __future__ import annotations

import array
import builtins
import collections
import copyreg
import functools
import hashlib
import itertools
import marshal
import mmap
import os
import sys
import sysconfig
import time
import weakref
from abc import ABC
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any, Generic, NamedTuple, Protocol

import mindspore as ms
import numpy as np
from mindspore import COOTensor, CSRTensor, Parameter, Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian.core import source
from mindspore_hessian.core.reads import Chain, reads

# set on functions of ours that MindSpore reads through ``__wrapped__``
GRAPH = "__mindspore_hessian_graph__"

_PLAIN = frozenset({int, bool, str, bytes, type(None), complex, float})
_ATOMS = _PLAIN - {float} | {type(Ellipsis), type(NotImplemented), CodeType}
# Packages that show or record what happens: no graph depends on their objects, which change all the
# time
_TOOLS = frozenset(
    {
        "tqdm",
        "wandb",
        "tensorboard",
        "tensorboardX",
        "mlflow",
        "swanlab",
        "loguru",
        "rich",
        "absl",
        "IPython",
        "ipykernel",
        "psutil",
        "matplotlib",
        "pytest",
        "_pytest",
        "pluggy",
    }
)
# Packages whose code does not change while the process runs; the standard library is another, all
# others are walked
_LIBRARIES = _TOOLS | {
    "mindspore",
    "numpy",
    "scipy",
    "mindspore_hessian",
    "torch",
    "jax",
    "tensorflow",
    "pandas",
    "PIL",
    "cv2",
    "sklearn",
    "h5py",
}
# modules whose functions do not read attributes of the objects they are given by names that the
# user's code hides
_BLIND = _LIBRARIES | {
    "math",
    "cmath",
    "os",
    "posixpath",
    "ntpath",
    "sys",
    "time",
    "random",
    "re",
    "string",
    "logging",
    "warnings",
    "typing",
    "collections",
    "abc",
    "enum",
    "itertools",
    "functools",
    "numbers",
    "types",
    "pathlib",
    "datetime",
    "decimal",
    "fractions",
    "contextlib",
    "array",
    "threading",
    "_thread",
}
_DYNAMIC = frozenset(
    {"getattr", "hasattr", "vars", "dir", "eval", "exec", "globals", "locals", "__import__"}
)
_DYNAMIC_ATTRIBUTES = frozenset(
    {"__dict__", "__getattribute__", "__getattr__", "__slots__", "__dataclass_fields__"}
)
# modules of objects that do something outside of the program, which no graph depends on: their
# plain values count
_SERVICES = frozenset(
    {
        "logging",
        "threading",
        "_thread",
        "io",
        "_io",
        "socket",
        "_socket",
        "subprocess",
        "asyncio",
        "multiprocessing",
        "concurrent",
        "queue",
        "_queue",
        "select",
        "selectors",
        "ssl",
        "_ssl",
        "tempfile",
        "warnings",
        "importlib",
        "_frozen_importlib",
        "_frozen_importlib_external",
        "_abc",
        "sqlite3",
        "http",
        "urllib",
        "traceback",
        "inspect",
        "unittest",
        "signal",
    }
)
# of a class: what no instance reads, or what only making one does
_SILENT = frozenset(
    {
        "__module__",
        "__doc__",
        "__dict__",
        "__weakref__",
        "__qualname__",
        "__annotations__",
        "_abc_impl",
        "__slots__",
        "__abstractmethods__",
        "__parameters__",
        "__orig_bases__",
        "__match_args__",
        "__repr__",
        "__str__",
        "__del__",
        "__reduce__",
        "__reduce_ex__",
        "__getstate__",
        "__setstate__",
        "__init_subclass__",
        "__class_getitem__",
        "__sizeof__",
        "__setattr__",
        "__delattr__",
    }
)
_MAKING = ("__init__", "__new__", "__post_init__")
_CELL_NAMES = ("construct", "bprop")
_PIECE = 2**23  # bytes that one thread digests at a time
SLOW = 0.05  # seconds that a walk may take
# dtypes of Tensors that can be inputs of a graph; those of masks decide what is in the graph
_MOST_HELD = 64  # items of a container in which Tensors are inputs
_INPUTS = frozenset({ms.float16, ms.bfloat16, ms.float32, ms.float64, ms.int32, ms.int64})

_of_a_kind: Any = functools.lru_cache(maxsize=4096)  # of a function of a class

_STDLIB = tuple(
    {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.__file__)}
)

Path = tuple[Any, Any]  # (the path before, a name or number)


def path_text(path: Path | None) -> str:
    """``network.layers.0.act``."""
    names: list[str] = []
    while path is not None:
        path, name = path
        names.append(f"[{name}]" if type(name) is int else str(name))
    return ".".join(reversed(names))


@functools.lru_cache(maxsize=1024)
def _names_in(code: CodeType) -> set[str]:
    """The names that a piece of code and those inside it read."""
    inner = [_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _is_library_root(root: str) -> bool:
    if root in _LIBRARIES:
        return True
    if root not in sys.stdlib_module_names:
        return False
    file = getattr(
        sys.modules.get(root), "__file__", None
    )  # a module of the user's can have such a name, too
    return file is None or (file.startswith(_STDLIB) and "site-packages" not in file)


def _root(obj: Any) -> str:
    name = getattr(obj, "__module__", None)
    return name.split(".", 1)[0] if isinstance(name, str) else ""


def is_library(obj: Any) -> bool:
    """Whether a class or function belongs to a library, which does not change while the process
    runs.
    """
    root = _root(obj)
    if not _is_library_root(root):
        return False
    if type(obj) is not FunctionType:
        return True
    module = sys.modules.get(
        obj.__module__
    )  # a function can say that it is from a module, and have other globals
    return module is None or obj.__globals__ is vars(module) or source.is_ours(obj.__code__)


@functools.lru_cache(maxsize=1)
def _bare_cell() -> frozenset[str]:
    """Attributes that MindSpore itself keeps on every Cell: bookkeeping, not the user's."""
    names = {name for name in dir(nn.Cell) if not name.startswith("__")}
    return (
        frozenset(vars(nn.Cell()))
        | names - set(_CELL_NAMES)
        | {"_func_graph_flags", "_cell_init_args"}
    )


def tensor_token(tensor: Tensor) -> tuple:
    """A Tensor by value."""
    return ("tensor", str(tensor.dtype), tuple(tensor.shape), _digest(_compat.to_numpy(tensor)))


def _sha(piece: Any) -> bytes:
    return hashlib.sha1(piece, usedforsecurity=False).digest()


def _digest(values: Any) -> bytes:
    """Of the values, without a copy of them; large ones by several threads."""
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    whole = memoryview(values)
    if whole.nbytes <= 2 * _PIECE:
        return _sha(whole)
    with ThreadPoolExecutor() as pool:
        return _sha(
            b"".join(
                pool.map(_sha, (whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE)))
            )
        )


def _is_plain(value: Any) -> bool:
    """Whether a container holds nothing but numbers, strings and plain containers of them. Fast on
    a million.
    """
    level: list = [value]
    for _ in range(8):
        kinds = set(map(type, level))
        if kinds <= _PLAIN:
            return True
        if not kinds <= _PLAIN | {list, tuple, dict, set, frozenset}:
            return False
        maps = [item for item in level if type(item) is dict]
        inner = [item for item in level if type(item) not in _PLAIN and type(item) is not dict]
        if sum(map(len, maps)) + sum(map(len, inner)) > 10**7:
            return False
        level = [
            *itertools.chain.from_iterable(inner),
            *itertools.chain.from_iterable(maps),
            *itertools.chain.from_iterable(item.values() for item in maps),
        ]
    return False


def _is_of_one_number_type(values: Iterable) -> bool:
    """Whether they are numbers of numpy, all of one type."""
    kinds = set(map(type, values))
    return len(kinds) == 1 and issubclass(kinds.pop(), np.number)


@_of_a_kind
def _is_library_kind(kind: type) -> bool:
    return is_library(kind)


@_of_a_kind
def _slots(kind: type) -> tuple[str, ...]:
    """The names of all ``__slots__`` of a class (and of the readable fields of a class written in
    C).
    """
    return tuple(
        dict.fromkeys(
            name
            for base in kind.__mro__
            for name, item in vars(base).items()
            if isinstance(item, MemberDescriptorType)
        )
    )


@_of_a_kind
def _hides(kind: type) -> bool:
    """Whether instances have a state that is neither in ``__dict__`` nor in ``__slots__``: one of a
    class in C.
    """
    known = object.__basicsize__ + 8 * (kind.__dictoffset__ > 0) + 8 * (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ > 0 or kind.__basicsize__ > known + 8 * len(_slots(kind))


@_of_a_kind
def _is_open(kind: type) -> bool:
    """Whether code that is not the user's may read attributes of the instances, so that all of them
    count.
    """
    known = {*nn.Cell.__mro__, Generic, Protocol, ABC}
    return any(
        _is_library_kind(base) and base not in known and _root(base) != "builtins"
        for base in kind.__mro__
    )


class _Everything(set):
    """The names that code reads once it reads by names made at run time."""

    def __contains__(self, name: object) -> bool:
        return True


class Input(NamedTuple):
    """A captured Tensor, and where it is: closure cells, and name spaces with the name in them."""

    tensor: Tensor
    places: list[tuple[Any, Any]]


class Held(NamedTuple):
    """A captured tuple, a list of what it holds, in which other values can be put, and where it
    is.
    """

    whole: tuple
    parts: list
    places: list[tuple[Any, Any]]


class Captures:
    """The token of a function, and what the walk met on the way.

    Args:
        by_value: all Tensors count by value. Else those that a variable or an attribute holds count
            by dtype and shape alone, and by which of them are one and the same.

    Attributes:
        token: hashable; equal for functions that compile to the same graph.
        parameters: id -> Parameter, every one that the function can reach.
        inputs: id -> `Input`, the Tensors that do not count by value.
        tuples: id -> `Held`, where inputs may be.
        needs_values: no inputs: Python in reach may read values while MindSpore compiles (constexpr,
            properties and other descriptors, special methods but ``__call__``, classes that are
            called); or a tuple is held where no other can be put; or a network has mixed precision, of which it is not
            known that it casts a Parameter as it does a Tensor (none was found that differs).
        functions: the user's functions in reach (not those of libraries), and how each is reached.
        kinds: the user's classes in reach.
        training: whether a network in reach is in training mode.
        labels: with ``labels=True``, how each item of the token is reached.
        slow: the walk took so long that it holds every call up.
    """

    def __init__(self, *roots: Any, labels: bool = False, by_value: bool = True):
        self._token: list = []
        self._paths: list[Path] | None = [] if labels else None
        self.parameters: dict[int, Parameter] = {}
        self.inputs: dict[int, Input] = {}
        self.tuples: dict[int, Held] = {}
        self.needs_values, self._by_value = False, by_value
        self.functions: dict[FunctionType, Path] = {}
        self.kinds: dict[type, None] = {}
        self.training = False
        self._kept: list = []
        self._seen: dict[int, int] = {}
        self._classes: set[int] = set()
        self._opened: set[int] = set()  # Cells whose attributes all count
        self._names: set[str] = set(_CELL_NAMES)  # of attributes that some code in reach reads
        # attributes that none reads so far: value, path, name space
        self._waiting: dict[str, list[tuple[Any, Path, Any]]] = {}
        self._queue: collections.deque[tuple[Callable, Any, Path]] = collections.deque()
        self._digested: list[
            tuple[Path, int]
        ] = []  # thousands of bytes: as long as an item of the token
        self._roots = roots
        start = time.perf_counter()
        for root in roots:
            self._walk(root, (None, "network" if isinstance(root, nn.Cell) else "function"))
        while self._queue:
            read, value, path = self._queue.popleft()
            read(self, value, path)
        self._waiting.clear()  # what no code reads is not to be kept alive
        self.token = tuple(self._token)
        self.slow = time.perf_counter() - start > SLOW

    def stops_gradients(self) -> str:
        """What in the functions says that a derivative is another one than that of what they
        compute; "" for nothing.

        A primitive StopGradient; Identity, by which a forward pass knows `ops.stop_gradient`; or a
        Cell's bprop.
        """
        found = {
            getattr(value, "name", "")
            for value in self._kept
            if isinstance(value, _compat.PRIMITIVE_TYPES)
        }
        found.update(*(_names_in(fn.__code__) for fn in self.functions))
        for name in ("StopGradient", "Identity"):
            if name in found:
                return name
        return (
            "bprop"
            if any(issubclass(kind, nn.Cell) and hasattr(kind, "bprop") for kind in self.kinds)
            else ""
        )

    @property
    def labels(self) -> list[str] | None:
        return None if self._paths is None else [path_text(path) for path in self._paths]

    def largest(self) -> str:
        """How that is reached which takes most of the time: the innermost that has half of it."""
        again = Captures(*self._roots, labels=True)
        costs: collections.Counter[Path] = collections.Counter()
        for path, cost in [*((path, 1) for path in again._paths or ()), *again._digested]:
            while path is not None:
                costs[path] += cost
                path = path[0]
        half = max(costs.values()) / 2
        return max((path_text(path) for path, cost in costs.items() if cost >= half), key=len)

    def _add(self, path: Path, *items) -> None:
        self._token.append((path[1], *items))
        if self._paths is not None:
            self._paths.append(path)

    def _walk(self, value: Any, path: Path, space: Any = None) -> None:
        """Values at once; what can hold others, and itself, once each and later.

        `space` is the dictionary, list or closure cell that holds it, where another value can stand
        in its place.
        """
        kind = type(value)
        if kind in _ATOMS:
            self._add(path, kind, value)
            return
        if kind is Tensor and space is not None and not self._by_value and value.dtype in _INPUTS:
            self._input(value, path, space)
            return
        read, at_once = _reader(kind)
        if at_once:
            read(self, value, path)
        elif self._once(value, path):
            if kind is tuple and space is not None and not self._by_value:
                self._held(value, path, space)
            self._queue.append((read, value, path))
        elif held := self.tuples.get(id(value)):
            held.places.append((space, path[1]))
            self.needs_values = self.needs_values or space is None

    def _once(self, value: Any, path: Path) -> bool:
        """False at the second meeting, which the token records by its number."""
        number = self._seen.get(id(value))
        if number is not None:
            self._add(path, "again", number)
            return False
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # so that the id stays its own
        return True

    def _count(self, path: Path, size: int) -> None:
        if size > 10**6:
            self._digested.append((path, size // 1000))

    def _identity(self, value: Any, path: Path) -> None:
        self._kept.append(value)
        self._add(path, "id", id(value))

    # --- names of attributes ---

    def _reach(self, names: Iterable[str]) -> None:
        """Some code in reach reads attributes of these names."""
        for name in names:
            if name in self._names:
                continue
            if name in _DYNAMIC_ATTRIBUTES:
                self._widen()
                return
            self._names.add(name)
            for item, path, space in self._waiting.pop(name, ()):
                self._walk(item, path, space)

    def _widen(self) -> None:
        """Some code in reach reads attributes whose names are not to be seen."""
        if isinstance(self._names, _Everything):
            return
        self._names = _Everything()
        waiting, self._waiting = self._waiting, {}
        for item, path, space in itertools.chain.from_iterable(waiting.values()):
            self._walk(item, path, space)

    def _member(self, name: str, item: Any, path: Path, space: Any = None) -> None:
        if name in self._names:
            self._walk(item, (path, name), space)
        else:
            self._waiting.setdefault(name, []).append((item, (path, name), space))

    def _all(self, names: Iterable[str], space: dict[str, Any], path: Path) -> None:
        """As `_walk` on each, and fast: a network of MindSpore's layers has a thousand of them."""
        token, paths = self._token, self._paths
        for name in names:
            item = space[name]
            kind = type(item)
            if kind in _ATOMS:
                token.append((name, kind, item))
                if paths is not None:
                    paths.append((path, name))
            else:
                self._walk(item, (path, name), space)

    # --- values ---

    def _float(self, value: Any, path: Path) -> None:
        self._add(path, float, repr(value))  # repr tells -0.0 from 0.0 and equals itself for nan

    def _parameter(self, value: Parameter, path: Path) -> None:
        self.parameters[id(value)] = value
        self._add(path, "parameter", id(value), str(value.dtype), tuple(value.shape))

    def _tensor(self, value: Tensor, path: Path) -> None:
        token = tensor_token(value)
        self._count(path, value.nbytes)
        self._add(path, *token)

    def _input(self, value: Tensor, path: Path, space: Any) -> None:
        number = len(self.inputs)
        found = self.inputs.setdefault(id(value), Input(value, []))
        number = number if not found.places else list(self.inputs).index(id(value))
        found.places.append((space, path[1]))
        self._add(path, "input", number, str(value.dtype), tuple(value.shape))

    def _held(self, value: tuple, path: Path, space: Any) -> None:
        if len(value) <= _MOST_HELD and any(type(item) in (Tensor, tuple) for item in value):
            self.tuples[id(value)] = Held(value, list(value), [(space, path[1])])

    def _scalar(self, value: np.generic, path: Path) -> None:
        if value.dtype.hasobject:
            self._walk(value.item(), path)
        else:
            self._add(path, type(value), str(value.dtype), value.tobytes())

    def _recipe(self, value: Any, path: Path) -> None:
        """A Recipe of a transform inside the user's graph: what it makes its graph function of."""
        self._walk(value.build, (path, "build"))

    def _described(self, value: Any, path: Path) -> None:
        self._add(path, type(value), repr(value))

    def _buffer(self, value: Any, path: Path) -> None:
        try:
            view = memoryview(value)
            self._count(path, view.nbytes)
            data = view if view.c_contiguous else view.tobytes()
            self._add(path, type(value), view.format, view.shape, _sha(data))
        except ValueError:  # released, closed
            self._unknown(value, path)

    def _array(self, value: np.ndarray, path: Path) -> None:
        self._count(path, value.nbytes)
        if value.dtype.hasobject:
            self._walk(value.tolist(), path)
        else:
            self._add(
                path,
                "array",
                type(value),
                str(value.dtype),
                value.shape,
                _digest(value.view(np.ndarray)),
            )
        if type(value) is not np.ndarray:  # a mask, or what a class of the user's keeps
            for name, item in getattr(value, "__dict__", {}).items():
                self._walk(item, (path, name))
            self._kind(type(value), path)

    # --- containers and objects ---

    def _items(self, value: Any, path: Path) -> None:
        """The content of a container; a subclass may also have attributes."""
        kind = type(value)
        is_map = isinstance(value, dict | MappingProxyType)
        held, space = self.tuples.get(id(value)), None
        if held is not None:
            space = held.parts
        elif kind in (list, dict) and len(value) <= _MOST_HELD:
            space = value
        self._add(path, kind, len(value))
        if len(value) > 15 and _is_plain(value):  # of a set the order counts: marshal would sort it
            self._add(
                path, _sha(marshal.dumps(value if isinstance(value, dict) else list(value), 2))
            )
        elif len(value) > 15 and not is_map and _is_of_one_number_type(value):
            self._walk(np.array(list(value)), path)
        elif is_map:
            items = dict.items(value) if isinstance(value, dict) else value.items()
            for key, item in items:
                if type(key) is str:
                    self._walk(item, (path, key), space)
                else:
                    self._walk(key, (path, "key"))
                    self._walk(item, (path, str(key) if isinstance(key, int) else "item"))
        else:
            base = next(base for base in _CONTAINERS if isinstance(value, base))
            for index, item in enumerate(base.__iter__(value)):
                self._walk(item, (path, index), space)
        if isinstance(value, collections.defaultdict):
            self._walk(value.default_factory, (path, "default_factory"))
        if kind not in _CONTAINERS:
            self._attributes(value, path)

    def _number(self, value: Any, path: Path) -> None:
        """An instance of a subclass of int, float, str ..."""
        base = next(base for base in (float, complex, int, str, bytes) if isinstance(value, base))
        self._add(path, type(value), base.__repr__(value))
        self._attributes(value, path)

    def _parts(self, value: Any, path: Path) -> None:
        """A function with something bound to it, and other things of known parts."""
        names = next(names for kind, names in _PARTS.items() if isinstance(value, kind))
        self._runs_python(isinstance(value, property | functools.cached_property))
        self._add(path, type(value))
        for name in names:
            self._walk(getattr(value, name), (path, name.strip("_")))

    def _reference(self, value: weakref.ref, path: Path) -> None:
        self._add(path, type(value))
        self._walk(value(), path)

    def _object(self, value: Any, path: Path) -> None:
        kind = type(value)
        self._identity(value, path)
        self._runs_python(hasattr(kind, "__get__"))
        if _is_library_kind(kind):
            root = _root(kind)
            if root == "mindspore" and _hides(kind) and not hasattr(value, "__dict__"):
                return  # a dtype, or another object of MindSpore's C++
            if root in _TOOLS:
                return
            if root in _SERVICES or kind.__module__.startswith("mindspore.dataset"):
                for name, item in getattr(value, "__dict__", {}).items():
                    if type(item) in _PLAIN:
                        self._walk(item, (path, name))
                return
        self._attributes(value, path)
        if _hides(kind) and _root(kind) != "mindspore" and not issubclass(kind, BaseException):
            self._reduced(value, path)

    def _attributes(self, value: Any, path: Path) -> None:
        """``__dict__`` and ``__slots__``, and the methods of the class."""
        kind = type(value)
        every = _is_open(kind)
        if not _is_library_kind(kind):
            self._kind(kind, path)
        space = getattr(value, "__dict__", None) or {}
        if every:
            self._all(space, space, path)
        else:
            for name, item in space.items():
                self._member(name, item, path, space)
        for name in _slots(kind):
            try:
                item = object.__getattribute__(value, name)
            except AttributeError:  # not assigned
                continue
            self._walk(item, (path, name)) if every else self._member(name, item, path)

    def _reduced(self, value: Any, path: Path) -> None:
        """An object with a state in C: as pickle would take it apart."""
        try:
            known = copyreg.dispatch_table.get(type(value))
            parts = known(value) if known else value.__reduce_ex__(2)
        except Exception:
            self._unknown(value, path)
            return
        if isinstance(parts, str):
            self._add(path, parts)
            return
        for part in itertools.chain(
            *(part if isinstance(part, tuple) else (part,) for part in parts[1:3]),
            *(map(list, filter(None, parts[3:5]))),
        ):
            self._add(path, id(part)) if isinstance(part, type) else self._walk(
                part, (path, "state")
            )

    def _unknown(self, value: Any, path: Path) -> None:
        """Nothing is known of its state, so it may have changed: equal to no other token."""
        self._add(path, type(value), object())

    def _runs_python(self, does: bool) -> None:
        """While MindSpore compiles, where it would read the values of stand-ins."""
        self.needs_values = self.needs_values or does

    def _primitive(self, value: Any, path: Path) -> None:
        self._identity(value, path)
        space = getattr(value, "__dict__", None) or {}
        own = [
            item for item in space.values() if type(item) is FunctionType and not is_library(item)
        ]
        self._runs_python(bool(own) or not _is_library_kind(type(value)))
        try:
            self._add(path, marshal.dumps(space, 2))
        except ValueError:
            for name, item in space.items():
                self._walk(item, (path, name))
        if not _is_library_kind(type(value)):
            self._kind(type(value), path)

    def _cell(self, cell: nn.Cell, path: Path) -> None:
        kind, space = type(cell), vars(cell)
        self.training = self.training or bool(cell.training)
        flags = cell.get_flags()
        mixed = space.get("mixed_precision_type")
        casts = mixed is not None or any(flags.get(name) for name in ("fp16", "fp32", "bf16"))
        self.needs_values = self.needs_values or casts
        self._add(
            path,
            "cell",
            id(cell),
            bool(cell.training),
            str(flags) if flags else "",
            str(mixed),
        )
        if not _is_library_kind(kind):
            self._kind(kind, path)
        for name in ("_params", "_cells"):
            for key, item in (space.get(name) or {}).items():
                self._walk(item, (path, key))
        if (
            _is_library_kind(kind) and kind not in _CALLERS
        ):  # its code may read attributes of the Cells it was given
            self._opened.update(map(id, (space.get("_cells") or {}).values()))
        own = itertools.filterfalse(_bare_cell().__contains__, space)
        if kind.construct is nn.Embedding.construct and "init_tensor" in space:
            # made into the table, whose memory it shares: it changes in training, and is not read
            own = itertools.filterfalse("init_tensor".__eq__, own)
            self._member("init_tensor", space["init_tensor"], path)
        if _is_open(kind) or id(cell) in self._opened:
            self._all(own, space, path)
        else:
            for name in own:
                self._member(name, space[name], path, space)
        for name in _slots(kind):
            if hasattr(cell, name):
                self._member(name, getattr(cell, name), path)

    # --- classes, functions, modules ---

    def _class(self, cls: type, path: Path) -> None:
        """A class that code names: it may make an instance."""
        self._identity(cls, path)
        # if it is called; a function that asks for Parameters must not meet a stand-in
        self._runs_python(cls is Parameter or not _is_library_kind(cls))
        if _is_library_kind(cls):
            self._used(cls)
            return
        self._kind(cls, path)
        for base in cls.__mro__:
            for name in () if _is_library_kind(base) else _MAKING:
                if type(vars(base).get(name)) is FunctionType:
                    self._walk(vars(base)[name], (path, name))
        if issubclass(cls, Enum):
            for name, member in cls.__members__.items():
                self._walk(member, (path, name))

    def _kind(self, cls: type, path: Path) -> None:
        """The attributes and methods of a class, by name."""
        self.kinds[cls] = None
        for base in cls.__mro__:
            if _is_library_kind(base) or id(base) in self._classes:
                continue
            self._classes.add(id(base))
            self._kept.append(base)
            self._add(path, "class", id(base))
            for name, item in vars(base).items():
                if name in _SILENT or name in _MAKING:
                    continue
                if isinstance(item, classmethod):
                    self._walk(base, (path, name))
                if name.startswith("__") and name.endswith("__") and callable(item):
                    self._runs_python(name != "__call__")  # which MindSpore compiles
                    self._walk(item, (path, name))
                else:
                    self._member(name, item, path)
        if type(cls) is not type and not _is_library_kind(type(cls)):
            self._kind(type(cls), path)

    def _named(self, value: Any, path: Path) -> None:
        """A function without Python code."""
        self._identity(value, path)
        self._used(value)

    def _used(self, value: Any) -> None:
        """A function or class of a library: does it read attributes by names that the user's code
        does not say?
        """
        root = _root(value)
        if root == "builtins":
            if getattr(value, "__name__", "") in _DYNAMIC:
                self._widen()
        elif root not in _BLIND and isinstance(value, BuiltinFunctionType | FunctionType | type):
            self._widen()

    def _function(self, fn: FunctionType, path: Path) -> None:
        if getattr(fn, GRAPH, False) or hasattr(fn, "__wrapped_by_jit__"):
            self._walk(getattr(fn, "__wrapped__"), path)  # noqa: B009 -- what MindSpore reads in its place
            return
        library = is_library(fn)
        if library:
            if fn.__closure__ is None:
                self._identity(fn, path)
                self._used(fn)
                return
        else:
            self.functions[fn] = path
        self._add(path, "code", fn.__code__)
        cells: dict[str, Any] = {}
        for name, cell in (
            ()
            if fn.__closure__ is None
            else zip(fn.__code__.co_freevars, fn.__closure__, strict=False)
        ):
            try:
                cells[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                self._add(path, "empty", name)
            else:
                if name == "__class__":
                    self._kind(cells[name], path)
                elif not isinstance(cells[name], ModuleType):
                    self._walk(cells[name], (path, name), cell)
        for defaults in (fn.__defaults__, fn.__kwdefaults__):
            if defaults:
                self._walk(defaults, (path, "defaults"))
        if library:
            return
        if fn.__dict__:
            for name, item in fn.__dict__.items():
                self._member(name, item, path)
        found = reads(fn.__code__)
        for chain in found.globals:
            if chain.name in fn.__globals__:
                self._chain(fn.__globals__[chain.name], chain, path, fn.__globals__)
            elif hasattr(builtins, chain.name):
                self._used(getattr(builtins, chain.name))
        for chain in found.cells:
            if isinstance(cells.get(chain.name), ModuleType):
                self._chain(cells[chain.name], chain, path)
            else:  # walked above, or a variable of this function that a function inside it reads
                self._reach(chain.attributes)
        for name in found.imports:
            for part in (name, name.split(".", 1)[0]):
                if part in sys.modules:
                    self._walk(sys.modules[part], (path, part))
        self._reach(found.attributes)

    def _chain(self, value: Any, chain: Chain, path: Path, space: Any = None) -> None:
        """``name.a.b``: through modules to what is meant; the rest are names of attributes of
        that.
        """
        path, names = (path, chain.name), chain.attributes
        while isinstance(value, ModuleType) and names and names[0] in vars(value):
            if _is_library_root(value.__name__.split(".", 1)[0]):
                self._used(vars(value)[names[0]])
                return
            space = vars(value)
            value, path, names = space[names[0]], (path, names[0]), names[1:]
        if (
            names and isinstance(value, type) and not is_library(value)
        ):  # read of it, so no instance is made
            self._add(path, "class", id(value))
            self._kept.append(value)
            self._kind(value, path)
        else:
            self._walk(value, path, space)
        self._reach(names)

    def _module(self, module: ModuleType, path: Path) -> None:
        self._identity(module, path)
        if not _is_library_root(module.__name__.split(".", 1)[0]):
            for name, item in vars(module).items():
                if not name.startswith("__") or name == "__getattr__":
                    self._member(name, item, path, vars(module))


_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque, MappingProxyType)
_CALLERS = (nn.SequentialCell, nn.CellList, nn.CellDict)  # they only call the Cells they hold
_PARTS: dict[type, tuple[str, ...]] = {
    MethodType: ("__func__", "__self__"),
    property: ("fget",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    functools.partial: ("func", "args", "keywords"),
    functools.partialmethod: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    CSRTensor: ("indptr", "indices", "values", "shape"),
    COOTensor: ("indices", "values", "shape"),
}
_WITHOUT_CODE = (
    BuiltinFunctionType,
    MethodDescriptorType,
    WrapperDescriptorType,
    MemberDescriptorType,
    GetSetDescriptorType,
    type(int.from_bytes),
    type((1).__add__),
)
# What reads a value of a kind, and whether at once (it holds nothing); the first row that fits
_READERS: tuple[tuple[tuple[type, ...], Callable, bool], ...] = (
    ((Parameter,), Captures._parameter, True),
    ((Tensor,), Captures._tensor, True),
    ((np.generic,), Captures._scalar, True),
    ((np.ndarray,), Captures._array, False),
    ((np.dtype, range, slice, GenericAlias, UnionType), Captures._described, True),
    ((FunctionType,), Captures._function, False),
    ((Enum,), Captures._object, False),
    ((float, complex, int, str, bytes), Captures._number, False),
    (_CONTAINERS, Captures._items, False),
    ((bytearray, memoryview, array.array, mmap.mmap), Captures._buffer, True),
    (tuple(_PARTS), Captures._parts, False),
    ((weakref.ref,), Captures._reference, True),
    ((nn.Cell,), Captures._cell, False),
    ((ModuleType,), Captures._module, False),
    ((type,), Captures._class, False),
    (_WITHOUT_CODE, Captures._named, True),
    (_compat.PRIMITIVE_TYPES, Captures._primitive, False),
    ((object,), Captures._object, False),
)


@_of_a_kind
def _reader(kind: type) -> tuple[Callable, bool]:
    """The row of `_READERS` for a class."""
    if kind is float:
        return Captures._float, True
    if getattr(kind, GRAPH, False):
        return Captures._recipe, True
    return next((read, at_once) for kinds, read, at_once in _READERS if issubclass(kind, kinds))


def foreign_modules(functions: Iterable[FunctionType]) -> dict[str, ModuleType]:
    """Stand-ins for modules whose name space is not that of the functions that claim to be from
    them.

    MindSpore looks a function's globals up in ``sys.modules[fn.__module__]``. For functions of a
    doctest, of ``runpy``, or of a name space given to exec, that is another dictionary.
    """
    out: dict[str, ModuleType] = {}
    for fn in functions:
        name = fn.__module__
        if name is None:  # of a name space without one, which MindSpore does not look up
            continue
        module = sys.modules.get(name)
        if module is not None and vars(module) is fn.__globals__:
            continue
        if name not in out:
            out[name] = ModuleType(name)
            if module is not None:
                vars(out[name]).update(vars(module))
        vars(out[name]).update(fn.__globals__)
    return out
