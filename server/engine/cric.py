"""What CRIC says of sites, storages and queues, in our words: tables of its fields and ours, and nothing else. Pure.

A field that is in no table is ignored. One of a wrong type costs its entry, with the reason; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.states import ResourceState
from common.wire import Activity
from server.engine.imports import DISTANCES, Document

NEVER, FARTHEST = 101, 11
"""The distance of a blocked link; the largest closeness, which means far."""


class Wrong(ValueError):
    """An entry that cannot be used; the words name its field."""


@dataclass(frozen=True)
class Field:
    """A field of CRIC's, ours that it becomes, and how its value is read (raises Wrong)."""

    theirs: str
    ours: str
    read: Callable[[Any], Any]


def _number(value: Any) -> float:
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise Wrong(f"a number is expected, not {value!r}"[:200])


def _count(value: Any) -> int:
    number = _number(value)
    if not 0 <= number < 2**31:
        raise Wrong(f"{value!r} is out of range"[:200])
    return int(number)


def _power(value: Any) -> float:
    number = _number(value)
    if not 0 < number <= 1e6:
        raise Wrong(f"{value!r} is out of range"[:200])
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"text is expected, not {value!r}"[:200])
    return value[:1000]


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"true or false is expected, not {value!r}"[:200])
    return value


def _no_reassign(value: Any) -> bool:
    return "disableReassign" in _text(value)


def _tags(value: Any) -> list[str]:
    return ["apptainer"] if {"singularity", "apptainer"} & set(_text(value).replace(":", " ").split()) else []


COPYTOOLS = {
    "rucio": "rucio", "gfal": "gfal", "gfalcopy": "gfal", "xrdcp": "xrootd", "lsm": "lsm", "s3": "s3",
    "objectstore": "s3",
}  # fmt: skip
"""Their copytools and ours; others are left out."""


def _copytools(value: Any) -> list[str]:
    if not isinstance(value, (dict, list)) or not all(isinstance(each, str) for each in value):
        raise Wrong(f"names of copytools are expected, not {value!r}"[:200])
    return list(dict.fromkeys(COPYTOOLS[name] for name in value if name in COPYTOOLS))


QUEUE_STATUSES = {
    "online": ResourceState.ONLINE,
    "test": ResourceState.TEST,
    "paused": ResourceState.PAUSED,
    "brokeroff": ResourceState.DRAINING,
    "offline": ResourceState.OFFLINE,
}


def _status(value: Any) -> ResourceState:
    found = QUEUE_STATUSES.get(_text(value).lower())
    if found is None:
        raise Wrong(f"{value!r} is none of {', '.join(QUEUE_STATUSES)}"[:200])
    return found


QUEUE_FIELDS = (
    Field("atlas_site", "site", _text),
    Field("status", "status", _status),
    Field("corecount", "cores", _count),
    Field("maxrss", "memory_mb", _count),
    Field("maxwdir", "disk_mb", _count),
    Field("maxtime", "wall_s", _count),
    Field("corepower", "core_power", _power),
    Field("catchall", "no_reassign", _no_reassign),
    Field("container_type", "tags", _tags),
    Field("copytools", "copytools", _copytools),
    Field("comment", "description", _text),
)
"""``pandaqueue``. Sizes are in MB and times in seconds there as here; ``corepower`` is of a core, in HS06 or HS23."""
SITE_FIELDS = (Field("rc_site", "description", _text),)
"""``site``."""
STORAGE_FIELDS = (Field("site", "site", _text), Field("is_tape", "tape", _flag), Field("token", "description", _text))
"""``ddmendpoint``."""
ACTIVITIES = {
    each.value: each for each in (Activity.READ_LAN, Activity.WRITE_LAN, Activity.READ_WAN, Activity.WRITE_WAN)
}
"""Of ``arprotocols``; others, such as deleting, are not ours."""
READS = frozenset({"read_lan", "read_wan"})
WRITES = frozenset({"write_lan", "write_wan"})


def entries(document: Any) -> Iterator[tuple[str, Any]]:
    """Names and entries of a document: an object by name, or a list of objects with one. Raises Wrong."""
    if isinstance(document, dict):
        yield from document.items()
    elif isinstance(document, list):
        for each in document:
            yield (str(each.get("name")) if isinstance(each, dict) else repr(each)[:100]), each
    else:
        raise Wrong(f"an object or a list is expected, not {type(document).__name__}")


def read_sites(content: Any, into: Document) -> None:
    """Sites. Raises Wrong: the whole is none of CRIC's."""
    _read(content, into, "site", SITE_FIELDS, _nothing_more)


def read_queues(content: Any, into: Document) -> None:
    """Queues. Raises Wrong."""

    def more(given: Mapping[str, Any], values: dict[str, Any]) -> None:
        values["remote_io"] = any(
            _flag(given[name]) for name in ("direct_access_lan", "direct_access_wan") if given.get(name) is not None
        )

    _read(content, into, "queue", QUEUE_FIELDS, more)


def read_storages(content: Any, into: Document, blacklist: Mapping[str, str]) -> None:
    """Storages; ``blacklist`` as :func:`read_blacklist` gives it. Raises Wrong."""

    def more(given: Mapping[str, Any], values: dict[str, Any]) -> None:
        values["endpoints"] = _endpoints(given.get("arprotocols"))
        if given.get("is_deterministic") is not None and _flag(given["is_deterministic"]):
            values["naming"] = "rucio-hash"
        off = blacklist.get(values["name"])
        if off is not None and values["status"] is ResourceState.ONLINE:
            values["status"] = ResourceState.OFFLINE if off == "read" else ResourceState.PAUSED

    _read(content, into, "storage", STORAGE_FIELDS, more)


def read_blacklist(document: Any) -> dict[str, str]:
    """Storages that are switched off: for ``read`` (and so for all), or only for ``write``. An entry that names no
    activity is of a list that was asked for writing. Raises Wrong."""
    found = {}
    for name, entry in entries(document):
        told = entry if isinstance(entry, dict) else {}
        known = {each: told[each] for each in READS | WRITES if each in told}
        off = {each for each, rule in known.items() if _is_off(rule)}
        if off & READS:
            found[name] = "read"
        elif off & WRITES or not known:
            found[name] = "write"
    return found


def read_closeness(document: Any) -> dict[tuple[str, str], int]:
    """Distances between sites, from where and to where: closeness 0 to 11 becomes 1 to 100, a blocked link 101. Entries
    without both ends and a number are left out. Raises Wrong."""
    if not isinstance(document, list):
        raise Wrong(f"a list is expected, not {type(document).__name__}")
    found = {}
    for entry in document:
        if not isinstance(entry, dict) or not (entry.get("src") and entry.get("dst")):
            continue
        try:
            closeness = _number(entry.get("closeness"))
        except Wrong:
            continue
        if closeness <= FARTHEST:
            found[str(entry["src"]), str(entry["dst"])] = (
                NEVER if closeness < 0 else 1 + round(closeness * 99 / FARTHEST)
            )
    return found


def tell_distances(closeness: Mapping[tuple[str, str], int], storages: Mapping[str, str], into: Document) -> None:
    """Distances of sites to storages of others; ``storages`` are the sites of the storages by name."""
    at: dict[str, list[str]] = {}
    for storage, site in storages.items():
        at.setdefault(site, []).append(storage)
    distances: dict[str, dict[str, int]] = {}
    for (here, there), distance in closeness.items():
        if here != there:
            distances.setdefault(here, {}).update(dict.fromkeys(at.get(there, ()), distance))
    into.found.update({(DISTANCES, site): found for site, found in distances.items() if found})


def _read(
    content: Any,
    into: Document,
    kind: str,
    fields: tuple[Field, ...],
    more: Callable[[Mapping[str, Any], dict[str, Any]], None],
) -> None:
    for name, entry in entries(content):
        try:
            into.add(kind, name, _one(name, entry, fields, more))
        except Wrong as error:
            into.skipped[kind, name] = str(error)
    into.entries = len(into.found)


def _one(
    name: str, entry: Any, fields: tuple[Field, ...], more: Callable[[Mapping[str, Any], dict[str, Any]], None]
) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise Wrong(f"an object is expected, not {type(entry).__name__}")
    values: dict[str, Any] = {"name": name, "status": ResourceState.ONLINE}
    for each in fields:
        if entry.get(each.theirs) is not None:
            try:
                values[each.ours] = each.read(entry[each.theirs])
            except Wrong as error:
                raise Wrong(f"{each.theirs}: {error}") from error
    if _text(entry.get("state", "ACTIVE")) != "ACTIVE":
        values["status"] = ResourceState.OFFLINE
    more(entry, values)
    del values["name"]
    return values


def _nothing_more(_given: Mapping[str, Any], _values: dict[str, Any]) -> None:
    """Sites have nothing but plain fields."""


def _endpoints(told: Any) -> list[dict[str, Any]]:
    """Each address once, with all that it is for, in CRIC's order."""
    if not isinstance(told, dict):
        raise Wrong("arprotocols: an object is expected")
    activities: dict[str, list[Activity]] = {}
    for name, protocols in told.items():
        if name not in ACTIVITIES:
            continue
        if not isinstance(protocols, list):
            raise Wrong(f"arprotocols.{name}: a list is expected")
        for each in protocols:
            if not isinstance(each, dict) or not isinstance(each.get("endpoint"), str):
                raise Wrong(f"arprotocols.{name}: an endpoint is expected")
            url = f"{each['endpoint']}{_text(each.get('path') or '')}"
            activities.setdefault(url, []).append(ACTIVITIES[name])
    if not activities:
        raise Wrong("arprotocols: it has no protocol for reading or writing")
    return [{"url": url, "activities": list(dict.fromkeys(each))} for url, each in activities.items()]


def _is_off(rule: Any) -> bool:
    status = rule.get("status") if isinstance(rule, dict) else rule
    value = status.get("value") if isinstance(status, dict) else status
    return isinstance(value, str) and value.upper() == "OFF"
