"""What mypy says of code that uses this library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "user_code"
pytest.importorskip("mypy")


@pytest.fixture(scope="module")
def complaints():
    """(file name, line) -> what mypy says."""
    root = FOLDER.parents[1]
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            root / "pyproject.toml",
            "--no-error-summary",
            *sorted(FOLDER.glob("*.py")),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not said.stderr, said.stderr
    found = {}
    for line in said.stdout.splitlines():
        file, number, text = line.split(":", 2)
        found.setdefault((Path(file).name, int(number)), text)
    return found


def test_code_as_users_write_it_is_accepted(complaints):
    assert not {place: text for place, text in complaints.items() if place[0] == "accepted.py"}


def test_mistakes_are_seen(complaints):
    lines = (FOLDER / "refused.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# no")}
    seen = {number for file, number in complaints if file == "refused.py"}
    assert not [lines[number - 1] for number in sorted(wrong - seen)]
    assert seen <= wrong
