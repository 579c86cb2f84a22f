"""The Jacobian, in the dtype of the input, a reverse pass for each output in one batch."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.in_graph import WEIGHTS_INSIDE, Made, Recipe, outside, readable_in_graph
from mindspore_hessian.core.program import Problem, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Variables, several_weights
from mindspore_hessian.transforms import blocks
from mindspore_hessian.transforms.chunks import batched_or_loop, is_several, jacobian_in_chunks

MATRICES = {"auto": blocks.jacobian_reverse, "rev": blocks.jacobian_reverse, "fwd": blocks.jacobian_forward}


def _lines_in_graph(problem, given):
    """By reverse derivatives in every mode: the same numbers."""
    one = problem.vars.form == "one"

    def kernel(f, n, v):
        return blocks.jacobian_reverse(f, v.positions, v.parameters)

    def packed(lines):
        if isinstance(lines[0], tuple):
            out = ()
            for line in lines:
                out = out + ((line[0] if one else line),)
            return out
        return lines[0] if one else lines
    return problem.in_graph(kernel, packed, given)


def _jacobian_in_graph(fn, grad_position=0, has_aux=False, *, weights=None, mode="auto", chunk_size=None):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    return Made(_JACOBIAN, fn, grad_position, has_aux, mode, chunk_size)


@readable_in_graph(_jacobian_in_graph)
def jacobian(fn: Any, grad_position: Any = FIRST, has_aux: bool = False, *, weights: Any = None, mode: str = "auto",
             chunk_size: int | None = None) -> Callable:
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
    check_choice("mode", mode, MATRICES)
    check_chunk(chunk_size)
    if chunk_size is not None and mode == "fwd":
        raise ValueError("chunk_size works with mode='auto' or 'rev' only, but mode is 'fwd'")

    def build_in_graph(args):
        return _lines_in_graph(Problem.of(fn, args, {}, grad_position, weights, has_aux), args)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(jacobian, assigned=("__module__",), updated=())
    def jac_fn(*args, **kwargs):
        problem = Problem.of(fn, args, kwargs, grad_position, weights, has_aux)

        def kernel(f: Callable, n: int, v: Variables) -> Callable:
            return MATRICES[mode](f, v.positions, v.parameters)

        def batched():
            if chunk_size is not None:
                return jacobian_in_chunks(problem, chunk_size)
            return problem.run("jacobian", kernel, (mode,))

        lines = batched_or_loop("jacobian", batched, lambda: jacobian_in_chunks(problem, 1, batched=False))
        return problem.finish("jacobian", lines, lambda value: _pack(problem, value))
    return jac_fn


def _pack(problem: Problem, lines: Any) -> Any:
    if is_several(lines):
        return tuple(_pack(problem, output) for output in lines)
    return lines[0] if problem.vars.form == "one" else lines


_JACOBIAN = Recipe(lambda fn, grad_position, has_aux, mode, chunk_size: jacobian(
    fn, grad_position, has_aux, mode=mode, chunk_size=chunk_size))
