"""Which jobs went wrong, and when a task must be paused for it."""

from __future__ import annotations

import pytest

from common.states import JobState
from common.wire import UnitOutcome
from server.engine.problems import Wrong, how_wrong, problem, window

P, R = UnitOutcome.PROCESSED, UnitOutcome.RETURNED


@pytest.mark.parametrize(
    ("state", "code", "outcomes", "asked", "files", "wanted"),
    [
        (JobState.FAILED, 1305, [], None, True, Wrong.SCRIPT),
        (JobState.FAILED, 1099, [], None, True, Wrong.OTHER),
        (JobState.FAILED, None, [], None, True, Wrong.OTHER),
        (JobState.FAILED, 999999, [], None, True, Wrong.OTHER),
        (JobState.FINISHED, None, [R, R], 0, True, Wrong.NOT_ASKED),
        (JobState.FINISHED, None, [R, R], 2, True, Wrong.NONE_PROCESSED),
        (JobState.FINISHED, None, [R, R], None, True, Wrong.NONE_PROCESSED),
        (JobState.FINISHED, None, [R, P], 2, True, None),
        (JobState.FINISHED, None, [R], 0, False, None),
        (JobState.FINISHED, None, [], 0, True, None),
        (JobState.CANCELLED, 1144, [R], 0, True, None),
        (JobState.CLOSED, None, [R], None, True, None),
    ],
)
def test_how_a_job_went_wrong(
    state: JobState, code: int | None, outcomes: list[UnitOutcome], asked: int | None, files: bool, wanted: Wrong | None
) -> None:
    assert how_wrong(state, code, outcomes, asked, files) == wanted


S, N, Z, X = Wrong.SCRIPT, Wrong.NOT_ASKED, Wrong.NONE_PROCESSED, Wrong.OTHER


@pytest.mark.parametrize(
    ("ends", "paused"),
    [
        ([S] * 10, True),
        ([S] * 9, False),
        ([None] * 10 + [S] * 10, True),
        ([None] * 11 + [S] * 9, False),
        ([N] * 10, True),
        ([Z] * 10, True),
        ([S] * 5 + [N] * 5, False),  # no majority
        ([S] * 6 + [N] * 4, True),
        ([X] * 20, False),
        ([S] * 5 + [X] * 5, False),
        ([S] * 6 + [X] * 5, True),
        ([], False),
    ],
)
def test_a_task_is_paused_when_most_of_ten_bad_jobs_went_wrong_in_one_way(
    ends: list[Wrong | None], paused: bool
) -> None:
    reason = problem(ends, 10)
    assert bool(reason) is paused
    assert not paused or reason.endswith("resume it or kill it")
    assert problem(ends, 0) == ""


def test_twice_as_many_jobs_are_looked_at() -> None:
    assert window(10) == 20


def test_a_kind_keeps_its_number() -> None:
    assert {kind: kind.code for kind in Wrong} == {S: 1, N: 2, Z: 3, X: 4}
    assert all(Wrong.of_code(kind.code) is kind for kind in Wrong)
