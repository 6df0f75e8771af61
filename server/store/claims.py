"""The one primitive: claim ready units for a job, in one transaction that two claimants can never both win."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from common.states import JobState, UnitState
from server.store import claim_postgres, claim_sqlite, events, units
from server.store.claim_terms import ClaimTerms, TakenUnit
from server.store.codes import JOB_CODES
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
    "take",
]


@dataclass(frozen=True)
class Claimant:
    """The pilot that claims, and where it sits."""

    pilot_id: int
    queue: str
    site: str
    host: str


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
        with self._mutex:
            self._seq.pop(bucket_id, None)


def take(connection: Connection, terms: ClaimTerms, job_id: int, floors: Floors) -> Sequence[TakenUnit]:
    """Reserve units for a job; none when the bucket has none now, or its task or queue may not run."""
    reserve = claim_sqlite.reserve if connection.dialect.name == "sqlite" else claim_postgres.reserve
    floor = floors.get(terms.bucket_id)
    taken = reserve(connection, terms, job_id, floor)
    if not taken and floor:
        floors.reset(terms.bucket_id)
        taken = reserve(connection, terms, job_id, 0)
    if taken:
        floors.advance(terms.bucket_id, taken[0].seq)
    return taken


def claim_job(
    connection: Connection, terms: ClaimTerms, claimant: Claimant, cores: int, floors: Floors, now: float
) -> ClaimedJob | None:
    """Claim units and make their job. No unit, no job."""
    job_id = _next_job_id(connection)
    taken = take(connection, terms, job_id, floors)
    if not taken:
        return None
    connection.execute(
        insert(job).values(
            id=job_id,
            task_id=terms.task_id,
            bucket_id=terms.bucket_id,
            pilot_id=claimant.pilot_id,
            state=JOB_CODES[JobState.SENT],
            n_units=len(taken),
            cores=cores,
            queue=claimant.queue,
            site=claimant.site,
            host=claimant.host,
            claimed=now,
            heartbeat=now,
        )
    )
    _count(connection, terms, len(taken))
    detail = {"units": len(taken), "queue": claimant.queue, "pilot": claimant.pilot_id, "host": claimant.host}
    events.add(
        connection,
        events.Event(
            now, "JOB_CLAIMED", "job", job_id, terms.task_id, job_id, target=JobState.SENT, detail=detail
        ),
    )  # fmt: skip
    return ClaimedJob(job_id, terms.task_id, terms.bucket_id, taken)


def claim_more(
    connection: Connection, terms: ClaimTerms, job_id: int, floors: Floors, request_id: str, now: float
) -> Sequence[TakenUnit]:
    """Claim further units for a job that the transaction already holds (the get-file call)."""
    taken = take(connection, terms, job_id, floors)
    if taken:
        connection.execute(update(job).where(job.c.id == job_id).values(n_units=job.c.n_units + len(taken)))
        _count(connection, terms, len(taken))
        remember(connection, f"job:{job_id}", request_id, [each.id for each in taken], now)
    return taken


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


def _next_job_id(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        return claim_sqlite.next_job_id(connection)
    return claim_postgres.next_job_id(connection)


def _count(connection: Connection, terms: ClaimTerms, taken: int) -> None:
    key = terms.task_id, terms.bucket_id
    units.add_deltas(connection, Counter({(*key, UnitState.READY): -taken, (*key, UnitState.RESERVED): taken}))
