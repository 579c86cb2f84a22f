"""Standard problems of least squares: More, Garbow and Hillstrom, ACM Trans. Math. Softw. 7(1),
1981.

Each is the function of its residuals, the standard start, and the least sum of squares that is
known from there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, ops


class Problem(NamedTuple):
    name: str
    residuals: Any
    start: list
    minimum: float
    at: list | None = None


def rosenbrock(x):
    return ops.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])


def freudenstein_roth(x):
    return ops.stack(
        [
            -13.0 + x[0] + ((5.0 - x[1]) * x[1] - 2.0) * x[1],
            -29.0 + x[0] + ((x[1] + 1.0) * x[1] - 14.0) * x[1],
        ]
    )


def beale(x):
    return ops.stack(
        [
            Y_BEALE[0] - x[0] * (1.0 - x[1]),
            Y_BEALE[1] - x[0] * (1.0 - x[1] ** 2),
            Y_BEALE[2] - x[0] * (1.0 - x[1] ** 3),
        ]
    )


def jennrich_sampson(x):
    return 2.0 + 2.0 * TEN - ops.exp(TEN * x[0]) - ops.exp(TEN * x[1])


def bard(x):
    return Y_BARD - (x[0] + U_BARD / (V_BARD * x[1] + W_BARD * x[2]))


def gaussian(x):
    return x[0] * ops.exp(-x[1] * (T_GAUSS - x[2]) ** 2 / 2.0) - Y_GAUSS


def box(x):
    return (
        ops.exp(-T_BOX * x[0])
        - ops.exp(-T_BOX * x[1])
        - x[2] * (ops.exp(-T_BOX) - ops.exp(-10.0 * T_BOX))
    )


def powell_singular(x):
    return ops.stack(
        [
            x[0] + 10.0 * x[1],
            ROOT_5 * (x[2] - x[3]),
            (x[1] - 2.0 * x[2]) ** 2,
            ROOT_10 * (x[0] - x[3]) ** 2,
        ]
    )


def wood(x):
    return ops.stack(
        [
            10.0 * (x[1] - x[0] ** 2),
            1.0 - x[0],
            ROOT_90 * (x[3] - x[2] ** 2),
            1.0 - x[2],
            ROOT_10 * (x[1] + x[3] - 2.0),
            (x[1] - x[3]) / ROOT_10,
        ]
    )


def kowalik_osborne(x):
    return Y_KOWALIK - x[0] * (U_KOWALIK**2 + U_KOWALIK * x[1]) / (
        U_KOWALIK**2 + U_KOWALIK * x[2] + x[3]
    )


def brown_dennis(x):
    return (x[0] + T_DENNIS * x[1] - EXP_DENNIS) ** 2 + (x[2] + x[3] * SIN_DENNIS - COS_DENNIS) ** 2


def variably_dimensioned(x):
    weighed = (SIX * (x - 1.0)).sum().reshape(1)
    return ops.concat([x - 1.0, weighed, weighed**2])


def broyden_tridiagonal(x):
    around = ops.concat([x[1:] * 2.0, ZERO]) + ops.concat([ZERO, x[:-1]])
    return (3.0 - 2.0 * x) * x - around + 1.0


def penalty(x):
    return ops.concat([ROOT_SMALL * (x - 1.0), ((x * x).sum() - QUARTER).reshape(1)])


def tensor(values) -> Tensor:
    return Tensor(np.asarray(values, np.float64))


Y_BEALE = tensor([1.5, 2.25, 2.625])
TEN = tensor(np.arange(1, 11))
U_BARD, V_BARD = tensor(np.arange(1, 16)), tensor(16.0 - np.arange(1, 16))
W_BARD = tensor(np.minimum(np.arange(1, 16), 16 - np.arange(1, 16)))
Y_BARD = tensor(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
)
T_GAUSS = tensor((8.0 - np.arange(1, 16)) / 2)
Y_GAUSS = tensor(
    [
        0.0009,
        0.0044,
        0.0175,
        0.0540,
        0.1295,
        0.2420,
        0.3521,
        0.3989,
        0.3521,
        0.2420,
        0.1295,
        0.0540,
        0.0175,
        0.0044,
        0.0009,
    ]
)
T_BOX = tensor(0.1 * np.arange(1, 11))
ROOT_5, ROOT_10, ROOT_90, ROOT_SMALL = (tensor(np.sqrt(v)) for v in (5.0, 10.0, 90.0, 1e-5))
QUARTER, ZERO = tensor(0.25), tensor([0.0])
Y_KOWALIK = tensor(
    [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
)
U_KOWALIK = tensor([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])
T_DENNIS = tensor(np.arange(1, 21) / 5)
EXP_DENNIS, SIN_DENNIS, COS_DENNIS = (
    tensor(f(np.arange(1, 21) / 5)) for f in (np.exp, np.sin, np.cos)
)
SIX = tensor(np.arange(1, 7))

PROBLEMS = [
    Problem("Rosenbrock", rosenbrock, [-1.2, 1.0], 0.0, [1.0, 1.0]),
    Problem(
        "Freudenstein and Roth",
        freudenstein_roth,
        [0.5, -2.0],
        48.9842536,
        [11.4127790, -0.8968053],
    ),
    Problem("Beale", beale, [1.0, 1.0], 0.0, [3.0, 0.5]),
    Problem(
        "Jennrich and Sampson", jennrich_sampson, [0.3, 0.4], 124.362182, [0.2578252, 0.2578252]
    ),
    Problem("Bard", bard, [1.0, 1.0, 1.0], 8.2148773e-3, [0.0824106, 1.1330361, 2.3436952]),
    Problem("Gaussian", gaussian, [0.4, 1.0, 0.0], 1.1279328e-8),
    Problem("Box", box, [0.0, 10.0, 20.0], 0.0),
    Problem("Powell, singular", powell_singular, [3.0, -1.0, 0.0, 1.0], 0.0),
    Problem("Wood", wood, [-3.0, -1.0, -3.0, -1.0], 0.0, [1.0, 1.0, 1.0, 1.0]),
    Problem(
        "Kowalik and Osborne",
        kowalik_osborne,
        [0.25, 0.39, 0.415, 0.39],
        3.0750561e-4,
        [0.1928069, 0.1912823, 0.1230565, 0.1360624],
    ),
    Problem(
        "Brown and Dennis",
        brown_dennis,
        [25.0, 5.0, -5.0, -1.0],
        85822.2016,
        [-11.5944399, 13.2036301, -0.4034395, 0.2367788],
    ),
    Problem(
        "variably dimensioned",
        variably_dimensioned,
        list(1.0 - np.arange(1, 7) / 6),
        0.0,
        [1.0] * 6,
    ),
    Problem("Broyden, tridiagonal", broyden_tridiagonal, [-1.0] * 8, 0.0),
    Problem("penalty I", penalty, [1.0, 2.0, 3.0, 4.0], 2.2499775e-5),
]
