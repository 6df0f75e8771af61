"""Image folders for Apptainer, built from the distribution's packages: a tiny busybox and a Python with uproot.

The packages are unpacked, not installed, so that no container, chroot or root is needed to build one.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.services.apptainer import Apptainer
from tests.services.base import ServiceFailed, ServiceUnavailable, require, run
from tests.services.install import apt_get, can_install, install_lock, refresh_lists, unpack

PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/sh\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"
MOUNT_POINTS = ("dev", "proc", "sys", "tmp", "var/tmp", "root", "home", "data", "etc", "run")
MERGED_FOLDERS = ("bin", "sbin", "lib", "lib64")
SYSTEM_PACKAGES = ("bash", "coreutils", "dash", "findutils", "grep", "gzip", "libc-bin", "libstdc++6", "procps", "sed")
PYTHON_PACKAGES = ("uproot", "numpy", "awkward")


def download_packages(folder: Path, packages: tuple[str, ...], *, with_dependencies: bool) -> list[Path]:
    """Fetch packages of this machine's release into ``folder``; raises ServiceUnavailable."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ServiceUnavailable("building an image needs apt-get and dpkg-deb")
    (folder / "partial").mkdir(parents=True)
    # An empty status file makes apt see a machine with nothing installed: it then names every dependency.
    settings = {"Dir::State::status": "/dev/null", "Dir::Cache::archives": str(folder), "APT::Sandbox::User": "root"}
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    options += ["-o", "Debug::NoLocking=1"]
    words = ["install", "-y", "--no-install-recommends", "--download-only"] if with_dependencies else ["download"]
    if can_install():
        with install_lock():
            refresh_lists()
            apt_get(*options, *words, *packages, cwd=folder)
    else:
        apt_get(*options, *words, *packages, cwd=folder)
    return sorted(folder.glob("*.deb"))


def finish_tree(root: Path) -> None:
    """Add what every image needs and no unpacked package brings: mount points and the two name tables."""
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)


def build_busybox(folder: Path) -> Path:
    """Build an image folder with busybox and all of its applets; returns its path."""
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    packages = download_packages(folder / "packages", ("busybox-static",), with_dependencies=False)
    tree = folder / "busybox-static"
    tree.mkdir()
    unpack(packages[0], tree)
    busybox = root / "bin/busybox"
    shutil.copy2(tree / "bin/busybox", busybox)
    for applet in run([busybox, "--list"]).split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "usr").mkdir()
    for name in ("usr/bin", "usr/sbin", "sbin"):
        (root / name).symlink_to("/bin")
    finish_tree(root)
    return root


def build_python(folder: Path) -> Path:
    """Build an image folder with the release's Python, uproot, numpy and awkward; returns its path."""
    root = folder / "image"
    for name in MERGED_FOLDERS:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    packages = download_packages(folder / "packages", ("python3", *SYSTEM_PACKAGES), with_dependencies=True)
    for package in packages:
        unpack(package, root)
    shutil.rmtree(folder / "packages")
    install_python_packages(root)
    finish_tree(root)
    return root


def install_python_packages(root: Path) -> None:
    """Put wheels for the image's Python, which need not be the version that runs the tests, into the image."""
    version = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    target = root / f"usr/local/lib/python{version}/dist-packages"
    choice = ["--target", str(target), "--python-version", version, "--only-binary=:all:"]
    try:
        run(
            [sys.executable, "-m", "pip", "install", "--quiet", *choice, *PYTHON_PACKAGES],
            timeout=560,
            env={**os.environ, "PIP_USER": "0"},
        )
    except ServiceFailed as error:
        raise ServiceUnavailable(f"the wheels for the Python image cannot be had: {error}") from error


def demand_fuse() -> None:
    """Raise ServiceUnavailable where we cannot mount a SIF file (image folders need no mount)."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ServiceUnavailable("running a SIF image needs read and write on /dev/fuse: chmod 666 /dev/fuse as root")


@pytest.fixture(scope="session")
def busybox_image(apptainer: Apptainer, services_folder: Path) -> Path:
    """An image folder of 1 MB with busybox: sh, cat, cp, env, head, id, ls, mkfifo, mv, sleep, wc and the rest."""
    return require(lambda: build_busybox(services_folder / "busybox"))


@pytest.fixture(scope="session")
def busybox_sif(apptainer: Apptainer, busybox_image: Path, services_folder: Path) -> Path:
    """``busybox_image`` packed into a SIF file."""
    require(demand_fuse)
    return apptainer.build_sif(busybox_image, services_folder / "busybox.sif")


@pytest.fixture(scope="session")
def python_image(apptainer: Apptainer, services_folder: Path) -> Path:
    """An image folder in which ``python3 -c 'import uproot'`` works, with numpy, awkward, bash and coreutils."""
    return require(lambda: build_python(services_folder / "python"))


@pytest.fixture(scope="session")
def python_sif(apptainer: Apptainer, python_image: Path, services_folder: Path) -> Path:
    """``python_image`` packed into a SIF file."""
    require(demand_fuse)
    return apptainer.build_sif(python_image, services_folder / "python.sif")
