"""A square matrix that is known by its products, and sums, multiples and products of such matrices.

Everything here is numpy: a product with a network's curvature is an array like any other.
"""
from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import shown


class Operator:
    r"""A real square matrix A of which only the products :math:`A V` are computed.

    ``op @ v`` takes a flat vector of n numbers (a list of them too), a matrix of n rows (its columns are done in one
    pass over the data, as memory allows), as numpy arrays or Tensors, or a structure shaped like the weights, and gives
    back the same kind.
    Operators can be added, subtracted, scaled, multiplied and transposed; ``op + 0.1 * Identity`` is a shift.

    Attributes:
        shape: (n, n).
        dtype: the numpy dtype of the results.
        layers: layer name -> indices of its entries in a flat vector; empty where there are no layers.
        layer_classes: layer name -> what it is, such as "Dense", for people; without those where that is not known.
        shows_progress: False on all but the first process of a distributed job.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> import numpy as np
        >>> from mindspore_hessian import Identity, Operator
        >>> class Diagonal(Operator):
        ...     shape, dtype = (2, 2), np.dtype(np.float64)
        ...     def columns(self, matrix):
        ...         return np.array([[1.0], [2.0]]) * matrix
        >>> print((Diagonal() + 0.5 * Identity).to_dense())
        [[1.5 0. ]
         [0.  2.5]]
    """

    shape: tuple[int, int]
    dtype: np.dtype
    shows_progress = True
    __array_ufunc__ = None  # numpy leaves array @ op and array * op to this class

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        """A V for a matrix V of shape (n, k); what a subclass supplies."""
        raise NotImplementedError

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        """Layer name -> indices of its entries in a flat vector."""
        return {}

    @property
    def layer_classes(self) -> Mapping[str, str]:
        """Layer name -> what it is, such as "Dense"."""
        return {}

    @property
    def T(self) -> Operator:  # noqa: N802 -- as numpy calls it
        """The transpose: the operator itself, where it is symmetric, as curvature is."""
        return self

    def flatten(self, structure: Any) -> np.ndarray:
        """A structure shaped like the weights as a flat vector."""
        raise TypeError(f"{type(self).__name__} knows of no weights, so it takes flat vectors and matrices only")

    def unflatten(self, flat: np.ndarray) -> Any:
        """A flat vector as a tuple of Tensors shaped like the weights."""
        raise TypeError(f"{type(self).__name__} knows of no weights, so it has flat vectors and matrices only")

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Operator):
            return Product(self, other)
        if isinstance(other, tuple | list) and not _is_flat(other):
            return self.unflatten(self._flat(self.flatten(other)))
        if isinstance(other, Tensor):
            return Tensor(np.ascontiguousarray(self._flat(_compat.to_numpy(other))))
        return self._flat(other)

    def __rmatmul__(self, other: Any) -> Any:
        flipped = self.T @ np.asarray(other).T
        return flipped.T

    def _flat(self, value: Any) -> np.ndarray:
        array = check_vectors(value, self.shape[0], self.dtype)
        if array.ndim == 1:
            return self.columns(array[:, None])[:, 0]
        return self.columns(array) if array.shape[1] else np.zeros(array.shape, self.dtype)

    def __add__(self, other: Any) -> Operator:
        return Sum(self, _operator(other))

    def __sub__(self, other: Any) -> Operator:
        return Sum(self, Scaled(_operator(other), -1.0))

    def __mul__(self, factor: Any) -> Operator:
        return Scaled(self, factor) if np.ndim(factor) == 0 and not isinstance(factor, Operator) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Operator:
        if (number := _number(factor)) == 0:
            raise ValueError("an operator cannot be divided by 0")
        return Scaled(self, 1 / number)

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def to_dense(self) -> np.ndarray:
        """The whole matrix, shape (n, n): n products, done in batches."""
        return self @ np.eye(self.shape[0], dtype=self.dtype)

    def to_scipy(self) -> Any:
        """The operator as a ``scipy.sparse.linalg.LinearOperator``, for eigsh, cg, lobpcg and the like."""
        from scipy.sparse.linalg import LinearOperator
        return LinearOperator(self.shape, matvec=lambda v: self @ np.reshape(v, -1), matmat=lambda m: self @ m,
                              rmatvec=lambda v: self.T @ np.reshape(v, -1), rmatmat=lambda m: self.T @ m,
                              dtype=self.dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of shape {self.shape}, {self.dtype}>"


def _operator(other: Any) -> Operator:
    if isinstance(other, Operator):
        return other
    raise TypeError(f"an operator is added to operators only, but got a {type(other).__name__}. A number times the "
                    "identity is one: op + 0.1 * Identity")


def _number(factor: Any) -> float:
    if np.ndim(factor) or np.asarray(factor).dtype.kind not in "fiub":
        raise TypeError("an operator is real, so it is multiplied by and divided by real numbers, but got "
                        f"{shown(factor)}")
    return float(factor)


def _is_flat(values: tuple | list) -> bool:
    """Whether it holds the numbers of a flat vector, rather than a Tensor or array for each weight."""
    return len(values) > 0 and all(isinstance(value, numbers.Real) for value in values)


def check_vectors(value: Any, rows: int, dtype: Any) -> np.ndarray:
    """A flat vector or a matrix of columns, as an array of the operator's dtype.

    Raises:
        TypeError: not real numbers.
        ValueError: wrong shape.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"an operator multiplies vectors of real numbers, but got dtype {array.dtype}")
    if array.ndim not in (1, 2) or array.shape[0] != rows:
        raise ValueError(f"the operator has {rows} columns, so it multiplies vectors of shape ({rows},) and matrices "
                         f"of shape ({rows}, k), but got shape {array.shape}")
    return array.astype(dtype, copy=False)


class _Composed(Operator):
    """An operator made of others: what they know of the weights, it knows."""

    def __init__(self, *parts: Operator):
        self.parts = parts
        sized = [part for part in parts if part is not Identity and part.shape[0] > 0]
        if len({part.shape for part in sized}) > 1:
            raise ValueError("operators of different shapes cannot be combined: "
                             + ", ".join(f"{part!r}" for part in parts))
        self.shape = sized[0].shape if sized else (0, 0)
        self.dtype = np.result_type(*(part.dtype for part in sized)) if sized else np.dtype(np.float32)
        self.shows_progress = all(part.shows_progress for part in parts)
        self._known = next((part for part in sized if type(part).flatten is not Operator.flatten), None)

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        return self._known.layers if self._known is not None else {}

    @property
    def layer_classes(self) -> Mapping[str, str]:
        return self._known.layer_classes if self._known is not None else {}

    def flatten(self, structure: Any) -> np.ndarray:
        return self._known.flatten(structure) if self._known is not None else super().flatten(structure)

    def unflatten(self, flat: np.ndarray) -> Any:
        return self._known.unflatten(flat) if self._known is not None else super().unflatten(flat)


class Sum(_Composed):
    """A + B."""

    @property
    def T(self) -> Operator:  # noqa: N802
        return Sum(*(part.T for part in self.parts))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return sum(part.columns(matrix) for part in self.parts)  # type: ignore[return-value]


class Scaled(_Composed):
    """c A, for a number c."""

    def __init__(self, part: Operator, factor: Any):
        super().__init__(part)
        self.factor = _number(factor)

    @property
    def T(self) -> Operator:  # noqa: N802
        return Scaled(self.parts[0].T, self.factor)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        out = self.parts[0].columns(matrix)
        return (self.factor * out).astype(out.dtype, copy=False)


class Product(_Composed):
    """A B."""

    @property
    def T(self) -> Operator:  # noqa: N802
        return Product(*(part.T for part in reversed(self.parts)))

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        for part in reversed(self.parts):
            matrix = part.columns(matrix)
        return matrix


class _Identity(Operator):
    """The identity of whatever size it is added to."""

    shape = (0, 0)
    dtype = np.dtype(np.float32)

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return matrix

    def __repr__(self) -> str:
        return "Identity"


Identity = _Identity()
