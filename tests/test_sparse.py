"""Sparse Hessians: patterns of matrices that are known, and functions whose Hessian has a closed
form.
"""

from __future__ import annotations

import warnings

import mindspore as ms
import numpy as np
import pytest
import scipy.sparse as sp
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian._errors import debris_removed
from mindspore_hessian.transforms import pattern

RNG = np.random.default_rng(0)


# --- the pattern, of matrices alone ---------------------------------------------------------------


def band(n, width):
    a = RNG.standard_normal((n, n))
    return np.where(abs(np.subtract.outer(np.arange(n), np.arange(n))) <= width, a + a.T, 0)


def arrow(n):
    a = band(n, 0)
    a[n // 2] = a[:, n // 2] = 1.5
    return a


def scattered(n, density):
    a = sp.random(n, n, density, random_state=0).toarray()
    return a + a.T


def mesh(side):
    line = sp.diags([2.0, -1.0, -1.0], [0, 1, -1], shape=(side, side))
    return (sp.kron(line, sp.eye(side)) + sp.kron(sp.eye(side), line)).toarray()


@pytest.mark.parametrize(
    ("matrix", "probes", "products"),
    [
        (np.ones((1, 1)), 0, 1),
        (band(2, 1), 2, 2),
        (np.zeros((30, 30)), 15, 1),
        (band(500, 0), 25, 1),
        (band(500, 1), 40, 3),
        (band(500, 4), 90, 9),
        (arrow(400), 45, 2),
        (arrow(401), 45, 2),
        (band(60, 59), 90, 60),
        (mesh(20), 80, 7),
        (scattered(300, 0.005), 250, 12),
        (np.kron(np.eye(30), np.ones((4, 4))), 30, 4),
    ],
)
def test_a_matrix_is_found_from_few_products(matrix, probes, products):
    taken = []

    def product(vectors):
        taken.append(len(vectors))
        return vectors @ matrix

    found = pattern.detected(product, len(matrix), np.random.default_rng(1))
    np.testing.assert_array_equal(found.toarray(), matrix != 0)
    assert sum(taken) <= probes
    plan = pattern.planned(found)
    assert plan.products <= products
    np.testing.assert_allclose(plan.matrix(product).toarray(), matrix, rtol=0, atol=1e-13)


def test_an_order_that_hides_the_band_costs_products_and_no_entries():
    order = RNG.permutation(400)
    matrix = mesh(20)[order][:, order]
    found = pattern.detected(lambda vectors: vectors @ matrix, 400, np.random.default_rng(1))
    np.testing.assert_array_equal(found.toarray(), matrix != 0)
    assert pattern.planned(found).products < 15


# --- Hessians -------------------------------------------------------------------------------------


def chain(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def chain_hessian(x):
    n = x.size
    diagonal = np.zeros(n)
    diagonal[:-1] += 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    diagonal[1:] += 200
    return (sp.diags([diagonal, -400 * x[:-1], -400 * x[:-1]], [0, 1, -1])).toarray()


def close(found, expected, tolerance):
    np.testing.assert_allclose(
        found.toarray(), expected, rtol=0, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_rosenbrock_at_two_points(dtype, tolerance):
    h, x = mh.hessian(chain, sparse=True), RNG.standard_normal((2, 70)).astype(dtype)
    for point in x:
        found = h(Tensor(point))
        assert isinstance(found, sp.csr_array) and found.dtype == dtype and found.shape == (70, 70)
        assert found.nnz == 70 + 2 * 69
        close(found, chain_hessian(point.astype(np.float64)), tolerance)


@pytest.mark.full_run
def test_it_stays_cheap_where_the_matrix_would_not_fit():
    x = RNG.standard_normal(50_000).astype(np.float32)  # 10 GB as a matrix
    found = mh.hessian(chain, sparse=True)(Tensor(x))
    x = x.astype(np.float64)
    np.testing.assert_allclose(
        found.diagonal()[1:-1], 1200 * x[1:-1] ** 2 - 400 * x[2:] + 202, rtol=0, atol=0.02
    )
    np.testing.assert_allclose(found.diagonal(1), -400 * x[:-1], rtol=1e-5)


def test_several_variables_aux_and_chunks():
    def f(x, y, k):
        return (x**2 * y).sum() + (x[1:] * x[:-1]).sum() * k.sum(), x.sum()

    x, y, k = Tensor(np.arange(1.0, 4.0)), Tensor(np.arange(4.0, 7.0)), Tensor([2, 1], ms.int32)
    found, aux = mh.hessian(f, (0, 1), has_aux=True, sparse=True, chunk_size=2)(x, y, k)
    expected = np.zeros((6, 6))
    expected[:3, :3] = np.diag([8, 10, 12]) + 3 * (np.eye(3, k=1) + np.eye(3, k=-1))
    expected[:3, 3:] = expected[3:, :3] = np.diag([2, 4, 6])
    close(found, expected, 1e-12)
    assert float(aux) == 6


def test_weights():
    class Scales(nn.Cell):
        def __init__(self):
            super().__init__()
            self.a = Parameter(Tensor(np.ones((2, 3)), ms.float32), name="a")
            self.b = Parameter(Tensor(np.arange(1, 3), ms.float32), name="b")

        def construct(self, x):
            return (self.a**3 * x).sum() + (self.b**2 * self.a[:, 0]).sum()

    net, x = Scales(), np.arange(1.0, 7.0).reshape(2, 3).astype(np.float32)
    found = mh.hessian(net, weights=net.trainable_params(), sparse=True)(Tensor(x))
    expected = np.diag([*(6 * x.reshape(-1)), 2.0, 2.0])
    for row, column, value in ((0, 6, 2.0), (3, 7, 4.0)):
        expected[row, column] = expected[column, row] = value
    close(found, expected, 1e-6)


def test_a_point_that_needs_more_entries_is_seen():
    def f(x):
        return (ops.relu(x[:-1]) ** 2 * x[1:] ** 2).sum()

    def truth(x):
        a, b, on = x[:-1], x[1:], x[:-1] > 0
        out = np.zeros((x.size, x.size))
        index = np.arange(x.size - 1)
        out[index, index] += 2 * on * b**2
        out[index + 1, index + 1] += 2 * on * a**2
        out[index, index + 1] = out[index + 1, index] = 4 * on * a * b
        return out

    h, x = mh.hessian(f, sparse=True), RNG.uniform(0.5, 2, 24)
    x[::2] *= -1
    for point in (x, -x, abs(x), x):
        close(h(Tensor(point)), truth(point), 1e-12)


def test_a_wrong_pattern_is_never_believed():
    x = RNG.standard_normal(30)
    for shift in (1, 5):
        known = sp.eye(30) + sp.eye(30, k=shift) + sp.eye(30, k=-shift)
        if shift == 1:
            close(mh.hessian(chain, sparse=known)(Tensor(x)), chain_hessian(x), 1e-12)
        else:
            with pytest.raises(
                ValueError, match="misses entries of the Hessian: row .* instead of"
            ):
                mh.hessian(chain, sparse=known.toarray())(Tensor(x))


def test_where_no_pattern_agrees_the_matrix_is_computed_whole(monkeypatch):
    from mindspore_hessian.transforms import sparse

    monkeypatch.setattr(
        sparse, "detected", lambda product, n, rng: sp.csc_array(sp.eye(n), dtype=bool)
    )
    x = RNG.standard_normal(9)
    with pytest.warns(mh.FallbackWarning, match="no sparse pattern agrees"):
        close(mh.hessian(chain, sparse=True)(Tensor(x)), chain_hessian(x), 1e-12)


def test_without_a_batching_rule_the_products_go_one_after_another(monkeypatch):
    from mindspore_hessian.core import program

    run, refused = program.Program.run, []

    def refusing(self, *args):
        if self.options == ("sparse", True):
            refused.append(self.options)
            raise NotImplementedError("primitive Mul has no batching rule")
        return run(self, *args)

    monkeypatch.setattr(program.Program, "run", refusing)
    x = RNG.standard_normal(6)
    with pytest.warns(mh.FallbackWarning, match="one after another"):
        close(mh.hessian(chain, sparse=True)(Tensor(x)), chain_hessian(x), 1e-12)
    assert len(refused) == 1  # not again for each step of the search


@pytest.mark.full_run
def test_a_result_changed_in_place_does_not_change_the_next():
    h, x = mh.hessian(chain, sparse=True), np.zeros(8)
    first = h(Tensor(x))
    first.eliminate_zeros()  # at 0 nothing is beside the diagonal
    x = RNG.standard_normal(8)
    close(h(Tensor(x)), chain_hessian(x), 1e-12)
    again = h(Tensor(x))
    again.indices[:] = 0
    close(h(Tensor(x)), chain_hessian(x), 1e-12)


def test_statistics_that_change_go_in_one_batch():
    net = nn.BatchNorm1d(1, affine=False).set_train()
    x = RNG.standard_normal((5, 1)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", mh.FallbackWarning)
        found = mh.hessian(lambda x: ((x - net(x)) ** 3).sum(), sparse=True)(Tensor(x))

    def slope(x):  # of sum (x - y)^3, y = (x - mean) / s
        s = np.sqrt(x.var() + 1e-5)
        y, g = (x - x.mean()) / s, 3 * (x - (x - x.mean()) / s) ** 2
        return g - (g - g.mean() - y * (g * y).mean()) / s

    x = x.astype(np.float64).reshape(-1)
    e = 1e-5 * np.eye(5)
    close(found, np.stack([(slope(x + d) - slope(x - d)) / 2e-5 for d in e]), 1e-3)


def test_nan_is_reported():
    with pytest.warns(mh.NonFiniteWarning, match="hessian"):
        mh.hessian(lambda x: ops.sqrt(x).sum(), sparse=True)(Tensor([1.0, 0.0, 2.0]))


def test_it_compiles_twice_and_no_more():
    def own(x):
        return chain(x)

    before, h = mh.cache_info().misses, mh.hessian(own, sparse=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(4):
            h(Tensor(RNG.standard_normal(40)))
    assert mh.cache_info().misses == before + 2


@pytest.mark.parametrize(
    ("arguments", "call", "error", "words"),
    [
        ({"sparse": "yes"}, None, TypeError, "sparse must be True, False, or the pattern"),
        ({"sparse": np.ones((2, 3))}, None, ValueError, r"square matrix, but has shape \(2, 3\)"),
        (
            {"sparse": True, "mode": "revrev"},
            None,
            ValueError,
            "sparse works with mode='auto' only",
        ),
        (
            {"sparse": np.eye(4)},
            ms.float32,
            ValueError,
            r"sparse has shape \(4, 4\), but what is differentiated has 3",
        ),
        ({"sparse": True}, ms.float16, TypeError, "float32 or float64, but got Float16"),
    ],
)
def test_refusals(arguments, call, error, words):
    with pytest.raises(error, match=words):
        h = mh.hessian(lambda x: (x**2).sum(), **arguments)
        h(ms.ops.ones(3, call))


def test_vector_functions_and_the_users_own_graph_are_refused():
    with pytest.raises(ValueError, match="fn must return one number"):
        mh.hessian(lambda x: x**2, sparse=True)(Tensor([1.0, 2.0]))
    h = mh.hessian(chain, sparse=True)

    def made_outside(x):
        return h(x)

    def made_inside(x):
        return mh.hessian(chain, sparse=True)(x)

    for mine in (made_outside, made_inside):
        with (
            debris_removed(),
            pytest.raises(NotImplementedError, match="sparse= is not supported inside your own"),
        ):
            ms.jit(mine)(Tensor([1.0, 2.0]))
