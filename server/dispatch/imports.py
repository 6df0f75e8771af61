"""Look at a description of the world from elsewhere, and follow it; what was said of the last looks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from common.events import EventKind
from common.wire import ImportChange, ImportDocument, ImportReport, ImportRequest, ImportStep
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.engine.imports import DISTANCES, KINDS, SPECS, Document, Fields, Key, Plan, plan, unbelievable
from server.engine.world import World
from server.store import events, imports, world
from server.store.database import Connection

logger = logging.getLogger(__name__)

MOST = 10_000
"""Lines of each kind in a report."""


def look_at(dispatcher: Dispatcher, name: str, request: ImportRequest) -> ImportReport:
    """Look at a source now; with ``dry_run`` only see what would be changed.

    Raises:
        NotFound: there is no such source.
    """
    sources = dispatcher.plugins.world_sources
    if name not in sources:
        raise NotFound(f"nothing is imported from {name!r}; what is: {', '.join(sources) or 'nothing'}")
    source = sources[name]
    with dispatcher.database.read() as connection:
        before = world.load(connection)
    documents = source.described(before)
    now = dispatcher.now()
    with dispatcher.database.read() if request.dry_run else dispatcher.database.write() as connection:
        if not request.dry_run:
            world.hold(connection)
        before, known = world.load(connection), imports.known(connection)
        for each in documents:
            percent = 100.0 if request.believe else source.removed_percent
            each.problem = each.problem or unbelievable(each, name, known, percent)
        order = {kind: [each for each, one in sources.items() if kind in one.kinds] for kind in KINDS}
        found = plan(name, documents, _current(before), known, order, now, request.take)
        last = imports.report(connection, name)
        told = _report(name, documents, found, last, now)
        if not request.dry_run:
            _write(connection, before, found.steps)
            imports.remember(connection, found.remember)
            imports.put_report(connection, told)
            events.add(connection, *_events(told, found, last, now))
    if found.steps and not request.dry_run:
        dispatcher.changed()
    return told


def reports(dispatcher: Dispatcher) -> list[ImportReport]:
    """What the last look at each source brought, in their order."""
    with dispatcher.database.read() as connection:
        return [imports.report(connection, name) for name in dispatcher.plugins.world_sources]


def _current(before: World) -> dict[Key, Fields]:
    """The world as the rules of imports see it."""
    found: dict[Key, Fields] = {}
    for kind, specs in _tables(before).items():
        for name, spec in specs.items():
            fields = {each: msgspec.to_builtins(getattr(spec, each)) for each in spec.__struct_fields__}
            if kind == "site":
                found[DISTANCES, name] = fields.pop("distances")
            found[kind, name] = fields
    return found


def _tables(before: World) -> Mapping[str, Mapping[str, Any]]:
    return {"site": before.sites, "storage": before.storages, "queue": before.queues}


def _write(connection: Connection, before: World, steps: Iterable[ImportChange]) -> None:
    tables = _tables(before)
    made: dict[Key, dict[str, Any]] = {}
    for change in steps:
        kind = "site" if change.kind == DISTANCES else change.kind
        there = tables[kind].get(change.name)
        spec = made.setdefault((kind, change.name), msgspec.to_builtins(there) or {"name": change.name})
        if change.kind == DISTANCES:
            distances = {**spec.get("distances", {}), **change.fields}
            spec["distances"] = {name: each for name, each in sorted(distances.items()) if each is not None}
        else:
            spec.update(change.fields)
    for kind, specs in SPECS.items():
        for key in sorted(key for key in made if key[0] == kind):
            world.put(connection, msgspec.convert(made[key], specs))


def _report(name: str, documents: list[Document], found: Plan, last: ImportReport, now: float) -> ImportReport:
    changes, changed = (found.steps[:MOST], now) if found.steps else (last.changes, last.changed)
    told = [ImportDocument(each.name, each.where, each.entries, each.problem) for each in documents]
    return ImportReport(source=name, time=now, documents=told, changed=changed, changes=changes, left=found.left[:MOST])


def _events(told: ImportReport, found: Plan, last: ImportReport, now: float) -> list[events.Event]:
    """All changes, and the problems that were not there last time."""
    made = []
    for change in found.steps:
        fields = [] if change.step is ImportStep.CREATED else list(change.fields)[:50]
        subject, prefix = ("site", "distances.") if change.kind == DISTANCES else (change.kind, "")
        detail = {"source": told.source, "what": change.step.value, "fields": [f"{prefix}{each}" for each in fields]}
        made.append(events.Event(now, EventKind.IMPORT_CHANGED, subject, change.name, detail=detail))
    known = {each.name: each.problem for each in last.documents}
    for each in told.documents:
        if each.problem and each.problem != known.get(each.name):
            logger.warning("import from %s: %s: %s", told.source, each.name, each.problem)
            detail = {"document": each.name, "reason": each.problem[:1000]}
            made.append(events.Event(now, EventKind.IMPORT_FAILED, "import", told.source, detail=detail))
    return made
