"""AdaHessian, Sophia and the training step, against numpy in float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, Tensor, nn, ops

import mindspore_hessian as mh
from mindspore_hessian import optim
from mindspore_hessian.optim.train_step import probe, uniforms

RNG = np.random.default_rng(0)
START = RNG.standard_normal(20)
X, Y = RNG.standard_normal((16, 2)), RNG.standard_normal(16)
DATA = Tensor(X), Tensor(Y)


class Net(nn.Cell):
    """tanh(x W1 + b1) W2, in float64."""

    def __init__(self):
        super().__init__()
        self.w1 = Parameter(Tensor(START[:10].reshape(2, 5)), name="w1")
        self.b1 = Parameter(Tensor(START[10:15]), name="b1")
        self.w2 = Parameter(Tensor(START[15:]), name="w2")

    def construct(self, x):
        return ops.matmul(ops.tanh(ops.matmul(x, self.w1) + self.b1), self.w2)


@pytest.mark.parametrize("kind", ["sgd", "adahessian", "kfac"])
def test_a_step_is_of_what_the_loss_captured_now(kind):
    net, config = nn.Dense(2, 1), {"beta": 1.0}
    x, target = Tensor(X.astype(np.float32)), Tensor(Y.reshape(-1, 1).astype(np.float32))

    def loss(out, y):
        return config["beta"] * ((out - y) ** 2).mean()

    optimizer = {
        "sgd": lambda: nn.SGD(net.trainable_params(), 0.0),
        "adahessian": lambda: optim.AdaHessian(net.trainable_params(), 0.0),
        "kfac": lambda: optim.KFAC(net, 0.0, likelihood="gaussian"),
    }[kind]()
    step = optim.TrainStep(net, loss, optimizer)
    first = float(step(x, target).asnumpy())
    for beta in (3.0, 0.5):
        config["beta"] = beta
        found = float(step(x, target).asnumpy())
        np.testing.assert_allclose(found, beta * first, rtol=1e-5)
    config["beta"] = 7.0
    with pytest.warns(mh.RecompileWarning, match="has changed 3 times"):
        step(x, target)


def mean_square(out, y):
    return ((out - y) ** 2).mean()


def flat(net):
    return np.concatenate([p.asnumpy().ravel() for p in net.trainable_params()]).copy()


def numpy_gradient(w, x=X, y=Y):
    w1, b1, w2 = w[:10].reshape(2, 5), w[10:15], w[15:]
    t = np.tanh(x @ w1 + b1)
    out = 2 * (t @ w2 - y) / len(y)
    inner = out[:, None] * w2 * (1 - t**2)
    return np.concatenate([(x.T @ inner).ravel(), inner.sum(0), t.T @ out])


def numpy_curvature(w, z):
    return z * numpy_gradient(w + 1e-30j * z).imag / 1e-30  # a complex step: exact to rounding


def numpy_adahessian(w, steps, lr, decay, seed, b1=0.9, b2=0.999, eps=1e-8, power=1.0):
    m = v = np.zeros(20)
    for t in range(1, steps + 1):
        g, d = numpy_gradient(w), numpy_curvature(w, probe(seed, t - 1, 20).astype(float))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d * d
        rate = lr[t - 1] if np.ndim(lr) == 2 else lr
        w = (
            w
            - rate * decay * w
            - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) ** power + eps)
        )
    return w


def numpy_sophia(w, steps, lr, decay, seed, b1=0.965, b2=0.99, rho=0.04, k=10):
    m = h = np.zeros(20)
    for t in range(1, steps + 1):
        m = b1 * m + (1 - b1) * numpy_gradient(w)
        if (t - 1) % k == 0:
            h = b2 * h + (1 - b2) * numpy_curvature(w, probe(seed, t - 1, 20).astype(float))
        w = w - lr * decay * w
        w = w - lr * np.clip(m / np.maximum(rho * h, 1e-12), -1, 1)
    return w


@pytest.fixture(params=["GRAPH_MODE", "PYNATIVE_MODE"])
def mode(request):
    before = ms.get_context("mode")
    ms.set_context(mode=getattr(ms, request.param))
    yield request.param
    ms.set_context(mode=before)


RULES = {
    "AdaHessian": (
        lambda w: optim.AdaHessian(w, 0.1),
        lambda: numpy_adahessian(START, 100, 0.1, 0.0, 3),
    ),
    "AdaHessian, its options": (
        lambda w: optim.AdaHessian(w, 0.03, 0.8, 0.95, 1e-3, weight_decay=0.02, hessian_power=0.5),
        lambda: numpy_adahessian(START, 100, 0.03, 0.02, 3, 0.8, 0.95, 1e-3, 0.5),
    ),
    "Sophia": (lambda w: optim.Sophia(w, 0.01), lambda: numpy_sophia(START, 100, 0.01, 0.1, 3)),
    "Sophia, its options": (
        lambda w: optim.Sophia(w, 0.02, 0.9, 0.8, 0.3, weight_decay=0.0, update_interval=3),
        lambda: numpy_sophia(START, 100, 0.02, 0.0, 3, 0.9, 0.8, 0.3, 3),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_trajectories_are_the_published_rules(name, mode):
    if mode == "PYNATIVE_MODE" and "options" in name and not FULL:
        pytest.skip("in the full run")
    make, expected = RULES[name]
    net = Net()
    step = optim.TrainStep(net, mean_square, make(net.trainable_params()), seed=3)
    losses = [step(*DATA) for _ in range(100)]
    np.testing.assert_allclose(flat(net), expected(), rtol=1e-10, atol=1e-12)
    assert float(losses[0]) == pytest.approx(
        ((np.tanh(X @ START[:10].reshape(2, 5) + START[10:15]) @ START[15:] - Y) ** 2).mean(),
        rel=1e-6,
    )  # the loss before the step
    assert int(step.optimizer.global_step[0]) == 100 and int(step.optimizer.skipped) == 0


def test_groups_schedules_and_decay():
    net = Net()
    rates = np.linspace(0.1, 0.01, 20).astype(np.float32)
    groups = [
        {"params": [net.w1], "lr": 0.05, "weight_decay": 0.1},
        {"params": [net.w2]},
        {"params": [net.b1], "lr": list(map(float, rates))},
        {"order_params": net.trainable_params()},
    ]
    step = optim.TrainStep(net, mean_square, optim.AdaHessian(groups, 0.02), seed=3)
    for _ in range(20):
        step(*DATA)
    lr = np.stack(
        [
            np.concatenate([np.full(10, 0.05), np.full(5, rate), np.full(5, 0.02)])
            for rate in rates.astype(np.float64)
        ]
    )
    decay = np.concatenate([np.full(10, 0.1), np.zeros(10)])
    np.testing.assert_allclose(flat(net), numpy_adahessian(START, 20, lr, decay, 3), rtol=1e-10)


def test_a_rate_that_is_changed_counts():
    net = Net()
    step = optim.TrainStep(net, mean_square, optim.AdaHessian(net.trainable_params(), 0.1), seed=3)
    step(*DATA)
    ops.assign(step.optimizer.learning_rate, Tensor(0.0))
    there = flat(net)
    step(*DATA)
    np.testing.assert_array_equal(flat(net), there)


class Vision(nn.Cell):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.pool = (
            nn.Conv2d(1, 4, 3, has_bias=True),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(2, 2),
        )
        self.head, self.activation = nn.Dense(64, 3), nn.GELU()

    def construct(self, x):
        x = self.pool(self.activation(self.norm(self.conv(x))))
        return self.head(x.reshape(x.shape[0], -1))


class Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.embed, self.attend = nn.Dense(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm((8,)), nn.Dense(8, 3)

    def construct(self, x):
        x = self.embed(x.reshape(x.shape[0], 8, 8))
        return self.head(self.norm(x + self.attend(x, x, x)[0])[:, 0])


class Residual(nn.Cell):
    """Writes in place, as many do."""

    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two, self.head = (
            nn.BatchNorm1d(64),
            nn.Dense(64, 64),
            nn.Dense(64, 64),
            nn.Dense(64, 3),
        )

    def construct(self, x):
        x = self.norm(x.reshape(x.shape[0], -1))
        y = self.two(ops.tanh(self.one(x)))
        y += x
        return self.head(y)


IMAGES = Tensor(RNG.standard_normal((8, 1, 8, 8)), ms.float32)
LABELS = Tensor(RNG.integers(0, 3, 8), ms.int32)


@pytest.mark.parametrize(
    "kind",
    [
        Vision,
        Residual,
        pytest.param(Attention, marks=pytest.mark.skipif(not FULL, reason="in the full run")),
    ],
)
def test_networks_as_people_write_them(kind):
    """With beta1 = beta2 = 0 the moments are the gradient and the squared curvature: those of
    `grad_and_hvp`.
    """
    ms.set_seed(0)
    net, loss = kind().set_train(), nn.CrossEntropyLoss()
    weights = net.trainable_params()
    z = probe(0, 0, sum(p.size for p in weights)).astype(np.float32)
    ends = np.cumsum([p.size for p in weights])[:-1]
    signs = [
        Tensor(part.reshape(p.shape)) for part, p in zip(np.split(z, ends), weights, strict=True)
    ]

    def forward(x, y):
        return loss(net(x), y)

    gradient, image = mh.grad_and_hvp(forward, (IMAGES, LABELS), tuple(signs), weights=weights)
    gradient, image = ([part.asnumpy().copy() for part in parts] for parts in (gradient, image))
    statistics = [p for p in net.get_parameters() if "moving" in p.name]
    before = [p.asnumpy().copy() for p in statistics]
    optimizer = optim.AdaHessian(weights, 0.0, beta1=0.0, beta2=0.0)
    value = optim.TrainStep(net, loss, optimizer)(IMAGES, LABELS)
    after = [p.asnumpy().copy() for p in statistics]
    for m, v, g, h in zip(optimizer.moment1, optimizer.moment2, gradient, image, strict=True):
        np.testing.assert_allclose(m.asnumpy(), g, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(v.asnumpy(), h**2, rtol=1e-3, atol=1e-5)
    for parameter, old in zip(statistics, before, strict=True):
        parameter.set_data(Tensor(old))
    assert float(loss(net(IMAGES), LABELS)) == pytest.approx(float(value), rel=1e-5)
    for parameter, moved in zip(statistics, after, strict=True):  # by one evaluation, as now
        np.testing.assert_allclose(parameter.asnumpy(), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.full_run
def test_the_kernels_of_convolutions_are_averaged():
    ms.set_seed(0)
    net, loss = (
        nn.SequentialCell(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Dense(128, 3)),
        nn.CrossEntropyLoss(),
    )
    found = []
    for average in (None, "kernel"):
        optimizer = optim.AdaHessian(
            net.trainable_params(), 0.0, beta2=0.0, spatial_average=average
        )
        optim.TrainStep(net, loss, optimizer)(IMAGES, LABELS)
        found.append([v.asnumpy().copy() for v in optimizer.moment2])
    (conv, head), (averaged, same) = ((f[0], f[-2]) for f in found)
    np.testing.assert_allclose(
        averaged,
        np.broadcast_to(np.sqrt(conv).mean((2, 3), keepdims=True) ** 2, conv.shape),
        rtol=1e-4,
        atol=1e-8,
    )
    np.testing.assert_allclose(same, head, rtol=1e-5)


def cross_entropy(out, y):
    """In float64, which MindSpore's own does not take on CPU."""
    chosen = ops.gather_elements(out, 1, y.reshape(-1, 1).astype(ms.int64))
    return (ops.log(ops.exp(out).sum(1)) - chosen.reshape(-1)).mean()


def test_gauss_newton_bartlett_is_b_times_the_squared_gradient_for_drawn_labels():
    w = RNG.standard_normal((2, 3))
    net = nn.Dense(2, 3, weight_init=Tensor(w.T), has_bias=False, dtype=ms.float64)
    y = Tensor(RNG.integers(0, 3, 16), ms.int32)
    optimizer = optim.Sophia(
        net.trainable_params(), 0.01, estimator="gnb", update_interval=2, weight_decay=0.0
    )
    step = optim.TrainStep(net, cross_entropy, optimizer, seed=5)

    def drawn(w, chance):
        p = np.exp(X @ w)
        p /= p.sum(1, keepdims=True)
        labels = np.minimum((p.cumsum(1) < chance[:, None]).sum(1), 2)
        return X.T @ (p - np.eye(3)[labels]) / 16

    step(Tensor(X), y)
    first = 0.01 * 16 * drawn(w, uniforms(5, 0, (16,))) ** 2
    np.testing.assert_allclose(optimizer.curvature[0].asnumpy(), first.T, rtol=1e-9)
    step(Tensor(X), y)
    np.testing.assert_allclose(
        optimizer.curvature[0].asnumpy(), first.T, rtol=1e-9
    )  # not at the second step
    w = net.weight.asnumpy().T.copy()
    step(Tensor(X), y)
    np.testing.assert_allclose(
        optimizer.curvature[0].asnumpy().T,
        0.99 * first + 0.01 * 16 * drawn(w, uniforms(5, 2, (16,))) ** 2,
        rtol=1e-9,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda w, **o: optim.AdaHessian(w, 0.01, **o),
        lambda w, **o: optim.Sophia(w, 0.01, update_interval=2, **o),
    ],
)
def test_a_loss_scale_changes_nothing(make):
    found = []
    for scale in (1.0, 1024.0):
        net = Net()
        step = optim.TrainStep(net, mean_square, make(net.trainable_params(), loss_scale=scale))
        value = [float(step(*DATA)) for _ in range(4)]
        found.append((flat(net), value))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-6)


def test_a_loss_scale_enters_the_labels_curvature_twice():
    found = []
    for scale in (1.0, 256.0):
        net = nn.Dense(2, 3, weight_init=Tensor(np.ones((3, 2))), has_bias=False, dtype=ms.float64)
        optimizer = optim.Sophia(net.trainable_params(), estimator="gnb", loss_scale=scale)
        optim.TrainStep(net, cross_entropy, optimizer)(
            Tensor(X), Tensor(np.arange(16) % 3, ms.int32)
        )
        found.append(optimizer.curvature[0].asnumpy().copy())
    assert found[0].max() > 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_gradients_are_clipped_over_all_weights():
    net = Net()
    optimizer = optim.AdaHessian(net.trainable_params(), 0.0, beta1=0.0)
    optim.TrainStep(net, mean_square, optimizer, clip_norm=0.1)(*DATA)
    g = numpy_gradient(START)
    assert np.linalg.norm(g) > 0.1
    found = np.concatenate([m.asnumpy().ravel() for m in optimizer.moment1])
    np.testing.assert_allclose(found, g * 0.1 / np.linalg.norm(g), rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda w: optim.AdaHessian(w), lambda w: optim.Sophia(w, update_interval=2)]
)
def test_a_step_with_nan_is_not_taken_and_is_counted(make):
    net = Net()
    optimizer = make(net.trainable_params())
    step = optim.TrainStep(net, mean_square, optimizer)
    step(*DATA)
    there, bad = flat(net), X.copy()
    bad[3, 1] = np.nan
    assert np.isnan(float(step(Tensor(bad), Tensor(Y))))
    np.testing.assert_array_equal(flat(net), there)
    assert int(optimizer.skipped) == 1 and int(optimizer.global_step[0]) == 2
    assert np.isfinite(float(step(*DATA))) and (flat(net) != there).all()


def test_training_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    def fresh():
        net = Net()
        return net, optim.TrainStep(
            net, mean_square, optim.Sophia(net.trainable_params(), 0.01, update_interval=3), 7
        )

    net, step = fresh()
    for _ in range(4):
        step(*DATA)
    ms.save_checkpoint(step, str(tmp_path / "step.ckpt"))
    for _ in range(5):
        step(*DATA)
    again, resumed = fresh()
    missing = ms.load_param_into_net(resumed, ms.load_checkpoint(str(tmp_path / "step.ckpt")))
    assert missing == ([], [])
    for _ in range(5):
        resumed(*DATA)
    np.testing.assert_array_equal(flat(again), flat(net))


def test_model_trains_it():
    net = Net()
    step = optim.TrainStep(net, mean_square, optim.AdaHessian(net.trainable_params(), 0.1), seed=3)
    data = ms.dataset.NumpySlicesDataset((X, Y), shuffle=False).batch(16)
    ms.Model(step).train(10, data, dataset_sink_mode=False)
    np.testing.assert_allclose(flat(net), numpy_adahessian(START, 10, 0.1, 0.0, 3), rtol=1e-10)


def test_training_flags_and_shapes_are_compiled_anew():
    net = nn.SequentialCell(nn.Dense(2, 4), nn.BatchNorm1d(4), nn.Dense(4, 1))
    step = optim.TrainStep(
        net, nn.MSELoss(), optim.Sophia(net.trainable_params(), 0.0, update_interval=1)
    )
    x, y = Tensor(X, ms.float32), Tensor(Y.reshape(-1, 1), ms.float32)
    values = {flag: float((step.set_train(flag), step(x, y))[1]) for flag in (True, False)}
    assert values[True] != values[False]
    assert np.isfinite(float(step(x[:5], y[:5])))


def test_an_optimizer_without_curvature_gets_its_gradients():
    net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
    step = optim.TrainStep(net, mean_square, nn.SGD(net.trainable_params(), 0.5))
    step(Tensor(X, ms.float32), Tensor(Y.reshape(-1, 1), ms.float32))
    expected = 1 - 0.5 * 2 * X.T @ (X.sum(1) - Y) / 16
    np.testing.assert_allclose(net.weight.asnumpy()[0], expected, rtol=1e-5)


def test_a_network_that_returns_its_loss():
    class Whole(nn.Cell):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def construct(self, x, y):
            return mean_square(self.net(x), y)

    whole = Whole()
    step = optim.TrainStep(whole, None, optim.AdaHessian(whole.trainable_params(), 0.1), seed=3)
    for _ in range(5):
        step(*DATA)
    np.testing.assert_allclose(flat(whole), numpy_adahessian(START, 5, 0.1, 0.0, 3), rtol=1e-10)


def test_what_has_no_second_derivative_is_refused_before_anything_changes():
    class Rough(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w = Parameter(Tensor(np.ones(3, np.float32)), name="w")

        def construct(self, x):
            return ops.matrix_exp((self.w * x).reshape(1, 3, 1) @ self.w.reshape(1, 1, 3)).sum()

    net = Rough()
    step = optim.TrainStep(net, None, optim.AdaHessian(net.trainable_params()))
    with pytest.raises(mh.HessianError) as caught:
        step(Tensor(np.ones(3, np.float32)))
    assert len(str(caught.value)) < 700
    np.testing.assert_array_equal(net.w.asnumpy(), 1.0)
    assert int(step.optimizer.global_step[0]) == 0


def test_adahessian_alone_says_where_it_goes():
    net = Net()
    with pytest.raises(ValueError, match="TrainStep"):
        optim.AdaHessian(net.trainable_params())(tuple(net.trainable_params()))


# --- several calls for one update -----------------------------------------------------------------


PARTS = [(Tensor(X[start : start + 4]), Tensor(Y[start : start + 4])) for start in range(0, 16, 4)]


@pytest.mark.parametrize("name", RULES)
def test_four_calls_are_one_of_the_whole_batch(name, mode):
    if (mode == "PYNATIVE_MODE" or "options" in name) and not FULL:
        pytest.skip("in the full run")
    make, expected = RULES[name]
    net = Net()
    step = optim.TrainStep(net, mean_square, make(net.trainable_params()), seed=3, accumulate=4)
    before = flat(net)
    for number in range(400):
        step(*PARTS[number % 4])
        if number == 2:
            np.testing.assert_array_equal(flat(net), before)
    np.testing.assert_allclose(flat(net), expected(), rtol=1e-10, atol=1e-12)
    assert int(step.optimizer.global_step[0]) == 100 and int(step.optimizer.skipped) == 0


def test_drawn_labels_of_four_calls_are_those_of_the_whole_batch():
    """The gradient for drawn labels is averaged before it is squared."""
    found, y = [], Tensor(np.arange(16) % 3, ms.int32)
    for calls in (1, 4):
        net = nn.Dense(2, 3, weight_init=Tensor(np.ones((3, 2))), has_bias=False, dtype=ms.float64)
        optimizer = optim.Sophia(
            net.trainable_params(), estimator="gnb", update_interval=2, loss_scale=8.0
        )
        step = optim.TrainStep(net, cross_entropy, optimizer, seed=5, accumulate=calls)
        for _ in range(5):
            for start in range(0, 16, 16 // calls):
                step(Tensor(X[start : start + 16 // calls]), y[start : start + 16 // calls])
        found.append([optimizer.curvature[0].asnumpy().copy(), net.weight.asnumpy().copy()])
    assert found[0][0].max() > 0
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.full_run
def test_the_mean_of_the_calls_is_clipped():
    found = []
    for calls in (1, 4):
        net = Net()
        optimizer = optim.AdaHessian(net.trainable_params(), 0.1)
        step = optim.TrainStep(net, mean_square, optimizer, clip_norm=0.1, accumulate=calls)
        for _ in range(3):
            for one in PARTS if calls > 1 else [DATA]:
                step(*one)
        found.append(flat(net))
    np.testing.assert_allclose(*found, rtol=1e-10)


@pytest.mark.full_run
def test_calls_for_an_optimizer_without_curvature():
    net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
    step = optim.TrainStep(net, mean_square, nn.SGD(net.trainable_params(), 0.5), accumulate=4)
    for x, y in PARTS:
        step(x.astype(ms.float32), y.reshape(-1, 1).astype(ms.float32))
    expected = 1 - 0.5 * 2 * X.T @ (X.sum(1) - Y) / 16
    np.testing.assert_allclose(net.weight.asnumpy()[0], expected, rtol=1e-5)


def test_nan_in_one_of_the_calls_is_a_step_not_taken():
    net, bad = Net(), X[:4] * np.nan
    optimizer = optim.AdaHessian(net.trainable_params())
    step = optim.TrainStep(net, mean_square, optimizer, accumulate=2)
    there = flat(net)
    step(Tensor(bad), PARTS[0][1]), step(*PARTS[1])
    np.testing.assert_array_equal(flat(net), there)
    assert int(optimizer.skipped) == 1
    step(*PARTS[0]), step(*PARTS[1])
    assert np.isfinite(flat(net)).all() and (flat(net) != there).all()


@pytest.mark.parametrize("kind", ["Sophia", "KFAC"])
def test_a_checkpoint_between_two_calls_has_what_they_gave(tmp_path, kind):
    def fresh():
        net = Net() if kind == "Sophia" else nn.Dense(2, 1, dtype=ms.float64, weight_init="ones")
        make = {
            "Sophia": lambda: optim.Sophia(net.trainable_params(), 0.01, update_interval=2),
            "KFAC": lambda: optim.KFAC(net, 0.01, likelihood="gaussian"),
        }
        return net, optim.TrainStep(net, mean_square, make[kind](), 7, accumulate=3)

    def take(step, calls):
        for number in calls:
            x, y = PARTS[number % 4]
            step(x, y if kind == "Sophia" else y.reshape(-1, 1))

    net, step = fresh()
    take(step, range(4))
    ms.save_checkpoint(step, str(tmp_path / "step.ckpt"))
    take(step, range(4, 10))
    again, resumed = fresh()
    stored = ms.load_checkpoint(str(tmp_path / "step.ckpt"))
    assert ms.load_param_into_net(resumed, stored) == ([], [])
    take(resumed, range(4, 10))
    np.testing.assert_array_equal(flat(again), flat(net))
    assert int(step.optimizer.global_step[0]) == 3


def test_an_update_that_was_interrupted_is_begun_anew(monkeypatch):
    def interrupted(self, curved):
        raise KeyboardInterrupt

    found = []
    for interrupt in (True, False):
        net = Net()
        optimizer = optim.AdaHessian(net.trainable_params(), 0.1)
        step = optim.TrainStep(net, mean_square, optimizer, accumulate=2)
        step(*PARTS[0]), step(*PARTS[1])
        there = flat(net)
        if interrupt:
            with monkeypatch.context() as patched:
                patched.setattr(type(step.sums), "totals", interrupted)
                step(*PARTS[0])
                with pytest.raises(KeyboardInterrupt):
                    step(*PARTS[1])
            np.testing.assert_array_equal(flat(net), there)
        step(*PARTS[2]), step(*PARTS[3])
        found.append(flat(net))
    np.testing.assert_array_equal(*found)
