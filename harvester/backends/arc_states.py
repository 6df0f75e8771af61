"""The states of jobs that an ARC CE shows, and what they mean to harvester."""

from __future__ import annotations

import re
from enum import Enum

from common.states import WorkerState


class ArcState(Enum):
    """The states of the REST interface, versions 1.0 and 1.1."""

    ACCEPTING = "ACCEPTING"
    """It has just come and wasn't looked at yet."""
    ACCEPTED = "ACCEPTED"
    """It waits for the CE to begin with it, because of a limit or for its turn."""
    PREPARING = "PREPARING"
    """Its input is brought in, or waited for."""
    PREPARED = "PREPARED"
    """Its input is there; it waits to be handed to the batch system behind the CE."""
    SUBMITTING = "SUBMITTING"
    """It is being handed to that batch system."""
    QUEUING = "QUEUING"
    """It waits there for a slot."""
    RUNNING = "RUNNING"
    """It runs, or at least that batch system has it."""
    HELD = "HELD"
    """It is held there."""
    EXITINGLRMS = "EXITINGLRMS"
    """It has ended and that batch system cleans up after it."""
    OTHER = "OTHER"
    """That batch system has it, in a state that the CE has no word for (suspended, booting its node)."""
    EXECUTED = "EXECUTED"
    """It has ended; what it left waits to be looked after."""
    FINISHING = "FINISHING"
    """What it left is looked after."""
    KILLING = "KILLING"
    """Its end was asked for."""
    FINISHED = "FINISHED"
    """It ended well, with exit code 0."""
    FAILED = "FAILED"
    """It ended badly, or the CE could not bring it to run."""
    KILLED = "KILLED"
    """It was ended on demand."""
    WIPED = "WIPED"
    """It ended so long ago that the CE has removed what it left."""


STATES: dict[ArcState, WorkerState] = {
    ArcState.ACCEPTING: WorkerState.SUBMITTED,
    ArcState.ACCEPTED: WorkerState.SUBMITTED,
    ArcState.PREPARING: WorkerState.SUBMITTED,
    ArcState.PREPARED: WorkerState.SUBMITTED,
    ArcState.SUBMITTING: WorkerState.SUBMITTED,
    ArcState.QUEUING: WorkerState.SUBMITTED,
    ArcState.RUNNING: WorkerState.RUNNING,
    ArcState.HELD: WorkerState.HELD,
    ArcState.EXITINGLRMS: WorkerState.RUNNING,
    ArcState.OTHER: WorkerState.RUNNING,
    ArcState.EXECUTED: WorkerState.RUNNING,
    ArcState.FINISHING: WorkerState.RUNNING,
    ArcState.KILLING: WorkerState.RUNNING,
    ArcState.FINISHED: WorkerState.FINISHED,
    ArcState.FAILED: WorkerState.FAILED,
    ArcState.KILLED: WorkerState.CANCELLED,
    ArcState.WIPED: WorkerState.FAILED,
}
"""What each of them means to harvester."""

INTERNAL: dict[str, ArcState] = {
    "PENDING:ACCEPTED": ArcState.ACCEPTED,
    "PENDING:PREPARING": ArcState.PREPARED,
    "SUBMIT": ArcState.SUBMITTING,
    "INLRMS": ArcState.RUNNING,
    "PENDING:INLRMS": ArcState.EXECUTED,
    "CANCELING": ArcState.KILLING,
    "DELETED": ArcState.WIPED,
}
"""A-REX's own names of states, where they differ from those of its REST interface."""

IN_BATCH_SYSTEM = frozenset({ArcState.QUEUING, ArcState.RUNNING, ArcState.HELD, ArcState.EXITINGLRMS, ArcState.OTHER})
"""What the CE calls RUNNING where it can't be asked what the batch system behind it says."""
WAITS_FOR_INPUT = frozenset({ArcState.ACCEPTING, ArcState.ACCEPTED, ArcState.PREPARING})
"""States in which input can still be uploaded."""

_PREFIX = "arcrest:"
_ON_DEMAND = "Job is canceled by external request"
_EXIT_CODE = re.compile(r"LRMS error: \((-?\d+)\)")


def state_of(word: str | list[str]) -> ArcState | None:
    """The state that a CE names; None for a word that isn't in the tables.

    Job information lists one state in the words of several interfaces (``emies:``, ``nordugrid:``, ``arcrest:``): then that
    of REST counts.
    """
    if isinstance(word, list):
        word = next((each for each in word if each.startswith(_PREFIX)), "")
    word = word.removeprefix(_PREFIX)
    if word in INTERNAL:
        return INTERNAL[word]
    return ArcState(word) if word in ArcState.__members__ else None


def merged(fresh: ArcState, detailed: ArcState | None) -> ArcState:
    """The state of a job of which the CE says two things: at once but coarsely, and in detail but minutes late."""
    if fresh is not ArcState.RUNNING or detailed is None:
        return fresh
    # Of a job that the batch system has, late news of an earlier state say that it was not seen running yet.
    return detailed if detailed in IN_BATCH_SYSTEM else fresh


def ended_as(failure: str) -> ArcState:
    """How a job ended that a CE calls failed: some call those so that were ended on demand."""
    return ArcState.KILLED if _ON_DEMAND in failure else ArcState.FAILED


def exit_code_of(failure: str) -> int | None:
    """The exit code in a CE's words on a failure; None when the job didn't end by itself. A negative one is no exit code."""
    found = _EXIT_CODE.search(failure)
    code = None if found is None else int(found[1])
    return code if code is not None and code >= 0 else None


def reason_of(state: ArcState, failure: str) -> str:
    """Why a job is in a state, in words that an admin can act on."""
    words = " ".join(failure.split())
    if state is ArcState.KILLED:
        return "ended on demand"
    if state is ArcState.WIPED:
        return "the CE had removed all it kept of it before harvester asked how it ended"
    if state is ArcState.FAILED:
        return words or "the CE doesn't say why; see the files that fetch_logs brings home"
    if state is ArcState.HELD:
        return "held by the batch system behind the CE"
    return ""
