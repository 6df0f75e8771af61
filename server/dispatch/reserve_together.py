"""Reservations and releases of many requests, carried out together on PostgreSQL.

Requests that arrive while others are at work share a transaction (:mod:`server.batching`); one that comes alone is
carried out at once, by the same code. A request gets files of one bucket only: what that has not is looked for in the
others the long way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
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
        rounds = _Rounds(dispatcher, connection, reserving)
        moved = rounds.go(releasing)
        # What the first round did is done; whoever is repeated in another finds out by itself.
        with suppress(IntegrityError):
            for _ in range(MORE_ROUNDS):
                if rounds.left:
                    rounds.go()
            rounds.look()
    got, gone = iter(rounds.found), iter(moved)
    return [next(gone) if isinstance(each, Releasing) else next(got) for each in batch]


class _Rounds:
    """In each, whoever has no file yet gets some of the bucket that is best for it, if that has some.

    A bucket that had too few is looked into together with the next round, in which nobody is sent there.
    """

    def __init__(self, dispatcher: Dispatcher, connection: Connection, reserving: list[Reserving]) -> None:
        self._book, self._clock = dispatcher.projects, dispatcher.clock
        self._connection = connection
        self._reserving = reserving
        self._short: dict[int, Source] = {}
        self.found: list[list[ReservedFile]] = [[] for _ in reserving]
        self.left = list(range(len(reserving)))
        """Those without a file to whom another round may bring one."""

    def go(self, releasing: Sequence[Releasing] = ()) -> list[dict[str, Moved]]:
        """One round, and the releases; which of their files the workers held.

        Raises:
            IntegrityError: one of the requests got files before; nothing was done in this round.
        """
        best = [(n, self._best(self._reserving[n])) for n in self.left]
        asked = [(n, source) for n, source in best if source is not None]
        wanted = [
            (self._reserving[n].terms(source.id, 0), source.floor, end_of_tier(source.floor)) for n, source in asked
        ]
        looked = list(self._short.values())
        done = reservations.carry_out(self._connection, wanted, releasing, [source.id for source in looked])
        self._note(looked, done.first_ready)
        # What has just been looked into may have a file for those who found no other.
        self.left = [n for n, source in best if source is None] if looked else []
        self._short = {}
        for (n, source), files in zip(asked, done.reserved, strict=True):
            self.found[n] = files
            if files:
                self._book.taken(source, files[-1].seq)
            else:
                self.left.append(n)
                self._short[source.id] = source
        return done.moved

    def look(self) -> None:
        """Find out where the ready files begin of the buckets that had too few."""
        looked, self._short = list(self._short.values()), {}
        done = reservations.carry_out(self._connection, [], [], [source.id for source in looked])
        self._note(looked, done.first_ready)

    def _note(self, looked: Sequence[Source], firsts: Sequence[int | None]) -> None:
        for source, first in zip(looked, firsts, strict=True):
            self._book.begins(source, first, self._clock)

    def _best(self, asked: Reserving) -> Source | None:
        sources = self._book.in_order(self._connection, self._clock, asked.facts, asked.reach)
        return next((each for each in sources if each.id not in self._short), None)
