"""Against the guessing of passwords: after some wrong ones for a name the next must wait, in each process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from common.clock import Clock

TRIES = 10.0
"""Wrong passwords for a name, one after another, that are looked at."""
EVERY_S = 10.0
"""After them one in so many seconds is."""
MOST_NAMES = 10_000
"""Names remembered; what was not tried for longest goes."""


class Guesses:
    """What is left of each name's tries. A right password gives its own try back, and no more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> float:
        """Begin a try: 0, or in how many seconds the next may begin."""
        now = self._clock.monotonic()
        with self._mutex:
            left, since = self._left.pop(name, (TRIES, now))
            left = min(TRIES, left + max(0.0, now - since) / EVERY_S)
            wait = (1.0 - left) * EVERY_S
            self._left[name] = (left if wait > 0 else left - 1.0, now)
            if len(self._left) > MOST_NAMES:
                self._left.popitem(last=False)
        return max(0.0, wait)

    def give_back(self, name: str) -> None:
        """The try was right."""
        with self._mutex:
            if name in self._left:
                left, since = self._left[name]
                self._left[name] = (min(TRIES, left + 1.0), since)
