"""The Hessian as a matrix: one compiled product over the rows of the identity, or jacfwd/jacrev as asked."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mindspore as ms

from mindspore_hessian._errors import HessianError
from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.in_graph import WEIGHTS_INSIDE, Made, Recipe, outside, readable_in_graph
from mindspore_hessian.core.program import Problem, check_auto_only, check_chunk, check_transform
from mindspore_hessian.core.space import FIRST, Variables, several_weights
from mindspore_hessian.transforms import blocks, compose
from mindspore_hessian.transforms.chunks import batched_or_loop, hessian_in_chunks, hessian_in_loop, is_several
from mindspore_hessian.transforms.sparse import SparseHessian, check_sparse

MODES = ("auto", "fwdfwd", "fwdrev", "revfwd", "revrev")


def hessian_kernel(mode: str) -> Callable:
    """The kernel of the blocks H[i][j], ours over a batch of rows."""
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        return blocks.hessian(f, v.positions, v.parameters, "revrev" if mode == "auto" else mode)
    return kernel


def literal_kernel(mode: str) -> Callable:
    """The same by ``mindspore.jacfwd`` and ``jacrev`` as they are, for functions with one output."""
    def kernel(f: Callable, n: int, v: Variables) -> Callable:
        matrix, literal = blocks.hessian(f, v.positions, None, mode), blocks.literal_hessian(f, v.positions, mode)

        def run(*xs):
            if isinstance(f(*xs), tuple):
                return matrix(*xs)
            return literal(*xs)
        return run
    return kernel


_literal_fails: set[tuple] = set()


def _as_asked(problem: Problem, mode: str) -> Any:
    """MindSpore's own composition; where that fails, ours: theirs is for float32 and few axes, and copies the inputs.

    Forward derivatives drop terms without a word where a rule is missing, so the first result is compared with that
    of reverse over reverse.
    """
    guard = (None, hessian_kernel("revrev")) if mode != "revrev" else None
    leaves = problem.call.leaves
    attempt = (mode, problem.call.captures().token, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
    if not problem.vars.weights and all(leaf.dtype == ms.float32 for leaf in leaves) and attempt not in _literal_fails:
        try:
            return problem.run("hessian", literal_kernel(mode), (mode, "literal"), guard=guard)
        except (HessianError, ValueError, TypeError, RuntimeError):  # ours says so, if it is the function
            if len(_literal_fails) > 1000:
                _literal_fails.clear()
            _literal_fails.add(attempt)
    return problem.run("hessian", hessian_kernel(mode), (mode,), guard=guard)


# --- inside the user's own graphs: by reverse derivatives in every mode, the same numbers ---------------------------

def _blocks_in_graph(problem, given, with_value):
    """The blocks, or with the value and the gradient before them, as a function of what was given."""
    whole, pack, one = hessian_kernel("revrev"), problem.vars.packer(), problem.vars.form == "one"

    def kernel(f, n, v):
        matrix = whole(f, n, v)
        if not with_value:
            return matrix
        value, slope = compose.scalar(f), compose.gradient(compose.scalar(f), v.positions, v.parameters)

        def run(*xs):
            return value(*xs), slope(*xs), matrix(*xs)
        return run

    def output(rows):
        return rows[0][0] if one else rows

    def packed(rows):
        if isinstance(rows[0][0], tuple):
            out = ()
            for line in rows:
                out = out + (output(line),)
            return out
        return output(rows)

    def with_all(value):
        return value[0], pack(value[1]), packed(value[2])
    return problem.in_graph(kernel, with_all if with_value else packed, given)


def _hessian_in_graph(fn, grad_position=0, has_aux=False, *, weights=None, mode="auto", chunk_size=None, sparse=False):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    return Made(_HESSIAN, fn, grad_position, has_aux, mode, chunk_size, sparse)


def _value_grad_and_hessian_in_graph(fn, grad_position=0, has_aux=False, *, weights=None, mode="auto",
                                     chunk_size=None):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    return Made(_ALL, fn, grad_position, has_aux, mode, chunk_size)


@readable_in_graph(_hessian_in_graph)
def hessian(fn: Any, grad_position: Any = FIRST, has_aux: bool = False, *, weights: Any = None, mode: str = "auto",
            chunk_size: int | None = None, sparse: Any = False) -> Callable:
    r"""Hessian of a function, :math:`H_{ij} = \partial^2 f / \partial x_i \partial x_j`.

    Costs one Hessian-vector product (two to three gradients) for each entry of the differentiated variables, all of
    them in one batch. Compiled at the first call of the returned function.

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        grad_position: which inputs are differentiated: an int or a tuple of ints. None, or left out where `weights`
            are given: only the weights.
        has_aux: `fn` returns ``(output, aux, ...)``; only the output is differentiated.
        weights: Parameters to differentiate: one, or a list, tuple or ParameterTuple.
        mode: ``"auto"``: the product above, batched over the identity; the inputs are not copied, and where a
            primitive cannot be batched the products run one after another (`FallbackWarning`). ``"fwdfwd"``,
            ``"fwdrev"``, ``"revfwd"``, ``"revrev"``: outer over inner, ``mindspore.jacfwd``/``jacrev`` of
            ``jacfwd``/``jacrev``; for dtypes other than float32, several outputs and weights, the same compositions
            of ours.
        chunk_size: with ``"auto"``, compute so many rows at a time: less memory, the same result.
        sparse: True for a scalar function, in float32 or float64, whose Hessian has few entries in a row (a chain, a
            mesh, a sum over neighbours): it costs a product for each group of columns that have no row in common,
            three for a tridiagonal Hessian of any size, and one more. The pattern is found at the first call by
            random products (about ``4 log2(N)`` for a tridiagonal one) and kept by the returned function; a product
            with a random vector checks the matrix at each call, and the pattern is found anew where a point needs
            more. Or the pattern itself: a scipy sparse matrix or an array of shape (N, N), not zero where the Hessian
            may be.

    Returns:
        ``hess_fn(*args)``. One position and one output: a Tensor of shape ``out.shape + x.shape + x.shape``. A tuple
        of positions: nested tuples ``H[i][j]`` of shape ``out.shape + x_i.shape + x_j.shape``. With `weights`: the
        same over the weights; positions first, then weights, where both are given. Several outputs: a tuple of these.
        With `has_aux`: ``(H, aux)``. The dtype is that of x_j. With `sparse`: a ``scipy.sparse.csr_array`` of shape
        (N, N) over all N entries of what is differentiated, in this order.

    Raises:
        TypeError: a wrong type or dtype, an integer input to differentiate.
        ValueError: a position out of range, an empty input, an unknown mode, a Parameter that is not in the function;
            with `sparse`, more than one number, or a pattern of the wrong shape or that misses entries.
        NotCompilableError: MindSpore cannot compile `fn`; the message says why.
        MissingRuleError: a primitive has no second derivative; the message names it.

    Warns:
        NonFiniteWarning, FallbackWarning.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapters 5 and 8 (compression); A.
        Curtis, M. Powell and J. Reid, On the estimation of sparse Jacobian matrices, IMA J. Appl. Math. 13, 1974.

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

    def build_in_graph(args):
        if sparsely is not None:
            raise NotImplementedError("sparse= is not supported inside your own graph: call hessian outside of @jit "
                                      "and Cell.construct")
        return _blocks_in_graph(Problem.of(fn, args, {}, grad_position, weights, has_aux), args, False)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(hessian, assigned=("__module__",), updated=())
    def hess_fn(*args, **kwargs):
        problem = Problem.of(fn, args, kwargs, grad_position, weights, has_aux)
        if sparsely is not None:
            return sparsely(problem)
        rows = blocks_at_one_point(problem, mode, chunk_size)
        return problem.finish("hessian", rows, lambda value: _pack(problem, value))
    return hess_fn


def blocks_at_one_point(problem: Problem, mode: str = "auto", chunk_size: int | None = None) -> Any:
    """The blocks H[i][j] of every output, in the way that `mode` and `chunk_size` ask for."""
    if mode != "auto":
        return _as_asked(problem, mode)
    if chunk_size is not None and chunk_size < sum(problem.vars.sizes):
        return batched_or_loop("hessian", lambda: hessian_in_chunks(problem, chunk_size),
                               lambda: hessian_in_loop(problem))
    return batched_or_loop("hessian", lambda: problem.run("hessian", hessian_kernel("auto"), ("auto",)),
                           lambda: hessian_in_loop(problem))


def _pack(problem: Problem, blocks: Any) -> Any:
    """Nested tuples H[i][j], or the one block, for every output."""
    if is_several(blocks) and is_several(blocks[0]):
        return tuple(_pack(problem, output) for output in blocks)
    return blocks[0][0] if problem.vars.form == "one" else blocks


@readable_in_graph(_value_grad_and_hessian_in_graph)
def value_grad_and_hessian(fn: Any, grad_position: Any = FIRST, has_aux: bool = False, *, weights: Any = None,
                           mode: str = "auto", chunk_size: int | None = None) -> Callable:
    r"""Value, gradient and Hessian of a scalar function, :math:`(f, \nabla f, \nabla^2 f)`.

    Arguments, cost, errors, platforms and source are those of `hessian`, for a function that returns one number.

    Returns:
        ``fn(*args)`` giving ``(value, gradient, H)``; with `has_aux`, ``((value, gradient, H), aux)``.

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

    def build_in_graph(args):
        return _blocks_in_graph(Problem.of(fn, args, {}, grad_position, weights, has_aux), args, True)

    @readable_in_graph(outside(build_in_graph))
    @functools.wraps(value_grad_and_hessian, assigned=("__module__",), updated=())
    def all_fn(*args, **kwargs):
        problem = Problem.of(fn, args, kwargs, grad_position, weights, has_aux)

        def kernel(f: Callable, n: int, v: Variables) -> Callable:
            value = compose.scalar(f)
            gradient = compose.gradient(value, v.positions, v.parameters)

            def run(*xs):
                return value(*xs), gradient(*xs)
            return run

        first = problem.run("value_grad_and_hessian", kernel)
        (value, gradient), aux = first if has_aux else (first, None)
        rows = blocks_at_one_point(problem, mode, chunk_size)
        rows = (((value, gradient), rows[0]), aux) if has_aux else ((value, gradient), rows)
        return problem.finish("value_grad_and_hessian", rows, lambda result: (
            result[0][0], problem.vars.pack(result[0][1]), _pack(problem, result[1])))
    return all_fn


_HESSIAN = Recipe(lambda fn, grad_position, has_aux, mode, chunk_size, sparse: hessian(
    fn, grad_position, has_aux, mode=mode, chunk_size=chunk_size, sparse=sparse))
_ALL = Recipe(lambda fn, grad_position, has_aux, mode, chunk_size: value_grad_and_hessian(
    fn, grad_position, has_aux, mode=mode, chunk_size=chunk_size))
