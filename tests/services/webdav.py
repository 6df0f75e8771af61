"""Real storages that speak HTTP: WebDAV by wsgidav, in several guises, and XRootD's own HTTPS with X.509 and proxies."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.services.base import Service, free_port, give_to, require, require_module
from tests.services.certificates import Authority
from tests.services.install import install_packages, missing, state_of
from tests.services.xrootd import XrootdServer, install

USER = "nobody"
PROGRAM = Path(__file__).with_name("webdav_program.py")
PERSON = "Grid User"


def status() -> str:
    """For the header of a test run: installed, or unavailable."""
    try:
        import wsgidav  # noqa: F401
    except ImportError:
        return "unavailable (pip install wsgidav cheroot)"
    return state_of(True)


class WebdavServer(Service):
    """A WebDAV server on loopback that serves ``data`` as ``/``, as the user nobody where the tests run as root.

    ``settings`` are those of :mod:`tests.services.webdav_program`; ``authority`` gives it a certificate; ``data`` is
    the folder of another one, where it is to serve the same.
    """

    def __init__(
        self, folder: Path, authority: Authority | None = None, *, data: Path | None = None, **settings: Any
    ) -> None:
        folder.mkdir()
        self.port = free_port()
        self.data = data or folder / "data"
        self.data.mkdir(exist_ok=True)
        give_to(USER, self.data)
        settings.update(root=str(self.data), port=self.port)
        if os.geteuid() == 0:
            settings["uid"] = pwd.getpwnam(USER).pw_uid
        if authority is not None:
            certificate, key = folder / "host.pem", folder / "host.key"
            authority.host().write(certificate, key)
            settings.update(certificate=str(certificate), key=str(key))
        self.scheme = "http" if authority is None else "https"
        file = folder / "settings.json"
        file.touch(0o600)
        file.write_text(json.dumps(settings))
        super().__init__("webdav", [sys.executable, PROGRAM, file], folder / "log", self._listens)

    @property
    def url(self) -> str:
        """The server's address, without a slash at its end."""
        return f"{self.scheme}://localhost:{self.port}"

    def own(self, path: Path) -> None:
        """Give a file made behind the server's back to its user."""
        give_to(USER, path)

    def _listens(self) -> bool:
        return listens(self.port)


class XrootdHttpServer(XrootdServer):
    """An XRootD server that speaks HTTPS too. ``demands_proxy``: only the person ``PERSON`` may do anything there."""

    def __init__(self, folder: Path, authority: Authority, *, demands_proxy: bool = False) -> None:
        keys = Path(f"{folder}-keys")
        keys.mkdir()
        certificate, key = keys / "host.pem", keys / "host.key"
        authority.host().write(certificate, key)
        give_to("xrootd", key)
        self.https_port = free_port()
        super().__init__(
            folder,
            [
                f"xrd.tls {certificate} {key}",
                f"xrd.tlsca certdir {authority.folder}",
                f"xrd.protocol XrdHttp:{self.https_port} libXrdHttp.so",
                "http.listingdeny no",
                "http.selfhttps2http no",
                *(self._access(keys) if demands_proxy else []),
            ],
        )

    @staticmethod
    def _access(keys: Path) -> Sequence[str]:
        (keys / "grid-mapfile").write_text(f'"/DC=pilotage/CN={PERSON}" griduser\n')
        (keys / "authdb").write_text("u griduser / a\n")
        return [f"http.gridmap {keys}/grid-mapfile", "ofs.authorize 1", f"acc.authdb {keys}/authdb"]

    @property
    def https_url(self) -> str:
        """The server's address for HTTPS, without a slash at its end."""
        return f"https://localhost:{self.https_port}"

    def own(self, path: Path) -> None:
        """Give a file made behind the server's back to its user."""
        if os.geteuid() == 0:
            shutil.chown(path, "xrootd", "xrootd")

    def _answers_handshake(self) -> bool:
        return super()._answers_handshake() and listens(self.https_port)


def listens(port: int) -> bool:
    """Whether something on this machine listens at a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def authority(services_folder: Path) -> Authority:
    """The certificate authority of this test run."""
    if missing(["openssl"]):
        require(lambda: install_packages("openssl", ["openssl"]))
    return Authority(services_folder / "certificates")


@pytest.fixture(scope="session")
def webdav(services_folder: Path) -> Iterator[WebdavServer]:
    """A running WebDAV server for the whole session; give each test a folder of its own on it."""
    require_module("wsgidav")
    yield from started(WebdavServer(services_folder / "webdav"))


@pytest.fixture(scope="session")
def xrootd_http(services_folder: Path, authority: Authority) -> Iterator[XrootdHttpServer]:
    """A running XRootD server that speaks HTTPS, for everybody."""
    require(install)
    yield from started(require(lambda: XrootdHttpServer(services_folder / "xrootd-http", authority)))


@pytest.fixture(scope="session")
def xrootd_for_proxies(services_folder: Path, authority: Authority) -> Iterator[XrootdHttpServer]:
    """A running XRootD server that speaks HTTPS with one person only."""
    require(install)
    folder = services_folder / "xrootd-for-proxies"
    yield from started(require(lambda: XrootdHttpServer(folder, authority, demands_proxy=True)))


def started(server: Service) -> Iterator[Any]:
    """A server that runs until the test, or the session, ends."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
