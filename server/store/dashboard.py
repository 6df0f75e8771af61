"""What the dashboard lists: tasks in progress, and what went wrong lately."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from common.events import PROBLEMS
from common.states import UnitState
from server.store import units
from server.store.events import Cursor
from server.store.measure import OPEN_TASKS
from server.store.schema import task
from server.store.schema_events import event, measured

PROBLEM_ROW = "problems"
MOST_PROBLEMS = 50
UNSUCCESSFUL = (UnitState.FAILED, UnitState.LOST)
AT_WORK = (UnitState.RESERVED, UnitState.OUTPUTTING)


class TaskLine(msgspec.Struct):
    """A task, in numbers."""

    id: int
    state: str
    share: str
    priority: int
    total: int
    done: int
    failed: int
    running: int


class Problem(msgspec.Struct):
    """An event that tells of something gone wrong, without the words of people in it."""

    time: float
    kind: str
    subject: str
    subject_id: str
    task_id: int | None = None
    job_id: int | None = None
    error_code: int | None = None


def tasks_in_progress(connection: Connection, limit: int) -> list[TaskLine]:
    """The newest tasks that are not over."""
    query = (
        select(task.c.id, task.c.state, task.c.share, task.c.priority)
        .where(task.c.state.in_(OPEN_TASKS))
        .order_by(task.c.id.desc())
        .limit(limit)
    )
    rows = connection.execute(query).all()
    counts = units.counts(connection, [row.id for row in rows])
    return [
        TaskLine(
            id=row.id,
            state=row.state,
            share=row.share,
            priority=row.priority,
            total=sum(counts[row.id].values()),
            done=counts[row.id].get(UnitState.DONE, 0),
            failed=sum(counts[row.id].get(state, 0) for state in UNSUCCESSFUL),
            running=sum(counts[row.id].get(state, 0) for state in AT_WORK),
        )
        for row in rows
    ]


def problems(connection: Connection) -> list[Problem]:
    """The last events that tell of something gone wrong, oldest of them first."""
    found = connection.execute(select(measured.c.value).where(measured.c.name == PROBLEM_ROW)).scalar()
    return [] if found is None else msgspec.json.decode(found, type=list[Problem])


def note_problems(connection: Connection, after: Cursor, until: Cursor, now: float) -> None:
    """Take what went wrong in this part of the stream into the list: looking for it later would read everything."""
    place = tuple_(event.c.xact, event.c.id)
    query = (
        select(event)
        .where(place > tuple_(*after), place <= tuple_(*until), event.c.kind.in_([kind.value for kind in PROBLEMS]))
        .order_by(event.c.xact.desc(), event.c.id.desc())
        .limit(MOST_PROBLEMS)
    )
    new = [
        Problem(row.time, row.kind, row.subject, row.subject_id, row.task_id, row.job_id, _code(row.detail))
        for row in connection.execute(query)
    ]
    if new:
        kept = (problems(connection) + new[::-1])[-MOST_PROBLEMS:]
        _put(connection, kept, now)


def _code(detail: str | None) -> int | None:
    found = msgspec.json.decode(detail).get("error_code") if detail else None
    return found if isinstance(found, int) else None


def _put(connection: Connection, kept: Sequence[Problem], now: float) -> None:
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"time": now, "value": msgspec.json.encode(kept).decode()}
    statement = dialect_insert(measured).values(name=PROBLEM_ROW, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
