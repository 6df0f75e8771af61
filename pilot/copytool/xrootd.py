"""The copytool of XRootD storages (``root://``, ``roots://``), with the XRootD Python bindings.

The bytes are moved by the library's own copy engine, the one behind ``xrdcp``, which computes the checksum on the
way. Everything else here sees to it that a storage that refuses, stalls or dies costs seconds, not minutes.
"""

from __future__ import annotations

import logging
import math
import os
import posixpath
import threading
import time
from collections.abc import Callable
from typing import Any, Optional

from common.checksums import Checksum, file_checksum, parse_checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool.background import Call
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
    raise_if_cancelled,
    raise_if_full,
    verify,
)
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.xrootd_client import (
    Handler,
    Place,
    bindings,
    checksum_turn,
    descriptor_path,
    run_copy,
    whole_seconds,
)
from pilot.copytool.xrootd_errors import CHECKSUM_REFUSALS, ERROR_RESPONSE, is_missing, status_error

log = logging.getLogger(__name__)

#: How long a call about a file (stat, rename, remove) may take, in seconds.
CALL_TIMEOUT_S = 30.0
#: How long the removal of a failed upload may take, in seconds.
CLEAN_TIMEOUT_S = 3.0

#: Checksums that the library computes on the way.
ON_THE_WAY = frozenset({"adler32", "md5"})


class XrootdCopytool(Copytool):
    """Copies from and to XRootD servers; adler32 is verified in both directions.

    Stage-in compares what was received with the recorded checksum, or with what the server says where none is
    recorded. Stage-out compares the server's checksum of the stored file with that of the bytes read.
    """

    name = "xrootd"
    schemes = frozenset({"root", "roots", "xroot", "xroots"})

    def __init__(self, *, credentials: Optional[CredentialSource] = None, **options: Any) -> None:
        super().__init__(credentials=credentials, **options)
        bindings()

    def exists(self, url: str) -> bool:
        """Say whether a file is there."""
        place = Place.parse(url, Direction.IN)
        return self._size(place, Direction.IN, threading.Event(), time.monotonic() + CALL_TIMEOUT_S) is not None

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        direction, deadline = Direction.IN, time.monotonic() + request.timeout_s
        place = Place.parse(request.url, direction)
        expected = expected_checksum(request)
        make_local_folder(request.path.parent)
        try:
            with PartFile(request.path) as part:
                algorithm = expected.algorithm if expected and expected.algorithm in ON_THE_WAY else "adler32"
                checksum = self._copy(place, part.descriptor, direction, algorithm, cancel, deadline)
                if expected is None:
                    self._compare_with_server(place, checksum, cancel, deadline)
                elif expected.algorithm != algorithm:
                    checksum = file_checksum(part.path, expected.algorithm)
                done = Transferred(os.fstat(part.descriptor).st_size, checksum)
                try:
                    verify(request, done.size, done.checksum, direction)
                except PilotageError:
                    raise_if_full(part, request)
                    raise
                part.commit(replace=True)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error

    def _compare_with_server(self, place: Place, checksum: Checksum, cancel: threading.Event, deadline: float) -> None:
        """Compare what was received with what the server says, if it can say."""
        try:
            there = self._checksum(place, checksum.algorithm, Direction.IN, cancel, deadline)
        except PilotageError as error:
            if error.code is not ErrorCode.CHECKSUM_NOT_SUPPORTED:
                raise
            log.info("%s: nothing to compare %s with", place.shown, checksum)
            return
        if there != checksum:
            raise PilotageError(
                Direction.IN.mismatch(checksum.algorithm), f"{place.shown}: received {checksum}, server says {there}"
            )

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        direction, deadline = Direction.OUT, time.monotonic() + request.timeout_s
        final = Place.parse(request.url, direction)
        descriptor = open_output(request.path)
        try:
            if self._stored_before(final, descriptor, cancel, deadline):
                return self._local(request, descriptor)
            part = final.part()
            sent = self._copy(part, descriptor, direction, "adler32", cancel, deadline)
            try:
                done = self._local(request, descriptor, sent)
                self._compare_stored(part, sent, cancel, deadline)
                self._rename(part, final, cancel, deadline)
            except PilotageError:
                self._clean(part)
                raise
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error
        finally:
            os.close(descriptor)

    def _stored_before(self, final: Place, descriptor: int, cancel: threading.Event, deadline: float) -> bool:
        """Say whether the destination holds the same file already; ``FILE_EXISTS`` when it holds another."""
        size = self._size(final, Direction.OUT, cancel, deadline)
        if size is None:
            return False
        local_size = os.fstat(descriptor).st_size
        if size == local_size:
            there = self._checksum(final, "adler32", Direction.OUT, cancel, deadline)
            if there == file_checksum(descriptor_path(descriptor)):
                return True
        raise PilotageError(ErrorCode.FILE_EXISTS, f"{final.shown} exists with other content ({size} bytes)")

    def _local(self, request: TransferRequest, descriptor: int, adler32: Optional[Checksum] = None) -> Transferred:
        """Give size and checksum of the local file, compared with the recorded ones."""
        expected = expected_checksum(request)
        algorithm = expected.algorithm if expected else "adler32"
        known = adler32 if algorithm == "adler32" else None
        checksum = known or file_checksum(descriptor_path(descriptor), algorithm)
        size = os.fstat(descriptor).st_size
        verify(request, size, checksum, Direction.OUT)
        return Transferred(size, checksum)

    def _compare_stored(self, part: Place, sent: Checksum, cancel: threading.Event, deadline: float) -> None:
        """Compare the server's checksum of what it stored with that of what was sent."""
        there = self._checksum(part, sent.algorithm, Direction.OUT, cancel, deadline)
        if there != sent:
            raise PilotageError(
                Direction.OUT.mismatch(sent.algorithm), f"{part.shown}: sent {sent}, server says {there}"
            )

    def _rename(self, part: Place, final: Place, cancel: threading.Event, deadline: float) -> None:
        """Give an uploaded file its final name, unless that was taken meanwhile: servers would overwrite it."""
        if self._size(final, Direction.OUT, cancel, deadline) is not None:
            raise PilotageError(ErrorCode.FILE_EXISTS, f"{final.shown} appeared during the upload")
        status, _ = self._ask(
            final,
            lambda files, there, timeout: files.mv(
                there._replace(path=part.path).with_query(), there.with_query(), timeout=timeout
            ),
            Direction.OUT,
            cancel,
            deadline,
        )
        if not status.ok:
            raise status_error(status, Direction.OUT, final.shown, final.query)

    def _clean(self, part: Place) -> None:
        """Remove an upload that did not make it; the server forgets what a dead one leaves (persist on close)."""
        try:
            self._remove(part, threading.Event(), time.monotonic() + CLEAN_TIMEOUT_S)
        except PilotageError as error:
            log.warning("%s may be left behind: %s", part.shown, error)

    def _delete(self, url: str, cancel: threading.Event) -> None:
        place, deadline = Place.parse(url, Direction.OUT), time.monotonic() + CALL_TIMEOUT_S
        self._remove(place, cancel, deadline)
        for part in self._parts(place, cancel, deadline):
            self._remove(part, cancel, deadline)

    def _parts(self, final: Place, cancel: threading.Event, deadline: float) -> list[Place]:
        """Give what was uploaded for a file and never got its name. Not every server lists folders: then nothing."""
        folder = final.beside("")
        status, entries = self._ask(
            folder,
            lambda files, there, timeout: files.dirlist(there.with_query(), timeout=timeout),
            Direction.OUT,
            cancel,
            deadline,
        )
        if not status.ok:
            if not is_missing(status):
                log.info("%s cannot be listed: %s", folder.shown, status.message.strip())
            return []
        name = posixpath.basename(final.path)
        return [final.beside(entry.name) for entry in entries if is_part_of(entry.name, name)]

    def _remove(self, place: Place, cancel: threading.Event, deadline: float) -> None:
        status, _ = self._ask(
            place,
            lambda files, there, timeout: files.rm(there.with_query(), timeout=timeout),
            Direction.OUT,
            cancel,
            deadline,
        )
        if not status.ok and not is_missing(status):
            raise status_error(status, Direction.OUT, place.shown, place.query)

    def _size(self, place: Place, direction: Direction, cancel: threading.Event, deadline: float) -> Optional[int]:
        """Give the size of a file in bytes, ``None`` when there is none."""
        status, info = self._ask(
            place,
            lambda files, there, timeout: files.stat(there.with_query(), timeout=timeout),
            direction,
            cancel,
            deadline,
        )
        if status.ok:
            return int(info.size)
        if is_missing(status):
            return None
        raise status_error(status, direction, place.shown, place.query)

    def _checksum(
        self, place: Place, algorithm: str, direction: Direction, cancel: threading.Event, deadline: float
    ) -> Checksum:
        """Ask the server for a checksum; ``CHECKSUM_NOT_SUPPORTED`` when it cannot tell."""
        code = bindings().flags.QueryCode.CHECKSUM
        # the server may have to read the whole file first: the transfer's own deadline holds
        with checksum_turn(place, direction, cancel, deadline):
            status, answer = self._ask(
                place,
                lambda files, there, timeout: files.query(
                    code, there.with_query(f"cks.type={algorithm}"), timeout=timeout
                ),
                direction,
                cancel,
                deadline,
                longest=math.inf,
            )
        if not status.ok:
            error = status_error(status, direction, place.shown, place.query)
            refused = status.code == ERROR_RESPONSE and status.errno in CHECKSUM_REFUSALS
            raise PilotageError(ErrorCode.CHECKSUM_NOT_SUPPORTED, error.detail) if refused else error
        found, _, value = bytes(answer).rstrip(b"\0\n ").decode("ascii", "replace").partition(" ")
        try:
            return Checksum(found, value)
        except PilotageError as error:
            raise PilotageError(ErrorCode.CHECKSUM_NOT_SUPPORTED, f"{place.shown}: {error.detail}") from error

    def _ask(
        self,
        place: Place,
        call: Callable[[Any, Place, int], tuple[Any, Any]],
        direction: Direction,
        cancel: threading.Event,
        deadline: float,
        *,
        longest: float = CALL_TIMEOUT_S,
    ) -> tuple[Any, Any]:
        """Make one call to a server's file system, at the place with what is shown there; give its status and answer."""
        deadline = min(deadline, time.monotonic() + longest)
        there = self._showing(place, direction)
        files = bindings().client.FileSystem(there.server)
        return Call(lambda: call(files, there, whole_seconds(deadline))).wait(direction, place.shown, cancel, deadline)

    def _showing(self, place: Place, direction: Direction) -> Place:
        """The place with a credential that is good now: one that was asked for earlier may have ended meanwhile."""
        return place.showing(self.credentials.for_url(place.asked, write=direction is Direction.OUT))

    def _copy(
        self,
        place: Place,
        descriptor: int,
        direction: Direction,
        algorithm: str,
        cancel: threading.Event,
        deadline: float,
    ) -> Checksum:
        """Move the bytes between a server and an open local file; give the checksum computed on the way."""
        handler = Handler(cancel)
        url = self._showing(place, direction).url
        local = os.dup(descriptor)  # the thread's own: it may outlive this call

        def run() -> tuple[Any, str]:
            try:
                status, checksum = run_copy(url, descriptor_path(local), direction, algorithm, handler, deadline)
            finally:
                os.close(local)
            if direction is Direction.OUT and (not status.ok or handler.should_cancel(0)):
                self._clean(place)
            return status, checksum

        status, checksum = Call(run).wait(direction, place.shown, cancel, deadline, handler.stopped.set)
        if not status.ok:
            raise_if_cancelled(cancel, direction)
            raise status_error(status, direction, place.shown, place.query)
        return parse_checksum(checksum)
