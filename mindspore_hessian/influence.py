"""Influence: which training samples a loss at test samples hangs on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from mindspore import nn
from scipy.linalg import LinAlgError, solve

from mindspore_hessian import _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import (
    as_reals,
    check_bool,
    check_choice,
    check_integer,
    check_progress,
    check_real,
    shown,
)
from mindspore_hessian.core.space import Space
from mindspore_hessian.estimators.solve import check_preconditioner
from mindspore_hessian.linops import Operator, inverse
from mindspore_hessian.operators import weights as weight_choice
from mindspore_hessian.operators.checks import check_cell, check_trained
from mindspore_hessian.operators.data import Data, leaves
from mindspore_hessian.operators.distributed import communicator
from mindspore_hessian.operators.ggn import GGNOperator
from mindspore_hessian.operators.hessian import HessianOperator
from mindspore_hessian.operators.kfac import EKFACOperator, KFACOperator
from mindspore_hessian.operators.progress import bar
from mindspore_hessian.operators.risk import BatchRunner
from mindspore_hessian.operators.samples import GRADIENTS, Samples
from mindspore_hessian.typing import WeightNames

CURVATURES: dict[str, Callable] = {
    "ggn": GGNOperator,
    "hessian": HessianOperator,
    "kfac": KFACOperator,
    "ekfac": EKFACOperator,
}
STRUCTURED = ("kfac", "ekfac")
_MADE = 2**22  # numbers of truncated answers that are put together at once
METHODS = ("auto", "dense", "iterative")
_DENSE = 2000  # weights up to which "auto" forms the matrix
WHICH: dict[str, Callable] = {
    "helpful": lambda scores: scores,
    "harmful": lambda scores: -scores,
    "largest": lambda scores: -np.abs(scores),
}


class _Question:
    """The checked arguments that `influence` and `self_influence` share, and what is computed of
    them.
    """

    def __init__(
        self,
        network: Any,
        loss_fn: Any,
        train: Any,
        *,
        curvature: Any,
        damping: Any,
        weights: Any,
        method: Any,
        tol: Any,
        preconditioner: Any,
        rank: Any,
        per_layer: Any,
        distributed: Any,
        progress: Any,
        options: dict[str, Any],
    ):
        check_cell(network)
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be callable, but got {shown(loss_fn)}")
        if not isinstance(curvature, Operator):
            check_choice("curvature", curvature, CURVATURES)
        check_real("damping", damping, strict=False)
        check_choice("method", method, METHODS)
        check_real("tol", tol)
        check_bool("per_layer", per_layer)
        check_progress(progress)
        check_trained(network, ", so that samples have no losses of their own")
        self.network, self.loss_fn, self.progress, self.tol = network, loss_fn, progress, tol
        self.space = weight_choice.choose(network, weights)
        self.damping, self.method, self.size = float(damping), method, self.space.size
        if isinstance(curvature, Operator) and curvature.shape != (self.size, self.size):
            raise ValueError(
                f"curvature is an operator of shape {curvature.shape}, but there are {self.size} "
                "weights"
            )
        if isinstance(curvature, Operator) and options:
            raise ValueError(
                f"{', '.join(options)}: options of the curvature are for one that is made here, "
                "but curvature is an operator"
            )
        self._curvature, self._options, self.per_layer = curvature, options, per_layer
        self._check_solving(preconditioner, rank)
        self.comm = communicator(distributed, np.dtype(np.float64))
        if distributed and not isinstance(curvature, Operator):
            self._options = {**options, "distributed": True}
        self.train = Data(train, network, True)
        self._raw = train

    def _check_solving(self, preconditioner: Any, rank: Any) -> None:
        """How the systems are solved: `_dense` or `iterative`, and the options of `inverse`."""
        structured = (
            self._curvature.structured
            if isinstance(self._curvature, Operator)
            else self._curvature in STRUCTURED
        )
        if preconditioner is not None:
            check_preconditioner(preconditioner, rank, self.size)
            if structured or self.method == "dense":
                why = "curvature has structure" if structured else "method is 'dense'"
                raise ValueError(
                    f"preconditioner is for systems that are solved by iteration, but {why}: leave "
                    "it out"
                )
        small = self.method == "auto" and preconditioner is None and self.size <= _DENSE
        self._dense = not structured and (self.method == "dense" or small)
        self.iterative = not (structured or self._dense)
        self._system = {"tol": self.tol, "preconditioner": preconditioner, "rank": rank}

    def operator(self) -> Operator:
        """That of the mean loss."""
        if isinstance(self._curvature, Operator):
            return self._curvature
        op = CURVATURES[self._curvature](
            self.network,
            self.loss_fn,
            self._raw,
            self.space,
            progress=self.progress,
            **self._options,
        )
        return op if op.reduction == "mean" else op.scaled(1 / op.num_data)

    def solver(self) -> Callable[[np.ndarray], np.ndarray]:
        """(C + d I)^-1 of rows."""
        op = self.operator()
        if not self._dense:
            inverted = inverse(op, self.damping, **self._system)
            return lambda rows: inverted.columns(rows.T).T
        matrix = op.to_dense().astype(np.float64)
        matrix = (matrix + matrix.T) / 2 + self.damping * np.eye(self.size)
        return lambda rows: _solved(matrix, rows.T).T

    def gradients(self, what: str, data: Data) -> Iterator[np.ndarray]:
        """Of the losses of single samples, a batch at a time, (samples, weights)."""
        runner = BatchRunner(self.network, self.loss_fn, self.space)
        samples = Samples(runner)
        with bar(what, data.count() or 0, self.progress, self.comm.rank) as shown_bar:
            for batch in data:
                if not batch.targets:
                    raise ValueError(
                        f"{what}: batch {batch.number} must have a target after the inputs, (x, y)"
                    )
                runner.check_labels(batch)
                rows = samples.rows(batch, GRADIENTS).astype(np.float64)
                if not np.isfinite(rows).all():
                    raise ValueError(f"{what}: a gradient of batch {batch.number} holds NaN or Inf")
                yield rows
                shown_bar.update()

    def answers(self, test: Any, places: list[_Place], rank: int | None) -> list[list[_Answer]]:
        """Of the test samples all at once, by places; or, where they are truncated, a batch at a
        time.
        """
        data = Data(test, self.network, True)
        batches = self.gradients("test", data)
        with self.comm.together(self.comm.size):
            if rank is None:
                batches = iter([np.concatenate(list(batches))])
            token = 0.0 if self.comm.size == 1 else _token(data)
        if len(np.unique(self.comm.joined(np.array([token])))) > 1:
            raise ValueError(
                "test must be the same on all processes (train is what is shared out), but differs"
            )
        solved = self.solver()
        return [
            [_Answer.of(rows[:, place.where], place.shape, rank) for place in places]
            for rows in map(solved, batches)
        ]

    def scores(
        self, parts: Callable[[np.ndarray], Iterable[np.ndarray]], places: list[_Place]
    ) -> Any:
        """Minus what `parts` makes of the gradients of each training batch, by places, for the
        samples of all processes; by layers where that was asked for.
        """
        with self.comm.together(self.comm.size):
            found = [_by_name(places, parts(rows)) for rows in self.gradients("train", self.train)]
            own = {name: np.concatenate([one[name].T for one in found]) for name in found[0]}
        scores = {name: -self.comm.joined(rows).T for name, rows in own.items()}
        return scores if self.per_layer else scores[""]


def _token(data: Data) -> float:
    """Of the numbers of all batches."""
    token = 0
    for batch in data:
        for leaf in leaves((batch.args, batch.kwargs, batch.targets)):
            token = zlib.crc32(_compat.to_numpy(leaf).tobytes(), token)
    return float(token)


class _Place(NamedTuple):
    """Some of the weights: where they are in a flat vector, and what their part of a score is
    called.
    """

    name: str
    where: slice
    shape: tuple[int, ...] = ()


def _places(space: Space, per_layer: bool, apart: bool) -> list[_Place]:
    """All weights at once, or each Parameter, with the name of its layer where that is asked for."""
    if not (per_layer or apart):
        return [_Place("", slice(None))]
    return [
        _Place(weight_choice.layer_of(weight.name) if per_layer else "", where, tuple(weight.shape))
        for weight, where in zip(space.weights, space.slices, strict=True)
    ]


def _by_name(places: list[_Place], parts: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """The sums of the parts of one name."""
    out: dict[str, np.ndarray] = {}
    for place, part in zip(places, parts, strict=True):
        out[place.name] = out[place.name] + part if place.name in out else part
    return out


class _Answer(NamedTuple):
    """(C + d I)^-1 g by some of the weights: rows, (tests, size), or their two factors as matrices,
    (tests, outputs, r) and (tests, r, inputs).
    """

    parts: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, rows: np.ndarray, shape: tuple[int, ...], rank: int | None) -> _Answer:
        """Truncated, where that is of a matrix and holds fewer numbers; then nothing else is kept of
        the vectors that rows are cut from.
        """
        size = rows.shape[1]
        if rank is None or len(shape) < 2 or rank * (shape[0] + size // shape[0]) >= size:
            return cls((rows if rank is None else np.ascontiguousarray(rows),))
        u, values, vt = np.linalg.svd(rows.reshape(len(rows), shape[0], -1), full_matrices=False)
        return cls((u[:, :, :rank] * values[:, None, :rank], np.ascontiguousarray(vt[:, :rank])))

    def times(self, rows: np.ndarray) -> np.ndarray:
        """(tests, samples), for rows of (samples, size)."""
        size, tests = rows.shape[1], len(self.parts[0])
        if len(self.parts) == 1:
            return self.parts[0] @ rows.T
        out, most = np.empty((tests, len(rows))), max(1, _MADE // size)
        for start in range(0, tests, most):
            left, right = (one[start : start + most] for one in self.parts)
            out[start : start + most] = (left @ right).reshape(-1, size) @ rows.T
        return out


def _times(
    answers: list[list[_Answer]], places: list[_Place], rows: np.ndarray
) -> Iterator[np.ndarray]:
    """The products of the answers, of each batch by places, with gradients: for each place (tests,
    samples).
    """
    for place, *parts in zip(places, *answers, strict=True):
        yield np.concatenate([one.times(rows[:, place.where]) for one in parts])


def _squares(places: list[_Place], rows: np.ndarray, answers: np.ndarray) -> Iterator[np.ndarray]:
    """The products of gradients with their own answers: for each place (samples,)."""
    for place in places:
        yield np.einsum("np,np->n", rows[:, place.where], answers[:, place.where])


def _solved(matrix: np.ndarray, columns: np.ndarray) -> np.ndarray:
    try:
        return solve(matrix, columns, assume_a="sym")
    except LinAlgError as err:
        raise ValueError(
            "the curvature with this damping is singular to working precision: pass a larger "
            "damping"
        ) from err


@interruptible
def influence(
    network: nn.Cell,
    loss_fn: Callable[..., Any],
    train: Any,
    test: Any,
    *,
    curvature: str | Operator = "ggn",
    damping: float = 1e-3,
    weights: WeightNames = None,
    method: Literal["auto", "dense", "iterative"] = "auto",
    tol: float = 1e-4,
    preconditioner: Any = None,
    rank: int = 50,
    per_layer: bool = False,
    query_rank: int | None = None,
    distributed: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Any:
    r"""The influence of each training sample on the loss at each test sample,
    :math:`-g_t^T (C + d I)^{-1} g_n`.

    g are the gradients of the losses of single samples, C is the curvature of the mean loss over
    `train`, d the damping, which is the coefficient of the regulariser :math:`\frac d2 |w|^2` where
    the network was trained with one. The score is the derivative of the loss at t by the weight of
    sample n in the sum that was minimised: without the sample, that loss changes by about minus the
    score over N. A negative score is of a sample that helps.

    Costs a gradient for each sample, the curvature, and solving a system for each test sample: with
    the matrix ("dense": n products), by a product of the Kronecker structure ("kfac", "ekfac"), or
    by conjugate gradients for all test samples together ("iterative"; by MINRES for one after
    another where C + d I has a negative eigenvalue). Holds the answers for the test samples,
    :math:`(C + d I)^{-1} g_t`, and one batch of the gradients of the training samples.

    Args:
        network: a Cell in evaluation mode.
        loss_fn: ``loss_fn(output, target)`` returns one number, the mean or the sum over samples,
            without regulariser.
        train, test: as `HessianOperator` has data.
        curvature: "ggn", "hessian", "kfac", "ekfac" (with separate biases), or an `Operator` over
            the flat vector of the weights that is the curvature of the mean loss.
        damping: d, at least 0.
        weights: as `HessianOperator` has them; None: all trainable.
        method: for a curvature without structure: "dense", "iterative", or "auto": dense up to
            2,000 weights.
        tol: of the relative residual of each system, for "iterative": about what float32 reaches
            where d is 1e-4 of the largest eigenvalue. The scores are as near, or nearer.
        preconditioner, rank: for "iterative", as `solve` has them: "nystrom", or an operator that
            approximates :math:`(C + d I)^{-1}`, such as ``inverse(KFACOperator(...), d)``. "auto" is
            then iterative.
        per_layer: the scores of each layer, whose sum is that of the whole: the part of the inner
            product that is by the layer's weights.
        query_rank: keep of the answers of each weight matrix, (outputs, inputs) or a convolution's
            (outputs, rest), the largest so many singular values, as r (outputs + inputs) numbers a
            test sample, and solve for the test samples of a batch at a time. What has one axis
            (biases, scales) is kept whole, and so is a matrix of which that many values are no
            fewer numbers. None: the answers as they are.
        distributed: `train` is the part of this process, and `test` the same on all processes of
            the job; the curvature is that of all parts (one that is an operator must have been made
            so). The scores are of the training samples of all processes, in the order of their
            ranks, on each of them.
        progress: as `HessianOperator` has it.
        **options: of the curvature, as its operator has them.

    Returns:
        (samples of test, samples of train), float64, in the order of the data; for `per_layer` a
            dict of these, by the names of the layers.

    Raises:
        TypeError, ValueError: a wrong argument; a singular curvature; a system that is not solved
            to `tol`; a gradient with NaN or Inf.
        NotDeterministicError, NotCompilableError, MissingRuleError, DistributedError: as the
            operator of the curvature.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        P. W. Koh and P. Liang, Understanding black-box predictions via influence functions, ICML
        2017; R. Grosse et al., Studying large language model generalization with influence
        functions, 2023 ("ekfac"; section 3.2.2: answers of low rank).

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import influence
        >>> net = nn.SequentialCell(nn.Dense(1, 1, weight_init="ones", has_bias=False))
        >>> train = ms.Tensor([[1.0], [2.0]]), ms.Tensor([[0.0], [2.5]])
        >>> print(influence(net, nn.MSELoss(), train, train, damping=0.0).round(4))
        [[-0.8  0.8]
         [ 0.8 -0.8]]
        >>> by_layer = influence(net, nn.MSELoss(), train, train, damping=0.0, per_layer=True)
        >>> print({name: scores.round(4).tolist() for name, scores in by_layer.items()})
        {'0': [[-0.8, 0.8], [0.8, -0.8]]}
    """
    question = _Question(
        network,
        loss_fn,
        train,
        curvature=curvature,
        damping=damping,
        weights=weights,
        method=method,
        tol=tol,
        preconditioner=preconditioner,
        rank=rank,
        per_layer=per_layer,
        distributed=distributed,
        progress=progress,
        options=options,
    )
    if query_rank is not None:
        check_integer("query_rank", query_rank, 1)
    places = _places(question.space, per_layer, query_rank is not None)
    answers = question.answers(test, places, query_rank)
    return question.scores(lambda rows: _times(answers, places, rows), places)


@interruptible
def self_influence(
    network: nn.Cell,
    loss_fn: Callable[..., Any],
    train: Any,
    *,
    curvature: str | Operator = "ggn",
    damping: float = 1e-3,
    weights: WeightNames = None,
    method: Literal["auto", "dense", "iterative"] = "auto",
    tol: float = 1e-4,
    preconditioner: Any = None,
    rank: int = 50,
    per_layer: bool = False,
    distributed: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Any:
    r"""The influence of each training sample on its own loss, :math:`-g_n^T (C + d I)^{-1} g_n`.

    The most negative are of samples that the network would not predict without them: mislabelled
    ones are among these. Costs a gradient and a system for each sample of `train`.

    Args:
        network, loss_fn, train, curvature, damping, weights, method, tol, preconditioner, rank,
            per_layer, distributed, progress, **options: as `influence` has them; "iterative" solves
            for the samples of a batch together, and is not for `distributed`.

    Returns:
        (samples,), float64, in the order of the data; none positive where the curvature is
        positive. For `per_layer` a dict of these, by the names of the layers.

    Raises:
        TypeError, ValueError, NotDeterministicError, NotCompilableError, MissingRuleError,
            DistributedError: as `influence`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source:
        P. W. Koh and P. Liang, Understanding black-box predictions via influence functions, ICML
        2017 (section 5.4).

    Examples:
        >>> import mindspore as ms
        >>> from mindspore import nn
        >>> from mindspore_hessian import self_influence
        >>> net = nn.SequentialCell(nn.Dense(1, 1, weight_init="ones", has_bias=False))
        >>> train = ms.Tensor([[1.0], [2.0]]), ms.Tensor([[0.0], [2.5]])
        >>> print(self_influence(net, nn.MSELoss(), train, damping=0.0).round(4))
        [-0.8 -0.8]
    """
    question = _Question(
        network,
        loss_fn,
        train,
        curvature=curvature,
        damping=damping,
        weights=weights,
        method=method,
        tol=tol,
        preconditioner=preconditioner,
        rank=rank,
        per_layer=per_layer,
        distributed=distributed,
        progress=progress,
        options=options,
    )
    if distributed and question.iterative:
        raise ValueError(
            "distributed=True is not for systems that are solved by iteration, of which each process "
            "has its own: take curvature 'kfac' or 'ekfac', or method='dense'"
        )
    places, solved = _places(question.space, per_layer, False), question.solver()
    return question.scores(lambda rows: _squares(places, rows, solved(rows)), places)


@dataclass(frozen=True, eq=False)
class Influential:
    """The training samples that `most_influential` found; printed as a table.

    Attributes:
        indices: (tests, k), of the training samples, the first is first in rank.
        scores: (tests, k), theirs.
        which: what was asked for.
    """

    indices: np.ndarray
    scores: np.ndarray
    which: str

    def __str__(self) -> str:
        lines = [f"{'test':>6}  {self.which}: training sample (score)"]
        for number, (indices, scores) in enumerate(zip(self.indices, self.scores, strict=True)):
            lines.append(
                f"{number:>6}  "
                + "  ".join(
                    f"{index} ({score:.3g})" for index, score in zip(indices, scores, strict=True)
                )
            )
        return "\n".join(lines)


def most_influential(
    scores: Any, k: int = 5, which: Literal["helpful", "harmful", "largest"] = "helpful"
) -> Influential:
    """The training samples of the `k` first scores, for each test sample.

    Args:
        scores: of `influence`, (tests, samples), or of one test sample or `self_influence`,
            (samples,).
        k: how many; at most as many as there are samples.
        which: "helpful" (the most negative: with more of the sample, the loss falls), "harmful"
            (the most positive) or "largest" (by magnitude).

    Returns:
        Influential.

    Raises:
        TypeError, ValueError: an argument is wrong.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Examples:
        >>> from mindspore_hessian import most_influential
        >>> print(most_influential([[0.5, -2.0, 1.0]], k=2))
          test  helpful: training sample (score)
             0  1 (-2)  0 (0.5)
    """
    table = np.atleast_2d(as_reals("scores", scores))
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError(
            "scores must be finite, of shape (tests, samples) or (samples,), but have shape "
            f"{table.shape}{'' if np.isfinite(table).all() else ' and hold NaN or Inf'}"
        )
    check_integer("k", k, 1, table.shape[1])
    check_choice("which", which, WHICH)
    indices = np.argsort(WHICH[which](table), axis=1, kind="stable")[:, :k]
    return Influential(indices, np.take_along_axis(table, indices, axis=1), which)
