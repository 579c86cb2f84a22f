"""The examples in README and docs run, and what they point at is there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
from full import FULL

ROOT = Path(__file__).parent.parent
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if ">>> " in path.read_text()
]


TWICE = ("influence",)  # pages about what a notebook that runs by default shows, too


@pytest.mark.parametrize(
    "page", [page for page in PAGES if FULL or page.stem not in TWICE], ids=lambda path: path.stem
)
def test_examples_run(page):
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 1
    assert result.failed == 0


def test_the_readme_is_short_and_names_files_that_are_there():
    text = (ROOT / "README.md").read_text()
    assert len(text) <= 7 * 1024
    named = re.findall(r"`((?:docs|ci|examples)/[\w./]*)`|\]\(([^)#]+)\)", text)
    missing = [name for pair in named for name in pair if name and not (ROOT / name).exists()]
    assert len(named) > 5
    assert not missing


def test_each_public_name_is_on_a_page_of_the_api():
    import mindspore_hessian as mh

    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"::: mindspore_hessian\.([\w.]+)", pages))
    assert set(mh.__all__) <= {name.split(".")[0] for name in shown}
