"""What pilot and server tell each other."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional

import msgspec

from common.states import JobState, UnitState
from common.wire.base import Checksum, Count, Id, Measured, Message, NonNegative, Number, Positive, Text
from common.wire.harvesters import Shape
from common.wire.outputs import Registration
from common.wire.payloads import FetchedProgram, SideProcess
from common.wire.peeks import PeekOrder
from common.wire.probes import ProbeOrder, ProbeReport
from common.wire.workflows import (
    Needs,
    OutputRule,
    Page,
)
from common.wire.world import (
    Activity,
    Queue,
)


class Gpu(Message):
    """A GPU of a slot, or an instance that one is partitioned into (NVIDIA's MIG), whose card's UUID is its ``parent``.

    ``uuid`` and ``index`` (among all of the vendor's that the slot can open) are what the vendor's libraries know it by;
    ``capability`` what it can run: the compute capability (``9.0``), the instruction set (``gfx90a``). ``pci`` is where it sits.
    """

    vendor: str
    model: str
    memory_mb: Measured
    uuid: str = ""
    index: Measured = 0
    driver: str = ""
    capability: str = ""
    parent: str = ""
    pci: str = ""


CONTAINER_TAG = "apptainer"
"""Tag of a slot that runs payloads in containers."""
ACCOUNTS_TAG = "payload-users"
"""Tag of a slot that runs each payload as a user of its own."""


class ForeignTerms(Message):
    """What a pilot of another system takes, beside what its slot holds: jobs of so many cores and so much memory a core in
    MiB (zero: as many as the slot has), and of these shares only, if any are named."""

    min_cores: Count = 0
    max_cores: Count = 0
    min_core_mb: Count = 0
    max_core_mb: Count = 0
    shares: Annotated[list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=1000)] = []


class Offer(Message):
    """What a slot can do now (DESIGN 5.13): free cores, memory, scratch and the wall time left.

    ``tags`` are what tasks may ask for: the platform's, :data:`CONTAINER_TAG`, :data:`ACCOUNTS_TAG`, the queue's own.
    ``foreign`` is there for a pilot of another system, which is told the names of its outputs before it begins.
    """

    cores: Positive = 1
    memory_mb: Count = 0
    disk_mb: Count = 0
    wall_s: Count = 0
    gpus: list[Gpu] = []
    tags: Annotated[list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=200)] = []
    foreign: Optional[ForeignTerms] = None


_Words = Annotated[str, msgspec.Meta(max_length=255)]


class NodeInfo(Message):
    """What a pilot runs on, for people: told once, when it registers. Empty or zero means not known.

    ``cpu_level`` is the highest that the CPU's flags reach, such as ``x86-64-v3``. ``cores`` are those of the machine,
    ``threads`` what they run at once, ``memory_mb`` all its memory. ``core_power`` is what one core does, in HS23 unless
    ``power_source`` says otherwise: machine or job features, or the configured benchmark.
    """

    cpu_model: _Words = ""
    cpu_level: _Words = ""
    architecture: _Words = ""
    cores: Measured = 0
    threads: Measured = 0
    memory_mb: Measured = 0
    os: _Words = ""
    kernel: _Words = ""
    libc: _Words = ""
    python: _Words = ""
    virtual: bool = False
    core_power: float = 0.0
    power_source: _Words = ""


class PilotRegistration(Message):
    """``POST /v1/pilots``, with the worker's secret as bearer token. ``nonce`` makes a repeat harmless."""

    worker: str
    nonce: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    host: Annotated[str, msgspec.Meta(max_length=255)] = ""
    node: Count = 0
    version: str = ""
    offer: Offer = msgspec.field(default_factory=Offer)
    node_info: Optional[NodeInfo] = None


class PilotSettings(Message):
    """What the server wants of a pilot; refreshed by each heartbeat's answer."""

    heartbeat_s: float = 60.0
    idle_exit_s: float = 60.0
    acquire_wait_s: float = 5.0


class PilotGrant(Message):
    """Answer to a registration. ``shape`` is what the worker asked its batch system for: no slot is larger (zero: not
    known)."""

    pilot_id: int
    token: str
    token_expires: float
    queue: Queue
    settings: PilotSettings = msgspec.field(default_factory=PilotSettings)
    shape: Shape = msgspec.field(default_factory=lambda: Shape(cores=0))


class AcquireRequest(Message):
    """``POST /v1/jobs:acquire``. The same ``request_id`` of the same pilot gets the same jobs.

    With ``ahead`` the offer is the part of a running job that will soon be over, so that the next job's input can come
    meanwhile: answered only from tasks with more ready units than slots that could begin one now.
    """

    request_id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    offer: Offer
    max_jobs: Positive = 1
    wait_s: float = 0.0
    ahead: bool = False


class Replica(Message):
    """A copy that this pilot may read, nearest first in its list."""

    storage: str
    url: str
    distance: int
    activity: Activity = Activity.READ_LAN


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

    It is ``preassigned`` if harvester claimed it for the pilot before that was there.
    With ``remote_io`` the payload reads its units' files straight from the storage, by the URLs that are named: they are
    not copied, and the slot was not asked for the disk that they would take. With a ``probe`` the pilot does what that
    says in place of a payload: there is none. ``query`` is what the task's input was asked for, where it was.
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
    transformation: Optional[FetchedProgram] = None
    processes: list[SideProcess] = []
    plugin: Optional[str] = None
    allow_no_output: bool = False
    log_files: list[str] = []
    image: Optional[str] = None
    environment: dict[str, str] = {}
    sandbox: Optional[AssignedSandbox] = None
    secrets: dict[str, str] = {}
    remote_io: bool = False
    probe: Optional[ProbeOrder] = None
    preassigned: bool = False
    query: str = ""


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

    ``max_rss_mb`` is what was resident of all processes, ``max_pss_mb`` counts pages that they share once (measured only
    where the other is above the limit), ``max_swap_mb`` is what was swapped out. ``leak_kb_s`` is the slope of the payload's
    memory over its run. ``read_bytes`` and ``written_bytes`` came from and went to disks for the payload, ``events`` is what
    it says it processed. The server keeps them by their order: new ones come last.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_mb: float = 0.0
    max_pss_mb: float = 0.0
    max_swap_mb: float = 0.0
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
    gpu_percent: float = 0.0
    gpu_memory_mb: float = 0.0


class JobReport(Message):
    """State of one job that the pilot holds."""

    job_id: Id
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
    """Answer for one job of a heartbeat; ``peeks`` are what people want to see of it, until that is answered."""

    job_id: int
    instruction: Instruction = Instruction.CONTINUE
    reason: str = ""
    peeks: list[PeekOrder] = []


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
    """Units, nearest first; none when there are no more. ``remote_io`` as in an assignment."""

    units: list[AssignedUnit] = []
    remote_io: bool = False


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

    unit_id: Id
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
    """A file that the pilot is about to upload. ``name`` is its name in the working directory.

    ``avoid`` are storages that did not take it: recorded again, it gets another place if the queue allows that.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$(?!\n)")]
    size: NonNegative
    checksum: Checksum
    role: OutputRole = OutputRole.OUTPUT
    pattern: Optional[str] = None
    events: Optional[NonNegative] = None
    attributes: dict[str, Any] = {}
    avoid: Annotated[list[str], msgspec.Meta(max_length=100)] = []


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
    activity: Activity = Activity.WRITE_LAN


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
    error_code: Number
    detail: str = ""


class FinishRequest(Message):
    """``POST /v1/jobs/{id}:finish``: confirms the job with an outcome for each of its units.

    ``state`` is ``finished``, ``failed``, ``cancelled`` or ``closed``. A job may finish although some units failed.
    The server keeps a digest of the request: a repeat is answered as the first time. ``asked`` is how many units the
    jobscript asked for by get-file, ``probe`` what a probe found.
    """

    state: JobState
    units: list[UnitResult] = []
    outputs: list[UploadedOutput] = []
    bad_replicas: list[BadReplica] = []
    exit_code: Optional[Number] = None
    error_code: Optional[Number] = None
    error_detail: Annotated[str, msgspec.Meta(max_length=8192)] = ""
    metrics: Optional[Metrics] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""
    asked: Optional[Number] = None
    probe: Optional[ProbeReport] = None


class FinishReply(Message):
    """The job's final state and those of its units."""

    job_id: int
    state: JobState
    units: dict[str, UnitState] = {}


class PilotView(Message, kw_only=True):
    """``GET /v1/pilots/{id}``: a pilot, where it runs, and what became of it.

    ``state`` is ``active``, ``ended`` or ``lost``. ``log_tail`` is the end of its log, of one that left with an error:
    for production managers and admins.
    """

    id: int
    worker: str
    node: int = 0
    queue: str
    site: str
    host: str = ""
    version: str = ""
    state: str
    registered: float
    heard: Optional[float] = None
    ended: Optional[float] = None
    end_reason: str = ""
    log_tail: str = ""
    offer: Optional[Offer] = None
    node_info: Optional[NodeInfo] = None


class PilotPage(Page):
    """``GET /v1/pilots``: what is known of pilots in short, without offer, node and log."""

    items: list[PilotView] = []


class PilotEnd(Message):
    """``POST /v1/pilots/{id}:end``: the pilot leaves; ``reason`` and the end of its log are for people."""

    reason: Text = ""
    error_code: Optional[Number] = None
    log_tail: Annotated[str, msgspec.Meta(max_length=65536)] = ""
