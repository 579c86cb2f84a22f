"""The door between Tensors and the operators of `linops`, which are numpy's: who multiplies a
Tensor gets one back.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from mindspore_hessian.arguments import as_array
from mindspore_hessian.linops.operator import Identity, Operator, check_vectors, in_kind_of

__all__ = ["Identity", "Operator", "check_vectors"]


@in_kind_of.register
def _(vector: Tensor, product: np.ndarray) -> Tensor:
    own = not np.may_share_memory(product, as_array(vector))  # the identity gives back what it got
    return Tensor.from_numpy(np.ascontiguousarray(product if own else product.copy()))
