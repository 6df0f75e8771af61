"""The state machine of random histories: people, pilots, harvester, catalogue and agents do what they may do.

Every call that changes something may be made twice, as after a lost reply; the second answer is the first one again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Optional, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import delete, update

from common.clock import FrozenClock
from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, FINAL_TASK_STATES, JobState, TaskState, UnitState, WorkerState
from common.wire import (
    Assignment,
    BadReplica,
    CloneRequest,
    CounterInput,
    FilesInput,
    FinishRequest,
    InputsRequest,
    Instruction,
    LimitRetry,
    MergeRule,
    MoreMemory,
    NoRetry,
    Registration,
    RetryAction,
    RetryCondition,
    RetryRule,
    StageInput,
    TaskChange,
    TaskCommand,
    TaskView,
    UnitOutcome,
    UnitResult,
    UnitsAcquireReply,
    UnitsAcquireRequest,
    UnitsReleaseReply,
    UnitsReleaseRequest,
    WorkerReport,
    WorkflowRequest,
    WorkflowView,
)
from server.agents import duties
from server.agents.duties import DUTIES, LIVENESS_GAP_S
from server.agents.registrar import carry_on
from server.catalogs.registration import Answer, FakeRegistrar, Outcome
from server.store import registrations
from server.store.codes import OutputState, PilotState
from server.store.schema import liveness, pilot_beat, pilot_report
from tests.integration.server import histories_books as books
from tests.integration.server.harness import Pilot, Refused, Site, file, files, stage

CODES = [None, 1305, 1106, 1099, 1103, 1200, 1201, 1331, 1404, 1407, 1098, 424242]
COMMANDS = [
    {"command": "pause"},
    {"command": "resume"},
    {"command": "retry"},
    {"command": "avalanche"},
    {"command": "restart"},
    {"command": "kill"},
    {"command": "finish"},
    {"command": "finish", "hard": True},
]
RULES: dict[str, RetryAction] = {
    "never": NoRetry(),
    "twice": LimitRetry(2),
    "memory": MoreMemory(cap_mb=3000, factor=1.5),
}
AWAY = {"sweep-unconfirmed", "register-outputs"}
"""Agents that need a storage or a catalogue: the one is not run, the other by a rule of its own."""
CLAIMABLE = {TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING}
MAX_TASKS = 8
PATIENT = 60
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


class Histories(RuleBasedStateMachine):
    """The model keeps what was accepted, and when each pilot was heard of."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.site = Site(url, self.clock)
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
        self.open: dict[int, set[str]] = {}
        """Tasks with an open input, and the files that they were given, where that is known."""
        self.opened: set[int] = set()
        """Tasks with an input that has to be closed."""
        self.inputs: dict[int, int] = {}
        """How many units the input of each task makes, where it is known."""
        self.processed: set[tuple[int, int]] = set()
        """Units and jobs that were confirmed to have processed them."""
        self.done: set[tuple[int, int]] = set()
        """Units and generations that were done."""
        self.before = books.Books()

    def teardown(self) -> None:
        try:
            if self.tasks:
                self.everything_ends()
        finally:
            self.site.database.close()

    # ------------------------------------------------------------ people

    @initialize()
    def begin(self) -> None:
        self.up()
        self.site.world(queues=("q", "r"), storages=("disk", "tape"))
        self.site.put_storage("booked", registration=Registration.SERVER, status="test")
        for knob, value in {"lost_pilots": 4, "preemptions": 6, "site_failures": 4}.items():
            self.site.turn(knob, value)
        self.pilots.append(self.registered("q", 2))

    def submitted(self, request: WorkflowRequest) -> None:
        request.request_id = f"submit-{self.site.number():06d}"
        self.taken(self.twice(lambda: self.site.user("POST", "/v1/workflows", request, WorkflowView)), request)

    def taken(self, view: WorkflowView, request: WorkflowRequest) -> None:
        """A workflow is there; its tasks have the input of ``request``."""
        self.workflows.append(view.id)
        self.tasks += [task.id for task in view.tasks]
        for task, each in zip(view.tasks, request.stages, strict=True):
            if isinstance(each.input, CounterInput):
                self.inputs[task.id] = each.input.count
            elif isinstance(each.input, FilesInput):
                self.inputs[task.id] = len(each.input.files) * (3 if each.input.events_per_unit else 1)
                if each.input.open:
                    self.opened.add(task.id)
                    self.open[task.id] = {one.did.removeprefix("data:") for one in each.input.files}
        self.requests[view.id] = request

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(
        count=st.integers(1, 9),
        per_job=st.integers(1, 4),
        attempts=st.integers(1, 3),
        shape=st.sampled_from(["one", "one", "merge", "chain"]),
        booked=st.sampled_from([None, None, Registration.SERVER]),
        scouts=st.booleans(),
    )
    def new_task(
        self, count: int, per_job: int, attempts: int, shape: str, booked: Optional[Registration], scouts: bool
    ) -> None:
        more: dict[str, Any] = {"max_attempts": attempts, "registration": booked}
        stages = [stage("make", count=count, files_per_job=per_job, **{**more, "scouts": scouts})]
        if shape != "one":
            stages.append(stage("merge", given=StageInput("make"), merge=MergeRule(2, 4), **more))
        if shape == "chain":
            stages.append(stage("look", given=StageInput("merge"), files_per_job=per_job, **more))
        self.submitted(WorkflowRequest(name="w", stages=stages))

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(count=st.integers(1, 5), per_job=st.integers(1, 3), more=st.booleans(), ranges=st.booleans())
    def new_task_over_files(self, count: int, per_job: int, more: bool, ranges: bool) -> None:
        names = [f"f{n}" for n in range(count)]
        given = files(*names, storages=("disk", "tape"), size=2**20, events=25 if ranges else None)
        given.open, given.events_per_unit = more, 10 if ranges else None
        self.submitted(WorkflowRequest(name="w", stages=[stage(given=given, files_per_job=per_job)]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), names=st.sets(st.sampled_from([f"f{n}" for n in range(12)]), min_size=1))
    def add_files(self, data: st.DataObject, names: set[str]) -> None:
        task = data.draw(st.sampled_from(sorted(self.open)))
        per_file = self.inputs[task] // len(self.open[task])
        listed = [file(each, "disk", size=2**20, events=25 if per_file > 1 else None) for each in sorted(names)]
        body = InputsRequest(listed)
        if self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}/inputs", body, TaskView)):
            assert self.before.tasks[task] in FINAL_TASK_STATES | {TaskState.FINISHING}
            return
        self.open[task] |= names
        self.inputs[task] = per_file * len(self.open[task])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def close_input(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.open)))
        self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}/inputs:close", None, TaskView))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), words=st.sampled_from(COMMANDS))
    def command(self, data: st.DataObject, words: dict[str, Any]) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        body = TaskCommand(**words)
        if words["command"] == "restart" and data.draw(st.booleans()):
            mine = [each for each, unit in self.before.units.items() if unit.task == task]
            body.units = data.draw(st.lists(st.sampled_from(mine), min_size=1, unique=True)) if mine else []
        self.conflicts(lambda: self.site.user("POST", f"/v1/tasks/{task}:command", body, TaskView))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), priority=st.integers(-10, 10), attempts=st.integers(1, 4))
    def change(self, data: st.DataObject, priority: int, attempts: int) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        body = TaskChange(priority=priority, max_attempts=attempts)
        self.conflicts(lambda: self.site.user("PATCH", f"/v1/tasks/{task}", body, TaskView))

    @precondition(lambda self: self.workflows and len(self.tasks) < MAX_TASKS)
    @rule(data=st.data())
    def clone(self, data: st.DataObject) -> None:
        workflow = data.draw(st.sampled_from(self.workflows))
        body = CloneRequest(request_id=f"clone-{self.site.number():06d}")
        view = self.twice(lambda: self.site.user("POST", f"/v1/workflows/{workflow}:clone", body, WorkflowView))
        before = self.site.user("GET", f"/v1/workflows/{workflow}", reply=WorkflowView).tasks
        self.taken(view, self.requests[workflow])
        for old, new in zip(before, view.tasks, strict=True):
            whole = sum(old.units.values()) == self.inputs.get(old.id)
            if old.id in self.opened:
                self.opened.add(new.id)
            if old.id in self.inputs and (whole or old.state not in FINAL_TASK_STATES | {TaskState.FINISHING}):
                self.inputs[new.id] = self.inputs[old.id]  # files that were added since are cloned, too
                if old.id in self.open:
                    self.open[new.id] = set(self.open[old.id])
            else:  # the original ended before all of its files were units: how many are cloned is not known
                self.inputs.pop(new.id, None)
                self.open.pop(new.id, None)

    @precondition(lambda self: self.workflows)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        workflow = data.draw(st.sampled_from(self.workflows))
        ids = {each.id for each in self.site.user("GET", f"/v1/workflows/{workflow}", reply=WorkflowView).tasks}
        path = f"/v1/workflows/{workflow}"
        call = partial(self.site.raw, "DELETE", path, token=self.site.token("user", "u"), query_string="force=true")
        answers = [call(), call()]
        assert answers[0].status_code == answers[1].status_code
        if answers[0].status_code == 409:
            assert any(self.before.tasks[each] not in FINAL_TASK_STATES for each in ids)
            return
        assert answers[0].status_code < 300, answers[0].text
        assert answers[0].content == answers[1].content
        self.workflows.remove(workflow)
        self.tasks = [each for each in self.tasks if each not in ids]
        for each in ids:
            self.open.pop(each, None)
        self.deleted |= ids

    # ------------------------------------------------------------ admins

    @rule(data=st.data(), name=st.sampled_from([*RULES, "q", "r"]))
    def admin(self, data: st.DataObject, name: str) -> None:
        """Retry rules come and go, queues are paused and opened again."""
        if name not in RULES:
            status = data.draw(st.sampled_from(["online", "online", "online", "paused", "draining", "offline"]))
            self.site.put_queue(name, status=status)
            return
        path = f"/v1/retry-rules/{name}"
        if data.draw(st.booleans()):
            when = RetryCondition(error_codes=[data.draw(st.sampled_from(["1305", "1..9999"]))])
            body = RetryRule(name=name, action=RULES[name], when=when)
            self.twice(lambda: self.site.admin("PUT", path, body, RetryRule))
        else:
            assert self.site.raw("DELETE", path, token=self.site.token("admin")).status_code in (204, 404)

    # ------------------------------------------------------------ pilots and workers

    def registered(self, queue: str, cores: int) -> Pilot:
        made = self.site.pilot(queue, cores=cores)
        self.heard[made.id] = self.clock.now()
        return made

    @precondition(lambda self: len(self.pilots) < 6)
    @rule(cores=st.integers(1, 3), queue=st.sampled_from("qqr"))
    def new_pilot(self, cores: int, queue: str) -> None:
        self.pilots.append(self.registered(queue, cores))

    @rule(data=st.data(), jobs=st.integers(1, 3), repeat=st.booleans())
    def acquire(self, data: st.DataObject, jobs: int, repeat: bool) -> None:
        pilot = data.draw(st.sampled_from(self.pilots))
        word = f"request-{self.site.number():06d}"
        reply = self.call(pilot, lambda: pilot.ask(jobs, word))
        self.heard[pilot.id] = self.clock.now()
        assert len(reply.jobs) <= jobs
        now = books.read(self.site.database)
        for each in reply.jobs:
            assert self.before.tasks[each.task_id] in CLAIMABLE, "a task that may not run gave a job"
            assert now.jobs[each.job_id].pilot == pilot.id
            for unit in each.units:
                assert now.units[unit.unit_id].job == each.job_id
                assert now.units[unit.unit_id].state == UnitState.RESERVED
                assert self.before.units[unit.unit_id].state == UnitState.READY
        if repeat and reply.jobs:
            assert self.call(pilot, lambda: pilot.ask(jobs, word)).jobs == reply.jobs
        self.jobs += [Held(pilot, each) for each in reply.jobs]

    @rule(data=st.data(), jobs=st.integers(1, 4), outputs=st.integers(0, 2))
    def whole_jobs(self, data: st.DataObject, jobs: int, outputs: int) -> None:
        """A pilot takes a few jobs, one after another, and all goes well."""
        pilot = data.draw(st.sampled_from(self.pilots))
        for _ in range(jobs):
            for job in self.call(pilot, pilot.ask).jobs:
                held = Held(pilot, job)
                self.jobs.append(held)
                self.confirm(held, pilot.success(job, *[f"w{n}" for n in range(outputs)]), 1)
            self.heard[pilot.id] = self.clock.now()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), count=st.integers(1, 3))
    def acquire_units(self, data: st.DataObject, count: int) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        path = f"/v1/jobs/{held.job.job_id}/units:acquire"
        body = UnitsAcquireRequest(f"request-{self.site.number():06d}", count)
        first: Optional[UnitsAcquireReply] = None
        for _ in range(2):
            reply = self.or_gone(held, lambda: held.pilot.post(path, body, UnitsAcquireReply))
            if reply is None:
                return
            assert first is None or reply == first
            first = reply
            if reply.units:
                assert self.before.tasks[held.job.task_id] in CLAIMABLE, "a task that may not run gave units"
            held.ids += [each.unit_id for each in reply.units if each.unit_id not in held.ids]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        if not held.ids:
            return
        ids = data.draw(st.lists(st.sampled_from(held.ids), min_size=1, unique=True))
        results = [UnitResult(each, data.draw(st.sampled_from(UnitOutcome))) for each in ids]
        path = f"/v1/jobs/{held.job.job_id}/units:release"
        body = UnitsReleaseRequest(results)
        first: Optional[UnitsReleaseReply] = None
        for _ in range(2):
            reply = self.or_gone(held, lambda: held.pilot.post(path, body, UnitsReleaseReply))
            if reply is None:
                return
            assert first is None or reply == first
            first = reply
        kept = {UnitState.OUTPUTTING, UnitState.RESERVED}
        assert first is not None
        held.ids = [each for each in held.ids if first.states.get(str(each), UnitState.RESERVED) in kept]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), state=st.sampled_from([JobState.STARTING, JobState.RUNNING, JobState.HOLDING]))
    def heartbeat(self, data: st.DataObject, state: JobState) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        mine = [each.job for each in self.jobs if each.pilot is held.pilot]
        replies = self.call(held.pilot, lambda: held.pilot.beat(*mine, state=state)).jobs
        self.heard[held.pilot.id] = self.clock.now()
        for each in replies:
            alive = self.site.job(each.job_id).state not in FINAL_JOB_STATES
            assert alive == (each.instruction != Instruction.UNKNOWN)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Uploads begin; the pilot may die before it confirms."""
        held = data.draw(st.sampled_from(self.jobs))
        first = self.or_gone(held, lambda: held.pilot.record(held.job, "early"))
        if first is not None:
            assert self.call(held.pilot, lambda: held.pilot.record(held.job, "early")) == first

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), outputs=st.integers(0, 2), repeats=st.integers(0, 2))
    def finish(self, data: st.DataObject, outputs: int, repeats: int) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        names = [f"o{held.names + n}" for n in range(outputs)]
        held.names += outputs
        ids = data.draw(st.lists(st.sampled_from(held.ids), unique=True)) if held.ids else []
        request = self.or_gone(held, lambda: held.pilot.success(held.job, *names, units=ids))
        if request is not None:
            for each in request.units:
                each.outcome = data.draw(st.sampled_from([UnitOutcome.PROCESSED] * 3 + list(UnitOutcome)))
            self.confirm(held, request, repeats)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), code=st.sampled_from(CODES), bad=st.booleans(), repeats=st.integers(0, 2))
    def fail(self, data: st.DataObject, code: Optional[int], bad: bool, repeats: int) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        reports = []
        if bad:
            where = data.draw(st.sampled_from(["disk", "tape"]))
            named = [each.file.did for each in held.job.units if each.file]
            reports = [BadReplica(did, where, ErrorCode.MISSING_INPUT) for did in named]
        self.confirm(held, FinishRequest(JobState.FAILED, error_code=code, bad_replicas=reports), repeats)

    @precondition(lambda self: self.over)
    @rule(data=st.data())
    def finish_once_more(self, data: st.DataObject) -> None:
        """A job that is over, however it ended: repeated words are answered alike, others change nothing."""
        held = data.draw(st.sampled_from(self.over))
        late = FinishRequest(JobState.FINISHED, exit_code=77)
        gone = held.job.task_id in self.deleted
        for request in filter(None, (held.last, late)):
            try:
                self.call(held.pilot, partial(held.pilot.finish, held.job, request))
                assert request is held.last
            except Refused as refused:
                assert refused.status == (409 if held.last else 410) or (gone and refused.status in (404, 410))
                assert request is not held.last or gone

    @precondition(lambda self: len(self.pilots) > 1)
    @rule(data=st.data())
    def a_pilot_leaves(self, data: st.DataObject) -> None:
        pilot = data.draw(st.sampled_from(self.pilots))
        self.pilots.remove(pilot)
        for _ in range(2):
            self.call(pilot, pilot.end)

    @precondition(lambda self: len(self.pilots) > 1)
    @rule(data=st.data(), state=st.sampled_from([WorkerState.FINISHED, WorkerState.FAILED]))
    def a_worker_ends(self, data: st.DataObject, state: WorkerState) -> None:
        pilot = data.draw(st.sampled_from(self.pilots))
        report = WorkerReport(pilot.worker, pilot.grant.queue.name, state)
        assert [self.site.report(report).workers[0].accepted for _ in range(2)][0] or pilot.worker in self.ended_workers
        self.ended_workers.add(pilot.worker)

    # ------------------------------------------------------------ time, agents, accidents

    def up(self) -> None:
        self.site.say_up()

    def later(self, seconds: float) -> None:
        """Time goes by; the web side is up all the while."""
        self.clock.advance(seconds)
        with self.site.database.write() as connection:
            connection.execute(update(liveness).values(seen=self.clock.now()))

    @rule(seconds=st.sampled_from([1, 30, 700, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.later(seconds)

    @rule(
        what=st.sampled_from(["down", "set back", "forgotten"]),
        seconds=st.sampled_from([5, 20, 5000]),
        reap=st.booleans(),
    )
    def accident(self, what: str, seconds: int, reap: bool) -> None:
        """The server is down for a while, its clock is set back, or a crash empties the tables that are not logged."""
        if what == "down":
            self.clock.advance(seconds)
            self.up()
            if seconds > LIVENESS_GAP_S:
                self.up_since = self.clock.now()
        elif what == "set back":
            self.clock.set_back(seconds)
            self.up()
            self.up_since = min(self.up_since, self.clock.now())
            self.heard = {pilot: min(heard, self.clock.now()) for pilot, heard in self.heard.items()}
        else:
            with self.site.database.write() as connection:
                connection.execute(delete(pilot_beat))
                connection.execute(delete(pilot_report))
            self.heard = dict.fromkeys(self.heard, self.clock.now())
        if reap:
            duties.reap(self.site.dispatcher)

    @rule(data=st.data(), whole=st.booleans())
    def agents(self, data: st.DataObject, whole: bool) -> None:
        chosen = [each for each in DUTIES if each.name not in AWAY]
        if not whole:
            chosen = data.draw(st.lists(st.sampled_from(chosen), min_size=1, max_size=4))
        for duty in chosen:
            duty.work(self.site.dispatcher)
        if whole:
            now = books.read(self.site.database)
            for job_id, job in now.jobs.items():
                alive = job.state not in FINAL_JOB_STATES and job.confirmed is None
                assert not alive or now.pilots[job.pilot] == PilotState.ACTIVE, f"job {job_id} lives without a pilot"

    @rule(answer=st.sampled_from([None, None, Outcome.AGAIN, Outcome.REFUSED, "away"]))
    def registrar(self, answer: Any) -> None:
        self.fake.away = answer == "away"
        self.fake.judge = lambda call, _: Answer(answer, "so") if isinstance(answer, Outcome) else None
        self.register_outputs()

    def register_outputs(self) -> int:
        with self.site.database.read() as connection:
            waiting = registrations.due(connection, self.clock.now(), 100)
        return carry_on(self.site.dispatcher, self.fake, waiting) if waiting else 0

    # ------------------------------------------------------------ how

    def twice(self, make: Callable[[], T]) -> T:
        """A call whose reply was lost, and its repeat, which must be answered alike."""
        first = make()
        assert make() == first
        return first

    def conflicts(self, make: Callable[[], Any]) -> bool:
        """A call, made twice, that the state of things may not allow; whether it did not."""
        try:
            first = make()
        except Refused as refused:
            assert refused.status == 409, refused
            return True
        again = make()
        assert (again.state, again.units) == (first.state, first.units)
        return False

    def call(self, pilot: Pilot, make: Callable[[], T]) -> T:
        """A pilot's call; its token is renewed when it has expired."""
        if self.clock.now() > pilot.grant.token_expires - 60:
            pilot.grant.token, pilot.grant.token_expires = self.site.issuer.mint_pilot(pilot.id, 3600)
        return make()

    def or_gone(self, held: Held, make: Callable[[], T]) -> Optional[T]:
        """A call for a job; None when it is gone, which must be true."""
        try:
            return self.call(held.pilot, make)
        except Refused as refused:
            gone = held.job.task_id in self.deleted and refused.status == 404
            assert refused.status == 410 or gone, refused
            assert gone or self.site.job(held.job.job_id).state in FINAL_JOB_STATES
            self.jobs.remove(held)
            self.over.append(held)
            return None

    def confirm(self, held: Held, request: FinishRequest, repeats: int) -> None:
        reply = self.or_gone(held, lambda: held.pilot.finish(held.job, request))
        if reply is None:
            return
        for _ in range(repeats):
            assert self.call(held.pilot, lambda: held.pilot.finish(held.job, request)) == reply
        self.jobs.remove(held)
        self.over.append(held)
        held.last = request
        kept = {UnitState.DONE, UnitState.OUTPUTTING}
        mine = {int(each) for each, state in reply.units.items() if state in kept}
        assert not mine or request.state == JobState.FINISHED
        self.processed |= {(each, held.job.job_id) for each in mine}
        now = books.read(self.site.database)
        for each, state in reply.units.items():
            assert now.units[int(each)].state == state, "the server said otherwise"
        if mine:
            known = {each.did: each.state for each in now.outputs.values()}
            assert {known[each.did] for each in request.outputs} <= {OutputState.CONFIRMED, OutputState.UPLOADED}

    # ------------------------------------------------------------ what always holds

    @invariant()
    def the_books_are_right(self) -> None:
        now = books.read(self.site.database)
        books.check(now, self.deleted)
        books.check_step(self.before, now, self.deleted)
        self.nothing_is_done_twice_or_unasked(now)
        self.no_pilot_is_lost_too_early(now)
        for task, n in self.inputs.items():
            made = sum(1 for each in now.units.values() if each.task == task)
            assert made <= n or task in self.deleted, f"task {task} has more units than its input"
        self.before = now

    def nothing_is_done_twice_or_unasked(self, now: books.Books) -> None:
        for unit_id, each in now.units.items():
            if each.state == UnitState.DONE:
                assert (unit_id, each.job) in self.processed, f"unit {unit_id} is done, and nobody said so"
                was = self.before.units.get(unit_id)
                if was is None or was.state != UnitState.DONE or was.generation != each.generation:
                    assert (unit_id, each.generation) not in self.done, f"unit {unit_id} was done twice"
                    self.done.add((unit_id, each.generation))

    def no_pilot_is_lost_too_early(self, now: books.Books) -> None:
        marks = {each.id: each.worker for each in self.pilots}
        knobs = self.site.dispatcher.looks.get().knobs
        for pilot, state in now.pilots.items():
            if state == PilotState.LOST and self.before.pilots.get(pilot) == PilotState.ACTIVE:
                ended = marks.get(pilot) in self.ended_workers
                limit = knobs.worker_end_grace_s if ended else knobs.heartbeat_timeout_s
                silent = self.clock.now() - max(self.heard[pilot], self.up_since)
                assert silent >= min(limit, knobs.heartbeat_timeout_s), f"pilot {pilot} was lost after {silent} s"

    def everything_ends(self) -> None:
        """From any state on: with patient pilots every task comes to its end."""
        self.registrar(None)
        for name in RULES:
            self.site.raw("DELETE", f"/v1/retry-rules/{name}", token=self.site.token("admin"))
        for name in "qr":
            self.site.put_queue(name)
        for task in sorted(self.opened.intersection(self.tasks)):
            self.conflicts(partial(self.site.user, "POST", f"/v1/tasks/{task}/inputs:close", None, TaskView))
        for _ in range(PATIENT):
            self.later(3700)
            self.site.agents()
            for task in self.tasks:
                if self.site.task(task).state in (TaskState.PAUSED, TaskState.EXHAUSTED):
                    self.site.command(task, "resume")
            patient = self.registered("q", 4)
            for _ in range(50):
                reply = patient.ask(4)
                if not reply.jobs:
                    break
                for job in reply.jobs:
                    held = Held(patient, job)
                    self.jobs.append(held)
                    self.confirm(held, patient.success(held.job, "last"), 0)
            self.register_outputs()
            if all(self.site.task(task).state in FINAL_TASK_STATES for task in self.tasks):
                break
        self.the_books_are_right()
        for task in self.tasks:
            view = self.site.task(task)
            assert view.state in FINAL_TASK_STATES, view
            if view.state == TaskState.DONE and task in self.inputs:
                assert view.units == {"done": self.inputs[task]}, (
                    f"task {task} has an input of {self.inputs[task]}: {view}"
                )
