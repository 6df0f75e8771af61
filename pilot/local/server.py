"""The server of a pilot that has one job and no server: it hands the job out, and keeps what is reported."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

from common.states import JobState, UnitState
from common.wire import (
    AcquireReply,
    AcquireRequest,
    Assignment,
    CredentialKind,
    CredentialReply,
    CredentialRequest,
    FinishReply,
    FinishRequest,
    HeartbeatReply,
    HeartbeatRequest,
    JobInstruction,
    JobReport,
    NodeChecks,
    OutputDestination,
    OutputRecord,
    OutputRole,
    PeekAnswer,
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    PilotSettings,
    Queue,
    RecordReply,
    RecordRequest,
    UnitOutcome,
    UnitsAcquireReply,
    UnitsAcquireRequest,
)
from pilot.client import CallRefused
from pilot.local.assignment import LOCAL, file_url

HEARTBEAT_S = 1.0
_STATES = {
    UnitOutcome.PROCESSED: UnitState.DONE,
    UnitOutcome.FAILED: UnitState.FAILED,
    UnitOutcome.RETURNED: UnitState.READY,
    UnitOutcome.LOST: UnitState.LOST,
}


class LocalServer:
    """A :class:`pilot.client.Server` in the pilot's own process. Outputs go to ``outputs``, the log archive beside them;
    ``on_report`` hears each report of the running job, on a thread of the pilot's."""

    def __init__(
        self,
        assignment: Assignment,
        outputs: Path,
        sandbox: Optional[bytes],
        on_report: Callable[[JobReport], None],
    ) -> None:
        self._assignment = assignment
        self._outputs = outputs
        self._sandbox = sandbox
        self._on_report = on_report
        self._lock = threading.Lock()
        self._handed = ""
        self.records: dict[str, OutputRecord] = {}
        self.report: Optional[FinishRequest] = None
        self.end_reason = ""
        self.end_code: Optional[int] = None

    def register(self, _registration: PilotRegistration) -> PilotGrant:
        """This machine is a queue that may run everything; a server would compare clocks."""
        queue = Queue(name=LOCAL, site=LOCAL, trusted=True, node_checks=NodeChecks(clock_s=0))
        settings = PilotSettings(heartbeat_s=HEARTBEAT_S, idle_exit_s=0.0, acquire_wait_s=0.0)
        return PilotGrant(pilot_id=1, token=LOCAL, token_expires=time.time() + 1e9, queue=queue, settings=settings)

    def acquire(self, request: AcquireRequest) -> AcquireReply:
        """The job, once; whoever asks again may leave."""
        with self._lock:
            first = self._handed in ("", request.request_id)
            self._handed = self._handed or request.request_id
        return AcquireReply(jobs=[self._assignment]) if first else AcquireReply(drain=True)

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        """Go on."""
        for job in request.jobs:
            self._on_report(job)
        instructions = [JobInstruction(job.job_id) for job in request.jobs]
        return HeartbeatReply(jobs=instructions, next_interval_s=HEARTBEAT_S)

    def acquire_units(self, _job_id: int, _request: UnitsAcquireRequest) -> UnitsAcquireReply:
        """There are no more units than those that were chosen."""
        return UnitsAcquireReply()

    def record(self, _job_id: int, request: RecordRequest) -> RecordReply:
        """Each output goes into the folder under its own name."""
        with self._lock:
            self.records.update((record.name, record) for record in request.outputs)
        return RecordReply([self._destination(record) for record in request.outputs])

    def _destination(self, record: OutputRecord) -> OutputDestination:
        folder = self._outputs if record.role is OutputRole.OUTPUT else self._outputs.parent
        did = f"{self._assignment.scope}:{record.name}"
        return OutputDestination(record.name, did, LOCAL, [file_url(folder / record.name)])

    def finish(self, job_id: int, request: FinishRequest) -> FinishReply:
        """Keep the final report."""
        with self._lock:
            self.report = request
        return FinishReply(job_id, request.state, {str(unit.unit_id): _STATES[unit.outcome] for unit in request.units})

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        """Nobody gives any here: what the user has is shown."""
        return CredentialReply(kind=CredentialKind.AMBIENT, covers=request.urls, ambient=not request.payload)

    def sandbox(self, sha256: str) -> bytes:
        """The sandbox that was packed here."""
        if self._sandbox is None:
            raise CallRefused(404, f"there is no sandbox {sha256}")
        return self._sandbox

    def keep_log(self, _job_id: int, _archive: bytes) -> None:
        """The log of a failed job is where that of every other is."""

    def answer_peek(self, _job_id: int, _peek_id: int, _answer: PeekAnswer) -> None:
        """Nobody asks."""

    def end(self, _pilot_id: int, request: PilotEnd) -> None:
        """Remember why the pilot left."""
        self.end_reason, self.end_code = request.reason, request.error_code

    def hurry(self) -> None:
        """No call takes long here."""

    def close(self) -> None:
        """There is nothing to close."""

    @property
    def state(self) -> Optional[JobState]:
        """How the job ended; None when it did not."""
        return None if self.report is None else self.report.state
