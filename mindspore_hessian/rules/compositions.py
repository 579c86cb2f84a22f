"""Functions of MindSpore that are written in Python, without a primitive that a rule could sit on, written better.

Smooth functions all, but MindSpore writes them with a maximum, an absolute value or a square root that is not: at ties
their second derivatives are wrong. MindSpore compiles what is here instead, however the function is reached.
"""
from __future__ import annotations

import math

import mindspore as ms
from mindspore import Tensor, ops

from mindspore_hessian.rules._define import Composition

_LOG2 = Tensor(math.log(2), ms.float64)  # MindSpore keeps a Python float in float32, but a Tensor whole


def _by_size(a, b):
    """The larger, and how much the smaller is below it; by selection, whose derivative is right at ties.

    Where both are -inf, the difference counts as -inf, so that they add up to -inf.
    """
    first = a >= b
    larger, smaller = ops.where(first, a, b), ops.where(first, b, a)
    nothing = ops.logical_and(ops.isinf(larger), larger < 0)  # 2.7.2 folds `== -math.inf` of a constant to False
    return larger, smaller - ops.select(nothing, ops.zeros_like(larger), larger)


def _check_floats(a, b):
    if not ops.is_floating_point(a) or not ops.is_floating_point(b):
        raise TypeError("logaddexp and logaddexp2 take Tensors of floating-point numbers")


def logaddexp(input, other):  # noqa: A002 -- as MindSpore calls it
    """max + log(1 + exp(min - max))."""
    _check_floats(input, other)
    larger, below = _by_size(input, other)
    return larger + ops.log1p(ops.exp(below))


def logaddexp2(input, other):  # noqa: A002
    """max + log2(1 + 2^(min - max))."""
    _check_floats(input, other)
    larger, below = _by_size(input, other)
    log2 = ops.cast(_LOG2, below.dtype)
    return larger + ops.log1p(ops.exp(log2 * below)) / log2


def var_mean(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The mean square of the deviations, and the mean."""
    axes = () if axis is None else axis
    middle = ops.mean(input, axes, True)
    deviation = input - middle
    mean = ops.mean(input, axes, keepdims)
    count = input.size // mean.size
    return (deviation * deviation).sum(axis, keepdims=keepdims) / (count - int(ddof)), mean


def var(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The mean square of the deviations."""
    return var_mean(input, axis, ddof, keepdims)[0]


def std_mean(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The root of the variance, and the mean."""
    variance, mean = var_mean(input, axis, ddof, keepdims)
    return ops.sqrt(variance), mean


def std(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The root of the variance."""
    return ops.sqrt(var_mean(input, axis, ddof, keepdims)[0])


def moments(self, x):
    """Mean and variance, the mean in it differentiated like the other."""
    variance, mean = var_mean(ops.cast(x, ms.float32), self.axis, 0, self.keep_dims)
    return ops.cast(mean, x.dtype), ops.cast(variance, x.dtype)


def numpy_logaddexp(x1, x2, dtype=None):
    """`logaddexp`, in another dtype if asked."""
    out = logaddexp(x1, x2)
    return out if dtype is None else ops.cast(out, dtype)


def numpy_logaddexp2(x1, x2, dtype=None):
    """`logaddexp2`, in another dtype if asked."""
    out = logaddexp2(x1, x2)
    return out if dtype is None else ops.cast(out, dtype)


_TIES = "MindSpore's has second derivatives 0 where the two are equal"
_OVERFLOW = "MindSpore's adds the exponentials, and loses terms where they overflow"
_MISSING = "MindSpore has no kernel on CPU for float64, nor a second derivative"
_ROOT = "MindSpore's takes the root first: NaN where all values are equal"

RULES: tuple[Composition, ...] = (
    Composition("mindspore.ops.logaddexp", logaddexp, _TIES),
    Composition("mindspore.ops.logaddexp2", logaddexp2, _TIES),
    Composition("mindspore.mint.logaddexp", logaddexp, _MISSING),
    Composition("mindspore.mint.logaddexp2", logaddexp2, _MISSING),
    Composition("mindspore.numpy.logaddexp", numpy_logaddexp, _OVERFLOW),
    Composition("mindspore.numpy.logaddexp2", numpy_logaddexp2, _OVERFLOW),
    Composition("mindspore.ops.var", var, _ROOT),
    Composition("mindspore.ops.var_mean", var_mean, _ROOT),
    Composition("mindspore.nn.Moments.construct", moments, "MindSpore's stops the gradient of the mean: the first "
                "derivative of the variance is right, the second is not"),
    Composition("mindspore.ops.std", std, "MindSpore's computes float64 in float32"),
    Composition("mindspore.ops.std_mean", std_mean, "MindSpore's computes float64 in float32"),
)
