"""What was revoked and banned, as a process knows it: read from the database at most once in STATE_S."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from server.dispatch.context import Dispatcher, read_knobs
from server.engine.access import Bans
from server.store import access, world
from server.store.access import Revoked
from server.store.database import DatabaseUnavailable

logger = logging.getLogger(__name__)

STATE_S = 2.0
"""How long it takes at the most until all processes know of a ban or a revocation."""


@dataclass(frozen=True)
class State:
    """``taken`` by the clock that only runs forward; ``epoch`` is the one below which tokens are refused."""

    taken: float
    epoch: int = 0
    bans: Bans = field(default_factory=Bans)
    revoked: Revoked = field(default_factory=Revoked)


class StateCache:
    """The state, shared by all threads of a process. One of them renews it, the others go on with what is known."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._renewing = threading.Lock()
        self._state: State | None = None
        self._stale = True

    def get(self) -> State:
        """The state, hardly older than STATE_S.

        Raises:
            DatabaseUnavailable: it was never read, and cannot be now.
        """
        state = self._state
        if state is not None and self._fresh(state):
            return state
        if not self._renewing.acquire(blocking=state is None or self._stale):
            assert state is not None
            return state
        try:
            state = self._state
            if state is None or not self._fresh(state):
                state = self._take(state)
                self._state = state
            return state
        finally:
            self._renewing.release()

    def forget(self) -> None:
        """Something changed in this process: the next request sees it."""
        self._stale = True

    def _fresh(self, state: State) -> bool:
        return not self._stale and 0 <= self._dispatcher.clock.monotonic() - state.taken < STATE_S

    def _take(self, earlier: State | None) -> State:
        taken = self._dispatcher.clock.monotonic()
        self._stale = False  # before reading: a change that comes meanwhile is not missed
        now = self._dispatcher.now()
        try:
            with self._dispatcher.database.read() as connection:
                knobs = read_knobs(world.settings(connection))
                return State(taken, knobs.token_epoch, access.bans(connection, now), access.revoked(connection, now))
        except DatabaseUnavailable as error:
            self._stale = earlier is None
            if earlier is None:
                raise
            logger.warning("what was revoked cannot be read; what is known stays in force: %s", error)
            return State(taken, earlier.epoch, earlier.bans, earlier.revoked)
