"""Vectors at the network's output, of which the outer products make up the metric of a Fisher
information.

A pull-back of each of them through the network is what a layer's gradients are in
Kronecker-factored curvature. The vectors of one batch stand for all its samples at once, so the
terms of the loss within a sample (its positions) have vectors of their own where the metric is
exact: a network may mix the positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian.core.program import Function, Program
from mindspore_hessian.core.space import Space
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.data import Batch
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator, FisherOperator

_RESHAPE, _ROOT = ops.Reshape(), Tensor(np.sqrt(2.0), ms.float64)


def _categorical(logits: np.ndarray) -> np.ndarray:
    """sqrt(p_c) (e_c - p) for each class c: the sum of the outer products is diag(p) - p p^T."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    return np.sqrt(np.moveaxis(p, 1, 0))[:, :, None] * (_units(p) - p)


def _units(out: np.ndarray) -> np.ndarray:
    """(C, *out.shape): the c-th is 1 in column c."""
    columns = np.eye(out.shape[1]).reshape(out.shape[1], 1, out.shape[1], *(1,) * (out.ndim - 2))
    return np.broadcast_to(columns, (out.shape[1], *out.shape))


def _bernoulli(logits: np.ndarray) -> np.ndarray:
    half = 1 / (1 + np.exp(-np.abs(logits)))
    return np.sqrt(half * (1 - half)) * _units(logits)


def _gaussian(mean: np.ndarray) -> np.ndarray:
    return np.sqrt(2) * _units(mean)


ROOTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "gaussian": _gaussian,
}


def slopes(function: Function, space: Space):
    """The gradient of a batch's loss by the network's output, as MindSpore compiles it."""
    out, by_output, n = kernels.one_output(function.value), kernels.slope(function.loss), function.n

    def run(*xs):
        return by_output(out(*xs[:n]), *xs[n:])

    return run


SLOPES = Program("cotangents.slopes", slopes)


def row_count(shape: tuple[int, ...], batch: Batch) -> int:
    """The rows of an output that a sample has."""
    return shape[0] // batch.size if shape[0] % batch.size == 0 else 1


def apart(vectors: np.ndarray, rows: int, positions: bool) -> Iterator[np.ndarray]:
    """Vectors (k, *out.shape), each cut into one for each row, and each of the `positions`, of a
    sample.
    """
    shape = vectors.shape[1:]
    inner = int(np.prod(shape[2:])) if positions else 1
    if rows * inner == 1:
        yield from vectors
        return
    for row in range(rows):
        for place in range(inner):
            at = (np.arange(shape[0]) % rows == row).reshape(-1, *(1,) * (len(shape) - 1))
            if inner > 1:
                at = at & (np.arange(inner) == place).reshape(1, 1, *shape[2:])
            for vector in vectors:
                yield vector * at


def _exact(op: FisherOperator, batch: Batch) -> Iterator[np.ndarray]:
    assert op.likelihood is not None
    out = op.risk.output(batch).astype(np.float64)
    shape = out.shape
    out = out.reshape(shape[0], -1) if out.ndim < 2 else out
    scale: Any = 1.0 if op._terms is None else 1.0 / op._terms(shape)
    if op._weighted:
        scale = op._scales(batch).reshape(out.shape[0], 1, *out.shape[2:])
    vectors = ROOTS[op.likelihood.name](out) * np.sqrt(scale)
    for vector in apart(vectors, row_count(shape, batch), True):
        yield vector.reshape(shape)


def _drawn(op: FisherOperator, batch: Batch, number: int) -> Iterator[np.ndarray]:
    """The draws of the operator itself; independent, so that terms need not be kept apart."""
    yield from _compat.to_numpy(op._make(batch, number)[1][0])


def _empirical(op: EmpiricalFisherOperator, batch: Batch) -> Iterator[np.ndarray]:
    slope = _compat.to_numpy(op.risk.run(batch, SLOPES)).astype(np.float64)
    shape, per_position = slope.shape, op._per_position
    number: Any = 1.0
    if op.reduction == "mean":
        number = op._terms(shape) if op._terms is not None else shape[0]
    if op._weighted:
        weight = op._weights(batch).reshape(shape[0], -1)
        weight = (
            weight.reshape(shape[0], 1, *shape[2:])
            if per_position
            else weight.sum(1).reshape(-1, *(1,) * (len(shape) - 1))
        )
        total = weight.sum() if op.reduction == "mean" else 1.0
        number = np.divide(total, weight, out=np.zeros_like(weight), where=weight > 0)
    yield from apart(
        (slope * np.sqrt(number))[None], row_count(shape, batch), per_position and len(shape) > 2
    )


def cotangents(op: Any, batch: Batch, number: int) -> Iterator[np.ndarray]:
    """Vectors s shaped like the output of a batch: the sum of s s^T is the metric M of ``J^T M J``,
    that of the batch's own loss.

    Args:
        op: a `FisherOperator` or `EmpiricalFisherOperator`.
        number: of the batch, for its random draws.
    """
    if isinstance(op, EmpiricalFisherOperator):
        yield from _empirical(op, batch)
    elif op.mc_samples:
        yield from _drawn(op, batch, number)
    else:
        yield from _exact(op, batch)


def term_weights(op: Any, batch: Batch) -> np.ndarray:
    """What each term of the loss of a batch counts in it, (samples, terms of a sample); alike where
    that is all that is known."""
    if op._weighted:
        weights = np.asarray(op._weights(batch), np.float64)
        if weights.size % batch.size == 0:
            weights = weights.reshape(batch.size, -1)
            return weights / weights.sum() if op.reduction == "mean" else weights
    return np.full((batch.size, 1), 1.0 / batch.size if op.reduction == "mean" else 1.0)


# --- the same inside of a graph, one vector for all samples ---------------------------------------


def _categorical_draw(out, noise):
    """The gradient of the cross-entropy at out, for a class that is drawn by a number in [0, 1)."""
    p = ops.softmax(out, 1)
    below = (ops.cumsum(p, 1) < ops.expand_dims(noise, 1)).astype(ms.int32).sum(1, keepdims=True)
    classes = _RESHAPE(ops.arange(out.shape[1]), (1, out.shape[1]) + (1,) * (out.ndim - 2))
    drawn = ops.minimum(below, out.shape[1] - 1).astype(classes.dtype)
    return p - (classes == drawn).astype(out.dtype)


def _bernoulli_draw(out, noise):
    p = ops.sigmoid(out)
    return p - (noise < p).astype(out.dtype)


def _gaussian_draw(out, noise):
    return noise * ops.cast(_ROOT, out.dtype)


DRAWS = {"categorical": _categorical_draw, "bernoulli": _bernoulli_draw, "gaussian": _gaussian_draw}


def in_graph(op: Any) -> Callable:
    """``make(loss)`` makes ``vector(out, targets, noise, weights)`` as MindSpore compiles it: the
    gradient at the output that `_drawn` or `_empirical` gives, drawn in the wider dtype of `out` and
    `noise`, with the `weights` of the terms, (samples, terms), where these are not alike."""
    weighted, terms = op._weighted, None if op._terms is None else ops.constexpr(op._terms)
    if isinstance(op, EmpiricalFisherOperator):
        number = kernels.number_of_terms(op._per_position, op.terms, weighted)

        def make(loss):
            by_output = kernels.slope(loss)

            def empirical(out, targets, noise, weights):
                scale = ops.sqrt(ops.zeros_like(out) + number(out, weights))
                return by_output(out, *targets) * scale

            return empirical

        return make
    draw = DRAWS[op.likelihood.name]

    def drawn(out, targets, noise, weights):
        wide = out
        if noise.dtype == ms.float64:
            wide = out.astype(ms.float64)
        g = draw(wide, noise.astype(wide.dtype)).astype(out.dtype)
        if weighted:
            return g * ops.sqrt(_RESHAPE(weights, (out.shape[0], 1) + out.shape[2:])).astype(
                out.dtype
            )
        if terms is None:
            return g
        return g / ops.sqrt(ops.cast(ops.ones((1,), ms.float64) * terms(out.shape), out.dtype))

    return lambda loss: drawn


def noises(op: Any, shape: tuple[int, ...], number: int) -> Iterator[np.ndarray]:
    """What the graph makes each cotangent of, for the batch of this number."""
    return op.noises(shape, number) if isinstance(op, FisherOperator) else iter([np.zeros(1)])


def makes_in_graph(op: Any, batch: Batch, shape: tuple[int, ...], most: int) -> bool:
    """Whether `in_graph` makes the cotangents of a batch whose output has this shape, one at a time,
    where `most` could be pulled back together.
    """
    known = not op._weighted or term_weights(op, batch).size == op._weights(batch).size
    if not known:
        return False
    if isinstance(op, EmpiricalFisherOperator):
        one = row_count(shape, batch) == 1
        return one and (not op._per_position or math.prod(shape[2:]) == 1)
    return op.mc_samples == 1 or (most == 1 and op.mc_samples > 0)


def scale_in_graph(op: Any, factor: float) -> float:
    """What such a vector is multiplied by, where the weights of the terms have the factor of the
    batch in them."""
    if isinstance(op, EmpiricalFisherOperator):
        return math.sqrt(factor)
    return math.sqrt((1.0 if op._weighted else factor) / op.mc_samples)
