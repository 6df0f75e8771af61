"""A small world for tests of harvester: a server that remembers on disk, so that it outlives processes that are killed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from common.clock import Clock, FrozenClock
from common.http import Unreachable
from common.states import ResourceState, WorkerState
from common.wire import (
    DemandReply,
    HarvesterCommandResult,
    HarvesterCommandView,
    QueueSpec,
    Shape,
    ShapeDemand,
    WorkerJobs,
    WorkerOutcome,
    WorkerReport,
)
from harvester.backends.base import MARK_VARIABLE, Backend
from harvester.backends.fake import FakeBackend, FakeBatchSystem, FakeOptions
from harvester.backends.processes import find_by_variable, send_signal
from harvester.config import HarvesterConfig, QueueConfig
from harvester.cycle import Cycle
from harvester.outcome import Outcome
from harvester.secret_files import SecretFiles
from harvester.store import Store, Worker

QUEUE = "q1"
SHAPE = Shape(cores=1, memory_mb=1000, disk_mb=500)


class FakeServer:
    """Wants ``pilots`` pilots of SHAPE; appends every report to a journal. ``down`` makes it unreachable.

    ``seen`` says of how many pilots of a worker it knows, that of ``""`` for those that aren't named.
    """

    def __init__(self, folder: Path, pilots: int = 0) -> None:
        self.pilots = pilots
        self.status = ResourceState.ONLINE
        self.down = False
        self.refuse: set[str] = set()
        self.refuse_all = ""
        self.alive: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.push: dict[str, WorkerJobs] | None = None
        self.orders: list[HarvesterCommandView] = []
        self.answers: dict[int, HarvesterCommandResult] = {}
        self.calls: list[str] = []
        self._journal = folder / "server.jsonl"

    def demand(self, queue: str) -> DemandReply:
        self._check("demand")
        line = ShapeDemand(shape=SHAPE, pilots=self.pilots, ready_units=self.pilots, ready_jobs=self.pilots)
        spec = QueueSpec(name=queue, site="s1", status=self.status)
        return DemandReply(queue=spec, shapes=[line] if self.pilots else [])

    def report(self, workers: Sequence[WorkerReport]) -> list[WorkerOutcome]:
        self._check("report")
        with self._journal.open("ab") as file:
            for worker in workers:
                file.write(msgspec.json.encode(worker) + b"\n")
        return [self._outcome(worker) for worker in workers]

    def acquire(self, marks: Sequence[str]) -> list[WorkerJobs]:
        """A queue in push mode, when ``push`` says what workers get: those that it does not name get nothing."""
        self._check("acquire")
        assert self.push is not None
        return [self.push.get(mark) or self.push.get("") or WorkerJobs(mark, True) for mark in marks]

    def commands(self) -> list[HarvesterCommandView]:
        if self.down:
            self._check("commands")
        return [command for command in self.orders if command.command_id not in self.answers]

    def command_done(self, command_id: int, result: HarvesterCommandResult) -> None:
        self._check("command_done")
        self.answers[command_id] = result

    def reports(self) -> list[WorkerReport]:
        """Everything that was ever reported, in order."""
        if not self._journal.exists():
            return []
        return [msgspec.json.decode(line, type=WorkerReport) for line in self._journal.read_bytes().splitlines()]

    def states(self, mark: str) -> list[str]:
        """The states that a worker was reported in, repeats left out."""
        told = [report.state.value for report in self.reports() if report.mark == mark]
        return [state for index, state in enumerate(told) if index == 0 or told[index - 1] != state]

    def _outcome(self, worker: WorkerReport) -> WorkerOutcome:
        accepted = not self.refuse_all and worker.mark not in self.refuse
        alive = self.alive.get(worker.mark, 0)
        seen = self.seen.get(worker.mark, self.seen.get("", None)) if accepted else None
        push = accepted and worker.state is WorkerState.PLANNED and self.push is not None
        return WorkerOutcome(worker.mark, accepted, self.refuse_all or "" if not accepted else "", alive, seen, push)

    def _check(self, call: str) -> None:
        self.calls.append(call)
        if self.down:
            raise Unreachable(f"{call}: connection refused")


def end_local_workers(workers_dir: Path) -> None:
    """Kill all that the local backend has started there, those too that have only just been."""
    left = {path.name for path in workers_dir.iterdir() if path.is_dir()} if workers_dir.exists() else set()
    give_up = time.monotonic() + 120.0
    while True:
        # A process shows its environment only microseconds after its start: nobody may be seen twice in a row.
        found = [found for _ in range(2) for found in find_by_variable(MARK_VARIABLE, left).values()]
        if not found:
            return
        assert time.monotonic() < give_up, found
        for process in found:
            send_signal(process, signal.SIGKILL)


def config(folder: Path, queue: QueueConfig | None = None, **settings: object) -> HarvesterConfig:
    """A configuration with one queue."""
    return HarvesterConfig(
        server_url="http://127.0.0.1:1",
        token_file=str(folder / "token"),
        state_dir=str(folder / "state"),
        queues={QUEUE: queue or QueueConfig(max_workers=5, max_queued=5)},
        **settings,  # type: ignore[arg-type]
    )


def make_cycle(settings: HarvesterConfig, backend: Backend, server: FakeServer, clock: Clock) -> tuple[Cycle, Store]:
    """A cycle over real files in the configuration's state_dir."""
    state_dir = Path(settings.state_dir)
    state_dir.mkdir(exist_ok=True)
    store = Store(state_dir / "harvester.db", clock)
    secrets = SecretFiles(state_dir / "secrets")
    return Cycle(settings, dict.fromkeys(settings.queues, backend), store, secrets, server, clock), store


class World:
    """Harvester, its server and its batch system."""

    def __init__(self, folder: Path, pilots: int = 3) -> None:
        self.clock = FrozenClock()
        self.server = FakeServer(folder, pilots)
        self.system = FakeBatchSystem(FakeOptions(start_delay_s=10, run_s=60), self.clock)
        self.backend = FakeBackend(self.system)
        self.config = config(folder, lost_after_s=100.0, keep_ended_s=1000.0)
        self.secrets = folder / "state" / "secrets"
        self.start()

    def start(self) -> None:
        """A harvester that has only its files."""
        self.cycle, self.store = make_cycle(self.config, self.backend, self.server, self.clock)

    def run(self, advance: float = 5.0) -> Outcome:
        self.clock.advance(advance)
        return self.cycle.run(threading.Event())

    def states(self) -> dict[str, int]:
        return {state.value: count for (_, state), count in self.store.counts().items()}

    def kept_secrets(self) -> set[str]:
        """The marks of the workers whose secrets harvester still has."""
        workers = [*self.store.live(), *self.store.ended(100)]
        return {one.mark for one in workers if self.cycle._secrets.read(one.mark)}

    def only(self) -> Worker:
        (worker,) = [*self.store.live(), *self.store.ended(10)]
        return worker

    def close(self) -> None:
        self.store.close()
