"""The networks of ci/golden/make_networks.py in MindSpore, with the golden values that torch and
jax agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

GOLDEN = Path(__file__).parent / "golden" / "networks.npz"


class MLP(nn.Cell):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Dense(4, 8), nn.Dense(8, 3)

    def construct(self, x):
        return self.out(ops.tanh(self.hidden(x)))


class ConvNet(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, stride=2, pad_mode="pad", padding=1, has_bias=True)
        self.conv2 = nn.Conv2d(4, 3, 3, pad_mode="valid", has_bias=True)
        self.out = nn.Dense(12, 3)

    def construct(self, x):
        x = ops.relu(self.conv2(ops.tanh(self.conv1(x))))
        return self.out(x.reshape(x.shape[0], -1))


class LayerNormNet(nn.Cell):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.out = (
            nn.Dense(5, 6),
            nn.LayerNorm((6,), epsilon=1e-5),
            nn.Dense(6, 2),
        )

    def construct(self, x):
        return self.out(ops.tanh(self.norm(self.hidden(x))))


class Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Dense(4, 4), nn.Dense(4, 4, has_bias=False)
        self.value, self.out = nn.Dense(4, 4), nn.Dense(4, 3)

    def construct(self, x):
        scores = ops.matmul(self.query(x), self.key(x).swapaxes(-1, -2)) / 2
        return self.out(x + ops.matmul(ops.softmax(scores, -1), self.value(x)))


class BatchNormNet(nn.Cell):
    """Batch normalisation in evaluation mode: the running statistics are constants."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, pad_mode="pad", padding=1, has_bias=True)
        self.norm, self.out = nn.BatchNorm2d(4, eps=1e-5), nn.Dense(4, 2)

    def construct(self, x):
        return self.out(ops.relu(self.norm(self.conv(x))).mean((2, 3)))


class MeanSquare(nn.Cell):
    """``loss(x, target)``: the mean over all entries."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, target):
        return ((self.net(x) - target) ** 2).mean()


NETWORKS = {
    "mlp": MLP,
    "conv": ConvNet,
    "layernorm": LayerNormNet,
    "attention": Attention,
    "batchnorm": BatchNormNet,
}
#: MindSpore's CPU convolution and LayerNorm have no float64 kernel
FLOAT64 = ("mlp", "attention")


@dataclass(frozen=True)
class Golden:
    """Float64; tuples follow ``net.trainable_params()``, and ``hvp_w`` is the whole weight block
    times ``vector_w``.
    """

    loss: np.ndarray
    gradient_x: np.ndarray
    vector_x: np.ndarray
    hvp_x: np.ndarray
    gradient_w: tuple[np.ndarray, ...]
    vector_w: tuple[np.ndarray, ...]
    hvp_w: tuple[np.ndarray, ...]


def load(
    name: str, dtype: str = "float32"
) -> tuple[nn.Cell, nn.Cell, tuple[ms.Tensor, ms.Tensor], Golden]:
    """``(net, loss_fn, (x, target), expected)``: the network with the golden weights, in evaluation
    mode.
    """
    with np.load(GOLDEN) as file:
        entry = {
            key.removeprefix(f"{name}/"): file[key]
            for key in file.files
            if key.startswith(f"{name}/")
        }
    net = NETWORKS[name]()
    net.set_train(False)
    for parameter in net.get_parameters():
        kind = "weights" if f"weights/{parameter.name}" in entry else "state"
        parameter.set_dtype(getattr(ms, dtype))
        parameter.set_data(ms.Tensor(entry[f"{kind}/{parameter.name}"].astype(dtype)))
    weights = [parameter.name for parameter in net.trainable_params()]
    expected = Golden(
        loss=entry["loss/value"],
        gradient_x=entry["gradient/x"],
        vector_x=entry["vectors/x"],
        hvp_x=entry["hvp/x"],
        gradient_w=tuple(entry[f"gradient/{w}"] for w in weights),
        vector_w=tuple(entry[f"vectors/{w}"] for w in weights),
        hvp_w=tuple(entry[f"hvp/{w}"] for w in weights),
    )
    inputs = tuple(ms.Tensor(entry[f"data/{key}"].astype(dtype)) for key in ("x", "target"))
    return net, MeanSquare(net), inputs, expected
