"""What payloads say when they fail, and what it means: the table of known messages.

A row has a pattern (a regular expression, searched in each line), the error, the stream that it is searched in, and
what to look for as an example, which a test feeds to the table. The first row that matches counts, so that the more
telling come first; of a row, its last line. A payload that ended well is never searched. An experiment adds rows of its
own by a plug-in (:mod:`pilot.plugins`); they come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from common.errors import ErrorCode

MAX_LINE = 1000


class Stream(str, Enum):
    """Where a message is looked for."""

    STDOUT = "stdout"
    STDERR = "stderr"
    BOTH = "both"


@dataclass(frozen=True)
class KnownMessage:
    """A message and what it means. ``example`` is a line that ``pattern`` finds."""

    pattern: str
    code: ErrorCode
    example: str
    stream: Stream = Stream.BOTH

    def __post_init__(self) -> None:
        try:
            found = re.search(self.pattern, self.example)
        except re.error as error:
            raise ValueError(f"the pattern {self.pattern!r} is no regular expression: {error}") from error
        if found is None:
            raise ValueError(f"the pattern {self.pattern!r} does not find its own example {self.example!r}")


KNOWN: tuple[KnownMessage, ...] = (
    KnownMessage(
        r"bad_alloc\b", ErrorCode.OUT_OF_MEMORY, "terminate called after throwing an instance of 'std::bad_alloc'"
    ),
    KnownMessage(
        r"^(MemoryError|numpy\S*MemoryError)\b|java\.lang\.OutOfMemoryError|CUDA (error: )?out of memory",
        ErrorCode.OUT_OF_MEMORY,
        "MemoryError",
    ),
    KnownMessage(r"[Cc]annot allocate memory", ErrorCode.OUT_OF_MEMORY, "fork: Cannot allocate memory"),
    KnownMessage(
        r"No space left on device|Disk quota exceeded", ErrorCode.NO_LOCAL_SPACE, "write error: No space left on device"
    ),
    KnownMessage(
        r"(?i)sqlite.*(locking protocol|disk i/o error)",
        ErrorCode.NFS_SQLITE,
        "sqlite3.OperationalError: locking protocol",
    ),
    KnownMessage(
        r"/cvmfs/\S+.*(Transport endpoint is not connected|Input/output error|Too many levels of symbolic links)",
        ErrorCode.SETUP_FAILED,
        "ls: cannot access '/cvmfs/x.example.org/a': Transport endpoint is not connected",
    ),
    KnownMessage(r"Stale file handle", ErrorCode.FILE_HANDLING_FAILED, "read: Stale file handle"),
    KnownMessage(
        r"(fork|thread|clone|EAGAIN).*Resource temporarily unavailable|[Tt]oo many open files in system",
        ErrorCode.RESOURCE_UNAVAILABLE,
        "bash: fork: retry: Resource temporarily unavailable",
        Stream.STDERR,
    ),
    KnownMessage(
        r"error while loading shared libraries|version `GLIBC\w*_[\d.]+' not found",
        ErrorCode.MISSING_INSTALLATION,
        "./a.out: error while loading shared libraries: libCore.so: cannot open shared object file",
        Stream.STDERR,
    ),
    KnownMessage(
        r"/cvmfs/\S+: No such file or directory",
        ErrorCode.MISSING_INSTALLATION,
        "run.sh: line 2: /cvmfs/x.example.org/setup.sh: No such file or directory",
        Stream.STDERR,
    ),
    KnownMessage(
        r"^(ModuleNotFoundError|ImportError): ",
        ErrorCode.MISSING_INSTALLATION,
        "ModuleNotFoundError: No module named 'ROOT'",
        Stream.STDERR,
    ),
    KnownMessage(
        r": (command )?not found$",
        ErrorCode.MISSING_INSTALLATION,
        "./jobscript: line 3: root: command not found",
        Stream.STDERR,
    ),
    KnownMessage(
        r"error: unrecognized arguments?:|unrecognized option '",
        ErrorCode.BAD_ARGUMENTS,
        "fit.py: error: unrecognized arguments: --fast",
        Stream.STDERR,
    ),
)


def known_message(stdout: str, stderr: str, more: Iterable[KnownMessage] = ()) -> Optional[tuple[ErrorCode, str]]:
    """What the ends of a payload's two streams say: the error and the line; None when no row matches."""
    lines = {Stream.STDOUT: _lines(stdout), Stream.STDERR: _lines(stderr)}
    for row in (*more, *KNOWN):
        streams = (row.stream,) if row.stream is not Stream.BOTH else (Stream.STDERR, Stream.STDOUT)
        for stream in streams:
            found = next((line for line in reversed(lines[stream]) if re.search(row.pattern, line)), None)
            if found is not None:
                return row.code, found
    return None


def _lines(text: str) -> list[str]:
    return [line[:MAX_LINE] for line in text.splitlines()]
