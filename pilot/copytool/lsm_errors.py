"""What the exit codes of a site's own commands mean: the numbers of ATLAS's local site mover, and the usual ones."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Union

from common.errors import ErrorCode
from pilot.copytool.base import Direction
from pilot.copytool.gfal_errors import ERRNOS, WORDS
from pilot.copytool.xrootd_errors import Kind

Meaning = Union[ErrorCode, Kind]

#: The file is there already, with the same content: nothing was wrong.
SAME_FILE = 212

#: The convention of local site movers, from 200 on; 124 to 127 are those of ``timeout`` and of shells.
EXIT_CODES: dict[int, Meaning] = {
    124: Kind.TIMEOUT,
    126: ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    127: ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    200: Kind.FAILED,
    201: Kind.FAILED,  # the copy command failed
    202: ErrorCode.NO_STORAGE_PROTOCOL,  # unsupported command
    203: ErrorCode.CHECKSUM_NOT_SUPPORTED,  # unsupported option: we give a size and a checksum, no other
    204: Kind.MISMATCH,  # size
    205: Kind.MISMATCH,  # checksum
    206: Kind.FAILED,  # the destination's folder does not exist
    207: Kind.AUTHENTICATION,
    208: ErrorCode.SERVICE_UNAVAILABLE,  # overload
    209: Kind.MISMATCH,  # the source has another size than we said
    210: Kind.MISMATCH,  # the source has another checksum than we said
    211: ErrorCode.FILE_EXISTS,
    213: ErrorCode.NO_REMOTE_SPACE,
    220: ErrorCode.SERVICE_UNAVAILABLE,  # transient
}

#: Codes that say nothing but "no": what was printed says more.
_VAGUE = frozenset({1, 200, 201})
_MISSING = re.compile(r"no such file|not found|does not exist", re.IGNORECASE)


def exit_error(code: int, text: str, direction: Direction, algorithm: str, more: Mapping[int, ErrorCode]) -> ErrorCode:
    """Give our number for an exit code (negative: a signal) of a command that printed ``text`` at its end.

    ``algorithm`` is that of the checksum that it was given; ``more`` a site's own codes, which count first.
    """
    meaning: Meaning = more.get(code) or EXIT_CODES.get(code) or _errno_meaning(code)
    if code in _VAGUE and code not in more:
        if _MISSING.search(text):
            meaning = ErrorCode.NO_SUCH_FILE
        else:
            meaning = next((found for pattern, found in WORDS if pattern.search(text)), meaning)
    if meaning is Kind.MISMATCH:
        return direction.mismatch(algorithm)
    found = meaning.code(direction) if isinstance(meaning, Kind) else meaning
    if found is ErrorCode.NO_SUCH_FILE and direction is Direction.OUT:
        return direction.failed
    if found is ErrorCode.NO_REMOTE_SPACE and direction is Direction.IN:
        return ErrorCode.NO_LOCAL_SPACE
    return found


def _errno_meaning(code: int) -> Meaning:
    """Many commands end with an errno; 1 is what all others end with."""
    return Kind.FAILED if code == errno.EPERM else ERRNOS.get(code, Kind.FAILED)


def is_absent(code: int, text: str) -> bool:
    """Whether a command says that there is no such file."""
    return code == errno.ENOENT or (code in _VAGUE and _MISSING.search(text) is not None)
