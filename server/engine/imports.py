"""What another system says of sites and storages, and what of it is taken: never anything that an admin made by hand.

Each thing that was imported is remembered as it was imported, field by field. A field that still is as the last import
left it follows the next one; any other was changed by hand, and stays. A thing that was there before the first import, or
was deleted since, is the admin's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Fields = Mapping[str, Any]
"""What a description says, as JSON has it, by the names of its fields."""
Key = tuple[str, str]
"""A kind of thing (``site``, ``storage``, ``distance``) and its name."""
OFFLINE = {"status": "offline"}


class Step(str, Enum):
    """What becomes of one thing."""

    MADE = "made"
    CHANGED = "changed"
    GONE = "gone"
    """The other system does not have it any more: it is set offline, as things that are in use cannot be deleted."""
    KEPT = "kept"
    """It, or a field of it, is as somebody made it by hand, and differs from what the other system says."""


@dataclass(frozen=True)
class Change:
    """One line of the report. ``fields`` are those that are written, of one that is kept those that are not."""

    step: Step
    kind: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    words: str = ""


@dataclass(frozen=True)
class Known:
    """A thing as an import left it, and whose import that was."""

    source: str
    fields: dict[str, Any]


@dataclass
class Plan:
    """What is to be written: ``changes`` to the world, and what is to be remembered; None forgets."""

    changes: list[Change] = field(default_factory=list)
    remember: dict[Key, dict[str, Any] | None] = field(default_factory=dict)

    @property
    def steps(self) -> list[Change]:
        """Those that change something."""
        return [each for each in self.changes if each.step is not Step.KEPT]


def plan(
    source: str,
    wanted: Mapping[Key, Fields],
    current: Mapping[Key, Fields],
    known: Mapping[Key, Known],
    defaults: Mapping[str, Fields],
) -> Plan:
    """What an import changes. ``wanted`` is all that the other system says now, ``current`` the world as it is, and
    ``defaults`` what the fields of each kind are that nobody has written."""
    found = Plan()
    lost = {name for kind, name in known if kind == "site" and ("site", name) not in current}
    for key in sorted(wanted):
        if _site_of(key, wanted[key]) in lost:
            words = "its site was deleted by hand"
            found.changes.append(Change(Step.KEPT, *key, dict(wanted[key]), words))
            continue
        _one(found, source, key, wanted[key], current.get(key), known.get(key), defaults.get(key[0], {}))
    for key in sorted(key for key, each in known.items() if each.source == source and key not in wanted):
        _gone(found, key, current.get(key), known[key])
    return found


def _site_of(key: Key, fields: Fields) -> str | None:
    """The site that a thing cannot be without."""
    kind, name = key
    return name.partition(" ")[0] if kind == "distance" else fields.get("site") if kind == "storage" else None


def _one(
    found: Plan,
    source: str,
    key: Key,
    wanted: Fields,
    current: Fields | None,
    known: Known | None,
    defaults: Fields,
) -> None:
    kind, name = key
    if known is None and current is None:
        found.changes.append(Change(Step.MADE, kind, name, dict(wanted)))
        found.remember[key] = dict(wanted)
    elif known is None or current is None or known.source != source:
        differs = current is None or any(current.get(each) != value for each, value in wanted.items())
        if differs:
            found.changes.append(Change(Step.KEPT, kind, name, dict(wanted), _why(source, current, known)))
    else:
        _merged(found, key, wanted, current, {**defaults, **known.fields})


def _why(source: str, current: Fields | None, known: Known | None) -> str:
    if known is not None and known.source != source:
        return f"it comes from {known.source}"
    return "it was deleted by hand" if current is None else "it was made by hand"


def _merged(found: Plan, key: Key, wanted: Fields, current: Fields, last: Fields) -> None:
    taken: dict[str, Any] = {}
    kept: dict[str, Any] = {}
    base = dict(last)
    for name, value in wanted.items():
        here = current.get(name)
        if here == value:
            base[name] = value
        elif here != last.get(name):
            kept[name] = value
        else:
            taken[name] = base[name] = value
    if taken:
        found.changes.append(Change(Step.CHANGED, *key, taken))
    if kept:
        found.changes.append(Change(Step.KEPT, *key, kept, f"{', '.join(kept)} was changed by hand"))
    if base != dict(last):
        found.remember[key] = base


def _gone(found: Plan, key: Key, current: Fields | None, known: Known) -> None:
    kind, name = key
    if current is None:
        found.remember[key] = None
    elif kind == "distance":
        if current == known.fields:
            found.changes.append(Change(Step.GONE, kind, name))
        found.remember[key] = None
    elif kind == "storage" and current.get("status") != "offline":
        if current.get("status") != known.fields.get("status"):
            found.changes.append(Change(Step.KEPT, kind, name, dict(OFFLINE), "status was changed by hand"))
            return
        found.changes.append(Change(Step.GONE, kind, name, dict(OFFLINE)))
        found.remember[key] = {**known.fields, **OFFLINE}


def report(changes: Iterable[Change]) -> list[str]:
    """The report for people, a line for each change."""
    return [_line(each) for each in changes]


def _line(change: Change) -> str:
    said = ", ".join(f"{name}={_short(value)}" for name, value in sorted(change.fields.items()))
    text = f"{change.step.value:8}{change.kind} {change.name}" + (f": {said}" if said else "")
    return f"{text} ({change.words})" if change.words else text


def _short(value: Any) -> str:
    if isinstance(value, list):
        return (
            "[" + ", ".join(str(each.get("url", each)) if isinstance(each, dict) else str(each) for each in value) + "]"
        )
    return str(value)
