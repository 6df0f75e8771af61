"""The transition tables: what every state may become, and that nothing else happens."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from itertools import product
from typing import Any

import pytest

from common import states
from common.states import JobState, ResourceState, TaskState, Transition, UnitState, WorkerState

TABLES: dict[type[Enum], list[Transition[Any]]] = {
    UnitState: states.UNIT_TRANSITIONS,
    JobState: states.JOB_TRANSITIONS,
    TaskState: states.TASK_TRANSITIONS,
    WorkerState: states.WORKER_TRANSITIONS,
    ResourceState: states.RESOURCE_TRANSITIONS,
}
KINDS = [pytest.param(kind, id=kind.__name__) for kind in TABLES]
WHO = {"user", "admin", "agent", "pilot", "harvester"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_is_reachable_from_the_first(kind: type[Enum]) -> None:
    reached = {next(iter(kind))}
    while fresh := {target for source in reached for target in states.targets(source)} - reached:
        reached |= fresh
    assert reached == set(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_is_there_twice(kind: type[Enum]) -> None:
    rows = Counter((row.source, row.target, row.trigger) for row in TABLES[kind])
    assert [row for row, count in rows.items() if count > 1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_stay_in_their_kind_and_say_what_and_who(kind: type[Enum]) -> None:
    for row in TABLES[kind]:
        assert type(row.source) is kind and type(row.target) is kind, row
        assert row.source != row.target, row
        assert row.trigger.strip(), row
        assert row.who.split(", ") and set(row.who.split(", ")) <= WHO, row


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_is_allowed_exactly_when_its_table_has_it(kind: type[Enum]) -> None:
    for source, target in product(kind, repeat=2):
        there = any(row.source is source and row.target is target for row in TABLES[kind])
        assert states.allowed(source, target) is there
        assert (target in states.targets(source)) is there
        assert (source in states.sources(target)) is there
        if there:
            states.require(source, target)
            continue
        with pytest.raises(states.TransitionError, match=f"from {source.value} to {target.value}$") as caught:
            states.require(source, target)
        assert (caught.value.source, caught.value.target) == (source, target)


def test_a_refused_move_names_the_kind() -> None:
    with pytest.raises(states.TransitionError, match=r"^a job cannot go from finished to running$"):
        states.require(JobState.FINISHED, JobState.RUNNING)


@pytest.mark.parametrize("state", sorted(states.FINAL_JOB_STATES) + sorted(states.FINAL_WORKER_STATES), ids=str)
def test_a_final_job_or_worker_has_no_way_out(state: Enum) -> None:
    assert states.targets(state) == frozenset()


@pytest.mark.parametrize("state", list(JobState))
def test_a_job_that_is_not_final_can_finish_fail_and_be_cancelled(state: JobState) -> None:
    if state not in states.FINAL_JOB_STATES:
        assert {JobState.FINISHED, JobState.FAILED, JobState.CANCELLED} <= states.targets(state)


def test_only_a_job_that_never_ran_is_closed() -> None:
    assert states.sources(JobState.CLOSED) == {JobState.SENT}


@pytest.mark.parametrize("row", states.UNIT_TRANSITIONS, ids=lambda row: f"{row.source.value}-{row.target.value}")
def test_a_final_unit_moves_on_only_when_a_user_asks(row: Transition[UnitState]) -> None:
    if row.source in states.FINAL_UNIT_STATES:
        assert (row.target, row.who) == (UnitState.READY, "user")


def test_a_unit_is_done_only_from_a_claim() -> None:
    assert states.sources(UnitState.DONE) == {UnitState.RESERVED, UnitState.OUTPUTTING}
    assert states.sources(UnitState.RESERVED) == {UnitState.READY}


def test_a_final_task_goes_on_only_by_retry_or_new_input() -> None:
    for state in states.FINAL_TASK_STATES:
        assert states.targets(state) <= {TaskState.RUNNING, TaskState.PENDING}
    assert states.targets(TaskState.BROKEN) == {TaskState.PENDING}  # with the stage before it
    assert states.targets(TaskState.ABORTED) == frozenset()


@pytest.mark.parametrize("state", list(TaskState))
def test_a_task_that_is_not_final_can_be_killed(state: TaskState) -> None:
    assert states.allowed(state, TaskState.ABORTED) is (state not in states.FINAL_TASK_STATES)


def test_a_pause_stops_claims_and_can_be_undone() -> None:
    assert TaskState.PAUSED not in states.CLAIMABLE_TASK_STATES
    for state in states.CLAIMABLE_TASK_STATES:
        assert states.allowed(state, TaskState.PAUSED)
        assert states.allowed(TaskState.PAUSED, state)


def test_a_missing_worker_may_reappear_in_each_state_that_it_went_missing_from() -> None:
    for state in states.sources(WorkerState.MISSING):
        assert states.allowed(WorkerState.MISSING, state)


def test_an_admin_may_set_a_resource_to_anything() -> None:
    assert all(states.allowed(a, b) for a, b in product(ResourceState, repeat=2) if a != b)


def test_kinds_that_share_a_word_have_tables_of_their_own() -> None:
    assert states.targets(WorkerState.FINISHED) == frozenset()
    assert states.targets(TaskState.FINISHED) != frozenset()
    assert {type(state) for state in states.targets(UnitState.READY)} == {UnitState}
    assert {type(state) for state in states.targets(TaskState.READY)} == {TaskState}


def test_a_state_of_another_kind_with_the_same_word_is_no_target() -> None:
    every = [state for kind in TABLES for state in kind]
    mixed = [(a, b) for a, b in product(every, repeat=2) if type(a) is not type(b) and states.allowed(a, b)]
    assert mixed == []


@pytest.mark.parametrize(
    ("kind", "word"),
    [(UnitState, "unit"), (JobState, "job"), (TaskState, "task"), (WorkerState, "worker"), (ResourceState, "resource")],
)
def test_the_kind_has_a_word(kind: type[Enum], word: str) -> None:
    assert {states.kind_of(state) for state in kind} == {word}


def test_the_values_are_what_the_design_calls_them() -> None:
    for kind in TABLES:
        assert [state.value for state in kind] == [state.name.lower() for state in kind]
