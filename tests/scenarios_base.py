"""What a scenario is, and the few pieces of index algebra its closed forms are written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

Arrays = tuple[np.ndarray, ...]
Blocks = tuple[tuple[np.ndarray, ...], ...]

#: The largest error of a derivative over its largest entry. float32 leaves room for a dozen roundings.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 3e-2}
#: MindSpore's float32 tanh on CPU is a rational approximation, off by up to 6e-5.
TANH = {**TOLERANCE, "float32": 1e-3}
#: After a data-dependent ``if``, MindSpore's float64 second derivatives have float32 accuracy (2.7.2 to 2.10).
CONTROL_FLOW = {**TOLERANCE, "float64": 1e-6}


@dataclass(frozen=True)
class Scenario:
    """A function with its first and second derivative in closed form.

    ``fn`` is written with MindSpore and takes every input. Its Python constants are exact in
    float32, since graph mode rounds a Python float to float32 even next to a float64 tensor.

    ``inputs``, ``gradient`` and ``hessian`` are numpy in float64 (integer and bool inputs stay what
    they are). ``gradient`` has one array of shape ``out.shape + x_i.shape`` per position,
    ``hessian`` the nested tuple ``H[i][j]`` of shape ``out.shape + x_i.shape + x_j.shape``.
    """

    name: str
    fn: Callable
    inputs: Callable[[np.random.Generator], Arrays]
    gradient: Callable[..., Arrays]
    hessian: Callable[..., Blocks]
    positions: tuple[int, ...] = (0,)
    tolerance: Mapping[str, float] = field(default_factory=lambda: TOLERANCE)
    tags: frozenset[str] = frozenset()
    #: dtypes in which MindSpore's CPU backend has every kernel of ``fn``
    dtypes: tuple[str, ...] = ("float32", "float64")
    #: step of the central difference that checks the gradient
    step: float = 1e-5

    def example(self, seed: int = 0) -> Arrays:
        """The inputs that every test uses, float64."""
        return self.inputs(np.random.default_rng(seed))


def cast(inputs: Arrays, dtype: str) -> Arrays:
    """Inputs in another float dtype; integers and bools are left alone."""
    return tuple(np.asarray(x, dtype) if np.asarray(x).dtype.kind == "f" else x for x in inputs)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest expected entry, or the largest error itself where zeros are
    expected.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    scale = np.abs(expected).max(initial=0.0) or 1.0
    error = np.abs(actual - expected)
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0) / scale)


# --- inputs ---------------------------------------------------------------------------------------


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], Arrays]:
    """One array of standard normals per shape."""
    return lambda rng: tuple(np.asarray(rng.normal(size=shape)) for shape in shapes)


def uniform(
    low: float, high: float, *shapes: tuple[int, ...]
) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: tuple(np.asarray(rng.uniform(low, high, shape)) for shape in shapes)


# --- index algebra --------------------------------------------------------------------------------


def eye(*shape: int) -> np.ndarray:
    """The identity on arrays of a shape: shape + shape."""
    return np.eye(int(np.prod(shape))).reshape(shape * 2)


def diagonal(values: np.ndarray) -> np.ndarray:
    """The Hessian of a sum over entries: ``values`` on the diagonal, shape ``values.shape * 2``."""
    values = np.asarray(values)
    return np.diag(values.ravel()).reshape(values.shape * 2)


def diagonal3(values: np.ndarray) -> np.ndarray:
    """The same for a function applied to each entry: shape ``values.shape * 3``."""
    values = np.asarray(values)
    cube = np.zeros((values.size,) * 3)
    cube[(np.arange(values.size),) * 3] = values.ravel()
    return cube.reshape(values.shape * 3)


def swap(block: np.ndarray, row_ndim: int, out_ndim: int = 0) -> np.ndarray:
    """``H[j][i]`` from ``H[i][j]``: the axes of the two inputs change places."""
    axes = list(range(block.ndim))
    out, row, column = (
        axes[:out_ndim],
        axes[out_ndim : out_ndim + row_ndim],
        axes[out_ndim + row_ndim :],
    )
    return block.transpose(out + column + row)


def symmetric(
    xx: np.ndarray, xy: np.ndarray, yy: np.ndarray, x_ndim: int, out_ndim: int = 0
) -> Blocks:
    """The blocks of two inputs from the three that are independent."""
    return (xx, xy), (swap(xy, x_ndim, out_ndim), yy)


def single(
    gradient: Callable[..., np.ndarray], hessian: Callable[..., np.ndarray]
) -> dict[str, Callable]:
    """The two closed forms of a function of one differentiated input."""
    return {"gradient": lambda *xs: (gradient(*xs),), "hessian": lambda *xs: ((hessian(*xs),),)}


def tags(*names: str) -> frozenset[str]:
    return frozenset(names)
