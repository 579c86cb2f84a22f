"""Rules of activations and softmax.

Backward primitives are formulas of ``d``, the incoming gradient, ``x``, the input, and ``y``, the
output of the activation. At a kink the second derivative is zero, which is the convention of JAX
and PyTorch.
"""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import by_formula
from mindspore_hessian.rules.forward import (
    by_composition,
    by_slopes,
    from_end,
)
from mindspore_hessian.rules.kit import (
    add,
    all_but_channels,
    any_batched,
    axis_at,
    channel_shape,
    cotangent_first,
    cotangent_second,
    filled,
    front,
    primitive,
    reshape,
    same_shape,
    sample_rank,
    sigmoid,
    sub,
    two_along,
    unary,
    unpaired,
)
from mindspore_hessian.rules.registry import COPIES, batching, derivative
from mindspore_hessian.rules.taylor import by_expansion, by_series

_INEXACT = "MindSpore's takes the output, of which the CPU kernel knows four digits"
_BATCH_FIRST = (
    "MindSpore's multiplies what is batched first: three products of the batch's size, here one"
)
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
_GELU_CUBIC, _GELU_SCALE = 0.044715, math.sqrt(2 / math.pi)

batching("ReluGrad", why=COPIES, replaces=True)(cotangent_first)


# --- tanh and sigmoid -----------------------------------------------------------------------------


@derivative("Tanh", why=_INEXACT, replaces=True)
def tanh(prim):
    """TanhGrad(y, d) = d (1 - y^2) with y to the last digits: the float32 kernel of CPU has an
    error of 1e-4, which would be that of every derivative. `y` has the value of 2 sigmoid(2 x) - 1
    and the derivative of `out`."""
    backward = _compat.backward("TanhGrad")

    def bprop(x, out, dout):
        y = out
        if x.dtype == ms.float32:
            s = sigmoid(add(x, x))
            y = add(out, ops.stop_gradient(sub(add(s, s), add(out, 1.0))))
        return (backward(y, dout),)

    return bprop


@derivative("TanhGrad", why=_BATCH_FIRST, replaces=True)
def tanh_grad(prim):
    """TanhGrad(y, d) = d (1 - y^2), by y: -2 d y. What is batched (dout) is multiplied once, and
    last.
    """
    backward = _compat.backward("TanhGrad")

    def bprop(y, d, out, dout):
        return dout * (d * y * -2), backward(y, dout)

    return bprop


batching("TanhGrad", why=COPIES, replaces=True)(cotangent_second)


@derivative("SigmoidGrad", why=_BATCH_FIRST, replaces=True)
def sigmoid_grad(prim):
    """SigmoidGrad(y, d) = d y (1 - y), by y: d (1 - 2 y)."""
    backward = _compat.backward("SigmoidGrad")

    def bprop(y, d, out, dout):
        return dout * (d - 2 * d * y), backward(y, dout)

    return bprop


batching("SigmoidGrad")(cotangent_second)


@by_formula("LogSigmoidGrad")
def log_sigmoid_grad(d, x, buffer):
    """d * sigmoid(-x); the buffer is exp(-x) by another name."""
    return d * ops.sigmoid(-x)


@by_formula("LogitGrad", options=1)
def logit_grad(d, x, eps):
    """d / (x (1 - x)); outside [eps, 1 - eps], where the forward clamps, 0; without eps outside [0,
    1] NaN.
    """
    slope = d / (x * (1 - x))
    if eps is None or eps < 0:
        return slope
    return ops.where(ops.logical_and(x >= eps, x <= 1 - eps), slope, ops.zeros_like(slope))


# --- like relu ------------------------------------------------------------------------------------

batching("SiLU")(unary)
batching("SiLUGrad")(cotangent_first)


def _gelu_slopes(x):
    """The first and second derivative of the tanh form x s, s = sigmoid(2 u), u = sqrt(2/pi) (x +
    0.044715 x^3), from the smaller one of s and 1 - s, which is known to more digits."""
    square = x * x
    u = _GELU_SCALE * (x + _GELU_CUBIC * x * square)
    side = 1 - 2 * ops.cast(u > 0, x.dtype)
    q = ops.sigmoid(2 * side * u)
    s = ops.where(u > 0, 1 - q, q)
    inner, rest = _GELU_SCALE * (1 + 3 * _GELU_CUBIC * square), q * (1 - q)
    slope = 2 * rest * inner
    curve = 2 * slope * inner * side * (1 - 2 * q) + 12 * _GELU_SCALE * _GELU_CUBIC * x * rest
    return s + x * slope, 2 * slope + x * curve


@derivative("GeLUGrad")
def gelu_grad(prim):
    """GeLUGrad(d, x, y) = d gelu'(x). What is batched (dout) is multiplied once, and last."""

    def bprop(d, x, y, out, dout):
        first, second = _gelu_slopes(x)
        return dout * first, dout * (d * second), ops.zeros_like(y)

    return bprop


batching("GeLUGrad")(same_shape(3))


@by_formula("FastGeLUGrad")
def fast_gelu_grad(d, x):
    """x * sigmoid(1.702 x): d * s * (1 + 1.702 x (1 - s))."""
    s = ops.sigmoid(1.702 * x)
    return d * s * (1 + 1.702 * x * (1 - s))


batching("FastGeLUGrad", why=COPIES, replaces=True)(cotangent_first)


@by_formula("EluGrad")
def elu_grad(d, y):
    """With alpha = 1, the only one this primitive takes: d where y > 0, else d * (y + 1)."""
    return ops.where(y > 0, d, d * (y + 1))


batching("EluGrad")(cotangent_first)


@derivative("SeLU", why="MindSpore's takes the derivative of another function", replaces=True)
def selu(prim):
    """scale d where y > 0, else d (y + scale alpha). MindSpore's uses the derivative of ELU with
    alpha = 1.
    """

    def bprop(x, out, dout):
        return (selu_grad(dout, out),)

    return bprop


@by_formula("SeluGrad")
def selu_grad(d, y):
    """d * scale where y > 0, else d * (y + scale * alpha)."""
    return ops.where(y > 0, _SELU_SCALE * d, d * (y + _SELU_SCALE * _SELU_ALPHA))


@derivative("Mish", why=_INEXACT, replaces=True)
def mish(prim):
    """x t, t = tanh(softplus(x)) = (1 - q^2) / (1 + q^2) with q = sigmoid(-x): d (t + x (1 - t^2)
    (1 - q)).
    """

    def bprop(x, out, dout):
        q = ops.sigmoid(-x)
        t = (1 - q * q) / (1 + q * q)
        return (dout * (t + x * (1 - t * t) * (1 - q)),)

    return bprop


@by_formula("MishGradExt")
def mish_grad(d, x):
    """y = x t, t = tanh(softplus(x)): d * (t + x * (1 - t^2) * sigmoid(x))."""
    t = ops.tanh(ops.logsigmoid(-x) * -1)
    return d * (t + x * (1 - t * t) * ops.sigmoid(x))


@derivative("SoftplusExt", why="the kernel of MindSpore's gradient is not on CPU", replaces=True)
def softplus_ext(prim):
    """SoftplusExt(x, beta, threshold): d sigmoid(beta x), and d beyond the threshold, where it is
    x.
    """

    def bprop(x, beta, threshold, out, dout):
        z = x * beta
        return ops.where(z > threshold, dout, dout * ops.sigmoid(z)), 0, 0

    return bprop


batching("SoftplusExt")(unary)


@by_formula("HSwishGrad")
def hswish_grad(d, x):
    """d * (0 | x/3 + 1/2 | 1) for x below, within, above [-3, 3]."""
    return d * ops.where(
        x <= -3, ops.zeros_like(x), ops.where(x < 3, x / 3 + 0.5, ops.ones_like(x))
    )


batching("HSwishGrad", why=COPIES, replaces=True)(cotangent_first)


@by_formula("HSigmoidGrad")
def hsigmoid_grad(d, x):
    """d / 6 within (-3, 3), else 0."""
    return ops.where(ops.abs(x) < 3, d / 6, ops.zeros_like(d))


batching("HSigmoidGrad")(cotangent_first)


@by_formula("ReLU6Grad")
def relu6_grad(d, x):
    """d within (0, 6), else 0."""
    return ops.where(ops.logical_and(x > 0, x < 6), d, ops.zeros_like(d))


batching("ReLU6Grad", why=COPIES, replaces=True)(cotangent_first)


@by_formula("SoftShrinkGrad", "HShrinkGrad", options=1)
def shrink_grad(d, x, lambd):
    """Soft and hard shrink: d outside [-lambd, lambd], else 0."""
    return ops.where(ops.abs(x) > lambd, d, ops.zeros_like(d))


batching("SoftShrinkGrad", "HShrinkGrad", why=COPIES, replaces=True)(cotangent_first)


# --- with a gate, or a weight per channel ---------------------------------------------------------


@by_formula("GluGrad", options=1)
def glu_grad(d, x, axis):
    """y = a * s(b) with x = (a, b): d * (s, a * s * (1 - s))."""
    a, b = ops.chunk(x, 2, axis)
    s = ops.sigmoid(b)
    return ops.concat((d * s, d * a * s * (1 - s)), axis)


batching("GLU")(axis_at(1))
batching("GluGrad")(two_along)


@by_formula("PReLUGrad")
def prelu_grad(d, x, w):
    """(d where x > 0 else w d, sum of x d where x <= 0): the weight is per channel, the second
    axis.
    """
    shape = (1, -1) + (1,) * (x.ndim - 2) if x.ndim > 1 else (-1,) if x.ndim == 1 else ()
    wide = ops.broadcast_to(w.reshape(shape), x.shape)
    dw = ops.where(x > 0, ops.zeros_like(x), x * d)
    dw = (
        dw.sum().reshape(w.shape)
        if w.size == 1
        else ops.moveaxis(dw, 1, 0).reshape(x.shape[1], -1).sum(axis=1)
    )
    return ops.where(x > 0, d, wide * d), dw


@constexpr
def _all_but_batch(rank):
    return tuple(range(1, rank))


@constexpr
def _weight_shape(size, shape, dim):
    return (
        size,
        *(length for axis, length in enumerate(shape) if dim is None or axis != dim % len(shape)),
    )


@batching("PReLU")
def batched_prelu(prim, axis_size):
    """PReLU(x, w): x where x > 0 else w x."""
    prim = primitive(prim)

    def rule(x_pair, w_pair):
        if not any_batched((x_pair[1], w_pair[1])):
            return unpaired(prim(x_pair[0], w_pair[0]))
        x, w = filled(x_pair[0], x_pair[1], axis_size), front(*w_pair)
        wide = reshape(w, channel_shape(w.shape, w_pair[1] is not None, x.ndim - 1))
        return ops.select(x > 0, x, wide * x), 0

    return rule


@batching("PReLUGrad")
def batched_prelu_grad(prim, axis_size):
    """PReLUGrad(d, x, w): (d where x > 0 else w d, sum of x d where x <= 0 for each channel)."""
    prim = primitive(prim)

    def rule(d_pair, x_pair, w_pair):
        if not any_batched((d_pair[1], x_pair[1], w_pair[1])):
            return unpaired(prim(d_pair[0], x_pair[0], w_pair[0]))
        d, x = filled(d_pair[0], d_pair[1], axis_size), filled(x_pair[0], x_pair[1], axis_size)
        w, dim = w_pair
        w = front(w, dim)
        wide = reshape(w, channel_shape(w.shape, dim is not None, x.ndim - 1))
        at_w = ops.select(x > 0, ops.zeros_like(x), x * d)
        if sample_rank(w_pair[0], dim) == 1 and w.shape[-1] == 1:
            dw = at_w.sum(_all_but_batch(x.ndim)) if x.ndim > 1 else at_w  # no axes would mean all
        else:
            dw = at_w.sum(all_but_channels(x.ndim))
        return (ops.select(x > 0, d, wide * d), 0), (
            reshape(dw, _weight_shape(axis_size, w_pair[0].shape, dim)),
            0,
        )

    return rule


# --- softmax --------------------------------------------------------------------------------------


@derivative("LogSoftmax", why="MindSpore's hangs or fails for a number", replaces=True)
def log_softmax(prim):
    """LogSoftmax(x, axis). A number has none but the derivative 0, with which no kernel must be
    made: oneDNN fails.
    """

    def bprop(x, axis, out, dout):
        if x.ndim == 0:
            return ops.zeros_like(x), 0
        return _compat.LogSoftmaxGrad(axis)(out, dout), 0

    return bprop


@by_formula("LogSoftmaxGrad", options=1)
def log_softmax_grad(y, d, axis):
    """d - softmax * sum(d)."""
    return d - ops.exp(y) * d.sum(axis=axis, keepdims=True)


@constexpr
def _from_end(axis, rank):
    """The axis counted from the end, where batched and unbatched operands agree."""
    if not -rank <= axis < rank:
        raise ValueError(
            f"mindspore_hessian has no batching rule for a softmax over axis {axis} of {rank} axes"
        )
    return axis % rank - rank


@batching("LogSoftmaxGrad", why="MindSpore's rule lacks an input and fails", replaces=True)
def batched_log_softmax_grad(prim, axis_size):
    """dy - exp(y) * sum(dy), y the logarithm of the softmax."""
    prim = primitive(prim)

    def rule(y_pair, dy_pair, axis_pair):
        dy, dy_dim = dy_pair
        y, y_dim = y_pair
        axis, _ = axis_pair
        if dy_dim is None and y_dim is None:
            return prim(y, dy, axis), None
        axis = _from_end(axis, sample_rank(y, y_dim))
        dy, y = front(dy, dy_dim), front(y, y_dim)
        return dy - ops.exp(y) * dy.sum(axis, keepdims=True), 0

    return rule


@batching("SoftmaxBackward")
def batched_softmax_backward(prim, axis_size):
    """y * (dy - sum(y * dy)): written out, so that the unbatched operand broadcasts."""
    prim = primitive(prim)

    def rule(dy_pair, y_pair, axis_pair):
        dy, dy_dim = dy_pair
        y, y_dim = y_pair
        axis, _ = axis_pair
        if dy_dim is None and y_dim is None:
            return prim(dy, y, axis), None
        axis = _from_end(axis, sample_rank(y, y_dim))
        dy, y = front(dy, dy_dim), front(y, y_dim)
        return y * (dy - (y * dy).sum(axis, keepdims=True)), 0

    return rule


# --- forward --------------------------------------------------------------------------------------


@by_slopes("Tanh")
def tanh_slopes(x, y):
    """1 - y^2 and -2 y (1 - y^2), with y to the last digits."""
    if x.dtype == ms.float32:
        s = sigmoid(add(x, x))
        first = 4 * s * (1 - s)
        return first, (2 - 4 * s) * first
    first = 1 - y * y
    return first, -2 * y * first


@by_slopes("Sigmoid")
def sigmoid_slopes(x, y):
    first = y * (1 - y)
    return first, first * (1 - 2 * y)


@by_slopes("SiLU")
def silu_slopes(x, y):
    s = ops.sigmoid(x)
    return s * (1 + x * (1 - s)), s * (1 - s) * (2 + x * (1 - 2 * s))


@by_slopes("ReLU", kinked=True)
def relu_slopes(x, y):
    return ops.cast(x > 0, x.dtype)


@by_slopes("ReLU6", kinked=True)
def relu6_slopes(x, y):
    return ops.cast(ops.logical_and(x > 0, x < 6), x.dtype)


@by_slopes("Softplus")
def softplus_slopes(x, y):
    s = ops.sigmoid(x)
    return s, s * (1 - s)


@by_slopes("SoftplusExt")
def softplus_ext_slopes(x, y, beta, threshold):
    z = x * beta
    s, beyond = ops.sigmoid(z), z > threshold
    return ops.where(beyond, ops.ones_like(x), s), ops.where(
        beyond, ops.zeros_like(x), s * (1 - s) * beta
    )


@by_slopes("GeLU")
def gelu_slopes(x, y):
    return _gelu_slopes(x)


@by_slopes("Mish")
def mish_slopes(x, y):
    """x t, t = tanh(softplus(x)), whose derivative is (1 - t^2) s with s = sigmoid(x)."""
    q = ops.sigmoid(-x)
    s, t = 1 - q, (1 - q * q) / (1 + q * q)
    slope = (1 - t * t) * s
    return t + x * slope, 2 * slope + x * slope * (q - 2 * t * s)


@by_slopes("SeLU")
def selu_slopes(x, y):
    below = y + _SELU_SCALE * _SELU_ALPHA
    return ops.where(y > 0, _SELU_SCALE * ops.ones_like(x), below), ops.where(
        y > 0, ops.zeros_like(x), below
    )


@by_slopes("Elu")
def elu_slopes(x, y, *alpha):
    """1 where x > 0, else y + alpha, and alpha is 1 here."""
    return ops.where(x > 0, ops.ones_like(x), y + 1), ops.where(x > 0, ops.zeros_like(x), y + 1)


@by_slopes("CeLU")
def celu_slopes(x, y, *alpha):
    """1 where x > 0, else e = exp(x / alpha), and e / alpha."""
    a = alpha[0] if len(alpha) else 1.0
    e = ops.exp(ops.minimum(x, ops.zeros_like(x)) / a)
    return e, ops.where(x > 0, ops.zeros_like(x), e / a)


@by_slopes("Logit")
def logit_slopes(x, y, eps):
    """1 / (x (1 - x)) and (2 x - 1) over its square, within what eps leaves."""
    within = ops.ones_like(x)
    if eps is not None and eps >= 0:
        within = ops.cast(ops.logical_and(x >= eps, x <= 1 - eps), x.dtype)
    inverse = ops.reciprocal(x * (1 - x))
    return within * inverse, within * (2 * x - 1) * inverse * inverse


@by_slopes("FastGeLU")
def fast_gelu_slopes(x, y):
    """x s, s = sigmoid(1.702 x)."""
    s = ops.sigmoid(1.702 * x)
    slope = 1.702 * s * (1 - s)
    return s + x * slope, slope * (2 + 1.702 * x * (1 - 2 * s))


@constexpr
def _of_channels(shape, rank):
    """A weight a channel, or one for all, with the axes of x; what comes before its own stays."""
    return (*shape[:-1], *(1, shape[-1], *(1,) * (rank - 2))[2 - min(rank, 2) :])


@by_expansion("PReLU", places=(0, 1))
def expanded_prelu(prim):
    """x where it is above 0, else w x."""

    def function(x, w):
        y, above = prim(x[0], w[0]), ops.cast(x[0] > 0, x[0].dtype)
        wide = ()
        for one in w:
            wide = wide + (reshape(one, _of_channels(one.shape, y.ndim)),)
        below = taylor.scaled(wide, 1 - above)
        return (y,) + taylor.times(x, taylor.shifted(below, above))[1:]

    return function


@by_expansion("GLU")
def expanded_glu(prim):
    """a * sigmoid(b), of the two halves along an axis."""

    def function(x, axis):
        y, axis = prim(x[0], axis), from_end(axis, x[0].ndim)
        a, b = (), ()
        for one in x:
            left, right = ops.chunk(one, 2, axis)
            a, b = a + (left,), b + (right,)
        return (y,) + taylor.times(a, taylor.logistic(ops.sigmoid(b[0]), b))[1:]

    return function


@by_slopes("Softsign")
def softsign_slopes(x, y):
    r = ops.reciprocal(1 + ops.abs(x))
    return r * r, -2 * ops.sign(x) * r * r * r


@by_slopes("HSwish")
def hswish_slopes(x, y):
    within = ops.cast(ops.logical_and(x > -3, x < 3), x.dtype)
    return ops.where(x >= 3, ops.ones_like(x), within * (x / 3 + 0.5)), within / 3


@by_slopes("HSigmoid", kinked=True)
def hsigmoid_slopes(x, y):
    return ops.cast(ops.abs(x) < 3, x.dtype) / 6


@by_slopes("HShrink", "SoftShrink", kinked=True)
def shrink_slopes(x, y, *lambd):
    """1 where something is left."""
    return ops.cast(y != 0, x.dtype)


@by_composition("Softmax")
def pushed_softmax(prim, a, axis):
    """y (a' - <y, a'>), and y (a'' - <y, a''> + c^2 - <y, c^2>) with c = a' - <y, a'>, summed over
    the directions.
    """
    axis = from_end(axis, a[0].ndim)
    y = prim(a[0], axis)
    centred = a[1] - (a[1] * y).sum(axis, keepdims=True)
    inner = a[2] + (centred * centred).sum(0)
    return (y, y * centred, y * (inner - (y * inner).sum(axis, keepdims=True)))


@by_composition("LogSoftmax")
def pushed_log_softmax(prim, a, axis):
    """c = a' - <p, a'> with p the softmax, and a'' - <p, a'' + c^2>."""
    axis = from_end(axis, a[0].ndim)
    y = prim(a[0], axis)
    p = ops.exp(y)
    centred = a[1] - (a[1] * p).sum(axis, keepdims=True)
    return (y, centred, a[2] - (p * (a[2] + (centred * centred).sum(0))).sum(axis, keepdims=True))


# --- Taylor coefficients --------------------------------------------------------------------------


@by_series("Tanh", of_line=True)
def expanded_tanh(y, x):
    return taylor.hyperbolic_tangent(y, x)


@by_series("Sigmoid", of_line=True)
def expanded_sigmoid(y, x):
    return taylor.logistic(y, x)


def _swish(y, x, z):
    """x sigmoid(z)."""
    return (y,) + taylor.times(x, taylor.logistic(ops.sigmoid(z[0]), z))[1:]


@by_series("SiLU", of_line=True)
def expanded_silu(y, x):
    return _swish(y, x, x)


@by_series("FastGeLU")
def expanded_fast_gelu(y, x):
    return _swish(y, x, taylor.scaled(x, taylor.quotient_of(1702, 1000, y.dtype)))


_TWICE_GELU = Tensor(2 * math.sqrt(2 / math.pi), ms.float64)
_SELU_UP, _SELU_DOWN = (
    Tensor(_SELU_SCALE, ms.float64),
    Tensor(_SELU_SCALE * _SELU_ALPHA, ms.float64),
)


@by_series("GeLU")
def expanded_gelu(y, x):
    """x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), the tanh form."""
    cubic = taylor.scaled(
        taylor.times(x, taylor.squared(x)), taylor.quotient_of(44715, 1000000, y.dtype)
    )
    return _swish(y, x, taylor.scaled(taylor.plus(x, cubic), ops.cast(_TWICE_GELU, y.dtype)))


@by_series("Softplus", of_line=True)
def expanded_softplus(y, x):
    return taylor.softplus(y, x)


@by_series("SoftplusExt")
def expanded_softplus_ext(y, x, beta, threshold):
    z = taylor.scaled(x, beta)
    smooth = taylor.softplus(y, z)
    return (y,) + taylor.selected(z[0] > threshold, x[1:], taylor.divided(smooth[1:], (beta,)))


@by_series("Mish")
def expanded_mish(y, x):
    """x t, t = tanh(softplus(x)) = (1 - q^2) / (1 + q^2), q = sigmoid(-x)."""
    z = taylor.negative(x)
    square = taylor.squared(taylor.logistic(ops.sigmoid(z[0]), z))
    t = taylor.divided(taylor.shifted(taylor.negative(square), 1), taylor.shifted(square, 1))
    return (y,) + taylor.times(x, t)[1:]


@by_series("Elu")
def expanded_elu(y, x, *alpha):
    """exp(x) - 1 below 0."""
    return (y,) + taylor.selected(x[0] > 0, x[1:], taylor.exponential(y + 1, x)[1:])


@by_series("CeLU")
def expanded_celu(y, x, *alpha):
    """alpha (exp(x / alpha) - 1) below 0."""
    a = ops.ones_like(y) * (alpha[0] if len(alpha) else 1)
    z = taylor.divided(x, (a,))
    grown = taylor.exponential(ops.exp(ops.minimum(z[0], ops.zeros_like(y))), z)
    return (y,) + taylor.selected(x[0] > 0, x[1:], taylor.scaled(grown[1:], a))


@by_series("Logit")
def expanded_logit(y, x, eps):
    """log(x / (1 - x)), within what eps leaves."""
    slope = taylor.inverse(taylor.minus(x, taylor.squared(x)))
    out = taylor.integrated(y, x, slope)
    if eps is None or eps < 0:
        return out
    within = ops.cast(ops.logical_and(x[0] >= eps, x[0] <= 1 - eps), y.dtype)
    return (y,) + taylor.scaled(out[1:], within)


@by_series("SeLU")
def expanded_selu(y, x):
    """scale x above 0, scale alpha (exp(x) - 1) below. (The kernel's y has fewer digits.)"""
    grown = ops.cast(_SELU_DOWN, y.dtype) * ops.exp(ops.minimum(x[0], ops.zeros_like(y)))
    return (y,) + taylor.selected(
        x[0] > 0,
        taylor.scaled(x[1:], ops.cast(_SELU_UP, y.dtype)),
        taylor.exponential(grown, x)[1:],
    )


@by_series("Softsign")
def expanded_softsign(y, x):
    """x / (1 + |x|)."""
    return (y,) + taylor.divided(x, taylor.shifted(taylor.scaled(x, ops.sign(x[0])), 1))[1:]


@by_series("HSwish")
def expanded_hswish(y, x):
    """x (x + 3) / 6 between -3 and 3."""
    inner = taylor.scaled(taylor.times(x, taylor.shifted(x, 3)), taylor.quotient_of(1, 6, y.dtype))
    within = ops.cast(ops.logical_and(x[0] > -3, x[0] < 3), y.dtype)
    return (y,) + taylor.selected(x[0] >= 3, x[1:], taylor.scaled(inner[1:], within))


@by_series("Softmax")
def expanded_softmax(y, x, axis):
    """exp(x) over its sum, both divided by the value of the sum, so that they start with y and
    1.
    """
    grown = taylor.exponential(y, x)
    return taylor.divided(grown, taylor.summed(grown, from_end(axis, y.ndim), True))


@by_series("LogSoftmax")
def expanded_log_softmax(y, x, axis):
    """x - log(sum exp(x - m)) - m, m the largest. (The kernel's y has float32's digits in float64,
    too.)
    """
    axis = from_end(axis, y.ndim)
    total = taylor.summed(
        taylor.exponential(ops.exp(x[0] - ops.amax(x[0], axis, True)), x), axis, True
    )
    return (y,) + taylor.minus(x, taylor.integrated(total[0], total, taylor.inverse(total)))[1:]
