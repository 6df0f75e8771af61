"""The truth of this slot: for each resource the least of what all sources say (DESIGN 5.13)."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from common.errors import PilotageError
from common.wire import CONTAINER_TAG, Gpu
from pilot.container.apptainer import SYSTEM_PATH, find_apptainer
from pilot.container.host import Level, check_isolation
from pilot.probe import cgroup
from pilot.probe.batch import batch_figures
from pilot.probe.figure import Figure
from pilot.probe.gpu import find_gpus
from pilot.probe.node import this_cpu_level

logger = logging.getLogger(__name__)

MB = 1024 * 1024
RESOURCES = ("cores", "memory_mb", "disk_mb", "gpus", "wall_s")


@dataclass(frozen=True)
class SlotLimits:
    """What the queue allows a slot; None: it says nothing."""

    cores: Optional[int] = None
    memory_mb: Optional[int] = None
    disk_mb: Optional[int] = None


@dataclass(frozen=True)
class SlotProbe:
    """What this slot has. ``wall_s`` is what the batch system says is left, zero when it says nothing. ``figures`` are
    all sources' words, so that a log can say where a value came from."""

    cores: int
    memory_mb: int
    disk_mb: int
    gpus: list[Gpu] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    wall_s: int = 0

    def explain(self) -> str:
        """All figures in one line, for the log: those of each resource together, the one that counts first."""
        ranks = {name: place for place, name in enumerate(RESOURCES)}
        ordered = sorted(self.figures, key=lambda figure: (ranks.get(figure.resource, len(ranks)), figure.value))
        return ", ".join(str(figure) for figure in ordered)


def probe_slot(
    work_dir: Path,
    limits: SlotLimits,
    environment: Mapping[str, str],
    root: Path = Path("/"),
    apptainer: Optional[str] = None,
    now: Optional[float] = None,
) -> SlotProbe:
    """Looks at everything that may limit this slot.

    ``environment`` is the pilot's own (batch system, visible GPUs); ``root`` is ``/`` but for tests; ``apptainer`` a
    configured path; ``now`` the time in seconds since the epoch. Takes as long as the GPUs' driver, ``squeue`` and
    ``apptainer version`` do where they are; each is asked once.
    """
    figures = [
        *_queue_figures(limits),
        Figure("cores", "CPU affinity", len(os.sched_getaffinity(0))),
        *_cgroup_figures(root),
        *_memory_figures(root),
        Figure("disk_mb", f"free on {work_dir}", shutil.disk_usage(work_dir).free // MB),
        *batch_figures(environment, time.time() if now is None else now),
    ]
    gpus = find_gpus(environment, root)
    if any(figure.resource == "gpus" for figure in figures):
        gpus = gpus[: int(min(figure.value for figure in figures if figure.resource == "gpus"))]
    return SlotProbe(
        cores=_least(figures, "cores"),
        memory_mb=_least(figures, "memory_mb"),
        disk_mb=_least(figures, "disk_mb"),
        gpus=gpus,
        tags=platform_tags(apptainer, environment.get("PATH", SYSTEM_PATH), root),
        figures=figures,
        wall_s=_least(figures, "wall_s"),
    )


def platform_tags(apptainer: Optional[str], path: str, root: Path = Path("/")) -> list[str]:
    """``linux``, the architecture (``x86_64``, ``aarch64``), the CPU's level (``x86-64-v3``), and ``apptainer`` when a
    program runs in a container of it."""
    tags = [platform.system().lower(), platform.machine()]
    level = this_cpu_level(root)
    if level:
        tags.append(level)
    try:
        binary = find_apptainer(path, apptainer)
    except PilotageError as error:
        logger.info("no containers are offered: %s", error)
        return tags
    faults = [finding for finding in check_isolation(binary) if finding.level is Level.ERROR]
    for fault in faults:
        logger.warning("no containers are offered: %s: %s: %s", fault.name, fault.detail, fault.remedy)
    return tags if faults else [*tags, CONTAINER_TAG]


def _least(figures: Sequence[Figure], resource: str) -> int:
    """Zero when no source says anything; otherwise at least one, as zero would read "no limit": of a full disk, too."""
    values = [figure.value for figure in figures if figure.resource == resource]
    return max(1, int(min(values))) if values else 0


def _queue_figures(limits: SlotLimits) -> list[Figure]:
    named = (("cores", limits.cores), ("memory_mb", limits.memory_mb), ("disk_mb", limits.disk_mb))
    return [Figure(resource, "queue", value) for resource, value in named if value is not None]


def _cgroup_figures(root: Path) -> list[Figure]:
    figures = []
    quota = cgroup.cpu_quota(root)
    if quota is not None:
        figures.append(Figure("cores", f"cgroup quota of {quota:g} cores", max(1, int(quota))))
    cpus = cgroup.cpuset_cores(root)
    if cpus is not None:
        figures.append(Figure("cores", "cgroup CPU set", cpus))
    memory = cgroup.memory_limit_mb(root)
    if memory is not None:
        figures.append(Figure("memory_mb", "cgroup", memory))
    return figures


def _memory_figures(root: Path) -> list[Figure]:
    try:
        text = (root / "proc/meminfo").read_text("ascii", "replace")
    except OSError:
        return []
    found = re.search(r"^MemTotal:\s+(\d+) kB", text, re.MULTILINE)
    return [Figure("memory_mb", "MemTotal", int(found.group(1)) // 1024)] if found else []
