"""Derivative rules: losses and activations, each as the formula of the backward primitive.

``d`` is the incoming gradient, ``x`` the input, ``t`` the target. Losses share MindSpore's numbers for `reduction`:
0 sum, 1 mean, 2 none.
"""
from __future__ import annotations

from mindspore import ops

from mindspore_hessian.rules._define import Derivative
from mindspore_hessian.rules._formula import by_formula
from mindspore_hessian.rules.derivatives_linalg import attributes_of

_MEAN = 1


def _spread(d, x, reduction):
    """The gradient of the unreduced loss: d / N where the loss is a mean."""
    return d / x.size if reduction == _MEAN else d


# --- losses ------------------------------------------------------------------------------------------------------

def smooth_l1_grad(x, t, d, beta, reduction):
    """d * (x - t) / beta where |x - t| < beta, else d * sign(x - t)."""
    r = x - t
    return _spread(d, x, reduction) * ops.where(ops.abs(r) < beta, r / beta, ops.sign(r))


def bce_grad(x, t, d, w, reduction):
    """d * w * (x - t) / max(x (1 - x), 1e-12)."""
    slope = (x - t) / ops.maximum(x * (1 - x), 1e-12)
    return _spread(d, x, reduction) * (slope if w is None else slope * w)


def bce_logits_grad(d, x, t, w, pos_w, reduction):
    """d * w * ((t p + 1 - t) sigmoid(x) - t p), p the weight of the positive class."""
    tp = t if pos_w is None else t * pos_w
    slope = (tp + 1 - t) * ops.sigmoid(x) - tp
    return _spread(d, x, reduction) * (slope if w is None else slope * w)


def sigmoid_cross_entropy_grad(x, t, d):
    """d * (sigmoid(x) - t)."""
    return d * (ops.sigmoid(x) - t)


def multi_margin_grad(d, x, target, w, p, margin, reduction):
    """z_ij = margin - x_it + x_ij for j != t: p z^(p-1) w_t / C to column j and minus that to column t."""
    classes = x.shape[1]
    own = ops.one_hot(target, classes, ops.cast(1, x.dtype), ops.cast(0, x.dtype))
    z = margin - (x * own).sum(axis=1, keepdims=True) + x
    push = ops.where(z > 0, ops.ones_like(z) if p == 1 else 2 * z, ops.zeros_like(z)) * (1 - own) / classes
    if w is not None:
        push = push * (own * w).sum(axis=1, keepdims=True)
    d = d / x.shape[0] if reduction == _MEAN else d
    d = d.reshape(-1, 1)
    return d * (push - own * push.sum(axis=1, keepdims=True))


def nll_grad(prim):
    """NLLLossGrad(x, d, labels, w, total, ...)[i, labels_i] = -w d / total: linear in d, zero where ignored."""
    def bprop(x, d, labels, w, total, reduction, ignore_index, out, dout):
        kept = labels != ignore_index
        index = ops.where(kept, labels, ops.zeros_like(labels))
        read = ops.gather_d(dout, 1, index.expand_dims(1)).reshape(labels.shape)
        read = -read * ops.gather(w, index, 0) * kept.astype(x.dtype)
        if reduction == _MEAN:
            read = read / total
        dd = read if reduction == 2 else read.sum().reshape(d.shape)
        return ops.zeros_like(x), dd, ops.zeros_like(labels), ops.zeros_like(w), ops.zeros_like(total), 0, 0
    return bprop


def kl_div_loss(prim):
    """L = t (log t - x), 0 where t = 0: dx = -d t, dt = d (log t + 1 - x). MindSpore's says dt = 0."""
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


def softmax_cross_entropy(prim):
    """L = -sum(t log_softmax(x)), and a second output G = softmax(x) - t, which MindSpore's own rule takes for a
    constant: its second derivative lacks the curvature of the loss and says nothing.

    dx = d (softmax sum(t) - t) + s (u - sum(s u)), dt = -d log_softmax(x) - u, for the cotangents d of L and u of G.
    """
    def bprop(x, t, out, dout):
        d, u = dout[0].expand_dims(-1), dout[1]
        log_s = ops.log_softmax(x, -1)
        s = ops.exp(log_s)
        dx = d * (s * t.sum(axis=-1, keepdims=True) - t) + s * (u - (s * u).sum(axis=-1, keepdims=True))
        return dx, -d * log_s - u
    return bprop


def sparse_softmax_cross_entropy(prim):
    """The mean over the rows of the loss above, with class indices. This primitive gives either the loss or, made with
    ``is_grad=True``, its gradient."""
    (is_grad,) = attributes_of(prim, "is_grad")

    def softmax_minus_target(x, labels):
        one_hot = ops.one_hot(labels, x.shape[1], ops.cast(1, x.dtype), ops.cast(0, x.dtype))
        return (ops.exp(ops.log_softmax(x, -1)) - one_hot) / x.shape[0]

    def bprop(x, labels, out, dout):
        return dout * softmax_minus_target(x, labels), ops.zeros_like(labels)

    def bprop_of_grad(x, labels, out, dout):
        s = ops.exp(ops.log_softmax(x, -1))
        return s * (dout - (s * dout).sum(axis=-1, keepdims=True)) / x.shape[0], ops.zeros_like(labels)
    return bprop_of_grad if is_grad else bprop


def selu(prim):
    """scale d where y > 0, else d (y + scale alpha). MindSpore's uses the derivative of ELU with alpha = 1."""
    def bprop(x, out, dout):
        return (_selu_grad(dout, out),)
    return bprop


def _selu_grad(d, y):
    return ops.where(y > 0, 1.0507009873554805 * d, d * (y + 1.7580993408473766))


_MISSING = "MindSpore has no derivative of it"

RULES: tuple[Derivative, ...] = (
    Derivative("SmoothL1LossGrad", by_formula(smooth_l1_grad, 3, 2), _MISSING),
    Derivative("BinaryCrossEntropyGrad", by_formula(bce_grad, 3, 2), _MISSING),
    Derivative("BinaryCrossEntropyWithLogitsBackward", by_formula(bce_logits_grad, 3, 3), _MISSING),
    Derivative("SigmoidCrossEntropyWithLogitsGrad", by_formula(sigmoid_cross_entropy_grad, 3), _MISSING),
    Derivative("NLLLossGrad", nll_grad, _MISSING),
    Derivative("SoftmaxCrossEntropyWithLogits", softmax_cross_entropy,
               "MindSpore's second derivative is silently wrong", replaces=True),
    Derivative("SparseSoftmaxCrossEntropyWithLogits", sparse_softmax_cross_entropy,
               "MindSpore's second derivative is silently wrong", replaces=True),
    Derivative("KLDivLoss", kl_div_loss, "MindSpore's gives zero for the target", replaces=True),
    Derivative("SeLU", selu, "MindSpore's takes the derivative of another function", replaces=True),
)
