"""The claim on SQLite: the caller's immediate transaction is the only writer, so plain statements are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, literal, literal_column, select, update

from common.states import JobState
from server.engine.sizing import ReadyUnit, prefix
from server.store.claim_terms import DETAIL_COLUMNS, MAY_CLAIM, MAY_RUN, PILOT_MAY, ClaimTerms
from server.store.codes import JOB_CODES, UNIT_READY, UNIT_RESERVED
from server.store.prepared import Prepared
from server.store.schema import event, job, job_delta, pilot, queue, task, unit, unit_delta, unit_detail

_MAY_RUN = Prepared(
    select(literal_column("1"))
    .select_from(task.join(queue, queue.c.name == bindparam("queue")).join(pilot, pilot.c.id == bindparam("pilot_id")))
    .where(task.c.id == bindparam("task_id"), MAY_RUN)
    .where(MAY_CLAIM)
    .where(PILOT_MAY)
)
_READY = Prepared(
    select(unit.c.id, unit.c.seq, unit.c.size_mb, unit.c.events, *DETAIL_COLUMNS)
    .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
    .where(unit.c.bucket_id == bindparam("bucket_id"), unit.c.state == literal_column(str(UNIT_READY)))
    .where(unit.c.seq >= bindparam("floor"))
    .order_by(unit.c.seq)
    .limit(bindparam("rows"))
)
_MOVE = Prepared(
    update(unit)
    .where(unit.c.id == bindparam("unit_id"))
    .values(state=literal_column(str(UNIT_RESERVED)), job_id=bindparam("new_job"))
)
_MAKE = Prepared(
    insert(job).values(
        {
            name: bindparam(name)
            for name in ("task_id", "bucket_id", "pilot_id", "state", "n_units", "cores", "queue", "site", "host",
                         "request_id", "ordinal", "claimed")
        }
    )
)  # fmt: skip
_COUNT = Prepared(insert(unit_delta).values({name: bindparam(name) for name in ("task_id", "bucket_id", "state", "n")}))
_COUNT_JOB = Prepared(
    insert(job_delta).values(
        task_id=bindparam("task_id"),
        queue=bindparam("queue"),
        state=literal_column(str(JOB_CODES[JobState.SENT])),
        n=literal_column("1"),
        cores=bindparam("cores"),
    )
)
_TELL = Prepared(
    insert(event).values(
        time=bindparam("time"),
        kind=literal_column("'JOB_CLAIMED'"),
        subject=literal_column("'job'"),
        subject_id=bindparam("subject_id"),
        task_id=bindparam("task_id"),
        job_id=bindparam("job_id"),
        target=literal_column(f"'{JobState.SENT.value}'"),
        detail=bindparam("detail"),
    )
)
_GROW = Prepared(
    update(job)
    .where(job.c.id == bindparam("job_id_"))
    .values(n_units=job.c.n_units + bindparam("n", type_=literal(1).type))
)


class _Reserved(NamedTuple):
    rows: list[tuple[Any, ...]]
    first: int


def _reserve(connection: Connection, terms: ClaimTerms, pilot_id: int, floor: int, rows: int) -> _Reserved:
    """The ready units that make one job."""
    given = {"queue": terms.queue, "task_id": terms.task_id, "pilot_id": pilot_id, **terms.statuses}
    if not _MAY_RUN.run(connection, given):
        return _Reserved([], 0)
    ready = _READY.run(connection, {"bucket_id": terms.bucket_id, "floor": floor, "rows": rows})
    rows_by_id = {row[0]: row for row in ready}
    taken = prefix([ReadyUnit(*row[:4]) for row in ready], terms.bounds)
    return _Reserved([rows_by_id[each.id] for each in taken], ready[0][1] if ready else 0)


def _move(connection: Connection, terms: ClaimTerms, rows: Sequence[tuple[Any, ...]], job_id: int) -> None:
    _MOVE.many(connection, [{"unit_id": row[0], "new_job": job_id} for row in rows])
    key = {"task_id": terms.task_id, "bucket_id": terms.bucket_id}
    _COUNT.many(
        connection, [{**key, "state": UNIT_READY, "n": -len(rows)}, {**key, "state": UNIT_RESERVED, "n": len(rows)}]
    )


def claim(
    connection: Connection, terms: ClaimTerms, values: dict[str, Any], detail: str, floor: int, rows: int
) -> Sequence[tuple[Any, ...]]:
    """As the one of PostgreSQL; to be called in an immediate transaction."""
    taken, first = _reserve(connection, terms, values["pilot_id"], floor, rows)
    if not taken:
        return []
    job_id = _MAKE.insert(
        connection,
        {
            "task_id": terms.task_id,
            "bucket_id": terms.bucket_id,
            "pilot_id": values["pilot_id"],
            "state": JOB_CODES[JobState.SENT],
            "n_units": len(taken),
            "cores": values["cores"],
            "queue": terms.queue,
            "site": values["site"],
            "host": values["host"],
            "request_id": values["request_id"],
            "ordinal": values["ordinal"],
            "claimed": values["now"],
        },
    )
    _move(connection, terms, taken, job_id)
    _COUNT_JOB.run(connection, {"task_id": terms.task_id, "queue": terms.queue, "cores": values["cores"]})
    _TELL.run(
        connection,
        {
            "time": values["now"],
            "subject_id": str(job_id),
            "task_id": terms.task_id,
            "job_id": job_id,
            "detail": f'{{"units":{len(taken)}{detail}',
        },
    )
    return [(job_id, first, row[0], row[1], *row[4:]) for row in taken]


def claim_more(
    connection: Connection, terms: ClaimTerms, job_id: int, pilot_id: int, floor: int, rows: int
) -> Sequence[tuple[Any, ...]]:
    """As the one of PostgreSQL; to be called in an immediate transaction."""
    taken, first = _reserve(connection, terms, pilot_id, floor, rows)
    if not taken:
        return []
    _move(connection, terms, taken, job_id)
    _GROW.run(connection, {"job_id_": job_id, "n": len(taken)})
    return [(job_id, first, row[0], row[1], *row[4:]) for row in taken]
