"""Recorded changes of state: writing them, listing them, following them without losing one that commits late.

A follower reads in the order of ``(xact, id)`` and on PostgreSQL only what was written by transactions older than the
oldest one still at work: nothing can appear any more before a place that it has passed. A cursor is such a place, good
for ever, in any process. (On SQLite, where one writes at a time, ids tell the order by themselves.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, func, insert, literal, or_, select, text, tuple_
from sqlalchemy.sql.elements import ColumnElement

from common.wire import EventView
from server.store.access import Sight
from server.store.prepared import Prepared
from server.store.schema import task
from server.store.schema_events import event

LAST_ID = 2**63 - 1
"""Behind every id."""


@dataclass(frozen=True)
class Event:
    """One change: ``kind`` is its name in capitals, ``subject`` and ``subject_id`` what changed.

    Kinds are those of :class:`common.events.EventKind`.
    """

    time: float
    kind: str
    subject: str
    subject_id: object
    task_id: int | None = None
    job_id: int | None = None
    source: Enum | None = None
    target: Enum | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class Cursor(NamedTuple):
    """A place in the stream of events; everything up to and with it has been read."""

    xact: int
    id: int

    def __str__(self) -> str:
        return f"{self.xact}.{self.id}"

    @classmethod
    def parse(cls, words: str) -> Cursor:
        """From ``XACT.ID``; a plain ``ID`` counts from the beginning of that stream.

        Raises:
            ValueError: it is neither.
        """
        parts = words.split(".")
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise ValueError(f"{words!r} is no cursor")
        numbers = [min(int(part), LAST_ID) for part in parts]
        return cls(*numbers) if len(numbers) == 2 else cls(0, numbers[0])


BEGINNING = Cursor(0, 0)
_COLUMNS = ("time", "kind", "subject", "subject_id", "task_id", "job_id", "source", "target", "detail")
_INSERT = Prepared(insert(event).inline().values({name: bindparam(name) for name in _COLUMNS}))


def add(connection: Connection, *events: Event) -> None:
    """Write events down in the transaction that makes them true."""
    if len(events) == 1:
        _INSERT.count(connection, _row(events[0]))
    elif events:
        _INSERT.many(connection, [_row(each) for each in events])


def _row(one: Event) -> dict[str, Any]:
    return {
        "time": one.time,
        "kind": str.__str__(one.kind.value if isinstance(one.kind, Enum) else one.kind),
        "subject": one.subject,
        "subject_id": str(one.subject_id),
        "task_id": one.task_id,
        "job_id": one.job_id,
        "source": one.source.value if one.source else None,
        "target": one.target.value if one.target else None,
        "detail": msgspec.json.encode(one.detail).decode() if one.detail else None,
    }


OPEN_SUBJECTS = ("agent", "pilot", "queue", "site", "storage", "worker")
"""Subjects of events that belong to nobody's work."""


@dataclass(frozen=True)
class Wanted:
    """Which events to read; whatever is left out does not matter."""

    task_id: int | None = None
    job_id: int | None = None
    workflow_id: int | None = None
    kinds: Sequence[str] = ()
    subject: str = ""
    subject_id: str = ""
    since: float | None = None
    until: float | None = None
    sight: Sight | None = None
    """Whose; events of things that belong to nobody's work come in any case."""

    def terms(self) -> list[ColumnElement[bool]]:
        """As conditions."""
        found: list[ColumnElement[bool]] = []
        if self.task_id is not None:
            found.append(event.c.task_id == self.task_id)
        if self.job_id is not None:
            found.append(event.c.job_id == self.job_id)
        if self.workflow_id is not None:
            tasks = select(task.c.id).where(task.c.workflow_id == self.workflow_id)
            own = and_(event.c.subject == "workflow", event.c.subject_id == str(self.workflow_id))
            found.append(or_(event.c.task_id.in_(tasks), own))
        if self.kinds:
            found.append(event.c.kind.in_(self.kinds))
        if self.subject:
            found.append(event.c.subject == self.subject)
        if self.subject_id:
            found.append(event.c.subject_id == self.subject_id)
        if self.since is not None:
            found.append(event.c.time >= self.since)
        if self.until is not None:
            found.append(event.c.time < self.until)
        if self.sight is not None:
            nobodys = and_(event.c.task_id.is_(None), event.c.subject.in_(OPEN_SUBJECTS))
            found.append(or_(event.c.task_id.in_(self.sight.tasks()), nobodys))
        return found


def page(connection: Connection, wanted: Wanted, *, after: Cursor, limit: int) -> tuple[list[EventView], Cursor | None]:
    """Whatever is visible behind ``after``, and where to go on; None when this was the rest.

    A list for looking: an event that commits late may turn up before a place that was passed. See :func:`follow`.
    """
    rows = _read(connection, wanted, [_behind(after)], limit)
    return [_view(row) for row in rows], _place(rows[-1]) if len(rows) == limit else None


def newest(connection: Connection, wanted: Wanted, limit: int) -> tuple[list[EventView], Cursor]:
    """The last events that are settled, oldest of them first, and the cursor to follow from, so that none is missed."""
    end = settled(connection)
    query = select(event).where(_up_to(end), *wanted.terms())
    query = query.order_by(event.c.xact.desc(), event.c.id.desc()).limit(limit)
    return [_view(row) for row in reversed(connection.execute(query).all())], end


def follow(connection: Connection, wanted: Wanted, *, after: Cursor, limit: int) -> tuple[list[EventView], Cursor]:
    """Settled events behind ``after``, and the cursor to go on from: none is lost, none comes twice."""
    end = settled(connection)
    if after.xact > end.xact:  # of a database that this one was restored from; see heal()
        after = Cursor(0, after.id)
    rows = _read(connection, wanted, [_behind(after), _up_to(end)], limit)
    return [_view(row) for row in rows], _place(rows[-1]) if len(rows) == limit else max(after, end)


def settled(connection: Connection) -> Cursor:
    """The place before which nothing will appear any more."""
    if connection.dialect.name == "sqlite":
        return Cursor(0, connection.execute(select(func.max(event.c.id))).scalar() or 0)
    return Cursor(int(connection.execute(_OLDEST_AT_WORK).scalar_one()) - 1, LAST_ID)


_OLDEST_AT_WORK = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")


def _behind(place: Cursor) -> ColumnElement[bool]:
    return tuple_(event.c.xact, event.c.id) > tuple_(literal(place.xact), literal(place.id))


def _up_to(place: Cursor) -> ColumnElement[bool]:
    return tuple_(event.c.xact, event.c.id) <= tuple_(literal(place.xact), literal(place.id))


def _read(connection: Connection, wanted: Wanted, more: list[ColumnElement[bool]], limit: int) -> Sequence[Row[Any]]:
    query = select(event).where(*more, *wanted.terms()).order_by(event.c.xact, event.c.id).limit(limit)
    return connection.execute(query).all()


def _place(row: Row[Any]) -> Cursor:
    return Cursor(row.xact, row.id)


def _view(row: Row[Any]) -> EventView:
    return EventView(
        id=row.id,
        time=row.time,
        kind=row.kind,
        subject=row.subject,
        subject_id=row.subject_id,
        task_id=row.task_id,
        job_id=row.job_id,
        source=row.source,
        target=row.target,
        detail=msgspec.json.decode(row.detail) if row.detail else {},
    )
