"""The route of what was imported from other descriptions of the world."""

from __future__ import annotations

from common.wire import ImportReport
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.engine.cric import SOURCE
from server.store import following


def _report(dispatcher: Dispatcher, _: Call) -> ImportReport:
    with dispatcher.database.read() as connection:
        return following.report(connection, SOURCE)


ROUTES = [
    Route(
        "GET", "/v1/imports/cric", allow(Role.ADMIN), _report, "What the last look at CRIC brought", reply=ImportReport
    ),
]
