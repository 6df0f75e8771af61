"""A job's output on its way out: its bytes as the body of a request, with the checksum on the way."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Optional

from common.checksums import Checksum, Hasher
from pilot.copytool.base import (
    Direction,
    Transferred,
    TransferRequest,
    expected_checksum,
    local_error,
    open_output,
    verify,
)

#: Bytes read and sent at a time.
CHUNK_BYTES = 1024 * 1024


class LocalFile:
    """An open output. Its length is its size; each iteration gives its bytes from the beginning.

    ``check`` is called between chunks and raises when the transfer was given up. Use as a context manager; entering it
    raises ``MISSING_OUTPUT``, ``OUTPUT_NOT_REGULAR`` or the error of the local disk, as everything else here does.
    """

    def __init__(self, request: TransferRequest, check: Callable[[], None]) -> None:
        self.check = check
        self._request = request
        expected = expected_checksum(request)
        self.algorithm = expected.algorithm if expected else "adler32"
        self._known: dict[str, Checksum] = {}
        self._descriptor = -1
        self.size = 0

    def __enter__(self) -> LocalFile:
        self._descriptor = open_output(self._request.path)
        self.size = os.fstat(self._descriptor).st_size
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes; the checksum of what was given is known at the end."""
        hasher, offset = Hasher(self.algorithm), 0
        while offset < self.size:
            self.check()
            chunk = self.piece(offset, min(CHUNK_BYTES, self.size - offset))
            hasher.update(chunk)
            offset += len(chunk)
            if offset == self.size:
                self._known[self.algorithm] = hasher.result()
            yield chunk
        self.check()

    def piece(self, offset: int, count: int) -> bytes:
        """Read some bytes; the error of the local disk for a file that was cut short meanwhile."""
        try:
            data = os.pread(self._descriptor, count, offset)
            if not data:
                raise OSError(f"ends at byte {offset}, but had {self.size} bytes")
        except OSError as error:
            raise local_error(error, str(self._request.path)) from error
        return data

    def checksum(self, algorithm: str) -> Checksum:
        """Give a checksum of the file, computed now unless the upload did."""
        if algorithm not in self._known:
            hasher, offset = Hasher(algorithm), 0
            while offset < self.size:
                self.check()
                chunk = self.piece(offset, min(CHUNK_BYTES, self.size - offset))
                hasher.update(chunk)
                offset += len(chunk)
            self._known[algorithm] = hasher.result()
        return self._known[algorithm]

    def note(self, checksum: Checksum) -> None:
        """Take a checksum of the whole file that was computed elsewhere on the way."""
        self._known[checksum.algorithm] = checksum

    def content_md5(self) -> str:
        """Give what the header ``Content-MD5`` wants (RFC 1864)."""
        return base64.b64encode(bytes.fromhex(self.checksum("md5").value)).decode("ascii")

    def verified(self) -> Transferred:
        """Give size and checksum of the file, compared with the recorded ones."""
        checksum = self.checksum(self.algorithm)
        verify(self._request, self.size, checksum, Direction.OUT)
        return Transferred(self.size, checksum)
