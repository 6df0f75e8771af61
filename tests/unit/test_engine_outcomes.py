"""What becomes of a unit when its job ends: each fault has a cap of its own."""

from __future__ import annotations

from dataclasses import astuple, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ERRORS, Actor, ErrorCode
from common.states import FINAL_JOB_STATES, JobState, UnitState
from common.wire import UnitOutcome
from server.engine.outcomes import Attempts, Caps, Fate, Fault, fate, fault_of, hopeless, outcome_of, site_wait
from server.engine.sizing import raised, tier_of

CODES = [None, 4711, *ErrorCode]
BY_FAULT = {
    Fault.PAYLOAD: ErrorCode.PAYLOAD_FAILED,
    Fault.SITE: ErrorCode.STAGE_IN_FAILED,
    Fault.PILOT: ErrorCode.HEARTBEAT_LOST,
    Fault.PREEMPTION: ErrorCode.PREEMPTED,
}
ATTEMPTS = st.builds(Attempts, *[st.integers(0, 60)] * 4)
CAPS = st.builds(Caps, *[st.integers(1, 60)] * 4)


def failed_job(code: int | None, attempts: Attempts, caps: Caps) -> Fate:
    """What becomes of a unit of which a failed job says nothing."""
    return fate(outcome_of(UnitState.RESERVED, None, JobState.FAILED, code), 7, attempts, caps, code)


def rounds_until_failed(code: int | None, caps: Caps, most: int = 200) -> int | None:
    attempts = Attempts()
    for count in range(1, most):
        result = failed_job(code, attempts, caps)
        if result.state == UnitState.FAILED:
            return count
        assert result.state == UnitState.READY
        attempts = result.attempts
    return None


@pytest.mark.parametrize(("fault", "code"), BY_FAULT.items())
def test_each_fault_has_a_cap_of_its_own(fault: Fault, code: ErrorCode) -> None:
    caps = Caps(payload=3, site=5, pilot=7, preemption=11)
    assert rounds_until_failed(code, caps) == getattr(caps, fault.value)


@pytest.mark.parametrize(("fault", "code"), BY_FAULT.items())
def test_a_fault_counts_only_in_its_own_column(fault: Fault, code: ErrorCode) -> None:
    counted = failed_job(code, Attempts(), Caps(99, 99, 99, 99)).attempts
    assert {field.name for field in fields(counted) if getattr(counted, field.name)} == {fault.value}


@pytest.mark.parametrize("fault", BY_FAULT)
def test_a_column_that_is_full_does_not_fail_a_unit_for_another_fault(fault: Fault) -> None:
    full = Attempts(**{fault.value: 1_000})
    for other, code in BY_FAULT.items():
        if other != fault:
            assert failed_job(code, full, Caps()).state == UnitState.READY


def test_a_bad_site_does_not_use_up_the_payloads_attempts() -> None:
    attempts = failed_job(ErrorCode.STAGE_IN_FAILED, Attempts(), Caps()).attempts
    assert attempts == Attempts(site=1)


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_hopeless_payload_error_fails_at_once(code: int | None) -> None:
    result = failed_job(code, Attempts(), Caps())
    if code is not None and code != 4711 and ERRORS[ErrorCode(code)].payload:
        expected = UnitState.READY if ERRORS[ErrorCode(code)].retry else UnitState.FAILED
        assert result.state == expected
    else:
        assert result.state == UnitState.READY


@pytest.mark.parametrize("code", CODES, ids=str)
def test_what_the_table_calls_hopeless(code: int | None) -> None:
    assert hopeless(code) is (code is not None and code != 4711 and not ERRORS[ErrorCode(code)].retry)


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize(
    ("outcome", "state"), [(UnitOutcome.PROCESSED, UnitState.DONE), (UnitOutcome.LOST, UnitState.LOST)]
)
def test_processed_and_lost_units_keep_their_counts(outcome: UnitOutcome, state: UnitState, code: int | None) -> None:
    assert fate(outcome, 7, Attempts(1, 2, 3, 4), Caps(1, 1, 1, 1), code) == Fate(state, 7, Attempts(1, 2, 3, 4))


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_unit_that_failed_in_the_payload_counts_against_it_whatever_the_job_says(code: int | None) -> None:
    result = fate(UnitOutcome.FAILED, 7, Attempts(), Caps(payload=2), code)
    assert result.attempts == Attempts(payload=1)
    assert result.state == (UnitState.FAILED if hopeless(code) else UnitState.READY)


@pytest.mark.parametrize("code", [None, ErrorCode.UNITS_NOT_PROCESSED, ErrorCode.KILLED_BY_SERVER, ErrorCode.USER_KILL])
def test_a_unit_that_was_merely_not_touched_keeps_its_place_and_is_not_passed_round_for_ever(code: int | None) -> None:
    assert failed_job(code, Attempts(2, 3, 4, 5), Caps()) == Fate(UnitState.READY, 7, Attempts(2, 3, 4, 6))
    assert rounds_until_failed(code, Caps(payload=1, site=1, pilot=1, preemption=9)) == 9


@pytest.mark.parametrize("code", CODES, ids=str)
def test_a_unit_that_the_pilot_gives_back_is_never_held_against_the_payload(code: int | None) -> None:
    result = fate(UnitOutcome.RETURNED, 7, Attempts(), Caps(payload=1), code)
    assert (result.state, result.seq, result.attempts.payload) == (UnitState.READY, 7, 0)


ENDS = [state for state in JobState if state in FINAL_JOB_STATES]


@pytest.mark.parametrize("held", [UnitState.RESERVED, UnitState.OUTPUTTING])
@pytest.mark.parametrize("said", list(UnitOutcome))
def test_a_finished_job_is_believed(held: UnitState, said: UnitOutcome) -> None:
    assert outcome_of(held, said, JobState.FINISHED, None) == said


@pytest.mark.parametrize("held", [UnitState.RESERVED, UnitState.OUTPUTTING])
def test_what_a_finished_job_does_not_mention(held: UnitState) -> None:
    expected = UnitOutcome.PROCESSED if held == UnitState.OUTPUTTING else UnitOutcome.RETURNED
    assert outcome_of(held, None, JobState.FINISHED, None) == expected


@pytest.mark.parametrize("code", CODES, ids=str)
@pytest.mark.parametrize("end", [state for state in ENDS if state != JobState.FINISHED])
@pytest.mark.parametrize("held", [UnitState.RESERVED, UnitState.OUTPUTTING])
def test_only_a_finished_job_processes_units(held: UnitState, end: JobState, code: int | None) -> None:
    assert outcome_of(held, UnitOutcome.FAILED, end, code) == UnitOutcome.FAILED
    assert outcome_of(held, UnitOutcome.LOST, end, code) == UnitOutcome.LOST
    assert outcome_of(held, UnitOutcome.RETURNED, end, code) == UnitOutcome.RETURNED
    for said in (None, UnitOutcome.PROCESSED):
        payload = end == JobState.FAILED and fault_of(code) == Fault.PAYLOAD
        assert outcome_of(held, said, end, code) == (UnitOutcome.FAILED if payload else UnitOutcome.RETURNED)


def test_a_number_that_we_do_not_know_is_not_retried_for_ever() -> None:
    assert fault_of(4711) == Fault.PAYLOAD
    assert rounds_until_failed(4711, Caps(payload=3)) == 3


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_whose_fault_an_error_is_follows_the_table(code: ErrorCode) -> None:
    fault, row = fault_of(code), ERRORS[code]
    assert (fault == Fault.PAYLOAD) is row.payload
    if row.actor == Actor.NOBODY:
        assert fault not in (Fault.PAYLOAD, Fault.SITE)


def test_a_killed_task_or_a_late_result_was_once_held_against_the_site() -> None:
    assert fault_of(ErrorCode.TASK_CANCELLED) == Fault.NONE
    assert fault_of(ErrorCode.DECLARED_LOST) == Fault.PILOT


def test_a_payload_failure_puts_the_unit_behind_all_that_failed_less_often() -> None:
    first = fate(UnitOutcome.FAILED, 7, Attempts(), Caps(payload=9), None)
    second = fate(UnitOutcome.FAILED, first.seq, first.attempts, Caps(payload=9), None)
    assert (tier_of(first.seq), tier_of(second.seq)) == (1, 2)
    assert second.seq > first.seq > raised(2**40 - 1, 0)
    assert raised(second.seq, 0) == 7


@pytest.mark.parametrize("code", [BY_FAULT[fault] for fault in (Fault.SITE, Fault.PILOT, Fault.PREEMPTION)])
def test_a_fault_that_is_not_the_payloads_keeps_the_units_place(code: ErrorCode) -> None:
    assert failed_job(code, Attempts(), Caps()).seq == 7


@settings(deadline=None, max_examples=1000)
@given(st.sampled_from(UnitOutcome), st.integers(0, 2**40 - 1), ATTEMPTS, CAPS, st.sampled_from(CODES))
def test_a_fate_is_never_worse_than_it_must_be(
    outcome: UnitOutcome, seq: int, attempts: Attempts, caps: Caps, code: int | None
) -> None:
    result = fate(outcome, seq, attempts, caps, code)
    assert result == fate(outcome, seq, attempts, caps, code)
    grown = [after - before for before, after in zip(astuple(attempts), astuple(result.attempts))]
    assert all(step >= 0 for step in grown) and sum(grown) <= 1
    if result.state == UnitState.FAILED:
        at_cap = any(step and now >= cap for step, now, cap in zip(grown, astuple(result.attempts), astuple(caps)))
        assert sum(grown) == 1 and (at_cap or hopeless(code))
    assert result.state != UnitState.READY or result.seq & (2**40 - 1) == seq


def test_a_failing_site_waits_twice_as_long_each_time_up_to_a_bound() -> None:
    waits = [site_wait(n) for n in range(1, 40)]
    assert waits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert all(after >= before for before, after in zip(waits, waits[1:])) and waits[-1] == 900.0
