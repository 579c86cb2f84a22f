"""What scores of influence cost on the digits: 1,500 training images and 297 test images, a network
of 2,410 weights, its curvature by EKFAC with the defaults. Prints the seconds of the first call in
this process, which compiles, and of later ones with data of their own.

Usage: python ci/bench/influence.py [--curvature ekfac] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time

import mindspore as ms
import numpy as np
from mindspore import nn
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import mindspore_hessian as mh

TRAIN, TRAIN_BATCH, TEST_BATCH = 1500, 150, 99


def trained(x: np.ndarray, y: np.ndarray) -> nn.Cell:
    """64-32-10 with ReLU, fitted by scikit-learn."""
    fitted = MLPClassifier((32,), alpha=1e-3, random_state=0, max_iter=60)
    with np.errstate(all="ignore"):
        fitted.fit(x, y)
    net = nn.SequentialCell(nn.Dense(64, 32), nn.ReLU(), nn.Dense(32, 10))
    for cell, weight, bias in zip((net[0], net[2]), fitted.coefs_, fitted.intercepts_, strict=True):
        cell.weight.set_data(ms.Tensor(weight.T, ms.float32))
        cell.bias.set_data(ms.Tensor(bias, ms.float32))
    return net


def batches(x: np.ndarray, y: np.ndarray, size: int) -> list[tuple[ms.Tensor, ms.Tensor]]:
    return [
        (ms.Tensor(x[start : start + size]), ms.Tensor(y[start : start + size]))
        for start in range(0, len(x), size)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curvature", default="ekfac")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)
    net, loss = trained(x[:TRAIN], y[:TRAIN]), nn.CrossEntropyLoss()
    for number in range(1 + options.rounds):
        train = batches(x[:TRAIN], y[:TRAIN], TRAIN_BATCH)
        test = batches(x[TRAIN:], y[TRAIN:], TEST_BATCH)
        start = time.perf_counter()
        scores = mh.influence(net, loss, train, test, curvature=options.curvature, progress=False)
        seconds = time.perf_counter() - start
        kind = "later" if number else "first"
        print(f"{options.curvature}, {scores.shape}, {kind} call: {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
