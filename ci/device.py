"""What `ci/device.sh` runs: everything that needs a device, each in a process of its own, and the
report of it.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms

import mindspore_hessian as mh
from mindspore_hessian.device import why_unusable

ROOT = Path(__file__).parent.parent
JOBS = {
    "check": ["-m", "mindspore_hessian"],
    "tests": ["-m", "pytest", "-m", "needs_gpu or needs_ascend", "-rs", "tests"],
    "demo": ["ci/demo.py"],
    "benchmark": ["ci/bench/hvp.py", "--rounds", "5"],
}
LIMIT = 1800  # seconds a job


def run(arguments: list[str]) -> dict:
    """One job: its status, seconds and the end of what it printed."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        text = (
            late.stdout.decode(errors="replace")
            if isinstance(late.stdout, bytes)
            else late.stdout or ""
        )
        status = None
    return {
        "command": " ".join(arguments),
        "status": status,
        "seconds": round(time.perf_counter() - start, 1),
        "output": text[-20_000:],
    }


def main() -> int:
    """0 where all jobs succeeded, or where there is no device and nothing was to be done; else
    1.
    """
    reasons = {backend: why_unusable(backend) for backend in ("GPU", "Ascend")}
    usable = [backend for backend, reason in reasons.items() if reason is None]
    if not usable:
        print(
            "There is no GPU and no Ascend device that MindSpore can use here, so there is nothing "
            "to run:"
        )
        for backend, reason in reasons.items():
            print(f"  {backend}: {reason}")
        print(
            "On a machine that has one, this command runs the tests marked needs_gpu and "
            "needs_ascend, the demo and "
            "a short benchmark, and writes a report. `bash ci/test.sh` is what a CPU can run."
        )
        return 0
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "mindspore": ms.__version__,
        "mindspore_hessian": mh.__version__,
        "devices": usable,
        "unusable": {name: reason for name, reason in reasons.items() if reason},
        "jobs": {name: run(arguments) for name, arguments in JOBS.items()},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    lines = [
        f"# mindspore_hessian {report['mindspore_hessian']} on {', '.join(usable)}",
        "",
        f"{report['date']}, MindSpore {report['mindspore']}, Python {report['python']}, "
        f"{report['machine']}",
        "",
    ]
    for name, job in report["jobs"].items():
        words = {0: "succeeded", None: f"did not end within {LIMIT} s"}
        verdict = words.get(job["status"], f"failed ({job['status']})")
        lines += [
            f"## {name}: {verdict}, {job['seconds']} s",
            "",
            "```",
            job["output"].strip()[-4000:],
            "```",
            "",
        ]
    (folder / "report.md").write_text("\n".join(lines))
    print(
        f"{folder / 'report.json'} and {folder / 'report.md'}: "
        + ", ".join(
            f"{name} {'ok' if job['status'] == 0 else 'FAILED'}"
            for name, job in report["jobs"].items()
        )
    )
    return int(any(job["status"] != 0 for job in report["jobs"].values()))


if __name__ == "__main__":
    sys.exit(main())
