"""What the XRootD copytool needs of the bindings: their import, their time limits, and calls that can be left behind."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import posixpath
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Optional, TypeVar
from urllib.parse import unquote

from common.errors import ErrorCode, PilotageError
from pilot.copytool.base import Direction, part_name, raise_if_cancelled, refuse_climbing, safe_url

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: The client's time limits, in seconds (its own defaults add up to half an hour). An ``XRD_…`` variable that the site's
#: admin has set wins over ours.
CLIENT_SETTINGS: dict[str, int] = {
    "ConnectionWindow": 15,
    "ConnectionRetry": 1,
    "RequestTimeout": 120,
    "StreamTimeout": 30,
    "TimeoutResolution": 1,
    "StreamErrorWindow": 0,  # a server that came back is used at once
}

#: How long a cancelled or late transfer gets to close its files, in seconds.
CLOSE_GRACE_S = 1.0
#: How often the cancel event is looked at while the library works, in seconds: one cannot wait on two events at once.
CANCEL_SLICE_S = 0.1

#: Checksums that this process asks one server for at a time. A server with more of them to compute than its limit
#: (``xrootd.chksum max``, 2 to 4 as a rule) doesn't queue them but sends the client away for 30 seconds.
CHECKSUMS_AT_A_TIME = 2


class Bindings(NamedTuple):
    """The two modules of the XRootD bindings; untyped."""

    client: Any
    flags: Any


@functools.lru_cache(maxsize=1)
def bindings() -> Bindings:
    """Import the bindings and set the client's time limits, once.

    Raises :class:`PilotageError` ``MIDDLEWARE_IMPORT_FAILED``.
    """
    try:
        found = Bindings(importlib.import_module("XRootD.client"), importlib.import_module("XRootD.client.flags"))
    except ImportError as error:
        raise PilotageError(
            ErrorCode.MIDDLEWARE_IMPORT_FAILED, f"the XRootD bindings cannot be imported: {error}"
        ) from error
    for key, seconds in CLIENT_SETTINGS.items():
        if not found.client.EnvPutInt(key, seconds):
            log.info("XRootD's %s stays as the environment sets it", key)
    return found


class Place(NamedTuple):
    """A file at a server: ``endpoint`` with its trailing slash, ``path`` (decoded), ``query`` (may hold a token)."""

    endpoint: str
    path: str
    query: str

    @classmethod
    def parse(cls, url: str, direction: Direction) -> Place:
        """Read a URL; the direction's error for one that is none, or whose path cannot be asked for.

        URLs are percent-encoded, but neither client nor server of XRootD decodes a path: it is sent as it is.
        """
        parsed = bindings().client.URL(url)
        if not parsed.is_valid() or not parsed.hostname or not parsed.path.strip("/"):
            raise PilotageError(direction.failed, f"{safe_url(url)}: is no URL like root://host:1094//folder/file")
        path = unquote(parsed.path)
        refuse_climbing(path, safe_url(url), direction)
        if "?" in path or not path.isprintable():
            detail = "XRootD takes no '?' and no unprintable character in a file's name: rename the file"
            raise PilotageError(direction.failed, f"{safe_url(url)}: {detail}")
        return cls(f"{parsed.protocol}://{parsed.hostid}/", path, url.partition("?")[2])

    @property
    def url(self) -> str:
        """The whole URL."""
        return self.endpoint + self.with_query()

    @property
    def shown(self) -> str:
        """The URL as it may be logged."""
        return self.endpoint + self.path

    def with_query(self, *more: str) -> str:
        """The path with the query, and more items of it."""
        items = [item for item in (self.query, *more) if item]
        return f"{self.path}?{'&'.join(items)}" if items else self.path

    def part(self) -> Place:
        """A temporary place beside this one."""
        return self.beside(part_name(posixpath.basename(self.path)))

    def beside(self, name: str) -> Place:
        """The file of that name in the same folder."""
        return self._replace(path=posixpath.join(posixpath.dirname(self.path), name))


class Call(Generic[Result]):
    """One blocking call of the library, in a thread that can be left behind.

    The library has no way to interrupt a call; its time limits end it later. The thread is a daemon, so that it
    never keeps the process.
    """

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._result: Optional[Result] = None
        self._error: Optional[Exception] = None
        self._done = threading.Event()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            self._done.set()

    def wait(
        self,
        direction: Direction,
        what: str,
        cancel: threading.Event,
        deadline: float,
        stop: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run the call and give its result.

        ``deadline`` is monotonic seconds. When it passes, or on ``cancel``, ``stop`` is called and the thread left to
        itself after a moment; then the direction's error is raised.
        """
        threading.Thread(target=self._run, name="xrootd", daemon=True).start()
        while not self._done.wait(min(CANCEL_SLICE_S, max(deadline - time.monotonic(), 0))):
            if cancel.is_set() or time.monotonic() >= deadline:
                stop()
                self._done.wait(CLOSE_GRACE_S)
                raise_if_cancelled(cancel, direction)
                raise PilotageError(direction.timeout, f"{what}: not done in time")
        if isinstance(self._error, PilotageError):
            raise self._error
        if self._error is not None:
            raise PilotageError(direction.failed, f"{what}: {self._error}") from self._error
        return self._result  # type: ignore[return-value]  # set, as there is no error


class Handler:
    """The library's progress handler: says whether to stop."""

    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel
        self.stopped = threading.Event()

    def begin(self, job: int, total: int, source: object, target: object) -> None:
        """A job begins."""

    def end(self, job: int, results: object) -> None:
        """A job ended."""

    def update(self, job: int, processed: int, total: int) -> None:
        """Some bytes were moved."""

    def should_cancel(self, job: int) -> bool:
        """Say whether to stop."""
        return self.stopped.is_set() or self._cancel.is_set()


@functools.lru_cache(maxsize=1024)
def _checksum_places(endpoint: str) -> threading.Semaphore:
    return threading.Semaphore(CHECKSUMS_AT_A_TIME)


@contextlib.contextmanager
def checksum_turn(place: Place, direction: Direction, cancel: threading.Event, deadline: float) -> Iterator[None]:
    """Wait for one's turn to ask a server for a checksum; the direction's error on ``cancel`` or past the deadline."""
    free = _checksum_places(place.endpoint)
    while not free.acquire(timeout=CANCEL_SLICE_S):
        raise_if_cancelled(cancel, direction)
        if time.monotonic() >= deadline:
            raise PilotageError(direction.timeout, f"{place.shown}: other checksums at the server took too long")
    try:
        yield
    finally:
        free.release()


def run_copy(
    url: str, local: str, direction: Direction, algorithm: str, handler: Handler, deadline: float
) -> tuple[Any, str]:
    """Run the library's copy engine; give its status and the checksum of the local side."""
    source, target = (url, local) if direction is Direction.IN else (local, url)
    seconds = whole_seconds(deadline)
    process = bindings().client.CopyProcess()
    process.add_job(
        source,
        target,
        force=True,  # the part file is ours
        posc=direction is Direction.OUT,  # a server drops an upload that is never closed
        mkdir=True,
        checksummode="target" if direction is Direction.IN else "source",
        checksumtype=algorithm,
        inittimeout=min(seconds, 600),
        cptimeout=seconds,
        retry=0,  # retries are the staging client's
        rtrplc="force",
    )
    status = process.prepare()
    if not status.ok:
        return status, ""
    _, results = process.run(handler)
    result = results[0]
    return result["status"], result.get("targetCheckSum" if direction is Direction.IN else "sourceCheckSum", "")


def whole_seconds(deadline: float) -> int:
    """Give the time left until a monotonic deadline as the library wants it: whole seconds, one at least."""
    return min(max(math.ceil(deadline - time.monotonic()), 1), 65_535)


def descriptor_path(descriptor: int) -> str:
    """Give a path to an open file that has no character that a URL could misread, and that nobody can swap."""
    return f"/proc/self/fd/{descriptor}"
