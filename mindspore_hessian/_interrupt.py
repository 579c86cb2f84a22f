"""Ctrl-C during our work is a KeyboardInterrupt, as everywhere in Python.

MindSpore puts a handler of its own, in C, on SIGINT: for the length of each graph's run, and for
good whenever one of its threads starts. It sends SIGTERM to its own process, which ends there and
then: no exception, no `finally`, and a notebook has lost its variables.

So during our work SIGTERM has a handler in Python. Where the process sent it to itself, that was
MindSpore's handler, and it counts as Ctrl-C. Where another process sent it (``kill``, a batch
system), it does what it did before. Who sent it Python does not say, but the kernel writes it on
the stack that a handler runs on: the main thread gets a stack for signals of which we can read the
memory. Where nothing is found there, SIGTERM ends the process as it always did.

At the end SIGTERM is as it was, and Python's handler for SIGINT is in force, which may have been
overridden before.
"""

from __future__ import annotations

# the module `signal` makes an enum of every number, which takes longer than all the rest here
import _signal
import _thread
import contextlib
import ctypes
import functools
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable)


class _Action(ctypes.Structure):
    """C's ``struct sigaction`` (Linux, glibc, 64 bits: where MindSpore has such a handler)."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class _Stack(ctypes.Structure):
    """C's ``stack_t``."""

    _fields_ = [("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


_SIGINT, _SIGTERM, _SIG_DFL = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIG_DFL)
_SA_SIGINFO = 4
_MEMORY = ctypes.create_string_buffer(1 << 16)
_STACK, _ACTION = _Stack(ctypes.addressof(_MEMORY), 0, len(_MEMORY)), _Action()
_OUR_STACK, _OUR_ACTION = ctypes.byref(_STACK), ctypes.byref(_ACTION)
_MAIN = threading.main_thread()
_LIBC = (
    ctypes.PyDLL(None) if sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8 else None
)
_AGAIN = 0.01  # seconds until an interrupt that came at a bad time comes again


class _Interruptible:
    """While it is entered, or while a function that it decorates runs, Ctrl-C raises
    KeyboardInterrupt (calls the user's own handler of SIGINT, where there is one). May be nested.
    Does nothing outside of the main thread, and where Python has no handler for SIGINT."""

    def __init__(self) -> None:
        self._depth = 0
        self._active = False
        self._caller: FrameType | None = (
            None  # of the outermost: frames from there on are none of our business
        )
        self._raised: BaseException | None = None
        self._sigint: Any = None
        self._sigterm: Any = None
        self._action, self._stack = _Action(), _Stack()  # what there was
        self._on_action, self._on_stack = ctypes.byref(self._action), ctypes.byref(self._stack)
        self._handler = self._arrived  # one object, to know it again

    def __call__(self, function: _F) -> _F:
        @functools.wraps(function)
        def entered(*args, **kwargs):
            with self:
                return function(*args, **kwargs)

        return entered  # type: ignore[return-value]

    def __enter__(self) -> _Interruptible:
        if _thread.get_ident() == _MAIN.ident:
            if self._depth == 0:
                self._take_over()
            self._depth += 1
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if _thread.get_ident() != _MAIN.ident:
            return
        raised = self._raised
        self._depth -= 1
        if self._depth == 0:
            self._give_back()
        if (
            raised is not None and raised is not error
        ):  # MindSpore caught it, or made another error of it
            raise raised

    def check(self) -> None:
        """Raise an interrupt that came, and that what ran since has caught."""
        if self._raised is not None and _thread.get_ident() == _MAIN.ident:
            raise self._raised

    def _take_over(self) -> None:
        self._sigint, self._raised = _signal.getsignal(_SIGINT), None
        if _LIBC is None or not callable(self._sigint):
            return
        self._caller = sys._getframe(2).f_back
        _signal.signal(_SIGINT, self._handler)
        self._sigterm = _signal.getsignal(_SIGTERM)
        _LIBC.sigaction(_SIGTERM, None, self._on_action)
        _LIBC.sigaltstack(_OUR_STACK, self._on_stack)
        self._catch()
        self._active = True

    def _catch(self) -> None:
        """Our handler for SIGTERM, with the sender on its stack."""
        _signal.signal(_SIGTERM, self._handler)
        if not _ACTION.flags & _SA_SIGINFO:  # at the first time
            _LIBC.sigaction(_SIGTERM, None, _OUR_ACTION)  # type: ignore[union-attr]
            _ACTION.flags |= _SA_SIGINFO
        _LIBC.sigaction(_SIGTERM, _OUR_ACTION, None)  # type: ignore[union-attr]

    def _release(self) -> None:
        _signal.signal(_SIGTERM, _SIG_DFL if self._sigterm is None else self._sigterm)
        if self._action.handler is not None:  # perhaps one in C, which Python knows nothing of
            _LIBC.sigaction(_SIGTERM, self._on_action, None)  # type: ignore[union-attr]

    def _give_back(self) -> None:
        self._raised = self._caller = None
        if not self._active:
            return
        self._active = False
        if _signal.getsignal(_SIGTERM) is self._handler:  # else the user has set another meanwhile
            self._release()
        _LIBC.sigaltstack(self._on_stack, None)  # type: ignore[union-attr]
        if _signal.getsignal(_SIGINT) is self._handler:
            _signal.signal(_SIGINT, self._sigint)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if number == _SIGTERM and not _sent_by_ourselves():
            self._terminate(frame)
        elif self._cleaning_up(frame):
            _thread.start_new_thread(_come_again, ())
        else:
            try:
                self._sigint(_SIGINT, frame)
            except BaseException as error:
                self._raised = error
                raise

    def _terminate(self, frame: FrameType | None) -> None:
        """Do with a SIGTERM from outside what would have been done without us."""
        if callable(self._sigterm):
            self._sigterm(_SIGTERM, frame)
            return
        self._release()
        os.kill(os.getpid(), _SIGTERM)
        self._catch()  # it is ignored, or a handler in C came back

    def _cleaning_up(self, frame: FrameType | None) -> bool:
        """Whether an exception would now keep something from being put back (or get lost, in a
        ``__del__``).
        """
        while frame is not None and frame is not self._caller:
            code = frame.f_code
            if code.co_name in _ENDINGS or (
                code.co_filename in _MANAGERS and code.co_name not in _DECORATED
            ):
                return True
            frame = frame.f_back
        return False


_ENDINGS = ("__exit__", "__del__")
_MANAGERS = (contextlib.__file__, __file__)  # where context managers are entered and left,
_DECORATED = ("inner", "entered")  # but for functions that they decorate


def _sent_by_ourselves() -> bool:
    """Whether the last signal on our stack is a SIGTERM that this process sent: its siginfo_t
    begins like that.
    """
    sent = struct.pack("@6i", _SIGTERM, 0, 0, 0, os.getpid(), os.getuid())
    found = sent in _MEMORY.raw
    ctypes.memset(_MEMORY, 0, len(_MEMORY))
    return found


def _come_again() -> None:
    time.sleep(_AGAIN)
    _thread.interrupt_main()


interruptible = _Interruptible()
