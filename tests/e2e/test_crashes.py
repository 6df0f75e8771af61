"""``kill -9`` of every program in the middle of a 200-unit task: it completes, each unit done once, and nothing is left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import psutil
import pytest

from common.states import JobState
from tests.e2e.conftest import DATABASES
from tests.e2e.crashes import (
    FILES_PER_JOB,
    UNITS,
    Assassin,
    Campaign,
    Kill,
    check_workers,
    new_folders,
    payloads,
    serving,
    submitting,
)
from tests.e2e.system import System, gone

SLOTS = 2
OUTAGE_S = 3.0
"""How long a server that was killed stays away."""
SETTINGS = {"heartbeat_timeout_s": 10.0}
MAX_JOBS = "5"
"""Where harvester is killed pilots leave after so many jobs, so that it has to submit all the time."""
HARVESTER_KILLS = 4

both_databases = pytest.mark.parametrize("database", DATABASES)


@pytest.fixture
def system(tmp_path: Path, database_url: Optional[str]) -> Iterator[System]:
    """A system on the test's database."""
    with System(tmp_path, database_url, SETTINGS, slots=SLOTS) as made:
        yield made


@pytest.fixture(scope="module")
def one_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system on SQLite for all deaths of pilots: it must not matter to the next task how the last one went."""
    with System(tmp_path_factory.mktemp("pilots"), None, SETTINGS, slots=SLOTS) as made:
        yield made


def say(what: str, seconds: float, campaign: Campaign, **more: object) -> None:
    """Print how a recovery went."""
    rest = "".join(f", {name} {value}" for name, value in more.items())
    print(f"\n{what}: {seconds:.1f} s from the kill to the task's end{rest} (task {campaign.task_id})")


# ---------------------------------------------------------------- the server


@both_databases
def test_kill_9_of_the_server(system: System) -> None:
    campaign = Campaign(system)
    before = campaign.wait_middle()
    system.server.kill9_all()
    began = time.monotonic()
    assert len(system.pilots) == SLOTS, "a pilot does not outlive its server"
    time.sleep(OUTAGE_S)  # the outage itself: nothing is waited for
    assert len(system.pilots) == SLOTS, "a pilot left in an outage"
    system.server.start()
    campaign.assert_none_forgotten()
    assert campaign.done() >= before, "what was done before the crash was forgotten"
    campaign.wait_done(campaign.done() + FILES_PER_JOB)
    again = time.monotonic() - began - OUTAGE_S
    campaign.finish()
    assert campaign.lost_jobs() == {}, "an outage costs no job"
    check_workers(system, SLOTS)
    say("server killed", time.monotonic() - began, campaign, outage=OUTAGE_S, next_unit_done_after=f"{again:.1f} s")


@both_databases
def test_kill_9_of_the_agents_process(system: System) -> None:
    """The server does not go on without its agents: it ends, with a word, and its keeper starts it again."""
    campaign = Campaign(system)
    before = campaign.wait_middle()
    web = serving(system.server.pid)
    agents = [child for child in psutil.Process(system.server.pid).children() if child not in web and _spawned(child)]
    assert len(web) == 1 and len(agents) == 1, (web, agents)
    agents[0].kill()
    began = time.monotonic()
    system.wait(lambda: not system.server.running, "the server ends without its agents", 15.0)
    assert "the agents' process ended with exit code -9" in system.server.text()
    system.wait(lambda: gone(web[0]), "no web process is left", 15.0)
    assert system.server.returncode not in (0, None), "a keeper starts nothing again that ended well"
    system.server.start()
    campaign.assert_none_forgotten()
    assert campaign.done() >= before
    campaign.finish()
    assert campaign.lost_jobs() == {}, "an outage costs no job"
    check_workers(system, SLOTS)
    say("agents killed", time.monotonic() - began, campaign)


def _spawned(process: psutil.Process) -> bool:
    """Not multiprocessing's own helper."""
    return "resource_tracker" not in " ".join(process.cmdline())


# ---------------------------------------------------------------- pilots


def in_stage_in(campaign: Campaign, job_id: int) -> bool:
    """Its payload has not begun."""
    return not payloads(f"{campaign.mark}-{job_id}")


def in_the_payload(campaign: Campaign, job_id: int) -> bool:
    """Its payload runs, with the process that wants to stay."""
    return any("sleep 3000" in process for process in payloads(f"{campaign.mark}-{job_id}"))


def between_record_and_upload(campaign: Campaign, job_id: int) -> bool:
    """Names are reserved, none of the files is there."""
    return campaign.uploaded(job_id) == []


def between_upload_and_confirm(campaign: Campaign, job_id: int) -> bool:
    """All files are there, log included, and the server has not heard that they are."""
    time.sleep(0.3)  # a confirmation that is on its way arrives: the pilot is stopped, so nothing else will come
    return len(campaign.uploaded(job_id)) == FILES_PER_JOB + 1 and _state(campaign, job_id) is JobState.HOLDING


def _state(campaign: Campaign, job_id: int) -> JobState:
    state = campaign.system.calls.job(job_id).state
    # The server may not have heard of the last phases yet.
    return JobState.HOLDING if state in (JobState.SENT, JobState.STARTING, JobState.RUNNING) else state


@pytest.mark.parametrize(
    "phase, good",
    [
        pytest.param("staging_in", in_stage_in, id="in stage-in"),
        pytest.param("running", in_the_payload, id="in the payload"),
        pytest.param("uploading", between_record_and_upload, id="between record and upload"),
        pytest.param("confirming", between_upload_and_confirm, id="between upload and confirm"),
    ],
)
def test_kill_9_of_a_pilot(one_system: System, phase: str, good: Callable[[Campaign, int], bool]) -> None:
    campaign = Campaign(one_system)
    campaign.wait_middle()
    await_good = good is in_the_payload
    kill = Assassin(campaign).kill(phase, lambda job_id: good(campaign, job_id), await_good=await_good)
    began = time.monotonic()
    uploaded = len(campaign.uploaded(kill.job_id))
    mark = f"{campaign.mark}-{kill.job_id}"
    one_system.wait(lambda: not payloads(mark), lambda: f"the payload dies with its pilot: {payloads(mark)}", 5.0)
    payload_gone = time.monotonic() - began
    assert campaign.done() < UNITS, "the task was over before the pilot died"
    campaign.assert_none_forgotten()
    campaign.finish()
    took = time.monotonic() - began
    lost = campaign.lost_jobs()
    assert kill.job_id in lost, f"job {kill.job_id} was not given up: {one_system.calls.job(kill.job_id)}"
    assert len(lost) <= _jobs_of(one_system, kill), f"jobs of pilots that lived were given up: {lost}"
    check_workers(one_system, SLOTS)
    say(
        f"pilot killed in {phase}",
        took,
        campaign,
        tries=kill.tries,
        files_uploaded=uploaded,
        payload_gone_after=f"{payload_gone:.2f} s",
        job_given_up_after=f"{lost[kill.job_id] - kill.time:.1f} s",
    )


def _jobs_of(system: System, kill: Kill) -> int:
    """How many jobs the pilot that was killed can have held: the one in its slot, and those that were on their way out."""
    log = (system.workers / kill.worker / "work" / "pilot.log").read_text()
    return log.count(": acquired") - log.count(": done") + 1


# ---------------------------------------------------------------- harvester


@pytest.fixture
def busy_system(tmp_path: Path) -> Iterator[System]:
    """A system whose harvester has to submit a worker every second or two."""
    environment = {"PILOTAGE_PILOT_MAX_JOBS": MAX_JOBS}
    with System(tmp_path, None, SETTINGS, slots=SLOTS, pilot_environment=environment) as made:
        yield made


def at_a_random_moment(system: System) -> bool:
    """Any moment of its life, from before its first cycle on."""
    time.sleep(random.uniform(0.0, 2.5))
    return True


def during_submission(system: System) -> bool:
    """The worker's folder is new: its process is being started, or has just been."""
    with new_folders(system.workers) as appeared:
        end = time.monotonic() + 15.0
        while time.monotonic() < end and not appeared():
            time.sleep(0.0002)
        return appeared()


@pytest.mark.parametrize("moment", [at_a_random_moment, during_submission])
def test_kill_9_of_harvester(busy_system: System, moment: Callable[[System], bool]) -> None:
    system = busy_system
    campaign = Campaign(system)
    kills, caught = 0, 0
    began = time.monotonic()
    while campaign.done() < UNITS and kills < HARVESTER_KILLS:
        if moment(system):
            began = time.monotonic()
            system.harvester.kill9()
            kills += 1
            caught += len(submitting(system))
            system.harvester.start()
    assert kills >= HARVESTER_KILLS, f"only {kills} kills before the task was over"
    if moment is during_submission:
        assert caught, "no kill came during a submission"
    campaign.assert_none_forgotten()
    campaign.finish()
    assert campaign.lost_jobs() == {}, "pilots do not mind harvester's death"
    check_workers(system, SLOTS)
    say(f"harvester killed {moment.__name__}", time.monotonic() - began, campaign, kills=kills, in_submission=caught)


# ---------------------------------------------------------------- all at once


def test_kill_9_of_everything_at_once(tmp_path: Path) -> None:
    with System(tmp_path, None, SETTINGS, slots=SLOTS) as system:
        campaign = Campaign(system)
        before = campaign.wait_middle()
        pilots = system.pilots
        for process in pilots:
            process.suspend()
        system.server.kill9_all()
        system.harvester.kill9_all()
        for process in pilots:
            process.kill()
        began = time.monotonic()
        system.wait(lambda: not payloads(campaign.mark), lambda: f"payloads die: {payloads(campaign.mark)}", 5.0)
        system.server.start()
        system.harvester.start()
        campaign.assert_none_forgotten()
        assert before <= campaign.done() < UNITS
        campaign.finish()
        assert 1 <= len(campaign.lost_jobs()) <= 2 * SLOTS
        check_workers(system, SLOTS)
        say("everything killed", time.monotonic() - began, campaign, jobs_lost=len(campaign.lost_jobs()))
