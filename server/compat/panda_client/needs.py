"""What the jobs of a task of PanDA need, where they may run, and how often they are tried."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.wire import Requirements
from common.wire.workflows import Fixed
from server.compat.panda_client.job_line import Wrong
from server.compat.panda_client.values import Values
from server.engine.world import World

MIB_OF_GB = 1024
SECONDS_OF_HOUR = 3600
_RAM_UNITS = {"": True, "MB": False, "MBPerCore": True, "MBPerCoreFixed": True, "MBFixed": False}
"""Units of ``ramCount``, and whether they are of each core."""
_CPU_UNITS = {
    "": 1.0,
    "HS06sPerEvent": 1.0,
    "HS06sPerEventFixed": 1.0,
    "mHS06sPerEvent": 1e-3,
    "mHS06sPerEventFixed": 1e-3,
}
"""Units of ``cpuTime``, in HS23 seconds an event (one HS06 is one HS23 by its definition)."""


def needs_of(values: Values) -> dict[str, Any]:
    """Fields of a stage. Raises Wrong."""
    cores = values.number("coreCount") or 1
    fixed: list[Fixed] = []
    needs = Requirements(cores=cores)
    memory = values.decimal("ramCount")
    ram_unit = values.text("ramCountUnit") or values.text("ramUnit")
    if ram_unit not in _RAM_UNITS:
        raise Wrong([("ramCountUnit", f"give one of {', '.join(unit for unit in _RAM_UNITS if unit)}")])
    if memory is not None:
        needs.memory_mb = int(memory * (cores if _RAM_UNITS[ram_unit] else 1))
        fixed += [Fixed.MEMORY] if ram_unit.endswith("Fixed") else []
    disk = values.number("workDiskCount")
    if disk is not None:
        needs.disk_mb = disk
    hours, seconds = values.number("maxWalltime"), values.number("walltime")
    if hours is not None:
        needs.wall_s = hours * SECONDS_OF_HOUR
    elif seconds is not None:
        needs.wall_s = seconds
    if values.flag("noLoopingCheck"):
        needs.looping_s = 0
    found: dict[str, Any] = {"requirements": needs}
    cpu, cpu_unit = values.decimal("cpuTime"), values.text("cpuTimeUnit")
    if cpu_unit not in _CPU_UNITS:
        raise Wrong([("cpuTimeUnit", f"give one of {', '.join(unit for unit in _CPU_UNITS if unit)}")])
    if cpu is not None:
        found["cpu_per_event"] = cpu * _CPU_UNITS[cpu_unit]
        fixed += [Fixed.CPU_TIME] if cpu_unit.endswith("Fixed") else []
    found["fixed"] = fixed
    return found


def tries_of(values: Values) -> dict[str, Any]:
    """How often a unit is tried, and how the task begins: fields of a stage. Raises Wrong."""
    found: dict[str, Any] = {}
    tries = values.number("maxAttempt")
    if tries is not None:
        found["max_attempts"] = tries
    if values.flag("disableAutoRetry"):
        found["max_attempts"] = 1
    if values.flag("skipScout"):
        found["scouts"] = False
    priority = values.signed("currentPriority", "taskPriority")
    if priority is not None:
        found["priority"] = priority
    return found


def places_of(values: Values, world: World) -> dict[str, list[str]]:
    """Where jobs may run: fields of a stage. Raises Wrong."""
    wanted = [*values.texts("site"), *values.texts("includedSite")]
    found = {
        "sites": list(sites_of(wanted, world, "site")),
        "exclude_sites": list(sites_of(values.texts("excludedSite"), world, "excludedSite")),
    }
    return {name: list(dict.fromkeys(sites)) for name, sites in found.items()}


def sites_of(names: Iterable[str], world: World, where: str) -> Iterable[str]:
    """The sites that PanDA's queue names stand for. Raises Wrong."""
    for name in names:
        queue = world.queues.get(name)
        if name in world.sites:
            yield name
        elif name == "AUTO":
            continue
        elif queue is None:
            known = ", ".join(sorted(world.sites)[:10])
            raise Wrong([(where, f"there is no site or queue {name[:60]!r}; known sites: {known}")])
        elif [each.name for each in world.queues.values() if each.site == queue.site] != [name]:
            raise Wrong([(where, f"queue {name} is one of several of site {queue.site}: name the site")])
        else:
            yield queue.site
