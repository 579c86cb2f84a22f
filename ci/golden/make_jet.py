"""Writes tests/golden/jet.npz: derivatives along curves by JAX, in float64.

Of single operations, derivatives of t -> f(x(t)) by nested `jax.jvp` (not by jets, so that another
method is compared), of a network by `jax.experimental.jet`, to order 10. Run: ``python
ci/golden/make_jet.py``
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn
from jax.experimental import jet
from jax.scipy import special

jax.config.update("jax_enable_x64", True)
TARGET = Path(__file__).resolve().parents[2] / "tests" / "golden" / "jet.npz"
ORDER = 5
RANDOM = np.random.default_rng(7)


def norm(x, axis, eps=1e-5):
    centred = x - x.mean(axis, keepdims=True)
    return centred / jnp.sqrt((centred * centred).mean(axis, keepdims=True) + eps)


def wide(x):
    """Five columns, which is no power of 2."""
    return jnp.concatenate((x, 1 + x[:, 1:]), 1)


def before(x):
    return jnp.concatenate((jnp.ones_like(x[:, :1]), x[:, :-1]), 1)


def distance(a, b):
    return jnp.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def polar(x):
    left, _, right = jnp.linalg.svd(x, full_matrices=False)
    return left @ right


def matrix(x):
    """(3, 3), not symmetric."""
    return (x.T**2) @ x + jnp.diag(jnp.arange(1.0, 4.0))


def positive(x):
    """(2, 2), positive definite."""
    return x @ x.T + jnp.eye(2)


def grouped(x):
    """A group norm of four channels in two groups."""
    wide = jnp.concatenate((x, x**3), -1).reshape(1, 4, 3)
    return (norm(wide.reshape(1, 2, 6), -1, 0.01)).reshape(1, 4, 3) * jnp.arange(1.0, 5.0)[
        None, :, None
    ]


ONE = {
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "asinh": jnp.arcsinh,
    "acosh": lambda x: jnp.arccosh(x + 1.2),
    "atanh": jnp.arctanh,
    "sqrt": jnp.sqrt,
    "rsqrt": lambda x: 1 / jnp.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "cube": lambda x: (x - 0.5) ** 3,
    "power": lambda x: x**2.5,
    "negative power": lambda x: x**-2.0,
    "ninth": lambda x: (x - 0.5) ** 9,
    "erf": special.erf,
    "erfc": special.erfc,
    "gelu": lambda x: nn.gelu(x - 0.5, approximate=False),
    "gelu tanh": lambda x: nn.gelu(x - 0.5, approximate=True),
    "silu": lambda x: nn.silu(x - 0.5),
    "softplus": lambda x: nn.softplus(x - 0.5),
    "mish": lambda x: (x - 0.5) * jnp.tanh(nn.softplus(x - 0.5)),
    "elu": lambda x: nn.elu(x - 0.5),
    "selu": lambda x: nn.selu(x - 0.5),
    "softsign": lambda x: nn.soft_sign(x - 0.5),
    "hswish": lambda x: nn.hard_swish(x - 0.5),
    "relu": lambda x: nn.relu(x - 0.5) * x,
    "abs": lambda x: jnp.abs(x - 0.5) * x,
    "softmax": lambda x: nn.softmax(x, 0),
    "log softmax": lambda x: nn.log_softmax(x, -1),
    "logsumexp": lambda x: nn.logsumexp(x, -1),
    "norm": lambda x: jnp.sqrt((x * x).sum(-1)),
    "layer norm": lambda x: norm(x, -1),
    "exponential": lambda x: 1.5**x,
    "shapes": lambda x: jnp.concatenate((x.T, x.T**2), -1)[:, 1:].sum(0) * x[0, 0],
    "inverse": lambda x: jnp.linalg.inv(matrix(x)),
    "determinant": lambda x: jnp.linalg.det(matrix(x)),
    "log determinant": lambda x: jnp.linalg.slogdet(matrix(x))[1],
    "matrix power": lambda x: jnp.linalg.matrix_power(matrix(x), 3),
    "inverse power": lambda x: jnp.linalg.matrix_power(matrix(x), -2),
    "solve": lambda x: jnp.linalg.solve(matrix(x), x.T),
    "constant solve": lambda x: jnp.linalg.solve(matrix(x), jnp.ones((3, 1))),
    "cholesky": lambda x: jnp.linalg.cholesky(positive(x)),
    "cholesky inverse": lambda x: jnp.linalg.inv(jnp.tril(matrix(x)) @ jnp.tril(matrix(x)).T),
    "cholesky solve": lambda x: jnp.linalg.solve(jnp.tril(matrix(x)) @ jnp.tril(matrix(x)).T, x.T),
    "eigenvalues": lambda x: jnp.linalg.eigh(matrix(x) + matrix(x).T)[0],
    "eigenvectors": lambda x: jnp.linalg.eigh(matrix(x) + matrix(x).T)[1] ** 2,
    "singular values": lambda x: jnp.linalg.svd(x, full_matrices=False)[1],
    "polar": polar,
    "tall q": lambda x: jnp.linalg.qr(x.T)[0] ** 2,
    "tall r": lambda x: jnp.linalg.qr(x.T)[1] ** 2,
    "wide r": lambda x: jnp.triu(jnp.linalg.qr(x[:, :0:-1])[0].T @ x[:, ::-1]) ** 2,
    "erfinv": special.erfinv,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "group norm": grouped,
    "largest": lambda x: x.max(-1) * x.min(0).sum(),
    "product": lambda x: wide(x).prod(1),
    "product of all": lambda x: x.prod(),
    "kept product": lambda x: wide(x).prod((0, 1), keepdims=True),
    "running product": lambda x: jnp.cumprod(wide(x), 1),
    "running product before": lambda x: before(jnp.cumprod(x, 1)),
    "running product from the end": lambda x: jnp.cumprod(x[:, ::-1], 1)[:, ::-1],
    "running logsumexp": lambda x: jax.lax.cumlogsumexp(x, 1),
    "celu": lambda x: nn.celu(x - 0.5, 0.75),
    "logit": special.logit,
    "sinc": lambda x: jnp.sinc(x - 0.25),
    "trace": lambda x: jnp.trace(matrix(x)),
    "between rows": lambda x: distance(x, x)[0, 1][None],
    "mvlgamma": lambda x: special.multigammaln(x + 1, 3),
    "igamma": lambda x: special.gammainc(1.3, x),
    "igammac": lambda x: special.gammaincc(1.3, x),
    "i0e": special.i0e,
    "i1e": special.i1e,
    "zeta": lambda x: special.zeta(2.5, x),
    "trigamma": lambda x: special.polygamma(1, x),
    "prelu": lambda x: jnp.where(x > 0.5, x - 0.5, (x - 0.5) * jnp.sin(x[:1])),
}
TWO = {
    "mul": lambda a, b: a * b[0],
    "div": lambda a, b: a[0] / b,
    "constant div": lambda a, b: 2 / b + a / 3,
    "atan2": jnp.arctan2,
    "hypot": jnp.hypot,
    "xlogy": special.xlogy,
    "pow": lambda a, b: a**b,
    "maximum": lambda a, b: jnp.maximum(a, b[0]) * a,
    "squared difference": lambda a, b: (a - b) ** 2,
    "matmul": lambda a, b: a @ b.T,
    "where": lambda a, b: jnp.where(a > b, a * b, b),
    "addcmul": lambda a, b: 1 + 0.5 * a * b[0],
    "addcdiv": lambda a, b: a[0] + 0.5 * a / b,
    "xdivy": lambda a, b: a[0] / b,
    "distances": distance,
    "smooth l1": lambda a, b: jnp.where(
        jnp.abs(a - b) < 0.2, (a - b) ** 2 / 0.4, jnp.abs(a - b) - 0.1
    ).sum(),
    "kl": lambda a, b: (b * (jnp.log(b) - a)).sum() / 2,
    "sigmoid cross entropy": lambda a, b: nn.softplus(a) - a * b,
    "cross entropy": lambda a, b: -(b * jnp.log(a) + (1 - b) * jnp.log(1 - a)).mean(),
    "cross entropy of logits": lambda a, b: (
        (1 - b) * a + (1 + jnp.arange(0.0, 3) * b) * nn.softplus(-a)
    ).sum(),
    "softmax cross entropy": lambda a, b: -(b * nn.log_softmax(a, -1)).sum(-1),
    "of classes": lambda a, b: -nn.log_softmax(a * b, -1)[jnp.arange(2), jnp.array([2, 0])].mean(),
    "nll": lambda a, b: -(a * b)[jnp.arange(2), jnp.array([2, 0])].mean(),
    "lerp": lambda a, b: a + a * b * (b - a),
}


def curve(x, series):
    """t -> x(t)."""
    return lambda t: x + sum(one * t**k / math.factorial(k) for k, one in enumerate(series, 1))


def nested(f, xs, series):
    """Derivatives of t -> f(x(t)) at 0."""
    curves = [curve(x, own) for x, own in zip(xs, series, strict=True)]
    g, out = (lambda t: f(*(c(t) for c in curves))), []
    for _ in range(ORDER + 1):
        out.append(g(0.0))
        g = (lambda h: lambda t: jax.jvp(h, (t,), (1.0,))[1])(g)
    return np.stack([np.asarray(one) for one in out])


def main():
    values = {}
    xs = [RANDOM.uniform(0.25, 0.75, (2, 3)) for _ in range(2)]
    series = [RANDOM.uniform(-1, 1, (ORDER, 2, 3)) for _ in range(2)]
    values.update(x0=xs[0], x1=xs[1], s0=series[0], s1=series[1])
    for name, f in ONE.items():
        values[name] = nested(f, xs[:1], series[:1])
    for name, f in TWO.items():
        values[name] = nested(f, xs, series)
    widths = (1, 32, 32, 1)
    weights = [
        RANDOM.normal(size=(m, n)) / m**0.5 for m, n in zip(widths, widths[1:], strict=False)
    ]
    biases = [RANDOM.normal(size=n) for n in widths[1:]]

    def net(x):
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            x = jnp.tanh(x @ w + b)
        return x @ weights[-1] + biases[-1]

    points = np.linspace(-2, 2, 21)[:, None]
    zeros = jnp.zeros_like(points)
    value, found = jax.jit(lambda x: jet.jet(net, (x,), ((jnp.ones_like(x), *[zeros] * 9),)))(
        points
    )
    values.update(points=points, net=np.stack([value, *found]))
    values.update(
        {f"w{k}": w for k, w in enumerate(weights)}, **{f"b{k}": b for k, b in enumerate(biases)}
    )
    np.savez_compressed(TARGET, **values)


if __name__ == "__main__":
    main()
