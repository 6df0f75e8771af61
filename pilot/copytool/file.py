"""The copytool of storages that are mounted: ``file://`` URLs and plain absolute paths."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote

from common.checksums import CHUNK_BYTES, Hasher
from common.errors import ErrorCode, PilotageError
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
    open_regular,
    raise_if_cancelled,
    refuse_climbing,
    url_scheme,
    verify,
    write_all,
)
from pilot.copytool.credentials import CredentialSource

log = logging.getLogger(__name__)

#: Errors of a mounted storage to ours, besides those that differ by direction.
STORAGE_ERRORS: dict[int, ErrorCode] = {
    errno.ENOENT: ErrorCode.NO_SUCH_FILE,
    errno.ENOTDIR: ErrorCode.NO_SUCH_FILE,
    errno.EISDIR: ErrorCode.NO_SUCH_FILE,
    errno.EINVAL: ErrorCode.NO_SUCH_FILE,
    errno.ENXIO: ErrorCode.NO_SUCH_FILE,
    errno.EEXIST: ErrorCode.FILE_EXISTS,
    errno.ENOSPC: ErrorCode.NO_REMOTE_SPACE,
    errno.EDQUOT: ErrorCode.NO_REMOTE_SPACE,
    errno.ENAMETOOLONG: ErrorCode.NAME_TOO_LONG,
    errno.EIO: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ESTALE: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENODEV: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENOTCONN: ErrorCode.SERVICE_UNAVAILABLE,
    errno.EHOSTDOWN: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ECONNREFUSED: ErrorCode.SERVICE_UNAVAILABLE,
    errno.ENETUNREACH: ErrorCode.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: ErrorCode.NETWORK_UNREACHABLE,
}


def storage_error(error: OSError, path: Path, direction: Direction) -> PilotageError:
    """Give our error for one of a mounted storage."""
    number = error.errno or 0
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        code = direction.authentication
    elif number == errno.ETIMEDOUT:
        code = direction.timeout
    else:
        code = STORAGE_ERRORS.get(number, direction.failed)
        if code is ErrorCode.NO_SUCH_FILE and direction is Direction.OUT:
            code = direction.failed  # a folder of the destination cannot be
    return PilotageError(code, f"{path}: {error.strerror or error}")


def storage_path(url: str, direction: Direction) -> Path:
    """Give the path that a ``file://`` URL (percent-decoded) or a plain absolute path (as it is) means.

    Raises ``STAGE_IN_FAILED`` or ``STAGE_OUT_FAILED`` for one that is no place on this machine, or that holds ``..``.
    """
    text = url
    if url_scheme(url) == "file":
        text = unquote(url.split(":", 1)[1])
        if text.startswith("//"):
            host, slash, rest = text[2:].partition("/")
            if host not in ("", "localhost"):
                raise PilotageError(direction.failed, f"{url}: file URLs name no host: write file:///absolute/path")
            text = slash + rest
    if not text.startswith("/") or "\0" in text:
        raise PilotageError(direction.failed, f"{url}: is no absolute path: write file:///absolute/path")
    refuse_climbing(text, url, direction)
    return Path(text)


class FileCopytool(Copytool):
    """Copies on mounted disks.

    ``mode_in`` is ``copy`` or ``link`` (a symbolic link to the storage's file); ``mode_out`` is ``copy`` or ``move``
    (the local file is gone afterwards; a rename where both are on one disk). Checksums are computed while copying;
    linked and moved files are read once for it.
    """

    name = "file"
    schemes = frozenset({"file", ""})

    def __init__(
        self,
        *,
        credentials: Optional[CredentialSource] = None,
        mode_in: str = "copy",
        mode_out: str = "copy",
        **options: Any,
    ) -> None:
        super().__init__(credentials=credentials, **options)
        for option, value, allowed in (
            ("mode_in", mode_in, ("copy", "link")),
            ("mode_out", mode_out, ("copy", "move")),
        ):
            if value not in allowed:
                raise PilotageError(
                    ErrorCode.UNKNOWN_COPYTOOL, f"copytool 'file': {option} is {value!r}: write {' or '.join(allowed)}"
                )
        self.links_input = mode_in == "link"
        self._moves_output = mode_out == "move"

    def exists(self, url: str) -> bool:
        """Say whether a file is there."""
        path = storage_path(url, Direction.IN)
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise storage_error(error, path, Direction.IN) from error
        return True

    def _fetch(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        source = storage_path(request.url, Direction.IN)
        make_local_folder(request.path.parent)
        pass_ = _Pass(request, Direction.IN, cancel)
        try:
            descriptor = open_regular(source)
        except OSError as error:
            raise storage_error(error, source, Direction.IN) from error
        try:
            if self.links_input:
                done = pass_.read(descriptor, source)
                self._link(source, request.path)
                return done
            with PartFile(request.path) as part:
                done = pass_.copy(descriptor, source, part)
                part.commit(replace=True)
            return done
        except OSError as error:
            raise local_error(error, str(request.path)) from error
        finally:
            os.close(descriptor)

    def _delete(self, url: str, cancel: threading.Event) -> None:
        path = storage_path(url, Direction.OUT)
        try:
            with os.scandir(path.parent) as entries:
                parts = [Path(entry.path) for entry in entries if is_part_of(entry.name, path.name)]
            for each in [path, *parts]:
                each.unlink(missing_ok=True)
        except (FileNotFoundError, NotADirectoryError):
            log.debug("%s was absent already, with its folder", path)
        except OSError as error:
            raise storage_error(error, path, Direction.OUT) from error

    @staticmethod
    def _link(source: Path, path: Path) -> None:
        """Make ``path`` a link to ``source``, whatever was there."""
        with PartFile(path) as part:
            part.path.unlink()
            part.path.symlink_to(source)
            part.commit(replace=True)

    def _store(self, request: TransferRequest, cancel: threading.Event) -> Transferred:
        final = storage_path(request.url, Direction.OUT)
        done = self._stored_before(request, final, cancel)
        if done is None:
            descriptor = open_output(request.path)
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                done = self._write(request, descriptor, final, cancel)
            except OSError as error:
                raise storage_error(error, final, Direction.OUT) from error
            finally:
                os.close(descriptor)
        if self._moves_output:
            try:
                request.path.unlink(missing_ok=True)
            except OSError as error:
                raise local_error(error, str(request.path)) from error
        return done

    def _write(self, request: TransferRequest, descriptor: int, final: Path, cancel: threading.Event) -> Transferred:
        """Bring an open output to a place that is free; :class:`OSError` for what the storage refuses."""
        pass_ = _Pass(request, Direction.OUT, cancel)
        if self._moves_output:
            done = pass_.read(descriptor, request.path)
            try:
                os.link(request.path, final, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                    raise
                os.lseek(descriptor, 0, os.SEEK_SET)
            else:
                return done
        with PartFile(final) as part:
            done = pass_.copy(descriptor, request.path, part)
            os.lseek(part.descriptor, 0, os.SEEK_SET)
            found = pass_.read(part.descriptor, final)
            if found != done:
                raise PilotageError(
                    Direction.OUT.mismatch(done.checksum.algorithm), f"{final}: wrote {done}, but read back {found}"
                )
            part.commit(replace=False)
        return done

    def _stored_before(self, request: TransferRequest, final: Path, cancel: threading.Event) -> Optional[Transferred]:
        """Give what is at the destination when it is the same file; ``None`` when nothing is; else ``FILE_EXISTS``."""
        try:
            descriptor = open_regular(final, follow_links=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ELOOP, errno.ENXIO):
                raise PilotageError(ErrorCode.FILE_EXISTS, f"{final} exists and is no regular file") from error
            raise storage_error(error, final, Direction.OUT) from error
        try:
            there = _Pass(request, Direction.OUT, cancel, compare=False).read(descriptor, final)
        finally:
            os.close(descriptor)
        ours = self._local(request, cancel)
        if there != ours:
            raise PilotageError(ErrorCode.FILE_EXISTS, f"{final} exists with other content ({there.checksum})")
        return there

    @staticmethod
    def _local(request: TransferRequest, cancel: threading.Event) -> Transferred:
        """Give size and checksum of the output, from the request where the file itself was moved away before."""
        expected = expected_checksum(request)
        try:
            descriptor = open_output(request.path)
        except PilotageError as error:
            if error.code is ErrorCode.MISSING_OUTPUT and expected is not None and request.size is not None:
                return Transferred(request.size, expected)
            raise
        try:
            return _Pass(request, Direction.OUT, cancel, compare=False).read(descriptor, request.path)
        finally:
            os.close(descriptor)


class _Pass:
    """One pass over a file's bytes, with its checksum, deadline and cancellation."""

    def __init__(
        self, request: TransferRequest, direction: Direction, cancel: threading.Event, *, compare: bool = True
    ) -> None:
        self._request = request
        self._direction = direction
        self._cancel = cancel
        self._compare = compare
        self._deadline = time.monotonic() + request.timeout_s
        expected = expected_checksum(request)
        self._algorithm = expected.algorithm if expected else "adler32"

    def read(self, descriptor: int, source: Path) -> Transferred:
        """Read a file to its end."""
        return self._run(descriptor, source, None)

    def copy(self, descriptor: int, source: Path, part: PartFile) -> Transferred:
        """Copy a file to its end; errors of the part are left as :class:`OSError`."""
        return self._run(descriptor, source, part)

    def _run(self, descriptor: int, source: Path, part: Optional[PartFile]) -> Transferred:
        hasher, size = Hasher(self._algorithm), 0
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        while True:
            raise_if_cancelled(self._cancel, self._direction)
            if time.monotonic() > self._deadline:
                raise PilotageError(
                    self._direction.timeout, f"{source}: {size} bytes in {self._request.timeout_s:.0f} s, not all"
                )
            try:
                count = os.readv(descriptor, [buffer])
            except OSError as error:
                raise self._read_error(error, source) from error
            if not count:
                break
            hasher.update(view[:count])
            size += count
            if part is not None:
                write_all(part.descriptor, view[:count])
        done = Transferred(size, hasher.result())
        if self._compare:
            verify(self._request, done.size, done.checksum, self._direction)
        return done

    def _read_error(self, error: OSError, source: Path) -> PilotageError:
        if source == self._request.path:
            return local_error(error, str(source))
        return storage_error(error, source, self._direction)
