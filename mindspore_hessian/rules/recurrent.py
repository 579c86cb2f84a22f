"""Rules of the LSTM primitive of CPU (one layer, one direction; MindSpore builds the others from
it).
"""

from __future__ import annotations

from mindspore import mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian.rules import taylor
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.kit import attributes_of
from mindspore_hessian.rules.registry import KEEPS_ATTRIBUTES, derivative
from mindspore_hessian.rules.taylor import by_expansion

_ATTRIBUTES = (
    "input_size",
    "hidden_size",
    "num_layers",
    "has_bias",
    "bidirectional",
    "dropout",
    "proj_size",
)


@derivative("LSTM", why=KEEPS_ATTRIBUTES, replaces=True)
def lstm(prim):
    """MindSpore's own rule, with an LSTMGrad whose attributes Python can read."""
    grad = _compat.LSTMGrad(*attributes_of(prim, *_ATTRIBUTES))

    def bprop(x, h, c, w, out, dout):
        return grad(x, h, c, w, out[0], out[1], out[2], dout[0], dout[1], dout[2], out[3])

    return bprop


def _weights(w, inputs, hidden, has_bias):
    """(W_x, W_h, b), b the number 0 where there is none."""
    w, n_x, n_h = w.reshape(-1), 4 * hidden * inputs, 4 * hidden * hidden
    w_h = w[n_x : n_x + n_h].reshape(4 * hidden, hidden)
    return w[:n_x].reshape(4 * hidden, inputs), w_h, w[n_x + n_h :] if has_bias else 0


def _tanh(x):
    """To the last digits, as the kernel of the LSTM has it, and that of Tanh on CPU has not."""
    return 2 * ops.sigmoid(2 * x) - 1


@derivative("LSTMGrad")
def lstm_grad(prim):
    """LSTMGrad is the backward of the recurrence written out: i, f, g, o = x W_x^T + h W_h^T + b,
    c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c'). It is differentiated as such, so it costs what
    the loop costs."""
    inputs, hidden, layers, has_bias, bidirectional, dropout, projection = attributes_of(
        prim, *_ATTRIBUTES
    )
    if layers != 1 or bidirectional or projection or dropout:
        raise NotImplementedError(
            "The second derivative of the LSTM primitive is known for one layer, one direction, "
            "no projection, no dropout. nn.LSTM on CPU uses no other."
        )

    def forward(x, h, c, w):
        w_x, w_h, bias = _weights(w, inputs, hidden, has_bias)
        gates_x = ops.matmul(x, w_x.T) + bias
        h_t, c_t = h[0], c[0]
        ys = []
        for t in range(x.shape[0]):
            gates = gates_x[t] + ops.matmul(h_t, w_h.T)
            i, f, g, o = ops.chunk(gates, 4, 1)
            c_t = ops.sigmoid(f) * c_t + ops.sigmoid(i) * _tanh(g)
            h_t = ops.sigmoid(o) * _tanh(c_t)
            ys.append(h_t)
        return ops.stack(ys), h_t.expand_dims(0), c_t.expand_dims(0)

    def backward(x, h, c, w, dy, dh, dc):
        return pull(forward)(mutable(x), mutable(h), mutable(c), mutable(w), (dy, dh, dc))

    def bprop(x, h, c, w, y, h_n, c_n, dy, dh, dc, reserve, out, dout):
        gx, gh, gc, gw, gdy, gdh, gdc = pull(backward)(
            mutable(x),
            mutable(h),
            mutable(c),
            mutable(w),
            mutable(dy),
            mutable(dh),
            mutable(dc),
            dout,
        )
        zero = ops.zeros_like
        return gx, gh, gc, gw, zero(y), zero(h_n), zero(c_n), gdy, gdh, gdc, zero(reserve)

    return bprop


# --- forward --------------------------------------------------------------------------------------


def _product(a, b):
    """Each coefficient times a constant matrix."""
    out = ()
    for one in a:
        out = out + (ops.matmul(one, b),)
    return out


def _pieces(a, count, axis):
    """As many series along an axis counted from the end."""
    out, cut = (), ()
    for one in a:
        cut = cut + (ops.Split(axis, count)(one),)
    for k in range(count):
        piece = ()
        for one in cut:
            piece = piece + (one[k],)
        out = out + (piece,)
    return out


def _in_one(rows):
    """Series of (1, N, H) as one of (T, N, H)."""
    out = ()
    for n in range(len(rows[0])):
        parts = ()
        for row in rows:
            parts = parts + (row[n],)
        out = out + (ops.Concat(-3)(parts),)
    return out


def _squashed(x):
    y = ops.sigmoid(x[0])
    return taylor.logistic(y, x) if len(x) > 1 else (y,)


def _bent(x):
    y = _tanh(x[0])
    return taylor.hyperbolic_tangent(y, x) if len(x) > 1 else (y,)


@by_expansion("LSTM", places=(0, 1, 2))
def expanded_lstm(prim):
    """The recurrence of `lstm_grad`, step by step."""
    inputs, hidden, layers, has_bias, *others = attributes_of(prim, *_ATTRIBUTES)
    if layers != 1 or any(others):
        return lambda *given: None

    def function(x, h, c, w):
        y, h_n, c_n, reserve, state = prim(x[0], h[0], c[0], w)
        w_x, w_h, bias = _weights(w, inputs, hidden, has_bias)
        steps = _pieces(_product(x, w_x.T), x[0].shape[0], -3)
        ys = ()
        for step in steps:
            gates = taylor.shifted(taylor.plus(step, _product(h, w_h.T)), bias)
            i, f, g, o = _pieces(gates, 4, -1)
            c = taylor.plus(taylor.times(_squashed(f), c), taylor.times(_squashed(i), _bent(g)))
            h = taylor.times(_squashed(o), _bent(c))
            ys = ys + (h,)
        out = _in_one(ys)
        return (y,) + out[1:], (h_n,) + h[1:], (c_n,) + c[1:], (reserve,), (state,)

    return function
