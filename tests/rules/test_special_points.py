"""Smooth functions at ties, at zeros and far out: second and third derivatives against closed
forms, in float64.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import some
from mindspore import Tensor, mint, nn, ops
from mindspore.ops import logaddexp as imported
from special_points import POINTS, sinc2

from mindspore_hessian import audit, batched_hessian, hessian, hvp, rules

BOTH = Tensor(np.array([0.0, 1.0]))
TIE = Tensor(np.array([0.0, 0.0]))
BELL = np.array([0.25, 0.25 / np.cosh(0.5) ** 2])


@pytest.mark.parametrize("name", POINTS)
def test_second_and_third_derivatives(name):
    point = POINTS[name]
    function, x = point.function, Tensor(point.x)

    def summed(x):
        return function(x).sum()

    def slope(x):
        return ops.GradOperation()(summed)(x).sum()

    for f, want in ((summed, point.second), (slope, point.third)):
        got = hvp(f, x, ops.ones_like(x)).asnumpy()
        np.testing.assert_allclose(got, want(point.x), rtol=2e-11, atol=1e-12)


def attribute(x):
    return ops.logaddexp(x, TIE).sum()


def global_name(x):
    return imported(x, TIE).sum()


def whole_path(x):
    return ms.ops.function.math_func.logaddexp(x, TIE).sum()


def method(x):
    return x.logaddexp(TIE).sum()


def default(x, f=ops.logaddexp):
    return f(x, TIE).sum()


def by_mint(x):
    return mint.logaddexp(x, TIE).sum()


def by_numpy(x):
    return ms.numpy.logaddexp(x, TIE).sum()


IN_A_LIST, IN_A_DICT = [ops.logaddexp], {"f": ops.logaddexp}


def from_a_list(x):
    for f in IN_A_LIST:
        x = f(x, TIE)
    return x.sum()


def from_a_dict(x):
    return IN_A_DICT["f"](x, TIE).sum()


def closure(f):
    def closed(x):
        return f(x, TIE).sum()

    return closed


class Kept(nn.Cell):
    def __init__(self):
        super().__init__()
        self.f = ops.logaddexp

    def construct(self, x):
        return self.f(x, TIE).sum()


@pytest.mark.parametrize(
    "f",
    [
        attribute,
        global_name,
        whole_path,
        method,
        default,
        by_mint,
        by_numpy,
        from_a_list,
        from_a_dict,
        closure(ops.logaddexp),
        Kept(),
    ],
)
def test_the_better_composition_is_met_however_it_is_reached(f):
    np.testing.assert_allclose(hvp(f, BOTH, ops.ones_like(BOTH)).asnumpy(), BELL, rtol=1e-14)


def test_in_the_users_own_graph():
    @ms.jit
    def mine(x, v):
        return hvp(method, x, v)

    np.testing.assert_allclose(mine(BOTH, ops.ones_like(BOTH)).asnumpy(), BELL, rtol=1e-14)


@pytest.mark.full_run
def test_a_fold_of_logaddexp_that_starts_at_minus_infinity():
    def fold(x):
        total = ops.full((), -np.inf, dtype=ms.float64)
        total = ops.logaddexp(total, total)
        for k in range(3):
            total = ops.logaddexp(total, x[k])
        return total

    want = np.eye(3) / 3 - 1 / 9
    np.testing.assert_allclose(hessian(fold)(Tensor(np.zeros(3))).asnumpy(), want, atol=1e-15)
    np.testing.assert_allclose(hessian(fold)(Tensor(np.full(3, 800.0))).asnumpy(), want, atol=1e-13)


MATRICES = {
    "variance of equal values": (ops.var, [2.0, 2.0], [[0.5, -0.5], [-0.5, 0.5]]),
    "variance, ddof": (lambda x: ops.var(x, 0, 1), [2.0, 2.0], [[1, -1], [-1, 1]]),
    "variance and mean": (
        lambda x: ops.var_mean(x, (0,), 0, True)[0].sum(),
        [0.0, 0.0],
        [[0.5, -0.5], [-0.5, 0.5]],
    ),
    "root of the variance": (
        lambda x: ops.std(x, ddof=True) * 2**0.5,
        [0.0, 2e6],
        np.zeros((2, 2)),
    ),
    "an entry picked by its place": (
        lambda x: (x**3).sum() * x[ops.argmax(x)] + x[ops.argmin(x)] * x[mint.argmax(-x)],
        [1.0, 2.0],
        [[14, 3], [3, 48]],
    ),
    "distance with an equal coordinate": (
        lambda x: ops.cdist(x.reshape(1, 2), Tensor([[1.0, 5.0]], ms.float64)).sum(),
        [1.0, 2.0],
        [[1 / 3, 0], [0, 0]],
    ),
    "power of both, x^1": (
        lambda x: x[0] ** x[1],
        [2.0, 1.0],
        [[0, 1 + np.log(2)], [1 + np.log(2), 2 * np.log(2) ** 2]],
    ),
    "power of both, x^0": (lambda x: x[0] ** x[1], [2.0, 0.0], [[0, 0.5], [0.5, np.log(2) ** 2]]),
    "a base that is broadcast": (
        lambda x: (x[:1] ** Tensor(np.array([[0.0], [1], [2], [3]]))).sum(),
        [0.0, 1.0],
        [[2, 0], [0, 0]],
    ),
    "numpy.logaddexp2 far out": (
        lambda x: ms.numpy.logaddexp2(x[0], x[1]),
        [900.0, 900.0],
        np.log(2) / 4 * np.array([[1, -1], [-1, 1]]),
    ),
}


@pytest.mark.parametrize("keep", [False, True])
def test_the_variance_of_moments_takes_the_mean_along(keep):
    cell = nn.Moments((0,), keep)

    def f(x):
        mean, variance = cell(x)
        return (variance + 0 * mean).sum()

    got = hessian(f)(Tensor(np.array([2.0, 3.0, 5.0], np.float32)))
    np.testing.assert_allclose(got.asnumpy(), 2 / 3 * (np.eye(3) - 1 / 3), rtol=1e-6)


def test_audit_names_a_primitive_that_is_wrong_at_a_point():
    deviation = ops.ReduceStd(axis=0, unbiased=False)

    def f(x):
        return deviation(x)[0] ** 2

    rows = {row.primitive: row.remedy for row in audit(f, BOTH).rows}
    assert "all values are equal" in rows["ReduceStd"]


@pytest.mark.parametrize("name", MATRICES)
def test_hessians(name):
    f, x, want = MATRICES[name]
    np.testing.assert_allclose(
        hessian(f)(Tensor(np.array(x))).asnumpy(), want, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("exclusive", "reverse"),
    some([(False, False), (False, True), (True, False), (True, True)], every=3),
)
def test_running_products_with_zeros(exclusive, reverse):
    product = ops.CumProd(exclusive, reverse)

    def f(x):
        return product(x, 0)[2 if not reverse else 0]

    x = np.array([0.0, 0.0, 3.0, 0.5])
    used = {
        (False, False): [0, 1, 2],
        (False, True): [0, 1, 2, 3],
        (True, False): [0, 1],
        (True, True): [1, 2, 3],
    }
    want = np.zeros((4, 4))
    for i in used[exclusive, reverse]:
        for j in set(used[exclusive, reverse]) - {i}:
            want[i, j] = np.prod([x[k] for k in used[exclusive, reverse] if k not in (i, j)])
    np.testing.assert_allclose(hessian(f)(Tensor(x)).asnumpy(), want, atol=1e-15)


def test_batches_of_points():
    def f(x):
        return ops.sinc(x).sum() + (x**1).sum()

    points = np.array([[0.0, 1e-12], [0.5, 2.0]])
    got = batched_hessian(f)(Tensor(points)).asnumpy()
    np.testing.assert_allclose(got, [np.diag(sinc2(row)) for row in points], rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::mindspore_hessian.LateRulesWarning")
def test_uninstall_gives_mindspore_its_functions_back():
    assert any(row.kind == "composition" and row.active == "ours" for row in rules.status())
    rules.uninstall()
    try:
        assert not hasattr(ops.logaddexp, "__wrapped__")
    finally:
        rules.install()
    assert hasattr(ops.logaddexp, "__wrapped__")


def test_lambdas_of_one_line_that_differ_in_the_order_of_what_they_read():
    over, under = (lambda x: (x[0] - x[1] * 2) ** 3, lambda x: (x[1] - x[0] * 2) ** 3)
    x, v = Tensor(np.array([1.0, 3.0])), Tensor(np.array([1.0, 0.0]))
    np.testing.assert_allclose(hvp(over, x, v).asnumpy(), [-30, 60])
    np.testing.assert_allclose(hvp(under, x, v).asnumpy(), [24, -12])
    left, right = (lambda a, b: (a / b).sum(), lambda a, b: (b / a).sum())
    a, b = Tensor(2.0, ms.float64), Tensor(3.0, ms.float64)
    assert float(hvp(left, (a, b), a, 0)) == 0
    assert float(hvp(right, (a, b), a, 0)) == pytest.approx(2 * 3 / 2**3 * 2)
