"""The door between Tensors and the operators of `linops`, which are numpy's: who multiplies a
Tensor gets one back.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindspore_hessian.linops.operator import Identity, Operator, check_vectors, in_kind_of

__all__ = ["Identity", "Operator", "check_vectors"]


@in_kind_of.register
def _(vector: Tensor, product: np.ndarray) -> Tensor:
    return Tensor(np.ascontiguousarray(product))
