"""The messages of the native protocol ``/v1``.

Two families (DESIGN 5.12). What people send derives from :class:`Strict`: a field that we don't know is an error that
names it. What pilots, harvester and server tell one another derives from :class:`Message`: unknown fields are ignored,
so that versions mix.

Units: sizes in bytes (``size``) or mebibytes (``*_mb``), times in seconds (``*_s``), moments in seconds since the epoch.
A DID is ``scope:name``. A checksum is ``algorithm:hex``, for example ``adler32:0a1b2c3d``.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional, Union

import msgspec

from common.states import JobState, ResourceState, TaskState, UnitState, WorkerState

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+\-]*$(?!\n)")]
"""A name of ours: letters, digits and ``. _ + -``, beginning with a letter or digit."""
Did = Annotated[str, msgspec.Meta(min_length=3, max_length=511, pattern=r"^[^:\s/]+:[^\s/][^/\x00-\x1f]*$(?!\n)")]
"""``scope:name``; neither part holds a slash."""
Checksum = Annotated[str, msgspec.Meta(pattern=r"^(adler32:[0-9a-f]{8}|md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$(?!\n)")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
NonNegative = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what people send."""


class Message(msgspec.Struct, omit_defaults=True):
    """Base of what programs tell one another."""


# ---------------------------------------------------------------- workflows, as a person submits them


class GpuRequest(Strict):
    """GPUs that each job of a task needs."""

    count: Positive = 1
    vendor: Optional[Name] = None
    model: Optional[str] = None
    memory_mb: Count = 0


class Requirements(Strict):
    """What each job of a task needs. ``disk_mb`` is beside the input; zero wall time means unknown."""

    cores: Positive = 1
    memory_mb: Count = 1000
    disk_mb: Count = 500
    wall_s: Count = 0
    gpus: Optional[GpuRequest] = None
    tags: list[str] = []


class ReplicaSpec(Strict):
    """A copy of a file: on ``storage``, at ``path`` below the storage's prefix."""

    storage: Name
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class FileSpec(Strict, kw_only=True):
    """A file of a task's input."""

    did: Did
    size: Optional[NonNegative] = None
    events: Optional[NonNegative] = None
    checksum: Optional[Checksum] = None
    replicas: Annotated[list[ReplicaSpec], msgspec.Meta(min_length=1)]
    attributes: dict[str, Any] = {}


class FilesInput(Strict, tag_field="kind", tag="files"):
    """Each file is a unit."""

    files: list[FileSpec]


class CounterInput(Strict, tag_field="kind", tag="counter"):
    """Each number from ``first`` on is a unit, as for Monte Carlo seeds. ``events`` is the event count of each."""

    count: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
    first: NonNegative = 0
    events: Optional[NonNegative] = None


class StageInput(Strict, tag_field="kind", tag="stage"):
    """Each output of another stage of the same workflow that matches ``pattern`` is a unit."""

    stage: Name
    pattern: str = "*"


class SingleInput(Strict, tag_field="kind", tag="single"):
    """One unit: the task itself."""


TaskInput = Union[FilesInput, CounterInput, StageInput, SingleInput]


class OutputPattern(Strict):
    """Files that the payload leaves in its working directory.

    ``storage`` names where they go; without it the nearest writable storage is taken. An output that is not
    ``optional`` and not there fails the job.
    """

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/]+$(?!\n)")]
    storage: Optional[Name] = None
    optional: bool = False


class MergeRule(Strict):
    """How a merging stage claims: at least ``min_files`` until its parent is closed, never more than ``max_files``."""

    min_files: Positive = 1
    max_files: Positive = 1000


class StageSpec(Strict, kw_only=True):
    """One stage of a workflow; it becomes a task.

    Either ``jobscript`` (text with a shebang) or ``command`` (arguments) is the payload.
    """

    name: Name
    input: TaskInput
    jobscript: Optional[Annotated[str, msgspec.Meta(max_length=1_000_000)]] = None
    command: Optional[Annotated[list[str], msgspec.Meta(min_length=1)]] = None
    image: Optional[str] = None
    environment: dict[str, str] = {}
    outputs: list[OutputPattern] = []
    common_input: list[FileSpec] = []
    requirements: Requirements = msgspec.field(default_factory=Requirements)
    files_per_job: Positive = 1
    merge: Optional[MergeRule] = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    priority: Annotated[int, msgspec.Meta(ge=-10_000, le=10_000)] = 0
    share: Name = "default"
    max_distance: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100
    far_after_s: Count = 0


class WorkflowRequest(Strict):
    """``POST /v1/workflows``. ``scope`` is the DID scope of the outputs. ``request_id`` makes a repeat harmless."""

    name: Name
    stages: Annotated[list[StageSpec], msgspec.Meta(min_length=1, max_length=100)]
    scope: Optional[Name] = None
    group: Optional[Name] = None
    labels: dict[str, str] = {}
    request_id: Optional[str] = None


class TaskView(Message):
    """A task, as people see it. ``units`` counts by state."""

    id: int
    workflow_id: int
    stage: str
    state: TaskState
    state_reason: str = ""
    priority: int = 0
    share: str = "default"
    requirements: Requirements = msgspec.field(default_factory=Requirements)
    input_kind: str = ""
    input_closed: bool = False
    units: dict[str, int] = {}
    jobs: dict[str, int] = {}
    created: float = 0.0
    ended: Optional[float] = None


class WorkflowView(Message):
    """A workflow and its tasks."""

    id: int
    name: str
    owner: str
    scope: str
    group: Optional[str] = None
    labels: dict[str, str] = {}
    created: float = 0.0
    tasks: list[TaskView] = []


class UnitView(Message):
    """A unit, as people see it."""

    id: int
    task_id: int
    seq: int
    state: UnitState
    did: Optional[str] = None
    size: Optional[int] = None
    events: Optional[int] = None
    job_id: Optional[int] = None
    payload_failures: int = 0
    other_failures: int = 0
    generation: int = 0
    error_code: Optional[int] = None
    error_detail: str = ""


class JobView(Message, kw_only=True):
    """A job, as people see it."""

    id: int
    task_id: int
    state: JobState
    queue: str
    host: str
    pilot_id: Optional[int]
    n_units: int
    claimed: float
    started: Optional[float] = None
    ended: Optional[float] = None
    heartbeat: Optional[float] = None
    exit_code: Optional[int] = None
    error_code: Optional[int] = None
    error_detail: str = ""
    metrics: dict[str, Any] = {}
    log_did: Optional[str] = None
    log_tail: str = ""


class OutputView(Message):
    """A confirmed output of a task; ``url`` is where it lies."""

    did: str
    task_id: int
    job_id: int
    role: str
    storage: str
    url: str
    size: int
    checksum: str
    events: Optional[int] = None
    attributes: dict[str, Any] = {}


class EventView(Message):
    """A recorded change of state."""

    id: int
    time: float
    kind: str
    subject: str
    subject_id: str
    task_id: Optional[int] = None
    job_id: Optional[int] = None
    source: Optional[str] = None
    target: Optional[str] = None
    detail: dict[str, Any] = {}


class TaskCommand(Strict):
    """``POST /v1/tasks/{id}:command``: ``pause``, ``resume``, ``kill``, ``retry``."""

    command: str
    reason: str = ""


class Page(Message):
    """A page of a list; ask again with ``after=next`` while ``next`` is there."""

    next: Optional[int] = None


class WorkflowPage(Page):
    items: list[WorkflowView] = []


class TaskPage(Page):
    items: list[TaskView] = []


class UnitPage(Page):
    items: list[UnitView] = []


class JobPage(Page):
    items: list[JobView] = []


class OutputPage(Page):
    items: list[OutputView] = []


class EventPage(Page):
    items: list[EventView] = []


# ---------------------------------------------------------------- the world, as admins describe it


class Activity(str, Enum):
    """What an endpoint of a storage may be used for."""

    READ_LAN = "read_lan"
    WRITE_LAN = "write_lan"
    READ_WAN = "read_wan"
    WRITE_WAN = "write_wan"


class SiteSpec(Strict):
    """A place. ``distances`` to storages: 0 same site … 100 far, 101 never; a storage of the site itself is at 0."""

    name: Name
    status: ResourceState = ResourceState.ONLINE
    distances: dict[str, Annotated[int, msgspec.Meta(ge=0, le=101)]] = {}
    description: str = ""


class QueueSpec(Strict, kw_only=True):
    """A computing resource: the most that one slot of it can offer. Zero means no limit."""

    name: Name
    site: Name
    status: ResourceState = ResourceState.ONLINE
    cores: Count = 0
    memory_mb: Count = 0
    disk_mb: Count = 0
    wall_s: Count = 0
    gpus: Count = 0
    tags: list[str] = []
    copytools: list[Name] = []
    container_binds: list[str] = []
    description: str = ""


class Endpoint(Strict):
    """A way to reach a storage: ``url`` is its prefix, such as ``root://host:1094//data`` or ``file:///data``."""

    url: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.\-]*://", max_length=2048)]
    activities: list[Activity] = msgspec.field(default_factory=lambda: list(Activity))


class StorageSpec(Strict, kw_only=True):
    """An endpoint with protocols, at a site."""

    name: Name
    site: Name
    status: ResourceState = ResourceState.ONLINE
    endpoints: Annotated[list[Endpoint], msgspec.Meta(min_length=1)]
    description: str = ""


class ShareSpec(Strict):
    """A node of the share tree: ``weight`` against its siblings."""

    name: Name
    parent: Optional[Name] = None
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class SiteList(Message):
    items: list[SiteSpec] = []


class QueueList(Message):
    items: list[QueueSpec] = []


class StorageList(Message):
    items: list[StorageSpec] = []


class ShareList(Message):
    items: list[ShareSpec] = []


# ---------------------------------------------------------------- pilot and server


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
    tags: list[str] = []


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
    queue: QueueSpec
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
    """A unit that the job has claimed: a file, a counter, or neither."""

    unit_id: int
    seq: int
    file: Optional[AssignedFile] = None
    counter: Optional[int] = None
    events: Optional[int] = None


class Assignment(Message, kw_only=True):
    """A job: all that a pilot needs to run it."""

    job_id: int
    task_id: int
    workflow_id: int
    stage: str
    scope: str
    units: list[AssignedUnit]
    requirements: Requirements
    outputs: list[OutputPattern] = []
    common_input: list[AssignedFile] = []
    jobscript: Optional[str] = None
    command: Optional[list[str]] = None
    image: Optional[str] = None
    environment: dict[str, str] = {}


class Refusal(Message):
    """Why a bucket gave nothing: the first filter that said no."""

    task_id: int
    bucket_id: int
    filter: str
    detail: str


class AcquireReply(Message):
    """Jobs, or none and why; then ask again after ``retry_after_s``. ``drain``: take no more and leave."""

    jobs: list[Assignment] = []
    refusals: list[Refusal] = []
    retry_after_s: float = 0.0
    drain: bool = False


class Metrics(Message):
    """Measured so far by the pilot; zero means not known."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    work_dir_mb: float = 0.0
    stage_in_s: float = 0.0
    stage_in_bytes: int = 0
    stage_out_s: float = 0.0
    stage_out_bytes: int = 0
    processes: int = 0


class JobReport(Message):
    """State of one job that the pilot holds."""

    job_id: int
    state: JobState
    metrics: Optional[Metrics] = None


class HeartbeatRequest(Message):
    """``POST /v1/jobs:heartbeat``: all jobs that the pilot holds, none left out."""

    jobs: list[JobReport] = []


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

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00]+$(?!\n)")]
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
    The server keeps a digest of the request: a repeat is answered as the first time.
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


class FinishReply(Message):
    """The job's final state and those of its units."""

    job_id: int
    state: JobState
    units: dict[str, UnitState] = {}


class PilotEnd(Message):
    """``POST /v1/pilots/{id}:end``: the pilot leaves; ``reason`` and the end of its log are for people."""

    reason: str = ""
    error_code: Optional[int] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""


# ---------------------------------------------------------------- harvester and server


class Shape(Message):
    """What a worker asks its batch system for."""

    cores: int = 1
    memory_mb: int = 0
    disk_mb: int = 0
    wall_s: int = 0
    gpus: int = 0


class ShapeDemand(Message):
    """How many pilots of a shape a queue should have now, running ones included, with the numbers behind it."""

    shape: Shape
    pilots: int
    ready_units: int = 0
    ready_jobs: int = 0
    running_jobs: int = 0


class DemandReply(Message):
    """``GET /v1/queues/{q}/demand``."""

    queue: QueueSpec
    shapes: list[ShapeDemand] = []
    idle_pilots: int = 0


class WorkerReport(Message):
    """A worker as harvester knows it. ``mark`` is unique for ever; ``secret_hash`` comes with the intention."""

    mark: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    queue: str
    state: WorkerState
    shape: Shape = msgspec.field(default_factory=Shape)
    nodes: int = 1
    batch_id: Optional[str] = None
    secret_hash: Optional[str] = None
    valid_s: float = 0.0
    reason: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class WorkersReportRequest(Message):
    """``POST /v1/workers:report``."""

    harvester: str
    workers: Annotated[list[WorkerReport], msgspec.Meta(max_length=10_000)]


class WorkerOutcome(Message):
    """What the server made of one report. ``pilots_alive`` counts the worker's pilots that still report."""

    mark: str
    accepted: bool
    reason: str = ""
    pilots_alive: int = 0


class WorkersReportReply(Message):
    """An outcome for each worker, in order."""

    workers: list[WorkerOutcome]


# ---------------------------------------------------------------- why


class WhyReply(Message):
    """``GET /v1/queues/{q}/why`` and ``GET /v1/tasks/{id}/why``: for each bucket the first filter that said no.

    ``matched`` lists the buckets that the slot may claim from.
    """

    queue: str
    offer: Offer
    refusals: list[Refusal] = []
    matched: list[Refusal] = []
    note: str = ""


class Health(Message):
    """``GET /healthz``."""

    status: str
    version: str
    database: str
    time: float


def encode(message: msgspec.Struct) -> bytes:
    """JSON of a message."""
    return msgspec.json.encode(message)
