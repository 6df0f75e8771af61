"""How near each task is to its end: its ready units, and the slots that may ask for them next."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from common.clock import Clock
from common.states import JobState, UnitState
from server.store import job_counts, units
from server.store.database import Database

KEPT_S = 1.0
"""How old a count may be: several claims ahead of one task share it."""
MOST = 10_000
_BUSY = (JobState.SENT, JobState.STARTING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Tail:
    """Ready units of a task, and its jobs whose payload is not over."""

    ready: int
    busy: int


class Tails:
    """Counts of tasks, asked for at most once in a while."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._mutex = threading.Lock()
        self._known: dict[int, tuple[float, Tail]] = {}

    def of(self, task_id: int) -> Tail:
        """The tail of a task, at most :data:`KEPT_S` old."""
        now = self._clock.monotonic()
        with self._mutex:
            taken, tail = self._known.get(task_id, (float("-inf"), None))
        if tail is not None and 0 <= now - taken <= KEPT_S:
            return tail
        with self._database.read() as connection:
            ready = units.counts(connection, [task_id])[task_id].get(UnitState.READY, 0)
            jobs = job_counts.by_task(connection, [task_id])[task_id]
        tail = Tail(ready, sum(jobs.get(state, 0) for state in _BUSY))
        with self._mutex:
            if len(self._known) >= MOST:
                self._known = {key: each for key, each in self._known.items() if now - each[0] <= KEPT_S}
            self._known[task_id] = (now, tail)
        return tail
