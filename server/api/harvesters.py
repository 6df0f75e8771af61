"""Routes of harvesters: what they are told to do, and the workers that they have."""

from __future__ import annotations

from common.states import WorkerState
from common.wire import (
    HarvesterCommandPage,
    HarvesterCommandRequest,
    HarvesterCommandResult,
    HarvesterCommandView,
    WorkerPage,
)
from server.api.routing import PAGE_LIMIT, Call, Role, Route, allow, page_of
from server.dispatch import harvesters
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.store import harvesters as store

PATH = "/v1/harvesters/{name}/commands"
_ADMIN = allow(Role.ADMIN)


def _ask(dispatcher: Dispatcher, call: Call) -> HarvesterCommandView:
    request: HarvesterCommandRequest = call.body
    call.audit.update(kind=request.kind.value, queue=request.queue, marks=len(request.marks))
    return harvesters.ask(dispatcher, call.path["name"], request, call.caller.name)


def _list(dispatcher: Dispatcher, call: Call) -> HarvesterCommandPage:
    after, limit = page_of(call)
    name = _own(call) if Role.ADMIN not in call.caller.roles else call.path["name"]
    with dispatcher.database.read() as connection:
        items = store.page(connection, name, is_open=call.flag("open"), after=after, limit=limit, now=dispatcher.now())
    return HarvesterCommandPage(next=items[-1].command_id if len(items) == limit else None, items=items)


def _done(dispatcher: Dispatcher, call: Call) -> None:
    harvesters.done(dispatcher, _own(call), call.number("command_id"), call.body)


def _own(call: Call) -> str:
    """The harvester of the path, which must be the caller. What others are told is nobody's business."""
    if call.path["name"] != call.caller.name:
        raise NotFound(f"this token is harvester {call.caller.name!r}'s, which finds its own commands only")
    return call.caller.name


def _workers(dispatcher: Dispatcher, call: Call) -> WorkerPage:
    limit = max(1, call.count("limit", 100, PAGE_LIMIT))
    with dispatcher.database.read() as connection:
        items = store.workers(
            connection,
            queue=call.query.get("queue"),
            harvester=call.query.get("harvester"),
            state=call.choice("state", WorkerState),
            after=call.query.get("after", ""),
            limit=limit,
        )
    return WorkerPage(items=items, next=items[-1].mark if len(items) == limit else None)


ROUTES = [
    Route("POST", PATH, _ADMIN, _ask, "Have a harvester do something", HarvesterCommandRequest, HarvesterCommandView, 201),
    Route(
        "GET", PATH, allow(Role.HARVESTER, Role.ADMIN), _list, "What a harvester is to do, and what came of it",
        reply=HarvesterCommandPage, query=("open", "after", "limit"),
    ),
    Route(
        "POST", f"{PATH}/{{command_id}}:done", allow(Role.HARVESTER), _done, "Say what came of a command",
        HarvesterCommandResult, status=204,
    ),
    Route(
        "GET", "/v1/workers", allow(Role.USER), _workers, "List workers", reply=WorkerPage,
        query=("queue", "harvester", "state", "after", "limit"),
    ),
]  # fmt: skip
