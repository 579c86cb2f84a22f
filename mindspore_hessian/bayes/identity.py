"""Which network, with which weights: what a posterior was made of, and whether another network is
that.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

from mindspore import nn

from mindspore_hessian import _compat


def fingerprint(network: nn.Cell) -> int:
    """Of all Parameters' numbers, those of batch norm's statistics too."""
    token = 0
    for parameter in network.get_parameters():
        token = zlib.crc32(_compat.to_numpy(parameter).tobytes(), token)
    return token


def identity(network: nn.Cell) -> dict[str, Any]:
    """What JSON can hold of a network: its Cells by name and class, and its Parameters with a
    digest of the numbers.
    """
    return {
        "cells": [[name, type(cell).__name__] for name, cell in network.cells_and_names() if name],
        "parameters": [
            [
                p.name,
                str(p.dtype),
                list(p.shape),
                hashlib.sha256(_compat.to_numpy(p).tobytes()).hexdigest(),
            ]
            for p in network.get_parameters()
        ],
    }


def difference(saved: dict[str, Any], own: dict[str, Any]) -> str:
    """How two networks differ, in words; "" for not at all."""
    for what, one in (("layer", "cells"), ("Parameter", "parameters")):
        if len(saved[one]) != len(own[one]):
            return f"that has {len(saved[one])} {what}s, and network {len(own[one])}"
        for theirs, ours in zip(saved[one], own[one], strict=True):
            if theirs[:3] != ours[:3]:
                return f"its {what} {_named(theirs)} is {_named(ours)} in network"
    others = [
        name
        for (name, *_, theirs), (*_, ours) in zip(
            saved["parameters"], own["parameters"], strict=True
        )
        if theirs != ours
    ]
    return (
        f"the numbers of {', '.join(others[:4])}{' and others' if len(others) > 4 else ''} differ"
        if others
        else ""
    )


def _named(one: list[Any]) -> str:
    return f"{one[0]!r} ({', '.join(map(str, one[1:3]))})"
