"""How long the credentials in files last: tokens (JWT) and proxies (PEM), of the payload and of the node.

Whoever keeps them fresh does so ahead of time; what is told here is that it has not happened.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

from pilot.payload.safefile import UnsafeFileError, read_regular

VARIABLES = ("BEARER_TOKEN_FILE", "X509_USER_PROXY")
EVERY_S = 60.0
WARN_S = 900.0
"""A credential that lasts for less is told of, once."""
MOST_BYTES = 256 * 1024
_PEM = b"-----BEGIN CERTIFICATE-----"


def expires(content: bytes) -> Optional[float]:
    """When a token or a proxy ends, in seconds since the epoch; None when that cannot be told.

    Of a proxy the first of its certificates to end counts. Nothing is verified: that is the storage's business.
    """
    return _proxy_expires(content) if _PEM in content else _token_expires(content)


def _token_expires(content: bytes) -> Optional[float]:
    parts = content.strip().split(b".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error):
        return None
    moment = claims.get("exp") if isinstance(claims, dict) else None
    return float(moment) if isinstance(moment, (int, float)) else None


def _proxy_expires(content: bytes) -> Optional[float]:
    try:  # only where there is a proxy: the library takes memory
        from cryptography import x509
    except ImportError:
        return None
    moments = []
    for part in content.split(_PEM)[1:]:
        try:
            certificate = x509.load_pem_x509_certificate(_PEM + part)
        except ValueError:
            return None
        moments.append(certificate.not_valid_after_utc.timestamp())
    return min(moments)


class Lifetimes:
    """Looks at the files that some variables of ``environment`` name. ``now`` gives seconds since the epoch."""

    def __init__(self, environment: Mapping[str, str], now: Callable[[], float]) -> None:
        self._paths = {name: environment[name] for name in VARIABLES if environment.get(name)}
        self._now = now
        self._looked = float("-inf")
        self._told: dict[str, tuple[float, bool]] = {}

    def look(self) -> list[str]:
        """What is to be told; at most once in :data:`EVERY_S` anything is read."""
        now = self._now()
        if not self._paths or 0 <= now - self._looked < EVERY_S:
            return []
        self._looked = now
        return [words for name, path in self._paths.items() if (words := self._words(name, path, now))]

    def _words(self, name: str, path: str, now: float) -> str:
        try:
            moment = expires(read_regular(Path(path), MOST_BYTES))
        except (OSError, UnsafeFileError) as error:
            moment, problem = -1.0, f"cannot be read: {error}"
        else:
            problem = "has expired"
        if moment is None or moment - now > WARN_S:
            self._told.pop(name, None)
            return ""
        news = (moment, moment <= now)
        if self._told.get(name) == news:
            return ""
        self._told[name] = news
        words = problem if moment <= now else f"expires in {moment - now:.0f} s, and has not been renewed"
        return f"the credential in {name} {words}"
