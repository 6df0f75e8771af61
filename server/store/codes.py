"""The numbers that stand for states in the hot tables. Rows last for years: numbers are only ever added."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TypeVar

from common.states import FINAL_JOB_STATES, JobState, UnitState

UNIT_CODES: dict[UnitState, int] = {
    UnitState.PENDING: 0,
    UnitState.READY: 1,
    UnitState.RESERVED: 2,
    UnitState.OUTPUTTING: 3,
    UnitState.DONE: 4,
    UnitState.FAILED: 5,
    UnitState.LOST: 6,
    UnitState.CANCELLED: 7,
}

JOB_CODES: dict[JobState, int] = {
    JobState.SENT: 0,
    JobState.STARTING: 1,
    JobState.RUNNING: 2,
    JobState.HOLDING: 3,
    JobState.TRANSFERRING: 4,
    JobState.FINISHED: 10,
    JobState.FAILED: 11,
    JobState.CANCELLED: 12,
    JobState.CLOSED: 13,
}

FIRST_FINAL_JOB_CODE = 10
"""Job codes from here on are final, so that "alive" is one comparison in SQL and in partial indexes."""

S = TypeVar("S", bound=Enum)

UNIT_STATES = {code: state for state, code in UNIT_CODES.items()}
JOB_STATES = {code: state for state, code in JOB_CODES.items()}

UNIT_READY = UNIT_CODES[UnitState.READY]
UNIT_RESERVED = UNIT_CODES[UnitState.RESERVED]


class OutputState(IntEnum):
    """What became of a recorded output."""

    RECORDED = 0
    """Its name is reserved; nobody knows whether it was uploaded."""
    CONFIRMED = 1
    """It lies on its storage and is visible."""
    ABANDONED = 2
    """Its job ended without confirming it: to be swept."""
    REMOVED = 3
    """Swept."""
    RETIRED = 8
    """Confirmed once; its units were restarted since. It stays on its storage and is visible no more."""
    UPLOADED = 4
    """Its job is confirmed; it becomes visible when the catalogue knows it."""


class PilotState(IntEnum):
    """A pilot, as the server sees it."""

    ACTIVE = 0
    LOST = 1
    ENDED = 2
    EXPECTED = 3
    """Stands in for the pilot of a worker that is not there yet: it holds the jobs that harvester claimed for it."""
    DIRECT = 4
    """Stands where a pilot would be in a direct job: the batch system's word counts, and nobody waits for a heartbeat."""


PUSHED = "pushed"
"""The request id of a job that was claimed for an expected pilot and not handed out yet: too short for a pilot's own."""
PUSHED_ORDINAL = 10_000
"""Ordinals from here on are of such jobs, before and after they are handed out."""


if {state for state, code in JOB_CODES.items() if code >= FIRST_FINAL_JOB_CODE} != FINAL_JOB_STATES:
    raise AssertionError("FIRST_FINAL_JOB_CODE does not agree with FINAL_JOB_STATES")
