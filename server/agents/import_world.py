"""Import sites, storages and distances from the catalogues that know them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from common.config import ConfigError
from common.events import EventKind
from common.wire import SiteSpec, StorageSpec
from server.catalogs.base import CatalogError, CatalogUnavailable
from server.catalogs.world_source import WorldSource, keys_of
from server.dispatch.context import Dispatcher
from server.engine.imports import Change, Key, Plan, Step, plan, report
from server.engine.world import World
from server.store import events, imports, world
from server.store.database import Connection

logger = logging.getLogger(__name__)


def import_world(dispatcher: Dispatcher) -> int:
    """Import from each catalogue that is configured to; how many things changed.

    Raises:
        CatalogUnavailable: one did not answer. What the others say is taken, and nothing of its own changes.
    """
    problems = []
    changed = 0
    for name in sorted(_sources(dispatcher)):
        try:
            changed += len(import_from(dispatcher, name).steps)
        except CatalogError as error:
            problems.append(f"catalogue {name}: {error}")
    if changed:
        dispatcher.changed()
    if problems:
        raise CatalogUnavailable("; ".join(problems))
    # What follows from a change is there already: there is nothing to look at again.
    return 0


def import_from(dispatcher: Dispatcher, name: str, *, dry: bool = False) -> Plan:
    """Import from one catalogue, or with ``dry`` only see what would be changed.

    Raises:
        ConfigError: there is no such catalogue, or it is not configured to describe the world.
        CatalogError: it does not answer.
    """
    able = _sources(dispatcher)
    if name not in able:
        raise ConfigError(f"[server.catalogs.{name}] imports nothing; those that do: {', '.join(able) or 'none'}")
    described = able[name].described()
    wanted = keys_of(described)
    now = dispatcher.now()
    with dispatcher.database.read() if dry else dispatcher.database.write() as connection:
        before = world.load(connection)
        found = plan(name, wanted, _current(before), imports.known(connection), _DEFAULTS)
        found.changes += [
            Change(Step.KEPT, "storage", each, {}, f"it cannot be used: {why}")
            for each, why in described.left_out.items()
        ]
        if not dry:
            _write(connection, before, found)
            imports.remember(connection, name, found.remember)
            if found.steps:
                counts = Counter(f"{each.kind} {each.step.value}" for each in found.steps)
                detail = {"changes": dict(counts), "report": report(found.steps)[:50]}
                events.add(connection, events.Event(now, EventKind.WORLD_IMPORTED, "catalog", name, detail=detail))
    return found


def _sources(dispatcher: Dispatcher) -> dict[str, WorldSource]:
    catalogs: Mapping[str, object] = dispatcher.plugins.catalogs
    return {name: each for name, each in catalogs.items() if isinstance(each, WorldSource) and each.describes}


def _current(before: World) -> dict[Key, Mapping[str, Any]]:
    """The world as the rules of imports see it."""
    found: dict[Key, Mapping[str, Any]] = {}
    for site in before.sites.values():
        found["site", site.name] = _fields(site)
        for storage, distance in site.distances.items():
            found["distance", f"{site.name} {storage}"] = {"distance": distance}
    found.update({("storage", each.name): _fields(each) for each in before.storages.values()})
    return found


def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Fields that nobody needs to write, as they are then."""
    found = {}
    for each in msgspec.structs.fields(kind):
        if each.default is not msgspec.NODEFAULT:
            found[each.name] = msgspec.to_builtins(each.default)
        elif each.default_factory is not msgspec.NODEFAULT:
            found[each.name] = msgspec.to_builtins(each.default_factory())
    return found


_DEFAULTS = {"site": _defaults(SiteSpec), "storage": _defaults(StorageSpec)}


def _fields(spec: SiteSpec | StorageSpec) -> dict[str, Any]:
    """All fields, those with their defaults too, but for endpoints, which say what is not their default."""
    shown = {name: msgspec.to_builtins(getattr(spec, name)) for name in spec.__struct_fields__}
    if isinstance(spec, StorageSpec):
        shown["endpoints"] = [
            {**endpoint, "activities": [each.value for each in there.activities]}
            for endpoint, there in zip(shown["endpoints"], spec.endpoints, strict=True)
        ]
    return shown


def _write(connection: Connection, before: World, found: Plan) -> None:
    """Sites first, then what refers to them."""
    sites = dict(before.sites)
    touched: set[str] = set()
    for change in found.steps:
        if change.kind == "site":
            sites[change.name] = msgspec.convert({"name": change.name, **change.fields}, SiteSpec)
            touched.add(change.name)
    for change in found.steps:
        if change.kind == "distance":
            site, _, storage = change.name.partition(" ")
            kept = {name: each for name, each in sites[site].distances.items() if name != storage}
            distances = kept if change.step is Step.GONE else {**kept, storage: change.fields["distance"]}
            sites[site] = msgspec.structs.replace(sites[site], distances=distances)
            touched.add(site)
    for name in sorted(touched):
        world.put(connection, sites[name])
    for change in found.steps:
        if change.kind == "storage":
            last = before.storages.get(change.name)
            kept_fields = _fields(last) if last is not None else {}
            world.put(connection, msgspec.convert({**kept_fields, "name": change.name, **change.fields}, StorageSpec))
