"""K-FAC against the rules as numpy has them, in float64, and what it does with what goes wrong."""
from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from full import FULL
from mindspore import Parameter, Tensor, nn, ops

from mindspore_hessian import KFACOperator, optim
from mindspore_hessian._errors import FallbackWarning

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((16, 3)), RNG.standard_normal((16, 2))
START = [RNG.standard_normal(shape) / 2 for shape in ((5, 3), (5,), (2, 5), (2,))]
DATA = Tensor(X), Tensor(Y)
N, C = Y.shape


def mean_square(out, y):
    return ((out - y) ** 2).mean()


def dense(weight, bias, **options):
    return nn.Dense(weight.shape[1], weight.shape[0], weight_init=Tensor(weight), bias_init=Tensor(bias),
                    dtype=ms.float64, **options)


def mlp():
    return nn.SequentialCell(dense(*START[:2]), nn.Tanh(), dense(*START[2:]))


def weights(net):
    return np.concatenate([p.asnumpy().ravel() for p in net.trainable_params()]).copy()


# --- the rules ------------------------------------------------------------------------------------------------------

def extended(a):
    return np.hstack([a, np.ones((len(a), 1))])


def normals(seed, step):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,))).standard_normal((N, C), np.float32)


def at_output(fisher, out, y, step, seed):
    """Vectors whose outer products are the metric."""
    if fisher == "mc":
        return [np.sqrt(2.0) * normals(seed, step).astype(float) / np.sqrt(N * C)]
    if fisher == "empirical":
        return [2 * (out - y) / (N * C) * np.sqrt(N * C)]
    return [np.sqrt(2.0 / (N * C)) * np.eye(C)[[c] * N] for c in range(C)]


def split_inverse(a, g, damping):
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    root = np.sqrt(damping)
    return np.linalg.inv(a + pi * root * np.eye(len(a))), np.linalg.inv(g + root / pi * np.eye(len(g)))


class Rule:
    """K-FAC of the network of two layers. Its matrices are [W b]."""

    def __init__(self, fisher="mc", rate=0.05, momentum=0.9, damping=1e-3, ema=0.95, period=5, every=1, bound=None,
                 l2=0.0, decay=0.0, adaptive=False, interval=5, seed=3):
        self.__dict__.update(locals())
        self.w = [np.hstack([START[0], START[1][:, None]]), np.hstack([START[2], START[3][:, None]])]
        self.v = [np.zeros_like(w) for w in self.w]
        self.factors, self.total, self.losses = [[0.0, 0.0], [0.0, 0.0]], 0.0, []

    def forward(self, w, x=X):
        h = np.tanh(extended(x) @ w[0].T)
        return h, extended(h) @ w[1].T

    def loss(self, w):
        return ((self.forward(w)[1] - Y) ** 2).mean()

    def back(self, h, u):
        """The gradients at both layers' outputs."""
        return u @ self.w[1][:, :-1] * (1 - h ** 2), u

    def push(self, h, d):
        """J d."""
        inner = (1 - h ** 2) * (extended(X) @ d[0].T)
        return extended(h) @ d[1].T + inner @ self.w[1][:, :-1].T

    def step(self, t):
        h, out = self.forward(self.w)
        self.losses.append(((out - Y) ** 2).mean())
        rows = extended(X), extended(h)
        g = [back.T @ a + self.l2 * w for back, a, w in zip(
            self.back(h, 2 * (out - Y) / (N * C)), rows, self.w, strict=True)]
        if t % self.every == 0:
            pulled = [self.back(h, u) for u in at_output(self.fisher, out, Y, t, self.seed)]
            self.total = self.ema * self.total + 1 - self.ema
            for layer, a in enumerate(rows):
                new = a.T @ a / N, sum(part[layer].T @ part[layer] for part in pulled)
                self.factors[layer] = [self.ema * old + (1 - self.ema) * one for old, one in zip(
                    self.factors[layer], new, strict=True)]
        if t % self.period == 0:
            self.inverses = [split_inverse(*(one / self.total for one in pair), self.damping + self.l2)
                             for pair in self.factors]
        p = [right @ one @ left for one, (left, right) in zip(g, self.inverses, strict=True)]
        if self.adaptive:
            self.adapt(t, h, g, p)
            return
        along = self.rate ** 2 * sum((one * other).sum() for one, other in zip(g, p, strict=True))
        share = 1.0 if self.bound is None else min(1.0, np.sqrt(self.bound / along))
        self.v = [self.momentum * v - self.rate * share * one for v, one in zip(self.v, p, strict=True)]
        self.w = [w - self.rate * self.decay * w + v for w, v in zip(self.w, self.v, strict=True)]

    def adapt(self, t, h, g, p):
        inner = lambda a, b: sum((one * other).sum() for one, other in zip(a, b, strict=True))  # noqa: E731
        both = [p, self.v] if t else [p]
        images = [self.push(h, d) for d in both]
        model = np.array([[2 / (N * C) * (a * b).sum() + self.l2 * inner(c, d) for b, d in zip(
            images, both, strict=True)] for a, c in zip(images, both, strict=True)])
        slope = np.array([inner(g, d) for d in both])
        best = -np.linalg.solve(model + self.damping * np.array([[inner(c, d) for c in both] for d in both]), slope)
        before = self.loss(self.w) + self.l2 / 2 * inner(self.w, self.w)
        self.v = [sum(k * d for k, d in zip(best, pair, strict=True)) for pair in zip(*both, strict=True)]
        self.w = [w + v for w, v in zip(self.w, self.v, strict=True)]
        if (t + 1) % self.interval == 0:
            ratio = (self.loss(self.w) + self.l2 / 2 * inner(self.w, self.w) - before) / (
                slope @ best + best @ model @ best / 2)
            omega = 0.9 ** self.interval
            self.damping = self.damping / omega if ratio < 0.25 else (
                max(1e-8, self.damping * omega) if ratio > 0.75 else self.damping)

    def run(self, steps):
        for t in range(steps):
            self.step(t)
        return np.concatenate([part.ravel() for w in self.w for part in (w[:, :-1], w[:, -1])])


CASES = {  # the options of ours, and of the rule
    "Monte-Carlo": ({}, {}),
    "empirical": ({"fisher": "empirical", "learning_rate": 0.02}, {"fisher": "empirical", "rate": 0.02}),
    "exact": ({"fisher": "exact", "curvature_ema": 0.8, "inverse_update_period": 1},
              {"fisher": "exact", "ema": 0.8, "period": 1}),
    "its options": ({"norm_constraint": 1e-3, "l2_reg": 0.01, "weight_decay": 0.02, "momentum": 0.5, "damping": 0.03,
                     "inverse_update_period": 6, "curvature_update_period": 2},
                    {"bound": 1e-3, "l2": 0.01, "decay": 0.02, "momentum": 0.5, "damping": 0.03, "period": 6,
                     "every": 2}),
    "adaptive": ({"adaptive": True, "fisher": "exact", "damping": 0.1, "l2_reg": 0.001},
                 {"adaptive": True, "fisher": "exact", "damping": 0.1, "l2": 0.001}),
    "adaptive, Monte-Carlo": ({"adaptive": True, "damping_interval": 3}, {"adaptive": True, "interval": 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_trajectories_are_the_rules(name):
    if name in ("empirical", "adaptive, Monte-Carlo") and not FULL:
        pytest.skip("in the full run")
    given, own = CASES[name]
    net, rule = mlp(), Rule(**own)
    optimizer = optim.KFAC(net, given.pop("learning_rate", 0.05), likelihood="gaussian", **given)
    step = optim.TrainStep(net, mean_square, optimizer, seed=3)
    losses = [float(step(*DATA)) for _ in range(60)]
    expected = rule.run(60)
    np.testing.assert_allclose(weights(net), expected, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(losses, rule.losses, rtol=1e-9)
    assert optimizer.damping.asnumpy() == pytest.approx(rule.damping, rel=1e-12)
    assert int(optimizer.global_step[0]) == 60 and int(optimizer.skipped) == 0
    assert losses[-1] < losses[0]
