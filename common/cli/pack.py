"""Packing a folder as a sandbox: the same folder always makes the same bytes, so that it is uploaded once."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from common.cli.strict import InputError
from common.problem import FieldError

LEFT_OUT = (".git", "__pycache__", ".DS_Store")
"""Names that are not packed unless asked for."""


def pack(folder: Path, exclude: Sequence[str] = LEFT_OUT) -> bytes:
    """A gzipped tar archive of what is in ``folder``: sorted, without times and owners.

    ``exclude`` are patterns of names that are left out, whatever folder they are in.

    Raises:
        InputError: it cannot be read, or holds a link that leads out of it, or something else than files and folders.
    """
    if not folder.is_dir():
        raise InputError(str(folder), [FieldError("", "there is no such folder")])
    stream = io.BytesIO()
    # Without a name and a time in its header, so that the same content is the same archive.
    with gzip.GzipFile(filename="", fileobj=stream, mode="wb", mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive:
            try:
                for path in _walk(folder, exclude):
                    _add(archive, folder, path)
            except OSError as error:
                raise InputError(str(error.filename or folder), [FieldError("", f"{error.strerror}")]) from error
    return stream.getvalue()


def _walk(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if any(fnmatchcase(entry.name, pattern) for pattern in exclude):
            continue
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), exclude)


def _add(archive: tarfile.TarFile, folder: Path, path: Path) -> None:
    name = path.relative_to(folder).as_posix()
    info = tarfile.TarInfo(name)
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
        _check_link(path, PurePosixPath(name), info.linkname)
        archive.addfile(info)
    elif path.is_dir():
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    elif path.is_file():
        content = path.read_bytes()
        info.size, info.mode = len(content), 0o755 if path.stat().st_mode & 0o100 else 0o644
        archive.addfile(info, io.BytesIO(content))
    else:
        raise InputError(str(path), [FieldError("", "this is neither a file nor a folder: leave it out")])


def _check_link(path: Path, name: PurePosixPath, target: str) -> None:
    """The rule of the worker node: upward steps come first, and no more than there are folders above the link."""
    parts = PurePosixPath(target).parts
    ups = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    if not parts or parts[0] == "/" or ".." in parts[ups:] or ups > len(name.parts) - 1:
        words = f"this link leads out of the folder, to {target}: copy the file, or leave it out"
        raise InputError(str(path), [FieldError("", words)])
