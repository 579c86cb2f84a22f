"""Rules of resizing, linear in the image: the backward primitive takes (d, ...) and is the
transpose of the resize to the size of d, so its derivative is that resize. In a batch, images of
all samples are resized at once."""

from __future__ import annotations

from mindspore import ops

from mindspore_hessian import _compat
from mindspore_hessian.rules.forward import linear
from mindspore_hessian.rules.kit import joining
from mindspore_hessian.rules.registry import FAILS_IN_GRADIENTS, batching, derivative, forward

batching("ResizeBilinearV2", why=FAILS_IN_GRADIENTS, replaces=True)(joining(1))


@derivative("ResizeBilinearGrad")
def bilinear_grad(prim):
    """ResizeBilinearGrad(d, image, align_corners, half_pixel_centers)."""

    def bprop(d, image, align, half, out, dout):
        return _compat.ResizeBilinearV2(align, half)(dout, d.shape[2:]), ops.zeros_like(image), 0, 0

    return bprop


batching("ResizeBilinearGrad", why=FAILS_IN_GRADIENTS, replaces=True)(joining(2))
batching("ResizeNearestNeighborV2")(joining(1))


@derivative("ResizeNearestNeighborV2Grad")
def nearest_grad(prim):
    """ResizeNearestNeighborV2Grad(d, size, align_corners, half_pixel_centers)."""

    def bprop(d, size, align, half, out, dout):
        return _compat.ResizeNearestNeighborV2(align, half)(dout, d.shape[2:]), 0, 0, 0

    return bprop


batching("ResizeNearestNeighborV2Grad")(joining(1))
batching("ResizeNearestNeighbor")(joining(1))


@derivative("ResizeNearestNeighborGrad")
def nearest_in_two_axes_grad(prim):
    """ResizeNearestNeighborGrad(d, size, align_corners, half_pixel_centers)."""

    def bprop(d, size, align, half, out, dout):
        return ops.ResizeNearestNeighbor(d.shape[2:], align, half)(dout), 0, 0, 0

    return bprop


batching("ResizeNearestNeighborGrad")(joining(1))
batching("ResizeBicubic")(joining(1))


@derivative("ResizeBicubicGrad")
def bicubic_grad(prim):
    """ResizeBicubicGrad(d, image, align_corners, half_pixel_centers)."""

    def bprop(d, image, align, half, out, dout):
        return _compat.ResizeBicubic(align, half)(dout, d.shape[2:]), ops.zeros_like(image), 0, 0

    return bprop


batching("ResizeBicubicGrad")(joining(2))
batching("ResizeLinear1D", why=FAILS_IN_GRADIENTS, replaces=True)(joining(1))

_COORDINATES = ("asymmetric", "align_corners", "half_pixel")  # MindSpore's numbers


@derivative("ResizeLinear1DGrad")
def linear_1d_grad(prim):
    """ResizeLinear1DGrad(d, x, coordinates); the coordinates are MindSpore's number of the mode."""

    def bprop(d, x, coordinates, out, dout):
        mode = _COORDINATES[coordinates]
        return _compat.ResizeLinear1D(mode)(dout, d.shape[2:]), ops.zeros_like(x), 0

    return bprop


batching("ResizeLinear1DGrad", why=FAILS_IN_GRADIENTS, replaces=True)(joining(2))


@derivative("UpsampleTrilinear3DGrad")
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


derivative("UpsampleNearest1DGrad")(nearest_grad_of(_compat.UpsampleNearest1D()))
derivative("UpsampleNearest2DGrad")(nearest_grad_of(_compat.UpsampleNearest2D()))
derivative("UpsampleNearest3DGrad")(nearest_grad_of(_compat.UpsampleNearest3D()))
batching("UpsampleNearest1DGrad", "UpsampleNearest2DGrad")(joining(1, shape=True))


# --- forward --------------------------------------------------------------------------------------

forward(
    "ResizeBilinearV2",
    "ResizeNearestNeighborV2",
    "ResizeNearestNeighbor",
    "ResizeBicubic",
    "ResizeLinear1D",
    "UpsampleNearest1D",
    "UpsampleNearest2D",
    "UpsampleNearest3D",
)(linear)
