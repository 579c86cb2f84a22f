"""Checks of options that several layers share: what counts as an integer, and yes or no."""
from __future__ import annotations

import numbers
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether it is an integer: Python's or numpy's, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError where `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, but got {value!r}")


def check_progress(progress: Any) -> None:
    """Raise TypeError where `progress` is neither None nor a bool."""
    if progress is not None:
        check_bool("progress (if not None, which shows a bar after 2 s)", progress)
