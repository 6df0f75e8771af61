"""PanDA's own client, ``panda-client`` from PyPI, in a virtual environment of its own; run as its users run it."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.services.base import ServiceFailed, ServiceUnavailable, require, run
from tests.services.install import state_of

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".services" / "panda-client"
VERSION = "2.2.0"
INSTALL_TIMEOUT = 560.0
COMMAND_TIMEOUT = 240.0


def status() -> str:
    """For the header of a test run: installed, to be installed."""
    return state_of(True) if _whole().exists() else "to be installed"


def _whole() -> Path:
    """Its presence says that the installation is whole."""
    return VENV / f".installed-{VERSION}"


def install() -> Path:
    """The virtual environment, installed from PyPI when missing; raises ServiceUnavailable."""
    VENV.parent.mkdir(exist_ok=True)
    with (VENV.parent / "panda-client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole().exists():
            try:
                run([sys.executable, "-m", "venv", "--clear", VENV])
                pip = [VENV / "bin/python", "-m", "pip", "install", "--quiet", f"panda-client=={VERSION}"]
                run(pip, timeout=INSTALL_TIMEOUT)
            except ServiceFailed as error:
                raise ServiceUnavailable(f"installing panda-client failed: {error}") from error
            _whole().touch()
    return VENV


class PandaClient:
    """The commands of ``panda-client``, with their settings below ``folder`` and the server at ``url``."""

    def __init__(self, venv: Path, folder: Path, url: str, token: str) -> None:
        self.venv = venv
        self.folder = folder
        base = f"{url}/server/panda"
        self.environment = {
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PATH": f"{venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "VIRTUAL_ENV": str(venv),
            "PANDA_SYS": str(venv),
            "PANDA_CONFIG_ROOT": str(folder / ".panda"),
            "PANDA_URL": base,
            "PANDA_URL_SSL": base,
            "PANDACACHE_URL": base,
            "PANDA_BEHIND_REAL_LB": "1",
            "PANDA_AUTH": "oidc",
            "PANDA_AUTH_VO": "test",
            "PANDA_AUTH_ID_TOKEN": token,
        }

    def run(
        self, *words: str, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One of its commands to its end; standard error goes with standard output."""
        return subprocess.run(
            [str(self.venv / "bin" / words[0]), *words[1:]],
            cwd=cwd or self.folder,
            env={**self.environment, **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )

    def python(self, program: str) -> str:
        """What a program prints that uses the client's Python API. Fails with its output."""
        environment = {name: value for name, value in self.environment.items() if name != "PANDA_SYS"}
        done = subprocess.run(
            [str(self.venv / "bin" / "python"), "-W", "ignore", "-c", program],
            cwd=self.folder,
            env={**environment, "PANDA_SYS": str(self.venv)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def panda_client_venv() -> Path:
    """Where ``panda-client`` is installed."""
    return require(install)


def installed_sources(venv: Path) -> Path:
    """The folder of the client's modules."""
    return next((venv / "lib").glob("python3.*/site-packages/pandaclient"))
