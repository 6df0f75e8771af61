"""Logins, bans, revocations: who may call."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.wire.base import Message, Strict, Text

PersonName = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
"""A person as the server knows them: a name of ours, or ``issuer:subject``."""
Credential = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Whoami(Message):
    """``GET /v1/whoami``: who the caller is for the server.

    ``proof`` is how that was proved: ``pilotage``, the label of an issuer, or ``x509``.
    """

    name: str
    roles: list[str]
    groups: list[str] = []
    proof: str = ""
    expires: float = 0.0


class OutsideIssuer(Message, kw_only=True):
    """An OpenID Connect issuer whose tokens the server takes, with what a client needs to get one."""

    label: str
    issuer: str
    client_id: str = ""
    scopes: list[str] = []
    audience: str = ""


class LoginWays(Message):
    """``GET /v1/login``: the issuers with which one can log in, beside one-time codes of the server's own."""

    issuers: list[OutsideIssuer] = []


class CodeLogin(Strict):
    """``POST /v1/login``: a one-time code from an admin.

    ``nonce`` is a random text of the client: repeated with the same one, the call gives the same login again.
    """

    code: Credential
    nonce: Annotated[str, msgspec.Meta(min_length=16, max_length=128)]


class LoginRenewal(Strict):
    """``POST /v1/login:renew`` and ``POST /v1/logout``: the token that renews a login."""

    refresh_token: Credential


class LoginGrant(Message):
    """A token for calls, and the one with which to get the next. Each renewal replaces both."""

    name: str
    access_token: str
    expires: float
    refresh_token: str
    refresh_expires: float


class BanKind(str, Enum):
    """What is banned."""

    USER = "user"
    """A person: every token of theirs is refused, and their tasks get nothing."""
    HOST = "host"
    """A worker node, or all that match a pattern such as ``node*.example.org``: pilots on it get nothing."""


class BanRequest(Strict):
    """``POST /v1/bans``. ``expires`` is the moment at which it ends; without one it stays until it is lifted."""

    kind: BanKind
    name: PersonName
    reason: Text
    expires: Optional[float] = None


class BanView(Message):
    """A ban."""

    kind: BanKind
    name: str
    reason: str
    author: str
    time: float
    expires: Optional[float] = None


class BanList(Message):
    items: list[BanView] = []


class RevocationKind(str, Enum):
    """What is revoked."""

    TOKEN = "token"
    """One token of a person or program, by its id (claim ``jti``)."""
    PERSON = "person"
    """All tokens of a person or program that were issued until now, logins included."""
    PILOT = "pilot"
    """The tokens of one pilot, by its id."""


class RevocationRequest(Strict):
    """``POST /v1/revocations``."""

    kind: RevocationKind
    value: PersonName
    reason: Text


class RevocationView(Message):
    """Tokens that no longer count."""

    kind: RevocationKind
    value: str
    reason: str
    author: str
    time: float
    expires: float


class RevocationList(Message):
    items: list[RevocationView] = []
