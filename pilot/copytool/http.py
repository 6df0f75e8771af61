"""The copytool of storages that speak HTTP or WebDAV: ``https://``, ``davs://``, ``http://``, ``dav://``.

A storage that can MOVE gets a file under a temporary name first; any other one gets it at once under its own, on the
condition that nothing is there. What arrived is compared by the storage's own checksum where it tells one.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypeVar

from common.checksums import Checksum
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
    raise_if_cancelled,
    verify,
)
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.http_body import LocalFile
from pilot.copytool.http_dav import entries, make_folders
from pilot.copytool.http_digest import digests, wanted
from pilot.copytool.http_get import open_at
from pilot.copytool.http_line import Line, Wires
from pilot.copytool.http_place import Place
from pilot.copytool.http_resume import download

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: How long a call about a file (HEAD, DELETE) may take, in seconds.
CALL_TIMEOUT_S = 30.0
#: How long the removal of a failed upload may take, in seconds.
CLEAN_TIMEOUT_S = 3.0
#: Where grid nodes keep the certificates of authorities, unless X509_CERT_DIR says otherwise.
GRID_AUTHORITIES = "/etc/grid-security/certificates"


class _Stored(NamedTuple):
    """What a storage tells of a file: size in bytes and checksums by algorithm, as far as it does."""

    size: Optional[int]
    checksums: dict[str, Checksum]


class HttpCopytool(Copytool):
    """Copies from and to HTTP servers.

    ``ca`` is a file, or a folder of hashed certificates, that replaces all other authorities. A server that says
    nothing for ``stall_s`` seconds amid a transfer has stalled. An upload to a storage that tells no checksum is read
    back when it has at most ``read_back_mb`` megabytes (10⁶ bytes), and compared by size otherwise.
    """

    name = "http"
    schemes = frozenset({"http", "https", "dav", "davs"})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        ca: Optional[str] = None,
        stall_s: float = 60.0,
        read_back_mb: float = 64.0,
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        grid = os.environ.get("X509_CERT_DIR") or (GRID_AUTHORITIES if Path(GRID_AUTHORITIES).is_dir() else None)
        self._wires = Wires(ca, grid, stall_s)
        self._read_back_bytes = read_back_mb * 1e6
        self._moving: dict[str, bool] = {}  # by endpoint: whether it can MOVE

    def exists(self, url: str) -> bool:
        """Say whether a file is there."""
        place = Place.parse(url, Direction.IN)

        def look(line: Line) -> bool:
            if not place.bound:
                return self._head(line, place, None) is not None
            # signed for GET, most likely
            with line.ask("GET", place, {"Range": "bytes=0-0"}, accept=(404, 410, 416)) as response:
                return response.status_code not in (404, 410)

        return self._run(url, Direction.IN, False, threading.Event(), time.monotonic() + CALL_TIMEOUT_S, look)

    def _run(
        self,
        url: str,
        direction: Direction,
        write: bool,
        cancel: threading.Event,
        deadline: float,
        work: Callable[[Line], Result],
    ) -> Result:
        """Do a transfer's work in a thread that can be left behind, on a line that can be cut."""
        line = Line(self._wires, self.credentials, url, direction, write, deadline)

        def run() -> Result:
            clean = False
            try:
                done = work(line)
                clean = True
            finally:
                line.close(clean=clean)
            return done

        shown = Place.parse(url, direction).shown
        return Call(run, self.name).wait(direction, shown, cancel, deadline, line.cut)

    # --- in

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        place, expected = Place.parse(request.url, Direction.IN), expected_checksum(request)
        make_local_folder(request.path.parent)

        def work(line: Line) -> Transferred:
            try:
                with PartFile(request.path) as part:
                    done = self._receive(line, place, request, expected, cancel, part)
                    line.check()
                    part.commit(replace=True)
                return done
            except OSError as error:
                raise local_error(error, str(request.path)) from error

        return self._run(request.url, Direction.IN, False, cancel, time.monotonic() + request.timeout_s, work)

    def _receive(
        self,
        line: Line,
        place: Place,
        request: TransferRequest,
        expected: Optional[Checksum],
        cancel: threading.Event,
        part: PartFile,
    ) -> Transferred:
        algorithm = expected.algorithm if expected else "adler32"
        opener = functools.partial(open_at, line, place)
        done = download(opener, request, algorithm, Direction.IN, _checker(line, cancel), part)
        verify(request, done.size, done.checksum, Direction.IN)
        if expected is None and not place.bound:
            # Not asked for with the file itself: XRootD 5.5 then answers 500 for a file that is missing.
            there = self._head(line, place, algorithm)
            told = there.checksums.get(algorithm) if there else None
            if told is not None and told != done.checksum:
                detail = f"received {done.checksum}, server says {told}"
                raise PilotageError(Direction.IN.mismatch(algorithm), f"{place.shown}: {detail}")
        return done

    # --- out

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        final = Place.parse(request.url, Direction.OUT)

        def work(line: Line) -> Transferred:
            with LocalFile(request, _checker(line, cancel)) as local:
                if final.bound:
                    return self._put_signed(line, final, local)
                if self._stored_before(line, final, local, request):
                    return local.verified()
                if self._can_move(line, final):
                    return self._put_and_move(line, final, local, request)
                return self._put_directly(line, final, local, request)

        return self._run(request.url, Direction.OUT, True, cancel, time.monotonic() + request.timeout_s, work)

    def _put_and_move(self, line: Line, final: Place, local: LocalFile, request: TransferRequest) -> Transferred:
        """Upload under a temporary name and rename; servers that ignore ``Overwrite`` are asked before."""
        part = final.part()
        try:
            self._put(line, part, local, {})
            local.check()
            done = local.verified()
            self._compare_stored(line, part, local, request)
            if self._head(line, final, None) is not None:
                raise PilotageError(ErrorCode.FILE_EXISTS, f"{final.shown} appeared during the upload")
            with line.ask("MOVE", part, {"Destination": final.url, "Overwrite": "F"}, patient=True):
                log.debug("%s has its name", final.shown)
        except PilotageError:
            self._clean(part, request.url)
            raise
        return done

    def _put_directly(self, line: Line, final: Place, local: LocalFile, request: TransferRequest) -> Transferred:
        """Upload to a place that was free a moment ago, on the condition that it still is."""
        try:
            self._put(line, final, local, {"If-None-Match": "*"})
        except PilotageError as error:
            if error.code is ErrorCode.FILE_EXISTS:
                if self._stored_before(line, final, local, request):
                    return local.verified()
                raise
            self._clean(final, request.url, smaller_than=local.size)
            raise
        try:
            done = local.verified()
            self._compare_stored(line, final, local, request)
        except PilotageError:
            self._clean(final, request.url)
            raise
        return done

    def _put_signed(self, line: Line, final: Place, local: LocalFile) -> Transferred:
        """Upload to a URL that is good for this one request: its storage compares by ``Content-MD5`` (RFC 1864)."""
        done = local.verified()
        self._put(line, final, local, {"If-None-Match": "*", "Content-MD5": local.content_md5()})
        return done

    def _put(self, line: Line, place: Place, local: LocalFile, headers: dict[str, str]) -> None:
        """Upload to a place, with the folders that it needs."""
        missing = (404, 409) if not place.signed else ()
        with line.ask("PUT", place, headers, local, accept=missing, patient=True) as response:
            if response.status_code not in missing:
                return
        make_folders(line, place.folder())
        with line.ask("PUT", place, headers, local, patient=True):
            return

    def _can_move(self, line: Line, final: Place) -> bool:
        """Say whether a file can be renamed; what its server can is asked once.

        A name that has to be encoded is never the target of a MOVE: XRootD 5.5 does not decode it, others do it twice.
        """
        if "%" in final.path or final.query:
            return False
        known = self._moving.get(final.endpoint)
        if known is None:
            with line.ask("OPTIONS", final, accept=(400, 401, 403, 404, 405, 501)) as response:
                allowed = re.split(r"[\s,]+", response.headers.get("Allow", "").upper())
                # XRootD 5.5 has a MOVE, but does not tell
                known = response.ok and ("MOVE" in allowed or "DAV" in response.headers)
            self._moving[final.endpoint] = known
        return known

    def _stored_before(self, line: Line, final: Place, local: LocalFile, request: TransferRequest) -> bool:
        """Say whether the destination holds the same file already; ``FILE_EXISTS`` when it holds another."""
        there = self._head(line, final, local.algorithm)
        if there is None:
            return False
        if there.size in (None, local.size):
            found = self._checksum(line, final, there, local, request)
            if found == local.checksum(found.algorithm):
                return True
        raise PilotageError(ErrorCode.FILE_EXISTS, f"{final.shown} exists with other content ({there.size} bytes)")

    def _compare_stored(self, line: Line, place: Place, local: LocalFile, request: TransferRequest) -> None:
        """Compare what a storage holds with what was sent."""
        there = self._head(line, place, local.algorithm)
        if there is None or there.size not in (None, local.size):
            found = "nothing" if there is None else f"{there.size} bytes"
            code = Direction.OUT.mismatch(local.algorithm)
            raise PilotageError(code, f"{place.shown}: sent {local.size} bytes, server has {found}")
        if not there.checksums and local.size > self._read_back_bytes:
            log.info("%s: the server tells no checksum; its size is right", place.shown)
            return
        found_checksum = self._checksum(line, place, there, local, request)
        sent = local.checksum(found_checksum.algorithm)
        if found_checksum != sent:
            detail = f"sent {sent}, server has {found_checksum}"
            raise PilotageError(Direction.OUT.mismatch(sent.algorithm), f"{place.shown}: {detail}")

    def _checksum(
        self, line: Line, place: Place, there: _Stored, local: LocalFile, request: TransferRequest
    ) -> Checksum:
        """Give the checksum of a stored file: the server's own, preferably ours in kind, else by reading it."""
        if there.checksums:
            return there.checksums.get(local.algorithm) or next(iter(there.checksums.values()))
        opener = functools.partial(open_at, line, place)
        return download(opener, request, local.algorithm, Direction.OUT, local.check).checksum

    def _head(self, line: Line, place: Place, algorithm: Optional[str]) -> Optional[_Stored]:
        """Ask what a storage has at a place, with a checksum if one is wanted; ``None`` for nothing."""
        headers = wanted(algorithm) if algorithm else {}
        # some answer with an error when they cannot tell a checksum
        refusals = (400, 405, 406, 409, 500, 501) if algorithm else ()
        with line.ask("HEAD", place, headers, accept=(404, 410, *refusals), patient=bool(algorithm)) as response:
            if response.status_code in (404, 410):
                return None
            if response.ok:
                size = response.headers.get("Content-Length", "")
                return _Stored(int(size) if size.isdecimal() else None, digests(response.headers))
        return self._head(line, place, None)

    def _clean(self, place: Place, url: str, smaller_than: Optional[int] = None) -> None:
        """Remove an upload that did not make it.

        ``smaller_than`` spares what cannot be the beginning of ours: whoever was quicker left a whole file there.
        """
        line = Line(self._wires, self.credentials, url, Direction.OUT, True, time.monotonic() + CLEAN_TIMEOUT_S)
        try:
            if smaller_than is not None:
                there = self._head(line, place, None)
                if there is None or there.size is None or there.size >= smaller_than:
                    return
            self._remove(line, place)
        except PilotageError as error:
            log.warning("%s may be left behind: %s", place.shown, error)
        finally:
            line.close(clean=False)

    # --- removal

    def _delete(self, url: str, cancel: threading.Event) -> None:
        place = Place.parse(url, Direction.OUT)

        def work(line: Line) -> None:
            listing = [] if place.bound else (entries(line, place.folder(), 1) or [])
            if any(entry.is_folder and entry.name == place.name for entry in listing[1:]):
                raise PilotageError(ErrorCode.STAGE_OUT_FAILED, f"{place.shown} is a folder: only files are removed")
            self._remove(line, place)
            for entry in listing:
                if is_part_of(entry.name, place.name):
                    self._remove(line, place.beside(entry.name))

        self._run(url, Direction.OUT, True, cancel, time.monotonic() + CALL_TIMEOUT_S, work)

    @staticmethod
    def _remove(line: Line, place: Place) -> None:
        with line.ask("DELETE", place, accept=(404, 410)):
            return


def _checker(line: Line, cancel: threading.Event) -> Callable[[], None]:
    """Give what a transfer calls between two chunks: it raises when the transfer was given up."""

    def check() -> None:
        raise_if_cancelled(cancel, line.direction)
        line.check()

    return check
