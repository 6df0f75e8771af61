"""One cycle of harvester: look, decide, write down, announce, submit, report.

Every step may be cut off at any point by ``kill -9`` and is safe to run again:

* a worker is *planned* once its secret lies in a file and its row in the store; only one whose plan the server has
  accepted is submitted;
* it is *submitting* before the batch system hears of it, so that after a crash it is looked up by its mark: found, or
  certainly not there and planned again;
* states are reported until the server has accepted them.

A server or batch system that is down makes the cycle skip what needs it, and a disk that is full what would be written
there. None of them changes a worker's state. What concerns one batch system is in :mod:`harvester.lane`.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from common.clock import Clock
from common.errors import PilotageError
from common.http import ProblemError
from common.states import FINAL_WORKER_STATES, WorkerState
from common.tokens import hash_secret, new_secret
from common.wire import Shape, WorkerOutcome, WorkerReport
from harvester.api import REPORTS_PER_CALL, ServerApi
from harvester.backends.base import Backend, BackendError
from harvester.commands import Commands
from harvester.config import HarvesterConfig, QueueConfig
from harvester.lane import Lane
from harvester.logs import Logs
from harvester.outcome import Outcome
from harvester.provisioner import Decision
from harvester.push import claim_jobs
from harvester.secret_files import SecretFiles
from harvester.steering import Steering
from harvester.steering_store import SteeringStore
from harvester.store import Change, Store, Unwritable, Worker
from harvester.workers import Workers, moved

log = logging.getLogger(__name__)

LONGEST_WALL_S = 7 * 86400.0
"""Wall time that a secret is good for when the worker's own isn't known."""

UNREADABLE = (400, 413, 422)
"""The server's answers to a request that it can't read."""

Step = Callable[[Outcome], None]


class Cycle:
    """The steps of a cycle over the workers of all queues; ``backends`` holds the backend of each queue.

    The server's part may run beside the lanes, each in a thread.
    """

    def __init__(
        self,
        config: HarvesterConfig,
        backends: Mapping[str, Backend],
        store: Store,
        secrets: SecretFiles,
        server: ServerApi,
        clock: Clock,
        new_mark: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._config = config
        self._store = store
        self._secrets = secrets
        self._server = server
        self._clock = clock
        self._new_mark = new_mark
        self.workers = Workers(store)
        memory = SteeringStore(store)
        self.steering = Steering(config, memory, clock)
        self.commands = Commands(config, server, store, memory, self.workers, self.steering, clock, self._plan)
        logs = Logs(Path(config.state_dir).expanduser().absolute() / "logs", config.logs, store, clock)
        self.lanes = [
            Lane(queues, backend, config, store, self.workers, secrets, clock, logs, self.steering)
            for backend, queues in _shared(backends).values()
        ]

    def run(self, stop: threading.Event) -> Outcome:
        """All steps once, one after another; leaves between two of them when ``stop`` is set. Raises StoreError."""
        done = Outcome()
        run_steps([*self._of_lanes(Lane.recover, Lane.observe, Lane.cancel, Lane.measure)], stop, done)
        run_steps([self.commands.obey, self.provision, self.announce], stop, done)
        run_steps([*self._of_lanes(Lane.withdraw, Lane.submit)], stop, done)
        run_steps([self.report], stop, done)
        run_steps([*self._of_lanes(Lane.tidy, Lane.bring_home)], stop, done)
        run_steps([self.report_logs], stop, done)
        return done

    def sweep(self) -> None:
        """Remove what no worker needs any more: secrets, and workers that ended long ago in queues no more configured.

        Only while nothing else runs on this state. What is written down is read again.
        """
        self.workers.forget_all()
        waiting = (WorkerState.PLANNED, WorkerState.SUBMITTING)
        self._secrets.sweep({worker.mark for worker in self.workers.alive(self.workers.queues(), waiting)})
        old = self._clock.now() - self._config.keep_ended_s
        self._store.forget(
            [worker.mark for worker in self._store.forgettable(old, self._store.queues() - self._config.queues.keys())]
        )

    def check(self, queue: str) -> list[tuple[str, str | None]]:
        """Reach a queue's server and batch system: what was tried, and what went wrong. Changes nothing."""
        results: list[tuple[str, str | None]] = []
        try:
            self._server.demand(queue)
            results.append(("server", None))
        except PilotageError as error:
            results.append(("server", str(error)))
        backend = f"backend {self._config.queues[queue].backend}"
        try:
            next(lane for lane in self.lanes if queue in lane.queues).check()
            results.append((backend, None))
        except BackendError as error:
            results.append((backend, str(error)))
        return results

    def recover(self, done: Outcome) -> None:
        """Find out in all batch systems what became of workers whose submission was not answered."""
        for step in self._of_lanes(Lane.recover):
            step(done)

    def observe(self, done: Outcome) -> None:
        """Ask all batch systems for the status of their workers."""
        for step in self._of_lanes(Lane.observe):
            step(done)

    def cancel(self, done: Outcome) -> None:
        """End the workers whose end was asked for."""
        for step in self._of_lanes(Lane.cancel):
            step(done)

    def submit(self, done: Outcome) -> None:
        """Submit the planned workers that the server has accepted."""
        for step in self._of_lanes(Lane.submit):
            step(done)

    def provision(self, done: Outcome) -> None:
        """Ask for each queue's demand, decide, and write the new workers down, all at once."""
        left_alone = sorted(self.workers.queues() - self._config.queues.keys())
        done.problems += [
            f"queue {queue} has workers but is not configured any more: they are left alone" for queue in left_alone
        ]
        drained = self._store.drained()
        untold = self._untold_ends()
        wanted: list[tuple[str, str, Shape]] = []
        for queue in self._config.queues:
            if done.server_down:
                break
            alive = self.workers.alive([queue])
            try:
                decision = self._decide(queue, queue in drained, [*alive, *untold.get(queue, [])])
            except PilotageError as error:
                done.note(f"queue {queue}: no demand", error)
                continue
            done.decisions.append(decision)
            done.problems += self.steering.problems(queue)
            self.steering.scale_in(decision, alive)
            wanted += [(self._new_mark(), queue, line.shape) for line in decision.lines for _ in range(line.new)]
        self._plan(wanted)
        done.planned += len(wanted)

    def decide(self, queue: str) -> Decision:
        """What the numbers say for a queue now; changes nothing. Raises PilotageError when the server can't be asked.

        Not while a lane of this cycle is at work: the batch system is asked how full it is, where that matters.
        """
        next(lane for lane in self.lanes if queue in lane.queues).measure(Outcome())
        here = [*self.workers.alive([queue]), *self._untold_ends().get(queue, [])]
        return self._decide(queue, queue in self._store.drained(), here)

    def _decide(self, queue: str, drained: bool, here: Sequence[Worker]) -> Decision:
        return self.steering.decide(queue, self._server.demand(queue), drained, here)

    def _untold_ends(self) -> dict[str, list[Worker]]:
        """The workers of each queue that have ended without the server knowing: how they fared isn't known either."""
        found: dict[str, list[Worker]] = {}
        for worker in self.workers.unreported():
            if worker.state in FINAL_WORKER_STATES:
                found.setdefault(worker.queue, []).append(worker)
        return found

    def _plan(self, planned: Sequence[tuple[str, str, Shape]]) -> None:
        marks = [mark for mark, _, _ in planned]
        self._secrets.write({mark: new_secret() for mark in marks})
        try:
            self.workers.plan(planned)
        except Unwritable:
            self._secrets.remove(marks)
            raise

    def announce(self, done: Outcome) -> None:
        """Give the server the hashes of the planned workers' secrets."""
        planned = [one for one in self.workers.unreported() if one.state is WorkerState.PLANNED]
        secrets = {worker.mark: self._secrets.read(worker.mark) for worker in planned}
        lost = [worker for worker in planned if secrets[worker.mark] is None]
        self._apply([moved(worker, WorkerState.FAILED, "its secret is gone") for worker in lost], done)
        kept = [worker for worker in planned if secrets[worker.mark] is not None]
        for part, outcomes in self._told(kept, secrets, done):
            self._note_refused_plans(part, outcomes, done)

    def _note_refused_plans(
        self, planned: Sequence[Worker], outcomes: Mapping[str, WorkerOutcome], done: Outcome
    ) -> None:
        accepted = [worker for worker in planned if outcomes[worker.mark].accepted]
        refused = [worker for worker in planned if not outcomes[worker.mark].accepted]
        self.workers.mark_reported([worker for worker in accepted if not outcomes[worker.mark].push])
        if refused:
            self._apply([moved(one, WorkerState.FAILED, outcomes[one.mark].reason) for one in refused], done)
            self._secrets.remove(worker.mark for worker in refused)
        pushed = [worker for worker in accepted if outcomes[worker.mark].push]
        claim_jobs(self._server, self.workers, self._secrets, pushed, done)

    def report(self, done: Outcome) -> None:
        """Tell the server every state that it hasn't accepted yet, and ask about workers missing for too long."""
        told = [one for one in self.workers.unreported() if one.state is not WorkerState.PLANNED]
        for part, outcomes in self._told(told, {}, done):
            # A refusal would be repeated for ever, and be refused for ever.
            self.workers.mark_reported(part)
            self.steering.learn(part, outcomes)
        doubtful = self.steering.to_ask_about(self.workers.alive(self._config.queues, [WorkerState.RUNNING]))
        for part, outcomes in self._told(doubtful, {}, done):
            self.steering.learn(part, outcomes)
        marks = [mark for lane in self.lanes for mark in lane.overdue()]
        overdue = [one for one in self.workers.get(marks) if one.state is WorkerState.MISSING and one.reported]
        for part, outcomes in self._told(overdue, {}, done):
            # A pilot's heartbeat outranks what the batch system says: while one lives the worker is only missing.
            dead = [worker for worker in part if not outcomes[worker.mark].pilots_alive]
            self._apply([moved(worker, WorkerState.FAILED, f"lost: {worker.reason}") for worker in dead], done)

    def report_logs(self, done: Outcome) -> None:
        """Tell the server where the output of workers that have ended is."""
        found = self._store.untold_logs(REPORTS_PER_CALL)
        if not found or done.server_down:
            return
        reports = [
            msgspec.structs.replace(self._report_of(worker, None), log_url=row.url, log_tail=row.tail)
            for worker, row in found
        ]
        try:
            self._server.report(reports)
        except PilotageError as error:
            done.note("where the output of workers is can't be told", error)
            return
        self._store.mark_logs_told([worker.mark for worker, _ in found])

    def tidy(self, done: Outcome) -> None:
        """Forget workers that ended long ago, and what they left."""
        for step in self._of_lanes(Lane.tidy):
            step(done)

    def _told(
        self, workers: Sequence[Worker], secrets: Mapping[str, str | None], done: Outcome
    ) -> Iterator[tuple[Sequence[Worker], dict[str, WorkerOutcome]]]:
        """Report workers in parts: each part that the server has answered, with its answers by mark."""
        for begin in range(0, len(workers), REPORTS_PER_CALL):
            if done.server_down:
                return
            part = workers[begin : begin + REPORTS_PER_CALL]
            try:
                outcomes = self._reported(part, secrets)
            except PilotageError as error:
                done.note("workers can't be reported", error)
                return
            refused = [worker for worker in part if not outcomes[worker.mark].accepted]
            done.problems += [
                f"the server refuses that worker {worker.mark} is {worker.state.value}: {outcomes[worker.mark].reason}"
                for worker in refused
            ]
            yield part, outcomes

    def _reported(self, workers: Sequence[Worker], secrets: Mapping[str, str | None]) -> dict[str, WorkerOutcome]:
        """The server's answers by mark. One worker that it can't read doesn't keep the others from being told.

        Raises PilotageError when none of them could be told.
        """
        try:
            answers = self._server.report([self._report_of(worker, secrets.get(worker.mark)) for worker in workers])
            return {one.mark: one for one in answers}
        except ProblemError as error:
            if error.status not in UNREADABLE or len(workers) == 1:
                raise
            failure = error
        half = len(workers) // 2
        found: dict[str, WorkerOutcome] = {}
        for part in (workers[:half], workers[half:]):
            try:
                found |= self._reported(part, secrets)
            except ProblemError as error:
                if error.status not in UNREADABLE:
                    raise
                failure = error
        if not found:
            raise failure
        return {one.mark: found.get(one.mark) or WorkerOutcome(one.mark, False, str(failure)) for one in workers}

    def _report_of(self, worker: Worker, secret: str | None) -> WorkerReport:
        queue = self._config.queues.get(worker.queue, QueueConfig())
        return WorkerReport(
            mark=worker.mark,
            queue=worker.queue,
            state=worker.state,
            shape=worker.shape,
            nodes=queue.nodes,
            batch_id=worker.batch_id or None,
            secret_hash=None if secret is None else hash_secret(secret),
            valid_s=queue.max_wait_s + (worker.shape.wall_s or LONGEST_WALL_S),
            reason=worker.reason,
            exit_code=worker.exit_code,
            host=self.steering.host(worker),
        )

    def _of_lanes(self, *steps: Callable[[Lane, Outcome], None]) -> Iterator[Step]:
        """Steps of every lane: all of one lane, then those of the next."""
        for lane in self.lanes:
            for step in steps:
                yield partial(step, lane)

    def _apply(self, changes: Sequence[Change], done: Outcome) -> None:
        done.count(self.workers.apply(changes))


def run_steps(steps: Sequence[Step], stop: threading.Event, done: Outcome) -> None:
    """Steps one after another, until ``stop`` is set. One that can't write is noted: the next cycle tries again.

    Raises StoreError when another harvester uses the same state: then nothing is safe.
    """
    for step in steps:
        if stop.is_set():
            return
        try:
            step(done)
        except (Unwritable, OSError) as error:
            done.problems.append(f"state_dir: {error}")
            return


def _shared(backends: Mapping[str, Backend]) -> dict[int, tuple[Backend, list[str]]]:
    """Each backend with the queues that share it."""
    lanes: dict[int, tuple[Backend, list[str]]] = {}
    for queue, backend in backends.items():
        lanes.setdefault(id(backend), (backend, []))[1].append(queue)
    return lanes
