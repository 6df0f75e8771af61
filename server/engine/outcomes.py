"""What becomes of a unit when its job ends: the rules of attempts.

Payload failures are counted apart from site faults, lost pilots and preemption; each has a cap of its own, so that a
bad site cannot use up a unit's attempts, nor a bad payload be retried for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from common.errors import ERRORS, ErrorCode
from common.states import JobState, UnitState
from common.wire import UnitOutcome
from server.engine.sizing import raised


class Fault(str, Enum):
    """Whose fault it was that a unit was not processed."""

    NONE = "none"
    """Nobody's: the unit was not touched, or somebody asked for it."""
    PAYLOAD = "payload"
    """The payload's, or what the user asked for."""
    SITE = "site"
    """The site's, a storage's or the network's."""
    PILOT = "pilot"
    """The pilot fell silent."""
    PREEMPTION = "preemption"
    """The batch system took the slot back."""


@dataclass(frozen=True)
class Attempts:
    """How often a unit came back, by fault."""

    payload: int = 0
    site: int = 0
    pilot: int = 0
    preemption: int = 0


@dataclass(frozen=True)
class Caps:
    """How often it may come back; a unit at a cap fails."""

    payload: int = 3
    site: int = 20
    pilot: int = 10
    preemption: int = 50


@dataclass(frozen=True)
class Fate:
    """Where a unit goes; ``bucket_id`` is set where its replicas changed on the way."""

    state: UnitState
    seq: int
    attempts: Attempts
    bucket_id: int | None = None


_PREEMPTIONS = frozenset(
    {ErrorCode.PREEMPTED, ErrorCode.SIGTERM, ErrorCode.SIGUSR1, ErrorCode.SIGQUIT, ErrorCode.DRAINED}
)
_SILENCE = frozenset({ErrorCode.HEARTBEAT_LOST, ErrorCode.WORKER_LOST, ErrorCode.DECLARED_LOST})
_NOBODYS = frozenset(
    {
        ErrorCode.UNITS_NOT_PROCESSED,
        ErrorCode.KILLED_BY_SERVER,
        ErrorCode.USER_KILL,
        ErrorCode.TASK_CANCELLED,
        ErrorCode.GIVEN_BACK,
    }
)


def fault_of(error_code: int | None) -> Fault:
    """Whose fault an error is. A number that we don't know is taken as the payload's, so that it is not retried for ever."""
    if error_code is None:
        return Fault.NONE
    try:
        code = ErrorCode(error_code)
    except ValueError:
        return Fault.PAYLOAD
    if code in _NOBODYS:
        return Fault.NONE
    if code in _PREEMPTIONS:
        return Fault.PREEMPTION
    if code in _SILENCE:
        return Fault.PILOT
    return Fault.PAYLOAD if ERRORS[code].payload else Fault.SITE


def outcome_of(state: UnitState, said: UnitOutcome | None, job_state: JobState, error_code: int | None) -> UnitOutcome:
    """A held unit's outcome when its job ends in ``job_state``, given what the pilot said of it, if anything.

    Only a finished job processes units; what a finished job does not mention was processed if it was outputting, else
    it goes back. What a failed job does not mention failed if the error is the payload's fault.
    """
    if job_state == JobState.FINISHED:
        if said is not None:
            return said
        return UnitOutcome.PROCESSED if state == UnitState.OUTPUTTING else UnitOutcome.RETURNED
    if said is not None and said != UnitOutcome.PROCESSED:
        return said
    payload = job_state == JobState.FAILED and fault_of(error_code) == Fault.PAYLOAD
    return UnitOutcome.FAILED if payload else UnitOutcome.RETURNED


def fate(
    outcome: UnitOutcome, seq: int, attempts: Attempts, caps: Caps, error_code: int | None, progress: bool = False
) -> Fate:
    """Where a unit goes, given its outcome in the job and the job's error.

    A unit that failed counts against the payload; when no retry can help (``ERRORS[...].retry``) that was the last
    time. One that goes back counts against the site, the pilot or preemption, whose fault the error is; one that was
    merely not touched counts with the preemptions, so that nothing goes round for ever; not even that when its job made
    ``progress`` with others, as then every round has fewer left.
    """
    if outcome == UnitOutcome.PROCESSED:
        return Fate(UnitState.DONE, seq, attempts)
    if outcome == UnitOutcome.LOST:
        return Fate(UnitState.LOST, seq, attempts)
    if outcome == UnitOutcome.FAILED:
        return _payload_fault(seq, attempts, caps, hopeless(error_code))
    fault = fault_of(error_code)
    if fault == Fault.NONE and progress:
        return Fate(UnitState.READY, seq, attempts)
    if fault == Fault.SITE:
        attempts = replace(attempts, site=attempts.site + 1)
        over = attempts.site >= caps.site
    elif fault == Fault.PILOT:
        attempts = replace(attempts, pilot=attempts.pilot + 1)
        over = attempts.pilot >= caps.pilot
    else:
        attempts = replace(attempts, preemption=attempts.preemption + 1)
        over = attempts.preemption >= caps.preemption
    return Fate(UnitState.FAILED if over else UnitState.READY, seq, attempts)


def _payload_fault(seq: int, attempts: Attempts, caps: Caps, last: bool) -> Fate:
    attempts = replace(attempts, payload=attempts.payload + 1)
    if last or attempts.payload >= caps.payload:
        return Fate(UnitState.FAILED, seq, attempts)
    return Fate(UnitState.READY, raised(seq, attempts.payload), attempts)


FIRST_WAIT_S = 2.0
LONGEST_WAIT_S = 900.0


def site_wait(n: int) -> float:
    """Seconds for which a site gets no more of a bucket after ``n`` jobs in a row failed by its fault: 2, 4, 8 … 900."""
    return float(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(n - 1, 30)))


def hopeless(error_code: int | None) -> bool:
    """Whether the table says that no retry can help."""
    if error_code is None:
        return False
    try:
        return not ERRORS[ErrorCode(error_code)].retry
    except ValueError:
        return False
