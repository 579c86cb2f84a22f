"""Rules of reading images between their pixels: grid_sample, affine_grid, crop_and_resize."""

from __future__ import annotations

from itertools import product

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import FORWARD, allow, linear, options_of, value_of
from mindspore_hessian.rules.kit import (
    add,
    attributes_of,
    front,
    joining,
    primitive,
    values,
)
from mindspore_hessian.rules.registry import batching, derivative, forward

_NEAREST = 1  # MindSpore's numbers, beside 0 for bilinear
_ZEROS, _REFLECTION = 0, 2  # and 1 for the border


@constexpr
def _corners(count):
    """The neighbours of a place: 0 or 1 step further along each axis."""
    return tuple(product((0, 1), repeat=count))


@constexpr
def _mirrors(size, align):
    """The place of the first mirror and the distance to the second."""
    return (0.0, float(size - 1)) if align else (-0.5, float(size))


def _reflected(place, size, align):
    """The place in the image where repeated mirrors show it, and the slope, 1 or -1."""
    first, span = _mirrors(size, align)
    if span == 0:
        return ops.zeros_like(place), ops.zeros_like(place)
    away = ops.abs(place - first)
    times = ops.stop_gradient(ops.floor(away / span))
    rest = away - times * span
    odd = times - 2 * ops.floor(times / 2)
    slope = ops.sign(place - first) * (1 - 2 * odd)
    return first + rest + odd * (span - 2 * rest), slope


def _inside(place, size):
    """The place moved to the edge of the image, from where on it is constant; and where it is
    not.
    """
    edge = ops.stop_gradient(ops.clamp(place, 0, size - 1))
    inside = ops.logical_and(place > 0, place < size - 1)
    return ops.select(inside, place, edge), inside


def _places(grid, size, padding, align):
    """From -1 to 1 over the image, or over its outermost pixels' centres, to pixels; and the
    slope.
    """
    place, slope = (grid + 1) / 2 * (size - 1), ops.ones_like(grid) * (size - 1) / 2
    if not align:
        place, slope = ((grid + 1) * size - 1) / 2, ops.ones_like(grid) * size / 2
    if padding == _REFLECTION:
        place, sign = _reflected(place, size, align)
        slope = slope * sign
    if padding != _ZEROS:
        place, inside = _inside(place, size)
        slope = slope * ops.cast(inside, slope.dtype)
    return place, slope


def _corner(places, corner, along=()):
    """(pixels, share): those at one corner around the places, and how much of them is read; or the
    derivative of that along some of the axes."""
    pixels, share = (), 1
    for axis in range(len(corner)):
        low = ops.stop_gradient(ops.floor(places[axis]))
        ahead = places[axis] - low
        pixels = pixels + (low + corner[axis],)
        if axis in along:
            share = share if corner[axis] == 1 else -share
        else:
            share = share * (ahead if corner[axis] == 1 else 1 - ahead)
    return pixels, share


def _flat(pixels, sizes, index):
    """(index in the flat image, 1; outside of the image 0). `index` counts what lies before the
    first axis.
    """
    inside = 1
    for axis in range(len(sizes)):
        near, size = pixels[axis], sizes[axis]
        inside = inside * ops.cast(ops.logical_and(near >= 0, near <= size - 1), near.dtype)
        index = index * size + ops.cast(ops.clamp(near, 0, size - 1), ms.int64)
    return index, inside


def _read(flat, index):
    return ops.gather_d(flat, 2, ops.broadcast_to(index, flat.shape[:2] + index.shape[2:]))


# --- at the places of a grid ----------------------------------------------------------------------


def _lines(grid, leading):
    """The coordinates along each axis of the image, whose last one comes first in the grid: (*leading,
    1, all of them)."""
    axes, lines = grid.shape[-1], ()
    for axis in range(axes):
        lines = lines + (grid[..., axes - 1 - axis].reshape(leading + (1, -1)),)
    return lines


def _in_pixels(grid, sizes, padding, align):
    """The places of a grid along each axis of the image, and the slopes."""
    places, slopes = (), ()
    lines = _lines(grid, (grid.shape[0],))
    for axis in range(len(sizes)):
        place, slope = _places(lines[axis], sizes[axis], padding, align)
        places, slopes = places + (place,), slopes + (slope,)
    return places, slopes


def _between_pixels(flat, places, sizes, along=()):
    """A flat image at these places, or its derivative along some of the axes."""
    result = 0
    for corner in _corners(len(sizes)):
        pixels, share = _corner(places, corner, along)
        index, inside = _flat(pixels, sizes, 0)
        result = result + share * inside * _read(flat, index)
    return result


def sampled(x, grid, interpolation, padding, align):
    """grid_sample: x of shape (N, C, *sizes) at the places of a grid (N, *out, axes), whose last
    axis comes first.
    """
    (places, _), sizes, result = _in_pixels(grid, x.shape[2:], padding, align), x.shape[2:], 0
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    if interpolation == _NEAREST:
        pixels = ()
        for place in places:
            pixels = pixels + (ops.stop_gradient(ops.round(place)),)
        index, inside = _flat(pixels, sizes, 0)
        result = inside * _read(flat, index)
    else:
        result = _between_pixels(flat, places, sizes)
    return result.reshape(x.shape[:2] + grid.shape[1:-1])


@derivative("GridSampler2DGrad", "GridSampler3DGrad")
def grid_sampler_grad(prim):
    """GridSampler2DGrad and 3DGrad(d, x, grid, interpolation, padding, align_corners, mask): (dx,
    dgrid).
    """

    def bprop(d, x, grid, interpolation, padding, align, mask, out, dout):
        def sample(x, grid):
            return sampled(x, grid, interpolation, padding, align)

        def backward(d, x, grid):
            return pull(sample)(mutable(x), mutable(grid), d)

        dd, dx, dgrid = pull(backward)(mutable(d), mutable(x), mutable(grid), dout)
        return dd, dx, dgrid, 0, 0, 0, 0

    return bprop


@forward("GridSampler2D", "GridSampler3D")
@allow(0, 1)
def pushed_grid_sampler(prim, usual):
    """Linear in x, and in each of the places p_a that the grid says: y' = y(x') + sum y_a p_a', and
    y'' = y(x'') + sum (y_a p_a'' + 2 y_a(x') p_a') + sum y_ab p_a' p_b', where y_aa = 0."""

    def rule(x_pair, grid_pair, *rest):
        options = options_of(rest)
        x, grid = value_of(x_pair), value_of(grid_pair)
        out, x_change = (prim(x, grid, *options), None, None), None
        if x_pair[1] == FORWARD:
            x_change = x_pair[0][1]
            batched = usual((x_change, 0), (grid, None), *rest)
            out = (out[0], front(batched[0], batched[1]), prim(x_pair[0][2], grid, *options))
        if grid_pair[1] == FORWARD and options[0] != _NEAREST:
            j, l = _moved(x, x_change, grid_pair[0], options[1], options[2])  # noqa: E741
            if x_change is not None:
                j, l = add(out[1], j), add(out[2], l)  # noqa: E741
            out = (out[0], j, l)
        return (out[0], None) if out[1] is None else (out, FORWARD)

    return rule


def _moved(x, x_change, grid, padding, align):
    """What comes of the grid, and of both together: the derivatives, the sum of the second ones."""
    sizes, shape, count = x.shape[2:], x.shape[:2] + grid[0].shape[1:-1], grid[1].shape[0]
    places, slopes = _in_pixels(grid[0], sizes, padding, align)
    flat = x.reshape(x.shape[0], x.shape[1], -1)
    first, second = _lines(grid[1], (count, x.shape[0])), _lines(grid[2], (x.shape[0],))
    several = ()
    for place in places:
        wide = ops.broadcast_to(place, (count,) + place.shape)
        several = several + (wide.reshape((-1,) + place.shape[1:]),)
    j, l, firsts = 0, 0, ()  # noqa: E741
    for axis in range(len(sizes)):
        change, slope = first[axis] * slopes[axis], _between_pixels(flat, places, sizes, (axis,))
        j, l = j + slope * change, l + slope * second[axis] * slopes[axis]  # noqa: E741
        for other in range(axis):
            both = _between_pixels(flat, places, sizes, (other, axis))
            l = l + 2 * both * (change * firsts[other]).sum(0)  # noqa: E741
        if x_change is not None:
            turned = x_change.reshape(count * x.shape[0], x.shape[1], -1)
            turned = _between_pixels(turned, several, sizes, (axis,))
            turned = turned.reshape((count,) + slope.shape)
            l = l + 2 * (turned * change).sum(0)  # noqa: E741
        firsts = firsts + (change,)
    return j.reshape((count,) + shape), l.reshape(shape)


batching("AffineGrid", "AffineGridGrad")(joining(1, shape=True))
forward("AffineGrid")(linear)


@derivative("AffineGridGrad")
def affine_grid_grad(prim):
    """AffineGridGrad(d, size): the grid is linear in theta, so this is the transpose of it."""
    grid = ops.AffineGrid(*attributes_of(prim, "align_corners"))

    def bprop(d, size, out, dout):
        return grid(dout, size), 0

    return bprop


# --- in boxes -------------------------------------------------------------------------------------


@constexpr
def _steps(count):
    """The places of `count` rows of a crop, from 0 to 1; of one row, the middle."""
    return Tensor(np.linspace(0, 1, count) if count > 1 else np.array([0.5]))


def _between(first, last, count, size):
    """In pixels, the rows or columns of every crop: (boxes, count)."""
    steps = ops.cast(_steps(count), first.dtype)
    return (first.reshape(-1, 1) * (1 - steps) + last.reshape(-1, 1) * steps) * (size - 1)


def cropped(x, boxes, box_index, crop_size):
    """crop_and_resize of images (N, height, width, C), bilinear, to boxes (y1, x1, y2, x2): (boxes,
    *crop_size, C).

    Outside of the image it is 0 here: what stands there is a constant.
    """
    rows = _between(boxes[:, 0], boxes[:, 2], crop_size[0], x.shape[1]).expand_dims(2)
    columns = _between(boxes[:, 1], boxes[:, 3], crop_size[1], x.shape[2]).expand_dims(1)
    flat = x.reshape(-1, x.shape[3])
    image = ops.cast(box_index, ms.int64).reshape(-1, 1, 1)
    result = 0
    for corner in _corners(2):
        pixels, share = _corner((rows, columns), corner)
        index, _ = _flat(pixels, x.shape[1:3], image)
        read = ops.gather(flat, index.reshape(-1), 0).reshape(index.shape + (x.shape[3],))
        result = result + share.expand_dims(3) * read
    inside = ops.logical_and(
        ops.logical_and(rows >= 0, rows <= x.shape[1] - 1),
        ops.logical_and(columns >= 0, columns <= x.shape[2] - 1),
    ).expand_dims(3)
    return ops.select(inside.broadcast_to(result.shape), result, ops.zeros_like(result))


@derivative(
    "CropAndResize",
    why="emits the same backward primitives, with attributes that their derivatives can read",
    replaces=True,
)
def crop_and_resize(prim):
    """MindSpore's own rule, but with a CropAndResizeGradImage whose attributes Python can read."""
    (method,) = attributes_of(prim, "method")
    half, single, double = (
        _compat.CropAndResizeGradImage(dtype, method)
        for dtype in (ms.float16, ms.float32, ms.float64)
    )
    to_boxes = _compat.CropAndResizeGradBoxes()

    def bprop(x, boxes, box_index, crop_size, out, dout):
        to_image = half if x.dtype == ms.float16 else double if x.dtype == ms.float64 else single
        dx = to_image(dout, boxes, box_index, ops.cast(ops.dyn_shape(x), ms.int32))
        dboxes = (
            to_boxes(dout, x, boxes, box_index) if method == "bilinear" else ops.zeros_like(boxes)
        )
        return dx, dboxes, ops.zeros_like(box_index), 0

    return bprop


@derivative("CropAndResizeGradImage")
def crop_grad_of_image(prim):
    """CropAndResizeGradImage(d, boxes, box_index, shape of x), linear in d: <it, u> = <d, crop(u,
    boxes)>.
    """
    (method,) = attributes_of(prim, "method")
    crop, to_boxes = ops.CropAndResize(method), _compat.CropAndResizeGradBoxes()

    def bprop(d, boxes, box_index, shape, out, dout):
        dboxes = (
            to_boxes(d, dout, boxes, box_index) if method == "bilinear" else ops.zeros_like(boxes)
        )
        return (
            crop(dout, boxes, box_index, d.shape[1:3]),
            dboxes,
            ops.zeros_like(box_index),
            ops.zeros_like(shape),
        )

    return bprop


@derivative("CropAndResizeGradBoxes")
def crop_grad_of_boxes(prim):
    """CropAndResizeGradBoxes(d, x, boxes, box_index)."""

    def bprop(d, x, boxes, box_index, out, dout):
        def crop(boxes, x):
            return cropped(x, boxes, box_index, d.shape[1:3])

        def backward(d, x, boxes):
            return pull(crop)(mutable(boxes), mutable(x), d)[0]

        dd, dx, dboxes = pull(backward)(
            mutable(d), mutable(ops.cast(x, d.dtype)), mutable(boxes), dout
        )
        return dd, ops.cast(dx, x.dtype), dboxes, ops.zeros_like(box_index)

    return bprop


# --- random numbers: a batch sees the same ---------------------------------------------------------


@batching("UniformReal", why="MindSpore's rule fails", replaces=True)
def batched_uniform(prim, axis_size):
    """Of a shape."""
    prim = primitive(prim)

    def rule(*pairs):
        return prim(*values(pairs)), None

    return rule


@batching("Generator", why="MindSpore has none: it takes a tuple")
@batching("CropAndResize", why="MindSpore's rule fails", replaces=True)
def not_batched(prim, axis_size):
    """What needs it goes row after row."""
    name = prim if isinstance(prim, str) else prim.name
    raise NotImplementedError(f"primitive {name} has no batching rule")
