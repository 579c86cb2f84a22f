"""The two public checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.core.program import Point
from mindspore_hessian.core.space import FIRST, as_args
from mindspore_hessian.testing._measure import Settings, Subject, measure
from mindspore_hessian.testing._point import Vicinity, cast, name_of, random_directions
from mindspore_hessian.testing._report import HessianReport, HvpReport
from mindspore_hessian.transforms.hessian import MODES, hessian
from mindspore_hessian.transforms.products import HVP_MODES, hvp


@interruptible
def check_hvp(
    fn: Any,
    inputs: Any,
    vectors: Any = None,
    grad_position: Any = None,
    *,
    weights: Any = None,
    modes: str | Sequence[str] = ("auto", "revrev", "fwdrev"),
    rtol: float | None = None,
    atol: float | None = None,
    order: float = 2.5,
    step: float = 0.125,
    directions: int = 2,
    seed: int = 0,
    raise_exception: bool = True,
) -> HvpReport:
    r"""Check that `hvp` is right for a scalar function at a point.

    With random directions u, v and g the compiled first gradient:

    - finite: f, g and H v are finite, and H v also in the dtype of the inputs;
    - repeatable: a second run gives the same numbers;
    - modes: all `modes` agree;
    - symmetry: :math:`u^T (H v) = v^T (H u)`;
    - differences: :math:`(g(x + tv) - g(x - tv)) / 2t \to H v`;
    - taylor: :math:`|f(x \pm tv) - f(x) \mp t\, g^T v - \tfrac{t^2}{2} v^T H v|` falls like :math:`t^3`: like
      :math:`t^2` where H is wrong, like t where g is wrong or the function has a kink;
    - dtype: H v in the dtype of the inputs agrees with the one in float64.

    Derivatives are compared in float64, to which the inputs are cast; where that is not possible (a
    kernel lacks float64, a network has float32 weights), in a lower precision with a larger
    tolerance, and a note says so. `weights` are moved in place and always put back bit by bit.
    Errors are relative to the size of each variable. Costs about 20 gradients and a few products a
    direction, after about five compilations.

    In a lower precision a remainder that is small enough to prove g right passes "taylor" whatever
    its order, which rounding and kinks beside the point hide there.

    Args:
        fn, inputs, grad_position, weights: as in `hvp`.
        vectors: a direction to test beside the random ones, as in `hvp`; its length does not
            matter.
        modes: modes of `hvp`, one or several; the first must give a result, others may be refused
            (a note).
        rtol: relative tolerance; by default 1e-5 in float64, 1e-2 in float32, 0.1 in float16, 0.2
            in bfloat16.
        atol: absolute tolerance, in units of f; by default a few roundings of f and of its
            gradient.
        order: least order of the Taylor remainder.
        step: largest step, in units of the root mean square of each variable (of 1 where that is
            0).
        directions: how many directions, two or more.
        seed: of the random directions.
        raise_exception: raise at a failed check; otherwise only report it.

    Returns:
        An `HvpReport`.

    Raises:
        AssertionError: a check failed; the message names it, what was expected and found, and the
            usual cause.
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hvp`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008; the Taylor test of
        P. Farrell, D. Ham, S. Funke and M. Rognes, Automated derivation of the adjoint of
        high-level transient finite element programs, SIAM J. Sci. Comput. 35(4), 2013.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian.testing import check_hvp
        >>> check_hvp(lambda x: (x ** 3).sum(), ms.Tensor([1.0, 2.0])).ok
        True
    """
    settings = Settings.of(
        modes, HVP_MODES, directions, rtol, atol, order, step, seed, raise_exception
    )
    one = isinstance(inputs, Tensor)

    def point(dtype: Any) -> Vicinity:
        args = cast(as_args(inputs), dtype)
        at = Point.of(fn, args, {}, grad_position, weights, False, one)
        given = vectors if dtype is None else cast(vectors, dtype)
        return Vicinity(at, args, random_directions(at, given, directions, seed), scalar=True)

    def second(at: Vicinity, mode: Any) -> np.ndarray:
        args = at.args[0] if one else at.args
        return np.stack(
            [
                at.scaled(hvp(fn, args, at.vectors(v), grad_position, weights=weights, mode=mode))
                for v in at.directions
            ]
        )

    subject = Subject(
        point,
        second,
        products=lambda at, found: found,
        square=lambda at, found: at.directions @ found.T,
        unit=lambda at: at.size,
        square_unit=lambda at: 1.0,
    )
    return measure(HvpReport, name_of(fn), subject, settings, raise_exception)


@interruptible
def check_hessian(
    fn: Any,
    inputs: Any,
    grad_position: Any = FIRST,
    *,
    weights: Any = None,
    modes: str | Sequence[str] = MODES,
    rtol: float | None = None,
    atol: float | None = None,
    order: float = 2.5,
    step: float = 0.125,
    directions: int = 2,
    seed: int = 0,
    raise_exception: bool = True,
) -> HessianReport:
    r"""Check that `hessian` is right for a function at a point.

    The checks of `check_hvp`, on the matrix: all `modes` agree in every entry, :math:`H = H^T`, and
    for random directions v the differences of the gradient and the Taylor remainder agree with H v.
    A function with several outputs is contracted with one random u for the last two:
    :math:`F = u^T f`.

    Costs a Hessian for each of the modes, and about 20 gradients a direction.

    Args:
        fn, grad_position, weights: as in `hessian`.
        inputs: the arguments of `fn`: one Tensor, or a tuple.
        modes: modes of `hessian`, one or several; the first must give a result, others may be
            refused (a note).
        rtol, atol, order, step, directions, seed, raise_exception: as in `check_hvp`.

    Returns:
        A `HessianReport`.

    Raises:
        AssertionError: a check failed; the message names it, what was expected and found, and the
            usual cause.
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        As `check_hvp`.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian.testing import check_hessian
        >>> report = check_hessian(lambda x: (x ** 3).sum(), ms.Tensor([1.0, 2.0]), modes="auto")
        >>> report.ok, report.dtype, round(report.order)
        (True, 'Float64', 3)
    """
    settings = Settings.of(modes, MODES, directions, rtol, atol, order, step, seed, raise_exception)

    def point(dtype: Any) -> Vicinity:
        args = cast(as_args(inputs), dtype)
        at = Point.of(fn, args, {}, grad_position, weights, False)
        return Vicinity(at, args, random_directions(at, None, directions, seed), scalar=False)

    def second(at: Vicinity, mode: Any) -> np.ndarray:
        return at.matrix(hessian(fn, grad_position, weights=weights, mode=mode)(*at.args))

    def units(at: Vicinity) -> np.ndarray:
        return at.size * at.size[:, None]

    subject = Subject(
        point,
        second,
        products=lambda at, found: at.directions @ np.tensordot(at.contraction, found, 1).T,
        square=lambda at, found: found,
        unit=units,
        square_unit=units,
    )
    return measure(HessianReport, name_of(fn), subject, settings, raise_exception)
