"""The types in the public signatures. MindSpore ships no types: to a checker its Tensors and
Parameters are Any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeAlias

from mindspore import Parameter, Tensor

Structure: TypeAlias = Tensor | Sequence[Any]  # Tensors in tuples or lists
Positions: TypeAlias = int | Sequence[int] | None
Axes: TypeAlias = int | Sequence[int | None] | None
Weights: TypeAlias = Parameter | Iterable[Parameter] | None
WeightNames: TypeAlias = str | Parameter | Iterable[str | Parameter] | None  # or patterns of names
Output: TypeAlias = int | str | Callable[[Any], Any] | None  # of what a network returns

HvpMode: TypeAlias = Literal["auto", "revrev", "fwdrev"]
HessianMode: TypeAlias = Literal["auto", "fwdfwd", "fwdrev", "revfwd", "revrev"]
JacobianMode: TypeAlias = Literal["auto", "fwd", "rev"]
ForwardMode: TypeAlias = Literal["auto", "forward", "reverse"]
Reduction: TypeAlias = Literal["mean", "sum"]
Blocks: TypeAlias = Literal["layer", "parameter"]
LikelihoodName: TypeAlias = Literal["categorical", "bernoulli", "gaussian"]
FisherKind: TypeAlias = Literal["exact", "mc", "empirical"]
Approximation: TypeAlias = Literal["expand", "reduce"]
