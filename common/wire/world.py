"""The world, as admins describe it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Optional

import msgspec

from common.states import ResourceState
from common.wire.base import Checksum, Count, Message, Name, NonNegative, Strict
from common.wire.outputs import Registration


class Activity(str, Enum):
    """What an endpoint of a storage may be used for. At the site of the storage it is LAN, elsewhere WAN.

    Logs go where something is for ``logs``, as long as it can be reached; otherwise like other outputs.
    """

    READ_LAN = "read_lan"
    WRITE_LAN = "write_lan"
    READ_WAN = "read_wan"
    WRITE_WAN = "write_wan"
    LOGS = "logs"


DATA = (Activity.READ_LAN, Activity.WRITE_LAN, Activity.READ_WAN, Activity.WRITE_WAN)
"""What an endpoint is for when nothing is said."""


class CredentialKind(str, Enum):
    """What a storage wants to be shown."""

    AMBIENT = "ambient"
    """Whatever the pilot has from its surroundings."""
    NONE = "none"
    """Nothing: anybody may, and nothing is shown."""
    TOKEN = "token"
    """A bearer token (WLCG profile)."""
    PROXY = "proxy"
    """An X.509 proxy certificate (RFC 3820)."""


class Downtime(Strict):
    """A time in which a site, queue or storage is not used. Moments in seconds since the epoch; ``reason`` is for people."""

    start: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    end: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


Downtimes = Annotated[list[Downtime], msgspec.Meta(max_length=1000)]


class SiteSpec(Strict):
    """A place. ``distances`` to storages: 0 same site … 100 far, 101 never; a storage of the site itself is at 0.

    Its ``downtimes`` are those of all its queues and storages.
    """

    name: Name
    status: ResourceState = ResourceState.ONLINE
    distances: dict[str, Annotated[int, msgspec.Meta(ge=0, le=101)]] = {}
    description: str = ""
    downtimes: Downtimes = []


Repository = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.\-]*(/[^\x00-\x20]*)?$(?!\n)", max_length=500)]
"""A CVMFS repository, or a folder in one, as it is called below ``/cvmfs``."""
Place = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x20]+:[^\x00-\x20]+$(?!\n)", max_length=2048)]
"""A URL, or ``host:port``."""


class NodeChecks(Message, kw_only=True):
    """What a node must pass before its pilot asks for its first job. One that fails is reported, and left. A queue that
    does not say takes the values here.

    Always looked at: the scratch folder can be written, synced and executed from. ``clock_s`` is how far the clock may be
    from the server's (0: not looked at), ``scratch_mb`` the least free scratch. ``cvmfs`` are repositories (or folders in
    them) that must be mounted. With ``container`` a container must run. ``gpus`` is how many GPUs the slot must have.
    Each of ``reachable`` (a URL, or host:port) must accept a connection.
    """

    clock_s: Count = 300
    scratch_mb: Count = 0
    cvmfs: list[Repository] = []
    container: bool = False
    gpus: Count = 0
    reachable: list[Place] = []


class NodeChecksSpec(NodeChecks, forbid_unknown_fields=True, kw_only=True):
    """The same, as an admin describes it."""


class PayloadLimits(Message):
    """What payloads may use in a queue; what is left out is as the pilot is configured, and zero means that it is not
    looked at.

    Of the memory that a job asked for a payload may use ``memory_factor`` times as much, and more than that for
    ``memory_grace_s``. A log may have ``stdout_mb``; there may be so many ``processes`` at a time. One that does nothing for
    ``looping_s`` hangs. ``wall_warning_s`` before the end it gets SIGUSR1, if it handles that.
    """

    memory_factor: Optional[Annotated[float, msgspec.Meta(ge=0, le=1000)]] = None
    memory_grace_s: Optional[Count] = None
    stdout_mb: Optional[Count] = None
    processes: Optional[Count] = None
    looping_s: Optional[Count] = None
    wall_warning_s: Optional[Count] = None


class PayloadLimitsSpec(PayloadLimits, forbid_unknown_fields=True):
    """The same, as an admin describes it."""


class QueueMode(str, Enum):
    """When the jobs of a worker are claimed."""

    PULL = "pull"
    """Its pilot asks for them when it runs."""
    PUSH = "push"
    """Harvester asks for them before it submits the worker, whose pilot finds them there."""


class Queue(Message, kw_only=True):
    """A computing resource: the most that one slot of it can offer. Zero means no limit.

    ``core_power`` is what a core does, in HS23; payloads are expected to use ``cpu_efficiency`` of it.
    Harvester asks for GPUs only where ``gpus`` says that a slot has some. A payload without an image runs as the pilot's
    own user, who can read the pilot's credentials: only a ``trusted`` queue gets such work.
    ``heartbeat_timeout_s`` stands in for the setting of that name. With ``no_reassign`` nothing is taken from a pilot
    because it is silent or slow, only when the batch system says that its worker has ended. With ``remote_io`` payloads
    may read their input straight from storages that have a protocol for it. ``copytools`` are tried in their order, for an
    activity those of ``copytools_for``. With ``alternative_stage_out`` an output that a storage does not take goes to the
    next one, unless its task names the storage. An output of more than ``max_output_mb`` MiB
    fails its job. ``plugin`` names the plug-in of the group ``pilotage.payloads`` for stages that name none.
    In ``mode`` push a worker asks its batch system for no more than its jobs need, if ``shape_from_jobs``, and its pilot
    leaves when they are over, unless with ``pull_more`` it asks for others.
    """

    name: Name
    site: Name
    status: ResourceState = ResourceState.ONLINE
    cores: Count = 0
    memory_mb: Count = 0
    disk_mb: Count = 0
    wall_s: Count = 0
    gpus: Count = 0
    trusted: bool = False
    heartbeat_timeout_s: Count = 0
    no_reassign: bool = False
    remote_io: bool = False
    core_power: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 10.0
    cpu_efficiency: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    tags: list[str] = []
    copytools: list[Name] = []
    copytools_for: dict[Activity, list[Name]] = {}
    alternative_stage_out: bool = False
    container_binds: list[str] = []
    node_checks: Optional[NodeChecks] = None
    max_output_mb: Count = 0
    limits: Optional[PayloadLimits] = None
    plugin: Optional[Name] = None
    mode: QueueMode = QueueMode.PULL
    shape_from_jobs: bool = True
    pull_more: bool = False
    description: str = ""


class QueueSpec(Queue, forbid_unknown_fields=True, kw_only=True):
    """The same, as an admin describes it: no job is given to it that would end in one of its ``downtimes``."""

    limits: Optional[PayloadLimitsSpec] = None
    node_checks: Optional[NodeChecksSpec] = None
    downtimes: Downtimes = []


class Endpoint(Strict):
    """A way to reach a storage: ``url`` is its prefix, such as ``root://host:1094//data`` or ``file:///data``.

    ``credential`` is what it wants to be shown, and ``provider`` names the section ``[server.credentials.NAME]`` that
    pilots get it from; without one, pilots show what they have of that kind themselves. Tokens are for its ``audience``;
    their scopes leave out ``token_prefix``, the path that the storage puts before them. A payload that reads directly
    gets a token for its own files; a proxy, which cannot be narrowed to them, only from ``payload_provider``.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.\-]*://[^\x00-\x20]*$(?!\n)", max_length=2048)]
    activities: list[Activity] = msgspec.field(default_factory=lambda: list(DATA))
    credential: CredentialKind = CredentialKind.AMBIENT
    provider: Optional[Name] = None
    payload_provider: Optional[Name] = None
    audience: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x20]*$(?!\n)", max_length=2048)] = ""
    token_prefix: Annotated[str, msgspec.Meta(pattern=r"^(/[^\x00-\x20]*)?$(?!\n)", max_length=2048)] = ""


class KnownFile(Strict, kw_only=True):
    """A file that is known to lie on a storage: at ``path`` below its prefix, of this size and checksum where they are given."""

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
    size: Optional[NonNegative] = None
    checksum: Optional[Checksum] = None


class OutputNaming(str, Enum):
    """Where a new file lies below a storage's prefix."""

    JOB = "job"
    """``scope/task/job/name``."""
    RUCIO_HASH = "rucio-hash"
    """Where Rucio looks for it on a deterministic RSE: ``scope/xx/yy/name``, from the MD5 sum of its DID."""
    RUCIO_IDENTITY = "rucio-identity"
    """The same with Rucio's algorithm ``identity``: ``scope/name``."""


class StorageSpec(Strict, kw_only=True):
    """An endpoint with protocols, at a site.

    What lies on a ``tape`` must be recalled before it can be read: ``stager`` names the section of the server's
    configuration that says how. ``naming`` says how new files are named here. Probes read ``probe_file`` beside what they have written themselves.
    """

    name: Name
    site: Name
    tape: bool = False
    stager: Optional[Name] = None
    registration: Registration = Registration.NONE
    naming: OutputNaming = OutputNaming.JOB
    status: ResourceState = ResourceState.ONLINE
    probe_file: Optional[KnownFile] = None
    endpoints: Annotated[list[Endpoint], msgspec.Meta(min_length=1)]
    description: str = ""
    downtimes: Downtimes = []


class ShareSpec(Strict):
    """A node of the share tree: ``weight`` against its siblings."""

    name: Name
    parent: Optional[Name] = None
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class ShareView(Message):
    """A share with what it should have and what it has.

    ``target`` is its part of everything, by the weights from the root down; ``used`` the part that it and all below it
    have of all ``cores`` in use, which counts what the share itself and those below hold. The one of its siblings with
    the smallest ``used / target`` is served next.
    """

    name: Name
    parent: Optional[Name] = None
    weight: float = 1.0
    target: float = 0.0
    used: float = 0.0
    cores: float = 0.0
    own_cores: float = 0.0
    depth: int = 0


class ShareTree(Message):
    """``GET /v1/share-tree`` and ``GET /v1/shares/{name}``: a share and all below it, in the order of service."""

    items: list[ShareView] = []


class SiteList(Message):
    items: list[SiteSpec] = []


class QueueList(Message):
    items: list[QueueSpec] = []


class StorageList(Message):
    items: list[StorageSpec] = []


class ShareList(Message):
    items: list[ShareSpec] = []


class ImportStep(str, Enum):
    """What an import does with a site, a storage, a queue, or the distances of a site."""

    CREATED = "created"
    """It was not there."""
    CHANGED = "changed"
    """The fields are others at the source."""
    DRAINED = "drained"
    """No source has it any more: nothing is deleted, but nothing new goes there."""
    BACK = "back"
    """It had vanished, and is there again."""
    KEPT = "kept"
    """It, or the fields of it, stay as somebody made them by hand, and are not as the source has them."""
    LEFT_OUT = "left out"
    """It cannot be used, and stays as it is."""


class ImportDocument(Message):
    """A part of what a source says: where it is, how many entries it has. With a ``problem`` nothing of it was taken."""

    name: str
    where: str = ""
    entries: int = 0
    problem: str = ""


class ImportChange(Message):
    """What became of a site, a storage, a queue, or of the ``distances`` of a site, with the ``fields`` as the source has them
    (null: it does not have it any more), and ``why`` they are not taken."""

    kind: str
    name: str
    step: ImportStep
    fields: dict[str, Any] = {}
    why: str = ""


class ImportReport(Message):
    """What a look at a source brought: its documents, what is ``left`` other than the source has it, and the ``changes`` of the
    last look that brought some, which was at ``changed``."""

    source: str
    time: float = 0.0
    documents: list[ImportDocument] = []
    changed: float = 0.0
    changes: list[ImportChange] = []
    left: list[ImportChange] = []


class ImportReports(Message):
    """``GET /v1/imports``: one for each source. Of two that say a field of the same thing, the first has it."""

    items: list[ImportReport] = []


class ImportRequest(Strict):
    """``POST /v1/imports/{source}``: with ``dry_run`` nothing is changed. What is called as one of ``take`` follows altogether,
    whatever was changed or deleted by hand. With ``believe`` any number of entries may have vanished."""

    dry_run: bool = False
    take: Annotated[list[Name], msgspec.Meta(max_length=1000)] = []
    believe: bool = False
