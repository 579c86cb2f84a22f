"""A function of numpy in a thread of its own, while MindSpore goes on in the main one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Task:
    """Begins at once. The thread ends with the process, whatever it is at.

    Args:
        function: of no arguments, which touches no Tensor.
        of: what it is a function of, for `Task.of`.
    """

    def __init__(self, function: Callable[[], Any], of: Any):
        self.of, self._function = of, function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as err:  # the main thread raises it
            self._error = err

    def ready(self) -> bool:
        return not self._thread.is_alive()

    def value(self) -> Any:
        """What the function returned; waits for it.

        Raises:
            ValueError: as the function.
            RuntimeError: the function raised anything else.
        """
        self._thread.join()
        if isinstance(self._error, ValueError):
            raise self._error
        if self._error is not None:
            raise RuntimeError(
                "what was computed in a thread beside the training failed with "
                f"{type(self._error).__name__}: {self._error}"
            ) from self._error
        return self._value
