"""Golden values for tests/test_inplace.py: products of a small ResNet whose blocks say ``out +=
identity``.

Run with a Python that has torch: ``python ci/golden/make_resnet.py``. The network is the ResNet of
mindcv (v0.3, BasicBlock, layers of one block, BatchNorm in evaluation) with CHANNELS, for 3
classes; the loss is the mean cross entropy. Weights, inputs and the vector come from the formula
`drawn`, which the test repeats. All is float64. Keys:

    names     of the parameters in the order of MindSpore's ``get_parameters()``
    ggn       J^T H J v, flat, in the order of the trainable ones
    empirical 1/N sum_n g_n (g_n^T v), g_n the gradient of one sample's loss
    hessian   H v
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call, jvp, vjp
from torch.nn import functional

TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "resnet.npz"
CHANNELS, CLASSES, BATCH, SIZE = (4, 8), 3, 4, 12
BN = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter, by its name in MindSpore."""
    seed = sum((place + 1) * ord(letter) for place, letter in enumerate(name)) % 2**31
    values = np.random.RandomState(seed).standard_normal(shape)
    if name.endswith("gamma"):
        return 1 + 0.2 * values
    if name.endswith("moving_variance"):
        return 1 + 0.3 * np.abs(values)
    return 0.3 * values if values.ndim < 2 else values / np.sqrt(np.prod(shape[1:]))


class BasicBlock(torch.nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(channels)
        self.conv2 = torch.nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(channels)
        self.down_sample = (
            torch.nn.Sequential(
                torch.nn.Conv2d(inputs, channels, 1, stride, bias=False),
                torch.nn.BatchNorm2d(channels),
            )
            if stride != 1 or inputs != channels
            else None
        )

    def forward(self, x):
        identity = x if self.down_sample is None else self.down_sample(x)
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + identity)


class ResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, CHANNELS[0], 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(CHANNELS[0])
        self.layer1 = torch.nn.Sequential(BasicBlock(CHANNELS[0], CHANNELS[0], 1))
        self.layer2 = torch.nn.Sequential(BasicBlock(CHANNELS[0], CHANNELS[1], 2))
        self.classifier = torch.nn.Linear(CHANNELS[1], CLASSES)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(
            functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2
        )  # pad_mode "same", even
        x = self.layer2(self.layer1(x))
        return self.classifier(x.mean((2, 3)))


def mindspore_name(name: str, norms: set[str]) -> str:
    owner, _, kind = name.rpartition(".")
    return f"{owner}.{BN[kind]}" if owner in norms else name


def main() -> None:
    network = ResNet().double().eval()
    norms = {
        name for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    names, trained = [], {}
    for (
        owner,
        module,
    ) in network.named_modules():  # MindSpore's order: those of a layer, its statistics first
        for kind in ("running_mean", "running_var", "weight", "bias"):
            value = getattr(module, kind, None)
            if value is None:
                continue
            name = mindspore_name(f"{owner}.{kind}", norms)
            value.data.copy_(torch.from_numpy(drawn(name, tuple(value.shape))))
            names.append(name)
            if "running" not in kind:
                trained[f"{owner}.{kind}"] = value.detach()
    x = torch.from_numpy(drawn("x", (BATCH, 3, SIZE, SIZE)) * np.sqrt(3 * SIZE * SIZE))
    y = torch.arange(BATCH) % CLASSES
    count = sum(value.numel() for value in trained.values())
    parts = torch.from_numpy(drawn("v", (count,)) / 0.3).split(
        [value.numel() for value in trained.values()]
    )
    v = {name: part.reshape(trained[name].shape) for name, part in zip(trained, parts, strict=True)}

    def outputs(weights):
        return functional_call(network, weights, (x,))

    def loss(weights):
        return functional.cross_entropy(outputs(weights), y)

    out, pushed = jvp(outputs, (trained,), (v,))
    pull = vjp(outputs, trained)[1]
    p = torch.softmax(out, 1)
    slopes = p - functional.one_hot(y, CLASSES)
    products = {
        "ggn": pull((p * pushed - p * (p * pushed).sum(1, keepdim=True)) / BATCH)[0],
        "empirical": pull(slopes * (slopes * pushed).sum(1, keepdim=True) / BATCH)[0],
        "hessian": jvp(torch.func.grad(loss), (trained,), (v,))[1],
    }
    flat = {
        name: torch.cat([value.flatten() for value in product.values()]).numpy()
        for name, product in products.items()
    }
    np.savez_compressed(TARGET, names=np.array(names), **flat)


if __name__ == "__main__":
    main()
