"""What harvester and server tell each other."""

from __future__ import annotations

from typing import Annotated, Optional

import msgspec

from common.states import WorkerState
from common.wire.base import Count, Message, Number
from common.wire.world import (
    Queue,
)

LogUrl = Annotated[str, msgspec.Meta(max_length=2048, pattern=r"^(https?|file)://[^\x00-\x20]*$(?!\n)")]
"""Where something is to be seen: whatever else a browser may be made to run is none."""


class Shape(Message):
    """What a worker asks its batch system for."""

    cores: Count = 1
    memory_mb: Count = 0
    disk_mb: Count = 0
    wall_s: Count = 0
    gpus: Count = 0


class ShapeDemand(Message):
    """How many pilots of a shape a queue should have now, running ones included, with the numbers behind it.

    ``ready_units`` and ``ready_jobs`` are this queue's part of the work that waits, ``core_hours`` what it takes where
    that is known; a pilot is asked for ``life_s``. ``running_jobs`` counts the pilots that hold jobs.
    """

    shape: Shape
    pilots: int
    ready_units: int = 0
    ready_jobs: int = 0
    running_jobs: int = 0
    core_hours: float = 0.0
    life_s: int = 0


class DemandPart(Message):
    """Ready work that no filter tells apart, and the part of it that falls to a queue.

    ``jobs`` of ``ready_jobs`` fall to it, as its ``weight`` stands to ``weights``, the sum over the ``queues`` that may
    run the work. It is of ``tasks`` tasks in ``buckets`` buckets; ``task_id`` is one of them.
    """

    task_id: int
    tasks: int
    buckets: int
    queues: int
    distance: int
    weight: float
    weights: float
    ready_jobs: int
    jobs: int


class DemandRefusal(Message):
    """Ready work of which a queue gets nothing: the filter that refuses it, and in what words for one task."""

    filter: str
    detail: str
    task_id: int
    tasks: int
    buckets: int
    units: int


class WorkerCount(Message):
    """Workers of a shape: how many wait, or will soon, and how many run. Each has ``nodes`` nodes with a pilot on each."""

    shape: Shape
    queued: int = 0
    running: int = 0
    nodes: int = 1


class DemandReply(Message):
    """``GET /v1/queues/{q}/demand``; ``computed`` says when. ``parts`` and ``refused`` are there with ``explain=true``.

    ``running`` pilots hold jobs, ``waiting`` workers wait in the batch system: their proportion is the queue's weight.
    ``others`` are the workers of other harvesters than the one that asks.
    """

    queue: Queue
    shapes: list[ShapeDemand] = []
    idle_pilots: int = 0
    computed: float = 0.0
    running: int = 0
    waiting: int = 0
    parts: list[DemandPart] = []
    refused: list[DemandRefusal] = []
    others: list[WorkerCount] = []


class WorkerReport(Message):
    """A worker as harvester knows it. ``mark`` is unique for ever; ``secret_hash`` comes with the intention.

    ``host`` is where it runs or ran, and ``exit_code`` how it ended, as far as the batch system tells. Once it has ended and
    its output is home, ``log_url`` says where that is, and ``log_tail`` is the last of what a worker that failed wrote.
    """

    mark: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    queue: str
    state: WorkerState
    shape: Shape = msgspec.field(default_factory=Shape)
    nodes: Count = 1
    batch_id: Optional[str] = None
    secret_hash: Optional[str] = None
    valid_s: float = 0.0
    reason: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    exit_code: Optional[Number] = None
    host: Annotated[str, msgspec.Meta(max_length=255)] = ""
    log_url: Optional[LogUrl] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=4096, pattern=r"^[^\x00]*$")] = ""


class WorkersReportRequest(Message):
    """``POST /v1/workers:report``."""

    harvester: str
    workers: Annotated[list[WorkerReport], msgspec.Meta(max_length=10_000)]


class WorkerOutcome(Message):
    """What the server made of one report. ``pilots_alive`` counts the worker's pilots that still report,
    ``pilots_seen`` all that ever registered; a server that does not say leaves it out. With ``push`` jobs are to be claimed
    for the worker before it is submitted."""

    mark: str
    accepted: bool
    reason: str = ""
    pilots_alive: int = 0
    pilots_seen: Optional[int] = None
    push: bool = False


class WorkersReportReply(Message):
    """An outcome for each worker, in order."""

    workers: list[WorkerOutcome]
