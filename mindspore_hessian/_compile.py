"""Compile once, run many times: the bounded cache of compiled transforms, and what keeps it right.

MindSpore alone is unsafe in four ways that this file closes: two threads in a compiled graph give wrong numbers (one
process-wide lock), a forked child hangs (an error), the on-disk compile cache gives another function's numbers (an
error), and a graph freezes what its function captured (it is part of the key).
"""
from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian import _audit_graph, _compat, _inplace, device, rules
from mindspore_hessian._callable import Call, readable
from mindspore_hessian._capture import Captures
from mindspore_hessian._errors import (
    MissingRuleError,
    RecompileWarning,
    UnsafeRuntimeError,
    debris_removed,
    translate,
    warn,
)
from mindspore_hessian._tree import tensors_of

_STREAK = 5  # compilations in a row, without a hit, after which the caller is warned


class CacheInfo(NamedTuple):
    """What the cache of compiled functions did: counts, seconds spent compiling, and its present and largest size."""

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
    graph: Callable[[tuple], Any]
    captures: Captures  # keeps alive what the key knows by id
    statistics: list[Parameter]  # what a network in training mode would change (batch norm)
    site: _Site


_lock = threading.RLock()
_entries: OrderedDict[tuple, _Entry] = OrderedDict()
_sites: OrderedDict[tuple, _Site] = OrderedDict()
_counts = {"hits": 0, "misses": 0, "seconds": 0.0, "maxsize": 128}
_unsafe_fork = False


def cache_info() -> CacheInfo:
    """Hits, misses and compile seconds since the last `clear_cache`, and the number of compiled functions held.

    Examples:
        >>> import mindspore_hessian as mh
        >>> mh.cache_info().maxsize
        128
    """
    return CacheInfo(int(_counts["hits"]), int(_counts["misses"]), _counts["seconds"], len(_entries),
                     int(_counts["maxsize"]))


def clear_cache() -> None:
    """Drop every compiled function and set the counts to zero. MindSpore gives most of the memory back."""
    with _lock:
        _entries.clear()
        _sites.clear()
        _counts.update(hits=0, misses=0, seconds=0.0)


def set_cache_size(maxsize: int) -> None:
    """Hold at most `maxsize` compiled functions; the least recently used go first.

    Raises:
        ValueError: `maxsize` is not a positive integer.
    """
    if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
        raise ValueError(f"maxsize must be a positive integer, but got {maxsize!r}")
    with _lock:
        _counts["maxsize"] = maxsize
        _evict()


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """No other thread compiles or runs meanwhile, and what is compiled inside leaves the cache, at the end."""
    with _lock:
        stores: tuple[dict, ...] = (_entries, _sites, _counts)
        before = [dict(store) for store in stores]
        try:
            yield
        finally:
            for store, content in zip(stores, before, strict=True):
                store.clear()
                store.update(content)


def execute(name: str, call: Call, build: Callable[[Callable], Callable], options: tuple = (),
            extras: tuple[Tensor, ...] = (), weights: tuple[Parameter, ...] = (), also: tuple = (),
            guard: Callable[[Callable], Callable] | None = None) -> Any:
    """Run the graph function ``build(call.function())`` on ``(*call.leaves, *extras)``, compiled at most once.

    Args:
        name: the transform, part of the key.
        call: the user's function and its arguments.
        build: makes the graph function of a function of the leaves.
        options: everything else that `build` depends on, hashable.
        extras: further Tensors (vectors), after the leaves.
        weights: the Parameters that are differentiated.
        also: further captured callables (the loss of `ggnvp`), part of the key by what they captured.
        guard: as `build`, for a graph that must compile and give the same numbers at the first call.
    """
    if _unsafe_fork:
        raise UnsafeRuntimeError(
            "this process was forked after MindSpore had run a kernel, so any computation would hang. Start workers "
            "with multiprocessing.get_context('spawn') (or 'forkserver').")
    tensors = tuple(t if t.is_contiguous() else t.contiguous() for t in (*call.leaves, *extras))
    with _lock:
        captures = call.captures(*also)
        recording = _compat.is_recording()
        buffers = tuple(p.data_ptr() for p in captures.parameters.values()) if recording else ()
        signature = tuple((t.shape, t.dtype) for t in tensors)
        key = (name, options, call.template, signature, captures.token, tuple(map(id, weights)), recording, buffers,
               device.jit_level())
        entry = _entries.get(key)
        if entry is None:
            entry = _compile(key, (name, options), call, build, tensors, captures, also, recording, weights, guard)
        else:
            _counts["hits"] += 1
            entry.site.streak = 0
            _entries.move_to_end(key)
        return _run(entry, tensors)


def _run(entry: _Entry, tensors: tuple) -> Any:
    with _compat.kept(entry.statistics), _inplace.followed():  # it may compile: a recorded graph, or one given up
        return entry.graph(tensors)


def _compile(key: tuple, transform: tuple, call: Call, build: Callable, tensors: tuple, captures: Captures,
             also: tuple, recording: bool, weights: tuple[Parameter, ...], guard: Callable | None) -> _Entry:
    for weight in weights:
        if id(weight) not in captures.parameters:
            raise ValueError(f"weight {weight.name!r} is not in the function: nothing it captured holds this Parameter")
    if _compat.disk_cache_enabled():
        raise UnsafeRuntimeError(
            "MindSpore's on-disk compile cache is on, and it returns the numbers of another function. Turn it off: "
            "mindspore.set_context(enable_compile_cache=False), and unset MS_COMPILER_CACHE_ENABLE.")
    late = not rules.in_force()  # warns, once, where a gradient ran before our rules were there
    site = _watch(transform, call, also, tensors)
    start = time.perf_counter()
    kind = _compat.Recorded if recording else _compat.Graph
    statistics = [p for p in captures.parameters.values() if not p.requires_grad] if captures.training else []
    with debris_removed(), readable(captures), _compat.kept(statistics):
        function = call.function()
        try:
            with _inplace.followed():
                if late:
                    _refuse_broken(lambda: _compat.Graph(function, tensors[:len(call.leaves)], "O0"))
                graph = kind(build(function), tensors, device.jit_level() or "O0")
                if guard is not None:
                    _check_against(_compat.Graph(guard(function), tensors, "O0"), graph, tensors)
                written = _compat.Graph(function, tensors[:len(call.leaves)], "O0") if recording else graph
            _inplace.refuse_left(written)
        except Exception as err:
            error = translate(err)
            if isinstance(error, MissingRuleError):
                level = device.jit_level() or "O0"
                with contextlib.suppress(Exception), _inplace.followed():
                    where = _audit_graph.lines_of_missing(lambda: kind(build(function), tensors, level))
                    error = MissingRuleError(f"{error} {where}".strip())
            raise error from err
    _counts["misses"] += 1
    _counts["seconds"] += time.perf_counter() - start
    entry = _entries[key] = _Entry(graph, captures, statistics, site)
    _evict()
    return entry


def _refuse_broken(compile_forward: Callable[[], Any]) -> None:
    """Raise where the function has a primitive whose derivative is broken in MindSpore, and ours is not heeded."""
    broken = _audit_graph.primitives(compile_forward) & rules.replaced()
    if broken:
        raise UnsafeRuntimeError(
            f"the function uses {', '.join(sorted(broken))}, whose derivative in MindSpore is wrong or missing, and "
            "ours is ignored, because a gradient was computed before mindspore_hessian was imported. Import it first, "
            "in a new process.")


def _check_against(reference: Callable, graph: Callable, tensors: tuple) -> None:
    """Raise where a graph with a forward derivative lost a term: MindSpore drops terms there without a word."""
    for expected, got in zip(tensors_of(reference(tensors)), tensors_of(graph(tensors)), strict=True):
        a, b = (_compat.to_numpy(t).astype(np.float64) for t in (expected, got))
        scale = np.abs(a).max(initial=0.0)
        if np.isfinite(scale) and not np.allclose(a, b, rtol=0, atol=0.05 * scale):
            raise MissingRuleError(
                "a forward derivative in MindSpore loses a term of this second derivative (a data-dependent `if` or "
                "`while` does that, and primitives without a rule): the result is off by "
                f"{np.abs(a - b).max() / scale:.0%}. Use mode='auto' or mode='revrev'.")


def _evict() -> None:
    while len(_entries) > _counts["maxsize"]:
        _entries.popitem(last=False)


def _watch(transform: tuple, call: Call, also: tuple, tensors: tuple) -> _Site:
    """Count compilations in a row of one caller, and say once what differs between them."""
    fn = getattr(call.fn, "__func__", call.fn)
    code = getattr(fn, "__code__", None) or type(fn)
    site = _sites.setdefault((transform, code), _Site())
    _sites.move_to_end((transform, code))
    while len(_sites) > 1024:
        _sites.popitem(last=False)
    labelled = call.captures(*also, labels=True)
    parts: dict[str, Any] = {}
    for label, token in zip(labelled.labels or (), labelled.token, strict=False):
        parts[f"captured value '{label}'"] = token
    for number, tensor in enumerate(tensors):
        parts[f"shape or dtype of Tensor number {number}"] = (tensor.shape, tensor.dtype)
    site.streak += 1
    if site.streak > _STREAK and not site.warned:
        changed = [label for label in {**site.parts, **parts} if site.parts.get(label) != parts.get(label)]
        cause = ", ".join(changed[:3]) or "an option of the call"
        warn(
            f"{transform[0]} has compiled {site.streak} times in a row for {getattr(fn, '__qualname__', fn)}; each "
            f"time this changed: {cause}. Pass what varies as a Tensor argument of the function, with a fixed shape.",
            RecompileWarning)
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
