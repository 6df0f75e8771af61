"""Whatever happens in whatever order: no unit is forgotten, none is done twice, the counts tell the truth."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, FINAL_TASK_STATES, JobState, TaskState, UnitState
from common.wire import (
    Assignment,
    BadReplica,
    FinishRequest,
    Instruction,
    MergeRule,
    StageInput,
    UnitOutcome,
    UnitResult,
    UnitsAcquireReply,
    UnitsAcquireRequest,
    UnitsReleaseReply,
    UnitsReleaseRequest,
)
from server.store.codes import FIRST_FINAL_JOB_CODE, UNIT_CODES
from server.store.schema import job as job_table
from server.store.schema import unit
from tests.integration.server.harness import Pilot, Refused, Site, files, stage

CODES = [None, 1305, 1106, 1099, 1103, 1200, 1201, 1331, 1404, 1407, 1098, 424242]
MAX_TASKS = 8


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
    """Pilots, people and agents do what they may do; the model keeps what was accepted."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.site = Site(url)
        self.site.say_up()
        self.pilots: list[Pilot] = []
        self.jobs: list[Held] = []
        self.over: list[Held] = []
        self.tasks: list[int] = []
        self.done: set[int] = set()
        self.visible: set[str] = set()
        self.least: dict[int, int] = {}

    def teardown(self) -> None:
        try:
            if self.tasks:
                self.everything_ends()
        finally:
            self.site.database.close()

    # ------------------------------------------------------------ what happens

    @initialize()
    def begin(self) -> None:
        self.site.world(storages=("disk", "tape"))
        self.site.turn("lost_pilots", 4)
        self.site.turn("preemptions", 6)
        self.site.turn("site_failures", 4)
        self.new_pilot(cores=2)

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(count=st.integers(1, 9), per_job=st.integers(1, 4), attempts=st.integers(1, 3), fed=st.booleans())
    def new_task(self, count: int, per_job: int, attempts: int, fed: bool) -> None:
        stages = [stage("make", count=count, files_per_job=per_job, max_attempts=attempts)]
        if fed:
            stages.append(stage("merge", given=StageInput("make"), merge=MergeRule(2, 4), max_attempts=attempts))
        self.tasks += self.site.submit_only(*stages)

    @precondition(lambda self: len(self.tasks) < MAX_TASKS)
    @rule(count=st.integers(1, 5), per_job=st.integers(1, 3))
    def new_task_over_files(self, count: int, per_job: int) -> None:
        listed = files(*[f"f{n}" for n in range(count)], storages=("disk", "tape"), size=2**20)
        self.tasks += self.site.submit_only(stage(given=listed, files_per_job=per_job))

    @precondition(lambda self: len(self.pilots) < 6)
    @rule(cores=st.integers(1, 3))
    def new_pilot(self, cores: int) -> None:
        self.pilots.append(self.site.pilot(cores=cores))

    @rule(data=st.data(), jobs=st.integers(1, 3), repeat=st.booleans())
    def acquire(self, data: st.DataObject, jobs: int, repeat: bool) -> None:
        pilot = data.draw(st.sampled_from(self.pilots))
        word = f"request-{self.site.number():06d}"
        reply = self.call(pilot, lambda: pilot.ask(jobs, word))
        if repeat and reply.jobs:
            assert self.call(pilot, lambda: pilot.ask(jobs, word)).jobs == reply.jobs
        self.jobs += [Held(pilot, each) for each in reply.jobs]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), count=st.integers(1, 3))
    def acquire_units(self, data: st.DataObject, count: int) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        path = f"/v1/jobs/{held.job.job_id}/units:acquire"
        body = UnitsAcquireRequest(f"request-{self.site.number():06d}", count)
        for _ in range(2):  # the repeat gets the same
            reply = self.or_gone(held, lambda: held.pilot.post(path, body, UnitsAcquireReply))
            if reply is None:
                return
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
        for _ in range(2):
            reply = self.or_gone(held, lambda: held.pilot.post(path, body, UnitsReleaseReply))
            if reply is None:
                return
            kept = {UnitState.OUTPUTTING, UnitState.RESERVED}
            held.ids = [each for each in held.ids if reply.states.get(str(each), UnitState.RESERVED) in kept]

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), state=st.sampled_from([JobState.STARTING, JobState.RUNNING, JobState.HOLDING]))
    def heartbeat(self, data: st.DataObject, state: JobState) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        instruction = self.call(held.pilot, lambda: held.pilot.beat(held.job, state=state)).jobs[0].instruction
        alive = self.site.job(held.job.job_id).state not in FINAL_JOB_STATES
        assert alive == (instruction != Instruction.UNKNOWN)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Uploads begin; the pilot may die before it confirms."""
        held = data.draw(st.sampled_from(self.jobs))
        self.or_gone(held, lambda: held.pilot.record(held.job, "early"))

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
        for request in filter(None, (held.last, late)):
            try:
                self.call(held.pilot, partial(held.pilot.finish, held.job, request))
                assert request is held.last
            except Refused as refused:
                assert refused.status == (409 if held.last else 410)
                assert request is not held.last

    @precondition(lambda self: len(self.pilots) > 1)
    @rule(data=st.data())
    def a_pilot_leaves(self, data: st.DataObject) -> None:
        pilot = data.draw(st.sampled_from(self.pilots))
        self.pilots.remove(pilot)
        self.call(pilot, pilot.end)

    @rule(seconds=st.sampled_from([1, 30, 700, 4000]))
    def time_passes(self, seconds: int) -> None:
        self.site.tick(seconds)

    @rule(seconds=st.sampled_from([20, 5000]))
    def the_server_is_down(self, seconds: int) -> None:
        self.site.alive = False
        self.site.tick(seconds)
        self.site.alive = True

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), word=st.sampled_from(["pause", "resume", "retry", "retry", "kill"]))
    def command(self, data: st.DataObject, word: str) -> None:
        task = data.draw(st.sampled_from(self.tasks))
        try:
            self.site.command(task, word)
        except Refused as refused:
            assert refused.status == 409

    @rule(whole=st.booleans())
    def agents(self, whole: bool) -> None:
        from server.agents.duties import DUTIES

        if whole:
            self.site.agents()
            return
        for duty in DUTIES[:-1]:
            duty.work(self.site.dispatcher)

    # ------------------------------------------------------------ how

    def call(self, pilot: Pilot, make: Callable[[], Any]) -> Any:
        """A pilot's call; its token is renewed when it has expired."""
        if self.site.clock.now() > pilot.grant.token_expires - 60:
            pilot.grant.token = self.site.issuer.mint(f"pilot:{pilot.id}", ["pilot"], 3600)
            pilot.grant.token_expires = self.site.clock.now() + 3600
        return make()

    def or_gone(self, held: Held, make: Callable[[], Any]) -> Any:
        """A call for a job; None when it is gone, which must be true."""
        try:
            return self.call(held.pilot, make)
        except Refused as refused:
            assert refused.status == 410, refused
            assert self.site.job(held.job.job_id).state in FINAL_JOB_STATES
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
        done = {int(each) for each, state in reply.units.items() if state == UnitState.DONE}
        assert not done & self.done, "a unit was done twice"
        assert not done or request.state == JobState.FINISHED
        self.done |= done
        if done:
            self.visible |= {each.did for each in request.outputs}

    # ------------------------------------------------------------ what always holds

    @invariant()
    def counts_tell_the_truth(self) -> None:
        self.site.check_counts()

    @invariant()
    def no_unit_is_forgotten_or_done_unasked(self) -> None:
        with self.site.database.read() as connection:
            rows = connection.execute(
                select(
                    unit.c.id, unit.c.task_id, unit.c.state, unit.c.job_id, job_table.c.state.label("job_state")
                ).join(job_table, job_table.c.id == unit.c.job_id, isouter=True)
            ).all()
        assert {row.id for row in rows if row.state == UNIT_CODES[UnitState.DONE]} == self.done
        held = {UNIT_CODES[UnitState.RESERVED], UNIT_CODES[UnitState.OUTPUTTING]}
        for row in rows:
            if row.state in held:
                assert row.job_state is not None
                assert row.job_state < FIRST_FINAL_JOB_CODE, "held by a job that is over"
            if row.state == UNIT_CODES[UnitState.READY]:
                assert row.job_id is None
        per_task = dict.fromkeys(self.tasks, 0)
        for row in rows:
            per_task[row.task_id] += 1
        for task, number in per_task.items():
            assert number >= self.least.get(task, 0), "units vanished"
        self.least = per_task

    @invariant()
    def outputs_are_visible_only_of_finished_jobs_with_done_units(self) -> None:
        assert {each.did for task in self.tasks for each in self.site.outputs(task)} == self.visible

    @invariant()
    def ended_tasks_have_only_ended_units(self) -> None:
        for task in self.tasks:
            view = self.site.task(task)
            open_units = {"pending", "ready", "reserved", "outputting"} & set(view.units)
            assert view.state not in FINAL_TASK_STATES or not open_units, view

    def everything_ends(self) -> None:
        """From any state on: with a patient pilot every task that nobody killed comes to its end."""
        for task in self.tasks:
            if self.site.task(task).state == TaskState.PAUSED:
                self.site.command(task, "resume")
        patient = self.site.pilot(cores=4)
        for _ in range(30):
            self.site.tick(3700)
            self.site.agents()
            patient = self.site.pilot(cores=4)
            for _ in range(200):
                reply = patient.ask()
                if not reply.jobs:
                    break
                held = Held(patient, reply.jobs[0])
                self.jobs.append(held)
                self.confirm(held, patient.success(held.job, "last"), 0)
                self.site.agents()
            if all(self.site.task(task).state in FINAL_TASK_STATES for task in self.tasks):
                break
        for task in self.tasks:
            assert self.site.task(task).state in FINAL_TASK_STATES, self.site.task(task)
        self.no_unit_is_forgotten_or_done_unasked()
        self.counts_tell_the_truth()


def run(make_url: Callable[[], str], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        lambda: Histories(make_url()),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def test_random_histories_keep_every_promise(sqlite_template: Path, tmp_path: Path) -> None:
    def fresh() -> str:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        shutil.copy(sqlite_template, folder / "pilotage.db")
        return f"sqlite:///{folder / 'pilotage.db'}"

    run(fresh, examples=12, steps=40)


def test_random_histories_on_real_postgres_keep_every_promise(
    make_url_of: Callable[[str], str], request: pytest.FixtureRequest
) -> None:
    made: list[str] = []

    def fresh() -> str:
        from server.store.all_tables import metadata
        from server.store.database import Database

        if not made:
            made.append(make_url_of("real_postgres"))
        database = Database(made[0])
        names = ", ".join(table.name for table in metadata.sorted_tables)
        with database.write() as connection:
            connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        database.close()
        return made[0]

    run(fresh, examples=4, steps=30)
