"""Levenberg-Marquardt beside Adam on a physics-informed network for Poisson's equation: in one
dimension -u'' = (4 pi)^2 sin(4 pi x), in two -(u_xx + u_yy) = 2 pi^2 sin(pi x) sin(pi y), with u = 0
at the boundary of the unit interval or square.

    python ci/bench/optim_pinn.py [--dimensions 1] [--seeds 0 1 2] [--steps 300] [--adam 20000]
    [--budget SECONDS] [--only adam]

Prints a line for each run: method, seed, steps, seconds (of which compiling), relative error in L2,
and when Levenberg-Marquardt reached the target (2e-5, and 1e-5 in two dimensions).
Adam gets the best of the learning rates given by --rates, in float32 as one trains such networks
and in float64 with --adam-dtype; its training step is one compiled graph, whose second derivative
is written as two gradients of a sum.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

os.environ.setdefault("GLOG_v", "4")
import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Tensor, nn, ops  # noqa: E402

import mindspore_hessian as mh  # noqa: E402
from mindspore_hessian import optim  # noqa: E402


@dataclass(frozen=True)
class Problem:
    """-Laplacian u = d (k pi)^2 u, whose solution is the product of sin(k pi x_i).

    Attributes:
        dimensions, frequency: d and k.
        points, grid: along an axis, to train and to measure the error at.
        width: of both layers.
        factor: of the network's output.
        target: the relative error that is wanted.
    """

    dimensions: int
    frequency: int
    points: int
    grid: int
    width: int
    factor: float
    target: float

    def at(self, count):
        """The points of a grid, and the solution there."""
        axes = [np.linspace(0.0, 1.0, count)] * self.dimensions
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.dimensions)
        return points, np.sin(self.frequency * np.pi * points).prod(1)

    def data(self, dtype):
        points, solution = self.at(self.points)
        source = self.dimensions * (self.frequency * np.pi) ** 2 * solution
        return Tensor(points, dtype), Tensor(source, dtype)

    def error(self, net, dtype):
        points, exact = self.at(self.grid)
        return np.linalg.norm(net(Tensor(points, dtype)).asnumpy() - exact) / np.linalg.norm(exact)


PROBLEMS = {
    1: Problem(1, 4, points=60, grid=501, width=20, factor=1.0, target=2e-5),
    2: Problem(2, 1, points=16, grid=65, width=16, factor=16.0, target=1e-5),
}


class Solution(nn.Cell):
    """A function of a point that is 0 at the boundary."""

    def __init__(self, problem, seed, dtype):
        super().__init__()
        ms.set_seed(seed)
        self.dimensions, self.factor, width = problem.dimensions, problem.factor, problem.width
        self.body = nn.SequentialCell(
            nn.Dense(self.dimensions, width, dtype=dtype),
            nn.Tanh(),
            nn.Dense(width, width, dtype=dtype),
            nn.Tanh(),
            nn.Dense(width, 1, dtype=dtype),
        )

    def construct(self, points):
        x = points.reshape(-1, self.dimensions)
        edge = self.factor * x[:, :1] * (1 - x[:, :1])
        if self.dimensions == 2:
            edge = edge * x[:, 1:] * (1 - x[:, 1:])
        return (edge * self.body(x)).reshape(points.shape[:-1])


def levenberg_marquardt(problem, seed, steps):
    net, (points, source) = Solution(problem, seed, ms.float64), problem.data(ms.float64)
    laplace, root = mh.laplacian(net, in_axes=0), len(points) ** 0.5

    def residuals(points, source):
        return (laplace(points) + source) / root

    solver, start = optim.LevenbergMarquardt(residuals, net.trainable_params()), time.perf_counter()
    solver.step(points, source)
    first = time.perf_counter() - start
    reached = None
    while solver.num_steps < steps:
        solver.step(points, source)
        looks = reached is None and solver.num_steps % 5 == 0
        if looks and problem.error(net, ms.float64) <= problem.target:
            reached = solver.num_steps, time.perf_counter() - start
    return first, time.perf_counter() - start, problem.error(net, ms.float64), reached


def adam(problem, seed, steps, rate, dtype, budget):
    net, (points, source) = Solution(problem, seed, dtype), problem.data(dtype)

    def total(points):
        return net(points).sum()

    along = ms.grad(total)

    def first_slope(points):
        return along(points)[:, 0].sum()

    def last_slope(points):
        return along(points)[:, -1].sum()

    first_twice, last_twice = ms.grad(first_slope), ms.grad(last_slope)

    def loss(points, source):
        laplacian = first_twice(points)[:, 0]
        if points.shape[1] == 2:
            laplacian = laplacian + last_twice(points)[:, 1]
        return ops.mean((laplacian + source) ** 2)

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
    return first, time.perf_counter() - start, problem.error(net, dtype), done


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, choices=PROBLEMS, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--adam", type=int, default=20000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-2, 3e-3])
    parser.add_argument("--adam-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--budget", type=float)
    parser.add_argument("--only", choices=("adam", "levenberg-marquardt"))
    given = parser.parse_args()
    problem = PROBLEMS[given.dimensions]
    print(
        "| method | seed | steps | first step, s | all, s | CPU, s | relative error | "
        f"{problem.target:.0e} reached |\n"
        "|---|---:|---:|---:|---:|---:|---:|---|"
    )
    for seed in given.seeds:
        if given.only != "adam":
            cpu = time.process_time()
            first, seconds, found, reached = levenberg_marquardt(problem, seed, given.steps)
            told = f"step {reached[0]}, {reached[1]:.1f} s" if reached else "no"
            print(
                f"| Levenberg-Marquardt | {seed} | {given.steps} | {first:.1f} | {seconds:.1f} | "
                f"{time.process_time() - cpu:.1f} | {found:.1e} | {told} |",
                flush=True,
            )
        for rate in given.rates if given.only != "levenberg-marquardt" else ():
            cpu = time.process_time()
            first, seconds, found, done = adam(
                problem, seed, given.adam, rate, getattr(ms, given.adam_dtype), given.budget
            )
            print(
                f"| Adam, rate {rate:g} | {seed} | {done} | {first:.1f} | {seconds:.1f} | "
                f"{time.process_time() - cpu:.1f} | {found:.1e} | "
                f"{'yes' if found <= problem.target else 'no'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
