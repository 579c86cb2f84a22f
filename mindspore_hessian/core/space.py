"""What is differentiated, its shapes, and how flat results are put back into the structure the user asked for."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import NonFiniteWarning, warn
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.function import Call

FLOATS = (ms.float16, ms.float32, ms.float64, ms.bfloat16)


class _Default(int):
    """The default 0 of ``grad_position``: with ``weights`` it means that only the weights are differentiated."""


FIRST = _Default(0)


@dataclass(frozen=True)
class Variables:
    """The variables of a derivative, flat: the differentiated positions first, then the weights.

    Attributes:
        positions: leaf numbers of the differentiated inputs.
        weights: the differentiated Parameters.
        names: how an error names each variable.
        form: the structure of the results: "one", "tuple", or a pair of these for (inputs, weights).
    """

    positions: tuple[int, ...]
    weights: tuple[Parameter, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    form: Any

    @property
    def parameters(self) -> ParameterTuple | None:
        """The weights as MindSpore's gradient takes them; None where there are none."""
        return ParameterTuple(self.weights) if self.weights else None

    @property
    def key(self) -> tuple:
        """The part of a cache key that says what is differentiated."""
        return self.positions, len(self.weights)

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each variable."""
        return [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]

    def pack(self, flat: Sequence) -> Any:
        """A flat sequence, one entry a variable, in the structure of the results."""
        return _pack(self.form, list(flat), len(self.positions))

    def packer(self) -> Callable:
        """`pack` as MindSpore compiles it."""
        if not isinstance(self.form, tuple):
            return _the_one if self.form == "one" else _all
        first, second = (_the_one if form == "one" else _all for form in self.form)
        count = len(self.positions)

        def pack(flat):
            return first(flat[:count]), second(flat[count:])
        return pack

    def flatten(self, vectors: Any, what: str) -> tuple[Tensor, ...]:
        """Vectors as the user gave them, flat and checked against the variables.

        Raises:
            TypeError: wrong structure or dtype.
            ValueError: wrong number or shape.
        """
        flat = _flatten(self.form, vectors, len(self.positions), len(self.weights), what)
        for vector, name, shape, dtype in zip(flat, self.names, self.shapes, self.dtypes, strict=True):
            if not isinstance(vector, Tensor):
                raise TypeError(f"{what} for {name} must be a Tensor, but got {type(vector).__name__}")
            if tuple(vector.shape) != shape:
                raise ValueError(f"{what} for {name} must have its shape {shape}, but has shape {tuple(vector.shape)}")
            if vector.dtype != dtype:
                raise TypeError(f"{what} for {name} must have its dtype {dtype}, but has dtype {vector.dtype}. "
                                f"Convert it: v.astype(mindspore.{str(dtype).lower()})")
        return tuple(_compat.plain_tensor(vector) for vector in flat)


def _the_one(flat):
    return flat[0]


def _all(flat):
    return flat


def _pack(form: Any, flat: list, inputs: int) -> Any:
    if isinstance(form, tuple):
        return _pack(form[0], flat[:inputs], 0), _pack(form[1], flat[inputs:], 0)
    return flat[0] if form == "one" else tuple(flat)


def _flatten(form: Any, value: Any, inputs: int, weights: int, what: str) -> list:
    if isinstance(form, tuple):
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(f"{what} must be a pair (for the inputs, for the weights), but got {_kind(value)}")
        return [*_flatten(form[0], value[0], inputs, 0, what), *_flatten(form[1], value[1], 0, weights, what)]
    count = inputs + weights
    if isinstance(value, Tensor):
        value = (value,)
        if form != "one":
            raise TypeError(f"{what} must be a tuple of {count} Tensors, like what is differentiated, but got a Tensor")
    elif not isinstance(value, tuple | list):
        raise TypeError(f"{what} must be a Tensor or a tuple of Tensors, but got {_kind(value)}")
    if len(value) != count:
        raise ValueError(f"{what} must hold {count} Tensors, one for each differentiated variable, but holds "
                         f"{len(value)}")
    return list(value)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")


def as_args(inputs: Any, name: str = "inputs") -> tuple:
    """``inputs`` of a product as the tuple of the function's arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, tuple | list):
        return tuple(inputs)
    raise TypeError(f"{name} must be a Tensor or a tuple of the function's arguments, but got {_kind(inputs)}")


def variables(call: Call, args: tuple, grad_position: Any, weights: Any, one: bool) -> Variables:
    """Check what is to be differentiated.

    Args:
        call, args: the bound call, and the positional arguments it was made from.
        grad_position: None (every argument, or only the weights where there are any), an int, or a tuple of ints.
        weights: None, a Parameter, or a list, tuple or ParameterTuple of them.
        one: the single argument was not in a tuple, so that neither is the result.

    Raises:
        TypeError: a type or dtype that cannot be differentiated.
        ValueError: out of range, repeated, or empty.
    """
    params, weight_form = _weights(weights)
    if params and (grad_position is None or grad_position is FIRST):
        return Variables((), params, *_describe((), (), params), weight_form)
    numbers, form = _positions(grad_position, len(args), one)
    if not numbers:
        raise ValueError("there is nothing to differentiate: inputs is empty, and no weights are given")
    tensors = []
    for number in numbers:
        value = args[number]
        if not isinstance(value, Tensor):
            raise TypeError(f"argument {number} is differentiated, so it must be a Tensor, but it is {_kind(value)}. "
                            "Choose others with grad_position, or convert it: mindspore.Tensor(...)")
        if value.dtype not in FLOATS:
            raise TypeError(f"argument {number} has dtype {value.dtype}, which cannot be differentiated. Convert it "
                            "(x.astype(mindspore.float32)), or leave it out with grad_position")
        if value.size == 0:
            raise ValueError(f"argument {number} is differentiated, but it is empty: shape {tuple(value.shape)}")
        tensors.append(value)
    positions = tuple(call.index[number] for number in numbers)
    described = _describe(tuple(numbers), tuple(tensors), params)
    return Variables(positions, params, *described, (form, weight_form) if params else form)


def _describe(numbers: tuple, tensors: tuple, params: tuple[Parameter, ...]) -> tuple[tuple, tuple, tuple]:
    names = tuple(f"argument {number}" for number in numbers) + tuple(f"weight {p.name!r}" for p in params)
    both = (*tensors, *params)
    return names, tuple(tuple(t.shape) for t in both), tuple(t.dtype for t in both)


def _positions(grad_position: Any, count: int, one: bool) -> tuple[list[int], str]:
    if grad_position is None:
        return list(range(count)), "one" if one else "tuple"
    several = isinstance(grad_position, tuple | list)
    numbers = []
    for number in grad_position if several else (grad_position,):
        if not -count <= number < count:
            raise ValueError(f"grad_position {number} is out of range: the function was given {count} "
                             f"positional argument{'s' * (count != 1)}, numbered from 0")
        numbers.append(int(number) % count)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"grad_position names an argument twice: {grad_position!r}")
    return numbers, "tuple" if several else "one"


def check_position(grad_position: Any) -> None:
    """Raise TypeError where `grad_position` is neither None, an int nor several."""
    if isinstance(grad_position, Tensor):
        raise TypeError("grad_position must be an int or a tuple of ints, but got a Tensor. The arguments of fn go to "
                        "the function that a transform returns: hessian(fn)(x)")
    several = isinstance(grad_position, tuple | list)
    if grad_position is not None and not all(map(is_integer, grad_position if several else (grad_position,))):
        raise TypeError(f"grad_position must be an int or a tuple of ints, but got {shown(grad_position)}")


def several_weights(weights: Any) -> Any:
    """Weights that come from a generator or a view of a dict as a tuple, which can be read more than once."""
    once = isinstance(weights, Iterator | ValuesView)
    return tuple(weights) if once else weights


def _weights(weights: Any) -> tuple[tuple[Parameter, ...], str]:
    if weights is None:
        return (), "tuple"
    if isinstance(weights, Parameter):
        return (weights,), "one"
    weights = several_weights(weights)
    if not isinstance(weights, tuple | list):
        raise TypeError(f"weights must be a Parameter, or several of them, but got {_kind(weights)}. "
                        "For a network: weights=net.trainable_params()")
    if not weights:
        raise ValueError("weights is empty. For a network: weights=net.trainable_params()")
    for number, weight in enumerate(weights):
        if not isinstance(weight, Parameter):
            raise TypeError(f"weights[{number}] must be a Parameter, but got {type(weight).__name__}")
        if weight.dtype not in FLOATS:
            raise TypeError(f"weight {weight.name!r} has dtype {weight.dtype}, which cannot be differentiated")
    if len({id(weight) for weight in weights}) != len(weights):
        raise ValueError("weights holds the same Parameter twice; a shared weight counts once")
    return tuple(weights), "tuple"


def check_weights(weights: Any) -> tuple[Parameter, ...]:
    """Raise where `weights` is not a list or tuple of different floating-point Parameters."""
    return _weights(weights)[0]


def check_finite(name: str, value: Any) -> None:
    """Warn (`NonFiniteWarning`) where a result holds NaN or Inf."""
    for place, tensor in enumerate(tensors_of(value)):
        array = _compat.to_numpy(tensor)
        with np.errstate(all="ignore"):
            if np.isfinite(array.sum(dtype=np.float32 if array.itemsize < 4 else None)) or np.isfinite(array).all():
                continue
        bad = np.argwhere(~np.isfinite(array))
        warn(f"the result of {name} holds {len(bad)} values that are NaN or Inf (of {array.size}, in output {place}; "
             f"the first at index {tuple(int(i) for i in bad[0])}). The function may not be twice differentiable there "
             "(sqrt or norm at 0, log of 0), or overflow.", NonFiniteWarning)
        return


def tensors_of(value: Any) -> list[Tensor]:
    """The floating-point Tensors in nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value] if value.dtype in FLOATS else []
    return [tensor for item in value for tensor in tensors_of(item)] if isinstance(value, tuple | list) else []


def map_structure(convert: Callable, value: Any) -> Any:
    """``convert`` on every Tensor of nested tuples."""
    return tuple(map_structure(convert, item) for item in value) if isinstance(value, tuple) else convert(value)
