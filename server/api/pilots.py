"""Routes of pilots."""

from __future__ import annotations

from common.wire import (
    AcquireReply,
    AcquireRequest,
    FinishReply,
    FinishRequest,
    HeartbeatReply,
    HeartbeatRequest,
    PilotEnd,
    PilotGrant,
    PilotPage,
    PilotRegistration,
    PilotView,
    RecordReply,
    RecordRequest,
    UnitsAcquireReply,
    UnitsAcquireRequest,
    UnitsReleaseReply,
    UnitsReleaseRequest,
    WhyReply,
)
from server.api.routing import Call, Role, Route, allow, page_of
from server.dispatch import acquire, commit, heartbeat, look, registration
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden
from server.store import pilots

_PILOT = allow(Role.PILOT)


def _register(dispatcher: Dispatcher, call: Call) -> PilotGrant:
    return registration.register(dispatcher, call.caller.secret, call.body)


def _end(dispatcher: Dispatcher, call: Call) -> None:
    if call.number("pilot_id") != call.pilot_id:
        raise Forbidden("a pilot reports its own end only")
    registration.end(dispatcher, acquire.known_pilot(dispatcher, call.pilot_id), call.body)


def _why(dispatcher: Dispatcher, call: Call) -> WhyReply:
    return look.why_pilot(dispatcher, call.number("pilot_id"))


def _list(dispatcher: Dispatcher, call: Call) -> PilotPage:
    after, limit = page_of(call)
    with dispatcher.database.read() as connection:
        items = pilots.page(connection, call.query.get("queue"), call.flag("failed"), after, limit)
    return PilotPage(next=items[-1].id if len(items) == limit else None, items=items)


def _show(dispatcher: Dispatcher, call: Call) -> PilotView:
    view = look.pilot(dispatcher, call.number("pilot_id"))
    if not call.caller.roles & {Role.PRODUCTION, Role.ADMIN}:
        view.log_tail = ""  # it names the jobs and the input of all who used the slot
    return view


def _acquire(dispatcher: Dispatcher, call: Call) -> AcquireReply:
    return acquire.acquire(dispatcher, call.pilot_id, call.body)


def _heartbeat(dispatcher: Dispatcher, call: Call) -> HeartbeatReply:
    reply, active = heartbeat.heartbeat(dispatcher, call.pilot_id, call.body)
    knobs = dispatcher.looks.get().knobs
    if active and call.caller.token_expires - dispatcher.now() < knobs.pilot_token_s / 2:
        reply.token, reply.token_expires = registration.mint(dispatcher, call.pilot_id, knobs)
    return reply


def _acquire_units(dispatcher: Dispatcher, call: Call) -> UnitsAcquireReply:
    return acquire.acquire_units(dispatcher, call.pilot_id, call.number("job_id"), call.body)


def _release_units(dispatcher: Dispatcher, call: Call) -> UnitsReleaseReply:
    return commit.release(dispatcher, call.pilot_id, call.number("job_id"), call.body)


def _record(dispatcher: Dispatcher, call: Call) -> RecordReply:
    return commit.record(dispatcher, call.pilot_id, call.number("job_id"), call.body)


def _finish(dispatcher: Dispatcher, call: Call) -> FinishReply:
    return commit.finish(dispatcher, call.pilot_id, call.number("job_id"), call.body)


ROUTES = [
    Route("POST", "/v1/pilots", allow(Role.WORKER), _register, "Register a pilot", PilotRegistration, PilotGrant, 201),
    Route("POST", "/v1/pilots/{pilot_id}:end", _PILOT, _end, "A pilot leaves", PilotEnd, status=204, late_pilots=True),
    Route(
        "GET", "/v1/pilots", allow(Role.USER), _list, "List pilots", reply=PilotPage,
        query=("queue", "failed", "after", "limit"),
    ),
    Route("GET", "/v1/pilots/{pilot_id}", allow(Role.USER), _show, "A pilot", reply=PilotView),
    Route("GET", "/v1/pilots/{pilot_id}/why", allow(Role.USER), _why, "Why it gets nothing", reply=WhyReply),
    Route("POST", "/v1/jobs:acquire", _PILOT, _acquire, "Ask for jobs", AcquireRequest, AcquireReply),
    Route(
        "POST", "/v1/jobs:heartbeat", _PILOT, _heartbeat, "Report all jobs that the pilot holds",
        HeartbeatRequest, HeartbeatReply, late_pilots=True,
    ),
    Route(
        "POST", "/v1/jobs/{job_id}/units:acquire", _PILOT, _acquire_units, "Take further units for a running job",
        UnitsAcquireRequest, UnitsAcquireReply, late_pilots=True,
    ),
    Route(
        "POST", "/v1/jobs/{job_id}/units:release", _PILOT, _release_units, "Say what became of single units",
        UnitsReleaseRequest, UnitsReleaseReply, late_pilots=True,
    ),
    Route(
        "POST", "/v1/jobs/{job_id}/outputs", _PILOT, _record, "Record outputs that are about to be uploaded",
        RecordRequest, RecordReply, late_pilots=True,
    ),
    Route(
        "POST", "/v1/jobs/{job_id}:finish", _PILOT, _finish, "Confirm a job's end",
        FinishRequest, FinishReply, late_pilots=True,
    ),
]  # fmt: skip
