"""A function near a point: its value and first gradient, compiled, where the variables are
moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian import _compat
from mindspore_hessian.core.program import Function, Point, Program
from mindspore_hessian.core.space import FLOATS, Space, ravel, split, tensors_of
from mindspore_hessian.transforms import compose
from mindspore_hessian.transforms.chunks import outputs

# dtype -> machine precision, default relative tolerance
PRECISION = {
    ms.float64: (2.0**-52, 1e-5),
    ms.float32: (2.0**-23, 1e-2),
    ms.float16: (2.0**-10, 1e-1),
    ms.bfloat16: (2.0**-7, 2e-1),
}


class Vicinity:
    """A function near a point, in float64 numpy and in scaled coordinates: each variable divided by
    its size.

    So all of value, gradient and second derivative have the units of the function, and one
    tolerance serves them.
    """

    def __init__(self, point: Point, args: tuple, directions: np.ndarray, scalar: bool):
        self.point, self.args, self.space, self.directions = point, args, point.space, directions
        self.base = _values(point)
        self.size = _sizes(point)
        self.contraction, self._u = np.ones(1), ()
        if not scalar:
            outs = outputs(point)[0]
            count = sum(out.size for out in outs)
            self.contraction = (
                np.ones(1) if count == 1 else np.random.default_rng(count).normal(size=count)
            )
            self._u = tuple(
                _tensor(part, out.dtype)
                for part, out in zip(
                    split(self.contraction, [out.shape for out in outs]), outs, strict=True
                )
            )
            self.contraction = ravel(self._u, np.float64)  # as rounded to the outputs' dtypes

    @property
    def dtype(self) -> Any:
        """The coarsest dtype among the variables."""
        return max(self.space.dtypes, key=lambda dtype: PRECISION[dtype][0])

    @property
    def zero(self) -> np.ndarray:
        """The shift of the point itself."""
        return np.zeros_like(self.base)

    def parameter_dtypes(self) -> set:
        """The floating-point dtypes of all Parameters that the function can reach."""
        return {
            p.dtype for p in self.point.call.captures().parameters.values() if p.dtype in FLOATS
        }

    def vectors(self, direction: np.ndarray) -> Any:
        """A scaled direction as `hvp` takes it."""
        return self.space.pack(self._tensors(direction * self.size))

    def scaled(self, vectors: Any) -> np.ndarray:
        """A gradient or product, scaled."""
        return ravel(tensors_of(vectors), np.float64) * self.size

    def matrix(self, blocks: Any) -> np.ndarray:
        """The blocks that `hessian` returns, scaled, as one array (outputs, variables,
        variables).
        """
        count = len(self.space.sizes)
        tensors = [_compat.to_numpy(t).astype(np.float64) for t in tensors_of(_tuple(blocks))]
        outs = []
        for start in range(0, len(tensors), count * count):
            rows = [
                np.concatenate(
                    [
                        tensors[start + i * count + j].reshape(-1, size, other)
                        for j, other in enumerate(self.space.sizes)
                    ],
                    axis=2,
                )
                for i, size in enumerate(self.space.sizes)
            ]
            outs.append(np.concatenate(rows, axis=1))
        return np.concatenate(outs) * self.size * self.size[:, None]

    def at(self, shift: np.ndarray) -> tuple[float, np.ndarray]:
        """Value and gradient at the point moved by a scaled `shift`, from one compiled graph."""
        moved = self._tensors(self.base + shift * self.size)
        inputs, count = list(self.point.call.leaves), len(self.space.positions)
        for position, tensor in zip(self.space.positions, moved, strict=False):
            inputs[position] = tensor
        there = replace(self.point, call=replace(self.point.call, leaves=tuple(inputs)))
        with _moved(self.space.weights, moved[count:]):
            (value, gradient), _ = _FIRST[bool(self._u)].run(there, self._u)
            return float(
                ravel(tensors_of(_tuple(value)), np.float64) @ self.contraction
            ), self.scaled(gradient)

    def place(self, number: int) -> str:
        """How an error names an entry of the variables."""
        for name, size, shape in zip(
            self.space.names, self.space.sizes, self.space.shapes, strict=True
        ):
            if number < size:
                return (
                    f"{name}{[int(i) for i in np.unravel_index(number, shape)]}" if shape else name
                )
            number -= size
        raise IndexError(number)

    def _tensors(self, flat: np.ndarray) -> list[Tensor]:
        return list(map(_tensor, self.space.split(flat), self.space.dtypes))


def _first_kernel(function: Function, space: Space) -> Callable:
    """Value and first gradient of f, contracted with the Tensors after the leaves where there are
    any.
    """
    f, n = function.value, function.n
    pull, scalar = compose.vjp(f, space.positions, space.parameters), compose.scalar(f)
    gradient = compose.gradient(scalar, space.positions, space.parameters)

    def run(*tensors):
        xs, us = tensors[:n], tensors[n:]
        if len(us) == 0:
            return scalar(*xs), gradient(*xs)
        out = f(*xs)
        if isinstance(out, tuple):
            return out, pull(xs, us)
        return out, pull(xs, us[0])

    return run


_FIRST = {
    contracted: Program("testing", _first_kernel, (contracted,)) for contracted in (False, True)
}


@contextlib.contextmanager
def _moved(weights: tuple[Parameter, ...], values: Sequence[Tensor]) -> Iterator[None]:
    """Other values in the buffers of the weights, and the old ones back bit by bit, whatever
    happens.
    """
    before = [_compat.to_numpy(weight).copy() for weight in weights]

    def restore() -> None:
        for weight, value in zip(weights, before, strict=True):
            _compat.assign(weight, value)

    try:
        for weight, value in zip(weights, values, strict=True):
            _compat.assign(weight, _compat.to_numpy(value))
        yield
    finally:
        try:
            restore()
        except BaseException:  # Ctrl-C just now
            restore()
            raise


def random_directions(point: Point, vectors: Any, count: int, seed: int) -> np.ndarray:
    """Scaled directions of root mean square 1: the user's first, then standard normals."""
    size = _sizes(point)
    found = np.random.default_rng(seed).normal(size=(count, size.size))
    if vectors is not None:
        first = ravel(point.space.parts(vectors, "vectors"), np.float64) / size
        if not first.any():
            raise ValueError("vectors is zero, so there is nothing to check along it")
        found[0] = first
    return found / np.sqrt((found**2).mean(1, keepdims=True))


def _values(point: Point) -> np.ndarray:
    return ravel(
        [
            *(point.call.leaves[position] for position in point.space.positions),
            *point.space.weights,
        ],
        np.float64,
    )


def _sizes(point: Point) -> np.ndarray:
    """The root mean square of each variable, for each of its entries; 1 where that is 0."""
    parts = point.space.split(_values(point))
    return np.concatenate([np.full(part.size, np.sqrt((part**2).mean()) or 1.0) for part in parts])


def cast(value: Any, dtype: Any) -> Any:
    """Nested arguments with their floating-point Tensors in another dtype; None leaves them."""
    if isinstance(value, Tensor):
        return value.astype(dtype) if dtype is not None and value.dtype in FLOATS else value
    if type(value) is dict:
        return {key: cast(item, dtype) for key, item in value.items()}
    return (
        type(value)(cast(item, dtype) for item in value) if type(value) in (tuple, list) else value
    )


def _tensor(array: np.ndarray, dtype: Any) -> Tensor:
    return Tensor(np.array(array, np.float64)).astype(dtype)


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def name_of(fn: Any) -> str:
    """How a report names the function."""
    return getattr(fn, "__name__", None) or type(fn).__name__
