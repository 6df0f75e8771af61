"""From a request's credential to its caller: one place that knows every kind of credential."""

from __future__ import annotations

import binascii
import hashlib
import threading
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from common.config import ConfigError
from common.tokens import LEEWAY_S, PILOT_PREFIX, SECRET_PREFIX, Claims, TokenError
from server.access import oidc
from server.access.front_end import FrontEndReader
from server.access.limits import RateLimiter
from server.access.mapping import X509, Identity, MappingFile
from server.access.oidc import Issuer
from server.access.state import State, StateCache
from server.dispatch.context import Dispatcher
from server.engine.access import GIVEN, IDENTITY, Caller, Role

NOBODY = Caller("", frozenset({Role.ANYBODY}))
LATE_S = 30 * 86400.0
"""How long after its token's end a pilot may still report the end of its jobs."""
OURS = "pilotage"
"""How tokens of the built-in issuer are labelled."""
CACHE_S = 300.0
"""How long a verified token is taken without verifying it again: so long a key that its issuer withdrew may serve."""
CACHED = 10_000
"""Tokens remembered; what was not used for longest goes."""
_MOST_CHARS = 16_384
_MINTED = {role.value: role for role in GIVEN | {Role.KEY_HOLDER}}


class Banned(Exception):
    """The caller is known, and banned."""


@dataclass(frozen=True)
class _Verified:
    """What a verified token says, before our own rules. ``identity`` is None for the built-in issuer's."""

    subject: str
    expires: float
    leeway_s: float
    issued: float
    token_id: str
    identity: Identity | None = None
    roles: frozenset[Role] = frozenset()
    groups: frozenset[str] = frozenset()
    epoch: int | None = None
    """The one that our own token was minted in."""


class Access:
    """Who calls. One for each process.

    Raises ConfigError for settings that cannot be used.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        config = dispatcher.config
        self._dispatcher = dispatcher
        self.issuers = {each.issuer: Issuer(each, dispatcher.clock) for each in config.oidc}
        labels = {each.label for each in config.oidc}
        if len(labels) < len(config.oidc) or len(self.issuers) < len(config.oidc):
            raise ConfigError("[[server.oidc]] two issuers have the same label or address: each must be one of its own")
        if dispatcher.issuer.issuer in self.issuers:
            raise ConfigError("[server] issuer: another issuer has this name; choose one of your own")
        self._mapping = MappingFile(config.mapping_file, labels, dispatcher.clock)
        self._front_end = FrontEndReader(config.front_end)
        self.limiter = RateLimiter(config.limits, dispatcher.clock)
        self._states = StateCache(dispatcher)
        self._cache: OrderedDict[bytes, tuple[float, _Verified]] = OrderedDict()
        self._mutex = threading.Lock()

    def forget(self) -> None:
        """Something changed that the next request should see."""
        self._states.forget()

    def passed_on(self, header: Callable[[str], str | None], address: str | None) -> Identity | None:
        """Whom a trusted front end vouches for, if there is one. Raises Smuggled."""
        return self._front_end.read(header, address)

    def caller(self, token: str, *, late_pilots: bool) -> Caller:
        """Who bears this token; ``late_pilots`` lets pilots in whose token has expired.

        Raises:
            TokenError: it does not count.
            KeysUnavailable: that cannot be said now.
            Banned: its bearer is banned.
        """
        if token.startswith(PILOT_PREFIX):
            return self._pilot(token, late_pilots)
        if token.startswith(SECRET_PREFIX):
            # Whether some worker has this secret is seen where it registers its pilot.
            return Caller("a worker", frozenset({Role.WORKER}), secret=token)
        state = self._states.get()
        found = self._verified(token, state)
        if self._dispatcher.now() >= found.expires + found.leeway_s:
            raise TokenError("the token has expired", expired=True)
        if found.identity is not None:
            caller = self._mapped(found.identity, found.expires, found.token_id)
        else:
            caller = Caller(
                found.subject,
                found.roles,
                token_expires=found.expires,
                groups=found.groups,
                proof=OURS,
                token_id=found.token_id,
            )
        return _standing(caller, found, state)

    def vouched(self, identity: Identity) -> Caller:
        """Whom a trusted front end vouches for. Raises Banned."""
        caller = self._mapped(identity, 0.0, "")
        if caller.name in self._states.get().bans.users:
            raise Banned(f"{caller.name} is banned")
        return caller

    def _pilot(self, token: str, late_pilots: bool) -> Caller:
        state = self._states.get()
        late_s = LATE_S if late_pilots else 0.0
        pilot = self._dispatcher.issuer.verify_pilot(token, epoch=state.epoch, allow_expired_for_s=late_s)
        if pilot.pilot_id in state.revoked.pilots:
            raise TokenError("the pilot's tokens were revoked")
        return Caller(f"pilot:{pilot.pilot_id}", _PILOT, pilot.pilot_id, token_expires=pilot.expires)

    def _mapped(self, identity: Identity, expires: float, token_id: str) -> Caller:
        mapped = self._mapping.get().map(identity)
        return Caller(
            mapped.name,
            mapped.roles,
            token_expires=expires,
            groups=mapped.groups,
            proof=identity.label,
            token_id=token_id,
            subject=identity.subject,
        )

    def _verified(self, token: str, state: State) -> _Verified:
        key = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        now = self._dispatcher.clock.monotonic()
        with self._mutex:
            entry = self._cache.get(key)
            if entry is not None and 0 <= now - entry[0] < CACHE_S:
                self._cache.move_to_end(key)
                return entry[1]
        found = self._verify(token)
        with self._mutex:
            self._cache[key] = (now, found)
            self._cache.move_to_end(key)
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return found

    def _verify(self, token: str) -> _Verified:
        header, payload = _peek(token)
        issuer = self.issuers.get(payload["iss"]) if isinstance(payload.get("iss"), str) else None
        if issuer is None:
            # Ours, or nobody's: our own key says which.
            return _ours(self._dispatcher.issuer.verify(token))
        said = issuer.verify(token, header)
        return _Verified(
            said.identity.subject, said.expires, oidc.LEEWAY_S, said.issued, said.token_id, identity=said.identity
        )


_PILOT = frozenset({Role.PILOT})


def _standing(caller: Caller, found: _Verified, state: State) -> Caller:
    """The caller, if nothing was said against it. Raises TokenError or Banned."""
    if found.epoch is not None and found.epoch < state.epoch:
        raise TokenError("the token was revoked, with all others of its time")
    if found.token_id and found.token_id in state.revoked.tokens:
        raise TokenError("the token was revoked")
    if found.issued <= state.revoked.people.get(caller.name, -1.0):
        raise TokenError(f"the tokens of {caller.name} were revoked: log in again")
    if caller.name in state.bans.users:
        raise Banned(f"{caller.name} is banned")
    return caller


def _ours(claims: Claims) -> _Verified:
    groups, epoch = claims.extra.get("groups", []), claims.extra.get("epoch", 0)
    if not (isinstance(groups, list) and all(isinstance(each, str) for each in groups) and isinstance(epoch, int)):
        raise TokenError("the token is not valid: a claim has the wrong type")
    subject = claims.extra.get(IDENTITY)
    if subject is not None and not isinstance(subject, str):
        raise TokenError("the token is not valid: a claim has the wrong type")
    return _Verified(
        claims.subject,
        claims.expires,
        LEEWAY_S,
        claims.issued,
        claims.token_id,
        identity=None if subject is None else Identity(X509, subject),
        roles=frozenset(_MINTED[role] for role in claims.roles if role in _MINTED),
        groups=frozenset(groups),
        epoch=epoch,
    )


def _peek(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A token's header and claims, which nobody has verified: they say only whose keys to verify it with.

    Raises TokenError.
    """
    parts = token.split(".")
    if len(token) > _MOST_CHARS or not token.isascii() or len(parts) != 3:
        raise TokenError("the token is not valid")
    found = []
    for part in parts[:2]:
        try:
            document = msgspec.json.decode(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        except (binascii.Error, ValueError, RecursionError) as error:
            raise TokenError("the token is not valid") from error
        if not isinstance(document, dict):
            raise TokenError("the token is not valid")
        found.append(document)
    return found[0], found[1]
