"""Several updates of one place: the one that is there counts, in float64 against differences of
values."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, mint, ops

import mindspore_hessian as mh

RNG = np.random.default_rng(4)
X, V = RNG.uniform(0.5, 1.5, (4, 3)), RNG.standard_normal((4, 3))
ROWS = Tensor([[2], [0], [2], [1]], ms.int32)
COLUMNS = Tensor(RNG.integers(0, 3, (4, 3)), ms.int64)
ONE, TWO = Tensor([2, 0, 2, 1], ms.int64), Tensor([1, 1, 1, 1], ms.int64)


def item(x):
    y = x * x
    y[[2, 0, 2, 1]] = ops.sin(x)
    return (y**3).sum()


def items(x):
    y = x * x
    y[Tensor([2, 0, 2], ms.int32), Tensor([1, 1, 1], ms.int32)] = ops.sin(x[0])
    return (y**3).sum()


def update(x):
    return (ops.tensor_scatter_update(x * x, ROWS, ops.sin(x)) ** 3).sum()


def scatter(x):
    return (ops.scatter(x * x, 1, COLUMNS, ops.sin(x)) ** 3).sum()


def mint_scatter(x):
    return (mint.scatter(x * x, 1, COLUMNS, ops.sin(x)) ** 3).sum()


def multiply(x):
    return (ops.tensor_scatter_mul(x * x, ROWS, ops.sin(x)) ** 3).sum()


def divide(x):
    return (ops.tensor_scatter_div(x * x, ROWS, ops.sin(x)) ** 3).sum()


def put(x):
    return ((x * x).index_put((ONE, TWO), ops.sin(x[:, 0])) ** 3).sum()


def put_one(x):
    return ((x * x).index_put((ONE, TWO[:1]), ops.sin(x[0, :1])) ** 3).sum()


def put_rows(x):
    return ((x * x).index_put((ONE,), ops.sin(x[0])) ** 3).sum()


def put_added(x):
    return ((x * x).index_put((ONE, TWO), ops.sin(x[:, 0]), accumulate=True) ** 3).sum()


def fill(x):
    return (ops.index_fill(x * x, 0, ROWS[:3, 0], ops.sin(x[3, 1])) ** 3).sum()


def fill_number(x):
    return (ops.index_fill(x * x, -1, ROWS[:3, 0], 0.5) ** 3 * x).sum()


FUNCTIONS = [
    fill,
    fill_number,
    item,
    items,
    update,
    scatter,
    mint_scatter,
    multiply,
    divide,
    put,
    put_one,
    put_rows,
    put_added,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_second_derivatives(function):
    def value(x):
        return float(function(Tensor(x)).asnumpy())

    h = 1e-3
    one, two = ((value(X + k * h * V) - 2 * value(X) + value(X - k * h * V)) / h**2 for k in (1, 2))
    expected = (4 * one - two / 4) / 3  # of fourth order
    found = (mh.hvp(function, Tensor(X), Tensor(V)).asnumpy() * V).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "function", FUNCTIONS if FULL else FUNCTIONS[::4], ids=lambda f: f.__name__
)
def test_matrices_are_symmetric_and_agree_with_products(function):
    matrix = mh.hessian(function)(Tensor(X)).asnumpy().reshape(12, 12)
    product = mh.hvp(function, Tensor(X), Tensor(V)).asnumpy().ravel()
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * np.abs(matrix).max())
    np.testing.assert_allclose(matrix @ V.ravel(), product, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [put, put_one, put_rows, put_added], ids=lambda f: f.__name__)
def test_put_goes_forward(function):
    found = mh.laplacian(function, mode="forward")(Tensor(X)).asnumpy()
    matrix = mh.hessian(function)(Tensor(X)).asnumpy().reshape(12, 12)
    np.testing.assert_allclose(found, np.trace(matrix), rtol=1e-12)


def elements(u):
    return ops.tensor_scatter_elements(Tensor(X), COLUMNS, u, 0)


def test_one_of_the_elements_counts():
    """Which of them is written is a race of threads in MindSpore's kernel."""

    def weighed(u):
        return (elements(u * u) * Tensor(V)).sum()

    rows = COLUMNS.asnumpy()
    diagonal = mh.hessian_diag(weighed)(Tensor(X)).asnumpy()
    for row in range(3):
        for column in range(3):
            there = np.flatnonzero(rows[:, column] == row)
            if len(there):
                found = diagonal[there, column]
                np.testing.assert_allclose(found.sum(), 2 * V[row, column], rtol=1e-12)
                assert (found != 0).sum() == 1


def test_a_product_with_one_update_of_zero():
    """x u has the second derivative 1 by x and u, also where u is 0."""

    def function(u):
        return (ops.tensor_scatter_mul(u, Tensor([[1]], ms.int32), u[:1]) ** 2).sum()

    u = np.array([0.0, 2.0, 3.0])  # u0^2 + (u0 u1)^2 + u2^2
    found = mh.hessian(function)(Tensor(u)).asnumpy()
    np.testing.assert_allclose(found, [[2 + 8, 0, 0], [0, 0, 0], [0, 0, 2]], atol=1e-12)
