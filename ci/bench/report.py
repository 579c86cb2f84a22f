"""What the side-by-side benchmark prints and writes: ratios, a table, JSON, a plot.

Usage: python ci/bench/report.py RUN.json [RUN.json ...]

writes docs/benchmark.md, up to its first section, and docs/benchmark.png of runs on one machine (of
a case in several, the last; a naive recipe that this lacks, from an earlier one), and prints the
short table of the README.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from cases import BARE, JAX, NAIVE, OURS, PINNED, TORCH

OTHERS = (PINNED, TORCH, JAX, NAIVE, BARE)


def timed(result: dict | None) -> bool:
    return (
        bool(result) and not result.get("wrong") and "failed" not in result and "median_s" in result
    )


def add_ratios(rows: list[dict]) -> None:
    """``ratios``: our time over that of each other library; ``in_gradients``: a library's time over
    its own gradient's. Only of results that are right."""
    by_name = {row["case"]: row["results"] for row in rows}
    for row in rows:
        results = row["results"]
        row["ratios"] = {
            name: results[OURS]["median_s"] / results[name]["median_s"]
            for name in OTHERS
            if timed(results.get(OURS)) and timed(results.get(name))
        }
        gradients = by_name.get(row["gradient"], {})
        for name, result in results.items():
            if timed(result) and timed(gradients.get(name)):
                result["in_gradients"] = result["median_s"] / gradients[name]["median_s"]


def write_json(out: Path, content: dict) -> None:
    Path(f"{out}.json").write_text(json.dumps(content, indent=1, default=float) + "\n")


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row_of(title: str, name: str, row: dict) -> list[str]:
    result = row["results"][name]
    if "failed" in result:
        return [
            title,
            name,
            "failed: " + result["failed"].replace("|", "/")[:90],
            "",
            "",
            "",
            "",
            "",
            "",
        ]
    time = spread = ""
    if "median_s" in result:
        time = milliseconds(result["median_s"])
        spread = f"{milliseconds(result['quartile1_s'])} to {milliseconds(result['quartile3_s'])}"
    error = f"{result['error']:.0e}" + (" WRONG" if result["wrong"] else "")
    ratio = f"{row['ratios'][name]:.2g}" if name in row["ratios"] else ""
    gradients = f"{result['in_gradients']:.2f}" if "in_gradients" in result else ""
    peak = f"{result['peak_mib']:,.0f}" if "peak_mib" in result else ""
    return [
        title,
        name,
        time,
        spread,
        f"{result['first_call_s']:.2f}",
        peak,
        error,
        ratio,
        gradients,
    ]


def table(about: dict, rows: list[dict]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about["versions"].items()))
    lines = [
        f"{about['machine']}, {about['cores']} cores; {versions}; {about['date']}. float32; the "
        "error is relative, against float64.",
        "",
    ]
    head = [
        "case",
        "library",
        "median, ms",
        "middle half, ms",
        "first call, s",
        "peak, MiB",
        "error",
        "ours / it",
        "in gradients",
    ]
    body = [
        row_of(row["case"] if not number else "", name, row)
        for row in rows
        for number, name in enumerate(row["results"])
    ]
    widths = [
        max(
            len(line[column])
            for line in [head, *body]
            if not line[2].startswith("failed") or column < 2
        )
        for column in range(len(head))
    ]

    def shown(cells: list[str]) -> str:
        return (
            "| "
            + " | ".join(
                cell.ljust(width) if number < 2 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )

    rule = (
        "|"
        + "|".join("-" * (w + 2) if n < 2 else "-" * (w + 1) + ":" for n, w in enumerate(widths))
        + "|"
    )
    lines += [shown(head), rule, *map(shown, body), ""]
    lines += growth(rows)
    for name in OTHERS:
        ratios = sorted((row["ratios"][name], row["case"]) for row in rows if name in row["ratios"])
        if ratios:
            middle = np.exp(np.mean(np.log([ratio for ratio, _ in ratios])))
            lines.append(
                f"ours / {name}, {len(ratios)} cases: geometric mean {middle:.2g}, best "
                f"{ratios[0][0]:.2g} ({ratios[0][1]}), worst {ratios[-1][0]:.2g} ({ratios[-1][1]})"
            )
    return "\n".join(lines)


def growth(rows: list[dict]) -> list[str]:
    """The fitted exponents of time and memory against size, of families with three sizes or
    more.
    """
    out = []
    families: dict[str, list[dict]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    for family, members in families.items():
        for name in (OURS, TORCH, JAX):
            points = [
                (
                    row["size"],
                    row["results"][name]["median_s"],
                    max(row["results"][name].get("peak_mib", 0), 1),
                )
                for row in members
                if timed(row["results"].get(name))
            ]
            if len(points) >= 3:
                sizes, times, peaks = np.log(np.array(points, float)).T
                out.append(
                    f"{family}, {name}: time grows as {members[0]['axis']} to the power "
                    f"{np.polyfit(sizes, times, 1)[0]:.2f}, peak memory "
                    f"{np.polyfit(sizes, peaks, 1)[0]:.2f}"
                )
    return [*out, ""] if out else []


def plot(out: Path, rows: list[dict]) -> list[str]:
    """Time against size, a panel for each family that has more than one size; nothing without
    matplotlib.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import NullFormatter
    except ImportError:
        return []
    families: dict[str, list[dict]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    families = {name: members for name, members in families.items() if len(members) > 1}
    if not families:
        return []
    columns = min(len(families), 5)
    figure, axes = pyplot.subplots(
        -(-len(families) // columns),
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(3.6 * columns, 3.2 * -(-len(families) // columns)),
    )
    for axis in axes.flat[len(families) :]:
        axis.set_axis_off()
    for axis, (family, members) in zip(axes.flat, families.items(), strict=False):
        for number, name in enumerate((OURS, *OTHERS)):
            points = sorted(
                (
                    row["size"],
                    *(
                        row["results"][name][key] * 1e3
                        for key in ("median_s", "quartile1_s", "quartile3_s")
                    ),
                )
                for row in members
                if timed(row["results"].get(name))
            )
            if points:
                sizes, middle, low, high = zip(*points, strict=True)
                axis.plot(sizes, middle, marker="o", color=f"C{number}", label=name)
                axis.fill_between(sizes, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log", title=family, xlabel=members[0]["axis"], ylabel="ms")
        axis.xaxis.set_minor_formatter(NullFormatter())  # its labels overlap
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    figure.savefig(f"{out}.png", dpi=120)
    pyplot.close(figure)
    return [f"{out}.png"]


def short(rows: list[dict]) -> str:
    """A line a case: our time, and how many times that of the others."""
    lines = [
        "| case | ours, ms | ours / ours, pinned | ours / torch.func | ours / jax.jit "
        "| ours / naive MindSpore | in gradients |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ours = row["results"].get(OURS, {})
        if timed(ours):
            ratios = [
                f"{row['ratios'][name]:.2g}" if name in row["ratios"] else ""
                for name in (PINNED, TORCH, JAX, NAIVE)
            ]
            gradients = f"{ours['in_gradients']:.2f}" if ours.get("in_gradients", 1) != 1 else ""
            lines.append(
                "| "
                + " | ".join([row["case"], milliseconds(ours["median_s"]), *ratios, gradients])
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    runs = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    by_name: dict[str, dict] = {}
    for row in (row for run in runs for row in run["cases"]):
        before = by_name.get(row["case"], {"results": {}})["results"]
        if (
            NAIVE in before and NAIVE not in row["results"]
        ):  # thousands of times slower: another run will do
            row["results"][NAIVE] = before[NAIVE]
        by_name[row["case"]] = row
    rows = list(by_name.values())
    add_ratios(rows)
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = table(runs[-1], rows)
    commands = "; ".join("`" + " ".join(run["command"][4:]) + "`" for run in runs)
    note = "Where the last run had no naive recipe, its time is from the one before. "
    page = docs / "benchmark.md"
    rest = (
        page.read_text().partition("\n## ") if page.exists() else ("", "", "")
    )  # sections written by hand
    page.write_text(
        f"# Side by side\n\nMade by `bash ci/bench/side_by_side.sh` with {commands}. "
        f"{note}\n\n{text}\n" + "".join(rest[1:])
    )
    plot(docs / "benchmark", rows)
    print(short(rows))


if __name__ == "__main__":
    main()
