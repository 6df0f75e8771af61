"""How many units one claim takes: as many as fit the slot, in the order of the bucket.

A unit that failed comes back last, in smaller company, at the end alone: its ``seq`` is raised by one *tier* for each
payload failure, tiers sort behind one another, and a claim never spans two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import structs

from common.wire import Fixed, Measured, Requirements, StageSpec

if TYPE_CHECKING:
    from server.config import Knobs

TIER_BITS = 40
"""``seq`` is tier << 40 | number: a task may have a million million units."""
LOOK_AHEAD = 64
"""Units behind some that don't fit the slot that a claim looks at besides."""
MOST_EVENTS = 2**31 - 1


@dataclass(frozen=True)
class ReadyUnit:
    """What sizing needs to know of a unit."""

    id: int
    seq: int
    size_mb: int
    events: int = 0


@dataclass(frozen=True)
class Bounds:
    """What one job may take.

    The units' sizes and the larger of ``spare_mb`` and ``out_kb_per_event`` for each event must fit ``disk_mb``
    together (None: no bound); their events must not exceed ``max_events`` (None: no bound); fewer than ``min_units``
    there means none. Beyond ``aim_events`` and ``aim_mb`` no further unit is taken, though a single one may be larger.
    """

    limit: int
    min_units: int = 1
    disk_mb: int | None = None
    spare_mb: int = 0
    out_kb_per_event: float = 0.0
    max_events: int | None = None
    aim_events: int | None = None
    aim_mb: int | None = None


def tier_of(seq: int) -> int:
    """How many payload failures put the unit where it is."""
    return seq >> TIER_BITS


def number_of(seq: int) -> int:
    """The unit's number in its task, whatever its tier."""
    return seq & ((1 << TIER_BITS) - 1)


def raised(seq: int, payload_failures: int) -> int:
    """The same unit, put behind all that failed less often."""
    return (payload_failures << TIER_BITS) | number_of(seq)


def company(limit: int, tier: int) -> int:
    """The most units of a job in this tier: a quarter for each failure, at least one."""
    return max(1, limit >> (2 * tier))


@dataclass(frozen=True)
class SlotSize:
    """What sizing needs to know of a slot: scratch disk, wall time left (0: not known), power and use of its cores."""

    disk_mb: int = 0
    wall_s: float = 0.0
    core_power: float = 10.0
    cpu_efficiency: float = 0.9


def prefix(units: Sequence[ReadyUnit], bounds: Bounds) -> list[ReadyUnit]:
    """The first of ``units`` (ordered by ``seq``) that make one job.

    A unit that alone would not fit is passed over, so that smaller ones behind it can go; the others must follow one
    another in their tier. The PostgreSQL claim says the same in SQL (``server/store/claim_postgres.py``); one test holds
    them together.
    """
    fitting = [unit for unit in units if _fits(unit.size_mb, _events(unit), bounds)]
    if len(fitting) < bounds.min_units or not fitting:
        return []
    tier = tier_of(fitting[0].seq)
    taken: list[ReadyUnit] = []
    size, events = 0, 0
    for unit in fitting[: company(bounds.limit, tier)]:
        size += unit.size_mb
        events += _events(unit)
        if tier_of(unit.seq) != tier or not _fits(size, events, bounds):
            break
        if taken and not _aimed_at(size, events, bounds):
            break
        taken.append(unit)
    return taken


def rows_to_look_at(bounds: Bounds, again: bool = False) -> int:
    """How many ready units a claim fetches: as many as it may take; at its second try, when none of the first fitted
    and there were no fewer, :data:`LOOK_AHEAD` more. What lies farther behind waits for those before it to go."""
    return max(bounds.limit, bounds.min_units) + (LOOK_AHEAD if again else 0)


def _events(unit: ReadyUnit) -> int:
    """A unit without an event count is one event (PanDA documentation, dynamic optimisation)."""
    return max(1, unit.events)


def _fits(size_mb: int, events: int, bounds: Bounds) -> bool:
    if bounds.max_events is not None and events > bounds.max_events:
        return False
    produced = max(bounds.spare_mb, bounds.out_kb_per_event * events / 1024)
    return bounds.disk_mb is None or size_mb + produced <= bounds.disk_mb


def _aimed_at(size_mb: int, events: int, bounds: Bounds) -> bool:
    return (bounds.aim_events is None or events <= bounds.aim_events) and (
        bounds.aim_mb is None or size_mb <= bounds.aim_mb
    )


def job_bounds(spec: StageSpec, measured: Measured | None, slot: SlotSize, knobs: Knobs) -> Bounds:
    """What a job of a task may take in a slot.

    Where the user has set the size of jobs (files, events, MiB), that is it, as far as the slot can hold it. Else as many
    events n as it holds by what was measured (PanDA documentation, job sizing):

    * S >= input + max(0.5 GB, out * n) + work, with the slot's disk S; less than 0.5 GB where the user asked for less;
    * W >= cpuTime * n / (C * P * eff) + base, with its wall time W, the job's cores C, their power P and their use.

    A single unit may go without the margin that is in cpuTime: else a task might measure itself out of the slots that
    its scouts ran in. Until CPU time is known a job takes one unit. A task that scouts is asked for with ``measured``
    None.
    """
    needs = needed(spec, measured, knobs)
    fixed_disk = Fixed.DISK in spec.fixed or measured is None or measured.out_kb_per_event is None
    work_mb = needs.disk_mb if fixed_disk else _work_mb(measured)
    return Bounds(
        limit=_limit(spec, measured, knobs),
        disk_mb=slot.disk_mb - work_mb if slot.disk_mb else None,
        spare_mb=0 if fixed_disk else _least_output_mb(spec, measured, knobs),
        out_kb_per_event=0.0 if fixed_disk or measured is None else measured.out_kb_per_event or 0.0,
        max_events=_max_events(spec, measured, slot, knobs),
        aim_events=_aim_events(spec, measured, slot, knobs),
        aim_mb=spec.mb_per_job,
    )


def without_input(bounds: Bounds) -> Bounds:
    """The same for a job whose input takes no disk: only its output must fit."""
    if bounds.disk_mb is None or not bounds.out_kb_per_event:
        return replace(bounds, disk_mb=None)
    events = max(0, int(bounds.disk_mb * 1024 / bounds.out_kb_per_event))
    most = events if bounds.max_events is None else min(events, bounds.max_events)
    return replace(bounds, disk_mb=None, max_events=min(most, MOST_EVENTS))


def _max_events(spec: StageSpec, measured: Measured | None, slot: SlotSize, knobs: Knobs) -> int | None:
    cpu = bare_cpu(spec, measured, knobs)
    if not cpu or not slot.wall_s or spec.requirements.wall_s:  # what the user said of a job's wall time was matched
        return None
    return _events_in(slot.wall_s, cpu, spec, slot, knobs)


def _aim_events(spec: StageSpec, measured: Measured | None, slot: SlotSize, knobs: Knobs) -> int | None:
    cpu = cpu_per_event(spec, measured)
    times = [float(wall_s) for wall_s in (slot.wall_s, spec.requirements.wall_s) if wall_s]
    if not _has_preset(spec):
        times.append(knobs.sizing_job_s)
    aims = [spec.events_per_job] if spec.events_per_job else []
    if cpu and times:
        aims.append(_events_in(min(times), cpu, spec, slot, knobs))
    return min(aims) if aims else None


def _has_preset(spec: StageSpec) -> bool:
    return not (spec.files_per_job is None and spec.events_per_job is None and spec.mb_per_job is None)


def _limit(spec: StageSpec, measured: Measured | None, knobs: Knobs) -> int:
    if spec.files_per_job is not None:
        return spec.files_per_job
    known = cpu_per_event(spec, measured) is not None
    return knobs.sizing_max_units if known or _has_preset(spec) else 1


def _events_in(wall_s: float, cpu: float, spec: StageSpec, slot: SlotSize, knobs: Knobs) -> int:
    usable = max(0.0, wall_s - knobs.sizing_base_s) * _power(spec, slot)
    return min(MOST_EVENTS, int(usable / cpu))


def _power(spec: StageSpec, slot: SlotSize) -> float:
    return spec.requirements.cores * slot.core_power * slot.cpu_efficiency


def _least_output_mb(spec: StageSpec, measured: Measured | None, knobs: Knobs) -> int:
    """What is kept for output at the least: with the work space no more than the disk that the measured jobs were given.

    Else a task might measure itself out of the slots that its jobs ran in.
    """
    return min(knobs.sizing_min_output_mb, max(0, spec.requirements.disk_mb - _work_mb(measured)))


def _work_mb(measured: Measured | None) -> int:
    return math.ceil(measured.work_mb or 0.0) if measured else 0


def cpu_per_event(spec: StageSpec, measured: Measured | None) -> float | None:
    """CPU time per event in HS23 seconds: what was measured, else what the user gave; None when neither is known."""
    if measured is None or measured.cpu_per_event is None or Fixed.CPU_TIME in spec.fixed:
        return spec.cpu_per_event
    return measured.cpu_per_event


def bare_cpu(spec: StageSpec, measured: Measured | None, knobs: Knobs) -> float | None:
    """The same without the margin, which only measuring puts on it."""
    cpu = cpu_per_event(spec, measured)
    if cpu is None or cpu is spec.cpu_per_event:
        return cpu
    return cpu / knobs.scout_safety


def needed(spec: StageSpec, measured: Measured | None, knobs: Knobs, events: int = 1) -> Requirements:
    """What the smallest possible job of a task, of one unit with so many events, needs of a slot beside its input.

    This is matched against the offer. Memory is the measured one of its cores, disk the measured output and work
    space; the user's own figures until then, and for what is ``fixed``.
    """
    asked = spec.requirements
    if measured is None:
        return asked
    memory_mb, disk_mb = asked.memory_mb, asked.disk_mb
    if measured.memory_per_core_mb is not None and Fixed.MEMORY not in spec.fixed:
        memory_mb = math.ceil(measured.memory_per_core_mb * asked.cores + knobs.sizing_base_memory_mb)
    if measured.out_kb_per_event is not None and Fixed.DISK not in spec.fixed:
        produced = max(_least_output_mb(spec, measured, knobs), measured.out_kb_per_event * events / 1024)
        disk_mb = math.ceil(produced) + _work_mb(measured)
    return structs.replace(asked, memory_mb=memory_mb, disk_mb=disk_mb)


def told(spec: StageSpec, measured: Measured | None, knobs: Knobs, events: int = 1) -> Requirements:
    """What a pilot is told that a job with so many events may use, and holds it to.

    Never less than its user asked for, as a quarter of the jobs need more than what the others were measured with; and
    measured disk with the margin that CPU time has.
    """
    needs = needed(spec, measured, knobs, events)
    asked = spec.requirements
    disk_mb = needs.disk_mb if needs.disk_mb == asked.disk_mb else math.ceil(needs.disk_mb * knobs.scout_safety)
    return structs.replace(asked, memory_mb=max(asked.memory_mb, needs.memory_mb), disk_mb=max(asked.disk_mb, disk_mb))


def wall_needed(spec: StageSpec, measured: Measured | None, slot: SlotSize, knobs: Knobs, events: int = 1) -> float:
    """Seconds that a job of one unit with so many events needs in a slot: what its user said, else what was measured
    (without the margin); 0 when neither is known."""
    cpu = bare_cpu(spec, measured, knobs)
    if spec.requirements.wall_s or not cpu:
        return float(spec.requirements.wall_s)
    return cpu * events / _power(spec, slot) + knobs.sizing_base_s
