"""The table of all public functions in ci/coverage: complete, its committed results right, a sample of it run here."""
from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

COVERAGE = Path(__file__).resolve().parents[1] / "ci" / "coverage"
RESULTS = sorted((COVERAGE / "results").glob("*.json"))

# one call of each kind of trouble that the table has found: a wrong second derivative or batching rule of MindSpore, a
# gradient that writes in place, views, kernels in float32 only, layers, operators
SAMPLE = ["ops det(x) | x 2,3,3 -1 1", "nn nn.SmoothL1Loss(0.4)(x ** 3, y)", "Tensor min(x, 1)[0]",
          "mint permute(x, (1, 0))", "nn nn.ReflectionPad1d(1)(x) | x 1,2,3 -2 2",
          "ops ops: interpolate(x, size=(5,), mode='linear', align_corners=True) | x 1,1,3 -2 2",
          "python python: x ** y | x 2,3 .5 2", "F gelu(x, 'tanh')"]


def run(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(COVERAGE.parents[1])}
    return subprocess.run([sys.executable, str(COVERAGE / script), *arguments], env=environment, text=True,
                          capture_output=True, timeout=240)


def test_every_public_name_has_a_line_or_a_reason():
    done = run("names.py")
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    if ms.__version__.startswith("2.10."):
        assert done.stdout.count("without a line: none") == 8


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_nothing_in_the_committed_results_is_silently_wrong(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    done = run("report.py", str(copy))
    assert done.returncode == 0, done.stderr[-2000:]
    assert copy.with_suffix(".md").read_text() == path.with_suffix(".md").read_text()


def test_a_wrong_number_is_seen(tmp_path):
    row = {"line": "sin(x)", "head": "sin", "space": "ops", "topic": "elementwise", "dtype": "float64", "gradient": 0.0,
           "gradient_doubt": 0.0, "truth": "torch", "limit": 1e-6, "hvp": 1e-3, "hessian": 0.0, "loop": [],
           "third": 0.0}
    path = tmp_path / "0.json"
    path.write_text(json.dumps([row]))
    done = run("report.py", str(path))
    assert done.returncode == 1 and "ops sin(x)" in done.stderr


def test_a_sample_of_the_table_is_right_here():
    spec = importlib.util.spec_from_file_location("coverage_table", COVERAGE / "table.py")
    table = importlib.util.module_from_spec(spec)
    sys.modules["coverage_table"] = table  # its dataclass looks itself up there
    spec.loader.exec_module(table)
    lines = [call.line for call in table.calls()]
    pairs = [name.split(" ", 1) for name in SAMPLE]
    done = run("worker.py", *(f"{lines.index(line)}:{space}" for space, line in pairs))
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"item"')]
    assert [f"{row['space']} {row['line']}" for row in found] == SAMPLE, done.stderr[-2000:]
    for row in found:
        if "left_out" not in row:  # an older MindSpore may lack the kernel
            assert row["hvp"] < row["limit"] and row["hessian"] < row["limit"], row
            assert row["third"] < max(row["limit"], 1e-5), row


ALONE = """
import numpy as np
from mindspore import Tensor, jit, ops
def f(x): return ops.det(x)
def product(x, v):
    return ops.GradOperation(get_all=True, sens_param=True)(ops.GradOperation(get_all=True)(f))(x, (v,))[0]
x, v = Tensor(np.array([[1.0, 2.0], [0.5, 3.0]])), Tensor(np.array([[1.0, -1.0], [2.0, 0.5]]))
print(np.abs(jit(product)(x, v).asnumpy() - [[0.5, -2.0], [1.0, 1.0]]).max())
"""


def test_without_this_library_the_second_derivative_of_a_determinant_is_wrong(tmp_path):
    """det = ad - bc, so H (p, q, r, s) = (s, -r, -q, p). Once this fails, MindSpore has mended its rule."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    environment = {key: value for key, value in os.environ.items() if key != "MS_DEV_USE_PY_BPROP"}
    done = subprocess.run([sys.executable, str(script)], env=environment, cwd=tmp_path, text=True, capture_output=True)
    assert float(done.stdout) > 0.1, done.stderr[-1000:]
