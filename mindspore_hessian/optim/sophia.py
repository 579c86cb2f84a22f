"""Sophia: the sign of the momentum, tempered by the curvature."""

from __future__ import annotations

from typing import Any

from mindspore import ops

from mindspore_hessian.arguments import check_choice, check_integer, check_real
from mindspore_hessian.optim._optimizer import CurvedOptimizer, check_share, constant


class Sophia(CurvedOptimizer):
    r"""Sophia: momentum over an estimate of the Hessian's diagonal, entry by entry, clipped to [-1,
    1].

    With the gradient g, and at the steps 1, 1 + k, 1 + 2k, ... an estimate :math:`\hat h` of the
    diagonal at the weights before the step:

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad h \leftarrow \beta_2 h + (1 - \beta_2) \hat
        h, \quad \theta \leftarrow (1 - \eta \lambda) \theta, \quad
        \theta \leftarrow \theta - \eta \, \mathrm{clip}(m / \max(\rho h, 10^{-12}), -1, 1)

    It goes into a `TrainStep`, which computes both: the steps between the estimates cost a gradient
    each, those with one three to four ("hutchinson") or two ("gnb").

    Args:
        params: Parameters, or groups of them: dicts with `params`, `lr`, `weight_decay`,
            `order_params`.
        learning_rate: :math:`\eta`: a number, a list of numbers for the steps, or a schedule of
            MindSpore.
        beta1, beta2: of m and h, from 0 to less than 1.
        rho: positive; the smaller it is, the more entries are clipped.
        weight_decay: :math:`\lambda`. As in MindSpore, Parameters with "beta" or "gamma" in their
            names are left out where there are no groups.
        update_interval: k.
        estimator: "hutchinson": :math:`z \odot (H z)` with Rademacher z; "gnb"
            (Gauss-Newton-Bartlett): :math:`B \hat g^2`, where :math:`\hat g` is the gradient for
            labels drawn from the model, and B the number of labels. It is for classification, with
            the logits along axis 1 and a mean loss.
        loss_scale: what the loss was multiplied with, so that gradients and curvature are divided
            by it.

    Raises:
        TypeError, ValueError: a wrong argument.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        H. Liu, Z. Li, D. Hall, P. Liang and T. Ma, Sophia: a scalable stochastic second-order
            optimizer for language
        model pre-training, ICLR 2024.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import optim
        >>> net = nn.Dense(2, 2, weight_init="ones")
        >>> step = optim.TrainStep(net, nn.CrossEntropyLoss(), optim.Sophia(net.trainable_params(), 0.05))
        >>> x, y = ms.Tensor([[1.0, 2.0], [3.0, -1.0]]), ms.Tensor([1, 0], ms.int32)
        >>> losses = [float(step(x, y).asnumpy()) for _ in range(50)]
        >>> print(losses[0] > 2 * losses[-1])
        True
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 1e-3,
        beta1: float = 0.965,
        beta2: float = 0.99,
        rho: float = 0.04,
        weight_decay: Any = 0.1,
        update_interval: int = 10,
        estimator: str = "hutchinson",
        *,
        loss_scale: float = 1.0,
    ):
        check_share("beta1", beta1)
        check_share("beta2", beta2)
        check_real("rho", rho)
        check_integer("update_interval", update_interval, 1)
        check_choice("estimator", estimator, ("hutchinson", "gnb"))
        super().__init__(params, learning_rate, weight_decay, loss_scale)
        self.estimator, self.update_interval = estimator, int(update_interval)
        self.betas = (constant(beta1), constant(beta2))
        self.others = (constant(1.0 - beta1), constant(1.0 - beta2))
        self.rho, self.least, self.unit = constant(rho), constant(1e-12), constant(1.0)
        self.enters = 2 if estimator == "gnb" else 1
        self.momentum = self.parameters.clone(prefix="sophia_m", init="zeros")
        self.curvature = self.parameters.clone(prefix="sophia_h", init="zeros")

    def construct(self, gradients, curvature=None):
        gradients = self.unscaled(gradients, 1)
        taken = self.finite(gradients)
        if curvature is not None:
            curvature = self.unscaled(curvature, self.enters)
            taken = ops.logical_and(taken, self.finite(curvature))
        lr, decay, done = self.get_lr(), self.get_weight_decay(), ()
        for number in range(self.size):
            p, g, m, h = (
                self.parameters[number],
                gradients[number],
                self.momentum[number],
                self.curvature[number],
            )
            dtype, new_h = p.dtype, h + 0
            rate, shrink = self.rate_and_decay(number, lr, decay, dtype)
            if curvature is not None:
                new_h = (
                    self.betas[1].astype(dtype) * h
                    + self.others[1].astype(dtype) * curvature[number]
                )
            new_m = self.betas[0].astype(dtype) * m + self.others[0].astype(dtype) * g
            ratio = new_m / ops.maximum(self.rho.astype(dtype) * new_h, self.least.astype(dtype))
            move = ops.clamp(ratio, -1.0, 1.0)
            kept = p - rate * shrink * p
            done = done + (
                ops.assign(m, ops.where(taken, new_m, m)),
                ops.assign(h, ops.where(taken, new_h, h)),
                ops.assign(p, ops.where(taken, kept - rate * move, p)),
            )
        return done, self.counted(taken)
