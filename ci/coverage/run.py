"""Check every call of the table on the MindSpore that is installed: results/VERSION.json and .md.

Usage: python ci/coverage/run.py [--only REGEX] [--jobs 2] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import selectors
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tqdm import tqdm

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "rules"))
import calls  # noqa: E402
import check  # noqa: E402

CHUNK = 25  # calls a process: every compilation leaves memory behind
LIMIT = 240  # seconds a call


def wanted(only: str) -> list[str]:
    """NUMBER:SPACE of every call in every namespace that has it."""
    return [
        f"{number}:{space}"
        for number, call in enumerate(calls.calls())
        if "refused" not in call.more
        for space in check.spaces(call)
        if re.search(only, f"{space} {call.line}")
    ]


def work(items: queue.Queue, done, log: Path) -> None:
    """One worker process after another until nothing is left. A call that kills or blocks one is a
    row of its own.
    """
    while True:
        chunk = []
        while len(chunk) < CHUNK and not items.empty():
            chunk.append(items.get_nowait())
        if not chunk:
            return
        while chunk:
            with log.open("a") as errors:
                process = subprocess.Popen(
                    [sys.executable, check.__file__, *chunk],
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, "GLOG_v": "4", "OMP_NUM_THREADS": "1"},
                )
            reason = "ended the process"
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                while chunk:
                    if not selector.select(LIMIT):
                        reason = f"took more than {LIMIT} s"
                        break
                    line = process.stdout.readline()
                    if not line:
                        break
                    if line.startswith('{"item"'):
                        done(json.loads(line))
                        chunk.pop(0)
            process.kill()
            process.wait()
            if chunk:
                item = chunk.pop(0)
                call = calls.calls()[int(item.split(":")[0])]
                done(
                    {
                        "item": item,
                        "line": call.line,
                        "head": call.head,
                        "space": item.split(":")[1],
                        "topic": call.topic,
                        "crashed": f"{reason} ({process.returncode})",
                    }
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="calls whose 'space line' has this in it"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--keep", action="store_true", help="keep the other rows of the results file"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    import mindspore

    path = options.out / f"{mindspore.__version__}.json"
    path.parent.mkdir(exist_ok=True)
    items: queue.Queue = queue.Queue()
    chosen = wanted(options.only)
    for item in chosen:
        items.put(item)
    rows = {}
    if options.keep and path.exists():
        rows = {(row["space"], row["line"]): row for row in json.loads(path.read_text())}
    lock, bar = threading.Lock(), tqdm(total=len(chosen), unit="call")

    def done(row: dict) -> None:
        with lock:
            rows[row["space"], row["line"]] = row
            bar.update()
            path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows.values()) + "\n]\n")

    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(target=work, args=(items, done, Path(folder) / f"{k}.log"))
            for k in range(options.jobs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    bar.close()
    print(path)


if __name__ == "__main__":
    main()
