"""What a layer sees: its inputs and the gradients at its outputs, gathered inside one compiled
graph.

A layer with weights is linear in them: y = W a + b for the rows a of its inputs. While a graph is
compiled, the layers' outputs go through a `_Probe`, which is the identity, and whose derivative is
of our own: it hands the gradient on, and gives the "gradients" of two numbers that only it knows, a
statistic of the rows a, and one of the rows g of the gradient at the output. A layer that is called
twice gets the sum of both, as gradients do. Neither the network nor what it computes is changed;
outside of compilation nothing is there.

Rows have the axes (groups, samples, positions, features); the number of samples is that of the
batch where its axis can be cut into so many, else that of the axis.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops, vmap
from numpy.lib.stride_tricks import sliding_window_view

from mindspore_hessian import _compat
from mindspore_hessian.core.inplace import rewriting
from mindspore_hessian.core.program import Function
from mindspore_hessian.core.space import Space, flat_dtype
from mindspore_hessian.core.transform import as_it_is
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.uses import Use, rewritten, uses_of
from mindspore_hessian.transforms import compose

_GRAM, _RESHAPE, _CONCAT = ops.MatMul(transpose_a=True), ops.Reshape(), ops.Concat(-1)
_BATCHED, _PRODUCTS, _MATMUL = ops.BatchMatMul(transpose_a=True), ops.BatchMatMul(), ops.MatMul()


# --- the rows of a layer's inputs and of the gradients at its outputs -----------------------------


@ops.constexpr
def _positions(shape, last):
    """The numbers of rows and of positions in each, for a shape without its feature axis."""
    inner = shape[:-1] if last else shape[:1] + shape[2:]
    return (1, 1) if not inner else (inner[0], int(np.prod(inner[1:], dtype=np.int64)))


def _features_last(groups):
    """(n, ..., features) as rows."""

    def rows(x):
        n, t = _positions(x.shape, True)
        return _RESHAPE(x, (1, n, t, x.shape[-1]))

    return rows


def _features_second(groups):
    """(n, features, ...) as rows."""

    def rows(x):
        n, t = _positions(x.shape, False)
        parts = _RESHAPE(x, (n, groups, x.shape[1] // groups, t))
        return parts.transpose((1, 0, 3, 2))

    return rows


def _same(size, kernel, stride, dilation):
    """The padding of pad_mode "same", before and after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def _patches(geometry, groups):
    """The patches that a convolution multiplies with its kernel, in the order of the weight:
    channel, then place.
    """
    kernel, stride, dilation, pads = geometry
    places = tuple(itertools.product(*map(range, kernel)))
    axes = tuple(range(len(kernel)))

    @ops.constexpr
    def padded(shape):
        """For `ops.pad`, the last axis first."""
        found = pads or tuple(
            _same(*one) for one in zip(shape[2:], kernel, stride, dilation, strict=True)
        )
        return tuple(number for pair in reversed(found) for number in pair)

    @ops.constexpr
    def window(shape, place):
        """Where the entries at one place of the kernel begin, end, and how far they are apart."""
        start = tuple(place[i] * dilation[i] for i in axes)
        counts = tuple(
            (shape[2 + i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in axes
        )
        end = tuple(start[i] + (counts[i] - 1) * stride[i] + 1 for i in axes)
        return (0, 0, *start), (*shape[:2], *end), (1, 1, *stride)

    rows = _features_second(groups)

    def unfold(x):
        x = ops.pad(x, padded(x.shape))
        parts = ()
        for place in places:
            begin, end, step = window(x.shape, place)
            parts = parts + (ops.strided_slice(x, begin, end, step),)
        whole = ops.stack(parts, 2)
        return rows(_RESHAPE(whole, (x.shape[0], x.shape[1] * len(places)) + whole.shape[3:]))

    return unfold


def _unfolded(cell: nn.Cell, x: np.ndarray) -> np.ndarray:
    """The same by numpy, in a fraction of the time that a graph takes for it: (groups, samples,
    positions, features), each row followed by a 1."""
    (kernel, stride, dilation, pads), groups = _geometry(cell), _groups(cell)
    axes = len(kernel)
    x = x.reshape(x.shape[:2] + (1,) * (2 + axes - x.ndim) + x.shape[2:])
    pads = pads or tuple(
        _same(*one) for one in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    )
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    steps = (..., *(slice(None, None, step) for step in (*stride, *dilation)))
    windows = sliding_window_view(padded, reach, tuple(range(2, 2 + axes)))[steps]  # type: ignore[call-overload]
    n, channels, *places = windows.shape
    windows = windows.reshape((n, groups, channels // groups, *places)).transpose(
        (1, 2, *range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes))
    )
    width = channels // groups * math.prod(kernel)
    out = np.ones((groups, width + 1, *windows.shape[2 + axes :]), x.dtype)
    out[:, :-1].reshape(windows.shape)[...] = windows  # a view: one axis is split
    return out.reshape(groups, width + 1, n, -1).transpose(0, 2, 3, 1)


def _indices(groups):
    """Integers as rows; their one feature stands for that of a column of the identity."""

    def rows(x):
        n, t = _positions(x.shape + (1,), True)
        return _RESHAPE(x, (1, n, t, 1))

    return rows


# --- kinds of layers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How a class of layers is linear in its weights.

    Attributes:
        classes: whose own `construct` it is.
        inputs: ``inputs(cell)`` makes a graph function: the layer's input as rows.
        gradients: the same for the gradient at the output.
        weight, bias: the names of its Parameters.
        indexed: the inputs are indices, and the weight has a row for each of them.
        refuses: why a layer of the class is none of these, or None.
        inside: what takes the place of `construct` where that does more than the linear part; None:
            nothing.
        unfolded: ``unfolded(cell, x)``: the rows, each followed by a 1, of the input as it is, by
            numpy; None where a graph has them at no cost.
        scales: the weight multiplies normalised inputs entry by entry, and the bias is added.
        turned: the weight is of shape (inputs, outputs), not (outputs, inputs).
        parts: the weight is that of so many layers of one size, one under another.
    """

    classes: tuple[type, ...]
    inputs: Callable
    gradients: Callable
    weight: str = "weight"
    bias: str | None = "bias"
    indexed: bool = False
    refuses: Callable[[nn.Cell], str | None] = lambda cell: None
    inside: Callable[[nn.Cell, Callable], Callable] | None = None
    unfolded: Callable[[nn.Cell, np.ndarray], np.ndarray] | None = None
    scales: bool = False
    turned: bool = False
    parts: int = 1


def _groups(cell: nn.Cell) -> int:
    return int(getattr(cell, "group", None) or getattr(cell, "groups", None) or 1)


def _geometry(cell: nn.Cell) -> tuple:
    """Kernel, stride, dilation, and the padding of each axis (None: that of "same")."""

    def several(value: Any) -> tuple[int, ...]:
        return (value,) * rank if isinstance(value, int) else tuple(value)[-rank:]

    rank = len(cell.weight.shape) - 2
    kernel, stride, dilation = (
        tuple(cell.weight.shape[2:]),
        several(cell.stride),
        several(cell.dilation),
    )
    if hasattr(cell, "padding_mode"):  # of mint.nn
        if cell.padding == "same":
            return (
                kernel,
                stride,
                dilation,
                tuple(
                    (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
                    for k, d in zip(kernel, dilation, strict=True)
                ),
            )
        return (
            kernel,
            stride,
            dilation,
            tuple(
                (p, p) for p in (several(0) if cell.padding == "valid" else several(cell.padding))
            ),
        )
    if cell.pad_mode == "same":
        return kernel, stride, dilation, None
    sides = (cell.padding,) * (2 * rank) if isinstance(cell.padding, int) else tuple(cell.padding)
    return kernel, stride, dilation, tuple(zip(sides[::2], sides[1::2], strict=True))


def _flattened_1d(cell: nn.Cell) -> Callable:
    """nn.Conv1d is a convolution of two axes, the first of one place."""
    unfold = _patches(_geometry(cell), _groups(cell))

    def rows(x):
        return unfold(ops.expand_dims(x, 2))

    return rows


def _refuses_convolution(cell: nn.Cell) -> str | None:
    if getattr(cell, "data_format", "NCHW") not in ("NCHW", "NCDHW"):
        return f"its data_format is {cell.data_format}"
    mode = getattr(cell, "padding_mode", "zeros")
    return None if mode == "zeros" else f"its padding_mode is {mode!r}"


def _refuses_embedding(cell: nn.Cell) -> str | None:
    for name in ("padding_idx", "max_norm", "scale_grad_by_freq"):
        if type(cell) is not nn.Embedding and getattr(cell, name, None):
            return f"its {name} changes the gradient"
    return (
        "its padding_idx changes the gradient"
        if (type(cell) is not nn.Embedding and getattr(cell, "padding_idx", None) is not None)
        else None
    )


def _before_activation(cell: nn.Cell, through: Callable) -> Callable:
    """nn.Dense, whose activation is no part of what is linear."""
    if not cell.activation_flag:
        return _whole(cell, through)
    has_bias, features = cell.has_bias, cell.out_channels

    def construct(self, x):
        y = self.matmul(_RESHAPE(x, (-1, x.shape[-1])), self.weight)
        if has_bias:
            y = self.bias_add(y, self.bias)
        return self.activation(through(_RESHAPE(y, x.shape[:-1] + (features,)), x))

    return construct


def _whole(cell: nn.Cell, through: Callable) -> Callable:
    """The layer as it is."""
    plain = MethodType(type(cell).construct, cell)

    def construct(self, x):
        return through(plain(x), x)

    return construct


def _samples_first(rows: Callable) -> Callable:
    """Rows whose positions come before their samples, in the usual order."""

    def samples_first(x):
        return rows(x).swapaxes(1, 2)

    return samples_first


def _three(cell: nn.Cell) -> Callable:
    """What `_projected` looks at, as rows: queries, keys and values, or their gradients."""
    samples_first = cell.batch_first

    def rows(x):
        if x.ndim == 3:  # of one sample
            return ops.expand_dims(x, 1)
        return x if samples_first else x.swapaxes(1, 2)

    return rows


def _lengthened(x, axis, length):
    """x with zeros behind it along an axis."""
    missing = length - x.shape[axis]
    if missing == 0:
        return x
    shape = x.shape[:axis] + (missing,) + x.shape[axis + 1 :]
    return ops.concat((x, ops.zeros(shape, x.dtype)), axis)


def _projected(cell: nn.Cell, through: Callable) -> Callable:
    """nn.MultiheadAttention as four layers: three that make queries, keys and values, which are
    looked at together, and its Dense layer for the output, which MindSpore does not call. Its
    function multiplies with 1 in their place, which changes no bit. Where keys are not as many as
    queries, rows of zeros follow, without the 1 that says that they count.
    """
    width, samples_first, dtype = cell.embed_dim, cell.batch_first, cell.in_proj_weight.dtype
    options = (cell.add_zero_attn, cell.dropout, Tensor(np.eye(width), dtype))

    def looked_at(made, seen, axis):
        if seen[0].shape == seen[1].shape:
            return through(ops.stack(made), ops.stack(seen))
        length = max(seen[0].shape[axis], seen[1].shape[axis])
        ys, xs = (), ()
        for at in range(3):
            ys = ys + (_lengthened(made[at], axis, length),)
            xs = xs + (_lengthened(_extended(seen[at], width), axis, length),)
        return through(ops.stack(ys), ops.stack(xs))

    def construct(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
    ):
        seen, made = (query, key, value), ()
        for at in range(3):
            start, stop = at * width, (at + 1) * width
            part = ops.matmul(seen[at], self.in_proj_weight[start:stop].swapaxes(0, 1))
            if self.in_proj_bias is not None:
                part = part + self.in_proj_bias[start:stop]
            made = made + (part,)
        turned = samples_first and query.ndim == 3
        axis = 1 if turned else 0
        whole = looked_at(made, seen, axis)
        parts = ()
        for at in range(3):
            part = ops.narrow(whole[at], axis, 0, seen[at].shape[axis])
            parts = parts + (part.swapaxes(0, 1) if turned else part,)
        add_zero_attn, dropout, one = options
        out, weights = ops.function.nn_func.multi_head_attention_forward(
            parts[0],
            parts[1],
            parts[2],
            width,
            self.num_heads,
            None,
            None,
            self.bias_k,
            self.bias_v,
            add_zero_attn,
            dropout,
            one,
            None,
            training=self.training,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            use_separate_proj_weight=True,
            q_proj_weight=one,
            k_proj_weight=one,
            v_proj_weight=one,
            average_attn_weights=average_attn_weights,
            dtype=dtype,
        )
        if query.ndim == 3:  # samples first, for whoever looks at that layer
            out = self.out_proj(out.swapaxes(0, 1))
            out = out if samples_first else out.swapaxes(0, 1)
        else:
            out = self.out_proj(out)
        return (out, weights) if need_weights else (out,)

    return construct


def _refuses_widths(cell: nn.Cell) -> str | None:
    return None if cell.in_proj_weight is not None else "its keys or values are of another width"


def _instead(use: Use, through: Callable) -> Callable:
    """An expression of a user's own Cell, as a function of its arguments."""
    call, given = use.call, use.given

    def instead(*arguments):
        return through(call(*arguments), arguments[given])

    return instead


def _several(*names: str) -> tuple[type, ...]:
    """Classes of mint.nn, as far as this version of MindSpore has them."""
    return tuple(getattr(mint.nn, name) for name in names if hasattr(mint.nn, name))


KINDS = (
    Kind(
        (nn.Dense,),
        lambda cell: _features_last(1),
        lambda cell: _features_last(1),
        inside=_before_activation,
    ),
    Kind(_several("Linear"), lambda cell: _features_last(1), lambda cell: _features_last(1)),
    Kind(
        (nn.Conv2d, nn.Conv3d, *_several("Conv1d", "Conv2d", "Conv3d")),
        lambda cell: _patches(_geometry(cell), _groups(cell)),
        lambda cell: _features_second(_groups(cell)),
        refuses=_refuses_convolution,
        unfolded=_unfolded,
    ),
    Kind(
        (nn.Conv1d,),
        _flattened_1d,
        lambda cell: _features_second(_groups(cell)),
        refuses=_refuses_convolution,
        unfolded=_unfolded,
    ),
    Kind(
        (nn.Embedding,),
        lambda cell: _indices(1),
        lambda cell: _features_last(1),
        weight="embedding_table",
        bias=None,
        indexed=True,
    ),
    Kind(
        _several("Embedding"),
        lambda cell: _indices(1),
        lambda cell: _features_last(1),
        bias=None,
        indexed=True,
        refuses=_refuses_embedding,
    ),
    Kind(
        (nn.MultiheadAttention,),
        _three,
        _three,
        weight="in_proj_weight",
        bias="in_proj_bias",
        refuses=_refuses_widths,
        inside=_projected,
        parts=3,
    ),
)


def _kind_of_use(use: Use) -> Kind:
    """That of an expression in a user's own Cell."""
    if use.window is not None:
        kind = next(one for one in KINDS if nn.Conv2d in one.classes)
    else:
        kind = next(one for one in KINDS if one.indexed == use.indexed)
    return replace(kind, weight=use.weight, bias=use.bias or None, inside=None, turned=use.turned)


def _deviations(a, axes, eps):
    """Rows minus their mean over some axes, divided by the root of their variance."""
    apart = a - a.mean(axes, keep_dims=True)
    return apart / ops.sqrt(ops.square(apart).mean(axes, keep_dims=True) + eps)


def _of_batch_norm(cell: nn.Cell) -> Callable:
    """What a batch norm multiplies with its scale, by the statistics that it takes."""
    rows, always, eps = _features_second(1), cell.use_batch_statistics, float(cell.eps)
    mean, variance = cell.moving_mean, cell.moving_variance

    def normalised(x):
        a = rows(x)
        own = cell.training if always is None else always
        if own:
            return _deviations(a, (1, 2), eps)
        return (a - mean.astype(a.dtype)) / ops.sqrt(variance.astype(a.dtype) + eps)

    return normalised


def _of_layer_norm(cell: nn.Cell) -> Callable:
    rows, eps = _features_last(1), float(cell.epsilon)

    def normalised(x):
        return _deviations(rows(x), (3,), eps)

    return normalised


def _refuses_axes(cell: nn.Cell) -> str | None:
    last = len(cell.normalized_shape) == 1 and cell.begin_norm_axis == cell.begin_params_axis == -1
    return None if last else "it takes several axes together"


BATCH_NORM = Kind(
    (nn.BatchNorm1d, nn.BatchNorm2d),
    _of_batch_norm,
    lambda cell: _features_second(1),
    "gamma",
    "beta",
    scales=True,
)
LAYER_NORM = Kind(
    (nn.LayerNorm,),
    _of_layer_norm,
    lambda cell: _features_last(1),
    "gamma",
    "beta",
    refuses=_refuses_axes,
    scales=True,
)
SCALES, OF_POSITIONS = (BATCH_NORM, LAYER_NORM), (LAYER_NORM,)
NORMS = tuple(
    cls
    for cls in (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
        *_several(
            "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LayerNorm", "GroupNorm", "SyncBatchNorm"
        ),
    )
)


def kind_of(cell: nn.Cell, kinds: tuple[Kind, ...] = KINDS) -> Kind | None:
    """The kind of a Cell that computes as one of the classes of `kinds` does; None for any
    other.
    """
    construct = type(cell).construct
    return next(
        (
            kind
            for kind in kinds
            for cls in kind.classes
            if isinstance(cell, cls) and construct is getattr(cls, "construct", None)
        ),
        None,
    )


# --- statistics of rows ---------------------------------------------------------------------------
# Functions of the rows that MindSpore compiles. `count` is the number of samples of the batch. A
# row of inputs is followed by a 1, for the bias, and so that its second moment also says how much
# was summed.


def _extended(a, width):
    """Rows of so many features with a 1 behind each, unless they have it."""
    if a.shape[-1] > width:
        return a
    return _CONCAT((a, ops.ones(a.shape[:-1] + (1,), a.dtype)))


def _line(rows):
    """All rows of a group one under another."""
    return _RESHAPE(rows, (rows.shape[0], -1, rows.shape[-1]))


def _second_moment(rows, other):
    """The sum of outer products, (groups, features, features)."""
    if rows.shape[0] == 1:
        width, wide = rows.shape[-1], other.shape[-1]
        return _RESHAPE(
            _GRAM(_RESHAPE(rows, (-1, width)), _RESHAPE(other, (-1, wide))), (1, width, wide)
        )
    return _BATCHED(_line(rows), _line(other))


@ops.constexpr
def _cut(n, t, count):
    """Samples and positions of rows, which are as many samples as the batch has where that is
    possible.
    """
    return (count, n * t // count) if n % count == 0 else (n, t)


def _by_sample(rows, count):
    """(groups, samples, positions, features), with as many samples as the batch has."""
    n, t = _cut(rows.shape[1], rows.shape[2], count)
    return _RESHAPE(rows, (rows.shape[0], n, t, rows.shape[3]))


@ops.constexpr
def _spread(n, t, terms, count):
    """How the weights of the terms go to rows: to one each, to the positions of a sample alike, or
    to all alike.
    """
    return 0 if n * t == terms else 1 if n % count == 0 else 2


def _row_weights(rows, w, count):
    """The weight of each row, (1, samples, positions, 1), from those of the terms of the loss,
    (samples, terms).
    """
    n, t = rows.shape[1], rows.shape[2]
    how = _spread(n, t, w.size, count)
    if how == 0:
        return _RESHAPE(w, (1, n, t, 1))
    if how == 1:
        share = n * t // count
        alike = ops.broadcast_to(_RESHAPE(w.sum(1) / share, (count, 1)), (count, share))
        return _RESHAPE(alike, (1, n, t, 1))
    return ops.broadcast_to(w.sum() / (n * t), (1, n, t, 1))


@dataclass(frozen=True)
class Given:
    """What a statistic is made for: the kind of layer, its width, and the number of samples."""

    indexed: bool
    width: int
    count: int


def _moments(given):
    """The weighted sum of a a^T; of indices, how often each is there, and all together."""
    count, width, indexed = given.count, given.width, given.indexed

    def dense(a, w, p, q):
        a = _extended(a, width)
        return _second_moment(a * _row_weights(a, w, count), a)

    def counts(a, w, p, q):
        weights = _RESHAPE(_row_weights(a, w, count), (-1,))
        found = ops.unsorted_segment_sum(weights, _RESHAPE(a, (-1,)), width)
        return _CONCAT((found, _RESHAPE(weights.sum(), (1,))))

    return counts if indexed else dense


def _alike(given):
    """The same where all rows count 1."""
    width, indexed = given.width, given.indexed

    def dense(a, w, p, q):
        a = _extended(a, width)
        return _second_moment(a, a)

    def counts(a, w, p, q):
        a = _RESHAPE(a, (-1,))
        weights = ops.ones(a.shape, w.dtype)
        return _CONCAT((ops.unsorted_segment_sum(weights, a, width), _RESHAPE(weights.sum(), (1,))))

    return counts if indexed else dense


def _sums(given):
    """The sum over the positions of each sample, (groups, samples, features)."""
    count, width, indexed = given.count, given.width, given.indexed

    def dense(a, w, p, q):
        return _by_sample(_extended(a, width), count).sum(2)

    def counts(a, w, p, q):
        cut = _by_sample(a, count)
        onehot = ops.one_hot(
            _RESHAPE(cut, cut.shape[:-1]), width, Tensor(1.0, w.dtype), Tensor(0.0, w.dtype)
        )
        return _extended(onehot, width).sum(2)

    return counts if indexed else dense


def _rows(given):
    """The rows themselves, times the root of what each counts: (groups, rows, features)."""
    count, width = given.count, given.width

    def dense(a, w, p, q):
        return _line(_extended(a, width) * ops.sqrt(_row_weights(a, w, count)))

    return dense


def _plain(given):
    """The rows themselves, (groups, samples, positions, features)."""
    count, width = given.count, given.width

    def dense(a, w, p, q):
        return _by_sample(_extended(a, width), count)

    return dense


def _raw(given):
    """The input of the layer, which `Tap` hands over as it is."""

    def raw(a, w, p, q):
        return a

    return raw


@ops.constexpr
def _count(n, t, dtype):
    return Tensor([1, n * t], dtype)


def _calls(given):
    """1, and the number of rows, for each time that the layer is called."""

    def one(a, w, p, q):
        return _count(a.shape[1], a.shape[2], w.dtype)

    return one


def _nothing(given):
    def none(a, w, p, q):
        return ops.zeros((1,), w.dtype)

    return none


def _gradient_moments(given):
    """The sum of g g^T, (groups, outputs, outputs)."""

    def moments(a, g, w, p, q):
        return _second_moment(g, g)

    return moments


def _gradient_rows(given):
    """The rows themselves, (groups, samples, positions, outputs)."""
    count = given.count

    def rows(a, g, w, p, q):
        return _by_sample(g, count)

    return rows


def _gradient_sums(given):
    """The sum over the positions of each sample, (groups, samples, outputs)."""
    count = given.count

    def sums(a, g, w, p, q):
        return _by_sample(g, count).sum(2)

    return sums


def _first_sample(given):
    """The sum of g a^T over the positions of the first sample: the gradient by the weight, and the
    bias behind it.
    """
    count, width, indexed = given.count, given.width, given.indexed

    def dense(a, g, w, p, q):
        return _second_moment(
            _by_sample(g, count)[:, :1], _by_sample(_extended(a, width), count)[:, :1]
        )

    def counts(a, g, w, p, q):
        first, at = _by_sample(g, count)[0, 0], _by_sample(a, count)[0, 0]
        return ops.expand_dims(ops.unsorted_segment_sum(first, _RESHAPE(at, (-1,)), width), 0)

    return counts if indexed else dense


def _turned(rows, basis):
    """Rows in the basis, (groups, features, features)."""
    lines = _line(rows)
    if rows.shape[0] == 1:
        return _RESHAPE(_MATMUL(lines[0], basis[0]), rows.shape[:3] + (basis.shape[2],))
    return _RESHAPE(_PRODUCTS(lines, basis), rows.shape[:3] + (basis.shape[2],))


def _samples(given):
    """The gradient of each sample in the basis given, (groups, samples, outputs, inputs)."""
    count, width, indexed = given.count, given.width, given.indexed

    def dense(a, g, w, p, q):
        g, a = _by_sample(_turned(g, q), count), _by_sample(_turned(_extended(a, width), p), count)
        return _BATCHED(g, a)

    def counts(a, g, w, p, q):
        g, at = _by_sample(_turned(g, q), count), _by_sample(a, count)
        n = g.shape[1]
        place = _RESHAPE(at, (n, -1)) + width * _RESHAPE(ops.arange(n).astype(at.dtype), (n, 1))
        found = ops.unsorted_segment_sum(
            _RESHAPE(g, (-1, g.shape[-1])), _RESHAPE(place, (-1,)), n * width
        )
        found = _RESHAPE(found, (1, n, width, g.shape[-1]))
        return found if p.ndim == 0 else ops.matmul(ops.expand_dims(p, 1).swapaxes(2, 3), found)

    return counts if indexed else dense


def _squares(given):
    """The sum over the samples of the squares of their gradients in the basis given; for a layer
    called once.
    """
    samples, indexed, count, width = _samples(given), given.indexed, given.count, given.width

    def squares(a, g, w, p, q):
        alone = _by_sample(g, count).shape[2] == 1
        if indexed and alone and p.ndim == 0:
            squared = _RESHAPE(ops.square(_turned(g, q)), (-1, g.shape[-1]))
            return ops.expand_dims(ops.unsorted_segment_sum(squared, _RESHAPE(a, (-1,)), width), 0)
        if not indexed and alone:
            return _second_moment(
                ops.square(_turned(g, q)), ops.square(_turned(_extended(a, width), p))
            )
        return ops.square(samples(a, g, w, p, q)).sum(1)

    return squares


def _scale_sums(given):
    """The gradients by a scale and the shift behind it, (2, features)."""

    def sums(a, g, w, p, q):
        return ops.stack(((a * g)[0].sum((0, 1)), g[0].sum((0, 1))))

    return sums


def _scale_first(given):
    """The same of the first sample."""
    count = given.count

    def sums(a, g, w, p, q):
        a, g = _by_sample(a, count)[0, 0], _by_sample(g, count)[0, 0]
        return ops.stack(((a * g).sum(0), g.sum(0)))

    return sums


def _scale_squares(given):
    """The sums over the samples of their squares, (2, features)."""
    count = given.count

    def squares(a, g, w, p, q):
        g, a = _by_sample(g, count)[0], _by_sample(a, count)[0]
        return ops.stack((ops.square((a * g).sum(1)).sum(0), ops.square(g.sum(1)).sum(0)))

    return squares


INPUTS = {
    "moments": _moments,
    "alike": _alike,
    "rows": _rows,
    "plain": _plain,
    "raw": _raw,
    "sums": _sums,
    "calls": _calls,
    "nothing": _nothing,
}
GRADIENTS = {
    "moments": _gradient_moments,
    "rows": _gradient_rows,
    "sums": _gradient_sums,
    "first": _first_sample,
    "samples": _samples,
    "squares": _squares,
    "scale sums": _scale_sums,
    "scale first": _scale_first,
    "scale squares": _scale_squares,
}


# --- taps -----------------------------------------------------------------------------------------


class _Probe(nn.Cell):
    """The identity of y. Its derivative by the two slots is a statistic of the inputs, and one of
    the gradients.
    """

    def __init__(self, inputs: Callable, gradients: Callable):
        super().__init__(auto_prefix=False)
        self.inputs, self.gradients = inputs, gradients

    def construct(self, y, x, seen, passed, w, p, q):
        return y

    def bprop(self, y, x, seen, passed, w, p, q, out, dout):
        return (
            dout,
            ops.zeros_like(x),
            self.inputs(x, w, p, q),
            self.gradients(x, dout, w, p, q),
            ops.zeros_like(w),
            ops.zeros_like(p),
            ops.zeros_like(q),
        )


def _number(name: str, dtype: Any) -> Parameter:
    return Parameter(Tensor(0.0, dtype), name=name)


@dataclass(eq=False)
class Tap:
    """A layer to look at.

    Attributes:
        name: of the Cell in the network.
        cell, kind: the layer and its row of `KINDS`.
        use: the expression in the Cell that it is; None where it is the whole Cell.
        weight, bias: its Parameters.
        calls: how often the network calls it, once that is known.
        rows: how many rows that gives for the first batch.
        around: the attention whose projection of the output it is, or None.
        positions_first: its inputs have the positions of all samples before their samples.
    """

    name: str
    cell: nn.Cell
    kind: Kind
    use: Use | None = None
    around: nn.Cell | None = None
    positions_first: bool = False
    calls: int = 0
    rows: int = 0
    slots: tuple[Parameter, Parameter] = field(init=False)
    bases: list[Parameter] = field(default_factory=list)
    _made: dict[tuple, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        dtype = flat_dtype((self.weight.dtype,))
        own = f"{self.name}.{self.attribute}"
        self.slots = _number(f"{own}.seen", dtype), _number(f"{own}.passed", dtype)

    def widen(self, dtype: Any, samples: int | None = None) -> None:
        """Slots as large as the "moments", or as the "sums" of so many samples, so that a graph may
        compute with these.
        """
        (wide, narrow), groups = self.widths, self.groups
        shapes: tuple[tuple[int, ...], ...] = (groups, wide + 1, wide + 1), (groups, narrow, narrow)
        if self.kind.scales:
            shapes = (1,), (2, narrow)
        elif samples is not None:
            shapes = (groups, samples, wide + 1), (groups, samples, narrow)
        elif self.kind.indexed:
            shapes = (wide + 1,), shapes[1]
        self.slots = tuple(
            Parameter(Tensor(np.zeros(shape), dtype), name=slot.name)
            for slot, shape in zip(self.slots, shapes, strict=True)
        )
        self._made.clear()

    @property
    def layer(self) -> Any:
        """What says how it works: the Cell, or for a convolution in a user's own what this says."""
        if self.use is None or self.use.window is None:
            return self.cell
        return SimpleNamespace(weight=self.weight, **self.use.window)

    @property
    def weight(self) -> Parameter:
        return getattr(self.cell, self.kind.weight)

    @property
    def bias(self) -> Parameter | None:
        return getattr(self.cell, self.kind.bias, None) if self.kind.bias else None

    @cached_property
    def groups(self) -> int:
        return _groups(self.layer) if len(self.weight.shape) > 2 else self.kind.parts

    @property
    def how(self) -> str:
        """The way in which it uses its weight, in words: alike for layers that may share one."""
        return (
            "which looks up its rows"
            if self.kind.indexed
            else ("which multiplies with " + ("its transpose" if self.kind.turned else "it"))
            + (f" in {self.groups} groups" if self.groups > 1 else "")
        )

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of features of a row of inputs, without the 1, and of a row of gradients."""
        rows, *rest = self.weight.shape
        if self.kind.indexed or self.kind.turned:
            return rows, rest[0]
        return int(np.prod(rest)), rows // self.groups

    def shaped(self, matrix: np.ndarray) -> np.ndarray:
        """(groups, outputs, inputs), or (inputs, outputs) of indices, in the shape of the weight."""
        return matrix[0].T if self.kind.turned else matrix.reshape(self.weight.shape)

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """The other way round."""
        (wide, narrow), groups = self.widths, self.groups
        if self.kind.turned:
            return weight.reshape(wide, narrow).T[None]
        return weight.reshape((wide, narrow) if self.kind.indexed else (groups, narrow, wide))

    @property
    def has_positions(self) -> bool:
        """Whether the samples may be the second axis of its inputs: those of a convolution never
        are, and attention knows."""
        return self.kind.unfolded is None and self.kind.parts == 1

    @property
    def key(self) -> tuple[int, str]:
        """What is the same for another tap of the same layer."""
        return id(self.cell), self.attribute

    @property
    def attribute(self) -> str:
        """The name of what stands in the Cell while a graph is compiled."""
        return "construct" if self.use is None else self.use.name

    def construct(
        self, inputs: str, gradients: str, count: int, w: Parameter, basis: tuple
    ) -> Callable:
        """What takes the place of the Cell's own, or of the expression, while a graph is compiled;
        made once, since graphs are known by it.
        """
        key = inputs, gradients, count, w.shape, tuple(map(id, basis)), self.positions_first
        if key not in self._made:
            through = self._through(inputs, gradients, count, w, basis)
            made = (
                MethodType((self.kind.inside or _whole)(self.cell, through), self.cell)
                if self.use is None
                else _instead(self.use, through)
            )
            self._made[key] = made, w, basis
        return self._made[key][0]

    @cached_property
    def calling(self) -> Callable:
        """What calls this layer, where MindSpore uses its weight without a call."""

        def unseen(y, x):
            return y

        assert self.around is not None
        return MethodType(_projected(self.around, unseen), self.around)

    def _through(
        self, inputs: str, gradients: str, count: int, w: Parameter, basis: tuple
    ) -> Callable:
        given = Given(self.kind.indexed, self.widths[0], count)
        rows, of_gradients = self.kind.inputs(self.layer), self.kind.gradients(self.layer)
        if inputs == "raw":
            rows = as_it_is
        elif self.positions_first:
            rows, of_gradients = _samples_first(rows), _samples_first(of_gradients)
        seen, passed = INPUTS[inputs](given), GRADIENTS[gradients](given)

        def inputs_of(x):
            return rows(x) if given.indexed else rows(ops.cast(x, w.dtype))

        def from_inputs(x, w, p, q):
            return seen(inputs_of(x), w, p, q)

        def from_gradients(x, dout, w, p, q):
            return passed(inputs_of(x), of_gradients(ops.cast(dout, w.dtype)), w, p, q)

        probe, (first, second), (p, q) = _Probe(from_inputs, from_gradients), self.slots, basis

        def through(y, x):
            return probe(y, x, first, second, w, p, q)

        return through


_OF_NETWORKS = threading.RLock()  # one at a time has its probes in a network
_TOKENS = itertools.count()
_KEPT = 8  # networks whose taps are not made anew
_made: dict[tuple, Taps] = {}


class Taps:
    """The layers of a network that are looked at, and what they need beside the network's own
    Parameters.

    Args:
        network: the Cell (or a function that calls Cells, with `cells`).
        parameters: those that are asked for; a layer that has none of them is left out.
        kinds: of layers.
    """

    def __init__(
        self, network: Any, parameters: tuple[Parameter, ...], kinds: tuple[Kind, ...] = KINDS
    ):
        wanted = {id(p) for p in parameters}
        self.network = network  # so that its id remains its own
        self.taps: tuple[Tap, ...] = ()
        self.refused: dict[str, str] = {}  # names of Cells, and why they are not looked at
        around: dict[int, nn.Cell] = {}
        for name, cell in network.cells_and_names() if isinstance(network, nn.Cell) else ():
            kind = kind_of(cell, kinds)
            if kind is not None and kind.parts > 1 and kind.refuses(cell) is None:
                around[id(cell.out_proj)] = cell
            if not wanted & {id(p) for p in cell.get_parameters(expand=False)}:
                continue
            if kind is None:
                own = (Tap(name, cell, _kind_of_use(use), use) for use in uses_of(cell))
                self.taps += tuple(tap for tap in own if wanted & {id(tap.weight), id(tap.bias)})
                continue
            why = kind.refuses(cell)
            if why is not None:
                self.refused[name] = why
            else:
                self.taps = (*self.taps, Tap(name, cell, kind, around=around.get(id(cell))))
        self._number = next(_TOKENS)
        self.dtype = flat_dtype(p.dtype for p in parameters)
        self._weights: dict[tuple, Parameter] = {}
        self._parts: dict[tuple[Tap, ...], Taps] = {}
        self._none = _number("nothing", self.dtype)

    @property
    def token(self) -> tuple:
        """What graphs that look at these layers are known by."""
        return self._number, tuple(tap.positions_first for tap in self.taps)

    def only(self, taps: Sequence[Tap]) -> Taps:
        """Some of them; the same object for the same ones, so that what is compiled for it is found
        again.
        """
        chosen = tuple(taps)
        if chosen not in self._parts:
            part = self._parts[chosen] = copy.copy(self)
            part.taps, part._number = chosen, next(_TOKENS)
        return self._parts[chosen]

    def weights(self, shape: tuple[int, int]) -> Parameter:
        """Where the weights of the terms of a batch, (samples, terms), are put."""
        if shape not in self._weights:
            self._weights[shape] = Parameter(
                Tensor(np.zeros(shape), self.dtype), name="terms", requires_grad=False
            )
        return self._weights[shape]

    def set_basis(self, tap: Tap, p: np.ndarray | None, q: np.ndarray) -> None:
        """The columns in which "samples" and "squares" see inputs, (groups, inputs + 1, k), and
        gradients, (groups, outputs, outputs); None: as they are."""
        matrices = [np.zeros(()) if matrix is None else matrix for matrix in (p, q)]
        if [one.shape for one in tap.bases] != [one.shape for one in matrices]:
            tap.bases = [
                Parameter(
                    Tensor(np.zeros(one.shape), self.dtype),
                    name=f"{tap.name}.{tap.attribute}.basis{number}",
                    requires_grad=False,
                )
                for number, one in enumerate(matrices)
            ]
        for parameter, matrix in zip(tap.bases, matrices, strict=True):
            _compat.assign(parameter, matrix.astype(str(self.dtype).lower()))

    @contextlib.contextmanager
    def installed(
        self, inputs: Sequence[str], gradients: Sequence[str], count: int, terms: Parameter
    ) -> Iterator[None]:
        """Within it, what MindSpore compiles of the network has the probes; at the end, also after
        an error, it is as it was.

        Args:
            inputs: of `INPUTS`, for each tap.
            gradients: of `GRADIENTS`, for each tap.
            count: the number of samples.
            terms: where the weights of the terms are.
        """
        with _OF_NETWORKS, rewriting(self._with_uses):
            try:
                for tap, seen, how in zip(self.taps, inputs, gradients, strict=True):
                    basis = tuple(tap.bases) or (self._none, self._none)
                    tap.cell.__dict__[tap.attribute] = tap.construct(seen, how, count, terms, basis)
                for tap in self.taps:
                    if tap.around is not None:
                        tap.around.__dict__.setdefault("construct", tap.calling)
                yield
            finally:
                for tap in self.taps:
                    tap.cell.__dict__.pop(tap.attribute, None)
                    if tap.around is not None:
                        tap.around.__dict__.pop("construct", None)

    def _with_uses(self, function: FunctionType, owner: Any, tree: ast.AST) -> ast.AST:
        """The syntax tree of a function, with what stands in the place of the uses in it."""
        names = {
            tap.use.number: tap.attribute
            for tap in self.taps
            if tap.use is not None and tap.cell is owner and tap.use.function is function
        }
        return rewritten(function, owner, tree, names) if names else tree

    def slots(self, number: int) -> ParameterTuple:
        """Those of the inputs (0) or of the gradients (1)."""
        return ParameterTuple(tuple(tap.slots[number] for tap in self.taps))


def taps_of(
    network: Any, parameters: tuple[Parameter, ...], kinds: tuple[Kind, ...] = KINDS
) -> Taps:
    """Those of a network, made once for the last few that were asked for."""
    key = id(network), tuple(map(id, parameters)), id(kinds)
    with _OF_NETWORKS:
        found = _made.pop(key, None) or Taps(network, parameters, kinds)
        _made[key] = found
        while len(_made) > _KEPT:
            _made.pop(next(iter(_made)))
    return found


# --- kernels --------------------------------------------------------------------------------------
# What MindSpore compiles beside the probes. Nothing is computed of the statistics in the graph: it
# takes them for as large as the slots, which are numbers.


def statistics(taps: Taps, inputs: bool):
    """``build`` of a Program: the statistics of the inputs (with `inputs`), then those of the
    gradients, (k, ...) each, for the cotangents (k, *output), which come after the targets.
    """
    seen, passed = taps.slots(0), taps.slots(1)
    slots = ParameterTuple((*seen, *passed)) if inputs else passed

    def make(function: Function, space: Space):
        f, n = function.value, function.n
        first = compose.vjp(kernels.one_output(f), (), seen)
        second = compose.vjp(kernels.one_output(f), (), passed)
        alone = compose.vjp(kernels.one_output(f), (), slots)
        many = vmap(second, in_axes=(None, 0))

        def run(*tensors):
            xs, us = tensors[:n], tensors[-1]
            if us.shape[0] == 1:
                return alone(xs, us[0])
            if inputs:
                return first(xs, us[0]) + many(xs, us)
            return many(xs, us)

        return run

    return make


def drawn(taps: Taps, inputs: bool, vector: Callable, terms: Parameter, shape: tuple[int, ...]):
    """``build`` of a Program: the loss of the batch, then its `statistics` for the one cotangent
    that the graph makes itself: ``vector(loss)(output, targets, noise, terms)`` times a number;
    noise, which is for an output of this shape, and number come after the targets.
    """
    seen, passed = taps.slots(0), taps.slots(1)
    slots = ParameterTuple((*seen, *passed)) if inputs else passed

    def make(function: Function, space: Space):
        value, loss, n = function.value, compose.scalar(function.loss, "loss_fn"), function.n
        as_output, make_vector = kernels.one_output(as_it_is), vector(function.loss)

        def weighed(*tensors):
            """A sum whose gradient at the output is the cotangent, and the loss. (MindSpore fails at
            a pull-back beside another run of the network with the same slots.)"""
            targets, noise, scale = tensors[n:-2], tensors[-2], tensors[-1]
            out = value(*tensors[:n])
            at = as_output(out)
            if at.shape != shape:
                raise ValueError(
                    f"the network's output has shape {at.shape} here and {shape} in another run: the "
                    "shape must not depend on values"
                )
            u = make_vector(at, targets, noise, terms) * scale.astype(at.dtype)
            return (at * ops.stop_gradient(u)).sum(), loss(out, *targets)

        both = ms.value_and_grad(weighed, None, slots, True)

        def run(*tensors):
            values, found = both(*tensors)
            return (values[1],) + found

        return run

    return make


def with_gradient(taps: Taps, parameters: tuple[Parameter, ...]):
    """``build`` of a Program: what the layers see for one cotangent, and the gradient by the
    Parameters.
    """
    wanted = ParameterTuple((*taps.slots(0), *taps.slots(1), *parameters))

    def make(function: Function, space: Space):
        pull, n = compose.vjp(kernels.one_output(function.value), (), wanted), function.n

        def run(*tensors):
            return pull(tensors[:n], tensors[-1])

        return run

    return make
