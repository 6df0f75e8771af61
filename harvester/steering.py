"""What the numbers of each queue rest on, in the memory of the one harvester that moves its workers.

The server's part of a cycle decides by it, the lanes bring what their batch systems say. Threads may share it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from common.clock import Clock
from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import DemandReply, WorkerOutcome
from harvester.backends.base import BatchLoad, Observation, StatusOutcome
from harvester.config import HarvesterConfig, QueueConfig
from harvester.limits import Limits, Situation
from harvester.provisioner import Decision, decide, group
from harvester.steering_store import KEPT, SteeringStore
from harvester.store import Worker
from harvester.surplus import WITHDRAWABLE, Memory, choose
from harvester.surplus import step as surplus_step
from harvester.throttle import Rules, Throttle, Verdict, eaters, fold

ASKED = 200
"""Running workers of a doubtful queue that the server is asked about in one cycle: whether a pilot of theirs is there."""
UNSENT = frozenset({WorkerState.PLANNED, WorkerState.SUBMITTING})
NO_PILOT = "it ended, and no pilot of it had registered"
LONGEST_HOST = 255


class Steering:
    """Which workers got a pilot, where they ran, what their batch systems are loaded with, which are withdrawn."""

    def __init__(self, config: HarvesterConfig, store: SteeringStore, clock: Clock) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._verdicts: dict[str, list[Verdict]] = {}
        self._proven: dict[str, set[str]] = {}
        self._hosts: dict[str, dict[str, str]] = defaultdict(dict)
        self._withdrawn: dict[str, set[str]] = defaultdict(set)
        self._loads: dict[str, BatchLoad] = {}
        self._surplus: dict[str, Memory | None] = {}

    # ------------------------------------------------------------ for the lanes

    def seen(self, worker: Worker, outcome: StatusOutcome) -> Worker:
        """Note where a worker runs. One that is withdrawn counts as one whose end was asked for, until it has started."""
        with self._lock:
            if outcome.host:
                self._hosts[worker.queue][worker.mark] = outcome.host[:LONGEST_HOST]
            if worker.mark not in self._withdrawn[worker.queue]:
                return worker
            if outcome.observation is Observation.STATE and outcome.state is WorkerState.RUNNING:
                self._withdrawn[worker.queue].discard(worker.mark)
                return worker
        return msgspec.structs.replace(worker, cancel=True)

    def to_withdraw(self, queues: Iterable[str]) -> list[str]:
        """The marks of the workers of some queues that are to end unless they have started."""
        with self._lock:
            return [mark for queue in queues for mark in sorted(self._withdrawn[queue])]

    def loaded(self, queue: str, load: BatchLoad | None) -> None:
        """Note what a batch system says of how full it is where a queue's workers go; None if it didn't."""
        with self._lock:
            if load is None:
                self._loads.pop(queue, None)
            else:
                self._loads[queue] = load

    # ------------------------------------------------------------ for the server's part

    def decide(self, queue: str, demand: DemandReply, drained: bool, workers: Sequence[Worker]) -> Decision:
        """What the numbers say for a queue; ``workers`` are those of its that live, or whose end the server doesn't know."""
        settings = self._config.queues[queue]
        with self._lock:
            withdrawn = set(self._withdrawn[queue])
        here = [one for one in workers if not one.cancel and one.mark not in withdrawn]
        groups = group(((one.shape, one.state) for one in here), settings.nodes)
        return decide(queue, demand, limits_of(settings, drained), groups, self._situation(queue, here))

    def _situation(self, queue: str, workers: Sequence[Worker]) -> Situation:
        state = self.throttle(queue)
        with self._lock:
            load, proven = self._loads.get(queue), self._proven_of(queue)
        unproven = [one for one in workers if one.created > state.since and one.mark not in proven]
        return Situation(
            load=load,
            unsent=sum(one.state in UNSENT for one in workers),
            allowance=state.allowance(self._clock.now()),
            unproven=0 if state.open else len(unproven),
            throttle="" if state.open else words_of(state, self._clock.now()),
        )

    def throttle(self, queue: str) -> Throttle:
        """How a queue's workers fared lately."""
        with self._lock:
            return fold(self._verdicts_of(queue), rules_of(self._config.queues.get(queue, QueueConfig())))

    def problems(self, queue: str) -> list[str]:
        """What a person should look at: a queue whose workers get no pilot, and hosts that swallow them."""
        state = self.throttle(queue)
        found = []
        if not state.open:
            found.append(f"queue {queue}: submission is held back: {words_of(state, self._clock.now())}")
        with self._lock:
            holes = eaters(self._verdicts_of(queue))
        return found + [
            f"queue {queue}: on host {host} the last {n} workers got no pilot: have it taken out of the batch system, or "
            "keep workers away from it by the queue's submit options"
            for host, n in holes.items()
        ]

    def scale_in(self, decision: Decision, workers: Sequence[Worker]) -> int:
        """Have those workers withdrawn that wait for nothing; how many more those are now."""
        settings = self._config.queues[decision.queue]
        alive = {one.mark for one in workers}
        with self._lock:
            self._forget_all_but(decision.queue, alive)
            withdrawn = self._withdrawn[decision.queue]
            waiting = [one for one in workers if one.state in WITHDRAWABLE and one.mark not in withdrawn]
            if decision.leaving and settings.cancel_queued_when_closed:
                chosen = waiting
            else:
                memory, n = surplus_step(
                    self._surplus.get(decision.queue), decision, self._clock.now(), settings.cancel_queued_after_s
                )
                self._surplus[decision.queue] = memory
                chosen = choose(waiting, decision.surplus, n)
            withdrawn.update(one.mark for one in chosen)
        return len(chosen)

    def withdraw(self, workers: Iterable[Worker]) -> int:
        """Have workers end unless they have started; how many of them wait."""
        waiting = [one for one in workers if one.state in WITHDRAWABLE]
        with self._lock:
            for one in waiting:
                self._withdrawn[one.queue].add(one.mark)
        return len(waiting)

    def host(self, worker: Worker) -> str:
        """Where a worker runs or ran, as far as is known."""
        with self._lock:
            return self._hosts[worker.queue].get(worker.mark, "")

    def to_ask_about(self, workers: Sequence[Worker]) -> list[Worker]:
        """The running workers of queues in doubt of which it isn't known whether a pilot of theirs is there."""
        found: list[Worker] = []
        for queue, running in _by_queue(one for one in workers if one.state is WorkerState.RUNNING):
            if not self.throttle(queue).doubtful:
                continue
            with self._lock:
                proven = self._proven_of(queue)
            found += [one for one in reversed(running) if one.mark not in proven and one.reported][:ASKED]
        return found

    def learn(self, workers: Sequence[Worker], outcomes: Mapping[str, WorkerOutcome]) -> None:
        """Judge workers by what the server said to a report of theirs. Raises Unwritable."""
        with self._lock:
            found = {queue: self._new_verdicts(queue, told, outcomes) for queue, told in _by_queue(workers)}
        self._store.add({queue: new for queue, new in found.items() if new})
        with self._lock:
            for queue, new in found.items():
                self._proven_of(queue).update(verdict.mark for verdict in new if verdict.good)
                self._verdicts[queue] = [*self._verdicts_of(queue), *new][-KEPT:]

    # ------------------------------------------------------------ with the lock held

    def _new_verdicts(self, queue: str, told: Sequence[Worker], outcomes: Mapping[str, WorkerOutcome]) -> list[Verdict]:
        now, hosts = self._clock.now(), self._hosts[queue]
        known = self._proven_of(queue) | {verdict.mark for verdict in self._verdicts_of(queue)}
        return [
            verdict
            for one in told
            if one.mark not in known
            and (verdict := verdict_on(one, outcomes[one.mark], hosts.get(one.mark, ""), now)) is not None
        ]

    def _verdicts_of(self, queue: str) -> list[Verdict]:
        if queue not in self._verdicts:
            self._verdicts[queue] = self._store.verdicts(queue)
        return self._verdicts[queue]

    def _proven_of(self, queue: str) -> set[str]:
        if queue not in self._proven:
            self._proven[queue] = {verdict.mark for verdict in self._verdicts_of(queue) if verdict.good}
        return self._proven[queue]

    def _forget_all_but(self, queue: str, alive: Collection[str]) -> None:
        """Hosts are kept until the end was reported, which is at the latest when a queue has many more than live."""
        self._withdrawn[queue].intersection_update(alive)
        self._proven_of(queue).intersection_update({*alive, *(one.mark for one in self._verdicts_of(queue))})
        hosts = self._hosts[queue]
        if len(hosts) > 2 * len(alive) + KEPT:
            self._hosts[queue] = {mark: host for mark, host in hosts.items() if mark in alive}


def verdict_on(worker: Worker, outcome: WorkerOutcome, host: str, now: float) -> Verdict | None:
    """What a worker's report says of its queue; None as long as nothing is clear, and for one that somebody ended.

    One that the batch system never had can have had no pilot, whatever the server says.
    """
    never_there = worker.state is WorkerState.FAILED and not worker.batch_id
    if outcome.pilots_seen:
        return Verdict(worker.mark, now, worker.created, True, host)
    ended = worker.state in FINAL_WORKER_STATES and worker.state is not WorkerState.CANCELLED
    if not (never_there or (ended and outcome.pilots_seen == 0)):
        return None
    reason = worker.reason if never_there else f"{NO_PILOT}: {worker.reason}".rstrip(": ")
    return Verdict(worker.mark, now, worker.created, False, host, reason[:500])


def limits_of(settings: QueueConfig, drained: bool) -> Limits:
    """A queue's limits, as they are configured."""
    return Limits(
        max_workers=settings.max_workers,
        max_queued=settings.max_queued,
        per_cycle=settings.per_cycle,
        factor=settings.factor,
        drained=drained,
        queued_ratio=settings.queued_ratio,
        min_queued=settings.min_queued,
        max_cores=settings.max_cores,
        max_memory_mb=settings.max_memory_mb,
        max_backlog=settings.max_backlog,
        nodes=settings.nodes,
    )


def rules_of(settings: QueueConfig) -> Rules:
    """When a queue is closed, as it is configured."""
    return Rules(settings.throttle_after, settings.backoff_s, settings.backoff_max_s)


def words_of(state: Throttle, now: float) -> str:
    """Why a queue is held back, and how it goes on."""
    why = f"{state.failures} workers in a row got no pilot, the last because: {state.reason}"
    if state.allowance(now) == 0:
        until = datetime.fromtimestamp(state.until).astimezone().isoformat(sep=" ", timespec="seconds")
        return f"{why}; a test worker follows at {until}"
    if state.allowed == 1:
        return f"{why}; one test worker at a time until one gets a pilot"
    return f"workers get pilots again: {state.allowed} at a time may be without one"


def _by_queue(workers: Iterable[Worker]) -> list[tuple[str, list[Worker]]]:
    found: dict[str, list[Worker]] = {}
    for worker in workers:
        found.setdefault(worker.queue, []).append(worker)
    return list(found.items())
