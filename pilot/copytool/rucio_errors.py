"""Rucio's exceptions to ours, by the names of their classes."""

from __future__ import annotations

from typing import Union

from common.errors import ErrorCode
from pilot.copytool.base import Direction
from pilot.copytool.gfal_errors import WORDS
from pilot.copytool.xrootd_errors import Kind

Meaning = Union[ErrorCode, Kind]

#: The classes of ``rucio.common.exception`` that say something to act on, what we call by a name like theirs, and those
#: of the libraries below; what is not here is the direction's general failure.
EXCEPTIONS: dict[str, Meaning] = {
    "AccessDenied": Kind.AUTHENTICATION,
    "AccountNotFound": Kind.AUTHENTICATION,
    "CannotAuthenticate": Kind.AUTHENTICATION,
    "CannotAuthorize": Kind.AUTHENTICATION,
    "ChecksumCalculationError": ErrorCode.FILE_HANDLING_FAILED,
    "ClientParameterMismatch": ErrorCode.BAD_CONFIGURATION,
    "ClientProtocolNotFound": ErrorCode.BAD_CONFIGURATION,
    "ClientProtocolNotSupported": ErrorCode.BAD_CONFIGURATION,
    "ConfigLoadingError": ErrorCode.BAD_CONFIGURATION,
    "ConfigNotFound": ErrorCode.BAD_CONFIGURATION,
    "ConfigurationError": ErrorCode.BAD_CONFIGURATION,
    "ConnectTimeout": ErrorCode.SERVICE_UNAVAILABLE,
    "ConnectionError": ErrorCode.SERVICE_UNAVAILABLE,
    "DIDError": ErrorCode.NO_STORAGE_PROTOCOL,
    "DataIdentifierAlreadyExists": ErrorCode.FILE_EXISTS,
    "DataIdentifierNotFound": ErrorCode.NO_SUCH_FILE,
    "DatabaseException": ErrorCode.SERVICE_UNAVAILABLE,
    "DestinationNotAccessible": Kind.FAILED,
    "DownloadFAIL_VALIDATE": Kind.MISMATCH,
    "DownloadFILE_NOT_FOUND": ErrorCode.NO_SUCH_FILE,
    "Duplicate": ErrorCode.FILE_EXISTS,
    "FileAlreadyExists": ErrorCode.FILE_EXISTS,
    "FileConsistencyMismatch": Kind.MISMATCH,
    "FileReplicaAlreadyExists": ErrorCode.FILE_EXISTS,
    "FullStorage": ErrorCode.NO_REMOTE_SPACE,
    "IdentityError": Kind.AUTHENTICATION,
    "IdentityNotFound": Kind.AUTHENTICATION,
    "InsufficientAccountLimit": ErrorCode.NO_REMOTE_SPACE,
    "InvalidRSEExpression": ErrorCode.NO_STORAGE,
    "MissingClientParameter": ErrorCode.MISSING_CREDENTIALS,
    "MissingDependency": ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    "MissingModuleException": ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    "ModuleNotFoundError": ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    "ImportError": ErrorCode.MIDDLEWARE_IMPORT_FAILED,
    "NoAuthInformation": ErrorCode.MISSING_CREDENTIALS,
    "RSEAccessDenied": Kind.AUTHENTICATION,
    "RSEChecksumUnavailable": ErrorCode.CHECKSUM_NOT_SUPPORTED,
    "RSENotConnected": ErrorCode.SERVICE_UNAVAILABLE,
    "RSENotFound": ErrorCode.NO_STORAGE,
    "RSEOverQuota": ErrorCode.NO_REMOTE_SPACE,
    "RSEProtocolDomainNotSupported": ErrorCode.NO_STORAGE_PROTOCOL,
    "RSEProtocolNotSupported": ErrorCode.NO_STORAGE_PROTOCOL,
    "RSEWriteBlocked": ErrorCode.NO_STORAGE,
    "ReadTimeout": Kind.TIMEOUT,
    "ReplicaNotFound": ErrorCode.REPLICA_NOT_FOUND,
    "ReplicaUnAvailable": ErrorCode.SERVICE_UNAVAILABLE,
    "ResourceTemporaryUnavailable": ErrorCode.SERVICE_UNAVAILABLE,
    "SSLError": Kind.AUTHENTICATION,
    "ScopeAccessDenied": Kind.AUTHENTICATION,
    "ScopeNotFound": ErrorCode.BAD_CONFIGURATION,
    "ServerConnectionException": ErrorCode.SERVICE_UNAVAILABLE,
    "ServiceUnavailable": ErrorCode.SERVICE_UNAVAILABLE,
    "SourceAccessDenied": Kind.AUTHENTICATION,
    "SourceNotFound": ErrorCode.NO_SUCH_FILE,
}

#: Those that say only that it went wrong: the words in their reason say more.
VAGUE = frozenset({"DownloadFAILED", "NoFilesUploaded", "NotAllFilesUploaded", "RucioException", "ServiceUnavailable"})

#: Words of Rucio's own.
_MISSING = ("source file not found", "no such file", "no available sources", "file not found")
_MISMATCH = ("checksum validation failed", "checksum mismatch", "checksums differ", "filesize mismatch")


def exception_code(name: str, message: str, direction: Direction) -> ErrorCode:
    """Give our number for an exception of that class with that message."""
    meaning = EXCEPTIONS.get(name, Kind.FAILED)
    if name in VAGUE:
        text = message.lower()
        if any(words in text for words in _MISMATCH):
            meaning = Kind.MISMATCH
        elif any(words in text for words in _MISSING):
            meaning = ErrorCode.NO_SUCH_FILE
        else:
            meaning = next((found for pattern, found in WORDS if pattern.search(message)), meaning)
    code = meaning.code(direction) if isinstance(meaning, Kind) else meaning
    if code is ErrorCode.NO_SUCH_FILE and direction is Direction.OUT:
        return direction.failed
    if code is ErrorCode.NO_REMOTE_SPACE and direction is Direction.IN:
        return ErrorCode.NO_LOCAL_SPACE
    return code
