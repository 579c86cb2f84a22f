"""Rules of what goes along axes: sums, products, extremes, running sums and products, variances."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian._errors import MissingRuleError
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.elementwise import logaddexp
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    by_composition,
    from_end,
    linear,
    options_of,
    straight,
    times,
    without_derivative,
)
from mindspore_hessian.rules.kit import (
    along_axis,
    attributes_of,
    axis_at,
    copied_to,
    each,
    front,
    one_tensor,
    paired,
    primitive,
    put,
    reduction,
    reshape,
    shifted,
    unpaired,
    zeros_like,
)
from mindspore_hessian.rules.registry import (
    FAILS_IN_GRADIENTS,
    REWRITTEN,
    batching,
    composition,
    derivative,
    expansion,
    forward,
)
from mindspore_hessian.rules.taylor import by_expansion, by_series

# --- sums -----------------------------------------------------------------------------------------

batching("SumExt", "MeanExt")(reduction)
batching("CumSum")(along_axis)


# --- products -------------------------------------------------------------------------------------


def _products_before(x):
    """Along the last axis, the product of all elements before each: log2(n) multiplications, no
    division.
    """
    x = ops.concat((ops.ones_like(x[:, :1]), x[:, :-1]), 1)
    step = 1
    while step < x.shape[1]:
        x = x * ops.concat((ops.ones_like(x[:, :step]), x[:, :-step]), 1)
        step = 2 * step
    return x


@constexpr
def _reduced_last(rank, axis):
    """A permutation that puts the reduced axes last, its inverse, and how many there are; no axis
    means all.
    """
    axes = range(rank) if axis is None or axis == () else [axis] if isinstance(axis, int) else axis
    axes = sorted(a % rank for a in axes)
    order = [a for a in range(rank) if a not in axes] + axes
    return tuple(order), tuple(order.index(a) for a in range(rank)), len(axes)


def _prod_gradient(x, axis, dout):
    """d times the product of the others, as the product before times the product after: right at
    zeros too.
    """
    if x.ndim == 0:
        return dout
    order, back, count = _reduced_last(x.ndim, axis)
    moved = ops.transpose(x, order)
    rows = moved.reshape(dout.size, -1)
    after = ops.flip(_products_before(ops.flip(rows, (1,))), (1,))
    dx = dout.reshape(-1, 1).astype(x.dtype) * _products_before(rows) * after
    return ops.transpose(dx.reshape(moved.shape), back)


@derivative("ReduceProd", why="MindSpore's divides by x: NaN at zeros", replaces=True)
def reduce_prod(prim):
    """ReduceProd(x, axis, keep_dims)."""

    def bprop(x, axis, keep_dims, out, dout):
        return _prod_gradient(x, axis, dout), 0, 0

    return bprop


@derivative("ProdExt", why="MindSpore's third derivative is silently wrong", replaces=True)
def prod_ext(prim):
    """ProdExt(x, axis, keep_dims, dtype), which ops.prod and mint.prod use."""

    def bprop(x, axis, keep_dims, dtype, out, dout):
        return _prod_gradient(x, axis, dout), 0, 0, 0

    return bprop


@constexpr
def _kept_shape(shape, keep_dims):
    return (shape[0],) + (1,) * (len(shape) - 1) * keep_dims


@batching("ProdExt")
def batched_product(prim, axis_size):
    """ProdExt(x, axis, keep_dims, dtype), which takes one axis or none."""
    prim = primitive(prim)

    def rule(x_pair, axis_pair, keep_pair, dtype_pair):
        x, dim = x_pair
        axis, keep_dims, dtype = axis_pair[0], keep_pair[0], dtype_pair[0]
        if dim is None:
            return prim(x, axis, keep_dims, dtype), None
        x = front(x, dim)
        if axis is None or x.ndim == 1:
            return reshape(
                prim(reshape(x, (axis_size, -1)), 1, False, dtype), _kept_shape(x.shape, keep_dims)
            ), 0
        return prim(x, shifted(axis), keep_dims, dtype), 0

    return rule


# --- running products and sums --------------------------------------------------------------------


def _beside(a, b, axis):
    """One along an axis behind the other."""
    out = ()
    for n in range(len(a)):
        out = out + (ops.concat((a[n], b[n]), axis),)
    return out


def _split(a, at, length, axis):
    """The first entries along an axis counted from the end, and the rest."""
    first, rest = (), ()
    for one in a:
        parts = ops.split(one, (at, length - at), axis)
        first, rest = first + (parts[0],), rest + (parts[1],)
    return first, rest


def _running(combine, a, axis, reverse):
    """`combine` of all up to each entry along an axis counted from the end, in log2(n) steps;
    `reverse`: of all from each entry on. Of a tuple of tensors: one alone, a triple, a series.
    """

    def flipped(x):
        return ops.flip(x, (axis + x.ndim,))

    out = each(flipped, a) if reverse else a
    length, step = a[0].shape[axis], 1
    while step < length:
        first, rest = _split(out, step, length, axis)
        moved = _split(out, length - step, length, axis)[0]
        out = _beside(first, combine(rest, moved), axis)
        step = 2 * step
    return each(flipped, out) if reverse else out


def _moved_by_one(x, axis, reverse):
    """Each element is its neighbour's, 1 at the edge."""
    length = x.shape[axis]
    if reverse:
        edge, rest = ops.split(x, (1, length - 1), axis)
        return ops.concat((rest, ops.ones_like(edge)), axis)
    rest, edge = ops.split(x, (length - 1, 1), axis)
    return ops.concat((ops.ones_like(edge), rest), axis)


def _product(a, b):
    return (ops.mul(a[0], b[0]),)


@derivative("CumProd", why="MindSpore's divides by x: NaN at zeros", replaces=True, visible=True)
def cumprod(prim):
    """CumProd(x, axis, exclusive, reverse), without a division by x."""

    def bprop(x, axis, exclusive, reverse, out, dout):
        def products(x):
            x = _moved_by_one(x, axis, reverse) if exclusive else x
            return _running(_product, (x,), from_end(axis, x.ndim), reverse)[0]

        return pull(products)(mutable(x), dout)[0], 0, 0, 0

    return bprop


batching("CumProd")(along_axis)


@constexpr
def _number(axis):
    return int(axis.asnumpy())


@constexpr
def _behind_the_batch(axis):
    return Tensor(_number(axis) + (_number(axis) >= 0), axis.dtype)


@batching("CumulativeLogsumexp")
@one_tensor
def batched_cumulative_logsumexp(prim, x, axis):
    """Along the same axis of each sample."""
    return prim(x, _behind_the_batch(axis))


def _log_of_one_sum(a, b):
    return (logaddexp(a[0], b[0]),)


@derivative(
    "CumulativeLogsumexp", why="MindSpore's third derivative is NaN", replaces=True, visible=True
)
def cumulative_logsumexp(prim):
    """CumulativeLogsumexp(x, axis), by logaddexp of parts."""
    exclusive, reverse = attributes_of(prim, "exclusive", "reverse")
    if exclusive:
        raise NotImplementedError(
            "mindspore_hessian has no derivative of CumulativeLogsumexp(exclusive=True)"
        )

    def bprop(x, axis, out, dout):
        def sums(x):
            return _running(_log_of_one_sum, (x,), from_end(_number(axis), x.ndim), reverse)[0]

        return pull(sums)(mutable(x), dout)[0], ops.zeros_like(axis)

    return bprop


# --- extremes -------------------------------------------------------------------------------------

_IN_PLACE = "MindSpore's gradient writes in place, which it cannot differentiate"


def _taken_from(x, index, d, axis, keep_dims):
    """d in the place that `index` names along the axis, zero elsewhere."""
    if x.ndim == 0:
        return d
    if not keep_dims:
        index, d = ops.expand_dims(index, axis), ops.expand_dims(d, axis)
    return put(x, axis, index, d)


@derivative("MaxDim", "MinDim", why=_IN_PLACE, replaces=True)
def extreme_along(prim):
    """(values, indices) of the largest or smallest along an axis: d goes where the index points."""

    def bprop(x, axis, keep_dims, out, dout):
        return _taken_from(x, out[1], dout[0], axis, keep_dims), 0, 0

    return bprop


@derivative("ArgMaxWithValue", "ArgMinWithValue", why=_IN_PLACE, replaces=True)
def index_with_extreme(prim):
    """The same as (indices, values)."""

    def bprop(x, axis, keep_dims, out, dout):
        return _taken_from(x, out[0], dout[1], axis, keep_dims), 0, 0

    return bprop


batching("ArgMaxWithValue", "ArgMinWithValue", why=FAILS_IN_GRADIENTS, replaces=True)(along_axis)
batching(
    "Argmax",
    "Argmin",
    why="MindSpore's drops the axis and the type where nothing is batched, and fails",
    replaces=True,
)(axis_at(1))


@batching("ArgMaxExt")
@one_tensor
def batched_position(prim, x, dim, keepdim):
    """(x, dim, keepdim), all entries where dim is None."""
    if dim is None:
        return prim(reshape(x, (x.shape[0], -1)), 1, False)
    return prim(x, shifted(dim), keepdim)


def _shared(x, value, d):
    """d in equal parts where x has the value."""
    equal = ops.cast(x == value, x.dtype)
    return d * equal / equal.sum()


@derivative("Max", "Min", why=_IN_PLACE, replaces=True)
def extreme(prim):
    """The largest or smallest of all: equal ones share d."""

    def bprop(x, out, dout):
        return (_shared(x, out, dout),)

    return bprop


def _of_all(along):
    def compute(prim, x):
        return along(reshape(x, (x.shape[0], -1)), 1)

    return one_tensor(compute)


batching("Max")(_of_all(ops.amax))
batching("Min")(_of_all(ops.amin))
batching("MaxDim", "MinDim")(along_axis)


@batching(
    "Median",
    why="MindSpore's fails for an input that is not batched, and for the median of all",
    replaces=True,
)
def batched_median(prim, axis_size):
    """Median(x): (value, index), of all or along an axis."""
    prim = primitive(prim)
    whole, axis, keep_dims, ignores_nan = attributes_of(
        prim, "global_median", "axis", "keep_dims", "ignore_nan"
    )
    along = type(prim)(False, axis + 1 if axis >= 0 else axis, keep_dims, ignores_nan)
    of_all = type(prim)(False, 1, False, ignores_nan)

    def rule(pair):
        x, dim = pair
        if dim is None:
            return unpaired(prim(x))
        x = front(x, dim)
        if whole:
            return paired(of_all(reshape(x, (axis_size, -1))))
        return paired(along(x))

    return rule


@derivative("Median", why=REWRITTEN, replaces=True)
def median(prim):
    """Of all: those that equal it share d. Along an axis: d goes where the index points."""
    whole, axis, keep_dims = attributes_of(prim, "global_median", "axis", "keep_dims")

    def of_all(x, out, dout):
        return (_shared(x, out[0], dout[0]),)

    def along(x, out, dout):
        return (_taken_from(x, out[1], dout[0], axis, keep_dims),)

    return of_all if whole else along


# --- variances ------------------------------------------------------------------------------------
# Functions of MindSpore in Python, without a primitive that a rule could sit on, written better.

_ROOT = "MindSpore's takes the root first: NaN where all values are equal"
_SINGLE = "MindSpore's computes float64 in float32"


@composition("mindspore.ops.var_mean", why=_ROOT)
def var_mean(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The mean square of the deviations, and the mean."""
    axes = () if axis is None else axis
    middle = ops.mean(input, axes, True)
    deviation = input - middle
    mean = ops.mean(input, axes, keepdims)
    count = input.size // mean.size
    return (deviation * deviation).sum(axis, keepdims=keepdims) / (count - int(ddof)), mean


@composition("mindspore.ops.var", why=_ROOT)
def var(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The mean square of the deviations."""
    return var_mean(input, axis, ddof, keepdims)[0]


@composition("mindspore.ops.std_mean", why=_SINGLE)
def std_mean(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The root of the variance, and the mean."""
    variance, mean = var_mean(input, axis, ddof, keepdims)
    return ops.sqrt(variance), mean


@composition("mindspore.ops.std", why=_SINGLE)
def std(input, axis=None, ddof=0, keepdims=False):  # noqa: A002
    """The root of the variance."""
    return ops.sqrt(var_mean(input, axis, ddof, keepdims)[0])


@composition(
    "mindspore.nn.Moments.construct",
    why="MindSpore's stops the gradient of the mean: the first derivative "
    "of the variance is right, the second is not",
)
def moments(self, x):
    """Mean and variance, the mean in it differentiated like the other."""
    variance, mean = var_mean(ops.cast(x, ms.float32), self.axis, 0, self.keep_dims)
    return ops.cast(mean, x.dtype), ops.cast(variance, x.dtype)


@composition(
    "mindspore.ops.logsumexp",
    why="MindSpore's differentiates the maximum, which cancels: half of the kernels of a second "
    "derivative of the cross entropy",
)
def logsumexp(input, dim, keepdim=False):  # noqa: A002 -- as MindSpore calls it
    """log sum exp(x - m) + m, the same for each m."""
    highest = ops.stop_gradient(ops.ReduceMax(True)(input, dim))
    shifted = ops.log(ops.sum(ops.exp(input - highest), dim, keepdim))
    return shifted + (highest if keepdim else highest.squeeze(dim))


@derivative(
    "Cummax", "Cummin", why="MindSpore's has a primitive that does not compile", replaces=True
)
def running_extreme(prim):
    """Cummax(x, axis): d added where each value was found."""

    def bprop(x, axis, out, dout):
        zeros = ops.zeros_like(x)
        return ops.tensor_scatter_elements(zeros, out[1], dout[0], axis, "add"), 0

    return bprop


# --- forward --------------------------------------------------------------------------------------

forward("Argmax", "Argmin", "ArgMaxExt")(without_derivative)
forward("MeanExt", "CumSum", "CumsumExt")(linear)


@forward("SumExt", "ReduceSum", "ReduceMean")
@straight
@allow(0)
def pushed_reduction(prim, usual):
    """Linear; MindSpore's batching rule fails for a number, and its sums of no entries are memory
    that nobody has written."""
    usual_rule, sums = linear(prim, reduction(prim, 0)), primitive(prim).name != "ReduceMean"

    def rule(x_pair, *rest):
        if sums and x_pair[0][0].size == 0:
            zeros = zeros_like(prim(x_pair[0][0], *options_of(rest)))
            shape = (x_pair[0][1].shape[0],) + zeros.shape
            return ((zeros, copied_to(zeros, shape), zeros), FORWARD)
        return usual_rule(x_pair, *rest)

    return rule


@constexpr
def _kept(shape, axis):
    axes = [axis] if isinstance(axis, int) else axis
    return tuple(1 if k - len(shape) in axes else length for k, length in enumerate(shape))


def _weighed(a, weights, y, axis, keep_dims):
    """The sum of a times weights that are constant, and whose value is y."""
    return (
        y,
        (a[1] * weights).sum(axis, keepdims=keep_dims),
        (a[2] * weights).sum(axis, keepdims=keep_dims),
    )


@by_composition("ReduceMax", "ReduceMin", "AMax", "AMin", kinked=True)
def pushed_extreme(prim, a, axis=(), keep_dims=False):
    """Equal ones share what comes through."""
    axis, y = from_end(axis, a[0].ndim), prim(a[0], axis, keep_dims)
    equal = ops.cast(a[0] == reshape(y, _kept(a[0].shape, axis)), a[0].dtype)
    return _weighed(a, equal / equal.sum(axis, keepdims=True), y, axis, keep_dims)


@by_composition("Max", "Min", kinked=True)
def pushed_extreme_of_all(prim, a):
    """The same over all axes."""
    y = prim(a[0])
    equal = ops.cast(a[0] == y, a[0].dtype)
    return _weighed(a, equal / equal.sum(), y, from_end(None, a[0].ndim), False)


def _picked(a, index, y, axis, keep_dims):
    """Along an axis, only where the index points."""
    axis = from_end(axis, a[0].ndim)
    places = ops.cast(_counted(a[0].shape, axis), index.dtype)
    chosen = ops.cast(places == reshape(index, _kept(a[0].shape, axis)), a[0].dtype)
    return _weighed(a, chosen, y, axis, keep_dims)


@constexpr
def _counted(shape, axis):
    """0, 1, ... along an axis counted from the end."""
    return Tensor(np.arange(shape[axis]).reshape((-1,) + (1,) * (-axis - 1)), ms.int64)


@forward("ArgMaxWithValue", "ArgMinWithValue")
@straight
@allow(0)
def pushed_index_with_extreme(prim, usual):
    """(indices, values): the derivative goes where the index points."""

    def rule(x_pair, axis_pair, keep_pair):
        index, y = prim(x_pair[0][0], axis_pair[0], keep_pair[0])
        return (index, None), (_picked(x_pair[0], index, y, axis_pair[0], keep_pair[0]), FORWARD)

    return rule


@forward("Cummax", "Cummin")
@straight
@allow(0)
def pushed_running_extreme(prim, usual):
    """(values, indices): all goes where the indices say."""

    def rule(x_pair, axis_pair):
        v, j, l = x_pair[0]  # noqa: E741
        y, index = prim(v, axis_pair[0])
        axis = from_end(axis_pair[0], v.ndim)
        wide = copied_to(index, (j.shape[0],) + index.shape)
        triple = (y, ops.gather_d(j, axis, wide), ops.gather_d(l, axis, index))
        return (triple, FORWARD), (index, None)

    return rule


@forward("MaxDim", "MinDim")
@straight
@allow(0)
def pushed_extreme_along(prim, usual):
    """(values, indices), likewise."""

    def rule(x_pair, axis_pair, keep_pair):
        y, index = prim(x_pair[0][0], axis_pair[0], keep_pair[0])
        return (_picked(x_pair[0], index, y, axis_pair[0], keep_pair[0]), FORWARD), (index, None)

    return rule


@forward("Median")
@straight
@allow(0)
def pushed_median(prim, usual):
    """Along an axis the derivative goes where the index points; of all, equal ones share it."""
    whole, axis, keep_dims = attributes_of(prim, "global_median", "axis", "keep_dims")

    def rule(x_pair):
        a = x_pair[0]
        y, index = prim(a[0])
        if whole:
            equal = ops.cast(a[0] == y, a[0].dtype)
            out = _weighed(a, equal / equal.sum(), y, from_end(None, a[0].ndim), False)
        else:
            out = _picked(a, index, y, axis, keep_dims)
        return (out, FORWARD), (index, None)

    return rule


@by_composition("LogSumExp")
def pushed_logsumexp(prim, a, axis, keep_dims):
    """<p, a'> with p the softmax, and <p, a'' + (a' - <p, a'>)^2>."""
    axis, y = from_end(axis, a[0].ndim), prim(a[0], axis, keep_dims)
    p = ops.exp(a[0] - reshape(y, _kept(a[0].shape, axis)))
    mean = (a[1] * p).sum(axis, keepdims=True)
    spread = ((a[1] - mean) * (a[1] - mean)).sum(0)
    return (
        y,
        (a[1] * p).sum(axis, keepdims=keep_dims),
        ((a[2] + spread) * p).sum(axis, keepdims=keep_dims),
    )


@constexpr
def _axes(rank, axis):
    """Counted from the end, all where none is given."""
    axis = tuple(range(rank)) if axis is None or axis == () else axis
    return tuple(one % rank - rank for one in ((axis,) if isinstance(axis, int) else axis))


@constexpr
def _last(rank, axes):
    """The order of axes in which these come last."""
    last = [one % rank for one in axes]
    return (*(k for k in range(rank) if k not in last), *last)


@constexpr
def _behind(shape, count, own):
    """`own` for the last axes of a shape."""
    return (*shape[: len(shape) - count], *own)


def _cut(a, start, stop):
    def part(x):
        return x[..., start:stop]

    return each(part, a)


def _multiplied(a, product):
    """The product over the last axis, half of it with the other half, and so on."""
    while a[0].shape[-1] > 1:
        half, count = a[0].shape[-1] // 2, a[0].shape[-1]
        both = product(_cut(a, 0, half), _cut(a, half, 2 * half))
        a = _beside(both, _cut(a, 2 * half, count), -1) if 2 * half < count else both
    return a


def _product_over(a, axis, y, product):
    """The product over axes, whose value is y, of a triple or of a series."""
    rank = a[0].ndim
    if rank == 0:
        return a
    axes = _axes(rank, axis)

    def turned(x):
        x = ops.transpose(ops.cast(x, y.dtype), _last(x.ndim, axes))
        return reshape(x, _behind(x.shape, len(axes), (-1,)))

    def shaped(x):
        return reshape(x, _behind(x.shape, rank - len(axes) + 1, y.shape))

    return (y,) + each(shaped, _multiplied(each(turned, a), product))[1:]


@by_composition("ProdExt")
def pushed_product(prim, a, axis, keep_dims, dtype):
    """ProdExt(x, axis, keep_dims, dtype), of one axis or of all."""
    return _product_over(a, axis, prim(a[0], axis, keep_dims, dtype), times)


@by_composition("ReduceProd")
def pushed_reduced_product(prim, a, axis, keep_dims):
    """ReduceProd(x, axis, keep_dims), of one axis, several, or all."""
    return _product_over(a, axis, prim(a[0], axis, keep_dims), times)


def _products_along(a, axis, exclusive, reverse, y, product):
    """The running product, whose value is y, of a triple or of a series."""
    axis = from_end(axis, a[0].ndim)
    if exclusive:
        edge = _moved_by_one(zeros_like(a[0]), axis, reverse)  # 1 where there is no neighbour

        def moved(x):
            return _moved_by_one(x, axis, reverse) - edge

        a = (_moved_by_one(a[0], axis, reverse),) + each(moved, a[1:])
    return (y,) + _running(product, a, axis, reverse)[1:]


@by_composition("CumProd")
def pushed_cumprod(prim, a, axis, exclusive, reverse):
    """CumProd(x, axis, exclusive, reverse)."""
    return _products_along(a, axis, exclusive, reverse, prim(a[0], axis, exclusive, reverse), times)


def _log_of_sum(a, b):
    """log(exp(a) + exp(b)) of triples."""
    y = logaddexp(a[0], b[0])
    p, q, apart = ops.exp(a[0] - y), ops.exp(b[0] - y), a[1] - b[1]
    second = p * a[2] + q * b[2] + p * q * (apart * apart).sum(0)
    return (y, p * a[1] + q * b[1], second)


@forward("CumulativeLogsumexp")
@allow(0)
def pushed_cumulative_logsumexp(prim, usual):
    """CumulativeLogsumexp(x, axis)."""
    exclusive, reverse = attributes_of(prim, "exclusive", "reverse")
    if exclusive:
        raise MissingRuleError("CumulativeLogsumexp(exclusive=True) has no forward rule")

    def rule(x_pair, axis_pair):
        a = x_pair[0]
        out = _running(_log_of_sum, a, from_end(_number(axis_pair[0]), a[0].ndim), reverse)
        return ((prim(a[0], axis_pair[0]), out[1], out[2]), FORWARD)

    return rule


# --- Taylor coefficients --------------------------------------------------------------------------


@by_series("LogSumExp")
def expanded_logsumexp(y, x, axis, keep_dims):
    """The logarithm of sum exp(x - y), whose value is 1."""
    axis = from_end(axis, x[0].ndim)
    grown = taylor.exponential(ops.exp(x[0] - reshape(y, _kept(x[0].shape, axis))), x)
    total = taylor.summed(grown, axis, keep_dims)
    return taylor.integrated(y, total, taylor.inverse(total))


@by_series("ProdExt")
def expanded_product(y, x, axis, keep_dims, dtype):
    return _product_over(x, axis, y, taylor.times)


@by_series("ReduceProd")
def expanded_reduced_product(y, x, axis, keep_dims):
    return _product_over(x, axis, y, taylor.times)


@by_series("CumProd")
def expanded_cumprod(y, x, axis, exclusive, reverse):
    return _products_along(x, axis, exclusive, reverse, y, taylor.times)


def _log_of_sum_series(a, b):
    """log(exp(a) + exp(b)), whose value is y, from the sum of exp(a - y) and exp(b - y), which is 1."""
    y = logaddexp(a[0], b[0])
    one, two = taylor.exponential(ops.exp(a[0] - y), a), taylor.exponential(ops.exp(b[0] - y), b)
    total = taylor.plus(one, two)
    return taylor.integrated(y, total, taylor.inverse(total))


@expansion("CumulativeLogsumexp")
@allow(0)
def expanded_cumulative_logsumexp(prim, usual):
    """CumulativeLogsumexp(x, axis)."""
    exclusive, reverse = attributes_of(prim, "exclusive", "reverse")
    if exclusive:
        raise MissingRuleError("CumulativeLogsumexp(exclusive=True) has no Taylor rule")

    def rule(x_pair, axis_pair):
        x = taylor.coefficients(x_pair)
        axis = from_end(_number(axis_pair[0]), x[0].ndim)
        out = _running(_log_of_sum_series, x, axis, reverse)
        return taylor.joined((prim(x[0], axis_pair[0]),) + out[1:])

    return rule


@constexpr
def _check_whole(p):
    if p not in range(1, 65):
        raise MissingRuleError(f"a norm has forward rules for p = 1, 2, ..., 64, not for p = {p}")


def _norm(y, x, p, axis, keep_dims):
    """(sum |x|^p)^(1/p), whose value is y, for a whole p."""
    _check_whole(p)
    axis = from_end(axis, x[0].ndim)
    if p == 2:
        return taylor.root(y, taylor.summed(taylor.squared(x), axis, keep_dims))
    size = taylor.scaled(x, ops.sign(x[0]))
    powers = taylor.power(ops.pow(size[0], p), size, p)
    total = taylor.summed(powers, axis, keep_dims)
    return taylor.power(y, total, taylor.quotient_of(1, p, y.dtype))


@by_expansion("LpNormV2", "Norm")
def expanded_norm(prim):
    def function(x, p, axis, keep_dims, *others):
        return _norm(prim(x[0], p, axis, keep_dims, *others), x, p, axis, keep_dims)

    return function


@by_expansion("LpNorm")
def expanded_lp_norm(prim):
    """Constant where it is less than epsilon."""
    p, axis, keep_dims, epsilon = attributes_of(prim, "p", "axis", "keep_dims", "epsilon")
    axis = tuple(axis)

    def function(x):
        y = prim(x[0])
        out = (y,)
        for one in _norm(y, x, p, axis, keep_dims)[1:]:
            out = out + (ops.where(y > epsilon, one, zeros_like(one)),)
        return out

    return function
