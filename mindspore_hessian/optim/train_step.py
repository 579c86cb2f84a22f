"""A training step that computes gradients, curvature and the update in one compiled graph."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindspore_hessian import _compat
from mindspore_hessian._interrupt import interruptible
from mindspore_hessian.arguments import check_bool, check_integer, check_real, shown
from mindspore_hessian.optim._bodies import Graphs, compiled, finish, part, whole
from mindspore_hessian.optim._kfac_step import KFACStep
from mindspore_hessian.optim._optimizer import CurvedOptimizer
from mindspore_hessian.optim._sums import Sums
from mindspore_hessian.optim.kfac import KFAC

_MOST = 4  # inputs of a step
_LABELS = (ms.int32, ms.int64)


def probe(seed: int, step: int, size: int) -> np.ndarray:
    """The random signs of a step, counted from 0: int8, of shape (size,)."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    bits = np.unpackbits(np.frombuffer(generator.bytes(size // 8 + 1), np.uint8))[:size]
    return 2 * bits.astype(np.int8) - 1


def uniforms(seed: int, step: int, shape: tuple[int, ...], before: int = 0) -> np.ndarray:
    """The numbers in [0, 1) that the labels of a step are drawn with, in float32, but for the first
    ones.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,)))
    size = int(np.prod(shape, dtype=np.int64))
    return generator.random(before + size, np.float32)[before:].reshape(shape)


def _estimated(optimizer: nn.Optimizer) -> int:
    """How many numbers its estimate of the curvature has."""
    if isinstance(optimizer, KFAC):
        return optimizer.moments.size
    known = isinstance(optimizer, CurvedOptimizer)
    return sum(parameter.size for parameter in optimizer.parameters) if known else 0


class TrainStep(nn.Cell):
    r"""One training step: loss, gradients, curvature and update in one compiled graph.

    ``step(x, y)`` trains the network; so does ``Model(step).train(epochs, data,
    dataset_sink_mode=False)``. The loss is ``loss_fn(network(x), y)``. Where the optimizer wants
    curvature at every k-th step only, there are two graphs, with and without. In both modes the
    step is compiled, for each shape of inputs and each setting of training flags anew; networks
    need no change.

    With `accumulate`, so many calls make one update, of the mean of their gradients and of what they
    say of the curvature: what one batch of all their samples gives, where the loss is a mean over
    samples, the calls have equally many of them, and the network takes samples one by one (batch
    norm in training does not). The random vector is the same in all of them, labels are drawn for
    each sample, and squared is the mean (Gauss-Newton-Bartlett). It costs a copy of the weights, or
    two, and a pass over them. With `distributed`, the processes that ``msrun`` started, each with a
    batch of its own, do the same together; the weights must be alike at the start, and remain so.
    There is one exchange for each update, of all gradients and estimates, by way of the host.

    The random vector of a step depends on `seed` and on ``optimizer.global_step`` alone, so that
    training goes on from a checkpoint of this Cell (weights, moments, step) as if it had not
    stopped.

    Args:
        network: the Cell to train. ``network.set_train()`` is for the caller, as everywhere.
        loss_fn: a Cell or function of the network's output and the last input, which returns one
            number; None where the network itself returns the loss.
        optimizer: `AdaHessian`, `Sophia` or `KFAC` (or another `nn.Optimizer`, which then gets its
            gradients). K-FAC's step is two graphs, with the inverses between them, and looks at the
            network with the first batch.
        seed: of the random vectors.
        clip_norm: the gradients are scaled to at most this norm, over all weights together; None
            for no clipping. With several calls or processes their mean is scaled.
        accumulate: how many calls make one update. ``optimizer.global_step``, and with it schedules,
            counts updates. Not more than 1 with an adaptive `KFAC`.
        distributed: the calls of all processes of the job (see `distributed.session`) make one
            update. Not with a `KFAC` that is adaptive, or has its inverses found in the background.

    Inputs:
        Up to four Tensors, with the target last.

    Outputs:
        Tensor, the loss of this call's batch, before the step. Where it, a gradient or the curvature
        is NaN or Inf, the three leave weights and moments as they are, and count it in
        ``optimizer.skipped``; with several calls or processes that is so for all of them.

    Raises:
        TypeError, ValueError: a wrong argument; at the first update, processes with unlike weights.
        NotCompilableError, MissingRuleError: at the first step, as `grad_and_hvp`.
        DistributedError: the process is in no job, or another process failed.

    Supported Platforms:
        ``CPU`` (tested); ``Ascend`` ``GPU`` (not run on a device). Not in data sink mode, nor in a
        graph of your own.

    Source:
        M. Hutchinson, A stochastic estimator of the trace of the influence matrix, Comm. Statist.
        18(3), 1989; B. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation
        6(1), 1994.

    Examples:
        >>> import mindspore as ms, numpy as np
        >>> from mindspore import nn
        >>> from mindspore_hessian import optim
        >>> layers = nn.Dense(2, 8, 0.5, 0.0), nn.GELU(), nn.Dense(8, 2, 0.5, 0.0)
        >>> net = nn.SequentialCell(*layers)
        >>> optimizer = optim.Sophia(net.trainable_params(), 0.02, estimator="gnb")
        >>> step = optim.TrainStep(net.set_train(), nn.CrossEntropyLoss(), optimizer, seed=1)
        >>> x, y = ms.Tensor([[1.0, 2.0], [3.0, -1.0]]), ms.Tensor([1, 0], ms.int32)
        >>> losses = [float(step(x, y).asnumpy()) for _ in range(30)]
        >>> print(losses[0] > losses[-1], optimizer.global_step.asnumpy())
        True [30]

        Two calls for one update:

        >>> optimizer = optim.AdaHessian(net.trainable_params(), 0.02)
        >>> step = optim.TrainStep(net, nn.CrossEntropyLoss(), optimizer, accumulate=2)
        >>> losses = [step(x[row : row + 1], y[row : row + 1]) for row in (0, 1)]
        >>> print(optimizer.global_step.asnumpy())
        [1]
    """

    def __init__(
        self,
        network: Any,
        loss_fn: Any,
        optimizer: Any,
        seed: int = 0,
        *,
        clip_norm: float | None = None,
        accumulate: int = 1,
        distributed: bool = False,
    ):
        if not isinstance(network, nn.Cell):
            raise TypeError(f"network must be an nn.Cell, but got {shown(network)}")
        if loss_fn is not None and (not callable(loss_fn) or isinstance(loss_fn, type)):
            raise TypeError(
                f"loss_fn must be an nn.Cell, a function or None, but got {shown(loss_fn)}"
            )
        if not isinstance(optimizer, nn.Optimizer):
            raise TypeError(
                "optimizer must be an nn.Optimizer, such as optim.AdaHessian, but got "
                f"{shown(optimizer)}"
            )
        check_integer("seed", seed, 0)
        if clip_norm is not None:
            check_real("clip_norm", clip_norm)
        known = {id(parameter) for parameter in network.get_parameters()}
        others = [p.name for p in optimizer.parameters if id(p) not in known]
        if others and loss_fn is None:
            raise ValueError(
                "optimizer has Parameters that are not in network: "
                f"{', '.join(map(repr, others[:3]))}"
            )
        self._check_kind(optimizer, loss_fn)
        check_integer("accumulate", accumulate, 1)
        check_bool("distributed", distributed)
        sums = None
        if accumulate > 1 or distributed:
            if getattr(optimizer, "adaptive", False):
                raise ValueError(
                    f"{'accumulate' if accumulate > 1 else 'distributed'} is not for KFAC with "
                    "adaptive=True, whose quadratic model is of one batch: leave one of them out"
                )
            if distributed and getattr(optimizer, "background", False):
                raise ValueError(
                    "distributed is not for KFAC with background=True, since the processes would "
                    "take their inverses at different steps: leave one of them out"
                )
            sums = Sums(
                optimizer.parameters, _estimated(optimizer), int(accumulate), bool(distributed)
            )
        kfac = (
            KFACStep(network, loss_fn, optimizer, int(seed), clip_norm, sums)
            if isinstance(optimizer, KFAC)
            else None
        )
        super().__init__(auto_prefix=False)
        object.__setattr__(self, "_kfac", kfac)
        self.network, self.optimizer, self.seed, self.clip_norm = (
            network,
            optimizer,
            int(seed),
            clip_norm,
        )
        self.sums = sums
        if isinstance(loss_fn, nn.Cell):
            self.loss_fn = loss_fn
        object.__setattr__(self, "_loss", loss_fn)
        object.__setattr__(self, "_graphs", Graphs(network, loss_fn))

    @staticmethod
    def _check_kind(optimizer: nn.Optimizer, loss_fn: Any) -> None:
        if getattr(optimizer, "estimator", "") == "gnb" and loss_fn is None:
            raise ValueError(
                "loss_fn must be given with estimator='gnb', which draws labels from the network's "
                "output"
            )

    def construct(self, *inputs):
        raise NotImplementedError(
            "TrainStep is compiled by itself: call step(*inputs) from Python, and train with "
            "dataset_sink_mode=False"
        )

    @interruptible
    def __call__(self, *inputs: Any) -> Tensor:
        if self.sums is not None and self.sums.due():  # an update that was interrupted: anew
            self.sums.emptied()
        if self._kfac is not None:
            return self._kfac(inputs, self._check_inputs)
        done = int(_compat.to_numpy(self.optimizer.global_step)[0])
        kind, sums = self._kind(done), self.sums
        if sums is None:
            return self._run(kind, done, inputs)
        curved = kind != "plain"
        with sums.together(curved):
            value = self._run(kind, done, inputs)
        if not sums.due():
            return value
        tensors = (value, *sums.totals(curved))

        def make() -> Any:
            return compiled(finish(kind, self.optimizer, sums, self.clip_norm), tensors)

        return self._graphs.graph(("update", kind), (), make)(tensors)

    def _run(self, kind: str, done: int, inputs: tuple) -> Tensor:
        """The step, or what it takes into the sums."""
        self._check_inputs(inputs)
        tensors = (*inputs, *self._noise(kind, done, inputs))
        key = (
            kind,
            len(inputs),
            tuple((tuple(t.shape), str(t.dtype)) for t in tensors),
            tuple(cell.training for _, cell in self.cells_and_names()),
        )

        def make() -> Any:
            given = (kind, self.network, self._loss, self.optimizer, len(inputs))
            body = whole(*given, self.clip_norm) if self.sums is None else part(*given, self.sums)
            return compiled(body, tensors)

        return self._graphs.graph(key, self._graphs.token(), make)(tensors)

    def _check_inputs(self, inputs: tuple) -> None:
        least = 1 if self._loss is None else 2
        if not least <= len(inputs) <= _MOST:
            raise ValueError(
                f"inputs must be {least} to {_MOST} Tensors, the target last, but there are "
                f"{len(inputs)}"
            )
        for number, value in enumerate(inputs):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"inputs must be Tensors, but input {number} is a {type(value).__name__}"
                )

    def _kind(self, done: int) -> str:
        """What kind of step it is."""
        optimizer = self.optimizer
        curved = isinstance(optimizer, CurvedOptimizer) and done % optimizer.update_interval == 0
        return optimizer.estimator if curved else "plain"

    def _noise(self, kind: str, done: int, inputs: tuple) -> tuple[Tensor, ...]:
        """The random Tensor that a step takes."""
        if kind == "plain":
            return ()
        if kind == "gnb":
            if inputs[-1].dtype not in _LABELS:
                raise TypeError(
                    "estimator='gnb' draws labels, so the last of inputs must be labels, int32 or "
                    f"int64, but it has dtype {inputs[-1].dtype}. For other targets: "
                    "estimator='hutchinson'"
                )
            before = 0 if self.sums is None else self.sums.before(inputs[-1].size)
            return (Tensor(uniforms(self.seed, done, tuple(inputs[-1].shape), before)),)
        size = sum(parameter.size for parameter in self.optimizer.parameters)
        return (Tensor(probe(self.seed, done, size)),)
