"""Unpacking a user's sandbox where the payload starts, without letting the archive write anywhere else.

An archive is a stranger's: names that are absolute or go upwards, links that lead out of the folder, devices, hard links
and sparse files are refused, and so is one that is too large when unpacked or has too many members.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from common.errors import ErrorCode, PilotageError
from common.wire import AssignedSandbox

MAX_BYTES = 4 * 1024**3
MAX_MEMBERS = 50_000
_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Unpacked:
    """What lies at the top of the payload's folder since: file names with inode, size and time of the last change."""

    files: dict[str, tuple[int, int, int]]

    def unchanged(self, folder: Path) -> set[str]:
        """Those that the payload did not touch: they are its input, and no output whatever their names."""
        return {name for name, mark in self.files.items() if _mark(folder / name) == mark}


NOTHING = Unpacked({})


def unpack(content: bytes, wanted: AssignedSandbox, folder: Path, most_bytes: int = MAX_BYTES) -> Unpacked:
    """Check ``content`` and unpack it into ``folder``, which the payload has not seen yet.

    Raises PilotageError: STAGE_IN_FAILED (what came is not what was promised), BAD_SANDBOX (it must not be unpacked).
    """
    if len(content) != wanted.size or hashlib.sha256(content).hexdigest() != wanted.sha256:
        raise PilotageError(ErrorCode.STAGE_IN_FAILED, f"the sandbox came damaged: {len(content)} bytes")
    try:
        with tarfile.open(fileobj=BytesIO(content), mode="r:gz") as archive:
            members = _checked(archive, most_bytes)
            for member in members:
                _write(archive, member, folder)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        raise _bad(f"it is no gzipped tar archive: {error}") from error
    except OSError as error:
        raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"the sandbox cannot be unpacked: {error}") from error
    names = {PurePosixPath(member.name).parts[0] for member in members if PurePosixPath(member.name).parts}
    marks = {name: _mark(folder / name) for name in names}
    return Unpacked({name: mark for name, mark in marks.items() if mark is not None})


def _checked(archive: tarfile.TarFile, most_bytes: int) -> Sequence[tarfile.TarInfo]:
    """The members in the order in which they can be written: links at last. Nothing is written before all are checked."""
    members: list[tarfile.TarInfo] = []
    links: set[PurePosixPath] = set()
    total = 0
    for member in archive:
        members.append(member)
        total += member.size
        if len(members) > MAX_MEMBERS:
            raise _bad(f"it has more than {MAX_MEMBERS} members")
        if total > most_bytes:
            raise _bad(f"unpacked it has more than {most_bytes} bytes")
        path = _inside(member)
        if member.issym():
            _check_link(member, path)
            links.add(path)
        elif not (member.isdir() or (member.isreg() and not member.issparse())):
            raise _bad(f"{member.name!r} is neither a file, a folder nor a symbolic link")
    for member in members:
        path = PurePosixPath(member.name)
        through = links & set(path.parents) or (links & {path} and not member.issym())
        if through:
            raise _bad(f"{member.name!r} goes through a link")
    return sorted(members, key=lambda member: member.issym())


def _inside(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise _bad(f"{member.name!r} leads out of the folder")
    return path


def _check_link(member: tarfile.TarInfo, path: PurePosixPath) -> None:
    """Upward steps may only come first, and no more of them than there are folders above the link: what comes behind
    them may be a link again, but one that was checked likewise."""
    parts = PurePosixPath(member.linkname).parts
    ups = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    if not parts or parts[0] == "/" or ".." in parts[ups:] or ups > len(path.parts) - 1:
        raise _bad(f"the link {member.name!r} leads out of the folder, to {member.linkname!r}")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    target = folder.joinpath(*PurePosixPath(member.name).parts)
    if member.isdir():
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if member.issym():
        if target.is_symlink():
            target.unlink()
        target.symlink_to(member.linkname)
        return
    source = archive.extractfile(member)
    if source is None:
        raise _bad(f"{member.name!r} has no content")
    mode = 0o700 if member.mode & 0o100 else 0o600
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with source, os.fdopen(descriptor, "wb") as stream:
        while piece := source.read(_CHUNK):
            stream.write(piece)


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _bad(detail: str) -> PilotageError:
    return PilotageError(ErrorCode.BAD_SANDBOX, f"the sandbox must not be unpacked: {detail}")
