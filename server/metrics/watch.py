"""What a web process counts of itself: requests, claims, errors of the database; and how many may wait for events."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server.metrics.samples import BOUNDS_S, Histogram, ProcessSample


class Watch:
    """The counters of one process, shared by its threads."""

    def __init__(self, most_followers: int) -> None:
        self._places = threading.BoundedSemaphore(max(1, most_followers))
        self._mutex = threading.Lock()
        self._sample = ProcessSample()
        self._kept: dict[str, tuple[float, bytes]] = {}
        self._making = threading.Lock()

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        name = f"{method} {route}"
        full = f"{name} {status}"
        with self._mutex:
            requests = self._sample.requests
            requests[full] = requests.get(full, 0) + 1
            found = self._sample.latency.get(name)
            if found is None:
                found = self._sample.latency[name] = _empty()
            _observe(found, seconds)

    def claim(self, seconds: float) -> None:
        """Claiming was tried."""
        with self._mutex:
            if not self._sample.claims.counts:
                self._sample.claims = _empty()
            _observe(self._sample.claims, seconds)

    def database_error(self) -> None:
        """The database did not do what it was asked for."""
        with self._mutex:
            self._sample.database_errors += 1

    def sample(self, connections: int, connections_limit: int) -> ProcessSample:
        """A copy of all numbers."""
        with self._mutex:
            now = self._sample
            return ProcessSample(
                requests=dict(now.requests),
                latency={name: Histogram(list(each.counts), each.sum_s) for name, each in now.latency.items()},
                claims=Histogram(list(now.claims.counts), now.claims.sum_s),
                database_errors=now.database_errors,
                followers=now.followers,
                connections=connections,
                connections_limit=connections_limit,
            )

    @contextmanager
    def follower(self) -> Iterator[bool]:
        """One of the few places of requests that wait for events; False inside when none is free."""
        if not self._places.acquire(blocking=False):
            yield False
            return
        try:
            self._count_follower(1)
            yield True
        finally:
            self._count_follower(-1)
            self._places.release()

    def _count_follower(self, change: int) -> None:
        with self._mutex:
            self._sample.followers += change

    def keep(self, name: str, seconds: float, now: float, make: Callable[[], bytes]) -> bytes:
        """A page that is made anew when it is older than ``seconds``, by one thread at a time."""
        with self._making:
            time, page = self._kept.get(name, (float("-inf"), b""))
            if not 0 <= now - time < seconds:
                page = make()
                self._kept[name] = (now, page)
            return page


def _empty() -> Histogram:
    return Histogram([0] * (len(BOUNDS_S) + 1))


def _observe(histogram: Histogram, seconds: float) -> None:
    histogram.counts[bisect_left(BOUNDS_S, seconds)] += 1
    histogram.sum_s += seconds
