"""Newton's method without a matrix: conjugate gradients within a trust region."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    as_reals,
    check_choice,
    check_integer,
    check_real,
    check_vector,
    shown,
)
from mindspore_hessian.estimators._common import Run
from mindspore_hessian.estimators._nystrom import approximation
from mindspore_hessian.estimators._nystrom import preconditioner as nystrom_inverse
from mindspore_hessian.operators.hessian import HessianOperator
from mindspore_hessian.optim._vector import Weights
from mindspore_hessian.optim.least_squares import Fitting

_TAKEN, _POOR, _GOOD = (
    0.15,
    0.25,
    0.75,
)  # scipy's trust-ncg: ratios of the decrease to that of the model
_ROUNDING = 10.0  # eigenvalues of a Nyström approximation below so many times its error are none


@dataclasses.dataclass(frozen=True)
class NewtonStep:
    """What a step did.

    Attributes:
        loss: after it.
        before: the loss before it.
        radius: of the last trial.
        gain: the decrease of the loss over that of the model, at the last trial.
        accepted: whether the weights have changed.
        trials: how many radii were tried.
        products: with the curvature, those for a preconditioner "nystrom" among them.
        ended: what ended the conjugate gradients: "tol", "boundary", "negative curvature" or
            "products".
        slope: the largest entry of the gradient, before the step.
    """

    loss: float
    before: float
    radius: float
    gain: float
    accepted: bool
    trials: int
    products: int
    ended: str
    slope: float


class NewtonCG(Fitting):
    r"""Newton's method for networks: :math:`C s = -g` by conjugate gradients, within a trust region
    (Steihaug).

    g is the gradient of an operator's risk, C the operator itself (Hessian, Gauss-Newton or
    Fisher), or another over the same weights, such as one of a part of the data. A step costs a
    pass for g, a pass for each product (two gradients), and a pass without derivatives for each
    trial. Where :math:`p^T C p \le 0` in a direction p, the step follows it to the edge of the
    region: saddles are left. A trial that is not taken costs no products anew, since the path of
    the conjugate gradients is kept: `max_products` vectors.

    With ``preconditioner="nystrom"`` the conjugate gradients work in the norm of
    :math:`U \frac{\Lambda + d I}{\lambda_k + d} U^T + (I - U U^T)`, where d is the damping, and
    :math:`U \Lambda U^T` the part of C that `rank` random columns see; :math:`\lambda_k` is the least
    eigenvalue in it that is not rounding. Where eigenvalues decay, fewer products are needed; at
    each new point it costs `rank` products itself, in one pass over the data. C must have no
    negative eigenvalues, so that it is not for a `HessianOperator`.

    Radius and tolerances follow scipy's "trust-ncg": a trial with a ratio of decrease to predicted
    decrease above 0.15 is taken; below 0.25 the radius is divided by 4, above 0.75 at the edge it
    doubles.

    Args:
        operator: `HessianOperator`, `GGNOperator`, `FisherOperator`, ...: its network, loss and
            data are minimised.
        radius: of the first trust region.
        curvature: another operator of the same weights, for C; None: `operator`.
        damping: C + damping I.
        max_products: the most products of a step, without those for a preconditioner "nystrom".
        max_radius: the largest radius.
        max_trials: radii that a step tries before it gives up, with the weights as they were.
        preconditioner: what approximates :math:`(C + damping I)^{-1}`, positive definite: anything
            with ``@``; or "nystrom", see above. The region is then a ball in its inverse's norm.
            None: none.
        rank: of "nystrom"; the number of weights, where that is less.
        seed: of the columns of "nystrom", which are the same at each point.

    Attributes:
        last (NewtonStep): what the last step did.
        radius (float): of the next trial.
        num_steps (int): steps so far.

    Raises:
        TypeError, ValueError: a wrong argument; at `step`, a loss or a gradient that is NaN or Inf,
            a negative eigenvalue of the curvature that "nystrom" met.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
        SIAM J. Numer. Anal. 20(3), 1983; J. Martens, Deep learning via Hessian-free optimization,
        ICML 2010; Z. Frangella, J. Tropp and M. Udell, Randomized Nyström preconditioning, SIAM J.
        Matrix Anal. Appl. 44(2), 2023.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import GGNOperator, optim
        >>> net = nn.Dense(2, 1, weight_init="ones")
        >>> x, y = ms.Tensor([[1.0, 2.0], [3.0, -1.0]]), ms.Tensor([[1.0], [0.0]])
        >>> fitted = optim.NewtonCG(GGNOperator(net, nn.MSELoss(), (x, y))).fit(tol=1e-4)
        >>> print(fitted.stopped_by, fitted.loss < 1e-6)
        tol True

        With a preconditioner of the curvature's largest eigenvalue:

        >>> net = nn.Dense(2, 1, weight_init="ones")
        >>> op = GGNOperator(net, nn.MSELoss(), (x, y))
        >>> solver = optim.NewtonCG(op, damping=1e-4, preconditioner="nystrom", rank=1)
        >>> print(solver.fit(tol=1e-3).stopped_by)
        tol
    """

    counted = ("radius", "num_steps")

    def __init__(
        self,
        operator: Any,
        radius: float = 1.0,
        *,
        curvature: Any = None,
        damping: float = 0.0,
        max_products: int = 50,
        max_radius: float = 1000.0,
        max_trials: int = 12,
        preconditioner: Any = None,
        rank: int = 20,
        seed: int = 0,
    ):
        for name in ("gradient_and_loss", "loss", "weights"):
            if isinstance(operator, type) or not hasattr(operator, name):
                raise TypeError(
                    "operator must be a HessianOperator, GGNOperator or another of a network, but "
                    f"got {shown(operator)}"
                )
        self.operator, self.curvature = operator, operator if curvature is None else curvature
        for name, value in (("radius", radius), ("max_radius", max_radius)):
            check_real(name, value)
        check_real("damping", damping, strict=False)
        check_integer("max_products", max_products, 1)
        check_integer("max_trials", max_trials, 1)
        self._check_shape("curvature", self.curvature)
        check_integer("rank", rank, 1)
        check_integer("seed", seed, 0)
        if isinstance(preconditioner, str):
            check_choice("preconditioner", preconditioner, ("nystrom",))
            self._refuse_hessian()
        elif preconditioner is not None:
            self._check_shape("preconditioner", preconditioner)
        self.weights = Weights(operator.weights)
        self.radius, self.max_radius, self.num_steps = float(radius), float(max_radius), 0
        self.damping, self.max_products, self.max_trials = (
            float(damping),
            int(max_products),
            int(max_trials),
        )
        self.preconditioner, self.rank, self.seed = preconditioner, int(rank), int(seed)
        self._nystrom: tuple[np.ndarray, Callable | None] | None = None  # a point, and that of it
        self.last: NewtonStep | None = None

    def _refuse_hessian(self) -> None:
        atoms = getattr(self.curvature, "atoms", ())
        if any(isinstance(atom, HessianOperator) and not atom.positive for atom in atoms):
            raise ValueError(
                "preconditioner 'nystrom' needs a curvature without negative eigenvalues, and a "
                "HessianOperator has them where the loss is not convex: pass "
                "curvature=GGNOperator(...) or FisherOperator(...), or leave the preconditioner out"
            )

    def _check_shape(self, name: str, value: Any) -> None:
        if getattr(value, "shape", None) != self.operator.shape or not hasattr(value, "__matmul__"):
            raise TypeError(
                f"{name} must be an operator of shape {self.operator.shape} over the same weights, "
                f"but got {shown(value)}"
            )

    @interruptible
    def step(self) -> float:
        """One step, over the operator's data.

        Returns:
            The loss after the step; where no trial lowered it enough, the loss as it was: `last`
            says so.

        Raises:
            ValueError: the loss, its gradient or a product is NaN or Inf. Nothing has changed then.
        """
        here = self.weights.point()
        gradient, before = self.operator.gradient_and_loss()
        g = np.concatenate([as_reals("gradient", part).reshape(-1) for part in gradient])
        if not (np.isfinite(before) and np.isfinite(g).all()):
            raise ValueError(
                "the loss or its gradient is NaN or Inf at the present weights, so there is no "
                "step: load weights from before, or look at the data"
            )
        path = _Path(self, g, *self._inverse(here)) if np.any(g) else None
        try:
            self.last, there = self._search(here, g, float(before), path)
        except BaseException:
            self.weights.place(here)
            raise
        self.weights.place(there)
        self.num_steps += 1
        return self.last.loss

    def _inverse(self, here: np.ndarray) -> tuple[Callable | None, int]:
        """The preconditioner at a point, a function of a vector, and the products that it took."""
        given = self.preconditioner
        if not isinstance(given, str):
            return None if given is None else (lambda r: given @ r), 0
        if self._nystrom is not None and np.array_equal(self._nystrom[0], here):
            return self._nystrom[1], 0
        rank = min(self.rank, len(here))
        with Run(
            "nystrom",
            self.curvature,
            seed=self.seed,
            max_products=None,
            progress=False,
            checkpoint=None,
        ) as run:
            try:
                vectors, values = approximation(run, rank)
            except ValueError as err:
                raise ValueError(str(err).replace("op ", "curvature ", 1)) from err
        seen = values > _ROUNDING * run.eps * len(here) ** 0.5 * values[0]
        inverse = None
        if seen.any():
            vectors, values = vectors[:, seen], values[seen]
            whole, least = nystrom_inverse(vectors, values, self.damping), values[-1] + self.damping

            def inverse(r: np.ndarray) -> np.ndarray:
                return least * whole(r)

        self._nystrom = here, inverse
        return inverse, rank

    def _search(
        self, here: np.ndarray, g: np.ndarray, before: float, path: _Path | None
    ) -> tuple[NewtonStep, np.ndarray]:
        gain, trials, radius, slope = 0.0, 0, self.radius, float(abs(g).max())
        while path is not None and trials < self.max_trials:
            trials, radius = trials + 1, self.radius
            s, predicted, at_edge = path.cut(radius)
            self.weights.place(here + s)
            loss = float(self.operator.loss())
            gain = (before - loss) / predicted if np.isfinite(loss) and predicted > 0.0 else -np.inf
            if gain < _POOR:
                self.radius = radius / 4.0
            elif gain > _GOOD and at_edge:
                self.radius = min(2.0 * radius, self.max_radius)
            if gain > _TAKEN:
                return NewtonStep(
                    loss, before, radius, gain, True, trials, path.products, path.ended, slope
                ), here + s
        return NewtonStep(
            before,
            before,
            radius,
            gain,
            False,
            trials,
            path.products if path else 0,
            path.ended if path else "tol",
            slope,
        ), here


class _Piece(NamedTuple):
    """A piece of the path, from the point p along d: norms and slopes there."""

    p: np.ndarray
    d: np.ndarray
    pp: float
    pd: float
    dd: float
    value: float
    slope: float
    bend: float
    length: float


class _Path:
    """The iterates of conjugate gradients up to the edge of the region, and the decrease of the
    model along them.
    """

    def __init__(self, solver: NewtonCG, g: np.ndarray, inverse: Callable | None, spent: int):
        self.solver, self.inverse = solver, inverse
        self.products, self.most = spent, spent + solver.max_products
        self.pieces: list[_Piece] = []
        self.ended = self._walk(g, min(0.5, np.sqrt(np.linalg.norm(g))) * np.linalg.norm(g))

    def _walk(self, g: np.ndarray, tol: float) -> str:
        p, r, value = np.zeros_like(g), g.copy(), 0.0
        y = self._preconditioned(r)
        ry, d = float(r @ y), -y
        pp, pd, dd = 0.0, 0.0, ry
        while self.products < self.most:
            image = self._times(d)
            bend, slope = float(d @ image), float(r @ d)
            downwards = bend <= 0.0
            length = np.inf if downwards else ry / bend
            self.pieces.append(_Piece(p, d, pp, pd, dd, value, slope, bend, length))
            if downwards:
                return "negative curvature"
            value += length * slope + 0.5 * length**2 * bend
            p, r, pp = p + length * d, r + length * image, pp + 2.0 * length * pd + length**2 * dd
            if np.sqrt(pp) >= self.solver.radius:
                return "boundary"
            if np.linalg.norm(r) < tol:
                return "tol"
            y = self._preconditioned(r)
            ry, old = float(r @ y), ry
            beta = ry / old
            pd, dd, d = beta * (pd + length * dd), ry + beta**2 * dd, -y + beta * d
        return "products"

    def cut(self, radius: float) -> tuple[np.ndarray, float, bool]:
        """The end of the path within a radius, the decrease that the model expects there, and
        whether it is the edge.
        """
        for piece in self.pieces:
            length = piece.length
            outside = (
                np.isinf(length)
                or np.sqrt(piece.pp + 2.0 * length * piece.pd + length**2 * piece.dd) >= radius
            )
            if outside:
                root = np.sqrt(piece.pd**2 + piece.dd * (radius**2 - piece.pp))
                ends = [(-piece.pd + root) / piece.dd] + [(-piece.pd - root) / piece.dd] * bool(
                    np.isinf(length)
                )
                values = [piece.value + t * piece.slope + 0.5 * t**2 * piece.bend for t in ends]
                best = int(np.argmin(values))
                return piece.p + ends[best] * piece.d, -values[best], True
        return (
            piece.p + length * piece.d,
            -(piece.value + length * piece.slope + 0.5 * length**2 * piece.bend),
            False,
        )

    def _times(self, d: np.ndarray) -> np.ndarray:
        curvature = self.solver.curvature
        image = check_vector(
            "the product of curvature", curvature @ d.astype(curvature.dtype), len(d)
        )
        self.products += 1
        return image + self.solver.damping * d

    def _preconditioned(self, r: np.ndarray) -> np.ndarray:
        if self.inverse is None:
            return r
        y = check_vector("the product of preconditioner", self.inverse(r), len(r))
        if float(r @ y) <= 0.0:
            raise ValueError(
                "preconditioner must be positive definite, but r @ (preconditioner @ r) is "
                f"{float(r @ y):.3g} for a residual r"
            )
        return y
