"""Watching running payloads: light looks at their processes and files, and the limits that they must keep.

The pilot looks on a timer, at all jobs at the same moments, so that they share one pass over /proc. Nothing here waits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional

from common.wire import Gpu
from pilot.probe.gpu_meter import GpuMeter
from pilot.watch.cgroup import CgroupMemory, own_cgroup, read_memory
from pilot.watch.files import FolderLook, FolderUse, file_size, free_bytes
from pilot.watch.gaps import Clocks, GapWatch
from pilot.watch.leak import MemoryTrend
from pilot.watch.limits import Breach, JobLimits, JobMetrics, check_limits, is_near
from pilot.watch.looping import Quiet
from pilot.watch.memory import MemoryUse, TreeMemory
from pilot.watch.processes import InOut, ProcessGone, ProcessSeen, ProcessTable, in_out, read_process, tree_of
from pilot.watch.scratch import Scratch

MB = 1024 * 1024
NEAR_PART = 4
"""Near a limit, a job is looked at so many times as often."""
SOONEST_S = 1.0
FOREVER_S = float("inf")


@dataclass(frozen=True)
class Look:
    """What a look at a job gave: ``notes`` are for its log, ``again_s`` is when to look again."""

    metrics: JobMetrics
    breaches: list[Breach]
    notes: list[str]
    again_s: float


class Watch:
    """What the watchers of all jobs of a pilot share: one table of processes, one account of the free space, one rhythm.

    All looks are made on one thread.
    """

    def __init__(self, every_s: float = 5.0, scratch_reserve_mb: int = 0, clocks: Optional[Clocks] = None) -> None:
        self.every_s = every_s
        self.clocks = clocks or Clocks()
        self.table = ProcessTable(self.clocks.steady)
        self.scratch = Scratch(scratch_reserve_mb)

    def again_s(self, near: bool) -> float:
        """Seconds to the next look: at the next beat that all jobs keep to, or at a fraction of one."""
        beat_s = max(min(SOONEST_S, self.every_s), self.every_s / NEAR_PART) if near else self.every_s
        now = self.clocks.steady()
        wait_s = math.floor(now / beat_s + 1) * beat_s - now
        # What is left of a beat that was just missed is no time to look again after.
        return wait_s if wait_s > beat_s / 4 else wait_s + beat_s


class Watcher:
    """Measures one job: the process tree below its supervisor, its folder, and its log files. Wall time, quiet time and the growth of memory are those that
    could be seen: time in which the machine stood still counts for none of them.
    """

    def __init__(
        self,
        supervisor_pid: int,
        job_dir: Path,
        limits: JobLimits,
        watch: Optional[Watch] = None,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        self._watch = watch or Watch()
        self._job_dir = job_dir
        self._limits = limits
        self._root = supervisor_pid
        self._clock = self._watch.clocks.steady
        self._began = self._clock()
        self._missing_s = 0.0
        self._planned_s = FOREVER_S
        self._gaps = GapWatch(self._watch.clocks)
        self._folder = FolderLook(job_dir, self._clock, limits.idle_files)
        self._memory = TreeMemory()
        self._cgroup: Optional[Path] = None
        self._trend = MemoryTrend()
        self._gpus = GpuMeter(gpus, self._clock)
        self._quiet = Quiet(0.0, limits.looping_s or FOREVER_S)
        self._last = JobMetrics()
        self._watch.table.add(supervisor_pid)

    def close(self) -> None:
        """The job is over and its folder is gone."""
        self._gpus.close()
        self._watch.table.remove(self._root)
        self._watch.scratch.leave(self)

    def touched(self) -> None:
        """The payload did something that leaves no trace in its folder."""
        self._quiet.touched(self._seen_s(), self._last.cpu_s)

    def processes(self) -> list[ProcessSeen]:
        """The payload's living processes, seen now. From any thread."""
        return tree_of(self._root)

    def seconds_left(self) -> Optional[float]:
        """What is left of the wall time; None when it is not limited."""
        return None if self._limits.wall_s is None else self._limits.wall_s - self._seen_s()

    def look(self, at_once: bool = False) -> Look:
        """Measures once and checks the limits. Of a payload that has ended, only files and times are seen. ``at_once``:
        walk through its folder in any case."""
        notes = self._account_for_gaps()
        processes = self._watch.table.tree(self._root)
        free = free_bytes(self._job_dir)
        free_mb = None if free is None else free / MB
        low = free_mb is not None and free_mb < 2 * self._watch.scratch.reserve_mb
        files = self._folder.look(at_once or low)
        metrics = self._measure(processes, files, free_mb)
        self._last = metrics
        breaches = check_limits(metrics, self._limits)
        if self._watch.scratch.reserve_mb:
            found = self._watch.scratch.look(self, metrics.work_dir_mb, self._limits.disk_mb, free_mb)
            breaches += [] if found is None else [found]
        near = low or is_near(metrics, self._limits, 2 * self._watch.every_s)
        again_s = self._watch.again_s(near)
        self._planned_s = again_s
        return Look(metrics, breaches, notes, again_s)

    def _seen_s(self) -> float:
        return self._clock() - self._began - self._missing_s

    def _account_for_gaps(self) -> list[str]:
        gap = self._gaps.look(self._planned_s)
        self._missing_s += gap.missing_s
        return [gap.words] if gap.words else []

    def _logs(self) -> list[Path]:
        """Where the payload, and the processes around it, write their output."""
        return [self._job_dir / "stdout", self._job_dir / "stderr", *self._job_dir.glob("process-*.std*")]

    def _measure(self, processes: Sequence[ProcessSeen], files: FolderUse, free_mb: Optional[float]) -> JobMetrics:
        wall_s = self._seen_s()
        use = self._memory_of(processes)
        if processes:
            self._trend.add(wall_s, use.counted_mb)
        cpu_s = max(self._last.cpu_s, self._cpu_s(processes))
        moved = self._moved(processes)
        gpus = self._gpus.look([seen.pid for seen in processes])
        return JobMetrics(
            memory_mb=use.counted_mb,
            rss_mb=use.rss_mb,
            pss_mb=use.pss_mb,
            swap_mb=use.swap_mb,
            work_dir_mb=files.size / MB,
            stdout_mb=max(map(file_size, self._logs())) / MB,
            free_mb=free_mb,
            cpu_s=cpu_s,
            wall_s=wall_s,
            processes=len(processes),
            leak_kb_s=self._trend.slope_kb_s(),
            read_bytes=max(self._last.read_bytes, moved.disk_read),
            written_bytes=max(self._last.written_bytes, moved.disk_written),
            quiet_s=self._quiet.look(wall_s, files, cpu_s) if self._limits.looping_s else 0.0,
            gpu_percent=gpus.percent,
            gpu_memory_mb=gpus.memory_mb,
        )

    def _memory_of(self, processes: Sequence[ProcessSeen]) -> MemoryUse:
        """From the job's own cgroup where it has one, else from its processes."""
        table = self._watch.table
        found = self._from_cgroup(processes)
        limit_mb = None if found is not None else self._limits.memory_mb
        use = self._memory.look(processes, limit_mb, self._clock(), table.swaps)
        if found is None:
            return use
        return replace(use, swap_mb=found.swap_mb, pss_mb=found.used_mb + found.swap_mb)

    def _from_cgroup(self, processes: Sequence[ProcessSeen]) -> Optional[CgroupMemory]:
        if self._cgroup is None and processes:
            self._cgroup = own_cgroup(processes[0].pid, os.getpid())
        return read_memory(self._cgroup) if self._cgroup is not None else None

    def _cpu_s(self, processes: Sequence[ProcessSeen]) -> float:
        """CPU seconds of the living processes and of the dead ones that they and the supervisor have waited for."""
        living = sum(seen.cpu_s + seen.reaped_cpu_s for seen in processes)
        try:
            return living + read_process(self._root).reaped_cpu_s
        except ProcessGone:
            return living

    def _moved(self, processes: Sequence[ProcessSeen]) -> InOut:
        """What the same processes read and wrote; those of other users, as set-uid programs are, the kernel does not say."""
        total = InOut()
        for pid in (self._root, *(seen.pid for seen in processes)):
            try:
                total += in_out(pid)
            except ProcessGone:
                continue
        return total
