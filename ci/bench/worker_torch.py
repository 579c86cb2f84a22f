"""The cases in PyTorch: torch.func, eager. With --float64, the reference for the networks."""

from __future__ import annotations

import sys

import serve
from cases import HEADS, numbered, resnet_units

cores = serve.limit_cores()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch.func import grad, hessian, jvp, vjp, vmap  # noqa: E402

WIDE = "--float64" in sys.argv
torch.set_num_threads(cores)


def mlp(w, x):
    x = torch.tanh(x @ w[0] + w[1])
    x = torch.tanh(x @ w[2] + w[3])
    return x @ w[4] + w[5]


def lenet(w, x):
    x = F.avg_pool2d(torch.tanh(F.conv2d(x, w[0], w[1], padding=2)), 2)
    x = F.avg_pool2d(torch.tanh(F.conv2d(x, w[2], w[3])), 2)
    x = torch.tanh(x.flatten(1) @ w[4] + w[5])
    x = torch.tanh(x @ w[6] + w[7])
    return x @ w[8] + w[9]


def transformer(w, x):
    n = x.shape[-1]

    def split(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    a = F.layer_norm(x, (n,), w[4], w[5])
    q, k, v = (split(a @ w[i]) for i in range(3))
    mixed = torch.softmax(q @ k.transpose(-1, -2) * (n // HEADS) ** -0.5, -1) @ v
    x = x + mixed.transpose(1, 2).flatten(2) @ w[3]
    a = F.layer_norm(x, (n,), w[6], w[7])
    x = x + F.gelu(a @ w[8] + w[9], approximate="tanh") @ w[10] + w[11]
    return x.mean(1) @ w[12] + w[13]


def resnet(params, statistics):
    """ResNet-18 for small images, batch norm in evaluation mode."""
    units = resnet_units(params)

    def forward(w, x):
        def unit(number, x):
            _, _, kernel, stride = units[number]
            mean, variance = statistics[number]
            x = F.conv2d(x, w[3 * number], stride=stride, padding=kernel // 2)
            return F.batch_norm(x, mean, variance, w[3 * number + 1], w[3 * number + 2])

        x, number = torch.relu(unit(0, x)), 1
        while number < len(units):
            shortcut, out = x, unit(number + 1, torch.relu(unit(number, x)))
            number += 2
            if number < len(units) and units[number][2] == 1:
                shortcut = unit(number, x)
                number += 1
            x = torch.relu(out + shortcut)
        return x.mean((2, 3)) @ w[-2] + w[-1]

    return forward


def by_weights(forward, what, w, v, x, y):
    def loss(w):
        return F.cross_entropy(forward(w, x), y)

    def product():
        out, pull = vjp(lambda w: forward(w, x), w)
        push = jvp(lambda w: forward(w, x), (w,), (v,))[1]
        curved = jvp(grad(lambda out: F.cross_entropy(out, y)), (out,), (push,))[1]
        return pull(curved)[0]

    def hvp(v):
        return jvp(grad(loss), (w,), (v,))[1]

    return {
        "gradient": lambda: grad(loss)(w),
        "hvp": lambda: hvp(v),
        "hvps": lambda: vmap(hvp)(v),
        "ggn": product,
    }[what]


def make(message, arrays):
    data = {key: torch.from_numpy(array) for key, array in arrays.items()}
    if WIDE:
        data = {key: t.double() if t.is_floating_point() else t for key, t in data.items()}
    call = call_of(message["problem"], message["what"], message["params"], data)
    return lambda: [part.numpy() for part in leaves(call())]


def leaves(result):
    return (
        [result]
        if isinstance(result, torch.Tensor)
        else [leaf for part in result for leaf in leaves(part)]
    )


def call_of(problem, what, params, data):
    x, w, v = data["x"], tuple(numbered(data, "w")), tuple(numbered(data, "v"))
    if problem == "mlp_input":
        return lambda: hessian(lambda x: (torch.tanh(x @ w[0]) @ w[1]).sum())(x)
    if problem == "quadratic":
        return lambda: hessian(lambda x: 0.5 * (x @ w[0] @ x))(x)
    if problem == "rosenbrock":
        return lambda: hessian(
            lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        )(x)
    if problem == "sine":
        return lambda: jvp(grad(lambda x: torch.sin(x).sum()), (x,), v)[1]
    if problem == "points":

        def u(point):
            return torch.tanh(torch.tanh(point @ w[0] + w[1]) @ w[2] + w[3]) @ w[4]

        if what == "hessian":
            return lambda: vmap(hessian(u))(x)
        return lambda: vmap(lambda point: torch.trace(hessian(u)(point)))(x)
    y = data["y"].long()
    if problem == "softmax":
        return lambda: hessian(lambda w: F.cross_entropy(x @ w[0] + w[1], y))(w)
    if problem == "resnet":
        forward = resnet(params, list(zip(numbered(data, "m"), numbered(data, "s"), strict=True)))
    else:
        forward = {"mlp": mlp, "lenet": lenet, "transformer": transformer}[problem]
    return by_weights(forward, what, w, v, x, y)


if __name__ == "__main__":
    serve.serve(make, {"torch": torch.__version__})
