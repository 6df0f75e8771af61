"""What a job may use, what it uses, and which limits it has passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from common.errors import ErrorCode

NEAR = 0.8
"""From this part of a limit on, a job is looked at more often."""


@dataclass(frozen=True)
class JobLimits:
    """What a job may use; None: no limit. Wall time in seconds, the others in MB (2**20 bytes).

    ``processes`` at one time. ``looping_s``: so long nothing may happen; see :mod:`pilot.watch.looping`; files whose name
    matches a pattern of ``idle_files`` may change meanwhile.
    """

    memory_mb: Optional[int] = None
    disk_mb: Optional[int] = None
    stdout_mb: Optional[int] = None
    wall_s: Optional[float] = None
    processes: Optional[int] = None
    looping_s: Optional[float] = None
    idle_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobMetrics:
    """What a job uses now.

    Memory of all its processes in MiB: ``memory_mb`` is what counts against the limit, ``rss_mb`` the sum of what is
    resident, ``pss_mb`` with shared pages counted once (None: not known), ``swap_mb`` what is swapped out. ``work_dir_mb``
    on disk, ``stdout_mb`` of the larger of its two log files, ``free_mb`` on the file system of its folder (None: not
    known). ``cpu_s`` and ``wall_s`` since its start, without time in which the machine stood still. ``processes`` is their
    number, ``leak_kb_s`` by how much its memory grows, ``read_bytes`` and ``written_bytes`` come from and go to disks.
    ``quiet_s``: so long nothing has happened. ``gpu_percent`` is how busy its GPUs were on average, ``gpu_memory_mb`` the
    most of their memory that it used.
    """

    memory_mb: float = 0.0
    rss_mb: float = 0.0
    pss_mb: Optional[float] = None
    swap_mb: float = 0.0
    work_dir_mb: float = 0.0
    stdout_mb: float = 0.0
    free_mb: Optional[float] = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    processes: int = 0
    leak_kb_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    quiet_s: float = 0.0
    gpu_percent: float = 0.0
    gpu_memory_mb: float = 0.0


@dataclass(frozen=True)
class Breach:
    """A limit that was passed: its name in :class:`JobLimits`, what was measured, what was allowed, and the error.

    With ``floor`` the value is too small, not too large. ``why`` says more, where more is to be said.
    """

    limit: str
    value: float
    bound: float
    code: ErrorCode
    why: str = ""
    floor: bool = False

    @property
    def words(self) -> str:
        """For the log and for the server."""
        allowed = "must be at least" if self.floor else "allowed"
        words = f"{self.limit}: {self.value:.1f}, {allowed} {self.bound:.1f}"
        return f"{words} ({self.why})" if self.why else words


def check_limits(metrics: JobMetrics, limits: JobLimits) -> list[Breach]:
    """The limits that are passed, the most pressing first: memory, disk, log files, processes, wall time, quiet."""
    rules = (
        ("memory_mb", metrics.memory_mb, limits.memory_mb, ErrorCode.MEMORY_EXCEEDED),
        ("disk_mb", metrics.work_dir_mb, limits.disk_mb, ErrorCode.WORK_DIR_TOO_LARGE),
        ("stdout_mb", metrics.stdout_mb, limits.stdout_mb, ErrorCode.STDOUT_TOO_BIG),
        ("processes", float(metrics.processes), limits.processes, ErrorCode.TOO_MANY_PROCESSES),
        ("wall_s", metrics.wall_s, limits.wall_s, ErrorCode.WALL_TIME_REACHED),
        ("looping_s", metrics.quiet_s, limits.looping_s, ErrorCode.LOOPING_JOB),
    )
    return [
        Breach(name, value, bound, code) for name, value, bound, code in rules if bound is not None and value > bound
    ]


def is_near(metrics: JobMetrics, limits: JobLimits, ahead_s: float) -> bool:
    """Whether a limit may be passed soon: memory, disk or log beyond :data:`NEAR` of theirs, or the wall time over in less
    than ``ahead_s``."""
    rules = (
        (metrics.memory_mb, limits.memory_mb),
        (metrics.work_dir_mb, limits.disk_mb),
        (metrics.stdout_mb, limits.stdout_mb),
        (float(metrics.processes), limits.processes),
    )
    if limits.wall_s is not None and metrics.wall_s > limits.wall_s - ahead_s:
        return True
    return any(bound is not None and value > NEAR * bound for value, bound in rules)
