"""Every scenario through `hessian`, `hessian_diag` and `laplacian`, against its closed form.

The default run takes mode "auto" in float64 for every second scenario and in float32 for every
tenth, and the four explicit compositions for every 48th. In the full run (ci/full.sh) every one
goes through every mode and dtype.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL, some
from scenarios import SCENARIOS, cast, relative_error

from mindspore_hessian import (
    MissingRuleError,
    hessian,
    hessian_diag,
    laplacian,
    value_grad_and_hessian,
)

SCALAR = [s for s in SCENARIOS if "vector" not in s.tags]
MODES = ("fwdfwd", "fwdrev", "revfwd", "revrev")
AUTO = [
    pytest.param(s, dtype, id=f"{s.name}-{dtype}")
    for number, s in enumerate(some(SCENARIOS, every=2))
    for dtype in (s.dtypes if FULL or number % 5 == 0 else s.dtypes[-1:])
]
EXPLICIT = [
    pytest.param(s, dtype, mode, id=f"{s.name}-{mode}-{dtype}")
    for number, s in enumerate(SCENARIOS)
    if FULL or number % 48 == 3
    for mode in MODES
    for dtype in (s.dtypes if FULL else s.dtypes[-1:])
]
#: scenarios for which an outer forward derivative loses a term in MindSpore, so that it must refuse
LOSES_A_TERM = {"branch": MODES}


def problem(scenario, dtype):
    inputs = cast(scenario.example(), dtype)
    exact = tuple(
        np.asarray(x, np.float64) if np.asarray(x).dtype.kind == "f" else x for x in inputs
    )
    return tuple(map(ms.Tensor, inputs)), scenario.hessian(*exact)


def agree(scenario, dtype, got, expected):
    scale = max(np.abs(block).max(initial=0) for row in expected for block in row) or 1.0
    for row, wanted in zip(got, expected, strict=True):
        for block, want in zip(row, wanted, strict=True):
            assert str(block.dtype).lower() == dtype
            assert block.shape == np.shape(want)
            error = np.abs(block.asnumpy() - want).max(initial=0) / scale
            assert error <= scenario.tolerance[dtype], f"{scenario.name}: off by {error:.1e}"


@pytest.mark.parametrize(("scenario", "dtype"), AUTO)
@pytest.mark.filterwarnings("ignore::mindspore_hessian.FallbackWarning")
def test_hessian_is_the_closed_form(scenario, dtype):
    xs, expected = problem(scenario, dtype)
    agree(scenario, dtype, hessian(scenario.fn, scenario.positions)(*xs), expected)


@pytest.mark.parametrize(("scenario", "dtype", "mode"), EXPLICIT)
def test_every_composition_is_the_closed_form_or_refused(scenario, dtype, mode):
    xs, expected = problem(scenario, dtype)
    transform = hessian(scenario.fn, scenario.positions, mode=mode)
    if mode in LOSES_A_TERM.get(scenario.name, ()):
        with pytest.raises((MissingRuleError, TypeError, ValueError)):
            transform(*xs)
        return
    agree(scenario, dtype, transform(*xs), expected)


@pytest.mark.parametrize("scenario", some(SCALAR[1::9], every=2), ids=lambda s: s.name)
@pytest.mark.filterwarnings("ignore::mindspore_hessian.FallbackWarning")
def test_chunks_diagonal_laplacian_and_value(scenario):
    dtype = scenario.dtypes[-1]
    xs, expected = problem(scenario, dtype)
    agree(scenario, dtype, hessian(scenario.fn, scenario.positions, chunk_size=2)(*xs), expected)

    sizes = [np.size(xs[p].asnumpy()) for p in scenario.positions]
    diagonals = [
        np.diag(row[i].reshape(n, n))
        for i, (row, n) in enumerate(zip(expected, sizes, strict=True))
    ]
    scale = max(np.abs(d).max() for d in diagonals) or 1.0
    got = hessian_diag(scenario.fn, scenario.positions)(*xs)
    for part, want in zip(got, diagonals, strict=True):
        assert np.abs(part.asnumpy().reshape(-1) - want).max() <= scenario.tolerance[dtype] * scale
    trace = sum(d.sum() for d in diagonals)
    assert abs(float(laplacian(scenario.fn, scenario.positions)(*xs)) - trace) <= (
        scenario.tolerance[dtype] * scale * sum(sizes)
    )

    value, gradient, matrix = value_grad_and_hessian(scenario.fn, scenario.positions)(*xs)
    agree(scenario, dtype, matrix, expected)
    for part, want in zip(
        gradient, scenario.gradient(*cast(scenario.example(), "float64")), strict=True
    ):
        assert relative_error(part.asnumpy(), want) <= max(scenario.tolerance[dtype], 1e-6)
    assert value.shape == ()
