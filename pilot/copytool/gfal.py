"""The copytool of everything that gfal2 speaks: ``root``, ``davs``, ``https``, ``gsiftp``, ``srm`` and ``file``.

It works with gfal2's Python bindings where a Python of the node has them, else with the ``gfal-*`` commands; either way
in child processes (see :mod:`pilot.copytool.gfal_client`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Optional, TypeVar

from common.checksums import Checksum
from common.errors import ErrorCode, PilotageError
from common.tokens import write_secret_file
from pilot.copytool.base import (
    Copytool,
    Direction,
    PartFile,
    Transferred,
    TransferRequest,
    expected_checksum,
    is_part_of,
    local_error,
    make_local_folder,
    open_output,
    verify,
)
from pilot.copytool.children import Limits, Watch, bytes_read, child_environment, size_of
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.gfal_client import Entry, Found, Gfal, GfalFailure, Transport, find_gfal
from pilot.copytool.gfal_errors import failure_error, is_missing, tells_no_checksum
from pilot.copytool.gfal_place import Place
from pilot.copytool.local import measure
from pilot.copytool.xrootd_client import CLIENT_SETTINGS

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: How long a call about a file (stat, rename, remove, list) may take, in seconds.
CALL_TIMEOUT_S = 60.0
#: How long the removal of a failed upload may take, in seconds.
CLEAN_TIMEOUT_S = 3.0
#: A transfer that moves no byte for this long is given up, in seconds.
STALL_S = 120.0
#: Checksums that storages are asked for, in this order.
REMOTE_ALGORITHMS = ("adler32", "md5")


class GfalCopytool(Copytool):
    """Copies with gfal2; what is stored and what is received is compared with checksums at both ends.

    Stage-in compares what was received with the recorded checksum, or with what the storage says where none is
    recorded. Stage-out compares the storage's checksum (adler32, or md5 where it has no other) with the local file's.
    ``use`` is ``auto``, ``bindings`` or ``commands``; ``python`` names a Python that has the bindings; after
    ``stall_s`` seconds without a byte a transfer is given up; ``ca`` is the folder of the authorities that vouch for
    servers (``X509_CERT_DIR``).
    """

    name = "gfal"
    schemes = frozenset({"root", "roots", "xroot", "davs", "https", "gsiftp", "srm", "file"})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        use: str = "auto",
        python: Optional[str] = None,
        stall_s: float = STALL_S,
        ca: Optional[str] = None,
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        if use not in ("auto", "bindings", "commands"):
            raise PilotageError(
                ErrorCode.UNKNOWN_COPYTOOL, f"copytool 'gfal': use is {use!r}: write auto, bindings or commands"
            )
        self._environ = {**os.environ, **({"X509_CERT_DIR": ca} if ca else {})}
        for key, seconds in CLIENT_SETTINGS.items():  # an admin's own setting wins
            self._environ.setdefault(f"XRD_{key.upper()}", str(seconds))
        self._found = find_gfal(use, python, self._environ)
        self._stall_s = stall_s

    def exists(self, url: str) -> bool:
        """Say whether a file is there."""
        place = Place.parse(url, Direction.IN)
        limits = Limits(Direction.IN, place.shown, threading.Event(), time.monotonic() + CALL_TIMEOUT_S)
        with self._storage(url, place, limits) as storage:
            return storage.entry(place) is not None

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place = Place.parse(request.url, Direction.IN)
        limits = Limits(Direction.IN, place.shown, cancel, time.monotonic() + request.timeout_s)
        expected = expected_checksum(request)
        make_local_folder(request.path.parent)
        try:
            with _folder(request.path.parent) as folder, self._storage(request.url, place, limits, folder) as storage:
                there = _demand_file(storage.entry(place), place)
                with PartFile(request.path) as part:
                    part.path.unlink()  # gfal2 makes files, and overwrites none
                    watch = Watch(lambda pid: size_of(part.path), self._stall_s)
                    # by the open folder: its own path may hold what a URL could misread
                    storage.copy(place.url, f"file:///proc/self/fd/{folder}/{part.path.name}", watch)
                    _demand_all(part.path, there.size, limits)
                    done = measure(part.path, expected.algorithm if expected else "adler32", limits)
                    verify(request, done.size, done.checksum, Direction.IN)
                    if expected is None:
                        storage.compare(place, done.checksum)
                    part.commit(replace=True)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        final = Place.parse(request.url, Direction.OUT)
        limits = Limits(Direction.OUT, final.shown, cancel, time.monotonic() + request.timeout_s)
        descriptor = open_output(request.path)
        try:
            output = _Output(request, descriptor, limits)
            with self._storage(request.url, final, limits, descriptor) as storage:
                there = storage.entry(final)
                if there is None:
                    self._upload(storage, final, output)
                elif there.size != output.size or not output.is_like(storage.content(final, output.preferred)):
                    detail = f"{final.shown} exists with other content ({there.size} bytes)"
                    raise PilotageError(ErrorCode.FILE_EXISTS, detail)
            return output.done()
        except OSError as error:
            raise local_error(error, str(request.path)) from error
        finally:
            os.close(descriptor)

    def _upload(self, storage: _Storage, final: Place, output: _Output) -> None:
        """Bring an output to a place that is free."""
        part = final.part() if final.takes_rename else final
        try:
            storage.copy(f"file:///proc/self/fd/{output.descriptor}", part.url, Watch(bytes_read, self._stall_s))
            there = storage.content(part, output.preferred)
            if not output.is_like(there):
                self._demand_room(storage, part, output)
                detail = f"{part.shown}: the storage says {there}, which is not the local file"
                raise PilotageError(Direction.OUT.mismatch(output.preferred), detail)
            output.done()
            if part != final:
                storage.rename(part, final)
        except PilotageError as error:
            if part != final or error.code is not ErrorCode.FILE_EXISTS:
                storage.clean(part)
            raise

    @staticmethod
    def _demand_room(storage: _Storage, part: Place, output: _Output) -> None:
        """Raise ``NO_REMOTE_SPACE`` for what a full disk cut short: gfal2 does not notice."""
        kept = storage.entry(part)
        if part.scheme == "file" and kept is not None and kept.size < output.size:
            disk = os.statvfs(Path(part.path).parent)
            if disk.f_bavail * disk.f_frsize < output.size - kept.size:
                raise PilotageError(ErrorCode.NO_REMOTE_SPACE, f"{part.shown}: the disk was full at {kept.size} bytes")

    def _delete(self, url: str, cancel: threading.Event) -> None:
        place = Place.parse(url, Direction.OUT)
        limits = Limits(Direction.OUT, place.shown, cancel, time.monotonic() + CALL_TIMEOUT_S)
        with self._storage(url, place, limits) as storage:
            for each in [place, *storage.parts(place)]:
                storage.remove(each)

    def _storage(self, url: str, place: Place, limits: Limits, *pass_fds: int) -> _Storage:
        return _Storage(self._found, self._environ, self.credentials, url, place, limits, pass_fds)


class _Output:
    """An open output: its size, and its checksums, each computed once and only when it is asked for.

    What is recorded of it is taken for true until a storage says otherwise: then what was uploaded is wrong anyway.
    """

    def __init__(self, request: TransferRequest, descriptor: int, limits: Limits) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._request = request
        self._limits = limits
        self._expected = expected_checksum(request)
        self._known: dict[str, Checksum] = {}
        self.preferred = self._expected.algorithm if self._expected else REMOTE_ALGORITHMS[0]
        if request.size is not None and self.size != request.size:
            detail = f"{request.label}: {self.size} bytes, but {request.size} are recorded"
            raise PilotageError(Direction.OUT.mismatch(self.preferred), detail)

    def is_like(self, there: Checksum) -> bool:
        """Whether a checksum is the output's."""
        known = self._expected if self._expected and self._expected.algorithm == there.algorithm else None
        if (known or self._measured(there.algorithm)) != there:
            return False
        self._known[there.algorithm] = there
        return True

    def done(self) -> Transferred:
        """Size and checksum, compared with what is recorded."""
        checksum = self._measured(self.preferred)
        verify(self._request, self.size, checksum, Direction.OUT)
        return Transferred(self.size, checksum)

    def _measured(self, algorithm: str) -> Checksum:
        if algorithm not in self._known:
            self._known[algorithm] = measure(self.descriptor, algorithm, self._limits).checksum
        return self._known[algorithm]


class _Storage:
    """The storage of one request: calls to gfal2, with the credentials as they are at each call.

    All calls raise :class:`PilotageError`. Use as a context manager.
    """

    def __init__(
        self,
        found: Found,
        environ: Mapping[str, str],
        credentials: CredentialSource,
        url: str,
        place: Place,
        limits: Limits,
        pass_fds: tuple[int, ...],
    ) -> None:
        self._found = found
        self._environ = environ
        self._credentials = credentials
        self._url = url
        self._place = place
        self._limits = limits
        self._pass_fds = pass_fds
        self._tokens: Optional[tempfile.TemporaryDirectory[str]] = None
        self._token: Optional[str] = None
        self._transport: Optional[Transport] = None
        self._gfal: Optional[Gfal] = None

    def __enter__(self) -> _Storage:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._close()
        finally:
            if self._tokens is not None:
                self._tokens.cleanup()

    def entry(self, place: Place) -> Optional[Entry]:
        """What is at a place, ``None`` when nothing is."""
        return self._call(lambda gfal, limits: gfal.entry(place.url, limits), place, absent=lambda: None)

    def copy(self, source: str, target: str, watch: Watch) -> None:
        """Copy between the request's place and an open local file."""
        self._call(lambda gfal, limits: gfal.copy(source, target, limits, watch), self._place, self._limits)

    def compare(self, place: Place, checksum: Checksum) -> None:
        """Compare what was received with what the storage says, if it can say."""
        there = self._checksum(place, checksum.algorithm)
        if there is None:
            log.info("%s: nothing to compare %s with", place.shown, checksum)
        elif there != checksum:
            detail = f"{place.shown}: received {checksum}, the storage says {there}"
            raise PilotageError(Direction.IN.mismatch(checksum.algorithm), detail)

    def content(self, place: Place, preferred: str) -> Checksum:
        """What the storage says that a file's content is; ``CHECKSUM_NOT_SUPPORTED`` when it cannot say."""
        for algorithm in sorted(REMOTE_ALGORITHMS, key=lambda name: name != preferred):
            there = self._checksum(place, algorithm)
            if there is not None:
                return there
        tried = " or ".join(REMOTE_ALGORITHMS)
        raise PilotageError(ErrorCode.CHECKSUM_NOT_SUPPORTED, f"{place.shown}: the storage tells no {tried}")

    def rename(self, part: Place, final: Place) -> None:
        """Give an uploaded file its final name, unless that was taken meanwhile: storages would overwrite it."""
        if self.entry(final) is not None:
            raise PilotageError(ErrorCode.FILE_EXISTS, f"{final.shown} appeared during the upload")
        self._call(lambda gfal, limits: gfal.rename(part.url, final.url, limits), final)

    def remove(self, place: Place) -> None:
        """Remove a file that may not be there."""
        self._call(lambda gfal, limits: gfal.remove(place.url, limits), place, absent=lambda: None)

    def parts(self, final: Place) -> list[Place]:
        """What was uploaded for a file and never got its name. Not every storage lists folders: then nothing."""

        def ask(gfal: Gfal, limits: Limits) -> list[str]:
            return gfal.names(final.folder.url, limits)

        try:
            names: list[str] = self._call(ask, final, absent=list)
        except PilotageError as error:
            if error.code is Direction.OUT.timeout or self._limits.cancel.is_set():
                raise
            log.info("%s cannot be listed: %s", final.folder.shown, error)
            return []
        return [final.beside(name) for name in names if is_part_of(name, Path(final.path).name)]

    def clean(self, part: Place) -> None:
        """Remove an upload that did not make it, cancelled or not."""
        self._close()
        limits = self._limits._replace(cancel=threading.Event(), deadline=time.monotonic() + CLEAN_TIMEOUT_S)
        try:
            self._call(lambda gfal, limits: gfal.remove(part.url, limits), part, limits, absent=lambda: None)
        except PilotageError as error:
            log.warning("%s may be left behind: %s", part.shown, error)

    def _checksum(self, place: Place, algorithm: str) -> Optional[Checksum]:
        """The storage's checksum of a file, ``None`` when it cannot tell that one."""
        try:
            # the storage may have to read the whole file first: the transfer's own deadline holds
            value = self._try(lambda gfal, limits: gfal.checksum(place.url, algorithm, limits), place, self._limits)
        except GfalFailure as failure:
            if tells_no_checksum(failure):
                return None
            raise self._error(failure, place) from failure
        try:
            return Checksum(algorithm, value)
        except PilotageError as error:
            log.info("%s: %s", place.shown, error)
            return None

    def _call(
        self,
        function: Callable[[Gfal, Limits], Result],
        place: Place,
        limits: Optional[Limits] = None,
        absent: Optional[Callable[[], Result]] = None,
    ) -> Result:
        """Make one call; ``absent`` gives the result when there is no such file."""
        try:
            return self._try(function, place, limits or self._limits.within(CALL_TIMEOUT_S))
        except GfalFailure as failure:
            if absent is not None and is_missing(failure):
                return absent()
            raise self._error(failure, place) from failure

    def _try(self, function: Callable[[Gfal, Limits], Result], place: Place, limits: Limits) -> Result:
        limits = limits._replace(shown=place.shown)
        return function(self._ready(), limits)

    def _error(self, failure: GfalFailure, place: Place) -> PilotageError:
        return failure_error(failure, self._limits.direction, place.shown, place.query)

    def _ready(self) -> Gfal:
        """A way to call gfal2 that has the credentials of this moment."""
        write = self._limits.direction is Direction.OUT
        credential = self._credentials.for_url(self._url, write=write)
        token_file = credential.token_file
        if token_file is None and credential.token is not None:
            self._tokens = self._tokens or tempfile.TemporaryDirectory(prefix="pilotage-gfal-")
            token_file = Path(self._tokens.name) / "token"
            if credential.token != self._token:
                write_secret_file(token_file, credential.token)
                self._token = credential.token
        env = child_environment(self._environ, credential, token_file)
        transport = Transport(env, self._pass_fds, self._place.endpoint)
        if self._gfal is None or self._transport != transport:
            self._close()
            self._gfal, self._transport = self._found.open(transport), transport
        return self._gfal

    def _close(self) -> None:
        gfal, self._gfal = self._gfal, None
        if gfal is not None:
            gfal.close()


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    """Open a folder: its descriptor names it to child processes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _demand_file(there: Optional[Entry], place: Place) -> Entry:
    """Raise ``NO_SUCH_FILE`` for what is no regular file: gfal2 would copy a whole folder, or its listing."""
    if there is None or not there.is_file:
        what = "does not exist" if there is None else "is no regular file"
        raise PilotageError(ErrorCode.NO_SUCH_FILE, f"{place.shown} {what}")
    return there


def _demand_all(path: Path, size: int, limits: Limits) -> None:
    """Raise an error for a file that came short: gfal2 notices neither a full disk nor every line that was cut, and a
    replica that is good must not be taken for a damaged one."""
    found, disk = path.stat().st_size, os.statvfs(path.parent)
    if found < size:
        full = disk.f_bavail * disk.f_frsize < size - found
        code = ErrorCode.NO_LOCAL_SPACE if full else limits.direction.failed
        raise PilotageError(code, f"{limits.shown}: {found} of {size} bytes{', the disk is full' if full else ''}")
