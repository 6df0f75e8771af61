"""What a job's ad in HTCondor means to harvester: every job status, every hold reason, every way to end."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from common.states import WorkerState
from harvester.backends.base import StatusOutcome

MARK = "PilotageMark"
"""The attribute that a worker carries its mark in."""
ATTRIBUTES = (
    *("ClusterId", "ProcId", MARK, "JobStatus", "LastJobStatus", "EnteredCurrentStatus"),
    *("HoldReason", "HoldReasonCode", "LastHoldReason", "LastHoldReasonCode", "RemoveReason", "VacateReason"),
    *("ExitCode", "ExitBySignal", "ExitSignal", "CompletionDate", "NumJobStarts", "StageInStart", "StageInFinish"),
    *("RemoteHost", "LastRemoteHost", "GridJobStatus", "GridJobId"),
)
"""What is asked of a job's ad."""


class CondorState(Enum):
    """The states that a job shows."""

    IDLE = "idle"
    """It waits for a slot, for the first time or again after it lost one."""
    SPOOLING = "spooling"
    """Its files are on the way to the schedd."""
    RUNNING = "running"
    """It has a slot."""
    TRANSFERRING_OUTPUT = "transferring output"
    """It has ended; its files are on the way back."""
    SUSPENDED = "suspended"
    """It has a slot but is stopped for a while."""
    HELD = "held"
    """It waits for somebody, or for a policy, to release or remove it."""
    REMOVING = "removing"
    """Somebody removed it; it may run until its slot has said that it doesn't."""
    REMOVED = "removed"
    """Somebody removed it, and it runs nowhere."""
    GIVEN_UP = "given up"
    """It was held for longer than the queue's ``held_remove_s`` and therefore removed."""
    COMPLETED = "completed"
    """It ended with exit code 0, or without telling one."""
    FAILED = "failed"
    """It ended with another exit code."""
    SIGNALLED = "signalled"
    """A signal ended it."""


STATES: dict[CondorState, WorkerState] = {
    CondorState.IDLE: WorkerState.SUBMITTED,
    CondorState.SPOOLING: WorkerState.SUBMITTED,
    CondorState.RUNNING: WorkerState.RUNNING,
    CondorState.TRANSFERRING_OUTPUT: WorkerState.RUNNING,
    CondorState.SUSPENDED: WorkerState.RUNNING,
    CondorState.HELD: WorkerState.HELD,
    CondorState.REMOVING: WorkerState.RUNNING,
    CondorState.REMOVED: WorkerState.CANCELLED,
    CondorState.GIVEN_UP: WorkerState.FAILED,
    CondorState.COMPLETED: WorkerState.FINISHED,
    CondorState.FAILED: WorkerState.FAILED,
    CondorState.SIGNALLED: WorkerState.FAILED,
}
"""What each of them means to harvester."""

UNEXPANDED, IDLE, RUNNING, REMOVED, COMPLETED, HELD, TRANSFERRING, SUSPENDED = range(8)
"""HTCondor's job states (attribute ``JobStatus``)."""

JOB_STATUS: dict[int, CondorState] = {
    UNEXPANDED: CondorState.IDLE,
    IDLE: CondorState.IDLE,
    RUNNING: CondorState.RUNNING,
    REMOVED: CondorState.REMOVING,
    COMPLETED: CondorState.COMPLETED,
    HELD: CondorState.HELD,
    TRANSFERRING: CondorState.TRANSFERRING_OUTPUT,
    SUSPENDED: CondorState.SUSPENDED,
}
"""What each job state is before its details are looked at (see :func:`native_state`)."""


class Cure(Enum):
    """What ends a hold."""

    ITSELF = "itself"
    """It passes."""
    RELEASE = "release"
    """Its cause may be gone at another time or on another node: the schedd releases it a few times."""
    PERSON = "person"
    """Somebody held it on purpose; it waits for them."""
    NOTHING = "nothing"
    """It would be held again: a worker like it needs another configuration."""


@dataclass(frozen=True)
class Hold:
    """A hold reason: HTCondor's name for it, its meaning for an admin, what ends it."""

    name: str
    meaning: str
    cure: Cure


HOLDS: dict[int, Hold] = {
    1: Hold("UserRequest", "somebody held it; release it with condor_release", Cure.PERSON),
    3: Hold("JobPolicy", "its periodic_hold or on_exit_hold held it; look at the queue's template", Cure.NOTHING),
    4: Hold("CorruptedCredential", "its credential is not valid; renew it", Cure.NOTHING),
    5: Hold("JobPolicyUndefined", "a policy expression of it has no value; look at the queue's template", Cure.NOTHING),
    6: Hold("FailedToCreateProcess", "the node could not start it", Cure.RELEASE),
    7: Hold("UnableToOpenOutput", "its standard output can't be opened", Cure.NOTHING),
    8: Hold("UnableToOpenInput", "its standard input can't be opened", Cure.NOTHING),
    9: Hold("UnableToOpenOutputStream", "the stream of its standard output can't be opened", Cure.NOTHING),
    10: Hold("UnableToOpenInputStream", "the stream of its standard input can't be opened", Cure.NOTHING),
    11: Hold("InvalidTransferAck", "its files were not acknowledged", Cure.RELEASE),
    12: Hold("DownloadFileError", "its files can't be received or written", Cure.RELEASE),
    13: Hold("UploadFileError", "its files can't be read or sent", Cure.RELEASE),
    14: Hold("IwdError", "the schedd can't get into its folder; let it, or set the option spool", Cure.NOTHING),
    15: Hold("SubmittedOnHold", "it was submitted on hold; release it with condor_release", Cure.PERSON),
    16: Hold("SpoolingInput", "its files are on the way to the schedd", Cure.ITSELF),
    17: Hold("JobShadowMismatch", "the schedd has no shadow for it", Cure.NOTHING),
    18: Hold("InvalidTransferGoAhead", "the transfer of its files was not agreed on", Cure.RELEASE),
    19: Hold("HookPrepareJobFailure", "a hook of the node failed", Cure.RELEASE),
    20: Hold("MissedDeferredExecutionTime", "it missed its time", Cure.NOTHING),
    21: Hold("StartdHeldJob", "the node's policy held it", Cure.RELEASE),
    22: Hold("UnableToInitUserLog", "its log can't be written", Cure.NOTHING),
    23: Hold("FailedToAccessUserAccount", "its user's account can't be had", Cure.RELEASE),
    24: Hold("NoCompatibleShadow", "the schedd has no shadow for it", Cure.NOTHING),
    25: Hold("InvalidCronSettings", "its schedule makes no sense", Cure.NOTHING),
    26: Hold("SystemPolicy", "the schedd's policy (SYSTEM_PERIODIC_HOLD) held it", Cure.NOTHING),
    27: Hold("SystemPolicyUndefined", "the schedd's policy has no value for it", Cure.NOTHING),
    32: Hold("MaxTransferInputSizeExceeded", "its input is larger than the schedd allows", Cure.NOTHING),
    33: Hold("MaxTransferOutputSizeExceeded", "its output is larger than the schedd allows", Cure.NOTHING),
    34: Hold("JobOutOfResources", "it used more memory than it asked for", Cure.NOTHING),
    35: Hold("InvalidDockerImage", "its container image can't be had", Cure.NOTHING),
    36: Hold("FailedToCheckpoint", "it failed at its checkpoint", Cure.NOTHING),
    37: Hold("EC2UserError", "the cloud refuses it", Cure.NOTHING),
    38: Hold("EC2InternalError", "it makes no sense to the cloud", Cure.NOTHING),
    39: Hold("EC2AdminError", "the schedd isn't set up for the cloud", Cure.NOTHING),
    40: Hold("EC2ConnectionProblem", "the cloud can't be reached", Cure.RELEASE),
    41: Hold("EC2ServerError", "the cloud failed", Cure.RELEASE),
    42: Hold("EC2InstancePotentiallyLost", "its machine in the cloud may be lost", Cure.NOTHING),
    43: Hold("PreScriptFailed", "a script before it failed", Cure.RELEASE),
    44: Hold("PostScriptFailed", "a script after it failed", Cure.NOTHING),
    45: Hold("SingularityTestFailed", "containers don't work on the node", Cure.RELEASE),
    46: Hold("JobDurationExceeded", "its wall time is over", Cure.NOTHING),
    47: Hold("JobExecutionTimeExceeded", "its execution time is over", Cure.NOTHING),
}
"""Every hold reason (attribute ``HoldReasonCode``)."""
UNKNOWN_HOLD = Hold("", "for a reason that is in no table here", Cure.NOTHING)
SPOOLING_INPUT = 16


def codes(cure: Cure) -> list[int]:
    """The hold reasons that something ends."""
    return [code for code, hold in HOLDS.items() if hold.cure is cure]


def batch_id(ad: Mapping[str, Any]) -> str:
    """What HTCondor calls a job."""
    return f"{ad['ClusterId']}.{ad['ProcId']}"


def arrived(ad: Mapping[str, Any]) -> bool:
    """Whether a job got to the schedd, with its files where they are spooled: without them it can never start.

    An upload that has begun is as good as arrived: when it is cut off the schedd removes the job by itself.
    """
    if ad.get("StageInFinish") or ad.get("NumJobStarts"):
        return True
    if ad.get("JobStatus") == HELD:
        return ad.get("HoldReasonCode") != SPOOLING_INPUT or bool(ad.get("StageInStart"))
    spooling = SPOOLING_INPUT in (ad.get("HoldReasonCode"), ad.get("LastHoldReasonCode"))
    return not (spooling and ad.get("JobStatus") == REMOVED)


def native_state(ad: Mapping[str, Any], gone: bool) -> CondorState | None:
    """The state of a job in the queue, or of one that has ``gone`` to the history; None: it is in no table."""
    status = ad.get("JobStatus")
    # Who removes a completed job from the queue changes its status but not how it ended.
    if status == COMPLETED or (status == REMOVED and ad.get("LastJobStatus") == COMPLETED):
        return _ended(ad)
    waiting = ad.get("LastJobStatus") in (UNEXPANDED, IDLE, HELD) and not ad.get("GridJobId")
    if status == REMOVED and (gone or waiting):
        given_up = ad.get("LastJobStatus") == HELD and "PeriodicRemove" in ad.get("RemoveReason", "")
        return CondorState.GIVEN_UP if given_up else CondorState.REMOVED
    if status == HELD and ad.get("HoldReasonCode") == SPOOLING_INPUT:
        return CondorState.SPOOLING
    return JOB_STATUS.get(status) if isinstance(status, int) else None


def outcome(ad: Mapping[str, Any], gone: bool) -> StatusOutcome:
    """What a job's ad says of its worker."""
    state = native_state(ad, gone)
    if state is None:
        return StatusOutcome.unknown(f"HTCondor's job status {ad.get('JobStatus')!r} is in no table")
    host = str(ad.get("RemoteHost") or ad.get("LastRemoteHost") or "").rpartition("@")[2]
    exit_code = _exit_code(ad) if STATES[state] in (WorkerState.FINISHED, WorkerState.FAILED) else None
    return StatusOutcome.of(STATES[state], state.value, _reason(state, ad), exit_code, host)


def _ended(ad: Mapping[str, Any]) -> CondorState:
    if ad.get("ExitBySignal"):
        return CondorState.SIGNALLED
    return CondorState.FAILED if ad.get("ExitCode") else CondorState.COMPLETED


def _exit_code(ad: Mapping[str, Any]) -> int | None:
    value = ad.get("ExitSignal") if ad.get("ExitBySignal") else ad.get("ExitCode")
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return -value if ad.get("ExitBySignal") else value


def _reason(state: CondorState, ad: Mapping[str, Any]) -> str:
    remote = f"the CE says {ad['GridJobStatus']}" if ad.get("GridJobStatus") else ""
    reasons: dict[CondorState, str] = {
        CondorState.IDLE: _idle(ad) or remote,
        CondorState.SPOOLING: HOLDS[SPOOLING_INPUT].meaning,
        CondorState.SUSPENDED: "suspended by its node",
        CondorState.HELD: _held(ad.get("HoldReasonCode"), ad.get("HoldReason")),
        CondorState.GIVEN_UP: f"removed after {_held(ad.get('LastHoldReasonCode'), ad.get('LastHoldReason'))}",
        CondorState.REMOVING: str(ad.get("RemoveReason") or "it was removed"),
        CondorState.REMOVED: str(ad.get("RemoveReason") or "it was removed"),
        CondorState.COMPLETED: "" if "ExitCode" in ad else "its exit code isn't known",
        CondorState.FAILED: f"it ended with exit code {ad.get('ExitCode')}",
        CondorState.SIGNALLED: f"it was ended by {_signal_name(ad.get('ExitSignal'))}",
    }
    return reasons.get(state, remote)


def _idle(ad: Mapping[str, Any]) -> str:
    starts = ad.get("NumJobStarts") or 0
    if not starts:
        return ""
    why = ad.get("VacateReason") or ""
    return f"requeued after {starts} start{'s' if starts > 1 else ''}" + (f": {why}" if why else "")


def _held(code: Any, reason: Any) -> str:
    hold = HOLDS.get(code, UNKNOWN_HOLD)
    name = f"{hold.name}, " if hold.name else ""
    return f"held: {hold.meaning} ({name}code {code}): {' '.join(str(reason or 'no reason was given').split())}"


def _signal_name(number: Any) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
