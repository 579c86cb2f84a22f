"""The noise of the gradient: how much the gradients of single samples differ from their mean."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.estimators.results import Result
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.kfac import KFACOperator
from mindspore_hessian.operators.samples import GRADIENTS, Samples, refuse_training

# of the samples' mean gradient; MindSpore's losses round 1 / count to float32
TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-6}


@dataclass(frozen=True)
class NoiseRow:
    """One layer: number of parameters, the trace of the covariance of its gradients, the square of
    the norm of their mean, and the quotient of the two."""

    name: str
    parameters: int
    covariance_trace: float
    squared_norm: float
    noise_scale: float


@dataclass(frozen=True, eq=False, repr=False)
class GradientNoise(Result):
    """What `noise_scale` found. Printing it shows a table of the layers.

    Attributes:
        value: tr Sigma / |g|^2, the noise scale; infinite where g is 0.
        corrected: the same with |g|^2 - tr Sigma / N in the place of |g|^2: that of the
            distribution that the N samples are drawn from, without bias in numerator and
            denominator; infinite where N samples do not tell its gradient from 0.
        covariance_trace: tr Sigma, the sum of `variance`.
        squared_norm: |g|^2.
        gradient: g, the mean of the samples' gradients, (P,).
        variance: (P,), of each entry over the samples, with N - 1 in the denominator.
        num_data: N.
        rows: the layers, `NoiseRow` each.
        seconds: the cost.
    """

    value: float
    corrected: float
    covariance_trace: float
    squared_norm: float
    gradient: np.ndarray
    variance: np.ndarray
    num_data: int
    rows: tuple[NoiseRow, ...]
    seconds: float

    def __str__(self) -> str:
        cells = [
            ["layer", "parameters", "tr Sigma", "|g|^2", "noise scale"],
            *(
                [
                    row.name,
                    str(row.parameters),
                    f"{row.covariance_trace:.4g}",
                    f"{row.squared_norm:.4g}",
                    f"{row.noise_scale:.4g}",
                ]
                for row in self.rows
            ),
            [
                "all",
                str(len(self.variance)),
                f"{self.covariance_trace:.4g}",
                f"{self.squared_norm:.4g}",
                f"{self.value:.4g}",
            ],
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        )

    @classmethod
    def _restored(cls, name: str, array: np.ndarray) -> Any:
        value = super()._restored(name, array)
        return tuple(NoiseRow(**row) for row in json.loads(value)) if name == "rows" else value


@interruptible
def noise_scale(
    op: CurvatureOperator | KFACOperator, *, chunk_size: int | None = None
) -> GradientNoise:
    r"""Noise scale of the gradient, :math:`tr\,\Sigma / |g|^2`, of all weights and of each layer.

    g is the mean of the gradients of the samples and :math:`\Sigma` their covariance. A batch of as
    many samples has as much noise as signal: below it a batch twice as large allows about twice the
    learning rate, above it hardly more. Samples are those of the data of `op`, at the weights as
    they are; the scale needs no curvature, but the same network, loss and data.

    Costs the gradients of all samples, each of a batch of one and batched over a chunk, and one
    gradient of the risk, by which they are checked.

    Args:
        op: an operator of a network, for its network, loss and data; `KFACOperator` and
            `EKFACOperator` too.
        chunk_size: samples at a time; None: as many as rows of 128 MiB hold.

    Returns:
        GradientNoise.

    Raises:
        TypeError: `op` is no operator of a network.
        ValueError: a wrong `chunk_size`; fewer than two samples; dropout or batch norm in training
            mode; a distributed operator; gradients of samples whose mean is not that of the risk,
            as samples depend on each other or count by the number of their targets.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU`` (tested)

    Source:
        S. McCandlish, J. Kaplan, D. Amodei et al., An empirical model of large-batch training,
        arXiv 1812.06162, 2018.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import HessianOperator, noise_scale
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> found = noise_scale(HessianOperator(net, nn.MSELoss(), (x, y)))  # gradients (2, 0) and (0, 8)
        >>> print(found.gradient, found.covariance_trace, found.value)
        [1. 4.] 34.0 2.0
    """
    if not isinstance(op, CurvatureOperator | KFACOperator):
        raise TypeError(
            f"op must be an operator of a network, such as HessianOperator, but got {shown(op)}"
        )
    if chunk_size is not None and (not is_integer(chunk_size) or chunk_size < 1):
        raise ValueError(f"chunk_size must be a positive int or None, but got {shown(chunk_size)}")
    op = op.fisher_operator if isinstance(op, KFACOperator) else op
    if op.risk.comm.size > 1:
        raise ValueError(
            "op is distributed, and noise_scale knows the samples of one process only: make an "
            "operator without distributed=True"
        )
    refuse_training(op.risk, ("Dropout", "BatchNorm"), "a sample by itself has no loss of its own")
    started = time.perf_counter()
    count, mean, squares, lengths = _moments(op, chunk_size)
    if count < 2:
        raise ValueError(
            "op must have at least two samples for a covariance, but its data hold one"
        )
    slope = op.flatten(op.gradient_and_loss()[0]).astype(np.float64) / (
        count if op.reduction == "sum" else 1
    )
    if not np.linalg.norm(mean - slope) <= TOLERANCE[op.dtype] * (lengths / count) ** 0.5:
        raise ValueError(
            "the gradients of samples, each as a batch of one, do not have the gradient of the "
            "risk as their mean: samples depend on each other, or count by the number of their "
            "targets (ignored ones, weights of classes), so that there is no noise scale of "
            "samples"
        )
    variance = squares / (count - 1)
    rows = tuple(
        NoiseRow(name, len(index), *_scale(variance[index], mean[index]))
        for name, index in op.layers.items()
    )
    trace, squared, value = _scale(variance, mean)
    true = squared - trace / count
    corrected = trace / true if true > 0 else float("inf") if trace else 0.0
    return GradientNoise(
        value, corrected, trace, squared, mean, variance, count, rows, time.perf_counter() - started
    )


def _moments(
    op: CurvatureOperator, chunk_size: int | None
) -> tuple[int, np.ndarray, np.ndarray, float]:
    """The number of samples, the mean of their gradients, the sum of squares about it, and that of
    squared norms.
    """
    samples, count, lengths = Samples(op.risk, chunk_size), 0, 0.0
    mean, squares = np.zeros(op.shape[0]), np.zeros(op.shape[0])
    for _, batch, _ in op.risk.batches("noise scale", op.progress):
        rows = samples.rows(batch, GRADIENTS).astype(np.float64)
        if not np.isfinite(rows).all():
            raise ValueError(f"batch {batch.number}: gradients of samples hold NaN or Inf")
        here, size = rows.mean(axis=0), len(rows)
        step, total = here - mean, count + size
        squares += ((rows - here) ** 2).sum(axis=0) + step**2 * (count * size / total)
        mean, count, lengths = mean + step * (size / total), total, lengths + float((rows**2).sum())
    return count, mean, squares, lengths


def _scale(variance: np.ndarray, mean: np.ndarray) -> tuple[float, float, float]:
    """tr Sigma, |g|^2 and their quotient."""
    trace, squared = float(variance.sum()), float(mean @ mean)
    return trace, squared, trace / squared if squared else float("inf") if trace else 0.0
