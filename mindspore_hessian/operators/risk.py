"""A network, its loss and its data as one function of the weights, the empirical risk, and passes over it.

The risk is the sum over the batches of ``(n_b / N) * loss_b`` where the loss is a mean over its batch, and of
``loss_b`` where it is a sum; n_b is the number of samples of the batch, N that of the data.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from mindspore_hessian import _compat, _compile
from mindspore_hessian._callable import Call
from mindspore_hessian._errors import KernelError, NonFiniteWarning, warn
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.data import Batch, Data, twice
from mindspore_hessian.operators.distributed import ALONE, Communicator
from mindspore_hessian.operators.progress import Partial, bar
from mindspore_hessian.operators.weights import Weights
from mindspore_hessian.transforms._assemble import batched_or_loop

_ANY = Tensor(np.zeros(1, np.float32))  # stands for the network's output where the loss is bound to its targets


@dataclass(frozen=True)
class Kernel:
    """A graph to run on each batch.

    Attributes:
        name: for the cache of compiled functions, and for messages.
        build: ``build(f, loss, n, params)`` makes the graph function of n inputs, the targets, then the extras.
        options: what `build` depends on beside its arguments, hashable.
    """

    name: str
    build: Callable
    options: tuple = ()


def transposed(matrix: np.ndarray) -> np.ndarray:
    """matrix.T as rows that are each in one piece, in blocks that fit the cache: three times as fast as numpy's way."""
    if matrix.flags.f_contiguous:
        return matrix.T
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 512):
        out[:, start:start + 512] = matrix[start:start + 512].T
    return out


class Risk:
    """See the module. The arguments are those of the operators, checked."""

    _batch = 0  # the number of the batch that a pass is at, for errors

    def __init__(self, network: Any, loss_fn: Any, data: Data, weights: Weights, reduction: str | None,
                 num_data: int | None, comm: Communicator = ALONE):
        self.network, self.loss_fn, self.data, self.weights, self.comm = network, loss_fn, data, weights, comm
        self.num_batches, self.num_data = self._counted(num_data)
        self.reduction = reduction or self._detected()

    def _counted(self, num_data: int | None) -> tuple[int, int]:
        if num_data is not None and self.data.count() is not None and self.comm is ALONE:
            return self.data.count() or 0, num_data
        sizes = [batch.size for batch in self.data]
        if not sizes:
            raise ValueError("data has no batches")
        return len(sizes), num_data or int(self.comm.total(np.array([float(sum(sizes))]))[0])

    def _detected(self) -> str:
        """Whether the loss is a mean or a sum over its batch: what it says, or what doubling a batch does to it."""
        said = getattr(self.loss_fn, "reduction", None)
        if said is None and isinstance(self.loss_fn, nn.LossBase) and getattr(self.loss_fn, "reduce", False):
            said = "mean" if self.loss_fn.average else "sum"
        if said in ("mean", "sum"):
            return said
        batch = next(iter(self.data))
        once, double = (float(self.loss(b)) for b in (batch, twice(batch)))
        for name, factor in (("mean", 1.0), ("sum", 2.0)):
            if abs(double - factor * once) <= 1e-3 * max(abs(once), 1e-30):
                return name
        raise ValueError(
            f"the loss is neither a mean nor a sum over its batch: it is {once:.6g} for the first batch, and "
            f"{double:.6g} where every sample is in it twice. Say how batches add up: reduction='mean' or 'sum'")

    def factor(self, batch: Batch) -> float:
        """The weight of a batch in the risk."""
        return batch.size / self.num_data if self.reduction == "mean" else 1.0

    # --- one batch --------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, kernel: Kernel, extras: tuple[Tensor, ...] = ()) -> Any:
        """Run a kernel on a batch; compiled once for each shape of batch."""
        forward = Call.bind(self.network, batch.args, batch.kwargs)
        also: tuple = ()
        loss, targets, template = None, (), ""
        if self.loss_fn is not None:
            bound = Call.bind(self.loss_fn, (_ANY, *batch.targets))
            loss, targets, template = bound, bound.leaves[1:], bound.template
            also = (self.loss_fn, *bound.constants)
        count = len(forward.leaves)

        def build(f: Callable) -> Callable:
            return kernel.build(f, loss.function() if loss is not None else None, count, self.weights.parameter_tuple)

        def first(f: Callable) -> Callable:
            slope = kernels.gradient(f, loss.function() if loss is not None else None, count,
                                     self.weights.parameter_tuple)

            def run(*tensors):
                return slope(*tensors[:count + len(targets)])
            return run

        try:
            return _compile.execute(kernel.name, forward, build, (*kernel.options, template, count, len(targets)),
                                    (*targets, *extras), self.weights.parameters, also, first=first)
        except KernelError as err:
            raise KernelError(f"batch {self._batch}: {err}") from err.__cause__

    def loss(self, batch: Batch) -> float:
        """The loss of one batch."""
        return float(_compat.to_numpy(self.run(batch, Kernel("risk", kernels.value))))

    # --- passes -----------------------------------------------------------------------------------------------------

    def batches(self, what: str, progress: bool | None, skip: int = 0) -> Iterator[tuple[int, Batch]]:
        """The batches with their numbers, under a progress bar."""
        with bar(what, self.num_batches, progress, self.comm.rank, skip) as shown:
            for number, batch in enumerate(self.data):
                if number < skip:
                    continue
                self._batch = number
                yield number, batch
                shown.update()

    @interruptible
    def gradient_and_loss(self, progress: bool | None = None) -> tuple[np.ndarray, float]:
        """The gradient of the risk, flat, and the risk."""
        total, value = np.zeros(sum(self.weights.sizes)), 0.0
        with self.comm.together(total.size + 1):
            for _, batch in self.batches("gradient", progress):
                loss, slope = self.run(batch, Kernel("gradient", kernels.gradient))
                total += self.factor(batch) * _compat.to_numpy(slope)
                value += self.factor(batch) * float(_compat.to_numpy(loss))
        joined = self.comm.total(np.append(total, value))
        return joined[:-1].astype(self.weights.numpy_dtype), float(joined[-1])

    @interruptible
    def products(self, make: Callable[[Batch, int], tuple[Kernel, tuple[Tensor, ...]]], matrix: np.ndarray,
                 batched: bool, progress: bool | None = None, partial: Partial | None = None) -> np.ndarray:
        """The sum over the batches of a kernel's products with the columns of a matrix, in one pass.

        Args:
            make: the kernel of a batch, given its number as well, and what it needs before the vectors.
            matrix: (n, k), of the dtype of the operator.
            batched: all columns at once; else one after another.
            partial: where the partial sum is kept, so that a pass that was cut off goes on.
        """
        state = partial.read() if partial is not None else None
        start, total = (state[0], state[1].T) if state is not None else (0, None)
        rows = transposed(matrix)
        with self.comm.together(matrix.size):
            for number, batch in self.batches("product", progress, start):
                kernel, extras = make(batch, number)
                part = self._product(batch, kernel, extras, rows, batched)
                self._check(part, kernel, number)
                share = self.factor(batch) * part  # a copy: the next call may write where this result is
                if total is None:
                    total = share
                elif total.dtype == np.float64:
                    total += share
                else:  # the second batch
                    total = np.add(total, share, dtype=np.float64)
                if partial is not None:
                    partial.write(number + 1, total.T)
        total = np.zeros(rows.shape) if total is None else total
        if partial is not None:
            partial.over(self.num_batches, total.T)
        return self.comm.total(total).astype(matrix.dtype, copy=False).T

    def _product(self, batch: Batch, kernel: Kernel, extras: tuple[Tensor, ...], rows: np.ndarray,
                 batched: bool) -> np.ndarray:
        def loop() -> np.ndarray:
            out = np.empty_like(rows)
            for number, row in enumerate(rows):  # copied: the next call may write where this result is
                out[number] = _compat.to_numpy(self.run(batch, kernel, (*extras, Tensor(row))))
            return out

        def at_once() -> np.ndarray:
            return _compat.to_numpy(self.run(batch, kernel, (*extras, Tensor(rows))))
        return batched_or_loop(kernel.name, at_once, loop) if batched else loop()

    def _check(self, part: np.ndarray, kernel: Kernel, number: int) -> None:
        if np.isfinite(part.sum(dtype=np.float64)) or np.isfinite(part).all():
            return
        bad = [name for name, where in self.weights.slices.items() if not np.isfinite(part[:, where]).all()]
        warn(f"the product of {kernel.name} with batch {number} holds NaN or Inf, in the entries of "
             f"{', '.join(bad[:5])}{' and others' if len(bad) > 5 else ''}", NonFiniteWarning)

    def training(self) -> list[tuple[str, nn.Cell]]:
        """The cells in training mode that behave differently there: dropout and batch norm, by name."""
        if not isinstance(self.network, nn.Cell):
            return []
        return [(name, cell) for name, cell in self.network.cells_and_names()
                if cell.training and ("Dropout" in type(cell).__name__ or "BatchNorm" in type(cell).__name__)]
