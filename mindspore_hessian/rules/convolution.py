"""Rules of convolutions: of two dimensions (those of one are these, too) and of three."""

from __future__ import annotations

from mindspore import ops
from mindspore.ops import Primitive

from mindspore_hessian import _compat
from mindspore_hessian.rules.forward import product
from mindspore_hessian.rules.kit import (
    apart,
    attributes_of,
    front,
    joining,
    merged,
    move,
    primitive,
    reshape,
    scaled,
)
from mindspore_hessian.rules.registry import (
    FAILS_IN_GRADIENTS,
    batching,
    derivative,
    expansion,
    forward,
)
from mindspore_hessian.rules.taylor import bilinear

# --- of two dimensions ----------------------------------------------------------------------------
# A batched operand alone joins the axis on which nothing mixes: samples (N), or the channels of the
# output (O). Where both are batched, samples of the batch become groups of one convolution.
# Channels of a grouped convolution are ordered (group, batch, channel of the group). The primitives
# with more groups or channels are made here, before MindSpore compiles: its own rules change one
# that they share, and that for the kernel's gradient returns a malformed result.

_SHARES = "MindSpore's rule shares a changing primitive between batches, and its kernel gradient is malformed"


def _with(prim, **changes):
    """The primitive with other attributes."""
    new = Primitive(prim.name)
    for name, value in {**prim.attrs, **changes}.items():
        new.add_prim_attr(name, value)
    return new


def _join(x, dim, at):
    """The batch axis joins axis `at` of a sample, in front of it: (..., B * size, ...)."""
    x = move(x, dim, at)
    return reshape(x, merged(x.shape, at))


def _leave(x, at, size):
    """The opposite of `_join`: (..., B, size, ...), and where the batch is."""
    return reshape(x, apart(x.shape, at, size)), at


def _join_groups(x, dim, at, groups):
    """The batch axis joins the channels of each group: (..., groups * B * channels of a group,
    ...).
    """
    if groups == 1:
        return _join(x, dim, at)
    x = front(x, dim)
    x = move(reshape(x, apart(x.shape, at + 1, groups)), 0, at + 1)
    return reshape(x, merged(merged(x.shape, at), at))


def _leave_groups(x, at, groups, size):
    """The opposite of `_join_groups`, with the batch in front."""
    if groups == 1:
        return _leave(x, at, size)
    x = move(reshape(x, apart(x.shape, at, groups, size)), at + 1, 0)
    return reshape(x, merged(x.shape, at + 1)), 0


def _variants(prim, size):
    """(groups, the primitive with more channels, the one with more groups)."""
    prim = primitive(prim)
    layout = prim.attrs.get("data_format", "NCHW")
    if layout not in ("NCHW", "NCDHW"):
        raise NotImplementedError(
            f"primitive {prim.name} has no batching rule for the layout {layout}"
        )
    groups, channels = prim.attrs.get("group", prim.attrs.get("groups")), prim.attrs["out_channel"]
    return (
        prim,
        groups,
        _with(prim, out_channel=channels * size),
        _with(prim, out_channel=channels * size, group=groups * size, groups=groups * size),
    )


@batching("Conv2D", "Conv3D", why=_SHARES, replaces=True)
def batched_convolution(prim, axis_size):
    """Conv2D(x, w): x is (N, C, H, W), w is (O, C / groups, h, w), and the same in three
    dimensions.
    """
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


def _pairs(*pairs):
    return pairs


def _in_order(prim, gradient, other, shape):
    return prim(gradient, other, shape)


def _gradient_second(prim, gradient, other, shape):
    """As the backwards of three dimensions take their operands."""
    return prim(other, gradient, shape)


def _input_gradient(call):
    """The gradient by x, (N, C, H, W), of dy, w and the shape of x, in the order of `call`."""

    def getter(prim, axis_size):
        prim, groups, _, grouped = _variants(prim, axis_size)

        def rule(first, second, shape_pair):
            (dy, dy_dim), (w, w_dim), _ = call(_pairs, first, second, shape_pair)
            shape, _ = shape_pair
            if dy_dim is None and w_dim is None:
                return call(prim, dy, w, shape), None
            if w_dim is None:
                return _leave(
                    call(prim, _join(dy, dy_dim, 0), w, scaled(shape, 0, axis_size)), 0, axis_size
                )
            wide = scaled(shape, 1, axis_size)
            if dy_dim is None:
                return _leave_groups(call(prim, dy, _join(w, w_dim, 1), wide), 1, groups, axis_size)
            return _leave(
                call(grouped, _join(dy, dy_dim, 1), _join(w, w_dim, 0), wide), 1, axis_size
            )

        return rule

    return getter


def _kernel_gradient(call):
    """The gradient by w, (O, C / groups, h, w), of dy, x and the shape of w, in the order of
    `call`.
    """

    def getter(prim, axis_size):
        prim, groups, wider, grouped = _variants(prim, axis_size)

        def rule(first, second, shape_pair):
            (dy, dy_dim), (x, x_dim), _ = call(_pairs, first, second, shape_pair)
            shape, _ = shape_pair
            if dy_dim is None and x_dim is None:
                return call(prim, dy, x, shape), None
            if dy_dim is None:
                wide = scaled(shape, 1, axis_size)
                return _leave(call(prim, dy, _join_groups(x, x_dim, 1, groups), wide), 1, axis_size)
            tall = scaled(shape, 0, axis_size)
            if x_dim is None:
                return _leave_groups(
                    call(wider, _join_groups(dy, dy_dim, 1, groups), x, tall), 0, groups, axis_size
                )
            return _leave(
                call(grouped, _join(dy, dy_dim, 1), _join(x, x_dim, 1), tall), 0, axis_size
            )

        return rule

    return getter


batching("Conv2DBackpropInput", "Conv2DTranspose", why=_SHARES, replaces=True)(
    _input_gradient(_in_order)
)
batching("Conv2DBackpropFilter", why=_SHARES, replaces=True)(_kernel_gradient(_in_order))
batching("Conv3DBackpropInput", why=_SHARES, replaces=True)(_input_gradient(_gradient_second))
batching("Conv3DBackpropFilter", why=_SHARES, replaces=True)(_kernel_gradient(_gradient_second))


@batching("Conv3DTranspose", why=_SHARES, replaces=True)
def batched_conv3d_transpose(prim, axis_size):
    """Conv3DTranspose(x, w): x is (N, C, D, H, W), w is (C, O / groups, d, h, w)."""
    prim, groups, wider, _ = _variants(prim, axis_size)
    grouped = _with(
        wider,
        in_channel=prim.attrs["in_channel"] * axis_size,
        group=groups * axis_size,
        groups=groups * axis_size,
    )

    def rule(x_pair, w_pair):
        x, x_dim = x_pair
        w, w_dim = w_pair
        if x_dim is None and w_dim is None:
            return prim(x, w), None
        if w_dim is None:
            return _leave(prim(_join(x, x_dim, 0), w), 0, axis_size)
        if x_dim is None:
            return _leave_groups(wider(x, _join(w, w_dim, 1)), 1, groups, axis_size)
        return _leave(grouped(_join(x, x_dim, 1), _join(w, w_dim, 0)), 1, axis_size)

    return rule


batching("Col2Im", why=FAILS_IN_GRADIENTS, replaces=True)(joining(1))


# --- of three dimensions: bilinear in x and w, and so are their two backward primitives -----------

_KEEPS_ATTRIBUTES = (
    "emits the same backward primitives, with attributes that their derivatives can read"
)


def _conv3d_family(prim):
    """conv(x, w), to_x(w, d, shape of x), to_w(x, d, shape of w), with the attributes of any of
    them.
    """
    out_channel, kernel, stride, dilation, group = attributes_of(
        prim, "out_channel", "kernel_size", "strides", "dilations", "groups"
    )
    if prim.name == "Conv3DTranspose":
        out_channel, pad = prim.attrs["in_channel"], prim.attrs["pad_list"]
    else:
        pad = prim.attrs["pad"]
    args = (
        out_channel,
        tuple(kernel),
        1,
        prim.pad_mode,
        tuple(pad) if prim.pad_mode == "pad" else 0,
        tuple(stride)[-3:],
        tuple(dilation)[-3:],
        group,
    )
    return (
        ops.Conv3D(*args),
        _compat.Conv3DBackpropInput(*args),
        _compat.Conv3DBackpropFilter(*args),
    )


@derivative("Conv3D", why=_KEEPS_ATTRIBUTES, replaces=True)
def conv3d(prim):
    """MindSpore's own rule, with backward primitives whose attributes Python can read."""
    _, to_x, to_w = _conv3d_family(prim)

    def bprop(x, w, out, dout):
        return to_x(w, dout, x.shape), to_w(x, dout, w.shape)

    return bprop


@derivative("Conv3DBackpropInput")
def conv3d_to_x(prim):
    """<to_x(w, d), u> = <conv(u, w), d>."""
    conv, _, to_w = _conv3d_family(prim)

    def bprop(w, d, shape, out, dout):
        return to_w(dout, d, w.shape), conv(dout, w), 0

    return bprop


@derivative("Conv3DBackpropFilter")
def conv3d_to_w(prim):
    """<to_w(x, d), u> = <conv(x, u), d>."""
    conv, to_x, _ = _conv3d_family(prim)

    def bprop(x, d, shape, out, dout):
        return to_x(dout, d, x.shape), conv(x, dout), 0

    return bprop


@derivative("Conv3DTranspose", why=_KEEPS_ATTRIBUTES, replaces=True)
def conv3d_transpose(prim):
    """The transpose of a convolution: <y, u> = <x, conv(u, w)>, so dx = conv(d, w) and dw = to_w(d,
    x).
    """
    conv, _, to_w = _conv3d_family(prim)

    def bprop(x, w, out, dout):
        return conv(dout, w), to_w(dout, x, w.shape)

    return bprop


# --- forward --------------------------------------------------------------------------------------

forward("Conv2D", "Conv2DExt", "Conv3D", "Conv3DTranspose")(product)


# --- Taylor coefficients --------------------------------------------------------------------------

expansion("Conv2D", "Conv2DExt", "Conv3D", "Conv3DTranspose")(bilinear)
