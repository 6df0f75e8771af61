"""Jobs: their rows, their ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, Table, bindparam, func, or_, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.sql.elements import ColumnElement

from common.states import FINAL_JOB_STATES, JobState, TaskState, targets
from common.wire import FinishReply, JobView, Metrics, OutputRole
from server.store import accounting, job_counts
from server.store.access import Sight
from server.store.codes import JOB_CODES, JOB_STATES, PUSHED, OutputState, PilotState
from server.store.job_counts import Move
from server.store.prepared import Prepared
from server.store.reports import metrics_in
from server.store.schema import job, output, pilot, pilot_beat, pilot_report, task
from server.store.schema_archive import job_archive

ALIVE = job.c.ended.is_(None)
"""A live job: the condition of the partial index."""


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
    cores: int
    claimed: float
    error_code: int | None
    kill_reason: str | None
    digest: str | None
    reply: FinishReply | None
    confirmed: float | None
    ordinal: int = 0
    waits: bool = False
    """Whether it was claimed for a pilot that has not been given it yet."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What never changes of a job."""

    task_id: int
    bucket_id: int
    pilot_id: int
    queue: str
    site: str


def facts(connection: Connection, job_ids: Sequence[int]) -> dict[int, JobFacts]:
    """What never changes of those of the jobs that are there. On PostgreSQL."""
    rows = _FACTS.run(connection, {"ids": list(job_ids)})
    return {row.id: JobFacts(row.task_id, row.bucket_id, row.pilot_id, row.queue, row.site) for row in rows}


_FACTS = Prepared(
    select(job.c.id, job.c.task_id, job.c.bucket_id, job.c.pilot_id, job.c.queue, job.c.site).where(
        job.c.id == func.any(bindparam("ids", type_=postgresql.ARRAY(BigInteger)))
    )
)


def get(connection: Connection, job_id: int) -> JobRow | None:
    """A job by its id."""
    row = connection.execute(select(job).where(job.c.id == job_id)).first()
    return None if row is None else _row(row)


def hold(connection: Connection, job_id: int, pilot_id: int) -> JobRow | None:
    """Lock a live job of this pilot until the transaction ends; None when it is not (any more) alive and its.

    Everybody takes the job's row first, then its units: reaper, kill and confirm alike.
    """
    found = _HOLD.run(connection, {"of_job": job_id, "of_pilot": pilot_id})
    return _row(found[0]) if found else None


_HOLD = Prepared(
    select(job)
    .where(
        job.c.id == bindparam("of_job", type_=BigInteger),
        job.c.pilot_id == bindparam("of_pilot", type_=BigInteger),
        ALIVE,
    )
    .with_for_update()
)


def hold_any(connection: Connection, job_id: int) -> JobRow | None:
    """Lock a live job, whoever's it is. One that is confirmed and waits for its registration is not its pilot's any more."""
    query = select(job).where(job.c.id == job_id, ALIVE, job.c.confirmed.is_(None)).with_for_update()
    row = connection.execute(query).first()
    return None if row is None else _row(row)


def hold_confirmed(connection: Connection, job_ids: Sequence[int]) -> list[JobRow]:
    """Lock those of the jobs that are confirmed and wait for the registration of their outputs."""
    query = select(job).where(job.c.id.in_(job_ids), ALIVE, job.c.confirmed.is_not(None)).order_by(job.c.id)
    return [_row(row) for row in connection.execute(query.with_for_update())]


def _row(row: Any) -> JobRow:
    return JobRow(
        id=row.id,
        task_id=row.task_id,
        bucket_id=row.bucket_id,
        pilot_id=row.pilot_id,
        state=JOB_STATES[row.state],
        site=row.site,
        queue=row.queue,
        cores=row.cores,
        claimed=row.claimed,
        error_code=row.error_code,
        kill_reason=row.kill_reason,
        digest=row.digest,
        reply=_REPLY.decode(row.reply) if row.reply else None,
        confirmed=row.confirmed,
        ordinal=row.ordinal,
        waits=row.request_id == PUSHED and row.state == JOB_CODES[JobState.SENT],
    )


_REPLY = msgspec.json.Decoder(FinishReply)


def states_of(connection: Connection, pilot_id: int, job_ids: Sequence[int]) -> dict[int, JobState]:
    """The states of those of the jobs that belong to the pilot."""
    query = select(job.c.id, job.c.state).where(job.c.id.in_(job_ids), job.c.pilot_id == pilot_id)
    return {row.id: JOB_STATES[row.state] for row in connection.execute(query)}


def alive_of_pilot(connection: Connection, pilot_id: int) -> list[int]:
    """Ids of the pilot's live jobs, but those that it has confirmed."""
    query = select(job.c.id).where(job.c.pilot_id == pilot_id, ALIVE, job.c.confirmed.is_(None)).order_by(job.c.id)
    return [row.id for row in connection.execute(query)]


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A live job of a pilot, as a heartbeat needs it."""

    id: int
    task_id: int
    state: JobState
    queue: str
    cores: int
    claimed: float
    kill_reason: str | None
    waits: bool = False


@dataclass(slots=True)
class PilotAndJobs:
    """A pilot's state and queue, and its live jobs by id, but those that it has confirmed."""

    state: PilotState
    queue: str
    jobs: dict[int, HeldJob]


def held_by(connection: Connection, pilot_ids: Sequence[int]) -> dict[int, PilotAndJobs]:
    """For each of the pilots that are known, what it holds."""
    rows: Any
    if connection.dialect.name == "sqlite":
        rows = _HELD_SQLITE.run(connection, {"ids": msgspec.json.encode(list(pilot_ids)).decode()})
    else:
        rows = HELD.run(connection, {"ids": list(pilot_ids)})
    return held_of(rows)


def held_of(rows: Sequence[Any]) -> dict[int, PilotAndJobs]:
    """From the rows of :data:`HELD`."""
    found: dict[int, PilotAndJobs] = {}
    for pilot_id, pilot_state, queue, job_id, task_id, state, cores, claimed, kill_reason, request_id in rows:
        held = found.get(pilot_id)
        if held is None:
            held = found[pilot_id] = PilotAndJobs(PilotState(pilot_state), queue, {})
        if job_id is not None:
            waits = request_id == PUSHED
            held.jobs[job_id] = HeldJob(job_id, task_id, JOB_STATES[state], queue, cores, claimed, kill_reason, waits)
    return found


def _held(which: ColumnElement[bool]) -> Prepared:
    return Prepared(
        select(
            pilot.c.id, pilot.c.state, pilot.c.queue, job.c.id, job.c.task_id, job.c.state, job.c.cores, job.c.claimed,
            job.c.kill_reason, job.c.request_id,
        )
        .select_from(pilot.outerjoin(job, (job.c.pilot_id == pilot.c.id) & ALIVE & job.c.confirmed.is_(None)))
        .where(which)
    )  # fmt: skip


HELD = _held(pilot.c.id == func.any(bindparam("ids", type_=postgresql.ARRAY(BigInteger))))
"""On PostgreSQL, with the array ``ids`` of pilots."""
_HELD_SQLITE = _held(pilot.c.id.in_(select(func.json_each(bindparam("ids")).table_valued("value").c.value)))


def _encoded(message: msgspec.Struct | None) -> str | None:
    return None if message is None else msgspec.json.encode(message).decode()


def advance(connection: Connection, held: HeldJob, target: JobState, now: float) -> bool:
    """Move a live job on; False if its state may not go there (an old report that came late, say)."""
    if target not in targets(held.state):
        return False
    values: dict[str, Any] = {"state": JOB_CODES[target]}
    if target in (JobState.STARTING, JobState.RUNNING):
        values["started"] = func.coalesce(job.c.started, now)
    result = connection.execute(
        update(job).where(job.c.id == held.id, job.c.state == JOB_CODES[held.state]).values(**values)
    )
    if result.rowcount:
        job_counts.add(connection, Move(held.task_id, held.queue, held.cores, held.state, target))
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


def finish(connection: Connection, held: JobRow, end: JobEnd, now: float) -> None:
    """Put a job that the transaction holds into a final state."""
    if end.state not in FINAL_JOB_STATES:
        raise AssertionError(f"{end.state} is not final")
    _FINISH.run(
        connection,
        {
            "job_id": held.id,
            "state": JOB_CODES[end.state],
            "ended": now,
            "error_code": end.error_code,
            "error_detail": end.error_detail,
            "exit_code": end.exit_code,
            "log_tail": end.log_tail,
            "digest": end.digest,
            "reply": _encoded(end.reply),
            "metrics": _encoded(end.metrics),
        },
    )
    job_counts.add(connection, Move(held.task_id, held.queue, held.cores, held.state, end.state))
    accounting.note_ended(connection, [held.id])


_ENDING = ("state", "ended", "error_code", "error_detail", "exit_code", "log_tail", "digest", "reply")
_FINISH = Prepared(
    update(job)
    .where(job.c.id == bindparam("job_id", type_=BigInteger))
    .values(
        {name: bindparam(name, type_=job.c[name].type) for name in _ENDING}
        | {"metrics": func.coalesce(bindparam("metrics", type_=job.c.metrics.type), job.c.metrics)}
    )
)


def ask_kill(connection: Connection, task_id: int, reason: str) -> int:
    """Ask the pilots of a task's live jobs to kill them; how many."""
    result = connection.execute(
        update(job).where(job.c.task_id == task_id, ALIVE, job.c.kill_reason.is_(None)).values(kill_reason=reason)
    )
    return int(result.rowcount)


def ask_kill_of_dead_tasks(connection: Connection, reason: str, since: float) -> int:
    """Ask for the kill of jobs that were being claimed while their task was killed, after ``since``; how many."""
    dead = select(task.c.id).where(
        task.c.state == TaskState.ABORTED.value, or_(task.c.ended.is_(None), task.c.ended >= since)
    )
    result = connection.execute(
        update(job).where(job.c.task_id.in_(dead), ALIVE, job.c.kill_reason.is_(None)).values(kill_reason=reason)
    )
    return int(result.rowcount)


def any_of_task(connection: Connection, task_id: int) -> bool:
    """Whether a task has or had a job."""
    return connection.execute(select(job.c.id).where(job.c.task_id == task_id).limit(1)).first() is not None


def page(
    connection: Connection,
    *,
    task_id: int | None,
    states: Iterable[JobState],
    after: int,
    limit: int,
    sight: Sight | None = None,
) -> Sequence[JobView]:
    """Jobs as people see them, by id, those in ``sight`` only; archived ones too."""
    codes = [JOB_CODES[state] for state in states]
    found: list[JobView] = []
    for table in (job_archive, job):
        where: list[ColumnElement[bool]] = [table.c.id > after]
        if task_id is not None:
            where.append(table.c.task_id == task_id)
        if codes:
            where.append(table.c.state.in_(codes))
        if sight is not None:
            where.append(table.c.task_id.in_(sight.tasks()))
        found += _views(connection, table, where, limit)
    return sorted(found, key=lambda each: each.id)[:limit]


def view(connection: Connection, job_id: int) -> JobView | None:
    """One job as people see it, from the archive if it was put there."""
    for table in (job, job_archive):
        found = _views(connection, table, [table.c.id == job_id], 1)
        if found:
            return found[0]
    return None


def _views(connection: Connection, table: Table, where: list[ColumnElement[bool]], limit: int) -> Sequence[JobView]:
    log = output.alias("log")
    alive = table.c.ended.is_(None)
    query = (
        select(table, log.c.did.label("log_did"), pilot_beat.c.time.label("heartbeat"), pilot_report.c.report)
        .outerjoin(pilot_beat, (pilot_beat.c.pilot_id == table.c.pilot_id) & alive)
        .outerjoin(pilot_report, (pilot_report.c.pilot_id == table.c.pilot_id) & alive)
        .outerjoin(
            log,
            (log.c.job_id == table.c.id)
            & (log.c.role == OutputRole.LOG.value)
            & (log.c.state == OutputState.CONFIRMED),
        )
        .where(*where)
        .order_by(table.c.id)
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
            heartbeat=row["heartbeat"] or row["claimed"],
            exit_code=row["exit_code"],
            error_code=row["error_code"],
            error_detail=row["error_detail"] or "",
            metrics=_metrics(row["metrics"], row["report"], row["id"]),
            log_did=row["log_did"],
            log_tail=row["log_tail"] or "",
        )
        for row in connection.execute(query).mappings()
    ]


def _metrics(final: str | None, report: str | None, job_id: int) -> dict[str, Any]:
    """What was measured: said at the end, else in the pilot's last report."""
    if final:
        found: dict[str, Any] = msgspec.json.decode(final)
        return found
    if report:
        told = metrics_in(report, job_id)
        if told is not None:
            return msgspec.to_builtins(told)  # type: ignore[no-any-return]
    return {}
