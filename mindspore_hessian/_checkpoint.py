"""Checkpoints: arrays in a file that is whole at any time, and that is looked at before anything is
read from it.

A file that is not ours, or is damaged, is an error that names it, and is left alone: it may be
somebody's work.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from mindspore_hessian.arguments import shown

_CONTENTS = "_contents"  # name of the member that says what the others are
_BROKEN = (
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def named(checkpoint: Any, what: str = "checkpoint") -> str | None:
    """The file name of a `checkpoint=` argument, in a place where a file can be written; None stays
    None.

    Raises:
        TypeError: it is no name.
        ValueError: the folder does not exist or cannot be written to, or the name is that of a
            folder.
    """
    if checkpoint is None:
        return None
    if isinstance(checkpoint, bool) or not isinstance(checkpoint, str | bytes | os.PathLike):
        optional = " or None" if what == "checkpoint" else ""
        raise TypeError(f"{what} must be a file name{optional}, but got {shown(checkpoint)}")
    path = os.fsdecode(checkpoint)
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(
            f"{what} {path!r} is in a folder that does not exist: make the folder, or pass another "
            "name"
        )
    if not os.path.basename(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise ValueError(f"{what} {path!r} is a folder, or no file: pass the name of a file")
    try:
        with open(spare := _spare(path), "xb"):
            os.remove(spare)
    except OSError as err:
        raise _unwritable(path, err, what) from err
    return path


def file_name(path: Any) -> str:
    """The file name of a `path` argument; whether it can be read or written is found where that is
    done.

    Raises:
        TypeError: it is no name.
    """
    if isinstance(path, bool) or not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(f"path must be a file name, but got {shown(path)}")
    return os.fsdecode(path)


def read(path: str, what: str = "checkpoint") -> dict[str, np.ndarray] | None:
    """The arrays that `write` put into a file; None where there is no file.

    Raises:
        ValueError: the file cannot be read, is not whole, or is none of ours.
    """
    try:
        with open(path, "rb") as file:
            return _arrays(file)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ValueError(
            f"{what} {path!r} cannot be read ({err.strerror or err}): make it readable, or pass "
            "another name"
        ) from err
    except _BROKEN as err:
        why = " ".join(str(err).split()) or type(err).__name__
        raise ValueError(
            f"{what} {path!r} is no checkpoint of ours, or is damaged ({why}): it was left as it "
            "is; pass another name"
        ) from err


def write(path: str, what: str = "checkpoint", /, **arrays: Any) -> None:
    """Write arrays into a file, in the place of what was there, in one step: whoever reads sees the
    old or the new.

    Raises:
        ValueError: that is not possible (a full disk); what was there is still there.
    """
    members = {name: np.asarray(value) for name, value in arrays.items()}
    contents = json.dumps(
        {name: [str(array.dtype), array.shape] for name, array in members.items()}
    )
    spare = _spare(path)
    try:
        with open(spare, "xb") as file:
            np.savez(file, **{_CONTENTS: np.array(contents)}, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(spare, path)
    except OSError as err:
        raise _unwritable(path, err, what) from err
    finally:
        with contextlib.suppress(OSError):
            os.remove(spare)


def _arrays(file: Any) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not the kind of file that numpy.savez writes")
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}
    contents = found.pop(_CONTENTS, None)
    wanted = json.loads(str(contents)) if isinstance(contents, np.ndarray) else None
    if not isinstance(wanted, dict):
        raise ValueError("nothing in it says what it holds")
    are = {
        name: [str(getattr(array, "dtype", None)), list(np.shape(array))]
        for name, array in found.items()
    }
    wrong = [name for name in {**wanted, **are} if wanted.get(name) != are.get(name)]
    if wrong:
        raise ValueError(f"missing, added or changed in it: {', '.join(map(repr, sorted(wrong)))}")
    return found


def _spare(path: str) -> str:
    """A name in the same folder that no other process takes."""
    return f"{path}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def _unwritable(path: str, err: OSError, what: str) -> ValueError:
    return ValueError(
        f"{what} {path!r} cannot be written ({err.strerror or err}): its folder must be one that "
        "this process can write to, with space left. Or pass another name"
    )
