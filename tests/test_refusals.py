"""Bad input: one clear error that names the offender, what was received and what to do, before
anything is computed.
"""

from __future__ import annotations

import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

import mindspore_hessian as mh
from mindspore_hessian import (
    FallbackWarning,
    NonFiniteWarning,
    batched_hessian,
    curvature,
    ggnvp,
    grad_and_hvp,
    hessian,
    hessian_diag,
    hvp,
    jacobian,
    laplacian,
    value_grad_and_hessian,
)

X, V = Tensor([1.0, 2.0]), Tensor([1.0, 1.0])
W = Parameter(Tensor([1.0, 2.0]), name="w")
OTHER = Parameter(Tensor([1.0, 2.0]), name="other")


def cube(x):
    return (x**3).sum()


def two(x, y):
    return (x * x * y * W).sum()


def vector(x):
    return x**2


def number(x):
    return 3.0


def no_aux(x):
    return (x**3).sum()


BAD = {  # what is called, the error, what its message says
    "fn is no callable": (lambda: hvp(3, X, V), TypeError, "fn must be callable, but got int"),
    "fn is no callable, hessian": (
        lambda: hessian(None),
        TypeError,
        "fn must be callable, but got NoneType",
    ),
    "loss is no callable": (lambda: ggnvp(vector, 1, X, V), TypeError, "loss must be callable"),
    "vector output of a product": (lambda: hvp(vector, X, V), ValueError, r"shape \(2\)"),
    "vector output of curvature": (lambda: curvature(vector, X, V), ValueError, "one number"),
    "output that is no Tensor": (lambda: hvp(number, X, V), TypeError, "one Tensor"),
    "output that is no Tensor, hessian": (lambda: hessian(number)(X), TypeError, "Tensor"),
    "vectors of another shape": (
        lambda: hvp(cube, X, Tensor([1.0])),
        ValueError,
        r"shape \(2,\), but has shape \(1,\)",
    ),
    "vectors of another dtype": (
        lambda: hvp(cube, X, V.astype(ms.float64)),
        TypeError,
        "dtype Float32.*Float64",
    ),
    "vectors that are no Tensors": (
        lambda: hvp(cube, X, [1.0]),
        TypeError,
        "must be a Tensor, but got float",
    ),
    "vectors in numpy": (lambda: hvp(cube, X, np.ones(2)), TypeError, "Tensor or a tuple"),
    "too few vectors": (lambda: hvp(two, (X, X), (V,)), ValueError, "2 Tensors"),
    "a Tensor for two inputs": (lambda: hvp(two, (X, X), V), TypeError, "tuple of 2"),
    "vectors for weights and inputs": (
        lambda: hvp(two, (X, X), V, 0, weights=W),
        TypeError,
        "pair",
    ),
    "inputs in numpy": (
        lambda: hvp(cube, np.ones(2), V),
        TypeError,
        "inputs must be a Tensor or a tuple",
    ),
    "an input in numpy": (lambda: hvp(cube, (np.ones(2),), V), TypeError, "argument 0.*ndarray"),
    "a float to differentiate": (lambda: hessian(cube)(1.0), TypeError, "argument 0.*float"),
    "integer input": (
        lambda: hvp(cube, Tensor([1, 2]), V),
        TypeError,
        "argument 0 has dtype Int64",
    ),
    "bool input": (lambda: hessian(cube)(Tensor([True])), TypeError, "argument 0 has dtype Bool"),
    "empty input": (
        lambda: hessian(cube)(Tensor(np.zeros((0, 3), np.float32))),
        ValueError,
        r"empty: shape \(0, 3\)",
    ),
    "no inputs": (lambda: hvp(cube, (), ()), ValueError, "nothing to differentiate"),
    "no arguments": (lambda: hessian(cube)(), ValueError, "out of range"),
    "position out of range": (
        lambda: hvp(two, (X, X), V, 2),
        ValueError,
        "grad_position 2 is out of range",
    ),
    "position of a wrong type": (
        lambda: hvp(two, (X, X), V, 0.0),
        TypeError,
        "grad_position must be an int",
    ),
    "position twice": (lambda: hessian(two, (0, -2))(X, X), ValueError, "twice"),
    "unknown mode": (
        lambda: hvp(cube, X, V, mode="fast"),
        ValueError,
        "mode must be one of .*'fast'",
    ),
    "unknown mode, hessian": (lambda: hessian(cube, mode="rev"), ValueError, "'fwdrev'"),
    "unknown mode, jacobian": (lambda: jacobian(cube, mode="back"), ValueError, "'rev'"),
    "chunk_size zero": (
        lambda: hessian(cube, chunk_size=0),
        ValueError,
        "chunk_size must be positive",
    ),
    "chunk_size a float": (
        lambda: hessian_diag(cube, chunk_size=1.5),
        TypeError,
        "chunk_size must be an int",
    ),
    "chunk_size with a mode": (
        lambda: hessian(cube, mode="revrev", chunk_size=2),
        ValueError,
        "mode='auto'",
    ),
    "has_aux no bool": (lambda: hessian(cube, has_aux=1), TypeError, "has_aux must be a bool"),
    "has_aux without aux": (lambda: hvp(no_aux, X, V, has_aux=True), ValueError, "two or more"),
    "weights of a wrong type": (
        lambda: hvp(cube, X, V, weights="w"),
        TypeError,
        "weights must be a Parameter",
    ),
    "weights that are Tensors": (
        lambda: hvp(cube, X, V, weights=[X]),
        TypeError,
        r"weights\[0\] must be a Parameter",
    ),
    "weights empty": (lambda: hvp(cube, X, V, weights=[]), ValueError, "weights is empty"),
    "weights twice": (lambda: hvp(two, (X, X), (V, V), weights=[W, W]), ValueError, "twice"),
    "a Parameter not in the function": (
        lambda: hvp(two, (X, X), (V,), weights=[OTHER]),
        ValueError,
        "'other' is not in the function",
    ),
    "a Parameter not in the function, hessian": (
        lambda: hessian(two, weights=[W, OTHER])(X, X),
        ValueError,
        "'other' is not in the function",
    ),
    "zero direction": (lambda: curvature(cube, X, V * 0), ValueError, "direction is zero"),
    "direction of another shape": (
        lambda: curvature(cube, X, Tensor([1.0])),
        ValueError,
        "direction for argument 0",
    ),
    "in_axes out of range": (lambda: batched_hessian(cube, in_axes=1)(X), ValueError, "no axis 1"),
    "in_axes too short": (
        lambda: laplacian(two, (0, 1), in_axes=(0,))(X, X),
        ValueError,
        "one entry for each",
    ),
    "in_axes without a batch": (
        lambda: laplacian(two, in_axes=(None, None))(X, X),
        ValueError,
        "no Tensor argument",
    ),
    "in_axes None": (lambda: batched_hessian(cube, in_axes=None), ValueError, "use hessian"),
    "batches of different sizes": (
        lambda: laplacian(two, in_axes=0)(X, Tensor([1.0, 2.0, 3.0])),
        ValueError,
        "different sizes",
    ),
    "diagonal of a vector function": (lambda: hessian_diag(vector)(X), ValueError, "one number"),
    "value_grad_and_hessian of a vector function": (
        lambda: value_grad_and_hessian(vector)(X),
        ValueError,
        "one number",
    ),
    "grad_and_hvp of a vector function": (
        lambda: grad_and_hvp(vector, X, V),
        ValueError,
        "one number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_error(case):
    call, error, message = BAD[case]
    state = ms.get_context("mode"), W.asnumpy().copy(), W.requires_grad
    with pytest.raises(error, match=message) as caught:
        call()
    text = str(caught.value)
    assert len(text) < 600, "one paragraph, not MindSpore's pages"
    assert "C++" not in text
    assert (ms.get_context("mode"), W.requires_grad) == (state[0], state[2])
    np.testing.assert_array_equal(W.asnumpy(), state[1])
    np.testing.assert_allclose(hvp(cube, X, V).asnumpy(), [6, 12])  # and the next call is right


def test_nan_and_inf_are_named_and_can_be_an_error():
    def root(x):
        return ops.sqrt(x).sum()

    x = Tensor([4.0, 0.0])
    with pytest.warns(NonFiniteWarning, match="1 values that are NaN or Inf"):
        hvp(root, x, V)
    with pytest.warns(NonFiniteWarning, match="hessian"):
        hessian(root)(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteWarning)
        with pytest.raises(NonFiniteWarning):
            hvp(root, x, V)
        hvp(root, X, V)


def test_large_finite_results_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvp(
            lambda x: (x**3).sum() * 1e38,
            Tensor(np.full(100, 0.5, np.float32)),
            Tensor(np.ones(100, np.float32)),
        )


def test_a_primitive_without_a_batching_rule_is_named_and_the_result_right():
    def f(x):
        if x.sum() > 0:
            return (x**3).sum()
        return (x**2).sum()

    with pytest.warns(FallbackWarning, match="primitive .* has no batching rule") as caught:
        h = hessian(f)(X)
    assert len(caught) == 1
    np.testing.assert_allclose(h.asnumpy(), np.diag([6.0, 12.0]), rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = hessian(lambda x: (f(x), x**2), chunk_size=1)(X)
        j = jacobian(lambda x: f(x) * x)(X)
    np.testing.assert_allclose(rows[0].asnumpy(), np.diag([6.0, 12.0]), rtol=1e-6)
    np.testing.assert_allclose(rows[1].asnumpy()[1], np.diag([0.0, 2.0]), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(j.asnumpy(), 9 * np.eye(2) + np.outer([1, 2], [3, 12]), rtol=1e-6)


def branching(x):
    if x.sum() > 0:
        return (x**3).sum()
    return (x**2).sum()


@pytest.mark.full_run
@pytest.mark.filterwarnings("ignore::mindspore_hessian.FallbackWarning")
def test_diagonals_and_samples_without_batching_rules():
    points = Tensor(np.array([[1.0, 2.0], [-3.0, 1.0]], np.float32))  # either branch
    diagonals = [[6.0, 12.0], [2.0, 2.0]]
    close = np.testing.assert_allclose
    close(mh.hessian_diag(branching)(X).asnumpy(), [6, 12], rtol=1e-6)
    close(mh.laplacian(branching)(X).asnumpy(), 18, rtol=1e-6)
    lap = mh.laplacian(lambda x: (branching(x) * ops.ones(3), x.sum() ** 2))(X)
    close(lap[0].asnumpy(), [18, 18, 18], rtol=1e-6)
    close(lap[1].asnumpy(), 4, rtol=1e-6)
    close(mh.hessian_diag(branching, in_axes=0)(points).asnumpy(), diagonals, rtol=1e-6)
    close(
        mh.laplacian(branching, in_axes=1)(Tensor(points.asnumpy().T.copy())).asnumpy(),
        [18, 4],
        rtol=1e-6,
    )
    close(
        mh.batched_hessian(branching)(points).asnumpy(), [np.diag(d) for d in diagonals], rtol=1e-6
    )
    with pytest.raises(ValueError, match="one number"):
        mh.hessian_diag(lambda x: branching(x) * x)(X)


def test_forward_over_reverse_that_would_lose_a_term_is_refused():
    def f(x):
        if x.sum() > 0:
            return (x**3).sum()
        return (x**2).sum()

    with pytest.raises(mh.MissingRuleError, match="loses a term"):
        hvp(f, X, V, mode="fwdrev")
    np.testing.assert_allclose(hvp(f, X, V).asnumpy(), [6, 12], rtol=1e-6)


def test_a_primitive_without_a_derivative_is_named():
    def f(x):
        return (ops.igamma(Tensor([2.0, 3.0]), x) * x).sum() + aligned(x.reshape(1, 1, 2))

    one = Tensor([1], ms.int32)

    def aligned(x):
        return (ops.ctc_loss(x, one.reshape(1, 1), one, one)[0] ** 2).sum()

    for mode in ("auto", "fwdrev"):
        with pytest.raises(
            mh.MissingRuleError, match="primitive CTCLossV2Grad.*register_derivative"
        ):
            hvp(f, X, V, mode=mode)
