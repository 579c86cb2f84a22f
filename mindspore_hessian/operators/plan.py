"""What a product will cost, from one that was measured."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian.arguments import is_integer, shown
from mindspore_hessian.device import device_info, instructions_advice

if TYPE_CHECKING:
    from mindspore_hessian.operators.curvature import CurvatureOperator


@dataclass(frozen=True)
class Plan:
    """An estimate of ``op @ V``, and the settings that keep it within a limit of memory.

    Attributes:
        columns: of V.
        seconds: expected for all of them, after compilation; an upper bound, as several columns at
            once can cost less.
        compile_seconds: what compiling the product for the first batch took just now (0: it was
            compiled before).
        vector_bytes: V and A V, and the float64 sum.
        working_bytes: by how much one product of one column with the first batch raised the memory
            of the process (of the device, on GPU and Ascend). MindSpore keeps what it once took, so
            it is measured at the first product of a process; later it is a lower bound.
        data_bytes: the batches of a pipeline that are kept (see `keep_data`); 0: none.
        remark: what else makes it slow; empty: nothing is known.
        chunk_size, micro_batch: for the operator's arguments of these names; None: no need to cut
            (columns that are multiplied one after another take the memory of one).
    """

    columns: int
    seconds: float
    compile_seconds: float
    vector_bytes: int
    working_bytes: int
    chunk_size: int | None
    micro_batch: int | None
    data_bytes: int = 0
    remark: str = ""

    def __str__(self) -> str:
        sizes = {"chunk_size": self.chunk_size, "micro_batch": self.micro_batch}
        cut = ", ".join(f"{name}={size}" for name, size in sizes.items() if size)
        return (
            f"{self.columns} columns: about {self.seconds:.3g} s, {self.vector_bytes / 2**20:.1f} "
            f"MiB of vectors, {self.working_bytes / 2**20:.1f} MiB of work a column"
            + (f", {self.data_bytes / 2**20:.1f} MiB of data kept" if self.data_bytes else "")
            + (f" ({cut})" if cut else "")
            + (f". {self.remark}" if self.remark else "")
        )


WIDTHS = (64, 8)
# Columns up to which a product of several at once does not pay: its first call takes 4 to 15 s
# instead of 1 to 3. On the CPU it then saves 1 to 12 ms a column, or nothing (ci/bench/at_once.py);
# on the others, where starting kernels takes the time, more.
FEW, FEW_ON_CPU = 4, 1024


def default_chunk(size: int) -> int:
    """Columns at a time: the vectors of a chunk take at most 64 MiB, and there are at most 64 of
    them.
    """
    return 1 << max(0, min(6, (2**26 // (8 * size)).bit_length() - 1))


def chunks(columns: int, chunk_size: int | None, size: int, backend: str) -> list[tuple[int, bool]]:
    """Widths of the chunks in which `columns` are multiplied, and whether their columns are
    multiplied at once rather than one after another; a chunk at once may be wider than what is
    left.

    Widths are compiled, so there are few; and one is used where it is filled by more than half.
    """
    most = chunk_size or default_chunk(size)
    few = FEW_ON_CPU if backend == "CPU" and chunk_size is None else FEW
    widths = (
        [w for w in ((chunk_size,) if chunk_size else WIDTHS) if FEW < w <= most]
        if columns > few
        else []
    )
    out, left = [], columns
    while left > 0:
        width = next((w for w in widths if left > w // 2), None)
        out.append((width or min(most, left), width is not None))
        left -= out[-1][0]
    return out


def plan(op: CurvatureOperator, columns: int, max_memory: int | None) -> Plan:
    """See `CurvatureOperator.plan`.

    Raises:
        ValueError: not positive numbers.
    """
    for name, number in (("columns", columns), ("max_memory", max_memory)):
        if name == "max_memory" and number is None:
            continue
        if not is_integer(number) or number < 1:  # type: ignore[operator]
            raise ValueError(f"{name} must be a positive int, but got {shown(number)}")
    size = op.shape[0]
    batch = op.risk.data.first()
    kernel, extras = op._make(batch, 0)
    vector = Tensor(np.ones(size, op.dtype))

    def once() -> float:
        start = time.perf_counter()
        _compat.to_numpy(op.risk.run(batch, kernel, (*extras, vector)))
        return time.perf_counter() - start

    with _PeakMemory() as peak:
        first = once()
    second = min(once() for _ in range(2))
    working = max(peak.growth, 4 * size * op.dtype.itemsize)
    most, micro = op.chunk_size or default_chunk(size), op.risk.data.micro_batch
    if max_memory is not None:
        most = min(most, max(1, max_memory // working))
        if working > max_memory:
            micro = max(1, batch.size * max_memory // working)
    at_once = any(
        together for _, together in chunks(columns, op.chunk_size, size, device_info().backend)
    )
    return Plan(
        columns,
        second * columns * op.num_batches,
        first - second if first > 5 * second else 0.0,
        size * columns * (2 * op.dtype.itemsize + 8),
        working,
        min(most, columns) if at_once else op.chunk_size,
        micro,
        op.risk.data.kept_bytes,
        instructions_advice(),
    )


def memory_available() -> int:
    """Bytes of the machine's memory that are free (Linux; elsewhere taken for 4 GiB)."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        return 1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    return 2**32


def memory_in_use() -> int:
    """Bytes that this process holds: on the device, and (Linux) resident in the machine's
    memory.
    """
    resident = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident + int(ms.runtime.memory_allocated())


class _PeakMemory:
    """The growth of the memory in use, sampled every millisecond."""

    growth = 0

    def __enter__(self) -> _PeakMemory:
        self._over = threading.Event()
        self._start = memory_in_use()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.001):
            self.growth = max(self.growth, memory_in_use() - self._start)

    def __exit__(self, *_: object) -> None:
        self.growth = max(self.growth, memory_in_use() - self._start)
        self._over.set()
        self._thread.join()
