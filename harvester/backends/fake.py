"""A simulated batch system: runs nothing, but queues, starts, ends, fails, loses answers and goes down like a real one.

Its workers' states follow from the clock alone: waiting for ``start_delay_s``, running for ``run_s``, then ended. With
a ``journal`` it outlives the process that uses it, as a real batch system does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import msgspec

from common.clock import Clock
from common.states import FINAL_WORKER_STATES, WorkerState
from harvester.backends.base import (
    BackendError,
    BatchLoad,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
    read_options,
)


class FakeState(Enum):
    """The states that the simulated batch system shows."""

    IDLE = "idle"
    """Waits for a slot."""
    RUNNING = "running"
    """Runs."""
    HELD = "held"
    """Held until released."""
    COMPLETED = "completed"
    """Ended with exit code 0."""
    FAILED = "failed"
    """Ended with exit code 1."""
    REMOVED = "removed"
    """Killed on demand."""


STATES: dict[FakeState, WorkerState] = {
    FakeState.IDLE: WorkerState.SUBMITTED,
    FakeState.RUNNING: WorkerState.RUNNING,
    FakeState.HELD: WorkerState.HELD,
    FakeState.COMPLETED: WorkerState.FINISHED,
    FakeState.FAILED: WorkerState.FAILED,
    FakeState.REMOVED: WorkerState.CANCELLED,
}
"""What each of them means to harvester."""

WAITING = (FakeState.IDLE, FakeState.HELD)
_EXIT_CODES = {FakeState.COMPLETED: 0, FakeState.FAILED: 1}
_Rate = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class FakeOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the backend. Rates are fractions: of workers that fail, and of submissions that are refused.

    With ``hosts`` workers run on ``node0``, ``node1`` and so on in turn.
    """

    start_delay_s: _Seconds = 1.0
    run_s: _Seconds = 60.0
    failure_rate: _Rate = 0.0
    refusal_rate: _Rate = 0.0
    hosts: Annotated[int, msgspec.Meta(ge=0)] = 0
    journal: Optional[str] = None


class _Job(msgspec.Struct):
    mark: str
    number: int
    submitted: float
    held: bool = False
    removed: bool = False
    forgotten: bool = False


class FakeBatchSystem:
    """The batch system itself. Set ``down`` to make every call fail, ``lose_answers`` to take submissions and then
    fail; ``foreign`` is what else it has to do. ``forget``, ``hold`` and ``release`` do to a worker what admins do."""

    def __init__(self, options: FakeOptions, clock: Clock) -> None:
        self.down = False
        self.lose_answers = False
        self.foreign = BatchLoad(0, 0)
        self._options = options
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._journal = Path(options.journal) if options.journal else None
        self._read = 0

    def marks(self) -> list[str]:
        """The mark of each submission that was taken, in order: a mark that is there twice was submitted twice."""
        self._refresh()
        return [job.mark for job in self._jobs.values()]

    def take(self, mark: str) -> str:
        """Accept a worker; the batch id."""
        self._refresh()
        number = len(self._jobs) + 1
        self._record(_Job(mark, number, self._clock.now()))
        return str(number)

    def refuses(self, mark: str) -> bool:
        """Whether a worker is among those that are refused."""
        return _chance("refuse", mark) < self._options.refusal_rate

    def jobs(self) -> dict[str, _Job]:
        """By mark, those that the batch system remembers."""
        self._refresh()
        return {job.mark: job for job in self._jobs.values() if not job.forgotten}

    def state(self, job: _Job) -> FakeState:
        """The state of a worker now."""
        if job.removed:
            return FakeState.REMOVED
        if job.held:
            return FakeState.HELD
        age = self._clock.now() - job.submitted
        if age < self._options.start_delay_s:
            return FakeState.IDLE
        if age < self._options.start_delay_s + self._options.run_s:
            return FakeState.RUNNING
        return FakeState.FAILED if _chance("fail", job.mark) < self._options.failure_rate else FakeState.COMPLETED

    def host(self, job: _Job) -> str:
        """Where a worker runs or ran; empty while it waits."""
        waits = job.removed or self.state(job) in WAITING
        return "" if waits or not self._options.hosts else f"node{job.number % self._options.hosts}"

    def hold(self, mark: str) -> None:
        """Hold a worker."""
        self._record(msgspec.structs.replace(self.jobs()[mark], held=True))

    def release(self, mark: str) -> None:
        """Release a held worker."""
        self._record(msgspec.structs.replace(self.jobs()[mark], held=False))

    def remove(self, mark: str) -> None:
        """Kill a worker; one that has ended stays as it is."""
        job = self.jobs().get(mark)
        if job is not None and self.state(job) not in (FakeState.COMPLETED, FakeState.FAILED):
            self._record(msgspec.structs.replace(job, removed=True))

    def forget(self, mark: str) -> None:
        """Lose all trace of a worker."""
        self._record(msgspec.structs.replace(self.jobs()[mark], forgotten=True))

    def check_up(self) -> None:
        """Raises BackendError while the system is down."""
        if self.down:
            raise BackendError("the batch system does not answer")

    def _record(self, job: _Job) -> None:
        if self._journal is None:
            self._jobs[str(job.number)] = job
            return
        with self._journal.open("ab") as file:
            file.write(msgspec.json.encode(job) + b"\n")
        self._refresh()

    def _refresh(self) -> None:
        """Read what this or another process has appended to the journal."""
        if self._journal is None or not self._journal.exists():
            return
        with self._journal.open("rb") as file:
            file.seek(self._read)
            for line in file:
                job = msgspec.json.decode(line, type=_Job)
                self._jobs[str(job.number)] = job
            self._read = file.tell()


class FakeBackend:
    """Harvester's side of the simulated batch system."""

    def __init__(self, system: FakeBatchSystem) -> None:
        self.system = system

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> FakeBackend:
        """Make one with a batch system of its own."""
        return cls(FakeBatchSystem(read_options(options, FakeOptions), clock))

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """Hand workers to the batch system."""
        self.system.check_up()
        outcomes = [self._submit_one(spec.mark) for spec in specs]
        if self.system.lose_answers:
            raise BackendError("the connection broke before the answer came")
        return outcomes

    def _submit_one(self, mark: str) -> SubmitOutcome:
        if self.system.refuses(mark):
            return SubmitOutcome(mark, SubmitResult.REFUSED, reason="refused by chance, as refusal_rate asks")
        return SubmitOutcome(mark, SubmitResult.ACCEPTED, self.system.take(mark))

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """Ask for the states of workers."""
        self.system.check_up()
        jobs = self.system.jobs()
        return {ref.mark: self._status_one(jobs.get(ref.mark)) for ref in refs}

    def _status_one(self, job: _Job | None) -> StatusOutcome:
        if job is None:
            return StatusOutcome.denied("no such worker")
        state = self.system.state(job)
        return StatusOutcome.of(STATES[state], state.value, "", _EXIT_CODES.get(state), self.system.host(job))

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """Look workers up by their marks."""
        self.system.check_up()
        jobs = self.system.jobs()
        return {mark: WorkerRef(mark, str(jobs[mark].number)) for mark in marks if mark in jobs}

    def list_workers(self) -> list[WorkerRef]:
        """Those that have not ended."""
        self.system.check_up()
        jobs = self.system.jobs().values()
        return [
            WorkerRef(one.mark, str(one.number))
            for one in jobs
            if STATES[self.system.state(one)] not in FINAL_WORKER_STATES
        ]

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Remove workers."""
        self.system.check_up()
        for ref in refs:
            self.system.remove(ref.mark)
        return {}

    def withdraw(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Remove workers that have not started."""
        self.system.check_up()
        jobs = self.system.jobs()
        for ref in refs:
            if ref.mark in jobs and self.system.state(jobs[ref.mark]) in WAITING:
                self.system.remove(ref.mark)
        return {}

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """Count all jobs, those of others included; all queues are one."""
        self.system.check_up()
        states = [self.system.state(job) for job in self.system.jobs().values()]
        waiting = sum(state is FakeState.IDLE for state in states)
        running = sum(state is FakeState.RUNNING for state in states)
        return BatchLoad(waiting + self.system.foreign.waiting, running + self.system.foreign.running)


def _chance(what: str, mark: str) -> float:
    """A number from 0 up to 1 that a mark always gets again."""
    return int.from_bytes(hashlib.sha256(f"{what}:{mark}".encode()).digest()[:8], "big") / 2**64
