"""Functions of operators: exact where the operator has structure, else estimated from its products,
with an error.

The estimators ask the operator themselves, `op.structured`, so that there is one function for both.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np

from mindspore_hessian.arguments import check_bool, check_integer, check_real, shown
from mindspore_hessian.estimators import diagonal, frobenius_norm, logdet, solve, trace
from mindspore_hessian.estimators.results import Solution
from mindspore_hessian.estimators.solve import check_preconditioner
from mindspore_hessian.linops.nystrom import nystrom
from mindspore_hessian.linops.operator import Composed, Operator

__all__ = ["diagonal", "frobenius_norm", "inverse", "logdet", "solve", "trace"]


class Inverse(Composed):
    """(A + d I)^-1 by solving systems, several columns together."""

    def __init__(
        self,
        op: Operator,
        damping: float,
        tol: float,
        max_products: int,
        preconditioner: Any,
        rank: int,
    ):
        super().__init__(op)
        self.damping, self.tol, self.max_products = damping, tol, max_products
        self.positive = op.positive and damping >= 0
        self._asked, self._rank = preconditioner, min(rank, op.shape[0])

    @cached_property
    def preconditioner(self) -> Any:
        """That of all systems; "nystrom" is made once."""
        if not isinstance(self._asked, str):
            return self._asked
        return inverse(nystrom(self.parts[0], self._rank, progress=False), self.damping)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        if self.positive or matrix.shape[1] > 1:  # all of them together
            found = self._solved(matrix, "cg")
            if found.stopped_by != "negative curvature":
                return self._checked(found, "cg")
        each = [self._checked(self._solved(one, "minres"), "minres") for one in matrix.T]
        return np.stack(each, axis=1)

    def _solved(self, b: np.ndarray, method: Literal["cg", "minres"]) -> Solution:
        return solve(
            self.parts[0],
            b,
            self.damping,
            method,
            self.tol,
            self.max_products * (b.size // len(b)),
            progress=False,
            preconditioner=self.preconditioner,
        )

    def _checked(self, found: Solution, method: str) -> np.ndarray:
        if not found.converged:
            raise ValueError(
                f"a system of inverse() was not solved: {method} stopped by "
                f"{found.stopped_by} after {found.num_products} products at a relative residual of "
                f"{found.residual:.2g}, above tol={self.tol:g}. Pass a larger damping, tol or "
                "max_products"
            )
        return found.x


def inverse(
    op: Any,
    damping: float,
    *,
    heuristic: bool = False,
    tol: float = 1e-6,
    max_products: int = 1000,
    preconditioner: Any = None,
    rank: int = 50,
) -> Operator:
    r"""The operator :math:`(A + d I)^{-1}`.

    Exact, and with structure of its own, for an operator with structure: see `Diagonal`,
    `BlockDiagonal`, `Kronecker` and `LowRank` of `mindspore_hessian.linops`. Its products then cost
    about what those of A do. For any other operator a product solves systems with `solve`, by
    conjugate gradients for all columns together; where these meet a direction of negative curvature,
    and for a single column of an A that is not known to be positive, by MINRES for one after
    another. An error is raised where one does not converge: there is no inverse in part.

    Args:
        op: a symmetric `Operator`.
        damping: d, any finite number. It is added to A as it is, once.
        heuristic: split the damping over the factors of Kronecker products, as Martens and Grosse
            do: an approximation whose factors are inverted apart. Only for an operator with
            structure.
        tol: of `solve`, where it is used.
        max_products: of `solve` for each column, where it is used; at least 2.
        preconditioner, rank: of `solve`, where it is used; "nystrom" is made once, for all products
            with the inverse, and needs a damping greater than 0.

    Returns:
        Operator of the same shape and dtype.

    Raises:
        TypeError: `op` is no Operator, or an argument has a wrong type.
        ValueError: an argument out of its range, an operator that is not symmetric, a singular A +
            d I; in a product: a system that is not solved to `tol`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature, ICML 2015. M. Woodbury, Inverting modified matrices, Princeton 1950.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.linops import Kronecker, inverse
        >>> op = Kronecker(np.diag([1.0, 3.0]), np.eye(2))
        >>> print(inverse(op, damping=1.0) @ np.ones(4))
        [0.5  0.5  0.25 0.25]
    """
    if not isinstance(op, Operator) or 0 in op.shape:
        raise TypeError(
            f"op must be an Operator (a HessianOperator, a Kronecker), but got {shown(op)}. Of a "
            "matrix, linops.Kronecker(matrix) is one"
        )
    check_real("damping", damping, -np.inf)
    check_bool("heuristic", heuristic)
    check_real("tol", tol)
    check_integer("max_products", max_products, 2)
    if preconditioner is not None:
        check_preconditioner(preconditioner, rank, op.shape[0])
    if not op.symmetric:
        raise ValueError(
            f"op must be symmetric, but {op!r} is not known to be. Where it is, say so: "
            "op.symmetric = True"
        )
    if op.structured:
        if preconditioner is not None:
            raise ValueError(
                f"preconditioner is for systems that are solved, but {op!r} has structure and is "
                "inverted exactly: leave it out"
            )
        return op.inverse(damping, heuristic=heuristic)  # type: ignore[attr-defined]
    if heuristic:
        raise ValueError(
            f"heuristic=True splits the damping of Kronecker products, but {op!r} has no "
            "structure: leave it out"
        )
    if isinstance(preconditioner, str) and damping <= 0:
        raise ValueError(
            f"preconditioner={preconditioner!r} needs a damping greater than 0, but damping is "
            f"{damping:g}"
        )
    return Inverse(op, float(damping), tol, max_products, preconditioner, rank)
