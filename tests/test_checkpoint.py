"""Checkpoints: files that are not ours or damaged are named and left alone, before any work; a kill
loses nothing.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from children import child
from full import FULL
from mindspore import nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _checkpoint
from mindspore_hessian._checkpoint import read, write

MATRIX = np.random.RandomState(0).randn(60, 60)
MATRIX = MATRIX + MATRIX.T


class Counting:
    """A matrix that counts its products."""

    shape, dtype, layers = (
        (60, 60),
        np.dtype(np.float64),
        {"a": np.arange(30), "b": np.arange(30, 60)},
    )

    def __init__(self, matrix=MATRIX):
        self.matrix, self.products = matrix, 0

    def __matmul__(self, block):
        self.products += 1
        return self.matrix @ block


POSITIVE = MATRIX @ MATRIX + np.eye(60)
ESTIMATORS = {
    "eigsh": lambda op, file: mh.eigsh(op, 2, checkpoint=file),
    "negative_curvature": lambda op, file: mh.negative_curvature(op, checkpoint=file),
    "trace": lambda op, file: mh.trace(op, max_products=40, checkpoint=file),
    "diagonal": lambda op, file: mh.diagonal(op, max_products=16, checkpoint=file),
    "frobenius_norm": lambda op, file: mh.frobenius_norm(op, max_products=16, checkpoint=file),
    "density": lambda op, file: mh.spectral_density(op, 2, 8, checkpoint=file),
    "solve": lambda op, file: mh.solve(op, np.ones(60), checkpoint=file),
    "logdet": lambda op, file: mh.logdet(op, max_products=128, checkpoint=file),
    "condition_number": lambda op, file: mh.condition_number(op, checkpoint=file),
    "layer_report": lambda op, file: mh.layer_report(op, 4, checkpoint=file),
}


def saved(save, *args, **arrays):
    buffer = io.BytesIO()
    save(buffer, *args, **arrays)
    return buffer.getvalue()


def ours(tmp_path):
    write(str(tmp_path / "ours"), a=np.arange(1000.0))
    return (tmp_path / "ours").read_bytes()


FOREIGN = {
    "empty": lambda tmp_path: b"",
    "text": lambda tmp_path: b"hello, I am somebody's thesis",
    "cut short": lambda tmp_path: ours(tmp_path)[:3000],
    "a byte changed": lambda tmp_path: (
        (b := ours(tmp_path))[:5000] + bytes([b[5000] ^ 1]) + b[5001:]
    ),
    "empty zip": lambda tmp_path: b"PK\x05\x06" + bytes(18),
    "a plain array": lambda tmp_path: saved(np.save, np.ones(3)),
    "pickled objects": lambda tmp_path: saved(np.savez, a=np.array([{}], object)),
    "arrays of others": lambda tmp_path: saved(np.savez, a=1),
    "a list of contents that is none": lambda tmp_path: saved(
        np.savez, _contents=np.array("[1, 2]")
    ),
    "a zip of texts": lambda tmp_path: zipped(b"text"),
}


def zipped(content):
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("_contents.npy", content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def product_operator():
    data = [(ops.ones((5, 4)), ops.ones((5, 3)))] * 3
    return mh.HessianOperator(nn.Dense(4, 3), nn.MSELoss(), data, progress=False)


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_ours_is_named_and_left_alone(kind, tmp_path, product_operator):
    content, file = FOREIGN[kind](tmp_path), tmp_path / "state"
    file.write_bytes(content)
    calls = {
        **{name: lambda call=call: call(op, file) for name, call in ESTIMATORS.items()},
        "product": lambda: product_operator.product(np.ones(15), checkpoint=file),
    }
    for name, call in calls.items():
        op = Counting()
        with pytest.raises(ValueError, match="is no checkpoint of ours, or is damaged") as raised:
            call()
        assert repr(str(file)) in str(raised.value) and "elete" not in str(raised.value), name
        assert op.products == 0 and file.read_bytes() == content


PLACES = [
    (lambda path: path / "missing" / "state", ValueError, "is in a folder that does not exist"),
    (lambda path: path, ValueError, "is a folder, or no file"),
    (lambda path: str(path) + "/", ValueError, "is a folder, or no file"),
    (lambda path: "", ValueError, "is a folder, or no file"),
    (lambda path: path / ("x" * 300), ValueError, "cannot be written .File name too long"),
    (lambda path: 3, TypeError, "checkpoint must be a file name or None, but got 3"),
    (lambda path: True, TypeError, "checkpoint must be a file name or None, but got True"),
]


@pytest.mark.parametrize(
    ("place", "kind", "message"), PLACES, ids=[message for *_, message in PLACES]
)
def test_a_place_where_no_file_can_be_is_an_error_before_the_work(
    place, kind, message, tmp_path, product_operator
):
    for name, call in ESTIMATORS.items():
        op = Counting()
        with pytest.raises(kind, match=message):
            call(op, place(tmp_path))
        assert op.products == 0, name
    with pytest.raises(kind, match=message):
        product_operator.product(np.ones(15), checkpoint=place(tmp_path))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("what", "mode", "message"),
    [
        ("state", 0o000, "cannot be read .Permission denied"),
        (".", 0o500, "cannot be written .Permission denied"),
    ],
)
def test_files_and_folders_without_permission(what, mode, message, tmp_path, monkeypatch):
    """Root may do everything, so the refusal is made up there."""
    file = tmp_path / "state"
    write(str(file), a=1)
    (tmp_path / what).chmod(mode)
    if os.getuid() == 0:

        def refusing(name, how="r"):
            if (what == "state") == (how == "rb"):
                raise PermissionError(13, "Permission denied", name)
            return io.open(name, how)  # noqa: UP020

        monkeypatch.setattr(_checkpoint, "open", refusing, raising=False)
    try:
        op = Counting()
        with pytest.raises(ValueError, match=message):
            mh.trace(op, checkpoint=file, progress=False)
        assert op.products == 0
    finally:
        (tmp_path / what).chmod(0o700)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_missing_or_changed_member_is_named(name, tmp_path):
    file, matrix = tmp_path / "state", POSITIVE if name in ("solve", "logdet") else MATRIX
    ESTIMATORS[name](Counting(matrix), file)
    if not file.exists():
        pytest.skip("this call was over before the first checkpoint")
    with np.load(file) as stored:
        state = dict(stored)
    assert {"_contents", "_arguments", "_probe"} < state.keys()
    for key, value in state.items():
        others = {k: v for k, v in state.items() if k != key}
        for changed in (
            {},
            {key: np.asarray(value)[None]},
            {key: np.zeros(np.shape(value), np.int8)},
        ):
            np.savez(file.with_suffix(".npz"), **others, **changed)
            os.replace(file.with_suffix(".npz"), file)
            op = Counting(matrix)
            with pytest.raises(
                ValueError, match="is no checkpoint of ours, or is damaged"
            ) as raised:
                ESTIMATORS[name](op, file)
            assert op.products == 0 and (key == "_contents" or repr(key) in str(raised.value))


def test_checkpoints_of_products_and_of_estimators_are_not_mistaken(tmp_path, product_operator):
    file = tmp_path / "state"
    mh.trace(MATRIX, max_products=40, checkpoint=file)
    with pytest.raises(ValueError, match="is of another product"):
        product_operator.product(np.ones(15), checkpoint=file)
    write(str(file), token="t", done=1, total=np.ones(3))
    with pytest.raises(ValueError, match=r"is of op.product\(\), not of trace"):
        mh.trace(MATRIX, max_products=40, checkpoint=file)


def test_a_later_chunk_s_foreign_file_is_seen_before_the_first_is_computed(
    tmp_path, product_operator, monkeypatch
):
    (tmp_path / "state.2").write_text("foreign")
    monkeypatch.setattr(product_operator, "chunk_size", 2)
    monkeypatch.setattr(product_operator.risk, "products", None)
    with pytest.raises(ValueError, match=r"state.2' is no checkpoint"):
        product_operator.product(np.ones((15, 4)), checkpoint=tmp_path / "state")


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    file = str(tmp_path / "state")
    write(file, a=1)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="state' cannot be written .No space left"):
        write(file, a=2)
    assert read(file)["a"] == 1 and os.listdir(tmp_path) == ["state"]


def test_what_is_written_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append((a, b)), replace(a, b)))
    for _ in range(2):
        write(str(tmp_path / "state"), a=1)
    assert calls[0] == calls[2] == "fsync" and calls[1][0] != calls[3][0]
    assert all(
        Path(a).parent == tmp_path and str(os.getpid()) in a and b == str(tmp_path / "state")
        for a, b in calls[1::2]
    )


WRITER = """
import importlib.util, sys, numpy as np
spec = importlib.util.spec_from_file_location("checkpoint", {module!r})
checkpoint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checkpoint)
print("ready", flush=True)
number = 0
while True:
    number += 1
    checkpoint.write({file!r}, number=number, data=np.full(200000, number))
"""


def test_a_kill_in_the_midst_of_a_write_loses_nothing_and_processes_do_not_meet(tmp_path):
    file, waits = str(tmp_path / "state"), np.random.RandomState(0)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for _ in range(6 if FULL else 3):
        code = WRITER.format(module=_checkpoint.__file__, file=file)
        writer = [sys.executable, "-c", code]
        with child(writer, **pipes) as one, child(writer, **pipes) as other:
            for process in (one, other):
                assert process.stdout.readline() == "ready\n"
            time.sleep(waits.uniform(0.02, 0.1))
            for process in (one, other):
                process.send_signal(signal.SIGKILL)
            for process in (one, other):
                assert process.communicate()[1] == "" and process.returncode == -signal.SIGKILL
        state = read(file)
        if state is not None:
            assert (state["data"] == state["number"]).all() and len(state["data"]) == 200000
    assert state is not None
