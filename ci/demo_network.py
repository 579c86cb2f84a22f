"""The demo's data, network and loss in plain MindSpore: what a user has before importing this
library.

As a script, it runs the recipe of MindSpore's tutorial on a saved network in MindSpore alone;
demo.py starts it so, because a process that has imported the library has its derivative rules.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("GLOG_v", "3")  # MindSpore's log says nothing here that a user could act on

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from sklearn.datasets import load_digits


class Network(nn.Cell):
    """Two convolutions, two poolings, a dense layer; smooth, so that differences of the gradient
    can check it.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, has_bias=True)
        self.conv2 = nn.Conv2d(8, 16, 3, has_bias=True)
        self.pool = nn.AvgPool2d(2, 2)
        self.out = nn.Dense(64, 10)

    def construct(self, x):
        x = self.pool(ops.tanh(self.conv1(x)))
        x = self.pool(ops.tanh(self.conv2(x)))
        return self.out(x.reshape(x.shape[0], -1))


def data() -> tuple[np.ndarray, np.ndarray]:
    """The images, from 0 to 1 and of shape (1797, 1, 8, 8), and the digits on them."""
    digits = load_digits()
    return (digits.images[:, None] / 16).astype(np.float32), digits.target.astype(np.int32)


def recipe(f, x, v):
    """The tutorial's Hessian-vector product."""
    return ms.jvp(ms.grad(f), x, v)[1]


def distance(found, expected) -> float:
    """Largest error, relative to the largest entry."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def main(checkpoint: str, arrays: str) -> None:
    """Print what the recipe gives for a saved network and digit, with both ways of giving the
    classes.
    """
    net, cross_entropy = Network(), nn.CrossEntropyLoss()
    ms.load_param_into_net(net, ms.load_checkpoint(checkpoint))
    saved = np.load(arrays)
    x, v, label = ms.Tensor(saved["x"]), ms.Tensor(saved["v"]), ms.Tensor(saved["label"])
    one_hot = ms.Tensor(np.eye(10, dtype=np.float32)[saved["label"]])

    def indices(x):
        return cross_entropy(net(x), label)

    def probabilities(x):
        return -(ops.log_softmax(net(x)) * one_hot).sum()

    for name, f in (("class indices", indices), ("one-hot classes", probabilities)):
        try:
            error = distance(recipe(f, x, v).asnumpy(), saved["expected"])
            print(f"{name:<16} relative error {error:.1e}, without a message")
        except RuntimeError as error:
            print(f"{name:<16} {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
