"""Inside the user's own graphs, in both modes, and differentiated again."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, jit, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import (
    batched_hessian,
    curvature,
    ggnvp,
    grad_and_hvp,
    hessian,
    hessian_diag,
    hvp,
    hvp_revfwd,
    jacobian,
    laplacian,
    value_grad_and_hessian,
)
from mindspore_hessian._errors import debris_removed
from mindspore_hessian.core.program import Point, Program
from mindspore_hessian.core.transform import Evaluation, evaluates
from mindspore_hessian.transforms import compose

X, V = Tensor([1.0, 2.0], ms.float64), Tensor([1.0, 3.0], ms.float64)
POINTS = Tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 1.0]], ms.float64)


def cube(x):
    return (x**3).sum()


def coupled(x, y):
    return (x**2 * y**2).sum()


def with_aux(x):
    return (x**3).sum(), x + 1


OUTSIDE = {
    "hessian": hessian(cube),
    "fwdrev": hessian(cube, mode="fwdrev"),
    "positions": hessian(coupled, (0, 1)),
    "aux": hessian(with_aux, has_aux=True),
    "all": value_grad_and_hessian(cube),
    "jacobian": jacobian(lambda x: x**2),
    "diagonal": hessian_diag(cube),
    "laplacian": laplacian(cube, in_axes=0),
    "batched": batched_hessian(cube),
}


def square(x):
    return x**2


def half_norm(y):
    return (y**2).sum() / 2


def everything(x, v, points):
    """Products, and transforms made inside the graph."""
    return (
        hvp(cube, x, v),
        hvp(coupled, (x, v), (v, x))[1],
        grad_and_hvp(cube, x, v)[0],
        hvp(coupled, (x, v), x, grad_position=1),
        hvp_revfwd(cube, x, v),
        hvp(with_aux, x, v, has_aux=True)[0],
        hessian(cube)(x),
        laplacian(cube, in_axes=0)(points),
        jacobian(cube)(x),
        curvature(cube, x, v),
        ggnvp(square, half_norm, x, v),
    )


def expected_everything():
    x, v, p = X.asnumpy(), V.asnumpy(), POINTS.asnumpy()
    return (
        6 * x * v,
        4 * x * v * v + 2 * x * x * x,
        3 * x**2,
        2 * x * x * x,
        6 * x * v,
        6 * x * v,
        np.diag(6 * x),
        6 * p.sum(1),
        3 * x**2,
        (6 * x * v * v).sum() / (v * v).sum(),
        4 * x**2 * v,
    )


class Everything(nn.Cell):
    def construct(self, x, v, points):
        return everything(x, v, points)


def check(got):
    for number, (a, e) in enumerate(zip(got, expected_everything(), strict=True)):
        np.testing.assert_allclose(a.asnumpy(), e, atol=1e-12, err_msg=str(number))


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def mode(request):
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=ms.PYNATIVE_MODE)


def test_in_a_jit_function(mode):
    check(jit(everything)(X, V, POINTS))


def test_in_a_cell(mode):
    check(Everything()(X, V, POINTS))


hess, diag, lap, per_sample, jac, full = (
    OUTSIDE[k] for k in ("hessian", "diagonal", "laplacian", "batched", "jacobian", "all")
)
blocks, aux, explicit = OUTSIDE["positions"], OUTSIDE["aux"], OUTSIDE["fwdrev"]


@jit
def made_outside(x, v, points):
    return (
        hess(x),
        diag(x),
        lap(points),
        per_sample(points),
        jac(x),
        full(x),
        blocks(x, v),
        aux(x),
        explicit(x),
    )


def test_transforms_made_outside():
    h, d, laplacians, batch, j, (value, gradient, h2), b, (h3, more), h4 = made_outside(
        X, V, POINTS
    )
    x, v, p = X.asnumpy(), V.asnumpy(), POINTS.asnumpy()
    for matrix in (h, h2, h3, h4):
        np.testing.assert_allclose(matrix.asnumpy(), np.diag(6 * x))
    np.testing.assert_allclose(d.asnumpy(), 6 * x)
    np.testing.assert_allclose(laplacians.asnumpy(), 6 * p.sum(1))
    np.testing.assert_allclose(batch.asnumpy(), np.einsum("ni,ij->nij", 6 * p, np.eye(2)))
    np.testing.assert_allclose(j.asnumpy(), np.diag(2 * x))
    np.testing.assert_allclose(float(value), 9.0)
    np.testing.assert_allclose(gradient.asnumpy(), 3 * x**2)
    np.testing.assert_allclose(b[0][1].asnumpy(), np.diag(4 * x * v))
    np.testing.assert_allclose(more.asnumpy(), x + 1)


W = Parameter(Tensor([1.0, 2.0], ms.float64), name="w")


def weighted(x):
    return (x * W**3).sum()


@jit
def weights_inside(x, v):
    return hvp(weighted, x, v, weights=W), grad_and_hvp(weighted, (x,), (v,), weights=(W,))


def test_weights_in_a_jit_function():
    product, (gradient, again) = weights_inside(X, V)
    w = W.asnumpy()
    expected = 6 * X.asnumpy() * w * V.asnumpy()
    np.testing.assert_allclose(product.asnumpy(), expected)
    np.testing.assert_allclose(again[0].asnumpy(), expected)
    np.testing.assert_allclose(gradient[0].asnumpy(), 3 * X.asnumpy() * w**2)


def product_sum(x):
    return hvp(cube, x, V).sum()  # 6 x . v


def quartic(x):
    return (x**4).sum()


def quartic_sum(x):
    return hessian(quartic)(x).sum()  # 12 sum x^2


def local_function(x, v):
    def inside(x):
        return (x**3).sum()

    return hvp(inside, x, v)


def test_a_function_made_inside_the_graph_is_refused():
    with debris_removed(), pytest.raises(TypeError, match="defined outside of it"):
        jit(local_function)(X, V)
    np.testing.assert_allclose(
        local_function(X, V).asnumpy(), 6 * X.asnumpy() * V.asnumpy()
    )  # no graph of the user's


def test_third_derivatives(mode):
    np.testing.assert_allclose(ms.grad(product_sum)(X).asnumpy(), 6 * V.asnumpy())
    np.testing.assert_allclose(jit(ms.grad(product_sum))(X).asnumpy(), 6 * V.asnumpy())
    np.testing.assert_allclose(ms.grad(quartic_sum)(X).asnumpy(), 24 * X.asnumpy())
    np.testing.assert_allclose(jacobian(hess)(X).asnumpy()[0, 0, 0], 6.0)
    np.testing.assert_allclose(hvp(quartic_sum, X, V).asnumpy(), 24 * V.asnumpy())  # fourth
    value, gradient = ms.value_and_grad(product_sum)(X)
    np.testing.assert_allclose(float(value), (6 * X.asnumpy() * V.asnumpy()).sum())
    np.testing.assert_allclose(gradient.asnumpy(), 6 * V.asnumpy())


class Field(nn.Cell):
    """u(x) = w . x^3 at one point; its Laplacian is 6 w . x."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([1.0, 2.0], ms.float64), name="w")

    def construct(self, x):
        return (self.w * x * x * x).sum()


def test_a_pinn_loss_is_trained_through_the_laplacian(mode):
    """d/dw mean_n (6 w . x_n)^2 = mean_n 72 (w . x_n) x_n, from the user's own value_and_grad."""
    net = Field()
    laplace = laplacian(net, in_axes=0)

    def loss(points):
        return (laplace(points) ** 2).mean()

    step = ms.value_and_grad(loss, None, net.trainable_params())
    p, w = POINTS.asnumpy(), net.w.asnumpy()
    for _ in range(2):
        value, (gradient,) = step(POINTS)
        np.testing.assert_allclose(float(value), ((6 * p @ w) ** 2).mean())
        np.testing.assert_allclose(gradient.asnumpy(), (72 * (p @ w)[:, None] * p).mean(0))
    second = hvp(loss, POINTS, [Tensor(w)], weights=net.trainable_params())
    np.testing.assert_allclose(second[0].asnumpy(), (72 * (p @ w)[:, None] * p).mean(0))


def test_user_functions_of_pynatives_wrong_shapes_are_right():
    """Nested gradients that PyNative gets wrong without a word."""
    x, v = np.random.randn(2, 3, 4)

    def f(x):
        return (x.sum(0) ** 3).sum() + ops.norm(x) ** 2

    got = hvp(f, Tensor(x), Tensor(v)).asnumpy()
    np.testing.assert_allclose(
        got, np.broadcast_to(6 * x.sum(0) * v.sum(0), (3, 4)) + 2 * v, rtol=1e-9
    )


def _slope(function, space):
    return compose.gradient(compose.scalar(function.value), space.positions, space.parameters)


@evaluates("inputs")
def slope(fn, inputs, grad_position=None, has_aux=False, *, weights=None):
    """The gradient, as docs/contributing.md has it."""
    point = Point.of_inputs(fn, inputs, grad_position, weights, has_aux)
    return Evaluation(point, Program("slope", _slope), pack=point.space.pack)


def weighted_aux(x):
    return (x * W**3).sum(), x + W


def of_ones_own(x):
    return slope(cube, x), slope(weighted_aux, (x,), 0, True, weights=[W])


def test_a_transform_of_ones_own_is_written_once():
    x, w = X.asnumpy(), W.asnumpy()
    for found, ((by_x, (by_w,)), more) in (of_ones_own(X), jit(of_ones_own)(X)):
        np.testing.assert_allclose(found.asnumpy(), 3 * x**2)
        np.testing.assert_allclose(by_x.asnumpy(), w**3)
        np.testing.assert_allclose(by_w.asnumpy(), 3 * x * w**2)
        np.testing.assert_allclose(more.asnumpy(), x + w)


def test_a_function_that_returns_a_transform_has_its_name_in_messages():
    assert hessian(cube).__module__.startswith("mindspore_hessian")
    assert mh.hvp.__wrapped__ is not None
