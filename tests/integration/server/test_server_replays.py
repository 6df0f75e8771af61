"""Every call that changes something, repeated after a lost reply, or twice at the same moment: done once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select, update

from common.errors import ErrorCode
from common.states import JobState, TaskState, UnitState, WorkerState
from common.tokens import hash_secret
from common.wire import (
    AcquireReply,
    AcquireRequest,
    FinishReply,
    FinishRequest,
    PilotGrant,
    PilotRegistration,
    Shape,
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
from server.store.schema import job as job_table
from server.store.schema import pilot as pilot_table
from server.store.schema import worker as worker_table
from tests.integration.server.harness import Refused, Site, stage, states

T = TypeVar("T")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """All calls in threads of their own, beginning at the same moment; a collision is repeated, as clients do."""
    barrier = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def run(place: int, call: Callable[[], T]) -> None:
        barrier.wait(240)
        for _ in range(10):
            try:
                answers[place] = call()
                return
            except Refused as error:
                answers[place] = error
                if error.status != 503:
                    return

    threads = [threading.Thread(target=run, args=each) for each in enumerate(calls)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return answers


def count(site: Site, table: Any) -> int:
    return site.row_counts()[table.name]


def test_a_repeated_acquire_gets_the_same_jobs(site: Site) -> None:
    site.world()
    site.counter(20, files_per_job=2)
    pilot = site.pilot(cores=3)
    first = pilot.ask(max_jobs=3, request_id="request-x")
    site.tick(5)
    again = pilot.ask(max_jobs=3, request_id="request-x")
    assert len(first.jobs) == 3
    assert again.jobs == first.jobs
    assert count(site, job_table) == 3
    other = site.pilot()  # the same word from another pilot is another request
    assert {job.job_id for job in other.ask(request_id="request-x").jobs}.isdisjoint({j.job_id for j in first.jobs})


def test_an_acquire_repeated_after_its_job_ended_does_not_hand_the_job_out_again(site: Site) -> None:
    site.world()
    task = site.counter(3)
    pilot = site.pilot()
    job = pilot.ask(request_id="request-x").jobs[0]
    pilot.succeed(job)
    assert pilot.ask(request_id="request-x").jobs == []
    assert states(site.units(task)) == {"done": 1, "ready": 2}


@pytest.mark.parametrize("round_", range(3))
def test_identical_acquires_at_once_were_once_given_different_jobs(site: Site, round_: int) -> None:
    site.world()
    task = site.counter(40, files_per_job=2)
    pilot = site.pilot(cores=3)
    answers = at_once(*[lambda: pilot.ask(max_jobs=3, request_id="request-x")] * 4)
    ids = [[job.job_id for job in answer.jobs] for answer in answers]
    assert ids == [ids[0]] * 4
    assert count(site, job_table) == len(ids[0]) == 3
    assert states(site.units(task)) == {"ready": 34, "reserved": 6}
    site.check_counts()


def test_repeated_units_acquire_gets_the_same_units(site: Site) -> None:
    site.world()
    task = site.counter(10)
    pilot = site.pilot()
    job = pilot.acquire()
    path = f"/v1/jobs/{job.job_id}/units:acquire"

    def ask(word: str, number: int = 2) -> UnitsAcquireReply:
        return pilot.post(path, UnitsAcquireRequest(word, number), UnitsAcquireReply)

    answers = at_once(*[lambda: ask("request-a")] * 4)
    assert [each.seq for each in answers[0].units] == [1, 2]
    assert answers == [answers[0]] * 4
    assert [each.seq for each in ask("request-b").units] == [3, 4]
    assert ask("request-a") == answers[0]
    assert site.job(job.job_id).n_units == 5
    pilot.succeed(job, units=[each.unit_id for each in answers[0].units])
    assert states(site.units(task)) == {"ready": 8, "done": 2}
    site.check_counts()


def test_repeated_record_gets_the_same_destinations(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    answers = at_once(*[lambda: pilot.record(job, "a.root", "b.root")] * 4)
    assert answers == [answers[0]] * 4
    more = pilot.record(job, "b.root", "c.root")
    assert more.destinations[0] == answers[0].destinations[1]
    assert [each.name for each in more.destinations] == ["b.root", "c.root"]
    assert site.row_counts()["output"] == 3
    assert f"{job.task_id}.{job.job_id}.a.root" in answers[0].destinations[0].urls[0]


def test_repeated_finish_is_answered_as_the_first_time(site: Site) -> None:
    site.world()
    task = site.counter(2, files_per_job=2)
    pilot = site.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "a")
    answers = at_once(*[lambda: pilot.finish(job, request)] * 4)
    site.tick(1000)
    answers.append(pilot.finish(job, request))
    assert answers == [FinishReply(job.job_id, JobState.FINISHED, answers[0].units)] * 5
    assert set(answers[0].units.values()) == {UnitState.DONE}
    assert states(site.units(task)) == {"done": 2}
    assert len(site.outputs(task)) == 1
    site.check_counts()


def test_a_finish_with_another_content_is_a_conflict(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job)
    with pytest.raises(Refused) as refused:
        pilot.fail(job, 1305)
    assert (refused.value.status, refused.value.problem.type) == (409, "pilotage:conflict")
    assert site.job(job.job_id).state == JobState.FINISHED


def test_a_finish_after_reaping_is_gone(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "a")
    site.tick(4000)
    site.agents()
    with pytest.raises(Refused) as refused:
        pilot.finish(job, request)
    assert (refused.value.status, refused.value.problem.type) == (410, "pilotage:job-gone")
    wanted = {"job_id": job.job_id, "state": "failed", "error_code": ErrorCode.HEARTBEAT_LOST}
    assert refused.value.problem.extensions == wanted
    with pytest.raises(Refused) as refused:
        pilot.record(job, "b")
    assert refused.value.status == 410
    assert site.outputs(task) == []
    assert states(site.units(task)) == {"ready": 1}


def test_a_finish_whose_units_are_another_jobs_by_now_changes_nothing(site: Site) -> None:
    site.world()
    task = site.counter(1)
    late = site.pilot()
    job = late.acquire()
    request = late.success(job, "a")
    site.tick(4000)
    site.agents()
    quick = site.pilot()
    twin = quick.acquire()
    assert twin.units == job.units
    with pytest.raises(Refused) as refused:
        late.finish(job, request)
    assert refused.value.status == 410
    quick.succeed(twin, "a")
    assert [each.job_id for each in site.outputs(task)] == [twin.job_id]
    assert states(site.units(task)) == {"done": 1}
    site.check_counts()


def test_repeated_registration_gets_the_same_pilot(site: Site) -> None:
    site.world()
    mark, secret = site.worker()
    answers = at_once(*[lambda: site.register(mark, secret, "nonce-aa")] * 4)
    assert len({each.pilot_id for each in answers}) == 1
    assert count(site, pilot_table) == 1
    with pytest.raises(Refused) as refused:
        site.register(mark, secret, "nonce-bb")
    assert (refused.value.status, refused.value.problem.type) == (403, "pilotage:worker-used-up")


def test_another_nonce_at_the_same_moment_makes_no_second_pilot(site: Site) -> None:
    site.world()
    mark, secret = site.worker()
    calls = [lambda n=n: site.register(mark, secret, f"nonce-{n:02d}") for n in range(4)]
    answers = at_once(*calls)
    assert sum(isinstance(each, PilotGrant) for each in answers) == 1
    assert [each.status for each in answers if isinstance(each, Refused)] == [403] * 3


def test_a_worker_of_two_nodes_has_two_pilots_and_a_requeued_one_again(site: Site) -> None:
    site.world()
    mark, secret = site.worker(nodes=2)
    body = [PilotRegistration(mark, f"nonce-{n}{n}", node=n) for n in range(3)]
    for each in body[:2]:
        site.call("POST", "/v1/pilots", each, PilotGrant, secret)
    with pytest.raises(Refused, match="numbered from 0"):
        site.call("POST", "/v1/pilots", body[2], PilotGrant, secret)
    running = WorkerReport(mark, "q", WorkerState.RUNNING)
    requeued = WorkerReport(mark, "q", WorkerState.SUBMITTED)
    site.report(running)
    site.report(requeued)
    site.report(requeued)  # its reply was lost: this is no second eviction
    with site.database.read() as connection:
        assert connection.execute(select(worker_table.c.starts)).scalar_one() == 1
    assert site.register(mark, secret, "nonce-99").pilot_id == 3


def test_repeated_worker_reports_are_taken_once(site: Site) -> None:
    site.world()
    report = WorkerReport("mark-xxxx", "q", WorkerState.PLANNED, Shape(), secret_hash=hash_secret("a"), valid_s=9.0)
    answers = at_once(*[lambda: site.report(report)] * 4)
    assert [each.workers[0].accepted for each in answers] == [True] * 4
    rows = site.row_counts()
    assert rows["worker"] == 1
    site.report(report)
    assert site.row_counts() == rows  # no second event


def test_a_repeated_submission_makes_one_workflow(site: Site) -> None:
    site.world()
    request = WorkflowRequest(name="w", stages=[stage()], request_id="mine")
    answers = at_once(*[lambda: site.user("POST", "/v1/workflows", request, WorkflowView)] * 4)
    assert answers == [answers[0]] * 4
    assert site.row_counts()["workflow"] == 1
    other = site.user("POST", "/v1/workflows", request, WorkflowView, name="v")
    assert other.id != answers[0].id


def test_repeated_commands_are_answered_as_the_first_time(site: Site) -> None:
    site.world()
    task = site.counter(3)
    for word, state in (("pause", TaskState.PAUSED), ("resume", TaskState.READY), ("kill", TaskState.ABORTED)):
        assert [site.command(task, word).state for _ in range(2)] == [state, state]
    site.check_counts()


def test_a_repeated_retry_was_once_a_conflict(site: Site) -> None:
    site.world()
    task = site.counter(2, max_attempts=1)
    pilot = site.pilot()
    pilot.fail(pilot.acquire(), 1305)
    pilot.fail(pilot.acquire(), 1305)
    site.agents()
    assert site.task(task).state == TaskState.FAILED
    assert [site.command(task, "retry").units for _ in range(2)] == [{"ready": 2}] * 2


def test_a_repeated_release_was_once_refused(site: Site) -> None:
    site.world()
    task = site.counter(4, files_per_job=4)
    pilot = site.pilot()
    job = pilot.acquire()
    ids = [each.unit_id for each in job.units]
    outcomes = [UnitOutcome.PROCESSED, UnitOutcome.FAILED, UnitOutcome.RETURNED]
    body = UnitsReleaseRequest([UnitResult(each, outcome) for each, outcome in zip(ids, outcomes)])

    def release() -> UnitsReleaseReply:
        return pilot.post(f"/v1/jobs/{job.job_id}/units:release", body, UnitsReleaseReply)

    answers = at_once(*[release] * 3)
    wanted = {str(ids[0]): UnitState.OUTPUTTING, str(ids[1]): UnitState.READY, str(ids[2]): UnitState.READY}
    assert [each.states for each in answers] == [wanted] * 3
    assert states(site.units(task)) == {"outputting": 1, "ready": 2, "reserved": 1}
    assert [each.payload_failures for each in site.units(task)] == [0, 1, 0, 0]
    site.check_counts()
    pilot.finish(job, FinishRequest(JobState.FINISHED))
    assert states(site.units(task)) == {"done": 1, "ready": 3}
    site.check_counts()


def test_a_released_unit_that_another_job_holds_is_not_touched_by_the_first(site: Site) -> None:
    site.world()
    task = site.counter(1)
    one, two = site.pilot(), site.pilot()
    first = one.acquire()
    body = UnitsReleaseRequest([UnitResult(first.units[0].unit_id, UnitOutcome.RETURNED)])
    path = f"/v1/jobs/{first.job_id}/units:release"
    one.post(path, body, UnitsReleaseReply)
    second = two.acquire()
    late = UnitsReleaseRequest([UnitResult(first.units[0].unit_id, UnitOutcome.PROCESSED)])
    one.post(path, late, UnitsReleaseReply)
    assert states(site.units(task)) == {"reserved": 1}
    with pytest.raises(Refused) as refused:
        one.succeed(first)
    assert refused.value.status == 422
    two.succeed(second)
    assert states(site.units(task)) == {"done": 1}


def test_a_pilots_repeated_end_gives_up_what_a_crash_left(site: Site) -> None:
    site.world()
    task = site.counter(2)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.end(reason="first")
    pilot.end(reason="first")
    assert site.job(job.job_id).state == JobState.FAILED
    with site.database.write() as connection:  # as if the server had died between the two steps of the end
        dead = pilot_table.c.id == pilot.id
        connection.execute(update(pilot_table).where(dead).values(state=0))
    job = pilot.acquire()
    with site.database.write() as connection:
        connection.execute(update(pilot_table).where(dead).values(state=2))
    pilot.end(reason="again")
    assert site.job(job.job_id).state == JobState.FAILED
    assert states(site.units(task)) == {"ready": 2}
    with site.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(job_table)).scalar_one() == 2


def test_acquire_waits_and_is_woken(site: Site, url: str) -> None:
    from common.clock import SystemClock

    real = Site(url, SystemClock())
    real.world()
    pilot = real.pilot()
    answers: list[AcquireReply] = []
    body = AcquireRequest("request-x", pilot.offer, wait_s=8.0)
    thread = threading.Thread(target=lambda: answers.append(pilot.post("/v1/jobs:acquire", body, AcquireReply)))
    thread.start()
    real.counter(1)
    thread.join(6)
    assert len(answers[0].jobs) == 1
    real.database.close()
