"""What other systems say of sites, storages and queues, and what of it is taken: never anything that an admin made by hand. Pure.

What each source said last is remembered, field by field. A field is as the first of the sources that say it has it, in the
sources' order, whichever was looked at first. A field that still is as the sources left it follows them; any other was
changed by hand, and stays. A thing that was there before any source named it, or was deleted since, is the admins'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import msgspec

from common.states import ResourceState
from common.wire import ImportChange, ImportStep, QueueSpec, SiteSpec, StorageSpec

Fields = Mapping[str, Any]
"""What a description says, as JSON has it, by the names of its fields."""
Key = tuple[str, str]
"""A kind and a name."""
DISTANCES = "distances"
"""The kind of a site's distances: a field for each storage. They are none of the site's fields, so that sources can add
some to a site that is described by another, or by hand."""
SPECS: Mapping[str, Any] = {"site": SiteSpec, "storage": StorageSpec, "queue": QueueSpec}
KINDS = ("site", "storage", DISTANCES, "queue")
"""In the order in which one needs the other."""
_OFFLINE = ResourceState.OFFLINE.value
_STAYS = frozenset({ImportStep.KEPT, ImportStep.LEFT_OUT})


def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Fields that nobody needs to write, as they are then."""
    found = {}
    for each in msgspec.structs.fields(kind):
        if each.default is not msgspec.NODEFAULT:
            found[each.name] = msgspec.to_builtins(each.default)
        elif each.default_factory is not msgspec.NODEFAULT:
            found[each.name] = msgspec.to_builtins(each.default_factory())
    return found


DEFAULTS: Mapping[str, Fields] = {kind: _defaults(spec) for kind, spec in SPECS.items()}


@dataclass
class Document:
    """One answer of a source: all that it has of the ``kinds``. Where there is a ``problem`` nothing of it is taken.

    ``entries`` is how many it holds; ``skipped`` says of those that cannot be used why: they stay as they are.
    """

    name: str
    where: str = ""
    kinds: tuple[str, ...] = ()
    entries: int = 0
    problem: str = ""
    found: dict[Key, Fields] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, fields: Fields) -> bool:
        """An entry of it; false if it cannot be used."""
        try:
            spec = msgspec.convert(msgspec.to_builtins({"name": name, **fields}), SPECS[kind])
        except msgspec.ValidationError as error:
            self.skipped[kind, name] = str(error)
            return False
        self.found[kind, name] = {each: msgspec.to_builtins(getattr(spec, each)) for each in fields}
        return True


@dataclass(frozen=True)
class Said:
    """What a source said of a thing last; ``gone`` since when it does not name it any more."""

    fields: Fields
    gone: float | None = None


Known = Mapping[Key, Mapping[str, Said]]
"""What is remembered of each thing, by source."""
Order = Mapping[str, Sequence[str]]
"""The sources that describe each kind now. Of two that say the same field, the first has it."""


@dataclass
class Plan:
    """What is to be written: ``changes`` to the world, and what is to be remembered; None forgets."""

    changes: list[ImportChange] = field(default_factory=list)
    remember: dict[tuple[str, Key], Said | None] = field(default_factory=dict)

    @property
    def steps(self) -> list[ImportChange]:
        """Those that change something."""
        return [each for each in self.changes if each.step not in _STAYS]

    @property
    def left(self) -> list[ImportChange]:
        """Those that say what is not as the source has it, and why."""
        return [each for each in self.changes if each.step in _STAYS]


def unbelievable(document: Document, source: str, known: Known, percent: float) -> str:
    """Why a document is not to be believed: it is empty, or more than ``percent`` of what is in use of it has vanished at
    once. Empty if it is."""
    for kind in document.kinds:
        if kind == DISTANCES:
            continue
        if not any(key[0] == kind for key in document.found):
            return f"{document.where}: no entry of it can be used ({len(document.skipped)} were left out)"
        there = [key for key, said in known.items() if key[0] == kind and source in said and _drains(said[source])]
        gone = [key for key in there if key not in document.found and key not in document.skipped]
        if gone and 100.0 * len(gone) > percent * len(there):
            return (
                f"{document.where}: {len(gone)} of {len(there)} entries have vanished at once, more than {percent:g} per"
                " cent: nothing is changed. If that is meant, have it believed by pilotage admin imports, or raise"
                " removed_percent"
            )
    return ""


def plan(
    source: str,
    documents: Iterable[Document],
    current: Mapping[Key, Fields],
    known: Known,
    order: Order,
    now: float,
    take: Collection[str] = (),
) -> Plan:
    """What an answer of a source changes in the world as it is. What is called as one of ``take`` follows altogether, as if
    no hand had touched it."""
    look = _Look(source, dict(current), known, order, now, take)
    good = [each for each in documents if not each.problem]
    for kind in KINDS:
        for document in good:
            if kind in document.kinds:
                look.at(kind, document)
    return look.plan


def _drains(said: Said) -> bool:
    """Whether it would be drained if it were gone: a source that never said a status leaves it alone."""
    return said.gone is None and "status" in said.fields


def _in_force(said: Mapping[str, Said], order: Sequence[str]) -> Fields:
    """What the sources say together. What was said by those that describe the thing no more stays where no other says
    otherwise, the latest first."""
    live = _live(said, order)
    rest = sorted((each for each in said if each not in live), key=lambda each: (-(said[each].gone or inf), each))
    merged: dict[str, Any] = {}
    for source in reversed([*live, *rest]):
        merged.update(said[source].fields)
    return merged


def _live(said: Mapping[str, Said], order: Sequence[str]) -> list[str]:
    """The sources that describe the thing now."""
    return [source for source in order if source in said and said[source].gone is None]


@dataclass
class _Look:
    source: str
    current: dict[Key, Fields]
    known: Known
    order: Order
    now: float
    take: Collection[str]
    plan: Plan = field(default_factory=Plan)

    def at(self, kind: str, document: Document) -> None:
        """All of a kind that a document has, and has no more."""
        for key, why in sorted(document.skipped.items()):
            if key[0] == kind:
                self._tell(ImportStep.LEFT_OUT, key, {}, why)
        for key in sorted(key for key in document.found if key[0] == kind):
            self._named(key, document.found[key])
        for key in sorted(key for key, said in self.known.items() if key[0] == kind and self.source in said):
            if key not in document.found and key not in document.skipped:
                self._vanished(key)

    def _named(self, key: Key, fields: Fields) -> None:
        kind, name = key
        if kind == DISTANCES:
            if ("site", name) not in self.current:
                if self.source in self.known.get(key, {}):
                    self.plan.remember[self.source, key] = None  # they were deleted with it
                return
            self.current.setdefault(key, {})
            fields = {storage: each for storage, each in fields.items() if ("storage", storage) in self.current}
        elif kind != "site" and ("site", fields["site"]) not in self.current:
            deleted = bool(self.known.get(("site", fields["site"])))
            words = "its site was deleted by hand" if deleted else f"there is no site {fields['site']!r}"
            self._tell(ImportStep.LEFT_OUT, key, {}, words)
            return
        said, mine, order = self.known.get(key, {}), Said(fields), self.order[kind]
        live, here = _live(said, order), self.current.get(key)
        if here is None and live and name not in self.take:
            self._tell(ImportStep.KEPT, key, fields, "it was deleted by hand")
        elif here is None:
            self.plan.remember.update({(each, key): None for each in said if each not in live})
            self.current[key] = _in_force({**{each: said[each] for each in live}, self.source: mine}, order)
            self._tell(ImportStep.CREATED, key, self.current[key])
        elif said or kind == DISTANCES or name in self.take:
            back = self.source in said and said[self.source].gone is not None
            wanted = _in_force({**said, self.source: mine}, order)
            self._follow(ImportStep.BACK if back else ImportStep.CHANGED, key, here, _in_force(said, order), wanted)
        else:
            differs = {each: value for each, value in fields.items() if here.get(each) != value}
            if differs:
                self._tell(ImportStep.KEPT, key, differs, "it was made by hand")
            return
        if said.get(self.source) != mine:
            self.plan.remember[self.source, key] = mine

    def _vanished(self, key: Key) -> None:
        said, here, order = self.known[key], self.current.get(key), self.order[key[0]]
        last = _in_force(said, order)
        if here is None or key[0] == DISTANCES:
            self.plan.remember[self.source, key] = None
            rest = {each: one for each, one in said.items() if each != self.source}
            if here is not None:
                self._follow(ImportStep.CHANGED, key, here, last, _in_force(rest, order))
        elif said[self.source].gone is None:
            fields = dict(said[self.source].fields)
            if fields.get("status", _OFFLINE) != _OFFLINE:
                fields["status"] = ResourceState.DRAINING.value
            mine = self.plan.remember[self.source, key] = Said(fields, self.now)
            wanted = _in_force({**said, self.source: mine}, order)
            drained = wanted.get("status") == ResourceState.DRAINING.value
            self._follow(ImportStep.DRAINED if drained else ImportStep.CHANGED, key, here, last, wanted)

    def _follow(self, step: ImportStep, key: Key, here: Fields, last: Fields, wanted: Fields) -> None:
        """Each field that is as it was left becomes as it is wanted."""
        if last.keys() <= wanted.keys() and {**here, **wanted} == here:
            return  # almost all are, and there may be hundreds of thousands of distances
        taken: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        defaults = DEFAULTS.get(key[0], {})
        for name in sorted({*last, *wanted}):
            there, left, new = (each.get(name, defaults.get(name)) for each in (here, last, wanted))
            if there != new:
                (taken if there == left or key[1] in self.take else kept)[name] = new
        if taken:
            self._tell(step, key, taken)
            self.current[key] = {**here, **taken}
        if kept:
            self._tell(ImportStep.KEPT, key, kept, f"{', '.join(kept)} changed by hand")

    def _tell(self, step: ImportStep, key: Key, fields: Fields, why: str = "") -> None:
        self.plan.changes.append(ImportChange(*key, step, dict(fields), why))
