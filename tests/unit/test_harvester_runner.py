"""Lanes in threads: a batch system that hangs is slow for its own queues, and a stop doesn't wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from common.clock import FrozenClock, SystemClock
from common.states import WorkerState
from harvester.backends.base import StatusOutcome, SubmitOutcome, WorkerRef, WorkerSpec
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.config import QueueConfig
from harvester.cycle import Cycle
from harvester.runner import HANGS_S, Runner
from harvester.secret_files import SecretFiles
from harvester.store import Change, Store, Unwritable
from tests.harvester_world import FakeServer, config

W = WorkerState
DEADLINE_S = 120.0


class Hanging(FakeBackend):
    """Takes workers, and hangs in whatever call ``hangs`` names until it is let go."""

    def __init__(self, system: FakeBatchSystem) -> None:
        super().__init__(system)
        self.hangs = ""
        self.inside = threading.Event()
        self.let_go = threading.Event()

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        self._hang("status")
        return super().status(refs)

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        outcomes = super().submit(specs)
        self._hang("submit")
        return outcomes

    def _hang(self, call: str) -> None:
        if self.hangs == call:
            self.inside.set()
            self.let_go.wait(DEADLINE_S)


class World:
    """Two queues, each with a batch system of its own, the first of which may hang."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = FakeServer(folder, pilots=3)
        clock = SystemClock()
        options = FakeOptions(start_delay_s=0.0, run_s=1000.0)
        self.stuck = Hanging(FakeBatchSystem(options, clock))
        self.good = FakeBackend(FakeBatchSystem(options, clock))
        queue = QueueConfig(max_workers=5, max_queued=5)
        settings = config(folder, cycle_s=0.05)
        self.config = msgspec.structs.replace(settings, queues={"stuck": queue, "good": queue})
        (folder / "state").mkdir()
        self.start()

    def start(self) -> None:
        """A harvester that has only its files."""
        state_dir = self.folder / "state"
        self.store = Store(state_dir / "harvester.db", SystemClock())
        secrets = SecretFiles(state_dir / "secrets")
        backends = {"stuck": self.stuck, "good": self.good}
        self.cycle = Cycle(self.config, backends, self.store, secrets, self.server, SystemClock())
        self.failed = threading.Event()
        self.runner = Runner(self.cycle, self.config.cycle_s, SystemClock(), self.failed.set, lambda: None)

    def states(self) -> dict[tuple[str, WorkerState], int]:
        return self.store.counts()

    def close(self) -> None:
        self.stuck.let_go.set()
        assert self.runner.stop(DEADLINE_S) == []
        self.store.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def wait_for(found: Callable[[], object]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < give_up
        threading.Event().wait(0.01)


def test_a_batch_system_that_hangs_is_slow_for_its_own_queues_only(world: World) -> None:
    world.stuck.hangs = "status"
    world.runner.start()
    assert world.stuck.inside.wait(DEADLINE_S)
    wait_for(lambda: world.states().get(("good", W.RUNNING)) == 3)
    for mark in world.good.system.marks()[:2]:
        world.good.system.remove(mark)
    wait_for(lambda: len(world.good.system.marks()) == 5)
    assert world.states()["stuck", W.SUBMITTED] == 3
    world.stuck.hangs = ""
    world.stuck.let_go.set()
    wait_for(lambda: world.states().get(("stuck", W.RUNNING)) == 3)


def test_a_stop_does_not_wait_for_a_batch_system_and_loses_nothing(world: World) -> None:
    world.stuck.hangs = "submit"
    world.runner.start()
    assert world.stuck.inside.wait(DEADLINE_S)
    began = time.monotonic()
    assert world.runner.stop(0.2) == ["stuck"]
    assert time.monotonic() - began < 60.0
    world.store.close()
    first = world.runner
    world.start()
    assert world.states()["stuck", W.SUBMITTING] == 3
    world.stuck.hangs = ""
    world.stuck.let_go.set()  # who comes back now finds the door closed
    wait_for(lambda: first.stop(0.0) == [])
    assert world.states()["stuck", W.SUBMITTING] == 3
    world.runner.start()
    wait_for(lambda: world.states().get(("stuck", W.RUNNING)) == 3)
    assert len(world.stuck.system.marks()) == 3


def test_what_hangs_is_told(world: World) -> None:
    clock = FrozenClock()
    world.runner = Runner(world.cycle, 0.05, clock, world.failed.set, lambda: None)
    world.stuck.hangs = "submit"
    world.runner.start()
    assert world.stuck.inside.wait(DEADLINE_S)
    clock.advance(HANGS_S + 1)
    expected = f"queue stuck: its batch system has not answered for {HANGS_S + 1:.0f} s"
    # The other parts may just have been at work when the clock was advanced.
    wait_for(lambda: [problem for state in world.runner.states() for problem in state.problems] == [expected])


def test_new_workers_are_submitted_as_soon_as_the_server_has_accepted_them(world: World) -> None:
    world.runner = Runner(world.cycle, 3600.0, SystemClock(), world.failed.set, lambda: None)
    world.runner.start()
    wait_for(lambda: len(world.good.system.marks()) == len(world.stuck.system.marks()) == 3)


def test_what_went_wrong_is_told_until_it_is_well_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "harvester.runner")
    world.good.system.down = True
    world.runner.start()
    problem = "queue good: no answer to a submission: the batch system does not answer"

    def problems() -> list[str]:
        return [problem for state in world.runner.states() for problem in state.problems]

    wait_for(lambda: problem in caplog.messages)
    wait_for(lambda: any("can't be looked up" in one for one in problems()))
    assert caplog.messages.count(problem) == 1
    world.good.system.down = False
    wait_for(lambda: "good: all is well again" in caplog.messages)
    wait_for(lambda: not problems())


def test_two_harvesters_on_one_state_end(world: World) -> None:
    world.runner.start()
    wait_for(lambda: world.states().get(("good", W.RUNNING)) == 3)
    (worker, *_) = world.store.live([W.RUNNING])
    world.store.apply([Change(mark=worker.mark, source=W.RUNNING, target=W.HELD)])
    for mark in world.good.system.marks() + world.stuck.system.marks():
        (world.good if mark in world.good.system.jobs() else world.stuck).system.remove(mark)
    assert world.failed.wait(DEADLINE_S)
    assert "run one harvester on each state_dir" in str(world.runner.failure)


def test_a_closed_store_refuses_who_comes_late(world: World) -> None:
    store = Store(world.folder / "other.db", SystemClock())
    store.close()
    with pytest.raises(Unwritable, match="it is closed"):
        store.plan([])
        store.set_drained(["good"], True)
