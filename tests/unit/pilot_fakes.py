"""A server for pilots that lives in the test's own process, in memory, with the faults that a test asks for.

:class:`FakeServer` is what all pilots share; :meth:`FakeServer.connection` gives the :class:`pilot.client.Server` of one
pilot, and :class:`HttpFake` the same over HTTP for pilots that are processes of their own.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, TypeVar

import msgspec

from common.states import JobState, UnitState
from common.wire import (
    AcquireReply,
    AcquireRequest,
    AssignedUnit,
    Assignment,
    CredentialKind,
    CredentialReply,
    CredentialRequest,
    FinishReply,
    FinishRequest,
    HeartbeatReply,
    HeartbeatRequest,
    Instruction,
    JobInstruction,
    OutputDestination,
    PeekAnswer,
    PeekOrder,
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    PilotSettings,
    QueueSpec,
    RecordReply,
    RecordRequest,
    Requirements,
    UnitOutcome,
    UnitsAcquireReply,
    UnitsAcquireRequest,
)
from pilot.client import CallRefused, JobGone, NotAccepted, ServerAway, ServerError

T = TypeVar("T")
SECRET = "worker-secret"
DEADLINE_S = 120.0


@dataclass
class FakeJob:
    """A job as the fake server knows it."""

    assignment: Assignment
    pilot_id: Optional[int] = None
    state: JobState = JobState.SENT
    states: list[JobState] = field(default_factory=list)
    request_id: str = ""
    recorded: dict[str, OutputDestination] = field(default_factory=dict)
    report: Optional[FinishRequest] = None
    gone: bool = False
    acquired: float = 0.0
    finished: float = 0.0
    more: dict[str, list[AssignedUnit]] = field(default_factory=dict)


@dataclass
class FakePilot:
    """A pilot as the fake server knows it."""

    pilot_id: int
    registration: PilotRegistration
    token: str
    end: Optional[PilotEnd] = None


class FakeServer:
    """Holds jobs for pilots. ``faults[call]`` is eaten up from the front: ``away`` (not served), ``lost`` (served, reply
    lost), ``gone``, ``refused``, ``rejected``; ``down`` makes every call ``away``."""

    def __init__(
        self, storage: Path, queue: Optional[QueueSpec] = None, settings: Optional[PilotSettings] = None
    ) -> None:
        self.storage = storage
        self.queue = queue or QueueSpec(name="q", site="here", cores=1, copytools=["file"])
        self.settings = settings or PilotSettings(heartbeat_s=0.2, idle_exit_s=30.0, acquire_wait_s=0.2)
        self.jobs: dict[int, FakeJob] = {}
        self.pilots: dict[int, FakePilot] = {}
        self.faults: dict[str, list[str]] = {}
        self.down = False
        self.drain = False
        self.gives_ahead = True
        self.calls: Counter[str] = Counter()
        self.instructions: dict[int, Instruction] = {}
        self.heartbeats: list[HeartbeatRequest] = []
        self.more_units: list[AssignedUnit] = []
        self.new_token: Optional[str] = None
        self.sandboxes: dict[str, bytes] = {}
        self.logs: dict[int, bytes] = {}
        self.peeks: list[PeekOrder] = []
        self.shown: dict[int, PeekAnswer] = {}
        self.changed = threading.Condition()

    def connection(self, secret: str = SECRET) -> Connection:
        """What one pilot calls."""
        return Connection(self, secret)

    def add(self, assignment: Assignment) -> FakeJob:
        """A job for whoever asks next."""
        with self.changed:
            job = self.jobs[assignment.job_id] = FakeJob(assignment)
            self.changed.notify_all()
        return job

    def wait_for(self, condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Wait until something holds; fails the test when it never does."""
        with self.changed:
            assert self.changed.wait_for(condition, deadline_s), f"never happened: {what}"

    def serve(self, call: str, act: Callable[[], T]) -> T:
        """One call, with its fault."""
        with self.changed:
            self.calls[call] += 1
            faults = self.faults.get(call, [])
            fault = "away" if self.down else (faults.pop(0) if faults else "")
            self.changed.notify_all()
            if fault == "away":
                raise ServerAway("the test's outage")
            if fault == "gone":
                raise JobGone("the test's 410")
            if fault == "refused":
                raise CallRefused(422, "the test's 422")
            if fault == "rejected":
                raise NotAccepted("401 the test's 401")
            answer = act()
            self.changed.notify_all()
            if fault == "lost":
                raise ServerAway("the test's lost reply")
            return answer

    def register(self, secret: str, registration: PilotRegistration) -> PilotGrant:
        if secret != SECRET:
            raise NotAccepted("401 unknown secret")
        known = [pilot for pilot in self.pilots.values() if pilot.registration.nonce == registration.nonce]
        if known:
            pilot = known[0]
        else:
            pilot = FakePilot(len(self.pilots) + 1, registration, f"token-{len(self.pilots) + 1}")
            self.pilots[pilot.pilot_id] = pilot
        return PilotGrant(pilot.pilot_id, pilot.token, time.time() + 3600, self.queue, self.settings)

    def pilot_of(self, token: Optional[str]) -> FakePilot:
        for pilot in self.pilots.values():
            if pilot.token == token:
                return pilot
        raise NotAccepted("401 unknown token")

    def acquire(self, token: Optional[str], request: AcquireRequest) -> AcquireReply:
        pilot = self.pilot_of(token)
        mine = [job for job in self.jobs.values() if job.pilot_id == pilot.pilot_id]
        repeated = [job for job in mine if job.request_id == request.request_id]
        if repeated:
            return AcquireReply(jobs=[job.assignment for job in repeated])

        def free() -> list[FakeJob]:
            return [job for job in self.jobs.values() if job.pilot_id is None]

        if request.ahead and not self.gives_ahead:
            return AcquireReply()
        self.changed.wait_for(lambda: free() or self.drain, request.wait_s)
        for job in free()[: request.max_jobs]:
            job.pilot_id, job.request_id, job.acquired = pilot.pilot_id, request.request_id, time.monotonic()
            return AcquireReply(jobs=[job.assignment])
        return AcquireReply(retry_after_s=0.1, drain=self.drain)

    def heartbeat(self, token: Optional[str], request: HeartbeatRequest) -> HeartbeatReply:
        pilot = self.pilot_of(token)
        self.heartbeats.append(request)
        told = []
        for report in request.jobs:
            job = self.jobs[report.job_id]
            job.states.append(report.state)
            told.append(
                JobInstruction(
                    report.job_id,
                    self.instructions.get(report.job_id, Instruction.CONTINUE),
                    peeks=[order for order in self.peeks if order.peek_id not in self.shown],
                )
            )
        if self.new_token is not None:
            pilot.token, self.new_token = self.new_token, None
        return HeartbeatReply(told, self.settings.heartbeat_s, pilot.token, drain=self.drain)

    def held(self, token: Optional[str], job_id: int) -> FakeJob:
        pilot = self.pilot_of(token)
        job = self.jobs[job_id]
        if job.gone or job.pilot_id != pilot.pilot_id:
            raise JobGone("declared lost")
        return job

    def acquire_units(self, token: Optional[str], job_id: int, request: UnitsAcquireRequest) -> UnitsAcquireReply:
        job = self.held(token, job_id)
        if request.request_id not in job.more:
            job.more[request.request_id] = [self.more_units.pop(0)] if self.more_units else []
        return UnitsAcquireReply(job.more[request.request_id])

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        return CredentialReply(kind=CredentialKind.AMBIENT, covers=request.urls, ambient=not request.payload)

    def record(self, token: Optional[str], job_id: int, request: RecordRequest) -> RecordReply:
        job = self.held(token, job_id)
        for output in request.outputs:
            path = self.storage / f"{job_id}-{output.name}"
            place = OutputDestination(output.name, f"out:{job_id}-{output.name}", "STORE", [f"file://{path}"])
            job.recorded.setdefault(output.name, place)
        return RecordReply([job.recorded[output.name] for output in request.outputs])

    def finish(self, token: Optional[str], job_id: int, request: FinishRequest) -> FinishReply:
        job = self.held(token, job_id)
        if job.report is not None and msgspec.json.encode(job.report) != msgspec.json.encode(request):
            raise CallRefused(409, "another report of this job was accepted")
        job.report, job.state, job.finished = request, request.state, time.monotonic()
        states = {UnitOutcome.PROCESSED: UnitState.DONE, UnitOutcome.FAILED: UnitState.FAILED}
        return FinishReply(
            job_id,
            request.state,
            {str(unit.unit_id): states.get(unit.outcome, UnitState.READY) for unit in request.units},
        )

    def sandbox(self, sha256: str) -> bytes:
        if sha256 not in self.sandboxes:
            raise CallRefused(404, "no job of this pilot unpacks such a sandbox")
        return self.sandboxes[sha256]

    def end(self, token: Optional[str], pilot_id: int, request: PilotEnd) -> None:
        self.pilot_of(token).end = request

    def report_of(self, job_id: int) -> FinishRequest:
        """The report of a job, when it is there."""
        self.wait_for(lambda: self.jobs[job_id].report, f"report of job {job_id}")
        report = self.jobs[job_id].report
        assert report is not None
        return report


class Connection:
    """One pilot's way to the fake server: a :class:`pilot.client.Server`."""

    def __init__(self, server: FakeServer, secret: str = SECRET, token: Optional[str] = None) -> None:
        self._fake = server
        self._secret = secret
        self.token = token
        self.hurried = False

    def register(self, registration: PilotRegistration) -> PilotGrant:
        grant = self._fake.serve("register", lambda: self._fake.register(self._secret, registration))
        self.token = grant.token
        return grant

    def acquire(self, request: AcquireRequest) -> AcquireReply:
        return self._fake.serve("acquire", lambda: self._fake.acquire(self.token, request))

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        reply = self._fake.serve("heartbeat", lambda: self._fake.heartbeat(self.token, request))
        self.token = reply.token or self.token
        return reply

    def acquire_units(self, job_id: int, request: UnitsAcquireRequest) -> UnitsAcquireReply:
        return self._fake.serve("acquire_units", lambda: self._fake.acquire_units(self.token, job_id, request))

    def record(self, job_id: int, request: RecordRequest) -> RecordReply:
        return self._fake.serve("record", lambda: self._fake.record(self.token, job_id, request))

    def finish(self, job_id: int, request: FinishRequest) -> FinishReply:
        return self._fake.serve("finish", lambda: self._fake.finish(self.token, job_id, request))

    def credentials(self, request: CredentialRequest) -> CredentialReply:
        return self._fake.serve("credentials", lambda: self._fake.credentials(request))

    def sandbox(self, sha256: str) -> bytes:
        return self._fake.serve("sandbox", lambda: self._fake.sandbox(sha256))

    def keep_log(self, job_id: int, archive: bytes) -> None:
        self._fake.serve("keep_log", lambda: self._fake.logs.__setitem__(job_id, archive))

    def answer_peek(self, job_id: int, peek_id: int, answer: PeekAnswer) -> None:
        self._fake.serve("answer_peek", lambda: self._fake.shown.__setitem__(peek_id, answer))

    def end(self, pilot_id: int, request: PilotEnd) -> None:
        self._fake.serve("end", lambda: self._fake.end(self.token, pilot_id, request))

    def hurry(self) -> None:
        self.hurried = True

    def close(self) -> None:
        """Nothing to close."""


_ROUTES: list[tuple[str, str, type]] = [
    (r"/v1/pilots", "register", PilotRegistration),
    (r"/v1/jobs:acquire", "acquire", AcquireRequest),
    (r"/v1/jobs:heartbeat", "heartbeat", HeartbeatRequest),
    (r"/v1/jobs/(\d+)/units:acquire", "acquire_units", UnitsAcquireRequest),
    (r"/v1/jobs/(\d+)/outputs", "record", RecordRequest),
    (r"/v1/jobs/(\d+):finish", "finish", FinishRequest),
    (r"/v1/pilots/(\d+):end", "end", PilotEnd),
]


class HttpFake:
    """The fake server on a loopback port. Use as a context manager; ``url`` is its address."""

    def __init__(self, server: FakeServer) -> None:
        outer = server

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                try:
                    content = msgspec.json.encode(self.act(token, body))
                    status = 200
                except ServerAway:
                    self.close_connection = True
                    return
                except ServerError as error:
                    status = {JobGone: 410, NotAccepted: 401, CallRefused: 422}[type(error)]
                    content = msgspec.json.encode({"type": "pilotage:test", "title": str(error), "status": status})
                self.send_response(status)
                kind = "application/json" if status == 200 else "application/problem+json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def act(self, token: str, body: bytes) -> Any:
                for pattern, name, kind in _ROUTES:
                    found = re.fullmatch(pattern, self.path)
                    if found:
                        request: Any = msgspec.json.decode(body, type=kind)
                        numbers = [int(group) for group in found.groups()]
                        return outer.serve(name, partial(getattr(outer, name), token, *numbers, request))
                raise CallRefused(404, self.path)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> HttpFake:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


def make_assignment(job_id: int, script: str, **changes: Any) -> Assignment:
    """A job of one counter unit that runs ``script`` with sh."""
    values: dict[str, Any] = {
        "job_id": job_id,
        "task_id": 1,
        "workflow_id": 1,
        "stage": "one",
        "scope": "test",
        "units": [AssignedUnit(100 * job_id, 0, counter=0)],
        "requirements": Requirements(memory_mb=100),
        "jobscript": f"#!/bin/sh\n{script}\n",
    }
    values.update(changes)
    return Assignment(**values)
