"""The door between Tensors and the operators of `linops`, which are numpy's: who multiplies a
Tensor gets one back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import UnsafeRuntimeError
from mindspore_hessian.arguments import as_array
from mindspore_hessian.linops.operator import Identity, Operator, check_vectors, in_kind_of

__all__ = ["Identity", "Operator", "check_vectors", "refuse_recorded"]


def refuse_recorded(vector: Any) -> None:
    """Tensors, one or a structure of them, go through numpy here, which PyNative does not record.

    Raises:
        UnsafeRuntimeError: it records a gradient by one of them, which would be 0.
    """
    parts = vector if isinstance(vector, tuple | list) else (vector,)
    if any(_compat.is_recorded(part) for part in parts):
        raise UnsafeRuntimeError(
            "PyNative records a gradient by this Tensor, and a product with an operator has none: "
            "it would be 0. Use hvp or ggnvp, which have one, or, where none is meant, "
            "ops.stop_gradient(v). (After an exception inside of ms.grad, MindSpore goes on "
            "recording: make the Tensor anew)"
        )


@in_kind_of.register
def _(vector: Tensor, product: np.ndarray) -> Tensor:
    refuse_recorded(vector)
    own = not np.may_share_memory(product, as_array(vector))  # the identity gives back what it got
    return Tensor.from_numpy(np.ascontiguousarray(product if own else product.copy()))
