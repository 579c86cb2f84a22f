"""Products with the Hessian and the Gauss-Newton matrix: a few gradients each, never a matrix."""
from __future__ import annotations

import functools
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.in_graph import WEIGHTS_INSIDE, InGraph, Recipe, described, known, readable_in_graph
from mindspore_hessian.core.inplace import refuse_in_graph
from mindspore_hessian.core.program import (
    HVP_MODES,
    Problem,
)
from mindspore_hessian.core.space import check_finite
from mindspore_hessian.transforms import compose

# --- inside the user's own graphs ----------------------------------------------------------------------------------

def _build_product(given, fn, grad_position, has_aux, mode, what):
    """By reverse derivatives in every mode: the same numbers, and no term is lost."""
    known(fn)
    problem, _ = _checked(fn, *given, grad_position, has_aux, None, mode, _CALLED.get(what, "vectors"))
    pack, as_list = problem.vars.packer(), isinstance(given[1], list)

    def like(flat):
        value = pack(flat)
        if as_list and isinstance(value, tuple):
            return list(value)
        return value

    def both(value):
        return like(value[0]), like(value[1])

    def alone(value):
        return value
    packs = {"hvp": like, "grad_and_hvp": both, "curvature": alone}
    return problem.in_graph(_KERNELS[what]("revrev"), packs[what], given)


def _build_weights(given, fn, mode, what):
    """Parameters are no constants of a graph, so nothing can be made of them in Python: only the function is."""
    known(fn)
    inputs, vectors, weights = given
    problem, _ = _checked(fn, inputs, vectors, None, False, weights, mode, _CALLED.get(what, "vectors"))
    refuse_in_graph(fn)
    there = [(p.shape, p.dtype) for p in problem.call.captures().parameters.values()]
    for number, weight in enumerate(problem.vars.weights):
        if (weight.shape, weight.dtype) not in there:
            raise ValueError(f"weight number {number} is not in the function: nothing it captured is a Parameter of "
                             f"shape {tuple(weight.shape)} and dtype {weight.dtype}, or it is in weights twice")
        there.remove((weight.shape, weight.dtype))
    return compose.scalar(problem.call.function())


_CALLED = {"curvature": "direction"}
_BY_LIST, _BY_LIST_SENS = ops.GradOperation(get_by_list=True), ops.GradOperation(get_by_list=True, sens_param=True)
_PRODUCT, _WEIGHTS = Recipe(_build_product), Recipe(_build_weights)


def _product_in_graph(fn, inputs, vectors, grad_position, has_aux, weights, mode, what):
    given = (inputs, vectors)
    if weights is None:
        return InGraph(_PRODUCT, described(given), fn, grad_position, has_aux, mode, what)(given)
    if has_aux or grad_position is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    checked = InGraph(_WEIGHTS, described((inputs, vectors, weights)), fn, mode, what).call
    one = isinstance(weights, Parameter)
    vs = (vectors,) if isinstance(vectors, Tensor) else tuple(vectors)
    if what == "curvature":
        vs = _unit(vs)
    slope, out = _weight_products(checked, tensors_of_graph(inputs), vs, (weights,) if one else tuple(weights))
    if what == "curvature":
        return _rayleigh(out, vs)
    if one:
        slope, out = slope[0], out[0]
    if what == "grad_and_hvp":
        return slope, out
    return out


def tensors_of_graph(value):
    """The Tensors in nested tuples and lists, flat. MindSpore compiles this function."""
    if isinstance(value, Tensor):
        return (value,)
    out = ()
    if isinstance(value, (tuple, list)):  # noqa: UP038 -- compiled by MindSpore
        for item in value:
            out = out + tensors_of_graph(item)
    return out


def _weight_products(fn, xs, vs, weights):
    gradient = _BY_LIST(fn, weights)
    return gradient(*xs), _BY_LIST_SENS(gradient, weights)(*xs, vs)


def _hvp_in_graph(fn, inputs, vectors, grad_position=None, has_aux=False, *, weights=None, mode="auto"):
    return _product_in_graph(fn, inputs, vectors, grad_position, has_aux, weights, mode, "hvp")


def _grad_and_hvp_in_graph(fn, inputs, vectors, grad_position=None, has_aux=False, *, weights=None, mode="auto"):
    return _product_in_graph(fn, inputs, vectors, grad_position, has_aux, weights, mode, "grad_and_hvp")


def _curvature_in_graph(fn, inputs, direction, grad_position=None, has_aux=False, *, weights=None, mode="auto"):
    return _product_in_graph(fn, inputs, direction, grad_position, has_aux, weights, mode, "curvature")


def _build_ggnvp(given, forward, loss, grad_position):
    known(forward, loss)
    problem, _, kernel = _checked_ggnvp(forward, loss, *given, None, grad_position)
    pack, as_list = problem.vars.packer(), isinstance(given[1], list)

    def like(flat):
        value = pack(flat)
        if as_list and isinstance(value, tuple):
            return list(value)
        return value
    return problem.in_graph(kernel, like, given, (loss,))


_GGNVP = Recipe(_build_ggnvp)


def _ggnvp_in_graph(forward, loss, inputs, vectors, *, weights=None, grad_position=None):
    if weights is not None:
        raise NotImplementedError(WEIGHTS_INSIDE)
    given = (inputs, vectors)
    return InGraph(_GGNVP, described(given), forward, loss, grad_position)(given)


# --- kernels -------------------------------------------------------------------------------------------------------

def product_kernel(mode: str) -> Any:
    """The kernel of H v: leaves, then the vectors; returns one Tensor a variable."""
    def kernel(f: Any, n: int, vars_: Any) -> Any:
        product = compose.hessian_product(compose.scalar(f), vars_.positions, vars_.parameters, mode)

        def run(*tensors):
            return product(tensors[:n], tensors[n:])
        return run
    return kernel


def _both_kernel(mode):
    """The gradient, and H v."""
    def kernel(f, n, vars_):
        gradient = compose.gradient(compose.scalar(f), vars_.positions, vars_.parameters)
        product = product_kernel(mode)(f, n, vars_)

        def run(*tensors):
            return gradient(*tensors[:n]), product(*tensors)
        return run
    return kernel


def _curvature_kernel(mode):
    """v^T H v / v^T v."""
    def kernel(f, n, vars_):
        product = product_kernel(mode)(f, n, vars_)

        def run(*tensors):
            vs = _unit(tensors[n:])
            return _rayleigh(product(*(tensors[:n] + vs)), vs)
        return run
    return kernel


def _unit(vs):
    """Scaled by the largest entry: v^T v of a short float16 or float32 direction underflows."""
    largest = 0.0
    for v in vs:
        largest = ops.maximum(ops.abs(v).max().astype(ms.float32), largest)
    unit = ()
    for v in vs:
        unit = unit + (v / largest.astype(v.dtype),)
    return unit


_KERNELS = {"hvp": product_kernel, "grad_and_hvp": _both_kernel, "curvature": _curvature_kernel}


def _rayleigh(hvs, vs):
    """v^T H v / v^T v."""
    top, bottom = 0.0, 0.0
    for hv, v in zip(hvs, vs):  # noqa: B905 -- compiled by MindSpore
        top = top + (hv * v).sum()
        bottom = bottom + (v * v).sum()
    return top / bottom


def _gauss_newton(forward, loss, pos, params):
    """``product(xs, vs)``: J^T H_loss J vs.

    The reverse pass has a function of its own: where it shares that of the forward product, MindSpore gives zeros by
    the weights of a network with a branch, and where each of the three uses has one, it does not compile.
    """
    out = compose.one_tensor(forward, "forward")
    push, pull = compose.jvp(out, pos, params), compose.vjp(compose.one_tensor(forward, "forward"), pos, params)
    curve = compose.hessian_product(compose.scalar(loss, "loss"), (0,), None, "revrev")

    def product(xs, vs):
        return pull(xs, curve((out(*xs),), (push(xs, vs),))[0])
    return product


@readable_in_graph(_hvp_in_graph)
def hvp(fn: Any, inputs: Any, vectors: Any, grad_position: Any = None, has_aux: bool = False, *, weights: Any = None,
        mode: str = "auto") -> Any:
    r"""Product of the Hessian of a scalar function with a vector, :math:`H v = \nabla^2 f(x) \, v`.

    Costs about two to three gradients, whatever the number of inputs; the Hessian is never formed. Compiled at the
    first call and reused while function, shapes, dtypes and what the function captured stay the same.

    Args:
        fn: any callable that returns one number (a Tensor of one element): function, lambda, method, ``nn.Cell``, ...
        inputs: the arguments of `fn`: one Tensor, or a tuple. Other than Tensors they are constants.
        vectors: v, with the structure, shapes and dtypes of what is differentiated.
        grad_position: which inputs are differentiated: an int, a tuple of ints, or None for all of them (for none of
            them where `weights` are given).
        has_aux: `fn` returns ``(value, aux, ...)``; only the value is differentiated.
        weights: Parameters to differentiate: one, or a list, tuple or ParameterTuple. `vectors` is then shaped like
            the weights, or a pair ``(for the inputs, for the weights)`` where `grad_position` is given too.
        mode: ``"revrev"`` is ``vjp(grad)``; ``"fwdrev"`` is ``jvp(grad)``; ``"auto"`` is the faster of the two that
            is right, which is ``"revrev"``.

    Returns:
        H v with the structure of `vectors`; ``(Hv, aux)`` with `has_aux`.

    Raises:
        TypeError: a wrong type or dtype, an integer input to differentiate, a function that does not return a Tensor.
        ValueError: wrong shapes or numbers of vectors, an output that is not one number, an unknown mode, a
            Parameter that is not in the function.
        NotCompilableError: MindSpore cannot compile `fn`; the message says why.
        MissingRuleError: a primitive has no second derivative; the message names it.

    Warns:
        NonFiniteWarning: the result holds NaN or Inf.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import hvp
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> print(hvp(lambda x: (x ** 3).sum(), x, v))
        [ 6. 12.]
    """
    problem, flat = _checked(fn, inputs, vectors, grad_position, has_aux, weights, mode)
    result = problem.run("hvp", product_kernel(HVP_MODES[mode]), (HVP_MODES[mode],), flat, guard=_guard(mode))
    return problem.finish("hvp", result, lambda value: _like(vectors, problem.vars.pack(value)))


@readable_in_graph(_grad_and_hvp_in_graph)
def grad_and_hvp(fn: Any, inputs: Any, vectors: Any, grad_position: Any = None, has_aux: bool = False, *,
                 weights: Any = None, mode: str = "auto") -> Any:
    r"""Gradient and Hessian-vector product of a scalar function, :math:`(\nabla f, \nabla^2 f \, v)`, in one pass.

    The gradient is computed on the way to the product, so it comes at no cost. Arguments, errors, platforms and
    source are those of `hvp`.

    Returns:
        ``(gradient, Hv)``, both with the structure of `vectors`; ``((gradient, Hv), aux)`` with `has_aux`.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import grad_and_hvp
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> gradient, product = grad_and_hvp(lambda x: (x ** 3).sum(), x, v)
        >>> print(gradient, product)
        [ 3. 12.] [ 6. 12.]
    """
    problem, flat = _checked(fn, inputs, vectors, grad_position, has_aux, weights, mode)
    result = problem.run("grad_and_hvp", _both_kernel(HVP_MODES[mode]), (HVP_MODES[mode],), flat, guard=_guard(mode))
    return problem.finish("grad_and_hvp", result,
                          lambda value: tuple(_like(vectors, problem.vars.pack(part)) for part in value))


def hvp_revfwd(f: Any, inputs: Any, vector: Any) -> Any:
    """The tutorial's recipe ``mindspore.jvp(mindspore.grad(f), inputs, vector)[1]``, compiled once.

    Args:
        f: a scalar function.
        inputs: a Tensor, or a tuple where `f` has several arguments.
        vector: as `inputs`.

    Returns:
        H v, as `vector`. Errors, cost, platforms and source are those of `hvp`; where the recipe would drop a term
        without a word (a primitive without a second derivative), this raises.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import hvp_revfwd
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> print(hvp_revfwd(lambda x: (x ** 3).sum(), x, v))
        [ 6. 12.]
    """
    return hvp(f, inputs, vector, mode="fwdrev")


def hvp_revrev(f: Any, inputs: Any, vector: Any) -> Any:
    """The tutorial's recipe ``mindspore.vjp(mindspore.grad(f), *inputs)[1](*vector)``, compiled once.

    Args:
        f: a scalar function.
        inputs: a tuple of Tensors.
        vector: a tuple of Tensors.

    Returns:
        H v, a tuple. Errors, cost, platforms and source are those of `hvp`.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import hvp_revrev
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> print(hvp_revrev(lambda x: (x ** 3).sum(), (x,), (v,))[0])
        [ 6. 12.]
    """
    return hvp(f, inputs, vector, mode="revrev")


@readable_in_graph(_curvature_in_graph)
def curvature(fn: Any, inputs: Any, direction: Any, grad_position: Any = None, has_aux: bool = False, *,
              weights: Any = None, mode: str = "auto") -> Any:
    r"""Curvature of a scalar function along a direction, :math:`v^T H v / v^T v`.

    Args and errors are those of `hvp`, with `direction` for its `vectors`; its length does not matter.

    Returns:
        A Tensor of shape (), in units of f over units of x squared; ``(curvature, aux)`` with `has_aux`.

    Raises:
        ValueError: the direction is zero.
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        Rayleigh quotient; G. Golub and C. Van Loan, Matrix Computations, section 8.1.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import curvature
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([0.0, 2.0])
        >>> print(curvature(lambda x: (x ** 3).sum(), x, v))
        12.0
    """
    problem, flat = _checked(fn, inputs, direction, grad_position, has_aux, weights, mode, "direction")
    if not any(_compat.to_numpy(vector).any() for vector in flat):
        raise ValueError("direction is zero, so there is no curvature along it")

    result = problem.run("curvature", _curvature_kernel(HVP_MODES[mode]), (HVP_MODES[mode],), flat, guard=_guard(mode))
    return problem.finish("curvature", result, lambda value: value)


@readable_in_graph(_ggnvp_in_graph)
def ggnvp(forward: Any, loss: Any, inputs: Any, vectors: Any, *, weights: Any = None, grad_position: Any = None) -> Any:
    r"""Product with the generalised Gauss-Newton matrix of ``loss(forward(...))``, :math:`J^T H_{loss} J v`.

    J is the Jacobian of `forward`, H_loss the Hessian of `loss` at its output. Positive semi-definite where the loss
    is convex; equal to the Hessian where `forward` is linear. Costs about two gradients; J is never formed.

    Args:
        forward: the network or function; it returns one Tensor.
        loss: a function of that Tensor alone, returning one number (let it capture the targets).
        inputs: the arguments of `forward`: one Tensor, or a tuple.
        vectors: v, shaped like the weights (or like the inputs, where no weights are given).
        weights: Parameters, as in `hvp`.
        grad_position: differentiated inputs, as in `hvp`.

    Returns:
        G v with the structure of `vectors`.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        N. Schraudolph, Fast curvature matrix-vector products for second-order gradient descent, Neural Computation
        14(7), 2002.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import ggnvp
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> print(ggnvp(lambda x: x ** 2, lambda y: (y ** 2).sum() / 2, x, v))
        [ 4. 16.]
    """
    problem, flat, kernel = _checked_ggnvp(forward, loss, inputs, vectors, weights, grad_position)
    result = problem.run("ggnvp", kernel, (), flat, also=(loss,))
    check_finite("ggnvp", result)
    return _like(vectors, problem.vars.pack(result))


def _checked(fn, inputs, vectors, grad_position, has_aux, weights, mode, what="vectors"):
    """What all products check before anything is computed: the problem, and the vectors flat."""
    check_choice("mode", mode, HVP_MODES)
    problem = Problem.of_inputs(fn, inputs, grad_position, weights, has_aux)
    return problem, problem.vars.flatten(vectors, what)


def _checked_ggnvp(forward, loss, inputs, vectors, weights, grad_position):
    """The same for `ggnvp`, and its kernel."""
    for name, function in (("forward", forward), ("loss", loss)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, but got {type(function).__name__}")
    problem = Problem.of_inputs(forward, inputs, grad_position, weights, False)
    flat = problem.vars.flatten(vectors, "vectors")
    inner = Call.bind(_of_output(loss), ())

    def kernel(f, n, vars_):
        product = _gauss_newton(f, inner.one_argument(), vars_.positions, vars_.parameters)

        def run(*tensors):
            return product(tensors[:n], tensors[n:])
        return run
    return problem, flat, kernel


def _of_output(loss):
    """A partial loss as a function of the output alone: what it holds stays with it."""
    if not isinstance(loss, functools.partial):
        return loss
    whole, args, kwargs = loss.func, loss.args, loss.keywords

    def held(output):
        return whole(*args, output, **kwargs)
    return held


def _guard(mode):
    """jvp(grad) returns zeros where vjp(grad) says that a rule is missing, so both are compiled and compared."""
    return (product_kernel("fwdrev"), product_kernel("revrev")) if HVP_MODES[mode] == "fwdrev" else None


def _like(vectors, result):
    """A list of vectors gives a list back."""
    return list(result) if isinstance(vectors, list) and isinstance(result, tuple) else result
