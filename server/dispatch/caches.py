"""What does not change, or seldom: tasks as claims and confirmations need them, pilots as they registered, jobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from server.store import jobs, pilots, workflows
from server.store.database import Connection
from server.store.jobs import JobFacts
from server.store.pilots import PilotRow
from server.store.workflows import TaskRow

V = TypeVar("V")


class _Recent(Generic[V]):
    """The values asked for last, at most ``most`` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._mutex = threading.Lock()
        self._values: OrderedDict[int, V] = OrderedDict()

    def get(self, key: int) -> V | None:
        with self._mutex:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
            return found

    def put(self, key: int, value: V) -> None:
        with self._mutex:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def drop(self, keys: Iterable[int]) -> None:
        with self._mutex:
            for key in keys:
                self._values.pop(key, None)


class Tasks:
    """Tasks as they were a moment ago: for what of them does not change while jobs run (payload, outputs, scope).

    Their state must be asked of the database.
    """

    MOST = 20_000

    def __init__(self) -> None:
        self._recent: _Recent[TaskRow] = _Recent(self.MOST)

    def known(self, task_id: int) -> TaskRow | None:
        """A task that was asked for lately."""
        return self._recent.get(task_id)

    def get(self, connection: Connection, task_id: int) -> TaskRow | None:
        """A task by its id."""
        found = self._recent.get(task_id)
        if found is None:
            found = workflows.get_task(connection, task_id)
            if found is not None:
                self._recent.put(task_id, found)
        return found

    def get_all(self, connection: Connection, task_ids: Iterable[int]) -> list[TaskRow]:
        """Those of the tasks that are there; what was not asked for lately is read at once."""
        known = {task_id: self._recent.get(task_id) for task_id in task_ids}
        unknown = sorted(task_id for task_id, row in known.items() if row is None)
        read = workflows.get_tasks(connection, unknown) if unknown else []
        for row in read:
            self._recent.put(row.id, row)
        return [*(row for row in known.values() if row is not None), *read]

    def drop(self, task_ids: Iterable[int]) -> None:
        """These have changed."""
        self._recent.drop(task_ids)


class Pilots:
    """Pilots as they registered; their state must be asked of the database."""

    MOST = 200_000

    def __init__(self) -> None:
        self._recent: _Recent[PilotRow] = _Recent(self.MOST)

    def known(self, pilot_id: int) -> PilotRow | None:
        """A pilot that was asked for lately."""
        return self._recent.get(pilot_id)

    def get(self, connection: Connection, pilot_id: int) -> PilotRow | None:
        """A pilot by its id."""
        found = self._recent.get(pilot_id)
        if found is None:
            found = pilots.get(connection, pilot_id)
            if found is not None:
                self._recent.put(pilot_id, found)
        return found

    def drop(self, pilot_id: int) -> None:
        """It has ended, or is taken for lost."""
        self._recent.drop([pilot_id])


class Jobs:
    """What never changes of jobs."""

    MOST = 50_000

    def __init__(self) -> None:
        self._recent: _Recent[JobFacts] = _Recent(self.MOST)

    def put(self, job_id: int, facts: JobFacts) -> None:
        """A job was claimed."""
        self._recent.put(job_id, facts)

    def get(self, connection: Connection, job_ids: Sequence[int]) -> dict[int, JobFacts]:
        """Of those of the jobs that are there. On PostgreSQL."""
        known = {job_id: self._recent.get(job_id) for job_id in job_ids}
        found = {job_id: facts for job_id, facts in known.items() if facts is not None}
        if len(found) < len(known):
            read = jobs.facts(connection, [job_id for job_id, facts in known.items() if facts is None])
            for job_id, facts in read.items():
                self._recent.put(job_id, facts)
            found |= read
        return found
