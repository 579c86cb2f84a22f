"""Operators of a network and its data, against closed forms: a linear network under squared error
has a known Hessian.

R = 1/N sum (w x - y)^2 for one output: H = 2/N X^T X, whatever w and y.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, ParameterTuple, Tensor, amp, nn, ops
from scipy.sparse.linalg import cg, eigsh, lobpcg

import mindspore_hessian as mh
from mindspore_hessian import (
    EmpiricalFisherOperator,
    FallbackWarning,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    Identity,
    KFACOperator,
    inverse,
)
from mindspore_hessian.operators import risk
from mindspore_hessian.operators.likelihoods import likelihood_of
from mindspore_hessian.operators.plan import chunks

RNG = np.random.default_rng(3)
X = RNG.standard_normal((8, 3)).astype(np.float32)
Y = RNG.standard_normal((8, 1)).astype(np.float32)
H = 2 / 8 * X.T @ X
SUM = X.T @ X * 2


def linear():
    return nn.Dense(3, 1, weight_init="ones", has_bias=False)


class Cubic(nn.Cell):
    """Sum over i of w_i^3 x_i: its Hessian by w is 6 w_i x_i on the diagonal, so it depends on the
    weights.
    """

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([1.0, 2.0, 3.0], ms.float32), name="w")

    def construct(self, x):
        return (self.w**3 * x).sum(-1)


def mean_output(out, y):
    return (out - y).mean()


def batches(*sizes):
    out, start = [], 0
    for size in sizes:
        out.append((Tensor(X[start : start + size]), Tensor(Y[start : start + size])))
        start += size
    return out


def close(got, want, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=rtol * np.abs(want).max())


def quick(data, network=None, loss=None, kind=HessianOperator, **options):
    options.setdefault("check_deterministic", False)
    return kind(network or linear(), loss or nn.MSELoss(), data, **options)


def pipeline(shuffle=False, batch=4, augment=None, drop=False, x=X, y=Y):
    columns = {"x": x, "y": y}
    data = ms.dataset.NumpySlicesDataset(columns, shuffle=shuffle)
    if augment:
        data = data.map(augment, ["x"])
    return data.batch(batch, drop_remainder=drop)


# --- data -----------------------------------------------------------------------------------------


class Columns(nn.Cell):
    """A network with named inputs."""

    def __init__(self):
        super().__init__()
        self.dense = linear()

    def construct(self, a, b):
        return self.dense(ops.concat((a, b), 1))


A, B = Tensor(X[:, :1].copy()), Tensor(X[:, 1:].copy())
T, U = Tensor(X), Tensor(Y)
FORMS = {
    "one-tuple": (linear, (T, U)),
    "one-dict": (Columns, {"b": B, "a": A, "label": U}),
    "uneven": (linear, batches(3, 3, 2)),
    "pipeline": (linear, pipeline()),
    "pipeline-uneven": (linear, pipeline(batch=5)),
    "two-inputs": (Columns, (A, B, U)),
    "inputs-in-a-tuple": (Columns, [((A, B), U)]),
    "inputs-in-a-dict": (Columns, [({"a": A, "b": B}, U)]),
    "numpy": (linear, (X, Y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data(form):
    make, data = FORMS[form]
    op = quick(data, make())
    assert (op.reduction, op.num_data) == ("mean", 8)
    close(op.to_dense(), H)


def test_sums_add_up_and_means_are_weighted():
    close(quick(batches(5, 3), loss=nn.MSELoss(reduction="sum")).to_dense(), SUM)
    close(quick(batches(5, 3), num_data=16).to_dense(), H / 2)
    close(
        quick(
            batches(5, 3), batch_size_fn=lambda batch: 1
        ).to_dense(),  # two samples, as far as it says
        (2 / 5 * X[:5].T @ X[:5] + 2 / 3 * X[5:].T @ X[5:]) / 2,
    )


@pytest.mark.parametrize(
    ("loss", "reduction", "truth"),
    [
        (lambda out, y: ((out - y) ** 2).mean(), "mean", H),
        (lambda out, y: ((out - y) ** 2).sum(), "sum", SUM),
    ],
)
def test_the_reduction_of_a_function_is_found_out(loss, reduction, truth):
    op = quick(batches(5, 3), loss=loss)
    assert op.reduction == reduction and reduction in repr(op)
    close(op.to_dense(), truth)


def test_a_loss_that_is_neither_is_asked_about():
    with pytest.raises(ValueError, match="neither a mean nor a sum.*reduction='mean' or 'sum'"):
        quick(batches(5, 3), loss=lambda out, y: ((out - y) ** 2).sum() ** 0.5)


def test_micro_batches_change_nothing():
    close(quick(batches(5, 3), micro_batch=2).to_dense(), H)
    close(quick(pipeline(batch=8), micro_batch=4).to_dense(), H)


@pytest.mark.full_run
def test_a_function_that_returns_the_loss_itself():
    network = linear()

    def cube(x):
        return network(x).sum() ** 3

    def residual(points):  # a PINN: the loss has second derivatives by its inputs inside
        return (mh.laplacian(cube, in_axes=0)(points) ** 2).mean()

    points = Tensor(X[:4])
    op = HessianOperator(residual, None, points, weights=network.trainable_params())

    def truth(w):  # the Laplacian of (w.x)^3 is 6 |w|^2 w.x
        return np.mean((6 * (w @ w) * (X[:4].astype(np.float64) @ w)) ** 2)

    close(op.to_dense(), second_differences(truth, np.ones(3)), 1e-4)


def second_differences(f, x, h=1e-3):
    n, eye = len(x), h * np.eye(len(x))
    out = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            a, b = eye[i], eye[j]
            out[i, j] = (f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)) / (4 * h * h)
    return out


# --- products -------------------------------------------------------------------------------------


def test_vectors_matrices_structures_and_tensors():
    op = quick(batches(5, 3))
    v, m = np.array([1.0, -2.0, 0.5]), np.arange(15.0).reshape(3, 5)
    assert op.shape == (3, 3) and op.dtype == np.float32
    assert (op @ v).dtype == np.float32
    close(op @ v, H @ v)
    close(op @ m, H @ m)
    close((op @ Tensor(v, ms.float32)).asnumpy(), H @ v)
    (structured,) = op @ (Tensor(v.reshape(1, 3), ms.float32),)
    close(structured.asnumpy(), (H @ v).reshape(1, 3))
    close(op @ [v.reshape(1, 3)], (H @ v).reshape(1, 1, 3))
    close(v @ op, v @ H)
    close(quick(batches(5, 3), chunk_size=2).to_dense(), H)
    assert (op @ m[:, :0]).shape == (3, 0)


def test_algebra():
    op, v = quick((X, Y)), np.array([1.0, 2.0, -1.0])
    eye = np.eye(3)
    table = [
        (op + 0.1 * Identity, H + 0.1 * eye),
        (0.1 * Identity + op, H + 0.1 * eye),
        (2 * op - op / 4, 1.75 * H),
        (-op, -H),
        (op @ op, H @ H),
        ((op + Identity) @ (2 * op), (H + eye) @ (2 * H)),
        (op.T, H),
        ((op @ (op + Identity)).T, (H + eye) @ H),
        (op - Identity, H - eye),
    ]
    for ours, truth in table:
        assert ours.shape == (3, 3)
        close(ours @ v, truth @ v)
        close(ours.to_dense(), truth)
    assert (op + Identity).layers.keys() == op.layers.keys()
    (structured,) = (op + Identity) @ op.unflatten(v)
    close(structured.asnumpy().reshape(-1), (H + eye) @ v)


def test_scipy_takes_it():
    op = (quick((X, Y)) + 0.5 * Identity).to_scipy()
    truth = H.astype(np.float64) + 0.5 * np.eye(3)
    close(eigsh(op, 1, which="LA")[0], np.linalg.eigvalsh(truth)[-1:], 1e-5)
    close(cg(op, np.ones(3, np.float32), atol=1e-7)[0], np.linalg.solve(truth, np.ones(3)), 1e-4)
    close(
        lobpcg(op, np.ones((3, 1), np.float32), tol=1e-4, maxiter=50)[0],
        np.linalg.eigvalsh(truth)[-1:],
        1e-4,
    )


def test_gradient_and_loss():
    op = quick(batches(5, 3))
    (slope,), value = op.gradient_and_loss()
    rest = X.astype(np.float64).sum(1, keepdims=True) - Y
    close(value, np.mean(rest**2))
    close(slope.asnumpy(), 2 / 8 * rest.T @ X)


def test_the_loss_and_the_curvature_at_another_point():
    net = Cubic()
    op, ones = quick(batches(5, 3), net, mean_output), np.ones(3)
    here, before = op.point, net.w.asnumpy().copy()
    close(here, before)
    there = here + [0.5, -1.0, 2.0]
    close(op.loss(), op.gradient_and_loss()[1])
    with op.at(there) as moved:
        assert moved is op
        close(op.point, there)
        close(op.loss(), np.mean(X.astype(np.float64) @ there**3) - np.mean(Y))
        close(op @ ones, 6 * there * X.astype(np.float64).mean(0))
        with op.at(op.unflatten(here)):
            close(op.point, here)
        close(op.point, there)
    assert net.w.asnumpy().tobytes() == before.tobytes()
    with pytest.raises(KeyError), op.at(there):
        raise KeyError
    assert net.w.asnumpy().tobytes() == before.tobytes()


def test_what_an_operator_is_made_of():
    net = nn.SequentialCell(nn.Dense(3, 1), nn.Dropout(p=0.0))
    op, other = quick((X, Y), net), quick((X, Y), net, kind=GGNOperator)
    assert op.network is net and isinstance(op.loss_fn, nn.MSELoss) and op.atoms == (op,)
    assert (0.5 * (op + 2 * other) @ op - Identity).atoms == (op, other, op)
    assert op.in_training() == ()
    net.set_train()
    assert op.in_training() == ("1",)


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_weights_are_read_at_every_product(mode):
    net, ones = Cubic(), np.ones(3)
    op = quick((X, Y[:, 0]), net, mean_output)

    def truth():
        return 6 * net.w.asnumpy() * X.mean(0)

    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        close(op @ ones, truth())
        net.w.set_data(Tensor([0.5, -1.0, 2.0], ms.float32))
        close(op @ ones, truth())
        ms.load_param_into_net(
            net, {"w": Parameter(Tensor([2.0, 1.0, -3.0], ms.float32), name="w")}
        )
        close(op @ ones, truth())
        step = nn.TrainOneStepCell(
            nn.WithLossCell(net, mean_output), nn.SGD(net.trainable_params(), 0.1)
        )
        old = truth()
        step(Tensor(X), Tensor(Y[:, 0].copy()))
        assert np.abs(truth() - old).max() > 0.01
        close(op @ ones, truth())
    finally:
        ms.set_context(mode=before)


# --- weights and blocks ---------------------------------------------------------------------------


class Two(nn.Cell):
    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Dense(3, 2, weight_init="ones"),
            nn.Dense(2, 1, weight_init="ones"),
        )

    def construct(self, x):
        return self.second(self.first(x) ** 2)


def test_patterns_blocks_and_layers():
    net = Two()
    full = quick((X, Y), net)
    dense = full.to_dense()
    close(quick((X, Y), net, chunk_size=8).to_dense(), dense)  # at once, and one after another
    assert list(full.layers) == ["first", "second"]
    parts = {
        "first": slice(0, 8),
        "second": slice(8, 11),
        "first.weight": slice(0, 6),
        "second.bias": slice(10, 11),
    }
    for name, part in parts.items():
        close(full.block(name).to_dense(), dense[part, part], 2e-5)
    close(quick((X, Y), net, weights="first.*").to_dense(), dense[:8, :8], 2e-5)
    chosen = quick((X, Y), net, weights=["*.bias", net.first.weight])
    order = [6, 7, 10, *range(6)]
    close(chosen.to_dense(), dense[np.ix_(order, order)], 2e-5)
    assert (
        full.layer_classes
        == (full + Identity).layer_classes
        == {"first": "Dense", "second": "Dense"}
    )
    assert chosen.block("first").layer_classes == {"first": "Dense"}
    with pytest.raises(ValueError, match="no layer or weight 'third'; there are first, second"):
        full.block("third")


@pytest.mark.parametrize(("kind", "cuts"), [("layer", [8]), ("parameter", [6, 8, 10])])
def test_block_diagonals(kind, cuts):
    net = Two()
    dense = quick((X, Y), net).to_dense()
    expected = np.zeros_like(dense)
    for block in np.split(np.arange(11), cuts):
        expected[np.ix_(block, block)] = dense[np.ix_(block, block)]
    close(quick((X, Y), net, block_diagonal=kind).to_dense(), expected, 2e-5)
    close(quick((X, Y), net, block_diagonal=kind, chunk_size=8).to_dense(), expected, 2e-5)


# --- Gauss-Newton and Fisher ----------------------------------------------------------------------


def test_gauss_newton_and_fisher_of_a_linear_network():
    for kind in (GGNOperator, FisherOperator):
        close(quick(batches(5, 3), kind=kind).to_dense(), H)
        close(quick(batches(5, 3), loss=nn.MSELoss(reduction="sum"), kind=kind).to_dense(), SUM)
    rest = X.sum(1) - Y[:, 0]
    close(
        quick(batches(5, 3), kind=EmpiricalFisherOperator).to_dense(), 4 / 8 * (X.T * rest**2) @ X
    )


def test_the_damped_inverse_of_a_fisher_information():
    op = quick(batches(5, 3), kind=FisherOperator)
    assert op.positive and not quick((X, Y)).positive and not (op - Identity).positive
    weighted = nn.CrossEntropyLoss(ms.Tensor([1.0, -1.0, 1.0]))
    assert [
        quick(batches(5, 3), loss=loss, kind=GGNOperator).positive
        for loss in (nn.MSELoss(), lambda f, y: -nn.MSELoss()(f, y))
    ] == [True, False] and likelihood_of(weighted) is None
    close(inverse(op, 0.1, tol=1e-5).to_dense(), np.linalg.inv(H + 0.1 * np.eye(3)), 1e-4)
    (structured,) = inverse(op, 0.1, tol=1e-5) @ op.unflatten(np.ones(3))
    close(structured.asnumpy().ravel(), np.linalg.inv(H + 0.1 * np.eye(3)).sum(0), 1e-4)


def test_monte_carlo_fisher_is_within_its_standard_error():
    """100 seeds: the mean over them against the truth, entry by entry, in units of their standard
    error.
    """
    data = (X, RNG.integers(0, 2, 8).astype(np.int32))
    net = nn.Dense(3, 2, has_bias=False)
    loss, v = nn.CrossEntropyLoss(), np.array([1.0, -1.0, 0.5, 2.0, 0.0, 1.0])
    exact = quick(data, net, loss, FisherOperator) @ v
    draws = np.array(
        [quick(data, net, loss, FisherOperator, mc_samples=4, seed=seed) @ v for seed in range(100)]
    )
    error = draws.std(0, ddof=1) / 10
    assert (np.abs(draws.mean(0) - exact) < 4 * error).all()
    assert (error < 0.1 * np.abs(exact).max()).all() and (draws.std(0) > 0).all()
    again = quick(data, net, loss, FisherOperator, mc_samples=4, seed=7) @ v
    np.testing.assert_array_equal(again, draws[7])


def test_unknown_likelihoods_are_asked_for():
    def loss(out, y):
        return ((out - y) ** 2).mean()

    for bad in (
        loss,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=Tensor([1.0, 2.0])),
    ):
        with pytest.raises(ValueError, match="likelihood of this loss is not known"):
            quick((X, Y), loss=bad, kind=FisherOperator, reduction="mean")
    close(quick((X, Y), loss=loss, kind=FisherOperator, likelihood="gaussian").to_dense(), H)


@pytest.mark.parametrize(
    ("columns", "chunk_size", "size", "backend", "widths"),
    [
        (1, None, 10, "GPU", "1"),
        (4, None, 10, "Ascend", "4"),
        (5, None, 10, "GPU", "8 at once"),
        (11, None, 10, "GPU", "8 at once, 3"),
        (33, None, 10, "GPU", "64 at once"),
        (70, None, 10, "Ascend", "64 at once, 8 at once"),
        (6, None, 2**24, "GPU", "1, 1, 1, 1, 1, 1"),
        (5, None, 10, "CPU", "5"),
        (70, None, 10, "CPU", "64, 6"),
        (1025, None, 2**20, "CPU", "8 at once, " * 128 + "1"),
        (20, 6, 10, "CPU", "6 at once, 6 at once, 6 at once, 2"),
        (3, 2, 10, "CPU", "2, 1"),
        (3, 6, 10, "GPU", "3"),
        (12, 30, 10, "CPU", "12"),
    ],
)
def test_chunks(columns, chunk_size, size, backend, widths):
    found = chunks(columns, chunk_size, size, backend)
    assert ", ".join(f"{width}{' at once' * at_once}" for width, at_once in found) == widths


def test_a_product_at_once_without_batching_rules_is_done_one_after_another():
    weight = Parameter(Tensor([1.0, 2.0, 3.0], ms.float32), name="w")

    def cubes():
        if weight.sum() > 0:
            return (weight**3).sum()
        return (weight**2).sum()

    op = HessianOperator(
        lambda x: cubes() * x.sum(),
        None,
        (Tensor([1.0], ms.float32),),
        weights=[weight],
        reduction="mean",
        check_deterministic=False,
        chunk_size=5,
    )
    matrix = np.arange(15.0).reshape(3, 5)
    with pytest.warns(FallbackWarning, match="HessianOperator: .* one after another"):
        found = op @ matrix
    close(found, np.diag([6.0, 12.0, 18.0]) @ matrix)


@pytest.mark.parametrize(("chunk_size", "cut", "tight_cut"), [(None, None, None), (8, 5, 1)])
def test_plan(chunk_size, cut, tight_cut):
    op = quick(batches(4, 4), chunk_size=chunk_size)
    plan = op.plan(columns=5)
    assert (
        plan.columns == 5
        and plan.seconds > 0
        and plan.chunk_size == cut
        and plan.micro_batch is None
    )
    assert plan.vector_bytes == 3 * 5 * (4 + 4 + 8) and plan.working_bytes > 0
    tight = op.plan(columns=5, max_memory=1)
    assert tight.chunk_size == tight_cut and tight.micro_batch == 1
    assert "5 columns" in str(plan)


class Normed(nn.Cell):
    """Functions that mixed precision rewrites: a dense layer, a norm, relu."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Dense(3, 6), nn.LayerNorm((6,)), nn.Dense(6, 3)

    def construct(self, x):
        return self.last(ops.relu(self.norm(self.first(x))))


@pytest.mark.parametrize("how", ["to_float", *["O1", "O2"] * FULL])
def test_networks_of_half_precision(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # mindspore.amp writes a file where it stands
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((6, 3)).astype(np.float32))
    data, loss = (x, Tensor(np.arange(6) % 3, ms.int32)), nn.CrossEntropyLoss()
    plain, half = Normed(), Normed()
    for one, other in zip(plain.get_parameters(), half.get_parameters(), strict=True):
        one.set_data(Tensor(rng.standard_normal(one.shape).astype(np.float32)))
        other.set_data(one)
    half = half.to_float(ms.float16) if how == "to_float" else amp.auto_mixed_precision(half, how)
    kinds = [HessianOperator, GGNOperator] + [FisherOperator, EmpiricalFisherOperator] * FULL
    for kind in kinds + [KFACOperator] * (how == "to_float"):
        want, found = (
            kind(net, loss, data, progress=False).to_dense().astype(np.float64)
            for net in (plain, half)
        )
        assert np.abs(found - want).max() < 1e-2 * np.abs(want).max(), kind


def test_mixed_precision_that_mindspore_cannot_compile_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = amp.auto_mixed_precision(nn.SequentialCell(nn.Dense(3, 3), nn.ReLU()), "auto")
    data = (Tensor(np.ones((6, 3), np.float32)), Tensor([0, 1, 2, 0, 1, 2], ms.int32))
    with pytest.raises(mh.NotCompilableError, match="level 'O1', 'O2' or 'O3'"):
        quick(data, net, nn.CrossEntropyLoss()).to_dense()


# --- large weights go in and out as a Tensor each -------------------------------------------------


class Weighed(nn.Cell):
    """Half the sum of c w^2 for weights of several dtypes and shapes, whose Hessian is diag(c)."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = ParameterTuple(
            Parameter(weight, name=f"w{k}") for k, weight in enumerate(weights)
        )

    def construct(self, x):
        total = 0.0
        for weight in self.weights:
            total = total + (k_of(weight) * weight * weight).astype(ms.float32).sum() / 2
        return total * x.mean()


@ops.constexpr
def k_of_shape(shape):
    return Tensor(np.arange(1, math.prod(shape) + 1).reshape(shape), ms.float16)


def k_of(weight):
    return k_of_shape(weight.shape).astype(weight.dtype)


@pytest.mark.parametrize(
    "weights",
    [
        (((), ms.float32), ((2, 3), ms.float16), ((4,), ms.float32)),
        (((1, 5), ms.float32), ((), ms.float32)),
        (((1, 5), ms.float32),),
        (((5,), ms.float16), ((), ms.float16)),
    ],
    ids=["several", "one row", "alone", "half"],
)
def test_products_of_weights_of_all_kinds_as_tensors(weights, monkeypatch):
    monkeypatch.setattr(risk, "LARGE", 0)
    network = Weighed(*(ops.ones(shape, dtype) for shape, dtype in weights))
    batches = [(Tensor(np.full(3, 2.0, np.float32)),), (Tensor(np.full(3, 4.0, np.float32)),)]
    op = mh.HessianOperator(network, None, batches, reduction="mean")
    entries = np.concatenate([np.arange(1.0, math.prod(shape) + 1) for shape, _ in weights])
    vector = np.linspace(-1, 2, len(entries)).astype(np.float32)
    np.testing.assert_allclose(op @ vector, 3 * entries * vector, rtol=2e-3)
    np.testing.assert_allclose(
        op @ np.stack([vector, 2 * vector], 1),
        3 * entries[:, None] * np.stack([vector, 2 * vector], 1),
        rtol=2e-3,
    )
    found = op @ op.unflatten(vector)
    assert [part.dtype for part in found] == [dtype for _, dtype in weights]
    np.testing.assert_allclose(op.flatten(found), 3 * entries * vector, rtol=2e-3)


def test_a_large_layer_against_its_closed_form():
    """Least squares, by default: the product with V is 2 V x^T x / (N m)."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 200)), rng.normal(size=(8, 190))
    network = nn.Dense(200, 190, has_bias=False)
    batch = (Tensor(x, ms.float32), Tensor(y, ms.float32))
    op = mh.HessianOperator(network, nn.MSELoss(), [batch])
    v = rng.normal(size=(190, 200))
    expected = 2 * v @ (x.T @ x) / (8 * 190)
    for vector in (v.ravel(), Tensor(v.ravel(), ms.float32)):
        found = np.asarray(op @ vector).reshape(v.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    (found,) = op @ (Tensor(v, ms.float32),)
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5 * np.abs(expected).max())
    for bad in (np.nan, np.inf, -np.inf):
        v[3, 4] = bad
        for vector in (v.ravel(), (Tensor(v, ms.float32),)):
            with pytest.warns(mh.NonFiniteWarning, match="in the entries of weight"):
                op @ vector
    with pytest.raises(TypeError, match="vectors of real numbers"):
        op @ (np.ones_like(v) * 1j,)
    with pytest.raises(ValueError, match="must have its shape"):
        op @ (v.T,)


class Twice(mh.HessianOperator):
    def columns(self, matrix):
        return 2 * super().columns(matrix)


def test_an_operator_that_says_its_columns_is_asked_for_them(monkeypatch):
    """Not passed by where weights are large."""
    monkeypatch.setattr(risk, "LARGE", 0)
    network, v = linear(), Tensor([[1.0, 2.0, 3.0]])
    (found,) = Twice(network, nn.MSELoss(), (Tensor(X), Tensor(Y))) @ (v,)
    np.testing.assert_allclose(found.asnumpy()[0], 2 * H @ [1.0, 2.0, 3.0], rtol=1e-5)
