"""Checks of numbers among the options: what counts as an integer here, in one place."""
from __future__ import annotations

import numbers
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether it is an integer: Python's or numpy's, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
