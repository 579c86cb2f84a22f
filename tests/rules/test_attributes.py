"""Every attribute matters: a product that forgets an epsilon, a slope or a margin is seen, since
the row's input is where it shows."""

from __future__ import annotations

import numpy as np
import pytest
from attributes_table import ROWS
from mindspore import Tensor

import mindspore_hessian as mh
from mindspore_hessian import _compat

WIDE = np.longdouble
FIRST = ((-2, 1 / WIDE(12)), (-1, -8 / WIDE(12)), (1, 8 / WIDE(12)), (2, -1 / WIDE(12)))


def outputs(row, value):
    """The function and numbers to weigh its outputs with."""
    shape = np.shape(row.truth(row.x, value))
    return 1.5 + np.sin(1 + 1.3 * np.arange(int(np.prod(shape)))).reshape(shape)


def expected(row, value, v):
    """H v of the weighted sum of y + y^2 / 2 by differences of values, in 18 digits."""
    weight, x, h = outputs(row, value), row.x.astype(WIDE), WIDE(1e-4) * np.abs(row.x).max()

    def loss(x):
        y = row.truth(x, value)
        return (weight * (y + y * y / 2)).sum()

    out = np.zeros(x.shape, WIDE)
    for place in np.ndindex(x.shape):
        e = np.zeros(x.shape, WIDE)
        e[place] = 1
        out[place] = sum(
            a * b * loss(x + h * (i * e + j * v)) for i, a in FIRST for j, b in FIRST
        ) / (h * h)
    return out.astype(np.float64)


def product(row, v):
    f = row.make(row.value, row.dtype)
    weight = Tensor(outputs(row, row.value).astype(row.dtype))

    def loss(x):
        y = f(x)
        return (weight * (y + 0.5 * y * y)).sum()

    return (
        mh.hvp(loss, Tensor(row.x.astype(row.dtype)), Tensor(v.astype(row.dtype))).asnumpy().copy()
    )


@pytest.mark.filterwarnings("ignore::mindspore_hessian.RecompileWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_attribute_is_in_the_second_derivative(row):
    if row.since > _compat.MS_VERSION:
        pytest.skip(f"no kernel before MindSpore {'.'.join(map(str, row.since))}")
    v = np.cos(1 + np.arange(row.x.size)).reshape(row.x.shape)
    truth, without = expected(row, row.value, v), expected(row, row.other, v)
    largest = np.abs(truth).max()
    assert np.abs(truth - without).max() > 20 * row.tolerance * largest, "this row cannot fail"
    error = np.abs(product(row, v) - truth).max() / largest
    assert error < row.tolerance, f"relative error {error:.1e}"
