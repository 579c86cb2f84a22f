"""Steps of the iterative solvers. Each object is its own whole state, so it can be saved and taken
up again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from mindspore_hessian.estimators._common import Run

SAVED_EVERY = 20  # steps


def restored(kind: Any, state: dict[str, np.ndarray]) -> Any:
    """A solver from a checkpoint that holds its ``vars``."""
    values = {field.name: state[field.name] for field in fields(kind)}
    return kind(**{name: value if value.ndim else float(value) for name, value in values.items()})


@dataclass
class ConjugateGradients:
    """Hestenes and Stiefel. `size` is the norm of the residual, by its recurrence."""

    x: np.ndarray
    r: np.ndarray
    p: np.ndarray
    size: float
    scale: float = 0.0
    learning_rate: float = 0.0
    width = 1  # products of a step

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> ConjugateGradients:
        return cls(x, r, r, float(np.linalg.norm(r)))

    def step(self, run: Run) -> str | None:
        product = run @ self.p
        curvature = self.p @ product
        length = float(self.p @ self.p)
        self.scale = max(self.scale, float(np.linalg.norm(product)) / length**0.5)
        if curvature <= 10 * run.eps * self.scale * length:
            return "negative curvature"
        length = self.size**2 / curvature
        self.x, self.r = self.x + length * self.p, self.r - length * product
        size = float(np.linalg.norm(self.r))
        self.p, self.size = self.r + (size / self.size) ** 2 * self.p, size
        return None


@dataclass
class PreconditionedGradients:
    """Conjugate gradients with ``run.precondition``; `size` is the norm of the residual itself, by
    its recurrence.
    """

    x: np.ndarray
    r: np.ndarray
    p: np.ndarray
    size: float
    scale: float = 0.0
    length: float = 0.0
    learning_rate: float = 0.0
    width = 1

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> PreconditionedGradients:
        return cls(x, r, np.zeros_like(r), float(np.linalg.norm(r)))

    def step(self, run: Run) -> str | None:
        z = run.precondition(self.r)
        length = float(self.r @ z)
        if not length > 0:
            raise ValueError(
                f"preconditioner must be positive definite, but r^T M r is {length:.3g} for a "
                "residual r"
            )
        self.p = z + (length / self.length) * self.p if self.length else z
        self.length = length
        product = run @ self.p
        curvature, squared = float(self.p @ product), float(self.p @ self.p)
        self.scale = max(self.scale, float(np.linalg.norm(product)) / squared**0.5)
        if curvature <= 10 * run.eps * self.scale * squared:
            return "negative curvature"
        self.x, self.r = self.x + length / curvature * self.p, self.r - length / curvature * product
        self.size = float(np.linalg.norm(self.r))
        return None


@dataclass
class BlockGradients:
    """Conjugate gradients for several right-hand sides at once, as Dubrulle has them, with
    ``run.precondition``.

    The residuals are ``q @ c`` with orthonormal columns q, so that what depends on each other costs
    nothing and stays exact: where a combination of the residuals ends, its column is left out. In
    the inner product of the preconditioner M, ``S = M Q + S zeta^T`` are the directions, conjugate
    to all before. `size` is the largest norm of a residual.
    """

    x: np.ndarray
    q: np.ndarray
    c: np.ndarray
    zeta: np.ndarray
    s: np.ndarray
    p: np.ndarray
    size: float
    scale: float = 0.0
    learning_rate: float = 0.0

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> BlockGradients:
        lengths = np.linalg.norm(r, axis=0)
        q, c = _compressed(r / np.where(lengths > 0, lengths, 1.0), float(np.finfo(np.float64).eps))
        none = np.zeros((len(x), 0))
        return cls(x, q, c * lengths, q.T @ none, none, x[:, 0], float(lengths.max()))

    @property
    def width(self) -> int:
        """Products of the next step."""
        return self.q.shape[1]

    def step(self, run: Run) -> str | None:
        z = run.precondition(self.q)
        gram = self.q.T @ z
        try:
            root = np.linalg.cholesky((gram + gram.T) / 2).T
        except np.linalg.LinAlgError as err:
            raise ValueError(
                "preconditioner must be positive definite, but r^T M r is not positive for a "
                "combination r of the residuals"
            ) from err
        q, z = (solve_triangular(root, one.T, trans=1).T for one in (self.q, z))
        c, s = root @ self.c, z + self.s @ (root @ self.zeta).T
        basis, r = np.linalg.qr(s)
        product = run @ basis
        core = basis.T @ product
        values, vectors = np.linalg.eigh((core + core.T) / 2)
        self.scale = max(self.scale, float(np.linalg.norm(product, 2)))
        if values[0] <= 10 * run.eps * self.scale:
            self.p = basis @ vectors[:, 0]
            return "negative curvature"
        step = vectors @ (
            (vectors.T @ solve_triangular(r, np.eye(len(r)), trans=1)) / values[:, None]
        )
        self.x = self.x + basis @ (step @ c)
        moved = product @ step
        self.q, self.zeta = _compressed(q - moved, run.eps * float(np.linalg.norm(moved, 2)))
        self.c, self.s = self.zeta @ c, s
        self.size = float(np.linalg.norm(self.c, axis=0).max())
        return None


def _compressed(matrix: np.ndarray, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Q with orthonormal columns and C with Q C the matrix, but for what is within ten times the
    rounding.
    """
    q, r = np.linalg.qr(matrix)
    u, sizes, vt = np.linalg.svd(r)
    kept = int((sizes > 10 * rounding * max(r.shape) ** 0.5).sum())
    return q @ u[:, :kept], sizes[:kept, None] * vt[:kept]


@dataclass
class MinimalResiduals:
    """MINRES of Paige and Saunders, with their names, and with ``run.precondition``, M.

    `r` is the residual by its recurrence and `size` its norm. What falls from step to step is
    ``(r^T M r)^(1/2)``, `phi`; without a preconditioner the two are the same.
    """

    x: np.ndarray
    r: np.ndarray
    r1: np.ndarray
    r2: np.ndarray
    y: np.ndarray
    w: np.ndarray
    w2: np.ndarray
    size: float
    phi: float = 0.0
    beta: float = 0.0
    oldb: float = 0.0
    dbar: float = 0.0
    epsln: float = 0.0
    cs: float = -1.0
    sn: float = 0.0
    scale: float = 0.0
    learning_rate: float = 0.0
    width = 1

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float = 0.0) -> MinimalResiduals:
        zero = np.zeros_like(r)
        return cls(x, r, zero, r, zero, zero, zero, float(np.linalg.norm(r)))

    def step(self, run: Run) -> str | None:
        if not self.beta:
            self.phi = self._measure(run, 0.0)
        v = self.y / self.beta
        y = run @ v
        rounding = 100 * run.eps * float(np.linalg.norm(y))
        if self.oldb:
            y = y - (self.beta / self.oldb) * self.r1
        alfa = float(v @ y)
        y = y - (alfa / self.beta) * self.r2
        before = self.beta if self.oldb else 0.0
        self.r1, self.r2, self.oldb = self.r2, y, self.beta
        self._measure(run, rounding)
        self.scale = max(self.scale, float(np.linalg.norm([before, alfa, self.beta])))  # of A v
        oldeps, delta = self.epsln, self.cs * self.dbar + self.sn * alfa
        gbar = self.sn * self.dbar - self.cs * alfa
        self.epsln, self.dbar = self.sn * self.beta, -self.cs * self.beta
        if (
            np.hypot(gbar, self.dbar) <= run.eps**0.5 * self.scale
        ):  # ||A r|| / ||r|| of the step before
            return "least squares"
        gamma = float(np.hypot(gbar, self.beta))
        self.cs, self.sn = gbar / gamma, self.beta / gamma
        phi, self.phi = self.cs * self.phi, abs(self.sn) * self.phi
        self.w, self.w2 = (v - oldeps * self.w2 - delta * self.w) / gamma, self.w
        self.x = self.x + phi * self.w
        self.r = self.sn**2 * self.r
        exhausted = self.beta <= 10 * run.eps * self.scale
        if not exhausted:
            self.r = self.r - (self.cs * self.phi / self.beta) * self.r2
        self.size = float(np.linalg.norm(self.r))
        return "least squares" if exhausted else None

    def _measure(self, run: Run, rounding: float) -> float:
        """y = M r2, and beta, the root of r2^T y; r2 counts as 0 where it is not above the
        rounding.
        """
        self.y = run.precondition(self.r2)
        square = float(self.r2 @ self.y)
        if not square > 0 and not np.linalg.norm(self.r2) <= rounding:
            raise ValueError(
                f"preconditioner must be positive definite, but r^T M r is {square:.3g} for a "
                "vector r"
            )
        self.beta = max(square, 0.0) ** 0.5
        return self.beta


@dataclass
class Neumann:
    """x + rate (b - A x), whose residual is a true one at each step."""

    x: np.ndarray
    r: np.ndarray
    size: float
    first: float
    learning_rate: float
    width = 1

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> Neumann:
        size = float(np.linalg.norm(r))
        return cls(x, r, size, size, learning_rate)

    def step(self, run: Run) -> str | None:
        x, r = self.x + self.learning_rate * self.r, self.r - self.learning_rate * (run @ self.r)
        size = float(np.linalg.norm(r))
        if not size <= 10 * self.first:
            return "divergence"
        self.x, self.r, self.size = x, r, size
        return None
