"""What dashboards and Prometheus are shown: measured by an agent, kept as one row, so that looking costs nothing.

The counts come from the roll-ups of units and jobs; nothing here reads unit or job rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import Connection, delete, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from common.states import FINAL_TASK_STATES, FINAL_WORKER_STATES, TaskState, UnitState, WorkerState
from common.wire import QueueSpec, ShareSpec
from server.metrics.samples import ProbeSample, ProcessSample, QueueSample, ShareSample, SystemSample
from server.store import events, job_counts, probes, processes, world
from server.store.codes import FIRST_FINAL_JOB_CODE, JOB_STATES, UNIT_STATES, PilotState
from server.store.database import Database
from server.store.schema import bucket, job_count, pilot, pilot_beat, task, unit_count, worker
from server.store.schema_events import event, measured, process_metrics

OPEN_TASKS = [state.value for state in TaskState if state not in FINAL_TASK_STATES]
OPEN_WORKERS = [state.value for state in WorkerState if state not in FINAL_WORKER_STATES]
SYSTEM = "system"
GONE_S = 120.0
"""A process whose numbers are older than this is gone; Prometheus ends its series by itself."""


def measure(connection: Connection, now: float, late_s: float) -> SystemSample:
    """Look at everything; a pilot that was not heard of for ``late_s`` is late."""
    units, ready = _units(connection)
    idle = processes.idle_pilots(connection, now)
    return SystemSample(
        time=now,
        tasks=_open_tasks(connection),
        units=units,
        jobs=_jobs(connection),
        shares=_shares(world.shares(connection), job_counts.in_use(connection, "share"), ready),
        queues=_queues(connection, idle),
        oldest_ready_s=_oldest_ready(connection, now),
        pilots=_count(connection, select(func.count()).where(pilot.c.state == PilotState.ACTIVE)),
        pilots_late=_count(
            connection, select(func.count()).where(pilot_beat.c.time < now - late_s, pilot_beat.c.pilot_id > 0)
        ),
        pilots_idle=sum(idle.values()),
        events_unsettled_s=_unsettled(connection, now),
        probes=[
            ProbeSample(each.site, each.gpu, each.storage, each.operation.value, each.ok, each.time)
            for each in probes.results(connection)
        ],
        probes_missed=probes.missed(connection),
    )


def _count(connection: Connection, query: object) -> int:
    return int(connection.execute(query).scalar_one())  # type: ignore[call-overload]


def _open_tasks(connection: Connection) -> dict[str, int]:
    query = select(task.c.state, func.count().label("n")).where(task.c.state.in_(OPEN_TASKS)).group_by(task.c.state)
    return {row.state: int(row.n) for row in connection.execute(query)}


def _units(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
    """Units of tasks that are not over, by state; and those that are ready, by share. Files of projects are not among them."""
    query = (
        select(task.c.share, unit_count.c.state, func.sum(unit_count.c.n).label("n"))
        .join(task, task.c.id == unit_count.c.task_id)
        .where(task.c.state.in_(OPEN_TASKS), ~task.c.outside)
        .group_by(task.c.share, unit_count.c.state)
    )
    states: Counter[str] = Counter()
    ready: Counter[str] = Counter()
    for row in connection.execute(query):
        state = UNIT_STATES[row.state]
        states[state.value] += int(row.n)
        if state is UnitState.READY:
            ready[row.share] += int(row.n)
    return {state: n for state, n in sorted(states.items()) if n}, dict(ready)


def _jobs(connection: Connection) -> dict[str, int]:
    query = (
        select(job_count.c.state, func.sum(job_count.c.n).label("n"))
        .where(job_count.c.state < FIRST_FINAL_JOB_CODE)
        .group_by(job_count.c.state)
    )
    return {JOB_STATES[row.state].value: int(row.n) for row in connection.execute(query) if row.n}


def _shares(specs: Sequence[ShareSpec], cores: Mapping[str, float], ready: Mapping[str, int]) -> list[ShareSample]:
    weights: dict[str | None, float] = {}
    for spec in specs:
        weights[spec.parent] = weights.get(spec.parent, 0.0) + spec.weight
    by_name = {spec.name: spec for spec in specs}

    def target(name: str | None) -> float:
        if name is None:
            return 1.0
        spec = by_name[name]
        return target(spec.parent) * spec.weight / weights[spec.parent]

    return [
        ShareSample(spec.name, target(spec.name), int(cores.get(spec.name, 0)), ready.get(spec.name, 0))
        for spec in specs
    ]


def _queues(connection: Connection, idle: Mapping[str, int]) -> list[QueueSample]:
    query = (
        select(worker.c.queue, worker.c.state, func.count().label("n"))
        .where(worker.c.state.in_(OPEN_WORKERS))
        .group_by(worker.c.queue, worker.c.state)
    )
    workers: dict[str, dict[str, int]] = {}
    for row in connection.execute(query):
        workers.setdefault(row.queue, {})[row.state] = int(row.n)
    jobs = job_counts.alive_by_queue(connection)
    return [
        QueueSample(
            name=spec.name,
            status=spec.status.value,
            workers=workers.get(spec.name, {}),
            jobs=jobs.get(spec.name, (0, 0))[0],
            cores=jobs.get(spec.name, (0, 0))[1],
            idle_pilots=idle.get(spec.name, 0),
        )
        for spec in world.every(connection, QueueSpec)
    ]


def _oldest_ready(connection: Connection, now: float) -> float:
    query = (
        select(func.min(bucket.c.ready_since))
        .join(task, task.c.id == bucket.c.task_id)
        .where(bucket.c.maybe_ready, task.c.state.in_(OPEN_TASKS), ~task.c.outside)
    )
    since = connection.execute(query).scalar()
    return 0.0 if since is None else max(0.0, now - since)


def _unsettled(connection: Connection, now: float) -> float:
    """Nothing on SQLite, where whatever is visible is settled."""
    end = events.settled(connection)
    query = select(func.min(event.c.time)).where(tuple_(event.c.xact, event.c.id) > tuple_(*end))
    oldest = connection.execute(query).scalar()
    return 0.0 if oldest is None else max(0.0, now - oldest)


def keep(connection: Connection, sample: SystemSample) -> None:
    """Write down what was measured."""
    _put(connection, measured, {"name": SYSTEM}, sample.time, sample)


def system(connection: Connection) -> SystemSample | None:
    """What was measured last."""
    found = connection.execute(select(measured.c.value).where(measured.c.name == SYSTEM)).scalar()
    return None if found is None else msgspec.json.decode(found, type=SystemSample)


def say(connection: Connection, process: str, sample: ProcessSample, now: float) -> None:
    """Write down what a web process has counted; those long gone are forgotten."""
    _put(connection, process_metrics, {"process": process}, now, sample)
    connection.execute(delete(process_metrics).where(process_metrics.c.time < now - GONE_S))


def every_process(connection: Connection, now: float) -> dict[str, ProcessSample]:
    """What each web process has counted."""
    query = select(process_metrics).where(process_metrics.c.time >= now - GONE_S).order_by(process_metrics.c.process)
    return {row.process: msgspec.json.decode(row.value, type=ProcessSample) for row in connection.execute(query)}


def connections(database: Database) -> tuple[int, int]:
    """Connections of this process in use, and the most that there may be."""
    pool = database.engine.pool
    in_use, size = getattr(pool, "checkedout", None), getattr(pool, "size", None)
    if in_use is None or size is None:  # a kind of pool that keeps none
        return 0, 0
    return int(in_use()), 2 * int(size())


def _put(connection: Connection, table: object, key: dict[str, str], now: float, sample: msgspec.Struct) -> None:
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"time": now, "value": msgspec.json.encode(sample).decode()}
    statement = dialect_insert(table).values(**key, **values)  # type: ignore[arg-type]
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values))
