"""The table checks itself: values come from MindSpore's forward pass, derivatives from central
differences.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from scenarios import BY_NAME, SCENARIOS, cast, relative_error, select

EACH = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)


def central_difference(fn, inputs, position, step):
    """d fn / d inputs[position], shape out.shape + x.shape, with the error O(step²)."""
    columns = []
    for index in np.ndindex(inputs[position].shape):
        ends = []
        for sign in (1, -1):
            moved = inputs[position].copy()
            moved[index] += sign * step
            ends.append(
                np.asarray(fn(*inputs[:position], moved, *inputs[position + 1 :]), np.float64)
            )
        columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, -1).reshape(columns[0].shape + inputs[position].shape)


@EACH
def test_gradient_is_the_difference_of_the_value(scenario):
    compiled = ms.jit(scenario.fn)
    dtype = scenario.dtypes[-1]

    def value(*inputs):
        return compiled(*(ms.Tensor(x) for x in cast(inputs, dtype))).asnumpy().copy()

    inputs = scenario.example()
    gradient = scenario.gradient(*inputs)
    assert len(gradient) == len(scenario.positions)
    for position, expected in zip(scenario.positions, gradient, strict=True):
        found = central_difference(value, inputs, position, scenario.step)
        assert relative_error(found, expected) < 1e-6


@EACH
def test_hessian_is_the_difference_of_the_gradient(scenario):
    inputs = scenario.example()
    hessian = scenario.hessian(*inputs)
    assert len(hessian) == len(scenario.positions)
    for i, row in enumerate(hessian):
        assert len(row) == len(scenario.positions)
        for position, expected in zip(scenario.positions, row, strict=True):
            found = central_difference(
                lambda *xs, i=i: scenario.gradient(*xs)[i], inputs, position, 1e-5
            )
            assert relative_error(found, expected) < 1e-7


def test_hessians_are_symmetric():
    for scenario in SCENARIOS:
        inputs = scenario.example()
        hessian = scenario.hessian(*inputs)
        out_ndim = scenario.gradient(*inputs)[0].ndim - inputs[scenario.positions[0]].ndim
        for i, row in enumerate(hessian):
            for j, block in enumerate(row):
                n = inputs[scenario.positions[i]].ndim
                axes = [
                    *range(out_ndim),
                    *range(out_ndim + n, block.ndim),
                    *range(out_ndim, out_ndim + n),
                ]
                assert relative_error(np.asarray(block).transpose(axes), hessian[j][i]) < 1e-12, (
                    scenario.name
                )


def test_the_table_covers_what_it_promises():
    assert len(SCENARIOS) >= 40
    assert len(BY_NAME) == len(SCENARIOS), "two scenarios of one name"
    for tag in (
        "vector",
        "scalar-input",
        "multi-input",
        "integer-input",
        "zero",
        "unused",
        "convolution",
    ):
        assert select(tag), tag
    assert {s.example()[s.positions[0]].ndim for s in SCENARIOS} == {0, 1, 2, 3, 4}
    assert {
        s.gradient(*s.example())[0].ndim - s.example()[s.positions[0]].ndim for s in SCENARIOS
    } == {0, 1, 2}


def test_examples_are_repeatable():
    for scenario in SCENARIOS:
        for first, second in zip(scenario.example(), scenario.example(), strict=True):
            np.testing.assert_array_equal(first, second)
