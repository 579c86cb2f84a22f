"""Jacobians and per-sample gradients are those of torch.func, and closed forms."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, nn, ops
from scenarios import relative_error

import mindspore_hessian as mh

GOLDEN = np.load(Path(__file__).parent / "golden" / "jacobian.npz")
RNG = np.random.default_rng(0)
TOLERANCE = {
    "mlp": 1e-10,
    "conv": 1e-5,
    "tied": 1e-5,
}  # float64; float32, where MindSpore has no float64
IN_TORCH = {
    "1.gamma": "1.weight",
    "1.beta": "1.bias",
    "1.moving_mean": "1.running_mean",
    "1.moving_variance": "1.running_var",
    "words.embedding_table": "words.weight",
}


class Tied(nn.Cell):
    def __init__(self):
        super().__init__()
        self.words, self.middle, self.out = (
            nn.Embedding(6, 3, dtype=ms.float32),
            nn.Dense(3, 3),
            nn.Dense(3, 6),
        )
        self.out.weight = self.words.embedding_table

    def construct(self, x):
        return self.out(ops.sigmoid(self.middle(self.words(x)))).swapaxes(1, 2)


def sum_of_squares(out, y):
    return ((out - y) ** 2).sum()


def mean_of_squares(out, y):
    """nn.MSELoss divides in float32."""
    return ((out - y) ** 2).mean()


NETWORKS = {
    "mlp": (
        lambda: nn.SequentialCell(
            nn.Dense(4, 5, dtype=ms.float64), nn.Tanh(), nn.Dense(5, 3, dtype=ms.float64)
        ),
        lambda: mean_of_squares,
    ),
    "conv": (
        lambda: nn.SequentialCell(
            nn.Conv2d(2, 3, 3, stride=2, pad_mode="pad", padding=1, has_bias=True),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dense(12, 3),
        ),
        nn.CrossEntropyLoss,
    ),
    "tied": (Tied, nn.CrossEntropyLoss),
}


@cache
def problem(name):
    """A network, its loss, and a batch."""
    make, loss = NETWORKS[name]
    net, dtype = make(), np.float64 if name == "mlp" else np.float32
    for p in net.get_parameters():
        p.set_data(Tensor(GOLDEN[f"{name}/weights/{IN_TORCH.get(p.name, p.name)}"].astype(dtype)))
    net.set_train(False)
    assert [IN_TORCH.get(p.name, p.name) for p in net.trainable_params()] == list(
        GOLDEN[f"{name}/order"]
    )
    x, y = (GOLDEN[f"{name}/{part}"] for part in "xy")
    x, y = (one.astype(np.int32 if one.dtype.kind == "i" else dtype) for one in (x, y))
    return net, loss(), (Tensor(x), Tensor(y))


@pytest.mark.filterwarnings("error::mindspore_hessian.FallbackWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_samples_are_those_of_torch(name):
    net, loss, data = problem(name)
    found = mh.per_sample_gradients(
        net, loss, data, chunk_size=3, progress=False
    )  # the chunks overlap
    golden = GOLDEN[f"{name}/gradients"]
    assert found.shape == golden.shape and found.dtype == (
        np.float64 if name == "mlp" else np.float32
    )
    assert relative_error(found, golden) < TOLERANCE[name]


@pytest.mark.filterwarnings("error::mindspore_hessian.FallbackWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_jacobians_are_those_of_torch(name):
    net, _, data = problem(name)
    op, golden = mh.JacobianOperator(net, data, progress=False), GOLDEN[f"{name}/jacobian"]
    assert op.shape == golden.shape
    v, u = RNG.standard_normal((op.shape[1], 2)), RNG.standard_normal((op.shape[0], 2))
    assert relative_error(op @ v, golden @ v) < TOLERANCE[name]
    assert relative_error(op.T @ u, golden.T @ u) < TOLERANCE[name]
    if name != "tied" or FULL:
        assert relative_error(op.to_dense(), golden) < TOLERANCE[name]


def linear():
    net = nn.Dense(3, 2, dtype=ms.float64, has_bias=False)
    x = RNG.normal(size=(4, 3))
    return net, x, np.einsum("cd,ni->ncdi", np.eye(2), x).reshape(8, 6)


@pytest.mark.full_run
def test_forms_of_products():
    net, x, exact = linear()
    op = mh.JacobianOperator(
        net, [(Tensor(x[:3]), Tensor(x[:3])), (Tensor(x[3:]),)]
    )  # with a target, and without
    v, u = RNG.standard_normal(6), RNG.standard_normal(8)
    assert relative_error(op.to_dense(), exact) < 1e-14
    assert relative_error(op.T.to_dense(), exact.T) < 1e-14
    assert relative_error(op @ [Tensor(v.reshape(2, 3))], exact @ v) < 1e-14
    assert relative_error((op @ Tensor(v)).asnumpy(), exact @ v) < 1e-14
    for found in (u @ op, op.rmatmul(u), op.T @ u, op.to_scipy().T @ u):
        assert relative_error(found, u @ exact) < 1e-14
    assert relative_error(op.T.T.to_scipy() @ v, exact @ v) < 1e-14
    assert op.T.shape == (6, 8) and (op @ np.zeros((6, 0))).shape == (8, 0)
    assert np.array_equal(op.layers[""] if "" in op.layers else op.layers["weight"], np.arange(6))
    part = mh.JacobianOperator(net, Tensor(x), weights="weight")
    assert part.shape == (8, 6)


class Centered(nn.Cell):
    """Samples depend on each other."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def construct(self, x):
        return self.net(x - x.mean(0, keep_dims=True))


@pytest.mark.full_run
def test_samples_that_depend_on_each_other_have_the_rows_of_their_batch():
    net, x, _ = linear()
    exact = np.einsum("cd,ni->ncdi", np.eye(2), x - x.mean(0)).reshape(8, 6)
    assert relative_error(mh.JacobianOperator(Centered(net), Tensor(x)).to_dense(), exact) < 1e-14


def test_gradients_of_a_linear_network_in_closed_form():
    net, x, exact = linear()
    y = RNG.normal(size=(4, 2))
    residual = x @ net.weight.asnumpy().T - y
    found = mh.per_sample_gradients(net, sum_of_squares, (Tensor(x), Tensor(y)))
    assert relative_error(found, 2 * np.einsum("nc,ni->nci", residual, x).reshape(4, 6)) < 1e-14
    slope, _ = mh.HessianOperator(
        net, sum_of_squares, (Tensor(x), Tensor(y)), reduction="sum", check_deterministic=False
    ).gradient_and_loss()
    assert relative_error(found.sum(0), slope[0].asnumpy().ravel()) < 1e-14


def test_rows_of_nan_are_named():
    net, x, _ = linear()
    x[1] = np.nan
    with pytest.warns(mh.NonFiniteWarning, match="1 of 4 samples hold NaN or Inf: 1"):
        found = mh.per_sample_gradients(
            net, mean_of_squares, [(Tensor(x), Tensor(np.ones((4, 2))))]
        )
    assert np.isfinite(found[[0, 2, 3]]).all()


@pytest.mark.full_run
def test_a_sample_whose_targets_are_all_ignored_has_a_gradient_of_zero():
    found = mh.per_sample_gradients(
        nn.Dense(3, 2),
        nn.CrossEntropyLoss(ignore_index=-100),
        (Tensor(np.ones((2, 3), np.float32)), Tensor([1, -100], ms.int32)),
    )
    assert found[0].any() and not found[1].any()


@pytest.mark.parametrize("layer", [nn.Dropout(p=0.5), nn.BatchNorm1d(3)])
def test_training_mode_is_refused(layer):
    net, x = (
        nn.SequentialCell(nn.Dense(3, 3), layer).set_train(),
        Tensor(np.ones((2, 3), np.float32)),
    )
    with pytest.raises(ValueError, match="1 of the network is in training mode.*set_train.False"):
        mh.JacobianOperator(net, x)
    with pytest.raises(ValueError, match="1 of the network is in training mode.*set_train.False"):
        mh.per_sample_gradients(net, nn.MSELoss(), (x, x))
