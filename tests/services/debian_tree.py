"""Clean trees of other Debian releases, with a Python and nothing of ours in them, entered as an unprivileged user."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.apptainer import debian_mirror
from tests.services.base import ServiceUnavailable, require, run
from tests.services.install import demand_apt, install_packages, missing, state_of

USER_ID = 5000
HOME = "/home/grid"
TOOL = "mmdebstrap"
PACKAGES = ("python3", "dash", "coreutils", "libc-bin", "base-files", "base-passwd")
MAKE_S = 560.0
# In a mount namespace of its own, so that what is mounted goes with the process.
ENTER = f"""
root=$1; shift
mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" || exit 1
exec chroot --userspec={USER_ID}:{USER_ID} "$root" "$@"
"""


@dataclass(frozen=True)
class DebianTree:
    """A tree at ``root``; its user has the home ``/home/grid``."""

    suite: str
    root: Path

    @property
    def home(self) -> Path:
        """The user's home as seen from outside."""
        return self.root / HOME[1:]

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> list[str]:
        """The words that run ``words`` in the tree as its user, with no environment but ``env``."""
        variables = {"HOME": HOME, "PATH": "/usr/bin:/bin", **(env or {})}
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "enter", str(self.root)),
            *("/usr/bin/env", "-i", "-C", HOME, *(f"{name}={value}" for name, value in variables.items()), *words),
        ]

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``words`` in the tree to their end."""
        return subprocess.run(
            self.command(*words, env=env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )

    def put(self, source: Path, name: str, mode: int = 0o755) -> str:
        """Copy a file into the tree; its path there."""
        target = self.root / "opt" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)
        return f"/opt/{name}"


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(not missing([TOOL]))


def make(suite: str, folder: Path) -> DebianTree:
    """A new tree of a Debian release in ``folder``, of packages from the mirror that this machine uses.

    Raises ServiceUnavailable.
    """
    if os.geteuid() != 0:
        raise ServiceUnavailable("entering a Debian tree needs root")
    demand_apt(TOOL)
    if missing([TOOL]):
        install_packages(TOOL, [TOOL])
    root = folder / f"debian-{suite}"
    # Packages are only unpacked: nothing of them that a program needs is made by their scripts, but for the two below.
    run(
        [
            *(TOOL, "--quiet", "--mode=root", "--variant=extract", f"--include={','.join(PACKAGES)}"),
            *("--aptopt=Acquire::Check-Valid-Until false", suite, str(root), debian_mirror()),
        ],
        timeout=MAKE_S,
    )
    if not (root / "bin/sh").exists():
        (root / "bin/sh").symlink_to("dash")
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/root:/bin/sh\ngrid:x:{USER_ID}:{USER_ID}:grid:{HOME}:/bin/sh\n")
    (root / "etc/group").write_text(f"root:x:0:\ngrid:x:{USER_ID}:\n")
    tree = DebianTree(suite, root)
    tree.home.mkdir()
    os.chown(tree.home, USER_ID, USER_ID)
    return tree


@pytest.fixture(scope="session")
def debian_tree(services_folder: Path) -> Iterator[Callable[[str], DebianTree]]:
    """Gives the tree of a release by its name, made when first asked for."""
    made: dict[str, DebianTree] = {}

    def get(suite: str) -> DebianTree:
        if suite not in made:
            made[suite] = require(lambda: make(suite, services_folder))
        return made[suite]

    yield get
    for tree in made.values():
        shutil.rmtree(tree.root, ignore_errors=True)
