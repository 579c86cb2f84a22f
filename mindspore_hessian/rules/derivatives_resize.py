"""Derivative rules: resizing and 3-D convolution, linear maps whose transposes MindSpore cannot differentiate."""
from __future__ import annotations

from mindspore import ops

from mindspore_hessian import _compat
from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules.derivatives_linalg import attributes_of

# --- resizing: the backward primitive takes (d, ...) and is the transpose of the resize to the size of d -----------


def bilinear_grad(prim):
    """ResizeBilinearGrad(d, image, align_corners, half_pixel_centers)."""
    def bprop(d, image, align, half, out, dout):
        return _compat.ResizeBilinearV2(align, half)(dout, d.shape[2:]), ops.zeros_like(image), 0, 0
    return bprop


def nearest_grad(prim):
    """ResizeNearestNeighborV2Grad(d, size, align_corners, half_pixel_centers)."""
    def bprop(d, size, align, half, out, dout):
        return _compat.ResizeNearestNeighborV2(align, half)(dout, d.shape[2:]), 0, 0, 0
    return bprop


def bicubic_grad(prim):
    """ResizeBicubicGrad(d, image, align_corners, half_pixel_centers)."""
    def bprop(d, image, align, half, out, dout):
        return _compat.ResizeBicubic(align, half)(dout, d.shape[2:]), ops.zeros_like(image), 0, 0
    return bprop


_COORDINATES = ("asymmetric", "align_corners", "half_pixel")  # MindSpore's numbers


def linear_1d_grad(prim):
    """ResizeLinear1DGrad(d, x, coordinates); the coordinates are MindSpore's number of the mode."""
    def bprop(d, x, coordinates, out, dout):
        mode = _COORDINATES[coordinates]
        return _compat.ResizeLinear1D(mode)(dout, d.shape[2:]), ops.zeros_like(x), 0
    return bprop


def trilinear_grad(prim):
    """UpsampleTrilinear3DGrad(d, input_size, output_size, scales, align_corners)."""
    def bprop(d, input_size, output_size, scales, align, out, dout):
        return _compat.UpsampleTrilinear3D(align)(dout, output_size, scales), 0, 0, 0, 0
    return bprop


def nearest_grad_of(upsample):
    """UpsampleNearest1DGrad, 2DGrad and 3DGrad(d, input_size, output_size, scales)."""
    def getter(prim):
        def bprop(d, input_size, output_size, scales, out, dout):
            return upsample(dout, output_size, scales), 0, 0, 0
        return bprop
    return getter


# --- 3-D convolution: bilinear in x and w, and so are its two backward primitives -------------------------------

def _conv3d_family(prim):
    """conv(x, w), to_x(w, d, shape of x), to_w(x, d, shape of w), with the attributes of any of them."""
    out_channel, kernel, stride, dilation, group = attributes_of(
        prim, "out_channel", "kernel_size", "strides", "dilations", "groups")
    if prim.name == "Conv3DTranspose":
        out_channel, pad = prim.attrs["in_channel"], prim.attrs["pad_list"]
    else:
        pad = prim.attrs["pad"]
    args = (out_channel, tuple(kernel), 1, prim.pad_mode, tuple(pad) if prim.pad_mode == "pad" else 0,
            tuple(stride)[-3:], tuple(dilation)[-3:], group)
    return ops.Conv3D(*args), _compat.Conv3DBackpropInput(*args), _compat.Conv3DBackpropFilter(*args)


def conv3d(prim):
    """MindSpore's own rule, with backward primitives whose attributes Python can read."""
    _, to_x, to_w = _conv3d_family(prim)

    def bprop(x, w, out, dout):
        return to_x(w, dout, x.shape), to_w(x, dout, w.shape)
    return bprop


def conv3d_to_x(prim):
    """<to_x(w, d), u> = <conv(u, w), d>."""
    conv, _, to_w = _conv3d_family(prim)

    def bprop(w, d, shape, out, dout):
        return to_w(dout, d, w.shape), conv(dout, w), 0
    return bprop


def conv3d_to_w(prim):
    """<to_w(x, d), u> = <conv(x, u), d>."""
    conv, to_x, _ = _conv3d_family(prim)

    def bprop(x, d, shape, out, dout):
        return to_x(dout, d, x.shape), conv(x, dout), 0
    return bprop


def conv3d_transpose(prim):
    """The transpose of a convolution: <y, u> = <x, conv(u, w)>, so dx = conv(d, w) and dw = to_w(d, x)."""
    conv, _, to_w = _conv3d_family(prim)

    def bprop(x, w, out, dout):
        return conv(dout, w), to_w(dout, x, w.shape)
    return bprop


_NO_DERIVATIVE = "MindSpore has no derivative of it"

RULES: tuple[Derivative, ...] = (
    Derivative("ResizeBilinearGrad", bilinear_grad, _NO_DERIVATIVE),
    Derivative("ResizeNearestNeighborV2Grad", nearest_grad, _NO_DERIVATIVE),
    Derivative("ResizeBicubicGrad", bicubic_grad, _NO_DERIVATIVE),
    Derivative("ResizeLinear1DGrad", linear_1d_grad, _NO_DERIVATIVE),
    Derivative("UpsampleTrilinear3DGrad", trilinear_grad, _NO_DERIVATIVE),
    Derivative("UpsampleNearest1DGrad", nearest_grad_of(_compat.UpsampleNearest1D()), _NO_DERIVATIVE),
    Derivative("UpsampleNearest2DGrad", nearest_grad_of(_compat.UpsampleNearest2D()), _NO_DERIVATIVE),
    Derivative("UpsampleNearest3DGrad", nearest_grad_of(_compat.UpsampleNearest3D()), _NO_DERIVATIVE),
    Derivative("Conv3D", conv3d, "emits the same backward primitives, with attributes that their derivatives can read",
               replaces=True),
    Derivative("Conv3DTranspose", conv3d_transpose, "as above", replaces=True),
    Derivative("Conv3DBackpropInput", conv3d_to_x, _NO_DERIVATIVE),
    Derivative("Conv3DBackpropFilter", conv3d_to_w, _NO_DERIVATIVE),
)
