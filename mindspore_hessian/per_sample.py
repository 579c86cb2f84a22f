"""Derivatives of each sample by itself, as rows of numpy arrays over the flat vector of the weights."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.operators.data import Batch, leaves
from mindspore_hessian.operators.weights import Weights
from mindspore_hessian.transforms.jacobian import jacobian


def samples(batch: Batch) -> Iterator[Batch]:
    """The samples of a batch, as batches of one.

    Raises:
        ValueError: a Tensor of the batch has not one row for each sample.
    """
    for leaf in leaves((batch.args, batch.kwargs, batch.targets)):
        if leaf.ndim == 0 or leaf.shape[0] != batch.size:
            raise ValueError(f"batch {batch.number} has {batch.size} samples, and a Tensor in it has shape "
                             f"{tuple(leaf.shape)}: to take it apart, each needs a row for each sample")

    def cut(value: Any, at: int) -> Any:
        if isinstance(value, dict):
            return {name: cut(item, at) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(cut(item, at) for item in value)
        return value[at:at + 1] if isinstance(value, Tensor) else value
    for at in range(batch.size):
        yield Batch(cut(batch.args, at), cut(batch.kwargs, at), cut(batch.targets, at), 1, batch.number)


def _line(parts: tuple[Tensor, ...], lead: int) -> np.ndarray:
    """Derivatives by each Parameter, (lead, *shape) each, side by side."""
    return np.concatenate([_compat.to_numpy(part).reshape(lead, -1) for part in parts], axis=1).astype(np.float64)


def jacobian_rows(network: Any, batch: Batch, weights: Weights, outputs: int) -> np.ndarray:
    """The Jacobian of the network's outputs, (samples, outputs, weights), float64; a gradient for each row."""
    of_one = jacobian(network, weights=weights.parameters)
    return np.stack([_line(of_one(*one.args, **one.kwargs), outputs) for one in samples(batch)])


def gradient_rows(network: Any, loss_fn: Callable, batch: Batch, weights: Weights) -> np.ndarray:
    """The gradients of the losses of single samples, (samples, weights), float64."""
    number = len(batch.targets)

    def single(*given, **named):
        return loss_fn(network(*given[number:], **named), *given[:number])
    of_one = jacobian(single, weights=weights.parameters)
    return np.concatenate([_line(of_one(*one.targets, *one.args, **one.kwargs), 1) for one in samples(batch)])
