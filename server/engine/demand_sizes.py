"""How large the jobs are that ready units will make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from server.config import Knobs
from server.engine.matching import Traits
from server.engine.scouts import jobs_wanted
from server.engine.sizing import Bounds, SlotSize, job_bounds

if TYPE_CHECKING:
    from server.engine.demand_groups import Group
    from server.engine.demand_queues import Place

MOST_KNOWN = 200_000
_STEP_MB = 1000


@dataclass
class JobSize:
    """Jobs that ask for workers of one shape: how many, of how many units, and what each needs.

    ``asked_s`` is the wall time that its user asks for, or that was measured, zero where neither is known; ``hs23_s`` the
    CPU time of one on all its cores beside ``base_s``, where its wall time depends on the queue. ``least_*`` is the
    same for the smallest possible job.
    """

    cores: int
    gpus: int
    memory_mb: int
    disk_mb: int
    jobs: int = 0
    units: int = 0
    seed: int = 0
    asked_s: float = 0.0
    hs23_s: float = 0.0
    base_s: float = 0.0
    least_s: int = 0
    least_hs23_s: float = 0.0

    def seconds_in(self, place: Place) -> float:
        """Wall time of a job in a queue; 0 when nobody knows it."""
        return self._wall(self.hs23_s, self.asked_s, place)

    def least_wall_in(self, place: Place) -> float:
        """Wall time that a slot must have left for the smallest job."""
        return self._wall(self.least_hs23_s, float(self.least_s), place)

    def _wall(self, hs23_s: float, seconds: float, place: Place) -> float:
        if seconds or not hs23_s:
            return seconds
        queue = place.queue
        return hs23_s / (self.cores * queue.core_power * queue.cpu_efficiency) + self.base_s


class UnitsPerJob:
    """How many units a job takes, by task and slot: remembered, as tasks seldom change."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, SlotSize], tuple[Traits, Bounds]] = {}

    def of(self, traits: Traits, slot: SlotSize, events: int, unit_mb: int, knobs: Knobs) -> int:
        """The most units that one job takes, all being as large as these."""
        if traits.spec.merge is not None:
            return traits.spec.merge.max_files
        bounds = self._bounds(traits, slot, knobs)
        most = bounds.limit
        for limit in (bounds.aim_events, bounds.max_events):
            if limit is not None:
                most = min(most, limit // max(1, events))
        if bounds.aim_mb is not None and unit_mb:
            most = min(most, bounds.aim_mb // unit_mb)
        if bounds.disk_mb is not None and unit_mb:
            most = min(most, (bounds.disk_mb - bounds.spare_mb) // unit_mb)
        return max(1, most)

    def _bounds(self, traits: Traits, slot: SlotSize, knobs: Knobs) -> Bounds:
        known = self._known.get((traits.task_id, slot))
        if known is not None and known[0] is traits:
            return known[1]
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        bounds = job_bounds(traits.spec, traits.measured, slot, knobs)
        self._known[traits.task_id, slot] = traits, bounds
        return bounds

    def sizes(
        self, group: Group, place: Place, events: Mapping[int, int], knobs: Knobs, scouts: dict[int, int]
    ) -> Iterator[JobSize]:
        """The jobs of a group, cut to the slots of a queue, by the disk that they take.

        ``scouts`` holds for each scouting task how many of its jobs may still be asked for.
        """
        found: dict[int, JobSize] = {}
        slot = place.size
        for task_id, parts in group.tasks.items():
            traits = parts[0][0].traits
            of_unit = events.get(task_id, 1)
            for candidate, units in parts:
                per_job = self.of(traits, slot, of_unit, candidate.unit_mb, knobs)
                jobs = -(-units // per_job)
                if traits.scouting is not None:
                    left = scouts.setdefault(task_id, traits.scouting.left)
                    jobs = jobs_wanted(jobs, replace(traits.scouting, left=left))
                    scouts[task_id] = left - jobs
                if not jobs:
                    continue
                n = min(per_job, max(units, traits.min_units))
                input_mb = 0 if group.direct else n * candidate.unit_mb
                disk_mb = traits.requirements.disk_mb + input_mb
                size = found.get(-(-disk_mb // _STEP_MB))
                if size is None:
                    size = found[-(-disk_mb // _STEP_MB)] = _new_size(traits, candidate.bucket_id)
                    size.base_s = knobs.sizing_base_s
                _grow(size, traits, jobs, units, n * of_unit)
                size.memory_mb = max(size.memory_mb, candidate.memory_needed)
                size.disk_mb = max(size.disk_mb, disk_mb)
                size.least_s = max(size.least_s, candidate.wall_needed)
                size.seed = min(size.seed, candidate.bucket_id)
        yield from found.values()


def _new_size(traits: Traits, seed: int) -> JobSize:
    needs = traits.requirements
    return JobSize(needs.cores, needs.gpus.count if needs.gpus else 0, 0, 0, seed=seed)


def _grow(size: JobSize, traits: Traits, jobs: int, units: int, events: int) -> None:
    """Add jobs: the wall time becomes the mean over all whose is known."""
    measured = traits.measured.wall_s if traits.measured is not None else None
    asked_s, hs23_s = 0.0, 0.0
    if traits.cpu_s:
        hs23_s = traits.cpu_s * events
    else:
        asked_s = float(measured or traits.requirements.wall_s)
    size.asked_s = _mean(size.asked_s, size.jobs, asked_s, jobs)
    size.hs23_s = _mean(size.hs23_s, size.jobs, hs23_s, jobs)
    size.least_hs23_s = max(size.least_hs23_s, traits.cpu_s)
    size.jobs += jobs
    size.units += units


def _mean(one: float, n: int, other: float, m: int) -> float:
    if not one or not other:
        return math.fsum((one, other))
    return (one * n + other * m) / (n + m)
