"""The Hessian of the empirical risk."""

from __future__ import annotations

from mindspore_hessian.core.program import Program
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.curvature import CurvatureOperator


class HessianOperator(CurvatureOperator):
    r"""Hessian of a network's loss on its data, :math:`H = \nabla_w^2 R(w)`, known by its products.

    The risk R is :math:`\sum_b \frac{n_b}{N} L_b` for a loss that is a mean over its batch,
    :math:`\sum_b L_b` for a sum. A product costs one pass over the data, two to three gradients a
    batch; the matrix is never formed. Weights are read at every product, so training between two
    products is seen. A product is compiled once for each shape of batch.

    Args:
        network: a Cell, or any function of a batch's inputs.
        loss_fn: ``loss_fn(output, target)`` returns one number. None: `network` returns the loss
            itself, given the whole batch (a PINN, a custom objective).
        data: a ``mindspore.dataset`` pipeline, a list of batches, or one batch: a tuple ``(x, y)``
            or ``(x1, ..., y)``; ``(x, y)`` with x a tuple or a dict, which the network gets as its
            arguments; or a dict of columns, of which one is called label, labels, target, targets
            or y (in a pipeline: else the last).
        weights: Parameters, a pattern of names (``"*.weight"``), or a list of these; None: all
            trainable.
        block_diagonal: "layer" or "parameter": only these diagonal blocks.
        reduction: "mean" or "sum"; None: as the loss says (``loss_fn.reduction``), or found out by
            doubling a batch.
        num_data: N; None: counted.
        batch_size_fn: the number of samples of a batch (as it is in `data`); None: the length of
            its first Tensor.
        micro_batch: cut batches into pieces of at most so many samples: less memory, the same
            result (not for a network whose samples depend on each other, as batch norm in training
            mode).
        chunk_size: columns of a matrix that are multiplied at once. None: up to 64, as memory
            allows, of a matrix that has enough for that to pay: more than 4, on the CPU more than
            1,024 (the first product of several columns at once compiles for seconds). Where
            thousands of columns come in small matrices, give the number that those have, 5 or more.
        distributed: sum over the processes of an ``msrun`` job, each of which holds its shard of
            the data.
        check_deterministic: compare two passes over the data, and the symmetry of two products,
            now.
        progress: a progress bar: True, False, or None: for what takes more than two seconds.
        output: which of the things that the network returns goes to the loss: an index of a tuple,
            a key of a dict, or a function of what it returns. None: it returns one Tensor.
        batch_weight: what the mean of a batch divides by, a function of a batch as it is in `data`,
            or "samples"; None: known of MindSpore's losses, measured of others.
        keep_data: keep the batches of a pipeline after the checks, where they take at most a
            quarter of the memory that is free: later passes cost what those over a list cost.
                False: go through it at every product.

    Raises:
        TypeError, ValueError: a wrong argument; the message names it.
        NotDeterministicError: two passes differ; the message names the cause.
        NotCompilableError, MissingRuleError: as `hvp`, at the first product.

    Warns:
        NonFiniteWarning: a product holds NaN or Inf; it names the batch and the weights.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994; F.
        Dangel et al., curvlinops, 2025 (the interface).

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import HessianOperator
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = HessianOperator(net, nn.MSELoss(), (x, y))
        >>> print(op @ np.array([1.0, 1.0]))
        [1. 4.]
    """

    by_output = False
    program = Program("HessianOperator", kernels.hessian)
    needs_loss = False
