"""What a Laplacian costs: that of this library, of folx, and JAX's trace of a Hessian, of the same
networks at the same points, in turns in one run, float32, with defaults. The value; the gradient by
the weights of the mean of its square, which a physics-informed network needs; and log|psi| of ten
electrons, a small network with determinants, also compared with float64. Prints a markdown table.

Usage: python ci/bench/laplacian.py --jax-python FILE [--rounds N] [--only REGEX]. The other Python
has jax and folx.
"""

from __future__ import annotations

import argparse
import re

import numpy as np
import serve
import turns

NETWORKS = {"2 x 10,000": (2, 10_000), "10 x 2,000": (10, 2_000), "64 x 256": (64, 256)}
MEMORY = {"64 x 1,024": (64, 1_024)}
WIDTH, ELECTRONS, WALKERS, FEATURES, DETERMINANTS = 128, 10, 128, 32, 4
PSI = f"{ELECTRONS} electrons, {WALKERS} walkers"
JOBS = [
    *((case, job) for case in NETWORKS for job in ("value", "gradient")),
    *((case, "value") for case in MEMORY),
    (PSI, "value"),
]


def data(case: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if case == PSI:
        sizes = [
            (3 + 1, FEATURES),
            (4, FEATURES),
            (3 * FEATURES, FEATURES),
            (3 * FEATURES, FEATURES),
            (FEATURES, DETERMINANTS * ELECTRONS),
        ]
        points = rng.standard_normal((WALKERS, ELECTRONS, 3))
    else:
        inputs, count = {**NETWORKS, **MEMORY}[case]
        sizes = [(inputs, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
        points = rng.standard_normal((count, inputs))
    out = {"x": points}
    for number, (m, n) in enumerate(sizes):
        out[f"w{number}"] = rng.standard_normal((m, n)) / m**0.5
        out[f"b{number}"] = 0.1 * rng.standard_normal(n)
    return {name: array.astype(np.float32) for name, array in out.items()}


def perceptron(xp):
    """One number of a point (D,), or a column of points (N, D): a tanh network."""

    def net(x, w0, b0, w1, b1, w2, b2, w3, b3):
        for w, b in ((w0, b0), (w1, b1), (w2, b2)):
            x = xp.tanh(xp.matmul(x, w) + b)
        return xp.matmul(x, w3) + b3

    return net


def log_psi(xp):
    """log|psi| of one walker (electrons, 3), a small network after Pfau et al., Ab initio solution of
    the many-electron Schroedinger equation with deep neural networks, Phys. Rev. Research 2, 2020:
    features of electrons and of pairs, residual layers, and a sum of determinants."""
    apart = np.eye(ELECTRONS, dtype=np.float32)[:, :, None]  # keeps the distance to itself smooth

    def f(r, w0, b0, w1, b1, w2, b2, w3, b3, w4, b4):
        own, between = xp.constant(apart), r[:, None, :] - r[None, :, :]
        distance = xp.sqrt((between * between).sum(-1)[..., None] + own)
        radius = xp.sqrt((r * r).sum(-1)[..., None])
        one = xp.tanh(xp.matmul(xp.cat((r, radius), -1), w0) + b0)
        pair = xp.tanh(xp.matmul(xp.cat((between, distance), -1), w1) + b1).mean(1)
        for w, b in ((w2, b2), (w3, b3)):
            mean = one.mean(0)[None] + 0 * one
            one = one + xp.tanh(xp.matmul(xp.cat((one, mean, pair), -1), w) + b)
        orbitals = (xp.matmul(one, w4) + b4) * xp.exp(-radius)
        orbitals = orbitals.reshape((ELECTRONS, DETERMINANTS, ELECTRONS))
        sign, logdet = xp.slogdet(orbitals.swapaxes(0, 1))
        largest = xp.constant_of(logdet).max()
        return xp.log(xp.abs((sign * xp.exp(logdet - largest)).sum())) + largest

    return f


class Jax:
    """The functions that the networks are written with."""

    def __init__(self):
        import jax
        import jax.numpy as jnp

        for name in ("tanh", "exp", "sqrt", "log", "abs", "matmul"):
            setattr(self, name, getattr(jnp, name))
        self.cat, self.slogdet, self.constant = jnp.concatenate, jnp.linalg.slogdet, jnp.asarray
        self.constant_of = jax.lax.stop_gradient


class MindSpore:
    """The same."""

    def __init__(self):
        import mindspore as ms
        from mindspore import ops

        for name in ("tanh", "exp", "sqrt", "log", "abs", "matmul", "cat", "slogdet"):
            setattr(self, name, getattr(ops, name))
        self.constant, self.constant_of = ms.Tensor, ops.stop_gradient


def split(message: dict, arrays: dict):
    weights = [arrays[f"{kind}{k}"] for k in range((len(arrays) - 1) // 2) for kind in "wb"]
    return message["case"] == PSI, message["job"], arrays["x"], weights


def ours(message: dict, arrays: dict):
    import mindspore as ms
    from mindspore import Parameter, ParameterTuple, Tensor

    import mindspore_hessian as mh

    is_psi, job, x, weights = split(message, arrays)
    x, f = Tensor(x), (log_psi if is_psi else perceptron)(MindSpore())
    held = [Parameter(Tensor(w), name=f"w{k}") for k, w in enumerate(weights)]
    own = ParameterTuple(held)

    def net(point):
        return f(point, *own)

    lap = mh.laplacian(net, in_axes=0, batched=not is_psi)
    if job == "value":
        return lambda: [lap(x).asnumpy()]

    def risk(points):
        return (lap(points) ** 2).mean()

    slope = ms.jit(ms.grad(risk, None, own))
    return lambda: [one.asnumpy() for one in slope(x)]


def by_jax(folx: bool, double: bool = False):
    def make(message: dict, arrays: dict):
        import jax
        import jax.numpy as jnp

        if double:
            jax.config.update("jax_enable_x64", True)
        is_psi, job, x, weights = split(message, arrays)
        kind = jnp.float64 if double else jnp.float32
        x, weights = jnp.asarray(x, kind), [jnp.asarray(w, kind) for w in weights]
        f = (log_psi if is_psi else perceptron)(Jax())

        def one(point, weights):
            def number(y):
                out = f(y.reshape(x.shape[1:]), *weights)
                return out if is_psi else out[0]

            if folx:
                from folx import forward_laplacian

                return forward_laplacian(number)(point.reshape(-1)).laplacian
            return jnp.trace(jax.hessian(number)(point.reshape(-1)))

        lap = jax.vmap(one, in_axes=(0, None))
        if job == "value":
            call = jax.jit(lap)
            return lambda: [np.asarray(call(x, weights))]
        slope = jax.jit(jax.grad(lambda ws: (lap(x, ws) ** 2).mean()))
        return lambda: [np.asarray(one) for one in slope(weights)]

    return make


WORKERS = {
    "ours": ours,
    "folx": by_jax(True),
    "jax": by_jax(False),
    "float64": by_jax(False, double=True),
}


def error(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    """The largest, relative to the largest entry."""
    scale = max(np.abs(b).max() for b in exact)
    return max(
        float(np.abs(a.reshape(b.shape) - b).max()) for a, b in zip(found, exact, strict=True)
    ) / float(scale)


def table(options: argparse.Namespace) -> None:
    print(
        "| case | job | ms | / jax | / folx | error | jax's, folx's | first call, s | jax's, folx's | "
        "memory, MiB | jax's, folx's |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case, job in JOBS:
        if not re.search(options.only, f"{case} {job}"):
            continue
        message, arrays = {"case": case, "job": job}, data(case)
        # without folx, JAX hangs in the determinants of its second or third call (0.10, two cores)
        others = ("folx",) if case == PSI else ("folx", "jax")
        pythons = turns.with_ours(dict.fromkeys(others, options.jax_python))
        exact = turns.in_turns(__file__, {"float64": options.jax_python}, message, arrays, 0)
        found = turns.in_turns(__file__, pythons, message, arrays, options.rounds)
        for name, outcome in (exact | found).items():
            if outcome.error:
                raise SystemExit(f"{name}, {case}, {job}: {outcome.error}")
        truth, mine = exact["float64"].result, found["ours"]
        beside = [found.get(name, turns.Outcome()) for name in ("jax", "folx")]
        cells = [
            f"{mine.ms:.1f}",
            *(f"{mine.ms / one.ms:.2f}" for one in beside),
            f"{error(mine.result, truth):.0e}",
            ", ".join(f"{error(one.result, truth):.0e}" for one in beside if one.result),
            f"{mine.first:.1f}",
            ", ".join(f"{one.first:.1f}" for one in beside),
            f"{mine.peak:.0f}",
            ", ".join(f"{one.peak:.0f}" for one in beside),
        ]
        print(f"| {case} | {job} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jax-python", help="a Python that has jax and folx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression of case and job")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve.limit_cores()
        serve.serve(WORKERS[options.worker], {})
    elif not options.jax_python:
        parser.error("--jax-python: needs a Python with jax and folx")
    else:
        table(options)


if __name__ == "__main__":
    main()
