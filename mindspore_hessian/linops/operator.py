"""A square matrix that is known by its products, and sums, multiples and products of such matrices.

Everything here is numpy: a product with a network's curvature is an array like any other.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from functools import cached_property, singledispatch
from typing import Any

import numpy as np

from mindspore_hessian.arguments import as_array, shown


@singledispatch
def in_kind_of(vector: Any, product: np.ndarray) -> Any:
    """A product in the kind of the vector that was multiplied: numpy's, but for kinds that are
    registered here.
    """
    return product


class Operator:
    r"""A real square matrix A of which only the products :math:`A V` are computed.

    ``op @ v`` takes a flat vector of n numbers (a list of them too), a matrix of n rows (its
    columns are done in one pass over the data, as memory allows), as numpy arrays or Tensors, or a
    structure shaped like the weights, and gives back the same kind. Operators can be added,
    subtracted, scaled, multiplied and transposed; ``op + 0.1 * Identity`` is a shift.

    Attributes:
        shape: (n, n).
        dtype: the numpy dtype of the results.
        symmetric: whether the matrix is known to be symmetric. Functions that need it refuse
            others. May be set.
        positive: whether it is known that no eigenvalue is negative. May be set.
        structured: whether the operator knows its own eigenvalues, trace, diagonal and inverse: see
            `mindspore_hessian.linops.Structured`.
        layers: layer name -> indices of its entries in a flat vector; empty where there are no
            layers.
        layer_classes: layer name -> what it is, such as "Dense", for people; without those where
            that is not known.
        shows_progress: False on all but the first process of a distributed job.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import Identity, Operator
        >>> class Doubling(Operator):
        ...     shape, dtype = (2, 2), np.dtype(np.float64)
        ...     def columns(self, matrix):
        ...         return 2 * matrix
        >>> print((Doubling() + 0.5 * Identity).to_dense())
        [[2.5 0. ]
         [0.  2.5]]
    """

    shape: tuple[int, int]
    dtype: np.dtype
    structured = False
    shows_progress = True
    __array_ufunc__ = None  # numpy leaves array @ op and array * op to this class

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        """A V for a matrix V of shape (n, k); what a subclass supplies."""
        raise NotImplementedError

    @cached_property
    def symmetric(self) -> bool:
        """Whether the matrix is known to be symmetric; True unless a subclass, or who made the
        operator, says False.
        """
        return True

    @cached_property
    def positive(self) -> bool:
        """Whether it is known that no eigenvalue is negative; False unless a subclass, or who made
        it, says True.
        """
        return False

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        """Layer name -> indices of its entries in a flat vector."""
        return {}

    @property
    def layer_classes(self) -> Mapping[str, str]:
        """Layer name -> what it is, such as "Dense"."""
        return {}

    @property
    def atoms(self) -> tuple[Operator, ...]:
        """The operators that a sum, multiple or product is made of; of any other operator,
        itself.
        """
        return (self,)

    @property
    def T(self) -> Operator:  # noqa: N802 -- as numpy calls it
        """The transpose: the operator itself, where it is symmetric, as curvature is."""
        if not self.symmetric:
            raise TypeError(f"{self!r} is not symmetric, and its class defines no transpose, T")
        return self

    def flatten(self, structure: Any) -> np.ndarray:
        """A structure shaped like the weights as a flat vector."""
        raise TypeError(
            f"{type(self).__name__} knows of no weights, so it takes flat vectors and matrices only"
        )

    def unflatten(self, flat: np.ndarray) -> Any:
        """A flat vector as a tuple of Tensors shaped like the weights."""
        raise TypeError(
            f"{type(self).__name__} knows of no weights, so it has flat vectors and matrices only"
        )

    def exact_diagonal(self) -> np.ndarray | None:
        """The diagonal, where there is a cheaper exact way than n products; else None."""
        return None

    def scaled(self, factor: float) -> Operator:
        """``factor * self``, with as much structure as `self` has."""
        return Scaled(self, factor)

    def shifted(self, number: float) -> Operator:
        """``self + number * Identity``, with as much structure as `self` has."""
        return Sum(self, Identity.scaled(number))

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Operator):
            return Product(self, other)
        if isinstance(other, tuple | list) and not _is_flat(other):
            return self._times_structure(other)
        return in_kind_of(other, self._flat(other))

    def _times_structure(self, structure: Any) -> Any:
        """The product with what is shaped like the weights, and shaped so."""
        return self.unflatten(self._flat(self.flatten(structure)))

    def __rmatmul__(self, other: Any) -> Any:
        flipped = self.T @ as_array(other).T
        return flipped.T

    def _flat(self, value: Any) -> np.ndarray:
        array = check_vectors(value, self.shape[0], self.dtype)
        if array.ndim == 1:
            return self._flat(array[:, None])[:, 0]
        product = self.columns(array) if array.shape[1] else np.zeros(array.shape)
        return product.astype(self.dtype, copy=False)

    def __add__(self, other: Any) -> Operator:
        other = _operator(other)
        return self.shifted(other.factor) if isinstance(other, _Identity) else Sum(self, other)

    def __sub__(self, other: Any) -> Operator:
        return self + -_operator(other)

    def __mul__(self, factor: Any) -> Operator:
        if np.ndim(factor) or isinstance(factor, Operator):
            return NotImplemented
        return self.scaled(_number(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Operator:
        if (number := _number(factor)) == 0:
            raise ValueError("an operator cannot be divided by 0")
        return self.scaled(1 / number)

    def __neg__(self) -> Operator:
        return self.scaled(-1.0)

    def to_dense(self) -> np.ndarray:
        """The whole matrix, shape (n, n): n products, done in batches."""
        return self @ np.eye(self.shape[0], dtype=self.dtype)

    def to_scipy(self) -> Any:
        """The operator as a ``scipy.sparse.linalg.LinearOperator``, for eigsh, cg, lobpcg and the
        like.
        """
        from scipy.sparse.linalg import LinearOperator

        return LinearOperator(
            self.shape,
            matvec=lambda v: self @ np.reshape(v, -1),
            matmat=lambda m: self @ m,
            rmatvec=lambda v: self.T @ np.reshape(v, -1),
            rmatmat=lambda m: self.T @ m,
            dtype=self.dtype,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}, {self.dtype}>"


def _operator(other: Any) -> Operator:
    if isinstance(other, Operator):
        return other
    raise TypeError(
        f"an operator is added to operators only, but got a {type(other).__name__}. A number times "
        "the identity is one: op + 0.1 * Identity"
    )


def _number(factor: Any) -> float:
    if np.ndim(factor) or np.asarray(factor).dtype.kind not in "fiub":
        raise TypeError(
            "an operator is real, so it is multiplied by and divided by real numbers, but got "
            f"{shown(factor)}"
        )
    return float(factor)


def _is_flat(values: tuple | list) -> bool:
    """Whether it holds the numbers of a flat vector, rather than a Tensor or array for each
    weight.
    """
    return len(values) > 0 and all(isinstance(value, numbers.Real) for value in values)


def check_vectors(value: Any, rows: int, dtype: Any) -> np.ndarray:
    """A flat vector or a matrix of columns, as an array of the operator's dtype.

    Raises:
        TypeError: not real numbers.
        ValueError: wrong shape.
    """
    array = as_array(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"an operator multiplies vectors of real numbers, but got dtype {array.dtype}"
        )
    if array.ndim not in (1, 2) or array.shape[0] != rows:
        raise ValueError(
            f"the operator has {rows} columns, so it multiplies vectors of shape ({rows},) and "
            f"matrices of shape ({rows}, k), but got shape {array.shape}"
        )
    return array.astype(dtype, copy=False)


class Composed(Operator):
    """An operator made of others: what they know of the weights, it knows."""

    def __init__(self, *parts: Operator):
        self.parts = parts
        sized = [part for part in parts if part.shape[0] > 0]
        if len({part.shape for part in sized}) > 1:
            raise ValueError(
                "operators of different shapes cannot be combined: "
                + ", ".join(f"{part!r}" for part in parts)
            )
        self.shape = sized[0].shape if sized else (0, 0)
        self.dtype = (
            np.result_type(*(part.dtype for part in sized)) if sized else np.dtype(np.float32)
        )
        self.shows_progress = all(part.shows_progress for part in parts)
        self._known = next(
            (part for part in sized if type(part).flatten is not Operator.flatten), None
        )

    @property
    def atoms(self) -> tuple[Operator, ...]:
        return tuple(atom for part in self.parts for atom in part.atoms)

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        return self._known.layers if self._known is not None else {}

    @property
    def layer_classes(self) -> Mapping[str, str]:
        return self._known.layer_classes if self._known is not None else {}

    def flatten(self, structure: Any) -> np.ndarray:
        return (
            self._known.flatten(structure)
            if self._known is not None
            else super().flatten(structure)
        )

    def unflatten(self, flat: np.ndarray) -> Any:
        return self._known.unflatten(flat) if self._known is not None else super().unflatten(flat)


class Sum(Composed):
    """A + B."""

    @cached_property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self.parts)

    @cached_property
    def positive(self) -> bool:
        return all(part.positive for part in self.parts)

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else Sum(*(part.T for part in self.parts))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return sum(part.columns(matrix) for part in self.parts)  # type: ignore[return-value]


class Scaled(Composed):
    """c A, for a number c."""

    def __init__(self, part: Operator, factor: float):
        super().__init__(part)
        self.factor = factor

    @cached_property
    def symmetric(self) -> bool:
        return self.parts[0].symmetric

    @cached_property
    def positive(self) -> bool:
        return self.factor >= 0 and self.parts[0].positive

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else Scaled(self.parts[0].T, self.factor)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        out = self.parts[0].columns(matrix)
        return (self.factor * out).astype(out.dtype, copy=False)


class Product(Composed):
    """A B. Known to be symmetric where it reads the same from both ends, as P A P does."""

    def __init__(self, *parts: Operator):
        super().__init__(
            *(
                one
                for part in parts
                for one in (part.parts if isinstance(part, Product) else (part,))
            )
        )

    @cached_property
    def symmetric(self) -> bool:
        return all(part.symmetric for part in self.parts) and all(
            one is other for one, other in zip(self.parts, reversed(self.parts), strict=True)
        )

    @cached_property
    def positive(self) -> bool:
        middle, odd = divmod(len(self.parts), 2)
        return self.symmetric and (not odd or self.parts[middle].positive)

    @property
    def T(self) -> Operator:  # noqa: N802
        return self if self.symmetric else Product(*(part.T for part in reversed(self.parts)))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        for part in reversed(self.parts):
            matrix = part.columns(matrix)
        return matrix


class _Identity(Operator):
    """The identity, or a multiple of it, of whatever size it is added to."""

    shape = (0, 0)
    dtype = np.dtype(np.float32)

    def __init__(self, factor: float = 1.0):
        self.factor, self.positive = factor, factor >= 0

    @property
    def atoms(self) -> tuple[Operator, ...]:
        return ()

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return (self.factor * matrix).astype(matrix.dtype, copy=False)

    def scaled(self, factor: float) -> Operator:
        return _Identity(self.factor * factor)

    def shifted(self, number: float) -> Operator:
        return _Identity(self.factor + number)

    def __add__(self, other: Any) -> Operator:
        return _operator(other).shifted(self.factor)

    def __repr__(self) -> str:
        return "Identity" if self.factor == 1 else f"{self.factor:g} * Identity"


Identity = _Identity()
"""The identity of whatever size it is added to: ``op + 0.1 * Identity``."""
