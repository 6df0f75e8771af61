"""What a job's folder holds: its size on disk, and whether anything in it changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Optional

SHARE = 0.004
"""Of the time, walking through folders may take so much: a folder of a million files is looked at less often."""
LEAST_OFTEN_S = 60.0


@dataclass(frozen=True)
class FolderUse:
    """``size`` in bytes on disk. Of the files whose change shows that the payload does something: ``files`` how many,
    ``counting`` their bytes on disk, ``newest`` the latest change, in ns since the epoch.

    Any change of one of those files changes one of these three.
    """

    size: int = 0
    files: int = 0
    counting: int = 0
    newest: int = 0

    @property
    def mark(self) -> tuple[int, int, int]:
        """Another one than before: something has happened."""
        return self.files, self.counting, self.newest


def folder_use(folder: Path, idle: Sequence[str] = ()) -> FolderUse:
    """What a folder occupies: links are not followed, a file with several names counts once, holes in files do not count.
    What vanishes meanwhile does not count. The names of files whose change says nothing match a pattern of ``idle``."""
    size = files = counting = newest = 0
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    status = _lstat(entry)
                    if status is None or (status.st_dev, status.st_ino) in seen:
                        continue
                    if status.st_nlink > 1:
                        seen.add((status.st_dev, status.st_ino))
                    size += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif not any(fnmatchcase(entry.name, pattern) for pattern in idle):
                        files += 1
                        counting += status.st_blocks * 512
                        newest = max(newest, status.st_mtime_ns)
        except OSError:
            continue  # removed, or made unreadable, by the payload
    return FolderUse(size, files, counting, newest)


def disk_usage(folder: Path) -> int:
    """Bytes that a folder occupies on disk; see :func:`folder_use`."""
    return folder_use(folder).size


def _lstat(entry: os.DirEntry[str]) -> Optional[os.stat_result]:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def file_size(path: Path) -> int:
    """Bytes of a file; 0 when it is not there."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def free_bytes(folder: Path) -> Optional[int]:
    """What is free for us on the file system of a folder; None when it does not say."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


class FolderLook:
    """Looks at one folder again and again, less often when that takes long."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic, idle: Sequence[str] = ()) -> None:
        self._folder = folder
        self._idle = idle
        self._clock = clock
        self._use = FolderUse()
        self._next = float("-inf")

    def look(self, at_once: bool = False) -> FolderUse:
        """What was seen by the last walk; ``at_once``: by a new one, whatever it takes."""
        began = self._clock()
        if at_once or began >= self._next:
            started = time.perf_counter()
            self._use = folder_use(self._folder, self._idle)
            self._next = began + min(LEAST_OFTEN_S, (time.perf_counter() - started) / SHARE)
        return self._use
