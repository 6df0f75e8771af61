"""Routes of what is imported from other descriptions of the world."""

from __future__ import annotations

from common.wire import ImportReport, ImportReports, ImportRequest
from server.api.routing import Call, Role, Route, allow
from server.dispatch import imports
from server.dispatch.context import Dispatcher


def _reports(dispatcher: Dispatcher, _: Call) -> ImportReports:
    return ImportReports(imports.reports(dispatcher))


def _look(dispatcher: Dispatcher, call: Call) -> ImportReport:
    return imports.look_at(dispatcher, call.path["source"], call.body)


_ADMIN = allow(Role.ADMIN)
ROUTES = [
    Route(
        "GET", "/v1/imports", _ADMIN, _reports, "What the last look at each description of the world brought",
        reply=ImportReports,
    ),
    Route(
        "POST", "/v1/imports/{source}", _ADMIN, _look, "Look at a description of the world now", request=ImportRequest,
        reply=ImportReport,
    ),
]  # fmt: skip
