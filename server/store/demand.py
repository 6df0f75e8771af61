"""The demand of each queue, as it was computed last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from common.wire import Message, ShapeDemand
from server.store.schema import task, unit
from server.store.schema_matching import demand


class Numbers(Message):
    """What is kept of a queue's demand."""

    shapes: list[ShapeDemand] = []
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Stored:
    """A queue's demand: when it was computed, and how long that took for all queues."""

    queue: str
    computed: float
    seconds: float
    numbers: Numbers


def get(connection: Connection, queue: str) -> Stored | None:
    """What was computed last for a queue."""
    row = connection.execute(select(demand).where(demand.c.queue == queue)).first()
    if row is None:
        return None
    return Stored(row.queue, row.computed, row.seconds, msgspec.json.decode(row.numbers, type=Numbers))


def last(connection: Connection) -> tuple[float, float] | None:
    """When it was computed last, and how many seconds that took."""
    row = connection.execute(
        select(demand.c.computed, demand.c.seconds).order_by(demand.c.computed.desc()).limit(1)
    ).first()
    return None if row is None else (float(row.computed), float(row.seconds))


def put(connection: Connection, rows: Sequence[Stored]) -> None:
    """Write down the demand of all queues; other queues are gone."""
    connection.execute(delete(demand).where(demand.c.queue.not_in([each.queue for each in rows])))
    if not rows:
        return
    values = [
        {
            "queue": each.queue,
            "computed": each.computed,
            "seconds": each.seconds,
            "pilots": sum(shape.pilots for shape in each.numbers.shapes),
            "numbers": msgspec.json.encode(each.numbers).decode(),
        }
        for each in sorted(rows, key=lambda each: each.queue)
    ]
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement: Any = dialect_insert(demand)
    changes = {name: statement.excluded[name] for name in ("computed", "seconds", "pilots", "numbers")}
    connection.execute(statement.on_conflict_do_update(index_elements=["queue"], set_=changes), values)


def events_of_units(connection: Connection, task_ids: Sequence[int]) -> dict[int, int]:
    """How many events the first unit of each task has, for those that have units."""
    first = select(unit.c.events).where(unit.c.task_id == task.c.id).order_by(unit.c.id).limit(1).scalar_subquery()
    query = select(task.c.id, func.coalesce(first, 0).label("events")).where(task.c.id.in_(task_ids))
    return {row.id: max(1, int(row.events)) for row in connection.execute(query)}
