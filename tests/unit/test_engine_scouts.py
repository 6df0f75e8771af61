"""Scouts: which tasks send them, how many may be out, where, and what they show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from common.errors import ErrorCode
from common.states import JobState, TaskState
from common.wire import Fixed, Measured, MergeRule, Requirements, SingleInput, StageSpec
from server.config import Knobs
from server.engine import scouts
from server.engine.measure import Sample
from server.engine.scouts import NO_SCOUTS, JobGroup, Scouting, Tally, scouting_of, tally

KNOBS = Knobs()


def spec(**more: Any) -> StageSpec:
    return StageSpec(name="s", input=SingleInput(), command=["true"], **more)


def sample(**more: Any) -> Sample:
    figures: dict[str, Any] = {
        "job_id": 1,
        "site": "s",
        "core_power": 10.0,
        "cpu_efficiency": 0.9,
        "cores": 2,
        "units": 1,
        "events": 1,
        "cpu_s": 1500.0,
        "wall_s": 1000.0,
    }
    return Sample(**{**figures, **more})


# ---------------------------------------------------------------- which tasks


@pytest.mark.parametrize(
    ("more", "units", "expected"),
    [
        ({}, 50, False),
        ({}, 51, True),
        ({"files_per_job": 10}, 500, False),
        ({"files_per_job": 10}, 501, True),
        ({"scouts": False}, 10_000, False),
        ({"merge": MergeRule()}, 10_000, False),
    ],
)
def test_large_tasks_send_scouts(more: dict[str, Any], units: int, expected: bool) -> None:
    assert scouts.wanted(spec(**more), units, KNOBS) is expected


def test_an_admin_can_switch_scouts_off() -> None:
    assert not scouts.wanted(spec(), 10_000, structs.replace(KNOBS, scout_count=0))


@pytest.mark.parametrize(
    ("state", "units", "left", "sites", "expected"),
    [
        (TaskState.READY, 1000, None, None, Scouting(10)),
        (TaskState.READY, 10, None, None, None),
        (TaskState.READY, 1000, NO_SCOUTS, None, None),
        (TaskState.READY, 1000, 4, None, Scouting(4)),
        (TaskState.SCOUTING, 1000, 3, "a,b", Scouting(3, frozenset({"a", "b"}))),
        (TaskState.SCOUTING, 10, None, None, Scouting(10)),
        (TaskState.SCOUTING, 1000, 0, None, Scouting(0)),
        (TaskState.RUNNING, 1000, 3, "a", None),
    ],
)
def test_how_a_task_is_held_back(
    state: TaskState, units: int, left: int | None, sites: str | None, expected: Scouting | None
) -> None:
    assert scouting_of(state, spec(), units, left, sites, KNOBS) == expected


def test_the_words_for_a_slot_that_gets_no_scout() -> None:
    held = Scouting(2, frozenset({"a"}))
    assert scouts.refusal(held, "b") == ""
    assert "at a" in scouts.refusal(held, "a")
    assert "scouts are out" in scouts.refusal(Scouting(0), "b")
    assert scouts.refusal(None, "a") == ""


def test_scouts_go_first_and_demand_asks_for_no_more_than_them() -> None:
    assert scouts.boosted(5, Scouting(1), KNOBS) == 5 + KNOBS.scout_boost
    assert scouts.boosted(5, None, KNOBS) == 5
    assert scouts.jobs_wanted(1000, Scouting(3)) == 3
    assert scouts.jobs_wanted(2, Scouting(3)) == 2
    assert scouts.jobs_wanted(1000, None) == 1000


# ---------------------------------------------------------------- how many, where


def group(state: JobState, n: int = 1, site: str = "a", code: int | None = None, at: float = 1.0) -> JobGroup:
    return JobGroup(state, site, code, n, at)


def test_a_tally() -> None:
    found = tally(
        [
            group(JobState.RUNNING, 2),
            group(JobState.SENT, 1, "b", at=9.0),
            group(JobState.FINISHED, 3, "b"),
            group(JobState.FAILED, 4, code=int(ErrorCode.PAYLOAD_FAILED)),
            group(JobState.FAILED, 5, code=int(ErrorCode.HEARTBEAT_LOST)),
            group(JobState.CLOSED, 6),
        ]
    )
    assert (found.live, found.finished, found.failed, found.last_claim) == (3, 3, 4, 9.0)
    assert found.by_site == {"a": 2, "b": 4}
    assert scouts.left(found, KNOBS) == 4


def test_lost_and_closed_scouts_are_made_up_for() -> None:
    lost = tally([group(JobState.FAILED, 50, code=int(ErrorCode.HEARTBEAT_LOST)), group(JobState.CLOSED, 50)])
    assert scouts.left(lost, KNOBS) == KNOBS.scout_count
    assert scouts.failure(lost, KNOBS) == "", "their loss says nothing of the task"


def test_scouts_spread_over_sites_until_no_other_takes_them() -> None:
    found = tally([group(JobState.RUNNING, 5, "a", at=100.0), group(JobState.FINISHED, 4, "b", at=90.0)])
    assert scouts.full_sites(found, 2, 101.0, KNOBS) == ["a"]
    assert scouts.full_sites(found, 1, 101.0, KNOBS) == [], "there is no other site"
    assert scouts.full_sites(found, 2, 100.0 + KNOBS.scout_spread_wait_s, KNOBS) == []
    assert scouts.full_sites(tally([]), 2, 101.0, KNOBS) == []


@pytest.mark.parametrize(("count", "percent", "needed"), [(10, 50.0, 5), (9, 50.0, 5), (1, 50.0, 1), (10, 1.0, 1)])
def test_half_of_the_scouts_are_enough(count: int, percent: float, needed: int) -> None:
    knobs = structs.replace(KNOBS, scout_count=count, scout_finished_percent=percent)
    assert not scouts.enough_finished(Tally(finished=needed - 1), knobs)
    assert scouts.enough_finished(Tally(finished=needed), knobs)


def test_too_many_failures_are_told_with_the_commonest_error() -> None:
    code, other = int(ErrorCode.PAYLOAD_FAILED), int(ErrorCode.MISSING_OUTPUT)
    few = Tally(finished=2, failures={code: 6, other: 3})
    assert scouts.failure(few, KNOBS) == ""
    words = scouts.failure(Tally(finished=2, failures={code: 6, other: 4}), KNOBS)
    assert words.startswith("10 scouts failed and 2 finished") and f"error {code}" in words


groups_ = st.lists(
    st.builds(
        JobGroup,
        state=st.sampled_from(list(JobState)),
        site=st.sampled_from(["a", "b", "c"]),
        error_code=st.sampled_from([None, *(int(code) for code in ErrorCode)]),
        n=st.integers(1, 20),
        last_claim=st.floats(1, 1000),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(groups_, st.integers(1, 30), st.integers(1, 4), st.floats(0, 2000))
def test_there_are_never_more_scouts_than_asked_for(groups: list[JobGroup], count: int, sites: int, now: float) -> None:
    knobs = structs.replace(KNOBS, scout_count=count)
    found = tally(groups)
    assert 0 <= scouts.left(found, knobs) <= max(0, count - found.live)
    assert set(scouts.full_sites(found, sites, now, knobs)) <= set(found.by_site)
    stuck = not found.live and not scouts.left(found, knobs)
    assert not stuck or scouts.enough_finished(found, knobs), "a task that can get no scout has been measured"


# ---------------------------------------------------------------- what they show


def kinds(
    *samples: Sample, measured: Measured | None = None, stage: StageSpec | None = None, **knobs: Any
) -> list[str]:
    turned = structs.replace(KNOBS, **knobs)
    found = scouts.problems(samples, measured or Measured(), stage or spec(), turned)
    assert all(each.words for each in found)
    return [each.kind for each in found]


def test_good_jobs_show_no_problem() -> None:
    assert kinds(sample(), sample(), measured=Measured(memory_per_core_mb=400.0)) == []
    assert kinds() == []


def test_a_memory_leak() -> None:
    leaking, fine = sample(leak_kb_s=101.0), sample(leak_kb_s=99.0)
    assert kinds(leaking, leaking, fine) == ["memory_leak"]
    assert kinds(leaking, fine) == [], "half of them is not most of them"
    assert kinds(sample(leak_kb_s=500.0, wall_s=599.0)) == [], "too short to tell"
    assert kinds(leaking, scout_leak_kb_s=0.0) == []


@pytest.mark.parametrize(
    ("per_core", "fixed", "expected"),
    [(2001.0, [], ["memory"]), (1999.0, [], []), (100.0, [], []), (100.0, [Fixed.MEMORY], ["memory"])],
)
def test_memory_that_is_far_from_what_was_asked_for(per_core: float, fixed: list[Fixed], expected: list[str]) -> None:
    stage = spec(requirements=Requirements(cores=2, memory_mb=1000), fixed=fixed)
    assert kinds(measured=Measured(memory_per_core_mb=per_core), stage=stage) == expected
    assert kinds(measured=Measured(memory_per_core_mb=per_core), stage=stage, scout_wrong_factor=0.0) == []


def test_cpu_time_that_is_far_from_what_was_given() -> None:
    assert kinds(measured=Measured(cpu_per_event=41.0), stage=spec(cpu_per_event=10.0)) == ["cpu_time"]
    assert kinds(measured=Measured(cpu_per_event=2.0), stage=spec(cpu_per_event=10.0)) == []
    fixed = spec(cpu_per_event=10.0, fixed=[Fixed.CPU_TIME])
    assert kinds(measured=Measured(cpu_per_event=2.0), stage=fixed) == ["cpu_time"]
    assert kinds(measured=Measured(cpu_per_event=2.0)) == []


def test_very_short_jobs_are_a_problem_where_the_user_has_set_their_size() -> None:
    short, longer = sample(wall_s=5.0), sample(wall_s=50.0)
    assert kinds(short, longer, stage=spec(files_per_job=1)) == ["short_jobs"]
    assert kinds(short, longer, longer, stage=spec(files_per_job=1)) == []
    assert kinds(short, short) == [], "they will be cut to a better size"
    assert kinds(sample(wall_s=0.0), stage=spec(files_per_job=1)) == [], "not known"
    assert kinds(short, stage=spec(events_per_job=1), scout_short_s=0.0) == []


def test_idle_and_overused_cpus() -> None:
    idle, busy = sample(cpu_s=100.0), sample(cpu_s=5000.0)
    assert kinds(idle, idle, sample()) == ["idle_cpus"]
    assert kinds(idle, sample(), sample()) == []
    assert kinds(busy) == ["busy_cpus"]
    assert kinds(busy, scout_busy_percent=0.0) == []
    assert kinds(idle, scout_idle_percent=0.0) == []
    assert kinds(sample(cpu_s=1.0, wall_s=599.0)) == [], "too short to tell"


def test_a_problem_that_was_told_is_not_told_again() -> None:
    assert kinds(sample(cpu_s=100.0), measured=Measured(problems=["idle_cpus"])) == []
