"""Showing people what a running job does: answers typed questions that come with the heartbeat's replies.

What can be asked for is in :class:`common.wire.PeekKind`. Nothing that a person or a payload wrote is executed, no link is
followed out of the payload's folder, and what is known to be secret is blacked out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Optional, Protocol

from common.log import mask
from common.wire import PeekAnswer, PeekKind, PeekOrder
from common.wire.peeks import MOST_TEXT
from pilot.client import ServerError
from pilot.loop import Lane
from pilot.payload.folder import JobFolder
from pilot.payload.safefile import UnsafeFileError, open_regular
from pilot.watch.files import disk_usage
from pilot.watch.processes import ProcessSeen
from pilot.watch.stacks import find_gdb, stack_of

logger = logging.getLogger(__name__)

MB = 1024 * 1024
READ_BYTES = 4 * MOST_TEXT
"""Of a file at the most: a line may be long, a character several bytes."""
MOST_ENTRIES = 1000
MOST_ARGUMENTS = 300
SHORTEST_SECRET = 4
REMEMBERED = 200
_OTHER_JOB = re.compile(r"\bjob (\d+)\b")
_NEW_LINE = re.compile(r"\d{4}-\d\d-\d\dT")


class NothingToShow(Exception):
    """Why a question has no answer, for the person who asked."""


class Listener(Protocol):
    """The part of :class:`pilot.client.Server` that is needed here."""

    def answer_peek(self, job_id: int, peek_id: int, answer: PeekAnswer) -> None:
        """Deliver an answer. Raises ServerError."""


@dataclass(frozen=True)
class Sight:
    """What can be seen of a job: its folder, the living processes of its payload, and the ``secrets`` that nobody may."""

    folder: JobFolder
    processes: Callable[[], Sequence[ProcessSeen]]
    secrets: Sequence[str] = ()


class Debugger:
    """Answers for all jobs of a pilot, one question after another. ``pilot_log`` is the pilot's own log file.

    All methods may be called from any thread.
    """

    def __init__(self, listener: Listener, pilot_log: Path) -> None:
        self._listener = listener
        self._pilot_log = pilot_log
        self._lock = threading.Lock()
        self._sights: dict[int, Sight] = {}
        self._busy: set[int] = set()
        self._answered: deque[int] = deque(maxlen=REMEMBERED)
        self._lane: Optional[Lane] = None

    def show(self, job_id: int, sight: Sight) -> None:
        """From now on this can be seen of a job."""
        with self._lock:
            self._sights[job_id] = sight

    def hide(self, job_id: int) -> None:
        """The job's folder goes."""
        with self._lock:
            self._sights.pop(job_id, None)

    def asked(self, job_id: int, orders: Sequence[PeekOrder]) -> None:
        """The server wants these to be answered; it repeats each until it is."""
        for order in orders:
            with self._lock:
                if order.peek_id in self._busy or order.peek_id in self._answered:
                    continue
                self._busy.add(order.peek_id)
                if self._lane is None:
                    self._lane = Lane("debug")
                sight = self._sights.get(job_id)
                self._lane.submit(partial(self._answer, job_id, order, sight))

    def _answer(self, job_id: int, order: PeekOrder, sight: Optional[Sight]) -> None:
        """On the lane."""
        logger.info("job %d: somebody wants to see %s", job_id, order.kind)
        answer = self._seen(job_id, order, sight)
        delivered = False
        try:
            self._listener.answer_peek(job_id, order.peek_id, answer)
            delivered = True
        except ServerError as error:
            logger.warning("job %d: the answer to %s is not delivered: %s", job_id, order.kind, error)
        with self._lock:
            self._busy.discard(order.peek_id)
            if delivered:
                self._answered.append(order.peek_id)

    def _seen(self, job_id: int, order: PeekOrder, sight: Optional[Sight]) -> PeekAnswer:
        try:
            if sight is None:
                raise NothingToShow("the job has no folder on the node yet, or not any more")
            answer = self._look(job_id, order, sight)
        except NothingToShow as error:
            return PeekAnswer(error=f"{error}"[:1000])
        except OSError as error:
            return PeekAnswer(error=f"{error.strerror or error}"[:1000])
        return _blacked_out(answer, sight.secrets)

    def _look(self, job_id: int, order: PeekOrder, sight: Sight) -> PeekAnswer:
        if order.kind == PeekKind.TAIL.value:
            return _tail(sight.folder, order)
        if order.kind == PeekKind.LS.value:
            return _listing(sight.folder, order.path)
        if order.kind == PeekKind.PS.value:
            return _text(_process_list(sight.processes()))
        if order.kind == PeekKind.DU.value:
            return _text(_usage(sight.folder))
        if order.kind == PeekKind.GDB.value:
            return _text(_stacks(sight.processes(), order.pid))
        if order.kind == PeekKind.PILOT_LOG.value:
            return _text(own_lines(_end_of(self._pilot_log), job_id, order.lines), from_end=True)
        raise NothingToShow(f"this pilot does not know how to show {order.kind!r}; it is older than the server")


def _text(lines: Sequence[str], from_end: bool = False) -> PeekAnswer:
    text = "".join(f"{line}\n" for line in lines)
    return PeekAnswer(text=_part(text, from_end), cut=len(text) > MOST_TEXT)


def _part(text: str, from_end: bool) -> str:
    return text[-MOST_TEXT:] if from_end else text[:MOST_TEXT]


def _blacked_out(answer: PeekAnswer, secrets: Sequence[str]) -> PeekAnswer:
    text = mask(answer.text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return PeekAnswer(text=text[:MOST_TEXT], error=answer.error, cut=answer.cut, end=answer.end)


# ---------------------------------------------------------------- files


def _tail(folder: JobFolder, order: PeekOrder) -> PeekAnswer:
    """The last lines of a file, or what it has from a byte on. A file that has become shorter begins anew."""
    logs: Mapping[str, Path] = {"": folder.stdout, "stdout": folder.stdout, "stderr": folder.stderr}
    # The folder is given to the payload's account while it runs, where it has one.
    owner = folder.work.lstat().st_uid
    try:
        if order.path in logs:
            descriptor = open_regular(logs[order.path], owner=owner)
        else:
            with _opened(folder.work, _parts(order.path)[:-1]) as parent:
                descriptor = open_regular(_parts(order.path)[-1], parent, owner)
    except FileNotFoundError as error:
        raise NothingToShow(f"there is no file {order.path or 'stdout'!r} (yet)") from error
    except UnsafeFileError as error:
        raise NothingToShow(f"{order.path or 'stdout'!r} {error}: it is not shown") from error
    with os.fdopen(descriptor, "rb") as stream:
        size = os.fstat(descriptor).st_size
        if order.after is not None:
            begin = order.after if order.after <= size else 0
            stream.seek(begin)
            data = stream.read(MOST_TEXT)
            return PeekAnswer(text=data.decode("utf-8", "replace"), cut=begin + len(data) < size, end=begin + len(data))
        begin = max(0, size - READ_BYTES)
        stream.seek(begin)
        data = stream.read(READ_BYTES)
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    text = "".join(lines[-order.lines :])
    return PeekAnswer(
        text=_part(text, True),
        cut=begin > 0 or len(lines) > order.lines or len(text) > MOST_TEXT,
        end=begin + len(data),
    )


def _parts(path: str) -> list[str]:
    """The names in a path below the payload's folder. Raises NothingToShow when it leads elsewhere."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\0" in path:
        raise NothingToShow(f"{path!r} leads out of the job's folder")
    return list(pure.parts)


@contextlib.contextmanager
def _opened(root: Path, parts: Sequence[str]) -> Iterator[int]:
    """A folder below ``root``, opened name by name, none of which may be a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(root, flags)
    try:
        for part in parts:
            try:
                inner = os.open(part, flags, dir_fd=descriptor)
            except FileNotFoundError as error:
                raise NothingToShow(f"there is no folder {'/'.join(parts)!r}") from error
            except OSError as error:
                raise NothingToShow(f"{part!r} in {'/'.join(parts)!r} is no folder, or a link: not followed") from error
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _listing(folder: JobFolder, path: str) -> PeekAnswer:
    """What is in a folder, links as links."""
    with _opened(folder.work, _parts(path)) as descriptor:
        names = sorted(os.listdir(descriptor))  # noqa: PTH208 (of an open folder, not of a path)
        lines = [_entry(name, descriptor) for name in names[:MOST_ENTRIES]]
    answer = _text(lines or ["(empty)"])
    if len(names) > MOST_ENTRIES:
        answer.cut = True
    return answer


def _entry(name: str, descriptor: int) -> str:
    try:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        target = f" -> {_plain(os.readlink(name, dir_fd=descriptor))}" if stat.S_ISLNK(status.st_mode) else ""
    except OSError:
        return f"(gone meanwhile) {_plain(name)}"
    moment = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return f"{stat.filemode(status.st_mode)} {status.st_size:>14} {moment:%Y-%m-%dT%H:%M:%SZ} {_plain(name)}{target}"


def _plain(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _usage(folder: JobFolder) -> list[str]:
    """What the parts of the job's folder occupy, the largest first."""
    sizes: list[tuple[int, str]] = []
    for inside in (folder.root, folder.work):
        with os.scandir(inside) as entries:
            for entry in entries:
                if inside == folder.root and entry.name == folder.work.name:
                    continue
                below = entry.is_dir(follow_symlinks=False)
                size = disk_usage(Path(entry.path)) if below else entry.stat(follow_symlinks=False).st_blocks * 512
                where = entry.name if inside == folder.root else f"{folder.work.name}/{entry.name}"
                sizes.append((size, f"{_plain(where)}{'/' if below else ''}"))
    total = sum(size for size, _ in sizes)
    largest = sorted(sizes, reverse=True)[:MOST_ENTRIES]
    return [f"{size / MB:>12.1f} MiB  {name}" for size, name in [(total, "in all"), *largest]]


# ---------------------------------------------------------------- processes


def _process_list(processes: Sequence[ProcessSeen]) -> list[str]:
    if not processes:
        raise NothingToShow("the payload does not run")
    lines = [f"{'pid':>8} {'parent':>8} state threads {'MiB':>9} {'CPU s':>9}  command"]
    for seen in processes:
        cpu_s = seen.cpu_s + seen.reaped_cpu_s
        numbers = (
            f"{seen.pid:>8} {seen.parent:>8} {seen.state:>5} {seen.threads:>7} {seen.rss / MB:>9.1f} {cpu_s:>9.1f}"
        )
        lines.append(f"{numbers}  {_command(seen)}")
    return lines


def _command(seen: ProcessSeen) -> str:
    try:
        arguments = Path(f"/proc/{seen.pid}/cmdline").read_bytes()
    except OSError:
        arguments = b""
    words = arguments.replace(b"\0", b" ").decode("utf-8", "replace").strip() or f"[{seen.name}]"
    plain = "".join(each if each.isprintable() else " " for each in words)
    return plain if len(plain) <= MOST_ARGUMENTS else f"{plain[:MOST_ARGUMENTS]}…"


def _stacks(processes: Sequence[ProcessSeen], pid: Optional[int]) -> list[str]:
    chosen = next((seen for seen in processes if seen.pid == pid), None)
    if chosen is None:
        raise NothingToShow(f"{pid} is no process of this payload: ask for its processes first (ps)")
    return stack_of(chosen, gdb=find_gdb()).splitlines()


# ---------------------------------------------------------------- the pilot's log


def _end_of(path: Path) -> list[str]:
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4 * READ_BYTES))
        return stream.read(4 * READ_BYTES).decode("utf-8", "replace").splitlines()


def own_lines(lines: Sequence[str], job_id: int, most: int) -> list[str]:
    """The last ``most`` of those lines that are not about another job: that may be another person's."""
    kept: list[str] = []
    others = True  # the first line may be the end of one
    for line in lines:
        if _NEW_LINE.match(line):
            named = {int(number) for number in _OTHER_JOB.findall(line)}
            others = bool(named) and job_id not in named
        if not others:
            kept.append(line)
    return kept[-most:]
