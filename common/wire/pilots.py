"""What pilot and server tell each other."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional

import msgspec

from common.states import JobState, UnitState
from common.wire.base import Checksum, Count, Message, NonNegative, Positive, Text
from common.wire.outputs import Registration
from common.wire.workflows import (
    Needs,
    OutputRule,
)
from common.wire.world import (
    Queue,
)


class Gpu(Message):
    """A GPU of a slot."""

    vendor: str
    model: str
    memory_mb: int
    uuid: str = ""


class Offer(Message):
    """What a slot can do now (DESIGN 5.13): free cores, memory, scratch and the wall time left."""

    cores: Positive = 1
    memory_mb: Count = 0
    disk_mb: Count = 0
    wall_s: Count = 0
    gpus: list[Gpu] = []
    tags: Annotated[list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=200)] = []


class PilotRegistration(Message):
    """``POST /v1/pilots``, with the worker's secret as bearer token. ``nonce`` makes a repeat harmless."""

    worker: str
    nonce: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    host: Annotated[str, msgspec.Meta(max_length=255)] = ""
    node: Count = 0
    version: str = ""
    offer: Offer = msgspec.field(default_factory=Offer)


class PilotSettings(Message):
    """What the server wants of a pilot; refreshed by each heartbeat's answer."""

    heartbeat_s: float = 60.0
    idle_exit_s: float = 60.0
    acquire_wait_s: float = 5.0


class PilotGrant(Message):
    """Answer to a registration."""

    pilot_id: int
    token: str
    token_expires: float
    queue: Queue
    settings: PilotSettings = msgspec.field(default_factory=PilotSettings)


class AcquireRequest(Message):
    """``POST /v1/jobs:acquire``. The same ``request_id`` of the same pilot gets the same jobs."""

    request_id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    offer: Offer
    max_jobs: Positive = 1
    wait_s: float = 0.0


class Replica(Message):
    """A copy that this pilot may read, nearest first in its list."""

    storage: str
    url: str
    distance: int


class AssignedFile(Message):
    """A file to stage in."""

    did: str
    size: Optional[int] = None
    checksum: Optional[str] = None
    events: Optional[int] = None
    replicas: list[Replica] = []
    attributes: dict[str, Any] = {}


class AssignedUnit(Message):
    """A unit that the job has claimed: a file, a range of a file's events, a counter, or neither.

    With ``first_event`` (from 0 on) it is the ``events`` events of the file from there on; several units of a job may
    then be of the same file.
    """

    unit_id: int
    seq: int
    file: Optional[AssignedFile] = None
    counter: Optional[int] = None
    events: Optional[int] = None
    first_event: Optional[int] = None


class AssignedSandbox(Message):
    """An archive to unpack where the payload starts; from the server at ``/v1/sandboxes/{sha256}``."""

    sha256: str
    size: int


class Assignment(Message, kw_only=True):
    """A job: all that a pilot needs to run it. ``secrets`` are its owner's, by name: for the payload only.

    With ``remote_io`` the payload reads its units' files straight from the storage, by the URLs that are named: they are
    not copied, and the slot was not asked for the disk that they would take.
    """

    job_id: int
    task_id: int
    workflow_id: int
    stage: str
    scope: str
    units: list[AssignedUnit]
    requirements: Needs
    outputs: list[OutputRule] = []
    common_input: list[AssignedFile] = []
    secondary: dict[str, list[AssignedFile]] = {}
    jobscript: Optional[str] = None
    command: Optional[list[str]] = None
    image: Optional[str] = None
    environment: dict[str, str] = {}
    sandbox: Optional[AssignedSandbox] = None
    secrets: dict[str, str] = {}
    remote_io: bool = False


class Refusal(Message):
    """Why a bucket gave nothing: the first filter that said no. It may stand for more ``buckets`` of which the same holds."""

    task_id: int
    bucket_id: int
    filter: str
    detail: str
    buckets: int = 1
    tasks: int = 1


class AcquireReply(Message):
    """Jobs, or none and why; then ask again after ``retry_after_s``. ``drain``: take no more and leave."""

    jobs: list[Assignment] = []
    refusals: list[Refusal] = []
    retry_after_s: float = 0.0
    drain: bool = False


class Metrics(Message):
    """Measured so far by the pilot; zero means not known.

    ``max_pss_mb`` counts shared pages once. ``leak_kb_s`` is the slope of the payload's memory over its run.
    ``read_bytes`` and ``written_bytes`` are the payload's own, ``events`` what it says it processed.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    max_pss_mb: float = 0.0
    leak_kb_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    events: int = 0
    work_dir_mb: float = 0.0
    stage_in_s: float = 0.0
    stage_in_bytes: int = 0
    stage_out_s: float = 0.0
    stage_out_bytes: int = 0
    processes: int = 0
    energy_j: float = 0.0


class JobReport(Message):
    """State of one job that the pilot holds."""

    job_id: int
    state: JobState
    metrics: Optional[Metrics] = None


class HeartbeatRequest(Message):
    """``POST /v1/jobs:heartbeat``: all jobs that the pilot holds, none left out."""

    jobs: Annotated[list[JobReport], msgspec.Meta(max_length=10_000)] = []


class Instruction(str, Enum):
    """What the pilot is to do with a job."""

    CONTINUE = "continue"
    """Go on."""
    KILL = "kill"
    """Kill the payload, upload the log, report."""
    UNKNOWN = "unknown"
    """The server does not know this job as this pilot's: kill the payload, remove what was uploaded, forget it."""


class JobInstruction(Message):
    """Answer for one job of a heartbeat."""

    job_id: int
    instruction: Instruction = Instruction.CONTINUE
    reason: str = ""


class HeartbeatReply(Message):
    """An instruction for each job, the pilot's new token when it is time, the next interval."""

    jobs: list[JobInstruction] = []
    next_interval_s: float = 60.0
    token: Optional[str] = None
    token_expires: Optional[float] = None
    drain: bool = False


class UnitsAcquireRequest(Message):
    """``POST /v1/jobs/{id}/units:acquire``, the get-file call. A repeated ``request_id`` gets the same units."""

    request_id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    count: Positive = 1


class UnitsAcquireReply(Message):
    """Units, nearest first; none when there are no more."""

    units: list[AssignedUnit] = []


class UnitOutcome(str, Enum):
    """What became of a unit in a job."""

    PROCESSED = "processed"
    """The payload processed it."""
    FAILED = "failed"
    """The payload failed on it: counts as a payload failure."""
    RETURNED = "returned"
    """Not touched, or not the payload's fault: goes back to ready."""
    LOST = "lost"
    """No usable replica of its input remains."""


class UnitResult(Message):
    """Outcome of one unit."""

    unit_id: int
    outcome: UnitOutcome


class UnitsReleaseRequest(Message):
    """``POST /v1/jobs/{id}/units:release``."""

    units: Annotated[list[UnitResult], msgspec.Meta(min_length=1)]


class UnitsReleaseReply(Message):
    """The states that the units went to."""

    states: dict[str, UnitState] = {}


class OutputRole(str, Enum):
    """What an output is."""

    OUTPUT = "output"
    LOG = "log"


class OutputRecord(Message):
    """A file that the pilot is about to upload. ``name`` is its name in the working directory."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$(?!\n)")]
    size: NonNegative
    checksum: Checksum
    role: OutputRole = OutputRole.OUTPUT
    pattern: Optional[str] = None
    events: Optional[NonNegative] = None
    attributes: dict[str, Any] = {}


class RecordRequest(Message):
    """``POST /v1/jobs/{id}/outputs``: reserves names and names destinations. May be repeated."""

    outputs: Annotated[list[OutputRecord], msgspec.Meta(min_length=1, max_length=10_000)]


class OutputDestination(Message):
    """Where to upload one recorded output: the first of ``urls`` that works, on ``storage``.

    The physical name contains the job's id, so that a late twin can never overwrite a winner.
    """

    name: str
    did: str
    storage: str
    urls: list[str]
    registration: Registration = Registration.NONE


class RecordReply(Message):
    """A destination for each output of the request, in its order."""

    destinations: list[OutputDestination]


class UploadedOutput(Message):
    """A recorded output that lies on its storage now."""

    did: str
    url: str


class BadReplica(Message):
    """A replica that turned out missing or damaged at stage-in."""

    did: str
    storage: str
    error_code: int
    detail: str = ""


class FinishRequest(Message):
    """``POST /v1/jobs/{id}:finish``: confirms the job with an outcome for each of its units.

    ``state`` is ``finished``, ``failed``, ``cancelled`` or ``closed``. A job may finish although some units failed.
    The server keeps a digest of the request: a repeat is answered as the first time. ``asked`` is how many units the
    jobscript asked for by get-file.
    """

    state: JobState
    units: list[UnitResult] = []
    outputs: list[UploadedOutput] = []
    bad_replicas: list[BadReplica] = []
    exit_code: Optional[int] = None
    error_code: Optional[int] = None
    error_detail: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    metrics: Optional[Metrics] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""
    asked: Optional[int] = None


class FinishReply(Message):
    """The job's final state and those of its units."""

    job_id: int
    state: JobState
    units: dict[str, UnitState] = {}


class PilotEnd(Message):
    """``POST /v1/pilots/{id}:end``: the pilot leaves; ``reason`` and the end of its log are for people."""

    reason: Text = ""
    error_code: Optional[int] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""
