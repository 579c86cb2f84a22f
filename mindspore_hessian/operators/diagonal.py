"""The diagonal of ``J^T M J``, exactly, from vectors that are pulled back for each sample by
itself.

With M_n = sum of sign s s^T at the output of sample n, the diagonal is the sum of sign (J_n^T s)^2:
as many backward passes over the data as a sample has vectors s, at most its number of outputs.
Wherever that would not be the operator's own diagonal (samples that depend on each other, a loss
that is no sum over samples), there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.core.program import Function, Program
from mindspore_hessian.core.space import Space
from mindspore_hessian.operators import cotangents, kernels
from mindspore_hessian.operators.data import Batch
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator
from mindspore_hessian.operators.samples import Samples, pulled
from mindspore_hessian.transforms import compose

TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-8}
_BYTES = 2**30  # that the matrices M of a batch may take
PULL, ROWS = Program("diagonal.batch", pulled), Program("diagonal", pulled)
Roots = Iterator[
    tuple[np.ndarray, np.ndarray]
]  # vectors like the output, and a sign for each sample


class NotBySamples(Exception):
    """The metric is not one of each sample by itself. Caught in this module."""


def curved(function: Function, space: Space):
    """H u at the output, of the loss of a batch."""
    out, n = kernels.one_output(function.value), function.n
    curve = compose.hessian_product(compose.scalar(function.loss, "loss_fn"), (0,), None, "revrev")

    def run(*tensors):
        return ops.reshape(
            curve((out(*tensors[:n]),) + tensors[n:-1], (tensors[-1],))[0], tensors[-1].shape
        )

    return run


CURVED = Program("diagonal.loss", curved)


def fisher_roots(op: Any, batch: Batch, number: int, out: np.ndarray) -> Roots:
    """Those of a Fisher information; each draw with its positions apart, where these are draws of
    their own.
    """
    if op._weighted and (op._weights(batch) < 0).any():
        raise NotBySamples
    vectors = cotangents.cotangents(op, batch, number)
    if not isinstance(op, EmpiricalFisherOperator) and op.mc_samples:
        vectors = cotangents.apart(
            np.stack(list(vectors)), out.shape[0] // batch.size, op._per_position and out.ndim > 2
        )
    for vector in vectors:
        yield vector, np.ones(batch.size)


def loss_roots(op: Any, batch: Batch, number: int, out: np.ndarray) -> Roots:
    """Those of the Hessian of the loss at the output of each sample: its eigenvectors."""
    count = out.size // batch.size
    if count >= op.shape[0] or count * out.size * 8 > _BYTES:
        raise NotBySamples
    rng = np.random.default_rng(0)

    def times(vectors: np.ndarray) -> np.ndarray:
        product = op.risk.run(
            batch, CURVED, (Tensor(vectors.reshape(out.shape).astype(out.dtype)),)
        )
        return _compat.to_numpy(product).astype(np.float64).reshape(batch.size, count)

    matrices = np.stack([times(np.tile(unit, (batch.size, 1))) for unit in np.eye(count)], axis=2)
    probe = rng.standard_normal((batch.size, count)).astype(out.dtype)
    expected = times(probe)
    if not _near(op, np.einsum("nij,nj->ni", matrices, probe), expected):
        raise NotBySamples
    values, vectors = np.linalg.eigh((matrices + matrices.swapaxes(1, 2)) / 2)
    least = np.finfo(op.dtype).eps * np.abs(values).max(axis=1)
    for place in range(count):
        own = values[:, place]
        if (np.abs(own) > least).any():
            root = vectors[:, :, place] * np.sqrt(np.abs(own))[:, None]
            yield root.reshape(out.shape), np.sign(own)


def _near(op: Any, found: np.ndarray, expected: np.ndarray) -> bool:
    return not np.linalg.norm(found - expected) > TOLERANCE[op.dtype] * np.linalg.norm(expected)


@interruptible
def exact_diagonal(op: Any, roots: Any) -> np.ndarray | None:
    """The diagonal of an operator, float64, or None where it is not that of single samples.

    Args:
        op: a `GGNOperator`, `FisherOperator` or `EmpiricalFisherOperator`.
        roots: ``roots(op, batch, number, out)`` gives the vectors of a batch and their signs.
    """
    if op.risk.comm.size > 1 or op.risk.training():
        return None
    total = np.zeros(op.shape[0])
    try:
        for number, batch, factor in op.risk.batches("diagonal", op.progress):
            total += factor * _of_batch(op, batch, number, roots)
    except NotBySamples:
        return None
    return total


def _of_batch(op: Any, batch: Batch, number: int, roots: Any) -> np.ndarray:
    """Checked by the sum of all that was pulled back, which a pass over the batch as a whole gives
    as well.
    """
    out = op.risk.output(batch)
    if out.dtype != op.dtype or out.ndim == 0 or out.shape[0] % batch.size:
        raise NotBySamples
    samples, total, sums, whole = (
        Samples(op.risk),
        np.zeros(op.shape[0]),
        np.zeros(op.shape[0]),
        np.zeros(out.shape),
    )
    for vector, signs in roots(op, batch, number, out):
        vector = vector.reshape(out.shape).astype(op.dtype)
        own, pulled_back = samples.squares(
            batch, ROWS, vector.reshape(batch.size, -1, *out.shape[1:]), signs
        )
        total, sums, whole = total + own, sums + pulled_back, whole + vector
    expected = _compat.to_numpy(op.risk.run(batch, PULL, (Tensor(whole.astype(op.dtype)),)))
    if not _near(op, sums, expected):
        raise NotBySamples
    return total
