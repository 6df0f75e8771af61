"""The one primitive: claim ready units for a job, in one transaction that two claimants can never both win."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from server.batching import Batcher
from server.engine.sizing import Bounds, rows_to_look_at
from server.store import claim_postgres, claim_singles, claim_sqlite
from server.store.claim_terms import Asked, Claimant, ClaimTerms, TakenUnit, taken_unit
from server.store.database import Database
from server.store.prepared import Prepared
from server.store.schema import job, replay

__all__ = [
    "Asked",
    "ClaimTerms",
    "Claimant",
    "ClaimedJob",
    "Floors",
    "TakenUnit",
    "Together",
    "claim_job",
    "claim_jobs",
    "claim_more",
    "remember",
    "replayed",
    "request_of",
]

LINGER_S = 0.004
"""How long claims wait for one another at the most, where several come."""


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


class Together:
    """Claims of several threads, carried out together: a batch of them costs little more than one."""

    def __init__(self, database: Database, floors: Floors) -> None:
        self._database = database
        self._floors = floors
        self._batcher: Batcher[Asked, _Got] = Batcher(linger_s=LINGER_S)

    def claim(self, asked: Asked) -> ClaimedJob | None:
        """A job, durable when this returns, or None if there is no unit for it.

        Raises:
            IntegrityError: this request got this job already.
            DatabaseUnavailable: no connection could be had, or it broke.
        """
        if self._database.is_sqlite:
            return self._database.together(lambda connection: claim_job(connection, asked, self._floors))
        return self._batcher.do(asked, self._carry_out).job

    def _carry_out(self, batch: list[Asked]) -> list[_Got]:
        found: list[_Got] = []
        for start in range(0, len(batch), claim_singles.MOST):
            with self._database.at_once() as connection:
                part = claim_jobs(connection, batch[start : start + claim_singles.MOST], self._floors)
            found += [_Got(job) for job in part]
        return found


@dataclass(frozen=True, slots=True)
class _Got:
    job: ClaimedJob | None


def claim_job(connection: Connection, asked: Asked, floors: Floors) -> ClaimedJob | None:
    """Claim units and make their job. No unit, no job.

    On PostgreSQL this is one statement; on SQLite it must be called in an immediate transaction.

    Raises:
        IntegrityError: this request got this job already.
    """
    return claim_jobs(connection, [asked], floors)[0]


def claim_jobs(connection: Connection, batch: Sequence[Asked], floors: Floors) -> list[ClaimedJob | None]:
    """The same for several claims, of which those for a single unit share a statement on PostgreSQL.

    Raises:
        IntegrityError: one of them was made before; some of the others may have been carried out.
    """
    found: list[ClaimedJob | None] = [None] * len(batch)
    singles = [n for n, each in enumerate(batch) if _is_single(connection, each.terms.bounds)]
    seen = set(singles)
    if singles:
        _claim_singles(connection, batch, singles, floors, found)
    for n, asked in enumerate(batch):
        if found[n] is None:
            found[n] = _claim_alone(connection, asked, floors, n in seen)
    return found


def _is_single(connection: Connection, bounds: Bounds) -> bool:
    return connection.dialect.name != "sqlite" and rows_to_look_at(bounds) == 1


def _claim_singles(
    connection: Connection, batch: Sequence[Asked], singles: list[int], floors: Floors, found: list[ClaimedJob | None]
) -> None:
    asked = [(batch[n], floors.get(batch[n].terms.bucket_id)) for n in singles]
    first: set[int] = set()
    for n, row in zip(singles, claim_singles.claim(connection, asked), strict=True):
        terms = batch[n].terms
        if row is not None:
            units = [taken_unit(row[1:])]
            found[n] = ClaimedJob(row[1], terms.task_id, terms.bucket_id, units, emptied=not row[2])
        if terms.bucket_id not in first:
            # Only the first of a bucket's claims says where ready units begin: before the others' lie its own.
            first.add(terms.bucket_id)
            if row is not None:
                floors.advance(terms.bucket_id, row[4])


def _claim_alone(connection: Connection, asked: Asked, floors: Floors, again: bool) -> ClaimedJob | None:
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
        again,
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


def _walk(
    floors: Floors, terms: ClaimTerms, reserve: Callable[[int, int], Sequence[Any]], again: bool = False
) -> Sequence[Any]:
    """Try from the floor, which is a hint only, then from the beginning and farther; ``again`` leaves out the first."""
    floor, bounds = floors.get(terms.bucket_id), terms.bounds
    rows = () if again else reserve(floor, rows_to_look_at(bounds))
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
