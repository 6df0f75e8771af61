"""The server, or its database, was away for longer than the heartbeat time-out, or crashed: nothing is killed for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import func, select, text

from common.states import JobState, UnitState
from common.wire import Assignment, Instruction
from server.agents.duties import DUTIES
from server.store.codes import PilotState
from server.store.database import DatabaseUnavailable
from server.store.migrate import upgrade
from server.store.schema import pilot as pilot_table
from server.store.schema import pilot_beat
from tests.integration.server.harness import Pilot, Site, stage, states
from tests.services.base import require, require_module, wait_until

if TYPE_CHECKING:
    from tests.services.postgres import PostgresServer

AWAY = {"sweep-unconfirmed"}
"""It would start a program."""


def run_agents(site: Site) -> None:
    """Each agent once, as a server does that has just come up."""
    for duty in DUTIES:
        if duty.name not in AWAY:
            duty.work(site.dispatcher)


def lives(site: Site, jobs: list[Assignment]) -> list[bool]:
    return [site.job(each.job_id).state in (JobState.SENT, JobState.RUNNING) for each in jobs]


def working(site: Site, pilots: int = 3) -> tuple[list[Pilot], list[Assignment]]:
    """Pilots, each with a job that runs."""
    site.submit(stage(count=pilots + 2))
    made = [site.pilot() for _ in range(pilots)]
    jobs = [each.acquire() for each in made]
    for pilot, job in zip(made, jobs, strict=True):
        pilot.beat(job)
    return made, jobs


def with_new_token(site: Site, pilot: Pilot) -> Pilot:
    pilot.grant.token, pilot.grant.token_expires = site.issuer.mint_pilot(pilot.id, 3600)
    return pilot


def timeout_of(site: Site) -> float:
    return site.dispatcher.looks.get().knobs.heartbeat_timeout_s


def check_work_goes_on(site: Site, pilots: list[Pilot], jobs: list[Assignment], silent_s: float = 0.0) -> None:
    """The first pilot is heard of and confirms; the others, silent since ``silent_s``, are lost after a full time-out."""
    heard, job = with_new_token(site, pilots[0]), jobs[0]
    assert [each.instruction for each in heard.beat(job).jobs] == [Instruction.CONTINUE]
    timeout = timeout_of(site)
    site.tick(timeout - 120 - silent_s)
    with_new_token(site, heard).beat(job)
    run_agents(site)
    assert lives(site, jobs) == [True] * len(jobs), "lost before a full time-out"
    site.tick(240)
    run_agents(site)
    assert lives(site, jobs) == [True] + [False] * (len(jobs) - 1)
    heard.succeed(job, "o")
    assert site.job(job.job_id).state == JobState.FINISHED
    assert states(site.units(job.task_id))["done"] >= 1
    site.check_counts()


@pytest.mark.parametrize("down_s", [3700.0, 40_000.0])
def test_a_server_that_was_down_for_long_kills_nothing(site: Site, down_s: float) -> None:
    site.world()
    pilots, jobs = working(site)
    site.alive = False
    site.tick(down_s)
    run_agents(site)  # the agents are up before the web side is
    assert lives(site, jobs) == [True] * 3
    site.alive = True
    site.tick(1)
    run_agents(site)
    assert lives(site, jobs) == [True] * 3
    check_work_goes_on(site, pilots, jobs)


def test_several_outages_one_after_another_kill_nothing_between(site: Site) -> None:
    """A pilot whose calls fall into each of them has been silent for long, and is not lost for it."""
    site.world()
    pilots, jobs = working(site)
    for up_s in (1500, 1500, 1500, 1):
        site.alive = False
        site.tick(2000)
        site.alive = True
        site.tick(up_s)
        run_agents(site)
    assert lives(site, jobs) == [True] * 3
    check_work_goes_on(site, pilots, jobs)


# ---------------------------------------------------------------- crashes of the database


@pytest.fixture(scope="module")
def crashing(services_folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL of its own, to be killed."""
    require_module("psycopg")
    from tests.services.postgres import PostgresServer, install

    programs = require(install)
    server = PostgresServer(programs, services_folder / "crashing")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def doomed(crashing: PostgresServer) -> Iterator[Site]:
    """A dispatcher on it, whose durable commits are durable."""
    site = Site(crashing.create_database())
    upgrade(site.database)
    name = site.database.engine.url.database
    with site.database.write() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = on"))
    site.database.engine.dispose()
    site.say_up()
    yield site.world()
    site.database.close()


def kill_postmaster(server: PostgresServer, _: Site) -> None:
    """As when the machine's memory runs out: the server is gone at once, and its processes follow."""
    processes = psutil.Process(server.pid).children(recursive=True)
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs(processes, 120)
    server.stop()
    server.start()


def kill_backend(server: PostgresServer, site: Site) -> None:
    """One of its processes is killed: PostgreSQL ends all others and starts over from its log."""
    with site.database.read() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        assert psutil.Process(pid).ppid() == server.pid
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 120)
        connection.invalidate()
    wait_until(server.answers, "PostgreSQL answers again")


def beats(site: Site) -> int:
    with site.database.read() as connection:
        found = connection.execute(select(func.count()).select_from(pilot_beat).where(pilot_beat.c.pilot_id > 0))
        return int(found.scalar_one())


def once_up(site: Site, call: Callable[[], object]) -> None:
    """A call that finds broken connections in the pool first."""
    for _ in range(20):
        try:
            call()
            return
        except DatabaseUnavailable:
            continue
    call()


def touch(site: Site) -> None:
    """A connection of those for single statements; a pilot would repeat its request."""
    with site.database.at_once() as connection:
        connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("crash", [kill_postmaster, kill_backend])
def test_a_crash_of_postgres_that_empties_the_beats_loses_no_job(
    crashing: PostgresServer, doomed: Site, crash: Callable[[PostgresServer, Site], None]
) -> None:
    """All pilots were silent for nearly the time-out when the table of their beats is emptied."""
    site = doomed
    pilots, jobs = working(site)
    done = pilots[0].acquire()
    run_agents(site)
    site.tick(timeout_of(site) - 100)
    pilots[0].succeed(done, "kept")  # a result that was answered is there after the crash
    assert beats(site) == 3
    crash(crashing, site)
    once_up(site, site.say_up)
    once_up(site, lambda: touch(site))
    assert beats(site) == 0
    assert site.job(done.job_id).state == JobState.FINISHED
    assert [each.job_id for each in site.outputs(done.task_id)] == [done.job_id]
    run_agents(site)
    assert lives(site, jobs) == [True] * 3
    site.tick(150)  # now they were silent for longer than the time-out, of which only this much is known
    run_agents(site)
    assert lives(site, jobs) == [True] * 3, "a crash of the database was taken for silence"
    with site.database.read() as connection:
        assert set(connection.execute(select(pilot_table.c.state)).scalars()) == {int(PilotState.ACTIVE)}
    check_work_goes_on(site, pilots, jobs, silent_s=150)
    assert sum(site.task(done.task_id).units.values()) == 5
    assert UnitState.DONE.value in site.task(done.task_id).units
