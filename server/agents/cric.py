"""Keep sites, storages and queues as CRIC describes them; what admins have described or changed by hand stays theirs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from common.events import EventKind
from common.wire import ImportChange, ImportReport, ImportSource, QueueSpec, SiteSpec, StorageSpec
from server.catalogs.cric import CricFailed, CricFeed
from server.dispatch.context import Dispatcher
from server.engine import cric
from server.engine.cric import SOURCE, Reading, Wrong
from server.engine.following import Change, Plan, plan, too_many, vanished
from server.store import events, following, world
from server.store.database import Connection

logger = logging.getLogger(__name__)

KINDS: Mapping[str, tuple[str, Any]] = {
    "sites": ("site", SiteSpec),
    "storages": ("storage", StorageSpec),
    "queues": ("queue", QueueSpec),
}
"""What the documents hold entries of, in the order in which one needs the other."""


@dataclass
class _Run:
    """One look at all documents: what came of each, and all changes."""

    feed: CricFeed
    now: float
    sources: dict[str, ImportSource] = field(default_factory=dict)
    changes: list[ImportChange] = field(default_factory=list)

    def document(self, name: str) -> Any:
        """A document that is there, None if there is none in the configuration. Raises CricFailed."""
        if name not in self.feed.names:
            return None
        self.sources[name] = ImportSource(name=name, where=self.feed.where(name))
        return self.feed.document(name)

    def failed(self, name: str, error: Exception) -> None:
        """A document cannot be used: nothing of it changes anything."""
        source = self.sources.setdefault(name, ImportSource(name=name, where=self.feed.where(name)))
        source.problem = str(error)


def refresh_cric(dispatcher: Dispatcher) -> int:
    """Look at all documents, if it is time; how many entries have changed."""
    feed = dispatcher.plugins.cric
    now = dispatcher.now()
    if not feed.names or now < feed.due:
        return 0
    feed.due = now + feed.config.period_s
    run = _Run(feed, now)
    extra = _extra(run)
    for name in KINDS:
        if name in feed.names:
            _follow(dispatcher, run, name, extra)
    if "sites" in feed.names and any((each.kind, each.what) == ("storage", "created") for each in run.changes):
        _follow(dispatcher, run, "sites", extra)  # they are at distances to sites now
    _tell(dispatcher, run)
    if run.changes:
        dispatcher.changed()
    # All is done: looking again at once would find nothing.
    return 0


def _extra(run: _Run) -> dict[str, Any]:
    """What storages and sites need beside their own documents; None: it cannot be had now, and they have to wait."""
    readers: dict[str, Callable[[Any], Any]] = {"blacklist": cric.read_blacklist, "closeness": cric.read_closeness}
    found: dict[str, Any] = {}
    for name, read in readers.items():
        found[name] = {}
        try:
            document = run.document(name)
            if document is not None:
                found[name] = read(document)
                run.sources[name].entries = len(found[name])
        except (CricFailed, Wrong) as error:
            run.failed(name, error)
            found[name] = None
    return found


def _follow(dispatcher: Dispatcher, run: _Run, name: str, extra: Mapping[str, Any]) -> None:
    """Bring one kind to what its document says, in one transaction."""
    word, kind = KINDS[name]
    try:
        document = run.document(name)
        with dispatcher.database.write() as connection:
            reading = _reading(connection, run, name, document, extra)
            made = _planned(connection, run, name, reading)
            _write(connection, kind, made.changes)
            following.remember(connection, word, made.remember)
            changes = [ImportChange(word, each.name, each.what, list(each.fields)) for each in made.changes]
            events.add(connection, *(_event(each, run.now) for each in changes))
    except (CricFailed, Wrong) as error:
        run.failed(name, error)
        return
    run.changes += changes
    source = run.sources[name]
    source.entries = len(reading.found)
    source.skipped = reading.skipped
    source.by_hand = {each: list(fields) for each, fields in made.by_hand.items()}


def _reading(connection: Connection, run: _Run, name: str, document: Any, extra: Mapping[str, Any]) -> Reading[Any]:
    """The entries of a document. Raises Wrong, CricFailed."""
    if name == "sites":
        return _with_distances(connection, run, cric.read_sites(document), extra["closeness"])
    sites = {spec.name: spec for spec in world.every(connection, SiteSpec)}
    if name == "queues":
        return cric.read_queues(document, sites)
    if extra["blacklist"] is None:
        raise CricFailed("the blacklist cannot be had: without it nothing is said of storages")
    return cric.read_storages(document, sites, extra["blacklist"])


def _with_distances(
    connection: Connection, run: _Run, reading: Reading[SiteSpec], closeness: Mapping[tuple[str, str], int] | None
) -> Reading[SiteSpec]:
    """Sites with their distances: those of now, or as they were imported last when they cannot be had."""
    if closeness is None:
        for name, last in following.last(connection, "site").items():
            if name in reading.found:
                known = last.spec.get("distances", {})
                reading.found[name] = msgspec.structs.replace(reading.found[name], distances=dict(known))
        return reading
    storages = {spec.name: spec.site for spec in world.every(connection, StorageSpec)}
    reading.found = cric.with_distances(reading.found, storages, closeness)
    return reading


def _planned(connection: Connection, run: _Run, name: str, reading: Reading[Any]) -> Plan:
    """What is to be done. Raises CricFailed when the answer is not to be believed."""
    word, kind = KINDS[name]
    last = following.last(connection, word)
    if not reading.found:
        raise CricFailed(f"{run.feed.where(name)}: no entry of it can be used ({len(reading.skipped)} were left out)")
    gone = vanished(reading.found, reading.skipped, last)
    percent = run.feed.config.removed_percent
    if too_many(len(gone), last, percent):
        run.feed.forget(name)
        raise CricFailed(
            f"{run.feed.where(name)}: {len(gone)} of {sum(each.gone is None for each in last.values())} entries have"
            f" vanished at once, more than {percent:g} per cent: nothing is changed. If that is meant, raise"
            " removed_percent"
        )
    found = {each: _plain(spec) for each, spec in reading.found.items()}
    there = {spec.name: _plain(spec) for spec in world.every(connection, kind)}
    return plan(found, reading.skipped, there, last, run.now)


def _plain(spec: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(spec)
    return plain


def _write(connection: Connection, kind: Any, changes: list[Change]) -> None:
    for each in changes:
        world.put(connection, msgspec.convert(each.spec, kind))


def _event(change: ImportChange, now: float) -> events.Event:
    detail: dict[str, object] = {"source": SOURCE, "what": change.what, "fields": change.fields[:50]}
    return events.Event(now, EventKind.IMPORT_CHANGED, change.kind, change.name, detail=detail)


def _tell(dispatcher: Dispatcher, run: _Run) -> None:
    """Note the report, and tell of problems that were not there last time."""
    with dispatcher.database.write() as connection:
        before = following.report(connection, SOURCE)
        known = {each.name: each.problem for each in before.sources}
        sources = [run.sources[name] for name in run.feed.names if name in run.sources]
        for each in sources:
            if each.problem and each.problem != known.get(each.name):
                logger.warning("CRIC: %s: %s", each.name, each.problem)
                detail: dict[str, object] = {"source": SOURCE, "reason": each.problem[:1000]}
                events.add(
                    connection, events.Event(run.now, EventKind.IMPORT_FAILED, "import", each.name, detail=detail)
                )
        changes, changed = (run.changes, run.now) if run.changes else (before.changes, before.changed)
        told = ImportReport(source=SOURCE, time=run.now, sources=sources, changed=changed, changes=changes[:10_000])
        following.put_report(connection, told)
