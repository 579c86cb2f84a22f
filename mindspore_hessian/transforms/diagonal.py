"""Diagonals, Laplacians and per-sample Hessians: without the full matrix, or a small one for each sample."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, vmap

from mindspore_hessian import _compat
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.in_graph import WEIGHTS_INSIDE, Made, Recipe, outside, readable_in_graph
from mindspore_hessian.core.program import Problem, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Variables, several_weights
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms.chunks import (
    batched_or_loop,
    cut_line,
    diagonal_in_loop,
    in_sample_chunks,
    is_several,
    sample_by_sample,
    starts,
    to_tensor,
)
from mindspore_hessian.transforms.hessian import blocks_at_one_point


def sample_axes(problem: Problem, in_axes: Any, args: tuple) -> tuple[int | None, ...]:
    """The batch axis of each leaf, checked: ``in_axes`` is an int for every Tensor argument, or a tuple."""
    per_argument = in_axes if isinstance(in_axes, tuple | list) else (in_axes,) * len(args)
    if len(per_argument) != len(args):
        raise ValueError(f"in_axes must have one entry for each of the {len(args)} arguments, but has "
                         f"{len(per_argument)}")
    axes: list[int | None] = [None] * len(problem.call.leaves)
    sizes: dict[int, int] = {}
    for number, (argument, axis) in enumerate(zip(args, per_argument, strict=True)):
        if axis is None or number not in problem.call.index:
            continue
        if not is_integer(axis):
            raise TypeError(f"in_axes must hold ints and None, but got {shown(axis)}")
        if not -argument.ndim <= axis < argument.ndim:
            raise ValueError(f"in_axes: argument {number} of shape {tuple(argument.shape)} has no axis {axis}")
        axes[problem.call.index[number]] = axis % argument.ndim
        sizes[number] = argument.shape[axis]
    if not sizes:
        raise ValueError("in_axes: no Tensor argument has a batch axis")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"in_axes: the arguments have batches of different sizes: {sizes}")
    return tuple(axes)


def batched_kernel(matrix: Callable, axes: tuple[int | None, ...]) -> Callable:
    """``vmap`` of a kernel over the samples; inputs without a batch axis, and weights, are shared."""
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return vmap(matrix(f, v), in_axes=axes if n > 1 else axes[0])
    return kernel


def _per_sample_in_graph(problem, given, in_axes, kind):
    """A diagonal, a Laplacian or the blocks of a Hessian, at one point or at many."""
    v, axes = problem.vars, None if in_axes is None else sample_axes(problem, in_axes, given)
    pack, one = v.packer(), v.form == "one"

    def matrix(f, v):
        return blocks.hessian(f, v.positions, None, "revrev") if kind == "hessian" else _entries(f, v, kind)

    def kernel(f, n, v):
        return matrix(f, v) if axes is None else batched_kernel(matrix, axes)(f, n, v)

    def of_blocks(value):
        if isinstance(value[0][0], tuple):
            out = ()
            for output in value:
                out = out + ((output[0][0] if one else output),)
            return out
        return value[0][0] if one else value

    def alone(value):
        return value
    pack_of = {"diagonal": pack, "laplacian": alone, "hessian": of_blocks}
    return (problem if axes is None else problem.of_samples(axes)).in_graph(kernel, pack_of[kind], given)


def _hessian_diag_in_graph(fn, grad_position=0, has_aux=False, *, weights=None, in_axes=None, chunk_size=None):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    return Made(_DIAGONAL, fn, grad_position, has_aux, in_axes, chunk_size)


def _batched_hessian_in_graph(fn, grad_position=0, has_aux=False, *, in_axes=0, chunk_size=None):
    return Made(_BATCHED, fn, grad_position, has_aux, in_axes, chunk_size)


@readable_in_graph(_hessian_diag_in_graph)
def hessian_diag(fn: Any, grad_position: Any = FIRST, has_aux: bool = False, *, weights: Any = None,
                 in_axes: Any = None, chunk_size: int | None = None) -> Callable:
    r"""Exact diagonal of the Hessian, :math:`\partial^2 f / \partial x_i^2`, without storing the Hessian.

    Costs one Hessian-vector product for each entry, `chunk_size` of them at a time. (For an estimate with fewer
    products see the estimators.)

    Args:
        fn: any callable that returns one number, or with `in_axes` one for each sample.
        grad_position, has_aux, weights: as `hessian`.
        in_axes: None: one point. An int, or a tuple with an entry (int or None) for each argument: the axis of the
            samples, and `fn` takes one sample; the result has the samples on axis 0.
        chunk_size: so many entries (with `in_axes`: samples) at a time; the memory is that of as many products.

    Returns:
        ``diag_fn(*args)``: shaped like what is differentiated (a Tensor; a tuple for a tuple of positions or
        weights); with `has_aux`, ``(diagonal, aux)``.

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
    return diagonal_fn(hessian_diag, fn, grad_position, has_aux, weights, in_axes, chunk_size, "diagonal")


def diagonal_fn(public: Callable, fn: Any, grad_position: Any, has_aux: bool, weights: Any, in_axes: Any,
                 chunk_size: int | None, kind: str) -> Callable:
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_chunk(chunk_size)
    name = public.__name__

    def build_in_graph(args):
        return _per_sample_in_graph(Problem.of(fn, args, {}, grad_position, weights, has_aux), args, in_axes, kind)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(public, assigned=("__module__",), updated=())
    def diag_fn(*args, **kwargs):
        problem = Problem.of(fn, args, kwargs, grad_position, weights, has_aux)

        def at_one_point(part: Problem) -> Any:
            return batched_or_loop(name, lambda: _in_pieces(part, name, kind, chunk_size if in_axes is None else None),
                                   lambda: diagonal_in_loop(part, kind == "laplacian"))

        def at_points(part: Problem) -> Any:
            return part.run(name, batched_kernel(functools.partial(_entries, kind=kind), axes), (kind, axes))

        if in_axes is None:
            result = at_one_point(problem)
        else:
            axes = sample_axes(problem, in_axes, args)
            samples = problem.of_samples(axes)
            result = batched_or_loop(name, lambda: in_sample_chunks(samples, axes, chunk_size, at_points),
                                     lambda: sample_by_sample(problem, axes, at_one_point))
        return problem.finish(name, result, problem.vars.pack if kind == "diagonal" else lambda value: value)
    return diag_fn


def _entries(f: Callable, v: Variables, kind: str) -> Callable:
    """The diagonal, a Tensor a variable, or its sum, at one point: for `batched_kernel`."""
    check = blocks.tensors if kind == "laplacian" else compose.scalar
    entries = blocks.diagonal(f, v.positions, v.parameters, None, kind == "laplacian", check)
    split = blocks.split_line(v.positions, v.parameters)

    def one(*xs):
        out = entries(*(xs + (0,)))
        if kind == "diagonal":
            return split(xs, out)
        return out
    return one


def _in_pieces(problem: Problem, name: str, kind: str, chunk_size: int | None) -> Any:
    """At one point: entries of the diagonal, a chunk at a time; flat over the variables, or their sum."""
    v = problem.vars
    total = sum(v.sizes)
    count = min(chunk_size or total, total)
    whole = count == total and kind == "laplacian"

    def kernel(f: Callable, n: int, vars_: Variables) -> Callable:
        check = blocks.tensors if kind == "laplacian" else compose.scalar
        return blocks.diagonal(f, vars_.positions, vars_.parameters, count, whole, check)

    pieces, aux, done = [], None, 0
    for start in starts(total, count):
        result = problem.run(name, kernel, (count, whole), (Tensor(start, ms.int64),))
        value, aux = result if problem.has_aux else (result, None)
        if whole:
            return result
        skip, done = done - start, start + count  # the last piece overlaps the one before
        pieces.append([_compat.to_numpy(part)[..., skip:].copy()
                       for part in (value if isinstance(value, tuple) else (value,))])
    joined = [np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True)]
    if kind == "laplacian":
        sums = tuple(to_tensor(np.asarray(entries.sum(-1)), v.dtypes[0]) for entries in joined)
        done_value: Any = sums if isinstance(value, tuple) else sums[0]
    else:
        done_value = cut_line(v.shapes, v.dtypes, joined[0].reshape(-1))
    return (done_value, aux) if problem.has_aux else done_value


@readable_in_graph(_batched_hessian_in_graph)
def batched_hessian(fn: Any, grad_position: Any = 0, has_aux: bool = False, *, in_axes: Any = 0,
                    chunk_size: int | None = None) -> Callable:
    r"""Hessian of each sample of a batch: ``vmap(hessian(fn))``, compiled once.

    Costs one Hessian-vector product for each input entry of a sample, over all samples and entries in one batch.

    Args:
        fn: any callable of **one sample** (so samples cannot mix, as they would in a batch norm in training mode).
        grad_position, has_aux: as `hessian`.
        in_axes: the axis of the samples: an int for every Tensor argument, or a tuple with an entry (int or None) for
            each argument.
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

    def build_in_graph(args):
        problem = Problem.of(fn, args, {}, grad_position, None, has_aux)
        return _per_sample_in_graph(problem, args, in_axes, "hessian")

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(batched_hessian, assigned=("__module__",), updated=())
    def hess_fn(*args, **kwargs):
        problem = Problem.of(fn, args, kwargs, grad_position, None, has_aux)
        axes = sample_axes(problem, in_axes, args)

        def matrix(f: Callable, v: Variables) -> Callable:
            return blocks.hessian(f, v.positions, None, "revrev")

        def run(part: Problem) -> Any:
            return part.run("batched_hessian", batched_kernel(matrix, axes), (axes,))

        result = batched_or_loop("batched_hessian",
                                 lambda: in_sample_chunks(problem.of_samples(axes), axes, chunk_size, run),
                                 lambda: sample_by_sample(problem, axes, blocks_at_one_point))
        return problem.finish("batched_hessian", result, lambda value: _pack(problem, value))
    return hess_fn


def _pack(problem: Problem, blocks: Any) -> Any:
    if is_several(blocks) and is_several(blocks[0]):
        return tuple(_pack(problem, output) for output in blocks)
    return blocks[0][0] if problem.vars.form == "one" else blocks


def _recipe(public: Callable) -> Recipe:
    return Recipe(lambda fn, grad_position, has_aux, in_axes, chunk_size: public(
        fn, grad_position, has_aux, in_axes=in_axes, chunk_size=chunk_size))


_DIAGONAL, _BATCHED = map(_recipe, (hessian_diag, batched_hessian))
