"""The table of rules (calls.py): the lines that our rules are for, run here; ci/coverage.sh runs
all of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import calls
import check
import mindspore as ms
import numpy as np
import pytest
import special_points
from attributes_table import ROWS as ATTRIBUTES
from full import FULL, some

import mindspore_hessian as mh
from mindspore_hessian import _compat, rules

pytestmark = pytest.mark.filterwarnings(
    "ignore::mindspore_hessian.RecompileWarning"
)  # many small functions
COVERAGE = Path(__file__).resolve().parents[2] / "ci" / "coverage"
TABLE = calls.calls()
RIGHT = [call for call in TABLE if call.rules and "refused" not in call.more]
REFUSED = [call for call in TABLE if "refused" in call.more]
ELSEWHERE = {
    "ConstantPadND",  # see test_negative_padding.py
    "SeluGrad",
    "MishGradExt",
    "LogSigmoidGrad",  # without a kernel on CPU, as the next: see test_derivatives.py
    "MultilabelMarginLoss",
    "IndexFill",
    "IndexPut",
    "Scatter",
    "TensorScatterDiv",
    "TensorScatterElements",
    "TensorScatterMul",
    "TensorScatterUpdate",  # see test_repeated_indices.py
    "Betainc",
    "Zeta",  # see test_derivatives.py
}


def checked(call, dtype, folder):
    if call.since > _compat.MS_VERSION:
        pytest.skip("no CPU kernel in this version")
    return check.Check(call, check.spaces(call)[0], dtype, folder)


def golden(call, order):
    return check.GOLDEN[f"{call.key}/{order}"]


def runs(lines, every=1):
    """(call, dtype) of the lines; in the full run in float32 too."""
    return [
        pytest.param(call, dtype, id=f"{call.line.split(' | ')[0]}-{dtype}")
        for call in some(lines, every=every)
        for dtype in (["float64"] if "in" not in call.more else [])
        + ["float32"] * (FULL or "in" in call.more)
    ]


@pytest.mark.parametrize(("call", "dtype"), runs(RIGHT))
def test_derivatives_are_torchs(call, dtype, tmp_path):
    """In one graph: the gradient, the product and, for every third line, the third derivative."""
    third = "to" not in call.more and (FULL or RIGHT.index(call) % 3 == 0)
    found, limit = checked(call, dtype, tmp_path).orders(3 if third else 2), call.limit(dtype)
    for order, value in found.items():
        error = check.error_of(value, golden(call, order))
        assert error < limit * (10 if order == "third" else 1), (
            f"{order}: relative error {error:.1e}"
        )


@pytest.mark.parametrize(
    ("call", "dtype"), runs([call for call in RIGHT if "to" not in call.more], 12)
)
def test_a_matrix_in_one_batch_is_torchs(call, dtype, tmp_path):
    """With no primitive that has no batching rule, unless the line says so."""
    line = checked(call, dtype, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", mh.FallbackWarning)
        error = check.error_of(line.hessian_times_vector(), golden(call, "hvp"))
    loops = " ".join(str(one.message) for one in caught if one.category is mh.FallbackWarning)
    assert call.more["loops"] in loops if "loops" in call.more else not loops
    assert error < 10 * call.limit(dtype), f"relative error {error:.1e}"


@pytest.mark.parametrize("call", REFUSED, ids=lambda call: call.line.split(" | ")[0])
def test_what_cannot_be_right_is_refused(call, tmp_path):
    with pytest.raises(mh.MissingRuleError, match=call.more["refused"]):
        checked(call, "float64", tmp_path).hvp([call.inputs[name] for name in call.free])


def test_every_rule_of_ours_has_a_line_and_every_line_a_golden_value():
    ours = {
        line.primitive
        for line in rules.status()
        if line.kind == "derivative" and line.active == "ours"
    }
    tested = {name for row in (*TABLE, *ATTRIBUTES) for name in row.rules}
    assert ours == tested | ELSEWHERE | special_points.RULES
    for call in RIGHT:
        for order in ("gradient", "hvp", "third"):
            assert np.isfinite(golden(call, order)).all(), call.line


def run(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(COVERAGE.parents[1])}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment,
        text=True,
        capture_output=True,
        timeout=240,
    )


def test_every_public_name_has_a_line_or_a_reason():
    done = run(COVERAGE / "names.py")
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    if ms.__version__.startswith("2.10."):
        assert done.stdout.count("without a line: none") == 8


def test_a_wrong_number_is_seen(tmp_path):
    row = {
        "line": "sin(x)",
        "head": "sin",
        "space": "ops",
        "topic": "elementwise",
        "dtype": "float64",
        "gradient": 0.0,
        "gradient_doubt": 0.0,
        "truth": "torch",
        "limit": 1e-6,
        "hvp": 1e-3,
        "hessian": 0.0,
        "loop": [],
        "third": 0.0,
    }
    path = tmp_path / "0.json"
    path.write_text(json.dumps([row]))
    done = run(COVERAGE / "report.py", str(path))
    assert done.returncode == 1 and "ops sin(x)" in done.stderr


# lines of which the worker finds the truth by differences, in a layer and a namespace, and one with
# torch's
SAMPLE = ["nn nn.SmoothL1Loss(0.4)(x ** 3, y)", "Tensor min(x, 1)[0]"]


@pytest.mark.full_run
def test_the_worker_of_the_whole_table_finds_what_is_right():
    lines = [call.line for call in TABLE]
    pairs = [name.split(" ", 1) for name in SAMPLE]
    done = run(check.__file__, *(f"{lines.index(line)}:{space}" for space, line in pairs))
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"item"')]
    assert [f"{row['space']} {row['line']}" for row in found] == SAMPLE, done.stderr[-2000:]
    for row in found:
        assert row["hvp"] < row["limit"] and row["hessian"] < row["limit"], row
        assert row["third"] < max(10 * row["limit"], 1e-5), row


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
    """det = ad - bc, so H (p, q, r, s) = (s, -r, -q, p). Once this fails, MindSpore has mended its
    rule.
    """
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    environment = {key: value for key, value in os.environ.items() if key != "MS_DEV_USE_PY_BPROP"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=tmp_path, text=True, capture_output=True
    )
    assert float(done.stdout) > 0.1, done.stderr[-1000:]
