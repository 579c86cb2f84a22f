"""The golden file belongs to the MindSpore networks: same loss and same first derivatives."""

from __future__ import annotations

import mindspore as ms
import pytest
from networks import FLOAT64, GOLDEN, NETWORKS, load
from scenarios import relative_error

CASES = [(name, "float32") for name in NETWORKS] + [(name, "float64") for name in FLOAT64]
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_loss_and_gradient_are_golden(name, dtype):
    net, loss_fn, inputs, expected = load(name, dtype)

    value_and_gradients = ms.jit(ms.value_and_grad(loss_fn, 0, net.trainable_params()))
    loss, (gradient_x, gradient_w) = value_and_gradients(*inputs)
    found_weights = zip(gradient_w, expected.gradient_w, strict=True)
    for found, golden in [(loss, expected.loss), (gradient_x, expected.gradient_x), *found_weights]:
        assert relative_error(found.asnumpy(), golden) < TOLERANCE[dtype]


def test_the_golden_file_is_small():
    assert GOLDEN.stat().st_size < 2**20
