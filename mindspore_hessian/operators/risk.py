"""A network, its loss and its data as one function of the weights, the empirical risk, and passes
over it.

The risk is the sum over the batches of ``(w_b / W) * loss_b`` where the loss is a mean over its
batch, and of ``loss_b`` where it is a sum; w_b is what the mean of the batch divides by (see
`weighing`), W the sum of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian._errors import KernelError, NonFiniteWarning, warn
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.core.captures import Captures
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.program import Point, Program
from mindspore_hessian.core.space import Space, numpy_dtype
from mindspore_hessian.operators import kernels, weighing
from mindspore_hessian.operators.checks import in_training
from mindspore_hessian.operators.data import NO_BATCHES, Batch, Data, leaves, together, twice
from mindspore_hessian.operators.distributed import ALONE, Communicator
from mindspore_hessian.operators.progress import Partial, bar
from mindspore_hessian.operators.weighing import SAMPLES, Weighing
from mindspore_hessian.operators.weights import slices
from mindspore_hessian.transforms.chunks import batched_or_loop
from mindspore_hessian.transforms.products import OUTPUT as ANY

OUTPUT, LOSS, GRADIENT = (
    Program(name, build)
    for name, build in (
        ("output", kernels.output),
        ("risk", kernels.value),
        ("gradient", kernels.gradient),
    )
)
LARGE = 2**15  # entries of a weight, on average
_NO_PART = re.compile(
    r"TupleGetItem evaluator index|does not exist in the dict|object is not subscriptable|"
    "_getitem__|For 'StridedSlice', the 'strides|index .* out of"
)
_LABEL = re.compile(
    r"(?i)label must in scope|GatherD.*value of 'index' must be in"
)  # as the kernels say it


_PIECE = 2**16  # numbers that stay in the cache


def _scaled(result: Tensor, factor: float, out: np.ndarray) -> bool:
    """Writes `factor` times the result to `out`, which is flat; whether all of it is finite."""
    array, finite = _compat.to_numpy(result).reshape(-1), True
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, out.size, _PIECE):
            piece = out[start : start + _PIECE]
            np.multiply(array[start : start + _PIECE], factor, out=piece)
            # (a sum takes three times as long; NaN is the largest and the smallest)
            finite &= bool(np.isfinite(piece.max()) and np.isfinite(piece.min()))
    return finite


def transposed(matrix: np.ndarray) -> np.ndarray:
    """matrix.T as rows that are each in one piece, in blocks that fit the cache: three times as
    fast as numpy's way.
    """
    if matrix.flags.f_contiguous:
        return matrix.T
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 512):
        out[:, start : start + 512] = matrix[start : start + 512].T
    return out


class BatchRunner:
    """A network and its loss, on one batch at a time: nothing here goes through the data.

    Args:
        pick: which of the things that the network returns counts (see `kernels`).
    """

    def __init__(self, network: Any, loss_fn: Any, space: Space, pick: Any = None):
        self.network, self.loss_fn, self.space, self.pick = network, loss_fn, space, pick
        self._known: Weighing | None = None

    def check_labels(self, batch: Batch) -> None:
        """Raise where one of MindSpore's own losses would take a label in silence that is no
        class.
        """
        if self._known is None:
            self._known = (
                weighing.known(self.loss_fn, lambda: _width(self.output(batch))) or SAMPLES
            )
        self._known.of(batch)

    def run(self, batch: Batch, program: Program, extras: tuple[Tensor, ...] = ()) -> Any:
        """Run a program on a batch; compiled once for each shape of batch."""
        forward = Call.bind(self.network, batch.args, batch.kwargs, self.pick)
        loss = None if self.loss_fn is None else Call.bind(self.loss_fn, (ANY, *batch.targets))
        try:
            return program.run(Point(forward, self.space, loss=loss), extras)[0]
        except (TypeError, ValueError, LookupError, RuntimeError) as err:
            if program is not OUTPUT:
                self._explain(batch, err)
            if isinstance(err, KernelError) or (
                type(err) in (TypeError, ValueError) and err.__cause__ is not None
            ):
                raise type(err)(f"batch {batch.number}: {err}") from err.__cause__
            raise

    def _explain(self, batch: Batch, err: Exception) -> None:
        """Raise a clearer error where the outputs or the labels are the cause."""
        if _LABEL.search(f"{err} {err.__cause__}"):
            for labels in (_compat.to_numpy(leaf) for leaf in leaves(batch.targets)):
                if labels.dtype.kind in "iu":
                    classes = _width(self.output(batch))
                    above = labels[
                        labels >= classes
                    ]  # first: what is below may be what the loss ignores
                    weighing.check_labels(
                        above if above.size else labels[labels < -classes], batch.number, classes
                    )
        elif self.pick is not None and not callable(self.pick) and _NO_PART.search(str(err)):
            raise ValueError(
                f"output={self.pick!r} is no part of what the network returns: {err}"
            ) from err
        elif (
            isinstance(err, TypeError | ValueError)
            and self.pick is None
            and self.loss_fn is not None
        ):
            try:
                self.output(batch)
            except TypeError as other:
                if kernels.NOT_ONE in str(other):
                    raise TypeError(kernels.NOT_ONE) from err
            except Exception:  # the first error says more
                return

    def output(self, batch: Batch) -> np.ndarray:
        """What the network gives for a batch."""
        return _compat.to_numpy(self.run(batch, OUTPUT)).copy()

    def loss(self, batch: Batch) -> float:
        """The loss of one batch."""
        return float(_compat.to_numpy(self.run(batch, LOSS)))


def _width(out: np.ndarray) -> int:
    """The number of classes: that of axis 1 of a network's output."""
    return out.shape[1] if out.ndim > 1 else out.shape[0]


class Risk(BatchRunner):
    """See the module. The arguments are those of the operators, checked.

    `by_terms`: the weights of the terms within each batch matter as well (a Fisher information).
    """

    def __init__(
        self,
        network: Any,
        loss_fn: Any,
        data: Data,
        space: Space,
        reduction: str | None,
        num_data: int | None,
        comm: Communicator = ALONE,
        batch_weight: Any = None,
        pick: Any = None,
        by_terms: bool = False,
    ):
        super().__init__(network, loss_fn, space, pick)
        self.data, self.comm = data, comm
        self._stated = None if batch_weight is None else weighing.stated(batch_weight)
        self._asked, self._by_terms = num_data, by_terms
        self.reduction = reduction or self._said() or self._detected()
        self._weigh()

    def _weigh(self) -> None:
        """Find out what the batches weigh, which an option of the loss may say (`ignore_index`)."""
        loss_fn, comm, num_data = self.loss_fn, self.comm, self._asked
        self._weighed_for = self._of_loss()
        known = self._stated or (None if loss_fn is None else weighing.known(loss_fn, self.classes))
        self.weighing: Weighing = known or SAMPLES
        self._counts: float | None = None  # what the batches of this process weigh together
        self.num_batches = self.data.count() or 0
        if num_data is not None and self.num_batches and comm is ALONE and known is SAMPLES:
            self.num_data = self._total = num_data
            return
        with comm.together(2):
            sizes, counts = self._counted()
            if (
                known is None
                and self.reduction == "mean"
                and (self._by_terms or len(sizes) > 1 or comm is not ALONE)
            ):
                self.weighing = self._measured()
                sizes, counts = self._counted()
        self.num_batches = len(sizes)
        samples, total = comm.total(np.array([float(sum(sizes)), sum(counts)]))
        if self.reduction == "mean" and not total:
            raise ValueError(f"no batch counts: the weights of all ({self.weighing.how}) are 0")
        self.num_data = num_data or round(samples)
        self._total = total * self.num_data / samples
        if self.reduction == "mean" and self.weighing.terms is not None:
            self._counts = float(sum(counts))

    def _of_loss(self) -> Any:
        """What the loss captured, as something to compare."""
        return None if self.loss_fn is None else Captures(self.loss_fn).token

    def _counted(self) -> tuple[list[int], list[float]]:
        """The number of samples and the weight of each batch."""
        found = [(batch.size, self.weighing.of(batch)) for batch in self.data]
        if not found:
            raise ValueError(NO_BATCHES)
        return [size for size, _ in found], [weight for _, weight in found]

    def _measured(self) -> Weighing:
        """How a loss weighs its batches that is not one of MindSpore's own."""
        if self.loss_fn is None:
            return self._compared("the network returns the loss itself")
        measure = weighing.Measure(self)
        try:
            for batch in self.data:
                measure.refer(batch)
            for batch in self.data:
                measure.add(batch)
        except weighing.Unmeasurable as err:
            return self._compared(str(err))
        found = measure.weighing(self.comm is not ALONE)
        weighing.compare(self.data, found, measure.losses)
        return found

    def _compared(self, why: str) -> Weighing:
        """By samples, as far as the losses themselves agree with that."""

        def losses(*batches: Batch) -> list[float]:
            return [self.loss(batch) for batch in (*batches, together(*batches))]

        pairs = 0 if self.training() else weighing.compare(self.data, SAMPLES, losses)
        checked = (
            f"compared in {pairs} pair{'s' * (pairs != 1)} of batches"
            if pairs
            else f"not checked: {why}"
        )
        return Weighing(f"their samples ({checked})", SAMPLES.of, uniform=True)

    def _said(self) -> str | None:
        """Whether the loss says that it is a mean or a sum over its batch."""
        function = weighing.unwrapped(self.loss_fn)
        said = (
            weighing.options_of(self.loss_fn, ("reduction",))["reduction"]
            if weighing.is_known(function)
            else getattr(function, "reduction", None)
        )
        if (
            said is None
            and isinstance(self.loss_fn, nn.LossBase)
            and getattr(self.loss_fn, "reduce", False)
        ):
            said = "mean" if self.loss_fn.average else "sum"
        return said if said in ("mean", "sum") else None

    def _detected(self) -> str:
        """The same, from what doubling a batch does to the loss: the first batch that has one."""
        first = self.data.first()
        batch = next((one for one in self.data if np.isfinite(self.loss(one))), first)
        once, double = (float(self.loss(b)) for b in (batch, twice(batch)))
        for name, factor in (("mean", 1.0), ("sum", 2.0)):
            if abs(double - factor * once) <= 1e-3 * max(abs(once), 1e-30):
                return name
        raise ValueError(
            f"the loss is neither a mean nor a sum over its batch: it is {once:.6g} for the first "
            f"batch, and {double:.6g} where every sample is in it twice. Say how batches add up: "
            "reduction='mean' or 'sum'"
        )

    def classes(self) -> int:
        """The number of classes."""
        return _width(self.output(self.data.first()))

    # --- passes -----------------------------------------------------------------------------------

    def batches(
        self, what: str, progress: bool | None, skip: int = 0
    ) -> Iterator[tuple[int, Batch, float]]:
        """The batches with their numbers and factors in the risk, under a progress bar; but those of
        weight 0, which have no loss: their mean is 0/0.
        """
        if self._of_loss() != self._weighed_for:
            self._weigh()
        with bar(what, self.num_batches, progress, self.comm.rank, skip) as shown:
            seen, mean = 0.0, self.reduction == "mean"
            for number, batch in enumerate(self.data):
                if number < skip and self._counts is None:
                    continue
                weight = self.weighing.of(batch) if mean else 1.0
                seen += weight
                if number < skip:
                    continue
                if weight:
                    yield number, batch, weight / self._total if mean else 1.0
                shown.update()
        if self._counts is not None and not np.isclose(seen, self._counts, rtol=1e-9):
            raise ValueError(
                f"the targets have changed: by {self.weighing.how} the batches weighed "
                f"{self._counts:g} together when the operator was made, and {seen:g} now. Make a "
                "new operator"
            )

    def value(self) -> float:
        """The risk, from this process's data."""
        return sum(factor * self.loss(batch) for _, batch, factor in self.batches("loss", False))

    @interruptible
    def gradient_and_loss(self, progress: bool | None = None) -> tuple[np.ndarray, float]:
        """The gradient of the risk, flat, and the risk."""
        total, value = np.zeros(self.space.size), 0.0
        with self.comm.together(total.size + 1):
            for _, batch, factor in self.batches("gradient", progress):
                loss, slope = self.run(batch, GRADIENT)
                total += factor * _compat.to_numpy(slope)
                value += factor * float(_compat.to_numpy(loss))
        joined = self.comm.total(np.append(total, value))
        return joined[:-1].astype(numpy_dtype(self.space.flat_dtype)), float(joined[-1])

    @interruptible
    def products(
        self,
        make: Callable[[Batch, int], tuple[Program, tuple[Tensor, ...]]],
        matrix: np.ndarray | list[np.ndarray],
        batched: bool,
        progress: bool | None = None,
        partial: Partial | None = None,
    ) -> np.ndarray:
        """The sum over the batches of a program's products with the columns of a matrix, in one
        pass.

        Args:
            make: the program of a batch, given its number as well, and what it needs before the
                vectors.
            matrix: (n, k), of the dtype of the operator; or one vector, as an array a weight.
            batched: all columns at once; else one after another.
            partial: where the partial sum is kept, so that a pass that was cut off goes on.
        """
        state = partial.read() if partial is not None else None
        start, total = (state[0], state[1].T) if state is not None else (0, None)
        if isinstance(matrix, list):
            parts, rows = matrix, np.empty((1, self.space.size), matrix[0].dtype)
        else:
            parts, rows = None, transposed(matrix)
        with self.comm.together(rows.size):
            for number, batch, factor in self.batches("product", progress, start):
                program, extras = make(batch, number)
                share, finite = self._product(batch, program, extras, rows, batched, factor, parts)
                if not finite:
                    self._warn(share, program, number)
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
        return self.comm.total(total).astype(rows.dtype, copy=False).T

    def _product(
        self,
        batch: Batch,
        program: Program,
        extras: tuple[Tensor, ...],
        rows: np.ndarray,
        batched: bool,
        factor: float,
        parts: list[np.ndarray] | None,
    ) -> tuple[np.ndarray, bool]:
        """`factor` times the products, in memory of its own (the next call may write where a result
        is), and whether all numbers are finite. `parts`: the vector, in the place of the row."""
        out = np.empty_like(rows)

        def times(vectors: np.ndarray, out: np.ndarray) -> bool:
            # read before this returns, so that the memory of the vectors can be shared
            cut = self.apart and vectors.ndim == 1
            given = parts or (self.space.split(vectors) if cut else [vectors])
            tensors = [Tensor.from_numpy(np.require(one, requirements="C")) for one in given]
            found = self.run(batch, program, (*extras, *tensors))
            if not isinstance(found, tuple):
                return _scaled(found, factor, out.reshape(-1))
            finite = [
                _scaled(one, factor, out[where])
                for one, where in zip(found, self.space.slices, strict=True)
            ]
            return all(finite)

        def loop() -> tuple[np.ndarray, bool]:
            finite = True
            for row, place in zip(rows, out, strict=True):
                finite &= times(row, place)
            return out, finite

        def at_once() -> tuple[np.ndarray, bool]:
            return out, times(rows, out)

        return batched_or_loop(program.name, at_once, loop) if batched else loop()

    @property
    def apart(self) -> bool:
        """Whether a vector goes in as a Tensor a weight, which saves two copies and costs 20
        microseconds a weight. (That of one weight is flat as it is.)"""
        count = len(self.space.shapes)
        return count > 1 and self.space.size > LARGE * count

    def _warn(self, part: np.ndarray, program: Program, number: int) -> None:
        bad = [
            name
            for name, where in slices(self.space).items()
            if not np.isfinite(part[:, where]).all()
        ]
        warn(
            f"the product of {program.name} with batch {number} holds NaN or Inf, in the entries "
            f"of {', '.join(bad[:5])}{' and others' if len(bad) > 5 else ''}",
            NonFiniteWarning,
        )

    def training(self) -> list[tuple[str, nn.Cell]]:
        """The cells in training mode that behave differently there: dropout and batch norm, by
        name.
        """
        if not isinstance(self.network, nn.Cell):
            return []
        return in_training(self.network)
