"""Nonlinear least squares over the weights of networks: Levenberg and Marquardt's method."""

from __future__ import annotations

import dataclasses
import numbers
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.linalg
from mindspore import Tensor, ops

from mindspore_hessian import _checkpoint
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian._progress import bar
from mindspore_hessian.arguments import (
    as_reals,
    check_bool,
    check_integer,
    check_progress,
    check_real,
    shown,
)
from mindspore_hessian.optim._value import value_of
from mindspore_hessian.optim._vector import Weights
from mindspore_hessian.transforms.jacobian import jacobian

_SHRINK, _PROBE, _BEND = (
    1 / 3,
    0.1,
    0.75,
)  # Nielsen's factor; Transtrum and Sethna's step and largest ratio
_SAVED_EVERY = 5.0  # seconds


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step did.

    Attributes:
        loss: after it.
        before: the loss before it.
        damping: that the last trial was made with.
        gain: the decrease of the loss over that of the model, at the last trial.
        accepted: whether the weights have changed.
        trials: how many dampings were tried.
        slope: the largest entry of the gradient, before the step.
    """

    loss: float
    before: float
    damping: float
    gain: float
    accepted: bool
    trials: int
    slope: float


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a fit came to.

    Attributes:
        loss: at the weights as they are left.
        num_steps: taken by this call.
        seconds: they took.
        stopped_by: "tol" (the gradient is small), "target" (the loss is), "stalled" (no damping
            gave a decrease), "steps", "seconds" or "callback".
        losses: after each step.
    """

    loss: float
    num_steps: int
    seconds: float
    stopped_by: str
    losses: list[float]


class Fitting:
    """What methods with a `step` that returns the loss share: `fit`, and a state that can be kept.

    A subclass sets `weights` (`Weights`), `last` (`Step`) and `counted`, the names of the numbers
    that are its state.
    """

    weights: Weights
    last: Any
    counted: Sequence[str]
    num_steps: int

    def step(self, *inputs: Any) -> float:
        raise NotImplementedError

    def state_dict(self) -> dict[str, float]:
        """All that a step depends on but the weights, as plain numbers."""
        return {name: getattr(self, name) for name in self.counted}

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state.

        Raises:
            TypeError, ValueError: not a state of this class.
        """
        if not isinstance(state, dict):
            raise TypeError(
                f"state must be a dict, as state_dict() gives it, but got {shown(state)}"
            )
        if set(state) != set(self.counted):
            raise ValueError(
                f"state must hold {', '.join(self.counted)}, but holds {', '.join(map(str, state))}"
            )
        for name, value in state.items():
            check_real(f"state[{name!r}]", value, strict=False)
        for name, value in state.items():
            setattr(self, name, type(getattr(self, name))(value))

    def fit(
        self,
        *inputs: Any,
        max_steps: int = 100,
        tol: float = 1e-10,
        target: float | None = None,
        max_seconds: float | None = None,
        callback: Callable | None = None,
        progress: bool | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> FitResult:
        """Steps on the same inputs until one of the ends.

        Args:
            inputs: of the function, for each step.
            max_steps: the most steps.
            tol: the end where no entry of the gradient is greater.
            target: the end where the loss is not greater, or None.
            max_seconds: the end after that time (the step under way is made first), or None.
            callback: called with the `Step` after each; where it returns True it ends here.
            progress: True shows a bar, None after two seconds, False never.
            checkpoint: a file for the weights and the state, written every few seconds and at the
                end (after Ctrl-C too); where it exists, the fit goes on from it.

        Returns:
            `FitResult`.

        Raises:
            TypeError, ValueError: a wrong argument, or as `step`; a checkpoint of another fit.
        """
        check_integer("max_steps", max_steps, 1)
        check_real("tol", tol, strict=False)
        if target is not None and (
            isinstance(target, bool)
            or not isinstance(target, numbers.Real)
            or not np.isfinite(target)
        ):
            raise TypeError(f"target must be a finite number or None, but got {shown(target)}")
        if max_seconds is not None:
            check_real("max_seconds", max_seconds)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be callable or None, but got {shown(callback)}")
        check_progress(progress)
        path = _checkpoint.named(checkpoint)
        if path is not None:
            self._read(path)
        losses: list[float] = []
        started, reason, saved = time.perf_counter(), "steps", time.perf_counter()
        try:
            with bar(type(self).__name__, max_steps, progress) as shown_bar:
                while len(losses) < max_steps:
                    losses.append(self.step(*inputs))
                    shown_bar.update(1)
                    shown_bar.set_postfix(loss=f"{losses[-1]:.3g}", refresh=False)
                    assert self.last is not None
                    now = time.perf_counter()
                    if path is not None and now - saved > _SAVED_EVERY:
                        self._write(path)
                        saved = now
                    ends = {
                        "callback": callback is not None and callback(self.last) is True,
                        "target": target is not None and losses[-1] <= target,
                        "tol": self.last.slope <= tol,
                        "stalled": not self.last.accepted,
                        "seconds": max_seconds is not None and now - started >= max_seconds,
                    }
                    if reasons := [name for name, holds in ends.items() if holds]:
                        reason = reasons[0]
                        break
        finally:
            if path is not None and losses:
                self._write(path)
        return FitResult(losses[-1], len(losses), time.perf_counter() - started, reason, losses)

    def _write(self, path: str) -> None:
        _checkpoint.write(
            path, kind=type(self).__name__, weights=self.weights.point(), **self.state_dict()
        )

    def _read(self, path: str) -> None:
        stored = _checkpoint.read(path)
        if stored is None:
            return
        kind, point = str(stored.pop("kind", "")), stored.pop("weights", np.empty(0))
        if kind != type(self).__name__ or point.shape != self.weights.start.shape:
            raise ValueError(
                f"checkpoint {path!r} is of another fit: it holds {point.size} weights of "
                f"{kind or 'something else'}, but there are {self.weights.start.size} of "
                f"{type(self).__name__}. Pass another name"
            )
        self.load_state_dict({name: value.item() for name, value in stored.items()})
        self.weights.place(point)


class LevenbergMarquardt(Fitting):
    r"""Least squares by Levenberg and Marquardt: :math:`(J^T J + \lambda I) s = -J^T r`,
    :math:`w \leftarrow w + s`.

    Minimises :math:`\frac12 \sum_i r_i^2` over weights. For hundreds to a few thousand weights and
    residuals, as in physics-informed networks and curve fitting: it forms J, of shape (m, n), and
    solves with a matrix of order :math:`\min(m, n)` in float64 on the host; where there are fewer
    residuals than weights, that is :math:`s = -J^T (J J^T + \lambda I)^{-1} r`. A step costs one
    Jacobian (m gradients in one batch), and a forward pass for each trial.

    A trial that lowers the loss is taken, and the damping becomes
    :math:`\lambda \max(1/3, 1 - (2 \rho - 1)^3)`, where :math:`\rho` is the decrease over that of
    the linear model; one that does not is taken back, and the damping grows by 2, 4, 8, ... until
    one does. J need not have full rank.

    Args:
        residuals: a function of Tensors that reads the weights and returns a Tensor, or a tuple of
            Tensors (several terms). It may hold derivatives of the network made before, such as
            ``laplacian(net, in_axes=0)``.
        weights: the Parameters to optimise; best in float64.
        damping: :math:`\lambda` of the first trial.
        term_weights: a positive number for each term that `residuals` returns: the loss is
            :math:`\frac12 \sum_k c_k \|r_k\|^2`.
        geodesic: add the second-order correction :math:`a / 2`, where
            :math:`(J^T J + \lambda I) a = -J^T r_{ss}` and :math:`r_{ss}` is the second derivative
            of r along s by a difference (one more forward pass a trial); trials with
            :math:`2 \|a\| > 0.75 \|s\|` are taken back.
        scaled: damp by :math:`\lambda \, \mathrm{diag}(J^T J)` instead of :math:`\lambda I`
            (Marquardt's scaling).
        max_trials: dampings that a step tries before it gives up, with the weights as they were.
        chunk_size: so many residuals at a time in the Jacobian, to save memory.

    Attributes:
        last (Step): what the last step did.
        damping (float): of the next trial.
        num_steps (int): steps so far.

    Raises:
        TypeError, ValueError: a wrong argument; at `step`, residuals that are NaN or Inf at the
            weights as they are.
        NotCompilableError, MissingRuleError: at the first step, as `jacobian`.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        K. Madsen, H. Nielsen and O. Tingleff, Methods for non-linear least squares problems, 2nd
        ed., DTU 2004; M. Transtrum and J. Sethna, Improvements to the Levenberg-Marquardt
        algorithm, arXiv:1201.5885, 2012.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore_hessian import optim
        >>> rate = ms.Parameter(ms.Tensor(np.array(0.5)), name="rate")
        >>> t = ms.Tensor(np.linspace(0.0, 2.0, 5))
        >>> y = ms.ops.exp(-1.5 * t)
        >>> def residuals(t, y):
        ...     return ms.ops.exp(-rate * t) - y
        >>> fitted = optim.LevenbergMarquardt(residuals, [rate]).fit(t, y)
        >>> print(fitted.loss < 1e-20, rate.asnumpy().round(6))
        True 1.5
    """

    counted = ("damping", "growth", "num_steps")

    def __init__(
        self,
        residuals: Any,
        weights: Any,
        damping: float = 1e-3,
        *,
        term_weights: Sequence[float] | None = None,
        geodesic: bool = False,
        scaled: bool = False,
        max_trials: int = 12,
        chunk_size: int | None = None,
    ):
        if not callable(residuals):
            raise TypeError(f"residuals must be callable, but got {shown(residuals)}")
        check_real("damping", damping)
        check_bool("geodesic", geodesic)
        check_bool("scaled", scaled)
        check_integer("max_trials", max_trials, 1)
        if chunk_size is not None:
            check_integer("chunk_size", chunk_size, 1)
        self.weights, self.term_weights = Weights(weights), _positive(term_weights)
        self.damping, self.growth, self.num_steps = float(damping), 2.0, 0
        self.geodesic, self.scaled, self.max_trials = geodesic, scaled, max_trials
        self.last: Step | None = None

        def joined(*inputs):
            terms = residuals(*inputs)
            if isinstance(terms, (tuple, list)):  # noqa: UP038 -- compiled by MindSpore
                flat = ()
                for term in terms:
                    flat = flat + (term.reshape(-1),)
                return ops.concat(flat), terms
            return terms.reshape(-1), (terms,)

        def both(*inputs):
            value, terms = joined(*inputs)
            return value, (value, terms)

        self._linearised = jacobian(
            both, has_aux=True, weights=self.weights.parameters, chunk_size=chunk_size
        )
        self._residuals = value_of(joined)

    @interruptible
    def step(self, *inputs: Any) -> float:
        """One step, on these inputs of `residuals`.

        Returns:
            The loss after the step; where no trial lowered it, the loss as it was: `last` says so.

        Raises:
            ValueError: the residuals or their derivatives are NaN or Inf at the weights as they
                are. Nothing has changed then.
        """
        here = self.weights.point()
        model = self._model(inputs)
        if not (np.isfinite(model.r).all() and np.isfinite(model.jacobian).all()):
            raise ValueError(
                "the residuals or their Jacobian hold NaN or Inf at the present weights, so there "
                "is no step: load weights from before, or look at the inputs"
            )
        try:
            self.last, there = self._search(here, model, inputs)
        except BaseException:
            self.weights.place(here)
            raise
        self.weights.place(there)
        self.num_steps += 1
        return self.last.loss

    def _search(self, here: np.ndarray, model: _Model, inputs: tuple) -> tuple[Step, np.ndarray]:
        """Trials until one lowers the loss; what was done, and the point to be at then."""
        before, slope = model.loss, float(abs(model.gradient).max())
        damping, gain, trials = self.damping, 0.0, 0
        while trials < self.max_trials and slope > 0.0:
            trials, damping = trials + 1, self.damping
            move, predicted = self._move(here, model, damping, inputs)
            loss = np.inf if move is None else self._loss(here + move, inputs)
            gain = (before - loss) / predicted if predicted > 0.0 else -np.inf
            if loss < before:
                self.damping, self.growth = (
                    damping * max(_SHRINK, 1.0 - (2.0 * gain - 1.0) ** 3),
                    2.0,
                )
                return Step(loss, before, damping, gain, True, trials, slope), here + move
            self.damping, self.growth = damping * self.growth, 2.0 * self.growth
        return Step(before, before, damping, gain, False, trials, slope), here

    def _move(
        self, here: np.ndarray, model: _Model, damping: float, inputs: tuple
    ) -> tuple[Any, float]:
        """A step, None where there is none, and the decrease that the model expects of it."""
        solve = model.solver(damping)
        if solve is None:
            return None, 0.0
        s = solve(model.r)
        predicted = 0.5 * float(s @ (damping * model.scale * s - model.gradient))
        if not self.geodesic:
            return s, predicted
        probed = self._at(here + _PROBE * s, inputs)
        bent = 2.0 / _PROBE * ((probed - model.r) / _PROBE - model.jacobian @ s)
        a = solve(bent) if np.isfinite(bent).all() else np.full_like(s, np.inf)
        return (
            (s + 0.5 * a, predicted)
            if 2.0 * np.linalg.norm(a) <= _BEND * np.linalg.norm(s)
            else (None, 0.0)
        )

    def _model(self, inputs: tuple) -> _Model:
        blocks, (value, terms) = self._linearised(*inputs)
        r = as_reals("residuals", value)
        rows = self._rows(terms)
        matrix = np.concatenate(
            [as_reals("residuals", block).reshape(len(r), -1) for block in blocks], axis=1
        )
        return _Model(rows * r, rows[:, None] * matrix, self.scaled)

    def _at(self, point: np.ndarray, inputs: tuple) -> np.ndarray:
        self.weights.place(point)
        value, terms = self._residuals(*inputs)
        return self._rows(terms) * as_reals("residuals", value)

    def _loss(self, point: np.ndarray, inputs: tuple) -> float:
        with np.errstate(all="ignore"):
            value = float(0.5 * (self._at(point, inputs) ** 2).sum())
        return value if np.isfinite(value) else np.inf

    def _rows(self, terms: Sequence[Tensor]) -> np.ndarray:
        """The square root of the weight of each residual."""
        sizes = [term.size for term in terms]
        if self.term_weights is None:
            return np.ones(sum(sizes))
        if len(sizes) != len(self.term_weights):
            raise ValueError(
                f"term_weights holds {len(self.term_weights)} numbers, but residuals returns "
                f"{len(sizes)} term{'s' * (len(sizes) != 1)}"
            )
        return np.sqrt(np.repeat(self.term_weights, sizes))


class _Model:
    """The residuals, linear about a point, and the damped equations there."""

    def __init__(self, r: np.ndarray, matrix: np.ndarray, scaled: bool):
        self.r, self.jacobian, self.scaled = r, matrix, scaled
        with np.errstate(all="ignore"):
            self.loss, self.gradient = 0.5 * float(r @ r), matrix.T @ r
            squares = (matrix**2).sum(axis=0) if scaled else np.ones(matrix.shape[1])
        self.scale = np.where(squares > 0.0, squares, 1.0)
        self.wide = matrix.shape[0] < matrix.shape[1]
        self.left = matrix / self.scale  # J D^-1
        self.gram = self.left @ matrix.T if self.wide else matrix.T @ matrix

    def solver(self, damping: float) -> Callable | None:
        """``solve(r)`` gives the s of ``(J^T J + damping D) s = -J^T r``; None where rounding hides
        the damping.
        """
        damped = self.gram + damping * (np.eye(len(self.r)) if self.wide else np.diag(self.scale))
        try:
            factor = scipy.linalg.cho_factor(damped, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        if self.wide:
            return lambda r: -self.left.T @ scipy.linalg.cho_solve(factor, r, check_finite=False)
        return lambda r: -scipy.linalg.cho_solve(factor, self.jacobian.T @ r, check_finite=False)


def _positive(numbers: Any) -> np.ndarray | None:
    if numbers is None:
        return None
    found = as_reals("term_weights", numbers)
    if found.ndim != 1 or not found.size or not (np.isfinite(found) & (found > 0.0)).all():
        raise ValueError(
            f"term_weights must be positive numbers, one for each term, but got {shown(numbers)}"
        )
    return found
