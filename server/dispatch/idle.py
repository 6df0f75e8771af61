"""The idle pilots of this process, and when each may ask again."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_RETRY_S = 0.5
MAX_RETRY_S = 900.0
FORGET_AFTER = 3.0
"""A pilot that has not come back after so many of its waits is not idle here any more."""


class IdlePilots:
    """Who was told that there is nothing.

    All idle pilots together may cost so many requests a second, however many they are. Each keeps coming to the process
    that its connection leads to, so each process shares out its part of the rate among those that it knows.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._pilots: dict[int, tuple[str, float]] = {}
        self._swept = 0.0

    def wait_of(self, pilot_id: int, queue: str, rate: float, now: float) -> float:
        """Seconds after which a pilot that got nothing asks again; ``rate`` is what this process may be asked a second."""
        with self._mutex:
            if not 0 <= now - self._swept < 1.0:
                self._sweep(now)
            even = (len(self._pilots) + (pilot_id not in self._pilots)) / rate
            wait = min(MAX_RETRY_S, max(MIN_RETRY_S, even)) * random.uniform(0.75, 1.25)
            self._pilots[pilot_id] = (queue, now + FORGET_AFTER * wait + 10.0)
        return wait

    def busy(self, pilot_id: int) -> None:
        """A pilot got work, or is gone."""
        with self._mutex:
            self._pilots.pop(pilot_id, None)

    def by_queue(self, now: float) -> Mapping[str, int]:
        """How many there are in each queue."""
        with self._mutex:
            self._sweep(now)
            return Counter(queue for queue, _ in self._pilots.values())

    def _sweep(self, now: float) -> None:
        self._swept = now
        gone = [pilot_id for pilot_id, (_, until) in self._pilots.items() if until < now]
        for pilot_id in gone:
            del self._pilots[pilot_id]


NOTED_EVERY_S = 10.0
"""How often it is written down what pilots of other systems asked for in vain."""


@dataclass
class Noted:
    """When it was last written down, by queue, what was asked for in vain: in this process."""

    times: dict[str, float] = field(default_factory=dict)

    def due(self, queue: str, now: float) -> bool:
        """Whether it is time again; then it counts as written."""
        if 0 <= now - self.times.get(queue, -NOTED_EVERY_S) < NOTED_EVERY_S:
            return False
        self.times[queue] = now
        return True


UNTOLD_S = 60.0
"""For how long pilots of other systems get nothing of a bucket one of whose jobs could not be told them."""


@dataclass
class Untold:
    """Buckets that pilots of other systems get nothing of for now, so that the next one's jobs reach them: in this process."""

    until: dict[int, float] = field(default_factory=dict)

    def add(self, bucket_id: int, now: float) -> None:
        """A job of this bucket could not be told."""
        self.until = {each: end for each, end in list(self.until.items()) if end > now} | {bucket_id: now + UNTOLD_S}

    def buckets(self, now: float) -> frozenset[int]:
        """Those buckets."""
        return frozenset(each for each, end in self.until.items() if end > now) if self.until else frozenset()
