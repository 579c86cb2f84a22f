"""Rows of make_rules.py that read images between their pixels, or measure distances, in torch.

torch has no second derivative of its grid_sample. Here an image is the sum of its pixels times hat functions around
them; value and first gradient are compared with torch's own.
"""
import itertools
import math

import torch
import torch.nn.functional as F

GRID_CASES = list(itertools.product(("zeros", "border", "reflection"), (False, True)))


def reflected(place, low, high):
    if high == low:
        return torch.zeros_like(place)
    turn = torch.remainder(place - low, 2 * (high - low))
    return low + torch.minimum(turn, 2 * (high - low) - turn)


def hats(place, size):
    """How much each of the pixels 0, 1, ... has of a place: (..., size)."""
    return torch.relu(1 - (place[..., None] - torch.arange(size)).abs())


def hat_sampled(image, grid, padding, align):
    places = []
    for axis, size in enumerate(image.shape[2:]):
        g = grid[..., grid.shape[-1] - 1 - axis]
        place = (g + 1) / 2 * (size - 1) if align else ((g + 1) * size - 1) / 2
        if padding == "reflection":
            place = reflected(place, *((0, size - 1) if align else (-0.5, size - 0.5)))
        places.append(place if padding == "zeros" else place.clamp(0, size - 1))
    rows = [hats(place, size) for place, size in zip(places, image.shape[2:], strict=True)]
    letters = "yxz"[:len(rows)]
    sides = ",".join(f"no{letter}" for letter in letters)
    flat = [row.reshape(row.shape[0], -1, row.shape[-1]) for row in rows]
    out = torch.einsum(f"nc{letters},{sides}->nco", image, *flat)
    return out.reshape(*image.shape[:2], *grid.shape[1:-1])


def image_and_grid(x, image, grid):
    """The first entries of a line of numbers are the image, the others the grid."""
    count = math.prod(image)
    return x[:count].reshape(image), x[count:count + math.prod(grid)].reshape(grid)


def grid_sample(image, grid, padding, align):
    def f(x):
        a, b = image_and_grid(x, image, grid)
        ours, theirs = hat_sampled(a, b, padding, align), F.grid_sample(a, b, "bilinear", padding, align)
        slopes = [torch.autograd.grad((y * y).sum(), x, retain_graph=True)[0] for y in (ours, theirs)]
        assert torch.allclose(ours, theirs) and torch.allclose(*slopes)
        return ours
    return f


def nearest(x):
    image, grid = image_and_grid(x, (1, 1, 3, 4), (1, 2, 3, 2))
    return (F.grid_sample(image ** 2, grid.detach(), "nearest", "border", False))


def cropped_nearest(x):
    """The same with the nearest pixel, whose place is rounded away from zero."""
    image, boxes = (x[:20] ** 2).reshape(4, 5), [[0.1, 0.15, 0.8, 0.9], [0.3, 0.0, 0.6, 0.7]]
    crops = []
    for top, left, bottom, right in boxes:
        rows = [int(math.floor((top + (bottom - top) * k) * 3 + 0.5)) for k in (0, 1)]
        columns = [int(math.floor((left + (right - left) * k / 2) * 4 + 0.5)) for k in (0, 1, 2)]
        crops.append(image[rows][:, columns])
    return torch.stack(crops)[..., None]


def cropped(x):
    """TensorFlow's crop_and_resize to 2 x 3, of x as an image (1, 4, 5, 1) and two boxes."""
    image, boxes = x[:20].reshape(1, 1, 4, 5), 0.1 + 0.8 * torch.sigmoid(x[20:28].reshape(2, 4))
    rows = (boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * torch.linspace(0, 1, 2)) * 3
    columns = (boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * torch.linspace(0, 1, 3)) * 4
    return torch.einsum("yx,biy,bjx->bij", image[0, 0], hats(rows, 4), hats(columns, 5))[..., None]


def local_response_norm(x):
    """MindSpore's: the sum of the squares itself, not their mean."""
    squares = F.pad(x * x, (0, 0, 0, 0, 1, 1))
    around = squares[:, :-2] + squares[:, 1:-1] + squares[:, 2:]
    return x * (2 + 0.5 * around) ** -0.75


def distances(p):
    def f(x):
        return ((x[0, :, None] - x[1, None]).abs() ** p).sum(-1) ** (1 / p)
    return f


def pair_distances(p):
    def f(x):
        first, second = torch.triu_indices(len(x), len(x), 1)
        return ((x[first] - x[second]).abs() ** p).sum(-1) ** (1 / p)
    return f


def unpacked(x):
    return (torch.tril(x, -1)[:, :3] + torch.eye(3)) * torch.triu(x)[:, :3]


def fractional(x):
    return F.fractional_max_pool3d(x ** 3, 2, (2, 2, 2), _random_samples=torch.tensor([[[0.3, 0.6, 0.4]]]))


ROWS = {
    **{f"grid_sample_{padding}_{align}": (grid_sample((1, 2, 3, 4), (1, 2, 3, 2), padding, align), (36,), -1.4, 1.4)
       for padding, align in GRID_CASES},
    **{f"grid_sample_3d_{padding}_{align}": (
        grid_sample((1, 1, 2, 3, 2), (1, 1, 2, 2, 3), padding, align), (24,), -1.4, 1.4)
       for padding, align in GRID_CASES[::5]},
    "grid_sample_nearest": (nearest, (24,), -1.4, 1.4),
    "affine_grid": (lambda x: F.affine_grid(x, (2, 1, 2, 3), True), (2, 2, 3)),
    "crop_and_resize": (cropped, (28,)),
    "crop_and_resize_nearest": (cropped_nearest, (20,)),
    "lrn": (local_response_norm, (1, 4, 2, 2)),
    **{f"cdist_{p}": (distances(p), (2, 3, 4)) for p in (1, 2, 3)},
    **{f"pdist_{p}": (pair_distances(p), (4, 3)) for p in (1, 2, 3)},
    "lu_unpack": (unpacked, (3, 3)),
    "fractional_max_pool_3d": (fractional, (1, 1, 4, 4, 4)),
    "select_view": (lambda x: x.select(1, -2), (2, 3, 4)),
    "narrow_view": (lambda x: x.narrow(-1, -3, 2), (2, 3, 4)),
}
