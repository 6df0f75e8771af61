"""The truth of this slot: for each resource the least of what all sources say (DESIGN 5.13)."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from common.errors import PilotageError
from common.wire import Gpu
from pilot.container.apptainer import SYSTEM_PATH, find_apptainer
from pilot.probe import cgroup
from pilot.probe.batch import Figure, batch_figures
from pilot.probe.gpu import find_gpus

logger = logging.getLogger(__name__)

MB = 1024 * 1024
APPTAINER_TIMEOUT_S = 30


@dataclass(frozen=True)
class SlotLimits:
    """What the queue allows a slot; None: it says nothing."""

    cores: Optional[int] = None
    memory_mb: Optional[int] = None
    disk_mb: Optional[int] = None


@dataclass(frozen=True)
class SlotProbe:
    """What this slot has. ``figures`` are all sources' words, so that a log can say where a value came from."""

    cores: int
    memory_mb: int
    disk_mb: int
    gpus: list[Gpu] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def explain(self) -> str:
        """All figures in one line, for the log."""
        return ", ".join(f"{figure.resource} {figure.value} ({figure.source})" for figure in self.figures)


def probe_slot(
    work_dir: Path,
    limits: SlotLimits,
    environment: Mapping[str, str],
    root: Path = Path("/"),
    apptainer: Optional[str] = None,
) -> SlotProbe:
    """Looks at everything that may limit this slot.

    ``environment`` is the pilot's own (batch system, visible GPUs); ``root`` is ``/`` but for tests; ``apptainer`` a
    configured path. Takes as long as ``nvidia-smi`` and ``apptainer version`` do; both are asked once.
    """
    figures = [
        *_queue_figures(limits),
        Figure("cores", "CPU affinity", len(os.sched_getaffinity(0))),
        *_cgroup_figures(root),
        *_memory_figures(root),
        Figure("disk_mb", f"free on {work_dir}", shutil.disk_usage(work_dir).free // MB),
        *batch_figures(environment),
    ]
    return SlotProbe(
        cores=max(1, _least(figures, "cores")),
        memory_mb=_least(figures, "memory_mb"),
        disk_mb=_least(figures, "disk_mb"),
        gpus=find_gpus(environment),
        tags=platform_tags(apptainer, environment.get("PATH", SYSTEM_PATH)),
        figures=figures,
    )


def platform_tags(apptainer: Optional[str], path: str) -> list[str]:
    """``linux``, the architecture (``x86_64``, ``aarch64``), and ``apptainer`` when it can be executed."""
    tags = [platform.system().lower(), platform.machine()]
    try:
        binary = find_apptainer(path, apptainer)
        subprocess.run([binary, "version"], capture_output=True, timeout=APPTAINER_TIMEOUT_S, check=True)
    except (PilotageError, OSError, subprocess.SubprocessError) as error:
        logger.info("no containers are offered: %s", error)
        return tags
    return [*tags, "apptainer"]


def _least(figures: Sequence[Figure], resource: str) -> int:
    return min((figure.value for figure in figures if figure.resource == resource), default=0)


def _queue_figures(limits: SlotLimits) -> list[Figure]:
    named = (("cores", limits.cores), ("memory_mb", limits.memory_mb), ("disk_mb", limits.disk_mb))
    return [Figure(resource, "queue", value) for resource, value in named if value is not None]


def _cgroup_figures(root: Path) -> list[Figure]:
    figures = []
    quota = cgroup.cpu_quota(root)
    if quota is not None:
        figures.append(Figure("cores", f"cgroup quota of {quota:g} cores", max(1, int(quota))))
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
