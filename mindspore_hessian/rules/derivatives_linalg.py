"""Derivative rules: linear maps (indexing, padding, pooling, resizing, convolution).

The backward primitive of a linear map A is its transpose, and the derivative of a transpose is A itself: no maths here,
only the name of the primitive that is A. Where MindSpore's own rule hands the attributes of A (kernel, mode) to a C++
primitive from which Python cannot read them, the row of the forward primitive replaces MindSpore's: it emits the same
backward primitive, made in Python.
"""
from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError
from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import pull


def attributes_of(prim, *names: str) -> tuple:
    """The attributes of a primitive made in Python. MindSpore passes a mere name for one made in C++."""
    if isinstance(prim, str):
        raise MissingRuleError(f"The second derivative of {prim} needs its attributes, which MindSpore keeps in C++. "
                               "Import mindspore_hessian before the first gradient of the process.")
    return tuple(prim.attrs[name] for name in names)


# --- indexing ----------------------------------------------------------------------------------------------------

def gather_d_grad(prim):
    """GatherDGradV2(x, dim, index, d)[index[i], j] += d[i, j]; its transpose is GatherD."""
    def bprop(x, dim, index, d, out, dout):
        return ops.zeros_like(x), 0, ops.zeros_like(index), ops.gather_d(dout, dim, index)
    return bprop


def slice_grad(prim):
    """SliceGrad(d, x, begin, size) writes d into zeros; its transpose is the slice."""
    def bprop(d, x, begin, size, out, dout):
        return ops.slice(dout, begin, size), ops.zeros_like(x), 0, 0
    return bprop


@ops.constexpr
def _nothing(multiples):
    return 0 in multiples


def tile(prim):
    """Tile(x, multiples): the sum of the copies. Where there are none, MindSpore's is what was in memory."""
    def bprop(x, multiples, out, dout):
        if _nothing(multiples):
            return ops.zeros_like(x), 0
        shape, axes = (), ()
        extra = len(multiples) - x.ndim
        lengths = ops.shape(x)
        for k in range(extra):
            axes = axes + (len(shape),)
            shape = shape + (multiples[k],)
        for k in range(x.ndim):
            copies = multiples[k + extra] if k + extra >= 0 else 1
            if copies != 1:
                axes = axes + (len(shape),)
                shape = shape + (copies,)
            shape = shape + (lengths[k],)
        if not axes:
            return dout.reshape(lengths), 0
        return dout.reshape(shape).sum(axes).reshape(lengths), 0
    return bprop


_put = _compat.backward("GatherDGradV2")


@ops.constexpr
def _backwards(strides):
    """Whether a step is negative, or unknown."""
    if strides is None:
        return True
    return any(int(step) < 0 for step in (strides.asnumpy() if isinstance(strides, Tensor) else strides))


@ops.constexpr
def _positions(shape):
    """The flat positions of all entries, in their shape."""
    if any(length is None or length < 0 for length in shape):
        raise MissingRuleError(f"The gradient of a slice with a negative step needs a known shape, but got {shape}.")
    return Tensor(np.arange(int(np.prod(shape))).reshape(shape).astype(np.int32))


@ops.constexpr
def _inside(shape, begin, strides, free, ellipsis, new_axes):
    """Refuse to begin behind the end of an axis: MindSpore would read what is in memory there."""
    axis = 0
    for k, (start, step) in enumerate(zip(begin, strides, strict=True)):
        if new_axes >> k & 1:
            continue
        if step < 0 and not free >> k & 1 and not ellipsis and start >= shape[axis]:
            raise ValueError(f"a slice begins at {start} with the step {step} on axis {axis} of a Tensor of shape "
                             f"{shape}; MindSpore reads foreign memory there. Begin at {shape[axis] - 1}, or leave it "
                             "out.")
        axis += 1
    return True


@ops.constexpr
def _count(shape):
    return int(np.prod(shape))


def strided_slice(prim):
    """x[begin:end:strides] with masks. MindSpore's gradient is right for positive steps. For negative ones, what the
    slice makes of the positions tells where each number came from."""
    def bprop(x, begin, end, strides, begins, ends, ellipsis, new_axes, shrunk, out, dout):
        if not _backwards(strides if ops.isconstant(strides) else None):
            grad = _compat.strided_slice_grad(begins, ends, ellipsis, new_axes, shrunk)
            return grad(dout, x.shape, begin, end, strides), 0, 0, 0, 0, 0, 0, 0, 0
        if _count(dout.shape) == 0:
            return ops.zeros_like(x), 0, 0, 0, 0, 0, 0, 0, 0
        if ops.isconstant(begin) and ops.isconstant(strides):
            _inside(x.shape, begin, strides, begins, ellipsis, new_axes)
        cut = ops.StridedSlice(begins, ends, ellipsis, new_axes, shrunk)
        origin = cut(_positions(x.shape), begin, end, strides)
        dx = _put(x.reshape(-1), 0, origin.reshape(-1), dout.reshape(-1)).reshape(x.shape)
        return dx, 0, 0, 0, 0, 0, 0, 0, 0
    return bprop


# --- padding -----------------------------------------------------------------------------------------------------

_AXIS_INDEX = {  # position in the padded axis, counted from the first unpadded one -> index into n elements
    "constant": lambda i, n: i,
    "edge": lambda i, n: np.clip(i, 0, n - 1),
    "circular": lambda i, n: i % n,
    "reflect": lambda i, n: (n - 1) - np.abs((n - 1) - i % max(2 * (n - 1), 1)),
    "symmetric": lambda i, n: np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)),
}


@ops.constexpr
def axis_sources(shape, paddings, mode):
    """(axis, indices, mask) of each padded axis; paddings are (left, right) from the last axis backwards."""
    if isinstance(paddings, Tensor):
        paddings = tuple(int(pad) for pad in paddings.asnumpy())
    out = []
    for k in range(len(paddings) // 2):
        axis, left, right = len(shape) - 1 - k, int(paddings[2 * k]), int(paddings[2 * k + 1])
        if left or right:
            n, cut = shape[axis], max(-left, 0)
            kept = n - cut - max(-right, 0)  # what a negative padding cuts off is not there to be repeated
            index = cut + _AXIS_INDEX[mode](np.arange(-max(left, 0), kept + max(right, 0)), kept)
            inside = (index >= 0) & (index < n)
            wide = inside.reshape((-1,) + (1,) * k)
            source = Tensor(np.clip(index, 0, n - 1).astype(np.int32))
            out.append((axis, source, None if inside.all() else Tensor(wide)))
    return tuple(out)


@ops.constexpr
def _window(shape, paddings):
    """Where the unpadded values lie in the padded tensor, as the begin of a slice; None if a padding is negative."""
    if isinstance(paddings, Tensor):
        paddings = tuple(int(pad) for pad in paddings.asnumpy())
    if min(paddings) < 0:
        return None
    left = [int(pad) for pad in paddings[::2]]
    return tuple([0] * (len(shape) - len(left)) + left[::-1])


def pad_v3(prim):
    """The gradient of a padding: a slice, plus what the other modes repeat. MindSpore's compiled one returns zeros
    from its second call on (constant mode), and has no derivative (the other modes)."""
    mode, contiguous = attributes_of(prim, "mode", "paddings_contiguous")

    def bprop(x, paddings, value, out, dout):
        if not contiguous:
            pairs = len(paddings) // 2
            paddings = _interleave(paddings, pairs)
        begin = _window(x.shape, paddings) if mode == "constant" else None
        if begin is not None:
            dx = ops.slice(dout, begin, x.shape)
        else:
            def padded(x):
                for axis, index, mask in axis_sources(x.shape, paddings, mode):
                    x = ops.gather(x, index, axis)
                    if mask is not None:
                        x = x * mask.astype(x.dtype)
                return x
            dx = pull(padded)(mutable(x), dout)[0]
        dvalue = 0
        if mode == "constant" and value is not None:
            dvalue = (dout.sum() - dx.sum()).reshape(value.shape).astype(value.dtype)
        return dx, 0, dvalue
    return bprop


@ops.constexpr
def _interleave(paddings, pairs):
    return tuple(pad for k in range(pairs) for pad in (paddings[k], paddings[pairs + k]))


# --- pooling -----------------------------------------------------------------------------------------------------

def pick(values, index, spatial: int):
    """values at the flat position `index` of the last `spatial` axes."""
    lead = index.shape[:-spatial]
    flat = ops.gather_d(values.reshape(lead + (-1,)), len(lead), index.reshape(lead + (-1,)))
    return flat.reshape(index.shape)


def argmax_pool_grad(spatial: int, x_first: bool):
    """A max pooling backward that is given the position of each maximum: its transpose reads there."""
    def getter(prim):
        def bprop(x, d, index, out, dout):
            return ops.zeros_like(x), pick(dout, index, spatial), ops.zeros_like(index)

        def bprop_d_first(d, x, index, out, dout):
            return pick(dout, index, spatial), ops.zeros_like(x), ops.zeros_like(index)
        return bprop if x_first else bprop_d_first
    return getter


def max_pool(prim):
    """MindSpore's own rule, but with a MaxPoolGrad whose attributes Python can read."""
    grad = _compat.MaxPoolGrad(*attributes_of(prim, "kernel_size", "strides", "pad_mode"), prim.format)

    def bprop(x, out, dout):
        return (grad(x, out, dout),)
    return bprop


@ops.constexpr
def _same_padding(shape, kernel, strides):
    """The (left, right) paddings of pad_mode "same", from the last axis backwards."""
    out = []
    for k in (-1, -2):
        total = max((-(-shape[k] // strides[k]) - 1) * strides[k] + kernel[k] - shape[k], 0)
        out += [total // 2, total - total // 2]
    return tuple(out)


def max_pool_grad(prim):
    """The transpose of the max pooling backward reads its values where each window has its (first) maximum."""
    kernel, strides, mode = attributes_of(prim, "kernel_size", "strides", "pad_mode")
    kernel, strides = tuple(kernel)[-2:], tuple(strides)[-2:]
    find = ops.MaxPoolWithArgmaxV2(kernel, strides)
    same = str(mode).upper() in ("SAME", "1")

    def bprop(x, y, d, out, dout):
        if same:
            paddings = _same_padding(x.shape, kernel, strides)
            x_wide = ops.pad(ops.stop_gradient(x), paddings, value=-3e38)
            dout = ops.pad(dout, paddings)
        else:
            x_wide = ops.stop_gradient(x)
        index = find(x_wide)[1]
        return ops.zeros_like(x), ops.zeros_like(y), pick(dout, index, 2)
    return bprop


def avg_pool_grad(prim):
    """AvgPoolGrad(x, y, d, ...) is linear in d: its transpose is AvgPool."""
    def bprop(x, y, d, kernel_size, strides, pad_mode, data_format, out, dout):
        pool = ops.AvgPool(kernel_size, strides, "same" if pad_mode == 1 else "valid")  # 1 is MindSpore's number of it
        return ops.zeros_like(x), ops.zeros_like(y), pool(dout), 0, 0, 0, 0
    return bprop


def avg_pool3d(prim):
    """MindSpore's own rule, but with an AvgPool3DGrad whose attributes Python can read. A divisor makes it of no matter
    what counts; the backward, but not the forward, then counts nevertheless, unless it is to count all."""
    *window, count, divisor = attributes_of(
        prim, "kernel_size", "strides", "pad_list", "ceil_mode", "count_include_pad", "divisor_override")
    grad = _compat.AvgPool3DGrad(*window, count or bool(divisor), divisor, pad_mode=prim.pad_mode)

    def bprop(x, out, dout):
        return (grad(x.shape, dout),)
    return bprop


def avg_pool3d_grad(prim):
    """AvgPool3DGrad(shape, d): its transpose is AvgPool3D."""
    kernel, strides, pads, ceil_mode, count, divisor = attributes_of(
        prim, "kernel_size", "strides", "pad_list", "ceil_mode", "count_include_pad", "divisor_override")
    mode = prim.pad_mode
    pool = ops.AvgPool3D(tuple(kernel)[-3:], tuple(strides)[-3:], mode.lower(), tuple(pads) if mode == "PAD" else 0,
                         ceil_mode, count, divisor)

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


_NO_DERIVATIVE = "MindSpore has no derivative of it"
_KEEPS_ATTRIBUTES = "emits the same backward primitive, with attributes that its derivative can read"

RULES: tuple[Derivative, ...] = (
    Derivative("GatherDGradV2", gather_d_grad, "MindSpore's fails: it looks for an attribute that is an input",
               replaces=True),
    Derivative("StridedSlice", strided_slice, "MindSpore's is zero, or fails, where a step is negative", replaces=True),
    Derivative("Tile", tile, "MindSpore's is garbage where nothing is left of an axis", replaces=True),
    Derivative("SliceGrad", slice_grad, _NO_DERIVATIVE),
    Derivative("PadV3", pad_v3, "MindSpore's compiled gradient returns zeros from the second call on", replaces=True),
    Derivative("MaxPool", max_pool, _KEEPS_ATTRIBUTES, replaces=True),
    Derivative("MaxPoolGrad", max_pool_grad, "MindSpore's needs a kernel that CPU lacks", replaces=True),
    Derivative("MaxPoolGradWithArgmaxV2", argmax_pool_grad(2, True), _NO_DERIVATIVE),
    Derivative("MaxPool3DGradWithArgmax", argmax_pool_grad(3, True), _NO_DERIVATIVE),
    Derivative("FractionalMaxPool3DGradWithFixedKsize", argmax_pool_grad(3, True), _NO_DERIVATIVE),
    Derivative("AdaptiveMaxPool2DGrad", argmax_pool_grad(2, False), _NO_DERIVATIVE),
    Derivative("AdaptiveMaxPool3DGrad", argmax_pool_grad(3, False), _NO_DERIVATIVE),
    Derivative("AvgPoolGrad", avg_pool_grad, _NO_DERIVATIVE),
    Derivative("AvgPool3D", avg_pool3d, _KEEPS_ATTRIBUTES, replaces=True),
    Derivative("AvgPool3DGrad", avg_pool3d_grad, _NO_DERIVATIVE),
    Derivative("AdaptiveAvgPool2DGrad", adaptive_avg_pool_grad(ops.adaptive_avg_pool2d, 2), _NO_DERIVATIVE),
    Derivative("AdaptiveAvgPool3DGrad", adaptive_avg_pool_grad(ops.adaptive_avg_pool3d, 3), _NO_DERIVATIVE),
)
