"""Thick-restart Lanczos with full reorthogonalisation, and a check that no copy of a wanted
eigenvalue was missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mindspore_hessian.estimators._common import Run

WHICH = {"LA": "LA", "SA": "SA", "LM": "LM", "BE": "BE", "both ends": "BE"}
_DOUBT = (
    1e-3  # probability that the look for a missed eigenvalue is allowed to fail by its start vector
)
_SEARCH, _VERIFY, _REFINE = range(3)
_PIECE = 2**15  # rows of a basis


@dataclass(frozen=True)
class Pairs:
    """Ritz pairs with their true residuals."""

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    worst: np.ndarray  # the residual vector of the worst pair
    scale: float
    stopped_by: str = "stagnation"

    @property
    def met(self) -> float:
        """The largest residual, relative to the largest |eigenvalue| that was seen."""
        return float(self.residuals.max()) / self.scale if self.scale else 0.0


@dataclass(frozen=True)
class _Ritz:
    """All Ritz values of the basis, best first."""

    values: np.ndarray
    coordinates: np.ndarray
    estimates: np.ndarray  # of the residual norms


def preference(values: np.ndarray, which: str) -> np.ndarray:
    """Indices of `values`, the wanted ones first; "BE" takes from both ends in turn, the upper one
    first.
    """
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")
    down = np.argsort(-values, kind="stable")
    if which == "BE":
        return np.stack([down, down[::-1]], axis=1).ravel()[: len(values)]
    return down if which == "LA" else down[::-1]


def orthogonal(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`vectors` made orthonormal, and orthogonal to the orthonormal columns of `basis`; those that
    depend on it or on each other are replaced by arbitrary directions, so that the shape is
    kept."""
    generator = np.random.default_rng(0)
    for _ in range(10):
        norms = np.linalg.norm(vectors, axis=0)
        q, r = np.linalg.qr(vectors - basis @ (basis.T @ vectors))
        left = np.abs(np.diag(r)) / np.where(norms > 0, norms, 1.0)
        if (
            left.min() > 0.5
        ):  # this pass took little away, so what it left is orthogonal to rounding
            return q
        vectors = np.where(left > 1e-12, q, generator.standard_normal(q.shape))
    return q


def _apart_from(basis: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """w without its part in the span of an orthonormal basis, taken away twice, and its coefficients
    there. In pieces, so that the second look at the basis finds it in the cache."""
    column, again, out = basis.T @ w, np.zeros(basis.shape[1]), np.empty_like(basis, shape=w.shape)
    pieces = [slice(start, start + _PIECE) for start in range(0, len(w), _PIECE)]
    for piece in pieces:
        out[piece] = w[piece] - basis[piece] @ column
        again += basis[piece].T @ out[piece]
    for piece in pieces:
        out[piece] -= basis[piece] @ again
    return out, column + again


def dense_pairs(run: Run, k: int, which: str, tol: float) -> Pairs:
    """The same from the whole matrix: n products, and k for the residuals."""
    parts = [run @ np.eye(run.n)[:, start : start + 32] for start in range(0, run.n, 32)]
    matrix = np.concatenate(parts, axis=1)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    pairs = _true_pairs(
        run, vectors[:, preference(values, which)[:k]], which, float(np.abs(values).max())
    )
    return replace(pairs, stopped_by="tol" if pairs.met <= tol else "stagnation")


def _true_pairs(run: Run, vectors: np.ndarray, which: str, scale: float) -> Pairs:
    """Rayleigh-Ritz in the span of orthonormal `vectors`, and the residuals, from one product for
    each.
    """
    products = run @ vectors
    values, turn = np.linalg.eigh((matrix := vectors.T @ products) / 2 + matrix.T / 2)
    turn = turn[:, preference(values, which)]
    vectors, products = vectors @ turn, products @ turn
    values = np.einsum("ij,ij->j", vectors, products) / np.einsum("ij,ij->j", vectors, vectors)
    errors = products - vectors * values
    residuals = np.linalg.norm(errors, axis=0)
    return Pairs(values, vectors, residuals, errors[:, int(np.argmax(residuals))], scale)


class Search:
    """The wanted `k` eigenpairs of a run's operator.

    The projected matrix is V^T H V, taken from the products in full, so Rayleigh-Ritz holds for any
    basis: after a restart, after an invariant subspace, and after a random direction was put in.

    When the wanted pairs have converged they are kept and Lanczos starts again from a random vector
    orthogonal to them, as a Krylov space holds one vector of each eigenspace only. It ends when the
    next Ritz value in line has converged, or lies clearly below the wanted ones after enough steps
    (Kuczynski and Wozniakowski's bound).
    """

    def __init__(
        self, run: Run, k: int, which: str, tol: float, width: int, start: np.ndarray | None
    ) -> None:
        self.run, self.k, self.which, self.tol = run, k, which, tol
        self.width = min(run.n, width)
        self.basis = np.zeros((run.n, self.width + 1), order="F")
        self.matrix = np.zeros((self.width, self.width))
        self.size, self.beta, self.scale, self.phase, self.steps, self.drawn = (
            0,
            0.0,
            0.0,
            _SEARCH,
            0,
            0,
        )
        self.locked, self.worst = np.zeros(k), np.inf
        if "basis" in run.state:
            self._restore()
        else:
            self.basis[:, 0] = self._fresh() if start is None else start / np.linalg.norm(start)

    def find(self) -> Pairs:
        while True:
            ritz = self._fill()
            if self._spent() or self.size == self.run.n:
                return self._finish(ritz)[1]
            if not self._converged(ritz):
                self._restart(ritz, self.k + (self.width - self.k) // 2)
            elif self.phase != _REFINE and not self._verified(ritz):
                if self.phase == _SEARCH or self._moved(ritz):
                    self._lock(ritz)
                else:
                    self._restart(ritz, self.k + (self.width - self.k) // 2)
            else:
                done, pairs = self._finish(ritz)
                if done:
                    return pairs
                self._refine(pairs)
            self._save()

    def _fill(self) -> _Ritz:
        """Lanczos steps until something is to be decided."""
        while True:
            self._step()
            full = self.size == self.width or self._spent()
            if full or (self.size > self.k and self.size % 4 == 0):
                ritz = self._ritz()
                if full or (
                    self._converged(ritz)
                    and (self.phase != _VERIFY or self._verified(ritz) or self._moved(ritz))
                ):
                    return ritz

    def _spent(self) -> bool:
        """Only the products for the true residuals are left."""
        return self.run.remaining <= self.k

    def _step(self) -> None:
        j = self.size
        known = self.basis[:, : j + 1]
        w = self.run @ self.basis[:, j]
        norm = np.linalg.norm(w)
        w, column = _apart_from(known, w)
        self.matrix[: j + 1, j] = self.matrix[j, : j + 1] = column
        self.size, self.steps, self.beta = j + 1, self.steps + 1, float(np.linalg.norm(w))
        self.scale = max(self.scale, float(norm))
        if self.beta > 10 * self.run.eps * self.scale:
            self.basis[:, j + 1] = w / self.beta
        else:  # an invariant subspace
            self.beta = 0.0
            if self.size < self.run.n:
                self.basis[:, j + 1] = self._fresh(self.size)

    def _fresh(self, size: int = 0) -> np.ndarray:
        """A random unit vector orthogonal to the first `size` of the basis."""
        self.drawn += 1
        return orthogonal(self.run.probes(self.drawn - 1, 1, "normal"), self.basis[:, :size])[:, 0]

    def _ritz(self) -> _Ritz:
        values, coordinates = np.linalg.eigh(self.matrix[: self.size, : self.size])
        self.scale = max(self.scale, float(np.abs(values).max()))
        order = preference(values, self.which)
        values, coordinates = values[order], coordinates[:, order]
        return _Ritz(values, coordinates, self.beta * np.abs(coordinates[-1]))

    def _converged(self, ritz: _Ritz) -> bool:
        return bool(
            self.size >= self.k and (ritz.estimates[: self.k] <= 0.5 * self.tol * self.scale).all()
        )

    def _moved(self, ritz: _Ritz) -> bool:
        """The random vector has found better values than those that had converged."""
        change = self._score(ritz.values[: self.k]) - self._score(self.locked)
        return bool(np.abs(change).max() > self.tol * self.scale)

    def _score(self, values: np.ndarray) -> np.ndarray:
        return np.abs(values) if self.which == "LM" else values

    def _verified(self, ritz: _Ritz) -> bool:
        """The next in line have no chance to be among the wanted."""
        if self.phase != _VERIFY or self._moved(ritz) or self.size <= self.k:
            return False
        ends = 2 if self.which == "BE" else 1
        scores = self._score(ritz.values)
        slack = (np.log(1.65 * np.sqrt(self.run.n) / _DOUBT) / (2 * self.steps - 1)) ** 2
        last = ritz.values[self.k - 1]
        spread = abs(
            last
            - (
                -last
                if self.which == "LM"
                else ritz.values[self.k - 2]
                if self.which == "BE"
                else ritz.values[-1]
            )
        )
        for rival in range(self.k, min(self.k + ends, self.size)):
            gap, estimate = abs(scores[rival] - scores[rival - ends]), ritz.estimates[rival]
            settled = estimate <= self.tol * self.scale or gap > slack * spread
            if not (settled or (slack < 0.25 and estimate < 0.1 * gap)):
                return False
        return True

    def _keep(self, ritz: _Ritz, count: int, following: np.ndarray | None = None) -> None:
        """The best `count` Ritz vectors become the basis, followed by the residual direction, or by
        `following`.
        """
        following = self.basis[:, self.size].copy() if following is None else following
        self.basis[:, :count] = self.basis[:, : self.size] @ ritz.coordinates[:, :count]
        self.basis[:, count] = following
        self.matrix[:] = 0
        self.matrix[range(count), range(count)] = ritz.values[:count]
        self.size = count

    def _restart(self, ritz: _Ritz, count: int) -> None:
        self._keep(ritz, min(count, self.size - 1))

    def _lock(self, ritz: _Ritz) -> None:
        self._keep(ritz, self.k)
        self.basis[:, self.k] = self._fresh(self.k)
        self.locked, self.phase, self.steps = ritz.values[: self.k].copy(), _VERIFY, 0

    def _finish(self, ritz: _Ritz) -> tuple[bool, Pairs]:
        """The pairs with true residuals, and whether to end with them."""
        vectors = self.basis[:, : self.size] @ ritz.coordinates[:, : self.k]
        pairs = _true_pairs(self.run, vectors, self.which, self.scale)
        better, self.worst = pairs.met <= 0.5 * self.worst, pairs.met
        if pairs.met <= self.tol:
            return True, replace(pairs, stopped_by="tol")
        if self.size == self.run.n or not better:
            return True, pairs
        return self._spent(), replace(pairs, stopped_by="budget")

    def _refine(self, pairs: Pairs) -> None:
        """On from the residual of the worst pair: the estimates were too good."""
        self.basis[:, : self.k] = pairs.vectors
        self.basis[:, self.k] = orthogonal(pairs.worst[:, None], pairs.vectors)[:, 0]
        self.matrix[:] = 0
        self.matrix[range(self.k), range(self.k)] = pairs.values
        self.size, self.phase = self.k, _REFINE

    def _save(self) -> None:
        self.run.save(
            basis=self.basis[:, : self.size + 1],
            matrix=self.matrix,
            locked=self.locked,
            counts=[self.phase, self.steps, self.drawn],
            reals=[self.scale, self.worst],
        )

    def _restore(self) -> None:
        state = self.run.state
        self.size = state["basis"].shape[1] - 1
        self.basis[:, : self.size + 1] = state["basis"]
        self.matrix, self.locked = state["matrix"], state["locked"]
        self.phase, self.steps, self.drawn = map(int, state["counts"])
        self.scale, self.worst = map(float, state["reals"])
