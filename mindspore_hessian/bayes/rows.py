"""A network's outputs as a linear function of its weights, near those it has: its Jacobian, whole
or by its features.

Flat vectors are over the weights of the posterior. Where a result is for each sample, `whole` asks
for the covariance of its outputs, (samples, outputs, outputs), and not `whole` for their variances,
(samples, outputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def outer(rows: np.ndarray, whole: bool) -> np.ndarray:
    """T T^T of (samples, outputs, k)."""
    return rows @ rows.swapaxes(1, 2) if whole else np.einsum("nck,nck->nc", rows, rows)


@dataclass(frozen=True)
class DenseRows:
    """A Jacobian as it is, (samples, outputs, weights)."""

    jacobian: np.ndarray

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """J M, (samples, outputs, k)."""
        return self.jacobian @ matrix

    def weighed(self, variances: np.ndarray, whole: bool) -> np.ndarray:
        """J diag(v) J^T."""
        return outer(self.jacobian * np.sqrt(variances), whole)

    def gram(self, metric: Any) -> np.ndarray:
        """The sum over the samples of J^T M J."""
        n = self.jacobian.shape[-1]
        return self.jacobian.reshape(-1, n).T @ metric.times(self.jacobian).reshape(-1, n)

    def squares(self, metric: Any) -> np.ndarray:
        """The diagonal of `gram`."""
        return np.einsum("ncp,ncp->p", self.jacobian, metric.times(self.jacobian))


@dataclass(frozen=True)
class LastRows:
    """The Jacobian by the last layer's weights, which is never formed: output c has the features in
    the place of its row of weights, and 1 at its bias.

    Attributes:
        features: (samples, features), with a 1 behind where the bias is in the posterior.
        places: (outputs, features): where these weights are in the flat vector.
    """

    features: np.ndarray
    places: np.ndarray

    def times(self, matrix: np.ndarray) -> np.ndarray:
        return (self.features @ matrix[self.places]).swapaxes(0, 1)

    def weighed(self, variances: np.ndarray, whole: bool) -> np.ndarray:
        found = self.features**2 @ variances[self.places].T
        return found[:, :, None] * np.eye(len(self.places)) if whole else found

    def gram(self, metric: Any) -> np.ndarray:
        dense, (outputs, width) = metric.dense(), self.places.shape
        total = np.empty((outputs * width,) * 2)
        for output, where in enumerate(self.places):
            rows = (dense[:, :, output, None] * self.features[:, None]).reshape(len(dense), -1)
            total[np.ix_(self.places.ravel(), where)] = rows.T @ self.features
        return total

    def squares(self, metric: Any) -> np.ndarray:
        total = np.empty(self.places.size)
        total[self.places] = metric.diagonal().T @ self.features**2
        return total
