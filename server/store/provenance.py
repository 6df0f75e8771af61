"""Records of jobs that have ended and of how their tasks were defined: written once, never deleted with either."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, and_, literal, null, select, union_all

from common.states import JobState
from common.wire import Metrics, StageSpec, TraceView
from server.engine.accounting import EndedJob
from server.engine.provenance import TaskOrigin, UnitOrigin, digest_of, task_document
from server.engine.sizing import number_of
from server.store import outputs
from server.store.codes import JOB_CODES, JOB_STATES, UNIT_STATES, OutputState
from server.store.lists import Insert, among, put
from server.store.outputs import OutputRow
from server.store.schema import job, output, pilot, task, unit, unit_detail, worker, workflow
from server.store.schema_outputs import job_ended, trace_job, trace_task

TASKS_AT_ONCE = 100
"""Tasks whose definitions, which may be large, are in memory at once."""


@dataclass(frozen=True)
class JobPlace:
    """What is told of a job beside what accounting needs."""

    host: str
    pilot_id: int
    pilot_version: str
    worker: str
    batch_id: str | None
    harvester: str
    exit_code: int | None
    error_code: int | None
    error_detail: str


def jobs(connection: Connection, job_ids: Collection[int]) -> dict[int, tuple[EndedJob, JobPlace]]:
    """Jobs with all that is to be told of them; one that has not ended yet ends now for this purpose."""
    query: Select[Any] = (
        select(
            job.c.id, job.c.task_id, job.c.pilot_id, job.c.queue, job.c.site, job.c.host, job.c.cores, job.c.state,
            job.c.claimed, job.c.started, job.c.ended, job.c.confirmed, job.c.metrics, job.c.exit_code,
            job.c.error_code, job.c.error_detail, workflow.c.owner, workflow.c.group_name, pilot.c.version,
            pilot.c.worker, worker.c.batch_id, worker.c.harvester,
        )
        .join(task, task.c.id == job.c.task_id)
        .join(workflow, workflow.c.id == task.c.workflow_id)
        .outerjoin(pilot, pilot.c.id == job.c.pilot_id)
        .outerjoin(worker, worker.c.mark == pilot.c.worker)
        .where(among(connection, job.c.id, job_ids))
    )  # fmt: skip
    return {row.id: (_ended(row), _place(row)) for row in connection.execute(query)}


def _ended(row: Row[Any]) -> EndedJob:
    return EndedJob(
        id=row.id,
        task_id=row.task_id,
        queue=row.queue,
        site=row.site,
        cores=row.cores,
        state=JOB_STATES[row.state],
        claimed=row.claimed,
        started=row.started,
        ended=row.ended if row.ended is not None else row.confirmed or row.claimed,
        confirmed=row.confirmed,
        metrics=msgspec.json.decode(row.metrics, type=Metrics) if row.metrics else None,
        owner=row.owner,
        group=row.group_name or "",
    )


def _place(row: Row[Any]) -> JobPlace:
    return JobPlace(
        host=row.host,
        pilot_id=row.pilot_id,
        pilot_version=row.version or "",
        worker=row.worker or "",
        batch_id=row.batch_id,
        harvester=row.harvester or "",
        exit_code=row.exit_code,
        error_code=row.error_code,
        error_detail=row.error_detail or "",
    )


def units(connection: Connection, job_ids: Collection[int]) -> dict[int, list[UnitOrigin]]:
    """The units that jobs hold or held last, by job."""
    query = (
        select(
            unit.c.id, unit.c.seq, unit.c.state, unit.c.job_id, unit_detail.c.did, unit_detail.c.checksum,
            unit_detail.c.counter, unit_detail.c.first_event, unit_detail.c.events,
        )
        .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
        .where(among(connection, unit.c.job_id, job_ids))
        .order_by(unit.c.id)
    )  # fmt: skip
    found: dict[int, list[UnitOrigin]] = {job_id: [] for job_id in job_ids}
    for row in connection.execute(query):
        found[row.job_id].append(
            UnitOrigin(
                id=row.id,
                seq=number_of(row.seq),
                state=UNIT_STATES[row.state].value,
                did=row.did,
                checksum=row.checksum,
                counter=row.counter,
                first_event=row.first_event,
                events=row.events,
            )
        )
    return found


def written(connection: Connection, job_ids: Collection[int]) -> list[OutputRow]:
    """The outputs that jobs wrote and that are visible, by id."""
    query = select(output).where(
        among(connection, output.c.job_id, job_ids), output.c.state == int(OutputState.CONFIRMED)
    )
    return outputs.rows_of(connection, query.order_by(output.c.id))


_ORIGIN: Select[Any] = (
    select(
        task.c.id, task.c.spec, task.c.created, task.c.changed, workflow.c.id.label("workflow_id"), workflow.c.name,
        workflow.c.owner, workflow.c.group_name, workflow.c.scope, workflow.c.labels,
    )
    .join(workflow, workflow.c.id == task.c.workflow_id)
)  # fmt: skip


def describe_task(connection: Connection, task_id: int) -> dict[str, Any] | None:
    """A task's document as it is defined now."""
    row = connection.execute(_ORIGIN.where(task.c.id == task_id)).first()
    return None if row is None else _document(row)


def _document(row: Row[Any]) -> dict[str, Any]:
    origin = TaskOrigin(
        id=row.id,
        workflow_id=row.workflow_id,
        workflow=row.name,
        owner=row.owner,
        group=row.group_name,
        scope=row.scope,
        labels=msgspec.json.decode(row.labels),
        created=row.created,
    )
    return task_document(origin, msgspec.json.decode(row.spec, type=StageSpec))


def record_tasks(connection: Connection, task_ids: Collection[int]) -> dict[int, int]:
    """The record of each task as it is defined now, made if there is none; its id by task.

    A task that did not change since its record was looked at is not read again: its definition may be large.
    """
    current = (
        select(trace_task.c.task_id, trace_task.c.id)
        .join(task, and_(task.c.id == trace_task.c.task_id, task.c.changed == trace_task.c.checked))
        .where(among(connection, trace_task.c.task_id, task_ids))
    )
    found = {row.task_id: row.id for row in connection.execute(current)}
    unknown = sorted(set(task_ids) - set(found))
    for start in range(0, len(unknown), TASKS_AT_ONCE):
        found |= _record_tasks(connection, unknown[start : start + TASKS_AT_ONCE])
    return found


def _record_tasks(connection: Connection, task_ids: Collection[int]) -> dict[int, int]:
    rows = connection.execute(_ORIGIN.where(among(connection, task.c.id, task_ids)).order_by(task.c.id))
    documents = {row.id: (row.changed, _document(row)) for row in rows}
    records = [
        {
            "task_id": task_id,
            "digest": digest_of(document),
            "document": msgspec.json.encode(document).decode(),
            "checked": changed,
        }
        for task_id, (changed, document) in documents.items()
    ]
    made = put(connection, trace_task, records, _checked_anew, (trace_task.c.task_id, trace_task.c.id))
    return {row.task_id: row.id for row in made}


def _checked_anew(statement: Insert) -> Insert:
    return statement.on_conflict_do_update(
        index_elements=["task_id", "digest"], set_={"checked": statement.excluded.checked}
    )


@dataclass(frozen=True)
class NewRecord:
    """A job that has ended, to be written down."""

    ended: EndedJob
    place: JobPlace
    trace_task_id: int
    document: Mapping[str, Any]


def record_jobs(connection: Connection, records: Iterable[NewRecord]) -> None:
    """Write jobs down. One that is written down already stays as it is."""
    rows = [
        {
            "job_id": each.ended.id,
            "trace_task_id": each.trace_task_id,
            "task_id": each.ended.task_id,
            "owner": each.ended.owner,
            "group_name": each.ended.group or None,
            "pilot_id": each.place.pilot_id,
            "queue": each.ended.queue,
            "site": each.ended.site,
            "host": each.place.host,
            "claimed": each.ended.claimed,
            "ended": each.ended.ended,
            "document": msgspec.json.encode(each.document).decode(),
        }
        for each in records
    ]
    put(connection, trace_job, rows, lambda statement: statement.on_conflict_do_nothing())


def recorded(connection: Connection, job_id: int) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The documents of a job that was written down and of its task."""
    row = connection.execute(
        select(trace_job.c.document, trace_task.c.document.label("task_document"))
        .join(trace_task, trace_task.c.id == trace_job.c.trace_task_id)
        .where(trace_job.c.job_id == job_id)
    ).first()
    return None if row is None else (msgspec.json.decode(row.document), msgspec.json.decode(row.task_document))


# ---------------------------------------------------------------- who ran what where


@dataclass(frozen=True)
class TraceWanted:
    """Which jobs to look for: those that ran on ``host`` or for ``owner`` at some time between two moments."""

    host: str | None
    owner: str | None
    since: float
    until: float
    site: str | None = None


def trace(connection: Connection, wanted: TraceWanted, *, after: int, limit: int) -> list[TraceView]:
    """Jobs by id, live ones and those whose rows are long gone alike."""
    books = select(
        trace_job.c.job_id, trace_job.c.task_id, trace_job.c.owner, trace_job.c.group_name, trace_job.c.queue,
        trace_job.c.site, trace_job.c.host, trace_job.c.pilot_id, trace_job.c.claimed, trace_job.c.ended,
        trace_job.c.document, literal(JOB_CODES[JobState.SENT]).label("state"),
    ).where(*_matching(wanted, trace_job.c), trace_job.c.ended >= wanted.since, trace_job.c.job_id > after)  # fmt: skip
    if wanted.owner is not None:
        books = books.where(trace_job.c.owner == wanted.owner)
    alive = _live(wanted, after).where(job.c.ended.is_(None))
    fresh = _live(wanted, after).where(job.c.id.in_(select(job_ended.c.job_id)), job.c.ended >= wanted.since)
    found = union_all(books, alive, fresh).subquery()
    rows = connection.execute(select(found).order_by(found.c.job_id).limit(limit)).all()
    workers = _workers(connection, {row.pilot_id for row in rows if row.document is None})
    return [_trace_view(row, workers) for row in rows]


def _matching(wanted: TraceWanted, columns: Any) -> list[Any]:
    terms = [columns.claimed < wanted.until]
    if wanted.host is not None:
        terms.append(columns.host == wanted.host)
    if wanted.site is not None:
        terms.append(columns.site == wanted.site)
    return terms


def _live(wanted: TraceWanted, after: int) -> Select[Any]:
    query = (
        select(
            job.c.id.label("job_id"), job.c.task_id, workflow.c.owner, workflow.c.group_name, job.c.queue, job.c.site,
            job.c.host, job.c.pilot_id, job.c.claimed, job.c.ended, null().label("document"), job.c.state,
        )
        .join(task, task.c.id == job.c.task_id)
        .join(workflow, workflow.c.id == task.c.workflow_id)
        .where(*_matching(wanted, job.c), job.c.id > after)
    )  # fmt: skip
    return query if wanted.owner is None else query.where(workflow.c.owner == wanted.owner)


def _workers(connection: Connection, pilot_ids: Collection[int]) -> dict[int, tuple[str, str | None]]:
    query = (
        select(pilot.c.id, worker.c.mark, worker.c.batch_id)
        .join(worker, worker.c.mark == pilot.c.worker)
        .where(pilot.c.id.in_(list(pilot_ids)))
    )
    return {row.id: (row.mark, row.batch_id) for row in connection.execute(query)}


def _trace_view(row: Row[Any], workers: Mapping[int, tuple[str, str | None]]) -> TraceView:
    document = msgspec.json.decode(row.document) if row.document else {}
    mark, batch_id = workers.get(row.pilot_id, (document.get("worker", ""), document.get("batch_id")))
    return TraceView(
        id=row.job_id,
        task_id=row.task_id,
        state=JobState(document["state"]) if document else JOB_STATES[row.state],
        owner=row.owner,
        group=row.group_name,
        queue=row.queue,
        site=row.site,
        host=row.host,
        pilot_id=row.pilot_id,
        worker=mark,
        batch_id=batch_id,
        claimed=row.claimed,
        ended=row.ended,
    )
