"""Levenberg-Marquardt beside Adam on a physics-informed network: -u'' = (4 pi)^2 sin(4 pi x), u(0)
= u(1) = 0.

    python ci/bench/optim_pinn.py [--seeds 0 1 2] [--steps 300] [--adam 20000] [--budget SECONDS]
    [--only adam]

Prints a line for each run: method, seed, steps, seconds (of which compiling), relative error in L2.
Adam gets the best of the learning rates given by --rates, in float32 as one trains such networks
and in float64 with --adam-dtype; its training step is one compiled graph, whose second derivative
is written as two gradients of a sum.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("GLOG_v", "4")
import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Tensor, nn, ops  # noqa: E402

import mindspore_hessian as mh  # noqa: E402
from mindspore_hessian import optim  # noqa: E402

FREQUENCY, POINTS, WIDTH = 4, 60, 20


class Solution(nn.Cell):
    """A function of a point in (0, 1) that is 0 at its ends."""

    def __init__(self, seed, dtype):
        super().__init__()
        ms.set_seed(seed)
        self.body = nn.SequentialCell(
            nn.Dense(1, WIDTH, dtype=dtype),
            nn.Tanh(),
            nn.Dense(WIDTH, WIDTH, dtype=dtype),
            nn.Tanh(),
            nn.Dense(WIDTH, 1, dtype=dtype),
        )

    def construct(self, points):
        x = points.reshape(-1, 1)
        return (x * (1 - x) * self.body(x)).reshape(points.shape[:-1])


def problem(seed, dtype):
    net, points = Solution(seed, dtype), np.linspace(0.0, 1.0, POINTS)[:, None]
    source = (FREQUENCY * np.pi) ** 2 * np.sin(FREQUENCY * np.pi * points[:, 0])
    return net, Tensor(points, dtype), Tensor(source, dtype)


def error(net, dtype):
    grid = np.linspace(0.0, 1.0, 501)[:, None]
    exact = np.sin(FREQUENCY * np.pi * grid[:, 0])
    return np.linalg.norm(net(Tensor(grid, dtype)).asnumpy() - exact) / np.linalg.norm(exact)


def levenberg_marquardt(seed, steps):
    net, points, source = problem(seed, ms.float64)
    laplace = mh.laplacian(net, in_axes=0)

    def residuals(points, source):
        return (laplace(points) + source) / POINTS**0.5

    solver, start = optim.LevenbergMarquardt(residuals, net.trainable_params()), time.perf_counter()
    solver.step(points, source)
    first = time.perf_counter() - start
    reached = None
    while solver.num_steps < steps:
        solver.step(points, source)
        if reached is None and solver.num_steps % 5 == 0 and error(net, ms.float64) <= 2e-5:
            reached = solver.num_steps, time.perf_counter() - start
    return first, time.perf_counter() - start, error(net, ms.float64), reached


def adam(seed, steps, rate, dtype, budget):
    net, points, source = problem(seed, dtype)

    def total(points):
        return net(points).sum()

    along = ms.grad(total)

    def slope(points):
        return along(points).sum()

    twice = ms.grad(slope)

    def loss(points, source):
        return ops.mean((twice(points).reshape(-1) + source) ** 2)

    schedule = nn.cosine_decay_lr(0.0, rate, steps, steps, 1)
    optimizer = nn.Adam(net.trainable_params(), schedule)
    value_and_grad = ms.value_and_grad(loss, None, optimizer.parameters)

    @ms.jit
    def step(points, source):
        value, gradients = value_and_grad(points, source)
        optimizer(gradients)
        return value

    start = time.perf_counter()
    step(points, source)
    first, done = time.perf_counter() - start, 1
    while done < steps and (budget is None or time.perf_counter() - start < budget):
        step(points, source)
        done += 1
    return first, time.perf_counter() - start, error(net, dtype), done


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--adam", type=int, default=20000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-2, 3e-3])
    parser.add_argument("--adam-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--only", choices=("adam", "levenberg-marquardt"))
    given = parser.parse_args()
    print(
        "| method | seed | steps | first step, s | all, s | CPU, s | relative error | 2e-5 reached "
        "|\n"
        "|---|---:|---:|---:|---:|---:|---:|---|"
    )
    for seed in given.seeds:
        if given.only != "adam":
            cpu = time.process_time()
            first, seconds, found, reached = levenberg_marquardt(seed, given.steps)
            told = f"step {reached[0]}, {reached[1]:.1f} s" if reached else "no"
            print(
                f"| Levenberg-Marquardt | {seed} | {given.steps} | {first:.1f} | {seconds:.1f} | "
                f"{time.process_time() - cpu:.1f} | {found:.1e} | {told} |",
                flush=True,
            )
        for rate in given.rates if given.only != "levenberg-marquardt" else ():
            cpu = time.process_time()
            first, seconds, found, done = adam(
                seed, given.adam, rate, getattr(ms, given.adam_dtype), given.budget
            )
            print(
                f"| Adam, rate {rate:g} | {seed} | {done} | {first:.1f} | {seconds:.1f} | "
                f"{time.process_time() - cpu:.1f} | {found:.1e} | "
                f"{'yes' if found <= 2e-5 else 'no'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
