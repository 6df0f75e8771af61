"""XRootD's errors to ours: two explicit tables, one for what a server answers and one for what the client finds.

Numbers from ``XProtocol.hh`` (``XErrorCode``) and ``XrdClStatus.hh`` of XRootD 5 and 6.
"""

from __future__ import annotations

import errno
import re
from enum import Enum
from typing import Any, Union

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import LOCAL_ERRORS, Direction


class Kind(Enum):
    """Errors of which stage-in and stage-out have one each."""

    FAILED = "failed"
    TIMEOUT = "timeout"
    AUTHENTICATION = "authentication"
    MISMATCH = "mismatch"

    def code(self, direction: Direction) -> ErrorCode:
        """Give the error of this kind for a direction."""
        if self is Kind.MISMATCH:
            return direction.mismatch("adler32")
        codes = {
            Kind.FAILED: direction.failed,
            Kind.TIMEOUT: direction.timeout,
            Kind.AUTHENTICATION: direction.authentication,
        }
        return codes[self]


#: What a server answers (status code 400, its number in ``errno``).
SERVER_ERRORS: dict[int, Union[ErrorCode, Kind]] = {
    3000: Kind.FAILED,  # kXR_ArgInvalid
    3001: Kind.FAILED,  # kXR_ArgMissing
    3002: ErrorCode.NAME_TOO_LONG,  # kXR_ArgTooLong
    3003: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_FileLocked
    3004: Kind.FAILED,  # kXR_FileNotOpen
    3005: Kind.FAILED,  # kXR_FSError
    3006: Kind.FAILED,  # kXR_InvalidRequest
    3007: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_IOError
    3008: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_NoMemory
    3009: ErrorCode.NO_REMOTE_SPACE,  # kXR_NoSpace
    3010: Kind.AUTHENTICATION,  # kXR_NotAuthorized
    3011: ErrorCode.NO_SUCH_FILE,  # kXR_NotFound
    3012: Kind.FAILED,  # kXR_ServerError
    3013: Kind.FAILED,  # kXR_Unsupported
    3014: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_noserver
    3015: ErrorCode.NO_SUCH_FILE,  # kXR_NotFile
    3016: ErrorCode.NO_SUCH_FILE,  # kXR_isDirectory
    3017: Kind.FAILED,  # kXR_Cancelled
    3018: ErrorCode.FILE_EXISTS,  # kXR_ItExists
    3019: Kind.MISMATCH,  # kXR_ChkSumErr
    3020: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_inProgress
    3021: ErrorCode.NO_REMOTE_SPACE,  # kXR_overQuota
    3022: Kind.AUTHENTICATION,  # kXR_SigVerErr
    3023: Kind.AUTHENTICATION,  # kXR_DecryptErr
    3024: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_Overloaded
    3025: Kind.AUTHENTICATION,  # kXR_fsReadOnly
    3026: Kind.FAILED,  # kXR_BadPayload
    3027: ErrorCode.CHECKSUM_NOT_SUPPORTED,  # kXR_AttrNotFound
    3028: Kind.AUTHENTICATION,  # kXR_TLSRequired
    3029: ErrorCode.NO_SUCH_FILE,  # kXR_noReplicas
    3030: Kind.AUTHENTICATION,  # kXR_AuthFailed
    3031: Kind.FAILED,  # kXR_Impossible
    3032: ErrorCode.FILE_EXISTS,  # kXR_Conflict
    3033: ErrorCode.SERVICE_UNAVAILABLE,  # kXR_TooManyErrs
    3034: Kind.TIMEOUT,  # kXR_ReqTimedOut
    3035: Kind.TIMEOUT,  # kXR_TimerExpired
}

#: What the client finds out by itself.
CLIENT_ERRORS: dict[int, Union[ErrorCode, Kind]] = {
    1: ErrorCode.SERVICE_UNAVAILABLE,  # errRetry
    2: Kind.FAILED,  # errUnknown
    3: Kind.FAILED,  # errInvalidOp
    4: Kind.FAILED,  # errFcntl
    5: Kind.FAILED,  # errPoll
    6: Kind.FAILED,  # errConfig
    7: Kind.FAILED,  # errInternal
    8: Kind.FAILED,  # errUnknownCommand
    9: Kind.FAILED,  # errInvalidArgs
    10: Kind.FAILED,  # errInProgress
    11: ErrorCode.SERVICE_UNAVAILABLE,  # errUninitialized: a file whose server died, and did not come back
    12: ErrorCode.FILE_HANDLING_FAILED,  # errOSError
    13: Kind.FAILED,  # errNotSupported
    14: Kind.FAILED,  # errDataError: damaged on the wire, worth another try
    15: Kind.FAILED,  # errNotImplemented
    16: ErrorCode.NO_SUCH_FILE,  # errNoMoreReplicas
    17: Kind.FAILED,  # errPipelineFailed
    101: ErrorCode.NETWORK_UNREACHABLE,  # errInvalidAddr: the name does not resolve
    102: ErrorCode.SERVICE_UNAVAILABLE,  # errSocketError: reset, most often; its errno may say that there is no network
    103: Kind.TIMEOUT,  # errSocketTimeout
    104: ErrorCode.SERVICE_UNAVAILABLE,  # errSocketDisconnected
    105: Kind.FAILED,  # errPollerError
    106: Kind.FAILED,  # errSocketOptError
    107: ErrorCode.SERVICE_UNAVAILABLE,  # errStreamDisconnect
    108: ErrorCode.SERVICE_UNAVAILABLE,  # errConnectionError
    109: ErrorCode.SERVICE_UNAVAILABLE,  # errInvalidSession: the server was restarted
    110: Kind.AUTHENTICATION,  # errTlsError
    201: Kind.FAILED,  # errInvalidMessage
    202: ErrorCode.SERVICE_UNAVAILABLE,  # errHandShakeFailed
    203: Kind.AUTHENTICATION,  # errLoginFailed
    204: Kind.AUTHENTICATION,  # errAuthFailed
    205: ErrorCode.CHECKSUM_NOT_SUPPORTED,  # errQueryNotSupported
    206: Kind.TIMEOUT,  # errOperationExpired
    207: Kind.FAILED,  # errOperationInterrupted
    208: Kind.TIMEOUT,  # errThresholdExceeded: below the wanted rate
    301: Kind.FAILED,  # errNoMoreFreeSIDs
    302: Kind.FAILED,  # errInvalidRedirectURL
    303: Kind.FAILED,  # errInvalidResponse
    304: ErrorCode.NO_SUCH_FILE,  # errNotFound
    305: Kind.MISMATCH,  # errCheckSumError
    306: Kind.FAILED,  # errRedirectLimit
    307: Kind.FAILED,  # errCorruptedHeader
    401: Kind.FAILED,  # errRedirect
    402: ErrorCode.FILE_HANDLING_FAILED,  # errLocalError
    500: Kind.FAILED,  # errResponseNegative
}

#: The client's number for "the server answered with an error".
ERROR_RESPONSE = 400
#: The client's numbers for an error of the local machine, its ``errno`` beside it.
LOCAL_CODES = frozenset({12, 402})
#: Servers say with one of these that they cannot tell a checksum.
CHECKSUM_REFUSALS = frozenset({3000, 3006, 3012, 3013})

_NETWORK_ERRNOS = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


#: What we add to URLs ourselves.
_CREDENTIALS = re.compile(r"(authz|xrd\.ztn|xrd\.gsiusrpxy)=[^&\s]*")


def is_missing(status: Any) -> bool:
    """Say whether a status means that the file does not exist."""
    return bool(status.code == ERROR_RESPONSE and status.errno == 3011) or status.code == 304


def status_code(status: Any, direction: Direction) -> ErrorCode:
    """Give our number for a failed ``XRootDStatus``."""
    found: Union[ErrorCode, Kind]
    if status.code == ERROR_RESPONSE:
        found = SERVER_ERRORS.get(status.errno, Kind.FAILED)
    elif status.code in LOCAL_CODES:
        found = LOCAL_ERRORS.get(status.errno, ErrorCode.FILE_HANDLING_FAILED)
    elif status.errno in _NETWORK_ERRNOS:
        found = ErrorCode.NETWORK_UNREACHABLE
    else:
        found = CLIENT_ERRORS.get(status.code, Kind.FAILED)
    return found.code(direction) if isinstance(found, Kind) else found


def status_error(status: Any, direction: Direction, what: str, secret: str = "") -> PilotageError:
    """Give our error for a failed ``XRootDStatus``; ``secret`` (a URL's query) is taken out of its text."""
    text = str(status.message).strip()
    if secret:
        text = text.replace(secret, "…")
    text = _CREDENTIALS.sub("…", text)
    return PilotageError(status_code(status, direction), f"{what}: {text}")
