"""HTTP digest authentication (RFC 7616, RFC 2617) with MD5, as the client's library does it; no HTTP in here.

The passwords are a file as ``htdigest`` writes it, ``user:realm:HA1`` in each line. Nonces are signed, not kept: they
hold their moment, and serve for :data:`NONCE_S`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

NONCE_S = 60.0
"""How long a nonce serves: the client answers at once."""
SCHEME = "digest"
_HEAD = struct.Struct(">d16s")
_MOST_CHARS = 4096
_PART = re.compile(r'(?<![a-z0-9])([a-z0-9]++)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)', re.IGNORECASE)
_HA1 = re.compile(r"[0-9a-f]{32}")
_UNKNOWN = "0" * 32
"""Stands for the HA1 of a name that nobody has, so that the answer takes as long."""


def new_nonce(key: bytes, now: float) -> str:
    """A nonce of this moment."""
    head = _HEAD.pack(now, secrets.token_bytes(16))
    return base64.urlsafe_b64encode(head + hmac.digest(key, head, "sha256")).decode()


def is_fresh(key: bytes, nonce: str, now: float) -> bool:
    """Whether a nonce is ours and not too old."""
    try:
        raw = base64.b64decode(nonce.encode("ascii"), b"-_", validate=True)
    except (binascii.Error, ValueError):
        return False
    head, seal = raw[: _HEAD.size], raw[_HEAD.size :]
    if len(head) < _HEAD.size or not hmac.compare_digest(seal, hmac.digest(key, head, "sha256")):
        return False
    made: float = _HEAD.unpack(head)[0]
    return -NONCE_S <= now - made <= NONCE_S


def challenge(realm: str, nonce: str, *, stale: bool) -> str:
    """The value of ``WWW-Authenticate``; ``stale``: the password may be right, the nonce is too old."""
    again = ", stale=true" if stale else ""
    return f'Digest realm="{realm}", nonce="{nonce}", algorithm=MD5, qop="auth"{again}'


@dataclass(frozen=True)
class Answer:
    """What a client answers to a challenge."""

    user: str
    realm: str
    nonce: str
    uri: str
    response: str
    count: str
    client_nonce: str


def read_answer(header: str) -> Answer | None:
    """The answer in a header ``Authorization``; None if it holds none of this kind."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != SCHEME or len(rest) > _MOST_CHARS:
        return None
    parts = {name.lower(): plain or re.sub(r"\\(.)", r"\1", quoted) for name, quoted, plain in _PART.findall(rest)}
    wanted = ("username", "realm", "nonce", "uri", "response", "nc", "cnonce")
    if any(name not in parts for name in wanted) or parts.get("qop", "").lower() != "auth":
        return None
    if parts.get("algorithm", "MD5").upper() != "MD5":
        return None
    return Answer(*(parts[name] for name in wanted))


def passwords(text: str) -> dict[tuple[str, str], str]:
    """HA1 by user and realm.

    Raises:
        ValueError: a line is none of ``htdigest``'s; its words don't show it.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, rest = line.strip().partition(":")
        realm, _, ha1 = rest.rpartition(":")
        if not user or not realm or not _HA1.fullmatch(ha1.lower()):
            raise ValueError(f"line {number} is no user:realm:HA1, as htdigest writes it")
        found[user, realm] = ha1.lower()
    return found


def is_right(answer: Answer, method: str, path: str, ha1: str | None) -> bool:
    """Whether the answer proves the password of ``ha1`` (None: there is no such user), for this method and path."""
    asked = urlsplit(answer.uri).path if answer.uri.startswith("/") else ""
    ha2 = _md5(f"{method}:{answer.uri}")
    nonces = f"{answer.nonce}:{answer.count}:{answer.client_nonce}"
    expected = _md5(f"{ha1 or _UNKNOWN}:{nonces}:auth:{ha2}")
    same = hmac.compare_digest(expected.encode(), answer.response.lower().encode("utf-8", "replace"))
    # A web server in front may have put something before the path, or taken it away.
    return same and ha1 is not None and asked.rpartition("/")[2] == path.rpartition("/")[2]


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
