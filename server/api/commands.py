"""Routes of commands: to tasks and workflows that are there already."""

from __future__ import annotations

from common.wire import (
    CloneRequest,
    DeletionView,
    TaskChange,
    TaskCommand,
    TaskView,
    WorkflowCommandReply,
    WorkflowView,
)
from server.api.routing import Call, Role, Route, allow
from server.dispatch import cloning, commands
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid

_USER = allow(Role.USER)


def _command(dispatcher: Dispatcher, call: Call) -> TaskView:
    return commands.command(dispatcher, call.caller, call.number("task_id"), call.body)


def _command_workflow(dispatcher: Dispatcher, call: Call) -> WorkflowCommandReply:
    return commands.command_workflow(dispatcher, call.caller, call.number("workflow_id"), call.body)


def _change(dispatcher: Dispatcher, call: Call) -> TaskView:
    return commands.change(dispatcher, call.caller, call.number("task_id"), call.body)


def _clone(dispatcher: Dispatcher, call: Call) -> WorkflowView:
    return cloning.clone(dispatcher, call.caller, call.number("workflow_id"), call.body)


def _delete(dispatcher: Dispatcher, call: Call) -> DeletionView:
    force = call.query.get("force", "false")
    if force not in ("true", "false"):
        raise Invalid("force is not valid", [("force", "give true or false")])
    return cloning.ask_deletion(dispatcher, call.caller, call.number("workflow_id"), force == "true")


ROUTES = [
    Route("POST", "/v1/tasks/{task_id}:command", _USER, _command, "Command a task", TaskCommand, TaskView),
    Route("PATCH", "/v1/tasks/{task_id}", _USER, _change, "Change a task that lives", TaskChange, TaskView),
    Route(
        "POST", "/v1/workflows/{workflow_id}:command", _USER, _command_workflow, "Command all tasks of a workflow",
        TaskCommand, WorkflowCommandReply,
    ),
    Route(
        "POST", "/v1/workflows/{workflow_id}:clone", _USER, _clone, "Submit a workflow again, changed", CloneRequest,
        WorkflowView, 201,
    ),
    Route(
        "DELETE", "/v1/workflows/{workflow_id}", _USER, _delete, "Take away a workflow that is over",
        reply=DeletionView, status=202, query=("force",),
    ),
]  # fmt: skip
