"""What every use needs: database, clock, knobs, the cached look at the world."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import msgspec

from common.clock import Clock, SystemClock
from common.tokens import TokenIssuer
from common.wire import ShareSpec
from server.config import Knobs, ServerConfig
from server.engine.matching import Candidate
from server.engine.shares import service_order
from server.engine.world import World
from server.store import candidates, jobs, pilots, world
from server.store.claims import Floors
from server.store.database import Database

CACHE_S = 1.0
"""How old a look at the candidates may be."""


@dataclass(frozen=True)
class Look:
    """What matching works on: made anew at least once a second while somebody asks."""

    taken: float
    world: World
    candidates: list[Candidate]
    shares: list[ShareSpec]
    share_order: dict[str, tuple[float, ...]]
    idle_pilots: dict[str, int]
    knobs: Knobs


class Looks:
    """The cached look, shared by all threads of a process; one of them renews it, the others wait for that."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._mutex = threading.Lock()
        self._renewing = threading.Lock()
        self._look: Look | None = None

    def get(self, max_age_s: float = CACHE_S) -> Look:
        """A look that is at most ``max_age_s`` old."""
        look = self._current(max_age_s)
        if look is not None:
            return look
        with self._renewing:
            look = self._current(max_age_s)
            if look is None:
                look = self._take()
                with self._mutex:
                    self._look = look
            return look

    def forget(self) -> None:
        """Something changed that the next request should see."""
        with self._mutex:
            self._look = None

    def _current(self, max_age_s: float) -> Look | None:
        with self._mutex:
            look = self._look
        if look is None or not 0 <= self._clock.monotonic() - look.taken <= max_age_s:
            return None
        return look

    def _take(self) -> Look:
        taken = self._clock.monotonic()
        with self._database.read() as connection:
            shares = list(world.shares(connection))
            return Look(
                taken=taken,
                world=world.load(connection),
                candidates=candidates.load(connection),
                shares=shares,
                share_order=service_order(shares, jobs.running_by_share(connection)),
                idle_pilots=pilots.idle_by_queue(connection),
                knobs=read_knobs(world.settings(connection)),
            )


def read_knobs(settings: dict[str, object]) -> Knobs:
    """The knobs, from what admins have set."""
    return msgspec.convert(settings, Knobs)


@dataclass
class Dispatcher:
    """Everything that the uses share in one process."""

    database: Database
    issuer: TokenIssuer
    config: ServerConfig = field(default_factory=ServerConfig)
    clock: Clock = field(default_factory=SystemClock)
    floors: Floors = field(default_factory=Floors)

    def __post_init__(self) -> None:
        self.looks = Looks(self.database, self.clock)
        self.polls = threading.BoundedSemaphore(max(1, self.config.long_polls))
        self.stopping = threading.Event()
        self._changed = threading.Condition()
        self._changes = 0

    def now(self) -> float:
        """The moment, in seconds since the epoch."""
        return self.clock.now()

    def changed(self) -> None:
        """Units became ready, or an admin changed something, in this process: waiting requests look again."""
        self.looks.forget()
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def changes(self) -> int:
        """A number that grows with each change."""
        with self._changed:
            return self._changes

    def wait_for_change(self, seen: int, timeout_s: float) -> None:
        """Until something changed since ``seen``, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen or self.stopping.is_set(), timeout=timeout_s)
