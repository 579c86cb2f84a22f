"""The notebooks in examples/ hold no outputs, and run; each of them checks its own numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from full import FULL

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
QUICK = ("05_influence",)
SECONDS = 240  # that a cell may take on a busy machine


def name_of(path: Path) -> str:
    return path.stem


def test_the_notebooks_are_there():
    assert {path.stem[:2] for path in NOTEBOOKS} == {
        "01",
        "02",
        "03",
        "04",
        "05",
        "06",
        "07",
        "08",
        "09",
    }
    assert set(QUICK) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_is_stripped(path):
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["cells"][0]["cell_type"] == "markdown"


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
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MS_DEV_USE_PY_BPROP", raising=False)  # this process has it from the library
    monkeypatch.setenv(
        "MPLBACKEND", "module://matplotlib_inline.backend_inline"
    )  # not the Agg of other tests
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    printed = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert any(output.output_type == "stream" and output.name == "stdout" for output in printed)
