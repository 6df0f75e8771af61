"""One source's word on one resource."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """``resource`` is ``cores``, ``memory_mb``, ``disk_mb``, ``gpus`` or ``wall_s`` (seconds that are left), of which the
    least counts; ``core_power`` (HS23 of one core) and ``lease_s`` (how long the batch system keeps a job of which it
    hears nothing) are for people. ``source`` names who says so."""

    resource: str
    source: str
    value: float

    def __str__(self) -> str:
        return f"{self.resource} {self.value:.10g} ({self.source})"
