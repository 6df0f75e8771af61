"""What a process remembers from one computing of the demand to the next."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from common.wire import Shape
from server.engine.demand_sizes import UnitsPerJob


@dataclass(frozen=True)
class Busy:
    """The pilots of a queue that held jobs at a moment, by the shape of their worker."""

    time: float
    shapes: list[tuple[Shape, int]]

    @property
    def n(self) -> int:
        """All of them."""
        return sum(n for _, n in self.shapes)


@dataclass
class DemandBook:
    """The busy pilots of each queue as counted last, events of a unit of each task, how many units a job takes."""

    mutex: threading.Lock = field(default_factory=threading.Lock)
    """Held while the demand is computed."""
    busy: dict[str, Busy] = field(default_factory=dict)
    events: dict[int, int] = field(default_factory=dict)
    per_job: UnitsPerJob = field(default_factory=UnitsPerJob)
