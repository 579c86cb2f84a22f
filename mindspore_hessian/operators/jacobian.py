"""The Jacobian of a network's outputs, on its data, by its weights: known by its products, and row
by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import as_array
from mindspore_hessian.core.program import Function, Program
from mindspore_hessian.core.space import Space, numpy_dtype, unraveled
from mindspore_hessian.linops.operator import Operator, check_vectors, in_kind_of
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators import weights as weight_choice
from mindspore_hessian.operators.base import refuse_recorded
from mindspore_hessian.operators.data import Batch, Data, leaves
from mindspore_hessian.operators.progress import bar
from mindspore_hessian.operators.risk import OUTPUT, Risk
from mindspore_hessian.operators.samples import Samples, check_arguments, pulled, refuse_training
from mindspore_hessian.transforms import compose
from mindspore_hessian.typing import Output, WeightNames

TOLERANCE = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-8}  # of rows of single samples


def pushed(function: Function, space: Space):
    """J v of a batch, flat."""
    push, n = compose.jvp(kernels.one_output(function.value), (), space.parameters), function.n
    split = unraveled((), space.parameters)

    def run(*tensors):
        xs = tensors[:n]
        return ops.reshape(push(xs, split(xs, tensors[-1])), (-1,))

    return run


PUSH, PULL = Program("JacobianOperator", pushed), Program("JacobianOperator.T", pulled)


class _Rectangular:
    """A matrix that is known by its products with vectors and matrices."""

    shape: tuple[int, int]
    dtype: np.dtype
    __array_ufunc__ = None  # numpy leaves array @ op to this class

    T: Any
    columns: Callable[[np.ndarray], np.ndarray]

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Operator | _Rectangular):
            raise TypeError(
                f"{self!r} multiplies vectors and matrices, but got {other!r}: put brackets around "
                "what is to be done first, as in J.T @ (J @ v)"
            )
        return in_kind_of(other, self._flat(other))

    def _flat(self, value: Any) -> np.ndarray:
        array = check_vectors(value, self.shape[1], self.dtype)
        matrix = array.reshape(self.shape[1], -1)
        return (
            self.columns(matrix)
            .astype(self.dtype, copy=False)
            .reshape(self.shape[0], *array.shape[1:])
        )

    def __rmatmul__(self, other: Any) -> Any:
        return self.rmatmul(as_array(other).T).T

    def rmatmul(self, other: Any) -> Any:
        """The transpose times a vector or a matrix, ``J.T @ other``."""
        return self.T @ other

    def to_scipy(self) -> Any:
        """As a ``scipy.sparse.linalg.LinearOperator``, for lsqr, svds and the like."""
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


class _Transposed(_Rectangular):
    """J^T."""

    def __init__(self, of: JacobianOperator):
        self.T, self.shape, self.dtype = of, of.shape[::-1], of.dtype

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return self.T.pull(matrix)

    def to_dense(self) -> np.ndarray:
        """The whole matrix, (P, N C)."""
        return self.T.to_dense().T


class JacobianOperator(_Rectangular):
    r"""Jacobian of a network's outputs on its data,
    :math:`J_{(nc)p} = \partial f_c(x_n) / \partial w_p`.

    Of shape (N C, P), sample-major: the C outputs of the first sample, in the order of the output's
    memory, then those of the second, through all batches. ``J @ v`` takes flat vectors over the
    weights as `HessianOperator` has them, or Tensors shaped like the weights; ``J.T @ u`` (or ``u @
    J``) flat vectors over the outputs; both take matrices, of which the columns come one after
    another in one pass over the data. A product with J costs three gradients, one with its
    transpose one. `to_dense` costs C gradients: the samples of a chunk are batched. Where the rows
    of single samples do not add up to those of the batch, since samples depend on each other, it
    pulls back each row of the batch by itself: N C gradients of a batch.

    Args:
        network: a Cell or a function that returns one Tensor, the samples on axis 0.
        data: as `HessianOperator` has it; targets are not used, and may be left out.
        weights: as `HessianOperator` has them.
        chunk_size: samples at a time in `to_dense`; None: as many as rows of 128 MiB hold.
        output: which of the things that the network returns it is about.
        progress: True shows a bar at once, None after two seconds, False never.

    Attributes:
        shape, dtype: (N C, P); float64 where a weight is, else float32.
        T: the transpose.
        num_batches: of one pass.
        layers: layer name -> the indices of its columns.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `HessianOperator`; also
            where dropout or batch norm are in training mode.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU`` (tested)

    Source:
        A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed., SIAM 2008, chapter 3.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import JacobianOperator
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> J = JacobianOperator(net, ms.Tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]))
        >>> print(J.shape, J @ np.array([1.0, 1.0]), J.T @ np.array([1.0, 1.0, 0.0]))
        (3, 2) [1. 2. 7.] [1. 2.]
    """

    def __init__(
        self,
        network: Callable[..., Any],
        data: Any,
        weights: WeightNames = None,
        *,
        chunk_size: int | None = None,
        output: Output = None,
        progress: bool | None = None,
    ):
        check_arguments(network, None, output, chunk_size, progress)
        self.space, self.progress = weight_choice.choose(network, weights), progress
        self.dtype = numpy_dtype(self.space.flat_dtype)
        self.risk = Risk(
            network, None, Data(data, network, True), self.space, "sum", None, pick=output
        )
        refuse_training(
            self.risk, ("Dropout", "BatchNorm"), "the outputs of a sample are not its own"
        )
        self._samples, self._shapes, known = Samples(self.risk, chunk_size), [], {}
        for batch in self.risk.data:
            key = tuple((leaf.shape, leaf.dtype) for leaf in leaves((batch.args, batch.kwargs)))
            if key not in known:
                out = self.risk.run(batch, OUTPUT)
                known[key] = tuple(out.shape), out.dtype
            self._shapes.append(known[key])
        self._starts = np.cumsum(
            [0, *(int(np.prod(shape, dtype=np.int64)) for shape, _ in self._shapes)]
        )
        self.shape = int(self._starts[-1]), self.space.size

    T = property(lambda self: _Transposed(self))
    weights = property(lambda self: self.space.weights)
    network = property(lambda self: self.risk.network)
    num_batches = property(lambda self: self.risk.num_batches)

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        return weight_choice.layers(self.space)

    def flatten(self, structure: Any) -> np.ndarray:
        """Tensors shaped like the weights as a flat vector."""
        refuse_recorded(structure)
        return self.space.ravel(structure)

    def unflatten(self, flat: np.ndarray) -> tuple[Tensor, ...]:
        """A flat vector over the weights as Tensors shaped like them."""
        return self.space.unravel(flat)

    def __matmul__(self, other: Any) -> Any:
        structured = isinstance(other, tuple | list) and any(np.ndim(part) for part in other)
        return super().__matmul__(self.flatten(other) if structured else other)

    @interruptible
    def columns(self, matrix: np.ndarray) -> np.ndarray:
        out = np.empty((self.shape[0], matrix.shape[1]), self.dtype)
        for batch, where, _, _ in self._batches("J v"):
            for number, column in enumerate(matrix.T):
                out[where, number] = _compat.to_numpy(
                    self.risk.run(batch, PUSH, (Tensor(column.copy()),))
                )
        return out

    @interruptible
    def pull(self, matrix: np.ndarray) -> np.ndarray:
        """``J.T @ matrix`` for columns over the outputs."""
        total = np.zeros((self.shape[1], matrix.shape[1]))
        for batch, where, shape, dtype in self._batches("J^T u"):
            for number, column in enumerate(matrix.T):
                total[:, number] += self._pulled(batch, column[where], shape, dtype)
        return total

    def _pulled(
        self, batch: Batch, line: np.ndarray, shape: tuple[int, ...], dtype: Any
    ) -> np.ndarray:
        return _compat.to_numpy(
            self.risk.run(batch, PULL, (Tensor(line.reshape(shape).copy()).astype(dtype),))
        ).copy()

    @interruptible
    def to_dense(self) -> np.ndarray:
        """The whole matrix, (N C, P), of the operator's dtype."""
        out = np.empty(self.shape, self.dtype)
        for batch, where, shape, dtype in self._batches("Jacobian"):
            if not self._fill(out[where], batch, shape, dtype):
                for number, unit in enumerate(np.eye(len(out[where]), dtype=self.dtype)):
                    out[where][number] = self._pulled(batch, unit, shape, dtype)
        return out

    def _fill(self, rows: np.ndarray, batch: Batch, shape: tuple[int, ...], dtype: Any) -> bool:
        """Write the rows of a batch, sample by sample; whether they are those of the batch."""
        if shape[0] % batch.size or dtype == ms.bfloat16:  # which numpy does not have
            return False
        rows[...] = self._samples.jacobian(batch, shape, numpy_dtype(dtype)).reshape(rows.shape)
        u = np.random.default_rng(0).standard_normal(len(rows)).astype(self.dtype)
        whole = self._pulled(batch, u, shape, dtype)
        gap = np.linalg.norm(u.astype(np.float64) @ rows - whole)
        return not gap > TOLERANCE[self.dtype] * np.linalg.norm(whole)

    def _batches(self, what: str) -> Any:
        """The batches, with their rows, and the shape and dtype of their outputs."""
        with bar(what, self.num_batches, self.progress) as shown:
            for number, batch in enumerate(self.risk.data):
                yield (
                    batch,
                    slice(self._starts[number], self._starts[number + 1]),
                    *self._shapes[number],
                )
                shown.update()
