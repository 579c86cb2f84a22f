"""Derivative rules whose first gradient MindSpore has wrong or lacks as well, against another framework's float64."""
from __future__ import annotations

import pathlib
import warnings

import numpy as np
import pytest
from mindspore import Tensor, mint, nn, ops
from ops_functions import wave
from ops_table_more import ROWS

import mindspore_hessian as mh
from mindspore_hessian import _compat

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.RecompileWarning")  # many small functions
GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "rules_more.npz")
ORDERS = ("grad", "hvp", "third")
CASES = [pytest.param(row, dtype, tolerance, id=f"{row.name}-{dtype.__name__}{number}")
         for number, row in enumerate(ROWS) for dtype, tolerance in zip((np.float32, np.float64), row.tolerances,
                                                                        strict=True) if tolerance]


def _pull(f):
    return ops.GradOperation(sens_param=True)(f)


def _scalar(f):
    def s(x):
        y = f(x)
        weight = 1.0
        if y.ndim:
            weight = Tensor(wave(*y.shape, phase=2.2) + 1.5).astype(y.dtype)
        return (weight * (y + 0.5 * y * y)).sum()
    return s


def _derivatives(s):
    """The gradient, the product with v, the third derivative along v twice: of one graph."""
    def k(x, v):
        def g(x):
            return ops.GradOperation()(s)(x)

        def hv(x):
            return _pull(g)(x, v)
        return g(x), hv(x), _pull(hv)(x, v)
    return k


def _error(got, expected):
    assert got.shape == expected.shape
    return np.abs(got - expected).max(initial=0) / max(np.abs(expected).max(), 1e-3)


@pytest.mark.parametrize(("row", "dtype", "tolerance"), CASES)
def test_three_derivatives(row, dtype, tolerance):
    x, v = (Tensor(GOLDEN[f"{row.name}/{k}"].astype(dtype)) for k in "xv")
    got = _compat.Graph(_derivatives(_scalar(row.make(dtype))), (x, v), "O0")((x, v))
    for order, value in zip(ORDERS, got, strict=True):
        error = _error(value.asnumpy(), GOLDEN[f"{row.name}/{order}"])
        assert error < tolerance * (10 if order == "third" else 1), f"{order}: relative error {error:.1e}"


BATCHED = ("tanh", "reversed_part", "cholesky_stack", "cholesky_inverse", "cholesky_solve_upper", "tile_nothing",
           "nearest_1d", "rfft_padded", "irfft_odd", "hfft", "ihfft_cut", "rfft2", "irfftn")


@pytest.mark.parametrize("row", {row.name: row for row in ROWS if row.name in BATCHED}.values(),
                         ids=lambda row: row.name)
def test_hessian_in_one_graph(row):
    """With no primitive that has no batching rule."""
    dtype, tolerance = (np.float64, row.tolerances[1]) if row.tolerances[1] else (np.float32, row.tolerances[0])
    x, v = (GOLDEN[f"{row.name}/{k}"].astype(dtype) for k in "xv")
    with warnings.catch_warnings():
        warnings.simplefilter("error", mh.FallbackWarning)
        h = mh.hessian(_scalar(row.make(dtype)))(Tensor(x)).asnumpy().reshape(x.size, x.size)
    assert _error((h @ v.ravel()).reshape(x.shape), GOLDEN[f"{row.name}/hvp"]) < 10 * tolerance


# --- tanh: MindSpore's float32 kernel is off by 1e-4 ---------------------------------------------------------------

def _second_of_tanh():
    z = np.linspace(-9, 9, 1001)
    t = np.tanh(z)
    return Tensor(z.astype(np.float32)), -2 * t * (1 - t * t)


@pytest.mark.parametrize("f", [ops.tanh, mint.tanh, nn.Tanh(), ops.Tanh()], ids=["ops", "mint", "nn", "primitive"])
def test_tanh_is_exact_in_derivatives(f):
    def s(x):
        return f(x).sum()
    x, curvature = _second_of_tanh()
    assert np.abs(mh.hvp(s, x, ops.ones_like(x)).asnumpy() - curvature).max() < 5e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tanh_does_not_overflow(dtype):
    def s(x):
        return ops.tanh(x).sum()
    x = Tensor(np.array([0.0, 40.0, -40.0, 6e4, np.inf, -np.inf], dtype))
    assert np.array_equal(mh.hvp(s, x, ops.ones_like(x)).asnumpy(), np.zeros(6))


class TwoSteps(nn.Cell):
    """Two steps of a recurrent cell, from zeros."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def construct(self, x):
        h = ops.zeros((x.shape[0], 4), x.dtype)
        h = self.cell(x, h)
        return self.cell(2 * x, h).sum()


def test_a_recurrent_cell_agrees_with_a_formula_that_needs_no_tanh():
    cell = nn.RNNCell(3, 4)
    for number, weight in enumerate(cell.trainable_params()):
        weight.set_data(Tensor(wave(*weight.shape, phase=0.4 * number).astype(np.float32)))
    w, u, a, b = (Tensor(p.asnumpy().astype(np.float64)) for p in cell.trainable_params())

    def step(x, h):
        z = ops.matmul(x, w.swapaxes(0, 1)) + a + ops.matmul(h, u.swapaxes(0, 1)) + b
        return 1 - 2 / (1 + ops.exp(2 * z))

    def formula(x):
        return step(2 * x, step(x, ops.zeros((2, 4), x.dtype))).sum()
    x = wave(2, 3)
    exact = mh.hessian(formula)(Tensor(x)).asnumpy()
    got = mh.hessian(TwoSteps(cell))(Tensor(x.astype(np.float32))).asnumpy()
    assert np.abs(got - exact).max() < 3e-4 * np.abs(exact).max()


# --- slices with a negative step -------------------------------------------------------------------------------------

M, CUBE = (5, 6), (3, 4, 5)
SLICES = {
    "x[::-1]": (lambda x: x[::-1], M),
    "x[:, ::-2]": (lambda x: x[:, ::-2], CUBE),
    "x[4:1:-1]": (lambda x: x[4:1:-1], M),
    "x[::-1, ::-1]": (lambda x: x[::-1, ::-1], M),
    "x[..., ::-1]": (lambda x: x[..., ::-1], CUBE),
    "x[None, ::-2]": (lambda x: x[None, ::-2], M),
    "x[1, ::-1, None]": (lambda x: x[1, ::-1, None], M),
    "x[::-3, ..., 1:4:2]": (lambda x: x[::-3, ..., 1:4:2], CUBE),
    "x[::-1, 2]": (lambda x: x[::-1, 2], M),
    "x[2:5:-1]": (lambda x: x[2:5:-1], M),
    "x.reshape(-1)[::-1]": (lambda x: x.reshape(-1)[::-1], M),
}
STRIDED = {
    "strided_slice": (lambda x: ops.strided_slice(x, (4, 5), (0, 0), (-1, -2)), lambda x: x[4:0:-1, 5:0:-2]),
    "masks": (lambda x: ops.StridedSlice(1, 3, 0, 0, 0)(x, (3, 4), (1, 1), (-2, -1)), lambda x: x[::-2, 4::-1]),
    "shrink": (lambda x: ops.StridedSlice(0, 1, 0, 0, 2)(x, (3, 4), (1, 5), (-1, 1)), lambda x: x[3::-1, 4]),
}
EVERY = {**{name: (f, f, shape) for name, (f, shape) in SLICES.items()},
         **{name: (f, g, M) for name, (f, g) in STRIDED.items()}}


@pytest.mark.parametrize("name", EVERY)
def test_slices_with_a_negative_step(name):
    """y = x[slice]: the Hessian of sum(w y^2) is diagonal, 2 w where a number was taken from."""
    f, in_numpy, shape = EVERY[name]
    taken = in_numpy(np.arange(np.prod(shape)).reshape(shape))
    weight = wave(*taken.shape) + 2
    diagonal = np.zeros(np.prod(shape))
    np.add.at(diagonal, taken.ravel(), 2 * weight.ravel())

    def s(x):
        y = f(x)
        return (Tensor(weight) * y * y).sum() if y.size else (x * 0).sum()
    x = wave(*shape, phase=1.1)
    _, g, h = mh.value_grad_and_hessian(s)(Tensor(x))
    np.testing.assert_allclose(g.asnumpy().ravel(), diagonal * x.ravel(), rtol=1e-12)
    np.testing.assert_allclose(h.asnumpy().reshape(x.size, x.size), np.diag(diagonal), rtol=1e-12)


def from_beyond(x):
    return (x[10::-1] ** 2).sum()


def test_a_slice_that_begins_beyond_the_end_is_refused():
    """MindSpore's value of it is what was in memory."""
    with pytest.raises(ValueError, match="begins at 10 with the step -1 on axis 0"):
        mh.hvp(from_beyond, Tensor([1.0, 2.0]), Tensor([1.0, 2.0]))


def hermitian(x):
    return ops.hfft(ops.Complex()(x, x)).sum()


def inverse_hermitian(x):
    return ops.imag(ops.ihfft2(x)).sum()


@pytest.mark.parametrize("f", [hermitian, inverse_hermitian])
def test_a_transform_that_is_wrong_at_every_second_call_is_refused(f):
    x = Tensor(wave(3, 4))
    with pytest.raises(mh.MissingRuleError, match="every second call"):
        mh.hvp(f, x, x)


@pytest.mark.parametrize("name", ["rfft", "irfft", "rfft2", "irfftn"])
def test_transforms_give_the_same_at_every_call(name):
    make = next(row.make for row in ROWS if row.name == name)
    x, v = (GOLDEN[f"{name}/{k}"] for k in "xv")
    s = _scalar(make(np.float64))
    for _ in range(3):
        assert _error(mh.hvp(s, Tensor(x), Tensor(v)).asnumpy(), GOLDEN[f"{name}/hvp"]) < 1e-12


# --- first gradients that are wrong in MindSpore ---------------------------------------------------------------------

def log_softmax_of_a_number(x):
    return ops.log_softmax(x, -1)


def test_log_softmax_of_a_number_is_constant():
    g, hv = mh.grad_and_hvp(log_softmax_of_a_number, Tensor(0.3), Tensor(1.0))
    assert (float(g.asnumpy()), float(hv.asnumpy())) == (0, 0)


@pytest.mark.parametrize("options", [(0, True, False), (1, False, False), (1, True, False), (1, True, True)])
def test_average_pool_with_a_divisor(options):
    """sum(y^2) / 2 has the gradient A^T A x: with u, <A u, A x>."""
    def pool(x):
        return ops.avg_pool3d(x, 3, 2, *options, 5)

    def s(x):
        y = pool(x)
        return 0.5 * (y * y).sum()
    x, u = (Tensor(wave(1, 1, 3, 5, 4, phase=phase).astype(np.float32)) for phase in (0.2, 1.3))
    y, z = pool(x).asnumpy().astype(float), pool(u).asnumpy().astype(float)
    g, hv = (out.asnumpy().astype(float) for out in mh.grad_and_hvp(s, x, u))
    assert np.isclose((g * u.asnumpy()).sum(), (y * z).sum(), rtol=1e-5)
    assert np.isclose((hv * u.asnumpy()).sum(), (z * z).sum(), rtol=1e-5)
    for k in (0, 7, 59):
        e = np.zeros(60, np.float32)
        e[k] = 1
        assert np.isclose(g.ravel()[k], (pool(Tensor(e.reshape(x.shape))).asnumpy() * y).sum(), atol=1e-5)


@pytest.mark.parametrize("multiples", [(2,), (3, 1, 2), (1, 1), (2, 1, 1, 2), (2, 0)])
def test_tile_in_every_rank(multiples):
    def s(x):
        return (ops.tile(x, multiples) ** 2).sum()
    x = wave(2, 3)
    g, hv = mh.grad_and_hvp(s, Tensor(x), Tensor(x + 1))
    np.testing.assert_allclose(g.asnumpy(), 2 * np.prod(multiples) * x, rtol=1e-12)
    np.testing.assert_allclose(hv.asnumpy(), 2 * np.prod(multiples) * (x + 1), rtol=1e-12)


def _difference(f, x, at, step=1e-6):
    e = np.zeros_like(x)
    e[at] = step
    return (f(Tensor(x + e)).asnumpy().sum() - f(Tensor(x - e)).asnumpy().sum()) / (2 * step)


def _invert(x):
    return ops.cholesky_inverse(x)


def _invert_upper(x):
    return ops.cholesky_inverse(x, upper=True)


def _solve(x):
    return ops.cholesky_solve(Tensor(wave(3, 2)), x)


def _solve_upper(x):
    return ops.cholesky_solve(Tensor(wave(3, 2)), x, upper=True)


@pytest.mark.parametrize("f", [_invert, _invert_upper, _solve, _solve_upper])
def test_a_factor_with_numbers_on_both_sides(f):
    """What MindSpore makes of the other triangle counts: it reads it to invert, and not to solve."""
    def s(x):
        return f(x).sum()
    x = wave(3, 3) / 3 + 2 * np.eye(3)
    g, _ = mh.grad_and_hvp(s, Tensor(x), Tensor(x))
    for at in ((0, 2), (2, 0), (1, 1)):
        assert np.isclose(g.asnumpy()[at], _difference(f, x, at), rtol=1e-6, atol=1e-9)


def pinv_of_both(x):
    return ops.pinv(x + x.swapaxes(0, 1), hermitian=True).sum()


@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_equal_eigenvalues_give_nan_instead_of_a_wrong_number(values):
    q = np.linalg.qr(wave(3, 3))[0]
    x = Tensor(q @ np.diag(values) @ q.T / 2)
    with pytest.warns(mh.NonFiniteWarning):
        g, _ = mh.grad_and_hvp(pinv_of_both, x, x)
    assert not np.isfinite(g.asnumpy()).any()


@pytest.mark.parametrize("lower", [True, False])
def test_eigenvalues_alone(lower):
    """sum(w^3) is the trace of the cube: its gradient is 3 x^2, in the triangle that is read."""
    values = _compat.Eigh(False, lower)

    def s(x):
        return (values(x) ** 3).sum()
    x = wave(4, 4)
    x, v = x + x.T, np.tril(np.ones((4, 4)))
    g, hv = mh.grad_and_hvp(s, Tensor(x), Tensor(v if lower else v.T))
    half = np.tril(np.full((4, 4), 2.0), -1) + np.eye(4)
    half, whole = half if lower else half.T, np.ones((4, 4))
    np.testing.assert_allclose(g.asnumpy(), half * (3 * x @ x), atol=1e-12)
    np.testing.assert_allclose(hv.asnumpy(), half * 3 * (x @ whole + whole @ x), atol=1e-11)
