"""The copytool of sites with commands of their own: a local site mover, ``lsm-get`` and ``lsm-put``.

The convention is that of PanDA's pilots::

    lsm-get [--size BYTES] [--checksum TYPE:VALUE] URL PATH
    lsm-put [--size BYTES] [--checksum TYPE:VALUE] PATH URL

Two commands more are ours, and a site may do without them: ``lsm-rm URL``, and ``lsm-stat URL``, which prints the
file's size in bytes and, when it knows it, its checksum: ``1234 adler32:0a1b2c3d``; it ends with 2 when there is none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union
from urllib.parse import unquote

from common.checksums import Checksum, parse_checksum
from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import (
    Copytool,
    Direction,
    PartFile,
    Transferred,
    TransferRequest,
    expected_checksum,
    local_error,
    make_local_folder,
    open_output,
    refuse_climbing,
    safe_url,
    url_scheme,
    verify,
)
from pilot.copytool.children import Ended, Limits, child_environment, refuse_secrets, run_child, token_file
from pilot.copytool.credentials import CredentialSource
from pilot.copytool.local import measure, pinned
from pilot.copytool.lsm_errors import SAME_FILE, exit_error, is_absent

#: How long ``lsm-rm`` and ``lsm-stat`` may take, in seconds.
CALL_TIMEOUT_S = 60.0
#: How long the removal of a failed upload may take, in seconds.
CLEAN_TIMEOUT_S = 3.0

Command = Union[str, Sequence[str]]


class Stated(NamedTuple):
    """What ``lsm-stat`` tells of a file."""

    size: int
    checksum: Optional[Checksum]


class LsmCopytool(Copytool):
    """Copies with a site's own commands.

    ``get``, ``put``, ``rm`` and ``stat`` are their names, paths, or lists with arguments of theirs; the last two are
    used where they are found. ``exit_codes`` gives the names of our errors for a site's own exit codes. What was
    fetched is always compared here. What was stored is verified by ``lsm-put`` itself, which is told size and checksum
    (not with ``tells_checksum`` false), and compared with what ``lsm-stat`` says where it tells a checksum; with
    ``read_back`` it is fetched again and compared.
    """

    name = "lsm"
    schemes = frozenset({"davs", "dcap", "file", "gsiftp", "https", "lsm", "root", "s3", "srm", ""})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        get: Command = "lsm-get",
        put: Command = "lsm-put",
        rm: Command = "lsm-rm",
        stat: Command = "lsm-stat",
        exit_codes: Optional[Mapping[str, str]] = None,
        tells_checksum: bool = True,
        read_back: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        self._get = _find("get", get, needed=True)
        self._put = _find("put", put, needed=True)
        self._rm = _find("rm", rm, needed=rm != "lsm-rm")
        self._stat = _find("stat", stat, needed=stat != "lsm-stat")
        self._exit_codes = _site_codes(exit_codes or {})
        self._tells_checksum = tells_checksum
        self._read_back = read_back
        if not (tells_checksum or read_back or self._stat):
            detail = "nobody would verify what is stored: set read_back, or give a command for stat"
            raise PilotageError(ErrorCode.UNKNOWN_COPYTOOL, f"copytool 'lsm': {detail}")

    def exists(self, url: str) -> bool:
        """Say whether a file is there; needs ``lsm-stat``."""
        limits = _limits(url, Direction.IN, threading.Event(), CALL_TIMEOUT_S)
        if not self._stat:
            raise PilotageError(ErrorCode.NO_STORAGE_PROTOCOL, f"{limits.shown}: this site has no lsm-stat")
        return self._stated(url, limits) is not None

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        limits = _limits(request.url, Direction.IN, cancel, request.timeout_s)
        expected = expected_checksum(request)
        make_local_folder(request.path.parent)
        try:
            with PartFile(request.path) as part:
                part.path.unlink()  # some commands overwrite nothing
                self._fetch_to(request, part.path, limits)
                done = measure(part.path, expected.algorithm if expected else "adler32", limits)
                verify(request, done.size, done.checksum, Direction.IN)
                part.commit(replace=True)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error

    def _fetch_to(self, request: TransferRequest, path: Path, limits: Limits) -> None:
        expected = expected_checksum(request)
        said = self._said(request.size, str(expected) if expected else None)
        ended = self._run([*self._get, *said, request.url, str(path.absolute())], request.url, limits)
        if ended.code != 0:
            raise self._error(ended, limits, expected)
        if not path.is_file():
            raise PilotageError(limits.direction.failed, f"{limits.shown}: {self._get[0]} ended well, but left no file")

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        limits = _limits(request.url, Direction.OUT, cancel, request.timeout_s)
        expected = expected_checksum(request)
        descriptor = open_output(request.path)
        try:
            done = measure(descriptor, expected.algorithm if expected else "adler32", limits)
            verify(request, done.size, done.checksum, Direction.OUT)
            there = self._stated(request.url, limits) if self._stat else None
            if there is None:
                self._upload(request, descriptor, done, limits)
            elif not self._is_like(there, request, descriptor, limits):
                detail = f"{limits.shown} exists with other content ({there.size} bytes)"
                raise PilotageError(ErrorCode.FILE_EXISTS, detail)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error
        finally:
            os.close(descriptor)

    def _upload(self, request: TransferRequest, descriptor: int, done: Transferred, limits: Limits) -> None:
        """Store an open file, and see that it is there."""
        said = self._said(done.size, str(done.checksum))
        try:
            with pinned(request.path, descriptor) as source:
                ended = self._run([*self._put, *said, str(source), request.url], request.url, limits)
            if ended.code not in (0, SAME_FILE):
                raise self._error(ended, limits, done.checksum)
            limits.check()
            there = self._stated(request.url, limits) if self._stat else None
            if self._stat and (there is None or not self._is_like(there, request, descriptor, limits)):
                detail = f"{limits.shown}: stored {done.checksum}, lsm-stat says {there}"
                raise PilotageError(Direction.OUT.mismatch(done.checksum.algorithm), detail)
            if self._read_back:
                self._compare_read_back(request, done, limits)
        except PilotageError as error:
            if error.code is not ErrorCode.FILE_EXISTS and self._rm:
                clean = _limits(request.url, Direction.OUT, threading.Event(), CLEAN_TIMEOUT_S)
                self._run([*self._rm, request.url], request.url, clean)
            raise

    def _is_like(self, there: Stated, request: TransferRequest, descriptor: int, limits: Limits) -> bool:
        """Whether what ``lsm-stat`` tells is the open file; without a checksum the file is read back."""
        if there.size != os.fstat(descriptor).st_size:
            return False
        if there.checksum is not None:
            return measure(descriptor, there.checksum.algorithm, limits).checksum == there.checksum
        if self._tells_checksum or self._read_back:
            return True
        self._compare_read_back(request, measure(descriptor, "adler32", limits), limits)
        return True

    def _compare_read_back(self, request: TransferRequest, done: Transferred, limits: Limits) -> None:
        """Fetch what was stored and compare it; the space for it is the job's."""
        with tempfile.TemporaryDirectory(prefix=".pilotage-read-back-", dir=request.path.parent) as folder:
            path = Path(folder) / "file"
            self._fetch_to(request, path, limits)
            back = measure(path, done.checksum.algorithm, limits)
        if back != done:
            detail = f"{limits.shown}: stored {done}, but read back {back}"
            raise PilotageError(Direction.OUT.mismatch(done.checksum.algorithm), detail)

    def _delete(self, url: str, cancel: threading.Event) -> None:
        limits = _limits(url, Direction.OUT, cancel, CALL_TIMEOUT_S)
        if not self._rm:
            raise PilotageError(ErrorCode.NO_STORAGE_PROTOCOL, f"{limits.shown}: this site has no lsm-rm")
        ended = self._run([*self._rm, url], url, limits)
        if ended.code != 0 and not is_absent(ended.code, ended.text):
            raise self._error(ended, limits, None)

    def _stated(self, url: str, limits: Limits) -> Optional[Stated]:
        """What ``lsm-stat`` tells; ``None`` when there is no such file."""
        ended = self._run([*self._stat, url], url, limits.within(CALL_TIMEOUT_S))
        if ended.code != 0:
            if is_absent(ended.code, ended.text):
                return None
            raise self._error(ended, limits, None)
        words = ended.stdout.decode(errors="replace").split()
        try:
            return Stated(int(words[0]), parse_checksum(words[1]) if len(words) > 1 else None)
        except (IndexError, ValueError, PilotageError) as error:
            detail = f"{limits.shown}: lsm-stat printed {' '.join(words)[:100]!r}, not SIZE [TYPE:VALUE]"
            raise PilotageError(limits.direction.failed, detail) from error

    def _said(self, size: Optional[int], checksum: Optional[str]) -> list[str]:
        """The options that tell a command what the file is."""
        if not self._tells_checksum:
            return []
        return [*(["--size", str(size)] if size is not None else []), *(["--checksum", checksum] if checksum else [])]

    def _run(self, argv: Sequence[str], url: str, limits: Limits) -> Ended:
        refuse_secrets(url)
        credential = self.credentials.for_url(url, write=limits.direction is Direction.OUT)
        with token_file(credential) as token:
            return run_child(argv, child_environment(os.environ, credential, token), limits)

    def _error(self, ended: Ended, limits: Limits, checksum: Optional[Checksum]) -> PilotageError:
        algorithm = checksum.algorithm if checksum else "adler32"
        code = exit_error(ended.code, ended.text, limits.direction, algorithm, self._exit_codes)
        return PilotageError(code, f"{limits.shown}: the command ended with {ended.code}: {ended.text}")


def _find(option: str, command: Command, *, needed: bool) -> list[str]:
    """Give a command as a list that begins with its path; an empty one when there is none and none is needed."""
    words = [command] if isinstance(command, str) else list(command)
    path = shutil.which(words[0]) if words else None
    if path is None:
        if not needed:
            return []
        name = words[0] if words else "nothing"
        detail = f"copytool 'lsm': {name} is no command of this node: name the site's own with the option {option}"
        raise PilotageError(ErrorCode.MIDDLEWARE_IMPORT_FAILED, detail)
    return [path, *words[1:]]


def _site_codes(codes: Mapping[str, str]) -> dict[int, ErrorCode]:
    """Read a site's own exit codes: ``{"17": "FILE_EXISTS"}``."""
    try:
        return {int(code): ErrorCode[name] for code, name in codes.items()}
    except (KeyError, ValueError) as error:
        detail = f"copytool 'lsm': exit_codes holds {error}: give numbers, and names of errors such as FILE_EXISTS"
        raise PilotageError(ErrorCode.UNKNOWN_COPYTOOL, detail) from error


def _limits(url: str, direction: Direction, cancel: threading.Event, seconds: float) -> Limits:
    """The limits of a call about a URL; the direction's error for one that climbs, or that a command takes for more."""
    shown = safe_url(url)
    path = unquote(url) if url_scheme(url) else url
    refuse_climbing(path.partition("?")[0], shown, direction)
    if url.startswith("-") or "\0" in path:
        raise PilotageError(direction.failed, f"{shown}: is no URL: write it with its scheme")
    return Limits(direction, shown, cancel, time.monotonic() + seconds)
