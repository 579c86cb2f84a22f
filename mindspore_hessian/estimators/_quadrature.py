"""Stochastic Lanczos quadrature: Gauss rules for z^T f(H) z, several probes at a time."""

from __future__ import annotations

import numpy as np

from mindspore_hessian.estimators._common import Run

_MOST_BYTES = 2**30  # of the Lanczos vectors that are held at a time


def probes_at_once(n: int, steps: int, batch: int) -> int:
    return max(1, min(batch, _MOST_BYTES // (8 * n * steps)))


def tridiagonals(run: Run, starts: np.ndarray, steps: int) -> np.ndarray:
    """Lanczos with full reorthogonalisation from each column of `starts`.

    Returns:
        (columns, 2, steps): the diagonals, and beside them the norms of the residuals, 0 from where
        the space is exhausted; the diagonals are NaN after that.
    """
    n, count = starts.shape
    bases = [np.zeros((n, steps), order="F") for _ in range(count)]
    result = np.full((count, 2, steps), np.nan)
    result[:, 1] = 0.0
    for basis, start in zip(bases, starts.T, strict=True):
        basis[:, 0] = start / np.linalg.norm(start)
    active, scales = list(range(count)), np.zeros(count)
    for j in range(steps):
        if not active:
            break
        products = run @ np.stack([bases[column][:, j] for column in active], axis=1)
        for w, column in zip(products.T.copy(), list(active), strict=True):
            known = bases[column][:, : j + 1]
            scales[column] = max(scales[column], np.linalg.norm(w))
            result[column, 0, j] = known[:, j] @ w
            for _ in range(2):
                w -= known @ (known.T @ w)
            beta = float(np.linalg.norm(w))
            if beta <= 10 * run.eps * scales[column] or j + 1 == n:
                active.remove(column)
            elif j + 1 < steps:
                result[column, 1, j] = beta
                bases[column][:, j + 1] = w / beta
    return result


def rule(tridiagonal: np.ndarray, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of one Gauss rule, of `most` steps at most."""
    diagonal, beside = tridiagonal
    size = int(np.isfinite(diagonal).sum())
    size = size if most is None else min(size, most)
    off = beside[: size - 1]
    nodes, vectors = np.linalg.eigh(np.diag(diagonal[:size]) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2
