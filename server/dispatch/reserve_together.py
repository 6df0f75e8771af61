"""Reservations and releases of many requests, carried out together on PostgreSQL.

Requests that arrive while others are at work share a transaction (:mod:`server.batching`); one that comes alone is
carried out at once, by the same code. A request gets files of the best bucket only: what that has not is looked for in
the others the long way.
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
from server.store.database import Connection
from server.store.reservations import Moved, Releasing, ReservedFile, Terms

MOST = 32
"""Files of a request that shares a transaction with others: who wants more does not keep them waiting."""


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
    releasing = [each for each in batch if isinstance(each, Releasing)]
    with dispatcher.database.at_once() as connection:
        looked = _looked(dispatcher, connection, [each for each in batch if isinstance(each, Reserving)])
        wanted = [
            (asked.terms(source.id, 0), source.floor, end_of_tier(source.floor))
            for asked, source in looked
            if source is not None
        ]
        reserved, moved = reservations.carry_out(connection, wanted, releasing)
    files, gone = iter(reserved), iter(moved)
    replies: list[Any] = []
    for _, source in looked:
        found = next(files) if source is not None else []
        if source is not None and found:
            dispatcher.projects.taken(source, found[-1].seq)
        replies.append(found)
    got = iter(replies)
    return [next(gone) if isinstance(each, Releasing) else next(got) for each in batch]


def _looked(
    dispatcher: Dispatcher, connection: Connection, asked: list[Reserving]
) -> list[tuple[Reserving, Source | None]]:
    """Each with the bucket that is best for it, if there is one."""
    book, clock = dispatcher.projects, dispatcher.clock
    in_order = (book.in_order(connection, clock, each.facts, each.reach) for each in asked)
    return [(each, next(iter(sources), None)) for each, sources in zip(asked, in_order, strict=True)]
