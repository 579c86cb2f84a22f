"""Checks of arguments before anything is computed. Each error names the argument, the value and the remedy."""
from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import is_integer, shown


def check_integer(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> None:
    limits = f"at least {least}" if most is None else f"from {least} to {most}"
    if not is_integer(value):
        raise TypeError(f"{name} must be an int {limits}, but got {shown(value)}")
    if int(value) < least or (most is not None and int(value) > most):
        raise ValueError(f"{name} must be {limits}{why}, but got {value}")


def check_real(name: str, value: Any, least: float = 0.0, *, strict: bool = True) -> None:
    """A finite number greater than `least`, or equal to it where not `strict`."""
    limit = f"{'greater than' if strict else 'at least'} {least:g}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number {limit}, but got {shown(value)}")
    if not math.isfinite(value) or value < least or (strict and value == least):
        raise ValueError(f"{name} must be finite and {limit}, but got {value}")


def as_reals(name: str, value: Any) -> np.ndarray:
    """A copy of `value` as a float64 array.

    Raises:
        TypeError: it is none of real numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "fiubV":
            return np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as err:  # rows of different lengths
        raise TypeError(f"{name} must be an array of real numbers, but is a {type(value).__name__} ({err})") from err
    raise TypeError(f"{name} must be an array of real numbers, but is a {type(value).__name__} of dtype {array.dtype}")


def check_vector(name: str, value: Any, n: int) -> np.ndarray:
    """`value` as a float64 array of shape (n,)."""
    vector = as_reals(name, value)
    if vector.shape != (n,):
        raise ValueError(f"{name} must be a flat array of shape ({n},), as op is {n} x {n}, but has shape "
                         f"{vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite, but holds NaN or Inf")
    return vector


def matrix_of(op: Any) -> Any:
    """The operator as it is, and what holds a whole matrix as an array: a list of rows, a Tensor (of torch as well)."""
    held = isinstance(op, list | tuple | np.matrix) or (hasattr(op, "__array__") and not isinstance(op, np.ndarray))
    if not held:
        return op
    try:
        matrix = _compat.to_numpy(op) if isinstance(op, Tensor) else np.asarray(op)
    except (TypeError, ValueError, RuntimeError) as err:
        raise TypeError(f"op is a {type(op).__name__} that is no array ({err}). Pass a numpy array") from err
    if matrix.dtype.kind not in "fiubcV":
        raise TypeError(f"op is a {type(op).__name__} of {matrix.dtype}, not of numbers. Pass a numpy array")
    return matrix


def dimension_of(op: Any) -> int:
    """n of an operator of shape (n, n)."""
    op = matrix_of(op)
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(f"op must have .shape and `@` (a HessianOperator, an array, a scipy LinearOperator), but got "
                        f"{type(op).__name__}")
    sides = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(sides) != 2 or not all(map(is_integer, sides)) or sides[0] != sides[1] or sides[0] < 1:
        raise ValueError(f"op must be square with at least one row, but has shape {shape}")
    return int(sides[0])


def check_symmetric(op: Any) -> None:
    """Raise where `op` is a matrix, dense or sparse, that is not symmetric (to 1e-3 of its norm)."""
    op = matrix_of(op)
    if not (isinstance(op, np.ndarray) or sp.issparse(op)):
        return
    if op.dtype == bool:  # which cannot be subtracted
        op = op.astype(np.float64)
    size, gap = (float(np.sqrt((abs(part).astype(np.float64) ** 2).sum())) for part in (op, op - op.T))
    if gap > 1e-3 * size:
        raise ValueError(f"op must be symmetric, but |op - op.T| is {gap / size:.2g} of |op|. Pass the symmetric part, "
                         "(op + op.T) / 2")


def dtype_of(op: Any) -> np.dtype:
    """What the operator is fed with: its own floating dtype; float64 for integers and where it names none."""
    own = getattr(matrix_of(op), "dtype", None)
    try:
        dtype = np.dtype(np.float64 if own is None else own)
    except TypeError:
        raise TypeError(f"op.dtype must be a numpy dtype or None, but is {shown(own)}") from None
    if dtype.kind not in "fiubV":
        raise TypeError(f"op must be real, but has dtype {dtype}" + (": pass its real part" * (dtype.kind == "c")))
    return dtype if dtype.kind in "fV" else np.dtype(np.float64)


def epsilon_of(dtype: np.dtype) -> float:
    """The rounding unit of a floating dtype; 2**-7 for one that numpy does not know (bfloat16)."""
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0 ** -7
