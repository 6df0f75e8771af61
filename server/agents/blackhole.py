"""Housekeeping of failures: what counts no more is dropped, units that no queue can hold are told."""

from __future__ import annotations

from server.dispatch.context import Dispatcher
from server.engine.outcomes import LONGEST_WAIT_S
from server.engine.retry_rules import outgrown
from server.store import events, faults, growth, hosts, workflows
from server.store.database import Connection

KEEP_FAULTS_S = 86_400.0
"""How long a bucket's failures at a site are remembered after the site may try it again."""


def forget_failures(dispatcher: Dispatcher) -> int:
    """Drop hosts and sites about which nothing was heard for long; never more work at once."""
    now = dispatcher.now()
    limits = dispatcher.looks.get().knobs.host_limits()
    with dispatcher.database.write(durable=False) as connection:
        hosts.purge(connection, limits, now)
        faults.purge(connection, now - max(KEEP_FAULTS_S, LONGEST_WAIT_S))
    return 0


def tell_outgrown(dispatcher: Dispatcher) -> int:
    """Say of tasks with units that have outgrown every queue that they have, and take it back when one fits again."""
    now = dispatcher.now()
    world = dispatcher.looks.get().world
    with dispatcher.database.read() as connection:
        grown = growth.ready_buckets(connection)
        told = growth.told(connection)
    reasons: dict[int, str] = {}
    for each in grown:
        words = outgrown(world, each.memory_mb, each.wall_s)
        if words and each.task_id not in reasons:
            reasons[each.task_id] = words
    changed = 0
    for task_id in sorted(reasons.keys() | told.keys()):
        if reasons.get(task_id, "") != told.get(task_id, ""):
            with dispatcher.database.write() as connection:
                _tell(connection, task_id, told.get(task_id, ""), reasons.get(task_id, ""), now)
            changed += 1
    return changed


def _tell(connection: Connection, task_id: int, before: str, words: str, now: float) -> None:
    task = workflows.get_task(connection, task_id, lock=True)
    growth.set_told(connection, task_id, words if task is not None else "")
    if task is None:
        return
    if task.state_reason in ("", before):
        workflows.explain(connection, task, words)
    if words:
        event = events.Event(
            now, "TASK_OUTGROWN", "task", task_id, task_id, source=task.state, detail={"reason": words}
        )
        events.add(connection, event)
