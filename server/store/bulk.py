"""Filling an empty database by the million, for ``pilotage bench``: one statement a table, made inside the database.

Rows follow the tables: a column that has no value here and may not be empty is an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    String,
    Table,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    true,
    update,
)

from common.states import JobState, TaskState, UnitState, WorkerState
from common.wire import Offer, Shape
from server.store.codes import JOB_CODES, UNIT_CODES, PilotState
from server.store.database import Database
from server.store.schema import (
    bucket,
    event,
    job,
    job_count,
    metadata,
    pilot,
    pilot_beat,
    pilot_report,
    queue,
    task,
    unit,
    unit_count,
    unit_detail,
    worker,
)
from server.store.schema_inputs import task_source
from server.store.units import MEBIBYTE

UNIT_MB = 1000
"""Every file has this many mebibytes."""
EVENTS = 10_000
"""And this many events."""
BEAT_SPREAD_S = 1800
"""Live jobs were heard of at moments spread over so many seconds."""
DAY_S = 86400.0


@dataclass(frozen=True)
class NewBucket:
    """A bucket to be made."""

    id: int
    task_id: int
    locations: tuple[str, ...]


@dataclass(frozen=True)
class Slots:
    """What all pilots have in common: queues are named ``<prefix><0 … n-1>`` and taken in turn.

    ``report`` is what they last reported as JSON, before and after the number of their job.
    """

    queue_prefix: str
    queues: int
    offer: Offer
    shape: Shape
    report: tuple[str, str]


class Unfilled(Exception):
    """A table has a column that the benchmark does not know how to fill."""


def task_ids(connection: Connection) -> list[int]:
    """All tasks, by their ids."""
    return list(connection.execute(select(task.c.id).order_by(task.c.id)).scalars())


def open_tasks(connection: Connection, task_ids: Sequence[int], resolved: int) -> None:
    """Tasks run, with all their input known."""
    for start in range(0, len(task_ids), 1000):
        connection.execute(
            update(task)
            .where(task.c.id.in_(task_ids[start : start + 1000]))
            .values(state=TaskState.RUNNING.value, resolved=resolved, input_closed=True)
        )
        connection.execute(delete(task_source).where(task_source.c.task_id.in_(task_ids[start : start + 1000])))


def add_buckets(connection: Connection, buckets: Iterable[NewBucket], ready: int, now: float) -> None:
    """Make buckets; the first ``ready`` of them say that they may have ready units."""
    rows = [
        {
            "id": each.id,
            "task_id": each.task_id,
            "locations": ",".join(each.locations),
            "maybe_ready": each.id <= ready,
            "ready_since": now - each.id % 3600,
            "unit_mb": UNIT_MB,
        }
        for each in buckets
    ]
    check_columns(bucket, rows[0])
    for start in range(0, len(rows), 10_000):
        connection.execute(insert(bucket), rows[start : start + 10_000])


def add_ready_units(connection: Connection, buckets: int, each: int) -> int:
    """``each`` ready units in each of the first ``buckets`` buckets, ids from 1; how many."""
    i = _series(connection, 1, each)
    unit_id = (bucket.c.id - 1) * each + i
    source = _with_series(select_from=bucket, on=true(), i=i)
    _insert(
        connection, unit, source, bucket.c.id <= buckets,
        {
            "id": unit_id,
            "task_id": bucket.c.task_id,
            "bucket_id": bucket.c.id,
            "seq": unit_id,
            "size_mb": literal(UNIT_MB),
            "events": literal(EVENTS),
            "state": literal(UNIT_CODES[UnitState.READY]),
        },
        in_order=unit_id,
    )  # fmt: skip
    return buckets * each


def add_pilots(
    connection: Connection, slots: Slots, first: int, count: int, now: float, *, reporting: bool = False
) -> None:
    """Pilots with ids from ``first`` on, each with its worker; ``reporting`` ones have reported on the job of their number."""
    i = _series(connection, first, first + count - 1)
    source = _with_series(select_from=queue, on=queue.c.name == _numbered(slots.queue_prefix, i % slots.queues), i=i)
    heard = literal(now) - i % BEAT_SPREAD_S
    _insert(
        connection, worker, source, true(),
        {
            "mark": _numbered("bench-", i),
            "harvester": literal("bench"),
            "queue": queue.c.name,
            "state": literal(WorkerState.RUNNING.value),
            "batch_id": _numbered("batch.", i),
            "shape": literal(msgspec.json.encode(slots.shape).decode()),
            "nodes": literal(1),
            "created": heard,
            "updated": heard,
            "expires": literal(now + 7 * DAY_S),
        },
    )  # fmt: skip
    _insert(
        connection, pilot, source, true(),
        {
            "id": i,
            "worker": _numbered("bench-", i),
            "nonce": _numbered("nonce-", i),
            "node": literal(0),
            "start": literal(0),
            "queue": queue.c.name,
            "site": queue.c.site,
            "host": _numbered("node-", i),
            "version": literal("bench"),
            "state": literal(int(PilotState.ACTIVE)),
            "registered": heard,
        },
    )  # fmt: skip
    _insert(connection, pilot_beat, source, true(), {"pilot_id": i, "time": heard})
    report = literal(slots.report[0], String) + cast(i, Text) + literal(slots.report[1])
    _insert(
        connection, pilot_report, source, true(),
        {
            "pilot_id": i,
            "report": report if reporting else null(),
            "offer": literal(msgspec.json.encode(slots.offer).decode()),
        },
    )  # fmt: skip


@dataclass(frozen=True)
class NewJobs:
    """Jobs ``first … first+count-1`` in one state; unit ``first_unit + k`` belongs to the k-th, in turn over buckets."""

    first: int
    count: int
    first_pilot: int
    pilots: int
    first_unit: int
    buckets: int
    state: JobState
    unit_state: UnitState


def add_jobs(connection: Connection, slots: Slots, jobs: NewJobs, now: float) -> None:
    """Jobs of one unit each, with their units. Pilots are taken in turn."""
    k = _series(connection, 0, jobs.count - 1)
    pilot_id = jobs.first_pilot + k % jobs.pilots
    on_bucket = bucket.c.id == 1 + k % jobs.buckets
    finished = jobs.state == JobState.FINISHED
    heard = literal(now) - pilot_id % BEAT_SPREAD_S - (DAY_S if finished else 0.0)
    _insert(
        connection, unit, _with_series(select_from=bucket, on=on_bucket, i=k), true(),
        {
            "id": jobs.first_unit + k,
            "task_id": bucket.c.task_id,
            "bucket_id": bucket.c.id,
            "seq": jobs.first_unit + k,
            "job_id": jobs.first + k,
            "size_mb": literal(UNIT_MB),
            "events": literal(EVENTS),
            "state": literal(UNIT_CODES[jobs.unit_state]),
        },
    )  # fmt: skip
    on_queue = queue.c.name == _numbered(slots.queue_prefix, pilot_id % slots.queues)
    source = _with_series(select_from=bucket, on=on_bucket, i=k).join(queue, on_queue)
    _insert(
        connection, job, source, true(),
        {
            "id": jobs.first + k,
            "task_id": bucket.c.task_id,
            "bucket_id": bucket.c.id,
            "pilot_id": pilot_id,
            "state": literal(JOB_CODES[jobs.state]),
            "n_units": literal(1),
            "cores": literal(1),
            "queue": queue.c.name,
            "site": queue.c.site,
            "host": _numbered("node-", pilot_id),
            "request_id": _numbered("bench-", jobs.first + k),
            "ordinal": literal(0),
            "claimed": heard - 3600.0,
            "started": heard - 3590.0,
            "ended": heard if finished else null(),
            "exit_code": literal(0) if finished else null(),
        },
    )  # fmt: skip


def add_history_events(connection: Connection, first_job: int, count: int) -> None:
    """For each finished job the events of its claim and its end."""
    for kind, source, target, time in (
        ("JOB_CLAIMED", null(), literal(JobState.SENT.value), job.c.claimed),
        ("JOB_FINISHED", literal(JobState.RUNNING.value), literal(JobState.FINISHED.value), job.c.ended),
    ):
        _insert(
            connection, event, job, (job.c.id >= first_job) & (job.c.id < first_job + count),
            {
                "time": time,
                "kind": literal(kind),
                "subject": literal("job"),
                "subject_id": cast(job.c.id, Text),
                "task_id": job.c.task_id,
                "job_id": job.c.id,
                "source": source,
                "target": target,
            },
        )  # fmt: skip


def describe_units(connection: Connection) -> None:
    """The wordy part of every unit: a file with a replica at each of its bucket's locations."""
    path = literal("/bench/", String) + cast(unit.c.id % 1000, Text) + literal("/f") + cast(unit.c.id, Text)
    separator = literal('","path":"', String) + path + literal('"},{"storage":"')
    replicas = (
        literal('[{"storage":"', String)
        + func.replace(bucket.c.locations, literal(",", String), separator)
        + literal('","path":"')
        + path
        + literal('"}]')
    )
    _insert(
        connection, unit_detail, unit.join(bucket, bucket.c.id == unit.c.bucket_id), true(),
        {
            "unit_id": unit.c.id,
            "did": _numbered("bench:run3.data.", unit.c.id),
            "size": literal(UNIT_MB * MEBIBYTE, BigInteger),
            "events": literal(EVENTS),
            "checksum": literal("adler32:00000001"),
            "replicas": replicas,
        },
        in_order=unit.c.id,
    )  # fmt: skip


def roll_up(connection: Connection) -> None:
    """The counts of all units and jobs that are there."""
    counted = select(unit.c.task_id, unit.c.bucket_id, unit.c.state, func.count()).group_by(
        unit.c.task_id, unit.c.bucket_id, unit.c.state
    )
    connection.execute(insert(unit_count).from_select(["task_id", "bucket_id", "state", "n"], counted))
    key = (job.c.task_id, job.c.queue, job.c.state)
    totals = select(*key, func.count(), func.sum(job.c.cores)).group_by(*key)
    connection.execute(insert(job_count).from_select(["task_id", "queue", "state", "n", "cores"], totals))


def wrong_claims(database: Database, claims: Sequence[tuple[int, int]]) -> int:
    """How many (unit, job) pairs that were answered the database does not have so."""
    wrong = 0
    query = select(unit.c.id, unit.c.job_id).where(unit.c.id.in_(bindparam("ids", expanding=True)))
    with database.read() as connection:
        for start in range(0, len(claims), 10_000):
            said = dict(claims[start : start + 10_000])
            held = {row.id: row.job_id for row in connection.execute(query, {"ids": list(said)})}
            wrong += sum(held.get(unit_id) != job_id for unit_id, job_id in said.items())
    return wrong


def backlog(database: Database) -> int:
    """Changes of counts that the agents have not folded yet."""
    delta = metadata.tables["unit_delta"]
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(delta)).scalar_one())


def _series(connection: Connection, first: int, last: int) -> ColumnElement[int]:
    """The numbers ``first … last`` as the column of a table."""
    if connection.dialect.name == "sqlite":
        numbers = select(literal(first, BigInteger).label("i")).cte("series", recursive=True)
        return numbers.union_all(select(numbers.c.i + 1).where(numbers.c.i < last)).c.i
    bounds = (literal(first, BigInteger), literal(last, BigInteger))
    return func.generate_series(*bounds).table_valued(column("i", BigInteger), name="series").render_derived().c.i


def _with_series(*, select_from: FromClause, on: ColumnElement[bool], i: ColumnElement[int]) -> FromClause:
    return i.table.join(select_from, on)  # type: ignore[no-any-return]


def _numbered(prefix: str, number: ColumnElement[int]) -> ColumnElement[str]:
    return literal(prefix, String) + cast(number, Text)


def _insert(
    connection: Connection,
    table: Table,
    source: FromClause,
    where: ColumnElement[bool],
    values: Mapping[str, Any],
    *,
    in_order: ColumnElement[int] | None = None,
) -> None:
    """``in_order`` says by what the rows are to lie in the table, where the join would strew them."""
    check_columns(table, values)
    query = select(*values.values()).select_from(source).where(where).order_by(in_order)
    connection.execute(insert(table).from_select(list(values), query))


def check_columns(table: Table, values: Mapping[str, Any]) -> None:
    """Hold values for a table against its columns.

    Raises:
        Unfilled: the table was changed and this module was not.
    """
    needed = {
        column.name
        for column in table.c
        if not column.nullable and column.server_default is None and column is not table.autoincrement_column
    }
    missing = sorted(needed - set(values))
    unknown = sorted(set(values) - set(table.c.keys()))
    if missing or unknown:
        raise Unfilled(f"table {table.name}: columns without a value: {missing}; values without a column: {unknown}")
