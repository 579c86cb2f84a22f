"""Every transform with every option, right and wrong: in the user's own graphs as outside."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import pytest
from full import FULL
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
    jvp,
    laplacian,
    value_grad_and_hessian,
    value_grad_and_laplacian,
)
from mindspore_hessian._errors import debris_removed

X, Y = Tensor([1.0, 3.0], ms.float64), Tensor([2.0, 5.0], ms.float64)
V, U = Tensor([0.5, -1.0], ms.float64), Tensor([2.0, 0.25], ms.float64)
POINTS = Tensor([[1.0, 2.0], [3.0, 4.0], [0.5, 1.0]], ms.float64)
W = Parameter(Tensor([1.0, 2.0], ms.float64), name="w")
B = Parameter(Tensor([0.5], ms.float64), name="b")
OTHER = Parameter(Tensor([1.0, 2.0, 3.0], ms.float64), name="other")


def f(x):
    return (x**3 * W**2).sum() + (x**2).sum() * B[0] ** 3


def g(x, y):
    return (x**3 * y**2).sum()


def vector(x):
    return x**3 * W


def two(x):
    return x**3, (x**2).sum()


def aux(x):
    return (x**3).sum(), x + 1


def scaled(x, factor):
    return (x**3).sum() * factor


def by_name(x, factor=1.0, *, power=3):
    return (x**power * W**2).sum() * factor


def weighed_aux(x):
    return (x**3 * W**2).sum(), x * W


def nested(pair, y):
    return (pair[0] ** 2 * pair[1] ** 2 * y**2).sum()


def summed(x):
    return (x**3).sum(), x.sum()


def two_of(x):
    return x**2 * W, (x * W**2).sum()


def half_norm(y):
    return (y**4).sum() / 2


def squares(y, target):
    return ((y - target) ** 4).sum()


SQUARES = functools.partial(squares, target=Y)


METRIC = np.array([[1.0, 0.5], [0.5, -2.0]])  # indefinite: two passes


def text(x):
    return "no Tensor"


# --- right: the transform with its options inside the graph ---------------------------------------


def products(x, y, v, u, points):
    return (
        hvp(g, (x, y), (v, u)),
        hvp(g, [x, y], [v, u]),
        hvp(g, (x, y), v, 1),
        hvp(g, (x, y), v, -2),
        hvp(g, (x, y), (u, v), (1, 0)),
        hvp(aux, x, v, has_aux=True),
        hvp(f, x, v, mode="fwdrev"),
    )


def more_products(x, y, v, u, points):
    return (
        hvp(f, x, v, mode="revrev"),
        hvp(scaled, (x, 2.5), v, 0),
        hvp(nested, ((x, y), v), u, 1),
        ggnvp(vector, half_norm, x, v),
        ggnvp(g, half_norm, (x, y), v, grad_position=1),
        ggnvp(g, half_norm, (x, y), (v, u)),
        ggnvp(vector, SQUARES, x, v),
        hvp_revfwd(f, x, v),
        hvp_revrev(f, (x,), (v,)),
    )


def gradients_and_curvatures(x, y, v, u, points):
    return (
        grad_and_hvp(g, (x, y), (v, u)),
        grad_and_hvp(aux, x, v, has_aux=True),
        grad_and_hvp(f, x, v, mode="fwdrev"),
        grad_and_hvp(g, [x, y], [v, u]),
        grad_and_hvp(g, (x, y), v, 1),
        curvature(g, (x, y), (v, u)),
        curvature(aux, x, v, has_aux=True),
        curvature(f, x, v, mode="fwdrev"),
        curvature(f, x, v * 1e-30),
        curvature(g, (x, y), v, -1),
    )


def products_of_weights(x, y, v, u, points):
    b = u[:1]
    return (
        hvp(f, x, v, weights=W),
        hvp(f, (x,), (v,), weights=[W]),
        hvp(f, x, (b, v), weights=(B, W)),
        hvp(f, x, (u, v), 0, weights=W),
        hvp(weighed_aux, x, v, has_aux=True, weights=W),
        ggnvp(vector, half_norm, x, v, weights=W),
        ggnvp(vector, half_norm, x, (u, v), weights=W, grad_position=0),
    )


def more_products_of_weights(x, y, v, u, points):
    b = u[:1]
    return (
        hvp(f, (x,), ((u,), (v, b)), (0,), weights=(W, B)),
        hvp(f, x, v, weights=W, mode="fwdrev"),
        hvp(f, x, [v, b], weights=[W, B]),
        grad_and_hvp(f, x, v, weights=W),
        grad_and_hvp(f, x, (u, (v, b)), 0, weights=[W, B]),
        grad_and_hvp(weighed_aux, x, v, None, True, weights=W),
        curvature(f, x, v, weights=W),
        curvature(f, x, (v, u), -1, weights=W),
        curvature(weighed_aux, x, v, has_aux=True, weights=W, mode="fwdrev"),
    )


def matrices(x, y, v, u, points):
    return (
        hessian(g, (-1,))(x, y),
        hessian(g, None)(x, y),
        hessian(two)(x),
        hessian(scaled, mode="fwdrev")(x, 2.5),
        hessian(f, chunk_size=1)(x),
        hessian(two, mode="revfwd")(x),
        hessian(by_name)(x, factor=2.5),
    )


def more_matrices(x, y, v, u, points):
    return (
        hessian(by_name)(x, power=4),
        value_grad_and_hessian(aux, has_aux=True)(x),
        value_grad_and_hessian(g, (0, 1), chunk_size=2)(x, y),
    )


def jacobians(x, y, v, u, points):
    return (
        jacobian(two, mode="fwd")(x),
        jacobian(g, (1, 0))(x, y),
        jacobian(aux, has_aux=True, chunk_size=1)(x),
        jacobian(by_name, mode="rev")(x, 0.5, power=2),
    )


def diagonals(x, y, v, u, points):
    return (
        hessian_diag(g, 1, in_axes=(0, None))(points, y),
        hessian_diag(aux, has_aux=True, in_axes=0)(points),
        laplacian(g, (0, 1))(x, y),
        laplacian(f, in_axes=0, chunk_size=2)(points),
        batched_hessian(g, (0, 1), in_axes=(0, None))(points, y),
    )


def more_diagonals(x, y, v, u, points):
    return (
        hessian_diag(by_name, chunk_size=1)(x, factor=y.sum()),
        laplacian(two)(x),
        laplacian(summed, has_aux=True, in_axes=0)(points),
        batched_hessian(summed, has_aux=True, chunk_size=2)(points),
    )


def passes_forward(x, y, v, u, points):
    return (
        jvp(g, (x, y), (v, u)),
        jvp(two, x, v),
        jvp(g, [x, y], v, 1),
        jvp(scaled, (x, 2.5), v, 0),
        jvp(two_of, x, v, weights=W),
        jvp(two_of, (x,), ((u,), (v,)), (0,), weights=[W]),
        laplacian(g, (1, 0), along=(0, -1))(x, y),
        laplacian(f, mode="forward", in_axes=0, along=1)(points),
        laplacian(summed, has_aux=True, mode="reverse", metric=METRIC)(x),
        laplacian(two, mode="reverse")(x),
        laplacian(aux, has_aux=True, metric=METRIC, in_axes=0, mode="forward")(points),
        value_grad_and_laplacian(g, (0, 1), in_axes=(0, None))(points, y),
        value_grad_and_laplacian(aux, has_aux=True, in_axes=0)(points),
        value_grad_and_laplacian(f, mode="reverse")(x),
    )


def of_a_batch(xs):
    """A row for each sample, of that sample alone."""
    return ops.tanh(ops.matmul(xs, W)) * xs.sum(-1)


def of_a_batch_aux(xs):
    return ops.sin(xs[:, :1]) * xs[:, 1:2] ** 3, xs * 2


_STOP = ops.StopGradient()


def stopped(x):
    """A forward pass would go past the StopGradient, so reverse derivatives are taken."""
    return (x**3).sum() + (_STOP(x) * x * x).sum()


def of_batches(x, y, v, u, points):
    return (
        laplacian(of_a_batch, in_axes=0, batched=True)(points),
        laplacian(of_a_batch, in_axes=0, batched=True, mode="reverse", metric=METRIC)(points),
        laplacian(of_a_batch_aux, has_aux=True, in_axes=0, batched=True, chunk_size=2)(points),
        value_grad_and_laplacian(of_a_batch, in_axes=0, batched=True)(points),
        value_grad_and_laplacian(of_a_batch, in_axes=0, batched=True, mode="reverse")(points),
    )


def without_a_forward_pass(x, y, v, u, points):
    return laplacian(stopped)(x), jvp(stopped, x, v)  # two Laplacians of it do not compile in one


def samples_without_a_forward_pass(x, y, v, u, points):
    return (laplacian(stopped, in_axes=0, along=1)(points),)


def matrices_of_weights(x, y, v, u, points):
    return (
        hessian(weighed_aux, has_aux=True, weights=(W,))(x),
        jacobian(vector, (0,), weights=[W])(x),
        hessian_diag(f, weights=[W, B])(x),
        laplacian(f, 0, weights=[W])(x),
    )


def more_matrices_of_weights(x, y, v, u, points):
    return (
        hessian(f, weights=W)(x),
        hessian(f, 0, weights=[W, B])(x),
        value_grad_and_hessian(f, weights=W)(x),
        jacobian(two_of, weights=W)(x),
        hessian_diag(f, 0, weights=W, in_axes=0)(points),
        laplacian(vector, weights=W, in_axes=0)(points),
    )


MADE = [
    hessian(f, 0, weights=[W, B]),
    value_grad_and_hessian(f, weights=W),
    jacobian(vector, (0,), weights=[W]),
    hessian_diag(f, weights=[W, B]),
    laplacian(f, 0, weights=[W]),
]


def made_outside(x, y, v, u, points):
    out = ()
    for transform in MADE:
        out = out + (transform(x),)
    return out


RIGHT = [
    products_of_weights,
    jacobians,
    products,
    more_products,
    gradients_and_curvatures,
    diagonals,
    passes_forward,
    of_batches,
    without_a_forward_pass,
    samples_without_a_forward_pass,
    matrices_of_weights,
    made_outside,
    more_matrices,
    more_products_of_weights,
    more_diagonals,
    more_matrices_of_weights,
    matrices,
]


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
    return [
        ((place, *path), array) for place, item in enumerate(value) for path, array in numbers(item)
    ]


def inside(kind, function, *args):
    """What `function` gives under ``@jit``, or as ``construct`` of a Cell in graph mode."""
    if kind == "jit":
        return jit(function)(*args)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        return Network(function)(*args)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("function", "kind"),
    [
        *((function, "jit") for function in RIGHT),
        *((function, "cell") for function in RIGHT if FULL or function is products_of_weights),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_results_are_those_of_outside(function, kind):
    args = X, Y, V, U, POINTS
    expected, got = numbers(function(*args)), numbers(inside(kind, function, *args))
    assert [path for path, _ in got] == [path for path, _ in expected]
    for (path, a), (_, e) in zip(got, expected, strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-12, err_msg=str(path))


# --- wrong: refused inside by the exception and the words of outside ------------------------------

SHORT, SINGLE, WHOLE = (
    Tensor([1.0], ms.float64),
    Tensor([1.0, 2.0], ms.float32),
    Tensor([1, 2], ms.int32),
)
ARRAY = np.ones(2)


def mode_hvp(x, v):
    return hvp(f, x, v, mode="nonsense")


def mode_both(x, v):
    return grad_and_hvp(f, x, v, mode=None)


def mode_curvature(x, v):
    return curvature(f, x, v, mode="fwd")


def mode_hessian(x, v):
    return hessian(f, mode="nonsense")(x)


def mode_all(x, v):
    return value_grad_and_hessian(f, mode="rev")(x)


def mode_jacobian(x, v):
    return jacobian(f, mode="revrev")(x)


def mode_laplacian(x, v):
    return laplacian(f, mode="fwd")(x)


def mode_all_three(x, v):
    return value_grad_and_laplacian(f, mode="auto ")(x)


def along_far(x, v):
    return laplacian(f, along=2)(x)


def along_text(x, v):
    return laplacian(f, along="x")(x)


def metric_shape(x, v):
    return laplacian(f, metric=[[1.0]])(x)


def metric_weights(x, v):
    return laplacian(f, weights=W, metric=METRIC)(x)


def vectors_jvp(x, v):
    return jvp(f, x, SHORT)


def position_jvp(x, v):
    return jvp(f, x, v, 1)


def mode_weights(x, v):
    return hvp(f, x, v, weights=W, mode="nonsense")


def chunk_negative(x, v):
    return hessian(f, chunk_size=-3)(x)


def chunk_float(x, v):
    return hessian_diag(f, chunk_size=1.5)(x)


def chunk_zero(x, v):
    return laplacian(f, chunk_size=0)(x)


def chunk_jacobian(x, v):
    return jacobian(f, chunk_size=True)(x)


def chunk_mode(x, v):
    return hessian(f, mode="fwdrev", chunk_size=2)(x)


def chunk_batched(x, v):
    return batched_hessian(f, chunk_size="1")(x)


def aux_number(x, v):
    return hvp(aux, x, v, has_aux=1)


def aux_text(x, v):
    return hessian(aux, has_aux="yes")(x)


def aux_missing(x, v):
    return hvp(f, x, v, has_aux=True)


def position_far(x, v):
    return hvp(f, x, v, 2)


def position_negative(x, v):
    return hessian(f, -2)(x)


def position_twice(x, v):
    return hessian(g, (0, -2))(x, v)


def position_float(x, v):
    return jacobian(g, 0.5)(x, v)


def position_text(x, v):
    return hessian_diag(g, "x")(x, v)


def position_constant(x, v):
    return hessian(scaled, 1)(x, 2.5)


def vectors_short(x, v):
    return hvp(f, x, SHORT)


def vectors_single(x, v):
    return hvp(f, x, SINGLE)


def vectors_one(x, v):
    return hvp(g, (x, x), v)


def vectors_three(x, v):
    return hvp(g, (x, x), (v, v, v))


def vectors_number(x, v):
    return hvp(f, x, 1.0)


def vectors_none(x, v):
    return grad_and_hvp(f, x, None)


def vectors_weights(x, v):
    return hvp(f, x, SHORT, weights=W)


def vectors_of_weights(x, v):
    return hvp(f, x, v, weights=[W, B])


def direction_short(x, v):
    return curvature(f, x, SHORT)


def direction_ggnvp(x, v):
    return ggnvp(vector, half_norm, x, SHORT)


def inputs_number(x, v):
    return hvp(f, 1.0, v)


def inputs_whole(x, v):
    return hvp(f, WHOLE, v)


def inputs_hessian(x, v):
    return hessian(f)(WHOLE)


def inputs_none(x, v):
    return hessian(f)(None)


def no_arguments(x, v):
    return hessian(f)()


def output_vector(x, v):
    return hvp(vector, x, v)


def output_diag(x, v):
    return hessian_diag(vector)(x)


def output_all(x, v):
    return value_grad_and_hessian(vector)(x)


def output_weights(x, v):
    return hvp(vector, x, v, weights=W)


def output_loss(x, v):
    return ggnvp(vector, vector, x, v)


def output_text(x, v):
    return hvp(text, x, v)


def fn_number(x, v):
    return hvp(3, x, v)


def fn_text(x, v):
    return hessian("f")(x)


def loss_number(x, v):
    return ggnvp(vector, 3, x, v)


def weights_text(x, v):
    return hvp(f, x, v, weights="w")


def weights_tensor(x, v):
    return hvp(f, x, v, weights=[X])


def weights_empty(x, v):
    return hvp(f, x, v, weights=[])


def weights_other(x, v):
    return hvp(f, x, OTHER, weights=OTHER)


def weights_hessian(x, v):
    return hessian(f, weights=OTHER)(x)


def weights_diag(x, v):
    return hessian_diag(f, weights="b")(x)


def weights_twice(x, v):
    return hvp(f, x, (v, v), weights=[W, W])


def weights_ggnvp(x, v):
    return ggnvp(vector, half_norm, x, SHORT, weights=W)


def weights_pair(x, v):
    return hvp(f, x, v, 0, weights=W)


def weights_whole(x, v):
    return jacobian(vector, 5, weights=W)(x)


def keyword_unknown(x, v):
    return hessian(by_name)(x, nonsense=1.0)


def keyword_position(x, v):
    return hessian(by_name, 1)(x, factor=v)


def output_points(x, v):
    return hessian_diag(vector, in_axes=0)(POINTS)


def axes_far(x, v):
    return laplacian(f, in_axes=1)(x)


def axes_none(x, v):
    return batched_hessian(f, in_axes=None)(x)


def axes_short(x, v):
    return laplacian(g, in_axes=(0,))(x, v)


def axes_text(x, v):
    return hessian_diag(f, in_axes="0")(x)


def axes_sizes(x, v):
    return batched_hessian(g, in_axes=0)(x, SHORT)


WRONG = [
    case
    for case in list(globals().values())
    if getattr(case, "__code__", None) is not None
    and case.__code__.co_varnames[: case.__code__.co_argcount] == ("x", "v")
    and case.__module__ == __name__
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.__name__)
def test_a_refusal_is_that_of_outside(case):
    with pytest.raises((TypeError, ValueError)) as outside:
        case(X, V)
    words = " ".join(str(outside.value).split()).split("'")[0][:45]
    for kind in ("jit", "cell") if FULL or WRONG.index(case) % 6 == 0 else ("jit",):
        with debris_removed(), pytest.raises((TypeError, ValueError)) as refused:
            inside(kind, case, X, V)
        assert refused.type is outside.type
        assert words in " ".join(str(refused.value).split())


def sparse_inside(x):
    return hessian(f, sparse=True)(x)


def test_what_works_outside_only_is_refused_by_name():
    for kind in ("jit", "cell"):
        with (
            debris_removed(),
            pytest.raises(NotImplementedError, match="sparse= is not supported inside your own"),
        ):
            inside(kind, sparse_inside, X)


TWIN = Parameter(Tensor([3.0, 4.0], ms.float64), name="w")


def of_two_names(x):
    return (x * W**3).sum() + (x * TWIN**2).sum()


def same_name(x):
    return hvp(of_two_names, x, x, weights=W)


def another_of_the_name(x):
    return hvp(f, x, x, weights=TWIN)


@pytest.mark.parametrize("case", [same_name, another_of_the_name], ids=lambda case: case.__name__)
def test_weights_of_one_name_are_never_taken_for_each_other(case):
    with debris_removed(), pytest.raises((ValueError, RuntimeError), match="name"):
        jit(case)(X)


class Step(nn.Cell):
    """A training step that uses a product by the weights of its own network."""

    def __init__(self, net):
        super().__init__()
        self.net, self.weights = net, ms.ParameterTuple(net.trainable_params())

    def loss(self, x):
        return (self.net(x) ** 2).mean()

    def construct(self, x, vectors):
        return hvp(self.loss, x, vectors, weights=self.weights)


def test_a_method_and_the_weights_of_a_network():
    net, x = (
        nn.SequentialCell(nn.Dense(2, 3), nn.Sigmoid(), nn.Dense(3, 1)),
        Tensor(POINTS.asnumpy(), ms.float32),
    )
    vectors = tuple(ms.ops.ones_like(p) for p in net.trainable_params())
    step = Step(net)
    expected = hvp(step.loss, x, vectors, weights=net.trainable_params())
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        got = step(x, vectors)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.asnumpy(), e.asnumpy(), rtol=1e-5, atol=1e-6)


def local(x):
    def inner(x):
        return (x**3).sum()

    return hessian(inner)(x)


def test_a_function_of_the_graph_is_refused():
    with debris_removed(), pytest.raises(TypeError, match="defined outside of it"):
        jit(local)(X)


def through_vmap(points):
    return ms.vmap(MADE_FOR_VMAP, in_axes=0)(points)


MADE_FOR_VMAP = hessian(f)


@pytest.mark.fresh_process
def test_a_transform_under_vmap_and_a_gradient():
    with debris_removed():
        got = jit(through_vmap)(POINTS).asnumpy()
    w, b = W.asnumpy(), B.asnumpy()[0]
    expected = [np.diag(6 * p * w**2 + 2 * b**3) for p in POINTS.asnumpy()]
    np.testing.assert_allclose(got, expected, rtol=1e-9)

    def total(x):
        return hvp(f, x, V).sum()

    np.testing.assert_allclose(
        jit(ops.GradOperation()(total))(X).asnumpy(), 6 * w**2 * V.asnumpy(), rtol=1e-9
    )
    assert mh.cache_info().maxsize
