"""How many workers to submit: pure functions from the server's demand, the queue's limits and the workers there are.

Work is never killed to get down to a number: a queue that has too many workers simply gets no new ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.states import ResourceState, WorkerState
from common.wire import DemandReply, Shape, ShapeDemand

QUEUED = frozenset({WorkerState.PLANNED, WorkerState.SUBMITTING, WorkerState.SUBMITTED, WorkerState.HELD})
"""Workers that wait, or soon will."""
OPEN = frozenset({ResourceState.ONLINE, ResourceState.TEST})
"""Queues that get new workers; in ``test`` the server's demand counts probe jobs only."""


@dataclass(frozen=True)
class Limits:
    """What an admin allows a queue. ``factor`` applies to the pilots wanted beyond the busy ones."""

    max_workers: int
    max_queued: int
    per_cycle: int
    factor: float = 1.0
    drained: bool = False


@dataclass(frozen=True)
class Group:
    """Workers of one shape: how many wait and how many run."""

    shape: Shape
    queued: int
    running: int


@dataclass(frozen=True)
class Line:
    """One shape of the demand with the numbers behind ``new``. ``bound`` says what kept it below what is wanted."""

    shape: Shape
    pilots: int
    ready_jobs: int
    running_jobs: int
    target: int
    queued: int
    running: int
    new: int
    bound: str

    @property
    def wanted(self) -> int:
        """How many are missing from the target."""
        return max(0, self.target - self.queued - self.running)


@dataclass(frozen=True)
class Decision:
    """What to do about a queue, and why. ``queued`` and ``running`` count all its workers, of any shape."""

    queue: str
    status: ResourceState
    limits: Limits
    idle_pilots: int
    queued: int
    running: int
    lines: list[Line]

    @property
    def new(self) -> int:
        """How many workers to submit in all."""
        return sum(line.new for line in self.lines)


def group(workers: Iterable[tuple[Shape, WorkerState]]) -> list[Group]:
    """Count workers by shape. Missing and ended ones hold no slot and aren't counted."""
    counts: dict[tuple[int, ...], tuple[Shape, list[int]]] = {}
    for shape, state in workers:
        if state in QUEUED or state is WorkerState.RUNNING:
            _, numbers = counts.setdefault(_key(shape), (shape, [0, 0]))
            numbers[0 if state in QUEUED else 1] += 1
    return [Group(shape, queued, running) for shape, (queued, running) in counts.values()]


def decide(queue: str, demand: DemandReply, limits: Limits, workers: Sequence[Group]) -> Decision:
    """How many workers of each shape to submit now.

    The target of a shape is ``pilots + (factor - 1) x (pilots - running jobs)``, rounded up: the factor goes on top of
    what is waiting, not of what is served already. Workers that are there count for a shape of their own first, and
    then for any that they could hold. The shapes are served in the server's order until a limit is reached.
    """
    queued = sum(one.queued for one in workers)
    running = sum(one.running for one in workers)
    room = _Room(demand, limits, queued, running)
    lines = []
    for shape, present in zip(demand.shapes, _cover(demand.shapes, limits.factor, workers)):
        target = target_of(shape, limits.factor)
        new, bound = room.take(max(0, target - sum(present)))
        lines.append(
            Line(
                shape=shape.shape,
                pilots=shape.pilots,
                ready_jobs=shape.ready_jobs,
                running_jobs=shape.running_jobs,
                target=target,
                queued=present[0],
                running=present[1],
                new=new,
                bound=bound,
            )
        )
    return Decision(queue, demand.queue.status, limits, demand.idle_pilots, queued, running, lines)


def target_of(demand: ShapeDemand, factor: float) -> int:
    """How many workers of a shape there should be."""
    return math.ceil(demand.pilots + (factor - 1) * max(0, demand.pilots - demand.running_jobs))


def holds(worker: Shape, wanted: Shape) -> bool:
    """Whether a worker of one shape can serve the demand for another. Zero asks for nothing, and promises nothing."""
    return all(has >= needs for has, needs in zip(_key(worker), _key(wanted)))


class _Room:
    """What the limits leave, used up shape by shape."""

    def __init__(self, demand: DemandReply, limits: Limits, queued: int, running: int) -> None:
        self._closed = ""
        if demand.queue.status not in OPEN:
            self._closed = f"the queue is {demand.queue.status.value}"
        elif limits.drained:
            self._closed = "the queue is drained"
        self._left = {
            "max_workers": max(0, limits.max_workers - queued - running),
            "max_queued": max(0, limits.max_queued - queued),
            "per_cycle": limits.per_cycle,
        }

    def take(self, wanted: int) -> tuple[int, str]:
        """As many of ``wanted`` as may be, and what bounded it."""
        if wanted == 0:
            return 0, ""
        if self._closed:
            return 0, self._closed
        name, least = min(self._left.items(), key=lambda item: item[1])
        new = min(wanted, least)
        self._left = {limit: left - new for limit, left in self._left.items()}
        return new, name if new < wanted else ""


def _cover(demand: Sequence[ShapeDemand], factor: float, workers: Sequence[Group]) -> list[tuple[int, int]]:
    """For each shape of the demand, how many of the queued and of the running workers count for it."""
    left = [[one.queued, one.running] for one in workers]
    covered = [[0, 0] for _ in demand]
    for exact in (True, False):
        for index, shape in enumerate(demand):
            for worker, counts in zip(workers, left):
                fits = _key(worker.shape) == _key(shape.shape) if exact else holds(worker.shape, shape.shape)
                need = target_of(shape, factor) - sum(covered[index])
                if fits and need > 0:
                    _transfer(counts, covered[index], need)
    return [(queued, running) for queued, running in covered]


def _transfer(counts: list[int], covered: list[int], need: int) -> None:
    for kind in (1, 0):  # running ones first: they are here already
        moved = min(counts[kind], need)
        counts[kind] -= moved
        covered[kind] += moved
        need -= moved


def _key(shape: Shape) -> tuple[int, ...]:
    return (shape.cores, shape.memory_mb, shape.disk_mb, shape.wall_s, shape.gpus)
