"""Losses of small models: regressions, multilayer perceptrons, convolutions."""

from __future__ import annotations

import numpy as np
from mindspore import ops
from scenarios_algebra import softmax
from scenarios_base import TANH, Scenario, normal, single, symmetric, tags
from scenarios_elementwise import dlogistic, dtanh, logistic

einsum = np.einsum


# --- regressions ----------------------------------------------------------------------------------


def least_squares(w, x, y):
    return 0.5 * ((ops.matmul(x, w) - y) ** 2).mean()


def ridge_logistic(w, x, y):
    return ops.log1p(ops.exp(-y * ops.matmul(x, w))).mean() + 0.0625 * (w * w).sum()


def poisson_regression(w, x, y):
    z = ops.matmul(x, w)
    return (ops.exp(z) - y * z).mean()


def softmax_regression(w, x, y):
    z = ops.matmul(x, w)
    return (ops.logsumexp(z, 1) - (y * z).sum(1)).mean()


def labelled_regression(w, x, labels):
    p = ops.softmax(ops.matmul(x, w), 1)
    hit = labels.expand_dims(1) == ops.arange(3)
    return -ops.log(ops.where(hit, p, ops.zeros_like(p)).sum(1)).mean()


def weighted_gram(x, curvature):
    """The Hessian of every generalised linear model: Xᵀ diag(curvature) X / n."""
    return (x.T * curvature) @ x / len(x)


def softmax_regression_hessian(w, x, _):
    p = softmax(x @ w)
    curvature = einsum("nk,kl->nkl", p, np.eye(p.shape[1])) - einsum("nk,nl->nkl", p, p)
    return einsum("nd,ne,nkl->dkel", x, x, curvature) / len(x)


def signs(rng):
    return rng.normal(size=3), rng.normal(size=(6, 3)), rng.choice([-1.0, 1.0], 6)


def one_hot(rng):
    return rng.normal(size=(2, 3)), rng.normal(size=(5, 2)), np.eye(3)[rng.integers(3, size=5)]


def labelled(rng):
    w, x, y = one_hot(rng)
    return w, x, y.argmax(1).astype(np.int32)


# --- multilayer perceptrons -----------------------------------------------------------------------


def mlp_input(x, w, b, v):
    return (v * ops.tanh(ops.matmul(w, x) + b)).sum()


def mlp_weights(w, v, x, y):
    return 0.5 * ((ops.matmul(ops.tanh(ops.matmul(x, w.T)), v) - y) ** 2).sum()


def deep_mlp(x, w1, w2, v):
    return (v * ops.tanh(ops.matmul(w2, ops.tanh(ops.matmul(w1, x))))).sum()


def dd_tanh(z):
    return -2 * np.tanh(z) * dtanh(z)


def mlp_weights_parts(w, v, x, y):
    z = x @ w.T
    residual = np.tanh(z) @ v - y
    return z, residual, einsum("h,nh,nd->nhd", v, dtanh(z), x)


def mlp_weights_gradient(w, v, x, y):
    z, residual, jw = mlp_weights_parts(w, v, x, y)
    return einsum("n,nhd->hd", residual, jw), residual @ np.tanh(z)


def mlp_weights_hessian(w, v, x, y):
    z, residual, jw = mlp_weights_parts(w, v, x, y)
    jv, unit = np.tanh(z), np.eye(len(v))
    ww = einsum("nhd,nge->hdge", jw, jw) + einsum(
        "n,h,nh,nd,ne,hg->hdge", residual, v, dd_tanh(z), x, x, unit
    )
    wv = einsum("nhd,ng->hdg", jw, jv) + einsum("n,nh,nd,hg->hdg", residual, dtanh(z), x, unit)
    return symmetric(ww, wv, jv.T @ jv, 2)


def deep_mlp_gradient(x, w1, w2, v):
    z1 = w1 @ x
    return w1.T @ (dtanh(z1) * (w2.T @ (v * dtanh(w2 @ np.tanh(z1)))))


def deep_mlp_hessian(x, w1, w2, v):
    z1 = w1 @ x
    z2 = w2 @ np.tanh(z1)
    jacobian = w2 @ (dtanh(z1)[:, None] * w1)
    inner = w2.T @ (v * dtanh(z2)) * dd_tanh(z1)
    return jacobian.T @ ((v * dd_tanh(z2))[:, None] * jacobian) + w1.T @ (inner[:, None] * w1)


# --- convolutions: z = M x w with M of zeros and ones, f = Σ φ(z) ---------------------------------


def conv1d_square(x, w):
    return 0.5 * (ops.conv1d(x, w) ** 2).sum()


def conv2d_square(x, w):
    return 0.5 * (ops.conv2d(x, w) ** 2).sum()


def conv2d_strided(x, w):
    return 0.5 * (ops.conv2d(x, w, stride=2, pad_mode="pad", padding=1) ** 2).sum()


def conv1d_by_slices(x, w):
    z = w[0] * x[:-2] + w[1] * x[1:-1] + w[2] * x[2:]
    return ops.sin(z).sum()


def taps(length, size, stride, padding):
    """S[out, t, k] = 1 where that output reads input t with weight k."""
    outputs = (length + 2 * padding - size) // stride + 1
    out, t, k = np.ogrid[:outputs, :length, :size]
    return (t == out * stride + k - padding).astype(float)


def connections(x, w, stride=1, padding=0):
    """M[p, q, r]: how output p depends on the product of input q and weight r. 1-d is 2-d of height
    one.
    """
    x, w = (
        a if a.ndim == 4 else a.reshape(*(1, 1, *a.shape)[-3:-1], 1, a.shape[-1]) for a in (x, w)
    )
    rows = taps(x.shape[2], w.shape[2], *((stride, padding) if x.shape[2] > 1 else (1, 0)))
    columns = taps(x.shape[3], w.shape[3], stride, padding)
    m = einsum(
        "bB,oO,cC,lti,msj->bolmBctsOCij",
        np.eye(len(x)),
        np.eye(len(w)),
        np.eye(x.shape[1]),
        rows,
        columns,
    )
    return m.reshape(-1, x.size, w.size)


def convolution(name, fn, inputs, first, second, options=None, **fields) -> Scenario:
    """First and second are φ' and φ''."""

    def parts(x, w):
        m = connections(x, w, **(options or {}))
        jx, jw = m @ w.ravel(), einsum("pqr,q->pr", m, x.ravel())
        return m, jx, jw, jx @ x.ravel()

    def gradient(x, w):
        _, jx, jw, z = parts(x, w)
        return (first(z) @ jx).reshape(x.shape), (first(z) @ jw).reshape(w.shape)

    def hessian(x, w):
        m, jx, jw, z = parts(x, w)
        xx, ww = (jx.T * second(z)) @ jx, (jw.T * second(z)) @ jw
        xw = (jx.T * second(z)) @ jw + einsum("p,pqr->qr", first(z), m)
        return symmetric(
            xx.reshape(x.shape * 2), xw.reshape(x.shape + w.shape), ww.reshape(w.shape * 2), x.ndim
        )

    return Scenario(
        name,
        fn,
        inputs,
        gradient,
        hessian,
        positions=(0, 1),
        tags=tags("multi-input", "convolution"),
        **fields,
    )


def quarters(*shapes):
    """Multiples of 1/4: float32 is exact on them, and so is a quadratic's central difference with a
    step of 1/2.
    """
    return lambda rng: tuple(rng.integers(-4, 5, shape) / 4.0 for shape in shapes)


# MindSpore's CPU convolution has no float64 kernel
EXACT = {"dtypes": ("float32",), "step": 0.5, "first": lambda z: z, "second": np.ones_like}

SCENARIOS = [
    Scenario(
        "least_squares",
        least_squares,
        normal((3,), (5, 3), (5,)),
        **single(
            lambda w, x, y: x.T @ (x @ w - y) / len(x),
            lambda w, x, y: weighted_gram(x, np.ones(len(x))),
        ),
    ),
    Scenario(
        "ridge_logistic",
        ridge_logistic,
        signs,
        **single(
            lambda w, x, y: x.T @ (-y * logistic(-y * (x @ w))) / len(x) + 0.125 * w,
            lambda w, x, y: weighted_gram(x, dlogistic(x @ w)) + 0.125 * np.eye(len(w)),
        ),
    ),
    Scenario(
        "poisson_regression",
        poisson_regression,
        normal((3,), (5, 3), (5,)),
        **single(
            lambda w, x, y: x.T @ (np.exp(x @ w) - y) / len(x),
            lambda w, x, y: weighted_gram(x, np.exp(x @ w)),
        ),
    ),
    Scenario(
        "softmax_regression",
        softmax_regression,
        one_hot,
        **single(lambda w, x, y: x.T @ (softmax(x @ w) - y) / len(x), softmax_regression_hessian),
    ),
    Scenario(
        "labelled_regression",
        labelled_regression,
        labelled,
        tags=tags("integer-input"),
        **single(
            lambda w, x, y: x.T @ (softmax(x @ w) - np.eye(3)[y]) / len(x),
            softmax_regression_hessian,
        ),
    ),
    Scenario(
        "mlp_input",
        mlp_input,
        normal((4,), (3, 4), (3,), (3,)),
        tolerance=TANH,
        **single(
            lambda x, w, b, v: w.T @ (v * dtanh(w @ x + b)),
            lambda x, w, b, v: w.T @ ((v * dd_tanh(w @ x + b))[:, None] * w),
        ),
    ),
    Scenario(
        "mlp_weights",
        mlp_weights,
        normal((3, 2), (3,), (5, 2), (5,)),
        mlp_weights_gradient,
        mlp_weights_hessian,
        positions=(0, 1),
        tolerance=TANH,
        tags=tags("multi-input"),
    ),
    Scenario(
        "deep_mlp",
        deep_mlp,
        normal((3,), (4, 3), (2, 4), (2,)),
        tolerance=TANH,
        **single(deep_mlp_gradient, deep_mlp_hessian),
    ),
    convolution("conv1d", conv1d_square, quarters((1, 2, 6), (2, 2, 3)), **EXACT),
    convolution("conv2d", conv2d_square, quarters((1, 2, 4, 4), (2, 2, 3, 3)), **EXACT),
    convolution(
        "conv2d_strided",
        conv2d_strided,
        quarters((2, 1, 4, 4), (2, 1, 3, 3)),
        options={"stride": 2, "padding": 1},
        **EXACT,
    ),
    convolution(
        "conv1d_by_slices", conv1d_by_slices, normal((6,), (3,)), np.cos, lambda z: -np.sin(z)
    ),
]
