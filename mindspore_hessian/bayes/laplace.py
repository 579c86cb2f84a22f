"""The Laplace approximation: a Gaussian around the trained weights, by the curvature there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
from mindspore import Tensor, nn
from scipy.optimize import minimize

from mindspore_hessian import _checkpoint, _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    as_reals,
    check_choice,
    check_integer,
    check_progress,
    check_real,
    shown,
)
from mindspore_hessian.bayes import likelihoods, posteriors
from mindspore_hessian.bayes.features import LastLayer, Network, NotLastError, last_layer
from mindspore_hessian.bayes.identity import difference, fingerprint, identity
from mindspore_hessian.bayes.likelihoods import LIKELIHOODS
from mindspore_hessian.bayes.rows import DenseRows, LastRows
from mindspore_hessian.core.space import Space, ravel
from mindspore_hessian.estimators import eigsh
from mindspore_hessian.operators import weights as weight_choice
from mindspore_hessian.operators.checks import check_trained
from mindspore_hessian.operators.data import Batch, Data
from mindspore_hessian.operators.ggn import GGNOperator
from mindspore_hessian.operators.kfac import KFACOperator
from mindspore_hessian.operators.progress import bar
from mindspore_hessian.operators.risk import BatchRunner
from mindspore_hessian.operators.samples import Samples
from mindspore_hessian.typing import WeightNames

LINKS = ("probit", "mc", "bridge")
PRIORS = ("number", "layers", "weights")
_CHUNK = 2**23  # numbers of a covariance or a Jacobian that are held at once
_VERSION = 1  # of the files
_WITHIN = 18.0  # the logarithm of a precision is searched for from minus this to this


# --- the curvature over the data, by structure: a pass adds to it, and then it is made of that ----


class _Full:
    def __init__(self, model: Laplace, data: Any):
        self.total = np.zeros((model.size, model.size))

    def add(self, rows: Any, metric: Any) -> None:
        self.total += rows.gram(metric)

    def made(self) -> posteriors.Full:
        return posteriors.Full((self.total + self.total.T) / 2)


class _Diagonal:
    def __init__(self, model: Laplace, data: Any):
        self.total = np.zeros(model.size)

    def add(self, rows: Any, metric: Any) -> None:
        self.total += rows.squares(metric)

    def made(self) -> posteriors.Diagonal:
        return posteriors.Diagonal(self.total)


class _LastKron:
    def __init__(self, model: Laplace, data: Any):
        assert model.last is not None
        outputs, features = model.last.weight.shape
        self.places, self.count = model._places, 0
        self.a, self.g = (np.zeros((n, n), order="F") for n in (features, outputs))

    def add(self, rows: LastRows, metric: Any) -> None:
        features = rows.features[:, : len(self.a)]
        self.a += features.T @ features
        metric.add_to(self.g)
        self.count += len(features)

    def made(self) -> posteriors.Kron:
        width = len(self.a)
        a, g = self.a / self.count, self.g
        del self.a, self.g  # they are large, and written over
        return posteriors.Kron.of(
            a, g, self.places[:, :width], self.places[:, width:].ravel(), self.count
        )


class _ByOperator:
    """Of an operator of the whole data; the pass adds nothing."""

    def __init__(self, model: Laplace, data: Any):
        self.model, self.data = model, data

    def add(self, rows: Any, metric: Any) -> None:
        return

    def operator(self, kind: Callable) -> Any:
        model = self.model
        loss = getattr(nn, model.likelihood.loss)(reduction="sum")
        return kind(model.network, loss, self.data, model._space, progress=model._progress)


class _Kron(_ByOperator):
    def made(self) -> posteriors.Blocks:
        op = self.operator(KFACOperator)
        indexed = {
            layer for layer, (a, _) in op.factors.items() if a.ndim == 1
        }  # of an Embedding A comes first
        names = {
            where.start: name for name, where in weight_choice.slices(self.model._space).items()
        }
        means = [
            int(weight_choice.layer_of(names[where.min()]) not in indexed) for where in op.indices
        ]
        return posteriors.Blocks(
            op.scaled(self.model.likelihood.scale).blocks, op.indices, means, op.num_data
        )


class _LowRank(_ByOperator):
    def made(self) -> posteriors.LowRank:
        op = self.operator(GGNOperator)
        rank = min(self.model.rank, self.model.size)
        found = eigsh(op, rank, progress=self.model._progress)
        return posteriors.LowRank(
            np.ascontiguousarray(found.eigenvectors, np.float64),
            self.model.likelihood.scale * np.maximum(found.eigenvalues, 0),
            rank,
        )


STRUCTURES: dict[str, Callable] = {
    "full": _Full,
    "kron": _Kron,
    "diag": _Diagonal,
    "lowrank": _LowRank,
}
_OF_LAST: dict[str, Callable] = STRUCTURES | {"kron": _LastKron}
_STORED: dict[str, Any] = {
    "full": posteriors.Full,
    "kron": posteriors.Blocks,
    "diag": posteriors.Diagonal,
    "lowrank": posteriors.LowRank,
}
_STORED_OF_LAST: dict[str, Any] = _STORED | {"kron": posteriors.Kron}


class Laplace:
    r"""Laplace approximation of a trained network: weights are Gaussian around those it has.

    The posterior is :math:`N(w, P^{-1})` with
    :math:`P = \sum_n J_n^T \Lambda_n J_n / \sigma^2 + D`: the generalised Gauss-Newton matrix
    summed over the data, and the prior's precision D. Outputs are taken for linear in the weights,
    so that they are Gaussian too, with the covariance :math:`J P^{-1} J^T`. The network is not
    changed.

    For the last layer no Jacobian is formed, as it is known by the features before the layer: a
    pass over the data costs two forward passes, a prediction one. Other weights cost a gradient for
    each output of each sample, then and in predictions. Algebra is in float64.

    Args:
        network: a Cell in evaluation mode that returns one Tensor, (samples, outputs): logits or
            means.
        data: the training data, as `HessianOperator` has them: integer labels, or targets like the
            outputs.
        likelihood: "classification" (softmax) or "regression" (Gaussian noise, the same for all
            outputs).
        weights: "last_layer": the last Dense, found by itself; else as `HessianOperator` has them:
            a pattern of names, Parameters, None for all trainable. Weights that are those of the
            last layer are handled as such.
        structure: of the curvature: "full" (n x n), "kron" (a Kronecker product for each weight,
            with separate biases), "diag" or "lowrank" (the largest `rank` eigenpairs).
        prior_precision: D: a number, one for each Parameter (in the order of `parameters`), or one
            for each weight (not for "kron").
        sigma_noise: the standard deviation of the noise, for regression.
        rank: for "lowrank".
        progress: of passes over the data, as `HessianOperator` has it.

    Attributes:
        mean: the weights of the posterior, (n,), float64.
        parameters: the names of their Parameters.
        prior_precision, sigma_noise: as they are; may be set.
        last: what was found as the last layer, or None.

    Raises:
        TypeError, ValueError: an argument is wrong, the network is in training mode with dropout or
            batch norm, no last layer is found; in predictions: the network's weights are others
            now.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        D. MacKay, A practical Bayesian framework for backpropagation networks, Neural Computation
        4(3), 1992; E. Daxberger et al., Laplace redux, NeurIPS 2021 (the interface); H. Ritter et
        al., A scalable Laplace approximation for neural networks, ICLR 2018 ("kron").

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import Laplace
        >>> net = nn.SequentialCell(nn.Dense(1, 1, weight_init="ones", has_bias=False))
        >>> x = ms.Tensor([[1.0], [2.0]])
        >>> posterior = Laplace(net, (x, x), "regression", prior_precision=1.0)
        >>> print(posterior.functional_variance(ms.Tensor([[6.0]])))  # x^2 / (1 + 4 + 1)
        [[[6.]]]
    """

    @interruptible
    def __init__(
        self,
        network: nn.Cell,
        data: Any,
        likelihood: Literal["classification", "regression"] = "classification",
        *,
        weights: WeightNames = "last_layer",
        structure: Literal["full", "kron", "diag", "lowrank"] = "full",
        prior_precision: Any = 1.0,
        sigma_noise: float = 1.0,
        rank: int = 50,
        progress: bool | None = None,
    ):
        check_trained(network)
        check_choice("likelihood", likelihood, LIKELIHOODS)
        check_choice("structure", structure, STRUCTURES)
        check_integer("rank", rank, 1)
        check_progress(progress)
        self.likelihood, self.structure, self.rank = LIKELIHOODS[likelihood], structure, rank
        named = isinstance(weights, str) and weights == "last_layer"
        chosen = None if named else weight_choice.choose(network, weights)
        self._check_noise(sigma_noise)
        prior = _prior_values(prior_precision)
        source = Data(data, network, True)
        held = Network(network)
        last = last_layer(held, source.first(), None if chosen is None else chosen.weights)
        if chosen is None and last is None:
            raise ValueError(
                "weights='last_layer': the network does not end with a Dense layer (without an "
                "activation) that is used once. Say which weights: weights='name.*', or None for "
                "all"
            )
        self._prepare(held, chosen, last, progress)
        self._sigma, self._prior = float(sigma_noise), self._checked_prior(prior)
        self._curvature: Any = None
        self.misfit, self.num_data, self.num_outputs = 0.0, 0, 0
        self._add(source, data)

    def _prepare(
        self, held: Network, chosen: Space | None, last: LastLayer | None, progress: bool | None
    ) -> None:
        """What is known of the network and the weights, before any data."""
        self.network, self._network, self.last, self._progress = held.network, held, last, progress
        self._space = chosen or Space.of_weights(
            [
                p
                for p in self.network.trainable_params()
                if any(p is own for own in self._last_parameters())
            ]
        )
        self.parameters = tuple(p.name for p in self._space.weights)
        self.size = self._space.size
        self.mean = ravel(self._space.weights, np.float64)
        self._places = self._last_places() if self.last is not None else np.empty((0, 0), int)
        self._seen = fingerprint(self.network)
        self._last_is_sure = True
        self._posterior: Any = None

    # --- the data ---------------------------------------------------------------------------------

    def _last_parameters(self) -> list[Any]:
        assert self.last is not None
        return [p for p in (self.last.weight, self.last.bias) if p is not None]

    def _last_places(self) -> np.ndarray:
        """(outputs, features), and a column for the biases where they are in the posterior."""
        columns = []
        for parameter in self._last_parameters():
            where = weight_choice.slices(self._space).get(parameter.name)
            if where is not None:
                columns.append(np.arange(where.start, where.stop).reshape(parameter.shape[0], -1))
        return np.concatenate(columns, axis=1)

    @interruptible
    def fit(self, data: Any) -> Laplace:
        """Continue with more data, of the same network: afterwards the posterior is that of the
        data of both.

        Equal to one made of all the data at once; with "lowrank" up to what the truncations leave
        out (nothing, where `rank` pairs are all there are). Prior and noise stay as they are. An
        error leaves everything as it was.

        Args:
            data: as in the constructor, the new samples alone.

        Returns:
            This object.

        Raises:
            TypeError, ValueError: as the constructor; the network's weights are others now.
        """
        check_trained(self.network)
        self._check_same()
        self._add(Data(data, self.network, True), data)
        return self

    def _add(self, source: Data, data: Any) -> None:
        """One pass over the data, whose curvature and likelihood join those there are."""
        parts = (STRUCTURES if self.last is None else _OF_LAST)[self.structure](self, data)
        misfit, num_data, num_outputs = 0.0, 0, self.num_outputs
        with bar("Laplace", source.count() or 0, self._progress) as shown_bar:
            for batch in source:
                if len(batch.targets) != 1:
                    raise ValueError(
                        f"data: batch {batch.number} must have a target after the inputs, (x, y)"
                    )
                rows, f = self._linearised(
                    batch, check=True, needs_rows=not isinstance(parts, _ByOperator)
                )
                y = self.likelihood.check(
                    np.asarray(_compat.to_numpy(batch.targets[0])), f, batch.number
                )
                if not np.isfinite(f).all():
                    raise ValueError(
                        f"the network's outputs for batch {batch.number} hold NaN or Inf"
                    )
                misfit += self.likelihood.misfit(f, y)
                num_data, num_outputs = num_data + len(f), f.shape[1]
                parts.add(rows, self.likelihood.curvature(f))
                shown_bar.update()
        found = parts.made()
        self._curvature = found if self._curvature is None else self._curvature.plus(found)
        self.misfit, self.num_data, self.num_outputs = (
            self.misfit + misfit,
            self.num_data + num_data,
            num_outputs,
        )
        self._posterior = None

    def _check_same(self) -> None:
        if fingerprint(self.network) != self._seen:
            raise ValueError(
                "the network's weights are others than those that this Laplace was made of, "
                "around which it is a posterior: make it anew"
            )

    def _linearised(
        self, batch: Batch, check: bool = False, needs_rows: bool = True
    ) -> tuple[Any, np.ndarray]:
        """The Jacobian, in one form or the other, and the outputs."""
        if self.last is None:
            f = self._network(batch)
            return (DenseRows(self._jacobian(batch)) if needs_rows else None), f
        features = self.last.features(batch)
        if check or not self._last_is_sure:
            f = self._network(batch)
            try:
                self.last.check(features, f)
            except NotLastError as err:
                before = "the first batch" if self._last_is_sure else "the network that was saved"
                raise ValueError(
                    f"weights: the layer {self.last.name!r} is the last for {before}, but not for "
                    f"batch {batch.number}: {err}"
                ) from err
            self._last_is_sure = True
        f = self.last.outputs(features)
        extra = self._places.shape[1] - features.shape[1]
        return LastRows(
            np.concatenate([features, np.ones((len(features), extra))], axis=1), self._places
        ), f

    @cached_property
    def _samples(self) -> Samples:
        return Samples(BatchRunner(self.network, None, self._space))

    def _jacobian(self, batch: Batch) -> np.ndarray:
        """Of the outputs of each sample, (samples, outputs, n), float64."""
        return self._samples.jacobian(batch).astype(np.float64)

    # --- prior and noise --------------------------------------------------------------------------

    @property
    def prior_precision(self) -> Any:
        """As it was given or found: a number, or an array."""
        return float(self._prior[0]) if len(self._prior) == 1 else self._prior.copy()

    @prior_precision.setter
    def prior_precision(self, value: Any) -> None:
        self._prior, self._posterior = self._checked_prior(_prior_values(value)), None

    @property
    def sigma_noise(self) -> float:
        """The standard deviation of the noise."""
        return self._sigma

    @sigma_noise.setter
    def sigma_noise(self, value: float) -> None:
        self._check_noise(value)
        self._sigma, self._posterior = float(value), None

    def _check_noise(self, value: Any) -> None:
        check_real("sigma_noise", value)
        if value != 1 and not self.likelihood.noisy:
            raise ValueError("sigma_noise is for likelihood='regression' only: leave it out")

    def _checked_prior(self, values: np.ndarray) -> np.ndarray:
        number = len(self.parameters)
        if len(values) not in (1, number, self.size):
            raise ValueError(
                f"prior_precision must be a number, one for each of the {number} Parameters, or "
                f"one for each of the {self.size} weights, but has {len(values)} numbers"
            )
        if len(values) == self.size not in (1, number) and self.structure == "kron":
            raise ValueError(
                "prior_precision must be one number for each Parameter at most where "
                "structure='kron'"
            )
        return values

    def _shares(self, count: int) -> list[int]:
        """How many weights each of so many numbers of a prior is for."""
        shares = {self.size: [1] * self.size, 1: [self.size]}
        return (shares | {len(self.parameters): list(self._space.sizes)})[count]

    def _spread_prior(self, values: np.ndarray) -> np.ndarray:
        """One for each weight."""
        return np.repeat(values, self._shares(len(values)))

    def _at(self, prior: np.ndarray, sigma: float) -> Any:
        return self._curvature.at(1 / sigma**2, self._spread_prior(prior))

    @property
    def posterior(self) -> Any:
        """The Gaussian around the mean: `logdet`, `variances`, `spread`."""
        if self._posterior is None:
            self._posterior = self._at(self._prior, self._sigma)
        return self._posterior

    # --- the evidence -----------------------------------------------------------------------------

    def log_likelihood(self, sigma_noise: float | None = None) -> float:
        """log p(data | weights), summed over the data, with the constants of the distribution."""
        sigma = self._sigma if sigma_noise is None else sigma_noise
        self._check_noise(sigma)
        if not self.likelihood.noisy:
            return -self.misfit
        return -self.misfit / sigma**2 - self.num_data * self.num_outputs * np.log(
            sigma * np.sqrt(2 * np.pi)
        )

    def _asked(self, prior_precision: Any, sigma_noise: float | None) -> tuple[np.ndarray, float]:
        """Prior and noise, checked; those that are set where None."""
        prior = self._prior
        if prior_precision is not None:
            prior = self._checked_prior(_prior_values(prior_precision))
        sigma = self._sigma if sigma_noise is None else sigma_noise
        self._check_noise(sigma)
        return prior, float(sigma)

    def log_marginal_likelihood(
        self, prior_precision: Any = None, sigma_noise: float | None = None
    ) -> float:
        r"""log p(data), the evidence:
        :math:`\log p(D | w) - \frac12 (\log\det P - \log\det D + w^T D w)`.

        Args:
            prior_precision, sigma_noise: others than those set, which remain.
        """
        prior, sigma = self._asked(prior_precision, sigma_noise)
        set_ones = prior_precision is None and sigma_noise is None
        return self._evidence(self.posterior if set_ones else self._at(prior, sigma), prior, sigma)

    def _evidence(self, posterior: Any, prior: np.ndarray, sigma: float) -> float:
        each = self._spread_prior(prior)
        return self.log_likelihood(sigma) - 0.5 * float(
            posterior.logdet() - np.log(each).sum() + (each * self.mean**2).sum()
        )

    def evidence_gradient(
        self, prior_precision: Any = None, sigma_noise: float | None = None
    ) -> tuple[np.ndarray, float]:
        r"""The derivatives of `log_marginal_likelihood`, at fixed weights, by the logarithms of the
        prior's precision and of the noise.

        With d the number of the prior that is for the weights B, N samples and K outputs:

        .. math::
            \frac{\partial}{\partial \log d} = \frac12 \sum_{i \in B}
            (1 - d\, (P^{-1})_{ii} - d\, w_i^2), \qquad
            \frac{\partial}{\partial \log\sigma} = \frac{|y - f|^2}{\sigma^2} - N K
            + \sum_i (1 - d_i (P^{-1})_{ii})

        Where the first is 0, d is the number of weights that the data determine over the sum of
        their squares (MacKay). Costs the posterior's variances, by its structure: for "full"
        :math:`O(n^3)`, for "lowrank" :math:`O(n k^2)`, else about what the posterior does.

        Args:
            prior_precision, sigma_noise: others than those set, which remain.

        Returns:
            By the logarithm of each number of the prior, (1,), (Parameters,) or (weights,), and by
            that of the noise, 0 for a classification.

        Raises:
            TypeError, ValueError: an argument is wrong.

        Source:
            D. MacKay, Bayesian interpolation, Neural Computation 4(3), 1992.

        Examples:
            >>> import mindspore as ms
            >>> from mindspore import nn
            >>> from mindspore_hessian import Laplace
            >>> net = nn.SequentialCell(nn.Dense(1, 1, weight_init="ones", has_bias=False))
            >>> x = ms.Tensor([[1.0], [2.0]])
            >>> posterior = Laplace(net, (x, x), "regression", prior_precision=1.0)
            >>> by_prior, by_noise = posterior.evidence_gradient()
            >>> print(by_prior.round(4), round(by_noise, 4))  # (1 - 1/6 - 1) / 2, and 5/6 - 2
            [-0.0833] -1.1667
        """
        prior, sigma = self._asked(prior_precision, sigma_noise)
        return self._gradient(self._at(prior, sigma), prior, sigma)

    def _gradient(
        self, posterior: Any, prior: np.ndarray, sigma: float
    ) -> tuple[np.ndarray, float]:
        each = self._spread_prior(prior)
        known = 1 - each * posterior.variances()
        owner = np.repeat(np.arange(len(prior)), self._shares(len(prior)))
        by_prior = np.bincount(owner, 0.5 * (known - each * self.mean**2), len(prior))
        if not self.likelihood.noisy:
            return by_prior, 0.0
        terms = self.num_data * self.num_outputs
        return by_prior, float(2 * self.misfit / sigma**2 - terms + known.sum())

    @interruptible
    def optimize_prior_precision(
        self, per: str = "number", noise: bool = False, max_iterations: int = 200
    ) -> float:
        """Set the prior's precision to that of the largest `log_marginal_likelihood`, by L-BFGS on
        its logarithm.

        Args:
            per: "number": one for all; "layers": one for each Parameter; "weights": one for each
                weight, not for "kron".
            noise: also set `sigma_noise`, of a regression.
            max_iterations: of L-BFGS.

        Returns:
            The marginal likelihood there.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        check_choice("per", per, PRIORS)
        check_integer("max_iterations", max_iterations, 1)
        if not isinstance(noise, bool) or (noise and not self.likelihood.noisy):
            raise (ValueError if noise is True else TypeError)(
                f"noise must be a bool, and False for a classification, but got {shown(noise)}"
            )
        if per == "weights" and self.structure == "kron":
            raise ValueError(
                "per='weights' is not for structure='kron', which takes one prior precision for "
                "each Parameter at most: per='layers'"
            )
        count = {"number": 1, "layers": len(self.parameters), "weights": self.size}[per]
        shares = self._shares(count)
        owner = np.repeat(np.arange(count), shares)
        start = np.bincount(owner, np.log(self._spread_prior(self._prior))) / shares
        found = minimize(
            lambda line: self._descent(line, count, noise),
            np.append(start, [np.log(self._sigma)] * noise),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-_WITHIN, _WITHIN)] * (count + noise),
            options={"maxiter": max_iterations},
        )
        self.prior_precision = np.exp(found.x[:count])
        if noise:
            self.sigma_noise = float(np.exp(found.x[count]))
        return self.log_marginal_likelihood()

    def _descent(self, line: np.ndarray, count: int, noise: bool) -> tuple[float, np.ndarray]:
        """Minus the evidence, and minus its gradient, by so many logarithms of precisions and that
        of the noise.
        """
        prior, sigma = np.exp(line[:count]), float(np.exp(line[count])) if noise else self._sigma
        own = self._at(prior, sigma)
        by_prior, by_noise = self._gradient(own, prior, sigma)
        return -self._evidence(own, prior, sigma), -np.append(by_prior, [by_noise] * noise)

    # --- predictions ------------------------------------------------------------------------------

    def _pieces(self, x: Any, whole: bool) -> Iterator[tuple[Any, np.ndarray]]:
        """The inputs linearised, so many at a time that their covariances (where `whole`), or
        variances, fit.
        """
        self._check_same()
        if not isinstance(x, Tensor | np.ndarray | tuple | dict):
            raise TypeError(
                "x must be a batch of inputs, a Tensor or array (or a tuple or dict of those), "
                f"but got {shown(x)}"
            )
        columns = {"full": self.size, "lowrank": self.rank}.get(self.structure, 1)
        columns = max(
            columns, self.num_outputs if whole else 1, self.size if self.last is None else 1
        )
        given = x if isinstance(x, tuple | dict) else (x,)
        for batch in Data(
            given, self.network, False, micro_batch=max(1, _CHUNK // (self.num_outputs * columns))
        ):
            yield self._linearised(batch)

    def functional_variance(self, x: Any, diagonal: bool = False) -> np.ndarray:
        r"""The covariance of the outputs (logits, or means without the noise),
        :math:`J P^{-1} J^T`.

        Args:
            x: a batch of inputs.
            diagonal: only the variances; for the last layer with "kron" or "diag" much less work.

        Returns:
            (samples, outputs, outputs), or (samples, outputs); float64.

        Raises:
            TypeError, ValueError: `x` is no batch; the network's weights have changed.
        """
        if not isinstance(diagonal, bool):
            raise TypeError(f"diagonal must be a bool, but got {shown(diagonal)}")
        return np.concatenate(
            [
                self.posterior.outputs(rows, not diagonal)
                for rows, _ in self._pieces(x, not diagonal)
            ]
        )

    @interruptible
    def predict(
        self, x: Any, link: str = "probit", *, num_samples: int = 100, seed: int = 0
    ) -> Any:
        """The predictive distribution.

        Args:
            x: a batch of inputs.
            link: of a classification: "probit" (logits / sqrt(1 + pi/8 variance)), "bridge" (the
                Laplace bridge to a Dirichlet distribution) or "mc" (the mean softmax of draws of
                the logits).
            num_samples, seed: of the draws, for "mc".

        Returns:
            Of a classification: probabilities, (samples, classes). Of a regression: the mean,
                (samples, outputs), and the covariance with that of the noise, (samples, outputs,
                outputs). float64.

        Raises:
            TypeError, ValueError: an argument is wrong; the network's weights have changed.
        """
        check_choice("link", link, LINKS)
        check_integer("num_samples", num_samples, 1)
        check_integer("seed", seed, 0)
        if self.likelihood.noisy:
            found = [(f, self.posterior.outputs(rows, True)) for rows, f in self._pieces(x, True)]
            f, covariance = (np.concatenate(part) for part in zip(*found, strict=True))
            return f, covariance + self._sigma**2 * np.eye(f.shape[1])
        rng = np.random.default_rng(seed)
        return np.concatenate(
            [
                self._linked(rows, f, link, num_samples, rng)
                for rows, f in self._pieces(x, link != "probit")
            ]
        )

    def _linked(
        self, rows: Any, f: np.ndarray, link: str, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        spread = self.posterior.outputs(rows, link != "probit")
        if link == "mc":
            return likelihoods.monte_carlo(f, spread, rng.standard_normal((count, *f.shape)))
        return {"probit": likelihoods.probit, "bridge": likelihoods.bridge}[link](f, spread)

    def sample(self, n: int = 1, seed: int = 0) -> np.ndarray:
        """Draws of the weights, (n, size), float64: flat vectors in the order of `parameters`.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        check_integer("n", n, 1)
        check_integer("seed", seed, 0)
        return self.mean + self.posterior.spread(
            np.random.default_rng(seed).standard_normal((n, self.size))
        )

    # --- kept -------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike) -> None:
        """Write the posterior into a file of numpy's (.npz, without pickled objects), in one step.

        It holds the curvature, prior, noise, and what the data had to say, but neither weights nor
        data: `load` asks for the network. As large as the curvature: n x n numbers for "full",
        about those of the factors for "kron".

        Raises:
            TypeError: `path` is no path.
            ValueError: the file cannot be written; the network's weights are others now.
        """
        name = _checkpoint.file_name(path)
        self._check_same()
        about = {
            "version": _VERSION,
            "likelihood": self.likelihood.name,
            "structure": self.structure,
            "rank": self.rank,
            "parameters": self.parameters,
            "misfit": self.misfit,
            "num_data": self.num_data,
            "num_outputs": self.num_outputs,
            "last": None if self.last is None else self.last.name,
            "network": identity(self.network),
        }
        _checkpoint.write(
            name,
            "path",
            laplace=np.array(json.dumps(about)),
            prior=self._prior,
            sigma=np.array(self._sigma),
            **{f"curvature/{key}": array for key, array in self._curvature.stored().items()},
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike, network: nn.Cell, *, progress: bool | None = None
    ) -> Laplace:
        """What `save` wrote: it predicts the same, bit for bit, and `fit` continues it. The network
        is not changed.

        The network must be that of the file: the same Cells by name and class, and the same
        Parameters, to the bit. What its `construct` does is not compared, but that it ends with the
        last layer is, at the first use.

        Args:
            path: of the file.
            network: a Cell in evaluation mode with the weights that it had.
            progress: of passes over the data.

        Raises:
            TypeError: `path` is no path, `network` no Cell.
            ValueError: there is no such file, it is damaged, or none of `save`; it is of another
                network, or of other weights; the network is in training mode with dropout or batch
                norm.

        Examples:
            >>> import mindspore as ms, os, tempfile
            >>> from mindspore import nn
            >>> from mindspore_hessian import Laplace
            >>> net, x = nn.SequentialCell(nn.Dense(1, 1)), ms.Tensor([[1.0], [2.0]])
            >>> path = os.path.join(tempfile.mkdtemp(), "posterior.npz")
            >>> Laplace(net, (x, x), "regression").save(path)
            >>> Laplace.load(path, net).fit((x, x))
            <Laplace of 2 weights (0.weight, 0.bias), full, of 4 samples>
        """
        name = _checkpoint.file_name(path)
        check_trained(network)
        check_progress(progress)
        stored = _checkpoint.read(name, "path")
        if stored is None:
            raise ValueError(f"path {name!r} is not there")
        if "laplace" not in stored:
            raise ValueError(f"path {name!r} holds no Laplace: pass a file that Laplace.save wrote")
        about = json.loads(str(stored["laplace"]))
        if about["version"] != _VERSION:
            raise ValueError(
                f"path {name!r} holds a Laplace of version {about['version']} of the file, but "
                f"this is {_VERSION}: load it with the version of this library that saved it"
            )
        if other := difference(about["network"], identity(network)):
            raise ValueError(
                f"path {name!r} holds the Laplace of another network: {other}. Pass the network "
                "with the weights that it had"
            )
        return cls._restored(network, about, stored, progress)

    @classmethod
    def _restored(
        cls,
        network: nn.Cell,
        about: dict[str, Any],
        stored: dict[str, np.ndarray],
        progress: bool | None,
    ) -> Laplace:
        new = cls.__new__(cls)
        new.likelihood, new.structure, new.rank = (
            LIKELIHOODS[about["likelihood"]],
            about["structure"],
            about["rank"],
        )
        by_name = {p.name: p for p in network.get_parameters()}
        held = Network(network)
        last = (
            None
            if about["last"] is None
            else LastLayer(held, about["last"], dict(network.cells_and_names())[about["last"]])
        )
        new._prepare(
            held, Space.of_weights([by_name[one] for one in about["parameters"]]), last, progress
        )
        new._last_is_sure = last is None
        new._prior, new._sigma = stored["prior"], float(stored["sigma"])
        new.misfit, new.num_data, new.num_outputs = (
            about[key] for key in ("misfit", "num_data", "num_outputs")
        )
        kind = (_STORED if last is None else _STORED_OF_LAST)[new.structure]
        inner = "curvature/"
        new._curvature = kind.restored(
            {key[len(inner) :]: array for key, array in stored.items() if key.startswith(inner)}
        )
        return new

    def __repr__(self) -> str:
        return (
            f"<Laplace of {self.size} weights ({', '.join(self.parameters[:4])}"
            f"{', ...' if len(self.parameters) > 4 else ''}), {self.structure}, of {self.num_data} "
            "samples>"
        )


def _prior_values(value: Any) -> np.ndarray:
    values = np.atleast_1d(as_reals("prior_precision", value))
    if values.ndim != 1 or not values.size or not np.isfinite(values).all() or values.min() <= 0:
        raise ValueError(
            "prior_precision must be a positive number, or a flat array of them, but got "
            f"{shown(value)}"
        )
    return values
