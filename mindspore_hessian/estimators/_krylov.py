"""Steps of the iterative solvers. Each object is its own whole state, so it can be saved and taken up again."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

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

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> ConjugateGradients:
        return cls(x, r, r, float(np.linalg.norm(r)))

    def step(self, run: Run) -> str | None:
        product = run @ self.p
        curvature = self.p @ product
        length = float(self.p @ self.p)
        self.scale = max(self.scale, float(np.linalg.norm(product)) / length ** 0.5)
        if curvature <= 10 * run.eps * self.scale * length:
            return "negative curvature"
        length = self.size ** 2 / curvature
        self.x, self.r = self.x + length * self.p, self.r - length * product
        size = float(np.linalg.norm(self.r))
        self.p, self.size = self.r + (size / self.size) ** 2 * self.p, size
        return None


@dataclass
class PreconditionedGradients:
    """Conjugate gradients with ``run.precondition``; `size` is the norm of the residual itself, by its recurrence."""

    x: np.ndarray
    r: np.ndarray
    p: np.ndarray
    size: float
    scale: float = 0.0
    length: float = 0.0
    learning_rate: float = 0.0

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float) -> PreconditionedGradients:
        return cls(x, r, np.zeros_like(r), float(np.linalg.norm(r)))

    def step(self, run: Run) -> str | None:
        z = run.precondition(self.r)
        length = float(self.r @ z)
        if not length > 0:
            raise ValueError(f"preconditioner must be positive definite, but r^T M r is {length:.3g} for a residual r")
        self.p = z + (length / self.length) * self.p if self.length else z
        self.length = length
        product = run @ self.p
        curvature, squared = float(self.p @ product), float(self.p @ self.p)
        self.scale = max(self.scale, float(np.linalg.norm(product)) / squared ** 0.5)
        if curvature <= 10 * run.eps * self.scale * squared:
            return "negative curvature"
        self.x, self.r = self.x + length / curvature * self.p, self.r - length / curvature * product
        self.size = float(np.linalg.norm(self.r))
        return None


@dataclass
class MinimalResiduals:
    """MINRES of Paige and Saunders, with their names. `r` and its norm `size` are the residual, by its recurrence."""

    x: np.ndarray
    r: np.ndarray
    r1: np.ndarray
    r2: np.ndarray
    w: np.ndarray
    w2: np.ndarray
    size: float
    beta: float
    oldb: float = 0.0
    dbar: float = 0.0
    epsln: float = 0.0
    cs: float = -1.0
    sn: float = 0.0
    scale: float = 0.0
    learning_rate: float = 0.0

    @classmethod
    def at(cls, x: np.ndarray, r: np.ndarray, learning_rate: float = 0.0) -> MinimalResiduals:
        size, zero = float(np.linalg.norm(r)), np.zeros_like(r)
        return cls(x, r, zero, r, zero, zero, size, size)

    def step(self, run: Run) -> str | None:
        v = self.r2 / self.beta
        y = run @ v
        self.scale = max(self.scale, float(np.linalg.norm(y)))
        if self.oldb:
            y = y - (self.beta / self.oldb) * self.r1
        alfa = float(v @ y)
        y = y - (alfa / self.beta) * self.r2
        self.r1, self.r2, self.oldb, self.beta = self.r2, y, self.beta, float(np.linalg.norm(y))
        oldeps, delta = self.epsln, self.cs * self.dbar + self.sn * alfa
        gbar = self.sn * self.dbar - self.cs * alfa
        self.epsln, self.dbar = self.sn * self.beta, -self.cs * self.beta
        if np.hypot(gbar, self.dbar) <= run.eps ** 0.5 * self.scale:  # ||A r|| / ||r|| of the step before
            return "least squares"
        gamma = float(np.hypot(gbar, self.beta))
        self.cs, self.sn = gbar / gamma, self.beta / gamma
        phi, self.size = self.cs * self.size, abs(self.sn) * self.size
        self.w, self.w2 = (v - oldeps * self.w2 - delta * self.w) / gamma, self.w
        self.x = self.x + phi * self.w
        if self.beta <= 10 * run.eps * self.scale:  # the space is exhausted
            self.r = self.sn ** 2 * self.r
            return "least squares"
        self.r = self.sn ** 2 * self.r - (self.cs * self.size / self.beta) * self.r2
        return None


@dataclass
class Neumann:
    """x + rate (b - A x), whose residual is a true one at each step."""

    x: np.ndarray
    r: np.ndarray
    size: float
    first: float
    learning_rate: float

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
