"""scipy.optimize.minimize for functions of Tensors, with exact second derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
import scipy.optimize
from mindspore import Tensor
from scipy.optimize import (
    Bounds,
    LinearConstraint,
    NonlinearConstraint,
    OptimizeResult,
    OptimizeWarning,
)

from mindspore_hessian._progress import bar
from mindspore_hessian.arguments import (
    as_reals,
    check_bool,
    check_choice,
    check_progress,
    check_real,
    shown,
)
from mindspore_hessian.optim._vector import Inputs
from mindspore_hessian.optim.scipy_problem import ScipyProblem, with_value
from mindspore_hessian.transforms.hessian import hessian
from mindspore_hessian.transforms.jacobian import jacobian


class _Method(NamedTuple):
    """What scipy calls it, what it asks of the Hessian, and what else it takes."""

    name: str
    asks: str
    bounds: bool = False
    constraints: bool = False


_TABLE = (
    _Method("trust-ncg", "product"),
    _Method("trust-krylov", "product"),
    _Method("Newton-CG", "product"),
    _Method("trust-exact", "dense"),
    _Method("dogleg", "dense"),
    _Method("trust-constr", "product", True, True),
    _Method("BFGS", "gradient"),
    _Method("L-BFGS-B", "gradient", True),
    _Method("CG", "gradient"),
    _Method("TNC", "gradient", True),
    _Method("SLSQP", "gradient", True, True),
)
METHODS = {method.name.lower(): method for method in _TABLE}
_STOPPED = 99  # scipy's status where a callback ended the search


class _Stop(Exception):
    """The callback said so."""


def minimize(
    fn: Any,
    x0: Any = None,
    method: str = "trust-ncg",
    sparse: bool = False,
    *,
    weights: Any = None,
    args: tuple = (),
    bounds: Any = None,
    constraints: Any = (),
    tol: float | None = None,
    callback: Callable | None = None,
    progress: bool | None = None,
    dtype: Any = ms.float64,
    **options: Any,
) -> OptimizeResult:
    r"""A local minimum of a scalar function of Tensors by ``scipy.optimize.minimize``, with exact
    derivatives.

    All is compiled, and run once at the start, before the first step: a function without a second
    derivative is refused then. Vectors are float64, value and gradient come from one pass. A step
    of the methods "trust-ncg", "trust-krylov", "Newton-CG" and "trust-constr" costs a gradient and
    some Hessian products (two gradients each); "trust-exact" and "dogleg" take the dense matrix;
    with `sparse` products are made with a sparse matrix that is computed once a point. "BFGS",
    "L-BFGS-B", "CG", "TNC" and "SLSQP" take gradients only.

    Args:
        fn: a function of Tensors that returns one number.
        x0: where the search starts: a Tensor, or a tuple of Tensors, one for each argument. With
            `weights`: None, or the constant inputs of `fn`.
        method: the name of a method of scipy that takes gradients.
        sparse: the Hessian has few entries in a row; see `hessian`. Not for the methods that take
            dense matrices.
        weights: Parameters that `fn` reads, to be optimised in the place of its inputs. They hold
            the minimum then; after an error what they held before, after Ctrl-C the best point so
            far.
        args: further arguments of `fn`, constants.
        bounds: ``scipy.optimize.Bounds``, or a pair (low, high) for each of the n entries, None for
            no bound.
        constraints: for "trust-constr" and "SLSQP", one or a list of
            ``scipy.optimize.LinearConstraint`` (over the flat vector) and
            ``NonlinearConstraint(fun, lb, ub)``, where `fun` is a function of the same Tensors as
            `fn`, without `args`; its derivatives, the weighted Hessian too, are made here.
        tol: scipy's tolerance.
        callback: called after each step with an ``OptimizeResult`` of `x` (like x0), `fun` and
            `nit`; where it returns True the search ends there.
        progress: True shows a bar, None after two seconds, False never.
        dtype: of the Tensors that `fn` is called with. Weights keep the dtype that they have.
        options: scipy's options for the method, by their names: ``gtol=1e-8, maxiter=100``; or as a
            dict, `options`.

    Returns:
        scipy's ``OptimizeResult``: `x` like `x0` (or the weights) in structure and dtype; `fun`,
            `jac`, `nit`, `success`, `message` and the rest as scipy gives them, flat and in numpy.

    Raises:
        TypeError, ValueError: a wrong argument; an option or a constraint that the method does not
            take.
        NotCompilableError, MissingRuleError: as `hessian`.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        J. Nocedal and S. Wright, Numerical Optimization, 2nd ed., Springer 2006; A. Conn, N. Gould
        and Ph. Toint, Trust Region Methods, SIAM 2000.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore_hessian import optim
        >>> def rosenbrock(x):
        ...     return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()
        >>> found = optim.minimize(rosenbrock, ms.Tensor([-1.2, 1.0]), gtol=1e-8)
        >>> print(found.success, found.x)
        True [1. 1.]
    """
    how = _method(method)
    _check(how, sparse, bounds, constraints, tol, callback, progress)
    given = _options(options)
    problem = ScipyProblem(fn, x0, sparse=sparse, weights=weights, args=args, dtype=dtype)
    bounds = None if bounds is None else _bounds(bounds, problem.n)
    limits = [_constraint(one, problem, how) for one in _listed(constraints)]
    search = _Search(problem, how, callback)
    total = given.get("maxiter")
    try:
        problem.compiled(how.asks)
        with bar(how.name, int(total) if isinstance(total, int) else None, progress) as search.bar:
            result = search.run(bounds=bounds, constraints=limits, tol=tol, options=given)
    except BaseException as err:
        problem.unknowns.place(search.best if isinstance(err, KeyboardInterrupt) else problem.x0)
        raise
    problem.unknowns.place(result.x)
    result.x = problem.unknowns.like(result.x)
    return result


class _Search:
    """One run of a method: it keeps the best point, shows it, and ends where the callback says
    so.
    """

    def __init__(self, problem: ScipyProblem, how: _Method, callback: Callable | None):
        self.problem, self.how, self.callback, self.bar = problem, how, callback, None
        self.steps, self.best, self.lowest = 0, problem.x0, np.inf

    def run(self, **arguments: Any) -> OptimizeResult:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Unknown solver options", OptimizeWarning)
            try:
                return scipy.optimize.minimize(
                    self.problem.fun,
                    self.problem.x0,
                    jac=self.problem.jac,
                    method=self.how.name,
                    callback=self.watch,
                    **self.second(),
                    **arguments,
                )
            except _Stop:
                return self.so_far()
            except OptimizeWarning as err:
                raise ValueError(
                    f"method {self.how.name!r} does not take these options of scipy: "
                    f"{str(err).removeprefix('Unknown solver options: ')}"
                ) from err

    def second(self) -> dict[str, Callable]:
        """What scipy is given of the Hessian."""
        if self.how.name == "trust-constr" and self.problem.sparse:
            return {"hess": self.problem.hess}
        given: dict[str, dict] = {
            "gradient": {},
            "dense": {"hess": self.problem.hess},
            "product": {"hessp": self.problem.hessp},
        }
        return given[self.how.asks]

    def watch(self, x: np.ndarray, *state: Any) -> None:
        self.steps += 1
        value = self.problem.fun(x)
        if value < self.lowest:
            self.best, self.lowest = np.array(x), value
        self.bar.update(1)  # type: ignore[attr-defined]
        self.bar.set_postfix(fun=f"{value:.4g}", refresh=False)  # type: ignore[attr-defined]
        if (
            self.callback is not None
            and self.callback(OptimizeResult(x=self.problem.like(x), fun=value, nit=self.steps))
            is True
        ):
            self.best = np.array(x)
            raise _Stop

    def so_far(self) -> OptimizeResult:
        x = self.best
        return OptimizeResult(
            x=x,
            fun=self.problem.fun(x),
            jac=self.problem.jac(x),
            nit=self.steps,
            success=False,
            status=_STOPPED,
            message="The callback ended the search.",
        )


# --- arguments ------------------------------------------------------------------------------------


def _method(method: Any) -> _Method:
    check_choice(
        "method",
        method.lower() if isinstance(method, str) else method,
        [*METHODS, *(one.name for one in _TABLE)],
    )
    return METHODS[method.lower()]


def _check(
    how: _Method, sparse: Any, bounds: Any, constraints: Any, tol: Any, callback: Any, progress: Any
) -> None:
    check_bool("sparse", sparse)
    check_progress(progress)
    if sparse and how.asks != "product":
        raise ValueError(
            f"sparse=True goes with {_those(lambda m: m.asks == 'product')}, but method is "
            f"{how.name!r}, which takes "
            f"{'a dense matrix' if how.asks == 'dense' else 'gradients only'}"
        )
    if bounds is not None and not how.bounds:
        raise ValueError(f"bounds go with {_those(lambda m: m.bounds)}, but method is {how.name!r}")
    if _listed(constraints) and not how.constraints:
        raise ValueError(
            f"constraints go with {_those(lambda m: m.constraints)}, but method is {how.name!r}"
        )
    if tol is not None:
        check_real("tol", tol)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable or None, but got {shown(callback)}")


def _those(keep: Callable) -> str:
    return ", ".join(repr(one.name) for one in _TABLE if keep(one))


def _options(options: dict) -> dict:
    """Options by name, and those of scipy's dict among them."""
    more = options.pop("options", None) or {}
    if not isinstance(more, dict):
        raise TypeError(f"options must be a dict of scipy's options, but got {shown(more)}")
    return {**more, **options}


def _listed(constraints: Any) -> Sequence:
    return constraints if isinstance(constraints, tuple | list) else (constraints,)


def _bounds(bounds: Any, n: int) -> Bounds:
    if isinstance(bounds, Bounds):
        low, high = (
            np.broadcast_to(as_reals("bounds", side), n) for side in (bounds.lb, bounds.ub)
        )
        return Bounds(low, high, bounds.keep_feasible)
    pairs = list(bounds) if isinstance(bounds, tuple | list | np.ndarray) else []
    if len(pairs) != n or any(
        not isinstance(pair, tuple | list | np.ndarray) or len(pair) != 2 for pair in pairs
    ):
        raise ValueError(
            f"bounds must be scipy.optimize.Bounds, or a pair (low, high) for each of the {n} "
            f"entries, but got {shown(bounds)}"
        )
    ends = [
        [
            missing if end is None else end
            for end, missing in zip(pair, (-np.inf, np.inf), strict=True)
        ]
        for pair in pairs
    ]
    low, high = as_reals("bounds", ends).T
    return Bounds(low, high)


def _constraint(constraint: Any, problem: ScipyProblem, how: _Method) -> Any:
    """scipy's constraint, with derivatives of ours where it is a function."""
    if isinstance(constraint, LinearConstraint):
        return constraint
    if not isinstance(constraint, NonlinearConstraint):
        raise TypeError(
            "constraints must be scipy.optimize.NonlinearConstraint(fun, lb, ub) or "
            f"LinearConstraint, but got {shown(constraint)}"
        )
    if not callable(constraint.fun):
        raise TypeError(f"the constraint's fun must be callable, but got {shown(constraint.fun)}")
    if not isinstance(problem.unknowns, Inputs):
        raise ValueError(
            "constraints by functions go with x0, not with weights: write fn as a function of "
            "Tensors"
        )
    limit = _Limit(constraint.fun, problem)
    count, second = len(limit.fun(problem.x0)), {}
    if how.asks == "product":
        limit.hess(problem.x0, np.ones(count))  # a refusal comes here
        second = {"hess": limit.hess}
    return NonlinearConstraint(
        limit.fun,
        constraint.lb,
        constraint.ub,
        limit.jac,
        keep_feasible=constraint.keep_feasible,
        **second,
    )


class _Limit:
    """A function of the unknowns with several values, its Jacobian, and the Hessian of a weighted
    sum of them.
    """

    def __init__(self, fn: Callable, problem: ScipyProblem):
        self.problem, self.fn, positions = problem, fn, problem.unknowns.positions

        def weighted(*xs):
            return (fn(*xs[:-1]) * xs[-1]).sum()

        self.first = jacobian(with_value(fn), has_aux=True, **positions)
        self.second = hessian(weighted, sparse=problem.sparse, **positions)
        self.seen: tuple[bytes, np.ndarray, np.ndarray] = (b"", np.empty(0), np.empty(0))
        self.shape: tuple[int, ...] = ()

    def fun(self, x: np.ndarray) -> np.ndarray:
        return self._both(x)[0]

    def jac(self, x: np.ndarray) -> np.ndarray:
        return self._both(x)[1]

    def hess(self, x: np.ndarray, v: np.ndarray) -> Any:
        dtype = self.problem.unknowns.dtypes[0]
        weights = Tensor(np.asarray(v, np.float64).reshape(self.shape)).astype(dtype)
        return self.problem.matrix(self.second(*self.problem.unknowns.tensors(x), weights))

    def _both(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.seen[0] != x.tobytes():
            found, value = self.first(*self.problem.unknowns.tensors(x))
            self.shape, count = tuple(value.shape), value.size
            rows = np.concatenate(
                [as_reals("fun", part).reshape(count, -1) for part in found], axis=1
            )
            self.seen = (x.tobytes(), as_reals("fun", value).reshape(-1), rows)
        return self.seen[1], self.seen[2]
