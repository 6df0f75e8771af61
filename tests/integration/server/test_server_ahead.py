"""Claims of jobs that begin later: only from tasks with enough for all who could begin now, and given back for nothing."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from common.errors import ErrorCode
from common.states import JobState, UnitState
from common.wire import AcquireReply, AcquireRequest, FinishRequest, UnitOutcome, UnitResult
from server.dispatch import tails
from server.store.schema import unit
from tests.integration.server.harness import Pilot, Site, stage, states


@pytest.fixture
def here(site: Site) -> Site:
    """A site with one queue."""
    return site.world()


def ahead(pilot: Pilot, request_id: str = "", wait_s: float = 0.0) -> AcquireReply:
    """Ask for a job that begins later."""
    request_id = request_id or f"ahead-{pilot.requests():04d}"
    return pilot.post(
        "/v1/jobs:acquire", AcquireRequest(request_id, pilot.offer, wait_s=wait_s, ahead=True), AcquireReply
    )


def counters(site: Site, count: int) -> int:
    """A task of so many units of a job each."""
    return site.submit(stage(count=count, files_per_job=1))[0]


def test_a_job_is_claimed_ahead_while_there_is_more_than_the_busy_slots_need(here: Site) -> None:
    counters(here, 3)
    pilot = here.pilot()
    running = pilot.acquire()
    (waiting,) = ahead(pilot).jobs
    assert waiting.job_id != running.job_id
    pilot.beat(running)
    here.clock.advance(tails.KEPT_S + 0.1)
    # Two jobs, neither over, and one unit left: it belongs to whoever is free first.
    reply = ahead(pilot)
    assert (reply.jobs, [refusal.filter for refusal in reply.refusals]) == ([], ["ahead"])
    assert "1 units are ready" in reply.refusals[0].detail
    assert here.pilot().ask().jobs


def test_idle_pilots_of_the_queue_come_first(here: Site) -> None:
    pilot, idle = here.pilot(), here.pilot()
    assert not idle.ask().jobs
    counters(here, 3)
    running = pilot.acquire()
    # Two are left, one slot is busy, one waits.
    assert not ahead(pilot).jobs
    assert idle.ask().jobs
    pilot.succeed(running)
    here.clock.advance(tails.KEPT_S + 0.1)
    assert not ahead(pilot).jobs, "one unit for one busy slot"


def test_a_claim_ahead_never_waits_and_makes_nobody_idle(here: Site) -> None:
    pilot = here.pilot()
    reply = ahead(pilot, wait_s=60.0)
    assert (reply.jobs, reply.retry_after_s) == ([], 0.0)
    assert not here.dispatcher.idle.by_queue(here.clock.monotonic())


def test_a_repeated_claim_ahead_gets_the_same_job(here: Site) -> None:
    counters(here, 10)
    pilot = here.pilot()
    pilot.acquire()
    first, again = ahead(pilot, "ahead-again"), ahead(pilot, "ahead-again")
    assert [job.job_id for job in first.jobs] == [job.job_id for job in again.jobs] != []


def test_scouts_are_not_claimed_ahead(here: Site) -> None:
    here.submit(stage(count=1000, scouts=True))
    pilot = here.pilot()
    pilot.acquire()
    assert not ahead(pilot).jobs


def test_a_job_given_back_costs_its_unit_no_attempt(here: Site) -> None:
    task_id = counters(here, 4)
    pilot = here.pilot()
    running = pilot.acquire()
    (job,) = ahead(pilot).jobs
    pilot.beat(running)
    results = [UnitResult(each.unit_id, UnitOutcome.RETURNED) for each in job.units]
    reply = pilot.finish(job, FinishRequest(JobState.CLOSED, results, error_code=int(ErrorCode.GIVEN_BACK)))
    assert (reply.state, list(reply.units.values())) == (JobState.CLOSED, [UnitState.READY])
    assert states(here.units(task_id)) == {"ready": 3, "reserved": 1}
    attempts = select(unit.c.payload_failures, unit.c.site_failures, unit.c.lost_pilots)
    with here.database.read() as connection:
        found = connection.execute(attempts.where(unit.c.id == job.units[0].unit_id)).one()
    assert tuple(found) == (0, 0, 0), found
    assert [each.job_id for each in here.pilot().ask(max_jobs=1).jobs] != [job.job_id]
