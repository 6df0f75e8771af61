"""Jobs that went wrong, and how: written down at a job's end, looked at by the agent that pauses problem tasks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from common.states import FINAL_JOB_STATES
from server.engine.problems import Wrong
from server.store.codes import JOB_CODES
from server.store.schema import job
from server.store.schema_commands import job_problem

_ENDED = sorted(JOB_CODES[state] for state in FINAL_JOB_STATES)


def note(connection: Connection, task_id: int, job_id: int, wrong: Wrong, now: float) -> None:
    """A job went wrong. To be called once, by the transaction that ends it."""
    connection.execute(insert(job_problem).values(job_id=job_id, task_id=task_id, kind=wrong.code, time=now))


def unlooked(connection: Connection, limit: int = 100) -> list[int]:
    """Tasks with jobs that went wrong since they were looked at."""
    query = select(job_problem.c.task_id).where(~job_problem.c.looked).distinct().limit(limit)
    return [row.task_id for row in connection.execute(query)]


def last_ends(connection: Connection, task_id: int, number: int) -> Sequence[Wrong | None]:
    """How the last jobs of a task ended, newest first: None for one with which nothing was wrong."""
    query = (
        select(job_problem.c.kind)
        .select_from(job.outerjoin(job_problem, job_problem.c.job_id == job.c.id))
        .where(job.c.task_id == task_id, job.c.state.in_(_ENDED))
        .order_by(job.c.id.desc())
        .limit(number)
    )
    return [None if row.kind is None else Wrong.of_code(row.kind) for row in connection.execute(query)]


def mark_looked(connection: Connection, task_id: int) -> None:
    """What is known of this task was looked at."""
    connection.execute(
        update(job_problem).where(job_problem.c.task_id == task_id, ~job_problem.c.looked).values(looked=True)
    )


def forget(connection: Connection, task_id: int) -> None:
    """A person has looked at the task: what went wrong before counts no more."""
    connection.execute(delete(job_problem).where(job_problem.c.task_id == task_id))


def purge(connection: Connection, before: float, limit: int = 5000) -> int:
    """Drop what is older; how many rows."""
    old = select(job_problem.c.job_id).where(job_problem.c.time < before).order_by(job_problem.c.time).limit(limit)
    return int(connection.execute(delete(job_problem).where(job_problem.c.job_id.in_(old))).rowcount)
