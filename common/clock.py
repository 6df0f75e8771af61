"""The one injectable clock: whoever needs the time is handed a :class:`Clock`."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """Seconds since the epoch, UTC; may jump when the machine's clock is set."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back. For measuring how long something takes."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


class FrozenClock:
    """A clock that stands still until it is advanced: for tests and simulations. Threads may share it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Seconds by which this clock was advanced since it was made."""
        with self._lock:
            return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``; raises ValueError for a negative number."""
        if seconds < 0:
            raise ValueError("seconds: a clock cannot go back; give a number of at least 0")
        with self._lock:
            self._now += seconds
            self._monotonic += seconds

    def set_back(self, seconds: float) -> None:
        """The time of day is corrected by ``seconds`` into the past; the monotonic clock stays as it is."""
        with self._lock:
            self._now -= seconds
