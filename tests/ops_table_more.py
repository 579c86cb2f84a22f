"""Further operations whose derivatives rest on our rules: a row each, under the names of ci/golden/make_rules_more.py.

Here the first gradient is compared as well: MindSpore's own is wrong for some of them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops
from ops_functions import c


@dataclass(frozen=True)
class Row:
    """An operation as MindSpore writes it.

    Attributes:
        make: given the dtype, the function of the input.
        rules: the derivative rules that it goes through.
        tolerances: for float32 and for float64, largest errors relative to the largest value; None where MindSpore's
            CPU kernels do not take the dtype, or it would say no more than the other.
    """

    name: str
    make: Callable
    rules: tuple[str, ...] = ()
    tolerances: tuple[float | None, float | None] = (None, 1e-12)


def plain(function, *args, **options):
    def make(dtype):
        def f(x):
            return function(x, *args, **options)
        return f
    return make


def of(function):
    """A function that needs no constants of the dtype."""
    def make(dtype):
        return function
    return make


def positive(x):
    return ops.matmul(x, ops.swapaxes(x, -1, -2)) + 0.5 * ops.eye(x.shape[-1], x.shape[-1], x.dtype)


def lower(x):
    return x * Tensor(np.tri(3), x.dtype) + 2 * ops.eye(3, 3, x.dtype)


def cholesky(x):
    return ops.cholesky(positive(x))


def cholesky_upper(x):
    return ops.cholesky(positive(x), upper=True)


def cholesky_inverse(x):
    return ops.cholesky_inverse(lower(x))


def cholesky_inverse_upper(x):
    return ops.cholesky_inverse(lower(x).swapaxes(0, 1), upper=True)


def cholesky_solve(x):
    return ops.cholesky_solve(x[:, :2], lower(x[:, 2:]))


def cholesky_solve_upper(x):
    return ops.cholesky_solve(x[:, :2], lower(x[:, 2:]).swapaxes(0, 1), upper=True)


def pinv_hermitian(x):
    return ops.pinv(x + x.swapaxes(0, 1), hermitian=True)


def reversed_vector(x):
    return x[::-1]


def reversed_matrix(x):
    return x[:, ::-2]


def reversed_part(x):
    return x[3:0:-1, None, 2]


def tile_nothing(x):
    return ops.tile(x, (0, 2))


def pad_circular_negative(x):
    return ops.pad(x, (-1, 2, 1, -2), "circular")


def prelu_scalar(dtype):
    w = Tensor(np.array([0.3]).astype(dtype))

    def f(x):
        return ops.prelu(x, w)
    return f


def prelu_scalar_weight(dtype):
    x = Tensor(np.array(-1.5).astype(dtype))

    def f(w):
        return ops.prelu(x, w)
    return f


def weights(dtype):
    return Tensor((np.abs(c(np.float64, 6, phase=0.4).asnumpy()) + 0.5).astype(dtype))


def bce_target(dtype):
    x, ones, positive_weight = c(dtype, 4, 6), Tensor(np.ones(6, dtype)), weights(dtype)

    def f(t):
        return ops.binary_cross_entropy_with_logits(x, t, ones, positive_weight)
    return f


def bce_both(dtype):
    positive_weight = weights(dtype)

    def f(x):
        return ops.binary_cross_entropy_with_logits(
            x, ops.sigmoid(x) ** 2, positive_weight * 0.75, positive_weight, "sum")
    return f


def hfft(x, n=None, norm="forward"):
    """What is to be written instead of ops.hfft, which MindSpore has wrong."""
    return ops.irfft(ops.conj(x), n, -1, norm)


def ihfft(x, n=None, norm="forward"):
    return ops.conj(ops.rfft(x, n, -1, norm))


INSTEAD = {"hfft": hfft, "ihfft": ihfft}


def fourier(name, **options):
    """From a real tensor to one, as in make_rules_more.py."""
    function, half = INSTEAD.get(name) or getattr(ops, name), name.startswith(("irfft", "hfft"))
    complex_out = not half

    def make(dtype):
        def f(x):
            if half:
                x = ops.Complex()(x, ops.flip(x, (-1,)) * 0.75)
            y = function(x, **options)
            return ops.concat((ops.real(y), ops.imag(y)), -1) if complex_out else y
        return f
    return make


ONLY_32, BOTH = (3e-5, None), (3e-5, 1e-12)
FOURIER = ("FFTShapeCopy", "IRFFTDouble")
ROWS = (
    Row("tanh", of(ops.tanh), ("Tanh",), (1e-5, 1e-12)),
    Row("tanh", of(mint.tanh), ("Tanh",), (1e-5, 1e-12)),
    Row("gelu", plain(ops.gelu, "tanh"), ("GeLUGrad",), (3e-5, 1e-6)),
    Row("mish", of(ops.mish), ("Mish",), (1e-5, 1e-5)),
    Row("softplus", plain(mint.nn.functional.softplus, 1.5, 4.0), ("SoftplusExt",), (1e-5, 1e-6)),
    Row("reversed", of(reversed_vector), ("StridedSlice",)),
    Row("reversed_matrix", of(reversed_matrix), ("StridedSlice",)),
    Row("reversed_part", of(reversed_part), ("StridedSlice",)),
    Row("cholesky", of(cholesky), ("Cholesky",), BOTH),
    Row("cholesky_upper", of(cholesky_upper), ("Cholesky",)),
    Row("cholesky_stack", of(cholesky), ("Cholesky",)),
    Row("cholesky_one", of(cholesky), ("Cholesky",)),
    Row("cholesky_inverse", of(cholesky_inverse), ("CholeskyInverse",)),
    Row("cholesky_inverse_upper", of(cholesky_inverse_upper), ("CholeskyInverse",)),
    Row("cholesky_solve", of(cholesky_solve), ("CholeskySolve",), BOTH),
    Row("cholesky_solve_upper", of(cholesky_solve_upper), ("CholeskySolve",)),
    Row("pinv_hermitian", of(pinv_hermitian), ("Eigh",)),
    Row("tile_nothing", of(tile_nothing), ("Tile",)),
    Row("pad_circular_negative", of(pad_circular_negative), ("PadV3",)),
    Row("cumprod", plain(ops.cumprod, 1)),
    Row("cumprod", plain(ops.cumprod, 1, dtype=ms.float64), tolerances=BOTH),
    Row("avg_pool3d_divisor", plain(ops.avg_pool3d, 2, 2, 0, True, True, 3), ("AvgPool3D", "AvgPool3DGrad"), ONLY_32),
    Row("prelu_scalar", prelu_scalar, ("PReLUGrad",), ONLY_32),
    Row("prelu_scalar_weight", prelu_scalar_weight, ("PReLUGrad",), ONLY_32),
    Row("bce_target", bce_target, (), ONLY_32),
    Row("bce_both", bce_both, (), ONLY_32),
    Row("nearest_1d", plain(mint.nn.functional.interpolate, 9, None, "nearest"), ("UpsampleNearest1DGrad",)),
    Row("nearest_1d_scaled", plain(mint.nn.functional.interpolate, None, 1.7, "nearest"), ("UpsampleNearest1DGrad",)),
    Row("rfft_cut", fourier("rfft", n=5, dim=0, norm="ortho"), FOURIER, BOTH),
    Row("irfft_odd", fourier("irfft", n=7, dim=0, norm="ortho"), FOURIER, BOTH),
    *(Row(name, fourier(name.split("_")[0], **options), FOURIER) for name, options in (
        ("rfft", {}), ("rfft_padded", {"n": 9, "norm": "forward"}),
        ("irfft", {}), ("irfft_cut", {"n": 4, "norm": "forward"}),
        ("hfft", {}), ("hfft_odd", {"n": 7, "norm": "ortho"}),
        ("ihfft", {}), ("ihfft_cut", {"n": 5, "norm": "ortho"}),
        ("rfft2", {"s": (4, 7), "norm": "ortho"}), ("irfft2", {"s": (4, 7), "norm": "forward"}),
        ("rfftn", {"dim": (0, 2)}), ("irfftn", {"s": (3, 5), "dim": (0, 2)}))),
)
