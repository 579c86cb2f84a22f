"""What the operators of a network and its data have in common: arguments, weights, products,
checks, blocks.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian import _checkpoint, _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    check_bool,
    check_choice,
    check_progress,
    check_vector,
    is_integer,
    shown,
)
from mindspore_hessian.core.captures import Captures
from mindspore_hessian.core.program import Program
from mindspore_hessian.core.space import Space, numpy_dtype, ravel
from mindspore_hessian.device import device_info
from mindspore_hessian.operators import weights as weight_choice
from mindspore_hessian.operators.base import Operator, check_vectors, refuse_recorded
from mindspore_hessian.operators.checks import check_deterministic as deterministic
from mindspore_hessian.operators.checks import check_network
from mindspore_hessian.operators.data import Batch, Data
from mindspore_hessian.operators.distributed import communicator
from mindspore_hessian.operators.plan import FEW, Plan, chunks, memory_available, plan
from mindspore_hessian.operators.progress import Partial, fingerprint
from mindspore_hessian.operators.risk import Risk
from mindspore_hessian.typing import Blocks, Output, Reduction, WeightNames

BLOCKS = ("layer", "parameter")


class CurvatureOperator(Operator):
    """The base of `HessianOperator`, `GGNOperator`, `FisherOperator` and `EmpiricalFisherOperator`.

    Attributes:
        network, loss_fn: as given.
        space: the weights as leaves of flat vectors: shapes, slices, ravel and unravel.
        weights: the Parameters, in this order.
        reduction: "mean" or "sum": how the loss treats its batch, as given or found out.
        num_data: N, the number of samples.
        num_batches: of one pass.
        weighed_by: what the batches of a mean loss are weighed by, in words.
    """

    program: Program
    needs_loss = True
    by_terms = False  # whether the weights of the terms within a batch matter
    by_output = True  # whether the loss counts as a function of the network's output alone

    @interruptible
    def __init__(
        self,
        network: Callable[..., Any],
        loss_fn: Callable[..., Any] | None,
        data: Any,
        weights: WeightNames = None,
        *,
        block_diagonal: Blocks | None = None,
        reduction: Reduction | None = None,
        num_data: int | None = None,
        batch_size_fn: Callable | None = None,
        micro_batch: int | None = None,
        chunk_size: int | None = None,
        distributed: bool = False,
        check_deterministic: bool = True,
        progress: bool | None = None,
        output: Output = None,
        batch_weight: Callable[[Any], float] | Literal["samples"] | None = None,
        keep_data: bool = True,
    ):
        check_network(network, loss_fn, output)
        if loss_fn is None and self.needs_loss:
            raise ValueError(
                f"{type(self).__name__} needs loss_fn: it is about the loss at the network's "
                "output. For a function that returns the loss itself there is HessianOperator"
            )
        if block_diagonal is not None:
            check_choice("block_diagonal", block_diagonal, BLOCKS)
        if reduction is not None:
            check_choice("reduction", reduction, ("mean", "sum"))
        for name, number in (("num_data", num_data), ("chunk_size", chunk_size)):
            if number is not None and (not is_integer(number) or number < 1):
                raise ValueError(f"{name} must be a positive int or None, but got {shown(number)}")
        check_bool("check_deterministic", check_deterministic)
        check_bool("keep_data", keep_data)
        check_progress(progress)
        self.space = weight_choice.choose(network, weights)
        self.block_diagonal, self.chunk_size, self.progress = block_diagonal, chunk_size, progress
        self.dtype = numpy_dtype(self.space.flat_dtype)
        self.shape = (self.space.size,) * 2
        source = Data(data, network, loss_fn is not None, batch_size_fn, micro_batch, num_data or 0)
        self.risk = Risk(
            network,
            loss_fn,
            source,
            self.space,
            reduction,
            num_data,
            communicator(distributed, self.dtype),
            batch_weight,
            output,
            self.by_terms,
        )
        self.shows_progress = self.risk.comm.rank == 0
        if self.by_output:
            self._check_penalty()
        self._set_up()
        if check_deterministic:
            deterministic(self)
        if keep_data:
            source.keep(memory_available() // 4)

    def _set_up(self) -> None:
        """What a subclass finds out once."""

    def _check_penalty(self) -> None:
        """Raise where the loss reads weights itself, past the output."""
        read = {} if self.loss_fn is None else Captures(self.loss_fn).parameters
        names = [weight.name for weight in self.weights if id(weight) in read]
        if names:
            raise ValueError(
                f"loss_fn reads weights itself ({', '.join(names[:3])}: a penalty?), and "
                f"{type(self).__name__} is about the loss as a function of the network's output. "
                "Leave that out of loss_fn and add its own matrix: an L2 penalty c |w|^2 is "
                "op + 2 * c * linops.Diagonal(ones). HessianOperator takes it as it is"
            )

    weights = property(lambda self: self.space.weights)
    network = property(lambda self: self.risk.network)
    loss_fn = property(lambda self: self.risk.loss_fn)
    reduction = property(lambda self: self.risk.reduction)
    num_data = property(lambda self: self.risk.num_data)
    num_batches = property(lambda self: self.risk.num_batches)
    weighed_by = property(lambda self: self.risk.weighing.how)

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        return weight_choice.layers(self.space)

    @property
    def layer_classes(self) -> Mapping[str, str]:
        return weight_choice.layer_classes(self.risk.network, self.weights)

    def flatten(self, structure: Any) -> np.ndarray:
        refuse_recorded(structure)
        return self.space.ravel(structure)

    def unflatten(self, flat: np.ndarray) -> tuple[Tensor, ...]:
        return self.space.unravel(flat)

    def _times_structure(self, structure: Any) -> tuple[Tensor, ...]:
        """(Large weights go in as they are, without a copy.)"""
        ours = type(self).columns is CurvatureOperator.columns and not self.block_diagonal
        if not (ours and self.risk.apart):
            return super()._times_structure(structure)
        refuse_recorded(structure)
        parts = self.space.arrays(structure)
        if not all(part.dtype.kind in "fiub" for part in parts):
            return super()._times_structure(structure)  # which says so
        parts = [part.astype(self.dtype, copy=False) for part in parts]
        product = self.risk.products(self._make, parts, False, self.progress)
        return self.space.unravel(product[:, 0], copy=False)

    def gradient_and_loss(self) -> tuple[tuple[Tensor, ...], float]:
        """The gradient of the risk, shaped like the weights, and the risk: one pass over the
        data.
        """
        slope, value = self.risk.gradient_and_loss(self.progress)
        return self.unflatten(slope), value

    @interruptible
    def loss(self) -> float:
        """The risk at the weights as they are: one pass over the data without derivatives."""
        with self.risk.comm.together(1):
            value = self.risk.value()
        return float(self.risk.comm.total(np.array([value]))[0])

    @property
    def point(self) -> np.ndarray:
        """The weights as they are, flat, in float64. Reading it waits for a training step that
        still runs.
        """
        return ravel(self.weights, np.float64)

    @contextlib.contextmanager
    def at(self, point: Any) -> Iterator[CurvatureOperator]:
        """Within it the network's weights, and so the operator, are at another point; afterwards,
        also after an error, they are back, bit for bit.

        Args:
            point: flat, as `point` is, or shaped like the weights.

        Raises:
            TypeError, ValueError: `point` is no vector of real numbers of that size.
        """
        structured = isinstance(point, tuple | list) and any(np.ndim(part) for part in point)
        flat = check_vector("point", self.flatten(point) if structured else point, self.shape[0])
        with _compat.kept(self.weights) as before:
            for parameter, part, old in zip(
                self.weights, self.space.split(flat), before, strict=True
            ):
                _compat.assign(parameter, part.astype(old.dtype))
            yield self

    def in_training(self) -> tuple[str, ...]:
        """The names of the cells in training mode that behave differently there: dropout and batch
        norm.
        """
        return tuple(name for name, _ in self.risk.training())

    def columns(self, matrix: np.ndarray) -> np.ndarray:
        return self.product(matrix)

    @interruptible
    def product(self, vectors: Any, checkpoint: str | os.PathLike | None = None) -> np.ndarray:
        """``op @ vectors`` for a flat vector or a matrix, with the partial sum kept in a file.

        Args:
            vectors: (n,) or (n, k).
            checkpoint: a file for the sum over the batches done so far, written every few seconds.
                A call with the same vectors and weights goes on from there; at the end the file is
                removed. A distributed operator keeps a file for each rank, and a matrix in several
                chunks one for each, which add a number to the name.
                None: no file.
        """
        array = check_vectors(vectors, self.shape[0], self.dtype)
        matrix = array.reshape(self.shape[0], -1)
        out = (
            self._blockwise(matrix, checkpoint)
            if self.block_diagonal
            else self._chunked(matrix, checkpoint)
        )
        return out.reshape(array.shape)

    def _blockwise(self, matrix: np.ndarray, checkpoint: Any) -> np.ndarray:
        """Each block times its part of the columns: as many products as there are blocks, in one
        pass.
        """
        blocks = list(weight_choice.blocks(self.space, self.block_diagonal or "").values())
        masked = np.zeros((matrix.shape[0], matrix.shape[1] * len(blocks)), matrix.dtype)
        for number, block in enumerate(blocks):
            masked[block, number :: len(blocks)] = matrix[block]
        products = self._chunked(masked, checkpoint)
        out = np.empty_like(matrix)
        for number, block in enumerate(blocks):
            out[block] = products[block, number :: len(blocks)]
        return out

    def _chunked(self, matrix: np.ndarray, checkpoint: Any) -> np.ndarray:
        """Columns in chunks of few widths, since each width is compiled: a chunk at once is filled
        up with zeros.
        """
        checkpoint = _checkpoint.named(checkpoint)
        jobs, pieces, start, columns = [], [], 0, matrix.shape[1]
        backend = device_info().backend if columns > FEW else ""  # no matter for a few
        for width, at_once in chunks(columns, self.chunk_size, self.shape[0], backend):
            piece = filled = matrix[:, start : start + width]
            if width > piece.shape[1]:
                filled = np.zeros((matrix.shape[0], width), matrix.dtype)
                filled[:, : piece.shape[1]] = piece
            partial = None
            if checkpoint is not None:
                partial = self._partial(checkpoint, filled, start, start + width >= columns)
                partial.read()  # a file that is not ours is an error before anything is computed
            jobs.append((filled, piece.shape[1], at_once, partial))
            start += width
        for filled, count, at_once, partial in jobs:
            pieces.append(
                self.risk.products(self._make, filled, at_once, self.progress, partial)[:, :count]
            )
        for *_, partial in jobs:
            if partial is not None:
                partial.remove()
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def _partial(self, checkpoint: str, matrix: np.ndarray, start: int, last: bool) -> Partial:
        """For a chunk that begins at column `start`; the chunks have a file each."""
        values = [_compat.to_numpy(p.value()) for p in self.weights]
        token = fingerprint(matrix, np.array([start, self.num_batches, self.num_data]), *values)
        comm = self.risk.comm
        path = (
            checkpoint + (f".{comm.rank}" if comm.size > 1 else "") + (f".{start}" if start else "")
        )
        return Partial(path, f"{type(self).__name__} {token}", last)

    @interruptible
    def plan(self, columns: int = 1, max_memory: int | None = None) -> Plan:
        """What ``op @ V`` for `columns` columns will cost, and how to keep it within `max_memory`
        bytes.

        One product with the first batch is measured (after one that compiles it); the rest is
        arithmetic.
        """
        return plan(self, columns, max_memory)

    def _make(self, batch: Batch, number: int) -> tuple[Program, tuple[Tensor, ...]]:
        """The program for a batch, and what it takes between the targets and the vectors."""
        return self.program, ()

    def block(self, name: str) -> CurvatureOperator:
        """The diagonal block of a layer or of one Parameter: the same operator of these weights
        alone.
        """
        chosen = [p for p in self.weights if name in (p.name, weight_choice.layer_of(p.name))]
        if not chosen:
            raise ValueError(
                f"there is no layer or weight {name!r}; there are {', '.join(self.layers)} and "
                f"{', '.join(p.name for p in self.weights)}"
            )
        return self.of_weights(chosen)

    def of_weights(self, chosen: Sequence[Parameter]) -> CurvatureOperator:
        """The same operator of some of its weights alone."""
        out = copy.copy(self)
        out.space = Space.of_weights(chosen)
        out.shape = (out.space.size,) * 2
        out.risk = copy.copy(self.risk)
        out.risk.space = out.space
        return out

    def __repr__(self) -> str:
        weighed = (
            f", batches weighed by {self.weighed_by}"
            if self.reduction == "mean" and self.num_batches > 1
            else ""
        )
        return (
            f"<{type(self).__name__} of shape {self.shape}, {self.dtype}: {self.num_data} samples "
            f"in {self.num_batches} batches, a {self.reduction} loss{weighed}>"
        )
