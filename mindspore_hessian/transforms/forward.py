"""Derivatives in one forward pass: values, derivatives along directions, and the sum of their
second derivatives.

`push` is the pass, for MindSpore to compile; see `rules.interpreter`. Directions are the rows of a
matrix W, over the flat entries of all that is differentiated (with samples: of one sample).
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, mutable, ops, vmap

from mindspore_hessian import _compat
from mindspore_hessian._errors import (
    FallbackWarning,
    HessianError,
    MissingRuleError,
    UnsafeRuntimeError,
    warn,
)
from mindspore_hessian.arguments import as_reals, is_integer, shown
from mindspore_hessian.core import cache
from mindspore_hessian.core.program import Function, Point
from mindspore_hessian.core.space import Space, tensors_of
from mindspore_hessian.rules import interpreter
from mindspore_hessian.transforms import blocks, compose

_MUL, _RESHAPE = ops.Mul(), ops.Reshape()
Axes = tuple[int | None, ...] | None  # of the samples, for each leaf


# --- samples --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """How a function meets the samples of a batch.

    Attributes:
        axes: the axis of the samples in each leaf; None where there is one point.
        batched: the function takes all samples, and gives a result for each, samples first; else
            it takes one.
    """

    axes: Axes
    batched: bool = False

    def over(self, f: Callable) -> Callable:
        """A function of one sample for all of them."""
        axes = self.axes
        return f if axes is None else vmap(f, axes if len(axes) > 1 else axes[0])

    def all(self, f: Callable) -> Callable:
        """The function of all samples."""
        return _samples_first(f, self.known) if self.batched else self.over(f)

    def one(self, f: Callable) -> Callable:
        """The function of one sample."""
        return _of_one(f, self.known) if self.batched else f

    @property
    def known(self) -> tuple[int | None, ...]:
        """The axes, where there are any."""
        return self.axes or ()


def first_axis(axes: tuple[int | None, ...]) -> tuple[int, int]:
    """The first leaf that has samples, and their axis."""
    return next((place, axis) for place, axis in enumerate(axes) if axis is not None)


def _one_each(f: Callable, axes: tuple[int | None, ...]) -> Callable:
    """The function of a batch, refusing an output that is not one number for each sample."""
    rows = _samples_first(compose.one_tensor(f), axes)

    def checked(*xs):
        out = rows(*xs)
        if out.size != out.shape[0]:
            raise ValueError(
                "with batched=True, fn must return one number for each sample, but its output has "
                f"shape {out.shape}"
            )
        return out

    return checked


def _samples_first(f: Callable, axes: tuple[int | None, ...]) -> Callable:
    """The function of a batch, refusing an output that has not a row for each sample."""
    place, axis = first_axis(axes)

    def check(out, count):
        if not isinstance(out, Tensor):
            raise TypeError(
                "fn must return a Tensor or a tuple of Tensors; it returned something else. "
                "Where it returns (value, aux), pass has_aux=True."
            )
        if out.ndim == 0 or out.shape[0] != count:
            raise ValueError(
                "with batched=True, fn must return a row for each sample, samples first: "
                f"for {count} samples its output has shape {out.shape}"
            )

    def checked(*xs):
        out, count = f(*xs), xs[place].shape[axis]
        if isinstance(out, tuple):
            for item in out:
                check(item, count)
        else:
            check(out, count)
        return out

    return checked


def _of_one(f: Callable, axes: tuple[int | None, ...]) -> Callable:
    """The function of a batch as one of a sample: a batch of that sample alone."""

    def row(out):
        return _RESHAPE(out, out.shape[1:])

    def one(*xs):
        wide = ()
        for place in range(len(xs)):
            x = xs[place]
            if axes[place] is not None:
                x = ops.expand_dims(x, axes[place])
            wide = wide + (x,)
        out = f(*wide)
        if isinstance(out, tuple):
            rows = ()
            for item in out:
                rows = rows + (row(item),)
            return rows
        return row(out)

    return one


# --- the pass -------------------------------------------------------------------------------------


def push(f, pos, otherwise, of_series=False, ends=False):
    """``p(xs, js)``: for each output of `f` the triple (value, derivatives along js, sum of second
    derivatives).

    js has a Tensor (D, *x.shape) for each differentiated position, or (D, 1, ...) where it is the
    same for all samples (see `rules.forward.wide`). Where a primitive has no forward
    rule, ``otherwise(number of the output, *xs, *js)`` gives the triple; where that is None, the
    pass ends with a `MissingRuleError`. `of_series`: js are Taylor coefficients, and come out in
    the place of the derivatives; `ends`: all but the first of them are zero.
    """
    leave = interpreter.leave(otherwise, of_series)
    enter = interpreter.enter
    if of_series:
        enter = interpreter.enter_line if ends else interpreter.enter_series
    own = tuple(
        pos.index(place) if place in pos else -1 for place in range(max(pos) + 1)
    )  # they come in any order

    def one(xs, js):
        inputs = ()
        for place in range(len(xs)):
            x = xs[place]
            if place in pos:
                x = enter(x, js[own[place]])
            inputs = inputs + (x,)
        given, out = xs + js, f(*inputs)
        if not isinstance(out, (Tensor, tuple)):  # noqa: UP038 -- compiled by MindSpore
            raise TypeError(
                "fn must return a Tensor or a tuple of Tensors; it returned something else. "
                "Where it returns (value, aux), pass has_aux=True."
            )
        if isinstance(out, tuple):
            outs = ()
            for number in range(len(out)):
                outs = outs + (leave(out[number], number, *given),)
            return outs
        return leave(out, 0, *given)

    pushed = vmap(one, (None, 0), 0)

    def triple(parts):
        compose.check_float(parts[0])
        return (parts[0][0], parts[1], parts[2][0])

    def run(xs, js):
        parts = pushed(xs, js)
        if isinstance(parts[0], tuple):
            outs = ()
            for item in parts:
                outs = outs + (triple(item),)
            return outs
        return triple(parts)

    return run


# --- directions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directions:
    """The operator sum_ij a_ij d_i d_j as a sum of second derivatives along rows of `plus`, less
    that along `minus`.

    `plus` is None for the Laplacian over everything, whose rows are those of the identity.
    """

    plus: np.ndarray | None
    minus: np.ndarray | None
    key: tuple

    @classmethod
    def of(cls, along: Any, metric: Any, total: int) -> Directions:
        """Of the options `along` and `metric`, checked against the number of entries."""
        if along is None and metric is None:
            return cls(None, None, ())
        rows = np.eye(total)[_entries(along, total)]
        if metric is None:
            return cls(rows, None, (rows.tobytes(), b""))
        matrix = _symmetric(metric, len(rows))
        sizes, vectors = np.linalg.eigh(matrix)
        tiny = len(rows) * np.finfo(np.float64).eps * np.abs(sizes).max(initial=0.0)
        parts = [
            (np.sqrt(np.abs(sizes[own])) * vectors[:, own]).T @ rows
            for own in (sizes > tiny, sizes < -tiny)
        ]
        plus, minus = (part if len(part) else None for part in parts)
        return cls(
            np.zeros((1, total)) if plus is None else plus,
            minus,
            tuple(part.tobytes() for part in parts),
        )

    @property
    def parts(self) -> list[Directions]:
        """Those of `plus` and of `minus`, each alone."""
        if self.minus is None:
            return [self]
        keys = [(*self.key, sign) for sign in "+-"]
        return [
            Directions(rows, None, key)
            for rows, key in zip((self.plus, self.minus), keys, strict=True)
        ]

    def rows(self, total: int) -> np.ndarray:
        """Those of `plus`."""
        return np.eye(total) if self.plus is None else self.plus


def check_along(along: Any) -> None:
    """Raise where `along` is neither None, an int nor several."""
    several = along if isinstance(along, tuple | list) else (along,)
    if along is not None and (not several or not all(map(is_integer, several))):
        raise TypeError(
            f"along must be an int or a tuple of ints (entries of what is differentiated), but got "
            f"{shown(along)}"
        )


def _entries(along: Any, total: int) -> list[int]:
    if along is None:
        return list(range(total))
    found = [int(one) for one in (along if isinstance(along, tuple | list) else (along,))]
    for one in found:
        if not -total <= one < total:
            raise ValueError(
                f"along names entry {one}, but what is differentiated has {total} entries, "
                "numbered from 0"
            )
    found = [one % total for one in found]
    if len(set(found)) < len(found):
        raise ValueError(f"along names an entry twice: {along!r}")
    return found


def check_metric(metric: Any) -> None:
    """Raise where `metric` is neither None nor a finite square matrix of real numbers."""
    if metric is None:
        return
    matrix = as_reals("metric", metric)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"metric must be a square matrix, but has shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("metric must be finite, but holds NaN or Inf")


def _symmetric(metric: Any, size: int) -> np.ndarray:
    matrix = as_reals("metric", metric)
    if matrix.shape != (size, size):
        raise ValueError(
            f"metric must be a {size} x {size} matrix, a row for each entry that it goes along, "
            f"but has shape {matrix.shape}"
        )
    return (matrix + matrix.T) / 2


def sample_shapes(space: Space, axes: Axes) -> list[tuple[int, ...]]:
    """The shapes of the differentiated inputs, of one sample."""
    out = []
    for shape, leaf in zip(space.shapes, space.positions, strict=True):
        axis = None if axes is None else axes[leaf]
        out.append(shape if axis is None else shape[:axis] + shape[axis + 1 :])
    return out


def seeds(space: Space, axes: Axes, rows: np.ndarray | None) -> Callable:
    """``make()``: the directions as `push` takes them, (D, *x.shape) for each differentiated
    input, but with 1 for the samples, which all go along the same.
    """
    plan: list[tuple] = []
    start = 0
    shapes = sample_shapes(space, axes)
    total = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    count = total if rows is None else len(rows)
    for shape, dtype, leaf in zip(shapes, space.dtypes, space.positions, strict=True):
        axis = None if axes is None else axes[leaf]
        size = int(np.prod(shape, dtype=np.int64))
        narrow = (count, *shape) if axis is None else (count, *shape[:axis], 1, *shape[axis:])
        block = (
            None if rows is None else Tensor(rows[:, start : start + size].reshape(narrow), dtype)
        )
        plan.append((block, start, size, narrow, dtype))
        start += size
    plans = tuple(plan)

    def make():
        out = ()
        for block, first, size, narrow, dtype in plans:
            if block is None:
                block = _RESHAPE(blocks.unit_rows(0, count, first, size, dtype), narrow)
            out = out + (mutable(block),)
        return out

    return make


# --- by reverse derivatives, where a rule is missing ----------------------------------------------


def directional(f, space: Space, rows: np.ndarray | None):
    """``l(*xs)``: for each output the sum of its second derivatives along the rows, by
    Hessian-vector products.
    """
    checked = blocks.tensors(f)
    many, make = (
        blocks.many(blocks.PRODUCTS["revrev"](blocks.flat(f), space.positions, None)),
        seeds(space, None, rows),
    )

    def shaped(xs, parts, shape):
        return _RESHAPE(parts[0], shape)

    assemble = blocks.per_output(shaped)

    def total(*xs):
        out, vs = checked(*xs), make()
        entries = 0.0
        for part, direction in zip(many(xs, out, vs), vs):  # noqa: B905 -- compiled by MindSpore
            own = ops.where(direction != 0, _MUL(part, direction), ops.zeros_like(part))
            entries = entries + _RESHAPE(own, part.shape[:2] + (-1,)).sum(-1).sum(-1)
        return assemble(out, xs, (entries,))

    return total


def reverse(f: Callable, samples: Samples, directions: Directions, sample: Space) -> Callable:
    """``l(*xs)``: the whole operator by reverse derivatives; `sample` are the variables of one
    sample.
    """
    parts = [directional(samples.one(f), sample, part.plus) for part in directions.parts]
    if len(parts) == 1:
        return samples.over(parts[0])
    first, second = parts

    def difference(*xs):
        return less(first(*xs), second(*xs))

    return samples.over(difference)


def less(one, two):
    """The difference of Tensors, or of those in two tuples."""
    if isinstance(one, tuple):
        out = ()
        for number in range(len(one)):
            out = out + (one[number] - two[number],)
        return out
    return one - two


# --- the Laplacian --------------------------------------------------------------------------------


def forward(
    f: Callable, space: Space, samples: Samples, directions: Directions, otherwise: Callable | None
) -> Callable:
    """``l(*xs)``: the operator in one forward pass (two where it is indefinite).

    Args:
        otherwise: ``otherwise(f, rows)`` makes what `push` does where a rule is missing; None
            refuses.
    """

    def one_pass(rows: np.ndarray | None) -> Callable:
        pushed, make = (
            push(samples.all(f), space.positions, otherwise and otherwise(f, rows)),
            seeds(space, samples.axes, rows),
        )

        def second(*xs):
            out = pushed(xs, make())
            if isinstance(out[0], tuple):
                seconds = ()
                for item in out:
                    seconds = seconds + (item[2],)
                return seconds
            return out[2]

        return second

    passes = [one_pass(part.plus) for part in directions.parts]
    if len(passes) == 1:
        return passes[0]
    first, other = passes

    def difference(*xs):
        return less(first(*xs), other(*xs))

    return difference


def along_given(function: Function, space: Space) -> Callable:
    """``l(*xs, *js)``: the sum of second derivatives along directions that come as inputs."""
    pushed, n = push(function.value, space.positions, None), function.n

    def second(*args):
        out = pushed(args[:n], args[n:])
        if isinstance(out[0], tuple):
            seconds = ()
            for item in out:
                seconds = seconds + (item[2],)
            return seconds
        return out[2]

    return second


def instead(sample: Space, samples: Samples, n: int) -> Callable:
    """The `otherwise` of `forward`, for n leaves: the sum of second derivatives by reverse
    derivatives (and nothing in the place of the value and the derivatives, which nobody asks
    for)."""

    def of(f: Callable, rows: np.ndarray | None) -> Callable:
        total = samples.over(directional(samples.one(f), sample, rows))

        def triple(number, *given):
            out = total(*given[:n])
            if isinstance(out, tuple):
                out = out[number]
            return ops.zeros_like(out), ops.expand_dims(ops.zeros_like(out), 0), out

        return triple

    return of


# --- value, gradient and Laplacian ----------------------------------------------------------------


def everything(
    f: Callable, space: Space, samples: Samples, sample: Space, n: int | None
) -> Callable:
    """``e(*xs)``: (value, gradient of each variable, Laplacian) of a scalar function in one forward
    pass.

    Args:
        n: the number of leaves, for what is done where a rule is missing; None refuses.
    """
    pushed = push(
        _one_each(f, samples.known) if samples.batched else samples.over(compose.scalar(f)),
        space.positions,
        None if n is None else _everything_instead(f, samples, sample, n),
    )
    make, cut = seeds(space, samples.axes, None), _gradients(sample, samples.axes)

    def run(*xs):
        value, derivatives, second = pushed(xs, make())
        return value, cut(derivatives), second

    return run


def _gradients(sample: Space, axes: Axes) -> Callable:
    """``cut(derivatives)``: those of numbers along all unit directions, as a gradient for each
    variable.
    """
    plan, start = [], 0
    for shape, size in zip(sample.shapes, sample.sizes, strict=True):
        plan.append((start, size, shape))
        start += size
    plans, total = tuple(plan), start

    def cut(derivatives):
        lines = _RESHAPE(derivatives, (total, -1))
        out = ()
        for first, size, shape in plans:
            part = blocks.cut(lines, 0, first, size)
            if axes is None:
                out = out + (_RESHAPE(part, shape),)
            else:
                out = out + (_RESHAPE(ops.transpose(part, (1, 0)), (-1,) + shape),)
        return out

    return cut


def everything_by_reverse(f: Callable, samples: Samples, sample: Space) -> Callable:
    """The same by reverse derivatives."""
    value, again, once_more = (
        compose.scalar(samples.one(f)) for _ in range(3)
    )  # apart: MindSpore differentiates one only once
    gradient, total = (
        compose.gradient(again, sample.positions, None),
        directional(once_more, sample, None),
    )

    def one(*xs):
        return value(*xs), gradient(*xs), total(*xs)

    return samples.over(one)


def _everything_instead(f: Callable, samples: Samples, sample: Space, n: int) -> Callable:
    run = everything_by_reverse(f, samples, sample)

    def triple(number, *given):
        value, gradients, second = run(*given[:n])
        lines = ()
        for part in gradients:
            lines = lines + (_RESHAPE(part, (value.size, -1)),)
        derivatives = ops.transpose(ops.concat(lines, 1), (1, 0))
        return value, _RESHAPE(derivatives, (-1,) + value.shape), second

    return triple


# --- forward or reverse ---------------------------------------------------------------------------


class Remembered(OrderedDict[tuple, Any]):
    """What was found of the latest 256 calls, each with what it captured, which its key names by
    id.
    """

    def note(self, key: tuple, found: Any) -> None:
        self[key] = found
        while len(self) > 256:
            self.popitem(last=False)


_unable = Remembered()  # calls without a rule: the primitive, what they captured


def known_as(point: Point, options: tuple, by_value: bool = False) -> tuple:
    """A call, and what it captured: whether captured Tensors count by value."""
    leaves = tuple((leaf.shape, leaf.dtype) for leaf in point.call.leaves)
    captured = point.call.captures(by_value=by_value).token
    return point.call.template, leaves, captured, point.space.key, options


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No other thread compiles meanwhile; MindSpore's registry is in its place at the end."""
    with cache.exclusive():
        try:
            yield
        finally:
            interpreter.close()


def check_free(point: Point) -> None:
    """Raise where the function has a derivative of its own somewhere, past which a forward pass
    would go.
    """
    name = point.call.captures().stops_gradients()
    if name:
        raise MissingRuleError(
            f"primitive {name} has no forward rule. Use mode='reverse'"
            + (
                ": a Cell of the function has a bprop, and its derivative is what that says."
                if name == "bprop"
                else ", or write ops.stop_gradient(x) for ops.StopGradient()(x), and x for ops.Identity()(x)."
            )
        )


def goes_forward(what: str, point: Point, mode: str) -> bool:
    """Whether a forward pass may be tried inside the user's own graph."""
    if mode == "reverse":
        return False
    try:
        check_free(point)
    except MissingRuleError as err:
        if mode == "forward":
            raise
        warn(interpreter.missing_text(what, interpreter.without_rule(err)), FallbackWarning)
        return False
    return True


def known_unable(point: Point, options: tuple) -> bool:
    """Whether this call was seen to need a forward rule that is missing."""
    return known_as(point, options) in _unable


def _finite(value: Any) -> bool:
    return all(np.isfinite(_compat.to_numpy(tensor)).all() for tensor in tensors_of(value))


def first_choice(
    name: str,
    point: Point,
    mode: str,
    options: tuple,
    forwards: Callable[[], Any],
    backwards: Callable[[], Any],
) -> tuple[Any, Any]:
    """``(value, aux)`` by `forwards`; by `backwards`, with a warning, where `mode` is "auto" and a
    primitive has no forward rule.

    What a call is known not to be able to is not tried again. Where a derivative is infinite, all
    directions that have no part in it become NaN in a forward pass (0 times Inf), so that "auto"
    takes `backwards` then.
    """
    if mode == "reverse":
        return backwards()
    key = known_as(point, options)
    if mode == "auto" and key in _unable:
        return backwards()
    try:
        check_free(point)
        with alone():
            result = forwards()
        return result if mode == "forward" or _finite(result[0]) else backwards()
    except (HessianError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as err:
        if mode == "forward" or isinstance(err, UnsafeRuntimeError):
            raise
        refused = err
    instead_of_it = backwards()  # where the function itself is at fault, this says so
    cause = interpreter.without_rule(refused)
    _unable.note(key, (cause, point.call.captures()))
    warn(
        interpreter.missing_text(name, cause)
        if cause
        else f"{name}: the forward pass failed ({refused}), so reverse derivatives are used.",
        FallbackWarning,
    )
    return instead_of_it
