"""After an error the next call is right; a refusal names its cause and costs little."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from children import child
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _errors
from mindspore_hessian.core import graph_dump

ROWS = Tensor(np.random.default_rng(0).standard_normal((3, 4)), ms.float32)
ONES = ops.ones_like(ROWS)
GOOD, BAD = Tensor([0, 1], ms.int32), Tensor([0, 70000], ms.int32)


def picked(x, index):
    return (x[index] ** 3).sum()


def gathered(x, index):
    return (ops.gather(x, index, 0) ** 3).sum()


@pytest.mark.parametrize(
    "transform",
    [
        lambda index: mh.hvp(gathered, (ROWS, index), ONES, 0),
        lambda index: mh.hessian_diag(picked)(ROWS, index),
    ],
    ids=["hvp", "hessian_diag"],
)
def test_an_index_out_of_range_is_an_error_and_the_next_call_right(transform):
    expected = 6 * ROWS.asnumpy() * [[1], [1], [0]]
    for _ in range(2):
        np.testing.assert_allclose(transform(GOOD).asnumpy(), expected, rtol=1e-5)
    with pytest.raises(
        mh.KernelError, match=r"index or a label out of range.*range \[0, 3\), but got 70000"
    ) as caught:
        transform(BAD)
    assert len(str(caught.value)) < 600
    np.testing.assert_allclose(transform(GOOD).asnumpy(), expected, rtol=1e-5)


class Embedded(nn.Cell):
    def __init__(self):
        super().__init__()
        self.table = Parameter(Tensor(np.arange(12.0).reshape(4, 3), ms.float32), name="table")

    def construct(self, words):
        return ops.gather(self.table, words, 0)


def test_an_operator_names_the_batch_and_stays_usable():
    net, loss = Embedded(), nn.MSELoss("sum")
    zeros = Tensor(np.zeros((2, 3), np.float32))
    good = mh.HessianOperator(
        net, loss, [(GOOD, zeros), (GOOD, zeros)], check_deterministic=False, progress=False
    )
    expected = np.repeat([4.0, 4.0, 0.0, 0.0], 3)
    np.testing.assert_allclose(good @ np.ones(12, np.float32), expected)
    bad = mh.HessianOperator(
        net, loss, [(GOOD, zeros), (BAD, zeros)], check_deterministic=False, progress=False
    )
    with pytest.raises(mh.KernelError, match="batch 1: .*70000"):
        bad @ np.ones(12, np.float32)
    np.testing.assert_allclose(good @ np.ones(12, np.float32), expected)


ONE = Tensor([1], ms.int32)


def aligned(x):
    return (ops.ctc_loss(x.reshape(1, 1, 2), ONE.reshape(1, 1), ONE, ONE)[0] ** 2).sum()


def long_and_aligned(x):
    for _ in range(60):
        x = ops.sin(x) * x + 0.1
    return aligned(x)


@pytest.mark.full_run
def test_the_user_s_line_of_a_missing_rule_costs_little(monkeypatch):
    """By the second derivative's graph it took four times as long as the refusal, and 115 MB of
    dumps.
    """
    sizes, read = [], graph_dump.read

    def measured(folder):
        sizes.append(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
        return read(folder)

    monkeypatch.setattr(graph_dump, "read", measured)
    x = Tensor([0.3, -0.6])
    with pytest.raises(
        mh.MissingRuleError, match=r"^primitive CTCLossV2Grad .* comes from test_dead_graphs.py:\d+"
    ):
        mh.hvp(long_and_aligned, x, x)
    assert len(sizes) == 1
    monkeypatch.setattr(
        "mindspore_hessian.core.cache._PATIENCE", 0.0
    )  # a large graph: the function alone is compiled
    with pytest.raises(mh.MissingRuleError, match=r"comes from test_dead_graphs.py:\d+"):
        mh.hvp(long_and_aligned, x, x)
    assert len(sizes) == 2
    assert max(sizes) < 2e7


def test_a_missing_kernel_is_not_a_missing_rule():
    matrix = Tensor(np.eye(3) + 2)

    def no_kernel(x):
        return ops.cholesky(x).sum()

    try:
        mh.hvp(no_kernel, matrix, matrix)
    except mh.MissingRuleError as err:
        assert "register_derivative" not in str(err) or "has no derivative" in str(err)
        assert "no kernel" in str(err)
    text = "Unsupported op [CholeskyGrad] on CPU, Please confirm"
    error = _errors.translate(
        RuntimeError(f"\n----------------\n- Kernel select failed:\n----------------\n{text}")
    )
    assert "no kernel" in str(error)
    assert text in str(error)
    assert "register" not in str(error)


WRITER = """
import os, time
from mindspore_hessian.core import graph_dump
with graph_dump.saved() as folder:
    (folder / "graph.ir").write_text("a dump")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_dumps_of_a_killed_process_are_removed(tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    with child(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "GLOG_v": "4"}
    ) as process:
        folder = Path(
            next(line for line in process.stdout if line.startswith(tempfile.gettempdir())).strip()
        )
        with graph_dump.saved():
            assert folder.exists(), "a process that lives keeps its own"
    with graph_dump.saved() as own:
        assert not folder.exists()
    assert not own.exists()


def first_paragraphs():
    rule = "-" * 20
    return {
        f"said\n\n{rule}\n- C++ Call Stack: (For framework "
        f"developers)\n{rule}\nmindspore/ccsrc/a.cc:1 f": "said",
        f"\n{rule}\n- Kernel select failed:\n{rule}\nUnsupported op": "Unsupported op",
        "said\n# In file /home/me/net.py:12\n# In file "
        "/x/site-packages/mindspore/ops/f.py:3": "said # In file",
    }


@pytest.mark.parametrize("text", first_paragraphs())
def test_the_part_of_a_message_that_helps(text):
    short = _errors.first_paragraph(text)
    assert short.startswith(first_paragraphs()[text])
    assert "\n" not in short


def test_a_refusal_is_quick():
    start = time.perf_counter()
    with pytest.raises(mh.MissingRuleError):
        mh.hvp(aligned, Tensor([0.3, 0.1]), Tensor([1.0, 1.0]))
    assert time.perf_counter() - start < 10  # under a second on an idle machine
