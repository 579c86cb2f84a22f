"""Operators against the dense matrices of torch and curvlinops (ci/golden/make_operators.py)."""

from __future__ import annotations

import numpy as np
import pytest
from full import FULL, some
from operator_cases import DTYPES, NAMES, golden, load
from scenarios import relative_error

import mindspore_hessian as mh
from mindspore_hessian.operators import risk

#: what the float32 networks of operator_cases reach in their gradients, and once more for the second derivative
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}
KINDS = {
    "hessian": mh.HessianOperator,
    "ggn": mh.GGNOperator,
    "fisher": mh.FisherOperator,
    "ef": mh.EmpiricalFisherOperator,
}
FINEST = [(name, DTYPES[name][-1]) for name in NAMES]
#: in the default run every operator of one network; of the others the four kinds take turns
TURNS = [
    (name, dtype, kind)
    for number, (name, dtype) in enumerate(FINEST)
    for turn, kind in enumerate(KINDS)
    if FULL or name == "mlp_mse_mean" or number % 4 == turn
]


@pytest.mark.parametrize(("name", "dtype", "kind"), TURNS)
def test_products_are_golden(name, dtype, kind):
    """Two random vectors: a wrong matrix would have to be wrong on a subspace that misses both."""
    case, expected = load(name, dtype), golden(name)
    op = KINDS[kind](case.network(), case.loss_fn, case.batches, check_deterministic=False)
    assert op.reduction == case.reduction
    assert op.dtype == dtype
    for vector in np.random.default_rng(1).standard_normal((2, op.shape[0])):
        assert relative_error(op @ vector, expected[kind] @ vector) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", some(KINDS, every=2))
def test_products_of_a_tensor_for_each_weight_are_golden(kind, monkeypatch):
    """As large weights go in and out."""
    monkeypatch.setattr(risk, "LARGE", 0)
    test_products_are_golden(*FINEST[0], kind)


@pytest.mark.parametrize(("name", "dtype"), some(FINEST, lambda case: case[0] == "mlp_mse_mean"))
@pytest.mark.parametrize("kind", KINDS)
def test_dense_matrices_are_golden(kind, name, dtype):
    """From products of many columns at once."""
    case, expected = load(name, dtype), golden(name)
    op = KINDS[kind](
        case.network(), case.loss_fn, case.batches, check_deterministic=False, chunk_size=64
    )
    assert relative_error(op.to_dense(), expected[kind]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", some(["mlp_ce_mean", "lstm_mse_mean"], every=2))
@pytest.mark.parametrize("kind", ["ggn", "hessian", "fisher", "ef"])
def test_float32_and_mindspores_own_losses(kind, name):
    case, expected = load(name, "float32"), golden(name)
    op = KINDS[kind](
        case.network(), case.loss_fn, case.batches, check_deterministic=kind == "hessian"
    )
    vector = np.random.default_rng(1).standard_normal(op.shape[0])
    assert relative_error(op @ vector, expected[kind] @ vector) < TOLERANCE["float32"]
    slope, value = op.gradient_and_loss()
    assert relative_error(op.flatten(slope), expected["gradient"]) < TOLERANCE["float32"]
    assert relative_error(np.array(value), expected["loss"]) < TOLERANCE["float32"]
