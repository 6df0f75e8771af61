"""What pilots and workers do in the random histories."""

from __future__ import annotations

from functools import partial
from typing import Optional

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, JobState, UnitState, WorkerState, allowed
from common.wire import (
    BadReplica,
    FinishRequest,
    Instruction,
    Metrics,
    OutputRole,
    UnitOutcome,
    UnitResult,
    UnitsAcquireReply,
    UnitsAcquireRequest,
    UnitsReleaseReply,
    UnitsReleaseRequest,
    WorkerReport,
)
from tests.integration.server import histories_books as books
from tests.integration.server.harness import Pilot, Refused, uploaded
from tests.integration.server.histories_model import CLAIMABLE, Held, Model
from tests.integration.server.histories_push import QUEUE as PUSHED

CODES = [None, 1305, 1106, 1099, 1103, 1200, 1201, 1331, 1404, 1407, 1098, 424242]
METRICS = [
    None,
    Metrics(wall_s=900.0, cpu_s=800.0, max_pss_mb=700.0, max_rss_mb=900.0, events=100, work_dir_mb=5.0),
    Metrics(wall_s=7000.0, cpu_s=10.0, max_pss_mb=9000.0, leak_kb_s=400.0, events=1),
]


class Pilots(Model):
    """Pilots that ask, run, release, record, confirm, fail, repeat and leave; workers that end."""

    def registered(self, queue: str, cores: int) -> Pilot:
        made = self.site.pilot(queue, cores=cores)
        self.heard[made.id] = self.clock.now()
        return made

    @precondition(lambda self: len(self.pilots) < 6)
    @rule(cores=st.integers(1, 3), queue=st.sampled_from("qqr"))
    def new_pilot(self, cores: int, queue: str) -> None:
        self.pilots.append(self.registered(queue, cores))

    @precondition(lambda self: self.pilots)
    @rule(data=st.data(), jobs=st.integers(1, 3), repeat=st.booleans(), record=st.booleans())
    def acquire(self, data: st.DataObject, jobs: int, repeat: bool, record: bool) -> None:
        """A pilot asks, after the agents had their turn; some begin to upload at once."""
        pilot = data.draw(st.sampled_from(self.pilots))
        self.write_heard()
        self.site.agents()
        self.look_at_the_books()
        word = f"request-{self.site.number():06d}"
        reply = self.call(pilot, lambda: pilot.ask(jobs, word))
        self.heard[pilot.id] = self.clock.now()
        assert len(reply.jobs) <= jobs
        now = books.read(self.site.database)
        for each in reply.jobs:
            before = UnitState.RESERVED if each.preassigned else UnitState.READY
            may_run = self.before.tasks[each.task_id] in CLAIMABLE
            assert may_run or each.preassigned, "a task that may not run gave a job"
            assert now.jobs[each.job_id].pilot == pilot.id
            for unit in each.units:
                assert now.units[unit.unit_id].job == each.job_id
                assert now.units[unit.unit_id].state == UnitState.RESERVED
                assert self.before.units[unit.unit_id].state == before
        self.jobs += [Held(pilot, each) for each in reply.jobs]
        if repeat and reply.jobs:
            assert self.call(pilot, lambda: pilot.ask(jobs, word)).jobs == reply.jobs
            self.swap()
            again = self.call(pilot, lambda: pilot.ask(jobs, word)).jobs
            assert [(each.job_id, each.units) for each in again] == [(each.job_id, each.units) for each in reply.jobs]
        if record:
            for each in reply.jobs:
                pilot.record(each, "early")

    @rule(data=st.data(), jobs=st.integers(1, 4), outputs=st.integers(0, 2))
    def whole_jobs(self, data: st.DataObject, jobs: int, outputs: int) -> None:
        """A pilot takes a few jobs, one after another, and all goes well."""
        pilot = data.draw(st.sampled_from(self.pilots))
        self.write_heard()
        self.site.agents()
        self.look_at_the_books()
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
            self.swap()

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
            self.swap()
        kept = {UnitState.OUTPUTTING, UnitState.RESERVED}
        assert first is not None
        held.ids = [each for each in held.ids if first.states.get(str(each), UnitState.RESERVED) in kept]

    @precondition(lambda self: self.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from([JobState.STARTING, JobState.RUNNING, JobState.HOLDING]),
        forgets=st.sampled_from([False, False, False, True]),
    )
    def heartbeat(self, data: st.DataObject, state: JobState, forgets: bool) -> None:
        """A pilot reports; one that has forgotten a job (it never got the answer to its claim) does not list it."""
        held = data.draw(st.sampled_from(self.jobs))
        mine = [each.job for each in self.jobs if each.pilot is held.pilot and not (forgets and each is held)]
        replies = self.call(held.pilot, lambda: held.pilot.beat(*mine, state=state)).jobs
        self.heard[held.pilot.id] = self.clock.now()
        now = books.read(self.site.database)
        for each in replies:
            job = now.jobs.get(each.job_id)
            alive = job is not None and job.state not in FINAL_JOB_STATES
            assert alive == (each.instruction != Instruction.UNKNOWN)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """Uploads begin; the pilot may die before it confirms."""
        held = data.draw(st.sampled_from(self.jobs))
        first = self.or_gone(held, lambda: held.pilot.record(held.job, "early"))
        if first is not None:
            self.swap()
            assert self.call(held.pilot, lambda: held.pilot.record(held.job, "early")) == first

    @precondition(lambda self: self.jobs)
    @rule(
        data=st.data(),
        outputs=st.integers(0, 2),
        log=st.booleans(),
        metrics=st.sampled_from(METRICS),
        repeats=st.integers(0, 2),
    )
    def finish(self, data: st.DataObject, outputs: int, log: bool, metrics: Optional[Metrics], repeats: int) -> None:
        held = data.draw(st.sampled_from(self.jobs))
        names = [f"o{held.names + n}" for n in range(outputs)]
        held.names += outputs
        ids = data.draw(st.lists(st.sampled_from(held.ids), unique=True)) if held.ids else []
        request = self.or_gone(held, lambda: held.pilot.success(held.job, *names, units=ids))
        if request is not None:
            for each in request.units:
                each.outcome = data.draw(st.sampled_from([UnitOutcome.PROCESSED] * 3 + list(UnitOutcome)))
            if log:
                kept = self.or_gone(held, lambda: held.pilot.record(held.job, "log.tgz", role=OutputRole.LOG))
                if kept is None:
                    return
                request.outputs += uploaded(kept)
            request.metrics = metrics
            self.confirm(held, request, repeats)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), state=st.sampled_from([JobState.CANCELLED, JobState.CLOSED]), repeats=st.integers(0, 1))
    def stop(self, data: st.DataObject, state: JobState, repeats: int) -> None:
        """The pilot ends a job that nobody wants, or that it has not begun."""
        held = data.draw(st.sampled_from(self.jobs))
        job = self.before.jobs.get(held.job.job_id)
        if job is None or job.state in FINAL_JOB_STATES or allowed(job.state, state):
            self.confirm(held, FinishRequest(state), repeats)
            return
        try:
            self.call(held.pilot, lambda: held.pilot.finish(held.job, FinishRequest(state)))
        except Refused as refused:
            assert refused.status == 422
        else:
            raise AssertionError(f"a job that was {job.state} ended {state}")

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
        gone = self.forgotten(held)
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
            self.swap()

    @precondition(lambda self: len(self.pilots) > 1)
    @rule(data=st.data(), state=st.sampled_from([WorkerState.FINISHED, WorkerState.FAILED]))
    def a_worker_ends(self, data: st.DataObject, state: WorkerState) -> None:
        # One that jobs are claimed for ends as a pushed one does.
        others = [each for each in self.pilots if each.grant.queue.name != PUSHED]
        if not others:
            return
        pilot = data.draw(st.sampled_from(others))
        report = WorkerReport(pilot.worker, pilot.grant.queue.name, state)
        self.swap()
        assert [self.site.report(report).workers[0].accepted for _ in range(2)][0] or pilot.worker in self.ended_workers
        self.ended_workers.add(pilot.worker)
