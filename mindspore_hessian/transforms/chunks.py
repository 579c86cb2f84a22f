"""Matrices too large for one pass, or without batching rules: computed in pieces, put together in
numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import (
    UNBATCHED,
    FallbackWarning,
    HessianError,
    UnsafeRuntimeError,
    warn,
)
from mindspore_hessian.core.program import Builder, Function, Point, Program
from mindspore_hessian.core.space import Space, map_structure, numpy_dtype, to_tensor
from mindspore_hessian.rules.missing import unbatched_only
from mindspore_hessian.transforms import blocks


def batched_or_loop(name: str, batched: Callable[[], Any], loop: Callable[[], Any]) -> Any:
    """`batched`, or `loop` with a warning: where a batching rule is missing, which it names, and
    where MindSpore fails inside itself at the batched graph, as at loops over Tensors that read
    weights.

    MindSpore itself would unroll a primitive without a rule into as many copies as there are rows.
    """
    try:
        with _compat.batching_rules_watched(unbatched_only) as asked:
            return batched()
    except (HessianError, RuntimeError, TypeError) as err:  # as MindSpore passes our refusal on
        missing = [
            primitive for primitive, there in asked.items() if not there
        ] or UNBATCHED.findall(str(err))
        if isinstance(err, UnsafeRuntimeError) or not (missing or _compat.lost_its_way(err)):
            raise
    result = (
        loop()
    )  # where the function itself is at fault, this says so better than the batched version
    cause, remedy = "MindSpore fails inside itself at the batched graph", ""
    if missing:
        cause = f"primitive {missing[0]} has no batching rule"
        remedy = f" Supply one: mindspore_hessian.rules.register_batching({missing[0]!r}, getter)."
    warn(f"{name}: {cause}, so the rows are computed one after another.{remedy}", FallbackWarning)
    return result


def starts(total: int, count: int) -> list[int]:
    """First rows of the pieces; the last piece overlaps its neighbour, so that all have one
    shape.
    """
    return [min(start, total - count) for start in range(0, total, count)]


def is_several(result: Any) -> bool:
    """Whether a kernel's result is that of several outputs: a tuple of tuples."""
    return isinstance(result, tuple) and bool(result) and isinstance(result[0], tuple)


def _builder(make: Callable, *options: Any) -> Builder:
    """A builder of a factory of `blocks`."""

    def build(function: Function, space: Space) -> Callable:
        return make(function.value, space.positions, space.parameters, *options)

    return build


_OUTPUTS = Program("outputs", lambda function, space: blocks.tensors(function.value))
_ROW = Program("hessian", _builder(blocks.hessian_row), ("row",))


def hessian_in_chunks(point: Point, chunk: int) -> tuple[Any, Any]:
    """The blocks of the Hessian, `chunk` rows at a time, and aux."""
    space = point.space
    total = space.size
    count = min(chunk, total)
    program = Program("hessian", _builder(blocks.hessian_rows, count), ("rows", count))
    rows: list = []
    for start in starts(total, count):
        value, aux = program.run(point, (Tensor(start, ms.int64),))
        several = is_several(value)
        for number, output in enumerate(value if several else (value,)):
            arrays = [_compat.to_numpy(part) for part in output]
            if number == len(rows):
                lead = arrays[0].ndim - 1 - len(space.shapes[0])
                rows.append(
                    (
                        lead,
                        [
                            np.empty((*a.shape[:lead], total, *a.shape[lead + 1 :]), a.dtype)
                            for a in arrays
                        ],
                    )
                )
            lead, buffers = rows[number]
            for buffer, array in zip(buffers, arrays, strict=True):
                buffer[(slice(None),) * lead + (slice(start, start + count),)] = array
    found = tuple(_blocks(space, lead, buffers) for lead, buffers in rows)
    return (found if several else found[0]), aux


def _blocks(space: Space, lead: int, rows: list[np.ndarray]) -> tuple:
    """Arrays out.shape + (N,) + x_j.shape cut into H[i][j]. One variable: no copy."""
    out = []
    for part, shape in zip(space.slices, space.shapes, strict=True):
        cut = (slice(None),) * lead + (part,)
        out.append(
            tuple(
                to_tensor(
                    row[cut].reshape((*row.shape[:lead], *shape, *row.shape[lead + 1 :])), dtype
                )
                for row, dtype in zip(rows, space.dtypes, strict=True)
            )
        )
    return tuple(out)


def outputs(point: Point) -> tuple[tuple[Tensor, ...], bool, Any]:
    """(outputs, whether there are several, aux), compiled: their shapes are needed before a loop
    over them.
    """
    value, aux = _OUTPUTS.run(point)
    return (value, True, aux) if isinstance(value, tuple) else ((value,), False, aux)


def _row_by_row(
    point: Point, width: int, dtype: Any
) -> Iterator[tuple[int, int, list[np.ndarray]]]:
    """Every row of the Hessian of every flat output, a product each: (output, row, the row over the
    variables).
    """
    for m in range(width):
        u = Tensor(np.eye(1, width, m)[0], dtype)
        for row in range(point.space.size):
            parts, _ = _ROW.run(point, (Tensor(row, ms.int64), u))
            yield m, row, [_compat.to_numpy(part) for part in parts]


def hessian_in_loop(point: Point) -> tuple[Any, Any]:
    """The blocks of the Hessian, a product at a time, and aux."""
    space = point.space
    outs, several, aux = outputs(point)
    width, total = sum(out.size for out in outs), space.size
    buffers = [
        np.empty((width, total, *shape), numpy_dtype(dtype))
        for shape, dtype in zip(space.shapes, space.dtypes, strict=True)
    ]
    for m, row, parts in _row_by_row(point, width, outs[0].dtype):
        for buffer, part in zip(buffers, parts, strict=True):
            buffer[m, row] = part
    found, start = [], 0
    for out in outs:
        shape = tuple(out.shape)
        pieces = [b[start : start + out.size].reshape((*shape, *b.shape[1:])) for b in buffers]
        found.append(_blocks(space, len(shape), pieces))
        start += out.size
    return (tuple(found) if several else found[0]), aux


def diagonal_in_loop(point: Point, total: bool) -> tuple[Any, Any]:
    """Entries of the Hessian's diagonal, a product each: one Tensor a variable; or for `total`,
    their sum; and aux.
    """
    space = point.space
    outs, several, aux = outputs(point)
    width = sum(out.size for out in outs)
    if width != 1 and not total:
        raise ValueError(
            f"fn must return one number (a Tensor with one element), but its output has {width} of "
            "them"
        )
    entries = np.empty((width, space.size), np.result_type(*map(numpy_dtype, space.dtypes)))
    for m, row, parts in _row_by_row(point, width, outs[0].dtype):
        entries[m, row] = np.concatenate([part.reshape(-1) for part in parts])[row]
    if not total:
        return space.unravel(entries[0]), aux
    sums = np.split(
        entries.sum(-1).astype(numpy_dtype(space.dtypes[0])),
        np.cumsum([out.size for out in outs])[:-1],
    )
    shaped = tuple(
        Tensor(part.reshape(tuple(out.shape))) for part, out in zip(sums, outs, strict=True)
    )
    return (shaped if several else shaped[0]), aux


def jacobian_in_chunks(point: Point, chunk: int, batched: bool = True) -> tuple[Any, Any]:
    """The Jacobian, `chunk` outputs at a time, or one at a time without batching; and aux."""
    space = point.space
    outs, several, aux = outputs(point)
    total = sum(out.size for out in outs)
    count = min(chunk, total)
    build = _builder(blocks.jacobian_rows, count if batched else None)
    program = Program("jacobian", build, ("rows", count, batched))
    buffers = [
        np.empty((total, *shape), numpy_dtype(dtype))
        for shape, dtype in zip(space.shapes, space.dtypes, strict=True)
    ]
    for start in starts(total, count):
        parts, _ = program.run(point, (Tensor(start, ms.int64),))
        for buffer, part in zip(buffers, parts, strict=True):
            buffer[start : start + count] = _compat.to_numpy(part)
    lines, start = [], 0
    for out in outs:
        lines.append(
            tuple(
                to_tensor(b[start : start + out.size].reshape((*out.shape, *shape)), dtype)
                for b, shape, dtype in zip(buffers, space.shapes, space.dtypes, strict=True)
            )
        )
        start += out.size
    return (tuple(lines) if several else lines[0]), aux


def in_sample_chunks(
    point: Point,
    axes: tuple[int | None, ...],
    chunk: int | None,
    run: Callable[[Point], tuple[Any, Any]],
) -> tuple[Any, Any]:
    """A batched transform, `chunk` samples at a time, joined along axis 0.

    Args:
        axes: the batch axis of each leaf; None where it has none.
        run: computes one chunk, given the point with its leaves cut.
    """
    total = _samples(point, axes)
    if chunk is None or chunk >= total:
        return run(point)
    pieces: list[Any] = []
    done = 0
    for start in starts(total, chunk):
        leaves = tuple(
            leaf if axis is None else leaf.narrow(axis, start, chunk)
            for leaf, axis in zip(point.call.leaves, axes, strict=True)
        )
        part = run(replace(point, call=replace(point.call, leaves=leaves)))
        skip = done - start  # the last chunk overlaps the one before
        pieces.append(map_structure(lambda t, skip=skip: _compat.to_numpy(t)[skip:].copy(), part))
        done = start + chunk
    return _join(pieces)


def sample_by_sample(
    point: Point, axes: tuple[int | None, ...], run: Callable[[Point], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """A batched transform without batching: `run`, given the point of one sample, for each; stacked
    on axis 0.
    """
    pieces = []
    for number in range(_samples(point, axes)):
        leaves = tuple(
            leaf if axis is None else leaf.narrow(axis, number, 1).squeeze(axis)
            for leaf, axis in zip(point.call.leaves, axes, strict=True)
        )
        part = run(replace(per_sample(point, axes), call=replace(point.call, leaves=leaves)))
        pieces.append(map_structure(lambda t: _compat.to_numpy(t)[None].copy(), part))
    return _join(pieces)


def _samples(point: Point, axes: tuple[int | None, ...]) -> int:
    return next(
        leaf.shape[axis]
        for leaf, axis in zip(point.call.leaves, axes, strict=True)
        if axis is not None
    )


def per_sample(point: Point, axes: tuple[int | None, ...]) -> Point:
    """The point of one sample: the shapes of the variables without their batch axis."""
    space = point.space
    shapes = list(space.shapes)
    for number, leaf in enumerate(space.positions):
        axis = axes[leaf]
        if axis is not None:
            shapes[number] = shapes[number][:axis] + shapes[number][axis + 1 :]
    return replace(point, space=replace(space, shapes=tuple(shapes)))


def _join(pieces: list[Any]) -> Any:
    if isinstance(pieces[0], tuple):
        return tuple(_join([piece[i] for piece in pieces]) for i in range(len(pieces[0])))
    return Tensor(np.concatenate(pieces)) if isinstance(pieces[0], np.ndarray) else pieces[0]
