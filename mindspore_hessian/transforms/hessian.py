"""The Hessian as a matrix: one compiled product over the rows of the identity, or jacfwd/jacrev as
asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import mindspore as ms

from mindspore_hessian._errors import HessianError
from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.program import (
    Builder,
    Function,
    Point,
    Program,
    check_auto_only,
    check_chunk,
    check_transform,
)
from mindspore_hessian.core.space import FIRST, Space, several_weights
from mindspore_hessian.core.transform import Evaluation, derived, makes
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms.chunks import batched_or_loop, hessian_in_chunks, hessian_in_loop
from mindspore_hessian.transforms.sparse import SparseHessian, check_sparse
from mindspore_hessian.typing import HessianMode, Positions, Weights

MODES = ("auto", "fwdfwd", "fwdrev", "revfwd", "revrev")
_MANY, _ROWS = 4096, 512  # entries from where on a Hessian is computed so many rows at a time


def hessian_kernel(mode: str) -> Builder:
    """The blocks H[i][j], ours over a batch of rows."""

    def build(function: Function, space: Space) -> Callable:
        return blocks.hessian(function.value, space.positions, space.parameters, mode)

    return build


def _literal_kernel(mode: str) -> Builder:
    """The same by ``mindspore.jacfwd`` and ``jacrev`` as they are, for functions with one
    output.
    """

    def build(function: Function, space: Space) -> Callable:
        f, pos = function.value, space.positions
        matrix, literal = blocks.hessian(f, pos, None, mode), blocks.literal_hessian(f, pos, mode)

        def run(*xs):
            if isinstance(f(*xs), tuple):
                return matrix(*xs)
            return literal(*xs)

        return run

    return build


def _value_and_gradient(function: Function, space: Space) -> Callable:
    value = compose.scalar(function.value)
    gradient = compose.gradient(value, space.positions, space.parameters)

    def run(*xs):
        return value(*xs), gradient(*xs)

    return run


def _all_kernel(function: Function, space: Space) -> Callable:
    """Value, gradient and blocks."""
    first, matrix = _value_and_gradient(function, space), hessian_kernel("revrev")(function, space)

    def run(*xs):
        return first(*xs), matrix(*xs)

    return run


# Forward derivatives drop terms without a word where a rule is missing, so the first result is
# compared with that of reverse over reverse.
_PROGRAMS = {
    mode: Program(
        "hessian",
        hessian_kernel("revrev" if mode == "auto" else mode),
        (mode,),
        hessian_kernel("revrev") if "fwd" in mode else None,
    )
    for mode in MODES
}
_LITERAL = {
    mode: Program(
        "hessian",
        _literal_kernel(mode),
        (mode, "literal"),
        hessian_kernel("revrev") if "fwd" in mode else None,
    )
    for mode in MODES[1:]
}
_FIRST, _ALL = (
    Program("value_grad_and_hessian", build, (name,))
    for name, build in (("first", _value_and_gradient), ("all", _all_kernel))
)
_literal_fails: set[tuple] = set()


def _as_asked(point: Point, mode: str) -> tuple[Any, Any]:
    """MindSpore's own composition; where that fails, ours: theirs takes float32 and few axes, and
    copies the inputs.
    """
    leaves = point.call.leaves
    attempt = (
        mode,
        point.call.captures().token,
        tuple((leaf.shape, leaf.dtype) for leaf in leaves),
    )
    if (
        not point.space.weights
        and all(leaf.dtype == ms.float32 for leaf in leaves)
        and attempt not in _literal_fails
    ):
        try:
            return _LITERAL[mode].run(point)
        except (
            HessianError,
            ValueError,
            TypeError,
            RuntimeError,
        ):  # ours says so, if it is the function
            if len(_literal_fails) > 1000:
                _literal_fails.clear()
            _literal_fails.add(attempt)
    return _PROGRAMS[mode].run(point)


@overload
def hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: HessianMode = ...,
    chunk_size: int | None = ...,
    sparse: Any = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: HessianMode = ...,
    chunk_size: int | None = ...,
    sparse: Any = ...,
) -> Callable[..., Any]: ...


@makes
def hessian(
    fn: Callable[..., Any],
    grad_position: Positions = FIRST,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: HessianMode = "auto",
    chunk_size: int | None = None,
    sparse: Any = False,
) -> Callable[..., Any]:
    r"""Hessian of a function, :math:`H_{ij} = \partial^2 f / \partial x_i \partial x_j`.

    Costs one Hessian-vector product (two to three gradients) for each entry of the differentiated
    variables, all of them in one batch. Compiled at the first call of the returned function.

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        grad_position: which inputs are differentiated: an int or a tuple of ints. None, or left out
            where `weights` are given: only the weights.
        has_aux: `fn` returns ``(output, aux, ...)``; only the output is differentiated.
        weights: Parameters to differentiate: one, or a list, tuple or ParameterTuple.
        mode: ``"auto"``: the product above, batched over the identity; the inputs are not copied,
            and where a primitive cannot be batched the products run one after another
            (`FallbackWarning`). ``"fwdfwd"``, ``"fwdrev"``, ``"revfwd"``, ``"revrev"``: outer over
            inner, ``mindspore.jacfwd``/``jacrev`` of ``jacfwd``/``jacrev``; for dtypes other than
            float32, several outputs and weights, the same compositions of ours.
        chunk_size: with ``"auto"``, compute so many rows at a time: less memory, the same result.
            None: all of them; on the CPU, outside of your own graph, 512 at a time from 4,096
            entries on.
        sparse: True for a scalar function, in float32 or float64, whose Hessian has few entries in
            a row (a chain, a mesh, a sum over neighbours): it costs a product for each group of
            columns that have no row in common, three for a tridiagonal Hessian of any size, and one
            more. The pattern is found at the first call by random products (about ``4 log2(N)`` for
            a tridiagonal one) and kept by the returned function; a product with a random vector
            checks the matrix at each call, and the pattern is found anew where a point needs more.
            Or the pattern itself: a scipy sparse matrix or an array of shape (N, N), nonzero
            wherever the Hessian may be.

    Returns:
        ``hess_fn(*args)``. One position and one output: a Tensor of shape ``out.shape + x.shape +
            x.shape``. A tuple of positions: nested tuples ``H[i][j]`` of shape ``out.shape +
            x_i.shape + x_j.shape``. With `weights`: the same over the weights; positions first,
            then weights, where both are given. Several outputs: a tuple of these. With `has_aux`:
            ``(H, aux)``. The dtype is that of x_j. With `sparse`: a ``scipy.sparse.csr_array`` of
            shape (N, N) over all N entries of what is differentiated, in this order.

    Raises:
        TypeError: a wrong type or dtype, an integer input to differentiate.
        ValueError: a position out of range, an empty input, an unknown mode, a Parameter that is
            not in the function; with `sparse`, more than one number, or a pattern of the wrong
            shape or that misses entries.
        NotCompilableError: MindSpore cannot compile `fn`; the message says why.
        MissingRuleError: a primitive has no second derivative; the message names it.

    Warns:
        NonFiniteWarning, FallbackWarning.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapters 5 and 8
        (compression); A. Curtis, M. Powell and J. Reid, On the estimation of sparse Jacobian
        matrices, IMA J. Appl. Math. 13, 1974.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import hessian
        >>> print(hessian(lambda x: (x ** 3).sum())(ms.Tensor([1.0, 2.0])))
        [[ 6.  0.]
         [ 0. 12.]]
        >>> hessian(lambda x: (x ** 3).sum(), sparse=True)(ms.ops.ones(1000)).nnz
        1000
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_choice("mode", mode, MODES)
    check_chunk(chunk_size)
    check_sparse(sparse)
    sparsely = None if sparse is False else SparseHessian(sparse, chunk_size)
    check_auto_only(mode, chunk_size=chunk_size is not None, sparse=sparsely is not None)

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, weights, has_aux)
        if sparsely is not None:
            return Evaluation(
                point,
                _PROGRAMS["auto"],
                run=lambda: sparsely(point),
                recorded=True,
                outside_only="sparse",
            )
        return Evaluation(
            point,
            _PROGRAMS["revrev"],
            pack=blocks.packed(point.space.form == "one", 2),
            run=lambda: blocks_at_one_point(point, mode, chunk_size),
        )

    return derived("hess_fn", fn, evaluate)


def _rows_at_once() -> int | None:
    """Of a large Hessian: less memory in nearly the same time, as measured on the CPU."""
    return _ROWS if ms.get_context("device_target") == "CPU" else None


def blocks_at_one_point(
    point: Point, mode: str = "auto", chunk_size: int | None = None
) -> tuple[Any, Any]:
    """The blocks H[i][j] of every output, in the way that `mode` and `chunk_size` ask for, and
    aux.
    """
    if mode != "auto":
        return _as_asked(point, mode)
    if chunk_size is None and point.space.size >= _MANY:
        chunk_size = _rows_at_once()
    if chunk_size is not None and chunk_size < point.space.size:
        return batched_or_loop(
            "hessian", lambda: hessian_in_chunks(point, chunk_size), lambda: hessian_in_loop(point)
        )
    return batched_or_loop(
        "hessian", lambda: _PROGRAMS["auto"].run(point), lambda: hessian_in_loop(point)
    )


@overload
def value_grad_and_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: HessianMode = ...,
    chunk_size: int | None = ...,
) -> Callable[..., tuple[Any, Any]]: ...


@overload
def value_grad_and_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: HessianMode = ...,
    chunk_size: int | None = ...,
) -> Callable[..., Any]: ...


@makes
def value_grad_and_hessian(
    fn: Callable[..., Any],
    grad_position: Positions = FIRST,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: HessianMode = "auto",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    r"""Value, gradient and Hessian of a scalar function, :math:`(f, \nabla f, \nabla^2 f)`.

    Arguments, cost, errors, platforms and source are those of `hessian`, for a function that
    returns one number.

    Returns:
        ``fn(*args)`` giving ``(value, gradient, H)``; with `has_aux`, ``((value, gradient, H),
        aux)``.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import value_grad_and_hessian
        >>> value, gradient, h = value_grad_and_hessian(lambda x: (x ** 3).sum())(ms.Tensor([1.0, 2.0]))
        >>> print(value, gradient)
        9.0 [ 3. 12.]
    """
    check_transform(fn, grad_position, has_aux)
    weights = several_weights(weights)
    check_choice("mode", mode, MODES)
    check_chunk(chunk_size)
    check_auto_only(mode, chunk_size=chunk_size is not None)

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, grad_position, weights, has_aux)
        one, matrix = point.space.pack, blocks.packed(point.space.form == "one", 2)

        def run() -> tuple[Any, Any]:
            first, aux = _FIRST.run(point)
            return (first, blocks_at_one_point(point, mode, chunk_size)[0]), aux

        def pack(value):
            return value[0][0], one(value[0][1]), matrix(value[1])

        return Evaluation(point, _ALL, pack=pack, run=run)

    return derived("all_fn", fn, evaluate)
