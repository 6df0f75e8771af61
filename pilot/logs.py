"""The log archive of a job: what a person needs to see why it went as it did."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from common.errors import ErrorCode, PilotageError
from pilot.payload.folder import JobFolder
from pilot.payload.safefile import UnsafeFileError, open_regular
from pilot.tails import file_tail

#: Bytes of one file; of a larger one, head and tail are kept.
MAX_FILE = 4 * 1024 * 1024
#: Small text files that the payload left are taken along, up to this size and number.
MAX_EXTRA = 1024 * 1024
MAX_EXTRA_COUNT = 100
TEXT_SUFFIXES = (".txt", ".log", ".json", ".out", ".err", ".xml", ".yaml", ".yml", ".csv")
#: What a stage or a plug-in asks for is taken whole, up to this size; and all files together up to that one.
MAX_ASKED = 64 * 1024 * 1024
MAX_TOTAL = 256 * 1024 * 1024
#: So deep, and among so many names, files that are asked for are looked for.
MAX_DEPTH = 8
MAX_NAMES = 20_000
#: An archive up to this size needs not be made lighter for the server, and where the large files of others come from.
LIGHT = 1024 * 1024
HEAVY = ("work", "evidence")
OWN_FILES = (
    "stdout",
    "stderr",
    "process-*.stdout",
    "process-*.stderr",
    "bin/jobscript",
    "bin/inputs.txt",
)


@dataclass(frozen=True)
class LogContent:
    """What goes into the archive beside the job's own logs: ``texts`` by name (the pilot's log of the job), ``files`` of
    the pilot's own in the job's folder, and files in the payload's folder whose path below it matches one of ``patterns``
    (``*.conf``, ``logs/*``). What matches one of ``without`` stays away."""

    texts: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()
    patterns: Sequence[str] = ()
    without: Sequence[str] = ()
    max_file: int = MAX_FILE
    max_asked: int = MAX_ASKED
    max_total: int = MAX_TOTAL


def make_log_archive(job_dir: Path, destination: Path, content: LogContent = LogContent()) -> Path:
    """Writes a ``.tgz`` of a job's stdout and stderr, those of the processes around the payload, the jobscript, the small
    text files in its ``work`` folder, and what ``content`` names; answers ``destination``.

    Links are never followed, neither to read nor to write: what is none of the payload's own regular files, or too much,
    is listed in ``left-out.txt``. The archive appears under its name when it is complete. Raises PilotageError
    (LOG_CREATION_FAILED).
    """
    try:
        fd, name = tempfile.mkstemp(".partial", destination.name, destination.parent)
    except OSError as error:
        raise _failed(destination, error) from error
    partial = Path(name)
    try:
        with os.fdopen(fd, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz", compresslevel=6) as archive:
            _Packer(archive, job_dir, content).pack()
        partial.replace(destination)
    except (OSError, tarfile.TarError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise _failed(destination, error) from error
    return destination


class _Packer:
    """Fills one archive."""

    def __init__(self, archive: tarfile.TarFile, job_dir: Path, content: LogContent) -> None:
        self._archive = archive
        self._job_dir = job_dir
        self._content = content
        self._left_out: list[str] = []
        self._total = 0

    def pack(self) -> None:
        content = self._content
        packed = {name for path, name in _wanted(self._job_dir, content) if self._add(path, name, content.max_file)}
        for name, text in content.texts.items():
            data = text.encode()
            self._add_bytes(name, _head_and_tail(io.BytesIO(data), len(data), content.max_file), 0)
        for path in content.files:
            self._add(path, f"{path.relative_to(self._job_dir)}", content.max_total, whole=True)
        for path, name in _asked(self._job_dir, content):
            if name not in packed:
                self._add(path, name, content.max_asked, whole=True)
        if self._left_out:
            self._add_bytes("left-out.txt", "\n".join([*self._left_out, ""]).encode(), 0)

    def _add(self, path: Path, name: str, limit: int, whole: bool = False) -> bool:
        """Adds a file; of one that is larger than ``limit`` head and tail, or nothing if it is to be ``whole``."""
        try:
            fd = open_regular(path)
        except (UnsafeFileError, OSError) as error:
            self._left_out.append(f"{name!a}: {error}")
            return False
        with os.fdopen(fd, "rb") as stream:
            status = os.fstat(fd)
            size = min(status.st_size, limit)
            if self._total + size > self._content.max_total or (whole and status.st_size > limit):
                self._left_out.append(f"{name!a}: {status.st_size} bytes are too much")
                return False
            self._add_bytes(name, _head_and_tail(stream, status.st_size, limit), int(status.st_mtime))
        return True

    def _add_bytes(self, name: str, data: bytes, mtime: int) -> None:
        self._total += len(data)
        entry = tarfile.TarInfo(f"{self._job_dir.name}/{name}")
        entry.size = len(data)
        entry.mtime = mtime
        entry.mode = 0o644
        self._archive.addfile(entry, io.BytesIO(data))


def _failed(destination: Path, error: Exception) -> PilotageError:
    return PilotageError(ErrorCode.LOG_CREATION_FAILED, f"cannot write {destination}: {error}")


def _wanted(job_dir: Path, content: LogContent) -> Iterable[tuple[Path, str]]:
    """What every archive has."""
    for pattern in OWN_FILES:
        for path in sorted(job_dir.glob(pattern)):
            yield path, f"{path.relative_to(job_dir)}"
    work = job_dir / "work"
    if not work.is_dir() or work.is_symlink():
        return
    count = 0
    for path in sorted(work.iterdir()):
        if path.suffix not in TEXT_SUFFIXES or count >= MAX_EXTRA_COUNT or _matches(path.name, content.without):
            continue
        if path.lstat().st_size <= MAX_EXTRA:
            count += 1
            yield path, f"work/{path.name}"


def _asked(job_dir: Path, content: LogContent) -> Iterable[tuple[Path, str]]:
    """What the patterns name; no folder is entered through a link."""
    work = job_dir / "work"
    if not content.patterns or work.is_symlink():
        return
    names = 0
    for folder, folders, files in os.walk(work):
        below = Path(folder).relative_to(work)
        folders[:] = sorted(folders) if len(below.parts) < MAX_DEPTH else []
        for name in sorted(files):
            names += 1
            if names > MAX_NAMES:
                return
            path = str(below / name)
            if _matches(path, content.patterns) and not _matches(path, content.without):
                yield work / path, f"work/{path}"


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part: ``*`` stops at a slash."""
    parts = path.split("/")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def _head_and_tail(stream: BinaryIO, size: int, limit: int) -> bytes:
    """The whole file, or as much of its two ends as fits, with a line between that says what is missing."""
    if size <= limit:
        return stream.read(limit)
    half = limit // 2
    head = stream.read(half)
    stream.seek(size - half)
    tail = stream.read(half)
    return head + f"\n\n[... {size - 2 * half} bytes left out by the pilot ...]\n\n".encode() + tail


def light_log(archive: Path) -> Path:
    """For the server, which keeps only small logs: the archive itself, or a copy beside it without the large files of the
    payload's folder and of the evidence (a core dump, what a stage asked for). Raises OSError or tarfile.TarError."""
    if archive.stat().st_size <= LIGHT:
        return archive
    destination = archive.with_name(f"light-{archive.name}")
    with tarfile.open(archive, "r:gz") as old, tarfile.open(destination, "w:gz", compresslevel=6) as new:
        for entry in old:
            parts = Path(entry.name).parts
            if entry.size <= MAX_EXTRA or (len(parts) > 1 and parts[1] not in HEAVY):
                new.addfile(entry, old.extractfile(entry))
    return destination


def end_of_logs(folder: JobFolder) -> str:
    """The ends of the payload's two streams and of those of the processes around it, for the report; those that are
    empty have no part in it."""
    sides = sorted(path for stream in ("stdout", "stderr") for path in folder.root.glob(f"process-*.{stream}"))
    tails = ((path.name, file_tail(path)) for path in (*sides, folder.stdout, folder.stderr))
    return "".join(f"--- {name} ---\n{text}\n" for name, text in tails if text)
