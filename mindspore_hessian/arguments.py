"""Checks of arguments that several layers share. Each error names the argument, the value and the
remedy.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether it is an integer: Python's or numpy's, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value as an error shows it, in one line; one that is long, as what it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def check_choice(name: str, value: Any, allowed: Collection[str | int | None]) -> None:
    """Raise ValueError where `value` is not one of `allowed`; True and False are not 1 and 0."""
    if isinstance(value, bool) or not isinstance(value, str | int | None) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, but got {shown(value)}"
        )


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError where `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, but got {shown(value)}")


def check_progress(progress: Any) -> None:
    """Raise TypeError where `progress` is neither None nor a bool."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(
            f"progress must be True, False or None (a bar after 2 s), but got {shown(progress)}"
        )


def check_integer(
    name: str, value: Any, least: int, most: int | None = None, why: str = ""
) -> None:
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


def as_array(value: Any) -> np.ndarray:
    """`value`, which may be a Tensor, as numpy has it; bfloat16, which numpy itself does not know,
    comes as float32.
    """
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def as_reals(name: str, value: Any) -> np.ndarray:
    """A copy of `value` as a float64 array.

    Raises:
        TypeError: it is none of real numbers.
    """
    try:
        array = as_array(value)
        if array.dtype.kind in "fiub":
            return np.array(array, dtype=np.float64)
    except (TypeError, ValueError) as err:  # rows of different lengths
        raise TypeError(
            f"{name} must be an array of real numbers, but is a {type(value).__name__} ({err})"
        ) from err
    raise TypeError(
        f"{name} must be an array of real numbers, but is a {type(value).__name__} of dtype "
        f"{array.dtype}"
    )


def check_vector(name: str, value: Any, n: int) -> np.ndarray:
    """`value` as a float64 array of shape (n,)."""
    vector = as_reals(name, value)
    if vector.shape != (n,):
        raise ValueError(
            f"{name} must be a flat array of shape ({n},), as op is {n} x {n}, but has shape "
            f"{vector.shape}"
        )
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite, but holds NaN or Inf")
    return vector
