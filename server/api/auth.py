"""The one place where access rules are applied: who calls, whether they may call this route, and how often."""

from __future__ import annotations

from collections.abc import Callable

import falcon

from common.tokens import TokenError
from server.access.front_end import Smuggled
from server.access.identify import NOBODY, Access, Banned
from server.access.keys import KeysUnavailable
from server.access.limits import TooMany, limit_of
from server.api.routing import Caller, Role, Route
from server.dispatch.errors import Forbidden, Refused, Unauthenticated

SCHEME = "bearer"


class Later(Refused):
    """Asking again after ``retry_after_s`` is right."""

    retry_after_s = 1.0


class IdentityUnknown(Later):
    """Who calls cannot be told now: an issuer's keys are not there."""

    status = 503
    type = "pilotage:unavailable"
    title = "Who you are cannot be verified now"


class TooManyRequests(Later):
    """The caller asks for too much."""

    status = 429
    type = "pilotage:too-many-requests"
    title = "Too many requests"


def bearer(req: falcon.Request) -> str | None:
    """The token in the header ``Authorization``; None without that header.

    Raises:
        Unauthenticated: there is none in it.
    """
    header = req.get_header("Authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != SCHEME or not token.strip():
        raise Unauthenticated("send a token: Authorization: Bearer …")
    return token.strip()


def authenticate(
    access: Access, route: Route, req: falcon.Request, credential: Callable[[falcon.Request], str | None] = bearer
) -> Caller:
    """The caller of a route, who may call it; ``credential`` finds the token of a request.

    Raises:
        Unauthenticated: there is no valid credential.
        Forbidden: its roles are not among the route's, it is banned, or it sends what only a front end may send.
        TooManyRequests: it asks too often.
        IdentityUnknown: that cannot be told now.
    """
    try:
        vouched = access.passed_on(req.get_header, req.remote_addr)
        if Role.ANYBODY in route.access:
            access.limiter.take(Role.ANYBODY, req.remote_addr)
            if not route.recognises:
                return NOBODY
        token = credential(req)
        if token is not None:
            caller = access.caller(token, late_pilots=route.late_pilots)
        elif vouched is not None:
            caller = access.vouched(vouched)
        elif route.recognises:
            return NOBODY
        else:
            raise Unauthenticated("send a token: Authorization: Bearer …")
        if route.recognises:
            return caller
        access.limiter.take(limit_of(caller.roles), caller.name)
    except TokenError as error:
        raise Unauthenticated(str(error)) from error
    except (Banned, Smuggled) as error:
        raise Forbidden(str(error)) from error
    except KeysUnavailable as error:
        raise IdentityUnknown(str(error)) from error
    except TooMany as error:
        refused = TooManyRequests(str(error))
        refused.retry_after_s = error.wait_s
        raise refused from error
    if not caller.roles & route.access:
        needed = ", ".join(sorted(role.value for role in route.access))
        has = ", ".join(sorted(caller.roles)) or "none (an admin gives roles)"
        raise Forbidden(f"this needs the role {needed}; {caller.name} has {has}")
    return caller
