"""A real sshd on loopback, for an account of the test run's own, with keys of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.base import Service, ServiceFailed, ServiceUnavailable, free_port, give_to, require, run
from tests.services.install import install_packages, state_of

PROGRAM = Path("/usr/sbin/sshd")
PACKAGES = ("openssh-server", "openssh-client")
SEPARATION = Path("/run/sshd")
"""Where sshd insists on an empty folder."""


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(PROGRAM.exists() and shutil.which("ssh") is not None)


def install() -> None:
    """Install OpenSSH when missing; raises ServiceUnavailable."""
    if os.geteuid() != 0:
        raise ServiceUnavailable("an sshd that lets another account in needs root")
    if not PROGRAM.exists() or shutil.which("ssh") is None:
        install_packages("sshd", PACKAGES)
        if not PROGRAM.exists():
            raise ServiceFailed(f"packages {' '.join(PACKAGES)} brought no {PROGRAM}")


@dataclass(frozen=True)
class Account:
    """An account of this machine."""

    name: str
    home: Path


class SshServer(Service):
    """Lets ``account`` in on 127.0.0.1, by ``key_file`` alone; ``known_hosts`` names its own key."""

    def __init__(self, folder: Path, account: Account) -> None:
        folder.mkdir()
        self.account = account
        self.port = free_port()
        self.key_file, host_key = folder / "key", folder / "host_key"
        for key in (self.key_file, host_key):
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        self.known_hosts = folder / "known_hosts"
        public = host_key.with_suffix(".pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")
        authorized = folder / "authorized_keys"
        authorized.write_text(self.key_file.with_suffix(".pub").read_text())
        SEPARATION.mkdir(mode=0o755, exist_ok=True)
        config = folder / "sshd_config"
        config.write_text("\n".join([*self._config(host_key, authorized), ""]))
        super().__init__(
            "sshd",
            ["setpriv", "--pdeathsig", "TERM", PROGRAM, "-D", "-e", "-f", config],
            folder / "log",
            self._greets,
        )

    def _config(self, host_key: Path, authorized: Path) -> list[str]:
        return [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {authorized}",
            f"AllowUsers {self.account.name}",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "MaxSessions 20",
        ]

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def make_account(folder: Path) -> Account:
    """An account with a home in ``folder``."""
    home = folder / "grid-home"
    name = f"grid{uuid.uuid4().hex[:8]}"
    run(["useradd", "--no-create-home", "--user-group", "--home-dir", home, "--shell", "/bin/bash", name])
    home.mkdir()
    give_to(name, home)
    # Locked accounts get no login, not even by key: a password that nothing matches is no lock.
    run(["usermod", "--password", "*", name])
    return Account(name, home)


@pytest.fixture(scope="session")
def grid_account(services_folder: Path) -> Iterator[Account]:
    """An ordinary account of this machine, removed at the end."""
    require(install)
    account = make_account(services_folder)
    yield account
    user_id = pwd.getpwnam(account.name).pw_uid
    leftover = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _owner(entry) == user_id]
    for pid in leftover:
        run(["sh", "-c", 'kill -KILL "$1" 2>/dev/null || true', "kill", pid])
    run(["userdel", account.name])


@pytest.fixture(scope="session")
def sshd(services_folder: Path, grid_account: Account) -> Iterator[SshServer]:
    """A running sshd for the whole session."""
    server = SshServer(services_folder / "sshd", grid_account)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _owner(entry: Path) -> int:
    try:
        return entry.stat().st_uid
    except OSError:
        return -1
