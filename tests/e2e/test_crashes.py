"""``kill -9`` of every program in the middle of a 200-unit task: it completes, each unit done once, and nothing is left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import psutil
import pytest

from tests.e2e.conftest import DATABASES
from tests.e2e.crashes import (
    FILES_PER_JOB,
    MOMENTS,
    UNITS,
    Campaign,
    check_workers,
    hold_environment,
    kill_pilot,
    new_folders,
    payloads,
    serving,
    submitting,
)
from tests.e2e.system import System, gone

SLOTS = 2
SETTINGS = {"heartbeat_timeout_s": 10.0}
PATIENT = {"heartbeat_timeout_s": 60.0}
"""Where no pilot is killed: none is ever silent for so long, whatever the disk does."""
OUTAGES_S = {"sqlite": 12.0, "postgres": 3.0}
"""How long a server that was killed stays away: once for longer than its pilots may be silent while it is up."""
HELD = 3
"""The most jobs that a pilot of one core has: one that runs, and those that are being staged out."""
MAX_JOBS = "5"
"""Where harvester is killed pilots leave after so many jobs, so that it has to submit all the time."""
HARVESTER_KILLS = 4

both_databases = pytest.mark.parametrize("database", DATABASES)


@pytest.fixture
def system(tmp_path: Path, database_url: Optional[str]) -> Iterator[System]:
    """A system on the test's database."""
    with System(tmp_path, database_url, SETTINGS, slots=SLOTS) as made:
        yield made


@pytest.fixture
def patient_system(tmp_path: Path, database_url: Optional[str]) -> Iterator[System]:
    """A system on the test's database that gives its pilots time."""
    with System(tmp_path, database_url, PATIENT, slots=SLOTS) as made:
        yield made


@pytest.fixture(scope="module")
def one_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system on SQLite for all deaths of pilots: it must not matter to the next task how the last one went."""
    folder = tmp_path_factory.mktemp("pilots")
    with System(folder, None, SETTINGS, slots=SLOTS, pilot_environment=hold_environment(folder)) as made:
        yield made


def say(what: str, outcome: str, **more: object) -> None:
    """Print how a recovery went."""
    print(f"\n{what}: {outcome}" + "".join(f", {name} {value}" for name, value in more.items()))


# ---------------------------------------------------------------- the server


@both_databases
def test_kill_9_of_the_server(system: System, database: str) -> None:
    outage_s = OUTAGES_S[database]
    campaign = Campaign(system)
    before = campaign.wait_middle()
    system.server.kill9_all()
    began = time.monotonic()
    assert len(system.pilots) == SLOTS, "a pilot does not outlive its server"
    time.sleep(outage_s)  # the outage itself: nothing is waited for
    assert len(system.pilots) == SLOTS, "a pilot left in an outage"
    system.server.start()
    campaign.assert_none_forgotten()
    assert campaign.done() >= before, "what was done before the crash was forgotten"
    campaign.wait_done(campaign.done() + FILES_PER_JOB)
    again = time.monotonic() - began - outage_s
    outcome = campaign.finish(began)
    assert campaign.lost_jobs() == {}, "an outage costs no job"
    check_workers(system, SLOTS)
    say("server killed", outcome, outage=f"{outage_s:g} s", units_done_again=f"{again:.1f} s after it")


@both_databases
def test_kill_9_of_the_agents_process(patient_system: System) -> None:
    """The server does not go on without its agents: it ends, with a word, and its keeper starts it again."""
    system = patient_system
    campaign = Campaign(system)
    before = campaign.wait_middle()
    web = serving(system.server.pid)
    agents = [child for child in psutil.Process(system.server.pid).children() if child not in web and _spawned(child)]
    assert len(web) == 1 and len(agents) == 1, (web, agents)
    agents[0].kill()
    began = time.monotonic()
    system.wait(lambda: not system.server.running, "the server ends without its agents")
    assert "the agents' process ended with exit code -9" in system.server.text()
    system.wait(lambda: gone(web[0]), "no web process is left")
    assert system.server.returncode not in (0, None), "a keeper starts nothing again that ended well"
    system.server.start()
    campaign.assert_none_forgotten()
    assert campaign.done() >= before
    outcome = campaign.finish(began)
    assert campaign.lost_jobs() == {}, "an outage costs no job"
    check_workers(system, SLOTS)
    say("agents killed", outcome)


def _spawned(process: psutil.Process) -> bool:
    """Not multiprocessing's own helper."""
    return "resource_tracker" not in " ".join(process.cmdline())


def test_kill_9_of_the_web_process(tmp_path: Path) -> None:
    """The server itself starts another one."""
    with System(tmp_path, None, PATIENT, slots=SLOTS) as system:
        campaign = Campaign(system)
        before = campaign.wait_middle()
        [web] = serving(system.server.pid)
        web.kill()
        began = time.monotonic()
        campaign.wait_done(before + 2 * FILES_PER_JOB)
        assert [process.pid for process in serving(system.server.pid)] != [web.pid]
        campaign.assert_none_forgotten()
        outcome = campaign.finish(began)
        assert campaign.lost_jobs() == {}
        check_workers(system, SLOTS)
        say("web process killed", outcome)


# ---------------------------------------------------------------- pilots


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_of_a_pilot(one_system: System, moment: str) -> None:
    campaign = Campaign(one_system)
    campaign.wait_middle()
    kill = kill_pilot(campaign, moment)
    began = time.monotonic()
    mark = f"{campaign.mark}-{kill.job_id}"
    one_system.wait(lambda: not payloads(mark), lambda: f"the payload dies with its pilot: {payloads(mark)}")
    payload_gone = time.monotonic() - began
    _check_moment(campaign, kill.job_id, moment)
    assert campaign.done() < UNITS, "the task was over before the pilot died"
    campaign.assert_none_forgotten()
    outcome = campaign.finish(began)
    lost = campaign.lost_jobs()
    assert kill.job_id in lost, f"job {kill.job_id} was not given up: {one_system.calls.job(kill.job_id)}"
    assert len(lost) <= HELD, f"jobs of a pilot that lived were given up: {lost}"
    check_workers(one_system, SLOTS)
    say(
        f"pilot killed {moment}",
        outcome,
        payload_gone_after=f"{payload_gone:.2f} s",
        job_given_up_after=f"{lost[kill.job_id] - kill.time:.1f} s",
    )


def _check_moment(campaign: Campaign, job_id: int, moment: str) -> None:
    """The storage is as it must be at this moment."""
    whole, half = len(campaign.uploaded(job_id)), len(campaign.half_written(job_id))
    files = FILES_PER_JOB + 1  # the log is one of them
    assert {
        "in-stage-in": whole + half == 0,
        "in-the-payload": whole + half == 0,
        "between-record-and-upload": whole < files,
        "in-the-upload": half >= 1 and whole < files,
        "between-upload-and-confirm": half == 0 and whole == files,
    }[moment], f"{whole} files and {half} half-written ones of job {job_id}"


# ---------------------------------------------------------------- harvester


@pytest.fixture
def busy_system(tmp_path: Path) -> Iterator[System]:
    """A system whose harvester has to submit a worker every second or two."""
    environment = {"PILOTAGE_PILOT_MAX_JOBS": MAX_JOBS}
    with System(tmp_path, None, PATIENT, slots=SLOTS, pilot_environment=environment) as made:
        yield made


def at_a_random_moment(system: System) -> bool:
    """Any moment of its life, from before its first cycle on."""
    time.sleep(random.uniform(0.0, 2.5))
    return True


def during_submission(system: System) -> bool:
    """The worker's folder is new: its process is being started, or has just been."""
    with new_folders(system.workers) as appeared:
        end = time.monotonic() + 60.0
        while time.monotonic() < end and not appeared():
            time.sleep(0.0002)
        return appeared()


@pytest.mark.parametrize("moment", [at_a_random_moment, during_submission])
def test_kill_9_of_harvester(busy_system: System, moment: Callable[[System], bool]) -> None:
    system = busy_system
    campaign = Campaign(system)
    kills, caught = 0, 0
    began = time.monotonic()
    wanted = HARVESTER_KILLS
    while campaign.done() < UNITS and kills < wanted:
        if moment(system):
            began = time.monotonic()
            system.harvester.kill9()
            kills += 1
            caught += len(submitting(system))
            if moment is during_submission and not caught:
                wanted = kills + HARVESTER_KILLS  # all came a moment too late: the next ones may not
            system.harvester.start()
    assert kills >= HARVESTER_KILLS, f"only {kills} kills before the task was over"
    if moment is during_submission:
        assert caught, "no kill came during a submission"
    campaign.assert_none_forgotten()
    outcome = campaign.finish(began)
    assert campaign.lost_jobs() == {}, "pilots do not mind harvester's death"
    check_workers(system, SLOTS)
    say(f"harvester killed {moment.__name__}", outcome, kills=kills, in_submission=caught)


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
        system.wait(lambda: not payloads(campaign.mark), lambda: f"payloads die: {payloads(campaign.mark)}")
        system.server.start()
        system.harvester.start()
        campaign.assert_none_forgotten()
        assert before <= campaign.done() < UNITS
        outcome = campaign.finish(began)
        assert 1 <= len(campaign.lost_jobs()) <= HELD * SLOTS
        check_workers(system, SLOTS)
        say("everything killed", outcome, jobs_lost=len(campaign.lost_jobs()))
