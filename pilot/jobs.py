"""The jobs that a pilot holds: hands each event to its job, and each of the job's actions to whoever carries it out."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Optional, Protocol

from common.errors import ErrorCode, PilotageError
from common.wire import Assignment
from pilot.job import step
from pilot.jobstate import (
    Abandon,
    Action,
    Again,
    Cleanup,
    Crashed,
    Event,
    Failure,
    HandOut,
    Job,
    KillPayload,
    Measured,
    Phase,
    RetryLater,
    Start,
    new_job,
)
from pilot.loop import Lane, Lanes, Loop
from pilot.slot import Part

logger = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
FIRST_LOOK_S = 1.0
"""A payload that fills memory or disk at once should not have the whole watch interval for it."""


def backoff_s(attempt: int, rng: random.Random, most_s: float = RETRY_MOST_S) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1): doubling, spread over the upper half."""
    return float(min(most_s, RETRY_FIRST_S * 2.0 ** min(attempt - 1, 20)) * rng.uniform(0.5, 1.0))


class JobWork(Protocol):
    """What carries out the actions of one job. ``perform`` and ``look`` run on lanes, the rest on the loop's thread."""

    def perform(self, action: Action) -> Optional[Event]:
        """Carry out an action that takes time; the event that it leads to."""

    def at_once(self, action: Action) -> None:
        """Carry out an action that takes none (kill the payload, answer get-file)."""

    def look(self) -> Optional[Event]:
        """Measure the payload; a breach, a measurement, or None when it does not run."""

    def cancel(self) -> None:
        """Give up what is under way."""


MakeWork = Callable[[Assignment, Callable[[Event], None]], JobWork]
"""Makes the work of a job; the second argument is where it posts events of the payload, from any thread."""
OnChange = Callable[[Optional[Job], Job], None]
"""Called after each change of a job's phase, with the job before (None: it is new) and now."""


@dataclass
class _Held:
    job: Job
    work: JobWork
    lane: Lane
    turn: int = 0
    """Counts the times that what was under way was abandoned: older results do not count."""


class Jobs:
    """All jobs of one pilot. All methods are for the loop's thread."""

    def __init__(
        self, loop: Loop, make_work: MakeWork, on_change: OnChange, rng: random.Random, watch_s: float
    ) -> None:
        self._loop = loop
        self._make_work = make_work
        self._on_change = on_change
        self._rng = rng
        self._watch_s = watch_s
        self._lanes = Lanes("job")
        self._watch_lane = Lane("watch")
        self._held: dict[int, _Held] = {}
        self._cleaning = 0

    @property
    def all(self) -> list[Job]:
        """The jobs as they stand."""
        return [held.job for held in self._held.values()]

    @property
    def idle(self) -> bool:
        """Whether there is no job, and none to clean up after."""
        return not self._held and not self._cleaning

    def holds(self, job_id: int) -> bool:
        """Whether a job of this number is there."""
        return job_id in self._held

    def take_up(self, assignment: Assignment, part: Optional[Part]) -> None:
        """Begin a job that is not held yet; without a part of the slot it fetches its input and waits."""
        job = new_job(assignment, part)
        work = self._make_work(assignment, self._poster(job.job_id))
        self._held[job.job_id] = _Held(job, work, self._lanes.take())
        logger.info("job %d: %s", job.job_id, job.phase.value)
        self._on_change(None, job)
        self.handle(job.job_id, Start())

    def handle(self, job_id: int, event: Event) -> None:
        """Hand ``event`` to a job; one that is not held any more needs none."""
        held = self._held.get(job_id)
        if held is None:
            return
        before = held.job
        held.job, actions = step(before, event)
        if held.job.failure is not None and before.failure is None:
            failure = held.job.failure
            logger.warning("job %d: %d %s: %s", job_id, failure.code, failure.code.name, failure.detail)
        if held.job.phase is not before.phase:
            logger.info("job %d: %s", job_id, held.job.phase.value)
            self._entered(held)
        for action in actions:
            self._carry_out(held, action)
        if held.job.phase is not before.phase:
            self._on_change(before, held.job)

    def handle_all(self, event: Event) -> None:
        """Hand ``event`` to every job."""
        for job_id in list(self._held):
            self.handle(job_id, event)

    def _poster(self, job_id: int) -> Callable[[Event], None]:
        return lambda event: self._loop.post(partial(self.handle, job_id, event))

    def _entered(self, held: _Held) -> None:
        job_id = held.job.job_id
        self._loop.cancel(("retry", job_id))
        if held.job.phase is Phase.RUNNING:
            self._loop.after(("watch", job_id), min(FIRST_LOOK_S, self._watch_s), partial(self._look, job_id))
        else:
            self._loop.cancel(("watch", job_id))
        if held.job.phase is Phase.DONE:
            del self._held[job_id]

    def _carry_out(self, held: _Held, action: Action) -> None:
        job_id = held.job.job_id
        if isinstance(action, RetryLater):
            delay_s = backoff_s(action.attempt, self._rng)
            logger.warning("job %d: the server cannot be reached, again in %.1f s", job_id, delay_s)
            self._loop.after(("retry", job_id), delay_s, partial(self.handle, job_id, Again()))
        elif isinstance(action, Abandon):
            held.work.cancel()
            held.lane.close()
            held.lane = self._lanes.take()
            held.turn += 1
        elif isinstance(action, (KillPayload, HandOut)):
            held.work.at_once(action)
        elif isinstance(action, Cleanup):
            self._cleaning += 1
            held.lane.submit(partial(self._clean, held, action))
        else:
            held.lane.submit(partial(self._perform, held, held.turn, action))

    def _perform(self, held: _Held, turn: int, action: Action) -> None:
        """On the job's lane."""
        event = guarded(held.job.job_id, action, partial(held.work.perform, action))
        if event is not None:
            self._loop.post(partial(self._result, held, turn, event))

    def _result(self, held: _Held, turn: int, event: Event) -> None:
        if turn == held.turn:
            self.handle(held.job.job_id, event)

    def _clean(self, held: _Held, action: Action) -> None:
        """On the job's lane, as its last act."""
        guarded(held.job.job_id, action, partial(held.work.perform, action))
        self._loop.post(partial(self._cleaned, held))

    def _cleaned(self, held: _Held) -> None:
        self._cleaning -= 1
        self._lanes.give_back(held.lane)
        self._on_change(held.job, held.job)

    def _look(self, job_id: int) -> None:
        held = self._held.get(job_id)
        if held is not None:
            self._watch_lane.submit(partial(self._looked, held))

    def _looked(self, held: _Held) -> None:
        """On the watch lane, which all jobs share."""
        event = guarded(held.job.job_id, None, held.work.look)
        # A look that failed says nothing about the payload.
        seen = None if isinstance(event, Crashed) else event
        self._loop.post(partial(self._seen, held.job.job_id, seen))

    def _seen(self, job_id: int, event: Optional[Event]) -> None:
        if event is not None:
            self.handle(job_id, event)
        again_s = event.again_s if isinstance(event, Measured) else None
        held = self._held.get(job_id)
        if held is not None and held.job.phase is Phase.RUNNING:
            wait_s = self._watch_s if again_s is None else again_s
            self._loop.after(("watch", job_id), wait_s, partial(self._look, job_id))


def guarded(job_id: int, action: Optional[Action], call: Callable[[], Optional[Event]]) -> Optional[Event]:
    """The event of ``call``; :class:`Crashed` when it raises, so that no mistake can leave a job without an end."""
    try:
        return call()
    except PilotageError as error:
        return Crashed(Failure(error.code, error.detail))
    except Exception as error:  # the boundary of a thread: whatever it is becomes the failure of the job
        logger.exception("job %d: %s failed", job_id, type(action).__name__ if action else "watching")
        return Crashed(Failure(ErrorCode.INTERNAL_PILOT_PROBLEM, f"{type(error).__name__}: {error}"))
