"""What a status means for a worker: a pure function."""

from __future__ import annotations

from common.states import FINAL_WORKER_STATES, WorkerState, allowed
from harvester.backends.base import Observation, StatusOutcome
from harvester.store import Change, Worker

_LARGEST = 2**31 - 1


def judge(worker: Worker, outcome: StatusOutcome, denials: int) -> Change | None:
    """How a status changes a worker; None when it doesn't.

    *Unknown* changes nothing (DESIGN 5.4). *Denied* counts, and ``denials`` in a row make the worker missing, or
    cancelled where its end was asked for. A state that the worker can't go to counts as unknown.
    """
    if outcome.observation is Observation.DENIED:
        return _denied(worker, outcome, denials)
    target = outcome.state
    if outcome.observation is Observation.UNKNOWN or target is None:
        return None
    if target in FINAL_WORKER_STATES and worker.cancel:
        target = WorkerState.CANCELLED
    if target is worker.state:
        return _change(worker, worker.state) if worker.missing_count else None
    if not allowed(worker.state, target):
        return None
    return _change(worker, target, reason=outcome.reason or outcome.native, exit_code=outcome.exit_code)


def _denied(worker: Worker, outcome: StatusOutcome, denials: int) -> Change | None:
    count = worker.missing_count + 1
    if count < denials:
        return _change(worker, worker.state, missing_count=count)
    reason = f"denied {count} times: {outcome.reason}"
    if worker.cancel:
        return _change(worker, WorkerState.CANCELLED, missing_count=count, reason=reason)
    if worker.state is WorkerState.MISSING:
        return None
    return _change(worker, WorkerState.MISSING, missing_count=count, reason=reason)


def _change(
    worker: Worker, target: WorkerState, *, missing_count: int = 0, reason: str = "", exit_code: int | None = None
) -> Change:
    return Change(
        mark=worker.mark,
        source=worker.state,
        target=target,
        missing_count=missing_count,
        reason=reason,
        # A batch system's number may be no exit code at all; it must not cost the change.
        exit_code=exit_code if exit_code is not None and abs(exit_code) <= _LARGEST else None,
    )
