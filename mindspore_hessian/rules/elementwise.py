"""Rules of what works entry by entry: arithmetic, powers, comparisons, choosing. (Activations,
special functions and losses have files of their own.)"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr, functional

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import by_formula, pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    SERIES,
    allow,
    by_partials,
    by_slopes,
    chain,
    either,
    joint,
    proportional,
    scaled,
    shifting,
    spread,
    straight,
    sum_or_difference,
    times,
    tuple_first,
    uniform_multiple,
    uniformly,
    value_of,
    widened,
    without_derivative,
)
from mindspore_hessian.rules.kit import (
    COMPARISONS,
    add,
    aligned,
    all_batched,
    any_batched,
    binary,
    binary_with_parameters,
    broadcasting,
    cotangent_second,
    dims_of,
    filled,
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
    tensors_of,
    unary,
    zeros_like,
)
from mindspore_hessian.rules.registry import (
    COPIES,
    batching,
    composition,
    derivative,
    expansion,
    forward,
)
from mindspore_hessian.rules.taylor import by_expansion, by_series, by_two_series

# --- one operand ----------------------------------------------------------------------------------

batching(
    "Muls",
    "Divs",
    "AddScalar",
    "SubScalar",
    "ClampScalar",
    "GreaterEqualScalar",
    "LessScalar",
    "EqScalar",
    "ZerosLikeExt",
    "OnesLikeExt",
    "Conj",
)(unary)
batching(
    "ACosGrad",
    "AcoshGrad",
    "AsinGrad",
    "AsinhGrad",
    "AtanGrad",
    "ReciprocalGrad",
    "SqrtGrad",
    "RsqrtGrad",
    why=COPIES,
    replaces=True,
)(cotangent_second)


@by_formula("InvGrad")
def inv_grad(y, d):
    """y = 1 / x: -d y^2."""
    return -d * y * y


batching("InvGrad", why=COPIES, replaces=True)(cotangent_second)


@derivative(
    "PowTensorScalar",
    replaces=True,
    why="MindSpore's cannot be applied twice: it makes an exponent that it then rejects",
)
def pow_tensor_scalar(prim):
    """d p x^(p - 1), and 0 for p = 0, so that x^2 has a third derivative at 0."""

    def bprop(x, p, out, dout):
        if p == 0:
            return ops.zeros_like(x), 0
        return dout * (p * _compat.pow_tensor_scalar(x, p - 1)), 0

    return bprop


batching("PowTensorScalar")(unary)


# --- two operands ---------------------------------------------------------------------------------

_SLOW = "MindSpore's rule gives an unbatched operand a batch axis of its own: twice the nodes and the compile time"

batching(
    "Add",
    "Sub",
    "Mul",
    "Div",
    "RealDiv",
    "Maximum",
    "Minimum",
    "Atan2",
    *COMPARISONS,
    "Xlogy",
    "Xdivy",
    why=_SLOW,
    replaces=True,
)(binary)
batching("Fmax", "RemainderTensorTensor", "BitwiseAndTensor", "SquaredDifference")(binary)
batching("DivMod")(binary_with_parameters)
batching("Complex")(same_shape(2))


batching(
    "Addcmul",
    "Addcdiv",
    why="MindSpore's batches the factor too, and fails",
    replaces=True,
)(broadcasting)


@batching("ClampTensor")
def batched_clamp(prim, axis_size):
    """(x, low, high), which broadcast to x: one for each sample where they are."""
    usual = broadcasting(prim, axis_size)

    def rule(x_pair, *bounds):
        x, dim = x_pair
        if not any_batched(dims_of(bounds)):
            return usual(x_pair, *bounds)
        return usual((filled(x, dim, axis_size), 0), *bounds)

    return rule


@constexpr
def _one_less(p):
    """p - 1, but 0 for 0, whose power is multiplied by 0."""
    value = _compat.to_numpy(p)
    return Tensor(np.where(value == 0, 0, value - 1), p.dtype)


@derivative("Floor", why="MindSpore's cannot be batched", replaces=True)
@derivative("Trunc", why="MindSpore's cannot be batched", replaces=True)
def step(prim):
    """0, as a function of x."""

    def bprop(x, out, dout):
        return (ops.zeros_like(x),)

    return bprop


@derivative(
    "Pow",
    replaces=True,
    visible=True,
    why="MindSpore's multiplies 0 by 0^-1: x^0, x^1, the third derivative of x^2 are NaN at 0",
)
def power(prim):
    """d p x^(p - 1), but for 0^-1 where p = 0; and d x^p log x, taken as 0 for x <= 0 as MindSpore
    does.
    """

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
    """(cos, sin) of the angle of (x, y): x / hypot would lose digits in its derivative, y^2 /
    hypot^3.
    """

    def bprop(x, y, out, dout):
        angle = ops.atan2(y, x)
        return pull(ops.mul)(mutable(x), ops.cos(angle), dout)[0], pull(ops.mul)(
            mutable(y), ops.sin(angle), dout
        )[0]

    return bprop


batching("Hypot")(binary)


def _divided(x, y, d, share):
    """The share of d to x and the rest to y, added up where one was broadcast, as the gradient of a
    sum is.
    """
    dx, _ = pull(ops.add)(mutable(x), mutable(y), d * share)
    _, dy = pull(ops.add)(mutable(x), mutable(y), d * (1 - share))
    return dx, dy


@by_formula("MaximumGrad", options=2)
def maximum_grad(x, y, d, of_x, of_y):
    """d to the larger one, half to each at a tie."""
    return _divided(x, y, d, (ops.cast(x > y, d.dtype) + ops.cast(x >= y, d.dtype)) / 2)


@by_formula("MinimumGrad", options=2)
def minimum_grad(x, y, d, of_x, of_y):
    """d to the smaller one, half to each at a tie."""
    return _divided(x, y, d, (ops.cast(x < y, d.dtype) + ops.cast(x <= y, d.dtype)) / 2)


@batching("AddN", why=COPIES, replaces=True)
def batched_add_n(prim, axis_size):
    """Sum of a tuple of tensors of one shape: unbatched ones broadcast."""
    prim = primitive(prim)

    def rule(pairs):
        return _add_n(prim, pairs)

    return rule


def _add_n(prim, pairs):
    dims = dims_of(pairs)
    if not any_batched(dims):
        return prim(tensors_of(pairs)), None
    if len(pairs) == 2:
        (x, x_dim), (y, y_dim) = pairs
        x, y = front(x, x_dim), front(y, y_dim)
        return (prim((x, y)) if all_batched(dims) else add(x, y)), 0
    terms = tuple([front(x, dim) for x, dim in pairs])
    if all_batched(dims):
        return prim(terms), 0
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total, 0


# --- choosing -------------------------------------------------------------------------------------

batching(
    "Select",
    why="MindSpore's rule is wrong for nested batches of unequal rank (2.7.2)",
    replaces=True,
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


# --- the logarithm of a sum of exponentials -------------------------------------------------------
# Smooth, but MindSpore writes it with a maximum: at ties its second derivatives are wrong.

_TIES = "MindSpore's has second derivatives 0 where the two are equal"
_OVERFLOW = "MindSpore's adds the exponentials, and loses terms where they overflow"
_NO_KERNEL = "MindSpore has no kernel on CPU for float64, nor a second derivative"
_LOG2 = Tensor(
    math.log(2), ms.float64
)  # MindSpore keeps a Python float in float32, but a Tensor whole


def _by_size(a, b):
    """The larger, and how much the smaller is below it; by selection, whose derivative is right at
    ties.

    Where both are -inf, the difference counts as -inf, so that they add up to -inf.
    """
    first = a >= b
    larger, smaller = ops.where(first, a, b), ops.where(first, b, a)
    nothing = ops.logical_and(
        ops.isinf(larger), larger < 0
    )  # 2.7.2 folds `== -math.inf` of a constant to False
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


# --- forward --------------------------------------------------------------------------------------

forward("Neg", "Muls", "Divs", "Conj")(proportional)
forward("Add", "Sub", "AddExt", "SubExt")(sum_or_difference)
forward("AddN")(tuple_first)
forward("AddScalar", "SubScalar")(shifting)
forward(
    *COMPARISONS,
    "GreaterEqualScalar",
    "LessScalar",
    "EqScalar",
    "LogicalAnd",
    "LogicalOr",
    "LogicalNot",
    "LogicalXor",
    "IsNan",
    "IsInf",
    "IsFinite",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Rint",
    "Trunc",
    "ZerosLike",
    "OnesLike",
    "ZerosLikeExt",
    "OnesLikeExt",
    "NewOnes",
    "NewZeros",
)(without_derivative)


@forward("Cast")
@straight
@allow(0)
def pushed_cast(prim, usual):
    """In another floating-point type; integers and bools carry nothing."""

    def rule(x_pair, dtype_pair):
        v, j, l = x_pair[0]  # noqa: E741
        y = prim(v, dtype_pair[0])
        if ops.is_floating_point(y):
            return ((y, prim(j, dtype_pair[0]), prim(l, dtype_pair[0])), FORWARD)
        return y, None

    return rule


@forward("Mul")
@uniformly(either(uniform_multiple))
@allow(0, 1)
def pushed_mul(prim, usual):
    """a b."""

    def rule(a_pair, b_pair):
        if b_pair[1] != FORWARD:
            return (_scaled(a_pair[0], b_pair[0]), FORWARD)
        if a_pair[1] != FORWARD:
            return (_scaled(b_pair[0], a_pair[0]), FORWARD)
        return (times(a_pair[0], b_pair[0]), FORWARD)

    return rule


def _scaled(a, c):
    if isinstance(c, Tensor):
        return scaled(a, c)
    return (mul(a[0], c), mul(a[1], c), mul(a[2], c))


@forward("Div", "RealDiv")
@uniformly(either(uniform_multiple, first_only=True))
@allow(0, 1)
def pushed_div(prim, usual):
    """y = a / b: y' = (a' - y b') / b, and y'' = (a'' - 2 y' b' - y b'') / b."""

    def rule(a_pair, b_pair):
        b = value_of(b_pair)
        y = prim(value_of(a_pair), b)
        if b_pair[1] != FORWARD:
            a = a_pair[0]
            return ((y, prim(spread(a[1], y), b), prim(widened(a[2], y), b)), FORWARD)
        k, m = aligned(b_pair[0][1], 0, y.ndim), b_pair[0][2]
        j, l = -mul(k, y), -mul(m, y)  # noqa: E741
        if a_pair[1] == FORWARD:
            j, l = ops.add(aligned(a_pair[0][1], 0, y.ndim), j), ops.add(a_pair[0][2], l)  # noqa: E741
        j = prim(j, b)
        return ((y, j, prim(sub(l, 2 * mul(j, k).sum(0)), b)), FORWARD)

    return rule


@by_slopes("PowTensorScalar")
def pow_slopes(x, y, p):
    """p x^(p - 1) and p (p - 1) x^(p - 2); a power that is multiplied by 0 is left out."""
    if p == 0:
        return ops.zeros_like(x)
    if p == 1:
        return ops.ones_like(x)
    first = p * _compat.pow_tensor_scalar(x, p - 1)
    if p == 2:
        return first, 2 * ops.ones_like(x)
    return first, p * (p - 1) * _compat.pow_tensor_scalar(x, p - 2)


@by_partials("Pow")
def pow_partials(a, b, y):
    """Of a^b; a power that is multiplied by 0 counts as 1, the logarithm of what is not positive as
    0.
    """
    b = b if isinstance(b, Tensor) else ops.cast(b, y.dtype)
    b = ops.cast(b, y.dtype)
    a = ops.cast(a, y.dtype) if isinstance(a, Tensor) else ops.zeros_like(b) + a
    logarithm = ops.log(ops.where(a > 0, a, ops.ones_like(a)))
    once, twice = b, b * (b - 1)
    lower = pow_(a, ops.where(once == 0, ops.zeros_like(b), b - 1))
    lowest = pow_(a, ops.where(twice == 0, ops.zeros_like(b), b - 2))
    return (
        once * lower,
        y * logarithm,
        twice * lowest,
        lower * (1 + b * logarithm),
        y * logarithm * logarithm,
    )


@forward("PowScalarTensor")
@allow(1)
def pushed_pow_scalar(prim, usual):
    """c^x: log(c) y and log(c)^2 y."""

    def rule(c_pair, x_pair):
        a = x_pair[0]
        y = prim(c_pair[0], a[0])
        logarithm = ops.log(ops.zeros_like(a[0]) + c_pair[0])
        first = mul(logarithm, y)
        return (chain(a, y, first, mul(logarithm, first)), FORWARD)

    return rule


@by_slopes("Square")
def square_slopes(x, y):
    return 2 * x, 2 * ops.ones_like(x)


@by_slopes("Sqrt")
def sqrt_slopes(x, y):
    first = 0.5 / y
    return first, -0.5 * first / x


@by_slopes("Rsqrt")
def rsqrt_slopes(x, y):
    first = -0.5 * y * y * y
    return first, -1.5 * first * y * y


@by_slopes("Reciprocal", "Inv")
def reciprocal_slopes(x, y):
    return -y * y, 2 * y * y * y


@by_slopes("Exp")
def exp_slopes(x, y):
    return y, y


@by_slopes("Expm1")
def expm1_slopes(x, y):
    return y + 1, y + 1


@by_slopes("Log")
def log_slopes(x, y):
    first = ops.reciprocal(x)
    return first, -first * first


@by_slopes("Log1p")
def log1p_slopes(x, y):
    first = ops.reciprocal(1 + x)
    return first, -first * first


@by_slopes("NanToNum", kinked=True)
def nan_to_num_slope(x, y, *options):
    return ops.cast(ops.isfinite(x), x.dtype)


@by_slopes("Abs", kinked=True)
def abs_slopes(x, y):
    """The sign."""
    return ops.sign(x)


@by_slopes("Sin")
def sin_slopes(x, y):
    return ops.cos(x), -y


@by_slopes("Cos")
def cos_slopes(x, y):
    return -ops.sin(x), -y


@by_slopes("Tan")
def tan_slopes(x, y):
    first = 1 + y * y
    return first, 2 * y * first


@by_slopes("Asin", "AsinExt")
def asin_slopes(x, y):
    first = ops.rsqrt(1 - x * x)
    return first, x * first * first * first


@by_slopes("ACos", "AcosExt")
def acos_slopes(x, y):
    first = ops.rsqrt(1 - x * x)
    return -first, -x * first * first * first


@by_slopes("Atan", "AtanExt")
def atan_slopes(x, y):
    first = ops.reciprocal(1 + x * x)
    return first, -2 * x * first * first


@by_slopes("Sinh")
def sinh_slopes(x, y):
    return ops.cosh(x), y


@by_slopes("Cosh")
def cosh_slopes(x, y):
    return ops.sinh(x), y


@by_slopes("Asinh", "AsinhExt")
def asinh_slopes(x, y):
    first = ops.rsqrt(1 + x * x)
    return first, -x * first * first * first


@by_slopes("Acosh", "AcoshExt")
def acosh_slopes(x, y):
    first = ops.rsqrt(x * x - 1)
    return first, -x * first * first * first


@by_slopes("Atanh")
def atanh_slopes(x, y):
    first = ops.reciprocal(1 - x * x)
    return first, 2 * x * first * first


forward("FloorDiv")(without_derivative)


@forward("Heaviside")
@straight
@allow(0)
def pushed_step(prim, usual):
    """Constant but for the step."""
    return without_derivative(prim, usual)


@by_partials("Mod", "FloorMod", "TruncateMod", "RemainderTensorTensor", kinked=True)
def remainder_partials(a, b, y):
    """a less a multiple of b that is constant but for steps."""
    return ops.ones_like(y), -ops.round((a - y) / b)


@forward("DivMod")
@allow(0, 1)
def pushed_rounded_quotient(prim, usual):
    """a / b, rounded by a mode, or as it is."""
    quotient, constant = pushed_div(ops.Div(), usual), without_derivative(prim, usual)

    def rule(a_pair, b_pair, mode_pair):
        if mode_pair[0] is None:
            return quotient(a_pair, b_pair)
        return constant(a_pair, b_pair, mode_pair)

    return rule


def _both(rule, a_pair, b_pair, otherwise):
    """A rule of two inputs, of which perhaps none is carried forward."""
    if a_pair[1] == FORWARD or b_pair[1] == FORWARD:
        return rule(a_pair, b_pair)
    return otherwise(a_pair[0], b_pair[0]), None


def _times_constant(pair, c):
    if pair[1] == FORWARD:
        return (_scaled(pair[0], c), FORWARD)
    return pair[0] * c, None


def _with_product(combine):
    """x + c a b, or x + c a / b."""

    @allow(0, 1, 2)
    def getter(prim, usual):
        combined = combine(ops.Mul() if combine is pushed_mul else ops.Div(), usual)
        summed, plain = sum_or_difference(ops.Add(), usual), ops.mul
        if combine is not pushed_mul:
            plain = ops.div

        def rule(x_pair, a_pair, b_pair, c_pair):
            term = _both(combined, a_pair, b_pair, plain)
            return summed(x_pair, _times_constant(term, c_pair[0]))

        return rule

    return getter


forward("Addcmul")(_with_product(pushed_mul))
forward("Addcdiv")(_with_product(pushed_div))


@by_partials("Xdivy")
def xdivy_partials(a, b, y):
    inverse = ops.reciprocal(b)
    ratio = a * inverse
    square = inverse * inverse
    return inverse, -ratio * inverse, ops.zeros_like(y), -square, 2 * ratio * square


@by_partials("Maximum", kinked=True)
def maximum_partials(a, b, y):
    """1 to the larger one, half to each at a tie, as `maximum_grad` has it."""
    share = (ops.cast(a > b, y.dtype) + ops.cast(a >= b, y.dtype)) / 2
    return share, 1 - share


@by_partials("Fmax", kinked=True)
def fmax_partials(a, b, y):
    """The same, and all to what is no NaN."""
    return _share_beside_nan(a, b, maximum_partials(a, b, y)[0])


@by_partials("Fmin", kinked=True)
def fmin_partials(a, b, y):
    return _share_beside_nan(a, b, minimum_partials(a, b, y)[0])


def _share_beside_nan(a, b, share):
    share = ops.where(ops.isnan(b), ops.ones_like(share), share)
    share = ops.where(ops.isnan(a), ops.zeros_like(share), share)
    return share, 1 - share


@by_partials("Minimum", kinked=True)
def minimum_partials(a, b, y):
    """1 to the smaller one, half to each at a tie."""
    share = (ops.cast(a < b, y.dtype) + ops.cast(a <= b, y.dtype)) / 2
    return share, 1 - share


@by_slopes("ClampScalar", "ClampTensor", kinked=True)
def clamp_slopes(x, y, lowest, highest):
    """1 where x is kept."""
    return ops.cast(x == y, x.dtype)


@by_partials("Atan2")
def atan2_partials(a, b, y):
    square = a * a + b * b
    fa, fb = b / square, -a / square
    mixed = fb * fb - fa * fa
    return fa, fb, 2 * fa * fb, mixed, -2 * fa * fb


@by_partials("Hypot")
def hypot_partials(a, b, y):
    """The cosine and the sine of the angle; (sin^2, -sin cos, cos^2) / y."""
    fa, fb = a / y, b / y
    return fa, fb, fb * fb / y, -fa * fb / y, fa * fa / y


@by_partials("SquaredDifference")
def squared_difference_partials(a, b, y):
    twice = 2 * (a - b)
    two = 2 * ops.ones_like(twice)
    return twice, -twice, two, -two, two


@by_partials("Xlogy")
def xlogy_partials(a, b, y):
    ratio = a / b
    return ops.log(b), ratio, ops.zeros_like(y), ops.reciprocal(b), -ratio / b


@constexpr
def _power(x, y):
    return x**y


@composition(
    "mindspore.ops.composite.multitype_ops.pow_impl._pow_scalar",
    why="MindSpore's power of integers is an integer: 10 ** -3 and n ** -1 are 0",
)
def power_of_numbers(x, y):
    """Python's, where the numbers are known as the graph is compiled."""
    if _compat.is_constant(x) and _compat.is_constant(y):
        return _power(x, y)
    return functional.scalar_pow(x, y)


_HALT, _STOP = ops.Identity(), ops.StopGradient()


@composition(
    "mindspore.ops.stop_gradient",
    why="MindSpore's vmap pass goes past StopGradient without asking for a rule, so a forward pass "
    "does",
)
def stop_gradient(value):
    """The same, behind an Identity, which a forward pass stops at. (`Captures.stops_gradients`
    finds other ones.)
    """
    if isinstance(value, Tensor):
        return _STOP(_HALT(value))
    return _STOP(value)


forward("Identity", why="it marks a stop_gradient")(without_derivative)


forward("Select")(joint(1, 2))


@forward("MaskedFill", "MaskedFillScalar")
@straight
@allow(0)
def pushed_masked_fill(prim, usual):
    """x where the mask is false, 0 for its derivatives where not."""

    def rule(x_pair, mask_pair, value_pair):
        v, j, l = x_pair[0]  # noqa: E741
        nothing = zeros_like(value_pair[0]) if isinstance(value_pair[0], Tensor) else 0.0
        k, dim = usual((j, 0), mask_pair, (nothing, None))
        return (
            (prim(v, mask_pair[0], value_pair[0]), front(k, dim), prim(l, mask_pair[0], nothing)),
            FORWARD,
        )

    return rule


# --- Taylor coefficients --------------------------------------------------------------------------


@expansion("Mul")
@taylor.on_lines((0,), (1,))
@allow(0, 1)
def expanded_mul(prim, usual):
    """a b."""

    def rule(a_pair, b_pair):
        if b_pair[1] != SERIES:
            return taylor.times_constant(prim, a_pair[0], b_pair[0])
        if a_pair[1] != SERIES:
            return taylor.times_constant(prim, b_pair[0], a_pair[0])
        return taylor.joined(taylor.times(taylor.coefficients(a_pair), taylor.coefficients(b_pair)))

    return rule


@expansion("Div", "RealDiv")
@taylor.on_lines((0,))
@allow(0, 1)
def expanded_div(prim, usual):
    """a / b."""

    def rule(a_pair, b_pair):
        if b_pair[1] != SERIES:
            return taylor.times_constant(prim, a_pair[0], b_pair[0])
        return taylor.joined(
            taylor.divided(taylor.coefficients(a_pair), taylor.coefficients(b_pair))
        )

    return rule


@expansion("DivMod")
@allow(0, 1)
def expanded_rounded_quotient(prim, usual):
    """a / b, rounded by a mode, or as it is."""
    quotient = expanded_div(ops.Div(), usual)
    constant = taylor.of_forward(without_derivative)(prim, usual)

    def rule(a_pair, b_pair, mode_pair):
        if mode_pair[0] is None:
            return quotient(a_pair, b_pair)
        return constant(a_pair, b_pair, mode_pair)

    return rule


def _expanded_with(combine):
    """x + c a b, or x + c a / b."""

    @allow(0, 1, 2)
    def getter(prim, usual):
        def rule(x_pair, a_pair, b_pair, c_pair):
            term = combine(taylor.coefficients(a_pair), taylor.coefficients(b_pair))
            out = taylor.plus(taylor.coefficients(x_pair), taylor.scaled(term, c_pair[0]))
            return taylor.joined(taylor.broadcast(out, out[0]))

        return rule

    return getter


expansion("Addcmul")(_expanded_with(taylor.times))
expansion("Addcdiv")(_expanded_with(taylor.divided))


@by_two_series("Xdivy")
def expanded_xdivy(y, a, b):
    return taylor.broadcast((y,) + taylor.divided(a, b)[1:], y)


@by_series("PowTensorScalar")
def expanded_pow_tensor_scalar(y, x, p):
    return taylor.power(y, x, p)


@expansion("Pow")
@allow(0, 1)
def expanded_pow(prim, usual):
    """a^b, as exp(b log a) where b is carried."""

    def rule(a_pair, b_pair):
        a, b = taylor.coefficients(a_pair), taylor.coefficients(b_pair)
        y = prim(a[0], b[0])
        if len(b) == 1:
            return taylor.joined(taylor.power(y, taylor.broadcast(a, y), b[0]))
        base = a[0] if isinstance(a[0], Tensor) else zeros_like(b[0]) + a[0]
        logarithm = (ops.log(base),)
        if len(a) > 1:
            logarithm = taylor.integrated(logarithm[0], a, taylor.inverse(a))
        return taylor.joined(taylor.exponential(y, taylor.times(logarithm, b)))

    return rule


@expansion("PowScalarTensor")
@allow(1)
def expanded_pow_scalar(prim, usual):
    """c^x = exp(log(c) x)."""

    def rule(c_pair, x_pair):
        x = taylor.coefficients(x_pair)
        logarithm = ops.log(zeros_like(x[0]) + c_pair[0])
        return taylor.joined(
            taylor.exponential(prim(c_pair[0], x[0]), taylor.times((logarithm,), x))
        )

    return rule


@by_series("Square")
def expanded_square(y, x):
    return taylor.squared(x)


@by_series("Sqrt")
def expanded_sqrt(y, x):
    return taylor.root(y, x)


@by_series("Rsqrt")
def expanded_rsqrt(y, x):
    return (y,) + taylor.inverse(taylor.root(ops.sqrt(x[0]), x))[1:]


@by_series("Reciprocal", "Inv")
def expanded_reciprocal(y, x):
    return (y,) + taylor.inverse(x)[1:]


@by_series("Exp", of_line=True)
def expanded_exp(y, x):
    return taylor.exponential(y, x)


@by_series("Expm1", of_line=True)
def expanded_expm1(y, x):
    return (y,) + taylor.exponential(y + 1, x)[1:]


@by_series("Log", of_line=True)
def expanded_log(y, x):
    return taylor.integrated(y, x, taylor.inverse(x))


@by_series("Log1p")
def expanded_log1p(y, x):
    return taylor.integrated(y, x, taylor.inverse(taylor.shifted(x, 1)))


@by_series("Sin", of_line=True)
def expanded_sin(y, x):
    s, _ = taylor.circular(y, ops.cos(x[0]), x, -1)
    return s


@by_series("Cos", of_line=True)
def expanded_cos(y, x):
    _, c = taylor.circular(ops.sin(x[0]), y, x, -1)
    return c


@by_series("Tan", of_line=True)
def expanded_tan(y, x):
    return taylor.by_square(y, 1 + y * y, x, 1)


@by_series("Sinh", of_line=True)
def expanded_sinh(y, x):
    s, _ = taylor.circular(y, ops.cosh(x[0]), x, 1)
    return s


@by_series("Cosh", of_line=True)
def expanded_cosh(y, x):
    _, c = taylor.circular(ops.sinh(x[0]), y, x, 1)
    return c


def _over_root(square):
    """1 / sqrt of a series."""
    return taylor.inverse(taylor.root(ops.sqrt(square[0]), square))


def _from_one(x, sign):
    """1 - x^2, or for 1 as the sign 1 + x^2."""
    square = taylor.squared(x)
    return taylor.shifted(square if sign == 1 else taylor.negative(square), 1)


@by_series("Asin", "AsinExt")
def expanded_asin(y, x):
    return taylor.integrated(y, x, _over_root(_from_one(x, -1)))


@by_series("ACos", "AcosExt")
def expanded_acos(y, x):
    return taylor.integrated(y, taylor.negative(x), _over_root(_from_one(x, -1)))


@by_series("Atan", "AtanExt")
def expanded_atan(y, x):
    return taylor.integrated(y, x, taylor.inverse(_from_one(x, 1)))


@by_series("Asinh", "AsinhExt")
def expanded_asinh(y, x):
    return taylor.integrated(y, x, _over_root(_from_one(x, 1)))


@by_series("Acosh", "AcoshExt")
def expanded_acosh(y, x):
    return taylor.integrated(y, x, _over_root(taylor.shifted(taylor.squared(x), -1)))


@by_series("Atanh")
def expanded_atanh(y, x):
    return taylor.integrated(y, x, taylor.inverse(_from_one(x, -1)))


@by_two_series("SquaredDifference")
def expanded_squared_difference(y, a, b):
    return taylor.squared(taylor.minus(a, b))


@by_two_series("Hypot")
def expanded_hypot(y, a, b):
    return taylor.root(y, taylor.plus(taylor.squared(a), taylor.squared(b)))


@by_two_series("Xlogy")
def expanded_xlogy(y, a, b):
    """a log b."""
    if len(b) == 1:
        return (y,) + taylor.times(a, (ops.log(b[0]),))[1:]
    return (y,) + taylor.times(a, taylor.integrated(ops.log(b[0]), b, taylor.inverse(b)))[1:]


@by_two_series("Atan2")
def expanded_atan2(y, a, b):
    """(b a' - a b') / (a^2 + b^2)."""
    scale = taylor.inverse(taylor.plus(taylor.squared(a), taylor.squared(b)))
    if len(b) == 1:
        return taylor.integral(
            y, taylor.times(taylor.derivative_of(a), taylor.times(b, scale))[: len(a) - 1]
        )
    if len(a) == 1:
        return taylor.integral(
            y,
            taylor.times(taylor.derivative_of(b), taylor.negative(taylor.times(a, scale)))[
                : len(b) - 1
            ],
        )
    slope = taylor.minus(
        taylor.times(taylor.derivative_of(a), b), taylor.times(taylor.derivative_of(b), a)
    )
    return taylor.integral(y, taylor.times(slope, scale)[: len(a) - 1])


@by_expansion("Lerp", places=(0, 1, 2), entrywise=True)
def expanded_lerp(prim):
    """a + w (b - a)."""

    def function(a, b, w):
        return (prim(a[0], b[0], w[0]),) + taylor.plus(a, taylor.times(w, taylor.minus(b, a)))[1:]

    return function
