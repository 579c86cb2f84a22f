"""Influence: against formulas in float64, and against leaving samples out."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import some
from mindspore import nn
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

import mindspore_hessian as mh
from mindspore_hessian import influence, most_influential, self_influence
from mindspore_hessian.influence import _Answer
from mindspore_hessian.operators.data import Data
from mindspore_hessian.operators.risk import Risk
from mindspore_hessian.operators.samples import GRADIENTS, Samples
from mindspore_hessian.operators.weights import choose

GOLDEN = Path(__file__).parent / "golden" / "influence.npz"
DAMPING, CLASSES, WIDTH = 0.05, 3, 4
NET, LOSS = (
    nn.SequentialCell(nn.Dense(WIDTH, CLASSES)),
    nn.CrossEntropyLoss(),
)  # one: graphs are found again


class Logistic:
    """Softmax regression in float64, with its derivatives by hand: w is (classes, width), then
    (classes,).
    """

    def __init__(self, rows=60, tests=30, seed=0, noise=1.0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(rows + tests, WIDTH)).astype(np.float32).astype(np.float64)
        logits = self.x @ rng.normal(size=(WIDTH, CLASSES)) + noise * rng.normal(
            size=(rows + tests, CLASSES)
        )
        self.y, self.rows = logits.argmax(1), rows

    def losses(self, w):
        f = self.x @ w[:-CLASSES].reshape(CLASSES, WIDTH).T + w[-CLASSES:]
        return -log_softmax(f, 1)[np.arange(len(f)), self.y], softmax(f, 1)

    def gradients(self, w):
        p = self.losses(w)[1] - np.eye(CLASSES)[self.y]
        return np.concatenate([(p[:, :, None] * self.x[:, None]).reshape(len(p), -1), p], axis=1)

    def curvature(self, w, counts=1.0):
        p = self.losses(w)[1][: self.rows]
        j = np.concatenate([np.kron(np.eye(CLASSES), self.x[n])[None] for n in range(self.rows)])
        j = np.concatenate(
            [j, np.broadcast_to(np.eye(CLASSES), (self.rows, CLASSES, CLASSES))], axis=2
        )
        metric = p[:, :, None] * (np.eye(CLASSES) - p[:, None])
        metric = metric * np.reshape(counts, (-1, 1, 1))
        return np.einsum("ncp,nck,nkq->pq", j, metric, j) / self.rows

    def fitted(self, changed=None, count=0.0):
        """The minimum of the mean loss, which counts the sample `changed` so often, plus the
        regulariser.
        """
        counts = np.ones(self.rows)
        if changed is not None:
            counts[changed] = count

        def risk(w):
            losses, slopes = self.losses(w)[0][: self.rows], self.gradients(w)[: self.rows]
            return (
                counts @ losses / self.rows + DAMPING / 2 * w @ w,
                counts @ slopes / self.rows + DAMPING * w,
            )

        w = minimize(risk, np.zeros(CLASSES * (WIDTH + 1)), jac=True, options={"gtol": 1e-10}).x
        for _ in range(3):  # it stops where values differ by rounding
            hessian = self.curvature(w, counts) + DAMPING * np.eye(len(w))
            w = w - np.linalg.solve(hessian, risk(w)[1])
        return w

    def scores(self, w):
        g = self.gradients(w)
        return -g[self.rows :] @ np.linalg.solve(
            self.curvature(w) + DAMPING * np.eye(len(w)), g[: self.rows].T
        )

    def network(self, w):
        NET[0].weight.set_data(ms.Tensor(w[:-CLASSES].reshape(CLASSES, WIDTH), ms.float32))
        NET[0].bias.set_data(ms.Tensor(w[-CLASSES:], ms.float32))
        return NET

    def data(self, start, stop):
        """In batches of 30."""
        cuts = range(start, stop + 1, 30)
        return [
            (ms.Tensor(self.x[a:b], ms.float32), ms.Tensor(self.y[a:b], ms.int32))
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.fixture(scope="module")
def model():
    return Logistic()


@pytest.fixture
def asked(model):
    """A network that is not at its minimum, and the data: batches of 30."""
    w = (
        np.random.default_rng(1)
        .normal(size=CLASSES * (WIDTH + 1))
        .astype(np.float32)
        .astype(np.float64)
    )
    return w, model.network(w), model.data(0, 60), model.data(60, 90)


@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({}, 1e-5),
        ({"curvature": "hessian"}, 1e-5),
        ({"method": "iterative", "tol": 1e-6}, 1e-4),
        ({"method": "iterative", "curvature": "hessian", "tol": 1e-6}, 1e-4),
        ({"preconditioner": "nystrom", "rank": 8, "tol": 1e-6}, 1e-4),
    ],  # a residual of tol, times the condition number, is below 3e-5
    ids=["ggn", "hessian", "iterative", "hessian, iterative", "nystrom"],
)
def test_it_is_the_formula(model, asked, options, rtol):
    """The Hessian of a network that is linear in its weights is the Gauss-Newton matrix."""
    w, net, train, test = asked
    found = influence(net, LOSS, train, test, damping=DAMPING, progress=False, **options)
    close(found, model.scores(w), rtol)


def test_a_summed_loss_and_an_operator_give_the_same(model, asked):
    w, net, train, test = asked
    close(
        influence(
            net, nn.CrossEntropyLoss(reduction="sum"), train, test, damping=DAMPING, progress=False
        ),
        model.scores(w),
    )
    op = mh.linops.Kronecker(model.curvature(w))
    close(
        influence(net, LOSS, train, test, curvature=op, damping=DAMPING, progress=False),
        model.scores(w),
    )


class Counted(mh.Operator):
    """A matrix of which products are known, and counted."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.calls = matrix, matrix.shape, matrix.dtype, []

    def columns(self, matrix):
        self.calls.append(matrix.shape[1])
        return self.matrix @ matrix


def test_the_systems_of_all_test_samples_are_solved_together(model, asked):
    """In 15 dimensions 30 columns take two steps; with the inverse before it one of 15, and a
    residual."""
    w, net, train, test = asked
    matrix = model.curvature(w)
    options = {"damping": DAMPING, "method": "iterative", "tol": 1e-9, "progress": False}
    alone, helped = Counted(matrix), Counted(matrix)
    close(influence(net, LOSS, train, test, curvature=alone, **options), model.scores(w))
    given = np.linalg.inv(matrix + DAMPING * np.eye(len(w)))
    options["preconditioner"] = given
    close(influence(net, LOSS, train, test, curvature=helped, **options), model.scores(w))
    assert len(alone.calls) <= 5 and helped.calls == [15, 30]
    own = self_influence(net, LOSS, train, curvature=helped, **options)
    g = model.gradients(w)[:60]
    close(own, -np.einsum("np,pq,nq->n", g, given, g))
    assert helped.calls[2:] == [15, 30] * 2  # of two batches


def test_an_indefinite_curvature_is_solved_one_after_another(model, asked):
    w, net, train, test = asked
    matrix = model.curvature(w) - 0.1 * np.eye(len(w))
    op = Counted(matrix)
    found = influence(
        net, LOSS, train, test, curvature=op, damping=0.0, method="iterative", progress=False
    )
    g = model.gradients(w)
    close(found, -g[60:] @ np.linalg.solve(matrix, g[:60].T), 2e-3)
    assert 1 in op.calls


@pytest.mark.parametrize("curvature", ["kfac", "ekfac"])
def test_kronecker_structure_is_inverted_exactly(model, asked, curvature):
    w, net, train, test = asked
    found = influence(net, LOSS, train, test, curvature=curvature, damping=DAMPING, progress=False)
    g = model.gradients(w)
    x, p = model.x[:60], model.losses(w)[1][:60]
    metric = p[:, :, None] * (np.eye(CLASSES) - p[:, None])
    matrix, a, outputs = np.zeros((len(w), len(w))), x.T @ x / 60, metric.mean(0)
    matrix[:-CLASSES, :-CLASSES], matrix[-CLASSES:, -CLASSES:] = np.kron(outputs, a), outputs
    if curvature == "ekfac":
        q = np.zeros_like(matrix)
        vectors = [np.linalg.eigh(one)[1] for one in (outputs, a)]
        q[:-CLASSES, :-CLASSES], q[-CLASSES:, -CLASSES:] = np.kron(*vectors), vectors[0]
        true = np.diag(q.T @ model.curvature(w) @ q)
        matrix = q @ np.diag(true) @ q.T
    expected = -g[60:] @ np.linalg.solve(matrix + DAMPING * np.eye(len(w)), g[:60].T)
    close(found, expected, 1e-4 if curvature == "ekfac" else 1e-5)


def test_self_influence_is_the_diagonal(model, asked):
    w, net, train, _ = asked
    found = self_influence(net, LOSS, train, damping=DAMPING, progress=False)
    close(
        found, np.diag(influence(net, LOSS, train, train, damping=DAMPING, progress=False)), 1e-10
    )
    assert (found < 0).all()


def test_some_weights_alone(model, asked):
    w, net, train, test = asked
    found = influence(net, LOSS, train, test, damping=DAMPING, weights="*.weight", progress=False)
    g, inner = model.gradients(w)[:, :-CLASSES], slice(-CLASSES)
    matrix = model.curvature(w)[inner, inner] + DAMPING * np.eye(CLASSES * WIDTH)
    close(found, -g[60:] @ np.linalg.solve(matrix, g[:60].T))


def left_out(rows):
    """How the losses at 30 test samples change without each of 20 samples, and what the scores say
    of that.
    """
    model = Logistic(rows=rows)
    w = model.fitted()
    found = influence(
        model.network(w),
        LOSS,
        model.data(0, rows),
        model.data(rows, rows + 30),
        damping=DAMPING,
        progress=False,
    )
    before = model.losses(w)[0][rows:]
    changes = np.stack(
        [model.losses(model.fitted(n))[0][rows:] - before for n in range(20)], axis=1
    )
    return changes.ravel(), -found[:, :20].ravel() / rows


def test_it_is_what_leaving_samples_out_does():
    """One after another, at the minimum of the regularised loss. What is missing is of second
    order: a sample is 1/300 of the loss. Of 60 rows it is more, and the change is larger than the
    derivative says."""
    changes, predicted = left_out(300)
    assert np.corrcoef(changes, predicted)[0, 1] > 0.9995
    assert 1 < np.polyfit(predicted, changes, 1)[0] < 1.05
    changes, predicted = left_out(60)
    assert 0.99 < np.corrcoef(changes, predicted)[0, 1] < 0.999
    assert 1.1 < np.polyfit(predicted, changes, 1)[0] < 1.25


def test_it_is_the_derivative_by_the_weight_of_a_sample(model):
    w, step = model.fitted(), 0.05
    found = influence(
        model.network(w),
        LOSS,
        model.data(0, 60),
        model.data(60, 90),
        damping=DAMPING,
        progress=False,
    )
    for n in range(3):
        more, less = (model.losses(model.fitted(n, 1 + h))[0][60:] for h in (step, -step))
        close(found[:, n], (more - less) / (2 * step) * 60, 1e-5)


class Passes(list):
    """Data that count how often they are gone through to the end."""

    passes = 0

    def __iter__(self):
        yield from super().__iter__()
        self.passes += 1


def test_data_are_gone_through_once_for_their_gradients(model, asked):
    w, net, train, test = asked
    train, test = Passes(train), Passes(test)
    op = mh.linops.Kronecker(model.curvature(w))
    influence(net, LOSS, train, test, curvature=op, damping=DAMPING, progress=False)
    assert (train.passes, test.passes) == (1, 1)
    self_influence(net, LOSS, train, curvature=op, damping=DAMPING, progress=False)
    assert train.passes == 2


def test_a_test_label_that_is_no_class_is_refused(asked):
    """SoftmaxCrossEntropyWithLogits would take it in silence."""
    _, net, train, test = asked
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    op, (x, y) = mh.linops.Kronecker(np.eye(15)), test[0]
    with pytest.raises(ValueError, match="batch 0 has the label 4, which is no class"):
        influence(net, loss, train, (x, y + 3), curvature=op, progress=False)


def test_wrong_labels_have_the_largest_self_influence():
    model = Logistic(rows=210, tests=0, seed=3, noise=0.1)  # with no other labels that surprise
    flipped = np.random.default_rng(4).choice(210, 20, replace=False)
    model.y[flipped] = (model.y[flipped] + 1) % CLASSES
    scores = self_influence(
        model.network(model.fitted()), LOSS, model.data(0, 210), damping=DAMPING, progress=False
    )
    first = most_influential(scores, 40).indices[0]
    assert len(set(first) & set(flipped)) >= 14  # 4 by chance


# --- kronfluence's scores -------------------------------------------------------------------------

MADE = {
    "mlp": lambda outputs: (nn.Dense(4, 5), nn.ReLU(), nn.Dense(5, outputs)),
    "conv": lambda outputs: (
        nn.Conv2d(1, 2, 3, pad_mode="valid", has_bias=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dense(18, outputs),
    ),
}


@pytest.mark.parametrize(
    ("name", "strategy"),
    some(
        [
            ("mlp_ce", "ekfac"),
            ("mlp_ce", "kfac"),
            ("mlp_mse", "ekfac"),
            ("mlp_mse", "kfac"),
            ("conv_ce", "ekfac"),
        ],
        every=5,
    ),
)
def test_scores_equal_those_of_kronfluence(name, strategy):
    """Its sign is the other one, and weight and bias are in one block."""
    with np.load(GOLDEN) as file:
        golden = {key[len(name) + 1 :]: file[key] for key in file.files if key.startswith(name)}
        damping = float(file["damping"])
    kind, loss = name.split("_")
    net = nn.SequentialCell(*MADE[kind](3 if loss == "ce" else 2))
    for parameter in net.get_parameters():
        parameter.set_data(ms.Tensor(golden[f"weights/{parameter.name}"], ms.float32))
    x, y = (
        ms.Tensor(golden["x"], ms.float32),
        ms.Tensor(golden["y"], ms.int32 if loss == "ce" else ms.float32),
    )
    train, test = [(x[:30], y[:30]), (x[30:60], y[30:60])], (x[60:], y[60:])
    options = {"fisher": "empirical", "separate_bias": False, "progress": False}
    criterion, curvature = LOSS, strategy
    if (
        loss == "mse"
    ):  # of a mean over 2 outputs, ours is of one output's error: twice the square of the gradient
        criterion = nn.MSELoss()
        operator = {"ekfac": mh.EKFACOperator, "kfac": mh.KFACOperator}[strategy]
        curvature, options = (
            operator(net, criterion, train, **options).scaled(0.5),
            {"progress": False},
        )
    found = influence(net, criterion, train, test, curvature=curvature, damping=damping, **options)
    close(found, -golden[f"{strategy}/pairs"], 1e-5)
    layers = influence(
        net,
        criterion,
        train,
        test,
        curvature=curvature,
        damping=damping,
        per_layer=True,
        **options,
    )
    for layer, scores in layers.items():
        close(scores, -golden[f"{strategy}/modules/{layer}"], 1e-5)
    assert len(layers) == 2
    own = self_influence(net, criterion, train, curvature=curvature, damping=damping, **options)
    close(own, -golden[f"{strategy}/self"], 1e-5)


# --- by layers, and answers of low rank -----------------------------------------------------------

SIZES = (6, 8, 3)  # inputs, units of ReLU, classes


class TwoLayers:
    """A network of two layers in float64 by hand, with its samples' gradients and its Gauss-Newton
    matrix: the last 8 of 48 samples are those of the test.
    """

    def __init__(self):
        rng = np.random.default_rng(5)
        inputs, units, classes = SIZES
        single = [
            rng.normal(size=size).astype(np.float32)
            for size in ((units, inputs), units, (classes, units), classes)
        ]
        self.x, self.y = rng.normal(size=(48, inputs)).astype(np.float32), rng.integers(0, 3, 48)
        self.net = nn.SequentialCell(nn.Dense(inputs, units), nn.ReLU(), nn.Dense(units, classes))
        for parameter, values in zip(self.net.trainable_params(), single, strict=True):
            parameter.set_data(ms.Tensor(values))
        w, b, v, c = (one.astype(np.float64) for one in single)
        x = self.x.astype(np.float64)
        h = np.maximum(x @ w.T + b, 0)
        self.p = softmax(h @ v.T + c, 1)
        back = (h > 0)[:, None] * v  # (samples, classes, units)
        jacobian = [
            np.einsum("ncu,ni->ncui", back, x),
            back,
            np.einsum("cd,nu->ncdu", np.eye(classes), h),
            np.broadcast_to(np.eye(classes), (48, classes, classes)),
        ]
        j = np.concatenate([one.reshape(48, classes, -1) for one in jacobian], axis=2)
        self.g = np.einsum("nc,ncp->np", self.p - np.eye(classes)[self.y], j)
        metric = (self.p[:, :, None] * (np.eye(classes) - self.p[:, None]))[:40]
        self.curvature = np.einsum("ncp,nck,nkq->pq", j[:40], metric, j[:40]) / 40
        self.layers = {"0": slice(0, 56), "2": slice(56, 83)}
        self.matrices = [(slice(0, 48), (8, 6)), (slice(56, 80), (3, 8))]

    def data(self, start, stop):
        return ms.Tensor(self.x[start:stop]), ms.Tensor(self.y[start:stop], ms.int32)

    def asked(self):
        """Training data of two batches, and test data of two, in batches of one size."""
        cuts = [self.data(start, start + 4) for start in range(0, 48, 4)]
        return self.net, LOSS, cuts[:10], cuts[10:]

    def answers(self):
        return np.linalg.solve(self.curvature + DAMPING * np.eye(83), self.g[40:].T).T


@pytest.fixture(scope="module")
def deep():
    return TwoLayers()


OPTIONS = {"damping": DAMPING, "progress": False}


def test_scores_by_layers_are_parts_of_the_inner_product(deep):
    answers = deep.answers()
    found = influence(*deep.asked(), per_layer=True, **OPTIONS)
    assert list(found) == ["0", "2"]
    for layer, where in deep.layers.items():
        close(found[layer], -answers[:, where] @ deep.g[:40, where].T)
    close(sum(found.values()), influence(*deep.asked(), **OPTIONS), 1e-12)
    net, loss, train, _ = deep.asked()
    own = self_influence(net, loss, train, per_layer=True, **OPTIONS)
    c = np.linalg.solve(deep.curvature + DAMPING * np.eye(83), deep.g[:40].T).T
    for layer, where in deep.layers.items():
        close(own[layer], -np.einsum("np,np->n", c[:, where], deep.g[:40, where]))


@pytest.mark.full_run
def test_of_blocks_scores_by_layers_are_those_of_each_alone(deep):
    options = {**OPTIONS, "curvature": "ekfac"}
    found = influence(*deep.asked(), per_layer=True, **options)
    close(sum(found.values()), influence(*deep.asked(), **options), 1e-12)
    for layer, scores in found.items():
        close(scores, influence(*deep.asked(), weights=f"{layer}.*", **options), 1e-4)


def truncated(deep, rank):
    """The scores with each weight's part of the answers as its first singular values have it."""
    answers = deep.answers()
    for where, shape in deep.matrices:
        u, values, vt = np.linalg.svd(answers[:, where].reshape(-1, *shape))
        values[:, rank:] = 0
        k = values.shape[1]
        answers[:, where] = ((u[:, :, :k] * values[:, None]) @ vt[:, :k]).reshape(8, -1)
    return -answers @ deep.g[:40].T


def test_answers_of_low_rank(deep):
    """Of 3 x 8 numbers two singular values are 22, of 8 x 6 three are 42."""
    exact = influence(*deep.asked(), **OPTIONS)
    errors = []
    for rank in (1, 2):
        found = influence(*deep.asked(), query_rank=rank, **OPTIONS)
        close(found, truncated(deep, rank))
        errors.append(np.abs(found - exact).max())
    assert errors[0] > 1.5 * errors[1] > 0.01 * np.abs(exact).max()
    for rank in (4, 100):
        close(influence(*deep.asked(), query_rank=rank, **OPTIONS), exact, 1e-12)
    parts = influence(*deep.asked(), query_rank=2, per_layer=True, **OPTIONS)
    close(sum(parts.values()), found, 1e-12)


def test_answers_of_low_rank_hold_what_they_say(deep):
    """And nothing of the vectors they were cut from."""
    rows = np.ones((5, 83))
    kept = [_Answer.of(rows[:, where], shape, 2) for where, shape in deep.matrices]
    kept.append(_Answer.of(rows[:, 80:], (3,), 2))
    assert [sum(one.size for one in each.parts) for each in kept] == [5 * 28, 5 * 22, 15]
    assert all(one.base is None or one.base.size <= one.size for each in kept for one in each.parts)


# --- derivatives of single samples ----------------------------------------------------------------


def gradient_rows(net, loss, data, **options):
    source = Data(data, net, True)
    return Samples(Risk(net, loss, source, choose(net, None), "sum", None), **options).rows(
        source.first(), GRADIENTS
    )


def test_rows_are_those_of_batches_of_one():
    net = nn.SequentialCell(
        nn.Conv2d(1, 2, 3, has_bias=True), nn.ReLU(), nn.Flatten(), nn.Dense(32, 3)
    )
    rng = np.random.default_rng(0)
    x, y = (
        ms.Tensor(rng.normal(size=(5, 1, 4, 4)), ms.float32),
        ms.Tensor(rng.integers(0, 3, 5), ms.int32),
    )
    weights, loss = choose(net, None), nn.CrossEntropyLoss()
    source = Data((x, y), net, True)
    gradients = gradient_rows(net, loss, (x, y))
    jacobians = Samples(Risk(net, None, source, weights, "sum", None)).jacobian(
        source.first(), (5, 3), np.float32
    )
    assert gradients.shape == (5, weights.size) and jacobians.shape == (5, 3, weights.size)
    slope = ms.grad(lambda a, b: loss(net(a), b), None, weights.parameters)
    for n in range(5):
        expected = np.concatenate(
            [one.asnumpy().ravel() for one in slope(x[n : n + 1], y[n : n + 1])]
        )
        close(gradients[n], expected)
    p = softmax(net(x).asnumpy().astype(np.float64), 1) - np.eye(3)[y.asnumpy()]
    close(np.einsum("nc,ncp->np", p, jacobians), gradients)


def test_rows_come_in_pieces_where_they_are_many(asked):
    _, net, train, _ = asked
    close(
        gradient_rows(net, LOSS, train, chunk_size=8), gradient_rows(net, LOSS, train), 1e-6
    )  # the first of 30


def test_the_first_in_rank():
    scores = np.array([[0.5, -2.0, 1.0], [-0.1, 0.2, -0.3]])
    assert most_influential(scores, 2).indices.tolist() == [[1, 0], [2, 0]]
    assert most_influential(scores, 1, "harmful").scores.tolist() == [[1.0], [0.2]]
    assert most_influential(scores, 2, "largest").indices.tolist() == [[1, 2], [2, 1]]
    assert "1 (-2)" in str(most_influential(scores, 1))
