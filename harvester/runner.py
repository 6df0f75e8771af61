"""Runs the steps of a cycle in threads: one for the server's part, and one for each lane, each on its own timer.

A lane whose batch system hangs holds up nobody else, and a stop doesn't wait for it: every step may be cut off.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from common.clock import Clock
from harvester.cycle import Cycle, run_steps
from harvester.direct.lane import DirectLane
from harvester.lane import Lane
from harvester.outcome import Outcome

log = logging.getLogger(__name__)

SERVER = "server"
"""The name of the server's part."""
HANGS_S = 120.0
"""How long a part may be at work before that is a problem to tell."""


class Totals(NamedTuple):
    """What was done since the start."""

    planned: int = 0
    submitted: int = 0
    refused: int = 0


class PartState(msgspec.Struct, frozen=True):
    """A part (the server's, or the lane of some queues): its last round, and since when it is ``busy`` with the present
    one, if it is. ``started`` and ``busy`` are in seconds since the epoch."""

    name: str
    started: float
    duration_s: float
    problems: list[str] = []
    busy: float | None = None


class Runner:
    """Runs a cycle until it is told to stop. ``failed`` is called, once, when nothing is safe any more; ``told`` after
    each round of the server's part."""

    def __init__(
        self,
        cycle: Cycle,
        cycle_s: float,
        clock: Clock,
        failed: Callable[[], None],
        told: Callable[[], None],
        direct: Sequence[DirectLane] = (),
    ) -> None:
        self._cycle = cycle
        self._cycle_s = cycle_s
        self._clock = clock
        self._failed = failed
        self._told = told
        self._stop = threading.Event()
        self._parts = [
            _Part(SERVER, self._serve),
            *(_Part(lane.name, self._lane_of(lane)) for lane in cycle.lanes),
            *(_Part(lane.name, self._direct_of(lane)) for lane in direct),
        ]
        self.failure: Exception | None = None

    def start(self) -> None:
        """Start the threads."""
        for part in self._parts:
            part.thread = threading.Thread(target=self._run, args=(part,), name=part.name, daemon=True)
            part.thread.start()

    def stop(self, grace_s: float) -> list[str]:
        """Have all end between two steps; the names of those that haven't within the grace."""
        self._stop.set()
        for part in self._parts:
            part.wake.set()
        give_up = self._clock.monotonic() + grace_s
        for part in self._parts:
            if part.thread is not None:
                part.thread.join(max(0.0, give_up - self._clock.monotonic()))
        return [part.name for part in self._parts if part.thread is not None and part.thread.is_alive()]

    def states(self) -> list[PartState]:
        """Each part's last round; one that is at work for too long has that as a problem."""
        return [part.state(self._clock.monotonic(), self._clock.now()) for part in self._parts]

    def totals(self) -> Totals:
        """What all parts have done together."""
        return Totals(*(sum(counts) for counts in zip(*(part.totals for part in self._parts))))

    def _serve(self, done: Outcome, due: bool) -> None:
        if due:
            steps = [
                self._cycle.report,
                self._cycle.commands.obey,
                self._cycle.provision,
                self._cycle.announce,
                self._cycle.report_logs,
            ]
            run_steps(steps, self._stop, done)
            for part in self._parts[1:]:
                part.wake.set()

    def _lane_of(self, lane: Lane) -> Callable[[Outcome, bool], None]:
        def run(done: Outcome, due: bool) -> None:
            looks = [lane.recover, lane.observe, lane.cancel, lane.measure, lane.tidy] if due else []
            run_steps([*looks, lane.withdraw, lane.submit, *([lane.bring_home] if due else [])], self._stop, done)

        return run

    def _direct_of(self, lane: DirectLane) -> Callable[[Outcome, bool], None]:
        def run(done: Outcome, due: bool) -> None:
            if due:
                run_steps(lane.steps(), self._stop, done)

        return run

    def _run(self, part: _Part) -> None:
        next_at = self._clock.monotonic()
        while not self._stop.is_set():
            began = self._clock.monotonic()
            due = began >= next_at
            if due:
                next_at = began + self._cycle_s
            try:
                self._round(part, due)
            except Exception as failure:  # noqa: BLE001 - handed to the main thread, which raises it
                self._end(failure)
                return
            part.wake.wait(max(0.0, next_at - self._clock.monotonic()))
            part.wake.clear()

    def _round(self, part: _Part, due: bool) -> None:
        started, began = self._clock.now(), self._clock.monotonic()
        part.busy = began
        done = Outcome()
        try:
            part.work(done, due)
        finally:
            part.busy = None
        part.note(PartState(part.name, started, self._clock.monotonic() - began, done.problems), due)
        part.totals = Totals(*map(sum, zip(part.totals, (done.planned, done.submitted, done.refused))))
        if done.planned or done.submitted:
            log.info("planned %d workers, submitted %d", done.planned, done.submitted)
        if part.name == SERVER:
            self._told()

    def _end(self, failure: Exception) -> None:
        if not self._stop.is_set():
            self.failure = failure
            self._failed()


class _Part:
    """A thread's work, and how its last round went."""

    def __init__(self, name: str, work: Callable[[Outcome, bool], None]) -> None:
        self.name = name
        self.work = work
        self.wake = threading.Event()
        self.thread: threading.Thread | None = None
        self.busy: float | None = None
        self.totals = Totals()
        self._looked = self._last = PartState(name, 0.0, 0.0)
        self._told: Sequence[str] = ()

    def note(self, last: PartState, due: bool) -> None:
        """A round is over. What is found in between two that were due comes to the problems of the first."""
        if due:
            self._looked = last
        else:
            new = [problem for problem in last.problems if problem not in self._looked.problems]
            last = msgspec.structs.replace(self._looked, problems=[*self._looked.problems, *new])
        for problem in last.problems:
            if problem not in self._told:
                log.warning("%s", problem)
        if self._told and not last.problems:
            log.info("%s: all is well again", self.name)
        self._told = last.problems
        self._last = last

    def state(self, monotonic: float, now: float) -> PartState:
        """The last round, and the present one if it takes too long."""
        busy, last = self.busy, self._last
        if busy is None:
            return last
        problems = list(last.problems)
        if monotonic - busy >= HANGS_S:
            what = "the server" if self.name == SERVER else f"queue {self.name}: its batch system"
            problems.append(f"{what} has not answered for {monotonic - busy:.0f} s")
        return msgspec.structs.replace(last, problems=problems, busy=now - (monotonic - busy))
