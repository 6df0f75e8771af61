"""What the slot has, what the jobs in it use, and what is left to offer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from common.clock import Clock
from common.wire import AssignedFile, Assignment, Gpu, Offer, Queue

MB = 1024 * 1024


@dataclass(frozen=True)
class Part:
    """What one job has of the slot; sizes in MB."""

    cores: int
    memory_mb: int
    disk_mb: int
    gpus: tuple[Gpu, ...]


def part_of(assignment: Assignment, gpus: list[Gpu]) -> Part:
    """What a job needs, its input's space on disk included; its GPUs are the first that suit it among ``gpus``."""
    requirements = assignment.requirements
    files = [unit.file for unit in assignment.units if unit.file is not None] + beside(assignment)
    input_mb = math.ceil(sum({file.did: file.size or 0 for file in files}.values()) / MB)
    wanted = requirements.gpus
    suitable = [
        gpu
        for gpu in gpus
        if wanted is not None
        and (wanted.vendor or "").lower() in ("", gpu.vendor.lower())
        and (wanted.model or "").lower() in gpu.model.lower()
        and gpu.memory_mb >= wanted.memory_mb
    ]
    count = wanted.count if wanted is not None else 0
    return Part(requirements.cores, requirements.memory_mb, requirements.disk_mb + input_mb, tuple(suitable[:count]))


def beside(assignment: Assignment) -> list[AssignedFile]:
    """The files that a job needs beside its units: the common input and that of its secondary streams."""
    return [*assignment.common_input, *(file for stream in assignment.secondary.values() for file in stream)]


def clipped(offer: Offer, queue: Queue) -> Offer:
    """``offer`` within the limits of the queue (zero: no limit there)."""
    return Offer(
        cores=_least(offer.cores, queue.cores),
        memory_mb=_least(offer.memory_mb, queue.memory_mb),
        disk_mb=_least(offer.disk_mb, queue.disk_mb),
        wall_s=_least(offer.wall_s, queue.wall_s),
        gpus=offer.gpus[: queue.gpus] if queue.gpus else offer.gpus,
        tags=offer.tags,
    )


def _least(mine: int, theirs: int) -> int:
    return min(mine, theirs) if mine and theirs else mine or theirs


class Slot:
    """Keeps account of one slot. ``whole`` is all of it (zero: not known), ``ends`` when its wall time is over, on the
    monotonic clock (None: it is not limited). For one thread only."""

    def __init__(self, whole: Offer, clock: Clock, ends: Optional[float]) -> None:
        self.whole = whole
        self._clock = clock
        self._ends = ends
        self._parts: dict[int, Part] = {}
        self._disk_mb: dict[int, int] = {}

    def wall_left_s(self) -> Optional[float]:
        """Seconds until the slot ends; None when it is not limited."""
        return None if self._ends is None else max(0.0, self._ends - self._clock.monotonic())

    def take(self, assignment: Assignment) -> Part:
        """Give a job its part; the server made the job to fit, so that it gets what it needs."""
        part = part_of(assignment, self._free_gpus())
        self._parts[assignment.job_id] = part
        self._disk_mb[assignment.job_id] = part.disk_mb
        return part

    def payload_over(self, job_id: int) -> None:
        """Cores, memory and GPUs of the job are free; its files are still there."""
        self._parts.pop(job_id, None)

    def job_over(self, job_id: int) -> None:
        """Nothing of the job is left."""
        self.payload_over(job_id)
        self._disk_mb.pop(job_id, None)

    def free(self) -> Optional[Offer]:
        """What can be offered now; None when nothing is left of something that every job needs."""
        whole, parts = self.whole, self._parts.values()
        cores = whole.cores - sum(part.cores for part in parts)
        memory_mb = whole.memory_mb - sum(part.memory_mb for part in parts)
        disk_mb = whole.disk_mb - sum(self._disk_mb.values())
        if cores < 1 or (whole.memory_mb and memory_mb < 1) or (whole.disk_mb and disk_mb < 1):
            return None
        left_s = self.wall_left_s()
        return Offer(
            cores=cores,
            memory_mb=memory_mb if whole.memory_mb else 0,
            disk_mb=disk_mb if whole.disk_mb else 0,
            wall_s=0 if left_s is None else max(1, int(left_s)),
            gpus=self._free_gpus(),
            tags=whole.tags,
        )

    def _free_gpus(self) -> list[Gpu]:
        used = {id(gpu) for part in self._parts.values() for gpu in part.gpus}
        return [gpu for gpu in self.whole.gpus if id(gpu) not in used]
