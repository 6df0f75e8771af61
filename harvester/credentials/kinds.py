"""Kinds of credentials that somebody else makes: by a command, in a file, or at an issuer of tokens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.errors import PilotageError
from common.http import HttpClient
from common.log import mask
from common.oidc import OidcHttp, client_credentials, discover, renew
from common.tokens import SecretFileError, check_bearer, read_secret_file, write_secret_file
from common.wire import LoginGrant, LoginRenewal
from harvester.credentials.base import CommonKeys, CredentialError, read_keys

MOST_CHARS = 65536
"""The longest credential that makes sense."""
_TAIL = 300


class CommandKeys(CommonKeys, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keys of kind ``command``."""

    command: Annotated[list[str], msgspec.Meta(min_length=1)]
    """What to run, without a shell, such as ``["oidc-token", "--time", "3600", "pilotage"]``; it prints the credential."""
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0
    """How long it may take."""


class CommandSource:
    """A command that prints a credential, such as ``oidc-token``, ``htgettoken`` or a script of the site."""

    def __init__(self, keys: CommandKeys) -> None:
        self._keys = keys

    @classmethod
    def create(cls, keys: Mapping[str, Any], _memory: Path, _clock: Clock) -> CommandSource:
        """Make one from its table. Raises ConfigError."""
        return cls(read_keys(keys, CommandKeys))

    def obtain(self) -> str:
        """What it prints."""
        name = self._keys.command[0]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PILOTAGE_")}
        try:
            done = subprocess.run(
                self._keys.command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._keys.timeout_s,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CredentialError(f"{name} has not ended within {self._keys.timeout_s:g} s") from error
        except OSError as error:
            raise CredentialError(f"{name} cannot be run: {error.strerror}") from error
        if done.returncode:
            said = mask(done.stderr.decode("utf-8", "replace").strip())[-_TAIL:]
            raise CredentialError(f"{name} ended with exit code {done.returncode}: {said or 'it said nothing'}")
        return _usable(done.stdout, name)


class FileKeys(CommonKeys, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keys of kind ``file``."""

    file: str
    """A file of mode 0600 (or 0400) with the credential, that somebody else renews."""


class FileSource:
    """A file that somebody else renews: it is read again before its end, and there is a warning when it wasn't renewed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def create(cls, keys: Mapping[str, Any], _memory: Path, _clock: Clock) -> FileSource:
        """Make one from its table. Raises ConfigError."""
        return cls(Path(read_keys(keys, FileKeys).file).expanduser().absolute())

    def obtain(self) -> str:
        """What is in the file."""
        try:
            return _usable(read_secret_file(self._path).encode(), str(self._path))
        except SecretFileError as error:
            raise CredentialError(error.detail) from error


class IssuerKeys(CommonKeys, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Keys of kind ``issuer``: ``client_secret_file`` or ``refresh_token_file`` says how it lets harvester in."""

    issuer: str
    """The issuer's address (OpenID Connect); or that of a Pilotage server, with ``pilotage = true``."""
    pilotage: bool = False
    """Whether it is a Pilotage server's own issuer."""
    client_id: str = ""
    """Harvester's name at the issuer."""
    client_secret_file: str | None = None
    """A file of mode 0600 with its secret there: a token for itself (client credentials)."""
    refresh_token_file: str | None = None
    """A file of mode 0600 with a refresh token to begin with; the later ones are kept in the state_dir."""
    scopes: list[str] = []
    """What the token is to be good for, such as ``compute.create``."""
    audience: str = ""
    """Whom the token is for, such as the CE."""
    ca_file: str | None = None
    """Certificate authorities to verify the issuer with (PEM), in place of the system's."""


class IssuerSource:
    """An issuer of tokens: client credentials, a refresh token, or the login of a Pilotage server."""

    def __init__(self, keys: IssuerKeys, remembered: Path) -> None:
        self._keys = keys
        self._remembered = remembered

    @classmethod
    def create(cls, keys: Mapping[str, Any], memory: Path, _clock: Clock) -> IssuerSource:
        """Make one from its table. Raises ConfigError."""
        read = read_keys(keys, IssuerKeys)
        if (read.client_secret_file is None) == (read.refresh_token_file is None):
            raise ConfigError("client_secret_file, refresh_token_file: give exactly one of the two")
        if read.pilotage and read.refresh_token_file is None:
            raise ConfigError("refresh_token_file: a Pilotage server's issuer takes nothing else; see pilotage login")
        if not read.pilotage and not read.client_id:
            raise ConfigError("client_id: it is missing; harvester must be registered at the issuer")
        return cls(read, memory)

    def obtain(self) -> str:
        """A new token."""
        try:
            if self._keys.pilotage:
                return self._from_server()
            http = OidcHttp(Path(self._keys.ca_file).expanduser() if self._keys.ca_file else None)
            endpoint = discover(http, self._keys.issuer).token_endpoint
            if self._keys.client_secret_file is not None:
                secret = read_secret_file(Path(self._keys.client_secret_file).expanduser())
                got = client_credentials(
                    http, endpoint, self._keys.client_id, secret, self._keys.scopes, self._keys.audience
                )
            else:
                got = renew(http, endpoint, self._keys.client_id, self._refresh_token())
                self._remember(got.refresh_token)
            return check_bearer(got.access_token)
        except PilotageError as error:
            raise CredentialError(error.detail) from error
        except OSError as error:
            raise CredentialError(f"{self._remembered}: {error.strerror}") from error

    def _from_server(self) -> str:
        ca_file = Path(self._keys.ca_file).expanduser() if self._keys.ca_file else None
        client = HttpClient(self._keys.issuer, ca_file=ca_file, retries=2)
        try:
            grant = client.call("POST", "/v1/login:renew", LoginRenewal(self._refresh_token()), LoginGrant)
        finally:
            client.close()
        self._remember(grant.refresh_token)
        return check_bearer(grant.access_token)

    def _refresh_token(self) -> str:
        """The last one that was got; that of the file when it is newer, or there is no other."""
        given = Path(self._keys.refresh_token_file or "").expanduser()
        if not self._remembered.exists() or (
            given.exists() and given.stat().st_mtime > self._remembered.stat().st_mtime
        ):
            return read_secret_file(given)
        return read_secret_file(self._remembered)

    def _remember(self, refresh_token: str) -> None:
        write_secret_file(self._remembered, refresh_token)


def _usable(printed: bytes, where: str) -> str:
    try:
        text = printed.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise CredentialError(f"{where}: it gave something else than a credential in plain text") from error
    if not text or len(text) > MOST_CHARS:
        raise CredentialError(f"{where}: it gave {'nothing' if not text else 'far too much'}")
    if "-----BEGIN" in text:
        return text
    try:
        return check_bearer(text)
    except SecretFileError as error:
        raise CredentialError(f"{where}: {error.detail}") from error
