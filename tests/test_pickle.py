"""Results can be pickled and copied: the numbers are equal, and nothing of the operator goes
along.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import mindspore_hessian as mh

NET = nn.Dense(3, 2)
OP = mh.HessianOperator(NET, nn.MSELoss(), (ops.ones((5, 3)), ops.zeros((5, 2))), progress=False)
MATRIX = np.diag(np.arange(1.0, 41))


def cube(x):
    return (x**3).sum()


def summed(x):
    return (NET(x) ** 2).sum()


POINT = Tensor(np.array([1.0, 2.0], np.float32))
RESULTS = {
    "EigshResult": lambda: mh.eigsh(OP, 2),
    "EigshResult of a matrix": lambda: mh.eigsh(MATRIX, 2),
    "EigshResult of a sum": lambda: mh.eigsh(OP + 0.1 * mh.Identity, 2),
    "Estimate": lambda: mh.trace(OP, max_products=16),
    "Estimate of a diagonal": lambda: mh.diagonal(MATRIX, max_products=16),
    "Estimate of a logarithm": lambda: mh.logdet(MATRIX, max_products=128),
    "SpectralDensity": lambda: mh.spectral_density(MATRIX, 2, 8),
    "ConditionNumber": lambda: mh.condition_number(MATRIX),
    "NegativeCurvature": lambda: mh.negative_curvature(-MATRIX),
    "Solution": lambda: mh.solve(MATRIX, np.ones(40)),
    "LayerReport": lambda: mh.layer_report(OP, 4),
    "Diagnosis": lambda: mh.diagnose(OP, 0.1),
    "Measurement": lambda: mh.CurvatureMonitor(
        OP, every=1, metrics=("sharpness", "trace", "density")
    ).measure(1, 0.1),
    "AuditReport": lambda: mh.audit(cube, POINT),
    "AuditReport of weights": lambda: mh.audit(
        summed, ops.ones((1, 3)), weights=NET.trainable_params()
    ),
    "HvpReport": lambda: mh.testing.check_hvp(cube, POINT),
    "HessianReport": lambda: mh.testing.check_hessian(cube, POINT),
    "Plan": lambda: OP.plan(),
    "CacheInfo": lambda: mh.cache_info(),
    "DeviceInfo": lambda: mh.device_info(),
}


def content(value):
    """What is equal where two results are."""
    if isinstance(value, ms.Tensor):
        return content(value.asnumpy())
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return type(value), {
            f.name: content(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name != "unflatten"
        }
    if isinstance(value, dict):
        return {key: content(item) for key, item in value.items()}
    return (
        [content(item) for item in value]
        if isinstance(value, tuple | list)
        else (type(value), repr(value))
    )


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_equal(name):
    found = RESULTS[name]()
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
        assert again is not found or isinstance(found, tuple)
        assert content(again) == content(found) and str(again) == str(found)


@pytest.mark.parametrize("dtype", [ms.float32, ms.float64, ms.float16, ms.bfloat16])
def test_the_vectors_of_a_pickled_result_have_the_structure_of_the_weights(dtype):
    class Own(mh.Operator):
        shape, dtype = (40, 40), np.dtype(np.float64)

        def columns(self, matrix):
            return MATRIX @ matrix

        def unflatten(self, flat):
            return Tensor(flat[:10].reshape(2, 5), kind), Tensor(flat[10:], kind)

    kind, Own.lock = dtype, open(__file__)  # noqa: SIM115 -- cannot be pickled
    found = mh.eigsh(Own(), 2)
    once = pickle.loads(pickle.dumps(found))
    for again in (once, pickle.loads(pickle.dumps(once)), copy.deepcopy(found)):
        assert [part.dtype for part in again.structured(1)] == [dtype] * 2
        assert content([t.astype(ms.float32) for t in again.structured(1)]) == content(
            [t.astype(ms.float32) for t in found.structured(1)]
        )
    Own.lock.close()


def test_a_structure_that_is_none_of_tensors_is_left_out():
    class Own(mh.Operator):
        shape, dtype = (40, 40), np.dtype(np.float64)

        def columns(self, matrix):
            return MATRIX @ matrix

        def unflatten(self, flat):
            return {"all": flat}

    found = mh.eigsh(Own(), 1)
    assert found.structured(0).keys() == {"all"}
    with pytest.raises(ValueError, match="has no structure: use vector"):
        pickle.loads(pickle.dumps(found)).structured(0)
