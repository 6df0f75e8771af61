"""The one primitive: claim ready units for a job, in one transaction that two claimants can never both win."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from server.engine.sizing import rows_to_look_at
from server.store import claim_postgres, claim_singles, claim_sqlite
from server.store.claim_terms import Asked, Claimant, ClaimTerms, TakenUnit, taken_unit
from server.store.prepared import Piece, Prepared
from server.store.schema import job, replay

__all__ = [
    "Asked",
    "ClaimTerms",
    "Claimant",
    "ClaimedJob",
    "Floors",
    "TakenUnit",
    "Missed",
    "claim_job",
    "claim_together",
    "is_single",
    "claim_more",
    "remember",
    "replayed",
    "request_of",
]

MOST_TOGETHER = claim_singles.MOST
"""Claims of one statement at the most."""


@dataclass(frozen=True)
class ClaimedJob:
    """A job just made, and its units; ``emptied`` if its bucket is known to have no more ready ones."""

    job_id: int
    task_id: int
    bucket_id: int
    units: Sequence[TakenUnit]
    emptied: bool = False


class Floors:
    """Where each bucket's first ready unit may be, as far as this process knows.

    A claim that starts at the floor does not walk over dead index entries of units claimed before. A floor is only a
    hint: it is reset when nothing is found behind it, and when a unit comes back.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._seq: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def get(self, bucket_id: int) -> int:
        """The least seq to look from."""
        with self._mutex:
            return self._seq.get(bucket_id, 0)

    def advance(self, bucket_id: int, seq: int) -> None:
        """A claim took units from ``seq`` on."""
        with self._mutex:
            self._seq[bucket_id] = seq

    def reset(self, bucket_id: int) -> None:
        """Look from the beginning again."""
        self.reset_all([bucket_id])

    def reset_all(self, bucket_ids: Iterable[int]) -> None:
        """The same for several buckets."""
        with self._mutex:
            for bucket_id in bucket_ids:
                self._seq.pop(bucket_id, None)
                self._left.pop(bucket_id, None)

    def left(self, bucket_id: int) -> int | None:
        """How many units were still ready at the last claim, if few."""
        return self._left.get(bucket_id)

    def note_left(self, bucket_id: int, left: int | None) -> None:
        """A claim saw how many were still ready; None if many, and zero, which a look may prove wrong, is not kept."""
        with self._mutex:
            if left:
                self._left[bucket_id] = left
            else:
                self._left.pop(bucket_id, None)


class Missed(Enum):
    """Why a claim among others got nothing."""

    EMPTY = "no unit is left for it, or its task or queue may not"
    BELOW = "none from where the first one was thought to be: look from the beginning"
    TOO_LARGE = "the first unit does not fit; one behind it may"
    PILOT_MAY_NOT = "the pilot has ended, or was taken for lost"


def is_single(asked: Asked) -> bool:
    """Whether a claim can be made together with others: it is for one unit."""
    return rows_to_look_at(asked.terms.bounds) == 1


def claim_together(batch: Sequence[Asked], floors: Floors) -> Piece[list[ClaimedJob | Missed]]:
    """Claim a single unit for each of at most :data:`MOST_TOGETHER`, and make their jobs; on PostgreSQL only.

    One statement, to be carried out as a transaction by itself or in one that is about to end. It raises IntegrityError
    if one of the requests got its job already.
    """
    if not batch:
        return Piece((), lambda _: [])
    asked = [(each, floors.get(each.terms.bucket_id)) for each in batch]
    return Piece([claim_singles.step(asked)], lambda found: _outcomes(asked, found[0], floors))


def _outcomes(asked: Sequence[tuple[Asked, int]], rows: Sequence[Any], floors: Floors) -> list[ClaimedJob | Missed]:
    found: list[ClaimedJob | Missed] = []
    given: set[int] = set()
    for (each, floor), row in zip(asked, claim_singles.in_order(rows, len(asked)), strict=True):
        bucket_id = each.terms.bucket_id
        if row is None:
            found.append(_nothing(floors, bucket_id, floor, bucket_id in given))
        elif row[1] in _MISSED:
            found.append(_MISSED[row[1]])
        else:
            job_id, left, first_seq = row[1], row[2], row[4]
            found.append(ClaimedJob(job_id, each.terms.task_id, bucket_id, [taken_unit(row[1:])], emptied=not left))
            floors.note_left(bucket_id, left if left < claim_singles.LEFT_AT_MOST else None)
            if bucket_id not in given:
                # Only the first of a bucket's claims says where ready units begin: before the others' lie its own.
                floors.advance(bucket_id, first_seq)
            given.add(bucket_id)
    return found


_MISSED = {claim_singles.TOO_LARGE: Missed.TOO_LARGE, claim_singles.PILOT_MAY_NOT: Missed.PILOT_MAY_NOT}


def _nothing(floors: Floors, bucket_id: int, floor: int, given: bool) -> Missed:
    """What it means that a claim found no unit, where another of the same statement was ``given`` one or not."""
    if given or not floor:
        return Missed.EMPTY
    floors.reset(bucket_id)
    return Missed.BELOW


def claim_job(connection: Connection, asked: Asked, floors: Floors) -> ClaimedJob | None:
    """Claim units and make their job. No unit, no job.

    On PostgreSQL this is one statement; on SQLite it must be called in an immediate transaction.

    Raises:
        IntegrityError: this request got this job already.
    """
    terms, by = asked.terms, asked.claimant
    values = {
        "pilot_id": by.pilot_id,
        "site": by.site,
        "host": by.host,
        "request_id": asked.request_id,
        "ordinal": asked.ordinal,
        "cores": asked.cores,
        "now": asked.now,
    }
    rows = _walk(
        floors,
        terms,
        lambda floor, rows: _module(connection).claim(connection, terms, values, by.told, floor, rows),
    )
    if not rows:
        return None
    return ClaimedJob(rows[0][0], terms.task_id, terms.bucket_id, [taken_unit(row) for row in rows])


def claim_more(
    connection: Connection, terms: ClaimTerms, holder: tuple[int, int], floors: Floors, request_id: str, now: float
) -> Sequence[TakenUnit]:
    """Claim further units for a job (the get-file call); ``holder`` is the job, held by the transaction, and its pilot."""
    rows = _walk(
        floors, terms, lambda floor, rows: _module(connection).claim_more(connection, terms, *holder, floor, rows)
    )
    taken = [taken_unit(row) for row in rows]
    if taken:
        remember(connection, f"job:{holder[0]}", request_id, [each.id for each in taken], now)
    return taken


def _module(connection: Connection) -> Any:
    return claim_sqlite if connection.dialect.name == "sqlite" else claim_postgres


def _walk(floors: Floors, terms: ClaimTerms, reserve: Callable[[int, int], Sequence[Any]]) -> Sequence[Any]:
    """Try from the floor, which is a hint only, then from the beginning and farther."""
    floor, bounds = floors.get(terms.bucket_id), terms.bounds
    rows = reserve(floor, rows_to_look_at(bounds))
    if not rows and (floor or bounds.disk_mb is not None or bounds.max_events is not None):
        # The first units may have been too large for this slot.
        floors.reset(terms.bucket_id)
        rows = reserve(0, rows_to_look_at(bounds, again=True))
    if rows:
        floors.advance(terms.bucket_id, rows[0][1])
    return rows


def request_of(connection: Connection, pilot_id: int, request_id: str) -> list[int]:
    """The ids of the jobs that this request of a pilot got, if it was made before."""
    found = _REQUEST.run(connection, {"pilot_id": pilot_id, "request_id": request_id})
    return [row[0] for row in found]


_REQUEST = Prepared(
    select(job.c.id)
    .where(job.c.pilot_id == bindparam("pilot_id"), job.c.request_id == bindparam("request_id"))
    .order_by(job.c.ordinal)
)


def replayed(connection: Connection, holder: str, request_id: str) -> list[int]:
    """The ids that this request got when it was made first; empty if it is new."""
    found = connection.execute(
        select(replay.c.ids).where(replay.c.holder == holder, replay.c.request_id == request_id)
    ).scalar()
    return msgspec.json.decode(found, type=list[int]) if found else []


def remember(connection: Connection, holder: str, request_id: str, ids: list[int], now: float) -> bool:
    """Write down what a request got. False if the same request got something in another transaction: roll back then.

    Waits for the end of a transaction that is about to write the same.
    """
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"holder": holder, "request_id": request_id, "ids": msgspec.json.encode(ids).decode(), "time": now}
    statement = dialect_insert(replay).values(**values).on_conflict_do_nothing().returning(replay.c.holder)
    return connection.execute(statement).first() is not None
