"""What the full run adds (ci/full.sh): repeats of checks that the default run makes for a few
cases.
"""

from __future__ import annotations

import os

FULL = os.environ.get("MINDSPORE_HESSIAN_FULL") == "1"


def some(cases, keep=lambda case: False, every=0):
    """All cases in the full run; in the default run every so many, and those to `keep`."""
    return [
        case
        for number, case in enumerate(cases)
        if FULL or keep(case) or every and number % every == 0
    ]
