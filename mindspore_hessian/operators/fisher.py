"""The Fisher information of a network on its data: exact, by Monte Carlo, and the empirical one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import HessianError
from mindspore_hessian.arguments import check_choice, is_integer, shown
from mindspore_hessian.core.function import Call
from mindspore_hessian.core.program import Point, Program
from mindspore_hessian.operators import kernels
from mindspore_hessian.operators.curvature import CurvatureOperator
from mindspore_hessian.operators.data import Batch
from mindspore_hessian.operators.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    is_cross_entropy,
    likelihood_of,
    likelihood_of_base,
)
from mindspore_hessian.operators.weighing import NO_SPACE
from mindspore_hessian.typing import LikelihoodName, WeightNames


class _OutputCurvature(CurvatureOperator):
    """J^T M J with an M at the network's output that does not come from the loss as a function."""

    likelihood: Likelihood | None

    by_terms = True

    def _given(self, likelihood: str | None) -> Likelihood | None:
        """What the user says, or else the loss; that of a subclass of MindSpore's losses has to be
        found in the loss.
        """
        if likelihood is not None:
            check_choice("likelihood", likelihood, LIKELIHOODS)
            return LIKELIHOODS[likelihood]
        known, base = likelihood_of(self.risk.loss_fn), likelihood_of_base(self.risk.loss_fn)
        if known is not None or base is None:
            return known
        factor = self._multiple(base)
        return base if factor is not None and abs(factor - 1) < 1e-3 else None

    def _compare(self, asked: str | None) -> None:
        """Raise where a loss of the user's own is not that of the likelihood that they say."""
        if asked is None:
            return
        likelihood, loss_fn = LIKELIHOODS[asked], self.risk.loss_fn
        weighted = asked == "categorical" and is_cross_entropy(loss_fn)
        if weighted or likelihood_of(loss_fn) is likelihood:
            return
        if self._multiple(likelihood) is None:
            raise ValueError(
                f"likelihood={likelihood.name!r} is not that of this loss: at the outputs for the "
                "first batch the second derivative of the loss is no multiple of the Fisher "
                "information of that likelihood, all terms weighing the same (a mask of floats, "
                "weights, a temperature?). GGNOperator takes any loss, and "
                "nn.CrossEntropyLoss(weight=, ignore_index=) says how its terms weigh"
            )

    def _multiple(self, likelihood: Likelihood) -> float | None:
        """How many times the Fisher information of the likelihood, each term with the weight that
        is known, or the same, the Hessian of the loss is, at the outputs for the first batch; None
        where it is none. (1 for a loss that is differentiated once only.)
        """
        batch = self.risk.data.first()
        out = self.risk.output(batch)
        u = np.random.default_rng(0).standard_normal(out.shape).astype(out.dtype)
        point = Point(Call.bind(self.risk.loss_fn, (Tensor(out), *batch.targets)), NO_SPACE)
        program = Program(
            "likelihood", kernels.both_curvatures(likelihood.curvature), (likelihood.name,)
        )
        try:
            found, wanted = map(_compat.to_numpy, program.run(point, (Tensor(u),))[0])
        except HessianError:
            return 1.0
        if self._weighted:
            weights = self._weights(batch)
            wanted = wanted * weights.reshape(out.shape[0], 1, *out.shape[2:])
            wanted = wanted / (weights.sum() if self.reduction == "mean" else 1)
        elif self.reduction == "mean":
            wanted = wanted / likelihood.terms(out.shape)
        factor = float((found * wanted).sum() / max((wanted * wanted).sum(), 1e-300))
        gap, most = np.abs(found - factor * wanted).max(), np.abs(found).max()
        return factor if gap <= max(1e-3, 1e3 * np.finfo(out.dtype).eps) * most else None

    @cached_property
    def positive(self) -> bool:
        """It is a sum of squares, but for the weights that the terms of the loss may have, which
        may be negative.
        """
        return not self._weighted

    def exact_diagonal(self) -> np.ndarray | None:
        from mindspore_hessian.operators.diagonal import exact_diagonal, fisher_roots

        return exact_diagonal(self, fisher_roots)

    @property
    def _weighted(self) -> bool:
        """Whether the terms of the loss have weights of their own."""
        return self.risk.weighing.terms is not None

    def _weights(self, batch: Batch) -> np.ndarray:
        """The weights of the terms of a batch."""
        assert self.risk.weighing.terms is not None
        return self.risk.weighing.terms(batch)

    def _refuse_unknown_terms(self, other: str) -> None:
        """Raise where the batches do not weigh as their samples, and it is not known how the terms
        in them do.
        """
        weighing = self.risk.weighing
        if self.reduction == "mean" and not self._weighted and not weighing.uniform:
            raise ValueError(
                f"{type(self).__name__} needs to know what each term of the loss counts, but this "
                f"loss is known by what its batches weigh only ({weighing.how}). {other}"
            )

    @property
    def _per_position(self) -> bool:
        """Whether each position of a sample is a draw of its own."""
        return self.likelihood is LIKELIHOODS["categorical"]

    @property
    def _terms(self) -> Callable | None:
        """The number of draws that the loss is a mean of, by the shape of the output; None for a
        sum, or unknown.
        """
        return (
            self.likelihood.terms
            if self.likelihood is not None and self.reduction == "mean"
            else None
        )


class FisherOperator(_OutputCurvature):
    r"""Fisher information of a network on its data, :math:`\sum_n c_n J_n^T F_n J_n`.

    F is the expectation of :math:`\nabla \ell \nabla \ell^T` over targets drawn from the network's
    own prediction; the true targets do not matter. Exact for cross-entropy (categorical), binary
    cross-entropy with logits (Bernoulli) and squared error (Gaussian of variance 1/2), where it
    equals the Gauss-Newton matrix. With `mc_samples` the expectation is the mean over so many draws
    for each sample.

    Arguments, errors and warnings are those of `HessianOperator`, and these. `reduction` "mean"
    means the mean over all terms of the loss (samples and positions, and for the squared error and
    binary cross-entropy all entries).

    Args:
        likelihood: "categorical" (classes on axis 1), "bernoulli" or "gaussian"; None: as `loss_fn`
            says, where it is one of MindSpore's without weights or label smoothing. It is taken as
            it is, a factor before a loss of your own does not count; a loss whose terms weigh
            otherwise is refused.
        mc_samples: 0: exact. Else the number of draws for each sample.
        seed: of the draws; the same seed gives the same matrix, for the same batches in the same
            order.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError: as
            `HessianOperator`; also where the likelihood of the loss is not known and not given.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        J. Martens, New insights and perspectives on the natural gradient method, JMLR 21, 2020.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import FisherOperator
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = FisherOperator(net, nn.MSELoss(), (x, y))
        >>> print(op @ np.array([1.0, 1.0]))
        [1. 4.]
    """

    def __init__(
        self,
        network: Callable[..., Any],
        loss_fn: Callable[..., Any] | None,
        data: Any,
        weights: WeightNames = None,
        *,
        likelihood: LikelihoodName | None = None,
        mc_samples: int = 0,
        seed: int = 0,
        **options: Any,
    ):
        if not is_integer(mc_samples) or mc_samples < 0:
            raise ValueError(
                f"mc_samples must be 0 (exact) or a positive int, but got {shown(mc_samples)}"
            )
        if not is_integer(seed) or seed < 0:
            raise ValueError(f"seed must be an int of 0 or more, but got {shown(seed)}")
        self.mc_samples, self.seed, self._asked = int(mc_samples), int(seed), likelihood
        super().__init__(network, loss_fn, data, weights, **options)

    def _set_up(self) -> None:
        self.likelihood = self._given(self._asked)
        if self.likelihood is None:
            raise ValueError(
                "the likelihood of this loss is not known (a loss of your own, or one with "
                f"weights or label smoothing). Say likelihood={', '.join(map(repr, LIKELIHOODS))}, "
                "or use GGNOperator or EmpiricalFisherOperator"
            )
        self._refuse_unknown_terms("GGNOperator is the same matrix, and takes it")
        self._compare(self._asked)
        if self.mc_samples:
            self.program = Program(
                "FisherOperator.mc", kernels.sampled(self._per_position), (self._per_position,)
            )
        else:
            build = kernels.fisher(self.likelihood.curvature, self._terms, self._weighted)
            self.program = Program(
                "FisherOperator", build, (self.likelihood.name, self.reduction, self._weighted)
            )

    def _make(self, batch: Batch, number: int) -> tuple[Program, tuple[Tensor, ...]]:
        if not self.mc_samples:
            return self.program, (
                Tensor(self._scales(batch).astype(self.dtype)),
            ) if self._weighted else ()
        assert self.likelihood is not None
        out = self.risk.output(batch)
        draws = np.stack([self.likelihood.draw(out, one) for one in self.noises(out.shape, number)])
        scale: Any = 1.0 if self._terms is None else 1.0 / self._terms(out.shape)
        if self._weighted:
            scale = self._scales(batch).reshape(out.shape[0], 1, *out.shape[2:])
        return self.program, (
            Tensor((draws * np.sqrt(scale / self.mc_samples)).astype(self.dtype)),
        )

    def noises(self, shape: tuple[int, ...], number: int) -> Iterator[np.ndarray]:
        """What each draw is made of, for the batch of this number and an output of this shape."""
        assert self.likelihood is not None
        rng = np.random.default_rng([self.seed, self.risk.comm.rank, number])
        for _ in range(self.mc_samples):
            yield self.likelihood.noise(shape, rng, np.float64)

    def _scales(self, batch: Batch) -> np.ndarray:
        """What the Fisher information of each term is multiplied by."""
        weights = self._weights(batch)
        return weights / weights.sum() if self.reduction == "mean" else weights


class EmpiricalFisherOperator(_OutputCurvature):
    r"""Empirical Fisher of a network on its data, :math:`\sum_n c_n \nabla \ell_n \nabla \ell_n^T`.

    :math:`\ell_n` is the loss of sample n (row n of the network's output; for cross-entropy over
    many positions, of each of them) with its true target, and c_n what it is multiplied by in the
    risk: 1 for a summed loss, 1 over the number of terms for a mean. The number of terms is that of
    the likelihood (`FisherOperator`), so that its expectation over targets is the Fisher
    information; for a loss whose likelihood is not known, the number of samples. Samples must not
    depend on each other (no batch norm in training mode).

    Arguments, errors and warnings are those of `HessianOperator`, and `likelihood`, as
    `FisherOperator` has it.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError: as
            `HessianOperator`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        F. Kunstner, L. Balles and P. Hennig, Limitations of the empirical Fisher approximation for
        natural gradient descent, NeurIPS 2019.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import EmpiricalFisherOperator
        >>> net = nn.Dense(2, 1, weight_init="ones", has_bias=False)
        >>> x, y = ms.Tensor([[1.0, 0.0], [0.0, 2.0]]), ms.Tensor([[0.0], [0.0]])
        >>> op = EmpiricalFisherOperator(net, nn.MSELoss(), (x, y))
        >>> print(np.round(op @ np.array([1.0, 1.0]), 3))
        [ 2. 32.]
    """

    def __init__(
        self,
        network: Callable[..., Any],
        loss_fn: Callable[..., Any] | None,
        data: Any,
        weights: WeightNames = None,
        *,
        likelihood: LikelihoodName | None = None,
        **options: Any,
    ):
        self._asked = likelihood
        super().__init__(network, loss_fn, data, weights, **options)

    def _set_up(self) -> None:
        self.likelihood = self._given(self._asked)
        if self.likelihood is None and is_cross_entropy(
            self.risk.loss_fn
        ):  # with weights or label smoothing
            self.likelihood = LIKELIHOODS["categorical"]
        self._refuse_unknown_terms(
            "Pass a loss that says it, such as nn.CrossEntropyLoss(weight=, ignore_index=)"
        )
        self._compare(self._asked)
        self.terms = terms = self._terms or (_rows if self.reduction == "mean" else None)
        name = self.likelihood.name if self.likelihood is not None else None
        self.program = Program(
            "EmpiricalFisherOperator",
            kernels.empirical(self._per_position, terms, self._weighted),
            (name, self.reduction, self._weighted),
        )

    def _make(self, batch: Batch, number: int) -> tuple[Program, tuple[Tensor, ...]]:
        return self.program, (
            Tensor(self._weights(batch).astype(self.dtype)),
        ) if self._weighted else ()


def _rows(shape: tuple[int, ...]) -> int:
    """The number of samples of an output."""
    return shape[0]
