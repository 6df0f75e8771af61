"""A download that goes on where its connection was cut, and the reading of a file for its checksum alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Optional

from common.checksums import Hasher
from common.errors import PilotageError
from pilot.copytool.base import Direction, PartFile, Transferred, TransferRequest, verify, write_all

log = logging.getLogger(__name__)

#: How many times one download goes on after a cut, each time having brought something.
MOST_CUTS = 10


class Cut(Exception):
    """The connection ended before the file did; ``error`` is ours for it."""

    def __init__(self, error: PilotageError) -> None:
        self.error = error
        super().__init__(str(error))


class Stream(NamedTuple):
    """An open download: its bytes begin at ``start``; ``total`` is the whole file's size in bytes, where known.

    ``validator`` names this version of the file (a strong ETag or a date); ``chunks`` raises :class:`Cut`.
    """

    start: int
    total: Optional[int]
    validator: Optional[str]
    chunks: Iterator[memoryview]


class Mark(NamedTuple):
    """Where a download is to go on, and what is known of the file: see :class:`Stream`."""

    offset: int = 0
    total: Optional[int] = None
    validator: Optional[str] = None


#: Opens a download at a mark, if the file is still what its validator says (at 0 otherwise).
Opener = Callable[[Mark], AbstractContextManager[Stream]]


def download(
    open_at: Opener,
    request: TransferRequest,
    algorithm: str,
    direction: Direction,
    check: Callable[[], None],
    part: Optional[PartFile] = None,
) -> Transferred:
    """Read a file to its end, into ``part`` where there is one; give its size and checksum.

    ``check`` is called between chunks and raises when the transfer was given up. Another size than the request's is an
    error as soon as it is known. Errors of the part are left as :class:`OSError`.
    """
    hasher, offset, mark = Hasher(algorithm), 0, Mark()
    for cuts in range(MOST_CUTS + 1):
        check()
        begun = offset
        try:
            with open_at(mark) as stream:
                if stream.start not in (0, offset):
                    detail = f"{request.label}: the server gave another part than asked for"
                    raise PilotageError(direction.failed, detail)
                if stream.start != offset:  # the whole file, perhaps another version of it
                    hasher, offset, begun = Hasher(algorithm), 0, 0
                    if part is not None:
                        os.ftruncate(part.descriptor, 0)
                        os.lseek(part.descriptor, 0, os.SEEK_SET)
                mark = Mark(0, stream.total, stream.validator)
                if stream.total is not None and request.size is not None and stream.total != request.size:
                    verify(request, stream.total, hasher.result(), direction)
                for chunk in stream.chunks:
                    hasher.update(chunk)
                    if part is not None:
                        write_all(part.descriptor, chunk)
                    offset += len(chunk)
                    check()
                    if request.size is not None and offset > request.size:
                        verify(request, offset, hasher.result(), direction)
            return Transferred(offset, hasher.result())
        except Cut as cut:
            # Without a name for the version, only a checksum can tell whether two halves belong together.
            whole = mark.validator is not None or request.checksum is not None
            if offset == begun or not whole or cuts == MOST_CUTS:
                raise cut.error from cut
            mark = mark._replace(offset=offset)
            log.info("%s: cut after %d bytes, going on: %s", request.label, offset, cut.error.detail)
    raise AssertionError("the last round returns or raises")
