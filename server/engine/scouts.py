"""Scouts: a large task first runs a few jobs that measure what the rest will need.

A task of many jobs goes from ready to scouting, and then only so many of its units may be claimed as make
``scout_count`` jobs, with more priority and at different sites. When half of them have finished it is measured: the rest
goes, cut to the slots by what was measured, or the task is exhausted when it shows a problem (PanDA documentation,
scout jobs and dynamic optimisation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.states import JobState, TaskState
from common.wire import Fixed, Measured, StageSpec
from server.engine.measure import Sample
from server.engine.outcomes import Fault, fault_of

if TYPE_CHECKING:
    from server.config import Knobs

NO_SCOUTS = -1
"""In place of a number of scouts left: the task was looked at and needs none."""


@dataclass(frozen=True)
class Scouting:
    """How many more scouts of a task may be claimed now, and at which sites there are enough of them."""

    left: int
    full_sites: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tally:
    """The jobs that a scouting task has had: by state, live ones and finished ones by site, failures by error.

    ``last_claim`` is when the last one was claimed.
    """

    live: int = 0
    finished: int = 0
    by_site: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[int | None, int] = field(default_factory=dict)
    last_claim: float = 0.0

    @property
    def failed(self) -> int:
        """Those that say something of the task: neither lost nor preempted nor called off."""
        return sum(n for code, n in self.failures.items() if _tells(code))


def _tells(error_code: int | None) -> bool:
    return fault_of(error_code) in (Fault.PAYLOAD, Fault.SITE)


@dataclass(frozen=True)
class JobGroup:
    """Jobs of a task that share state, site and error."""

    state: JobState
    site: str
    error_code: int | None
    n: int
    last_claim: float


def tally(groups: Sequence[JobGroup]) -> Tally:
    """What the groups come to."""
    live = finished = 0
    by_site: dict[str, int] = {}
    failures: dict[int | None, int] = {}
    for group in groups:
        if group.state == JobState.FAILED:
            failures[group.error_code] = failures.get(group.error_code, 0) + group.n
            continue
        if group.state in (JobState.CANCELLED, JobState.CLOSED):
            continue
        if group.state == JobState.FINISHED:
            finished += group.n
        else:
            live += group.n
        by_site[group.site] = by_site.get(group.site, 0) + group.n
    return Tally(live, finished, by_site, failures, max((group.last_claim for group in groups), default=0.0))


def wanted(spec: StageSpec, n_units: int, knobs: Knobs) -> bool:
    """Whether a task of so many units starts with scouts: not when it is small, merges, or was told not to."""
    if not spec.scouts or not knobs.scout_count or spec.merge is not None:
        return False
    return n_units > knobs.scout_small_jobs * (spec.files_per_job or 1)


def scouting_of(
    state: TaskState,
    spec: StageSpec,
    n_units: int,
    scouts_left: int | None,
    full_sites: str | None,
    knobs: Knobs,
) -> Scouting | None:
    """How a task that may be claimed from is held back for its scouts; None when it is not.

    ``scouts_left`` and ``full_sites`` (names with commas between) are columns of its row; a task that was not looked at
    yet has neither.
    """
    if state not in (TaskState.READY, TaskState.SCOUTING) or scouts_left == NO_SCOUTS:
        return None
    if scouts_left is None:
        if state == TaskState.READY and not wanted(spec, n_units, knobs):
            return None
        return Scouting(knobs.scout_count)
    return Scouting(max(0, scouts_left), frozenset(full_sites.split(",")) if full_sites else frozenset())


def refusal(scouting: Scouting | None, site: str) -> str:
    """Why a site gets no scout of a task now; empty when it may have one, or the task does not scout."""
    if scouting is None:
        return ""
    if scouting.left <= 0:
        return "its scouts are out: the rest waits until they have measured what it needs"
    if site in scouting.full_sites:
        return f"enough of its scouts are at {site}: other sites may have the next ones for a while"
    return ""


def boosted(priority: int, scouting: Scouting | None, knobs: Knobs) -> int:
    """The priority that a task's jobs are matched with."""
    return priority if scouting is None else priority + knobs.scout_boost


def jobs_wanted(jobs: int, scouting: Scouting | None) -> int:
    """Of ``jobs`` that a task's ready units would make, those that may be claimed now: demand asks for no more."""
    return jobs if scouting is None else min(jobs, scouting.left)


def left(tally: Tally, knobs: Knobs) -> int:
    """Scouts that may still be claimed: failed ones are made up for."""
    return max(0, knobs.scout_count - tally.live - tally.finished)


def full_sites(tally: Tally, n_sites: int, now: float, knobs: Knobs) -> list[str]:
    """Sites that have enough scouts, while there are others (``n_sites`` in all) and they take them."""
    if n_sites < 2 or not tally.last_claim or now - tally.last_claim >= knobs.scout_spread_wait_s:
        return []
    return sorted(site for site, n in tally.by_site.items() if n >= knobs.scout_per_site)


def enough_finished(tally: Tally, knobs: Knobs) -> bool:
    """Whether so many scouts have finished that the task can be measured."""
    return tally.finished >= max(1, math.ceil(knobs.scout_count * knobs.scout_finished_percent / 100.0))


def failure(tally: Tally, knobs: Knobs) -> str:
    """Why a task is exhausted for its scouts' failures; empty while it is not."""
    if tally.failed < knobs.scout_failures:
        return ""
    code, n = max(
        ((code, n) for code, n in tally.failures.items() if _tells(code)), key=lambda each: (each[1], each[0] or 0)
    )
    return (
        f"{tally.failed} scouts failed and {tally.finished} finished; error {code} of {n} of them: look at their logs"
    )


@dataclass(frozen=True)
class Problem:
    """Something that a person must look at: its kind, and the words."""

    kind: str
    words: str


def problems(samples: Sequence[Sample], measured: Measured, spec: StageSpec, knobs: Knobs) -> list[Problem]:
    """What the jobs show that a person must look at, the most pressing first.

    A problem that was told before (``measured.problems``) is not told again: whoever resumed the task has seen it.
    """
    checks = (_leak, _memory, _cpu_time, _short, _idle, _busy)
    found = (check(samples, measured, spec, knobs) for check in checks)
    return [each for each in found if each is not None and each.kind not in measured.problems]


def _leak(samples: Sequence[Sample], _: Measured, __: StageSpec, knobs: Knobs) -> Problem | None:
    judged = [each for each in samples if each.wall_s >= knobs.scout_judge_s and each.leak_kb_s]
    leaking = [each for each in judged if each.leak_kb_s / each.cores > knobs.scout_leak_kb_s]
    if not knobs.scout_leak_kb_s or 2 * len(leaking) <= len(judged):
        return None
    worst = max(each.leak_kb_s / each.cores for each in leaking)
    return Problem(
        "memory_leak", f"memory leak: {len(leaking)} of {len(judged)} jobs grow by up to {worst:.0f} kB/s a core"
    )


def _memory(_: Sequence[Sample], measured: Measured, spec: StageSpec, knobs: Knobs) -> Problem | None:
    if measured.memory_per_core_mb is None:
        return None
    found = measured.memory_per_core_mb * spec.requirements.cores + knobs.sizing_base_memory_mb
    return _wrong("memory", "MiB of memory", found, spec.requirements.memory_mb, Fixed.MEMORY in spec.fixed, knobs)


def _cpu_time(_: Sequence[Sample], measured: Measured, spec: StageSpec, knobs: Knobs) -> Problem | None:
    if not measured.cpu_per_event or not spec.cpu_per_event:
        return None
    fixed = Fixed.CPU_TIME in spec.fixed
    return _wrong("cpu_time", "HS23 s of CPU time an event", measured.cpu_per_event, spec.cpu_per_event, fixed, knobs)


def _wrong(kind: str, what: str, found: float, asked: float, fixed: bool, knobs: Knobs) -> Problem | None:
    """A figure far above what was asked for; far below only where it is fixed, as else the measured one is taken."""
    factor = knobs.scout_wrong_factor
    if not factor or not asked:
        return None
    if found > factor * asked or (fixed and found * factor < asked):
        return Problem(kind, f"wrong requirements: the jobs need {found:.4g} {what}, the task says {asked:.4g}")
    return None


def _short(samples: Sequence[Sample], _: Measured, spec: StageSpec, knobs: Knobs) -> Problem | None:
    """Only where the user has set the size of jobs: else they are cut to a better one."""
    if spec.files_per_job is None and spec.events_per_job is None and spec.mb_per_job is None:
        return None
    known = [each.wall_s for each in samples if each.wall_s]
    short = [wall_s for wall_s in known if wall_s < knobs.scout_short_s]
    if not short or len(short) * 100.0 < knobs.scout_short_percent * len(known):
        return None
    return Problem(
        "short_jobs",
        f"very short jobs: {len(short)} of {len(known)} ran for less than {knobs.scout_short_s:g} s; give them more units",
    )


def _idle(samples: Sequence[Sample], _: Measured, __: StageSpec, knobs: Knobs) -> Problem | None:
    use = _median_use(samples, knobs)
    if use is None or use * 100.0 >= knobs.scout_idle_percent:
        return None
    return Problem("idle_cpus", f"idle CPUs: the jobs use {use:.1%} of their cores")


def _busy(samples: Sequence[Sample], _: Measured, __: StageSpec, knobs: Knobs) -> Problem | None:
    use = _median_use(samples, knobs)
    if not knobs.scout_busy_percent or use is None or use * 100.0 <= knobs.scout_busy_percent:
        return None
    return Problem("busy_cpus", f"CPUs that were not asked for: the jobs use {use:.1%} of their cores; ask for more")


def _median_use(samples: Sequence[Sample], knobs: Knobs) -> float | None:
    known = sorted(each.use for each in samples if each.use is not None and each.wall_s >= knobs.scout_judge_s)
    return known[len(known) // 2] if known else None
