"""The notebooks in examples/ hold the outputs of their present source, and run; each of them checks its
own numbers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from full import FULL

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "ci"))
import notebooks  # noqa: E402

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
QUICK = ("05_influence",)
SECONDS = 240  # that a cell may take on a busy machine


def name_of(path: Path) -> str:
    return path.stem


def test_the_notebooks_are_there():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 12)]
    assert set(QUICK) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_holds_the_outputs_of_its_source(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"][notebooks.KEY] == notebooks.digest(notebook), (
        f"its code has changed: bash ci/notebooks.sh {path.stem}"
    )
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][0]["cell_type"] == "markdown"
    kinds = {kind for kind in sum(kinds_of(notebook), ()) if kind}
    assert "stdout" in kinds <= {"stdout", *notebooks.KEPT}
    assert (notebooks.PICTURE in kinds) == ("plot" in path.read_text())


def kinds_of(notebook):
    """What each code cell gives: the kind of each output."""
    return [
        tuple(
            next((kind for kind in notebooks.KEPT if kind in one.get("data", ())), one.get("name"))
            for one in cell["outputs"]
            if one.get("name") != "stderr"
        )
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[]
            if path.stem in QUICK
            else pytest.mark.skipif(
                not FULL, reason="takes up to a minute; MINDSPORE_HESSIAN_FULL=1 runs it"
            ),
        )
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    for needed in ("nbclient", "nbformat", "ipykernel", "matplotlib", "sklearn"):
        pytest.importorskip(
            needed, reason=f"{needed} is not installed: pip install mindspore-hessian[examples]"
        )
    import nbformat

    monkeypatch.delenv("MS_DEV_USE_PY_BPROP", raising=False)  # this process has it from the library
    for name in ("PYTHONPATH", "MPLBACKEND"):  # which `run` sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    stored = kinds_of(notebook)
    notebooks.run(notebook, str(tmp_path), SECONDS)
    assert kinds_of(notebook) == stored
