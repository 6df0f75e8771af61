"""Places that are probed, and what was found there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.states import FINAL_TASK_STATES, JobState, TaskState
from common.wire import ProbeFinding, ProbeOperation, ProbePlace, ProbeResult, ProbeState, StageSpec
from server.engine.probes import OWNER, Key, Known, Place, Run, Verdict, is_own_work
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_CODES
from server.store.schema import job, task, workflow
from server.store.schema_probes import probe_place, probe_result

_FINDINGS = msgspec.json.Decoder(list[ProbeFinding])
_SPEC = msgspec.json.Decoder(StageSpec)
_IDS = msgspec.json.Decoder(list[int])


@dataclass(frozen=True)
class Open:
    """The place of a probe that has not reported, and what earlier ones may have left."""

    place: Place
    leftovers: Sequence[int]
    environment_ok: bool | None
    environment_since: float | None


def _is(place: Place) -> Any:
    return and_(probe_place.c.site == place.site, probe_place.c.gpu == place.gpu)


def runs(connection: Connection) -> list[Run]:
    """Every place, and how its latest probe stands."""
    query = (
        select(probe_place, task.c.state.label("task_state"))
        .outerjoin(task, task.c.id == probe_place.c.run_task)
        .order_by(probe_place.c.site, probe_place.c.gpu)
    )
    return [
        Run(
            Place(row.site, bool(row.gpu)),
            ProbeState(row.state),
            row.due,
            row.missed,
            row.run_task,
            TaskState(row.task_state) if row.task_state else None,
        )
        for row in connection.execute(query)
    ]


def add_place(connection: Connection, place: Place, due: float) -> None:
    """A place becomes known; one that is known stays as it is."""
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"site": place.site, "gpu": place.gpu, "due": due, "state": ProbeState.NEVER.value}
    connection.execute(dialect_insert(probe_place).values(**values).on_conflict_do_nothing())


def forget(connection: Connection, sites: Iterable[str], storages: Iterable[str]) -> int:
    """Take away what is known of sites and storages that are not among these; how much."""
    there, known = list(sites), list(storages)
    gone = connection.execute(delete(probe_place).where(probe_place.c.site.not_in(there))).rowcount
    stale = probe_result.c.site.not_in(there) | probe_result.c.storage.not_in(known)
    return int(gone + connection.execute(delete(probe_result).where(stale)).rowcount)


def hurry(connection: Connection, site: str, now: float) -> None:
    """Have the places of a site probed now, but for those that wait for a slot already."""
    waits = probe_place.c.state == ProbeState.ASKED.value
    later = probe_place.c.due > now  # one that is due already stays as it is: a repeat changes nothing
    connection.execute(update(probe_place).where(probe_place.c.site == site, ~waits, later).values(due=now))


def hold(connection: Connection, run: Run) -> bool:
    """Hold a place's row, if it is still as it was seen."""
    query = select(probe_place.c.site).where(
        _is(run.place), probe_place.c.state == run.state.value, probe_place.c.due == run.due
    )
    return connection.execute(query.with_for_update()).first() is not None


def begin(
    connection: Connection, place: Place, ids: tuple[int, int], leftovers: Sequence[int], now: float, due: float
) -> None:
    """A place has a new probe, of the workflow and task ``ids``, whose row is held; the next is ``due``."""
    values = {
        "due": due,
        "state": ProbeState.ASKED.value,
        "reason": "",
        "asked": now,
        "ended": None,
        "run_workflow": ids[0],
        "run_task": ids[1],
        "run_job": None,
        "leftovers": msgspec.json.encode(leftovers).decode(),
    }
    connection.execute(update(probe_place).where(_is(place)).values(**values))


def miss(connection: Connection, run: Run, reason: str, now: float) -> bool:
    """A place's probe did not run; False if it has reported meanwhile."""
    result = connection.execute(
        update(probe_place)
        .where(_is(run.place), probe_place.c.state == ProbeState.ASKED.value, probe_place.c.run_task == run.task_id)
        .values(state=ProbeState.MISSED.value, reason=reason, ended=now, missed=probe_place.c.missed + 1)
    )
    return bool(result.rowcount)


def unreported(connection: Connection, task_id: int | None, besides: int = 0) -> list[int]:
    """Jobs of a probe's task that did not finish: they may have left files."""
    query = select(job.c.id).where(
        job.c.task_id == task_id, job.c.id != besides, job.c.state != JOB_CODES[JobState.FINISHED]
    )
    return [row.id for row in connection.execute(query.order_by(job.c.id.desc()).limit(100))]


def over(connection: Connection, limit: int = 100) -> list[tuple[int, int]]:
    """Workflows of probes with their tasks that are over, jobs included, and no place's latest any more."""
    ours = select(task.c.id, task.c.workflow_id).join(workflow, workflow.c.id == task.c.workflow_id)
    ours = ours.where(workflow.c.owner == OWNER)
    open_ = ours.where(task.c.state.not_in([state.value for state in FINAL_TASK_STATES])).subquery()
    alive = ours.join(job, job.c.task_id == task.c.id).where(job.c.state < FIRST_FINAL_JOB_CODE).subquery()
    latest = select(probe_place.c.run_workflow).where(probe_place.c.run_workflow.is_not(None))
    query = ours.add_columns(task.c.spec).where(
        workflow.c.id.not_in(select(open_.c.workflow_id)),
        workflow.c.id.not_in(select(alive.c.workflow_id)),
        workflow.c.id.not_in(latest),
    )
    rows = connection.execute(query.order_by(workflow.c.id).limit(limit))
    # A person may have that name: what is deleted is what nobody but the system can submit.
    return [(row.workflow_id, row.id) for row in rows if is_own_work(_SPEC.decode(row.spec))]


def host_of(connection: Connection, job_id: int) -> str:
    """Where a job ran; empty if nobody knows."""
    return str(connection.execute(select(job.c.host).where(job.c.id == job_id)).scalar() or "")


def of_task(connection: Connection, task_id: int, *, lock: bool = False) -> Open | None:
    """The place whose latest probe this task is, until it has reported; with ``lock`` its row is held."""
    query = select(probe_place).where(probe_place.c.run_task == task_id, probe_place.c.state == ProbeState.ASKED.value)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        return None
    ok = None if row.environment_ok is None else bool(row.environment_ok)
    return Open(Place(row.site, bool(row.gpu)), _IDS.decode(row.leftovers), ok, row.environment_since)


def known(connection: Connection, place: Place) -> Mapping[Key, Known]:
    """What is known of the storages from a place."""
    query = select(probe_result).where(probe_result.c.site == place.site, probe_result.c.gpu == place.gpu)
    return {
        (row.storage, ProbeOperation(row.operation)): Known(bool(row.ok), row.since)
        for row in connection.execute(query)
    }


@dataclass(frozen=True)
class Told:
    """Which job reported, from where, and what it says of its node."""

    job_id: int
    queue: str
    host: str
    environment: Sequence[ProbeFinding]
    environment_ok: bool
    environment_since: float


def keep(connection: Connection, place: Place, told: Told, found: Sequence[Verdict], now: float) -> None:
    """Write down a report; the place's row must be held."""
    connection.execute(
        update(probe_place)
        .where(_is(place))
        .values(
            state=ProbeState.DONE.value, reason="", ended=now, missed=0, leftovers="[]", run_job=told.job_id,
            queue=told.queue, host=told.host, environment=msgspec.json.encode(told.environment).decode(),
            environment_ok=told.environment_ok, environment_since=told.environment_since,
        )
    )  # fmt: skip
    for each in found:
        where = and_(
            probe_result.c.site == place.site,
            probe_result.c.gpu == place.gpu,
            probe_result.c.storage == each.storage,
            probe_result.c.operation == each.operation.value,
        )
        outcome = each.outcome
        values = {
            "ok": outcome.ok,
            "error_code": outcome.error_code,
            "error_detail": outcome.error_detail,
            "seconds": outcome.seconds,
            "mb_s": outcome.mb_s,
            "time": now,
            "since": each.since,
            "run_job": told.job_id,
        }
        if not connection.execute(update(probe_result).where(where).values(**values)).rowcount:
            key = {"site": place.site, "gpu": place.gpu, "storage": each.storage, "operation": each.operation.value}
            connection.execute(insert(probe_result).values(**key, **values))


def failing(connection: Connection) -> frozenset[tuple[str, str, bool]]:
    """Site, storage and whether it is writing: what failed when it was tried last, by slots of any kind."""
    query = select(probe_result.c.site, probe_result.c.storage, probe_result.c.operation).where(
        ~probe_result.c.ok, ~probe_result.c.gpu
    )
    write = ProbeOperation.WRITE.value
    return frozenset((row.site, row.storage, row.operation == write) for row in connection.execute(query))


def places(connection: Connection) -> list[ProbePlace]:
    """All places, as people see them."""
    rows = connection.execute(select(probe_place).order_by(probe_place.c.site, probe_place.c.gpu))
    return [
        ProbePlace(
            site=row.site,
            gpu=bool(row.gpu),
            state=ProbeState(row.state),
            reason=row.reason,
            due=row.due,
            asked=row.asked,
            ended=row.ended,
            missed=row.missed,
            task_id=row.run_task,
            job_id=row.run_job,
            queue=row.queue,
            host=row.host,
            environment_ok=None if row.environment_ok is None else bool(row.environment_ok),
            environment=_FINDINGS.decode(row.environment) if row.environment else [],
        )
        for row in rows
    ]


def missed(connection: Connection) -> dict[str, int]:
    """How many probes in a row did not run, by site: of its slots of either kind, the more."""
    query = select(probe_place.c.site, func.max(probe_place.c.missed).label("n")).group_by(probe_place.c.site)
    return {row.site: int(row.n) for row in connection.execute(query)}


def results(connection: Connection) -> list[ProbeResult]:
    """The table of site and storage, as people see it."""
    order = (probe_result.c.site, probe_result.c.gpu, probe_result.c.storage, probe_result.c.operation)
    return [
        ProbeResult(
            site=row.site,
            gpu=bool(row.gpu),
            storage=row.storage,
            operation=ProbeOperation(row.operation),
            ok=bool(row.ok),
            error_code=row.error_code,
            error_detail=row.error_detail,
            seconds=row.seconds,
            mb_s=row.mb_s,
            time=row.time,
            since=row.since,
            job_id=row.run_job,
        )
        for row in connection.execute(select(probe_result).order_by(*order))
    ]
