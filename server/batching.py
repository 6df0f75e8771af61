"""Requests of many threads, carried out together.

Requests that arrive while others are at work wait for the next batch, which the first of them carries out for all: the
more come, the cheaper each is. So a batch waits a moment for as many as lately came together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")

MOST = 1000
"""Requests of one batch."""
LINGER_S = 0.005
"""How long a batch waits for company at the most."""
CONTENT = 16
"""After so many batches that got the company they waited for, the next waits for one more."""


class Again:
    """The reply of work to what is to be carried out with the next batch."""


AGAIN = Again()


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass
class _Item(Generic[Q, R]):
    request: Q
    turn: threading.Lock = field(default_factory=_held_lock)
    """Held until the item's thread may go on: lighter than an Event, of which each request would need one."""
    leads: bool = False
    reply: R | None = None
    error: BaseException | None = None


class Batcher(Generic[Q, R]):
    """Carries out requests of many threads together; so many batches at once as there may be ``leaders``."""

    def __init__(self, linger_s: float = LINGER_S, leaders: int = 1) -> None:
        self._linger_s = linger_s
        self._leaders = leaders
        self._mutex = threading.Lock()
        self._waiting: list[_Item[Q, R]] = []
        self._leading = 0
        self._gathering = False
        """Whether one of the leaders has not begun yet, and will take along whoever waits."""
        self._enough: threading.Lock | None = None
        """Released when as many wait as that leader wants."""
        self._wanted = 1
        """Requests that a batch waits for: one that comes alone waits for nobody."""
        self._satisfied = 0
        self._at_work = 0
        """Requests of the batches that are being carried out."""
        self._peak = 0
        """The most that were there at once, waiting or at work, since the batch last waited for one more."""

    def do(self, request: Q, work: Callable[[list[Q]], list[R]]) -> R:
        """The reply to a request, once its batch is through.

        ``work``, the same for all, takes a list of requests and gives a reply for each; or :data:`AGAIN`, and the request
        is the next batch's, too.

        Raises:
            Exception: what ``work`` raised for the batch.
        """
        item: _Item[Q, R] = _Item(request)
        with self._mutex:
            self._waiting.append(item)
            self._peak = max(self._peak, len(self._waiting) + self._at_work)
            if not self._gathering and self._leading < self._leaders:
                self._appoint(item)
                self._leading += 1
            elif self._enough is not None and len(self._waiting) >= self._wanted:
                self._enough.release()
                self._enough = None
            leads = item.leads
        if not leads:
            # Also when it was appointed just now: its turn is released for that, and must be taken before the next time.
            item.turn.acquire()
        while item.leads:
            item.leads = False
            self._lead(work)
            item.turn.acquire()
        if item.error is not None:
            raise item.error
        assert item.reply is not None
        return item.reply

    def _appoint(self, item: _Item[Q, R]) -> None:
        item.leads = self._gathering = True

    def _lead(self, work: Callable[[list[Q]], list[R]]) -> None:
        """Carry out one batch, then hand over to whoever waits longest."""
        batch = self._gather()
        again: list[_Item[Q, R]] = []
        try:
            _carry_out(batch, work)
            again = [item for item in batch if item.reply is AGAIN]
        finally:
            settled = [item for item in batch if item.reply is not AGAIN]
            for item in again:
                item.reply = None
            with self._mutex:
                self._waiting[:0] = again
                self._at_work -= len(batch)
                following = self._waiting[0] if self._waiting and not self._gathering else None
                if following is not None:
                    self._appoint(following)
                else:
                    self._leading -= 1
            if following is not None:
                following.turn.release()
            for item in settled:
                item.turn.release()

    def _gather(self) -> list[_Item[Q, R]]:
        """Those that wait, when there are as many as lately came together, or none more came in time."""
        enough = None
        with self._mutex:
            if self._linger_s and len(self._waiting) < self._wanted:
                enough = self._enough = _held_lock()
        if enough is not None:
            enough.acquire(timeout=self._linger_s)
        with self._mutex:
            self._enough, self._gathering = None, False
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            self._at_work += len(batch)
            self._learn(len(batch))
        return batch

    def _learn(self, came: int) -> None:
        """What the next batch should wait for."""
        if came < self._wanted:
            self._wanted, self._satisfied = self._wanted - 1, 0
            return
        self._wanted = came
        self._satisfied += 1
        if self._satisfied > CONTENT:
            # One more is waited for only if there was one: when all that ask are in the batch, nobody else comes.
            self._wanted, self._satisfied = came + (self._peak > came > 1), 0
            self._peak = 0


def _carry_out(batch: list[_Item[Q, R]], work: Callable[[list[Q]], list[R]]) -> None:
    try:
        for item, reply in zip(batch, work([item.request for item in batch]), strict=True):
            item.reply = reply
    except Exception as error:  # noqa: BLE001 - each thread that waits is told
        if len(batch) == 1:
            batch[0].error = error
            return
        # What is wrong with one must not harm the others.
        for item in batch:
            _carry_out([item], work)
