"""A real Apptainer. Debian 12 has no package of it: Debian sid's build is made to run there with the libc it wants."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.base import ServiceFailed, ServiceUnavailable, require, run
from tests.services.install import apt_get, demand_apt, install_lock, install_packages, state_of, unpack

HOST_PACKAGES = (
    "patchelf",
    "squashfuse",
    "squashfs-tools",
    "uidmap",
    "fuse-overlayfs",
    "libseccomp2",
    "libsqlite3-0",
)
SUITE = "sid"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MULTIARCH = "x86_64-linux-gnu"
PROGRAM = Path("usr/bin/apptainer")
BUNDLED_LIBC = Path("/usr/local/lib/apptainer-glibc")
LIBC_FILES = (
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "libnss_files.so.2",
    "libnss_dns.so.2",
)


@dataclass(frozen=True)
class Apptainer:
    """``binary``: the program; ``exec_flags``: what ``exec`` and ``build`` need besides for the user that we are."""

    binary: str
    exec_flags: tuple[str, ...]

    def exec(self, image: Path, *command: str, flags: tuple[str, ...] = ()) -> str:
        """Run a command in a new, contained instance of the image; returns its standard output."""
        words = [self.binary, "-q", "exec", *self.exec_flags, "--containall", "--cleanenv", *flags, str(image)]
        return run([*words, *command])

    def build_sif(self, image: Path, target: Path) -> Path:
        """Pack an image folder into the SIF file ``target`` and return it."""
        quick = ("--mksquashfs-args", "-Xcompression-level 1")  # the file is read a few times and thrown away
        run([self.binary, "-q", "build", "-F", *self.exec_flags, *quick, target, image], timeout=560)
        return target


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(shutil.which("apptainer") is not None)


def install() -> Apptainer:
    """The Apptainer on PATH, installed when missing; raises ServiceUnavailable."""
    binary = shutil.which("apptainer")
    if binary is None:
        install_into(Path("/"))
        binary = shutil.which("apptainer")
        if binary is None:
            raise ServiceFailed("apptainer was installed to /usr/bin, which is not on PATH")
    run([binary, "version"])
    # Root has to ask for a user namespace: without it Apptainer wants capabilities that a container's root lacks.
    return Apptainer(binary, ("--userns",) if os.geteuid() == 0 else ())


def install_into(root: Path) -> None:
    """Put Apptainer into the tree at ``root``: this machine's own, or another one of a Debian release.

    Raises ServiceUnavailable.
    """
    demand_apt("apptainer")
    if platform.machine() != "x86_64" or not Path(KEYRING).exists():
        raise ServiceUnavailable("apptainer is not installed, and its package for this machine is unknown: install it")
    mirror = debian_mirror()
    install_packages("apptainer", HOST_PACKAGES)
    with install_lock(), tempfile.TemporaryDirectory(prefix="pilotage-apptainer-") as name:
        if (root / PROGRAM).exists():  # a run beside this one was faster
            return
        folder = Path(name)
        folder.chmod(0o755)
        packages = _download(folder, mirror)
        trees = {package: folder / package for package in packages}
        for package, tree in trees.items():
            tree.mkdir()
            unpack(packages[package], tree)
        _bundle_libc(trees["libc6"], root)
        _copy_program(trees["apptainer"], root)


def debian_mirror(sources: Path = Path("/etc/apt")) -> str:
    """The Debian mirror that this machine's apt uses; raises ServiceUnavailable when none is configured."""
    for pattern, line in (
        ("sources.list.d/debian.sources", r"^URIs:\s*(\S+)"),
        ("sources.list", r"^deb\s.*?(\w+://\S+)"),
    ):
        for path in sources.glob(pattern):
            found = re.search(line, path.read_text(), re.MULTILINE)
            if found:
                return found.group(1)
    raise ServiceUnavailable(f"no Debian mirror in {sources}: install apptainer by hand")


def _download(folder: Path, mirror: str) -> dict[str, Path]:
    """Fetch the packages from sid with package lists of their own: the machine's apt stays at its release."""
    listing = folder / "sid.list"
    listing.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": listing,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    names = ("libc6", "apptainer")
    apt_get(*options, "update")
    apt_get(*options, "download", *names, cwd=folder)
    return {name: next(folder.glob(f"{name}_*.deb")) for name in names}


def _bundle_libc(tree: Path, root: Path) -> None:
    target = root / BUNDLED_LIBC.relative_to("/")
    target.mkdir(parents=True, exist_ok=True)
    for name in LIBC_FILES:
        shutil.copy2(tree / "usr/lib" / MULTIARCH / name, target / name)


def _copy_program(tree: Path, root: Path) -> None:
    """Point the two dynamic programs at the bundled libc and copy all to where Apptainer looks for its parts."""
    parts = Path("usr/lib") / MULTIARCH / "apptainer"
    for binary in (tree / PROGRAM, tree / parts / "bin/starter"):
        interpreter = BUNDLED_LIBC / LIBC_FILES[0]
        search = f"{BUNDLED_LIBC}:/usr/lib/{MULTIARCH}"
        run(["patchelf", "--set-interpreter", interpreter, "--set-rpath", search, binary])
    for folder in (Path("etc/apptainer"), parts):
        shutil.copytree(tree / folder, root / folder, symlinks=True, dirs_exist_ok=True)
    (root / "var/lib/apptainer/mnt/session").mkdir(parents=True, exist_ok=True)
    # The program comes last and in one step: its presence says that the installation is whole.
    fresh = root / PROGRAM.with_name(".apptainer.new")
    shutil.copy2(tree / PROGRAM, fresh)
    fresh.rename(root / PROGRAM)


@pytest.fixture(scope="session")
def apptainer() -> Apptainer:
    """Apptainer, installed when missing, with the flags that the current user needs."""
    return require(install)
