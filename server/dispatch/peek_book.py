"""What this process knows of the requests to look at jobs: read for all pilots at once, so that a heartbeat pays nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from common.clock import Clock
from server.store import peeks
from server.store.database import Database
from server.store.peeks import PeekRow

KNOWN_S = 1.0
"""How old that may be: another process may have taken a request."""
LOOKED_AT_S = 60.0
"""So long after the last request somebody is still looking: the pilot beats quickly."""


class PeekBook:
    """Requests by pilot, and who waits for their answers."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._renewing = threading.Lock()
        self._known: Mapping[int, Sequence[PeekRow]] = {}
        self._taken = float("-inf")
        self._changed = threading.Condition()
        self._changes = 0

    def of_pilot(self, pilot_id: int) -> Sequence[PeekRow]:
        """The open requests to a pilot, and those of the last minute."""
        fresh = 0 <= self._clock.monotonic() - self._taken <= KNOWN_S
        if not fresh and self._renewing.acquire(blocking=False):
            try:
                self._renew()
            finally:
                self._renewing.release()
        return self._known.get(pilot_id, ())

    def _renew(self) -> None:
        taken = self._clock.monotonic()
        with self._database.read() as connection:
            self._known = peeks.current(connection, self._clock.now() - LOOKED_AT_S)
        self._taken = taken

    def changed(self) -> None:
        """There is a new request, or an answer, in this process."""
        self._taken = float("-inf")
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def changes(self) -> int:
        """A number that grows with each change."""
        with self._changed:
            return self._changes

    def wait_for_change(self, seen: int, timeout_s: float) -> None:
        """Until something changed since ``seen``, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, timeout=timeout_s)
