"""Whether progress bars are shown, and when: one answer for all of them."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

from mindspore_hessian.arguments import check_progress

SHOWN_AFTER = 2.0  # seconds: what is quicker needs no bar
_wish: bool | None = None


def set_progress(progress: bool | None) -> None:
    """Progress bars for the whole process, where a call does not say ``progress=``.

    Args:
        progress: False for none at all, also where a call asks for one; True for bars at once;
            None, as at the start: for what takes more than two seconds, on a terminal or in a
            notebook, not in a file of logs. The environment's ``TQDM_DISABLE=1`` is the same as
            False.

    Raises:
        TypeError: `progress` is neither None nor a bool.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore_hessian as mh
        >>> mh.set_progress(False)
        >>> mh.set_progress(None)
    """
    global _wish
    check_progress(progress)
    _wish = progress


def _options(progress: bool | None, hidden: bool) -> dict[str, Any]:
    """What tqdm is told: whether there is no bar, and after how many seconds it appears."""
    wanted = _wish if progress is None else progress
    off = (
        hidden
        or wanted is False
        or _wish is False
        or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    )
    in_a_file = wanted is None and not sys.stderr.isatty() and "ipykernel" not in sys.modules
    return {"disable": off or in_a_file, "delay": 0 if wanted else SHOWN_AFTER}


def bar(
    what: str,
    total: int | None,
    progress: bool | None,
    unit: str = "step",
    done: int = 0,
    hidden: bool = False,
    leave: bool = False,
) -> tqdm:
    """A bar on stderr."""
    return tqdm(
        desc=what, total=total, initial=done, leave=leave, unit=unit, **_options(progress, hidden)
    )
