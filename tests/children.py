"""Processes that a test starts and that never outlive it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading


@contextlib.contextmanager
def child(arguments, seconds=120, **options):
    """A process that is killed, and what it started with it, at the end of the block or after some
    seconds: what reads from it then ends too."""
    process = subprocess.Popen(arguments, text=True, start_new_session=True, **options)

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        end()
        process.wait()
