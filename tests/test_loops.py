"""Loops and branches over Tensors, which MindSpore compiles in one of two ways, against the same
loop in Python.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.FallbackWarning")
W = Parameter(Tensor([1.0, 2.0], ms.float64), name="w")
RTOL = 1e-6  # MindSpore takes derivatives through a loop over a Tensor in float32
X, V = Tensor([0.3, -0.6], ms.float64), Tensor([1.0, 2.0], ms.float64)


def step(x):
    return ops.sin(x) * W + 0.5 * x * x


def three_steps(x):
    for _ in range(3):
        x = step(x)
    return x.sum()


def counted(x):
    i = Tensor(0, ms.int64)
    while i < 3:
        x = step(x)
        i = i + 1
    return x.sum()


def left_by_break(x):
    i = Tensor(0, ms.int64)
    while i < 10:
        x = step(x)
        i = i + 1
        if i == 3:
            break
    return x.sum()


def by_value(x):
    while x.sum() < 100.0:
        x = 3.0 * x * x + 1.0
    return x.sum()


def by_value_known(x):
    for _ in range(3):
        x = 3.0 * x * x + 1.0
    return x.sum()


def nested(x):
    i = Tensor(0, ms.int64)
    while i < 2:
        j = Tensor(0, ms.int64)
        while j < 2:
            x = ops.sin(x) * W
            j = j + 1
        if i > 0:
            x = x * x + 0.5
        i = i + 1
    return x.sum()


def nested_known(x):
    for i in range(2):
        for _ in range(2):
            x = ops.sin(x) * W
        if i > 0:
            x = x * x + 0.5
    return x.sum()


def over_a_tensor(x):
    for t in ops.arange(3):
        x = step(x) + t
    return x.sum()


def over_a_tensor_known(x):
    for t in range(3):
        x = step(x) + t
    return x.sum()


def more(carried):
    return carried[0] < 3


def turn(carried):
    return [carried[0] + 1, ops.sin(carried[1]) + 0.5 * carried[1] * carried[1]]


def operator_while(x):
    return ops.WhileLoop()(more, turn, [Tensor(0, ms.int64), x])[1].sum()


def operator_known(x):
    for _ in range(3):
        x = ops.sin(x) + 0.5 * x * x
    return x.sum()


LOOPS = {
    counted: three_steps,
    left_by_break: three_steps,
    by_value: by_value_known,
    nested: nested_known,
    over_a_tensor: over_a_tensor_known,
    operator_while: operator_known,
}


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_products_of_a_loop(loop):
    expected = mh.hvp(LOOPS[loop], X, V).asnumpy()
    try:
        found = mh.hvp(loop, X, V).asnumpy()
    except mh.NotCompilableError as err:
        assert loop is operator_while  # of float64: EnvironGet of float32, without a cast
        assert "for i in range(3)" in str(err)
    else:
        np.testing.assert_allclose(found, expected, rtol=RTOL)


@pytest.mark.full_run
def test_everything_of_a_loop_and_weights_that_change():
    close = np.testing.assert_allclose
    close(mh.hessian(counted)(X).asnumpy(), mh.hessian(three_steps)(X).asnumpy(), rtol=RTOL)
    before = W.asnumpy().copy()
    try:
        for value in (
            before,
            before * 0.7,
            before + 0.1,
        ):  # as a checkpoint is loaded: a new buffer
            W.set_data(Tensor(value))
            close(mh.hvp(counted, X, V).asnumpy(), mh.hvp(three_steps, X, V).asnumpy(), rtol=RTOL)
            close(
                mh.hvp(counted, X, V, weights=W).asnumpy(),
                mh.hvp(three_steps, X, V, weights=W).asnumpy(),
                rtol=RTOL,
            )
            ops.assign(W, Tensor(value * 1.1))  # as an optimizer does: the same buffer
            close(mh.hvp(counted, X, V).asnumpy(), mh.hvp(three_steps, X, V).asnumpy(), rtol=RTOL)
    finally:
        W.set_data(Tensor(before))


def branched(x):
    if x.sum() > 0:
        return (x**3).sum()
    return (x**3 * W).sum()


def test_a_branch_reads_weights_that_were_set_anew():
    before = W.asnumpy().copy()
    try:
        for value in (before, before * 0.7):
            W.set_data(Tensor(value))
            want = 6 * X.asnumpy() * V.asnumpy() * value
            np.testing.assert_allclose(mh.hvp(branched, X, V).asnumpy(), want, rtol=1e-6)
    finally:
        W.set_data(Tensor(before))


class Recurrent(nn.Cell):
    """The state is fed back as often as the Tensor `turns` says, or three times."""

    def __init__(self, turns):
        super().__init__()
        self.mix = Parameter(Tensor([[0.4, -0.3], [0.2, 0.5]], ms.float64), name="mix")
        self.turns = turns

    def construct(self, x):
        if self.turns is None:
            for _ in range(3):
                x = ops.sin(ops.matmul(x, self.mix)) + x
            return x
        i = Tensor(0, ms.int64)
        while i < self.turns:
            x = ops.sin(ops.matmul(x, self.mix)) + x
            i = i + 1
        return x


def squares(out, y):
    return ((out - y) ** 2).sum()


@pytest.mark.parametrize("operator", [mh.HessianOperator, mh.GGNOperator])
def test_operators_of_a_network_with_a_loop(operator):
    rng = np.random.default_rng(0)
    batch = tuple(Tensor(rng.standard_normal((3, 2))) for _ in range(2))
    looped, known = (
        operator(
            Recurrent(turns),
            squares,
            batch,
            reduction="sum",
            check_deterministic=False,
            progress=False,
        )
        for turns in (Tensor(3, ms.int64), None)
    )
    v = rng.standard_normal(4)
    np.testing.assert_allclose(looped @ v, known @ v, rtol=RTOL)


def carry(i, x):
    return ops.sin(x) * W


def for_i_loop(x):
    return ops.ForiLoop()(0, 3, carry, x).sum()


def test_a_loop_that_mindspore_cannot_differentiate_twice_is_refused_with_the_way_out():
    try:
        got = mh.hvp(for_i_loop, X, V)
    except mh.NotCompilableError as err:
        assert "for i in range(3)" in str(err)
        assert len(str(err)) < 600
    else:

        def known(x):
            for i in range(3):
                x = carry(i, x)
            return x.sum()

        np.testing.assert_allclose(got.asnumpy(), mh.hvp(known, X, V).asnumpy(), rtol=1e-9)


# --- modes: right functions are not refused -------------------------------------------------------


def smooth(x):
    return (ops.sin(x) * x[::1]).sum() + (x[0] * x[1]) ** 2


def cancelled(x):
    """Linear but for rounding."""
    return ((x + 1.0) ** 2 - x * x - 2.0 * x).sum() + (3.0 * x).sum()


def mixed(x):
    """One entry's second derivative is rounding beside the other's."""
    return (x[0] * 100.0) ** 3 + ((x[1] + 1.0) ** 2 - x[1] * x[1] - 2.0 * x[1])


def with_aux(x):
    return (x**3).sum(), x * 2


MODES = ("auto", "revrev", "fwdrev")


@pytest.mark.parametrize("function", [smooth, cancelled, mixed])
def test_modes_agree_on_right_functions(function):
    x, v = X.astype(ms.float32), V.astype(ms.float32)
    hessian = mh.hessian(function)(X).asnumpy()
    image, direction = hessian @ V.asnumpy(), V.asnumpy()
    for mode in MODES:
        gradient, product = mh.grad_and_hvp(function, x, v, mode=mode)
        scale = max(np.abs(image).max(), 1.0)
        np.testing.assert_allclose(product.asnumpy(), image, atol=1e-4 * scale)
        np.testing.assert_allclose(
            gradient.asnumpy(), ms.grad(function)(X).asnumpy(), rtol=1e-3, atol=1e-12
        )
        np.testing.assert_allclose(
            mh.hvp(function, x, v, mode=mode).asnumpy(), image, atol=1e-4 * scale
        )
        got = float(mh.curvature(function, x, v, mode=mode))
        np.testing.assert_allclose(
            got, image @ direction / (direction @ direction), atol=1e-4 * scale
        )


@pytest.mark.full_run
def test_modes_with_aux_and_weights():
    for mode in MODES:
        (gradient, product), extra = mh.grad_and_hvp(with_aux, X, V, has_aux=True, mode=mode)
        np.testing.assert_allclose(gradient.asnumpy(), 3 * X.asnumpy() ** 2)
        np.testing.assert_allclose(product.asnumpy(), 6 * X.asnumpy() * V.asnumpy())
        np.testing.assert_allclose(extra.asnumpy(), 2 * X.asnumpy())
        value, _ = mh.curvature(with_aux, X, V, has_aux=True, mode=mode)
        np.testing.assert_allclose(float(value), (6 * X.asnumpy() * V.asnumpy() ** 2).sum() / 5)
        _, product = mh.grad_and_hvp(three_steps, X, V, weights=W, mode=mode)
        np.testing.assert_allclose(
            product.asnumpy(), mh.hvp(three_steps, X, V, weights=W).asnumpy()
        )


@pytest.mark.parametrize("transform", [mh.hvp, mh.grad_and_hvp, mh.curvature])
def test_a_lost_term_is_refused_in_every_product(transform):
    def branching(x):
        if x.sum() > 0:
            return (x**3).sum()
        return (x**2).sum()

    with pytest.raises(mh.MissingRuleError, match="loses a term"):
        transform(branching, X, V, mode="fwdrev")
