"""Gaussian posteriors of weights, by the structure of their precision c H + diag(d).

H is the curvature summed over the data, c one over the variance of the noise, d the precision of the prior. A structure
is made of H once; ``structure.at(c, d)`` is the posterior, which knows

- ``logdet()`` of the precision, and ``variances()``, (n,), of the weights,
- ``outputs(rows, whole)``: covariances of the outputs of a network (see `rows`),
- ``spread(noise)``: white noise, (draws, n), as draws of the weights around their mean.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular, svd

from mindspore_hessian.bayes.rows import DenseRows, LastRows, outer
from mindspore_hessian.linops import BlockDiagonal


@dataclass(frozen=True)
class Full:
    """Any H."""

    matrix: np.ndarray

    def at(self, factor: float, prior: np.ndarray) -> FullPosterior:
        return FullPosterior(factor * self.matrix + np.diag(prior))


@dataclass(frozen=True)
class FullPosterior:
    precision: np.ndarray

    @cached_property
    def _lower(self) -> np.ndarray:
        try:
            return cholesky(self.precision, lower=True)
        except LinAlgError as err:
            raise ValueError("the precision of the posterior is not positive definite to working precision: pass a "
                             "larger prior_precision") from err

    @cached_property
    def _root(self) -> np.ndarray:
        return solve_triangular(self._lower, np.eye(len(self._lower)), lower=True).T

    def logdet(self) -> float:
        return 2 * float(np.log(np.diag(self._lower)).sum())

    def variances(self) -> np.ndarray:
        return (self._root ** 2).sum(1)

    def outputs(self, rows: Any, whole: bool) -> np.ndarray:
        return outer(rows.times(self._root), whole)

    def spread(self, noise: np.ndarray) -> np.ndarray:
        return noise @ self._root.T


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of H, and the posterior where it is that of the precision."""

    values: np.ndarray

    def at(self, factor: float, prior: np.ndarray) -> Diagonal:
        return Diagonal(factor * self.values + prior)

    def logdet(self) -> float:
        return float(np.log(self.values).sum())

    def variances(self) -> np.ndarray:
        return 1 / self.values

    def outputs(self, rows: Any, whole: bool) -> np.ndarray:
        return rows.weighed(1 / self.values, whole)

    def spread(self, noise: np.ndarray) -> np.ndarray:
        return noise / np.sqrt(self.values)


@dataclass(frozen=True)
class LowRank:
    """H = U diag(e) U^T, of few columns."""

    vectors: np.ndarray
    values: np.ndarray

    def at(self, factor: float, prior: np.ndarray) -> LowRankPosterior:
        return LowRankPosterior(self.vectors * np.sqrt(factor * self.values), prior)


@dataclass(frozen=True)
class LowRankPosterior:
    """The precision D + V V^T, whose inverse is D^-1/2 (I - A diag(s^2 / (1 + s^2)) A^T) D^-1/2 with the singular
    vectors A and values s of D^-1/2 V."""

    factor: np.ndarray
    prior: np.ndarray

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray]:
        left, values, _ = svd(self.factor / np.sqrt(self.prior)[:, None], full_matrices=False)
        return left, values ** 2

    @cached_property
    def _taken(self) -> np.ndarray:
        left, squares = self._svd
        return left * np.sqrt(squares / (1 + squares)) / np.sqrt(self.prior)[:, None]

    def logdet(self) -> float:
        return float(np.log(self.prior).sum() + np.log1p(self._svd[1]).sum())

    def variances(self) -> np.ndarray:
        return 1 / self.prior - (self._taken ** 2).sum(1)

    def outputs(self, rows: Any, whole: bool) -> np.ndarray:
        return rows.weighed(1 / self.prior, whole) - outer(rows.times(self._taken), whole)

    def spread(self, noise: np.ndarray) -> np.ndarray:
        left, squares = self._svd
        return (noise + noise @ left * (1 / np.sqrt(1 + squares) - 1) @ left.T) / np.sqrt(self.prior)


def _one(prior: np.ndarray, where: str) -> float:
    """The prior precision of a block, which has to be one number."""
    if np.ptp(prior):
        raise ValueError("prior_precision must be one number for each Parameter at most where structure='kron', but it "
                         f"varies within {where}")
    return float(prior.flat[0])


@dataclass(frozen=True)
class Blocks:
    """H of blocks that know their eigenvectors, one for each Parameter: those of `KFACOperator`."""

    blocks: Sequence[Any]
    indices: Sequence[np.ndarray]

    def at(self, factor: float, prior: np.ndarray) -> BlocksPosterior:
        each = [_one(prior[where], "a block of weights") for where in self.indices]
        roots = [block.funm(lambda e, own=own: 1 / np.sqrt(factor * e + own))
                 for block, own in zip(self.blocks, each, strict=True)]
        values = np.concatenate([factor * block.eigenvalues() + own
                                 for block, own in zip(self.blocks, each, strict=True)])
        return BlocksPosterior(values, BlockDiagonal(roots, self.indices))


@dataclass(frozen=True)
class BlocksPosterior:
    """Eigenvalues of the precision, and its inverse root."""

    values: np.ndarray
    root: BlockDiagonal

    def logdet(self) -> float:
        return float(np.log(self.values).sum())

    def variances(self) -> np.ndarray:
        return self.root.funm(np.square).diagonal()

    def outputs(self, rows: DenseRows, whole: bool) -> np.ndarray:
        lines = rows.jacobian.reshape(-1, rows.jacobian.shape[-1])
        return outer(self.root.columns(lines.T).T.reshape(rows.jacobian.shape), whole)

    def spread(self, noise: np.ndarray) -> np.ndarray:
        return self.root.columns(noise.T).T


@dataclass(frozen=True)
class Kron:
    """H = G kron A of the last layer's weights, with the block G for its biases, in eigenvectors.

    Attributes:
        inputs, outputs: eigenvalues and eigenvectors of A, the mean of outer products of features, and of G, the summed
            curvature by the outputs.
        places, biases: the indices of the weights, (outputs, features), and of the biases, (outputs,) or (0,).
    """

    inputs: tuple[np.ndarray, np.ndarray]
    outputs: tuple[np.ndarray, np.ndarray]
    places: np.ndarray
    biases: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray, g: np.ndarray, places: np.ndarray, biases: np.ndarray) -> Kron:
        """Of matrices whose upper triangle is there; they are written over."""
        return cls(_eigh(a), _eigh(g), places, biases)

    def at(self, factor: float, prior: np.ndarray) -> KronPosterior:
        weights = factor * np.outer(self.outputs[0], self.inputs[0]) + _one(prior[self.places], "the last weights")
        biases = factor * self.outputs[0] + _one(prior[self.biases], "the last biases") if len(self.biases) else None
        return KronPosterior(self, weights, biases)


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = eigh(matrix, lower=False, overwrite_a=True, check_finite=False, driver="evr")
    return np.maximum(values, 0), vectors


@dataclass(frozen=True)
class KronPosterior:
    """Eigenvalues of the precision, of weights (outputs, features) and of biases (outputs,)."""

    of: Kron
    weights: np.ndarray
    biases: np.ndarray | None

    def logdet(self) -> float:
        return float(np.log(self.weights).sum() + (0 if self.biases is None else np.log(self.biases).sum()))

    def variances(self) -> np.ndarray:
        (_, a), (_, g) = self.of.inputs, self.of.outputs
        out = np.empty(self.of.places.size + len(self.of.biases))
        out[self.of.places] = _squared(g, 1 / self.weights) @ (a ** 2).T
        if self.biases is not None:
            out[self.of.biases] = _squared(g, 1 / self.biases[:, None])[:, 0]
        return out

    def outputs(self, rows: LastRows, whole: bool) -> np.ndarray:
        (_, a), (_, g) = self.of.inputs, self.of.outputs
        scales = (rows.features[:, :len(a)] @ a) ** 2 @ (1 / self.weights).T
        if self.biases is not None:
            scales += 1 / self.biases
        return (g * scales[:, None]) @ g.T if whole else _squared(g, scales.T).T

    def spread(self, noise: np.ndarray) -> np.ndarray:
        (_, a), (_, g) = self.of.inputs, self.of.outputs
        out = np.empty_like(noise)
        out[:, self.of.places] = g @ (noise[:, self.of.places] / np.sqrt(self.weights)) @ a.T
        if self.biases is not None:
            out[:, self.of.biases] = noise[:, self.of.biases] / np.sqrt(self.biases) @ g.T
        return out


def _squared(vectors: np.ndarray, matrix: np.ndarray, rows: int = 256) -> np.ndarray:
    """vectors**2 @ matrix, a few rows at a time: the squares of large bases are not held."""
    return np.concatenate([vectors[start:start + rows] ** 2 @ matrix for start in range(0, len(vectors), rows)])
