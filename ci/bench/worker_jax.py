"""The cases in JAX, each compiled once by jit, on the CPU. What is fixed comes in as an argument,
so that the compiler does not compute with it while compiling."""

from __future__ import annotations

import os

import serve
from cases import HEADS, numbered, resnet_units

serve.limit_cores()
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import grad, hessian, jit, jvp, lax, vjp, vmap  # noqa: E402


def convolution(x, w, stride=1, padding=0):
    return lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW")
    )


def average_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4


def mlp(w, x):
    x = jnp.tanh(x @ w[0] + w[1])
    x = jnp.tanh(x @ w[2] + w[3])
    return x @ w[4] + w[5]


def lenet(w, x):
    x = average_pool(jnp.tanh(convolution(x, w[0], padding=2) + w[1][:, None, None]))
    x = average_pool(jnp.tanh(convolution(x, w[2]) + w[3][:, None, None]))
    x = jnp.tanh(x.reshape(len(x), -1) @ w[4] + w[5])
    x = jnp.tanh(x @ w[6] + w[7])
    return x @ w[8] + w[9]


def layer_norm(x, scale, shift):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def transformer(w, x):
    n = x.shape[-1]

    def split(x):
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    a = layer_norm(x, w[4], w[5])
    q, k, v = (split(a @ w[i]) for i in range(3))
    mixed = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) * (n // HEADS) ** -0.5) @ v
    x = x + mixed.transpose(0, 2, 1, 3).reshape(x.shape) @ w[3]
    a = layer_norm(x, w[6], w[7])
    x = x + jax.nn.gelu(a @ w[8] + w[9], approximate=True) @ w[10] + w[11]
    return x.mean(1) @ w[12] + w[13]


def resnet(params, statistics):
    """ResNet-18 for small images, batch norm in evaluation mode."""
    units = resnet_units(params)

    def forward(w, x):
        def unit(number, x):
            _, _, kernel, stride = units[number]
            mean, variance, gamma, beta = (
                a[:, None, None] for a in (*statistics[number], *w[3 * number + 1 :][:2])
            )
            x = convolution(x, w[3 * number], stride, kernel // 2)
            return (x - mean) * (gamma * lax.rsqrt(variance + 1e-5)) + beta

        x, number = jax.nn.relu(unit(0, x)), 1
        while number < len(units):
            shortcut, out = x, unit(number + 1, jax.nn.relu(unit(number, x)))
            number += 2
            if number < len(units) and units[number][2] == 1:
                shortcut = unit(number, x)
                number += 1
            x = jax.nn.relu(out + shortcut)
        return x.mean((2, 3)) @ w[-2] + w[-1]

    return forward


def cross_entropy(logits, y):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def by_weights(forward, what):
    def loss(w, x, y):
        return cross_entropy(forward(w, x), y)

    def gradient(w, v, x, y):
        return grad(loss)(w, x, y)

    def hvp(w, v, x, y):
        return jvp(lambda w: grad(loss)(w, x, y), (w,), (v,))[1]

    def hvps(w, v, x, y):
        return vmap(hvp, in_axes=(None, 0, None, None))(w, v, x, y)

    def ggn(w, v, x, y):
        out, pull = vjp(lambda w: forward(w, x), w)
        push = jvp(lambda w: forward(w, x), (w,), (v,))[1]
        return pull(jvp(grad(lambda out: cross_entropy(out, y)), (out,), (push,))[1])[0]

    return jit({"gradient": gradient, "hvp": hvp, "hvps": hvps, "ggn": ggn}[what])


def make(message, arrays):
    data = {key: jnp.asarray(array) for key, array in arrays.items()}
    jax.block_until_ready(data)
    call = call_of(message["problem"], message["what"], message["params"], data)
    return lambda: [np.asarray(part) for part in jax.tree.leaves(call())]


def call_of(problem, what, params, data):
    x, w, v = data["x"], tuple(numbered(data, "w")), tuple(numbered(data, "v"))
    functions = {
        "mlp_input": lambda x, w: (jnp.tanh(x @ w[0]) @ w[1]).sum(),
        "quadratic": lambda x, w: 0.5 * (x @ w[0] @ x),
        "rosenbrock": lambda x, w: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
    }
    if problem in functions:
        compiled = jit(hessian(functions[problem]))
        return lambda: compiled(x, w)
    if problem == "sine":
        compiled = jit(lambda x, v: jvp(grad(lambda x: jnp.sin(x).sum()), (x,), v)[1])
        return lambda: compiled(x, v)
    if problem == "points":

        def u(point, w):
            return jnp.tanh(jnp.tanh(point @ w[0] + w[1]) @ w[2] + w[3]) @ w[4]

        matrix = (
            hessian(u) if what == "hessian" else lambda point, w: jnp.trace(hessian(u)(point, w))
        )
        compiled = jit(vmap(matrix, in_axes=(0, None)))
        return lambda: compiled(x, w)
    y = data["y"]
    if problem == "softmax":
        compiled = jit(hessian(lambda w, x, y: cross_entropy(x @ w[0] + w[1], y)))
        return lambda: compiled(w, x, y)
    if problem == "resnet":
        forward = resnet(params, list(zip(numbered(data, "m"), numbered(data, "s"), strict=True)))
    else:
        forward = {"mlp": mlp, "lenet": lenet, "transformer": transformer}[problem]
    compiled = by_weights(forward, what)
    return lambda: compiled(w, v, x, y)


if __name__ == "__main__":
    serve.serve(make, {"jax": jax.__version__})
