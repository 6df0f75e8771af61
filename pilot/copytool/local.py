"""Local files that other programs copy: measured in a way that can be cancelled, and pinned while they are read."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Union

from common.checksums import CHUNK_BYTES, Hasher
from pilot.copytool.base import Transferred
from pilot.copytool.children import Limits

log = logging.getLogger(__name__)


def measure(file: Union[int, str, os.PathLike[str]], algorithm: str, limits: Limits) -> Transferred:
    """Read a file from its beginning, given by its path or as an open descriptor, whose position stays.

    Raises :class:`OSError` when it cannot be read, the direction's error when cancelled or late.
    """
    descriptor = os.open(f"/proc/self/fd/{file}" if isinstance(file, int) else file, os.O_RDONLY)
    hasher, size = Hasher(algorithm), 0
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    try:
        while True:
            limits.check()
            count = os.readv(descriptor, [buffer])
            if not count:
                return Transferred(size, hasher.result())
            hasher.update(view[:count])
            size += count
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def pinned(path: Path, descriptor: int) -> Iterator[Path]:
    """Give another path to an open output, in a folder of our own: nobody can put a link in its place.

    Commands start others, which inherit no descriptor. On a disk without hard links it is the path itself.
    """
    with tempfile.TemporaryDirectory(prefix=".pilotage-put-", dir=path.parent) as folder:
        place = Path(folder) / path.name
        try:
            # a descriptor of a folder, which an absolute path does not need, has the link followed
            os.link(f"/proc/self/fd/{descriptor}", place, src_dir_fd=descriptor, follow_symlinks=True)
        except OSError as error:
            log.info("%s: no hard link: %s", path, error)
            place = path.absolute()
        yield place
