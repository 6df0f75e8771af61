"""``/proxies``: people delegate a proxy to the server, and prove by it who they are."""

from __future__ import annotations

import logging
from typing import Any

from common.config import ConfigError
from server.access.chains import Authorities, BadChain, Proved, read_authorities, verify
from server.api.auth import Later
from server.api.routing import Call, Raw
from server.compat.face import as_json
from server.compat.settings import Compat
from server.dispatch import delegations
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid

logger = logging.getLogger(__name__)


class NoAuthorities(Later):
    """The folder of authorities cannot be read; an admin has to look."""

    status = 503
    type = "pilotage:unavailable"
    title = "Proxies cannot be verified now"


def check(config: Compat) -> None:
    """Raises ConfigError: no proxy could be verified with these settings."""
    read_authorities(config.act.authorities)


def begin(dispatcher: Dispatcher, call: Call) -> Raw:
    """``POST /proxies``: a request to sign, and a token that is worth nothing but to answer it."""
    token, request = delegations.begin(dispatcher, _shown(dispatcher, call))
    return as_json({"token": token, "csr": request})


def prove(dispatcher: Dispatcher, call: Call) -> Raw:
    """``PUT /proxies``: the signed chain, for a token that is good for everything else."""
    return as_json({"token": delegations.prove(dispatcher, call.caller, _shown(dispatcher, call))})


def withdraw(dispatcher: Dispatcher, call: Call) -> None:
    """``DELETE /proxies``."""
    delegations.withdraw(dispatcher, call.caller)


def _shown(dispatcher: Dispatcher, call: Call) -> Proved:
    body: Any = call.body.json()
    said = [body.get("cert"), body.get("chain", "")] if isinstance(body, dict) else []
    parts = [each for each in said if isinstance(each, str)]
    if len(parts) != len(said) or not parts:
        raise Invalid("cert and chain must be certificates (PEM)", [("$.cert", "send the proxy, and its chain apart")])
    authorities = _authorities(dispatcher)
    try:
        return verify("\n".join(parts), authorities, dispatcher.now())
    except BadChain as error:
        raise Invalid(f"this proxy proves nothing: {error}", [("$.chain", str(error))]) from error


def _authorities(dispatcher: Dispatcher) -> Authorities:
    try:
        return read_authorities(dispatcher.config.compat.act.authorities)
    except ConfigError as error:
        logger.error("no proxy can be verified: %s", error)
        raise NoAuthorities(
            "no proxy can be verified here now: an admin finds the reason in the server's log"
        ) from error
