"""The cases in MindSpore: with mindspore_hessian; with --naive, as its tutorial has them, which
compiles at every call; with --bare, the least that MindSpore can do, one function under @jit. The
last two never import mindspore_hessian."""

from __future__ import annotations

import functools
import os
import sys

import serve
from cases import HEADS, numbered, resnet_units

serve.limit_cores()
os.environ.setdefault("GLOG_v", "3")  # MindSpore's log says nothing here that a user could act on

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import Parameter, Tensor, nn, ops  # noqa: E402

NAIVE, BARE = "--naive" in sys.argv, "--bare" in sys.argv
if not (NAIVE or BARE):
    import mindspore_hessian as mh


def parameters(weights, prefix=""):
    return ms.ParameterTuple(
        [Parameter(w, name=f"{prefix}w{number}") for number, w in enumerate(weights)]
    )


class Linear(nn.Cell):
    def __init__(self, weights):
        super().__init__()
        self.w = parameters(weights)

    def construct(self, x):
        return ops.matmul(x, self.w[0]) + self.w[1]


class MLP(nn.Cell):
    def __init__(self, weights):
        super().__init__()
        self.w = parameters(weights)

    def construct(self, x):
        x = ops.tanh(ops.matmul(x, self.w[0]) + self.w[1])
        x = ops.tanh(ops.matmul(x, self.w[2]) + self.w[3])
        return ops.matmul(x, self.w[4]) + self.w[5]


class LeNet(nn.Cell):
    def __init__(self, weights):
        super().__init__()
        self.w = parameters(weights)
        self.pool = nn.AvgPool2d(2, 2)

    def construct(self, x):
        x = self.pool(ops.tanh(ops.conv2d(x, self.w[0], self.w[1], pad_mode="pad", padding=2)))
        x = self.pool(ops.tanh(ops.conv2d(x, self.w[2], self.w[3])))
        x = ops.tanh(ops.matmul(x.reshape(x.shape[0], -1), self.w[4]) + self.w[5])
        x = ops.tanh(ops.matmul(x, self.w[6]) + self.w[7])
        return ops.matmul(x, self.w[8]) + self.w[9]


class Transformer(nn.Cell):
    """With the primitive LayerNorm: of `ops.layer_norm` MindSpore has no gradient on CPU."""

    def __init__(self, weights):
        super().__init__()
        self.w = parameters(weights)
        self.norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=1e-5)

    def split(self, x):
        return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(0, 2, 1, 3)

    def construct(self, x):
        w, n = self.w, x.shape[-1]
        a = self.norm(x, w[4], w[5])[0]
        q, k, v = (
            self.split(ops.matmul(a, w[0])),
            self.split(ops.matmul(a, w[1])),
            self.split(ops.matmul(a, w[2])),
        )
        mixed = ops.matmul(
            ops.softmax(ops.matmul(q, k.transpose(0, 1, 3, 2)) * (n // HEADS) ** -0.5, -1), v
        )
        x = x + ops.matmul(mixed.transpose(0, 2, 1, 3).reshape(x.shape), w[3])
        a = self.norm(x, w[6], w[7])[0]
        x = x + ops.matmul(ops.gelu(ops.matmul(a, w[8]) + w[9], "tanh"), w[10]) + w[11]
        return ops.matmul(x.mean(1), w[12]) + w[13]


class Unit(nn.Cell):
    """A convolution and its batch norm."""

    def __init__(self, shape, weight, gamma, beta, mean, variance):
        super().__init__()
        inside, out, kernel, stride = shape
        self.convolution = nn.Conv2d(
            inside, out, kernel, stride, pad_mode="pad", padding=kernel // 2, weight_init=weight
        )
        self.norm = nn.BatchNorm2d(
            out, gamma_init=gamma, beta_init=beta, moving_mean_init=mean, moving_var_init=variance
        )
        self.trained = [self.convolution.weight, self.norm.gamma, self.norm.beta]

    def construct(self, x):
        return self.norm(self.convolution(x))


class Block(nn.Cell):
    def __init__(self, first, second, shortcut):
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def construct(self, x):
        return ops.relu(self.second(ops.relu(self.first(x))) + self.shortcut(x))


class ResNet(nn.Cell):
    """ResNet-18 for small images, batch norm in evaluation mode."""

    def __init__(self, params, data):
        super().__init__()
        w, means, variances = (numbered(data, letter) for letter in "wms")
        shapes = resnet_units(params)
        units = [
            Unit(shape, *w[3 * k : 3 * k + 3], means[k], variances[k])
            for k, shape in enumerate(shapes)
        ]
        blocks, k = [], 1
        while k < len(units):
            changes = k + 2 < len(units) and shapes[k + 2][2] == 1
            blocks.append(Block(units[k], units[k + 1], units[k + 2] if changes else nn.Identity()))
            k += 3 if changes else 2
        self.stem, self.blocks = units[0], nn.SequentialCell(*blocks)
        self.last = parameters(w[-2:], "last.")
        self.trained = [p for unit in units for p in unit.trained] + list(self.last)
        self.set_train(False)

    def construct(self, x):
        x = self.blocks(ops.relu(self.stem(x)))
        return ops.matmul(x.mean((2, 3)), self.last[0]) + self.last[1]


def function(problem, w):
    """The functions of their inputs."""

    def mlp_input(x):
        return ops.matmul(ops.tanh(ops.matmul(x, w[0])), w[1]).sum()

    def quadratic(x):
        return 0.5 * ops.matmul(ops.matmul(x, w[0]), x)

    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def sine(x):
        return ops.sin(x).sum()

    def points(x):
        return ops.matmul(
            ops.tanh(ops.matmul(ops.tanh(ops.matmul(x, w[0]) + w[1]), w[2]) + w[3]), w[4]
        )

    return {
        "mlp_input": mlp_input,
        "quadratic": quadratic,
        "rosenbrock": rosenbrock,
        "sine": sine,
        "points": points,
    }[problem]


def of_inputs(problem, what, f, x, v, options):
    if problem == "sine":
        return lambda: mh.hvp(f, x, v[0])
    if problem == "points":
        matrix = mh.batched_hessian(f) if what == "hessian" else mh.laplacian(f, in_axes=0)
    else:
        matrix = mh.hessian(f, **options)
    return lambda: matrix(x)


def trace_of(hessian):
    def trace(x):
        return ops.trace(hessian(x))

    return trace


def naive(problem, what, f, x, v):
    """The tutorial's recipes."""
    if problem == "sine":
        return lambda: ms.jvp(ms.grad(f), x, v[0])[1]
    if problem == "points" and what == "hessian":
        return lambda: ms.vmap(ms.jacfwd(ms.jacrev(f)))(x)
    if problem == "points":
        return lambda: ms.vmap(trace_of(ms.jacfwd(ms.jacrev(f))))(x)
    return lambda: ms.jacfwd(ms.jacrev(f))(x)


def bare(f, x, v):
    gradient = ms.grad(f)

    @ms.jit
    def product(x, v):
        return ms.jvp(gradient, x, v)[1]

    return lambda: product(x, v[0])


def by_weights(problem, what, params, data, w, v, options):
    x, y = data["x"], data["y"]
    if problem == "resnet":
        net = ResNet(params, data)
        trained = net.trained
    else:
        net = {"softmax": Linear, "mlp": MLP, "lenet": LeNet, "transformer": Transformer}[problem](
            w
        )
        trained = list(net.w)

    def loss(x, y):
        return ops.cross_entropy(net(x), y)

    def of_output(out):
        return ops.cross_entropy(out, y)

    if what == "hessian":
        matrix = mh.hessian(loss, weights=trained, **options)
        return lambda: matrix(x, y)
    if what == "gradient":
        gradient = ms.jit(ms.grad(loss, None, ms.ParameterTuple(trained)))
        return lambda: gradient(x, y)
    if what == "hvp":
        return lambda: mh.hvp(loss, (x, y), v, weights=trained)
    return lambda: mh.ggnvp(net, of_output, x, v, weights=trained)


def hvps(net, x, y, vectors):
    chunk = min(len(vectors[0]), 64) if len(vectors[0]) > 4 else None
    made = functools.cache(
        lambda: mh.HessianOperator(net, nn.CrossEntropyLoss(), (x, y), chunk_size=chunk)
    )
    matrix = np.concatenate([v.reshape(len(v), -1) for v in vectors], 1).T.copy()
    ends = np.cumsum([v[0].size for v in vectors])[:-1]

    def call():
        return [
            part.T.reshape(v.shape)
            for part, v in zip(np.split(made() @ matrix, ends), vectors, strict=True)
        ]

    return call


def make(message, arrays):
    data = {key: Tensor(array) for key, array in arrays.items()}
    problem, what, params = message["problem"], message["what"], message["params"]
    if "--pinned" in sys.argv:
        mh.configure("CPU", pin_threads=True)
    w, v = tuple(numbered(data, "w")), tuple(numbered(data, "v"))
    if what == "hvps":
        return hvps(MLP(w), data["x"], data["y"], numbered(arrays, "v"))
    if "y" in data:
        call = by_weights(problem, what, params, data, w, v, message["options"])
    elif NAIVE:
        call = naive(problem, what, function(problem, w), data["x"], v)
    elif BARE:
        call = bare(function(problem, w), data["x"], v)
    else:
        call = of_inputs(problem, what, function(problem, w), data["x"], v, message["options"])
    return lambda: [part.asnumpy() for part in leaves(call())]


def leaves(result):
    return (
        [result]
        if isinstance(result, Tensor)
        else [leaf for part in result for leaf in leaves(part)]
    )


if __name__ == "__main__":
    serve.serve(make, {"mindspore": ms.__version__})
