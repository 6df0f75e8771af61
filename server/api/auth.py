"""Who calls: from the bearer token to a :class:`Caller`, and the one place where access rules are applied."""

from __future__ import annotations

from common.tokens import SECRET_PREFIX, TokenError
from server.api.routing import Caller, Role, Route
from server.dispatch import registration
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, Unauthenticated

NOBODY = Caller("", frozenset({Role.ANYBODY}))
LATE_S = 30 * 86400.0
"""How long after its token's end a pilot may still report the end of its jobs."""


def authenticate(dispatcher: Dispatcher, route: Route, header: str | None) -> Caller:
    """The caller of a route, who may call it.

    Raises:
        Unauthenticated: there is no valid credential.
        Forbidden: its roles are not among the route's.
    """
    if Role.ANYBODY in route.access:
        return NOBODY
    caller = _caller(dispatcher, route, _bearer(header))
    if not caller.roles & route.access:
        needed = ", ".join(sorted(role.value for role in route.access))
        raise Forbidden(f"this needs the role {needed}; {caller.name} has {', '.join(sorted(caller.roles)) or 'none'}")
    return caller


def _bearer(header: str | None) -> str:
    scheme, _, token = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send a token: Authorization: Bearer …")
    return token.strip()


def _caller(dispatcher: Dispatcher, route: Route, token: str) -> Caller:
    if token.startswith(SECRET_PREFIX):
        return Caller("a worker", frozenset({Role.WORKER}), secret=token)
    try:
        claims = dispatcher.issuer.verify(token, allow_expired_for_s=LATE_S if route.late_pilots else 0.0)
    except TokenError as error:
        raise Unauthenticated(str(error)) from error
    roles = frozenset(Role(role) for role in claims.roles if role in _GIVEN)
    if Role.PILOT not in roles:
        if claims.expires + 60.0 < dispatcher.now():
            raise Unauthenticated("the token has expired")
        return Caller(claims.subject, roles)
    pilot = registration.pilot_of(dispatcher, int(claims.subject.removeprefix("pilot:")))
    if pilot is None:
        raise Unauthenticated("the pilot of this token is not known")
    return Caller(claims.subject, frozenset({Role.PILOT}), pilot, token_expires=claims.expires)


_GIVEN = {Role.USER.value, Role.ADMIN.value, Role.HARVESTER.value, Role.PILOT.value}
"""Roles that a token may carry."""
