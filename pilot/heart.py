"""The heartbeat: one call for all jobs that the pilot holds, at the interval that the server names."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Optional

from common.clock import Clock
from common.wire import HeartbeatReply, HeartbeatRequest, JobReport
from pilot.calls import ask
from pilot.client import NotAccepted, Server, ServerError
from pilot.jobs import backoff_s
from pilot.loop import Lane, Loop

logger = logging.getLogger(__name__)

SOON_S = 2.0
"""A change of state is told within this time; changes that follow one another share a call."""
REFUSED_FOR_S = 600.0
"""A server that does not accept the pilot is asked again for so long: its keys may be wrong for a moment, and what is
given up cannot be had back."""
_KEY = "heartbeat"


class Heart:
    """Beats. ``held`` lists all jobs; ``on_reply`` and ``on_rejected`` run on the loop's thread, as all methods do.

    ``on_rejected`` is told when the server has said nothing but that it does not accept the pilot, for
    :data:`REFUSED_FOR_S`.
    """

    def __init__(
        self,
        loop: Loop,
        server: Server,
        held: Callable[[], list[JobReport]],
        on_reply: Callable[[HeartbeatReply], None],
        on_rejected: Callable[[str], None],
        rng: random.Random,
        clock: Clock,
    ) -> None:
        self._loop = loop
        self._server = server
        self._held = held
        self._on_reply = on_reply
        self._on_rejected = on_rejected
        self._rng = rng
        self._clock = clock
        self._lane = Lane("heartbeat")
        self._interval_s = 0.0
        self._beating = False
        self._news = False
        self._failures = 0
        self._refused_since: Optional[float] = None
        self._stopped = True

    def start(self, interval_s: float) -> None:
        """Beat every ``interval_s`` seconds from now on."""
        self._stopped = False
        self._interval_s = interval_s
        self._loop.after(_KEY, interval_s, self._beat)

    def soon(self) -> None:
        """There is news; it need not wait for the next interval."""
        if self._beating:
            self._news = True
        elif not self._stopped and not self._failures and not self._loop.is_set("news"):
            self._loop.after("news", min(SOON_S, self._interval_s), self._beat)

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True
        self._loop.cancel(_KEY)
        self._loop.cancel("news")

    def _beat(self) -> None:
        if self._beating or self._stopped:
            return
        self._beating, self._news = True, False
        self._loop.cancel("news")
        request = HeartbeatRequest(jobs=self._held())
        ask(self._loop, self._lane, partial(self._server.heartbeat, request), self._beaten, self._failed)

    def _beaten(self, reply: HeartbeatReply) -> None:
        self._beating = False
        self._failures = 0
        self._refused_since = None
        if self._stopped:
            return
        self._interval_s = reply.next_interval_s
        self._loop.after(_KEY, self._interval_s, self._beat)
        if self._news:
            self.soon()
        self._on_reply(reply)

    def _failed(self, error: ServerError) -> None:
        self._beating = False
        if self._stopped:
            return
        self._failures += 1
        if isinstance(error, NotAccepted):
            self._refused(error)
            return
        self._refused_since = None
        delay_s = backoff_s(self._failures, self._rng, most_s=max(1.0, self._interval_s))
        logger.warning("heartbeat not answered, again in %.1f s: %s", delay_s, error)
        self._loop.after(_KEY, delay_s, self._beat)

    def _refused(self, error: NotAccepted) -> None:
        """Keep the jobs and ask again, unless this has gone on for too long."""
        now = self._clock.monotonic()
        since = self._refused_since = now if self._refused_since is None else self._refused_since
        if now - since >= REFUSED_FOR_S:
            self._on_rejected(str(error))
            return
        logger.warning("heartbeat refused, again in %.1f s: %s", self._interval_s, error)
        self._loop.after(_KEY, self._interval_s, self._beat)
