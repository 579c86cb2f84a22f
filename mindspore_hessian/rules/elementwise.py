"""Rules of what works entry by entry: arithmetic, powers, comparisons, choosing. (Activations, special functions and
losses have files of their own.)"""
from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.formula import by_formula, pull
from mindspore_hessian.rules.kit import (
    aligned,
    all_batched,
    any_batched,
    binary,
    broadcasting,
    cotangent_second,
    dims_of,
    front,
    largest,
    mul,
    ones_like,
    pow_,
    primitive,
    same_shape,
    sample_rank,
    select,
    sub,
    unary,
    zeros_like,
)
from mindspore_hessian.rules.registry import COPIES, batching, composition, derivative

# --- one operand ------------------------------------------------------------------------------------------------

batching("Muls", "Divs", "AddScalar", "SubScalar", "ClampScalar", "GreaterEqualScalar", "LessScalar", "EqScalar",
         "ZerosLikeExt", "OnesLikeExt", "Conj")(unary)
batching("ACosGrad", "AcoshGrad", "AsinGrad", "AsinhGrad", "AtanGrad", "ReciprocalGrad", "SqrtGrad", "RsqrtGrad",
         why=COPIES, replaces=True)(cotangent_second)


@by_formula("InvGrad")
def inv_grad(y, d):
    """y = 1 / x: -d y^2."""
    return -d * y * y


batching("InvGrad", why=COPIES, replaces=True)(cotangent_second)


@derivative("PowTensorScalar", replaces=True,
            why="MindSpore's cannot be applied twice: it makes an exponent that it then rejects")
def pow_tensor_scalar(prim):
    """d p x^(p - 1), and 0 for p = 0, so that x^2 has a third derivative at 0."""
    def bprop(x, p, out, dout):
        if p == 0:
            return ops.zeros_like(x), 0
        return dout * (p * _compat.pow_tensor_scalar(x, p - 1)), 0
    return bprop


batching("PowTensorScalar")(unary)


# --- two operands -----------------------------------------------------------------------------------------------

_SLOW = "MindSpore's rule gives an unbatched operand a batch axis of its own: twice the nodes and the compile time"

batching("Add", "Sub", "Mul", "Div", "RealDiv", "Maximum", "Minimum", "Atan2", "Greater", "GreaterEqual", "Less",
         "LessEqual", "Equal", "NotEqual", "Xlogy", "Xdivy", why=_SLOW, replaces=True)(binary)
batching("Fmax", "DivMod", "BitwiseAndTensor", "SquaredDifference")(binary)
batching("Complex")(same_shape(2))


@constexpr
def _one_less(p):
    """p - 1, but 0 for 0, whose power is multiplied by 0."""
    value = _compat.to_numpy(p)
    return Tensor(np.where(value == 0, 0, value - 1), p.dtype)


@derivative("Pow", replaces=True, visible=True,
            why="MindSpore's multiplies 0 by 0^-1: x^0, x^1, the third derivative of x^2 are NaN at 0")
def power(prim):
    """d p x^(p - 1), but for 0^-1 where p = 0; and d x^p log x, taken as 0 for x <= 0 as MindSpore does."""
    def bprop(x, p, out, dout):
        if _compat.is_constant(p) and p.ndim == 0:
            return mul(dout, mul(pow_(x, _one_less(p)), p)), zeros_like(p)
        lower = select(ops.logical_and(x == 0, p == 0), zeros_like(out), sub(p, ones_like(out)))
        logarithm = ops.log(select(x > 0, x, ones_like(x)))
        # a product's gradient adds up what was broadcast
        dx = pull(ops.mul)(mutable(x), p * pow_(x, lower), dout)[0]
        dp = pull(ops.mul)(mutable(p), out * logarithm, dout)[0]
        return dx, dp
    return bprop


batching("Pow", why=_SLOW, replaces=True)(binary)


@derivative("Hypot", why="MindSpore's computes float64 in float32", replaces=True)
def hypot(prim):
    """(cos, sin) of the angle of (x, y): x / hypot would lose digits in its derivative, y^2 / hypot^3."""
    def bprop(x, y, out, dout):
        angle = ops.atan2(y, x)
        return pull(ops.mul)(mutable(x), ops.cos(angle), dout)[0], pull(ops.mul)(mutable(y), ops.sin(angle), dout)[0]
    return bprop


batching("Hypot")(binary)


def _shared(x, y, d, share):
    """The share of d to x and the rest to y, added up where one was broadcast, as the gradient of a sum is."""
    to_x = pull(ops.add)(mutable(x), mutable(y), d * share)[0]
    return to_x, pull(ops.add)(mutable(x), mutable(y), d * (1 - share))[1]


@by_formula("MaximumGrad", options=2)
def maximum_grad(x, y, d, of_x, of_y):
    """d to the larger one, half to each at a tie."""
    return _shared(x, y, d, (ops.cast(x > y, d.dtype) + ops.cast(x >= y, d.dtype)) / 2)


@by_formula("MinimumGrad", options=2)
def minimum_grad(x, y, d, of_x, of_y):
    """d to the smaller one, half to each at a tie."""
    return _shared(x, y, d, (ops.cast(x < y, d.dtype) + ops.cast(x <= y, d.dtype)) / 2)


@batching("AddN", why=COPIES, replaces=True)
def batched_add_n(prim, axis_size):
    """Sum of a tuple of tensors of one shape: unbatched ones broadcast."""
    prim = primitive(prim)

    def rule(pairs):
        terms = tuple([front(x, dim) for x, dim in pairs])
        if all_batched(dims_of(pairs)):
            return prim(terms), 0
        if not any_batched(dims_of(pairs)):
            return prim(terms), None
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total, 0

    return rule


# --- choosing ---------------------------------------------------------------------------------------------------

batching("Select", why="MindSpore's rule is wrong for nested batches of unequal rank (2.7.2)", replaces=True
         )(broadcasting)


@batching("MaskedFill", why="MindSpore's rule fails where mask and tensor broadcast", replaces=True)
@batching("MaskedFillScalar")
def batched_masked_fill(prim, axis_size):
    """x where the mask is false, else a number or a tensor of no axes."""
    prim = primitive(prim)

    def rule(x_pair, mask_pair, value_pair):
        x, x_dim = x_pair
        mask, mask_dim = mask_pair
        value, value_dim = value_pair
        if x_dim is None and mask_dim is None and value_dim is None:
            return prim(x, mask, value), None
        rank = largest((sample_rank(x, x_dim), sample_rank(mask, mask_dim)))
        value = aligned(ops.cast(value, x.dtype), value_dim, rank)
        return ops.select(aligned(mask, mask_dim, rank), value, aligned(x, x_dim, rank)), 0

    return rule


# --- the logarithm of a sum of exponentials ---------------------------------------------------------------------
# Smooth, but MindSpore writes it with a maximum: at ties its second derivatives are wrong.

_TIES = "MindSpore's has second derivatives 0 where the two are equal"
_OVERFLOW = "MindSpore's adds the exponentials, and loses terms where they overflow"
_NO_KERNEL = "MindSpore has no kernel on CPU for float64, nor a second derivative"
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


@composition("mindspore.ops.logaddexp", why=_TIES)
@composition("mindspore.mint.logaddexp", why=_NO_KERNEL)
def logaddexp(input, other):  # noqa: A002 -- as MindSpore calls it
    """max + log(1 + exp(min - max))."""
    _check_floats(input, other)
    larger, below = _by_size(input, other)
    return larger + ops.log1p(ops.exp(below))


@composition("mindspore.ops.logaddexp2", why=_TIES)
@composition("mindspore.mint.logaddexp2", why=_NO_KERNEL)
def logaddexp2(input, other):  # noqa: A002
    """max + log2(1 + 2^(min - max))."""
    _check_floats(input, other)
    larger, below = _by_size(input, other)
    log2 = ops.cast(_LOG2, below.dtype)
    return larger + ops.log1p(ops.exp(log2 * below)) / log2


@composition("mindspore.numpy.logaddexp", why=_OVERFLOW)
def numpy_logaddexp(x1, x2, dtype=None):
    """`logaddexp`, in another dtype if asked."""
    out = logaddexp(x1, x2)
    return out if dtype is None else ops.cast(out, dtype)


@composition("mindspore.numpy.logaddexp2", why=_OVERFLOW)
def numpy_logaddexp2(x1, x2, dtype=None):
    """`logaddexp2`, in another dtype if asked."""
    out = logaddexp2(x1, x2)
    return out if dtype is None else ops.cast(out, dtype)
