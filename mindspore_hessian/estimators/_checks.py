"""Checks of operators before anything is computed. Each error names the argument, the value and the
remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from mindspore_hessian.arguments import as_array, is_integer, shown


def matrix_of(op: Any) -> Any:
    """The operator as it is, and what holds a whole matrix as an array: a list of rows, a Tensor
    (of torch as well).
    """
    held = isinstance(op, list | tuple | np.matrix) or (
        hasattr(op, "__array__") and not isinstance(op, np.ndarray)
    )
    if not held:
        return op
    try:
        matrix = as_array(op)
    except (TypeError, ValueError, RuntimeError) as err:
        raise TypeError(
            f"op is a {type(op).__name__} that is no array ({err}). Pass a numpy array"
        ) from err
    if matrix.dtype.kind not in "fiubcV":
        raise TypeError(
            f"op is a {type(op).__name__} of {matrix.dtype}, not of numbers. Pass a numpy array"
        )
    return matrix


def dimension_of(op: Any) -> int:
    """n of an operator of shape (n, n)."""
    op = matrix_of(op)
    shape = getattr(op, "shape", None)
    if shape is None or not hasattr(op, "__matmul__"):
        raise TypeError(
            "op must have .shape and `@` (a HessianOperator, an array, a scipy LinearOperator), "
            f"but got {type(op).__name__}"
        )
    sides = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(sides) != 2 or not all(map(is_integer, sides)) or sides[0] != sides[1] or sides[0] < 1:
        raise ValueError(f"op must be square with at least one row, but has shape {shape}")
    return int(sides[0])


def check_symmetric(op: Any) -> None:
    """Raise where `op` is a matrix, dense or sparse, that is not symmetric (to 1e-3 of its norm),
    or says so.
    """
    op = matrix_of(op)
    if not getattr(op, "symmetric", True):
        raise ValueError(
            f"op must be symmetric, but {op!r} is not known to be. Where it is, say so: "
            "op.symmetric = True"
        )
    if not (isinstance(op, np.ndarray) or sp.issparse(op)):
        return
    if op.dtype == bool:  # which cannot be subtracted
        op = op.astype(np.float64)
    size, gap = (
        float(np.sqrt((abs(part).astype(np.float64) ** 2).sum())) for part in (op, op - op.T)
    )
    if gap > 1e-3 * size:
        raise ValueError(
            f"op must be symmetric, but |op - op.T| is {gap / size:.2g} of |op|. Pass the "
            "symmetric part, (op + op.T) / 2"
        )


def dtype_of(op: Any) -> np.dtype:
    """What the operator is fed with: its own floating dtype; float64 for integers and where it
    names none.
    """
    own = getattr(matrix_of(op), "dtype", None)
    try:
        dtype = np.dtype(np.float64 if own is None else own)
    except TypeError:
        raise TypeError(f"op.dtype must be a numpy dtype or None, but is {shown(own)}") from None
    if dtype.kind not in "fiubV":
        raise TypeError(
            f"op must be real, but has dtype {dtype}"
            + (": pass its real part" * (dtype.kind == "c"))
        )
    return dtype if dtype.kind in "fV" else np.dtype(np.float64)


def epsilon_of(dtype: np.dtype) -> float:
    """The rounding unit of a floating dtype; 2**-7 for one that numpy does not know (bfloat16)."""
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 2.0**-7
