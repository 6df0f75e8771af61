"""How many workers to submit: pure functions from the server's demand, the queue's limits and the workers there are.

Work is never killed to get down to a number: a queue that has too many workers gets no new ones, and those of them that
wait for nothing may be withdrawn (:mod:`harvester.surplus`).

The order of the calculation, which ``pilotage harvester explain`` shows:

1. the server says how many pilots of each shape there should be, those that hold jobs included;
2. the factor goes on top of those that don't: that is the target;
3. workers that are there, of this and of other harvesters, and pilots that no worker accounts for count for it;
4. what is missing are new workers, one for each ``nodes`` pilots;
5. the room that the limits leave is shared out between the shapes (:func:`harvester.limits.share_out`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from common.states import ResourceState, WorkerState
from common.wire import DemandReply, Shape, ShapeDemand
from harvester.limits import Bound, Group, Limits, Situation, Want, bounds_of, share_out

QUEUED = frozenset({WorkerState.PLANNED, WorkerState.SUBMITTING, WorkerState.SUBMITTED, WorkerState.HELD})
"""Workers that wait, or soon will."""
OPEN = frozenset({ResourceState.ONLINE, ResourceState.TEST})
"""Queues that get new workers; in ``test`` the server's demand counts probe jobs only."""
LEAVING = frozenset({ResourceState.DRAINING, ResourceState.OFFLINE})
"""Queues whose idle pilots the server sends away: a worker that still waits there waits for nothing."""


@dataclass(frozen=True)
class Line:
    """One shape of the demand with the numbers behind ``new``. ``bound`` says what kept it below what is wanted.

    ``pilots`` to ``missing`` count pilots, ``wanted`` and ``new`` workers. ``queued`` and ``running`` come from workers
    of this harvester, ``others`` from those of others, ``found`` are pilots that no worker accounts for.
    """

    shape: Shape
    pilots: int
    ready_jobs: int
    running_jobs: int
    target: int
    queued: int
    running: int
    others: int
    found: int
    missing: int
    wanted: int
    new: int
    bound: str


@dataclass(frozen=True)
class Decision:
    """What to do about a queue, and why. ``queued`` and ``running`` count all its workers, of any shape.

    ``surplus`` are those that wait although nothing is wanted of them, by shape; ``leaving``: none of those that wait is
    wanted, because the queue is being emptied.
    """

    queue: str
    status: ResourceState
    limits: Limits
    idle_pilots: int
    queued: int
    running: int
    lines: list[Line]
    closed: str = ""
    bounds: list[Bound] = field(default_factory=list)
    situation: Situation = field(default_factory=Situation)
    surplus: list[tuple[Shape, int]] = field(default_factory=list)
    leaving: bool = False

    @property
    def new(self) -> int:
        """How many workers to submit in all."""
        return sum(line.new for line in self.lines)

    @property
    def too_many(self) -> int:
        """How many workers wait for nothing."""
        return sum(n for _, n in self.surplus)


@dataclass
class _Source:
    """Pilots to be had from workers of one shape, as far as nothing has been set against them."""

    shape: Shape
    kind: str
    left: int
    nodes: int


def group(workers: Iterable[tuple[Shape, WorkerState]], nodes: int = 1) -> list[Group]:
    """Count workers by shape. Missing and ended ones hold no slot and aren't counted."""
    counts: dict[tuple[int, ...], tuple[Shape, list[int]]] = {}
    for shape, state in workers:
        if state in QUEUED or state is WorkerState.RUNNING:
            _, numbers = counts.setdefault(_key(shape), (shape, [0, 0]))
            numbers[0 if state in QUEUED else 1] += 1
    return [Group(shape, queued, running, nodes) for shape, (queued, running) in counts.values()]


def decide(
    queue: str,
    demand: DemandReply,
    limits: Limits,
    workers: Sequence[Group],
    situation: Situation | None = None,
) -> Decision:
    """How many workers of each shape to submit now, and which of those that wait are too many."""
    situation = situation or Situation()
    sources = _sources(demand, workers)
    covered = _cover(demand.shapes, limits.factor, sources)
    found = _found(demand, limits.factor, covered, workers)
    closed = _closed(demand.queue.status, limits)
    bounds = bounds_of(limits, workers, situation)
    wants = []
    for shape, kinds, extra in zip(demand.shapes, covered, found):
        target, have = target_of(shape, limits.factor), sum(kinds.values()) + extra
        wants.append(Want(shape.shape, -(-max(0, target - have) // limits.nodes), have, target))
    if closed:
        for want in wants:
            want.bound = closed if want.missing else ""
    else:
        share_out(wants, bounds, limits.nodes)
    return Decision(
        queue=queue,
        status=demand.queue.status,
        limits=limits,
        idle_pilots=demand.idle_pilots,
        queued=sum(one.queued for one in workers),
        running=sum(one.running for one in workers),
        lines=[_line(*each) for each in zip(demand.shapes, covered, found, wants)],
        closed=closed,
        bounds=bounds,
        situation=situation,
        surplus=_surplus(sources),
        leaving=demand.queue.status in LEAVING or limits.drained,
    )


def target_of(demand: ShapeDemand, factor: float) -> int:
    """How many pilots of a shape there should be: ``pilots + (factor - 1) x (pilots - running jobs)``, rounded up.

    The factor goes on top of what is waiting, not of what is served already. Never fewer than hold jobs.
    """
    return math.ceil(demand.pilots + (factor - 1) * max(0, demand.pilots - demand.running_jobs))


def holds(worker: Shape, wanted: Shape) -> bool:
    """Whether a worker of one shape can serve the demand for another. Zero asks for nothing, and promises nothing."""
    return all(has >= needs for has, needs in zip(_key(worker), _key(wanted)))


def _closed(status: ResourceState, limits: Limits) -> str:
    if status not in OPEN:
        return f"the queue is {status.value}"
    return "the queue is drained" if limits.drained else ""


def _sources(demand: DemandReply, workers: Sequence[Group]) -> list[_Source]:
    """Own running workers first, since they are here already; own before others', so that two harvesters that both
    have too many don't both withdraw theirs."""
    own = [
        _Source(one.shape, kind, n * one.nodes, one.nodes)
        for kind in ("running", "queued")
        for one in workers
        if (n := one.running if kind == "running" else one.queued)
    ]
    others = [
        _Source(one.shape, "others", (one.queued + one.running) * one.nodes, one.nodes)
        for one in demand.others
        if one.queued + one.running
    ]
    return own + others


def _cover(demand: Sequence[ShapeDemand], factor: float, sources: Sequence[_Source]) -> list[dict[str, int]]:
    """For each shape of the demand, how many pilots of each kind count for it: workers count for a shape of their own
    first, and then for any that they could hold."""
    covered = [{"running": 0, "queued": 0, "others": 0} for _ in demand]
    for exact in (True, False):
        for index, shape in enumerate(demand):
            need = target_of(shape, factor) - sum(covered[index].values())
            for source in sources:
                if need <= 0:
                    break
                if _key(source.shape) == _key(shape.shape) if exact else holds(source.shape, shape.shape):
                    moved = min(source.left, need)
                    source.left -= moved
                    covered[index][source.kind] += moved
                    need -= moved
    return covered


def _found(
    demand: DemandReply, factor: float, covered: Sequence[dict[str, int]], workers: Sequence[Group]
) -> list[int]:
    """For each shape, pilots that live although no worker that is known accounts for them (started by hand, or of a
    missing worker): busy ones by their shape, idle ones for whatever is missing first."""
    found = [
        max(0, min(shape.running_jobs, target_of(shape, factor)) - sum(kinds.values()))
        for shape, kinds in zip(demand.shapes, covered)
    ]
    known = sum((one.queued + one.running) * one.nodes for one in workers)
    known += sum((one.queued + one.running) * one.nodes for one in demand.others)
    busy = sum(shape.running_jobs for shape in demand.shapes)
    idle = demand.idle_pilots - max(0, known - busy)
    for index, (shape, kinds) in enumerate(zip(demand.shapes, covered)):
        missing = max(0, target_of(shape, factor) - sum(kinds.values()) - found[index])
        taken = max(0, min(idle, missing))
        found[index] += taken
        idle -= taken
    return found


def _surplus(sources: Sequence[_Source]) -> list[tuple[Shape, int]]:
    """Whole workers that wait and that no demand was set against."""
    return [(one.shape, n) for one in sources if one.kind == "queued" and (n := one.left // one.nodes)]


def _line(shape: ShapeDemand, kinds: dict[str, int], found: int, want: Want) -> Line:
    return Line(
        shape=shape.shape,
        pilots=shape.pilots,
        ready_jobs=shape.ready_jobs,
        running_jobs=shape.running_jobs,
        target=want.target,
        queued=kinds["queued"],
        running=kinds["running"],
        others=kinds["others"],
        found=found,
        missing=max(0, want.target - sum(kinds.values()) - found),
        wanted=want.missing,
        new=want.new,
        bound=want.bound,
    )


def _key(shape: Shape) -> tuple[int, ...]:
    return (shape.cores, shape.memory_mb, shape.disk_mb, shape.wall_s, shape.gpus)
