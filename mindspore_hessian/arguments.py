"""Checks of options that several layers share: what counts as an integer, and yes or no."""
from __future__ import annotations

import numbers
from collections.abc import Collection
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether it is an integer: Python's or numpy's, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value as an error shows it, in one line; one that is long, as what it is."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def check_choice(name: str, value: Any, allowed: Collection[str]) -> None:
    """Raise ValueError where `value` is not one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, but got {shown(value)}")


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError where `value` is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, but got {shown(value)}")


def check_progress(progress: Any) -> None:
    """Raise TypeError where `progress` is neither None nor a bool."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None (a bar after 2 s), but got {shown(progress)}")
