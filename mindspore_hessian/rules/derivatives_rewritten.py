"""Derivative rules: primitives whose backward has no derivative and hides its attributes, so that the gradient itself is
written with differentiable operations; and the third derivatives of normalizations."""
from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops

from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import by_formula, pull
from mindspore_hessian.rules.derivatives_linalg import attributes_of, pick
from mindspore_hessian.rules.derivatives_nn import multi_margin_grad

_REDUCTIONS = {"sum": 0, "mean": 1, "none": 2}


def inv_grad(y, d):
    """y = 1 / x: -d y^2."""
    return -d * y * y


def mvlgamma(prim):
    """d sum_j digamma(x - j / 2) for j < p."""
    (p,) = attributes_of(prim, "p")

    def bprop(x, out, dout):
        slope = ops.zeros_like(x)
        for j in range(p):
            slope = slope + ops.digamma(x - j * 0.5)
        return (dout * slope,)
    return bprop


def multi_margin_loss(prim):
    """The gradient of sum_j max(0, margin - x_t + x_j)^p w_t / C, in differentiable operations."""
    p, margin, reduction = attributes_of(prim, "p", "margin", "reduction")
    number = _REDUCTIONS[reduction]

    def bprop(x, target, w, out, dout):
        dw = None if w is None else ops.zeros_like(w)
        return multi_margin_grad(dout, x, target, w, p, margin, number), ops.zeros_like(target), dw
    return bprop


def max_unpool(spatial: int):
    """Unpooling writes x at the flat positions `argmax`: its transpose reads there."""
    def getter(prim):
        (layout,) = attributes_of(prim, "data_format")
        if not layout.startswith("NC"):
            raise NotImplementedError(f"mindspore_hessian has no derivative of unpooling in the layout {layout}")

        def bprop(x, argmax, out, dout):
            return pick(dout, argmax, spatial), ops.zeros_like(argmax)
        return bprop
    return getter


@ops.constexpr
def _mirrored(shape, paddings, shift):
    """The source of each entry of each padded axis; `shift` 0 repeats the border (SYMMETRIC), 1 does not (REFLECT)."""
    pairs = paddings.asnumpy() if isinstance(paddings, Tensor) else np.asarray(paddings)
    out = []
    for axis, (left, right) in enumerate(pairs.reshape(-1, 2).tolist()):
        if left or right:
            n = shape[axis]
            line = np.pad(np.arange(n), (left, right), mode="reflect" if shift else "symmetric")
            out.append((axis, Tensor(line.astype(np.int32))))
    return tuple(out)


def mirror_pad(prim):
    """The gradient of a mirrored padding, as that of a gather."""
    (mode,) = attributes_of(prim, "mode")
    shift = int(mode.upper() == "REFLECT")

    def bprop(x, paddings, out, dout):
        sources = _mirrored(x.shape, paddings, shift)

        def padded(x):
            for axis, index in sources:
                x = ops.gather(x, index, axis)
            return x
        return pull(padded)(mutable(x), dout)[0], ops.zeros_like(paddings)
    return bprop


# --- third derivatives ---------------------------------------------------------------------------------------------

def layer_norm_grad_grad(prim):
    """The backward of (dx, dgamma, dbeta) of y = gamma (x - m) / sqrt(v + eps) + beta, itself differentiated.

    The variance that MindSpore hands on may hold eps: what it has beyond that of x is a constant.
    """
    def bprop(x, dy, var, mean, gamma, ddx, ddgamma, ddbeta, norm_axis, params_axis, out, dout):
        width = gamma.size
        spread = x.reshape(-1, width) - x.reshape(-1, width).mean(axis=1, keep_dims=True)
        eps = ops.stop_gradient(var.reshape(-1, 1) - (spread * spread).mean(axis=1, keep_dims=True))

        def norm(x, gamma, beta):
            rows = x.reshape(-1, width)
            c = rows - rows.mean(axis=1, keep_dims=True)
            y = c / ops.sqrt((c * c).mean(axis=1, keep_dims=True) + eps)
            return (y * gamma.reshape(1, -1) + beta.reshape(1, -1)).reshape(x.shape)

        def backward(x, dy, gamma):
            return pull(norm)(mutable(x), mutable(gamma), ops.zeros_like(mutable(gamma)), dy)

        def second(x, dy, gamma, ddx, ddgamma, ddbeta):
            return pull(backward)(mutable(x), mutable(dy), mutable(gamma), (ddx, ddgamma, ddbeta))
        by_x, by_dy, by_gamma, by_ddx, by_ddgamma, by_ddbeta = pull(second)(
            mutable(x), mutable(dy), mutable(gamma), mutable(ddx), mutable(ddgamma), mutable(ddbeta), dout)
        return (by_x, by_dy, ops.zeros_like(var), ops.zeros_like(mean), by_gamma, by_ddx, by_ddgamma, by_ddbeta, 0, 0)
    return bprop


def batch_norm_grad_grad(prim):
    """The same for batch norm, whose statistics are those of the batch in training and constants otherwise."""
    def bprop(x, dy, scale, mean, var, ddx, ddscale, ddbias, training, epsilon, layout, out, dout):
        wide = (1, -1) + (1,) * (x.ndim - 2)

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
            mutable(x), mutable(dy), mutable(scale), mutable(ddx), mutable(ddscale), mutable(ddbias), dout)
        return (by_x, by_dy, by_scale, ops.zeros_like(mean), ops.zeros_like(var), by_ddx, by_ddscale, by_ddbias, 0, 0,
                0)
    return bprop


_MISSING = "MindSpore has no derivative of it"
_REWRITTEN = "its backward has no derivative and hides its attributes: the gradient is differentiable operations"

RULES: tuple[Derivative, ...] = (
    Derivative("InvGrad", by_formula(inv_grad, 2), _MISSING),
    Derivative("Mvlgamma", mvlgamma, _REWRITTEN, replaces=True),
    Derivative("MultiMarginLoss", multi_margin_loss, _REWRITTEN, replaces=True),
    Derivative("MaxUnpool2D", max_unpool(2), _REWRITTEN, replaces=True),
    Derivative("MaxUnpool3D", max_unpool(3), _REWRITTEN, replaces=True),
    Derivative("MirrorPad", mirror_pad, _REWRITTEN, replaces=True),
    Derivative("LayerNormGradGrad", layer_norm_grad_grad, _MISSING),
    Derivative("BatchNormGradGrad", batch_norm_grad_grad, _MISSING),
)
