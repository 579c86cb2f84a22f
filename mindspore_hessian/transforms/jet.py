"""Derivatives of high order: Taylor coefficients in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import MissingRuleError
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.program import Builder, Function, Point, Program, check_callable
from mindspore_hessian.core.space import FLOATS, Space, as_args, to_tensor
from mindspore_hessian.core.transform import Evaluation, derived, evaluates, makes
from mindspore_hessian.transforms import forward as passes

_MUL, _RESHAPE, _CONCAT, _BROADCAST = ops.Mul(), ops.Reshape(), ops.Concat(), ops.BroadcastTo


@ops.constexpr
def _factorials(order, rank, dtype, inverse):
    """1!, 2!, ..., or one over them, as (order, 1, ..., 1)."""
    numbers = np.cumprod(np.arange(1, order + 1), dtype=np.float64)
    return Tensor((1 / numbers if inverse else numbers).reshape((order,) + (1,) * rank), dtype)


def _derivatives(c, order):
    """Taylor coefficients, (K, ...), as derivatives."""
    return _MUL(c, _factorials(order, c.ndim - 1, c.dtype, False))


# --- jet ------------------------------------------------------------------------------------------


def _jet(order: int) -> Builder:
    """(value, derivatives) of the leaves, then `order` Tensors for each of the differentiated
    ones.
    """

    def build(function: Function, space: Space) -> Callable:
        n = function.n
        pushed = passes.push(function.value, space.positions, None, True)

        def coefficients(series):
            lines = ()
            for one in series:
                lines = lines + (ops.expand_dims(one, 0),)
            rows = lines[0] if len(lines) == 1 else _CONCAT(lines)
            return _MUL(rows, _factorials(order, rows.ndim - 1, rows.dtype, True))

        def rows_of(c, shape):
            rows = _derivatives(c, order)
            if order == 1:
                return (_RESHAPE(rows, shape),)
            out = ()
            for one in ops.Split(0, order)(rows):
                out = out + (_RESHAPE(one, shape),)
            return out

        def run(*tensors):
            cs = ()
            for first in range(n, len(tensors), order):
                cs = cs + (coefficients(tensors[first : first + order]),)
            out = pushed(tensors[:n], cs)
            if isinstance(out[0], tuple):
                values, series = (), ()
                for item in out:
                    values, series = (
                        values + (item[0],),
                        series + (rows_of(item[1], item[0].shape),),
                    )
                return values, series
            return out[0], rows_of(out[1], out[0].shape)

        return run

    return build


@evaluates("primals", "series")
def jet(fn: Any, primals: Any, series: Any) -> Any:
    r"""Value and derivatives along a curve: those of :math:`f(x(t))` at :math:`t = 0`, of the
    derivatives of :math:`x(t)` there.

    One forward pass with Taylor coefficients. The cost grows with the square of the order, not
    exponentially as that of nested gradients. Tested to order 10.

    Args:
        fn: any callable that returns a Tensor of any shape, or a tuple of Tensors.
        primals: :math:`x(0)`: a Tensor, or the tuple of the arguments of `fn`.
        series: :math:`(x'(0), x''(0), \dots)`, derivatives, not divided by factorials: a tuple (or
            list) of Tensors, each shaped like the primal, for a tuple of primals a tuple of these,
            all as long. None in the place of one of them says that this argument stays as it is
            (which an integer one must).

    Returns:
        ``(value, derivatives)``: like the output of `fn`; and the tuple of the derivatives of
            orders 1, 2, ... of it, for a tuple of outputs a tuple of these.

    Raises:
        TypeError, ValueError, NotCompilableError: as `hvp`.
        MissingRuleError: a primitive has no Taylor rule.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 13.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import jet
        >>> x, one, zero = ms.Tensor([1.0, 2.0]), ms.Tensor([1.0, 1.0]), ms.Tensor([0.0, 0.0])
        >>> value, (first, second, third) = jet(lambda x: x ** 3, x, (one, zero, zero))
        >>> print(value, first, second, third)
        [1. 8.] [ 3. 12.] [ 6. 12.] [6. 6.]
    """
    check_callable("fn", fn)
    moving, order, flat = _series(primals, series)
    point = Point.of_inputs(fn, primals, moving, None, False)
    flat = tuple(_compat.plain_tensor(one) for one in flat)
    return Evaluation(
        point,
        Program("jet", _jet(order), (order,)),
        flat,
        run=_refusing(point, lambda: Program("jet", _jet(order), (order,)).run(point, flat)),
        recorded=True,
    )


def _refusing(point: Point, run: Callable[[], Any]) -> Callable[[], Any]:
    """The run of a forward pass, which nothing stands in for."""

    def alone() -> Any:
        _check_free(point)
        with passes.alone():
            return run()

    return alone


def _check_free(point: Point) -> None:
    try:
        passes.check_free(point)
    except MissingRuleError as err:
        raise MissingRuleError(
            str(err)
            .replace("forward rule", "Taylor rule")
            .replace("Use mode='reverse'", "Nest gradients (mindspore.grad)")
        ) from None


def _series(primals: Any, series: Any) -> tuple[tuple[int, ...], int, tuple[Tensor, ...]]:
    """The numbers of the primals that move, the order, and the Tensors one after another;
    checked.
    """
    inputs = as_args(primals, "primals")
    if not isinstance(series, tuple | list):
        raise TypeError(
            f"series must be a tuple of Tensors for each primal, but got {type(series).__name__}"
        )
    many = (series,) if isinstance(primals, Tensor) else series
    if len(many) != len(inputs):
        raise ValueError(
            f"series must hold a tuple of Tensors (or None) for each of the {len(inputs)} primals, "
            f"but holds {len(many)}"
        )
    moving = tuple(number for number, own in enumerate(many) if own is not None)
    if not moving:
        raise ValueError("series is None for every primal, so that nothing moves")
    for number in moving:
        _check_series(number, inputs[number], many[number])
    orders = {number: len(many[number]) for number in moving}
    if len(set(orders.values())) > 1:
        raise ValueError(
            "series must hold as many Tensors for each primal, but holds "
            f"{', '.join(f'{count} for primals[{number}]' for number, count in orders.items())}"
        )
    return moving, orders[moving[0]], tuple(one for number in moving for one in many[number])


def _check_series(number: int, primal: Any, own: Any) -> None:
    if not isinstance(own, tuple | list):
        raise TypeError(
            f"series[{number}] must be a tuple of Tensors, the derivatives of primals[{number}], "
            f"or None, but got {type(own).__name__}"
            + (
                ": for one primal in a tuple, series is a tuple, too, of one tuple"
                if isinstance(own, Tensor)
                else ""
            )
        )
    if not own:
        raise ValueError(
            f"series[{number}] is empty: it holds the derivatives of orders 1, 2, ... of "
            f"primals[{number}]"
        )
    if not isinstance(primal, Tensor) or primal.dtype not in FLOATS:
        got = primal.dtype if isinstance(primal, Tensor) else type(primal).__name__
        raise TypeError(
            f"primals[{number}] must be a Tensor of floating-point numbers to move, but is {got}. "
            "Pass None in the place of its series"
        )
    if primal.size == 0:
        raise ValueError(f"primals[{number}] is empty: shape {tuple(primal.shape)}")
    for place, one in enumerate(own):
        if not isinstance(one, Tensor):
            raise TypeError(
                f"series[{number}][{place}] must be a Tensor, but got {type(one).__name__}"
            )
        if one.shape != primal.shape or one.dtype != primal.dtype:
            raise ValueError(
                f"series[{number}][{place}] must be like primals[{number}], {tuple(primal.shape)} "
                f"of {primal.dtype}, but is {tuple(one.shape)} of {one.dtype}"
            )


# --- derivative -----------------------------------------------------------------------------------


@ops.constexpr
def _entries(shape, out):
    """The shape of the entries, as the output has them in front; raises where it does not."""
    entries = tuple(shape)
    while entries and entries[-1] == 1:
        entries = entries[:-1]
    if tuple(out[: len(entries)]) != entries:
        raise ValueError(
            f"derivative needs a function that is applied to each entry: for {tuple(shape)} "
            f"numbers, the shape of its output must begin with {entries}, but is {tuple(out)}. For "
            "other functions there are jet, jacobian and hessian."
        )
    return entries


def _along(function: Function, space: Space, order: int) -> Callable:
    """``c(xs, d)``: the Taylor coefficients along the line x + t d, for one differentiated input or
    a tuple of them.
    """
    pushed, place = (
        passes.push(function.value, space.positions, None, True, ends=True),
        space.positions[0],
    )

    def coefficients(xs, d):
        x = xs[place]
        rows = ops.expand_dims(d, 0)
        if order > 1:
            rows = _CONCAT((rows, _BROADCAST((order - 1,) + x.shape)(ops.zeros_like(rows))))
        out = pushed(xs, (rows,))
        if isinstance(out[0], tuple):
            raise TypeError(
                "derivative needs a function that returns one Tensor, but it returned a tuple"
            )
        _entries(x.shape, out[1].shape[1:])
        return out[1]

    return coefficients


def _last(c, order):
    return _RESHAPE(_derivatives(c, order)[order - 1 :], c.shape[1:])


def _inside(order: int) -> Builder:
    def build(function: Function, space: Space) -> Callable:
        coefficients, place = _along(function, space, order), space.positions[0]

        def run(*xs):
            return _last(coefficients(xs, ops.ones_like(xs[place])), order)

        return run

    return build


def _outside(order: int) -> Builder:
    """(the derivative, all coefficients) along the direction that comes last."""

    def build(function: Function, space: Space) -> Callable:
        coefficients, n = _along(function, space, order), function.n

        def run(*tensors):
            c = coefficients(tensors[:n], tensors[n])
            return _last(c, order), c

        return run

    return build


@makes
def derivative(fn: Any, order: int, argnum: int = 0) -> Callable:
    r"""The n-th derivative :math:`u^{(n)}(x)` of a function that is applied to each entry of a
    batch of numbers.

    For ODEs and PINNs: the fourth derivative of a beam's deflection at many points, say. One
    forward pass with Taylor coefficients, whose cost grows with the square of `order`. The
    derivative can be differentiated by the weights, inside ``mindspore.grad`` and training steps.
    Tested to order 10.

    Entry i of the input must have a part only in entry i of the output (and what follows it there):
    the shape of the output begins with that of the input, trailing axes of length 1 aside. So a
    network of points (N, 1) may return (N, 1) or (N, 3). A function that mixes its entries (a mean
    over the batch, a softmax, a batch norm) is refused at the first call, where the entries are
    moved in two directions at random, and a result does not fit; inside your own graph only the
    shapes are checked.

    Args:
        fn: any callable that returns a Tensor.
        order: n, at least 1.
        argnum: the argument whose entries are moved.

    Returns:
        ``d_fn(*args)``, shaped like the output of `fn`.

    Raises:
        TypeError, NotCompilableError: as `hessian`.
        ValueError: `order` or `argnum` is out of range, or the entries are seen to be mixed.
        MissingRuleError: a primitive has no Taylor rule.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 13.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import derivative
        >>> print(derivative(lambda x: x ** 4, 3)(ms.Tensor([1.0, 2.0, 3.0])))
        [24. 48. 72.]
    """
    check_callable("fn", fn)
    for name, value in (("order", order), ("argnum", argnum)):
        if not is_integer(value):
            raise TypeError(f"{name} must be an int, but got {shown(value)}")
    if order < 1:
        raise ValueError(f"order must be at least 1, but got {order}")
    order, argnum = int(order), int(argnum)

    def evaluate(args: tuple, kwargs: dict) -> Evaluation:
        point = Point.of(fn, args, kwargs, argnum, None, False)
        program = Program("derivative", _outside(order), ("outside", order))

        def run() -> tuple[Any, Any]:
            return _checked(program, point, order)

        return Evaluation(
            point,
            Program("derivative", _inside(order), ("inside", order)),
            run=_refusing(point, run),
            recorded=True,
        )

    return derived("d_fn", fn, evaluate)


_seen = passes.Remembered()  # calls whose entries were found apart: what they captured


def _checked(program: Program, point: Point, order: int) -> tuple[Any, Any]:
    """The derivative; at the first call of a function, its entries are checked to be apart."""
    shape, dtype = point.space.shapes[0], point.space.dtypes[0]
    (value, found), _ = program.run(point, (to_tensor(np.ones(shape), dtype),))
    key = passes.known_as(point, ("derivative", order), by_value=True)
    if key not in _seen:
        if point.space.size > 1:
            signs = _signs(shape)
            (_, other), _ = program.run(point, (to_tensor(signs, dtype),))
            _check_apart(signs, _compat.to_numpy(found), _compat.to_numpy(other))
        _seen.note(key, point.call.captures(by_value=True))
    return value, None


def _signs(shape: tuple[int, ...]) -> np.ndarray:
    """1 and -1 at random, both of them."""
    signs = np.random.RandomState(0).choice([-1.0, 1.0], size=shape)
    signs.flat[0], signs.flat[-1] = 1.0, -1.0
    return signs


def _check_apart(signs: np.ndarray, found: np.ndarray, other: np.ndarray) -> None:
    """Where entries are apart, moving one backwards changes the sign of its odd coefficients, and
    no other.
    """
    entries = signs.reshape(signs.shape[: signs.ndim])
    while entries.ndim and entries.shape[-1] == 1:
        entries = entries[..., 0]
    entries = entries.reshape(entries.shape + (1,) * (found.ndim - 1 - entries.ndim))
    tolerance = 1e-9 if found.dtype == np.float64 else 1e-4 if found.dtype == np.float32 else 1e-2
    for k, (one, two) in enumerate(zip(found, other, strict=True), 1):
        with np.errstate(invalid="ignore"):  # of what is infinite
            gap = np.abs(one - two * entries**k)
        if np.nanmax(gap, initial=0.0) > tolerance * np.nanmax(np.abs(one), initial=0.0):
            raise ValueError(
                "derivative needs a function that is applied to each entry, but an entry of the "
                "output depends on several entries of the input (seen in the derivative of order "
                f"{k}: moving half of the entries backwards changed it by more than its sign). "
                "Give it a function that treats the entries apart (a batch norm: "
                "set_train(False)), or use jet, jacobian or hessian."
            )
