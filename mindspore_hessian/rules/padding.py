"""Rules of padding: a gather along each axis."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.forward import FORWARD, allow, linear, straight, triples
from mindspore_hessian.rules.kit import (
    attributes_of,
    front,
    numbers,
    primitive,
    reshape,
    tensors_of,
)
from mindspore_hessian.rules.registry import (
    REWRITTEN,
    batching,
    composition,
    derivative,
    forward,
)

# position in the padded axis, counted from the first unpadded one -> index into n elements
_AXIS_INDEX = {
    "constant": lambda i, n: i,
    "edge": lambda i, n: np.clip(i, 0, n - 1),
    "circular": lambda i, n: i % n,
    "reflect": lambda i, n: (n - 1) - np.abs((n - 1) - i % max(2 * (n - 1), 1)),
    "symmetric": lambda i, n: np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)),
}


@constexpr
def axis_sources(shape, paddings, mode):
    """(axis, indices, mask) of each padded axis; paddings are (left, right) from the last axis
    backwards.
    """
    paddings = numbers(paddings)
    out = []
    for k in range(len(paddings) // 2):
        axis, left, right = len(shape) - 1 - k, paddings[2 * k], paddings[2 * k + 1]
        if left or right:
            n, cut = shape[axis], max(-left, 0)
            kept = (
                n - cut - max(-right, 0)
            )  # what a negative padding cuts off is not there to be repeated
            index = cut + _AXIS_INDEX[mode](np.arange(-max(left, 0), kept + max(right, 0)), kept)
            inside = (index >= 0) & (index < n)
            wide = inside.reshape((-1,) + (1,) * k)
            source = Tensor(np.clip(index, 0, n - 1).astype(np.int32))
            out.append((axis, source, None if inside.all() else Tensor(wide)))
    return tuple(out)


@constexpr
def _begin_of_unpadded(shape, paddings):
    """Where the unpadded values lie in the padded tensor, as the begin of a slice; None if a
    padding is negative.
    """
    paddings = numbers(paddings)
    if min(paddings) < 0:
        return None
    left = paddings[::2]
    return (0,) * (len(shape) - len(left)) + left[::-1]


@constexpr
def _interleave(paddings, pairs):
    return tuple(pad for k in range(pairs) for pad in (paddings[k], paddings[pairs + k]))


# --- negative paddings ----------------------------------------------------------------------------

_ONCE = "MindSpore's kernel is right in its first run alone where a padding is negative"
_pad, _mint_pad = (
    _compat.plain("mindspore.ops.pad"),
    _compat.plain("mindspore.mint.nn.functional.pad"),
)


@constexpr
def _cut(shape, paddings):
    """The begin and the size of what negative paddings leave; None where none is negative."""
    paddings = numbers(paddings)
    if min(paddings, default=0) >= 0:
        return None
    begin, size = [0] * len(shape), list(shape)
    for k in range(len(paddings) // 2):
        left, right = (max(-pad, 0) for pad in paddings[2 * k : 2 * k + 2])
        begin[-1 - k], size[-1 - k] = left, shape[-1 - k] - left - right
    return tuple(begin), tuple(size)


@constexpr
def _not_negative(paddings):
    return tuple(max(pad, 0) for pad in numbers(paddings))


@composition("mindspore.ops.pad", why=_ONCE)
def pad(input_x, padding, mode="constant", value=None):
    """What a negative padding takes away is taken away first."""
    found = None if isinstance(padding, Tensor) else _cut(input_x.shape, padding)
    if found is None:
        return _pad(input_x, padding, mode, value)
    return _pad(ops.slice(input_x, *found), _not_negative(padding), mode, value)


@composition("mindspore.mint.nn.functional.pad", why=_ONCE)
def mint_pad(input, pad, mode="constant", value=None):  # noqa: A002
    """The same."""
    found = None if isinstance(pad, Tensor) else _cut(input.shape, pad)
    if found is None:
        return _mint_pad(input, pad, mode, value)
    return _mint_pad(ops.slice(input, *found), _not_negative(pad), mode, value)


# --- rules ----------------------------------------------------------------------------------------


def _unpadded(x, paddings, mode, d):
    """The gradient at x of what is padded."""
    begin = _begin_of_unpadded(x.shape, paddings) if mode == "constant" else None
    if begin is not None:
        return ops.slice(d, begin, x.shape)

    def padded(x):
        for axis, index, mask in axis_sources(x.shape, paddings, mode):
            x = ops.gather(x, index, axis)
            if mask is not None:
                x = x * mask.astype(x.dtype)
        return x

    return pull(padded)(mutable(x), d)[0]


@derivative(
    "PadV3",
    why="MindSpore's compiled gradient returns zeros from the second call on",
    replaces=True,
)
def pad_v3(prim):
    """The gradient of a padding: a slice, plus what the other modes repeat. MindSpore's compiled
    one returns zeros from its second call on (constant mode), and has no derivative (the other
    modes)."""
    mode, contiguous = attributes_of(prim, "mode", "paddings_contiguous")

    def bprop(x, paddings, value, out, dout):
        if not contiguous:
            pairs = len(paddings) // 2
            paddings = _interleave(paddings, pairs)
        dx = _unpadded(x, paddings, mode, dout)
        dvalue = 0
        if mode == "constant" and value is not None:
            dvalue = (dout.sum() - dx.sum()).reshape(value.shape).astype(value.dtype)
        return dx, 0, dvalue

    return bprop


@derivative("ConstantPadND", why=_ONCE, replaces=True)
def constant_pad(prim):
    """That of mint: MindSpore's gradient is a negative padding."""

    def bprop(x, paddings, value, out, dout):
        return _unpadded(x, paddings, "constant", dout), 0, 0

    return bprop


@batching("ConstantPadND")
def batched_constant_pad(prim, axis_size):
    """Paddings speak of the last axes."""
    prim = primitive(prim)

    def rule(x_pair, paddings_pair, value_pair):
        x, dim = x_pair
        if dim is None:
            return prim(x, paddings_pair[0], value_pair[0]), None
        return prim(front(x, dim), paddings_pair[0], value_pair[0]), 0

    return rule


@forward("ConstantPadND")
@straight
@allow(0)
def pushed_constant_pad(prim, usual):
    """Linear but for the number that it pads with."""

    def rule(x_pair, paddings_pair, value_pair):
        v, j, l = x_pair[0]  # noqa: E741
        paddings = paddings_pair[0]
        zero = 0.0
        return (
            (prim(v, paddings, value_pair[0]), prim(j, paddings, zero), prim(l, paddings, zero)),
            FORWARD,
        )

    return rule


@constexpr
def _folded(shape, kept):
    """Shape with the axes before the last `kept` ones made one."""
    return (-1, *shape[len(shape) - kept :])


@constexpr
def _unfolded(shape, out, kept):
    return (*shape[: len(shape) - kept], *out[len(out) - kept :])


@batching(
    "PadV3",
    why="MindSpore's rule fails in gradients and folds the batch into the padded axes",
    replaces=True,
)
def batched_pad_v3(prim, axis_size):
    """PadV3: paddings speak of the last axes; modes that copy the border want samples of three axes
    or more.
    """
    constant = prim.attrs["mode"] == "constant"

    def rule(x_pair, paddings_pair, *rest):
        x, dim = x_pair
        paddings, _ = paddings_pair
        if dim is None:
            return prim(x, paddings, *tensors_of(rest)), None
        x = front(x, dim)
        if constant:
            return prim(x, paddings, *tensors_of(rest)), 0
        kept = x.ndim - 2
        out = prim(reshape(x, _folded(x.shape, kept)), paddings)
        return reshape(out, _unfolded(x.shape, out.shape, kept)), 0

    return rule


@forward("PadV3")
@straight
@allow(0)
def pushed_pad_v3(prim, usual):
    """Linear but for the constant that it pads with, which has no derivative."""
    constant = prim.attrs["mode"] == "constant"

    def rule(x_pair, paddings_pair, *rest):
        v, j, l = x_pair[0]  # noqa: E741
        paddings = paddings_pair[0]
        if not constant or len(rest) == 0 or rest[0][0] is None:
            options = tensors_of(rest)
            pushed = usual((j, 0), paddings_pair, *rest)
            return triples(prim(v, paddings, *options), pushed, prim(l, paddings, *options))
        zero = ops.zeros_like(rest[0][0])
        pushed = usual((j, 0), paddings_pair, (zero, None))
        return triples(prim(v, paddings, rest[0][0]), pushed, prim(l, paddings, zero))

    return rule


@constexpr
def _from_last_axis(paddings):
    """(left, right) of each axis, as one line that begins with the last axis."""
    pairs = paddings.asnumpy() if isinstance(paddings, Tensor) else np.asarray(paddings)
    return tuple(int(pad) for pad in pairs.reshape(-1, 2)[::-1].reshape(-1))


@derivative("MirrorPad", why=REWRITTEN, replaces=True)
def mirror_pad(prim):
    """The gradient of a mirrored padding, as that of a gather."""
    (mode,) = attributes_of(prim, "mode")

    def bprop(x, paddings, out, dout):
        sources = axis_sources(x.shape, _from_last_axis(paddings), mode.lower())

        def padded(x):
            for axis, index, _ in sources:
                x = ops.gather(x, index, axis)
            return x

        return pull(padded)(mutable(x), dout)[0], ops.zeros_like(paddings)

    return bprop


@batching(
    "MirrorPad", why="MindSpore's rule fails for samples of fewer than four axes", replaces=True
)
def batched_mirror_pad(prim, axis_size):
    """The same gather of all samples; paddings are those of the axes of one."""
    prim = primitive(prim)
    (mode,) = attributes_of(prim, "mode")

    def rule(x_pair, paddings_pair):
        x, dim = x_pair
        if dim is None:
            return prim(x, paddings_pair[0]), None
        out = front(x, dim)
        for axis, index, _ in axis_sources(
            out.shape, _from_last_axis(paddings_pair[0]), mode.lower()
        ):
            out = ops.gather(out, index, axis)
        return out, 0

    return rule


forward("MirrorPad")(linear)
