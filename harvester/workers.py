"""The workers that something is still to be done for, in the memory of the one harvester that moves them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from common.states import FINAL_WORKER_STATES, WorkerState
from common.wire import Shape
from harvester.store import LIVE, Change, Store, Worker

LONGEST_REASON = 4096

T = TypeVar("T")


class Workers:
    """Those alive, and those whose end the server has not accepted. Threads may share it.

    Every change is on the disk before it is seen here, and whoever gets workers gets them as they were at one moment:
    rows are replaced, never changed. A write that failed has them read again, since only the disk knows.

    Methods that change something raise Unwritable, in which case nothing was changed, or StoreError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._queues: dict[str, dict[str, Worker]] = {}
        self._queue_of: dict[str, str] = {}
        self._unreported: dict[str, Worker] = {}
        self._shapes: dict[bytes, Shape] = {}
        self._stale = True

    def forget_all(self) -> None:
        """What is written down may have been changed by another process: it will be read again."""
        with self._lock:
            self._stale = True

    def alive(self, queues: Iterable[str], states: Collection[WorkerState] = LIVE) -> list[Worker]:
        """The workers of some queues in some states (default: all that have not ended)."""
        with self._lock:
            self._refresh()
            return [
                worker
                for queue in queues
                for worker in self._queues.get(queue, {}).values()
                if worker.state in states and worker.state not in FINAL_WORKER_STATES
            ]

    def get(self, marks: Iterable[str]) -> list[Worker]:
        """The workers of these marks, those left out that nothing is to be done for."""
        with self._lock:
            self._refresh()
            return [self._queues[queue][mark] for mark in marks if (queue := self._queue_of.get(mark)) is not None]

    def unreported(self) -> list[Worker]:
        """Those in a state that the server has not accepted yet."""
        with self._lock:
            self._refresh()
            return list(self._unreported.values())

    def queues(self) -> set[str]:
        """The queues that have any."""
        with self._lock:
            self._refresh()
            return {queue for queue, workers in self._queues.items() if workers}

    def plan(self, planned: Iterable[tuple[str, str, Shape]]) -> None:
        """Write intentions down: mark, queue and shape of each new worker."""
        with self._lock:
            self._refresh()
            interned = [(mark, queue, self._interned(shape)) for mark, queue, shape in planned]
            for worker in self._written(lambda: self._store.plan(interned)):
                self._put(worker)

    def apply(self, changes: Iterable[Change]) -> list[Change]:
        """Change workers; those changes that were made. One whose worker has moved on meanwhile is left out.

        What a batch system said is made fit to be written and sent.
        """
        with self._lock:
            self._refresh()
            one_each = {change.mark: change for change in changes if self._is_in(change.mark, change.source)}
            fit = [_fit(change) for change in one_each.values()]
            if fit:
                now = self._written(lambda: self._store.apply(fit))
                for change in fit:
                    self._put(_changed(self._at(change.mark), change, now))
            return fit

    def mark_reported(self, workers: Sequence[Worker]) -> None:
        """The server knows these workers' states; one that has moved on meanwhile stays unreported."""
        with self._lock:
            self._refresh()
            still = [worker for worker in workers if self._is_in(worker.mark, worker.state)]
            self._written(lambda: self._store.mark_reported(still))
            for worker in still:
                self._put(msgspec.structs.replace(self._at(worker.mark), reported=True))

    def set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        """These workers are to ask their batch system for something else than was planned; unknown ones are left out."""
        with self._lock:
            self._refresh()
            known = {mark: self._interned(shape) for mark, shape in shapes.items() if mark in self._queue_of}
            self._written(lambda: self._store.set_shapes(known))
            for mark, shape in known.items():
                self._put(msgspec.structs.replace(self._at(mark), shape=shape))

    def notice_cancelled(self, queues: Collection[str]) -> list[Worker]:
        """The workers of some queues whose end was asked for, also by another process."""
        with self._lock:
            self._refresh()
            found = [mark for mark in self._store.cancelled(queues) if mark in self._queue_of]
            for mark in found:
                if not self._at(mark).cancel:
                    self._put(msgspec.structs.replace(self._at(mark), cancel=True))
            return [self._at(mark) for mark in found]

    def _written(self, write: Callable[[], T]) -> T:
        self._stale = True
        done = write()
        self._stale = False
        return done

    def _refresh(self) -> None:
        if not self._stale:
            return
        workers = self._store.open()
        self._queues, self._queue_of, self._unreported = {}, {}, {}
        for worker in workers:
            self._put(worker)
        self._stale = False

    def _at(self, mark: str) -> Worker:
        return self._queues[self._queue_of[mark]][mark]

    def _is_in(self, mark: str, state: WorkerState) -> bool:
        return mark in self._queue_of and self._at(mark).state is state

    def _put(self, worker: Worker) -> None:
        mark = worker.mark
        if worker.reported:
            self._unreported.pop(mark, None)
            if worker.state in FINAL_WORKER_STATES:
                self._queues[worker.queue].pop(mark, None)
                self._queue_of.pop(mark, None)
                return
        else:
            self._unreported[mark] = worker
        self._queues.setdefault(worker.queue, {})[mark] = worker
        self._queue_of[mark] = worker.queue

    def _interned(self, shape: Shape) -> Shape:
        return self._shapes.setdefault(msgspec.json.encode(shape), shape)


def moved(worker: Worker, target: WorkerState, reason: str = "") -> Change:
    """The change of a worker to another state."""
    return Change(mark=worker.mark, source=worker.state, target=target, reason=reason)


def _changed(worker: Worker, change: Change, now: float) -> Worker:
    """A worker after a change, as :meth:`Store.apply` writes it."""
    if change.target is change.source:
        return msgspec.structs.replace(worker, missing_count=change.missing_count)
    return msgspec.structs.replace(
        worker,
        state=change.target,
        updated=now,
        missing_count=change.missing_count,
        batch_id=worker.batch_id if change.batch_id is None else change.batch_id,
        exit_code=change.exit_code,
        reason=change.reason,
        reported=False,
    )


def _fit(change: Change) -> Change:
    if change.reason.isprintable() and len(change.reason) <= LONGEST_REASON and (change.batch_id or "").isprintable():
        return change
    batch_id = None if change.batch_id is None else printable(change.batch_id)
    return msgspec.structs.replace(change, reason=printable(change.reason)[:LONGEST_REASON], batch_id=batch_id)


def printable(text: str) -> str:
    """Text of a batch system without what databases, terminals and JSON don't take."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
