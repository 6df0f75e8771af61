"""What each status of a queue, a site or a storage allows (DESIGN section 4): one table, asked everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from common.states import ResourceState


@dataclass(frozen=True)
class Allowed:
    """What may happen while a resource has a status.

    ``jobs`` and ``probes`` may be claimed there (a probe: a task that says that it is one), and their outputs written.
    Pilots without work ``leave``. What lies there may be read (``reads``): whoever stops what is new does not take
    away what there is.
    """

    jobs: bool = False
    probes: bool = False
    reads: bool = True
    leave: bool = False


ALLOWED: dict[ResourceState, Allowed] = {
    ResourceState.ONLINE: Allowed(jobs=True, probes=True),
    ResourceState.PAUSED: Allowed(),
    ResourceState.DRAINING: Allowed(leave=True),
    ResourceState.TEST: Allowed(probes=True),
    ResourceState.OFFLINE: Allowed(reads=False, leave=True),
}


def takes(status: ResourceState, probe: bool) -> bool:
    """Whether new work, or its output, may go there."""
    return ALLOWED[status].probes if probe else ALLOWED[status].jobs
