"""The storages of the copytools gfal and lsm for the contract."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pilot.copytool import load_copytool
from tests.contract.storages import Storage
from tests.services.certificates import Authority
from tests.services.webdav import XrootdHttpServer

NOBODY = 65534


class MountedStorage(Storage):
    """A mounted disk, used by child processes: what they may is judged by all their user ids."""

    def __init__(self, folder: Path, tool: str, **options: Any) -> None:
        self.folder = folder
        folder.mkdir()
        self.tool = load_copytool(tool, **options)

    def url(self, name: str) -> str:
        return self.path(name).as_uri()

    def path(self, name: str) -> Path:
        return self.folder / name

    def own(self, path: Path) -> None:
        """Ours already."""

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)


class GfalServerStorage(Storage):
    """A folder of an XRootD server behind ``base``, which ends in a slash; ``options`` go to the copytool."""

    def __init__(self, server: XrootdHttpServer, base: str, **options: Any) -> None:
        self.server = server
        self.base = base
        self.folder = uuid.uuid4().hex
        (server.data / self.folder).mkdir()
        server.own(server.data / self.folder)
        self.tool = load_copytool("gfal", **options)

    def url(self, name: str) -> str:
        return f"{self.base}{self.folder}/{quote(name)}"

    def path(self, name: str) -> Path:
        return self.server.data / self.folder / name

    def own(self, path: Path) -> None:
        self.server.own(path)

    @contextlib.contextmanager
    def ordinary_user(self) -> Iterator[None]:
        yield  # the server is one


def gfal_root(request: pytest.FixtureRequest, use: str) -> Storage:
    """XRootD's own protocol."""
    server: XrootdHttpServer = request.getfixturevalue("xrootd_http")
    return GfalServerStorage(server, f"{server.url}/", use=use)


def gfal_davs(request: pytest.FixtureRequest, use: str) -> Storage:
    """The same server by HTTPS."""
    server: XrootdHttpServer = request.getfixturevalue("xrootd_http")
    authority: Authority = request.getfixturevalue("authority")
    base = server.https_url.replace("https:", "davs:") + "/"
    return GfalServerStorage(server, base, use=use, ca=str(authority.folder))


def gfal_file(request: pytest.FixtureRequest, use: str) -> Storage:
    """A mounted disk."""
    work: Path = request.getfixturevalue("work")
    return MountedStorage(work / "storage", "gfal", use=use)


#: The distribution's own Python, that every user may run; else ours.
SITE_PYTHON = next((path for path in (Path("/usr/bin/python3"),) if path.exists()), Path(sys.executable))


def site_commands(folder: Path) -> dict[str, Any]:
    """Install a site's own commands in a folder; the copytool's options that name them."""
    folder.mkdir()
    program = Path(__file__).with_name("site_commands.py").read_text()
    for role in ("get", "put", "rm", "stat"):
        command = folder / f"lsm-{role}"
        command.write_text(f"#!{SITE_PYTHON} -I\n{program}")
        command.chmod(0o755)
    return {role: str(folder / f"lsm-{role}") for role in ("get", "put", "rm", "stat")}


def lsm_storage(request: pytest.FixtureRequest) -> Storage:
    """A mounted disk behind a site's own commands."""
    work: Path = request.getfixturevalue("work")
    return MountedStorage(work / "storage", "lsm", **site_commands(work / "site"))


def _gfal(make: Callable[[pytest.FixtureRequest, str], Storage], use: str) -> Callable[..., Storage]:
    def storage(request: pytest.FixtureRequest) -> Storage:
        request.getfixturevalue("gfal")
        return make(request, use)

    return storage


#: The commands start a Python for each call, and a TLS session with it: the contract goes through them with the protocol
#: that costs least, tests/contract/test_gfal.py with the others.
OTHER_STORAGES: dict[str, Callable[[pytest.FixtureRequest], Storage]] = {
    "real_gfal_root": _gfal(gfal_root, "bindings"),
    "real_gfal_davs": _gfal(gfal_davs, "bindings"),
    "real_gfal_file": _gfal(gfal_file, "bindings"),
    "real_gfal_commands": _gfal(gfal_file, "commands"),
    "lsm": lsm_storage,
}
