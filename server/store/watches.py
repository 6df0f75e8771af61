"""What the agents of silence and time-outs look at: live jobs and silent pilots, a slice at a time.

Neither is indexed by time, as that would cost each heartbeat and each move of a job an index entry. A slice goes by the
pilots' numbers; where the next one begins is kept in the database, so that it doesn't matter which process takes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, literal, not_, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.states import JobState, TaskState
from server.store.codes import JOB_CODES, JOB_STATES, PilotState
from server.store.jobs import ALIVE
from server.store.schema import job, pilot, pilot_beat, task
from server.store.schema_failures import job_watch, slice_cursor, task_watch


def cursor(connection: Connection, name: str) -> int:
    """Behind which pilot the next slice of an agent begins."""
    return int(connection.execute(select(slice_cursor.c.after).where(slice_cursor.c.name == name)).scalar() or 0)


def set_cursor(connection: Connection, name: str, after: int) -> None:
    """Where the next slice begins."""
    if not connection.execute(update(slice_cursor).where(slice_cursor.c.name == name).values(after=after)).rowcount:
        connection.execute(insert(slice_cursor).values(name=name, after=after))


def clamp_future(connection: Connection, after: int, last: int | None, now: float) -> None:
    """After the clock was set back: no pilot of a slice was heard of in the future."""
    where = [pilot_beat.c.pilot_id >= after, pilot_beat.c.time > now]
    if last is not None:
        where.append(pilot_beat.c.pilot_id <= last)
    connection.execute(update(pilot_beat).where(*where).values(time=now))


@dataclass(frozen=True)
class WatchedJob:
    """A live job that its pilot has not confirmed. ``since`` is when it was first seen in its state, if it was."""

    id: int
    pilot_id: int
    task_id: int
    queue: str
    state: JobState
    claimed: float
    started: float | None
    priority: int
    since: float | None
    pilot_active: bool


def live_jobs(
    connection: Connection, ages: Mapping[JobState, float], after: int, limit: int, now: float
) -> tuple[list[WatchedJob], int | None]:
    """Jobs of a slice of live ones that may be too old, and the pilot to go on behind, if any are left.

    ``ages`` says from which age on a job in a state is worth looking at; one whose pilot has gone always is.
    """
    slice_ = select(job.c.pilot_id).where(ALIVE, job.c.pilot_id > after).order_by(job.c.pilot_id).limit(limit)
    pilots = [row.pilot_id for row in connection.execute(slice_)]
    if not pilots:
        return [], None
    old = or_(*(and_(job.c.state == JOB_CODES[state], job.c.claimed <= now - age) for state, age in ages.items()))
    # An expected pilot's jobs begin their times when it comes; those of a direct one end with its worker.
    expected = pilot.c.state.in_([int(PilotState.EXPECTED), int(PilotState.DIRECT)])
    gone = pilot.c.state != int(PilotState.ACTIVE)
    query = (
        select(job.c.id, job.c.pilot_id, job.c.task_id, job.c.queue, job.c.state, job.c.claimed, job.c.started)
        .add_columns(task.c.priority, job_watch.c.since, pilot.c.state.label("pilot_state"))
        .join(task, task.c.id == job.c.task_id)
        .join(pilot, pilot.c.id == job.c.pilot_id)
        .outerjoin(job_watch, (job_watch.c.job_id == job.c.id) & (job_watch.c.state == job.c.state))
        .where(
            ALIVE,
            job.c.confirmed.is_(None),
            job.c.pilot_id > after,
            job.c.pilot_id <= pilots[-1],
            or_(old, gone),
            ~expected,
        )
        .order_by(job.c.pilot_id, job.c.id)
    )
    found = [_watched(row) for row in connection.execute(query)]
    return found, pilots[-1] if len(pilots) == limit else None


def _watched(row: Any) -> WatchedJob:
    return WatchedJob(
        id=row.id,
        pilot_id=row.pilot_id,
        task_id=row.task_id,
        queue=row.queue,
        state=JOB_STATES[row.state],
        claimed=row.claimed,
        started=row.started,
        priority=row.priority,
        since=row.since,
        pilot_active=row.pilot_state == PilotState.ACTIVE,
    )


def watch_jobs(connection: Connection, found: Sequence[WatchedJob], now: float) -> None:
    """Remember since when jobs have been seen in their states."""
    if not found:
        return
    dialect_insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(job_watch)
    statement = statement.on_conflict_do_update(
        index_elements=[job_watch.c.job_id],
        set_={"state": statement.excluded.state, "since": statement.excluded.since},
    )
    connection.execute(statement, [{"job_id": each.id, "state": JOB_CODES[each.state], "since": now} for each in found])


def purge_jobs(connection: Connection) -> int:
    """Forget watched jobs that are over; how many."""
    alive = select(job.c.id).where(job.c.id == job_watch.c.job_id, ALIVE).exists()
    return int(connection.execute(delete(job_watch).where(~alive)).rowcount)


def watch_tasks(connection: Connection, states: Collection[TaskState], now: float) -> None:
    """Remember since when tasks have been seen in these states; forget those that have left theirs."""
    values = [state.value for state in states]
    still = select(task.c.id).where(task.c.id == task_watch.c.task_id, task.c.state == task_watch.c.state).exists()
    connection.execute(delete(task_watch).where(not_(still)))
    known = select(task_watch.c.task_id).where(task_watch.c.task_id == task.c.id).exists()
    new = select(task.c.id, task.c.state, literal(now), literal(False)).where(task.c.state.in_(values), ~known)
    connection.execute(insert(task_watch).from_select(["task_id", "state", "since", "told"], new))


@dataclass(frozen=True)
class WatchedTask:
    """A task that has been seen in its state since a moment, and about which nothing was told yet."""

    id: int
    state: TaskState
    since: float


def untold_tasks(connection: Connection, before: Mapping[TaskState, float]) -> list[WatchedTask]:
    """Tasks that have been in their state since the moment that ``before`` gives for it, or longer."""
    old = or_(*(and_(task_watch.c.state == state.value, task_watch.c.since <= at) for state, at in before.items()))
    query = select(task_watch).where(~task_watch.c.told, old).order_by(task_watch.c.task_id)
    return [WatchedTask(row.task_id, TaskState(row.state), row.since) for row in connection.execute(query)]


def mark_told(connection: Connection, watched: WatchedTask) -> bool:
    """It was told; False if somebody else did, or the task has been in another state meanwhile."""
    result = connection.execute(
        update(task_watch)
        .where(
            task_watch.c.task_id == watched.id,
            task_watch.c.state == watched.state.value,
            task_watch.c.since == watched.since,
            ~task_watch.c.told,
        )
        .values(told=True)
    )
    return bool(result.rowcount)
