"""What a task's jobs need, measured from those that have finished.

The formulas are those of the PanDA documentation, dynamic optimisation of task parameters. A file without an event
count is one event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from common.wire import Measured

if TYPE_CHECKING:
    from server.config import Knobs

KB = 1000.0
KIB = 1024.0
MIB = 1024.0 * 1024.0


@dataclass(frozen=True)
class Sample:
    """One finished job. Times in seconds, memory and disk in MiB, traffic in bytes; zero: not known.

    ``core_power`` is that of its queue in HS23, ``cpu_efficiency`` the use of it that the queue expects. ``events``
    counts a unit without an event count as one.
    """

    job_id: int
    site: str
    core_power: float
    cpu_efficiency: float
    cores: int
    units: int
    events: int
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_mb: float = 0.0
    work_dir_mb: float = 0.0
    in_bytes: int = 0
    out_bytes: int = 0
    io_bytes: int = 0
    leak_kb_s: float = 0.0

    @property
    def use(self) -> float | None:
        """The part of its cores that the job used, 1 for all of them; None when not known."""
        return self.cpu_s / (self.wall_s * self.cores) if self.cpu_s and self.wall_s else None


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The least of ``values`` that at least ``percent`` of them don't exceed; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    rank = math.ceil(len(ordered) * percent / 100.0)
    return ordered[min(len(ordered), max(1, rank)) - 1]


def measure(samples: Sequence[Sample], previous: Measured | None, now: float, knobs: Knobs) -> Measured:
    """What all these jobs show. Where they show nothing, what was known before stays; work space never shrinks."""
    before = previous or Measured()
    work = _largest(samples, _work_mb)
    return Measured(
        round=before.round + 1,
        jobs=len(samples),
        time=now,
        cpu_per_event=_or(_cpu_per_event(samples, knobs), before.cpu_per_event),
        memory_per_core_mb=_or(_memory_per_core(samples, knobs), before.memory_per_core_mb),
        out_kb_per_event=_or(_out_per_event(samples, knobs), before.out_kb_per_event),
        work_mb=_most(work, before.work_mb),
        io_kb_s=_or(_largest(samples, _io_intensity), before.io_kb_s),
        disk_io_kb_s=_or(_disk_io(samples, knobs), before.disk_io_kb_s),
        cpu_efficiency=_or(_middle(each.use for each in samples), before.cpu_efficiency),
        wall_s=_or(_middle(each.wall_s or None for each in samples), before.wall_s),
        problems=list(before.problems),
    )


def _or(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def _most(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _largest(samples: Sequence[Sample], of: Callable[[Sample], float | None]) -> float | None:
    return _most(*(of(each) for each in samples))


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _cpu_per_event(samples: Sequence[Sample], knobs: Knobs) -> float | None:
    """max(0, wall - base) * power * cores * efficiency * 1.5 / events: the 95th percentile."""
    values = [
        max(0.0, each.wall_s - knobs.sizing_base_s)
        * each.core_power
        * each.cores
        * each.cpu_efficiency
        * knobs.scout_safety
        / each.events
        for each in samples
        if each.wall_s and _tells_cpu(each, knobs)
    ]
    return percentile(values, knobs.scout_cpu_percentile)


def _tells_cpu(sample: Sample, knobs: Knobs) -> bool:
    """In a short job with few events the start counts for more than the events: only one with 10 events a core, or of
    six hours, tells. That is no reason where whole files are the events: each of them is what a later job will do."""
    if not sample.events:
        return False
    return (
        _whole_files(sample)
        or sample.events >= knobs.scout_min_events * sample.cores
        or sample.wall_s >= knobs.scout_min_wall_s
    )


def _whole_files(sample: Sample) -> bool:
    return sample.events == sample.units


def _memory_per_core(samples: Sequence[Sample], knobs: Knobs) -> float | None:
    """max((PSS - base) / cores * margin, minimum): the 75th percentile."""
    margin = 1.0 + knobs.scout_memory_margin_percent / 100.0
    values = [
        max((each.memory_mb - knobs.sizing_base_memory_mb) / each.cores * margin, knobs.scout_memory_min_mb)
        for each in samples
        if each.memory_mb
    ]
    return percentile(values, knobs.scout_memory_percentile)


def _out_per_event(samples: Sequence[Sample], knobs: Knobs) -> float | None:
    """Output by event, of jobs with at least ten: the 75th percentile."""
    values = [
        each.out_bytes / KIB / each.events
        for each in samples
        if each.events and (_whole_files(each) or each.events >= knobs.scout_min_events)
    ]
    return percentile(values, knobs.scout_output_percentile)


def _work_mb(sample: Sample) -> float | None:
    """What lay in the job's folder beside input and output: those are counted apart."""
    if not sample.work_dir_mb:
        return None
    return max(0.0, sample.work_dir_mb - (sample.in_bytes + sample.out_bytes) / MIB)


def _io_intensity(sample: Sample) -> float | None:
    return (sample.in_bytes + sample.out_bytes) / KB / sample.wall_s if sample.wall_s else None


def _disk_io(samples: Sequence[Sample], knobs: Knobs) -> float | None:
    """What the payloads read and wrote by time, no more than is believed."""
    values = [each.io_bytes / KB / each.wall_s for each in samples if each.wall_s and each.io_bytes]
    return min(max(values), knobs.scout_disk_io_cap_kb_s) if values else None
