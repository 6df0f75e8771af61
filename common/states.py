"""The states of everything that has a life, and the moves between them.

Each kind has one table: rows of *from, to, trigger, who*. Code asks :func:`allowed` or :func:`require` before it moves
anything; the reference page of states is generated from the same rows; a move that is not in its table is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar


class UnitState(str, Enum):
    """A unit: one item of a task's primary input."""

    PENDING = "pending"
    """Not usable yet: unknown, being recalled from tape, or not yet confirmed by the stage before."""
    READY = "ready"
    """Waits for a slot."""
    RESERVED = "reserved"
    """Claimed by a job."""
    OUTPUTTING = "outputting"
    """Processed; its outputs are being uploaded or registered."""
    DONE = "done"
    """Its outputs are confirmed. Accepted once in each generation."""
    FAILED = "failed"
    """No attempt remains."""
    LOST = "lost"
    """No usable replica of its input remains."""
    CANCELLED = "cancelled"
    """Ended with its task."""


class JobState(str, Enum):
    """A job: a claim by one pilot on one or more units of one task."""

    SENT = "sent"
    """Claimed; the pilot has not reported yet."""
    STARTING = "starting"
    """The pilot stages in."""
    RUNNING = "running"
    """The payload runs."""
    HOLDING = "holding"
    """The payload is over, cores are free; outputs are being uploaded or registered."""
    TRANSFERRING = "transferring"
    """Outputs move on to their final destination."""
    FINISHED = "finished"
    """Confirmed."""
    FAILED = "failed"
    """Ended with an error, or declared lost."""
    CANCELLED = "cancelled"
    """Ended by a person or with its task."""
    CLOSED = "closed"
    """Ended by the system before it ran."""


class TaskState(str, Enum):
    """A task: one stage of a workflow."""

    REGISTERED = "registered"
    """Accepted, not looked at yet."""
    DEFINED = "defined"
    """Checked; its input is not resolved yet."""
    PENDING = "pending"
    """Waits for input, from a stage before or from a catalogue."""
    READY = "ready"
    """Has units, no job yet."""
    SCOUTING = "scouting"
    """A few jobs measure what the rest will need."""
    RUNNING = "running"
    """Jobs run or have run."""
    THROTTLED = "throttled"
    """The system gives it nothing new for a while."""
    PAUSED = "paused"
    """A person or a rule stopped new claims."""
    EXHAUSTED = "exhausted"
    """Scouts showed that it cannot go on as it is; a person must look."""
    FINISHING = "finishing"
    """Told to finish: no new claims, running jobs end."""
    DONE = "done"
    """All units done."""
    FINISHED = "finished"
    """Ended with some units done."""
    FAILED = "failed"
    """Ended with no unit done."""
    BROKEN = "broken"
    """Its definition or input is wrong."""
    ABORTED = "aborted"
    """Killed by a person."""


class WorkerState(str, Enum):
    """A worker: a batch job that holds a pilot."""

    PLANNED = "planned"
    """Written down, not submitted."""
    SUBMITTING = "submitting"
    """Handed to the batch system; the answer is not known yet."""
    SUBMITTED = "submitted"
    """Known to the batch system, waits there."""
    RUNNING = "running"
    """Runs in the batch system."""
    HELD = "held"
    """Held by the batch system."""
    MISSING = "missing"
    """The batch system has denied it several times."""
    FINISHED = "finished"
    """Ended well."""
    FAILED = "failed"
    """Ended badly, or could not be submitted."""
    CANCELLED = "cancelled"
    """Removed on demand."""


class ResourceState(str, Enum):
    """A queue, site or storage."""

    ONLINE = "online"
    """In use."""
    PAUSED = "paused"
    """Nothing new."""
    DRAINING = "draining"
    """Nothing new, and idle pilots leave."""
    TEST = "test"
    """Probe jobs only."""
    OFFLINE = "offline"
    """Not used at all."""


S = TypeVar("S", bound=Enum)


@dataclass(frozen=True)
class Transition(Generic[S]):
    """One allowed move: ``trigger`` says what causes it, ``who`` may cause it."""

    source: S
    target: S
    trigger: str
    who: str


class TransitionError(Exception):
    """A move that its table does not have."""

    def __init__(self, source: Enum, target: Enum) -> None:
        super().__init__(f"a {kind_of(source)} cannot go from {source.value} to {target.value}")
        self.source = source
        self.target = target


def _rows(sources: tuple[S, ...], target: S, trigger: str, who: str) -> list[Transition[S]]:
    return [Transition(source, target, trigger, who) for source in sources]


_U, _J, _T, _W, _R = UnitState, JobState, TaskState, WorkerState, ResourceState

UNIT_TRANSITIONS: list[Transition[UnitState]] = [
    Transition(_U.PENDING, _U.READY, "input is available", "agent"),
    Transition(_U.PENDING, _U.LOST, "input will never be available", "agent"),
    Transition(_U.READY, _U.RESERVED, "claim", "pilot"),
    Transition(_U.READY, _U.PENDING, "its replicas are not available any more", "agent"),
    Transition(_U.READY, _U.LOST, "no replica remains", "agent"),
    Transition(_U.RESERVED, _U.OUTPUTTING, "processed", "pilot"),
    Transition(_U.RESERVED, _U.DONE, "confirm", "pilot"),
    Transition(_U.RESERVED, _U.READY, "not processed, or its job died", "pilot, agent"),
    Transition(_U.RESERVED, _U.FAILED, "no attempt remains", "pilot, agent"),
    Transition(_U.RESERVED, _U.LOST, "no replica remains", "pilot"),
    Transition(_U.OUTPUTTING, _U.DONE, "confirm, or registration succeeded", "pilot, agent"),
    Transition(_U.OUTPUTTING, _U.READY, "its job died, or registration failed for good", "pilot, agent"),
    Transition(_U.OUTPUTTING, _U.FAILED, "no attempt remains", "pilot, agent"),
    Transition(_U.DONE, _U.READY, "restart: the next generation", "user"),
    Transition(_U.FAILED, _U.READY, "retry", "user"),
    Transition(_U.LOST, _U.READY, "retry, after a replica came back", "user"),
    *_rows((_U.PENDING, _U.READY, _U.RESERVED, _U.OUTPUTTING), _U.CANCELLED, "its task is killed or finished", "user, agent"),
]  # fmt: skip

_JOB_ALIVE = (_J.SENT, _J.STARTING, _J.RUNNING, _J.HOLDING, _J.TRANSFERRING)

JOB_TRANSITIONS: list[Transition[JobState]] = [
    Transition(_J.SENT, _J.STARTING, "the pilot stages in", "pilot"),
    Transition(_J.SENT, _J.RUNNING, "the payload runs (stage-in went unreported)", "pilot"),
    Transition(_J.SENT, _J.HOLDING, "the payload is over (the rest went unreported)", "pilot"),
    Transition(_J.STARTING, _J.RUNNING, "the payload runs", "pilot"),
    Transition(_J.STARTING, _J.HOLDING, "the payload is over (its run went unreported)", "pilot"),
    Transition(_J.RUNNING, _J.HOLDING, "the payload is over", "pilot"),
    Transition(_J.HOLDING, _J.TRANSFERRING, "outputs move on", "agent"),
    *_rows(_JOB_ALIVE, _J.FINISHED, "confirm", "pilot, agent"),
    *_rows(_JOB_ALIVE, _J.FAILED, "an error, or silence", "pilot, agent"),
    *_rows(_JOB_ALIVE, _J.CANCELLED, "kill", "user, agent"),
    Transition(_J.SENT, _J.CLOSED, "given back before it ran", "pilot, agent"),
]

_TASK_EARLY = (_T.REGISTERED, _T.DEFINED, _T.PENDING, _T.READY)
_TASK_BUSY = (_T.SCOUTING, _T.RUNNING, _T.THROTTLED)
_TASK_OPEN = (*_TASK_EARLY, *_TASK_BUSY, _T.PAUSED, _T.EXHAUSTED, _T.FINISHING)

TASK_TRANSITIONS: list[Transition[TaskState]] = [
    Transition(_T.REGISTERED, _T.DEFINED, "checked", "agent"),
    Transition(_T.REGISTERED, _T.BROKEN, "its definition is wrong", "agent"),
    Transition(_T.DEFINED, _T.PENDING, "waits for its input", "agent"),
    Transition(_T.DEFINED, _T.READY, "its input is resolved", "agent"),
    Transition(_T.DEFINED, _T.BROKEN, "its input is wrong", "agent"),
    Transition(_T.PENDING, _T.READY, "first units", "agent"),
    Transition(_T.PENDING, _T.BROKEN, "its input will never come", "agent"),
    Transition(_T.READY, _T.SCOUTING, "it is large: scouts wanted", "agent"),
    Transition(_T.READY, _T.RUNNING, "first claim", "agent"),
    Transition(_T.SCOUTING, _T.RUNNING, "scouts measured, or avalanche", "agent, user"),
    Transition(_T.SCOUTING, _T.EXHAUSTED, "scouts show a problem", "agent"),
    Transition(_T.RUNNING, _T.EXHAUSTED, "a problem shows in later jobs", "agent"),
    Transition(_T.RUNNING, _T.THROTTLED, "too many failures or jobs", "agent"),
    Transition(_T.RUNNING, _T.PENDING, "waits for more input", "agent"),
    Transition(_T.THROTTLED, _T.RUNNING, "the reason is gone", "agent"),
    *_rows((*_TASK_EARLY[1:], *_TASK_BUSY), _T.PAUSED, "pause", "user, agent"),
    *_rows((_T.PAUSED, _T.EXHAUSTED), _T.DEFINED, "resume before the input was resolved", "user"),
    *_rows((_T.PAUSED, _T.EXHAUSTED), _T.PENDING, "resume", "user"),
    *_rows((_T.PAUSED, _T.EXHAUSTED), _T.READY, "resume", "user"),
    *_rows((_T.PAUSED, _T.EXHAUSTED), _T.SCOUTING, "resume", "user"),
    *_rows((_T.PAUSED, _T.EXHAUSTED), _T.RUNNING, "resume", "user"),
    *_rows((*_TASK_EARLY, *_TASK_BUSY, _T.PAUSED, _T.EXHAUSTED), _T.FINISHING, "finish (soft or hard)", "user"),
    *_rows((_T.PENDING, _T.READY, *_TASK_BUSY, _T.FINISHING), _T.DONE, "all units done", "agent"),
    *_rows((_T.PENDING, _T.READY, *_TASK_BUSY, _T.FINISHING, _T.EXHAUSTED), _T.FINISHED, "ended, some units done", "agent"),
    *_rows((_T.PENDING, _T.READY, *_TASK_BUSY, _T.FINISHING, _T.EXHAUSTED), _T.FAILED, "ended, no unit done", "agent"),
    *_rows(_TASK_OPEN, _T.ABORTED, "kill", "user"),
    *_rows((_T.FINISHED, _T.FAILED, _T.EXHAUSTED), _T.RUNNING, "retry of what failed", "user"),
    *_rows((_T.DONE, _T.FINISHED), _T.PENDING, "incremental execution: new input", "user, agent"),
    *_rows((_T.DONE, _T.FINISHED, _T.FAILED), _T.RUNNING, "restart of units", "user"),
    Transition(_T.BROKEN, _T.PENDING, "the stage before runs again", "user"),
]  # fmt: skip

_WORKER_ALIVE = (_W.PLANNED, _W.SUBMITTING, _W.SUBMITTED, _W.RUNNING, _W.HELD, _W.MISSING)

WORKER_TRANSITIONS: list[Transition[WorkerState]] = [
    Transition(_W.PLANNED, _W.SUBMITTING, "about to submit", "harvester"),
    Transition(_W.SUBMITTING, _W.SUBMITTED, "the batch system took it, or it was found by its mark", "harvester"),
    Transition(_W.SUBMITTING, _W.RUNNING, "found running by its mark", "harvester"),
    Transition(_W.SUBMITTING, _W.PLANNED, "not found by its mark: it never arrived", "harvester"),
    Transition(_W.SUBMITTED, _W.RUNNING, "started", "harvester"),
    Transition(_W.RUNNING, _W.SUBMITTED, "evicted and requeued", "harvester"),
    *_rows((_W.SUBMITTED, _W.RUNNING), _W.HELD, "held", "harvester"),
    Transition(_W.HELD, _W.SUBMITTED, "released", "harvester"),
    Transition(_W.HELD, _W.RUNNING, "released", "harvester"),
    *_rows((_W.SUBMITTED, _W.RUNNING, _W.HELD), _W.MISSING, "denied several times", "harvester"),
    Transition(_W.MISSING, _W.SUBMITTED, "reappeared", "harvester"),
    Transition(_W.MISSING, _W.RUNNING, "reappeared", "harvester"),
    Transition(_W.MISSING, _W.HELD, "reappeared", "harvester"),
    *_rows(_WORKER_ALIVE, _W.FINISHED, "ended with exit code 0", "harvester"),
    *_rows(_WORKER_ALIVE, _W.FAILED, "ended badly, or refused", "harvester"),
    *_rows(_WORKER_ALIVE, _W.CANCELLED, "removed", "harvester"),
]  # fmt: skip

RESOURCE_TRANSITIONS: list[Transition[ResourceState]] = [
    Transition(source, target, "set", "admin")
    for source in ResourceState
    for target in ResourceState
    if source != target
]

FINAL_JOB_STATES = frozenset({_J.FINISHED, _J.FAILED, _J.CANCELLED, _J.CLOSED})
"""A final state never changes; a retry is a new job."""

FINAL_UNIT_STATES = frozenset({_U.DONE, _U.FAILED, _U.LOST, _U.CANCELLED})
"""A unit that needs no more work in this generation."""

FINAL_TASK_STATES = frozenset({_T.DONE, _T.FINISHED, _T.FAILED, _T.BROKEN, _T.ABORTED})

FINAL_WORKER_STATES = frozenset({_W.FINISHED, _W.FAILED, _W.CANCELLED})

CLAIMABLE_TASK_STATES = frozenset({_T.READY, _T.SCOUTING, _T.RUNNING})
"""A claim is refused in any other state, so that a pause is a pause."""


def _index(rows: Sequence[Transition[Any]]) -> Mapping[Any, frozenset[Any]]:
    table: dict[Any, set[Any]] = {}
    for row in rows:
        table.setdefault(row.source, set()).add(row.target)
    return {source: frozenset(targets) for source, targets in table.items()}


# By kind first: states of two kinds may share a word, and then compare equal as strings.
_TARGETS: dict[type[Enum], Mapping[Any, frozenset[Any]]] = {
    UnitState: _index(UNIT_TRANSITIONS),
    JobState: _index(JOB_TRANSITIONS),
    TaskState: _index(TASK_TRANSITIONS),
    WorkerState: _index(WORKER_TRANSITIONS),
    ResourceState: _index(RESOURCE_TRANSITIONS),
}


def kind_of(state: Enum) -> str:
    """The word for the kind that ``state`` belongs to, such as ``unit``."""
    return type(state).__name__[: -len("State")].lower()


def targets(source: S) -> frozenset[S]:
    """The states that ``source`` may go to; empty for an end."""
    found: frozenset[S] = _TARGETS[type(source)].get(source, frozenset())
    return found


def sources(target: S) -> frozenset[S]:
    """The states that may go to ``target``."""
    return frozenset(state for state in type(target) if target in targets(state))


def allowed(source: S, target: S) -> bool:
    """Whether the table has this move."""
    return type(source) is type(target) and target in targets(source)


def require(source: S, target: S) -> None:
    """Refuse a move that is not in its table.

    Raises:
        TransitionError: it names both states.
    """
    if not allowed(source, target):
        raise TransitionError(source, target)
