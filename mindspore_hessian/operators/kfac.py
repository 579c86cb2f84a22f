"""Kronecker-factored curvature: a block for each layer, the product of a matrix of its inputs and
one of its gradients.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import numpy as np
from mindspore import Parameter, Tensor, nn

from mindspore_hessian import _checkpoint, _compat
from mindspore_hessian._errors import NonFiniteWarning, warn
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import check_bool, check_choice, check_integer
from mindspore_hessian.core.program import Program
from mindspore_hessian.device import device_info
from mindspore_hessian.linops.operator import Operator
from mindspore_hessian.linops.structured import (
    BlockDiagonal,
    Diagonal,
    Kronecker,
    Spectral,
    Structured,
    side_by_side,
)
from mindspore_hessian.operators import layers
from mindspore_hessian.operators.checks import TOLERANCE, check_losses, gap_of_losses, losses
from mindspore_hessian.operators.cotangents import (
    cotangents,
    in_graph,
    makes_in_graph,
    noises,
    row_count,
    scale_in_graph,
    term_weights,
)
from mindspore_hessian.operators.data import Batch, mapped
from mindspore_hessian.operators.distributed import ALONE
from mindspore_hessian.operators.fisher import EmpiricalFisherOperator, FisherOperator
from mindspore_hessian.operators.layers import Tap
from mindspore_hessian.operators.plan import memory_available
from mindspore_hessian.operators.progress import Partial, fingerprint
from mindspore_hessian.operators.weights import layer_of, slices
from mindspore_hessian.typing import Approximation, FisherKind, LikelihoodName, WeightNames

FISHERS = ("exact", "mc", "empirical")
APPROXIMATIONS = {
    "expand": "moments",
    "reduce": "sums",
}  # and the statistics of layers that they are made of
# Cotangents that are pulled back together, and what their statistics may take; on the CPU one after
# another, since a graph of several takes three times as long to compile there, and no less to run
_AT_ONCE, _BYTES = 16, 2**28
_WORTH_A_GRAPH = (
    32  # so many runs that compute the inputs' statistics in vain cost less than a graph without
)
_ROWS = 8  # so many rows for each feature are handed to numpy
_FOLDED = 2048  # rows that numpy multiplies at once, where they are few
_TOLERANCE = {
    np.dtype(np.float32): 1e-3,
    np.dtype(np.float64): 1e-8,
}  # of a gradient put together from the rows


class WeightedBlocks(BlockDiagonal):
    """Blocks of a network's weights: what the operator that they come from knows of these, it
    knows.
    """

    def __init__(self, blocks: Sequence[Any], indices: Sequence[np.ndarray], source: Operator):
        super().__init__(blocks, indices)
        self._source, self.dtype, self.shows_progress = source, source.dtype, source.shows_progress

    @property
    def layers(self) -> Mapping[str, np.ndarray]:
        return self._source.layers

    @property
    def layer_classes(self) -> Mapping[str, str]:
        return self._source.layer_classes

    def flatten(self, structure: Any) -> np.ndarray:
        return self._source.flatten(structure)

    def unflatten(self, flat: np.ndarray) -> Any:
        return self._source.unflatten(flat)

    def _each(self, change: Callable[[Any], Any]) -> BlockDiagonal:
        return WeightedBlocks([change(one) for one in self.blocks], self.indices, self._source)


@dataclass(frozen=True)
class Shared:
    """A Parameter of layers, and the places of these among the taps."""

    parameter: Parameter
    taps: tuple[int, ...]


def shared(taps: Sequence[Tap], of: Callable[[Tap], Parameter | None]) -> list[Shared]:
    """The Parameters that `of` gives for taps, each once."""
    found: dict[int, tuple[Parameter, list[int]]] = {}
    for number, tap in enumerate(taps):
        parameter = of(tap)
        if parameter is not None:
            found.setdefault(id(parameter), (parameter, []))[1].append(number)
    return [Shared(parameter, tuple(places)) for parameter, places in found.values()]


def _added(arrays: list[np.ndarray]) -> np.ndarray:
    return reduce(np.add, arrays)


def _form(value: Any) -> Any:
    """What the shape of an output depends on."""
    return (tuple(value.shape), str(value.dtype)) if isinstance(value, Tensor) else value


def _gram(rows: np.ndarray) -> np.ndarray:
    """The sum of outer products of rows, (groups, samples, features)."""
    return np.stack([own.T @ own for own in rows])  # each of two axes: numpy computes half of it


class _Sum:
    """Of what comes batch by batch, in float64."""

    def __init__(self) -> None:
        self._value: Any = None

    def add(self, moment: np.ndarray) -> None:
        if self._value is None:
            self._value = moment.astype(np.float64)
        else:
            self._value += moment

    def value(self) -> np.ndarray:
        return self._value

    def go_on_from(self, value: np.ndarray) -> None:
        self._value = value.copy()


class _GramSum(_Sum):
    """That of the outer products of rows, (groups, samples, features): taken of as many rows as there
    are features, since products of few rows take several times as long together; or, `at_once`, of
    those of each batch."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self._rows: list[np.ndarray] = []
        self._at_once = at_once

    def add(self, moment: np.ndarray) -> None:
        self._rows.append(moment)
        most = max(moment.shape[2], _FOLDED)
        if self._at_once or sum(rows.shape[1] for rows in self._rows) >= most:
            self._fold()

    def _fold(self) -> None:
        if self._rows:
            rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows, axis=1)
            self._rows.clear()
            super().add(_gram(rows))

    def value(self) -> np.ndarray:
        self._fold()
        return super().value()


def _packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays in one line of numbers."""
    return np.concatenate([np.r_[one.ndim, one.shape, one.ravel()] for one in arrays])


def _unpacked(line: np.ndarray) -> list[np.ndarray]:
    """The same arrays."""
    arrays, at = [], 0
    while at < len(line):
        start = at + 1 + int(line[at])
        shape = tuple(line[at + 1 : start].astype(int))
        at = start + int(np.prod(shape))
        arrays.append(line[start:at].reshape(shape))
    return arrays


def _lines(rows: np.ndarray) -> np.ndarray:
    """Rows of (groups, samples, positions, features) one under another."""
    return rows.reshape(len(rows), -1, rows.shape[-1])


def _weighted_gram(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """That of (groups, samples, positions, features), each row with what its terms of the loss count,
    as `layers` has it."""
    samples, positions = rows.shape[1:3]
    if weights.size == samples * positions:
        each = weights.ravel()
    elif samples % len(weights) == 0:
        share = samples * positions // len(weights)
        each = np.repeat(weights.sum(1) / share, share)
    else:
        each = np.full(samples * positions, weights.sum() / (samples * positions))
    if (each == each[0]).all():
        return each[0] * _gram(_lines(rows))
    return _gram(_lines(rows) * np.sqrt(each)[:, None].astype(rows.dtype))


def _gram_of_means(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """That of the means of rows that end with their number, each sample with what its terms
    count.
    """
    sums = sums.astype(np.float64)
    means = sums / np.maximum(sums[:, :, -1:], 1)
    each = (
        weights.sum(1)
        if len(weights) == sums.shape[1]
        else np.full(sums.shape[1], weights.sum() / sums.shape[1])
    )
    return (means * each[None, :, None]).swapaxes(1, 2) @ means


def _turned(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Rows of (groups, samples, positions, features) in a basis, (groups, features, features)."""
    return (_lines(rows) @ basis).reshape(*rows.shape[:3], -1)


def _squares(passed: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The sum over samples of the squares of their gradients, which are sums over positions of g a^T,
    (groups, outputs, inputs)."""
    groups, samples, positions, inputs = seen.shape
    if positions == 1:
        return (passed[:, :, 0] ** 2).swapaxes(1, 2) @ (seen[:, :, 0] ** 2)
    total = np.zeros((groups, passed.shape[-1], inputs), seen.dtype)
    step = max(1, _BYTES // (8 * total.size))
    for start in range(0, samples, step):
        some = slice(start, start + step)
        total += ((passed[:, some].swapaxes(2, 3) @ seen[:, some]) ** 2).sum(1)
    return total


_OF_INPUTS: dict[str, Callable] = {
    "moments": lambda total, weights: total,
    "rows": lambda total, weights: total,
    "raw": _weighted_gram,
    "sums": _gram_of_means,
}
_OF_GRADIENTS: dict[str, Callable] = {
    "moments": lambda total: total,
    "squares": lambda total: total,
    "rows": _lines,
    "sums": lambda total: _gram(total.astype(np.float64)),
    "samples": lambda total: (total.astype(np.float64) ** 2).sum(1),
}


def _unlike(taps: Sequence[Tap]) -> dict[int, str]:
    """By id of a Parameter of several layers that use it in different ways: why it has no Kronecker
    factors.
    """
    several = (*shared(taps, lambda tap: tap.weight), *shared(taps, lambda tap: tap.bias))
    used = {id(one.parameter): [taps[place] for place in one.taps] for one in several}
    return {
        number: "it is shared by "
        + " and ".join(f"{tap.name or 'the network'}, {tap.how}," for tap in ways.values())
        + " so that its block is no Kronecker product"
        for number, several in used.items()
        if len(ways := {tap.how: tap for tap in several}) > 1
    }


class Cotangents(NamedTuple):
    """Some of those of a batch.

    `tensors` is what the graph takes: these themselves, (k, *output), or what it makes one of.
    """

    chunk: int
    size: int
    tensors: tuple[Tensor, ...]
    made_in_graph: bool

    @property
    def first(self) -> bool:
        return self.chunk == 0


class Other(NamedTuple):
    """A Parameter that is in no layer of a kind that is known, or is used in another way."""

    parameter: Parameter
    why: str
    norm: bool = False


def explains(part: np.ndarray, slope: np.ndarray, dtype: np.dtype) -> bool:
    """Whether what a layer sees gives the gradient of its Parameter, but for rounding."""
    most = max(np.abs(slope).max(), np.abs(part).max())
    return bool(np.abs(slope - part).max() <= _TOLERANCE[dtype] * most)


class Views:
    """What the layers of a network see of its data, summed over them.

    Args:
        op: a Fisher operator of the network.
        progress: of its passes.
        check: whether all passes have the losses.
        kept: by the name of a pass, where its sums are kept, so that one that was cut off goes on;
            or None.
        kinds: of layers.

    Attributes:
        taps: the layers that are covered.
        weights, biases: their Parameters.
        others: the Parameters that are not, each with the reason.
        losses: those of the batches in each pass, one list after another, as far as the pass has
            them at no cost; with `check` always.
    """

    def __init__(
        self,
        op: Any,
        progress: bool | None,
        check: bool = False,
        kept: dict[str, Partial] | None = None,
        kinds: tuple[layers.Kind, ...] = layers.KINDS,
    ):
        self.op, self.progress, self.check, self._kept = op, progress, check, kept
        backend = device_info().backend
        self._on_cpu, self._draws = backend == "CPU", backend != "Ascend"
        self.losses: list[list[float]] = []
        self._passes: list[Callable[[], Any]] = []
        self._later = 0  # runs for other cotangents than the first of a batch
        self._shapes: dict[Any, tuple[int, ...]] = {}
        self._in_graph, name = in_graph(op), op.likelihood and op.likelihood.name
        self._known_by = type(op).__name__, name, op.reduction, op._weighted
        self.taps = layers.taps_of(op.network, op.weights, kinds)
        self.others = self._check(self._either_way())
        self.weights = shared(self.taps.taps, lambda tap: tap.weight)
        self.biases = shared(self.taps.taps, lambda tap: tap.bias)
        self.combinations = tuple(dict.fromkeys(one.taps for one in (*self.weights, *self.biases)))

    # --- the first batch: is that all? ------------------------------------------------------------

    def _either_way(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The same as `_explained`, where layers that do not explain their gradients with samples as
        the first axis of their inputs are asked with samples as the second."""

        def unexplained(found: dict[int, tuple[np.ndarray, np.ndarray]]) -> list[Tap]:
            bad = {
                number
                for number, (slope, part) in found.items()
                if not explains(part, slope, self.op.dtype)
            } - unlike
            return [
                tap
                for tap in self.taps.taps
                if tap.has_positions
                and tap.rows > tap.calls * self._samples
                and bad & {id(tap.weight), id(tap.bias)}
            ]

        def turn(taps: list[Tap]) -> list[Tap]:
            for tap in taps:
                tap.positions_first = not tap.positions_first
            return taps

        found = self._explained()
        unlike = _unlike([tap for tap in self.taps.taps if tap.calls]).keys()
        turned = turn(unexplained(found))
        if not turned:
            return found
        found = self._explained()
        still = [tap for tap in unexplained(found) if tap in turned]
        return found if not turn(still) else self._explained()

    def _explained(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """By id of a Parameter: its gradient for a random cotangent at the first sample, and that
        which the layers explain."""
        risk = self.op.risk
        batch = (
            next((one for _, one, _ in risk.batches("layers", False)), None) or risk.data.first()
        )
        self._samples, shape = batch.size, self._shape(batch)
        rows = row_count(shape, batch)
        cotangent = np.zeros(shape, self.op.dtype)
        cotangent[:rows] = np.random.default_rng(0).standard_normal(cotangent[:rows].shape)
        number = len(self.taps.taps)
        parts = self._run(
            batch,
            ["calls"] * number,
            ["scale first" if tap.kind.scales else "first" for tap in self.taps.taps],
            Program("layers.check", layers.with_gradient(self.taps, self.op.weights)),
            (Tensor(cotangent),),
        )
        calls, first, slopes = (
            parts[start:stop]
            for start, stop in ((0, number), (number, 2 * number), (2 * number, None))
        )
        for tap, count in zip(self.taps.taps, calls, strict=True):
            called = np.atleast_1d(count)  # a number, 0, where it is not called
            tap.calls, tap.rows = round(float(called[0])), round(float(called[-1]))
        explained: dict[int, list[np.ndarray]] = {}
        for tap, part in zip(self.taps.taps, first, strict=True):
            if tap.calls:
                if tap.kind.scales:
                    weight, bias = part
                elif tap.kind.indexed:
                    weight, bias = part, None
                else:
                    weight, bias = part[..., :-1], part[..., -1]
                explained.setdefault(id(tap.weight), []).append(tap.shaped(weight))
                if tap.bias is not None and bias is not None:
                    explained.setdefault(id(tap.bias), []).append(bias.reshape(tap.bias.shape))
        return {
            id(p): (slope, _added(explained.get(id(p), [np.zeros_like(slope)])))
            for p, slope in zip(self.op.weights, slopes, strict=True)
        }

    def _shape(self, batch: Batch) -> tuple[int, ...]:
        """That of the network's output for a batch."""
        key = str(mapped(_form, (batch.args, batch.kwargs)))
        if key not in self._shapes:
            self._shapes[key] = self.op.risk.output(batch).shape
        return self._shapes[key]

    def _check(self, found: dict[int, tuple[np.ndarray, np.ndarray]]) -> dict[str, Other]:
        """Leave out the layers that do not explain the gradient of their Parameters; the Parameters
        that remain.
        """
        others: dict[str, Other] = {}
        unlike = _unlike([tap for tap in self.taps.taps if tap.calls])
        held = {
            id(p): tap for tap in self.taps.taps for p in (tap.weight, tap.bias) if p is not None
        }
        for parameter in self.op.weights:
            slope, explained = found[id(parameter)]
            tap = held.get(id(parameter))
            if tap is None:
                others[parameter.name] = self._uncovered(parameter)
            elif id(parameter) in unlike:
                others[parameter.name] = Other(parameter, unlike[id(parameter)])
            elif not tap.calls and not slope.any():
                others[parameter.name] = Other(parameter, "the network does not use it")
            elif not explains(explained, slope, self.op.dtype):
                others[parameter.name] = Other(
                    parameter,
                    "it is used outside of its layer too, or samples depend on "
                    "each other, as with batch norm in training mode"
                    if tap.calls
                    else "it is used without its layer being called",
                )
        without = unlike.keys() | {id(one.parameter) for one in others.values()}
        self.taps = self.taps.only(
            [
                tap
                for tap in self.taps.taps
                if tap.calls and not without & {id(tap.weight), id(tap.bias)}
            ]
        )
        covered = {id(p) for tap in self.taps.taps for p in (tap.weight, tap.bias)}
        return others | {
            p.name: Other(p, "its layer's other Parameter has none")
            for p in self.op.weights
            if id(p) not in covered and p.name not in others
        }

    def _uncovered(self, parameter: Parameter) -> Other:
        network = self.op.network
        for name, cell in network.cells_and_names() if isinstance(network, nn.Cell) else ():
            if any(p is parameter for p in cell.get_parameters(expand=False)):
                why = self.taps.refused.get(name, f"of a {type(cell).__name__}")
                return Other(parameter, why, isinstance(cell, layers.NORMS))
        return Other(parameter, "of no Cell that is seen in the network")

    # --- passes -----------------------------------------------------------------------------------

    def check_losses(self) -> None:
        """Compare those of the first two passes. They are of two graphs, which may round differently:
        where they differ, each of them is run again.

        Raises:
            NotDeterministicError: they differ beyond rounding.
        """
        if gap_of_losses(self.op, *self.losses[:2]) > TOLERANCE[self.op.dtype]:
            self.op.risk.data.forget()
            self._kept = None
            for run, known in zip(self._passes[:2], self.losses[:2], strict=True):
                run()
                check_losses(self.op, known, self.losses[-1])

    def look(self) -> None:
        """A pass for the losses alone."""
        self._passes.append(self.look)
        self.losses.append(losses(self.op, self.progress))

    def _run(
        self,
        batch: Batch,
        inputs: Sequence[str],
        gradients: Sequence[str],
        program: Program,
        tensors: tuple[Tensor, ...],
        terms: Parameter | None = None,
    ) -> list[np.ndarray]:
        terms = self.taps.weights((batch.size, 1)) if terms is None else terms
        options = (
            *program.options,
            self.taps.token,
            batch.size,
            tuple(terms.shape),
            tuple(inputs),
            tuple(gradients),
            tuple(tuple(one.shape) for tap in self.taps.taps for one in tap.bases),
        )
        with self.taps.installed(inputs, gradients, batch.size, terms):
            parts = self.op.risk.run(
                batch,
                Program(program.name, program.build, options),
                tensors,
            )
        return [_compat.to_numpy(part) for part in parts]

    def by_rows(self, place: int) -> bool:
        """Whether the graph gives the rows of a layer, and numpy multiplies them: on the CPU, where
        that takes half the time, if they take no more than a few times the memory of the product, or
        if numpy has to unfold them.
        """
        tap = self.taps.taps[place]
        alone = all(taps == (place,) for taps in self.combinations if place in taps)
        most = _BYTES // (8 * max(tap.widths)) if tap.kind.unfolded else _ROWS * max(tap.widths)
        return (
            alone and tap.rows <= most and tap.calls == 1 and not tap.kind.indexed and self._on_cpu
        )

    def _inputs(self, place: int, otherwise: str) -> str:
        """How the graph gives the rows of the inputs of such a layer."""
        return "raw" if self.taps.taps[place].kind.unfolded else otherwise

    @interruptible
    def factors(self, how: str) -> list[np.ndarray]:
        """The second moments over the data, of each combination: of the inputs, then of the
        gradients.

        Args:
            how: a value of `APPROXIMATIONS`.
        """
        ways = [
            "rows" if how == "moments" and self.by_rows(place) else how
            for place in range(len(self.taps.taps))
        ]
        seen = [
            self._inputs(place, "rows") if way == "rows" else way for place, way in enumerate(ways)
        ]
        again = partial(self.factors, how)
        total = [
            _GramSum(self._kept is not None) if way[taps[0]] == "rows" else _Sum()
            for way in (seen, ways)
            for taps in self.combinations
        ]
        with self.op.risk.comm.together(1):
            for batch, weights, terms, vectors in self._chunks("factors", ways, total, again):
                parts = self._statistics(batch, seen, ways, vectors, terms)
                moments = [
                    *self._moments(parts, seen if vectors.first else None, ways, vectors, weights)
                ]
                for own, moment in zip(total[-len(moments) :], moments, strict=True):
                    own.add(moment)
        return self._joined(total)

    @interruptible
    def eigenvalues(self, bases: Mapping[int, tuple], ways: Sequence[str]) -> list[np.ndarray]:
        """The second moments of the gradients of samples in the bases of inputs and of gradients
        that each tap has, of each combination.

        Args:
            ways: "squares" or "samples", for each tap.
        """
        rows = [self.by_rows(place) and way == "squares" for place, way in enumerate(ways)]
        inputs = [
            self._inputs(place, "plain") if own else "nothing" for place, own in enumerate(rows)
        ]
        gradients = ["rows" if own else way for own, way in zip(rows, ways, strict=True)]
        columns = {
            place: [basis.astype(self.op.dtype) for basis in bases[place]]
            for place, own in enumerate(rows)
            if own
        }
        for place, tap in enumerate(self.taps.taps):
            if place not in columns:
                self.taps.set_basis(tap, *bases[place])
        again = partial(self.eigenvalues, bases, ways)
        total = [_Sum() for _ in self.combinations]
        with self.op.risk.comm.together(1):
            for batch, weights, terms, vectors in self._chunks(
                "eigenvalues", gradients, total, again
            ):
                if vectors.first:
                    seen: dict[int, np.ndarray] = {}  # the inputs in their basis
                parts = self._statistics(batch, inputs, gradients, vectors, terms)
                middle = len(parts) - len(ways)
                for place, (p, q) in columns.items():
                    if place not in seen:
                        seen[place] = _turned(parts[place], p)
                    passed = _turned(parts[middle + place], q)
                    parts[middle + place] = _squares(passed, seen[place])
                for one, moment in zip(
                    total, self._moments(parts, None, ways, vectors, weights), strict=True
                ):
                    one.add(moment)
        return self._joined(total)

    def _chunks(
        self, what: str, gradients: Sequence[str], total: Sequence[_Sum], again: Callable[[], Any]
    ) -> Iterator[tuple]:
        """One pass over the data: batch, weights of its terms as numbers and as a Parameter, and
        some of its cotangents, which whoever asks for the next ones has added to the total.
        """
        self.losses.append([])
        self._passes.append(again)
        kept, losses = self._kept and self._kept[what], self.losses[-1]
        done, line = (kept and kept.read()) or (0, np.zeros(0))
        if done:
            known, *sums = _unpacked(line)
            losses.extend(known.tolist())
            for one, value in zip(total, sums, strict=True):
                one.go_on_from(value)

        def state() -> np.ndarray:
            return _packed([np.array(losses), *(one.value() for one in total)])

        for number, batch, factor in self.op.risk.batches(what, self.progress, done):
            weights = factor * term_weights(self.op, batch)
            terms = self.taps.weights(weights.shape)
            rounded = weights.astype(self.op.dtype)
            if not np.array_equal(_compat.to_numpy(terms), rounded):
                _compat.assign(terms, rounded)
            for vectors in self._vectors(batch, number, factor, gradients):
                if self.check and vectors.first and not vectors.made_in_graph:
                    losses.append(self.op.risk.loss(batch))
                yield batch, weights, terms, vectors
            if kept and kept.due:
                kept.write(number + 1, state())
        if kept:
            kept.over(self.op.risk.num_batches, state())

    def _statistics(
        self,
        batch: Batch,
        inputs: Sequence[str],
        gradients: Sequence[str],
        vectors: Cotangents,
        terms: Parameter,
    ) -> list[np.ndarray]:
        """What a graph gives for some cotangents. Inputs belong to the first of a batch; a graph for the
        others, which leaves them out, is compiled once these are many."""
        if not vectors.first:
            self._later += 1
            if self._later > _WORTH_A_GRAPH:
                inputs = ["nothing"] * len(inputs)
        seen = any(one != "nothing" for one in inputs)
        if vectors.made_in_graph:
            shape = self._shape(batch)
            build = layers.drawn(self.taps, seen, self._in_graph, terms, shape)
            program = Program("layers.drawn", build, (seen, shape, *self._known_by))
        else:
            program = Program("layers", layers.statistics(self.taps, seen), (seen,))
        parts = self._run(batch, inputs, gradients, program, vectors.tensors, terms)
        if vectors.made_in_graph:
            loss, *parts = parts
            if vectors.first:
                self.losses[-1].append(float(loss))
        for place, (tap, how) in enumerate(zip(self.taps.taps, inputs, strict=True)):
            if how == "raw" and vectors.first:
                assert tap.kind.unfolded is not None
                rows = tap.kind.unfolded(tap.layer, parts[place])
                if rows.shape[1] % batch.size == 0:  # as many samples as the batch has
                    rows = rows.reshape(len(rows), batch.size, -1, rows.shape[-1])
                parts[place] = rows
        return parts

    def _joined(self, total: list[_Sum]) -> list[np.ndarray]:
        """The sums over all processes."""
        arrays, comm = [one.value() for one in total], self.op.risk.comm
        if comm is ALONE:
            return arrays
        comm.total(np.zeros(1))  # what a process whose pass has failed takes part in
        line = comm.total(np.concatenate([np.ravel(one) for one in arrays]))
        parts = np.split(line, np.cumsum([np.size(one) for one in arrays])[:-1])
        return [part.reshape(np.shape(one)) for part, one in zip(parts, arrays, strict=True)]

    def _moments(
        self,
        parts: list[np.ndarray],
        inputs: Sequence[str] | None,
        gradients: Sequence[str],
        vectors: Cotangents,
        weights: np.ndarray,
    ) -> Iterator[np.ndarray]:
        """Of what a graph gave, with an axis for the cotangents where there are several, for each
        combination.
        """
        middle = len(parts) - len(self.taps.taps)
        for taps in self.combinations if inputs else ():
            assert inputs is not None
            yield _OF_INPUTS[inputs[taps[0]]](_added([parts[tap] for tap in taps]), weights)
        for taps in self.combinations:
            each = _added([parts[middle + tap] for tap in taps])
            finish = _OF_GRADIENTS[gradients[taps[0]]]
            yield _added([finish(one) for one in (each if vectors.size > 1 else each[None])])

    def _vectors(
        self, batch: Batch, number: int, factor: float, gradients: Sequence[str]
    ) -> Iterator[Cotangents]:
        """The cotangents of a batch: each made in the graph where that is possible; else several at
        once where that pays, the last filled up with zeros. Ascend has few kernels of float64: draws
        there would not be those of the operator.
        """
        most = 1 if self._on_cpu else self._most(batch, gradients)
        if self._draws and makes_in_graph(self.op, batch, shape := self._shape(batch), most):
            scale = Tensor(np.array([scale_in_graph(self.op, factor)]))
            for chunk, noise in enumerate(noises(self.op, shape, number)):
                yield Cotangents(chunk, 1, (Tensor(noise), scale), True)
            return
        source, width = iter(cotangents(self.op, batch, number)), 0
        for chunk in itertools.count():
            several = list(itertools.islice(source, most))
            if not several:
                return
            width = width or len(several)
            vectors = np.zeros((width, *several[0].shape))
            vectors[: len(several)] = several
            vectors *= np.sqrt(factor)
            yield Cotangents(chunk, width, (Tensor(vectors.astype(self.op.dtype)),), False)

    def _most(self, batch: Batch, gradients: Sequence[str]) -> int:
        """How many cotangents go into one graph, by the memory that their statistics take."""
        size = sum(
            np.prod(tap.widths) * (batch.size if self._shares(tap) else 1)
            if how in ("samples", "squares")
            else tap.groups * tap.widths[1] ** 2
            for tap, how in zip(self.taps.taps, gradients, strict=True)
        )
        return max(1, min(_AT_ONCE, int(_BYTES / (self.op.dtype.itemsize * size))))

    @staticmethod
    def _shares(tap: Tap) -> bool:
        """Whether its weight may be used at several positions of a sample."""
        return tap.kind.indexed or tap.calls > 1 or len(tap.weight.shape) > 2


# --- from moments to blocks -----------------------------------------------------------------------

Placed = tuple[Structured, np.ndarray]  # a block, and the indices of its entries in a flat vector


@dataclass(frozen=True)
class Factors:
    """The moments of layers that share a Parameter.

    Attributes:
        name: of the layer.
        taps: the places of the layers among the taps.
        a: of the inputs, (groups, inputs, inputs), with the 1 for the bias last where `joint`;
            (inputs,) is a diagonal.
        g: of the gradients, (groups, outputs, outputs).
        weight: the indices of the weight, (groups, outputs, inputs), or (inputs, outputs) where a
            row belongs to an index; None where it is not asked for.
        bias: those of the bias, (groups, outputs), or None.
        joint: weight and bias have one block.
        indexed: the inputs are indices.
    """

    name: str
    taps: tuple[int, ...]
    a: np.ndarray
    g: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    joint: bool
    indexed: bool

    @property
    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """(A, G) as users see them: without the axis of groups where there is one."""
        a = self.a[0] if self.a.ndim == 3 and len(self.a) == 1 else self.a
        return a, self.g[0] if len(self.g) == 1 else self.g

    def _inputs(self) -> np.ndarray:
        return np.diag(self.a)[None] if self.a.ndim == 1 else self.a

    def _indices(self) -> np.ndarray:
        assert self.weight is not None
        if self.joint:
            assert self.bias is not None
            return np.concatenate([self.weight, self.bias[:, :, None]], axis=2)
        return self.weight

    def blocks(self) -> Iterator[Placed]:
        """Kronecker products."""
        if self.weight is not None:
            pairs = zip(self._inputs(), self.g, strict=True)
            yield (
                _several([Kronecker(a, g) if self.indexed else Kronecker(g, a) for a, g in pairs]),
                self._indices(),
            )
        if self.bias is not None and not self.joint:
            yield _several([Kronecker(g) for g in self.g]), self.bias

    def bases(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Eigenvectors of the inputs, with a 1 for the bias, and of the gradients, (groups, k,
        k).
        """
        q = _eigenvectors(self.g)
        if self.a.ndim == 1:
            return None, q
        p = _eigenvectors(self.a)
        if self.joint or self.indexed:
            return p, q
        whole = np.zeros((len(p), p.shape[1] + 1, p.shape[2] + 1))
        whole[:, :-1, :-1], whole[:, -1, -1] = p, 1.0
        return whole, q

    def corrected(
        self, p: np.ndarray | None, q: np.ndarray, values: np.ndarray
    ) -> Iterator[Placed]:
        """The blocks with these eigenvectors, and eigenvalues as they are seen in them, (groups,
        outputs, inputs).
        """
        if self.weight is not None:
            if self.indexed:
                basis = np.eye(self.weight.shape[0]) if p is None else p[0]
                yield Spectral.of_eigenvectors([basis, q[0]], values.ravel()), self.weight
            else:
                assert p is not None
                inner = slice(None) if self.joint else slice(-1)
                yield (
                    _several(
                        [
                            Spectral.of_eigenvectors(
                                [right, left[inner, inner]], own[:, inner].ravel()
                            )
                            for left, right, own in zip(p, q, values, strict=True)
                        ]
                    ),
                    self._indices(),
                )
        if self.bias is not None and not self.joint:
            yield (
                _several(
                    [
                        Spectral.of_eigenvectors([right], own[:, -1])
                        for right, own in zip(q, values, strict=True)
                    ]
                ),
                self.bias,
            )


def _several(blocks: list[Structured]) -> Structured:
    return blocks[0] if len(blocks) == 1 else BlockDiagonal(blocks)


def _eigenvectors(matrices: np.ndarray) -> np.ndarray:
    """By numpy, which takes longer than scipy for one matrix, but lets other threads run."""
    return np.linalg.eigh(matrices.astype(np.float64))[1]


def _places(op: Any, parameter: Parameter, shaped: Callable) -> np.ndarray | None:
    """The indices of a Parameter in a flat vector; None where the operator is not about it."""
    if not any(parameter is one for one in op.weights):
        return None
    where = slices(op.space)[parameter.name]
    return shaped(np.arange(where.start, where.stop))


def _name(views: Views, *parameters: tuple[Parameter, np.ndarray | None]) -> str:
    """That of the layer; where one has several weights, of the first Parameter that is asked for."""
    first = next(parameter.name for parameter, places in parameters if places is not None)
    layer = layer_of(first)
    several = sum(layer_of(one.parameter.name) == layer for one in views.weights) > 1
    return first if several else layer


def factors(views: Views, approx: str, separate_bias: bool) -> list[Factors]:
    """Those of all layers: one pass over the data."""
    how, count = APPROXIMATIONS[approx], len(views.combinations)
    found = views.factors(how) if count else []
    inputs, gradients = (
        dict(zip(views.combinations, part, strict=True)) for part in (found[:count], found[count:])
    )
    out = []
    for shared in views.weights:
        tap = views.taps.taps[shared.taps[0]]
        narrow, groups = tap.widths[1], tap.groups
        weight = _places(views.op, shared.parameter, tap.matrix)
        biases = [
            (
                one,
                _places(
                    views.op, one.parameter, lambda x, shape=(groups, narrow): x.reshape(shape)
                ),
            )
            for one in views.biases
            if set(one.taps) & set(shared.taps)
        ]
        own = [places for one, places in biases if one.taps == shared.taps]
        bias = own[0] if own else None
        joint = not separate_bias and weight is not None and bias is not None
        whole, g = inputs[shared.taps], gradients[shared.taps]
        a = whole[:-1] / whole[-1] if whole.ndim == 1 else (whole / whole[:, -1:, -1:])
        if a.ndim == 3 and not joint:
            a = a[:, :-1, :-1]
        if weight is not None or bias is not None:
            named = (
                (shared.parameter, weight),
                *((one.parameter, places) for one, places in biases),
            )
            out.append(
                Factors(
                    _name(views, *named),
                    shared.taps,
                    _repaired(views, named, a),
                    _repaired(views, named, g),
                    weight,
                    bias,
                    joint,
                    tap.kind.indexed,
                )
            )
        out += [
            Factors(
                _name(views, (one.parameter, places)),
                one.taps,
                np.ones((groups, 1, 1), views.op.dtype),
                _repaired(views, ((one.parameter, places),), gradients[one.taps]),
                None,
                places,
                False,
                False,
            )
            for one, places in biases
            if one.taps != shared.taps and places is not None
        ]
    return out


def _repaired(views: Views, named: Any, matrices: np.ndarray) -> np.ndarray:
    """Symmetric, in the operator's dtype; where rounding made an eigenvalue negative beyond what is
    taken for 0, that is 0, and said."""
    dtype = views.op.dtype
    if matrices.ndim == 1 or not views.op.positive:
        return _symmetric(matrices, dtype)
    out = _symmetric(matrices, dtype)
    for number, one in enumerate(out):
        most = np.abs(one).max()
        margin = 10 * np.finfo(dtype).eps * most * len(one) ** 0.5
        try:
            np.linalg.cholesky(one.astype(np.float64) + margin * np.eye(len(one)))
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(one.astype(np.float64))
            if values[0] < -margin:
                warn(
                    f"a Kronecker factor of layer {_name(views, *named)!r} has the eigenvalue "
                    f"{values[0]:.2g} beside {values[-1]:.2g}, by rounding: it is taken for 0",
                    NonFiniteWarning,
                )
                out[number] = (vectors * np.maximum(values, 0)) @ vectors.T
    return out


def _symmetric(matrices: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if matrices.ndim == 1:
        return matrices.astype(dtype)
    return ((matrices + matrices.swapaxes(1, 2)) / 2).astype(dtype)


# --- operators ------------------------------------------------------------------------------------

_OTHERS: dict[str, Callable[[np.ndarray], Structured]] = {
    "dense": lambda block: Kronecker((block + block.T) / 2),
    "diagonal": lambda block: Diagonal(np.diag(block)),
}


def exact_blocks(op: Any, names: Sequence[str], form: str) -> Iterator[Placed]:
    """Those of some Parameters, by products of one operator of all of these: one graph, however many
    there are."""
    if not names:
        return
    joint = op.of_weights([one for one in op.weights if one.name in names])
    for name, where in slices(joint.space).items():
        columns = np.zeros((joint.shape[0], where.stop - where.start), joint.dtype)
        columns[where] = np.eye(columns.shape[1])
        places = slices(op.space)[name]
        yield _OTHERS[form]((joint @ columns)[where]), np.arange(places.start, places.stop)


class KFACOperator(WeightedBlocks):
    r"""Kronecker-factored curvature of a network on its data: a block :math:`G \otimes A` for the
    weight of each layer.

    An approximation of the blocks of `FisherOperator` (of `EmpiricalFisherOperator` for
    "empirical") that can be inverted, over the same flat vector as `HessianOperator`. A is the
    second moment of the layer's inputs, G that of the gradients at its outputs:

    - "expand": each position at which a weight is used is a row of its own; A is the mean over samples and positions, G
      the sum over the terms of the loss, with what each counts in the risk.
    - "reduce": inputs are averaged, gradients summed over the positions of a sample first.

    Exact for a deep linear network with squared error, for one sample, and where the loss is of
    each position by itself and the network is linear ("expand"), or of the mean of the positions
    ("reduce"). With `separate_bias` a bias has the block G; else A has a last row and column for
    it. Layers: Dense, Conv1d, 2d and 3d with groups (a block each), Embedding, MultiheadAttention
    (queries, keys, values and output have blocks of their own), those of ``mint.nn``, and what a
    Cell of yours multiplies with a Parameter of its own (``x @ self.w``, ``ops.dense``,
    ``ops.gather``; see docs/structured.md). Scale and shift of normalization layers have their
    exact diagonals. Any other Parameter, one that is used elsewhere too, and one that an Embedding
    and a Dense layer share, is refused by its name, unless `blocks` says what it gets. Cells that
    share a Parameter in the same way, or are called several times, are handled as positions are.

    The matrix is that at the weights as they were: it is computed once, now. All functions of it
    are exact: `trace`, `logdet`, `frobenius_norm`, `diagonal`, `inverse` (with ``heuristic=True``
    the damping is split over the factors). Costs one forward and backward pass for each cotangent
    and the products for the factors: one cotangent for each of the `mc_samples`, or for
    "empirical"; for "exact" as many as a sample has outputs. Where a sample has several terms of
    the loss (positions), "exact" and "empirical" take each by itself: for long sequences there is
    "mc". The check that two passes over the data agree takes the losses of one pass more.

    Args:
        network, loss_fn, data, weights: as `HessianOperator` has them; `network` is a Cell.
        fisher: "exact", "mc" (draws from the network's prediction) or "empirical" (the true
            targets).
        mc_samples: the number of draws for each sample, for "mc".
        approx: "expand" or "reduce".
        separate_bias: whether weight and bias have blocks of their own.
        seed: of the draws.
        blocks: "dense" or "diagonal": exact blocks for Parameters without Kronecker factors; None:
            an error.
        likelihood: as `FisherOperator` has it.
        checkpoint: a file for the sums over the batches done so far, written every few seconds. An
            operator of the same weights, number of batches and options goes on from there; once it
            is there, the file is removed. There is one for each rank of a job and each pass, which
            add a number to the name. None: no file.
        progress, **options: as `HessianOperator` has them, but for `block_diagonal`.

    Attributes:
        factors: name of a layer -> (A, G); with an axis of groups before where a convolution has
            several. The A of an Embedding is a diagonal, (rows,), for "expand", and its block is
            :math:`A \otimes G`.
        fisher_operator: the operator whose blocks are approximated.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError: as
            `FisherOperator`; also where a Parameter has no factors: the message names it, and why.

    Warns:
        NonFiniteWarning: a factor was negative by rounding beyond what is taken for 0, and was
            repaired.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature, ICML 2015; R. Eschenhagen et al., Kronecker-factored approximate curvature for
        modern neural network architectures, NeurIPS 2023 (expand and reduce).

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import KFACOperator
        >>> net = nn.SequentialCell(nn.Dense(2, 1, weight_init="ones", has_bias=False))
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = KFACOperator(net, nn.MSELoss(), (x, y))
        >>> print(op @ np.array([1.0, 1.0]), op.inverse(1.0).diagonal())
        [1. 4.] [0.5 0.2]
    """

    def __init__(
        self,
        network: Callable[..., Any],
        loss_fn: Callable[..., Any],
        data: Any,
        weights: WeightNames = None,
        *,
        fisher: FisherKind = "exact",
        mc_samples: int = 1,
        approx: Approximation = "expand",
        separate_bias: bool = True,
        seed: int = 0,
        blocks: Literal["dense", "diagonal"] | None = None,
        likelihood: LikelihoodName | None = None,
        checkpoint: str | os.PathLike | None = None,
        progress: bool | None = None,
        **options: Any,
    ):
        check_choice("fisher", fisher, FISHERS)
        check_choice("approx", approx, APPROXIMATIONS)
        check_integer("mc_samples", mc_samples, 1)
        check_bool("separate_bias", separate_bias)
        check, keep = (options.pop(name, True) for name in ("check_deterministic", "keep_data"))
        check_bool("check_deterministic", check)
        check_bool("keep_data", keep)
        if blocks is not None:
            check_choice("blocks", blocks, _OTHERS)
        if options.get("block_diagonal") is not None:
            raise ValueError(
                f"block_diagonal is not for {type(self).__name__}, which has a block for each "
                "layer: leave it out"
            )
        path = _checkpoint.named(checkpoint)
        own = (
            {}
            if fisher == "empirical"
            else {"mc_samples": mc_samples if fisher == "mc" else 0, "seed": seed}
        )
        kind = EmpiricalFisherOperator if fisher == "empirical" else FisherOperator
        self.fisher_operator = kind(
            network,
            loss_fn,
            data,
            weights,
            likelihood=likelihood,
            progress=progress,
            check_deterministic=False,  # products are not what is used of it
            keep_data=False,
            **own,
            **options,
        )
        self.approx, self.separate_bias = approx, separate_bias
        known_by = fisher, own, approx, separate_bias, blocks, str(likelihood)
        kept = None if path is None else self._files(path, repr(known_by))
        for file in (kept or {}).values():
            file.read()  # one that is not ours is an error before anything is computed
        views = Views(self.fisher_operator, progress, check, kept)
        refused = {
            name: one.why for name, one in views.others.items() if blocks is None and not one.norm
        }
        if refused:
            raise ValueError(
                f"{type(self).__name__} has no Kronecker factors for "
                + ", ".join(f"{name} ({why})" for name, why in list(refused.items())[:5])
                + (f" and {len(refused) - 5} more" if len(refused) > 5 else "")
                + ". Give them blocks of another form: blocks='diagonal' or 'dense'; or leave them out: "
                "weights="
            )
        data, several = self.fisher_operator.risk.data, self.num_passes > 1
        if check and not several:
            views.look()
        if keep and not (check and several):  # two passes have to be seen
            data.keep(memory_available() // 4)
        found = factors(views, approx, separate_bias)
        if keep:
            data.keep(memory_available() // 4)
        self.factors = {one.name: one.pair for one in found}
        placed = list(self._blocks(views, found))
        try:
            if check:
                views.check_losses()
        finally:  # sums of data that change are of no use either
            for file in (kept or {}).values():
                file.remove()
        placed += exact_blocks(self.fisher_operator, list(views.others), blocks or "diagonal")
        super().__init__(
            [block for block, _ in placed],
            [where.ravel() for _, where in placed],
            self.fisher_operator,
        )

    num_passes = 1  # over the data, for factors and blocks

    def _files(self, path: str, options: str) -> dict[str, Partial]:
        """Where the sums of each pass are kept."""
        op = self.fisher_operator
        values = [_compat.to_numpy(p.value()) for p in op.weights]
        numbers = np.array([op.num_batches, op.num_data])
        token = f"{type(self).__name__} {options} {fingerprint(numbers, *values)}"
        path += f".{op.risk.comm.rank}" if op.risk.comm.size > 1 else ""
        passes = ("factors", "eigenvalues")[: self.num_passes]
        return {
            what: Partial(path + f".{number}" * (number > 0), f"{token} {what}", last=False)
            for number, what in enumerate(passes)
        }

    def _blocks(self, views: Views, found: list[Factors]) -> Iterator[Placed]:
        for one in found:
            yield from one.blocks()

    weights = property(lambda self: self.fisher_operator.weights)
    network = property(lambda self: self.fisher_operator.network)
    loss_fn = property(lambda self: self.fisher_operator.loss_fn)
    reduction = property(lambda self: self.fisher_operator.reduction)
    num_data = property(lambda self: self.fisher_operator.num_data)
    num_batches = property(lambda self: self.fisher_operator.num_batches)
    point = property(lambda self: self.fisher_operator.point)


class EKFACOperator(KFACOperator):
    r"""Kronecker-factored curvature with corrected eigenvalues: :math:`Q\, diag(e)\, Q^T`.

    Q are the eigenvectors of `KFACOperator`'s blocks, e the second moments of the gradients of
    samples in that basis: of all matrices with these eigenvectors, the one nearest to the Fisher
    information's block. It needs a second pass over the data, with the same draws, which must have
    the same losses; where a weight is used at several positions, the gradient of each sample is
    formed.

    Arguments, attributes, errors and warnings are those of `KFACOperator`.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError: as
            `KFACOperator`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        T. George et al., Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis, NeurIPS 2018.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import EKFACOperator
        >>> net = nn.SequentialCell(nn.Dense(2, 1, weight_init="ones", has_bias=False))
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = EKFACOperator(net, nn.MSELoss(), (x, y))
        >>> print(np.round(op @ np.array([1.0, 1.0]), 4), round(op.trace(), 4))
        [1. 4.] 5.0
    """

    num_passes = 2

    def _blocks(self, views: Views, found: list[Factors]) -> Iterator[Placed]:
        taps = views.taps.taps
        several: list[Factors] = []
        seen: set[int] = set()
        for one in found:
            if not seen.issuperset(one.taps):  # a bias of tied weights is seen in their basis
                several.append(one)
                seen.update(one.taps)
        bases: dict[int, tuple[np.ndarray | None, np.ndarray]] = {}
        with side_by_side() as each:
            for one, basis in zip(several, each(Factors.bases, several), strict=True):
                bases |= dict.fromkeys(one.taps, basis)
        alone = [len(group) == 1 and taps[group[0]].calls == 1 for group in views.combinations]
        how = {
            place: "squares" if single else "samples"
            for group, single in zip(views.combinations, alone, strict=True)
            for place in group
        }
        # those of tied weights are last told "samples", also where a bias of theirs is alone
        how |= {
            place: "samples"
            for group, single in zip(views.combinations, alone, strict=True)
            for place in group
            if not single
        }
        values = (
            dict(
                zip(
                    views.combinations,
                    views.eigenvalues(bases, [how[place] for place in range(len(taps))]),
                    strict=True,
                )
            )
            if taps
            else {}
        )
        for one in found:
            p, q = bases[one.taps[0]]
            yield from one.corrected(p, q, values[one.taps])
