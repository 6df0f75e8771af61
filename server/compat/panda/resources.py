"""PanDA's kinds of jobs, by cores and memory a core."""

from __future__ import annotations

from dataclasses import dataclass

from common.wire import QueueSpec


@dataclass(frozen=True)
class ResourceType:
    """A kind of jobs; ``max_cores`` and ``max_core_mb`` of zero are no bound."""

    name: str
    min_cores: int
    max_cores: int
    min_core_mb: int
    max_core_mb: int

    def told(self) -> dict[str, object]:
        """As Harvester and pilots are told of it."""
        return {
            "resource_name": self.name,
            "mincore": self.min_cores,
            "maxcore": self.max_cores or None,
            "minrampercore": self.min_core_mb,
            "maxrampercore": self.max_core_mb or None,
        }


CORE_MB = 2000
"""More memory than this for each core is much."""
RESOURCE_TYPES = {
    each.name: each
    for each in (
        ResourceType("SCORE", 1, 1, 0, CORE_MB),
        ResourceType("SCORE_HIMEM", 1, 1, CORE_MB + 1, 0),
        ResourceType("MCORE", 2, 0, 0, CORE_MB),
        ResourceType("MCORE_HIMEM", 2, 0, CORE_MB + 1, 0),
    )
}


def cores_of(kind: ResourceType | None, queue: QueueSpec) -> int:
    """How many cores a slot of a queue has for a kind of jobs: pilots do not tell."""
    if kind is None:
        return max(1, queue.cores)
    if kind.max_cores:
        return kind.max_cores
    return max(kind.min_cores, queue.cores)


def kind_of(cores: int, memory_mb: int) -> str:
    """The name of a job's kind."""
    name = "SCORE" if cores <= 1 else "MCORE"
    return f"{name}_HIMEM" if memory_mb > CORE_MB * max(1, cores) else name
