"""The numbered errors: each has words to act on, somebody who acts, and a number that never changes."""

from __future__ import annotations

import pickle
import re

import pytest

from common.errors import ERRORS, SIGNAL_ERRORS, Actor, ErrorCode, PilotageError

CODES = [pytest.param(code, id=code.name) for code in ErrorCode]

# Dashboards of sites know these numbers from the PanDA pilot; ours must never move either.
FIXED = {
    1098: ErrorCode.NO_LOCAL_SPACE,
    1099: ErrorCode.STAGE_IN_FAILED,
    1103: ErrorCode.NO_SUCH_FILE,
    1137: ErrorCode.STAGE_OUT_FAILED,
    1150: ErrorCode.LOOPING_JOB,
    1165: ErrorCode.MISSING_OUTPUT,
    1171: ErrorCode.GET_ADLER32_MISMATCH,
    1172: ErrorCode.PUT_ADLER32_MISMATCH,
    1201: ErrorCode.SIGTERM,
    1203: ErrorCode.SIGSEGV,
    1212: ErrorCode.OUT_OF_MEMORY,
    1213: ErrorCode.WALL_TIME_REACHED,
    1235: ErrorCode.MEMORY_EXCEEDED,
    1305: ErrorCode.PAYLOAD_FAILED,
    1360: ErrorCode.IMAGE_NOT_FOUND,
    1400: ErrorCode.BAD_JOBSCRIPT,
    1402: ErrorCode.HEARTBEAT_LOST,
    1404: ErrorCode.PREEMPTED,
    1408: ErrorCode.TASK_CANCELLED,
}


def test_every_number_has_a_row_and_every_row_a_number() -> None:
    assert set(ERRORS) == set(ErrorCode)


def test_no_two_errors_share_a_number() -> None:
    # An alias would be no member of its own.
    assert len(ErrorCode.__members__) == len(list(ErrorCode))


@pytest.mark.parametrize(("number", "code"), FIXED.items())
def test_a_number_never_changes(number: int, code: ErrorCode) -> None:
    assert int(code) == number


@pytest.mark.parametrize("code", CODES)
def test_an_error_has_words_for_a_person(code: ErrorCode) -> None:
    words = ERRORS[code].words
    assert re.fullmatch(r"[A-Z].{14,}[^.]\.", words), words
    assert "|" not in words and "\n" not in words


def test_no_two_errors_have_the_same_words() -> None:
    words = [info.words for info in ERRORS.values()]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("code", CODES)
def test_the_payloads_fault_is_the_users_to_mend(code: ErrorCode) -> None:
    if ERRORS[code].payload:
        assert ERRORS[code].actor is Actor.USER


@pytest.mark.parametrize("code", CODES)
def test_a_sites_fault_can_be_retried_elsewhere(code: ErrorCode) -> None:
    if ERRORS[code].actor is Actor.SITE:
        assert ERRORS[code].retry


@pytest.mark.parametrize("code", CODES)
def test_an_exception_carries_number_name_and_words(code: ErrorCode) -> None:
    plain, detailed = PilotageError(code), PilotageError(code, "disk sda1")
    assert str(plain) == f"{int(code)} {code.name}: {ERRORS[code].words}"
    assert str(detailed) == f"{int(code)} {code.name}: disk sda1"
    assert (detailed.code, detailed.detail, detailed.info) == (code, "disk sda1", ERRORS[code])


def test_an_exception_takes_a_plain_number() -> None:
    assert PilotageError(1305).code is ErrorCode.PAYLOAD_FAILED  # type: ignore[arg-type]


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(ValueError, match="4711"):
        PilotageError(4711)  # type: ignore[arg-type]


@pytest.mark.parametrize(("signal", "code"), SIGNAL_ERRORS.items())
def test_a_signal_is_reported_under_its_own_name(signal: str, code: ErrorCode) -> None:
    assert code.name == signal


def test_codes_survive_a_file() -> None:
    assert pickle.loads(pickle.dumps(ErrorCode.PREEMPTED)) is ErrorCode.PREEMPTED
