"""How many pilots of which shape each queue should have now. The only place that splits work between queues.

Ready work that no filter tells apart is split between the queues that may run it by the weight of each (PanDA
documentation, brokerage for production), so that together they are asked for it once; what does not divide goes round.
It is counted in core-hours over the expected life of a pilot; where nobody knows how long a job runs, it is a pilot's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.wire import DemandPart, DemandRefusal, Shape, ShapeDemand
from server.config import Knobs
from server.engine.demand_groups import SCALE, Choice, Group, Grouping, offset
from server.engine.demand_queues import Load, Place, places_of
from server.engine.demand_sizes import JobSize, UnitsPerJob
from server.engine.matching import Candidate, Moment, Refused

MOST_PARTS = 100
"""Lines of an explanation."""

ShapeKey = tuple[int, int, int, int, int]


@dataclass
class Line:
    """What a queue gets in one shape."""

    jobs: int = 0
    units: int = 0
    pilots: float = 0.0
    core_s: float = 0.0
    life_s: int = 0


@dataclass
class Explanation:
    """What one queue gets of which work, and of which it gets nothing."""

    queue: str
    parts: list[DemandPart] = field(default_factory=list)
    refused: dict[tuple[str, str], DemandRefusal] = field(default_factory=dict)

    def refuse(self, refusal: tuple[str, str], group: Group) -> None:
        """A group's work is nothing for the queue."""
        found = self.refused.get(refusal)
        if found is None:
            task_id = group.sample.traits.task_id
            found = self.refused[refusal] = DemandRefusal(*refusal, task_id=task_id, tasks=0, buckets=0, units=0)
        found.tasks += len(group.tasks)
        found.buckets += group.buckets
        found.units += group.units


@dataclass(frozen=True)
class Split:
    """The demand of all queues: for each, what it gets of the ready work."""

    lines: Mapping[str, Mapping[ShapeKey, Line]]
    explanation: Explanation | None = None

    def of(self, queue: str, busy: Sequence[tuple[Shape, int]]) -> list[ShapeDemand]:
        """Pilots wanted in a queue, by shape, those that hold jobs now (``busy``, by their worker's shape) included."""
        lines: dict[ShapeKey, Line] = dict(self.lines.get(queue, {}))
        running: dict[ShapeKey, int] = defaultdict(int)
        for shape, n in busy:
            running[key_of(shape)] += n
            lines.setdefault(key_of(shape), Line())
        return [
            ShapeDemand(
                shape=Shape(*key),
                pilots=math.ceil(line.pilots - 1e-6) + running[key],
                ready_units=line.units,
                ready_jobs=line.jobs,
                running_jobs=running[key],
                core_hours=round(line.core_s / 3600.0, 3),
                life_s=line.life_s,
            )
            for key, line in sorted(lines.items())
        ]


def key_of(shape: Shape) -> ShapeKey:
    """A shape as a key."""
    return shape.cores, shape.memory_mb, shape.disk_mb, shape.wall_s, shape.gpus


def split(
    ready: Iterable[tuple[Candidate, int]],
    moment: Moment,
    loads: Mapping[str, Load],
    knobs: Knobs,
    events: Mapping[int, int],
    per_job: UnitsPerJob,
    explain: str | None = None,
) -> Split:
    """Split the ready work (buckets and how many units are ready in each) between all queues.

    ``loads`` says of each queue how many pilots run and wait, ``events`` of a task how many events a unit has.
    """
    places, closed = places_of(moment, loads, knobs)
    grouping = Grouping(places, moment)
    for candidate, units in ready:
        grouping.add(candidate, units)
    lines = _Lines(moment.world.queues)
    told = Explanation(explain) if explain is not None else None
    scouts: dict[int, int] = {}
    for group in grouping.groups():
        if told is not None:
            _tell_refusal(told, grouping, group, places, closed)
        choice = grouping.choose(group, moment.now)
        if not choice.ways:
            continue
        best = max(choice.ways, key=lambda each: (each.weight, each.place.queue.name)).place
        jobs = 0
        given = [0] * len(choice.ways)
        for size in per_job.sizes(group, best, events, knobs, scouts):
            parts = portions(size.jobs, choice.weights, offset(size.seed, moment.now))
            of_each = _along(size.units, parts)
            known = lines.of_size(size)
            for way, part, of_units in zip(choice.ways, parts, of_each, strict=True):
                if part:
                    lines.add(known, way.place, size, part, of_units)
            jobs += size.jobs
            given = [one + more for one, more in zip(given, parts, strict=True)]
        if told is not None:
            _tell_part(told, grouping, group, choice, jobs, given)
    if told is not None:
        told.parts.sort(key=lambda part: (-part.jobs, part.task_id))
        del told.parts[MOST_PARTS:]
    return Split(lines.of_queue, told)


def portions(whole: int, weights: Sequence[int], turn: int) -> list[int]:
    """Split ``whole`` in proportion to ``weights``: each gets its quota rounded down or up, and all together the whole.

    ``turn``, from 0 to 2^64, says who gets what does not divide; over all turns each gets its quota.
    """
    sum_ = sum(weights)
    shift = turn * sum_ >> 64
    parts, before, so_far = [], 0, 0
    for weight in weights:
        so_far += weight
        until = (whole * so_far + shift) // sum_
        parts.append(until - before)
        before = until
    return parts


def _along(units: int, parts: Sequence[int]) -> list[int]:
    """Units in proportion to the jobs that were given."""
    whole = sum(parts)
    found, before, so_far = [], 0, 0
    for part in parts:
        so_far += part
        until = units * so_far // whole
        found.append(until - before)
        before = until
    return found


class _Lines:
    """The lines of all queues; which of them a size of job falls into is found out once for each queue."""

    def __init__(self, queues: Iterable[str]) -> None:
        self.of_queue: dict[str, dict[ShapeKey, Line]] = {name: {} for name in queues}
        self._known: dict[Hashable, dict[str, Line]] = {}

    def of_size(self, size: JobSize) -> dict[str, Line]:
        """Lines for jobs of a size by queue, as far as they are known; to be given to :meth:`add`."""
        key = (size.cores, size.gpus, size.memory_mb, size.disk_mb, size.least_s, size.least_hs23_s)
        return self._known.setdefault(key, {})

    def add(self, known: dict[str, Line], place: Place, size: JobSize, jobs: int, units: int) -> None:
        """Jobs of a size for a queue."""
        line = known.get(place.queue.name)
        if line is None:
            line = known[place.queue.name] = self._line(place, size)
        line.jobs += jobs
        line.units += units
        seconds = size.seconds_in(place)
        line.core_s += seconds * jobs * size.cores
        line.pilots += jobs * (min(1.0, seconds / line.life_s) if seconds and line.life_s else 1.0)

    def _line(self, place: Place, size: JobSize) -> Line:
        shape, life_s = place.shape(size)
        line = self.of_queue[place.queue.name].setdefault(key_of(shape), Line())
        line.life_s = life_s
        return line


def _tell_refusal(
    told: Explanation, grouping: Grouping, group: Group, places: Sequence[Place], closed: Mapping[str, Refused]
) -> None:
    refusal = closed.get(told.queue)
    if refusal is None:
        place = next((each for each in places if each.queue.name == told.queue), None)
        refusal = grouping.refusal(group, place) if place is not None else None
    if refusal is not None:
        told.refuse(refusal, group)


def _tell_part(
    told: Explanation,
    grouping: Grouping,
    group: Group,
    choice: Choice,
    jobs: int,
    given: Sequence[int],
) -> None:
    for way, part in zip(choice.ways, given, strict=True):
        if way.place.queue.name == told.queue:
            told.parts.append(
                DemandPart(
                    task_id=group.sample.traits.task_id,
                    tasks=len(group.tasks),
                    buckets=group.buckets,
                    queues=choice.queues,
                    distance=grouping.distance(group, way.place),
                    weight=way.weight / SCALE,
                    weights=choice.total / SCALE,
                    ready_jobs=jobs,
                    jobs=part,
                )
            )
