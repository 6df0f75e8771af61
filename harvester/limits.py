"""What an admin, the batch system and the throttle allow a queue: pure arithmetic, with every number kept to be shown."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.wire import Shape
from harvester.backends.base import BatchLoad


@dataclass(frozen=True)
class Limits:
    """What an admin allows a queue; None is no limit. ``factor`` applies to the pilots wanted beyond the busy ones."""

    max_workers: int
    max_queued: int
    per_cycle: int
    factor: float = 1.0
    drained: bool = False
    queued_ratio: float | None = None
    min_queued: int = 1
    max_cores: int | None = None
    max_memory_mb: int | None = None
    max_backlog: int | None = None
    nodes: int = 1


@dataclass(frozen=True)
class Group:
    """Workers of one shape: how many wait and how many run. ``nodes`` pilots come with each."""

    shape: Shape
    queued: int
    running: int
    nodes: int = 1


@dataclass(frozen=True)
class Situation:
    """What else bears on a decision.

    ``load`` is what the batch system says of itself, None where it isn't asked or can't tell. ``unsent`` of the queue's
    workers it has not heard of yet. ``allowance`` is how many unproven workers the throttle lets be under way at a time
    (None: any number), ``unproven`` how many are, ``throttle`` why.
    """

    load: BatchLoad | None = None
    unsent: int = 0
    allowance: int | None = None
    unproven: int = 0
    throttle: str = ""


@dataclass(frozen=True)
class Bound:
    """One limit: how much of it is used by what is there. ``what`` says how it is counted."""

    name: str
    limit: int
    used: int
    what: str

    @property
    def left(self) -> int:
        """How much may be added."""
        return max(0, self.limit - self.used)


def bounds_of(limits: Limits, workers: Sequence[Group], situation: Situation) -> list[Bound]:
    """Every limit that there is, with what is used of it."""
    queued = sum(one.queued for one in workers)
    running = sum(one.running for one in workers)
    found = [
        Bound("per_cycle", limits.per_cycle, 0, "new workers in this cycle"),
        Bound("max_workers", limits.max_workers, queued + running, "its workers, waiting and running"),
        Bound("max_queued", limits.max_queued, queued, "its workers that wait"),
    ]
    if limits.queued_ratio is not None:
        most = max(limits.min_queued, math.floor(limits.queued_ratio * running))
        words = f"its workers that wait: {limits.queued_ratio:g} for each of {running} that run, {limits.min_queued} at least"
        found.append(Bound("queued_ratio", most, queued, words))
    if limits.max_backlog is not None:
        waiting = limits.max_backlog if situation.load is None else situation.load.waiting
        words = "nobody knows how many jobs wait" if situation.load is None else "jobs that wait there, anybody's"
        found.append(Bound("max_backlog", limits.max_backlog, waiting + situation.unsent, words))
    if situation.allowance is not None:
        words = f"its workers without a pilot yet; {situation.throttle}"
        found.append(Bound("throttle", situation.allowance, situation.unproven, words))
    for name, limit, word in (("max_cores", limits.max_cores, "cores"), ("max_memory_mb", limits.max_memory_mb, "MiB")):
        if limit is not None:
            used = sum(cost(name, one.shape, one.nodes) * (one.queued + one.running) for one in workers)
            found.append(Bound(name, limit, used, f"{word} of its workers, waiting and running"))
    return found


def cost(bound: str, shape: Shape, nodes: int) -> int:
    """What one worker takes of a limit. A shape that asks for no memory counts as none."""
    if bound == "max_cores":
        return shape.cores * nodes
    if bound == "max_memory_mb":
        return shape.memory_mb * nodes
    return 1


@dataclass
class Want:
    """Workers of a shape that are missing, while the room is shared out: ``have`` of ``target`` pilots are there."""

    shape: Shape
    missing: int
    have: int
    target: int
    new: int = 0
    bound: str = ""
    costs: dict[str, int] = field(default_factory=dict)


def share_out(wants: Sequence[Want], bounds: Sequence[Bound], nodes: int) -> None:
    """Give each shape as many new workers as the limits leave; fills ``new`` and ``bound`` of each in.

    The next worker always goes to the shape that has least of what it wants (Adams' method of apportionment, which
    never takes away when there is more to give), the first in the server's order among equals: whichever comes first,
    none starves, because what it already has counts. A shape that has nothing at all and doesn't fit into what is left
    of the cores or the memory keeps it free until it does; one that would not fit into an empty queue is passed over.
    """
    left = {bound.name: bound.left for bound in bounds}
    whole = {bound.name: bound.limit for bound in bounds}
    for want in wants:
        want.costs = {name: cost(name, want.shape, nodes) for name in left}
    heap = [(_filled(want), index) for index, want in enumerate(wants) if want.missing > 0]
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        want = wants[index]
        short = _short(want, left)
        if short is None:
            want.new += 1
            want.have += nodes
            for name, amount in want.costs.items():
                left[name] -= amount
            if want.new < want.missing:
                heapq.heappush(heap, (_filled(want), index))
            continue
        want.bound = short
        fits_ever = all(amount <= whole[name] for name, amount in want.costs.items())
        if want.have == 0 and fits_ever:
            for _, other in heap:
                wants[other].bound = short
            return


def _filled(want: Want) -> float:
    return want.have / want.target


def _short(want: Want, left: dict[str, int]) -> str | None:
    """The limit that has no room for one more worker of a shape; the one with the least, of several."""
    lacking = [(left[name], name) for name, amount in want.costs.items() if amount > left[name]]
    return min(lacking, key=lambda item: item[0])[1] if lacking else None
