"""Quadratic forms, matrix products, shapes and couplings between inputs."""

from __future__ import annotations

import numpy as np
from mindspore import ops
from scenarios_base import Scenario, diagonal, eye, normal, single, swap, symmetric, tags, uniform

einsum = np.einsum


# --- one input ------------------------------------------------------------------------------------


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def rosenbrock_gradient(x):
    g, gap = np.zeros_like(x), x[1:] - x[:-1] ** 2
    g[1:] += 200 * gap
    g[:-1] += -400 * x[:-1] * gap - 2 * (1 - x[:-1])
    return g


def rosenbrock_hessian(x):
    d = np.zeros_like(x)
    d[1:] += 200
    d[:-1] += 1200 * x[:-1] ** 2 - 400 * x[1:] + 2
    return np.diag(d) - 400 * (np.diag(x[:-1], 1) + np.diag(x[:-1], -1))


def quadratic_form(x, a, b):
    return 0.5 * (x * ops.matmul(a, x)).sum() + (b * x).sum()


def neighbours(x):
    return (x[1:] * x[:-1]).sum()


def neighbours_hessian(x):
    return np.eye(x.size, k=1) + np.eye(x.size, k=-1)


def strided(x):
    return (x[:, ::2] ** 3).sum()


def every_second(x):
    mask = np.zeros_like(x)
    mask[:, ::2] = 1
    return mask


def gram_sum(x):
    return ops.matmul(x, x.T).sum()


def gram_sum_hessian(x):
    return 2 * einsum("ac,bd->abcd", np.ones((len(x), len(x))), np.eye(x.shape[1]))


def gram_frobenius(x):
    gram = ops.matmul(x, x.T)
    return (gram * gram).sum()


def gram_frobenius_hessian(x):
    n, m = x.shape
    return 4 * (
        einsum("ac,bd->abcd", np.eye(n), x.T @ x)
        + einsum("ad,cb->abcd", x, x)
        + einsum("ac,bd->abcd", x @ x.T, np.eye(m))
    )


def trace_form(x, a):
    return ops.matmul(ops.matmul(x.T, a), x).trace()


def euclidean(x):
    return ops.sqrt((x * x).sum() + 1)


def euclidean_hessian(x):
    n = np.sqrt((x * x).sum() + 1)
    return (eye(*x.shape) - np.multiply.outer(x, x) / n**2) / n


def variance(x):
    return ((x - x.mean()) ** 2).mean()


def cumulative(x):
    return (ops.cumsum(x, 0) ** 2).sum()


def running(x):
    return np.tril(np.ones((x.size, x.size)))


def log_sum_exp(x):
    return ops.logsumexp(x, 0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_sum_exp_hessian(x):
    return np.diag(softmax(x)) - np.outer(softmax(x), softmax(x))


def log_sum_exp_rows(x):
    return (ops.logsumexp(x, 1) ** 2).sum()


def log_sum_exp_rows_gradient(x):
    return 2 * np.log(np.exp(x).sum(1, keepdims=True)) * softmax(x)


def log_sum_exp_rows_hessian(x):
    p, value = softmax(x), np.log(np.exp(x).sum(1))
    rows = einsum("i,ij,ik->ijk", 1 - value, p, p) + einsum(
        "i,ij,jk->ijk", value, p, np.eye(x.shape[1])
    )
    return 2 * einsum("ijk,il->ijlk", rows, np.eye(len(x)))


def softmax_mean(x, c):
    return (ops.softmax(x, 0) * c).sum()


def softmax_mean_hessian(x, c):
    p = softmax(x)
    away = c - p @ c
    return np.diag(p * away) - np.outer(p, p) * (away[:, None] + away[None, :])


def transposed(x, c):
    return (ops.transpose(x, (2, 0, 1)).reshape(4, 3) * c).sum() ** 2


def transposed_weights(c):
    return c.reshape(2, 2, 3).transpose(1, 2, 0)


def stacked(x):
    return (ops.stack((x, x * x), 0) ** 2).sum()


def soft_coulomb(x):
    gap = x.expand_dims(1) - x.expand_dims(0)
    return ops.rsqrt((gap * gap).sum(-1) + 1).sum()


def soft_coulomb_gradient(x):
    gap = x[:, None] - x[None]
    return -2 * (((gap**2).sum(-1, keepdims=True) + 1) ** -1.5 * gap).sum(1)


def soft_coulomb_hessian(x):
    gap = x[:, None] - x[None]
    square = (gap**2).sum(-1) + 1
    pair = 6 * einsum("ij,ija,ijb->ijab", square**-2.5, gap, gap)
    pair -= 2 * einsum("ij,ab->ijab", square**-1.5, np.eye(x.shape[1]))
    pair[np.arange(len(x)), np.arange(len(x))] = 0
    return einsum("iab,ij->iajb", pair.sum(1), np.eye(len(x))) - pair.transpose(0, 2, 1, 3)


# --- several inputs -------------------------------------------------------------------------------


def bilinear(u, a, v):
    return (u * ops.matmul(a, v)).sum()


def trilinear(u, a, v):
    return (ops.matmul(u, a) * v).sum()


def trilinear_hessian(u, a, v):
    ua, uv, av = einsum("ij,k->ijk", np.eye(3), v), a, einsum("i,jk->ijk", u, np.eye(2))
    return (
        (np.zeros((3, 3)), ua, uv),
        (swap(ua, 1), np.zeros((3, 2, 3, 2)), av),
        (swap(uv, 1), swap(av, 2), np.zeros((2, 2))),
    )


def product_square(x, w):
    return (ops.matmul(x, w) ** 2).sum()


def product_square_hessian(x, w):
    z = x @ w
    n, m, k = *x.shape, w.shape[1]
    xx = 2 * einsum("ac,bd->abcd", np.eye(n), w @ w.T)
    xw = 2 * einsum("bc,ad->abcd", np.eye(m), z) + 2 * einsum("ac,bd->abcd", x, w)
    ww = 2 * einsum("ac,bd->abcd", x.T @ x, np.eye(k))
    return symmetric(xx, xw, ww, 2)


def broadcast_sine(x, y):
    return ops.sin(x.expand_dims(1) * y.expand_dims(0)).sum()


def broadcast_sine_hessian(x, y):
    z = np.outer(x, y)
    return symmetric(
        np.diag(-np.sin(z) @ y**2), np.cos(z) - z * np.sin(z), np.diag(x**2 @ -np.sin(z)), 1
    )


def concatenated(x, y):
    return (ops.concat((x, x * y, y), 0) ** 2).sum()


def unused(x, y):
    return (x**3).sum()


def coupled(x, y, z):
    return (x * y * z + x * x * y).sum()


def reversed_positions(x, y):
    return (x * x * ops.exp(y)).sum()


def scalars(x, y):
    return x * ops.exp(y) + x * x


def frequency(a, x):
    return a * ops.sin(a * x).sum()


def frequency_hessian(a, x):
    s, c = np.sin(a * x), np.cos(a * x)
    return symmetric(
        (2 * x * c - a * x * x * s).sum(), 2 * a * c - a * a * x * s, np.diag(-(a**3) * s), 0
    )


def quotient(x, y):
    return (x / y).sum()


def larger(x, y):
    return (ops.maximum(x, y) ** 2).sum()


def gaussian_nll(mean, log_variance, x):
    return 0.5 * (ops.exp(-log_variance) * (x - mean) ** 2 + log_variance).sum()


# --- integers and bools that are not differentiated -----------------------------------------------


def integer_weights(x, n):
    return (n.astype(x.dtype) * x**3).sum()


def masked(x, keep):
    return ops.where(keep, ops.exp(x), x * x).sum()


def gathered(table, rows):
    return (ops.gather(table, rows, 0) ** 3).sum()


def count(table, rows):
    return np.bincount(rows, minlength=len(table)).astype(float)[:, None]


def integer_inputs(rng):
    return rng.normal(size=(2, 3)), np.array([[1, 0, 2], [3, 1, 1]], np.int32)


def mask_inputs(rng):
    return rng.normal(size=4), np.array([True, False, False, True])


def gather_inputs(rng):
    return rng.normal(size=(4, 2)), np.array([1, 3, 1], np.int32)


PAIR = {"tags": tags("multi-input"), "positions": (0, 1)}

SCENARIOS = [
    Scenario(
        "rosenbrock", rosenbrock, normal((5,)), **single(rosenbrock_gradient, rosenbrock_hessian)
    ),
    Scenario(
        "quadratic_form",
        quadratic_form,
        normal((4,), (4, 4), (4,)),
        **single(lambda x, a, b: 0.5 * (a + a.T) @ x + b, lambda x, a, b: 0.5 * (a + a.T)),
    ),
    Scenario(
        "neighbours",
        neighbours,
        normal((5,)),
        **single(lambda x: neighbours_hessian(x) @ x, neighbours_hessian),
    ),
    Scenario(
        "strided",
        strided,
        normal((2, 5)),
        **single(lambda x: 3 * x**2 * every_second(x), lambda x: diagonal(6 * x * every_second(x))),
    ),
    Scenario(
        "gram_sum",
        gram_sum,
        normal((3, 2)),
        **single(lambda x: np.broadcast_to(2 * x.sum(0), x.shape), gram_sum_hessian),
    ),
    Scenario(
        "gram_frobenius",
        gram_frobenius,
        normal((2, 3)),
        **single(lambda x: 4 * x @ x.T @ x, gram_frobenius_hessian),
    ),
    Scenario(
        "trace_form",
        trace_form,
        normal((3, 2), (3, 3)),
        **single(
            lambda x, a: (a + a.T) @ x,
            lambda x, a: einsum("ac,bd->abcd", a + a.T, np.eye(x.shape[1])),
        ),
    ),
    Scenario(
        "euclidean",
        euclidean,
        normal((2, 2)),
        **single(lambda x: x / np.sqrt((x * x).sum() + 1), euclidean_hessian),
    ),
    Scenario(
        "variance",
        variance,
        normal((2, 3)),
        **single(
            lambda x: 2 * (x - x.mean()) / x.size,
            lambda x: 2 * (eye(*x.shape) - 1 / x.size) / x.size,
        ),
    ),
    Scenario(
        "cumulative",
        cumulative,
        normal((4,)),
        **single(
            lambda x: 2 * running(x).T @ running(x) @ x, lambda x: 2 * running(x).T @ running(x)
        ),
    ),
    Scenario("log_sum_exp", log_sum_exp, normal((5,)), **single(softmax, log_sum_exp_hessian)),
    Scenario(
        "log_sum_exp_rows",
        log_sum_exp_rows,
        normal((2, 3)),
        **single(log_sum_exp_rows_gradient, log_sum_exp_rows_hessian),
    ),
    Scenario(
        "softmax_mean",
        softmax_mean,
        normal((4,), (4,)),
        **single(lambda x, c: softmax(x) * (c - softmax(x) @ c), softmax_mean_hessian),
    ),
    Scenario(
        "transposed",
        transposed,
        normal((2, 3, 2), (4, 3)),
        **single(
            lambda x, c: 2 * transposed_weights(c) * (x * transposed_weights(c)).sum(),
            lambda x, c: 2 * np.multiply.outer(transposed_weights(c), transposed_weights(c)),
        ),
    ),
    Scenario(
        "stacked",
        stacked,
        normal((4,)),
        **single(lambda x: 2 * x + 4 * x**3, lambda x: np.diag(2 + 12 * x * x)),
    ),
    Scenario(
        "soft_coulomb",
        soft_coulomb,
        normal((3, 2)),
        **single(soft_coulomb_gradient, soft_coulomb_hessian),
    ),
    Scenario(
        "bilinear",
        bilinear,
        normal((3,), (3, 2), (2,)),
        positions=(0, 2),
        tags=tags("multi-input"),
        gradient=lambda u, a, v: (a @ v, u @ a),
        hessian=lambda u, a, v: symmetric(np.zeros((3, 3)), a, np.zeros((2, 2)), 1),
    ),
    Scenario(
        "trilinear",
        trilinear,
        normal((3,), (3, 2), (2,)),
        positions=(0, 1, 2),
        tags=tags("multi-input"),
        gradient=lambda u, a, v: (a @ v, np.outer(u, v), u @ a),
        hessian=trilinear_hessian,
    ),
    Scenario(
        "product_square",
        product_square,
        normal((2, 3), (3, 2)),
        **PAIR,
        gradient=lambda x, w: (2 * x @ w @ w.T, 2 * x.T @ x @ w),
        hessian=product_square_hessian,
    ),
    Scenario(
        "broadcast_sine",
        broadcast_sine,
        normal((3,), (2,)),
        **PAIR,
        gradient=lambda x, y: (np.cos(np.outer(x, y)) @ y, x @ np.cos(np.outer(x, y))),
        hessian=broadcast_sine_hessian,
    ),
    Scenario(
        "concatenated",
        concatenated,
        normal((3,), (3,)),
        **PAIR,
        gradient=lambda x, y: (2 * x * (1 + y * y), 2 * y * (1 + x * x)),
        hessian=lambda x, y: symmetric(
            np.diag(2 + 2 * y * y), np.diag(4 * x * y), np.diag(2 + 2 * x * x), 1
        ),
    ),
    Scenario(
        "unused",
        unused,
        normal((3,), (2,)),
        tags=tags("multi-input", "unused"),
        positions=(0, 1),
        gradient=lambda x, y: (3 * x**2, np.zeros(2)),
        hessian=lambda x, y: symmetric(np.diag(6 * x), np.zeros((3, 2)), np.zeros((2, 2)), 1),
    ),
    Scenario(
        "coupled",
        coupled,
        normal((2, 2), (2, 2), (2, 2)),
        positions=(0, 2),
        tags=tags("multi-input"),
        gradient=lambda x, y, z: (y * z + 2 * x * y, x * y),
        hessian=lambda x, y, z: symmetric(diagonal(2 * y), diagonal(y), np.zeros((2,) * 4), 2),
    ),
    Scenario(
        "reversed_positions",
        reversed_positions,
        normal((3,), (3,)),
        positions=(1, 0),
        tags=tags("multi-input"),
        gradient=lambda x, y: (x * x * np.exp(y), 2 * x * np.exp(y)),
        hessian=lambda x, y: symmetric(
            np.diag(x * x * np.exp(y)), np.diag(2 * x * np.exp(y)), np.diag(2 * np.exp(y)), 1
        ),
    ),
    Scenario(
        "scalars",
        scalars,
        normal((), ()),
        positions=(0, 1),
        tags=tags("multi-input", "scalar-input"),
        gradient=lambda x, y: (np.exp(y) + 2 * x, x * np.exp(y)),
        hessian=lambda x, y: symmetric(np.array(2.0), np.exp(y), x * np.exp(y), 0),
    ),
    Scenario(
        "frequency",
        frequency,
        normal((), (3,)),
        positions=(0, 1),
        tags=tags("multi-input", "scalar-input"),
        gradient=lambda a, x: (
            (np.sin(a * x) + a * x * np.cos(a * x)).sum(),
            a * a * np.cos(a * x),
        ),
        hessian=frequency_hessian,
    ),
    Scenario(
        "quotient",
        quotient,
        uniform(0.5, 2, (2, 2), (2, 2)),
        **PAIR,
        gradient=lambda x, y: (1 / y, -x / y**2),
        hessian=lambda x, y: symmetric(
            np.zeros((2,) * 4), diagonal(-1 / y**2), diagonal(2 * x / y**3), 2
        ),
    ),
    Scenario(
        "larger",
        larger,
        normal((5,), (5,)),
        **PAIR,
        gradient=lambda x, y: (2 * x * (x > y), 2 * y * (y > x)),
        hessian=lambda x, y: symmetric(
            np.diag(2.0 * (x > y)), np.zeros((5, 5)), np.diag(2.0 * (y > x)), 1
        ),
    ),
    Scenario(
        "gaussian_nll",
        gaussian_nll,
        normal((3,), (3,), (3,)),
        **PAIR,
        gradient=lambda m, s, x: (np.exp(-s) * (m - x), 0.5 * (1 - np.exp(-s) * (x - m) ** 2)),
        hessian=lambda m, s, x: symmetric(
            np.diag(np.exp(-s)),
            np.diag(np.exp(-s) * (x - m)),
            np.diag(0.5 * np.exp(-s) * (x - m) ** 2),
            1,
        ),
    ),
    Scenario(
        "integer_weights",
        integer_weights,
        integer_inputs,
        tags=tags("integer-input"),
        **single(lambda x, n: 3 * n * x**2, lambda x, n: diagonal(6 * n * x)),
    ),
    Scenario(
        "masked",
        masked,
        mask_inputs,
        tags=tags("integer-input"),
        **single(
            lambda x, k: np.where(k, np.exp(x), 2 * x),
            lambda x, k: np.diag(np.where(k, np.exp(x), 2.0)),
        ),
    ),
    Scenario(
        "gathered",
        gathered,
        gather_inputs,
        tags=tags("integer-input"),
        **single(lambda t, r: 3 * count(t, r) * t**2, lambda t, r: diagonal(6 * count(t, r) * t)),
    ),
]
