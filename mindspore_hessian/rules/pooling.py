"""Rules of pooling: linear maps, whose backward primitives are their transposes.

The derivative of a transpose is the map itself: no maths here, only the name of that primitive.
Where MindSpore's own rule hands the attributes of the map (kernel, mode) to a C++ primitive from
which Python cannot read them, the row of the forward primitive replaces MindSpore's: it emits the
same backward primitive, made in Python.
"""

from __future__ import annotations

from mindspore import ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.forward import (
    FORWARD,
    allow,
    linear,
    options_of,
    straight,
)
from mindspore_hessian.rules.kit import attributes_of, copied_to, joining
from mindspore_hessian.rules.registry import (
    KEEPS_ATTRIBUTES,
    REWRITTEN,
    batching,
    derivative,
    forward,
)

# --- maxima ---------------------------------------------------------------------------------------


def pick(values, index, spatial: int):
    """values at the flat position `index` of the last `spatial` axes."""
    lead = index.shape[:-spatial]
    flat = ops.gather_d(values.reshape(lead + (-1,)), len(lead), index.reshape(lead + (-1,)))
    return flat.reshape(index.shape)


def argmax_pool_grad(spatial: int, x_first: bool):
    """A max pooling backward that is given the position of each maximum: its transpose reads
    there.
    """

    def getter(prim):
        def bprop(x, d, index, out, dout):
            return ops.zeros_like(x), pick(dout, index, spatial), ops.zeros_like(index)

        def bprop_d_first(d, x, index, out, dout):
            return pick(dout, index, spatial), ops.zeros_like(x), ops.zeros_like(index)

        return bprop if x_first else bprop_d_first

    return getter


derivative("MaxPoolGradWithArgmaxV2")(argmax_pool_grad(2, True))
derivative("MaxPool3DGradWithArgmax")(argmax_pool_grad(3, True))
derivative("FractionalMaxPool3DGradWithFixedKsize")(argmax_pool_grad(3, True))
batching("FractionalMaxPool3DGradWithFixedKsize")(joining(3))
batching("MaxPool3DGrad")(joining(3))
batching("MaxPool3DGradGrad", why="MindSpore's rule fails", replaces=True)(joining(3))
derivative("AdaptiveMaxPool2DGrad")(argmax_pool_grad(2, False))
derivative("AdaptiveMaxPool3DGrad")(argmax_pool_grad(3, False))


@derivative("MaxPool", why=KEEPS_ATTRIBUTES, replaces=True)
def max_pool(prim):
    """MindSpore's own rule, but with a MaxPoolGrad whose attributes Python can read."""
    grad = _compat.MaxPoolGrad(
        *attributes_of(prim, "kernel_size", "strides", "pad_mode"), prim.format
    )

    def bprop(x, out, dout):
        return (grad(x, out, dout),)

    return bprop


@constexpr
def _same_padding(shape, kernel, strides):
    """The (left, right) paddings of pad_mode "same", from the last axis backwards."""
    out = []
    for k in (-1, -2):
        total = max((-(-shape[k] // strides[k]) - 1) * strides[k] + kernel[k] - shape[k], 0)
        out += [total // 2, total - total // 2]
    return tuple(out)


@derivative("MaxPoolGrad", why="MindSpore's needs a kernel that CPU lacks", replaces=True)
def max_pool_grad(prim):
    """The transpose of the max pooling backward reads its values where each window has its (first)
    maximum.
    """
    largest = _places_of_largest(prim)

    def bprop(x, y, d, out, dout):
        index, wide = largest(ops.stop_gradient(x), dout)
        return ops.zeros_like(x), ops.zeros_like(y), pick(wide, index, 2)

    return bprop


def _places_of_largest(prim):
    """``largest(x, d)`` of a MaxPool or its backward: the flat position where each window of x has
    its (first) maximum, and d padded likewise."""
    kernel, strides, mode = attributes_of(prim, "kernel_size", "strides", "pad_mode")
    kernel, strides = tuple(kernel)[-2:], tuple(strides)[-2:]
    find = ops.MaxPoolWithArgmaxV2(kernel, strides)
    same = str(mode).upper() in ("SAME", "1")

    def largest(x, d):
        if not same:
            return find(x)[1], d
        paddings = _same_padding(x.shape, kernel, strides)
        return find(ops.pad(x, paddings, value=-3e38))[1], ops.pad(d, paddings)

    return largest


def max_unpool(spatial: int):
    """Unpooling writes x at the flat positions `argmax`: its transpose reads there."""

    def getter(prim):
        (layout,) = attributes_of(prim, "data_format")
        if not layout.startswith("NC"):
            raise NotImplementedError(
                f"mindspore_hessian has no derivative of unpooling in the layout {layout}"
            )

        def bprop(x, argmax, out, dout):
            return pick(dout, argmax, spatial), ops.zeros_like(argmax)

        return bprop

    return getter


derivative("MaxUnpool2D", why=REWRITTEN, replaces=True)(max_unpool(2))
derivative("MaxUnpool3D", why=REWRITTEN, replaces=True)(max_unpool(3))


# --- means ----------------------------------------------------------------------------------------


@derivative("AvgPoolGrad")
def avg_pool_grad(prim):
    """AvgPoolGrad(x, y, d, ...) is linear in d: its transpose is AvgPool."""

    def bprop(x, y, d, kernel_size, strides, pad_mode, data_format, out, dout):
        pool = ops.AvgPool(
            kernel_size, strides, "same" if pad_mode == 1 else "valid"
        )  # 1 is MindSpore's number of it
        return ops.zeros_like(x), ops.zeros_like(y), pool(dout), 0, 0, 0, 0

    return bprop


@derivative("AvgPool3D", why=KEEPS_ATTRIBUTES, replaces=True)
def avg_pool3d(prim):
    """MindSpore's own rule, but with an AvgPool3DGrad whose attributes Python can read. A divisor
    makes it of no matter what counts; the backward, but not the forward, then counts nevertheless,
    unless it is to count all."""
    *window, count, divisor = attributes_of(
        prim,
        "kernel_size",
        "strides",
        "pad_list",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )
    grad = _compat.AvgPool3DGrad(*window, count or bool(divisor), divisor, pad_mode=prim.pad_mode)

    def bprop(x, out, dout):
        return (grad(x.shape, dout),)

    return bprop


batching("AvgPool3D")(joining(1))


@derivative("AvgPool3DGrad")
def avg_pool3d_grad(prim):
    """AvgPool3DGrad(shape, d): its transpose is AvgPool3D."""
    kernel, strides, pads, ceil_mode, count, divisor = attributes_of(
        prim,
        "kernel_size",
        "strides",
        "pad_list",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    )
    mode = prim.pad_mode
    pool = ops.AvgPool3D(
        tuple(kernel)[-3:],
        tuple(strides)[-3:],
        mode.lower(),
        tuple(pads) if mode == "PAD" else 0,
        ceil_mode,
        count,
        divisor,
    )

    def bprop(shape, d, out, dout):
        return 0, pool(dout)

    return bprop


def adaptive_avg_pool_grad(function, spatial: int):
    """The backward of adaptive average pooling: its transpose is that pooling, to the size of d."""

    def getter(prim):
        def bprop(d, shape, out, dout):
            return function(dout, d.shape[-spatial:]), 0

        return bprop

    return getter


derivative("AdaptiveAvgPool2DGrad")(adaptive_avg_pool_grad(ops.adaptive_avg_pool2d, 2))
derivative("AdaptiveAvgPool3DGrad")(adaptive_avg_pool_grad(ops.adaptive_avg_pool3d, 3))
batching("AdaptiveAvgPool2DGrad", "AdaptiveAvgPool3DGrad")(joining(1, shape=True))


# --- forward --------------------------------------------------------------------------------------


def _picked(a, index, spatial):
    """The derivatives of a triple at flat positions."""
    count = a[1].shape[0]
    each = pick(a[1], copied_to(index, (count,) + index.shape), spatial)
    return each, pick(a[2], index, spatial)


def pooling_with_argmax(spatial: int):
    """(y, index): the maxima, and where they are."""

    @straight
    @allow(0)
    def getter(prim, usual):
        def rule(x_pair, *rest):
            y, index = prim(x_pair[0][0], *options_of(rest))
            j, l = _picked(x_pair[0], index, spatial)  # noqa: E741
            return ((y, j, l), FORWARD), (index, None)

        return rule

    return getter


forward("MaxPoolWithArgmaxV2", "AdaptiveMaxPool2D")(pooling_with_argmax(2))
forward("MaxPool3DWithArgmax", "AdaptiveMaxPool3D")(pooling_with_argmax(3))


@forward("MaxPool")
@straight
@allow(0)
def pushed_max_pool(prim, usual):
    """The maxima, whose places are looked for anew."""
    largest = _places_of_largest(prim)

    def rule(x_pair):
        v, j, l = x_pair[0]  # noqa: E741
        (index, wide), (_, wide_l) = largest(v, j), largest(v, l)
        return ((prim(v), *_picked((v, wide, wide_l), index, 2)), FORWARD)

    return rule


forward("AvgPool", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D")(linear)
