"""Liveness, and the protocol's own description."""

from __future__ import annotations

from common.plugins import version
from common.wire import Health
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher

_ANYBODY = allow(Role.ANYBODY)


def _health(dispatcher: Dispatcher, _: Call) -> Health:
    dispatcher.database.check()
    return Health("ok", version(), dispatcher.database.url.get_backend_name(), dispatcher.now())


ROUTES = [Route("GET", "/healthz", _ANYBODY, _health, "Liveness", reply=Health)]
