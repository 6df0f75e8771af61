"""Routes of storage credentials: pilots fetch them, storages verify those that are the server's own."""

from __future__ import annotations

from typing import Any

from common.errors import ErrorCode
from common.wire import CredentialReply, CredentialRequest
from server.access.minting import JWKS_PATH
from server.access.providers import ProviderFailed
from server.api.auth import Later
from server.api.routing import Call, Role, Route, allow
from server.dispatch import credentials
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, NotFound


class ProviderAway(Later):
    """Whoever gives such credentials does not do so now; an admin has to look."""

    status = 503
    type = "pilotage:no-credential"
    title = "There is no credential for this storage now"
    retry_after_s = 10.0


def _give(dispatcher: Dispatcher, call: Call) -> CredentialReply:
    if call.number("pilot_id") != call.pilot_id:
        raise Forbidden("a pilot fetches credentials for itself only")
    try:
        return credentials.give(dispatcher, call.pilot_id, call.body)
    except ProviderFailed as error:
        raise ProviderAway(str(error), error_code=int(ErrorCode.MISSING_CREDENTIALS)) from error


def _discovery(dispatcher: Dispatcher, _: Call) -> dict[str, Any]:
    return _existing(dispatcher.providers.discovery())


def _jwks(dispatcher: Dispatcher, _: Call) -> dict[str, Any]:
    return _existing(dispatcher.providers.jwks())


def _existing(document: dict[str, Any] | None) -> dict[str, Any]:
    if document is None:
        raise NotFound("this server mints no tokens for storages")
    return document


_ANYBODY = allow(Role.ANYBODY)

ROUTES = [
    Route(
        "POST", "/v1/pilots/{pilot_id}/credentials", allow(Role.PILOT), _give,
        "Fetch a credential for a storage that one of the pilot's jobs uses", CredentialRequest, CredentialReply,
    ),
    Route(
        "GET", "/.well-known/openid-configuration", _ANYBODY, _discovery, "Who signs the server's storage tokens",
        configured=True,
    ),
    Route("GET", JWKS_PATH, _ANYBODY, _jwks, "The public keys of the server's storage tokens", configured=True),
]  # fmt: skip
