"""The output of workers that have ended: brought home, compressed, linked from the server, and removed in time.

It lies in ``<state_dir>/logs/<queue>/<yyyy-mm-dd>/<mark>/``; every file there is compressed (``stdout.gz``). The day is that
of the worker's end, in UTC.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from common.clock import Clock
from common.log import mask
from common.states import WorkerState
from harvester.backends.base import Backend, LogKeeper, WorkerRef
from harvester.config import LogsConfig
from harvester.store import LogRow, Store, Worker

log = logging.getLogger(__name__)

TAIL_BYTES = 4096
"""How much of a failed worker's output goes to the server."""
MOST_BYTES = 256 * 1024 * 1024
"""The most that is kept of one file of a worker: its beginning and its end."""
AT_ONCE = 200
"""Workers whose output is brought home in one round of a lane."""
FIRST_PAUSE_S = 30.0
"""The pause after the first try that failed, doubled each time."""
ROTATE_S = 600.0
"""How often what is too old, or too much, is looked for."""
_BLOCK = 1024 * 1024

Asked = Callable[[Sequence[Worker], Callable[[], dict[str, str]]], "dict[str, str] | None"]
"""Makes a call of the backend for some workers; None when nothing came of it."""


class Logs:
    """The logs below ``folder``."""

    def __init__(self, folder: Path, settings: LogsConfig, store: Store, clock: Clock) -> None:
        self.folder = folder
        self._settings = settings
        self._store = store
        self._clock = clock
        self._rotated: float | None = None
        self._rotating = threading.Lock()

    def bring_home(self, backend: Backend, queues: Sequence[str], asked: Asked) -> None:
        """Fetch the output of workers of ``queues`` that have ended; each is tried a bounded number of times.

        Now and then what has been kept for too long is removed. Raises Unwritable or OSError.
        """
        if not self._settings.keep or not isinstance(backend, LogKeeper):
            return
        self._fetch(backend, queues, asked)
        self.rotate()

    def _fetch(self, backend: LogKeeper, queues: Sequence[str], asked: Asked) -> None:
        now = self._clock.now()
        workers = self._store.logs_wanted(queues, now, now - self._settings.keep_days * 86400.0, AT_ONCE)
        if not workers:
            return
        folders = {worker.mark: self._place(worker) for worker in workers}
        for place in folders.values():
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        refs = {WorkerRef(worker.mark, worker.batch_id): folders[worker.mark] for worker in workers}
        failed = asked(workers, lambda: backend.fetch_logs(refs))
        tried = self._store.log_tries([worker.mark for worker in workers])
        rows = [self._row(worker, folders[worker.mark], failed, tried.get(worker.mark, 0)) for worker in workers]
        self._store.note_logs(rows)

    def rotate(self) -> None:
        """Remove what is too old; then the oldest, until there is no more than there may be. Looks only now and then.

        Raises OSError.
        """
        with self._rotating:
            now = self._clock.monotonic()
            if self._rotated is not None and now - self._rotated < ROTATE_S:
                return
            self._rotated = now
        moment = datetime.fromtimestamp(self._clock.now(), timezone.utc)
        oldest = (moment - timedelta(days=self._settings.keep_days)).strftime("%Y-%m-%d")
        kept = []
        for day in self._days():
            if day.name < oldest:
                shutil.rmtree(day)
            else:
                kept.append(day)
        self._shrink(kept)

    def _shrink(self, days: Sequence[Path]) -> None:
        workers = sorted((day.name, place.stat().st_mtime, place) for day in days for place in day.iterdir())
        sizes = [_size(place) for _, _, place in workers]
        excess = sum(sizes) - self._settings.max_gb * 1e9
        for (_, _, place), size in zip(workers, sizes):
            if excess <= 0:
                break
            shutil.rmtree(place)
            excess -= size
        for day in days:
            if not any(day.iterdir()):
                day.rmdir()

    def _days(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from sorted(day for queue in self.folder.iterdir() for day in queue.iterdir())

    def _place(self, worker: Worker) -> Path:
        day = datetime.fromtimestamp(worker.updated, timezone.utc).strftime("%Y-%m-%d")
        return self.folder / worker.queue / day / worker.mark

    def _row(self, worker: Worker, place: Path, failed: Mapping[str, str] | None, tries: int) -> LogRow:
        """What is to be remembered of this try."""
        reason = "the batch system gave no answer" if failed is None else failed.get(worker.mark, "")
        if not reason:
            tail = tail_of(place) if worker.state is WorkerState.FAILED else ""
            for path in sorted(place.rglob("*")):
                _compress(path)
            return LogRow(worker.mark, tries + 1, 0.0, self.url(place), tail, True)
        last = tries + 1 >= self._settings.tries
        if last:
            log.warning("worker %s: its output could not be brought home: %s", worker.mark, reason)
            if not any(place.iterdir()):
                place.rmdir()
        pause = FIRST_PAUSE_S * 2.0 ** min(tries, 20)
        return LogRow(worker.mark, tries + 1, self._clock.now() + pause, "", "", last)

    def url(self, place: Path) -> str:
        """Where a worker's folder is seen: below the URL of the configuration, else its path on this machine."""
        if self._settings.url is None:
            return f"file://{quote(str(place))}"
        return f"{self._settings.url.rstrip('/')}/{quote(str(place.relative_to(self.folder)))}/"


def tail_of(place: Path) -> str:
    """The last of what a worker wrote, standard error first, without secrets; at most TAIL_BYTES characters."""
    parts = []
    room = TAIL_BYTES
    for name in ("stderr", "stdout"):
        path = place / name
        if path.is_file() and not path.is_symlink() and (text := _end_of(path, room)):
            parts.append(f"{name}:\n{text}")
            room = max(0, room - len(text) - 16)
    return "\n".join(parts)[:TAIL_BYTES]


def _end_of(path: Path, most: int) -> str:
    """The last ``most`` characters. More is read, so that a secret is seen whole before it would be cut."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * TAIL_BYTES))
        text = mask(file.read().decode("utf-8", "replace"))
    clean = "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text).strip()
    return clean[-(most - 16) :] if most > 16 else ""


def _compress(path: Path) -> None:
    """A regular file becomes ``<name>.gz``; what else a worker left (links, pipes) is removed."""
    if path.is_dir() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_file():
        path.unlink()
        return
    if path.suffix == ".gz":
        return
    temporary, target = path.with_name(f".{path.name}.new"), path.with_name(f"{path.name}.gz")
    with path.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as packed:
        for block in _bounded(source, path.stat().st_size):
            packed.write(block)
    temporary.replace(target)
    path.unlink()


def _bounded(source: BinaryIO, size: int) -> Iterator[bytes]:
    """The file's blocks; of a huge one its beginning and its end, with a line between that says so."""
    if size <= MOST_BYTES:
        while block := source.read(_BLOCK):
            yield block
        return
    for _ in range(MOST_BYTES // 2 // _BLOCK):
        yield source.read(_BLOCK)
    yield f"\n... {size - MOST_BYTES} bytes are left out here ...\n".encode()
    source.seek(size - MOST_BYTES // 2, os.SEEK_SET)
    for _ in range(MOST_BYTES // 2 // _BLOCK):
        yield source.read(_BLOCK)


def _size(place: Path) -> int:
    return sum(path.lstat().st_size for path in place.rglob("*") if not path.is_dir())
