"""Forward derivatives: Laplacians, Jacobian-vector products, in both ways, as a user writes
them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, jit, mint, nn, ops, vmap

import mindspore_hessian as mh
from mindspore_hessian import _compat, jvp, laplacian, rules, value_grad_and_laplacian
from mindspore_hessian.rules import interpreter

POINTS = np.random.default_rng(1).uniform(-1, 1, (4, 3))
X = Tensor(POINTS)
METRIC = np.array([[1.0, 0.5, 0.0], [0.5, -2.0, 0.1], [0.0, 0.1, 0.3]])


def wave(x):
    """sin(x0) x1^3 exp(x2): its Laplacian is -wave + 6 sin(x0) x1 exp(x2) + wave."""
    return ops.sin(x[0]) * x[1] ** 3 * ops.exp(x[2])


def hessian_of_wave(p):
    a, b, c = p
    s, k, e = np.sin(a), np.cos(a), np.exp(c)
    return np.array(
        [
            [-s * b**3 * e, 3 * k * b**2 * e, k * b**3 * e],
            [3 * k * b**2 * e, 6 * s * b * e, 3 * s * b**2 * e],
            [k * b**3 * e, 3 * s * b**2 * e, s * b**3 * e],
        ]
    )


HESSIANS = np.array([hessian_of_wave(p) for p in POINTS])
GRADIENTS = np.array(
    [
        [
            np.cos(a) * b**3 * np.exp(c),
            3 * np.sin(a) * b**2 * np.exp(c),
            np.sin(a) * b**3 * np.exp(c),
        ]
        for a, b, c in POINTS
    ]
)
VALUES = np.array([np.sin(a) * b**3 * np.exp(c) for a, b, c in POINTS])


def close(found, expected, rtol=1e-12):
    np.testing.assert_allclose(found.asnumpy(), expected, rtol=rtol, atol=1e-13)


# --- what is computed -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize(
    ("options", "operator"),
    [
        ({}, np.eye(3)),
        ({"along": (0, -1)}, np.diag([1, 0, 1])),
        ({"metric": METRIC}, METRIC),
        ({"along": (2, 1), "metric": [[2.0, 1.0], [1.0, 3.0]]}, [[0, 0, 0], [0, 3, 1], [0, 1, 2]]),
    ],
    ids=["all", "along", "indefinite", "both"],
)
def test_an_operator_at_points_is_its_closed_form(mode, options, operator):
    expected = np.einsum("ij,nij->n", np.asarray(operator, float), HESSIANS)
    close(laplacian(wave, in_axes=0, mode=mode, chunk_size=3, **options)(X), expected, 1e-11)
    close(laplacian(wave, mode=mode, chunk_size=2, **options)(X[1]), expected[1], 1e-11)


def several(x, y):
    """A vector and a number, of two inputs."""
    return x * y[1], (x * x).sum() * ops.sin(y[0])


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_outputs_inputs_and_axes(mode):
    """Each entry of each output; the samples of y lie along its last axis."""
    y = np.random.default_rng(2).uniform(-1, 1, (2, 4))
    one, two = laplacian(several, (0, 1), in_axes=(0, 1), mode=mode)(X, Tensor(y))
    close(one, np.zeros((4, 3)))
    close(two, 6 * np.sin(y[0]) - (POINTS**2).sum(1) * np.sin(y[0]))
    one, two = laplacian(several, 1, in_axes=(None, 1), mode=mode)(X[0], Tensor(y))
    close(two, -(POINTS[0] ** 2).sum() * np.sin(y[0]))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_value_gradient_and_laplacian(mode):
    for axes, at in ((0, X), (1, Tensor(POINTS.T.copy()))):
        value, gradient, second = value_grad_and_laplacian(
            wave, in_axes=axes, mode=mode, chunk_size=3
        )(at)
        close(value, VALUES)
        close(gradient, GRADIENTS)
        close(second, HESSIANS.trace(axis1=1, axis2=2), 1e-11)
    (value, gradients, second), aux = value_grad_and_laplacian(
        lambda x, y: (wave(x) * y.sum(), y), (1, 0), True, mode=mode
    )(X[0], X[1])
    close(gradients[0], np.full(3, VALUES[0]))
    close(gradients[1], GRADIENTS[0] * POINTS[1].sum())
    close(second, np.trace(HESSIANS[0]) * POINTS[1].sum())
    close(aux, POINTS[1])


def waves(xs):
    return ops.sin(xs[:, :1]) * xs[:, 1:2] ** 3 * ops.exp(xs[:, 2:])


def waves_in_columns(xs):
    return ops.sin(xs[0]) * xs[1] ** 3 * ops.exp(xs[2]), xs.sum(0)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_functions_of_a_whole_batch(mode, chunk):
    options = {"batched": True, "mode": mode, "chunk_size": chunk}
    expected = HESSIANS.trace(axis1=1, axis2=2)
    close(laplacian(waves, in_axes=0, **options)(X), expected[:, None], 1e-11)
    one, two = laplacian(waves_in_columns, in_axes=1, **options)(Tensor(POINTS.T.copy()))
    close(one, expected, 1e-11)
    close(two, np.zeros(4))
    close(
        laplacian(waves, in_axes=0, metric=METRIC, **options)(X)[:, 0],
        np.einsum("ij,nij->n", METRIC, HESSIANS),
        1e-11,
    )
    value, gradient, second = value_grad_and_laplacian(waves, in_axes=0, **options)(X)
    close(value, VALUES[:, None])
    close(gradient, GRADIENTS)
    close(second, expected[:, None], 1e-11)


@pytest.mark.parametrize(
    "function",
    [
        lambda xs: (xs**2).sum(1) - xs.mean(),
        lambda xs: ops.softmax(xs, 0).sum(1) + xs[:, 0],
        lambda xs: xs.cumsum(0).sum(1) * xs[::-1].sum(1),
        nn.BatchNorm1d(3, dtype=ms.float64).set_train(),
    ],
    ids=["mean", "softmax", "cumsum", "batch norm"],
)
@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_a_function_of_a_batch_that_mixes_its_samples_is_refused(function, mode):
    with pytest.raises(ValueError, match="each of its own sample alone"):
        laplacian(function, in_axes=0, batched=True, mode=mode)(X)


W, B, S = (Tensor(np.random.default_rng(2).normal(size=shape)) for shape in ((3, 4), 4, 3))
DENSE = nn.Dense(3, 4, dtype=ms.float64)


def first_layers(x):
    """What is the same for all samples until a layer that is not affine, in many spellings."""
    z = ops.matmul(x, W)
    return (
        (ops.tanh(z + B) ** 2).sum(-1),
        ops.sin(DENSE(x)).sum(-1),
        ops.exp(-ops.dense(x, W.T, B)).sum(-1),
        ops.tanh(ops.matmul((2 * x - 1) / S, W)).sum(-1),
        ((ops.tanh(x) + x + ops.matmul(z, W.T)) ** 3).sum(-1),
        (ops.matmul(z, W.T) * x).sum(-1),
        z.sum(-1),
        ops.tanh(ops.matmul(ops.concat((x[:, 1:], x[:, :1]), -1), W)).sum(-1),
        ops.tanh(ops.matmul(x.reshape(-1, 1, 3), W)).sum((-1, -2)),
        (ops.concat((ops.sin(z), z, x), -1) ** 2).sum(-1),
        (ops.relu(z) ** 3).sum(-1),
        (ops.tanh(1 - x) / (x * x + 2) * ops.tanh(S / (x * x + 2))).sum(-1),
        (ops.softmax(z, -1) ** 2).sum(-1),
        (ops.stack((x, -2 * x), 1) ** 3).sum((-1, -2)),
        ops.tanh(ops.addmm(B, x, W)).sum(-1),
        ops.tanh(ops.expand_dims(x, -1) * ops.expand_dims(x, -2)).sum((-1, -2)),
        ops.tanh(ops.mv(x, S)),
        ops.tanh(x + x).sum(-1) * ops.tanh(S - x).sum(-1),
        ops.where(x > 0, x, x * 2).sum(-1) ** 3,
        ops.norm(x, dim=-1),
    )


STENCIL = {-2: -1, -1: 16, 0: -30, 1: 16, 2: -1}


def by_differences(function, inputs, places, axis, entries=None, h=1e-3):
    """The Laplacians of each sample, from values of fourth order; all samples move at once."""
    total = 0
    for place in places:
        x = inputs[place].asnumpy()
        shape = x.shape[:axis] + (1,) + x.shape[axis + 1 :]
        for number in range(int(np.prod(shape))) if entries is None else entries:
            unit = np.eye(int(np.prod(shape)))[number].reshape(shape)
            for step, weight in STENCIL.items():
                moved = list(inputs)
                moved[place] = Tensor(x + step * h * unit)
                out = function(*moved)
                out = out if isinstance(out, tuple) else (out,)
                total = total + weight / (12 * h * h) * np.array([one.asnumpy() for one in out])
    return total


def test_derivatives_that_are_the_same_for_all_samples():
    """Forward derivatives go through affine layers once for all samples."""
    forward = laplacian(first_layers, in_axes=0, batched=True, mode="forward")(X)
    for found, expected in zip(forward, by_differences(first_layers, (X,), (0,), 0), strict=True):
        np.testing.assert_allclose(
            found.asnumpy(), expected, rtol=1e-7, atol=1e-6 * np.abs(expected).max() + 1e-8
        )
    w, t = W.asnumpy(), np.tanh(POINTS @ W.asnumpy() + B.asnumpy())
    slope = 1 - t**2
    close(forward[0], ((2 * slope**2 - 4 * t**2 * slope) * (w**2).sum(0)).sum(-1))
    close(forward[6], np.zeros(4))


def samples_last(x):
    return ops.tanh(ops.matmul(x.T, W)).sum(-1) * ops.tanh(ops.matmul(W.T, x)).sum(0)


def of_two(x, y):
    return ops.tanh(ops.matmul(ops.concat((x, y), -1), ops.concat((W, W), 0))).sum(-1)


def of_a_sequence(x):
    return ops.tanh(ops.matmul(x, W)).sum((-1, -2))


def of_numbers(x):
    return ops.tanh(ops.matmul(x, W))


def deciding(x):
    """By a Tensor, whether a nonlinearity is applied."""
    y = ops.matmul(x, W)
    if y.sum() > -1e3:
        y = y * y * y
    return y.sum(-1)


@pytest.mark.parametrize(
    ("function", "inputs", "places", "axis", "along"),
    [
        (samples_last, (X.T,), (0,), 1, None),
        (of_two, (X, X + 1), (0, 1), 0, None),
        (of_two, (X, X + 1), (1,), 0, None),
        (of_a_sequence, (ops.stack((X, 2 * X), 1),), (0,), 0, None),
        (of_a_sequence, (ops.expand_dims(X[:1], 1),), (0,), 0, None),
        (of_numbers, (X,), (0,), 0, None),
        (of_numbers, (X,), (0,), 0, (0, 2)),
    ],
)
def test_samples_and_options_of_what_is_the_same(function, inputs, places, axis, along):
    options = {"grad_position": places, "along": along, "in_axes": axis, "batched": True}
    found = laplacian(function, mode="forward", **options)(*inputs).asnumpy()
    (expected,) = by_differences(function, inputs, places, axis, along)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def minus_one(x, y):
    return -1, 0


def test_slopes_that_are_numbers(monkeypatch):
    """A rule of the user's may say that f' is a number: what is the same for all samples is made as
    large as they are."""
    monkeypatch.setitem(rules.registry.FORWARD_RULES, "Neg", rules.forward.elementwise(minus_one))
    found = laplacian(lambda x: (-x).sum(-1) ** 2, in_axes=0, batched=True, mode="forward")(X)
    close(found, np.full(4, 6.0))


def test_values_of_both_kinds_meet_in_a_branch():
    """y^3 = (x W)^3: 6 y |w|^2 summed over its entries."""
    found = laplacian(deciding, in_axes=0, batched=True, mode="forward")(X)
    close(found, (6 * (POINTS @ W.asnumpy()) * (W.asnumpy() ** 2).sum(0)).sum(-1))


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_an_indefinite_operator_keeps_the_digits_of_captured_tensors(mode, batched):
    """In one graph MindSpore would copy them by TensorMove, which rounds float64 to float32."""
    found = laplacian(
        lambda x: (ops.matmul(x, W) ** 3).sum(-1),
        in_axes=0,
        batched=batched,
        metric=METRIC,
        mode=mode,
    )(X)
    w = W.asnumpy()
    close(found, (6 * (POINTS @ w) * np.einsum("ih,ij,jh->h", w, METRIC, w)).sum(-1))


def test_a_function_of_a_batch_must_keep_the_samples_first():
    with pytest.raises(ValueError, match=r"for 4 samples its output has shape \(3,?\)"):
        laplacian(lambda xs: (xs**2).sum(0), in_axes=0, batched=True)(X)
    with pytest.raises(ValueError, match="one number"):
        value_grad_and_laplacian(lambda xs: xs**2, in_axes=0, batched=True)(X)


def log_psi(r, w0, b0, w1, b1, w2, b2, w3, b3, w4, b4):
    """As ci/bench/laplacian.py has it, of one walker: features of ten electrons and of their pairs,
    residual layers, and the logarithm of a sum of four determinants."""
    between = r[:, None, :] - r[None, :, :]
    distance = ops.sqrt((between * between).sum(-1)[..., None] + Tensor(np.eye(10)[:, :, None]))
    radius = ops.sqrt((r * r).sum(-1)[..., None])
    one = ops.tanh(ops.matmul(ops.cat((r, radius), -1), w0) + b0)
    pair = ops.tanh(ops.matmul(ops.cat((between, distance), -1), w1) + b1).mean(1)
    for w, b in ((w2, b2), (w3, b3)):
        mean = one.mean(0)[None] + 0 * one
        one = one + ops.tanh(ops.matmul(ops.cat((one, mean, pair), -1), w) + b)
    orbitals = ((ops.matmul(one, w4) + b4) * ops.exp(-radius)).reshape((10, 4, 10)).swapaxes(0, 1)
    sign, logdet = ops.slogdet(orbitals)
    largest = ops.stop_gradient(logdet).max()
    return ops.log(ops.abs((sign * ops.exp(logdet - largest)).sum())) + largest


def test_the_logarithm_of_a_wave_function():
    """Against JAX (ci/golden/make_wave.py)."""
    golden = np.load(Path(__file__).parent / "golden" / "wave.npz")
    x, *weights = (
        Tensor(golden[name].astype(np.float64))
        for name in ("x", *(f"{kind}{k}" for k in range(5) for kind in "wb"))
    )

    def psi(r):
        return log_psi(r, *weights)

    close(laplacian(psi, in_axes=0, mode="forward")(x), golden["laplacian"], 1e-10)


def times_largest(x):
    return (x**3).sum() * ops.stop_gradient(x).max()


def test_a_primitive_without_a_batching_rule_is_not_copied_for_each_sample(monkeypatch):
    monkeypatch.delitem(_compat.batching_registry(), "Max")
    values = np.random.default_rng(0).normal(size=(80, 3))
    x, expected = Tensor(values), 6 * values.sum(1) * values.max(1)
    with pytest.raises(mh.MissingRuleError, match="primitive Max has no batching rule"):
        laplacian(times_largest, in_axes=0, mode="forward")(x)
    with pytest.warns(mh.FallbackWarning, match="Max has no batching rule"):
        close(laplacian(times_largest, in_axes=0)(x), expected)
    close(laplacian(times_largest, in_axes=0, mode="forward")(x[:3]), expected[:3])


def test_a_jacobian_vector_product():
    v, y, w = np.random.default_rng(3).uniform(-1, 1, (3, 3))
    (one, two), (first, second) = jvp(several, (X[0], Tensor(y)), (Tensor(v), Tensor(w)))
    x = POINTS[0]
    close(one, x * y[1])
    close(two, (x @ x) * np.sin(y[0]))
    close(first, v * y[1] + x * w[1])
    close(second, 2 * x @ v * np.sin(y[0]) + x @ x * np.cos(y[0]) * w[0])
    close(jvp(several, (X[0], Tensor(y)), Tensor(w), 1)[1][1], x @ x * np.cos(y[0]) * w[0])


def test_a_jacobian_vector_product_over_weights():
    net = nn.Dense(3, 2, dtype=ms.float64)
    v = np.random.default_rng(4).uniform(-1, 1, (2, 3))
    value, product = jvp(net, X, [Tensor(v)], weights=[net.weight])
    close(product, POINTS @ v.T)
    close(value, net(X).asnumpy())


def test_what_does_not_depend_on_the_point_has_no_derivatives():
    close(laplacian(lambda x: ops.ones(2, ms.float64) * 3, mode="forward")(X[0]), np.zeros(2))
    close(laplacian(lambda x: ops.stop_gradient(x) ** 3, mode="forward")(X[0]), np.zeros(3))
    close(jvp(lambda x: (x > 0).astype(ms.float64), X[0], X[1])[1], np.zeros(3))
    close(
        jvp(lambda x: (3 * x).astype(ms.int32).astype(ms.float64) * x, X[0], X[1])[1],
        np.trunc(3 * POINTS[0]) * POINTS[1],
    )


class Straight(nn.Cell):
    """x^3, whose derivative is said to be 1."""

    def construct(self, x):
        return x**3

    def bprop(self, x, out, dout):
        return (dout,)


class Stopped(nn.Cell):
    """x stopped, times x^2: by a primitive of its own."""

    def __init__(self):
        super().__init__()
        self.stop = ops.StopGradient()

    def construct(self, x):
        return (self.stop(x) * x * x).sum()


def stopped(x):
    return (ops.stop_gradient(ops.tanh(x)) * x**2).sum()


def stopped_inside(x):
    return (ops.StopGradient()(x) * x * x).sum()


def test_places_have_no_derivatives():
    def fn(x):
        return x[ops.argmax(x)] ** 3 + x[ops.argmin(x, 0)] ** 2 + x[mint.argmax(-x)]

    close(laplacian(fn, mode="forward", in_axes=0)(X), 6 * POINTS.max(1) + 2)


def test_what_is_stopped_is_constant():
    """A forward pass sees `ops.stop_gradient`; past other ways to say that it does not go."""
    close(laplacian(stopped, in_axes=0, mode="forward")(X), 2 * np.tanh(POINTS).sum(1))
    for fn in (Stopped(), stopped_inside):
        with pytest.raises(mh.MissingRuleError, match="StopGradient"):
            laplacian(fn, mode="forward")(X[0])
        with pytest.warns(mh.FallbackWarning, match="StopGradient"):
            close(laplacian(fn)(X[0]), 2 * POINTS[0].sum())
    with pytest.raises(mh.MissingRuleError, match="bprop"):
        laplacian(Straight(), mode="forward")(X[0])


# --- where a rule is missing ----------------------------------------------------------------------


def without(x):
    """The largest x^2, squared, as a distance."""
    return (ops.cdist((x * x)[None], (0 * x)[None], float("inf")) ** 2).sum()


def test_a_missing_rule_is_refused_by_name():
    with pytest.raises(mh.MissingRuleError, match="Cdist has no forward rule"):
        laplacian(without, mode="forward")(X[0])
    assert not isinstance(_compat.vmap_base.vmap_rules_getters, interpreter.Table)


def test_without_a_rule_reverse_derivatives_are_taken_and_it_is_said_once():
    lap = laplacian(without, in_axes=0)
    with pytest.warns(mh.FallbackWarning, match="Cdist has no forward rule"):
        found = lap(X)
    close(found, laplacian(without, in_axes=0, mode="reverse")(X).asnumpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lap(X)
    with pytest.warns(mh.FallbackWarning, match="Cdist"):
        product = jvp(without, X[0], X[1])[1]
    close(product, (mh.jacobian(without)(X[0]).asnumpy() * POINTS[1]).sum())


def test_a_rule_of_the_users():
    def slopes(x, y):  # y'' = y - y' / x
        first = -ops.bessel_k1(x)
        return first, y - first / x

    rules.register_forward("BesselK0", rules.forward.elementwise(slopes))
    try:
        close(
            laplacian(lambda x: ops.bessel_k0(x + 2).sum(), mode="forward")(X[0]),
            laplacian(lambda x: ops.bessel_k0(x + 2).sum(), mode="reverse")(X[0]).asnumpy(),
        )
    finally:
        del rules.registry.FORWARD_RULES["BesselK0"]


# --- networks as people write them ----------------------------------------------------------------


def dense(a, b):
    return nn.Dense(a, b, dtype=ms.float64)


class Residual(nn.Cell):
    """Fourier features, then residual blocks with layer norm and a gate."""

    def __init__(self):
        super().__init__()
        self.frequencies = Tensor(np.random.default_rng(5).normal(size=(3, 4)))
        self.first, self.gate, self.second, self.last = (
            dense(8, 6),
            dense(6, 6),
            dense(6, 6),
            dense(6, 1),
        )

    def construct(self, x):
        z = ops.matmul(x, self.frequencies)
        h = self.first(ops.concat((ops.sin(z), ops.cos(z)), -1))
        for _ in range(2):
            c = h - h.mean(-1, keep_dims=True)
            n = c / ops.sqrt((c * c).mean(-1, keep_dims=True) + 1e-3)
            h = h + ops.silu(self.gate(n)) * ops.sigmoid(self.second(n))
        return self.last(ops.elu(h) * ops.erf(h)).squeeze(-1)


class Orbitals(nn.Cell):
    """log |psi| of three electrons: a determinant of orbitals times an envelope of their
    distances.
    """

    def __init__(self):
        super().__init__()
        self.hidden, self.orbitals = dense(4, 5), dense(5, 3)
        self.off = Tensor(1 - np.eye(3))

    def construct(self, x):
        r = x.reshape(3, 3)
        far = ops.sqrt((r * r).sum(-1, keepdims=True) + 0.1)
        h = ops.tanh(self.hidden(ops.concat((r, far), -1)))
        _, log = ops.slogdet(self.orbitals(h) * ops.exp(-far))
        pairs = r.expand_dims(0) - r.expand_dims(1)
        distance = ops.sqrt((pairs * pairs).sum(-1) + 0.2)
        return log + 0.25 * (self.off * distance / (1 + distance)).sum()


class Attention(nn.Cell):
    """A softmax over what three inputs say of each other."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = dense(1, 4), dense(4, 1)

    def construct(self, x):
        h = self.inner(x.expand_dims(-1))
        w = ops.softmax(ops.matmul(h, h.swapaxes(-1, -2)) / 2, -1)
        return self.out(ops.relu(ops.matmul(w, h)) ** 3).sum()


NETWORKS = {
    "mlp": (
        lambda: nn.SequentialCell(dense(3, 5), nn.Tanh(), dense(5, 5), nn.Sigmoid(), dense(5, 2)),
        3,
    ),
    "residual": (Residual, 3),
    "orbitals": (Orbitals, 9),
    "attention": (Attention, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    """Forward is reverse, at points and at one; and central differences of the gradient agree."""
    ms.set_seed(1)
    make, inputs = NETWORKS[name]
    net, points = make(), np.random.default_rng(6).uniform(-1, 1, (3, inputs))
    forward = laplacian(net, in_axes=0, mode="forward")(Tensor(points)).asnumpy()
    np.testing.assert_allclose(
        laplacian(net, mode="forward")(Tensor(points[0])).asnumpy(), forward[0], rtol=1e-10
    )
    np.testing.assert_allclose(
        forward,
        laplacian(net, in_axes=0, mode="reverse")(Tensor(points)).asnumpy(),
        rtol=1e-9,
        atol=1e-11,
    )
    step = 1e-4 * np.eye(inputs)
    near = np.stack([points[0] + sign * row for sign in (1, -1) for row in step])
    values = (
        vmap(net)(Tensor(near)).asnumpy()
        if name == "mlp"
        else np.array([net(Tensor(p)).asnumpy() for p in near])
    )
    at = net(Tensor(points[0])).asnumpy()
    np.testing.assert_allclose(
        (values.sum(0) - 2 * inputs * at) / 1e-8, forward[0], rtol=2e-5, atol=2e-5
    )


# --- in the user's own graph ----------------------------------------------------------------------


class Field(nn.Cell):
    """u(x) = w . x^3 at one point; its Laplacian is 6 w . x."""

    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor([1.0, 2.0, -1.0], ms.float64), name="w")

    def construct(self, x):
        return (self.w * x * x * x).sum()


@pytest.fixture(params=[ms.PYNATIVE_MODE, ms.GRAPH_MODE], ids=["pynative", "graph"])
def context(request):
    before = ms.get_context("mode")
    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=before)


@pytest.mark.parametrize("way", ["auto", "forward", "reverse"])
def test_a_loss_of_laplacians_is_trained(context, way):
    """d/dw mean (6 w . x)^2 = mean 72 (w . x) x."""
    net = Field()
    lap = laplacian(net, in_axes=0, mode=way)

    def loss(points):
        return (lap(points) ** 2).mean()

    w = net.w.asnumpy()
    for step in (
        ms.value_and_grad(loss, None, net.trainable_params()),
        jit(ms.value_and_grad(loss, None, net.trainable_params())),
    ):
        value, (gradient,) = step(X)
        np.testing.assert_allclose(float(value), ((6 * POINTS @ w) ** 2).mean())
        close(gradient, (72 * (POINTS @ w)[:, None] * POINTS).mean(0))


def one_and_others(points):
    """A forward pass, an ordinary vmap and a Hessian in one graph."""
    return laplacian(wave, in_axes=0)(points), vmap(wave)(points), mh.hessian(wave)(points[0])


def with_and_without_rules(points):
    return laplacian(wave, metric=METRIC)(points[0]), laplacian(without, in_axes=0)(points)


def more_passes(points):
    x = points[0]
    return (
        value_grad_and_laplacian(wave)(x)[1],
        jvp(wave, x, points[1]),
        value_grad_and_laplacian(without, in_axes=0)(points)[1],
    )


def compiled(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mh.FallbackWarning)
        found = jit(function)(X)
    assert not isinstance(_compat.vmap_base.vmap_rules_getters, interpreter.Table)
    return found


def test_in_one_graph_with_other_transforms():
    found = compiled(one_and_others)
    close(found[0], HESSIANS.trace(axis1=1, axis2=2), 1e-11)
    close(found[1], VALUES)
    close(found[2], HESSIANS[0])


@pytest.mark.full_run
def test_functions_with_and_without_rules_in_one_graph():
    found = compiled(with_and_without_rules)
    close(found[0], (METRIC * HESSIANS[0]).sum(), 1e-11)
    close(found[1], laplacian(without, in_axes=0, mode="reverse")(X).asnumpy())


@pytest.mark.full_run
def test_several_passes_in_one_graph():
    found = compiled(more_passes)
    close(found[0], GRADIENTS[0])
    close(found[1][0], VALUES[0])
    close(found[1][1], GRADIENTS[0] @ POINTS[1])
    close(found[2], value_grad_and_laplacian(without, in_axes=0, mode="reverse")(X)[1].asnumpy())


WAY = Tensor([1.0, -2.0, 0.5], ms.float64)


def fifth_powers(x):
    return (x**5).sum()


def moved(t, x):
    return fifth_powers(x + t * WAY)


def moved_laplacian(t, x):
    return laplacian(fifth_powers, mode="forward")(x + t * WAY)


def second(x):
    return mh.derivative(moved, 2)(0 * x[0], x)


def both_in_one_graph(x):
    one = mh.derivative(moved_laplacian, 2)(0 * x[0], x)
    return one, laplacian(second, mode="forward")(x), fifth_powers(x)


def test_laplacians_and_taylor_series_within_each_other():
    """The fourth derivative of x^5 is 120 x; twice along one way, twice along each axis."""
    one, other, value = jit(both_in_one_graph)(X[0])
    expected = 120 * (POINTS[0] * WAY.asnumpy() ** 2).sum()
    close(one, expected)
    close(other, expected)
    close(value, (POINTS[0] ** 5).sum())


def test_a_laplacian_makes_no_taylor_rules(monkeypatch):
    """MindSpore parses what a rule has, used or not."""
    asked, own = [], rules.registry.TAYLOR_RULES["Exp"]

    def watched(prim, usual):
        asked.append(prim)
        return own(prim, usual)

    vars(watched).update(vars(own))
    monkeypatch.setitem(rules.registry.TAYLOR_RULES, "Exp", watched)
    close(laplacian(ops.exp, mode="forward")(X[0, 0]), np.exp(POINTS[0, 0]))
    assert not asked
    close(mh.derivative(ops.exp, 2)(X[0, 0]), np.exp(POINTS[0, 0]))
    assert asked


def quartic(x):
    return (x * x * x * x).sum()


QUARTIC = laplacian(quartic)


def at_points(points):
    return vmap(QUARTIC)(points)


def slope(points):
    return ms.grad(QUARTIC)(points[0])


def biharmonic(points):
    return laplacian(lambda x: QUARTIC(x))(points[0])


def hessian_of_it(points):
    return mh.hessian(lambda x: QUARTIC(x))(points[0])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (at_points, 12 * (POINTS**2).sum(1)),
        (slope, 24 * POINTS[0]),
        (biharmonic, 72),
        (hessian_of_it, 24 * np.eye(3)),
    ],
    ids=["vmap", "gradient", "Laplacian", "Hessian"],
)
def test_a_laplacian_inside_of_other_transforms(function, expected):
    """The Laplacian of sum x^4 is 12 |x|^2; its gradient 24 x, its Laplacian 24 n."""
    close(jit(function)(X), expected)
