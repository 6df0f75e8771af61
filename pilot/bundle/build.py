"""Writing the file: the start script, and behind it a zip archive of everything for every Python version.

The same input gives the same bytes: members are sorted, have one date and no owner. Each distinct content is there
once, whichever versions of Python share it; a list of files for each version says what goes where.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any, Optional

import common
import pilot
from common.errors import ErrorCode, PilotageError
from common.plugins import DISTRIBUTION, EntryPoint, version
from pilot.bundle import boot
from pilot.bundle.wheels import ARCHES, PYTHONS, wheels

logger = logging.getLogger(__name__)

PACKAGES = (common, pilot)
SUFFIXES = frozenset({".py", ".sh"})
FOLDERS = frozenset({"scripts"})
"""Folders of ours whose files are shipped whatever their names end in."""
LEFT_OUT = ("common/cli/demo", "pilot/bench/")
"""What begins so is for people at their own machines."""
COMMANDS = frozenset({"pilot"})
"""The sub-commands that a bundle has."""
DATE = (1980, 1, 1, 0, 0, 0)
LEVEL = 9
FETCHES = 3
"""For so many Python versions wheels are fetched side by side."""


@dataclass(frozen=True)
class Bundle:
    """A file that was written. ``build`` names its content, ``sha256`` is the checksum of the file itself."""

    path: Path
    version: str
    build: str
    sha256: str
    size: int
    arch: str
    pythons: tuple[str, ...]


@dataclass(frozen=True)
class _File:
    content: bytes
    executable: bool = False

    @property
    def row(self) -> list[Any]:
        """What the list of files says of it: see the indices in :mod:`pilot.bundle.boot`."""
        return [len(self.content), self.executable, self.member]

    @property
    def member(self) -> str:
        return f"blobs/{hashlib.sha256(self.content).hexdigest()[:32]}"


def write_bundle(
    output: Path,
    arch: str = ARCHES[0],
    pythons: Sequence[str] = PYTHONS,
    *,
    further: Sequence[str] = (),
    wheels_dir: Optional[Path] = None,
) -> Bundle:
    """Write the bundle ``output`` (mode 0755) for machines ``arch`` and the Python versions ``pythons``.

    ``further``: requirements of packages to put in besides, such as an experiment's plug-ins. ``wheels_dir``: use the
    wheels in ``<wheels_dir>/<arch>-<python>`` where there are any, and keep there what is fetched; without it, all is
    fetched anew. Raises PilotageError (BAD_CONFIGURATION) when the wheels cannot be had, and OSError.
    """
    with tempfile.TemporaryDirectory(prefix="pilotage-wheels-") as temporary:
        folder = wheels_dir or Path(temporary)
        members: dict[str, bytes] = {}
        about: dict[str, Any] = {"version": version(), "arch": arch, "pythons": {}}
        ours = {**dict(_product()), **_distribution()}
        versions = sorted(set(pythons), key=_number)
        with ThreadPoolExecutor(FETCHES) as pool:  # pip waits for the network most of its time
            fetched = pool.map(lambda python: wheels(arch, python, further, folder / f"{arch}-{python}"), versions)
            found_for = dict(zip(versions, fetched))
        for python, found in found_for.items():
            tree = dict(ours)
            for wheel in found:
                tree.update((name, _File(content)) for name, content in wheel.files() if name not in ours)
            listing = f"files-{python}.json"
            members[listing] = _json({name: tree[name].row for name in sorted(tree)})
            members.update((file.member, file.content) for file in tree.values())
            about["pythons"][python] = {
                "files": listing,
                "glibc": max((wheel.glibc for wheel in found), default=(0, 0)),
            }
    return _write(output, about, members)


def _product() -> Iterator[tuple[str, _File]]:
    """Our own packages, by path."""
    for package in PACKAGES:
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            name = f"{root.name}/{path.relative_to(root).as_posix()}"
            ours = path.suffix in SUFFIXES or path.parent.name in FOLDERS
            if ours and path.is_file() and "__pycache__" not in path.parts and not name.startswith(LEFT_OUT):
                yield name, _File(path.read_bytes(), os.access(path, os.X_OK))


def _distribution() -> dict[str, _File]:
    """The metadata of our distribution, with those entry points that a pilot has use for."""
    groups: dict[str, list[str]] = {}
    for entry in metadata.distribution(DISTRIBUTION).entry_points:
        if _wanted(entry):
            groups.setdefault(entry.group, []).append(f"{entry.name} = {entry.value}")
    lines = [line for group in sorted(groups) for line in (f"[{group}]", *sorted(groups[group]), "")]
    about = f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version()}\n"
    folder = f"{DISTRIBUTION}-{version()}.dist-info"
    return {
        f"{folder}/METADATA": _File(about.encode()),
        f"{folder}/entry_points.txt": _File("\n".join(lines).encode()),
    }


def _wanted(entry: EntryPoint) -> bool:
    if entry.group == "pilotage.commands":
        return entry.name in COMMANDS
    path = entry.value.partition(":")[0].replace(".", "/") + "/"
    ours = path.startswith(tuple(f"{package.__name__}/" for package in PACKAGES)) and not path.startswith(LEFT_OUT)
    return ours and entry.group.startswith("pilotage.")


def _write(output: Path, about: dict[str, Any], members: dict[str, bytes]) -> Bundle:
    script = files("pilot.bundle").joinpath("start.sh").read_text(encoding="utf-8")
    members["__main__.py"] = Path(boot.__file__).read_bytes()
    about["build"] = _build_id(about, script, members)
    members[boot.ABOUT] = _json(about)
    pythons = tuple(about["pythons"])
    names = {"VERSION": about["version"], "ARCH": about["arch"], "PYTHONS": " ".join(pythons)}
    for name, value in names.items():
        script = script.replace(f"@{name}@", value)
    output = output.absolute()
    descriptor, temporary = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    try:
        with open(descriptor, "w+b") as target:  # noqa: PTH123 - a descriptor
            target.write(script.encode("utf-8"))
            _pack(target, members)
            target.seek(0)
            digest = hashlib.sha256(target.read()).hexdigest()
            os.fchmod(target.fileno(), 0o755)
            size = target.seek(0, os.SEEK_END)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Bundle(output, about["version"], about["build"], digest, size, about["arch"], pythons)


def _pack(target: Any, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as packed:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, members[name], zipfile.ZIP_DEFLATED, LEVEL)


def _build_id(about: Mapping[str, Any], script: str, members: Mapping[str, bytes]) -> str:
    """The name of the content: a hash over all that goes in."""
    digest = hashlib.sha256(_json(about))
    for name, content in (("start.sh", script.encode("utf-8")), *sorted(members.items())):
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _number(python: str) -> tuple[int, ...]:
    """``python`` as numbers, to sort by. Raises PilotageError (BAD_CONFIGURATION) for what is no version of Python 3."""
    if python.startswith("3.") and python[2:].isdigit() and int(python[2:]) >= 9:
        return 3, int(python[2:])
    detail = f"Python {python!r}: give a version from 3.9 on, such as {PYTHONS[0]}"
    raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
