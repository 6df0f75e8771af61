"""Ready work in groups that no filter of any queue tells apart, and which queues may run each.

A group is asked once, however many buckets it has; what depends on the task alone, on the way to its input, and on the
size of its jobs is asked once for each of these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from msgspec import structs

from common.wire import Gpu
from server.engine.demand_queues import DISK_STEP_MB, MEMORY_STEP_MB, Limits, Place, stepped
from server.engine.matching import (
    Candidate,
    Moment,
    Refused,
    Slot,
    Traits,
    direct_refusal,
    is_direct,
    output_refusal,
    reach_refusal,
    size_refusal,
    task_refusal,
)
from server.engine.scouts import Scouting, refusal
from server.engine.world import NEVER

WALL_STEP_S = 3600
TURN_S = 600.0
"""How long a queue keeps what does not divide evenly: one that starts no pilots must not keep the last unit for ever."""
MOST_ASKED = 200_000
"""Groups times queues up to which every group is split between all queues that may run it."""
DRAWS = 4
DRAWN_AGAIN = 6
SCALE = 1_000_000
"""Weights are counted in millionths."""
GOLDEN = 0x9E3779B97F4A7C15


@dataclass
class Group:
    """Buckets that every queue treats alike: for each task, its buckets and their ready units.

    ``waits`` holds them back from slots at a distance; ``faulty`` are sites that get nothing of them. ``direct`` when
    all queues that may run them read their input where it lies.
    """

    sample: Candidate
    family: int
    size: Hashable
    waits: bool
    faulty: frozenset[str]
    tasks: dict[int, list[tuple[Candidate, int]]] = field(default_factory=dict)
    buckets: int = 0
    units: int = 0
    direct: bool = False


@dataclass(frozen=True)
class Way:
    """A queue that task and input allow, how far the input is, whether it is read there directly, and the weight."""

    place: Place
    distance: int
    direct: bool
    weight: int


@dataclass(frozen=True)
class _Reached:
    found: list[Way]
    sums: list[int]


@dataclass(frozen=True)
class Choice:
    """Between which queues work is split, in what proportion; ``total`` is the weight of all ``queues`` that it may go to."""

    ways: list[Way]
    weights: list[int]
    total: int
    queues: int


def offset(seed: int, now: float) -> int:
    """The turn of a piece of work, from 0 to 2^64: another one after :data:`TURN_S`."""
    return (seed + int(now // TURN_S)) * GOLDEN % 2**64


class _Steps:
    """Classes of a size: in steps, and never on both sides of what some queue has."""

    def __init__(self, limits: Iterable[float], step: float) -> None:
        self._limits = sorted({each for each in limits if each})
        self._step = step

    def of(self, value: float) -> tuple[int, int]:
        return int(stepped(value, self._step)), bisect_left(self._limits, value)


class Grouping:
    """The groups of all ready work, and the queues that may run each."""

    def __init__(self, places: Sequence[Place], moment: Moment) -> None:
        self._places = places
        self._moment = moment
        self._memory = _Steps((each.slot.offer.memory_mb for each in places), MEMORY_STEP_MB)
        self._disk = _Steps((each.slot.offer.disk_mb for each in places), DISK_STEP_MB)
        self._wall = _Steps((each.slot.offer.wall_s for each in places), WALL_STEP_S)
        self._cpu: dict[tuple[int, float], _Steps] = {}
        self._families: dict[Hashable, int] = {}
        self._tasks: dict[int, tuple[int, Hashable]] = {}
        self._groups: dict[Hashable, Group] = {}
        self._reached: dict[tuple[int, tuple[str, ...]], _Reached] = {}
        self._task_refusals: dict[tuple[int, str], Refused] = {}
        self._sizes: dict[tuple[Hashable, Limits, bool], Refused] = {}

    def add(self, candidate: Candidate, units: int) -> None:
        """A bucket with so many ready units; fewer than its task takes at once are none."""
        traits = candidate.traits
        if units < max(1, traits.min_units):
            return
        family, of_task = self._tasks.get(traits.task_id) or self._task(traits)
        disk = traits.requirements.disk_mb
        size: Hashable = (of_task, self._disk.of(disk + candidate.unit_mb))
        if candidate.memory_mb or candidate.wall_s:
            size = (size, self._memory.of(candidate.memory_needed), self._wall.of(candidate.wall_needed))
        now = self._moment.now
        waits = traits.far_after_s > 0 and now - candidate.ready_since < traits.far_after_s
        faults = self._moment.site_faults.get(candidate.bucket_id)
        faulty = frozenset(site for site, each in faults.items() if each.until > now) if faults else frozenset()
        key = (family, candidate.locations, size, waits, faulty)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(candidate, family, size, waits, faulty)
        group.tasks.setdefault(traits.task_id, []).append((candidate, units))
        group.buckets += 1
        group.units += units

    def groups(self) -> Iterable[Group]:
        """All of them."""
        return self._groups.values()

    def _task(self, traits: Traits) -> tuple[int, Hashable]:
        needs, gpus = traits.requirements, traits.requirements.gpus
        scouting = traits.scouting
        family = (
            traits.may_run,
            traits.needs_container,
            traits.probe,
            traits.spec.remote_io,
            traits.owner in self._moment.bans.users,
            tuple(needs.tags),
            traits.max_distance,
            traits.output_storages,
            traits.sites,
            traits.exclude_sites,
            scouting.full_sites if scouting is not None else None,
        )
        size = (
            needs.cores,
            self._memory.of(needs.memory_mb),
            self._disk.of(needs.disk_mb),
            self._wall.of(needs.wall_s),
            self._cpu_of(traits),
            None if gpus is None else (gpus.count, gpus.vendor, gpus.model, gpus.memory_mb),
        )
        found = self._tasks[traits.task_id] = self._families.setdefault(family, len(self._families)), size
        return found

    def _cpu_of(self, traits: Traits) -> Hashable:
        """CPU time in classes, where it decides in which queues a job fits."""
        if not traits.cpu_s:
            return None
        key = traits.requirements.cores, traits.base_s
        if key not in self._cpu:
            powers = (
                (each.slot.offer.wall_s - key[1]) * key[0] * each.queue.core_power * each.queue.cpu_efficiency
                for each in self._places
                if each.slot.offer.wall_s
            )
            self._cpu[key] = _Steps(powers, WALL_STEP_S * 10.0 * key[0])
        return self._cpu[key].of(traits.cpu_s)

    def choose(self, group: Group, now: float) -> Choice:
        """Between which queues a group's work is to be split.

        Between all that may run it, as long as that is not too much to ask (:data:`MOST_ASKED`); else between a few that
        are drawn by their weight, others for each group: over many groups that comes to the same.
        """
        reached = self._reach(group)
        if len(self._groups) * len(self._places) > MOST_ASKED and len(reached.found) > 2 * DRAWS:
            drawn = self._draw(group, reached, min(DRAWS, group.units), offset(group.sample.bucket_id, now))
            if drawn is not None:
                return drawn
        found = [each for each in reached.found if self._may(group, each)]
        group.direct = bool(found) and all(each.direct for each in found)
        return Choice(found, [each.weight for each in found], sum(each.weight for each in found), len(found))

    def _draw(self, group: Group, reached: _Reached, n: int, turn: int) -> Choice | None:
        found: list[Way] = []
        total = reached.sums[-1]
        for number in range(n):
            for again in range(DRAWN_AGAIN):
                place = (turn + number * 2**64 // n + again * GOLDEN) % 2**64 * total >> 64
                way = reached.found[bisect_right(reached.sums, place)]
                if self._may(group, way):
                    found.append(way)
                    break
            else:
                return None
        group.direct = all(each.direct for each in found)
        return Choice(found, [1] * n, total, len(reached.found))

    def _may(self, group: Group, way: Way) -> bool:
        if (group.faulty or group.waits) and self._now_refusal(group, way.place, way.distance) is not None:
            return False
        return self._fits(group, way.place, way.direct) is None

    def refusal(self, group: Group, place: Place) -> Refused:
        """The filter that refuses a group's work to a queue, and why; None if it may run it."""
        traits, locations = group.sample.traits, group.sample.locations
        distance, direct = self._way(group, place)
        return (
            self._of_task(group, place)
            or self._fits(group, place, direct)
            or reach_refusal(traits, locations, place.queue.site, distance)
            or direct_refusal(traits, locations, direct)
            or self._now_refusal(group, place, distance)
        )

    def _way(self, group: Group, place: Place) -> tuple[int, bool]:
        locations = group.sample.locations
        distance = min((place.reach.get(each, NEVER) for each in locations), default=0)
        return distance, is_direct(group.sample.traits, locations, place.queue, place.able)

    def _reach(self, group: Group) -> _Reached:
        """The queues that task and input allow."""
        traits, locations = group.sample.traits, group.sample.locations
        key = group.family, locations
        found = self._reached.get(key)
        if found is None:
            ways: list[Way] = []
            for place in self._places:
                if self._of_task(group, place) is not None:
                    continue
                distance, direct = self._way(group, place)
                refused = reach_refusal(traits, locations, place.queue.site, distance)
                if refused is None and direct_refusal(traits, locations, direct) is None:
                    ways.append(Way(place, distance, direct, max(1, round(place.weight(distance) * SCALE))))
            found = self._reached[key] = _Reached(ways, list(accumulate(each.weight for each in ways)))
        return found

    def _of_task(self, group: Group, place: Place) -> Refused:
        key = group.family, place.queue.name
        if key not in self._task_refusals:
            traits, site = group.sample.traits, place.queue.site
            # How many scouts are left is counted with the jobs, for all queues together.
            scouting = Scouting(1, traits.scouting.full_sites) if traits.scouting is not None else None
            words = refusal(scouting, site)
            self._task_refusals[key] = (
                task_refusal(traits, place.slot, self._moment)
                or output_refusal(traits, site, self._moment.world)
                or (("scouts", words) if words else None)
            )
        return self._task_refusals[key]

    def _now_refusal(self, group: Group, place: Place, distance: int) -> Refused:
        if place.queue.site in group.faulty:
            return "site_faults", f"its jobs keep failing by a fault of {place.queue.site}"
        if group.waits and distance > 0:
            return "far_wait", f"a slot at distance {distance} qualifies later"
        return None

    def _fits(self, group: Group, place: Place, direct: bool) -> Refused:
        key = group.size, place.limits, direct
        if key not in self._sizes:
            self._sizes[key] = size_refusal(group.sample, _with_gpus(group.sample, place), direct)
        return self._sizes[key]


def _with_gpus(candidate: Candidate, place: Place) -> Slot:
    """The largest slot with the GPUs that a job wants, if the queue has any: which ones, only a pilot knows."""
    wanted = candidate.traits.requirements.gpus
    if wanted is None or not place.queue.gpus:
        return place.slot
    gpu = Gpu(wanted.vendor or "", wanted.model or "", wanted.memory_mb)
    return replace(place.slot, offer=structs.replace(place.slot.offer, gpus=[gpu] * place.queue.gpus))
