"""Newton's method without a matrix, against scipy's trust-ncg with derivatives of numpy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import scipy.optimize
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import optim

RNG = np.random.default_rng(0)
START = RNG.standard_normal(20)
X, Y = RNG.standard_normal((16, 2)), RNG.standard_normal(16)
DATA = Tensor(X), Tensor(Y)


class Net(nn.Cell):
    """tanh(x W1 + b1) W2, in float64."""

    def __init__(self):
        super().__init__()
        self.w1 = Parameter(Tensor(START[:10].reshape(2, 5)), name="w1")
        self.b1 = Parameter(Tensor(START[10:15]), name="b1")
        self.w2 = Parameter(Tensor(START[15:]), name="w2")

    def construct(self, x):
        return ops.matmul(ops.tanh(ops.matmul(x, self.w1) + self.b1), self.w2)


def mean_square(out, y):
    return ((out - y) ** 2).mean()


def value(w):
    return ((np.tanh(X @ w[:10].reshape(2, 5) + w[10:15]) @ w[15:] - Y) ** 2).mean()


def gradient(w):
    w1, b1, w2 = w[:10].reshape(2, 5), w[10:15], w[15:]
    t = np.tanh(X @ w1 + b1)
    out = 2 * (t @ w2 - Y) / len(Y)
    inner = out[:, None] * w2 * (1 - t**2)
    return np.concatenate([(X.T @ inner).ravel(), inner.sum(0), t.T @ out])


def product(w, v):
    return gradient(w + 1e-30j * v).imag / 1e-30  # a complex step: exact to rounding


def jacobian(w):
    return np.stack(
        [
            (np.tanh(X @ u[:10].reshape(2, 5) + u[10:15]) @ u[15:]).imag / 1e-30
            for u in w + 1e-30j * np.eye(20)
        ],
        axis=1,
    )


def operator(kind=mh.HessianOperator, net=None, **options):
    return kind(
        net or Net(),
        mean_square,
        DATA,
        reduction="mean",
        check_deterministic=False,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("kind", ["Hessian", "Gauss-Newton"])
def test_iterates_are_those_of_scipy(kind):
    """With the Hessian, through negative curvature and steps that are taken back."""
    points = []
    if kind == "Hessian":
        op, times = operator(), product
    else:
        op = operator(mh.GGNOperator)

        def times(w, v):
            j = jacobian(w)
            return 2 / 16 * j.T @ (j @ v)

    scipy.optimize.minimize(
        value,
        START,
        jac=gradient,
        hessp=times,
        method="trust-ncg",
        callback=points.append,
        options={"initial_trust_radius": 0.5, "maxiter": 25, "gtol": 1e-12},
    )
    accepted = [
        p
        for p, before in zip(points, [START, *points], strict=False)
        if not np.array_equal(p, before)
    ]
    assert len(accepted) >= 10
    solver, ends = optim.NewtonCG(op, 0.5), set()
    for point in accepted[:12]:
        assert solver.step() == pytest.approx(value(point), rel=1e-8)
        np.testing.assert_allclose(solver.weights.point(), point, rtol=1e-7, atol=1e-8)
        ends.add(solver.last.ended)
    assert kind != "Hessian" or {"negative curvature", "tol"} & ends


def test_a_saddle_is_left_by_negative_curvature():
    class Saddle(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = Parameter(Tensor(np.array([0.5, 1e-3])), name="w")

        def construct(self, x):
            return (x * (self.w[0] ** 2 - self.w[1] ** 2 + self.w[1] ** 4)).mean()

    net = Saddle()

    def itself(out, y):
        return out + 0.0 * y.mean()

    op = mh.HessianOperator(
        net,
        itself,
        (Tensor(np.ones((2, 1))), Tensor(np.ones((2, 1)))),
        reduction="mean",
        check_deterministic=False,
    )
    fitted = optim.NewtonCG(op).fit(max_steps=30, tol=1e-8)
    assert fitted.stopped_by == "tol" and fitted.loss == pytest.approx(-0.25)
    np.testing.assert_allclose(net.w.asnumpy(), [0.0, np.sqrt(0.5)], atol=1e-6)


@pytest.mark.full_run
def test_curvature_of_a_part_of_the_data_and_damping():
    net = Net()
    part = mh.GGNOperator(
        net, mean_square, tuple(t[:6] for t in DATA), reduction="mean", check_deterministic=False
    )
    solver = optim.NewtonCG(operator(net=net), 100.0, curvature=part, damping=0.1, max_products=200)
    solver.step()
    j = jacobian(START)[:6]
    exact = np.linalg.solve(2 / 6 * j.T @ j + 0.1 * np.eye(20), -gradient(START))
    found = solver.weights.point() - START
    assert solver.last.ended == "tol" and solver.last.trials == 1
    tolerance = np.sqrt(np.linalg.norm(gradient(START)))
    assert np.linalg.norm(found - exact) < tolerance * np.linalg.norm(exact)
    assert solver.last.products < 20


@pytest.mark.full_run
def test_an_exact_preconditioner_needs_one_product():
    net = Net()
    j = jacobian(START)
    matrix = 2 / 16 * j.T @ j + 0.1 * np.eye(20)
    op = mh.GGNOperator(net, mean_square, DATA, reduction="mean", check_deterministic=False)
    solver = optim.NewtonCG(op, 100.0, damping=0.1, preconditioner=np.linalg.inv(matrix))
    solver.step()
    assert solver.last.products == 1
    np.testing.assert_allclose(
        solver.weights.point() - START, np.linalg.solve(matrix, -gradient(START)), rtol=1e-7
    )
    with pytest.raises(ValueError, match="preconditioner must be positive definite"):
        optim.NewtonCG(op, preconditioner=-np.eye(20)).step()


def nystrom(matrix, rank):
    """A X (X^T A X)^+ X^T A for the columns of seed 0: eigenvalues, falling, and eigenvectors."""
    columns = [
        np.random.default_rng(np.random.SeedSequence(0, spawn_key=(k,))).standard_normal(
            len(matrix)
        )
        for k in range(rank)
    ]
    x = np.linalg.qr(np.stack(columns, 1))[0]
    image = matrix @ x
    values, vectors = np.linalg.eigh(image @ np.linalg.pinv(x.T @ image) @ image.T)
    return values[: -rank - 1 : -1], vectors[:, : -rank - 1 : -1]


def steihaug(matrix, g, radius, tol):
    """Within the radius: the point where plain conjugate gradients end, for a residual whose norm
    `tol` measures and bounds.
    """
    s, r, d = np.zeros_like(g), g, -g
    for _ in range(50):
        image = matrix @ d
        bend = d @ image
        length = r @ r / bend if bend > 0 else np.inf
        if not np.linalg.norm(s + length * d) < radius:
            a, b, c = d @ d, s @ d, s @ s - radius**2
            return s + (np.sqrt(b**2 - a * c) - b) / a * d
        s, new = s + length * d, r + length * image
        if tol(new):
            return s
        d, r = -new + (new @ new) / (r @ r) * d, new
    return s


def test_iterates_with_a_nystrom_preconditioner_are_those_of_numpy():
    """Which works in the other variable L s, where the preconditioner is L^-2."""
    rank, damping, radius, w, moved = 6, 1e-2, 0.5, START, 0
    solver = optim.NewtonCG(
        operator(mh.GGNOperator), radius, damping=damping, preconditioner="nystrom", rank=rank
    )
    for _ in range(12):
        g, j = gradient(w), jacobian(w)
        matrix = 2 / 16 * j.T @ j
        values, vectors = nystrom(matrix, rank)
        grown = (values + damping) / (values[-1] + damping)
        root = np.eye(20) + (vectors * (np.sqrt(grown) - 1)) @ vectors.T
        back = np.linalg.inv(root)
        curved = matrix + damping * np.eye(20)
        most = min(0.5, np.sqrt(np.linalg.norm(g))) * np.linalg.norm(g)
        while True:
            s = back @ steihaug(
                back @ curved @ back,
                back @ g,
                radius,
                lambda r, root=root, most=most: np.linalg.norm(root @ r) < most,
            )
            gain = (value(w) - value(w + s)) / -(g @ s + s @ curved @ s / 2)
            if gain < 0.25:
                radius = radius / 4
            elif gain > 0.75 and np.linalg.norm(root @ s) > 0.999 * radius:
                radius = 2 * radius
            if gain > 0.15:
                break
        w = w + s
        assert solver.step() == pytest.approx(value(w), rel=1e-8)
        np.testing.assert_allclose(solver.weights.point(), w, rtol=1e-8, atol=1e-8)
        assert solver.radius == pytest.approx(radius)
        assert solver.last.products > rank
        moved += solver.last.ended == "boundary"
    assert 0 < moved < 12


def ill_conditioned(dtype):
    """A linear network of 60 inputs of very different scales, and few products away from its
    answer.
    """
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    x = rng.standard_normal((100, 60)) * 10.0 ** -(np.arange(60) / 12) @ turn
    net = nn.Dense(60, 1, weight_init="zeros", has_bias=False, dtype=dtype)
    y = 1e-3 * x @ rng.standard_normal((60, 1))
    return mh.GGNOperator(
        net,
        mean_square,
        (Tensor(x, dtype), Tensor(y, dtype)),
        reduction="mean",
        check_deterministic=False,
    )


@pytest.mark.parametrize("dtype", [ms.float64, ms.float32])
def test_nystrom_saves_steps_where_eigenvalues_decay(dtype):
    options = {"damping": 1e-6, "max_products": 300}
    plain, aided = (
        optim.NewtonCG(ill_conditioned(dtype), 100.0, **options, **more)
        for more in ({}, {"preconditioner": "nystrom", "rank": 30})
    )
    plain.step(), aided.step()
    assert plain.last.ended == aided.last.ended == "tol"
    assert aided.last.products - 30 < plain.last.products / 2


def test_nystrom_is_renewed_where_the_point_moves_and_knows_no_more_than_there_is():
    """16 samples of one output: 16 eigenvalues, and no damping."""
    solver = optim.NewtonCG(operator(mh.GGNOperator), preconditioner="nystrom", rank=50)
    solver.step()
    assert solver.last.accepted and solver.last.products > 20
    solver.radius, solver.max_radius, solver.max_trials = 1e9, 1e9, 1
    steps = [(solver.step(), solver.last.accepted, solver.last.products) for _ in range(2)]
    (_, accepted, first), (_, _, second) = steps
    assert not accepted and second == first - 20


def test_nystrom_is_not_for_a_hessian():
    with pytest.raises(ValueError, match="^preconditioner 'nystrom' needs.*HessianOperator"):
        optim.NewtonCG(operator(), preconditioner="nystrom")
    net = Net()
    optim.NewtonCG(
        operator(net=net), curvature=operator(mh.GGNOperator, net), preconditioner="nystrom"
    )

    def concave(out, y):
        return -((out - y) ** 2).mean()

    op = mh.GGNOperator(Net(), concave, DATA, reduction="mean", check_deterministic=False)
    solver = optim.NewtonCG(op, preconditioner="nystrom")
    with pytest.raises(ValueError, match="^curvature must have no negative eigenvalues"):
        solver.step()
    np.testing.assert_array_equal(solver.weights.point(), START)


@pytest.mark.full_run
def test_a_fit_and_its_state(tmp_path):
    solver = optim.NewtonCG(operator())
    fitted = solver.fit(max_steps=4, checkpoint=tmp_path / "newton.npz", progress=False)
    assert fitted.num_steps == 4 and fitted.losses == sorted(fitted.losses, reverse=True)
    assert fitted.loss == pytest.approx(value(solver.weights.point()), rel=1e-12)
    other = optim.NewtonCG(operator())
    other.fit(max_steps=1, checkpoint=tmp_path / "newton.npz")
    solver.step()
    np.testing.assert_array_equal(other.weights.point(), solver.weights.point())
    assert other.state_dict() == solver.state_dict()


def test_a_loss_of_nan_is_an_error_and_changes_nothing():
    net = Net()
    op = mh.HessianOperator(
        net, mean_square, (Tensor(X * np.nan), DATA[1]), reduction="mean", check_deterministic=False
    )
    with pytest.raises(ValueError, match="NaN or Inf at the present weights"):
        optim.NewtonCG(op).step()
    np.testing.assert_array_equal(optim.NewtonCG(op).weights.point(), START)


def test_float32_networks_end_where_rounding_ends():
    ms.set_seed(0)
    net = nn.SequentialCell(nn.Dense(2, 5), nn.Tanh(), nn.Dense(5, 1))
    data = Tensor(X, ms.float32), Tensor(Y.reshape(-1, 1), ms.float32)
    op = mh.GGNOperator(net, nn.MSELoss(), data, check_deterministic=False)
    before = op.loss()
    fitted = optim.NewtonCG(op).fit(max_steps=60, tol=1e-4, progress=False)
    assert fitted.stopped_by in ("tol", "stalled", "steps") and fitted.loss < 0.7 * before
