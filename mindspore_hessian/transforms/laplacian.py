"""The Laplacian and its like, in one forward pass or by reverse derivatives."""
from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspore_hessian import _compat
from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.in_graph import WEIGHTS_INSIDE, Made, Recipe, outside, readable_in_graph
from mindspore_hessian.core.program import Problem, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Variables, several_weights
from mindspore_hessian.transforms import forward as passes
from mindspore_hessian.transforms.chunks import in_sample_chunks, per_sample, to_tensor
from mindspore_hessian.transforms.diagonal import diagonal_fn, sample_axes

MODES = ("auto", "forward", "reverse")


@dataclass(frozen=True)
class _Task:
    """A call of `laplacian` or its like: the problem, the axes of its samples, and the directions."""

    problem: Problem
    axes: passes.Axes
    directions: passes.Directions
    sample: Variables

    @classmethod
    def of(cls, problem: Problem, in_axes: Any, args: tuple, along: Any, metric: Any) -> _Task:
        axes = None if in_axes is None else sample_axes(problem, in_axes, args)
        sample = problem.vars if axes is None else per_sample(problem, axes).vars
        problem = problem if axes is None else problem.of_samples(axes)
        return cls(problem, axes, passes.Directions.of(along, metric, sum(sample.sizes)), sample)

    @property
    def key(self) -> tuple:
        return self.axes, self.directions.key

    def in_pieces(self, run: Callable[[Problem], Any], chunk: int | None) -> Any:
        """``run`` on all samples, or so many at a time."""
        return run(self.problem) if self.axes is None else in_sample_chunks(self.problem, self.axes, chunk, run)


def _laplacian_in_graph(fn, grad_position=0, has_aux=False, *, weights=None, in_axes=None, chunk_size=None,
                        mode="auto", along=None, metric=None):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    return Made(_LAPLACIAN, fn, grad_position, has_aux, in_axes, chunk_size, mode, along, metric)


@readable_in_graph(_laplacian_in_graph)
def laplacian(fn: Any, grad_position: Any = FIRST, has_aux: bool = False, *, weights: Any = None, in_axes: Any = None,
              chunk_size: int | None = None, mode: str = "auto", along: Any = None, metric: Any = None) -> Callable:
    r"""Laplacian, the trace of the Hessian, :math:`\Delta f = \sum_i \partial^2 f / \partial x_i^2`, exactly.

    For a network on many points (a PINN), pass ``in_axes=0`` and a function of one point. The Laplacian can be
    differentiated by the weights, inside ``mindspore.grad`` and training steps.

    In one forward pass, which carries value, D first derivatives and Laplacian from operation to operation, and costs
    about D + 2 evaluations of `fn` for D inputs; by reverse derivatives, one Hessian-vector product for each input, all
    in one batch, which take about twice as long. The Hessian is not stored.

    Args:
        fn: any callable that returns a Tensor (the Laplacian of each entry) or a tuple of Tensors.
        grad_position, has_aux, weights, in_axes, chunk_size: as `hessian_diag`. Over several positions it is the sum
            of their Laplacians.
        mode: ``"forward"``; ``"reverse"``; or ``"auto"``: forward where every primitive of `fn` has a forward rule,
            else reverse, with a warning. Over weights it is always reverse.
        along: an int or a tuple of ints: only the second derivatives by these entries of the (flat) inputs, counted on
            over several positions: without time, for one.
        metric: a symmetric (n, n) array: :math:`\sum_{ij} a_{ij} \partial_i \partial_j f` over the n entries (those
            of `along`). One that is indefinite costs two passes.

    Returns:
        ``lap_fn(*args)``: shaped like the output of `fn`; with `in_axes`, the samples come first; with `has_aux`,
        ``(laplacian, aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError: as `hessian`.
        MissingRuleError: as `hessian`, and with ``mode="forward"`` where a primitive has no forward rule.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        R. Li et al., A computational framework for neural network-based variational Monte Carlo with Forward
        Laplacian, Nature Machine Intelligence 6, 2024.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import laplacian
        >>> points = ms.Tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> print(laplacian(lambda x: (x ** 3).sum(), in_axes=0)(points))
        [18. 42.]
        >>> print(laplacian(lambda x: (x ** 3).sum(), in_axes=0, along=1)(points))
        [12. 24.]
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_chunk(chunk_size)
    check_choice("mode", mode, MODES)
    passes.check_along(along)
    passes.check_metric(metric)
    by_reverse = diagonal_fn(laplacian, fn, grad_position, has_aux, weights, in_axes, chunk_size, "laplacian")
    plain = along is None and metric is None
    if weights is not None and (mode == "forward" or not plain):
        raise ValueError("mode='forward', along and metric are of inputs, not of weights")
    if weights is not None or (plain and mode == "reverse"):
        return by_reverse

    def task(args, kwargs):
        return _Task.of(Problem.of(fn, args, kwargs, grad_position, None, has_aux), in_axes, args, along, metric)

    def build_in_graph(args):
        return _in_graph(task(args, {}), args, mode)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(laplacian, assigned=("__module__",), updated=())
    def lap_fn(*args, **kwargs):
        made = task(args, kwargs)
        if plain and passes.known_unable(made.problem, made.key) and mode == "auto":
            return by_reverse(*args, **kwargs)
        fell_back = []

        def backwards():
            fell_back.append(True)
            return by_reverse(*args, **kwargs) if plain else _by_reverse(made, chunk_size)
        result = passes.first_choice("laplacian", made.problem, mode, made.key,
                                     lambda: _by_forward(made, chunk_size), backwards)
        return result if fell_back and plain else made.problem.finish("laplacian", result, lambda value: value)
    return lap_fn


def _value_grad_and_laplacian_in_graph(fn, grad_position=0, has_aux=False, *, in_axes=None, chunk_size=None,
                                       mode="auto"):
    return Made(_ALL, fn, grad_position, has_aux, in_axes, chunk_size, mode)


@readable_in_graph(_value_grad_and_laplacian_in_graph)
def value_grad_and_laplacian(fn: Any, grad_position: Any = 0, has_aux: bool = False, *, in_axes: Any = None,
                             chunk_size: int | None = None, mode: str = "auto") -> Callable:
    r"""Value, gradient and Laplacian of a scalar function, :math:`(f, \nabla f, \Delta f)`.

    A forward pass has all three: the cost is that of the Laplacian.

    Args:
        fn: any callable that returns one number, or with `in_axes` one for each sample.
        grad_position, has_aux, in_axes, mode: as `laplacian`.
        chunk_size: with `in_axes`, so many samples at a time.

    Returns:
        ``fn(*args)`` giving ``(value, gradient, laplacian)``; with `in_axes`, the samples come first in each. The
        gradient is a Tensor, for a tuple of positions a tuple. With `has_aux`,
        ``((value, gradient, laplacian), aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `laplacian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        R. Li et al., A computational framework for neural network-based variational Monte Carlo with Forward
        Laplacian, Nature Machine Intelligence 6, 2024.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import value_grad_and_laplacian
        >>> value, gradient, second = value_grad_and_laplacian(lambda x: (x ** 3).sum())(ms.Tensor([1.0, 2.0]))
        >>> print(value, gradient, second)
        9.0 [ 3. 12.] 18.0
    """
    check_transform(fn, grad_position, has_aux)
    check_chunk(chunk_size)
    check_choice("mode", mode, MODES)

    def task(args, kwargs):
        return _Task.of(Problem.of(fn, args, kwargs, grad_position, None, has_aux), in_axes, args, None, None)

    def kernel_of(made, mode):
        def kernel(f: Callable, n: int, v: Variables) -> Callable:
            if mode == "reverse":
                return passes.everything_by_reverse(f, made.axes, made.sample)
            return passes.everything(f, v, made.axes, made.sample, n if mode == "auto" else None)
        return kernel

    def packed(made):
        pack = made.problem.vars.packer()

        def all_three(value):
            return value[0], pack(value[1]), value[2]
        return all_three

    def build_in_graph(args):
        made = task(args, {})
        forwards = passes.goes_forward("value_grad_and_laplacian", made.problem, mode)
        return made.problem.in_graph(kernel_of(made, mode if forwards else "reverse"), packed(made), args)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(value_grad_and_laplacian, assigned=("__module__",), updated=())
    def all_fn(*args, **kwargs):
        made = task(args, kwargs)

        def run(way: str) -> Callable[[], Any]:
            name, kernel = "value_grad_and_laplacian", kernel_of(made, way)
            return lambda: made.in_pieces(lambda part: part.run(name, kernel, (way, *made.key)), chunk_size)
        result = passes.first_choice("value_grad_and_laplacian", made.problem, mode, ("all", *made.key),
                                     run("forward"), run("reverse"))
        return made.problem.finish("value_grad_and_laplacian", result, packed(made))
    return all_fn


def _in_graph(task: _Task, given: tuple, mode: str) -> Callable:
    forwards = passes.goes_forward("laplacian", task.problem, mode)

    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        if not forwards:
            return passes.reverse(f, task.axes, task.directions, task.sample)
        otherwise = passes.instead(task.sample, task.axes, n) if mode == "auto" else None
        return passes.forward(f, v, task.axes, task.directions, otherwise)

    def alone(value):
        return value
    return task.problem.in_graph(kernel, alone, given)


def _by_reverse(task: _Task, chunk: int | None) -> Any:
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return passes.reverse(f, task.axes, task.directions, task.sample)
    return task.in_pieces(lambda part: part.run("laplacian", kernel, ("reverse", *task.key)), chunk)


def _by_forward(task: _Task, chunk: int | None) -> Any:
    if task.axes is None and chunk is not None:
        return _some_directions(task, chunk)

    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return passes.forward(f, v, task.axes, task.directions, None)
    return task.in_pieces(lambda part: part.run("laplacian", kernel, ("forward", *task.key)), chunk)


def _some_directions(task: _Task, chunk: int) -> Any:
    """At one point, `chunk` directions at a time; rows of zeros fill up the last ones."""
    v, sizes = task.problem.vars, task.problem.vars.sizes

    def kernel(f: Callable, n: int, vars_: Variables) -> Callable:
        return passes.along_given(f, vars_, n)

    found = []
    for sign, rows in task.directions.signed(sum(sizes)):
        for start in range(0, len(rows), chunk):
            some = np.zeros((chunk, sum(sizes)))
            some[:len(rows[start:start + chunk])] = rows[start:start + chunk]
            parts = np.split(some, np.cumsum(sizes)[:-1], axis=1)
            extras = tuple(to_tensor(part.reshape(chunk, *shape), dtype)
                           for part, shape, dtype in zip(parts, v.shapes, v.dtypes, strict=True))
            result = task.problem.run("laplacian", kernel, ("directions", chunk), extras)
            value, aux = result if task.problem.has_aux else (result, None)
            outputs = value if isinstance(value, tuple) else (value,)
            found.append([sign * _compat.to_numpy(one) for one in outputs])
    sums = tuple(to_tensor(np.asarray(sum(pieces)), one.dtype)
                 for pieces, one in zip(zip(*found, strict=True), outputs, strict=True))
    done = sums if isinstance(value, tuple) else sums[0]
    return (done, aux) if task.problem.has_aux else done


_LAPLACIAN = Recipe(lambda fn, grad_position, has_aux, in_axes, chunk_size, mode, along, metric: laplacian(
    fn, grad_position, has_aux, in_axes=in_axes, chunk_size=chunk_size, mode=mode, along=along, metric=metric))
_ALL = Recipe(lambda fn, grad_position, has_aux, in_axes, chunk_size, mode: value_grad_and_laplacian(
    fn, grad_position, has_aux, in_axes=in_axes, chunk_size=chunk_size, mode=mode))
