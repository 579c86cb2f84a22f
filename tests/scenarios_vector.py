"""Vector and matrix valued functions: gradient and Hessian lead with the output's axes."""

from __future__ import annotations

import numpy as np
from mindspore import ops
from scenarios_algebra import softmax
from scenarios_base import (
    TANH,
    Scenario,
    diagonal,
    diagonal3,
    normal,
    single,
    symmetric,
    tags,
    uniform,
)
from scenarios_elementwise import dtanh
from scenarios_models import dd_tanh

einsum = np.einsum


def vector_sine(x):
    return ops.sin(x)


def forecast(weight, bias, x):
    return ops.tanh(ops.matmul(weight, x) + bias)


def forecast_both_gradient(w, b, x):
    first = dtanh(w @ x + b)
    return einsum("o,op,d->opd", first, np.eye(len(b)), x), first[:, None] * w


def forecast_both_hessian(w, b, x):
    z = w @ x + b
    first, second, unit = dtanh(z), dd_tanh(z), np.eye(len(b))
    ww = einsum("o,op,oq,d,e->opdqe", second, unit, unit, x, x)
    wx = einsum("o,op,d,oe->opde", second, unit, x, w) + einsum(
        "o,op,de->opde", first, unit, np.eye(len(x))
    )
    return symmetric(ww, wx, einsum("o,od,oe->ode", second, w, w), 2, out_ndim=1)


def quadratics(x, a):
    return (ops.matmul(a, x) * x).sum(-1)


def linear_map(x, a):
    return ops.matmul(a, x)


def monomials(x):
    return ops.stack((x, x * x, x * x * x), 1)


def monomials_gradient(x):
    return einsum("ik,ij->ikj", np.stack([np.ones_like(x), 2 * x, 3 * x * x], 1), np.eye(x.size))


def monomials_hessian(x):
    second, unit = np.stack([np.zeros_like(x), np.full_like(x, 2), 6 * x], 1), np.eye(x.size)
    return einsum("ik,ij,il->ikjl", second, unit, unit)


def gram(x):
    return ops.matmul(x, x.T)


def gram_gradient(x):
    left = einsum("ia,jb->ijab", np.eye(len(x)), x)
    return left + left.transpose(1, 0, 2, 3)


def gram_hessian(x):
    n, m = np.eye(len(x)), np.eye(x.shape[1])
    return einsum("ia,jc,bd->ijabcd", n, n, m) + einsum("ic,ja,bd->ijabcd", n, n, m)


def row_squares(x):
    return (x**2).sum(1)


def softmax_vector(x):
    return ops.softmax(x, 0)


def softmax_vector_hessian(x):
    p, unit = softmax(x), np.eye(x.size)
    away = unit - p
    return einsum("i,ij,ik->ijk", p, away, away) - einsum(
        "i,jk->ijk", p, np.diag(p) - np.outer(p, p)
    )


def curve(t):
    return ops.stack((ops.sin(t), t * t, ops.exp(t)))


def polar(r, angle):
    return ops.stack((r * ops.cos(angle), r * ops.sin(angle)))


def polar_gradient(r, t):
    return np.array([np.cos(t), np.sin(t)]), np.array([-r * np.sin(t), r * np.cos(t)])


def polar_hessian(r, t):
    mixed, angle = np.array([-np.sin(t), np.cos(t)]), np.array([-r * np.cos(t), -r * np.sin(t)])
    return symmetric(np.zeros(2), mixed, angle, 0, out_ndim=1)


def outer_product(x, y):
    return (x * x).expand_dims(1) * y.expand_dims(0)


def outer_product_hessian(x, y):
    n, k = np.eye(x.size), np.eye(y.size)
    xx = einsum("ia,ib,j->ijab", 2 * n, n, y)
    xy = einsum("i,ia,jb->ijab", 2 * x, n, k)
    return symmetric(xx, xy, np.zeros((x.size,) + (y.size,) * 3), 1, out_ndim=2)


VECTOR, BOTH = tags("vector"), tags("vector", "multi-input")
FORECAST = normal((3, 4), (3,), (4,))

SCENARIOS = [
    Scenario(
        "vector_sine",
        vector_sine,
        normal((2, 3)),
        tags=VECTOR,
        **single(lambda x: diagonal(np.cos(x)), lambda x: diagonal3(-np.sin(x))),
    ),
    Scenario(
        "forecast",
        forecast,
        FORECAST,
        positions=(2,),
        tolerance=TANH,
        tags=VECTOR,
        **single(
            lambda w, b, x: dtanh(w @ x + b)[:, None] * w,
            lambda w, b, x: einsum("o,oi,oj->oij", dd_tanh(w @ x + b), w, w),
        ),
    ),
    Scenario(
        "forecast_both",
        forecast,
        FORECAST,
        positions=(0, 2),
        tolerance=TANH,
        tags=BOTH,
        gradient=forecast_both_gradient,
        hessian=forecast_both_hessian,
    ),
    Scenario(
        "quadratics",
        quadratics,
        normal((3,), (2, 3, 3)),
        tags=VECTOR,
        **single(
            lambda x, a: (a + a.transpose(0, 2, 1)) @ x, lambda x, a: a + a.transpose(0, 2, 1)
        ),
    ),
    Scenario(
        "linear_map",
        linear_map,
        normal((3,), (2, 3)),
        tags=VECTOR | {"zero"},
        **single(lambda x, a: a, lambda x, a: np.zeros((2, 3, 3))),
    ),
    Scenario(
        "monomials",
        monomials,
        normal((3,)),
        tags=VECTOR,
        **single(monomials_gradient, monomials_hessian),
    ),
    Scenario("gram", gram, normal((3, 2)), tags=VECTOR, **single(gram_gradient, gram_hessian)),
    Scenario(
        "row_squares",
        row_squares,
        normal((3, 2)),
        tags=VECTOR,
        **single(
            lambda x: einsum("ia,ib->iab", 2 * np.eye(3), x),
            lambda x: einsum("ia,ic,bd->iabcd", 2 * np.eye(3), np.eye(3), np.eye(2)),
        ),
    ),
    Scenario(
        "softmax_vector",
        softmax_vector,
        normal((4,)),
        tags=VECTOR,
        **single(
            lambda x: np.diag(softmax(x)) - np.outer(softmax(x), softmax(x)), softmax_vector_hessian
        ),
    ),
    Scenario(
        "curve",
        curve,
        normal(()),
        tags=VECTOR | {"scalar-input"},
        **single(
            lambda t: np.array([np.cos(t), 2 * t, np.exp(t)]),
            lambda t: np.array([-np.sin(t), 2.0, np.exp(t)]),
        ),
    ),
    Scenario(
        "polar",
        polar,
        uniform(0.5, 2, (), ()),
        polar_gradient,
        polar_hessian,
        positions=(0, 1),
        tags=BOTH | {"scalar-input"},
    ),
    Scenario(
        "outer_product",
        outer_product,
        normal((3,), (2,)),
        positions=(0, 1),
        tags=BOTH,
        gradient=lambda x, y: (
            einsum("i,ia,j->ija", 2 * x, np.eye(3), y),
            einsum("i,jb->ijb", x * x, np.eye(2)),
        ),
        hessian=outer_product_hessian,
    ),
]
