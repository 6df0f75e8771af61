"""What this process knows of the world, the knobs, the shares and the buckets with ready units; kept up by what changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from common.clock import Clock
from common.wire import ProbeUse, ShareSpec
from server.config import Knobs
from server.dispatch import failing as failures
from server.dispatch.failing import Failing
from server.engine.access import Bans
from server.engine.buckets import Buckets
from server.engine.matching import Candidate, Moment, Traits
from server.engine.priority import user_priority
from server.engine.shares import ShareUse
from server.engine.world import World
from server.store import access, candidates, job_counts, probes, processes, world
from server.store.candidates import BucketRow, Cursor, News
from server.store.database import Connection, Database
from server.store.hosts import HostKey

T = TypeVar("T")

CACHE_S = 1.0
"""How old a look may be."""
AT_ONCE = 32
"""Tasks or buckets that are changed in one go: so long a claim has to wait for it."""
RECONCILE_S = 300.0
"""How often it is asked which rows are still there, so that deleted ones are forgotten."""


@dataclass(frozen=True)
class Look:
    """What the rules work on: made anew at least once a second while somebody asks."""

    taken: float
    revision: int
    world: World
    knobs: Knobs
    shares: list[ShareSpec]
    share_use: ShareUse
    owner_cores: Mapping[str, float]
    failing: Failing
    blocked_hosts: Mapping[HostKey, str]
    bans: Bans
    processes: int
    """How many web processes share the load."""

    def moment(self, now: float) -> Moment:
        """For matching."""
        return Moment(self.world, now, self.failing.sites, self.blocked_hosts, self.bans)


class _Unarranged:
    """Those buckets that may run in no order, for who gives none away."""

    def __init__(self) -> None:
        self._known: dict[int, Candidate] = {}

    def all(self) -> list[Candidate]:
        return list(self._known.values())

    def put(self, candidate: Candidate) -> None:
        self._known[candidate.bucket_id] = candidate

    def remove(self, bucket_id: int) -> None:
        self._known.pop(bucket_id, None)

    def bring_back(self, now: float) -> None:
        """Nothing is ever put aside."""

    def look_again(self, bucket_id: int | None) -> None:
        """Nor is this one."""


@dataclass
class _Ready:
    """The copy of the buckets: what is known of all tasks and buckets, and those that may run."""

    buckets: Buckets | _Unarranged
    tasks: dict[int, Traits] = field(default_factory=dict)
    rows: dict[int, BucketRow] = field(default_factory=dict)
    of_task: dict[int, set[int]] = field(default_factory=dict)
    cursor: Cursor | None = None
    knobs: Knobs | None = None
    reconciled: float = 0.0


class Looks:
    """The look of a process, shared by its threads; one of them renews it while the others go on with the old one."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        tasks_changed: Callable[[Iterable[int]], None],
        buckets_changed: Callable[[Iterable[int]], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._tasks_changed = tasks_changed
        self._buckets_changed = buckets_changed
        self._renewing = threading.Lock()
        self._look: Look | None = None
        self._stale = False
        self._used = False
        self._ready: _Ready | None = None
        self._asked_for_buckets = False
        self._arranged = False
        self.mutex = threading.Lock()
        """Held while the buckets are read or changed."""

    def get(self, max_age_s: float = CACHE_S) -> Look:
        """A look that is at most ``max_age_s`` old, or being renewed."""
        self._used = True
        look = self._look
        if look is not None and not self._stale and 0 <= self._clock.monotonic() - look.taken <= max_age_s:
            return look
        if look is None:
            with self._renewing:
                return self._look or self._renew()
        if not self._renewing.acquire(blocking=False):
            return look
        try:
            return self._renew()
        finally:
            self._renewing.release()

    def keep_up(self) -> None:
        """Renew the look, if somebody has used it: done often enough, this spares requests the wait for it."""
        if self._used and self._renewing.acquire(blocking=False):
            try:
                self._used = False
                self._renew()
            finally:
                self._renewing.release()

    def fresh(self) -> Look:
        """A look taken now: for what must not be decided by what was so a second ago, as when units are given up."""
        with self._renewing:
            return self._renew()

    def buckets(self) -> Buckets:
        """The buckets with ready units, arranged; to be used with :attr:`mutex` held. As old as the look."""
        found = self._ready.buckets if self._ready is not None else None
        if not isinstance(found, Buckets):
            with self._renewing:
                self._asked_for_buckets = self._arranged = True
                if self._ready is None or not isinstance(self._ready.buckets, Buckets):
                    self._renew()
                assert self._ready is not None
                found = self._ready.buckets
        assert isinstance(found, Buckets)
        return found

    def candidates(self) -> list[Candidate]:
        """The buckets with ready units, in no order: a process that gives none away need not arrange them."""
        if self._ready is None:
            with self._renewing:
                if self._ready is None:
                    self._asked_for_buckets = True
                    self._renew()
        assert self._ready is not None
        with self.mutex:
            return self._ready.buckets.all()

    def look_again(self, bucket_id: int | None = None) -> None:
        """Units came back to a bucket, or to any: it may have been set aside."""
        if self._ready is not None:
            with self.mutex:
                self._ready.buckets.look_again(bucket_id)

    def forget(self) -> None:
        """Something changed that the next request should see."""
        self._stale = True

    def _renew(self) -> Look:
        self._stale = False
        taken = self._clock.monotonic()
        with self._database.read() as connection:
            look = self._take(connection, taken)
            if self._asked_for_buckets:
                self._update(connection, look)
        self._look = look
        return look

    def _take(self, connection: Connection, taken: float) -> Look:
        now = self._clock.now()
        old = self._look
        revision = world.revision_of(connection)
        if old is None or old.revision != revision:
            places, shares = world.load(connection), list(world.shares(connection))
            knobs = read_knobs(world.settings(connection))
        else:
            places, shares, knobs = old.world, old.shares, old.knobs
        avoid = knobs.probe_use is ProbeUse.AVOID
        places = places.at(now).without(probes.failing(connection) if avoid else frozenset())
        failing = failures.load(connection, knobs.host_limits())
        return Look(
            taken=taken,
            revision=revision,
            world=places,
            knobs=knobs,
            shares=shares,
            share_use=ShareUse(shares, job_counts.in_use(connection, "share")),
            owner_cores=job_counts.in_use(connection, "owner") if knobs.user_priority else {},
            failing=failing,
            blocked_hosts=failing.blocked_hosts(now),
            bans=access.bans(connection, now),
            processes=processes.count(connection, now),
        )

    def _update(self, connection: Connection, look: Look) -> None:
        ready = self._ready
        arranged = ready is not None and isinstance(ready.buckets, Buckets)
        if ready is None or ready.cursor is None or ready.knobs != look.knobs or self._arranged and not arranged:
            # Arranged aside, so that nobody has to wait for it.
            news = candidates.everything(connection, look.knobs)
            buckets = Buckets() if self._arranged else _Unarranged()
            ready = _Ready(buckets, knobs=look.knobs, reconciled=self._clock.monotonic())
            _apply(ready, news, look, nullcontext())
            with self.mutex:
                self._ready = ready
        else:
            news = candidates.since(connection, ready.cursor, look.knobs)
            _apply(ready, news, look, self.mutex)
            with self.mutex:
                if look.knobs.user_priority:
                    _reprioritise(ready, look)
                ready.buckets.bring_back(self._clock.monotonic())
            self._reconcile(connection, ready)
        self._tasks_changed(each.task_id for each in news.tasks)
        self._buckets_changed(each.id for each in news.buckets)

    def _reconcile(self, connection: Connection, ready: _Ready) -> None:
        """Forget what was deleted: rows that are gone are never news."""
        now = self._clock.monotonic()
        if 0 <= now - ready.reconciled <= RECONCILE_S:
            return
        ready.reconciled = now
        tasks, buckets = candidates.there(connection)
        with self.mutex:
            for bucket_id in ready.rows.keys() - buckets:
                row = ready.rows.pop(bucket_id)
                ready.of_task.get(row.task_id, set()).discard(bucket_id)
                ready.buckets.remove(bucket_id)
            for task_id in ready.tasks.keys() - tasks:
                del ready.tasks[task_id]
                ready.of_task.pop(task_id, None)


def _apply(ready: _Ready, news: News, look: Look, mutex: AbstractContextManager[object]) -> None:
    """Bring the copy up to date; ``mutex`` is held for a few rows at a time. Only one thread at a time does this."""
    tasks = [replace(traits, priority=_priority(traits, look)) for traits in news.tasks]
    for some in _in_parts([traits for traits in tasks if ready.tasks.get(traits.task_id) != traits]):
        with mutex:
            for traits in some:
                ready.tasks[traits.task_id] = traits
                for bucket_id in ready.of_task.get(traits.task_id, ()):
                    _place(ready, ready.rows[bucket_id])
    for rows in _in_parts([row for row in news.buckets if not row.maybe_ready or ready.rows.get(row.id) != row]):
        with mutex:
            for row in rows:
                if row.maybe_ready:
                    ready.rows[row.id] = row
                    ready.of_task.setdefault(row.task_id, set()).add(row.id)
                else:
                    ready.rows.pop(row.id, None)
                    ready.of_task.get(row.task_id, set()).discard(row.id)
                _place(ready, row)
    ready.cursor = news.cursor


def _in_parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE))


def _place(ready: _Ready, row: BucketRow) -> None:
    traits = ready.tasks.get(row.task_id)
    if row.maybe_ready and traits is not None and traits.may_run:
        ready.buckets.put(row.candidate(traits))
    else:
        ready.buckets.remove(row.id)


def _priority(traits: Traits, look: Look) -> float:
    if not look.knobs.user_priority:
        return traits.own_priority
    # In steps, so that tasks do not change their place all the time.
    return traits.own_priority + round(user_priority(look.owner_cores.get(traits.owner, 0.0)), -1)


def _reprioritise(ready: _Ready, look: Look) -> None:
    for task_id, traits in ready.tasks.items():
        priority = _priority(traits, look)
        if priority != traits.priority:
            ready.tasks[task_id] = replace(traits, priority=priority)
            for bucket_id in ready.of_task.get(task_id, ()):
                _place(ready, ready.rows[bucket_id])


def read_knobs(settings: dict[str, object]) -> Knobs:
    """The knobs, from what admins have set."""
    return msgspec.convert(settings, Knobs)
