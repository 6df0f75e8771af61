"""Ready work in groups that no filter of any queue tells apart, and which queues may run each.

A group is asked once, however many buckets it has; what depends on the task alone, on the way to its input, and on the
size of its jobs is asked once for each of these.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple

from msgspec import structs

from common.wire import Gpu, RemoteIo
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
"""Queues that are drawn for a group at the most."""
MOST_DRAWN = 100_000
"""Queues that are drawn for all groups together, about: the more units a group has of all, the more it gets; one at the
least."""
DRAWN_AGAIN = 6
SCALE = 1_000_000
"""Weights are counted in millionths."""
GOLDEN = 0x9E3779B97F4A7C15
MIXER = 0x94D049BB133111EB
"""An odd number of no particular pattern."""
_NOWHERE: frozenset[str] = frozenset()


@dataclass
class Group:
    """Buckets that every queue treats alike: for each task, its buckets and their ready units.

    ``waits`` holds them back from slots at a distance; ``faulty`` are sites that get nothing of them. ``direct`` when
    all queues that may run them read their input where it lies.
    """

    sample: Candidate
    family: int
    size: int
    waits: bool
    faulty: frozenset[str]
    tasks: dict[int, list[tuple[Candidate, int]]] = field(default_factory=dict)
    buckets: int = 0
    units: int = 0
    direct: bool = False


class Way(NamedTuple):
    """A queue that task and input allow, whether the input is read there directly, and the weight."""

    place: Place
    direct: bool
    weight: int


class _Reached:
    """What each queue weighs for the work of a family on some locations, in the queues' order; 0 where it may not run."""

    __slots__ = ("n", "sums", "weights")

    def __init__(self, weights: list[int]) -> None:
        self.weights = weights
        self.sums = list(accumulate(weights))
        self.n = len(weights) - weights.count(0)


class Choice(NamedTuple):
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
    """The groups of all ready work, and the queues that may run each.

    What queues weigh is kept as lists of a number for each queue: of a hundred thousand sets of locations each then costs
    a few operations on whole lists.
    """

    def __init__(self, places: Sequence[Place], moment: Moment) -> None:
        self._places = places
        self._moment = moment
        self._memory = _Steps((each.slot.offer.memory_mb for each in places), MEMORY_STEP_MB)
        self._disk = _Steps((each.slot.offer.disk_mb for each in places), DISK_STEP_MB)
        self._wall = _Steps((each.slot.offer.wall_s for each in places), WALL_STEP_S)
        self._cpu: dict[tuple[int, float], _Steps] = {}
        self._families: dict[Hashable, int] = {}
        self._tasks: dict[int, tuple[int, int]] = {}
        self._task_sizes: dict[Hashable, int] = {}
        self._sizes: dict[Hashable, int] = {}
        self._exact_sizes: dict[tuple[int, int, int, int], int] = {}
        self._groups: dict[tuple[int, tuple[str, ...]], dict[tuple[int, bool, frozenset[str]], Group]] = {}
        self._count = 0
        self._units = 0
        self._task_refusals: dict[int, list[Refused]] = {}
        self._refused: set[int] = set()
        self._weights: dict[tuple[str | None, int], list[int]] = {}
        self._reached: tuple[tuple[int, tuple[str, ...]], _Reached] | None = None
        self._numbers = {each.queue.name: number for number, each in enumerate(places)}
        limits: dict[Limits, int] = {}
        self._limits = [limits.setdefault(each.limits, len(limits)) for each in places]
        self._too_large: dict[tuple[int, int, bool], Refused] = {}

    def add(self, candidate: Candidate, units: int) -> None:
        """A bucket with so many ready units; fewer than its task takes at once are none."""
        traits = candidate.traits
        if units < max(1, traits.min_units):
            return
        family, of_task = self._tasks.get(traits.task_id) or self._task(traits)
        now = self._moment.now
        waits = traits.far_after_s > 0 and now - candidate.ready_since < traits.far_after_s
        faults = self._moment.site_faults.get(candidate.bucket_id)
        faulty = frozenset(site for site, each in faults.items() if each.until > now) if faults else _NOWHERE
        there = family, candidate.locations
        groups = self._groups.get(there)
        if groups is None:
            groups = self._groups[there] = {}
        key = self._size(candidate, of_task), waits, faulty
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(candidate, family, key[0], waits, faulty)
            self._count += 1
        group.tasks.setdefault(traits.task_id, []).append((candidate, units))
        group.buckets += 1
        group.units += units
        self._units += units

    def groups(self) -> Iterator[Group]:
        """All of them: those of a family on the same locations together, so that their queues are weighed once."""
        for groups in self._groups.values():
            yield from groups.values()

    def _size(self, candidate: Candidate, of_task: int) -> int:
        """The number of a bucket's class of size."""
        disk_mb, memory_mb, wall_s = candidate.traits.requirements.disk_mb + candidate.unit_mb, 0, 0
        grown = candidate.memory_mb or candidate.wall_s
        if grown:
            memory_mb, wall_s = candidate.memory_needed, candidate.wall_needed
        exact = (of_task, disk_mb, memory_mb, wall_s)
        found = self._exact_sizes.get(exact)
        if found is None:
            size: Hashable = (of_task, self._disk.of(disk_mb))
            if grown:
                size = (size, self._memory.of(memory_mb), self._wall.of(wall_s))
            found = self._exact_sizes[exact] = self._sizes.setdefault(size, len(self._sizes))
        return found

    def _task(self, traits: Traits) -> tuple[int, int]:
        needs, gpus = traits.requirements, traits.requirements.gpus
        scouting = traits.scouting
        family = (
            traits.may_run,
            traits.needs_container,
            traits.probe,
            traits.own_work,
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
        found = self._tasks[traits.task_id] = (
            self._families.setdefault(family, len(self._families)),
            self._task_sizes.setdefault(size, len(self._task_sizes)),
        )
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
        if self._count * len(self._places) > MOST_ASKED and reached.n > 2 * DRAWS:
            part = -(-group.units * MOST_DRAWN // self._units)
            drawn = self._draw(group, reached, min(DRAWS, group.units, part), offset(group.sample.bucket_id, now))
            if drawn is not None:
                return drawn
        found = [
            way for number, weight in enumerate(reached.weights) if weight and (way := self._may(group, number, weight))
        ]
        group.direct = bool(found) and all(each.direct for each in found)
        return Choice(found, [each.weight for each in found], sum(each.weight for each in found), len(found))

    def _draw(self, group: Group, reached: _Reached, n: int, turn: int) -> Choice | None:
        found: list[Way] = []
        sums = reached.sums
        total = sums[-1]
        turn = (turn ^ turn >> 31) * MIXER % 2**64  # or ids with a common step would favour some queues
        for part in range(n):
            for again in range(DRAWN_AGAIN):
                place = (turn + part * 2**64 // n + again * GOLDEN) % 2**64 * total >> 64
                number = bisect_right(sums, place)
                way = self._may(group, number, reached.weights[number])
                if way is not None:
                    found.append(way)
                    break
            else:
                return None
        group.direct = all(each.direct for each in found)
        return Choice(found, [1] * n, total, reached.n)

    def _may(self, group: Group, number: int, weight: int) -> Way | None:
        """The way of a group's work to a queue that task and input allow, unless it does not fit there or not just now."""
        place = self._places[number]
        if (group.faulty or group.waits) and self._now_refusal(group, place) is not None:
            return None
        direct = place.queue.remote_io and self._direct(group, place)
        return Way(place, direct, weight) if self._fits(group, number, direct) is None else None

    def refusal(self, group: Group, place: Place) -> Refused:
        """The filter that refuses a group's work to a queue, and why; None if it may run it."""
        traits, locations, number = group.sample.traits, group.sample.locations, self._numbers[place.queue.name]
        direct = self._direct(group, place)
        return (
            self._of_task(group)[number]
            or self._fits(group, number, direct)
            or reach_refusal(traits, locations, place.queue.site, self.distance(group, place))
            or direct_refusal(traits, locations, direct)
            or self._now_refusal(group, place)
        )

    def distance(self, group: Group, place: Place) -> int:
        """From a queue to the nearest input of a group's work; 0 where there is nothing to read."""
        return min((place.reach.get(each, NEVER) for each in group.sample.locations), default=0)

    def _direct(self, group: Group, place: Place) -> bool:
        return is_direct(group.sample.traits, group.sample.locations, place.queue, place.able)

    def _reach(self, group: Group) -> _Reached:
        """What the queues weigh that task and input allow."""
        traits, locations = group.sample.traits, group.sample.locations
        key = group.family, locations
        if self._reached is not None and self._reached[0] == key:
            return self._reached[1]
        # The nearest location counts: a queue weighs the more the nearer it is.
        weights = self._weights_of(locations[0] if locations else None, traits.max_distance)
        for location in locations[1:]:
            other = self._weights_of(location, traits.max_distance)
            weights = [one if one > more else more for one, more in zip(weights, other, strict=True)]  # max() is slow
        refusals = self._of_task(group)
        if group.family in self._refused:
            weights = [0 if refused else weight for weight, refused in zip(weights, refusals, strict=True)]
        if traits.spec.remote_io == RemoteIo.ALWAYS:
            weights = [
                0 if direct_refusal(traits, locations, self._direct(group, place)) else weight
                for weight, place in zip(weights, self._places, strict=True)
            ]
        self._reached = key, _Reached(weights)
        return self._reached[1]

    def _weights_of(self, location: str | None, max_distance: int) -> list[int]:
        """What each queue weighs for input at a location, or for no input: 0 where that is too far."""
        key = location, max_distance
        found = self._weights.get(key)
        if found is None:
            distances = [0 if location is None else each.reach.get(location, NEVER) for each in self._places]
            found = self._weights[key] = [
                max(1, round(place.weight(distance) * SCALE)) if distance < NEVER and distance <= max_distance else 0
                for place, distance in zip(self._places, distances, strict=True)
            ]
        return found

    def _of_task(self, group: Group) -> list[Refused]:
        """Why a task alone may not run in each queue, if so."""
        found = self._task_refusals.get(group.family)
        if found is None:
            traits = group.sample.traits
            # How many scouts are left is counted with the jobs, for all queues together.
            scouting = Scouting(1, traits.scouting.full_sites) if traits.scouting is not None else None
            found = self._task_refusals[group.family] = [
                self._task_refusal(traits, scouting, place) for place in self._places
            ]
            if any(found):
                self._refused.add(group.family)
        return found

    def _task_refusal(self, traits: Traits, scouting: Scouting | None, place: Place) -> Refused:
        site = place.queue.site
        words = refusal(scouting, site)
        return (
            task_refusal(traits, place.slot, self._moment)
            or output_refusal(traits, site, self._moment.world)
            or (("scouts", words) if words else None)
        )

    def _now_refusal(self, group: Group, place: Place) -> Refused:
        if place.queue.site in group.faulty:
            return "site_faults", f"its jobs keep failing by a fault of {place.queue.site}"
        if group.waits and (distance := self.distance(group, place)) > 0:
            return "far_wait", f"a slot at distance {distance} qualifies later"
        return None

    def _fits(self, group: Group, number: int, direct: bool) -> Refused:
        key = group.size, self._limits[number], direct
        if key not in self._too_large:
            place = self._places[number]
            self._too_large[key] = size_refusal(group.sample, _with_gpus(group.sample, place), direct)
        return self._too_large[key]


def _with_gpus(candidate: Candidate, place: Place) -> Slot:
    """The largest slot with the GPUs that a job wants, if the queue has any: which ones, only a pilot knows."""
    wanted = candidate.traits.requirements.gpus
    if wanted is None or not place.queue.gpus:
        return place.slot
    gpu = Gpu(wanted.vendor or "", wanted.model or "", wanted.memory_mb)
    return replace(place.slot, offer=structs.replace(place.slot.offer, gpus=[gpu] * place.queue.gpus))
