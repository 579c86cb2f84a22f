"""Weights, batches and directions of tests/programs.py, by numpy alone: ci/golden/make_programs.py
imports this too.

Weights are drawn by name, so that neither side has to store them. They are small where a
normalisation follows, so that its epsilon matters: rows of variance near 1e-3 go into layers of
epsilon 1e-5 and 1e-6.
"""

from __future__ import annotations

import zlib

import numpy as np

BATCHES = (4, 2)  # uneven, so that the weight of a batch matters
CLASSES = {"vit": 3, "gpt": 7, "tagger": 5, "pinn": 0}


def rng_of(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def weight(program: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """gamma near one, everything else small."""
    values = rng_of(program, name).normal(size=shape)
    if name.endswith(("gamma", "moving_variance")):
        return 1 + 0.2 * np.abs(values)
    scale = 0.6 / np.sqrt(max(1, np.prod(shape[1:])))
    return values * (0.05 if "embed" in name else 1.0 if program == "pinn" else scale)


def batches(program: str) -> list[tuple[np.ndarray, np.ndarray]]:
    out = []
    for number, n in enumerate(BATCHES):
        rng = rng_of(program, "batch", number)
        if program == "vit":
            out.append((0.2 * rng.normal(size=(n, 2, 8, 8)), rng.integers(0, 3, n)))
        elif program == "gpt":
            words = rng.integers(0, 7, (n, 6))
            out.append((words[:, :-1], words[:, 1:]))
        elif program == "tagger":
            out.append((rng.integers(0, 9, (n, 5)), rng.integers(0, 5, (n, 5))))
        else:
            points = rng.uniform(-1, 1, (n, 2))
            out.append((points, np.sin(np.pi * points).prod(1, keepdims=True)))
    return out


def direction(program: str, size: int) -> np.ndarray:
    return rng_of(program, "direction").normal(size=size)
