"""The exact diagonal of Gauss-Newton and Fisher operators is that of their matrices, without
products.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, nn, ops
from scenarios import relative_error

import mindspore_hessian as mh

RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}


def mlp(outputs=3):
    return nn.SequentialCell(
        nn.Dense(3, 4, dtype=ms.float64), nn.Tanh(), nn.Dense(4, outputs, dtype=ms.float64)
    )


def normal(*shape):
    return Tensor(RNG.normal(size=shape))


def quartic(out, y):
    """Not convex, and its Hessian at the output is full."""
    gap = (out - y).sum(1)
    return (gap**4 - ops.square(out[:, 0])).mean()


def of_all(out, y):
    """No sum over samples."""
    return ops.square(out.sum() - y.sum())


class Centered(nn.Cell):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def construct(self, x):
        return self.net(x - x.mean(0, keep_dims=True))


UNEVEN = [(normal(4, 3), normal(4, 3)), (normal(2, 3), normal(2, 3))]
ONE = UNEVEN[:1]


def error(op, products=0):
    found = mh.diagonal(op, method="exact", progress=False)
    assert (
        found.num_products == products
        and found.stopped_by == "exact"
        and not found.standard_error.any()
    )
    return relative_error(found.value, op.to_dense().diagonal())


@pytest.mark.parametrize(
    ("kind", "loss", "options"),
    [
        (mh.GGNOperator, quartic, {"reduction": "mean", "batch_weight": "samples"}),
        (mh.FisherOperator, nn.MSELoss(), {"mc_samples": 2}),
        (mh.EmpiricalFisherOperator, nn.MSELoss(), {}),
        *[(mh.FisherOperator, nn.MSELoss(), {})] * FULL,
    ],
)
def test_it_is_that_of_the_matrix(kind, loss, options):
    assert error(kind(mlp(), loss, UNEVEN if FULL else ONE, **options, **OFF)) < 1e-10


class Words(nn.Cell):
    """Positions are mixed; classes on axis 1."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(4, 2, dtype=ms.float32), nn.Dense(2, 3)

    def construct(self, x):
        h = self.words(x)
        return self.out(h + h.mean(1, keep_dims=True)).swapaxes(1, 2)


SEQUENCES = [
    (mh.FisherOperator, {"mc_samples": 2}),
    (mh.GGNOperator, {}),
    (mh.FisherOperator, {}),
    (mh.EmpiricalFisherOperator, {}),
]


@pytest.mark.parametrize(("kind", "options"), SEQUENCES if FULL else SEQUENCES[:1])
def test_positions_are_terms_of_their_own_and_some_are_masked(kind, options):
    labels = RNG.integers(0, 3, (3, 2))
    labels[1, 0] = -100
    data = (Tensor(RNG.integers(0, 4, (3, 2)), ms.int32), Tensor(labels, ms.int32))
    assert (
        error(kind(Words(), nn.CrossEntropyLoss(ignore_index=-100), data, **options, **OFF)) < 1e-5
    )


@pytest.mark.parametrize(("net", "loss"), [(mlp(1), of_all), (Centered(), quartic)])
def test_where_samples_depend_on_each_other_it_takes_products(net, loss):
    x, y = normal(4, 3), normal(4, 1 if loss is of_all else 3)
    op = mh.GGNOperator(net, loss, (x, y), reduction="mean", **OFF)
    assert op.exact_diagonal() is None
    assert not FULL or error(op, op.shape[0]) < 1e-10
