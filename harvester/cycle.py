"""One cycle of harvester: look, decide, write down, announce, submit, report.

Every step may be cut off at any point by ``kill -9`` and is safe to run again:

* a worker is *planned* once its secret lies in a file and its row in the store; only one whose plan the server has
  accepted is submitted;
* it is *submitting* before the batch system hears of it, so that after a crash it is looked up by its mark: found, or
  certainly not there and planned again;
* states are reported until the server has accepted them.

A server or batch system that is down makes the cycle skip what needs it. It never changes a worker's state.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from common.clock import Clock
from common.errors import PilotageError
from common.http import Unreachable
from common.states import WorkerState
from common.tokens import hash_secret, new_secret
from common.wire import Shape, WorkerOutcome, WorkerReport
from harvester.api import ServerApi
from harvester.backends.base import (
    Backend,
    BackendError,
    Cleanable,
    Killable,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
    fill,
)
from harvester.config import HarvesterConfig, QueueConfig, pilot_command
from harvester.judge import judge
from harvester.provisioner import Decision, Limits, decide, group
from harvester.secret_files import SecretFiles
from harvester.store import Change, Store, Worker

log = logging.getLogger(__name__)

OBSERVED = frozenset({WorkerState.SUBMITTED, WorkerState.RUNNING, WorkerState.HELD, WorkerState.MISSING})
"""States in which the batch system is asked for a worker's status."""
LONGEST_WALL_S = 7 * 86400.0
"""Wall time that a secret is good for when the worker's own isn't known."""


@dataclass
class Outcome:
    """What a cycle did. ``problems`` say what was skipped and why; after ``server_down`` the server isn't asked again."""

    decisions: list[Decision] = field(default_factory=list)
    planned: int = 0
    submitted: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)
    server_down: bool = False

    def note(self, what: str, error: PilotageError) -> None:
        """A call to the server failed."""
        self.problems.append(f"{what}: {error}")
        self.server_down = self.server_down or isinstance(error, Unreachable)


class Cycle:
    """The steps of a cycle over the workers of ``queues``; ``backends`` holds the backend of each queue."""

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
        self._backends = backends
        self._store = store
        self._secrets = secrets
        self._server = server
        self._clock = clock
        self._new_mark = new_mark

    def run(self, stop: threading.Event) -> Outcome:
        """All steps once; leaves between two of them when ``stop`` is set.

        Raises OSError, StoreError or SQLAlchemyError when its own state can't be read or written: then nothing is safe.
        """
        done = Outcome()
        for step in (
            self.recover,
            self.observe,
            self.cancel,
            self.provision,
            self.announce,
            self.submit,
            self.report,
            self.tidy,
        ):
            if stop.is_set():
                break
            step(done)
        return done

    def sweep(self) -> None:
        """Remove secrets that no worker needs any more. Only while nothing else runs on this state."""
        waiting = (WorkerState.PLANNED, WorkerState.SUBMITTING)
        self._secrets.sweep({worker.mark for worker in self._store.live(waiting)})

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
            self._backends[queue].find_by_marks([self._new_mark()])
            results.append((backend, None))
        except BackendError as error:
            results.append((backend, str(error)))
        return results

    def recover(self, done: Outcome) -> None:
        """Find out by their marks what became of workers whose submission was not answered."""
        for backend, workers in self._by_backend(self._store.live([WorkerState.SUBMITTING]), done):
            try:
                found = backend.find_by_marks([worker.mark for worker in workers])
            except BackendError as error:
                done.problems.append(f"{_queues(workers)}: workers can't be looked up: {error}")
                continue
            self._apply([_recovered(worker, found.get(worker.mark)) for worker in workers], done)
            self._secrets.remove(found)

    def observe(self, done: Outcome) -> None:
        """Ask for the status of all workers that are there."""
        for backend, workers in self._by_backend(self._store.live(OBSERVED), done):
            try:
                outcomes = backend.status([WorkerRef(worker.mark, worker.batch_id) for worker in workers])
            except BackendError as error:
                done.problems.append(f"{_queues(workers)}: no status: {error}")
                continue
            changes = [
                judge(worker, outcomes[worker.mark], self._config.denials)
                for worker in workers
                if worker.mark in outcomes
            ]
            self._apply([change for change in changes if change is not None], done)

    def cancel(self, done: Outcome) -> None:
        """End the workers whose end was asked for."""
        flagged = [worker for worker in self._store.live() if worker.cancel]
        unsent = [worker for worker in flagged if worker.state is WorkerState.PLANNED]
        self._apply(
            [_moved(worker, WorkerState.CANCELLED, "cancelled before it was submitted") for worker in unsent], done
        )
        self._secrets.remove(worker.mark for worker in unsent)
        for backend, workers in self._by_backend([one for one in flagged if one.state in OBSERVED], done):
            if not isinstance(backend, Killable):
                done.problems.append(
                    f"{_queues(workers)}: this backend can't end workers; end them in the batch system"
                )
                continue
            try:
                refused = backend.kill([WorkerRef(worker.mark, worker.batch_id) for worker in workers])
            except BackendError as error:
                done.problems.append(f"{_queues(workers)}: workers can't be ended: {error}")
                continue
            done.problems += [f"worker {mark} can't be ended: {reason}" for mark, reason in refused.items()]

    def provision(self, done: Outcome) -> None:
        """Ask for each queue's demand, decide, and write the new workers down."""
        for queue in self._config.queues:
            if done.server_down:
                return
            try:
                decision = self.decide(queue)
            except PilotageError as error:
                done.note(f"queue {queue}: no demand", error)
                continue
            done.decisions.append(decision)
            shapes = [line.shape for line in decision.lines for _ in range(line.new)]
            self._plan(queue, shapes)
            done.planned += len(shapes)

    def decide(self, queue: str) -> Decision:
        """What the numbers say for a queue now; changes nothing. Raises PilotageError when the server can't be asked."""
        settings = self._config.queues[queue]
        limits = Limits(
            max_workers=settings.max_workers,
            max_queued=settings.max_queued,
            per_cycle=settings.per_cycle,
            factor=settings.factor,
            drained=queue in self._store.drained(),
        )
        workers = [(one.shape, one.state) for one in self._store.live(queue=queue) if not one.cancel]
        return decide(queue, self._server.demand(queue), limits, group(workers))

    def _plan(self, queue: str, shapes: Sequence[Shape]) -> None:
        marks = [self._new_mark() for _ in shapes]
        for mark in marks:
            self._secrets.write(mark, new_secret())
        self._store.plan([(mark, queue, shape) for mark, shape in zip(marks, shapes)])

    def announce(self, done: Outcome) -> None:
        """Give the server the hashes of the planned workers' secrets."""
        planned = [one for one in self._store.unreported() if one.state is WorkerState.PLANNED]
        secrets = {worker.mark: self._secrets.read(worker.mark) for worker in planned}
        lost = [worker for worker in planned if secrets[worker.mark] is None]
        self._apply([_moved(worker, WorkerState.FAILED, "its secret is gone") for worker in lost], done)
        reports = {worker.mark: self._report_of(worker, secrets[worker.mark]) for worker in planned}
        self._send([worker for worker in planned if worker not in lost], reports, done)

    def submit(self, done: Outcome) -> None:
        """Submit the planned workers that the server has accepted."""
        planned = self._store.live([WorkerState.PLANNED])
        ready = [worker for worker in planned if worker.reported and not worker.cancel]
        for backend, workers in self._by_backend(ready, done):
            self._submit_to(backend, workers, done)

    def _submit_to(self, backend: Backend, workers: Sequence[Worker], done: Outcome) -> None:
        secrets = {worker.mark: self._secrets.read(worker.mark) for worker in workers}
        lost = [worker for worker in workers if secrets[worker.mark] is None]
        self._apply([_moved(worker, WorkerState.FAILED, "its secret is gone") for worker in lost], done)
        specs = [self._spec(worker, secret) for worker in workers if (secret := secrets[worker.mark]) is not None]
        sent = {spec.mark for spec in specs}
        self._store.apply([_moved(worker, WorkerState.SUBMITTING) for worker in workers if worker.mark in sent])
        try:
            outcomes = backend.submit(specs)
        except BackendError as error:
            # They stay as they are, to be looked up by their marks.
            done.problems.append(f"{_queues(workers)}: no answer to a submission: {error}")
            return
        answered = [one for one in outcomes if one.result is not SubmitResult.UNKNOWN]
        self._apply([_submitted(outcome) for outcome in answered], done)
        self._secrets.remove(outcome.mark for outcome in answered)
        done.submitted += sum(outcome.result is SubmitResult.ACCEPTED for outcome in outcomes)
        refusals = Counter(one.reason for one in outcomes if one.result is not SubmitResult.ACCEPTED)
        done.problems += [f"{_queues(workers)}: {n} not submitted: {reason}" for reason, n in refusals.items()]

    def report(self, done: Outcome) -> None:
        """Tell the server every state that it hasn't accepted yet, and ask about workers missing for too long."""
        told = [one for one in self._store.unreported() if one.state is not WorkerState.PLANNED]
        overdue_since = self._clock.now() - self._config.lost_after_s
        overdue = [
            worker
            for worker in self._store.live([WorkerState.MISSING])
            if worker.reported and worker.updated < overdue_since
        ]
        workers = [*told, *overdue]
        outcomes = self._send(workers, {worker.mark: self._report_of(worker) for worker in workers}, done)
        # A pilot's heartbeat outranks what the batch system says: while one lives the worker is only missing.
        dead = [worker for worker in overdue if worker.mark in outcomes and not outcomes[worker.mark].pilots_alive]
        self._apply([_moved(worker, WorkerState.FAILED, f"lost: {worker.reason}") for worker in dead], done)

    def tidy(self, done: Outcome) -> None:
        """Forget workers that ended long ago, and what they left."""
        old = self._store.forgettable(self._clock.now() - self._config.keep_ended_s)
        if not old:
            return
        for backend, workers in self._by_backend(old, done):
            if isinstance(backend, Cleanable):
                backend.clean([WorkerRef(worker.mark, worker.batch_id) for worker in workers])
        self._store.forget([worker.mark for worker in old])

    def _send(
        self, workers: Sequence[Worker], reports: Mapping[str, WorkerReport], done: Outcome
    ) -> dict[str, WorkerOutcome]:
        """Report workers; what the server answered, by mark. A plan that it refuses fails."""
        if not workers or done.server_down:
            return {}
        try:
            outcomes = {one.mark: one for one in self._server.report([reports[worker.mark] for worker in workers])}
        except PilotageError as error:
            done.note("workers can't be reported", error)
            return {}
        refused = [worker for worker in workers if not outcomes[worker.mark].accepted]
        for worker in refused:
            reason = outcomes[worker.mark].reason
            done.problems.append(f"the server refuses that worker {worker.mark} is {worker.state.value}: {reason}")
        unwanted = [worker for worker in refused if worker.state is WorkerState.PLANNED]
        self._apply([_moved(one, WorkerState.FAILED, outcomes[one.mark].reason) for one in unwanted], done)
        self._secrets.remove(worker.mark for worker in unwanted)
        # Any other refusal would be repeated for ever, and be refused for ever.
        self._store.mark_reported([worker for worker in workers if worker not in unwanted])
        return outcomes

    def _report_of(self, worker: Worker, secret: str | None = None) -> WorkerReport:
        queue = self._config.queues.get(worker.queue, QueueConfig())
        return WorkerReport(
            mark=worker.mark,
            queue=worker.queue,
            state=worker.state,
            shape=worker.shape,
            batch_id=worker.batch_id or None,
            secret_hash=None if secret is None else hash_secret(secret),
            valid_s=queue.max_wait_s + (worker.shape.wall_s or LONGEST_WALL_S),
            reason=worker.reason[:4096],
        )

    def _spec(self, worker: Worker, secret: str) -> WorkerSpec:
        queue = self._config.queues[worker.queue]
        names = {"server": self._config.server_url, "mark": worker.mark, "queue": worker.queue}
        return WorkerSpec(
            mark=worker.mark,
            queue=worker.queue,
            shape=worker.shape,
            command=fill(pilot_command(queue), names),
            environment=queue.environment,
            secret=secret,
        )

    def _by_backend(self, workers: Sequence[Worker], done: Outcome) -> Iterator[tuple[Backend, list[Worker]]]:
        """Workers with the backend of their queue, in bulk for those that share one."""
        parts: dict[int, tuple[Backend, list[Worker]]] = {}
        for worker in workers:
            backend = self._backends.get(worker.queue)
            if backend is None:
                problem = f"queue {worker.queue} has workers but is not configured any more: they are left alone"
                if problem not in done.problems:
                    done.problems.append(problem)
                continue
            parts.setdefault(id(backend), (backend, []))[1].append(worker)
        return iter(parts.values())

    def _apply(self, changes: Sequence[Change], done: Outcome) -> None:
        if not changes:
            return
        self._store.apply(changes)
        for change in changes:
            if change.target is not change.source:
                done.changed += 1
                why = f" ({change.reason})" if change.reason not in ("", change.target.value) else ""
                log.info("worker %s: %s -> %s%s", change.mark, change.source.value, change.target.value, why)


def _queues(workers: Sequence[Worker]) -> str:
    return "queue " + ", ".join(sorted({worker.queue for worker in workers}))


def _moved(worker: Worker, target: WorkerState, reason: str = "") -> Change:
    return Change(mark=worker.mark, source=worker.state, target=target, reason=reason)


def _recovered(worker: Worker, ref: WorkerRef | None) -> Change:
    if ref is None:
        return _moved(worker, WorkerState.PLANNED, "it never reached the batch system")
    return Change(
        mark=worker.mark,
        source=worker.state,
        target=WorkerState.SUBMITTED,
        batch_id=ref.batch_id,
        reason="found by its mark",
    )


def _submitted(outcome: SubmitOutcome) -> Change:
    accepted = outcome.result is SubmitResult.ACCEPTED
    return Change(
        mark=outcome.mark,
        source=WorkerState.SUBMITTING,
        target=WorkerState.SUBMITTED if accepted else WorkerState.FAILED,
        batch_id=outcome.batch_id if accepted else None,
        reason=outcome.reason,
    )
