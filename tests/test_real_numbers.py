"""Only real floating-point numbers are differentiated and multiplied; NaN and Inf stay where they
belong.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import scipy.sparse as sp
from mindspore import Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import estimators
from mindspore_hessian._errors import debris_removed  # the user's own graphs leave some

pytestmark = pytest.mark.filterwarnings("ignore::mindspore_hessian.NonFiniteWarning")
X = Tensor(np.array([1.0, 2.0]))
POINTS = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]))


def integer(x):
    return (x**3).sum().astype(ms.int32)


def integers(x):
    return (x * 2, (x**3).astype(ms.int64))


def boolean(x):
    return (x**3).sum() > 1


def position(x):
    return ops.argmax(x)


def complex_number(x):
    return ops.Complex()(x, x).sum()


def double(x):
    return x * 2


@ms.jit
def product_in_graph(x):
    return mh.hvp(integer, x, x)


@ms.jit
def hessian_in_graph(x):
    return mh.hessian(integer)(x)


@ms.jit
def jacobian_in_graph(x):
    return mh.jacobian(integer)(x)


TRANSFORMS = {
    "hvp": lambda f: mh.hvp(f, X, X),
    "grad_and_hvp": lambda f: mh.grad_and_hvp(f, X, X),
    "curvature": lambda f: mh.curvature(f, X, X),
    "hessian": lambda f: mh.hessian(f)(X),
    "hessian, sparse": lambda f: mh.hessian(f, sparse=True)(X),
    "hessian, mode": lambda f: mh.hessian(f, mode="fwdrev")(X),
    "hessian, chunks": lambda f: mh.hessian(f, chunk_size=1)(X),
    "hessian_diag": lambda f: mh.hessian_diag(f)(X),
    "laplacian": lambda f: mh.laplacian(f)(X),
    "laplacian of samples": lambda f: mh.laplacian(f, in_axes=0)(POINTS),
    "value_grad_and_hessian": lambda f: mh.value_grad_and_hessian(f)(X),
    "jacobian": lambda f: mh.jacobian(f)(X),
    "jacobian, fwd": lambda f: mh.jacobian(f, mode="fwd")(X),
    "batched_hessian": lambda f: mh.batched_hessian(f)(POINTS),
    "ggnvp, loss": lambda f: mh.ggnvp(double, f, X, X),
    "ggnvp, forward": lambda f: mh.ggnvp(f, double, X, X),
    "hvp in a graph": lambda f: product_in_graph(X),
    "hessian in a graph": lambda f: hessian_in_graph(X),
    "jacobian in a graph": lambda f: jacobian_in_graph(X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_integer_output_is_refused(name):
    with debris_removed(), pytest.raises(TypeError, match="Int32, which has no derivative"):
        TRANSFORMS[name](integer)


@pytest.mark.parametrize(
    ("f", "dtype"), [(boolean, "Bool"), (position, "Int64"), (complex_number, "Complex128")]
)
def test_other_outputs_without_a_derivative_are_refused(f, dtype):
    with pytest.raises(TypeError, match=f"{dtype}, which has no derivative"):
        mh.hvp(f, X, X)


@pytest.mark.parametrize("transform", [mh.hessian, mh.jacobian, mh.laplacian])
def test_one_integer_output_of_several_is_refused(transform):
    with pytest.raises(TypeError, match="Int64, which has no derivative"):
        transform(integers)(X)


@pytest.mark.parametrize("make", [mh.HessianOperator, mh.GGNOperator])
def test_a_loss_that_is_no_float_is_refused(make):
    def loss(output, target):
        return ((output - target) ** 2).mean().astype(ms.int32)

    data = [(Tensor(np.ones((3, 2), np.float32)), Tensor(np.ones((3, 1), np.float32)))]
    with pytest.raises(TypeError, match="Int32, which has no derivative"):
        make(nn.Dense(2, 1), loss, data) @ np.ones(3)


# --- operators and estimators ---------------------------------------------------------------------


class Twice(mh.Operator):
    shape, dtype = (3, 3), np.dtype(np.float64)

    def columns(self, matrix):
        return 2.0 * matrix


class Turned:
    """An operator that names no dtype, and is complex."""

    shape = (3, 3)

    def __matmul__(self, other):
        return 1j * other


I3 = np.ones(3) * 1j
COMPLEX = {
    "vector": lambda: Twice() @ I3,
    "matrix": lambda: Twice() @ (np.eye(3) * 1j),
    "Tensor": lambda: Twice() @ Tensor(I3),
    "from the left": lambda: I3 @ Twice(),
    "scipy": lambda: Twice().to_scipy() @ I3,
    "scipy, transposed": lambda: Twice().to_scipy().rmatvec(I3),
    "factor": lambda: Twice() * 1j,
    "numpy factor": lambda: np.complex64(1j) * Twice(),
    "divisor": lambda: Twice() / 1j,
    **{
        f"solve by {method}": lambda method=method: mh.solve(np.eye(3), I3, method=method)
        for method in ("cg", "minres", "lsmr", "neumann")
    },
    "damping": lambda: mh.solve(np.eye(3), np.ones(3), damping=1j),
    "start": lambda: mh.eigsh(Twice(), k=1, v0=I3),
    "complex op": lambda: mh.trace(np.eye(3) * 1j),
    "complex sparse op": lambda: mh.trace(sp.eye(3).tocsr() * 1j),
    "complex product": lambda: mh.trace(Turned()),
    "complex product in solve": lambda: mh.solve(Turned(), np.ones(3)),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_numbers_are_refused(name):
    with pytest.raises(TypeError, match="real|must be a number"):
        COMPLEX[name]()


CROOKED = np.random.default_rng(0).standard_normal((20, 20))
SYMMETRIC_ONLY = {
    "eigsh": estimators.eigsh,
    "condition_number": estimators.condition_number,
    "logdet": estimators.logdet,
    "spectral_density": estimators.spectral_density,
    "negative_curvature": estimators.negative_curvature,
    "solve": lambda op: estimators.solve(op, np.ones(20)),
}


@pytest.mark.parametrize("name", SYMMETRIC_ONLY)
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_a_matrix_that_is_not_symmetric_is_refused(name, kind):
    with pytest.raises(ValueError, match="must be symmetric"):
        SYMMETRIC_ONLY[name](kind(CROOKED))


def test_rounding_is_no_asymmetry_and_a_trace_needs_no_symmetry():
    rounded = (CROOKED + CROOKED.T).astype(np.float32) + 1e-6 * CROOKED.astype(np.float32)
    assert mh.eigsh(rounded, k=1).converged.all()
    assert np.isfinite(mh.trace(CROOKED).value)


# --- NaN and Inf ----------------------------------------------------------------------------------


def cubes(x):
    return (x**3).sum()


def entropy(x):
    return (x * ops.log(x)).sum()


CASES = {
    "NaN": (cubes, [1.0, 2.0, np.nan], [6, 12, np.nan]),
    "Inf": (cubes, [1.0, 2.0, np.inf], [6, 12, np.inf]),
    "x log x at 0": (entropy, [0.0, 1.0, 2.0], [np.inf, 1, 0.5]),
}


@pytest.mark.full_run
@pytest.mark.parametrize("name", CASES)
def test_a_bad_entry_of_the_diagonal_is_alone(name):
    f, x, want = CASES[name]
    point = Tensor(np.array(x))

    @ms.jit
    def in_graph(x):
        return mh.hessian_diag(f)(x)

    for got in (
        mh.hessian_diag(f)(point),
        mh.hessian_diag(f, chunk_size=2)(point),
        in_graph(point),
        mh.hessian_diag(f, in_axes=0)(ops.stack((point, point)))[1],
    ):
        np.testing.assert_allclose(got.asnumpy(), want, rtol=1e-12)
    np.testing.assert_allclose(mh.laplacian(f)(point).asnumpy(), np.sum(want))


def test_the_other_variables_of_a_diagonal_stay_finite():
    def f(a, b):
        return (a**3).sum() + (b**3).sum()

    first, second = mh.hessian_diag(f, (0, 1))(Tensor(np.array([1.0, np.nan])), X)
    np.testing.assert_allclose(first.asnumpy(), [6, np.nan])
    np.testing.assert_allclose(second.asnumpy(), [6, 12])


def test_a_bad_entry_spoils_no_block_of_the_hessian_but_its_own_row_and_column():
    got = mh.hessian(cubes)(Tensor(np.array([1.0, 2.0, np.nan]))).asnumpy()
    np.testing.assert_allclose(got[:2, :2], [[6, 0], [0, 12]])
