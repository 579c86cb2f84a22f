"""The golden file belongs to the MindSpore networks, and its matrices are what they are called."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from operator_cases import DTYPES, GOLDEN, NAMES, TOLERANCE, cases, golden, load
from scenarios import relative_error

VARIANTS = [(name, dtype) for name in NAMES for dtype in DTYPES[name]]


@pytest.mark.parametrize(("name", "dtype"), VARIANTS)
def test_loss_and_gradient_are_golden(name, dtype):
    case, expected = load(name, dtype), golden(name)
    net = case.network()

    def loss(x, y):
        return case.loss_fn(net(**x) if isinstance(x, dict) else net(x), y)

    assert tuple(p.name for p in net.trainable_params()) == case.order
    assert {str(p.dtype).lower() for p in net.get_parameters()} == {dtype}
    value_and_gradient = ms.jit(ms.value_and_grad(loss, None, net.trainable_params()))
    samples = sum(len(y) for _, y in case.batches)
    risk, gradient = 0.0, np.zeros_like(expected["gradient"])
    for x, y in case.batches:
        share = len(y) / samples if case.reduction == "mean" else 1.0
        value, parts = value_and_gradient(x, y)
        risk += share * value.asnumpy()
        gradient += share * np.concatenate([part.asnumpy().ravel() for part in parts])
    assert relative_error(risk, expected["loss"]) < case.tolerance
    assert relative_error(gradient, expected["gradient"]) < case.tolerance


@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_what_they_are_called(name):
    expected = golden(name)
    matrices = {kind: expected[kind] for kind in ("hessian", "ggn", "fisher", "ef")}
    for matrix in matrices.values():
        assert matrix.shape == 2 * expected["gradient"].shape
        assert relative_error(matrix.T, matrix) < 1e-12
    for kind in ("ggn", "fisher", "ef"):
        spectrum = np.linalg.eigvalsh(matrices[kind])
        assert spectrum[0] > -1e-12 * spectrum[-1]
    assert relative_error(matrices["fisher"], matrices["ggn"]) < 1e-10
    linear = relative_error(matrices["hessian"], matrices["ggn"]) < 1e-10
    assert linear == name.startswith("linear"), "only a linear model's Hessian is its GGN"


def test_all_cases_load():
    assert [case.name for case in cases()] == list(NAMES)
    assert {case.dtype for case in cases("float64")} == {"float64"}
    assert {case.likelihood for case in cases()} == {"categorical", "gaussian", "bernoulli"}
    uneven = [case for case in cases() if len({len(y) for _, y in case.batches}) > 1]
    assert 2 * len(uneven) >= len(NAMES)
    with pytest.raises(ValueError, match="conv_bn_ce_mean can be float32"):
        load("conv_bn_ce_mean", "float64")


def test_the_golden_file_is_small():
    assert GOLDEN.stat().st_size < 1.5 * 2**20
    assert set(TOLERANCE) == {dtype for dtypes in DTYPES.values() for dtype in dtypes}
