"""What harvester does with the direct jobs of one CE: claim, submit, observe, report, obey.

Every step may be cut off at any point by ``kill -9`` and is safe to run again: an order is written down before anything
else, *submitting* is before the CE hears of it, and what is not known is looked up by its mark. A server or CE that is down
makes a step skip what needs it and changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from common.clock import Clock
from common.errors import PilotageError
from common.states import FINAL_WORKER_STATES, WorkerState, allowed
from common.wire import Shape
from common.wire.direct import MOST_DIRECT, DirectInstruction, DirectPlace
from harvester.api import HttpServerApi
from harvester.backends.arc_direct import ArcDirect
from harvester.backends.arc_options import submit_options
from harvester.backends.base import BackendError, Observation, StatusOutcome, SubmitOutcome, SubmitResult, WorkerRef
from harvester.config import HarvesterConfig
from harvester.direct.book import Book, Run
from harvester.direct.home import Home
from harvester.direct.proxies import NoProxy, Proxies
from harvester.judge import judge
from harvester.outcome import Outcome
from harvester.store import Worker
from harvester.submission_ends import SubmissionEnds

log = logging.getLogger(__name__)

W = WorkerState
OBSERVED = frozenset({W.SUBMITTED, W.RUNNING, W.HELD, W.MISSING})
PER_ROUND = 100
"""Jobs that are claimed in one round."""
LOST = "lost:"
"""How the reason of a job begins of which the CE knows nothing any more."""

Person = Callable[[int, Path], ArcDirect]
"""Makes a person's side of the CE, from the number of the proxy and its file."""


class DirectLane:
    """The steps over the direct jobs of ``queues``, which share a CE. To be used by one thread at a time."""

    def __init__(
        self,
        queues: Sequence[str],
        places: Sequence[DirectPlace],
        config: HarvesterConfig,
        state_dir: Path,
        book: Book,
        server: HttpServerApi,
        clock: Clock,
        make: Person | None = None,
    ) -> None:
        self.queues = queues
        self._places = places
        self._config = config
        self._book = book
        self._server = server
        self._clock = clock
        folder = state_dir / "direct"
        self._proxies = Proxies(folder / "proxies", server, clock)
        self._home = Home(folder / "spool", server)
        self._options: Mapping[str, Any] = config.queues[queues[0]].options
        self._make = make or (lambda _, proxy: ArcDirect.create(self._options, proxy, state_dir, clock))
        self._people: dict[int, ArcDirect] = {}
        self._ends = SubmissionEnds(clock)
        self._denied_since: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The lane's queues."""
        return f"direct {', '.join(self.queues)}"

    def steps(self) -> list[Callable[[Outcome], None]]:
        """One round."""
        return [self.acquire, self.recover, self.submit, self.observe, self.report]

    # ------------------------------------------------------------ claiming and submission

    def acquire(self, done: Outcome) -> None:
        """Ask for orders, and write those down that are for this CE."""
        try:
            drained = self._book.drained()
            open_ = [place for place in self._places if place.queue not in drained]
            orders = self._server.direct_acquire(open_, PER_ROUND)
        except PilotageError as error:
            done.note("no direct jobs", error)
            return
        self._book.plan([each for each in orders if each.queue in self.queues], self._clock.now())

    def recover(self, done: Outcome) -> None:
        """Find out by their marks what became of jobs whose submission was not answered."""
        unanswered = self._runs([W.SUBMITTING])
        self._ends.keep(run.mark for run in unanswered)
        for proxy_id, runs in _by_person(unanswered).items():
            person = self._person(proxy_id, runs, done)
            if person is None:
                continue
            marks = [run.mark for run in runs]
            # As the look begins: what came to the CE while it lasted may not be in it.
            settled = self._ends.settled(marks, person.settle_s)
            try:
                found = person.find(marks)
            except BackendError as error:
                done.problems.append(f"{self.name}: jobs can't be looked up: {error}")
                continue
            for run in runs:
                ref = found.get(run.mark)
                if ref is not None:
                    self._complete(person, run, ref.batch_id, done, again=True)
                elif run.mark in settled:
                    self._move(run, W.PLANNED, reason="it never reached the CE")

    def submit(self, done: Outcome) -> None:
        """Submit the planned jobs; of those whose end was asked for meanwhile only that is written down."""
        planned = self._runs([W.PLANNED])
        for run in planned:
            if run.cancel:
                self._move(run, W.CANCELLED, reason="cancelled before it was submitted", cleaned=True)
        for proxy_id, runs in _by_person(run for run in planned if not run.cancel).items():
            person = self._person(proxy_id, runs, done)
            if person is not None:
                self._submit_all(person, runs, done)

    def _submit_all(self, person: ArcDirect, runs: Sequence[Run], done: Outcome) -> None:
        try:
            person.prepare()
        except BackendError as error:
            done.problems.append(f"{self.name}: nothing can be submitted: {error}")
            return
        for run in runs:
            intended = self._move(run, W.SUBMITTING)
            queue = submit_options(self._config.queues[run.queue].submit).queue or ""
            try:
                outcome = person.submit(run.mark, run.description, run.language, queue)
            except BackendError as error:
                outcome = SubmitOutcome(run.mark, SubmitResult.UNKNOWN, reason=str(error))
            finally:
                self._ends.note([run.mark])
            if outcome.result is SubmitResult.ACCEPTED:
                done.submitted += 1
                self._complete(person, intended, outcome.batch_id, done)
            elif outcome.result is SubmitResult.REFUSED:
                done.refused += 1
                self._move(intended, W.FAILED, reason=outcome.reason, cleaned=True)
            else:
                # It is looked up by its mark; the others wait, as the CE does not answer.
                done.problems.append(f"{self.name}: no answer to a submission: {outcome.reason}")
                return

    def _complete(self, person: ArcDirect, run: Run, batch_id: str, done: Outcome, *, again: bool = False) -> None:
        """A job is there: it gets its files, and with them it is submitted; one that is to be ended needs none.

        ``again``: it may have them already.
        """
        try:
            if run.files and not run.cancel and (not again or person.waits_for_input(batch_id)):
                for file in run.files:
                    self._home.give(run.mark, file.path, lambda path, source: person.upload(batch_id, path, source))
        except (BackendError, PilotageError, OSError) as error:
            # Its files follow when it is looked up by its mark.
            done.problems.append(f"{self.name}: job {run.mark} lacks its files: {error}")
            return
        self._move(run, W.SUBMITTED, batch_id=batch_id)

    # ------------------------------------------------------------ states

    def observe(self, done: Outcome) -> None:
        """Ask for the status of all jobs that are there, person by person."""
        for proxy_id, runs in _by_person(self._runs(OBSERVED)).items():
            person = self._person(proxy_id, runs, done)
            if person is None:
                continue
            try:
                outcomes = person.status([WorkerRef(run.mark, run.batch_id) for run in runs])
            except BackendError as error:
                done.problems.append(f"{self.name}: no status: {error}")
                continue
            changed = [new for run in runs if (new := self._judged(run, outcomes.get(run.mark))) is not None]
            self._write(changed)

    def _judged(self, run: Run, outcome: StatusOutcome | None) -> Run | None:
        """A job as a status makes it; None where it stays as it is."""
        if outcome is None or outcome.observation is Observation.UNKNOWN:
            return None
        now = self._clock.now()
        change = judge(_as_worker(run), outcome, self._config.denials)
        if outcome.observation is not Observation.DENIED:
            self._denied_since.pop(run.mark, None)
        elif run.state is W.MISSING:
            since = self._denied_since.setdefault(run.mark, self._clock.monotonic())
            if self._clock.monotonic() - since >= self._config.lost_after_s:
                return replace(run, state=W.FAILED, reason=f"{LOST} {run.reason}", updated=now, cleaned=True)
        told = replace(run, native=outcome.native or run.native, host=outcome.host or run.host)
        if change is None:
            return told if told != run else None
        return replace(
            told,
            state=change.target,
            reason=change.reason if change.target is not run.state else run.reason,
            exit_code=change.exit_code if change.target in FINAL_WORKER_STATES else run.exit_code,
            missing_count=change.missing_count,
            updated=now,
        )

    # ------------------------------------------------------------ reports, and what follows

    def report(self, done: Outcome) -> None:
        """Tell the server of all jobs, do what it says, and tell it of those with which something was done."""
        changed = self._tell(self._runs(WorkerState), done)
        if changed and not done.server_down:
            marks = set(changed)
            self._tell([run for run in self._runs(WorkerState) if run.mark in marks], done)
        self._proxies.sweep(self._book.proxies())

    def _tell(self, runs: Sequence[Run], done: Outcome) -> list[str]:
        """The marks of those with which something was done."""
        changed: list[str] = []
        for start in range(0, len(runs), MOST_DIRECT):
            part = {run.mark: run for run in runs[start : start + MOST_DIRECT]}
            try:
                outcomes = self._server.direct_report([run.report() for run in part.values()])
            except PilotageError as error:
                done.note("direct jobs can't be reported", error)
                return changed
            done.problems += [
                f"the server refuses that job {each.mark} is {part[each.mark].state.value}: {each.reason}"
                for each in outcomes
                if not each.accepted
            ]
            wanted: dict[DirectInstruction, list[Run]] = {}
            for each in outcomes:
                wanted.setdefault(each.instruction, []).append(part[each.mark])
            self._book.forget([run.mark for run in wanted.get(DirectInstruction.FORGET, [])])
            changed += self._kill(wanted.get(DirectInstruction.KILL, []), done)
            changed += self._fetch(wanted.get(DirectInstruction.FETCH, []), done)
            changed += self._clean(wanted.get(DirectInstruction.CLEAN, []), done)
        return changed

    def _kill(self, runs: Sequence[Run], done: Outcome) -> list[str]:
        flagged = [run if run.cancel else replace(run, cancel=True) for run in runs]
        self._write([run for run, before in zip(flagged, runs) if run is not before])
        changed = []
        for run in flagged:
            if run.state is W.PLANNED:
                self._move(run, W.CANCELLED, reason="cancelled before it was submitted", cleaned=True)
                changed.append(run.mark)
        for proxy_id, theirs in _by_person(run for run in flagged if run.state in OBSERVED and not run.killed).items():
            person = self._person(proxy_id, theirs, done)
            refused = self._asked(person, theirs, lambda each, refs: each.kill(refs), "ended", done)
            taken = [replace(run, killed=True) for run in theirs if refused is not None and run.mark not in refused]
            self._write(taken)
            changed += [run.mark for run in taken]
        return changed

    def _clean(self, runs: Sequence[Run], done: Outcome) -> list[str]:
        changed = []
        for proxy_id, theirs in _by_person(run for run in runs if not run.cleaned).items():
            refused: Mapping[str, str] | None = {}
            there = [run for run in theirs if run.batch_id]
            if there:
                person = self._person(proxy_id, there, done)
                refused = self._asked(person, there, lambda each, refs: each.clean(refs), "cleaned", done)
            # What can't be cleaned for so long the CE removes by itself.
            old = self._clock.now() - self._config.keep_ended_s
            gone = [run for run in theirs if run.updated < old or (refused is not None and run.mark not in refused)]
            self._write([replace(run, cleaned=True) for run in gone])
            changed += [run.mark for run in gone]
        return changed

    def _asked(
        self,
        person: ArcDirect | None,
        runs: Sequence[Run],
        ask: Callable[[ArcDirect, list[WorkerRef]], dict[str, str]],
        word: str,
        done: Outcome,
    ) -> dict[str, str] | None:
        """Why not, by mark; None when nobody could be asked."""
        if person is None:
            return None
        try:
            refused = ask(person, [WorkerRef(run.mark, run.batch_id) for run in runs])
        except BackendError as error:
            done.problems.append(f"{self.name}: jobs can't be {word}: {error}")
            return None
        done.problems += [f"{self.name}: job {mark} can't be {word}: {why}" for mark, why in refused.items()]
        return refused

    def _fetch(self, runs: Sequence[Run], done: Outcome) -> list[str]:
        changed = []
        for run in runs:
            if run.cleaned or not run.batch_id:
                # Nothing is left of it, or it never got there.
                self._write([replace(run, results=run.state is not W.FINISHED, cleaned=True)])
                changed.append(run.mark)
                continue
            person = self._person(run.proxy_id, [run], done)
            if person is None:
                continue
            try:
                left_out = self._home.bring(person, run.mark, run.batch_id)
            except (BackendError, PilotageError, OSError) as error:
                done.problems.append(f"{self.name}: what job {run.mark} left can't be fetched: {error}")
                continue
            if left_out is None:
                self._write([replace(run, results=run.state is not W.FINISHED, cleaned=True)])
            else:
                self._write([replace(run, results=not left_out, left_out=left_out)])
            changed.append(run.mark)
        return changed

    # ------------------------------------------------------------ books and people

    def _runs(self, states: Iterable[WorkerState]) -> list[Run]:
        return self._book.all(self.queues, frozenset(states))

    def _write(self, runs: Sequence[Run]) -> None:
        if runs:
            self._book.write(runs)

    def _move(self, run: Run, target: WorkerState, reason: str = "", **more: Any) -> Run:
        if not allowed(run.state, target):
            raise AssertionError(f"a job can't go from {run.state} to {target}")
        moved = replace(run, state=target, reason=reason[:4096], updated=self._clock.now(), **more)
        self._book.write([moved])
        log.info("direct job %s: %s -> %s%s", run.mark, run.state.value, target.value, f" ({reason})" if reason else "")
        return moved

    def _person(self, proxy_id: int, runs: Sequence[Run], done: Outcome) -> ArcDirect | None:
        """A person's side of the CE; None, noted, where nobody can act for the person now."""
        try:
            proxy = self._proxies.get(proxy_id)
        except (NoProxy, OSError) as error:
            done.problems.append(f"{self.name}: {len(runs)} jobs wait for a proxy: {error}")
            return None
        if proxy_id not in self._people:
            self._people[proxy_id] = self._make(proxy_id, proxy)
        return self._people[proxy_id]


def _by_person(runs: Iterable[Run]) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run.proxy_id, []).append(run)
    return found


def _as_worker(run: Run) -> Worker:
    return Worker(
        mark=run.mark,
        queue=run.queue,
        state=run.state,
        shape=Shape(),
        created=run.created,
        updated=run.updated,
        batch_id=run.batch_id,
        missing_count=run.missing_count,
        cancel=run.cancel,
        reason=run.reason,
    )
