"""Functions with an epsilon, a slope or another small attribute, each at an input where the
attribute matters: a row is the function of MindSpore and the same in numpy, for one value of the
attribute and another that must change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor, mint, nn, ops

N, WIDE = (3, 4), np.longdouble
rng = np.random.default_rng(8)
MIX, OTHER, THIRD = rng.normal(size=(3, *N))
LABELS = np.array([1, 0, 3])
SIGNS = np.array([1, -1, 1])
SCALE, SHIFT = 1 + 0.5 * rng.random(4), rng.normal(size=4)


@dataclass(frozen=True)
class Row:
    """One attribute of one function.

    Attributes:
        name: function and attribute.
        make: of the attribute and the dtype, the function of MindSpore.
        truth: of an input and the attribute, the same in numpy.
        value: the attribute's value, not the default.
        other: another value, which must not give the same.
        x: the input.
        dtype: float64 where MindSpore's kernels take it.
        tolerance: of the product, relative to its largest entry.
        rules: derivative rules that are tested here.
        since: the version of MindSpore that has a kernel for it on the CPU.
    """

    name: str
    make: Callable
    truth: Callable
    value: object
    other: object
    x: np.ndarray = field(default_factory=lambda: MIX)
    dtype: type = np.float64
    tolerance: float = 1e-6
    rules: tuple[str, ...] = ()
    since: tuple[int, ...] = (0,)


F32 = {"dtype": np.float32, "tolerance": 2e-4}


def option(function, name, *args, **others):
    """`function` of MindSpore with the attribute as the option `name`, after arrays and other
    options.
    """

    def make(value, dtype):
        options, more = {**others, name: value}, [tensor(one, dtype) for one in args]

        def f(x):
            return function(x, *more, **options)

        return f

    return make


def layer(build):
    """A Cell built with the attribute."""

    def make(value, dtype):
        return build(value, dtype)

    return make


def tensor(x, dtype):
    if not isinstance(x, np.ndarray):
        return x
    return Tensor(x.astype(dtype) if x.dtype.kind == "f" else x.astype(np.int32))


# --- in numpy -------------------------------------------------------------------------------------


def standard(x, axes, eps):
    c = x - x.mean(axes, keepdims=True)
    return c / np.sqrt((c * c).mean(axes, keepdims=True) + eps)


def groups(x, eps, count=2):
    return standard(x.reshape(len(x), count, -1), 2, eps).reshape(x.shape) * wide(SCALE, x) + wide(
        SHIFT, x
    )


def wide(scale, x):
    return scale.reshape(1, -1, *(1,) * (x.ndim - 2))


def across(x, reach, bias, alpha, beta):
    near = np.abs(np.arange(x.shape[1])[:, None] - np.arange(x.shape[1])) <= reach
    return x * (bias + alpha * np.einsum("ij,njhw->nihw", near, x * x)) ** -beta


def power_norm(x, p, axis=-1, keep=False):
    return (np.abs(x) ** p).sum(axis, keepdims=keep) ** (1 / WIDE(p))


def log_softmax(x):
    return (
        x
        - x.max(1, keepdims=True)
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
    )


def smoothed(x, smoothing):
    log_p = log_softmax(x)
    own = np.take_along_axis(log_p, LABELS[:, None], 1)[:, 0]
    return -((1 - smoothing) * own + smoothing * log_p.mean(1)).mean()


def huber(r, beta):
    return np.where(np.abs(r) < beta, 0.5 * r * r, beta * (np.abs(r) - beta / 2))


def cosine(x, y, eps):
    return (x * y).sum(1) / np.maximum(power_norm(x, 2) * power_norm(y, 2), eps)


def cosine_loss(x, margin):
    c = (x * OTHER).sum(1) / np.sqrt((x * x).sum(1) * (OTHER * OTHER).sum(1))
    return np.where(SIGNS > 0, 1 - c, np.maximum(c - margin, 0)).mean()


def multi_margin(x, p, margin):
    z = np.maximum(margin - np.take_along_axis(x, LABELS[:, None], 1) + x, 0) ** p
    return (z.sum(1) - np.take_along_axis(z, LABELS[:, None], 1)[:, 0]).mean() / x.shape[1]


def pairs(x, p):
    i, j = np.triu_indices(len(x), 1)
    return power_norm(x[i] - x[j], p)


def windows(x, padding=1, counted=True, divisor=0):
    """Average pooling over windows of 2 along the last axis, with stride 1."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(padding, padding)])
    inside = np.pad(np.ones(x.shape[-1]), padding)
    size = inside[:-1] + inside[1:]
    return (padded[..., :-1] + padded[..., 1:]) / (divisor or (2 if counted else size))


def resized(x, aligned):
    n, m = x.shape[-1], 7
    at = (
        np.arange(m) * (n - 1) / (m - 1)
        if aligned
        else np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    )
    low = np.minimum(np.floor(at).astype(int), n - 2)
    return x[..., low] * (1 - (at - low)) + x[..., low + 1] * (at - low)


def nearest(x, align_corners):
    """To 7 entries of the last axis."""
    return ops.ResizeNearestNeighbor((1, 7), align_corners)(x)


def copied(x, aligned):
    n, m = x.shape[-1], 7
    at = np.arange(m) * (n - 1) / (m - 1) + 0.5 if aligned else np.arange(m) * n / m
    return x[..., np.floor(at).astype(int)]


def softplus(x, beta=1.0, threshold=20.0):
    return np.where(beta * x > threshold, x, np.log1p(np.exp(beta * x)) / beta)


def renormed(x, maxnorm, p=2):
    n = power_norm(x, p, 1, True)
    return np.where(n > maxnorm, x * (maxnorm / (n + 1e-7)), x)


erf = np.vectorize(math.erf)


# --- the functions of MindSpore that take more than an option -------------------------------------


def layer_norm(eps, dtype):
    norm, scale, shift = ops.LayerNorm(-1, -1, eps), tensor(SCALE, dtype), tensor(SHIFT, dtype)

    def f(x):
        return norm(x, scale, shift)[0]

    return f


def layer_norm_cell(eps, dtype):
    net = nn.LayerNorm((4,), epsilon=eps)
    net.gamma.set_data(tensor(SCALE, np.float32))
    net.beta.set_data(tensor(SHIFT, np.float32))
    return net


def group_norm(eps, dtype):
    net = nn.GroupNorm(2, 4, eps=eps)
    net.gamma.set_data(tensor(SCALE, dtype))
    net.beta.set_data(tensor(SHIFT, dtype))
    return net


def batch_norm(train):
    def build(eps, dtype):
        net = nn.BatchNorm1d(4, eps=eps)
        net.set_train(train)
        net.gamma.set_data(tensor(SCALE, dtype))
        net.beta.set_data(tensor(SHIFT, dtype))
        net.moving_variance.set_data(tensor(1e-4 * SCALE, dtype))
        return net

    return build


def batch_norm_function(eps, dtype):
    zero, variance, scale = (
        tensor(np.zeros(4), dtype),
        tensor(1e-4 * SCALE, dtype),
        tensor(SCALE, dtype),
    )

    def f(x):
        return ops.batch_norm(x, zero, variance, scale, zero, False, 0.1, eps)

    return f


def l2_normalize(eps, dtype):
    norm = ops.L2Normalize(-1, eps)

    def f(x):
        return norm(x)

    return f


def lrn(name):
    def build(value, dtype):
        options = {"depth_radius": 1, "bias": 1.5, "alpha": 0.7, "beta": 0.6, name: value}
        layer = ops.LRN(**options)

        def f(x):
            return layer(x)

        return f

    return build


def cross_entropy(name):
    def build(value, dtype):
        labels, options = Tensor(LABELS.astype(np.int32)), {name: value}

        def f(x):
            return ops.cross_entropy(x, labels, **options)

        return f

    return build


def cosine_embedding(margin, dtype):
    other, signs = tensor(OTHER, dtype), Tensor(SIGNS.astype(np.int32))

    def f(x):
        return ops.cosine_embedding_loss(x, other, signs, margin)

    return f


def multi_margin_layer(value, dtype):
    loss, labels = nn.MultiMarginLoss(*value), Tensor(LABELS.astype(np.int64))

    def f(x):
        return loss(x, labels)

    return f


def addcmul(value, dtype):
    other, third = tensor(OTHER, dtype), tensor(THIRD, dtype)

    def f(x):
        return ops.addcmul(other, x, third, value)

    return f


def dice(smooth, dtype):
    loss, other = nn.DiceLoss(smooth), tensor(np.abs(OTHER), dtype)

    def f(x):
        return loss(x, other)

    return f


def batch_norm_primitive(train):
    def build(eps, dtype):
        norm, zero, variance = (
            ops.BatchNorm(train, eps),
            tensor(np.zeros(4), dtype),
            tensor(1e-4 * SCALE, dtype),
        )
        scale = tensor(SCALE, dtype)

        def f(x):
            return norm(x, scale, zero, zero, variance)[0]

        return f

    return build


def layer_norm_of_images(eps, dtype):
    net = nn.LayerNorm((4, 3, 2), 1, 1, epsilon=eps)

    def f(x):
        return net(x)

    return f


def poisson(value, dtype):
    log_input, full, eps = value
    loss, other = (
        nn.PoissonNLLLoss(log_input, full, eps, "none"),
        tensor(np.abs(OTHER) + 1.5, dtype),
    )

    def f(x):
        return loss(x, other)

    return f


def poisson_truth(x, value):
    log_input, full, eps = value
    t = np.abs(OTHER) + 1.5
    loss = np.exp(x) - t * x if log_input else x - t * np.log(x + eps)
    return loss + (t * np.log(t) - t + 0.5 * np.log(2 * np.pi * t) if full else 0)


def gaussian(value, dtype):
    full, eps = value
    x0, t = tensor(MIX, dtype), tensor(OTHER, dtype)

    def f(x):
        return ops.gaussian_nll_loss(x0, t, x, full, eps, "none")

    return f


def gaussian_truth(v, value):
    full, eps = value
    v = np.maximum(v, eps)
    return 0.5 * (np.log(v) + (MIX - OTHER) ** 2 / v) + (0.5 * np.log(2 * np.pi) if full else 0)


SMALL, IMAGE = 0.01 * MIX, rng.normal(size=(2, 4, 3, 2))
POSITIVE = np.abs(MIX) + 0.1
LINE = rng.normal(size=(2, 2, 5))
ROWS = (
    Row(
        "LayerNorm epsilon",
        layer_norm,
        lambda x, e: standard(x, 1, e) * SCALE + SHIFT,
        1e-4,
        1e-5,
        SMALL,
    ),
    Row(
        "nn.LayerNorm epsilon",
        layer_norm_cell,
        lambda x, e: standard(x, 1, e) * SCALE + SHIFT,
        1e-5,
        1e-7,
        SMALL / 3,
        **F32,
    ),
    Row("nn.GroupNorm eps", group_norm, lambda x, e: groups(x, e), 1e-4, 1e-5, 0.01 * IMAGE, **F32),
    Row(
        "nn.BatchNorm1d eps, training",
        batch_norm(True),
        lambda x, e: standard(x, 0, e) * SCALE + SHIFT,
        1e-4,
        1e-5,
        SMALL,
        **F32,
    ),
    Row(
        "nn.BatchNorm1d eps",
        batch_norm(False),
        lambda x, e: x / np.sqrt(1e-4 * SCALE + e) * SCALE + SHIFT,
        1e-4,
        1e-5,
        SMALL,
        **F32,
    ),
    Row(
        "batch_norm eps",
        batch_norm_function,
        lambda x, e: x / np.sqrt(1e-4 * SCALE + e) * SCALE,
        1e-4,
        1e-5,
        SMALL,
        **F32,
    ),
    Row(
        "BatchNorm epsilon, training",
        batch_norm_primitive(True),
        lambda x, e: standard(x, (0, 2, 3), e) * wide(SCALE, x),
        1e-4,
        1e-5,
        0.01 * IMAGE,
        **F32,
    ),
    Row(
        "nn.LayerNorm epsilon, images",
        layer_norm_of_images,
        lambda x, e: standard(x, (1, 2, 3), e),
        1e-4,
        1e-5,
        0.01 * IMAGE,
        **F32,
    ),
    Row(
        "L2Normalize epsilon",
        l2_normalize,
        lambda x, e: x / np.sqrt(np.maximum((x * x).sum(1, keepdims=True), e)),
        0.5,
        1e-4,
        MIX * [[1.0], [0.2], [1.0]],
        rules=("L2Normalize",),
    ),
    *(
        Row(
            f"LRN {name}",
            lrn(name),
            lambda x, v, name=name: across(
                x,
                **{
                    "reach": 1,
                    "bias": 1.5,
                    "alpha": 0.7,
                    "beta": 0.6,
                    "reach" if name == "depth_radius" else name: v,
                },
            ),
            value,
            other,
            IMAGE,
            **F32,
        )
        for name, value, other in (
            ("depth_radius", 2, 1),
            ("bias", 0.6, 1.5),
            ("alpha", 0.3, 0.7),
            ("beta", 0.9, 0.6),
        )
    ),
    Row(
        "cosine_similarity eps",
        option(ops.cosine_similarity, "eps", OTHER),
        lambda x, e: cosine(x, OTHER, e),
        4.0,
        1e-8,
        MIX,
        **F32,
    ),
    Row("cosine_embedding_loss margin", cosine_embedding, cosine_loss, -0.9, 0.9, **F32),
    Row("norm ord", option(ops.norm, "ord", dim=-1), lambda x, p: power_norm(x, p), 3.0, 2.0),
    Row("pdist p", option(ops.pdist, "p"), pairs, 3.0, 2.0),
    Row(
        "cdist p",
        option(ops.cdist, "p", OTHER),
        lambda x, p: power_norm(x[:, None] - OTHER, p),
        3.0,
        2.0,
        **F32,
    ),
    Row("renorm maxnorm", option(ops.renorm, "maxnorm", p=2, axis=0), renormed, 1.5, 0.5, **F32),
    Row(
        "leaky_relu alpha",
        option(ops.leaky_relu, "alpha"),
        lambda x, a: np.where(x > 0, x, a * x),
        0.3,
        0.2,
        **F32,
    ),
    Row(
        "celu alpha",
        option(ops.celu, "alpha"),
        lambda x, a: np.where(x > 0, x, a * np.expm1(x / a)),
        0.6,
        1.0,
        **F32,
    ),
    Row("softplus beta", option(ops.softplus, "beta"), softplus, 2.0, 1.0, **F32),
    Row(
        "softplus threshold",
        option(ops.softplus, "threshold"),
        lambda x, t: softplus(x, 1, t),
        0.5,
        20.0,
        **F32,
    ),
    *(
        Row(
            f"mint softplus {name}",
            option(mint.nn.functional.softplus, name, beta=1.5),
            lambda x, v, name=name: softplus(x, **{"beta": 1.5, name: v}),
            value,
            other,
            rules=("SoftplusExt",),
            since=(2, 10),
            **F32,
        )
        for name, value, other in (("beta", 2.0, 1.0), ("threshold", 0.5, 20.0))
    ),
    Row(
        "hardshrink lambd",
        option(ops.hardshrink, "lambd"),
        lambda x, b: np.where(np.abs(x) > b, x, 0),
        0.8,
        0.3,
        **F32,
    ),
    Row(
        "softshrink lambd",
        option(ops.softshrink, "lambd"),
        lambda x, b: np.sign(x) * np.maximum(np.abs(x) - b, 0),
        0.8,
        0.3,
        **F32,
    ),
    Row(
        "hardtanh max_val",
        option(ops.hardtanh, "max_val", min_val=-0.4),
        lambda x, b: np.clip(x, -0.4, b),
        0.8,
        0.1,
        **F32,
    ),
    Row(
        "threshold thr",
        option(ops.threshold, "thr", value=0.3),
        lambda x, b: np.where(x > b, x, 0.3),
        0.5,
        -0.5,
        **F32,
    ),
    Row(
        "gelu approximate",
        option(ops.gelu, "approximate"),
        lambda x, a: (
            x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            if a == "tanh"
            else x / 2 * (1 + erf((x / np.sqrt(2)).astype(np.float64)))
        ),
        "tanh",
        "none",
        1.5 * MIX,
        tolerance=1e-5,
    ),
    Row(
        "gelu exact",
        option(ops.gelu, "approximate"),
        lambda x, a: (
            x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            if a == "tanh"
            else x / 2 * (1 + erf((x / np.sqrt(2)).astype(np.float64)))
        ),
        "none",
        "tanh",
        1.5 * MIX,
        tolerance=1e-5,
    ),
    Row(
        "logit eps",
        option(ops.logit, "eps"),
        lambda x, e: np.log(np.clip(x, e, 1 - e) / (1 - np.clip(x, e, 1 - e))),
        0.2,
        0.05,
        np.abs(np.sin(MIX)) * 0.9,
        **F32,
    ),
    Row(
        "clamp max", option(ops.clamp, "max", min=-0.4), lambda x, b: np.clip(x, -0.4, b), 0.8, 0.1
    ),
    Row(
        "glu axis",
        option(ops.glu, "axis"),
        lambda x, a: (lambda u, v: u / (1 + np.exp(-v)))(*np.split(x, 2, a)),
        1,
        0,
        rng.normal(size=(4, 4)),
    ),
    Row("var ddof", option(ops.var, "ddof", axis=1), lambda x, d: x.var(1, ddof=d), 1, 0, **F32),
    Row("std ddof", option(ops.std, "ddof", axis=1), lambda x, d: x.std(1, ddof=d), 1, 0, **F32),
    Row(
        "logsumexp dim",
        option(ops.logsumexp, "dim"),
        lambda x, a: np.log(np.exp(x).sum(a)),
        0,
        1,
        MIX[:, :3],
    ),
    Row("addcmul value", addcmul, lambda x, v: OTHER + v * x * THIRD, 0.3, 1.0, **F32),
    Row(
        "lerp weight",
        option(ops.lerp, "weight", OTHER),
        lambda x, w: x + w * (OTHER - x),
        0.3,
        0.8,
        **F32,
    ),
    Row(
        "avg_pool1d count_include_pad",
        option(ops.avg_pool1d, "count_include_pad", kernel_size=2, padding=1),
        lambda x, c: windows(x, counted=c),
        False,
        True,
        LINE,
        **F32,
    ),
    Row(
        "avg_pool2d divisor_override",
        option(ops.avg_pool2d, "divisor_override", kernel_size=(1, 2), padding=(0, 0, 1, 1)),
        lambda x, d: windows(x, divisor=d),
        3,
        2,
        LINE[:, :, None],
        **F32,
    ),
    Row(
        "lp_pool1d norm_type",
        option(ops.lp_pool1d, "norm_type", kernel_size=2),
        lambda x, p: (x[..., 0:4:2] ** p + x[..., 1:4:2] ** p) ** (1 / WIDE(p)),
        3.0,
        2.0,
        np.abs(LINE),
        **F32,
    ),
    Row(
        "nn.DiceLoss smooth",
        dice,
        lambda x, s: (
            1 - 2 * (x * np.abs(OTHER)).sum() / ((x * x).sum() + (OTHER * OTHER).sum() + s)
        ),
        1.5,
        1e-5,
        POSITIVE,
        **F32,
    ),
    Row(
        "interpolate align_corners",
        option(ops.interpolate, "align_corners", size=(7,), mode="linear"),
        resized,
        True,
        False,
        LINE,
        **F32,
    ),
    Row(
        "ResizeNearestNeighbor align_corners",
        option(nearest, "align_corners"),
        copied,
        True,
        False,
        MIX[None, None, :1, :3],
        rules=("ResizeNearestNeighborGrad",),
    ),
    Row(
        "huber_loss delta",
        option(ops.huber_loss, "delta", OTHER),
        lambda x, d: huber(x - OTHER, d).mean(),
        1.2,
        0.5,
        **F32,
    ),
    Row(
        "smooth_l1_loss beta",
        option(ops.smooth_l1_loss, "beta", OTHER),
        lambda x, b: huber(x - OTHER, b) / b,
        1.2,
        0.5,
        **F32,
    ),
    Row(
        "cross_entropy label_smoothing", cross_entropy("label_smoothing"), smoothed, 0.3, 0.0, **F32
    ),
    Row(
        "multi_margin_loss p",
        multi_margin_layer,
        lambda x, v: multi_margin(x, *v),
        (2, 1.0),
        (1, 1.0),
        **F32,
    ),
    Row(
        "multi_margin_loss margin",
        multi_margin_layer,
        lambda x, v: multi_margin(x, *v),
        (2, 0.4),
        (2, 1.0),
        **F32,
    ),
    Row(
        "nn.PoissonNLLLoss eps",
        poisson,
        poisson_truth,
        (False, False, 0.3),
        (False, False, 1e-8),
        POSITIVE,
        **F32,
    ),
    Row(
        "nn.PoissonNLLLoss full",
        poisson,
        poisson_truth,
        (True, True, 1e-8),
        (True, False, 1e-8),
        POSITIVE,
        **F32,
    ),
    Row(
        "gaussian_nll_loss eps",
        gaussian,
        gaussian_truth,
        (False, 0.5),
        (False, 1e-6),
        POSITIVE,
        **F32,
    ),
    Row(
        "gaussian_nll_loss full",
        gaussian,
        gaussian_truth,
        (True, 1e-6),
        (False, 1e-6),
        POSITIVE,
        **F32,
    ),
    Row(
        "hinge_embedding_loss margin",
        option(ops.hinge_embedding_loss, "margin", np.sign(OTHER), reduction="none"),
        lambda x, m: np.where(OTHER > 0, x, np.maximum(m - x, 0)),
        0.4,
        1.5,
        **F32,
    ),
    Row(
        "margin_ranking_loss margin",
        option(ops.margin_ranking_loss, "margin", OTHER, np.sign(THIRD), reduction="none"),
        lambda x, m: np.maximum(-np.sign(THIRD) * (x - OTHER) + m, 0),
        0.8,
        0.1,
        **F32,
    ),
)
