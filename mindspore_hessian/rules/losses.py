"""Rules of losses.

Backward primitives are formulas of ``d``, the incoming gradient, ``x``, the input, and ``t``, the
target.
"""

from __future__ import annotations

from collections.abc import Callable

from mindspore import Tensor, ops
from mindspore.ops import constexpr

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.activations import expanded_log_softmax
from mindspore_hessian.rules.formula import by_formula
from mindspore_hessian.rules.forward import FORWARD, allow, from_end, options_of, straight
from mindspore_hessian.rules.kit import (
    aligned,
    any_batched,
    attributes_of,
    dims_of,
    entries,
    filled,
    front,
    largest,
    merged,
    paired,
    primitive,
    reshape,
    same_shape,
    sample_rank,
    sub,
    tensors_of,
    unpaired,
    values,
)
from mindspore_hessian.rules.registry import REWRITTEN, batching, derivative, forward
from mindspore_hessian.rules.taylor import by_expansion

_SUM, _MEAN, _NONE = 0, 1, 2  # MindSpore's numbers of a reduction
_REDUCTIONS = {"sum": _SUM, "mean": _MEAN, "none": _NONE}


def _spread(d, x, reduction):
    """The gradient of the unreduced loss: d / N where the loss is a mean."""
    return d / x.size if reduction == _MEAN else d


@constexpr
def _sample_size(shape, dim):
    size = 1
    for axis, length in enumerate(shape):
        size *= 1 if dim is not None and axis == dim % len(shape) else length
    return size


def loss_gradient(formula: Callable, operands: int, like: int = 0) -> Callable:
    """The backward of a loss that is entry by entry, linear in the incoming gradient; a reduction
    comes last.

    ``formula(*operands, *options, _NONE)`` is the backward of the loss without reduction; operand
    number `like` has the shape of the result.
    """

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, options, reduction = pairs[:operands], values(pairs[operands:-1]), pairs[-1][0]
            if not any_batched(dims_of(tensors)):
                return prim(*tensors_of(tensors), *options, reduction), None
            rank = largest(tuple([sample_rank(x, dim) for x, dim in tensors]))
            out = formula(*[aligned(x, dim, rank) for x, dim in tensors], *options, _NONE)
            if reduction == _MEAN:
                out = out / _sample_size(tensors[like][0].shape, tensors[like][1])
            return out, 0

        return rule

    return getter


@constexpr
def _sample_axes(rank):
    return tuple(range(1, rank))


def loss_value(operands: int) -> Callable:
    """A loss that is entry by entry: so many tensors of the shape of the first, to which they
    broadcast, or None; a reduction comes last."""

    def getter(prim, axis_size):
        prim = primitive(prim)

        def rule(*pairs):
            tensors, options, reduction = pairs[:operands], values(pairs[operands:-1]), pairs[-1][0]
            if not any_batched(dims_of(tensors)):
                return prim(*tensors_of(tensors), *options, reduction), None
            first, wide = filled(*tensors[0], axis_size), ()
            for x, dim in tensors:
                if x is None:
                    wide = wide + (None,)
                else:
                    wide = wide + (ops.broadcast_to(aligned(x, dim, first.ndim - 1), first.shape),)
            out = prim(*wide, *options, _NONE)
            if reduction == _NONE or out.ndim == 1:
                return out, 0
            axes = _sample_axes(out.ndim)
            return out.sum(axes) if reduction == _SUM else out.mean(axes), 0

        return rule

    return getter


# --- entry by entry -------------------------------------------------------------------------------

batching("BinaryCrossEntropy")(loss_value(3))
batching(
    "BCEWithLogitsLoss", why="MindSpore's rule fails where no weights are given", replaces=True
)(loss_value(4))
batching("SigmoidCrossEntropyWithLogits")(same_shape(2))


@by_formula("SmoothL1LossGrad", options=2)
def smooth_l1_grad(x, t, d, beta, reduction):
    """d * (x - t) / beta where |x - t| < beta, else d * sign(x - t)."""
    r = x - t
    return _spread(d, x, reduction) * ops.where(ops.abs(r) < beta, r / beta, ops.sign(r))


batching(
    "SmoothL1LossGrad",
    replaces=True,
    why="MindSpore's rule is silently wrong for a mean: it divides by the size of the batch too",
)(loss_gradient(smooth_l1_grad, 3))


@by_formula("BinaryCrossEntropyGrad", options=2)
def bce_grad(x, t, d, w, reduction):
    """d * w * (x - t) / max(x (1 - x), 1e-12)."""
    slope = (x - t) / ops.maximum(x * (1 - x), 1e-12)
    return _spread(d, x, reduction) * (slope if w is None else slope * w)


batching("BinaryCrossEntropyGrad")(loss_gradient(bce_grad, 4))


@by_formula("BinaryCrossEntropyWithLogitsBackward", options=3)
def bce_logits_grad(d, x, t, w, pos_w, reduction):
    """d * w * ((t p + 1 - t) sigmoid(x) - t p), p the weight of the positive class."""
    tp = t if pos_w is None else t * pos_w
    slope = (tp + 1 - t) * ops.sigmoid(x) - tp
    return _spread(d, x, reduction) * (slope if w is None else slope * w)


batching("BinaryCrossEntropyWithLogitsBackward")(loss_gradient(bce_logits_grad, 5, 1))


@by_formula("SigmoidCrossEntropyWithLogitsGrad")
def sigmoid_cross_entropy_grad(x, t, d):
    """d * (sigmoid(x) - t)."""
    return d * (ops.sigmoid(x) - t)


batching("SigmoidCrossEntropyWithLogitsGrad")(same_shape(3))


@derivative("SigmoidCrossEntropyWithLogits", why="MindSpore's by the labels is 0", replaces=True)
def sigmoid_cross_entropy(prim):
    """d (sigmoid(x) - t), and -d x by the labels t."""
    grad = _compat.backward("SigmoidCrossEntropyWithLogitsGrad")

    def bprop(x, t, out, dout):
        return grad(x, t, dout), -dout * x

    return bprop


@derivative("KLDivLoss", why="MindSpore's gives zero for the target", replaces=True)
def kl_div_loss(prim):
    """L = t (log t - x), 0 where t = 0: dx = -d t, dt = d (log t + 1 - x). MindSpore's says dt =
    0.
    """
    (reduction,) = attributes_of(prim, "reduction")

    def bprop(x, t, out, dout):
        d = dout
        if reduction == "mean":
            d = dout / x.size
        elif reduction == "batchmean":
            d = dout / x.shape[0]
        positive = t > 0
        log_t = ops.log(ops.where(positive, t, ops.ones_like(t)))
        dt = ops.where(positive, d * (log_t + 1 - x), ops.zeros_like(t))
        return ops.broadcast_to(-d * t, x.shape), dt

    return bprop


# --- of classes -----------------------------------------------------------------------------------


def _classes_of(labels, x):
    """1 in the column of each label; a negative one has none."""
    classes = ops.arange(x.shape[-1]).astype(labels.dtype)
    return ops.cast(ops.equal(ops.expand_dims(labels, -1), classes), x.dtype)


@derivative("NLLLossGrad")
def nll_grad(prim):
    """NLLLossGrad(x, d, labels, w, total, ...)[i, labels_i] = -w d / total: linear in d, zero where
    ignored.
    """

    def bprop(x, d, labels, w, total, reduction, ignore_index, out, dout):
        kept = labels != ignore_index
        index = ops.where(kept, labels, ops.zeros_like(labels))
        read = ops.gather_d(dout, 1, index.expand_dims(1)).reshape(labels.shape)
        read = -read * ops.gather(w, index, 0) * kept.astype(x.dtype)
        if reduction == _MEAN:
            read = read / total
        dd = read if reduction == 2 else read.sum().reshape(d.shape)
        return (
            ops.zeros_like(x),
            dd,
            ops.zeros_like(labels),
            ops.zeros_like(w),
            ops.zeros_like(total),
            0,
            0,
        )

    return bprop


@constexpr
def _of_samples(shape, dim):
    """(B or 1, N, 1) for what each sample has one of, (B or 1, 1, 1) for a number."""
    batch = 1 if dim is None else shape[0]
    size = 1
    for length in shape:
        size *= length
    return (batch, size // batch, 1)


@batching("NLLLoss")
def batched_nll(prim, axis_size):
    """(-w x at each label, nothing where it is to be ignored; the sum of w), the first summed, or a
    mean by the second."""
    prim = primitive(prim)

    def rule(x_pair, labels_pair, w_pair, *rest):
        reduction, ignored = values(rest)
        pairs = (x_pair, labels_pair, w_pair)
        if not any_batched(dims_of(pairs)):
            return unpaired(prim(*tensors_of(pairs), reduction, ignored))
        x, labels = filled(*x_pair, axis_size), filled(*labels_pair, axis_size)
        w, kept = filled(*w_pair, axis_size), labels != ignored
        index = ops.where(kept, labels, ops.zeros_like(labels))
        w = ops.gather_d(w, 1, index) * ops.cast(kept, w.dtype)
        out = -ops.gather_d(x, -1, ops.expand_dims(index, -1)).reshape(labels.shape) * w
        total = w.sum(1)
        if reduction == _SUM:
            out = out.sum(1)
        elif reduction == _MEAN:
            out = out.sum(1) / total
        return (out, 0), (total, 0)

    return rule


@batching("SoftmaxCrossEntropyWithLogits")
def batched_softmax_cross_entropy(prim, axis_size):
    """Rows of all samples together."""
    prim = primitive(prim)

    def rule(x_pair, t_pair):
        if not any_batched((x_pair[1], t_pair[1])):
            return unpaired(prim(x_pair[0], t_pair[0]))
        x, t = filled(*x_pair, axis_size), filled(*t_pair, axis_size)
        out, slope = prim(reshape(x, merged(x.shape, 0)), reshape(t, merged(t.shape, 0)))
        return (reshape(out, x.shape[:2]), 0), (reshape(slope, x.shape), 0)

    return rule


@batching("SparseSoftmaxCrossEntropyWithLogits")
def batched_sparse_softmax_cross_entropy(prim, axis_size):
    """The mean of -log_softmax at the labels of each sample, or its gradient."""
    prim = primitive(prim)
    (is_grad,) = attributes_of(prim, "is_grad")

    def rule(x_pair, labels_pair):
        if not any_batched((x_pair[1], labels_pair[1])):
            return prim(x_pair[0], labels_pair[0]), None
        x, labels = filled(*x_pair, axis_size), filled(*labels_pair, axis_size)
        log_p = ops.log_softmax(x, -1)
        if is_grad:
            return (ops.exp(log_p) - _classes_of(labels, x)) / x.shape[1], 0
        return -ops.gather_d(log_p, 2, ops.expand_dims(labels, -1)).mean((1, 2)), 0

    return rule


@batching(
    "NLLLossGrad",
    why="MindSpore's rule refuses a mean, and fails where d alone is batched",
    replaces=True,
)
def batched_nll_grad(prim, axis_size):
    """NLLLossGrad(x, d, labels, w, total, ...): -w d at each label, nothing where it is to be
    ignored; d and w by total for a mean."""
    prim = primitive(prim)

    def rule(*pairs):
        tensors, (reduction, ignored) = pairs[:5], values(pairs[5:])
        if not any_batched(dims_of(tensors)):
            return unpaired(prim(*tensors_of(tensors), reduction, ignored))
        dims = dims_of(tensors)
        x, d, labels, w, total = [front(x, dim) for x, dim in tensors]
        x = filled(x, 0 if dims[0] is not None else None, axis_size)
        labels = reshape(labels, _of_samples(labels.shape, dims[2]))
        kept = ops.cast(ops.equal(labels, ops.arange(x.shape[-1]).astype(labels.dtype)), x.dtype)
        kept = kept * ops.cast(labels != ignored, x.dtype)
        w = reshape(w, (-1, 1, x.shape[-1]))
        out = -kept * w * reshape(d, _of_samples(d.shape, dims[1]))
        if reduction == _MEAN:
            out = out / reshape(total, (-1, 1, 1))
        return ops.broadcast_to(out, x.shape), 0

    return rule


@derivative(
    "SoftmaxCrossEntropyWithLogits",
    why="MindSpore's second derivative is silently wrong",
    replaces=True,
)
def softmax_cross_entropy(prim):
    """L = -sum(t log_softmax(x)), and a second output G = softmax(x) - t, which MindSpore's own
    rule takes for a constant: its second derivative lacks the curvature of the loss and says
    nothing.

    dx = d (softmax sum(t) - t) + s (u - sum(s u)), dt = -d log_softmax(x) - u, for the cotangents d
    of L and u of G.
    """

    def bprop(x, t, out, dout):
        d, u = dout[0].expand_dims(-1), dout[1]
        log_s = ops.log_softmax(x, -1)
        s = ops.exp(log_s)
        dx = d * (s * t.sum(axis=-1, keepdims=True) - t) + s * (
            u - (s * u).sum(axis=-1, keepdims=True)
        )
        return dx, -d * log_s - u

    return bprop


@derivative(
    "SparseSoftmaxCrossEntropyWithLogits",
    why="MindSpore's second derivative is silently wrong",
    replaces=True,
)
def sparse_softmax_cross_entropy(prim):
    """The mean over the rows of the loss above, with class indices. This primitive gives either the
    loss or, made with ``is_grad=True``, its gradient."""
    (is_grad,) = attributes_of(prim, "is_grad")

    def softmax_minus_target(x, labels):
        return (ops.exp(ops.log_softmax(x, -1)) - _classes_of(labels, x)) / x.shape[0]

    def bprop(x, labels, out, dout):
        return dout * softmax_minus_target(x, labels), ops.zeros_like(labels)

    def bprop_of_grad(x, labels, out, dout):
        s = ops.exp(ops.log_softmax(x, -1))
        return s * (dout - (s * dout).sum(axis=-1, keepdims=True)) / x.shape[0], ops.zeros_like(
            labels
        )

    return bprop_of_grad if is_grad else bprop


def multi_margin_grad(d, x, target, w, p, margin, reduction):
    """z_ij = margin - x_it + x_ij for j != t: p z^(p-1) w_t / C to column j and minus that to
    column t.
    """
    classes = x.shape[1]
    own = _classes_of(target, x)
    z = margin - (x * own).sum(axis=1, keepdims=True) + x
    push = (
        ops.where(z > 0, ops.ones_like(z) if p == 1 else 2 * z, ops.zeros_like(z))
        * (1 - own)
        / classes
    )
    if w is not None:
        push = push * (own * w).sum(axis=1, keepdims=True)
    d = d / x.shape[0] if reduction == _MEAN else d
    d = d.reshape(-1, 1)
    return d * (push - own * push.sum(axis=1, keepdims=True))


@derivative("MultiMarginLoss", why=REWRITTEN, replaces=True)
def multi_margin_loss(prim):
    """The gradient of sum_j max(0, margin - x_t + x_j)^p w_t / C, in differentiable operations."""
    p, margin, reduction = attributes_of(prim, "p", "margin", "reduction")
    number = _REDUCTIONS[reduction]

    def bprop(x, target, w, out, dout):
        dw = None if w is None else ops.zeros_like(w)
        return multi_margin_grad(dout, x, target, w, p, margin, number), ops.zeros_like(target), dw

    return bprop


def _multilabel_slope(x, labels):
    """The gradient of sum_jk max(0, 1 - x_j + x_k) / C, over labels j, which end at the first
    negative one, and all classes k that are none: 1 / C to x_k and -1 / C to x_j where the term is
    positive."""
    there = ops.cumprod(ops.cast(labels >= 0, x.dtype), -1)
    times = (_classes_of(labels, x) * ops.expand_dims(there, -1)).sum(-2)
    near = ops.expand_dims(x, -2) + 1 > ops.expand_dims(x, -1)
    others = ops.expand_dims(times, -2) == 0
    pairs = ops.expand_dims(times, -1) * ops.cast(ops.logical_and(near, others), x.dtype)
    return (pairs.sum(-2) - pairs.sum(-1)) / x.shape[-1]


@derivative("MultilabelMarginLoss", why=REWRITTEN, replaces=True)
def multilabel_margin_loss(prim):
    """Its slope times d; which classes are labels has no derivative."""
    (reduction,) = attributes_of(prim, "reduction")

    def bprop(x, labels, out, dout):
        d = dout[0]
        if reduction == "mean" and x.ndim > 1:
            d = d / x.shape[0]
        elif reduction == "none" and x.ndim > 1:
            d = ops.expand_dims(d, -1)
        return d * _multilabel_slope(x, labels), ops.zeros_like(labels)

    return bprop


def _reduced_samples(y, reduction):
    """The losses of the rows of each sample, as one."""
    if reduction == "none":
        return y
    return y.sum(1) if reduction == "sum" else y.mean(1)


@batching("MultiMarginLoss")
def batched_multi_margin(prim, axis_size):
    """Rows of all samples together, and then their weights."""
    prim = primitive(prim)
    p, margin, reduction = attributes_of(prim, "p", "margin", "reduction")
    each = ops.MultiMarginLoss(p, margin, "none")

    def rule(x_pair, labels_pair, w_pair):
        pairs = (x_pair, labels_pair, w_pair)
        if not any_batched(dims_of(pairs)):
            return prim(*tensors_of(pairs)), None
        x, labels = filled(*x_pair, axis_size), filled(*labels_pair, axis_size)
        y = each(reshape(x, merged(x.shape, 0)), reshape(labels, merged(labels.shape, 0)), None)
        y = reshape(y, labels.shape)
        if w_pair[0] is not None:
            y = y * ops.gather_d(filled(*w_pair, axis_size), 1, labels)
        return _reduced_samples(y, reduction), 0

    return rule


@batching("MultilabelMarginLoss")
def batched_multilabel_margin(prim, axis_size):
    """Rows of all samples together."""
    prim = primitive(prim)
    (reduction,) = attributes_of(prim, "reduction")
    each = ops.MultilabelMarginLoss("none")

    def rule(x_pair, labels_pair):
        if not any_batched((x_pair[1], labels_pair[1])):
            return unpaired(prim(x_pair[0], labels_pair[0]))
        x, labels = filled(*x_pair, axis_size), filled(*labels_pair, axis_size)
        if x.ndim == 2:
            return paired(each(x, labels))
        y, is_label = each(reshape(x, merged(x.shape, 0)), reshape(labels, merged(labels.shape, 0)))
        y = _reduced_samples(reshape(y, x.shape[:2]), reduction)
        return (y, 0), (reshape(is_label, labels.shape), 0)

    return rule


# --- forward --------------------------------------------------------------------------------------


def of_entries(primitive_name: str) -> Callable[[Callable], Callable]:
    """The decorator of a loss entry by entry: ``formula(x, t, *options)`` gives the coefficients
    of what each entry adds; the last input of the primitive is a reduction."""

    def file(formula: Callable) -> Callable:
        @by_expansion(primitive_name, places=(0, 1), entrywise=True)
        def maker(prim):
            def function(x, t, *options):
                out = _reduced(formula(x, t, *options[:-1]), options[-1])
                return (prim(x[0], t[0], *options),) + out[1:]

            return function

        return formula

    return file


def _reduced(y, reduction):
    """The sum or the mean over all axes of the value."""
    if reduction == _NONE or y[0].ndim == 0:
        return y
    total = taylor.summed(y, from_end(None, y[0].ndim), False)
    if reduction == _MEAN:
        return taylor.averages(total, entries(y[0].shape))
    return total


def _weighed(y, weight):
    return y if weight is None else taylor.scaled(y, weight)


def _from_one(x):
    """1 - x."""
    return taylor.shifted(taylor.negative(x), 1)


def _softplus(x):
    return taylor.softplus(ops.softplus(x[0]), x)


def _log(x):
    return taylor.logarithm(ops.log(x[0]), x)


@constexpr
def _half_by(beta, dtype):
    return Tensor(0.5 / beta if beta else 0.0, dtype)


@of_entries("SmoothL1Loss")
def expanded_smooth_l1(x, t, beta):
    """r^2 / (2 beta) where |r| < beta, else |r|, r = x - t."""
    r = taylor.minus(x, t)
    size = taylor.scaled(r, ops.sign(r[0]))
    square = taylor.scaled(taylor.squared(r), _half_by(beta, r[0].dtype))
    return taylor.selected(size[0] < beta, square, size)


@of_entries("BinaryCrossEntropy")
def expanded_bce(x, t, weight):
    """By x (x - t) / max(x (1 - x), 1e-12), by t log(1 - x) - log x: finite where x is 0 or 1, as the
    gradient is."""
    inside = taylor.times(x, _from_one(x))
    least = ops.zeros_like(x[0]) + 1e-12
    inside = taylor.selected(inside[0] > least, inside, (least, *taylor.scaled(inside[1:], 0)))
    back = taylor.inverse(inside)
    out = taylor.integrated(ops.zeros_like(x[0]), x, taylor.times(taylor.minus(x, t), back))
    logit = ops.log(ops.maximum(1 - x[0], least)) - ops.log(ops.maximum(x[0], least))
    by_t = taylor.integrated(logit, x, taylor.negative(back))
    return _weighed(taylor.plus(out, taylor.integrated(ops.zeros_like(t[0]), t, by_t)), weight)


@of_entries("BCEWithLogitsLoss")
def expanded_bce_logits(x, t, weight, of_positive):
    """w ((1 - t) x + (1 + (p - 1) t) softplus(-x)), p the weight of the positive class."""
    factor = (ops.ones_like(x[0]),)
    if of_positive is not None:
        factor = taylor.shifted(taylor.scaled(t, sub(of_positive, 1)), 1)
    rest = taylor.times(factor, _softplus(taylor.negative(x)))
    return _weighed(taylor.plus(taylor.times(_from_one(t), x), rest), weight)


@by_expansion("SigmoidCrossEntropyWithLogits", places=(0, 1), entrywise=True)
def expanded_sigmoid_cross_entropy(prim):
    """softplus(x) - t x."""

    def function(x, t):
        out = taylor.minus(_softplus(x), taylor.times(t, x))
        return (prim(x[0], t[0]),) + out[1:]

    return function


@by_expansion("KLDivLoss", places=(0, 1), entrywise=True)
def expanded_kl_div(prim):
    """t (log t - x), 0 where t = 0."""
    (reduction,) = attributes_of(prim, "reduction")

    def function(x, t):
        positive = ops.cast(t[0] > 0, t[0].dtype)
        there = taylor.shifted(t, 1 - positive)
        out = taylor.scaled(taylor.times(t, taylor.minus(_log(there), x)), positive)
        if reduction == "batchmean":
            out = taylor.averages(_reduced(out, _SUM), x[0].shape[0])
        else:
            out = _reduced(out, _REDUCTIONS[reduction])
        return (prim(x[0], t[0]),) + out[1:]

    return function


@forward("NLLLoss")
@straight
@allow(0)
def pushed_nll(prim, usual):
    """Linear in x; the sum of the weights carries nothing."""

    def rule(x_pair, *rest):
        v, j, l = x_pair[0]  # noqa: E741
        options = options_of(rest)
        y, total = prim(v, *options)
        (pushed, dim), _ = usual((j, 0), *rest)
        return ((y, front(pushed, dim), prim(l, *options)[0]), FORWARD), (total, None)

    return rule


def _log_softmax(x):
    if len(x) == 1:
        return (ops.log_softmax(x[0], -1),)
    return expanded_log_softmax(ops.log_softmax(x[0], -1), x, -1)


@by_expansion("SoftmaxCrossEntropyWithLogits", places=(0, 1), entrywise=True)
def expanded_softmax_cross_entropy(prim):
    """-sum(t log_softmax(x)), and softmax(x) - t."""

    def function(x, t):
        values = prim(x[0], t[0])
        log_p = _log_softmax(x)
        out = taylor.negative(taylor.summed(taylor.times(t, log_p), -1, False))
        p = log_p
        if len(x) > 1:
            p = taylor.exponential(ops.exp(log_p[0]), log_p)
        return (values[0],) + out[1:], (values[1],) + taylor.minus(p, t)[1:]

    return function


@by_expansion("SparseSoftmaxCrossEntropyWithLogits")
def expanded_sparse_softmax_cross_entropy(prim):
    """The mean of -log_softmax(x) at the labels; no rule for the primitive that is its gradient."""
    (is_grad,) = attributes_of(prim, "is_grad")

    def function(x, labels):
        if is_grad:
            return None
        own = -_classes_of(labels, x[0])
        out = taylor.summed(taylor.scaled(_log_softmax(x), own), (-2, -1), False)
        return (prim(x[0], labels),) + taylor.averages(out, x[0].shape[0])[1:]

    return function


@by_expansion("MultiMarginLoss")
def expanded_multi_margin(prim):
    """sum_j max(0, margin - x_t + x_j)^p w_t / C over all other classes j."""
    p, margin, reduction = attributes_of(prim, "p", "margin", "reduction")

    def function(x, labels, w):
        own = _classes_of(labels, x[0])
        z = taylor.minus(x, taylor.summed(taylor.scaled(x, own), -1, True))
        z = taylor.shifted(z, ops.cast(margin, x[0].dtype))
        z = taylor.scaled(z, ops.cast(z[0] > 0, x[0].dtype) * (1 - own))
        if p == 2:
            z = taylor.squared(z)
        if w is not None:
            z = taylor.scaled(z, (own * w).sum(-1, keepdims=True))
        out = taylor.averages(taylor.summed(z, -1, False), x[0].shape[-1])
        return (prim(x[0], labels, w),) + _reduced(out, _REDUCTIONS[reduction])[1:]

    return function


@by_expansion("MultilabelMarginLoss")
def expanded_multilabel_margin(prim):
    """Its slope times x, but for a constant; and which classes are labels."""
    (reduction,) = attributes_of(prim, "reduction")

    def function(x, labels):
        y, is_label = prim(x[0], labels)
        out = taylor.summed(taylor.scaled(x, _multilabel_slope(x[0], labels)), -1, False)
        return (y,) + _reduced(out, _REDUCTIONS[reduction])[1:], (is_label,)

    return function
