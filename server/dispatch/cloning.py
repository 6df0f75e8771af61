"""Cloning a workflow with some fields changed, and deleting one that is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from common.wire import CloneRequest, DeletionView, StageSpec, WorkflowRequest, WorkflowView
from server.dispatch import rights, submit
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.engine.access import Caller, may_command
from server.store import deletions, events, tasks, workflows

EVERY_STAGE = "*"
DELETE_SLICE = 2000


def clone(dispatcher: Dispatcher, caller: Caller, workflow_id: int, request: CloneRequest) -> WorkflowView:
    """Submit again what a workflow was submitted as, with changed fields; the label ``cloned_from`` names it.

    Raises:
        Invalid: a changed field is wrong; it is named.
    """
    with dispatcher.database.read() as connection:
        original = workflows.view_workflow(connection, workflow_id)
        specs = tasks.specs_of(connection, workflow_id)
    if original is None:
        raise NotFound(f"there is no workflow {workflow_id}")
    names = [stage["name"] for stage in specs]
    for name in request.overrides:
        if name != EVERY_STAGE and name not in names:
            raise Invalid(
                f"workflow {workflow_id} has no stage {name!r}",
                [(f"$.overrides.{name}", f"name one of {', '.join(names)}, or * for all")],
            )
    own = original.owner == caller.name
    made = WorkflowRequest(
        name=request.name or original.name,
        stages=[_changed(stage, request.overrides) for stage in specs],
        scope=request.scope or (original.scope if own else None),
        group=original.group if own or original.group in caller.groups else None,
        labels={**original.labels, **request.labels, "cloned_from": str(workflow_id)},
        request_id=request.request_id,
    )
    rights.check_submission(dispatcher, caller, made)
    return submit.submit(dispatcher, caller.name, made)


def _changed(stage: dict[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> StageSpec:
    name = stage["name"]
    for key in (EVERY_STAGE, name):
        stage = merged(stage, overrides.get(key, {}))
    try:
        return msgspec.convert(stage, StageSpec)
    except msgspec.ValidationError as error:
        raise Invalid(f"stage {name} cannot be changed so: {error}", [(f"$.overrides.{name}", str(error))]) from error


def merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with ``changes`` (RFC 7396, JSON merge patch): tables field by field, None takes a field away."""
    result = dict(old)
    for name, value in changes.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            before = result.get(name)
            # A table that says of which kind it is replaces one of another kind as a whole.
            same = isinstance(before, Mapping) and before.get("kind") == value.get("kind", before.get("kind"))
            result[name] = merged(before if isinstance(before, Mapping) and same else {}, value)
        else:
            result[name] = value
    return result


def ask_deletion(dispatcher: Dispatcher, caller: Caller, workflow_id: int, force: bool) -> DeletionView:
    """Have a workflow that is over taken away. Asked again, it is answered alike, also when nothing is left of it.

    Raises:
        Conflict: it is not over, or has outputs and this is not ``force``.
    """
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        known = deletions.get(connection, workflow_id)
        if known is not None:
            if not (caller.is_admin or caller.name in (known.owner, known.who)):
                raise Forbidden(f"workflow {workflow_id} belongs to {known.owner}")
            return deletions.view(connection, workflow_id)
        rows = deletions.hold_tasks(connection, workflow_id)
        if not rows:
            raise NotFound(f"there is no workflow {workflow_id}")
        owner, group = tasks.owner_of(connection, workflow_id)
        if not may_command(caller, owner, group):
            raise Forbidden(f"workflow {workflow_id} belongs to {owner}")
        running = [task_id for task_id, over in rows if not over]
        if running:
            raise Conflict(f"workflow {workflow_id} is not over: kill or finish task {running[0]} first")
        left = deletions.confirmed_outputs(connection, [task_id for task_id, _ in rows])
        if left and not force:
            raise Conflict(
                f"workflow {workflow_id} has {left} outputs, whose records would go with it while the files stay: "
                "use force if nobody needs to find them by it"
            )
        deletions.ask(connection, workflow_id, caller.name, force, now)
        detail = {"who": caller.name, "outputs": left}
        events.add(connection, events.Event(now, "WORKFLOW_DELETED", "workflow", workflow_id, detail=detail))
        return deletions.view(connection, workflow_id)


def delete_workflows(dispatcher: Dispatcher) -> int:
    """A slice of each workflow that is to go; how many rows went.

    One with files that are yet to be swept from their storage waits: its rows are all that knows of them.
    """
    with dispatcher.database.read() as connection:
        asked = deletions.at_work(connection)
    gone = 0
    for each in asked:
        with dispatcher.database.write() as connection:
            ids = [task_id for task_id, _ in deletions.hold_tasks(connection, each.workflow_id)]
            if any(deletions.unswept_outputs(connection, task_id) for task_id in ids):
                continue
            number = 0
            for task_id in ids:
                number += deletions.delete_slice(connection, task_id, DELETE_SLICE) if not number else 0
            if not number:
                deletions.delete_rest(connection, each.workflow_id, dispatcher.now())
                number = 1
        gone += number
    return gone
