"""The public names of mindspore.ops, nn, mint and Tensor, and which of them have no line in the
table yet.

Usage: python ci/coverage/names.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import mindspore
from mindspore import ops

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "rules"))
import calls  # noqa: E402
import check  # noqa: E402

COMPLETE_ON = "2.10."  # the version that the table was made for


def public(space: str) -> list[str]:
    """Names of the functions (in nn and mint.nn: of the classes) of one namespace. In `ops`, whose
    namespace holds helpers of the compiler too, those with a documented platform; `ops` classes are
    the primitives under them."""
    place = check.PLACES[space]
    if place is None:
        return []
    names = [
        name for name in getattr(place, "__all__", None) or dir(place) if not name.startswith("_")
    ]
    if space in calls.LAYERS:
        return sorted(n for n in names if inspect.isclass(getattr(place, n, None)))
    names = sorted(
        name
        for name in set(names)
        if callable(value := getattr(place, name, None)) and not inspect.isclass(value)
    )
    if space == "ops":
        return [
            n for n in names if "Supported Platforms" in (inspect.getdoc(getattr(ops, n)) or "")
        ]
    return names


def unknown() -> dict[str, list[str]]:
    """Public names that neither a line of the table nor left_out.txt mentions."""
    heads, reasons = {call.head for call in calls.calls()}, calls.left_out()
    return {
        space: [n for n in public(space) if n not in heads and n not in reasons]
        for space in check.PLACES
    }


def main() -> None:
    missing = unknown()
    for space, names in missing.items():
        title = calls.TITLES.get(space, space)
        print(f"{title}: {len(public(space))} public; without a line: {' '.join(names) or 'none'}")
    if any(missing.values()) and mindspore.__version__.startswith(COMPLETE_ON):
        raise SystemExit("give them a line in calls/*.txt, or a reason in calls/left_out.txt")


if __name__ == "__main__":
    main()
