"""Symmetric operators with a prescribed spectrum, for the tests of the estimators."""

from __future__ import annotations

import numpy as np
from scipy.fft import dct, idct
from scipy.sparse.linalg import LinearOperator

BIG = 4000
SPECTRA = {
    "decaying": 0.9 ** np.arange(BIG),
    "algebraic": 1.0 / np.arange(1, BIG + 1) ** 2,
    "clustered": np.concatenate([1 + 1e-4 * np.arange(5), np.linspace(0.0, 0.9, BIG - 5)]),
    "indefinite": np.concatenate(
        [[9.0, 7.0, 5.0, -4.0, -6.0, -8.0], np.linspace(-1.0, 1.0, BIG - 6)]
    ),
    "deficient": np.concatenate([[3.0, 2.0, -1.0], np.zeros(BIG - 3)]),
    "repeated": np.concatenate([[10.0] * 3, [5.0] * 4, np.linspace(-1.0, 1.0, BIG - 7)]),
    "identity": np.ones(BIG),
}


def cosine(spectrum, dtype=np.float64):
    """C^T diag(spectrum) C with the orthonormal cosine transform C: a product costs n log n."""
    spectrum = np.asarray(spectrum, dtype=dtype)

    def product(x):
        scaled = (spectrum if x.ndim == 1 else spectrum[:, None]) * dct(x, axis=0, norm="ortho")
        return idct(scaled, axis=0, norm="ortho").astype(dtype)

    return LinearOperator((len(spectrum),) * 2, matvec=product, matmat=product, dtype=dtype)


def dense(spectrum, seed=0):
    """Q diag(spectrum) Q^T with a random orthogonal Q."""
    spectrum = np.asarray(spectrum, dtype=float)
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    matrix = (q * spectrum) @ q.T
    return (matrix + matrix.T) / 2


class Counting:
    """An operator that counts its columns, and raises or turns to NaN once `limit` is passed."""

    def __init__(self, matrix, limit=None, error=None, vectors_only=False):
        self.matrix, self.shape, self.columns, self.calls = matrix, matrix.shape, 0, 0
        self.limit, self.error, self.vectors_only = limit, error, vectors_only

    def __matmul__(self, x):
        if self.vectors_only and x.ndim > 1:
            raise TypeError("vectors only")
        self.columns, self.calls = self.columns + (1 if x.ndim == 1 else x.shape[1]), self.calls + 1
        if self.limit is not None and self.columns > self.limit:
            if self.error is not None:
                raise self.error
            return np.full(x.shape, np.nan)
        return self.matrix @ x
