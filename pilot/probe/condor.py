"""What HTCondor says of a slot: the files that hold the ads of its machine and of its job.

Checked against the ads of an HTCondor 23.9 pool; attributes are those of its manual ("Machine ClassAd Attributes", "Job
ClassAd Attributes"). Only numbers are taken: an attribute that is an expression says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from pilot.probe.figure import Figure
from pilot.probe.pci import text_of

KIB_IN_MB = 1024
#: What TimeToLive holds where nothing bounds the life of the node.
FOREVER = 2**31 - 1
_NUMBER = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(-?\d+(?:\.\d+)?)[ \t]*$", re.MULTILINE)

Ad = Mapping[str, float]


def condor_figures(environment: Mapping[str, str], now: float) -> Iterator[Figure]:
    """``_CONDOR_MACHINE_AD`` and ``_CONDOR_JOB_AD`` name the files. ``now``: seconds since the epoch."""
    machine = _ad(environment.get("_CONDOR_MACHINE_AD"))
    job = _ad(environment.get("_CONDOR_JOB_AD"))
    for resource, name, divisor in (
        ("cores", "Cpus", 1),
        ("memory_mb", "Memory", 1),
        ("disk_mb", "Disk", KIB_IN_MB),
        ("gpus", "GPUs", 1),
    ):
        if name.lower() in machine:
            yield Figure(resource, f"condor machine ad {name}", int(machine[name.lower()] // divisor))
    for resource, name, divisor in (
        ("cores", "CpusProvisioned", 1),
        ("memory_mb", "MemoryProvisioned", 1),
        ("disk_mb", "DiskProvisioned", KIB_IN_MB),
        ("gpus", "GPUsProvisioned", 1),
    ):
        if name.lower() in job:
            yield Figure(resource, f"condor job ad {name}", int(job[name.lower()] // divisor))
    yield from _ends(machine, job, now)
    if "jobleaseduration" in job:
        yield Figure("lease_s", "condor job ad JobLeaseDuration", job["jobleaseduration"])


def _ends(machine: Ad, job: Ad, now: float) -> Iterator[Figure]:
    """A job's limits count from its start on this node; a node may end by itself, as those of a glidein pool do."""
    started = job.get("jobcurrentstartdate", now)
    for name in ("AllowedJobDuration", "AllowedExecuteDuration"):
        if job.get(name.lower(), 0) > 0:
            yield Figure("wall_s", f"condor job ad {name}", int(started + job[name.lower()] - now))
    if job.get("maxwalltime", 0) > 0:
        yield Figure("wall_s", "condor job ad maxWallTime", int(started + 60 * job["maxwalltime"] - now))
    if 0 < machine.get("timetolive", FOREVER) < FOREVER:
        ends = machine.get("mycurrenttime", now) + machine["timetolive"]
        yield Figure("wall_s", "condor machine ad TimeToLive", int(ends - now))
    if machine.get("glidein_todie", 0) > 0:
        yield Figure("wall_s", "condor machine ad GLIDEIN_ToDie", int(machine["glidein_todie"] - now))


def _ad(path: Optional[str]) -> Ad:
    """The numbers of an ad, by the names in lower case: ClassAds do not tell cases apart."""
    if not path:
        return {}
    numbers = {name.lower(): float(value) for name, value in _NUMBER.findall(text_of(Path(path)))}
    return {name: value for name, value in numbers.items() if value >= 0}  # -1: not known
