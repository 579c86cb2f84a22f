"""Forward rules against torch: lines of the table in calls/, in float64, in one forward pass along
three directions.
"""

from __future__ import annotations

from pathlib import Path

import calls
import forward_check
import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Tensor, nn, ops
from scipy.special import yvp
from special_points import POINTS, Point

import mindspore_hessian as mh
from mindspore_hessian.rules import forward, registry

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.RecompileWarning")
CALLS = {call.line: call for call in calls.calls()}
LINES = [
    CALLS[line] for line in (Path(__file__).parent / "forward_lines.txt").read_text().splitlines()
]
ABOVE = np.array([0.1, 0.7, 3.0, 12.0])
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
    assert not forward_check.Lines(group, tmp_path).copied()


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


SMOOTH = {
    **{name: POINTS[name] for name in ("sinc", "i0", "i1", "j0", "j1")},
    "y0": Point(ops.bessel_y0, ABOVE, lambda x: yvp(0, x, 2), None),
    "y1": Point(ops.bessel_y1, ABOVE, lambda x: yvp(1, x, 2), None),
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
    *("Argmax", "Argmin", "ArgMaxExt"),
    *("BatchNorm", "ResizeNearestNeighbor", "TensorCopySlices", "TensorScatterUpdate"),  # below
}


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
