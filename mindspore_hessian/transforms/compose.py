"""The compositions themselves, as functions that MindSpore compiles. Nothing here runs in Python.

Each factory takes a function `f` and returns another one. `pos` are the differentiated positions,
`ws` a ParameterTuple or None; gradients are flat tuples: the positions first, then the weights.
Only ``mindspore.ops.GradOperation`` is composed. The factories run in Python, so that every
function they return holds `f` as a constant (MindSpore cannot close over a function that is a
graph's argument).
"""

from __future__ import annotations

from mindspore import Tensor, mutable, ops

from mindspore_hessian.core.space import FLOATS

_ALL = ops.GradOperation(get_all=True, sens_param=True)
_ALL_AND_WEIGHTS = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
_FIRST = ops.GradOperation(sens_param=True)


def vjp(f, pos, ws):
    """``pull(xs, u)``: the product of u with the Jacobian, one reverse pass."""
    if ws is None:

        def pull(xs, u):
            grads = _ALL(f)(*xs, u)
            out = ()
            for p in pos:
                out = out + (grads[p],)
            return out
    else:

        def pull(xs, u):
            grads = _ALL_AND_WEIGHTS(f, ws)(*xs, u)
            out = ()
            for p in pos:
                out = out + (grads[0][p],)
            return out + tuple(grads[1])

    return pull


def jvp(f, pos, ws):
    """``push(xs, vs)``: the Jacobian times vs, by differentiating the reverse pass with respect to
    its cotangent.
    """
    pull = vjp(f, pos, ws)

    def push(xs, vs):
        out = f(*xs)
        if isinstance(out, tuple):
            us = ()
            for item in out:
                us = us + (mutable(ops.zeros_like(item)),)
        else:
            us = mutable(ops.zeros_like(out))

        def pulled(us):
            return pull(xs, us)

        return _FIRST(pulled)(us, vs)

    return push


def check_float(out, name="fn"):
    """Raise where an output has no derivative to speak of: MindSpore differentiates integers as if
    they were not.
    """
    if out.dtype not in FLOATS:
        raise TypeError(
            f"{name} returned a Tensor of dtype {out.dtype}, which has no derivative: it must "
            "return real floating-point numbers. Leave out the cast or comparison (argmax, round, "
            "astype(int32), x > 0), and take the real part of a complex result."
        )


DIRECTIONS = {"rev": vjp, "fwd": jvp}


def gradient(f, pos, ws):
    """``g(*xs)``: the gradient of a scalar function."""
    pull = vjp(f, pos, ws)

    def g(*xs):
        return pull(xs, ops.ones_like(f(*xs)))

    return g


def seeded_gradient(f, pos, ws):
    """``g(*xs, u)``: the gradient of <f, u>."""
    pull = vjp(f, pos, ws)

    def g(*xs):
        return pull(xs[:-1], xs[-1])

    return g


def hessian_product(f, pos, ws, mode):
    """``product(xs, vs)``: H v, as the derivative of the gradient; mode "revrev" is vjp(grad),
    "fwdrev" jvp(grad).
    """
    return DIRECTIONS[mode[:3]](gradient(f, pos, ws), pos, ws)


def scalar(f, name="fn"):
    """`f`, called `name` by the user, refusing an output that is not one number (MindSpore would
    sum it silently).
    """

    def checked(*xs):
        out = f(*xs)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"{name} must return one Tensor with one element; it returned something else. "
                "Where it returns (value, aux), pass has_aux=True."
            )
        if out.size != 1:
            raise ValueError(
                f"{name} must return one number (a Tensor with one element), but its output has "
                f"shape {out.shape}. Sum it, or use hessian() or jacobian() for vector-valued "
                "functions."
            )
        check_float(out, name)
        return out

    return checked


def one_tensor(f, name="fn"):
    """`f`, refusing an output that is not one Tensor."""

    def checked(*xs):
        out = f(*xs)
        if not isinstance(out, Tensor):
            raise TypeError(f"{name} must return one Tensor here; it returned something else")
        check_float(out, name)
        return out

    return checked
