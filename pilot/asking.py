"""Asking for jobs: one question at a time, under an id that stays the same until it is answered."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from functools import partial
from typing import Optional

from common.wire import AcquireReply, AcquireRequest, Offer
from pilot.calls import ask
from pilot.client import CallRefused, NotAccepted, Server, ServerError
from pilot.jobs import backoff_s
from pilot.loop import Lane, Loop

logger = logging.getLogger(__name__)

_SPREAD = 0.2
"""How much later than asked for a question may be put, so that pilots that wait together do not come together."""


class Asker:
    """Puts the question. All methods and callbacks are for the loop's thread, but ``remember``, which writes to disk.

    Its timer and thread are named ``key``; with ``ahead`` it asks for a job that begins later.
    ``offer`` answers what to offer and how long the server may let the question wait, or None when there is nothing to
    offer. ``remember`` keeps the id of an open question for the case that this pilot dies and is started again.
    ``on_not_accepted``: the token may just have expired in an outage; only a heartbeat can tell, and renew it.
    """

    def __init__(
        self,
        loop: Loop,
        server: Server,
        offer: Callable[[], Optional[tuple[Offer, float]]],
        remember: Callable[[Optional[str]], None],
        on_reply: Callable[[AcquireReply], None],
        on_not_accepted: Callable[[], None],
        on_unanswered: Callable[[], None],
        rng: random.Random,
        request_id: Optional[str],
        key: str = "acquire",
        ahead: bool = False,
    ) -> None:
        self._key = key
        self._ahead = ahead
        self._loop = loop
        self._server = server
        self._offer = offer
        self._remember = remember
        self._on_reply = on_reply
        self._on_not_accepted = on_not_accepted
        self._on_unanswered = on_unanswered
        self._rng = rng
        self._request_id = request_id
        self._lane = Lane(key)
        self._failures = 0
        self.busy = False
        """A question is on its way: its answer may bring a job."""

    @property
    def open(self) -> bool:
        """Whether a question was put and not answered yet: there may be a job behind it."""
        return self._request_id is not None

    def ask_now(self) -> None:
        """Ask, if there is something to offer; while the server is away, not before its time."""
        if self.busy or (self._failures and self._loop.is_set(self._key)):
            return
        self._loop.cancel(self._key)
        self._ask()

    def ask_in(self, delay_s: float) -> None:
        """Ask after ``delay_s`` seconds or a little later."""
        self._loop.after(self._key, delay_s * self._rng.uniform(1.0, 1.0 + _SPREAD), self._ask)

    def stop(self) -> None:
        """Ask no more; an answer that is on its way is still handed on."""
        self._loop.cancel(self._key)

    def give_up(self) -> None:
        """Do not wait for the answer that is on its way any more."""
        self.busy = False

    def _ask(self) -> None:
        offered = None if self.busy else self._offer()
        if offered is None:
            return
        offer, wait_s = offered
        self._request_id = self._request_id or secrets.token_hex(16)
        self.busy = True
        request = AcquireRequest(self._request_id, offer, max_jobs=1, wait_s=wait_s, ahead=self._ahead)
        ask(self._loop, self._lane, partial(self._put, request), self._answered, self._failed)

    def _put(self, request: AcquireRequest) -> AcquireReply:
        """On the lane."""
        self._remember(request.request_id)
        reply = self._server.acquire(request)
        self._remember(None)
        return reply

    def _answered(self, reply: AcquireReply) -> None:
        self.busy = False
        self._failures = 0
        self._request_id = None
        self._on_reply(reply)

    def _failed(self, error: ServerError) -> None:
        self.busy = False
        if isinstance(error, NotAccepted):
            self._on_not_accepted()
        if isinstance(error, CallRefused):
            self._request_id = None
        self._failures += 1
        delay_s = backoff_s(self._failures, self._rng)
        logger.warning("no answer to the question for jobs, again in %.1f s: %s", delay_s, error)
        self._loop.after(self._key, delay_s, self._ask)
        self._on_unanswered()
