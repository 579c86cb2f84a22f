"""What the mean of a batch divides by: the weight of the batch among the others.

A mean over samples divides by their number, one over entries by theirs; a cross-entropy that
ignores targets by the number of the others, and one with weights of classes by their sum. For
MindSpore's own losses that is written down here. That of any other loss is measured: at the
network's outputs for some samples of the first batch, the gradient of the loss of these alone is
compared with that of the batch and them together, where it is smaller by their share. The losses of
some batches, two and two in one, then have to agree with it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import Tensor, mint, nn, ops

from mindspore_hessian import _compat
from mindspore_hessian.arguments import shown
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.program import Point, Program
from mindspore_hessian.core.space import Space
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.data import Batch, is_samples, leaves, mapped, together

if TYPE_CHECKING:
    from mindspore_hessian.operators.risk import Risk

TOLERANCE = 1e-4  # of measured weights
MOST_VALUES = 64  # of integer targets that are tried as the one that is ignored
_ROWS = 8  # samples to compare with
_PAIRS = 4  # of batches that are put together, at most
STATE_IT = (
    "Say what the mean of a batch divides by: batch_weight=function of a batch, as it is in data "
    "(lambda batch: (batch[1] != 0).sum()), or batch_weight='samples' for sum_b n_b/N loss_b as it "
    "stands"
)


@dataclass(frozen=True)
class Weighing:
    """How the batches of a mean loss are weighed.

    Attributes:
        how: in words.
        of: the weight of a batch: what its mean divides by, up to a factor that all batches share.
        terms: the weights of the terms of its mean, shaped like its targets; None where all terms
            weigh the same, or that is not known.
        uniform: all terms weigh the same.
    """

    how: str
    of: Callable[[Batch], float]
    terms: Callable[[Batch], np.ndarray] | None = None
    uniform: bool = False


def _samples(batch: Batch) -> float:
    return float(batch.size)


def _entries(batch: Batch) -> float:
    """The number of entries of the targets, where they have a row a sample."""
    target = next(leaves(batch.targets), None)
    if target is None or target.ndim == 0 or target.size == 0:
        return float(batch.size)
    return batch.size * target.size / target.shape[0]


SAMPLES = Weighing("their samples", _samples, uniform=True)
ENTRIES = Weighing("the entries of their targets", _entries, uniform=True)


def stated(batch_weight: Any) -> Weighing:
    """What the option `batch_weight` says.

    Raises:
        TypeError: it is neither "samples" nor callable.
        ValueError: a weight is no finite number of 0 or more.
    """
    if isinstance(batch_weight, str) and batch_weight == "samples":
        return Weighing("their samples, as batch_weight says", _samples, uniform=True)
    if not callable(batch_weight):
        raise TypeError(
            "batch_weight must be None, 'samples' or a function of a batch, but got "
            f"{shown(batch_weight)}"
        )

    def of(batch: Batch) -> float:
        found = batch_weight(batch.raw)
        weight = np.asarray(_compat.to_numpy(found) if isinstance(found, Tensor) else found)
        if weight.size != 1 or weight.dtype.kind not in "fiub" or not 0 <= weight.item() < np.inf:
            raise ValueError(
                f"batch_weight must give a finite number of 0 or more, but gave {shown(found)} for "
                f"batch {batch.number}"
            )
        return float(weight.item())

    return Weighing("batch_weight", of)


# --- MindSpore's own losses -----------------------------------------------------------------------

_INDEXED = (
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    ops.cross_entropy,
    ops.nll_loss,
    mint.nn.CrossEntropyLoss,
    getattr(mint.nn, "NLLLoss", None),
    mint.nn.functional.cross_entropy,
    getattr(mint.nn.functional, "nll_loss", None),
)
_BY_ENTRY = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.SoftMarginLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    ops.mse_loss,
    ops.l1_loss,
    ops.smooth_l1_loss,
    ops.huber_loss,
    ops.binary_cross_entropy,
    ops.binary_cross_entropy_with_logits,
    mint.nn.MSELoss,
    getattr(mint.nn, "L1Loss", None),
    getattr(mint.nn, "SmoothL1Loss", None),
    getattr(mint.nn, "BCELoss", None),
    mint.nn.BCEWithLogitsLoss,
    mint.nn.functional.mse_loss,
    getattr(mint.nn.functional, "l1_loss", None),
    mint.nn.functional.binary_cross_entropy,
    mint.nn.functional.binary_cross_entropy_with_logits,
)
_BY_SAMPLE = (
    nn.SoftmaxCrossEntropyWithLogits,
    nn.CosineEmbeddingLoss,
    nn.TripletMarginLoss,
    nn.MultiMarginLoss,
    nn.MultilabelMarginLoss,
    nn.CTCLoss,
)


def _is_one_of(loss_fn: Any, losses: tuple) -> bool:
    """Whether it is one of MindSpore's, or an object of one of its classes that computes as that
    class does.
    """
    if isinstance(loss_fn, nn.Cell):
        construct = getattr(type(loss_fn), "construct", None)
        return any(
            isinstance(loss_fn, cls) and construct is getattr(cls, "construct", 0)
            for cls in losses
            if isinstance(cls, type)
        )
    return any(loss_fn is one for one in losses if one is not None)


def options_of(loss_fn: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Options of a loss: attributes of a Cell, or those that a function or `functools.partial` was
    given, or has.
    """
    if isinstance(loss_fn, nn.Cell):
        return {name: getattr(loss_fn, name, None) for name in names}
    given: dict[str, Any] = {}
    while isinstance(loss_fn, functools.partial):
        given, loss_fn = {**loss_fn.keywords, **given}, loss_fn.func
    known = inspect.signature(loss_fn).parameters
    return {name: given.get(name, known[name].default if name in known else None) for name in names}


def is_known(loss_fn: Any) -> bool:
    """Whether it is one of MindSpore's losses of which it is written down here."""
    return _is_one_of(loss_fn, _INDEXED + _BY_ENTRY + _BY_SAMPLE)


def unwrapped(loss_fn: Any) -> Any:
    """The function under ``functools.partial``, where that gives options by their names only."""
    while isinstance(loss_fn, functools.partial) and not loss_fn.args:
        loss_fn = loss_fn.func
    return loss_fn


def known(loss_fn: Any, classes: Callable[[], int]) -> Weighing | None:
    """How one of MindSpore's own losses weighs its terms; None for any other. `classes` finds their
    number out.
    """
    function = unwrapped(loss_fn)
    if _is_one_of(function, _INDEXED):
        options = options_of(loss_fn, ("weight", "ignore_index"))
        return _indexed(options["weight"], options["ignore_index"])
    if _is_one_of(function, (nn.SoftmaxCrossEntropyWithLogits,)) and loss_fn.sparse:
        return _with_labels(classes)
    if _is_one_of(function, _BY_ENTRY):
        return ENTRIES
    return SAMPLES if _is_one_of(function, _BY_SAMPLE) else None


def _with_labels(classes: Callable[[], int]) -> Weighing:
    """By samples, with a look at the labels: `SoftmaxCrossEntropyWithLogits` takes one that is no
    class in silence.
    """
    count = functools.cache(classes)

    def of(batch: Batch) -> float:
        check_labels(_target(batch), batch.number, count())
        return float(batch.size)

    return Weighing(SAMPLES.how, of, uniform=True)


def _target(batch: Batch) -> np.ndarray:
    """The first Tensor of what the loss gets after the output."""
    for leaf in leaves(batch.targets):
        return _compat.to_numpy(leaf)
    raise TypeError(
        f"batch {batch.number} has no target: the loss needs a Tensor or array after the inputs"
    )


def _indexed(weight: Any, ignored: int | None) -> Weighing:
    """The cross-entropies: integer targets weigh as their class does, or nothing; probabilities
    count as they are.
    """
    classes = None if weight is None else np.asarray(_compat.to_numpy(weight), np.float64)

    def terms(batch: Batch) -> np.ndarray:
        target = _target(batch)
        if target.dtype.kind == "f":
            return np.ones((target.shape[0], *target.shape[2:]))
        counted = np.ones(target.shape, bool) if ignored is None else target != ignored
        check_labels(
            target[counted], batch.number, None if classes is None else len(classes), ignored
        )
        return (
            counted.astype(np.float64)
            if classes is None
            else classes[np.where(counted, target, 0)] * counted
        )

    def of(batch: Batch) -> float:
        return float(terms(batch).sum())

    skipped = f"the targets that are not {ignored}"
    return Weighing(
        skipped if classes is None else f"the weights of the classes of {skipped}", of, terms
    )


def check_labels(
    labels: np.ndarray, number: int, classes: int | None, ignored: int | None = None
) -> None:
    """Raise where a label is not one of the classes.

    Raises:
        ValueError: it names the batch, the label and the number of classes.
    """
    wrong = labels[(labels < 0) | (labels >= (np.inf if classes is None else classes))]
    if wrong.size:
        among = "" if classes is None else f" of the {classes} classes, 0 to {classes - 1}"
        skip = "" if ignored is None else f", nor is it ignore_index ({ignored})"
        raise ValueError(
            f"batch {number} has the label {wrong.flat[0]}, which is no class{among}{skip}; so are "
            f"{wrong.size} of its labels. Number the classes from 0, or ignore the label: "
            "ignore_index="
        )


NO_SPACE, _SLOPE = Space((), (), (), (), (), "tuple"), Program("weighing", kernels.value_and_slope)


# --- any other loss, measured ---------------------------------------------------------------------


class Measure:
    """The weights of batches of a loss that is a function of outputs and targets, by gradients at
    the outputs.

    Batches whose samples have targets of one shape can be compared with each other, so there is a
    reference (some samples of the first of these) for each shape.
    """

    def __init__(self, risk: Risk):
        self.risk, self.loss = risk, risk.loss_fn
        self.references: dict[tuple, tuple[Batch, np.ndarray, np.ndarray]] = {}
        self.seen: list[tuple[tuple, float, _Counts]] = []
        self.known: dict[bytes, float] = {}

    def refer(self, batch: Batch) -> None:
        """Take samples to compare with, where there are none yet and these have a gradient."""
        shape = _shape_of_samples(batch)
        if shape not in self.references and (reference := self._reference(batch)) is not None:
            self.references[shape] = reference

    def add(self, batch: Batch) -> None:
        """Measure a batch, and keep what is needed to say how it was weighed."""
        shape = _shape_of_samples(batch)
        if shape not in self.references:
            raise Unmeasurable("its gradient at the outputs is zero or not finite")
        self.seen.append((shape, self.ratio(batch), _counted(batch)))

    def ratio(self, batch: Batch) -> float:
        """The weight of a batch, in units of that of the reference; measured once for the same
        targets.
        """
        digest = hashlib.sha256(str(batch.size).encode())
        for leaf in leaves(batch.targets):
            digest.update(_compat.to_numpy(leaf).tobytes())
        key = digest.digest()
        if key not in self.known:
            self.known[key] = self._ratio(batch, self.references[_shape_of_samples(batch)])
        return self.known[key]

    def losses(self, one: Batch, other: Batch) -> list[float]:
        """Those of two batches, and of both in one."""
        both = together(replace(one, args=(), kwargs={}), replace(other, args=(), kwargs={}))
        outs = self.risk.output(one), self.risk.output(other)
        return [
            self._at(*given)[0]
            for given in (
                (outs[0], one.targets),
                (outs[1], other.targets),
                (np.concatenate(outs), both.targets),
            )
        ]

    def _at(self, out: np.ndarray, targets: tuple) -> tuple[float, np.ndarray]:
        """The loss and its gradient at outputs."""
        point = Point(Call.bind(self.loss, (Tensor(out), *targets)), NO_SPACE)
        try:
            value, slope = map(_compat.to_numpy, _SLOPE.run(point)[0])
        except Exception as err:
            raise Unmeasurable(f"its gradient at the outputs cannot be had: {err}") from err
        return float(value), slope.astype(np.float64)

    def _reference(self, batch: Batch) -> tuple[Batch, np.ndarray, np.ndarray] | None:
        """Some samples, the outputs that stand for theirs, and the gradient of the loss of these
        samples alone; None where that is zero or not finite."""
        out = self.risk.output(batch)
        rows = _rows(out, batch.size)
        some = np.arange(
            min(_ROWS, (batch.size + 1) // 2)
        )  # not all: a batch says nothing beside itself
        for chosen in (some if len(some) > 1 else np.zeros(2, int), np.arange(batch.size)):
            part = _taken(batch, chosen)
            outs = np.concatenate([out[i * rows : (i + 1) * rows] for i in chosen])
            _, slope = self._at(outs, part.targets)
            if np.isfinite(slope).all() and slope.any():
                return part, outs, slope
        return None

    def _ratio(self, batch: Batch, reference: tuple[Batch, np.ndarray, np.ndarray]) -> float:
        part, outs, alone = reference
        rows = len(outs) // part.size
        both = together(replace(batch, args=(), kwargs={}), part)
        first = np.resize(outs[:rows], (batch.size * rows, *outs.shape[1:]))
        _, slope = self._at(np.concatenate([first, outs]), both.targets)
        slope = slope[-len(outs) :]
        share = float(np.vdot(slope, alone) / np.vdot(alone, alone))
        if not np.linalg.norm(slope - share * alone) <= 10 * TOLERANCE * abs(
            share
        ) * np.linalg.norm(alone):
            raise ValueError(
                "the loss is not a mean of the losses of its samples: in a larger batch, the "
                f"gradient of the same samples has another direction (batch {batch.number}), so "
                f"that batches do not add up to one loss of all data. {STATE_IT}"
            )
        if not 0 < share <= 1 + TOLERANCE:
            raise ValueError(
                f"the loss is not a mean of the losses of its samples: with batch {batch.number}, "
                f"some samples count {share:.4g} times as much as alone. {STATE_IT}"
            )
        return max(1 / share - 1, 0.0)

    def weighing(self, distributed: bool) -> Weighing:
        """What explains all that was measured: the number of entries, of those that are not a
        certain value, or else the numbers as they are."""
        references = {shape: _counted(part) for shape, (part, _, _) in self.references.items()}

        def explains(count: Callable[[Any], float]) -> bool:
            for shape, ratio, batch in self.seen:
                base = count(references[shape])
                if not base or abs(ratio - count(batch) / base) > TOLERANCE * max(ratio, 1.0):
                    return False
            return True

        values = sorted({value for *_, batch in self.seen for value in batch.values})[:MOST_VALUES]
        if explains(lambda one: one.size) and self._counts_all(values, None):
            if len(references) > 1:
                raise ValueError(
                    "the samples of different batches have targets of different shapes, and "
                    "whether this loss of your "
                    f"own divides by the samples or by all entries cannot be told. {STATE_IT}"
                )
            return ENTRIES if distributed else SAMPLES
        for value in values:
            if explains(functools.partial(_others, value)) and self._counts_all(values, value):
                return _all_but(value)
        if len(references) > 1 or distributed:
            raise ValueError(
                "the loss divides neither by the number of its samples nor by that of targets "
                "that are not ignored, and its batches cannot be compared with each other. "
                f"{STATE_IT}"
            )
        return Weighing("what was measured of the loss", self.ratio)

    def _counts_all(self, values: list[int], ignored: int | None) -> bool:
        """Whether samples that have one value as their integer targets count alike for each value,
        but nothing for the one that is ignored: a cut into batches may not show it, where these
        have as much of each value."""
        for part, _, _ in self.references.values():
            target, counts = _integers(part), _counted(part)
            for value in () if target is None else values:
                other = counts.entries if ignored is None else _others(ignored, counts)
                expected = 0.0 if value == ignored else counts.entries / other
                if abs(self.ratio(_filled(part, value)) - expected) > TOLERANCE * max(
                    expected, 1.0
                ):
                    return False
        return True


def compare(
    data: Iterable[Batch], weighing: Weighing, losses: Callable[[Batch, Batch], list[float]]
) -> int:
    """How many pairs of neighbours were put into one batch, whose loss is the mean of theirs;
    `losses` gives all three.

    Raises:
        ValueError: it is not.
    """
    pairs, last = 0, None
    for batch in data:
        if not weighing.of(batch):
            continue
        one, other, last = last, batch, batch
        if one is None:
            continue
        try:
            first, second, both = losses(one, other)
        except (ValueError, TypeError, RuntimeError):
            continue  # shapes that do not go into one Tensor
        weights = weighing.of(one), weighing.of(other)
        mean = (weights[0] * first + weights[1] * second) / sum(weights)
        if not abs(both - mean) <= TOLERANCE * max(abs(first), abs(second), abs(both)):  # or NaN
            raise ValueError(
                f"the loss is not a mean over its samples: it is {first:.6g} for batch "
                f"{one.number} ({one.size} samples), {second:.6g} for batch {other.number} "
                f"({other.size}), and {both:.6g}, not {mean:.6g}, for both in one (weighed by "
                f"{weighing.how}). {STATE_IT}"
            )
        pairs += 1
        if pairs == _PAIRS:
            break
    return pairs


class Unmeasurable(Exception):
    """The loss gives nothing to measure. Caught inside the package."""


@dataclass(frozen=True)
class _Counts:
    """What is kept of a batch: samples, entries of an integer target, and how often it has each
    value.
    """

    size: int
    entries: int
    values: dict[int, int]


def _others(value: int, one: _Counts) -> int:
    return one.entries - one.values.get(value, 0)


def _counted(batch: Batch) -> _Counts:
    target = _integers(batch)
    if target is None:
        return _Counts(batch.size, 0, {})
    values, counts = np.unique(target, return_counts=True)
    few = (
        dict(zip(values.tolist(), counts.tolist(), strict=True))
        if len(values) <= 16 * MOST_VALUES
        else {}
    )
    return _Counts(batch.size, target.size, few)


def _integers(batch: Batch) -> np.ndarray | None:
    """The first integer Tensor of the targets."""
    arrays = (_compat.to_numpy(leaf) for leaf in leaves(batch.targets))
    return next((array for array in arrays if array.dtype.kind in "iub"), None)


def _filled(batch: Batch, value: int) -> Batch:
    """The batch with one value for all of its first integer Tensor of the targets."""
    first = next(
        leaf for leaf in leaves(batch.targets) if _compat.to_numpy(leaf).dtype.kind in "iub"
    )
    return replace(
        batch,
        targets=mapped(
            lambda leaf: ops.full_like(leaf, value) if leaf is first else leaf, batch.targets
        ),
    )


def _all_but(value: int) -> Weighing:
    def terms(batch: Batch) -> np.ndarray:
        target = _integers(batch)
        assert target is not None
        return (target != value).astype(np.float64)

    def of(batch: Batch) -> float:
        return float(terms(batch).sum())

    return Weighing(f"the targets that are not {value}, as measured", of, terms)


def _shape_of_samples(batch: Batch) -> tuple:
    return tuple(tuple(leaf.shape[1:]) for leaf in leaves(batch.targets) if leaf.ndim)


def _rows(out: np.ndarray, size: int) -> int:
    """Rows of the output a sample: more than one where positions are rows."""
    if out.ndim == 0 or out.shape[0] % size:
        raise Unmeasurable(f"the output has shape {out.shape} for a batch of {size} samples")
    return out.shape[0] // size


def _taken(batch: Batch, rows: np.ndarray) -> Batch:
    """The targets of some samples of a batch."""

    def take(value: Any) -> Any:
        return (
            Tensor(_compat.to_numpy(value)[rows].copy()) if is_samples(value, batch.size) else value
        )

    return Batch((), {}, mapped(take, batch.targets), len(rows), batch.number)
