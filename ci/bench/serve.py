"""The worker's side of the benchmark: commands come in as JSON lines, answers go out the same way.

``{"do": "setup", ...}`` makes the first call, saves its result and answers with its seconds;
``{"do": "run", "calls": k}`` answers with the seconds of k calls; ``{"do": "quit"}`` with the peak
memory above that before the first call, in MiB.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np


def limit_cores() -> int:
    """Keep to BENCH_CORES cores; before a library is imported, because it counts them then."""
    allowed = sorted(os.sched_getaffinity(0))
    wanted = min(int(os.environ.get("BENCH_CORES", "2")), len(allowed))
    if wanted < len(allowed):
        os.sched_setaffinity(0, allowed[:wanted])
    return wanted


def memory(field: str) -> float:
    """VmRSS or VmHWM (its peak) in MiB. ru_maxrss is only for systems without /proc: a child starts
    with that of its parent."""
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Let VmHWM start anew: importing a library can take more than the call that is measured."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def serve(
    make: Callable[[dict, dict], Callable[[], list[np.ndarray]]], versions: dict[str, str]
) -> None:
    """Answer until told to quit. ``make(message, data)`` gives the call to measure; it returns
    numpy arrays, so a call is over when its numbers are there."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not come between the answers
    call, before = None, 0.0
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "setup":
                with np.load(message["data"]) as file:
                    data = dict(file)
                call = make(message, data)
                forget_peak()
                before = memory("VmRSS")
                start = time.perf_counter()
                result = call()
                answer = {"first": time.perf_counter() - start, "versions": versions}
                np.savez(message["result"], *result)
                del result
            elif message["do"] == "run":
                answer = {"seconds": [seconds(call) for _ in range(message["calls"])]}
            else:
                answer = {"peak": max(memory("VmHWM") - before, 0.0)}
        except Exception as error:  # noqa: BLE001 -- the coordinator shows it in the table
            answer = {"error": f"{type(error).__name__}: {first_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        if message["do"] == "quit":
            break
    answers.flush()
    os._exit(0)  # MindSpore's clean-up at exit takes a second and is not measured


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return lines[0][:160] if lines else ""


def seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
