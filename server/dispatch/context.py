"""What every use needs: database, clock, knobs, the cached look at the world."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from common.clock import Clock, SystemClock
from common.tokens import TokenIssuer
from server.access.guesses import Guesses
from server.access.providers import Providers
from server.batching import Batcher
from server.config import ServerConfig
from server.dispatch.caches import Jobs, Pilots, Tasks
from server.dispatch.demand_book import DemandBook
from server.dispatch.idle import IdlePilots, Noted, Untold
from server.dispatch.looks import Look, Looks, read_knobs
from server.dispatch.peek_book import PeekBook
from server.dispatch.project_book import ProjectBook
from server.dispatch.tails import Tails
from server.engine.reservations import Reservations
from server.metrics.watch import Watch
from server.plugins import Plugins
from server.store.beats import Beat
from server.store.claims import Floors
from server.store.database import Connection, Database
from server.store.workflows import TaskRow

__all__ = ["Dispatcher", "Look", "read_knobs"]


@dataclass
class Dispatcher:
    """Everything that the uses share in one process."""

    database: Database
    issuer: TokenIssuer
    config: ServerConfig = field(default_factory=ServerConfig)
    clock: Clock = field(default_factory=SystemClock)
    floors: Floors = field(default_factory=Floors)
    tasks: Tasks = field(default_factory=Tasks)
    pilots: Pilots = field(default_factory=Pilots)
    jobs: Jobs = field(default_factory=Jobs)
    idle: IdlePilots = field(default_factory=IdlePilots)
    asked_in_vain: Noted = field(default_factory=Noted)
    untold: Untold = field(default_factory=Untold)
    reservations: Reservations = field(default_factory=Reservations)
    demand: DemandBook = field(default_factory=DemandBook)
    projects: ProjectBook = field(default_factory=ProjectBook)

    def __post_init__(self) -> None:
        self.plugins = Plugins(self.config)
        self.providers = Providers(self.config.credentials, self.config.state_dir, self.clock)
        self.looks = Looks(self.database, self.clock, self.tasks.drop, self.floors.reset_all)
        self.tails = Tails(self.database, self.clock)
        self.peeks = PeekBook(self.database, self.clock)
        self.guesses = Guesses(self.clock)
        self.polls = threading.BoundedSemaphore(max(1, self.config.long_polls))
        self.stopping = threading.Event()
        self.heard: dict[int, Beat] = {}
        """Signs of life that go with the next batch; since when they were last written."""
        self.heard_written = float("-inf")
        self.writes: Batcher[Any, Any] = Batcher(linger_s=0.004)
        """Claims of one job each, records and confirmations, on PostgreSQL."""
        self.heartbeats: Batcher[Any, Any] = Batcher(leaders=2)
        self.files: Batcher[Any, Any] = Batcher(linger_s=0.002)
        """Of projects: reservations and releases."""
        self.watch = Watch(self.config.event_followers)
        self._changed = threading.Condition()
        self._changes = 0

    def now(self) -> float:
        """The moment, in seconds since the epoch."""
        return self.clock.now()

    def task(self, connection: Connection, task_id: int) -> TaskRow | None:
        """A task, as it was a moment ago: see :class:`server.dispatch.caches.Tasks`."""
        return self.tasks.get(connection, task_id)

    def changed(self) -> None:
        """Units became ready, or an admin changed something, in this process: waiting requests look again, everywhere."""
        self.looks.look_again()
        self._tell()

    def came_back(self, bucket_id: int) -> None:
        """Units of one bucket became ready again, in this process: claims look there from the beginning."""
        self.floors.reset(bucket_id)
        self.looks.look_again(bucket_id)
        self._tell()

    def _tell(self) -> None:
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
