"""What is counted and measured, as it lies in the database between those who measure and those who ask."""

from __future__ import annotations

import msgspec


class Histogram(msgspec.Struct):
    """How often something took how long: ``counts`` for each bound of :data:`BOUNDS_S` and one for all above."""

    counts: list[int] = []
    sum_s: float = 0.0


BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
"""Upper bounds of the classes of a histogram, in seconds."""


class ProcessSample(msgspec.Struct):
    """What one web process has counted since it started."""

    requests: dict[str, int] = {}
    """By ``METHOD ROUTE STATUS``."""
    latency: dict[str, Histogram] = {}
    """By ``METHOD ROUTE``."""
    claims: Histogram = msgspec.field(default_factory=Histogram)
    """Attempts to claim, from the match to the commit, also those that found nothing; waiting for work is not in it."""
    database_errors: int = 0
    followers: int = 0
    """Requests that wait for events now."""
    connections: int = 0
    """Connections to the database in use now."""
    connections_limit: int = 0


class ShareSample(msgspec.Struct):
    """One share."""

    name: str
    target: float
    """The part of everything that its weight gives it."""
    cores: int
    """Cores of its live jobs."""
    ready: int
    """Units that wait."""


class QueueSample(msgspec.Struct):
    """One queue."""

    name: str
    status: str
    workers: dict[str, int] = {}
    """Workers that have not ended, by state."""
    jobs: int = 0
    """Live jobs."""
    cores: int = 0
    idle_pilots: int = 0


class ProbeSample(msgspec.Struct):
    """What the last probe of a site found of one operation at a storage."""

    site: str
    gpu: bool
    storage: str
    operation: str
    ok: bool
    time: float


class SystemSample(msgspec.Struct):
    """What the measuring agent found; everything in it is for anybody's eyes: numbers, names of queues, shares, sites and
    storages."""

    time: float
    cost_s: float = 0.0
    """What the measuring itself took."""
    tasks: dict[str, int] = {}
    """Tasks that are not over, by state."""
    units: dict[str, int] = {}
    """Units of those tasks, by state."""
    jobs: dict[str, int] = {}
    """Live jobs, by state."""
    shares: list[ShareSample] = []
    queues: list[QueueSample] = []
    oldest_ready_s: float = 0.0
    """How long the bucket has had ready units that has had them for longest."""
    pilots: int = 0
    """Pilots that are not over."""
    pilots_late: int = 0
    """Those that were not heard of for two heartbeats."""
    pilots_idle: int = 0
    events_unsettled_s: float = 0.0
    """Age of the oldest event that followers cannot be given yet, because an older transaction is still at work."""
    probes: list[ProbeSample] = []
    probes_missed: dict[str, int] = {}
    """Probes in a row that did not run, by site."""
