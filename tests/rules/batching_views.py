"""Rows for test_batching.py: views, and kernels that want all samples on their first axis."""

from __future__ import annotations

import numpy as np
from batching_table import Row, gen, i, n, t
from mindspore import Tensor, ops
from mindspore.ops.operations import _grad_ops
from mindspore.ops.operations.array_ops import Col2Im

from mindspore_hessian import _compat


def masked_fill_scalar(x, mask):
    return gen.MaskedFillScalar()(x, mask > 0.5, 2.0)


def resize_linear_grad(d, x):
    return gen.ResizeLinear1DGrad("align_corners")(d, x)


def fractional_pool_grad(x, d, argmax):
    return _grad_ops.FractionalMaxPool3DGradWithFixedKsize()(x, d, argmax)


def affine_grid(theta):
    return ops.AffineGrid()(theta, (2, 1, 2, 3))


def pool_grad(axes):
    primitive = _compat.backward(f"AdaptiveAvgPool{axes}DGrad")
    shape = Tensor(np.array((2, 3, *(4, 6, 4)[:axes]), np.int64 if axes == 2 else np.int32))

    def f(d):
        return primitive(d, shape)

    return f


def unfolded(x):
    return Col2Im((2, 2), 1, 0, 1)(x, Tensor(np.array([3, 4], np.int32)))


def resize(name, *options):
    primitive = getattr(_compat, name)(*options)
    size = (5,) if name.endswith("1D") else (3, 5)

    def f(x):
        return primitive(x, size)

    return f


def nearest_grad(d):
    return gen.ResizeNearestNeighborV2Grad(False, True)(d, (2, 4))


def upsample_grad(d):
    return _compat.backward("UpsampleNearest2DGrad")(d, (1, 2, 2, 4), (3, 5), None)


def affine_grid_grad(d):
    return _grad_ops.AffineGridGrad()(d, (2, 1, 2, 3))


def image_grad(name):
    primitive = getattr(gen, name)(False, True)

    def f(d, x):
        return primitive(d, x)

    return f


def cross(axis):
    def f(x, y):
        return gen.Cross(axis)(x, y)

    return f


def glu_grad(axis):
    def f(d, x):
        return gen.GluGrad(axis)(d, x)

    return f


def upsample_1d_grad(d):
    return _compat.backward("UpsampleNearest1DGrad")(d, (1, 2, 4), (5,), None)


def from_complex(function, *options):
    """A function of a complex tensor."""

    def f(x):
        return function(ops.Complex()(x, 0.5 * x * x), *options)

    return f


def from_real(function, *options):
    def f(x):
        return function(x, *options)

    return f


def fourier(name):
    """Rows of a transform and of its forms of more dimensions, with lengths, axes and norms."""
    make = from_real if name == "RFFT" else from_complex
    options = {
        "": ((None, 0, None), (5, -1, "ortho")),
        "2": ((None, (-2, -1), None), ((3, 5), (0, 1), "forward")),
        "N": ((None, None, None), (None, (2, 0), "ortho"), ((3, 5), None, "forward")),
    }
    return [
        Row(
            name + which,
            (n(2, 3, 4),),
            call=make(getattr(ops, (name + which).lower()), *one),
            option=str(number),
        )
        for which, every in options.items()
        for number, one in enumerate(every)
    ]


def solve(upper):
    def f(b, factor):
        return ops.cholesky_solve(b, factor, upper)

    return f


FACTOR = np.tril(n(3, 3)) / 4 + 2 * np.eye(3, dtype=np.float32)
VIEW = {"since": (2, 8, 0)}
VIEWS = [
    Row("Conj", (n(2, 3),), call=from_complex(ops.conj)),
    *(row for name in ("FFT", "IFFT", "RFFT", "IRFFT") for row in fourier(name)),
    Row("FFTShapeCopy", (n(2, 3),), ((4, 2),)),
    *(
        Row(
            "IRFFTDouble",
            (n(2, 3, 4),),
            call=from_complex(_compat.backward("IRFFTDouble"), 6 - k, k - 1),
            option=f"{k}",
        )
        for k in range(3)
    ),
    Row("CholeskySolve", (n(3, 2), FACTOR), call=solve(False)),
    Row(
        "CholeskySolve",
        (n(2, 3, 2), np.stack([FACTOR.T, 2 * FACTOR.T])),
        call=solve(True),
        option="stack",
    ),
    Row("UpsampleNearest1DGrad", (n(1, 2, 5),), call=upsample_1d_grad),
    Row("SplitWithSizeView", (n(2, 3),), ((1, 2), -1), **VIEW),
    Row("SplitTensorView", (n(2, 5),), (2, 1), **VIEW),
    Row("ChunkView", (n(5, 2),), (2, -2), **VIEW),
    *(Row("NarrowView", (n(2, 5),), (axis, 1, 1), option=f"{axis}", **VIEW) for axis in (0, -1)),
    *(
        Row("SelectExtView", (n(2, 5),), (axis, index), option=f"{axis}{index}", **VIEW)
        for axis, index in ((0, 1), (-1, -2))
    ),
    *(
        Row("TransposeView", (n(2, 3, 4),), (axes,), option=f"{axes}")
        for axes in ((1, 2, 0), (-1, 0, -2))
    ),
    *(Row("ExpandDimsView", (n(2, 3),), (axis,), option=f"{axis}", **VIEW) for axis in (0, 1, -1)),
    *(
        Row("BroadcastToView", (n(2, 3),), (to,), option=f"{to}", **VIEW)
        for to in ((4, 2, 3), (4, -1, -1))
    ),
    Row("MaskedFillScalar", (n(2, 3), t(3)), call=masked_fill_scalar, since=(2, 9, 0)),
    Row("BatchMatMulExt", (n(2, 2, 3), n(2, 3, 4))),
    *(
        Row(name, (n(1, 2, 2, 4),), call=resize(name, False, half), option=f"{half}")
        for name in ("ResizeNearestNeighborV2", "ResizeBicubic", "ResizeBilinearV2")
        for half in (False, True)
    ),
    Row("ResizeLinear1D", (n(2, 3, 4),), call=resize("ResizeLinear1D", "align_corners")),
    Row("ResizeLinear1DGrad", (n(2, 3, 5), n(2, 3, 4)), call=resize_linear_grad),
    Row("ResizeNearestNeighborV2Grad", (n(1, 2, 3, 5),), call=nearest_grad),
    *(
        Row(name, (n(1, 2, 3, 5), n(1, 2, 2, 4)), call=image_grad(name))
        for name in ("ResizeBicubicGrad", "ResizeBilinearGrad")
    ),
    Row("ResizeNearestNeighbor", (n(2, 3, 2, 2),), call=ops.ResizeNearestNeighbor((3, 5))),
    Row("ResizeNearestNeighborGrad", (n(2, 3, 3, 5),), ((2, 2),)),
    Row("SpaceToDepth", (n(2, 1, 4, 2),), call=ops.SpaceToDepth(2)),
    Row("DepthToSpace", (n(2, 4, 1, 2),), call=ops.DepthToSpace(2)),
    Row("UpsampleNearest2DGrad", (n(1, 2, 3, 5),), call=upsample_grad),
    Row("AffineGridGrad", (n(2, 2, 3, 2),), call=affine_grid_grad),
    Row("Col2Im", (n(2, 3, 4, 6),), call=unfolded),
    Row(
        "FractionalMaxPool3DGradWithFixedKsize",
        (n(1, 1, 2, 2, 2), n(1, 1, 1, 1, 2), i((1, 1, 1, 1, 2), 8)),
        call=fractional_pool_grad,
    ),
    Row("AffineGrid", (n(2, 2, 3),), call=affine_grid),
    Row("AdaptiveAvgPool2DGrad", (n(2, 3, 2, 3),), call=pool_grad(2)),
    Row("AdaptiveAvgPool3DGrad", (n(2, 3, 2, 3, 2),), call=pool_grad(3)),
    *(
        Row(name, (n(2, 3),), call=getattr(ops, name)(axis, keep), option=f"{axis}{keep}")
        for name in ("ArgMaxWithValue", "ArgMinWithValue")
        for axis, keep in ((0, False), (-1, True))
    ),
    *(
        Row("Cross", (n(2, 3), n(2, 3)), call=cross(axis), option=f"{axis}")
        for axis in (1, -1, -65530)
    ),
    *(
        Row("GluGrad", (n(2, 3), n(2, 6)), call=glu_grad(axis), option=f"{axis}")
        for axis in (1, -1)
    ),
]
