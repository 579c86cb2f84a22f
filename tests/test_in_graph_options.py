"""Every transform with every option, right and wrong: in the user's own graphs as outside."""
from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, jit, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import (
    batched_hessian,
    curvature,
    ggnvp,
    grad_and_hvp,
    hessian,
    hessian_diag,
    hvp,
    hvp_revfwd,
    hvp_revrev,
    jacobian,
    laplacian,
    value_grad_and_hessian,
)
from mindspore_hessian._errors import debris_removed

X, Y = Tensor([1.0, 3.0], ms.float64), Tensor([2.0, 5.0], ms.float64)
V, U = Tensor([0.5, -1.0], ms.float64), Tensor([2.0, 0.25], ms.float64)
POINTS = Tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 1.0]], ms.float64)
W = Parameter(Tensor([1.0, 2.0], ms.float64), name="w")
B = Parameter(Tensor([0.5], ms.float64), name="b")
OTHER = Parameter(Tensor([1.0, 2.0, 3.0], ms.float64), name="other")


def f(x):
    return (x ** 3 * W ** 2).sum() + (x ** 2).sum() * B[0] ** 3


def g(x, y):
    return (x ** 3 * y ** 2).sum()


def vector(x):
    return x ** 3 * W


def two(x):
    return x ** 3, (x ** 2).sum()


def aux(x):
    return (x ** 3).sum(), x + 1


def scaled(x, factor):
    return (x ** 3).sum() * factor


def nested(pair, y):
    return (pair[0] ** 2 * pair[1] ** 2 * y ** 2).sum()


def half_norm(y):
    return (y ** 4).sum() / 2


def text(x):
    return "no Tensor"


# --- right: the transform with its options inside the graph ---------------------------------------------------------

def products(x, y, v, u):
    return (
        hvp(g, (x, y), (v, u)), hvp(g, [x, y], [v, u]), hvp(g, (x, y), v, 1), hvp(g, (x, y), v, -2),
        hvp(g, (x, y), (u, v), (1, 0)), hvp(aux, x, v, has_aux=True), hvp(f, x, v, mode="fwdrev"),
        hvp(f, x, v, mode="revrev"), hvp(f, x, v, weights=W), hvp(f, (x,), (v,), weights=[W]),
        hvp(scaled, (x, 2.5), v, 0), hvp(nested, ((x, y), v), u, 1),
        grad_and_hvp(g, (x, y), (v, u)), grad_and_hvp(aux, x, v, has_aux=True), grad_and_hvp(f, x, v, mode="fwdrev"),
        grad_and_hvp(g, (x, y), v, 1), grad_and_hvp(f, x, v, weights=W),
        curvature(g, (x, y), (v, u)), curvature(aux, x, v, has_aux=True), curvature(f, x, v, mode="fwdrev"),
        curvature(f, x, v * 1e-30), curvature(f, x, v, weights=W), curvature(g, (x, y), v, -1),
        ggnvp(vector, half_norm, x, v), ggnvp(g, half_norm, (x, y), v, grad_position=1),
        ggnvp(g, half_norm, (x, y), (v, u)), hvp_revfwd(f, x, v), hvp_revrev(f, (x,), (v,)))


def matrices(x, y, points):
    return (
        hessian(g, (-1,))(x, y), hessian(g, None)(x, y), hessian(two)(x), hessian(scaled, mode="fwdrev")(x, 2.5),
        value_grad_and_hessian(aux, has_aux=True)(x), jacobian(two, mode="fwd")(x), jacobian(g, (1, 0))(x, y),
        hessian_diag(g, 1, in_axes=(0, None))(points, y), laplacian(g, (0, 1))(x, y),
        laplacian(f, in_axes=0, chunk_size=2)(points), batched_hessian(g, (0, 1), in_axes=(0, None))(points, y))


MADE = [
    hessian(f, 0, weights=[W, B]), value_grad_and_hessian(f, weights=W), jacobian(vector, (0,), weights=[W]),
    hessian_diag(f, weights=[W, B]), laplacian(f, 0, weights=[W])]


def made_outside(x):
    out = ()
    for transform in MADE:
        out = out + (transform(x),)
    return out


ARGUMENTS = {products: (X, Y, V, U), matrices: (X, Y, POINTS), made_outside: (X,)}


class Network(nn.Cell):
    """The same in a Cell."""

    def __init__(self, function):
        super().__init__(auto_prefix=False)
        self.function = function

    def construct(self, *args):
        return self.function(*args)


def numbers(value):
    """Nested results as (where, array)."""
    if isinstance(value, Tensor):
        return [((), value.asnumpy().copy())]
    return [((place, *path), array) for place, item in enumerate(value) for path, array in numbers(item)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", ARGUMENTS, ids=lambda function: function.__name__)
def test_results_are_those_of_outside(function):
    expected = numbers(function(*ARGUMENTS[function]))
    for inside in (jit(function), Network(function)) if function is products else (jit(function),):
        if isinstance(inside, nn.Cell):
            ms.set_context(mode=ms.GRAPH_MODE)
        try:
            got = numbers(inside(*ARGUMENTS[function]))
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)
        assert [path for path, _ in got] == [path for path, _ in expected]
        for (path, a), (_, e) in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12, err_msg=str(path))


# --- wrong: refused inside by the exception and the words of outside -------------------------------------------------

SHORT, SINGLE, WHOLE = Tensor([1.0], ms.float64), Tensor([1.0, 2.0], ms.float32), Tensor([1, 2], ms.int32)
ARRAY = np.ones(2)


def mode_hvp(x, v): return hvp(f, x, v, mode="nonsense")
def mode_both(x, v): return grad_and_hvp(f, x, v, mode=None)
def mode_curvature(x, v): return curvature(f, x, v, mode="fwd")
def mode_hessian(x, v): return hessian(f, mode="nonsense")(x)
def mode_all(x, v): return value_grad_and_hessian(f, mode="rev")(x)
def mode_jacobian(x, v): return jacobian(f, mode="revrev")(x)
def mode_weights(x, v): return hvp(f, x, v, weights=W, mode="nonsense")
def chunk_negative(x, v): return hessian(f, chunk_size=-3)(x)
def chunk_float(x, v): return hessian_diag(f, chunk_size=1.5)(x)
def chunk_zero(x, v): return laplacian(f, chunk_size=0)(x)
def chunk_jacobian(x, v): return jacobian(f, chunk_size=True)(x)
def chunk_mode(x, v): return hessian(f, mode="fwdrev", chunk_size=2)(x)
def chunk_batched(x, v): return batched_hessian(f, chunk_size="1")(x)
def aux_number(x, v): return hvp(aux, x, v, has_aux=1)
def aux_text(x, v): return hessian(aux, has_aux="yes")(x)
def aux_missing(x, v): return hvp(f, x, v, has_aux=True)
def position_far(x, v): return hvp(f, x, v, 2)
def position_negative(x, v): return hessian(f, -2)(x)
def position_twice(x, v): return hessian(g, (0, -2))(x, v)
def position_float(x, v): return jacobian(g, 0.5)(x, v)
def position_text(x, v): return hessian_diag(g, "x")(x, v)
def position_constant(x, v): return hessian(scaled, 1)(x, 2.5)
def vectors_short(x, v): return hvp(f, x, SHORT)
def vectors_single(x, v): return hvp(f, x, SINGLE)
def vectors_one(x, v): return hvp(g, (x, x), v)
def vectors_three(x, v): return hvp(g, (x, x), (v, v, v))
def vectors_number(x, v): return hvp(f, x, 1.0)
def vectors_none(x, v): return grad_and_hvp(f, x, None)
def vectors_weights(x, v): return hvp(f, x, SHORT, weights=W)
def vectors_of_weights(x, v): return hvp(f, x, v, weights=[W, B])
def direction_short(x, v): return curvature(f, x, SHORT)
def direction_ggnvp(x, v): return ggnvp(vector, half_norm, x, SHORT)
def inputs_number(x, v): return hvp(f, 1.0, v)
def inputs_whole(x, v): return hvp(f, WHOLE, v)
def inputs_hessian(x, v): return hessian(f)(WHOLE)
def inputs_none(x, v): return hessian(f)(None)
def no_arguments(x, v): return hessian(f)()
def output_vector(x, v): return hvp(vector, x, v)
def output_diag(x, v): return hessian_diag(vector)(x)
def output_all(x, v): return value_grad_and_hessian(vector)(x)
def output_weights(x, v): return hvp(vector, x, v, weights=W)
def output_loss(x, v): return ggnvp(vector, vector, x, v)
def output_text(x, v): return hvp(text, x, v)
def fn_number(x, v): return hvp(3, x, v)
def fn_text(x, v): return hessian("f")(x)
def loss_number(x, v): return ggnvp(vector, 3, x, v)
def weights_text(x, v): return hvp(f, x, v, weights="w")
def weights_tensor(x, v): return hvp(f, x, v, weights=[X])
def weights_empty(x, v): return hvp(f, x, v, weights=[])
def weights_other(x, v): return hvp(f, x, OTHER, weights=OTHER)
def output_points(x, v): return hessian_diag(vector, in_axes=0)(POINTS)
def axes_far(x, v): return laplacian(f, in_axes=1)(x)
def axes_none(x, v): return batched_hessian(f, in_axes=None)(x)
def axes_short(x, v): return laplacian(g, in_axes=(0,))(x, v)
def axes_text(x, v): return hessian_diag(f, in_axes="0")(x)
def axes_sizes(x, v): return batched_hessian(g, in_axes=0)(x, SHORT)


WRONG = [case for case in list(globals().values()) if getattr(case, "__code__", None) is not None
         and case.__code__.co_varnames[:case.__code__.co_argcount] == ("x", "v") and case.__module__ == __name__]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.__name__)
def test_a_refusal_is_that_of_outside(case):
    with pytest.raises((TypeError, ValueError)) as outside:
        case(X, V)
    words = " ".join(str(outside.value).split()).split("'")[0][:45]
    for inside in (jit(case), Network(case)) if WRONG.index(case) % 6 == 0 else (jit(case),):
        with debris_removed(), pytest.raises((TypeError, ValueError)) as refused:
            if isinstance(inside, nn.Cell):
                ms.set_context(mode=ms.GRAPH_MODE)
            try:
                inside(X, V)
            finally:
                ms.set_context(mode=ms.PYNATIVE_MODE)
        assert refused.type is outside.type
        assert words in " ".join(str(refused.value).split())


def sparse_inside(x): return hessian(f, sparse=True)(x)
def weights_inside(x): return hessian(f, weights=W)(x)
def weights_and_position(x): return hvp(f, x, (x, x), 0, weights=W)
def weights_ggnvp(x): return ggnvp(vector, half_norm, x, x, weights=W)


@pytest.mark.parametrize("case", [sparse_inside, weights_inside, weights_and_position, weights_ggnvp])
def test_what_works_outside_only_is_refused_by_name(case):
    with debris_removed(), pytest.raises(NotImplementedError, match="inside your own graph"):
        jit(case)(X)


def local(x):
    def inner(x):
        return (x ** 3).sum()
    return hessian(inner)(x)


def test_a_function_of_the_graph_is_refused():
    with debris_removed(), pytest.raises(TypeError, match="defined outside of it"):
        jit(local)(X)


def through_vmap(points):
    return ms.vmap(MADE_FOR_VMAP, in_axes=0)(points)


MADE_FOR_VMAP = hessian(f)


def test_a_transform_under_vmap_and_a_gradient():
    with debris_removed():
        got = jit(through_vmap)(POINTS).asnumpy()
    w, b = W.asnumpy(), B.asnumpy()[0]
    expected = [np.diag(6 * p * w ** 2 + 2 * b ** 3) for p in POINTS.asnumpy()]
    np.testing.assert_allclose(got, expected, rtol=1e-9)

    def total(x):
        return hvp(f, x, V).sum()
    np.testing.assert_allclose(jit(ops.GradOperation()(total))(X).asnumpy(), 6 * w ** 2 * V.asnumpy(), rtol=1e-9)
    assert mh.cache_info().maxsize
