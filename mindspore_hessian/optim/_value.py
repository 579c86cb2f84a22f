"""Values and derivatives of a function of Parameters, by compiled graphs, as float64 arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian.transforms.jacobian import jacobian

_ONE = Tensor(np.ones((), np.float32))


def value_of(fn: Callable) -> Callable:
    """``value(*inputs)``: the function itself, compiled, whatever it returns.

    As what goes along with a derivative that costs nothing: so it is compiled, kept and guarded as
    derivatives are.
    """

    def beside(one, *inputs):
        return one, fn(*inputs)

    compiled = jacobian(beside, has_aux=True)

    def value(*inputs: Any) -> Any:
        return compiled(_ONE, *inputs)[1]

    return value
