"""Several libraries at one job, in turns in one run, each in a process of its own."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from side_by_side import Worker, WorkerError

HERE = Path(__file__).resolve().parent
PAUSE = 0.5  # seconds after which the threads of the other library have stopped spinning


@dataclass
class Outcome:
    """What one library did.

    Attributes:
        first: seconds of the first call, which compiles.
        seconds: of the calls after it.
        peak: MiB above what it held before the first call.
        result: the arrays of the first call.
        error: why there is nothing of this; "" where there is.
    """

    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    result: list[np.ndarray] = field(default_factory=list)
    error: str = ""

    @property
    def ms(self) -> float:
        """The median, in milliseconds."""
        return 1e3 * float(np.median(self.seconds)) if self.seconds else float("nan")


def in_turns(
    script: str,
    pythons: dict[str, str],
    message: dict,
    data: dict[str, np.ndarray],
    rounds: int,
    calls: int = 4,
) -> dict[str, Outcome]:
    """Run ``script --worker NAME`` by the Python of each name, which serves (`serve.py`); of each round
    the first call, which warms up, is left out.
    """
    environment = {
        **os.environ,
        "GLOG_v": "3",
        "BENCH_CORES": "2",
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
        "TQDM_DISABLE": "1",
    }
    out = {name: Outcome() for name in pythons}
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        np.savez(path / "data.npz", **data)
        for name, python in pythons.items():
            saved = path / f"{name}.npz"
            workers[name] = Worker(
                [python, script, "--worker", name], path / f"{name}.log", environment
            )
            setup = {"do": "setup", "data": str(path / "data.npz"), "result": str(saved), **message}
            try:
                out[name].first = workers[name].ask(setup, 600)["first"]
                with np.load(saved) as arrays:
                    out[name].result = list(arrays.values())
            except WorkerError as error:
                out[name].error = str(error)
        working = [name for name, outcome in out.items() if not outcome.error]
        for _ in range(rounds):
            for name in working:
                time.sleep(PAUSE)
                answer = workers[name].ask({"do": "run", "calls": calls}, 600)
                out[name].seconds += answer["seconds"][1:]
        for name, worker in workers.items():
            if name in working:
                out[name].peak = worker.ask({"do": "quit"}, 60)["peak"]
            worker.end()
    return out


def with_ours(others: dict[str, str]) -> dict[str, str]:
    """The Pythons by name, this one first."""
    return {"ours": sys.executable, **others}
