"""The authentication server: a password, a certificate or a token gets a token of ours, in a header of its answer."""

from __future__ import annotations

import logging
from pathlib import Path

from common.tokens import SecretFileError, read_secret_file
from server.access import logins
from server.access.identify import OURS
from server.access.mapping import X509
from server.api.auth import TooManyRequests
from server.api.routing import Call, Handler, Raw
from server.compat.data_dispatcher import digest
from server.compat.data_dispatcher.asked import one_of
from server.compat.face import as_json, as_text
from server.compat.settings import DataDispatcher
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Forbidden, Refused, Unauthenticated
from server.engine.access import PEOPLE, Role

logger = logging.getLogger(__name__)

TOKEN_HEADER = "X-Authentication-Token"
METHODS = ("digest", "ldap", "x509", "token")
PURPOSE = "digest nonces of data dispatcher"
_NO_CERTIFICATE = "no certificate came with this, as far as the web server in front says"
_MAY = PEOPLE | {Role.OUTSIDE_WORKER}
"""Who needs a token of this face at all."""


class NoPasswords(Refused):
    """The file of passwords cannot be read; an admin has to look."""

    status = 503
    type = "pilotage:unavailable"
    title = "Nobody can log in with a password now"


def auth(method: str) -> Handler:
    """The handler of ``/auth`` for an HTTP method."""

    def handler(dispatcher: Dispatcher, call: Call) -> Raw:
        way = one_of("method", call.query.get("method"), METHODS)
        if way == "digest":
            return _by_password(dispatcher, call, method)
        if way == "ldap":
            raise Unauthenticated("passwords are not looked up in LDAP here: ddisp now tries HTTP digest")
        return _by_proof(dispatcher, call, way)

    return handler


def settings_of(dispatcher: Dispatcher) -> DataDispatcher:
    """The face's settings."""
    return dispatcher.config.compat.data_dispatcher


def _granted(token: str, name: str) -> Raw:
    return as_text(f"{name}\n", X_Authentication_Token=token, Cache_Control="no-store")


# ---------------------------------------------------------------- passwords


def _by_password(dispatcher: Dispatcher, call: Call, method: str) -> Raw:
    settings, now = settings_of(dispatcher), dispatcher.now()
    if not settings.password_file:
        raise Forbidden("nobody can log in with a password here: use a certificate or a token")
    key = dispatcher.issuer.derived_key(PURPOSE)
    answer = digest.read_answer(call.header("Authorization") or "")
    if answer is None or answer.realm != settings.realm or not digest.is_fresh(key, answer.nonce, now):
        value = digest.challenge(settings.realm, digest.new_nonce(key, now), stale=answer is not None)
        return as_text("log in with a password\n", 401, WWW_Authenticate=value)
    wait = dispatcher.guesses.take(answer.user)
    if wait > 0:
        refused = TooManyRequests(f"too many wrong passwords: try again in {wait:.0f} s")
        refused.retry_after_s = wait
        raise refused
    known = _passwords(Path(settings.password_file))
    if not digest.is_right(answer, method, "/auth", known.get((answer.user, settings.realm))):
        raise Unauthenticated("the name or the password is wrong")
    dispatcher.guesses.give_back(answer.user)
    return _granted(logins.vouched(dispatcher, answer.user, [Role.USER], settings.token_s, "digest"), answer.user)


def _passwords(path: Path) -> dict[tuple[str, str], str]:
    try:
        return digest.passwords(read_secret_file(path))
    except SecretFileError as error:
        words = error.detail
    except ValueError as error:
        words = f"{path}: {error}"
    # Who asks is nobody yet: where the file lies, and what is wrong with it, is for the admin.
    logger.error("nobody can log in with a password: %s", words)
    raise NoPasswords("nobody can log in with a password now: an admin finds the reason in the server's log")


# ---------------------------------------------------------------- certificates and tokens


def _by_proof(dispatcher: Dispatcher, call: Call, way: str) -> Raw:
    """A token for whom the front end or another issuer vouches."""
    caller = call.caller
    if way == "x509" and caller.proof != X509:
        raise Unauthenticated(_NO_CERTIFICATE)
    if way == "token" and caller.proof in ("", X509):
        raise Unauthenticated("send a token: Authorization: Bearer …")
    if not caller.roles & _MAY:
        raise Forbidden(f"{caller.name} has no role here that can use projects: an admin gives roles")
    wanted = call.query.get("username", "")
    if wanted not in ("", caller.name):
        raise Forbidden(f"this proves {caller.name}, and not {wanted}: log in as {caller.name}")
    life = settings_of(dispatcher).token_s
    if caller.proof == OURS:  # else a token could be traded for a younger one for ever
        life = min(life, caller.token_expires - dispatcher.now())
    roles = sorted(role.value for role in caller.roles & _MAY)
    return _granted(logins.mint_token(dispatcher, caller.name, roles, life, sorted(caller.groups)), caller.name)


def verify(_: Dispatcher, __: Call) -> Raw:
    """Whether a token is good: the application has looked already."""
    return as_text("OK\n")


def whoami(_: Dispatcher, call: Call) -> Raw:
    """Whose token it is, and until when."""
    caller = call.caller
    roles = sorted(role.value for role in caller.roles)
    said = {
        "name": caller.name,
        "roles": roles,
        "groups": sorted(caller.groups),
        "expires": caller.token_expires or None,
    }
    return as_json(said, content_type="text/json")


def my_dn(_: Dispatcher, call: Call) -> Raw:
    """The subject of the certificate that came with the request, as the web server in front writes it."""
    if call.caller.proof != X509:
        return as_text(f"{_NO_CERTIFICATE}\n", 401)
    return as_json({"subject": call.caller.subject, "issuer": None}, content_type="text/json")
