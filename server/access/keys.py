"""An issuer's public keys: fetched, kept, fetched again when they are old or a token names one that is not among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from common.clock import Clock
from common.oidc import OidcError

logger = logging.getLogger(__name__)

MOST_KEYS = 64
MOST_KID_CHARS = 256
RSA_BITS = 2048
RETRY_S = 10.0
"""How long an issuer is left alone that could not be reached."""
_KINDS = {"RSA": ("RS", "PS"), "EC": ("ES",), "OKP": ("Ed",)}
"""Kinds of public keys, and what the names of their algorithms begin with. ``oct``, a shared secret, is none."""


class KeysUnavailable(Exception):
    """The issuer's keys are not known now; asking again in a moment is right."""


@dataclass(frozen=True)
class PublicKey:
    """A key of an issuer."""

    kid: str
    kind: str
    algorithm: str
    """The only algorithm that it is for; empty: any of its kind."""
    key: Any

    def fits(self, algorithm: str) -> bool:
        """Whether a token may be signed with this key in this way."""
        return algorithm.startswith(_KINDS[self.kind]) and self.algorithm in ("", algorithm)


class KeySet:
    """The keys of one issuer; ``fetch`` brings its JWKS document, or raises OidcError.

    One thread fetches at a time and no other waits for it: somebody who floods the server with tokens of unknown keys
    makes it fetch once in ``unknown_key_s``, and holds no thread but that one.
    """

    def __init__(
        self,
        fetch: Callable[[], dict[str, Any]],
        clock: Clock,
        *,
        refresh_s: float,
        unknown_key_s: float,
        keep_s: float,
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._refresh_s = refresh_s
        self._unknown_key_s = unknown_key_s
        self._keep_s = keep_s
        self._fetching = threading.Lock()
        self._keys: tuple[PublicKey, ...] = ()
        self._fetched: float | None = None
        self._tried: float | None = None

    def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key for a token, None if the issuer has no such key.

        Raises:
            KeysUnavailable: its keys are being fetched, or it cannot be reached.
        """
        age = self._age(self._fetched)
        if age > self._keep_s:
            self._keys = ()
        found = self._among(kid, algorithm)
        if found is not None and age <= self._refresh_s:
            return found
        wait_s = RETRY_S if found is not None or not self._keys else self._unknown_key_s
        if self._age(self._tried) >= wait_s:
            if self._fetching.acquire(blocking=False):
                try:
                    self._renew()
                finally:
                    self._fetching.release()
                found = self._among(kid, algorithm)
            elif found is None:
                raise KeysUnavailable("the issuer's keys are being fetched")
        if not self._keys:
            raise KeysUnavailable("the issuer's keys cannot be fetched")
        return found

    def _age(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock.monotonic() - moment

    def _among(self, kid: str | None, algorithm: str) -> PublicKey | None:
        fitting = [key for key in self._keys if key.fits(algorithm) and (kid is None or key.kid == kid)]
        # Without a name, or with a name that two keys share, nothing says which one is meant.
        return fitting[0] if len(fitting) == 1 else None

    def _renew(self) -> None:
        try:
            keys = read_keys(self._fetch())
        except OidcError as error:
            logger.warning("an issuer's keys cannot be fetched; those known stay for a while: %s", error)
        else:
            if keys:
                self._keys = keys
                self._fetched = self._clock.monotonic()
            else:
                logger.warning("an issuer publishes no key that can be used; those known stay for a while")
        self._tried = self._clock.monotonic()


def read_keys(document: dict[str, Any]) -> tuple[PublicKey, ...]:
    """The usable public signing keys in a JWKS document. Raises OidcError for something else."""
    items = document.get("keys")
    if not isinstance(items, list) or len(items) > MOST_KEYS:
        raise OidcError(f"the key set has no list of at most {MOST_KEYS} keys")
    found = [_read_key(item) for item in items]
    return tuple(key for key in found if key is not None)


def _read_key(item: object) -> PublicKey | None:
    if not isinstance(item, dict) or item.get("use", "sig") != "sig":
        return None
    kind = item.get("kty")
    if not isinstance(kind, str) or kind not in _KINDS:
        return None
    kid, algorithm = item.get("kid", ""), item.get("alg", "")
    operations = item.get("key_ops", ["verify"])
    if not (isinstance(kid, str) and len(kid) <= MOST_KID_CHARS and isinstance(algorithm, str)):
        return None
    if not isinstance(operations, list) or "verify" not in operations or "d" in item:
        return None
    try:
        key = jwt.PyJWK(item, algorithm=algorithm or _any_algorithm(item)).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        logger.warning("a key of an issuer is left out: %s", error)
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS:
        logger.warning("a key of an issuer is left out: it has only %d bits", key.key_size)
        return None
    return PublicKey(kid, kind, algorithm, key)


def _any_algorithm(item: dict[str, Any]) -> str:
    if item["kty"] == "RSA":
        return "RS256"
    return {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}.get(str(item.get("crv")), "EdDSA")
