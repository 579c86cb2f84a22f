"""What is observed, given a network's outputs f of shape (samples, outputs): log-likelihoods, their
curvature, and predictives. All in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg.blas import dsyrk
from scipy.special import log_softmax, softmax


@dataclass(frozen=True)
class Categorical:
    """The curvature of -log p(y | f) by f: diag(p) - p p^T for each sample.

    Attributes:
        p: probabilities, (samples, classes).
    """

    p: np.ndarray

    def dense(self) -> np.ndarray:
        return self.p[:, :, None] * (np.eye(self.p.shape[1]) - self.p[:, None, :])

    def diagonal(self) -> np.ndarray:
        return self.p * (1 - self.p)

    def add_to(self, total: np.ndarray) -> None:
        """Add the sum over the samples to the upper triangle of a matrix of columns that are each
        in one piece.
        """
        dsyrk(-1.0, self.p.T, 1.0, total, overwrite_c=1)
        total.flat[:: len(total) + 1] += self.p.sum(0)

    def times(self, rows: np.ndarray) -> np.ndarray:
        """For (samples, classes, k)."""
        return self.p[:, :, None] * (rows - np.einsum("nc,nck->nk", self.p, rows)[:, None])


@dataclass(frozen=True)
class Unit:
    """That of a Gaussian of unit variance: the identity.

    Attributes:
        shape: (samples, outputs).
    """

    shape: tuple[int, ...]

    def dense(self) -> np.ndarray:
        return np.broadcast_to(np.eye(self.shape[1]), (*self.shape, self.shape[1]))

    def diagonal(self) -> np.ndarray:
        return np.ones(self.shape)

    def add_to(self, total: np.ndarray) -> None:
        total.flat[:: len(total) + 1] += self.shape[0]

    def times(self, rows: np.ndarray) -> np.ndarray:
        return rows


@dataclass(frozen=True)
class Likelihood:
    """A distribution of targets.

    Attributes:
        name: as users say it.
        loss: the loss of MindSpore whose curvature, times `scale`, is that of -log p.
        check: the targets of a batch for its outputs; raises where they are none.
        misfit: -log p(y | f) for noise of variance 1, summed over samples, without its constants.
        curvature: of that by f.
        noisy: whether there is a noise, whose variance divides both.
    """

    name: str
    loss: str
    scale: float
    check: Callable[[np.ndarray, np.ndarray, int], np.ndarray]
    misfit: Callable[[np.ndarray, np.ndarray], float]
    curvature: Callable[[np.ndarray], Any]
    noisy: bool


def _labels(y: np.ndarray, f: np.ndarray, number: int) -> np.ndarray:
    if y.shape != f.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(
            f"data: batch {number} must have an integer label for each sample, of shape "
            f"({len(f)},), for likelihood='classification', but has {y.dtype} of shape {y.shape}"
        )
    if y.size and (y.min() < 0 or y.max() >= f.shape[1]):
        raise ValueError(
            f"data: the labels of batch {number} must be from 0 to {f.shape[1] - 1}, but go from "
            f"{y.min()} to {y.max()}"
        )
    return y


def _values(y: np.ndarray, f: np.ndarray, number: int) -> np.ndarray:
    if y.shape != f.shape or y.dtype.kind != "f":
        raise ValueError(
            f"data: batch {number} must have float targets of the outputs' shape {f.shape}, for "
            f"likelihood='regression', but has {y.dtype} of shape {y.shape}"
        )
    return y.astype(np.float64)


def _cross_entropy(f: np.ndarray, y: np.ndarray) -> float:
    return -float(log_softmax(f, 1)[np.arange(len(y)), y].sum())


def _half_squares(f: np.ndarray, y: np.ndarray) -> float:
    return float(((y - f) ** 2).sum()) / 2


LIKELIHOODS = {
    "classification": Likelihood(
        "classification",
        "CrossEntropyLoss",
        1.0,
        _labels,
        _cross_entropy,
        lambda f: Categorical(softmax(f, 1)),
        False,
    ),
    "regression": Likelihood(
        "regression", "MSELoss", 0.5, _values, _half_squares, lambda f: Unit(f.shape), True
    ),
}


# --- predictives of classes: of the mean f and covariance of the logits ---------------------------


def probit(f: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """softmax(f / sqrt(1 + pi/8 v)), v the variances, (samples, classes)."""
    return softmax(f / np.sqrt(1 + np.pi / 8 * variance), 1)


def bridge(f: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The mean of the Dirichlet distribution that the Laplace bridge gives, for logits that are
    made to sum to 0.
    """
    rows, classes = covariance.sum(2), f.shape[1]
    whole = rows.sum(1, keepdims=True)
    f = f - rows * f.sum(1, keepdims=True) / whole
    variance = np.einsum("ncc->nc", covariance) - rows**2 / whole
    alpha = (1 - 2 / classes + np.exp(f) / classes**2 * np.exp(-f).sum(1, keepdims=True)) / variance
    return alpha / alpha.sum(1, keepdims=True)


def monte_carlo(f: np.ndarray, covariance: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The mean of the softmax over draws of the logits, for white noise (draws, samples,
    classes).
    """
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
    return np.mean([softmax(f + np.einsum("nck,nk->nc", root, one), 1) for one in noise], axis=0)
