"""Products: the tutorial as written, structures, weights against golden values, Gauss-Newton."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from networks import FLOAT64, load

from mindspore_hessian import (
    MissingRuleError,
    curvature,
    ggnvp,
    grad_and_hvp,
    hvp,
    hvp_revfwd,
    hvp_revrev,
)


def tensor(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype))


def sines(x):
    return x.sin().sum()


def coupled(x, y):
    return (x**2 * y**3).sum()


def with_aux(x):
    return (x**3).sum(), x * 2, x + 1


def test_the_tutorials_two_products():
    x = np.random.randn(128).astype(np.float32)
    v = np.random.randn(128).astype(np.float32)
    expected = -np.sin(x.astype(np.float64)) * v
    forward = hvp_revfwd(sines, Tensor(x), Tensor(v))
    reverse = hvp_revrev(sines, (Tensor(x),), (Tensor(v),))
    assert isinstance(forward, Tensor)
    assert isinstance(reverse, tuple)
    np.testing.assert_allclose(forward.asnumpy(), expected, atol=1e-6)
    np.testing.assert_allclose(reverse[0].asnumpy(), expected, atol=1e-6)


def coupled_products(x, y, v, w):
    return 2 * y**3 * v + 6 * x * y**2 * w, 6 * x * y**2 * v + 6 * x**2 * y * w


@pytest.mark.parametrize("mode", ["auto", "revrev", "fwdrev"])
def test_structures_follow_the_vectors(mode):
    x, y, v, w = np.random.randn(4, 5)
    xs, vs = (Tensor(x), Tensor(y)), (Tensor(v), Tensor(w))
    both = coupled_products(x, y, v, w)
    got = hvp(coupled, xs, vs, mode=mode)
    assert isinstance(got, tuple)
    for a, e in zip(got, both, strict=True):
        np.testing.assert_allclose(a.asnumpy(), e)
    as_list = hvp(coupled, list(xs), list(vs), mode=mode)
    assert isinstance(as_list, list)
    second = hvp(coupled, xs, Tensor(w), grad_position=1, mode=mode)
    np.testing.assert_allclose(second.asnumpy(), 6 * x**2 * y * w)
    last = hvp(coupled, xs, (Tensor(w),), grad_position=(-1,), mode=mode)
    np.testing.assert_allclose(last[0].asnumpy(), 6 * x**2 * y * w)


def test_auxiliary_outputs_are_returned_and_not_differentiated():
    x, v = tensor(1, 2, 3), tensor(1, 0, 2)
    product, (twice, more) = hvp(with_aux, x, v, has_aux=True)
    np.testing.assert_allclose(product.asnumpy(), [6, 0, 36])
    np.testing.assert_allclose(twice.asnumpy(), [2, 4, 6])
    np.testing.assert_allclose(more.asnumpy(), [2, 3, 4])
    (gradient, product), aux = grad_and_hvp(with_aux, x, v, has_aux=True)
    np.testing.assert_allclose(gradient.asnumpy(), [3, 12, 27])
    np.testing.assert_allclose(product.asnumpy(), [6, 0, 36])
    assert len(aux) == 2


def test_integer_and_constant_arguments_are_left_alone():
    def f(x, index, power, scale=1.0):
        return (ops.gather(x, index, 0) ** power * scale).sum()

    x, v = tensor(1, 2, 3), tensor(1, 1, 1)
    got = hvp(f, (x, Tensor([0, 2, 2], ms.int32), 3, 2.0), v, grad_position=0)
    np.testing.assert_allclose(got.asnumpy(), [12, 0, 72])


def test_scalar_and_one_element_outputs():
    assert float(hvp(lambda x: x**3, Tensor(2.0), Tensor(1.0))) == 12.0
    got = hvp(lambda x: (x**3).sum().reshape(1), tensor(1, 2), tensor(1, 1))
    np.testing.assert_allclose(got.asnumpy(), [6, 12])


def test_mixed_dtypes():
    x, y = tensor(1, 2, dtype=np.float32), tensor(3, 4)
    v, w = tensor(1, 1, dtype=np.float32), tensor(1, 2)

    def f(x, y):
        return (x**2).sum() * (y**2).sum()

    a, b = hvp(f, (x, y), (v, w))
    assert (a.dtype, b.dtype) == (ms.float32, ms.float64)
    np.testing.assert_allclose(a.asnumpy(), 2 * 25 * np.ones(2) + 4 * np.array([1, 2]) * 11)
    np.testing.assert_allclose(b.asnumpy(), 2 * 5 * np.array([1, 2]) + 4 * np.array([3, 4]) * 3)


def test_float16():
    x, v = Tensor([1.0, 2.0], ms.float16), Tensor([1.0, 1.0], ms.float16)
    got = hvp(lambda x: (x * x * x).sum(), x, v)
    assert got.dtype == ms.float16
    np.testing.assert_allclose(got.asnumpy(), [6, 12], rtol=1e-2)


def test_bfloat16_is_right_where_the_backend_has_the_kernels_and_refused_elsewhere():
    """The CPU lacks Exp, AddN and others in bfloat16."""
    x = Tensor([1.0, 2.0], ms.bfloat16)
    try:
        got = hvp(lambda x: (x * x * x).sum(), x, x)
    except MissingRuleError as err:
        assert "no kernel for this device and dtype" in str(err)
    else:
        np.testing.assert_allclose(got.astype(ms.float32).asnumpy(), [6, 24], rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, "float32") for n in ("mlp", "conv", "layernorm", "attention", "batchnorm")]
    + [(n, "float64") for n in FLOAT64],
)
def test_networks_against_torch_and_jax(name, dtype):
    net, loss, (x, target), golden = load(name, dtype)
    tolerance = 2e-4 if dtype == "float32" else 1e-12

    def close(got, expected):
        scale = max(np.abs(e).max() for e in expected)
        for a, e in zip(got, expected, strict=True):
            assert np.abs(a.asnumpy() - e).max() <= tolerance * scale

    def tensors(arrays):
        return [Tensor(np.asarray(a, dtype)) for a in arrays]

    weights = net.trainable_params()
    close(
        [hvp(loss, (x, target), Tensor(golden.vector_x.astype(dtype)), grad_position=0)],
        [golden.hvp_x],
    )
    gradient, product = grad_and_hvp(loss, (x, target), tensors(golden.vector_w), weights=weights)
    close(product, golden.hvp_w)
    close(gradient, golden.gradient_w)
    flat = [np.asarray(v, np.float64) for v in golden.vector_w]
    quotient = sum((v * h).sum() for v, h in zip(flat, golden.hvp_w, strict=True)) / sum(
        (v * v).sum() for v in flat
    )
    got = float(curvature(loss, (x, target), tensors(golden.vector_w), weights=weights))
    scale = max(np.abs(h).max() for h in golden.hvp_w)
    assert abs(got - quotient) <= 10 * tolerance * scale


class Tied(nn.Cell):
    """One matrix used twice: f = sum(((x W) W)^2)."""

    def __init__(self, w):
        super().__init__()
        self.first = Parameter(Tensor(w), name="w")
        self.second = self.first

    def construct(self, x):
        return (ops.matmul(ops.matmul(x, self.first), self.second) ** 2).sum()


def test_a_tied_weight_counts_once():
    w, v, x = np.random.randn(3, 2, 2)
    net = Tied(w)
    assert len(net.trainable_params()) == 1

    def gradient(w):  # of sum(Y^2), Y = x w w: 2 (x^T Y w^T + (x w)^T Y)
        y = x @ w @ w
        return 2 * (x.T @ y @ w.T + (x @ w).T @ y)

    step = 1e-5
    expected = (gradient(w + step * v) - gradient(w - step * v)) / (2 * step)
    got = hvp(net, Tensor(x), [Tensor(v)], weights=net.trainable_params())
    np.testing.assert_allclose(got[0].asnumpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("container", [list, tuple, ms.ParameterTuple])
def test_weights_in_any_container_and_together_with_inputs(container):
    w = Parameter(tensor(1, 2), name="weight")

    def f(x):
        return (x**2 * w**2).sum()

    x, v, u = tensor(3, 4), tensor(1, 1), tensor(1, 2)
    got = hvp(f, x, (v,), weights=container([w]))
    np.testing.assert_allclose(got[0].asnumpy(), [18, 32])
    gx, gw = hvp(f, x, (v, (u,)), grad_position=0, weights=container([w]))
    np.testing.assert_allclose(gx.asnumpy(), 2 * np.array([1, 4]) + 4 * np.array([3, 8]) * [1, 2])
    np.testing.assert_allclose(gw[0].asnumpy(), [18 * 1 + 12, 32 * 2 + 32])
    one = hvp(f, x, v, weights=w)
    assert isinstance(one, Tensor)
    closure = hvp(lambda: f(x), (), v, weights=w)
    np.testing.assert_allclose(closure.asnumpy(), [18, 32])


def test_gauss_newton_of_softmax_regression_is_its_hessian():
    """The logits are linear in the weights, so G = H = sum_n (diag p - p p^T) x x^T."""
    data, vector = np.random.randn(5, 3), np.random.randn(4, 3)
    labels = np.array([0, 1, 2, 3, 1])
    net = nn.Dense(3, 4, has_bias=False, dtype=ms.float64)
    targets = Tensor(np.eye(4)[labels])

    def loss(logits):
        return (ops.logsumexp(logits, -1) - (logits * targets).sum(-1)).sum()

    logits = data @ net.weight.asnumpy().T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    jv = data @ vector.T
    expected = (p * jv - p * (p * jv).sum(1, keepdims=True)).T @ data
    got = ggnvp(net, loss, Tensor(data), [Tensor(vector)], weights=net.trainable_params())
    np.testing.assert_allclose(got[0].asnumpy(), expected, rtol=1e-9, atol=1e-12)


def test_gauss_newton_drops_the_curvature_of_the_function():
    """f = x^2, loss = sum(y^2)/2: J = 2x, H_loss = 1, so G = 4 x^2 while H = 6 x^2."""
    x, v = tensor(1, 2), tensor(1, 1)
    got = ggnvp(lambda x: x**2, lambda y: (y**2).sum() / 2, x, v)
    np.testing.assert_allclose(got.asnumpy(), [4, 16])
    np.testing.assert_allclose(hvp(lambda x: (x**4).sum() / 2, x, v).asnumpy(), [6, 24])


def test_curvature_of_a_quadratic_form_is_the_rayleigh_quotient():
    a = np.array([[2.0, 1.0], [1.0, -3.0]])
    matrix = Tensor(a)

    def f(x):
        return (x * ops.matmul(matrix, x)).sum() / 2

    for v in ([1.0, 0.0], [1e-20, 2e-20], [3.0, -4.0]):
        v = np.array(v)
        np.testing.assert_allclose(
            float(curvature(f, tensor(5, 6), Tensor(v))), v @ a @ v / (v @ v), rtol=1e-12
        )


def quartic_loss(scale, output, target=None):
    return scale * ((output - target) ** 4).sum()


@pytest.mark.parametrize("target", [1.0, 0.0])
def test_a_partial_loss_keeps_what_it_holds(target):
    held = functools.partial(quartic_loss, 2.0, target=Tensor([target, target]))
    found = ggnvp(lambda x: x**2, held, Tensor([1.0, 2.0]), Tensor([1.0, 1.0])).asnumpy()
    np.testing.assert_allclose(
        found, 24 * (np.array([1.0, 4.0]) - target) ** 2 * [4.0, 16.0], rtol=1e-5
    )
