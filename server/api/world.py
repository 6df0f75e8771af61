"""Routes of admins and harvesters: sites, queues, storages, shares, settings, workers."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import msgspec

from common.wire import (
    DemandReply,
    Gpu,
    Offer,
    QueueList,
    QueueSpec,
    ShareList,
    ShareSpec,
    ShareTree,
    SiteList,
    SiteSpec,
    StorageList,
    StorageSpec,
    WhyReply,
    WorkersAcquireReply,
    WorkersAcquireRequest,
    WorkersReportReply,
    WorkersReportRequest,
)
from server.api.routing import Call, Handler, Role, Route, allow
from server.config import MAY_BE_ZERO, Knobs
from server.dispatch import demand, look, push, registration, rights, shares, storages
from server.dispatch.context import Dispatcher, read_knobs
from server.dispatch.errors import Conflict, Forbidden, Invalid, NotFound
from server.store import world
from server.store.world import StillUsed

_ADMIN = allow(Role.ADMIN)
_USER = allow(Role.USER)


MOST_FAULTS = 10_000
MOST_S = 1_000_000_000
"""The most that a knob can be turned to."""


class SettingValue(msgspec.Struct, forbid_unknown_fields=True):
    """The value of a knob."""

    value: Any


def _list(kind: type[Any], reply: type[Any]) -> Handler:
    def handler(dispatcher: Dispatcher, _: Call) -> Any:
        with dispatcher.database.read() as connection:
            return reply(items=world.every(connection, kind))

    return handler


def _get(kind: type[Any], word: str) -> Handler:
    def handler(dispatcher: Dispatcher, call: Call) -> Any:
        with dispatcher.database.read() as connection:
            found = world.one(connection, kind, call.path["name"])
        if found is None:
            raise NotFound(f"there is no {word} {call.path['name']!r}")
        return found

    return handler


def _put(check: Callable[[Any, Any], None]) -> Handler:
    def handler(dispatcher: Dispatcher, call: Call) -> Any:
        spec = call.body
        _same_name(call, spec.name)
        with dispatcher.database.write() as connection:
            check(connection, spec)
            world.put(connection, spec)
        dispatcher.changed()
        return spec

    return handler


def _put_storage(dispatcher: Dispatcher, call: Call) -> StorageSpec:
    _same_name(call, call.body.name)
    return storages.put(dispatcher, call.body)


def _same_name(call: Call, name: str) -> None:
    if name != call.path["name"]:
        raise Invalid("the names differ", [("$.name", f"the path says {call.path['name']!r}: give the same")])


def _delete(kind: type[Any], word: str) -> Handler:
    def handler(dispatcher: Dispatcher, call: Call) -> None:
        try:
            with dispatcher.database.write() as connection:
                found = world.remove(connection, kind, call.path["name"])
        except StillUsed as error:
            raise Conflict(str(error)) from error
        if not found:
            raise NotFound(f"there is no {word} {call.path['name']!r}")
        dispatcher.changed()

    return handler


def _any_site(_: Any, spec: SiteSpec) -> None:
    """A site refers to nothing that must be there: distances to storages to come are fine."""


def _known_site(connection: Any, spec: QueueSpec) -> None:
    if world.one(connection, SiteSpec, spec.site) is None:
        names = ", ".join(each.name for each in world.every(connection, SiteSpec)) or "none yet"
        raise Invalid(f"there is no site {spec.site!r}", [("$.site", f"make the site first; known: {names}")])


def _shares(dispatcher: Dispatcher, _: Call) -> ShareList:
    with dispatcher.database.read() as connection:
        return ShareList(items=list(world.shares(connection)))


def _share(dispatcher: Dispatcher, call: Call) -> ShareTree:
    return shares.tree(dispatcher, call.path["name"])


def _share_tree(dispatcher: Dispatcher, _: Call) -> ShareTree:
    return shares.tree(dispatcher)


def _put_share(dispatcher: Dispatcher, call: Call) -> ShareSpec:
    spec: ShareSpec = call.body
    _same_name(call, spec.name)
    with dispatcher.database.write() as connection:
        parents = {each.name: each.parent for each in world.shares(connection)}
        name = spec.parent
        while name is not None:
            if name == spec.name:
                raise Invalid("a share cannot be below itself", [("$.parent", "name another one")])
            if name not in parents:
                raise Invalid(f"there is no share {name!r}", [("$.parent", "make that share first")])
            name = parents[name]
        world.put_share(connection, spec)
    dispatcher.changed()
    return spec


def _delete_share(dispatcher: Dispatcher, call: Call) -> None:
    try:
        with dispatcher.database.write() as connection:
            found = world.remove_share(connection, call.path["name"])
    except StillUsed as error:
        raise Conflict(str(error)) from error
    if not found:
        raise NotFound(f"there is no share {call.path['name']!r}")
    dispatcher.changed()


def _settings(dispatcher: Dispatcher, _: Call) -> Knobs:
    with dispatcher.database.read() as connection:
        return read_knobs(world.settings(connection))


def _setting_of(call: Call) -> str:
    key = call.path["key"]
    known = [each.name for each in msgspec.structs.fields(Knobs)]
    if key not in known:
        near = difflib.get_close_matches(key, known, n=3)
        words = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise NotFound(f"there is no setting {key!r}; {words}")
    return key


def _reset_setting(dispatcher: Dispatcher, call: Call) -> Knobs:
    key = _setting_of(call)
    with dispatcher.database.write() as connection:
        world.remove_setting(connection, key)
        knobs = read_knobs(world.settings(connection))
    dispatcher.changed()
    return knobs


def _put_setting(dispatcher: Dispatcher, call: Call) -> Knobs:
    key = _setting_of(call)
    with dispatcher.database.write() as connection:
        try:
            knobs = read_knobs({**world.settings(connection), key: call.body.value})
        except msgspec.ValidationError as error:
            what = str(error).partition(" - at ")[0]
            raise Invalid(f"{key}: {what}", [("$.value", what)]) from error
        _check_range(key, getattr(knobs, key))
        world.put_setting(connection, key, call.body.value)
    dispatcher.changed()
    return knobs


def _check_range(key: str, value: object) -> None:
    if not isinstance(value, (int, float)):
        return  # words and lists: their types say all
    default = getattr(Knobs(), key)
    most = MOST_FAULTS if isinstance(default, int) else MOST_S
    may_be_zero = default == 0 or key in MAY_BE_ZERO
    if not 0 <= value <= most or (value == 0 and not may_be_zero):
        words = f"give a number {'from' if may_be_zero else 'above'} 0, at most {most}"
        raise Invalid(f"{key} is out of range", [("$.value", words)])


def _demand(dispatcher: Dispatcher, call: Call) -> DemandReply:
    harvester = call.caller.name if Role.HARVESTER in call.caller.roles else None
    return demand.demand_of(dispatcher, call.path["name"], explain=call.flag("explain"), harvester=harvester)


def _why(dispatcher: Dispatcher, call: Call) -> WhyReply:
    offer = None
    if set(call.query) & set(_OFFER):
        offer = Offer(
            cores=max(1, call.count("cores", 1, 2**20)),
            memory_mb=call.count("memory_mb", 0, 2**31),
            disk_mb=call.count("disk_mb", 0, 2**31),
            wall_s=call.count("wall_s", 0, 2**31),
            gpus=[Gpu("", "", 0)] * call.count("gpus", 0, 1024),
            tags=[tag for tag in call.query.get("tags", "").split(",") if tag],
        )
    return rights.narrowed(dispatcher, call.caller, look.why_queue(dispatcher, call.path["name"], offer))


def _report_workers(dispatcher: Dispatcher, call: Call) -> WorkersReportReply:
    if call.body.harvester != call.caller.name:
        raise Forbidden(f"this token is harvester {call.caller.name!r}'s: report as that, or mint one of that subject")
    return registration.report_workers(dispatcher, call.body)


def _acquire_for_workers(dispatcher: Dispatcher, call: Call) -> WorkersAcquireReply:
    if call.body.harvester != call.caller.name:
        raise Forbidden(f"this token is harvester {call.caller.name!r}'s: ask as that, or mint one of that subject")
    return push.acquire(dispatcher, call.body)


_OFFER = ("cores", "memory_mb", "disk_mb", "wall_s", "gpus", "tags")


def _kind(path: str, word: str, kind: type[Any], listing: type[Any], put: Handler) -> list[Route]:
    return [
        Route("GET", path, _USER, _list(kind, listing), f"List {path.rsplit('/', 1)[1]}", reply=listing),
        Route("GET", f"{path}/{{name}}", _USER, _get(kind, word), f"Look at a {word}", reply=kind),
        Route("PUT", f"{path}/{{name}}", _ADMIN, put, f"Make or change a {word}", kind, kind),
        Route("DELETE", f"{path}/{{name}}", _ADMIN, _delete(kind, word), f"Delete a {word}", status=204),
    ]


ROUTES = [
    *_kind("/v1/sites", "site", SiteSpec, SiteList, _put(_any_site)),
    *_kind("/v1/queues", "queue", QueueSpec, QueueList, _put(_known_site)),
    *_kind("/v1/storages", "storage", StorageSpec, StorageList, _put_storage),
    Route("GET", "/v1/shares", _USER, _shares, "List shares", reply=ShareList),
    Route("GET", "/v1/share-tree", _USER, _share_tree, "What shares should have, and have", reply=ShareTree),
    Route("GET", "/v1/shares/{name}", _USER, _share, "A share and those below it, likewise", reply=ShareTree),
    Route("PUT", "/v1/shares/{name}", _ADMIN, _put_share, "Make or change a share", ShareSpec, ShareSpec),
    Route("DELETE", "/v1/shares/{name}", _ADMIN, _delete_share, "Delete a share", status=204),
    Route("GET", "/v1/settings", _USER, _settings, "Look at the settings", reply=Knobs),
    Route("PUT", "/v1/settings/{key}", _ADMIN, _put_setting, "Turn a knob", SettingValue, Knobs),
    Route("DELETE", "/v1/settings/{key}", _ADMIN, _reset_setting, "Put a knob back to its default", reply=Knobs),
    Route("GET", "/v1/queues/{name}/why", _USER, _why, "Why its slots get nothing", reply=WhyReply, query=_OFFER),
    Route(
        "GET", "/v1/queues/{name}/demand", allow(Role.HARVESTER, Role.ADMIN), _demand,
        "How many pilots it should have", reply=DemandReply, query=("explain",),
    ),
    Route(
        "POST", "/v1/workers:report", allow(Role.HARVESTER), _report_workers, "Report workers",
        WorkersReportRequest, WorkersReportReply,
    ),
    Route(
        "POST", "/v1/workers:acquire", allow(Role.HARVESTER), _acquire_for_workers, "Claim jobs for planned workers",
        WorkersAcquireRequest, WorkersAcquireReply,
    ),
]  # fmt: skip
