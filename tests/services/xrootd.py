"""A real XRootD server: anonymous, protocol root, adler32 checksums, on loopback only."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import pytest

from tests.services.base import Service, ServiceFailed, free_port, give_to, require, run, switch_to
from tests.services.install import install_packages, missing, state_of

USER = "xrootd"
COMMANDS = ("xrootd", "gcc")
PACKAGES = ("xrootd-server", "xrootd-server-plugins", "xrootd-client", "xrootd-plugins", "gcc", "libc6-dev")
NODE_PYTHON = "/usr/bin/python3"
"""The distribution's own Python: what a pilot on this machine gets to run on, as on a worker node."""
SHIM_SOURCE = Path(__file__).with_name("lo_bind.c")
HANDSHAKE = struct.pack("!5i", 0, 0, 0, 4, 2012)  # XRootD protocol specification: initial handshake
HANDSHAKE_ANSWER = struct.pack("!hhi", 0, 0, 8)  # stream 0, status ok, 8 bytes follow


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(not missing(COMMANDS))


def install() -> None:
    """Install the server and the compiler for the loopback shim when missing; raises ServiceUnavailable."""
    if missing(COMMANDS):
        install_packages("xrootd", PACKAGES)
        if missing(COMMANDS):
            raise ServiceFailed(f"packages {' '.join(PACKAGES)} brought no {' '.join(missing(COMMANDS))}")


def install_bindings() -> None:
    """Give the distribution's own Python XRootD's bindings, as a worker node has them; raises ServiceUnavailable."""
    if subprocess.run([NODE_PYTHON, "-c", "import XRootD.client"], capture_output=True).returncode != 0:
        install_packages("xrootd-bindings", ["python3-xrootd"])


def compile_shim(folder: Path) -> Path:
    """Compile the shim that turns any-address binds into loopback binds; returns the shared object."""
    target = folder / "lo_bind.so"
    run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", target, SHIM_SOURCE, "-ldl"])
    return target


class XrootdServer(Service):
    """An XRootD server on loopback that serves ``data`` as ``/``, readable and writable by anybody.

    ``extra_config`` holds lines added to the configuration (further protocols, security); ``around`` are the words of a
    command that runs the server.
    """

    def __init__(self, folder: Path, extra_config: Sequence[str] = (), around: Sequence[str | Path] = ()) -> None:
        folder.mkdir()
        self.port = free_port()
        self.data = folder / "data"
        admin = folder / "admin"
        for path in (self.data, admin):
            path.mkdir()
        give_to(USER, self.data, admin)
        config = folder / "xrootd.cfg"
        config.write_text("\n".join([*self._config(admin), *extra_config, ""]))
        # -s: without it the server writes a file of fixed name into /tmp, where test runs side by side would meet.
        options = ["-c", str(config), "-I", "v4", "-n", "test", "-s", str(admin / "pid")]
        server = ["env", f"LD_PRELOAD={compile_shim(folder)}", "xrootd", *options]
        super().__init__(
            "xrootd",
            [*around, *switch_to(USER), *server],
            folder / "log",
            self._answers_handshake,
            env={**os.environ, "HOME": str(admin)},
            cwd=admin,
        )

    def _config(self, admin: Path) -> list[str]:
        return [
            "all.export /",
            f"oss.localroot {self.data}",
            f"all.adminpath {admin}",
            f"all.pidpath {admin}",
            f"xrd.port {self.port}",
            "xrootd.chksum max 16 adler32",
        ]

    @property
    def url(self) -> str:
        """The server's address, ending in a slash; a file's URL is this plus its absolute path (two slashes)."""
        return f"root://localhost:{self.port}/"

    def put(self, local: Path, remote: str) -> str:
        """Copy a local file straight into the served folder as ``remote`` (an absolute path); returns its URL."""
        path = self.local_path(remote)
        self._make_folders(path.parent)
        shutil.copyfile(local, path)
        path.chmod(0o644)
        give_to(USER, path)
        return f"{self.url}{remote}"

    def local_path(self, remote: str) -> Path:
        """Where the file ``remote`` (an absolute path) lies on disk; raises ValueError for one outside ``data``."""
        pure = PurePosixPath(remote)
        if not pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"remote path {remote!r}: give an absolute path without '..'")
        return self.data / pure.relative_to("/")

    def _make_folders(self, folder: Path) -> None:
        if folder.exists():
            return
        self._make_folders(folder.parent)
        folder.mkdir()
        give_to(USER, folder)

    def _answers_handshake(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
                connection.sendall(HANDSHAKE)
                return connection.recv(len(HANDSHAKE_ANSWER)) == HANDSHAKE_ANSWER
        except OSError:
            return False


@pytest.fixture(scope="session")
def xrootd(services_folder: Path) -> Iterator[XrootdServer]:
    """A running XRootD server for the whole session; give each test a folder of its own on it."""
    require(install)
    server = require(lambda: XrootdServer(services_folder / "xrootd"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def node_bindings() -> None:
    """XRootD's bindings for the distribution's own Python."""
    require(install_bindings)
