"""The world, as admins describe it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Optional

import msgspec

from common.states import ResourceState
from common.wire.base import Count, Message, Name, Strict


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


class Queue(Message, kw_only=True):
    """A computing resource: the most that one slot of it can offer. Zero means no limit.

    Harvester asks for GPUs only where ``gpus`` says that a slot has some. A payload without an image runs as the pilot's
    own user, who can read the pilot's credentials: only a ``trusted`` queue gets such work.
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
    tags: list[str] = []
    copytools: list[Name] = []
    container_binds: list[str] = []
    description: str = ""


class QueueSpec(Queue, forbid_unknown_fields=True, kw_only=True):
    """The same, as an admin describes it."""


class Endpoint(Strict):
    """A way to reach a storage: ``url`` is its prefix, such as ``root://host:1094//data`` or ``file:///data``."""

    url: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.\-]*://[^\x00-\x20]*$(?!\n)", max_length=2048)]
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
