"""Rules of normalizations. Each has an epsilon, which is part of the rule and never dropped."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, nn, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    averaged,
    minus,
    reshaped,
    rsqrt,
    scaled,
    times,
)
from mindspore_hessian.rules.kit import (
    all_but_channels,
    any_batched,
    apart,
    attributes_of,
    channel_shape,
    dims_of,
    filled,
    front,
    known,
    merged,
    move,
    primitive,
    reshape,
    sample_rank,
    tensors_of,
    unpaired,
    values,
)
from mindspore_hessian.rules.registry import (
    KEEPS_ATTRIBUTES,
    batching,
    derivative,
    expansion,
    forward,
)
from mindspore_hessian.rules.taylor import by_expansion

# --- layer norm -----------------------------------------------------------------------------------
# MindSpore's kernel of the second backward takes epsilon for 0 and refuses float64 and constant
# rows: here is the gradient as differentiable operations, with their derivative written by hand (a
# third of what MindSpore would make of them). Sums are products with a column of ones, five times
# as fast as MindSpore's own.

_matmul = ops.MatMul()


@constexpr
def _width(shape, begin, scale_shape, scale_begin):
    """Entries of a row: of the axes from `begin` on, which the scale has too where it begins with
    the same one.
    """
    row = (
        scale_shape
        if begin % len(shape) == scale_begin % len(shape)
        else shape[begin % len(shape) :]
    )
    if any(length is None or length < 0 for length in row):
        raise ValueError(
            f"mindspore_hessian has no gradient of LayerNorm from axis {begin} of a dynamic shape "
            f"{shape} with a scale from axis {scale_begin}. Let both begin with the same axis, or "
            "call mindspore_hessian.rules.uninstall() first."
        )
    return int(np.prod(row, dtype=np.int64))


@constexpr
def _constant_matrix(rows, columns, value, dtype):
    return Tensor(np.full((rows, columns), value), dtype)


@constexpr
def _at_least_float32(dtype):
    return ms.float64 if dtype == ms.float64 else ms.float32


@constexpr
def _third_is_variance():
    """Of the third output of LayerNorm; on Ascend it is (v + eps)^(-1/2)."""
    return ms.get_context("device_target") != "Ascend"


def _normalized(x, mean, eps):
    """n and r of rows; the product of rows with the column `mean` is their means."""
    c = x - _matmul(x, mean)
    r = ops.rsqrt(_matmul(c * c, mean) + eps)
    return c * r, r


class _Backward(nn.Cell):
    """Of rows x: n = r (x - m) and L(a) = r (a - mean(a) - n mean(a n)) + e + h (x - m), the
    gradient of <n, a> together with what is said of m and v. All but x and a is one number a row. A
    Cell, since it has its derivative.
    """

    def construct(self, x, a, e, h, mean, eps):
        n, r = _normalized(x, mean, eps)
        return n, r * (a - (_matmul(a, mean) - e / r) - n * (_matmul(a * n, mean) - h / (r * r)))

    def bprop(self, x, a, e, h, mean, eps, out, dout):
        w, u = dout
        n, r = _normalized(x, mean, eps)
        m_a, m_u = _matmul(a, mean), _matmul(u, mean)
        along_a, along_u = _matmul(a * n, mean), _matmul(u * n, mean)
        z = w - (r * along_u) * a + (h / r - r * along_a) * u
        along = _matmul(w * n, mean) + r * (
            _matmul(a * u, mean) - m_a * m_u - 3 * along_a * along_u
        )
        by_x = r * (z - _matmul(z, mean) - n * along)
        by_a = r * (u - m_u - n * along_u)
        width = mean.shape[0]
        return by_x, by_a, width * m_u, width * along_u / r, 0, 0


_backward = _Backward(auto_prefix=False)


def _sum_of_rows(x):
    if known(x.shape):
        return _matmul(_constant_matrix(1, x.shape[0], 1.0, x.dtype), x)
    return x.sum(0)


@derivative(
    "LayerNorm",
    why="the kernel of MindSpore's second derivative takes epsilon for 0",
    replaces=True,
)
def layer_norm(prim):
    """y = gamma n + beta with n = r (x - m), r = (v + eps)^(-1/2), m and v the mean and variance of
    a row. MindSpore's own takes m and v, the other outputs, for constants."""

    def bprop(x, gamma, beta, norm_axis, params_axis, eps, out, dout):
        dtype, width = (
            _at_least_float32(x.dtype),
            _width(x.shape, norm_axis, gamma.shape, params_axis),
        )
        d = ops.cast(dout[0], dtype)
        a = (d.reshape(-1, gamma.size) * ops.cast(gamma, dtype).reshape(1, -1)).reshape(-1, width)
        e, h = ops.cast(dout[1], dtype) / width, ops.cast(dout[2], dtype) / width
        h = h * 2 if _third_is_variance() else -h * ops.cast(out[2], dtype) ** 3
        n, dx = _backward(
            ops.cast(x, dtype).reshape(-1, width),
            a,
            e.reshape(-1, 1),
            h.reshape(-1, 1),
            _constant_matrix(width, 1, 1 / width, dtype),
            eps,
        )
        d = d.reshape(-1, gamma.size)
        dgamma, dbeta = _sum_of_rows(d * n.reshape(-1, gamma.size)), _sum_of_rows(d)
        return (
            ops.cast(dx, x.dtype).reshape(x.shape),
            ops.cast(dgamma, gamma.dtype).reshape(gamma.shape),
            ops.cast(dbeta, beta.dtype).reshape(beta.shape),
            0,
            0,
            0,
        )

    return bprop


# --- group norm -----------------------------------------------------------------------------------


@derivative("GroupNormGrad")
def group_norm_grad(prim):
    """The backward of y = gamma (x - m) / sqrt(v + eps) + beta over groups of channels.

    m and v are functions of x. Of eps MindSpore only hands on rstd = (v + eps)^(-1/2): eps =
    rstd^-2 - v.
    """

    def bprop(d, x, mean, rstd, gamma, groups, dx_needed, dgamma_needed, dbeta_needed, out, dout):
        batch, channels = x.shape[0], x.shape[1]
        grouped = x.reshape(batch, groups, -1)
        spread = grouped - grouped.mean(axis=2, keep_dims=True)
        scale = ops.stop_gradient(rstd).reshape(batch, groups, 1)
        eps = ops.stop_gradient(
            1 / (scale * scale) - (spread * spread).mean(axis=2, keep_dims=True)
        )
        wide = (1, channels) + (1,) * (x.ndim - 2)

        def norm(x, gamma, beta):
            g = x.reshape(batch, groups, -1)
            c = g - g.mean(axis=2, keep_dims=True)
            y = c / ops.sqrt((c * c).mean(axis=2, keep_dims=True) + eps)
            return y.reshape(x.shape) * gamma.reshape(wide) + beta.reshape(wide)

        def backward(d, x, gamma):
            return pull(norm)(mutable(x), mutable(gamma), ops.zeros_like(mutable(gamma)), d)

        dd, dx, dgamma = pull(backward)(mutable(d), mutable(x), mutable(gamma), dout)
        return dd, dx, ops.zeros_like(mean), ops.zeros_like(rstd), dgamma, 0, 0, 0, 0

    return bprop


@constexpr
def _grouped(shape, groups):
    """(B, N, C, ...) as (B, N, G, C / G * ...)."""
    size = 1
    for length in shape[2:]:
        size *= length
    return (shape[0], shape[1], groups, size // groups)


@batching("GroupNorm")
def batched_group_norm(prim, axis_size):
    """GroupNorm(x, groups, gamma, beta, eps): (y, mean, rstd), the batch among the samples, with a
    scale of one."""
    prim = primitive(prim)

    def rule(x_pair, groups_pair, g_pair, b_pair, eps_pair):
        if not any_batched(dims_of((x_pair, g_pair, b_pair))):
            return unpaired(prim(*values((x_pair, groups_pair, g_pair, b_pair, eps_pair))))
        x = filled(x_pair[0], x_pair[1], axis_size)
        one = ops.ones((x.shape[2],), x.dtype)
        y, mean, rstd = prim(
            reshape(x, merged(x.shape, 0)), groups_pair[0], one, 0 * one, eps_pair[0]
        )
        wide = ()
        for v, dim in (g_pair, b_pair):
            v = front(v, dim)
            wide = wide + (reshape(v, channel_shape(v.shape, dim is not None, x.ndim - 1)),)
        flat = (axis_size, x.shape[1], -1)
        return (
            (reshape(y, x.shape) * wide[0] + wide[1], 0),
            (reshape(mean, flat), 0),
            (reshape(rstd, flat), 0),
        )

    return rule


@batching("GroupNormGrad")
def batched_group_norm_grad(prim, axis_size):
    """GroupNormGrad(d, x, mean, rstd, gamma, groups, three flags): (dx, dgamma, dbeta); dx with a
    scale of one, the batch among the samples; the sums over one sample of the batch each."""
    prim = primitive(prim)

    def rule(*pairs):
        tensors, rest = pairs[:5], values(pairs[5:])
        if not any_batched(dims_of(tensors)):
            return unpaired(prim(*tensors_of(tensors), *rest))
        d, x, mean, rstd = [filled(v, dim, axis_size) for v, dim in tensors[:4]]
        gamma, dim = tensors[4]
        gamma = front(gamma, dim)
        scaled = d * reshape(gamma, channel_shape(gamma.shape, dim is not None, x.ndim - 1))
        one = ops.ones((x.shape[2],), x.dtype)
        dx = prim(*[reshape(v, merged(v.shape, 0)) for v in (scaled, x, mean, rstd)], one, *rest)[0]
        normal = (
            reshape(x, _grouped(x.shape, rest[0])) - ops.expand_dims(mean, -1)
        ) * ops.expand_dims(rstd, -1)
        axes = all_but_channels(x.ndim)
        dgamma, dbeta = (d * reshape(normal, x.shape)).sum(axes), d.sum(axes)
        return (reshape(dx, x.shape), 0), (dgamma, 0), (dbeta, 0)

    return rule


# --- batch norm: statistics are per channel, so the batch of `vmap` joins the channels ------------


@constexpr
def _channel_axis(rank, data_format):
    return rank - 1 if data_format == "NHWC" or rank == 1 else 1


def _to_channels(x, dim, size, data_format):
    at = _channel_axis(sample_rank(x, dim), data_format)
    x = move(filled(x, dim, size), 0, at)
    return reshape(x, merged(x.shape, at))


def _from_channels(x, size, data_format):
    at = _channel_axis(x.ndim, data_format)
    return reshape(x, apart(x.shape, at, size)), at


def per_channel(count):
    """`count` tensors with channels, then parameters, the last of them the data format, then
    perhaps a token.

    With a batch, running statistics are copies and their updates are dropped.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, rest = pairs[:count], values(pairs[count:])
            if not any_batched(dims_of(tensors)):
                return unpaired(prim(*tensors_of(tensors), *rest, *pairs[count + len(rest) :]))
            layout = rest[-1]
            out = prim(*[_to_channels(x, dim, axis_size, layout) for x, dim in tensors], *rest)
            return tuple([_from_channels(one, axis_size, layout) for one in out])

        return rule

    return getter


batching(
    "BatchNorm", why="MindSpore's rule fails on the token of running statistics", replaces=True
)(per_channel(5))
batching("BatchNormGrad", why="MindSpore's rule fails on images", replaces=True)(per_channel(6))


@derivative("BatchNormGradGrad")
def batch_norm_grad_grad(prim):
    """The backward of (dx, dscale, dbias), itself differentiated. Statistics are those of the batch
    in training and constants otherwise.

    `backward` and `second` stand in the rule: MindSpore cannot compile a closure (`norm`) that
    another function differentiates ("Illegal AnfNode").
    """

    def bprop(x, dy, scale, mean, var, ddx, ddscale, ddbias, training, epsilon, layout, out, dout):
        def norm(x, scale, bias):
            moved = ops.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
            if training:
                c = moved - moved.mean(axis=1, keep_dims=True)
                v = (c * c).mean(axis=1, keep_dims=True)
            else:
                c, v = moved - mean.reshape(-1, 1), var.reshape(-1, 1)
            y = (c / ops.sqrt(v + epsilon)) * scale.reshape(-1, 1) + bias.reshape(-1, 1)
            return ops.moveaxis(y.reshape(ops.moveaxis(x, 1, 0).shape), 0, 1)

        def backward(x, dy, scale):
            return pull(norm)(mutable(x), mutable(scale), ops.zeros_like(mutable(scale)), dy)

        def second(x, dy, scale, ddx, ddscale, ddbias):
            return pull(backward)(mutable(x), mutable(dy), mutable(scale), (ddx, ddscale, ddbias))

        by_x, by_dy, by_scale, by_ddx, by_ddscale, by_ddbias = pull(second)(
            mutable(x),
            mutable(dy),
            mutable(scale),
            mutable(ddx),
            mutable(ddscale),
            mutable(ddbias),
            dout,
        )
        return (
            by_x,
            by_dy,
            by_scale,
            ops.zeros_like(mean),
            ops.zeros_like(var),
            by_ddx,
            by_ddscale,
            by_ddbias,
            0,
            0,
            0,
        )

    return bprop


batching("BatchNormGradGrad", why="MindSpore's rule fails on images", replaces=True)(per_channel(8))


# --- without statistics ---------------------------------------------------------------------------


@derivative(
    "L2Normalize", why="its backward has no derivative and hides its attributes", replaces=True
)
def l2_normalize(prim):
    """y = x r, r = max(sum x^2, eps)^(-1/2)."""
    axis, eps = attributes_of(prim, "axis", "epsilon")
    axis = axis[0]

    def bprop(x, out, dout):
        def norm(x):
            return x * ops.rsqrt(ops.maximum((x * x).sum(axis, keepdims=True), eps))

        return pull(norm)(mutable(x), dout)

    return bprop


@constexpr
def _nearby(count, reach):
    """1 for every two channels that are at most so far apart, in float64."""
    channels = np.arange(count)
    return Tensor((np.abs(channels[:, None] - channels) <= reach).astype(np.float64))


@derivative("LRN", why=KEEPS_ATTRIBUTES, replaces=True)
def lrn(prim):
    """MindSpore's own rule, but with an LRNGrad whose attributes Python can read (of LRN, its class
    loses `attrs`).
    """
    grad = _compat.LRNGrad(prim.depth_radius, prim.bias, prim.alpha, prim.beta)

    def bprop(x, out, dout):
        return (grad(dout, x, out),)

    return bprop


@derivative("LRNGrad")
def lrn_grad(prim):
    """LRNGrad(d, x, y) of y = x (bias + alpha sum x^2)^-beta, the sum over the channels nearby."""
    reach, bias, alpha, beta = attributes_of(prim, "depth_radius", "bias", "alpha", "beta")

    def bprop(d, x, y, out, dout):
        def norm(x):
            rows = x.reshape(x.shape[0], x.shape[1], -1)
            around = ops.matmul(ops.cast(_nearby(x.shape[1], reach), x.dtype), rows * rows)
            return (rows * ops.exp(-beta * ops.log(bias + alpha * around))).reshape(x.shape)

        def backward(d, x):
            return pull(norm)(mutable(x), d)[0]

        dd, dx = pull(backward)(mutable(d), mutable(x), dout)
        return dd, dx, ops.zeros_like(y)

    return bprop


# --- forward --------------------------------------------------------------------------------------


@constexpr
def _last_axes(begin, rank):
    return tuple(range(begin % rank - rank, 0))


@forward("LayerNorm")
@allow(0)
def pushed_layer_norm(prim, usual):
    """(y, mean, variance): y = (x - mean) / sqrt(variance + eps) g + b, as a composition."""

    def rule(x_pair, g_pair, b_pair, begin_pair, parameters_pair, eps_pair):
        a = x_pair[0]
        axes = _last_axes(begin_pair[0], a[0].ndim)
        mean = averaged(a, axes)
        centred = minus(a, mean)
        variance = averaged(times(centred, centred), axes)
        y = scaled(
            times(centred, rsqrt((variance[0] + eps_pair[0], variance[1], variance[2]))), g_pair[0]
        )
        return ((y[0] + b_pair[0], y[1], y[2]), FORWARD), (mean, FORWARD), (variance, FORWARD)

    return rule


@forward("GroupNorm")
@allow(0)
def pushed_group_norm(prim, usual):
    """(y, mean, 1 / sqrt(variance + eps)), as a composition over groups of channels."""

    def rule(x_pair, groups_pair, g_pair, b_pair, eps_pair):
        v = x_pair[0][0]
        a = reshaped(x_pair[0], (v.shape[0], groups_pair[0], -1))
        mean = averaged(a, -1)
        centred = minus(a, mean)
        variance = averaged(times(centred, centred), -1)
        root = rsqrt((variance[0] + eps_pair[0], variance[1], variance[2]))
        wide = channel_shape(g_pair[0].shape, False, v.ndim)
        y = scaled(reshaped(times(centred, root), v.shape), reshape(g_pair[0], wide))
        y = (y[0] + reshape(b_pair[0], wide), y[1], y[2])
        flat = mean[0].shape[:-1]
        return (y, FORWARD), (reshaped(mean, flat), FORWARD), (reshaped(root, flat), FORWARD)

    return rule


# --- Taylor coefficients --------------------------------------------------------------------------


def _standardized(x, axes, eps):
    """(x - mean) / r with r = sqrt(variance + eps), and the mean, the variance and r."""
    mean = taylor.averaged(x, axes)
    centred = taylor.minus(x, mean)
    variance = taylor.averaged(taylor.squared(centred), axes)
    square = taylor.shifted(variance, eps)
    root = (ops.sqrt(square[0]),)
    if len(x) > 1:
        root = taylor.root(root[0], square)
    return taylor.divided(centred, root), mean, variance, root


@expansion("LayerNorm")
@allow(0)
def expanded_layer_norm(prim, usual):
    """(y, mean, variance), as a composition."""

    def rule(x_pair, g_pair, b_pair, begin_pair, parameters_pair, eps_pair):
        x = taylor.coefficients(x_pair)
        axes = _last_axes(begin_pair[0], x[0].ndim)
        y, mean, variance, _ = _standardized(x, axes, eps_pair[0])
        return (
            taylor.joined(taylor.shifted(taylor.scaled(y, g_pair[0]), b_pair[0])),
            taylor.joined(mean),
            taylor.joined(variance),
        )

    return rule


@expansion("GroupNorm")
@allow(0)
def expanded_group_norm(prim, usual):
    """(y, mean, 1 / sqrt(variance + eps)), as a composition over groups of channels."""

    def rule(x_pair, groups_pair, g_pair, b_pair, eps_pair):
        whole = taylor.coefficients(x_pair)
        v = whole[0]
        x = taylor.reshaped(whole, (v.shape[0], groups_pair[0], -1))
        y, mean, _, root = _standardized(x, -1, eps_pair[0])
        wide = channel_shape(g_pair[0].shape, False, v.ndim)
        y = taylor.scaled(taylor.reshaped(y, v.shape), reshape(g_pair[0], wide))
        flat = mean[0].shape[:-1]
        return (
            taylor.joined(taylor.shifted(y, reshape(b_pair[0], wide))),
            taylor.joined(taylor.reshaped(mean, flat)),
            taylor.joined(taylor.reshaped(taylor.inverse(root), flat)),
        )

    return rule


@constexpr
def _all_but_channels(rank, last):
    """The axes of samples and of positions, counted from the end."""
    return tuple(axis - rank for axis in range(rank) if axis != (rank - 1 if last else 1))


@by_expansion("BatchNorm")
def expanded_batch_norm(prim):
    """With given statistics linear but for a constant; in training with those of the batch, where
    the further outputs have no rule."""

    def function(x, scale, bias, mean, variance, training, eps, *rest):
        outs = prim(x[0], scale, bias, mean, variance, training, eps, *rest)
        last = rest[-1] == "NHWC"
        wide = channel_shape(scale.shape, last, x[0].ndim)
        slope = reshape(ops.cast(scale, x[0].dtype), wide)
        if training:
            y, _, _, _ = _standardized(x, _all_but_channels(x[0].ndim, last), eps)
            found = ((outs[0],) + taylor.scaled(y[1:], slope),)
            for _ in outs[1:]:
                found = found + (None,)
            return found
        slope = slope * reshape(ops.cast(ops.rsqrt(variance + eps), slope.dtype), wide)
        found = ((outs[0],) + taylor.scaled(x[1:], slope),)
        for one in outs[1:]:
            found = found + ((one,),)
        return found

    return function
