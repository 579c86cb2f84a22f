"""What lines of tests/rules/calls call under `torch`: what torch lacks, cannot differentiate twice,
or has wrong.

torch has no second derivative of its grid_sample and multi_margin_loss, and the third derivatives
of its layer_norm and batch_norm (training) differ from differences of its second ones by 70%. Where
torch has the value and the first gradient, both are compared.
"""

import math

import calls
import torch
import torch.nn.functional as F


def parameter(number, *shape):
    return torch.tensor(calls.parameter(number, shape))


def compared(ours, theirs, *inputs):
    """Ours, whose value and gradient must be those of torch's own."""
    inputs = [x for x in inputs if x.requires_grad]
    slopes = [torch.autograd.grad((y * y).sum(), inputs, retain_graph=True) for y in (ours, theirs)]
    assert torch.allclose(ours, theirs) and all(map(torch.allclose, *slopes))
    return ours


def standardized(x, axes, eps=1e-5):
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred**2).mean(axes, keepdim=True) + eps).sqrt()


def multi_margin(x, k, p=1, margin=1.0, weight=None, reduction="mean"):
    own = x[torch.arange(len(x)), k][:, None]
    terms = torch.relu(margin - own + x) ** p * (1 - F.one_hot(k, x.shape[1])) / x.shape[1]
    total = terms.sum(1) * (1 if weight is None else weight[k])
    return compared(
        total.mean() if reduction == "mean" else total,
        F.multi_margin_loss(x, k, p, margin, weight, reduction=reduction),
        x,
    )


def counted_pool(x, pad, size, stride):
    """The mean over the entries that are inside."""
    total, count = (
        F.avg_pool2d(F.pad(y, pad), size, stride, divisor_override=1)
        for y in (x, torch.ones_like(x))
    )
    return total / count


def distances(difference, p):
    return (difference.abs() ** p).sum(-1) ** (1 / p)


def across(x, reach, bias, alpha, beta):
    """MindSpore's local response normalisation: of the sum of the squares itself, not of their
    mean.
    """
    place = torch.arange(x.shape[1])
    near = ((place[:, None] - place).abs() <= reach).to(x)
    return x * (bias + alpha * torch.einsum("ij,njhw->nihw", near, x * x)) ** -beta


# --- complex numbers ------------------------------------------------------------------------------


def c(x):
    return torch.complex(x, torch.flip(x, (-1,)) * 0.75)


def parts(y):
    return torch.cat((y.real, y.imag), -1)


# --- images between their pixels: the sum of the pixels times hat functions around them -----------


def reflected(place, low, high):
    if high == low:
        return torch.zeros_like(place)
    turn = torch.remainder(place - low, 2 * (high - low))
    return low + torch.minimum(turn, 2 * (high - low) - turn)


def hats(place, size):
    """How much each of the pixels 0, 1, ... has of a place: (..., size)."""
    return torch.relu(1 - (place[..., None] - torch.arange(size)).abs())


def grid_sample(image, grid, padding="zeros", align=False):
    places = []
    for axis, size in enumerate(image.shape[2:]):
        g = grid[..., grid.shape[-1] - 1 - axis]
        place = (g + 1) / 2 * (size - 1) if align else ((g + 1) * size - 1) / 2
        if padding == "reflection":
            place = reflected(place, *((0, size - 1) if align else (-0.5, size - 0.5)))
        places.append(place if padding == "zeros" else place.clamp(0, size - 1))
    rows = [hats(place, size) for place, size in zip(places, image.shape[2:], strict=True)]
    letters = "yxz"[: len(rows)]
    sides = ",".join(f"no{letter}" for letter in letters)
    flat = [row.reshape(row.shape[0], -1, row.shape[-1]) for row in rows]
    out = torch.einsum(f"nc{letters},{sides}->nco", image, *flat).reshape(
        *image.shape[:2], *grid.shape[1:-1]
    )
    return compared(out, F.grid_sample(image, grid, "bilinear", padding, align), image, grid)


def cropped(image, boxes):
    """TensorFlow's crop_and_resize of one image (1, 4, 5, 1) to 2 x 3."""
    rows = (boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * torch.linspace(0, 1, 2)) * 3
    columns = (boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * torch.linspace(0, 1, 3)) * 4
    return torch.einsum("yx,biy,bjx->bij", image[0, :, :, 0], hats(rows, 4), hats(columns, 5))[
        ..., None
    ]


def cropped_nearest(image, boxes):
    """The same with the nearest pixel, whose place is rounded away from zero."""
    crops = []
    for top, left, bottom, right in boxes.tolist():
        rows = [int(math.floor((top + (bottom - top) * k) * 3 + 0.5)) for k in (0, 1)]
        columns = [int(math.floor((left + (right - left) * k / 2) * 4 + 0.5)) for k in (0, 1, 2)]
        crops.append(image[0, rows][:, columns, 0])
    return torch.stack(crops)[..., None]
