"""A MindSpore function as scipy's optimisers take one: numpy in, numpy out, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import scipy.sparse as sp
from mindspore import Tensor

from mindspore_hessian._errors import HessianError
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import as_reals, check_bool, shown
from mindspore_hessian.optim._vector import FLOATS, Inputs, Weights
from mindspore_hessian.transforms.hessian import hessian
from mindspore_hessian.transforms.jacobian import jacobian
from mindspore_hessian.transforms.products import hvp


def with_value(fn: Callable) -> Callable:
    """The function with its value beside it, so that one pass gives value and derivative."""

    def both(*xs):
        value = fn(*xs)
        return value, value

    return both


def unknowns(x0: Any, weights: Any, args: Any, dtype: Any) -> Inputs | Weights:
    """What is optimised; every argument that says so is checked here."""
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of further arguments of fn, but got {shown(args)}")
    if weights is None:
        if dtype not in FLOATS:
            raise ValueError(
                f"dtype must be mindspore.float64, float32 or float16, but got {shown(dtype)}"
            )
        return Inputs(x0, args, dtype)
    given = () if x0 is None else x0 if isinstance(x0, tuple) else (x0,)
    if not all(isinstance(value, Tensor) for value in given):
        raise TypeError(
            "x0, with weights, is None or the constant inputs of fn, as Tensors, but got "
            f"{shown(x0)}"
        )
    return Weights(weights, (*given, *args))


class ScipyProblem:
    r"""A scalar function with its derivatives as scipy takes them, for those who call
    ``scipy.optimize`` themselves.

    ``fun(x)``, ``jac(x)``, ``hess(x)`` and ``hessp(x, p)`` take and return numpy arrays, flat and
    float64; value and gradient come from one pass, and each is computed once for the same x. `hess`
    is dense, :math:`(n, n)`, or a ``csr_array`` with `sparse`; `hessp` costs about two gradients,
    and with `sparse` a product with the matrix.

    Args:
        fn: a function of Tensors that returns one number.
        x0: where the search starts: a Tensor, or a tuple of Tensors. With `weights`: None, or the
            constant inputs.
        sparse: the Hessian has few entries in a row; see `hessian`.
        weights: Parameters that `fn` reads, to be optimised in the place of its inputs. A call puts
            its point into them.
        args: further arguments of `fn`, constants.
        dtype: of the Tensors that `fn` is called with. Weights keep the dtype that they have.

    Attributes:
        x0 (numpy.ndarray): the start, flat.

    Raises:
        TypeError, ValueError: a wrong argument; x0 with other than Tensors of floating point.
        NotCompilableError, MissingRuleError: at the first evaluation, as `hessian`.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        J. Nocedal and S. Wright, Numerical Optimization, 2nd ed., Springer 2006, chapters 4 and 7.

    Examples:
        >>> import mindspore as ms, scipy.optimize
        >>> from mindspore_hessian.optim import ScipyProblem
        >>> problem = ScipyProblem(lambda x: ((x - 3.0) ** 4).sum() + (x * x).sum(), ms.Tensor([0.0, 1.0]))
        >>> found = scipy.optimize.minimize(problem.fun, problem.x0, jac=problem.jac, hess=problem.hess,
        ...                                 method="trust-exact")
        >>> print(problem.like(found.x).asnumpy().round(4))
        [2. 2.]
    """

    def __init__(
        self,
        fn: Any,
        x0: Any = None,
        *,
        sparse: bool = False,
        weights: Any = None,
        args: tuple = (),
        dtype: Any = ms.float64,
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, but got {shown(fn)}")
        check_bool("sparse", sparse)
        self.fn, self.sparse = fn, sparse
        self.unknowns = unknowns(x0, weights, args, dtype)
        self.x0, self.n = self.unknowns.start, len(self.unknowns.start)
        positions = self.unknowns.positions
        self._first = jacobian(with_value(fn), has_aux=True, **positions)
        self._second = hessian(fn, sparse=sparse, **positions)
        self._seen: dict[bytes, tuple[float, np.ndarray]] = {}
        self._matrix: tuple[bytes, Any] = (b"", None)

    def fun(self, x: Any) -> float:
        """The value at a point."""
        return self._value_and_gradient(x)[0]

    def jac(self, x: Any) -> np.ndarray:
        """The gradient at a point, of shape (n,)."""
        return self._value_and_gradient(x)[1].copy()

    def hess(self, x: Any) -> Any:
        """The Hessian at a point, of shape (n, n): an array, or a ``csr_array`` with `sparse`."""
        x = self._vector("x", x)
        if self._matrix[0] != x.tobytes():
            self._matrix = (x.tobytes(), self._hessian(x))
        return self._matrix[1].copy()

    @interruptible
    def hessp(self, x: Any, p: Any) -> np.ndarray:
        """The Hessian at x times p, of shape (n,)."""
        x, p = self._vector("x", x), self._vector("p", p)
        if not np.isfinite(p).all():  # scipy's trust-krylov asks that where the gradient is zero
            return np.full(self.n, np.nan)
        if self.sparse:
            return self.hess(x) @ p
        product = hvp(
            self.fn, self.unknowns.call(x), self.unknowns.tensors(p), **self.unknowns.positions
        )
        return self._flat(product)

    def like(self, x: Any) -> Any:
        """A flat vector as Tensors: shaped like x0, in its dtypes; or like the weights."""
        return self.unknowns.like(self._vector("x", x))

    @interruptible
    def _value_and_gradient(self, x: Any) -> tuple[float, np.ndarray]:
        x = self._vector("x", x)
        key = x.tobytes()
        if key not in self._seen:
            gradient, value = self._first(*self.unknowns.call(x))
            if value.size != 1:
                raise ValueError(
                    f"fn must return one number, but its value has shape {tuple(value.shape)}"
                )
            while len(self._seen) > 1:  # a trial, and the point that it is compared with
                self._seen.pop(next(iter(self._seen)))
            self._seen[key] = (as_reals("fn", value).item(), self._flat(gradient))
        return self._seen[key]

    def _vector(self, name: str, value: Any) -> np.ndarray:
        """A flat vector in float64. It may hold NaN: scipy tries such points, and turns away by the
        value there.
        """
        vector = as_reals(name, value)
        if vector.shape != (self.n,):
            raise ValueError(
                f"{name} must be a flat array of shape ({self.n},), but has shape {vector.shape}"
            )
        return vector

    def _hessian(self, x: np.ndarray) -> Any:
        return self.matrix(self._second(*self.unknowns.call(x)))

    def matrix(self, found: Any) -> Any:
        """The blocks that `hessian` returns, as one matrix in float64."""
        if self.sparse:
            return sp.csr_array(found.astype(np.float64))
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.unknowns.shapes]
        return np.block(
            [
                [as_reals("fn", block).reshape(m, n) for block, n in zip(row, sizes, strict=True)]
                for row, m in zip(found, sizes, strict=True)
            ]
        )

    @staticmethod
    def _flat(parts: Any) -> np.ndarray:
        return np.concatenate([as_reals("fn", part).reshape(-1) for part in parts])

    def compiled(self, kind: str) -> None:
        """Everything that a method of this kind will ask for, once at the start: a refusal comes
        here.

        Raises:
            NotCompilableError, MissingRuleError, TypeError, ValueError: as `hessian`; where float64
                was not the dtype of x0, it is named.
        """
        try:
            self.fun(self.x0)
            {
                "gradient": self.fun,
                "dense": self.hess,
                "sparse": self.hess,
                "product": lambda x: self.hessp(x, np.ones(self.n)),
            }["sparse" if self.sparse else kind](self.x0)
        except (HessianError, TypeError) as err:
            used, given = self.unknowns.dtypes, self.unknowns.kinds
            if used == given:
                raise
            raise type(err)(
                f"{err} (fn was called with Tensors of {used[0]}, though x0 has {given[0]}: with "
                f"dtype=mindspore.{str(given[0]).lower()} it is called with those)"
            ) from err
