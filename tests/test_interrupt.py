"""Ctrl-C in the midst of our work, and SIGTERM, each in a process of its own that MindSpore's
handler would end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from children import child
from tqdm import tqdm

from mindspore_hessian import trace
from mindspore_hessian._interrupt import interruptible

JOB = Path(__file__).with_name("interrupt_job.py")
CASES = [
    "trace",
    "trace with a bar",
    "product",
    "gradient",
    "transform",
    "compiling",
    "reading data",
    "caught",
    "monitor",
    "diagnose",
    "report",
    "plan",
    *(["loss line"] if importlib.util.find_spec("matplotlib") else []),
    "numpy",
    "checkpoint",
    "sleep",
]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="MindSpore has no handler of SIGINT elsewhere"
)


@pytest.fixture(scope="module", autouse=True)
def ctrl_c_is_heard():
    """Also where these tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def python(*arguments, **environment):
    """A Python that has this package, without MindSpore's log."""
    root = str(JOB.parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {
        "arguments": [sys.executable, *arguments],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": {
            **os.environ,
            "PYTHONPATH": paths,
            "GLOG_v": "4",
            "MPLBACKEND": "Agg",
            **environment,
        },
    }


def ended(*arguments, **environment):
    """(exit status, stdout, stderr) of such a process."""
    with child(**python(*arguments, **environment), seconds=200) as process:
        out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("interrupt") / "state.npz"
    status, out, err = ended(str(JOB), *CASES, CHECKPOINT=str(checkpoint))
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}, status, err, checkpoint


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c_raises_keyboard_interrupt_and_leaves_all_as_it_was(case, found):
    lines, status, err, _ = found
    assert case in lines, f"exit status {status}: {err[-2000:]}"
    line = lines[case]
    assert line["raised"] == "KeyboardInterrupt" and line["changed"] == [] and line["next"], line
    assert 0 <= line["seconds"] < 3, line


def test_the_process_goes_on_to_its_end_and_leaves_no_files(found):
    _, status, _, checkpoint = found
    assert status == 0
    assert os.listdir(checkpoint.parent) in ([], [checkpoint.name])


ALIVE = """
import os, signal, sys, threading, time, numpy as np
import mindspore_hessian as mh
from mindspore import nn, ops
op = mh.HessianOperator(nn.Dense(4, 3), nn.MSELoss(), [(ops.ones((5, 4)), ops.ones((5, 3)))] * 3, progress=False)
{setting}
print("ready", flush=True)
try:
    mh.trace(op, max_products=10 ** 7, tol=1e-12, progress=False)
except BaseException as err:
    print("raised", type(err).__name__, flush=True)
print("goes on", flush=True)
"""


@pytest.mark.parametrize(
    ("setting", "sent", "status", "said"),
    [
        ("", signal.SIGTERM, -signal.SIGTERM, []),
        (
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))",
            signal.SIGTERM,
            0,
            ["raised SystemExit", "goes on"],
        ),
        (
            "def own(number, frame):\n    print('own', number, flush=True)\n    raise LookupError\n"
            "signal.signal(signal.SIGINT, own)",
            signal.SIGINT,
            0,
            ["own 2", "raised LookupError", "goes on"],
        ),
    ],
    ids=["SIGTERM from outside", "SIGTERM with a handler", "SIGINT with a handler"],
)
def test_signals_do_what_they_do_without_us(setting, sent, status, said):
    with child(**python("-c", ALIVE.format(setting=setting))) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.5)
        process.send_signal(sent)
        out, err = process.communicate()
    assert (process.returncode, out.splitlines()) == (status, said), err[-2000:]


class Matrix:
    """An operator that says what the handlers are while it multiplies."""

    shape, dtype = (100, 100), np.dtype(np.float64)

    def __init__(self, then=None):
        self.seen, self.then = set(), then

    def __matmul__(self, block):
        self.seen.add((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))
        if self.then is not None:
            raise self.then
        return 2 * block


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("then", [None, ZeroDivisionError()])
def test_handlers_are_ours_inside_only(then):
    before, op = handlers(), Matrix(then)
    try:
        trace(op, max_products=20, progress=False)
    except ZeroDivisionError:
        assert then is not None
    assert handlers() == before and before not in op.seen and len(op.seen) == 1


def test_another_thread_sets_no_handlers():
    before, op = handlers(), Matrix()
    thread = threading.Thread(
        target=trace, args=(op,), kwargs={"max_products": 20, "progress": False}
    )
    thread.start()
    thread.join()
    assert op.seen == {before} and handlers() == before


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_where_python_has_no_handler_none_is_set(ignored):
    before = signal.signal(signal.SIGINT, ignored)
    try:
        op = Matrix()
        trace(op, max_products=20, progress=False)
        assert {sigint for sigint, _ in op.seen} == {ignored} and signal.getsignal(
            signal.SIGINT
        ) == ignored
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_set_inside_stays():
    before = handlers()

    def own(number, frame):
        raise AssertionError

    try:
        with interruptible, interruptible:
            signal.signal(signal.SIGINT, own)
        assert signal.getsignal(signal.SIGINT) is own and handlers()[1] == before[1]
    finally:
        signal.signal(signal.SIGINT, before[0])


def test_an_interrupt_waits_until_things_are_put_back():
    done = []

    class PutsBack:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            signal.raise_signal(signal.SIGINT)
            done.append("put back")

    with pytest.raises(KeyboardInterrupt), interruptible:
        with PutsBack():
            done.append("inside")
        for _ in range(200):
            time.sleep(0.01)
    assert done == ["inside", "put back"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_bars_are_closed_by_an_error_and_say_nothing_after(error, capfd):
    with pytest.raises(type(error)):
        trace(Matrix(error), max_products=20, progress=True)
    assert not len(tqdm._instances)
    capfd.readouterr()
    trace(Matrix(), max_products=20, progress=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("value", "shown"), [("1", False), ("0", True), ("", True)])
def test_tqdm_disable_is_heeded(value, shown, monkeypatch, capfd):
    monkeypatch.setenv("TQDM_DISABLE", value)
    trace(Matrix(), max_products=20, progress=True)
    assert ("trace" in capfd.readouterr().err) is shown


NUMPY_2 = "import numpy\nnumpy.__version__ = '2.0.1'\nimport mindspore_hessian{module}\n"


@pytest.mark.parametrize("module", ["", ".device", ".estimators"])
def test_numpy_2_is_an_error_that_says_what_to_do_before_mindspore_is_imported(module):
    test = NUMPY_2.format(module=module) + "print('imported')"
    _, out, err = ended(
        "-c",
        f"import sys\ntry:\n    exec({test!r})\nexcept ImportError as err:\n"
        "    print('mindspore' in sys.modules, err)",
    )
    assert out.startswith("False mindspore_hessian cannot work with numpy 2.0.1"), err
    assert 'pip install "numpy<2"' in out and len(out.splitlines()) == 1
