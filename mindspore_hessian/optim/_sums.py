"""What several calls of a training step, or several processes, give for one update."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindspore_hessian import _compat
from mindspore_hessian.core.space import flat_dtype, numpy_dtype, raveled
from mindspore_hessian.operators.distributed import communicator
from mindspore_hessian.optim._bodies import cut, pieces_of

_DIGEST = 16  # bytes of a hash of the weights


class Sums(nn.Cell):
    """Sums of losses, gradients and estimates of curvature over calls, as flat lines.

    They are Parameters, so that a checkpoint between two calls has them. Where a call is
    interrupted it has added all it gives, or nothing.

    Args:
        parameters: the weights.
        estimates: how many numbers an estimate of the curvature has.
        calls: that make an update.
        distributed: whether the processes of a job share it.
    """

    def __init__(self, parameters: Any, estimates: int, calls: int, distributed: bool):
        super().__init__(auto_prefix=False)
        self.dtype, self.pieces = flat_dtype(p.dtype for p in parameters), pieces_of(parameters)
        comm = communicator(distributed, numpy_dtype(self.dtype))
        object.__setattr__(self, "comm", comm)
        object.__setattr__(self, "weights", tuple(parameters))
        self.every, self.calls = calls, calls * comm.size
        self.checked, self.label = comm.size == 1, ""

        def line(name: str, size: int) -> Parameter:
            return Parameter(Tensor(np.zeros(size), self.dtype), name=name, requires_grad=False)

        self.gradients = line("step_gradients", 1 + sum(p.size for p in parameters))
        self.estimates = line("step_estimates", max(estimates, 1))
        self.done = Parameter(Tensor(0, ms.int32), name="step_calls", requires_grad=False)
        self.rows = Parameter(Tensor(0, ms.int32), name="step_rows", requires_grad=False)
        self.one = Tensor(1, ms.int32)

    # --- on the host ------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether all calls for an update are there."""
        return int(_compat.to_numpy(self.done)) >= self.every

    def before(self, rows: int) -> int:
        """The rows that are before those of this call in the batch that all of them make."""
        return int(_compat.to_numpy(self.rows)) * self.comm.size + rows * self.comm.rank

    def together(self, curved: bool) -> contextlib.AbstractContextManager:
        """Around what may fail in one process and not in the others."""
        size = self.gradients.size + (self.estimates.size if curved else 0)
        return self.comm.together(size + 1 + _DIGEST)

    def expect(self, label: str) -> None:
        """At the next update all processes must have this label, and the same weights."""
        self.checked, self.label = self.comm.size == 1, label

    def totals(self, curved: bool) -> tuple[Tensor, ...]:
        """The lines, summed over all processes; nothing where there is one only.

        Raises:
            ValueError: the processes have not the same weights and label.
            DistributedError: a process failed.
        """
        if self.comm.size == 1:
            return ()
        lines = [self.gradients, *([self.estimates] if curved else []), self.rows]
        own = [_compat.to_numpy(line).reshape(-1).astype(np.float64) for line in lines]
        digest = np.zeros(_DIGEST) if self.checked else self._digest()
        total = self.comm.total(np.concatenate([*own, digest]))
        if (total[-_DIGEST:] != self.comm.size * digest).any():
            raise ValueError(
                "network must be the same in each process, but its weights differ (or the layers "
                "that K-FAC covers): set the same seed before it is made, or load the same "
                "checkpoint. Nothing has changed"
            )
        self.checked = True
        ends = np.cumsum([one.size for one in own])
        gradients, *middle, rows, _ = np.split(total, ends)
        estimates = middle[0] if middle else np.zeros(1)
        return (
            Tensor(gradients, self.dtype),
            Tensor(estimates, self.dtype),
            Tensor(rows.astype(np.int32)[0]),
        )

    def _digest(self) -> np.ndarray:
        whole = hashlib.blake2b(self.label.encode(), digest_size=_DIGEST)
        for weight in self.weights:
            whole.update(np.ascontiguousarray(_compat.to_numpy(weight)).tobytes())
        return np.frombuffer(whole.digest(), np.uint8).astype(np.float64)

    def emptied(self) -> None:
        """Begin anew."""
        for one in (self.gradients, self.estimates, self.rows, self.done):
            _compat.assign(one, np.zeros(one.shape))

    # --- in graphs --------------------------------------------------------------------------------

    def added(self, value, gradients, estimates, rows):
        """Add what a call gives. MindSpore compiles this."""
        line = raveled((value,) + gradients, self.dtype)
        done = (
            ops.assign(self.gradients, self.gradients + line),
            ops.assign_add(self.done, self.one),
            ops.assign_add(self.rows, self.one * rows),
        )
        if len(estimates) == 0:
            return done
        return done + self.more(estimates)

    def more(self, estimates):
        """Add to the estimates alone. MindSpore compiles this."""
        return (ops.assign(self.estimates, self.estimates + raveled(estimates, self.dtype)),)

    def means(self, totals):
        """Of the loss, the gradients and the line of estimates, and the rows in all. MindSpore
        compiles this.
        """
        lines = totals
        if len(totals) == 0:
            lines = (self.gradients, self.estimates, self.rows)
        value = lines[0][0] / self.calls
        return value, cut(lines[0][1:], self.pieces, self.calls), lines[1] / self.calls, lines[2]

    def cleared(self, after):
        """Begin anew, after something. MindSpore compiles this."""
        done = ()
        for one in (self.gradients, self.estimates, self.done, self.rows):
            done = done + (ops.assign(one, ops.depend(ops.zeros_like(one), after)),)
        return done
