"""Jobs: their rows, their ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, func, select, update
from sqlalchemy.sql.elements import ColumnElement

from common.states import FINAL_JOB_STATES, JobState, TaskState, sources
from common.wire import FinishReply, JobView, Metrics, OutputRole, Shape
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_CODES, JOB_STATES, OutputState, PilotState
from server.store.schema import job, output, pilot, task, worker


@dataclass(frozen=True)
class JobRow:
    """What the rules need to know of a job."""

    id: int
    task_id: int
    bucket_id: int
    pilot_id: int
    state: JobState
    site: str
    queue: str
    heartbeat: float
    error_code: int | None
    kill_reason: str | None
    digest: str | None
    reply: FinishReply | None


def get(connection: Connection, job_id: int) -> JobRow | None:
    """A job by its id."""
    row = connection.execute(select(job).where(job.c.id == job_id)).mappings().first()
    return None if row is None else _row(row)


def hold(connection: Connection, job_id: int, pilot_id: int) -> JobRow | None:
    """Lock a live job of this pilot until the transaction ends; None when it is not (any more) alive and its.

    Everybody takes the job's row first, then its units: reaper, kill and confirm alike.
    """
    query = (
        select(job)
        .where(job.c.id == job_id, job.c.pilot_id == pilot_id, job.c.state < FIRST_FINAL_JOB_CODE)
        .with_for_update()
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else _row(row)


def hold_silent(connection: Connection, job_id: int, before: float) -> JobRow | None:
    """Lock a live job that was not heard of since ``before``."""
    query = (
        select(job)
        .where(job.c.id == job_id, job.c.heartbeat < before, job.c.state < FIRST_FINAL_JOB_CODE)
        .with_for_update()
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else _row(row)


def _row(row: RowMapping) -> JobRow:
    return JobRow(
        id=row["id"],
        task_id=row["task_id"],
        bucket_id=row["bucket_id"],
        pilot_id=row["pilot_id"],
        state=JOB_STATES[row["state"]],
        site=row["site"],
        queue=row["queue"],
        heartbeat=row["heartbeat"],
        error_code=row["error_code"],
        kill_reason=row["kill_reason"],
        digest=row["digest"],
        reply=msgspec.json.decode(row["reply"], type=FinishReply) if row["reply"] else None,
    )


def of_pilot(connection: Connection, pilot_id: int, job_ids: Sequence[int]) -> dict[int, JobRow]:
    """Those of the jobs that belong to the pilot."""
    rows = connection.execute(select(job).where(job.c.id.in_(job_ids), job.c.pilot_id == pilot_id)).mappings()
    return {row["id"]: _row(row) for row in rows}


def alive_of_pilot(connection: Connection, pilot_id: int) -> list[int]:
    """Ids of the pilot's live jobs."""
    query = select(job.c.id).where(job.c.pilot_id == pilot_id, job.c.state < FIRST_FINAL_JOB_CODE).order_by(job.c.id)
    return [row.id for row in connection.execute(query)]


def unlisted(connection: Connection, pilot_id: int, listed: Collection[int], before: float) -> list[int]:
    """Live jobs of a pilot, claimed before a moment, that it does not list."""
    query = select(job.c.id).where(
        job.c.pilot_id == pilot_id, job.c.state < FIRST_FINAL_JOB_CODE, job.c.claimed < before
    )
    return sorted({row.id for row in connection.execute(query)} - set(listed))


def beat(connection: Connection, job_ids: Sequence[int], now: float) -> None:
    """Jobs were heard of."""
    if job_ids:
        connection.execute(
            update(job).where(job.c.id.in_(job_ids), job.c.state < FIRST_FINAL_JOB_CODE).values(heartbeat=now)
        )


_PROGRESS = (
    update(job)
    .where(job.c.id == bindparam("b_id"), job.c.state < FIRST_FINAL_JOB_CODE)
    .values(
        heartbeat=bindparam("b_now"),
        metrics=func.coalesce(bindparam("b_metrics"), job.c.metrics),
    )
)


def progress(connection: Connection, reports: Sequence[tuple[int, Metrics | None]], now: float) -> None:
    """Jobs were heard of, with what they measured."""
    if reports:
        connection.execute(
            _PROGRESS, [{"b_id": job_id, "b_now": now, "b_metrics": _encoded(found)} for job_id, found in reports]
        )


def _encoded(message: msgspec.Struct | None) -> str | None:
    return None if message is None else msgspec.json.encode(message).decode()


def advance(connection: Connection, job_id: int, target: JobState, now: float) -> bool:
    """Move a live job on; False if its state may not go there (an old report that came late, say)."""
    codes = [JOB_CODES[state] for state in sources(target)]
    values: dict[str, Any] = {"state": JOB_CODES[target]}
    if target in (JobState.STARTING, JobState.RUNNING):
        values["started"] = func.coalesce(job.c.started, now)
    result = connection.execute(update(job).where(job.c.id == job_id, job.c.state.in_(codes)).values(**values))
    return bool(result.rowcount)


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    state: JobState
    error_code: int | None = None
    error_detail: str = ""
    exit_code: int | None = None
    log_tail: str = ""
    metrics: Metrics | None = None
    digest: str | None = None
    reply: FinishReply | None = None


def finish(connection: Connection, job_id: int, end: JobEnd, now: float) -> None:
    """Put a held job into a final state."""
    if end.state not in FINAL_JOB_STATES:
        raise AssertionError(f"{end.state} is not final")
    values: dict[str, Any] = {
        "state": JOB_CODES[end.state],
        "ended": now,
        "error_code": end.error_code,
        "error_detail": end.error_detail,
        "exit_code": end.exit_code,
        "log_tail": end.log_tail,
        "digest": end.digest,
        "reply": _encoded(end.reply),
    }
    if end.metrics is not None:
        values["metrics"] = _encoded(end.metrics)
    connection.execute(update(job).where(job.c.id == job_id).values(**values))


def ask_kill(connection: Connection, task_id: int, reason: str) -> int:
    """Ask the pilots of a task's live jobs to kill them; how many."""
    result = connection.execute(
        update(job)
        .where(job.c.task_id == task_id, job.c.state < FIRST_FINAL_JOB_CODE, job.c.kill_reason.is_(None))
        .values(kill_reason=reason)
    )
    return int(result.rowcount)


def ask_kill_of_dead_tasks(connection: Connection, reason: str) -> int:
    """Ask for the kill of jobs that were being claimed while their task was killed; how many."""
    dead = select(task.c.id).where(task.c.state == TaskState.ABORTED.value)
    result = connection.execute(
        update(job)
        .where(job.c.task_id.in_(dead), job.c.state < FIRST_FINAL_JOB_CODE, job.c.kill_reason.is_(None))
        .values(kill_reason=reason)
    )
    return int(result.rowcount)


def any_of_task(connection: Connection, task_id: int) -> bool:
    """Whether a task has or had a job."""
    return connection.execute(select(job.c.id).where(job.c.task_id == task_id).limit(1)).first() is not None


def clamp_future(connection: Connection, now: float) -> None:
    """After the clock was set back: nobody was heard of in the future."""
    connection.execute(
        update(job).where(job.c.state < FIRST_FINAL_JOB_CODE, job.c.heartbeat > now).values(heartbeat=now)
    )
    connection.execute(
        update(pilot).where(pilot.c.state == PilotState.ACTIVE, pilot.c.heartbeat > now).values(heartbeat=now)
    )


def silent(connection: Connection, before: float, limit: int) -> list[int]:
    """Live jobs that were not heard of since ``before``."""
    query = (
        select(job.c.id)
        .where(job.c.state < FIRST_FINAL_JOB_CODE, job.c.heartbeat < before)
        .order_by(job.c.id)
        .limit(limit)
    )
    return [row.id for row in connection.execute(query)]


def running_by_share(connection: Connection) -> dict[str, float]:
    """Cores in use, by share."""
    query = (
        select(task.c.share, func.sum(job.c.cores).label("cores"))
        .join(task, task.c.id == job.c.task_id)
        .where(job.c.state < FIRST_FINAL_JOB_CODE)
        .group_by(task.c.share)
    )
    return {row.share: float(row.cores) for row in connection.execute(query)}


def busy_pilots(connection: Connection, queue: str) -> list[tuple[Shape, int]]:
    """Pilots of a queue that hold jobs, counted by the shape of their worker."""
    query = (
        select(worker.c.shape, func.count(job.c.pilot_id.distinct()).label("n"))
        .join(pilot, pilot.c.id == job.c.pilot_id)
        .join(worker, worker.c.mark == pilot.c.worker)
        .where(job.c.state < FIRST_FINAL_JOB_CODE, job.c.queue == queue)
        .group_by(worker.c.shape)
    )
    return [(msgspec.json.decode(row.shape, type=Shape), int(row.n)) for row in connection.execute(query)]


def counts(connection: Connection, task_ids: Sequence[int]) -> dict[int, dict[JobState, int]]:
    """How many jobs of each task are in each state."""
    query = (
        select(job.c.task_id, job.c.state, func.count().label("n"))
        .where(job.c.task_id.in_(task_ids))
        .group_by(job.c.task_id, job.c.state)
    )
    result: dict[int, dict[JobState, int]] = {task_id: {} for task_id in task_ids}
    for row in connection.execute(query):
        result[row.task_id][JOB_STATES[row.state]] = int(row.n)
    return result


def page(
    connection: Connection, *, task_id: int | None, states: Iterable[JobState], after: int, limit: int
) -> Sequence[JobView]:
    """Jobs as people see them, by id."""
    where: list[ColumnElement[bool]] = [job.c.id > after]
    if task_id is not None:
        where.append(job.c.task_id == task_id)
    codes = [JOB_CODES[state] for state in states]
    if codes:
        where.append(job.c.state.in_(codes))
    return _views(connection, where, limit)


def view(connection: Connection, job_id: int) -> JobView | None:
    """One job as people see it."""
    found = _views(connection, [job.c.id == job_id], 1)
    return found[0] if found else None


def _views(connection: Connection, where: list[ColumnElement[bool]], limit: int) -> Sequence[JobView]:
    log = output.alias("log")
    query = (
        select(job, log.c.did.label("log_did"))
        .outerjoin(
            log,
            (log.c.job_id == job.c.id) & (log.c.role == OutputRole.LOG.value) & (log.c.state == OutputState.CONFIRMED),
        )
        .where(*where)
        .order_by(job.c.id)
        .limit(limit)
    )
    return [
        JobView(
            id=row["id"],
            task_id=row["task_id"],
            state=JOB_STATES[row["state"]],
            queue=row["queue"],
            host=row["host"],
            pilot_id=row["pilot_id"],
            n_units=row["n_units"],
            claimed=row["claimed"],
            started=row["started"],
            ended=row["ended"],
            heartbeat=row["heartbeat"],
            exit_code=row["exit_code"],
            error_code=row["error_code"],
            error_detail=row["error_detail"] or "",
            metrics=msgspec.json.decode(row["metrics"]) if row["metrics"] else {},
            log_did=row["log_did"],
            log_tail=row["log_tail"] or "",
        )
        for row in connection.execute(query).mappings()
    ]
