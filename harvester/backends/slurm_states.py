"""What Slurm's states mean to harvester: every one that its commands and its REST daemon know, long and short."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from common.states import FINAL_WORKER_STATES, WorkerState
from harvester.backends.base import StatusOutcome

W = WorkerState


class SlurmState(Enum):
    """A job's state, by its long name."""

    BOOT_FAIL = "BF"
    """A node could not be booted for it."""
    CANCELLED = "CA"
    """A user or an admin cancelled it."""
    COMPLETED = "CD"
    """All its processes ended, with exit code 0."""
    CONFIGURING = "CF"
    """It has nodes, which are made ready."""
    COMPLETING = "CG"
    """It is being ended; some of its processes may live."""
    DEADLINE = "DL"
    """It could not end before its deadline."""
    EXPEDITING = "EX"
    """It was requeued and goes first."""
    FAILED = "F"
    """It ended with another exit code, or in another bad way."""
    LAUNCH_FAILED = "LF"
    """It could not be launched on its nodes."""
    NODE_FAIL = "NF"
    """One of its nodes failed."""
    OUT_OF_MEMORY = "OOM"
    """It used more memory than it may."""
    PENDING = "PD"
    """It waits."""
    POWER_UP_NODE = "PU"
    """Its nodes are switched on."""
    PREEMPTED = "PR"
    """It had to make way for another."""
    RECONFIG_FAIL = "RC"
    """Its node could not be reconfigured."""
    REQUEUED = "RQ"
    """It is being ended, and waits again then."""
    REQUEUE_FED = "RF"
    """The federation requeues it."""
    REQUEUE_HOLD = "RH"
    """It is requeued, and held."""
    RESIZING = "RS"
    """It is about to change its size."""
    RESV_DEL_HOLD = "RD"
    """Its reservation was deleted: it is held."""
    REVOKED = "RV"
    """Another cluster of the federation has started it."""
    RUNNING = "R"
    """It runs."""
    SIGNALING = "SI"
    """It is sent a signal."""
    SPECIAL_EXIT = "SE"
    """It was requeued with a mark of its failure, and held."""
    STAGE_OUT = "SO"
    """Its files are staged out."""
    STOPPED = "ST"
    """It is stopped and keeps its cores."""
    SUSPENDED = "S"
    """It is suspended; others may have its cores."""
    TIMEOUT = "TO"
    """Its time limit was reached."""
    UPDATE_DB = "UD"
    """Its record is being written."""


STATES: dict[SlurmState, WorkerState] = {
    SlurmState.BOOT_FAIL: W.FAILED,
    SlurmState.CANCELLED: W.CANCELLED,
    SlurmState.COMPLETED: W.FINISHED,
    SlurmState.CONFIGURING: W.SUBMITTED,
    SlurmState.COMPLETING: W.RUNNING,
    SlurmState.DEADLINE: W.FAILED,
    SlurmState.EXPEDITING: W.SUBMITTED,
    SlurmState.FAILED: W.FAILED,
    SlurmState.LAUNCH_FAILED: W.FAILED,
    SlurmState.NODE_FAIL: W.FAILED,
    SlurmState.OUT_OF_MEMORY: W.FAILED,
    SlurmState.PENDING: W.SUBMITTED,
    SlurmState.POWER_UP_NODE: W.SUBMITTED,
    SlurmState.PREEMPTED: W.FAILED,
    SlurmState.RECONFIG_FAIL: W.FAILED,
    SlurmState.REQUEUED: W.SUBMITTED,
    SlurmState.REQUEUE_FED: W.SUBMITTED,
    SlurmState.REQUEUE_HOLD: W.HELD,
    SlurmState.RESIZING: W.RUNNING,
    SlurmState.RESV_DEL_HOLD: W.HELD,
    SlurmState.REVOKED: W.FAILED,
    SlurmState.RUNNING: W.RUNNING,
    SlurmState.SIGNALING: W.RUNNING,
    SlurmState.SPECIAL_EXIT: W.HELD,
    SlurmState.STAGE_OUT: W.RUNNING,
    SlurmState.STOPPED: W.HELD,
    SlurmState.SUSPENDED: W.HELD,
    SlurmState.TIMEOUT: W.FAILED,
    SlurmState.UPDATE_DB: W.RUNNING,
}
"""What each means to harvester."""

HOLDS = frozenset({"jobhelduser", "jobheldadmin", "jobholdmaxrequeue", "job_requeued_in_held_state"})
"""Reasons with which a job that waits is held; versions write them with blanks, bars or capitals."""

_FLAGS = (
    # A job has one state and any number of these, which then say more: the first that it has counts.
    *(SlurmState.SPECIAL_EXIT, SlurmState.REQUEUE_HOLD, SlurmState.RESV_DEL_HOLD, SlurmState.REVOKED),
    *(SlurmState.REQUEUED, SlurmState.REQUEUE_FED, SlurmState.EXPEDITING, SlurmState.LAUNCH_FAILED),
    *(SlurmState.RECONFIG_FAIL, SlurmState.STOPPED, SlurmState.COMPLETING, SlurmState.STAGE_OUT),
    *(
        SlurmState.CONFIGURING,
        SlurmState.POWER_UP_NODE,
        SlurmState.RESIZING,
        SlurmState.SIGNALING,
        SlurmState.UPDATE_DB,
    ),
)
_WORDS = {
    SlurmState.BOOT_FAIL: "a node could not be booted for it",
    SlurmState.CANCELLED: "it was cancelled",
    SlurmState.DEADLINE: "it could not end before its deadline",
    SlurmState.LAUNCH_FAILED: "it could not be launched on its nodes",
    SlurmState.NODE_FAIL: "its node failed",
    SlurmState.OUT_OF_MEMORY: "it used more memory than it may",
    SlurmState.PREEMPTED: "it had to make way for another job",
    SlurmState.RECONFIG_FAIL: "its node could not be reconfigured",
    SlurmState.REVOKED: "another cluster of the federation has started it",
    SlurmState.TIMEOUT: "it reached its time limit",
}
_NO_REASON = frozenset({"", "None", "NonZeroExitCode", "Unknown"})


@dataclass(frozen=True)
class JobRecord:
    """What Slurm says of one job. ``key`` is ``JOB`` or, of an array, ``ARRAY_TASK``; ``state`` is a long name.

    ``detail`` is what it adds to the state, such as ``by 1000`` for a cancellation.
    """

    key: str
    state: str
    name: str = ""
    reason: str = ""
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    host: str = ""

    @property
    def array(self) -> str:
        """The id of its array, or its own."""
        return self.key.partition("_")[0]


def read_state(words: Iterable[str]) -> SlurmState | None:
    """The state that words mean: one, long or short, or a state and its flags. None for one that is in no table."""
    found = {_BY_WORD.get(word.strip().upper().rstrip("+")) for word in words}
    if None in found or not found:
        return None
    flag = next((state for state in _FLAGS if state in found), None)
    return flag or next(iter(found))


def ended(record: JobRecord) -> bool:
    """Whether Slurm says that the job is over."""
    state = read_state(record.state.split())
    return state is not None and STATES[state] in FINAL_WORKER_STATES


def outcome(record: JobRecord) -> StatusOutcome:
    """What a record means for a worker, in words for its admin."""
    state = read_state(record.state.split())
    if state is None:
        return StatusOutcome.unknown(f"Slurm says {record.state!r}, which is in no table")
    target = STATES[state]
    if state is SlurmState.PENDING and record.reason.lower().replace(" ", "_") in HOLDS:
        target = W.HELD
    native = state.name
    if target not in FINAL_WORKER_STATES:
        return StatusOutcome.of(target, native, _waits(native, record), host=record.host)
    if target is W.FINISHED:
        return StatusOutcome.of(target, native, "", 0, record.host)
    return StatusOutcome.of(target, native, _reason(state, record), _exit_code(record), record.host)


def _waits(native: str, record: JobRecord) -> str:
    return "" if record.reason in _NO_REASON else f"{native}: {record.reason}"


def _exit_code(record: JobRecord) -> int | None:
    if record.signal:
        return -record.signal
    return record.exit_code or None


def _reason(state: SlurmState, record: JobRecord) -> str:
    parts = [f"{state.name}: {_WORDS[state]}"] if state in _WORDS else []
    if state is SlurmState.CANCELLED and record.detail:
        parts[-1] += f" {record.detail}"
    if record.signal:
        parts.append(f"ended by {_signal_name(record.signal)}")
    elif record.exit_code:
        parts.append(f"its pilot ended with exit code {record.exit_code}")
    if record.reason not in {*_NO_REASON, state.name}:
        parts.append(f"Slurm's reason: {record.reason}")
    return "; ".join(parts) or state.name


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


_BY_WORD = {word: state for state in SlurmState for word in (state.name, state.value)}
