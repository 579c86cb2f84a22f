"""Data parallelism: each process of ``msrun`` holds its shard of the data, and products are summed
over the processes.

One collective a product, of n numbers (and one for each process, which says whether it failed, so
that the others stop at once and say who). float32 goes through AllReduce (MCCL on CPU, NCCL on GPU,
HCCL on Ascend). float64 is gathered and added, because MindSpore's AllReduce has no float64 on CPU
and its AllGather rounds it. Every process gets the same sum, so estimators run unchanged, in step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindspore_hessian import _compat
from mindspore_hessian._errors import HessianError
from mindspore_hessian.arguments import check_bool, is_integer, shown


class DistributedError(HessianError, RuntimeError):
    """Another process of a distributed job failed, died, or is late."""


class Communicator:
    """One process alone: sums are what they are."""

    rank, size = 0, 1

    def total(self, array: np.ndarray) -> np.ndarray:
        """The sum of the processes' arrays, the same on each."""
        return array

    def joined(self, array: np.ndarray) -> np.ndarray:
        """The processes' arrays one after another along the first axis, the same on each. The first
        `total` in it is of as many numbers as there are processes.
        """
        return array

    @contextlib.contextmanager
    def together(self, count: int) -> Iterator[None]:
        """Around the work before a `total` of `count` numbers: where it fails, the other processes
        hear of it.
        """
        yield


ALONE = Communicator()


class Processes(Communicator):
    """The processes of a job that ``mindspore.communication.init()`` has joined."""

    def __init__(self, dtype: np.dtype):
        if (
            not ms.communication.GlobalComm.INITED
        ):  # without it a collective ends in a segmentation fault
            raise DistributedError(
                "distributed=True, but this process has joined no job. Start the script with "
                "msrun and open `with mindspore_hessian.distributed.session():` first"
            )
        self.rank, self.size = ms.communication.get_rank(), ms.communication.get_group_size()
        self.dtype = np.dtype(dtype)

    def total(self, array: np.ndarray) -> np.ndarray:
        flags = np.zeros(self.size)
        return self._exchange(array, flags)

    def joined(self, array: np.ndarray) -> np.ndarray:
        counts = self.total(np.eye(self.size)[self.rank] * len(array)).astype(int)
        whole, start = np.zeros((counts.sum(), *array.shape[1:])), counts[: self.rank].sum()
        whole[start : start + len(array)] = array
        return self.total(whole)

    @contextlib.contextmanager
    def together(self, count: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            flags = np.zeros(self.size)
            flags[self.rank] = 1
            with contextlib.suppress(Exception):  # ours is the error to show
                self._exchange(np.zeros(count), flags)
            raise

    def _exchange(self, array: np.ndarray, flags: np.ndarray) -> np.ndarray:
        line = np.concatenate([array.reshape(-1), flags]).astype(self.dtype)
        try:
            line = self._sum(line)
        except RuntimeError as err:
            raise DistributedError(
                f"rank {self.rank} of {self.size}: a sum over the processes failed, because "
                "another process has died "
                "or is later than the time-out allows (session(timeout=...)); the logs of msrun "
                "say which"
            ) from err
        failed = [
            rank for rank, flag in enumerate(line[-self.size :]) if flag and rank != self.rank
        ]
        if failed:
            raise DistributedError(
                f"rank {self.rank} of {self.size} stops, because rank "
                f"{', '.join(map(str, failed))} failed; its log says why"
            )
        return line[: -self.size].astype(np.float64).reshape(array.shape)

    def _sum(self, line: np.ndarray) -> np.ndarray:
        if self.dtype == np.float64:
            parts = [Tensor(np.zeros_like(line)) for _ in range(self.size)]
            ms.mint.distributed.all_gather(parts, Tensor(line))
            return np.sum([_compat.to_numpy(part) for part in parts], axis=0)
        return _compat.to_numpy(ms.ops.AllReduce()(Tensor(line))).copy()


def communicator(distributed: Any, dtype: np.dtype) -> Communicator:
    """The processes to sum over: this one alone, or those of the job."""
    check_bool("distributed", distributed)
    return Processes(dtype) if distributed else ALONE


@contextlib.contextmanager
def session(timeout: int = 30) -> Iterator[tuple[int, int]]:
    """Join the job that ``msrun`` started; leave it together. Gives (rank, number of processes).

    Open it before anything is computed. Where a process dies or hangs, the others end with an error
    after about `timeout` seconds in a collective, and the job within about twice that and half a
    minute.

    Args:
        timeout: seconds that a collective waits for a late process, compilation included (on CPU;
            GPU and Ascend have settings of their own: ``HCCL_EXEC_TIMEOUT``, ``NCCL_TIMEOUT``).

    Raises:
        ValueError: `timeout` is not positive.
        DistributedError: the process was not started by ``msrun``.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """
    if not is_integer(timeout) or timeout < 1:
        raise ValueError(f"timeout must be a positive number of seconds, but got {shown(timeout)}")
    if (
        "MS_ROLE" not in os.environ
        and "RANK_ID" not in os.environ
        and "RANK_SIZE" not in os.environ
    ):
        raise DistributedError(
            "this process was not started by msrun. For example: msrun --worker_num=2 "
            "--local_worker_num=2 --cluster_time_out=60 --join=True script.py"
        )
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", str(timeout))
    os.environ.setdefault("MS_NODE_TIMEOUT", str(timeout))
    ms.communication.init()
    yield ms.communication.get_rank(), ms.communication.get_group_size()
    ms.mint.distributed.barrier()  # without it a process that leaves early can fail the others
