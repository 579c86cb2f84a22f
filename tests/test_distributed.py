"""Two processes on CPU, started by msrun: the numbers, and what happens when one of them fails."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import child
from full import FULL

import mindspore_hessian as mh

JOB = Path(__file__).with_name("distributed_job.py")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(job, folder):
    """(logs of the two ranks, seconds)."""
    binaries = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(JOB.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    start = time.monotonic()
    with child(
        [
            binaries / "msrun",
            "--worker_num=2",
            "--local_worker_num=2",
            f"--master_port={free_port()}",
            "--cluster_time_out=60",
            f"--log_dir={folder}",
            "--join=True",
            JOB,
            job,
        ],
        seconds=480,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        process.wait()
    return [
        (folder / f"worker_{rank}.log").read_text() for rank in (0, 1)
    ], time.monotonic() - start


def test_two_processes_equal_one(tmp_path):
    logs, _ = launch("agree", tmp_path)
    for log in logs:
        assert "DONE" in log, log[-3000:]
    traces = [re.search(r"TRACE (\S+)", log)[1] for log in logs]
    assert traces[0] == traces[1]
    assert ["trace:" in log for log in logs] == [True, False]  # the progress bar


@pytest.mark.full_run
def test_influence_of_the_training_data_of_two_processes(tmp_path):
    logs, _ = launch("influence", tmp_path)
    for log in logs:
        assert "DONE" in log, log[-3000:]


@pytest.mark.full_run
def test_training_in_two_processes_equals_that_in_one(tmp_path):
    logs, _ = launch("train", tmp_path)
    for log in logs:
        assert "DONE" in log, log[-3000:]
        assert log.count("EQUAL") == (7 if FULL else 1)
        assert "REFUSED network must be the same in each process, but its weights differ" in log


@pytest.mark.full_run
def test_a_rank_that_fails_at_a_training_step_stops_the_other(tmp_path):
    (other, failed), _ = launch("stops", tmp_path)
    assert "ERROR TypeError: inputs must be Tensors" in failed
    assert "ERROR DistributedError: rank 0 of 2 stops, because rank 1 failed" in other
    assert "NOT REACHED" not in other + failed


@pytest.mark.full_run
def test_a_rank_that_raises_stops_the_other_at_once(tmp_path):
    (other, failed), _ = launch("raise", tmp_path)
    assert "ERROR FloatingPointError: rank 1 has a problem of its own" in failed
    assert (
        "ERROR DistributedError: rank 0 of 2 stops, because rank 1 failed; its log says why"
        in other
    )
    assert "NOT REACHED" not in other + failed


@pytest.mark.skipif(not FULL, reason="takes a minute; MINDSPORE_HESSIAN_FULL=1 runs it")
def test_a_rank_that_dies_ends_the_job_in_bounded_time(tmp_path):
    (other, _), seconds = launch("die", tmp_path)
    assert "NOT REACHED" not in other
    assert seconds < 120


def test_without_a_job_it_says_how_to_start_one():
    with (
        pytest.raises(mh.DistributedError, match="was not started by msrun.*msrun --worker_num=2"),
        mh.distributed.session(),
    ):
        pass
    with (
        pytest.raises(ValueError, match="timeout must be a positive number of seconds, but got 0"),
        mh.distributed.session(timeout=0),
    ):
        pass
