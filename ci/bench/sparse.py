"""Sparse Hessians: this library's `sparse=True` beside its own matrix, torch.func.hessian,
jax.hessian and asdex (sparse Hessians in JAX), each in a process of its own, against the closed
form. Prints a markdown table.

Usage: python ci/bench/sparse.py [--torch-python FILE] [--quick]. The other Python has torch, jax
and asdex (side_by_side.sh makes it); a library that it lacks gets no row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

# the largest n of each
LIBRARIES = {
    "ours, sparse": 10**6,
    "ours": 1000,
    "torch.func": 1000,
    "jax.jit": 1000,
    "jax.jit, asdex": 10**5,
}
SIZES = {"Rosenbrock": (200, 1000, 10_000, 100_000), "mesh": (400, 10_000, 90_000)}
CALLS = 9


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def mesh(x):
    """The energy of a membrane with a potential, on a square grid."""
    side = int(x.shape[0] ** 0.5)
    u = x.reshape(side, side)
    return (((u[1:] - u[:-1]) ** 2).sum() + ((u[:, 1:] - u[:, :-1]) ** 2).sum()) / 2 + (
        u**4
    ).sum() / 4


def truth(problem: str, x: np.ndarray):
    import scipy.sparse as sp

    n = x.size
    if problem == "Rosenbrock":
        diagonal = np.zeros(n)
        diagonal[:-1] += 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
        diagonal[1:] += 200
        return sp.csr_array(sp.diags([diagonal, -400 * x[:-1], -400 * x[:-1]], [0, 1, -1]))
    side = int(n**0.5)
    difference = sp.diags([-1.0, 1.0], [0, 1], shape=(side - 1, side))
    line = difference.T @ difference
    return sp.csr_array(
        sp.kron(line, sp.eye(side)) + sp.kron(sp.eye(side), line) + sp.diags(3 * x**2)
    )


def hessian(library: str, f, x: np.ndarray):
    """(call, convert): `call` computes the Hessian at x, `convert` makes a scipy or numpy matrix of
    it.
    """
    if library.startswith("ours"):
        import mindspore as ms

        import mindspore_hessian as mh

        made, point = mh.hessian(f, sparse="sparse" in library), ms.Tensor(x)
        return lambda: made(point), lambda h: h if "sparse" in library else h.asnumpy()
    if library == "torch.func":
        import torch

        torch.set_num_threads(2)
        point = torch.tensor(x)
        return lambda: torch.func.hessian(f)(point), lambda h: h.numpy()
    import jax

    if library == "jax.jit":
        made = jax.jit(jax.hessian(f))
        return lambda: made(x).block_until_ready(), np.asarray
    import asdex
    import scipy.sparse as sp

    made = jax.jit(asdex.hessian(f, x))
    return (
        lambda: jax.block_until_ready(made(x)),
        lambda h: sp.coo_array((np.asarray(h.data), np.asarray(h.indices).T), shape=h.shape),
    )


def measure(library: str, problem: str, n: int) -> dict:
    x = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    start = time.perf_counter()
    call, convert = hessian(library, {"Rosenbrock": rosenbrock, "mesh": mesh}[problem], x)
    result = call()
    first, times = time.perf_counter() - start, []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    expected = truth(problem, x.astype(np.float64))
    found = convert(result)
    gap = found - (expected if "sparse" in library or "asdex" in library else expected.toarray())
    return {
        "first": first,
        "median": float(np.median(times)),
        "low": min(times),
        "high": max(times),
        "error": float(abs(gap).max() / abs(expected).max()),
        "entries": int(expected.nnz),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=os.environ.get("TORCH_PYTHON", sys.executable))
    parser.add_argument("--quick", action="store_true", help="the smallest size of each problem")
    parser.add_argument(
        "--one", nargs=3, metavar=("LIBRARY", "PROBLEM", "N"), help="measure this, print JSON"
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], options.one[1], int(options.one[2]))))
        return
    print("| Hessian of | entries | library | median, ms | range, ms | first call, s | error |")
    print("|---|---:|---|---:|---:|---:|---:|")
    environment = {
        **os.environ,
        "GLOG_v": "3",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    for problem, sizes in SIZES.items():
        for n in sizes[:1] if options.quick else sizes:
            for library, most in LIBRARIES.items():
                if n > most:
                    continue
                python = sys.executable if library.startswith("ours") else options.torch_python
                done = subprocess.run(
                    [python, __file__, "--one", library, problem, str(n)],
                    env=environment,
                    text=True,
                    capture_output=True,
                )
                if done.returncode:
                    print(
                        f"{library}, {problem}, n = {n}: {done.stderr.strip().splitlines()[-1:]}",
                        file=sys.stderr,
                    )
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"| {problem}, n = {n:,} | {row['entries']:,} | {library} | "
                    f"{row['median'] * 1e3:.3g} | "
                    f"{row['low'] * 1e3:.3g} to {row['high'] * 1e3:.3g} | {row['first']:.2f} | "
                    f"{row['error']:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
