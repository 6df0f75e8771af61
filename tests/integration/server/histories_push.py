"""Workers of a queue in push mode in the random histories: they get jobs before they are there, and may never come."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from common.states import FINAL_JOB_STATES, JobState, UnitState, WorkerState
from common.wire import Offer, Shape, WorkerJobs, WorkerReport, WorkersAcquireReply, WorkersAcquireRequest
from server.store.codes import PilotState
from tests.integration.server import histories_books as books
from tests.integration.server.harness import Pilot, Refused
from tests.integration.server.histories_model import CLAIMABLE, Held, Model

QUEUE = "p"
VALID_S = 1e6
"""How long the secret of a worker of the harness is good for."""


@dataclass
class Expected:
    """A worker for which jobs were claimed, and the nodes whose pilots have not come."""

    mark: str
    secret: str
    planned: float
    shape: Shape
    jobs: dict[int, list[int]]
    came: dict[int, Pilot] = field(default_factory=dict)


class Pushing(Model):
    """Harvester claims, repeats, submits, sees workers evicted and ended; pilots come, or do not."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.expected: dict[str, Expected] = {}

    @precondition(lambda self: len(self.expected) < 4)
    @rule(cores=st.integers(1, 2), nodes=st.integers(1, 2), more=st.booleans())
    def a_worker_is_given_jobs(self, cores: int, nodes: int, more: bool) -> None:
        self.site.put_queue(QUEUE, mode="push", pull_more=more)
        self.write_heard()
        self.site.agents()
        self.look_at_the_books()
        shape = Shape(cores=cores, memory_mb=4000 * cores, disk_mb=20_000)
        mark, secret = self.site.worker(QUEUE, shape=shape, nodes=nodes)
        found = self._claimed(mark)
        self.swap()
        assert [job.job_id for job in self._claimed(mark).jobs] == [job.job_id for job in found.jobs]
        now = books.read(self.site.database)
        for job in found.jobs:
            assert self.before.tasks[job.task_id] in CLAIMABLE, "a task that may not run gave a job"
            assert now.jobs[job.job_id].state == JobState.SENT
            assert now.pilots[now.jobs[job.job_id].pilot] == PilotState.EXPECTED
        for unit_id, unit in now.units.items():
            if unit.job in {job.job_id for job in found.jobs}:
                assert unit.state == UnitState.RESERVED
                assert self.before.units[unit_id].state == UnitState.READY
        jobs: dict[int, list[int]] = {}
        for job in found.jobs:
            jobs.setdefault(job.node, []).append(job.job_id)
        self.expected[mark] = Expected(mark, secret, self.clock.now(), found.shape, jobs)
        if not jobs:
            self.end_worker(mark, WorkerState.CANCELLED)

    def _claimed(self, mark: str) -> WorkerJobs:
        body = WorkersAcquireRequest("h", [mark])
        token = self.site.token("harvester", "h")
        (found,) = self.site.call("POST", "/v1/workers:acquire", body, WorkersAcquireReply, token).workers
        assert found.accepted, found.reason
        return found

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), jobs=st.integers(1, 3), asks=st.booleans(), repeat=st.booleans())
    def a_pilot_comes(self, data: st.DataObject, jobs: int, asks: bool, repeat: bool) -> None:
        """It registers, the answer is lost, it registers again; it may ask at once."""
        worker = self.expected[data.draw(st.sampled_from(sorted(self.expected)))]
        node = data.draw(st.sampled_from(sorted(worker.jobs)))
        offer = Offer(worker.shape.cores, worker.shape.memory_mb, worker.shape.disk_mb, tags=["apptainer"])
        try:
            grant = self.site.register(worker.mark, worker.secret, host="node", node=node, offer=offer)
            self.swap()
            again = self.site.register(worker.mark, worker.secret, host="node", node=node, offer=offer)
        except Refused:
            assert self.clock.now() > worker.planned + VALID_S
            return
        assert again.pilot_id == grant.pilot_id
        if node in worker.came:
            assert grant.pilot_id == worker.came[node].id
            return
        pilot = worker.came[node] = Pilot(self.site, grant, offer, worker.mark, self.site.number)
        self.pilots.append(pilot)
        self.heard[pilot.id] = self.clock.now()
        if not asks:
            return
        alive = [
            each
            for each, job in books.read(self.site.database).jobs.items()
            if job.pilot == pilot.id and job.state not in FINAL_JOB_STATES
        ]
        word = f"request-{self.site.number():06d}"
        reply = pilot.ask(jobs, word)
        mine = [each.job_id for each in reply.jobs if each.preassigned]
        assert set(mine) <= set(worker.jobs[node]) & set(alive)
        self.jobs += [Held(pilot, each) for each in reply.jobs]
        if repeat and reply.jobs:
            self.swap()
            assert [each.job_id for each in pilot.ask(jobs, word).jobs] == [each.job_id for each in reply.jobs]

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), state=st.sampled_from([WorkerState.FINISHED, WorkerState.FAILED, WorkerState.CANCELLED]))
    def a_pushed_worker_ends(self, data: st.DataObject, state: WorkerState) -> None:
        self.end_worker(data.draw(st.sampled_from(sorted(self.expected))), state)

    @precondition(lambda self: self.expected)
    @rule(data=st.data(), state=st.sampled_from([WorkerState.RUNNING, WorkerState.SUBMITTED, WorkerState.MISSING]))
    def a_pushed_worker_moves(self, data: st.DataObject, state: WorkerState) -> None:
        """It is submitted, runs, is evicted and requeued, or not seen: none of this ends a job."""
        worker = self.expected[data.draw(st.sampled_from(sorted(self.expected)))]
        if worker.came and state == WorkerState.SUBMITTED:
            return  # its next pilots are others
        self.site.report(WorkerReport(worker.mark, QUEUE, state, worker.shape))

    def end_worker(self, mark: str, state: WorkerState) -> None:
        """A worker ends, and that is told twice: what no pilot came for is ready again at once."""
        worker = self.expected.pop(mark)
        for _ in range(2):
            assert self.site.report(WorkerReport(mark, QUEUE, state)).workers[0].accepted
            self.swap()
        self.ended_workers.add(mark)
        now = books.read(self.site.database)
        for node, ids in worker.jobs.items():
            if node not in worker.came:
                for job_id in ids:
                    job = now.jobs.get(job_id)
                    assert job is None or job.state in FINAL_JOB_STATES, (
                        f"job {job_id} waits for a pilot that can't come"
                    )
