"""The functions of ops_table.py, as MindSpore writes them."""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


def wave(*shape, phase=0.3):
    return np.sin(phase + 1.7 * np.arange(math.prod(shape))).reshape(shape)


def c(dtype, *shape, phase=0.9):
    return Tensor(wave(*shape, phase=phase).astype(dtype))


M = (4, 6)
LABELS = Tensor(np.array([0, 2, 1, 3], np.int32))
LABELS64 = Tensor(np.array([0, 2, 1, 3], np.int64))
IGNORED = Tensor(np.array([0, -100, 1, 3], np.int32))
LABELS_ND = Tensor(np.array([[[0, 1], [2, 3]], [[3, 3], [1, 0]]], np.int32))
GATHER = Tensor(np.array([[0, 1], [1, 1], [2, 0], [3, 5]], np.int32))
EMBEDDED = Tensor(np.array([0, 1, 1, 4], np.int32))
NOT_FIVE = Tensor((np.arange(24).reshape(M) != 5).astype(np.float64))
UNPOOL2D = Tensor(np.array([[[[0, 3], [9, 14]]]], np.int64))
UNPOOL3D = Tensor(np.array([[[[[0, 11]]]]], np.int64))
SIGN = Tensor(np.sign(wave(4)).astype(np.int32))


def target(dtype):
    return c(dtype, *M)


def probability(dtype):
    return Tensor((np.abs(wave(*M)) * 0.8 + 0.1).astype(dtype))


def soft(dtype):
    values = np.abs(wave(*M)) + 0.1
    return Tensor((values / values.sum(-1, keepdims=True)).astype(dtype))


def positive(dtype, n=6):
    return Tensor((np.abs(wave(n)) + 0.3).astype(dtype))


def cross_entropy(labels, weight=False, **options):
    def make(dtype):
        w = positive(dtype) if weight else None

        def f(x):
            return ops.cross_entropy(x, labels, weight=w, **options)
        return f
    return make


def loss(function, other, **options):
    def make(dtype):
        t = other(dtype)

        def f(x):
            return function(x, t, **options)
        return f
    return make


def plain(function, *args, **options):
    def make(dtype):
        def f(x):
            return function(x, *args, **options)
        return f
    return make


def first(function, which, *args):
    """Output number `which` of a function with several."""
    def make(dtype):
        def f(x):
            return function(x, *args)[which]
        return f
    return make


def multi_margin(dtype):
    loss, weight = ops.MultiMarginLoss(2, 1.0, "none"), positive(dtype)

    def f(x):
        return loss(x, LABELS64, weight)
    return f


def scatter_add(dtype):
    updates, index = c(dtype, 2, 6), Tensor([[0], [2]])

    def f(x):
        return ops.tensor_scatter_add(x * x, index, updates)
    return f


def trace_method(dtype):
    def f(x):
        return x.trace()
    return f


def layer(build):
    def make(dtype):
        net = build(dtype)

        def f(x):
            return net(x)
        return f
    return make


def squared(function, *args):
    def make(dtype):
        def f(x):
            y = function(x, *args)
            return y * y
        return f
    return make


def nll(cube=False, weight=False, labels=LABELS, **options):
    def make(dtype):
        loss = ops.NLLLoss(**options)
        w = positive(dtype) if weight else Tensor(np.ones(6, dtype))

        def f(x):
            return loss(x * x * x if cube else ops.log_softmax(x, -1), labels, w)[0]
        return f
    return make


def nll_function(dtype):
    def f(x):
        return ops.nll_loss(ops.log_softmax(x, -1), LABELS)
    return f


def softmax_cross_entropy(sparse, dtype):
    net = nn.SoftmaxCrossEntropyWithLogits(sparse=sparse)
    labels = LABELS if sparse else soft(dtype)

    def f(x):
        return net(x, labels)
    return f


def sparse_primitive(dtype):
    loss = ops.SparseSoftmaxCrossEntropyWithLogits()

    def f(x):
        return loss(x, LABELS)
    return f


def bce(weighted):
    def make(dtype):
        t = probability(dtype)

        def f(x):
            if weighted:
                return ops.binary_cross_entropy(ops.sigmoid(x), t, t, "none")
            return ops.binary_cross_entropy(ops.sigmoid(x), t)
        return f
    return make


def bce_logits(dtype):
    t, w = probability(dtype), positive(dtype)

    def f(x):
        return ops.binary_cross_entropy_with_logits(x, t, t, w, "sum")
    return f


def sigmoid_cross_entropy(dtype):
    t, loss = probability(dtype), ops.SigmoidCrossEntropyWithLogits()

    def f(x):
        return loss(x, t)
    return f


def kl_div(dtype):
    t = soft(dtype)

    def f(x):
        return ops.kl_div(ops.log_softmax(x, -1), t)
    return f


def kl_div_target(dtype):
    t = ops.log(soft(dtype))

    def f(x):
        return ops.kl_div(t, ops.softmax(x, -1), "none")
    return f


def kl_div_both(dtype):
    t = target(dtype)

    def f(x):
        return ops.kl_div(ops.log_softmax(x * t, -1), ops.softmax(x, -1), "batchmean")
    return f


def smooth_l1_beta(dtype):
    t = target(dtype)

    def f(x):
        return ops.smooth_l1_loss(x, t * x * x, beta=0.4, reduction="mean")
    return f


def of_cube(function):
    def make(dtype):
        t = target(dtype)

        def f(x):
            return function(x * x * x, t)
        return f
    return make


def mse(dtype):
    t, net = target(dtype), nn.MSELoss()

    def f(x):
        return net(x * x * x, t)
    return f


def cosine_embedding(dtype):
    t = target(dtype)

    def f(x):
        return ops.cosine_embedding_loss(x, t, SIGN, margin=0.1)
    return f


def prelu(dtype):
    w = positive(dtype)

    def f(x):
        return ops.prelu(x, w)
    return f


def prelu_weight(dtype):
    t = target(dtype)

    def f(w):
        return ops.prelu(t, w)
    return f


def logsigmoid(dtype):
    return plain(ops.logsigmoid)(dtype)


def prod_zeros(dtype):
    mask = NOT_FIVE.astype(ms.float64 if dtype is np.float64 else ms.float32)

    def f(x):
        return ops.prod(x * mask)
    return f


def gather_elements(dtype):
    def f(x):
        return ops.gather_elements(x * x * x, 1, GATHER)
    return f


def sliced(dtype):
    def f(x):
        return ops.slice(x, (1, 2), (2, 3)) ** 2
    return f


def outer(dtype):
    def f(x):
        return ops.expand_dims(x, 2) * ops.expand_dims(x, 1)
    return f


def group_norm(dtype):
    net = nn.GroupNorm(2, 4)
    net.gamma.set_data(c(dtype, 4, phase=0.5) + 1.5)
    net.beta.set_data(c(dtype, 4, phase=0.1))
    return net


def layer_norm(dtype):
    net = nn.LayerNorm((6,), epsilon=1e-5)
    net.gamma.set_data(positive(dtype))
    net.beta.set_data(c(dtype, 6))
    return net


def batch_norm(train):
    def build(dtype):
        net = nn.BatchNorm2d(4)
        net.set_train(train)
        net.gamma.set_data(c(dtype, 4, phase=0.5) + 1.5)
        net.beta.set_data(c(dtype, 4, phase=0.1))
        net.moving_mean.set_data(c(dtype, 4, phase=0.1))
        net.moving_variance.set_data(positive(dtype, 4))
        return net
    return build


def conv2d(dtype):
    w = c(dtype, 3, 2, 3, 3)

    def f(x):
        return ops.conv2d(x, w, stride=2, pad_mode="pad", padding=1)
    return f


def conv3d(dtype):
    w = c(dtype, 3, 2, 2, 2, 2)

    def f(x):
        return ops.conv3d(x, w, stride=2)
    return f


def conv3d_weight(dtype):
    x = c(dtype, 1, 2, 4, 4, 4)

    def f(w):
        return ops.tanh(ops.conv3d(ops.tanh(ops.conv3d(x, w)), w))
    return f


def conv3d_transpose(dtype):
    w, conv = c(dtype, 2, 3, 2, 2, 2), ops.Conv3DTranspose(2, 3, 2)

    def f(x):
        return conv(x, w)
    return f


def recurrent(kind, **options):
    def make(dtype):
        net = kind(6, 4, batch_first=True, **options)
        for k, weight in enumerate(_torch_order(net)):
            weight.set_data(0.5 * c(dtype, *weight.shape, phase=0.1 * k))

        def f(x):
            return net(x)[0]
        return f
    return make


def _torch_order(net):
    """PyTorch's order of the weights: all of one direction, then all of the other."""
    lists = net.w_ih_list, net.w_hh_list, net.b_ih_list, net.b_hh_list
    return [weights[k] for k in range(len(lists[0])) for weights in lists]
