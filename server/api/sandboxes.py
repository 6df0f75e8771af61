"""Routes of sandboxes and of the logs that the server keeps."""

from __future__ import annotations

from common.wire import SandboxList, SandboxView
from server.api.routing import Call, Raw, Role, Route, allow
from server.dispatch import logs, sandboxes
from server.dispatch.context import Dispatcher

_USER = allow(Role.USER)
_PILOT = allow(Role.PILOT)
GZIP = "application/gzip"


def _upload(dispatcher: Dispatcher, call: Call) -> SandboxView:
    return sandboxes.upload(dispatcher, call.caller.name, call.body)


def _mine(dispatcher: Dispatcher, call: Call) -> SandboxList:
    return sandboxes.mine(dispatcher, call.caller.name)


def _fetch(dispatcher: Dispatcher, call: Call) -> Raw:
    return Raw(sandboxes.fetch(dispatcher, call.pilot_id, call.path["sha256"]), GZIP)


def _put_log(dispatcher: Dispatcher, call: Call) -> None:
    logs.keep(dispatcher, call.pilot_id, call.number("job_id"), call.body)


def _log(dispatcher: Dispatcher, call: Call) -> Raw:
    return Raw(logs.read(dispatcher, call.caller, call.number("job_id")), GZIP)


ROUTES = [
    Route("POST", "/v1/sandboxes", _USER, _upload, "Upload a sandbox", reply=SandboxView, status=201, stream=True),
    Route("GET", "/v1/sandboxes", _USER, _mine, "List one's own sandboxes", reply=SandboxList),
    Route("GET", "/v1/sandboxes/{sha256}", _PILOT, _fetch, "Fetch the sandbox of a job"),
    Route(
        "PUT", "/v1/jobs/{job_id}/log", _PILOT, _put_log, "Keep the log of a failed job", status=204, stream=True,
        late_pilots=True,
    ),
    Route("GET", "/v1/jobs/{job_id}/log", _USER, _log, "Read the log of a failed job"),
]  # fmt: skip
