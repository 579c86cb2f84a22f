"""Rows of ops_table.py that read images between their pixels, or measure distances: those of ci/golden/sampling.py."""
from __future__ import annotations

import itertools
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

GRID_CASES = list(itertools.product(("zeros", "border", "reflection"), (False, True)))


def image_and_grid(x, image, grid):
    count = math.prod(image)
    return x[:count].reshape(image), x[count:count + math.prod(grid)].reshape(grid)


def grid_sample(image, grid, padding, align):
    def make(dtype):
        def f(x):
            a, b = image_and_grid(x, image, grid)
            return ops.grid_sample(a, b, "bilinear", padding, align)
        return f
    return make


def nearest(dtype):
    def f(x):
        image, grid = image_and_grid(x, (1, 1, 3, 4), (1, 2, 3, 2))
        return ops.grid_sample(image ** 2, grid, "nearest", "border", False)
    return f


def affine_grid(dtype):
    def f(x):
        return ops.affine_grid(x, (2, 1, 2, 3), True)
    return f


def crop_and_resize(dtype):
    index = Tensor(np.array([0, 0], np.int32))

    def f(x):
        image, boxes = x[:20].reshape(1, 4, 5, 1), 0.1 + 0.8 * ops.sigmoid(x[20:28].reshape(2, 4))
        return ops.crop_and_resize(image, boxes, index, (2, 3))
    return f


def crop_and_resize_nearest(dtype):
    boxes, index = Tensor(np.array([[0.1, 0.15, 0.8, 0.9], [0.3, 0.0, 0.6, 0.7]], dtype)), Tensor([0, 0], ms.int32)

    def f(x):
        return ops.crop_and_resize((x ** 2).reshape(1, 4, 5, 1), boxes, index, (2, 3), "nearest")
    return f


def lrn(dtype):
    def f(x):
        return ops.lrn(x, 1, 2.0, 0.5, 0.75)
    return f


def cdist(p):
    def make(dtype):
        def f(x):
            return ops.cdist(x[0], x[1], float(p))
        return f
    return make


def pdist(p):
    def make(dtype):
        def f(x):
            return ops.pdist(x, float(p))
        return f
    return make


def lu_unpack(dtype):
    pivots = Tensor(np.array([1, 2, 3], np.int32))

    def f(x):
        out = ops.lu_unpack(x, pivots)
        return out[1] * out[2]
    return f


def fractional_max_pool_3d(dtype):
    samples = Tensor(np.array([[[0.3, 0.6, 0.4]]], dtype))

    def f(x):
        return ops.fractional_max_pool3d(x ** 3, 2, (2, 2, 2), _random_samples=samples)[0]
    return f


def select_view(dtype):
    def f(x):
        return mint.select(x, 1, -2)
    return f


def narrow_view(dtype):
    def f(x):
        return mint.narrow(x, -1, x.shape[-1] - 3, 2)
    return f


SINGLE = {"dtype": np.float32, "tolerance": 2e-4}  # the kernels compute in float32, whatever they are given
CASES = {  # name: function, rules, Row's other arguments
    **{f"grid_sample_{padding}_{align}": (grid_sample((1, 2, 3, 4), (1, 2, 3, 2), padding, align),
                                          ("GridSampler2DGrad",), {"third": (padding, align) == ("reflection", True)})
       for padding, align in GRID_CASES},
    **{f"grid_sample_3d_{padding}_{align}": (grid_sample((1, 1, 2, 3, 2), (1, 1, 2, 2, 3), padding, align),
                                             ("GridSampler3DGrad",), {})
       for padding, align in GRID_CASES[::5]},
    "grid_sample_nearest": (nearest, ("GridSampler2DGrad",), {}),
    "affine_grid": (affine_grid, ("AffineGridGrad",), SINGLE),
    "crop_and_resize": (crop_and_resize, ("CropAndResize", "CropAndResizeGradImage", "CropAndResizeGradBoxes"),
                        {**SINGLE, "third": True}),
    "crop_and_resize_nearest": (crop_and_resize_nearest, ("CropAndResizeGradImage",), SINGLE),
    "lrn": (lrn, ("LRN", "LRNGrad"), {**SINGLE, "third": True}),
    **{f"cdist_{p}": (cdist(p), ("Cdist",), {"third": True}) for p in (1, 2, 3)},
    **{f"pdist_{p}": (pdist(p), ("Pdist",), {"third": True}) for p in (1, 2, 3)},
    "lu_unpack": (lu_unpack, ("LuUnpackGrad",), {"third": True}),
    "fractional_max_pool_3d": (fractional_max_pool_3d, ("FractionalMaxPool3DGradWithFixedKsize",), {}),
    "select_view": (select_view, ("SelectExtView",), {"third": True, "since": (2, 8, 0)}),
    "narrow_view": (narrow_view, ("NarrowView",), {**SINGLE, "since": (2, 8, 0)}),
}
