"""The relay's side of the mailbox: takes requests out of the shared folder and puts replies in (:mod:`common.relay`)."""

from __future__ import annotations

import bisect
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import ErrorCode, PilotageError
from common.relay import (
    ALIVE,
    NAME,
    REPLIES,
    REQUESTS,
    Damaged,
    ReplyHead,
    RequestHead,
    age_s,
    check_folder,
    get,
    put,
)
from harvester.relay.forward import THREADS, WAIT_MAX_S, Call, Reply, problem

log = logging.getLogger(__name__)

BUSY_LOOK_S = 0.02
"""How often the folder is looked at while requests come."""
IDLE_LOOK_S = 0.2
SLOWER = 1.2
"""Each wait is so many times the last until a request comes."""
ALIVE_S = 1.0
"""How often the relay's own file is written: that it runs, what time the file system has, and that the folder must be read anew."""
DAMAGED_S = 30.0
"""A request that cannot be read is given so long to become whole: a shared file system may be late."""
STALE_S = 5.0
"""A request is served until its pilot has stopped waiting, and so much longer."""
SWEEP_S = 60.0
KEEP_S = 2 * WAIT_MAX_S
"""A request or a reply so old, a file that never became whole, or an empty box: nobody waits for it any more."""


class MailboxRelay:
    """Serves the mailbox ``folder`` with ``forward``. There are threads of its own between :meth:`start` and :meth:`stop`.

    Raises PilotageError (BAD_CONFIGURATION) for a folder that cannot be used.
    """

    def __init__(self, folder: Path, forward: Callable[[Call], Reply]) -> None:
        self._folder = folder
        self._requests, self._replies = folder / REQUESTS, folder / REPLIES
        self._forward = forward
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._last = ""
        self._thread = threading.Thread(target=self._run, name="relay-mailbox", daemon=True)
        try:
            for part in (folder, self._requests, self._replies):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
                check_folder(part)
        except OSError as error:
            raise PilotageError(ErrorCode.BAD_CONFIGURATION, f"relay folder {folder}: {error.strerror}") from error

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests. Those not answered yet stay in the folder, for the next relay."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        look_s, alive_at, swept_at, trouble = BUSY_LOOK_S, 0.0, time.monotonic(), ""
        while not self._stop.wait(look_s):
            now = time.monotonic()
            try:
                if now - alive_at >= ALIVE_S:
                    self._say_alive()
                    alive_at = now
                if now - swept_at >= SWEEP_S:
                    swept_at = now
                    self.sweep()
                found = self._look(now)
                trouble = ""
            except OSError as error:
                found = False
                if str(error) != trouble:
                    log.error("relay folder %s: %s", self._folder, error)
                trouble = str(error)
            look_s = BUSY_LOOK_S if found else min(look_s * SLOWER, IDLE_LOOK_S)

    def _look(self, now: float) -> bool:
        """Give new requests a thread each, in turns where there are more than :data:`THREADS`; whether there was one."""
        names = {path.name for path in self._requests.iterdir() if NAME.fullmatch(path.name)}
        with self._lock:
            self._not_before = {name: at for name, at in self._not_before.items() if name in names}
            waiting = [name for name in sorted(names - self._taken) if self._not_before.get(name, 0.0) <= now]
            turn = bisect.bisect(waiting, self._last)
            fresh = [*waiting[turn:], *waiting[:turn]][: THREADS - len(self._taken)]
            self._taken.update(fresh)
        for name in fresh:
            # Daemons: a stop does not wait for a server that is slow to answer.
            threading.Thread(target=self._serve, args=(name,), name=f"relay-{name[:4]}", daemon=True).start()
            self._last = name
        return bool(fresh)

    def _serve(self, name: str) -> None:
        try:
            self._answer(name)
        except OSError as error:
            log.warning("a request could not be served, again later: %s", error)
            self._later(name)
        except Exception:  # one request, whatever is in it, must not end the others
            log.exception("a request could not be served")
            self._later(name)
        finally:
            with self._lock:
                self._taken.discard(name)

    def _later(self, name: str) -> None:
        with self._lock:
            self._not_before[name] = time.monotonic() + ALIVE_S

    def _answer(self, name: str) -> None:
        """Serve one request. Its file goes last: until then a relay after this one would serve it again."""
        path, (box, call) = self._requests / name, name.split(".")
        age = age_s(path, self._now())
        if age is None:
            return
        if (self._replies / box / call).exists():
            path.unlink(missing_ok=True)
            return
        try:
            head, body = get(path, RequestHead)
        except FileNotFoundError:
            return
        except Damaged as error:
            if age < DAMAGED_S:
                self._later(name)
                return
            reply = problem(400, "The request cannot be read", str(error))
        else:
            if age > head.wait_s + STALE_S:
                log.info("%s %s: nobody waits for it any more", head.method, head.path)
                path.unlink(missing_ok=True)
                return
            reply = self._forward(Call(head.method, head.path, head.headers, body, head.wait_s))
        # Without its request the pilot has given up; without its box it is gone.
        with contextlib.suppress(FileNotFoundError):
            path.stat()
            answer = ReplyHead(status=reply.status, reason=reply.reason, headers=dict(reply.headers))
            put(self._replies / box, call, answer, reply.body)
        path.unlink(missing_ok=True)

    def _say_alive(self) -> None:
        """Made anew each time, in the folder that is watched for requests: see :func:`common.relay.stir`."""
        fresh = self._requests / f".{ALIVE}"
        fresh.touch(mode=0o600)
        fresh.replace(self._folder / ALIVE)

    def _now(self) -> float:
        """The time of the file system, to :data:`ALIVE_S`: ages are told by it, never by the clocks of two machines."""
        return (self._folder / ALIVE).stat().st_mtime

    def sweep(self) -> None:
        """Remove what killed pilots left: old requests, replies that nobody fetches, boxes that nobody uses."""
        now = self._now()
        boxes = list(self._replies.iterdir())
        for path in (*self._requests.iterdir(), *(path for box in boxes for path in _inside(box))):
            if (age_s(path, now) or 0.0) > KEEP_S:
                path.unlink(missing_ok=True)
        for box in boxes:
            if (age_s(box, now) or 0.0) > KEEP_S:
                with contextlib.suppress(OSError):  # it is not empty, or its pilot was faster
                    box.rmdir()


def _inside(box: Path) -> list[Path]:
    try:
        return list(box.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
