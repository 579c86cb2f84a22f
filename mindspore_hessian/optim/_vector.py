"""What is optimised, as one float64 vector: the inputs of a function, or Parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import as_reals, shown

FLOATS = {ms.float16: np.float16, ms.float32: np.float32, ms.float64: np.float64}


def flat(values: Sequence[Any]) -> np.ndarray:
    """Tensors or arrays as one float64 vector, a copy."""
    return np.concatenate([as_reals("a value", value).reshape(-1) for value in values])


def split(vector: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """A vector, cut into arrays of these shapes."""
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]


def tensors(
    vector: np.ndarray, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[Any]
) -> tuple[Tensor, ...]:
    """A vector as Tensors of these shapes and dtypes."""
    return tuple(
        Tensor(np.array(part, FLOATS[dtype]))
        for part, dtype in zip(split(vector, shapes), dtypes, strict=True)
    )


def several(weights: Any) -> tuple[Parameter, ...]:
    """Parameters as a tuple: one, or a list, a tuple, a ParameterTuple, a generator of them.

    Raises:
        TypeError: not Parameters, or not of float16, float32 or float64.
        ValueError: none, or one of them twice.
    """
    if isinstance(weights, Parameter):
        weights = (weights,)
    if isinstance(weights, str | bytes | dict | set | Tensor) or not hasattr(weights, "__iter__"):
        raise TypeError(
            f"weights must be a Parameter or several of them, but got {shown(weights)}. For a "
            "network: weights=net.trainable_params()"
        )
    weights = tuple(weights)
    if not weights:
        raise ValueError("weights is empty. For a network: weights=net.trainable_params()")
    for number, weight in enumerate(weights):
        if not isinstance(weight, Parameter):
            raise TypeError(
                f"weights[{number}] must be a Parameter, but got a {type(weight).__name__}"
            )
        if weight.dtype not in FLOATS:
            raise TypeError(
                f"weights[{number}], {weight.name!r}, has dtype {weight.dtype}, which cannot be "
                "optimised here: it must be float16, float32 or float64"
            )
    if len({id(weight) for weight in weights}) != len(weights):
        raise ValueError("weights holds the same Parameter twice; a shared weight counts once")
    return weights


class Inputs:
    """The differentiated arguments of a function; they are given to it as Tensors of one dtype."""

    def __init__(self, x0: Any, args: tuple, dtype: Any):
        self.one, given = isinstance(x0, Tensor), (x0,) if isinstance(x0, Tensor) else x0
        if not isinstance(given, tuple | list) or not given:
            raise TypeError(f"x0 must be a Tensor or a tuple of Tensors, but got {shown(x0)}")
        for number, value in enumerate(given):
            if not isinstance(value, Tensor) or value.dtype not in FLOATS:
                what = (
                    f"a Tensor of {value.dtype}"
                    if isinstance(value, Tensor)
                    else f"a {type(value).__name__}"
                )
                raise TypeError(
                    f"x0 must hold Tensors of float16, float32 or float64, but entry {number} is "
                    f"{what}"
                )
            if value.size == 0:
                raise ValueError(
                    f"x0 must not be empty, but entry {number} has shape {tuple(value.shape)}"
                )
        self.shapes = [tuple(value.shape) for value in given]
        self.kinds, self.dtypes = [value.dtype for value in given], [dtype] * len(given)
        self.args, self.start = args, flat(given)
        self.positions: dict[str, Any] = {"grad_position": tuple(range(len(given)))}

    def call(self, x: np.ndarray) -> tuple:
        """The arguments of the function at a point."""
        return (*self.tensors(x), *self.args)

    def tensors(self, x: np.ndarray) -> tuple[Tensor, ...]:
        """A vector as the function gets it."""
        return tensors(x, self.shapes, self.dtypes)

    def like(self, x: np.ndarray) -> Any:
        """A vector in the structure and the dtypes of x0."""
        found = tensors(x, self.shapes, self.kinds)
        return found[0] if self.one else found

    def place(self, x: np.ndarray) -> None:
        """The inputs are nobody's: nothing is put anywhere."""


class Weights:
    """Parameters that a function reads; a point is put into them, in place and in their own
    dtypes.
    """

    def __init__(self, weights: Any, inputs: tuple = ()):
        self.parameters = several(weights)
        self.shapes = [tuple(weight.shape) for weight in self.parameters]
        self.dtypes = self.kinds = [weight.dtype for weight in self.parameters]
        self.args, self.positions = inputs, {"weights": self.parameters}
        self.start = self.point()

    def point(self) -> np.ndarray:
        """The weights as they are."""
        return flat([_compat.to_numpy(weight.value()) for weight in self.parameters])

    def call(self, x: np.ndarray) -> tuple:
        """The arguments of the function, its weights being at a point."""
        self.place(x)
        return self.args

    def tensors(self, x: np.ndarray) -> tuple[Tensor, ...]:
        """A vector as Tensors like the weights."""
        return tensors(x, self.shapes, self.dtypes)

    like = tensors

    def place(self, x: np.ndarray) -> None:
        """Put a point into the Parameters."""
        for weight, part, dtype in zip(
            self.parameters, split(x, self.shapes), self.dtypes, strict=True
        ):
            _compat.assign(weight, np.array(part, FLOATS[dtype]))
