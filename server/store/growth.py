"""Buckets of units that ask for more than their task does, and the tasks of which it was told that nothing holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from common.states import CLAIMABLE_TASK_STATES
from server.store.schema import bucket, task
from server.store.schema_failures import outgrown_task


@dataclass(frozen=True)
class GrownBucket:
    """What the units of a bucket ask for beyond their task; zero: no more than it."""

    task_id: int
    memory_mb: int
    wall_s: int


def ready_buckets(connection: Connection) -> Sequence[GrownBucket]:
    """Those that may have ready units, of tasks that may run."""
    query = (
        select(bucket.c.task_id, bucket.c.memory_mb, bucket.c.wall_s)
        .join(task, task.c.id == bucket.c.task_id)
        .where(bucket.c.maybe_ready, or_(bucket.c.memory_mb > 0, bucket.c.wall_s > 0))
        .where(task.c.state.in_([state.value for state in CLAIMABLE_TASK_STATES]))
        .order_by(bucket.c.id)
    )
    return [GrownBucket(row.task_id, row.memory_mb, row.wall_s) for row in connection.execute(query)]


def told(connection: Connection) -> dict[int, str]:
    """Of which tasks it was told, and with which words."""
    return {row.task_id: row.reason for row in connection.execute(select(outgrown_task))}


def set_told(connection: Connection, task_id: int, reason: str) -> None:
    """It was told of a task; no words: it was taken back."""
    if not reason:
        connection.execute(delete(outgrown_task).where(outgrown_task.c.task_id == task_id))
        return
    dialect_insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(outgrown_task).values(task_id=task_id, reason=reason)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[outgrown_task.c.task_id], set_={"reason": reason})
    )
