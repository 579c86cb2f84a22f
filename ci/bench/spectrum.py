"""The top 5 eigenpairs, to relative residuals of 1e-3, and the trace, to 1%, of the Hessian of a
small network's loss on 1,500 digits (ci/demo_network.py, 1,898 weights, one batch, float32): this
library beside curvlinops and PyHessian on the same weights, each job in a process of its own,
taking turns. Errors are against the exact Hessian in float64. Prints a markdown table and writes
results/spectrum.json.

Usage: python ci/bench/spectrum.py --torch-python FILE [--rounds N]. The other Python has torch,
scipy, pyhessian and curvlinops-for-pytorch: the environment of side_by_side.sh.
"whole" is from making the operator to the numbers; "first" is the part of it until a first product
is there, compiling included; "ms a product" is the rest of the time over the products in it (one
for each column of a matrix). The number of products of curvlinops' xtrace is about the smallest
that gives 1% on average, found beforehand; ours stops by its standard error ("hutchinson", which
PyHessian uses, needs more than 4,000 here). PyHessian's tolerance is about how much its number
still changes: "own" is its default, "tight" is 1e-7 with at most 3,000 steps a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import serve

HERE = Path(__file__).resolve().parent
SPLIT, EPOCHS, BATCH = 1500, 10, 50
K, TOL, EIGSH_TOL, TRACE_TOL = 5, 1e-3, 2e-4, 1e-2  # eigsh's is relative to the largest eigenvalue
MOST = 4000  # products of a trace
JOBS = {
    "ours eigen": "top 5",
    "curvlinops eigen": "top 5, scipy eigsh",
    "PyHessian eigen": "top 5, own tolerance",
    "PyHessian tight": "top 5, tight",
    "ours xtrace": "trace, xtrace",
    "curvlinops trace": "trace, xtrace",
    "PyHessian trace": "trace, own tolerance",
}


def train(target: str) -> None:
    """Weights, the training digits and the logits into a file."""
    sys.path.insert(0, str(HERE.parent))
    import demo_network
    import mindspore as ms
    from mindspore import nn

    ms.set_seed(0)
    rng = np.random.default_rng(0)
    images, labels = demo_network.data()
    order = rng.permutation(len(images))[:SPLIT]
    images, labels = images[order], labels[order]
    net, cross_entropy = demo_network.Network(), nn.CrossEntropyLoss()
    optimizer = nn.Adam(net.trainable_params(), 1e-2)

    def loss(x, y):
        return cross_entropy(net(x), y)

    slope = ms.jit(ms.grad(loss, None, optimizer.parameters))
    for _ in range(EPOCHS):
        for batch in np.split(rng.permutation(SPLIT), SPLIT // BATCH):
            optimizer(slope(ms.Tensor(images[batch]), ms.Tensor(labels[batch])))
    weights = {
        f"w{number}": weight.asnumpy() for number, weight in enumerate(net.trainable_params())
    }
    np.savez(target, x=images, y=labels, logits=net(ms.Tensor(images)).asnumpy(), **weights)


def ours(what: str, source: str, target: str) -> None:
    serve.limit_cores()
    sys.path.insert(0, str(HERE.parent))
    import demo_network
    import mindspore as ms
    from mindspore import nn

    import mindspore_hessian as mh

    net = demo_network.Network()
    with np.load(source) as file:
        data = dict(file)
    for number, weight in enumerate(net.trainable_params()):
        weight.set_data(ms.Tensor(data[f"w{number}"]))
    x, y, seed = ms.Tensor(data["x"]), ms.Tensor(data["y"]), int(data["seed"])
    start, count = time.perf_counter(), [0]

    class Counted(mh.HessianOperator):
        def columns(self, matrix):
            count[0] += matrix.shape[1]
            return super().columns(matrix)

    op = Counted(net, nn.CrossEntropyLoss(), (x, y))
    op @ np.ones(op.shape[0], np.float32)
    first = time.perf_counter() - start
    count[0] = 0
    if what == "eigen":
        result = mh.eigsh(op, K, tol=EIGSH_TOL, seed=seed)
        found = {"values": result.eigenvalues, "vectors": result.eigenvectors}
    else:
        result = mh.trace(op, what, tol=TRACE_TOL, max_products=MOST, seed=seed)
        found = {"value": result.value}
    np.savez(
        target,
        **found,
        seconds=time.perf_counter() - start,
        first=first,
        stopped_by=result.stopped_by,
        products=max(count[0], result.num_products),
    )
    os._exit(0)  # MindSpore's clean-up at exit takes a second


def run(command: list[str]) -> None:
    environment = {**os.environ, "GLOG_v": "3", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:4])} failed:\n{done.stderr[-2000:]}")


def error_of(found: dict, matrix: np.ndarray) -> float:
    """The worst relative residual of the pairs, or the relative error of the trace."""
    if "value" in found:
        return float(abs(found["value"] / np.trace(matrix) - 1))
    vectors = found["vectors"].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=0)
    return float(
        (
            np.linalg.norm(matrix @ vectors - vectors * found["values"], axis=0)
            / abs(found["values"])
        ).max()
    )


def one(job: str, python: str, folder: Path, data: dict, matrix: np.ndarray) -> dict:
    source, target = folder / "in.npz", folder / "out.npz"
    np.savez(source, **data)
    library, what = job.split()
    script = (
        [sys.executable, __file__, "--ours", what]
        if library == "ours"
        else [python, str(HERE / "worker_spectrum.py"), job]
    )
    run([*script, str(source), str(target)])
    with np.load(target) as file:
        found = dict(file)
    row = {name: float(found[name]) for name in ("seconds", "first", "products")}
    return {**row, "error": error_of(found, matrix), "stopped_by": str(found.get("stopped_by", ""))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--torch-python", default=str(HERE.parents[1] / ".venv-bench" / "bin" / "python")
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each row")
    parser.add_argument(
        "--skip", default="", metavar="JOB", help="leave out the jobs with this in their name"
    )
    parser.add_argument(
        "--ours", nargs=3, metavar=("WHAT", "INPUT", "OUTPUT"), help=argparse.SUPPRESS
    )
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train or options.ours:
        train(options.train) if options.train else ours(*options.ours)
        return
    jobs = [job for job in JOBS if not options.skip or options.skip not in job]
    rows: dict[str, list[dict]] = {job: [] for job in jobs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run([sys.executable, __file__, "--train", str(folder / "in.npz")])
        with np.load(folder / "in.npz") as file:
            data = dict(file)
        np.savez(folder / "in.npz", seed=0, **data)
        run(
            [
                options.torch_python,
                str(HERE / "worker_spectrum.py"),
                "truth",
                str(folder / "in.npz"),
                str(folder / "truth.npz"),
            ]
        )
        with np.load(folder / "truth.npz") as file:
            matrix, products = file["matrix"], int(file["xtrace"])
        values = np.linalg.eigvalsh(matrix)
        print(
            f"eigenvalues {values[:-7:-1].round(4)} ... {values[0]:.4f}, trace "
            f"{np.trace(matrix):.4f}, "
            f"logits differ by up to {float(np.load(folder / 'truth.npz')['difference']):.0e}\n",
            flush=True,
        )
        for number in range(options.rounds):
            for job in jobs:
                rows[job].append(
                    one(
                        job,
                        options.torch_python,
                        folder,
                        {**data, "seed": number, "products": products},
                        matrix,
                    )
                )
                print(job, rows[job][-1], file=sys.stderr, flush=True)
    print(
        "| library | job | whole, s | range, s | first, s | products | ms a product | worst "
        "residual or error |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for job, runs in rows.items():
        whole, first, count = (
            statistics.median(row[key] for row in runs) for key in ("seconds", "first", "products")
        )
        each = statistics.median((row["seconds"] - row["first"]) / row["products"] for row in runs)
        print(
            f"| {job.split()[0]} | {JOBS[job]} | {whole:.2f} | "
            f"{min(row['seconds'] for row in runs):.2f} to "
            f"{max(row['seconds'] for row in runs):.2f} | {first:.2f} | {count:.0f} | "
            f"{each * 1e3:.1f} | {max(row['error'] for row in runs):.1e} |"
        )
    target = HERE / "results" / "spectrum.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(
        json.dumps({"eigenvalues": values.tolist(), "trace": float(np.trace(matrix)), "jobs": rows})
    )
    if any(row["error"] > TOL for row in rows.get("ours eigen", ())):
        raise SystemExit(f"a residual of ours is above {TOL}")
    if any(
        row["stopped_by"] == "budget" for job in jobs if job.startswith("ours") for row in rows[job]
    ):
        raise SystemExit("an estimator of ours ended at its budget")


if __name__ == "__main__":
    main()
