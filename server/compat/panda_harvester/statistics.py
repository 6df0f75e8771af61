"""How much work there is for each queue, and what kinds of jobs there are."""

from __future__ import annotations

from typing import Any

from server.api.routing import Call, Raw
from server.compat.panda.asking import name_of
from server.compat.panda.jobs import MANAGED
from server.compat.panda.resources import RESOURCE_TYPES, kind_of
from server.compat.panda.words import STATUS_OF
from server.compat.panda_harvester.answers import done, fields_of
from server.dispatch import demand
from server.dispatch.context import Dispatcher
from server.store import job_counts

ACTIVATED = "activated"
"""Jobs that wait for a pilot: to us, what the demand of a queue counts."""


def by_site(dispatcher: Dispatcher, call: Call) -> Raw:
    """``statistics/active_job_stats_by_site``: jobs by queue and state."""
    fields_of(call)
    found: dict[str, dict[str, int]] = {}
    for queue, shapes in _waiting(dispatcher).items():
        found[queue] = {ACTIVATED: sum(n for _, n in shapes)}
    with dispatcher.database.read() as connection:
        alive = job_counts.states_by_queue(connection)
    for queue, states in alive.items():
        of_queue = found.setdefault(name_of(dispatcher, queue), {ACTIVATED: 0})
        of_queue.update({STATUS_OF[state]: n for state, n in states.items() if n})
    return done(found)


def in_detail(dispatcher: Dispatcher, call: Call) -> Raw:
    """``statistics/active_job_detailed_stats_by_site``: what waits, by queue, kind and label."""
    fields_of(call)
    found: dict[str, Any] = {}
    for queue, shapes in _waiting(dispatcher).items():
        of_queue = found[queue] = {}
        for kind, n in shapes:
            of_label = of_queue.setdefault(kind, {MANAGED: {ACTIVATED: 0}})[MANAGED]
            of_label[ACTIVATED] += n
    return done(found)


def _waiting(dispatcher: Dispatcher) -> dict[str, list[tuple[str, int]]]:
    """Jobs that wait, by the name that each queue has there: their kind and how many."""
    found = {}
    for queue in dispatcher.looks.get().world.queues:
        shapes = demand.demand_of(dispatcher, queue).shapes
        found[name_of(dispatcher, queue)] = [
            (kind_of(each.shape.cores, each.shape.memory_mb), each.ready_jobs) for each in shapes if each.ready_jobs
        ]
    return found


def resource_types(_: Dispatcher, call: Call) -> Raw:
    """``metaconfig/get_resource_types``."""
    fields_of(call)
    return done([each.told() for each in RESOURCE_TYPES.values()])
