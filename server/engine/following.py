"""What a description of the world from elsewhere changes in ours: pure.

What was imported last is kept beside what is there now. A field that differs from it was changed by an admin, and stays as
the admin wants it; everything else follows the source. What no source ever gave is the admins' own and never touched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.states import ResourceState

Spec = Mapping[str, Any]
_NONE = object()


@dataclass(frozen=True)
class Imported:
    """An entry as its source gave it last; ``gone`` since when it does not any more."""

    spec: Spec
    gone: float | None = None


@dataclass(frozen=True)
class Change:
    """An entry that comes to be ``spec``. ``what``: created, changed, drained (it has vanished) or back; ``fields`` that are
    other than before."""

    name: str
    what: str
    spec: Spec
    fields: tuple[str, ...] = ()


@dataclass
class Plan:
    """What is to be done. ``remember``: what each entry is imported as; ``by_hand``: entries with fields of an admin's own,
    or that are an admin's altogether (no fields)."""

    changes: list[Change] = field(default_factory=list)
    remember: dict[str, Imported] = field(default_factory=dict)
    by_hand: dict[str, tuple[str, ...]] = field(default_factory=dict)


def vanished(found: Collection[str], skipped: Collection[str], last: Mapping[str, Imported]) -> list[str]:
    """Entries that were there last time and are not in the answer at all."""
    return [name for name, each in last.items() if each.gone is None and name not in found and name not in skipped]


def too_many(gone: int, last: Mapping[str, Imported], percent: float) -> bool:
    """Whether so much has vanished that the answer is not to be believed."""
    there = sum(each.gone is None for each in last.values())
    return gone > 0 and 100.0 * gone > percent * there


def plan(
    found: Mapping[str, Spec],
    skipped: Collection[str],
    now_there: Mapping[str, Spec],
    last: Mapping[str, Imported],
    now: float,
) -> Plan:
    """What changes, by name."""  # fmt: skip
    made = Plan()
    for name, new in sorted(found.items()):
        there, before = now_there.get(name), last.get(name)
        if there is None:
            made.changes.append(Change(name, "created", new))
        elif before is None:
            made.by_hand[name] = ()
            continue
        else:
            _follow(made, name, there, before, new, "back" if before.gone is not None else "changed")
        made.remember[name] = Imported(new)
    for name in vanished(found, skipped, last):
        there, before = now_there.get(name), last[name]
        new = {**before.spec, "status": ResourceState.DRAINING.value}
        if there is not None:
            _follow(made, name, there, before, new, "drained")
        made.remember[name] = Imported(new, now)
    return made


def _follow(made: Plan, name: str, there: Spec, before: Imported, new: Spec, what: str) -> None:
    merged = merge(there, before.spec, new)
    fields = tuple(key for key in merged.keys() | there.keys() if merged.get(key, _NONE) != there.get(key, _NONE))
    if fields:
        made.changes.append(Change(name, what, merged, tuple(sorted(fields))))
    own = tuple(sorted(key for key in merged.keys() | new.keys() if merged.get(key, _NONE) != new.get(key, _NONE)))
    if own:
        made.by_hand[name] = own


def merge(there: Spec, last: Spec, new: Spec) -> dict[str, Any]:
    """``new`` where nobody has touched what was imported last, else what is there; of objects, key by key."""
    merged = {}
    for key in [*new, *(each for each in (*there, *last) if each not in new)]:
        ours, theirs, fresh = there.get(key, _NONE), last.get(key, _NONE), new.get(key, _NONE)
        value: Any = fresh if ours == theirs else ours
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and isinstance(fresh, Mapping):
            value = merge(ours, theirs, fresh)
        if value is not _NONE:
            merged[key] = value
    return merged
