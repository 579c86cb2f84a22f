"""The generalised Gauss-Newton matrix of the empirical risk."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from mindspore_hessian.core.program import Program
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.likelihoods import likelihood_of


class GGNOperator(CurvatureOperator):
    r"""Generalised Gauss-Newton matrix of a network's loss on its data,
    :math:`\sum_b c_b J_b^T H_b J_b`.

    J is the Jacobian of the network's output by the weights, H the Hessian of the loss at the
    output. Positive semi-definite for a convex loss; equal to the Hessian where the network is
    linear. A product costs one pass over the data, about two gradients a batch: J v, then H, then
    J^T; no Jacobian is formed.

    Arguments, errors and warnings are those of `HessianOperator`; `loss_fn` is needed, and the
    network returns one Tensor.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError: as
            `HessianOperator`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        N. Schraudolph, Fast curvature matrix-vector products for second-order gradient descent,
        Neural Computation 14(7), 2002.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import GGNOperator
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = GGNOperator(net, nn.MSELoss(), (x, y))
        >>> print(op @ np.array([1.0, 1.0]))
        [1. 4.]
    """

    program = Program("GGNOperator", kernels.ggn)

    @cached_property
    def positive(self) -> bool:
        """It is for a loss that is known to be convex: MindSpore's, without weights of terms."""
        return likelihood_of(self.loss_fn) is not None

    def exact_diagonal(self) -> np.ndarray | None:
        from mindspore_hessian.operators.diagonal import exact_diagonal, loss_roots

        return exact_diagonal(self, loss_roots)
