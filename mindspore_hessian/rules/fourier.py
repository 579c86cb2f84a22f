"""Rules of Fourier transforms."""

from __future__ import annotations

from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError
from mindspore_hessian.rules.kit import axis_at, one_tensor, primitive
from mindspore_hessian.rules.registry import batching, derivative

batching("FFT", "IFFT", "RFFT", "IRFFT")(axis_at(2))


@constexpr
def _transformed(shape, lengths, axes):
    """The axes of a transform: by default all of a sample, or as many as there are lengths."""
    if axes is None:
        return tuple(range(1, len(shape))) if lengths is None else tuple(range(-len(lengths), 0))
    return tuple(axis + 1 if axis >= 0 else axis for axis in axes)


@batching("FFT2", "FFTN", "IFFT2", "IFFTN", "RFFT2", "RFFTN", "IRFFT2", "IRFFTN")
@one_tensor
def batched_transform(prim, x, lengths, axes, norm):
    return prim(x, lengths, _transformed(x.shape, lengths, axes), norm)


@derivative("FFTShapeCopy")
def fft_shape_copy(prim):
    """FFTShapeCopy(d, shape) cuts off, or fills with zeros, at the end of each axis: the same, back
    to d's shape.
    """
    copy = _compat.backward("FFTShapeCopy")

    def bprop(d, shape, out, dout):
        return copy(dout, d.shape), 0

    return bprop


@batching("FFTShapeCopy")
@one_tensor
def batched_shape_copy(prim, x, shape):
    """A primitive that cuts or fills each axis to a length."""
    return prim(x, (x.shape[0], *shape))


@derivative("IRFFTDouble")
def irfft_double(prim):
    """IRFFTDouble(x, n, dim) doubles what the real transform of length n leaves out: a diagonal
    matrix.
    """
    double = _compat.backward("IRFFTDouble")

    def bprop(x, n, dim, out, dout):
        return double(dout, n, dim), 0, 0

    return bprop


batching("IRFFTDouble")(axis_at(2))


# --- refused --------------------------------------------------------------------------------------


def hermitian(instead):
    """HFFT, IHFFT and their forms of more dimensions: no derivative can mend the value that it goes
    with.
    """

    def getter(prim):
        raise MissingRuleError(
            f"ops.{primitive(prim).name.lower()} is refused: MindSpore's kernel computes something "
            "else at every second call, and the gradient of its imaginary part has the wrong "
            f"sign. Write {instead}, with 2 or n at the end for more dimensions; the opposite norm "
            "is 'forward' for 'backward', which is the default, and the reverse."
        )

    return getter


_EVERY_SECOND = "MindSpore's kernel computes something else at every second call: refused"

derivative("HFFT", "HFFT2", "HFFTN", why=_EVERY_SECOND, replaces=True)(
    hermitian("ops.irfft(ops.conj(x), n, dim, opposite norm)")
)
derivative("IHFFT", "IHFFT2", "IHFFTN", why=_EVERY_SECOND, replaces=True)(
    hermitian("ops.conj(ops.rfft(x, n, dim, opposite norm))")
)
