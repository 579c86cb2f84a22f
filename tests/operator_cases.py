"""The problems of ci/golden/make_operators.py in MindSpore, with the dense curvature matrices of
torch and curvlinops.

What is in the golden file, and the conventions of its matrices, is said in the docstring of that
script. A case is in float32 by default, with MindSpore's own loss; all but one also have a float64
variant, for tighter tolerances. On CPU

    nn.CrossEntropyLoss, nn.BCEWithLogitsLoss   refuse float64
    nn.MSELoss                                  takes float64, but casts to float32 on the way
    nn.LSTM                                     takes float64, but is right to 1e-8 only
    nn.Conv2d, nn.BatchNorm2d                   have no float64 kernel: that case is float32 only
    ops.log_softmax, ops.softplus               take float64, but are right to 1e-6 only

so the float64 variants have subclasses of the losses and an LSTM of our own, written with operators
that are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn, ops

GOLDEN = Path(__file__).parent / "golden" / "operators.npz"
#: relative errors that MindSpore's loss and gradient stay under; float32 exp and tanh on CPU are approximations
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


# --- networks -------------------------------------------------------------------------------------


def zeros(name, *shape):
    return ms.Parameter(ms.Tensor(np.zeros(shape)), name=name)


class MLP(nn.Cell):
    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.hidden, self.out = nn.Dense(inputs, hidden), nn.Dense(hidden, outputs)

    def construct(self, x):
        return self.out(ops.tanh(self.hidden(x)))


class ConvBatchNorm(nn.Cell):
    """Batch normalisation in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, pad_mode="pad", padding=1, has_bias=True)
        self.norm, self.out = nn.BatchNorm2d(3, eps=1e-5), nn.Dense(3, 3)

    def construct(self, x):
        return self.out(ops.tanh(self.norm(self.conv(x))).mean((2, 3)))


class LSTM64(nn.Cell):
    """What nn.LSTM is for one layer with the batch first, with its Parameters, written out."""

    def __init__(self, inputs, hidden):
        super().__init__()
        self.hidden = hidden
        self.weight_ih_l0 = zeros("weight_ih_l0", 4 * hidden, inputs)
        self.weight_hh_l0 = zeros("weight_hh_l0", 4 * hidden, hidden)
        self.bias_ih_l0, self.bias_hh_l0 = (
            zeros("bias_ih_l0", 4 * hidden),
            zeros("bias_hh_l0", 4 * hidden),
        )

    def construct(self, x):
        n = self.hidden
        h = c = ops.zeros((x.shape[0], n), x.dtype)
        outputs = ()
        for step in range(x.shape[1]):
            gates = (
                ops.matmul(x[:, step], self.weight_ih_l0.swapaxes(0, 1))
                + self.bias_ih_l0
                + ops.matmul(h, self.weight_hh_l0.swapaxes(0, 1))
                + self.bias_hh_l0
            )
            i, f, o = (
                ops.sigmoid(gates[:, :n]),
                ops.sigmoid(gates[:, n : 2 * n]),
                ops.sigmoid(gates[:, 3 * n :]),
            )
            c = f * c + i * ops.tanh(gates[:, 2 * n : 3 * n])
            h = o * ops.tanh(c)
            outputs = outputs + (h,)
        return ops.stack(outputs, 1), (h, c)


class LastState(nn.Cell):
    """A linear readout of an LSTM's last hidden state."""

    def __init__(self, lstm):
        super().__init__()
        self.lstm, self.out = lstm(), nn.Dense(3, 2)

    def construct(self, x):
        outputs, _ = self.lstm(x)
        return self.out(outputs[:, -1])


class Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Dense(4, 4), nn.Dense(4, 4, has_bias=False)
        self.value, self.out = nn.Dense(4, 4), nn.Dense(4, 3)

    def construct(self, x):
        scores = ops.matmul(self.query(x), self.key(x).swapaxes(-1, -2)) / 2
        return self.out((x + ops.matmul(ops.softmax(scores, -1), self.value(x))).mean(1))


class TiedAutoencoder(nn.Cell):
    """Encoder and decoder share one Parameter."""

    def __init__(self):
        super().__init__()
        self.weight = zeros("weight", 4, 6)
        self.encoder_bias, self.decoder_bias = zeros("encoder_bias", 4), zeros("decoder_bias", 6)

    def construct(self, x):
        code = ops.tanh(ops.matmul(x, self.weight.swapaxes(0, 1)) + self.encoder_bias)
        return ops.matmul(code, self.weight) + self.decoder_bias


class TwoInputs(nn.Cell):
    """Called with keywords: ``net(a=..., b=...)``."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Dense(3, 4), nn.Dense(2, 4), nn.Dense(4, 2)

    def construct(self, a, b):
        return self.out(ops.tanh(self.left(a) * self.right(b)))


class Linear(nn.Cell):
    def __init__(self):
        super().__init__()
        self.out = nn.Dense(9, 4)

    def construct(self, x):
        return self.out(x)


class PerPosition(nn.Cell):
    """(N, L, 4) -> (N, C, L); the positions of a sample depend on one another."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Dense(4, 5), nn.Dense(5, 3)

    def construct(self, x):
        h = ops.tanh(self.hidden(x))
        return self.out(h - h.mean(1, keep_dims=True)).swapaxes(1, 2)


# --- losses that are exact in float64 -------------------------------------------------------------


class CrossEntropy64(nn.CrossEntropyLoss):
    """Class indices, or class probabilities; no class weights, no smoothing. (`ops.cross_entropy`
    is right to 3e-8 only before MindSpore 2.10.)"""

    def construct(self, logits, labels):
        wanted = labels
        if labels.ndim < logits.ndim:
            wanted = ops.cast(ops.expand_dims(labels, 1) == self.classes(logits), logits.dtype)
        total = (ops.logsumexp(logits, 1) * wanted.sum(1) - (logits * wanted).sum(1)).sum()
        return total * logits.shape[1] / logits.size if self.reduction == "mean" else total

    def classes(self, logits):
        """The numbers of the classes, on axis 1."""
        return ops.reshape(ops.arange(logits.shape[1]), (1, -1) + (1,) * (logits.ndim - 2))


class BCEWithLogits64(nn.BCEWithLogitsLoss):
    """No weights; for small logits."""

    def construct(self, logits, labels):
        losses = ops.log(1 + ops.exp(logits)) - logits * labels
        return losses.mean() if self.reduction == "mean" else losses.sum()


class MSE64(nn.MSELoss):
    def construct(self, logits, labels):
        losses = (logits - labels) ** 2
        return losses.mean() if self.average else losses.sum()


# --- cases ----------------------------------------------------------------------------------------

# the loss in float32 and in float64
CE, BCE, MSE = (
    (nn.CrossEntropyLoss, CrossEntropy64),
    (nn.BCEWithLogitsLoss, BCEWithLogits64),
    (nn.MSELoss, MSE64),
)
LIKELIHOOD = {CE: "categorical", BCE: "bernoulli", MSE: "gaussian"}
# network and loss; the reduction is the last word of the name
CASES = {
    "mlp_ce_mean": (partial(MLP, 4, 5, 3), CE),
    "mlp_ce_sum": (partial(MLP, 4, 5, 3), CE),
    "mlp_mse_mean": (partial(MLP, 4, 6, 2), MSE),
    "mlp_mse_sum": (partial(MLP, 4, 6, 2), MSE),
    "mlp_bce_mean": (partial(MLP, 4, 6, 3), BCE),
    "mlp_soft_mean": (partial(MLP, 4, 5, 3), CE),
    "conv_bn_ce_mean": (ConvBatchNorm, CE),
    "lstm_mse_mean": (partial(LastState, partial(nn.LSTM, 2, 3, batch_first=True)), MSE),
    "attention_ce_mean": (Attention, CE),
    "tied_mse_mean": (TiedAutoencoder, MSE),
    "dict_mse_mean": (TwoInputs, MSE),
    "linear_ce_mean": (Linear, CE),
    "nd_ce_mean": (PerPosition, CE),
}
#: networks that differ in float64
NETWORKS_64 = {"lstm_mse_mean": partial(LastState, partial(LSTM64, 2, 3))}
NAMES = tuple(CASES)
#: case -> the dtypes it can be loaded in, the default first
DTYPES = dict.fromkeys(NAMES, ("float32", "float64")) | {"conv_bn_ce_mean": ("float32",)}


@dataclass(frozen=True, eq=False)
class OperatorCase:
    """A network, its loss and its data.

    Attributes:
        name: the case in the golden file.
        network: makes the network, with the golden weights and state, in evaluation mode.
        loss_fn: ``loss_fn(network(x), y)``.
        batches: pairs (x, y); x is a dict of keyword arguments in ``dict_mse_mean``, else a Tensor.
        reduction: "mean" or "sum".
        likelihood: "categorical", "gaussian" or "bernoulli".
        order: names of the weights as the flat golden arrays have them, which is that of
            ``trainable_params()``.
        dtype: of weights, inputs and real targets.
        tolerance: relative error that loss and gradient stay under.
    """

    name: str
    network: Callable[[], nn.Cell]
    loss_fn: nn.Cell
    batches: list[tuple]
    reduction: str
    likelihood: str
    order: tuple[str, ...]
    dtype: str
    tolerance: float


@cache
def _entries(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return {
            key.removeprefix(f"{name}/"): file[key]
            for key in file.files
            if key.startswith(f"{name}/")
        }


def golden(name: str) -> dict[str, np.ndarray]:
    """Float64: loss (), gradient (P,), and hessian, ggn, fisher and ef, (P, P) each."""
    entry = _entries(name)
    matrices = {kind: entry[f"matrix/{kind}"].copy() for kind in ("hessian", "ggn", "fisher", "ef")}
    return {
        "loss": entry["loss/value"].copy(),
        "gradient": entry["gradient/flat"].copy(),
        **matrices,
    }


def _network(name: str, dtype: str) -> nn.Cell:
    entry, make = _entries(name), CASES[name][0]
    net = NETWORKS_64.get(name, make)() if dtype == "float64" else make()
    net.set_train(False)
    for parameter in net.get_parameters():
        kind = "weights" if f"weights/{parameter.name}" in entry else "state"
        parameter.set_dtype(getattr(ms, dtype))
        parameter.set_data(ms.Tensor(entry[f"{kind}/{parameter.name}"].astype(dtype)))
    return net


def _tensor(array: np.ndarray, dtype: str) -> ms.Tensor:
    return ms.Tensor(array.astype(np.int32 if array.dtype.kind == "i" else dtype))


def _batches(name: str, dtype: str) -> list[tuple]:
    data = {
        key.removeprefix("data/"): _tensor(value, dtype)
        for key, value in _entries(name).items()
        if key.startswith("data/")
    }
    numbers = range(sum(key.startswith("y") for key in data))
    if "a0" in data:
        return [({"a": data[f"a{i}"], "b": data[f"b{i}"]}, data[f"y{i}"]) for i in numbers]
    return [(data[f"x{i}"], data[f"y{i}"]) for i in numbers]


def load(name: str, dtype: str | None = None) -> OperatorCase:
    """One case, in one of its ``DTYPES``; by default in the first, with MindSpore's own loss."""
    dtype = dtype or DTYPES[name][0]
    if dtype not in DTYPES[name]:
        raise ValueError(f"{name} can be {' or '.join(DTYPES[name])}, not {dtype}")
    losses = CASES[name][1]
    reduction = name.rpartition("_")[2]
    return OperatorCase(
        name=name,
        network=partial(_network, name, dtype),
        loss_fn=losses[dtype == "float64"](reduction=reduction),
        batches=_batches(name, dtype),
        reduction=reduction,
        likelihood=LIKELIHOOD[losses],
        order=tuple(map(str, _entries(name)["order/names"])),
        dtype=dtype,
        tolerance=TOLERANCE[dtype],
    )


def cases(dtype: str | None = None) -> list[OperatorCase]:
    """All cases, each in its default dtype; or those that can be in `dtype`, in it."""
    return [load(name, dtype) for name in NAMES if dtype in (None, *DTYPES[name])]
