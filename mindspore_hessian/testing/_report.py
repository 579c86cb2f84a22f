"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass

USUALLY = {
    "finite": "a point where the function is not twice differentiable (sqrt or norm at 0, log of 0), or an overflow",
    "repeatable": "randomness: dropout in training mode (net.set_train(False)), or random numbers drawn inside",
    "modes": "a primitive whose derivative rule is wrong or missing (see mindspore_hessian.rules)",
    "symmetry": "a gradient that is not the gradient of any function: a custom `bprop`, a wrong derivative rule, or "
    "stop_gradient on a part of the function",
    "differences": "a wrong second derivative (a custom `bprop`, a wrong derivative rule, stop_gradient), or a kink "
    "at this point (relu, abs, max): try another point",
    "taylor": "a wrong first derivative (a custom `bprop`, a wrong derivative rule, stop_gradient), or a kink or "
    "jump at this point (relu, abs, max): try another point",
    "dtype": "a kernel that is wrong or too coarse in the inputs' own dtype, or a badly scaled function",
}


@dataclass(frozen=True)
class Check:
    """One check: what was measured, the bound it must keep, and both sides in words.

    Attributes:
        name: "finite", "repeatable", "modes", "symmetry", "differences", "taylor" or "dtype".
        error, tolerance: the check holds where error <= tolerance.
        detail: what was expected and what was found.
    """

    name: str
    error: float
    tolerance: float
    detail: str

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.error <= self.tolerance

    def __repr__(self) -> str:
        verdict, bound = ("ok  ", "<=") if self.ok else ("FAIL", "> ")
        return f"{self.name:<13}{verdict}  {self.error:.1e} {bound} {self.tolerance:.1e}  {self.detail}"


@dataclass(frozen=True, repr=False)
class Report:
    """What `check_hvp` or `check_hessian` found; ``report["taylor"]`` is one of the checks.

    Attributes:
        function: its name.
        dtype: the dtype in which derivatives were compared.
        modes: the modes that gave a result.
        order: order of the Taylor remainder, or a lower bound of it: 3 or more where all is right,
            inf where the remainder is no more than rounding, NaN where it was not measured.
        checks: in the order in which they were made; those after a failed "finite" or "repeatable"
            are left out.
        notes: what the user should know: a lower precision, a mode that was refused.
    """

    function: str
    dtype: str
    modes: tuple[str, ...]
    order: float
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(
            f"no check {name!r} was made; there are "
            f"{', '.join(check.name for check in self.checks)}"
        )

    def __repr__(self) -> str:
        head = f"{type(self).__name__}: {self.function} in {self.dtype}, modes {', '.join(self.modes)}: "
        lines = [
            head + ("ok" if self.ok else "FAILED"),
            *map(repr, self.checks),
            *(f"note: {n}" for n in self.notes),
        ]
        return "\n  ".join(lines)


class HvpReport(Report):
    """What `check_hvp` found."""


class HessianReport(Report):
    """What `check_hessian` found."""
