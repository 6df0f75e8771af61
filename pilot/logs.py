"""The log archive of a job: what a person needs to see why it went as it did."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Optional

from common.errors import ErrorCode, PilotageError
from pilot.payload.safefile import UnsafeFileError, open_regular

#: Bytes of one file; of a larger one, head and tail are kept.
MAX_FILE = 4 * 1024 * 1024
#: Small text files that the payload left are taken along, up to this size and number.
MAX_EXTRA = 1024 * 1024
MAX_EXTRA_COUNT = 100
TEXT_SUFFIXES = (".txt", ".log", ".json", ".out", ".err", ".xml", ".yaml", ".yml", ".csv")


def make_log_archive(
    job_dir: Path, destination: Path, texts: Optional[Mapping[str, str]] = None, max_file: int = MAX_FILE
) -> Path:
    """Writes a ``.tgz`` of a job's stdout, stderr, jobscript, ``texts`` by name (the pilot's log of the job) and the
    small text files in its ``work`` folder; answers ``destination``.

    Links are never followed, neither to read nor to write: what is none of the payload's own regular files is listed in
    ``left-out.txt``. The archive appears under its name when it is complete. Raises PilotageError (LOG_CREATION_FAILED).
    """
    left_out: list[str] = []
    try:
        fd, name = tempfile.mkstemp(".partial", destination.name, destination.parent)
    except OSError as error:
        raise _failed(destination, error) from error
    partial = Path(name)
    try:
        with os.fdopen(fd, "wb") as stream, tarfile.open(fileobj=stream, mode="w:gz", compresslevel=6) as archive:
            for path, name in _wanted(job_dir):
                _add(archive, path, f"{job_dir.name}/{name}", max_file, left_out)
            for name, text in (texts or {}).items():
                data = text.encode()
                _add_bytes(archive, f"{job_dir.name}/{name}", _head_and_tail(io.BytesIO(data), len(data), max_file), 0)
            if left_out:
                _add_bytes(archive, f"{job_dir.name}/left-out.txt", "\n".join([*left_out, ""]).encode(), 0)
        partial.replace(destination)
    except (OSError, tarfile.TarError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise _failed(destination, error) from error
    return destination


def _failed(destination: Path, error: Exception) -> PilotageError:
    return PilotageError(ErrorCode.LOG_CREATION_FAILED, f"cannot write {destination}: {error}")


def _wanted(job_dir: Path) -> Iterable[tuple[Path, str]]:
    for name in ("stdout", "stderr", "bin/jobscript", "bin/inputs.txt"):
        if os.path.lexists(job_dir / name):
            yield job_dir / name, name
    work = job_dir / "work"
    if not work.is_dir() or work.is_symlink():
        return
    count = 0
    for path in sorted(work.iterdir()):
        if path.suffix in TEXT_SUFFIXES and count < MAX_EXTRA_COUNT and path.lstat().st_size <= MAX_EXTRA:
            count += 1
            yield path, f"work/{path.name}"


def _add(archive: tarfile.TarFile, path: Path, name: str, max_file: int, left_out: list[str]) -> None:
    try:
        fd = open_regular(path)
    except (UnsafeFileError, OSError) as error:
        left_out.append(f"{name!a}: {error}")
        return
    with os.fdopen(fd, "rb") as stream:
        status = os.fstat(fd)
        _add_bytes(archive, name, _head_and_tail(stream, status.st_size, max_file), int(status.st_mtime))


def _head_and_tail(stream: BinaryIO, size: int, limit: int) -> bytes:
    """The whole file, or as much of its two ends as fits, with a line between that says what is missing."""
    if size <= limit:
        return stream.read(limit)
    half = limit // 2
    head = stream.read(half)
    stream.seek(size - half)
    tail = stream.read(half)
    return head + f"\n\n[... {size - 2 * half} bytes left out by the pilot ...]\n\n".encode() + tail


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes, mtime: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mtime = mtime
    entry.mode = 0o644
    archive.addfile(entry, io.BytesIO(data))
