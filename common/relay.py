"""The mailbox of the relay: calls to the server carried as files in a shared folder, for nodes with no way out.

::

    <folder>/relay                      touched by the relay while it runs; its time is that of the file system
    <folder>/requests/<box>.<call>      a request, from when it is complete until it is answered or given up
    <folder>/replies/<box>/<call>       its reply, until the pilot has read it; one box for each pilot

Every file is written under a name that begins with a dot, synced, and then renamed: it is there whole or not at all, on
shared file systems too, and no lock is needed. It holds a line of JSON (the head, with the body's size and checksum) and then
the body. All names are random, all folders of mode 0700 and files of mode 0600: a request carries its pilot's token.

What a crash leaves: a request whose relay died is served when one runs again, if its pilot still waits by then; one that was
answered but not removed is removed unserved; what nobody waits for any more goes by age. Being served twice harms no
call: all can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import zlib
from pathlib import Path
from typing import Annotated, Optional, TypeVar

import msgspec

from common.errors import ErrorCode, PilotageError

SCHEME = "mailbox:"
"""What the address of a server begins with that is reached through a mailbox: ``mailbox:///shared/folder``."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""The largest body of a request or a reply."""
MAX_HEAD_BYTES = 64 * 1024
NAME = re.compile(r"([0-9a-f]{16})\.([0-9a-f]{16})")
"""The name of a request: its box and its call."""
ALIVE, REQUESTS, REPLIES = "relay", "requests", "replies"

T = TypeVar("T", bound="Head")


class Damaged(Exception):
    """A file that is not what was written, or not yet: another look may find it whole."""


class Head(msgspec.Struct, kw_only=True):
    """The first line of a file. ``size`` in bytes and ``crc32`` are those of the body that follows."""

    size: int = 0
    crc32: int = 0


class RequestHead(Head, kw_only=True):
    """A call. ``wait_s`` is how long its pilot waits for the reply."""

    method: str
    path: str
    headers: dict[str, str] = {}
    wait_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class ReplyHead(Head, kw_only=True):
    """The server's answer, or the relay's own when it has none (status 502 or 503)."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    reason: str = ""
    headers: dict[str, str] = {}


def new_name() -> str:
    """A name for a box or a call that is used once."""
    return secrets.token_hex(8)


def mailbox_folder(url: str) -> Path:
    """The folder of ``mailbox:///shared/folder``. Raises PilotageError (BAD_CONFIGURATION) for another kind of address."""
    path = url[len(SCHEME) :]
    if not url.startswith(SCHEME) or not re.fullmatch(r"///[^?#]*[^?#/]/*", path):
        detail = f"server address {url!r}: write a mailbox like mailbox:///shared/folder"
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)
    return Path(path[2:].rstrip("/"))


def check_folder(folder: Path) -> None:
    """Raises PilotageError (BAD_CONFIGURATION) unless ``folder`` is this user's alone: tokens lie in it. OSError when it cannot
    be looked at."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        detail = f"mailbox {folder}: it must be a folder of the user that pilots and relay run as, closed to all others: chmod 700"
        raise PilotageError(ErrorCode.BAD_CONFIGURATION, detail)


def put(folder: Path, name: str, head: Head, body: bytes) -> None:
    """Write a file that appears whole as ``folder``/``name``. Raises OSError."""
    head = msgspec.structs.replace(head, size=len(body), crc32=zlib.crc32(body))
    temporary = folder / f".{new_name()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as target:  # noqa: PTH123 - a descriptor
            target.write(msgspec.json.encode(head) + b"\n")
            target.write(body)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(folder)


def get(path: Path, kind: type[T]) -> tuple[T, bytes]:
    """The head and the body of a file. Raises FileNotFoundError, Damaged, or OSError when it cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as source:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Damaged("it is no regular file")
        line = source.readline(MAX_HEAD_BYTES)
        try:
            head = msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise Damaged(f"its head cannot be read: {error}") from error
        if not 0 <= head.size <= MAX_BODY_BYTES:
            raise Damaged(f"a body of {head.size} bytes is not allowed")
        body = source.read(head.size + 1)
    if len(body) != head.size or zlib.crc32(body) != head.crc32:
        raise Damaged("its body is not that of its head")
    return head, body


def stir(folder: Path) -> None:
    """Change a folder and change it back. A client of a shared file system may believe for half a minute what it last saw in
    a folder; after a change of its own it asks the server again. Raises OSError."""
    name = folder / f".{new_name()}"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    name.unlink(missing_ok=True)


def age_s(path: Path, now: float) -> Optional[float]:
    """Seconds since a file was written, ``now`` being a time of the same file system; None when it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return now - path.lstat().st_mtime
    return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
