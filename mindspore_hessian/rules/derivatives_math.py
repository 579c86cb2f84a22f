"""Derivative rules: activations, that is elementwise backward primitives, each as the formula it computes.

``d`` is the incoming gradient, ``x`` the input and ``y`` the output of the activation. At a kink the second derivative
is zero, which is the convention of JAX and PyTorch.
"""
from __future__ import annotations

import math

import mindspore as ms
from mindspore import ops

from mindspore_hessian import _compat
from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import by_formula

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
_GELU_CUBIC, _GELU_SCALE = 0.044715, math.sqrt(2 / math.pi)


def log_softmax_grad(y, d, axis):
    """d - softmax * sum(d)."""
    return d - ops.exp(y) * d.sum(axis=axis, keepdims=True)


def log_softmax(prim):
    """LogSoftmax(x, axis). A number has none but the derivative 0, with which no kernel must be made: oneDNN fails."""
    def bprop(x, axis, out, dout):
        if x.ndim == 0:
            return ops.zeros_like(x), 0
        return _compat.LogSoftmaxGrad(axis)(out, dout), 0
    return bprop


def _gelu_slopes(x):
    """The first and second derivative of the tanh form x s, s = sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3), from
    the smaller one of s and 1 - s, which is known to more digits."""
    square = x * x
    u = _GELU_SCALE * (x + _GELU_CUBIC * x * square)
    side = 1 - 2 * ops.cast(u > 0, x.dtype)
    q = ops.sigmoid(2 * side * u)
    s = ops.where(u > 0, 1 - q, q)
    inner, rest = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * square), q * (1 - q)
    slope = 2 * rest * inner
    curve = 2 * slope * inner * side * (1 - 2 * q) + 12 * _GELU_SCALE * _GELU_CUBIC * x * rest
    return s + x * slope, 2 * slope + x * curve


def gelu_grad(prim):
    """GeLUGrad(d, x, y) = d gelu'(x). What is batched (dout) is multiplied once, and last."""
    def bprop(d, x, y, out, dout):
        first, second = _gelu_slopes(x)
        return dout * first, dout * (d * second), ops.zeros_like(y)
    return bprop


def fast_gelu_grad(d, x):
    """x * sigmoid(1.702 x): d * s * (1 + 1.702 x (1 - s))."""
    s = ops.sigmoid(1.702 * x)
    return d * s * (1 + 1.702 * x * (1 - s))


def elu_grad(d, y):
    """With alpha = 1, the only one this primitive takes: d where y > 0, else d * (y + 1)."""
    return ops.where(y > 0, d, d * (y + 1))


def selu_grad(d, y):
    """d * scale where y > 0, else d * (y + scale * alpha)."""
    return ops.where(y > 0, _SELU_SCALE * d, d * (y + _SELU_SCALE * _SELU_ALPHA))


def hswish_grad(d, x):
    """d * (0 | x/3 + 1/2 | 1) for x below, within, above [-3, 3]."""
    return d * ops.where(x <= -3, ops.zeros_like(x), ops.where(x < 3, x / 3 + 0.5, ops.ones_like(x)))


def hsigmoid_grad(d, x):
    """d / 6 within (-3, 3), else 0."""
    return ops.where(ops.abs(x) < 3, d / 6, ops.zeros_like(d))


def relu6_grad(d, x):
    """d within (0, 6), else 0."""
    return ops.where(ops.logical_and(x > 0, x < 6), d, ops.zeros_like(d))


def shrink_grad(d, x, lambd):
    """Soft and hard shrink: d outside [-lambd, lambd], else 0."""
    return ops.where(ops.abs(x) > lambd, d, ops.zeros_like(d))


def glu_grad(d, x, axis):
    """y = a * s(b) with x = (a, b): d * (s, a * s * (1 - s))."""
    a, b = ops.chunk(x, 2, axis)
    s = ops.sigmoid(b)
    return ops.concat((d * s, d * a * s * (1 - s)), axis)


def logit_grad(d, x, eps):
    """d / (x (1 - x)); outside [eps, 1 - eps], where the forward clamps, 0; without eps outside [0, 1] NaN."""
    slope = d / (x * (1 - x))
    if eps is None or eps < 0:
        return slope
    return ops.where(ops.logical_and(x >= eps, x <= 1 - eps), slope, ops.zeros_like(slope))


def log_sigmoid_grad(d, x, buffer):
    """d * sigmoid(-x); the buffer is exp(-x) by another name."""
    return d * ops.sigmoid(-x)


def mish_grad(d, x):
    """y = x t, t = tanh(softplus(x)): d * (t + x * (1 - t^2) * sigmoid(x))."""
    t = ops.tanh(ops.logsigmoid(-x) * -1)
    return d * (t + x * (1 - t * t) * ops.sigmoid(x))


def prelu_grad(d, x, w):
    """(d where x > 0 else w d, sum of x d where x <= 0): the weight is per channel, the second axis."""
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,) if x.ndim == 1 else ()
    wide = ops.broadcast_to(w.reshape(shape), x.shape)
    dw = ops.where(x > 0, ops.zeros_like(x), x * d)
    dw = dw.sum().reshape(w.shape) if w.size == 1 else ops.moveaxis(dw, 1, 0).reshape(x.shape[1], -1).sum(axis=1)
    return ops.where(x > 0, d, wide * d), dw


def mish(prim):
    """x t, t = tanh(softplus(x)) = (1 - q^2) / (1 + q^2) with q = sigmoid(-x): d (t + x (1 - t^2) (1 - q))."""
    def bprop(x, out, dout):
        q = ops.sigmoid(-x)
        t = (1 - q * q) / (1 + q * q)
        return (dout * (t + x * (1 - t * t) * (1 - q)),)
    return bprop


def softplus_ext(prim):
    """SoftplusExt(x, beta, threshold): d sigmoid(beta x), and d beyond the threshold, where it is x."""
    def bprop(x, beta, threshold, out, dout):
        z = x * beta
        return ops.where(z > threshold, dout, dout * ops.sigmoid(z)), 0, 0
    return bprop


_add, _sub, _sigmoid = ops.Add(), ops.Sub(), ops.Sigmoid()  # in every network: overloaded operators compile slower


def tanh(prim):
    """TanhGrad(y, d) = d (1 - y^2) with y to the last digits: the float32 kernel of CPU has an error of 1e-4, which
    would be that of every derivative. `y` has the value of 2 sigmoid(2 x) - 1 and the derivative of `out`."""
    backward = _compat.backward("TanhGrad")

    def bprop(x, out, dout):
        y = out
        if x.dtype == ms.float32:
            s = _sigmoid(_add(x, x))
            y = _add(out, ops.stop_gradient(_sub(_add(s, s), _add(out, 1.0))))
        return (backward(y, dout),)
    return bprop


def tanh_grad(prim):
    """TanhGrad(y, d) = d (1 - y^2), by y: -2 d y. What is batched (dout) is multiplied once, and last."""
    backward = _compat.backward("TanhGrad")

    def bprop(y, d, out, dout):
        return dout * (d * y * -2), backward(y, dout)
    return bprop


def sigmoid_grad(prim):
    """SigmoidGrad(y, d) = d y (1 - y), by y: d (1 - 2 y)."""
    backward = _compat.backward("SigmoidGrad")

    def bprop(y, d, out, dout):
        return dout * (d - 2 * d * y), backward(y, dout)
    return bprop


# --- powers and products -------------------------------------------------------------------------------------------

def pow_tensor_scalar(prim):
    """d p x^(p - 1), and 0 for p = 0, so that x^2 has a third derivative at 0."""
    def bprop(x, p, out, dout):
        if p == 0:
            return ops.zeros_like(x), 0
        return dout * (p * _compat.pow_tensor_scalar(x, p - 1)), 0
    return bprop


def _products_before(x):
    """Along the last axis, the product of all elements before each: log2(n) multiplications, no division."""
    x = ops.concat((ops.ones_like(x[:, :1]), x[:, :-1]), 1)
    step = 1
    while step < x.shape[1]:
        x = x * ops.concat((ops.ones_like(x[:, :step]), x[:, :-step]), 1)
        step = 2 * step
    return x


@ops.constexpr
def _reduced_last(rank, axis):
    """A permutation that puts the reduced axes last, its inverse, and how many there are; no axis means all."""
    axes = range(rank) if axis is None or axis == () else [axis] if isinstance(axis, int) else axis
    axes = sorted(a % rank for a in axes)
    order = [a for a in range(rank) if a not in axes] + axes
    return tuple(order), tuple(order.index(a) for a in range(rank)), len(axes)


def _prod_gradient(x, axis, dout):
    """d times the product of the others, as the product before times the product after: right at zeros too."""
    if x.ndim == 0:
        return dout
    order, back, count = _reduced_last(x.ndim, axis)
    moved = ops.transpose(x, order)
    rows = moved.reshape(dout.size, -1)
    after = ops.flip(_products_before(ops.flip(rows, (1,))), (1,))
    dx = dout.reshape(-1, 1).astype(x.dtype) * _products_before(rows) * after
    return ops.transpose(dx.reshape(moved.shape), back)


def reduce_prod(prim):
    """ReduceProd(x, axis, keep_dims)."""
    def bprop(x, axis, keep_dims, out, dout):
        return _prod_gradient(x, axis, dout), 0, 0
    return bprop


def prod_ext(prim):
    """ProdExt(x, axis, keep_dims, dtype), which ops.prod and mint.prod use."""
    def bprop(x, axis, keep_dims, dtype, out, dout):
        return _prod_gradient(x, axis, dout), 0, 0, 0
    return bprop


_MISSING = "MindSpore has no derivative of it"

_INEXACT = "MindSpore's takes the output, of which the CPU kernel knows four digits"
_BATCH_FIRST = "MindSpore's multiplies what is batched first: three products of the batch's size, here one"

RULES: tuple[Derivative, ...] = (
    Derivative("LogSoftmax", log_softmax, "MindSpore's hangs or fails for a number", replaces=True),
    Derivative("LogSoftmaxGrad", by_formula(log_softmax_grad, 2, 1), _MISSING),
    Derivative("GeLUGrad", gelu_grad, _MISSING),
    Derivative("FastGeLUGrad", by_formula(fast_gelu_grad, 2), _MISSING),
    Derivative("EluGrad", by_formula(elu_grad, 2), _MISSING),
    Derivative("SeluGrad", by_formula(selu_grad, 2), _MISSING),
    Derivative("HSwishGrad", by_formula(hswish_grad, 2), _MISSING),
    Derivative("HSigmoidGrad", by_formula(hsigmoid_grad, 2), _MISSING),
    Derivative("ReLU6Grad", by_formula(relu6_grad, 2), _MISSING),
    Derivative("SoftShrinkGrad", by_formula(shrink_grad, 2, 1), _MISSING),
    Derivative("HShrinkGrad", by_formula(shrink_grad, 2, 1), _MISSING),
    Derivative("GluGrad", by_formula(glu_grad, 2, 1), _MISSING),
    Derivative("LogitGrad", by_formula(logit_grad, 2, 1), _MISSING),
    Derivative("LogSigmoidGrad", by_formula(log_sigmoid_grad, 3), _MISSING),
    Derivative("MishGradExt", by_formula(mish_grad, 2), _MISSING),
    Derivative("Mish", mish, _INEXACT, replaces=True),
    Derivative("SoftplusExt", softplus_ext, "the kernel of MindSpore's gradient is not on CPU", replaces=True),
    Derivative("Tanh", tanh, _INEXACT, replaces=True),
    Derivative("TanhGrad", tanh_grad, _BATCH_FIRST, replaces=True),
    Derivative("SigmoidGrad", sigmoid_grad, _BATCH_FIRST, replaces=True),
    Derivative("PowTensorScalar", pow_tensor_scalar,
               "MindSpore's cannot be applied twice: it makes an exponent that it then rejects", replaces=True),
    Derivative("ReduceProd", reduce_prod, "MindSpore's divides by x: NaN at zeros", replaces=True),
    Derivative("ProdExt", prod_ext, "MindSpore's third derivative is silently wrong", replaces=True),
    Derivative("PReLUGrad", by_formula(prelu_grad, 3), _MISSING),
)
