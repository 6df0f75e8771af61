"""Reading files that a payload wrote, without being led elsewhere by them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Optional, Union


class UnsafeFileError(Exception):
    """The file is a link, no regular file, another user's, or has a second name elsewhere; the text says which."""


def open_regular(path: Union[str, Path], dir_fd: Optional[int] = None) -> int:
    """Opens a regular file for reading, without following a link in its last component and without blocking.

    A second hard link or another owner is refused: the payload may have linked a file of somebody else into its
    folder. ``dir_fd``: the folder that ``path`` is relative to. Raises UnsafeFileError, or OSError.
    """
    before = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISREG(before.st_mode):  # devices may act on a mere open()
        kind = "a link" if stat.S_ISLNK(before.st_mode) else "no regular file"
        raise UnsafeFileError(f"is {kind}")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    status = os.fstat(fd)
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "is no regular file"
    elif status.st_nlink > 1:
        reason = "has a second name (hard link)"
    elif status.st_uid != os.geteuid():
        reason = f"belongs to another user ({status.st_uid})"
    if reason:
        os.close(fd)
        raise UnsafeFileError(reason)
    return fd


def read_regular(path: Union[str, Path], limit: int, dir_fd: Optional[int] = None) -> bytes:
    """The content of a regular file, opened as by :func:`open_regular`. Raises UnsafeFileError also when it is longer
    than ``limit`` bytes."""
    fd = open_regular(path, dir_fd)
    with os.fdopen(fd, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnsafeFileError(f"is longer than {limit} bytes")
    return data
