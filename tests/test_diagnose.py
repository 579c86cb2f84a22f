"""`diagnose` on quadratics with prescribed Hessians: what it says is true, and what it cannot know
it does not say.
"""

from __future__ import annotations

import dataclasses

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from spectra import dense

from mindspore_hessian import GGNOperator, HessianOperator, Operator
from mindspore_hessian.tools.diagnose import diagnose


class Quadratic(Operator):
    """w^T A w / 2 at the point w."""

    def __init__(self, matrix, w=None):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, np.dtype(np.float64)
        self.w = np.zeros(len(matrix)) if w is None else w

    def columns(self, matrix):
        return self.matrix @ matrix

    def gradient_and_loss(self):
        return self.matrix @ self.w, float(self.w @ self.matrix @ self.w) / 2


POSITIVE = np.linspace(0.5, 8.0, 60)
SADDLE = np.concatenate([[-0.3], POSITIVE])


def said(found, word):
    return [one for one in found.statements if one.startswith(word)]


def test_a_minimum():
    matrix = dense(POSITIVE)
    found = diagnose(Quadratic(matrix), 0.1, progress=False)
    assert found.point == "minimum" and found.stability == "stable"
    assert found.gradient_norm == found.loss == 0 and found.threshold == 20
    assert found.sharpness == pytest.approx(8.0, rel=1e-4) and found.sharpness_converged
    assert found.condition.resolved and found.condition.value == pytest.approx(16, rel=2e-3)
    assert not found.negative_curvature.found and found.negative_curvature.value == pytest.approx(
        0.5, rel=1e-2
    )
    assert "Point: a minimum." in found.statements and "no proof" in str(found)
    assert str(found).splitlines() == list(found.statements)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.point = "saddle"


def test_a_saddle_with_its_certificate():
    matrix = dense(SADDLE)
    found = diagnose(Quadratic(matrix), 0.1, progress=False)
    assert found.point == "saddle" and "Point: a saddle." in found.statements
    v = found.negative_curvature.vector
    assert np.linalg.norm(v) == pytest.approx(1) and v @ matrix @ v == pytest.approx(
        found.negative_curvature.value
    )
    assert found.negative_curvature.value == pytest.approx(-0.3, rel=1e-2)


def test_a_maximum():
    found = diagnose(Quadratic(dense(-POSITIVE)), 0.1, progress=False)
    assert found.point == "maximum" and found.stability == "unknown"
    assert said(found, "Stability")[0].startswith(
        "Stability: cannot be concluded. No curvature is positive"
    )


@pytest.mark.parametrize("smallest", [1e-4, -1e-4])
def test_the_sign_of_a_small_eigenvalue(smallest):
    """It lies below the tolerance of the sharpness; the search for negative curvature is as fine as
    it needs.
    """
    found = diagnose(
        Quadratic(dense(np.concatenate([[smallest], np.linspace(1.0, 8.0, 60)]))), progress=False
    )
    assert found.point == ("minimum" if smallest > 0 else "saddle")
    assert found.condition.value == pytest.approx(8e4, rel=1e-2)


@pytest.mark.parametrize(
    ("ratio", "stability"),
    [
        (0.3, "stable"),
        (0.94, "stable"),
        (0.97, "edge"),
        (1.04, "edge"),
        (1.06, "unstable"),
        (3.0, "unstable"),
    ],
)
def test_the_edge_of_stability(ratio, stability):
    found = diagnose(Quadratic(dense(POSITIVE)), ratio * 2 / 8, progress=False)
    assert found.stability == stability and found.sharpness / found.threshold == pytest.approx(
        ratio, rel=1e-4
    )


def test_unstable_is_what_gradient_descent_does():
    matrix, w = dense(POSITIVE), np.ones(60)
    for rate, grows in ((0.245, False), (0.27, True)):
        step = w.copy()
        for _ in range(500):
            step = step - rate * matrix @ step
        assert (np.linalg.norm(step) > np.linalg.norm(w)) == grows
        assert (diagnose(Quadratic(matrix), rate, progress=False).stability == "unstable") == grows


def test_a_singular_hessian_decides_nothing():
    found = diagnose(Quadratic(dense(np.concatenate([np.zeros(3), POSITIVE]))), 0.1, progress=False)
    assert (
        found.point == "unknown"
        and not found.condition.resolved
        and found.condition.stopped_by == "singular"
    )
    assert "Point: cannot be concluded." in found.statements
    assert "higher derivatives decide" in said(found, "Curvature")[0]
    assert "singular" in said(found, "Condition")[0] and "at least" in said(found, "Condition")[0]


def test_zero_everywhere():
    found = diagnose(Quadratic(np.zeros((40, 40))), 0.1, progress=False)
    assert found.point == found.stability == "unknown"


def test_a_small_budget_is_admitted():
    op = Quadratic(
        dense(np.concatenate([10.0 ** np.linspace(-6, 0, 300), np.linspace(1, 1.1, 300)]))
    )
    found = diagnose(op, 1.0, max_products=10, tol=1e-6, progress=False)
    assert found.point == found.stability == "unknown" and found.num_products <= 30
    assert not found.sharpness_converged and not found.condition.resolved
    for start in ("Sharpness", "Stability", "Curvature", "Condition", "Point"):
        assert "cannot be concluded" in said(found, start)[0]
    assert found.condition.value <= 1.1e6 and found.sharpness <= 1.1


def test_unconverged_above_the_edge_is_still_proved():
    op = Quadratic(dense(np.linspace(1, 1.1, 600)))
    found = diagnose(op, 4.0, max_products=10, tol=1e-8, progress=False)
    assert not found.sharpness_converged and found.stability == "unstable"


def test_on_the_way():
    matrix = dense(SADDLE)
    found = diagnose(Quadratic(matrix, np.ones(61)), progress=False)
    assert found.point == "not stationary"
    assert found.gradient_norm == pytest.approx(np.linalg.norm(matrix @ np.ones(61)))
    assert found.stability == "unknown" and found.threshold is None
    assert (
        diagnose(Quadratic(matrix, np.ones(61)), gradient_tol=1e3, progress=False).point == "saddle"
    )


def test_the_gradient_may_be_given_or_unknown():
    matrix = dense(POSITIVE)
    unknown = diagnose(matrix, 0.1, progress=False)
    assert unknown.point == "unknown" and unknown.gradient_norm is None and unknown.loss is None
    assert "with a zero gradient it is a minimum" in said(unknown, "Point")[0]
    assert diagnose(matrix, gradient=np.zeros(60), progress=False).point == "minimum"
    assert diagnose(
        matrix, gradient=np.full(60, 0.1), progress=False
    ).gradient_norm == pytest.approx(np.sqrt(0.6))


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate"),
        ({"gradient": np.zeros(2)}, ValueError, "gradient"),
        ({"gradient_tol": -1.0}, ValueError, "gradient_tol"),
        ({"max_products": 3}, ValueError, "max_products"),
        ({"tol": 0.0}, ValueError, "tol"),
    ],
)
def test_refusals(arguments, error, word):
    with pytest.raises(error, match=word):
        diagnose(Quadratic(np.eye(3)), **arguments)


def problem():
    net = nn.Dense(3, 2, weight_init="ones", has_bias=False)
    x, y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.ones((4, 2), np.float32)
    return net, nn.MSELoss(), (ms.Tensor(x), ms.Tensor(y))


def test_a_network():
    """The loss is mean((W x - 1)^2) at W = 1: the minimum, with eigenvalues 2 (1, 1, 2) / 8."""
    op = HessianOperator(*problem())
    found = diagnose(op, 1.0)
    assert found.point == "minimum" and found.stability == "stable" and found.loss == 0
    assert found.sharpness == pytest.approx(
        0.5, rel=1e-4
    ) and found.condition.value == pytest.approx(2, rel=1e-3)
    assert "the 4 samples and the 6 weights" in str(found)
    slope = diagnose(op, gradient=[ms.Tensor(np.full((2, 3), 0.5, np.float32))])
    assert slope.gradient_norm == pytest.approx(np.sqrt(1.5))


def test_what_other_operators_leave_out():
    zero = {"gradient": np.zeros(6), "progress": False}
    ggn = GGNOperator(*problem(), check_deterministic=False)
    for op in (ggn, 2 * ggn):
        found = diagnose(op, 1.0, **zero)
        assert found.point == "unknown" and "GGNOperator is not the Hessian" in str(found)
    blocks = HessianOperator(*problem(), block_diagonal="layer", check_deterministic=False)
    found = diagnose(blocks, 1.0, **zero)
    assert found.point == found.stability == "unknown" and "diagonal blocks by layer" in str(found)
    assert diagnose(blocks, 100.0, **zero).stability == "unstable"


def test_a_network_in_training_mode_is_named():
    net = nn.SequentialCell(nn.Dense(3, 2), nn.Dropout(p=0.0)).set_train()
    op = HessianOperator(net, *problem()[1:], check_deterministic=False)
    assert "Limits: 1 in training mode" in str(diagnose(op, gradient=np.zeros(8), progress=False))
