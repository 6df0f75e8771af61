"""RSEs: our storages, as far as theirs go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from common.states import ResourceState
from common.wire import Endpoint, StorageSpec
from server.api.routing import Call, Raw
from server.compat.data_dispatcher import asked, words
from server.compat.data_dispatcher.asked import wrong
from server.compat.data_dispatcher.projects import JSON
from server.compat.face import as_json
from server.dispatch import storages
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, NotFound

_ABSENT = {
    "remove_prefix": "where a file lies is its path below the storage's address: there is nothing to remove",
    "preference": "the nearest replica comes first: set distances of the site",
    "pin_url": "tape is asked for files as a section [server.stagers.NAME] says",
    "poll_url": "tape is asked for files as a section [server.stagers.NAME] says",
    "pin_prefix": "tape is asked for files as a section [server.stagers.NAME] says",
    "interface": "tape is asked for files as a section [server.stagers.NAME] says",
    "type": "tape is asked for files as a section [server.stagers.NAME] says",
}
"""What of an RSE a storage of ours does not have, and what stands for it."""


def list_(dispatcher: Dispatcher, _: Call) -> Raw:
    """All RSEs."""
    world = dispatcher.looks.fresh().world
    return as_json([words.rse(spec, world) for _, spec in sorted(world.storages.items())], content_type=JSON)


def get(dispatcher: Dispatcher, call: Call) -> Raw:
    """One RSE."""
    return _answer(dispatcher, asked.text(call, "name"))


def _answer(dispatcher: Dispatcher, name: str) -> Raw:
    return as_json(words.rse(_known(dispatcher, name), dispatcher.looks.fresh().world), content_type=JSON)


def _known(dispatcher: Dispatcher, name: str) -> StorageSpec:
    found = dispatcher.looks.fresh().world.storages.get(name)
    if found is None:
        raise NotFound(f"RSE {name} not found")
    return found


def set_availability(dispatcher: Dispatcher, call: Call) -> Raw:
    """Whether replicas on an RSE can be read."""
    spec = _known(dispatcher, asked.text(call, "name"))
    asked.text(call, "available")
    available = asked.flag(call, "available", True)
    storages.put(dispatcher, msgspec.structs.replace(spec, status=_status(spec.status, available)))
    return _answer(dispatcher, spec.name)


def _status(now: ResourceState, available: bool) -> ResourceState:
    """A storage that is read already, whatever else it may do, stays as it is."""
    if not available:
        return ResourceState.OFFLINE
    return ResourceState.ONLINE if now is ResourceState.OFFLINE else now


def _said(call: Call) -> dict[str, Any]:
    """What a request says of an RSE: in its body, its query, or both; nulls and empty texts say nothing."""
    body = call.body.json()
    if body is not None and not isinstance(body, dict):
        raise wrong("body", "send a JSON object")
    said = {name: value for name, value in {**call.query, **(body or {})}.items() if value not in (None, "")}
    if not isinstance(said.get("name"), str):
        raise wrong("name", "say which RSE")
    for name, remedy in _ABSENT.items():
        if name in said and said[name] not in (0, "0"):
            raise wrong(name, f"storages of this server have none: {remedy}")
    if not asked.truth("is_enabled", said.get("is_enabled"), True):
        raise wrong("is_enabled", "every storage is: make it unavailable, or delete it")
    return said


def create(dispatcher: Dispatcher, call: Call) -> Raw:
    """Make an RSE: a storage whose address is ``add_prefix``, at the site of the face's settings."""
    said = _said(call)
    site = dispatcher.config.compat.data_dispatcher.rse_site
    if not site:
        raise wrong("name", "storages belong to sites: make it with pilotage admin storage, or set rse_site")
    if said["name"] in dispatcher.looks.fresh().world.storages:
        raise Conflict(f"RSE {said['name']} is there already")
    if not isinstance(said.get("add_prefix"), str):
        raise wrong("add_prefix", "give the address that stands before each path, such as root://host:1094//data")
    bare = {"name": said["name"], "site": site, "endpoints": [{"url": said["add_prefix"]}]}
    storages.put(dispatcher, _changed(asked.checked(bare, StorageSpec), said))
    return _answer(dispatcher, said["name"])


def update(dispatcher: Dispatcher, call: Call) -> Raw:
    """Change what is said of an RSE."""
    said = _said(call)
    storages.put(dispatcher, _changed(_known(dispatcher, said["name"]), said))
    return _answer(dispatcher, said["name"])


def _changed(spec: StorageSpec, said: Mapping[str, Any]) -> StorageSpec:
    endpoints = spec.endpoints
    if "add_prefix" in said and said["add_prefix"] != endpoints[0].url:
        if len(endpoints) > 1:
            raise wrong("add_prefix", "this storage has several endpoints: change it with pilotage admin storage")
        url = asked.checked({"url": said["add_prefix"]}, Endpoint).url
        endpoints = [msgspec.structs.replace(endpoints[0], url=url)]
    available = asked.truth("is_available", said.get("is_available"), spec.status is not ResourceState.OFFLINE)
    description = said.get("description", spec.description)
    if not isinstance(description, str):
        raise wrong("description", "send text")
    return msgspec.structs.replace(
        spec,
        endpoints=endpoints,
        description=description,
        tape=asked.truth("is_tape", said.get("is_tape"), spec.tape),
        status=_status(spec.status, available),
    )


def delete(dispatcher: Dispatcher, call: Call) -> Raw:
    """Take an RSE away."""
    name = _said(call)["name"]
    if not storages.remove(dispatcher, name):
        raise NotFound(f"RSE {name} not found")
    return as_json(None, content_type=JSON)
