"""Results of the transforms inside a function that PyNative records for a gradient, with options
that compute them in pieces: the gradient goes through them, against differences of values."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import _compat
from mindspore_hessian.transforms import hessian

POINT = np.array([0.1, 0.2, 0.3])
POINTS = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.7], [0.3, 0.1, 0.2], [0.9, 0.1, 0.2]])
DIRECTION = Tensor([1.0, 2.0, -1.0], ms.float64)
METRIC = np.array([[2.0, 0.5, 0.0], [0.5, -1.0, 0.0], [0.0, 0.0, 3.0]])


def f(x):
    return (ops.sin(x) * x**3).sum() + (x[0] * x[1] * x[2]) ** 2


def vector(x):
    return ops.sin(x) * x[0] ** 2


AT_A_POINT = {
    "hessian in pieces": lambda x: mh.hessian(f, chunk_size=2)(x),
    "hessian": lambda x: mh.hessian(f)(x),
    "mode": lambda x: mh.hessian(f, mode="fwdrev")(x),
    "value, gradient and hessian": lambda x: mh.value_grad_and_hessian(f, chunk_size=2)(x)[2],
    "jacobian in pieces": lambda x: mh.jacobian(vector, chunk_size=2)(x),
    "jacobian": lambda x: mh.jacobian(vector, mode="fwd")(x),
    "diagonal": lambda x: mh.hessian_diag(f)(x),
    "diagonal in pieces": lambda x: mh.hessian_diag(f, chunk_size=2)(x),
    "laplacian": lambda x: mh.laplacian(f)(x),
    "reverse": lambda x: mh.laplacian(f, mode="reverse")(x),
    "laplacian in pieces": lambda x: mh.laplacian(f, chunk_size=2)(x),
    "metric": lambda x: mh.laplacian(f, metric=METRIC)(x),
    "jvp": lambda x: mh.jvp(vector, x, DIRECTION)[1],
    "jet": lambda x: mh.jet(f, x, (DIRECTION, DIRECTION))[1][1],
    "derivative": lambda x: mh.derivative(ops.sin, 3)(x),
    "hvp": lambda x: mh.hvp(f, x, DIRECTION),
    "curvature": lambda x: mh.curvature(f, x, DIRECTION),
}
AT_POINTS = {
    "hessians in pieces": lambda x: mh.batched_hessian(f, chunk_size=2)(x),
    "hessians": lambda x: mh.batched_hessian(f)(x),
    "diagonals in pieces": lambda x: mh.hessian_diag(f, in_axes=0, chunk_size=2)(x),
    "laplacians": lambda x: mh.laplacian(f, in_axes=0)(x),
    "laplacians in pieces": lambda x: mh.laplacian(f, in_axes=0, chunk_size=2)(x),
    "reverse": lambda x: mh.laplacian(f, in_axes=0, mode="reverse", chunk_size=2)(x),
    "all": lambda x: mh.value_grad_and_laplacian(f, in_axes=0, chunk_size=2)(x)[2],
}
CASES = [
    *((name, call, POINT) for name, call in AT_A_POINT.items()),
    *((name, call, POINTS) for name, call in AT_POINTS.items()),
]


def differences(number, at):
    out = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-5
        out[place] = (number(at + step) - number(at - step)) / 2e-5
    return out


@pytest.mark.parametrize("name, call, at", CASES, ids=[case[0] for case in CASES])
def test_the_gradient_goes_through(name, call, at):
    def squares(x):
        return (call(x) ** 2).sum()

    try:
        found = ms.grad(squares)(Tensor(at)).asnumpy()
    except RuntimeError as err:
        if _compat.READS_CAPTURED_ANEW or "[mutable]" not in str(err):
            raise
        pytest.skip("refused by MindSpore before 2.10, see docs/limits.md")
    expected = differences(lambda array: squares(Tensor(array)).asnumpy(), at)
    np.testing.assert_allclose(found, expected, atol=1e-6 * abs(expected).max())


def test_it_goes_to_the_weights():
    """Of a loss with a diagonal in it, as in a training step that is not compiled."""
    weights = Parameter(Tensor([0.5, -1.0, 2.0], ms.float64), name="w")
    x = Tensor(POINT)

    def net(x):
        return (ops.tanh(x * weights) * x).sum()

    def loss():
        return (mh.hessian_diag(net)(x) ** 2).sum()

    value, found = ms.value_and_grad(loss, None, weights)()
    given = weights.asnumpy().copy()

    def number(array):
        weights.set_data(Tensor(array))
        return loss().asnumpy()

    expected = differences(number, given)
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-6 * abs(expected).max())
    np.testing.assert_allclose(value.asnumpy(), number(given))


def test_a_hessian_is_computed_in_pieces_where_it_is_large(monkeypatch):
    asked = []

    def in_pieces(point, chunk):
        asked.append(chunk)
        return in_chunks(point, chunk)

    in_chunks = hessian.hessian_in_chunks
    monkeypatch.setattr(hessian, "hessian_in_chunks", in_pieces)
    monkeypatch.setattr(hessian, "_MANY", 3)
    monkeypatch.setattr(hessian, "_ROWS", 2)
    x = Tensor(POINT)
    expected = mh.hessian(f, mode="revrev")(x).asnumpy()
    np.testing.assert_allclose(mh.hessian(f)(x).asnumpy(), expected, rtol=1e-12)
    assert asked == [2]
    np.testing.assert_allclose(mh.value_grad_and_hessian(f)(x)[2].asnumpy(), expected, rtol=1e-12)
    assert asked == [2, 2]
    monkeypatch.setattr(hessian, "_MANY", 4)
    np.testing.assert_allclose(mh.hessian(f)(x).asnumpy(), expected, rtol=1e-12)
    assert asked == [2, 2]


def test_operators_refuse_tensors():
    """They are numpy's: a gradient through them would be 0."""
    dense = nn.Dense(3, 2)
    batch = Tensor(POINTS, ms.float32), Tensor([0, 1, 1, 0], ms.int32)
    op = mh.HessianOperator(dense, nn.CrossEntropyLoss(), [batch])
    jacobian = mh.JacobianOperator(dense, [batch])

    def flat(v):
        return (op @ v).sum()

    def structured(v):
        return (op @ (v[:6].reshape(2, 3), v[6:]))[0].sum()

    def columns(v):
        return (jacobian @ v).sum()

    v = ops.ones(8, ms.float32)
    for function in (flat, structured, columns):
        with pytest.raises(mh.UnsafeRuntimeError, match="has none"):
            ms.grad(function)(v)
        function(ops.ones(8, ms.float32))  # MindSpore still records, but nothing of this Tensor

    def aside(v):
        fixed = ops.stop_gradient(v)
        return (v**2).sum() + flat(fixed) + structured(fixed) + float((op @ v.asnumpy()).sum())

    np.testing.assert_allclose(ms.grad(aside)(v).asnumpy(), 2 * np.ones(8))


def test_what_does_not_compile_while_recording_leaves_nothing_behind():
    """(Nor after an exception in ``ms.grad``: MindSpore goes on recording. See also conftest's
    `no_debris`.)"""

    def fails(x):
        raise KeyError("stopped")

    with pytest.raises(KeyError, match="stopped"):
        ms.grad(fails)(DIRECTION)
    assert _compat.is_recording()
    with pytest.raises(ValueError, match=r"shape \(3\)"):
        mh.hvp(vector, DIRECTION, DIRECTION)
    product = mh.hvp(lambda x: (x**3).sum(), DIRECTION, DIRECTION)
    np.testing.assert_allclose(product.asnumpy(), 6 * DIRECTION.asnumpy() ** 2)
