"""What ``pilotage login`` leaves behind: a file of mode 0600 for each server, whose token is renewed as it is needed."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import msgspec

from common.cli.strict import InputError
from common.clock import Clock, SystemClock
from common.http import HttpClient, ProblemError
from common.oidc import OidcError, OidcHttp, renew
from common.problem import FieldError
from common.tokens import read_secret_file, write_secret_file
from common.wire import LoginGrant, LoginRenewal

log = logging.getLogger(__name__)

OURS = "pilotage"
RENEW_AHEAD_S = 60.0
"""How long before a token's end it is renewed."""
_ENDED = (401, 403)


class Session(msgspec.Struct, kw_only=True):
    """A login at one server. ``issuer`` is ``pilotage`` for the server's own, else the label of another issuer."""

    server: str
    issuer: str
    access_token: str
    expires: float
    refresh_token: str = ""
    token_endpoint: str = ""
    client_id: str = ""


def session_file(server_url: str, environ: Mapping[str, str]) -> Path:
    """Where the login at a server is kept."""
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".local" / "state")
    name = hashlib.sha256(server_url.rstrip("/").encode()).hexdigest()[:16]
    return Path(base) / "pilotage" / "logins" / f"{name}.json"


def load_session(server_url: str, environ: Mapping[str, str]) -> Optional[Session]:
    """The login at a server, None if there is none. Raises InputError, or SecretFileError."""
    path = session_file(server_url, environ)
    if not path.exists():
        return None
    try:
        found = msgspec.json.decode(read_secret_file(path).encode(), type=Session)
    except msgspec.DecodeError as error:
        raise InputError(str(path), [FieldError("", f"it cannot be read ({error}): log in again")]) from error
    # The file's name is only a hash of the address.
    return found if found.server == server_url.rstrip("/") else None


def save_session(session: Session, environ: Mapping[str, str]) -> Path:
    """Keep a login; the file. Raises OSError."""
    path = session_file(session.server, environ)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret_file(path, msgspec.json.encode(session).decode("ascii"))
    return path


def remove_session(server_url: str, environ: Mapping[str, str]) -> None:
    """Forget a login. Raises OSError."""
    session_file(server_url, environ).unlink(missing_ok=True)


def session_token(
    server_url: str, environ: Mapping[str, str], ca_file: Optional[str], clock: Optional[Clock] = None
) -> Optional[str]:
    """The token of the login at a server, renewed where that is due; None without a login, or when it has ended.

    Raises HttpError when it has to be renewed and the server cannot be reached.
    """
    clock = clock or SystemClock()
    session = load_session(server_url, environ)
    if session is None or session.expires - clock.now() > RENEW_AHEAD_S:
        return session.access_token if session is not None else None
    with _locked(session_file(server_url, environ)):
        session = load_session(server_url, environ)  # another command may have renewed it meanwhile
        if session is None or session.expires - clock.now() > RENEW_AHEAD_S:
            return session.access_token if session is not None else None
        try:
            renewed = _renewed(session, ca_file, clock)
        except ProblemError as error:
            if error.status not in _ENDED:
                raise
            renewed = None
        except OidcError as error:
            log.warning("the login cannot be renewed: %s", error)
            renewed = None
        if renewed is not None:
            save_session(renewed, environ)
            return renewed.access_token
    if session.expires > clock.now():
        return session.access_token
    log.warning("your login at %s has ended; run: pilotage login", session.server)
    return None


def _renewed(session: Session, ca_file: Optional[str], clock: Clock) -> Optional[Session]:
    if not session.refresh_token:
        return None
    if session.issuer != OURS:
        # The system's authorities, not the server's: the issuer is somebody else.
        got = renew(OidcHttp(), session.token_endpoint, session.client_id, session.refresh_token)
        return msgspec.structs.replace(
            session,
            access_token=got.access_token,
            refresh_token=got.refresh_token,
            expires=clock.now() + got.expires_s,
        )
    client = HttpClient(session.server, ca_file=ca_file, retries=2)
    try:
        grant = client.call("POST", "/v1/login:renew", LoginRenewal(session.refresh_token), LoginGrant)
    finally:
        client.close()
    return granted(session.server, grant)


def granted(server_url: str, grant: LoginGrant) -> Session:
    """The login that the server's own issuer gave."""
    return Session(
        server=server_url.rstrip("/"),
        issuer=OURS,
        access_token=grant.access_token,
        expires=grant.expires,
        refresh_token=grant.refresh_token,
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two commands that renew at once would look like a thief to the server."""
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
