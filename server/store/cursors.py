"""How far those who read the events for good have come."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import Connection, func, insert, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from common.events import PROBLEMS
from server.store import dashboard
from server.store.events import BEGINNING, Cursor, settled
from server.store.schema_events import event, event_count, event_cursor

PROBLEM_KINDS = frozenset(kind.value for kind in PROBLEMS)
COUNTER = "count-events"
SLICE = 20_000
"""Events counted in one transaction."""


def place(connection: Connection, name: str, start: Cursor | None = None) -> Cursor:
    """Where ``name`` goes on; somebody new begins at ``start``, else at whatever comes from now on."""
    row = connection.execute(select(event_cursor).where(event_cursor.c.name == name)).first()
    if row is not None:
        return Cursor(row.xact, row.id)
    begin = settled(connection) if start is None else start
    connection.execute(insert(event_cursor).values(name=name, xact=begin.xact, id=begin.id))
    return begin


def advance(connection: Connection, name: str, before: Cursor, after: Cursor) -> bool:
    """Write down that ``name`` has read on; False when somebody else did so meanwhile."""
    found = connection.execute(
        update(event_cursor)
        .where(event_cursor.c.name == name, event_cursor.c.xact == before.xact, event_cursor.c.id == before.id)
        .values(xact=after.xact, id=after.id)
    )
    return bool(found.rowcount)


def count(connection: Connection, now: float, limit: int = SLICE) -> int:
    """Add a slice of settled events to the counts by kind, and keep what went wrong; how many they were."""
    before = place(connection, COUNTER, BEGINNING)
    end = settled(connection)
    key = tuple_(event.c.xact, event.c.id)
    query = select(event.c.xact, event.c.id, event.c.kind).where(key > tuple_(*before), key <= tuple_(*end))
    rows = connection.execute(query.order_by(event.c.xact, event.c.id).limit(limit)).all()
    if not rows:
        return 0
    after = Cursor(rows[-1].xact, rows[-1].id)
    if not advance(connection, COUNTER, before, after):
        return 0
    if any(row.kind in PROBLEM_KINDS for row in rows):
        dashboard.note_problems(connection, before, after, now)
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = dialect_insert(event_count)
    totals = sorted(Counter(row.kind for row in rows).items())
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[event_count.c.kind], set_={"n": event_count.c.n + statement.excluded.n}
        ),
        [{"kind": kind, "n": n} for kind, n in totals],
    )
    return len(rows)


def counts(connection: Connection) -> dict[str, int]:
    """Events by kind since the beginning."""
    return {row.kind: int(row.n) for row in connection.execute(select(event_count))}


def heal(connection: Connection, limit: int = 5_000) -> int:
    """After the database was restored elsewhere from a dump: bring events of the future back; how many.

    Transactions are numbered anew then, and events with numbers from before would wait for them. They become the oldest,
    in the order of their ids, and cursors of that past count from there too.
    """
    if connection.dialect.name == "sqlite":
        return 0
    following = func.pg_snapshot_xmax(func.pg_current_snapshot()).op("::")(text("text")).op("::")(text("bigint"))
    own = tuple_(event.c.xact, event.c.id)
    future = (
        select(event.c.xact, event.c.id)
        .where(event.c.xact >= following)
        .order_by(event.c.xact, event.c.id)
        .limit(limit)
    )
    found = connection.execute(update(event).where(own.in_(future)).values(xact=0))
    last = select(func.coalesce(func.max(event.c.id), 0)).where(event.c.xact == 0).scalar_subquery()
    connection.execute(
        update(event_cursor)
        .where(event_cursor.c.xact >= following)
        .values(xact=0, id=func.least(event_cursor.c.id, last))
    )
    return int(found.rowcount)
