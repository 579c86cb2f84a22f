"""The pictures of the README and of docs/: a small network on scikit-learn's digits, trained by gradient descent
at two learning rates, and the curvature of its loss where the second ended. Written to
docs/figures/, 600 pixels wide."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")  # MindSpore's log says nothing here that a user could act on

import matplotlib
import mindspore as ms
import numpy as np
from mindspore import nn
from sklearn.datasets import load_digits
from tqdm import tqdm

import mindspore_hessian as mh
from mindspore_hessian import plot

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
RATES, STEPS, EVERY, SAMPLES = (0.5, 0.9), 900, 30, 500


def data() -> tuple[ms.Tensor, ms.Tensor]:
    """Images as rows of 64 pixels around their mean, and the digits one-hot."""
    digits = load_digits()
    images = digits.data[:SAMPLES] / 16
    return (
        ms.Tensor(images - images.mean(axis=0), ms.float32),
        ms.Tensor(np.eye(10)[digits.target[:SAMPLES]], ms.float32),
    )


def squared_error(output, target):
    return ((output - target) ** 2).sum(axis=1).mean() / 2


def train(net, x, y, rate) -> mh.CurvatureMonitor:
    """Gradient descent on all samples at once, watched."""
    optimizer = nn.SGD(net.trainable_params(), rate)

    def loss(x, y):
        return squared_error(net(x), y)

    gradient = ms.grad(loss, None, optimizer.parameters)

    @ms.jit
    def descend(x, y):
        optimizer(gradient(x, y))

    monitor = mh.CurvatureMonitor(
        (x, y),
        net,
        squared_error,
        every=EVERY,
        metrics=("sharpness",),
        progress=False,
        options={"reduction": "mean"},
    )
    monitor.measure(0, rate)
    for step in tqdm(range(1, STEPS + 1), desc=f"training at {rate}", ncols=100):
        descend(x, y)
        monitor.step(step, rate)
    return monitor


def save(ax, name: str, title: str | None = None) -> None:
    """Into docs/figures/, with the function's own title, or another."""
    if title is not None:
        ax.set_title(title, fontsize=11)
    path = FOLDER / f"{name}.png"
    ax.figure.savefig(path, dpi=100, metadata={"Software": None})
    print(f"{path.relative_to(FOLDER.parents[1])}: {path.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    matplotlib.use("Agg")
    FOLDER.mkdir(parents=True, exist_ok=True)
    x, y = data()
    ax = None
    for rate in RATES:
        ms.set_seed(0)
        net = nn.SequentialCell(
            nn.Dense(64, 16), nn.Tanh(), nn.Dense(16, 16), nn.Tanh(), nn.Dense(16, 10)
        )
        monitor = train(net, x, y, rate)
        ax = plot.training(monitor.history, ax, label=f"sharpness at learning rate {rate}")
    save(ax, "sharpness", "Gradient descent ends at a sharpness of about 2 / learning rate")
    op = monitor.op
    save(
        plot.density(mh.spectral_density(op, num_probes=16, num_steps=80)),
        "density",
        "Spectral density of the Hessian; the band is one standard error",
    )
    top = mh.eigsh(op, k=2, tol=1e-4)
    save(
        plot.loss_plane(op, top.vector(0), top.vector(1), radius=6, points=31),
        "plane",
        "Loss along the top two eigenvectors",
    )
    save(plot.layers(mh.layer_report(op, num_probes=64)), "layers", "Curvature of each layer")
    save(plot.factors(mh.KFACOperator(net, nn.MSELoss(), (x, y), progress=False)), "factors")


if __name__ == "__main__":
    main()
