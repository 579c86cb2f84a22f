"""The Laplacian and its like, in one forward pass or by reverse derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import check_bool, check_choice
from mindspore_hessian.core.program import Function, Point, Program, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Space, several_weights, tensors_of, to_tensor
from mindspore_hessian.core.transform import Evaluation, derived, makes
from mindspore_hessian.transforms import forward as passes
from mindspore_hessian.transforms.chunks import in_sample_chunks, per_sample
from mindspore_hessian.transforms.diagonal import entries, sample_axes
from mindspore_hessian.typing import Axes, ForwardMode, Positions, Weights

MODES = ("auto", "forward", "reverse")


@dataclass(frozen=True)
class _Task:
    """A call of `laplacian` or its like: the point, its samples, and the directions."""

    name: str
    point: Point
    samples: passes.Samples
    directions: passes.Directions
    sample: Space

    @classmethod
    def of(
        cls,
        name: str,
        point: Point,
        in_axes: Any,
        batched: bool,
        args: tuple,
        along: Any,
        metric: Any,
    ) -> _Task:
        axes = None if in_axes is None else sample_axes(point, in_axes, args)
        sample = point.space if axes is None else per_sample(point, axes).space
        directions = passes.Directions.of(along, metric, sample.size)
        return cls(name, point, passes.Samples(axes, batched), directions, sample)

    @property
    def key(self) -> tuple:
        return self.name, self.samples, self.directions.key

    @property
    def parts(self) -> list[_Task]:
        """Those of the directions that count positive and negative."""
        return [replace(self, directions=part) for part in self.directions.parts]

    def program(self, way: str, kernel: Callable[[Function, Space], Callable]) -> Program:
        axes = None if self.samples.batched else self.samples.axes
        return Program(self.name, kernel, (way, *self.key), axes=axes, sees_all=True)

    def run(self, program: Program, chunk: int | None) -> tuple[Any, Any]:
        """A program of all samples on all of them, or so many at a time."""
        if self.samples.axes is None:
            return program.run(self.point)
        if self.samples.batched:
            self._check_apart()
        return in_sample_chunks(self.point, self.samples.axes, chunk, program.run)

    def _check_apart(self) -> None:
        """At the first call, raise where the results of some samples change with other samples."""
        key, axes = passes.known_as(self.point, self.key, by_value=True), self.samples.known
        place, axis = passes.first_axis(axes)
        count = self.point.call.leaves[place].shape[axis]
        half = (count + 1) // 2
        if key in _apart or count < 2:
            return
        others = np.r_[:half, : count - half]
        leaves = tuple(
            leaf if own is None else Tensor(np.take(_compat.to_numpy(leaf), others, own))
            for leaf, own in zip(self.point.call.leaves, axes, strict=True)
        )
        outputs = Program(
            "outputs", lambda function, space: self.samples.all(function.value), (self.samples,)
        )
        changed = replace(self.point, call=replace(self.point.call, leaves=leaves))
        for one, two in zip(
            *(tensors_of(outputs.run(at)[0]) for at in (self.point, changed)), strict=True
        ):
            a, b = (_compat.to_numpy(part)[:half] for part in (one, two))
            tolerance = min(1e3 * np.finfo(a.dtype).eps, 0.02) * np.nanmax(np.abs(a), initial=0.0)
            if not np.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
                raise ValueError(
                    f"{self.name}(batched=True) needs a function whose rows are those of the "
                    "samples, each of its own sample alone, but the results of the first half of "
                    "the samples changed with the second half (a batch norm or dropout: "
                    "set_train(False)). Or give it a function of one sample, without batched"
                )
        _apart.note(key, self.point.call.captures(by_value=True))


_apart = passes.Remembered()  # calls whose samples were found apart: what they captured


def _check_batched(batched: Any, in_axes: Any, weights: Any = None) -> None:
    check_bool("batched", batched)
    if batched and in_axes is None:
        raise ValueError("batched=True needs in_axes, the axis of the samples")
    if batched and weights is not None:
        raise ValueError("batched=True is for derivatives by inputs, not by weights")


@overload
def laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
    batched: bool = ...,
    mode: ForwardMode = ...,
    along: Positions = ...,
    metric: Any = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
    batched: bool = ...,
    mode: ForwardMode = ...,
    along: Positions = ...,
    metric: Any = ...,
) -> Callable[..., Any]: ...


@makes
def laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = FIRST,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    in_axes: Axes = None,
    chunk_size: int | None = None,
    batched: bool = False,
    mode: ForwardMode = "auto",
    along: Positions = None,
    metric: Any = None,
) -> Callable[..., Any]:
    r"""Laplacian, the trace of the Hessian,
    :math:`\Delta f = \sum_i \partial^2 f / \partial x_i^2`, exactly.

    For a network on many points (a PINN), pass ``in_axes=0`` and a function of one point. The
    Laplacian can be differentiated by the weights, inside ``mindspore.grad`` and training steps.

    In one forward pass, which carries value, D first derivatives and Laplacian from operation to
    operation, and costs about D + 2 evaluations of `fn` for D inputs; by reverse derivatives, one
    Hessian-vector product for each input, all in one batch, which take about twice as long. The
    Hessian is not stored.

    Args:
        fn: any callable that returns a Tensor (the Laplacian of each entry) or a tuple of Tensors.
        grad_position, has_aux, weights, in_axes, chunk_size: as `hessian_diag`. Over several
            positions it is the sum of their Laplacians.
        batched: `fn` takes all samples at once and returns a row for each, samples first, as a
            network does that is called with a batch; no row may depend on another sample. At the
            first call half of the samples are exchanged, and a function whose other rows change is
            refused; inside your own graph only the shape is checked.
        mode: ``"forward"``; ``"reverse"``; or ``"auto"``: forward where every primitive of `fn` has
            a forward rule, else reverse, with a warning. Over weights it is always reverse.
        along: an int or a tuple of ints: only the second derivatives by these entries of the (flat)
            inputs, counted on over several positions: without time, for one.
        metric: a symmetric (n, n) array: :math:`\sum_{ij} a_{ij} \partial_i \partial_j f` over the
            n entries (those of `along`). One that is indefinite costs two passes.

    Returns:
        ``lap_fn(*args)``: shaped like the output of `fn`; with `in_axes`, the samples come first;
            with `has_aux`, ``(laplacian, aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError: as `hessian`.
        MissingRuleError: as `hessian`, and with ``mode="forward"`` where a primitive has no forward
            rule.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        R. Li et al., A computational framework for neural network-based variational Monte Carlo
        with Forward Laplacian, Nature Machine Intelligence 6, 2024.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import laplacian
        >>> points = ms.Tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> print(laplacian(lambda x: (x ** 3).sum(), in_axes=0)(points))
        [18. 42.]
        >>> print(laplacian(lambda x: (x ** 3).sum(), in_axes=0, along=1)(points))
        [12. 24.]
        >>> print(laplacian(lambda xs: (xs ** 3).sum(1), in_axes=0, batched=True)(points))
        [18. 42.]
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    _check_batched(batched, in_axes, weights)
    check_chunk(chunk_size)
    check_choice("mode", mode, MODES)
    passes.check_along(along)
    passes.check_metric(metric)
    by_reverse = entries("laplacian", fn, grad_position, has_aux, weights, in_axes, chunk_size)
    plain = along is None and metric is None
    if weights is not None and (mode == "forward" or not plain):
        raise ValueError("mode='forward', along and metric are of inputs, not of weights")

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        if weights is not None or (plain and mode == "reverse" and not batched):
            return by_reverse(args, kwargs)
        point = Point.of(fn, args, kwargs, grad_position, None, has_aux)
        task = _Task.of("laplacian", point, in_axes, batched, args, along, metric)

        def backwards() -> tuple[Any, Any]:
            other = by_reverse(args, kwargs).run if plain and not batched else None
            return other() if other else _difference(task, _by_reverse, chunk_size)

        def forwards() -> tuple[Any, Any]:
            return _difference(task, _by_forward, chunk_size)

        def run() -> tuple[Any, Any]:
            return passes.first_choice("laplacian", point, mode, task.key, forwards, backwards)

        return Evaluation(point, task.program(mode, _inside(task, mode)), run=run)

    return derived("lap_fn", fn, evaluate)


@overload
def value_grad_and_laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
    batched: bool = ...,
    mode: ForwardMode = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def value_grad_and_laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    in_axes: Axes = ...,
    chunk_size: int | None = ...,
    batched: bool = ...,
    mode: ForwardMode = ...,
) -> Callable[..., Any]: ...


@makes
def value_grad_and_laplacian(
    fn: Callable[..., Any],
    grad_position: Positions = 0,
    has_aux: bool = False,
    *,
    in_axes: Axes = None,
    chunk_size: int | None = None,
    batched: bool = False,
    mode: ForwardMode = "auto",
) -> Callable[..., Any]:
    r"""Value, gradient and Laplacian of a scalar function, :math:`(f, \nabla f, \Delta f)`.

    A forward pass has all three: the cost is that of the Laplacian.

    Args:
        fn: any callable that returns one number, or with `in_axes` one for each sample.
        grad_position, has_aux, in_axes, batched, mode: as `laplacian`.
        chunk_size: with `in_axes`, so many samples at a time.

    Returns:
        ``fn(*args)`` giving ``(value, gradient, laplacian)``; with `in_axes`, the samples come
        first in each. The gradient is a Tensor, for a tuple of positions a tuple. With `has_aux`,
        ``((value, gradient, laplacian), aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `laplacian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        R. Li et al., A computational framework for neural network-based variational Monte Carlo
        with Forward Laplacian, Nature Machine Intelligence 6, 2024.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import value_grad_and_laplacian
        >>> value, gradient, second = value_grad_and_laplacian(lambda x: (x ** 3).sum())(ms.Tensor([1.0, 2.0]))
        >>> print(value, gradient, second)
        9.0 [ 3. 12.] 18.0
    """
    check_transform(fn, grad_position, has_aux)
    check_chunk(chunk_size)
    _check_batched(batched, in_axes)
    check_choice("mode", mode, MODES)

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, None, has_aux)
        task = _Task.of("value_grad_and_laplacian", point, in_axes, batched, args, None, None)
        one = point.space.pack

        def way(name: str) -> Callable[[], tuple[Any, Any]]:
            return lambda: task.run(task.program(name, _everything(task, name)), chunk_size)

        def run() -> tuple[Any, Any]:
            return passes.first_choice(
                task.name, point, mode, task.key, way("forward"), way("reverse")
            )

        def pack(value):
            return value[0], one(value[1]), value[2]

        return Evaluation(point, task.program(mode, _everything(task, mode)), pack=pack, run=run)

    return derived("all_fn", fn, evaluate)


def _everything(task: _Task, mode: str) -> Callable[[Function, Space], Callable]:
    def build(function: Function, space: Space) -> Callable:
        if mode == "reverse" or (
            mode == "auto" and not passes.goes_forward(task.name, task.point, mode)
        ):
            return passes.everything_by_reverse(function.value, task.samples, task.sample)
        return passes.everything(
            function.value, space, task.samples, task.sample, function.n if mode == "auto" else None
        )

    return build


def _backwards(task: _Task) -> Callable[[Function, Space], Callable]:
    def build(function: Function, space: Space) -> Callable:
        return passes.reverse(function.value, task.samples, task.directions, task.sample)

    return build


def _inside(task: _Task, mode: str) -> Callable[[Function, Space], Callable]:
    """What is built into the user's own graph, where it must be known before whether forward rules
    are missing.
    """

    def build(function: Function, space: Space) -> Callable:
        if not passes.goes_forward(task.name, task.point, mode):
            return _backwards(task)(function, space)
        otherwise = (
            passes.instead(task.sample, task.samples, function.n) if mode == "auto" else None
        )
        return passes.forward(function.value, space, task.samples, task.directions, otherwise)

    return build


def _difference(task: _Task, run: Callable, chunk: int | None) -> tuple[Any, Any]:
    """An indefinite operator as two graphs: in one, MindSpore copies what both read by TensorMove,
    which on the CPU rounds float64 to float32."""
    found = [run(part, chunk) for part in task.parts]
    if len(found) == 1:
        return found[0]
    (first, aux), (second, _) = found
    return passes.less(first, second), aux


def _by_reverse(task: _Task, chunk: int | None) -> tuple[Any, Any]:
    return task.run(task.program("reverse", _backwards(task)), chunk)


def _by_forward(task: _Task, chunk: int | None) -> tuple[Any, Any]:
    if task.samples.axes is None and chunk is not None:
        return _some_directions(task, chunk)

    def build(function: Function, space: Space) -> Callable:
        return passes.forward(function.value, space, task.samples, task.directions, None)

    return task.run(task.program("forward", build), chunk)


def _some_directions(task: _Task, chunk: int) -> tuple[Any, Any]:
    """At one point, `chunk` directions at a time; rows of zeros fill up the last ones."""
    space, program = task.point.space, Program(task.name, passes.along_given, ("directions", chunk))
    found, rows = [], task.directions.rows(space.size)
    for start in range(0, len(rows), chunk):
        some = np.zeros((chunk, space.size))
        some[: len(rows[start : start + chunk])] = rows[start : start + chunk]
        extras = tuple(map(to_tensor, space.split(some), space.dtypes))
        value, aux = program.run(task.point, extras)
        outputs = value if isinstance(value, tuple) else (value,)
        found.append([_compat.to_numpy(one) for one in outputs])
    sums = tuple(
        to_tensor(np.asarray(sum(pieces)), one.dtype)
        for pieces, one in zip(zip(*found, strict=True), outputs, strict=True)
    )
    return (sums if isinstance(value, tuple) else sums[0]), aux
