"""Time-outs of jobs and tasks, and what must never be one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import delete, select, update

from common.clock import FrozenClock
from common.errors import ErrorCode
from common.states import JobState, ResourceState, TaskState
from common.wire import Assignment, EventPage, EventView
from server.agents import timeouts
from server.agents.duties import LIVENESS_GAP_S, reap
from server.agents.timeouts import time_out_jobs, time_out_tasks
from server.dispatch.reap import give_up
from server.store import agents, beats, watches, workflows
from server.store.schema import liveness, pilot_beat, task
from server.store.schema import pilot as pilot_table
from server.store.schema_failures import job_watch, slice_cursor, task_watch
from tests.integration.server.harness import Pilot, Site, states

DAY = 86_400.0


@pytest.fixture
def up(site: Site) -> Iterator[Site]:
    """A world whose web side is up all the time, with time-outs short enough for a test."""
    site.world()
    site.turn("pilot_token_s", 1e8)
    yield site


def events(site: Site, kind: str) -> list[EventView]:
    return site.user_page(f"/v1/events?kind={kind}&limit=1000", EventPage).items


def later(site: Site, seconds: float) -> None:
    """Time goes by while the server is up: in one leap, its books kept as if it had been seen all the while."""
    assert isinstance(site.clock, FrozenClock)
    with site.database.read() as connection:
        since = agents.up_since(connection, LIVENESS_GAP_S, site.clock.now())
    site.clock.advance(seconds)
    with site.database.write() as connection:
        now = site.clock.now()
        connection.execute(liveness.update().values(seen=now, up_since=since if since is not None else now))
    site.dispatcher.looks.forget()


def outage(site: Site, seconds: float) -> None:
    """The server is away, and comes back."""
    assert isinstance(site.clock, FrozenClock)
    site.clock.advance(seconds)
    site.say_up()
    site.dispatcher.looks.forget()


def sent(site: Site, queue: str = "q", **more: int) -> tuple[Pilot, Assignment]:
    site.counter(1, **more)
    pilot = site.pilot(queue)
    return pilot, pilot.acquire()


def brought(site: Site, state: JobState, queue: str = "q", **more: int) -> tuple[Pilot, Assignment]:
    """A job in a state."""
    pilot, job = sent(site, queue, **more)
    if state != JobState.SENT:
        pilot.beat(job, state=state)
    site.dispatcher.changed()
    return pilot, job


@pytest.mark.parametrize(
    ("state", "knob", "error"),
    [
        (JobState.SENT, "timeout_sent_s", ErrorCode.STATE_TIMEOUT),
        (JobState.STARTING, "timeout_starting_s", ErrorCode.STATE_TIMEOUT),
        (JobState.RUNNING, "timeout_running_s", ErrorCode.WALL_TIME_REACHED),
        (JobState.HOLDING, "timeout_holding_s", ErrorCode.STATE_TIMEOUT),
    ],
)
def test_a_job_that_stays_in_a_state_for_too_long_fails(up: Site, state: JobState, knob: str, error: ErrorCode) -> None:
    up.turn(knob, 5000)
    up.turn("heartbeat_timeout_s", 1000)
    pilot, job = brought(up, state)
    time_out_jobs(up.dispatcher)  # the state of which nobody knows since when is noted
    later(up, 4999)
    assert time_out_jobs(up.dispatcher) == 0
    later(up, 1)
    assert time_out_jobs(up.dispatcher) == 1
    view = up.job(job.job_id)
    assert (view.state, view.error_code) == (JobState.FAILED, error)
    assert knob in view.error_detail and state.value in view.error_detail
    assert states(up.units(job.task_id)) == {"ready": 1}
    assert [event.job_id for event in events(up, "JOB_LOST")] == [job.job_id]
    assert time_out_jobs(up.dispatcher) == 0
    with up.database.read() as connection:
        assert connection.execute(select(job_watch)).all() == []
    up.check_counts()


def test_a_job_that_moves_on_begins_anew(up: Site) -> None:
    pilot, job = sent(up)
    later(up, 1799)
    pilot.beat(job, state=JobState.HOLDING)
    time_out_jobs(up.dispatcher)
    later(up, 2 * DAY)
    assert time_out_jobs(up.dispatcher) == 0
    later(up, DAY)
    assert time_out_jobs(up.dispatcher) == 1


def test_urgent_tasks_wait_less(up: Site) -> None:
    _, urgent = brought(up, JobState.HOLDING, priority=800)
    _, other = brought(up, JobState.HOLDING, priority=799)
    time_out_jobs(up.dispatcher)
    later(up, 3 * 3600)
    assert time_out_jobs(up.dispatcher) == 1
    assert up.job(urgent.job_id).state == JobState.FAILED
    assert up.job(other.job_id).state == JobState.HOLDING


@pytest.mark.parametrize("how", ["queue", "site", "no_reassign"])
def test_a_paused_queue_takes_nothing_from_anybody(up: Site, how: str) -> None:
    pilot, job = sent(up)
    if how == "queue":
        up.put_queue("q", "s", status=ResourceState.PAUSED)
    elif how == "site":
        up.put_site("s", status=ResourceState.PAUSED)
    else:
        up.put_queue("q", "s", no_reassign=True)
    later(up, 100 * DAY)
    assert time_out_jobs(up.dispatcher) == 0
    assert reap(up.dispatcher) == 0
    assert up.job(job.job_id).state == JobState.SENT
    up.put_site("s")
    up.put_queue("q", "s")
    assert time_out_jobs(up.dispatcher) == 1


def test_after_an_outage_everybody_may_first_say_that_he_has_moved_on(up: Site) -> None:
    _, job = sent(up)
    outage(up, DAY)
    assert time_out_jobs(up.dispatcher) == 0 == reap(up.dispatcher)
    later(up, 1799)
    assert time_out_jobs(up.dispatcher) == 0
    later(up, 1)
    assert time_out_jobs(up.dispatcher) == 1
    assert up.job(job.job_id).state == JobState.FAILED


def test_nothing_times_out_while_the_web_side_is_down(up: Site) -> None:
    sent(up)
    assert isinstance(up.clock, FrozenClock)
    up.clock.advance(DAY)
    assert time_out_jobs(up.dispatcher) == 0


def test_a_job_claimed_while_its_pilot_left_is_given_up(up: Site) -> None:
    pilot, job = sent(up)
    with up.database.write() as connection:
        connection.execute(update(pilot_table).where(pilot_table.c.id == pilot.id).values(state=2))
    later(up, 599)
    assert time_out_jobs(up.dispatcher) == 0
    later(up, 1)
    assert time_out_jobs(up.dispatcher) == 1
    assert up.job(job.job_id).error_code == ErrorCode.WORKER_LOST


def test_a_state_that_changed_since_the_look_saves_the_job(up: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pilot, job = sent(up)
    later(up, 1800)

    def after_a_report(*args: object) -> bool:
        pilot.beat(job, state=JobState.RUNNING)
        return give_up(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("server.agents.timeouts.give_up", after_a_report)
    assert time_out_jobs(up.dispatcher) == 0
    assert up.job(job.job_id).state == JobState.RUNNING


def test_many_jobs_are_gone_over_slice_by_slice(up: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "SLICE", 2)
    jobs = [sent(up)[1] for _ in range(5)]
    later(up, 1800)
    found = [time_out_jobs(up.dispatcher) for _ in range(4)]
    assert found == [2, 2, 1, 0]
    assert {up.job(job.job_id).state for job in jobs} == {JobState.FAILED}


# ---------------------------------------------------------------- silence


def test_a_queue_has_a_time_out_of_its_own(up: Site) -> None:
    up.put_queue("patient", "s", heartbeat_timeout_s=7200)
    up.put_queue("hasty", "s", heartbeat_timeout_s=600)
    found = {queue: sent(up, queue)[1] for queue in ("q", "patient", "hasty")}

    def alive() -> set[str]:
        reap(up.dispatcher)
        return {queue for queue, job in found.items() if up.job(job.job_id).state == JobState.SENT}

    later(up, 599)
    assert alive() == {"q", "patient", "hasty"}
    later(up, 2)
    assert alive() == {"q", "patient"}
    later(up, 3000)
    assert alive() == {"patient"}
    later(up, 3600)
    assert alive() == set()
    up.check_counts()


def test_a_crash_of_the_database_that_emptied_the_heartbeats_kills_nothing(up: Site) -> None:
    _, job = sent(up)
    later(up, 3000)
    with up.database.write() as connection:
        connection.execute(delete(pilot_beat))
    reap(up.dispatcher)
    later(up, 3500)
    reap(up.dispatcher)
    assert up.job(job.job_id).state == JobState.SENT
    later(up, 200)
    reap(up.dispatcher)
    assert up.job(job.job_id).state == JobState.FAILED


def test_a_silent_pilot_loses_all_its_jobs_at_once(up: Site) -> None:
    task_id = up.counter(4)
    pilot = up.pilot(cores=3)
    assert len(pilot.ask(max_jobs=3).jobs) == 3
    later(up, 3700)
    assert reap(up.dispatcher) == 4
    assert states(up.units(task_id)) == {"ready": 4}
    (event,) = events(up, "PILOT_LOST")
    assert event.detail["jobs"] == 3
    assert len(events(up, "JOB_LOST")) == 3
    with up.database.read() as connection:
        assert [row.pilot_id for row in connection.execute(select(pilot_beat))] == [beats.MARKER]
    assert reap(up.dispatcher) == 0
    up.check_counts()


def test_silent_pilots_beyond_a_batch_follow_at_once(up: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.dispatch.reap.BATCH", 2)
    for _ in range(5):
        up.pilot()
    reap(up.dispatcher)
    later(up, 3700)
    assert [reap(up.dispatcher) for _ in range(4)] == [2, 2, 1, 0]
    with up.database.read() as connection:
        assert watches.cursor(connection, "reap-silent") == 0
        assert len(connection.execute(select(slice_cursor)).all()) == 1


# ---------------------------------------------------------------- tasks


def watch(site: Site) -> int:
    return time_out_tasks(site.dispatcher)


def test_a_task_that_nobody_takes_is_told_once(up: Site) -> None:
    task_id = up.counter(1)
    assert watch(up) == 0
    later(up, 2 * DAY - 1)
    assert watch(up) == 0
    later(up, 1)
    assert watch(up) == 1 and watch(up) == 0
    (event,) = events(up, "TASK_OVERDUE")
    assert event.task_id == task_id and "pilotage why" in event.detail["reason"]
    assert "pilotage why" in up.task(task_id).state_reason
    up.pilot().acquire()
    up.agents()
    watch(up)
    with up.database.read() as connection:
        assert connection.execute(select(task_watch)).all() == []


def test_a_throttled_task_is_tried_again(up: Site) -> None:
    task_id = up.counter(1)
    with up.database.write() as connection:
        connection.execute(update(task).where(task.c.id == task_id).values(state=TaskState.THROTTLED.value))
    watch(up)
    later(up, 7 * DAY)
    assert watch(up) == 1
    view = up.task(task_id)
    assert view.state == TaskState.RUNNING and "throttled" in view.state_reason
    assert up.pilot().ask().jobs


def test_a_task_that_left_its_state_meanwhile_is_not_told(up: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = up.counter(1)
    watch(up)
    later(up, 3 * DAY)
    get_task = workflows.get_task

    def after_a_pause(*args: object, **more: object) -> object:
        monkeypatch.undo()
        return get_task(*args, **more)  # type: ignore[arg-type]

    up.command(task_id, "pause")
    monkeypatch.setattr(workflows, "get_task", after_a_pause)
    assert watch(up) == 0
    assert not events(up, "TASK_OVERDUE")
