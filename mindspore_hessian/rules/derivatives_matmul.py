"""Derivative rule of the matrix product: MindSpore's own is right, but copies the transpose of both operands at every
call (at 4096 x 4096 that takes longer than the product); here the kernels read them transposed."""
from __future__ import annotations

from mindspore import ops

from mindspore_hessian.rules._define import Derivative

_right_transposed, _left_transposed = ops.MatMul(False, True), ops.MatMul(True, False)
_stack_right_transposed, _stack_left_transposed = ops.BatchMatMul(False, True), ops.BatchMatMul(True, False)


@ops.constexpr
def _rows(shape, width):
    size = 1
    for length in shape:
        size *= length
    return size // width, width


@ops.constexpr
def _as_matrix(shape, left):
    """A vector as the matrix that it stands for: a row on the left, a column on the right."""
    if len(shape) > 1:
        return tuple(shape)
    return (1, shape[0]) if left else (shape[0], 1)


@ops.constexpr
def _stacked(x, w):
    """The shape of the product of two stacks of matrices."""
    return (*_broadcast(x[:-2], w[:-2]), x[-2], w[-1])


def _broadcast(a, b):
    longer = max(len(a), len(b))
    a, b = (1,) * (longer - len(a)) + tuple(a), (1,) * (longer - len(b)) + tuple(b)
    return tuple(max(one, other) for one, other in zip(a, b, strict=True))


@ops.constexpr
def _lead(shape, batch):
    """The shape of a matrix or stack spread over the batch axes of the product."""
    return (*batch, *shape[-2:])


@ops.constexpr
def _summed_axes(shape, batch):
    """Axes of a result over `batch` along which an operand of this shape was repeated."""
    own = (1,) * (len(batch) - len(shape) + 2) + tuple(shape[:-2])
    return tuple(axis for axis, (one, whole) in enumerate(zip(own, batch, strict=True)) if one != whole)


def _back(d, shape, batch):
    axes = _summed_axes(shape, batch)
    if axes:
        d = d.sum(axes)
    return d.reshape(shape)


@ops.constexpr
def known(*shapes):
    """Whether every length is known as MindSpore compiles."""
    return all(length is not None and length >= 0 for shape in shapes for length in shape)


@ops.constexpr
def _leading(rank):
    return tuple(range(rank - 2))


@ops.constexpr
def _never_repeated(x, w):
    """Refuse stacks with dynamic shapes where an operand might be repeated along a batch axis."""
    if len(x) != len(w) or any((one == 1) != (other == 1) for one, other in zip(x[:-2], w[:-2], strict=True)):
        raise ValueError(f"mindspore_hessian has no gradient of a matrix product of shapes {x} and {w}, dynamic and "
                         "perhaps broadcast. Give them one rank, or call mindspore_hessian.rules.uninstall() first.")
    return True


def _dynamic(x, w, dout):
    """The gradients without the lengths of the axes: matrices, or stacks of which only the left one may be higher."""
    if x.ndim == 2 and w.ndim == 2:
        return _right_transposed(dout, w), _left_transposed(x, dout)
    if w.ndim == 2 and x.ndim > 2:
        dw = _stack_left_transposed(x, dout).sum(_leading(x.ndim))
        return ops.matmul(dout, ops.transpose(w, (1, 0))), dw
    _never_repeated(x.shape, w.shape)
    return _stack_right_transposed(dout, w), _stack_left_transposed(x, dout)


def matmul(prim):
    """x @ w for vectors, matrices and stacks: d w^T and x^T d, summed where an operand was repeated."""
    def bprop(x, w, out, dout):
        if not known(x.shape, w.shape):
            return _dynamic(x, w, dout)
        left, right = _as_matrix(x.shape, True), _as_matrix(w.shape, False)
        if len(right) == 2:  # a stack on the left is one tall matrix
            rows, matrix = x.reshape(_rows(x.shape, left[-1])), w.reshape(right)
            d = dout.reshape(_rows(dout.shape, right[-1]))
            return _right_transposed(d, matrix).reshape(x.shape), _left_transposed(rows, d).reshape(w.shape)
        whole = _stacked(left, right)
        d, batch = dout.reshape(whole), whole[:-2]
        wide_x = ops.broadcast_to(x.reshape(left), _lead(left, batch))
        wide_w = ops.broadcast_to(w, _lead(right, batch))
        dx = _back(_stack_right_transposed(d, wide_w), left, batch)
        return dx.reshape(x.shape), _back(_stack_left_transposed(wide_x, d), right, batch)
    return bprop


RULES: tuple[Derivative, ...] = (
    Derivative("MatMulExt", matmul, "MindSpore's copies the transpose of both operands at every call", replaces=True),
)
