"""Which of the workers that wait are withdrawn: those that have been too many for a while, newest first.

Withdrawn are only workers that have not started: the batch system itself looks whether they have
(:class:`harvester.backends.base.Withdrawable`). Pilots that run and find no work leave by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.states import WorkerState
from common.wire import Shape
from harvester.provisioner import Decision
from harvester.store import Worker

WITHDRAWABLE = frozenset({WorkerState.PLANNED, WorkerState.SUBMITTED, WorkerState.HELD})
"""One that is being submitted has no place yet that it could be withdrawn from."""


@dataclass(frozen=True)
class Memory:
    """Since when a queue has had workers waiting for nothing, and the fewest that it had at any time since."""

    since: float
    least: int


def step(memory: Memory | None, decision: Decision, now: float, after_s: float | None) -> tuple[Memory | None, int]:
    """What to remember, and how many workers to withdraw now.

    As many as have been too many at every moment of ``after_s`` seconds (None: never any), so that demand that comes
    and goes costs nobody their place in the batch system's queue.
    """
    n = decision.too_many
    if after_s is None or n == 0:
        return None, 0
    if memory is None:
        memory = Memory(now, n)
    memory = Memory(memory.since, min(memory.least, n))
    if now - memory.since < after_s:
        return memory, 0
    return (Memory(now, n - memory.least) if n > memory.least else None), memory.least


def choose(workers: Sequence[Worker], surplus: Sequence[tuple[Shape, int]], n: int) -> list[Worker]:
    """The newest ``n`` of the workers that wait and are too many of their shape."""
    left = {_key(shape): count for shape, count in surplus}
    chosen: list[Worker] = []
    for worker in sorted(workers, key=lambda one: (one.created, one.mark), reverse=True):
        if len(chosen) == n:
            break
        if worker.state in WITHDRAWABLE and not worker.cancel and left.get(_key(worker.shape), 0):
            left[_key(worker.shape)] -= 1
            chosen.append(worker)
    return chosen


def _key(shape: Shape) -> tuple[int, ...]:
    return (shape.cores, shape.memory_mb, shape.disk_mb, shape.wall_s, shape.gpus)
