"""AdaHessian: Adam with the Hessian's diagonal for the squared gradient."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import ops

from mindspore_hessian.arguments import check_real, shown
from mindspore_hessian.optim._optimizer import CurvedOptimizer, check_share, constant


class AdaHessian(CurvedOptimizer):
    r"""AdaHessian: Adam, with an estimate of the Hessian's diagonal for the gradient in the second
    moment.

    With the gradient g, Rademacher z and :math:`d = z \odot (H z)`, at step t:

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) d^2,
        \quad \theta \leftarrow \theta - \eta \lambda \theta
        - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)}^{\,k} + \epsilon}

    It goes into a `TrainStep`, which computes g and d in one graph; a step costs three to four
    gradients.

    Args:
        params: Parameters, or groups of them: dicts with `params`, `lr`, `weight_decay`,
            `order_params`.
        learning_rate: :math:`\eta`: a number, a list of numbers for the steps, or a schedule of
            MindSpore.
        beta1, beta2: of the moments, from 0 to less than 1.
        eps: :math:`\epsilon`, positive.
        weight_decay: :math:`\lambda`, decoupled: it does not enter the moments. As in MindSpore,
            Parameters with "beta" or "gamma" in their names are left out where there are no groups.
        hessian_power: k, from 0 to 1.
        spatial_average: "kernel": the mean of :math:`|d|` over each kernel of a convolution (axes
            from the third on), as the paper does; None: d as it is.
        loss_scale: what the loss was multiplied with, so that gradients and curvature are divided
            by it.

    Raises:
        TypeError, ValueError: a wrong argument; at a step, no curvature.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        Z. Yao, A. Gholami, S. Shen, M. Mustafa, K. Keutzer and M. Mahoney, ADAHESSIAN: an adaptive
            second order
        optimizer for machine learning, AAAI 2021.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import optim
        >>> net = nn.Dense(2, 1, weight_init="ones")
        >>> step = optim.TrainStep(net, nn.MSELoss(), optim.AdaHessian(net.trainable_params()))
        >>> x, y = ms.Tensor([[1.0, 2.0], [3.0, -1.0]]), ms.Tensor([[1.0], [0.0]])
        >>> losses = [float(step(x, y).asnumpy()) for _ in range(50)]
        >>> print(losses[0] > 10 * losses[-1])
        True
    """

    def __init__(
        self,
        params: Any,
        learning_rate: Any = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: Any = 0.0,
        hessian_power: float = 1.0,
        spatial_average: str | None = None,
        *,
        loss_scale: float = 1.0,
    ):
        check_share("beta1", beta1)
        check_share("beta2", beta2)
        check_real("eps", eps)
        check_real("hessian_power", hessian_power, strict=False)
        if hessian_power > 1.0:
            raise ValueError(f"hessian_power must be from 0 to 1, but got {hessian_power}")
        if spatial_average is not None and (
            not isinstance(spatial_average, str) or spatial_average != "kernel"
        ):
            raise ValueError(
                f"spatial_average must be 'kernel' or None, but got {shown(spatial_average)}"
            )
        super().__init__(params, learning_rate, weight_decay, loss_scale)
        self.betas = (constant(beta1), constant(beta2))
        self.others = (constant(1.0 - beta1), constant(1.0 - beta2))
        self.eps, self.power, self.averaged = (
            constant(eps),
            constant(hessian_power),
            spatial_average is not None,
        )
        self.moment1 = self.parameters.clone(prefix="adahessian_m", init="zeros")
        self.moment2 = self.parameters.clone(prefix="adahessian_v", init="zeros")

    def construct(self, gradients, curvature=None):
        if curvature is None:
            raise ValueError(
                "AdaHessian needs the curvature beside the gradients: train with "
                "optim.TrainStep(network, loss_fn, optimizer)"
            )
        gradients, curvature = self.unscaled(gradients, 1), self.unscaled(curvature, 1)
        taken = ops.logical_and(self.finite(gradients), self.finite(curvature))
        lr, decay, step = (
            self.get_lr(),
            self.get_weight_decay(),
            (self.global_step + 1).astype(ms.float64)[0],
        )
        first, second = 1.0 - ops.pow(self.betas[0], step), 1.0 - ops.pow(self.betas[1], step)
        done = ()
        for number in range(self.size):
            p, g, d = self.parameters[number], gradients[number], curvature[number]
            m, v, dtype = self.moment1[number], self.moment2[number], p.dtype
            rate, shrink = self.rate_and_decay(number, lr, decay, dtype)
            if self.averaged and p.ndim > 2:
                d = self.kernel_mean(d)
            new_m = self.betas[0].astype(dtype) * m + self.others[0].astype(dtype) * g
            new_v = self.betas[1].astype(dtype) * v + self.others[1].astype(dtype) * d * d
            size = ops.pow(
                ops.sqrt(new_v / second.astype(dtype)), self.power.astype(dtype)
            ) + self.eps.astype(dtype)
            new_p = p - rate * shrink * p - rate * (new_m / first.astype(dtype)) / size
            done = done + (
                ops.assign(m, ops.where(taken, new_m, m)),
                ops.assign(v, ops.where(taken, new_v, v)),
                ops.assign(p, ops.where(taken, new_p, p)),
            )
        return done, self.counted(taken)

    def kernel_mean(self, d):
        """The mean of the absolute values over each kernel, in the shape of d. MindSpore compiles
        this.
        """
        flat = ops.abs(d).reshape(d.shape[0], d.shape[1], -1).mean(-1)
        for _ in range(d.ndim - 2):
            flat = flat.expand_dims(-1)
        return ops.zeros_like(d) + flat
