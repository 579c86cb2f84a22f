"""The progress bar of an optimisation."""
from __future__ import annotations

from typing import Any

from tqdm import tqdm

from mindspore_hessian._environment import no_bars

SHOWN_AFTER = 2.0  # seconds: what is quicker needs no bar


def bar(what: str, total: int | None, progress: bool | None, done: int = 0) -> Any:
    """A bar on stderr: True shows it at once, None after two seconds, False never."""
    return tqdm(desc=what, total=total, initial=done, disable=progress is False or no_bars(), leave=False, unit="step",
                delay=0 if progress else SHOWN_AFTER)
