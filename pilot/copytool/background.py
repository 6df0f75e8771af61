"""Blocking calls that can be left behind: how a transfer ends in time with a library that cannot be interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, Optional, TypeVar

from common.errors import PilotageError
from pilot.copytool.base import Direction, raise_if_cancelled

Result = TypeVar("Result")

#: How long a cancelled or late transfer gets to close its files, in seconds.
CLOSE_GRACE_S = 1.0
#: How often the cancel event is looked at while the library works, in seconds: one cannot wait on two events at once.
CANCEL_SLICE_S = 0.1


class Call(Generic[Result]):
    """One blocking call of a library, in a thread that can be left behind.

    Where the library has no way to interrupt a call, its own time limits end it later. The thread is a daemon, so that
    it never keeps the process; ``name`` is the thread's.
    """

    def __init__(self, function: Callable[[], Result], name: str = "copytool") -> None:
        self._function = function
        self._name = name
        self._result: Optional[Result] = None
        self._error: Optional[Exception] = None
        self._done = threading.Event()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            self._done.set()

    def wait(
        self,
        direction: Direction,
        what: str,
        cancel: threading.Event,
        deadline: float,
        stop: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run the call and give its result.

        ``deadline`` is monotonic seconds. When it passes, or on ``cancel``, ``stop`` is called and the thread left to
        itself after a moment; then the direction's error is raised.
        """
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        while not self._done.wait(min(CANCEL_SLICE_S, max(deadline - time.monotonic(), 0))):
            if cancel.is_set() or time.monotonic() >= deadline:
                stop()
                self._done.wait(CLOSE_GRACE_S)
                raise_if_cancelled(cancel, direction)
                raise PilotageError(direction.timeout, f"{what}: not done in time")
        if isinstance(self._error, PilotageError):
            raise self._error
        if self._error is not None:
            raise PilotageError(direction.failed, f"{what}: {self._error}") from self._error
        return self._result  # type: ignore[return-value]  # set, as there is no error
