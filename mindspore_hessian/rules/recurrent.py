"""Rules of the LSTM primitive of CPU (one layer, one direction; MindSpore builds the others from
it).
"""

from __future__ import annotations

from mindspore import mutable, ops

from mindspore_hessian import _compat
from mindspore_hessian.rules.formula import pull
from mindspore_hessian.rules.kit import attributes_of
from mindspore_hessian.rules.registry import KEEPS_ATTRIBUTES, derivative

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
    n_x, n_h = 4 * hidden * inputs, 4 * hidden * hidden

    def forward(x, h, c, w):
        w = w.reshape(-1)
        w_x = w[:n_x].reshape(4 * hidden, inputs)
        w_h = w[n_x : n_x + n_h].reshape(4 * hidden, hidden)
        gates_x = ops.matmul(x, w_x.T)
        if has_bias:
            gates_x = gates_x + w[n_x + n_h :]
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
