"""Make tests/golden/rules_more.npz: what tests/ops_table_more.py lists, from torch, in float64.

Usage: python ci/golden/make_rules_more.py      (an environment with torch; MindSpore is not needed)

As make_rules.py, and with the gradient itself, which MindSpore has wrong for some: for each row f, its input x and a
direction v, with s(x) = sum(w (y + y^2/2)), y = f(x), w = wave(shape of y) + 1.5, the file holds ``name/x``,
``name/v``, ``name/grad`` = s'(x), ``name/hvp`` = s''(x) v and ``name/third`` = s'''(x)[v, v].
"""
import pathlib
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from make_rules import c, wave

OUT = pathlib.Path(__file__).parents[2] / "tests" / "golden" / "rules_more.npz"
torch.set_default_dtype(torch.float64)


def positive(x):
    """A symmetric positive definite matrix for each."""
    return x @ x.mT + 0.5 * torch.eye(x.shape[-1])


def hermitian(x):
    return x + x.mT


def lower(x):
    return torch.tril(x) + 2 * torch.eye(x.shape[-1])


def fourier(name, **options):
    """(f, from a real tensor to one): what is complex as its real and its imaginary part."""
    function = getattr(torch.fft, name)

    def f(x):
        if name.startswith(("irfft", "hfft")):
            x = torch.complex(x, torch.flip(x, (-1,)) * 0.75)
        y = function(x, **options)
        return torch.cat((y.real, y.imag), -1) if y.is_complex() else y
    return f


def circular(x):
    """A circular padding by (-1, 2) of the last axis and (1, -2) of the one before: what is cut off does not return."""
    return x[:, [1, 0, 1]][:, :, [1, 2, 3, 4, 5, 1, 2]]


def pooled(x):
    """An average of 2 x 2 x 2 with steps of 2, windows over the edge, divided by 3."""
    return F.avg_pool3d(F.pad(x, (0, 1, 0, 1, 0, 1)), 2, 2, divisor_override=3)


W, T = c(5, 3, phase=0.3), (c(4, 6, phase=0.3).abs() * 0.8 + 0.1)
POSITIVE = c(6, phase=0.4).abs() + 0.5
ROWS = {
    "tanh": (torch.tanh, (4, 6), -4, 4),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), (4, 6), -4, 4),
    "mish": (F.mish, (4, 6), -4, 4),
    "softplus": (lambda x: F.softplus(x, 1.5, 4.0), (4, 6), -4, 4),
    "reversed": (lambda x: torch.flip(x, (0,)), (5,)),
    "reversed_matrix": (lambda x: torch.flip(x, (1,))[:, ::2], (4, 5)),
    "reversed_part": (lambda x: torch.flip(x[1:4], (0,))[:, None, 2], (5, 3, 2)),
    "cholesky": (lambda x: torch.linalg.cholesky(positive(x)), (3, 3)),
    "cholesky_upper": (lambda x: torch.linalg.cholesky(positive(x)).mT, (3, 3)),
    "cholesky_stack": (lambda x: torch.linalg.cholesky(positive(x)), (2, 4, 4)),
    "cholesky_one": (lambda x: torch.linalg.cholesky(positive(x)), (1, 1)),
    "cholesky_inverse": (lambda x: torch.cholesky_inverse(lower(x)), (3, 3)),
    "cholesky_inverse_upper": (lambda x: torch.cholesky_inverse(lower(x).mT, upper=True), (3, 3)),
    "cholesky_solve": (lambda x: torch.cholesky_solve(x[:, :2], lower(x[:, 2:])), (3, 5)),
    "cholesky_solve_upper": (lambda x: torch.cholesky_solve(x[:, :2], lower(x[:, 2:]).mT, upper=True), (3, 5)),
    "pinv_hermitian": (lambda x: torch.linalg.pinv(hermitian(x), hermitian=True), (3, 3)),
    "tile_nothing": (lambda x: torch.tile(x, (0, 2)), (2, 3)),
    "pad_circular_negative": (circular, (2, 4, 6)),
    "cumprod": (lambda x: torch.cumprod(x, 1), (3, 4)),
    "avg_pool3d_divisor": (pooled, (1, 2, 3, 5, 5)),
    "prelu_scalar": (lambda x: F.prelu(x, torch.tensor([0.3])), (), -2, -1),
    "prelu_scalar_weight": (lambda w: F.prelu(torch.tensor(-1.5), w), (1,)),
    "bce_target": (lambda t: F.binary_cross_entropy_with_logits(c(4, 6), t, pos_weight=POSITIVE), (4, 6), 0.1, 0.9),
    "bce_both": (lambda x: F.binary_cross_entropy_with_logits(
        x, torch.sigmoid(x) ** 2, POSITIVE * 0.75, reduction="sum", pos_weight=POSITIVE), (4, 6)),
    "nearest_1d": (lambda x: F.interpolate(x, size=9, mode="nearest"), (2, 3, 6)),
    "nearest_1d_scaled": (lambda x: F.interpolate(x, scale_factor=1.7, mode="nearest"), (2, 3, 6)),
    "rfft": (fourier("rfft"), (3, 6)),
    "rfft_cut": (fourier("rfft", n=5, dim=0, norm="ortho"), (6, 3)),
    "rfft_padded": (fourier("rfft", n=9, norm="forward"), (3, 6)),
    "irfft": (fourier("irfft"), (3, 5)),
    "irfft_odd": (fourier("irfft", n=7, dim=0, norm="ortho"), (4, 3)),
    "irfft_cut": (fourier("irfft", n=4, norm="forward"), (3, 5)),
    "hfft": (fourier("hfft"), (3, 5)),
    "hfft_odd": (fourier("hfft", n=7, norm="ortho"), (3, 4)),
    "ihfft": (fourier("ihfft"), (3, 6)),
    "ihfft_cut": (fourier("ihfft", n=5, norm="ortho"), (3, 6)),
    "rfft2": (fourier("rfft2", s=(4, 7), norm="ortho"), (3, 4, 6)),
    "irfft2": (fourier("irfft2", s=(4, 7), norm="forward"), (3, 4, 4)),
    "rfftn": (fourier("rfftn", dim=(0, 2)), (3, 4, 5)),
    "irfftn": (fourier("irfftn", s=(3, 5), dim=(0, 2)), (3, 4, 3)),
}


def derivatives(f, x, v):
    """(s'(x), s''(x) v, s'''(x)[v, v])."""
    x = torch.tensor(x, requires_grad=True)
    v = torch.tensor(v)
    y = f(x)
    weight = torch.tensor(wave(*y.shape, phase=2.2)) + 1.5 if y.dim() else 1.0
    value = (weight * (y + 0.5 * y * y)).sum()
    out = []
    for _ in range(3):
        g = torch.zeros_like(x)
        if value.requires_grad:
            (g,) = torch.autograd.grad(value, x, create_graph=True, materialize_grads=True)
        out.append(g)
        value = (g * v).sum()
    return [g.detach().numpy() for g in out]


def main():
    data = {}
    for name, (f, shape, *domain) in ROWS.items():
        low, high = domain or (-1.5, 1.5)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x, v = np.asarray(rng.uniform(low, high, shape)), np.asarray(rng.standard_normal(shape))
        x = x.astype(np.float32).astype(np.float64)  # the same point in both precisions
        v = v.astype(np.float32).astype(np.float64)
        data[f"{name}/x"], data[f"{name}/v"] = x, v
        for order, value in zip(("grad", "hvp", "third"), derivatives(f, x, v), strict=True):
            data[f"{name}/{order}"] = value
    np.savez_compressed(OUT, **data)
    print(f"{len(ROWS)} rows, {OUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
