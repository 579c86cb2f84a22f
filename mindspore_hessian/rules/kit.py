"""What rules are made of: a primitive and its constants, moving the batch axis, and batching rules'
shared getters.

MindSpore compiles the inner functions of rules, so they keep to tensors, tuples and constants;
`constexpr` functions run as Python while it does. Shapes are constants there, and each `if` costs
compile time.

A batching rule receives a (value, dim) pair per input, where dim is the axis of value that holds
the batch (None: unbatched), and returns such a pair per output. Shared getters test the common case
(batch in front, nothing to reshape) first.

Unbatched operands are never copied along the batch unless a kernel insists: they broadcast.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import Primitive, constexpr

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError

# Primitives, where a function of `mindspore.ops` or an operator would do: a graph of these compiles
# in half the time.
transpose, reshape, tile = ops.Transpose(), ops.Reshape(), ops.Tile()
broadcast_to = ops.BroadcastTo
add, sub, mul, pow_, abs_, sigmoid = (
    ops.Add(),
    ops.Sub(),
    ops.Mul(),
    ops.Pow(),
    ops.Abs(),
    ops.Sigmoid(),
)
less, select, ones_like, zeros_like = ops.Less(), ops.Select(), ops.OnesLike(), ops.ZerosLike()

_add_all = ops.AddN()


def added(terms):
    """The sum of tensors. For large ones of one shape on the CPU, AddN takes 0.6 of the time of
    Add, in float64 0.3 to 0.5 (``ci/bench/shapes.py``); it has no bfloat16.
    """
    total, like = terms[0], terms[0].dtype != ms.bfloat16
    for term in terms[1:]:
        like = like and term.dtype == total.dtype and term.shape == total.shape
    if like and len(terms) > 1:
        return _add_all(terms)
    for term in terms[1:]:
        total = add(total, term)
    return total


put = _compat.backward(
    "GatherDGradV2"
)  # put(x, axis, index, d): d added where the index points along the axis, zero
# elsewhere, in the shape of x; it needs no lengths of axes, which may be dynamic


# --- a primitive and its constants ----------------------------------------------------------------


def primitive(prim):
    """The primitive itself: MindSpore hands over some by name."""
    return Primitive(prim) if isinstance(prim, str) else prim


def attributes_of(prim, *names: str) -> tuple:
    """The attributes of a primitive made in Python. MindSpore passes a mere name for one made in
    C++.
    """
    if isinstance(prim, str):
        raise MissingRuleError(
            f"The second derivative of {prim} needs its attributes, which MindSpore keeps in C++. "
            "Import mindspore_hessian before the first gradient of the process."
        )
    held = {
        **prim.get_attr_dict(),
        **prim.attrs,
    }  # some classes forget their `attrs` as they are made
    return tuple(held[name] for name in names)


@constexpr
def known(*shapes):
    """Whether every length is known as MindSpore compiles."""
    return all(length is not None and length >= 0 for shape in shapes for length in shape)


def numbers(value):
    """The integers of a constant, a tuple or a Tensor; for use in a `constexpr`."""
    return tuple(int(one) for one in (value.asnumpy() if isinstance(value, Tensor) else value))


# --- the batch axis -------------------------------------------------------------------------------


@constexpr
def _move(rank, src, dst):
    """Permutation that takes axis src to dst, or None if there is nothing to do."""
    src, dst = src % rank, dst % rank
    order = [axis for axis in range(rank) if axis != src]
    order.insert(dst, src)
    return None if src == dst else tuple(order)


def move(x, src, dst):
    """x with axis src at dst."""
    order = _move(x.ndim, src, dst)
    if order is None:
        return x
    return transpose(x, order)


def front(x, dim):
    """x with its batch axis first; an unbatched x as it is."""
    if dim is None or dim == 0:
        return x
    return move(x, dim, 0)


@constexpr
def batch_first(dim):
    """Where `front` puts the batch."""
    return None if dim is None else 0


@constexpr
def _repeated(shape, size):
    return (size, *shape)


def filled(x, dim, size):
    """x with its batch axis first; an unbatched x is copied along it (for kernels that take no
    less).
    """
    if dim is None:
        return copied_to(x, _repeated(x.shape, size))
    return front(x, dim)


def each(f, parts):
    """A function of each tensor of a tuple: of a triple, of the coefficients of a series."""
    out = ()
    for one in parts:
        out = out + (f(one),)
    return out


def transposed(x):
    """Matrices."""
    return ops.swapaxes(x, -1, -2)


def inverse(x):
    """Of matrices: the kernel takes no 1 x 1 ones."""
    return ops.inverse(x) if x.shape[-1] > 1 else 1 / x


@constexpr
def entries(shape):
    """Their number."""
    return int(np.prod(shape))


@constexpr
def merged(shape, at):
    """Shape with axis `at` and the next as one."""
    return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])


@constexpr
def apart(shape, at, *sizes):
    """The opposite: shape with axis `at` as these sizes times what remains."""
    rest = shape[at]
    for size in sizes:
        rest //= size
    return (*shape[:at], *sizes, rest, *shape[at + 1 :])


@constexpr
def scaled(shape, at, size):
    """A shape, as a tuple or a Tensor, with axis `at` so many times as long."""
    if isinstance(shape, Tensor):
        lengths = shape.asnumpy().copy()
        lengths[at] *= size
        return Tensor(lengths)
    return (*shape[:at], shape[at] * size, *shape[at + 1 :])


@constexpr
def _aligned_shape(shape, rank):
    return (shape[0],) + (1,) * (rank + 1 - len(shape)) + tuple(shape[1:])


def aligned(x, dim, rank):
    """x ready to broadcast against operands of `rank` axes a sample: (B, 1, ..., 1, *sample
    shape).
    """
    if dim is None:
        return x
    x = front(x, dim)
    if x.ndim == rank + 1:
        return x
    return reshape(x, _aligned_shape(x.shape, rank))


@constexpr
def _repeats(shape, whole):
    """How often a tensor is repeated along each axis to have another shape; None where it has it; ()
    where only BroadcastTo does it: unknown lengths, or none."""
    if tuple(shape) == tuple(whole):
        return None
    if min((*shape, *whole), default=1) < 1:
        return ()
    own = (1,) * (len(whole) - len(shape)) + tuple(shape)
    return tuple(long // short for long, short in zip(whole, own, strict=True))


def copied_to(x, shape):
    """x broadcast to a shape, by a kernel that is several times as fast as BroadcastTo's."""
    repeats = _repeats(x.shape, shape)
    if repeats is None:
        return x
    if len(repeats) == 0:
        return broadcast_to(shape)(x)
    return tile(x, repeats)


COMPARISONS = ("Greater", "GreaterEqual", "Less", "LessEqual", "Equal", "NotEqual")
# Kernels of MindSpore for CPU that take several times as long where shapes differ; those of float32
# also keep a table of 16 bytes an entry of the result, as long as the graph lives.
_ALIKE = {
    **dict.fromkeys(("Add", "Sub", "Mul", "RealDiv"), ("Float32",)),
    **dict.fromkeys(("Maximum", "Minimum", *COMPARISONS), ("Float32", "Float64", "Float16")),
}
_MANY = 1 << 16  # entries, from where on copying pays


def common_shape(name, x_shape, y_shape, x_dtype, y_dtype):
    """That of the result, where operands of this shape are faster; else None."""
    if x_shape == y_shape or x_dtype != y_dtype or str(x_dtype) not in _ALIKE.get(name, ()):
        return None
    if min(x_shape + y_shape, default=0) < 1 or 1 in (np.prod(x_shape), np.prod(y_shape)):
        return None  # unknown lengths, nothing at all, one entry
    whole = np.broadcast_shapes(x_shape, y_shape)
    if np.prod(whole) < _MANY or ms.get_context("device_target") != "CPU":
        return None
    return whole


_common_shape = constexpr(common_shape)


def alike(name, x, y):
    """The two inputs of a primitive, entry by entry: in one shape where that is faster."""
    shape = _common_shape(name, x.shape, y.shape, x.dtype, y.dtype)
    if shape is None:
        return x, y
    return copied_to(x, shape), copied_to(y, shape)


def product_of(x, y):
    """x y, entry by entry, for a tensor and a tensor or a number."""
    if isinstance(y, Tensor):
        x, y = alike("Mul", x, y)
    return mul(x, y)


@constexpr
def _parameter_count(pairs):
    pairs = [
        pair for pair in pairs if pair is not None
    ]  # a view's ordering token, always last, arrives as None
    if any(dim is not None for _, dim in pairs):
        raise ValueError(
            "mindspore_hessian batches no parameters (numbers, axes, flags), and one is batched"
        )
    return len(pairs)


def values(pairs):
    """The values of parameters (numbers, axes, flags, dtypes): constants, which are never batched.

    Only their count is taken by a constexpr: a number that goes through Python comes back in
    float32. Views carry a token at the end that orders them after writes in place; our graphs have
    none.
    """
    count = _parameter_count(pairs)
    if count == len(pairs):  # (a slice is slow to compile)
        return tensors_of(pairs)
    return tensors_of(pairs[:count])


@constexpr
def any_batched(dims):
    """Whether some dim is an axis."""
    return any(dim is not None for dim in dims)


@constexpr
def all_batched(dims):
    """Whether every dim is an axis."""
    return all(dim is not None for dim in dims)


def _behind(axis):
    """The same axis (or axes) behind a batch axis in front: negative ones count from the end and
    stay.
    """
    if isinstance(axis, (tuple, list)):
        return tuple(one + 1 if one >= 0 else one for one in axis)
    return axis + 1 if axis >= 0 else axis


shifted = constexpr(_behind)


def paired(out):
    """The outputs of a primitive, batch in front, as the pairs a rule returns."""
    if isinstance(out, tuple):
        return _marked(out, 0)
    return out, 0


def _marked(outs, dim):
    """Each with that batch axis."""
    if len(outs) == 2:
        x, y = outs
        return (x, dim), (y, dim)
    return tuple([(one, dim) for one in outs])


def unpaired(out):
    """The outputs of a primitive that met no batch, as pairs."""
    if isinstance(out, tuple):
        return _marked(out, None)
    return out, None


# --- shared getters -------------------------------------------------------------------------------


def unary(prim, axis_size):
    """One tensor, then parameters, entry by entry: the batch may sit on any axis and stays
    there.
    """
    prim = primitive(prim)

    def rule(x_pair, *rest):
        x, dim = x_pair
        if not rest:
            return prim(x), dim
        return prim(x, *values(rest)), dim

    return rule


@constexpr
def _binary_plan(name, x_dim, x_shape, x_dtype, y_dim, y_shape, y_dtype):
    """(ready to call, rank of a sample's result, dim of the result)."""
    x_sample, y_sample = len(x_shape) - (x_dim is not None), len(y_shape) - (y_dim is not None)
    rank = max(x_sample, y_sample)
    lined_up = all(
        dim is None or (dim == 0 and sample == rank)
        for dim, sample in ((x_dim, x_sample), (y_dim, y_sample))
    )
    ready = lined_up and common_shape(name, x_shape, y_shape, x_dtype, y_dtype) is None
    return ready, rank, None if x_dim is None and y_dim is None else 0


def binary(prim, axis_size):
    """Two tensors that broadcast."""
    prim = primitive(prim)
    name = prim.name

    def rule(x_pair, y_pair):
        x, y, dim = _lined_up(name, x_pair, y_pair)
        return prim(x, y), dim

    return rule


# (MindSpore parses a rule for each place where a graph has its primitive, a function of a module
# once: the commonest rules only call theirs. One that takes *pairs it copies at each call, with all
# that it calls.)


def _lined_up(name, x_pair, y_pair):
    """What a primitive of that name is given for two tensors that broadcast, and the batch axis of
    its result."""
    (x, x_dim), (y, y_dim) = x_pair, y_pair
    ready, rank, dim = _binary_plan(name, x_dim, x.shape, x.dtype, y_dim, y.shape, y.dtype)
    if not ready:
        x, y = alike(name, aligned(x, x_dim, rank), aligned(y, y_dim, rank))
    return x, y, dim


def binary_with_parameters(prim, axis_size):
    """The same, then parameters."""
    prim = primitive(prim)
    name = prim.name

    def rule(x_pair, y_pair, *rest):
        x, y, dim = _lined_up(name, x_pair, y_pair)
        return prim(x, y, *values(rest)), dim

    return rule


@constexpr
def largest(ranks):
    """The largest of some numbers."""
    return max(ranks)


def sample_rank(x, dim):
    """Axes of one sample; 0 for what is not a tensor."""
    if not isinstance(x, Tensor):
        return 0
    return x.ndim if dim is None else x.ndim - 1


def broadcasting(prim, axis_size):
    """Any number of tensors that broadcast, among parameters."""
    prim = primitive(prim)

    def rule(*pairs):
        rank = largest(tuple([sample_rank(x, dim) for x, dim in pairs]))
        out = prim(*[aligned(x, dim, rank) for x, dim in pairs])
        if any_batched(dims_of(pairs)):
            return paired(out)
        return unpaired(out)

    return rule


def tensors_of(pairs):
    """The values of pairs."""
    xs, _ = _apart(pairs)
    return xs


def dims_of(pairs):
    """The batch axes of pairs."""
    _, dims = _apart(pairs)
    return dims


def _apart(pairs):
    """Values and batch axes. (A loop takes MindSpore several times as long to compile.)"""
    count = len(pairs)
    if count == 1:
        ((x, x_dim),) = pairs
        return (x,), (x_dim,)
    if count == 2:
        (x, x_dim), (y, y_dim) = pairs
        return (x, y), (x_dim, y_dim)
    if count == 3:
        (x, x_dim), (y, y_dim), (z, z_dim) = pairs
        return (x, y, z), (x_dim, y_dim, z_dim)
    return tuple([x for x, _ in pairs]), tuple([dim for _, dim in pairs])


def same_shape(count: int) -> Callable:
    """`count` tensors of one shape, then parameters, entry by entry, by a kernel that does not
    broadcast.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, rest = pairs[:count], values(pairs[count:])
            if any_batched(dims_of(tensors)):
                return paired(prim(*[filled(x, dim, axis_size) for x, dim in tensors], *rest))
            return unpaired(prim(*tensors_of(tensors), *rest))

        return rule

    return getter


def cotangent_second(prim, axis_size):
    """A backward f(y, dy, ...), entry by entry and linear in dy, by a kernel that does not
    broadcast.

    With only dy batched its factor is computed once, from ones, and broadcasts; the kernel would
    want y copied along the batch.
    """
    prim = primitive(prim)

    def rule(y_pair, dy_pair, *rest):
        y, y_dim = y_pair
        dy, dy_dim = dy_pair
        if y_dim is None and dy_dim is not None:
            return product_of(front(dy, dy_dim), prim(y, ones_like(y), *values(rest))), 0
        if y_dim == dy_dim:
            return prim(y, dy, *values(rest)), y_dim
        return prim(front(y, y_dim), filled(dy, dy_dim, axis_size), *values(rest)), 0

    return rule


def cotangent_first(prim, axis_size):
    """The same for a backward f(dy, x, ...)."""
    prim = primitive(prim)

    def rule(dy_pair, x_pair, *rest):
        x, x_dim = x_pair
        dy, dy_dim = dy_pair
        if x_dim is None and dy_dim is not None:
            return product_of(front(dy, dy_dim), prim(ones_like(x), x, *values(rest))), 0
        if x_dim == dy_dim:
            return prim(dy, x, *values(rest)), x_dim
        return prim(filled(dy, dy_dim, axis_size), front(x, x_dim), *values(rest)), 0

    return rule


@constexpr
def _reduced(axis, rank):
    """Axes to reduce with the batch in front of `rank` axes: none given means all but the batch."""
    if axis is None or (isinstance(axis, (tuple, list)) and not axis):
        return tuple(range(1, rank + 1))
    return _behind(axis)


@constexpr
def _one_axis(axis):
    """Axis of a sample that has none (MindSpore then allows 0 and -1), after it was given one."""
    return (1,) if axis is None or isinstance(axis, (tuple, list)) else 1


@constexpr
def _size_only(shape):
    return (shape[0],)


def _all_flat(outs, shape):
    if isinstance(outs, tuple):
        return tuple([(reshape(one, shape), 0) for one in outs])
    return reshape(outs, shape), 0


def over_axis(shift: Callable) -> Callable:
    """One tensor, an axis, then parameters: reductions, and what runs along an axis."""

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(x_pair, axis_pair, *rest):
            return _over_axis(prim, shift, x_pair, axis_pair, rest)

        return rule

    return getter


def _over_axis(prim, shift, x_pair, axis_pair, rest):
    (x, dim), (axis, _) = x_pair, axis_pair
    if dim is None:
        return unpaired(prim(x, axis, *values(rest)))
    x = front(x, dim)
    if x.ndim == 1:  # a sample is a scalar: without an axis of its own, the batch would be reduced
        shape = x.shape
        return _all_flat(prim(reshape(x, (-1, 1)), _one_axis(axis), *values(rest)), shape)
    return paired(prim(x, shift(axis, x.ndim - 1), *values(rest)))


@constexpr
def _along(axis, rank):
    return _behind(axis)


reduction = over_axis(_reduced)
along_axis = over_axis(_along)


def one_tensor(compute: Callable) -> Callable:
    """One tensor, then parameters: ``compute(prim, x, *parameters)`` is given x with its batch axis
    first.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(x_pair, *rest):
            x, dim = x_pair
            if dim is None:
                return unpaired(prim(x, *values(rest)))
            return paired(compute(prim, front(x, dim), *values(rest)))

        return rule

    return getter


def axis_at(position: int) -> Callable:
    """One tensor, then parameters, the one at `position` (1, 2, ...) an axis or a tuple of them."""

    def compute(prim, x, *parameters):
        return prim(x, *_shifted_at(parameters, position - 1))

    return one_tensor(compute)


@constexpr
def _shifted_at(constants, position):
    return (*constants[:position], _behind(constants[position]), *constants[position + 1 :])


def _as_it_is(prim, x, *parameters):
    return prim(x, *parameters)


leading = one_tensor(_as_it_is)  # by a kernel that treats any leading axes as a batch


def constant(prim, axis_size):
    """No tensor that could be batched: the batch does not matter."""
    prim = primitive(prim)

    def rule(*pairs):
        return prim(*values(pairs)), None

    return rule


@constexpr
def _pair_axis(axis, shape):
    """An axis of batch-first tensors; far below zero it stands for the first of length 3, as
    `Cross` has it.
    """
    if axis < -len(shape):
        return next(k for k, length in enumerate(shape) if k and length == 3)
    return axis + 1 if axis >= 0 else axis


def two_along(prim, axis_size):
    """Two tensors of one shape, then an axis."""
    prim = primitive(prim)

    def rule(x_pair, y_pair, axis_pair):
        (x, x_dim), (y, y_dim), (axis, _) = x_pair, y_pair, axis_pair
        if x_dim is None and y_dim is None:
            return prim(x, y, axis), None
        x, y = filled(x, x_dim, axis_size), filled(y, y_dim, axis_size)
        return prim(x, y, _pair_axis(axis, x.shape)), 0

    return rule


# --- the batch joins the samples ------------------------------------------------------------------


def _joined(x, dim, size):
    x = filled(x, dim, size)
    return reshape(x, merged(x.shape, 0))


def joining(count: int, shape: bool = False) -> Callable:
    """`count` tensors with samples on their first axis, then parameters; with `shape` the first of
    these is a shape with as many samples."""

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, rest = pairs[:count], values(pairs[count:])
            if not any_batched(dims_of(tensors)):
                return unpaired(prim(*tensors_of(tensors), *rest))
            if shape:
                rest = (scaled(rest[0], 0, axis_size), *rest[1:])
            out = prim(*[_joined(x, dim, axis_size) for x, dim in tensors], *rest)
            return reshape(out, apart(out.shape, 0, axis_size)), 0

        return rule

    return getter


# --- a weight per channel -------------------------------------------------------------------------


@constexpr
def channel_shape(shape, batched, rank):
    """(B, C) or (C,) against samples of `rank` axes with channels second: (B, 1, C, 1, ...) or (C,
    1, ...).
    """
    behind = (1,) * (rank - 2)
    if rank < 2:
        return (shape[0], 1) if batched else (1,)
    return (shape[0], 1, shape[1], *behind) if batched else (shape[0], *behind)


@constexpr
def all_but_channels(rank):
    """Axes of a batch-first tensor to sum for one number a channel."""
    return (1,) + tuple(range(3, rank))
