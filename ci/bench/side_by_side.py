"""mindspore_hessian beside torch.func, jax.jit and plain MindSpore: the same numbers, results
checked against float64, turns taken one after another, one table. `side_by_side.sh` makes the
environments and starts this."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import report
from cases import BARE, JAX, NAIVE, OURS, PINNED, TORCH, Case, cases, numbers
from references import reference, relative_error

HERE = Path(__file__).resolve().parent
LIMIT = 1e-3  # largest relative error that counts as right
MOST_CALLS = 200  # a turn
FEWEST = 2  # calls, however slow; as many as the naive recipe gets


class WorkerError(Exception):
    """A worker could not do what it was told; the text goes into the table."""


class Worker:
    """A process of its own with one library and one case."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]):
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=HERE.parents[1],
                env=environment,
            )
        self.log, self.pending = log, b""

    def ask(self, message: dict, limit: float) -> dict:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        answer = json.loads(self._line(time.monotonic() + limit, limit))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _line(self, end: float, limit: float) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.pending:
                if not selector.select(max(end - time.monotonic(), 0)):
                    raise WorkerError(f"no answer within {limit:.0f} s")
                piece = os.read(self.process.stdout.fileno(), 65536)
                if not piece:
                    raise WorkerError(
                        f"ended with code {self.process.wait()}: {self._last_words()}"
                    )
                self.pending += piece
        line, _, self.pending = self.pending.partition(b"\n")
        return line

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:160] if lines else "no message"

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


class Bench:
    """The processes, the folder of their numbers, and what was asked for."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.versions: dict[str, str] = {}
        self.environment = {
            **os.environ,
            "GLOG_v": "3",
            "BENCH_CORES": str(options.cores),
            "PYTHONUNBUFFERED": "1",
        }

    def command(self, library: str) -> list[str]:
        ours, other = self.options.mindspore_python, self.options.torch_python
        return {
            OURS: [ours, "worker_mindspore.py"],
            PINNED: [ours, "worker_mindspore.py", "--pinned"],
            NAIVE: [ours, "worker_mindspore.py", "--naive"],
            BARE: [ours, "worker_mindspore.py", "--bare"],
            TORCH: [other, "worker_torch.py"],
            JAX: [other, "worker_jax.py"],
            "float64": [other, "worker_torch.py", "--float64"],
        }[library]

    def start(self, library: str) -> Worker:
        python, script, *rest = self.command(library)
        return Worker(
            [python, str(HERE / script), *rest], self.folder / f"{library}.log", self.environment
        )

    def set_up(self, worker: Worker, library: str, case: Case) -> tuple[float, list[np.ndarray]]:
        """Seconds of the first call, and its result."""
        result = self.folder / f"{library}.npz"
        answer = worker.ask(
            {
                "do": "setup",
                "data": str(self.folder / "data.npz"),
                "result": str(result),
                **case.message(),
            },
            self.options.timeout,
        )
        self.versions |= answer["versions"]
        with np.load(result) as file:
            arrays = [file[f"arr_{number}"] for number in range(len(file.files))]
        result.unlink()
        return answer["first"], arrays

    def expected(self, case: Case, data: dict[str, np.ndarray]) -> list[np.ndarray]:
        formula = reference(case, data)
        if formula is not None:
            return formula
        worker = self.start("float64")
        try:
            return self.set_up(worker, "float64", case)[1]
        finally:
            worker.end()

    def run(self, case: Case) -> dict[str, dict]:
        """The results of each library by name."""
        data = numbers(case)
        np.savez(self.folder / "data.npz", **data)
        expected = self.expected(case, data)
        libraries = [name for name in case.libraries if name in self.options.libraries]
        results: dict[str, dict] = {name: {} for name in libraries}
        workers: dict[str, Worker] = {}
        try:
            for name in libraries:
                with recorded(results[name]):
                    workers[name] = self.start(name)
                    first, found = self.set_up(workers[name], name, case)
                    results[name]["first_call_s"] = first
                    results[name]["error"] = error = relative_error(found, expected)
                    results[name]["wrong"] = not error < LIMIT
            self.take_turns(workers, results)
            for name, worker in workers.items():
                if "failed" not in results[name]:
                    with recorded(results[name]):
                        results[name]["peak_mib"] = worker.ask({"do": "quit"}, 60)["peak"]
        finally:
            for worker in workers.values():
                worker.end()
        return results

    def take_turns(self, workers: dict[str, Worker], results: dict[str, dict]) -> None:
        times: dict[str, list[float]] = {name: [] for name in workers}
        calls: dict[str, int] = {}
        for turn in range(self.options.rounds):
            for name, worker in workers.items():
                result = results[name]
                spent = sum(times[name])
                if "failed" in result or (
                    len(times[name]) >= FEWEST and spent > self.options.seconds
                ):
                    continue
                with recorded(result):
                    time.sleep(self.options.pause)  # the threads of the one before stop spinning
                    slow = (
                        result["first_call_s"] > 1 and name == NAIVE
                    )  # compiles at every call, so needs no warm-up
                    if name not in calls:
                        calls[name] = 1 if slow else self.calls_of_a_turn(worker)
                    elif not slow and spent / len(times[name]) < 0.5:
                        worker.ask(
                            {"do": "run", "calls": 1}, self.options.timeout
                        )  # caches are cold after a pause
                    if not slow or turn < FEWEST:
                        answer = worker.ask(
                            {"do": "run", "calls": calls[name]}, self.options.timeout
                        )
                        times[name] += answer["seconds"]
        for name, seconds in times.items():
            if seconds and "failed" not in results[name]:
                low, middle, high = np.percentile(seconds, (25, 50, 75))
                results[name] |= {
                    "median_s": middle,
                    "quartile1_s": low,
                    "quartile3_s": high,
                    "min_s": min(seconds),
                    "calls": len(seconds),
                }

    def calls_of_a_turn(self, worker: Worker) -> int:
        """As many as fill a turn. The call after the first is left out: some libraries still settle
        in it.
        """
        last = worker.ask({"do": "run", "calls": 2}, self.options.timeout)["seconds"][-1]
        return int(min(max(self.options.turn / last, 1), MOST_CALLS))


@contextlib.contextmanager
def recorded(result: dict) -> Iterator[None]:
    """A library that cannot do a case gets a line in the table; the others go on."""
    try:
        yield
    except (WorkerError, ValueError) as error:
        result["failed"] = str(error)


def machine() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def arguments() -> argparse.Namespace:
    names = {
        "ours": OURS,
        "pinned": PINNED,
        "torch": TORCH,
        "jax": JAX,
        "naive": NAIVE,
        "bare": BARE,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything work?")
    parser.add_argument(
        "--large", action="store_true", help="also 4096 inputs, 10^7 weights, 10^5 points"
    )
    parser.add_argument("--resnet", action="store_true", help="also ResNet-18")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="cases whose name has this in it"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--libraries", nargs="+", choices=names, default=list(names), help="default: all"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each library")
    parser.add_argument("--turn", type=float, default=0.3, help="seconds that a turn should take")
    parser.add_argument(
        "--seconds", type=float, default=15, help="a library that used so many gets no more turns"
    )
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between turns")
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds for a first call or a turn"
    )
    parser.add_argument("--cores", type=int, default=2, help="cores that each library may use")
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "results" / "side_by_side",
        help="where to write; .json and .png are added",
    )
    parser.add_argument(
        "--mindspore-python", default=os.environ.get("MINDSPORE_PYTHON", sys.executable)
    )
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    options = parser.parse_args()
    options.libraries = [names[name] for name in options.libraries]
    return options


def main() -> None:
    options = arguments()
    every = cases(options.quick, options.large, options.resnet)
    chosen = [case for case in every if re.search(options.only, case.name)]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    about = {
        "machine": machine(),
        "cores": options.cores,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "command": sys.argv[1:],
        "limit": LIMIT,
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for number, case in enumerate(chosen):
            print(f"[{number + 1}/{len(chosen)}] {case.name}", file=sys.stderr, flush=True)
            rows.append(
                {
                    "case": case.name,
                    "problem": case.problem,
                    "what": case.what,
                    "params": case.params,
                    "family": case.family,
                    "size": case.size,
                    "axis": case.axis,
                    "gradient": case.gradient,
                    "load": os.getloadavg()[0],
                    "results": bench.run(case),
                }
            )
            report.add_ratios(rows)
            report.write_json(options.out, {**about, "versions": bench.versions, "cases": rows})
    print(report.table({**about, "versions": bench.versions}, rows))
    written = [f"{options.out}.json", *report.plot(options.out, rows)]
    print(f"\nwritten: {', '.join(written)}")
    if any(
        row["results"].get(OURS, {}).get("wrong") or "failed" in row["results"].get(OURS, {})
        for row in rows
    ):
        raise SystemExit("mindspore_hessian was wrong or failed in a case above")


if __name__ == "__main__":
    main()
