"""Files of projects: reserved by workers, and given back. On PostgreSQL many requests share a statement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, bindparam, literal_column, select, update

from common.states import UnitState
from common.wire import ReplicaSpec
from server.engine.projects import TARGETS, Outcome, put_back
from server.store import reserve_postgres, reserve_sqlite, units
from server.store.codes import UNIT_CODES, UNIT_RESERVED, UNIT_STATES
from server.store.inputs import digest
from server.store.prepared import Prepared
from server.store.reserve_terms import DETAIL_COLUMNS, READY, GivenBack, Terms
from server.store.schema import bucket, unit, unit_detail
from server.store.schema_projects import project_file, reservation

__all__ = ["Terms", "carry_out", "release", "reserve"]


@dataclass(frozen=True, slots=True)
class ReservedFile:
    """A file that a worker holds, with what it needs to know of it."""

    id: int
    seq: int
    attempts: int
    did: str
    size: int | None
    events: int | None
    checksum: str | None
    attributes: Mapping[str, Any]
    replicas: Sequence[ReplicaSpec]


@dataclass(frozen=True, slots=True)
class Moved:
    """A file that its worker gave back: where it went, and the bucket and place in which it is."""

    unit_id: int
    task_id: int
    state: UnitState
    bucket_id: int
    seq: int


def reserve(connection: Connection, terms: Terms, floor: int, ceiling: int) -> list[ReservedFile]:
    """Reserve up to ``terms.rows`` ready files of a bucket, of those with a place from ``floor`` to before ``ceiling``.

    On PostgreSQL this is one statement, by itself; on SQLite it must be called in an immediate transaction.

    Raises:
        IntegrityError: this request of this worker got this file already.
    """
    if connection.dialect.name != "sqlite":
        return carry_out(connection, [(terms, floor, ceiling)], []).reserved[0]
    return [_reserved(row) for row in reserve_sqlite.reserve(connection, terms, floor, ceiling)]


@dataclass(frozen=True, slots=True)
class Releasing:
    """What a worker says of files of a project, by their DIDs, and when it said so."""

    task_id: int
    worker: str
    outcomes: Mapping[str, Outcome]
    now: float


@dataclass(frozen=True, slots=True)
class Done:
    """What :func:`carry_out` did: the files that each request reserved, those that each gave back, by their DIDs, and of
    each bucket that was looked into the place of its first ready file, locked by somebody or not."""

    reserved: list[list[ReservedFile]]
    moved: list[dict[str, Moved]]
    first_ready: list[int | None]


def carry_out(
    connection: Connection,
    wanted: Sequence[tuple[Terms, int, int]],
    releasing: Sequence[Releasing],
    look_into: Sequence[int] = (),
) -> Done:
    """What several requests want and give back, on PostgreSQL: one transaction, one way there and back.

    For each request the same as :func:`reserve` with its terms, floor and ceiling, and as :func:`release`; for each
    bucket the same as :func:`first_ready`. ``connection`` must commit by itself.

    Raises:
        IntegrityError: one of the requests got a file before; nothing was done for any.
    """
    by_digest = [{digest(did): did for did in each.outcomes} for each in releasing]
    given_back = [
        GivenBack(each.task_id, each.worker, [_told(key, each.outcomes[did]) for key, did in dids.items()], each.now)
        for each, dids in zip(releasing, by_digest, strict=True)
    ]
    looks = [(_FIRST, {"bucket_id": bucket_id}) for bucket_id in look_into]
    reserved, moved, firsts = reserve_postgres.carry_out(connection, wanted, given_back, looks)
    return Done(
        [[_reserved(row) for row in rows] for rows in reserved],
        [
            {dids[row[0]]: Moved(row[1], each.task_id, UNIT_STATES[row[2]], row[3], row[4]) for row in rows}
            for each, dids, rows in zip(releasing, by_digest, moved, strict=True)
        ],
        [int(rows[0][0]) if rows else None for rows in firsts],
    )


def _told(key: bytes, outcome: Outcome) -> tuple[bytes, int, int]:
    return key, int(outcome), UNIT_CODES[TARGETS[outcome]]


def _reserved(row: Any) -> ReservedFile:
    unit_id, seq, attempts, did, size, events, checksum, attributes, replicas = row
    return ReservedFile(
        unit_id,
        seq,
        attempts,
        did or "",
        size,
        events,
        checksum,
        msgspec.json.decode(attributes) if attributes else {},
        _REPLICAS.decode(replicas) if replicas else [],
    )


_REPLICAS = msgspec.json.Decoder(list[ReplicaSpec])


def first_ready(connection: Connection, bucket_id: int) -> int | None:
    """The place of the first ready file of a bucket, locked by somebody or not."""
    found = _FIRST.run(connection, {"bucket_id": bucket_id})
    return int(found[0][0]) if found else None


_FIRST = Prepared(
    select(unit.c.seq)
    .where(unit.c.bucket_id == bindparam("bucket_id"), unit.c.state == READY)
    .order_by(unit.c.seq)
    .limit(literal_column("1"))
)


@dataclass(frozen=True)
class Again:
    """A file that a request got before, and what has become of it."""

    file: ReservedFile
    state: UnitState
    reserved: float
    expires: float | None


def of_request(connection: Connection, task_id: int, worker: str, request_id: str) -> list[Again]:
    """The files that a request of a worker got, unless they were given to others meanwhile."""
    rows = _OF_REQUEST.run(connection, {"task_id": task_id, "worker": worker, "request_id": request_id})
    return [Again(_reserved(row[:-3]), UNIT_STATES[row[-3]], row[-2], row[-1]) for row in rows]


_OF_REQUEST = Prepared(
    select(unit.c.id, unit.c.seq, reservation.c.attempts, *DETAIL_COLUMNS, unit.c.state, reservation.c.reserved,
           reservation.c.expires)
    .join(unit, unit.c.id == reservation.c.unit_id)
    .join(unit_detail, unit_detail.c.unit_id == unit.c.id)
    .where(reservation.c.task_id == bindparam("task_id"))
    .where(reservation.c.worker == bindparam("worker"), reservation.c.request_id == bindparam("request_id"))
    .order_by(reservation.c.ordinal)
)  # fmt: skip


# ---------------------------------------------------------------- giving back


def release(connection: Connection, releasing: Releasing) -> dict[str, Moved]:
    """Give files back that a worker holds, by their DIDs; those that it does hold, and where they went.

    On PostgreSQL this is one statement, by itself; on SQLite it must be called in an immediate transaction.
    """
    if connection.dialect.name != "sqlite":
        return carry_out(connection, [], [releasing]).moved[0]
    by_digest = {digest(did): did for did in releasing.outcomes}
    outcomes = {key: releasing.outcomes[did] for key, did in by_digest.items()}
    found = _release_held(connection, releasing.task_id, releasing.worker, outcomes, releasing.now)
    return {by_digest[key]: moved for key, moved in found.items()}


def _release_held(
    connection: Connection, task_id: int, worker: str, outcomes: Mapping[bytes, Outcome], now: float
) -> dict[bytes, Moved]:
    files = select(project_file.c.unit_id, project_file.c.digest).where(
        project_file.c.task_id == task_id, project_file.c.digest.in_(list(outcomes))
    )
    digests = {row.unit_id: bytes(row.digest) for row in connection.execute(files)}
    rows = held(connection, reservation.c.unit_id.in_(list(digests)), reservation.c.worker == worker)
    moved = give_back(connection, [(row, outcomes[digests[row.unit_id]]) for row in rows], now)
    return {digests[each.unit_id]: each for each in moved}


@dataclass(frozen=True, slots=True)
class Held:
    """A reservation that its worker has not released, and its unit; both rows are held by the transaction."""

    unit_id: int
    task_id: int
    bucket_id: int
    seq: int


def held(connection: Connection, *conditions: ColumnElement[bool]) -> list[Held]:
    """Reservations that are held by their workers, of units that are reserved; locked, in the order of their ids."""
    query = (
        select(reservation.c.unit_id, reservation.c.task_id, unit.c.bucket_id, unit.c.seq)
        .join(unit, unit.c.id == reservation.c.unit_id)
        .where(reservation.c.released.is_(None), unit.c.state == UNIT_RESERVED, *conditions)
        .order_by(reservation.c.unit_id)
        .with_for_update()
    )
    return [Held(*row) for row in connection.execute(query)]


_ENDS = {**TARGETS, Outcome.TIMED_OUT: UnitState.READY, Outcome.REVOKED: UnitState.READY}


def give_back(
    connection: Connection,
    rows: Sequence[tuple[Held, Outcome]],
    now: float,
    failing: Iterable[int] = (),
) -> list[Moved]:
    """End reservations that the transaction holds; where the units went.

    One that timed out goes back, or fails if its task is among ``failing``; one that was revoked gets its first place
    again.
    """
    if not rows:
        return []
    hopeless = set(failing)
    moved = []
    for row, outcome in rows:
        state = _ENDS[outcome]
        if outcome is Outcome.TIMED_OUT and row.task_id in hopeless:
            state = UnitState.FAILED
        back = state is UnitState.READY and outcome is not Outcome.REVOKED
        moved.append(Moved(row.unit_id, row.task_id, state, row.bucket_id, put_back(row.seq) if back else row.seq))
    connection.execute(
        _MOVE,
        [
            {
                "b_id": each.unit_id,
                "b_state": UNIT_CODES[each.state],
                "b_seq": each.seq,
                "b_failures": int(outcome in (Outcome.RETRY, Outcome.FAILED)),
                "b_timeouts": int(outcome is Outcome.TIMED_OUT),
            }
            for each, (_, outcome) in zip(moved, rows, strict=True)
        ],
    )
    connection.execute(_FREE, [{"b_id": row.unit_id, "b_now": now, "b_outcome": int(outcome)} for row, outcome in rows])
    changes: Counter[tuple[int, int, UnitState]] = Counter()
    for each, (row, _) in zip(moved, rows, strict=True):
        changes[row.task_id, row.bucket_id, UnitState.RESERVED] -= 1
        changes[row.task_id, row.bucket_id, each.state] += 1
    units.add_deltas(connection, changes)
    units.wake(connection, {each.bucket_id for each in moved if each.state is UnitState.READY}, now)
    return moved


_MOST = 30_000
_MOVE = (
    update(unit)
    .where(unit.c.id == bindparam("b_id"))
    .values(
        state=bindparam("b_state"),
        seq=bindparam("b_seq"),
        payload_failures=(unit.c.payload_failures + bindparam("b_failures")) % _MOST,
        lost_pilots=(unit.c.lost_pilots + bindparam("b_timeouts")) % _MOST,
    )
)
"""The counts of a file that is tried for ever begin anew before they outgrow their columns."""
_FREE = (
    update(reservation)
    .where(reservation.c.unit_id == bindparam("b_id"))
    .values(released=bindparam("b_now"), outcome=bindparam("b_outcome"), expires=None)
)


@dataclass(frozen=True)
class Standing:
    """How a file stands, for a worker whose word about it was not taken."""

    state: UnitState
    worker: str | None
    released: bool
    outcome: Outcome | None


def standings(connection: Connection, task_id: int, dids: Iterable[str]) -> dict[str, Standing]:
    """How some files of a project stand; those that it does not have are left out."""
    by_digest = {digest(did): did for did in dids}
    query = (
        select(project_file.c.digest, unit.c.state, reservation.c.worker, reservation.c.released, reservation.c.outcome)
        .join(unit, unit.c.id == project_file.c.unit_id)
        .outerjoin(reservation, reservation.c.unit_id == project_file.c.unit_id)
        .where(project_file.c.task_id == task_id, project_file.c.digest.in_(list(by_digest)))
    )
    return {
        by_digest[bytes(row.digest)]: Standing(
            UNIT_STATES[row.state],
            row.worker,
            row.released is not None,
            Outcome(row.outcome) if row.outcome is not None else None,
        )
        for row in connection.execute(query)
    }


# ---------------------------------------------------------------- time-outs


def overdue(connection: Connection, now: float, limit: int = 1000) -> list[int]:
    """Units whose reservations have expired, the longest first."""
    query = select(reservation.c.unit_id).where(reservation.c.expires.is_not(None), reservation.c.expires <= now)
    return [row.unit_id for row in connection.execute(query.order_by(reservation.c.expires).limit(limit))]


def time_out(connection: Connection, unit_ids: Sequence[int], failing: Iterable[int], now: float) -> list[Moved]:
    """End those of the reservations that are still expired. Units that were cancelled meanwhile stay so."""
    expired = (reservation.c.unit_id.in_(unit_ids), reservation.c.expires <= now)
    moved = give_back(connection, [(row, Outcome.TIMED_OUT) for row in held(connection, *expired)], now, failing)
    connection.execute(
        update(reservation).where(*expired).values(released=now, outcome=int(Outcome.REVOKED), expires=None)
    )
    return moved


def sources(connection: Connection, task_id: int) -> dict[int, tuple[str, ...]]:
    """The buckets of a project that may have ready files, with their locations."""
    rows = _SOURCES.run(connection, {"task_id": task_id})
    return {row[0]: tuple(row[1].split(",")) if row[1] else () for row in rows}


_SOURCES = Prepared(
    select(bucket.c.id, bucket.c.locations).where(bucket.c.task_id == bindparam("task_id"), bucket.c.maybe_ready)
)
