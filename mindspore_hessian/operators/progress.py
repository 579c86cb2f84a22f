"""Progress bars, and partial sums on disk."""
from __future__ import annotations

import hashlib
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

SHOWN_AFTER = 2.0  # seconds: what is quicker needs no bar


def bar(what: str, total: int, progress: bool | None, rank: int = 0, done: int = 0) -> Any:
    """A bar on stderr: True shows it at once, None after two seconds, False never; only rank 0 shows any.

    None shows none inside of another bar, that of an estimator.
    """
    if progress not in (True, False, None):
        raise TypeError(f"progress must be True, False or None, but got {progress!r}")
    inside = progress is None and len(getattr(tqdm, "_instances", ())) > 0
    return tqdm(desc=what, total=total, initial=done, disable=progress is False or rank > 0 or inside, leave=False,
                unit="batch", delay=0 if progress else SHOWN_AFTER)


class Partial:
    """The partial sum of a pass over the data, in a file, so that a pass that was cut off goes on where it was.

    Written at most every `every` seconds, and in one step: a reader never sees half a file. A pass that is not the
    `last` of a product leaves its whole sum there.
    """

    def __init__(self, path: str | os.PathLike, token: str, last: bool = True, every: float = 5.0):
        self.path, self.token, self.last, self.every = Path(path), token, last, every
        self._written = time.monotonic()

    def read(self) -> tuple[int, np.ndarray] | None:
        """(number of batches done, their sum), or None where there is nothing.

        Raises:
            ValueError: the file is of another product (other weights, vectors or data).
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path) as stored:
                token, done, total = str(stored["token"]), int(stored["done"]), stored["total"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
            raise ValueError(f"checkpoint {str(self.path)!r} is not a partial sum of this library; delete it") from err
        if token != self.token:
            raise ValueError(f"checkpoint {str(self.path)!r} is of another product: the vectors, the weights or the "
                             "number of batches differ. Delete it, or name another file")
        return done, total

    def write(self, done: int, total: np.ndarray) -> None:
        """Keep the sum of the first `done` batches, if the last time was long enough ago."""
        if time.monotonic() - self._written >= self.every:
            self._write(done, total)

    def over(self, done: int, total: np.ndarray) -> None:
        """The pass is over."""
        if not self.last:
            self._write(done, total)

    def _write(self, done: int, total: np.ndarray) -> None:
        spare = self.path.with_name(self.path.name + ".part")
        with open(spare, "wb") as file:
            np.savez(file, token=self.token, done=done, total=total)
        os.replace(spare, self.path)
        self._written = time.monotonic()

    def remove(self) -> None:
        """The product is there."""
        self.path.unlink(missing_ok=True)


def fingerprint(*arrays: np.ndarray) -> str:
    """A hash of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
