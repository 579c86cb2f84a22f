"""jet and derivative: closed forms, JAX's values, gradients by weights, refusals."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore.ops import CumProd, ReduceProd
from mindspore.ops.operations.math_ops import CumulativeLogsumexp
from mindspore.scipy.linalg import eigh
from numpy.polynomial import Polynomial
from scipy.special import ivp, jvp, kvp, yvp

import mindspore_hessian as mh

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.RecompileWarning")
GOLDEN = np.load(Path(__file__).parent / "golden" / "jet.npz")
layer_norm = ops.LayerNorm(-1, -1, 1e-5)
DIAGONAL, UNIT, ONES = Tensor(np.diag([1.0, 2, 3])), Tensor(np.eye(2)), Tensor(np.ones((3, 1)))
SCALES, SHIFTS = Tensor(np.arange(1.0, 5)), Tensor(np.zeros(4))
SHAPE, HALF = Tensor(1.3, ms.float64), Tensor(0.5, ms.float64)
UNIT_ROW = Tensor(np.ones((1, 3)))
EXPONENT, FIRST = Tensor(np.full((2, 3), 2.5)), Tensor(1, ms.int32)
LABELS = Tensor([2, 0], ms.int32)
ONES_OF_FLOAT32 = Tensor(np.ones((2, 3)), ms.float32)
UP_TO_3 = Tensor([1.0, 2.0, 3.0], ms.float32)
layer_norm_weights = Tensor(np.ones(3)), Tensor(np.zeros(3))


# --- rules: JAX's nested derivatives --------------------------------------------------------------


def exponentials(x):
    return (
        ops.exp(x),
        ops.expm1(x),
        ops.log(x),
        ops.log1p(x),
        ops.tanh(x),
        ops.sigmoid(x),
        ops.sinh(x),
        ops.cosh(x),
        ops.pow(1.5, x),
    )


def trigonometry(x):
    return (
        ops.sin(x),
        ops.cos(x),
        ops.tan(x),
        ops.asin(x),
        ops.acos(x),
        ops.atan(x),
        ops.asinh(x),
        ops.acosh(x + Tensor(1.2, ms.float64)),
        ops.atanh(x),
    )


def powers(x):
    return (
        ops.sqrt(x),
        ops.rsqrt(x),
        ops.reciprocal(x),
        ops.square(x),
        (x - 0.5) ** 3,
        x**2.5,
        x**-2.0,
        (x - 0.5) ** 9,
        ops.norm(x, dim=-1),
        ops.abs(x - 0.5) * x,
    )


def activations(x):
    y = x - 0.5
    return (
        ops.erf(x),
        ops.erfc(x),
        ops.gelu(y),
        ops.gelu(y, approximate="tanh"),
        ops.silu(y),
        ops.softplus(y),
        ops.mish(y),
        ops.elu(y),
        ops.selu(y),
        ops.softsign(y),
        ops.hardswish(y),
        ops.relu(y) * x,
    )


def compositions(x):
    return (
        ops.softmax(x, 0),
        ops.log_softmax(x, -1),
        ops.logsumexp(x, -1),
        layer_norm(x, *layer_norm_weights)[0],
        ops.concat((x.T, x.T**2), -1)[:, 1:].sum(0) * x[0, 0],
        ops.amax(x, -1) * ops.amin(x, 0).sum(),
    )


def matrices(x):
    matrix = ops.matmul(x.T**2, x) + DIAGONAL
    factor = ops.tril(matrix)
    return (
        ops.inverse(matrix),
        ops.det(matrix),
        ops.slogdet(matrix)[1],
        ops.matrix_power(matrix, 3),
        ops.matrix_power(matrix, -2),
        ops.matrix_solve(matrix, x.T),
        ops.matrix_solve(matrix, ONES),
        ops.cholesky(ops.matmul(x, x.T) + UNIT),
        ops.cholesky_inverse(factor),
        ops.cholesky_solve(x.T, factor),
    )


def decompositions(x):
    matrix = ops.matmul(x.T**2, x) + DIAGONAL
    eigenvalues, eigenvectors = eigh(matrix + matrix.T)
    sizes, left, right = ops.svd(x)
    q, r = ops.qr(x.T)
    return (
        eigenvalues,
        eigenvectors**2,
        sizes,
        ops.matmul(left, right.T),
        q**2,
        r**2,
        ops.qr(ops.flip(x, (1,)))[1] ** 2,
    )


def special_functions(x):
    wide = ops.concat((x, x**3), -1).reshape(1, 4, 3)
    return (
        ops.erfinv(x),
        ops.lgamma(x),
        ops.digamma(x),
        ops.group_norm(wide, 2, SCALES, SHIFTS, 0.01),
        ops.zeta(EXPONENT, x),
        ops.polygamma(FIRST, x),
    )


def along_axes(x):
    wide = ops.concat((x, 1 + x[:, 1:]), 1)
    matrix = ops.matmul(x.T**2, x) + DIAGONAL
    return (
        ops.prod(wide, 1),
        mint.prod(x),
        ReduceProd(keep_dims=True)(wide, (0, 1)),
        ops.cumprod(wide, 1),
        CumProd(exclusive=True)(x, 1),
        CumProd(reverse=True)(x, 1),
        CumulativeLogsumexp()(x, Tensor(1)),
        ops.trace(matrix),
        ops.pdist(x),
    )


def of_entries(x):
    return (
        ops.celu(x - 0.5, 0.75),
        ops.logit(x),
        ops.sinc(x - 0.25),
        ops.mvlgamma(x + 1, 3),
        ops.igamma(SHAPE, x),
        ops.igammac(SHAPE, x),
        ops.bessel_i0e(x),
        ops.bessel_i1e(x),
    )


def of_three(a, b):
    return (
        ops.addcmul(UNIT_ROW, a, b[0], HALF),
        ops.addcdiv(a[0], a, b, HALF),
        ops.xdivy(a[0], b),
        mint.div(a[0], b, rounding_mode=None),
        ops.cdist(a, b),
    )


def of_two(a, b):
    return (
        a * b[0],
        a[0] / b,
        2 / b + a / 3,
        ops.atan2(a, b),
        ops.hypot(a, b),
        ops.xlogy(a, b),
        ops.pow(a, b),
        ops.maximum(a, b[0]) * a,
        ops.square(a - b),
        ops.matmul(a, b.T),
        ops.where(a > b, a * b, b),
    )


def losses(a, b):
    return (
        ops.smooth_l1_loss(a, b, 0.2, "sum"),
        ops.kl_div(a, b, "batchmean"),
        ops.SigmoidCrossEntropyWithLogits()(a, b),
        ops.nll_loss(a * b, LABELS),
    )


def in_float32(a, b):
    """Kernels that take no other."""
    a, b = ops.cast(a, ms.float32), ops.cast(b, ms.float32)
    return (
        ops.binary_cross_entropy(a, b, ONES_OF_FLOAT32),
        ops.binary_cross_entropy_with_logits(a, b, ONES_OF_FLOAT32, UP_TO_3, "sum"),
        ops.SoftmaxCrossEntropyWithLogits()(a, b)[0],
        ops.SparseSoftmaxCrossEntropyWithLogits()(a * b, LABELS),
        ops.lerp(a, b, a * b),
        ops.prelu(a - 0.5, ops.sin(a[0])),
    )


NAMES = {
    exponentials: (
        "exp",
        "expm1",
        "log",
        "log1p",
        "tanh",
        "sigmoid",
        "sinh",
        "cosh",
        "exponential",
    ),
    trigonometry: ("sin", "cos", "tan", "asin", "acos", "atan", "asinh", "acosh", "atanh"),
    powers: (
        "sqrt",
        "rsqrt",
        "reciprocal",
        "square",
        "cube",
        "power",
        "negative power",
        "ninth",
        "norm",
        "abs",
    ),
    activations: (
        "erf",
        "erfc",
        "gelu",
        "gelu tanh",
        "silu",
        "softplus",
        "mish",
        "elu",
        "selu",
        "softsign",
        "hswish",
        "relu",
    ),
    compositions: ("softmax", "log softmax", "logsumexp", "layer norm", "shapes", "largest"),
    matrices: (
        "inverse",
        "determinant",
        "log determinant",
        "matrix power",
        "inverse power",
        "solve",
        "constant solve",
        "cholesky",
        "cholesky inverse",
        "cholesky solve",
    ),
    decompositions: (
        "eigenvalues",
        "eigenvectors",
        "singular values",
        "polar",
        "tall q",
        "tall r",
        "wide r",
    ),
    special_functions: ("erfinv", "lgamma", "digamma", "group norm", "zeta", "trigamma"),
    along_axes: (
        "product",
        "product of all",
        "kept product",
        "running product",
        "running product before",
        "running product from the end",
        "running logsumexp",
        "trace",
        "between rows",
    ),
    of_entries: ("celu", "logit", "sinc", "mvlgamma", "igamma", "igammac", "i0e", "i1e"),
    of_three: ("addcmul", "addcdiv", "xdivy", "div", "distances"),
    of_two: (
        "mul",
        "div",
        "constant div",
        "atan2",
        "hypot",
        "xlogy",
        "pow",
        "maximum",
        "squared difference",
        "matmul",
        "where",
    ),
    losses: ("smooth l1", "kl", "sigmoid cross entropy", "nll"),
    in_float32: (
        "cross entropy",
        "cross entropy of logits",
        "softmax cross entropy",
        "of classes",
        "lerp",
        "prelu",
    ),
}


OF_TWO = (of_two, of_three, losses, in_float32)
LIMITS = {
    "layer norm": 1e-9,  # MindSpore's epsilon is float32
    "group norm": 1e-8,  # here too
    "lgamma": 2e-6,  # the accuracy of MindSpore's digamma
    "mvlgamma": 2e-6,
    **dict.fromkeys(NAMES[in_float32], 2e-5),
}


def inputs(count):
    xs = tuple(Tensor(GOLDEN[f"x{number}"]) for number in range(count))
    return xs, tuple(tuple(Tensor(one) for one in GOLDEN[f"s{number}"]) for number in range(count))


@pytest.mark.parametrize("function", NAMES, ids=lambda f: f.__name__)
def test_rules_agree_with_nested_derivatives_of_jax(function):
    values, found = mh.jet(function, *inputs(2 if function in OF_TWO else 1))
    for name, value, series in zip(NAMES[function], values, found, strict=True):
        for k, one in enumerate(series, 1):
            expected = GOLDEN[name][k]
            limit = LIMITS.get(name, 1e-10) * np.abs(expected).max()
            np.testing.assert_allclose(
                one.asnumpy(), expected, rtol=0, atol=limit, err_msg=f"{name}, order {k}"
            )
        np.testing.assert_allclose(
            value.asnumpy(), GOLDEN[name][0], rtol=1e-5, err_msg=name
        )  # kernels' own


BESSEL = {"j": (ops.bessel_j0, ops.bessel_j1), "i": (ops.bessel_i0, ops.bessel_i1)}
BESSEL |= {"y": (ops.bessel_y0, ops.bessel_y1), "k": (ops.bessel_k0, ops.bessel_k1)}
SCALED = {"i": (ops.bessel_i0e, ops.bessel_i1e), "k": (ops.bessel_k0e, ops.bessel_k1e)}
SLOPES = {"j": jvp, "i": ivp, "y": yvp, "k": kvp}  # scipy's derivatives


@pytest.mark.parametrize("kind", BESSEL)
def test_bessel_functions(kind):
    """To order 8 (5 by default): near 0, where functions of the second kind have a pole, and further out; scaled
    ones by the rule of a product."""
    points, highest = np.array([0.4, 0.999, 1.001, 3.0, 12.0]), 8 if FULL else 5
    if kind in "ij":
        points = np.concatenate((-points, points, [0.0, 1e-9]))
    functions = BESSEL[kind] + SCALED.get(kind, ())
    if kind == "i":
        points = points[points != 0]  # scaled by exp(-|x|)
    plain = [[SLOPES[kind](order, points, k) for k in range(highest + 1)] for order in (0, 1)]
    sign = -np.sign(points) if kind == "i" else np.ones_like(points)
    scaled = [
        [
            np.exp(sign * points)
            * sum(math.comb(k, m) * sign ** (k - m) * own[m] for m in range(k + 1))
            for k in range(highest + 1)
        ]
        for own in plain
    ]
    expected = plain + scaled if kind in SCALED else plain
    x = Tensor(points)
    zeros = (ops.zeros_like(x),) * (highest - 1)
    _, found = mh.jet(lambda x: tuple(f(x) for f in functions), x, (ops.ones_like(x), *zeros))
    for series, own in zip(found, expected, strict=True):
        for k, one in enumerate(series, 1):
            np.testing.assert_allclose(one.asnumpy(), own[k], rtol=1e-9, atol=1e-10)


def test_sinc_at_zero():
    """sin(pi x) / (pi x) = 1 - (pi x)^2 / 6 + ..."""
    x, one = Tensor([0.0], ms.float64), Tensor([1.0], ms.float64)
    _, found = mh.jet(ops.sinc, x, (one,) + (0 * one,) * (9 if FULL else 5))
    for order, series in enumerate(found, 1):
        expected = 0 if order % 2 else (-1) ** (order // 2) * math.pi**order / (order + 1)
        np.testing.assert_allclose(series.asnumpy(), [expected], rtol=1e-13)


CAPTURED = Tensor(np.array([1.0, 2.0, 3.0, 2.5]), ms.float64)


@pytest.mark.filterwarnings("ignore::mindspore_hessian.NonFiniteWarning")  # 0^2.5 thrice
def to_captured(x):
    return x**CAPTURED


def cubed(x):
    return mh.derivative(to_captured, 3)(x)


def test_powers_by_a_tensor_at_zero():
    """A Tensor that is captured, or given, is not known as MindSpore compiles."""
    at = np.array([0.0, 0.0, 0.0, 0.0]), np.array([0.5, -1.0, -2.0, 2.0])
    expected = (
        ([1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 6, np.inf]),
        ([1, -2, 12, 2.5 * 2**1.5], [0, 2, -12, 3.75 * 2**0.5], [0, 0, 6, 1.875 * 2**-0.5]),
    )
    captured = mh.derivative(to_captured, 3), mh.derivative(to_captured, 2)
    for x, (first, second, third) in zip(at, expected, strict=True):
        x = Tensor(x, ms.float64)
        one, zero = ops.ones_like(x), ops.zeros_like(x)
        _, found = mh.jet(ops.pow, (x, CAPTURED), ((one, zero, zero), None))
        np.testing.assert_allclose(found[0].asnumpy(), first, rtol=1e-12)
        np.testing.assert_allclose(found[1].asnumpy(), second, rtol=1e-12)
        np.testing.assert_allclose(found[2].asnumpy(), third, rtol=1e-12)
        np.testing.assert_allclose(captured[0](x).asnumpy(), third, rtol=1e-12)
        np.testing.assert_allclose(captured[1](x).asnumpy(), second, rtol=1e-12)
        if FULL:  # a constant of a graph, as captured Tensors are before 2.10
            np.testing.assert_allclose(ms.jit(cubed)(x).asnumpy(), third, rtol=1e-12)


@pytest.mark.parametrize("power", [0, 1, 2, 3, 4.0])
def test_whole_powers_at_zero(power):
    """By products: x^n has no derivative of order n + 1, and no division by x."""
    n = int(power)
    x, one = Tensor([0.0, -2.0], ms.float64), Tensor([1.0, 1.0], ms.float64)
    _, found = mh.jet(lambda x: x**power, x, (one, 0 * one, 0 * one))
    for order, series in enumerate(found, 1):
        expected = math.perm(n, order) * np.array([0.0, -2.0]) ** max(n - order, 0)
        np.testing.assert_allclose(series.asnumpy(), expected, rtol=1e-14)


def test_lists_in_lists():
    """MindSpore hands them over as lists, not as tuples."""

    def fn(t):
        return ops.stack([ops.stack([t, t**2]), ops.stack([t**3, t])]).sum()

    t, one = Tensor(0.5, ms.float64), Tensor(1.0, ms.float64)
    expected = [2 + 2 * 0.5 + 3 * 0.25, 2 + 6 * 0.5, 6.0]

    def orders(t):
        return mh.jet(fn, t, (one, 0 * one, 0 * one))[1]

    for series in (orders(t), ms.jit(orders)(t)):
        np.testing.assert_allclose([float(d.asnumpy()) for d in series], expected, rtol=1e-14)


# --- networks and closed forms --------------------------------------------------------------------


class Net(nn.Cell):
    """The tanh network 1-32-32-1 of the golden values."""

    def __init__(self):
        super().__init__()
        self.w = ms.ParameterTuple(
            [Parameter(Tensor(GOLDEN[f"w{k}"]), name=f"w{k}") for k in range(3)]
        )
        self.b = ms.ParameterTuple(
            [Parameter(Tensor(GOLDEN[f"b{k}"]), name=f"b{k}") for k in range(3)]
        )

    def construct(self, x):
        x = ops.tanh(ops.matmul(x, self.w[0]) + self.b[0])
        x = ops.tanh(ops.matmul(x, self.w[1]) + self.b[1])
        return ops.matmul(x, self.w[2]) + self.b[2]


net = Net()


@pytest.mark.parametrize("order", [6, 10] + [1, 2, 3, 4, 5, 7, 8, 9] * FULL)
def test_a_network_agrees_with_jets_of_jax(order):
    x = Tensor(GOLDEN["points"])
    found = mh.derivative(net, order)(x).asnumpy()
    np.testing.assert_allclose(
        found, GOLDEN["net"][order], rtol=1e-10, atol=1e-10 * np.abs(GOLDEN["net"][order]).max()
    )


@pytest.mark.full_run
def test_jet_of_a_network_has_all_orders():
    x = Tensor(GOLDEN["points"])
    zeros = (ops.zeros_like(x),) * 5
    value, series = mh.jet(net, x, (ops.ones_like(x), *zeros))
    np.testing.assert_allclose(value.asnumpy(), GOLDEN["net"][0], rtol=1e-12)
    for order, one in enumerate(series, 1):
        expected = GOLDEN["net"][order]
        np.testing.assert_allclose(one.asnumpy(), expected, atol=1e-11 * np.abs(expected).max())


def wave(x):
    return ops.exp(x) * ops.sin(x)


@pytest.mark.full_run
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_ranks(shape):
    """exp(x) sin(x) has the n-th derivative 2^(n/2) exp(x) sin(x + n pi / 4)."""
    x = np.random.default_rng(1).uniform(-1, 1, shape)
    found = mh.derivative(wave, 5)(Tensor(x, ms.float64)).asnumpy()
    assert found.shape == shape
    np.testing.assert_allclose(
        found, 2**2.5 * np.exp(x) * np.sin(x + 5 * np.pi / 4), rtol=1e-12, atol=1e-12
    )


def of_several(a, x, n):
    return ops.stack((a * x**n, a + ops.cos(x)), -1)


@pytest.mark.full_run
def test_other_arguments_stay_and_outputs_may_be_wider():
    x = np.linspace(0.5, 1, 4)
    found = mh.derivative(of_several, 3, argnum=1)(Tensor(2.0, ms.float64), Tensor(x), 4).asnumpy()
    np.testing.assert_allclose(found, np.stack((48 * x, np.sin(x)), -1), rtol=1e-13)


def pair(a, b):
    return a * b, ops.sin(b)


@pytest.mark.full_run
def test_what_does_not_move_has_no_series():
    a, b = Tensor([2.0, 3.0], ms.float64), Tensor([0.5, 1.0], ms.float64)
    one = ops.ones_like(b)
    (product, sine), (of_product, of_sine) = mh.jet(pair, (a, b), (None, (one, one)))
    np.testing.assert_allclose(product.asnumpy(), [1.0, 3.0])
    np.testing.assert_allclose([t.asnumpy() for t in of_product], [[2.0, 3.0]] * 2)
    np.testing.assert_allclose(
        of_sine[1].asnumpy(), np.cos([0.5, 1.0]) - np.sin([0.5, 1.0]), rtol=1e-14
    )
    assert sine.shape == (2,)


@pytest.mark.full_run
def test_float32():
    x = np.linspace(-1, 1, 5)
    found = mh.derivative(wave, 4)(Tensor(x, ms.float32))
    assert found.dtype == ms.float32
    np.testing.assert_allclose(found.asnumpy(), -4 * np.exp(x) * np.sin(x), rtol=1e-4, atol=1e-5)


# --- inside graphs --------------------------------------------------------------------------------


def along_lines(x):
    """Functions of 2 x + 1, whose derivatives by x end after the first."""
    z = 2 * x + 1
    return ops.stack(
        [
            ops.exp(z),
            ops.expm1(z),
            ops.log(z),
            ops.sin(z),
            ops.cos(z),
            ops.sinh(z),
            ops.cosh(z),
            ops.tanh(z),
            ops.sigmoid(z),
            ops.tan(z / 3),
            ops.silu(z),
            ops.softplus(z),
            z * z * z,
            1 / z,
            ops.exp(ops.cat((z, z * z))[: x.shape[0]] - ops.cat((x, x))[: x.shape[0]]),
            z,
        ],
        1,
    )


def derivative_of_polynomial(slope, power, y, n):
    """The n-th derivative of the `power` of a y with y' = slope(y), both polynomials."""
    for _ in range(n):
        power = power.deriv() * slope
    return power(y)


def closed_forms(z, n):
    """Their n-th derivatives by z, n > 0."""

    def sigma(n):
        return derivative_of_polynomial(Polynomial([0, 1, -1]), y, 1 / (1 + np.exp(-z)), n)

    y, exp, cosines = Polynomial([0, 1]), np.exp(z), (np.cos(z), -np.sin(z), -np.cos(z), np.sin(z))
    cubes = (z**3, 3 * z**2, 6 * z, 6 + 0 * z)
    odd, even = np.sinh(z), np.cosh(z)
    return [
        exp,
        exp,
        (-1) ** (n - 1) * math.factorial(n - 1) / z**n,
        cosines[(n - 1) % 4],
        cosines[n % 4],
        (odd, even)[n % 2],
        (even, odd)[n % 2],
        derivative_of_polynomial(Polynomial([1, 0, -1]), y, np.tanh(z), n),
        sigma(n),
        derivative_of_polynomial(Polynomial([1, 0, 1]), y, np.tan(z / 3), n) / 3**n,
        n * sigma(n - 1) + z * sigma(n),
        sigma(n - 1),
        cubes[n] if n < 4 else 0 * z,
        (-1) ** n * math.factorial(n) / z ** (n + 1),
        np.exp(z - (z - 1) / 2) / 2**n,
        (n == 1) + 0 * z,
    ]


@pytest.mark.parametrize("order", [3, *([1, 2, 6] * FULL)])
def test_along_a_line(order):
    x = np.linspace(0.1, 0.9, 5)
    found = mh.derivative(along_lines, order)(Tensor(x, ms.float64)).asnumpy()
    expected = 2**order * np.stack(closed_forms(2 * x + 1, order), 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_a_line_where_a_tensor_decides():
    """In one branch the derivatives end, in the other they do not."""

    def f(x):
        y = 3 * x
        if x.sum() > 2:
            y = ops.sin(x)
        return y * x

    x = np.array([0.5, 0.25])
    second, far = mh.derivative(f, 2), x + 1
    for at, expected in ((x, 6 + 0 * x), (far, 2 * np.cos(far) - far * np.sin(far))):
        np.testing.assert_allclose(second(Tensor(at, ms.float64)).asnumpy(), expected, rtol=1e-12)


def test_a_jet_and_a_derivative_inside_a_graph():
    fourth = mh.derivative(wave, 4)

    @ms.jit
    def both(x):
        value, (first, second) = mh.jet(wave, x, (ops.ones_like(x), ops.zeros_like(x)))
        return fourth(x) + mh.derivative(wave, 1)(x), value, first, second

    x = np.linspace(-1, 1, 5)
    sums, value, first, second = (t.asnumpy() for t in both(Tensor(x)))
    slope = np.exp(x) * (np.sin(x) + np.cos(x))
    np.testing.assert_allclose(sums, slope - 4 * value, rtol=1e-12)
    np.testing.assert_allclose(first, slope, rtol=1e-12)
    np.testing.assert_allclose(second, 2 * np.exp(x) * np.cos(x), rtol=1e-12)


def nested_wave(x):
    return mh.derivative(wave, 2)(x)


@pytest.mark.full_run
def test_derivatives_nest():
    x = np.linspace(-1, 1, 5)
    np.testing.assert_allclose(
        mh.derivative(nested_wave, 2)(Tensor(x)).asnumpy(), -4 * np.exp(x) * np.sin(x), rtol=1e-12
    )


class Beam(nn.Cell):
    """The mean square of u'''' - f of a beam."""

    def __init__(self, u):
        super().__init__()
        self.u = u

    def construct(self, x):
        return ((mh.derivative(self.u, 4)(x) - ops.sin(x)) ** 2).mean()


@pytest.mark.full_run
def test_the_gradient_of_a_beam_by_the_weights():
    u, x = Net(), Tensor(np.linspace(-1, 1, 8)[:, None])
    beam = Beam(u)
    weights = u.trainable_params()
    gradients = ms.jit(ms.grad(beam, None, weights))(x)
    loss, step = ms.jit(beam), 1e-5
    for weight, gradient in zip(weights, gradients, strict=True):
        start, direction = (
            weight.asnumpy().copy(),
            np.random.default_rng(3).normal(size=weight.shape),
        )
        values = []
        for sign in (1, -1):
            ops.assign(weight, Tensor(start + sign * step * direction))
            values.append(float(loss(x)))
        ops.assign(weight, Tensor(start))
        expected = (values[0] - values[1]) / (2 * step)
        np.testing.assert_allclose(
            (gradient.asnumpy() * direction).sum(),
            expected,
            rtol=1e-6,
            atol=1e-7 * abs(values[0]),
            err_msg=weight.name,
        )


def test_a_network_is_compiled_once():
    x = Tensor(GOLDEN["points"])
    mh.derivative(net, 3)(x)
    before = mh.cache_info().misses
    mh.derivative(net, 3)(x + 1)
    assert mh.cache_info().misses == before


# --- refusals -------------------------------------------------------------------------------------

POINT = Tensor([0.5, 1.0, 2.0], ms.float64)


def mixed(x):
    return x * x.sum()


def softmaxed(x):
    return ops.softmax(x)


def total(x):
    return (x**2).sum()


def several(x):
    return x, x


def of_segments(x):
    """x, each entry a product of its own."""
    return ops.unsorted_segment_prod(x, Tensor([0, 1, 2], ms.int32), 3)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: mh.derivative(mixed, 2)(POINT), ValueError, "depends on several entries"),
        (lambda: mh.derivative(softmaxed, 1)(POINT), ValueError, "depends on several entries"),
        (lambda: mh.derivative(total, 2)(POINT), ValueError, "must begin with"),
        (lambda: mh.derivative(several, 2)(POINT), TypeError, "returned a tuple"),
        (
            lambda: mh.derivative(of_segments, 2)(POINT),
            mh.MissingRuleError,
            "UnsortedSegmentProd has no Taylor rule",
        ),
        (lambda: mh.derivative(wave, 0), ValueError, "order must be at least 1"),
        (lambda: mh.derivative(wave, 2.0), TypeError, "order must be an int"),
        (lambda: mh.derivative(wave, 2, argnum="x"), TypeError, "argnum must be an int"),
        (lambda: mh.derivative(wave, 2, argnum=1)(POINT), ValueError, "out of range"),
        (lambda: mh.derivative(3, 2), TypeError, "fn must be callable"),
        (lambda: mh.derivative(wave, 2)(Tensor([1, 2])), TypeError, "cannot be differentiated"),
        (lambda: mh.jet(wave, POINT, POINT), TypeError, "series must be a tuple"),
        (lambda: mh.jet(wave, POINT, ()), ValueError, "is empty"),
        (lambda: mh.jet(wave, POINT, (POINT[:2],)), ValueError, r"must be like primals\[0\]"),
        (lambda: mh.jet(wave, POINT, (1.0,)), TypeError, "must be a Tensor"),
        (
            lambda: mh.jet(wave, POINT, (POINT.astype(ms.float32),)),
            ValueError,
            r"must be like primals\[0\]",
        ),
        (lambda: mh.jet(wave, (POINT,), (None,)), ValueError, "nothing moves"),
        (lambda: mh.jet(wave, (POINT,), (POINT,)), TypeError, "must be a tuple of Tensors"),
        (
            lambda: mh.jet(pair, (POINT, POINT), ((POINT,), (POINT, POINT))),
            ValueError,
            "as many Tensors",
        ),
        (
            lambda: mh.jet(pair, (POINT, POINT), ((POINT,),)),
            ValueError,
            "for each of the 2 primals",
        ),
        (lambda: mh.jet(pair, (POINT, 2), ((POINT,), (POINT,))), TypeError, "Pass None"),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_primitive_without_a_rule_is_refused_inside_a_graph():
    inside = ms.jit(mh.derivative(of_segments, 2))
    with pytest.raises(Exception, match="UnsortedSegmentProd has no Taylor rule"):
        inside(POINT)
    shutil.rmtree("rank_0", ignore_errors=True)  # MindSpore's own, of the user's graph
    np.testing.assert_allclose(
        mh.laplacian(total)(POINT).asnumpy(), 6.0
    )  # and the pass is as it was


@pytest.mark.parametrize("order", [2, 4])
def test_factorials(order):
    """The derivatives are not divided by factorials."""
    found = mh.derivative(ops.exp, order)(Tensor([0.0], ms.float64)).asnumpy()
    np.testing.assert_allclose(found, [1.0])


# --- kernels that take float32 alone --------------------------------------------------------------


def third_difference(f):
    def at(h):
        return (f(2 * h) - 2 * f(h) + 2 * f(-h) - f(-2 * h)) / (2 * h**3)

    return (4 * at(2e-3) - at(4e-3)) / 3


def standardized(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 0.1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


LSTM = nn.LSTM(4, 2)
for _, weight in LSTM.parameters_and_names():
    weight.set_data(
        Tensor(np.random.default_rng(weight.size).normal(size=weight.shape), ms.float32)
    )


def recurrence(x):
    """What the network says, in numpy; the rows of x are the steps."""
    w_x, w_h, b, c = (p.asnumpy().astype(np.float64) for p in LSTM.get_parameters())
    h, state, out = np.zeros(2), np.zeros(2), []
    for row in x:
        i, f, g, o = np.split(w_x @ row + w_h @ h + b + c, 4)
        state = sigmoid(f) * state + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(state)
        out.append(h)
    return np.stack(out)


LABELS, FACTORS = [2, 0, 1], [0.5, 1.0, 2.0, 3.0]


def margins(x):
    own = x[range(3), LABELS][:, None]
    terms = np.maximum(0.5 - own + x, 0) ** 2 * (np.arange(4) != np.array(LABELS)[:, None])
    return terms.sum(1) / 4 * np.array(FACTORS)[LABELS]


def largest_of_windows(x):
    """Of 2 x 3 entries, padded by one row above, one column before and two after, in steps of 2."""
    wide = np.pad(x, ((1, 0), (1, 2)), constant_values=-np.inf)
    return np.array([[wide[r : r + 2, c : c + 3].max() for c in (0, 2, 4)] for r in (0, 2)])


def written(x):
    out = np.zeros(40)
    out[PLACES.ravel()] = x.ravel()
    return out


PLACES = np.array([[39, 1, 5, 7], [30, 2, 9, 4], [11, 13, 17, 0]])
WIDER = Tensor([[0, 0], [1, 2]], ms.int32)
IN_FLOAT32 = {  # of a table, and what numpy says
    "norm, p=2": (lambda x: ops.LpNorm(axis=1)(x), lambda x: np.sqrt((x * x).sum(1))),
    "norm, p=3": (
        lambda x: ops.LpNorm(axis=[0, 1], p=3)(x),
        lambda x: (np.abs(x) ** 3).sum() ** (1 / 3),
    ),
    "norm, p=1": (lambda x: ops.LpNorm(axis=0, p=1)(x * x), lambda x: (x * x).sum(0)),
    "batch norm in training": (
        nn.BatchNorm1d(4, eps=0.1).set_train(),
        standardized,
    ),
    "batch norm with statistics": (
        nn.BatchNorm1d(4, eps=0.1).set_train(False),
        lambda x: x / np.sqrt(1.1),
    ),
    "mirrored": (
        lambda x: ops.MirrorPad("SYMMETRIC")(x, WIDER),
        lambda x: np.pad(x, ((0, 0), (1, 2)), "symmetric"),
    ),
    "gated": (lambda x: mint.nn.functional.glu(x), lambda x: x[:, :2] * sigmoid(x[:, 2:])),
    "LSTM": (lambda x: LSTM(x[:, None])[0], recurrence),
    "margins": (
        lambda x: ops.MultiMarginLoss(2, 0.5, "none")(
            x, Tensor(LABELS, ms.int64), Tensor(FACTORS, ms.float32)
        ),
        margins,
    ),
    "the largest of windows": (
        lambda x: ops.MaxPool3D((1, 2, 3), 2, "pad", (0, 0, 1, 0, 1, 1), True)(x[None, None, None]),
        largest_of_windows,
    ),
    "written to places": (
        lambda x: ops.MaxUnpool2D(2, 2, 0, (1, 1, 5, 8))(
            (x * x)[None, None], Tensor(PLACES[None, None])
        ),
        lambda x: written(x * x),
    ),
    "finite": (lambda x: ops.nan_to_num(x * x), lambda x: x * x),
    "factors of LU": (
        lambda x: ops.matmul(*ops.lu_unpack(x, Tensor([1, 2, 3], ms.int32))[1:]),
        lambda x: (np.tril(x[:, :3], -1) + np.eye(3)) @ np.triu(x),
    ),
}


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_third_derivatives_are_those_of_differences(name):
    function, plain = IN_FLOAT32[name]
    x, v = (np.random.default_rng(k).normal(size=(3, 4)) for k in (0, 1))
    start, way = Tensor(x, ms.float32), Tensor(v, ms.float32)
    found = mh.derivative(lambda t: ops.sin(function(start + t * way)).sum(), 3)(Tensor(0.0))
    expected = third_difference(lambda t: np.sin(plain(x + t * v)).sum())
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-5)


# --- jacobian(mode="fwd") -------------------------------------------------------------------------


def tall(x, y):
    return ops.sin(ops.outer(x, y)), ops.matmul(y, y) * x


@pytest.mark.parametrize("position", [0, 1, (1, 0)], ids=str)
def test_a_jacobian_by_a_forward_pass(position):
    args = Tensor([0.5, 1.0, 2.0], ms.float64), Tensor([1.0, -1.0], ms.float64)
    found, expected = (mh.jacobian(tall, position, mode=mode)(*args) for mode in ("fwd", "rev"))
    for one, two in zip(found, expected, strict=True):
        for a, b in zip(
            *(part if isinstance(part, tuple) else (part,) for part in (one, two)), strict=True
        ):
            assert a.shape == b.shape
            np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-13, atol=1e-15)


def squares(x):
    """As the largest of one difference."""
    return ops.cdist((x * x)[:, None], (0 * x)[:1, None], float("inf"))[:, 0]


def test_a_jacobian_without_a_forward_rule_says_so():
    with pytest.warns(mh.FallbackWarning, match="has no forward rule"):
        found = mh.jacobian(squares, mode="fwd")(POINT).asnumpy()
    np.testing.assert_allclose(found, np.diag(2 * POINT.asnumpy()), rtol=1e-12)
