"""Smooth functions at the points where MindSpore's own second derivatives are wrong, with closed
forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, mint, ops
from mindspore.ops.auto_generate import gen_ops_prim
from scipy.special import iv, ivp, jvp

NEAR = np.array([0.0, 1e-12, -1e-8, 1e-4, 0.3, -0.99, 1.01, 4.0])


def sinc2(x):
    u = np.pi * np.where(np.abs(x) < 0.05, 1, x)
    far = np.pi**2 * (-np.sin(u) / u - 2 * np.cos(u) / u**2 + 2 * np.sin(u) / u**3)
    t = np.pi * x
    return np.where(
        np.abs(x) < 0.05, np.pi**2 * (-1 / 3 + t**2 / 10 - t**4 / 168 + t**6 / 6480), far
    )


def sinc3(x):
    u = np.pi * np.where(np.abs(x) < 0.05, 1, x)
    far = np.pi**3 * (
        -np.cos(u) / u + 3 * np.sin(u) / u**2 + 6 * np.cos(u) / u**3 - 6 * np.sin(u) / u**4
    )
    t = np.pi * x
    return np.where(np.abs(x) < 0.05, np.pi**3 * (t / 5 - t**3 / 42 + t**5 / 1080), far)


def i1e(x, order):
    """Derivatives of exp(-|x|) I1(x), with d|x|/dx = 0 at 0."""
    s = np.sign(x)
    terms = {
        2: ((1, 2), (-2 * s, 1), (s * s, 0)),
        3: ((1, 3), (-3 * s, 2), (3 * s * s, 1), (-(s**3), 0)),
    }[order]
    return np.exp(-np.abs(x)) * sum(c * (ivp(1, x, n) if n else iv(1, x)) for c, n in terms)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bell(x):
    return sigmoid(x) * sigmoid(-x)


def zeros(x):
    return Tensor(np.zeros(x.shape))


def pair(x):
    return ops.stack((x, ops.zeros_like(x)), 1)


def assigned(x):
    """x^4, by a row that is assigned."""
    rows = ops.stack((x, x)) * 1.0
    rows[1, :] = x**3
    return rows[0] * rows[1]


class Point(NamedTuple):
    """A function of each entry of x; its second and third derivative there, and the rules that they
    rest on.
    """

    function: Callable
    x: np.ndarray
    second: Callable
    third: Callable
    rules: tuple[str, ...] = ()


TIES = np.array([0.0, 1e-12, -2.0, 1.0, 40.0, -100.0])
LN2 = np.log(2)

POINTS = {
    "sinc": Point(ops.sinc, NEAR, sinc2, sinc3, ("Sinc",)),
    "mint_sinc": Point(mint.sinc, NEAR, sinc2, sinc3),
    "i0": Point(ops.bessel_i0, NEAR, lambda x: ivp(0, x, 2), lambda x: ivp(0, x, 3)),
    "i1": Point(ops.bessel_i1, NEAR, lambda x: ivp(1, x, 2), lambda x: ivp(1, x, 3), ("BesselI1",)),
    "j0": Point(ops.bessel_j0, NEAR, lambda x: jvp(0, x, 2), lambda x: jvp(0, x, 3)),
    "j1": Point(ops.bessel_j1, NEAR, lambda x: jvp(1, x, 2), lambda x: jvp(1, x, 3), ("BesselJ1",)),
    "i1e": Point(ops.bessel_i1e, NEAR, lambda x: i1e(x, 2), lambda x: i1e(x, 3), ("BesselI1e",)),
    "power_0": Point(lambda x: x**0, NEAR, lambda x: 0 * x, lambda x: 0 * x, ("Pow",)),
    "power_1": Point(lambda x: ops.pow(x, 1), NEAR, lambda x: 0 * x, lambda x: 0 * x),
    "power_2": Point(lambda x: x**2.0, NEAR, lambda x: 2 + 0 * x, lambda x: 0 * x),
    "power_3": Point(lambda x: mint.pow(x, 3), NEAR, lambda x: 6 * x, lambda x: 6 + 0 * x),
    "power_by_tensor": Point(
        lambda x: x ** Tensor(np.array([0.0, 1, 2, 3, 4, 0, 1, 2])),
        NEAR,
        lambda x: np.array([0, 0, 2, 6e-4, 12 * 0.09, 0, 0, 2]),
        lambda x: np.array([0, 0, 0, 6, 24 * 0.3, 0, 0, 0]),
    ),
    "power_of_2": Point(lambda x: 2**x, NEAR, lambda x: LN2**2 * 2**x, lambda x: LN2**3 * 2**x),
    "hypot": Point(
        lambda x: ops.hypot(x, zeros(x) + 1),
        NEAR * 25,
        lambda x: (1 + x * x) ** -1.5,
        lambda x: -3 * x * (1 + x * x) ** -2.5,
        ("Hypot",),
    ),
    "logaddexp": Point(
        lambda x: ops.logaddexp(x, zeros(x)), TIES, bell, lambda x: bell(x) * (1 - 2 * sigmoid(x))
    ),
    "logaddexp2": Point(
        lambda x: ops.logaddexp2(zeros(x), x),
        TIES,
        lambda x: LN2 * bell(LN2 * x),
        lambda x: LN2**2 * bell(LN2 * x) * (1 - 2 * sigmoid(LN2 * x)),
    ),
    "logcumsumexp": Point(
        lambda x: ops.logcumsumexp(pair(x), 1)[:, 1],
        TIES,
        bell,
        lambda x: bell(x) * (1 - 2 * sigmoid(x)),
        ("CumulativeLogsumexp",),
    ),
    "cumprod": Point(
        lambda x: ops.cumprod(ops.stack((x, x, zeros(x) + 3), 1), 1)[:, 2],
        NEAR,
        lambda x: 6 + 0 * x,
        lambda x: 0 * x,
        ("CumProd",),
    ),
    "maximum_grad": Point(
        lambda x: gen_ops_prim.MaximumGrad()(x, zeros(x) + 0.5, x**3)[0],
        NEAR,
        lambda x: 6 * x * (x > 0.5),
        lambda x: 6.0 * (x > 0.5),
        ("MaximumGrad",),
    ),
    "an assigned row": Point(
        assigned, NEAR, lambda x: 12 * x * x, lambda x: 24 * x, ("TensorCopySlices",)
    ),
    "minimum_grad": Point(
        lambda x: gen_ops_prim.MinimumGrad()(x, zeros(x) + 0.5, x**3)[0],
        NEAR,
        lambda x: 6 * x * (x < 0.5),
        lambda x: 6.0 * (x < 0.5),
        ("MinimumGrad",),
    ),
}
RULES = {name for point in POINTS.values() for name in point.rules}
