"""Scouts: a large task sends a few jobs ahead, is measured by them, and goes on or stops."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import func, select, update

from common.errors import ErrorCode
from common.states import JobState, TaskState
from common.wire import (
    Assignment,
    CounterInput,
    FinishRequest,
    Metrics,
    Offer,
    OutputRecord,
    RecordReply,
    RecordRequest,
    UnitOutcome,
    UnitResult,
)
from server.agents.scouting import scout
from server.store import measurements, workflows
from server.store.schema import job, task, unit
from server.store.schema_measurements import measurement
from tests.integration.server.harness import CHECKSUM, Pilot, Site, stage, uploaded

GOOD = Metrics(wall_s=1000.0, cpu_s=900.0, max_rss_mb=800.0, work_dir_mb=100.0)


@pytest.fixture
def world(site: Site) -> Site:
    return site.world()


def large(site: Site, count: int = 200, **more: Any) -> int:
    """A task that scouts; its id."""
    return site.submit(stage(given=CounterInput(count, events=100), **{"scouts": True, **more}))[0]


def claimed(pilot: Pilot, n: int) -> list[Assignment]:
    """``n`` jobs of one unit each: the scouts, whatever else the claim path holds back."""
    jobs: list[Assignment] = []
    for _ in range(n):
        jobs += pilot.ask(max_jobs=1).jobs
    assert len(jobs) == n
    return jobs


def end(pilot: Pilot, assignment: Assignment, metrics: Metrics = GOOD) -> None:
    results = [UnitResult(each.unit_id, UnitOutcome.PROCESSED) for each in assignment.units]
    pilot.finish(assignment, FinishRequest(JobState.FINISHED, results, exit_code=0, metrics=metrics))


def scouts_left(site: Site, task_id: int) -> int | None:
    with site.database.read() as connection:
        found = connection.execute(select(task.c.scouts_left).where(task.c.id == task_id)).scalar_one()
        return None if found is None else int(found)


def rows(site: Site, task_id: int) -> int:
    with site.database.read() as connection:
        query = select(func.count()).select_from(measurement).where(measurement.c.task_id == task_id)
        return int(connection.execute(query).scalar_one())


def set_state(site: Site, task_id: int, state: TaskState) -> None:
    with site.database.write() as connection:
        connection.execute(update(task).where(task.c.id == task_id).values(state=state.value))


# ---------------------------------------------------------------- which tasks scout


def test_a_large_task_scouts_and_a_small_one_does_not(world: Site) -> None:
    big, small, unwilling = large(world), large(world, 50), large(world, scouts=False)
    assert world.task(big).state == TaskState.SCOUTING
    assert "10 jobs measure" in world.task(big).state_reason
    assert world.task(small).state == world.task(unwilling).state == TaskState.READY
    assert [scouts_left(world, each) for each in (big, small, unwilling)] == [10, -1, -1]


def test_an_admin_switches_scouts_off_for_all(world: Site) -> None:
    world.turn("scout_count", 0)
    assert world.task(large(world)).state == TaskState.READY


def test_a_task_that_does_not_scout_runs_with_its_first_job(world: Site) -> None:
    small = large(world, 50)
    world.pilot().acquire()
    world.agents()
    assert world.task(small).state == TaskState.RUNNING


# ---------------------------------------------------------------- the budget


def test_scouts_are_taken_one_by_one_until_none_is_left(world: Site) -> None:
    scouting = large(world)
    with world.database.write() as connection:
        taken = [measurements.take_scout(connection, scouting, 10) for _ in range(12)]
    assert taken == [True] * 10 + [False] * 2
    assert scouts_left(world, scouting) == 0


def test_a_scout_that_found_no_unit_is_given_back(world: Site) -> None:
    scouting = large(world)
    with world.database.write() as connection:
        assert measurements.take_scout(connection, scouting, 10)
        measurements.give_back_scout(connection, scouting)
    assert scouts_left(world, scouting) == 10


def test_a_ready_task_that_nobody_looked_at_has_all_its_scouts(world: Site) -> None:
    fresh = large(world, scouts=False)
    with world.database.write() as connection:
        connection.execute(update(task).where(task.c.id == fresh).values(scouts_left=None))
        assert [measurements.take_scout(connection, fresh, 2) for _ in range(3)] == [True, True, False]


def test_no_scout_is_taken_of_a_task_that_does_not_scout(world: Site) -> None:
    small, running = large(world, 50), large(world)
    set_state(world, running, TaskState.RUNNING)
    with world.database.write() as connection:
        assert not measurements.take_scout(connection, small, 10)
        assert not measurements.take_scout(connection, running, 10)


def test_concurrent_claims_never_take_more_scouts_than_there_are(world: Site) -> None:
    scouting = large(world)
    barrier, taken = threading.Barrier(8), []

    def take() -> None:
        barrier.wait(240)
        for _ in range(10):
            with world.database.write() as connection:
                taken.append(measurements.take_scout(connection, scouting, 10))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == 80
    assert sum(taken) == 10 - (scouts_left(world, scouting) or 0) <= 10


def test_the_agent_counts_scouts_and_makes_up_for_those_that_failed(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    jobs = claimed(pilot, 4)
    world.agents()
    assert scouts_left(world, scouting) == 6
    end(pilot, jobs[0])
    pilot.fail(jobs[1], int(ErrorCode.PAYLOAD_FAILED))
    world.agents()
    assert scouts_left(world, scouting) == 7


def test_a_claim_that_comes_between_is_not_undone_by_the_count(world: Site) -> None:
    scouting = large(world)
    with world.database.read() as connection:
        row = measurements.scouting(connection)[0]
    with world.database.write() as connection:
        assert measurements.take_scout(connection, scouting, 10)
    with world.database.write() as connection:
        assert not measurements.adjust(connection, row, 5, [])
    assert scouts_left(world, scouting) == 9


def test_scouts_spread_over_sites(world: Site) -> None:
    world.put_site("t")
    world.put_queue("far", "t")
    scouting = large(world)
    claimed(world.pilot(), 5)
    world.agents()
    with world.database.read() as connection:
        assert measurements.scouting(connection)[0].scout_sites == "s"
    world.tick(61)
    world.agents()
    with world.database.read() as connection:
        assert measurements.scouting(connection)[0].scout_sites is None, "no other site took one for a minute"
    assert world.task(scouting).state == TaskState.SCOUTING


# ---------------------------------------------------------------- what they measure


def test_half_of_the_scouts_measure_the_task(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    jobs = claimed(pilot, 10)
    for each in jobs[:4]:
        end(pilot, each)
    world.agents()
    assert world.task(scouting).state == TaskState.SCOUTING
    assert world.task(scouting).measured is None
    end(pilot, jobs[4])
    world.agents()
    view = world.task(scouting)
    assert view.state == TaskState.RUNNING
    assert view.measured is not None
    # 1000 s * 10 HS23 * 0.9 * 1.5 / 100 events; 800 MiB and 10 per cent.
    assert view.measured.cpu_per_event == pytest.approx(135.0)
    assert view.measured.memory_per_core_mb == pytest.approx(880.0)
    assert view.measured.work_mb == pytest.approx(100.0)
    assert view.measured.cpu_efficiency == pytest.approx(0.9)
    assert (view.measured.jobs, view.measured.round) == (5, 1)
    assert rows(world, scouting) == 0, "they have told what they know"


def test_the_power_of_the_queue_and_the_outputs_count(world: Site) -> None:
    world.put_queue("q", core_power=20.0, cpu_efficiency=0.5)
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        pilot.record(each, "out")
        request = pilot.success(each, "out")
        request.metrics = GOOD
        pilot.finish(each, request)
    world.agents()
    measured = world.task(scouting).measured
    assert measured is not None
    assert measured.cpu_per_event == pytest.approx(1000 * 20 * 0.5 * 1.5 / 100)
    assert measured.out_kb_per_event == pytest.approx(1 / 1024 / 100), f"one byte of {CHECKSUM}"


def test_a_repeated_confirmation_measures_once(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    each = claimed(pilot, 1)[0]
    end(pilot, each)
    end(pilot, each)
    assert rows(world, scouting) == 1


def test_failed_and_lost_jobs_measure_nothing(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 2):
        pilot.fail(each, int(ErrorCode.PAYLOAD_FAILED), metrics=GOOD)
    assert rows(world, scouting) == 0


def test_a_pilot_that_measures_nonsense_harms_nobody(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    odd = Metrics(
        wall_s=-5.0,
        cpu_s=1e300,
        max_rss_mb=-1.0,
        stage_in_bytes=10**30,
        events=-7,
        read_bytes=-(10**30),
        leak_kb_s=1e308,
    )
    for each in claimed(pilot, 5):
        end(pilot, each, odd)
    world.agents()
    assert world.task(scouting).measured is not None


def test_jobs_that_say_nothing_let_the_task_go_on(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        end(pilot, each, Metrics())
    world.agents()
    view = world.task(scouting)
    assert view.state == TaskState.RUNNING
    assert view.measured is not None
    assert view.measured.memory_per_core_mb is None


# ---------------------------------------------------------------- the second look


def test_a_hundred_jobs_later_it_is_measured_once_more_and_then_never_again(world: Site) -> None:
    world.turn("scout_second_look", 6)
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        end(pilot, each)
    world.agents()
    more = Metrics(wall_s=2000.0, cpu_s=1800.0, max_rss_mb=1600.0, work_dir_mb=10.0)
    for each in claimed(pilot, 5):
        end(pilot, each, more)
    world.agents()
    measured = world.task(scouting).measured
    assert measured is not None
    assert measured.round == 1
    end(pilot, claimed(pilot, 1)[0], more)
    world.agents()
    measured = world.task(scouting).measured
    assert measured is not None
    assert measured.round == 2
    assert measured.memory_per_core_mb == pytest.approx(1760.0)
    assert measured.work_mb == pytest.approx(100.0), "work space never shrinks"
    end(pilot, claimed(pilot, 1)[0], more)
    assert rows(world, scouting) == 0


def test_a_task_that_did_not_scout_is_measured_but_not_judged(world: Site) -> None:
    world.turn("scout_second_look", 3)
    plain = large(world, scouts=False)
    pilot = world.pilot()
    for each in claimed(pilot, 3):
        end(pilot, each, Metrics(wall_s=1000.0, cpu_s=1.0, max_rss_mb=99_999.0))
    world.agents()
    view = world.task(plain)
    assert view.state == TaskState.RUNNING
    assert view.measured is not None
    assert view.measured.problems == []


def test_a_task_that_ends_early_is_measured_and_its_rows_go(world: Site) -> None:
    small = large(world, 3, scouts=False)
    pilot = world.pilot()
    for each in claimed(pilot, 3):
        end(pilot, each)
    world.agents()
    view = world.task(small)
    assert view.state == TaskState.DONE
    assert view.measured is not None
    assert view.measured.jobs == 3
    assert rows(world, small) == 0


# ---------------------------------------------------------------- exhausted


@pytest.mark.parametrize(
    ("metrics", "more", "words"),
    [
        (Metrics(wall_s=1000.0, cpu_s=900.0, leak_kb_s=100.0), {}, "memory leak"),
        (Metrics(wall_s=1000.0, cpu_s=900.0, max_rss_mb=9000.0), {}, "wrong requirements"),
        (Metrics(wall_s=2.0, cpu_s=1.0), {"files_per_job": 1}, "very short jobs"),
        (Metrics(wall_s=1000.0, cpu_s=10.0), {}, "idle CPUs"),
        (Metrics(wall_s=1000.0, cpu_s=5000.0), {}, "CPUs that were not asked for"),
    ],
)
def test_scouts_that_show_a_problem_exhaust_the_task(
    world: Site, metrics: Metrics, more: dict[str, Any], words: str
) -> None:
    scouting = large(world, **more)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        end(pilot, each, metrics)
    world.agents()
    view = world.task(scouting)
    assert view.state == TaskState.EXHAUSTED
    assert words in view.state_reason
    assert not pilot.ask().jobs, "nothing more is claimed of it"


@pytest.mark.parametrize("command", ["resume", "retry"])
def test_an_exhausted_task_goes_on_when_its_user_says_so_and_is_not_stopped_for_the_same_again(
    world: Site, command: str
) -> None:
    world.turn("scout_second_look", 3)
    idle = Metrics(wall_s=1000.0, cpu_s=10.0)
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        end(pilot, each, idle)
    world.agents()
    assert world.task(scouting).state == TaskState.EXHAUSTED
    assert world.command(scouting, command).state == TaskState.RUNNING
    for each in claimed(pilot, 3):
        end(pilot, each, idle)
    world.agents()
    view = world.task(scouting)
    assert view.measured is not None
    assert (view.state, view.measured.round) == (TaskState.RUNNING, 2)


def test_a_problem_that_later_jobs_show_stops_a_running_task(world: Site) -> None:
    world.turn("scout_second_look", 3)
    scouting = large(world)
    pilot = world.pilot()
    for each in claimed(pilot, 5):
        end(pilot, each)
    world.agents()
    for each in claimed(pilot, 3):
        end(pilot, each, Metrics(wall_s=1000.0, cpu_s=10.0))
    world.agents()
    assert world.task(scouting).state == TaskState.EXHAUSTED


def test_scouts_that_fail_exhaust_the_task_with_their_error(world: Site) -> None:
    world.turn("scout_failures", 3)
    scouting = large(world, max_attempts=10)
    pilot = world.pilot()
    for each in claimed(pilot, 2):
        pilot.fail(each, int(ErrorCode.PAYLOAD_FAILED))
    world.agents()
    assert world.task(scouting).state == TaskState.SCOUTING
    pilot.fail(claimed(pilot, 1)[0], int(ErrorCode.PAYLOAD_FAILED))
    world.agents()
    view = world.task(scouting)
    assert view.state == TaskState.EXHAUSTED
    assert "3 scouts failed" in view.state_reason and str(int(ErrorCode.PAYLOAD_FAILED)) in view.state_reason


def test_the_agent_leaves_alone_what_a_person_moved_meanwhile(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    jobs = claimed(pilot, 5)
    world.command(scouting, "pause")
    for each in jobs:
        end(pilot, each)
    world.agents()
    assert world.task(scouting).state == TaskState.PAUSED
    world.command(scouting, "resume")
    world.agents()
    assert world.task(scouting).state == TaskState.RUNNING, "it went on scouting, and half of its scouts have finished"


def test_an_idle_agent_does_nothing(world: Site) -> None:
    large(world)
    large(world, 20)
    world.agents()
    assert scout(world.dispatcher) == 0
    with world.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(job)).scalar_one() == 0
        assert workflows.get_task(connection, 1) is not None
        assert connection.execute(select(func.count()).select_from(unit)).scalar_one() == 220


# ---------------------------------------------------------------- the rest is cut to the slot


def test_after_the_scouts_jobs_are_cut_to_the_slot(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    jobs = claimed(pilot, 5)
    assert {len(each.units) for each in jobs} == {1}
    for each in jobs:
        end(pilot, each)
    world.agents()
    assert world.task(scouting).state == TaskState.RUNNING
    # 135 HS23 s an event, 9 of them a second: 100 events take 1500 s of an hour, two such units fit.
    offer = Offer(cores=1, memory_mb=4000, disk_mb=20_000, wall_s=3600, tags=["apptainer"])
    assert len(pilot.ask(offer=offer).jobs[0].units) == 2


def test_no_more_scouts_than_asked_for_are_claimed(world: Site) -> None:
    large(world)
    pilot = world.pilot()
    got = [len(pilot.ask().jobs) for _ in range(14)]
    assert got == [1] * 10 + [0] * 4
    world.tick()
    assert [each.filter for each in pilot.ask().refusals] == ["scouts"]


def test_a_pilot_is_told_the_disk_that_a_whole_job_may_use(world: Site) -> None:
    scouting = large(world)
    pilot = world.pilot()
    gib = 2**30
    for each in claimed(pilot, 5):
        files = [OutputRecord("out", gib, CHECKSUM, pattern="*")]
        recorded = pilot.post(f"/v1/jobs/{each.job_id}/outputs", RecordRequest(files), RecordReply)
        request = pilot.success(each)
        request.outputs = uploaded(recorded)
        request.metrics = Metrics(wall_s=100.0, cpu_s=90.0, max_rss_mb=800.0)
        pilot.finish(each, request)
    world.agents()
    assert world.task(scouting).state == TaskState.RUNNING
    # 1 GiB a unit: 19 of them fit 20,000 MB, and the job is told half as much again.
    got = pilot.acquire()
    assert len(got.units) == 19
    assert got.requirements.disk_mb == 1.5 * 19 * 1024
