"""Operators with structure: their trace, diagonal, log-determinant and inverse are known, rather
than estimated.

What they have in common is a spectral form that is cheap to find, A = Q diag(e) Q^T, in which a
function of the matrix is that function of its eigenvalues. It is computed in float64 whatever the
dtype.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, reduce
from typing import Any

import numpy as np
import scipy.linalg
from threadpoolctl import threadpool_limits

from mindspore_hessian.arguments import as_array, check_real
from mindspore_hessian.linops.operator import Operator

Function = Callable[[Any], Any]  # of eigenvalues, by entries
_ROUNDINGS = 10  # eigenvalues within so many rounding units of the largest are not told from 0


class Structured(Operator):
    r"""The base of `Diagonal`, `BlockDiagonal`, `Kronecker`, `LowRank` and `Spectral`.

    Sums with multiples of the identity and multiples by numbers have the structure too. Functions
    such as `mindspore_hessian.trace` ask the operator instead of estimating. All but products,
    `trace` and `diagonal` need a symmetric matrix. Eigenvalues are those of the matrix as it is
    held; one that is negative, or too small for float64, within ten rounding units of the largest
    of its factor counts as 0.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """

    structured = True

    def eigenvalues(self) -> np.ndarray:
        """All n of them, float64, in an order of the operator's own.

        Raises:
            ValueError: the matrix is not symmetric.
        """
        raise NotImplementedError

    def diagonal(self) -> np.ndarray:
        """The diagonal, (n,), float64."""
        raise NotImplementedError

    def funm(self, f: Function) -> Structured:
        r"""The operator with the same eigenvectors and f(e) for each eigenvalue e,
        :math:`Q\, diag(f(e))\, Q^T`.

        ``op.funm(np.sqrt)`` is a square root, by which white noise becomes noise of covariance A.

        Args:
            f: a function of an array, by entries, or of a number.

        Raises:
            ValueError: the matrix is not symmetric; f gives NaN or Inf for an eigenvalue.
        """
        raise NotImplementedError

    @cached_property
    def positive(self) -> bool:
        """Whether no eigenvalue is negative."""
        return self.symmetric and bool(self.eigenvalues().min() >= 0)

    def definite(self, damping: float = 0.0) -> bool:
        """Whether all eigenvalues of A + d I are positive."""
        return bool(self.eigenvalues().min() + damping > _zero(damping))

    def trace(self) -> float:
        """The sum of the diagonal."""
        return float(self.diagonal().sum())

    def frobenius_norm(self) -> float:
        """The root of the sum of the squares of all entries."""
        return float(np.linalg.norm(self.eigenvalues()))

    def logdet(self, damping: float = 0.0) -> float:
        r""":math:`\log\det(A + d I)`.

        Raises:
            ValueError: A + d I is not positive definite.
        """
        check_real("damping", damping, -np.inf)
        eigenvalues = self.eigenvalues()
        if not self.definite(damping):
            raise ValueError(
                "op must be positive definite for logdet, but an eigenvalue is "
                f"{eigenvalues.min():.3g}: "
                f"pass a larger damping than {damping:g}"
            )
        return float(np.log(eigenvalues + damping).sum())

    def inverse(self, damping: float = 0.0, *, heuristic: bool = False) -> Structured:
        r""":math:`(A + d I)^{-1}`, with the structure of A.

        Args:
            damping: d, any finite number.
            heuristic: the damping of Kronecker products of two factors is split over the factors;
                see `Kronecker`.

        Raises:
            ValueError: A + d I is singular to working precision, or A is not symmetric.
        """
        check_real("damping", damping, -np.inf)
        if np.abs(self.eigenvalues() + damping).min() <= _zero(damping):
            raise ValueError(
                f"op with damping {damping:g} is singular to working precision, so it has no "
                "inverse: pass a larger damping"
            )
        return self.funm(lambda eigenvalues: 1 / (eigenvalues + damping))

    def scaled(self, factor: float) -> Structured:
        raise NotImplementedError

    def shifted(self, number: float) -> Structured:
        return Shifted(self, number)


class Diagonal(Structured):
    r"""A diagonal matrix, :math:`diag(v)`.

    Costs n multiplications a product; everything else is as cheap.

    Args:
        values: (n,), real and finite.
        dtype: of the results; None: that of `values`, float64 where that is none of floating
            numbers.

    Raises:
        TypeError, ValueError: `values` are no row of finite real numbers.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        P. Kidger, lineax, 2023: linear operators that know their structure.

    Examples:
        >>> from mindspore_hessian.linops import Diagonal, Identity
        >>> op = Diagonal([1.0, 3.0]) + 1.0 * Identity
        >>> print(op @ [1.0, 1.0], op.trace(), op.inverse() @ [1.0, 1.0])
        [2. 4.] 6.0 [0.5  0.25]
    """

    def __init__(self, values: Any, dtype: Any = None):
        self.values = _reals("values", values, 1)
        self.shape, self.dtype = (len(self.values),) * 2, np.dtype(dtype or self.values.dtype)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return self.values[:, None] * matrix

    def eigenvalues(self) -> np.ndarray:
        return self.values.astype(np.float64)

    diagonal = eigenvalues

    def funm(self, f: Function) -> Diagonal:
        return Diagonal(_values(f, self.eigenvalues()), self.dtype)

    def scaled(self, factor: float) -> Diagonal:
        return Diagonal(self.values * factor, self.dtype)

    def shifted(self, number: float) -> Diagonal:
        return Diagonal(self.values + number, self.dtype)

    def __add__(self, other: Any) -> Operator:
        if isinstance(other, Diagonal) and other.shape == self.shape:
            return Diagonal(self.values + other.values, np.result_type(self.dtype, other.dtype))
        return super().__add__(other)


class Spectral(Structured):
    r"""A matrix in its spectral form, :math:`Q\, diag(e)\, Q^T + r (I - Q Q^T)`.

    Q has orthonormal columns and is a Kronecker product: of one matrix, of the eigenvectors of both
    factors of a layer. What the columns do not span has the eigenvalue r.

    Costs two products with Q for a product (four where Q is not square), none for the rest.

    Args:
        basis: the factors of Q, matrices with orthonormal columns.
        eigenvalues: (k,), one for each column of Q.
        rest: r.
        dtype: of the results; None: that of the arrays.

    Raises:
        TypeError, ValueError: an argument is no array of finite real numbers, or of a wrong shape;
            columns of a factor are not orthonormal.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        T. George et al., Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis, NeurIPS 2018.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.linops import Spectral
        >>> op = Spectral([np.eye(2), np.eye(2)], [1.0, 2.0, 3.0, 4.0])
        >>> print(op @ np.ones(4), round(op.logdet(), 6) == round(np.log(24), 6))
        [1. 2. 3. 4.] True
    """

    def __init__(
        self, basis: Sequence[Any], eigenvalues: Any, rest: float = 0.0, dtype: Any = None
    ):
        self._set(basis, eigenvalues, rest, dtype)
        for number, one in enumerate(self.basis):
            if np.abs(one.T @ one - np.eye(one.shape[1])).max() > _eps(one.dtype) ** 0.5:
                raise ValueError(f"basis[{number}] must have orthonormal columns")

    @classmethod
    def of_eigenvectors(
        cls, basis: Sequence[Any], eigenvalues: Any, rest: float = 0.0, dtype: Any = None
    ) -> Spectral:
        """Of columns that are known to be orthonormal, which takes as long to check as several
        products.
        """
        out = cls.__new__(cls)
        out._set(basis, eigenvalues, rest, dtype)
        return out

    def _set(self, basis: Sequence[Any], eigenvalues: Any, rest: float, dtype: Any) -> None:
        self.basis = tuple(_reals(f"basis[{number}]", one, 2) for number, one in enumerate(basis))
        self.values = _reals("eigenvalues", eigenvalues, 1)
        check_real("rest", rest, -np.inf)
        self.rest = float(rest)
        n, k = (int(np.prod([one.shape[axis] for one in self.basis])) for axis in (0, 1))
        if len(self.values) != k:
            raise ValueError(
                f"eigenvalues must have shape ({k},), one for each column of the basis, but have "
                f"shape {self.values.shape}"
            )
        self.shape, self.dtype = (n, n), np.dtype(dtype or np.result_type(*self.basis, self.values))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        transposed = [one.T for one in self.basis]
        inside = _product(transposed, matrix)
        out = _product(self.basis, self.values[:, None] * inside)
        if self.rest and len(self.values) < self.shape[0]:
            outside = matrix - _product(self.basis, inside)
            outside -= _product(
                self.basis, _product(transposed, outside)
            )  # a large `rest` multiplies what was left
            out += self.rest * outside
        return out

    def eigenvalues(self) -> np.ndarray:
        return np.append(self.values, np.full(self.shape[0] - len(self.values), self.rest)).astype(
            np.float64
        )

    def diagonal(self) -> np.ndarray:
        squares = [one.astype(np.float64) ** 2 for one in self.basis]
        return (
            _product(squares, (self.values - self.rest)[:, None].astype(np.float64))[:, 0]
            + self.rest
        )

    def trace(self) -> float:
        return float(self.eigenvalues().sum())

    def funm(self, f: Function) -> Spectral:
        whole = len(self.values) == self.shape[0]
        rest = 0.0 if whole else _values(f, np.array([self.rest]))[0]
        return Spectral.of_eigenvectors(
            self.basis, _values(f, self.values.astype(np.float64)), rest, self.dtype
        )

    def scaled(self, factor: float) -> Spectral:
        return Spectral.of_eigenvectors(
            self.basis, self.values * factor, self.rest * factor, self.dtype
        )

    def shifted(self, number: float) -> Spectral:
        return Spectral.of_eigenvectors(
            self.basis, self.values + number, self.rest + number, self.dtype
        )


class Kronecker(Structured):
    r"""A Kronecker product of square matrices, :math:`A_1 \otimes A_2 \otimes \dots`; of one: that
    matrix.

    The curvature of a layer is about ``Kronecker(G, A)``, with A of its inputs and G of its output
    gradients, for the weights (outputs, inputs) in rows. For factors of sizes m and k a product
    costs :math:`mk(m + k)` a column instead of :math:`(mk)^2`, the spectral form
    :math:`O(m^3 + k^3)`, once.

    ``inverse(damping, heuristic=True)`` splits the damping d over two factors, so that they can be
    inverted apart: :math:`(G + \sqrt d / \pi\, I)^{-1} \otimes (A + \pi \sqrt d\, I)^{-1}` with
    :math:`\pi^2 = (tr A / \dim A) / (tr G / \dim G)`. It is an approximation; a product of any
    other number of factors is damped exactly.

    Args:
        factors: square matrices.

    Raises:
        TypeError, ValueError: a factor is no square matrix of finite real numbers, or there is
            none.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature, ICML 2015 (section 6.3: the split).

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.linops import Kronecker
        >>> op = Kronecker(np.diag([1.0, 2.0]), np.array([[2.0, 1.0], [1.0, 2.0]]))
        >>> print(op @ np.ones(4), op.trace(), round(op.logdet(), 6) == round(np.log(36), 6))
        [3. 3. 6. 6.] 12.0 True
    """

    def __init__(self, *factors: Any):
        self.factors = tuple(
            _reals(f"factor {number}", one, 2) for number, one in enumerate(factors)
        )
        if not factors:
            raise ValueError("a Kronecker product has at least one factor, but got none")
        for number, one in enumerate(self.factors):
            if one.shape[0] != one.shape[1]:
                raise ValueError(f"factor {number} must be square, but has shape {one.shape}")
        self.shape = (int(np.prod([len(one) for one in self.factors])),) * 2
        self.dtype = np.result_type(*self.factors)

    @cached_property
    def symmetric(self) -> bool:
        """Whether all factors are, up to rounding."""
        return all(
            np.abs(one - one.T).max() <= 10 * _ROUNDINGS * _eps(one.dtype) * np.abs(one).max()
            for one in self.factors
        )

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else Kronecker(*(one.T for one in self.factors))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return _product(self.factors, matrix)

    @cached_property
    def spectral(self) -> Spectral:
        """The same matrix in its spectral form."""
        if not self.symmetric:
            raise ValueError(f"{self!r} is not symmetric, so its eigenvectors are not orthogonal")
        values, basis = zip(*map(_eigh, self.factors), strict=True)
        return Spectral.of_eigenvectors(basis, _outer(values), dtype=self.dtype)

    def eigenvalues(self) -> np.ndarray:
        return self.spectral.eigenvalues()

    def diagonal(self) -> np.ndarray:
        return _outer([np.diag(one).astype(np.float64) for one in self.factors])

    def frobenius_norm(self) -> float:
        return float(np.prod([np.linalg.norm(one.astype(np.float64)) for one in self.factors]))

    def funm(self, f: Function) -> Spectral:
        return self.spectral.funm(f)

    def inverse(self, damping: float = 0.0, *, heuristic: bool = False) -> Structured:
        if not heuristic or len(self.factors) != 2:
            return super().inverse(damping)
        check_real("damping", damping, strict=False)
        means = [float(np.trace(one, dtype=np.float64)) / len(one) for one in self.factors]
        if min(means) <= 0:
            raise ValueError(
                "heuristic damping needs factors of positive trace, but their mean eigenvalues "
                f"are {means[0]:.3g} and {means[1]:.3g}: leave out heuristic=True"
            )
        parts = [
            np.sqrt(damping * mean / other)
            for mean, other in zip(means, reversed(means), strict=True)
        ]
        return Kronecker(
            *(
                Kronecker(one).inverse(part).to_dense()
                for one, part in zip(self.factors, parts, strict=True)
            )
        )

    def scaled(self, factor: float) -> Kronecker:
        first, *others = self.factors
        return Kronecker(first * factor, *others)


class LowRank(Structured):
    r"""A matrix of rank k at most, :math:`U\, diag(w)\, U^T`.

    Costs 2nk a product and :math:`O(nk^2)` for the spectral form, once. Its damped inverse is
    Woodbury's identity in the eigenvectors:
    :math:`\frac1d (I - Q Q^T) + Q\, diag(\frac{1}{e + d})\, Q^T`.

    Args:
        factor: U, (n, k); any columns.
        weights: w, (k,); None: ones.

    Raises:
        TypeError, ValueError: an argument is no array of finite real numbers, or of a wrong shape.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        M. Woodbury, Inverting modified matrices, Princeton 1950.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.linops import LowRank
        >>> op = LowRank(np.ones((3, 1)))
        >>> print(op @ np.array([1.0, 2.0, 3.0]), (op.inverse(1.0) @ np.ones(3)).round(6))
        [6. 6. 6.] [0.25 0.25 0.25]
    """

    def __init__(self, factor: Any, weights: Any = None):
        self.factor = _reals("factor", factor, 2)
        n, k = self.factor.shape
        self.weights = (
            np.ones(k, self.factor.dtype) if weights is None else _reals("weights", weights, 1)
        )
        if self.weights.shape != (k,):
            raise ValueError(
                f"weights must have shape ({k},), one for each column of the factor, but have "
                f"shape {self.weights.shape}"
            )
        self.shape, self.dtype = (n, n), np.result_type(self.factor, self.weights)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return self.factor @ (self.weights[:, None] * (self.factor.T @ matrix))

    @cached_property
    def spectral(self) -> Spectral:
        """The same matrix in its spectral form."""
        q, r = np.linalg.qr(self.factor.astype(np.float64))
        values, turn = _eigh((r * self.weights) @ r.T, self.dtype)
        return Spectral.of_eigenvectors([q @ turn], values, dtype=self.dtype)

    def eigenvalues(self) -> np.ndarray:
        return self.spectral.eigenvalues()

    def diagonal(self) -> np.ndarray:
        return self.factor.astype(np.float64) ** 2 @ self.weights

    def funm(self, f: Function) -> Spectral:
        return self.spectral.funm(f)

    def scaled(self, factor: float) -> LowRank:
        return LowRank(self.factor, self.weights * factor)


class BlockDiagonal(Structured):
    r"""Blocks along the diagonal, :math:`\sum_i P_i A_i P_i^T`; :math:`P_i` puts a block's entries
    in their places.

    Each block is on its own: costs are the sums of theirs, and nothing is compared between blocks.

    Args:
        blocks: structured operators, or symmetric matrices.
        indices: for each block the indices of its entries in the whole vector, in the block's own
            order; None: one block after another.

    Raises:
        TypeError, ValueError: a block is neither; the indices do not hold each entry of the whole
            once.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature, ICML 2015.

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian.linops import BlockDiagonal, Diagonal
        >>> op = BlockDiagonal([Diagonal([1.0, 2.0]), np.array([[4.0]])], indices=[[0, 2], [1]])
        >>> print(op.diagonal(), op.inverse(1.0).diagonal())
        [1. 4. 2.] [0.5        0.2        0.33333333]
    """

    def __init__(self, blocks: Iterable[Any], indices: Iterable[Any] | None = None):
        self.blocks = tuple(_block(number, one) for number, one in enumerate(blocks))
        if not self.blocks:
            raise ValueError("blocks must hold at least one, but are empty")
        sizes = [one.shape[0] for one in self.blocks]
        n = sum(sizes)
        self.indices = tuple(
            np.split(np.arange(n), np.cumsum(sizes)[:-1])
            if indices is None
            else map(np.asarray, indices)
        )
        found = [one.shape for one in self.indices]
        if found != [(size,) for size in sizes]:
            raise ValueError(
                f"indices must be of the sizes of the blocks, {sizes}, but have shapes {found}"
            )
        whole = np.concatenate(self.indices)
        if whole.dtype.kind not in "iu" or not _is_permutation(whole):
            raise ValueError(f"indices must hold each integer from 0 to {n - 1} once")
        self.shape, self.dtype = (n, n), np.result_type(*(one.dtype for one in self.blocks))

    @cached_property
    def symmetric(self) -> bool:
        return all(one.symmetric for one in self.blocks)

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else self._each(lambda one: one.T)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        out = np.empty(matrix.shape, np.result_type(matrix, self.dtype))
        for block, place in zip(self.blocks, self._places, strict=True):
            out[place] = block.columns(matrix[place])
        return out

    @cached_property
    def _places(self) -> list[Any]:
        """The indices, as slices where they follow each other: those copy nothing."""
        return [
            slice(int(index[0]), int(index[-1]) + 1)
            if len(index) and np.array_equal(index, np.arange(index[0], index[-1] + 1))
            else index
            for index in self.indices
        ]

    def eigenvalues(self) -> np.ndarray:
        return self._gathered(lambda one: one.eigenvalues())

    def diagonal(self) -> np.ndarray:
        return self._gathered(lambda one: one.diagonal())

    def frobenius_norm(self) -> float:
        return float(np.linalg.norm([one.frobenius_norm() for one in self.blocks]))

    def definite(self, damping: float = 0.0) -> bool:
        return all(one.definite(damping) for one in self.blocks)

    def logdet(self, damping: float = 0.0) -> float:
        return sum(one.logdet(damping) for one in self.blocks)

    def inverse(self, damping: float = 0.0, *, heuristic: bool = False) -> BlockDiagonal:
        return self._each(lambda one: one.inverse(damping, heuristic=heuristic))

    def funm(self, f: Function) -> BlockDiagonal:
        return self._each(lambda one: one.funm(f))

    def scaled(self, factor: float) -> BlockDiagonal:
        return self._each(lambda one: one.scaled(factor))

    def shifted(self, number: float) -> BlockDiagonal:
        return self._each(lambda one: one.shifted(number))

    def _each(self, change: Callable[[Any], Any]) -> BlockDiagonal:
        return BlockDiagonal([change(one) for one in self.blocks], self.indices)

    def _gathered(self, part: Callable[[Structured], np.ndarray]) -> np.ndarray:
        out = np.empty(self.shape[0])
        for block, index in zip(self.blocks, self.indices, strict=True):
            out[index] = part(block)
        return out


class Shifted(Structured):
    """A + c I, for A whose class has no form of its own for that."""

    def __init__(self, part: Structured, number: float):
        self.part, self.number = part, number
        self.shape, self.dtype = part.shape, part.dtype

    @cached_property
    def symmetric(self) -> bool:
        return self.part.symmetric

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else self.part.T.shifted(self.number)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return self.part.columns(matrix) + (self.number * matrix).astype(matrix.dtype, copy=False)

    def eigenvalues(self) -> np.ndarray:
        return self.part.eigenvalues() + self.number

    def diagonal(self) -> np.ndarray:
        return self.part.diagonal() + self.number

    def definite(self, damping: float = 0.0) -> bool:
        return self.part.definite(self.number + damping)

    def logdet(self, damping: float = 0.0) -> float:
        return self.part.logdet(self.number + damping)

    def inverse(self, damping: float = 0.0, *, heuristic: bool = False) -> Structured:
        return self.part.inverse(self.number + damping, heuristic=heuristic)

    def funm(self, f: Function) -> Structured:
        return self.part.funm(lambda eigenvalues: f(eigenvalues + self.number))

    def scaled(self, factor: float) -> Structured:
        return self.part.scaled(factor).shifted(self.number * factor)

    def shifted(self, number: float) -> Structured:
        return self.part.shifted(self.number + number)


def _is_permutation(numbers: np.ndarray) -> bool:
    """Whether they are 0 to n - 1 in some order; without sorting, which takes 0.1 s for a million."""
    n = len(numbers)
    if n and (numbers.min() < 0 or numbers.max() >= n):
        return False
    seen = np.zeros(n, bool)
    seen[numbers] = True
    return bool(seen.all())


def _product(factors: Sequence[np.ndarray], matrix: np.ndarray) -> np.ndarray:
    """The Kronecker product of matrices times a matrix, one factor after another."""
    done = matrix.shape[1]
    out = np.ascontiguousarray(matrix.T)
    for factor in factors:
        out = out.reshape(done, factor.shape[1], -1)
        # the last factor meets whole rows, and one product of two matrices is faster than many with
        # a vector
        out = (out[:, :, 0] @ factor.T)[:, :, None] if out.shape[2] == 1 else factor @ out
        done *= factor.shape[0]
    return out.reshape(matrix.shape[1], -1).T


def _outer(vectors: Iterable[np.ndarray]) -> np.ndarray:
    """The entries of the vectors' outer product, in a row: the diagonal of a Kronecker product of
    diagonals.
    """
    return reduce(lambda one, other: np.multiply.outer(one, other).ravel(), vectors)


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric matrix of float64, by scipy: numpy's own takes half
    as long again."""
    return scipy.linalg.eigh(matrix, driver="evd")


@contextmanager
def side_by_side() -> Iterator[Callable]:
    """A ``map`` whose calls run at the same time, each with one thread of BLAS: two decompositions
    beside each other take less time than one after the other with two threads each. For numpy's;
    scipy's lets no other thread run."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores) as pool:
        yield pool.map


def _eigh(matrix: np.ndarray, dtype: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric matrix in float64. Negative eigenvalues at the
    level of the rounding of `dtype`, that of the matrix, are 0, and so are positive ones that
    float64 does not resolve."""
    wide = matrix.astype(np.float64)
    values, vectors = eigh((wide + wide.T) / 2)
    least, most = (
        _ROUNDINGS * _eps(kind) * np.abs(values).max()
        for kind in (dtype or matrix.dtype, np.float64)
    )
    return np.where((values >= -least) & (values <= most), 0.0, values), vectors


def _zero(damping: float) -> float:
    """The size up to which an eigenvalue plus the damping is not told from 0."""
    return max(_ROUNDINGS * _eps(np.float64) * abs(damping), float(np.finfo(np.float64).tiny))


def _eps(dtype: Any) -> float:
    return float(np.finfo(dtype).eps)


def _values(f: Function, eigenvalues: np.ndarray) -> np.ndarray:
    """What a function makes of eigenvalues."""
    with np.errstate(all="ignore"):
        out = np.asarray(f(eigenvalues), dtype=np.float64)
    if out.shape != eigenvalues.shape:
        raise ValueError(
            f"f must give a number for each eigenvalue, but gives shape {out.shape} for "
            f"{eigenvalues.shape}"
        )
    if (bad := ~np.isfinite(out)).any():
        raise ValueError(f"f gives {out[bad][0]} for the eigenvalue {eigenvalues[bad][0]:g}")
    return out


def _reals(name: str, value: Any, axes: int) -> np.ndarray:
    """An array of floating numbers with so many axes, none of them empty."""
    try:
        array = as_array(value)
    except ValueError as err:  # rows of different lengths
        raise TypeError(
            f"{name} must be an array of real numbers, but is a {type(value).__name__} ({err})"
        ) from err
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must be an array of real numbers, but is a {type(value).__name__} of dtype "
            f"{array.dtype}"
        )
    if array.ndim != axes or 0 in array.shape:
        raise ValueError(
            f"{name} must be {'a flat array' if axes == 1 else 'a matrix'} and not empty, but has "
            f"shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but holds NaN or Inf")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _block(number: int, value: Any) -> Structured:
    if isinstance(value, Structured):
        return value
    if isinstance(value, Operator):
        raise TypeError(
            f"block {number} must be a structured operator or a matrix, but is {value!r}, of which "
            "only products are known"
        )
    return Kronecker(value)
