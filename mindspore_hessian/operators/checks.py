"""Checks of the arguments, and honesty before speed: two passes over the data must agree and
products be symmetric; if not, the cause is named."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.operators.data import Data, NotDeterministicError

if TYPE_CHECKING:
    from mindspore_hessian.operators.curvature import CurvatureOperator

MOST_PASSES = 8  # in search of one that differs
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}


def check_cell(network: Any) -> None:
    """Raise TypeError where it is no Cell."""
    if not isinstance(network, nn.Cell):
        raise TypeError(
            f"network must be a Cell (an object, not its class), but got {shown(network)}"
        )


def check_trained(network: Any, so: str = "") -> None:
    """Raise where it is no Cell, or has layers that behave differently in training mode, and are in
    it. `so` says what follows of that."""
    check_cell(network)
    if active := [name for name, _ in in_training(network)]:
        raise ValueError(
            f"network is in training mode, and {', '.join(active)} behaves differently there{so}: "
            "call network.set_train(False)"
        )


def in_training(network: nn.Cell) -> list[tuple[str, nn.Cell]]:
    """The layers that behave differently in training mode, and are in it."""
    return [
        (name, cell)
        for name, cell in network.cells_and_names()
        if cell.training
        and ("Dropout" in type(cell).__name__ or "BatchNorm" in type(cell).__name__)
    ]


def check_network(network: Any, loss_fn: Any, output: Any) -> None:
    """Raise TypeError where they are not what an operator takes."""
    if not callable(network) or isinstance(network, type):
        raise TypeError(
            f"network must be a Cell or a function, but got {type(network).__name__}"
            + (": pass an object of the class" if isinstance(network, type) else "")
        )
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable or None, but got {type(loss_fn).__name__}")
    if not (output is None or is_integer(output) or isinstance(output, str) or callable(output)):
        raise TypeError(
            "output must be an index (of a tuple), a key (of a dict) or a function of what the "
            f"network returns, but got {shown(output)}"
        )


def _hashes(value: Any) -> set[bytes]:
    """A hash of each sample (row) of the Tensors in a batch."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return set().union(*map(_hashes, value)) if value else set()
    if not isinstance(value, Tensor):
        return set()
    array = np.ascontiguousarray(np.atleast_1d(_compat.to_numpy(value)))
    return {hashlib.sha256(row.tobytes()).digest() for row in array}


def _content(data: Data) -> list[frozenset[bytes]]:
    """The hashes of the samples of each batch, in the order of one more pass over the data."""
    return [frozenset(_hashes((batch.args, batch.kwargs, batch.targets))) for batch in data]


def _two_passes(data: Data) -> tuple[list[frozenset[bytes]], list[frozenset[bytes]]]:
    """The content of two passes that differ, if such are seen: a few batches, shuffled, can be the
    same by chance.
    """
    first = _content(data)
    for _ in range(MOST_PASSES):
        if (other := _content(data)) != first:
            break
    return first, other


def check_deterministic(op: CurvatureOperator) -> None:
    """Compare gradient and loss of two passes, and u^T A v with v^T A u for random u and v.

    Raises:
        NotDeterministicError: they differ beyond rounding.
    """
    tolerance = TOLERANCE[op.dtype]
    (slope, loss), (slope2, loss2) = (op.risk.gradient_and_loss(op.progress) for _ in range(2))
    gap = max(_gap(slope, slope2), abs(loss - loss2) / max(abs(loss), abs(loss2), 1e-30))
    if gap > tolerance:
        raise NotDeterministicError(
            f"two passes over the data differ: the loss is {loss:.8g} and {loss2:.8g}, the "
            f"gradient differs by {_gap(slope, slope2):.2g} of its size. {_cause(op)}"
        )
    gap = symmetry_gap(op)
    if gap > 10 * tolerance:
        raise NotDeterministicError(
            f"products are not symmetric: u^T A v and v^T A u differ by {gap:.2g} of |A u| |v|. "
            f"{_cause(op)}"
        )


def check_losses(op: CurvatureOperator, first: list[float], second: list[float]) -> None:
    """Compare the losses of the batches in two passes of one graph, for what is computed once and
    no product of `op`.

    Raises:
        NotDeterministicError: they differ beyond rounding.
    """
    gap = gap_of_losses(op, first, second)
    if gap > TOLERANCE[op.dtype]:
        raise NotDeterministicError(
            f"two passes over the data differ: the losses of the batches by {gap:.2g} of their "
            f"size. {_cause(op)}"
        )


def losses(op: CurvatureOperator, progress: bool | None) -> list[float]:
    """The losses of the batches, in one pass."""
    with op.risk.comm.together(1):
        found = [op.risk.loss(batch) for _, batch, _ in op.risk.batches("check", progress)]
    op.risk.comm.total(np.zeros(1))
    return found


def gap_of_losses(op: CurvatureOperator, first: list[float], second: list[float]) -> float:
    """How much they differ, over all processes."""
    gap = np.inf if len(first) != len(second) else _gap(np.array(first), np.array(second))
    return float(op.risk.comm.total(np.array([gap]))[0])


def symmetry_gap(op: Any, seed: int = 0) -> float:
    """|u^T A v - v^T A u| / (|A u| |v| + |A v| |u|) for two random vectors; about the precision of the dtype for a
    symmetric operator. Two products, in one pass."""
    pair = np.random.default_rng(seed).standard_normal((op.shape[0], 2)).astype(op.dtype)
    image = np.asarray(op @ pair, np.float64)
    if not np.isfinite(image).all():
        return 0.0  # the product has warned
    norms, images = np.linalg.norm(pair, axis=0), np.linalg.norm(image, axis=0)
    scale = images[0] * norms[1] + images[1] * norms[0]
    return float(abs(pair[:, 0] @ image[:, 1] - pair[:, 1] @ image[:, 0]) / scale) if scale else 0.0


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / scale) if scale else 0.0


def _cause(op: CurvatureOperator) -> str:
    first, second = _two_passes(op.risk.data)
    active = op.risk.training()
    dropout = [name for name, cell in active if "Dropout" in type(cell).__name__]
    if frozenset().union(*first) != frozenset().union(*second):
        return (
            "The data differ: the pipeline augments at random, or shuffles and drops the rest. "
            "Use a pipeline without random operations and with shuffle=False"
        )
    if dropout:
        return f"Dropout is active in {', '.join(dropout)}: call network.set_train(False), or give it a fixed mask"
    if first != second:
        norms = [name for name, cell in active if "BatchNorm" in type(cell).__name__]
        also = f", and batch norm is in training mode ({', '.join(norms)})" if norms else ""
        return f"The pipeline shuffles, so that the batches differ{also}. Use shuffle=False"
    return "The data are the same in both passes; the network or the loss draws random numbers, or keeps a state"
