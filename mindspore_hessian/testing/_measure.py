"""The checks themselves: the second derivative against itself, and against the function near the
point.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import mindspore as ms
import numpy as np

from mindspore_hessian._errors import HessianError, NonFiniteWarning, RecompileWarning
from mindspore_hessian.arguments import check_bool, check_choice, check_integer, check_real, shown
from mindspore_hessian.testing._point import PRECISION, Vicinity
from mindspore_hessian.testing._report import USUALLY, Check, Report

_STEPS = 8  # step sizes of the difference and Taylor tests
_USABLE = 10  # a remainder this many times above rounding counts for the order
_ROUNDINGS = (
    8,
    64,
)  # so many roundings of f are always allowed; measured ones up to so many of float32 or coarser

R = TypeVar("R", bound=Report)


@dataclass(frozen=True)
class Subject:
    """What is tested; all arrays are scaled (see `Vicinity`), and their last axis runs over the
    variables.

    Attributes:
        point: the function near its point, in a dtype (None: as given).
        second: the second derivative in a mode, as the public function gives it.
        products: H v for every direction of the point, from `second`.
        square: a matrix that must be symmetric, from `second`.
        unit, square_unit: what entries of `second` and `square` were multiplied with; 1.0 for
            numbers like u.Hv.
    """

    point: Callable[[Any], Vicinity]
    second: Callable[[Vicinity, str], np.ndarray]
    products: Callable[[Vicinity, np.ndarray], np.ndarray]
    square: Callable[[Vicinity, np.ndarray], np.ndarray]
    unit: Callable[[Vicinity], np.ndarray]
    square_unit: Callable[[Vicinity], Any]


@dataclass(frozen=True)
class Settings:
    """The options that `check_hvp` and `check_hessian` share."""

    modes: tuple[str, ...]
    rtol: float | None
    atol: float | None
    order: float
    step: float

    @classmethod
    def of(
        cls,
        modes: str | Sequence[str],
        allowed: Any,
        directions: int,
        rtol: float | None,
        atol: float | None,
        order: float,
        step: float,
        seed: int,
        raise_exception: bool,
    ) -> Settings:
        """Check the options."""
        if not isinstance(modes, Iterable):
            raise TypeError(f"modes must be a name or several, but got {shown(modes)}")
        modes = (modes,) if isinstance(modes, str) else tuple(modes)
        if not modes:
            raise ValueError(
                "modes is empty; the first of them is what the others are compared with"
            )
        for mode in modes:
            check_choice("modes", mode, allowed)
        check_integer("directions", directions, 2)
        check_integer("seed", seed, 0)
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None:
                check_real(name, value, strict=False)
        check_real("order", order, strict=False)
        check_real("step", step)
        check_bool("raise_exception", raise_exception)
        return cls(modes, rtol, atol, order, step)


def measure(
    kind: type[R], name: str, subject: Subject, settings: Settings, raise_exception: bool
) -> R:
    """Make all checks; raise at the first that failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        warnings.simplefilter("ignore", RecompileWarning)  # a dtype and a mode after the other
        report = _Measure(subject, settings).report(kind, name)
    if raise_exception and not report.ok:
        failed = next(check for check in report.checks if not check.ok)
        raise AssertionError(
            f"the check {failed.name!r} of {name} failed: {failed.detail}. "
            f"This usually means {USUALLY[failed.name]}.\n{report!r}"
        )
    return report


class _Measure:
    def __init__(self, subject: Subject, settings: Settings):
        self.subject, self.settings, self.notes = subject, settings, list[str]()
        self.modes, self.order = [settings.modes[0]], float("nan")
        self.native = subject.point(None)
        self.given = subject.second(self.native, settings.modes[0])  # an error here is the user's
        self.point, self.found = self.native, self.given
        if np.isfinite(self.given).all():
            self.refine()
        self.start = self.point.at(self.point.zero)

    def report(self, kind: type[R], name: str) -> R:
        checks = [self.finite()]
        if checks[0].ok:
            self.look_around()
            checks.append(self.repeatable())
            if checks[1].ok:
                checks += [
                    *self.agreement(),
                    self.symmetry(),
                    self.differences(),
                    self.taylor(),
                    *self.own_dtype(),
                ]
        return kind(
            name,
            str(self.point.dtype),
            tuple(self.modes),
            self.order,
            tuple(checks),
            tuple(self.notes),
        )

    def refine(self) -> None:
        """Go on in the finest dtype in which the function runs."""
        for dtype in (ms.float64, ms.float32):
            if PRECISION[dtype][0] >= PRECISION[self.native.dtype][0]:
                break
            coarse = sorted(
                {
                    str(d)
                    for d in self.native.parameter_dtypes()
                    if PRECISION[d][0] > PRECISION[dtype][0]
                }
            )
            if coarse:
                self.notes.append(
                    f"compared in {self.native.dtype}, since parameters of the function are "
                    f"{', '.join(coarse)}. For a "
                    "sharper check: for p in net.get_parameters(): p.set_dtype(mindspore.float64)"
                )
                break
            try:
                point = self.subject.point(dtype)
                found = self.subject.second(point, self.settings.modes[0])
            except (HessianError, TypeError, ValueError, RuntimeError) as err:
                self.notes.append(
                    f"not compared in {dtype}, where the function does not run: {err}"
                )
            else:
                self.point, self.found = point, found
                break

    # --- each check -------------------------------------------------------------------------------

    def finite(self) -> Check:
        parts: dict[str, Any] = {
            "f": self.start[0],
            "the gradient": self.start[1],
            "the second derivative": self.found,
        }
        bad = {name: np.count_nonzero(~np.isfinite(part)) for name, part in parts.items()}
        detail = "; ".join(
            f"{name} holds {count} NaN or Inf" for name, count in bad.items() if count
        )
        return Check(
            "finite",
            float(sum(bad.values())),
            0.0,
            detail or "f, gradient and second derivative are finite",
        )

    def look_around(self) -> None:
        """Slopes and Taylor remainders near the point, how much of them is rounding, and what
        tolerances follow.
        """
        point, (value, gradient) = self.point, self.start
        eps, rtol = PRECISION[point.dtype]
        self.products = self.subject.products(point, self.found)
        self.rtol = rtol if self.settings.rtol is None else self.settings.rtol
        self.steps = np.geomspace(self.settings.step, eps ** (1 / 3), _STEPS)
        t = np.append(
            self.steps, eps**0.4
        )  # the last is so small that what remains there is rounding
        pairs = [
            [(point.at(step * v), point.at(-step * v)) for step in t] for v in point.directions
        ]
        values = np.array([[(plus[0], minus[0]) for plus, minus in row] for row in pairs])
        slopes = np.array([[plus[1] - minus[1] for plus, minus in row] for row in pairs])
        first, second = point.directions @ gradient, (point.directions * self.products).sum(1)
        with np.errstate(all="ignore"):
            self.slopes = (slopes / (2 * t[:, None]))[:, :-1]
            linear, quadratic = np.outer(first, t), np.outer(second, t**2 / 2)
            model = value + quadratic[..., None] + linear[..., None] * np.array([1, -1])
            remainders = np.abs(values - model).max(2)
            largest = np.abs(values[np.isfinite(values)]).max(initial=abs(value))
            low, high = (
                _ROUNDINGS[0] * eps * largest,
                _ROUNDINGS[1] * max(eps, PRECISION[ms.float32][0]) * largest,
            )
            rounding = np.clip(
                np.nan_to_num(remainders[:, -1:]), low, high
            )  # more than that is a jump, or wrong
        self.remainders = remainders[:, :-1]
        self.floor = (rounding + self.rtol / 100 * (np.abs(linear) + np.abs(quadratic)))[:, :-1]
        relative = rounding.max() / largest if largest else _ROUNDINGS[0] * eps
        self.noise = relative * (abs(value) + np.abs(gradient).max())
        self.atol = 8 * self.noise if self.settings.atol is None else self.settings.atol

    def repeatable(self) -> Check:
        value, gradient = self.point.at(self.point.zero)
        again = self.subject.second(self.point, self.settings.modes[0])
        return _worst(
            [
                self.compare(
                    "repeatable",
                    np.array(self.start[0]),
                    np.array(value),
                    "f in a first and a second run",
                ),
                self.compare(
                    "repeatable",
                    self.start[1],
                    gradient,
                    "the gradient in a first and a second run",
                    self.point.size,
                ),
                self.compare(
                    "repeatable",
                    self.found,
                    again,
                    "the second derivative in a first and a second run",
                    self.subject.unit(self.point),
                ),
            ]
        )

    def agreement(self) -> list[Check]:
        first, *others = self.settings.modes
        checks = []
        for mode in others:
            try:
                got = self.subject.second(self.point, mode)
            except HessianError as err:
                self.notes.append(f"mode {mode!r} was refused: {err}")
                continue
            self.modes.append(mode)
            checks.append(
                self.compare(
                    "modes",
                    self.found,
                    got,
                    f"modes {first!r} and {mode!r}",
                    self.subject.unit(self.point),
                )
            )
        return [_worst(checks)] if checks else []

    def symmetry(self) -> Check:
        square = self.subject.square(self.point, self.found)
        unit = self.subject.square_unit(self.point)
        what, scale = "H and its transpose", np.abs(square).max()
        if not np.ndim(unit):
            what, scale = "u.Hv and v.Hu", np.linalg.norm(self.products, axis=1).max()
        return self.compare(
            "symmetry", square, np.swapaxes(square, -1, -2), what, unit, scale=scale
        )

    def differences(self) -> Check:
        checks = []
        for v, hv in enumerate(self.products):
            steps = [
                self.compare(
                    "differences",
                    slope,
                    hv,
                    f"the gradient's central difference (step {t:.1e}) and Hv",
                    self.point.size,
                    extra=self.noise / t,
                    scale=np.abs(hv).max(),
                )
                for t, slope in zip(self.steps, self.slopes[v], strict=True)
            ]
            checks.append(min(steps, key=_excess))
        return _worst(checks)

    def taylor(self) -> Check:
        size = np.linalg.norm(self.start[1])
        orders, checks = [], []
        for remainder, floor in zip(self.remainders, self.floor, strict=True):
            order, last = _order(self.steps, remainder, floor)
            detail = "the remainder is no more than rounding"
            if np.isfinite(order):
                detail = (
                    f"expected a remainder like t^3, got t^{order:.2f}: {remainder[last]:.2e} at "
                    f"t = {self.steps[last]:.1e}"
                )
            missing = max(0.0, 3 - order)
            # in a coarse dtype kinks beside the point and rounding hide the order: a right first
            # derivative will do, the second one is tested by the differences
            if (
                self.point.dtype != ms.float64
                and (remainder <= floor + self.rtol * self.steps * size).any()
            ):
                missing, detail = 0.0, f"right to first order; in all, {detail}"
            orders.append(order)
            checks.append(Check("taylor", missing, 3 - self.settings.order, detail))
        self.order = min(orders)
        return _worst(checks)

    def own_dtype(self) -> list[Check]:
        if self.point is self.native:
            return []
        rtol = max(self.rtol, PRECISION[self.native.dtype][1])
        noise = (
            64
            * PRECISION[self.native.dtype][0]
            * (abs(self.start[0]) + np.abs(self.start[1]).max())
        )
        return [
            self.compare(
                "dtype",
                self.found,
                self.given,
                f"{self.point.dtype} and {self.native.dtype}",
                self.subject.unit(self.point),
                rtol=rtol,
                extra=noise,
            )
        ]

    def compare(
        self,
        name: str,
        expected: np.ndarray,
        got: np.ndarray,
        what: str,
        unit: Any = 1.0,
        extra: float = 0.0,
        scale: float | None = None,
        rtol: float | None = None,
    ) -> Check:
        """The largest difference, against ``rtol * scale + atol``; shown without the scaling of
        `Vicinity`.
        """
        error = np.nan_to_num(np.abs(expected - got), nan=np.inf)
        place = np.unravel_index(int(error.argmax()), error.shape)
        shown = np.broadcast_to(unit, error.shape)[place]
        scale = float(np.abs(expected).max()) if scale is None else float(scale)
        where = f" at {self.point.place(int(place[-1]))}" if np.ndim(unit) else ""
        return Check(
            name,
            float(error[place]),
            (self.rtol if rtol is None else rtol) * scale + self.atol + extra,
            f"{what}: {expected[place] / shown:.6g} and {got[place] / shown:.6g}{where}",
        )


def _order(steps: np.ndarray, remainder: np.ndarray, floor: np.ndarray) -> tuple[float, int]:
    """The order at which a remainder falls at the smallest steps, and the smallest step where it
    stands out.

    Fitted where it stands out against rounding; below, where it does not, it must have fallen at
    least so fast.
    """
    usable = np.flatnonzero(remainder > _USABLE * floor)
    if usable.size == 0:
        return np.inf, 0
    last = int(usable[-1])
    below = slice(last + 1, None)
    orders = [
        *(
            np.log(remainder[last] / (remainder[below] + floor[below]))
            / np.log(steps[last] / steps[below])
        )
    ]
    if usable.size > 1:
        orders.append(np.polyfit(np.log(steps[usable[-3:]]), np.log(remainder[usable[-3:]]), 1)[0])
    return float(max(orders, default=np.inf)), last


def _excess(check: Check) -> float:
    if check.error == 0:
        return 0.0
    return check.error / check.tolerance if check.tolerance and np.isfinite(check.error) else np.inf


def _worst(checks: list[Check]) -> Check:
    return max(checks, key=_excess)
