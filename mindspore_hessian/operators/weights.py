"""Which Parameters an operator is about, their flat order, and the layers they belong to."""
from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian.core.space import check_weights, several_weights
from mindspore_hessian.operators import kernels
from mindspore_hessian.transforms.chunks import cut_line


@dataclass(frozen=True)
class Weights:
    """Parameters in the order of the flat vector."""

    parameters: tuple[Parameter, ...]

    @cached_property
    def parameter_tuple(self) -> ParameterTuple:
        """As MindSpore's gradient takes them."""
        return ParameterTuple(self.parameters)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of each Parameter."""
        return [tuple(p.shape) for p in self.parameters]

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of entries."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    @cached_property
    def numpy_dtype(self) -> np.dtype:
        """The numpy dtype of flat vectors."""
        return np.dtype(str(kernels.flat_dtype(self.parameters)).lower())

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Parameter name -> its part of a flat vector."""
        ends = np.cumsum(self.sizes)
        return {p.name: slice(int(end - size), int(end))
                for p, size, end in zip(self.parameters, self.sizes, ends, strict=True)}

    @cached_property
    def layers(self) -> dict[str, np.ndarray]:
        """Layer (the name of a Parameter up to its last dot) -> the indices of its entries."""
        out: dict[str, list[np.ndarray]] = {}
        for name, part in self.slices.items():
            out.setdefault(layer_of(name), []).append(np.arange(part.start, part.stop))
        return {name: np.concatenate(parts) for name, parts in out.items()}

    def blocks(self, kind: str) -> dict[str, np.ndarray]:
        """The indices of each block of a block-diagonal operator: a layer, or a Parameter, each."""
        if kind == "layer":
            return self.layers
        return {name: np.arange(part.start, part.stop) for name, part in self.slices.items()}

    def flatten(self, structure: Any) -> np.ndarray:
        """A Tensor or array for each Parameter, as one vector."""
        if not isinstance(structure, tuple | list):
            raise TypeError("a vector shaped like the weights is a tuple or list of Tensors, but got a "
                            f"{type(structure).__name__}")
        if len(structure) != len(self.parameters):
            raise ValueError(f"a vector shaped like the weights holds {len(self.parameters)} Tensors, but got "
                             f"{len(structure)}")
        parts = []
        for value, shape, name in zip(structure, self.shapes, self.slices, strict=True):
            array = _compat.to_numpy(value) if isinstance(value, Tensor) else np.asarray(value)
            if tuple(array.shape) != shape:
                raise ValueError(f"the vector for weight {name!r} must have its shape {shape}, but has shape "
                                 f"{tuple(array.shape)}")
            parts.append(array.reshape(-1))
        return np.concatenate(parts)

    def unflatten(self, flat: np.ndarray) -> tuple[Tensor, ...]:
        """One vector as a Tensor for each Parameter, in its dtype."""
        line, size = np.array(flat), sum(self.sizes)
        if line.shape != (size,) or line.dtype.kind not in "fiub":
            raise ValueError(f"a flat vector of the weights holds {size} real numbers, but got shape {line.shape} and "
                             f"dtype {line.dtype}")
        return cut_line(self.shapes, [p.dtype for p in self.parameters], line)


def layer_of(name: str) -> str:
    """The layer that a Parameter belongs to by its name."""
    return name.rpartition(".")[0] or name


def layer_classes(network: Any, weights: Weights) -> dict[str, str]:
    """Layer -> the class of the Cell that holds its first Parameter; only where the network is a Cell and has it."""
    cells = reversed(list(network.cells_and_names())) if isinstance(network, nn.Cell) else ()
    holders = {id(p): type(cell).__name__ for _, cell in cells for p in cell.get_parameters(expand=False)}
    return {layer_of(p.name): holders[id(p)] for p in reversed(weights.parameters) if id(p) in holders}


def choose(network: Any, weights: Any) -> Weights:
    """The Parameters that `weights` says: None (all trainable), a pattern of names, Parameters, or several of these.

    Raises:
        TypeError, ValueError: not Parameters, none, unknown names.
    """
    if isinstance(weights, Weights):
        return weights
    trainable = tuple(network.trainable_params()) if isinstance(network, nn.Cell) else ()
    if weights is None:
        if not trainable:
            raise ValueError("the network has no trainable weights; pass weights=" if isinstance(network, nn.Cell) else
                             "the function is not a Cell, so say which Parameters: weights=net.trainable_params()")
        return Weights(trainable)
    weights = several_weights(weights)
    several = weights if isinstance(weights, tuple | list) else (weights,)
    chosen: list[Parameter] = []
    for one in several:
        if not isinstance(one, str):
            chosen.append(one)
            continue
        found = [p for p in trainable if fnmatch.fnmatchcase(p.name, one)]
        if not found:
            raise ValueError(f"weights: no trainable Parameter has a name like {one!r}; there are "
                             f"{', '.join(p.name for p in trainable) or 'none'}")
        chosen += [p for p in found if not any(p is other for other in chosen)]
    return Weights(check_weights(chosen))
