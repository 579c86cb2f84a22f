"""What belongs to single samples: their gradients, and vectors pulled back through the network for
each by itself.

A sample is a batch of one, so that nothing in the network or the loss mixes it with others. The
samples of a chunk are batched (`vmap`), with the weights in common; where a primitive cannot be
batched, they come one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mindspore import Tensor, ops, vmap

from mindspore_hessian import _compat
from mindspore_hessian._errors import NonFiniteWarning, warn
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import check_progress, is_integer, shown
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.program import Function, Program
from mindspore_hessian.core.space import Space, raveled
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators import weights as weight_choice
from mindspore_hessian.operators.checks import check_network
from mindspore_hessian.operators.data import Batch, Data, is_samples, mapped
from mindspore_hessian.operators.progress import bar
from mindspore_hessian.operators.risk import BatchRunner, Risk
from mindspore_hessian.transforms import compose
from mindspore_hessian.transforms.chunks import batched_or_loop, starts
from mindspore_hessian.typing import Output, WeightNames

_BYTES = 2**27  # that the rows of a chunk take
_EXPAND = ops.ExpandDims()


# --- what MindSpore compiles ----------------------------------------------------------------------


def slope(function: Function, space: Space):
    """The flat gradient of the loss of a batch of one."""
    by_weights, dtype = (
        compose.gradient(kernels.risk(function), (), space.parameters),
        space.flat_dtype,
    )

    def run(*tensors):
        return raveled(by_weights(*tensors), dtype)

    return run


def pulled(function: Function, space: Space):
    """J^T u of a batch of one, flat; u comes after the targets."""
    pull, n = compose.vjp(kernels.one_output(function.value), (), space.parameters), function.n
    dtype = space.flat_dtype

    def run(*tensors):
        return raveled(pull(tensors[:n], tensors[-1]), dtype)

    return run


def over_samples(build, axes, extras):
    """`build` for each sample of a batch: rows (samples, P). `axes` says which inputs have one row
    a sample; each of the `extras` has."""

    def make(function: Function, space: Space):
        alone = build(function, space)

        def one(*tensors):
            xs = ()
            for tensor, axis in zip(tensors, axes):  # noqa: B905 -- compiled by MindSpore, which has no strict=
                xs = xs + (tensor if axis is None else _EXPAND(tensor, 0),)
            return alone(*xs, *tensors[len(axes) :])

        return vmap(one, in_axes=axes + (0,) * extras)

    return make


def squares(build, axes):
    """The sums over the samples of ``sign * row^2``, entry by entry, and of the rows; the signs
    come last.
    """
    rows = over_samples(build, axes, 1)

    def make(function: Function, space: Space):
        each = rows(function, space)

        def run(*tensors):
            found = each(*tensors[:-1])
            return ops.matmul(_EXPAND(tensors[-1], 0), found * found)[0], found.sum(0)

        return run

    return make


GRADIENTS, PULLED = Program("per_sample_gradients", slope), Program("per_sample_jacobian", pulled)


# --- samples of batches ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The samples of batches, in chunks.

    Attributes:
        risk: the network, its loss and its weights.
        chunk_size: samples at a time; None: as many as memory allows.
    """

    risk: BatchRunner
    chunk_size: int | None = None

    def rows(self, batch: Batch, program: Program, *extras: np.ndarray) -> np.ndarray:
        """Of each sample what `program` gives for a batch of one and its rows of the extras:
        (samples, P).
        """
        return np.concatenate(
            [
                self._rows(part, program, [one[at] for one in extras])[skip:]
                for part, at, skip in self._chunks(batch)
            ]
        )

    def jacobian(self, batch: Batch, shape: tuple[int, ...] = (), dtype: Any = None) -> np.ndarray:
        """The Jacobian of the output of each sample, (samples, outputs, P), a pass back for each
        output.

        Args:
            shape, dtype: of the output of the batch, with as many rows for each sample; dtype is
                numpy's. None: found out.
        """
        if dtype is None:
            out = self.risk.output(batch)
            shape, dtype = out.shape, out.dtype
        inner = shape[0] // batch.size, *shape[1:]
        count = int(np.prod(inner, dtype=np.int64))
        units = np.eye(count, dtype=dtype).reshape(count, 1, *inner)
        return np.stack(
            [self.rows(batch, PULLED, np.repeat(unit, batch.size, 0)) for unit in units], axis=1
        )

    def squares(
        self, batch: Batch, program: Program, vectors: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        """The sums over the samples of ``sign * row^2`` and of the rows, which are as `rows` has
        them: (2, P).
        """
        total = np.zeros((2, self.risk.space.size))
        for part, at, skip in self._chunks(batch):
            own = vectors[at].copy()
            own[:skip] = 0
            total += self._squares(part, program, own, signs[at])
        return total

    def _squares(
        self, part: Batch, program: Program, vectors: np.ndarray, signs: np.ndarray
    ) -> np.ndarray:
        def at_once() -> np.ndarray:
            axes = self._axes(part)
            found = self.risk.run(
                part,
                Program(
                    f"{program.name}.squares",
                    squares(program.build, axes),
                    (*program.options, axes),
                ),
                (Tensor(vectors), Tensor(signs.astype(vectors.dtype))),
            )
            return np.stack([_compat.to_numpy(one).astype(np.float64) for one in found])

        def loop() -> np.ndarray:
            rows = self._loop(part, program, [vectors]).astype(np.float64)
            return np.stack([signs @ rows**2, rows.sum(0)])

        return batched_or_loop(program.name, at_once, loop)

    def _rows(self, part: Batch, program: Program, extras: Sequence[np.ndarray]) -> np.ndarray:
        def at_once() -> np.ndarray:
            axes = self._axes(part)
            whole = Program(
                program.name,
                over_samples(program.build, axes, len(extras)),
                (*program.options, axes),
            )
            return _compat.to_numpy(self.risk.run(part, whole, tuple(map(Tensor, extras)))).copy()

        return batched_or_loop(program.name, at_once, lambda: self._loop(part, program, extras))

    def _loop(self, part: Batch, program: Program, extras: Sequence[np.ndarray]) -> np.ndarray:
        alone = Program(f"{program.name}.one", program.build, program.options)
        return np.stack(
            [
                _compat.to_numpy(
                    self.risk.run(
                        cut(part, number, number + 1),
                        alone,
                        tuple(Tensor(one[number]) for one in extras),
                    )
                ).copy()
                for number in range(part.size)
            ]
        )

    def _axes(self, part: Batch) -> tuple[int | None, ...]:
        """Of the Tensors that a graph gets of a batch: 0 where it has a row for each sample."""
        leaves = Call.bind(self.risk.network, part.args, part.kwargs).leaves
        if self.risk.loss_fn is not None:
            leaves = (*leaves, *Call.bind(self.risk.loss_fn, (leaves[0], *part.targets)).leaves[1:])
        return tuple(0 if is_samples(leaf, part.size) else None for leaf in leaves)

    def _chunks(self, batch: Batch) -> Iterator[tuple[Batch, slice, int]]:
        """Parts of one size, the samples that they hold, and how many of them the part before holds
        too.
        """
        most = self.chunk_size or max(1, _BYTES // (self.risk.space.size * 8))
        count, done = min(most, batch.size), 0
        for start in starts(batch.size, count):
            yield cut(batch, start, start + count), slice(start, start + count), done - start
            done = start + count


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Some samples of a batch."""

    def some(value: Any) -> Any:
        return value[start:stop] if is_samples(value, batch.size) else value

    if stop - start == batch.size:
        return batch
    parts = {part: mapped(some, getattr(batch, part)) for part in ("args", "kwargs", "targets")}
    return replace(batch, **parts, size=stop - start)


def check_arguments(
    network: Any, loss_fn: Any, output: Any, chunk_size: Any, progress: Any
) -> None:
    """Raise where they are no arguments of an operator."""
    check_network(network, loss_fn, output)
    if chunk_size is not None and (not is_integer(chunk_size) or chunk_size < 1):
        raise ValueError(f"chunk_size must be a positive int or None, but got {shown(chunk_size)}")
    check_progress(progress)


def refuse_training(risk: Risk, kinds: tuple[str, ...], why: str) -> None:
    """Raise where cells of such classes are in training mode."""
    active = [
        name for name, cell in risk.training() if any(kind in type(cell).__name__ for kind in kinds)
    ]
    if active:
        raise ValueError(
            f"{', '.join(active[:5])} of the network {'is' if len(active) == 1 else 'are'} in "
            f"training mode, where {why}: call network.set_train(False)"
        )


@interruptible
def per_sample_gradients(
    network: Callable[..., Any],
    loss_fn: Callable[..., Any] | None,
    batch: Any,
    weights: WeightNames = None,
    *,
    chunk_size: int | None = None,
    output: Output = None,
    progress: bool | None = None,
) -> np.ndarray:
    r"""The gradient of the loss of each sample by itself,
    :math:`G_{np} = \partial \ell_n / \partial w_p`.

    :math:`\ell_n` is the loss of sample n as a batch of one: for a mean loss the rows have as their
    mean the gradient of the batch, where each sample has as many terms (no ignored targets, no
    weights of classes), for a summed loss as their sum. Costs about one gradient for all samples of
    a chunk, which are batched, and as much memory as they have numbers; where a primitive of the
    network cannot be batched, the samples come one after another, with a warning.

    Args:
        network, loss_fn: as `HessianOperator` has them; where `loss_fn` is None, the network
            returns the loss.
        batch: one batch, as in `data` there, or several: their samples one after another.
        weights: as `HessianOperator` has them; the columns are in their order, that of the
            operators' flat vectors.
        chunk_size: samples at a time; None: as many as rows of 128 MiB hold.
        output: which of the things that the network returns goes to the loss.
        progress: True shows a bar at once, None after two seconds, False never.

    Returns:
        numpy array (samples, P), float64 where a weight is, else float32.

    Raises:
        TypeError, ValueError, NotCompilableError, MissingRuleError: as `HessianOperator`; also
            where dropout or batch norm are in training mode.

    Warns:
        FallbackWarning: a primitive has no batching rule.
        NonFiniteWarning: rows hold NaN or Inf.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU`` (tested)

    Source:
        I. Goodfellow, Efficient per-example gradient computations, arXiv 1510.01799, 2015.

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import per_sample_gradients
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> print(per_sample_gradients(net, nn.MSELoss(), (x, y)))
        [[2. 0.]
         [0. 8.]]
    """
    check_arguments(network, loss_fn, output, chunk_size, progress)
    chosen = weight_choice.choose(network, weights)
    risk = Risk(
        network,
        loss_fn,
        Data(batch, network, loss_fn is not None),
        chosen,
        "sum",
        None,
        pick=output,
    )
    refuse_training(risk, ("Dropout", "BatchNorm"), "a sample by itself has no loss of its own")
    samples, found = Samples(risk, chunk_size), []
    with bar("per-sample gradients", risk.num_batches, progress, 0, 0) as shown_bar:
        for one in risk.data:
            found.append(samples.rows(one, GRADIENTS))
            shown_bar.update()
    rows = np.concatenate(found)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        warn(
            f"the gradients of {bad.size} of {len(rows)} samples hold NaN or Inf: "
            f"{', '.join(map(str, bad[:5]))}"
            f"{' and others' if bad.size > 5 else ''}",
            NonFiniteWarning,
        )
    return rows
