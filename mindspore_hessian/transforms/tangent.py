"""The Jacobian times a vector in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore import ops

from mindspore_hessian.core.program import Builder, Function, Point, Program
from mindspore_hessian.core.space import Space
from mindspore_hessian.core.transform import Evaluation, evaluates
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms import forward as passes
from mindspore_hessian.typing import Positions, Structure, Weights


def _by_forward(otherwise: bool) -> Builder:
    """(value, J vs) of the leaves and the vectors; with `otherwise` by reverse derivatives if a
    rule is missing.
    """

    def build(function: Function, space: Space) -> Callable:
        n = function.n
        pushed = passes.push(
            function.value, space.positions, _instead(function, space) if otherwise else None
        )

        def run(*tensors):
            js = ()
            for vector in tensors[n:]:
                js = js + (ops.expand_dims(vector, 0),)
            out = pushed(tensors[:n], js)
            if isinstance(out[0], tuple):
                values, tangents = (), ()
                for item in out:
                    values, tangents = values + (item[0],), tangents + (item[1][0],)
                return values, tangents
            return out[0], out[1][0]

        return run

    return build


def _instead(function: Function, space: Space) -> Callable:
    times, n = _by_reverse(function, space), function.n

    def triple(number, *given):
        vectors = ()
        for direction in given[n:]:
            vectors = vectors + (direction[0],)
        value, tangent = times(*(given[:n] + vectors))
        if isinstance(value, tuple):
            value, tangent = value[number], tangent[number]
        return value, ops.expand_dims(tangent, 0), ops.zeros_like(value)

    return triple


def _by_reverse(function: Function, space: Space) -> Callable:
    """The same by the derivative of a reverse pass by its cotangent; over weights too."""
    checked, n = blocks.tensors(function.value), function.n
    times = compose.jvp(function.value, space.positions, space.parameters)

    def run(*tensors):
        return checked(*tensors[:n]), times(tensors[:n], tensors[n:])

    return run


def _cotangent(out):
    """A cotangent without structure."""
    return ops.cos(ops.cast(blocks.numbers_like(out), out.dtype))


def _inner(one, two):
    """<one, two> of Tensors or tuples of them."""
    if not isinstance(one, tuple):
        return ops.mul(one, two).sum()
    total = 0.0
    for number in range(len(one)):
        total = total + ops.mul(one[number], two[number]).sum()
    return total


def _cotangents(out):
    if not isinstance(out, tuple):
        return _cotangent(out)
    us = ()
    for item in out:
        us = us + (_cotangent(item),)
    return us


def _forward_number(function: Function, space: Space) -> Callable:
    """<u, J vs>."""
    f, n = function.value, function.n
    times = compose.jvp(f, space.positions, space.parameters)

    def run(*tensors):
        return _inner(times(tensors[:n], tensors[n:]), _cotangents(f(*tensors[:n])))

    return run


def _reverse_number(function: Function, space: Space) -> Callable:
    """<J^T u, vs>."""
    f, n = function.value, function.n
    pull = compose.vjp(f, space.positions, space.parameters)

    def run(*tensors):
        return _inner(pull(tensors[:n], _cotangents(f(*tensors[:n]))), tensors[n:])

    return run


_FORWARD = Program("jvp", _by_forward(False), ("forward",))
# MindSpore drops terms of a derivative by a cotangent without a word: two ways to one number must
# agree
_REVERSE = Program("jvp", _by_reverse, ("reverse",), _reverse_number, _forward_number)


def _inside(point: Point, mode: str) -> Builder:
    def build(function: Function, space: Space) -> Callable:
        return (_by_forward(True) if passes.goes_forward("jvp", point, mode) else _by_reverse)(
            function, space
        )

    return build


@evaluates("inputs", "vectors")
def jvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = None,
    *,
    weights: Weights = None,
) -> Any:
    r"""Value and Jacobian-vector product, :math:`(f(x), J v)`, with
    :math:`(J v)_i = \sum_j v_j\, \partial f_i / \partial x_j`.

    One true forward pass, which costs about two evaluations of `fn`, where every primitive of it
    has a forward rule; else, with a warning, and over weights, the derivative of a reverse pass
    (about three gradients).

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        inputs: a Tensor, or the tuple of the arguments of `fn`.
        vectors: like what is differentiated: a Tensor, or a tuple of Tensors.
        grad_position: which inputs are differentiated: None (all), an int, or a tuple of ints.
        weights: a Parameter or several of them that are differentiated instead of the inputs, or
            with `grad_position` beside them; then `vectors` is a pair.

    Returns:
        ``(value, product)``, each like the output of `fn`.

    Raises:
        TypeError, ValueError, NotCompilableError: as `hvp`.
        MissingRuleError: a primitive has no derivative, or reverse derivatives lose a term of this
            one.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 3.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import jvp
        >>> value, product = jvp(lambda x: x ** 2, ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 10.0]))
        >>> print(value, product)
        [1. 4.] [ 2. 40.]
    """
    point = Point.of_inputs(fn, inputs, grad_position, weights, False)
    flat, mode = point.space.parts(vectors, "vectors"), "reverse" if point.space.weights else "auto"

    def run() -> tuple[Any, Any]:
        return passes.first_choice(
            "jvp",
            point,
            mode,
            ("jvp",),
            lambda: _FORWARD.run(point, flat),
            lambda: _REVERSE.run(point, flat),
        )

    return Evaluation(point, Program("jvp", _inside(point, mode), (mode,)), flat, run=run)
