"""Recorded changes of state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select

from common.wire import EventView
from server.store.schema import event


@dataclass(frozen=True)
class Event:
    """One change: ``kind`` is its name in capitals, ``subject`` and ``subject_id`` what changed."""

    time: float
    kind: str
    subject: str
    subject_id: object
    task_id: int | None = None
    job_id: int | None = None
    source: Enum | None = None
    target: Enum | None = None
    detail: dict[str, Any] = field(default_factory=dict)


def add(connection: Connection, *events: Event) -> None:
    """Write events down in the transaction that makes them true."""
    if not events:
        return
    connection.execute(
        insert(event),
        [
            {
                "time": each.time,
                "kind": each.kind,
                "subject": each.subject,
                "subject_id": str(each.subject_id),
                "task_id": each.task_id,
                "job_id": each.job_id,
                "source": each.source.value if each.source else None,
                "target": each.target.value if each.target else None,
                "detail": msgspec.json.encode(each.detail).decode() if each.detail else None,
            }
            for each in events
        ],
    )


def page(
    connection: Connection, *, task_id: int | None, job_id: int | None, kind: str | None, after: int, limit: int
) -> Sequence[EventView]:
    """Events in the order of their ids, from behind ``after``."""
    query = select(event).where(event.c.id > after).order_by(event.c.id).limit(limit)
    if task_id is not None:
        query = query.where(event.c.task_id == task_id)
    if job_id is not None:
        query = query.where(event.c.job_id == job_id)
    if kind is not None:
        query = query.where(event.c.kind == kind)
    return [
        EventView(
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
        for row in connection.execute(query)
    ]
