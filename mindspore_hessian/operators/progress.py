"""Progress bars, and partial sums on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from mindspore_hessian import _checkpoint, _progress
from mindspore_hessian.arguments import check_progress


def bar(what: str, total: int, progress: bool | None, rank: int = 0, done: int = 0) -> Any:
    """A bar on stderr: True shows it at once, None after two seconds, False never; only rank 0
    shows any.

    None shows none inside of another bar, that of an estimator. The environment's TQDM_DISABLE=1
    goes before True.
    """
    check_progress(progress)
    inside = progress is None and len(getattr(tqdm, "_instances", ())) > 0
    return _progress.bar(what, total, progress, "batch", done, hidden=rank > 0 or inside)


class Partial:
    """The partial sum of a pass over the data, in a file, so that a pass that was cut off goes on
    where it was.

    Written at most every `every` seconds, and in one step: a reader never sees half a file. A pass
    that is not the `last` of a product leaves its whole sum there.
    """

    def __init__(self, path: str, token: str, last: bool = True, every: float = 5.0):
        self.path, self.token, self.last, self.every = path, token, last, every
        self._written = time.monotonic()

    def read(self) -> tuple[int, np.ndarray] | None:
        """(number of batches done, their sum), or None where there is nothing.

        Raises:
            ValueError: the file is no whole checkpoint, or of another product (other weights,
                vectors or data).
        """
        stored = _checkpoint.read(self.path)
        if stored is None:
            return None
        if stored.keys() != {"token", "done", "total"} or str(stored["token"]) != self.token:
            raise ValueError(
                f"checkpoint {self.path!r} is of another product: the vectors, the weights or the "
                "number of batches differ, or it is of an estimator. Pass another name"
            )
        return int(stored["done"]), stored["total"]

    @property
    def due(self) -> bool:
        """Whether the last time was long enough ago."""
        return time.monotonic() - self._written >= self.every

    def write(self, done: int, total: np.ndarray) -> None:
        """Keep the sum of the first `done` batches, if that is due."""
        if self.due:
            self._write(done, total)

    def over(self, done: int, total: np.ndarray) -> None:
        """The pass is over."""
        if not self.last:
            self._write(done, total)

    def _write(self, done: int, total: np.ndarray) -> None:
        _checkpoint.write(self.path, token=self.token, done=done, total=total)
        self._written = time.monotonic()

    def remove(self) -> None:
        """The product is there."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path)


def fingerprint(*arrays: np.ndarray) -> str:
    """A hash of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
