"""The data of a curvature operator: batches, in every form that MindSpore users have them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindspore_hessian._errors import HessianError
from mindspore_hessian.arguments import is_integer, shown

TARGETS = ("label", "labels", "target", "targets", "y")
NO_BATCHES = "data has no batches, or what it goes through was used up before"
MOST_BATCHES = (
    20_000  # of data that do not say how many there are, before they are taken for endless
)


class NotDeterministicError(HessianError, RuntimeError):
    """Two passes over the data gave different numbers, so that there is no one matrix to speak
    of.
    """


@dataclass(frozen=True)
class Batch:
    """One batch: what the network is called with, what the loss gets after the network's output,
    and its size.

    `number` is that of the batch in the data, and `raw` what the data gave, or, of a micro batch, a
    piece of it.
    """

    args: tuple
    kwargs: dict[str, Any]
    targets: tuple
    size: int
    number: int = 0
    raw: Any = None


class Data:
    """Batches that can be gone through any number of times, in the same order.

    A pass that is gone through to its end counts its batches and samples, and must count what the
    first one did. After `keep`, the batches of a pipeline are kept from such a pass on: to go
    through it costs more than most products.

    Args:
        data: a ``mindspore.dataset`` pipeline, a list (or other re-iterable) of batches, or one
            batch. A batch is a tuple ``(x, y)`` or ``(x1, x2, ..., y)``, a pair whose first is a
            tuple or dict of inputs, a dict of named columns, or a Tensor (inputs without a target).
        network: to know whether named columns are its parameters.
        has_loss: the last member of a batch goes to the loss; else all go to the function.
        batch_size_fn: the number of samples of a batch as it was given; by default the length of
            its first Tensor.
        micro_batch: cut batches into pieces of at most so many samples.
        most: the number of batches after which data without a length are taken for endless.

    Raises:
        TypeError, ValueError: at the start, or in a pass: no such data; the message names the
            batch.
        NotDeterministicError: in a pass that has other numbers of batches or samples than the
            first.
    """

    def __init__(
        self,
        data: Any,
        network: Any,
        has_loss: bool,
        batch_size_fn: Callable | None = None,
        micro_batch: int | None = None,
        most: int = MOST_BATCHES,
    ):
        if batch_size_fn is not None and not callable(batch_size_fn):
            raise TypeError(
                f"batch_size_fn must be callable, but got {type(batch_size_fn).__name__}"
            )
        if micro_batch is not None and (not is_integer(micro_batch) or micro_batch < 1):
            raise ValueError(
                f"micro_batch must be a positive int or None, but got {shown(micro_batch)}"
            )
        self.has_loss, self.batch_size_fn, self.micro_batch = has_loss, batch_size_fn, micro_batch
        self.names = _parameter_names(network)
        self.source, self.pipeline = _source(data, has_loss), hasattr(data, "create_tuple_iterator")
        self.most = max(MOST_BATCHES, most)
        self.counted: tuple[int, int] | None = None  # batches and samples of the first whole pass
        self.kept: tuple[Batch, ...] | None = None
        self._most_bytes = 0

    def keep(self, most: int) -> None:
        """Keep the batches of a pipeline from the next whole pass on, if they take at most so many
        bytes.
        """
        self._most_bytes = most if self.pipeline else 0

    def forget(self) -> None:
        """Go through the pipeline again."""
        self.kept, self._most_bytes = None, 0

    @property
    def kept_bytes(self) -> int:
        """What the batches that are kept take."""
        return sum(map(_bytes_of, self.kept or ()))

    def __iter__(self) -> Iterator[Batch]:
        if self.kept is not None:
            yield from self.kept
            return
        kept: list[Batch] | None = [] if self._most_bytes else None
        held = 0
        for batch in self._pass():
            if kept is not None:
                held += _bytes_of(batch)
                if held <= self._most_bytes:
                    kept.append(batch)
                else:
                    kept = None
            yield batch
        if kept is not None:
            self.kept = tuple(kept)

    def _pass(self) -> Iterator[Batch]:
        raws = self.source.create_dict_iterator(num_epochs=1) if self.pipeline else self.source
        batches = samples = 0
        for number, raw in enumerate(raws):
            self._check_going_on(number)
            for piece in self._pieces(raw, number):
                batch = self._batch(piece, number)
                batches, samples = batches + 1, samples + batch.size
                if self.counted is not None and batches > self.counted[0]:
                    raise self._other(f"more than {self.counted[0]} batches")
                yield batch
        if self.counted is None:
            self.counted = batches, samples
        elif self.counted != (batches, samples):
            raise self._other(_counts(batches, samples))

    def first(self) -> Batch:
        """The first batch.

        Raises:
            ValueError: there is none.
        """
        batch = next(iter(self), None)
        if batch is None:
            raise ValueError(NO_BATCHES)
        return batch

    def _check_going_on(self, number: int) -> None:
        """Raise where data give more than they say, or no end is in sight."""
        known = self._length
        if known is not None and number >= known:
            raise ValueError(
                f"data gives more batches than its len(), which is {known}: is it endless?"
            )
        if known is None and number >= self.most:
            raise ValueError(
                f"data has given {number} batches and goes on. Where it is endless (repeat(), "
                "`while True`), pass what gives one pass over it; where it is that long, give it "
                "a __len__, or pass num_data=, of at least the number of batches"
            )

    def _other(self, found: str) -> NotDeterministicError:
        assert self.counted is not None
        return NotDeterministicError(
            f"the first pass over the data had {_counts(*self.counted)}, and this one {found}. "
            "Every product is a pass, and needs the same data. Data that can be gone through once "
            "only (an iterator inside of the object, an open file) go into a list: list(data)"
        )

    def count(self) -> int | None:
        """The number of batches, where it is known without going through them; a pipeline may go
        through itself.
        """
        return None if self.micro_batch is not None else self._length

    @property
    def _length(self) -> int | None:
        return len(self.source) if not self.pipeline and hasattr(self.source, "__len__") else None

    def _batch(self, raw: Any, number: int) -> Batch:
        args, kwargs, targets = self._split(raw, number)
        for leaf in leaves((args, kwargs, targets)):
            if leaf.size == 0:
                raise ValueError(
                    f"batch {number} has no samples: a Tensor in it has shape {tuple(leaf.shape)}"
                )
        args, kwargs, targets = (mapped(_tensor, part) for part in (args, kwargs, targets))
        size = (
            self.batch_size_fn(raw)
            if self.batch_size_fn
            else _length((*args, *kwargs.values(), *targets), number)
        )
        if not is_integer(size) or size < 1:
            raise ValueError(
                f"batch_size_fn must give a positive int, but gave {shown(size)} for batch {number}"
            )
        return Batch(args, kwargs, targets, int(size), number, raw)

    def _split(self, raw: Any, number: int) -> tuple[tuple, dict, tuple]:
        if isinstance(raw, dict):
            return self._columns(raw, number)
        members = tuple(raw) if isinstance(raw, tuple | list) else (raw,)
        if not members:
            raise ValueError(f"batch {number} is empty")
        if not self.has_loss:
            return members, {}, ()
        inputs, targets = (members[:-1], members[-1:]) if len(members) > 1 else (members, ())
        if len(inputs) == 1 and isinstance(inputs[0], dict):
            return (), dict(inputs[0]), targets
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            return tuple(inputs[0]), {}, targets
        return inputs, {}, targets

    def _columns(self, raw: dict, number: int) -> tuple[tuple, dict, tuple]:
        rest = dict(raw)
        targets: tuple = ()
        if self.has_loss:
            named = [name for name in rest if name in TARGETS]
            if len(named) > 1 or (not named and not self.pipeline):
                raise ValueError(
                    f"batch {number} has the columns {list(raw)}; exactly one of them must be the "
                    f"target and be called one of {', '.join(TARGETS)}. Or pass batches as "
                    "(inputs, target)"
                )
            targets = (rest.pop(named[0] if named else list(rest)[-1]),)
        if self.names is not None and set(rest) <= self.names:
            return (), rest, targets
        return tuple(rest.values()), {}, targets

    def _pieces(self, raw: Any, number: int) -> Iterator[Any]:
        if self.micro_batch is None:
            yield raw
            return
        total = _length(raw, number)
        for start in range(0, total, self.micro_batch):
            stop = min(start + self.micro_batch, total)

            def cut(value: Any, start: int = start, stop: int = stop) -> Any:
                return value[start:stop] if is_samples(value, total) else value

            yield mapped(cut, raw)


def _source(data: Any, has_loss: bool) -> Any:
    if hasattr(data, "create_tuple_iterator"):
        return data
    if isinstance(data, tuple | dict | Tensor | np.ndarray):
        return [data]
    if not isinstance(data, Iterable) or isinstance(data, str | bytes):
        raise TypeError(
            "data must be a mindspore.dataset pipeline, a list of batches, or one batch (a tuple, "
            f"dict or Tensor), but got {type(data).__name__}"
        )
    if isinstance(data, Iterator) or _is_used_up(data):
        raise TypeError(
            "data is (or gives at every pass the same) iterator, which can be gone through once "
            "only, and curvature needs a pass for every product. Pass a list: list(data)"
        )
    if isinstance(data, list):
        if not data:
            raise ValueError("data is an empty list: there is no batch to compute on")
        if has_loss and all(isinstance(item, Tensor | np.ndarray) for item in data):
            raise ValueError(
                "data is a list of Tensors, which could be one batch or many. Pass one batch as a "
                "tuple (x, y), many as a list of tuples"
            )
    return data


def _is_used_up(data: Iterable) -> bool:
    """Whether two passes would share one iterator. A sequence is never asked: each pass has one of
    its own.
    """
    return not isinstance(data, Sequence) and iter(data) is iter(data)


def _counts(batches: int, samples: int) -> str:
    return (
        f"{batches} batch{'es' * (batches != 1)} of {samples} sample{'s' * (samples != 1)} in all"
    )


def _parameter_names(network: Any) -> set[str] | None:
    """The names of the network's parameters, None where they cannot be told."""
    try:
        signature = inspect.signature(
            network.construct if isinstance(network, nn.Cell) else network
        )
    except (TypeError, ValueError):
        return None
    return {
        name
        for name, p in signature.parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "fiubc":
        raise TypeError(
            f"data holds an array of dtype {value.dtype}, of which no Tensor can be made"
        )
    return Tensor(value) if isinstance(value, np.ndarray) else value


def mapped(convert: Callable[[Any], Any], value: Any) -> Any:
    """`convert` on whatever is neither tuple, list nor dict; lists become tuples."""
    if isinstance(value, dict):
        return {name: mapped(convert, item) for name, item in value.items()}
    return (
        tuple(mapped(convert, item) for item in value)
        if isinstance(value, tuple | list)
        else convert(value)
    )


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif isinstance(value, Tensor | np.ndarray):
        yield value


def _length(value: Any, number: int) -> int:
    for leaf in leaves(value):
        if leaf.ndim == 0:
            break
        return int(leaf.shape[0])
    raise ValueError(
        f"the number of samples of batch {number} cannot be told, because its first Tensor has no "
        "axes. Pass batch_size_fn="
    )


def _bytes_of(batch: Batch) -> int:
    return sum(leaf.nbytes for leaf in leaves((batch.args, batch.kwargs, batch.targets)))


def is_samples(value: Any, count: int) -> bool:
    """Whether it is a Tensor or array with one row a sample."""
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and value.shape[0] == count


def together(batch: Batch, other: Batch) -> Batch:
    """The samples of two batches in one."""

    def join(value: Any, more: Any) -> Any:
        if isinstance(value, dict):
            return {name: join(item, more[name]) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(join(*items) for items in zip(value, more, strict=True))
        return ms.ops.concat((value, more)) if is_samples(value, batch.size) else value

    args, kwargs, targets = (
        join(getattr(batch, part), getattr(other, part)) for part in ("args", "kwargs", "targets")
    )
    return Batch(args, kwargs, targets, batch.size + other.size, batch.number)


def twice(batch: Batch) -> Batch:
    """The batch with every sample in it twice: its mean loss is the same, its summed loss
    doubles.
    """
    return together(batch, batch)
