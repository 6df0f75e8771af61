"""What people want to see of running jobs, and what their pilots answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, insert, or_, select, update

from common.wire import PeekAnswer, PeekRequest, PeekState
from server.store.schema import pilot_beat
from server.store.schema_peeks import peek

_REQUEST = msgspec.json.Decoder(PeekRequest)
_ANSWER = msgspec.json.Decoder(PeekAnswer)


@dataclass(frozen=True, slots=True)
class PeekRow:
    """A request as recorded."""

    id: int
    job_id: int
    pilot_id: int
    request: PeekRequest
    who: str
    asked: float
    state: PeekState
    answer: PeekAnswer | None


def _row(row: Any) -> PeekRow:
    return PeekRow(
        id=row.id,
        job_id=row.job_id,
        pilot_id=row.pilot_id,
        request=_REQUEST.decode(row.spec),
        who=row.who,
        asked=row.asked,
        state=PeekState(row.state),
        answer=None if row.answer is None else _ANSWER.decode(row.answer),
    )


def add(connection: Connection, job_id: int, pilot_id: int, request: PeekRequest, who: str, now: float) -> PeekRow:
    """Write down a new request."""
    values = {
        "job_id": job_id,
        "pilot_id": pilot_id,
        "kind": request.kind.value,
        "spec": msgspec.json.encode(request).decode(),
        "who": who,
        "asked": now,
        "state": PeekState.WAITING.value,
    }
    return _row(connection.execute(insert(peek).values(**values).returning(peek)).one())


def get(connection: Connection, job_id: int, peek_id: int) -> PeekRow | None:
    """A request for a job."""
    row = connection.execute(select(peek).where(peek.c.id == peek_id, peek.c.job_id == job_id)).first()
    return None if row is None else _row(row)


def open_of(connection: Connection, job_id: int, kind: str) -> PeekRow | None:
    """The open request of a kind, its row locked until the transaction ends."""
    query = select(peek).where(peek.c.job_id == job_id, peek.c.kind == kind, peek.c.ended.is_(None))
    row = connection.execute(query.with_for_update()).first()
    return None if row is None else _row(row)


def end(connection: Connection, peek_id: int, state: PeekState, answer: PeekAnswer | None, now: float) -> bool:
    """An open request is over; False if it was already."""
    text = None if answer is None else msgspec.json.encode(answer).decode()
    result = connection.execute(
        update(peek)
        .where(peek.c.id == peek_id, peek.c.ended.is_(None))
        .values(state=state.value, ended=now, answer=text)
    )
    return bool(result.rowcount)


def current(connection: Connection, since: float) -> Mapping[int, Sequence[PeekRow]]:
    """For each pilot: the requests that are open, or were made since a moment."""
    query = select(peek).where(or_(peek.c.ended.is_(None), peek.c.asked > since)).order_by(peek.c.id)
    found: dict[int, list[PeekRow]] = {}
    for row in connection.execute(query):
        found.setdefault(row.pilot_id, []).append(_row(row))
    return found


def heard(connection: Connection, pilot_id: int) -> float | None:
    """When a pilot was heard of last."""
    return connection.execute(select(pilot_beat.c.time).where(pilot_beat.c.pilot_id == pilot_id)).scalar()


def drop_old(connection: Connection, before: float) -> int:
    """Take away what was asked before a moment; how many."""
    return int(connection.execute(delete(peek).where(peek.c.asked < before)).rowcount)
