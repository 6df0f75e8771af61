"""Push mode: jobs that harvester claims for workers before it submits them, whatever becomes of those."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import select

from common.errors import ErrorCode
from common.states import JobState, WorkerState
from common.tokens import hash_secret
from common.wire import (
    DemandReply,
    JobPage,
    JobView,
    Offer,
    Requirements,
    Shape,
    WorkerJobs,
    WorkerReport,
    WorkersAcquireReply,
    WorkersAcquireRequest,
)
from server.agents.timeouts import time_out_jobs
from server.store.codes import PilotState
from server.store.schema import pilot
from tests.integration.server.harness import Pilot, Refused, Site, states

SMALL = Requirements(memory_mb=100, disk_mb=10)
OFFER = Offer(cores=2, memory_mb=2000, disk_mb=2000, tags=["x86_64"])
SHAPE = Shape(cores=2, memory_mb=2000, disk_mb=2000)


@pytest.fixture
def push(site: Site) -> Site:
    """A site whose queue ``q`` is in push mode."""
    site.world()
    site.put_queue("q", mode="push")
    return site


def ask(site: Site, *marks: str, harvester: str = "h", token: str = "h") -> list[WorkerJobs]:
    body = WorkersAcquireRequest(harvester, list(marks))
    return site.call("POST", "/v1/workers:acquire", body, WorkersAcquireReply, site.token("harvester", token)).workers


def report(site: Site, mark: str, state: WorkerState, **more: Any) -> None:
    (outcome,) = site.report(WorkerReport(mark, "q", state, **more)).workers
    assert outcome.accepted, outcome


def jobs_of(site: Site, task: int) -> list[JobView]:
    return site.user_page(f"/v1/jobs?task={task}&limit=1000", JobPage).items


def pilot_states(site: Site) -> list[str]:
    with site.database.read() as connection:
        return [PilotState(row.state).name for row in connection.execute(select(pilot.c.state).order_by(pilot.c.id))]


def come(site: Site, mark: str, secret: str, offer: Offer = OFFER, **more: Any) -> Pilot:
    return Pilot(site, site.register(mark, secret, host="node", offer=offer, **more), offer, mark)


def ids(found: WorkerJobs) -> list[int]:
    return [job.job_id for job in found.jobs]


def test_a_planned_worker_gets_as_many_jobs_as_fit_it_and_its_pilot_finds_them(push: Site) -> None:
    task = push.counter(5, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    assert got.accepted and len(got.jobs) == 2 and not got.pull
    assert [job.requirements.memory_mb for job in got.jobs] == [100, 100]
    assert {view.state for view in jobs_of(push, task)} == {JobState.SENT}
    assert pilot_states(push) == ["EXPECTED"]
    report(push, mark, WorkerState.SUBMITTED, batch_id="1")
    there = come(push, mark, secret)
    assert pilot_states(push) == ["ACTIVE"]
    first, second = there.acquire(), there.acquire()
    assert [first.job_id, second.job_id] == ids(got)
    assert first.preassigned and second.preassigned
    for job in (first, second):
        there.beat(first, second)
        there.succeed(job, "o")
    assert there.ask().drain, "a pilot of such a queue leaves when it has done its jobs"
    assert states(push.units(task)) == {"done": 2, "ready": 3}
    push.check_counts()


def test_a_repeat_gets_the_same_jobs(push: Site) -> None:
    push.counter(9, requirements=SMALL)
    mark, _ = push.worker(shape=SHAPE)
    (first,) = ask(push, mark)
    assert ask(push, mark) == [first]
    other, _ = push.worker(shape=SHAPE)
    again, new = ask(push, mark, other)
    assert again == first
    assert not set(ids(new)) & set(ids(first))


def test_the_shape_is_what_the_jobs_need_unless_the_queue_says_otherwise(push: Site) -> None:
    push.counter(9, requirements=Requirements(cores=1, memory_mb=300, disk_mb=50, wall_s=600))
    mark, secret = push.worker(shape=Shape(cores=2, memory_mb=4000, disk_mb=2000, wall_s=7200))
    (got,) = ask(push, mark)
    assert got.shape == Shape(cores=2, memory_mb=600, disk_mb=100, wall_s=900)
    assert ask(push, mark)[0].shape == got.shape
    assert push.register(mark, secret).shape == got.shape
    push.put_queue("q", mode="push", shape_from_jobs=False)
    mark, secret = push.worker(shape=SHAPE)
    assert ask(push, mark)[0].shape == SHAPE


def test_a_worker_for_which_there_is_nothing_is_told_why(push: Site) -> None:
    push.counter(2, requirements=Requirements(cores=8))
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    assert (got.accepted, got.jobs, got.pull) == (True, [], False)
    assert [each.filter for each in got.refusals] == ["cores"]
    assert pilot_states(push) == []
    report(push, mark, WorkerState.CANCELLED)
    push.counter(2, requirements=SMALL)
    assert not ask(push, mark)[0].accepted


def test_only_its_own_harvester_may_claim_for_a_planned_worker(push: Site) -> None:
    push.counter(9, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    before = push.row_counts()
    with pytest.raises(Refused) as refused:
        ask(push, mark, harvester="other")
    assert refused.value.status == 403
    (foreign,) = ask(push, mark, harvester="other", token="other")
    assert (foreign.accepted, foreign.reason) == (False, "this worker belongs to harvester 'h'")
    (unknown,) = ask(push, "mark-unknown")
    assert not unknown.accepted
    assert push.row_counts() == before
    report(push, mark, WorkerState.SUBMITTED)
    (late,) = ask(push, mark)
    assert (late.accepted, late.reason) == (False, "this worker is submitted already")
    assert push.row_counts()["job"] == 0


def test_in_pull_mode_the_worker_goes_as_it_is(push: Site) -> None:
    push.counter(9, requirements=SMALL)
    push.put_queue("q")
    mark, _ = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    assert (got.accepted, got.pull, got.jobs, got.shape) == (True, True, [], SHAPE)


def test_the_server_says_with_the_plan_whether_jobs_are_to_be_claimed_first(push: Site) -> None:
    push.put_queue("r")
    for queue, wanted in (("q", True), ("r", False)):
        plan = WorkerReport(f"mark-of-{queue}", queue, WorkerState.PLANNED, secret_hash=hash_secret(queue), valid_s=1e6)
        assert push.report(plan).workers[0].push is wanted


@pytest.mark.parametrize("end", [WorkerState.FINISHED, WorkerState.FAILED, WorkerState.CANCELLED])
def test_a_worker_that_ends_before_its_pilot_came_gives_its_jobs_back_at_once(push: Site, end: WorkerState) -> None:
    task = push.counter(2, requirements=SMALL, max_attempts=1)
    for _ in range(3):
        mark, secret = push.worker(shape=SHAPE)
        (got,) = ask(push, mark)
        assert len(got.jobs) == 2
        report(push, mark, WorkerState.SUBMITTED)
        report(push, mark, WorkerState.MISSING)
        assert states(push.units(task)) == {"reserved": 2}
        report(push, mark, end)
        assert states(push.units(task)) == {"ready": 2}
        found = push.job(got.jobs[0].job_id)
        assert (found.state, found.error_code) == (JobState.CLOSED, ErrorCode.GIVEN_BACK)
        with pytest.raises(Refused):
            push.register(mark, secret)
    push.check_counts()
    assert push.pilot("q").ask().drain
    assert pilot_states(push)[:3] == ["ENDED"] * 3


def test_no_time_runs_while_the_worker_waits(push: Site) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    report(push, mark, WorkerState.SUBMITTED)
    push.turn("timeout_sent_s", 400)
    push.turn("heartbeat_timeout_s", 300)
    for _ in range(3):
        push.tick(1000)
        time_out_jobs(push.dispatcher)
        push.agents()
    assert states(push.units(task)) == {"reserved": 2}
    there = come(push, mark, secret)
    push.tick(300)
    there.beat()
    time_out_jobs(push.dispatcher)
    push.agents()
    assert there.acquire().job_id == got.jobs[0].job_id, "its time began when the pilot came"


def test_when_the_secret_has_expired_the_jobs_go_back(push: Site) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, secret = "mark-short", "a secret of little use"
    plan = WorkerReport(mark, "q", WorkerState.PLANNED, SHAPE, secret_hash=hash_secret(secret), valid_s=100)
    assert push.report(plan).workers[0].accepted
    ask(push, mark)
    push.tick(90)
    push.agents()
    assert states(push.units(task)) == {"reserved": 2}
    push.tick(20)
    push.agents()
    assert states(push.units(task)) == {"ready": 2}
    with pytest.raises(Refused):
        push.register(mark, secret)


def test_on_several_nodes_each_job_is_given_once(push: Site) -> None:
    task = push.counter(9, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE, nodes=3)
    (got,) = ask(push, mark)
    assert Counter(job.node for job in got.jobs) == {0: 2, 1: 2, 2: 2}
    given = []
    for node in (2, 0, 1):
        there = come(push, mark, secret, node=node)
        mine = [there.acquire().job_id, there.acquire().job_id]
        assert mine == [job.job_id for job in got.jobs if job.node == node]
        given += mine
        assert there.ask().drain
    assert sorted(given) == sorted(ids(got))
    assert states(push.units(task)) == {"reserved": 6, "ready": 3}


def test_nodes_for_which_nothing_is_left_expect_no_pilot(push: Site) -> None:
    push.counter(3, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE, nodes=3)
    (got,) = ask(push, mark)
    assert [job.node for job in got.jobs] == [0, 0, 1]
    assert pilot_states(push) == ["EXPECTED", "EXPECTED"]
    assert come(push, mark, secret, node=2).ask().drain


def test_a_lost_answer_to_the_first_question_loses_no_job(push: Site) -> None:
    push.counter(4, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    there = come(push, mark, secret)
    first = there.ask(request_id="request-a")
    again = there.ask(request_id="request-a")
    assert again == first and again.jobs[0].preassigned
    both = there.ask(max_jobs=5, request_id="request-b")
    assert [job.job_id for job in both.jobs] == ids(got)[1:]
    assert there.ask(max_jobs=5, request_id="request-b") == both


def test_a_pilot_that_registers_twice_is_one_and_another_is_refused(push: Site) -> None:
    push.counter(4, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    first = come(push, mark, secret)
    assert come(push, mark, secret).id == first.id
    with pytest.raises(Refused):
        push.register(mark, secret, nonce="nonce-of-another")
    assert first.acquire().job_id == got.jobs[0].job_id


def test_an_evicted_worker_keeps_its_jobs_for_the_pilot_of_its_next_start(push: Site) -> None:
    push.counter(4, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    for state in (WorkerState.SUBMITTED, WorkerState.RUNNING, WorkerState.SUBMITTED, WorkerState.RUNNING):
        report(push, mark, state)
    there = come(push, mark, secret)
    assert there.acquire().job_id == got.jobs[0].job_id


def test_jobs_that_wait_are_not_unlisted_and_go_back_untouched_with_their_pilot(push: Site) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    there = come(push, mark, secret)
    running = there.acquire()
    for _ in range(5):
        push.tick(100)
        there.beat(running)
    assert states(push.units(task)) == {"reserved": 2}
    there.end(reason="the node is ill")
    assert states(push.units(task)) == {"ready": 2}
    one, two = (push.job(job_id) for job_id in ids(got))
    assert (one.state, one.error_code) == (JobState.FAILED, ErrorCode.WORKER_LOST)
    assert (two.state, two.error_code) == (JobState.CLOSED, ErrorCode.GIVEN_BACK)


def test_a_pilot_that_came_and_fell_silent_loses_its_jobs_as_any_other(push: Site) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    ask(push, mark)
    come(push, mark, secret)
    push.turn("heartbeat_timeout_s", 300)
    push.tick(300 + 100)
    push.agents()
    assert states(push.units(task)) == {"ready": 2}
    assert pilot_states(push) == ["LOST"]


@pytest.mark.parametrize("more", [False, True])
def test_a_killed_task_leaves_the_pilot_nothing(push: Site, more: bool) -> None:
    push.put_queue("q", mode="push", pull_more=more)
    task = push.counter(2, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    ask(push, mark)
    push.command(task, "kill")
    there = come(push, mark, secret)
    other = push.counter(1, requirements=SMALL)
    reply = there.ask()
    assert reply.drain is not more
    assert [job.task_id for job in reply.jobs] == [other] * more
    push.agents()
    assert states(push.units(task)) == {"cancelled": 2}
    assert {job.state for job in jobs_of(push, task)} == {JobState.CANCELLED}
    push.check_counts()


def test_a_task_killed_while_the_worker_waits_ends_without_its_pilot(push: Site) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, _ = push.worker(shape=SHAPE)
    ask(push, mark)
    push.command(task, "kill")
    push.agents()
    assert {job.state for job in jobs_of(push, task)} == {JobState.CANCELLED}
    assert push.task(task).state == "aborted"


def test_a_job_that_does_not_fit_the_real_slot_fails_by_its_fault(push: Site) -> None:
    task = push.counter(2, requirements=Requirements(cores=2, memory_mb=1500, disk_mb=10))
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    assert len(got.jobs) == 1
    there = come(push, mark, secret, Offer(cores=1, memory_mb=2000, disk_mb=2000))
    assert there.ask().drain
    found = push.job(got.jobs[0].job_id)
    assert (found.state, found.error_code) == (JobState.FAILED, ErrorCode.SLOT_TOO_SMALL)
    assert states(push.units(task)) == {"ready": 2}
    assert "2 cores" in found.error_detail


def test_jobs_that_fit_one_after_the_other_only_are_given_so(push: Site) -> None:
    push.counter(2, requirements=Requirements(memory_mb=900, disk_mb=10))
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    assert len(got.jobs) == 2
    whole = Offer(cores=2, memory_mb=1000, disk_mb=2000)
    there = come(push, mark, secret, whole)
    first = there.acquire()
    nothing = there.ask(offer=Offer(cores=1, memory_mb=100, disk_mb=1000))
    assert not nothing.jobs and not nothing.drain and nothing.retry_after_s > 0
    there.succeed(first)
    assert there.acquire().job_id == got.jobs[1].job_id


def test_waiting_workers_count_for_their_jobs_and_not_for_those_that_are_ready(push: Site) -> None:
    push.counter(3, requirements=SMALL)
    marks = [push.worker(shape=Shape(cores=1, memory_mb=500, disk_mb=1000))[0] for _ in range(3)]
    ask(push, *marks)
    push.counter(4, requirements=SMALL)
    push.tick(100)
    reply = push.call("GET", "/v1/queues/q/demand", None, DemandReply, push.token("harvester", "h"))
    assert sum(line.pilots for line in reply.shapes) == 7
    assert sum(line.running_jobs for line in reply.shapes) == 3
    assert (reply.running, reply.waiting) == (0, 3)


def test_a_paused_queue_gives_no_jobs_and_keeps_what_was_claimed(push: Site) -> None:
    push.counter(4, requirements=SMALL)
    mark, secret = push.worker(shape=SHAPE)
    (got,) = ask(push, mark)
    push.put_queue("q", mode="push", status="paused")
    other, _ = push.worker(shape=SHAPE)
    (none,) = ask(push, other)
    assert not none.jobs and none.refusals[0].filter == "queue"
    assert come(push, mark, secret).acquire().job_id == got.jobs[0].job_id


def test_the_server_dies_between_a_workers_end_and_the_release_of_its_jobs(
    push: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = push.counter(2, requirements=SMALL)
    mark, _ = push.worker(shape=SHAPE)
    ask(push, mark)

    class Died(Exception):
        pass

    def die(*_: Any) -> int:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr("server.dispatch.registration.release_ended", die)
        with pytest.raises(Refused):
            push.report(WorkerReport(mark, "q", WorkerState.FAILED))
    assert states(push.units(task)) == {"reserved": 2}
    push.agents()
    assert states(push.units(task)) == {"ready": 2}


def test_workers_that_claim_end_and_come_at_the_same_time_get_each_unit_once(push: Site) -> None:
    """Every interleaving of claim, repeat, end and registration; the sums are kept."""
    count = 24
    task = push.counter(count, requirements=SMALL)
    workers = [push.worker(shape=SHAPE) for _ in range(12)]
    taken: list[int] = []
    wrong: list[Exception] = []
    mutex = threading.Lock()
    begin = threading.Barrier(4)

    def act(number: int) -> None:
        try:
            begin.wait()
            for index, (mark, secret) in enumerate(workers):
                ask(push, mark)
                if (index + number) % 4 == 0:
                    push.report(WorkerReport(mark, "q", WorkerState.CANCELLED))
                elif (index + number) % 2 == 0:
                    try:
                        there = come(push, mark, secret, nonce="nonce-of-all")
                    except Refused:
                        continue
                    reply = there.ask(max_jobs=2, request_id=f"request-{number}-{index}")
                    with mutex:
                        taken.extend(unit.unit_id for job in reply.jobs for unit in job.units)
        except Exception as error:  # noqa: BLE001 - told below
            wrong.append(error)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    push.agents()
    assert len(taken) == len(set(taken))
    found = states(push.units(task))
    assert sum(found.values()) == count and set(found) <= {"ready", "reserved"}
    push.check_counts()
    for mark, _ in workers:
        push.report(WorkerReport(mark, "q", WorkerState.CANCELLED))
    push.turn("heartbeat_timeout_s", 300)
    push.tick(300 + 1000)
    push.agents()
    assert states(push.units(task)) == {"ready": count}
