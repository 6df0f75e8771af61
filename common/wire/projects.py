"""Projects: files that are handed out to workers outside of the pilots' slots, one after another."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional, Union

import msgspec
from msgspec import UNSET, UnsetType

from common.states import UnitState
from common.wire.base import Did, Message, Name, Strict
from common.wire.workflows import FileSpec, Page, ReplicaSpec

WorkerId = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]+$(?!\n)")]
"""Whatever a worker calls itself; it must be its own."""
Timeout = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f]+$(?!\n)")]
Names = Annotated[list[_Word], msgspec.Meta(max_length=1000)]
WORKER_TIMEOUT_S = 12 * 3600.0
IDLE_TIMEOUT_S = 72 * 3600.0
MOST_FILES = 1000
"""Files of one reservation or release."""


class ProjectState(str, Enum):
    """A project, in the words of those who know Data Dispatcher."""

    ACTIVE = "active"
    """Files are to be processed, or more files will come."""
    DONE = "done"
    """All files are done."""
    FAILED = "failed"
    """All files are over, and at least one of them failed for good."""
    CANCELLED = "cancelled"
    """A person ended it."""
    ABANDONED = "abandoned"
    """No worker reserved or released a file for too long; the next one that does brings it back."""


class ProjectFile(FileSpec, kw_only=True):
    """A file of a project; of a virtual one without replicas."""

    replicas: list[ReplicaSpec] = []


class ProjectRequest(Strict, kw_only=True):
    """``POST /v1/projects``: ``files``, or those that ``catalog`` finds for ``query``.

    An ``open`` project takes more files later, until it is closed. ``file_attributes`` hold for each file that has none
    of that name. A time-out of ``null`` means never. Of a ``virtual`` project no replica is looked at. ``users`` and
    members of ``roles`` (groups, or roles of the server such as ``outside_worker``) may reserve and release files like
    the owner.
    """

    name: Name = "project"
    files: list[ProjectFile] = []
    catalog: Optional[Name] = None
    query: Optional[Annotated[str, msgspec.Meta(min_length=1, max_length=10_000)]] = None
    open: bool = False
    attributes: dict[str, Any] = {}
    file_attributes: dict[str, Any] = {}
    worker_timeout_s: Optional[Timeout] = WORKER_TIMEOUT_S
    idle_timeout_s: Optional[Timeout] = IDLE_TIMEOUT_S
    retry_on_timeout: bool = True
    virtual: bool = False
    users: Names = []
    roles: Names = []
    group: Optional[Name] = None
    request_id: Optional[Annotated[str, msgspec.Meta(min_length=8, max_length=255)]] = None


class ProjectFilesRequest(Strict):
    """``POST /v1/projects/{id}/files``: more files for an open project; those that it has already are left out."""

    files: Annotated[list[ProjectFile], msgspec.Meta(min_length=1)]


class RestartState(str, Enum):
    """Which files are restarted."""

    FAILED = "failed"
    """Those that failed for good or were lost."""
    DONE = "done"
    """Those that are done: their next generation begins."""
    RESERVED = "reserved"
    """Those that workers hold, who lose them."""


class ProjectRestart(Strict):
    """``POST /v1/projects/{id}:restart``: files in some ``states``, or single ones by ``dids`` whatever their state."""

    states: list[RestartState] = []
    dids: Annotated[list[Did], msgspec.Meta(max_length=10_000)] = []


class ProjectCopy(Strict, kw_only=True):
    """``POST /v1/projects/{id}:copy``: a new project of the same files. What is not given is as in the original.

    ``attributes`` and ``file_attributes`` replace those of the same names.
    """

    name: Optional[Name] = None
    attributes: dict[str, Any] = {}
    file_attributes: dict[str, Any] = {}
    worker_timeout_s: Union[Timeout, None, UnsetType] = UNSET
    idle_timeout_s: Union[Timeout, None, UnsetType] = UNSET
    retry_on_timeout: Optional[bool] = None
    users: Optional[Names] = None
    roles: Optional[Names] = None
    request_id: Optional[Annotated[str, msgspec.Meta(min_length=8, max_length=255)]] = None


class ProjectView(Message, kw_only=True):
    """A project. ``files`` counts by the states of units; ``active`` is when a worker was last heard of."""

    id: int
    name: str
    owner: str
    state: ProjectState
    group: Optional[str] = None
    reason: str = ""
    attributes: dict[str, Any] = {}
    file_attributes: dict[str, Any] = {}
    files: dict[str, int] = {}
    open: bool = False
    catalog: Optional[str] = None
    query: Optional[str] = None
    worker_timeout_s: Optional[float] = None
    idle_timeout_s: Optional[float] = None
    retry_on_timeout: bool = True
    virtual: bool = False
    users: list[str] = []
    roles: list[str] = []
    created: float
    active: float
    ended: Optional[float] = None
    copied_from: Optional[int] = None


class ProjectPage(Page):
    items: list[ProjectView] = []


class ReplicaView(Message):
    """A replica of a file, as seen from a worker's site; ``distance`` is 0 at the same site … 100 far."""

    storage: str
    path: str
    urls: list[str] = []
    distance: int = 100
    available: bool = True


class ProjectFileView(Message, kw_only=True):
    """A file of a project. ``worker`` is who holds it, or held it last; ``attempts`` how often it was reserved."""

    id: int
    did: str
    state: UnitState
    size: Optional[int] = None
    events: Optional[int] = None
    checksum: Optional[str] = None
    worker: Optional[str] = None
    attempts: int = 0
    timeouts: int = 0
    reserved: Optional[float] = None
    expires: Optional[float] = None
    attributes: dict[str, Any] = {}
    replicas: list[ReplicaView] = []
    error: str = ""


class ProjectFilePage(Page):
    items: list[ProjectFileView] = []


class ReserveRequest(Message, kw_only=True):
    """``POST /v1/projects/{id}/files:reserve``: up to ``count`` files, those nearest to ``cpu_site`` first.

    The same ``request_id`` of a worker gets the same files. The server may wait up to ``wait_s`` for one to come.
    """

    request_id: Annotated[str, msgspec.Meta(min_length=8, max_length=64)]
    worker: WorkerId
    cpu_site: Optional[Annotated[str, msgspec.Meta(max_length=255)]] = None
    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_FILES)] = 1
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.0


class ReserveReply(Message):
    """Files that the worker holds now. With none of them: ask again in ``retry_after_s``, or, if the project is not
    active any more, never. Replicas on storages that cannot be read now are left out."""

    files: list[ProjectFileView] = []
    state: ProjectState = ProjectState.ACTIVE
    attributes: dict[str, Any] = {}
    retry_after_s: float = 0.0


class FileOutcome(str, Enum):
    """What became of a file."""

    DONE = "done"
    """It was processed."""
    FAILED = "failed"
    """It was not."""


class FileRelease(Message):
    """What became of one file. One that failed goes to the end of the queue, unless there is no ``retry``."""

    did: Did
    outcome: FileOutcome
    retry: bool = True


class ReleaseRequest(Message):
    """``POST /v1/projects/{id}/files:release``. It may be repeated."""

    worker: WorkerId
    files: Annotated[list[FileRelease], msgspec.Meta(min_length=1, max_length=MOST_FILES)]


class ReleasedFile(Message):
    """Whether that was ``accepted``, and if not, why. ``state`` is where the file went, or is."""

    did: str
    accepted: bool
    state: Optional[UnitState] = None
    reason: str = ""


class ReleaseReply(Message):
    files: list[ReleasedFile] = []
