"""People submit workflows and command tasks."""

from __future__ import annotations

import re

from common.states import FINAL_TASK_STATES, TaskState, UnitState, allowed
from common.wire import TaskCommand, TaskView, WorkflowRequest, WorkflowView
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.engine.tasks import COMMANDS, REOPENED, RETRIABLE
from server.engine.workflows import check_workflow
from server.store import jobs, units, workflows, world
from server.store.database import Connection
from server.store.workflows import TaskRow

ALIVE_UNITS = (UnitState.PENDING, UnitState.READY, UnitState.RESERVED, UnitState.OUTPUTTING)


def submit(dispatcher: Dispatcher, owner: str, request: WorkflowRequest) -> WorkflowView:
    """Keep a workflow; its units are made by an agent. The same ``request_id`` of a person gets the same workflow.

    Raises:
        Invalid: it names every field that is wrong; nothing is kept.
    """
    with dispatcher.database.read() as connection:
        places = world.load(connection)
        shares = {share.name for share in world.shares(connection)}
    problems = check_workflow(request, places, shares)
    if problems:
        raise Invalid(
            f"the workflow has {len(problems)} mistakes" if len(problems) > 1 else problems[0].message,
            [(problem.path, problem.message) for problem in problems],
        )
    with dispatcher.database.write() as connection:
        workflow_id = None
        if request.request_id is not None:
            workflow_id = workflows.by_request(connection, owner, request.request_id)
        if workflow_id is None:
            scope = request.scope or default_scope(owner)
            workflow_id = workflows.add(connection, request, owner, scope, dispatcher.now())
        view = workflows.view_workflow(connection, workflow_id)
    assert view is not None
    dispatcher.changed()
    return view


def default_scope(owner: str) -> str:
    """The DID scope of a person who names none."""
    return "user." + (re.sub(r"[^A-Za-z0-9._-]", "-", owner) or "nobody")


def command(dispatcher: Dispatcher, person: str, is_admin: bool, task_id: int, request: TaskCommand) -> TaskView:
    """Pause, resume, kill or retry a task.

    Raises:
        Invalid: there is no such command.
        Conflict: its state does not allow it.
        Forbidden: it is somebody else's.
    """
    if request.command not in COMMANDS:
        raise Invalid(f"there is no command {request.command!r}", [("$.command", f"give one of {', '.join(COMMANDS)}")])
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        task = workflows.get_task(connection, task_id, lock=True)
        if task is None:
            raise NotFound(f"there is no task {task_id}")
        if not is_admin and task.owner != person:
            raise Forbidden(f"task {task_id} belongs to {task.owner}")
        reason = request.reason or f"{request.command} by {person}"
        target = _target(task, request.command)
        # A command that is obeyed already is answered as the first time.
        if target is not None:
            _obey(connection, task, target, request.command, reason, person, now)
        elif request.command == "retry":
            _retry_units(connection, task, now)
        row = workflows.get_task(connection, task_id)
        assert row is not None
        view = workflows.view_tasks(connection, [row])[0]
    dispatcher.changed()
    return view


def _obey(
    connection: Connection, task: TaskRow, target: TaskState, name: str, reason: str, person: str, now: float
) -> None:
    if not allowed(task.state, target) or (name == "retry" and task.state not in RETRIABLE):
        raise Conflict(f"a task that is {task.state.value} cannot be told to {name}")
    if name == "kill":
        jobs.ask_kill(connection, task.id, reason)
        units.move_all(connection, task.id, ALIVE_UNITS, UnitState.CANCELLED, now)
    elif name == "retry":
        _retry_units(connection, task, now)
        _reopen_children(connection, task.id, now, person)
    workflows.move(
        connection,
        task,
        target,
        now,
        reason=reason,
        resume_state=task.state if name == "pause" else None,
        final=target in FINAL_TASK_STATES,
        who=person,
    )


def _retry_units(connection: Connection, task: TaskRow, now: float) -> None:
    units.move_all(connection, task.id, (UnitState.FAILED, UnitState.LOST), UnitState.READY, now)


def _reopen_children(connection: Connection, task_id: int, now: float, person: str) -> None:
    for child in workflows.children(connection, task_id):
        if child.state in FINAL_TASK_STATES and child.state not in REOPENED:
            continue
        if child.input_closed:
            workflows.set_resolved(connection, child.id, child.resolved, False)
        if child.state in REOPENED:
            reason = "the stage before runs again"
            workflows.move(connection, child, REOPENED[child.state], now, reason=reason, who=person)
            _reopen_children(connection, child.id, now, person)


def _target(task: TaskRow, name: str) -> TaskState | None:
    if name == "pause":
        return None if task.state == TaskState.PAUSED else TaskState.PAUSED
    if name == "kill":
        return None if task.state == TaskState.ABORTED else TaskState.ABORTED
    if name == "retry":
        return None if task.state == TaskState.RUNNING else TaskState.RUNNING
    if task.state != TaskState.PAUSED:
        return None
    if task.resume_state == TaskState.PENDING and task.resolved:
        return TaskState.READY  # it was fed meanwhile
    return task.resume_state or TaskState.RUNNING
