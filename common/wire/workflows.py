"""Workflows, as a person submits and sees them."""

from __future__ import annotations

from typing import Annotated, Any, Optional, Union

import msgspec

from common.states import JobState, TaskState, UnitState
from common.wire.base import Checksum, Count, Did, Message, Name, NonNegative, Positive, Strict


class GpuNeeds(Message):
    """GPUs that each job of a task needs."""

    count: Positive = 1
    vendor: Optional[Name] = None
    model: Optional[str] = None
    memory_mb: Count = 0


class GpuRequest(GpuNeeds, forbid_unknown_fields=True):
    """The same, as a person asks for it."""


class Needs(Message):
    """What each job of a task needs. ``disk_mb`` is beside the input; zero wall time means unknown."""

    cores: Positive = 1
    memory_mb: Count = 1000
    disk_mb: Count = 500
    wall_s: Count = 0
    gpus: Optional[GpuNeeds] = None
    tags: list[str] = []


class Requirements(Needs, forbid_unknown_fields=True):
    """The same, as a person asks for it."""

    gpus: Optional[GpuRequest] = None


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


class OutputRule(Message):
    """Files that the payload leaves in its working directory.

    ``storage`` names where they go; without it the nearest writable storage is taken. An output that is not
    ``optional`` and not there fails the job.
    """

    pattern: Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^/\x00-\x1f]+$(?!\n)")]
    storage: Optional[Name] = None
    optional: bool = False


class OutputPattern(OutputRule, forbid_unknown_fields=True):
    """The same, as a person asks for it."""


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
    requirements: Needs = msgspec.field(default_factory=Needs)
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
