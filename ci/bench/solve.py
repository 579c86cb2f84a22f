"""Products that `solve` takes for several right-hand sides of a real Gauss-Newton matrix, one after
another and together, with and without Nyström of rank 50. The network is 64-16-10 with tanh, trained
on 500 digits, 1,210 weights; the right-hand sides are the gradients of digits that it has not seen, as
`influence` solves for them. Once with the operator, in float32, and once with its matrix in float64 to
a smaller residual. Nyström's products count, once for each call of `solve`: one after another has them
k times. Each solution is compared with that of the whole matrix. Prints a markdown table.

Usage: python ci/bench/solve.py
"""

from __future__ import annotations

import os

os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np
from mindspore import nn
from sklearn.datasets import load_digits

import mindspore_hessian as mh

COLUMNS, RANK, DAMPING, SAMPLES, EPOCHS = (1, 4, 16), 50, 1e-3, 500, 300
TOLS = {"the operator, float32": 1e-4, "its matrix, float64": 1e-8}


def problem() -> tuple[mh.GGNOperator, np.ndarray]:
    """The operator of a trained network, and gradients of samples as columns."""
    ms.set_seed(0)
    digits, last = load_digits(), SAMPLES + max(COLUMNS)
    x, y = ms.Tensor(digits.data / 16, ms.float32), ms.Tensor(digits.target, ms.int32)
    net, loss = (
        nn.SequentialCell(nn.Dense(64, 16), nn.Tanh(), nn.Dense(16, 10)),
        nn.CrossEntropyLoss(),
    )
    step = nn.TrainOneStepCell(nn.WithLossCell(net, loss), nn.SGD(net.trainable_params(), 0.5))
    for _ in range(EPOCHS):
        value = step(x[:SAMPLES], y[:SAMPLES])
    op = mh.GGNOperator(net, loss, (x[:SAMPLES], y[:SAMPLES]), progress=False)
    print(f"loss {float(value):.3f}, ", end="")
    gradients = mh.per_sample_gradients(net, loss, (x[SAMPLES:last], y[SAMPLES:last]))
    return op, np.asarray(gradients, np.float64).T


def solved(op, b: np.ndarray, tol: float, preconditioner: str | None) -> tuple[np.ndarray, int]:
    found = mh.solve(
        op, b, DAMPING, tol=tol, max_products=50_000, progress=False, seed=1,
        preconditioner=preconditioner, rank=RANK,
    )  # fmt: skip
    assert found.converged, found
    return found.x, found.num_products


def main() -> None:
    op, gradients = problem()
    dense = op.to_dense().astype(np.float64)
    dense = (dense + dense.T) / 2
    damped = dense + DAMPING * np.eye(len(dense))
    truth = np.linalg.solve(damped, gradients)
    print(f"condition with the damping {np.linalg.cond(damped):,.0f}\n")
    print("| matrix, residual | k | preconditioner | one after another | together |")
    print("|---|---|---|---|---|")
    for (kind, tol), matrix in zip(TOLS.items(), (op, dense), strict=True):
        for k in COLUMNS:
            for preconditioner in (None, "nystrom"):
                alone = [solved(matrix, one, tol, preconditioner) for one in gradients[:, :k].T]
                x, together = solved(matrix, gradients[:, :k], tol, preconditioner)
                for found in (x, np.stack([one for one, _ in alone], axis=1)):
                    error = np.linalg.norm(found - truth[:, :k]) / np.linalg.norm(truth[:, :k])
                    assert error < 100 * tol, error
                products = sum(count for _, count in alone)
                print(
                    f"| {kind}, {tol:g} | {k} | {preconditioner or 'none'} | {products:,} "
                    f"| {together:,} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
