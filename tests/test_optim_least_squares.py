"""Levenberg and Marquardt's method, against numpy."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL, some
from mindspore import Parameter, Tensor, nn, ops
from optim_problems import PROBLEMS

import mindspore_hessian as mh
from mindspore_hessian import optim

RNG = np.random.default_rng(0)
W1, B1, W2 = RNG.standard_normal((2, 5)), RNG.standard_normal(5), RNG.standard_normal(5)
START = np.concatenate([W1.ravel(), B1, W2])  # 20 weights
X = RNG.standard_normal((30, 2))
Y = np.sin(2 * X[:, 0]) * X[:, 1] + 0.1 * RNG.standard_normal(30)


class Net(nn.Cell):
    """tanh(x W1 + b1) W2, in float64."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1, self.w2 = (
            Parameter(Tensor(value), name=name)
            for value, name in ((W1, "w1"), (B1, "b1"), (W2, "w2"))
        )

    def construct(self, x):
        return ops.matmul(ops.tanh(ops.matmul(x, self.w1) + self.b1), self.w2)


def residuals_of(net):
    def residuals(x, y):
        return net(x) - y

    return residuals


def numpy_residuals(w, x, y):
    return np.tanh(x @ w[:10].reshape(2, 5) + w[10:15]) @ w[15:] - y


def numpy_jacobian(w, x, y):
    """By complex steps: exact to rounding."""
    return np.stack(
        [numpy_residuals(w + 1e-30j * e, x, y).imag / 1e-30 for e in np.eye(len(w))], axis=1
    )


def numpy_iterates(w, x, y, steps, damping, scaled=False, geodesic=False, rows=1.0):
    """The rule as its docstring has it, by least squares of the matrix itself instead of normal
    equations.
    """
    growth, out = 2.0, []
    for _ in range(steps):
        r, j = rows * numpy_residuals(w, x, y), (rows * numpy_jacobian(w, x, y).T).T
        loss, scale = r @ r / 2, (j**2).sum(0) if scaled else np.ones(len(w))
        while True:
            wide = np.concatenate([j, np.diag(np.sqrt(damping * scale))])
            s = np.linalg.lstsq(wide, np.concatenate([-r, np.zeros(len(w))]), rcond=None)[0]
            expected = (r @ r - (r + j @ s) @ (r + j @ s)) / 2
            move = s
            if geodesic:
                rss = 2 / 0.1 * ((rows * numpy_residuals(w + 0.1 * s, x, y) - r) / 0.1 - j @ s)
                a = np.linalg.lstsq(wide, np.concatenate([-rss, np.zeros(len(w))]), rcond=None)[0]
                move = s + a / 2 if 2 * np.linalg.norm(a) <= 0.75 * np.linalg.norm(s) else None
            new = (
                np.inf
                if move is None
                else ((rows * numpy_residuals(w + move, x, y)) ** 2).sum() / 2
            )
            if new < loss:
                damping *= max(1 / 3, 1 - (2 * (loss - new) / expected - 1) ** 3)
                growth, w = 2.0, w + move
                break
            damping, growth = damping * growth, growth * 2
        out.append((w, new, damping))
    return out


@pytest.mark.parametrize(
    "options", [{}, {"scaled": True}, {"geodesic": True}], ids=["plain", "scaled", "geodesic"]
)
@pytest.mark.parametrize("count", [30, 12], ids=["more residuals than weights", "fewer"])
def test_iterates_equal_numpys(count, options):
    net, x, y = Net(), X[:count], Y[:count]
    solver = optim.LevenbergMarquardt(residuals_of(net), net.trainable_params(), 0.1, **options)
    expected = numpy_iterates(START, x, y, 5, 0.1, **options)
    for w, loss, damping in expected:
        assert solver.step(Tensor(x), Tensor(y)) == pytest.approx(loss, rel=1e-8)
        np.testing.assert_allclose(solver.weights.point(), w, rtol=1e-8, atol=1e-8)
        assert solver.damping == pytest.approx(damping, rel=1e-5)


def test_the_first_trial_uses_the_damping_given():
    net = Net()
    optim.LevenbergMarquardt(residuals_of(net), net.trainable_params(), 10.0).step(
        Tensor(X), Tensor(Y)
    )
    r, j = numpy_residuals(START, X, Y), numpy_jacobian(START, X, Y)
    s = np.linalg.solve(j.T @ j + 10.0 * np.eye(20), -j.T @ r)
    found = np.concatenate([p.asnumpy().ravel() for p in net.trainable_params()])
    np.testing.assert_allclose(found, START + s, rtol=1e-9)


@pytest.mark.parametrize(
    "problem",
    some(PROBLEMS, keep=lambda p: p.name in ("Bard", "Powell, singular")),
    ids=lambda p: p.name,
)
def test_standard_functions_reach_their_known_minima(problem):
    x, residuals = Parameter(Tensor(np.array(problem.start)), name="x"), problem.residuals

    def of_weights():
        return residuals(x)

    found = optim.LevenbergMarquardt(of_weights, [x]).fit(max_steps=500, tol=1e-9, progress=False)
    assert 2 * found.loss == pytest.approx(problem.minimum, rel=1e-6, abs=1e-11)


@pytest.mark.full_run
def test_terms_with_weights():
    net = Net()

    def terms(x, y):
        out = net(x) - y
        return out[:10].reshape(2, 5), out[10:]

    solver = optim.LevenbergMarquardt(terms, net.trainable_params(), 0.01, term_weights=(4.0, 0.5))
    rows = np.sqrt(np.repeat([4.0, 0.5], [10, 20]))
    for w, loss, _ in numpy_iterates(START, X, Y, 3, 0.01, rows=rows):
        assert solver.step(Tensor(X), Tensor(Y)) == pytest.approx(loss, rel=1e-8)
        np.testing.assert_allclose(solver.weights.point(), w, rtol=1e-8)
    solver = optim.LevenbergMarquardt(terms, net.trainable_params(), term_weights=(1.0,))
    with pytest.raises(
        ValueError, match="term_weights holds 1 numbers, but residuals returns 2 terms"
    ):
        solver.step(Tensor(X), Tensor(Y))


class Solution(nn.Cell):
    """A function of a point in (0, 1) that is 0 at its ends."""

    def __init__(self, seed, width=20):
        super().__init__()
        ms.set_seed(seed)
        self.body = nn.SequentialCell(
            nn.Dense(1, width, dtype=ms.float64),
            nn.Tanh(),
            nn.Dense(width, width, dtype=ms.float64),
            nn.Tanh(),
            nn.Dense(width, 1, dtype=ms.float64),
        )

    def construct(self, point):
        return point[0] * (1 - point[0]) * self.body(point.reshape(1, 1)).reshape(())


def poisson(net, frequency):
    """-u'' = (frequency pi)^2 sin(frequency pi x), whose solution is the sine; 60 points."""
    laplace = mh.laplacian(net, in_axes=0)
    points = np.linspace(0.0, 1.0, 60)[:, None]
    source = Tensor(
        (frequency * np.pi) ** 2 * np.sin(frequency * np.pi * points[:, 0]) / np.sqrt(60)
    )

    def residuals(points):
        return laplace(points) / 60**0.5 + source

    return residuals, Tensor(points)


def relative_error(net, frequency):
    grid = np.linspace(0.0, 1.0, 501)[:, None]
    found, exact = ms.vmap(net)(Tensor(grid)).asnumpy(), np.sin(frequency * np.pi * grid[:, 0])
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("seed", [0, 1, 2] if FULL else [])
def test_a_physics_informed_network_with_frequency_4(seed):
    """The measurements of docs/optim.md: ci/bench/optim_pinn.py."""
    net = Solution(seed)
    residuals, points = poisson(net, 4)
    optim.LevenbergMarquardt(residuals, net.trainable_params()).fit(
        points, max_steps=300, progress=False
    )
    assert relative_error(net, 4) < 2e-5


@pytest.mark.full_run
def test_residuals_with_second_derivatives_inside():
    """The default run's case, which compiles in a fraction of the time of `laplacian`."""
    net, points = Net(), Tensor(RNG.uniform(-1.0, 1.0, (8, 2)))

    def total(x):
        return net(x).sum()

    along = ms.grad(total)

    def slope(x):
        return along(x)[:, 0].sum()

    second = ms.grad(slope)

    def residuals(x):
        return second(x)[:, 0] + net(x) - 1.0

    solver = optim.LevenbergMarquardt(residuals, net.trainable_params(), 0.1)
    loss = solver.step(points)
    w1, b1, w2 = (p.asnumpy() for p in net.trainable_params())
    t = np.tanh(points.asnumpy() @ w1 + b1)
    r = (-2 * t * (1 - t**2) * w1[0] ** 2 + t) @ w2 - 1.0
    assert solver.last.accepted and loss == pytest.approx(r @ r / 2, rel=1e-12)
    assert solver.fit(points, max_steps=100, target=1e-16, progress=False).stopped_by == "target"


def test_a_fit_that_was_cut_off_goes_on_to_the_same_bits(tmp_path):
    def cut(step):
        if solver.num_steps == 3:
            raise KeyboardInterrupt

    inputs, path = (Tensor(X), Tensor(Y)), tmp_path / "fit.npz"
    net = Net()
    whole = optim.LevenbergMarquardt(residuals_of(net), net.trainable_params(), 1.0)
    whole.fit(*inputs, max_steps=6)
    there = whole.weights.point()
    solver = optim.LevenbergMarquardt(residuals_of(net), net.trainable_params(), 1.0)
    solver.weights.place(START)
    with pytest.raises(KeyboardInterrupt):
        solver.fit(*inputs, max_steps=6, callback=cut, checkpoint=path)
    again = Net()
    solver = optim.LevenbergMarquardt(residuals_of(again), again.trainable_params(), 1.0)
    solver.fit(*inputs, max_steps=3, checkpoint=path)
    np.testing.assert_array_equal(solver.weights.point(), there)
    assert solver.state_dict() == whole.state_dict() and solver.num_steps == 6
    other = Parameter(Tensor(np.ones(3)), name="other")
    with pytest.raises(ValueError, match="holds 20 weights of LevenbergMarquardt, but there are 3"):
        optim.LevenbergMarquardt(lambda: other, [other]).fit(checkpoint=path)


def test_a_fit_says_why_it_ended():
    net = Net()
    solver = optim.LevenbergMarquardt(residuals_of(net), net.trainable_params())

    def fitted(**options):
        solver.weights.place(START)
        return solver.fit(Tensor(X), Tensor(Y), **options)

    assert fitted(max_steps=2).stopped_by == "steps"
    assert fitted(target=1e3).stopped_by == "target"
    assert fitted(tol=1e6).stopped_by == "tol"
    assert fitted(max_seconds=1e-9).stopped_by == "seconds"
    assert fitted(callback=lambda step: True).stopped_by == "callback"


def test_bad_states_change_nothing_and_are_told():
    w = Parameter(Tensor(np.array([2.0, 1.0])), name="w")

    def rooted():
        return ops.sqrt(w - 1.5)

    def flat():
        return w * 0.0 + 3.0

    with (
        pytest.raises(ValueError, match="hold NaN or Inf at the present weights"),
        pytest.warns(mh.NonFiniteWarning),
    ):
        optim.LevenbergMarquardt(rooted, [w]).step()
    stuck = optim.LevenbergMarquardt(flat, [w])
    assert stuck.step() == 9.0 and not stuck.last.accepted
    assert stuck.fit().stopped_by in ("tol", "stalled")
    np.testing.assert_array_equal(w.asnumpy(), [2.0, 1.0])


@pytest.mark.filterwarnings("ignore::mindspore_hessian.NonFiniteWarning")
def test_a_trial_that_gives_nan_is_taken_back():
    w = Parameter(Tensor(np.array([1.0])), name="w")

    def logarithm():
        return ops.log(w) + 3.0  # from 1, a whole step goes to -2

    solver = optim.LevenbergMarquardt(logarithm, [w], 1e-6)
    assert solver.step() < 4.5 and solver.last.trials > 1 and float(w[0]) > 0
    solver.fit(max_steps=40, progress=False)
    np.testing.assert_allclose(w.asnumpy(), np.exp(-3.0), rtol=1e-6)


def test_a_rank_deficient_jacobian_is_no_error():
    w = Parameter(Tensor(np.array([1.0, 2.0, 3.0])), name="w")

    def twice():
        return ops.stack([w.sum() - 1.0, 2.0 * w.sum() - 2.0, w.sum() - 1.0, w.sum() - 1.0])

    optim.LevenbergMarquardt(twice, [w]).fit(max_steps=50)
    np.testing.assert_allclose(
        w.asnumpy(), np.array([1.0, 2.0, 3.0]) - 5 / 3, atol=1e-8
    )  # the shortest way


def test_a_checkpoint_loaded_in_between_is_seen():
    """set_data gives a Parameter another buffer."""
    net, inputs = Net(), (Tensor(X), Tensor(Y))
    solver = optim.LevenbergMarquardt(residuals_of(net), net.trainable_params(), 0.01)
    first = solver.step(*inputs)
    for parameter, value in zip(net.trainable_params(), (W1, B1, W2), strict=True):
        parameter.set_data(Tensor(value))
    solver.load_state_dict({"damping": 0.01, "growth": 2.0, "num_steps": 0})
    assert solver.step(*inputs) == pytest.approx(first, rel=1e-12)
