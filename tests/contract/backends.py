"""Rigs for the contract over all backends: a backend each, with workers for it and a way to let time pass."""

from __future__ import annotations

import json
import threading
import time
import uuid
from pathlib import Path

from common.clock import Clock, FrozenClock, SystemClock
from common.states import WorkerState
from common.wire import Shape
from harvester.backends import fake
from harvester.backends.base import (
    Backend,
    StatusOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
)
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.backends.local import LocalBackend
from harvester.backends.processes import ProcessId
from tests.harvester_world import end_local_workers

W = WorkerState
DEADLINE_S = 180.0
LIVE = {W.SUBMITTED, W.RUNNING}


def new_mark() -> str:
    return uuid.uuid4().hex


class Rig:
    """A backend, workers for it that end well, end badly or stay, and a way to let time pass."""

    backend: Backend
    killable = True
    deadline_s = DEADLINE_S
    """How long its system may take for what a worker does at once."""

    def spec(self, how: str = "stay", mark: str | None = None, **environment: str) -> WorkerSpec:
        return WorkerSpec(
            mark=mark or new_mark(),
            queue="q1",
            shape=Shape(cores=1),
            command=["/bin/sh", "-c", self.script(how), "pilot", "{secret_file}", "{work_dir}"],
            environment=environment,
            secret="pls_test-secret-value",
        )

    def script(self, how: str) -> str:
        return {"stay": "exec sleep 300", "good": "exit 0", "bad": "exit 1"}[how]

    def submit(self, *specs: WorkerSpec) -> list[WorkerRef]:
        outcomes = self.backend.submit(specs)
        assert [outcome.mark for outcome in outcomes] == [spec.mark for spec in specs]
        assert all(outcome.result is SubmitResult.ACCEPTED and outcome.batch_id for outcome in outcomes), outcomes
        return [WorkerRef(outcome.mark, outcome.batch_id) for outcome in outcomes]

    def restarted(self) -> Backend:
        """Another client of the same batch system, as after a crash of harvester."""
        raise NotImplementedError

    def passes(self) -> None:
        """A moment."""
        raise NotImplementedError

    def until(self, ref: WorkerRef, *states: WorkerState, backend: Backend | None = None) -> StatusOutcome:
        """The status of a worker once it is in one of ``states``."""
        give_up = time.monotonic() + self.deadline_s
        while True:
            outcome = (backend or self.backend).status([ref])[ref.mark]
            if outcome.state in states:
                return outcome
            assert time.monotonic() < give_up, f"{ref} is {outcome}, not in {states}{self.explained(ref)}"
            self.passes()

    def explained(self, ref: WorkerRef) -> str:
        """What the batch system itself says of a worker that doesn't get where it should."""
        return ""


class LocalRig(Rig):
    def __init__(self, folder: Path, clock: Clock | None = None, kill_grace_s: float = 30.0) -> None:
        self.workers_dir = folder / "workers"
        self.clock = clock or SystemClock()
        self.kill_grace_s = kill_grace_s
        self.backend: LocalBackend = self.restarted()

    def restarted(self) -> LocalBackend:
        return LocalBackend(self.workers_dir, self.clock, self.kill_grace_s)

    def passes(self) -> None:
        threading.Event().wait(0.02)

    def folder(self, mark: str) -> Path:
        return self.workers_dir / mark

    def process(self, mark: str) -> ProcessId:
        read = json.loads((self.folder(mark) / "process").read_bytes())
        return ProcessId(read["ticks"], read["pid"], read["boot"])

    def close(self) -> None:
        end_local_workers(self.workers_dir)


class FakeRig(Rig):
    """``good`` and ``bad`` are told apart by a failure rate of one half: marks are drawn until one suits."""

    def __init__(self, folder: Path) -> None:
        self.clock = FrozenClock()
        self.options = FakeOptions(start_delay_s=5, run_s=30, failure_rate=0.5, journal=str(folder / "journal"))
        self.backend: FakeBackend = self.restarted()

    def restarted(self) -> FakeBackend:
        return FakeBackend(FakeBatchSystem(self.options, self.clock))

    def spec(self, how: str = "stay", mark: str | None = None, **environment: str) -> WorkerSpec:
        while mark is None:
            mark = new_mark()
            if how != "stay" and (fake._chance("fail", mark) < 0.5) != (how == "bad"):
                mark = None
        return super().spec(how, mark, **environment)

    def passes(self) -> None:
        self.clock.advance(5)
