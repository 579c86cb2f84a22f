"""Diagonals, their sums, and per-sample Hessians: without the full matrix, or a small one for each
sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.program import (
    Builder,
    Function,
    Point,
    Program,
    check_chunk,
    check_transform,
)
from mindspore_hessian.core.space import FIRST, Space, several_weights, to_tensor, unraveled
from mindspore_hessian.core.transform import Evaluation, as_it_is, derived, makes
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms.chunks import (
    batched_or_loop,
    diagonal_in_loop,
    in_sample_chunks,
    sample_by_sample,
    starts,
)
from mindspore_hessian.transforms.hessian import blocks_at_one_point, hessian_kernel
from mindspore_hessian.typing import Axes, Positions, Weights


def sample_axes(point: Point, in_axes: Any, args: tuple) -> tuple[int | None, ...]:
    """The batch axis of each leaf, checked: ``in_axes`` is an int for every Tensor argument, or a
    tuple.
    """
    per_argument = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
    if len(per_argument) != len(args):
        raise ValueError(
            f"in_axes must have one entry for each of the {len(args)} arguments, but has "
            f"{len(per_argument)}"
        )
    axes: list[int | None] = [None] * len(point.call.leaves)
    sizes: dict[int, int] = {}
    for number, (argument, axis) in enumerate(zip(args, per_argument, strict=True)):
        if axis is None or number not in point.call.index:
            continue
        if not is_integer(axis):
            raise TypeError(f"in_axes must hold ints and None, but got {shown(axis)}")
        if not -argument.ndim <= axis < argument.ndim:
            raise ValueError(
                f"in_axes: argument {number} of shape {tuple(argument.shape)} has no axis {axis}"
            )
        axes[point.call.index[number]] = axis % argument.ndim
        sizes[number] = argument.shape[axis]
    if not sizes:
        raise ValueError("in_axes: no Tensor argument has a batch axis")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"in_axes: the arguments have batches of different sizes: {sizes}")
    return tuple(axes)


@overload
def hessian_diag(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def hessian_diag(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
) -> Callable[..., Any]: ...


@makes
def hessian_diag(
    fn: Callable[..., Any],
    grad_position: Positions = FIRST,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    in_axes: Axes = None,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    r"""Exact diagonal of the Hessian, :math:`\partial^2 f / \partial x_i^2`, without storing the
    Hessian.

    Costs one Hessian-vector product for each entry, `chunk_size` of them at a time. (For an
    estimate with fewer products see the estimators.)

    Args:
        fn: any callable that returns one number, or with `in_axes` one for each sample.
        grad_position, has_aux, weights: as `hessian`.
        in_axes: None: one point. An int, or a tuple with an entry (int or None) for each argument:
            the axis of the samples, and `fn` takes one sample; the result has the samples on axis
            0.
        chunk_size: so many entries (with `in_axes`: samples) at a time; the memory is that of as
            many products.

    Returns:
        ``diag_fn(*args)``: shaped like what is differentiated (a Tensor; a tuple for a tuple of
            positions or weights); with `has_aux`, ``(diagonal, aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 5.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import hessian_diag
        >>> print(hessian_diag(lambda x: (x ** 3).sum())(ms.Tensor([1.0, 2.0])))
        [ 6. 12.]
    """
    return derived(
        "diag_fn",
        fn,
        entries("hessian_diag", fn, grad_position, has_aux, weights, in_axes, chunk_size),
    )


def _entries(name: str) -> Builder:
    """The diagonal, a Tensor a variable, or the Laplacian, at one point."""

    def build(function: Function, space: Space) -> Callable:
        check = blocks.tensors if name == "laplacian" else compose.scalar
        diagonal = blocks.diagonal(
            function.value, space.positions, space.parameters, None, name == "laplacian", check
        )
        split = unraveled(space.positions, space.parameters)

        def one(*xs):
            out = diagonal(*(xs + (0,)))
            if name == "hessian_diag":
                return split(xs, out)
            return out

        return one

    return build


_ENTRIES = {
    name: Program(name, _entries(name), ("entries",)) for name in ("hessian_diag", "laplacian")
}


def entries(
    name: str,
    fn: Any,
    grad_position: Any,
    has_aux: bool,
    weights: Any,
    in_axes: Any,
    chunk_size: int | None,
) -> Callable[[tuple, dict], Evaluation]:
    """``evaluate(args, kwargs)`` of the diagonal ("hessian_diag") or its sum ("laplacian"), by
    reverse derivatives.
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_chunk(chunk_size)

    def at_one_point(point: Point) -> tuple[Any, Any]:
        return batched_or_loop(
            name,
            lambda: _in_pieces(point, name, chunk_size if in_axes is None else None),
            lambda: diagonal_in_loop(point, name == "laplacian"),
        )

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, weights, has_aux)
        pack = as_it_is if name == "laplacian" else point.space.pack
        if in_axes is None:
            return Evaluation(point, _ENTRIES[name], pack=pack, run=lambda: at_one_point(point))
        return _of_samples(
            point, _ENTRIES[name], sample_axes(point, in_axes, args), chunk_size, at_one_point, pack
        )

    return evaluate


def _of_samples(
    point: Point,
    program: Program,
    axes: tuple[int | None, ...],
    chunk_size: int | None,
    at_one_point: Callable[[Point], tuple[Any, Any]],
    pack: Callable,
) -> Evaluation:
    """A program of one sample, for each of them: at once, so many at a time, or one after
    another.
    """
    batched = program.over(axes)

    def run() -> tuple[Any, Any]:
        return batched_or_loop(
            program.name,
            lambda: in_sample_chunks(point, axes, chunk_size, batched.run),
            lambda: sample_by_sample(point, axes, at_one_point),
        )

    return Evaluation(point, batched, pack=pack, run=run)


def _in_pieces(point: Point, name: str, chunk_size: int | None) -> tuple[Any, Any]:
    """At one point: entries of the diagonal, a chunk at a time; flat over the variables, or their
    sum.
    """
    space = point.space
    total = space.size
    count = min(chunk_size or total, total)
    whole = count == total and name == "laplacian"

    def build(function: Function, space: Space) -> Callable:
        check = blocks.tensors if name == "laplacian" else compose.scalar
        return blocks.diagonal(
            function.value, space.positions, space.parameters, count, whole, check
        )

    program, pieces, done = Program(name, build, (count, whole)), [], 0
    for start in starts(total, count):
        value, aux = program.run(point, (Tensor(start, ms.int64),))
        if whole:
            return value, aux
        skip, done = done - start, start + count  # the last piece overlaps the one before
        pieces.append(
            [
                _compat.to_numpy(part)[..., skip:].copy()
                for part in (value if isinstance(value, tuple) else (value,))
            ]
        )
    joined = [np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True)]
    if name == "hessian_diag":
        return space.unravel(joined[0].reshape(-1)), aux
    sums = tuple(to_tensor(np.asarray(entries.sum(-1)), space.dtypes[0]) for entries in joined)
    return (sums if isinstance(value, tuple) else sums[0]), aux


@overload
def batched_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def batched_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
) -> Callable[..., Any]: ...


@makes
def batched_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = 0,
    has_aux: bool = False,
    *,
    in_axes: Axes = 0,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    r"""Hessian of each sample of a batch: ``vmap(hessian(fn))``, compiled once.

    Costs one Hessian-vector product for each input entry of a sample, over all samples and entries
    in one batch.

    Args:
        fn: any callable of **one sample** (so samples cannot mix, as they would in a batch norm in
            training mode).
        grad_position, has_aux: as `hessian`.
        in_axes: the axis of the samples: an int for every Tensor argument, or a tuple with an entry
            (int or None) for each argument.
        chunk_size: so many samples at a time.

    Returns:
        ``hess_fn(*args)``: as `hessian`, with the samples on axis 0.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 5.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import batched_hessian
        >>> points = ms.Tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> print(batched_hessian(lambda x: (x ** 3).sum())(points).shape)
        (2, 2, 2)
    """
    check_transform(fn, grad_position, has_aux)
    check_chunk(chunk_size)
    if in_axes is None:
        raise ValueError("in_axes is None; for one point use hessian()")

    program = Program("batched_hessian", hessian_kernel("revrev"))

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, None, has_aux)
        return _of_samples(
            point,
            program,
            sample_axes(point, in_axes, args),
            chunk_size,
            blocks_at_one_point,
            blocks.packed(point.space.form == "one", 2),
        )

    return derived("hess_fn", fn, evaluate)
