"""Matrices too large for one pass, or without batching rules: computed in pieces, put together in numpy."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import FallbackWarning, HessianError, UnsafeRuntimeError, warn
from mindspore_hessian.core.program import Problem
from mindspore_hessian.core.space import Variables, map_structure
from mindspore_hessian.rules.missing import unbatched_only
from mindspore_hessian.transforms import blocks


def batched_or_loop(name: str, batched: Callable[[], Any], loop: Callable[[], Any]) -> Any:
    """`batched`, or where a batching rule is missing or fails, `loop` with a warning that names the primitive.

    MindSpore itself would unroll a primitive without a rule into as many copies as there are rows.
    """
    try:
        with _compat.batching_rules_watched(unbatched_only) as asked:
            return batched()
    except (HessianError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as err:
        refused = err
    if isinstance(refused, UnsafeRuntimeError):
        raise refused
    result = loop()  # where the function itself is at fault, this says so better than the batched version
    missing = [name for name, there in asked.items() if not there]
    cause = f"primitive {missing[0]} has no batching rule" if missing else f"batching failed ({refused})"
    remedy = f" Supply one: mindspore_hessian.rules.register_batching({missing[0]!r}, getter)." if missing else ""
    warn(f"{name}: {cause}, so the rows are computed one after another.{remedy}", FallbackWarning)
    return result


def starts(total: int, count: int) -> list[int]:
    """First rows of the pieces; the last piece overlaps its neighbour, so that all have one shape."""
    return [min(start, total - count) for start in range(0, total, count)]


def is_several(result: Any) -> bool:
    """Whether a kernel's result is that of several outputs: a tuple of tuples."""
    return isinstance(result, tuple) and bool(result) and isinstance(result[0], tuple)


def hessian_in_chunks(problem: Problem, chunk: int) -> Any:
    """The blocks of the Hessian, `chunk` rows at a time."""
    vars_ = problem.vars
    total = sum(vars_.sizes)
    count = min(chunk, total)

    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return blocks.hessian_rows(f, v.positions, v.parameters, count)

    rows: Any = None
    aux = None
    for start in starts(total, count):
        result = problem.run("hessian", kernel, ("rows", count), (Tensor(start, ms.int64),))
        value, aux = result if problem.has_aux else (result, None)
        several = is_several(value)
        for number, output in enumerate(value if several else (value,)):
            arrays = [_compat.to_numpy(part) for part in output]
            if rows is None:
                rows = []
            if number == len(rows):
                lead = arrays[0].ndim - 1 - len(vars_.shapes[0])
                rows.append((lead, [np.empty((*a.shape[:lead], total, *a.shape[lead + 1:]), a.dtype) for a in arrays]))
            lead, buffers = rows[number]
            for buffer, array in zip(buffers, arrays, strict=True):
                buffer[(slice(None),) * lead + (slice(start, start + count),)] = array
    found = tuple(_blocks(vars_, lead, buffers) for lead, buffers in rows)
    value = found if several else found[0]
    return (value, aux) if problem.has_aux else value


def _blocks(vars_: Variables, lead: int, rows: list[np.ndarray]) -> tuple:
    """Arrays out.shape + (N,) + x_j.shape cut into H[i][j]. One variable: no copy."""
    out = []
    start = 0
    for size, shape in zip(vars_.sizes, vars_.shapes, strict=True):
        cut = (slice(None),) * lead + (slice(start, start + size),)
        out.append(tuple(to_tensor(row[cut].reshape((*row.shape[:lead], *shape, *row.shape[lead + 1:])), dtype)
                         for row, dtype in zip(rows, vars_.dtypes, strict=True)))
        start += size
    return tuple(out)


def to_tensor(array: np.ndarray, dtype: Any) -> Tensor:
    """The array as a Tensor of a dtype."""
    tensor = Tensor.from_numpy(np.require(array, requirements="C"))
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def outputs(problem: Problem) -> tuple[tuple[Tensor, ...], bool, Any]:
    """(outputs, whether there are several, aux), compiled: their shapes are needed before a loop over them."""
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return blocks.tensors(f)
    result = problem.run("outputs", kernel)
    value, aux = result if problem.has_aux else (result, None)
    return (value, True, aux) if isinstance(value, tuple) else ((value,), False, aux)


def _row_by_row(problem: Problem, width: int, dtype: Any) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Every row of the Hessian of every flat output, a product each: (output, row, the row over the variables)."""
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return blocks.hessian_row(f, v.positions, v.parameters)

    for m in range(width):
        u = Tensor(np.eye(1, width, m)[0], dtype)
        for row in range(sum(problem.vars.sizes)):
            parts = problem.run("hessian", kernel, ("row",), (Tensor(row, ms.int64), u))
            yield m, row, [_compat.to_numpy(part) for part in (parts[0] if problem.has_aux else parts)]


def hessian_in_loop(problem: Problem) -> Any:
    """The blocks of the Hessian, a product at a time."""
    vars_ = problem.vars
    outs, several, aux = outputs(problem)
    width, total = sum(out.size for out in outs), sum(vars_.sizes)
    buffers = [np.empty((width, total, *shape), numpy_dtype(dtype))
               for shape, dtype in zip(vars_.shapes, vars_.dtypes, strict=True)]
    for m, row, parts in _row_by_row(problem, width, outs[0].dtype):
        for buffer, part in zip(buffers, parts, strict=True):
            buffer[m, row] = part
    found, start = [], 0
    for out in outs:
        shape = tuple(out.shape)
        pieces = [b[start:start + out.size].reshape((*shape, *b.shape[1:])) for b in buffers]
        found.append(_blocks(vars_, len(shape), pieces))
        start += out.size
    value = tuple(found) if several else found[0]
    return (value, aux) if problem.has_aux else value


def diagonal_in_loop(problem: Problem, total: bool) -> Any:
    """Entries of the Hessian's diagonal, a product each: flat, one Tensor a variable; or for `total`, their sum."""
    vars_ = problem.vars
    outs, several, aux = outputs(problem)
    width = sum(out.size for out in outs)
    if width != 1 and not total:
        raise ValueError(f"fn must return one number (a Tensor with one element), but its output has {width} of them")
    dtype = numpy_dtype(vars_.dtypes[0])
    entries = np.empty((width, sum(vars_.sizes)), np.result_type(*map(numpy_dtype, vars_.dtypes)))
    for m, row, parts in _row_by_row(problem, width, outs[0].dtype):
        entries[m, row] = np.concatenate([part.reshape(-1) for part in parts])[row]
    if total:
        sums = np.split(entries.sum(-1).astype(dtype), np.cumsum([out.size for out in outs])[:-1])
        shaped = tuple(Tensor(part.reshape(tuple(out.shape))) for part, out in zip(sums, outs, strict=True))
        value: Any = shaped if several else shaped[0]
    else:
        value = cut_line(vars_.shapes, vars_.dtypes, entries[0])
    return (value, aux) if problem.has_aux else value


def cut_line(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any], line: np.ndarray) -> tuple[Tensor, ...]:
    """N numbers, one for each entry of the variables, as one Tensor for each variable."""
    cuts = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])[:-1]
    return tuple(to_tensor(part.reshape(shape), dtype)
                 for part, shape, dtype in zip(np.split(line, cuts), shapes, dtypes, strict=True))


def numpy_dtype(dtype: Any) -> Any:
    """The dtype in which numpy holds it; it has no bfloat16."""
    return _IN_NUMPY[dtype]


_IN_NUMPY = {ms.float16: np.float16, ms.bfloat16: np.float32, ms.float32: np.float32, ms.float64: np.float64}


def jacobian_in_chunks(problem: Problem, chunk: int, batched: bool = True) -> Any:
    """The Jacobian, `chunk` outputs at a time, or one at a time without batching."""
    vars_ = problem.vars
    outs, several, aux = outputs(problem)
    total = sum(out.size for out in outs)
    count = min(chunk, total)

    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return blocks.jacobian_rows(f, v.positions, v.parameters, count if batched else None)

    buffers = [np.empty((total, *shape), numpy_dtype(dtype))
               for shape, dtype in zip(vars_.shapes, vars_.dtypes, strict=True)]
    for start in starts(total, count):
        parts = problem.run("jacobian", kernel, ("rows", count, batched), (Tensor(start, ms.int64),))
        for buffer, part in zip(buffers, parts[0] if problem.has_aux else parts, strict=True):
            buffer[start:start + count] = _compat.to_numpy(part)
    lines, start = [], 0
    for out in outs:
        lines.append(tuple(to_tensor(b[start:start + out.size].reshape((*out.shape, *shape)), dtype)
                           for b, shape, dtype in zip(buffers, vars_.shapes, vars_.dtypes, strict=True)))
        start += out.size
    value = tuple(lines) if several else lines[0]
    return (value, aux) if problem.has_aux else value


def in_sample_chunks(problem: Problem, axes: tuple[int | None, ...], chunk: int | None,
                     run: Callable[[Problem], Any]) -> Any:
    """A batched transform, `chunk` samples at a time, joined along axis 0.

    Args:
        axes: the batch axis of each leaf; None where it has none.
        run: computes one chunk, given the problem with its leaves cut.
    """
    sizes = {leaf.shape[axis] for leaf, axis in zip(problem.call.leaves, axes, strict=True) if axis is not None}
    total = sizes.pop()
    if chunk is None or chunk >= total:
        return run(problem)
    pieces: list[Any] = []
    done = 0
    for start in starts(total, chunk):
        leaves = tuple(leaf if axis is None else leaf.narrow(axis, start, chunk)
                       for leaf, axis in zip(problem.call.leaves, axes, strict=True))
        part = run(replace(problem, call=replace(problem.call, leaves=leaves)))
        skip = done - start  # the last chunk overlaps the one before
        pieces.append(map_structure(lambda t, skip=skip: _compat.to_numpy(t)[skip:].copy(), part))
        done = start + chunk
    return _join(pieces)


def sample_by_sample(problem: Problem, axes: tuple[int | None, ...], run: Callable[[Problem], Any]) -> Any:
    """A batched transform without batching: `run`, given the problem of one sample, for each; stacked on axis 0."""
    size = next(leaf.shape[axis] for leaf, axis in zip(problem.call.leaves, axes, strict=True) if axis is not None)
    pieces = []
    for number in range(size):
        leaves = tuple(leaf if axis is None else leaf.narrow(axis, number, 1).squeeze(axis)
                       for leaf, axis in zip(problem.call.leaves, axes, strict=True))
        part = run(replace(per_sample(problem, axes), call=replace(problem.call, leaves=leaves)))
        pieces.append(map_structure(lambda t: _compat.to_numpy(t)[None].copy(), part))
    return _join(pieces)


def per_sample(problem: Problem, axes: tuple[int | None, ...]) -> Problem:
    """The problem of one sample: the shapes of the variables without their batch axis."""
    v = problem.vars
    shapes = list(v.shapes)
    for number, leaf in enumerate(v.positions):
        axis = axes[leaf]
        if axis is not None:
            shapes[number] = shapes[number][:axis] + shapes[number][axis + 1:]
    return replace(problem, vars=replace(v, shapes=tuple(shapes)), aux_axes=None)


def _join(pieces: list[Any]) -> Any:
    if isinstance(pieces[0], tuple):
        return tuple(_join([piece[i] for piece in pieces]) for i in range(len(pieces[0])))
    return Tensor(np.concatenate(pieces))
