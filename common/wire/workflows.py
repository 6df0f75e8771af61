"""Workflows, as a person submits and sees them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional, Union

import msgspec

from common.states import JobState, TaskState, UnitState
from common.wire.base import Checksum, Count, Did, Message, Name, NonNegative, Positive, Strict
from common.wire.outputs import Registration
from common.wire.payloads import LogPattern, ProcessSpec, Transformation

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
"""A wildcard pattern of names: ``*``, ``?`` and ``[…]``."""


Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
SecretName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_]*$(?!\n)")]
"""The name of a secret; in capitals it is part of the name of a variable."""


class GpuNeeds(Message):
    """GPUs that each job of a task needs."""

    count: Positive = 1
    vendor: Optional[Name] = None
    model: Optional[str] = None
    memory_mb: Count = 0


class GpuRequest(GpuNeeds, forbid_unknown_fields=True):
    """The same, as a person asks for it."""


class Needs(Message):
    """What each job of a task needs. ``disk_mb`` is beside the input; zero wall time means unknown.

    A payload that does nothing for ``looping_s`` hangs and is killed (zero: it never is; left out: as the queue has it).
    """

    cores: Positive = 1
    memory_mb: Count = 1000
    disk_mb: Count = 500
    wall_s: Count = 0
    gpus: Optional[GpuNeeds] = None
    tags: list[str] = []
    looping_s: Optional[Count] = None


class Requirements(Needs, forbid_unknown_fields=True):
    """The same, as a person asks for it."""

    gpus: Optional[GpuRequest] = None


class ReplicaSpec(Strict, gc=False):
    """A copy of a file: on ``storage``, at ``path`` below the storage's prefix."""

    storage: Name
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class FileSpec(Strict, kw_only=True, gc=False):
    """A file of a task's input."""

    did: Did
    size: Optional[NonNegative] = None
    events: Optional[NonNegative] = None
    checksum: Optional[Checksum] = None
    replicas: Annotated[list[ReplicaSpec], msgspec.Meta(min_length=1)]
    attributes: dict[str, Any] = {}


class FilesInput(Strict, tag_field="kind", tag="files"):
    """Each file is a unit; with ``events_per_unit`` each range of that many events of a file (its last may be shorter).

    Only files whose name (the DID's part behind the colon) matches ``pattern`` are taken, and at the most ``limit`` of
    them. An ``open`` input takes more files later, until it is closed.
    """

    files: list[FileSpec] = []
    pattern: Pattern = "*"
    limit: Optional[Positive] = None
    events_per_unit: Optional[Positive] = None
    open: bool = False


class DatasetInput(Strict, tag_field="kind", tag="dataset", kw_only=True):
    """The files that a catalogue of the server's configuration finds for ``query``; the rest as with files.

    An ``open`` input is asked for again from time to time, until it is closed: new files become units.
    """

    catalog: Name
    query: Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]
    pattern: Pattern = "*"
    limit: Optional[Positive] = None
    events_per_unit: Optional[Positive] = None
    open: bool = False


class CounterInput(Strict, tag_field="kind", tag="counter"):
    """Each number from ``first`` on is a unit, as for Monte Carlo seeds. ``events`` is the event count of each."""

    count: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]
    first: NonNegative = 0
    events: Optional[NonNegative] = None


class StageSource(Strict):
    """The outputs of a stage whose names match ``pattern``."""

    stage: Name
    pattern: Pattern = "*"


class StageInput(Strict, tag_field="kind", tag="stage"):
    """Each output of another stage of the same workflow that matches ``pattern`` is a unit.

    Outputs of several stages: ``stages`` in place of ``stage`` and ``pattern``. With ``events_per_unit`` each range of
    that many events of a file is a unit.
    """

    stage: Optional[Name] = None
    pattern: Pattern = "*"
    stages: list[StageSource] = []
    events_per_unit: Optional[Positive] = None


class SingleInput(Strict, tag_field="kind", tag="single"):
    """One unit: the task itself."""


TaskInput = Union[FilesInput, DatasetInput, CounterInput, StageInput, SingleInput]


class SecondaryInput(Strict, kw_only=True):
    """Files that go with each job beside its units, such as ``per_job`` files of minimum-bias events.

    They are given out in turn and any number of times. Either ``files``, or the outputs of ``stage`` that match
    ``pattern``: the task then waits for that stage's end.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_]*$(?!\n)")]
    files: Annotated[list[FileSpec], msgspec.Meta(max_length=10_000)] = []
    stage: Optional[Name] = None
    pattern: Pattern = "*"
    per_job: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class OutputRule(Message):
    """Files that the payload leaves in its working directory.

    ``storage`` names where they go; without it the nearest writable storage is taken. An output that is not
    ``optional`` and not there fails the job, and so does a file that is larger than ``max_mb`` MiB (zero: no limit of
    the stage's own). What a job that fails left of it goes into its log archive if ``keep_partial`` says so.
    """

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$(?!\n)")]
    storage: Optional[Name] = None
    optional: bool = False
    max_mb: Count = 0
    keep_partial: bool = False


class OutputPattern(OutputRule, forbid_unknown_fields=True):
    """The same, as a person asks for it.

    ``dataset`` is the name of its datasets, in which ``{workflow}``, ``{name}``, ``{stage}``, ``{task}``, ``{pattern}``
    (their numbers, and the names of workflow and stage) and ``{owner}`` are filled in. ``lifetime_days`` is how long
    the catalogue keeps them on their storage; with ``max_files_per_dataset`` there are numbered ones, too.

    ``name`` is what each job calls its file of a pattern with wildcards, where that is known ahead, with ``%OUT`` (once)
    for the task's and a serial number, as in ``user.ann.%OUT.root``. Pilots of other systems need names ahead.
    """

    dataset: Optional[Annotated[str, msgspec.Meta(min_length=1, max_length=150)]] = None
    lifetime_days: Optional[Positive] = None
    max_files_per_dataset: Optional[Positive] = None
    name: Optional[Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^/\x00-\x1f]+$(?!\n)")]] = None


class MergeRule(Strict):
    """How a merging stage claims: at least ``min_files`` until its parent is closed, never more than ``max_files``.

    With ``target_mb`` a job takes files until their sizes reach it. ``group_by`` keeps apart what must not be merged
    together: ``storage``, ``site``, or ``attribute:NAME``, a file's attribute of that name (of the jobscript's
    metadata, for files that a stage wrote).
    """

    min_files: Positive = 1
    max_files: Positive = 1000
    target_mb: Count = 0
    group_by: Optional[
        Annotated[str, msgspec.Meta(max_length=255, pattern=r"^(storage|site|attribute:[^\x00-\x1f]+)$(?!\n)")]
    ] = None


class RemoteIo(str, Enum):
    """Whether a payload reads its input straight from the storage, in place of a copy on the slot's disk."""

    ALLOWED = "allowed"
    """Where the queue and the storage offer it."""
    NEVER = "never"
    """Always copied first."""
    ALWAYS = "always"
    """Never copied: only slots that can read directly get such jobs."""


class Fixed(str, Enum):
    """A requirement that measuring must not change."""

    MEMORY = "memory"
    """``memory_mb`` stays as asked for."""
    DISK = "disk"
    """``disk_mb`` stays as asked for."""
    CPU_TIME = "cpu_time"
    """``cpu_per_event`` stays as given."""


class GitSource(Strict, kw_only=True):
    """Where a jobscript was taken from: ``path`` in the repository at ``url``, as it is in ``commit``.

    ``ref`` is the branch or tag that was asked for. The client resolves it; the text goes with the stage.
    """

    url: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    ref: Annotated[str, msgspec.Meta(max_length=255)] = ""
    commit: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$(?!\n)")]


class StageSpec(Strict, kw_only=True):
    """One stage of a workflow; it becomes a task.

    Either ``jobscript`` (text with a shebang), ``command`` (arguments) or ``transformation`` (a program to fetch) is the
    payload; ``processes`` run around it. With ``allow_no_output`` a job that leaves no output at all is as good as one
    that leaves them all. ``log_files`` go into the log archive beside what it has anyway. ``plugin`` names the plug-in of
    the group ``pilotage.payloads`` that the pilot asks, in place of the queue's. A job takes ``files_per_job``
    units, or as many as hold ``events_per_job`` events, or whose files have ``mb_per_job`` MiB; with none of them, as
    many as the slot can hold by what the first jobs measured, and one until then. A large task starts with a few
    ``scouts`` that measure. ``cpu_per_event`` is its CPU time in HS23 seconds, where that is known beforehand; measuring
    leaves alone what ``fixed`` names. Only ``sites``, if any are named, and none of
    ``exclude_sites`` run it. ``sandbox`` is the SHA-256 of an uploaded archive that is unpacked where the payload
    starts; ``secrets`` are names of the owner's own; ``attributes`` are for people and their programs. Jobs of a
    ``probe`` also run in queues, and write to storages, that are in ``test``.
    """

    name: Name
    input: TaskInput
    jobscript: Optional[Annotated[str, msgspec.Meta(max_length=1_000_000)]] = None
    jobscript_git: Optional[GitSource] = None
    sandbox: Optional[Sha256] = None
    secrets: Annotated[list[SecretName], msgspec.Meta(max_length=20)] = []
    attributes: dict[str, Any] = {}
    command: Optional[Annotated[list[str], msgspec.Meta(min_length=1)]] = None
    transformation: Optional[Transformation] = None
    processes: Annotated[list[ProcessSpec], msgspec.Meta(max_length=20)] = []
    plugin: Optional[Name] = None
    image: Optional[str] = None
    environment: dict[str, str] = {}
    outputs: list[OutputPattern] = []
    allow_no_output: bool = False
    log_files: Annotated[list[LogPattern], msgspec.Meta(max_length=100)] = []
    common_input: list[FileSpec] = []
    secondary_inputs: Annotated[list[SecondaryInput], msgspec.Meta(max_length=100)] = []
    requirements: Requirements = msgspec.field(default_factory=Requirements)
    files_per_job: Optional[Positive] = None
    events_per_job: Optional[Positive] = None
    mb_per_job: Optional[Positive] = None
    scouts: bool = True
    cpu_per_event: Optional[Annotated[float, msgspec.Meta(gt=0, le=1e12)]] = None
    fixed: list[Fixed] = []
    merge: Optional[MergeRule] = None
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    priority: Annotated[int, msgspec.Meta(ge=-10_000, le=10_000)] = 0
    share: Name = "default"
    max_distance: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100
    far_after_s: Count = 0
    sites: list[Name] = []
    exclude_sites: list[Name] = []
    remote_io: RemoteIo = RemoteIo.ALLOWED
    probe: bool = False
    registration: Optional[Registration] = None


class NoticeChannel(str, Enum):
    """How somebody is told that a workflow is over."""

    WEBHOOK = "webhook"
    """A signed call of an https URL."""
    EMAIL = "email"
    """A mail to an address."""


class NotifySpec(Strict):
    """Whom to tell when a workflow is over: ``target`` is a URL or an address, as ``channel`` says."""

    channel: NoticeChannel
    target: Annotated[str, msgspec.Meta(min_length=3, max_length=2048)]


class WorkflowRequest(Strict):
    """``POST /v1/workflows``. ``scope`` is the DID scope of the outputs. ``request_id`` makes a repeat harmless."""

    name: Name
    stages: Annotated[list[StageSpec], msgspec.Meta(min_length=1, max_length=100)]
    scope: Optional[Name] = None
    group: Optional[Name] = None
    labels: dict[str, str] = {}
    request_id: Optional[str] = None
    notify: Annotated[list[NotifySpec], msgspec.Meta(max_length=10)] = []


class InputsRequest(Strict):
    """``POST /v1/tasks/{id}/inputs``: more files for an open input. A file that it has already is left out."""

    files: Annotated[list[FileSpec], msgspec.Meta(min_length=1)]


class Measured(Message):
    """What a task's finished jobs were measured to need; None: not known.

    ``jobs`` were looked at, for the ``round``-th time. CPU time per event in HS23 seconds, memory in MiB a core, output in
    KiB an event (a file without an event count is one event), work space in MiB, I/O in kB/s; ``cpu_efficiency`` and
    ``wall_s`` are medians. ``problems`` are the kinds of those that were told.
    """

    round: int = 0
    jobs: int = 0
    time: float = 0.0
    cpu_per_event: Optional[float] = None
    memory_per_core_mb: Optional[float] = None
    out_kb_per_event: Optional[float] = None
    work_mb: Optional[float] = None
    io_kb_s: Optional[float] = None
    disk_io_kb_s: Optional[float] = None
    cpu_efficiency: Optional[float] = None
    wall_s: Optional[float] = None
    problems: list[str] = []


class TaskView(Message):
    """A task, as people see it. ``units`` counts by state."""

    id: int
    workflow_id: int
    stage: str
    state: TaskState
    state_reason: str = ""
    priority: int = 0
    share: str = "default"
    requirements: Needs = msgspec.field(default_factory=Needs)
    input_kind: str = ""
    input_closed: bool = False
    units: dict[str, int] = {}
    jobs: dict[str, int] = {}
    created: float = 0.0
    ended: Optional[float] = None
    measured: Optional[Measured] = None


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
    first_event: Optional[int] = None
    counter: Optional[int] = None
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


class EventPage(Message):
    """Events in the order in which they became final; go on with ``after=next``.

    A list has ``next`` while there is more. One with ``follow`` or ``newest`` always has it.
    """

    next: Optional[str] = None
    items: list[EventView] = []
    retry_after_s: float = 0.0
    """How long to wait before asking again, when the server did not wait itself."""
