"""The Jacobian, in the dtype of the input: a reverse pass for each output entry, or one forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from mindspore import ops

from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.program import (
    Builder,
    Function,
    Point,
    Program,
    check_chunk,
    check_transform,
)
from mindspore_hessian.core.space import FIRST, Space, several_weights
from mindspore_hessian.core.transform import Evaluation, derived, makes
from mindspore_hessian.transforms import blocks
from mindspore_hessian.transforms import forward as passes
from mindspore_hessian.transforms.chunks import batched_or_loop, jacobian_in_chunks
from mindspore_hessian.typing import JacobianMode, Positions, Weights


def _kernel(matrix: Callable) -> Builder:
    def build(function: Function, space: Space) -> Callable:
        return matrix(function.value, space.positions, space.parameters)

    return build


_MATRICES = {
    "auto": blocks.jacobian_reverse,
    "rev": blocks.jacobian_reverse,
    "fwd": blocks.jacobian_forward,
}
_PROGRAMS = {
    mode: Program("jacobian", _kernel(matrix), (mode,)) for mode, matrix in _MATRICES.items()
}

_CAST, _RESHAPE = ops.Cast(), ops.Reshape()


def _by_forward(function: Function, space: Space) -> Callable:
    """One forward pass along the unit directions of all inputs; the result as of
    `blocks.jacobian_reverse`.
    """
    pushed, make = (
        passes.push(function.value, space.positions, None),
        passes.seeds(space, None, None),
    )
    plan = tuple(zip(space.sizes, space.shapes, space.dtypes, strict=True))

    def cut(j):
        shape, lines = j.shape[1:], ops.transpose(_RESHAPE(j, (j.shape[0], -1)), (1, 0))
        out, start = (), 0
        for size, own, dtype in plan:
            out = out + (_CAST(_RESHAPE(blocks.cut(lines, 1, start, size), shape + own), dtype),)
            start = start + size
        return out

    def matrix(*xs):
        out = pushed(xs, make())
        if isinstance(out[0], tuple):
            several = ()
            for item in out:
                several = several + (cut(item[1]),)
            return several
        return cut(out[1])

    return matrix


_FORWARD = Program("jacobian", _by_forward, ("pushed",))


@overload
def jacobian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: JacobianMode = ...,
    chunk_size: int | None = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def jacobian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: JacobianMode = ...,
    chunk_size: int | None = ...,
) -> Callable[..., Any]: ...


@makes
def jacobian(
    fn: Callable[..., Any],
    grad_position: Positions = FIRST,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: JacobianMode = "auto",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    r"""Jacobian of a function, :math:`J_{ij} = \partial f_i / \partial x_j`.

    Unlike ``mindspore.jacrev`` and ``jacfwd`` it takes every float dtype, copies no input, compiles
    once, and takes weights. Costs one gradient for each output entry, all of them in one batch.

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        grad_position, has_aux, weights: as `hessian`.
        mode: ``"rev"`` (a reverse pass for each output entry); ``"fwd"``, one forward pass that
            carries the derivatives by every input entry, better where inputs are fewer than outputs
            (where a primitive has no forward rule, with a warning, and over weights: a product of
            three gradients for each entry); or ``"auto"``, which is ``"rev"``. Inside your own
            graph it is ``"rev"``.
        chunk_size: with ``"auto"`` or ``"rev"``, so many output entries at a time.

    Returns:
        ``jac_fn(*args)``. One position and one output: a Tensor of shape ``out.shape + x.shape``; a
            tuple of positions or weights: a tuple of these; several outputs: a tuple over the
            outputs. With `has_aux`: ``(J, aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 3.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import jacobian
        >>> print(jacobian(lambda x: x ** 2)(ms.Tensor([1.0, 2.0])))
        [[2. 0.]
         [0. 4.]]
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_choice("mode", mode, _PROGRAMS)
    check_chunk(chunk_size)
    if chunk_size is not None and mode == "fwd":
        raise ValueError("chunk_size works with mode='auto' or 'rev' only, but mode is 'fwd'")

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, weights, has_aux)

        def batched() -> tuple[Any, Any]:
            return (
                _PROGRAMS[mode].run(point)
                if chunk_size is None
                else jacobian_in_chunks(point, chunk_size)
            )

        def by_products() -> tuple[Any, Any]:
            return batched_or_loop(
                "jacobian", batched, lambda: jacobian_in_chunks(point, 1, batched=False)
            )

        def run() -> tuple[Any, Any]:
            if mode != "fwd" or point.space.weights:
                return by_products()
            return passes.first_choice(
                "jacobian", point, "auto", ("jacobian",), lambda: _FORWARD.run(point), by_products
            )

        return Evaluation(
            point, _PROGRAMS["rev"], pack=blocks.packed(point.space.form == "one", 1), run=run
        )

    return derived("jac_fn", fn, evaluate)
