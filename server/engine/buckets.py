"""The buckets that have ready units, arranged so that a match costs the same however many there are.

For each share and each location there is a shelf: its buckets by priority, and in each priority in lines of those that
no filter can tell apart (a *family* of tasks with the same requirements), oldest first. A slot is served from the shelves
of the locations near its site outwards, the best rank first; whole families, lines and shares that it cannot have are
passed over, not their buckets one by one. Nothing is arranged for each queue, so that any number of them costs nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain, count, islice
from typing import Any

from common.wire import Offer, Refusal
from server.engine.foreign import terms_key, unsuited
from server.engine.matching import (
    Candidate,
    Match,
    Moment,
    Refused,
    Slot,
    Traits,
    count_refusal,
    direct_refusal,
    is_direct,
    moment_refusal,
    output_refusal,
    rank,
    reach_refusal,
    size_refusal,
    slot_refusal,
    task_refusal,
)
from server.engine.shares import ShareUse
from server.engine.world import NEVER, World

LOOKED_AT = 64
"""Buckets of one line that are looked at, one after another, before the next line has its turn."""
REMEMBERED_NOTHINGS = 16
"""Offers of a kind of slot that found nothing, to be compared with the next."""
TOLD = 20
"""Refusals that go with an answer of nothing."""
_LINE_WIDE = frozenset({"cores", "memory", "wall_time", "downtime", "reserved", "gpus", "resource_type", "scouts"})
"""Filters that say the same to all buckets of a line, wherever they lie."""
_FIRST = float("-inf")

Place = str | None
"""A location, or None for what needs no input."""


@dataclass
class Line:
    """Buckets of one family and size on one shelf: moments of their tasks' making and their ids, oldest first."""

    family: int
    traits: Traits
    order: list[tuple[float, int]] = field(default_factory=list)


@dataclass
class Shelf:
    """The lines of one share at one location, by priority; the priorities that are there, highest first."""

    priorities: list[float] = field(default_factory=list)
    levels: dict[float, dict[Hashable, Line]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a bucket stands."""

    share: str
    places: tuple[Place, ...]
    priority: float
    line: Hashable
    entry: tuple[float, int]


@dataclass(frozen=True)
class _Nothing:
    offer: Offer
    refusals: list[Refusal]


@dataclass
class _View:
    """What a kind of slot sees: the locations that it can read from, nearest first; families that it may not have."""

    world: World
    groups: list[tuple[int, list[Place]]]
    reach: Mapping[str, int]
    direct: frozenset[str]
    families: dict[int, Refused] = field(default_factory=dict)
    nothings: list[_Nothing] = field(default_factory=list)
    version: int = 0
    until: float = 0.0


@dataclass
class _Search:
    """One search: what is told when it finds nothing, lines that are known to be of no use, buckets looked at."""

    slot: Slot
    moment: Moment
    view: _View
    refusals: list[Refusal] = field(default_factory=list)
    useless: set[Hashable] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=count)

    def tell(self, traits: Traits, bucket_id: int, refusal: tuple[str, str]) -> None:
        """Remember why something was refused."""
        if len(self.refusals) < TOLD:
            self.refusals.append(Refusal(traits.task_id, bucket_id, *refusal))


class Buckets:
    """All buckets that may have ready units, of tasks that may run. Not for several threads at once."""

    def __init__(self) -> None:
        self.version = 0
        """Grows with each change."""
        self.most_cores = 0
        """No bucket asks for more."""
        self._known: dict[int, Candidate] = {}
        self._spots: dict[int, _Spot] = {}
        self._shares: dict[str, dict[Place, Shelf]] = {}
        self._priorities: dict[str, Counter[float]] = {}
        self._tops: dict[str, float] = {}
        self._families: dict[Hashable, int] = {}
        self._aside: dict[int, float] = {}
        self._views: dict[Hashable, _View] = {}

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Candidate]:
        """Every bucket."""
        return list(self._known.values())

    def put(self, candidate: Candidate) -> None:
        """A bucket is there, or has changed."""
        self._forget(candidate.bucket_id)
        self._known[candidate.bucket_id] = candidate
        self._insert(candidate)
        self.version += 1

    def remove(self, bucket_id: int) -> None:
        """A bucket has no ready units any more, or its task may not run."""
        self._forget(bucket_id)
        self.version += 1

    def set_aside(self, bucket_id: int, until: float) -> None:
        """Nothing was found in a bucket: others are looked at first for a while. It may be that all was locked."""
        if bucket_id in self._known and bucket_id not in self._aside:
            self._take_out(bucket_id)
            self._aside[bucket_id] = until

    def bring_back(self, now: float) -> None:
        """Buckets whose time aside is over are looked at again."""
        due = [bucket_id for bucket_id, until in self._aside.items() if until <= now]
        for bucket_id in due:
            del self._aside[bucket_id]
            self._insert(self._known[bucket_id])
        if due:
            self.version += 1

    def look_again(self, bucket_id: int | None) -> None:
        """Units came back to a bucket, which is no longer aside; None brings back all."""
        if bucket_id is None:
            self.bring_back(math.inf)
        elif self._aside.pop(bucket_id, None) is not None:
            self._insert(self._known[bucket_id])
            self.version += 1

    def tidy(self) -> None:
        """Forget families that have no bucket, and slots that have not asked for long."""
        known = list(self._known.values())
        aside = dict(self._aside)
        for memory in (
            self._known,
            self._spots,
            self._shares,
            self._priorities,
            self._tops,
            self._families,
            self._views,
        ):
            memory.clear()
        self.most_cores = 0
        for candidate in known:
            self._known[candidate.bucket_id] = candidate
            if candidate.bucket_id not in aside:
                self._insert(candidate)

    # ------------------------------------------------------------ searching

    def find(
        self, slot: Slot, moment: Moment, shares: ShareUse, most: int, without: frozenset[int] = frozenset()
    ) -> tuple[list[Match], list[Refusal]]:
        """Up to ``most`` buckets that a slot may claim from, best first; if there is none, why not, for some of them.

        ``without`` names buckets that were tried already.
        """
        refusal = slot_refusal(slot, moment)
        if refusal is not None:
            some = islice(self._known.values(), TOLD)
            return [], [Refusal(each.traits.task_id, each.bucket_id, *refusal) for each in some]
        view = self._view(slot, moment)
        plain = not without and not (slot.cut is not None and slot.cut.strictly)
        if self._fresh(view, moment.now) and plain:
            for nothing in view.nothings:
                if _within(slot.offer, nothing.offer):
                    return [], nothing.refusals
        search = _Search(slot, moment, view, seen=set(without))
        unknown = sorted(self._shares.keys() - shares.names)
        matches: list[Match] = []
        for share in chain(unknown, shares.in_order(self._shares)):
            matches += islice(self._of_share(share, search), most - len(matches))
            if len(matches) == most:
                return matches, []
        if matches:
            return matches, []
        self._tell_unreachable(search)
        if plain:
            view.nothings = [*view.nothings[-REMEMBERED_NOTHINGS + 1 :], _Nothing(slot.offer, search.refusals)]
        return [], search.refusals

    def _of_share(self, share: str, search: _Search) -> Iterator[Match]:
        """A share's matches, best rank first; of the same rank, the oldest bucket first."""
        shelves, top = self._shares[share], self._top(share)
        if top is None:
            return
        groups, reached = search.view.groups, 0
        # Entries: minus the rank, the task's age, the bucket, a number that makes them differ, what is behind it.
        heap: list[tuple[float, float, int, int, Any]] = []
        while True:
            while reached < len(groups):
                distance, places = groups[reached]
                if heap and heap[0][0] < -rank(distance, top):
                    break  # nothing that lies farther can be better
                for place in places:
                    shelf = shelves.get(place)
                    if shelf is not None and shelf.priorities:
                        _push_level(heap, search, shelf, 0, distance)
                reached += 1
            if not heap:
                return
            minus_rank, created, bucket_id, _, behind = heappop(heap)
            if created == _FIRST:
                self._open_level(heap, search, *behind)
                continue
            line, key, place_in_line, distance = behind
            match = self._try(bucket_id, key, distance, search)
            if match is not None:
                yield match
            following = place_in_line + 1
            if key not in search.useless and following < min(len(line.order), LOOKED_AT):
                created, bucket_id = line.order[following]
                entry = (minus_rank, created, bucket_id, next(search.numbers), (line, key, following, distance))
                heappush(heap, entry)

    def _top(self, share: str) -> float | None:
        """The highest priority of a share's buckets: asked for by each search, and seldom another."""
        top = self._tops.get(share)
        if top is None and self._priorities[share]:
            top = self._tops[share] = max(self._priorities[share])
        return top

    def _open_level(
        self, heap: list[tuple[float, float, int, int, Any]], search: _Search, shelf: Shelf, level: int, distance: int
    ) -> None:
        """Put the heads of all lines of a priority up for comparison, and the next priority behind them."""
        priority = shelf.priorities[level]
        for key, line in shelf.levels[priority].items():
            if not line.order or key in search.useless:
                continue
            created, bucket_id = line.order[0]
            refusal = self._family_refusal(line, search)
            if refusal is not None:
                search.useless.add(key)
                search.tell(line.traits, bucket_id, refusal)
            elif distance > line.traits.max_distance:
                found = reach_refusal(line.traits, (), search.slot.queue.site, distance)
                assert found is not None
                search.tell(line.traits, bucket_id, found)
            else:
                entry = (-rank(distance, priority), created, bucket_id, next(search.numbers), (line, key, 0, distance))
                heappush(heap, entry)
        if level + 1 < len(shelf.priorities):
            _push_level(heap, search, shelf, level + 1, distance)

    def _family_refusal(self, line: Line, search: _Search) -> Refused:
        known = search.view.families
        if line.family not in known:
            site, world = search.slot.queue.site, search.moment.world
            known[line.family] = task_refusal(line.traits, search.slot, search.moment) or output_refusal(
                line.traits, site, world
            )
        return known[line.family]

    def _try(self, bucket_id: int, key: Hashable, distance: int, search: _Search) -> Match | None:
        if bucket_id in search.seen:
            return None  # it lies nearer, too
        search.seen.add(bucket_id)
        candidate, slot = self._known[bucket_id], search.slot
        direct = is_direct(candidate.traits, candidate.locations, slot.queue, search.view.direct)
        refusal = (
            size_refusal(candidate, slot, direct)
            or count_refusal(candidate, slot.queue.site)
            or direct_refusal(candidate.traits, candidate.locations, direct)
            or moment_refusal(candidate, slot.queue.site, search.moment, distance)
        )
        if refusal is None:
            return Match(candidate, distance, rank(distance, candidate.traits.priority), direct)
        search.tell(candidate.traits, bucket_id, refusal)
        if refusal[0] in _LINE_WIDE:
            search.useless.add(key)
        return None

    def _tell_unreachable(self, search: _Search) -> None:
        """Why what lies where the slot cannot read was not even looked at."""
        site, reach = search.slot.queue.site, search.view.reach
        for shelves in self._shares.values():
            for place, shelf in shelves.items():
                if place is None or place in reach or len(search.refusals) == TOLD:
                    continue
                for line in chain.from_iterable(level.values() for level in shelf.levels.values()):
                    if line.order and line.order[0][1] not in search.seen:
                        candidate = self._known[line.order[0][1]]
                        if not any(each in reach for each in candidate.locations):
                            refusal = reach_refusal(candidate.traits, candidate.locations, site, NEVER)
                            assert refusal is not None
                            search.seen.add(candidate.bucket_id)
                            search.tell(candidate.traits, candidate.bucket_id, refusal)

    def _view(self, slot: Slot, moment: Moment) -> _View:
        # Of queues whose specs differ, as that of a pilot which never reads directly, each has a view of its own.
        key = (
            slot.queue.name, slot.queue.remote_io, frozenset(slot.offer.tags), terms_key(slot.offer.foreign), moment.bans.users
        )  # fmt: skip
        view = self._views.get(key)
        if view is None or view.world is not moment.world:
            site = slot.queue.site
            direct = moment.world.direct(site) if slot.queue.remote_io else frozenset()
            reach = moment.world.reach(site)
            view = self._views[key] = _View(moment.world, _groups(reach), reach, direct)
        return view

    def _fresh(self, view: _View, now: float) -> bool:
        """Whether what was found to be nothing may still be; waits end by themselves, so not for long."""
        if view.version == self.version and now < view.until:
            return True
        view.version, view.until, view.nothings = self.version, now + 1.0, []
        return False

    # ------------------------------------------------------------ arranging

    def _insert(self, candidate: Candidate) -> None:
        traits = candidate.traits
        family = self._families.setdefault(_family(traits), len(self._families))
        line_key = (family, candidate.unit_mb.bit_length(), candidate.memory_mb, candidate.wall_s)
        entry = (traits.created, candidate.bucket_id)
        spot = _Spot(traits.share, candidate.locations or (None,), traits.priority, line_key, entry)
        shelves = self._shares.setdefault(traits.share, {})
        for place in spot.places:
            shelf = shelves.get(place)
            if shelf is None:
                shelf = shelves[place] = Shelf()
            level = shelf.levels.get(traits.priority)
            if level is None:
                level = shelf.levels[traits.priority] = {}
                insort(shelf.priorities, traits.priority, key=_downwards)
            line = level.get(line_key)
            if line is None:
                line = level[line_key] = Line(family, traits)
            insort(line.order, entry)
        self._priorities.setdefault(traits.share, Counter())[traits.priority] += 1
        top = self._tops.get(traits.share)
        if top is not None:
            self._tops[traits.share] = max(top, traits.priority)
        self._spots[candidate.bucket_id] = spot
        self.most_cores = max(self.most_cores, traits.requirements.cores)

    def _forget(self, bucket_id: int) -> None:
        if self._known.pop(bucket_id, None) is not None and self._aside.pop(bucket_id, None) is None:
            self._take_out(bucket_id)

    def _take_out(self, bucket_id: int) -> None:
        spot = self._spots.pop(bucket_id)
        shelves = self._shares[spot.share]
        for place in spot.places:
            shelf = shelves[place]
            level = shelf.levels[spot.priority]
            order = level[spot.line].order
            del order[bisect_left(order, spot.entry)]
            if not order:
                del level[spot.line]
            if not level:
                del shelf.levels[spot.priority]
                shelf.priorities.remove(spot.priority)
        priorities = self._priorities[spot.share]
        priorities[spot.priority] -= 1
        if not priorities[spot.priority]:
            del priorities[spot.priority]
            self._tops.pop(spot.share, None)


def _downwards(priority: float) -> float:
    return -priority


def _groups(reach: Mapping[str, int]) -> list[tuple[int, list[Place]]]:
    """Locations by distance; what needs no input is at none."""
    groups: dict[int, list[Place]] = {0: [None]}
    for location, distance in reach.items():
        if distance < NEVER:
            groups.setdefault(distance, []).append(location)
    return sorted(groups.items())


def _push_level(
    heap: list[tuple[float, float, int, int, Any]], search: _Search, shelf: Shelf, level: int, distance: int
) -> None:
    minus_rank = -rank(distance, shelf.priorities[level])
    heappush(heap, (minus_rank, _FIRST, 0, next(search.numbers), (shelf, level, distance)))


def _family(traits: Traits) -> Hashable:
    """What filters look at of a task."""
    needs = traits.requirements
    gpus = needs.gpus
    return (
        traits.owner,
        traits.needs_container,
        traits.probe,
        traits.own_work,
        unsuited(traits.spec),
        traits.spec.remote_io,
        (needs.cores, needs.memory_mb, needs.disk_mb, needs.wall_s, tuple(needs.tags)),
        None if gpus is None else (gpus.count, gpus.vendor, gpus.model, gpus.memory_mb),
        traits.max_distance,
        traits.output_storages,
        traits.sites,
        traits.exclude_sites,
        None if traits.scouting is None and not traits.cpu_s else traits.task_id,
    )


def _within(offer: Offer, other: Offer) -> bool:
    """Whether an offer has nothing that the other has not. Zero means that the slot does not know: no limit."""
    return (
        offer.gpus == other.gpus
        and offer.cores <= other.cores
        and all(
            theirs == 0 or 0 < ours <= theirs
            for ours, theirs in (
                (offer.memory_mb, other.memory_mb),
                (offer.disk_mb, other.disk_mb),
                (offer.wall_s, other.wall_s),
            )
        )
    )
