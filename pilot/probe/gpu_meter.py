"""What one job uses of its GPUs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.wire import Gpu
from pilot.probe import amd, intel, nvml

logger = logging.getLogger(__name__)

US = 1_000_000
NS = 1_000_000_000


@dataclass(frozen=True)
class GpuUse:
    """``percent``: how busy the job's GPUs were, the mean over them and over time (100: all of them, always); zero where
    no driver says. ``memory_mb``: the most of their memory that was seen used, in MiB, of all together."""

    percent: float = 0.0
    memory_mb: float = 0.0


class GpuMeter:
    """Measures the GPUs of one job. Without any it does nothing and loads nothing. For one thread at a time.

    ``root`` is ``/`` but for tests; ``clock`` gives seconds.
    """

    def __init__(
        self, gpus: Sequence[Gpu], clock: Callable[[], float] = time.monotonic, root: Path = Path("/")
    ) -> None:
        self._gpus = list(gpus)
        self._clock = clock
        self._root = root
        self._began = self._last = clock()
        self._library: Optional[nvml.Nvml] = None
        self._newest: dict[str, int] = {}
        self._busy_ns: dict[str, int] = {}
        self._busy_s = 0.0
        self._known_s = 0.0
        self._most_mb = 0.0

    def look(self, pids: Collection[int]) -> GpuUse:
        """Measure once; ``pids`` are the processes of the job."""
        if not self._gpus:
            return GpuUse()
        now = self._clock()
        passed_s, self._last = now - self._last, now
        percents: list[float] = []
        memory_mb = 0.0
        for gpu in self._gpus:
            percent, used_mb = self._one(gpu, pids, passed_s)
            memory_mb += used_mb
            if percent is not None:
                percents.append(percent)
        self._most_mb = max(self._most_mb, memory_mb)
        if percents and passed_s > 0:
            self._busy_s += passed_s * sum(percents) / len(percents)
            self._known_s += passed_s
        return GpuUse(round(self._busy_s / self._known_s, 1) if self._known_s else 0.0, round(self._most_mb, 1))

    def close(self) -> None:
        """The job is over."""
        library, self._library = self._library, None
        if library is not None:
            library.close()

    def _one(self, gpu: Gpu, pids: Collection[int], passed_s: float) -> tuple[Optional[float], float]:
        """Percent of the time since the last look (None: not known), and MiB."""
        if gpu.vendor == "amd":
            used = amd.use(gpu, pids, self._root)
            return used if used is not None else (None, 0.0)
        if gpu.vendor == "intel":
            busy_ns, memory_mb = intel.use(gpu, pids, self._root)
            before_ns = self._busy_ns.get(gpu.pci, 0)
            if busy_ns is None or passed_s <= 0:
                return None, memory_mb
            self._busy_ns[gpu.pci] = busy_ns
            return min(100.0, max(0, busy_ns - before_ns) / NS / passed_s * 100), memory_mb
        return self._nvidia(gpu, pids)

    def _nvidia(self, gpu: Gpu, pids: Collection[int]) -> tuple[Optional[float], float]:
        if self._library is None:
            if not nvml.installed():
                return None, 0.0
            try:
                self._library = nvml.Nvml()
            except OSError as error:
                logger.info("the use of GPU %s is not known: %s", gpu.uuid, error)
                return None, 0.0
        since_us = self._newest.get(gpu.uuid) or int((time.time() - (self._clock() - self._began)) * US)
        measured = self._library.use(gpu.uuid, pids, since_us)
        if measured is None:
            return None, 0.0
        percent, memory_mb, self._newest[gpu.uuid] = measured
        return percent, memory_mb
