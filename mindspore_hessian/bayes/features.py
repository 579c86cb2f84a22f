"""Passes forward through a network, and the features that its last layer gets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType

import numpy as np
from mindspore import Parameter, Tensor, mint, nn

from mindspore_hessian import _compat
from mindspore_hessian.operators.data import Batch

_KINDS = {kind for kind in (nn.Dense, getattr(mint.nn, "Linear", None)) if kind is not None}
_TOLERANCE = {"float64": 1e-9}  # of the outputs against those of the features; else:
_IN_SINGLE = 1e-4
_OF_NETWORKS = threading.RLock()  # one at a time is without its last layer


class NotLastError(ValueError):
    """The layer is not what the network ends with."""


class _Held(nn.Cell):
    """The network, compiled by itself: what is compiled of it without its last layer is not what
    the user calls.
    """

    def __init__(self, network: nn.Cell):
        super().__init__(auto_prefix=False)
        object.__setattr__(
            self, "held", (network,)
        )  # past Cell.__setattr__: it must not become a child

    def construct(self, *args, **kwargs):
        return self.held[0](*args, **kwargs)


def _passed_on(self, x):
    return x


class Network:
    """A network's outputs, float64, of shape (samples, outputs)."""

    def __init__(self, network: nn.Cell):
        self.network = network
        self._held = _Held(network)

    def __call__(self, batch: Batch) -> np.ndarray:
        out = self._held(*batch.args, **batch.kwargs)
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != batch.size:
            raise ValueError(
                f"network must return one Tensor of shape (samples, outputs), but for {batch.size} "
                f"samples gave {shape}"
            )
        return _numbers(out)


def _numbers(tensor: Tensor) -> np.ndarray:
    return _compat.to_numpy(tensor).astype(np.float64)


@dataclass(eq=False)
class LastLayer:
    """A Dense layer that a network ends with.

    Attributes:
        network: that whose outputs they are.
        name: of the layer in it.
        cell: the layer.
    """

    network: Network
    name: str
    cell: nn.Cell

    def __post_init__(self) -> None:
        self._held = _Held(self.network.network)

    @property
    def weight(self) -> Parameter:
        return self.cell.weight

    @property
    def bias(self) -> Parameter | None:
        return self.cell.bias if getattr(self.cell, "bias", None) is not None else None

    def features(self, batch: Batch) -> np.ndarray:
        """What the layer gets, (samples, features), float64."""
        with self._left_out():
            out = self._held(*batch.args, **batch.kwargs)
        width = self.weight.shape[1]
        if not isinstance(out, Tensor) or tuple(out.shape) != (batch.size, width):
            raise NotLastError(
                f"without it the network does not return ({batch.size}, {width}) features"
            )
        return _numbers(out)

    def outputs(self, features: np.ndarray) -> np.ndarray:
        """The network's outputs."""
        out = features @ _numbers(self.weight).T
        return out if self.bias is None else out + _numbers(self.bias)

    def check(self, features: np.ndarray, outputs: np.ndarray) -> None:
        """Raise `NotLastError` where the outputs are not what the layer makes of the features."""
        found, scale = self.outputs(features), max(np.abs(outputs).max(), 1e-30)
        if (
            found.shape != outputs.shape
            or not np.abs(found - outputs).max()
            <= _TOLERANCE.get(str(self.weight.dtype).lower(), _IN_SINGLE) * scale
        ):
            raise NotLastError(
                "the network's outputs are not its weight times features, plus its bias"
            )

    @contextlib.contextmanager
    def _left_out(self) -> Iterator[None]:
        with _OF_NETWORKS:
            self.cell.__dict__["construct"] = MethodType(_passed_on, self.cell)
            try:
                yield
            finally:
                self.cell.__dict__.pop("construct", None)


def last_layer(
    network: Network, batch: Batch, among: tuple[Parameter, ...] | None = None
) -> LastLayer | None:
    """The layer that the network ends with, found by leaving out one after another; None where
    there is none.

    Args:
        network: the network.
        batch: on which that is tried.
        among: only a layer whose trainable Parameters these are; None: any.
    """
    outputs = network(batch)
    for name, cell in reversed(list(network.network.cells_and_names())):
        if type(cell) not in _KINDS or not name or getattr(cell, "activation", None) is not None:
            continue
        own = {id(p) for p in cell.get_parameters(expand=False) if p.requires_grad}
        if id(cell.weight) not in own or (among is not None and own != {id(p) for p in among}):
            continue
        if cell.weight.shape[0] != outputs.shape[1] or _shared(network.network, cell, own):
            continue
        found = LastLayer(network, name, cell)
        with contextlib.suppress(
            Exception
        ):  # whatever a network does without one of its inner layers
            found.check(found.features(batch), outputs)
            return found
    return None


def _shared(network: nn.Cell, cell: nn.Cell, own: set[int]) -> bool:
    """Whether another Cell has a Parameter of it too."""
    return any(
        other is not cell and own & {id(p) for p in other.get_parameters(expand=False)}
        for _, other in network.cells_and_names()
    )
