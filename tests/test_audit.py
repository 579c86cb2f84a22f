"""`audit`: what a second derivative is made of, whose rules it uses, and what is zero; and its
command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian.__main__ import main
from mindspore_hessian.core import graph_dump
from mindspore_hessian.tools.audit import PROOF, RANDOM, audit

X = Tensor(np.linspace(-1, 1.2, 12).reshape(3, 4).astype(np.float32))
W = Parameter(Tensor(np.sin(np.arange(20)).reshape(4, 5).astype(np.float32)), name="w")
LABELS = Tensor(np.array([0, 2, 1], np.int32))


def line_of(text):
    """Where a text stands in this file, as a report names it."""
    lines = Path(__file__).read_text().splitlines()
    return f"test_audit.py:{[number for number, line in enumerate(lines, 1) if text in line][0]}"


def by_name(report):
    return {row.primitive: row for row in report.rows}


def smooth(x):
    y = ops.matmul(x, W)
    return ops.tanh(y).sum()  # smooth


def classes(x):
    y = ops.log_softmax(ops.matmul(x, W))  # log_softmax
    return -ops.gather_elements(y, 1, LABELS.reshape(3, 1)).sum()  # gather


TARGETS, THREE = Tensor([[1, 2]], ms.int32), Tensor([3], ms.int32)


def aligned(x):
    y = ops.log_softmax(x.reshape(3, 1, 4) * 2)
    return (ops.ctc_loss(y, TARGETS, THREE, THREE - 1)[0] ** 2).sum()  # CTC


def rectified(x):
    return ops.matmul(ops.relu(ops.matmul(x, W)), ops.transpose(W, (1, 0))).sum()


def branching(x):
    if x.sum() > 0:  # a branch
        return (x**3).sum()
    return ops.tanh(x).sum()


def vector(x):
    return x * 2


@pytest.fixture(scope="module", autouse=True)
def nothing_changes(tmp_path_factory):
    """Context, environment, MindSpore's random state and the folder for temporary files, over all
    tests here.
    """
    own, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp("temporary"))

    def state():
        folders = {
            name
            for name in os.listdir(tempfile.gettempdir())
            if name.startswith("mindspore_hessian_audit_")
        }
        return (
            ms.get_context("save_graphs"),
            ms.get_context("save_graphs_path"),
            ms.get_context("mode"),
            {
                name: value
                for name, value in os.environ.items()
                if name.startswith("MS_DEV_") and "GRAPH" in name
            },
            ms.get_rng_state().asnumpy().tolist(),
            folders,
        )

    before = state()
    yield
    after = state()
    tempfile.tempdir = own
    assert after == before


def test_what_is_there_and_whose_it_is():
    info, drawn = mh.cache_info(), np.random.get_state()[1].tolist()
    report = audit(smooth, X)
    assert mh.cache_info() == info and np.random.get_state()[1].tolist() == drawn
    rows = by_name(report)
    assert report.compiles == (True, True) and not report.missing and not report.structurally_zero
    assert (rows["Sigmoid"].derivative, rows["TanhGrad"].derivative) == ("mindspore", "ours")
    assert (rows["MatMulExt"].batching, rows["Tanh"].batching) == ("ours", "mindspore")
    assert rows["TanhGrad"].sources == (line_of("# smooth"),)
    assert (
        str(report).splitlines()[-1] == "verdict: hvp and hessian compile, and no rule is missing"
    )


def test_rules_of_ours():
    report = audit(classes, X)
    rows = by_name(report)
    assert rows["GatherDGradV2"].derivative == rows["LogSoftmaxGrad"].derivative == "ours"
    assert rows["LogSoftmaxGrad"].sources == (line_of("# log_softmax"),)
    assert rows["GatherDGradV2"].sources == (line_of("# gather"),)
    assert all(row.derivative != "missing" for row in report.rows) and report.compiles.hvp


def test_a_missing_derivative():
    report = audit(aligned, X)
    row = by_name(report)["CTCLossV2Grad"]
    assert (
        report.rows[0] is row and row.derivative == "missing" and row.sources == (line_of("# CTC"),)
    )
    assert "register_derivative('CTCLossV2Grad'" in row.remedy
    assert report.compiles == (False, False) and not report.structurally_zero
    assert "refused: no derivative of CTCLossV2Grad" in report.summary()
    with pytest.raises(mh.MissingRuleError, match="CTCLossV2Grad"):
        mh.hvp(aligned, X, X)


@pytest.mark.full_run
def test_relu_is_structurally_zero_in_its_inputs_only():
    report = audit(rectified, X)
    assert report.structurally_zero and report.variables[0].evidence == PROOF
    assert "structurally zero" in report.summary() and report.summary().endswith(
        "the Hessian is zero"
    )
    assert not mh.hvp(rectified, X, X).asnumpy().any()
    report = audit(rectified, X, weights=W)
    assert [(v.name, v.zero) for v in report.variables] == [
        ("weight 'w'", False)
    ] and not report.structurally_zero
    report = audit(rectified, X, 0, weights=W)
    assert [v.zero for v in report.variables] == [False, False]


def test_zero_without_a_proof():
    def odd(x):
        return (ops.sin(x) + ops.sin(-x)).sum()

    report = audit(odd, X)
    assert (
        report.structurally_zero
        and report.variables[0].evidence == RANDOM
        and "no proof" in report.summary()
    )


def test_control_flow_is_not_batched():
    report = audit(branching, X)
    row = by_name(report)["Switch"]
    assert (row.batching, row.sources, report.rows[0]) == ("missing", (line_of("# a branch"),), row)
    assert report.compiles == (True, False) and "ops.where" in row.remedy
    with pytest.warns(mh.FallbackWarning):
        mh.hessian(branching)(X)


def test_weights_of_a_network():
    net = nn.SequentialCell(nn.Dense(4, 3), nn.Tanh(), nn.Dense(3, 2))
    loss = nn.CrossEntropyLoss()
    report = audit(lambda x, y: loss(net(x), y), (X, LABELS % 2), weights=net.trainable_params())
    assert (
        len(report.variables) == 4
        and report.compiles.hvp
        and not any(v.zero for v in report.variables)
    )
    assert "weight '2.weight' and 1 more" in " ".join(str(report).split())
    assert (
        by_name(report)["TanhGrad"].sources[0].startswith("test_audit.py:")
    )  # a lambda has its own line
    assert max(map(len, str(report).splitlines())) <= 120


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: audit(3, X), TypeError, "fn must be callable"),
        (lambda: audit(vector, X), ValueError, "one number"),
        (lambda: audit(smooth, X, 1), ValueError, "out of range"),
        (
            lambda: audit(smooth, X, weights=Parameter(X, name="other")),
            ValueError,
            "'other' is not in the function",
        ),
    ],
)
def test_refused_as_hvp_refuses(call, error, text):
    with pytest.raises(error, match=text):
        call()
    assert not ms.get_context("save_graphs")


def test_a_text_that_is_not_understood():
    assert graph_dump.parse("nothing").lines() == {}
    graph = graph_dump.parse(
        "# IR entry: @a\nsubgraph @a() {\n  %0(x) = PrimFunc_Exp(%para1_x)\n  what is this\n"
        "  %1(y) = %0[@b](%0)\n  Return(%1)\n}\n"
    )
    assert list(graph.lines()) == ["Exp"] and graph.differentiated({"%para1_x"}) == {"Exp"}
    assert graph.constant_outputs({"%para1_x"}) == []


def test_the_command(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert main(["audit", "test_audit:aligned", "--shape", "3,4"]) == 1
    assert "CTCLossV2Grad" in capsys.readouterr().out
    assert main(["audit", "test_audit:no_such_function"]) == 1
    assert "no_such_function" in capsys.readouterr().out


@pytest.mark.full_run
def test_the_command_as_a_program(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "model.py").write_text(
        "from mindspore import nn\nnet = nn.Dense(4, 1)\n\n\ndef loss(x, y):\n"
        "    return ((net(x).sum(-1) - y) ** 2).mean()\n"
    )
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        [
            sys.executable,
            "-m",
            "mindspore_hessian",
            "audit",
            "model:loss",
            "--shape",
            "3,4",
            "--shape",
            "3",
            "--weights",
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.returncode == 0, child.stdout + child.stderr[-2000:]
    assert "loss (model.py:5)" in child.stdout and "model.py:6" in child.stdout
    assert {path.name for path in folder.iterdir()} <= {"model.py", "__pycache__"}


def test_a_primitive_without_a_forward_rule_is_named():
    x = Tensor(np.full((2, 3), 0.5, np.float32))
    report = audit(lambda a: ops.cdist(a * a, a, float("inf")).sum(), x)
    assert report.without_forward == "Cdist"
    assert "Cdist has no forward rule" in " ".join(str(report).split())
    smooth = audit(lambda a: ops.tanh(a).sum(), x)
    assert smooth.without_forward == "" and "Forward" not in str(smooth)
