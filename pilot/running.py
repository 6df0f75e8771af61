"""A payload while it runs: its process under the supervisor, its mailbox, and the watch over its limits."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from common.clock import Clock
from common.errors import ErrorCode
from common.wire import AssignedUnit, Gpu, Metrics
from pilot import jobstate
from pilot.jobstate import Event, Failure, FileAsked, Measured, PayloadOver, PayloadRuns
from pilot.payload import GetFileReply, GetFileRequest, JobFolder, Mailbox
from pilot.supervised import PayloadEnd, PayloadEvent, PayloadSpec, PayloadStarted, SupervisedProcess
from pilot.watch import Breach, JobLimits, JobMetrics, Watch, Watcher
from pilot.watch.lifetimes import Lifetimes
from pilot.watch.processes import ProcessGone, ProcessSeen, catches, read_process
from pilot.watch.stacks import keep_evidence

logger = logging.getLogger(__name__)

KIB_IN_MB = 1024
NO_GRACE_FACTOR = 2.0
"""A payload that uses so many times its memory gets no grace: it would take the node down with it."""
EVIDENCE = "evidence"
"""Below the job's folder: what a payload that hung was doing."""
_STARTERS = ("starter", "starter-suid", "appinit", "apptainer", "singularity")
"""Apptainer's own processes hand every signal on to the payload, which has been sent it already."""


@dataclass(frozen=True)
class Rules:
    """What a payload may use, and how long it may use more memory.

    ``wall_warning_s`` before its wall time is over it gets SIGUSR1; ``core_mb`` is the largest process of which a core is
    kept when it hangs. ``gpus`` are those that it was given, ``credentials`` the variables that name
    the files with the credentials that it reads with, else the node's.
    """

    limits: JobLimits
    memory_grace_s: float
    wall_warning_s: float = 0.0
    core_mb: int = 0
    gpus: tuple[Gpu, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict)


Describe = Callable[[AssignedUnit], GetFileReply]


class Running:
    """One running payload. ``post`` gets PayloadRuns, FileAsked, Measured and at last PayloadOver, from threads of its
    own; ``describe`` says what get-file answers for a unit; ``watch`` is what all jobs of the pilot share, ``note``
    takes lines for the job's log, and ``why`` answers what the payload's end means (None: it did well)."""

    def __init__(
        self,
        folder: JobFolder,
        rules: Rules,
        clock: Clock,
        post: Callable[[Event], None],
        describe: Describe,
        seconds_left: Callable[[], Optional[float]],
        watch: Watch,
        note: Callable[[str], None],
        why: Callable[[PayloadEnd], Optional[Failure]],
    ) -> None:
        self._folder = folder
        self._why = why
        self._watch = watch
        self._note = note
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
        self._warned = False
        self._ends_soon = False
        self._pss_known = False
        self._lifetimes = Lifetimes(rules.credentials, clock.now)
        self._hangs: Optional[threading.Thread] = None
        self.evidence: list[Path] = []
        """Files for the log archive: what a payload that hung was doing."""
        self._mailbox = Mailbox(folder.mailbox, self._get_file, seconds_left)

    def start(self, spec: PayloadSpec) -> None:
        """Start the payload. Raises PilotageError (SETUP_FAILED)."""
        self._process = SupervisedProcess.start(spec, self._on_event)
        self._watcher = Watcher(
            self._process.supervisor_pid, self._folder.root, self._rules.limits, self._watch, self._rules.gpus
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

    def forget(self) -> None:
        """The job's folder is gone."""
        if self._watcher is not None:
            self._watcher.close()

    def processes(self) -> list[ProcessSeen]:
        """The payload's living processes."""
        return self._watcher.processes() if self._watcher is not None and not self._over else []

    def look(self) -> Optional[Event]:
        """Measure; the breach of a limit, or what was measured."""
        if self._watcher is None or self._over:
            return None
        look = self._watcher.look()
        for note in (*look.notes, *self._lifetimes.look()):
            self._note(note)
        self._pss_known = look.metrics.pss_mb is not None
        self._warn_of_the_end(self._watcher)
        counting = [breach for breach in look.breaches if self._counts(breach, look.metrics.wall_s)]
        if all(breach.code is not ErrorCode.MEMORY_EXCEEDED for breach in look.breaches):
            self._memory_since = None
        if counting and counting[0].code is ErrorCode.LOOPING_JOB:
            self._keep_evidence(counting[0], look.metrics)
        elif counting:
            return _breach(counting[0], look.metrics)
        return Measured(_metrics(look.metrics), look.again_s)

    def _counts(self, breach: Breach, wall_s: float) -> bool:
        """Memory may be exceeded for a while, unless it is far too much."""
        if breach.code is not ErrorCode.MEMORY_EXCEEDED or breach.value > NO_GRACE_FACTOR * breach.bound:
            return True
        self._memory_since = wall_s if self._memory_since is None else self._memory_since
        return wall_s - self._memory_since >= self._rules.memory_grace_s

    def _warn_of_the_end(self, watcher: Watcher) -> None:
        """Once, shortly before the wall time is over: SIGUSR1 to those processes of the payload that have a handler for
        it. The others it would kill. As long as there is none that has, there may be one at the next look."""
        left_s = watcher.seconds_left()
        if self._warned or left_s is None or left_s > self._rules.wall_warning_s:
            return
        told = [seen.pid for seen in watcher.processes() if seen.name not in _STARTERS and _told(seen)]
        if told:
            self._warned = True
            self._note(
                f"{max(0.0, left_s):.0f} s of wall time are left: SIGUSR1 to {len(told)} processes that handle it"
            )
        elif not self._ends_soon:
            self._note(
                f"{max(0.0, left_s):.0f} s of wall time are left: no process of the payload handles SIGUSR1 (yet)"
            )
        self._ends_soon = True

    def _keep_evidence(self, breach: Breach, metrics: JobMetrics) -> None:
        """What a payload that hangs is doing is kept before it is killed; on a thread of its own, as that takes a while."""
        if self._hangs is not None:
            return

        def keep() -> None:
            try:
                self.evidence = keep_evidence(self.processes(), self._folder.root / EVIDENCE, self._rules.core_mb)
            except OSError as error:
                self._note(f"the payload hangs, but its stacks cannot be kept: {error}")
            self._post(_breach(breach, metrics))

        self._hangs = threading.Thread(target=keep, name="evidence", daemon=True)
        self._hangs.start()

    def _get_file(self, request: GetFileRequest) -> GetFileReply:
        """On a thread of the mailbox: waits for the job's answer."""
        asking: queue.SimpleQueue[Optional[AssignedUnit]] = queue.SimpleQueue()
        with self._lock:
            if self._over:
                return GetFileReply.no_more()
            self._asking[request.request_id] = asking
        self._post(FileAsked(request.request_id))
        unit = asking.get()
        if self._watcher is not None:
            self._watcher.touched()
        return GetFileReply.no_more() if unit is None else self._describe(unit)

    def _on_event(self, event: PayloadEvent) -> None:
        """On the supervised process's reader thread."""
        if isinstance(event, PayloadStarted):
            self._post(PayloadRuns())
            return
        self.close()
        largest_mb = round(event.max_rss_kb / KIB_IN_MB, 1)
        # Between two looks the largest of its processes may have used more than all of them were seen to use.
        pss_mb = largest_mb if self._pss_known else 0.0
        self._post(Measured(Metrics(wall_s=event.wall_s, cpu_s=event.cpu_s, max_rss_mb=largest_mb, max_pss_mb=pss_mb)))
        self._post(PayloadOver(event.exit_code, self._failure(event)))

    def _failure(self, end: PayloadEnd) -> Optional[Failure]:
        """Why the payload failed: a limit that it passed at the end, or what its own end means."""
        if end.error is None:
            return self._why(end)
        last = self._watcher.look(at_once=True).breaches if self._watcher is not None else []
        files = [breach for breach in last if breach.code in (ErrorCode.WORK_DIR_TOO_LARGE, ErrorCode.STDOUT_TOO_BIG)]
        if files:
            return Failure(files[0].code, f"{files[0].words}; {end.detail}")
        return self._why(end)


def _told(seen: ProcessSeen) -> bool:
    """Send SIGUSR1 to a process that has a handler for it; whether it did."""
    try:
        if not catches(seen.pid, signal.SIGUSR1) or read_process(seen.pid).start != seen.start:
            return False
        os.kill(seen.pid, signal.SIGUSR1)
    except (ProcessGone, ProcessLookupError, PermissionError):
        return False
    return True


def _breach(breach: Breach, measured: JobMetrics) -> Event:
    return jobstate.Breach(Failure(breach.code, breach.words), _metrics(measured))


def _metrics(measured: JobMetrics) -> Metrics:
    return Metrics(
        wall_s=round(measured.wall_s, 3),
        cpu_s=round(measured.cpu_s, 3),
        max_rss_mb=round(measured.rss_mb, 1),
        max_pss_mb=round(measured.pss_mb or 0.0, 1),
        max_swap_mb=round(measured.swap_mb, 1),
        work_dir_mb=round(measured.work_dir_mb, 1),
        processes=measured.processes,
        leak_kb_s=round(measured.leak_kb_s, 3),
        read_bytes=measured.read_bytes,
        written_bytes=measured.written_bytes,
        gpu_percent=measured.gpu_percent,
        gpu_memory_mb=measured.gpu_memory_mb,
    )
