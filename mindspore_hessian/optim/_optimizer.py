"""What optimizers that take curvature share: their settings exact in float64, decoupled decay,
steps not taken.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_hessian.arguments import as_array, check_real, shown
from mindspore_hessian.optim._vector import several


def constant(number: float) -> Tensor:
    """A number as float64: in a graph, a Python float is a float32."""
    return Tensor(np.float64(number))


def check_share(name: str, value: Any) -> None:
    """Raise where `value` is not a number from 0 to less than 1."""
    check_real(name, value, strict=False)
    if value >= 1.0:
        raise ValueError(f"{name} must be less than 1, but got {value}")


def _listed(params: Any) -> list:
    """Parameters, or groups of them (dicts), as MindSpore's optimizers take them."""
    if isinstance(params, list | tuple) and params and all(isinstance(one, dict) for one in params):
        groups = [
            {
                **one,
                **{
                    name: list(several(one[name]))
                    for name in ("params", "order_params")
                    if name in one
                },
            }
            for one in params
        ]
        known = {"params", "lr", "weight_decay", "order_params"}
        for group in groups:
            if unknown := set(group) - known:
                raise ValueError(
                    f"params: a group takes {', '.join(sorted(known))}, but one holds "
                    f"{sorted(unknown)}"
                )
        return groups
    try:
        return list(several(params))
    except (TypeError, ValueError) as err:
        raise type(err)(str(err).replace("weights", "params", 1)) from err


def _check_rate(name: str, value: Any) -> None:
    """A number, a Tensor of one or more, a list of them, or a schedule (a Cell)."""
    if isinstance(value, nn.Cell):
        return
    numbers = np.empty(0)
    if not isinstance(value, bool | str | dict | set) and value is not None:
        try:
            numbers = np.array(as_array(value), np.float64)
        except (TypeError, ValueError):
            numbers = np.empty(0)
    if (
        numbers.ndim > 1
        or not numbers.size
        or not np.isfinite(numbers).all()
        or (numbers < 0).any()
    ):
        raise (TypeError if not numbers.size else ValueError)(
            f"{name} must be a number of at least 0, a list of them, or a schedule (a Cell), but "
            f"got {shown(value)}"
        )


class CurvedOptimizer(nn.Optimizer):
    """An ``nn.Optimizer`` that takes an estimate of the Hessian's diagonal beside the gradients;
    see `TrainStep`.

    Attributes:
        estimator: what `TrainStep` gives it: "hutchinson" (z * Hz) or "gnb" (B * g^2 with drawn
            labels).
        update_interval: it wants that at the steps 1, 1 + update_interval, ...
        skipped (Parameter): how many steps were not taken, as a gradient or the curvature was NaN
            or Inf.
    """

    estimator = "hutchinson"
    update_interval = 1

    def __init__(self, params: Any, learning_rate: Any, weight_decay: Any, loss_scale: Any):
        groups = _listed(params)
        _check_rate("learning_rate", learning_rate)
        if not isinstance(weight_decay, nn.Cell):
            check_real("weight_decay", weight_decay, strict=False)
        check_real("loss_scale", loss_scale)
        for group in groups:
            if isinstance(group, dict) and "lr" in group:
                _check_rate("learning_rate", group["lr"])
        super().__init__(learning_rate, groups, weight_decay, float(loss_scale))
        self.skipped = Parameter(Tensor(0, ms.int32), name="skipped_steps", requires_grad=False)
        self.size = len(self.parameters)
        self.scale = float(loss_scale)
        self.per_scale = tuple(Tensor(1.0 / self.scale**power, ms.float64) for power in (1, 2))
        self.one, self.done = Tensor(1, ms.int32), Tensor([1], ms.int32)
        self._exact_settings(groups, learning_rate, weight_decay)

    def _exact_settings(self, groups: list, learning_rate: Any, weight_decay: Any) -> None:
        """nn.Optimizer keeps settings in float32. Where one is a plain number, float64 weights get
        it as it was given, as long as the Parameter that holds it is as it was."""

        def of(parameter, key, default):
            for group in groups:
                if isinstance(group, dict) and any(
                    parameter is one for one in group.get("params", ())
                ):
                    return group.get(key, default)
            return default

        rates = [of(p, "lr", learning_rate) for p in self.parameters]
        plain = [isinstance(rate, float | int) for rate in rates]
        self.rate_is_plain = tuple(plain)
        # the Parameters themselves: beside a schedule, MindSpore hands out the rate + 1 - 1,
        # rounded
        holders = self.get_lr_parameter(list(self.parameters))
        object.__setattr__(self, "holders", tuple(holders))
        self.rates = tuple(
            constant(rate if known else 0.0) for rate, known in zip(rates, plain, strict=True)
        )
        decays = [of(p, "weight_decay", weight_decay) for p in self.parameters]
        flags = self.decay_flags
        self.decay_is_plain = tuple(not isinstance(decay, nn.Cell) for decay in decays)
        self.decays = tuple(
            constant(decay if known and flag else 0.0)
            for decay, known, flag in zip(decays, self.decay_is_plain, flags, strict=True)
        )

    def rate_and_decay(self, number, lr, decay, dtype):
        """Learning rate and decay of a Parameter, in its dtype. MindSpore compiles this."""
        if self.rate_is_plain[number]:
            rate, given = self.holders[number], self.rates[number]
            exact = ops.where(rate == given.astype(ms.float32), given, rate.astype(ms.float64))
        else:
            exact = (lr[number] if self.is_group_lr else lr).astype(ms.float64)
        shrink = self.decays[number]
        if not self.decay_is_plain[number]:
            shrink = (decay[number] if self.is_group else decay).astype(
                ms.float64
            ) * self.per_scale[0]
            if not self.decay_flags[number]:
                shrink = shrink * 0.0
        return exact.astype(dtype), shrink.astype(dtype)

    def finite(self, tensors):
        """Whether all entries of all Tensors are finite. MindSpore compiles this."""
        out = True
        for tensor in tensors:
            out = ops.logical_and(out, ops.isfinite(tensor).all())
        return out

    def unscaled(self, tensors, power):
        """Without the loss scale, which entered them `power` times. MindSpore compiles this."""
        if self.scale == 1.0:
            return tensors
        out = ()
        for tensor in tensors:
            out = out + (tensor * self.per_scale[power - 1].astype(tensor.dtype),)
        return out

    def counted(self, taken):
        """Count the step, and whether it was taken. MindSpore compiles this."""
        step = ops.assign_add(self.global_step, self.done)
        return step, ops.assign_add(self.skipped, ops.where(taken, self.one - self.one, self.one))
