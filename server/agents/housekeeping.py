"""Housekeeping: makes room for the events to come, puts old jobs into the archive, and deletes what is old enough.

Slice after slice, each in a transaction of its own, so that nobody waits for it and it can be ended at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from server.dispatch.context import Dispatcher
from server.store import archive, cursors, event_days
from server.store.database import Connection

PERIOD_S = 600.0
SLICE = 2000
SLICES = 50
"""Slices of one kind in one run at the most; the next run follows at once."""
LEAST_KEEP_S = 86400.0
"""Nothing younger is put away, whatever the settings say: a pilot may have to repeat the end of its job."""
REPLAY_KEEP_S = 7 * 86400.0

Step = Callable[[Connection], int]
Walk = Callable[[Connection, int], tuple[int, int | None]]


def keep_house(dispatcher: Dispatcher) -> int:
    """One round; more than 0 when there is more to do than fits into one."""
    knobs, now = dispatcher.looks.get().knobs, dispatcher.now()
    old_job, old_event, old_pilot, old_archived = (
        now - max(LEAST_KEEP_S, keep_s)
        for keep_s in (knobs.jobs_keep_s, knobs.events_keep_s, knobs.pilots_keep_s, knobs.job_archive_keep_s)
    )
    with dispatcher.database.write() as connection:
        event_days.make_ahead(connection, now)
    with dispatcher.database.write() as connection:
        event_days.drop_old(connection, old_event)
    steps: list[Step] = [
        partial(cursors.heal, limit=SLICE),
        partial(event_days.delete_old, before=old_event, limit=SLICE),
        partial(archive.delete_replays, before=now - REPLAY_KEEP_S, limit=SLICE),
        partial(archive.delete_archived, before=old_archived, limit=SLICE),
    ]
    more = sum(_repeat(dispatcher, step) for step in steps)
    _walk(dispatcher, lambda connection, after: archive.archive_jobs(connection, old_job, after, SLICE))
    _walk(dispatcher, lambda connection, after: archive.delete_pilots(connection, old_pilot, after, SLICE))
    return more + _repeat(dispatcher, partial(archive.delete_workers, before=old_pilot, limit=SLICE))


def _repeat(dispatcher: Dispatcher, step: Step) -> int:
    """Slices until one is not full; 1 when the last was full still."""
    for _ in range(SLICES):
        with dispatcher.database.write() as connection:
            if step(connection) < SLICE:
                return 0
    return 1


def _walk(dispatcher: Dispatcher, walk: Walk) -> None:
    """Slices from the oldest on, to the first that is too young. What has to stay is passed by."""
    after: int | None = 0
    while after is not None and not dispatcher.stopping.is_set():
        with dispatcher.database.write() as connection:
            _, after = walk(connection, after)
