"""How many pilots of which shape a queue should have now. The only place that splits work between queues."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from common.wire import Gpu, Offer, QueueSpec, Requirements, Shape, ShapeDemand
from server.engine.matching import Candidate, Slot, match
from server.engine.world import World

PROBED_TAGS = ("linux", "x86_64", "aarch64", "apptainer")
"""What a pilot finds out about its node by itself: until then every queue is taken to have it."""


TURN_S = 600.0
"""How long a queue keeps what does not divide evenly: one that starts no pilots must not keep the last unit for ever."""


DISK_STEP_MB = 1000


@dataclass
class _Sum:
    units: int = 0
    jobs: int = 0


def demand(
    queue: QueueSpec,
    candidates: Sequence[Candidate],
    world: World,
    running_jobs: Sequence[tuple[Shape, int]],
    now: float,
) -> list[ShapeDemand]:
    """Pilots wanted in ``queue``, by shape, those that run jobs now included.

    The ready work of a bucket is split evenly between the queues that may run it, so that together they are asked for
    it once; what does not divide goes round with the time. ``running_jobs`` counts this queue's live jobs by the shape
    that they need.
    """
    sums: dict[tuple[int, int, int, int, int], _Sum] = defaultdict(_Sum)
    for candidate in candidates:
        able = sorted(other.name for other in world.queues.values() if _may_run(candidate, other, world, now))
        if queue.name not in able or candidate.ready_units <= 0:
            continue
        place = (able.index(queue.name) + candidate.bucket_id + int(now // TURN_S)) % len(able)
        units = _part(candidate.ready_units, place, len(able))
        if units:
            total = sums[_key(_shape(candidate, queue))]
            total.units += units
            total.jobs += _part(_jobs(candidate), place, len(able))
    running: Counter[tuple[int, int, int, int, int]] = Counter()
    for shape, count in running_jobs:
        running[_key(shape)] += count
        sums.setdefault(_key(shape), _Sum())
    return [
        ShapeDemand(
            shape=Shape(*key),
            pilots=total.jobs + running[key],
            ready_units=total.units,
            ready_jobs=total.jobs,
            running_jobs=running[key],
        )
        for key, total in sorted(sums.items())
    ]


def _shape(candidate: Candidate, queue: QueueSpec) -> Shape:
    """What a worker must ask for so that its pilot can run the bucket's jobs, their input included."""
    units = min(candidate.units_per_job, max(candidate.ready_units, candidate.min_units))
    return shape_of(candidate.requirements, units * candidate.unit_mb, queue)


def shape_of(requirements: Requirements, input_mb: int, queue: QueueSpec) -> Shape:
    """What a worker must ask for so that its pilot can run a job with these requirements and so much input.

    Disk is rounded up to :data:`DISK_STEP_MB`, so that jobs of about the same size share pilots, and never asks for
    more than the queue has.
    """
    disk_mb = -(-(requirements.disk_mb + input_mb) // DISK_STEP_MB) * DISK_STEP_MB
    gpus = requirements.gpus.count if requirements.gpus else 0
    return Shape(
        cores=requirements.cores,
        memory_mb=requirements.memory_mb,
        disk_mb=min(disk_mb, queue.disk_mb) if queue.disk_mb else disk_mb,
        wall_s=requirements.wall_s,
        gpus=gpus,
    )


def _key(shape: Shape) -> tuple[int, int, int, int, int]:
    return shape.cores, shape.memory_mb, shape.disk_mb, shape.wall_s, shape.gpus


def _jobs(candidate: Candidate) -> int:
    return -(-candidate.ready_units // max(1, candidate.units_per_job))


def _part(whole: int, place: int, parts: int) -> int:
    """The part of ``whole`` that falls to ``place``: over all places they sum to ``whole``."""
    return whole // parts + (1 if place < whole % parts else 0)


def _may_run(candidate: Candidate, queue: QueueSpec, world: World, now: float) -> bool:
    # The largest slot of the queue is what counts here: zero in its limits means that it has none.
    largest = Offer(
        cores=queue.cores or candidate.requirements.cores,
        memory_mb=queue.memory_mb,
        disk_mb=queue.disk_mb,
        wall_s=queue.wall_s,
        gpus=_pretended_gpus(candidate, queue),
        tags=[*queue.tags, *PROBED_TAGS],
    )
    matches, _ = match([candidate], Slot(queue, largest), world, {}, now)
    return bool(matches)


def _pretended_gpus(candidate: Candidate, queue: QueueSpec) -> list[Gpu]:
    wanted = candidate.requirements.gpus
    if wanted is None or not queue.gpus:
        return []
    return [Gpu(wanted.vendor or "", wanted.model or "", wanted.memory_mb)] * queue.gpus
