"""Silence, and what it may and may not lose."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select

from common.clock import FrozenClock
from common.errors import ErrorCode
from common.states import JobState, WorkerState
from common.wire import HeartbeatReply, HeartbeatRequest, Instruction, JobReport, WorkerReport
from server.agents.duties import reap
from server.agents.runner import Agent, Runner
from server.dispatch import reap as reaping
from server.store import agents, beats, pilots
from server.store.beats import Beat
from server.store.codes import PilotState
from server.store.schema import pilot_report
from tests.integration.server.harness import Pilot, Refused, Site, states


def state_of(site: Site, pilot: Pilot) -> PilotState:
    with site.database.read() as connection:
        row = pilots.get(connection, pilot.id)
    assert row is not None
    return row.state


def test_a_job_that_its_pilot_does_not_know_of_is_given_up_by_its_heartbeat(site: Site) -> None:
    """An acquire answered after its client had given up once left the job until the heartbeat time-out."""
    task = site.world().counter(1)
    pilot = site.pilot()
    pilot.acquire()
    site.tick(100)
    pilot.beat()
    assert states(site.units(task)) == {"reserved": 1}
    site.tick(30)
    pilot.beat()
    assert states(site.units(task)) == {"ready": 1}
    assert site.units(task)[0].payload_failures == 0


def test_silence_loses_a_job_and_its_pilot(site: Site) -> None:
    site.world()
    task = site.counter(2)
    silent, loud = site.pilot(), site.pilot()
    lost, kept = silent.acquire(), loud.acquire()
    for _ in range(8):
        site.tick(500)
        loud.grant.token = loud.beat(kept).token or loud.grant.token
        reap(site.dispatcher)
    view = site.job(lost.job_id)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.HEARTBEAT_LOST)
    assert site.job(kept.job_id).state == JobState.RUNNING
    assert states(site.units(task)) == {"ready": 1, "reserved": 1}
    assert (state_of(site, silent), state_of(site, loud)) == (PilotState.LOST, PilotState.ACTIVE)
    site.check_counts()


def test_silence_counts_only_while_the_server_was_up(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    site.tick(2000)
    site.alive = False
    site.tick(100_000)  # the web side is down, the agents are not
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.SENT
    site.alive = True
    site.tick(3500)
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.SENT
    assert state_of(site, pilot) == PilotState.ACTIVE
    site.tick(200)
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.FAILED


def test_a_short_gap_is_no_outage(site: Site) -> None:
    site.world()
    site.counter(1)
    job = site.pilot().acquire()
    for _ in range(40):
        site.tick(90)
        site.clock.advance(4)  # type: ignore[attr-defined]
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.FAILED


def end_worker(site: Site, pilot: Pilot) -> None:
    site.report(
        WorkerReport(pilot.worker, "q", WorkerState.RUNNING), WorkerReport(pilot.worker, "q", WorkerState.FAILED)
    )


def test_a_worker_that_ended_shortens_the_wait(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    end_worker(site, pilot)
    site.tick(60)
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.SENT
    site.tick(70)
    reap(site.dispatcher)
    view = site.job(job.job_id)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.WORKER_LOST)
    assert states(site.units(task)) == {"ready": 1}
    assert state_of(site, pilot) == PilotState.LOST


def test_a_heartbeat_outranks_what_the_batch_system_says(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    end_worker(site, pilot)
    for _ in range(20):
        site.tick(60)
        pilot.beat(job)
        reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.RUNNING
    pilot.succeed(job)
    assert site.job(job.job_id).state == JobState.FINISHED


def test_a_worker_that_ended_during_an_outage_loses_nothing_at_once(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    site.alive = False
    site.tick(1000)
    site.alive = True
    site.tick(1)
    end_worker(site, pilot)
    reap(site.dispatcher)
    assert site.job(job.job_id).state == JobState.SENT


def test_an_expired_token_may_still_finish_its_own_job_and_is_renewed(site: Site) -> None:
    site.world()
    task = site.counter(3)
    pilot = site.pilot()
    job = pilot.acquire()
    site.alive = False
    site.tick(5000)
    site.alive = True
    with pytest.raises(Refused) as refused:
        pilot.ask()
    assert refused.value.status == 401
    request = pilot.success(job, "a")
    assert pilot.finish(job, request).state == JobState.FINISHED
    pilot.grant.token = pilot.beat().token or ""
    assert len(pilot.ask().jobs) == 1
    assert states(site.units(task)) == {"done": 1, "ready": 1, "reserved": 1}


def test_a_token_is_renewed_at_half_its_life(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    site.tick(1700)
    assert pilot.beat().token is None
    site.tick(200)
    reply = pilot.beat()
    assert reply.token is not None
    assert reply.token_expires == pytest.approx(site.clock.now() + 3600, abs=1)


def test_a_lost_pilot_is_told_so_and_gets_no_token_and_no_work(site: Site) -> None:
    site.world()
    site.counter(2)
    pilot = site.pilot()
    job = pilot.acquire()
    request = pilot.success(job, "a")
    site.tick(3700)
    reap(site.dispatcher)
    reply = pilot.beat(job)  # with a token that has expired
    assert [each.instruction for each in reply.jobs] == [Instruction.UNKNOWN]
    assert (reply.token, reply.drain) == (None, True)
    with pytest.raises(Refused) as refused:
        pilot.finish(job, request)
    assert refused.value.status == 410
    pilot.grant.token = site.issuer.mint_pilot(pilot.id, 3600, 0)[0]  # one that has not expired
    reply2 = pilot.ask()
    assert (reply2.jobs, reply2.drain) == ([], True)
    assert pilot.beat(job).token is None


def test_a_pilot_that_has_left_gets_no_work(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    pilot.end()
    assert pilot.ask().drain
    assert states(site.units(task)) == {"ready": 1}


def test_a_heartbeat_that_names_foreign_or_unknown_jobs(site: Site) -> None:
    site.world()
    site.counter(2)
    mine, other = site.pilot(), site.pilot()
    job, foreign = mine.acquire(), other.acquire()
    request = HeartbeatRequest([JobReport(each, JobState.RUNNING) for each in (job.job_id, foreign.job_id, 999_999)])
    reply = mine.post("/v1/jobs:heartbeat", request, HeartbeatReply)
    words = [Instruction.CONTINUE, Instruction.UNKNOWN, Instruction.UNKNOWN]
    assert [each.instruction for each in reply.jobs] == words
    assert site.job(foreign.job_id).state == JobState.SENT


@pytest.mark.parametrize("with_job", [True, False])
def test_a_heartbeat_between_look_and_reap_saves_pilot_and_job(
    site: Site, monkeypatch: pytest.MonkeyPatch, with_job: bool
) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    if with_job:
        pilot.acquire()
    reap(site.dispatcher)
    site.tick(3700)
    lose, answers = pilots.lose, []

    def after_a_heartbeat(connection: Any, *args: Any) -> bool:
        beats.write(connection, {pilot.id: Beat(site.clock.now())})
        answers.append(lose(connection, *args))
        return answers[-1]

    monkeypatch.setattr(pilots, "lose", after_a_heartbeat)
    reap(site.dispatcher)
    assert answers == [False]
    assert states(site.units(task)) == ({"reserved": 1} if with_job else {"ready": 1})
    assert state_of(site, pilot) == PilotState.ACTIVE


def test_a_confirmation_and_the_reaper_at_once_end_a_job_once(site: Site, url: str) -> None:
    site.world()
    task = site.counter(12)
    pilot = site.pilot()
    jobs = [pilot.acquire() for _ in range(12)]
    requests = [pilot.success(job, "a") for job in jobs]
    site.tick(3700)
    other = Site(url, site.clock)
    barrier = threading.Barrier(2)

    def reap_all() -> None:
        barrier.wait(240)
        for job in jobs:
            reaping.lose(other.dispatcher, job.job_id, site.clock.now() - 1, ErrorCode.HEARTBEAT_LOST, "")

    reaper = threading.Thread(target=reap_all)
    reaper.start()
    barrier.wait(240)
    taken = 0
    for job, request in reversed(list(zip(jobs, requests, strict=True))):
        try:
            pilot.finish(job, request)
            taken += 1
        except Refused as refused:
            assert refused.status == 410
    reaper.join(240)
    found = states(site.units(task))
    assert found.get("done", 0) == taken == len(site.outputs(task))
    assert sum(found.values()) == 12
    site.check_counts()
    other.database.close()


def test_two_holders_of_a_lease_do_no_harm_and_one_waits(site: Site) -> None:
    runs: list[str] = []

    def duty(name: str) -> Agent:
        def work(_: object) -> int:
            runs.append(name)
            return 0

        return Agent("duty", 1.0, work)

    one, two = Runner(site.dispatcher, []), Runner(site.dispatcher, [])
    assert one.once(duty("one")) == 0
    two.once(duty("two"))
    assert runs == ["one"]
    site.tick(20)
    two.once(duty("two"))
    one.once(duty("one"))
    assert runs == ["one", "two"]


def test_an_agent_that_fails_is_noted_and_survives(site: Site) -> None:
    def fail(_: object) -> int:
        raise RuntimeError("boom")

    assert Runner(site.dispatcher, []).once(Agent("duty", 1.0, fail)) == 0
    with site.database.read() as connection:
        from sqlalchemy import select

        from server.store.schema import agent_run

        assert connection.execute(select(agent_run.c.error)).scalar_one() == "RuntimeError: boom"


def test_two_web_processes_once_collided_when_they_first_said_that_they_are_up(site: Site, url: str) -> None:
    from sqlalchemy import delete

    from server.store.schema import liveness

    with site.database.write() as connection:
        connection.execute(delete(liveness))
    barrier, problems = threading.Barrier(4), []

    def say(own: Site) -> None:
        barrier.wait(240)
        try:
            own.say_up()
        except Exception as error:  # noqa: BLE001 - told below
            problems.append(error)

    sites = [Site(url, site.clock) for _ in range(4)]
    threads = [threading.Thread(target=say, args=(each,)) for each in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert problems == []
    with site.database.read() as connection:
        assert agents.up_since(connection, 10.0, site.clock.now()) == site.clock.now()


def test_a_pilot_that_dies_after_the_clock_was_set_back_is_reaped(site: Site) -> None:
    """Its heartbeat once lay in the future, and its units waited until the clock had caught up."""
    site.world()
    site.turn("heartbeat_timeout_s", 600)
    task = site.counter(1)
    site.pilot().acquire()
    assert isinstance(site.clock, FrozenClock)
    site.clock._now -= 7200  # what no clock of ours does by itself
    site.tick(10)
    reap(site.dispatcher)
    site.tick(700)
    site.agents()
    assert states(site.units(task)) == {"ready": 1}


def test_a_nul_in_an_offer_or_a_report_once_harmed_all_whose_beats_went_with_it(site: Site) -> None:
    site.world()
    pilot = site.pilot()
    with site.database.write() as connection:
        beats.write(connection, {pilot.id: Beat(2e9, '{"state":"a\\u0000b"}', '{"tags":["a\\u0000b"]}')})
    with site.database.read() as connection:
        assert connection.execute(select(pilot_report.c.report)).scalar_one() == '{"state":"a\\u0000b"}'
