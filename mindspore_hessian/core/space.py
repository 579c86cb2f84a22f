"""Space: what is differentiated or multiplied; its flat vectors, and the structure in which the
user has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, ValuesView
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mindspore_hessian import _compat
from mindspore_hessian._errors import NonFiniteWarning, warn
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.core.function import Call

FLOATS = (ms.float16, ms.float32, ms.float64, ms.bfloat16)


FIRST: Any = (
    "first"  # the default of grad_position: the first input, or, where there are weights, none
)


@dataclass(frozen=True)
class Space:
    """The ordered leaves that are differentiated or multiplied: the inputs at some positions first,
    then the weights.

    Flat vectors hold the entries of the leaves one after another, each row by row.

    Attributes:
        positions: leaf numbers of the differentiated inputs.
        weights: the differentiated Parameters.
        names: how an error names each leaf.
        form: the structure of the results: "one", "tuple", or a pair of these for (inputs,
            weights).
    """

    positions: tuple[int, ...]
    weights: tuple[Parameter, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    form: Any

    @classmethod
    def of(cls, call: Call, args: tuple, grad_position: Any, weights: Any, one: bool) -> Space:
        """Check what is to be differentiated.

        Args:
            call, args: the bound call, and the positional arguments it was made from.
            grad_position: None (every argument, or only the weights where there are any), an int, a
                tuple of ints, or `FIRST`.
            weights: None, a Parameter, or a list, tuple or ParameterTuple of them.
            one: the single argument was not in a tuple, so that neither is the result.

        Raises:
            TypeError: a type or dtype that cannot be differentiated.
            ValueError: out of range, repeated, or empty.
        """
        params, weight_form = _weights(weights)
        if params and (grad_position is None or _is_first(grad_position)):
            return cls((), params, *_describe((), (), params), weight_form)
        numbers, form = _positions(0 if _is_first(grad_position) else grad_position, len(args), one)
        if not numbers:
            raise ValueError(
                "there is nothing to differentiate: inputs is empty, and no weights are given"
            )
        tensors = tuple(_differentiable(number, args[number]) for number in numbers)
        positions = tuple(call.index[number] for number in numbers)
        described = _describe(tuple(numbers), tensors, params)
        return cls(positions, params, *described, (form, weight_form) if params else form)

    @classmethod
    def of_weights(cls, weights: Any) -> Space:
        """The weights alone, checked as in `of`."""
        params, form = _weights(weights)
        return cls((), params, *_describe((), (), params), form)

    @property
    def key(self) -> tuple:
        """The part of a cache key that says what is differentiated; the weights are another."""
        return self.positions, len(self.weights)

    @cached_property
    def parameters(self) -> ParameterTuple | None:
        """The weights as MindSpore's gradient takes them; None where there are none."""
        return ParameterTuple(self.weights) if self.weights else None

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each leaf."""
        return tuple(map(math.prod, self.shapes))

    @property
    def size(self) -> int:
        """The number of entries of all leaves."""
        return sum(self.sizes)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The part of each leaf in a flat vector."""
        ends = itertools.accumulate(self.sizes)
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def flat_dtype(self) -> Any:
        """The dtype of flat vectors."""
        return flat_dtype(self.dtypes)

    # --- in numpy ---------------------------------------------------------------------------------

    def ravel(self, structure: Any, dtype: Any = None) -> np.ndarray:
        """A Tensor or array for each leaf, as one vector.

        Raises:
            TypeError, ValueError: there is not one for each leaf, of its shape.
        """
        return ravel(self.arrays(structure), dtype)

    def arrays(self, structure: Any) -> list[np.ndarray]:
        """A Tensor or array for each leaf, as arrays.

        Raises:
            TypeError, ValueError: there is not one for each leaf, of its shape.
        """
        if not isinstance(structure, tuple | list):
            raise TypeError(
                f"a vector shaped like the {self._kind} is a tuple or list of Tensors, but got a "
                f"{type(structure).__name__}"
            )
        if len(structure) != len(self.shapes):
            raise ValueError(
                f"a vector shaped like the {self._kind} holds {len(self.shapes)} Tensors, but got "
                f"{len(structure)}"
            )
        arrays = [
            _compat.to_numpy(v) if isinstance(v, Tensor) else np.asarray(v) for v in structure
        ]
        for array, shape, name in zip(arrays, self.shapes, self.names, strict=True):
            if array.shape != shape:
                raise ValueError(
                    f"the vector for {name} must have its shape {shape}, but has shape "
                    f"{array.shape}"
                )
        return arrays

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """An array of shape (..., size) as one of shape (..., *shape) for each leaf; views where
        that is possible.
        """
        return split(flat, self.shapes)

    def unravel(self, flat: Any, copy: bool = True) -> tuple[Tensor, ...]:
        """One vector as a Tensor for each leaf, in its dtype; without `copy` in the same memory.

        Raises:
            ValueError: it is no vector of that many real numbers.
        """
        line = np.array(flat) if copy else np.asarray(flat)
        if line.shape != (self.size,) or line.dtype.kind not in "fiub":
            raise ValueError(
                f"a flat vector of the {self._kind} holds {self.size} real numbers, but got shape "
                f"{line.shape} and dtype {line.dtype}"
            )
        return tuple(map(to_tensor, self.split(line), self.dtypes))

    @property
    def _kind(self) -> str:
        return "variables" if self.positions else "weights"

    # --- in the structure of the user's -----------------------------------------------------------

    @cached_property
    def pack(self) -> Callable:
        """``pack(flat)``: a tuple with an entry a leaf, in the structure of the results. MindSpore
        compiles it, too.
        """
        if not isinstance(self.form, tuple):
            return _packers[self.form]
        first, second = (_packers[form] for form in self.form)
        count = len(self.positions)

        def pack(flat):
            return first(flat[:count]), second(flat[count:])

        return pack

    def parts(self, vectors: Any, what: str) -> tuple[Tensor, ...]:
        """Vectors as the user gave them, one a leaf, checked.

        Raises:
            TypeError: wrong structure or dtype.
            ValueError: wrong number or shape.
        """
        flat = _flatten(self.form, vectors, len(self.positions), len(self.weights), what)
        for vector, name, shape, dtype in zip(
            flat, self.names, self.shapes, self.dtypes, strict=True
        ):
            if not isinstance(vector, Tensor):
                raise TypeError(
                    f"{what} for {name} must be a Tensor, but got {type(vector).__name__}"
                )
            if vector.shape != shape:
                raise ValueError(
                    f"{what} for {name} must have its shape {shape}, but has shape "
                    f"{tuple(vector.shape)}"
                )
            if vector.dtype != dtype:
                raise TypeError(
                    f"{what} for {name} must have its dtype {dtype}, but has dtype {vector.dtype}. "
                    f"Convert it: v.astype(mindspore.{str(dtype).lower()})"
                )
        return tuple(map(_compat.plain_tensor, flat))


def _the_one(flat):
    return flat[0]


def _all(flat):
    return tuple(flat)


_packers = {"one": _the_one, "tuple": _all}


# --- ravel and unravel: numpy's, and those that MindSpore compiles --------------------------------

IN_NUMPY = {
    ms.float16: np.float16,
    ms.bfloat16: np.float32,
    ms.float32: np.float32,
    ms.float64: np.float64,
}
_CAST, _RESHAPE, _SLICE, _CONCAT = ops.Cast(), ops.Reshape(), ops.Slice(), ops.Concat()


def flat_dtype(dtypes: Iterable) -> Any:
    """The dtype of flat vectors over leaves of these: float64 where one is, else float32 (also for
    half precision).
    """
    return ms.float64 if ms.float64 in tuple(dtypes) else ms.float32


def numpy_dtype(dtype: Any) -> np.dtype:
    """The dtype in which numpy holds a Tensor's; it has no bfloat16."""
    return np.dtype(IN_NUMPY[dtype])


def to_tensor(array: np.ndarray, dtype: Any) -> Tensor:
    """The array as a Tensor of a dtype. (A cast of numpy's is nothing to wait for.)"""
    own = None if dtype == ms.bfloat16 else IN_NUMPY.get(dtype)
    tensor = Tensor.from_numpy(np.require(array, own, "C"))
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def ravel(parts: Iterable, dtype: Any = None) -> np.ndarray:
    """Arrays or Tensors as one vector."""
    arrays = (_compat.to_numpy(part) if isinstance(part, Tensor) else part for part in parts)
    return np.concatenate([array.reshape(-1) for array in arrays], dtype=dtype)


def split(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The last axis of an array cut into pieces of these shapes."""
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    pieces = np.split(flat, ends[:-1], axis=-1)
    return [
        piece.reshape((*flat.shape[:-1], *shape))
        for piece, shape in zip(pieces, shapes, strict=True)
    ]


@ops.constexpr
def size_of(shape):
    """The number of entries, while MindSpore compiles."""
    return int(np.prod(shape, dtype=np.int64))


@ops.constexpr
def _corner(rank, axis, start):
    return (0,) * axis + (start,) + (0,) * (rank - axis - 1)


@ops.constexpr
def _replaced(shape, axis, size):
    return shape[:axis] + (size,) + shape[axis + 1 :]


def cut(x, axis, start, size):
    """``x[..., start:start + size, ...]`` along an axis; `x` itself where that is all of it."""
    if x.shape[axis] == size:
        return x
    return _SLICE(x, _corner(x.ndim, axis, start), _replaced(x.shape, axis, size))


def selected(pos, ws):
    """``select(xs)``: the leaves of a Space, positions first."""
    params = () if ws is None else tuple(ws)

    def select(xs):
        out = ()
        for p in pos:
            out = out + (xs[p],)
        return out + params

    return select


def raveled(parts, dtype):
    """Tensors as one vector. MindSpore compiles this function."""
    out = ()
    for part in parts:
        out = out + (_CAST(_RESHAPE(part, (-1,)), dtype),)
    if len(out) == 1:
        return out[0]
    return _CONCAT(out)


def unraveled(pos, ws):
    """``unravel(xs, line)``: a number for each entry of a Space, as a Tensor for each leaf."""
    select = selected(pos, ws)

    def unravel(xs, entries):
        line = _RESHAPE(entries, (-1,))
        out = ()
        start = 0
        for x in select(xs):
            size = size_of(x.shape)
            out = out + (_CAST(_RESHAPE(cut(line, 0, start, size), x.shape), x.dtype),)
            start = start + size
        return out

    return unravel


# --- checks ---------------------------------------------------------------------------------------


def _flatten(form: Any, value: Any, inputs: int, weights: int, what: str) -> list:
    if isinstance(form, tuple):
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise TypeError(
                f"{what} must be a pair (for the inputs, for the weights), but got {_kind(value)}"
            )
        return [
            *_flatten(form[0], value[0], inputs, 0, what),
            *_flatten(form[1], value[1], 0, weights, what),
        ]
    count = inputs + weights
    if isinstance(value, Tensor):
        value = (value,)
        if form != "one":
            raise TypeError(
                f"{what} must be a tuple of {count} Tensors, like what is differentiated, but got "
                "a Tensor"
            )
    elif not isinstance(value, tuple | list):
        raise TypeError(f"{what} must be a Tensor or a tuple of Tensors, but got {_kind(value)}")
    if len(value) != count:
        raise ValueError(
            f"{what} must hold {count} Tensors, one for each differentiated variable, but holds "
            f"{len(value)}"
        )
    return list(value)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (
        f" of {len(value)}" if isinstance(value, tuple | list) else ""
    )


def as_args(inputs: Any, name: str = "inputs") -> tuple:
    """``inputs`` of a product as the tuple of the function's arguments."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, tuple | list):
        return tuple(inputs)
    raise TypeError(
        f"{name} must be a Tensor or a tuple of the function's arguments, but got {_kind(inputs)}"
    )


def _differentiable(number: int, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"argument {number} is differentiated, so it must be a Tensor, but it is "
            f"{_kind(value)}. Choose others with grad_position, or convert it: "
            "mindspore.Tensor(...)"
        )
    if value.dtype not in FLOATS:
        raise TypeError(
            f"argument {number} has dtype {value.dtype}, which cannot be differentiated. Convert "
            "it (x.astype(mindspore.float32)), or leave it out with grad_position"
        )
    if value.size == 0:
        raise ValueError(
            f"argument {number} is differentiated, but it is empty: shape {tuple(value.shape)}"
        )
    return value


def _describe(
    numbers: tuple, tensors: tuple, params: tuple[Parameter, ...]
) -> tuple[tuple, tuple, tuple]:
    names = tuple(f"argument {number}" for number in numbers) + tuple(
        f"weight {p.name!r}" for p in params
    )
    both = (*tensors, *params)
    return names, tuple(tuple(t.shape) for t in both), tuple(t.dtype for t in both)


def _positions(grad_position: Any, count: int, one: bool) -> tuple[list[int], str]:
    if grad_position is None:
        return list(range(count)), "one" if one else "tuple"
    several = isinstance(grad_position, tuple | list)
    numbers = []
    for number in grad_position if several else (grad_position,):
        if not -count <= number < count:
            raise ValueError(
                f"grad_position {number} is out of range: the function was given {count} "
                f"positional argument{'s' * (count != 1)}, numbered from 0"
            )
        numbers.append(int(number) % count)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"grad_position names an argument twice: {grad_position!r}")
    return numbers, "tuple" if several else "one"


def _is_first(grad_position: Any) -> bool:
    return isinstance(grad_position, str) and grad_position == FIRST


def check_position(grad_position: Any) -> None:
    """Raise TypeError where `grad_position` is neither None, an int nor several."""
    if isinstance(grad_position, Tensor):
        raise TypeError(
            "grad_position must be an int or a tuple of ints, but got a Tensor. The arguments of "
            "fn go to the function that a transform returns: hessian(fn)(x)"
        )
    if grad_position is None or _is_first(grad_position):
        return
    several = isinstance(grad_position, tuple | list)
    if not all(map(is_integer, grad_position if several else (grad_position,))):
        raise TypeError(
            f"grad_position must be an int or a tuple of ints, but got {shown(grad_position)}"
        )


def several_weights(weights: Any) -> Any:
    """Weights that come from a generator or a view of a dict as a tuple, which can be read more
    than once.
    """
    once = isinstance(weights, Iterator | ValuesView)
    return tuple(weights) if once else weights


def _weights(weights: Any) -> tuple[tuple[Parameter, ...], str]:
    if weights is None:
        return (), "tuple"
    if isinstance(weights, Parameter):
        return (weights,), "one"
    weights = several_weights(weights)
    if not isinstance(weights, tuple | list):
        raise TypeError(
            f"weights must be a Parameter, or several of them, but got {_kind(weights)}. "
            "For a network: weights=net.trainable_params()"
        )
    if not weights:
        raise ValueError("weights is empty. For a network: weights=net.trainable_params()")
    for number, weight in enumerate(weights):
        if not isinstance(weight, Parameter):
            raise TypeError(
                f"weights[{number}] must be a Parameter, but got {type(weight).__name__}"
            )
        if weight.dtype not in FLOATS:
            raise TypeError(
                f"weight {weight.name!r} has dtype {weight.dtype}, which cannot be differentiated"
            )
    if len({id(weight) for weight in weights}) != len(weights):
        raise ValueError("weights holds the same Parameter twice; a shared weight counts once")
    return tuple(weights), "tuple"


def check_finite(name: str, value: Any) -> None:
    """Warn (`NonFiniteWarning`) where a result holds NaN or Inf."""
    for place, tensor in enumerate(tensors_of(value)):
        array = _compat.to_numpy(tensor)
        if (array.size > 2**16 and _sum_is_finite(array)) or np.isfinite(array).all():
            continue
        bad = np.argwhere(~np.isfinite(array))
        warn(
            f"the result of {name} holds {len(bad)} values that are NaN or Inf (of {array.size}, "
            f"in output {place}; the first at index {tuple(int(i) for i in bad[0])}). The function "
            "may not be twice differentiable there (sqrt or norm at 0, log of 0), or overflow.",
            NonFiniteWarning,
        )
        return


def _sum_is_finite(array: np.ndarray) -> bool:
    """Of a large array the sum takes no memory, and less time; where it overflows, that says
    nothing.
    """
    with np.errstate(all="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float32 if array.itemsize < 4 else None)))


def tensors_of(value: Any) -> list[Tensor]:
    """The floating-point Tensors in nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value] if value.dtype in FLOATS else []
    return (
        [tensor for item in value for tensor in tensors_of(item)]
        if isinstance(value, tuple | list)
        else []
    )


def map_structure(convert: Callable, value: Any) -> Any:
    """``convert`` on every Tensor of nested tuples; what is neither stays as it is."""
    if isinstance(value, tuple):
        return tuple(map_structure(convert, item) for item in value)
    return convert(value) if isinstance(value, Tensor) else value
