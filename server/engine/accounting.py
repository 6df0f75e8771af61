"""What a job used, and the monthly summary for APEL.

A day and a month are those of the job's end, in UTC (as APEL counts). Wall time is the pilot's measure, and never more
than the time between claim and end by the server's own clock: what a pilot says of itself bounds nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone

from common.states import JobState
from common.wire import AccountingRow, Metrics

DAY_S = 86400
HOUR_S = 3600.0
JOULES_PER_KWH = 3.6e6
MOST_THREADS = 1024
"""A job's CPU time is at the most so many times its wall time, whatever its pilot says."""
MOST_WATTS = 100_000.0
EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class EndedJob:
    """What accounting needs of a job that has ended. ``confirmed`` is when its pilot was done with it, if it said so."""

    id: int
    task_id: int
    queue: str
    site: str
    cores: int
    state: JobState
    claimed: float
    started: float | None
    ended: float
    confirmed: float | None
    metrics: Metrics | None
    owner: str
    group: str


@dataclass(frozen=True)
class Key:
    """What use is summed by: days since the epoch, and where and for whom."""

    day: int
    queue: str
    task_id: int
    cores: int
    site: str
    owner: str
    group: str


@dataclass
class Usage:
    """What some jobs used: seconds, HS23-seconds (× cores × core power), joules; when the first and the last ended."""

    jobs_ok: int = 0
    jobs_failed: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    wall_hs23_s: float = 0.0
    cpu_hs23_s: float = 0.0
    energy_j: float = 0.0
    first_end: float = float("inf")
    last_end: float = 0.0

    def add(self, other: Usage) -> None:
        """Sum up."""
        # Each by its name: once for every job that has ended, and going over the fields takes five times as long.
        self.jobs_ok += other.jobs_ok
        self.jobs_failed += other.jobs_failed
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.wall_hs23_s += other.wall_hs23_s
        self.cpu_hs23_s += other.cpu_hs23_s
        self.energy_j += other.energy_j
        self.first_end = min(self.first_end, other.first_end)
        self.last_end = max(self.last_end, other.last_end)


def usage_of(job: EndedJob, core_power: float) -> Usage:
    """What one job used, at a core power in HS23. A job that never started used nothing."""
    measured = job.metrics or Metrics()
    end = job.confirmed if job.confirmed is not None else job.ended
    slot_s = max(0.0, end - job.claimed)
    ran_s = max(0.0, end - job.started) if job.started is not None and job.state == JobState.FINISHED else 0.0
    wall_s = min(slot_s, measured.wall_s if measured.wall_s > 0 else ran_s)
    cpu_s = min(max(0.0, measured.cpu_s), MOST_THREADS * wall_s)
    ok = job.state == JobState.FINISHED
    return Usage(
        jobs_ok=int(ok),
        jobs_failed=int(not ok),
        wall_s=wall_s,
        cpu_s=cpu_s,
        wall_hs23_s=wall_s * job.cores * core_power,
        cpu_hs23_s=cpu_s * core_power,
        energy_j=min(max(0.0, measured.energy_j), MOST_WATTS * wall_s),
        first_end=end,
        last_end=end,
    )


def key_of(job: EndedJob) -> Key:
    """Where a job's use is summed up."""
    end = job.confirmed if job.confirmed is not None else job.ended
    return Key(int(end // DAY_S), job.queue, job.task_id, job.cores, job.site, job.owner, job.group)


def sum_up(jobs: Iterable[tuple[EndedJob, float]]) -> dict[Key, Usage]:
    """Jobs, each with its core power, summed by key."""
    found: dict[Key, Usage] = {}
    for job, core_power in jobs:
        found.setdefault(key_of(job), Usage()).add(usage_of(job, core_power))
    return found


def day_number(text: str) -> int:
    """Days since the epoch of a date like 2026-11-21.

    Raises:
        ValueError: it is none.
    """
    return (date.fromisoformat(text) - EPOCH).days


def day_words(day: int) -> str:
    """The date of a day."""
    return (EPOCH + timedelta(days=day)).isoformat()


def month_days(month: str) -> tuple[int, int]:
    """The first day of a month like 2026-11, and the first of the next, in days since the epoch.

    Raises:
        ValueError: it is no month.
    """
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=timezone.utc).date()
    if first.strftime("%Y-%m") != month:
        raise ValueError(f"{month!r} is no month")
    following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return (first - EPOCH).days, (following - EPOCH).days


CSV_NUMBERS = (
    "jobs_ok", "jobs_failed", "wall_core_h", "cpu_h", "wall_hs23_h", "cpu_hs23_h", "energy_kwh",
)  # fmt: skip


def to_csv(rows: Sequence[AccountingRow], by: Sequence[str]) -> str:
    """The rows as CSV with a heading. A text that a spreadsheet would take for a formula is led by an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*by, *CSV_NUMBERS])
    for row in rows:
        writer.writerow([*(_harmless(row.key[word]) for word in by), *(getattr(row, name) for name in CSV_NUMBERS)])
    return text.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


@dataclass(frozen=True)
class ApelRecord:
    """A month's use of one site by one user, group and number of cores."""

    site: str
    owner: str
    group: str
    cores: int
    usage: Usage


def apel_message(month: str, submit_host: str, records: Sequence[ApelRecord]) -> str:
    """APEL's normalised summary message (version 0.4): durations in seconds, not multiplied by the processors.

    The normalised ones are, as APEL has it, durations × the benchmark of a core; it multiplies by ``Processors`` itself.
    """
    year, _, number = month.partition("-")
    lines = ["APEL-normalised-summary-message: v0.4"]
    for each in records:
        used = each.usage
        values = {
            "Site": each.site,
            "Month": str(int(number)),
            "Year": year,
            "GlobalUserName": each.owner,
            "VO": each.group or "None",
            "SubmitHost": submit_host,
            "InfrastructureType": "grid",
            "Processors": str(each.cores),
            "EarliestEndTime": str(int(used.first_end)),
            "LatestEndTime": str(int(used.last_end)),
            "WallDuration": str(round(used.wall_s)),
            "CpuDuration": str(round(used.cpu_s)),
            "NormalisedWallDuration": f"{{HEPscore23: {round(used.wall_hs23_s / max(1, each.cores))}}}",
            "NormalisedCpuDuration": f"{{HEPscore23: {round(used.cpu_hs23_s)}}}",
            "NumberOfJobs": str(used.jobs_ok + used.jobs_failed),
        }
        lines += [f"{name}: {_one_line(value)}" for name, value in values.items()]
        lines.append("%%")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())
