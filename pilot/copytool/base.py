"""The contract that every copytool obeys, and what they share.

One contract suite (``tests/contract/test_copytools.py``) runs over all of them.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Optional

from common.checksums import CHUNK_BYTES, Checksum, parse_checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool.credentials import Ambient, CredentialSource

log = logging.getLogger(__name__)

#: How temporary names end.
PART_SUFFIX = ".part"

#: A transfer gets this long besides the time for its bytes, in seconds.
TIMEOUT_FLOOR_S = 300.0
#: The slowest transfer that is worth waiting for, in bytes a second.
TIMEOUT_RATE = 500_000
#: No transfer gets longer than this, in seconds; one of unknown size gets exactly this.
TIMEOUT_CEILING_S = 6 * 3600.0


def transfer_timeout(size: Optional[int]) -> float:
    """Give the time that a transfer of ``size`` bytes may take, in seconds.

    ``300 s + size / 500 kB/s``, six hours at the most and for an unknown size.

    >>> transfer_timeout(0), transfer_timeout(1_000_000_000), transfer_timeout(None)
    (300.0, 2300.0, 21600.0)
    """
    if size is None:
        return TIMEOUT_CEILING_S
    return min(TIMEOUT_FLOOR_S + size / TIMEOUT_RATE, TIMEOUT_CEILING_S)


class Direction(Enum):
    """Which way a file goes."""

    IN = "stage-in"
    """From a storage to the job's folder."""
    OUT = "stage-out"
    """From the job's folder to a storage."""

    @property
    def failed(self) -> ErrorCode:
        """The error for what has no better one."""
        return ErrorCode.STAGE_IN_FAILED if self is Direction.IN else ErrorCode.STAGE_OUT_FAILED

    @property
    def timeout(self) -> ErrorCode:
        """The error for a transfer that took too long."""
        return ErrorCode.STAGE_IN_TIMEOUT if self is Direction.IN else ErrorCode.STAGE_OUT_TIMEOUT

    @property
    def authentication(self) -> ErrorCode:
        """The error for a storage that says that we may not."""
        return ErrorCode.STAGE_IN_AUTHENTICATION if self is Direction.IN else ErrorCode.STAGE_OUT_AUTHENTICATION

    def mismatch(self, algorithm: str) -> ErrorCode:
        """The error for other content than recorded; sha256 and sizes share the number of adler32."""
        if algorithm == "md5":
            return ErrorCode.GET_MD5_MISMATCH if self is Direction.IN else ErrorCode.PUT_MD5_MISMATCH
        return ErrorCode.GET_ADLER32_MISMATCH if self is Direction.IN else ErrorCode.PUT_ADLER32_MISMATCH


@dataclass(frozen=True)
class TransferRequest:
    """One file to copy.

    ``url`` is its place at the storage and ``path`` its local place; ``size`` (bytes) and ``checksum``
    (``adler32:0a1b2c3d``) are what it must have, where known; ``label`` names it to people (its DID); ``timeout_s``
    bounds the whole transfer (see :func:`transfer_timeout`).
    """

    url: str
    path: Path
    size: Optional[int]
    checksum: Optional[str]
    label: str
    timeout_s: float


@dataclass(frozen=True)
class TransferOutcome:
    """What became of one :class:`TransferRequest`.

    ``size`` (bytes) and ``checksum`` are those found, set when ``ok``; ``error`` says why not; ``attempts`` counts the
    tool's own tries.
    """

    request: TransferRequest
    ok: bool
    size: Optional[int]
    checksum: Optional[str]
    seconds: float
    error: Optional[PilotageError]
    attempts: int


class Transferred(NamedTuple):
    """Size in bytes and checksum of a file that was copied."""

    size: int
    checksum: Checksum


class Copytool(ABC):
    """Copies files between storages and the local disk.

    A tool is one object for many calls, also from several threads at once. The bulk calls never raise for one item:
    each item has its outcome. A tool whose library has bulk calls of its own overrides them; the others say how to
    copy one file. Whatever goes wrong, no partial file is left under the final name, local or remote. ``cancel``
    ends what is under way within a second or two; items not begun are not begun.
    """

    #: The name in configuration and entry point.
    name: ClassVar[str]
    #: The URL schemes that this tool speaks; the empty one is a plain absolute path.
    schemes: ClassVar[frozenset[str]]
    #: Whether stage-in leaves the data where it is, so that it needs no local space.
    links_input: bool = False

    def __init__(self, *, credentials: Optional[CredentialSource] = None, **options: Any) -> None:
        self.credentials: CredentialSource = credentials or Ambient(os.environ)
        if options:
            names = ", ".join(sorted(options))
            raise PilotageError(ErrorCode.UNKNOWN_COPYTOOL, f"copytool {self.name!r} has no option {names}")

    def copy_in(self, requests: Sequence[TransferRequest], *, cancel: threading.Event) -> list[TransferOutcome]:
        """Copy files from a storage; an outcome for each, in order.

        Content is compared with the request's size and checksum. An existing local file is replaced.
        """
        return [self._outcome(request, self._fetch, Direction.IN, cancel) for request in requests]

    def copy_out(self, requests: Sequence[TransferRequest], *, cancel: threading.Event) -> list[TransferOutcome]:
        """Copy files to a storage; an outcome for each, in order.

        The checksum is verified at the destination. An existing file there is never overwritten: the same content is
        success (a repeat after a lost reply), other content ``FILE_EXISTS``.
        """
        return [self._outcome(request, self._store, Direction.OUT, cancel) for request in requests]

    def remove(self, urls: Sequence[str], *, cancel: threading.Event) -> list[Optional[PilotageError]]:
        """Remove files from a storage; ``None`` for each that is gone now, absent before included.

        What a transfer that was killed left of such a file goes with it.
        """
        outcomes: list[Optional[PilotageError]] = []
        for url in urls:
            try:
                raise_if_cancelled(cancel, Direction.OUT)
                self._delete(url, cancel)
                outcomes.append(None)
            except PilotageError as error:
                outcomes.append(error)
        return outcomes

    @abstractmethod
    def exists(self, url: str) -> bool:
        """Say whether a file is there; :class:`PilotageError` when that cannot be found out."""

    @abstractmethod
    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        """Copy one file in; :class:`PilotageError` when that fails."""

    @abstractmethod
    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        """Copy one file out; :class:`PilotageError` when that fails."""

    @abstractmethod
    def _delete(self, url: str, cancel: threading.Event) -> None:
        """Remove one file, absent or not; :class:`PilotageError` when that fails."""

    def _outcome(
        self,
        request: TransferRequest,
        copy: Callable[[TransferRequest, threading.Event], Transferred],
        direction: Direction,
        cancel: threading.Event,
    ) -> TransferOutcome:
        """Copy one file and say what became of it."""
        begun = time.monotonic()
        try:
            raise_if_cancelled(cancel, direction)
            done = copy(request, cancel)
        except PilotageError as error:
            return TransferOutcome(request, False, None, None, time.monotonic() - begun, error, 1)
        return TransferOutcome(request, True, done.size, str(done.checksum), time.monotonic() - begun, None, 1)


def raise_if_cancelled(cancel: threading.Event, direction: Direction) -> None:
    """Raise the error of a cancelled transfer when it was."""
    if cancel.is_set():
        raise PilotageError(direction.failed, "cancelled")


def url_scheme(url: str) -> str:
    """Give the scheme of a URL in lower case, empty for a plain path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", url)
    return match.group(1).lower() if match else ""


def safe_url(url: str) -> str:
    """Give a URL as it may be logged: its query can hold a token, so it goes.

    >>> safe_url("root://host:1094//dir/file?authz=secret")
    'root://host:1094//dir/file'
    """
    return url.split("?", 1)[0] if url_scheme(url) not in ("", "file") else url


def refuse_climbing(path: str, shown: str, direction: Direction) -> None:
    """Raise the direction's error for a decoded path that climbs: no prefix of a storage holds it.

    ``shown`` is the URL as it may be logged.
    """
    if ".." in path.split("/"):
        raise PilotageError(direction.failed, f"{shown}: '..' in the path could leave the storage: write it without")


def expected_checksum(request: TransferRequest) -> Optional[Checksum]:
    """Give the checksum that the file must have; ``UNKNOWN_CHECKSUM_TYPE`` when it cannot be read."""
    return parse_checksum(request.checksum) if request.checksum else None


def verify(request: TransferRequest, size: int, checksum: Checksum, direction: Direction) -> None:
    """Compare what was found with what the request expects, and raise the error of a mismatch.

    ``checksum`` must be of the expected algorithm when one is expected.
    """
    expected = expected_checksum(request)
    if request.size is not None and size != request.size:
        algorithm = expected.algorithm if expected else "adler32"
        raise PilotageError(
            direction.mismatch(algorithm), f"{request.label}: {size} bytes, but {request.size} are recorded"
        )
    if expected is not None and checksum != expected:
        raise PilotageError(
            direction.mismatch(expected.algorithm), f"{request.label}: {checksum}, but {expected} is recorded"
        )


#: Errors of the local disk to ours; what is not here is ``FILE_HANDLING_FAILED``.
LOCAL_ERRORS: dict[int, ErrorCode] = {
    errno.ENOSPC: ErrorCode.NO_LOCAL_SPACE,
    errno.EDQUOT: ErrorCode.NO_LOCAL_SPACE,
    errno.EFBIG: ErrorCode.NO_LOCAL_SPACE,  # the slot's own limit on the size of files
    errno.ENAMETOOLONG: ErrorCode.NAME_TOO_LONG,
}


def local_error(error: OSError, what: str) -> PilotageError:
    """Give our error for one of the local disk."""
    code = LOCAL_ERRORS.get(error.errno or 0, ErrorCode.FILE_HANDLING_FAILED)
    return PilotageError(code, f"{what}: {error.strerror or error}")


def make_local_folder(folder: Path) -> None:
    """Make a folder of the job with its parents; ``MKDIR_FAILED`` or ``NO_LOCAL_SPACE`` when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        code = LOCAL_ERRORS.get(error.errno or 0, ErrorCode.MKDIR_FAILED)
        raise PilotageError(code, f"{folder}: {error.strerror or error}") from error


def open_regular(path: Path, *, follow_links: bool = True) -> int:
    """Open a regular file for reading and give its descriptor; a pipe never blocks here.

    Raises :class:`OSError`, with ``EINVAL`` for what is no regular file and ``ELOOP`` for a link not to be followed.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return descriptor


def open_output(path: Path) -> int:
    """Open a job's output for upload: a regular file, and no link to one (a link could name anything).

    Raises ``MISSING_OUTPUT``, ``OUTPUT_NOT_REGULAR`` or the error of the local disk.
    """
    try:
        return open_regular(path, follow_links=False)
    except FileNotFoundError as error:
        raise PilotageError(ErrorCode.MISSING_OUTPUT, f"{path} does not exist") from error
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ELOOP, errno.ENXIO):
            raise PilotageError(ErrorCode.OUTPUT_NOT_REGULAR, f"{path}: {error.strerror}") from error
        raise local_error(error, str(path)) from error


def raise_if_full(part: PartFile, request: TransferRequest) -> None:
    """Raise ``NO_LOCAL_SPACE`` for a file that came out wrong on a disk with no room for the rest of it.

    For libraries that don't tell of failed writes: a full disk must not make a replica a damaged one.
    """
    disk, size = os.fstatvfs(part.descriptor), os.fstat(part.descriptor).st_size
    missing = max(request.size - size, 0) if request.size is not None else CHUNK_BYTES
    if missing and disk.f_bavail * disk.f_frsize < missing:
        raise PilotageError(ErrorCode.NO_LOCAL_SPACE, f"{request.path}: the disk was full after {size} bytes")


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all bytes, however few the system takes at a time; :class:`OSError` for what the disk refuses."""
    while data:
        data = data[os.write(descriptor, data) :]


def part_name(final: str) -> str:
    """Give a temporary name for the file name ``final``: its own for each transfer, and short, however long that is."""
    return f"{_part_prefix(final)}{uuid.uuid4().hex[:8]}{PART_SUFFIX}"


def is_part_of(name: str, final: str) -> bool:
    """Say whether ``name`` is a temporary one for ``final``: what a pilot that was killed leaves, and who removes
    the final file removes as well."""
    return name.startswith(_part_prefix(final)) and name.endswith(PART_SUFFIX)


def _part_prefix(final: str) -> str:
    return f".pilotage-{hashlib.sha256(os.fsencode(final)).hexdigest()[:16]}-"


class PartFile:
    """A file on a mounted disk that is written under a temporary name and gets its final one only when it is whole.

    Use as a context manager: without :meth:`commit` nothing is left. All methods raise :class:`OSError`.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.parent / part_name(final.name)
        self.descriptor = -1

    def __enter__(self) -> PartFile:
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        return self

    def commit(self, *, replace: bool) -> None:
        """Give the file its final name; :class:`FileExistsError` when that is taken and ``replace`` is false."""
        self._close()  # a network file system tells of failed writes here
        if replace:
            self.path.replace(self.final)
            return
        try:
            os.link(self.path, self.final)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # a file system without hard links: the best that is left
            if self.final.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.final)) from error
            self.path.rename(self.final)

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            self._close()
        finally:
            self.path.unlink(missing_ok=True)
