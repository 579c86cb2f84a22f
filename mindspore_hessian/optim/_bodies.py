"""The graphs of training steps: what MindSpore compiles of the network, the loss and the
optimizer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import RecompileWarning, debris_removed, translate, warn
from mindspore_hessian.core import inplace
from mindspore_hessian.core.captures import Captures

_MOST_GRAPHS, _CHANGES = 32, 3


class Graphs(OrderedDict[tuple, Any]):
    """The compiled graphs of a training step, by what they depend on: among it, what network and loss
    captured.
    """

    def __init__(self, network: Any, loss_fn: Any):
        super().__init__()
        self.roots = (network,) if loss_fn is None else (network, loss_fn)
        self.changes = 0

    def token(self) -> tuple:
        """What network and loss captured, as it is now."""
        return Captures(*self.roots).token

    def graph(self, key: Any, token: tuple, make: Callable[[], Any]) -> Any:
        """The graph of this key, made where it is not there."""
        found = self.get((key, token))
        if found is None or found.stale():
            self._watch(key)
            found = self[key, token] = make()
            while len(self) > _MOST_GRAPHS:
                self.popitem(last=False)
        return found

    def _watch(self, key: Any) -> None:
        self.changes += any(known == key for known, _ in self)
        if self.changes == _CHANGES:
            warn(
                f"a value that the network or the loss captured has changed {self.changes} times, and "
                "the training step was compiled anew each time. Make what varies a Parameter "
                "(requires_grad=False, and set_data), which is read at every step.",
                RecompileWarning,
            )


def compiled(function: Callable, tensors: tuple) -> Any:
    """A graph of the function, for the shapes of these Tensors.

    Raises:
        NotCompilableError, MissingRuleError: as `grad_and_hvp`.
    """
    try:
        with debris_removed(), inplace.followed():
            graph = _compat.Graph(function, tensors, "O0")
        inplace.refuse_left(graph)
    except Exception as err:
        error = translate(err)
        if error is err:
            raise
        raise error from err
    return graph


def _losses(network: Any, loss_fn: Any, scale: float) -> list[Callable]:
    """The loss times the scale, as a function of 1, 2, 3 and 4 inputs: a gradient takes no function
    of ``*inputs``.
    """

    def one(a):
        return network(a) * scale

    def two(a, b):
        if loss_fn is None:
            return network(a, b) * scale
        return loss_fn(network(a), b) * scale

    def three(a, b, c):
        if loss_fn is None:
            return network(a, b, c) * scale
        return loss_fn(network(a, b), c) * scale

    def four(a, b, c, d):
        if loss_fn is None:
            return network(a, b, c, d) * scale
        return loss_fn(network(a, b, c), d) * scale

    return [one, two, three, four]


def _with_output(network, loss_fn, scale):
    """The loss times the scale, and the network's output, as a function of 2, 3 and 4 inputs."""

    def two(a, b):
        out = network(a)
        return loss_fn(out, b) * scale, out

    def three(a, b, c):
        out = network(a, b)
        return loss_fn(out, c) * scale, out

    def four(a, b, c, d):
        out = network(a, b, c)
        return loss_fn(out, d) * scale, out

    return [None, two, three, four]


def value_and_gradients(network, loss_fn, optimizer, count, has_output=False):
    """The loss of `count` inputs and its gradients, as MindSpore compiles them; `has_output`: the
    loss goes with the network's output."""
    scale = getattr(optimizer, "scale", 1.0)
    loss = (_with_output if has_output else _losses)(network, loss_fn, scale)[count - 1]
    return ms.value_and_grad(loss, None, optimizer.parameters, has_output)


def one_number(value):
    """The loss, checked. MindSpore compiles this."""
    if value.size != 1:
        raise ValueError(f"loss_fn must return one number, but its value has shape {value.shape}")
    return value


def telling(optimizer):
    """``told(value, done)``: the loss without its scale, after what is done."""
    scale = getattr(optimizer, "scale", 1.0)

    def told(value, done):
        return ops.depend(one_number(value) / scale, done)

    return told


def clipping(optimizer, clip_norm):
    """``clipped(gradients)``."""
    scale = getattr(optimizer, "scale", 1.0)

    def clipped(gradients):
        if clip_norm is None:
            return gradients
        return ops.clip_by_global_norm(gradients, clip_norm * scale)

    return clipped


def pieces_of(parameters: Any) -> tuple:
    """Where each Parameter is in a flat line, its shape and dtype."""
    pieces, start = [], 0
    for parameter in parameters:
        pieces.append((start, start + parameter.size, tuple(parameter.shape), parameter.dtype))
        start += parameter.size
    return tuple(pieces)


def cut(line, pieces, number):
    """The pieces of a line, divided by a number. MindSpore compiles this."""
    out = ()
    for piece in pieces:
        part = line[piece[0] : piece[1]].reshape(piece[2])
        if number != 1:
            part = part / number
        out = out + (part.astype(piece[3]),)
    return out


# --- what an optimizer takes: the loss, gradients, and what its curvature is made of ---------------


def _plain(network, loss_fn, optimizer, count):
    value_and_grad = value_and_gradients(network, loss_fn, optimizer, count)

    def measure(*tensors):
        value, gradients = value_and_grad(*tensors)
        return value, gradients, ()

    return measure


def _hutchinson(network, loss_fn, optimizer, count):
    """z * Hz: the derivative of ``value_and_grad`` itself, so that the loss is evaluated once
    (running means of batch norm move once)."""
    value_and_grad = value_and_gradients(network, loss_fn, optimizer, count)
    weights, product = optimizer.parameters, ops.GradOperation(get_by_list=True, sens_param=True)
    pieces = pieces_of(weights)

    def measure(*tensors):
        inputs, signs = tensors[:count], cut(tensors[count], pieces, 1)
        value, gradients = value_and_grad(*inputs)
        images = product(value_and_grad, weights)(*inputs, (ops.zeros_like(value), signs))
        curvature = ()
        for number in range(len(pieces)):
            curvature = curvature + (signs[number] * images[number],)
        return value, gradients, curvature

    return measure


def _gnb(network, loss_fn, optimizer, count):
    """The gradient for labels that are drawn from the model's softmax."""
    value_and_grad = value_and_gradients(network, loss_fn, optimizer, count)

    def of_drawn(out, chance):
        if out.ndim != chance.ndim + 1 or out.shape[:1] + out.shape[2:] != chance.shape:
            raise ValueError(
                "estimator='gnb' needs logits with the classes along axis 1, one label each, but "
                f"network returns shape {out.shape} for labels of shape {chance.shape}"
            )
        below = ops.cumsum(ops.softmax(out.astype(ms.float32), 1), 1) < chance.expand_dims(1)
        last = out.shape[1] - 1
        drawn = ops.clamp(below.astype(ms.int32).sum(1), 0, last).astype(ms.int32)
        return loss_fn(out, ops.stop_gradient(drawn))

    slope = ms.grad(
        _losses(network, of_drawn, getattr(optimizer, "scale", 1.0))[count - 1],
        None,
        optimizer.parameters,
    )

    def measure(*tensors):
        inputs, chance = tensors[:count], tensors[count]
        value, gradients = value_and_grad(*inputs)
        return value, gradients, slope(*(inputs[:-1] + (chance,)))

    return measure


def _as_they_are(estimates, labels):
    return estimates


def _squares(estimates, labels):
    """B g^2, for B labels."""
    out = ()
    for g in estimates:
        out = out + ((g * g * labels).astype(g.dtype),)
    return out


BODIES = {"plain": _plain, "hutchinson": _hutchinson, "gnb": _gnb}
CURVATURES = {"plain": _as_they_are, "hutchinson": _as_they_are, "gnb": _squares}


# --- the graphs of a step -------------------------------------------------------------------------


def whole(kind: str, network, loss_fn, optimizer, count, clip_norm):
    """``step(*tensors)``: the loss, and the optimizer's step."""
    measure, told = BODIES[kind](network, loss_fn, optimizer, count), telling(optimizer)
    curvature, update = CURVATURES[kind], _update(optimizer, clip_norm)

    def step(*tensors):
        value, gradients, estimates = measure(*tensors)
        return told(value, update(gradients, curvature(estimates, tensors[-1].size)))

    return step


def part(kind: str, network, loss_fn, optimizer, count, sums):
    """``step(*tensors)``: the loss, and all that the optimizer takes into the sums."""
    measure, told = BODIES[kind](network, loss_fn, optimizer, count), telling(optimizer)

    def step(*tensors):
        value, gradients, estimates = measure(*tensors)
        return told(value, sums.added(one_number(value), gradients, estimates, tensors[-1].size))

    return step


def finish(kind: str, optimizer, sums, clip_norm):
    """``step(value, *totals)``: the optimizer's step with what is in the sums."""
    update, curvature = _update(optimizer, clip_norm), CURVATURES[kind]
    curved = kind != "plain"

    def step(*tensors):
        _, gradients, line, rows = sums.means(tensors[1:])
        estimates = cut(line, sums.pieces, 1) if curved else ()
        done = update(gradients, curvature(estimates, rows))
        return ops.depend(tensors[0], sums.cleared(done))

    return step


def _update(optimizer, clip_norm):
    clipped = clipping(optimizer, clip_norm)

    def update(gradients, curvature):
        if len(curvature) == 0:
            return (optimizer(clipped(gradients)),)
        return (optimizer(clipped(gradients), curvature),)

    return update
