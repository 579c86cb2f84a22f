"""scipy's minimisers on functions of Tensors."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
from full import FULL, some
from mindspore import Parameter, Tensor, nn, ops
from optim_problems import PROBLEMS

import mindspore_hessian as mh
from mindspore_hessian import optim


def rosenbrock(x):
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


GOLDEN = np.load(
    Path(__file__).parent / "golden" / "optim.npz"
)  # with jax's derivatives: ci/golden/make_optim.py
START = Tensor(np.array([-1.2, 1.0, -0.5]))
USUAL = ("Rosenbrock", "Kowalik and Osborne")


@pytest.mark.parametrize(
    "problem", some(PROBLEMS, keep=lambda p: p.name in USUAL), ids=lambda p: p.name
)
def test_standard_functions_reach_their_known_minima(problem):
    residuals = problem.residuals

    def squares(x):
        return (residuals(x) ** 2).sum()

    found = optim.minimize(
        squares, Tensor(np.array(problem.start)), method="trust-exact", gtol=1e-9, maxiter=1000
    )
    assert found.fun == pytest.approx(problem.minimum, rel=1e-6, abs=1e-11)
    if problem.at:
        np.testing.assert_allclose(found.x.asnumpy(), problem.at, rtol=1e-5)
    if f"{problem.name}/x" in GOLDEN:
        exact = optim.ScipyProblem(
            squares, found.x
        )  # the last digits are not in the values, but in the derivatives
        polished = exact.x0 - np.linalg.solve(exact.hess(exact.x0), exact.jac(exact.x0))
        np.testing.assert_allclose(polished, GOLDEN[f"{problem.name}/x"], rtol=1e-10)
        assert found.fun == pytest.approx(float(GOLDEN[f"{problem.name}/fun"]), rel=1e-12)


GRADIENTS = ("BFGS", "L-BFGS-B", "CG", "TNC", "SLSQP")


@pytest.mark.parametrize(
    "method",
    [
        "trust-ncg",
        "trust-krylov",
        "Newton-CG",
        "newton-cg",
        "trust-exact",
        "trust-constr",
        *GRADIENTS,
    ],
)
def test_every_method_finds_the_minimum(method):
    found = optim.minimize(rosenbrock, START, method=method, tol=1e-9)
    assert found.x.shape == (3,) and found.x.dtype == ms.float64
    np.testing.assert_allclose(found.x.asnumpy(), 1.0, atol=1e-3 if method in GRADIENTS else 1e-5)


def test_dogleg_takes_a_positive_definite_hessian():
    def bowl(x, y):
        return ((x - 1.0) ** 2).sum() + ((y - 2.0) ** 4).sum() + (y**2).sum()

    found = optim.minimize(
        bowl, (Tensor(np.zeros((2, 1))), Tensor(np.ones(2, np.float32))), method="dogleg"
    )
    x, y = found.x
    assert x.shape == (2, 1) and (x.dtype, y.dtype) == (ms.float64, ms.float32)
    np.testing.assert_allclose(x.asnumpy(), 1.0, atol=1e-6)
    np.testing.assert_allclose(4 * (y.asnumpy() - 2) ** 3 + 2 * y.asnumpy(), 0.0, atol=1e-4)


def test_a_problem_gives_scipy_what_numpy_says():
    problem = optim.ScipyProblem(rosenbrock, START)
    x, p = np.array([0.3, -0.4, 0.9]), np.array([1.0, 2.0, -1.0])
    assert problem.fun(x) == pytest.approx(scipy.optimize.rosen(x), rel=1e-14)
    np.testing.assert_allclose(problem.jac(x), scipy.optimize.rosen_der(x), rtol=1e-13)
    np.testing.assert_allclose(problem.hess(x), scipy.optimize.rosen_hess(x), rtol=1e-13)
    np.testing.assert_allclose(
        problem.hessp(x, p), scipy.optimize.rosen_hess_prod(x, p), rtol=1e-13
    )
    assert all(
        part.dtype == np.float64 for part in (problem.jac(x), problem.hess(x), problem.hessp(x, p))
    )
    problem.jac(x)[:] = 0.0
    problem.hess(x)[:] = 0.0
    np.testing.assert_allclose(problem.jac(x), scipy.optimize.rosen_der(x), rtol=1e-13)
    np.testing.assert_allclose(problem.hess(x), scipy.optimize.rosen_hess(x), rtol=1e-13)
    assert np.isnan(problem.hessp(x, p * np.nan)).all()


def test_value_and_gradient_are_one_pass(monkeypatch):
    problem, calls = optim.ScipyProblem(rosenbrock, START), []
    first = problem._first
    monkeypatch.setattr(problem, "_first", lambda *xs: calls.append(xs) or first(*xs))
    for _ in range(3):
        problem.fun(problem.x0)
        problem.jac(problem.x0)
    assert len(calls) == 1


@pytest.mark.full_run
def test_a_sparse_problem_of_many_unknowns():
    """n = 10^5 takes seconds too (docs/optim.md)."""
    start = Tensor(np.full(500, 1.2))
    problem = optim.ScipyProblem(rosenbrock, start, sparse=True)
    matrix = problem.hess(problem.x0)
    assert sp.issparse(matrix) and matrix.nnz == 3 * 500 - 2
    found = optim.minimize(rosenbrock, start, method="trust-krylov", sparse=True, gtol=1e-8)
    np.testing.assert_allclose(found.x.asnumpy(), 1.0, atol=1e-8)
    if FULL:
        found = optim.minimize(
            rosenbrock, Tensor(np.full(20, 1.2)), method="trust-constr", sparse=True, gtol=1e-10
        )
    np.testing.assert_allclose(found.x.asnumpy(), 1.0, atol=1e-6)


def test_constraints_by_functions_have_exact_derivatives(monkeypatch):
    """On the circle of radius 1: Lagrange's conditions by numpy."""

    def radius(x):
        return (x**2).sum()

    def both(x):
        return ops.stack([(x**2).sum(), x[0] * x[1]])

    start = Tensor(np.array([0.1, 0.2]))
    limit = scipy.optimize.NonlinearConstraint(radius, -np.inf, 1.0)
    for method, options in (
        ("trust-constr", {"gtol": 1e-10, "xtol": 1e-12}),
        ("SLSQP", {"ftol": 1e-14}),
    ):
        found = optim.minimize(rosenbrock, start, method=method, constraints=limit, **options)
        x = found.x.asnumpy()
        slope = scipy.optimize.rosen_der(x)
        assert x @ x == pytest.approx(1.0, abs=1e-5)
        assert (
            abs(slope[0] * x[1] - slope[1] * x[0]) < 1e-4
        )  # parallel to the constraint's gradient
        np.testing.assert_allclose(x, [0.786415, 0.617698], atol=1e-4)
    given, seen = scipy.optimize.NonlinearConstraint(both, 0.0, 1.0), []
    monkeypatch.setattr(
        scipy.optimize,
        "minimize",
        lambda *args, constraints, **rest: (
            seen.append(constraints[0]) or (scipy.optimize.OptimizeResult(x=np.zeros(2)))
        ),
    )
    optim.minimize(rosenbrock, start, method="trust-constr", constraints=[given])
    at, v = np.array([0.5, 2.0]), np.array([3.0, -1.0])
    np.testing.assert_allclose(seen[0].jac(at), [[1.0, 4.0], [2.0, 0.5]])
    np.testing.assert_allclose(seen[0].hess(at, v), [[6.0, -1.0], [-1.0, 6.0]])


def test_bounds_and_linear_constraints():
    for bounds in (scipy.optimize.Bounds(-1.0, 0.5), [(None, 0.5), (-1.0, 0.5), (-1.0, None)]):
        found = optim.minimize(rosenbrock, START * 0.1, method="L-BFGS-B", bounds=bounds)
        assert found.x.asnumpy()[0] <= 0.5 and found.fun > 0.2
    line = scipy.optimize.LinearConstraint([[1.0, 1.0, 1.0]], 1.5, 1.5)
    found = optim.minimize(rosenbrock, START, method="trust-constr", constraints=line)
    assert found.x.asnumpy().sum() == pytest.approx(1.5)


class Fit(nn.Cell):
    def __init__(self):
        super().__init__()
        self.slope = Parameter(Tensor(np.array([0.5, 0.2])), name="slope")
        self.shift = Parameter(Tensor(np.array(0.1)), name="shift")

    def construct(self, x, y):
        return (((x * self.slope).sum(-1) + self.shift - y) ** 2).mean()


def line():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 2))
    return Tensor(x), Tensor(x @ [2.0, -1.0] + 0.3)


@pytest.mark.full_run
@pytest.mark.parametrize("method", ["trust-ncg", "trust-exact", "BFGS"])
def test_weights_are_left_at_the_minimum(method):
    cell = Fit()
    found = optim.minimize(cell, line(), method=method, weights=cell.trainable_params())
    np.testing.assert_allclose(found.x[0].asnumpy(), [2.0, -1.0], atol=1e-5)
    np.testing.assert_array_equal(cell.slope.asnumpy(), found.x[0].asnumpy())
    assert float(cell.shift) == pytest.approx(0.3, abs=1e-5)


def test_further_arguments_are_constants():
    def shifted(x, a):
        return ((x - a) ** 2).sum()

    found = optim.minimize(shifted, Tensor([1.0, 2.0]), args=(Tensor([3.0, 4.0]),))
    np.testing.assert_allclose(found.x.asnumpy(), [3.0, 4.0], rtol=1e-6)
    assert found.x.dtype == ms.float32


def test_a_callback_sees_each_step_and_ends_the_search():
    seen = []

    def watch(state):
        seen.append(state)
        return len(seen) == 3

    for method in ("trust-ncg", "trust-constr", "BFGS"):
        seen.clear()
        found = optim.minimize(rosenbrock, START, method=method, callback=watch)
        assert (len(seen), found.nit, found.success) == (3, 3, False)
        assert seen[2].nit == 3 and seen[2].x.shape == (3,)
        assert seen[2].fun == pytest.approx(scipy.optimize.rosen(found.x.asnumpy()))


def interrupt(state):
    if state.nit == 2:
        raise KeyboardInterrupt


def fail(state):
    raise RuntimeError("of mine")


def test_after_an_error_weights_are_as_before_and_after_an_interrupt_at_the_best_point():
    cell, data = Fit(), line()
    before, value = cell.slope.asnumpy().copy(), float(cell(*data))
    with pytest.raises(RuntimeError, match="of mine"):
        optim.minimize(cell, data, weights=cell.trainable_params(), callback=fail)
    np.testing.assert_array_equal(cell.slope.asnumpy(), before)
    with pytest.raises(KeyboardInterrupt):
        optim.minimize(cell, data, weights=cell.trainable_params(), callback=interrupt)
    assert float(cell(*data)) < value


def test_a_refusal_comes_before_the_first_step():
    def rough(x):
        return ops.matrix_exp(x.reshape(1, 1)).sum()

    seen = []
    with pytest.raises(mh.HessianError):
        optim.minimize(rough, Tensor([1.0]), callback=seen.append, dtype=ms.float32)
    assert not seen


def test_options_of_scipy_by_name_or_as_a_dict():
    for options in ({"maxiter": 2}, {"options": {"maxiter": 2}}):
        assert optim.minimize(rosenbrock, START, **options).nit == 2
    with pytest.raises(ValueError, match="'trust-ncg' does not take these options of scipy: speed"):
        optim.minimize(rosenbrock, START, speed=3)
