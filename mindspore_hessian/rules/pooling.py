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
from mindspore_hessian.rules.kit import (
    any_batched,
    attributes_of,
    copied_to,
    filled,
    joining,
    primitive,
)
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
def _paddings(shape, pooled, kernel, strides, before):
    """The (left, right) paddings that windows reach into, from the last axis backwards; `before`: the
    left ones, None where they are half of all. () for none."""
    out = []
    for k in range(-1, -len(kernel) - 1, -1):
        total = max((pooled[k] - 1) * strides[k] + kernel[k] - shape[k], 0)
        left = total // 2 if before is None else before[k]
        out += [left, max(total - left, 0)]
    return tuple(out) if any(out) else ()


@derivative("MaxPoolGrad", why="MindSpore's needs a kernel that CPU lacks", replaces=True)
def max_pool_grad(prim):
    """The transpose of the max pooling backward reads its values where each window has its (first)
    maximum.
    """
    largest = _places_of_largest(prim)

    def bprop(x, y, d, out, dout):
        index, wide = largest(ops.stop_gradient(x), y, dout)
        return ops.zeros_like(x), ops.zeros_like(y), pick(wide, index, 2)

    return bprop


_FINDS = {2: ops.MaxPoolWithArgmaxV2, 3: ops.MaxPool3DWithArgmax}


def _places_of_largest(prim, spatial=2):
    """``largest(x, y, d)`` of a max pooling with result y, or its backward: the flat position where each
    window of x has its (first) maximum, and d padded likewise."""
    kernel, strides, mode = attributes_of(prim, "kernel_size", "strides", "pad_mode")
    kernel, strides = tuple(kernel)[-spatial:], tuple(strides)[-spatial:]
    find, before = _FINDS[spatial](kernel, strides, 0), (0,) * spatial
    if str(mode).upper() in ("SAME", "1"):
        before = None
    elif mode == "CALCULATED":
        before = tuple(attributes_of(prim, "pad_list")[0])[::2]

    def largest(x, y, d):
        paddings = _paddings(x.shape, y.shape, kernel, strides, before)
        if len(paddings) == 0:
            return find(x)[1], d
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


def pushed_max_pool(spatial: int):
    """The maxima, whose places are looked for anew."""

    @straight
    @allow(0)
    def getter(prim, usual):
        largest = _places_of_largest(prim, spatial)

        def rule(x_pair):
            v, j, l = x_pair[0]  # noqa: E741
            y = prim(v)
            (index, wide), (_, wide_l) = largest(v, y, j), largest(v, y, l)
            return ((y, *_picked((v, wide, wide_l), index, spatial)), FORWARD)

        return rule

    return getter


forward("MaxPool")(pushed_max_pool(2))
forward("MaxPool3D")(pushed_max_pool(3))


def _put(values, index, shape):
    """Zeros of that shape, with values at flat positions of its last axes."""
    lead = index.shape[: index.ndim - 1]
    zeros = ops.zeros(shape, values.dtype).reshape(lead + (-1,))
    return ops.tensor_scatter_elements(zeros, index, values.reshape(index.shape), -1).reshape(shape)


def pushed_unpooling(spatial: int):
    """Linear in x, whose entries go to the flat positions `argmax`."""

    @straight
    @allow(0)
    def getter(prim, usual):
        def rule(x_pair, index_pair):
            v, j, l = x_pair[0]  # noqa: E741
            y, index = prim(v, index_pair[0]), index_pair[0]
            index = index.reshape(index.shape[:-spatial] + (-1,))
            each = copied_to(index, (j.shape[0],) + index.shape)
            j = _put(j, each, (j.shape[0],) + y.shape)
            return ((y, j, _put(l, index, y.shape)), FORWARD)

        return rule

    return getter


def batched_unpooling(spatial: int):
    """A zero for each place of the result, and x written there."""

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(x_pair, index_pair):
            if not any_batched((x_pair[1], index_pair[1])):
                return prim(x_pair[0], index_pair[0]), None
            x, index = filled(*x_pair, axis_size), filled(*index_pair, axis_size)
            shape = prim(x[0], index[0]).shape
            index = index.reshape(index.shape[:-spatial] + (-1,))
            return _put(x, index, (axis_size,) + shape), 0

        return rule

    return getter


batching("MaxUnpool2D")(batched_unpooling(2))
batching("MaxUnpool3D")(batched_unpooling(3))
batching("MaxPool3D")(joining(1))
forward("MaxUnpool2D")(pushed_unpooling(2))
forward("MaxUnpool3D")(pushed_unpooling(3))

forward("AvgPool", "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D")(linear)
