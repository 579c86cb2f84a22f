"""The report of ``python -m mindspore_hessian`` and its exit status."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

import mindspore_hessian
from mindspore_hessian import device
from mindspore_hessian.__main__ import COMMANDS, main


def right(fn, inputs, vectors):
    x, v = inputs.asnumpy(), vectors.asnumpy()
    return ms.Tensor((2 * np.cos(x) - x * np.sin(x)) * v)


def zero(fn, inputs, vectors):
    return ms.Tensor(np.zeros_like(vectors.asnumpy()))


def nan(fn, inputs, vectors):
    return ms.Tensor(np.full_like(vectors.asnumpy(), np.nan))


def broken(fn, inputs, vectors):
    raise RuntimeError("no kernel")


@pytest.mark.parametrize(
    ("hvp", "status", "word"),
    [
        (right, 0, "right"),
        (zero, 1, "WRONG"),
        (nan, 1, "WRONG"),
        (broken, 1, "FAILED  RuntimeError: no kernel"),
    ],
)
def test_the_report_and_its_status(monkeypatch, capsys, hvp, status, word):
    monkeypatch.setattr(mindspore_hessian, "hvp", hvp, raising=False)
    assert main([]) == status
    report = capsys.readouterr().out
    for text in (
        mindspore_hessian.__version__,
        ms.__version__,
        np.__version__,
        "CPU     usable",
        "float64",
        word,
    ):
        assert text in report


@pytest.mark.parametrize(
    ("version", "flags", "variable", "said"),
    [
        ((2, 10, 0), "fpu avx512f avx512dq", None, True),
        ((2, 9, 0), "avx2 bmi2 avx512f", None, True),
        ((2, 8, 0), "fpu avx512f avx512dq", None, False),
        ((2, 10, 0), "fpu avx2 bmi2", None, False),
        ((2, 10, 0), "fpu avx512f avx512dq", "AVX2", False),
        ((2, 10, 0), "fpu avx512f avx512dq", "AVX512_CORE", True),
        ((2, 10, 0), None, None, False),
    ],
)
def test_slow_convolutions_are_told(monkeypatch, capsys, version, flags, variable, said):
    def cpuinfo(name):
        assert name == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(name)
        return io.StringIO(f"processor : 0\nflags\t\t: {flags}\n")

    monkeypatch.setattr("mindspore_hessian.device.open", cpuinfo, raising=False)
    monkeypatch.setitem(device._cpu, "isa", "ALL")
    monkeypatch.setattr("mindspore_hessian._compat.MS_VERSION", version)
    monkeypatch.setattr(mindspore_hessian, "hvp", right, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", variable or "")  # the older name
    assert main(["--device", "CPU"]) == 0
    assert ('max_cpu_isa="AVX2"' in capsys.readouterr().out) == said


def test_the_command_may_be_named(monkeypatch, capsys):
    monkeypatch.setattr(mindspore_hessian, "hvp", right, raising=False)
    assert main(["info", "--device", "CPU"]) == main(["--device", "CPU"]) == 0


def test_help_and_unknown_commands(capsys):
    for arguments, status in ((["--help"], 0), (["nonsense"], 2), (["info", "--device", "TPU"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == status
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_a_missing_device_is_status_one(monkeypatch, capsys):
    monkeypatch.setattr(
        "mindspore_hessian.device.why_unusable", lambda backend, device_id=0: "no driver"
    )
    monkeypatch.setattr("mindspore_hessian._compat.device_in_use", lambda: None)
    assert main(["--device", "GPU"]) == 1
    assert "GPU is not usable: no driver" in capsys.readouterr().out


def test_as_a_program(tmp_path):
    root = Path(__file__).resolve().parents[1]
    child = subprocess.run(
        [sys.executable, "-m", "mindspore_hessian"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.returncode == 0, child.stdout + child.stderr[-2000:]
    assert child.stdout.count("right") == 2 and not list(tmp_path.iterdir())
