"""A part of a file on its way to an object store."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from typing import Optional

from common.checksums import Hasher
from pilot.copytool.http_body import CHUNK_BYTES, LocalFile


class Window(io.RawIOBase):
    """A part of a file as botocore wants a body: to be read more than once, and never whole in memory."""

    def __init__(self, local: LocalFile, offset: int, size: int) -> None:
        self._local = local
        self._offset = offset
        self._position = 0
        self.size = size

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is: a request that is repeated begins anew."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go elsewhere."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read; the error of a transfer that was given up."""
        self._local.check()
        left = self.size - self._position
        count = left if size < 0 else min(size, left)
        if count <= 0:
            return b""
        data = self._local.piece(self._offset + self._position, count)
        self._position += len(data)
        return data

    def md5(self, whole: Optional[Hasher] = None) -> bytes:
        """The MD5 of the part, 16 bytes; its bytes go into ``whole`` as well."""
        self.seek(0)
        digest = hashlib.md5(usedforsecurity=False)
        while chunk := self.read(CHUNK_BYTES):
            digest.update(chunk)
            if whole is not None:
                whole.update(chunk)
        self.seek(0)
        return digest.digest()

    def content_md5(self, whole: Optional[Hasher] = None) -> str:
        """The same as the header ``Content-MD5`` wants it (RFC 1864)."""
        return base64.b64encode(self.md5(whole)).decode("ascii")
