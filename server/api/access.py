"""Routes of access: who am I, logging in and out, bans, revocations."""

from __future__ import annotations

from common.wire import (
    BanKind,
    BanList,
    BanRequest,
    BanView,
    CodeLogin,
    LoginGrant,
    LoginRenewal,
    LoginWays,
    OutsideIssuer,
    RevocationKind,
    RevocationList,
    RevocationRequest,
    RevocationView,
    Whoami,
)
from server.access import logins
from server.access.identify import LATE_S
from server.api.routing import Call, Role, Route, allow
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound
from server.store import access

_ANYBODY = allow(Role.ANYBODY)
_ADMIN = allow(Role.ADMIN)
_NAMED = allow(Role.USER, Role.HARVESTER, Role.OUTSIDE_WORKER, Role.FOREIGN_PILOT)


def _whoami(_: Dispatcher, call: Call) -> Whoami:
    caller = call.caller
    roles = sorted(role.value for role in caller.roles)
    return Whoami(caller.name, roles, sorted(caller.groups), caller.proof, caller.token_expires)


def _ways(dispatcher: Dispatcher, _: Call) -> LoginWays:
    offered = [each for each in dispatcher.config.oidc if each.client_id]
    return LoginWays(
        [
            OutsideIssuer(
                label=each.label,
                issuer=each.issuer,
                client_id=each.client_id,
                scopes=each.scopes,
                audience=each.audience[0],
            )
            for each in offered
        ]
    )


def _log_in(dispatcher: Dispatcher, call: Call) -> LoginGrant:
    return logins.redeem(dispatcher, call.body.code, call.body.nonce)


def _renew(dispatcher: Dispatcher, call: Call) -> LoginGrant:
    return logins.renew(dispatcher, call.body.refresh_token)


def _log_out(dispatcher: Dispatcher, call: Call) -> None:
    logins.log_out(dispatcher, call.body.refresh_token)


def _bans(dispatcher: Dispatcher, _: Call) -> BanList:
    with dispatcher.database.read() as connection:
        return BanList(access.list_bans(connection, dispatcher.now()))


def _ban(dispatcher: Dispatcher, call: Call) -> BanView:
    request: BanRequest = call.body
    now = dispatcher.now()
    if request.kind is BanKind.USER and request.name == call.caller.name:
        raise Conflict("nobody can ban themselves: another admin must do it")
    if request.expires is not None and request.expires <= now:
        raise Invalid("the ban would be over already", [("$.expires", "give a moment to come, or none")])
    name = request.name.lower() if request.kind is BanKind.HOST else request.name
    if request.kind is BanKind.HOST and not set(name) - set("*?[]."):
        raise Invalid("the pattern is every host's", [("$.name", "name hosts; to stop everything pause the queues")])
    view = BanView(request.kind, name, request.reason, call.caller.name, now, request.expires)
    with dispatcher.database.write() as connection:
        access.put_ban(connection, view)
    call.audit.update(kind=view.kind.value, name=view.name, reason=view.reason)
    dispatcher.changed()
    return view


def _lift(dispatcher: Dispatcher, call: Call) -> None:
    kind, name = call.choice("kind", BanKind), call.query.get("name", "")
    if kind is None or not name:
        raise Invalid("say which ban", [("kind" if kind is None else "name", "give kind and name")])
    name = name.lower() if kind is BanKind.HOST else name
    with dispatcher.database.write() as connection:
        found = access.remove_ban(connection, kind, name)
    if not found:
        raise NotFound(f"there is no ban of {kind.value} {name!r}")
    dispatcher.changed()


def _revocations(dispatcher: Dispatcher, _: Call) -> RevocationList:
    with dispatcher.database.read() as connection:
        return RevocationList(access.list_revocations(connection, dispatcher.now()))


def _revoke(dispatcher: Dispatcher, call: Call) -> RevocationView:
    request: RevocationRequest = call.body
    now = dispatcher.now()
    if request.kind is RevocationKind.PILOT and not (request.value.isascii() and request.value.isdigit()):
        raise Invalid(f"{request.value!r} is no pilot", [("$.value", "give the pilot's number")])
    # Nothing says how long the tokens live that an admin minted, or another issuer: a year is longer than either should.
    lasts_s = 2 * LATE_S if request.kind is RevocationKind.PILOT else _YEAR_S
    view = RevocationView(request.kind, request.value, request.reason, call.caller.name, now, now + lasts_s)
    with dispatcher.database.write() as connection:
        access.put_revocation(connection, view)
        if request.kind is RevocationKind.PERSON:
            access.remove_logins(connection, request.value)
    call.audit.update(kind=view.kind.value, value=view.value, reason=view.reason)
    return view


_YEAR_S = 366 * 86400.0
_BAN = ("kind", "name")

ROUTES = [
    Route("GET", "/v1/whoami", _NAMED, _whoami, "Who the caller is", reply=Whoami),
    Route("GET", "/v1/login", _ANYBODY, _ways, "With which issuers one can log in", reply=LoginWays),
    Route("POST", "/v1/login", _ANYBODY, _log_in, "Log in with a one-time code", CodeLogin, LoginGrant),
    Route("POST", "/v1/login:renew", _ANYBODY, _renew, "Renew a login's token", LoginRenewal, LoginGrant),
    Route("POST", "/v1/logout", _ANYBODY, _log_out, "End a login", LoginRenewal, status=204),
    Route("GET", "/v1/bans", _ADMIN, _bans, "List bans", reply=BanList),
    Route("POST", "/v1/bans", _ADMIN, _ban, "Ban a person or hosts", BanRequest, BanView),
    Route("DELETE", "/v1/bans", _ADMIN, _lift, "Lift a ban", status=204, query=_BAN),
    Route("GET", "/v1/revocations", _ADMIN, _revocations, "List revoked tokens", reply=RevocationList),
    Route("POST", "/v1/revocations", _ADMIN, _revoke, "Revoke tokens", RevocationRequest, RevocationView),
]
