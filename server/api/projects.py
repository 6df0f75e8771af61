"""Routes of projects: of those who make them, and of workers who take their files."""

from __future__ import annotations

from common.states import UnitState
from common.wire.projects import (
    ProjectCopy,
    ProjectFilePage,
    ProjectFilesRequest,
    ProjectPage,
    ProjectRequest,
    ProjectRestart,
    ProjectState,
    ProjectView,
    ReleaseReply,
    ReleaseRequest,
    ReserveReply,
    ReserveRequest,
)
from server.api.routing import Call, Role, Route, allow, page_of
from server.dispatch import projects, reserve
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid

_USER = allow(Role.USER)
_WORKER = allow(Role.USER, Role.OUTSIDE_WORKER)


def _create(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.create(dispatcher, call.caller, call.body)


def _list(dispatcher: Dispatcher, call: Call) -> ProjectPage:
    after, limit = page_of(call)
    return projects.listed(
        dispatcher,
        call.caller,
        owner=call.query.get("owner"),
        states=_states(call),
        where=call.query.get("where", ""),
        after=after,
        limit=limit,
    )


def _states(call: Call) -> list[ProjectState]:
    text = call.query.get("state")
    try:
        return [ProjectState(word) for word in text.split(",")] if text is not None else []
    except ValueError as error:
        words = ", ".join(each.value for each in ProjectState)
        raise Invalid("state is not valid", [("state", f"give one or more of {words}")]) from error


def _look(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.look(dispatcher, call.caller, call.number("project_id"))


def _files(dispatcher: Dispatcher, call: Call) -> ProjectFilePage:
    after, limit = page_of(call)
    return projects.files(
        dispatcher,
        call.caller,
        call.number("project_id"),
        state=call.choice("state", UnitState),
        did=call.query.get("did"),
        cpu_site=call.query.get("cpu_site"),
        after=after,
        limit=limit,
    )


def _add(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.add_files(dispatcher, call.caller, call.number("project_id"), call.body)


def _close(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.close_files(dispatcher, call.caller, call.number("project_id"))


def _reserve(dispatcher: Dispatcher, call: Call) -> ReserveReply:
    return reserve.reserve(dispatcher, call.caller, call.number("project_id"), call.body)


def _release(dispatcher: Dispatcher, call: Call) -> ReleaseReply:
    return reserve.release(dispatcher, call.caller, call.number("project_id"), call.body)


def _activate(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.activate(dispatcher, call.caller, call.number("project_id"))


def _restart(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.restart(dispatcher, call.caller, call.number("project_id"), call.body)


def _cancel(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.cancel(dispatcher, call.caller, call.number("project_id"))


def _copy(dispatcher: Dispatcher, call: Call) -> ProjectView:
    return projects.copy(dispatcher, call.caller, call.number("project_id"), call.body)


def _delete(dispatcher: Dispatcher, call: Call) -> None:
    projects.delete(dispatcher, call.caller, call.number("project_id"))


_ONE = "/v1/projects/{project_id}"
_PAGE = ("after", "limit")

ROUTES = [
    Route("POST", "/v1/projects", _USER, _create, "Make a project", ProjectRequest, ProjectView, 201),
    Route(
        "GET", "/v1/projects", _USER, _list, "List projects, or search them by attributes", reply=ProjectPage,
        query=("owner", "state", "where", *_PAGE),
    ),
    Route("GET", _ONE, _USER, _look, "Look at a project", reply=ProjectView),
    Route("DELETE", _ONE, _USER, _delete, "Take a project away", status=202),
    Route(
        "GET", f"{_ONE}/files", _USER, _files, "List files of a project", reply=ProjectFilePage,
        query=("state", "did", "cpu_site", *_PAGE),
    ),
    Route("POST", f"{_ONE}/files", _USER, _add, "Add files to an open project", ProjectFilesRequest, ProjectView),
    Route("POST", f"{_ONE}/files:close", _USER, _close, "Close an open project", reply=ProjectView),
    Route(
        "POST", f"{_ONE}/files:reserve", _WORKER, _reserve, "Reserve files", ReserveRequest, ReserveReply,
        audited=False,
    ),
    Route(
        "POST", f"{_ONE}/files:release", _WORKER, _release, "Give files back", ReleaseRequest, ReleaseReply,
        audited=False,
    ),
    Route("POST", f"{_ONE}:activate", _USER, _activate, "Bring an abandoned project back", reply=ProjectView),
    Route("POST", f"{_ONE}:restart", _USER, _restart, "Restart files of a project", ProjectRestart, ProjectView),
    Route("POST", f"{_ONE}:cancel", _USER, _cancel, "End a project", reply=ProjectView),
    Route("POST", f"{_ONE}:copy", _USER, _copy, "Make a project of the same files", ProjectCopy, ProjectView, 201),
]  # fmt: skip
