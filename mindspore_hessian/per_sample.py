"""Derivatives of each sample by itself, as rows of numpy arrays over the flat vector of the weights."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mindspore import Tensor, ops, vmap

from mindspore_hessian import _compat
from mindspore_hessian.core.program import Problem
from mindspore_hessian.core.space import FIRST
from mindspore_hessian.operators.data import Batch, leaves
from mindspore_hessian.operators.weights import Weights
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms.chunks import batched_or_loop, starts
from mindspore_hessian.transforms.jacobian import jacobian

_NUMBERS = 2 ** 23  # of derivatives that a graph gives at once
_FEW = 16  # samples that are done one after another sooner than a graph of all, one for each size of batch, compiles


def _cut(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, dict):
        return {name: _cut(item, start, stop) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_cut(item, start, stop) for item in value)
    return value[start:stop] if isinstance(value, Tensor) else value


def _piece(batch: Batch, start: int, stop: int) -> Batch:
    args, kwargs, targets = (_cut(part, start, stop) for part in (batch.args, batch.kwargs, batch.targets))
    return Batch(args, kwargs, targets, stop - start, batch.number)


def _check(batch: Batch) -> None:
    for leaf in leaves((batch.args, batch.kwargs, batch.targets)):
        if leaf.ndim == 0 or leaf.shape[0] != batch.size:
            raise ValueError(f"batch {batch.number} has {batch.size} samples, and a Tensor in it has shape "
                             f"{tuple(leaf.shape)}: to take it apart, each needs a row for each sample")


def _pieces(batch: Batch, numbers: int) -> Iterator[tuple[int, Batch]]:
    """Pieces of one size, the last of which may overlap the one before, with the rows of them that are new."""
    done, count = 0, min(batch.size, max(1, _NUMBERS // numbers))
    for start in starts(batch.size, count):
        yield done - start, _piece(batch, start, start + count)
        done = start + count


def _apart(derivatives: Callable) -> Callable:
    """A graph of the derivatives of each sample, of that of a batch of one."""
    def kernel(f: Callable, n: int, v: Any) -> Callable:
        of_one = derivatives(f, v)

        def one(xs):
            ys = ()
            for x in xs:
                ys = ys + (ops.expand_dims(x, 0),)
            return of_one(*ys)
        many = vmap(one, in_axes=((0,) * n,))

        def run(*xs):
            return many(xs)
        return run
    return kernel


def _lines(parts: Any, lead: tuple[int, ...]) -> np.ndarray:
    """Derivatives by each Parameter, (*lead, *shape) each, side by side: (*lead, n)."""
    several = parts if isinstance(parts, tuple | list) else (parts,)
    return np.concatenate([_compat.to_numpy(part).reshape(*lead, -1) for part in several], axis=-1).astype(np.float64)


def _rows(name: str, fn: Callable, call: Callable[[Batch], tuple[tuple, dict]], kernel: Callable, batch: Batch,
          weights: Weights, outputs: tuple[int, ...]) -> np.ndarray:
    """(samples, *outputs, n): all samples at once; a few, or where a primitive cannot be batched, one after another."""
    _check(batch)
    of_one = jacobian(fn, weights=weights.parameters)

    def at_once(piece: Batch) -> np.ndarray:
        problem = Problem.of(fn, *call(piece), FIRST, weights.parameters, False)
        return _lines(problem.run(name, kernel), (piece.size, *outputs))

    def loop(piece: Batch) -> np.ndarray:
        alone = (call(_piece(piece, at, at + 1)) for at in range(piece.size))
        return np.stack([_lines(of_one(*args, **kwargs), outputs) for args, kwargs in alone])
    if batch.size <= _FEW:
        return loop(batch)
    numbers = int(np.prod(outputs)) * sum(weights.sizes)
    return np.concatenate([batched_or_loop(name, lambda: at_once(piece), lambda: loop(piece))[new:]  # noqa: B023
                           for new, piece in _pieces(batch, numbers)])


def jacobian_rows(network: Any, batch: Batch, weights: Weights, outputs: int) -> np.ndarray:
    """The Jacobian of the network's outputs, (samples, outputs, weights), float64; a gradient for each row."""
    return _rows("per_sample_jacobian", network, lambda one: (one.args, one.kwargs), _JACOBIAN, batch, weights,
                 (outputs,))


def gradient_rows(network: Any, loss_fn: Callable, batch: Batch, weights: Weights) -> np.ndarray:
    """The gradients of the losses of single samples, (samples, weights), float64: a gradient for each sample."""
    number = len(batch.targets)

    def single(*given, **named):
        return loss_fn(network(*given[number:], **named), *given[:number])
    return _rows("per_sample_gradient", single, lambda one: ((*one.targets, *one.args), one.kwargs), _GRADIENT, batch,
                 weights, ())


_JACOBIAN = _apart(lambda f, v: blocks.jacobian_reverse(f, v.positions, v.parameters))
_GRADIENT = _apart(lambda f, v: compose.gradient(compose.scalar(f, "loss_fn"), v.positions, v.parameters))
