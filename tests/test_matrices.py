"""Hessians, Jacobians and their kin: shapes, structures, batches, dtypes."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL, some
from mindspore import Parameter, Tensor, nn, ops

from mindspore_hessian import (
    batched_hessian,
    hessian,
    hessian_diag,
    jacobian,
    laplacian,
    value_grad_and_hessian,
)

MODES = ("auto", "fwdfwd", "fwdrev", "revfwd", "revrev")


@pytest.mark.parametrize("mode", MODES)
def test_the_tutorials_forecast_as_written(mode):
    """f = tanh(W x + b): d2 f_i / dx_j dx_k = -2 t (1 - t^2) W_ij W_ik."""
    Din, Dout = (
        (32, 16) if FULL or mode == "auto" else (6, 4)
    )  # as the tutorial has it, or quicker to compile
    weight, bias, x = (
        np.random.randn(*shape).astype(np.float32) for shape in ((Dout, Din), (Dout,), (Din,))
    )

    def forecast(weight, bias, x):
        return ops.dense(x, weight, bias).tanh()

    h = hessian(forecast, grad_position=2, mode=mode)(Tensor(weight), Tensor(bias), Tensor(x))
    assert h.shape == (Dout, Din, Din)
    t = np.tanh(weight.astype(np.float64) @ x + bias)
    w = weight.astype(np.float64)
    expected = np.einsum("i,ij,ik->ijk", -2 * t * (1 - t**2), w, w)
    np.testing.assert_allclose(h.asnumpy(), expected, atol=1e-3 * np.abs(expected).max())


def coupled(x, y):
    return (x**2 * y).sum()


@pytest.mark.parametrize("mode", MODES)
def test_positions_give_nested_blocks(mode):
    x, y = np.random.randn(2, 3).astype(np.float32)
    h = hessian(coupled, (0, 1), mode=mode)(Tensor(x), Tensor(y))
    for got, want in zip(
        (h[0][0], h[0][1], h[1][0], h[1][1]), (2 * y, 2 * x, 2 * x, 0 * x), strict=True
    ):
        np.testing.assert_allclose(got.asnumpy(), np.diag(want), rtol=1e-6)
    alone = hessian(coupled, (1,), mode=mode)(Tensor(x), Tensor(y))
    assert isinstance(alone, tuple) and isinstance(alone[0], tuple)
    assert hessian(coupled, 1, mode=mode)(Tensor(x), Tensor(y)).shape == (3, 3)


def outputs(x):
    return (x**3).sum(), x**2


def with_aux(x):
    return (x**3).sum(), x + 1


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_several_outputs_and_aux(chunk_size):
    x = np.array([1.0, 2.0, 3.0])
    first, second = hessian(outputs, chunk_size=chunk_size)(Tensor(x))
    np.testing.assert_allclose(first.asnumpy(), np.diag(6 * x))
    expected = np.zeros((3, 3, 3))
    expected[range(3), range(3), range(3)] = 2
    np.testing.assert_allclose(second.asnumpy(), expected)
    h, aux = hessian(with_aux, has_aux=True, chunk_size=chunk_size)(Tensor(x))
    np.testing.assert_allclose(h.asnumpy(), np.diag(6 * x))
    np.testing.assert_allclose(aux.asnumpy(), x + 1)
    j1, j2 = jacobian(outputs, chunk_size=chunk_size)(Tensor(x))
    np.testing.assert_allclose(j1.asnumpy(), 3 * x**2)
    np.testing.assert_allclose(j2.asnumpy(), np.diag(2 * x))
    j, aux = jacobian(with_aux, has_aux=True, chunk_size=chunk_size)(Tensor(x))
    np.testing.assert_allclose(j.asnumpy(), 3 * x**2)
    np.testing.assert_allclose(aux.asnumpy(), x + 1)
    (value, gradient, h), aux = value_grad_and_hessian(
        with_aux, has_aux=True, chunk_size=chunk_size
    )(Tensor(x))
    assert float(value) == 36.0
    np.testing.assert_allclose(gradient.asnumpy(), 3 * x**2)
    np.testing.assert_allclose(h.asnumpy(), np.diag(6 * x))


@pytest.mark.parametrize("mode", ["auto", "rev", "fwd"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_jacobians_in_every_dtype(mode, dtype):
    x, y = (np.random.rand(*shape).astype(dtype) for shape in ((2, 3), (3,)))

    def f(x, y):
        return ops.matmul(x, y.reshape(3, 1)).reshape(-1) ** 2

    jx, jy = jacobian(f, (0, 1), mode=mode)(Tensor(x), Tensor(y))
    a, b = x.astype(np.float64), y.astype(np.float64)
    tolerance = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(
        jx.asnumpy(), np.einsum("i,ij,k->ijk", 2 * a @ b, np.eye(2), b), atol=tolerance
    )
    np.testing.assert_allclose(jy.asnumpy(), 2 * (a @ b)[:, None] * a, atol=tolerance)
    assert str(jx.dtype).lower() == dtype


def test_float16_hessian():
    h = hessian(lambda x: (x**3).sum())(Tensor([1.0, 2.0], ms.float16))
    assert h.dtype == ms.float16
    np.testing.assert_allclose(h.asnumpy(), np.diag([6.0, 12.0]), rtol=1e-2)


class Bilinear(nn.Cell):
    """f = sum_n (a . (W x_n))^2: everything is a polynomial of low degree."""

    def __init__(self, w, a):
        super().__init__()
        self.w, self.a = Parameter(Tensor(w), name="w"), Parameter(Tensor(a), name="a")

    def construct(self, x):
        return (ops.matmul(ops.matmul(x, self.w.swapaxes(0, 1)), self.a.reshape(-1, 1)) ** 2).sum()


@pytest.mark.fresh_process
def test_weight_hessians_and_jacobians():
    w, a, x = np.random.randn(2, 3), np.random.randn(2), np.random.randn(4, 3)
    net = Bilinear(w, a)
    gram = x.T @ x
    ww = 2 * np.einsum("i,k,jl->ijkl", a, a, gram)
    aa = 2 * w @ gram @ w.T
    wa = 2 * (
        np.einsum("i,kl,lj->ijk", a, w, gram) + np.einsum("ik,j->ijk", np.eye(2), gram @ w.T @ a)
    )
    for chunk_size in (None, 3):
        h = hessian(net, weights=net.trainable_params(), chunk_size=chunk_size)(Tensor(x))
        np.testing.assert_allclose(h[0][0].asnumpy(), ww, atol=1e-10)
        np.testing.assert_allclose(h[0][1].asnumpy(), wa, atol=1e-10)
        np.testing.assert_allclose(h[1][0].asnumpy(), np.moveaxis(wa, -1, 0), atol=1e-10)
        np.testing.assert_allclose(h[1][1].asnumpy(), aa, atol=1e-10)
    one = hessian(net, weights=net.a)(Tensor(x))
    np.testing.assert_allclose(one.asnumpy(), aa, atol=1e-10)
    both = hessian(net, 0, weights=[net.a])(Tensor(x))
    residual = np.outer(x @ w.T @ a, np.ones(3))
    xx = 2 * np.einsum("nm,j,k->njmk", np.eye(4), a @ w, a @ w)
    np.testing.assert_allclose(both[0][0].asnumpy(), xx, atol=1e-10)
    np.testing.assert_allclose(both[1][1].asnumpy(), aa, atol=1e-10)
    xa = 2 * (np.einsum("ni,j->nji", x @ w.T, a @ w) + np.einsum("nj,ij->nji", residual, w))
    np.testing.assert_allclose(both[0][1].asnumpy(), xa, atol=1e-10)
    diagonal = hessian_diag(net, weights=net.trainable_params())(Tensor(x))
    np.testing.assert_allclose(diagonal[0].asnumpy(), np.einsum("ijij->ij", ww), atol=1e-10)
    np.testing.assert_allclose(diagonal[1].asnumpy(), np.diag(aa), atol=1e-10)
    j = jacobian(net, weights=net.trainable_params())(Tensor(x))
    np.testing.assert_allclose(j[1].asnumpy(), 2 * w @ gram @ w.T @ a, atol=1e-10)


def field(x):
    return ops.sin(x[0]) * x[1] ** 2


def field_hessian(points):
    a, b = points.T
    h = np.empty((len(points), 2, 2))
    h[:, 0, 0], h[:, 1, 1] = -np.sin(a) * b**2, 2 * np.sin(a)
    h[:, 0, 1] = h[:, 1, 0] = 2 * np.cos(a) * b
    return h


@pytest.mark.parametrize(
    ("chunk_size", "axis"),
    some(
        [(None, 0), (3, 1), (100, 0), (None, 1), (3, 0), (100, 1)],
        lambda case: case in ((None, 0), (3, 1)),
    ),
)
def test_per_sample_hessians_laplacians_and_diagonals(chunk_size, axis):
    points = np.random.randn(7, 2)
    x = Tensor(points if axis == 0 else points.T.copy())
    expected = field_hessian(points)
    got = batched_hessian(field, in_axes=axis, chunk_size=chunk_size)(x)
    np.testing.assert_allclose(got.asnumpy(), expected, atol=1e-12)
    got = laplacian(field, in_axes=axis, chunk_size=chunk_size)(x)
    np.testing.assert_allclose(got.asnumpy(), np.trace(expected, axis1=1, axis2=2), atol=1e-12)
    got = hessian_diag(field, in_axes=axis, chunk_size=chunk_size)(x)
    np.testing.assert_allclose(got.asnumpy(), np.einsum("nii->ni", expected), atol=1e-12)


def test_batches_on_some_arguments():
    def f(x, centre):
        return ((x - centre) ** 4).sum()

    points, centre = np.random.randn(5, 2), np.random.randn(2)
    got = batched_hessian(f, in_axes=(0, None))(Tensor(points), Tensor(centre))
    expected = np.einsum("ni,ij->nij", 12 * (points - centre) ** 2, np.eye(2))
    np.testing.assert_allclose(got.asnumpy(), expected, atol=1e-10)
    blocks = batched_hessian(f, (0, 1), in_axes=(0, None))(Tensor(points), Tensor(centre))
    np.testing.assert_allclose(blocks[0][1].asnumpy(), -expected, atol=1e-10)


@pytest.mark.full_run
def test_laplacian_of_vector_functions_and_of_one_point():
    def f(x):
        return ops.stack(((x**2).sum(), x[0] * x[1], x[0] ** 3))

    x = np.array([2.0, 3.0])
    np.testing.assert_allclose(laplacian(f)(Tensor(x)).asnumpy(), [4, 0, 12])
    np.testing.assert_allclose(laplacian(f, chunk_size=1)(Tensor(x)).asnumpy(), [4, 0, 12])
    got = laplacian(f, in_axes=0)(Tensor(np.stack([x, 2 * x])))
    np.testing.assert_allclose(got.asnumpy(), [[4, 0, 12], [4, 0, 24]])


def test_matrix_inputs_and_scalar_inputs():
    x = np.random.randn(2, 3)
    h = hessian(lambda x: (ops.matmul(x, x.swapaxes(0, 1)) ** 2).sum() / 4)(Tensor(x))
    assert h.shape == (2, 3, 2, 3)
    step = 1e-5

    def gradient(x):
        return x @ x.T @ x

    for i, j in np.ndindex(2, 3):
        e = np.zeros((2, 3))
        e[i, j] = step
        np.testing.assert_allclose(
            h.asnumpy()[i, j], (gradient(x + e) - gradient(x - e)) / (2 * step), atol=1e-8
        )
    assert float(hessian(lambda x: x**4)(Tensor(2.0))) == 48.0


def test_a_large_hessian_in_chunks():
    n = 300
    a = np.random.randn(n, n)
    matrix, x = Tensor(a), Tensor(np.random.randn(n))
    h = hessian(lambda x: (x * ops.matmul(matrix, x)).sum(), chunk_size=64)(x)
    np.testing.assert_allclose(h.asnumpy(), a + a.T, atol=1e-10)


@pytest.mark.full_run
@pytest.mark.filterwarnings("error::mindspore_hessian.FallbackWarning")
@pytest.mark.parametrize("several", [False, True], ids=["number", "vector"])
def test_statistics_that_change_do_not_keep_a_matrix_from_being_batched(several):
    """y = scale (x - mean) / sqrt(variance + eps) of the batch; s = sum(y^3), for each channel or
    for all.
    """
    scale, eps = np.array([0.5, 2.0], np.float32), 1e-5
    net = nn.BatchNorm1d(2, eps=eps, gamma_init=Tensor(scale)).set_train()
    before = net.moving_mean.asnumpy().copy()

    def cubes(x):
        cubed = net(x) ** 3
        return cubed.sum(0) if several else cubed.sum()

    def truth(x):
        c = x - x.mean(0)
        return (scale * c / np.sqrt((c * c).mean(0) + eps)) ** 3

    def slope(function, x, at, step=1e-4):
        moved = np.zeros_like(x)
        moved[at] = step
        return (function(x + moved) - function(x - moved)) / (2 * step)

    x = np.random.randn(4, 2).astype(np.float32)
    exact = x.astype(np.float64)
    places = list(np.ndindex(x.shape))

    def summed(x):
        return truth(x).sum(0) if several else truth(x).sum()

    first = np.stack([slope(summed, exact, at) for at in places], -1)
    second = np.stack(
        [
            np.stack([slope(lambda z, a=a: slope(summed, z, a), exact, b) for b in places], -1)
            for a in places
        ],
        -2,
    )
    matrix = hessian(cubes)(Tensor(x)).asnumpy().reshape(second.shape)
    np.testing.assert_allclose(matrix, second, atol=2e-3 * np.abs(second).max())
    pieces = hessian(cubes, chunk_size=3)(Tensor(x)).asnumpy().reshape(second.shape)
    np.testing.assert_allclose(pieces, second, atol=2e-3 * np.abs(second).max())
    if several:
        found = jacobian(cubes)(Tensor(x)).asnumpy().reshape(first.shape)
        np.testing.assert_allclose(found, first, atol=1e-3 * np.abs(first).max())
    else:
        diagonal = hessian_diag(cubes)(Tensor(x)).asnumpy().reshape(-1)
        np.testing.assert_allclose(diagonal, np.diagonal(second), atol=2e-3 * np.abs(second).max())
    np.testing.assert_array_equal(net.moving_mean.asnumpy(), before)


def with_sum(x):
    return (x**3).sum(), x.sum(), Tensor([1.0, 2.0])


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("transform", [hessian_diag, laplacian, batched_hessian])
def test_aux_is_that_of_each_sample(transform, chunk_size):
    points = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    _, (total, constant) = transform(with_sum, has_aux=True, in_axes=0, chunk_size=chunk_size)(
        Tensor(points)
    )
    np.testing.assert_allclose(total.asnumpy(), points.sum(1))
    np.testing.assert_allclose(constant.asnumpy(), np.tile([1.0, 2.0], (3, 1)))
