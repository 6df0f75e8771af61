"""Routes of people: files for inputs that are open."""

from __future__ import annotations

from common.wire import InputsRequest, TaskView
from server.api.routing import Call, Role, Route, allow
from server.dispatch import inputs
from server.dispatch.context import Dispatcher

_USER = allow(Role.USER)


def _add(dispatcher: Dispatcher, call: Call) -> TaskView:
    return inputs.add_files(dispatcher, call.caller, call.number("task_id"), call.body)


def _close(dispatcher: Dispatcher, call: Call) -> TaskView:
    return inputs.close_input(dispatcher, call.caller, call.number("task_id"))


ROUTES = [
    Route("POST", "/v1/tasks/{task_id}/inputs", _USER, _add, "Add files to an open input", InputsRequest, TaskView),
    Route("POST", "/v1/tasks/{task_id}/inputs:close", _USER, _close, "Close an open input", reply=TaskView),
]
