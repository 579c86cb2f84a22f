"""Which layers have Kronecker factors: the Gauss-Newton blocks where these are exact, or an error
that names them.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, mint, nn
from scenarios import relative_error

import mindspore_hessian as mh

RNG = np.random.default_rng(0)
OFF = {"check_deterministic": False, "progress": False}
LOSS = nn.CrossEntropyLoss()
KINDS = (
    [mh.KFACOperator, mh.EKFACOperator] if FULL else [mh.EKFACOperator]
)  # which has KFAC's pass in it


def normal(*shape):
    return Tensor(RNG.normal(size=shape).astype(np.float32))


def words(*shape):
    return Tensor(RNG.integers(0, 3, shape), ms.int32)


def block_errors(op, exact):
    found, whole = op.to_dense(), exact.to_dense()
    return [relative_error(found[part, part], whole[part, part]) for part in exact.space.slices]


class Chain(nn.Cell):
    """Linear layers, the last on all that the first gives."""

    def __init__(self, first):
        super().__init__()
        self.first, self.out = first, nn.Dense(3, 3)

    def construct(self, x):
        h = self.first(x)
        return self.out(h.reshape(h.shape[0], -1))


def line(*layers):
    return nn.SequentialCell(*layers, nn.Flatten(), nn.Dense(3, 3))


LAYERS = {
    "Conv3d": (
        lambda: line(nn.Conv3d(2, 3, (2, 1, 2), pad_mode="valid", has_bias=True)),
        (2, 2, 1, 2),
    ),
    "mint.nn.Linear": (lambda: line(mint.nn.Linear(4, 3)), (4,)),
}
MORE_LAYERS = {
    "Conv3d of a stride": (
        lambda: line(nn.Conv3d(2, 3, 3, stride=2, pad_mode="pad", padding=1)),
        (2, 2, 1, 2),
    ),
}
NAMES = [*LAYERS, *MORE_LAYERS] if FULL else [*LAYERS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_layer_of_one_position_is_exact(kind, name):
    make, shape = (LAYERS | MORE_LAYERS)[name]
    net, data = make(), (normal(4, *shape), normal(4, 3))
    op = kind(net, nn.MSELoss(), data, **OFF)
    assert set(op.factors) == {"0", "2"}
    assert max(block_errors(op, mh.GGNOperator(net, nn.MSELoss(), data, **OFF))) < 1e-5


class Tied(nn.Cell):
    def __init__(self, rows):
        super().__init__()
        self.first, self.out = (
            nn.Embedding(rows, 3, dtype=ms.float32),
            nn.Dense(3, rows, has_bias=False),
        )
        self.out.weight = self.first.embedding_table

    def construct(self, x):
        return self.out(self.first(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [3, 5] if FULL else [3])
def test_a_weight_of_an_embedding_and_a_dense_layer_is_refused_or_has_an_exact_block(kind, rows):
    """Of 3 rows and 3 columns the factors would have the same shapes."""
    net = Tied(rows)
    data = (words(5), words(5))
    with pytest.raises(
        ValueError,
        match="first.embedding_table .it is shared by first, which looks up its rows, and "
        "out, which multiplies with it.*blocks='diagonal' or 'dense'",
    ):
        kind(net, LOSS, data, **OFF)
    exact = mh.GGNOperator(net, LOSS, data, **OFF)
    assert max(block_errors(kind(net, LOSS, data, blocks="dense", **OFF), exact)) < 1e-5
    diagonal = kind(net, LOSS, data, blocks="diagonal", **OFF)
    assert relative_error(diagonal.to_dense(), np.diag(np.diag(exact.to_dense()))) < 1e-5


class Grouped(nn.Cell):
    """A weight of (4, 2, 1, 1) for two groups of two channels, and for two channels."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(4, 4, 1, group=2, has_bias=True)
        self.right = nn.Conv2d(2, 4, 1, has_bias=True)
        self.right.weight = self.left.weight

    def construct(self, x):
        return (self.left(x) + self.right(x[:, :2])).mean((2, 3))


@pytest.mark.parametrize("weights", [None, "*bias"])
def test_a_weight_of_convolutions_in_different_groups_is_refused(weights):
    data = (normal(3, 4, 2, 2), normal(3, 4))
    with pytest.raises(
        ValueError,
        match="left.bias .its layer's other Parameter has none."
        if weights
        else "left.weight .it is shared by left, .* in 2 groups, and right, which multiplies with it, so",
    ):
        mh.KFACOperator(Grouped(), nn.MSELoss(), data, weights, **OFF)


class Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Dense(4, 2)

    def construct(self, x):
        return self.out(self.attention(x, x, x)[0].mean(1))


def test_projections_of_attention_are_refused_or_have_exact_blocks():
    net, data = Attention(), (normal(3, 2, 4), normal(3, 2))
    with pytest.raises(
        ValueError,
        match=r"in_proj_weight \(of a MultiheadAttention\).*out_proj.weight \(it is used "
        "without its layer being called",
    ):
        mh.KFACOperator(net, nn.MSELoss(), data, **OFF)
    if not FULL:
        return
    op = mh.KFACOperator(net, nn.MSELoss(), data, blocks="dense", **OFF)
    assert set(op.factors) == {"out"}
    assert max(block_errors(op, mh.GGNOperator(net, nn.MSELoss(), data, **OFF))) < 1e-5
