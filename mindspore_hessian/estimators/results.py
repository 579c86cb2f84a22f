"""What the estimators return: frozen dataclasses that say what was found, how well, and what it
cost.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mindspore_hessian import _checkpoint
from mindspore_hessian.arguments import check_integer, shown

if TYPE_CHECKING:
    from typing_extensions import Self


class Result:
    """What all results have: ``print`` says the finding, ``to_dict`` gives all of it, ``save`` and
    ``load`` keep it.
    """

    def to_dict(self) -> dict[str, Any]:
        """The fields by their names: numbers, texts, numpy arrays; rows of a table as a list of
        dicts.
        """
        return {
            name: [asdict(row) for row in value] if _is_table(value) else value
            for name, value in self._fields()
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write everything into a file of numpy's (.npz, without pickled objects), in one step.

        An eigenvector's structure stays behind: what `load` gives has flat ones.

        Raises:
            TypeError: `path` is no path.
            ValueError: the file cannot be written.
        """
        stored = {
            name: np.array(json.dumps([asdict(row) for row in value]))
            if _is_table(value)
            else np.asarray(value)
            for name, value in self._fields()
            if value is not None
        }
        _checkpoint.write(_file(path), "path", result=np.array(type(self).__name__), **stored)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """What `save` wrote.

        Raises:
            TypeError: `path` is no path.
            ValueError: there is no such file, it is damaged, or it holds another kind of result.
        """
        stored = _checkpoint.read(_file(path), what="path")
        if stored is None:
            raise ValueError(f"{os.fspath(path)!r} is not there")
        if str(stored.pop("result", "")) != cls.__name__:
            raise ValueError(f"{os.fspath(path)!r} holds no {cls.__name__}")
        names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
        values = {name: cls._restored(name, array) for name, array in stored.items()}
        return cls(**{**dict.fromkeys(names), **values})

    @classmethod
    def _restored(cls, name: str, array: np.ndarray) -> Any:
        return array if array.ndim else array.item()

    def _fields(self) -> list[tuple[str, Any]]:
        return [
            (item.name, getattr(self, item.name))
            for item in fields(self)  # type: ignore[arg-type]
            if item.name != "unflatten"
        ]

    def __repr__(self) -> str:
        """Short: arrays by their shapes."""
        parts = (f"{name}={_brief(value)}" for name, value in self._fields())
        return f"{type(self).__name__}({', '.join(parts)})"


def _file(path: Any) -> str:
    named = _checkpoint.named(path, "path")
    if named is None:
        raise TypeError("path must be a file name, but got None")
    return named


def _is_table(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(is_dataclass, value))


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 6:
        return f"<array {'x'.join(map(str, value.shape))}>"
    return (
        f"<{len(value)} rows>"
        if _is_table(value)
        else f"{value:.6g}"
        if isinstance(value, float)
        else repr(value)
    )


def with_error(value: float, error: float) -> str:
    """The value with its standard error: ``12.64 ± 0.04``, to the digits that the error leaves."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.6g}" + ("" if error == 0 else f" ± {error:.2g}")
    digits = max(0, -math.floor(math.log10(error)) + (f"{error:.0e}"[0] == "1"))
    return (
        f"{value:.{digits}f} ± {error:.{digits}f}"
        if digits <= 6 and error < 1e6
        else f"{value:.6g} ± {error:.1g}"
    )


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Result):
    """A random estimate.

    Attributes:
        value: the estimate: a float, or an array of shape (n,) for a diagonal.
        standard_error: one standard deviation of `value`, estimated from the same samples; shaped
            like it.
        num_products: products with the operator, counted by columns.
        seconds: wall time, that before an interruption included.
        seed: of the probes.
        stopped_by: ``"tol"``, ``"budget"``, or ``"exact"`` where nothing is left to chance.
        bias: a systematic error that `standard_error` does not hold (the truncation of a Lanczos
            quadrature), estimated; 0 where there is none.
    """

    value: Any
    standard_error: Any
    num_products: int
    seconds: float
    seed: int
    stopped_by: str
    bias: float = 0.0

    def __str__(self) -> str:
        if np.ndim(self.value) == 0:
            return f"{with_error(float(self.value), float(self.standard_error))} ({self.num_products} products)"
        return (
            f"{np.size(self.value)} entries from {np.min(self.value):.4g} to "
            f"{np.max(self.value):.4g}, standard "
            f"error {np.mean(self.standard_error):.1g} in the mean ({self.num_products} products)"
        )


@dataclass(frozen=True)
class _Cut:
    """Cuts a flat vector into arrays of these shapes and dtypes, as an operator's `unflatten`
    did.
    """

    tensor: Callable[[np.ndarray, Any], Any]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def like(cls, unflatten: Any, n: int) -> Any:
        """None where what it makes is no tuple of arrays that their class makes of an array of
        numpy and a dtype.
        """
        if unflatten is None or isinstance(unflatten, cls):
            return unflatten
        made = unflatten(np.zeros(n))
        if not isinstance(made, tuple) or not made:
            return None
        try:
            cut = cls(
                type(made[0]),
                tuple(tuple(one.shape) for one in made),
                tuple(one.dtype for one in made),
            )
            return cut if all(map(np.array_equal, cut(np.zeros(n)), made)) else None
        except (AttributeError, TypeError, ValueError):
            return None

    def __call__(self, flat: np.ndarray) -> tuple:
        cuts = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        return tuple(
            self.tensor(part.reshape(shape), dtype)
            for part, shape, dtype in zip(
                np.split(np.array(flat), cuts), self.shapes, self.dtypes, strict=True
            )
        )


@dataclass(frozen=True, eq=False, repr=False)
class EigshResult(Result):
    """Eigenpairs of `eigsh`.

    Attributes:
        eigenvalues: (k,), Rayleigh quotients of the returned vectors. Descending for "LA", "LM" and
            "BE" (by value, not by magnitude), ascending for "SA".
        eigenvectors: (n, k), orthonormal columns.
        residuals: (k,), ||H v - lambda v|| from one product for each returned pair. Within that
            distance of each eigenvalue lies a true one.
        converged: (k,), ``residuals <= tol * max |lambda|``.
        num_products, seconds, seed: the cost, and the seed of the random vectors.
        stopped_by: ``"tol"``, ``"budget"``, or ``"stagnation"`` where rounding keeps the residuals
            above the goal.

    It can be pickled; what comes back knows the shapes of the operator's variables, and the
    operator no more.
    """

    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    num_products: int
    seconds: float
    seed: int
    stopped_by: str
    unflatten: Callable[[np.ndarray], Any] | None = field(default=None, repr=False)

    def vector(self, i: int) -> np.ndarray:
        """Eigenvector number i, of shape (n,)."""
        count = self.eigenvectors.shape[1]
        check_integer("i", i, -count, count - 1)
        return self.eigenvectors[:, i]

    def structured(self, i: int) -> Any:
        """Eigenvector number i with the structure of the operator's variables."""
        if self.unflatten is None:
            raise ValueError(
                "the operator has no unflatten(), so an eigenvector has no structure: use vector(i)"
            )
        return self.unflatten(self.vector(i))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "unflatten": _Cut.like(self.unflatten, len(self.eigenvectors))}


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Result):
    """Density of the eigenvalues by stochastic Lanczos quadrature.

    Attributes:
        grid: the points, (g,).
        density: the mean over the probes at each point; per unit of the eigenvalue, or per decade
            for "log".
        standard_error: of `density`, over the probes.
        nodes: (probes, steps), the Ritz values of each probe.
        weights: (probes, steps), their weights, which sum to 1 for each probe (0 for padding).
        sigma: width of the Gaussian (of a bin, for the histogram).
        num_products, seconds, seed: the cost, and the seed of the probes.
        stopped_by: ``"probes"`` where all were run, or ``"budget"``.
        scale: ``"linear"``, or ``"log"`` where the grid holds magnitudes and the density is per
            decade.
    """

    grid: np.ndarray
    density: np.ndarray
    standard_error: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray
    sigma: float
    num_products: int
    seconds: float
    seed: int
    stopped_by: str
    scale: str

    def mass_below(self, x: float) -> float:
        """Estimated share of the eigenvalues below x, without smoothing."""
        if not isinstance(x, numbers.Real) or np.isnan(x):
            raise TypeError(f"x must be a number, but got {shown(x)}")
        return float((self.weights * (self.nodes < x)).sum() / len(self.nodes))

    def moment(self, k: int) -> float:
        """Estimate of trace(H^k) / n."""
        check_integer("k", k, 0)
        return float((self.weights * self.nodes**k).sum() / len(self.nodes))


@dataclass(frozen=True, eq=False, repr=False)
class ConditionNumber(Result):
    """Condition number |lambda|_max / |lambda|_min.

    Attributes:
        value: the estimate; a lower bound where `resolved` is False.
        resolved: both eigenvalues are known to the relative tolerance.
        largest, smallest: the eigenvalues of largest and smallest magnitude that were found, with
            their signs.
        residual: (2,), ||H v - lambda v|| of the two.
        num_products, seconds, seed: the cost, and the seed of the random vectors.
        stopped_by: ``"tol"``, ``"budget"``, ``"stagnation"``, or ``"singular"`` where |lambda|_min
            is zero to working precision.
    """

    value: float
    resolved: bool
    largest: float
    smallest: float
    residual: np.ndarray
    num_products: int
    seconds: float
    seed: int
    stopped_by: str


@dataclass(frozen=True, eq=False, repr=False)
class NegativeCurvature(Result):
    """Most negative eigenpair.

    Attributes:
        found: `value` is negative beyond rounding. `vector` is then a proof: v^T H v = value < 0
            for a unit vector.
        value: Rayleigh quotient of `vector`; the smallest eigenvalue is not above it.
        vector: (n,), of norm 1.
        residual: ||H v - value v||; an eigenvalue lies within that distance of `value`.
        converged: the residual meets the tolerance.
        num_products, seconds, seed: the cost, and the seed of the start vector.
        stopped_by: as for `eigsh`.
    """

    found: bool
    value: float
    vector: np.ndarray
    residual: float
    converged: bool
    num_products: int
    seconds: float
    seed: int
    stopped_by: str

    def __str__(self) -> str:
        verdict = (
            f"negative curvature {self.value:.6g}"
            if self.found
            else (f"none found: the smallest Rayleigh quotient is {self.value:.6g}")
        )
        return f"{verdict} (residual {self.residual:.1e}, {self.num_products} products, stopped by {self.stopped_by})"


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Result):
    """Solution of (H + damping I) x = b.

    Attributes:
        value: x, (n,), or (n, k) for k right-hand sides.
        residual: ||b - (H + damping I) x|| / ||b||, from a product of its own; of the worst column.
        converged: ``residual <= tol``.
        direction: for "negative curvature" a vector p with p^T (H + damping I) p <= 0; otherwise
            None.
        num_products, seconds: the cost.
        stopped_by: ``"tol"``, ``"budget"``, ``"negative curvature"``, ``"stagnation"``,
            ``"divergence"``, or ``"least squares"`` where b is out of reach and x is the
            least-squares solution, or ``"exact"`` where the operator knows its inverse.
    """

    value: np.ndarray
    residual: float
    converged: bool
    direction: np.ndarray | None
    num_products: int
    seconds: float
    stopped_by: str

    @property
    def x(self) -> np.ndarray:
        """The same as `value`."""
        return self.value
