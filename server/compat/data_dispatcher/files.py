"""Workers take files and give them back.

``next_file`` is answered with 200 or 503 whatever happens, as the client takes every other answer for the end of the
project. What can be told apart:

* what waiting cannot mend (an unknown project, one that is not the caller's, a bad token, a project that is over): 200
  without ``retry``; the worker ends, in place of holding its slot for nothing;
* what lasts for a while (no file is free, too many requests, no database, a mistake of ours): 200 with ``retry``; the
  client asks again after some seconds for as long as it was told to wait. With 503 it would give up after five minutes;
* two requests that were in each other's way: 503; the client asks again within a second.
"""

from __future__ import annotations

import uuid

from common.problem import Problem
from common.states import UnitState
from common.wire.projects import FileOutcome, FileRelease, ProjectFileView, ReleaseRequest, ReserveRequest
from server.api.routing import Call, Raw
from server.compat.data_dispatcher import asked, words
from server.compat.data_dispatcher.asked import wrong
from server.compat.data_dispatcher.projects import JSON, handles, listed
from server.compat.face import as_json, words_of
from server.dispatch import projects, reserve
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.engine.access import PEOPLE

NO_SITE = ("", "DEFAULT")
"""What the client says for want of a site."""
WAIT_S = 2.0
"""How long a request without a file may wait here, if one of the few places is free: the client sleeps for a minute."""
LASTING = 500
"""Statuses from here on are ours, and pass."""
COLLISION = "pilotage:collision"


def next_file(dispatcher: Dispatcher, call: Call) -> Raw:
    """The next file of a project for a worker."""
    project_id = asked.number(asked.text(call, "project_id"))
    site = call.query.get("cpu_site", "")
    request = asked.checked(
        {
            "request_id": uuid.uuid4().hex,
            "worker": asked.text(call, "worker_id"),
            "cpu_site": None if site in NO_SITE else site,
            "wait_s": WAIT_S,
        },
        ReserveRequest,
    )
    reply = reserve.reserve(dispatcher, call.caller, project_id, request)
    if reply.files:
        file = reply.files[0]
        attributes = {name: value for name, value in reply.attributes.items() if name != words.QUERY}
        found = {**words.handle(project_id, file, with_replicas=True), "project_attributes": attributes}
        return as_json({"handle": found, "reason": "reserved", "retry": False}, content_type=JSON)
    active = words.PROJECTS[reply.state] == "active"
    return nothing("retry" if active else f"project inactive: {reply.state.value}", retry=active)


def nothing(reason: str, *, retry: bool) -> Raw:
    """There is no file."""
    return as_json({"handle": None, "reason": reason, "retry": retry}, content_type=JSON)


def next_refused(problem: Problem) -> Raw:
    """Why there is no file, in the one form that the client understands."""
    if problem.type == COLLISION:
        return as_json({"handle": None, "reason": problem.title, "retry": True}, 503, JSON)
    lasting = problem.status == 429 or problem.status >= LASTING
    return nothing(words_of(problem), retry=lasting)


def release(dispatcher: Dispatcher, call: Call) -> Raw:
    """What became of a file."""
    project_id, did = _handle_id(call)
    failed = asked.flag(call, "failed", False)
    retry = asked.flag(call, "retry", True)
    reserve.mine(dispatcher, call.caller, project_id)
    worker = call.query.get("worker_id") or _holder(dispatcher, call, project_id, did)
    outcome = FileOutcome.FAILED if failed else FileOutcome.DONE
    request = asked.checked(
        {"worker": worker, "files": [{"did": did, "outcome": outcome.value, "retry": retry}]}, ReleaseRequest
    )
    (result,) = reserve.release(dispatcher, call.caller, project_id, request).files
    if result.state is None:
        raise NotFound(f"project {project_id} has no file {did}")
    view = _file(dispatcher, call, project_id, did)
    if not result.accepted:
        if view.worker != worker:
            raise Forbidden(f"wrong worker_id: {result.reason}")
        raise Conflict(f"{did}: {result.reason}")
    return as_json(words.handle(project_id, view, with_replicas=False), content_type=JSON)


def _handle_id(call: Call) -> tuple[int, str]:
    """Project and DID of ``project:namespace:name``."""
    number, _, did = asked.text(call, "handle_id").partition(":")
    try:
        asked.checked({"did": did, "outcome": "done"}, FileRelease)
    except Invalid as error:
        raise wrong("handle_id", "give PROJECT:NAMESPACE:NAME") from error
    return asked.number(number), did


def _holder(dispatcher: Dispatcher, call: Call, project_id: int, did: str) -> str:
    view = _file(dispatcher, call, project_id, did)
    if view.state is not UnitState.RESERVED or view.worker is None:
        raise NotFound(f"{did} is not reserved")
    return view.worker


def _file(dispatcher: Dispatcher, call: Call, project_id: int, did: str) -> ProjectFileView:
    page = projects.files(dispatcher, call.caller, project_id, state=None, did=did, cpu_site=None, after=0, limit=1)
    if not page.items:
        raise NotFound(f"project {project_id} has no file {did}")
    return page.items[0]


def _look(dispatcher: Dispatcher, call: Call, project_id: int) -> None:
    if call.caller.roles & PEOPLE:
        projects.look(dispatcher, call.caller, project_id)
    else:
        reserve.mine(dispatcher, call.caller, project_id)


def file_handle(dispatcher: Dispatcher, call: Call) -> Raw:
    """One file of a project."""
    project_id, did = _handle_id(call)
    _look(dispatcher, call, project_id)
    view = _file(dispatcher, call, project_id, did)
    return as_json(words.handle(project_id, view, with_replicas=True), content_type=JSON)


def list_(dispatcher: Dispatcher, call: Call) -> Raw:
    """The files of a project, in some state or not in it."""
    project_id = asked.number(asked.text(call, "project_id"))
    _look(dispatcher, call, project_id)
    state, but = _state(call, "state"), _state(call, "not_state")
    if asked.flag(call, "ready_only", False):
        if state not in (None, words.INITIAL):
            raise wrong("ready_only", "files that are ready are in state initial")
        states = frozenset({UnitState.READY})
    else:
        states = frozenset(each for each, word in words.FILES.items() if state in (None, word) and word != but)
    replicas = asked.flag(call, "with_replicas", False)
    return Raw(listed(handles(dispatcher, call, project_id, replicas=replicas, states=states)), JSON)


def _state(call: Call, name: str) -> str | None:
    word = call.query.get(name)
    return asked.one_of(name, word, words.HANDLE_STATES) if word else None
