"""Tokens and secrets: signed tokens of pilots and people; files of mode 0600; where a user's token is found."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import hmac
import math
import os
import re
import secrets
import stat
import struct
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from common.clock import Clock
from common.errors import ErrorCode, PilotageError

ALGORITHM = "HS256"
KEY_BYTES = 32
LEEWAY_S = 30.0
"""How far the clocks of two machines may differ: a token counts that much longer.

A token from the future is taken: it is ours, and a server whose clock was set back must not turn its pilots away.
"""
SECRET_PREFIX = "pls_"
"""What every secret of ours begins with, so that the log filter and secret scanners know one when they see it."""
PILOT_PREFIX = "plp_"
"""What a pilot's token begins with."""
REFRESH_PREFIX = "plr_"
"""What a token begins with that renews a login."""
CODE_PREFIX = "plc_"
"""What a one-time code begins with, with which a person logs in for the first time."""
SESSION_BYTES = 20

_PILOT = struct.Struct(">QII")  # pilot, end in seconds since the epoch, revocation epoch
_REFRESH = struct.Struct(f">{SESSION_BYTES}sQ")  # login, how often it was renewed
_MAC_BYTES = 32
_MOST_U32 = 2**32 - 1

_REGISTERED = frozenset({"iss", "sub", "exp", "iat", "jti", "roles", "nbf", "aud"})
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_MAX_TOKEN_CHARS = 8192


class TokenError(Exception):
    """A token that is not accepted. ``expired``: it was good once, and may be renewed."""

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        self.expired = expired
        super().__init__(reason)


class SecretFileError(PilotageError):
    """A file with a secret that cannot be used: missing, readable by others, empty. Never shows what is in it."""

    def __init__(self, detail: str) -> None:
        super().__init__(ErrorCode.BAD_CONFIGURATION, detail)


@dataclass(frozen=True)
class Claims:
    """What a valid token says. Moments are in seconds since the epoch; ``extra`` holds the issuer's own claims."""

    subject: str
    roles: list[str]
    expires: float
    token_id: str
    extra: dict[str, Any] = field(default_factory=dict)
    issued: float = 0.0


class PilotClaims(NamedTuple):
    """What a valid token of a pilot says; ``epoch`` is the revocation epoch in which it was minted."""

    pilot_id: int
    expires: float
    epoch: int


class TokenIssuer:
    """Mints and verifies the tokens of one installation, signed with a key that only its servers have.

    Raises ValueError for a key of fewer than 32 bytes.
    """

    def __init__(self, key: bytes, issuer: str, clock: Clock) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"key: it has {len(key)} bytes; {ALGORITHM} needs at least {KEY_BYTES}")
        self._key = key
        self._issuer = issuer
        self._clock = clock
        # A key for each kind, so that nothing signed for one purpose, or for another installation, serves another.
        self._pilot_mac = hmac.new(self._derive(b"pilot"), digestmod="sha256")
        self._refresh_mac = hmac.new(self._derive(b"refresh"), digestmod="sha256")

    @property
    def issuer(self) -> str:
        """The name in its tokens."""
        return self._issuer

    def _derive(self, purpose: bytes) -> bytes:
        return hmac.digest(self._key, b"pilotage 1\0" + purpose + b"\0" + self._issuer.encode(), "sha256")

    def derived_key(self, purpose: str) -> bytes:
        """A key of 32 bytes for another purpose, from which nobody learns this one."""
        return self._derive(b"for " + purpose.encode())

    def mint(self, subject: str, roles: Sequence[str], ttl_s: float, **claims: object) -> str:
        """A token for ``subject`` that is good for ``ttl_s`` seconds. Raises ValueError for a claim with a fixed meaning."""
        taken = sorted(_REGISTERED & claims.keys())
        if taken:
            raise ValueError(f"claims: {', '.join(taken)} cannot be chosen; use another name")
        import jwt  # of no use to a pilot, and it takes 10 MB and a fifth of a second

        now = self._clock.now()
        fixed = {
            "iss": self._issuer,
            "sub": subject,
            "roles": list(roles),
            "iat": int(now),
            "nbf": int(now),
            "exp": math.ceil(now + ttl_s),
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode({**claims, **fixed}, self._key, algorithm=ALGORITHM)

    def verify(self, token: str, *, allow_expired_for_s: float = 0.0) -> Claims:
        """What ``token`` says, if this installation signed it and it has not expired (give or take LEEWAY_S).

        ``allow_expired_for_s`` also accepts one that expired at most so many seconds ago: a pilot renews its token after
        an outage. Raises TokenError.
        """
        import jwt

        if len(token) > _MAX_TOKEN_CHARS or not token.isascii():
            raise TokenError("the token is not valid: it is too long or not plain text")
        try:
            payload = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                # Times are compared below, with the injected clock.
                options={
                    "require": ["iss", "sub", "exp", "iat", "jti"],
                    "verify_exp": False,
                    "verify_iat": False,
                    "verify_nbf": False,
                },
            )
        except (jwt.PyJWTError, RecursionError) as error:  # the latter from older PyJWT, for a deeply nested header
            raise TokenError(f"the token is not valid: {error}") from error
        claims = _claims(payload)
        now = self._clock.now()
        if now >= claims.expires + LEEWAY_S + allow_expired_for_s:
            raise TokenError("the token has expired", expired=True)
        return claims

    def mint_pilot(self, pilot_id: int, ttl_s: float, epoch: int = 0) -> tuple[str, float]:
        """A pilot's token, which verifies in microseconds, and the moment of its end."""
        expires = min(math.ceil(self._clock.now() + ttl_s), _MOST_U32)
        return _seal(PILOT_PREFIX, self._pilot_mac, _PILOT.pack(pilot_id, expires, epoch)), float(expires)

    def verify_pilot(self, token: str, *, epoch: int = 0, allow_expired_for_s: float = 0.0) -> PilotClaims:
        """What a pilot's token says, if this installation signed it, no earlier than in ``epoch``.

        ``allow_expired_for_s`` as for :meth:`verify`. Raises TokenError.
        """
        claims = PilotClaims(*_PILOT.unpack(_unseal(PILOT_PREFIX, self._pilot_mac, token, _PILOT.size)))
        if claims.epoch < epoch:
            raise TokenError("the token was revoked, with all others of its time")
        if self._clock.now() >= claims.expires + LEEWAY_S + allow_expired_for_s:
            raise TokenError("the token has expired", expired=True)
        return claims

    def mint_refresh(self, session: str, counter: int) -> str:
        """The token that renews a login (SESSION_BYTES in hex) for the ``counter``-th time: always the same one."""
        return _seal(REFRESH_PREFIX, self._refresh_mac, _REFRESH.pack(bytes.fromhex(session), counter))

    def verify_refresh(self, token: str) -> tuple[str, int]:
        """The login and the counter of such a token. Whether that login still stands, a database says. Raises TokenError."""
        session, counter = _REFRESH.unpack(_unseal(REFRESH_PREFIX, self._refresh_mac, token, _REFRESH.size))
        return session.hex(), counter


def _digest(mac: hmac.HMAC, payload: bytes) -> bytes:
    # Unlike hmac.digest() this does not let other threads run meanwhile: for so few bytes that costs more than it gives.
    keyed = mac.copy()
    keyed.update(payload)
    return keyed.digest()


def _seal(prefix: str, mac: hmac.HMAC, payload: bytes) -> str:
    # The sizes are multiples of three bytes: base64 has neither padding nor bits that don't count.
    return prefix + base64.urlsafe_b64encode(payload + _digest(mac, payload)).decode("ascii")


def _unseal(prefix: str, mac: hmac.HMAC, token: str, size: int) -> bytes:
    if len(token) != len(prefix) + (size + _MAC_BYTES) * 4 // 3 or not token.startswith(prefix):
        raise TokenError("the token is not valid")
    try:
        raw = base64.b64decode(token[len(prefix) :], b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenError("the token is not valid") from error
    payload = raw[:size]
    if not hmac.compare_digest(raw[size:], _digest(mac, payload)):
        raise TokenError("the token is not valid")
    return payload


def _claims(payload: Mapping[str, Any]) -> Claims:
    roles = payload.get("roles")
    texts = [payload["sub"], payload["jti"]]
    times = [payload["exp"], payload["iat"]]
    if not (
        isinstance(roles, list)
        and all(isinstance(text, str) for text in [*texts, *roles])
        and all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in times)
        and all(math.isfinite(number) for number in times)
    ):
        raise TokenError("the token is not valid: a claim has the wrong type")
    extra = {name: value for name, value in payload.items() if name not in _REGISTERED}
    return Claims(payload["sub"], roles, float(payload["exp"]), payload["jti"], extra, float(payload["iat"]))


def new_secret() -> str:
    """A secret of 256 random bits, in characters that fit a URL or a header."""
    return SECRET_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def new_code() -> str:
    """A one-time code of 192 random bits, for a person to paste."""
    return CODE_PREFIX + secrets.token_urlsafe(24)


def hash_secret(secret: str) -> str:
    """What is stored in place of a secret: its SHA-256 in hex.

    A slow, salted hash protects passwords because people choose guessable ones. Our secrets are 256 random bits: nobody
    guesses them, and the server can look one up by its hash.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def check_bearer(token: str) -> str:
    """``token``, if it may stand in an Authorization header. Raises SecretFileError without showing it."""
    if not _BEARER.fullmatch(token):
        raise SecretFileError("the token contains characters that no bearer token has: get a new one")
    return token


def read_secret_file(path: Union[str, Path]) -> str:
    """The text in a file that only its owner can read, without white space around it. Raises SecretFileError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SecretFileError(f"{path}: it is not a regular file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & ~0o600:
                raise SecretFileError(f"{path}: its mode is {mode:04o}, others may read it; run: chmod 600 {path}")
            text = file.read().decode("ascii").strip()
    except OSError as error:
        raise SecretFileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SecretFileError(f"{path}: it holds something else than a secret in plain text") from error
    if not text:
        raise SecretFileError(f"{path}: it is empty")
    return text


def write_secret_file(path: Union[str, Path], text: str) -> None:
    """Put ``text`` into a file of mode 0600, replacing what was there in one step. Raises OSError."""
    path = Path(path)
    temporary = _write_beside(path, text)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink()
        raise
    _sync_folder(path.parent)


def create_secret_file(path: Union[str, Path], text: str) -> None:
    """Put ``text`` into a new file of mode 0600; one that is there, perhaps just made by another, stays. Raises OSError."""
    path = Path(path)
    temporary = _write_beside(path, text)
    try:
        # Unlike a rename, a link never replaces the file that somebody else has just made.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    _sync_folder(path.parent)


def load_or_create_key(path: Union[str, Path]) -> bytes:
    """The signing key in ``path`` (hex), made there if there is none yet; all who start at once get the same.

    Raises SecretFileError for a file that others may read or that holds no key, OSError when it cannot be made.
    """
    path = Path(path)
    if not path.exists():
        create_secret_file(path, secrets.token_hex(KEY_BYTES))
    try:
        key = bytes.fromhex(read_secret_file(path))
    except ValueError as error:
        raise SecretFileError(f"{path}: it holds no key of {KEY_BYTES} bytes in hex") from error
    if len(key) < KEY_BYTES:
        raise SecretFileError(f"{path}: its key has {len(key)} bytes, {KEY_BYTES} are needed; remove it for a new one")
    return key


def _write_beside(path: Path, text: str) -> Path:
    """A complete file of mode 0600 next to ``path``."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def _sync_folder(folder: Path) -> None:
    """Make a new name in ``folder`` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def discover_token(
    explicit_file: Union[str, Path, None],
    environ: Mapping[str, str],
    login: Optional[Callable[[], Optional[str]]] = None,
) -> Optional[str]:
    """The user's bearer token, or None if there is none anywhere.

    In this order: ``explicit_file``, PILOTAGE_TOKEN_FILE, what ``login`` knows (``pilotage login``), then as WLCG Bearer
    Token Discovery has it: BEARER_TOKEN, BEARER_TOKEN_FILE, $XDG_RUNTIME_DIR/bt_u$UID, /tmp/bt_u$UID. A file that was
    named must be there; the last two need not. Raises SecretFileError.
    """
    named = explicit_file or environ.get("PILOTAGE_TOKEN_FILE")
    if named:
        return check_bearer(read_secret_file(Path(named).expanduser()))
    logged_in = login() if login is not None else None
    if logged_in is not None:
        return check_bearer(logged_in)
    if environ.get("BEARER_TOKEN", "").strip():
        return check_bearer(environ["BEARER_TOKEN"].strip())
    if environ.get("BEARER_TOKEN_FILE"):
        return check_bearer(read_secret_file(environ["BEARER_TOKEN_FILE"]))
    folders = [folder for folder in (environ.get("XDG_RUNTIME_DIR"), "/tmp") if folder]
    for path in (Path(folder) / f"bt_u{os.geteuid()}" for folder in folders):
        # Anybody can put a file into /tmp: one that is not ours would make us act as somebody else.
        if path.is_file() and path.stat().st_uid == os.geteuid():
            return check_bearer(read_secret_file(path))
    return None
