"""Watching a running payload: one light look at its processes and files, and the limits that they must keep.

The pilot looks on a timer. Nothing here waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import psutil

from common.errors import ErrorCode
from pilot.watch.leak import MemoryTrend

MB = 1024 * 1024


@dataclass(frozen=True)
class JobLimits:
    """What a job may use; None: no limit. Wall time in seconds, the others in MB (2**20 bytes)."""

    memory_mb: Optional[int] = None
    disk_mb: Optional[int] = None
    stdout_mb: Optional[int] = None
    wall_s: Optional[float] = None


@dataclass(frozen=True)
class JobMetrics:
    """What a job uses now: ``memory_mb`` of all its processes, ``work_dir_mb`` on disk, ``stdout_mb`` of the larger of
    its two log files, ``cpu_s`` and ``wall_s`` since its start, the number of its processes, and ``leak_kb_s``, by which
    its memory grows."""

    memory_mb: float = 0.0
    work_dir_mb: float = 0.0
    stdout_mb: float = 0.0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    processes: int = 0
    leak_kb_s: float = 0.0


@dataclass(frozen=True)
class Breach:
    """A limit that was passed: its name in :class:`JobLimits`, what was measured, what was allowed, and the error."""

    limit: str
    value: float
    bound: float
    code: ErrorCode

    @property
    def words(self) -> str:
        """For the log and for the server."""
        return f"{self.limit}: {self.value:.1f}, allowed {self.bound:.1f}"


def check_limits(metrics: JobMetrics, limits: JobLimits) -> list[Breach]:
    """The limits that are passed, the most pressing first: memory, disk, stdout, wall time."""
    rules = (
        ("memory_mb", metrics.memory_mb, limits.memory_mb, ErrorCode.MEMORY_EXCEEDED),
        ("disk_mb", metrics.work_dir_mb, limits.disk_mb, ErrorCode.WORK_DIR_TOO_LARGE),
        ("stdout_mb", metrics.stdout_mb, limits.stdout_mb, ErrorCode.STDOUT_TOO_BIG),
        ("wall_s", metrics.wall_s, limits.wall_s, ErrorCode.WALL_TIME_REACHED),
    )
    return [
        Breach(name, value, bound, code) for name, value, bound, code in rules if bound is not None and value > bound
    ]


class Watcher:
    """Measures one job: the process tree below its supervisor, its folder, and its log files."""

    def __init__(
        self,
        supervisor_pid: int,
        job_dir: Path,
        limits: JobLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pid = supervisor_pid
        self._job_dir = job_dir
        self._limits = limits
        self._clock = clock
        self._began = clock()
        self._cpu_s = 0.0
        self._trend = MemoryTrend()

    def look(self) -> tuple[JobMetrics, list[Breach]]:
        """Measures once and checks the limits. Of a payload that has ended, only files and times are seen."""
        processes = _tree(self._pid)
        self._cpu_s = max(self._cpu_s, _cpu_s(self._pid, processes))
        memory_mb, wall_s = self._memory_mb(processes), self._clock() - self._began
        if processes:
            self._trend.add(wall_s, memory_mb)
        metrics = JobMetrics(
            memory_mb=memory_mb,
            work_dir_mb=disk_usage(self._job_dir) / MB,
            stdout_mb=max(_size(self._job_dir / "stdout"), _size(self._job_dir / "stderr")) / MB,
            cpu_s=self._cpu_s,
            wall_s=wall_s,
            processes=len(processes),
            leak_kb_s=self._trend.slope_kb_s(),
        )
        return metrics, check_limits(metrics, self._limits)

    def _memory_mb(self, processes: list[psutil.Process]) -> float:
        """The sum of resident memory. Processes that share pages would be counted too high by it, so that the costlier
        proportional sum (PSS) is taken when the first passes the limit."""
        resident = sum(_rss(process) for process in processes) / MB
        if self._limits.memory_mb is None or resident <= self._limits.memory_mb:
            return resident
        return sum(_pss(process) for process in processes) / MB


def disk_usage(folder: Path) -> int:
    """Bytes that a folder occupies on disk: links are not followed, a file with several names counts once, holes in
    files do not count. What vanishes meanwhile does not count."""
    total = 0
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = _lstat(entry)
                    if status is None or (status.st_dev, status.st_ino) in seen:
                        continue
                    if status.st_nlink > 1:
                        seen.add((status.st_dev, status.st_ino))
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:
            continue  # removed, or made unreadable, by the payload
    return total


def _lstat(entry: os.DirEntry[str]) -> Optional[os.stat_result]:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def _tree(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return _rss(process)
    except psutil.Error:
        return 0


def _cpu_s(supervisor_pid: int, processes: list[psutil.Process]) -> float:
    """CPU seconds of the living processes and of the dead ones that they and the supervisor have reaped."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    try:
        reaped = psutil.Process(supervisor_pid).cpu_times()
    except psutil.Error:
        return total
    return total + float(reaped.children_user + reaped.children_system)
