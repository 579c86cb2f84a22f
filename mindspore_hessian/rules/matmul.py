"""Rules of matrix products.

MindSpore's own derivative is right, but copies the transpose of both operands at every call (at
4096 x 4096 that takes longer than the product); here the kernels read them transposed. In a batch,
one large product beats many small ones: with one operand batched, the batch joins the rows or
columns of a single product and the unbatched operand is read as it is. Only with both batched is it
a batch of products.
"""

from __future__ import annotations

from math import prod

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian.rules.forward import (
    FORWARD,
    UNIFORM,
    allow,
    matrix_product,
    of_each_sample,
    shifting,
    straight,
    uniformly,
    wide,
)
from mindspore_hessian.rules.kit import (
    aligned,
    batch_first,
    copied_to,
    front,
    known,
    primitive,
    reshape,
    sample_rank,
    transpose,
)
from mindspore_hessian.rules.registry import COPIES, batching, derivative, expansion, forward
from mindspore_hessian.rules.taylor import bilinear


def _broadcast(one, two):
    rank = max(len(one), len(two))
    pairs = zip((1,) * (rank - len(one)) + one, (1,) * (rank - len(two)) + two, strict=True)
    return tuple(b if a == 1 else a for a, b in pairs)


# --- derivatives ----------------------------------------------------------------------------------

_right_transposed, _left_transposed = ops.MatMul(False, True), ops.MatMul(True, False)
_stack_right_transposed, _stack_left_transposed = (
    ops.BatchMatMul(False, True),
    ops.BatchMatMul(True, False),
)


@constexpr
def _rows(shape, width):
    size = 1
    for length in shape:
        size *= length
    return size // width, width


@constexpr
def _as_matrix(shape, left):
    """A vector as the matrix that it stands for: a row on the left, a column on the right."""
    if len(shape) > 1:
        return tuple(shape)
    return (1, shape[0]) if left else (shape[0], 1)


@constexpr
def _stacked(x, w):
    """The shape of the product of two stacks of matrices."""
    return (*_broadcast(x[:-2], w[:-2]), x[-2], w[-1])


@constexpr
def _lead(shape, batch):
    """The shape of a matrix or stack spread over the batch axes of the product."""
    return (*batch, *shape[-2:])


@constexpr
def _summed_axes(shape, batch):
    """Axes of a result over `batch` along which an operand of this shape was repeated."""
    own = (1,) * (len(batch) - len(shape) + 2) + tuple(shape[:-2])
    return tuple(
        axis for axis, (one, whole) in enumerate(zip(own, batch, strict=True)) if one != whole
    )


def _unrepeated(d, shape, batch):
    axes = _summed_axes(shape, batch)
    if axes:
        d = d.sum(axes)
    return d.reshape(shape)


@constexpr
def _leading(rank):
    return tuple(range(rank - 2))


@constexpr
def _never_repeated(x, w):
    """Refuse stacks with dynamic shapes where an operand might be repeated along a batch axis."""
    if len(x) != len(w) or any(
        (one == 1) != (other == 1) for one, other in zip(x[:-2], w[:-2], strict=True)
    ):
        raise ValueError(
            f"mindspore_hessian has no gradient of a matrix product of shapes {x} and {w}, dynamic "
            "and perhaps broadcast. Give them one rank, or call "
            "mindspore_hessian.rules.uninstall() first."
        )
    return True


def _dynamic(x, w, dout):
    """The gradients without the lengths of the axes: matrices, or stacks of which only the left one
    may be higher.
    """
    if x.ndim == 2 and w.ndim == 2:
        return _right_transposed(dout, w), _left_transposed(x, dout)
    if w.ndim == 2 and x.ndim > 2:
        dw = _stack_left_transposed(x, dout).sum(_leading(x.ndim))
        return ops.matmul(dout, ops.transpose(w, (1, 0))), dw
    _never_repeated(x.shape, w.shape)
    return _stack_right_transposed(dout, w), _stack_left_transposed(x, dout)


@derivative(
    "MatMulExt",
    why="MindSpore's copies the transpose of both operands at every call",
    replaces=True,
)
def matmul_ext(prim):
    """x @ w for vectors, matrices and stacks: d w^T and x^T d, summed where an operand was
    repeated.
    """

    def bprop(x, w, out, dout):
        if not known(x.shape, w.shape):
            return _dynamic(x, w, dout)
        left, right = _as_matrix(x.shape, True), _as_matrix(w.shape, False)
        if len(right) == 2:  # a stack on the left is one tall matrix
            rows, matrix = x.reshape(_rows(x.shape, left[-1])), w.reshape(right)
            d = dout.reshape(_rows(dout.shape, right[-1]))
            return _right_transposed(d, matrix).reshape(x.shape), _left_transposed(rows, d).reshape(
                w.shape
            )
        whole = _stacked(left, right)
        d, batch = dout.reshape(whole), whole[:-2]
        wide_x = copied_to(x.reshape(left), _lead(left, batch))
        wide_w = copied_to(w, _lead(right, batch))
        dx = _unrepeated(_stack_right_transposed(d, wide_w), left, batch)
        return dx.reshape(x.shape), _unrepeated(_stack_left_transposed(wide_x, d), right, batch)

    return bprop


# --- batching -------------------------------------------------------------------------------------


def _split(shape, dim):
    """(batch size or None, sample shape, axes of the sample) of a batched or unbatched shape."""
    axes = [axis for axis in range(len(shape)) if dim is None or axis != dim % len(shape)]
    return None if dim is None else shape[dim], tuple(shape[axis] for axis in axes), axes


def _operand(shape, dim, place, target):
    """(order, shape, full shape): how to transpose, reshape and broadcast an operand; None for a
    step not needed.

    Its sample axes keep their order, the batch goes to `place` among them; `target` is the shape
    before broadcasting and the shape after.
    """
    order = [axis for axis in range(len(shape)) if dim is None or axis != dim % len(shape)]
    if dim is not None:
        order.insert(place, dim % len(shape))
    moved = tuple(shape[axis] for axis in order)
    before, after = target
    return (
        None if order == sorted(order) else tuple(order),
        None if moved == before else before,
        None if before == after else after,
    )


@constexpr
def product_plan(a_shape, b_shape, a_dim, b_dim, flip_a, flip_b):
    """What to do to a, to b, flags and kind of the product, and how its result unfolds: (shape or
    None, dim).

    Samples are (*leading, rows, inner) and (*leading, inner, columns), the last two swapped where
    the flag says so; leading axes broadcast; a sample of one axis is a vector, a row on the left
    and a column on the right.
    """
    size_a, a_sample, _ = _split(a_shape, a_dim)
    size_b, b_sample, _ = _split(b_shape, b_dim)
    size = size_a or size_b
    a_vector, b_vector = len(a_sample) == 1, len(b_sample) == 1
    if a_vector:
        a_sample, flip_a = (1, *a_sample), False
    if b_vector:
        b_sample, flip_b = (1, *b_sample), True
    inner = a_sample[-2] if flip_a else a_sample[-1]
    columns = b_sample[-2] if flip_b else b_sample[-1]
    a_leading, b_leading, rows = (
        a_sample[:-2],
        b_sample[:-2],
        (a_sample[-1] if flip_a else a_sample[-2],),
    )
    if (
        a_leading and not b_leading and not flip_a
    ):  # b is one matrix: leading axes are but more rows
        a_leading, rows = (), a_leading + rows
    leading, height = _broadcast(a_leading, b_leading), prod(rows)
    row_axes = 0 if a_vector else len(a_sample) - 2 - len(a_leading) + 1
    rows_out, columns_out = () if a_vector else rows, () if b_vector else (columns,)

    def target(own, first, second, flip):
        last = (second, first) if flip else (first, second)
        ones = (1,) * (len(leading) - len(own)) + own
        return batch + ones + last, batch + leading + last

    batch = (size,) if size_a and size_b else ()
    a_times, b_times = (1, 1) if batch else (size_a or 1, size_b or 1)
    a_place = 0 if batch else len(a_leading) + (1 if flip_a else 0)
    b_place = 0 if batch or b_vector else len(b_leading) + (0 if flip_b else 1)
    to_a = _operand(a_shape, a_dim, a_place, target(a_leading, height * a_times, inner, flip_a))
    to_b = _operand(b_shape, b_dim, b_place, target(b_leading, inner, columns * b_times, flip_b))
    if batch:
        out, dim = (*batch, *leading, *rows_out, *columns_out), 0
    elif size_a:
        out, dim = (*leading, size, *rows_out, *columns_out), len(leading)
    else:
        out, dim = (*leading, *rows_out, size, *columns_out), len(leading) + row_axes
    made = batch + leading + (height * a_times, columns * b_times)
    return to_a, to_b, (flip_a, flip_b, len(made) > 2), (None if made == out else out, dim)


def _prepared(x, steps):
    order, shape, full = steps
    if order is not None:
        x = transpose(x, order)
    if shape is not None:
        x = reshape(x, shape)
    if full is not None:
        x = copied_to(x, full)
    return x


@constexpr
def _as_row(a_shape, b_shape, a_dim, b_dim, flip_b):
    """For a matrix times batched columns: the shape and the batch axis of the columns as vectors,
    and the last axes of the result; None for other products.
    """
    if a_dim is not None or len(a_shape) != 2:
        return None
    _, sample, axes = _split(b_shape, b_dim)
    if len(sample) == 1:
        return b_shape, b_dim, ()
    if len(sample) > 2 or sample[0 if flip_b else 1] != 1:
        return None
    kept = [axis for axis in range(len(b_shape)) if axis != axes[0 if flip_b else 1]]
    return tuple(b_shape[axis] for axis in kept), kept.index(b_dim % len(b_shape)), (1,)


def multiply(a, b, a_dim, b_dim, flip_a, flip_b):
    """Batched product (at least one operand is batched) and where its batch is."""
    row = _as_row(a.shape, b.shape, a_dim, b_dim, flip_b)
    if row is None:
        return _multiply(a, b, a_dim, b_dim, flip_a, flip_b)
    # a b = (b^T a^T)^T, where the batch stays in front: nothing is transposed in memory
    shape, dim, last = row
    out, _ = _multiply(reshape(b, shape), a, dim, None, False, not flip_a)
    return reshape(out, (*out.shape, *last)) if last else out, 0


def _multiply(a, b, a_dim, b_dim, flip_a, flip_b):
    to_a, to_b, kind, out = product_plan(a.shape, b.shape, a_dim, b_dim, flip_a, flip_b)
    a, b = _prepared(a, to_a), _prepared(b, to_b)
    flip_a, flip_b, stacked = kind
    shape, dim = out
    product = ops.BatchMatMul(flip_a, flip_b)(a, b) if stacked else ops.MatMul(flip_a, flip_b)(a, b)
    if shape is None:
        return product, dim
    return reshape(product, shape), dim


@batching("MatMul", "BatchMatMul", why=COPIES, replaces=True)
def batched_matmul(prim, axis_size):
    """Matrix product; MatMul and BatchMatMul have a flag for each operand that transposes it."""
    prim = primitive(prim)

    def rule(a_pair, b_pair, flip_a_pair, flip_b_pair):
        return _product(prim, a_pair, b_pair, flip_a_pair, flip_b_pair)

    return rule


def _product(prim, a_pair, b_pair, flip_a_pair, flip_b_pair):
    (a, a_dim), (b, b_dim), (flip_a, _), (flip_b, _) = a_pair, b_pair, flip_a_pair, flip_b_pair
    if a_dim is None and b_dim is None:
        return prim(a, b, flip_a, flip_b), None
    return multiply(a, b, a_dim, b_dim, flip_a, flip_b)


@batching("MatMulExt", why="MindSpore's rule ignores the batch axes it is given", replaces=True)
@batching("BatchMatMulExt")
def batched_matmul_ext(prim, axis_size):
    """Matrix product as numpy.matmul: vectors allowed, no flags."""
    prim = primitive(prim)

    def rule(a_pair, b_pair):
        a, a_dim = a_pair
        b, b_dim = b_pair
        if a_dim is None and b_dim is None:
            return prim(a, b), None
        return multiply(a, b, a_dim, b_dim, False, False)

    return rule


@batching("Dense", why=COPIES, replaces=True)
def batched_dense(prim, axis_size):
    """Dense: x @ w.T + b; x of any rank, w a matrix, b a vector or None."""
    prim = primitive(prim)

    def rule(x_pair, w_pair, b_pair):
        x, x_dim = x_pair
        w, w_dim = w_pair
        b, b_dim = b_pair
        if w_dim is None and b_dim is None:
            return prim(front(x, x_dim), w, b), batch_first(x_dim)
        if x_dim is None and w_dim is None:
            out, dim = prim(x, w, None), None
        else:
            out, dim = multiply(x, w, x_dim, w_dim, False, True)
        if b is None:
            return out, dim
        rank = sample_rank(out, dim)
        return aligned(out, dim, rank) + aligned(b, b_dim, rank), 0

    return rule


# --- forward --------------------------------------------------------------------------------------

forward("MatMul", "MatMulExt", "BatchMatMul", "BatchMatMulExt", "Mv", "Dot", "Outer")(
    matrix_product
)
forward("BiasAdd")(shifting)


def _uniform_dense(prim, usual, pushed):
    """j goes without b."""

    def rule(x_pair, w_pair, b_pair):
        v, j = x_pair[0]
        if of_each_sample(v.shape, j.shape):
            k, dim = usual((j, 0), w_pair, (None, None))
            return ((prim(v, w_pair[0], b_pair[0]), front(k, dim)), UNIFORM)
        return pushed(wide(x_pair), w_pair, b_pair)

    return rule


@forward("Dense")
@uniformly(_uniform_dense)
@straight
@allow(0)
def pushed_dense(prim, usual):
    """x w^T + b, b for the value alone."""

    def rule(x_pair, w_pair, b_pair):
        v, j, l = x_pair[0]  # noqa: E741
        k, dim = usual((j, 0), w_pair, (None, None))
        return ((prim(v, w_pair[0], b_pair[0]), front(k, dim), prim(l, w_pair[0], None)), FORWARD)

    return rule


# --- Taylor coefficients --------------------------------------------------------------------------

expansion("MatMul", "MatMulExt", "BatchMatMul", "BatchMatMulExt", "Mv", "Dot", "Outer")(bilinear)
