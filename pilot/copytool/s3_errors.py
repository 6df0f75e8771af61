"""What an S3 service answers, and what fails on the way to it, in our errors."""

from __future__ import annotations

from typing import Any, Union

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import Direction
from pilot.copytool.http_errors import Kind, network_error, status_code

#: Error codes of S3, and of services that speak like it, to ours; what is not here goes by its HTTP status.
CODES: dict[str, Union[ErrorCode, Kind]] = {
    "NoSuchKey": Kind.MISSING,
    "NoSuchBucket": Kind.MISSING,
    "NoSuchVersion": Kind.MISSING,
    "404": Kind.MISSING,  # a HEAD has no body to name an error in
    "AccessDenied": Kind.AUTHENTICATION,
    "AllAccessDisabled": Kind.AUTHENTICATION,
    "AccountProblem": Kind.AUTHENTICATION,
    "ExpiredToken": Kind.AUTHENTICATION,
    "InvalidAccessKeyId": Kind.AUTHENTICATION,
    "InvalidObjectState": ErrorCode.SERVICE_UNAVAILABLE,  # archived, not restored
    "InvalidSecurity": Kind.AUTHENTICATION,
    "InvalidToken": Kind.AUTHENTICATION,
    "RequestTimeTooSkewed": Kind.AUTHENTICATION,
    "SignatureDoesNotMatch": Kind.AUTHENTICATION,
    "TokenRefreshRequired": Kind.AUTHENTICATION,
    "PreconditionFailed": ErrorCode.FILE_EXISTS,
    "ConditionalRequestConflict": ErrorCode.SERVICE_UNAVAILABLE,  # somebody writes it at this moment
    "KeyTooLongError": ErrorCode.NAME_TOO_LONG,
    "EntityTooLarge": ErrorCode.NO_REMOTE_SPACE,
    "QuotaExceeded": ErrorCode.NO_REMOTE_SPACE,
    "ServiceQuotaExceededException": ErrorCode.NO_REMOTE_SPACE,
    "XMinioStorageFull": ErrorCode.NO_REMOTE_SPACE,
    "XMinioAdminBucketQuotaExceeded": ErrorCode.NO_REMOTE_SPACE,
    "InternalError": ErrorCode.SERVICE_UNAVAILABLE,
    "ServiceUnavailable": ErrorCode.SERVICE_UNAVAILABLE,
    "SlowDown": ErrorCode.SERVICE_UNAVAILABLE,
    "RequestLimitExceeded": ErrorCode.SERVICE_UNAVAILABLE,
    "RequestTimeout": Kind.TIMEOUT,
    "NoSuchUpload": ErrorCode.SERVICE_UNAVAILABLE,  # swept away while it was under way
}
#: The storage received other bytes than were sent.
DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"})


def service_code(code: str, status: int, direction: Direction) -> ErrorCode:
    """Give our number for an error code of S3 with its HTTP status."""
    if code in DAMAGED:
        return direction.mismatch("md5")
    found = CODES.get(code)
    if found is None:
        return status_code(status, direction)
    return found.code(direction) if isinstance(found, Kind) else found


def error_code(error: Any) -> str:
    """Give the error code in a botocore ``ClientError``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def service_error(error: Any, direction: Direction, what: str) -> PilotageError:
    """Give our error for a botocore ``ClientError``."""
    answer = error.response.get("Error", {})
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    words = " ".join(f"{answer.get('Code', '')} {answer.get('Message', '')}".split())[:200]
    return PilotageError(service_code(error_code(error), status, direction), f"{what}: {words}")


def client_error(error: Exception, direction: Direction, what: str) -> PilotageError:
    """Give our error for what botocore itself found wrong: no keys, no network."""
    code = _CLIENT_CODES.get(type(error).__name__)
    if code is None:
        return network_error(error, direction, what, "")
    return PilotageError(code.code(direction) if isinstance(code, Kind) else code, f"{what}: {error}")


#: Classes of ``botocore.exceptions`` to ours; the others are about the network, where the first cause tells more.
_CLIENT_CODES: dict[str, Union[ErrorCode, Kind]] = {
    "NoCredentialsError": ErrorCode.MISSING_CREDENTIALS,
    "PartialCredentialsError": ErrorCode.MISSING_CREDENTIALS,
    "CredentialRetrievalError": ErrorCode.MISSING_CREDENTIALS,
    "ProfileNotFound": ErrorCode.MISSING_CREDENTIALS,
    "ParamValidationError": Kind.FAILED,
    "ReadTimeoutError": Kind.TIMEOUT,
    "ConnectTimeoutError": ErrorCode.SERVICE_UNAVAILABLE,
    "SSLError": Kind.AUTHENTICATION,
    "ProxyConnectionError": ErrorCode.NETWORK_UNREACHABLE,
}
