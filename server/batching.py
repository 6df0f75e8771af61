"""Requests of many threads, carried out together.

Requests that arrive while a batch is at work wait for the next one, which the first of them carries out for all: the
more come, the cheaper each is.
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
"""How long a batch waits for company, where the last one had some."""


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
    """Carries out requests of many threads together."""

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._mutex = threading.Lock()
        self._waiting: list[_Item[Q, R]] = []
        self._led = False
        self._company = 0
        self._never = threading.Event()

    def do(self, request: Q, work: Callable[[list[Q]], list[R]]) -> R:
        """The reply to a request, once its batch is through.

        ``work``, the same for all, takes a list of requests and gives a reply for each.

        Raises:
            Exception: what ``work`` raised for the batch.
        """
        item: _Item[Q, R] = _Item(request)
        with self._mutex:
            self._waiting.append(item)
            item.leads = not self._led
            self._led = True
        if not item.leads:
            item.turn.acquire()
        if item.leads:
            self._lead(work)
        if item.error is not None:
            raise item.error
        assert item.reply is not None
        return item.reply

    def _lead(self, work: Callable[[list[Q]], list[R]]) -> None:
        """Carry out one batch, then hand over to whoever waits longest."""
        if self._company > 1 and self._linger_s:
            self._never.wait(self._linger_s)
        with self._mutex:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        self._company = len(batch)
        try:
            _carry_out(batch, work)
        finally:
            with self._mutex:
                following = self._waiting[0] if self._waiting else None
                self._led = following is not None
                if following is not None:
                    following.leads = True
            for item in batch:
                item.turn.release()
            if following is not None:
                following.turn.release()


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
