"""K-FAC beside Adam on an autoencoder of handwritten digits (scikit-learn, 8 x 8), full batch.

    python ci/bench/optim_kfac.py [--costs] [--seeds 0 1 2] [--steps 200] [--adam 10000] [--rates
    1e-3 3e-3 1e-2]
        [--only NAME] [--digits 500] [--background]

A network of 64-32-16-8-16-32-64 with tanh, the loss a sigmoid cross-entropy, the mean over all
entries. Prints what a step costs, in turn, ten steps each, five times over: the median of CPU
milliseconds (all threads) and of wall milliseconds of a step, and how many steps of Adam that is;
K-FAC with its inverses once in ten steps, Monte-Carlo. Then, without --costs, the best loss so far
of each seed along the steps, with CPU and wall seconds after the first two steps, which compile
(their own CPU seconds are the last column). Adam is trained as MindSpore's tutorial does, with one
compiled function of ``value_and_grad``. --only: those whose names begin so, without the first
table. --background: only what a step of a wide network (64-800-800-64) costs with its inverses once
in ten steps, in the step and in the background: means, and the longest step, of three rounds.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("GLOG_v", "4")
import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Tensor, nn  # noqa: E402
from optim_training import print_costs  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from mindspore_hessian import optim  # noqa: E402

WIDTHS = (64, 32, 16, 8, 16, 32, 64)
MARKS = (100, 200, 2000, 10000)


def network(seed):
    ms.set_seed(seed)
    np.random.seed(seed)
    cells = []
    for wide, narrow in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        cells += [
            nn.Dense(wide, narrow, weight_init="xavier_uniform", bias_init="zeros"),
            nn.Tanh(),
        ]
    return nn.SequentialCell(*cells[:-1])


def digits(count):
    return Tensor((load_digits(return_X_y=True)[0][:count] / 16).astype(np.float32))


def adam(net, loss_fn, rate):
    optimizer = nn.Adam(net.trainable_params(), rate)

    def forward(x, y):
        return loss_fn(net(x), y)

    value_and_grad = ms.value_and_grad(forward, None, optimizer.parameters)

    @ms.jit
    def step(x, y):
        value, gradients = value_and_grad(x, y)
        optimizer(gradients)
        return value

    return step


def kfac(net, loss_fn, rate, **options):
    return optim.TrainStep(net, loss_fn, optim.KFAC(net, rate, **options))


# with all data in a batch there is no noise to average out, and factors of old weights only mislead
ADAPTIVE = {"adaptive": True, "damping": 0.01, "curvature_ema": 0.8, "inverse_update_period": 10}
FIXED = {"inverse_update_period": 10}


def costs(x, rounds=5, count=10):
    loss_fn, steps = nn.BCEWithLogitsLoss(), {}
    for name, make in (
        ("Adam", lambda net: adam(net, loss_fn, 1e-3)),
        ("K-FAC", lambda net: kfac(net, loss_fn, 0.03, **FIXED)),
        (
            "K-FAC, adaptive",
            lambda net: kfac(net, loss_fn, 0.03, **ADAPTIVE),
        ),
    ):
        steps[name] = make(network(0))
        for _ in range(count):
            steps[name](x, x).asnumpy()
    print_costs(steps, (x, x), rounds, count)


def background(x, rounds=3, count=40):
    """In turn, so that both have the same machine."""
    steps = {}
    for aside in (False, True):
        ms.set_seed(0)
        net = nn.SequentialCell(
            nn.Dense(64, 800), nn.Tanh(), nn.Dense(800, 800), nn.Tanh(), nn.Dense(800, 64)
        )
        steps[aside] = kfac(net, nn.BCEWithLogitsLoss(), 0.03, **FIXED, background=aside)
        for _ in range(12):
            steps[aside](x, x).asnumpy()
    print("| inverses | CPU, ms | ms | longest step, ms |\n|---|---:|---:|---:|")
    for _ in range(rounds):
        for aside, step in steps.items():
            cpu, longest, start = time.process_time(), 0.0, time.perf_counter()
            for _ in range(count):
                begun = time.perf_counter()
                step(x, x).asnumpy()
                longest = max(longest, time.perf_counter() - begun)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - start
            print(
                f"| {'in the background' if aside else 'in the step'} | {1e3 * cpu / count:.0f} | "
                f"{1e3 * wall / count:.0f} | {1e3 * longest:.0f} |",
                flush=True,
            )


def train(step, x, count):
    """The best loss so far and seconds at the marks."""
    out, best, start, first = {}, np.inf, (time.process_time(), time.perf_counter()), 0.0
    for number in range(count + 1):
        best = min(best, float(step(x, x).asnumpy()))  # before the step
        now = time.process_time(), time.perf_counter()
        if number == 1:
            first, start = now[0] - start[0], now
        if number in MARKS:
            out[number] = best, now[0] - start[0], now[1] - start[1]
    return out, first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--adam", type=int, default=10000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--digits", type=int, default=500)
    given = parser.parse_args()
    x, loss_fn = digits(given.digits), nn.BCEWithLogitsLoss()
    if given.background:
        background(x)
        return
    if not given.only:
        costs(x)
    if given.costs:
        return
    print(
        "\n| optimizer | seed | step | best loss | CPU, s | s | first steps, CPU s |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for seed in given.seeds:
        runs = [("K-FAC, adaptive", lambda net: kfac(net, loss_fn, 0.03, **ADAPTIVE), given.steps)]
        runs.append(("K-FAC, rate 0.1", lambda net: kfac(net, loss_fn, 0.1, **FIXED), given.steps))
        runs += [
            (f"Adam, rate {rate:g}", lambda net, rate=rate: adam(net, loss_fn, rate), given.adam)
            for rate in given.rates
        ]
        for name, make, count in (run for run in runs if run[0].startswith(given.only)):
            found, first = train(make(network(seed)), x, count)
            for mark, (loss, cpu, wall) in found.items():
                print(
                    f"| {name} | {seed} | {mark} | {loss:.5f} | {cpu:.1f} | {wall:.1f} | "
                    f"{first:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
