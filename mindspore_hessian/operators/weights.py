"""Which Parameters an operator is about, and the layers they belong to."""

from __future__ import annotations

import fnmatch
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from mindspore_hessian.core.space import Space, several_weights


def slices(space: Space) -> dict[str, slice]:
    """Parameter name -> its part of a flat vector."""
    return {weight.name: part for weight, part in zip(space.weights, space.slices, strict=True)}


def layers(space: Space) -> dict[str, np.ndarray]:
    """Layer (the name of a Parameter up to its last dot) -> the indices of its entries."""
    out: dict[str, list[np.ndarray]] = {}
    for name, part in slices(space).items():
        out.setdefault(layer_of(name), []).append(np.arange(part.start, part.stop))
    return {name: np.concatenate(parts) for name, parts in out.items()}


def blocks(space: Space, kind: str) -> dict[str, np.ndarray]:
    """The indices of each block of a block-diagonal operator: a layer, or a Parameter, each."""
    if kind == "layer":
        return layers(space)
    return {name: np.arange(part.start, part.stop) for name, part in slices(space).items()}


def layer_of(name: str) -> str:
    """The layer that a Parameter belongs to by its name."""
    return name.rpartition(".")[0] or name


def layer_classes(network: Any, weights: tuple[Parameter, ...]) -> dict[str, str]:
    """Layer -> the class of the Cell that holds its first Parameter; only where the network is a
    Cell and has it.
    """
    cells = reversed(list(network.cells_and_names())) if isinstance(network, nn.Cell) else ()
    holders = {
        id(p): type(cell).__name__ for _, cell in cells for p in cell.get_parameters(expand=False)
    }
    return {layer_of(p.name): holders[id(p)] for p in reversed(weights) if id(p) in holders}


def choose(network: Any, weights: Any) -> Space:
    """The Parameters that `weights` says: None (all trainable), a pattern of names, Parameters, or
    several of these.

    Raises:
        TypeError, ValueError: not Parameters, none, unknown names.
    """
    if isinstance(weights, Space):
        return weights
    trainable = tuple(network.trainable_params()) if isinstance(network, nn.Cell) else ()
    if weights is None:
        if not trainable:
            raise ValueError(
                "the network has no trainable weights; pass weights="
                if isinstance(network, nn.Cell)
                else "the function is not a Cell, so say which Parameters: weights=net.trainable_params()"
            )
        return Space.of_weights(trainable)
    weights = several_weights(weights)
    several = weights if isinstance(weights, tuple | list) else (weights,)
    chosen: list[Parameter] = []
    for one in several:
        if not isinstance(one, str):
            chosen.append(one)
            continue
        found = [p for p in trainable if fnmatch.fnmatchcase(p.name, one)]
        if not found:
            raise ValueError(
                f"weights: no trainable Parameter has a name like {one!r}; there are "
                f"{', '.join(p.name for p in trainable) or 'none'}"
            )
        chosen += [p for p in found if not any(p is other for other in chosen)]
    return Space.of_weights(chosen)
