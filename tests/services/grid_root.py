"""A Debian 13 tree with HTCondor and ARC in it, which Debian 12 doesn't have; made once, kept in ``.services``.

For the pilots that start there it has what a grid site's nodes have: Python, XRootD's bindings, Apptainer.

Programs enter it with pivot_root in a mount namespace of their own: a plain chroot does not do, because HTCondor's starter
makes namespaces, which the kernel refuses to whoever lives in a chroot. Nothing of the tree itself is written to while
programs run: ``/run``, ``/var/tmp`` and ``/var/lock`` are new and empty in every namespace, and what else a service
writes belongs into a folder of its own below ``/tmp``, which is the same inside and outside. So test runs side by side share
the tree.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.apptainer import debian_mirror, install_into
from tests.services.base import ServiceFailed, ServiceUnavailable, require, run
from tests.services.debian_tree import TOOL
from tests.services.install import demand_apt, install_packages, missing, state_of

FOLDER = Path(__file__).parents[2] / ".services"
SUITE = "trixie"
PACKAGES = (
    *("ca-certificates", "curl", "dash", "mount", "openssl", "perl", "procps", "python3"),
    *("condor", "minicondor"),
    *("nordugrid-arc-arex", "nordugrid-arc-client", "nordugrid-arc-plugins-needed"),
    *("python3-xrootd", "libseccomp2", "libsqlite3-0"),
)
USER, USER_ID = "grid", 5000
"""Whom jobs run as: HTCondor refuses to run them as root."""
MAKE_S = 560.0
VERSION = "2"
"""Changes with what is in the tree, so that older trees are made anew."""
LEASH = ("--pdeathsig", "KILL")  # to be given again after a change of user, which takes it off
# Before packages are set up: none may start its daemons, and ARC's wants this machine to know its own name.
PREPARE = """
printf '#!/bin/sh\\nexit 101\\n' > "$1/usr/sbin/policy-rc.d" && chmod 755 "$1/usr/sbin/policy-rc.d"
name=$(uname -n | cut -d. -f1)
printf '127.0.0.1 localhost\\n127.0.0.1 %s.localdomain %s\\n' "$name" "$name" > "$1/etc/hosts"
"""
# Writable places and the host's /tmp; the old root goes. What a daemon mounts stays in its namespace.
ENTER = """
root=$1; shift
mount --bind "$root" "$root" && mount -t proc proc "$root/proc" || exit 1
mount --rbind /sys "$root/sys" && mount --rbind /dev "$root/dev" && mount --bind /tmp "$root/tmp" || exit 1
mount -t tmpfs -o mode=755 none "$root/run" && mount -t tmpfs -o mode=1777 none "$root/var/tmp" || exit 1
mkdir -p "$root/run/old" "$root/run/lock/condor" "$root/run/condor" "$root/run/user" || exit 1
cd "$root" && pivot_root . run/old && cd / && umount -l /run/old || exit 1
chown condor:condor /run/condor /run/lock/condor
exec "$@"
"""


@dataclass(frozen=True)
class GridRoot:
    """The tree at ``root``; its users are root, those of its packages, and ``grid``."""

    root: Path

    def command(self, *words: str | Path, user: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """The words that run ``words`` in the tree, as its root or as a ``user`` of it, with no environment but ``env``.

        They end with this process; a daemon's own process id is that of these words (for :class:`Service`).
        """
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root" if user is None else f"/home/{user}"}
        variables.update(env or {})
        switch = [] if user is None else ["setpriv", "--reuid", user, "--regid", user, "--init-groups", *LEASH]
        return [
            *("setpriv", *LEASH),
            *("unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "enter", str(self.root)),
            *("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *(*switch, *(str(word) for word in words)),
        ]

    def user_id(self, name: str) -> tuple[int, int]:
        """The ids of a user of the tree and of its group. Raises ServiceFailed."""
        for line in (self.root / "etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2]), int(fields[3])
        raise ServiceFailed(f"{self.root}: it has no user {name}")

    def run(
        self,
        *words: str | Path,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 240.0,
    ) -> str:
        """Run ``words`` in the tree to their end; their output. Raises ServiceFailed when they fail."""
        return run(self.command(*words, user=user, env=env), timeout=timeout)


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(_whole().exists())


def install() -> GridRoot:
    """The tree, made when missing; raises ServiceUnavailable."""
    if os.geteuid() != 0:
        raise ServiceUnavailable("a Debian 13 tree with HTCondor and ARC: making and entering it needs root")
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "grid-root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole().exists():
            try:
                _make()
            except ServiceFailed as error:
                raise ServiceUnavailable(f"a Debian 13 tree with HTCondor and ARC cannot be made: {error}") from error
    return GridRoot(_root())


def _root() -> Path:
    return FOLDER / f"grid-root-{VERSION}"


def _whole() -> Path:
    """Its presence says that the tree is whole."""
    return _root() / "etc/pilotage-whole"


def _make() -> None:
    demand_apt(TOOL)
    if missing([TOOL]):
        install_packages(TOOL, [TOOL])
    root = _root()
    shutil.rmtree(root, ignore_errors=True)
    run(
        [
            # In a mount namespace of its own, so that nothing stays mounted in a tree that could not be finished.
            *("unshare", "--mount", "--propagation", "private"),
            *(TOOL, "--quiet", "--mode=root", "--variant=apt", f"--include={','.join(PACKAGES)}"),
            *("--aptopt=Acquire::Check-Valid-Until false", f"--essential-hook={PREPARE}"),
            *(SUITE, str(root), debian_mirror()),
        ],
        timeout=MAKE_S,
    )
    install_into(root)
    run(["chroot", root, "useradd", "--create-home", "--uid", str(USER_ID), USER])
    _whole().touch()


@pytest.fixture(scope="session")
def grid_root() -> GridRoot:
    """The Debian 13 tree with HTCondor and ARC in it."""
    return require(install)
