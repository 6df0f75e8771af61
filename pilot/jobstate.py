"""What a job is while a pilot holds it: its phases, its state, and the events and actions between it and the world.

Plain data only; the rules are in :mod:`pilot.job`, those of the final report in :mod:`pilot.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Optional, Union

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    AssignedUnit,
    Assignment,
    BadReplica,
    FinishReply,
    FinishRequest,
    Metrics,
    OutputDestination,
    OutputRecord,
    OutputRole,
    ProbeReport,
    UnitOutcome,
    UploadedOutput,
)
from pilot.slot import Part


class Phase(str, Enum):
    """Where a job stands; a phase never goes back."""

    ACQUIRED = "acquired"
    """Claimed; nothing done yet."""
    STAGING_IN = "staging_in"
    """Input files are being fetched."""
    STAGED = "staged"
    """Input files are here; the payload waits for its part of the slot, which another job still has."""
    RUNNING = "running"
    """The payload runs, or is being killed."""
    COLLECTING = "collecting"
    """The payload is over: outputs are being found, the log is being packed."""
    RECORDING = "recording"
    """The server is being asked where the outputs go."""
    UPLOADING = "uploading"
    """Outputs and log are on their way."""
    CONFIRMING = "confirming"
    """The final report is being delivered."""
    REMOVING = "removing"
    """The server does not want the results: what was uploaded is being removed."""
    DONE = "done"
    """Nothing left to do."""


#: What the server is told about each phase.
REPORTED_AS: Mapping[Phase, JobState] = {
    Phase.ACQUIRED: JobState.SENT,
    Phase.STAGING_IN: JobState.STARTING,
    Phase.STAGED: JobState.STARTING,
    Phase.RUNNING: JobState.RUNNING,
    Phase.COLLECTING: JobState.HOLDING,
    Phase.RECORDING: JobState.HOLDING,
    Phase.UPLOADING: JobState.HOLDING,
    Phase.CONFIRMING: JobState.HOLDING,
    Phase.REMOVING: JobState.HOLDING,
    Phase.DONE: JobState.HOLDING,
}


@dataclass(frozen=True)
class Failure:
    """Why a job ends badly; ``state`` is the one to report (``failed`` or ``cancelled``)."""

    code: ErrorCode
    detail: str = ""
    state: JobState = JobState.FAILED


@dataclass(frozen=True)
class ProducedFile:
    """A file in the job's folder that is to be uploaded; ``path`` is absolute."""

    path: str
    record: OutputRecord

    @property
    def is_log(self) -> bool:
        """Whether it is the job's log archive."""
        return self.record.role == OutputRole.LOG


@dataclass(frozen=True)
class Claim:
    """A call of get-file that waits for a unit; ``request`` names it to the mailbox."""

    request: str
    request_id: str


@dataclass(frozen=True)
class Job:
    """A job's state. ``step`` makes new ones; nobody changes one.

    ``part`` is what it has of the slot; None while it was claimed ahead and waits for one. ``units`` are all that were
    claimed, with those of get-file; ``outcomes`` those decided before the payload could touch the unit; ``handed`` those that get-file gave out; ``processed`` those that the payload says it processed
    (None: it did not say). ``failure`` is the first that happened. ``forget``: end without a report. ``hurry``: the
    slot is being taken away. ``attempt`` counts how often the server could not be reached in this phase.
    """

    assignment: Assignment
    part: Optional[Part] = None
    phase: Phase = Phase.ACQUIRED
    units: tuple[AssignedUnit, ...] = ()
    outcomes: Mapping[int, UnitOutcome] = field(default_factory=dict)
    bad_replicas: tuple[BadReplica, ...] = ()
    handed: tuple[int, ...] = ()
    claims: tuple[Claim, ...] = ()
    claims_made: int = 0
    processed: Optional[frozenset[int]] = None
    started: bool = False
    killing: bool = False
    forget: bool = False
    hurry: bool = False
    failure: Optional[Failure] = None
    exit_code: Optional[int] = None
    log_tail: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    files: tuple[ProducedFile, ...] = ()
    destinations: tuple[OutputDestination, ...] = ()
    uploaded: tuple[UploadedOutput, ...] = ()
    report: Optional[FinishRequest] = None
    attempt: int = 0
    probe: Optional[ProbeReport] = None

    @property
    def job_id(self) -> int:
        """The server's number of this job."""
        return self.assignment.job_id

    @property
    def holds_slot(self) -> bool:
        """Whether it has cores and memory of the slot (its payload has not ended)."""
        return self.part is not None and self.phase in _BEFORE_THE_END

    @property
    def waits(self) -> bool:
        """Whether it was claimed ahead and waits for its part of the slot."""
        return self.part is None and self.phase in _BEFORE_THE_END

    @property
    def reported(self) -> JobState:
        """What the server is told: a job that was claimed ahead has not begun, and can be given back."""
        return JobState.SENT if self.part is None else REPORTED_AS[self.phase]

    @property
    def usable_units(self) -> tuple[AssignedUnit, ...]:
        """The units whose input is there."""
        return tuple(unit for unit in self.units if unit.unit_id not in self.outcomes)


_BEFORE_THE_END = (Phase.ACQUIRED, Phase.STAGING_IN, Phase.STAGED, Phase.RUNNING)


def new_job(assignment: Assignment, part: Optional[Part]) -> Job:
    """The state of a job that was just acquired; without a ``part`` of the slot it was claimed ahead."""
    return Job(assignment=assignment, part=part, units=tuple(assignment.units))


# ---------------------------------------------------------------- events


@dataclass(frozen=True)
class Start:
    """The pilot takes the job up."""


@dataclass(frozen=True)
class StagedIn:
    """Stage-in is over. ``outcomes`` has the units whose input could not be had; ``failure`` is the last cause, and
    ``fatal`` says that the job cannot run even if units remain (its common input is missing)."""

    outcomes: Mapping[int, UnitOutcome] = field(default_factory=dict)
    bad_replicas: tuple[BadReplica, ...] = ()
    failure: Optional[Failure] = None
    fatal: bool = False
    seconds: float = 0.0
    size: int = 0


@dataclass(frozen=True)
class PartGiven:
    """The job that this one waited for is over: here is its part of the slot."""

    part: Part


@dataclass(frozen=True)
class GiveBack:
    """A job that was claimed ahead will not get its part in time, or not at all."""

    reason: str


@dataclass(frozen=True)
class PayloadRuns:
    """The payload's process exists."""


@dataclass(frozen=True)
class PayloadOver:
    """No process of the payload is left. ``failure`` is None for exit code 0; ``probe`` is what a probe job found."""

    exit_code: Optional[int] = None
    failure: Optional[Failure] = None
    probe: Optional[ProbeReport] = None


@dataclass(frozen=True)
class Measured:
    """The watcher looked at the payload; ``again_s`` is when to look again (None: after the usual time)."""

    metrics: Metrics
    again_s: Optional[float] = None


@dataclass(frozen=True)
class Breach:
    """The payload went over a limit; ``metrics`` are what was measured."""

    failure: Failure
    metrics: Optional[Metrics] = None


@dataclass(frozen=True)
class FileAsked:
    """The jobscript called get-file; ``request`` names the call."""

    request: str


@dataclass(frozen=True)
class UnitClaimed:
    """get-file's claim brought a unit, staged in unless ``outcome`` says otherwise; None: there are no more."""

    claim: Claim
    unit: Optional[AssignedUnit] = None
    outcome: Optional[UnitOutcome] = None
    bad_replicas: tuple[BadReplica, ...] = ()
    seconds: float = 0.0
    size: int = 0


@dataclass(frozen=True)
class KillRequested:
    """The server wants the job dead."""

    reason: str = ""


@dataclass(frozen=True)
class Forget:
    """The server does not know the job as this pilot's."""


@dataclass(frozen=True)
class SlotTaken:
    """The slot is being taken away (SIGTERM): end soon, with a report."""

    signal: str = "SIGTERM"


@dataclass(frozen=True)
class TimeIsUp:
    """The slot goes now: report what there is."""


@dataclass(frozen=True)
class Collected:
    """Outputs and log were found. ``failure``: a promised output is missing or may not be taken."""

    files: tuple[ProducedFile, ...] = ()
    processed: Optional[frozenset[int]] = None
    failure: Optional[Failure] = None
    log_tail: str = ""
    metrics: Optional[Metrics] = None


@dataclass(frozen=True)
class Recorded:
    """The server reserved names and named destinations."""

    destinations: tuple[OutputDestination, ...]


@dataclass(frozen=True)
class Uploaded:
    """Uploading is over. ``failure``: of an output; a log that could not be uploaded is no failure."""

    uploaded: tuple[UploadedOutput, ...] = ()
    failure: Optional[Failure] = None
    seconds: float = 0.0
    size: int = 0


@dataclass(frozen=True)
class Confirmed:
    """The server took the final report."""

    reply: FinishReply


@dataclass(frozen=True)
class Gone:
    """The server has ended the job meanwhile (410): its results are not wanted."""

    detail: str = ""


@dataclass(frozen=True)
class Refused:
    """The server refused a call for good."""

    failure: Failure


@dataclass(frozen=True)
class ServerUnreachable:
    """A call got no answer; it may have been served."""

    detail: str = ""


@dataclass(frozen=True)
class Again:
    """The time of a retry has come."""


@dataclass(frozen=True)
class Removed:
    """What was uploaded is removed, as far as it could be."""


@dataclass(frozen=True)
class Crashed:
    """An action failed in a way that nobody foresaw."""

    failure: Failure


Event = Union[
    Start,
    StagedIn,
    PartGiven,
    GiveBack,
    PayloadRuns,
    PayloadOver,
    Measured,
    Breach,
    FileAsked,
    UnitClaimed,
    KillRequested,
    Forget,
    SlotTaken,
    TimeIsUp,
    Collected,
    Recorded,
    Uploaded,
    Confirmed,
    Gone,
    Refused,
    ServerUnreachable,
    Again,
    Removed,
    Crashed,
]


# ---------------------------------------------------------------- actions


@dataclass(frozen=True)
class StageIn:
    """Make the job's folder and fetch the input."""


@dataclass(frozen=True)
class StartPayload:
    """Start the payload on these units, in this part of the slot."""

    units: tuple[AssignedUnit, ...]
    part: Part


@dataclass(frozen=True)
class KillPayload:
    """SIGTERM, and SIGKILL after ``grace_s``."""

    why: str
    grace_s: float


@dataclass(frozen=True)
class HandOut:
    """Answer a call of get-file with a unit, or that there are no more (None)."""

    request: str
    unit: Optional[AssignedUnit]


@dataclass(frozen=True)
class ClaimUnit:
    """Claim one more unit for a call of get-file and fetch its input."""

    claim: Claim


@dataclass(frozen=True)
class Abandon:
    """Whatever is under way for this job no longer counts: do not wait for it."""


@dataclass(frozen=True)
class Collect:
    """Find the outputs (unless the job has failed) and pack the log."""

    outputs: bool


@dataclass(frozen=True)
class Record:
    """Ask the server where these files go."""

    files: tuple[ProducedFile, ...]


@dataclass(frozen=True)
class Upload:
    """Upload these files to their destinations."""

    files: tuple[ProducedFile, ...]
    destinations: tuple[OutputDestination, ...]


@dataclass(frozen=True)
class Spool:
    """Write the final report to disk, so that it outlives the pilot."""

    report: FinishRequest
    uploaded: tuple[UploadedOutput, ...]


@dataclass(frozen=True)
class Confirm:
    """Deliver the final report."""

    report: FinishRequest


@dataclass(frozen=True)
class RetryLater:
    """Send :class:`Again` after a back-off for the ``attempt``-th failure in a row."""

    attempt: int


@dataclass(frozen=True)
class Remove:
    """Remove what was uploaded."""

    uploaded: tuple[UploadedOutput, ...]


@dataclass(frozen=True)
class Unspool:
    """The final report needs no keeping any more."""


@dataclass(frozen=True)
class Cleanup:
    """Remove the job's folder."""


Action = Union[
    StageIn,
    StartPayload,
    KillPayload,
    HandOut,
    ClaimUnit,
    Abandon,
    Collect,
    Record,
    Upload,
    Spool,
    Confirm,
    RetryLater,
    Remove,
    Unspool,
    Cleanup,
]
Step = tuple[Job, tuple[Action, ...]]
