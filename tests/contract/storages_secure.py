"""XRootD storages that let nobody in without a credential, for the contract of copytools."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pilot.copytool import load_copytool
from pilot.copytool.credentials import Credential
from tests.contract.storages import Storage
from tests.services.certificates import Authority, write_proxy
from tests.services.xrootd_secure import PERSON, ProxyXrootd, SecureXrootd, TokenIssuer, TokenXrootd


class Source:
    """A credential source whose credential the test exchanges; ``asked`` are the URLs, and whether it was for writing."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.asked: list[tuple[str, bool]] = []

    def for_url(self, url: str, *, write: bool) -> Credential:
        """What there is now."""
        self.asked.append((url, write))
        return self.credential


class SecureStorage(Storage):
    """A folder of such a server."""

    def __init__(self, server: SecureXrootd, source: Source) -> None:
        self.server = server
        self.source = source
        self.folder = f"/{uuid.uuid4().hex}"
        server.local_path(self.folder).mkdir()
        server.own(server.local_path(self.folder))
        self.tool = load_copytool("xrootd", credentials=source)

    def url(self, name: str) -> str:
        return f"{self.server.url}{self.folder}/{quote(name)}"

    def path(self, name: str) -> Path:
        return self.server.local_path(f"{self.folder}/{name}")

    def own(self, path: Path) -> None:
        self.server.own(path)

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        yield  # the server is one


class TokenStorage(SecureStorage):
    """One for tokens; ``give`` mints one for the storage's own folder."""

    def __init__(self, server: TokenXrootd, issuer: TokenIssuer, folder: Path) -> None:
        super().__init__(server, Source(Credential()))
        self.audience = server.audience
        self.issuer = issuer
        self.files = folder
        self.give()

    def give(self, life_s: float = 600.0, *words: str) -> Credential:
        """Show a new token from now on."""
        scopes = [f"storage.{word}:{self.folder}" for word in words or ("read", "create", "modify")]
        issuer = self.issuer
        token, number = issuer.signer.mint(issuer.url, "p", self.audience, scopes, life_s, time.time())
        file = self.files / f"token-{number}"
        file.touch(0o600)
        file.write_text(token)
        self.source.credential = Credential(token, None, file)
        return self.source.credential


def token_storage(request: pytest.FixtureRequest) -> TokenStorage:
    """With tokens of Pilotage's own issuer."""
    server, issuer = request.getfixturevalue("xrootd_tokens"), request.getfixturevalue("token_issuer")
    return TokenStorage(server, issuer, request.getfixturevalue("tmp_path"))


def proxy_storage(request: pytest.FixtureRequest) -> SecureStorage:
    """With a proxy (GSI)."""
    authority: Authority = request.getfixturevalue("authority")
    server: ProxyXrootd = request.getfixturevalue("xrootd_proxies")
    file: Path = request.getfixturevalue("tmp_path") / "proxy.pem"
    write_proxy(authority.person(PERSON), file)
    return SecureStorage(server, Source(Credential(proxy_file=file)))


SECURE_STORAGES: dict[str, Callable[[pytest.FixtureRequest], Storage]] = {
    "real_xrootd_tokens": token_storage,
    "real_xrootd_proxies": proxy_storage,
}
