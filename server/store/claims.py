"""The one primitive: claim ready units for a job, in one transaction that two claimants can never both win."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from server.engine.sizing import rows_to_look_at
from server.store import claim_postgres, claim_sqlite
from server.store.claim_terms import ClaimTerms, TakenUnit, taken_unit
from server.store.prepared import Prepared
from server.store.schema import job, replay

__all__ = [
    "ClaimTerms",
    "Claimant",
    "ClaimedJob",
    "Floors",
    "TakenUnit",
    "claim_job",
    "claim_more",
    "remember",
    "replayed",
    "request_of",
]


@dataclass(frozen=True, slots=True)
class Claimant:
    """The pilot that claims, and where it sits; ``told`` ends the JSON of the event's detail."""

    pilot_id: int
    queue: str
    site: str
    host: str
    told: str


@dataclass(frozen=True)
class ClaimedJob:
    """A job just made, and its units."""

    job_id: int
    task_id: int
    bucket_id: int
    units: Sequence[TakenUnit]


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


def claim_job(
    connection: Connection,
    terms: ClaimTerms,
    claimant: Claimant,
    request: tuple[str, int],
    cores: int,
    floors: Floors,
    now: float,
) -> ClaimedJob | None:
    """Claim units and make their job. No unit, no job.

    ``request`` is the claimant's request id and the job's place in its answer. On PostgreSQL this is one statement; on
    SQLite it must be called in an immediate transaction.

    Raises:
        IntegrityError: this request got this job already.
    """
    values = {
        "pilot_id": claimant.pilot_id,
        "site": claimant.site,
        "host": claimant.host,
        "request_id": request[0],
        "ordinal": request[1],
        "cores": cores,
        "now": now,
    }
    rows = _walk(
        floors,
        terms,
        lambda floor, rows: _module(connection).claim(connection, terms, values, claimant.told, floor, rows),
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
    floor, bounds = floors.get(terms.bucket_id), terms.bounds
    rows = reserve(floor, rows_to_look_at(bounds))
    if not rows and (floor or bounds.disk_mb is not None or bounds.max_events is not None):
        # The floor was a hint only, and the first units may have been too large for this slot.
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
