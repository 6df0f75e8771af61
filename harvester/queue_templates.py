"""Templates of queues: tables ``[harvester.templates.NAME]`` that queues, and other templates, inherit from.

A queue says ``template = "NAME"``. What it says itself stands; what it doesn't comes from its template, and from that
one's template in turn. Tables (``options``, ``submit``, ``environment``) are merged key by key, anything else is replaced
whole. In ``submit`` of a queue, ``template`` is the backend's business and has nothing to do with these.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from common.config import ConfigError

KEY = "template"


def inherited(
    queues: Mapping[str, Mapping[str, Any]], templates: Mapping[str, Mapping[str, Any]], section: str
) -> dict[str, dict[str, Any]]:
    """The tables of queues with all that they inherit.

    Raises ConfigError: a template that isn't there, or one that inherits from itself.
    """
    for name, table in templates.items():
        _merged(table, f"[{section}.templates.{name}]", templates, (name,))
    return {name: _merged(table, f"[{section}.queues.{name}]", templates, ()) for name, table in queues.items()}


def _merged(
    table: Mapping[str, Any], where: str, templates: Mapping[str, Mapping[str, Any]], path: tuple[str, ...]
) -> dict[str, Any]:
    own = {key: value for key, value in table.items() if key != KEY}
    name = table.get(KEY)
    if name is None:
        return own
    if not isinstance(name, str) or name not in templates:
        raise ConfigError(f"{where} {KEY}: there is no template {name!r}; {_nearest(name, templates)}")
    if name in path:
        chain = " -> ".join((*path[path.index(name) :], name))
        raise ConfigError(f"{where} {KEY}: templates inherit from one another in a circle: {chain}; break it")
    return _over(_merged(templates[name], where, templates, (*path, name)), own)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` with what only ``below`` says; tables are merged."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _nearest(name: object, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there are none: add a table [harvester.templates.NAME]"
