"""When a task that was over goes on, so do the stages behind it."""

from __future__ import annotations

from common.states import FINAL_TASK_STATES, TaskState, allowed
from common.wire import StageInput
from server.engine.tasks import reopened
from server.store import workflows
from server.store.database import Connection

DEEPEST = 100
"""Stages behind one another."""


def reopen_children(connection: Connection, task_id: int, now: float, person: str, depth: int = 0) -> None:
    """Stages whose units come of this one wait for its outputs again. Those that take it beside their units go on."""
    if depth > DEEPEST:
        raise AssertionError(f"the stages behind task {task_id} have no end")
    for child in workflows.children(connection, task_id):
        target = reopened(child.state, True, child.input_closed)
        if not isinstance(child.spec.input, StageInput) or (child.state in FINAL_TASK_STATES and target is None):
            continue
        if child.input_closed and child.state != TaskState.FINISHING:
            workflows.set_resolved(connection, child.id, child.resolved, False)
        if target is not None and allowed(child.state, target):
            reason = "the stage before runs again"
            workflows.move(connection, child, target, now, reason=reason, who=person)
            reopen_children(connection, child.id, now, person, depth + 1)
