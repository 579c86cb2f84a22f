"""The Jacobian, in the dtype of the input, a reverse pass for each output in one batch."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.program import Builder, Function, Point, Program, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Space, several_weights
from mindspore_hessian.core.transform import Evaluation, derived, makes
from mindspore_hessian.transforms import blocks
from mindspore_hessian.transforms.chunks import batched_or_loop, jacobian_in_chunks
from mindspore_hessian.typing import JacobianMode, Positions, Weights


def _kernel(matrix: Callable) -> Builder:
    def build(function: Function, space: Space) -> Callable:
        return matrix(function.value, space.positions, space.parameters)
    return build


_MATRICES = {"auto": blocks.jacobian_reverse, "rev": blocks.jacobian_reverse, "fwd": blocks.jacobian_forward}
_PROGRAMS = {mode: Program("jacobian", _kernel(matrix), (mode,)) for mode, matrix in _MATRICES.items()}


@makes
def jacobian(fn: Callable[..., Any], grad_position: Positions = FIRST, has_aux: bool = False, *,
             weights: Weights = None, mode: JacobianMode = "auto", chunk_size: int | None = None) -> Callable[..., Any]:
    r"""Jacobian of a function, :math:`J_{ij} = \partial f_i / \partial x_j`.

    Unlike ``mindspore.jacrev`` and ``jacfwd`` it takes every float dtype, copies no input, compiles once, and takes
    weights. Costs one gradient for each output entry, all of them in one batch.

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        grad_position, has_aux, weights: as `hessian`.
        mode: ``"rev"`` (a reverse pass for each output entry), ``"fwd"`` (a forward product for each input entry,
            three gradients each: better only where inputs are far fewer), or ``"auto"``, which is ``"rev"``.
        chunk_size: with ``"auto"`` or ``"rev"``, so many output entries at a time.

    Returns:
        ``jac_fn(*args)``. One position and one output: a Tensor of shape ``out.shape + x.shape``; a tuple of
        positions or weights: a tuple of these; several outputs: a tuple over the outputs. With `has_aux`:
        ``(J, aux)``.

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
            return _PROGRAMS[mode].run(point) if chunk_size is None else jacobian_in_chunks(point, chunk_size)

        def run() -> tuple[Any, Any]:
            return batched_or_loop("jacobian", batched, lambda: jacobian_in_chunks(point, 1, batched=False))
        return Evaluation(point, _PROGRAMS["rev"], pack=blocks.packed(point.space.form == "one", 1), run=run)
    return derived("jac_fn", fn, evaluate)
