"""Saliencies against closed forms, and against the loss where the weights are really taken away."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import mindspore_hessian as mh

RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}
X = RNG.normal(size=(16, 3))
TRUE = np.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.2]])
Y = X @ TRUE.T + np.array([0.4, -0.7])


def linear():
    """A model whose loss is quadratic, at its minimum, where the loss is 0."""
    net = nn.SequentialCell(
        nn.Dense(
            3,
            2,
            weight_init=Tensor(TRUE),
            bias_init=Tensor(np.array([0.4, -0.7])),
            dtype=ms.float64,
        )
    )
    return mh.GGNOperator(
        net, lambda out, y: ((out - y) ** 2).mean(), (Tensor(X), Tensor(Y)), **OFF
    )


OP = linear()
SETS = {"weight": [[i] for i in range(8)], "channel": [[0, 1, 2, 6], [3, 4, 5, 7]]}


def rows(found):
    return found if isinstance(found, np.ndarray) else np.concatenate(list(found.values()))


@pytest.mark.parametrize("per", SETS)
def test_obd_is_the_loss_without_a_refit(per):
    losses = []
    for taken in SETS[per]:
        point = OP.point
        point[taken] = 0
        with OP.at(point):
            losses.append(OP.loss())
    np.testing.assert_allclose(rows(mh.saliency(OP, per=per)), losses, rtol=1e-10)


@pytest.mark.parametrize("per", SETS)
def test_obs_is_the_loss_after_a_refit(per):
    """Least squares over the columns that are left, by numpy."""
    inputs = np.c_[X, np.ones(16)]
    design = np.zeros((2, 16, 8))  # output, sample, weight
    design[0][:, [0, 1, 2, 6]] = inputs
    design[1][:, [3, 4, 5, 7]] = inputs
    design, target, losses = design.reshape(32, 8), Y.T.ravel(), []
    for taken in SETS[per]:
        left = np.delete(design, taken, axis=1)
        fitted = left @ np.linalg.lstsq(left, target, rcond=None)[0]
        losses.append(((fitted - target) ** 2).mean())
    np.testing.assert_allclose(rows(mh.saliency(OP, "obs", per=per)), losses, rtol=1e-10)


def mlp():
    return nn.SequentialCell(
        nn.Dense(3, 4, dtype=ms.float64), nn.Tanh(), nn.Dense(4, 2, dtype=ms.float64)
    )


CHANNELS = {
    "0": [[3 * c, 3 * c + 1, 3 * c + 2, 12 + c] for c in range(4)],
    "2": [[16 + 4 * c, 17 + 4 * c, 18 + 4 * c, 19 + 4 * c, 24 + c] for c in range(2)],
}


@pytest.mark.parametrize(
    "kind", [mh.GGNOperator, mh.HessianOperator, mh.KFACOperator, mh.EKFACOperator]
)
def test_against_the_dense_closed_forms(kind):
    op, d = kind(mlp(), nn.MSELoss(), (Tensor(X), Tensor(Y)), **OFF), 3.0
    w, matrix = op.point, op.to_dense() + d * np.eye(26)
    inverse = np.linalg.inv(matrix)
    np.testing.assert_allclose(mh.saliency(op, "obd", d), np.diag(matrix) * w**2 / 2, rtol=1e-9)
    np.testing.assert_allclose(mh.saliency(op, "obs", d), w**2 / np.diag(inverse) / 2, rtol=1e-9)
    for method in ("obd", "obs"):
        found = mh.saliency(op, method, d, per="channel")
        assert list(found) == list(CHANNELS)
        for name, several in CHANNELS.items():
            blocks = [
                matrix[np.ix_(s, s)] if method == "obd" else np.linalg.inv(inverse[np.ix_(s, s)])
                for s in several
            ]
            expected = [w[s] @ block @ w[s] / 2 for s, block in zip(several, blocks, strict=True)]
            np.testing.assert_allclose(found[name], expected, rtol=1e-8, atol=1e-15)
    assert (
        mh.saliency(op, "obs", d) <= mh.saliency(op, "obd", d) * (1 + 1e-9)
    ).all()  # a refit does not hurt


def test_a_diagonal_that_is_known():
    w, diagonal = OP.point, RNG.uniform(1, 2, 8)
    np.testing.assert_allclose(mh.saliency(OP, diagonal=diagonal), diagonal * w**2 / 2)
    each = mh.saliency(OP, "obs", diagonal=diagonal)
    np.testing.assert_allclose(each, w**2 / diagonal / 2)
    found = mh.saliency(OP, "obs", diagonal=diagonal, per="channel")
    np.testing.assert_allclose(rows(found), [each[s].sum() for s in SETS["channel"]])


class Filters(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2, pad_mode="valid", has_bias=True)
        self.norm = nn.LayerNorm((3,))

    def construct(self, x):
        return self.norm(self.conv(x).mean((2, 3)))


def test_a_filter_is_a_channel_with_its_bias():
    op = mh.GGNOperator(
        Filters(),
        nn.MSELoss(),
        (
            Tensor(RNG.normal(size=(4, 2, 3, 3)), ms.float32),
            Tensor(RNG.normal(size=(4, 3)), ms.float32),
        ),
        **OFF,
    )
    found = mh.saliency(op, per="channel")
    assert {name: one.shape for name, one in found.items()} == {"conv": (3,), "norm": (3,)}
    w, matrix = op.point, op.to_dense().astype(np.float64)
    for name, several in {
        "conv": [[*range(8 * c, 8 * c + 8), 24 + c] for c in range(3)],
        "norm": [[27 + c, 30 + c] for c in range(3)],
    }.items():
        np.testing.assert_allclose(
            found[name],
            [w[s] @ matrix[np.ix_(s, s)] @ w[s] / 2 for s in several],
            rtol=1e-4,
            atol=1e-7,
        )


def test_what_has_no_inverse_is_refused():
    op = mh.GGNOperator(mlp(), nn.MSELoss(), (Tensor(X[:2]), Tensor(Y[:2])), **OFF)
    with pytest.raises(ValueError, match="positive definite with damping 0 for method 'obs'"):
        mh.saliency(op, "obs")


def test_a_layer_without_channels_is_refused():
    class Odd(nn.Cell):
        def __init__(self):
            super().__init__()
            self.a = ms.Parameter(Tensor(np.ones((3, 2))), name="a.weight")
            self.b = ms.Parameter(Tensor(np.ones(2)), name="a.shift")

        def construct(self, x):
            return x @ self.a + self.b

    op = mh.GGNOperator(Odd(), nn.MSELoss(), (Tensor(X), Tensor(Y)), **OFF)
    with pytest.raises(ValueError, match="first axes of different lengths"):
        mh.saliency(op, per="channel")


def test_a_large_matrix_is_refused_before_it_is_formed(monkeypatch):
    monkeypatch.setattr("mindspore_hessian.tools.saliency._DENSE", 5)
    with pytest.raises(ValueError, match="8 weights are more than 5"):
        mh.saliency(OP, "obs")
