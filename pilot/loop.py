"""The pilot's main loop: one queue of events, one heap of timers, and threads that do what takes time.

Everything that changes the pilot's state runs on the loop's thread; whatever may block runs on a lane and posts its
result. The queue is a SimpleQueue because signal handlers put into it, between any two steps of the loop itself.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Hashable
from typing import Optional

from common.clock import Clock

logger = logging.getLogger(__name__)

Call = Callable[[], None]


class Lane:
    """A thread that does one thing after another. It never keeps the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Optional[Call]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, call: Call) -> None:
        """Do ``call`` after everything that was submitted before. It must not raise."""
        self._calls.put(call)

    def close(self) -> None:
        """End the thread after what it has to do."""
        self._calls.put(None)

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            call()


class Lanes:
    """Lanes that are used again, because each thread has its own connections to the server. For one thread only."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[Lane] = []
        self._made = 0

    def take(self) -> Lane:
        """A lane that nobody else uses."""
        if self._idle:
            return self._idle.pop()
        self._made += 1
        return Lane(f"{self._name}-{self._made}")

    def give_back(self, lane: Lane) -> None:
        """Hand in a lane that has nothing more to do."""
        self._idle.append(lane)

    def close(self) -> None:
        """End the idle lanes."""
        for lane in self._idle:
            lane.close()
        self._idle.clear()


class Loop:
    """Runs calls one by one on the thread of :meth:`run`: those that were posted, and those whose time has come."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._posted: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._timers: list[tuple[float, int, Hashable]] = []
        self._pending: dict[Hashable, tuple[int, Call]] = {}
        self._numbers = itertools.count()
        self._ended = False

    def post(self, call: Call) -> None:
        """Run ``call`` soon. From any thread, and from signal handlers."""
        self._posted.put(call)

    def after(self, key: Hashable, delay_s: float, call: Call) -> None:
        """Run ``call`` in ``delay_s`` seconds, instead of what was set under ``key`` before."""
        number = next(self._numbers)
        self._pending[key] = (number, call)
        heapq.heappush(self._timers, (self._clock.monotonic() + max(0.0, delay_s), number, key))

    def cancel(self, key: Hashable) -> None:
        """Unset a timer; one that is not set is fine."""
        self._pending.pop(key, None)

    def is_set(self, key: Hashable) -> bool:
        """Whether a timer of that key runs."""
        return key in self._pending

    def end(self) -> None:
        """Leave :meth:`run` after the current call."""
        self._ended = True

    def run(self) -> None:
        """Run until :meth:`end`. Whatever a call raises ends it too, and is raised here."""
        while not self._ended:
            wait_s = self._next_in()
            if wait_s == 0.0:  # before what was posted: there may be more of that, always
                self._due()()
                wait_s = None if self._ended else self._next_in()
            if not self._ended:
                self._one_posted(wait_s)

    def _one_posted(self, wait_s: Optional[float]) -> None:
        """Run the next posted call, if there is one within ``wait_s`` seconds."""
        try:
            call = self._posted.get(timeout=wait_s)
        except queue.Empty:
            return
        call()

    def _next_in(self) -> Optional[float]:
        while self._timers and self._stale(self._timers[0]):
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self._clock.monotonic()) if self._timers else None

    def _due(self) -> Call:
        """The call of the first timer, whose time has come."""
        _when, _number, key = heapq.heappop(self._timers)
        return self._pending.pop(key)[1]

    def _stale(self, timer: tuple[float, int, Hashable]) -> bool:
        _when, number, key = timer
        return self._pending.get(key, (None, None))[0] != number
