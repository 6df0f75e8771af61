"""What this process knows of projects: their facts, which never change, and where their ready files begin."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from common.clock import Clock
from server.engine.projects import Facts, Source, in_order, reach_of
from server.engine.world import World
from server.store import projects, reservations
from server.store.database import Connection, Database

MOST = 1000
"""Projects remembered; whichever was asked for longest ago is forgotten."""
LISTED_S = 2.0
"""How old the list of a project's buckets may be."""
EMPTY_S = 1.0
"""How long a bucket in which nothing was found is left alone: all may have been locked."""


@dataclass
class _Known:
    facts: Facts
    sources: dict[int, Source] = field(default_factory=dict)
    listed: float = float("-inf")
    seen: float = float("-inf")


class ProjectBook:
    """Hints only: what is not true any more costs a statement, never a file."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._world: World | None = None
        self._reach: dict[str | None, dict[str, int]] = {}

    def reach(self, world: World, site: str | None) -> Mapping[str, int]:
        """How far each location is from a site: worked out once while the world stays the same."""
        with self._mutex:
            if self._world is not world:
                self._world, self._reach = world, {}
            found = self._reach.get(site)
        if found is None:
            found = reach_of(world, site)
            with self._mutex:
                if self._world is world and len(self._reach) < MOST:
                    self._reach[site] = found
        return found

    def facts(self, database: Database, project_id: int) -> Facts | None:
        """The facts of a project; None if there is none."""
        with self._mutex:
            known = self._known.get(project_id)
            if known is not None:
                self._known.move_to_end(project_id)
                return known.facts
        with database.read() as connection:
            facts = projects.facts(connection, project_id)
        if facts is not None:
            with self._mutex:
                self._known.setdefault(project_id, _Known(facts))
                while len(self._known) > MOST:
                    self._known.popitem(last=False)
        return facts

    def in_order(self, connection: Connection, clock: Clock, facts: Facts, reach: Mapping[str, int]) -> list[Source]:
        """The buckets of a project to reserve from, the best first; those of a moment ago."""
        now = clock.monotonic()
        with self._mutex:
            known = self._known.setdefault(facts.id, _Known(facts))
            if 0 <= now - known.listed <= LISTED_S:
                return in_order(known.sources.values(), reach, now)
            if known.sources:  # others go on with the old list meanwhile
                known.listed = now
        found = reservations.sources(connection, facts.id)
        with self._mutex:
            known.sources = {
                bucket_id: known.sources.get(bucket_id) or Source(bucket_id, locations)
                for bucket_id, locations in found.items()
            }
            known.listed = now
            return in_order(known.sources.values(), reach, now)

    def taken(self, source: Source, seq: int) -> None:
        """The file at this place was reserved."""
        with self._mutex:
            source.floor = seq + 1

    def begins(self, source: Source, seq: int | None, clock: Clock) -> None:
        """The first ready file of a bucket is there; None: it has none."""
        with self._mutex:
            if seq is None:
                source.floor, source.empty_until = 0, clock.monotonic() + EMPTY_S
            else:
                source.floor = seq

    def came_back(self, project_id: int, bucket_id: int, seq: int) -> None:
        """A file is ready again."""
        with self._mutex:
            known = self._known.get(project_id)
            if known is None:
                return
            source = known.sources.get(bucket_id)
            if source is None:
                known.listed = float("-inf")
            else:
                source.floor, source.empty_until = min(source.floor, seq), 0.0

    def forget(self, project_id: int) -> None:
        """Files of a project may have come back anywhere: look at all of it again."""
        with self._mutex:
            known = self._known.get(project_id)
            if known is not None:
                known.sources, known.listed = {}, float("-inf")

    def is_due(self, facts: Facts, now: float) -> bool:
        """Whether a sign of life has to be written down; if so, the next one only after a while."""
        with self._mutex:
            known = self._known.setdefault(facts.id, _Known(facts))
            if 0 <= now - known.seen < facts.idle_step_s:
                return False
            known.seen = now
            return True

    def drop(self, project_id: int) -> None:
        """A project is gone."""
        with self._mutex:
            self._known.pop(project_id, None)
