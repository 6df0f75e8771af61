"""gfal2's errors to ours: explicit tables, for the numbers that its plug-ins give and for the words that say more.

A failure has an ``errno``; what XRootD's server answered may come as its own number (from 3000 on). The HTTP plug-in
gives few numbers, but its words hold the status.
"""

from __future__ import annotations

import errno
import re
from typing import Union

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import Direction
from pilot.copytool.gfal_client import GfalFailure
from pilot.copytool.http_errors import status_code as http_status_code
from pilot.copytool.xrootd_errors import SERVER_ERRORS, Kind

Meaning = Union[ErrorCode, Kind]

#: Errnos to ours; what is not here is the direction's general failure.
ERRNOS: dict[int, Meaning] = {
    errno.EPERM: Kind.AUTHENTICATION,
    errno.ENOENT: ErrorCode.NO_SUCH_FILE,
    errno.EIO: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EAGAIN: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EACCES: Kind.AUTHENTICATION,
    errno.EBUSY: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EEXIST: ErrorCode.FILE_EXISTS,
    errno.ENODEV: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENOTDIR: ErrorCode.NO_SUCH_FILE,
    errno.EISDIR: ErrorCode.NO_SUCH_FILE,
    errno.EINVAL: Kind.FAILED,
    errno.EFBIG: ErrorCode.NO_REMOTE_SPACE,
    errno.ENOSPC: ErrorCode.NO_REMOTE_SPACE,
    errno.EROFS: Kind.AUTHENTICATION,
    errno.EBADE: Kind.AUTHENTICATION,  # XRootD's client: no protocol to authenticate with, or all failed
    errno.EPIPE: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENAMETOOLONG: ErrorCode.NAME_TOO_LONG,
    errno.ECOMM: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EPROTO: Kind.FAILED,
    errno.EPROTONOSUPPORT: ErrorCode.NO_STORAGE_PROTOCOL,
    errno.ENETDOWN: ErrorCode.NETWORK_UNREACHABLE,
    errno.ENETUNREACH: ErrorCode.NETWORK_UNREACHABLE,
    errno.ECONNABORTED: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ECONNRESET: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENOTCONN: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ETIMEDOUT: Kind.TIMEOUT,
    errno.ECONNREFUSED: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EHOSTDOWN: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EHOSTUNREACH: ErrorCode.NETWORK_UNREACHABLE,
    errno.ESTALE: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EDQUOT: ErrorCode.NO_REMOTE_SPACE,
    errno.ECANCELED: Kind.FAILED,
    errno.EKEYEXPIRED: Kind.AUTHENTICATION,
    errno.EKEYREJECTED: Kind.AUTHENTICATION,
}

#: Words that say more than the number beside them; the first that is found counts.
WORDS: tuple[tuple[re.Pattern[str], Meaning], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r"no space left|disk quota|insufficient storage|not enough space|over ?quota", ErrorCode.NO_REMOTE_SPACE),
        (
            r"invalid address|could not resolve|unable to resolve|name or service not known",
            ErrorCode.NETWORK_UNREACHABLE,
        ),
        (r"network is unreachable|no route to host", ErrorCode.NETWORK_UNREACHABLE),
        (r"connection refused|connection reset|could not connect|broken pipe", ErrorCode.SERVICE_UNAVAILABLE),
        (
            r"socket disconnected|connection error|server closed|unexpected eof|status line",
            ErrorCode.SERVICE_UNAVAILABLE,
        ),
        # Before what else may be said to have expired.
        (r"timed? ?out|operation expired", Kind.TIMEOUT),
        (r"certificate|tls error|ssl (?:handshake|error)|expired|credential", Kind.AUTHENTICATION),
        (
            r"permission denied|not authori[sz]ed|auth(?:entication)? failed|no protocols left to try",
            Kind.AUTHENTICATION,
        ),
        (r"checksum (?:mismatch|error)|checksums? (?:do not|don't) match", Kind.MISMATCH),
    )
)

#: What a storage that cannot tell a checksum says; of what XRootD's say, gfal2 makes EFAULT, or nothing of sense.
_NO_CHECKSUM = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EFAULT, errno.ENODATA, errno.EINVAL})
_OTHER_CHECKSUM = re.compile(r"got '\w*' while expecting|checksum\S* .*not (?:supported|available|implemented)", re.I)

_HTTP_STATUS = re.compile(r"\bHTTP (\d{3})\b|\bstatus(?: code)? (\d{3})\b", re.IGNORECASE)
_XROOTD_NUMBER = re.compile(r"\[(3\d{3})\]")


def is_missing(failure: GfalFailure) -> bool:
    """Say whether a failure means that there is no such file."""
    status = _HTTP_STATUS.search(failure.message)
    if status is not None:
        return (status.group(1) or status.group(2)) in ("404", "410")
    return failure.number in (errno.ENOENT, errno.ENOTDIR) or "[3011]" in failure.message


def tells_no_checksum(failure: GfalFailure) -> bool:
    """Say whether a storage cannot tell the checksum that it was asked for."""
    return failure.number in _NO_CHECKSUM or _OTHER_CHECKSUM.search(failure.message) is not None


def failure_code(failure: GfalFailure, direction: Direction) -> ErrorCode:
    """Give our number for a failure."""
    status = _HTTP_STATUS.search(failure.message)
    if status is not None:
        return http_status_code(int(status.group(1) or status.group(2)), direction)
    number = _XROOTD_NUMBER.search(failure.message)
    meaning = SERVER_ERRORS.get(int(number.group(1)) if number else failure.number)
    if meaning is None:
        meaning = next((found for pattern, found in WORDS if pattern.search(failure.message)), None)
    if meaning is None:
        meaning = ERRNOS.get(failure.number, Kind.FAILED)
    code = meaning.code(direction) if isinstance(meaning, Kind) else meaning
    if code is ErrorCode.NO_SUCH_FILE and direction is Direction.OUT:
        return direction.failed  # a folder of the destination cannot be
    if code is ErrorCode.NO_REMOTE_SPACE and direction is Direction.IN:
        return ErrorCode.NO_LOCAL_SPACE
    return code


def failure_error(failure: GfalFailure, direction: Direction, what: str, secret: str = "") -> PilotageError:
    """Give our error for a failure; ``secret`` (a URL's query) is taken out of its words."""
    text = " ".join(failure.message.split())
    if secret:
        text = text.replace(secret, "…")
    return PilotageError(failure_code(failure, direction), f"{what}: {text} ({failure.number})")
