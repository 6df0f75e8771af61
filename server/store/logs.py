"""Log archives of failed jobs, kept for a while."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from common.states import JobState
from server.store.codes import JOB_STATES
from server.store.schema import job, task, workflow
from server.store.schema_commands import job_log


@dataclass(frozen=True)
class LogOwner:
    """Whose job it is: its pilot, its task with the owner and the group, and how it ended."""

    task_id: int
    pilot_id: int
    state: JobState
    owner: str
    group: str | None


def owner_of(connection: Connection, job_id: int) -> LogOwner | None:
    """Whose job it is."""
    query = (
        select(job.c.task_id, job.c.pilot_id, job.c.state, workflow.c.owner, workflow.c.group_name)
        .join(task, task.c.id == job.c.task_id)
        .join(workflow, workflow.c.id == task.c.workflow_id)
        .where(job.c.id == job_id)
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return LogOwner(row.task_id, row.pilot_id, JOB_STATES[row.state], row.owner, row.group_name)


def keep(connection: Connection, task_id: int, job_id: int, data: bytes, now: float) -> None:
    """Keep the log of a job; a second one replaces the first."""
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    connection.execute(
        dialect_insert(job_log)
        .values(job_id=job_id, task_id=task_id, data=data, time=now)
        .on_conflict_do_update(index_elements=[job_log.c.job_id], set_={"data": data, "time": now})
    )


def read(connection: Connection, job_id: int) -> bytes | None:
    """The log of a job, if it is (still) there."""
    data = connection.execute(select(job_log.c.data).where(job_log.c.job_id == job_id)).scalar()
    return None if data is None else bytes(data)


def drop_old(connection: Connection, before: float, limit: int = 500) -> int:
    """Take away older logs; how many."""
    old = select(job_log.c.job_id).where(job_log.c.time < before).order_by(job_log.c.time).limit(limit)
    return int(connection.execute(delete(job_log).where(job_log.c.job_id.in_(old))).rowcount)
