"""Queues as demand sees them: the largest slot of each, its weight, and the shapes of its workers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from common.wire import CONTAINER_TAG, Offer, QueueSpec, Shape
from server.config import Knobs
from server.engine.demand_sizes import JobSize
from server.engine.matching import Moment, Refused, Slot, slot_refusal
from server.engine.sizing import SlotSize

PROBED_TAGS = ("linux", "x86_64", "aarch64", CONTAINER_TAG)
"""What a pilot finds out about its node by itself: until then every queue is taken to have it."""
MANY_CORES = 2**31 - 1
WALL_STEP_S = 600
MEMORY_STEP_MB = 500
DISK_STEP_MB = 1000
"""Shapes are rounded up to these, so that jobs of about the same size share pilots."""
LIFE_STEP_S = 600
"""What is left before a downtime is rounded down to this, so that shapes stay the same for a while."""

Limits = tuple[int, int, int, int, int, float, float]


@dataclass(frozen=True)
class Load:
    """Pilots of a queue that hold jobs, and workers that wait in its batch system."""

    running: int = 0
    waiting: int = 0


@dataclass(frozen=True)
class Place:
    """A queue that may get work now; ``able`` are locations whose files are read there without a copy."""

    queue: QueueSpec
    slot: Slot
    load: Load
    life_s: int
    reach: Mapping[str, int]
    able: frozenset[str]

    @cached_property
    def limits(self) -> Limits:
        """What of it the size of a job is held against."""
        offer, queue = self.slot.offer, self.queue
        return (
            offer.cores, offer.memory_mb, offer.disk_mb, offer.wall_s, queue.gpus, queue.core_power, queue.cpu_efficiency
        )  # fmt: skip

    @cached_property
    def size(self) -> SlotSize:
        """What sizing needs to know of its largest slot. A downtime that comes nearer makes it another one now and then."""
        offer, queue = self.slot.offer, self.queue
        wall_s = offer.wall_s // LIFE_STEP_S * LIFE_STEP_S or offer.wall_s
        return SlotSize(offer.disk_mb, float(wall_s), queue.core_power, queue.cpu_efficiency)

    def weight(self, distance: int) -> float:
        """What a queue gets of work beside others (PanDA documentation, brokerage for production).

        (running + 1) / (waiting + 10), times 2 where the input is at the site and 1 where it must come from elsewhere,
        times the closeness 1 + (100 - distance) / 100, which PanDA takes where nothing is known of the network.
        """
        data = 2.0 if distance == 0 else 1.0
        return (self.load.running + 1) / (self.load.waiting + 10) * data * (2.0 - distance / 100.0)

    def shape(self, size: JobSize) -> tuple[Shape, int]:
        """What a worker must ask for so that its pilot can run such jobs, and for how long that pilot is expected to live.

        Never more than the queue has. Where jobs say how long they run, a worker asks for a pilot's life and not for one
        job's; else its wall time is left to the queue.
        """
        offer, need = self.slot.offer, size.least_wall_in(self)
        wall_s = max(int(stepped(need, WALL_STEP_S)), self.life_s) if need else 0
        if offer.wall_s:
            wall_s = min(wall_s, offer.wall_s)
        shape = Shape(
            cores=size.cores,
            memory_mb=_capped(stepped(size.memory_mb, MEMORY_STEP_MB), offer.memory_mb),
            disk_mb=_capped(stepped(size.disk_mb, DISK_STEP_MB), offer.disk_mb),
            wall_s=wall_s,
            gpus=size.gpus,
        )
        return shape, wall_s or self.life_s


def stepped(value: float, step: float) -> int:
    """A size rounded up to steps, which double as it grows: a tenth of it at the least."""
    while step < value / 10:
        step *= 2
    return int(-(-value // step) * step)


def _capped(value: int, most: int) -> int:
    return min(value, most) if most else value


def largest_offer(queue: QueueSpec) -> Offer:
    """The largest slot of a queue. Zero in its limits means that it has none."""
    return Offer(
        cores=queue.cores or MANY_CORES,
        memory_mb=queue.memory_mb,
        disk_mb=queue.disk_mb,
        wall_s=queue.wall_s,
        tags=[*queue.tags, *PROBED_TAGS],
    )


def places_of(moment: Moment, loads: Mapping[str, Load], knobs: Knobs) -> tuple[list[Place], dict[str, Refused]]:
    """The queues that may get work now, by name, and why the others may not."""
    world = moment.world
    open_: list[Place] = []
    closed: dict[str, Refused] = {}
    at_site: dict[str, tuple[Mapping[str, int], frozenset[str]]] = {}
    for name, queue in sorted(world.queues.items()):
        slot = Slot(queue, largest_offer(queue)).before_downtime(world, moment.now)
        refusal = slot_refusal(slot, moment)
        if refusal is not None:
            closed[name] = refusal
            continue
        if queue.site not in at_site:
            at_site[queue.site] = (world.reach(queue.site), world.direct(queue.site))
        reach, able = at_site[queue.site]
        life_s = int(min(knobs.pilot_life_s, slot.offer.wall_s or math.inf))
        if slot.cut is not None:
            life_s = max(life_s // LIFE_STEP_S * LIFE_STEP_S, min(life_s, LIFE_STEP_S))
        open_.append(Place(queue, slot, loads.get(name, Load()), max(1, life_s), reach, able))
    return open_, closed
