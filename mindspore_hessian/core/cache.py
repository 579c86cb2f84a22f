"""Compile once, run many times: the bounded cache of compiled transforms, and what keeps it right.

MindSpore alone is unsafe in four ways that this file closes: two threads in a compiled graph give
wrong numbers (one process-wide lock), a forked child hangs (an error), the on-disk compile cache
gives another function's numbers (an error), and a graph freezes what its function captured (it is
part of the key).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian import _compat, device, rules
from mindspore_hessian._errors import (
    HessianError,
    MissingRuleError,
    RecompileWarning,
    UnsafeRuntimeError,
    debris_removed,
    primitive_of,
    translate,
    warn,
)
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core import graph_dump, inplace
from mindspore_hessian.core.captures import Captures
from mindspore_hessian.core.function import readable, standing_in
from mindspore_hessian.core.space import tensors_of

if TYPE_CHECKING:
    from mindspore_hessian.core.program import Point, Program

# seconds of compilation after which only the function itself, no gradient of it, is compiled again
_PATIENCE = 5.0
_ROUNDING = {2: 2.0**-8, 4: 2.0**-23, 8: 2.0**-52}  # by the bytes of a number; bfloat16's
_STREAK = 5  # compilations in a row, without a hit, after which the caller is warned


class CacheInfo(NamedTuple):
    """What the cache of compiled functions did: counts, seconds spent compiling, and its present
    and largest size.
    """

    hits: int
    misses: int
    compile_seconds: float
    size: int
    maxsize: int


@dataclass
class _Site:
    """One caller, as far as recompilation goes: a transform of one piece of code."""

    streak: int = 0
    parts: dict[str, Any] = field(default_factory=dict)
    warned: bool = False


@dataclass
class _Entry:
    graph: Any  # of _compat: it is called with a tuple of Tensors, and says whether it is stale
    captures: Captures  # keeps alive what the key knows by id
    statistics: list[
        Parameter
    ]  # what a call would change: those of batch norm in training, and assigned ones
    stand_ins: tuple[Parameter, ...]  # of the captured Tensors that are inputs of the graph
    site: _Site
    buffers: tuple[
        int, ...
    ]  # the Parameters' that its branches read; () where they read the present ones


_lock = threading.RLock()
_entries: OrderedDict[tuple, _Entry] = OrderedDict()
_frozen: OrderedDict[tuple, Captures] = OrderedDict()  # keys of graphs that need captured values
_sites: OrderedDict[tuple, _Site] = OrderedDict()
_counts = {"hits": 0, "misses": 0, "seconds": 0.0, "maxsize": 128}
_unsafe_fork = False


def cache_info() -> CacheInfo:
    """Hits, misses and compile seconds since the last `clear_cache`, and the number of compiled
    functions held.

    Examples:
        >>> import mindspore_hessian as mh
        >>> mh.cache_info().maxsize
        128
    """
    return CacheInfo(
        int(_counts["hits"]),
        int(_counts["misses"]),
        _counts["seconds"],
        len(_entries),
        int(_counts["maxsize"]),
    )


def clear_cache() -> None:
    """Drop every compiled function and set the counts to zero.

    MindSpore gives back all the memory of a small function, and about 40 % of that of a network's
    product (measured on the CPU with 50 of them; the rest stays with the process).
    """
    with _lock:
        _entries.clear()
        _sites.clear()
        _frozen.clear()
        _counts.update(hits=0, misses=0, seconds=0.0)


def set_cache_size(maxsize: int) -> None:
    """Hold at most `maxsize` compiled functions; the least recently used go first.

    Raises:
        ValueError: `maxsize` is not a positive integer.
    """
    if not is_integer(maxsize) or maxsize < 1:
        raise ValueError(f"maxsize must be a positive integer, but got {shown(maxsize)}")
    with _lock:
        _counts["maxsize"] = maxsize
        _evict()


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """No other thread compiles or runs meanwhile."""
    with _lock:
        yield


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """No other thread compiles or runs meanwhile, and what is compiled inside leaves the cache, at
    the end.
    """
    with _lock:
        stores: tuple[dict, ...] = (_entries, _sites, _frozen, _counts)
        before = [dict(store) for store in stores]
        try:
            yield
        finally:
            for store, content in zip(stores, before, strict=True):
                store.clear()
                store.update(content)


@interruptible
def execute(program: Program, point: Point, extras: tuple[Tensor, ...] = ()) -> Any:
    """Run a program on the Tensors of a point and then `extras`, compiled at most once.

    Raises:
        KernelError: a kernel failed as the function ran; the next call compiles anew.
    """
    if _unsafe_fork:
        raise UnsafeRuntimeError(
            "this process was forked after MindSpore had run a kernel, so any computation would "
            "hang. Start workers with multiprocessing.get_context('spawn') (or 'forkserver')."
        )
    tensors = tuple([t if t.is_contiguous() else t.contiguous() for t in (*point.tensors, *extras)])
    with _lock:
        recording = _compat.is_recording()
        by_value = recording or not _compat.READS_CAPTURED_ANEW
        captures = point.call.captures(*point.also, by_value=by_value)
        signature = tuple([(t.shape, t.dtype) for t in tensors])

        def key_of(captures: Captures) -> tuple:
            return (
                program.name,
                program.options,
                point.space.key,
                point.template,
                signature,
                captures.token,
                tuple(map(id, point.space.weights)),
                recording,
                _buffers(captures) if recording else (),
                device.jit_level(),
            )

        key = key_of(captures)
        if captures.inputs and (captures.needs_values or key in _frozen):
            captures = point.call.captures(*point.also, by_value=True)
            key = key_of(captures)
        entry = _entries.get(key)
        if (
            entry is None
            or entry.graph.stale()
            or (entry.buffers and entry.buffers != _buffers(captures))
        ):
            site = _watch(program, point, tensors, captures)
            entry = _compile(key, program, point, tensors, captures, recording, site)
            if entry is None:  # it has to know the values of what was captured
                _frozen[key] = captures
                captures = point.call.captures(*point.also, by_value=True)
                key = key_of(captures)
                entry = _compile(key, program, point, tensors, captures, recording, site)
                assert entry is not None  # there are no inputs now
        else:
            _counts["hits"] += 1
            entry.site.streak = 0
            _entries.move_to_end(key)
        try:
            for stand_in, one in zip(entry.stand_ins, captures.inputs.values(), strict=True):
                _compat.refer(stand_in, one.tensor)
            return _run(entry, tensors)
        except BaseException as err:
            _entries.pop(key, None)  # MindSpore never again runs a graph in which a kernel failed
            if isinstance(err, Exception) and not isinstance(err, HessianError):
                raise translate(
                    err, ran=not recording
                ) from err  # a recorded one is compiled as it first runs
            raise


def _run(entry: _Entry, tensors: tuple) -> Any:
    if isinstance(entry.graph, _compat.Graph) and not entry.statistics:
        return entry.graph(tensors)
    # a recorded graph may compile
    with debris_removed(), _compat.kept(entry.statistics), inplace.followed():
        return entry.graph(tensors)


def _compile(
    key: tuple,
    program: Program,
    point: Point,
    tensors: tuple,
    captures: Captures,
    recording: bool,
    site: _Site,
) -> _Entry | None:
    """The graph of a program, and what belongs to it; None where captured Tensors cannot be its
    inputs: MindSpore fails where it does not know their values, or reads old buffers (branches), or
    the function writes into them."""
    call, weights = point.call, point.space.weights
    check_captured(weights, captures)
    if _compat.disk_cache_enabled():
        raise UnsafeRuntimeError(
            "MindSpore's on-disk compile cache is on, and it returns the numbers of another "
            "function. Turn it off: mindspore.set_context(enable_compile_cache=False), and unset "
            "MS_COMPILER_CACHE_ENABLE."
        )
    late = not rules.in_force()  # warns, once, where a gradient ran before our rules were there
    start = time.perf_counter()
    leaves = tensors[: len(call.leaves)]
    statistics = (
        [p for p in captures.parameters.values() if not p.requires_grad]
        if captures.training
        else []
    )

    def compiled(make: Callable) -> Any:
        return _graph(lambda: make(point.function(), point.space), tensors, recording, captures)

    with (
        debris_removed(),
        standing_in(captures) as stand_ins,
        readable(captures),
        _compat.kept(statistics),
    ):
        whole = call.function()
        functions = point.function(whole)
        try:
            with inplace.followed():
                if late:
                    _refuse_broken(lambda: _compat.Graph(whole, leaves, "O0"))
                graph = compiled(program.graph)
                if program.reference is not None:
                    part = program.compared or (program.build if point.has_aux else None)
                    checked, reference = (
                        compiled(part) if part else graph,
                        compiled(program.reference),
                    )
                written = (
                    graph
                    if isinstance(graph, _compat.Graph)
                    else _compat.Graph(whole, leaves, "O0")
                )
                states = inplace.states(
                    written,
                    (lambda: _compat.Graph(whole, leaves, "O0")) if written is graph else None,
                )
                statistics = [
                    p
                    for p in captures.parameters.values()
                    if p.name in states or any(p is other for other in statistics)
                ]
                if program.reference is not None:
                    with _compat.kept(statistics):
                        _check_against(reference, checked, tensors)
            inplace.refuse_left(written)
            keeps = _compat.keeps_buffers(written)
            buffers = _buffers(captures) if keeps else ()
            fixed = keeps or written is not graph or any(one.name in states for one in stand_ins)
            if not (stand_ins and fixed):
                device.settle_instructions(_compat.has_convolution(written))
        except Exception as err:
            if stand_ins:
                interruptible.check()
                _counts["seconds"] += time.perf_counter() - start
                return None
            error = translate(err)
            if _compat.fails_as_cell(err):  # or it ended so at what is no loop
                error = _without_kernel(whole, leaves) or error
            if isinstance(error, MissingRuleError) and (name := primitive_of(error)):
                quick = time.perf_counter() - start < _PATIENCE
                lower = program.lower(functions, point) if quick else whole
                with inplace.followed():
                    error = _located(
                        error,
                        name,
                        lambda: _compat.Graph(lower, tensors if quick else leaves, "O0"),
                    )
            if error is err:  # ours: an error that is its own cause is a ring
                raise
            raise error from err
    # MindSpore's parser catches everything in one place: that graph may be another
    interruptible.check()
    _counts["seconds"] += time.perf_counter() - start
    if stand_ins and fixed:
        return None
    _counts["misses"] += 1
    entry = _entries[key] = _Entry(graph, captures, statistics, stand_ins, site, buffers)
    _evict()
    return entry


def _buffers(captures: Captures) -> tuple[int, ...]:
    """Where the Parameters are in memory: ``set_data`` gives them another place."""
    return tuple(parameter.data_ptr() for parameter in captures.parameters.values())


def check_captured(weights: tuple[Parameter, ...], captures: Captures) -> None:
    """Raise where a weight is not in the function."""
    for weight in weights:
        if id(weight) not in captures.parameters:
            raise ValueError(
                f"weight {weight.name!r} is not in the function: nothing it captured holds this "
                "Parameter"
            )


def _graph(
    make: Callable[[], Callable], tensors: tuple, recording: bool, captures: Captures
) -> Any:
    """The graph of a function; each try makes the function anew, because MindSpore knows functions
    by their ids.
    """
    level = device.jit_level() or "O0"
    if recording:
        return _compat.Recorded(make(), tensors, level)
    tried = []  # kept, so that the next try has other ids
    for _ in range(2):
        tried.append(make())
        try:
            return _compat.Graph(tried[-1], tensors, level)
        except (TypeError, RuntimeError) as err:
            if _compat.fails_as_cell(err):
                break
            if not _compat.lost_its_way(err):
                raise
    return _compat.Looped(make(), tensors, level, tuple(captures.parameters.values()))


def _located(
    error: MissingRuleError, name: str, compile_lower: Callable[[], Any]
) -> MissingRuleError:
    """The error with the user's lines; where MindSpore has not even a kernel for a first gradient,
    it says that.
    """
    lines, refused = graph_dump.lines_of(name, compile_lower)
    lower = translate(refused) if refused is not None else None
    if (
        isinstance(lower, MissingRuleError)
        and primitive_of(lower) == name
        and "no kernel" in str(lower)
    ):
        error = lower
    return MissingRuleError(
        f"{error} {name} comes from {', '.join(lines)}." if lines else str(error)
    )


def _without_kernel(function: Callable, leaves: tuple) -> MissingRuleError | None:
    """The error of a function that has itself a primitive without a kernel; None for one that has
    not.
    """
    try:
        _compat.Graph(function, leaves, "O0")
    except Exception as err:
        error = translate(err)
        return error if isinstance(error, MissingRuleError) else None
    return None


def _refuse_broken(compile_forward: Callable[[], Any]) -> None:
    """Raise where the function has a primitive whose derivative is broken in MindSpore, and ours is
    not heeded.
    """
    broken = graph_dump.primitives(compile_forward) & rules.replaced()
    if broken:
        raise UnsafeRuntimeError(
            f"the function uses {', '.join(sorted(broken))}, whose derivative in MindSpore is "
            "wrong or missing, and ours is ignored, because a gradient was computed before "
            "mindspore_hessian was imported. Import it first, in a new process."
        )


def _check_against(reference: Callable, graph: Callable, tensors: tuple) -> None:
    """Raise where a graph with a forward derivative lost a term: MindSpore drops terms there
    without a word.

    What is rounding may differ: it is a small part of the whole result, or as large as what changes
    where the inputs change in their last digits.
    """

    def run(graph: Callable, tensors: tuple) -> list[np.ndarray]:
        return [_compat.to_numpy(t).astype(np.float64) for t in tensors_of(graph(tensors))]

    exact = run(reference, tensors)
    moved = run(
        reference, tuple(t * (1 + 8 * _rounding(t)) if tensors_of(t) else t for t in tensors)
    )
    eps = max((_rounding(t) for t in tensors_of(tensors)), default=0.0)
    whole = max((np.abs(a[np.isfinite(a)]).max(initial=0.0) for a in exact), default=0.0)
    for a, b, c in zip(exact, run(graph, tensors), moved, strict=True):
        scale = np.abs(a).max(initial=0.0)
        rounding = 32 * eps * whole + 4 * np.abs(a - c).max(initial=0.0)
        if np.isfinite(scale) and not np.allclose(a, b, rtol=0, atol=0.05 * scale + rounding):
            raise MissingRuleError(
                "a forward derivative in MindSpore loses a term of this second derivative (a "
                "data-dependent `if` or `while` does that, and primitives without a rule): the "
                f"result is off by {np.abs(a - b).max() / (scale or 1.0):.0%}. Use mode='auto' or "
                "mode='revrev'."
            )


def _rounding(tensor: Tensor) -> float:
    return _ROUNDING[tensor.itemsize]


def _evict() -> None:
    for store, most in ((_entries, _counts["maxsize"]), (_frozen, 1024)):
        while len(store) > most:
            store.popitem(last=False)


def _watch(program: Program, point: Point, tensors: tuple, captures: Captures) -> _Site:
    """Count compilations in a row of one caller, and say once what differs between them."""
    call, transform = point.call, (program.name, program.options, point.space.key)
    fn = getattr(call.fn, "__func__", call.fn)
    code = getattr(fn, "__code__", None) or type(fn)
    site = _sites.setdefault((transform, code), _Site())
    _sites.move_to_end((transform, code))
    while len(_sites) > 1024:
        _sites.popitem(last=False)
    labelled = call.captures(*point.also, labels=True, by_value=not captures.inputs)
    parts: dict[str, Any] = {}
    for label, token in zip(labelled.labels or (), labelled.token, strict=False):
        parts[f"captured value '{label}'"] = token
    for number, tensor in enumerate(tensors):
        parts[f"shape or dtype of Tensor number {number}"] = (tensor.shape, tensor.dtype)
    site.streak += 1
    if site.streak > _STREAK and not site.warned:
        changed = [
            label for label in {**site.parts, **parts} if site.parts.get(label) != parts.get(label)
        ]
        cause = ", ".join(changed[:3]) or "an option of the call"
        warn(
            f"{transform[0]} has compiled {site.streak} times in a row for "
            f"{getattr(fn, '__qualname__', fn)}; each "
            f"time this changed: {cause}. Pass what varies as a Tensor argument of the function, "
            "with a fixed shape.",
            RecompileWarning,
        )
        site.warned = True
    site.parts = parts
    return site


def _before_fork() -> None:
    global _unsafe_in_child
    _unsafe_in_child = _compat.runtime_started()


def _after_fork() -> None:
    global _unsafe_fork, _lock
    _unsafe_fork = _unsafe_in_child
    _lock = threading.RLock()  # another thread of the parent may have held it


_unsafe_in_child = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
