"""ci/device.py: explains itself on a CPU; where there is a device, a report of each job."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "device_report", Path(__file__).parent.parent / "ci" / "device.py"
)
job = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(job)


def test_on_a_cpu_it_says_why_there_is_nothing_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(job, "why_unusable", lambda backend: "no driver")
    monkeypatch.setattr(sys, "argv", ["device.py", str(tmp_path / "report")])
    assert job.main() == 0
    assert "GPU: no driver" in capsys.readouterr().out
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("code", "status", "word"), [("print('fine')", 0, "ok"), ("print('bad'); exit(3)", 1, "FAILED")]
)
def test_a_report_is_written(monkeypatch, capsys, tmp_path, code, status, word):
    monkeypatch.setattr(
        job, "why_unusable", lambda backend: None if backend == "GPU" else "no CANN"
    )
    monkeypatch.setattr(job, "JOBS", {"demo": ["-c", code]})
    monkeypatch.setattr(sys, "argv", ["device.py", str(tmp_path / "report")])
    assert job.main() == status
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["devices"] == ["GPU"] and report["unusable"] == {"Ascend": "no CANN"}
    assert (report["jobs"]["demo"]["status"] == 0) == (status == 0)
    assert f"demo {word}" in capsys.readouterr().out
    assert ("succeeded" in (tmp_path / "report" / "report.md").read_text()) == (status == 0)


def test_a_job_that_hangs_is_told(monkeypatch):
    monkeypatch.setattr(job, "LIMIT", 0.5)
    assert job.run(["-c", "import time; time.sleep(60)"])["status"] is None
