"""Run the notebooks of examples/ and store what they print and draw.

A stored notebook says of which source its outputs are (`digest`); tests/test_examples.py compares.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
KEY = "outputs_of"  # in a notebook's metadata: the digest of the source that its outputs are of
PICTURE = "image/png"
KEPT = (PICTURE, "text/html", "text/plain")


def digest(notebook: dict) -> str:
    """Of the source of the code cells."""
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()[:16]


def run(notebook, folder: str, seconds: int = 600) -> None:
    """Execute all cells in place, in `folder`, with the package of this tree."""
    import nbclient

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    nbclient.NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": folder}},
        record_timing=False,
    ).execute()


def tidy(notebook) -> None:
    """Leave what a reader sees: no warnings of other libraries, no progress, no widgets."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for one in cell.outputs:
            if "data" in one:
                one["data"] = {kind: one["data"][kind] for kind in KEPT if kind in one["data"]}
            if PICTURE in one.get("data", {}):
                one["data"][PICTURE] = lighter(one["data"][PICTURE])
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def lighter(picture: str) -> str:
    """A picture in base64, in 256 colours where that makes it smaller."""
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).quantize(256).save(out, "PNG", optimize=True)
    return min(picture, base64.b64encode(out.getvalue()).decode(), key=len)


def store(path: Path) -> None:
    """Run one and write it back."""
    import nbformat

    notebook, start = nbformat.read(path, as_version=4), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, folder)
    tidy(notebook)
    notebook.metadata[KEY] = digest(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(one.stem for one in EXAMPLES.glob("*.ipynb")):
        store(EXAMPLES / f"{name}.ipynb")
