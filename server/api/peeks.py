"""Routes of looking at running jobs."""

from __future__ import annotations

from common.wire import PeekAnswer, PeekRequest, PeekView
from server.api.routing import Call, Role, Route, allow
from server.dispatch import peeks
from server.dispatch.context import Dispatcher

_USER = allow(Role.USER)


def _ask(dispatcher: Dispatcher, call: Call) -> PeekView:
    request: PeekRequest = call.body
    call.audit.update(kind=request.kind.value, looked_at=request.path)
    return peeks.ask(dispatcher, call.caller, call.number("job_id"), request)


def _view(dispatcher: Dispatcher, call: Call) -> PeekView:
    wait_s = call.count("wait_s", 0, 3600)
    return peeks.view(dispatcher, call.caller, call.number("job_id"), call.number("peek_id"), wait_s)


def _answer(dispatcher: Dispatcher, call: Call) -> None:
    peeks.answer(dispatcher, call.pilot_id, call.number("job_id"), call.number("peek_id"), call.body)


ROUTES = [
    Route(
        "POST", "/v1/jobs/{job_id}/peeks", _USER, _ask, "Ask the pilot of a running job to show something",
        PeekRequest, PeekView, 201,
    ),
    Route(
        "GET", "/v1/jobs/{job_id}/peeks/{peek_id}", _USER, _view, "What the pilot showed", reply=PeekView,
        query=("wait_s",),
    ),
    Route(
        "POST", "/v1/jobs/{job_id}/peeks/{peek_id}:answer", allow(Role.PILOT), _answer, "Show what was asked for",
        PeekAnswer, status=204,
    ),
]  # fmt: skip
