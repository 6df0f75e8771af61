"""Routes of harvesters that run direct jobs (``docs/adr/0012``)."""

from __future__ import annotations

from common.wire.direct import (
    DirectAcquireReply,
    DirectAcquireRequest,
    DirectProxiesReply,
    DirectProxiesRequest,
    DirectReportReply,
    DirectReportRequest,
)
from server.api.routing import Call, Raw, Role, Route, allow
from server.dispatch import delegations, direct_runs
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, Invalid

_HARVESTER = allow(Role.HARVESTER)
BYTES = "application/octet-stream"


def _acquire(dispatcher: Dispatcher, call: Call) -> DirectAcquireReply:
    _check(call)
    return direct_runs.acquire(dispatcher, call.body)


def _report(dispatcher: Dispatcher, call: Call) -> DirectReportReply:
    _check(call)
    return direct_runs.report(dispatcher, call.body)


def _sign(dispatcher: Dispatcher, call: Call) -> DirectProxiesReply:
    _check(call)
    return delegations.sign(dispatcher, call.body)


def _check(call: Call) -> None:
    if call.body.harvester != call.caller.name:
        raise Forbidden(f"this token is harvester {call.caller.name!r}'s", [("$.harvester", "name yourself")])


def _give(dispatcher: Dispatcher, call: Call) -> Raw:
    return Raw(direct_runs.give(dispatcher, call.caller.name, call.path["mark"], _path(call)), BYTES)


def _take(dispatcher: Dispatcher, call: Call) -> None:
    direct_runs.take(dispatcher, call.caller.name, call.path["mark"], _path(call), call.body)


def _path(call: Call) -> str:
    path = call.query.get("path")
    if not path:
        raise Invalid("which file?", [("path", "name it in the query")])
    return path


ROUTES = [
    Route(
        "POST", "/v1/direct:acquire", _HARVESTER, _acquire, "The direct jobs that a harvester is to submit",
        DirectAcquireRequest, DirectAcquireReply,
    ),
    Route(
        "POST", "/v1/direct:report", _HARVESTER, _report, "Report direct jobs, and learn what is to be done with them",
        DirectReportRequest, DirectReportReply,
    ),
    Route(
        "POST", "/v1/direct/proxies:sign", _HARVESTER, _sign, "Get proxies for the people of direct jobs",
        DirectProxiesRequest, DirectProxiesReply,
    ),
    Route("GET", "/v1/direct/{mark}/inputs", _HARVESTER, _give, "Fetch a file of a direct job", query=("path",)),
    Route(
        "PUT", "/v1/direct/{mark}/results", _HARVESTER, _take, "Keep a file that a direct job left", status=204,
        stream=True, query=("path",),
    ),
]  # fmt: skip
