"""Reading files that a payload wrote, without being led elsewhere by them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Optional, Union

MAX_NUMBER = 2**63


class UnsafeFileError(Exception):
    """The file is a link, no regular file, another user's, or has a second name elsewhere; the text says which."""


def open_regular(path: Union[str, Path], dir_fd: Optional[int] = None, owner: Optional[int] = None) -> int:
    """Opens a regular file for reading, without following a link in its last component and without blocking.

    A second hard link or another owner is refused: the payload may have linked a file of somebody else into its
    folder. ``dir_fd``: the folder that ``path`` is relative to. ``owner`` is another user whose files may be read (that
    of a payload with an account of its own, while it runs). Raises UnsafeFileError, or OSError.
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
    elif status.st_uid not in (os.geteuid(), owner):
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


def untrusted_json(data: bytes) -> Any:
    """JSON that a payload wrote, if it can be handed on as such: no number beyond 64 bits or without a value, no text that
    is not Unicode. Raises ValueError or RecursionError."""
    value = json.loads(data, parse_int=_whole_number, parse_constant=_no_number)
    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be encoded
    return value


def _whole_number(text: str) -> int:
    if len(text) > len(str(-MAX_NUMBER)) or not -MAX_NUMBER <= int(text) < MAX_NUMBER:
        raise ValueError(f"the number {text[:30]} is too large")
    return int(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
