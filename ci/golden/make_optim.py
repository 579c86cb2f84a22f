"""Golden values for tests/test_optim_minimize.py: minima that scipy finds with jax's derivatives,
in float64.

Run with a Python that has jax and scipy: ``python ci/golden/make_optim.py``. Three problems of
More, Garbow and Hillstrom, ACM Trans. Math. Softw. 7(1), 1981, whose minima are isolated and not at
0. Keys: ``<problem>/x``, the point at which "trust-exact" ends and three more steps of Newton,
since a trust region cannot tell values that differ by rounding; and ``<problem>/fun``, the sum of squares there.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import scipy.optimize

jax.config.update("jax_enable_x64", True)
jnp = jax.numpy

INDEX = np.arange(1, 16.0)
Y_BARD = np.array(
    [0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39]
)
Y_KOWALIK = np.array(
    [0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]
)
U_KOWALIK = np.array([4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625])


def bard(x):
    return Y_BARD - (x[0] + INDEX / ((16 - INDEX) * x[1] + np.minimum(INDEX, 16 - INDEX) * x[2]))


def kowalik_osborne(x):
    return Y_KOWALIK - x[0] * (U_KOWALIK**2 + U_KOWALIK * x[1]) / (
        U_KOWALIK**2 + U_KOWALIK * x[2] + x[3]
    )


def jennrich_sampson(x):
    i = np.arange(1, 11.0)
    return 2 + 2 * i - jnp.exp(i * x[0]) - jnp.exp(i * x[1])


CASES = {
    "Bard": (bard, [1.0, 1.0, 1.0]),
    "Kowalik and Osborne": (kowalik_osborne, [0.25, 0.39, 0.415, 0.39]),
    "Jennrich and Sampson": (jennrich_sampson, [0.3, 0.4]),
}


def main():
    out = {}
    for name, (residuals, start) in CASES.items():

        def value(x, residuals=residuals):
            return (residuals(x) ** 2).sum()

        found = scipy.optimize.minimize(
            jax.jit(value),
            np.array(start),
            jac=jax.jit(jax.grad(value)),
            hess=jax.jit(jax.hessian(value)),
            method="trust-exact",
            options={"gtol": 1e-9, "maxiter": 1000},
        )
        x = found.x
        for _ in range(3):
            x = x - np.linalg.solve(jax.hessian(value)(x), jax.grad(value)(x))
        out[f"{name}/x"], out[f"{name}/fun"] = x, value(x)
        print(name, x, value(x), np.abs(jax.grad(value)(x)).max())
    np.savez(Path(__file__).resolve().parents[2] / "tests" / "golden" / "optim.npz", **out)


if __name__ == "__main__":
    main()
