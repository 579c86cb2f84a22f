"""The leave-one-out low-rank approximation that XTrace and XDiag share."""

from __future__ import annotations

import numpy as np

from mindspore_hessian.estimators._common import Run
from mindspore_hessian.estimators._search import orthogonal


class Sketch:
    """Q R = A Omega with orthonormal Q, and Z = A Q, grown by blocks of probes at two products for
    each.

    Column i of `left` is the unit vector s_i with Q (I - s_i s_i^T) Q^T the projector onto the
    range of A Omega without its column i. It is column i of R^-T, normalised; where A Omega has
    lower rank than columns, small singular values are raised to rounding level, which makes s_i a
    direction that the others do not need.
    """

    def __init__(self, run: Run, distribution: str) -> None:
        self.run, self.distribution = run, distribution
        empty = np.empty((run.n, 0))
        self.q, self.z = run.state.get("q", empty), run.state.get("z", empty)
        self.r = run.state.get("r", np.empty((0, 0)))
        self.omega = run.probes(0, self.size, distribution)

    @property
    def size(self) -> int:
        return self.q.shape[1]

    def grow(self, count: int) -> None:
        omega = self.run.probes(self.size, count, self.distribution)
        y = self.run @ omega
        new = orthogonal(y, self.q)
        z = self.run @ new
        self.r = np.block([[self.r, self.q.T @ y], [np.zeros((count, self.size)), new.T @ y]])
        self.omega, self.q, self.z = (
            np.hstack([self.omega, omega]),
            np.hstack([self.q, new]),
            np.hstack([self.z, z]),
        )
        self.run.save(q=self.q, z=self.z, r=self.r)

    def left(self) -> np.ndarray:
        u, sigma, vt = np.linalg.svd(self.r)
        floor = len(sigma) * np.finfo(float).eps * sigma[0]
        s = (u / np.maximum(sigma, floor if floor > 0 else 1.0)) @ vt
        return s / np.linalg.norm(s, axis=0)
