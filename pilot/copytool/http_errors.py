"""What an HTTP storage answers, and what fails on the way to it, in our errors."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from enum import Enum
from typing import Union

import requests
import urllib3.exceptions

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import Direction

#: Bytes of an error's body that are read, and characters of it that are told.
BODY_BYTES = 4096
BODY_CHARACTERS = 200


class Kind(Enum):
    """Errors of which stage-in and stage-out have one each."""

    FAILED = "failed"
    TIMEOUT = "timeout"
    AUTHENTICATION = "authentication"
    MISSING = "missing"

    def code(self, direction: Direction) -> ErrorCode:
        """Give the error of this kind for a direction."""
        codes = {
            Kind.FAILED: direction.failed,
            Kind.TIMEOUT: direction.timeout,
            Kind.AUTHENTICATION: direction.authentication,
            # on the way out, what is missing is a folder of the destination
            Kind.MISSING: ErrorCode.NO_SUCH_FILE if direction is Direction.IN else direction.failed,
        }
        return codes[self]


#: Answers to our errors; what is not here goes by its class: 4xx will not get better, 5xx may.
STATUSES: dict[int, Union[ErrorCode, Kind]] = {
    400: Kind.FAILED,
    401: Kind.AUTHENTICATION,
    402: ErrorCode.NO_REMOTE_SPACE,  # what cloud storages say of an unpaid quota
    403: Kind.AUTHENTICATION,
    404: Kind.MISSING,
    405: Kind.FAILED,
    407: ErrorCode.NETWORK_UNREACHABLE,  # a proxy on the way wants a password
    408: Kind.TIMEOUT,
    409: Kind.FAILED,
    410: Kind.MISSING,
    412: ErrorCode.FILE_EXISTS,  # the only conditions that are not handled before: nothing may be overwritten
    413: ErrorCode.NO_REMOTE_SPACE,
    414: ErrorCode.NAME_TOO_LONG,
    423: ErrorCode.SERVICE_UNAVAILABLE,  # locked
    425: ErrorCode.SERVICE_UNAVAILABLE,  # too early
    429: ErrorCode.SERVICE_UNAVAILABLE,  # too many requests
    451: Kind.AUTHENTICATION,
    500: ErrorCode.SERVICE_UNAVAILABLE,
    501: Kind.FAILED,
    502: ErrorCode.SERVICE_UNAVAILABLE,
    503: ErrorCode.SERVICE_UNAVAILABLE,
    504: Kind.TIMEOUT,
    507: ErrorCode.NO_REMOTE_SPACE,
}

_NETWORK_ERRNOS = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})


def status_code(status: int, direction: Direction) -> ErrorCode:
    """Give our number for an HTTP status that is no success."""
    found = STATUSES.get(status, ErrorCode.SERVICE_UNAVAILABLE if status >= 500 else Kind.FAILED)
    return found.code(direction) if isinstance(found, Kind) else found


def status_error(response: requests.Response, direction: Direction, what: str, secret: str) -> PilotageError:
    """Give our error for an answer that is no success; ``secret`` (a URL's query) is taken out of its words."""
    words = f"{response.status_code} {response.reason or ''}".strip()
    try:
        body = response.raw.read(BODY_BYTES, decode_content=True)
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""  # the status says enough
    text = " ".join(body.decode("utf-8", "replace").split())
    if text and not text.startswith("<"):
        words += f": {text[:BODY_CHARACTERS]}"
    return PilotageError(status_code(response.status_code, direction), f"{what}: {redacted(words, secret)}")


def network_error(error: BaseException, direction: Direction, what: str, secret: str) -> PilotageError:
    """Give our error for what went wrong on the way to a server, in the words of its first cause."""
    causes = list(causes_of(error))
    # The last cause that says something: the outer ones repeat it with addresses and whole URLs around it.
    words = [cause.strerror or str(cause) if isinstance(cause, OSError) else str(cause) for cause in causes]
    text = next((each for each in reversed(words) if each), type(error).__name__)
    code = _network_code(causes, direction)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"its certificate is not trusted ({cause.verify_message}): set X509_CERT_DIR, or the option ca"
    return PilotageError(code, f"{what}: {redacted(text, secret)}")


def redacted(text: str, secret: str) -> str:
    """Take a secret out of a text."""
    return text.replace(secret, "…") if secret else text


def _network_code(causes: list[BaseException], direction: Direction) -> ErrorCode:
    kinds = {kind for cause in causes for kind in type(cause).__mro__}
    if socket.gaierror in kinds or requests.exceptions.ProxyError in kinds:
        return ErrorCode.NETWORK_UNREACHABLE
    if any(isinstance(cause, OSError) and cause.errno in _NETWORK_ERRNOS for cause in causes):
        return ErrorCode.NETWORK_UNREACHABLE
    if requests.exceptions.ConnectTimeout in kinds:
        return ErrorCode.SERVICE_UNAVAILABLE
    if {socket.timeout, TimeoutError, requests.exceptions.ReadTimeout} & kinds:
        return direction.timeout
    if {ssl.SSLZeroReturnError, ssl.SSLEOFError} & kinds:
        return ErrorCode.SERVICE_UNAVAILABLE  # cut while it spoke TLS
    if ssl.SSLError in kinds:
        return direction.authentication
    if {requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.InvalidHeader} & kinds:
        return direction.failed
    return ErrorCode.SERVICE_UNAVAILABLE


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what led to it, the first cause last; urllib3 keeps some of them in ``reason`` and ``args``."""
    seen: list[BaseException] = []
    found: list[BaseException] = [error]
    while found:
        cause = found.pop(0)
        if any(cause is each for each in seen):
            continue
        seen.append(cause)
        yield cause
        inner = [cause.__cause__ or cause.__context__, getattr(cause, "reason", None), *cause.args]
        found += [each for each in inner if isinstance(each, BaseException)]
