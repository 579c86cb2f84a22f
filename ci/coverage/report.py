"""Write results/VERSION.md from results/VERSION.json, and print the totals.

Usage: python ci/coverage/report.py [results/2.10.0.json ...]

Fails where a call is silently wrong and `KNOWN` does not say why.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "rules"))
import calls  # noqa: E402

KNOWN = {  # line -> why MindSpore's own function differs from its maths
    "nn.Moments(0)(x)[1]": "the layer stops the gradient of its mean, so its second derivative lacks a term",
}
COLUMNS = ("product", "matrix", "third")
KEYS = {"product": "hvp", "matrix": "hessian", "third": "third"}
REFUSALS = {"product": "refused", "matrix": "hessian_refused", "third": "third_refused"}


def kind(row: dict) -> str:
    """Whether the call is in the list of what MindSpore differentiates once, and rightly."""
    if "left_out" in row:
        return "left out"
    if "crashed" in row:
        return "crashed"
    if row["gradient"] > calls.GRADIENT_LIMIT[row["dtype"]] and row["truth"] != "torch":
        near_kink = max(row["gradient_doubt"], row.get("doubt", 0)) > 1e-3
        return "not smooth here" if near_kink else "first gradient wrong in MindSpore"
    return "listed"


def verdict(row: dict, column: str) -> str:
    """right, looped (right, but row after row), wrong or refused, for one of the three columns."""
    error = row.get(KEYS[column])
    if error is None:
        return "refused"
    if not math.isfinite(error):
        return "not finite"  # and said so by a NonFiniteWarning
    doubt = row.get("third_doubt" if column == "third" else "doubt", 0)
    limit = row["limit"]
    if column == "third":
        limit = 10 * limit if "third_doubt" not in row else max(limit, 1e-5)
    if error < limit:
        return "looped" if column == "matrix" and row.get("loop") else "right"
    return "in doubt" if error < 3 * doubt else "wrong"


def cell(row: dict, column: str) -> str:
    found = verdict(row, column)
    return (
        found
        if found == "refused"
        else f"{row[KEYS[column]]:.0e}" + ("" if found == "right" else f" {found}")
    )


def totals(rows: list[dict]) -> dict:
    listed = [row for row in rows if kind(row) == "listed"]
    return {
        "kinds": Counter(map(kind, rows)),
        "functions": len({(row["space"], row["head"]) for row in listed}),
        **{column: Counter(verdict(row, column) for row in listed) for column in COLUMNS},
    }


def exceptions(rows: list[dict]) -> list[str]:
    out = []
    for row in rows:
        name = f"`{row['line'].split(' | ')[0]}` ({row['space']})"
        if kind(row) == "listed":
            for column in COLUMNS:
                found = verdict(row, column)
                if found == "refused" and (column == "product" or "refused" not in row):
                    out.append(f"{name}: {column} refused: {row.get(REFUSALS[column], '')}")
                elif found == "looped":
                    out.append(f"{name}: {column} row after row: {row['loop'][0].split(',')[0]}")
                elif found in ("wrong", "in doubt", "not finite"):
                    why = f" ({KNOWN[row['line']]})" if row["line"] in KNOWN else ""
                    out.append(f"{name}: {column} {found}: {row[KEYS[column]]:.0e}{why}")
        elif kind(row) != "left out":
            out.append(f"{name}: {kind(row)}: {row.get('crashed', '')}{row.get('gradient', 0):.0e}")
    return out


def summary(version: str, rows: list[dict]) -> str:
    found = totals(rows)
    lines = [
        f"MindSpore {version}: {found['kinds']['listed']} calls of {found['functions']} functions "
        "that MindSpore differentiates once."
    ]
    for column in COLUMNS:
        lines.append(
            f"- {column}: "
            + ", ".join(f"{count} {name}" for name, count in found[column].most_common())
        )
    lines.append(
        "- not in the list: "
        + ", ".join(
            f"{count} {name}" for name, count in found["kinds"].most_common() if name != "listed"
        )
    )
    return "\n".join(lines)


def markdown(version: str, rows: list[dict]) -> str:
    lines = [
        f"# Second derivatives of MindSpore {version}, call by call",
        "",
        "Made by `bash ci/coverage.sh`. Of s = sum(w (y + y²/2)) with y the output of the call: "
        "the largest error of the product H v, of the matrix (in one batch, unless it says "
        "looped) times v, and of the third derivative in the direction v, relative to the largest "
        "entry. Truth: torch in float64 where its function has the same value and gradient, else "
        "fourth-order differences of the compiled gradient, which is itself compared with "
        "differences of the value.",
        "",
        summary(version, rows),
        "",
        "## Exceptions",
        "",
    ]
    lines += [f"- {line}" for line in sorted(set(exceptions(rows)))] or ["none"]
    lines += [
        "",
        "## Calls",
        "",
        "| call | inputs | in | dtype | product | matrix | third | truth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        rows, key=lambda row: (row["topic"], row["head"].lower(), row["line"], row["space"])
    ):
        if kind(row) == "listed":
            call, *specs = row["line"].split(" | ")
            cells = [
                f"`{call.split(': ')[-1]}`",
                "; ".join(specs),
                calls.TITLES.get(row["space"], row["space"]),
                row["dtype"],
                *(cell(row, column) for column in COLUMNS),
                row["truth"],
            ]
            lines.append("| " + " | ".join(text.replace("|", "/") for text in cells) + " |")
    reasons = sorted(
        {
            f"- `{row['line'].split(' | ')[0]}` ({row['space']}): {row['left_out']}"
            for row in rows
            if "left_out" in row
        }
    )
    return "\n".join(
        [*lines, "", "## No kernel or no first gradient on this CPU", "", *reasons, ""]
    )


def wrong(rows: list[dict]) -> list[str]:
    """The calls with a wrong number that nobody has explained."""
    return sorted(
        {
            f"{row['space']} {row['line']}"
            for row in rows
            if kind(row) == "listed"
            and row["line"] not in KNOWN
            and any(verdict(row, column) == "wrong" for column in COLUMNS)
        }
    )


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or sorted((HERE / "results").glob("*.json"))
    bad = []
    for path in paths:
        rows = json.loads(path.read_text())
        path.with_suffix(".md").write_text(markdown(path.stem, rows))
        print(summary(path.stem, rows))
        bad += [f"{path.stem}: {line}" for line in wrong(rows)]
    if bad:
        raise SystemExit("silently wrong:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
