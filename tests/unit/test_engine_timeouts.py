"""Every live job has a time-out, each knob is a setting, and no outage of the server costs a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ERRORS
from common.states import FINAL_JOB_STATES, JobState, ResourceState, TaskState, allowed
from common.wire import QueueSpec, SiteSpec
from server.config import Knobs
from server.engine.timeouts import (
    JOB_TIMEOUTS,
    TASK_TIMEOUTS,
    Action,
    Silence,
    exempt,
    least_limit,
    limit_of,
    overdue,
)
from server.engine.world import World


def world(
    status: ResourceState = ResourceState.ONLINE, site: ResourceState = ResourceState.ONLINE, **more: int
) -> World:
    queue = QueueSpec(name="q", site="s", status=status, **more)  # type: ignore[arg-type]
    return World(sites={"s": SiteSpec("s", site)}, queues={"q": queue})


def test_every_state_of_a_live_job_has_a_time_out() -> None:
    assert {row.state for row in JOB_TIMEOUTS} == set(JobState) - FINAL_JOB_STATES
    for row in JOB_TIMEOUTS:
        assert allowed(row.state, JobState.FAILED) and ERRORS[row.error].retry


def test_every_knob_is_a_setting() -> None:
    knobs = Knobs()
    for row in JOB_TIMEOUTS:
        assert 0 < limit_of(row, knobs, 10_000) <= limit_of(row, knobs, 0)
        assert least_limit(row, knobs) == limit_of(row, knobs, 10_000)
    for task in TASK_TIMEOUTS:
        assert getattr(knobs, task.knob) > 0


def test_the_numbers_are_those_of_panda() -> None:
    knobs = Knobs()
    limits = {row.state: limit_of(row, knobs, 0) for row in JOB_TIMEOUTS}
    assert (limits[JobState.SENT], limits[JobState.STARTING]) == (1800, 2 * 86400)
    assert limits[JobState.RUNNING] == 21 * 86400
    urgent = {row.state: limit_of(row, knobs, 800) for row in JOB_TIMEOUTS}
    assert (urgent[JobState.HOLDING], urgent[JobState.STARTING]) == (3 * 3600, 4 * 3600)
    assert urgent[JobState.SENT] == 1800
    assert limit_of(JOB_TIMEOUTS[3], knobs, 799) == 3 * 86400


def test_what_is_resumed_may_run() -> None:
    for row in TASK_TIMEOUTS:
        if row.action == Action.RESUME:
            assert allowed(row.state, TaskState.RUNNING)
        assert row.action != Action.FAIL  # a task fails by its units only


@given(
    since=st.floats(0, 1e6),
    limit=st.floats(1, 1e6),
    up=st.floats(0, 1e6),
    grace=st.floats(1, 1e5),
    now=st.floats(0, 2e6),
)
def test_nothing_is_overdue_early_nor_while_the_server_has_just_come_back(
    since: float, limit: float, up: float, grace: float, now: float
) -> None:
    if overdue(since, limit, up, grace, now):
        assert now - since >= limit and now - up >= min(limit, grace)


def test_a_restart_does_not_begin_three_weeks_anew() -> None:
    weeks = 21 * 86400.0
    assert not overdue(0.0, weeks, weeks, 3600.0, weeks + 3599)
    assert overdue(0.0, weeks, weeks, 3600.0, weeks + 3600)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (world(), False),
        (world(ResourceState.DRAINING), False),
        (world(ResourceState.OFFLINE), False),
        (world(ResourceState.PAUSED), True),
        (world(site=ResourceState.PAUSED), True),
        (world(no_reassign=True), True),
        (World(), False),
    ],
)
def test_paused_queues_are_exempt(where: World, expected: bool) -> None:
    assert exempt(where, "q") is expected


SILENCE = Silence(timeout_s=3600, worker_end_grace_s=30, heartbeat_s=60, unnoticed_s=10)


def test_how_long_a_pilot_may_be_silent() -> None:
    assert SILENCE.least_s == 120
    assert SILENCE.limit(world(), "q", False) == 3600
    assert SILENCE.limit(world(heartbeat_timeout_s=600), "q", False) == 600
    assert SILENCE.limit(world(heartbeat_timeout_s=5), "q", False) == 130  # two heartbeats and what went unnoticed
    assert SILENCE.limit(World(), "gone", False) == 3600


def test_only_the_end_of_its_worker_takes_work_from_a_pilot_of_a_paused_queue() -> None:
    for where in (world(ResourceState.PAUSED), world(no_reassign=True)):
        assert SILENCE.limit(where, "q", False) is None
        assert SILENCE.limit(where, "q", True) == 120
    assert SILENCE.limit(world(heartbeat_timeout_s=9000), "q", True) == 120


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(1, 1e4), st.integers(0, 10_000), st.booleans())
def test_no_limit_is_below_the_least(timeout: float, grace: float, beat: float, own: int, ended: bool) -> None:
    silence = Silence(timeout, grace, beat, 10.0)
    limit = silence.limit(world(heartbeat_timeout_s=own), "q", ended)
    assert limit is not None and limit >= 2 * beat
