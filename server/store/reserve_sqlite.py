"""Reserving on SQLite: the caller's immediate transaction is the only writer, so plain statements are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Text, bindparam, insert, literal_column, select, update
from sqlalchemy.dialects import sqlite

from server.store.codes import UNIT_READY, UNIT_RESERVED
from server.store.prepared import Prepared
from server.store.reserve_terms import DETAIL_COLUMNS, MAY_RESERVE, READY, RESERVED, Terms
from server.store.schema import task, unit, unit_delta, unit_detail
from server.store.schema_projects import reservation

_READY = Prepared(
    select(unit.c.id, unit.c.seq, *DETAIL_COLUMNS)
    .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
    .where(unit.c.bucket_id == bindparam("bucket_id"), unit.c.state == READY)
    .where(unit.c.seq >= bindparam("floor"), unit.c.seq < bindparam("ceiling"))
    .where(select(literal_column("1")).where(task.c.id == bindparam("task_id"), MAY_RESERVE).exists())
    .order_by(unit.c.seq)
    .limit(bindparam("rows"))
)
_MOVE = Prepared(update(unit).where(unit.c.id == bindparam("unit_id")).values(state=RESERVED))
_COLUMNS = ("unit_id", "task_id", "worker", "request_id", "ordinal", "reserved", "expires")


def _holding() -> Prepared:
    new = sqlite.insert(reservation).values(
        {name: bindparam(name) for name in _COLUMNS} | {"attempts": literal_column("1")}
    )
    again = {name: new.excluded[name] for name in _COLUMNS[1:]}
    return Prepared(
        new.on_conflict_do_update(
            index_elements=["unit_id"],
            set_={
                **again,
                "attempts": reservation.c.attempts + literal_column("1"),
                "released": literal_column("NULL", Text),
                "outcome": literal_column("NULL", Text),
            },
        ).returning(reservation.c.attempts)
    )


_HOLD = _holding()
_COUNT = Prepared(insert(unit_delta).values({name: bindparam(name) for name in ("task_id", "bucket_id", "state", "n")}))


def reserve(connection: Connection, terms: Terms, floor: int, ceiling: int) -> Sequence[Sequence[Any]]:
    """As the one of PostgreSQL; to be called in an immediate transaction."""
    given = {"bucket_id": terms.bucket_id, "task_id": terms.task_id}
    found = _READY.run(connection, {**given, "floor": floor, "ceiling": ceiling, "rows": terms.rows})
    if not found:
        return []
    _MOVE.many(connection, [{"unit_id": row[0]} for row in found])
    attempts = []
    for ordinal, row in enumerate(found, terms.first):
        held = _HOLD.run(
            connection,
            {
                "unit_id": row[0],
                "task_id": terms.task_id,
                "worker": terms.worker,
                "request_id": terms.request_id,
                "ordinal": ordinal,
                "reserved": terms.now,
                "expires": terms.expires,
            },
        )
        attempts.append(held[0][0])
    _COUNT.many(
        connection,
        [
            {**given, "state": UNIT_READY, "n": -len(found)},
            {**given, "state": UNIT_RESERVED, "n": len(found)},
        ],
    )
    return [(row[0], row[1], tried, *row[2:]) for row, tried in zip(found, attempts, strict=True)]
