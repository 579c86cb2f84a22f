"""Means that do not divide by the number of samples: any cut into batches gives the matrix of all
data.

The closed form is that of softmax regression with weights of the rows: sum_n w_n J_n^T M_n J_n /
sum_n w_n.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import some
from mindspore import Parameter, Tensor, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import EmpiricalFisherOperator, FisherOperator, GGNOperator, HessianOperator

RNG = np.random.default_rng(1)
X = RNG.standard_normal((10, 3)).astype(np.float32)
W = RNG.standard_normal((3, 3)).astype(np.float32)
IGNORED = np.array([0, 1, 2, -100, 1, -100, 2, -100, -100, 0], np.int32)
MINUS = np.where(IGNORED < 0, -1, IGNORED)
FILLED = np.where(IGNORED < 0, 1, IGNORED)
COUNTED = (IGNORED >= 0).astype(float)
CLASSES = np.array([1.0, 2.0, 5.0], np.float32)
WEIGHT = Tensor(CLASSES)
KINDS = (HessianOperator, GGNOperator, FisherOperator, EmpiricalFisherOperator)


def network():
    return nn.Dense(3, 3, weight_init=Tensor(W), has_bias=False)


def batches(y, *sizes, x=X):
    ends = np.cumsum((0, *sizes))
    return [(Tensor(x[a:b]), Tensor(y[a:b])) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def closed_form(y, weights, empirical=False):
    z = X.astype(float) @ W.T.astype(float)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    total = np.zeros((9, 9))
    for row, q, label, weight in zip(X.astype(float), p, y, weights, strict=True):
        g = q - np.eye(3)[max(label, 0) % 3]  # the row of an ignored label is multiplied by 0
        total += weight * np.kron(
            np.outer(g, g) if empirical else np.diag(q) - np.outer(q, q), np.outer(row, row)
        )
    return total / weights.sum()


def quick(kind, loss, data, net=None, **options):
    return kind(net or network(), loss, data, check_deterministic=False, progress=False, **options)


def close(got, want, tolerance=3e-5):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


# --- cross-entropies as people write them ---------------------------------------------------------


def by_ops(out, y):
    return ops.cross_entropy(out, y)


def by_mint(out, y):
    return mint.nn.functional.cross_entropy(out, y, ignore_index=0)


def weighted(out, y):
    return ops.cross_entropy(out, y, weight=WEIGHT)


def by_nll(out, y):
    return ops.nll_loss(ops.log_softmax(out, 1), y)


def masked(out, y):
    mask = (y >= 0).astype(ms.float32)
    return (ops.cross_entropy(out, y, reduction="none") * mask).sum() / mask.sum()


class Masked(nn.Cell):
    def construct(self, out, y):
        return masked(out, y)


def plain(out, y):
    return ops.cross_entropy(out, y)


NOT_0, OF_CLASSES = (FILLED != 0).astype(float), CLASSES[FILLED].astype(float)
# loss, targets, weights of the rows, what it is weighed by; Fisher matrices need the weights of the
# terms
LOSSES = {
    "cell": (nn.CrossEntropyLoss(), IGNORED, COUNTED, "the targets that are not -100"),
    "cell-weights": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        IGNORED,
        OF_CLASSES * COUNTED,
        "the weights of the classes",
    ),
    "mint-cell": (
        mint.nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0),
        FILLED,
        OF_CLASSES * NOT_0,
        "clas.*not 0",
    ),
    "ops": (ops.cross_entropy, IGNORED, COUNTED, "the targets that are not -100"),
    "partial": (
        functools.partial(ops.cross_entropy, weight=WEIGHT, ignore_index=0),
        FILLED,
        OF_CLASSES * NOT_0,
        "t 0",
    ),
    "function": (by_ops, IGNORED, COUNTED, "not -100, as measured"),
    "function-mint": (by_mint, FILLED, NOT_0, "not 0, as measured"),
    "function-nll": (by_nll, IGNORED, COUNTED, "not -100, as measured"),
    "function-mask": (masked, MINUS, COUNTED, "not -1, as measured"),
    "own-cell": (Masked(), MINUS, COUNTED, "not -1, as measured"),
    "function-weights": (weighted, FILLED, OF_CLASSES, "what was measured of the loss"),
    "function-plain": (plain, FILLED, np.ones(10), "their samples"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_cut_gives_the_matrix_of_all_data(name):
    loss, y, weights, how = LOSSES[name]
    op = quick(HessianOperator, loss, batches(y, 5, 5))
    close(op.to_dense(), closed_form(y, weights))
    assert re.search(how, op.weighed_by) and op.weighed_by in repr(op)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cell", {}),
        ("function-weights", {}),
        ("cell", {"micro_batch": 3}),
        ("function-mask", {"micro_batch": 4}),
    ],
)
def test_batches_of_other_sizes(name, options):
    loss, y, weights, _ = LOSSES[name]
    close(
        quick(HessianOperator, loss, batches(y, 1, 6, 3), **options).to_dense(),
        closed_form(y, weights),
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    some(
        [(name, kind) for name in LOSSES for kind in (FisherOperator, EmpiricalFisherOperator)],
        lambda case: case[0] in ("cell", "function-mask", "function-weights"),
        every=3,
    ),
)
def test_fisher_matrices_weigh_each_term_also_in_one_batch(name, kind):
    loss, y, weights, _ = LOSSES[name]
    for sizes in ((10,), (5, 5)) if name in ("cell", "function-mask") else ((5, 5),):
        if name == "function-weights":
            with pytest.raises(
                ValueError, match=f"{kind.__name__} needs to know what each term of the loss counts"
            ):
                quick(kind, loss, batches(y, *sizes), likelihood="categorical")
            continue
        op = quick(kind, loss, batches(y, *sizes), likelihood="categorical")
        close(op.to_dense(), closed_form(y, weights, kind is EmpiricalFisherOperator))


@pytest.mark.full_run
def test_a_value_that_is_ignored_is_not_taken_for_another_that_is_as_frequent():
    y = np.array([0, 1, 1, 255, 255, 0, 2, 2, 2, 2], np.int32)

    def loss(out, y):
        return ops.cross_entropy(out, y, ignore_index=255)

    op = quick(FisherOperator, loss, batches(y, 10), likelihood="categorical")
    close(op.to_dense(), closed_form(y, (y != 255).astype(float)))


class Sharper(nn.CrossEntropyLoss):
    """A loss of the user's own, though one of MindSpore's by its class."""

    def construct(self, logits, labels):
        return super().construct(logits / 2, labels)


def masked_mean(out, target):
    """The mean over what a mask of floats counts, as many for each sample."""
    labels, mask = target[..., 0].astype(ms.int32), target[..., 1]
    losses = ops.cross_entropy(out, labels, reduction="none")
    return (losses * mask).sum() / mask.sum()


def positions(seed=3):
    """Two positions a sample, of which one counts."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (5, 2)).astype(np.float32)
    mask = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]], np.float32)
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    return Tensor(x), Tensor(np.stack((labels, mask), -1))


class Positions(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = network()

    def construct(self, x):
        return self.dense(x).swapaxes(1, 2)


@pytest.mark.parametrize("kind", [FisherOperator, EmpiricalFisherOperator, mh.KFACOperator])
def test_a_likelihood_that_is_not_that_of_the_loss_is_refused(kind):
    data = batches(FILLED, 10)
    if kind is not EmpiricalFisherOperator:
        with pytest.raises(ValueError, match="likelihood of this loss is not known"):
            quick(kind, Sharper(), data)
    with pytest.raises(ValueError, match="is no multiple of the Fisher information"):
        quick(kind, Sharper(), data, likelihood="categorical")
    with pytest.raises(ValueError, match="is no multiple of the Fisher information"):
        quick(kind, masked_mean, positions(), Positions(), likelihood="categorical")


def test_a_factor_before_the_loss_does_not_count_for_a_likelihood_that_is_said():
    def tripled(out, y):
        return 3 * ops.cross_entropy(out, y)

    op = quick(FisherOperator, tripled, batches(FILLED, 5, 5), likelihood="categorical")
    close(op.to_dense(), closed_form(FILLED, np.ones(10)))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_weigh_as_the_loss_says_now(kind):
    loss = nn.CrossEntropyLoss(ignore_index=0)
    op = quick(kind, loss, batches(FILLED, 4, 6))
    close(
        op.to_dense(),
        closed_form(FILLED, (FILLED != 0).astype(float), kind is EmpiricalFisherOperator),
    )
    loss.ignore_index = 1
    close(
        op.to_dense(),
        closed_form(FILLED, (FILLED != 1).astype(float), kind is EmpiricalFisherOperator),
    )


def test_targets_that_change_are_an_error():
    y = IGNORED.copy()
    data = [(X[:5], y[:5]), (X[5:], y[5:])]
    op = quick(HessianOperator, nn.CrossEntropyLoss(), data, keep_data=False)
    op @ np.ones(9)
    y[3] = 1
    with pytest.raises(ValueError, match="the targets have changed"):
        op @ np.ones(9)


def test_a_penalty_in_the_loss_is_refused_by_what_sees_the_output_alone():
    net = network()
    weight = net.weight

    def penalised(out, y):
        return ops.cross_entropy(out, y) + 0.05 * (weight**2).sum()

    for kind in (GGNOperator, EmpiricalFisherOperator):
        with pytest.raises(ValueError, match="loss_fn reads weights itself"):
            quick(kind, penalised, batches(FILLED, 10), net)
    want = closed_form(FILLED, np.ones(10)) + 0.1 * np.eye(9)
    close(quick(HessianOperator, penalised, batches(FILLED, 10), net).to_dense(), want)


def test_gradient_and_loss_count_what_counts():
    net, loss = network(), nn.CrossEntropyLoss()
    (slope,), value = quick(HessianOperator, loss, batches(IGNORED, 5, 5), net).gradient_and_loss()
    (whole,), expected = quick(HessianOperator, loss, batches(IGNORED, 10), net).gradient_and_loss()
    close(slope.asnumpy(), whole.asnumpy())
    close(value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_leave_out_what_is_ignored(kind):
    want = closed_form(IGNORED, COUNTED, kind is EmpiricalFisherOperator) * COUNTED.sum()
    close(
        quick(kind, nn.CrossEntropyLoss(reduction="sum"), batches(IGNORED, 5, 5)).to_dense(), want
    )


def test_draws_leave_out_what_is_ignored():
    net, loss, v = network(), nn.CrossEntropyLoss(), np.arange(9.0)
    drawn = [
        quick(FisherOperator, loss, batches(IGNORED, 5, 5), net, mc_samples=20, seed=seed) @ v
        for seed in range(20)
    ]
    error = np.std(drawn, 0, ddof=1) / np.sqrt(20)
    assert (np.abs(np.mean(drawn, 0) - closed_form(IGNORED, COUNTED) @ v) <= 5 * error).all()
    assert (error < 0.1 * np.abs(drawn).max()).all()


@pytest.mark.full_run
def test_a_batch_in_which_nothing_counts_is_left_out():
    y = np.array([-100, -100, 0, 1, 2, 1, -100, -100, 0, 1], np.int32)
    for loss in (nn.CrossEntropyLoss(), by_ops):
        op = quick(HessianOperator, loss, batches(y, 2, 2, 2, 2, 2))
        close(op.to_dense(), closed_form(y, (y >= 0).astype(float)))
    assert np.isfinite(op.gradient_and_loss()[1])
    with pytest.raises(
        ValueError,
        match=r"no batch counts: the weights of all \(the targets that are not -100\) are",
    ):
        quick(HessianOperator, nn.CrossEntropyLoss(), batches(np.full(10, -100, np.int32), 5, 5))


def test_num_data_scales_and_batch_weight_is_believed():
    loss, data = nn.CrossEntropyLoss(), batches(IGNORED, 5, 5)
    net = network()
    close(
        quick(HessianOperator, loss, data, net, num_data=20).to_dense(),
        closed_form(IGNORED, COUNTED) / 2,
    )
    op = quick(HessianOperator, by_ops, data, net, batch_weight=lambda batch: (batch[1] >= 0).sum())
    assert "batches weighed by batch_weight" in repr(op)
    close(op.to_dense(), closed_form(IGNORED, COUNTED))
    parts = [quick(HessianOperator, loss, [batch], net).to_dense() for batch in data]
    stated = quick(HessianOperator, by_ops, data, net, batch_weight="samples")
    close(stated.to_dense(), (parts[0] + parts[1]) / 2)
    for bad, error, message in (
        ("rows", TypeError, "must be None, 'samples' or a function of a batch"),
        (lambda batch: -1, ValueError, "finite number of 0 or more, but gave -1 for batch"),
    ):
        with pytest.raises(error, match=message):
            quick(HessianOperator, loss, data, batch_weight=bad)


# --- entries: sequences of other lengths ----------------------------------------------------------


@pytest.mark.full_run
@pytest.mark.parametrize("loss", [nn.MSELoss(), functools.partial(ops.mse_loss, reduction="mean")])
def test_a_mean_over_entries_of_sequences_of_different_lengths(loss):
    rows = RNG.standard_normal((17, 3)).astype(np.float32)
    data = [
        (rows[:8].reshape(2, 4, 3), np.zeros((2, 4, 1), np.float32)),
        (rows[8:].reshape(3, 3, 3), np.zeros((3, 3, 1), np.float32)),
    ]
    net = nn.Dense(3, 1, has_bias=False)
    close(quick(HessianOperator, loss, data, net).to_dense(), 2 / 17 * rows.T @ rows)
    with pytest.raises(
        ValueError, match="divides by the samples or by all entries cannot be told.*batch_weight="
    ):
        quick(HessianOperator, lambda out, y: ((out - y) ** 2).mean(), data, net)
    own = quick(
        HessianOperator,
        lambda out, y: ((out - y) ** 2).mean(),
        data,
        net,
        batch_weight=lambda batch: batch[1].size,
    )
    close(own.to_dense(), 2 / 17 * rows.T @ rows)


def test_weights_of_entries_do_not_change_what_their_mean_divides_by():
    """A binary cross-entropy with weights divides by the number of entries."""
    y = (IGNORED[:, None] == np.arange(3)).astype(np.float32)
    weights = Tensor(np.array([1.0, 2.0, 0.5], np.float32))
    loss = nn.BCEWithLogitsLoss(weight=weights, pos_weight=weights)
    net = network()
    whole = quick(HessianOperator, loss, [(X, y)], net).to_dense()
    close(quick(HessianOperator, loss, [(X[:3], y[:3]), (X[3:], y[3:])], net).to_dense(), whole)


# --- losses that are no mean of their samples -----------------------------------------------------


def contrast(out, y):
    """Each sample against the others of its batch."""
    return ops.cross_entropy(ops.matmul(out, out.T) / 4, ops.arange(out.shape[0]).astype(ms.int32))


class WithLoss(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = network()

    def construct(self, x, y):
        return ops.cross_entropy(self.dense(x), y, ignore_index=-100)


@pytest.mark.full_run
def test_what_is_no_mean_of_its_samples_is_refused():
    message = "the loss is not a mean.*batch_weight=function of a batch.*batch_weight='samples'"
    with pytest.raises(ValueError, match=message):
        quick(HessianOperator, contrast, batches(FILLED, 5, 5), reduction="mean")
    with pytest.raises(ValueError, match=message):
        quick(HessianOperator, None, batches(IGNORED, 5, 5), WithLoss())
    net = WithLoss()
    op = quick(
        HessianOperator,
        None,
        batches(IGNORED, 5, 5),
        net,
        batch_weight=lambda batch: (batch[1] >= 0).sum(),
    )
    close(op.to_dense(), closed_form(IGNORED, COUNTED))
    op = quick(HessianOperator, None, batches(FILLED, 5, 5), net)
    assert "their samples (compared in 1 pair of batches)" in op.weighed_by
    close(op.to_dense(), closed_form(FILLED, np.ones(10)))
    quick(
        HessianOperator, contrast, batches(FILLED, 5, 5), reduction="mean", batch_weight="samples"
    )


# --- labels ---------------------------------------------------------------------------------------

SOFTMAX = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")


@pytest.mark.parametrize(
    "loss", some([nn.CrossEntropyLoss(), mint.nn.CrossEntropyLoss(), SOFTMAX, by_ops], every=3)
)
def test_a_label_that_is_no_class_is_named_and_the_next_product_is_right(loss):
    net, good = network(), FILLED
    for label in (
        (300, -1) if loss is not by_ops else (3,)
    ):  # an index of -1 is that of the last, and may be masked
        bad = good.copy()
        bad[7] = label
        with pytest.raises(ValueError, match=f"batch 1 has the label {label}, which is no class"):
            quick(HessianOperator, loss, batches(bad, 5, 5), net) @ np.ones(9)
        close(
            quick(HessianOperator, loss, batches(good, 5, 5), net).to_dense(),
            closed_form(good, np.ones(10)),
        )


# --- a tagger -------------------------------------------------------------------------------------

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "tagger.npz"))
SHAPES = {"wx": (3, 2), "wh": (3, 3), "b": (3,), "v": (4, 3), "c": (4,)}


class Tagger(nn.Cell):
    """An Elman network; the logits of all positions in one axis, or with the classes on axis 1."""

    def __init__(self, flat_positions):
        super().__init__()
        self.flat_positions, start = flat_positions, 0
        for name, shape in SHAPES.items():
            size = int(np.prod(shape))
            value = GOLDEN["flat"][start : start + size].reshape(shape).astype(np.float32)
            setattr(self, name, Parameter(Tensor(value), name=name))
            start += size

    def construct(self, x):
        h = ops.zeros((x.shape[0], 3), ms.float32)
        outputs = ()
        for step in range(x.shape[1]):
            h = ops.tanh(ops.matmul(x[:, step], self.wx.T) + ops.matmul(h, self.wh.T) + self.b)
            outputs = outputs + (ops.matmul(h, self.v.T) + self.c,)
        out = ops.stack(outputs, 1)
        return out.reshape((-1, 4)) if self.flat_positions else out.swapaxes(1, 2)


def flattened(out, y):
    return ops.cross_entropy(out, y.reshape(-1))


@pytest.mark.parametrize(
    ("kind", "loss"),
    some(
        [
            (HessianOperator, nn.CrossEntropyLoss()),
            (GGNOperator, nn.CrossEntropyLoss()),
            (HessianOperator, flattened),
            *((kind, nn.CrossEntropyLoss()) for kind in KINDS[2:]),
            (EmpiricalFisherOperator, flattened),
        ],
        lambda case: case[1] is flattened or case[0] is GGNOperator,
    ),
)
def test_a_tagger_over_padded_sequences_of_other_lengths(kind, loss):
    net = Tagger(loss is flattened)
    data = [(GOLDEN[f"x{number}"], GOLDEN[f"y{number}"]) for number in range(3)]
    options = {"likelihood": "categorical"} if "Fisher" in kind.__name__ else {}
    want = GOLDEN[
        {HessianOperator: "hessian", EmpiricalFisherOperator: "empirical"}.get(kind, "ggn")
    ]
    op = quick(kind, loss, data, net, **options)
    vectors = RNG.standard_normal((34, 3))
    close(op @ vectors, want @ vectors, 1e-3)  # float32 tanh
    if kind is HessianOperator:
        close(op.gradient_and_loss()[1], GOLDEN["loss"], 1e-4)
        top = mh.eigsh(op, 1, "LA").eigenvalues[0]
        assert top == pytest.approx(np.linalg.eigvalsh(want)[-1], rel=1e-3)
