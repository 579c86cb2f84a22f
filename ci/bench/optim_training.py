"""AdaHessian, Sophia and K-FAC beside Adam on a convolutional classifier of handwritten digits
(scikit-learn, 8 x 8).

    python ci/bench/optim_training.py [--costs] [--only NAME] [--seeds 0 1 2] [--epochs 10] [--batch
    64]

Prints two tables. What a step costs, all optimizers in turn, ten steps each, five times over: the
median of CPU milliseconds (all threads) and of wall milliseconds of a step, and how many steps of
Adam that is. Sophia's curvature is in one step of the ten, and so are K-FAC's inverses. Then,
without --costs, for each optimizer, learning rate and seed the accuracy on 500 digits that were
not trained on, the last epoch's mean loss, and CPU seconds, of which the first steps, which compile. Adam is trained as
MindSpore's tutorial does, with one compiled function of ``value_and_grad``; the others by
TrainStep.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("GLOG_v", "4")
import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Tensor, nn  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from mindspore_hessian import optim  # noqa: E402


def network(seed):
    ms.set_seed(seed)
    return nn.SequentialCell(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 16, 3),
        nn.BatchNorm2d(16),
        nn.GELU(),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Dense(256, 10),
    ).set_train()


def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images[order].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    labels = labels[order].astype(np.int32)
    return (images[500:], labels[500:]), (images[:500], labels[:500])


def plain_step(net, loss_fn, optimizer):
    def forward(x, y):
        return loss_fn(net(x), y)

    value_and_grad = ms.value_and_grad(forward, None, optimizer.parameters)

    @ms.jit
    def step(x, y):
        value, gradients = value_and_grad(x, y)
        optimizer(gradients)
        return value

    return step


def of_parameters(kind):
    """An optimizer that is made of Parameters, made of a network."""

    def make(net, rate, **options):
        return kind(net.trainable_params(), rate, **options)

    return make


RUNS = [
    ("Adam", plain_step, of_parameters(nn.Adam), (1e-3, 3e-3, 1e-2), {}),
    (
        "AdaHessian",
        optim.TrainStep,
        of_parameters(optim.AdaHessian),
        (0.01, 0.03, 0.1),
        {"spatial_average": "kernel"},
    ),
    ("Sophia, Hutchinson", optim.TrainStep, of_parameters(optim.Sophia), (1e-3, 3e-3), {}),
    (
        "Sophia, GNB",
        optim.TrainStep,
        of_parameters(optim.Sophia),
        (1e-3, 3e-3),
        {"estimator": "gnb"},
    ),
    ("K-FAC", optim.TrainStep, optim.KFAC, (0.03, 0.1, 0.3), {"inverse_update_period": 10}),
]


def costs(batch, rounds=5, count=10):
    (images, labels), _ = digits()
    x, y, steps = Tensor(images[:batch]), Tensor(labels[:batch]), {}
    for name, make, kind, rates, options in RUNS:
        net = network(0)
        steps[name] = make(net, nn.CrossEntropyLoss(), kind(net, rates[0], **options))
        for _ in range(count):
            steps[name](x, y).asnumpy()
    print_costs(steps, (x, y), rounds, count)


def print_costs(steps, batch, rounds, count):
    """The median time of a step of each optimizer, in turns, and in steps of Adam."""
    found = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(count):
                step(*batch).asnumpy()
            found[name].append(
                ((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)
            )
    print(
        "| optimizer | step, CPU ms | step, ms | steps of Adam, CPU | steps of Adam "
        "|\n|---|---:|---:|---:|---:|"
    )
    adam = np.median(found["Adam"], axis=0)
    for name, times in found.items():
        cpu, wall = np.median(times, axis=0)
        print(
            f"| {name} | {cpu * 1e3:.1f} | {wall * 1e3:.1f} | {cpu / adam[0]:.2f} | "
            f"{wall / adam[1]:.2f} |"
        )


def train(make, kind, rate, options, seed, epochs, batch):
    (images, labels), (held, truth) = digits()
    net, loss_fn = network(seed), nn.CrossEntropyLoss()
    step = make(net, loss_fn, kind(net, rate, **options))
    rng, losses, cpu, first = np.random.default_rng(seed), [], time.process_time(), None
    for _ in range(epochs):
        order, losses = rng.permutation(len(labels)), []
        for start in range(0, len(labels) - batch + 1, batch):
            chosen = order[start : start + batch]
            losses.append(float(step(Tensor(images[chosen]), Tensor(labels[chosen])).asnumpy()))
            if len(losses) == 2 and first is None:
                first = time.process_time() - cpu
    cpu = time.process_time() - cpu
    net.set_train(False)
    right = (net(Tensor(held)).asnumpy().argmax(1) == truth).mean()
    return right, np.mean(losses), cpu, first


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument(
        "--only", default="", help="train optimizers whose names begin so, without the first table"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    if not given.only:
        costs(given.batch)
    if given.costs:
        return
    print(
        "\n| optimizer | rate | seed | accuracy | last loss | CPU, s | first steps, CPU s |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    )
    for seed in given.seeds:
        for name, make, kind, rates, options in RUNS:
            for rate in rates if name.startswith(given.only) else ():
                right, loss, cpu, first = train(
                    make, kind, rate, options, seed, given.epochs, given.batch
                )
                print(
                    f"| {name} | {rate:g} | {seed} | {right:.3f} | {loss:.4f} | {cpu:.0f} | "
                    f"{first:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
