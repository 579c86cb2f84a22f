"""K-FAC: the gradient divided by Kronecker-factored curvature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
import scipy.linalg
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from scipy.linalg import lapack

from mindspore_hessian import _compat
from mindspore_hessian.arguments import check_bool, check_choice, check_integer, check_real, shown
from mindspore_hessian.core.space import numpy_dtype, raveled
from mindspore_hessian.operators import layers
from mindspore_hessian.operators.kfac import APPROXIMATIONS, FISHERS, Shared, shared
from mindspore_hessian.operators.likelihoods import LIKELIHOODS
from mindspore_hessian.optim._optimizer import CurvedOptimizer, check_share, constant

_CONCAT, _RESHAPE, _TIMES, _EACH = ops.Concat(-1), ops.Reshape(), ops.MatMul(), ops.BatchMatMul()
_POOR, _GOOD = (
    0.25,
    0.75,
)  # kfac-jax: ratios of the loss's change to the model's where the damping grows, or shrinks


@dataclass(frozen=True, eq=False)
class Block:
    """The curvature of a layer's weight, with the bias that has the same inputs: ``G x A``; of a
    bias alone: G.

    Attributes:
        taps: the places of the layers that have it, among all.
        weight, bias: places among the optimizer's Parameters; None where it has none.
        a, g: places among the optimizer's inverses; `a` is None for a bias alone.
        start: where its moments begin in the optimizer's row of these.
        groups, wide, narrow: the numbers of groups, inputs and outputs.
        indexed: the inputs are indices, and the weight has a row for each.
        turned: the weight is of shape (inputs, outputs).
        diagonal: A is one, and kept as a row.
    """

    name: str
    taps: tuple[int, ...]
    weight: int | None
    bias: int | None
    a: int | None
    g: int
    start: int
    groups: int
    wide: int
    narrow: int
    indexed: bool
    turned: bool
    diagonal: bool

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(place for place in (self.weight, self.bias) if place is not None)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the inverses: of A, where there is one, and G."""
        g = (self.groups, self.narrow, self.narrow)
        if self.a is None:
            return (g,)
        width = self.wide + (self.bias is not None)
        return ((self.wide,) if self.diagonal else (self.groups, width, width)), g

    @property
    def moments(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what is averaged: of the inputs with a 1 behind them, where there is an A,
        and the gradients.
        """
        *a, g = self.shapes
        return (
            *(
                ((self.wide + 1,) if self.diagonal else (self.groups, self.wide + 1, self.wide + 1))
                for _ in a
            ),
            g,
        )

    def factors(self, row: np.ndarray, weight: float) -> list[np.ndarray]:
        """A, where there is one, and G, from the row of all moments, of which the gradients' are
        weighted.
        """
        out, start = [], self.start
        for shape in self.moments:
            out.append(row[start : start + int(np.prod(shape))].reshape(shape))
            start += out[-1].size
        out[-1] = out[-1] / weight
        if self.a is not None:
            whole = out[0]
            a = whole / np.maximum(
                whole[-1:] if self.diagonal else whole[:, -1:, -1:], np.finfo(float).tiny
            )
            out[0] = a[:-1] if self.diagonal else a if self.bias is not None else a[:, :-1, :-1]
        return out

    def inverses(
        self, factors: list[np.ndarray], damping: float, aside: bool = False
    ) -> tuple[np.ndarray, ...]:
        """Those of A, where there is one, and G, with the damping split between them. `aside`: in a
        thread.
        """

        def inverse(matrix: np.ndarray, share: float) -> np.ndarray:
            return _inverse(self.name, matrix, share, aside)

        if self.a is None:
            return (np.stack([inverse(one, damping) for one in factors[0]]),)
        a, g = factors
        if self.diagonal:
            right, left = _split(float(a.mean()), _mean(g[0]), damping)
            return 1.0 / (a + right), inverse(g[0], left)[None]
        parts = [_split(_mean(one), _mean(other), damping) for one, other in zip(a, g, strict=True)]
        return tuple(
            np.stack([inverse(one, part[side]) for one, part in zip(both, parts, strict=True)])
            for side, both in enumerate((a, g))
        )


class Scales(Block):
    """The diagonal of a normalization layer's scale (`weight`) and shift (`bias`): two rows."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((2, self.narrow),)

    def inverses(
        self, factors: list[np.ndarray], damping: float, aside: bool = False
    ) -> tuple[np.ndarray, ...]:
        return (1.0 / (factors[0] + damping),)


def _mean(matrix: np.ndarray) -> float:
    """Of the eigenvalues."""
    return float(np.trace(matrix)) / len(matrix)


def _split(a: float, g: float, damping: float) -> tuple[float, float]:
    """The damping for A and for G, of these means; alike where one of them is 0 (a layer without
    gradients).
    """
    pi = np.sqrt(a / g) if a > 0.0 and g > 0.0 else 1.0
    return pi * np.sqrt(damping), np.sqrt(damping) / pi


def _positive_inverse(matrix: np.ndarray) -> np.ndarray | None:
    """The inverse; None where the matrix is not positive definite."""
    root, failed = lapack.dpotrf(matrix, lower=1)
    if not failed:
        out, failed = lapack.dpotri(root, lower=1)
    return None if failed else np.tril(out) + np.tril(out, -1).T


def _unlocked_inverse(matrix: np.ndarray) -> np.ndarray | None:
    """The same for a thread: these let others run meanwhile, which LAPACK's two do not."""
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return None
    out = scipy.linalg.inv(matrix, check_finite=False)
    return (out + out.T) / 2


def _inverse(name: str, matrix: np.ndarray, damping: float, aside: bool) -> np.ndarray:
    """(matrix + damping I)^-1; eigenvalues that are negative by rounding count as 0. `aside`: in a
    thread.
    """
    shifted = (matrix + matrix.T) / 2
    shifted[np.diag_indices_from(shifted)] += damping
    out = (_unlocked_inverse if aside else _positive_inverse)(shifted)
    if out is not None:
        return out
    values, vectors = np.linalg.eigh(shifted)
    values -= damping
    if values[0] < -1e-3 * values[-1]:
        raise ValueError(
            f"a Kronecker factor of {name} is indefinite (eigenvalues from {values[0]:.3g} to "
            f"{values[-1]:.3g}), so that there is no step: are there negative weights in the loss? "
            "The weights are as they were"
        )
    return (vectors / (np.maximum(values, 0.0) + damping)) @ vectors.T


class KFAC(CurvedOptimizer):
    r"""K-FAC: the gradient times the inverse of Kronecker-factored curvature, with momentum.

    With a layer's inputs a and the gradients g at its outputs for targets drawn from the network's
    own prediction, at each step

    .. math::
        A \leftarrow \epsilon A + (1 - \epsilon)\, \overline{a a^T}, \quad
        G \leftarrow \epsilon G + (1 - \epsilon)\, \overline{g g^T}, \quad
        v \leftarrow \mu v - \eta\, (G + \tfrac{\sqrt d}{\pi} I)^{-1} \nabla W\, (A + \pi \sqrt d
        I)^{-1}, \quad W \leftarrow W + v

    with both averages divided by the sum of their shares (:math:`1 - \epsilon^t`; in A a batch
    counts by its rows), and :math:`\pi^2 = (tr A/\dim A) / (tr G/\dim G)`. The factors are those of
    `KFACOperator` (weight and bias together) for the batch, but that "empirical" takes the
    positions of a sample together. Every `inverse_update_period` steps the inverses are found, on
    the host in float64; the rest is two compiled graphs. It goes into a `TrainStep`.

    Layers: those of `KFACOperator`. Scale and shift of batch and layer norms are divided by their
    diagonal of the same curvature plus d. Other Parameters (attention's own, those that are used
    elsewhere too) get the plain gradient, with the same rate; one warning names them. The
    factors take the samples as independent, also behind a batch norm.

    With `adaptive`, rate and momentum minimise the quadratic model of the loss on the batch,
    :math:`\tfrac12 s^T (C + d I) s + \nabla^T s` over :math:`s = \alpha P \nabla + \beta v`, with
    products of the exact Gauss-Newton matrix C; d follows Levenberg and Marquardt: every
    `damping_interval` steps it is divided by :math:`0.9^k` where the loss fell by less than a
    quarter of what the model said, multiplied where by more than three quarters. That is for large
    batches; on small ones the model fits the noise.

    A step costs two to three gradients, the inverses apart (:math:`O(n^3)` for a layer of width n);
    with `adaptive` about ten. Its state are four matrices a layer, as large as A and G, and the
    weights once.

    Args:
        network: the Cell.
        learning_rate: :math:`\eta`: a number, a list of numbers for the steps, or a schedule of
            MindSpore. Not used with `adaptive`.
        momentum: :math:`\mu`, from 0 to less than 1. Not used with `adaptive`.
        damping: d, positive; the first with `adaptive`. It is of the scale of the loss's second
            derivatives.
        params: Parameters of the network, or groups of them: dicts with `params`, `lr`,
            `weight_decay`, `order_params`; None: ``network.trainable_params()``.
        approx: "expand": each position at which a sample uses a weight (of a convolution, a
            sequence) is a row of its own; "reduce": inputs are averaged and gradients summed over
            the positions of a sample first.
        fisher: "mc" (one draw for each sample), "empirical" (the targets themselves) or "exact"
            (all outputs of a sample, one backward pass each).
        likelihood: as `FisherOperator` has it; None: as the loss says.
        curvature_ema: :math:`\epsilon`, from 0 to less than 1.
        curvature_update_period: factors are averaged at every so manieth step.
        inverse_update_period: inverses are found at every so manieth step.
        norm_constraint: the most that :math:`\eta^2 \nabla^T P \nabla` may be, else the step is
            scaled down; None: no bound. Not used with `adaptive`.
        l2_reg: r: :math:`\tfrac r2 |\theta|^2` is added to the loss: its gradient to the gradient,
            r to the damping.
        weight_decay: decoupled: :math:`\theta \leftarrow \theta - \eta \lambda \theta`. As in
            MindSpore, Parameters with "beta" or "gamma" in their names are left out where there are
            no groups. Not with `adaptive`.
        adaptive: see above.
        damping_interval: k.
        min_damping: the least that `adaptive` makes of the damping.
        burn_in: so many steps before the first one, which only average the factors: they move no
            weight, and are not in ``optimizer.global_step``.
        background: the inverses are found in a thread while training goes on with those before, and
            are used from the next step after they are there: runs are then not alike to the bit.
            The first ones are waited for. A checkpoint meanwhile has them begun anew.
        loss_scale: what the loss was multiplied with; the gradients are divided by it.

    Attributes:
        damping (Parameter): as it is now, float64.
        skipped (Parameter): how many steps were not taken, as the loss, a gradient or a factor was
            NaN or Inf, or with `adaptive` the loss became so.

    Raises:
        TypeError, ValueError: a wrong argument, or a network without a layer that is known; at the
            first step, a loss without a likelihood, or no layer that can be covered; at a step,
            factors that are indefinite.
        RuntimeError: at a step, what went wrong in the thread of `background` before it.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device)

    Source:
        J. Martens and R. Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature, ICML 2015; R. Eschenhagen et al., Kronecker-factored approximate curvature for
        modern neural network architectures, NeurIPS 2023 (expand and reduce);
        J. Ba, R. Grosse and J. Martens, Distributed second-order optimization using
        Kronecker-factored approximations, ICLR 2017 (the norm constraint).

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import optim
        >>> layers = nn.Dense(2, 4, 0.2, 0.0, activation="tanh"), nn.Dense(4, 1, 1.0, 0.0)
        >>> net = nn.SequentialCell(*layers)
        >>> optimizer = optim.KFAC(net, learning_rate=0.1, momentum=0.5, fisher="exact")
        >>> step = optim.TrainStep(net, nn.MSELoss(), optimizer)
        >>> x, y = ms.Tensor([[1.0, 2.0], [3.0, -1.0]]), ms.Tensor([[1.0], [0.0]])
        >>> losses = [float(step(x, y).asnumpy()) for _ in range(50)]
        >>> print(losses[0] > 10 * losses[-1])
        True

        Two steps that only average the factors, and inverses in the background:

        >>> optimizer = optim.KFAC(net, learning_rate=0.1, burn_in=2, background=True)
        >>> step = optim.TrainStep(net, nn.MSELoss(), optimizer)
        >>> losses = [step(x, y) for _ in range(5)]
        >>> print(optimizer.burned.asnumpy(), optimizer.global_step.asnumpy())
        2 [3]
    """

    estimator = "kfac"

    def __init__(
        self,
        network: Any,
        learning_rate: Any = 0.03,
        momentum: float = 0.9,
        damping: float = 1e-3,
        *,
        params: Any = None,
        approx: str = "expand",
        fisher: str = "mc",
        likelihood: str | None = None,
        curvature_ema: float = 0.95,
        curvature_update_period: int = 1,
        inverse_update_period: int = 5,
        norm_constraint: float | None = 1e-3,
        l2_reg: float = 0.0,
        weight_decay: Any = 0.0,
        adaptive: bool = False,
        damping_interval: int = 5,
        min_damping: float = 1e-8,
        burn_in: int = 0,
        background: bool = False,
        loss_scale: float = 1.0,
    ):
        if not isinstance(network, nn.Cell):
            raise TypeError(f"network must be an nn.Cell, but got {shown(network)}")
        check_share("momentum", momentum)
        check_share("curvature_ema", curvature_ema)
        for name, value in (("damping", damping), ("min_damping", min_damping)):
            check_real(name, value)
        check_real("l2_reg", l2_reg, strict=False)
        if norm_constraint is not None:
            check_real("norm_constraint", norm_constraint)
        for name, value in (
            ("curvature_update_period", curvature_update_period),
            ("inverse_update_period", inverse_update_period),
            ("damping_interval", damping_interval),
        ):
            check_integer(name, value, 1)
        check_choice("approx", approx, APPROXIMATIONS)
        check_choice("fisher", fisher, FISHERS)
        if likelihood is not None:
            check_choice("likelihood", likelihood, LIKELIHOODS)
        check_integer("burn_in", burn_in, 0)
        check_bool("background", background)
        check_bool("adaptive", adaptive)
        if adaptive and (isinstance(weight_decay, nn.Cell) or weight_decay):
            raise ValueError(
                "weight_decay is not for adaptive=True, where the quadratic model says how far to "
                "go: take l2_reg, which is in the model"
            )
        super().__init__(
            network.trainable_params() if params is None else params,
            learning_rate,
            weight_decay,
            loss_scale,
        )
        self._check_parameters(network)
        object.__setattr__(self, "of_network", network)
        self.approx, self.fisher, self.likelihood, self.adaptive = (
            approx,
            fisher,
            likelihood,
            adaptive,
        )
        self.curvature_update_period = int(curvature_update_period)
        self.inverse_update_period, self.damping_interval = (
            int(inverse_update_period),
            int(damping_interval),
        )
        self.burn_in, self.background = int(burn_in), bool(background)
        self.l2, self.min_damping = float(l2_reg), float(min_damping)
        self.l2_reg, self.momentum = constant(l2_reg), constant(momentum)
        self.kept, self.added, self.unit = (
            constant(curvature_ema),
            constant(1.0 - curvature_ema),
            constant(1.0),
        )
        self.bound = None if norm_constraint is None or adaptive else constant(norm_constraint)
        self._make_state(float(damping))

    def _check_parameters(self, network: nn.Cell) -> None:
        known = {id(parameter) for parameter in network.get_parameters()}
        if others := [p.name for p in self.parameters if id(p) not in known]:
            raise ValueError(
                f"params has Parameters that are not in network: {', '.join(map(repr, others[:3]))}"
            )

    def _make_state(self, damping: float) -> None:
        kinds = (*layers.KINDS, *layers.SCALES)
        taps = layers.Taps(self.of_network, tuple(self.parameters), kinds)
        for tap in taps.taps:
            tap.widen(taps.dtype)
        blocks = _blocks(taps, self.parameters, self.approx)
        if all(isinstance(block, Scales) for block in blocks):
            raise ValueError(
                "network has no layer that K-FAC knows (Dense, Conv1d, 2d and 3d, Embedding) with "
                "a Parameter to train"
                + "".join(f"; {name}: {why}" for name, why in taps.refused.items())
            )
        object.__setattr__(self, "taps", taps)
        object.__setattr__(self, "blocks", blocks)

        def zeros(name: str, shape: Any) -> Parameter:
            return Parameter(Tensor(np.zeros(shape), taps.dtype), name=name, requires_grad=False)

        self.moments = zeros(
            "kfac_moments", sum(int(np.prod(shape)) for block in blocks for shape in block.moments)
        )
        self.inverses = ParameterTuple(
            tuple(
                zeros(f"kfac_inverse_{kind}.{block.name}", shape)
                for block in blocks
                for kind, shape in zip("ag"[-len(block.shapes) :], block.shapes, strict=True)
            )
        )
        self.velocity = self.parameters.clone(prefix="kfac_v", init="zeros")
        self.damping = Parameter(constant(damping), name="kfac_damping", requires_grad=False)
        self.weight = Parameter(
            constant(0.0), name="kfac_weight", requires_grad=False
        )  # of what is in the averages

        def number(name: str) -> Parameter:
            return Parameter(Tensor(0, ms.int32), name=name, requires_grad=False)

        self.inverted, self.burned = number("kfac_inverted"), number("kfac_burned")
        self.awaited = number("kfac_awaited")  # 1 while inverses are on their way

    # --- on the host ------------------------------------------------------------------------------

    def read(self, parameter: Parameter) -> Any:
        """A number of the state."""
        return _compat.to_numpy(parameter).reshape(-1)[0].item()

    def inverting(
        self, blocks: list[Block], aside: bool = False
    ) -> Callable[[], dict[int, np.ndarray]]:
        """``found()``: the inverses of these blocks, of the averages as they are now, by their
        places. It is numpy alone. `aside`: in a thread.
        """
        damping, weight = self.read(self.damping) + self.l2, self.read(self.weight)
        if not (np.isfinite(damping) and damping > 0.0):
            raise ValueError(
                f"damping must be positive, but optimizer.damping is {self.read(self.damping)}. "
                "The weights are as they were"
            )
        row = _compat.to_numpy(self.moments).astype(np.float64)

        def found() -> dict[int, np.ndarray]:
            out: dict[int, np.ndarray] = {}
            for block in blocks:
                places = [place for place in (block.a, block.g) if place is not None]
                inverses = block.inverses(block.factors(row, weight), damping, aside)
                out.update(zip(places, inverses, strict=True))
            return out

        return found

    def take(self, found: dict[int, np.ndarray]) -> None:
        """Go on with these inverses."""
        for place, value in found.items():
            parameter = self.inverses[place]
            _compat.assign(parameter, value.astype(numpy_dtype(parameter.dtype)))
        self.count(self.inverted)

    def count(self, parameter: Parameter, by: int = 1) -> None:
        """Add to a number of the state."""
        _compat.assign(parameter, np.array(self.read(parameter) + by, np.int32))

    def adapt(self, change: float, predicted: float) -> None:
        """Set the damping for the next steps, from how the loss changed, and what the model
        said.
        """
        ratio = change / predicted if predicted else 0.0
        factor = 0.9**self.damping_interval
        damping = self.read(self.damping)
        if not ratio >= _POOR:
            damping = damping / factor
        elif ratio > _GOOD:
            damping = max(damping * factor, self.min_damping)
        _compat.assign(self.damping, np.array(damping))

    # --- in graphs --------------------------------------------------------------------------------

    def regularised(self, gradients):
        """Without the loss scale, and with the gradient of l2_reg. MindSpore compiles this."""
        gradients, out = self.unscaled(gradients, 1), ()
        if self.l2 == 0.0:
            return gradients
        for number in range(self.size):
            p = self.parameters[number]
            out = out + (gradients[number] + self.l2_reg.astype(p.dtype) * p,)
        return out

    def shortened(self, gradients, directions, lr, decay):
        """What the step is multiplied by, so that it is within norm_constraint. MindSpore compiles
        this.
        """
        total = self.unit - self.unit
        for number in range(self.size):
            rate, _ = self.rate_and_decay(number, lr, decay, ms.float64)
            along = (gradients[number] * directions[number]).astype(ms.float64).sum()
            total = total + rate * rate * along
        return ops.minimum(ops.sqrt(self.bound / ops.maximum(total, self.unit * 1e-300)), self.unit)

    def construct(self, gradients, directions=None, taken=None, coefficients=None):
        if directions is None:
            raise ValueError(
                "KFAC needs the curvature of the layers beside the gradients: train with "
                "optim.TrainStep(network, loss_fn, optimizer)"
            )
        lr, decay, done, share = self.get_lr(), self.get_weight_decay(), (), self.unit
        if self.bound is not None:
            share = self.shortened(gradients, directions, lr, decay)
        for number in range(self.size):
            p, v, dtype = (
                self.parameters[number],
                self.velocity[number],
                self.parameters[number].dtype,
            )
            rate, shrink = self.rate_and_decay(number, lr, decay, dtype)
            far, mu = rate * share.astype(dtype), self.momentum.astype(dtype)
            if coefficients is not None:
                far, mu = coefficients[0].astype(dtype), coefficients[1].astype(dtype)
            new_v = mu * v - far * directions[number]
            new_p = p - rate * shrink * p + new_v
            done = done + (
                ops.assign(v, ops.where(taken, new_v, v)),
                ops.assign(p, ops.where(taken, new_p, p)),
            )
        return done, self.counted(taken)

    def averaged(self, moments, value, gradients):
        """Put the moments of a batch into the averages, and whether all was finite. MindSpore
        compiles this.
        """
        taken = ops.isfinite(raveled((value,) + gradients + (moments,), moments.dtype)).all()
        dtype = moments.dtype
        new = self.kept.astype(dtype) * self.moments + self.added.astype(dtype) * moments
        weight = self.kept * self.weight + self.added
        return taken, (
            ops.assign(self.moments, ops.where(taken, new, self.moments)),
            ops.assign(self.weight, ops.where(taken, weight, self.weight)),
        )

    def added_to(self, moments, taken):
        """Add more moments of the same batch to the averages. MindSpore compiles this."""
        taken = ops.logical_and(taken, ops.isfinite(moments).all())
        new = self.moments + self.added.astype(moments.dtype) * moments
        return taken, ops.assign(self.moments, ops.where(taken, new, self.moments))


def _blocks(taps: layers.Taps, parameters: Any, approx: str) -> list[Block]:
    """Those of the layers that are known."""
    places = {id(parameter): number for number, parameter in enumerate(parameters)}

    def used(of: Callable[[layers.Tap], Parameter | None], scales: bool) -> list[Shared]:
        return [
            one
            for one in shared(taps.taps, of)
            if id(one.parameter) in places and taps.taps[one.taps[0]].kind.scales == scales
        ]

    weights, biases = used(lambda tap: tap.weight, False), used(lambda tap: tap.bias, False)
    out: list[Block] = []
    count = start = 0

    def add(name: str, where: tuple[int, ...], weight: int | None, bias: int | None) -> None:
        nonlocal count, start
        tap = taps.taps[where[0]]
        (wide, narrow), alone = tap.widths, weight is None or tap.kind.scales
        out.append(
            (Scales if tap.kind.scales else Block)(
                name,
                where,
                weight,
                bias,
                None if alone else count,
                count + (not alone),
                start,
                tap.groups,
                wide,
                narrow,
                tap.kind.indexed,
                tap.kind.turned,
                tap.kind.indexed and approx == "expand",
            )
        )
        count += 2 - alone
        start += sum(int(np.prod(shape)) for shape in out[-1].moments)

    for weight in weights:
        own = next((one for one in biases if one.taps == weight.taps), None)
        if own is not None:
            biases = [one for one in biases if one is not own]
        add(
            weight.parameter.name,
            weight.taps,
            places[id(weight.parameter)],
            None if own is None else places[id(own.parameter)],
        )
    for one in biases:
        add(one.parameter.name, one.taps, None, places[id(one.parameter)])
    own_scale = {one.taps: one for one in used(lambda tap: tap.weight, True) if len(one.taps) == 1}
    own_shift = {one.taps: one for one in used(lambda tap: tap.bias, True) if len(one.taps) == 1}
    for where in dict.fromkeys((*own_scale, *own_shift)):
        pair = [found.get(where) for found in (own_scale, own_shift)]
        first = next(one for one in pair if one is not None)
        add(
            first.parameter.name,
            where,
            *(None if one is None else places[id(one.parameter)] for one in pair),
        )
    return out


# --- what MindSpore compiles of blocks ------------------------------------------------------------


def chained(functions: list[Callable]) -> Callable:
    """The results of functions of one argument, which are tuples, one after another."""
    first, *others = functions
    if not others:
        return first
    rest = chained(others)

    def both(x):
        return first(x) + rest(x)

    return both


def _second_moments(rows):
    """The sum of the outer products of rows, (groups, samples, features)."""
    return _EACH(rows.swapaxes(1, 2), rows)


def _moments_of_means(terms: Parameter) -> Callable:
    """The same of the means of rows that end with their number, each sample with what its terms
    count.
    """

    def moments(sums):
        samples = sums.shape[1]
        if terms.shape[0] == samples:
            each = _RESHAPE(terms, (samples, -1)).sum(1)
        else:
            each = ops.ones((samples,), terms.dtype) * (terms.sum() / samples)
        means = sums / ops.maximum(sums[:, :, -1:], ops.ones_like(sums[:, :, -1:]))
        return _EACH(
            (means * _RESHAPE(each, (1, samples, 1)).astype(means.dtype)).swapaxes(1, 2), means
        )

    return moments


def _summed(block: Block, place: dict[int, int], start: int, moments: Callable | None) -> Callable:
    """The moments of a block's taps from `start` on. `place` has the places of the taps among the
    parts; `moments` makes them of what these have together, None where they are moments."""
    at = tuple(start + place[tap] for tap in block.taps if tap in place)

    def added(parts):
        total = parts[at[0]]
        for one in at[1:]:
            total = total + parts[one]
        return (total if moments is None else moments(total),)

    return added


def row_of_moments(
    optimizer: KFAC, blocks: list[Block], place: dict[int, int], inputs: bool, terms: Parameter
) -> Callable:
    """``row(parts)``: a batch's row of moments from what the taps gave, of the inputs before those
    of the gradients; without `inputs`, of the gradients alone. What there is none of is 0. `terms`
    weigh the samples."""
    of_inputs, of_gradients = (
        (None, None)
        if optimizer.approx == "expand"
        else (_moments_of_means(terms), _second_moments)
    )

    def nothing(shape: tuple[int, ...]) -> Callable:
        zeros = Tensor(np.zeros(int(np.prod(shape))), optimizer.taps.dtype)

        def none(parts):
            return (zeros,)

        return none

    pieces = []
    for block in optimizer.blocks:
        *a, g = block.moments
        known = block in blocks
        pieces += [
            _summed(block, place, 0, of_inputs) if known and inputs else nothing(shape)
            for shape in a
        ]
        moments = None if isinstance(block, Scales) else of_gradients
        pieces.append(
            _summed(block, place, len(place) if inputs else 0, moments) if known else nothing(g)
        )
    every, dtype = chained(pieces), optimizer.taps.dtype

    def row(parts):
        return raveled(every(parts), dtype)

    return row


def direction(block: Block, inverses: ParameterTuple) -> Callable:
    """``directions(gradients)``: the inverse times the gradients of the block's Parameters."""
    weight, bias, groups, wide, narrow = (
        block.weight,
        block.bias,
        block.groups,
        block.wide,
        block.narrow,
    )
    left = inverses[block.g]
    right = None if block.a is None else inverses[block.a]
    product = _TIMES if groups == 1 else _EACH
    lead, turned = () if groups == 1 else (groups,), block.turned

    def matrix(w):
        """(outputs, inputs) of a weight."""
        return w.swapaxes(0, 1) if turned else _RESHAPE(w, lead + (narrow, wide))

    def as_weight(m, w):
        """The other way round."""
        return (m.swapaxes(0, 1) if turned else _RESHAPE(m, w.shape)).astype(w.dtype)

    def matrices(x):
        """Without the axis of one group."""
        return _RESHAPE(x, x.shape[1:]) if groups == 1 else x

    def of_scales(gradients):
        out = ()
        if weight is not None:
            w = gradients[weight]
            out = out + ((left[0] * w).astype(w.dtype),)
        if bias is not None:
            b = gradients[bias]
            out = out + ((left[1] * b).astype(b.dtype),)
        return out

    def of_bias(gradients):
        b = gradients[bias]
        return (
            _RESHAPE(product(matrices(left), _RESHAPE(b, lead + (narrow, 1))), b.shape).astype(
                b.dtype
            ),
        )

    def of_indices(gradients):
        w = gradients[weight]
        m = product(product(matrices(right), w.astype(right.dtype)), matrices(left))
        return (m.astype(w.dtype),)

    def of_rows(gradients):
        w = gradients[weight]
        return (
            (ops.expand_dims(right, 1) * product(w.astype(right.dtype), matrices(left))).astype(
                w.dtype
            ),
        )

    def of_both(gradients):
        w, b = gradients[weight], gradients[bias]
        m = _CONCAT((matrix(w), _RESHAPE(b, lead + (narrow, 1)))).astype(right.dtype)
        m = product(product(matrices(left), m), matrices(right))
        return as_weight(m[..., :-1], w), _RESHAPE(m[..., -1:], b.shape).astype(b.dtype)

    def of_weight(gradients):
        w = gradients[weight]
        m = product(product(matrices(left), matrix(w).astype(right.dtype)), matrices(right))
        return (as_weight(m, w),)

    if isinstance(block, Scales):
        return of_scales
    if block.a is None:
        return of_bias
    if block.indexed:
        return of_rows if block.diagonal else of_indices
    return of_weight if bias is None else of_both


def preconditioned(optimizer: KFAC, blocks: list[Block]) -> Callable:
    """``directions(gradients)``: the inverse of the curvature times them; they themselves where
    there is none.
    """
    alone = [
        number
        for number in range(optimizer.size)
        if all(number not in block.places for block in blocks)
    ]
    order = [place for block in blocks for place in block.places] + alone
    at = tuple(order.index(number) for number in range(optimizer.size))

    def same(number: int) -> Callable:
        def one(gradients):
            return (gradients[number],)

        return one

    every = chained(
        [direction(block, optimizer.inverses) for block in blocks]
        + [same(number) for number in alone]
    )

    def directions(gradients):
        found, out = every(gradients), ()
        for number in at:
            out = out + (found[number],)
        return out

    return directions
