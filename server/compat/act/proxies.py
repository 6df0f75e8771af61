"""``/proxies``: people delegate a proxy to the server, and prove by it who they are."""

from __future__ import annotations

from typing import Any

from server.access.chains import BadChain, Proved, read_authorities, verify
from server.api.routing import Call, Raw
from server.compat.face import as_json
from server.dispatch import delegations
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid


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
    authorities = read_authorities(dispatcher.config.compat.act.authorities)
    try:
        return verify("\n".join(parts), authorities, dispatcher.now())
    except BadChain as error:
        raise Invalid(f"this proxy proves nothing: {error}", [("$.chain", str(error))]) from error
