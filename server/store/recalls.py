"""Units whose files are on tape: wanted, asked for, online and pinned, let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection, Row, and_, func, insert, or_, select, update

from common.states import FINAL_UNIT_STATES, UnitState, require
from server.store import units
from server.store.codes import UNIT_CODES
from server.store.schema import unit, unit_detail
from server.store.schema_inputs import recall


class RecallState(IntEnum):
    """How far the recall of a unit's file is."""

    WANTED = 0
    """To be asked for."""
    ASKED = 1
    """The tape system has the request."""
    ONLINE = 2
    """On disk, and pinned until its unit is over."""
    OVER = 3
    """Let go or given up. Should the unit be tried again, it is wanted again."""


@dataclass(frozen=True)
class RecallRow:
    """One unit's recall."""

    unit_id: int
    task_id: int
    storage: str
    path: str
    request: str
    since: float
    failures: int


@dataclass(frozen=True)
class Wanted:
    """A file to be recalled for a unit."""

    unit_id: int
    storage: str
    path: str


def want(connection: Connection, task_id: int, files: Sequence[Wanted], now: float) -> None:
    """Have files recalled for units that wait."""
    rows = [
        {
            "unit_id": each.unit_id,
            "task_id": task_id,
            "storage": each.storage,
            "path": each.path,
            "state": int(RecallState.WANTED),
            "since": now,
            "next_at": now,
        }
        for each in files
    ]
    if rows:
        connection.execute(insert(recall), rows)


def due(connection: Connection, state: RecallState, now: float, limit: int) -> list[RecallRow]:
    """Recalls of units that wait, in a state and due, the longest due first."""
    query = (
        select(recall)
        .join(unit, unit.c.id == recall.c.unit_id)
        .where(recall.c.state == int(state), recall.c.next_at <= now)
        .where(unit.c.state == UNIT_CODES[UnitState.PENDING])
        .order_by(recall.c.next_at, recall.c.unit_id)
        .limit(limit)
    )
    return [_row(row) for row in connection.execute(query)]


def of_requests(connection: Connection, requests: Collection[tuple[str, str]]) -> list[RecallRow]:
    """All recalls that wait in these (storage, request)."""
    if not requests:
        return []
    either = or_(*(and_(recall.c.storage == storage, recall.c.request == name) for storage, name in sorted(requests)))
    query = select(recall).where(recall.c.state == int(RecallState.ASKED), either).order_by(recall.c.unit_id)
    return [_row(row) for row in connection.execute(query)]


def over(connection: Connection, now: float, limit: int) -> list[RecallRow]:
    """Recalls whose units need their file no more, or are gone."""
    codes = [UNIT_CODES[state] for state in FINAL_UNIT_STATES]
    query = (
        select(recall)
        .outerjoin(unit, unit.c.id == recall.c.unit_id)
        .where(recall.c.state != int(RecallState.OVER), recall.c.next_at <= now)
        .where(or_(unit.c.id.is_(None), unit.c.state.in_(codes)))
        .order_by(recall.c.unit_id)
        .limit(limit)
    )
    return [_row(row) for row in connection.execute(query)]


def _row(row: Row[tuple[object, ...]]) -> RecallRow:
    return RecallRow(row.unit_id, row.task_id, row.storage, row.path, row.request or "", row.since, row.failures)


def asked(connection: Connection, unit_ids: Sequence[int], request: str, now: float, next_at: float) -> None:
    """The tape system took a request for these."""
    connection.execute(
        update(recall)
        .where(recall.c.unit_id.in_(unit_ids), recall.c.state == int(RecallState.WANTED))
        .values(state=int(RecallState.ASKED), request=request, since=now, next_at=next_at)
    )


def later(connection: Connection, unit_ids: Sequence[int], next_at: float, reason: str = "") -> None:
    """Look at these again at a moment."""
    connection.execute(
        update(recall).where(recall.c.unit_id.in_(unit_ids)).values(next_at=next_at, reason=reason[:1000])
    )


def again(connection: Connection, rows: Sequence[RecallRow], reason: str, next_at: float) -> None:
    """The tape system gave these up: they are to be asked for once more."""
    for failures in sorted({row.failures for row in rows}):
        ids = [row.unit_id for row in rows if row.failures == failures]
        connection.execute(
            update(recall)
            .where(recall.c.unit_id.in_(ids), recall.c.state == int(RecallState.ASKED))
            .values(
                state=int(RecallState.WANTED),
                request=None,
                failures=failures + 1,
                next_at=next_at,
                reason=reason[:1000],
            )
        )


def online(connection: Connection, unit_ids: Sequence[int], now: float) -> dict[int, int]:
    """These are on disk: their units are ready. How many of each task."""
    moved = _move(connection, unit_ids, UnitState.PENDING, UnitState.READY, now)
    connection.execute(
        update(recall)
        .where(recall.c.unit_id.in_(unit_ids))
        .values(state=int(RecallState.ONLINE), next_at=now, reason="")
    )
    return moved


def give_up(connection: Connection, unit_ids: Sequence[int], reason: str, now: float) -> dict[int, int]:
    """These never come back: their units are lost, and say why. How many of each task."""
    moved = _move(connection, unit_ids, UnitState.PENDING, UnitState.LOST, now)
    connection.execute(
        update(unit_detail).where(unit_detail.c.unit_id.in_(unit_ids)).values(error_detail=reason[:1000])
    )
    end(connection, unit_ids)
    return moved


def end(connection: Connection, unit_ids: Sequence[int]) -> None:
    """Their recalls are over."""
    connection.execute(update(recall).where(recall.c.unit_id.in_(unit_ids)).values(state=int(RecallState.OVER)))


def rewind(connection: Connection, unit_ids: Sequence[int], now: float) -> int:
    """Units that were made ready to be tried again: those whose files are no longer on disk wait for them once more."""
    wanted = connection.execute(
        update(recall)
        .where(recall.c.unit_id.in_(unit_ids), recall.c.state == int(RecallState.OVER))
        .values(state=int(RecallState.WANTED), request=None, failures=0, since=now, next_at=now, reason="")
        .returning(recall.c.unit_id)
    ).all()
    if not wanted:
        return 0
    return sum(_move(connection, [row.unit_id for row in wanted], UnitState.READY, UnitState.PENDING, now).values())


def _move(
    connection: Connection, unit_ids: Sequence[int], source: UnitState, target: UnitState, now: float
) -> dict[int, int]:
    """Move those that are still where they were."""
    require(source, target)
    rows = connection.execute(
        update(unit)
        .where(unit.c.id.in_(unit_ids), unit.c.state == UNIT_CODES[source])
        .values(state=UNIT_CODES[target])
        .returning(unit.c.task_id, unit.c.bucket_id)
    ).all()
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for row in rows:
        changes[row.task_id, row.bucket_id, source] -= 1
        changes[row.task_id, row.bucket_id, target] += 1
    units.add_deltas(connection, changes)
    if target == UnitState.READY:
        units.wake(connection, {row.bucket_id for row in rows}, now)
    return dict(Counter(row.task_id for row in rows))


def waiting(connection: Connection, task_id: int) -> int:
    """How many units of a task wait for a tape."""
    query = select(func.count()).select_from(recall).where(recall.c.task_id == task_id)
    states = [int(RecallState.WANTED), int(RecallState.ASKED)]
    return int(connection.execute(query.where(recall.c.state.in_(states))).scalar_one())


def still_used(connection: Connection, storage: str, paths: Collection[str], without: Collection[int]) -> set[str]:
    """Those of the files that other units still need: ranges of one file, or other tasks."""
    query = (
        select(recall.c.path)
        .join(unit, unit.c.id == recall.c.unit_id)
        .where(recall.c.storage == storage, recall.c.path.in_(sorted(paths)), recall.c.unit_id.not_in(without))
        .where(recall.c.state != int(RecallState.OVER))
        .where(unit.c.state.not_in([UNIT_CODES[state] for state in FINAL_UNIT_STATES]))
        .distinct()
    )
    return {row.path for row in connection.execute(query)}
