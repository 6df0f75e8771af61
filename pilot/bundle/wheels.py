"""What the pilot needs from elsewhere: wheels for a machine and a Python that need not be those of this process."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ErrorCode, PilotageError
from common.plugins import DISTRIBUTION

if TYPE_CHECKING:
    from packaging.requirements import Requirement

logger = logging.getLogger(__name__)

PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
"""The Python versions that a bundle is made for unless told otherwise."""
OLDEST = {"3.9": "3.9.2"}
"""The oldest patch release in use where the first is not (Debian 11 has this one): cryptography refuses 3.9.0 and 3.9.1."""
ARCHES = ("x86_64", "aarch64")
GLIBC = ((2, 17), (2, 28))
"""The C libraries whose wheels will do, the preferred first: of CentOS 7, and of what is in use now (RHEL 8)."""
LEFT_OUT = frozenset({"markdown-it-py", "mdurl", "pygments"})
"""What the pilot does without: rich uses them for Markdown and the colours of source only."""
FETCH_S = 900.0
"""How long pip may take for one version of Python."""
ROUNDS = 6
"""How often what wheels ask for is fetched in turn; each round goes one step deeper."""
SKIPPED = re.compile(r"(^|/)(tests?|__pycache__)/|\.(pyi|pyx|pxd|c|h|a)$|\.data/(scripts|headers|data)/")
KEPT_METADATA = re.compile(r"\.dist-info/(METADATA|entry_points\.txt|licenses/.*|LICEN[CS]E.*|NOTICE.*)$")


@dataclass(frozen=True)
class Wheel:
    """A wheel on disk."""

    path: Path

    @property
    def name(self) -> str:
        """The distribution's name in its normal form."""
        return plain(self.path.name.split("-")[0])

    @cached_property
    def requirements(self) -> list[str]:
        """What it asks for, with markers."""
        with zipfile.ZipFile(self.path) as packed:
            name = next(name for name in packed.namelist() if name.endswith(".dist-info/METADATA"))
            return HeaderParser().parsestr(packed.read(name).decode("utf-8")).get_all("Requires-Dist", [])

    @property
    def glibc(self) -> tuple[int, int]:
        """The oldest C library that it runs with; (0, 0) if it does not care."""
        found = re.findall(r"manylinux_(\d+)_(\d+)_", self.path.name)
        return min(((int(major), int(minor)) for major, minor in found), default=(0, 0))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Its files that a program needs, by where they belong below a folder of packages; licences are kept."""
        with zipfile.ZipFile(self.path) as packed:
            for name in packed.namelist():
                if name.endswith("/") or (SKIPPED.search(name) and ".dist-info/" not in name):
                    continue
                if ".dist-info/" in name and not KEPT_METADATA.search(name):
                    continue
                yield re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name), packed.read(name)


def plain(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels(arch: str, python: str, further: Sequence[str], folder: Path) -> list[Wheel]:
    """The wheels that a pilot needs on a machine ``arch`` with Python ``python``, and those of the requirements
    ``further``, in the order of their names.

    Those in ``folder`` are used as they are, if it is there; else pip fetches them there. Raises PilotageError
    (BAD_CONFIGURATION) when they cannot be had, or when something is missing in that folder.
    """
    wanted = [*_own_requirements(arch, python), *(_requirement(text) for text in further)]
    if folder.is_dir():
        found, missing = _look(folder, wanted, arch, python)
        if missing:
            names = ", ".join(str(one) for one in missing)
            raise _trouble(f"{folder} lacks wheels for {names}: remove the folder, and they are fetched anew")
        logger.info("Python %s: the %d wheels in %s are used as they are", python, len(found), folder)
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as temporary:
            fresh = Path(temporary) / "wheels"
            _fetch(arch, python, [_bare(one) for one in wanted], fresh)
            # pip asks the markers of what it fetches about the Python that it runs on, not about the one asked for.
            _, missing = _look(fresh, wanted, arch, python)
            if not missing:
                fresh.replace(folder)
                return _look(folder, wanted, arch, python)[0]
        wanted += missing
    raise _trouble(f"Python {python}: the wheels ask for more and more: {', '.join(map(str, missing))}")


def _look(folder: Path, wanted: Sequence[Requirement], arch: str, python: str) -> tuple[list[Wheel], list[Requirement]]:
    """The wheels of a folder that a bundle takes, and what ``wanted`` and they themselves ask for and is not there."""
    found = [wheel for path in sorted(folder.glob("*.whl")) if (wheel := Wheel(path)).name not in LEFT_OUT]
    have = {wheel.name for wheel in found} | LEFT_OUT
    needs = [*wanted, *(_requirement(text) for wheel in found for text in wheel.requirements)]
    missing = {
        plain(need.name): need for need in needs if plain(need.name) not in have and _applies(need, arch, python)
    }
    return found, [missing[name] for name in sorted(missing)]


def _own_requirements(arch: str, python: str) -> list[Requirement]:
    declared = map(_requirement, metadata.requires(DISTRIBUTION) or [])
    return [one for one in declared if plain(one.name) not in LEFT_OUT and _applies(one, arch, python)]


def _requirement(text: str) -> Requirement:
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError as error:
        raise _trouble("making a bundle needs the Python module packaging: pip install 'pilotage[bundle]'") from error
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise _trouble(f"{text!r} is no requirement: {error}") from error


def _bare(requirement: Requirement) -> str:
    """Without its marker, which has been asked already."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _applies(requirement: Requirement, arch: str, python: str) -> bool:
    there = {
        "python_version": python,
        "python_full_version": OLDEST.get(python, f"{python}.0"),
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": arch,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(there)


def _fetch(arch: str, python: str, wanted: Sequence[str], folder: Path) -> None:
    platforms = [word for major, minor in GLIBC for word in ("--platform", f"manylinux_{major}_{minor}_{arch}")]
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", OLDEST.get(python, python)),
        *platforms,
        *("--dest", str(folder)),
        *wanted,
    ]
    logger.info("Python %s: pip fetches %s", python, " ".join(wanted))
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired as error:
        raise _trouble(f"Python {python}: pip has not fetched the packages within {FETCH_S:.0f} s") from error
    if done.returncode != 0:
        words = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))[-2000:]
        raise _trouble(f"Python {python}, {arch}: pip could not fetch the packages: {words}")


def _trouble(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
