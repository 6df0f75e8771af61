"""What finished jobs were measured to need, and how many scouts of a task may still be claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, Double, bindparam, case, delete, func, insert, or_, select, update

from common.states import FINAL_TASK_STATES, TaskState, UnitState
from common.wire import Measured, Metrics, OutputRole, QueueSpec
from server.engine.measure import Sample
from server.engine.scouts import NO_SCOUTS, JobGroup
from server.store.codes import JOB_STATES, UNIT_CODES, OutputState
from server.store.lists import among
from server.store.prepared import Prepared
from server.store.schema import job, output, task, unit
from server.store.schema_measurements import measurement

SCOUTED_STATES = (TaskState.READY.value, TaskState.SCOUTING.value)
MOST_SAMPLES = 1000
"""Jobs that a task is measured by, at the most."""
MOST = 1e12
MOST_WHOLE = 2**60
LEAST_WALL_S = 0.001
"""What a pilot says is believed within these: a shorter run was not measured."""


# ---------------------------------------------------------------- what a job measured


GIVEN: dict[str, Any] = {
    "core_power": Double,
    "cpu_efficiency": Double,
    "cpu_s": Double,
    "memory_mb": Double,
    "work_dir_mb": Double,
    "in_bytes": BigInteger,
    "io_bytes": BigInteger,
    "leak_kb_s": Double,
}
SAID: dict[str, Any] = GIVEN | {"said_events": BigInteger, "said_wall_s": Double}
"""What is known of a job beside its row, its units and its outputs."""


def _noted() -> Prepared:
    processed = or_(*(unit.c.state == UNIT_CODES[state] for state in (UnitState.DONE, UnitState.OUTPUTTING)))
    mine = (unit.c.job_id == bindparam("of_job", type_=BigInteger), processed)
    units = select(func.count()).where(*mine).scalar_subquery()
    # A unit without an event count is one event.
    counted = func.sum(case((unit.c.events > 1, unit.c.events), else_=1))
    events = select(func.coalesce(counted, 0)).where(*mine).scalar_subquery()
    written = select(func.coalesce(func.sum(output.c.size), 0)).where(
        output.c.job_id == bindparam("of_job", type_=BigInteger),
        output.c.role == OutputRole.OUTPUT.value,
        output.c.state != int(OutputState.ABANDONED),
    )
    said = bindparam("said_events", type_=BigInteger)
    wall_s = bindparam("said_wall_s", type_=Double)
    now = bindparam("now", type_=Double)
    columns = ["job_id", "task_id", "site", "cores", "units", "events", "out_bytes", "wall_s", "ended", *GIVEN]
    row = (
        select(
            job.c.id,
            job.c.task_id,
            job.c.site,
            job.c.cores,
            units,
            case((said > 0, said), else_=events),
            written.scalar_subquery(),
            case((wall_s > 0, wall_s), else_=case((now > job.c.started, now - job.c.started), else_=0.0)),
            now,
            *(bindparam(name, type_=kind) for name, kind in GIVEN.items()),
        )
        .join(task, task.c.id == job.c.task_id)
        .where(job.c.id == bindparam("job_id", type_=BigInteger), task.c.measuring)
    )
    return Prepared(insert(measurement).from_select(columns, row))


_NOTE = _noted()


def note(connection: Connection, job_id: int, metrics: Metrics | None, queue: QueueSpec | None, now: float) -> None:
    """Keep what a finished job measured, if its task is still being measured. To be called once, in the transaction that
    confirms it, after its units were settled. One statement."""
    _NOTE.count(connection, {"job_id": job_id, "of_job": job_id, "now": now, **said(metrics, queue)})


def said(metrics: Metrics | None, queue: QueueSpec | None) -> dict[str, float]:
    """What a pilot said of its job and what is known of its queue, for the columns of :data:`SAID`."""
    found = metrics or Metrics()
    place = queue or QueueSpec(name="gone", site="gone")
    return {
        "core_power": place.core_power,
        "cpu_efficiency": place.cpu_efficiency,
        "said_events": _whole(found.events),
        "cpu_s": _within(found.cpu_s),
        "said_wall_s": _within(found.wall_s) if found.wall_s >= LEAST_WALL_S else 0.0,
        "memory_mb": _within(found.max_pss_mb or found.max_rss_mb),
        "work_dir_mb": _within(found.work_dir_mb),
        "in_bytes": _whole(found.stage_in_bytes),
        "io_bytes": _whole(found.read_bytes + found.written_bytes),
        "leak_kb_s": max(-MOST, min(MOST, found.leak_kb_s)),
    }


def _within(value: float) -> float:
    return max(0.0, min(MOST, value))


def _whole(value: int) -> int:
    return max(0, min(MOST_WHOLE, value))


def samples(connection: Connection, task_id: int) -> list[Sample]:
    """What the task's jobs measured since it was last looked at, the first of them."""
    query = (
        select(measurement)
        .where(measurement.c.task_id == task_id)
        .order_by(measurement.c.ended, measurement.c.job_id)
        .limit(MOST_SAMPLES)
    )
    names = Sample.__dataclass_fields__
    return [Sample(**{name: row[name] for name in names}) for row in connection.execute(query).mappings()]


def any_fresh(connection: Connection) -> bool:
    """Whether there are jobs that were not counted yet."""
    return connection.execute(select(measurement.c.job_id).where(~measurement.c.counted).limit(1)).first() is not None


def count_fresh(connection: Connection, limit: int = 5000) -> dict[int, int]:
    """Tasks with jobs that were not counted yet, and how many jobs have measured each by now. Counts them."""
    fresh = select(measurement.c.job_id).where(~measurement.c.counted).order_by(measurement.c.job_id).limit(limit)
    rows = connection.execute(
        update(measurement).where(measurement.c.job_id.in_(fresh)).values(counted=True).returning(measurement.c.task_id)
    )
    ids = sorted({row.task_id for row in rows})
    found: dict[int, int] = {}
    for start in range(0, len(ids), 1000):
        query = (
            select(measurement.c.task_id, func.count().label("n"))
            .where(among(connection, measurement.c.task_id, ids[start : start + 1000]))
            .group_by(measurement.c.task_id)
        )
        found |= {row.task_id: int(row.n) for row in connection.execute(query)}
    return found


def measured_of(connection: Connection, task_id: int) -> Measured | None:
    """What a task was measured to need, if it was."""
    return decoded(connection.execute(select(task.c.measured).where(task.c.id == task_id)).scalar())


def decoded(text: str | None) -> Measured | None:
    """From the column of the task."""
    return msgspec.json.decode(text, type=Measured) if text else None


def keep(connection: Connection, task_id: int, measured: Measured | None, *, go_on: bool) -> None:
    """Write down what a task needs, drop the rows that told it, and measure further jobs or none."""
    values: dict[str, object] = {"measuring": go_on}
    if measured is not None:
        values["measured"] = msgspec.json.encode(measured).decode()
    connection.execute(update(task).where(task.c.id == task_id).values(**values))
    connection.execute(delete(measurement).where(measurement.c.task_id == task_id))


def over(connection: Connection, limit: int = 500) -> list[int]:
    """Tasks that have ended and are still marked as being measured."""
    final = sorted(state.value for state in FINAL_TASK_STATES)
    query = select(task.c.id).where(task.c.measuring, task.c.state.in_(final)).order_by(task.c.id).limit(limit)
    return [row.id for row in connection.execute(query)]


# ---------------------------------------------------------------- scouts


@dataclass(frozen=True)
class ScoutRow:
    """A scouting task, and what was last said of its scouts."""

    id: int
    scouts_left: int | None
    scout_sites: str | None


def take_scout(connection: Connection, task_id: int, count: int) -> bool:
    """Take one of the scouts of a task that scouts, or is to scout, for a job that this transaction is about to claim;
    ``count`` are there while nobody has counted. False: there is none, or another transaction holds the row now.

    Never waits: transactions that claim several jobs would wait for one another.
    """
    left = func.coalesce(task.c.scouts_left, count)
    free = (
        select(task.c.id)
        .where(task.c.id == task_id, task.c.state.in_(SCOUTED_STATES), left > 0)
        .with_for_update(skip_locked=True, key_share=True)
    )
    result = connection.execute(update(task).where(task.c.id == free.scalar_subquery()).values(scouts_left=left - 1))
    return bool(result.rowcount)


def give_back_scout(connection: Connection, task_id: int) -> None:
    """The claim found no unit: the scout that this transaction took is free again."""
    connection.execute(
        update(task).where(task.c.id == task_id, task.c.scouts_left >= 0).values(scouts_left=task.c.scouts_left + 1)
    )


def undecided(connection: Connection, limit: int = 500) -> list[int]:
    """Ready tasks of which it was not said whether they scout, or that scout."""
    query = (
        select(task.c.id)
        .where(task.c.state == TaskState.READY.value)
        .where(or_(task.c.scouts_left.is_(None), task.c.scouts_left != NO_SCOUTS))
        .order_by(task.c.id)
        .limit(limit)
    )
    return [row.id for row in connection.execute(query)]


def decide(connection: Connection, task_id: int, wanted: bool, count: int) -> None:
    """Say whether a task scouts; scouts of it may have been claimed already. Its row must be held."""
    left = func.coalesce(task.c.scouts_left, count) if wanted else NO_SCOUTS
    connection.execute(update(task).where(task.c.id == task_id).values(scouts_left=left))


def scouting(connection: Connection, after: int = 0, limit: int = 500) -> list[ScoutRow]:
    """Tasks that scout, by id."""
    query = (
        select(task.c.id, task.c.scouts_left, task.c.scout_sites)
        .where(task.c.state == TaskState.SCOUTING.value, task.c.id > after)
        .order_by(task.c.id)
        .limit(limit)
    )
    return [ScoutRow(row.id, row.scouts_left, row.scout_sites) for row in connection.execute(query)]


def job_groups(connection: Connection, task_ids: Sequence[int]) -> dict[int, list[JobGroup]]:
    """The jobs of tasks that scout, counted by state, site and error. To be read after the tasks' rows."""
    query = (
        select(
            job.c.task_id,
            job.c.state,
            job.c.site,
            job.c.error_code,
            func.count().label("n"),
            func.max(job.c.claimed).label("last"),
        )
        .where(job.c.task_id.in_(task_ids))
        .group_by(job.c.task_id, job.c.state, job.c.site, job.c.error_code)
    )
    found: dict[int, list[JobGroup]] = {task_id: [] for task_id in task_ids}
    for row in connection.execute(query):
        group = JobGroup(JOB_STATES[row.state], row.site, row.error_code, int(row.n), row.last)
        found[row.task_id].append(group)
    return found


def adjust(connection: Connection, row: ScoutRow, left: int, full_sites: Sequence[str]) -> bool:
    """Say how many scouts are left, if that is news and no claim came between."""
    sites = ",".join(full_sites) or None
    if (left, sites) == (row.scouts_left, row.scout_sites):
        return False
    result = connection.execute(
        update(task)
        .where(task.c.id == row.id, task.c.state == TaskState.SCOUTING.value)
        .where(task.c.scouts_left.is_not_distinct_from(row.scouts_left))
        .values(scouts_left=left, scout_sites=sites)
    )
    return bool(result.rowcount)
