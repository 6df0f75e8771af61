"""When a task is over, and how it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import FINAL_TASK_STATES, FINAL_UNIT_STATES, TaskState, UnitState, allowed
from server.engine.tasks import Verdict, ending

GOING = [TaskState.PENDING, TaskState.READY, TaskState.SCOUTING, TaskState.RUNNING, TaskState.FINISHING]
COUNTS = st.dictionaries(st.sampled_from(UnitState), st.integers(0, 5))
FINAL_COUNTS = st.dictionaries(st.sampled_from(sorted(FINAL_UNIT_STATES)), st.integers(0, 5))
DONE, FAILED, LOST, CANCELLED = UnitState.DONE, UnitState.FAILED, UnitState.LOST, UnitState.CANCELLED


@pytest.mark.parametrize("state", GOING)
@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({DONE: 3}, Verdict(TaskState.DONE, "")),
        ({DONE: 3, FAILED: 0}, Verdict(TaskState.DONE, "")),
        ({DONE: 2, FAILED: 1}, Verdict(TaskState.FINISHED, "1 failed")),
        ({DONE: 1, LOST: 4, FAILED: 2}, Verdict(TaskState.FINISHED, "2 failed, 4 lost")),
        ({FAILED: 2}, Verdict(TaskState.FAILED, "2 failed")),
        ({LOST: 2, CANCELLED: 1}, Verdict(TaskState.FAILED, "2 lost, 1 cancelled")),
    ],
)
def test_how_a_task_ends(state: TaskState, units: dict[UnitState, int], expected: Verdict) -> None:
    assert ending(state, units, True) == expected
    assert ending(state, units, False) is None


@pytest.mark.parametrize("state", [state for state in TaskState if state not in GOING])
def test_a_task_that_does_not_go_on_does_not_end_by_itself(state: TaskState) -> None:
    assert ending(state, {DONE: 1}, True) is None
    assert ending(state, {}, True) is None


@pytest.mark.parametrize("unit", [unit for unit in UnitState if unit not in FINAL_UNIT_STATES])
def test_one_unit_that_needs_work_keeps_a_task_going(unit: UnitState) -> None:
    for state in GOING:
        assert ending(state, {DONE: 9, unit: 1}, True) is None
        assert ending(state, {DONE: 9, unit: 0}, True) is not None


def test_a_stage_that_gets_no_input_is_broken() -> None:
    assert ending(TaskState.PENDING, {}, True) == Verdict(TaskState.BROKEN, "the stage before gave no input")
    assert ending(TaskState.PENDING, {UnitState.READY: 0}, True) == ending(TaskState.PENDING, {}, True)


def test_a_task_told_to_finish_before_its_first_unit_was_once_broken_against_its_table() -> None:
    verdict = ending(TaskState.FINISHING, {}, True)
    assert verdict is not None and verdict.state == TaskState.FAILED


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(TaskState), COUNTS | FINAL_COUNTS, st.booleans())
def test_a_verdict_is_final_allowed_and_waits_for_every_unit(
    state: TaskState, units: dict[UnitState, int], closed: bool
) -> None:
    verdict = ending(state, units, closed)
    open_units = sum(count for unit, count in units.items() if unit not in FINAL_UNIT_STATES)
    if not closed or open_units or state not in GOING:
        assert verdict is None
        return
    assert verdict is not None
    assert verdict.state in FINAL_TASK_STATES and allowed(state, verdict.state)
    assert bool(verdict.reason) is (verdict.state != TaskState.DONE)
