"""Tokens of other issuers: OpenID Connect and the WLCG profile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from common.clock import Clock
from common.config import ConfigError
from common.oidc import OidcError, OidcHttp, checked_address, discover
from common.tokens import TokenError
from server.access.keys import MOST_KID_CHARS, KeySet
from server.access.mapping import X509, Identity
from server.access.settings import ALGORITHMS, OidcIssuer

LEEWAY_S = 60.0
"""How far another issuer's clock may be from ours."""
_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Kinds of tokens that are for calls (RFC 9068), or say not what they are for."""
_MOST_SUBJECT_CHARS = 200
_MOST_LABEL_CHARS = 40
_MOST_GROUPS = 1000


@dataclass(frozen=True)
class ForeignToken:
    """What a verified token of another issuer says."""

    identity: Identity
    expires: float
    issued: float
    token_id: str


class Issuer:
    """One issuer. Raises ConfigError for settings that cannot be used."""

    def __init__(self, config: OidcIssuer, clock: Clock, http: OidcHttp | None = None) -> None:
        _check(config)
        self.config = config
        self._clock = clock
        self._http = http or OidcHttp(config.ca_file or None)
        self._keys = KeySet(
            self._fetch,
            clock,
            refresh_s=config.refresh_s,
            unknown_key_s=config.unknown_key_s,
            keep_s=config.keep_keys_s,
        )

    def _fetch(self) -> dict[str, Any]:
        # Only one thread of the key set comes here at a time. Discovered anew each time: where the keys are may change.
        return self._http.get_json(discover(self._http, self.config.issuer).jwks_uri)

    def verify(self, token: str, header: Mapping[str, Any]) -> ForeignToken:
        """What ``token`` says, if this issuer signed it, for us, and it counts now; ``header`` is its own, not verified.

        Raises:
            TokenError: it does not count.
            KeysUnavailable: that cannot be said now.
        """
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.config.algorithms:
            raise TokenError(f"{self.config.label} does not sign in that way")
        if "crit" in header or "b64" in header:
            raise TokenError("the token asks for an extension that is not known here")
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise TokenError("this is another kind of token: it was not made for calls")
        if kid is not None and not (isinstance(kid, str) and len(kid) <= MOST_KID_CHARS):
            raise TokenError("the token's kid is no name of a key")
        key = self._keys.find(kid, algorithm)
        if key is None:
            raise TokenError(f"{self.config.label} has no such key")
        try:
            payload = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self.config.issuer,
                audience=self.config.audience,
                # Times are compared below, with the injected clock.
                options={
                    "require": ["iss", "sub", "aud", "exp"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, RecursionError, ValueError, TypeError) as error:
            raise TokenError(f"the token is not valid: {error}") from error
        return self._judged(payload)

    def _judged(self, payload: Mapping[str, Any]) -> ForeignToken:
        now = self._clock.now()
        expires = _moment(payload, "exp")
        issued, begins = _moment(payload, "iat", 0.0), _moment(payload, "nbf", 0.0)
        if now >= expires + LEEWAY_S:
            raise TokenError("the token has expired", expired=True)
        if max(issued, begins) > now + LEEWAY_S:
            raise TokenError("the token is from the future: it counts not yet")
        subject, token_id = payload["sub"], payload.get("jti", "")
        if not isinstance(subject, str) or not 0 < len(subject) <= _MOST_SUBJECT_CHARS or not subject.isprintable():
            raise TokenError("the token's subject is no name")
        groups = _texts(payload.get(self.config.groups_claim))
        scopes = payload.get("scope")
        words = frozenset(scopes.split()) if isinstance(scopes, str) else _texts(scopes)
        identity = Identity(self.config.label, subject, groups, words)
        return ForeignToken(identity, expires, issued, token_id if isinstance(token_id, str) else "")


def _check(config: OidcIssuer) -> None:
    where = f"[[server.oidc]] {config.label}"
    if config.label in (X509, "pilotage", "pilot") or len(config.label) > _MOST_LABEL_CHARS:
        raise ConfigError(f"{where}: label: it is taken, or longer than {_MOST_LABEL_CHARS} characters; choose another")
    for algorithm in config.algorithms:
        if algorithm not in ALGORITHMS:
            raise ConfigError(f"{where}: algorithms: {algorithm!r}: give some of {', '.join(sorted(ALGORITHMS))}")
    if min(config.refresh_s, config.unknown_key_s, config.keep_keys_s) <= 0:
        raise ConfigError(f"{where}: refresh_s, unknown_key_s, keep_keys_s: give times above 0")
    try:
        checked_address(config.issuer)
    except OidcError as error:
        raise ConfigError(f"{where}: issuer: {error.detail}") from error


def _moment(payload: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = payload.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TokenError(f"the token's {name} is no moment")
    return float(value)


def _texts(value: object) -> frozenset[str]:
    if not isinstance(value, list):
        return frozenset()
    return frozenset(each for each in value[:_MOST_GROUPS] if isinstance(each, str) and each)
