"""What the slot has, what the jobs in it use, and what is left to offer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional

from common.clock import Clock
from common.wire import AssignedFile, Assignment, Gpu, Offer, Queue, Shape

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


def clipped(offer: Offer, queue: Queue, shape: Shape) -> Offer:
    """``offer`` within the limits of the queue, and of what the worker asked its batch system for (zero: no limit
    there). Several workers may share a machine that shows all of itself to each."""
    gpus = _least(queue.gpus, shape.gpus)
    return Offer(
        cores=_least(offer.cores, queue.cores, shape.cores),
        memory_mb=_least(offer.memory_mb, queue.memory_mb, shape.memory_mb),
        disk_mb=_least(offer.disk_mb, queue.disk_mb, shape.disk_mb),
        wall_s=_least(offer.wall_s, queue.wall_s, shape.wall_s),
        gpus=offer.gpus[:gpus] if gpus else offer.gpus,
        tags=offer.tags,
    )


def _least(*limits: int) -> int:
    return min((limit for limit in limits if limit), default=0)


class Slot:
    """Keeps account of one slot. ``whole`` is all of it (zero: not known), ``ends`` when its wall time is over, on the
    monotonic clock (None: it is not limited). For one thread only."""

    def __init__(self, whole: Offer, clock: Clock, ends: Optional[float]) -> None:
        self.whole = whole
        self._clock = clock
        self._ends = ends
        self._parts: dict[int, Part] = {}
        self._disk_mb: dict[int, int] = {}
        self._offered: Optional[Offer] = None
        """What the server may be giving away now: nobody else gets it before the answer is here."""

    def wall_left_s(self) -> Optional[float]:
        """Seconds until the slot ends; None when it is not limited."""
        return None if self._ends is None else max(0.0, self._ends - self._clock.monotonic())

    def offer(self) -> Optional[Offer]:
        """What is free, to be offered to the server; nobody else gets it until :meth:`answered`."""
        self._offered = self.free()
        return self._offered

    def answered(self) -> None:
        """The server has taken of what was offered what it wanted."""
        self._offered = None

    def offer_behind(self, job_id: int, left_s: float) -> Optional[Offer]:
        """The part of a running job that will be over in ``left_s`` seconds; None when nothing can be done with it."""
        part, free_mb, wall_s = self._parts.get(job_id), self._free_disk_mb(), self.wall_left_s()
        if part is None or (self.whole.disk_mb and free_mb < 1) or (wall_s is not None and wall_s - left_s < 1.0):
            return None
        return Offer(
            cores=part.cores,
            memory_mb=part.memory_mb if self.whole.memory_mb else 0,
            disk_mb=free_mb if self.whole.disk_mb else 0,
            wall_s=0 if wall_s is None else int(wall_s - left_s),
            gpus=list(part.gpus),
            tags=self.whole.tags,
        )

    def take(self, assignment: Assignment) -> Part:
        """Give a job its part; the server made the job to fit, so that it gets what it needs."""
        return self._give(assignment, self._free_gpus())

    def expect(self, assignment: Assignment) -> None:
        """A job was claimed ahead: for now it takes room on disk only."""
        self._disk_mb[assignment.job_id] = part_of(assignment, []).disk_mb

    def fit(self, assignment: Assignment) -> Optional[Part]:
        """Give a job that was claimed ahead its part, if it fits beside what runs and what is being offered."""
        offered = self._offered
        lent = {id(gpu) for gpu in offered.gpus} if offered is not None else set()
        gpus = [gpu for gpu in self._free_gpus() if id(gpu) not in lent]
        wanted, needs = part_of(assignment, gpus), assignment.requirements
        cores, memory_mb = self._free_cores_and_memory()
        if offered is not None:
            cores, memory_mb = cores - offered.cores, memory_mb - offered.memory_mb
        if wanted.cores > cores or (self.whole.memory_mb and wanted.memory_mb > memory_mb):
            return None
        if needs.gpus is not None and len(wanted.gpus) < needs.gpus.count:
            return None
        return self._give(assignment, gpus)

    def _give(self, assignment: Assignment, gpus: list[Gpu]) -> Part:
        part = part_of(assignment, gpus)
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
        whole, disk_mb = self.whole, self._free_disk_mb()
        cores, memory_mb = self._free_cores_and_memory()
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

    def _free_cores_and_memory(self) -> tuple[int, int]:
        parts = self._parts.values()
        return (
            self.whole.cores - sum(part.cores for part in parts),
            self.whole.memory_mb - sum(part.memory_mb for part in parts),
        )

    def _free_disk_mb(self) -> int:
        return self.whole.disk_mb - sum(self._disk_mb.values())

    def _free_gpus(self) -> list[Gpu]:
        used = {id(gpu) for part in self._parts.values() for gpu in part.gpus}
        return [gpu for gpu in self.whole.gpus if id(gpu) not in used]
