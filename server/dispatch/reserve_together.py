"""Reservations and releases of many requests, carried out together on PostgreSQL.

Requests that arrive while others are at work share a transaction (:mod:`server.batching`); one that comes alone is
carried out at once, by the same code. A request gets files of one bucket only: what that has not is looked for in the
others the long way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.wire.projects import ReserveRequest
from server.dispatch.context import Dispatcher
from server.engine.projects import Facts, Source, end_of_tier
from server.store import reservations
from server.store.database import Connection, IntegrityError
from server.store.reservations import Moved, Releasing, ReservedFile, Terms

MOST = 32
"""Files of a request that shares a transaction with others: who wants more does not keep them waiting."""
MORE_ROUNDS = 2
"""How often those who found a bucket empty are sent to the next one together, before each goes on alone."""


@dataclass(frozen=True, slots=True)
class Reserving:
    """What a worker asks for, and when; ``reach`` is how far each location is from it."""

    facts: Facts
    request: ReserveRequest
    reach: Mapping[str, int]
    now: float

    def terms(self, bucket_id: int, found: int) -> Terms:
        """What it asks a bucket for, with ``found`` files of others."""
        timeout = self.facts.worker_timeout_s
        return Terms(
            task_id=self.facts.id,
            bucket_id=bucket_id,
            worker=self.request.worker,
            request_id=self.request.request_id,
            first=found,
            rows=self.request.count - found,
            now=self.now,
            expires=None if timeout is None else self.now + timeout,
        )


def reserve(dispatcher: Dispatcher, asked: Reserving) -> list[ReservedFile]:
    """Files of the best bucket, together with whatever else waits; the rest must be looked for alone.

    Raises:
        IntegrityError: this request of this worker got files already.
    """
    if dispatcher.database.is_sqlite or asked.request.count > MOST:
        return []
    found: list[ReservedFile] = dispatcher.files.do(asked, partial(carry_out, dispatcher))
    return found


def release(dispatcher: Dispatcher, releasing: Releasing) -> dict[str, Moved]:
    """Give files back, together with whatever else waits; those that the worker held, and where they went."""
    if dispatcher.database.is_sqlite or len(releasing.outcomes) > MOST:
        return dispatcher.database.together(lambda connection: reservations.release(connection, releasing))
    moved: dict[str, Moved] = dispatcher.files.do(releasing, partial(carry_out, dispatcher))
    return moved


def carry_out(dispatcher: Dispatcher, batch: list[Reserving | Releasing]) -> list[Any]:
    """The replies to a batch."""
    reserving = [each for each in batch if isinstance(each, Reserving)]
    releasing = [each for each in batch if isinstance(each, Releasing)]
    with dispatcher.database.at_once() as connection:
        found, moved = _round(dispatcher, connection, reserving, releasing)
        for _ in range(MORE_ROUNDS):
            empty = [n for n, files in enumerate(found) if not files]
            if not empty:
                break
            try:
                again, _ = _round(dispatcher, connection, [reserving[n] for n in empty], [])
            except IntegrityError:
                break  # what the first round did is done; whoever is repeated here finds out by itself
            for n, files in zip(empty, again, strict=True):
                found[n] = files
    got, gone = iter(found), iter(moved)
    return [next(gone) if isinstance(each, Releasing) else next(got) for each in batch]


def _round(
    dispatcher: Dispatcher, connection: Connection, reserving: list[Reserving], releasing: list[Releasing]
) -> tuple[list[list[ReservedFile]], list[dict[str, Moved]]]:
    """Each gets files of the bucket that is best for it, if it has some; a bucket that had too few is looked into."""
    book, clock = dispatcher.projects, dispatcher.clock
    found: list[list[ReservedFile]] = [[] for _ in reserving]
    asked: list[tuple[int, Source]] = []
    for n, each in enumerate(reserving):
        source = next(iter(book.in_order(connection, clock, each.facts, each.reach)), None)
        if source is not None:
            asked.append((n, source))
    wanted = [(reserving[n].terms(source.id, 0), source.floor, end_of_tier(source.floor)) for n, source in asked]
    reserved, moved = reservations.carry_out(connection, wanted, releasing)
    short: dict[int, Source] = {}
    for (n, source), files in zip(asked, reserved, strict=True):
        found[n] = files
        if files:
            book.taken(source, files[-1].seq)
        else:
            short[source.id] = source
    for source in short.values():
        book.begins(source, reservations.first_ready(connection, source.id), clock)
    return found, moved
