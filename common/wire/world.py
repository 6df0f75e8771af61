"""The world, as admins describe it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.states import ResourceState
from common.wire.base import Count, Message, Name, Strict
from common.wire.outputs import Registration


class Activity(str, Enum):
    """What an endpoint of a storage may be used for."""

    READ_LAN = "read_lan"
    WRITE_LAN = "write_lan"
    READ_WAN = "read_wan"
    WRITE_WAN = "write_wan"


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


class Queue(Message, kw_only=True):
    """A computing resource: the most that one slot of it can offer. Zero means no limit.

    ``core_power`` is what a core does, in HS23; payloads are expected to use ``cpu_efficiency`` of it.
    Harvester asks for GPUs only where ``gpus`` says that a slot has some. A payload without an image runs as the pilot's
    own user, who can read the pilot's credentials: only a ``trusted`` queue gets such work.
    ``heartbeat_timeout_s`` stands in for the setting of that name. With ``no_reassign`` nothing is taken from a pilot
    because it is silent or slow, only when the batch system says that its worker has ended. With ``remote_io`` payloads
    may read their input straight from storages that have a protocol for it.
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
    container_binds: list[str] = []
    description: str = ""


class QueueSpec(Queue, forbid_unknown_fields=True, kw_only=True):
    """The same, as an admin describes it: no job is given to it that would end in one of its ``downtimes``."""

    downtimes: Downtimes = []


class Endpoint(Strict):
    """A way to reach a storage: ``url`` is its prefix, such as ``root://host:1094//data`` or ``file:///data``."""

    url: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.\-]*://[^\x00-\x20]*$(?!\n)", max_length=2048)]
    activities: list[Activity] = msgspec.field(default_factory=lambda: list(Activity))


class StorageSpec(Strict, kw_only=True):
    """An endpoint with protocols, at a site.

    What lies on a ``tape`` must be recalled before it can be read: ``stager`` names the section of the server's
    configuration that says how.
    """

    name: Name
    site: Name
    tape: bool = False
    stager: Optional[Name] = None
    registration: Registration = Registration.NONE
    status: ResourceState = ResourceState.ONLINE
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
