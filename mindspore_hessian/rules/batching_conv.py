"""Batching rules: two-dimensional convolutions (one-dimensional ones are these, too).

A batched operand alone joins the axis on which nothing mixes: samples (N), or the channels of the output (O). Where
both are batched, samples of the batch become groups of one convolution. Channels of a grouped convolution are ordered
(group, batch, channel of the group). The primitives with more groups or channels are made here, before MindSpore
compiles: its own rules change one that they share, and that for the kernel's gradient returns a malformed result.
"""
from __future__ import annotations

from mindspore.ops import Primitive, constexpr

from mindspore_hessian.rules._define import Batching
from mindspore_hessian.rules.batching_kit import front, merged, move, primitive, reshape

_WHY = "MindSpore's rule shares a changing primitive between batches, and its kernel gradient is malformed"


def _with(prim, **changes):
    """The primitive with other attributes."""
    new = Primitive(prim.name)
    for name, value in {**prim.attrs, **changes}.items():
        new.add_prim_attr(name, value)
    return new


@constexpr
def _cut(shape, at, *sizes):
    """Shape with axis `at` cut into these sizes and what remains."""
    rest = shape[at]
    for size in sizes:
        rest //= size
    return (*shape[:at], *sizes, rest, *shape[at + 1:])


@constexpr
def _scaled(shape, at, size):
    return (*shape[:at], shape[at] * size, *shape[at + 1:])


def _join(x, dim, at):
    """The batch axis joins axis `at` of a sample, in front of it: (..., B * size, ...)."""
    x = move(x, dim, at)
    return reshape(x, merged(x.shape, at))


def _leave(x, at, size):
    """The opposite of `_join`: (..., B, size, ...), and where the batch is."""
    return reshape(x, _cut(x.shape, at, size)), at


def _join_groups(x, dim, at, groups):
    """The batch axis joins the channels of each group: (..., groups * B * channels of a group, ...)."""
    if groups == 1:
        return _join(x, dim, at)
    x = front(x, dim)
    x = move(reshape(x, _cut(x.shape, at + 1, groups)), 0, at + 1)
    return reshape(x, merged(merged(x.shape, at), at))


def _leave_groups(x, at, groups, size):
    """The opposite of `_join_groups`, with the batch in front."""
    if groups == 1:
        return _leave(x, at, size)
    x = move(reshape(x, _cut(x.shape, at, groups, size)), at + 1, 0)
    return reshape(x, merged(x.shape, at + 1)), 0


def _variants(prim, size):
    """(groups, the primitive with more channels, the one with more groups)."""
    prim = primitive(prim)
    layout = prim.attrs.get("data_format", "NCHW")
    if layout != "NCHW":
        raise ValueError(f"mindspore_hessian has no batching rule for a convolution of layout {layout}")
    groups, channels = prim.attrs["group"], prim.attrs["out_channel"]
    return (prim, groups, _with(prim, out_channel=channels * size),
            _with(prim, out_channel=channels * size, group=groups * size, groups=groups * size))


def conv(prim, axis_size):
    """Conv2D(x, w): x is (N, C, H, W), w is (O, C / groups, h, w)."""
    prim, groups, wider, grouped = _variants(prim, axis_size)

    def rule(x_pair, w_pair):
        x, x_dim = x_pair
        w, w_dim = w_pair
        if x_dim is None and w_dim is None:
            return prim(x, w), None
        if w_dim is None:
            return _leave(prim(_join(x, x_dim, 0), w), 0, axis_size)
        if x_dim is None:
            return _leave_groups(wider(x, _join_groups(w, w_dim, 0, groups)), 1, groups, axis_size)
        return _leave(grouped(_join(x, x_dim, 1), _join(w, w_dim, 0)), 1, axis_size)

    return rule


def conv_input(prim, axis_size):
    """Conv2DBackpropInput(dy, w, shape of x): the gradient by x, (N, C, H, W)."""
    prim, groups, _, grouped = _variants(prim, axis_size)

    def rule(dy_pair, w_pair, shape_pair):
        dy, dy_dim = dy_pair
        w, w_dim = w_pair
        shape, _ = shape_pair
        if dy_dim is None and w_dim is None:
            return prim(dy, w, shape), None
        if w_dim is None:
            return _leave(prim(_join(dy, dy_dim, 0), w, _scaled(shape, 0, axis_size)), 0, axis_size)
        wide = _scaled(shape, 1, axis_size)
        if dy_dim is None:
            return _leave_groups(prim(dy, _join(w, w_dim, 1), wide), 1, groups, axis_size)
        return _leave(grouped(_join(dy, dy_dim, 1), _join(w, w_dim, 0), wide), 1, axis_size)

    return rule


def conv_kernel(prim, axis_size):
    """Conv2DBackpropFilter(dy, x, shape of w): the gradient by w, (O, C / groups, h, w)."""
    prim, groups, wider, grouped = _variants(prim, axis_size)

    def rule(dy_pair, x_pair, shape_pair):
        dy, dy_dim = dy_pair
        x, x_dim = x_pair
        shape, _ = shape_pair
        if dy_dim is None and x_dim is None:
            return prim(dy, x, shape), None
        if dy_dim is None:
            return _leave(prim(dy, _join_groups(x, x_dim, 1, groups), _scaled(shape, 1, axis_size)), 1, axis_size)
        tall = _scaled(shape, 0, axis_size)
        if x_dim is None:
            return _leave_groups(wider(_join_groups(dy, dy_dim, 1, groups), x, tall), 0, groups, axis_size)
        return _leave(grouped(_join(dy, dy_dim, 1), _join(x, x_dim, 1), tall), 0, axis_size)

    return rule


RULES: tuple[Batching, ...] = (
    Batching("Conv2D", conv, _WHY, replaces=True),
    *(Batching(name, conv_input, _WHY, replaces=True) for name in ("Conv2DBackpropInput", "Conv2DTranspose")),
    Batching("Conv2DBackpropFilter", conv_kernel, _WHY, replaces=True),
)
