"""What harvester does with one batch system, for all queues that share it.

Each lane is run by a thread of its own (:mod:`harvester.runner`), so that a batch system that hangs is slow for its own
queues only. Like those of :class:`~harvester.cycle.Cycle`, every step may be cut off at any point and run again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.clock import Clock
from common.states import WorkerState
from harvester.backends.base import (
    Backend,
    BackendError,
    Backlog,
    Cleanable,
    Killable,
    Observation,
    Settling,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    Withdrawable,
    WorkerRef,
    WorkerSpec,
    fill,
)
from harvester.config import SHIPPED, HarvesterConfig, pilot_command
from harvester.judge import judge
from harvester.logs import Logs
from harvester.outcome import Outcome
from harvester.secret_files import SecretFiles
from harvester.steering import Steering
from harvester.store import Change, Store, Worker
from harvester.submission_ends import SubmissionEnds
from harvester.workers import Workers, moved

OBSERVED = frozenset({WorkerState.SUBMITTED, WorkerState.RUNNING, WorkerState.HELD, WorkerState.MISSING})
"""States in which the batch system is asked for a worker's status."""
WITHDRAWN = "withdrawn before it started: there is no work for it"

log = logging.getLogger(__name__)

T = TypeVar("T")


class Lane:
    """The steps over the workers of ``queues``, which share ``backend``. To be used by one thread at a time."""

    def __init__(
        self,
        queues: Sequence[str],
        backend: Backend,
        config: HarvesterConfig,
        store: Store,
        workers: Workers,
        secrets: SecretFiles,
        clock: Clock,
        logs: Logs,
        steering: Steering,
    ) -> None:
        self.queues = queues
        self._logs = logs
        self._steering = steering
        self.backend = backend
        self._config = config
        self._store = store
        self._workers = workers
        self._secrets = secrets
        self._clock = clock
        self._ends = SubmissionEnds(clock)
        self._denied_since: dict[str, float] = {}
        self._overdue: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The lane's queues."""
        return ", ".join(self.queues)

    def overdue(self) -> frozenset[str]:
        """The marks of workers that are missing for too long by now, and that the batch system has just denied again."""
        return self._overdue

    def recover(self, done: Outcome) -> None:
        """Find out by their marks what became of workers whose submission was not answered.

        A worker that isn't found goes back to *planned* only when its submission can't arrive any more, whoever was
        cut off in it: this process, or one that was killed before it.
        """
        workers = self._workers.alive(self.queues, [WorkerState.SUBMITTING])
        self._ends.keep(worker.mark for worker in workers)
        if not workers:
            return
        # As the look begins: what came to the batch system while it lasted may not be in it.
        settled = self._ends.settled([worker.mark for worker in workers], self._settle_s())
        found = self._asked(
            workers, "workers can't be looked up", done,
            lambda: self.backend.find_by_marks([worker.mark for worker in workers]),
        )  # fmt: skip
        if found is None:
            return
        known = [worker for worker in workers if worker.mark in settled or worker.mark in found]
        self._apply([_recovered(worker, found.get(worker.mark)) for worker in known], done)
        self._secrets.remove(found)

    def observe(self, done: Outcome) -> None:
        """Ask for the status of all workers that are there."""
        workers = self._workers.alive(self.queues, OBSERVED)
        if not workers:
            return
        self._overdue = frozenset()
        outcomes = self._asked(workers, "no status", done, lambda: self.backend.status(_refs(workers)))
        if outcomes is None:
            return
        known = [worker for worker in workers if worker.mark in outcomes]
        changes = [
            judge(self._steering.seen(worker, outcomes[worker.mark]), outcomes[worker.mark], self._config.denials)
            for worker in known
        ]
        self._apply([change for change in changes if change is not None], done)
        self._time_the_missing(known, outcomes)

    def _time_the_missing(self, workers: Sequence[Worker], outcomes: Mapping[str, StatusOutcome]) -> None:
        """By the monotonic clock, and only while the batch system answers: a clock that is set loses nobody."""
        now = self._clock.monotonic()
        denied = {
            worker.mark
            for worker in workers
            if worker.state is WorkerState.MISSING and outcomes[worker.mark].observation is Observation.DENIED
        }
        self._denied_since = {mark: self._denied_since.get(mark, now) for mark in denied}
        lost_after_s = self._config.lost_after_s
        self._overdue = frozenset(mark for mark, since in self._denied_since.items() if now - since >= lost_after_s)

    def cancel(self, done: Outcome) -> None:
        """End the workers whose end was asked for."""
        flagged = self._workers.notice_cancelled(self.queues)
        if not flagged:
            return
        unsent = [worker for worker in flagged if worker.state is WorkerState.PLANNED]
        self._apply(
            [moved(worker, WorkerState.CANCELLED, "cancelled before it was submitted") for worker in unsent], done
        )
        self._secrets.remove(worker.mark for worker in unsent)
        workers = [worker for worker in flagged if worker.state in OBSERVED]
        backend = self.backend
        if not workers:
            return
        if not isinstance(backend, Killable):
            done.skip(workers, "this backend can't end workers; end them in the batch system")
            return
        refused = self._asked(workers, "workers can't be ended", done, lambda: backend.kill(_refs(workers)))
        done.problems += [f"worker {mark} can't be ended: {reason}" for mark, reason in (refused or {}).items()]

    def withdraw(self, done: Outcome) -> None:
        """End the workers that wait for nothing: never one that has started, which the batch system itself looks at."""
        found = self._workers.get(self._steering.to_withdraw(self.queues))
        if not found:
            return
        unsent = [worker for worker in found if worker.state is WorkerState.PLANNED]
        self._apply([moved(worker, WorkerState.CANCELLED, WITHDRAWN) for worker in unsent], done)
        self._secrets.remove(worker.mark for worker in unsent)
        backend = self.backend
        workers = [worker for worker in found if worker.state in (WorkerState.SUBMITTED, WorkerState.HELD)]
        if not workers or not isinstance(backend, Withdrawable):
            return  # their pilots find no work, and leave by themselves
        refused = self._asked(workers, "workers can't be withdrawn", done, lambda: backend.withdraw(_refs(workers)))
        done.problems += [f"worker {mark} can't be withdrawn: {reason}" for mark, reason in (refused or {}).items()]

    def measure(self, done: Outcome) -> None:
        """Ask the batch system how full it is, where a queue's limits make that of interest."""
        for queue in self.queues:
            settings = self._config.queues[queue]
            if settings.max_backlog is None:
                continue
            load = None
            if isinstance(self.backend, Backlog):
                try:
                    load = self.backend.backlog(settings.submit)
                except BackendError as error:
                    done.problems.append(f"queue {queue}: nobody knows how many jobs wait there: {error}")
            self._steering.loaded(queue, load)

    def submit(self, done: Outcome) -> None:
        """Submit the planned workers that the server has accepted."""
        planned = self._workers.alive(self.queues, [WorkerState.PLANNED])
        workers = [worker for worker in planned if worker.reported and not worker.cancel]
        if not workers:
            return
        secrets = {worker.mark: self._secrets.read(worker.mark) for worker in workers}
        lost = [worker for worker in workers if secrets[worker.mark] is None]
        self._apply([moved(worker, WorkerState.FAILED, "its secret is gone") for worker in lost], done)
        ready = [moved(worker, WorkerState.SUBMITTING) for worker in workers if secrets[worker.mark] is not None]
        intended = {change.mark for change in self._workers.apply(ready)}
        sent = [worker for worker in workers if worker.mark in intended]
        specs = [self._spec(worker, secret) for worker in sent if (secret := secrets[worker.mark]) is not None]
        try:
            outcomes = self._asked(sent, "no answer to a submission", done, lambda: self.backend.submit(specs))
        finally:
            # Those without an answer stay as they are, to be looked up by their marks.
            self._ends.note(intended)
        if outcomes is not None:
            self._note_submitted(sent, outcomes, done)

    def _note_submitted(self, sent: Sequence[Worker], outcomes: Sequence[SubmitOutcome], done: Outcome) -> None:
        answered = [one for one in outcomes if one.result is not SubmitResult.UNKNOWN]
        self._apply([_submitted(outcome) for outcome in answered], done)
        self._secrets.remove(outcome.mark for outcome in answered)
        done.submitted += sum(outcome.result is SubmitResult.ACCEPTED for outcome in outcomes)
        done.refused += sum(outcome.result is SubmitResult.REFUSED for outcome in outcomes)
        refusals = Counter(one.reason for one in outcomes if one.result is not SubmitResult.ACCEPTED)
        for reason, number in refusals.items():
            done.skip(sent, f"{number} not submitted: {reason}")

    def tidy(self, done: Outcome) -> None:
        """Forget workers that ended long ago, and what they left."""
        old = self._store.forgettable(self._clock.now() - self._config.keep_ended_s, self.queues)
        if not old:
            return
        backend = self.backend
        if isinstance(backend, Cleanable):
            self._asked(old, "what ended workers left can't be removed", done, lambda: backend.clean(_refs(old)))
        self._store.forget([worker.mark for worker in old])

    def bring_home(self, done: Outcome) -> None:
        """Fetch what ended workers wrote."""
        self._logs.bring_home(
            self.backend,
            self.queues,
            lambda workers, call: self._asked(workers, "the output of workers can't be fetched", done, call),
        )

    def check(self) -> None:
        """Reach the batch system. Changes nothing. Raises BackendError."""
        self.backend.find_by_marks(["00000000000000000000000000000000"])

    def _asked(self, workers: Sequence[Worker], what: str, done: Outcome, call: Callable[[], T]) -> T | None:
        """A call of the backend; None when nothing is known, which is noted and changes nothing."""
        try:
            return call()
        except BackendError as error:
            done.skip(workers, f"{what}: {error}")
        except Exception as error:
            # A mistake in a plug-in must not stop the queues of all the others.
            log.exception("queue %s: a mistake in its backend", self.name)
            done.skip(workers, f"{what}: a mistake in its backend, see the log: {error!r}")
        return None

    def _settle_s(self) -> float:
        return self.backend.settle_s if isinstance(self.backend, Settling) else 0.0

    def _spec(self, worker: Worker, secret: str) -> WorkerSpec:
        queue = self._config.queues[worker.queue]
        server_url = queue.server_url or self._config.server_url
        names = {"server": server_url, "mark": worker.mark, "queue": worker.queue}
        return WorkerSpec(
            mark=worker.mark,
            queue=worker.queue,
            shape=worker.shape,
            command=fill(pilot_command(queue), names),
            environment=queue.environment,
            secret=secret,
            nodes=queue.nodes,
            files={SHIPPED: Path(queue.ship_bundle)} if queue.ship_bundle else {},
            submit=queue.submit,
        )

    def _apply(self, changes: Sequence[Change], done: Outcome) -> None:
        done.count(self._workers.apply(changes))


def _refs(workers: Sequence[Worker]) -> list[WorkerRef]:
    return [WorkerRef(worker.mark, worker.batch_id) for worker in workers]


def _recovered(worker: Worker, ref: WorkerRef | None) -> Change:
    if ref is None:
        return moved(worker, WorkerState.PLANNED, "it never reached the batch system")
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
