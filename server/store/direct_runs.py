"""Runs of direct jobs: claimed by harvesters, moved on by what these report (``docs/adr/0012``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, select, update

from common.states import JobState, TaskState, UnitState, WorkerState
from common.wire import Shape
from common.wire.direct import DirectReport, Language
from server.engine.direct import Facts
from server.store import events, tasks, units, workflows
from server.store.codes import JOB_CODES, UNIT_CODES, UNIT_READY, PilotState
from server.store.direct import CLAIMABLE, FOREVER_S, RunRow, facts_of, run_of
from server.store.schema import job, job_delta, pilot, task, unit, worker
from server.store.schema_direct import direct_job, direct_run

REQUEST = "direct"
"""The request id of the one job of a direct pilot."""


@dataclass(frozen=True)
class Waiting:
    """A direct job that may be claimed."""

    direct_id: int
    clusters: list[str]
    task_id: int
    unit_id: int
    bucket_id: int
    proxy_id: int


def waiting(connection: Connection, after: int, limit: int) -> list[Waiting]:
    """Direct jobs behind a number that have a ready unit and no run."""
    query = (
        select(direct_job.c.id, direct_job.c.clusters, direct_job.c.of_task, direct_job.c.proxy_id)
        .add_columns(unit.c.id.label("unit_id"), unit.c.bucket_id)
        .join(task, task.c.id == direct_job.c.of_task)
        .join(unit, unit.c.task_id == direct_job.c.of_task)
        .where(
            direct_job.c.mark.is_(None),
            direct_job.c.of_task.is_not(None),
            direct_job.c.id > after,
            task.c.state.in_([state.value for state in CLAIMABLE]),
            unit.c.state == UNIT_READY,
        )
        .order_by(direct_job.c.id)
        .limit(limit)
    )
    return [
        Waiting(
            row.id, msgspec.json.decode(row.clusters, type=list[str]), row.of_task, row.unit_id, row.bucket_id,
            row.proxy_id,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a run is to be, and for whom."""

    mark: str
    harvester: str
    queue: str
    site: str
    url: str


def claim(connection: Connection, of: Waiting, at: Place, now: float) -> int | None:
    """Claim a direct job's unit: its worker, its job, and what stands where a pilot would be; the job's number.

    None if somebody else has it, or nobody wants it any more.
    """
    free = (direct_job.c.id == of.direct_id) & direct_job.c.mark.is_(None)
    held = connection.execute(select(direct_job.c.id).where(free).with_for_update(skip_locked=True)).first()
    if held is None:
        return None
    brief = tasks.hold(connection, of.task_id)
    if brief is None or brief.state not in CLAIMABLE:
        return None
    taken = (unit.c.id == of.unit_id) & (unit.c.state == UNIT_READY)
    found = connection.execute(select(unit.c.id).where(taken).with_for_update(skip_locked=True)).first()
    if found is None:
        return None
    job_id = _job(connection, of, at, now)
    if brief.state is TaskState.READY:
        # At once, as its owner may command it at once, too.
        workflows.move(connection, brief, TaskState.RUNNING, now)
    connection.execute(update(unit).where(taken).values(state=UNIT_CODES[UnitState.RESERVED], job_id=job_id))
    key = (of.task_id, of.bucket_id)
    units.add_deltas(connection, Counter({(*key, UnitState.READY): -1, (*key, UnitState.RESERVED): 1}))
    connection.execute(
        insert(direct_run).values(
            mark=at.mark,
            direct_id=of.direct_id,
            of_job=job_id,
            harvester=at.harvester,
            queue=at.queue,
            url=at.url,
            proxy_id=of.proxy_id,
            worker_state=WorkerState.PLANNED.value,
            job_state=JobState.SENT.value,
            created=now,
        )
    )
    connection.execute(update(direct_job).where(direct_job.c.id == of.direct_id).values(mark=at.mark, changed=now))
    return job_id


def _job(connection: Connection, of: Waiting, at: Place, now: float) -> int:
    shape = msgspec.json.encode(Shape()).decode()
    connection.execute(
        insert(worker).values(
            mark=at.mark, harvester=at.harvester, queue=at.queue, state=WorkerState.PLANNED.value, shape=shape,
            nodes=1, created=now, updated=now, expires=now + FOREVER_S,
        )
    )  # fmt: skip
    pilot_id = connection.execute(
        insert(pilot)
        .values(
            worker=at.mark, nonce="", node=0, start=0, queue=at.queue, site=at.site, host="", version="",
            state=int(PilotState.DIRECT), registered=now,
        )
        .returning(pilot.c.id)
    ).scalar_one()  # fmt: skip
    job_id = connection.execute(
        insert(job)
        .values(
            task_id=of.task_id, bucket_id=of.bucket_id, pilot_id=pilot_id, state=JOB_CODES[JobState.SENT], n_units=1,
            cores=1, queue=at.queue, site=at.site, host="", claimed=now, request_id=REQUEST, ordinal=0,
        )
        .returning(job.c.id)
    ).scalar_one()  # fmt: skip
    counted = {"task_id": of.task_id, "queue": at.queue, "state": JOB_CODES[JobState.SENT], "n": 1, "cores": 1}
    connection.execute(insert(job_delta).values(**counted))
    detail = {"units": 1, "queue": at.queue, "worker": at.mark, "direct": of.direct_id}
    events.add(
        connection,
        events.Event(now, "JOB_CLAIMED", "job", job_id, of.task_id, job_id, target=JobState.SENT, detail=detail),
        events.Event(now, "WORKER_PLANNED", "worker", at.mark, target=WorkerState.PLANNED, detail={"queue": at.queue}),
    )
    return int(job_id)


@dataclass(frozen=True)
class Order:
    """A run that its harvester has not submitted yet."""

    mark: str
    direct_id: int
    job_id: int
    task_id: int
    queue: str
    proxy_id: int
    description: str
    language: Language


def orders(connection: Connection, harvester: str, limit: int) -> list[Order]:
    """The runs of a harvester that are still planned, oldest first; none that nobody wants any more."""
    query = (
        select(direct_run, direct_job.c.description, direct_job.c.language, direct_job.c.of_task)
        .join(direct_job, (direct_job.c.id == direct_run.c.direct_id) & (direct_job.c.mark == direct_run.c.mark))
        .where(direct_run.c.harvester == harvester, direct_run.c.worker_state == WorkerState.PLANNED.value)
        .order_by(direct_run.c.created, direct_run.c.mark)
        .limit(limit)
    )
    return [
        Order(
            row.mark, row.direct_id, row.of_job, row.of_task, row.queue, row.proxy_id, row.description,
            Language(row.language),
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def get(connection: Connection, mark: str) -> RunRow | None:
    """A run by its mark."""
    row = connection.execute(select(direct_run).where(direct_run.c.mark == mark)).mappings().first()
    return None if row is None else run_of(row)


def hold(connection: Connection, mark: str) -> RunRow | None:
    """A run, its row held; its job's row, if that is there still, is held before."""
    found = get(connection, mark)
    if found is None:
        return None
    connection.execute(select(direct_job.c.id).where(direct_job.c.id == found.direct_id).with_for_update()).first()
    held = connection.execute(select(direct_run).where(direct_run.c.mark == mark).with_for_update())
    row = held.mappings().first()
    return None if row is None else run_of(row)


@dataclass(frozen=True)
class Known:
    """A run, what is known of its job (None: that is gone), whether it is that job's present run, and is to be ended."""

    run: RunRow
    facts: Facts | None
    wanted: bool
    kill: bool


def known(connection: Connection, harvester: str, marks: Sequence[str]) -> dict[str, Known]:
    """Those of the runs that are this harvester's, by their marks."""
    owned = [direct_job.c.mark.label("owned_mark"), direct_job.c.description.is_not(None).label("described")]
    query = (
        select(direct_run, direct_job.c.id.label("owned"), *owned, direct_job.c.fetch)
        .add_columns(task.c.state.label("task_state"), job.c.kill_reason)
        .outerjoin(direct_job, direct_job.c.id == direct_run.c.direct_id)
        .outerjoin(task, task.c.id == direct_job.c.of_task)
        .outerjoin(job, job.c.id == direct_run.c.of_job)
        .where(direct_run.c.mark.in_(marks), direct_run.c.harvester == harvester)
    )
    return {row["mark"]: _known(row) for row in connection.execute(query).mappings()}


def _known(row: Any) -> Known:
    run = run_of(row)
    there = row["owned"] is not None
    facts = facts_of(run, bool(row["described"]), row["task_state"], bool(row["fetch"])) if there else None
    return Known(run, facts, there and row["owned_mark"] == run.mark, row["kill_reason"] is not None)


def write(connection: Connection, run: RunRow, report: DirectReport, values: dict[str, Any], now: float) -> None:
    """Write down what harvester says of a run, with further ``values``; the worker's row says it too."""
    said: dict[str, Any] = {"worker_state": report.state.value, "reason": report.reason}
    if report.native:
        said["native"] = report.native
    if report.batch_id is not None:
        said["batch_id"] = report.batch_id
    if report.exit_code is not None:
        said["exit_code"] = report.exit_code
    if report.killed:
        said["killing"] = True
    connection.execute(update(direct_run).where(direct_run.c.mark == run.mark).values(**{**said, **values}))
    known: dict[str, Any] = {"state": report.state.value, "reason": report.reason, "updated": now}
    if report.batch_id is not None:
        known["batch_id"] = report.batch_id
    if report.host:
        known["host"] = report.host
    connection.execute(update(worker).where(worker.c.mark == run.mark).values(**known))
    connection.execute(update(direct_job).where(direct_job.c.mark == run.mark).values(changed=now))


def end_pilot(connection: Connection, mark: str, reason: str, now: float) -> None:
    """Nothing stands where its pilot would be any more."""
    connection.execute(
        update(pilot)
        .where(pilot.c.worker == mark, pilot.c.state == int(PilotState.DIRECT))
        .values(state=int(PilotState.ENDED), ended=now, end_reason=reason[:1000])
    )


def forget(connection: Connection, mark: str) -> None:
    """Nothing is left of a run on its computing element; its job, worker and events stay in the books."""
    connection.execute(delete(direct_run).where(direct_run.c.mark == mark))
