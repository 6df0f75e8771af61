"""The mailbox: get-file's way from the payload to the pilot, without network, Python or curl in the image.

The folder is the only thing that both sides share; it works across the bind mount of a container. Protocol:

1. The script claims an id (``id.<pid>.<n>``, made with noclobber) and writes ``get-file <id> <seconds>`` into the FIFO
   ``requests``, which the pilot holds open.
2. The pilot makes the FIFO ``reply.<id>`` at once and holds it open for reading and writing, so that it never waits for
   a script that has vanished.
3. When the handler has answered, the pilot writes one line, ``<status> <text>``, shorter than a pipe always takes.
4. The script writes ``done <id>``; the pilot removes what belongs to that id.

Where the file system has no FIFOs, requests are files in ``requests.d``, which a timer looks at every second, and the
reply is a file that appears under its name when it is complete.

Nothing that a payload writes can block the pilot or make it follow a link: every name is opened relative to the
folder's own descriptor, ids are checked, lines are bounded, and everything else is dropped.
"""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Optional

from common.errors import ErrorCode, PilotageError
from pilot.payload.safefile import UnsafeFileError, read_regular

logger = logging.getLogger(__name__)

MAX_LINE = 4096
MAX_REPLY = 4096  # PIPE_BUF: what an empty pipe takes in one piece, whatever its capacity
MAX_CALLS = 256
SCAN_S = 1.0
_REQUEST = re.compile(rb"get-file (\d{1,10}\.\d{1,3}) (\d{1,9})")
_DONE = re.compile(rb"done (\d{1,10}\.\d{1,3})")


class GetFileStatus(IntEnum):
    """The exit code of get-file."""

    FILE = 0
    """Here is a file."""
    NO_MORE = 1
    """The task has no more files for this job."""
    ERROR = 2
    """The pilot could not tell; the text says why."""
    NO_TIME = 5
    """Fewer seconds of wall time are left than the script asked for."""


@dataclass(frozen=True)
class GetFileRequest:
    """One call of get-file; ``seconds_needed`` of wall time, 0 when it did not say."""

    request_id: str
    seconds_needed: int


@dataclass(frozen=True)
class GetFileReply:
    """What get-file prints (``text``) and exits with."""

    status: GetFileStatus
    text: str = ""

    @classmethod
    def file(cls, did: str, location: str, rse: str) -> GetFileReply:
        """The next file; ``location`` is a path that the payload can open, or a PFN."""
        return cls(GetFileStatus.FILE, f"{did} {location} {rse}")

    @classmethod
    def no_more(cls) -> GetFileReply:
        """There are no more files."""
        return cls(GetFileStatus.NO_MORE)

    @classmethod
    def no_time(cls) -> GetFileReply:
        """Too little wall time is left."""
        return cls(GetFileStatus.NO_TIME)

    @classmethod
    def error(cls, words: str) -> GetFileReply:
        """Something went wrong."""
        return cls(GetFileStatus.ERROR, words)

    def line(self) -> bytes:
        """The line on the wire; an error instead when it cannot be one line."""
        data = f"{int(self.status)} {self.text}\n".encode("utf-8", "replace")
        if self.status is GetFileStatus.FILE and (data.count(b"\n") > 1 or len(data) > MAX_REPLY):
            return GetFileReply.error("the file's name is too long, or has a line break").line()
        return data[: MAX_REPLY - 1].replace(b"\n", b" ").rstrip() + b"\n"


Handler = Callable[[GetFileRequest], GetFileReply]


class Mailbox:
    """The pilot's side of one job's mailbox.

    ``handler`` is called for each request on a thread of its own, so it may call the server, and must be thread-safe;
    a PilotageError that it raises is told to the script. ``seconds_left`` answers the wall time left (None: unknown);
    requests that need more are answered here.
    """

    def __init__(
        self, folder: Path, handler: Handler, seconds_left: Callable[[], Optional[float]] = lambda: None
    ) -> None:
        self._handler = handler
        self._seconds_left = seconds_left
        self._lock = threading.Lock()
        self._replies: dict[str, Optional[int]] = {}
        self._answered: set[str] = set()
        self._buffer = b""
        self._skipping = False
        self._closed = False
        try:
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._requests = self._make_fifo("requests")
            if self._requests is None:
                os.mkdir("requests.d", 0o700, dir_fd=self._folder)
        except OSError as error:
            raise PilotageError(ErrorCode.SETUP_FAILED, f"cannot make the mailbox in {folder}: {error}") from error
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="mailbox", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answers nobody any more: scripts that wait end with an error. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.write(self._wake_write, b"x")
        self._thread.join()
        if self._requests is not None:
            self._unlink("requests")
            os.close(self._requests)
        else:
            self._rename("requests.d", "closed.d")
        with self._lock:
            for request_id in list(self._replies):
                self._forget(request_id)
            os.close(self._folder)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _make_fifo(self, name: str) -> Optional[int]:
        """Makes a FIFO and opens it so that neither side can block this one; None where there are no FIFOs.

        Where the folder is another user's, as whom the payload runs, the FIFO is made theirs before it gets its name:
        a script opens it at once.
        """
        folder = os.fstat(self._folder)
        theirs = folder.st_uid != os.geteuid()
        made = f".{name}" if theirs else name
        try:
            os.mkfifo(made, 0o600, dir_fd=self._folder)
        except FileExistsError:
            raise
        except OSError as error:
            logger.warning("no FIFOs in the job's folder (%s): get-file uses files", error)
            return None
        fd = os.open(made, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # the payload was quicker than we and swapped it
            os.close(fd)
            raise FileExistsError(f"{name} is no FIFO")
        if theirs:
            os.fchown(fd, folder.st_uid, folder.st_gid)
            os.rename(made, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        return fd

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError as error:
            logger.debug("mailbox: cannot remove %s: %s", name, error)

    def _rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            logger.warning("mailbox: cannot rename %s: %s", old, error)

    def _serve(self) -> None:
        """The mailbox's thread: requests until :meth:`close`."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        timeout = SCAN_S * 1000 if self._requests is None else None
        if self._requests is not None:
            poll.register(self._requests, select.POLLIN)
        while True:
            ready = [fd for fd, _events in poll.poll(timeout)]
            if self._wake_read in ready:
                return
            if self._requests is None:
                self._scan()
            else:
                self._read(self._requests)

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        *lines, rest = (self._buffer + data).split(b"\n")
        for line in lines:
            if not self._skipping:
                self._take(line)
            self._skipping = False
        if len(rest) > MAX_LINE:
            self._skipping = True
            rest = b""
        self._buffer = rest

    def _scan(self) -> None:
        """One look at the request files, where there are no FIFOs."""
        try:
            folder = os.open("requests.d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._folder)
        except OSError as error:
            logger.warning("mailbox: the payload removed its requests folder: %s", error)
            return
        try:
            for name in os.listdir(folder):  # noqa: PTH208 (a descriptor, not a path)
                try:
                    data = read_regular(name, MAX_LINE, dir_fd=folder)
                    if data.endswith(b"\n"):
                        os.unlink(name, dir_fd=folder)
                        self._take(data[:-1])
                except (OSError, UnsafeFileError) as error:
                    logger.debug("mailbox: request file refused: %s", error)
        finally:
            os.close(folder)

    def _take(self, line: bytes) -> None:
        """Acts on one line from the payload; anything but the two known ones is dropped."""
        request = _REQUEST.fullmatch(line)
        if request:
            self._start_call(GetFileRequest(request.group(1).decode(), int(request.group(2))))
            return
        done = _DONE.fullmatch(line)
        if done:
            with self._lock:
                self._forget(done.group(1).decode())
        elif line:
            logger.debug("mailbox: %d bytes that are no request", len(line))

    def _start_call(self, request: GetFileRequest) -> None:
        with self._lock:
            if request.request_id in self._replies:
                return
            if len(self._replies) >= MAX_CALLS and not self._make_room():
                logger.warning("mailbox: more than %d calls of get-file at once, one is dropped", MAX_CALLS)
                return
            fd: Optional[int] = None
            if self._requests is not None:
                try:
                    fd = self._make_fifo(f"reply.{request.request_id}")
                except OSError as error:
                    logger.warning("mailbox: no reply for %s: %s", request.request_id, error)
                    return
            self._replies[request.request_id] = fd
        threading.Thread(target=self._call, args=(request,), name="get-file", daemon=True).start()

    def _make_room(self) -> bool:
        """Forgets the oldest script that got its answer and never said so: it has vanished."""
        for request_id in self._replies:
            if request_id in self._answered:
                self._forget(request_id)
                return True
        return False

    def _call(self, request: GetFileRequest) -> None:
        reply = GetFileReply.error("a mistake inside the pilot: see its log")
        try:
            left = self._seconds_left()
            if left is not None and request.seconds_needed > left:
                reply = GetFileReply.no_time()
            else:
                reply = self._handler(request)
        except PilotageError as error:
            logger.warning("get-file: %s", error)
            reply = GetFileReply.error(str(error))
        finally:  # the script must not wait for ever, whatever went wrong here
            self._answer(request.request_id, reply)

    def _answer(self, request_id: str, reply: GetFileReply) -> None:
        with self._lock:
            if self._closed or request_id not in self._replies:
                return
            fd = self._replies[request_id]
            self._answered.add(request_id)
            try:
                if fd is None:
                    self._write_reply_file(request_id, reply.line())
                else:
                    os.write(fd, reply.line())
            except OSError as error:
                logger.warning("mailbox: cannot answer %s: %s", request_id, error)

    def _write_reply_file(self, request_id: str, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f".reply.{request_id}", flags, 0o600, dir_fd=self._folder)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
        name = f"reply.{request_id}"
        self._rename(f".{name}", name)

    def _forget(self, request_id: str) -> None:
        """Removes what belongs to one id; the caller holds the lock."""
        if request_id not in self._replies:
            return
        fd = self._replies.pop(request_id)
        self._answered.discard(request_id)
        if fd is not None:
            os.close(fd)
        for name in (f"reply.{request_id}", f"id.{request_id}"):
            self._unlink(name)
