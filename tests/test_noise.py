"""Noise scales against the gradients of samples one by one, and in a case that is known."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import mindspore_hessian as mh

RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}
BATCHES = [(RNG.normal(size=(size, 3)), RNG.normal(size=(size, 2))) for size in (4, 6)]
DATA = [tuple(map(Tensor, batch)) for batch in BATCHES]


def mlp():
    return nn.SequentialCell(
        nn.Dense(3, 4, dtype=ms.float64), nn.Tanh(), nn.Dense(4, 2, dtype=ms.float64)
    )


def mean_square(out, y):
    return ((out - y) ** 2).mean()


def summed(out, y):
    return ((out - y) ** 2).sum()


@pytest.mark.parametrize("loss", [mean_square, summed])
def test_it_is_that_of_the_gradients_of_samples(loss):
    op = mh.HessianOperator(mlp(), loss, DATA, **OFF)
    found = mh.noise_scale(op)
    rows = mh.per_sample_gradients(op.network, loss, DATA, progress=False)
    mean, variance = rows.mean(axis=0), rows.var(axis=0, ddof=1)
    np.testing.assert_allclose(found.gradient, mean, atol=1e-14)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-10)
    assert found.num_data == 10 and found.covariance_trace == pytest.approx(
        np.trace(np.cov(rows.T))
    )
    assert found.value == pytest.approx(variance.sum() / (mean @ mean))
    assert found.corrected == pytest.approx(
        variance.sum() / (mean @ mean - variance.sum() / 10)
    ) or (found.corrected == np.inf and mean @ mean <= variance.sum() / 10)
    for row, (name, index) in zip(found.rows, op.layers.items(), strict=True):
        assert (row.name, row.parameters) == (name, len(index))
        assert row.noise_scale == pytest.approx(variance[index].sum() / (mean[index] ** 2).sum())
    assert str(found).splitlines()[-1].startswith("all") and len(str(found).splitlines()) == 4


def test_of_a_linear_model_it_is_known():
    """Loss (w - x)^2 / 2 of a sample: gradients w - x, so that the covariance is that of x."""
    x = RNG.normal(3.0, 2.0, size=(2000, 1))

    class Shift(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = ms.Parameter(Tensor(np.zeros(1)), name="w")

        def construct(self, x):
            return self.w - x

    op = mh.HessianOperator(
        Shift(), lambda out, y: (out**2).mean() / 2, (Tensor(x), Tensor(x)), **OFF
    )
    found = mh.noise_scale(op, chunk_size=300)
    assert found.covariance_trace == pytest.approx(
        x.var(ddof=1)
    ) and found.squared_norm == pytest.approx(x.mean() ** 2)
    assert found.corrected == pytest.approx(4 / 9, rel=0.15)


@pytest.mark.full_run
def test_that_of_kfac_is_that_of_its_network(tmp_path):
    op = mh.KFACOperator(mlp(), nn.MSELoss(), DATA[1], **OFF)
    found = mh.noise_scale(op)
    assert found.value == pytest.approx(mh.noise_scale(op.fisher_operator).value)
    found.save(tmp_path / "noise")
    again = type(found).load(tmp_path / "noise")
    assert again.rows == found.rows and again.value == found.value and str(again) == str(found)


def test_samples_that_are_mixed_are_refused():
    class Centered(nn.Cell):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def construct(self, x):
            return self.net(x - x.mean(0, keep_dims=True))

    with pytest.raises(ValueError, match="samples depend on each other"):
        mh.noise_scale(mh.HessianOperator(Centered(), mean_square, DATA[0], **OFF))


def test_one_sample_has_no_covariance():
    one = (Tensor(BATCHES[0][0][:1]), Tensor(BATCHES[0][1][:1]))
    with pytest.raises(ValueError, match="at least two samples"):
        mh.noise_scale(mh.HessianOperator(mlp(), mean_square, one, **OFF))
