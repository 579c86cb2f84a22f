"""Sums of one function over the entries: gradient φ'(x), Hessian diag φ''(x). One row each, over
ranks 0 to 4.
"""

from __future__ import annotations

import math

import numpy as np
from mindspore import ops
from scenarios_base import CONTROL_FLOW, TANH, TOLERANCE, Scenario, diagonal, tags, uniform


def cubic(x):
    return (x * x * x).sum()


def quartic(x):
    return (x**4 - 3 * x**2 + x).sum()


def exponential(x):
    return ops.exp(x).sum()


def sine(x):
    return x.sin().sum()


def cosine(x):
    return ops.cos(x).sum()


def tanh(x):
    return ops.tanh(x).sum()


def sigmoid(x):
    return ops.sigmoid(x).sum()


def softplus(x):
    return ops.log1p(ops.exp(x)).sum()


def logarithm(x):
    return ops.log(x).sum()


def square_root(x):
    return ops.sqrt(x).sum()


def reciprocal_root(x):
    return ops.rsqrt(x).sum()


def reciprocal(x):
    return (1 / x).sum()


def power(x):
    return (x**2.5).sum()


def rational(x):
    return (x / (1 + x * x)).sum()


def lorentzian(x):
    return ops.log1p(x * x).sum()


def gaussian(x):
    return ops.exp(-x * x).sum()


def damped_wave(x):
    return (ops.exp(-x) * ops.sin(2 * x)).sum()


def arctangent(x):
    return ops.atan(x).sum()


def hyperbolic(x):
    return (ops.sinh(x) + ops.cosh(2 * x)).sum()


def error_function(x):
    return ops.erf(x).sum()


def cubed_magnitude(x):
    return (ops.abs(x) ** 3).sum()


def piecewise(x):
    return ops.where(x > 0, x * x, x * x * x).sum()


def relu_squared(x):
    return (ops.relu(x) ** 2).sum()


def linear(x):
    return (3 * x + 1).sum()


def mean_square(x):
    return (x**2).mean()


def branch(x):
    if x.sum() > 0:
        return (x**3).sum()
    return (x**2).sum()


def repeated(x):
    for _ in range(3):
        x = ops.sin(x)
    return x.sum()


def logistic(x):
    return 1 / (1 + np.exp(-x))


def dlogistic(x):
    return logistic(x) * logistic(-x)


def dtanh(x):
    return 1 - np.tanh(x) ** 2


def repeated_gradient(x):
    return np.cos(np.sin(np.sin(x))) * np.cos(np.sin(x)) * np.cos(x)


def repeated_hessian(x):
    inner, outer = np.sin(x), np.sin(np.sin(x))
    return (
        -np.sin(outer) * (np.cos(inner) * np.cos(x)) ** 2
        - np.cos(outer) * np.sin(inner) * np.cos(x) ** 2
        - np.cos(outer) * np.cos(inner) * np.sin(x)
    )


# fn, φ', φ'', (low, high), shape
ROWS = [
    (cubic, lambda x: 3 * x**2, lambda x: 6 * x, (-2, 2), (5,)),
    (quartic, lambda x: 4 * x**3 - 6 * x + 1, lambda x: 12 * x**2 - 6, (-2, 2), (2, 3)),
    (exponential, np.exp, np.exp, (-1, 1), (4,)),
    (sine, np.cos, lambda x: -np.sin(x), (-3, 3), (16,)),
    (cosine, lambda x: -np.sin(x), lambda x: -np.cos(x), (-3, 3), (2, 3, 2)),
    (tanh, dtanh, lambda x: -2 * np.tanh(x) * dtanh(x), (-2, 2), (1, 2, 3, 2)),
    (sigmoid, dlogistic, lambda x: dlogistic(x) * (1 - 2 * logistic(x)), (-3, 3), (3, 2)),
    (softplus, logistic, dlogistic, (-3, 3), (5,)),
    (logarithm, lambda x: 1 / x, lambda x: -1 / x**2, (0.5, 3), (4,)),
    (square_root, lambda x: 0.5 * x**-0.5, lambda x: -0.25 * x**-1.5, (0.5, 3), (2, 2)),
    (reciprocal_root, lambda x: -0.5 * x**-1.5, lambda x: 0.75 * x**-2.5, (0.5, 3), (3,)),
    (reciprocal, lambda x: -1 / x**2, lambda x: 2 / x**3, (0.5, 3), (2, 1, 2)),
    (power, lambda x: 2.5 * x**1.5, lambda x: 3.75 * x**0.5, (0.5, 3), (4,)),
    (
        rational,
        lambda x: (1 - x * x) / (1 + x * x) ** 2,
        lambda x: 2 * x * (x * x - 3) / (1 + x * x) ** 3,
        (-2, 2),
        (5,),
    ),
    (
        lorentzian,
        lambda x: 2 * x / (1 + x * x),
        lambda x: 2 * (1 - x * x) / (1 + x * x) ** 2,
        (-2, 2),
        (2, 3),
    ),
    (
        gaussian,
        lambda x: -2 * x * np.exp(-x * x),
        lambda x: (4 * x * x - 2) * np.exp(-x * x),
        (-2, 2),
        (4,),
    ),
    (
        damped_wave,
        lambda x: np.exp(-x) * (2 * np.cos(2 * x) - np.sin(2 * x)),
        lambda x: np.exp(-x) * (-3 * np.sin(2 * x) - 4 * np.cos(2 * x)),
        (0, 2),
        (5,),
    ),
    (arctangent, lambda x: 1 / (1 + x * x), lambda x: -2 * x / (1 + x * x) ** 2, (-2, 2), (3,)),
    (
        hyperbolic,
        lambda x: np.cosh(x) + 2 * np.sinh(2 * x),
        lambda x: np.sinh(x) + 4 * np.cosh(2 * x),
        (-1, 1),
        (2, 2),
    ),
    (
        error_function,
        lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x),
        lambda x: -4 / math.sqrt(math.pi) * x * np.exp(-x * x),
        (-2, 2),
        (4,),
    ),
    (cubed_magnitude, lambda x: 3 * x * np.abs(x), lambda x: 6 * np.abs(x), (-2, 2), (6,)),
    (
        piecewise,
        lambda x: np.where(x > 0, 2 * x, 3 * x * x),
        lambda x: np.where(x > 0, 2.0, 6 * x),
        (-2, 2),
        (6,),
    ),
    (relu_squared, lambda x: 2 * np.maximum(x, 0), lambda x: 2.0 * (x > 0), (-2, 2), (6,)),
    (linear, lambda x: np.full_like(x, 3), np.zeros_like, (-2, 2), (3, 2)),
    (mean_square, lambda x: 2 * x / x.size, lambda x: np.full_like(x, 2 / x.size), (-2, 2), (2, 3)),
    (branch, lambda x: 3 * x**2, lambda x: 6 * x, (0.5, 2), (4,)),
    (repeated, repeated_gradient, repeated_hessian, (-2, 2), (4,)),
]
SPECIAL = {tanh: TANH, branch: CONTROL_FLOW}


def scenario(fn, first, second, bounds, shape, suffix="", **options) -> Scenario:
    return Scenario(
        name=fn.__name__ + suffix,
        fn=fn,
        inputs=uniform(*bounds, shape),
        gradient=lambda x: (np.asarray(first(x)),),
        hessian=lambda x: ((diagonal(second(x)),),),
        tolerance=SPECIAL.get(fn, TOLERANCE),
        **options,
    )


SCENARIOS = [
    scenario(*row, tags=tags("elementwise", *["zero"] * (row[0] is linear))) for row in ROWS
]
# the same functions of a 0-d tensor
SCENARIOS += [
    scenario(*row[:-1], (), suffix="_of_scalar", tags=tags("elementwise", "scalar-input"))
    for row in ROWS
    if row[0] in (quartic, sine, rational, power)
]
