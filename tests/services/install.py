"""Installing what a service needs from the distribution's packages: locked, idempotent, only as root with apt-get."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.services.base import ServiceFailed, ServiceUnavailable, run

LOCK = Path("/run/pilotage-test-services.lock")
POLICY = Path("/usr/sbin/policy-rc.d")
APT_WAIT = ("-o", "DPkg::Lock::Timeout=560")  # seconds to wait for another apt-get on this machine
INSTALL_TIMEOUT = 560.0


def can_install() -> bool:
    """Whether packages can be installed here: root, with apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def missing(commands: Sequence[str]) -> list[str]:
    """Those of the commands that are not on PATH."""
    return [command for command in commands if shutil.which(command) is None]


def state_of(present: bool) -> str:
    """One word or two for the header line of a test run."""
    if present:
        return "installed"
    return "to be installed" if can_install() else "unavailable (not installed; needs root and apt-get)"


def demand_apt(service: str) -> None:
    """Raise ServiceUnavailable unless packages can be installed here."""
    if not can_install():
        raise ServiceUnavailable(f"{service} is not installed, and installing it needs root and apt-get")


@contextlib.contextmanager
def install_lock() -> Iterator[None]:
    """Hold the machine-wide lock of these fixtures, so that test runs side by side install one after another."""
    with LOCK.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def apt_environment() -> dict[str, str]:
    """The environment for apt-get: nobody to ask, messages in English."""
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}


def apt_get(*words: str, cwd: Path | None = None) -> str:
    """Run ``apt-get`` with these words; raise ServiceUnavailable, with its message, when it fails."""
    try:
        return run(["apt-get", "-q", *APT_WAIT, *words], timeout=INSTALL_TIMEOUT, env=apt_environment(), cwd=cwd)
    except ServiceFailed as error:
        raise ServiceUnavailable(f"installing failed: {error}") from error


@functools.lru_cache(maxsize=1)
def refresh_lists() -> None:
    """``apt-get update``, once in a test run. The caller holds the install lock."""
    apt_get("update")


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Inside the block packages don't start the daemons that they bring (they'd listen where they like)."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


def install_packages(service: str, packages: Sequence[str]) -> None:
    """Install distribution packages, with nothing that they merely recommend.

    Raises ServiceUnavailable where that can't be done: not root, no apt-get, no such package, mirror out of reach.
    """
    demand_apt(service)
    with install_lock():
        refresh_lists()
        with no_service_starts():
            apt_get("install", "-y", "--no-install-recommends", *packages)


def unpack(package_file: Path, target: Path) -> None:
    """Unpack a .deb into ``target`` without running its scripts; links to folders stay links."""
    archive = package_file.with_suffix(".tar")
    run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "unpack", package_file, archive])
    try:
        run(["tar", "-x", "--keep-directory-symlink", "--no-same-owner", "-f", archive, "-C", target])
    finally:
        archive.unlink()
