"""Forward rules against torch: lines of the table in calls/, in float64, in one forward pass along
three directions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import calls
import forward_check
import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, jit, nn, ops
from mindspore.ops.operations.math_ops import MatrixSolve
from mindspore.scipy.linalg import eigh
from scipy.special import ivp, kvp, polygamma, yvp, zeta
from special_points import POINTS, Point

import mindspore_hessian as mh
from mindspore_hessian.rules import forward, registry

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.RecompileWarning")
CALLS = {call.line: call for call in calls.calls()}
LINES = [
    CALLS[line] for line in (Path(__file__).parent / "forward_lines.txt").read_text().splitlines()
]
ABOVE = np.array([0.1, 0.7, 3.0, 12.0])
EXPONENT, FIRST = Tensor(2.5, ms.float64), Tensor(1, ms.int32)
SIZE = 6  # lines in one graph
GROUPS = [LINES[start : start + SIZE] for start in range(0, len(LINES), SIZE)]


@pytest.mark.parametrize(
    "group", GROUPS[:: 1 if FULL else 7], ids=lambda group: group[0].line.split(" | ")[0]
)
def test_forward_rules_are_torchs(group, tmp_path):
    for call, errors in zip(group, forward_check.Lines(group, tmp_path).errors(), strict=True):
        limit = 10 * call.limit(forward_check.dtype_of(call))
        assert max(errors) < limit, f"{call.line}: relative errors {errors}"


@pytest.mark.parametrize(
    "group", GROUPS[:: 1 if FULL else 12], ids=lambda group: group[0].line.split(" | ")[0]
)
def test_no_line_is_copied_for_each_point_of_a_batch(group, tmp_path):
    """But for eigenvectors, whose kernel takes one matrix, and LSTM, whose backward reads what a kernel
    keeps for one batch."""
    assert forward_check.Lines(group, tmp_path).copied() <= {"Eigh", "LSTM"}


def table(*shape):
    return Tensor(np.random.default_rng(sum(shape)).uniform(0.2, 1.2, shape))


def of_rank(x):
    """What counts axes, from both ends, of any rank."""
    out = ops.sin(x).sum() * (x * x).sum()
    if x.ndim > 0:
        for axis in (-1, 0, x.ndim // 2 - x.ndim):
            out = out + (ops.softmax(x * x, axis) * ops.cumsum(x, axis)).sum()
            out = (
                out
                + (ops.sum(ops.concat((x, x * x), axis), axis) ** 2).sum()
                + ops.amax(x * x, axis).sum()
            )
    return out


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 1, 3)] + [(1, 3), (3, 1, 2)] * FULL, ids=str)
def test_ranks_and_negative_axes(shape):
    """At one point and at several: forward is reverse."""
    x = table(*shape)
    expected = mh.laplacian(of_rank, mode="reverse")(x).asnumpy()
    np.testing.assert_allclose(
        mh.laplacian(of_rank, mode="forward")(x).asnumpy(), expected, rtol=1e-12
    )
    found = mh.laplacian(of_rank, in_axes=0, mode="forward")(ops.stack((x, x))).asnumpy()
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-12)


def scaled_second(name, x):
    """f'' by f'' of the function without its factor exp(-x) or exp(x)."""
    derivative = {"i": ivp, "k": kvp}[name[0]]
    value, first, second = (derivative(int(name[1]), x, n) for n in range(3))
    if name[2:] != "e":
        return second
    sign = {"i": -1, "k": 1}[name[0]]
    return np.exp(sign * x) * (value + 2 * sign * first + second)


SMOOTH = {
    **{name: POINTS[name] for name in ("sinc", "i0", "i1", "j0", "j1")},
    **{
        name: Point(getattr(ops, f"bessel_{name}"), ABOVE, partial(scaled_second, name), None)
        for name in ("i0e", "i1e", "k0", "k1", "k0e", "k1e")
    },
    "y0": Point(ops.bessel_y0, ABOVE, lambda x: yvp(0, x, 2), None),
    "y1": Point(ops.bessel_y1, ABOVE, lambda x: yvp(1, x, 2), None),
    "zeta": Point(lambda x: ops.zeta(EXPONENT, x), ABOVE, lambda x: 8.75 * zeta(4.5, x), None),
    "trigamma": Point(lambda x: ops.polygamma(FIRST, x), ABOVE, partial(polygamma, 3), None),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_special_functions_are_their_closed_forms(name):
    """Also at points where a slope has a removable singularity."""
    function, x, second, *_ = SMOOTH[name]
    found = mh.laplacian(function, in_axes=0, mode="forward")(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, second(x), rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not FULL, reason="all lines of the table have to run")
def test_every_forward_rule_was_used():
    unseen = set(registry.FORWARD_RULES) - forward.applied
    assert unseen <= WITHOUT_A_LINE, f"without a line: {sorted(unseen - WITHOUT_A_LINE)}"


# torch has no derivative of these; the last give places, which have none
WITHOUT_A_LINE = {
    *("BesselJ0", "BesselJ1", "BesselY0", "BesselY1", "BesselI0", "BesselI1"),
    *("BesselI0e", "BesselI1e", "BesselK0", "BesselK1", "BesselK0e", "BesselK1e"),
    *("FloorDiv", "FloorMod", "Mod", "TruncateMod", "Heaviside", "Xdivy", "MatrixSolve"),  # below
    *("AddN", "BatchToSpaceND", "SpaceToBatchND", "MatrixBandPart", "MatrixDiagV3"),
    *("ReverseSequence", "ScatterNd", "TensorScatterSub", "UnsortedSegmentSum"),
    *("Argmax", "Argmin", "ArgMaxExt"),
    *("UnsortedSegmentMax", "UnsortedSegmentMin", "TensorScatterElements"),  # below
    *("TensorScatterMul", "TensorScatterDiv", "TensorScatterMax", "TensorScatterMin"),  # below
    *("UnsortedSegmentProd", "Zeta", "Polygamma"),
    "MultilabelMarginLoss",  # without a kernel on CPU: see test_derivatives.py
    *("ResizeNearestNeighbor", "TensorCopySlices", "TensorScatterUpdate"),  # below
}


def by_list(x):
    """A list where MindSpore has tuples."""
    rows = []
    for power in range(1, 4):
        rows.append(x**power)
    return (ops.stack(rows) * ops.stack([x, x**2, x])).sum()


def test_lists_of_what_is_carried():
    x = table(3)
    found = mh.laplacian(by_list, mode="forward")(x).asnumpy()
    y = x.asnumpy()
    np.testing.assert_allclose(found, (2 + 12 * y**2 + 12 * y**2).sum(), rtol=1e-12)


SEGMENTS = Tensor([0, 1, 0, 1], ms.int32)
LARGEST = np.array([[3.0, 1.0], [0.5, 2.0], [2.0, 1.0], [0.7, 4.0]])  # 1.0 is there twice


@pytest.mark.parametrize(
    ("segments", "sign"), [(ops.unsorted_segment_max, 1), (ops.unsorted_segment_min, -1)]
)
def test_extremes_of_segments(segments, sign):
    """Of sum(y^3): 6 y, half of which goes to each of two equal ones, and so a quarter twice."""
    x = Tensor(sign * LARGEST)
    found = mh.laplacian(lambda x: (segments(x, SEGMENTS, 2) ** 3).sum(), mode="forward")(x)
    expected = 6 * sign * (3.0 + 1.0 / 2 + 0.7 + 4.0)
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=1e-12)


INDICES = Tensor([[0, 2], [1, 0]], ms.int32)


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_scatter_along_an_axis(reduction, axis):
    def fn(x):
        out = ops.tensor_scatter_elements(x**2, INDICES, x[:, :2] ** 3, axis, reduction)
        return (out * ops.arange(3)).sum()

    x = table(2, 3)
    y, weights = x.asnumpy(), np.arange(3) * np.ones((2, 3))
    kept, rows = weights.copy(), np.arange(2)[:, None]
    if reduction == "none":
        kept[rows, INDICES.asnumpy()] = 0
    expected = 2 * kept.sum() + (6 * y[:, :2] * weights[rows, INDICES.asnumpy()]).sum()
    found = mh.laplacian(fn, mode="forward")(x).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("lower", [True, False])
def test_eigenvalues_of_one_triangle(lower):
    """(a + c) / 2 +- r, r^2 = (a - c)^2 / 4 + b^2: the Laplacian of r by a, b, c is
    (1 / 2 + 1 - |r'|^2) / r, and the entry that is not read has no derivative."""
    x = np.array([[1.0, 0.7], [0.4, -0.5]])
    b = x[1, 0] if lower else x[0, 1]

    def fn(x):
        return eigh(x, lower=lower, eigvals_only=True)[1]

    half = (x[0, 0] - x[1, 1]) / 2
    r = np.hypot(half, b)
    slope = (half**2 / 2 + b**2) / r**2
    found = mh.laplacian(fn, mode="forward")(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, (1.5 - slope) / r, rtol=1e-12)
    many = mh.laplacian(fn, in_axes=0, mode="forward")(Tensor(np.stack((x, x)))).asnumpy()
    np.testing.assert_allclose(many, found, rtol=1e-12)


@pytest.mark.full_run
def test_a_full_basis_goes_by_reverse_derivatives():
    """The last column is any that completes the basis."""

    def fn(x):
        return ops.svd(x, full_matrices=True)[1][:, 2] ** 2 @ Tensor([1.0, 2.0, 3.0], ms.float64)

    x = table(3, 2)
    with pytest.raises(mh.MissingRuleError, match="Svd has no forward rule"):
        mh.laplacian(fn, mode="forward")(x)
    with pytest.warns(mh.FallbackWarning, match="Svd"):
        found = mh.laplacian(fn)(x).asnumpy()
    np.testing.assert_allclose(found, mh.laplacian(fn, mode="reverse")(x).asnumpy())


PLACES = Tensor([[0], [2], [2]], ms.int32)  # one of them twice
BY_NUMPY = {
    "Mul": np.multiply,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
}


def differences(function, x, step=1e-3):
    """The Laplacian, to order 4."""
    weights = {-2: -1, -1: 16, 0: -30, 1: 16, 2: -1}
    return sum(
        weight * function(x + shift * direction) / (12 * step**2)
        for direction in step * np.eye(len(x))
        for shift, weight in weights.items()
    )


@pytest.mark.parametrize("name", [*list(BY_NUMPY)[: 4 if FULL else 1]])
@pytest.mark.parametrize("of", ["x", *["updates", "both"] * FULL])
def test_a_scatter_that_is_not_linear(name, of):
    """By gradients of the primitive, against differences of values."""
    scatter, one = getattr(ops, f"TensorScatter{name}")(), np.array([0.7, -0.4, 1.2])
    fixed = Tensor(one)

    def fn(x):
        a = fixed if of == "updates" else x * x
        b = fixed if of == "x" else ops.sin(x)
        return (scatter(a, PLACES, b) ** 3).sum()

    def by_numpy(x):
        a = (one if of == "updates" else x * x).copy()
        b = one if of == "x" else np.sin(x)
        for place, value in zip((0, 2, 2), b, strict=True):
            a[place] = BY_NUMPY[name](a[place], value)
        return (a**3).sum()

    x = np.array([0.8, 1.3, 2.1])
    expected = differences(by_numpy, x)
    assert abs(expected) > 0.1
    found = mh.laplacian(fn, mode="forward")(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    many = mh.laplacian(fn, in_axes=0, mode="forward")(Tensor(np.stack((x, x)))).asnumpy()
    np.testing.assert_allclose(many, [found, found], rtol=1e-12)


@pytest.mark.full_run
def test_products_of_segments():
    """Of sum(p^2), p = x_0 x_1 and x_2: 2 x_0^2 + 2 x_1^2 + 2."""
    segments = Tensor([0, 0, 1], ms.int32)
    x = table(3)
    found = mh.laplacian(
        lambda x: (ops.unsorted_segment_prod(x, segments, 2) ** 2).sum(), mode="forward"
    )(x)
    np.testing.assert_allclose(found.asnumpy(), 2 * (x.asnumpy()[:2] ** 2).sum() + 2, rtol=1e-12)


def test_cross_entropy_of_what_is_certain():
    """p (1 - p) each, also where float32 makes p = 1; inside a graph nothing stands in for a NaN."""
    target = Tensor([0.0, 1.0, 1.0, 0.3], ms.float32)

    def fn(z):
        return ops.binary_cross_entropy(ops.sigmoid(z), target, None, "sum")

    z = Tensor([-1.0, 2.0, 30.0, 0.5], ms.float32)
    p = 1 / (1 + np.exp(-z.asnumpy().astype(float)))
    for lap in (mh.laplacian(fn, mode="forward"), jit(mh.laplacian(fn))):
        np.testing.assert_allclose(lap(z).asnumpy(), (p * (1 - p)).sum(), rtol=1e-5)


def by_slice(x):
    rows = ops.stack((x, x)) * 1.0
    rows[1, :] = x**3
    return (rows[0] * rows[1]).sum()


def by_scatter(x):
    rows = ops.tensor_scatter_update(ops.stack((x, x)), Tensor([[1]], ms.int32), (x**3)[None])
    return (rows[0] * rows[1]).sum()


@pytest.mark.parametrize("fn", [by_slice, by_scatter])
def test_what_is_assigned(fn):
    x = table(3)
    found = mh.laplacian(fn, mode="forward")(x).asnumpy()
    np.testing.assert_allclose(found, 12 * (x.asnumpy() ** 2).sum(), rtol=1e-12)


def test_a_batch_norm_with_given_statistics():
    norm = nn.BatchNorm1d(3, eps=0.1).set_train(False)
    given = np.array([[0.3, 1.2, -0.4], [0.01, 2.0, 0.5], [2.0, -0.5, 1.0], [0.1, 0.2, 0.3]])
    for parameter, value in zip(
        (norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta), given, strict=True
    ):
        parameter.set_data(Tensor(value.astype(np.float32)))
    mean, variance, gamma, beta = given
    x, slope = table(4, 3).asnumpy().astype(np.float32), gamma / np.sqrt(variance + 0.1)

    def fn(x):
        return ops.sin(norm(x)).sum(1)

    found = mh.laplacian(fn, in_axes=0, batched=True, mode="forward")(Tensor(x)).asnumpy()
    expected = -(slope**2 * np.sin(slope * (x - mean) + beta)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_a_resize_that_copies():
    def fn(x):
        return ops.ResizeNearestNeighbor((4, 4))(x**3).sum()

    x = table(1, 1, 2, 2).asnumpy().astype(np.float32)
    found = mh.laplacian(fn, mode="forward")(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, 4 * 6 * x.sum(), rtol=1e-5)


MATRIX = np.array([[2.0, 0.3, -0.4], [0.1, 1.5, 0.2], [0.3, -0.2, 1.8]])
FIXED = Tensor(MATRIX)
HALVES = Tensor([[0.75, -1.5, 0.65]], ms.float64)


def of_matrix(x):
    return FIXED + x.reshape(1, 3) * x.reshape(3, 1)


def floor_div(x):
    return ops.floor_div(7 * x, HALVES) * x


def floor_mod_by_what_is_fixed(x):
    return ops.floor_mod(7 * x * x, HALVES)


def floor_mod_of_what_is_fixed(x):
    return ops.floor_mod(7 * HALVES, x * x)


def truncate_mod(x):
    return ops.TruncateMod()(7 * x * x - 3, HALVES * (1 + 0.1 * x))


def python_s(x):
    return (7 * x * x - 3) % (HALVES * (1 + 0.1 * x))


def fmod(x):
    return ops.fmod(7 * x * x - 3, HALVES * (1 + 0.1 * x))


def rounded_quotient(x):
    return ops.div(7 * x, HALVES, rounding_mode="floor") * x * x


def heaviside(x):
    return ops.heaviside(x - 0.5, HALVES) * x**3


def xdivy(x):
    return ops.xdivy(x * x, 1 + x) + ops.xdivy(HALVES, x) + ops.xdivy(x * x, HALVES)


def addcmul(x):
    return ops.addcmul(x * x, x, HALVES, 0.3) + ops.addcmul(HALVES, x, x * x, 0.7)


def addcmul_of_one(x):
    return ops.addcmul(x**3, HALVES, HALVES, 2.0)


def addcdiv(x):
    return ops.addcdiv(x * x, HALVES, 1 + x, 0.3) + ops.addcdiv(HALVES, x, HALVES, 1.5)


def cdist(x):
    return ops.cdist(x * x, HALVES) + ops.cdist(HALVES, x) ** 2 + ops.cdist(x, x * x, 3.0)


def cumprod(x):
    return ops.CumProd(exclusive=True)(1 + x * x, 1)


def cumprod_backwards(x):
    return ops.CumProd(reverse=True)(1 + x * x, -1)


def cumprod_backwards_exclusive(x):
    return ops.CumProd(True, True)(1 + x * x, 1)


def products_over_axes(x):
    return ops.ReduceProd()(of_matrix(x)[None] + 1, (0, -1))


def product_of_all(x):
    return ops.ReduceProd(True)(of_matrix(x) / 2, ())


def logcumsumexp(x):
    return ops.logcumsumexp(of_matrix(x), -1)


def median(x):
    return ops.median(of_matrix(x), 0)[0] + ops.Median(True)(of_matrix(x))[0]


def matrix_solve(x):
    return ops.matrix_solve(of_matrix(x), x.reshape(3, 1) ** 2)


def matrix_solve_of_what_is_fixed(x):
    return ops.matrix_solve(FIXED, x.reshape(3, 1) ** 2)


def matrix_solve_by_what_is_fixed(x):
    return ops.matrix_solve(of_matrix(x), FIXED)


def matrix_solve_transposed(x):
    return MatrixSolve(True)(of_matrix(x), x.reshape(3, 1) ** 2)


def cholesky_solve_by_what_is_fixed(x):
    return ops.cholesky_solve(FIXED, of_matrix(x))


def cholesky_solve_of_what_is_fixed(x):
    return ops.cholesky_solve(x.reshape(3, 1) ** 2, FIXED)


def no_power(x):
    return ops.matrix_power(of_matrix(x), 0) * x**3


def trace(x):
    return of_matrix(x).trace(offset=1)


def segments(x):
    return ops.unsorted_segment_sum(of_matrix(x), Tensor([0, 1, 0], ms.int32), 2)


def added(x):
    return ops.addn([x * x, HALVES, x])


def blocks(x):
    rows = ops.stack((x * x, x, x**3, x + 1)).reshape(4, 1, 3, 1)
    return ops.space_to_batch_nd(
        ops.batch_to_space_nd(rows, [2, 2], [[0, 0], [0, 0]]), [1, 2], [[0, 0], [0, 0]]
    )


def band(x):
    return ops.matrix_band_part(of_matrix(x), 1, 0)


def diagonals(x):
    return ops.matrix_diag(x * x) + ops.matrix_set_diag(of_matrix(x), x[0] ** 3)


def fixed_with_a_diagonal(x):
    return ops.matrix_set_diag(FIXED[None], x**3)


def backwards(x):
    return ops.reverse_sequence(of_matrix(x), Tensor([2, 3, 1], ms.int32), 1)


def scattered(x):
    at = Tensor([[1], [0]], ms.int32)
    rows = ops.concat((x * x, x**3))
    return ops.scatter_nd(at, rows, (3, 3)) + ops.tensor_scatter_sub(of_matrix(x), at, rows)


def scattered_into_what_is_fixed(x):
    return ops.tensor_scatter_add(FIXED, Tensor([[1], [1]], ms.int32), ops.concat((x * x, x**3)))


MIXED = (
    floor_div,
    floor_mod_by_what_is_fixed,
    floor_mod_of_what_is_fixed,
    truncate_mod,
    python_s,
    fmod,
    rounded_quotient,
    heaviside,
    xdivy,
    addcmul,
    addcmul_of_one,
    addcdiv,
    cdist,
    cumprod,
    cumprod_backwards,
    cumprod_backwards_exclusive,
    products_over_axes,
    product_of_all,
    logcumsumexp,
    median,
    matrix_solve,
    matrix_solve_of_what_is_fixed,
    matrix_solve_by_what_is_fixed,
    matrix_solve_transposed,
    cholesky_solve_by_what_is_fixed,
    cholesky_solve_of_what_is_fixed,
    no_power,
    segments,
    added,
    blocks,
    band,
    diagonals,
    fixed_with_a_diagonal,
    backwards,
    scattered,
    scattered_into_what_is_fixed,
    trace,
)


def distances(x):
    """What `cdist` is, of numbers: MindSpore's kernel has float32's accuracy."""
    halves = HALVES.asnumpy()
    away = np.linalg.norm(x * x - halves), np.linalg.norm(halves - x)
    return np.array([[away[0] + away[1] ** 2 + np.linalg.norm(x - x * x, 3, 1)[0]]])


@pytest.mark.parametrize("mixed", MIXED, ids=lambda mixed: mixed.__name__)
def test_what_is_fixed_and_what_is_carried(mixed):
    """Second differences of sums of squares, where some inputs carry nothing; at one point and at
    several, where they all have batching rules."""

    def fn(x):
        y = mixed(x)
        return (y * y).sum()

    def value(x):
        y = distances(x) if mixed is cdist else mixed(Tensor(x)).asnumpy()
        return (y * y).sum()

    values = np.array([[0.37, 0.83, 1.21]])
    x, step, weights = Tensor(values), 5e-4, {-2: -1, -1: 16, 0: -30, 1: 16, 2: -1}
    expected = sum(
        weight * value(values + s * step * axis) / (12 * step**2)
        for s, weight in weights.items()
        for axis in np.eye(3)[:, None]
    )
    found = mh.laplacian(fn, mode="forward")(x).asnumpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    several = mh.laplacian(fn, in_axes=0, mode="forward")(ops.stack((x, x))).asnumpy()
    np.testing.assert_allclose(several, [found, found], rtol=1e-9)


def test_a_sum_over_no_entries():
    """MindSpore's own is memory that nobody has written."""

    def fn(x):
        rows = x[:0]
        return (
            rows.sum() + ops.ReduceSum()(rows, (0,)).sum() + (x**3).sum() + ops.sum(rows * x.sum())
        )

    x = table(4, 3)
    for _ in range(3):
        found = mh.laplacian(fn, mode="forward")(x).asnumpy()
        np.testing.assert_allclose(found, 6 * x.asnumpy().sum(), rtol=1e-12)


@jit
def doubled(x):
    return mh.laplacian(largest_distance)(x) * 2


def largest_distance(x):
    return (ops.cdist(x, HALVES[:, :2], float("inf")) ** 3).sum()


@pytest.mark.full_run
def test_distances_that_are_no_sum_of_powers_go_by_reverse_derivatives():
    """Also inside of a graph of the user's own."""
    x = Tensor([[0.3, 0.9], [1.0, -0.4]], ms.float64)
    with pytest.raises(mh.MissingRuleError, match="Cdist has no forward rule"):
        mh.laplacian(largest_distance, mode="forward")(x)
    away = np.abs(x.asnumpy() - HALVES.asnumpy()[:, :2]).max(1)  # y^3 has y'' = 6 y
    np.testing.assert_allclose(mh.laplacian(largest_distance)(x).asnumpy(), 6 * away.sum(), 1e-6)
    np.testing.assert_allclose(doubled(x).asnumpy(), 12 * away.sum(), 1e-6)
