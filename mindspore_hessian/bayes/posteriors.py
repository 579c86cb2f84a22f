"""Gaussian posteriors of weights, by the structure of their precision c H + diag(d).

H is the curvature summed over the data, c one over the variance of the noise, d the precision of
the prior. A structure is made of H once. ``structure.plus(other)`` is that of the data of both,
``structure.stored()`` its arrays, of which ``restored`` makes it again, bit for bit.
``structure.at(c, d)`` is the posterior, which knows

- ``logdet()`` of the precision, and ``variances()``, (n,), of the weights,
- ``outputs(rows, whole)``: covariances of the outputs of a network (see `rows`),
- ``spread(noise)``: white noise, (draws, n), as draws of the weights around their mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular, svd

from mindspore_hessian.bayes.rows import DenseRows, LastRows, outer
from mindspore_hessian.linops import BlockDiagonal, Kronecker
from mindspore_hessian.linops import Diagonal as DiagonalOperator

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Full:
    """Any H."""

    matrix: np.ndarray

    def at(self, factor: float, prior: np.ndarray) -> FullPosterior:
        return FullPosterior(factor * self.matrix + np.diag(prior))

    def plus(self, other: Full) -> Full:
        return Full(self.matrix + other.matrix)

    def stored(self) -> Arrays:
        return {"matrix": self.matrix}

    @classmethod
    def restored(cls, arrays: Arrays) -> Full:
        return cls(arrays["matrix"])


@dataclass(frozen=True)
class FullPosterior:
    precision: np.ndarray

    @cached_property
    def _lower(self) -> np.ndarray:
        try:
            return cholesky(self.precision, lower=True)
        except LinAlgError as err:
            raise ValueError(
                "the precision of the posterior is not positive definite to working precision: "
                "pass a larger prior_precision"
            ) from err

    @cached_property
    def _root(self) -> np.ndarray:
        return solve_triangular(self._lower, np.eye(len(self._lower)), lower=True).T

    def logdet(self) -> float:
        return 2 * float(np.log(np.diag(self._lower)).sum())

    def variances(self) -> np.ndarray:
        return (self._root**2).sum(1)

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

    def plus(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.values + other.values)

    def stored(self) -> Arrays:
        return {"values": self.values}

    @classmethod
    def restored(cls, arrays: Arrays) -> Diagonal:
        return cls(arrays["values"])

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
    """H = U diag(e) U^T, of `rank` columns at most."""

    vectors: np.ndarray
    values: np.ndarray
    rank: int

    def at(self, factor: float, prior: np.ndarray) -> LowRankPosterior:
        return LowRankPosterior(self.vectors * np.sqrt(factor * self.values), prior)

    def plus(self, other: LowRank) -> LowRank:
        """The sum's largest eigenpairs: exact where the sum has no more than `rank`."""
        roots = [one.vectors * np.sqrt(one.values) for one in (self, other)]
        left, values, _ = svd(np.concatenate(roots, axis=1), full_matrices=False)
        return LowRank(
            np.ascontiguousarray(left[:, : self.rank]), values[: self.rank] ** 2, self.rank
        )

    def stored(self) -> Arrays:
        return {"vectors": self.vectors, "values": self.values, "rank": np.array(self.rank)}

    @classmethod
    def restored(cls, arrays: Arrays) -> LowRank:
        return cls(arrays["vectors"], arrays["values"], int(arrays["rank"]))


@dataclass(frozen=True)
class LowRankPosterior:
    """The precision D + V V^T, whose inverse is D^-1/2 (I - A diag(s^2 / (1 + s^2)) A^T) D^-1/2
    with the singular vectors A and values s of D^-1/2 V."""

    factor: np.ndarray
    prior: np.ndarray

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray]:
        left, values, _ = svd(self.factor / np.sqrt(self.prior)[:, None], full_matrices=False)
        return left, values**2

    @cached_property
    def _taken(self) -> np.ndarray:
        left, squares = self._svd
        return left * np.sqrt(squares / (1 + squares)) / np.sqrt(self.prior)[:, None]

    def logdet(self) -> float:
        return float(np.log(self.prior).sum() + np.log1p(self._svd[1]).sum())

    def variances(self) -> np.ndarray:
        return 1 / self.prior - (self._taken**2).sum(1)

    def outputs(self, rows: Any, whole: bool) -> np.ndarray:
        return rows.weighed(1 / self.prior, whole) - outer(rows.times(self._taken), whole)

    def spread(self, noise: np.ndarray) -> np.ndarray:
        left, squares = self._svd
        return (noise + noise @ left * (1 / np.sqrt(1 + squares) - 1) @ left.T) / np.sqrt(
            self.prior
        )


def _one(prior: np.ndarray, where: str) -> float:
    """The prior precision of a block, which has to be one number."""
    if np.ptp(prior):
        raise ValueError(
            "prior_precision must be one number for each Parameter at most where "
            f"structure='kron', but it varies within {where}"
        )
    return float(prior.flat[0])


@dataclass(frozen=True)
class Blocks:
    """H of blocks that know their eigenvectors, one for each Parameter: those of `KFACOperator`.

    Attributes:
        means: for each block, which of the two factors of its Kronecker products is a mean over the
            samples (that of the inputs); the other is a sum.
        count: of the samples.
    """

    blocks: Sequence[Any]
    indices: Sequence[np.ndarray]
    means: Sequence[int]
    count: int

    def plus(self, other: Blocks) -> Blocks:
        count = self.count + other.count
        return Blocks(
            [
                _added(one, more, mean, self.count / count)
                for one, more, mean in zip(self.blocks, other.blocks, self.means, strict=True)
            ],
            self.indices,
            self.means,
            count,
        )

    def stored(self) -> Arrays:
        arrays: list[np.ndarray] = []
        forms = [_taken_apart(block, arrays) for block in self.blocks]
        return {
            "forms": np.array(json.dumps(forms)),
            "means": np.array(self.means),
            "count": np.array(self.count),
            **{f"array{number}": one for number, one in enumerate(arrays)},
            **{f"indices{number}": one for number, one in enumerate(self.indices)},
        }

    @classmethod
    def restored(cls, arrays: Arrays) -> Blocks:
        forms = json.loads(str(arrays["forms"]))
        parts = (arrays[f"array{number}"] for number in range(len(arrays)))
        return cls(
            [_put_together(form, parts) for form in forms],
            [arrays[f"indices{number}"] for number in range(len(forms))],
            arrays["means"].tolist(),
            int(arrays["count"]),
        )

    def at(self, factor: float, prior: np.ndarray) -> BlocksPosterior:
        each = [_one(prior[where], "a block of weights") for where in self.indices]
        roots = [
            block.funm(lambda e, own=own: 1 / np.sqrt(factor * e + own))
            for block, own in zip(self.blocks, each, strict=True)
        ]
        values = np.concatenate(
            [
                factor * block.eigenvalues() + own
                for block, own in zip(self.blocks, each, strict=True)
            ]
        )
        return BlocksPosterior(values, BlockDiagonal(roots, self.indices))


def _added(one: Any, more: Any, mean: int, share: float) -> Any:
    """The block of the samples of both; `one` has that share of them."""
    if isinstance(one, BlockDiagonal):
        return BlockDiagonal(
            [_added(a, b, mean, share) for a, b in zip(one.blocks, more.blocks, strict=True)],
            one.indices,
        )
    if isinstance(one, DiagonalOperator):
        return DiagonalOperator(one.values + more.values)
    pairs = list(zip(one.factors, more.factors, strict=True))
    return Kronecker(
        *(
            share * a + (1 - share) * b if len(pairs) > 1 and place == mean else a + b
            for place, (a, b) in enumerate(pairs)
        )
    )


def _taken_apart(block: Any, arrays: list[np.ndarray]) -> Any:
    """The form of a block, for JSON; its arrays are appended to `arrays`."""
    if isinstance(block, BlockDiagonal):
        arrays += block.indices
        return [_taken_apart(one, arrays) for one in block.blocks]
    parts = [block.values] if isinstance(block, DiagonalOperator) else block.factors
    arrays += parts
    return "diagonal" if isinstance(block, DiagonalOperator) else len(parts)


def _put_together(form: Any, arrays: Iterator[np.ndarray]) -> Any:
    if isinstance(form, list):
        indices = [next(arrays) for _ in form]
        return BlockDiagonal([_put_together(one, arrays) for one in form], indices)
    return (
        DiagonalOperator(next(arrays))
        if form == "diagonal"
        else Kronecker(*(next(arrays) for _ in range(form)))
    )


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
        inputs, outputs: eigenvalues and eigenvectors of A, the mean of outer products of features,
            and of G, the summed curvature by the outputs.
        places, biases: the indices of the weights, (outputs, features), and of the biases,
            (outputs,) or (0,).
        count: of the samples.
    """

    inputs: tuple[np.ndarray, np.ndarray]
    outputs: tuple[np.ndarray, np.ndarray]
    places: np.ndarray
    biases: np.ndarray
    count: int

    @classmethod
    def of(
        cls, a: np.ndarray, g: np.ndarray, places: np.ndarray, biases: np.ndarray, count: int
    ) -> Kron:
        """Of matrices whose upper triangle is there; they are written over."""
        return cls(_eigh(a), _eigh(g), places, biases, count)

    def plus(self, other: Kron) -> Kron:
        count = self.count + other.count
        share = self.count / count
        return Kron.of(
            share * _matrix(self.inputs) + (1 - share) * _matrix(other.inputs),
            _matrix(self.outputs) + _matrix(other.outputs),
            self.places,
            self.biases,
            count,
        )

    def stored(self) -> Arrays:
        return {
            "a": self.inputs[1],
            "a_values": self.inputs[0],
            "g": self.outputs[1],
            "g_values": self.outputs[0],
            "places": self.places,
            "biases": self.biases,
            "count": np.array(self.count),
        }

    @classmethod
    def restored(cls, arrays: Arrays) -> Kron:
        return cls(
            (arrays["a_values"], arrays["a"]),
            (arrays["g_values"], arrays["g"]),
            arrays["places"],
            arrays["biases"],
            int(arrays["count"]),
        )

    def at(self, factor: float, prior: np.ndarray) -> KronPosterior:
        weights = factor * np.outer(self.outputs[0], self.inputs[0]) + _one(
            prior[self.places], "the last weights"
        )
        biases = (
            factor * self.outputs[0] + _one(prior[self.biases], "the last biases")
            if len(self.biases)
            else None
        )
        return KronPosterior(self, weights, biases)


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = eigh(matrix, lower=False, overwrite_a=True, check_finite=False, driver="evr")
    return np.maximum(values, 0), vectors


def _matrix(spectral: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    values, vectors = spectral
    return (vectors * values) @ vectors.T


@dataclass(frozen=True)
class KronPosterior:
    """Eigenvalues of the precision, of weights (outputs, features) and of biases (outputs,)."""

    of: Kron
    weights: np.ndarray
    biases: np.ndarray | None

    def logdet(self) -> float:
        return float(
            np.log(self.weights).sum() + (0 if self.biases is None else np.log(self.biases).sum())
        )

    def variances(self) -> np.ndarray:
        (_, a), (_, g) = self.of.inputs, self.of.outputs
        out = np.empty(self.of.places.size + len(self.of.biases))
        out[self.of.places] = _squared(g, 1 / self.weights) @ (a**2).T
        if self.biases is not None:
            out[self.of.biases] = _squared(g, 1 / self.biases[:, None])[:, 0]
        return out

    def outputs(self, rows: LastRows, whole: bool) -> np.ndarray:
        (_, a), (_, g) = self.of.inputs, self.of.outputs
        scales = (rows.features[:, : len(a)] @ a) ** 2 @ (1 / self.weights).T
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
    return np.concatenate(
        [vectors[start : start + rows] ** 2 @ matrix for start in range(0, len(vectors), rows)]
    )
