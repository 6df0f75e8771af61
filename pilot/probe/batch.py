"""What the batch system says that this slot has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One source's word on one resource (``cores``, ``memory_mb`` or ``disk_mb``)."""

    resource: str
    source: str
    value: int


_MACHINE_AD = re.compile(r"^\s*(Cpus|Memory|Disk)\s*=\s*(\d+)\s*$", re.MULTILINE | re.IGNORECASE)


def batch_figures(environment: Mapping[str, str]) -> list[Figure]:
    """What HTCondor's machine ad or Slurm's variables say; empty outside both."""
    return [*_condor(environment), *_slurm(environment)]


def _condor(environment: Mapping[str, str]) -> Iterator[Figure]:
    """The slot's ad (file named by ``_CONDOR_MACHINE_AD``): Cpus, Memory in MB, Disk in KiB."""
    path = environment.get("_CONDOR_MACHINE_AD")
    if not path:
        return
    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError:
        return
    for name, value in _MACHINE_AD.findall(text):
        resource, divisor = {"cpus": ("cores", 1), "memory": ("memory_mb", 1), "disk": ("disk_mb", 1024)}[name.lower()]
        yield Figure(resource, f"condor machine ad {name}", int(value) // divisor)


def _slurm(environment: Mapping[str, str]) -> Iterator[Figure]:
    """Slurm's variables of a job step on this node; memory in MB."""
    if "SLURM_JOB_ID" not in environment:
        return
    cores = [(name, _number(environment, name)) for name in ("SLURM_CPUS_ON_NODE", "SLURM_CPUS_PER_TASK")]
    for name, value in cores:
        if value:
            yield Figure("cores", name, value)
    memory = _number(environment, "SLURM_MEM_PER_NODE")
    if memory:
        yield Figure("memory_mb", "SLURM_MEM_PER_NODE", memory)
    per_core = _number(environment, "SLURM_MEM_PER_CPU")
    on_node = _number(environment, "SLURM_CPUS_ON_NODE")
    if per_core and on_node:
        yield Figure("memory_mb", "SLURM_MEM_PER_CPU", per_core * on_node)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdigit() else 0
