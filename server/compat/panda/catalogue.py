"""Queues and storages as PanDA's pilots want them."""

from __future__ import annotations

import zlib
from typing import Any

from common.states import ResourceState
from common.wire import CONTAINER_TAG, Activity, Endpoint, QueueSpec, StorageSpec
from server.compat.panda.fields import NONE
from server.compat.panda.resources import kind_of
from server.compat.panda.words import QUEUE_STATUS
from server.engine.world import World

COPYTOOLS = {
    "xrootd": "xrdcp",
    "gfal": "gfal",
    "http": "gfal",
    "file": "mv",
    "lsm": "lsm",
    "rucio": "rucio",
    "s3": "objectstore",
}
"""Our copytools, and theirs that do the same."""
USUAL = ("rucio", "xrdcp", "gfal")
"""Theirs where a queue names none of ours."""
ACTIVITIES = {
    Activity.READ_LAN: "read_lan",
    Activity.WRITE_LAN: "write_lan",
    Activity.READ_WAN: "read_wan",
    Activity.WRITE_WAN: "write_wan",
    Activity.LOGS: "pl",
}


def queue_data(world: World, queue: QueueSpec, name: str) -> dict[str, Any]:
    """A queue, by the name that it has there."""
    tools = list(dict.fromkeys(COPYTOOLS.get(each, each) for each in queue.copytools)) or list(USUAL)
    storages = list(world.takers(queue.site))
    kind = "singularity:pilot" if CONTAINER_TAG in queue.tags else ""
    return {
        "name": name,
        "nickname": name,
        "panda_resource": name,
        "siteid": name,
        "atlas_site": queue.site,
        "site": queue.site,
        "state": "ACTIVE" if queue.status is not ResourceState.OFFLINE else "DISABLED",
        "status": QUEUE_STATUS[queue.status],
        "type": "unified",
        "resource_type": "GRID",
        "capability": kind_of(queue.cores, queue.memory_mb),
        "catchall": "",
        "container_type": kind,
        "container_options": "",
        "copytools": {each: {"setup": ""} for each in tools},
        "acopytools": dict.fromkeys(("pr", "pw", "pl", "read_lan", "write_lan", "read_wan", "write_wan"), tools),
        "astorages": dict.fromkeys(("pr", "pw", "pl", "read_lan", "write_lan"), storages),
        "maxwdir": queue.disk_mb,
        "maxrss": queue.memory_mb,
        "maxtime": queue.wall_s,
        "timefloor": 0,
        "corecount": max(1, queue.cores),
        "maxinputsize": queue.disk_mb,
        "params": {},
        "appdir": "",
        "cloud": NONE,
    }


def storage_data(world: World, names: list[str] | None = None) -> dict[str, Any]:
    """The storages by name, all or some."""
    found = {}
    for name, spec in world.storages.items():
        if names is None or name in names:
            found[name] = _storage(name, spec)
    return found


def _storage(name: str, spec: StorageSpec) -> dict[str, Any]:
    protocols: dict[str, list[dict[str, Any]]] = {}
    for number, endpoint in enumerate(spec.endpoints, 1):
        for activity in endpoint.activities:
            protocols.setdefault(ACTIVITIES[activity], []).append(_protocol(endpoint, number))
    for theirs, ours in (("pr", "read_lan"), ("pw", "write_lan"), ("pl", "write_lan")):
        if ours in protocols:
            protocols.setdefault(theirs, protocols[ours])
    up = spec.status in (ResourceState.ONLINE, ResourceState.TEST)
    return {
        "id": zlib.crc32(name.encode()) & 0x7FFFFFFF,
        "name": name,
        "state": "ACTIVE" if up else "DISABLED",
        "site": spec.site,
        "type": "TAPE" if spec.tape else "DATADISK",
        "token": name,
        "is_deterministic": True,
        "arprotocols": protocols,
    }


def _protocol(endpoint: Endpoint, number: int) -> dict[str, Any]:
    """An endpoint in two parts, which put together are its URL."""
    scheme, _, rest = endpoint.url.partition("://")
    host, slash, path = rest.partition("/")
    place = f"{scheme}://{host}"
    if path.startswith("/"):
        place, path = f"{place}/", path[1:]
    path = f"{slash}{path}"
    flavour = {"root": "XROOTD", "roots": "XROOTD", "davs": "WEBDAV", "dav": "WEBDAV", "https": "WEBDAV"}
    return {
        "endpoint": place,
        "flavour": flavour.get(scheme, scheme.upper()),
        "id": number,
        "path": path if path.endswith("/") else f"{path}/",
    }
