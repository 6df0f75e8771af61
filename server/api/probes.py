"""Routes of probe jobs: the table of site and storage."""

from __future__ import annotations

from common.wire import ProbeRequest, ProbeTable
from server.api.routing import Call, Role, Route, allow
from server.dispatch import probes
from server.dispatch.context import Dispatcher


def _table(dispatcher: Dispatcher, _: Call) -> ProbeTable:
    return probes.table(dispatcher)


def _probe_now(dispatcher: Dispatcher, call: Call) -> ProbeTable:
    request: ProbeRequest = call.body
    call.audit.update(site=request.site)
    return probes.probe_now(dispatcher, request)


ROUTES = [
    Route("GET", "/v1/probes", allow(Role.USER), _table, "What probe jobs found", reply=ProbeTable),
    Route(
        "POST", "/v1/probes", allow(Role.ADMIN), _probe_now, "Have a site probed now", ProbeRequest, ProbeTable, 202
    ),
]  # fmt: skip
