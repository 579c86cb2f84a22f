"""The data of a curvature operator: batches, in every form that MindSpore users have them."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

TARGETS = ("label", "labels", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """One batch: what the network is called with, what the loss gets after the network's output, and its size."""

    args: tuple
    kwargs: dict[str, Any]
    targets: tuple
    size: int


class Data:
    """Batches that can be gone through any number of times, in the same order.

    Args:
        data: a ``mindspore.dataset`` pipeline, a list (or other re-iterable) of batches, or one batch. A batch is a
            tuple ``(x, y)`` or ``(x1, x2, ..., y)``, a pair whose first is a tuple or dict of inputs, a dict of named
            columns, or a Tensor (inputs without a target).
        network: to know whether named columns are its parameters.
        has_loss: the last member of a batch goes to the loss; else all go to the function.
        batch_size_fn: the number of samples of a batch as it was given; by default the length of its first Tensor.
        micro_batch: cut batches into pieces of at most so many samples.
    """

    def __init__(self, data: Any, network: Any, has_loss: bool, batch_size_fn: Callable | None = None,
                 micro_batch: int | None = None):
        if batch_size_fn is not None and not callable(batch_size_fn):
            raise TypeError(f"batch_size_fn must be callable, but got {type(batch_size_fn).__name__}")
        if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
            raise ValueError(f"micro_batch must be a positive int or None, but got {micro_batch!r}")
        self.has_loss, self.batch_size_fn, self.micro_batch = has_loss, batch_size_fn, micro_batch
        self.names = _parameter_names(network)
        self.source, self.pipeline = _source(data, has_loss), hasattr(data, "create_tuple_iterator")

    def __iter__(self) -> Iterator[Batch]:
        raws = self.source.create_dict_iterator(num_epochs=1) if self.pipeline else self.source
        for number, raw in enumerate(raws):
            for piece in self._pieces(raw):
                yield self._batch(piece, number)

    def count(self) -> int | None:
        """The number of batches, where it is known without going through them."""
        if self.micro_batch is not None:
            return None
        if self.pipeline:
            return int(self.source.get_dataset_size())
        return len(self.source) if hasattr(self.source, "__len__") else None

    def _batch(self, raw: Any, number: int) -> Batch:
        args, kwargs, targets = self._split(raw, number)
        for leaf in _leaves((args, kwargs, targets)):
            if leaf.size == 0:
                raise ValueError(f"batch {number} has no samples: a Tensor in it has shape {tuple(leaf.shape)}")
        args, kwargs, targets = (_mapped(_tensor, part) for part in (args, kwargs, targets))
        size = self.batch_size_fn(raw) if self.batch_size_fn else _length((*args, *kwargs.values(), *targets), number)
        return Batch(args, kwargs, targets, int(size))

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
                raise ValueError(f"batch {number} has the columns {list(raw)}; exactly one of them must be the target "
                                 f"and be called one of {', '.join(TARGETS)}. Or pass batches as (inputs, target)")
            targets = (rest.pop(named[0] if named else list(rest)[-1]),)
        if self.names is not None and set(rest) <= self.names:
            return (), rest, targets
        return tuple(rest.values()), {}, targets

    def _pieces(self, raw: Any) -> Iterator[Any]:
        if self.micro_batch is None:
            yield raw
            return
        total = _length(raw, 0)
        for start in range(0, total, self.micro_batch):
            stop = min(start + self.micro_batch, total)

            def cut(value: Any, start: int = start, stop: int = stop) -> Any:
                return value[start:stop] if _is_samples(value, total) else value
            yield _mapped(cut, raw)


def _source(data: Any, has_loss: bool) -> Any:
    if hasattr(data, "create_tuple_iterator"):
        return data
    if isinstance(data, tuple | dict | Tensor | np.ndarray):
        return [data]
    if isinstance(data, Iterator):
        raise TypeError("data is an iterator, which can be gone through once only, and curvature needs a pass for "
                        "every product. Pass a list: list(data)")
    if not isinstance(data, Iterable):
        raise TypeError("data must be a mindspore.dataset pipeline, a list of batches, or one batch (a tuple, dict or "
                        f"Tensor), but got {type(data).__name__}")
    if isinstance(data, list):
        if not data:
            raise ValueError("data is an empty list: there is no batch to compute on")
        if has_loss and all(isinstance(item, Tensor | np.ndarray) for item in data):
            raise ValueError("data is a list of Tensors, which could be one batch or many. Pass one batch as a tuple "
                             "(x, y), many as a list of tuples")
    return data


def _parameter_names(network: Any) -> set[str] | None:
    """The names of the network's parameters, None where they cannot be told."""
    try:
        signature = inspect.signature(network.construct if isinstance(network, nn.Cell) else network)
    except (TypeError, ValueError):
        return None
    return {name for name, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _tensor(value: Any) -> Any:
    return Tensor(value) if isinstance(value, np.ndarray) else value


def _mapped(convert: Callable[[Any], Any], value: Any) -> Any:
    """`convert` on whatever is neither tuple, list nor dict; lists become tuples."""
    if isinstance(value, dict):
        return {name: _mapped(convert, item) for name, item in value.items()}
    return tuple(_mapped(convert, item) for item in value) if isinstance(value, tuple | list) else convert(value)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif isinstance(value, Tensor | np.ndarray):
        yield value


def _length(value: Any, number: int) -> int:
    for leaf in _leaves(value):
        if leaf.ndim == 0:
            break
        return int(leaf.shape[0])
    raise ValueError(f"the number of samples of batch {number} cannot be told, because its first Tensor has no axes. "
                     "Pass batch_size_fn=")


def _is_samples(value: Any, count: int) -> bool:
    """Whether it is a Tensor or array with one row a sample."""
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0 and value.shape[0] == count


def twice(batch: Batch) -> Batch:
    """The batch with every sample in it twice: its mean loss is the same, its summed loss doubles."""
    def double(value: Any) -> Any:
        return ms.ops.concat((value, value)) if _is_samples(value, batch.size) else value
    args, kwargs, targets = (_mapped(double, part) for part in (batch.args, batch.kwargs, batch.targets))
    return Batch(args, kwargs, targets, 2 * batch.size)
