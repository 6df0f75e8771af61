"""What the random histories know beside the server: what was accepted, and when each pilot was heard of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar

from hypothesis.stateful import RuleBasedStateMachine

from common.clock import FrozenClock
from common.states import FINAL_JOB_STATES, JobState, TaskState, UnitState
from common.wire import Assignment, FinishRequest, OutputRole, WorkflowRequest
from server.catalogs.registration import FakeRegistrar
from server.dispatch.heartbeat import write_heard
from server.store.codes import OutputState, PilotState
from tests.integration.server import histories_books as books
from tests.integration.server.harness import Pilot, Refused, Site

CLAIMABLE = {TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING}
MAX_TASKS = 8
T = TypeVar("T")


class Held:
    """A job as its pilot knows it."""

    def __init__(self, pilot: Pilot, job: Assignment) -> None:
        self.pilot = pilot
        self.job = job
        self.ids = [each.unit_id for each in job.units]
        self.names = 0
        self.last: Optional[FinishRequest] = None
        """The confirmation that was accepted."""


class Model(RuleBasedStateMachine):
    """The model keeps what was accepted, and when each pilot was heard of.

    Two web processes serve the same database; a call goes to :attr:`site`, its repeat often to the other one.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.url = url
        self.site = Site(url, self.clock)
        self.other = self.another()
        self.fake = FakeRegistrar()
        self.pilots: list[Pilot] = []
        self.heard: dict[int, float] = {}
        self.ended_workers: set[str] = set()
        self.up_since = self.clock.now()
        self.jobs: list[Held] = []
        self.over: list[Held] = []
        self.workflows: list[int] = []
        self.requests: dict[int, WorkflowRequest] = {}
        self.tasks: list[int] = []
        self.deleted: set[int] = set()
        self.parents: dict[int, list[int]] = {}
        """Tasks whose units are outputs of others, and those."""
        self.cut: set[int] = set()
        """Tasks that were told to end before their input did."""
        self.open: dict[int, set[str]] = {}
        """Tasks with an open input, and the files that they were given, where that is known."""
        self.opened: set[int] = set()
        """Tasks with an input that has to be closed."""
        self.inputs: dict[int, int] = {}
        """How many units the input of each task makes, where it is known."""
        self.processed: set[tuple[int, int]] = set()
        """Units and jobs that were confirmed to have processed them."""
        self.promised: dict[int, set[str]] = {}
        """The outputs that the accepted confirmation of each job listed."""
        self.done: set[tuple[int, int]] = set()
        """Units and generations that were done."""
        self.before = books.Books()
        self.small = False
        """Whether everything is done in small slices; then a repeated command moves more units than the first."""
        self.patches: list[Any] = []

    # ------------------------------------------------------------ the two web processes

    def another(self) -> Site:
        """Another web process, which knows nothing yet."""
        made = Site(self.url, self.clock)
        made._numbers = self.site._numbers  # marks and request ids are numbered once for all
        return made

    def swap(self) -> None:
        """From now on the other process is asked."""
        self.site, self.other = self.other, self.site
        for each in self.pilots:
            each.site = self.site
        for held in (*self.jobs, *self.over):
            held.pilot.site = self.site

    def restart(self) -> None:
        """The process that is asked is ended and started again."""
        write_heard(self.site.dispatcher)
        old, self.site = self.site, self.another()
        old.database.close()
        self.swap()
        self.swap()

    # ------------------------------------------------------------ how

    def twice(self, make: Callable[[], T]) -> T:
        """A call whose reply was lost, and its repeat to another process, which must be answered alike."""
        first = make()
        self.swap()
        assert make() == first
        return first

    def conflicts(self, make: Callable[[], Any]) -> bool:
        """A call, made twice, that the state of things may not allow; whether it did not."""
        try:
            first = make()
        except Refused as refused:
            assert refused.status == 409, refused
            return True
        self.swap()
        again = make()
        assert again.state == first.state
        assert self.small or again.units == first.units
        return False

    def call(self, pilot: Pilot, make: Callable[[], T]) -> T:
        """A pilot's call; its token is renewed when it has expired."""
        if self.clock.now() > pilot.grant.token_expires - 60:
            pilot.grant.token, pilot.grant.token_expires = self.site.issuer.mint_pilot(pilot.id, 3600)
        return make()

    def forgotten(self, held: Held) -> bool:
        """Whether a job's row has gone: its workflow is deleted, or it is in the archive."""
        return held.job.task_id in self.deleted or held.job.job_id in books.read(self.site.database).archived

    def or_gone(self, held: Held, make: Callable[[], T]) -> Optional[T]:
        """A call for a job; None when it is gone, which must be true."""
        try:
            return self.call(held.pilot, make)
        except Refused as refused:
            assert refused.status == 410 or (refused.status == 404 and self.forgotten(held)), refused
            if held.job.task_id not in self.deleted:
                assert books.read(self.site.database).jobs[held.job.job_id].state in FINAL_JOB_STATES
            self.jobs.remove(held)
            self.over.append(held)
            return None

    def confirm(self, held: Held, request: FinishRequest, repeats: int) -> None:
        """The end of a job, told ``repeats`` times more than once, to one process and the other."""
        reply = self.or_gone(held, lambda: held.pilot.finish(held.job, request))
        if reply is None:
            return
        self.jobs.remove(held)
        self.over.append(held)
        for _ in range(repeats):
            self.swap()
            assert self.call(held.pilot, lambda: held.pilot.finish(held.job, request)) == reply
        held.last = request
        kept = {UnitState.DONE, UnitState.OUTPUTTING}
        mine = {int(each) for each, state in reply.units.items() if state in kept}
        assert not mine or request.state == JobState.FINISHED
        self.processed |= {(each, held.job.job_id) for each in mine}
        now = books.read(self.site.database)
        for each, state in reply.units.items():
            assert now.units[int(each)].state == state, "the server said otherwise"
        if mine:
            self.promised[held.job.job_id] = {each.did for each in request.outputs}
            known = {each.did: each.state for each in now.outputs.values()}
            assert {known[each.did] for each in request.outputs} <= {OutputState.CONFIRMED, OutputState.UPLOADED}

    # ------------------------------------------------------------ what always holds

    def look_at_the_books(self) -> None:
        """Read everything, and judge it by what was before and by what the model knows."""
        now = books.read(self.site.database)
        books.check(now, self.deleted)
        books.check_step(self.before, now, self.deleted)
        self._nothing_is_done_twice_or_unasked(now)
        self._no_pilot_is_lost_too_early(now)
        self._visible_is_what_the_winners_promised(now)
        for task, n in self.inputs.items():
            made = sum(1 for each in now.units.values() if each.task == task)
            assert made <= n or task in self.deleted, f"task {task} has more units than its input"
        self._forget_pilots(now)
        self.before = now

    def write_heard(self) -> None:
        """What the web side's threads do: whom they heard of is written a moment later, before agents look for silence."""
        for each in (self.site, self.other):
            write_heard(each.dispatcher)

    def _nothing_is_done_twice_or_unasked(self, now: books.Books) -> None:
        for unit_id, each in now.units.items():
            if each.state == UnitState.DONE:
                assert (unit_id, each.job) in self.processed, f"unit {unit_id} is done, and nobody said so"
                was = self.before.units.get(unit_id)
                if was is None or was.state != UnitState.DONE or was.generation != each.generation:
                    assert (unit_id, each.generation) not in self.done, f"unit {unit_id} was done twice"
                    self.done.add((unit_id, each.generation))

    def _no_pilot_is_lost_too_early(self, now: books.Books) -> None:
        marks = {each.id: each.worker for each in self.pilots}
        knobs = self.site.dispatcher.looks.get().knobs
        for pilot, state in now.pilots.items():
            if state == PilotState.LOST and self.before.pilots.get(pilot) == PilotState.ACTIVE:
                ended = marks.get(pilot) in self.ended_workers
                limit = knobs.worker_end_grace_s if ended else knobs.heartbeat_timeout_s
                silent = self.clock.now() - max(self.heard[pilot], self.up_since)
                assert silent >= min(limit, knobs.heartbeat_timeout_s), f"pilot {pilot} was lost after {silent} s"

    def _visible_is_what_the_winners_promised(self, now: books.Books) -> None:
        winners = {each.job for each in now.units.values() if each.state == UnitState.DONE}
        visible: dict[int, set[str]] = {job: set() for job in winners if job is not None}
        for each in now.outputs.values():
            if each.state == OutputState.CONFIRMED and each.role == OutputRole.OUTPUT.value:
                visible.setdefault(each.job, set()).add(each.did)
        for job, dids in visible.items():
            if now.jobs[job].task in self.deleted:
                continue
            logs = {each.did for each in now.outputs.values() if each.job == job and each.role == OutputRole.LOG.value}
            assert dids == self.promised[job] - logs, f"job {job} promised other outputs than are visible"

    def _forget_pilots(self, now: books.Books) -> None:
        """Pilots that the server has forgotten, long after their end, are asked about no more."""
        known = set(now.pilots)
        self.pilots = [each for each in self.pilots if each.id in known]
        self.jobs = [each for each in self.jobs if each.pilot.id in known]
        self.over = [each for each in self.over if each.pilot.id in known]
