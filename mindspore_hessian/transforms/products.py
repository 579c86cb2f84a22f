"""Products with the Hessian and the Gauss-Newton matrix: a few gradients each, never a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian.arguments import check_choice
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.program import Builder, Point, Program, check_callable
from mindspore_hessian.core.transform import Evaluation, as_it_is, evaluates
from mindspore_hessian.transforms import compose
from mindspore_hessian.typing import HvpMode, Positions, Structure, Weights

HVP_MODES = {"auto": "revrev", "revrev": "revrev", "fwdrev": "fwdrev"}
OUTPUT = Tensor(
    np.zeros(1, np.float32)
)  # stands for the output of a function where its loss is bound


# --- kernels --------------------------------------------------------------------------------------


def product_kernel(mode: str) -> Builder:
    """H v: leaves, then the vectors; one Tensor a variable."""

    def build(function: Any, space: Any) -> Any:
        f, n = compose.scalar(function.value), function.n
        product = compose.hessian_product(f, space.positions, space.parameters, mode)

        def run(*tensors):
            return product(tensors[:n], tensors[n:])

        return run

    return build


def _both_kernel(mode):
    """The gradient, and H v."""

    def build(function, space):
        n = function.n
        gradient = compose.gradient(
            compose.scalar(function.value), space.positions, space.parameters
        )
        product = product_kernel(mode)(function, space)

        def run(*tensors):
            return gradient(*tensors[:n]), product(*tensors)

        return run

    return build


def _curvature_kernel(mode):
    """v^T H v / v^T v."""

    def build(function, space):
        n, product = function.n, product_kernel(mode)(function, space)

        def run(*tensors):
            vs = _unit(tensors[n:])
            return _rayleigh(product(*(tensors[:n] + vs)), vs)

        return run

    return build


def _unit(vs):
    """Scaled by the largest entry: v^T v of a short float16 or float32 direction underflows."""
    largest = 0.0
    for v in vs:
        largest = ops.maximum(ops.abs(v).max().astype(ms.float32), largest)
    unit = ()
    for v in vs:
        unit = unit + (v / largest.astype(v.dtype),)
    return unit


def _rayleigh(hvs, vs):
    """v^T H v / v^T v."""
    top, bottom = 0.0, 0.0
    for hv, v in zip(hvs, vs):  # noqa: B905 -- compiled by MindSpore
        top = top + (hv * v).sum()
        bottom = bottom + (v * v).sum()
    return top / bottom


def _gauss_newton(function, space):
    """J^T H_loss J v.

    The reverse pass has a function of its own: where it shares that of the forward product,
    MindSpore gives zeros by the weights of a network with a branch, and where each of the three
    uses has one, it does not compile.
    """
    f, n, pos, params = function.value, function.n, space.positions, space.parameters
    out = compose.one_tensor(f, "forward")
    push, pull = (
        compose.jvp(out, pos, params),
        compose.vjp(compose.one_tensor(f, "forward"), pos, params),
    )
    curve = compose.hessian_product(compose.scalar(function.loss, "loss"), (0,), None, "revrev")
    count = len(space.shapes)

    def run(*tensors):
        xs, targets, vs = tensors[:n], tensors[n:-count], tensors[-count:]
        return pull(xs, curve((out(*xs),) + targets, (push(xs, vs),))[0])

    return run


_KERNELS = {"hvp": product_kernel, "grad_and_hvp": _both_kernel, "curvature": _curvature_kernel}
# jvp(grad) returns zeros where vjp(grad) says that a rule is missing, so both are compiled and
# compared
_PROGRAMS = {
    **{
        (name, "revrev"): Program(name, kernel("revrev"), ("revrev",))
        for name, kernel in _KERNELS.items()
    },
    **{
        (name, "fwdrev"): Program(
            name,
            kernel("fwdrev"),
            ("fwdrev",),
            product_kernel("revrev"),
            None if kernel is product_kernel else product_kernel("fwdrev"),
        )
        for name, kernel in _KERNELS.items()
    },
}
_GGNVP = Program("ggnvp", _gauss_newton)


# --- the public functions -------------------------------------------------------------------------


def _product(
    name, fn, inputs, vectors, grad_position, has_aux, weights, mode, pack=None, what="vectors"
):
    """What all products check before anything is computed, and how it is."""
    check_choice("mode", mode, HVP_MODES)
    point = Point.of_inputs(fn, inputs, grad_position, weights, has_aux)
    flat = point.space.parts(vectors, what)
    pack = pack or as_given(vectors, point.space.pack)
    whole, eager = _PROGRAMS[name, "revrev"], _PROGRAMS[name, HVP_MODES[mode]]
    return Evaluation(
        point, whole, flat, pack, None if eager is whole else lambda: eager.run(point, flat)
    )


def as_given(vectors, pack):
    """`pack`, but where the vectors came in a list, as a list."""
    if not isinstance(vectors, list):
        return pack

    def listed(flat):
        value = pack(flat)
        return list(value) if isinstance(value, tuple) else value

    return listed


def _each(pack):
    def pair(value):
        return pack(value[0]), pack(value[1])

    return pair


@overload
def hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> tuple[Any, Any]: ...


@overload
def hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> Any: ...


@evaluates("inputs", "vectors")
def hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = None,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: HvpMode = "auto",
) -> Any:
    r"""Product of the Hessian of a scalar function with a vector, :math:`H v = \nabla^2 f(x) \, v`.

    Costs about two to three gradients, whatever the number of inputs; the Hessian is never formed.
    Compiled at the first call and reused while function, shapes, dtypes and what the function
    captured stay the same.

    Args:
        fn: any callable that returns one number (a Tensor of one element): function, lambda,
            method, ``nn.Cell``, ...
        inputs: the arguments of `fn`: one Tensor, or a tuple. Other than Tensors they are
            constants.
        vectors: v, with the structure, shapes and dtypes of what is differentiated.
        grad_position: which inputs are differentiated: an int, a tuple of ints, or None for all of
            them (for none of them where `weights` are given).
        has_aux: `fn` returns ``(value, aux, ...)``; only the value is differentiated.
        weights: Parameters to differentiate: one, or a list, tuple or ParameterTuple. `vectors` is
            then shaped like the weights, or a pair ``(for the inputs, for the weights)`` where
            `grad_position` is given too.
        mode: ``"revrev"`` is ``vjp(grad)``; ``"fwdrev"`` is ``jvp(grad)``; ``"auto"`` is the faster
            of the two that is right, which is ``"revrev"``.

    Returns:
        H v with the structure of `vectors`; ``(Hv, aux)`` with `has_aux`.

    Raises:
        TypeError: a wrong type or dtype, an integer input to differentiate, a function that does
            not return a Tensor.
        ValueError: wrong shapes or numbers of vectors, an output that is not one number, an unknown
            mode, a Parameter that is not in the function.
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
    return _product("hvp", fn, inputs, vectors, grad_position, has_aux, weights, mode)


@overload
def grad_and_hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> tuple[Any, Any]: ...


@overload
def grad_and_hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> Any: ...


@evaluates("inputs", "vectors")
def grad_and_hvp(
    fn: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    grad_position: Positions = None,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: HvpMode = "auto",
) -> Any:
    r"""Gradient and Hessian-vector product of a scalar function,
    :math:`(\nabla f, \nabla^2 f \, v)`, in one pass.

    The gradient is computed on the way to the product, so it comes at no cost. Arguments, errors,
    platforms and source are those of `hvp`.

    Returns:
        ``(gradient, Hv)``, both with the structure of `vectors`; ``((gradient, Hv), aux)`` with
        `has_aux`.

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
    both = _product("grad_and_hvp", fn, inputs, vectors, grad_position, has_aux, weights, mode)
    return replace(both, pack=_each(both.pack))


def hvp_revfwd(f: Any, inputs: Any, vector: Any) -> Any:
    """The tutorial's recipe ``mindspore.jvp(mindspore.grad(f), inputs, vector)[1]``, compiled once.

    Args:
        f: a scalar function.
        inputs: a Tensor, or a tuple where `f` has several arguments.
        vector: as `inputs`.

    Returns:
        H v, as `vector`. Errors, cost, platforms and source are those of `hvp`; where the recipe
        would drop a term without a word (a primitive without a second derivative), this raises.

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
    """The tutorial's recipe ``mindspore.vjp(mindspore.grad(f), *inputs)[1](*vector)``, compiled
    once.

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


@overload
def curvature(
    fn: Callable[..., Any],
    inputs: Structure,
    direction: Structure,
    grad_position: Positions = ...,
    *,
    has_aux: Literal[True],
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> tuple[Any, Any]: ...


@overload
def curvature(
    fn: Callable[..., Any],
    inputs: Structure,
    direction: Structure,
    grad_position: Positions = ...,
    has_aux: bool = ...,
    *,
    weights: Weights = ...,
    mode: HvpMode = ...,
) -> Any: ...


@evaluates("inputs", "direction")
def curvature(
    fn: Callable[..., Any],
    inputs: Structure,
    direction: Structure,
    grad_position: Positions = None,
    has_aux: bool = False,
    *,
    weights: Weights = None,
    mode: HvpMode = "auto",
) -> Any:
    r"""Curvature of a scalar function along a direction, :math:`v^T H v / v^T v`.

    Args and errors are those of `hvp`, with `direction` for its `vectors`; its length does not
    matter.

    Returns:
        A Tensor of shape (), in units of f over units of x squared; ``(curvature, aux)`` with
        `has_aux`.

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
    along = _product(
        "curvature",
        fn,
        inputs,
        direction,
        grad_position,
        has_aux,
        weights,
        mode,
        as_it_is,
        "direction",
    )

    def run():
        if not any(_compat.to_numpy(vector).any() for vector in along.extras):
            raise ValueError("direction is zero, so there is no curvature along it")
        return along.run() if along.run else along.program.run(along.point, along.extras)

    return replace(along, run=run, recorded=True)


@evaluates("inputs", "vectors")
def ggnvp(
    forward: Callable[..., Any],
    loss: Callable[..., Any],
    inputs: Structure,
    vectors: Structure,
    *,
    weights: Weights = None,
    grad_position: Positions = None,
) -> Any:
    r"""Product with the generalised Gauss-Newton matrix of ``loss(forward(...))``,
    :math:`J^T H_{loss} J v`.

    J is the Jacobian of `forward`, H_loss the Hessian of `loss` at its output. Positive
    semi-definite where the loss is convex; equal to the Hessian where `forward` is linear. Costs
    about two gradients; J is never formed.

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
        N. Schraudolph, Fast curvature matrix-vector products for second-order gradient descent,
        Neural Computation 14(7), 2002.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import ggnvp
        >>> x, v = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0])
        >>> print(ggnvp(lambda x: x ** 2, lambda y: (y ** 2).sum() / 2, x, v))
        [ 4. 16.]
    """
    check_callable("forward", forward)
    check_callable("loss", loss)
    point = replace(
        Point.of_inputs(forward, inputs, grad_position, weights, False),
        loss=Call.bind(loss, (OUTPUT,)),
    )
    return Evaluation(
        point, _GGNVP, point.space.parts(vectors, "vectors"), as_given(vectors, point.space.pack)
    )
