"""A payload while it runs: its process under the supervisor, its mailbox, and the watch over its limits."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from common.clock import Clock
from common.errors import ErrorCode
from common.wire import AssignedUnit, Metrics
from pilot import jobstate
from pilot.container import diagnose_container_failure
from pilot.jobstate import Event, Failure, FileAsked, Measured, PayloadOver, PayloadRuns
from pilot.payload import GetFileReply, GetFileRequest, JobFolder, Mailbox
from pilot.supervised import PayloadEnd, PayloadEvent, PayloadSpec, PayloadStarted, SupervisedProcess
from pilot.tails import file_tail
from pilot.watch import Breach, JobLimits, JobMetrics, Watcher

logger = logging.getLogger(__name__)

KIB_IN_MB = 1024
NO_GRACE_FACTOR = 2.0
"""A payload that uses so many times its memory gets no grace: it would take the node down with it."""


@dataclass(frozen=True)
class Rules:
    """What a payload may use, how long it may use more memory, and whether it runs in a container."""

    limits: JobLimits
    memory_grace_s: float
    in_container: bool


Describe = Callable[[AssignedUnit], GetFileReply]


class Running:
    """One running payload. ``post`` gets PayloadRuns, FileAsked, Measured and at last PayloadOver, from threads of its
    own; ``describe`` says what get-file answers for a unit."""

    def __init__(
        self,
        folder: JobFolder,
        rules: Rules,
        clock: Clock,
        post: Callable[[Event], None],
        describe: Describe,
        seconds_left: Callable[[], Optional[float]],
    ) -> None:
        self._folder = folder
        self._rules = rules
        self._clock = clock
        self._post = post
        self._describe = describe
        self._lock = threading.Lock()
        self._asking: dict[str, queue.SimpleQueue[Optional[AssignedUnit]]] = {}
        self._over = False
        self._memory_since: Optional[float] = None
        self._process: Optional[SupervisedProcess] = None
        self._watcher: Optional[Watcher] = None
        self._mailbox = Mailbox(folder.mailbox, self._get_file, seconds_left)

    def start(self, spec: PayloadSpec) -> None:
        """Start the payload. Raises PilotageError (SETUP_FAILED)."""
        self._process = SupervisedProcess.start(spec, self._on_event)
        self._watcher = Watcher(
            self._process.supervisor_pid, self._folder.root, self._rules.limits, self._clock.monotonic
        )

    def kill(self, why: str, grace_s: float) -> None:
        """SIGTERM to the payload, SIGKILL after the grace; its end comes as an event."""
        if self._process is not None:
            self._process.kill(why, grace_s)

    def hand_out(self, request: str, unit: Optional[AssignedUnit]) -> None:
        """Answer a call of get-file."""
        with self._lock:
            asking = self._asking.pop(request, None)
        if asking is not None:
            asking.put(unit)

    def close(self) -> None:
        """Answer nobody any more."""
        with self._lock:
            self._over = True
            waiting, self._asking = list(self._asking.values()), {}
        for asking in waiting:
            asking.put(None)
        self._mailbox.close()

    def look(self) -> Optional[Event]:
        """Measure; the breach of a limit, or what was measured."""
        if self._watcher is None or self._over:
            return None
        measured, breaches = self._watcher.look()
        counting = [breach for breach in breaches if self._counts(breach)]
        if all(breach.code is not ErrorCode.MEMORY_EXCEEDED for breach in breaches):
            self._memory_since = None
        if counting:
            return jobstate.Breach(Failure(counting[0].code, counting[0].words), _metrics(measured))
        return Measured(_metrics(measured))

    def _counts(self, breach: Breach) -> bool:
        """Memory may be exceeded for a while, unless it is far too much."""
        if breach.code is not ErrorCode.MEMORY_EXCEEDED or breach.value > NO_GRACE_FACTOR * breach.bound:
            return True
        now = self._clock.monotonic()
        self._memory_since = now if self._memory_since is None else self._memory_since
        return now - self._memory_since >= self._rules.memory_grace_s

    def _get_file(self, request: GetFileRequest) -> GetFileReply:
        """On a thread of the mailbox: waits for the job's answer."""
        asking: queue.SimpleQueue[Optional[AssignedUnit]] = queue.SimpleQueue()
        with self._lock:
            if self._over:
                return GetFileReply.no_more()
            self._asking[request.request_id] = asking
        self._post(FileAsked(request.request_id))
        unit = asking.get()
        return GetFileReply.no_more() if unit is None else self._describe(unit)

    def _on_event(self, event: PayloadEvent) -> None:
        """On the supervised process's reader thread."""
        if isinstance(event, PayloadStarted):
            self._post(PayloadRuns())
            return
        self.close()
        self._post(
            Measured(Metrics(wall_s=event.wall_s, cpu_s=event.cpu_s, max_rss_mb=round(event.max_rss_kb / KIB_IN_MB, 1)))
        )
        self._post(PayloadOver(event.exit_code, self._failure(event)))

    def _failure(self, end: PayloadEnd) -> Optional[Failure]:
        """Why the payload failed: a limit that it passed at the end, Apptainer's trouble, or its own exit."""
        if end.error is None:
            return None
        last = self._watcher.look()[1] if self._watcher is not None else []
        files = [breach for breach in last if breach.code in (ErrorCode.WORK_DIR_TOO_LARGE, ErrorCode.STDOUT_TOO_BIG)]
        if files:
            return Failure(files[0].code, f"{files[0].words}; {end.detail}")
        if self._rules.in_container:
            trouble = diagnose_container_failure(end.exit_code, file_tail(self._folder.stderr))
            if trouble is not None:
                return Failure(trouble.code, trouble.detail)
        return Failure(end.error, end.detail)


def _metrics(measured: JobMetrics) -> Metrics:
    return Metrics(
        wall_s=round(measured.wall_s, 3),
        cpu_s=round(measured.cpu_s, 3),
        max_rss_mb=round(measured.memory_mb, 1),
        work_dir_mb=round(measured.work_dir_mb, 1),
        processes=measured.processes,
        leak_kb_s=round(measured.leak_kb_s, 3),
    )
