"""Routes of secrets: their owner sets them and sees their names."""

from __future__ import annotations

import re

from common.wire import SecretList, SecretValue, SecretView
from server.api.routing import Call, Role, Route, allow
from server.dispatch import secrets
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid

_USER = allow(Role.USER)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def _put(dispatcher: Dispatcher, call: Call) -> SecretView:
    name = call.path["name"]
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name!r} is no name of a secret", [("name", "use up to 64 letters, digits and _")])
    return secrets.put(dispatcher, call.caller.name, name, call.body.value)


def _mine(dispatcher: Dispatcher, call: Call) -> SecretList:
    return secrets.mine(dispatcher, call.caller.name)


def _drop(dispatcher: Dispatcher, call: Call) -> None:
    secrets.drop(dispatcher, call.caller.name, call.path["name"])


ROUTES = [
    Route("GET", "/v1/secrets", _USER, _mine, "List the names of one's own secrets", reply=SecretList),
    Route("PUT", "/v1/secrets/{name}", _USER, _put, "Set a secret of one's own", SecretValue, SecretView),
    Route("DELETE", "/v1/secrets/{name}", _USER, _drop, "Forget a secret of one's own", status=204),
]
