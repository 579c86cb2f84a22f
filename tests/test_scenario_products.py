"""Every scenario through the products, in both modes and dtypes, against its closed form.

The default run takes float32 for every third one, and mode "fwdrev" for every second one in float64
alone.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL, some
from scenarios import SCENARIOS, cast, relative_error

from mindspore_hessian import MissingRuleError, curvature, grad_and_hvp, hvp

SCALAR = [s for s in SCENARIOS if "vector" not in s.tags]
CASES = [
    pytest.param(s, dtype, id=f"{s.name}-{dtype}")
    for number, s in enumerate(SCALAR)
    for dtype in (s.dtypes if FULL or number % 3 == 0 else s.dtypes[-1:])
]
#: scenarios for which MindSpore's jvp(grad) loses a term, so that mode="fwdrev" must refuse
LOSES_A_TERM = {"branch"}
FORWARD = [
    pytest.param(s, dtype, id=f"{s.name}-{dtype}")
    for s in some(SCALAR, lambda s: s.name in LOSES_A_TERM, 2)
    for dtype in (s.dtypes if FULL else s.dtypes[-1:])
]


def problem(scenario, dtype, seed=1):
    """The inputs as Tensors, vectors for the differentiated ones, and H v in closed form
    (float64).
    """
    inputs = cast(scenario.example(), dtype)
    rng = np.random.default_rng(seed)
    vectors = [
        np.asarray(rng.normal(size=np.shape(inputs[p]))).astype(dtype) for p in scenario.positions
    ]
    exact = tuple(
        np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x for x in inputs
    )
    blocks = scenario.hessian(*exact)
    products = [
        sum(
            np.tensordot(block, np.asarray(v, np.float64), axes=np.ndim(v))
            for block, v in zip(row, vectors, strict=True)
        )
        for row in blocks
    ]
    return (
        tuple(map(ms.Tensor, inputs)),
        tuple(map(ms.Tensor, vectors)),
        products,
        scenario.gradient(*exact),
    )


def agree(scenario, dtype, got, expected):
    scale = max(np.abs(e).max(initial=0) for e in expected)
    for a, e in zip(got, expected, strict=True):
        assert str(a.dtype).lower() == dtype
        error = np.abs(a.asnumpy() - e).max(initial=0) if scale else relative_error(a.asnumpy(), e)
        assert error <= scenario.tolerance[dtype] * (scale or 1), (
            f"{scenario.name}: off by {error:.1e} of {scale:.1e}"
        )


@pytest.mark.parametrize(("scenario", "dtype"), CASES)
def test_hvp_is_the_closed_form(scenario, dtype):
    xs, vs, expected, _ = problem(scenario, dtype)
    agree(scenario, dtype, hvp(scenario.fn, xs, vs, grad_position=scenario.positions), expected)


@pytest.mark.parametrize(("scenario", "dtype"), FORWARD)
def test_forward_over_reverse_is_the_closed_form_or_refused(scenario, dtype):
    xs, vs, expected, _ = problem(scenario, dtype)
    if scenario.name in LOSES_A_TERM:
        with pytest.raises(MissingRuleError, match="loses a term"):
            hvp(scenario.fn, xs, vs, grad_position=scenario.positions, mode="fwdrev")
        return
    agree(
        scenario,
        dtype,
        hvp(scenario.fn, xs, vs, grad_position=scenario.positions, mode="fwdrev"),
        expected,
    )


@pytest.mark.parametrize("scenario", SCALAR[::4], ids=lambda s: s.name)
def test_gradient_and_curvature_come_along(scenario):
    dtype = scenario.dtypes[-1]
    xs, vs, expected, slope = problem(scenario, dtype)
    gradient, product = grad_and_hvp(scenario.fn, xs, vs, grad_position=scenario.positions)
    agree(scenario, dtype, product, expected)
    agree(scenario, dtype, gradient, slope)
    flat = [v.asnumpy().astype(np.float64) for v in vs]
    quotient = sum((v * e).sum() for v, e in zip(flat, expected, strict=True)) / sum(
        (v * v).sum() for v in flat
    )
    got = float(curvature(scenario.fn, xs, vs, grad_position=scenario.positions))
    size = max(np.abs(e).max(initial=0) for e in expected) or 1.0
    assert abs(got - quotient) <= 10 * scenario.tolerance[dtype] * size
