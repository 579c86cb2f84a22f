"""Derivatives where a line of the table is not enough: ties, zeros, all slices, wrong first
gradients of MindSpore.
"""

from __future__ import annotations

import calls
import check
import mindspore as ms
import numpy as np
import pytest
from calls import wave
from mindspore import Tensor, mint, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _compat
from mindspore_hessian.rules import activations

pytestmark = pytest.mark.filterwarnings(
    "ignore::mindspore_hessian.RecompileWarning"
)  # many small functions
LINES = {call.line.split(" | ")[0]: call for call in calls.calls()}

JVP = [
    "log_softmax(x, -1)",
    "gelu(x, 'tanh')",
    "nn.AvgPool2d(2, 2)(x)",
    "nn.SoftmaxCrossEntropyWithLogits()(x, p)",
    "ops: binary_cross_entropy_with_logits(x, p, w, q, 'none')",
]


def line(name, dtype, folder):
    return check.Check(LINES[name], check.spaces(LINES[name])[0], dtype, folder)


@pytest.mark.parametrize("name", JVP)
def test_jvp_of_grad_is_not_zero(name, tmp_path):
    """Where the rule is missing, MindSpore's jvp(grad) is silently zero."""
    found = line(name, "float32", tmp_path)

    def forward(x, v):
        return ms.jvp(found.module.gradient, x, v)[1]

    product = check.flat(ms.jit(forward)(*found.tensors(found.point + found.vector)))
    assert check.error_of(product, check.GOLDEN[f"{LINES[name].key}/hvp"]) < 2e-4


# primitives without a CPU kernel: the formula is compared with differences of the activation
ELSEWHERE = {
    "SeluGrad": (lambda d, x, y: activations.selu_grad(d, y), ops.selu),
    "MishGradExt": (lambda d, x, y: activations.mish_grad(d, x), ops.mish),
    "LogSigmoidGrad": (lambda d, x, y: activations.log_sigmoid_grad(d, x, x), ops.logsigmoid),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_formulas_of_other_devices(name):
    formula, forward = ELSEWHERE[name]
    x, step = Tensor(np.linspace(-2.1, 2.0, 12)), 1e-3
    slope = (forward(x + step) - forward(x - step)) / (2 * step)
    got = formula(ops.ones_like(x), x, forward(x))
    assert np.abs((got - slope).asnumpy()).max() < 1e-3


@pytest.mark.parametrize("labels", [[2, -1, 0], [3, 0, -1], [1, 2, 0]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_margin_loss_of_several_labels(reduction, labels):
    """Of y = x^3: sums of max(0, 1 - y_j + y_k) / C, whose second derivatives are 6 x times the slope
    by y. Only the value of the loss needs the kernel."""
    rows = [[*labels, -1], [0, 1, -1, 2]]
    x = np.array([[0.3, -0.4, 0.6, 0.2], [0.1, 1.2, 0.4, -0.5]])
    slope = np.zeros_like(x)
    for row, own, y in zip(slope, rows, x**3, strict=True):
        own = own[: own.index(-1)]
        for j in own:
            for k in set(range(4)) - set(own):
                if 1 - y[j] + y[k] > 0:
                    row[j] -= 0.25
                    row[k] += 0.25
    loss, target = nn.MultilabelMarginLoss(reduction), Tensor(rows, ms.int32)

    def f(x):
        return loss(x**3, target).sum()

    expected = slope * 6 * x / (2 if reduction == "mean" else 1)
    assert np.abs(expected).max() > 0.1
    x = Tensor(x, ms.float32)
    for mode in ("forward", "reverse"):
        found = mh.laplacian(f, mode=mode)(x).asnumpy()
        np.testing.assert_allclose(found, expected.sum(), rtol=1e-5)
    found = mh.hvp(f, x, ops.ones_like(x)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_log_softmax_of_a_number_has_no_slope():
    """MindSpore's gradient of it hangs."""

    def f(x):
        return ops.log_softmax(x, 0) * 2.0 + x**2

    assert mh.hvp(f, Tensor(np.array(0.3)), Tensor(np.array(1.0))).asnumpy() == 2.0


@pytest.mark.parametrize("point", [0.0, 3.0, -0.5])
def test_square_at_zero(point):
    """MindSpore's third derivative of a power fails; ours is exact where x^(p - 3) is not
    finite.
    """

    def f(x):
        return ops.square(x).sum()

    x = x0 = Tensor(np.array([point, 1.0]))
    assert np.array_equal(mh.hvp(f, x, x + 1).asnumpy(), 2 * (x + 1).asnumpy())

    def along(x):
        return (mh.hvp(f, x, x0 + 1) * (x0 + 1)).sum()

    assert np.array_equal(ms.jit(ms.grad(along))(x).asnumpy(), [0.0, 0.0])


def test_ties_in_a_max_pool_keep_the_hessian_symmetric():
    """After a relu many windows hold equal zeros: the second derivative reads where the first one
    wrote.
    """
    pool = nn.MaxPool2d(2, 2)

    def f(x):
        return (pool(ops.relu(x)) ** 2).sum()

    x = Tensor(np.where(np.arange(16) % 3 == 0, -1.0, 1.0).reshape(1, 1, 4, 4).astype(np.float32))
    hessian = mh.hessian(f)(x).asnumpy().reshape(16, 16)
    assert np.array_equal(hessian, hessian.T)
    assert np.count_nonzero(hessian) == 4 and np.trace(hessian) == 8


FIRST = Tensor([1.0, 0.0])


def evaluated(x, a):
    return ((mint.nn.functional.dropout(a, 0.5, False) + x * FIRST) ** 2).sum()


def test_one_number_among_the_inputs_of_a_matrix_made_row_after_row():
    with pytest.warns(mh.FallbackWarning, match="Generator has no batching rule"):
        (xx, xa), (ax, aa) = mh.hessian(evaluated, (0, 1))(Tensor(0.5), Tensor([1.0, 2.0]))
    assert (xx.shape, float(xx), xa.asnumpy().tolist(), ax.asnumpy().tolist()) == (
        (),
        2,
        [2, 0],
        [2, 0],
    )
    np.testing.assert_allclose(aa.asnumpy(), 2 * np.eye(2))


# --- tanh: MindSpore's float32 kernel is off by 1e-4 ----------------------------------------------


def _second_of_tanh():
    z = np.linspace(-9, 9, 1001)
    t = np.tanh(z)
    return Tensor(z.astype(np.float32)), -2 * t * (1 - t * t)


@pytest.mark.parametrize(
    "f", [ops.tanh, mint.tanh, nn.Tanh(), ops.Tanh()], ids=["ops", "mint", "nn", "primitive"]
)
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


# --- slices with a negative step ------------------------------------------------------------------

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
    "strided_slice": (
        lambda x: ops.strided_slice(x, (4, 5), (0, 0), (-1, -2)),
        lambda x: x[4:0:-1, 5:0:-2],
    ),
    "masks": (
        lambda x: ops.StridedSlice(1, 3, 0, 0, 0)(x, (3, 4), (1, 1), (-2, -1)),
        lambda x: x[::-2, 4::-1],
    ),
    "shrink": (
        lambda x: ops.StridedSlice(0, 1, 0, 0, 2)(x, (3, 4), (1, 5), (-1, 1)),
        lambda x: x[3::-1, 4],
    ),
}
EVERY = {
    **{name: (f, f, shape) for name, (f, shape) in SLICES.items()},
    **{name: (f, g, M) for name, (f, g) in STRIDED.items()},
}


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


@pytest.mark.parametrize("name", ["parts(ops.rfft(x))", "ops.irfft(c(x))"])
def test_transforms_give_the_same_at_every_call(name, tmp_path):
    found = line(f"python: {name}", "float64", tmp_path)
    for _ in range(3):
        assert check.error_of(found.hvp(found.point), check.GOLDEN[f"{found.call.key}/hvp"]) < 1e-12


# --- first gradients that are wrong in MindSpore --------------------------------------------------


def log_softmax_of_a_number(x):
    return ops.log_softmax(x, -1)


def test_log_softmax_of_a_number_is_constant():
    g, hv = mh.grad_and_hvp(log_softmax_of_a_number, Tensor(0.3), Tensor(1.0))
    assert (float(g.asnumpy()), float(hv.asnumpy())) == (0, 0)


@pytest.mark.parametrize(
    "options", [(0, True, False), (1, False, False), (1, True, False), (1, True, True)]
)
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
        assert np.isclose(
            g.ravel()[k], (pool(Tensor(e.reshape(x.shape))).asnumpy() * y).sum(), atol=1e-5
        )


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
    """What MindSpore makes of the other triangle counts: it reads it to invert, and not to
    solve.
    """

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


def riemann(s):
    return ops.zeta(s, Tensor(np.ones(1))).sum()


def test_zeta_by_its_exponent():
    """MindSpore's is 0. Closed values of Riemann's function."""
    two = Tensor(np.array([2.0]))
    slope, curve = mh.grad_and_hvp(riemann, two, Tensor(np.ones(1)))
    np.testing.assert_allclose(slope.asnumpy().item(), -0.9375482543158437, rtol=1e-13)
    np.testing.assert_allclose(curve.asnumpy().item(), 1.9892802342989010, rtol=1e-13)


@pytest.mark.full_run
def test_zeta_by_its_exponent_and_the_other():
    """Second differences in both."""

    def hurwitz(s, q):
        return (ops.zeta(s, q) ** 2).sum()

    s, q = np.array([1.7, 2.5, 30.0]), np.array([0.3, 1.2, 7.0])
    v, w, step = 0.1 * np.ones(3), np.array([0.05, -0.1, 0.1]), 0.02

    def value(t):
        return float(hurwitz(Tensor(s + t * v), Tensor(q + t * w)).asnumpy())

    weights = {0: -205 / 72, 1: 8 / 5, 2: -1 / 5, 3: 8 / 315, 4: -1 / 560}
    curve = (
        sum(c * value(k * step) for n, c in weights.items() for k in ((n, -n) if n else (0,)))
        / step**2
    )
    by_s, by_q = mh.hvp(hurwitz, (Tensor(s), Tensor(q)), (Tensor(v), Tensor(w)))
    found = (by_s.asnumpy() * v + by_q.asnumpy() * w).sum()
    np.testing.assert_allclose(found, curve, rtol=1e-8)


def test_betainc_by_x_and_not_by_its_parameters():
    """MindSpore's by a and b is 0; I_x(2, 3) = 6 x^2 - 8 x^3 + 3 x^4."""
    betainc, x = ops.Betainc(), Tensor(np.array([0.3, 0.6]))
    a, b = Tensor(np.array([2.0, 2.0])), Tensor(np.array([3.0, 3.0]))
    found = mh.hessian(lambda x: betainc(a, b, x).sum())(x).asnumpy()
    t = x.asnumpy()
    np.testing.assert_allclose(found, np.diag(12 - 48 * t + 36 * t**2), rtol=1e-5, atol=1e-5)
    with pytest.warns(mh.NonFiniteWarning):
        by_all = mh.hessian(lambda a, b, x: betainc(a, b, x).sum(), (0, 1, 2))(a, b, x)
    for block in sum(by_all, ()):  # none is a number that looks right
        assert not np.isfinite(np.diag(block.asnumpy())).any()
